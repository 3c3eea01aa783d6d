"""SORL: a shortcut model as the policy, which raises Q through its few large steps.

Source: Espinosa-Dice et al., "Scaling Offline RL via Efficient and Expressive Shortcut Models"
(arXiv 2505.22866), algorithm 1. In the released code the critic's loss also moves the actor,
through the next action, and the critic sees the number of steps; here, as in the paper, neither.
"""

import math
from functools import partial
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Float, PyTree

from .._types import Action, FloatLike, Key, Metrics, Observation, Scalar
from ..critics import Critic, member_values
from ..data.transitions import Batch
from ..integrate import solve_flow
from ..losses import critic_loss, distillation_loss, flow_matching_loss, policy_loss
from ..networks import MLPConfig, NetworkConfig, ensemble
from ..paths import linear_path
from ..targets import Aggregation, aggregate, td_target
from ..velocity import ShortcutVelocity
from .base import Agent, State, average, best_of, check_range, check_sizes, frozen


class SorlParams(eqx.Module):
    """The critic's members, stacked, and the shortcut model; the targets hold the same."""

    critic: Critic
    flow: ShortcutVelocity


class SorlNoise(eqx.Module):
    """The random numbers of one update.

    Actions are standard normal. Times and levels are uniform in [0, 1) and become whole steps and
    numbers of steps: `next_level` and `actor_level` one for the whole batch, so that it takes the
    same number of steps.
    """

    bc_action: Float[Array, "batch action"]
    bc_time: Float[Array, "batch"]
    consistency_action: Float[Array, "batch action"]
    consistency_time: Float[Array, "batch"]
    consistency_level: Float[Array, "batch"]
    next_action: Float[Array, "batch action"]
    next_level: Scalar
    actor: Float[Array, "batch action"]
    actor_level: Scalar


class SORL(Agent):
    """Scalable offline reinforcement learning with shortcut models.

    **Arguments:**

    - `action_size`: components of an action; `for_data` fills it in.
    - `learning_rate`: of Adam.
    - `decay_updates`: the learning rate falls to zero as a cosine over so many updates; `None`
        keeps it, as the paper does.
    - `gradient_norm`: the largest norm of the critic's gradient, and of the policy's.
    - `target_rate`: τ of the target critic and shortcut model, in [0, 1].
    - `discount`: γ, in [0, 1).
    - `alpha`: the weight of self-consistency.
    - `flow_weight`: that of flow matching.
    - `q_weight`: that of Q.
    - `max_steps`: the most steps of the policy in training, a power of 2: the smaller powers are
        its shortcuts.
    - `action_steps`: the steps of `act`, one of these.
    - `num_candidates`: N > 1 makes `act` draw N actions and choose by Q.
    - `temperature`: of the choice, in units of the return; at 0 the best is taken.
    - `ensemble_size`: members of the critic.
    - `aggregation`: how the target and `act` combine the members.
    - `normalise_q`: divide the Q term by mean |Q|.
    - `critic`: its network.
    - `actor`: the shortcut model's.
    """

    action_size: int | None = eqx.field(static=True, default=None)
    learning_rate: FloatLike = 1e-4
    decay_updates: int | None = eqx.field(static=True, default=None)
    gradient_norm: FloatLike = 1.0
    target_rate: FloatLike = 0.005
    discount: FloatLike = 0.99
    alpha: FloatLike = 10.0
    flow_weight: FloatLike = 10.0
    q_weight: FloatLike = 100.0
    max_steps: int = eqx.field(static=True, default=8)
    action_steps: int = eqx.field(static=True, default=8)
    num_candidates: int = eqx.field(static=True, default=1)
    temperature: FloatLike = 0.0
    ensemble_size: int = eqx.field(static=True, default=2)
    aggregation: Aggregation = eqx.field(static=True, default="mean")
    normalise_q: bool = eqx.field(static=True, default=True)
    critic: NetworkConfig = eqx.field(static=True, default=MLPConfig(layer_norm=True))
    actor: NetworkConfig = eqx.field(static=True, default=MLPConfig())

    def __check_init__(self):
        for name in ("gradient_norm", "flow_weight", "q_weight"):
            check_range(name, getattr(self, name), 0)
        check_sizes(max_steps=self.max_steps, action_steps=self.action_steps)
        if 2**self.levels != self.max_steps:
            raise ValueError(f"max_steps must be a power of 2, got {self.max_steps}.")
        if 2 ** level_of(self.action_steps) != self.action_steps or (
            self.action_steps > self.max_steps
        ):
            raise ValueError(
                f"action_steps must be a power of 2 up to max_steps = {self.max_steps}, the "
                f"numbers of steps that the policy is trained for; got {self.action_steps}."
            )

    @property
    def levels(self) -> int:
        """The level of the smallest steps, log2 of `max_steps`; 0 is a single step."""
        return level_of(self.max_steps)

    def init(self, observation_size: int, action_size: int, *, key: Key) -> State:
        self.check_init_sizes(observation_size, action_size)
        critic_key, flow_key = jax.random.split(key)
        inputs = observation_size + action_size
        critic = ensemble(
            lambda k: Critic(self.critic.build(inputs, 1, key=k)),
            self.ensemble_size,
            key=critic_key,
        )
        flow = ShortcutVelocity(self.actor.build(inputs + 2, action_size, key=flow_key))
        params = SorlParams(critic, flow)
        return self.fresh_state(params, params)

    def noise(self, batch_size: int, *, key: Key) -> SorlNoise:
        keys = jax.random.split(key, 9)
        shape, batch = self.action_shape(batch_size), (batch_size,)
        return SorlNoise(
            bc_action=jax.random.normal(keys[0], shape),
            bc_time=jax.random.uniform(keys[1], batch),
            consistency_action=jax.random.normal(keys[2], shape),
            consistency_time=jax.random.uniform(keys[3], batch),
            consistency_level=jax.random.uniform(keys[4], batch),
            next_action=jax.random.normal(keys[5], shape),
            next_level=jax.random.uniform(keys[6]),
            actor=jax.random.normal(keys[7], shape),
            actor_level=jax.random.uniform(keys[8]),
        )

    def loss(
        self, params: SorlParams, targets: SorlParams, batch: Batch, noise: SorlNoise
    ) -> tuple[Scalar, Metrics]:
        critic, metrics = self.critic_loss(params, targets, batch, noise)
        flow = self.flow_loss(params, batch, noise)
        consistency = self.consistency_loss(params, targets, batch, noise)
        q_loss, q = self.q_loss(params, batch, noise)
        actor = self.flow_weight * flow + self.alpha * consistency + self.q_weight * q_loss
        loss = critic + actor
        return loss, metrics | {
            "loss": loss,
            "actor_loss": actor,
            "bc_flow_loss": flow,
            "consistency_loss": consistency,
            "q_loss": q_loss,
            "actor_q": q,
        }

    def critic_loss(
        self, params: SorlParams, targets: SorlParams, batch: Batch, noise: SorlNoise
    ) -> tuple[Scalar, Metrics]:
        """The mean squared TD error of every member, the next action without gradient."""
        next_action = self.sample_actions(
            frozen(params.flow), noise.next_action, batch.next_observation, noise.next_level
        )
        next_value = aggregate(
            member_values(targets.critic, batch.next_observation, next_action), self.aggregation
        )
        target = td_target(batch.reward, batch.mask, next_value, discount=self.discount)
        q = member_values(params.critic, batch.observation, batch.action)
        loss = critic_loss(q, target)
        return loss, {"critic_loss": loss, "q": jnp.mean(q)}

    def flow_loss(self, params: SorlParams, batch: Batch, noise: SorlNoise) -> Scalar:
        """Flow matching to the data's actions, with the smallest steps where they start."""
        time = jnp.floor(noise.bc_time * self.max_steps) / self.max_steps
        path = linear_path(noise.bc_action, batch.action, time)
        level = jnp.full_like(time, self.levels)
        velocity = jax.vmap(params.flow)(time, level, path.xt, batch.observation)
        return flow_matching_loss(velocity, path.velocity)

    def consistency_loss(
        self, params: SorlParams, targets: SorlParams, batch: Batch, noise: SorlNoise
    ) -> Scalar:
        """One step against the target model's two steps of half its size."""
        if self.levels == 0:
            return jnp.zeros(())
        level = jnp.floor(noise.consistency_level * self.levels)
        num_steps = 2**level
        time = jnp.floor(noise.consistency_time * num_steps) / num_steps
        x = linear_path(noise.consistency_action, batch.action, time).xt
        velocity = jax.vmap(params.flow)(time, level, x, batch.observation)

        half = 0.5 / num_steps
        slow = jax.vmap(targets.flow)
        first = slow(time, level + 1, x, batch.observation)
        middle = x + half[:, None] * first
        second = slow(time + half, level + 1, middle, batch.observation)
        return distillation_loss(velocity, 0.5 * (first + second))

    def q_loss(self, params: SorlParams, batch: Batch, noise: SorlNoise) -> tuple[Scalar, Scalar]:
        """-Q of the policy's actions, differentiated through its steps; and Q."""
        action = self.sample_actions(params.flow, noise.actor, batch.observation, noise.actor_level)
        q = jnp.mean(member_values(frozen(params.critic), batch.observation, action), axis=0)
        return policy_loss(q, normalise=self.normalise_q), jnp.mean(q)

    def sample_actions(
        self,
        flow: ShortcutVelocity,
        x0: Float[Array, "batch action"],
        observation: Float[Array, "batch observation"],
        level: Scalar,
    ) -> Float[Array, "batch action"]:
        """The policy's actions by 1, 2, 4, ... or `max_steps` steps, as a number in [0, 1) says."""
        branches = [
            partial(shortcut_actions, flow, x0, observation, num_steps=2**index)
            for index in range(self.levels + 1)
        ]
        return jax.lax.switch(jnp.floor(level * len(branches)).astype(jnp.int32), branches)

    def next_targets(self, state: State) -> SorlParams:
        return average(state.targets, state.params, self.target_rate)

    def optimiser(self) -> optax.GradientTransformation:
        """Every agent's, with the norms of the critic's and of the policy's gradient clipped."""

        def clip(gradient: PyTree) -> PyTree:
            norm = jnp.sqrt(sum(jnp.sum(leaf**2) for leaf in jax.tree.leaves(gradient)))
            scale = self.gradient_norm / jnp.maximum(norm, self.gradient_norm)
            return jax.tree.map(lambda leaf: leaf * scale, gradient)

        def each(gradient: Any, params: Any) -> Any:
            return SorlParams(clip(gradient.critic), clip(gradient.flow))

        return optax.chain(optax.stateless(each), super().optimiser())

    def act(self, state: State, observation: Observation, *, key: Key) -> Action:
        action_key, choice_key = jax.random.split(key)
        x0 = jax.random.normal(action_key, self.action_shape(self.num_candidates))
        observations = jnp.broadcast_to(observation, (len(x0), *observation.shape))
        action = shortcut_actions(state.params.flow, x0, observations, num_steps=self.action_steps)
        value = member_values(state.params.critic, observations, action)
        value = aggregate(value, self.aggregation)
        return best_of(action, value, temperature=self.temperature, key=choice_key)


def shortcut_actions(
    flow: ShortcutVelocity,
    x0: Float[Array, "batch action"],
    observation: Float[Array, "batch observation"],
    *,
    num_steps: int,
) -> Float[Array, "batch action"]:
    """Where `num_steps` steps of a shortcut model, a power of 2, take x0, clipped to [-1, 1]."""
    level = jnp.asarray(float(level_of(num_steps)))

    def velocity(t: Scalar, x: Float[Array, "batch action"]) -> Float[Array, "batch action"]:
        return jax.vmap(flow, in_axes=(None, None, 0, 0))(t, level, x, observation)

    return jnp.clip(solve_flow(velocity, x0, num_steps=num_steps, throw=False).value, -1, 1)


def level_of(num_steps: int) -> int:
    """log2 of a number of steps, rounded down."""
    return int(math.log2(num_steps))
