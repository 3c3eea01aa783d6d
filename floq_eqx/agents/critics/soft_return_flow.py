r"""SoftReturnFlow: a flow of returns Z, of which a regularised Q is formed where it is asked for.

The field is matched to $r + \gamma\, m\, \bar Z(s', a')$, a sample of the return for each z0. With
deterministic dynamics and no discount, the best policy under a KL penalty of weight η towards the
policy that the returns are of has

$$Q(s, a) = \eta \log \mathbb{E} \exp(Z(s, a) / \eta),$$

and takes that policy's actions in proportion to $\exp(Q / \eta)$.

Source: Espinosa-Dice, Brantley and Sun, "Expressive Value Learning for Scalable Offline
Reinforcement Learning" (EVOR, arXiv 2510.08218).
"""

from typing import ClassVar

import equinox as eqx
import jax
import jax.numpy as jnp
from jax.lax import stop_gradient
from jaxtyping import Array, Float

from ..._checks import check_range, check_sizes
from ..._types import Actions, FloatLike, Key, Metrics, Observations, Scalar, Values
from ...data.transitions import Batch
from ...embeddings import Rescale
from ...integrate import solve_flow
from ...losses import value_flow_loss
from ...modules.velocity import ValueVelocity, member_velocities
from ...networks import MLPConfig, NetworkConfig, ensemble
from ...paths import linear_path
from ...targets import aggregate, flow_td_target, soft_value
from .critic import EnsembleCritic


class SoftReturnFlowNoise(eqx.Module):
    """z0 of the next return and of the prediction, standard normal, and t, uniform in [0, 1)."""

    next_value: Float[Array, "batch noise"]
    value: Float[Array, "batch noise"]
    time: Float[Array, "batch noise"]


class SoftReturnFlow(
    EnsembleCritic[ValueVelocity, ValueVelocity, SoftReturnFlowNoise, Float[Array, "batch noise"]]
):
    """A flow of returns, and the Q that a KL penalty makes of them.

    Members are combined sample by sample.

    **Arguments:**

    - `value_temperature`: The weight η of the penalty in Q, above 0, in units of the return.
    - `num_noise`: The number of samples of z0 a transition in training.
    - `value_samples`: The number of samples of the return of which Q is formed.
    - `num_steps`: The number of Euler steps of the field.
    - `network`: The network of the field.
    """

    test_time: ClassVar[tuple[str, ...]] = ("num_steps", "value_samples", "value_temperature")

    value_temperature: FloatLike = 1.0
    num_noise: int = eqx.field(static=True, default=1)
    value_samples: int = eqx.field(static=True, default=16)
    num_steps: int = eqx.field(static=True, default=10)
    network: NetworkConfig = eqx.field(static=True, default=MLPConfig(layer_norm=True))

    def __check_init__(self):
        check_sizes(
            num_noise=self.num_noise, value_samples=self.value_samples, num_steps=self.num_steps
        )
        check_range("value_temperature", self.value_temperature)
        if isinstance(self.value_temperature, int | float) and self.value_temperature == 0:
            raise ValueError("value_temperature must be above 0; the largest return is its limit.")

    @property
    def num_next_actions(self) -> int:
        return self.num_noise

    def init(self, observation_size: int, action_size: int, *, key: Key) -> ValueVelocity:
        inputs = observation_size + action_size + 2
        return ensemble(
            lambda k: ValueVelocity(self.network.build(inputs, 1, key=k), Rescale(), Rescale()),
            self.ensemble_size,
            key=key,
        )

    def noise(self, batch_size: int, *, key: Key) -> SoftReturnFlowNoise:
        keys, samples = jax.random.split(key, 3), (batch_size, self.num_noise)
        return SoftReturnFlowNoise(
            next_value=jax.random.normal(keys[0], samples),
            value=jax.random.normal(keys[1], samples),
            time=jax.random.uniform(keys[2], samples),
        )

    def value_noise(self, count: int, *, key: Key) -> Float[Array, "batch noise"]:
        """z0 of as many samples of the return as Q is formed of, standard normal."""
        return jax.random.normal(key, (count, self.value_samples))

    def loss(
        self,
        params: ValueVelocity,
        slow: ValueVelocity,
        batch: Batch,
        next_action: Float[Array, "batch noise action"],
        noise: SoftReturnFlowNoise,
    ) -> tuple[Scalar, Metrics]:
        """Flow matching to samples of the return, each with a next action and return of its own."""
        next_value = self.returns(slow, noise.next_value, batch.next_observation, next_action)
        target = stop_gradient(
            flow_td_target(
                batch.reward,
                batch.mask,
                next_value,
                discount=self.discount,
                backup="distributional",
            )
        )
        path = linear_path(noise.value, target, noise.time)
        velocity = member_velocities(params, path.t, path.xt, batch.observation, batch.action)
        loss = value_flow_loss(velocity, path.velocity)
        return loss, {"critic_loss": loss, "target": jnp.mean(target)}

    def returns(
        self,
        field: ValueVelocity,
        z0: Float[Array, "batch noise"],
        observation: Observations,
        action: Actions | Float[Array, "batch noise action"],
    ) -> Float[Array, "batch noise"]:
        """Where the members' fields take every z0, combined: samples of the return."""
        return aggregate(self.integrate(field, z0, observation, action), self.aggregation)

    def integrate(
        self,
        field: ValueVelocity,
        z0: Float[Array, "batch noise"],
        observation: Observations,
        action: Actions | Float[Array, "batch noise action"],
    ) -> Float[Array, "ensemble batch noise"]:
        """Where every member's field takes every z0."""
        return solve_flow(
            lambda t, z: member_velocities(field, t, z, observation, action),
            jnp.broadcast_to(z0[None], (self.ensemble_size, *z0.shape)),
            num_steps=self.num_steps,
            throw=False,
        ).value

    def value(
        self,
        params: ValueVelocity,
        observation: Observations,
        action: Actions,
        noise: Float[Array, "batch noise"],
    ) -> Values:
        """The regularised Q, of as many samples of the return as there are z0."""
        samples = self.integrate(params, noise, observation, action)
        return soft_value(aggregate(samples, self.value_aggregation), self.value_temperature)
