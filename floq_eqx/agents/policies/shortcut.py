r"""Shortcut: a flow whose steps may be large, which raises Q through its few steps.

The model v(t, d, x | s) is the mean velocity of a step of size d: matched to the data at the
smallest, to its own two half steps at the larger, and raised through all its steps,

$$w_{flow} L_{flow} + w_{cons}\, \mathbb{E} \left\lVert v(t, d, x_t) - \tfrac{1}{2}
(\bar v(t, \tfrac{d}{2}, x_t) + \bar v(t + \tfrac{d}{2}, \tfrac{d}{2}, x'))\right\rVert^2
- w_Q\, \mathbb{E}\, Q(s, a).$$

Source: Espinosa-Dice et al., "Scaling Offline RL via Efficient and Expressive Shortcut Models"
(SORL, arXiv 2505.22866), algorithm 1, after Frans et al., arXiv 2410.12557. In SORL's released code
the critic's loss also moves the actor, through the next action, and the critic sees the number of
steps; here, as in the paper, neither.
"""

import math
from functools import partial

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from ..._checks import check_fields
from ..._types import Actions, AtLeastZero, Key, Loss, Observations, Scalar
from ...data.transitions import Batch
from ...integrate import solve_flow
from ...losses import distillation_loss, flow_matching_loss
from ...modules.velocity import ShortcutVelocity
from ...networks import MLPConfig, NetworkConfig
from ...paths import linear_path
from .behavioural_flow import BehaviouralFlowNoise
from .policy import AbstractPolicy, Critique, NextAction


class ShortcutNoise(BehaviouralFlowNoise):
    """The random numbers of the loss.

    Actions are standard normal. Times and levels are uniform in [0, 1) and become whole steps and
    numbers of steps: `actor_level` one for the whole batch, so that it takes the same number of
    steps.
    """

    consistency_action: Actions
    consistency_time: Float[Array, "batch"]
    consistency_level: Float[Array, "batch"]
    actor: Actions
    actor_level: Scalar


class ShortcutNextNoise(eqx.Module):
    """x0 of the next actions, standard normal, and their level, uniform in [0, 1)."""

    action: Actions
    level: Scalar


class Shortcut(AbstractPolicy[ShortcutVelocity, ShortcutVelocity, ShortcutNoise]):
    """The policy of SORL.

    **Arguments:**

    - `flow_weight`: The weight of flow matching.
    - `consistency_weight`: The weight of self-consistency.
    - `q_weight`: The weight of Q.
    - `max_steps`: The most steps in training, a power of 2: the smaller powers are its shortcuts.
    - `action_steps`: The number of steps of an action when acting, one of these.
    - `normalise_q`: Divide the Q term by mean |Q|.
    - `network`: The network of the shortcut model.
    """

    flow_weight: AtLeastZero = 10.0
    consistency_weight: AtLeastZero = 10.0
    q_weight: AtLeastZero = 100.0
    max_steps: int = eqx.field(static=True, default=8)
    action_steps: int = eqx.field(static=True, default=8)
    normalise_q: bool = eqx.field(static=True, default=True)
    network: NetworkConfig = eqx.field(static=True, default=MLPConfig())

    def __check_init__(self):
        check_fields(self)
        if 2**self.levels != self.max_steps:
            raise ValueError(f"max_steps must be a power of 2, got {self.max_steps}.")
        if self.action_steps not in [2**level for level in range(self.levels + 1)]:
            raise ValueError(
                f"action_steps must be a power of 2 up to max_steps = {self.max_steps}, the "
                f"numbers of steps that the policy is trained for; got {self.action_steps}."
            )

    @property
    def levels(self) -> int:
        """The level of the smallest steps, log2 of `max_steps`; 0 is a single step."""
        return level_of(self.max_steps)

    def init(self, observation_size: int, action_size: int, *, key: Key) -> ShortcutVelocity:
        inputs = observation_size + action_size + 2
        return ShortcutVelocity(self.network.build(inputs, action_size, key=key))

    def slow(self, params: ShortcutVelocity) -> ShortcutVelocity:
        return params

    def noise(self, shape: tuple[int, ...], *, key: Key) -> ShortcutNoise:
        keys = jax.random.split(key, 7)
        return ShortcutNoise(
            bc_action=jax.random.normal(keys[0], shape),
            bc_time=jax.random.uniform(keys[1], shape[:1]),
            consistency_action=jax.random.normal(keys[2], shape),
            consistency_time=jax.random.uniform(keys[3], shape[:1]),
            consistency_level=jax.random.uniform(keys[4], shape[:1]),
            actor=jax.random.normal(keys[5], shape),
            actor_level=jax.random.uniform(keys[6]),
        )

    def next_noise(self, shape: tuple[int, ...], *, key: Key) -> ShortcutNextNoise:
        keys = jax.random.split(key)
        return ShortcutNextNoise(jax.random.normal(keys[0], shape), jax.random.uniform(keys[1]))

    def sample(
        self, params: ShortcutVelocity, observation: Observations, noise: Actions
    ) -> Actions:
        return shortcut_actions(params, noise, observation, num_steps=self.action_steps)

    def next_action(
        self,
        params: ShortcutVelocity,
        slow: ShortcutVelocity,
        batch: Batch,
        noise: ShortcutNextNoise,
    ) -> NextAction:
        """Actions of as many steps as the level says."""
        return NextAction(self.by_level(params, noise.action, batch.next_observation, noise.level))

    def loss(
        self,
        params: ShortcutVelocity,
        slow: ShortcutVelocity,
        batch: Batch,
        critique: Critique,
        noise: ShortcutNoise,
    ) -> Loss:
        flow = self.flow_loss(params, batch, noise)
        consistency = self.consistency_loss(params, slow, batch, noise)
        action = self.by_level(params, noise.actor, batch.observation, noise.actor_level)
        q_loss, metrics = critique.raised(action, normalise=self.normalise_q)
        loss = self.flow_weight * flow + self.consistency_weight * consistency
        loss = loss + self.q_weight * q_loss
        return loss, metrics | {
            "actor_loss": loss,
            "bc_flow_loss": flow,
            "consistency_loss": consistency,
        }

    def flow_loss(self, params: ShortcutVelocity, batch: Batch, noise: ShortcutNoise) -> Scalar:
        """Flow matching to the data's actions, with the smallest steps where they start."""
        time = jnp.floor(noise.bc_time * self.max_steps) / self.max_steps
        path = linear_path(noise.bc_action, batch.action, time)
        level = jnp.full_like(time, self.levels)
        velocity = jax.vmap(params)(time, level, path.xt, batch.observation)
        return flow_matching_loss(velocity, path.velocity, batch.component_valid)

    def consistency_loss(
        self, params: ShortcutVelocity, slow: ShortcutVelocity, batch: Batch, noise: ShortcutNoise
    ) -> Scalar:
        """One step against the slow model's two steps of half its size."""
        if self.levels == 0:
            return jnp.zeros(())
        level = jnp.floor(noise.consistency_level * self.levels)
        num_steps = 2**level
        time = jnp.floor(noise.consistency_time * num_steps) / num_steps
        x = linear_path(noise.consistency_action, batch.action, time).xt
        velocity = jax.vmap(params)(time, level, x, batch.observation)

        half = 0.5 / num_steps
        first = jax.vmap(slow)(time, level + 1, x, batch.observation)
        middle = x + half[:, None] * first
        second = jax.vmap(slow)(time + half, level + 1, middle, batch.observation)
        return distillation_loss(velocity, 0.5 * (first + second))

    def by_level(
        self, params: ShortcutVelocity, x0: Actions, observation: Observations, level: Scalar
    ) -> Actions:
        """Actions by 1, 2, 4, ... or `max_steps` steps, as a number in [0, 1) says."""
        branches = [
            partial(shortcut_actions, params, x0, observation, num_steps=2**index)
            for index in range(self.levels + 1)
        ]
        return jax.lax.switch(jnp.floor(level * len(branches)).astype(jnp.int32), branches)


def shortcut_actions(
    flow: ShortcutVelocity, x0: Actions, observation: Observations, *, num_steps: int
) -> Actions:
    """Where `num_steps` steps of a shortcut model, a power of 2, take x0, clipped to [-1, 1]."""
    level = jnp.asarray(float(level_of(num_steps)))

    def velocity(t: Scalar, x: Actions) -> Actions:
        return jax.vmap(flow, in_axes=(None, None, 0, 0))(t, level, x, observation)

    return jnp.clip(solve_flow(velocity, x0, num_steps=num_steps, throw=False).value, -1, 1)


def level_of(num_steps: int) -> int:
    """log2 of a number of steps, rounded down."""
    return int(math.log2(num_steps))
