"""Value Flows: the distribution of returns as a flow that is consistent with its own next one.

Source: Dong, Zheng, Finn, Sadigh and Eysenbach, "Value Flows" (arXiv 2510.07650), algorithm 1, as
in its released code.
"""

from typing import ClassVar

import equinox as eqx
import jax
import jax.numpy as jnp
from jax.lax import stop_gradient
from jaxtyping import Array, Float

from .._types import FloatLike, Key, Metrics, Scalar
from ..data.transitions import Batch
from ..embeddings import Rescale
from ..integrate import confine, solve_flow
from ..losses import squared_error
from ..networks import MLPConfig, NetworkConfig, ensemble
from ..paths import linear_path
from ..targets import Aggregation, aggregate, td_target, value_bounds
from ..velocity import ValueVelocity, member_velocities
from .base import State, average, best_of, check_choice, check_range, frozen
from .flow_policy import FlowPolicy, FlowPolicyAgent, FlowPolicyNoise, Proposal, integrate_actions


class ValueFlowsParams(eqx.Module):
    """The two members of the returns' field, stacked, and the policy."""

    field: ValueVelocity
    policy: FlowPolicy


class ValueFlowsNoise(FlowPolicyNoise):
    """The random numbers of one update: standard normal, but times uniform in [0, 1).

    `candidate_action` and `candidate_value` choose the next action, `confidence`, `value` and
    `actor_value` are z0 of the confidence, the flow losses and the policy's Q.
    """

    candidate_action: Float[Array, "batch candidate action"]
    candidate_value: Float[Array, "batch candidate"]
    confidence: Float[Array, "batch"]
    value: Float[Array, "batch"]
    time: Float[Array, "batch"]
    actor_value: Float[Array, "batch"]


class ValueFlows(FlowPolicyAgent):
    """Flow matching of the distribution of returns.

    **Arguments:**

    - `action_size`: components of an action; `for_data` fills it in.
    - `reward_min`, `reward_max`: the smallest and largest reward, which bound the returns;
        `for_data` fills them in.
    - `learning_rate`: of Adam.
    - `decay_updates`: the learning rate falls to zero as a cosine over so many updates; `None`
        keeps it, as the papers do.
    - `target_rate`: τ of the target field, in [0, 1].
    - `discount`: γ, in [0, 1).
    - `alpha`: the weight of the actor's distillation from the behavioural flow.
    - `dcfm_weight`: of the distributional flow matching: the field at a point that the next
        return's flow passes is the next field there.
    - `bcfm_weight`: of the bootstrapped one: flow matching to the target of a sampled next return.
    - `confidence_temperature`: of the weights, which are larger where returns spread more: at 0
        all are 1.
    - `num_candidates`: N, of which the best is the next action in the target, and in `act`.
    - `proposal`: where `act` takes them from: the behavioural flow or, as the paper does online,
        the one-step actor.
    - `temperature`: of the choice in `act`, in units of the return; at 0 the best is taken.
    - `num_steps`: Euler steps of the returns' field, each clipped to the bounds of returns.
    - `flow_steps`: those of the behavioural flow.
    - `aggregation`: how Q, and the confidence, combine the members.
    - `return_aggregation`: how the targets do.
    - `normalise_q`: divide the actor's Q term by mean |Q|.
    - `field`: the network of the returns' field.
    - `actor`: the networks of the behavioural flow and the one-step actor.
    """

    clips_flow_steps: ClassVar[bool] = True

    action_size: int | None = eqx.field(static=True, default=None)
    reward_min: FloatLike = -1.0
    reward_max: FloatLike = 0.0
    learning_rate: FloatLike = 3e-4
    decay_updates: int | None = eqx.field(static=True, default=None)
    target_rate: FloatLike = 0.005
    discount: FloatLike = 0.99
    alpha: FloatLike = 10.0
    dcfm_weight: FloatLike = 1.0
    bcfm_weight: FloatLike = 1.0
    confidence_temperature: FloatLike = 0.3
    num_candidates: int = eqx.field(static=True, default=16)
    proposal: Proposal = eqx.field(static=True, default="flow")
    temperature: FloatLike = 0.0
    num_steps: int = eqx.field(static=True, default=10)
    flow_steps: int = eqx.field(static=True, default=10)
    aggregation: Aggregation = eqx.field(static=True, default="mean")
    return_aggregation: Aggregation = eqx.field(static=True, default="mean")
    normalise_q: bool = eqx.field(static=True, default=False)
    field: NetworkConfig = eqx.field(static=True, default=MLPConfig(layer_norm=True))
    actor: NetworkConfig = eqx.field(static=True, default=MLPConfig(layer_norm=True))

    def __check_init__(self):
        for name in ("dcfm_weight", "bcfm_weight", "confidence_temperature"):
            check_range(name, getattr(self, name), 0)
        check_choice("return_aggregation", self.return_aggregation, Aggregation)

    def init(self, observation_size: int, action_size: int, *, key: Key) -> State:
        self.check_init_sizes(observation_size, action_size)
        field_key, policy_key = jax.random.split(key)
        inputs = observation_size + action_size + 2
        field = ensemble(
            lambda k: ValueVelocity(self.field.build(inputs, 1, key=k), Rescale(), Rescale()),
            2,
            key=field_key,
        )
        policy = FlowPolicy(observation_size, action_size, self.actor, key=policy_key)
        return self.fresh_state(ValueFlowsParams(field, policy), field)

    def noise(self, batch_size: int, *, key: Key) -> ValueFlowsNoise:
        keys = jax.random.split(key, 9)
        batch, count = (batch_size,), self.num_candidates
        shape = self.action_shape(batch_size)
        return ValueFlowsNoise(
            candidate_action=jax.random.normal(keys[0], self.action_shape(batch_size, count)),
            candidate_value=jax.random.normal(keys[1], (batch_size, count)),
            confidence=jax.random.normal(keys[2], batch),
            value=jax.random.normal(keys[3], batch),
            time=jax.random.uniform(keys[4], batch),
            bc_action=jax.random.normal(keys[5], shape),
            bc_time=jax.random.uniform(keys[6], batch),
            actor=jax.random.normal(keys[7], shape),
            actor_value=jax.random.normal(keys[8], batch),
        )

    def critic_loss(
        self,
        params: ValueFlowsParams,
        targets: ValueVelocity,
        batch: Batch,
        noise: ValueFlowsNoise,
    ) -> tuple[Scalar, Metrics]:
        """Both flow losses, weighted by the confidence of each transition."""
        z0, time = noise.value, noise.time
        here = (batch.observation, batch.action)
        there = (batch.next_observation, self.next_action(frozen(params), batch, noise))

        def returned(next_value: Float[Array, "batch"]) -> Float[Array, "batch"]:
            return td_target(batch.reward, batch.mask, next_value, discount=self.discount)

        def combined(values: Float[Array, "ensemble batch"]) -> Float[Array, "batch"]:
            return stop_gradient(aggregate(values, self.return_aggregation))

        def error(z: Float[Array, "batch"], target: Float[Array, "batch"]) -> Float[Array, "batch"]:
            velocity = velocities(params.field, time, z, *here)
            return jnp.sum(
                squared_error(velocity, jnp.broadcast_to(target[None], velocity.shape)), 0
            )

        next_value = combined(self.integrate(targets, z0, *there, until=jnp.ones_like(time)))
        path = linear_path(z0, returned(next_value), time)
        bootstrapped = error(path.xt, path.velocity)

        next_z = combined(self.integrate(targets, z0, *there, until=time))
        next_velocity = combined(velocities(targets, time, next_z, *there))
        distributional = error(returned(next_z), next_velocity)

        spread = self.return_spread(targets, noise.confidence, *here)
        weight = confidence_weight(spread, self.confidence_temperature)
        flow_loss = self.bcfm_weight * bootstrapped + self.dcfm_weight * distributional
        loss = jnp.mean(weight * flow_loss)
        return loss, {
            "critic_loss": loss,
            "bootstrapped_loss": jnp.mean(bootstrapped),
            "distributional_loss": jnp.mean(distributional),
            "q": jnp.mean(self.q(params.field, z0, *here)),
            "return_spread": jnp.mean(spread),
            "return_spread_min": jnp.min(spread),
            "return_spread_max": jnp.max(spread),
            "confidence_weight": jnp.mean(weight),
        }

    def next_action(
        self, params: ValueFlowsParams, batch: Batch, noise: ValueFlowsNoise
    ) -> Float[Array, "batch action"]:
        """In every next observation, the best of N actions of the behavioural flow."""
        size, count = noise.candidate_value.shape
        observation = jnp.repeat(batch.next_observation, count, axis=0)
        action = integrate_actions(
            params.policy.flow,
            jnp.reshape(noise.candidate_action, (size * count, -1)),
            observation,
            num_steps=self.flow_steps,
            clip_steps=True,
        )
        value = self.q(params.field, jnp.ravel(noise.candidate_value), observation, action)
        action, value = jnp.reshape(action, (size, count, -1)), jnp.reshape(value, (size, count))
        return jax.vmap(best_of)(action, value)

    def integrate(
        self,
        field: ValueVelocity,
        z0: Float[Array, "batch"],
        observation: Float[Array, "batch observation"],
        action: Float[Array, "batch action"],
        *,
        until: Float[Array, "batch"],
    ) -> Float[Array, "ensemble batch"]:
        """Where every member's field takes every z0 by its own time `until`, within the bounds."""

        def velocity(
            t: Scalar, z: Float[Array, "ensemble batch"]
        ) -> Float[Array, "ensemble batch"]:
            return until[None] * velocities(field, until * t, z, observation, action)

        low, high = value_bounds(self.reward_min, self.reward_max, self.discount)
        return solve_flow(
            confine(velocity, low, high, num_steps=self.num_steps),
            jnp.broadcast_to(z0[None], (2, *z0.shape)),
            num_steps=self.num_steps,
            throw=False,
        ).value

    def return_spread(
        self,
        field: ValueVelocity,
        z0: Float[Array, "batch"],
        observation: Float[Array, "batch observation"],
        action: Float[Array, "batch action"],
    ) -> Float[Array, "batch"]:
        """|dz(1)/dz0|, the derivative along the flow: to first order, since z0 has a deviation of
        1, that of the return (proposition 3 of the paper).
        """

        def returned(z0: Float[Array, "batch"]) -> Float[Array, "ensemble batch"]:
            return self.integrate(field, z0, observation, action, until=jnp.ones_like(z0))

        _, derivative = jax.jvp(returned, (z0,), (jnp.ones_like(z0),))
        return stop_gradient(aggregate(jnp.abs(derivative), self.aggregation))

    def q(
        self,
        field: ValueVelocity,
        z0: Float[Array, "batch"],
        observation: Float[Array, "batch observation"],
        action: Float[Array, "batch action"],
    ) -> Float[Array, "batch"]:
        """z0 + v(0, z0 | s, a): at t = 0 the velocity is the expected return less z0."""
        value = z0[None] + velocities(field, jnp.zeros_like(z0), z0, observation, action)
        low, high = value_bounds(self.reward_min, self.reward_max, self.discount)
        return aggregate(jnp.clip(value, low, high), self.aggregation)

    def extracted_value(
        self,
        params: ValueFlowsParams,
        observation: Float[Array, "batch observation"],
        action: Float[Array, "batch action"],
        noise: ValueFlowsNoise,
    ) -> Float[Array, "batch"]:
        return self.q(params.field, noise.actor_value, observation, action)

    def candidate_value(
        self,
        params: ValueFlowsParams,
        observation: Float[Array, "candidate observation"],
        action: Float[Array, "candidate action"],
        *,
        key: Key,
    ) -> Float[Array, "candidate"]:
        z0 = jnp.broadcast_to(jax.random.normal(key), (len(action),))
        return self.q(params.field, z0, observation, action)

    def next_targets(self, state: State) -> ValueVelocity:
        return average(state.targets, state.params.field, self.target_rate)


def velocities(
    field: ValueVelocity,
    t: Float[Array, "batch"],
    z: Float[Array, "ensemble batch"] | Float[Array, "batch"],
    observation: Float[Array, "batch observation"],
    action: Float[Array, "batch action"],
) -> Float[Array, "ensemble batch"]:
    """Every member's velocity for every transition, at one flow time and value each."""
    velocity = member_velocities(field, t[:, None], z[..., None], observation, action)
    return velocity[..., 0]


def confidence_weight(
    spread: Float[Array, "batch"], temperature: FloatLike
) -> Float[Array, "batch"]:
    """sigmoid(-temperature / spread) + 1/2, in [1/2, 1]: more for returns that spread more."""
    tiny = jnp.finfo(spread.dtype).tiny
    return jax.nn.sigmoid(-temperature / jnp.maximum(spread, tiny)) + 0.5
