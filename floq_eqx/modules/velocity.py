"""Velocity fields: what a flow integrates, for one example."""

import abc
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from .._types import Action, Observation, Scalar
from ..embeddings import AbstractEmbedding, Rescale
from ..networks import AbstractNetwork


class AbstractValueVelocity(eqx.Module):
    """A velocity v(t, z | s, a) of a scalar; subclass it for a field of your own."""

    @abc.abstractmethod
    def __call__(self, t: Scalar, z: Scalar, observation: Observation, action: Action) -> Scalar:
        """**Arguments:** the flow time `t` in [0, 1], the flow variable `z`, s and a.

        **Returns:** dz/dt, in units of the return.
        """

    def condition(self, observation: Observation, action: Action) -> Any:
        """What the field makes of s and a alone, once for all t and z of a solve: by default (s, a)
        itself.
        """
        return observation, action

    def conditioned(self, t: Scalar, z: Scalar, given: Any) -> Scalar:
        """v(t, z | s, a), from what `condition` made of (s, a)."""
        return self(t, z, *given)


class ValueVelocity(AbstractValueVelocity):
    """The velocity v(t, z | s, a) of a scalar that ends, at t = 1, as Q(s, a).

    The network sees s, a, an embedding of z and one of t, concatenated in this order; z itself is
    never fed, clipped or normalised. The first layer is a sum of what it makes of each, so that
    what it makes of s and a is the same for all t and z.

    Source: floq, arXiv 2509.06863, sections 4.1 and 4.2.
    """

    network: AbstractNetwork
    value_embedding: AbstractEmbedding
    time_embedding: AbstractEmbedding

    def __init_subclass__(cls, **kwargs: Any):
        super().__init_subclass__(**kwargs)
        # A solve calls `conditioned`: another `__call__` would never be heard of.
        if "__call__" in vars(cls) and "conditioned" not in vars(cls):
            raise TypeError(
                f"{cls.__name__} has a __call__ of its own, which solves do not use: override "
                "conditioned(t, z, given) in its place, from which __call__ follows."
            )

    def features(
        self, t: Scalar, z: Scalar, observation: Observation, action: Action
    ) -> Float[Array, "width"]:
        """The penultimate features of the network."""
        return self.network.features(jnp.concatenate([observation, action, self._embedded(t, z)]))

    def __call__(self, t: Scalar, z: Scalar, observation: Observation, action: Action) -> Scalar:
        return self.conditioned(t, z, self.condition(observation, action))

    def condition(self, observation: Observation, action: Action) -> Float[Array, "width"]:
        """The share of s and a in the network's first layer.

        **Raises:** `ValueError` if they have other sizes than the field is made for.
        """
        # Slices of a kernel fit any sizes, where a product with all of it would not.
        inputs = self.network.entrance.weight.shape[1]
        own = inputs - self.value_embedding.size - self.time_embedding.size
        if observation.size + action.size != own:
            raise ValueError(
                f"This field is made for an observation and an action of {own} components "
                f"together, got {observation.size} and {action.size}."
            )
        of_action = self.network.weighted(action, start=observation.size)
        return self.network.weighted(observation) + of_action

    def conditioned(self, t: Scalar, z: Scalar, given: Float[Array, "width"]) -> Scalar:
        embedded = self._embedded(t, z)
        start = self.network.entrance.weight.shape[1] - embedded.size
        return jnp.squeeze(
            self.network.continued(given + self.network.weighted(embedded, start=start)), 0
        )

    def _embedded(self, t: Scalar, z: Scalar) -> Float[Array, "bins"]:
        return jnp.concatenate([self.value_embedding(z), self.time_embedding(t)])


class EndpointVelocity(ValueVelocity):
    """A field whose network predicts where the flow ends: v = (network - z) / (1 - t), for t < 1.

    The same straight paths from another head: an ablation, since its regression target, x1, no
    longer depends on z and t.
    """

    def conditioned(self, t: Scalar, z: Scalar, given: Float[Array, "width"]) -> Scalar:
        return (super().conditioned(t, z, given) - z) / (1 - t)


class ActionVelocity(eqx.Module):
    """The velocity v(t, x | s) of an action that ends, at t = 1, as one of the behaviour policy.

    The network sees s, x and t, concatenated in this order: t itself or what an embedding makes of
    it.

    Source: FQL, arXiv 2502.02538, section 4.
    """

    network: AbstractNetwork
    time_embedding: AbstractEmbedding = Rescale()  # of [0, 1] to itself

    def __call__(self, t: Scalar, x: Action, observation: Observation) -> Float[Array, "action"]:
        """**Arguments:** the flow time `t` in [0, 1], the flow variable `x` and s.

        **Returns:** dx/dt.
        """
        return self.network(jnp.concatenate([observation, x, self.time_embedding(t)]))


class ShortcutVelocity(eqx.Module):
    """The mean velocity of a step of an action's flow, from t to t + 2^-level.

    The network sees s, x, t and the level, concatenated in this order.

    Source: Frans et al., arXiv 2410.12557; SORL, arXiv 2505.22866, section 3.
    """

    network: AbstractNetwork

    def __call__(
        self, t: Scalar, level: Scalar, x: Action, observation: Observation
    ) -> Float[Array, "action"]:
        """**Arguments:** the flow time `t` in [0, 1), the `level` of which a flow takes 2^level
        equal steps, the flow variable `x` and s.

        **Returns:** (x(t + 2^-level) - x) 2^level.
        """
        return self.network(jnp.concatenate([observation, x, t[None], level[None]]))


def member_velocities(
    members: AbstractValueVelocity,
    t: Float[Array, "..."],
    z: Float[Array, "ensemble batch noise"] | Float[Array, "batch noise"],
    observation: Float[Array, "batch observation"],
    action: Float[Array, "batch action"] | Float[Array, "batch noise action"],
) -> Float[Array, "ensemble batch noise"]:
    """Every member's velocity for every transition and noise sample.

    **Arguments:**

    - `members`: an ensemble of fields, stacked.
    - `t`: one time for all, or one for each transition and noise sample, `[batch noise]`.
    - `z`: each member's own flow variable, or one for all of them.
    - `observation`: s, shared by the noise samples.
    - `action`: a, shared by the noise samples, or one for each.
    """
    given = member_conditions(members, observation, action, num_noise=z.shape[-1])
    return conditioned_velocities(members, t, z, given)


def member_conditions(
    members: AbstractValueVelocity,
    observation: Float[Array, "batch observation"],
    action: Float[Array, "batch action"] | Float[Array, "batch noise action"],
    *,
    num_noise: int,
) -> Any:
    """What every member makes of s and a, for every transition and noise sample: arguments as those
    of `member_velocities`, and the number of samples.

    **Returns:** arrays `[ensemble batch*noise ...]`, for `conditioned_velocities`.
    """
    per_sample = jax.vmap(
        lambda member, s, a: member.condition(s, a),
        in_axes=(None, None, 0 if action.ndim == 3 else None),
        axis_size=num_noise,
    )
    per_transition = jax.vmap(per_sample, in_axes=(None, 0, 0))
    given = jax.vmap(per_transition, in_axes=(0, None, None))(members, observation, action)
    return jax.tree.map(lambda x: jnp.reshape(x, (x.shape[0], -1, *x.shape[3:])), given)


def conditioned_velocities(
    members: AbstractValueVelocity,
    t: Float[Array, "..."],
    z: Float[Array, "ensemble batch noise"] | Float[Array, "batch noise"],
    given: Any,
) -> Float[Array, "ensemble batch noise"]:
    """`member_velocities`, from what `member_conditions` made of s and a."""
    batch, noise = z.shape[-2:]
    # One axis of batch x noise: with two, XLA's CPU matrix products take 1.7 times as long.
    z = jnp.reshape(z, (*z.shape[:-2], batch * noise))
    t = jnp.reshape(t, (batch * noise,)) if t.ndim else t
    per_example = jax.vmap(
        lambda member, *args: member.conditioned(*args),
        in_axes=(None, 0 if t.ndim else None, 0, 0),
    )
    per_member = jax.vmap(per_example, in_axes=(0, None, 0 if z.ndim == 2 else None, 0))
    velocity = per_member(members, t, z, given)
    return jnp.reshape(velocity, (-1, batch, noise))


def action_velocities(
    field: ActionVelocity,
    t: Float[Array, "..."],
    x: Float[Array, "batch action"],
    observation: Float[Array, "batch observation"],
) -> Float[Array, "batch action"]:
    """The velocity of every action of a batch; `t` is one time for all or one for each."""
    return jax.vmap(field, in_axes=(0 if t.ndim else None, 0, 0))(t, x, observation)
