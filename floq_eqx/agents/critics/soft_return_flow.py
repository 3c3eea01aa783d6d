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

from ..._types import (
    Actions,
    Key,
    Loss,
    MemberSamples,
    NextActions,
    Observations,
    Positive,
    Samples,
    Values,
)
from ...data.transitions import Batch
from ...embeddings import Rescale
from ...integrate import solve_flow
from ...losses import value_flow_loss
from ...modules.velocity import (
    ValueVelocity,
    conditioned_velocities,
    member_conditions,
    member_velocities,
)
from ...paths import linear_path
from ...targets import soft_value
from .critic import AbstractCritic, FlowNoise


class SoftReturnFlow(AbstractCritic[ValueVelocity, ValueVelocity, FlowNoise, Samples]):
    """A flow of returns, and the Q that a KL penalty makes of them.

    Members are combined sample by sample.

    **Arguments:**

    - `value_temperature`: The weight η of the penalty in Q, above 0, in units of the return.
    - `num_noise`: The number of samples of z0 a transition in training.
    - `value_samples`: The number of samples of the return of which Q is formed.
    - `num_steps`: The number of Euler steps of the field.
    """

    test_time: ClassVar[tuple[str, ...]] = ("num_steps", "value_samples", "value_temperature")

    value_temperature: Positive = 1.0
    num_noise: int = eqx.field(static=True, default=1)
    value_samples: int = eqx.field(static=True, default=16)
    num_steps: int = eqx.field(static=True, default=10)

    @property
    def num_next_actions(self) -> int:
        return self.num_noise

    def init(self, observation_size: int, action_size: int, *, key: Key) -> ValueVelocity:
        inputs = observation_size + action_size + 2
        return self.members(lambda n: ValueVelocity(n, Rescale(), Rescale()), inputs, key=key)

    def noise(self, batch_size: int, *, key: Key) -> FlowNoise:
        """z0 of both values, standard normal, and t, uniform in [0, 1)."""
        keys, samples = jax.random.split(key, 3), (batch_size, self.num_noise)
        next_value, value = (jax.random.normal(k, samples) for k in keys[:2])
        return FlowNoise(next_value, value, jax.random.uniform(keys[2], samples))

    def value_noise(self, count: int, *, key: Key) -> Samples:
        """z0 of as many samples of the return as Q is formed of, standard normal."""
        return jax.random.normal(key, (count, self.value_samples))

    def loss(
        self,
        params: ValueVelocity,
        slow: ValueVelocity,
        batch: Batch,
        next_action: NextActions,
        noise: FlowNoise,
    ) -> Loss:
        """Flow matching to samples of the return, each with a next action and return of its own."""
        samples = self.integrate(slow, noise.next_value, batch.next_observation, next_action)
        next_value = self.combined(samples)
        target = self.sample_targets(batch, next_value, "distributional")
        path = linear_path(noise.value, target, noise.time)
        velocity = member_velocities(params, path.t, path.xt, batch.observation, batch.action)
        loss = value_flow_loss(velocity, path.velocity, batch.whole)
        return loss, {"critic_loss": loss, "target": jnp.mean(target)}

    def integrate(
        self,
        field: ValueVelocity,
        z0: Samples,
        observation: Observations,
        action: Actions | NextActions,
    ) -> MemberSamples:
        """Where every member's field takes every z0."""
        given = member_conditions(field, observation, action, num_noise=z0.shape[-1])
        return solve_flow(
            lambda t, z: conditioned_velocities(field, t, z, given),
            jnp.broadcast_to(z0[None], (self.ensemble_size, *z0.shape)),
            num_steps=self.num_steps,
            throw=False,
        ).value

    def value(
        self, params: ValueVelocity, observation: Observations, action: Actions, noise: Samples
    ) -> Values:
        """The regularised Q, of as many samples of the return as there are z0."""
        samples = self.integrate(params, noise, observation, action)
        return soft_value(self.combined_value(samples), self.value_temperature)
