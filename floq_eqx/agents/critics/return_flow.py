r"""ReturnFlow: the distribution of returns as a flow that is consistent with its own next one.

A field carries standard normal $z_0$ to samples of the return $Z(s, a)$. Where $\bar\psi(t, z_0)$
is where the slow field takes $z_0$ by the time t, it is regressed on two velocities,

$$v(t, (1 - t)\, z_0 + t\, y \mid s, a) \to y - z_0, \quad
y = r + \gamma\, m\, \bar\psi(1, z_0 \mid s', a'),$$
$$v(t, r + \gamma\, m\, z \mid s, a) \to \bar v(t, z \mid s', a'), \quad
z = \bar\psi(t, z_0 \mid s', a'),$$

the bootstrapped and the distributional flow matching, weighted by a confidence that grows with
$|\partial \bar\psi(1, z_0) / \partial z_0|$. $Q(s, a) = z_0 + v(0, z_0 \mid s, a)$.

Source: Dong, Zheng, Finn, Sadigh and Eysenbach, "Value Flows" (arXiv 2510.07650), algorithm 1, as
in its released code.
"""

import equinox as eqx
import jax
import jax.numpy as jnp
from jax.lax import stop_gradient
from jaxtyping import Array, Float

from ..._types import Actions, AtLeastZero, Key, Loss, MemberValues, Observations, Scalar, Values
from ...data.transitions import Batch
from ...embeddings import Rescale
from ...integrate import confine, solve_flow
from ...modules.velocity import (
    ValueVelocity,
    conditioned_velocities,
    member_conditions,
    member_velocities,
)
from ...paths import linear_path
from ...targets import td_target, value_bounds
from .critic import BoundedCritic


class ReturnFlowNoise(eqx.Module):
    """z0 of the confidence and of the flow losses, standard normal, and t, uniform in [0, 1)."""

    confidence: Values
    value: Values
    time: Values


class ReturnFlow(BoundedCritic[ValueVelocity, ValueVelocity, ReturnFlowNoise, Values]):
    """A flow of the return's distribution, which the target's own flow is matched to.

    **Arguments:**

    - `dcfm_weight`: The weight of the distributional flow matching: the field at a point that the
        next return's flow passes is the next field there.
    - `bcfm_weight`: The weight of the bootstrapped one: flow matching to the target of a sampled
        next return.
    - `confidence_temperature`: The temperature of the weights, which are larger where returns
        spread more; at 0 all are 1.
    - `num_steps`: The number of Euler steps of the field, each clipped to the bounds of returns.
    """

    dcfm_weight: AtLeastZero = 1.0
    bcfm_weight: AtLeastZero = 1.0
    confidence_temperature: AtLeastZero = 0.3
    num_steps: int = eqx.field(static=True, default=10)

    def init(self, observation_size: int, action_size: int, *, key: Key) -> ValueVelocity:
        inputs = observation_size + action_size + 2
        return self.members(lambda n: ValueVelocity(n, Rescale(), Rescale()), inputs, key=key)

    def noise(self, batch_size: int, *, key: Key) -> ReturnFlowNoise:
        keys = jax.random.split(key, 3)
        confidence, value = (jax.random.normal(k, (batch_size,)) for k in keys[:2])
        return ReturnFlowNoise(confidence, value, jax.random.uniform(keys[2], (batch_size,)))

    def value_noise(self, count: int, *, key: Key) -> Values:
        """z0, standard normal."""
        return jax.random.normal(key, (count,))

    def loss(
        self,
        params: ValueVelocity,
        slow: ValueVelocity,
        batch: Batch,
        next_action: Float[Array, "batch 1 action"],
        noise: ReturnFlowNoise,
    ) -> Loss:
        """Both flow losses, weighted by the confidence of each transition."""
        z0, time = noise.value, noise.time
        here = (batch.observation, batch.action)
        there = (batch.next_observation, next_action[:, 0])

        def returned(next_value: Values) -> Values:
            discount = self.next_discount(batch)
            return td_target(batch.reward, batch.mask, next_value, discount=discount)

        def combined(values: MemberValues) -> Values:
            return stop_gradient(self.combined(values))

        def error(z: Values, target: Values) -> Values:
            return jnp.sum((velocities(params, time, z, *here) - target[None]) ** 2, axis=0)

        next_value = combined(self.integrate(slow, z0, *there, until=jnp.ones_like(time)))
        path = linear_path(z0, returned(next_value), time)
        bootstrapped = error(path.xt, path.velocity)

        next_z = combined(self.integrate(slow, z0, *there, until=time))
        next_velocity = combined(velocities(slow, time, next_z, *there))
        distributional = error(returned(next_z), next_velocity)

        spread = self.return_spread(slow, noise.confidence, *here)
        weight = confidence_weight(spread, self.confidence_temperature)
        flow_loss = self.bcfm_weight * bootstrapped + self.dcfm_weight * distributional
        counted = weight if batch.whole is None else weight * batch.whole
        loss = jnp.mean(counted * flow_loss)
        return loss, {
            "critic_loss": loss,
            "bootstrapped_loss": jnp.mean(bootstrapped),
            "distributional_loss": jnp.mean(distributional),
            "q": jnp.mean(self.value(params, *here, z0)),
            "return_spread": jnp.mean(spread),
            "return_spread_min": jnp.min(spread),
            "return_spread_max": jnp.max(spread),
            "confidence_weight": jnp.mean(weight),
        }

    def integrate(
        self,
        field: ValueVelocity,
        z0: Values,
        observation: Observations,
        action: Actions,
        *,
        until: Values,
    ) -> MemberValues:
        """Where every member's field takes every z0 by its own time `until`, within the bounds."""
        given = member_conditions(field, observation, action, num_noise=1)

        def velocity(t: Scalar, z: MemberValues) -> MemberValues:
            time = (until * t)[:, None]
            return until[None] * conditioned_velocities(field, time, z[..., None], given)[..., 0]

        low, high = value_bounds(self.reward_min, self.reward_max, self.discount)
        return solve_flow(
            confine(velocity, low, high, num_steps=self.num_steps),
            jnp.broadcast_to(z0[None], (self.ensemble_size, *z0.shape)),
            num_steps=self.num_steps,
            throw=False,
        ).value

    def return_spread(
        self, field: ValueVelocity, z0: Values, observation: Observations, action: Actions
    ) -> Values:
        """|dz(1)/dz0|, the derivative along the flow: to first order, since z0 has a deviation of
        1, that of the return (proposition 3 of the paper). Members are combined as Q's are.
        """

        def returned(z0: Values) -> MemberValues:
            return self.integrate(field, z0, observation, action, until=jnp.ones_like(z0))

        _, derivative = jax.jvp(returned, (z0,), (jnp.ones_like(z0),))
        return stop_gradient(self.combined_value(jnp.abs(derivative)))

    def value(
        self, params: ValueVelocity, observation: Observations, action: Actions, noise: Values
    ) -> Values:
        """z0 + v(0, z0 | s, a): at t = 0 the velocity is the expected return less z0."""
        value = noise[None] + velocities(params, jnp.zeros_like(noise), noise, observation, action)
        low, high = value_bounds(self.reward_min, self.reward_max, self.discount)
        return self.combined_value(jnp.clip(value, low, high))


def velocities(
    field: ValueVelocity,
    t: Values,
    z: MemberValues | Values,
    observation: Observations,
    action: Actions,
) -> MemberValues:
    """Every member's velocity for every transition, at one flow time and value each."""
    return member_velocities(field, t[:, None], z[..., None], observation, action)[..., 0]


def confidence_weight(spread: Values, temperature: AtLeastZero) -> Values:
    """sigmoid(-temperature / spread) + 1/2, in [1/2, 1]: more for returns that spread more."""
    tiny = jnp.finfo(spread.dtype).tiny
    return jax.nn.sigmoid(-temperature / jnp.maximum(spread, tiny)) + 0.5
