"""SAC, with the settings of RLPD for learning online with offline data.

Sources: Haarnoja et al., "Soft Actor-Critic Algorithms and Applications" (arXiv 1812.05905,
algorithm 1); Ball et al., "Efficient Online Reinforcement Learning with Offline Data" (RLPD, arXiv
2302.02948, algorithm 1). Half of a batch from offline data, half from the replay, is RLPD's other
part: [`floq_eqx.data.sample_mixture`][].
"""

import dataclasses

import equinox as eqx
import jax
import jax.numpy as jnp
from jax.lax import stop_gradient
from jaxtyping import Array, Float

from .._types import Action, FloatLike, Key, Metrics, Observation, Scalar
from ..actors import TanhGaussianActor
from ..critics import Critic, member_values
from ..data.transitions import Batch
from ..losses import critic_loss
from ..networks import MLPConfig, NetworkConfig, ensemble
from ..targets import td_target
from .base import Agent, State, average, check_range, check_sizes, frozen


class SacParams(eqx.Module):
    """The critic's members, stacked, the actor, and the logarithm of the temperature."""

    critic: Critic
    actor: TanhGaussianActor
    log_temperature: Scalar


class SacNoise(eqx.Module):
    """The random numbers of one update, all standard normal.

    The members whose `members` are largest make up the subset of a transition's target. RLPD draws
    one subset an update; one a transition has the same expected target, and less correlated ones.
    """

    next_action: Float[Array, "batch action"]
    action: Float[Array, "batch action"]
    members: Float[Array, "batch ensemble"]


class SAC(Agent):
    """Soft actor-critic.

    The defaults are RLPD's but for the size of the ensemble, which is 10 there. As there, the
    actor raises the mean of all members, where the original takes their minimum.

    **Arguments:**

    - `action_size`: components of an action; `for_data` fills it in.
    - `learning_rate`: of Adam.
    - `decay_updates`: the learning rate falls to zero as a cosine over so many updates; `None`
        keeps it, as the papers do.
    - `target_rate`: τ of the target critic, in [0, 1].
    - `discount`: γ, in [0, 1).
    - `ensemble_size`: members of the critic.
    - `target_members`: how many members, drawn anew for every transition, the target takes the
        minimum of.
    - `entropy_per_component`: the policy's entropy that the temperature aims at, in nats for each
        component of an action: -0.5 as in RLPD; the original has -1.
    - `initial_temperature`: the weight of the entropy at first, above 0.
    - `backup_entropy`: whether the next action's entropy counts in the target.
    - `deterministic`: act by the tanh of the mean instead of a draw, as in every evaluation.
    - `critic`: its network.
    - `actor`: the policy's.
    """

    action_size: int | None = eqx.field(static=True, default=None)
    learning_rate: FloatLike = 3e-4
    decay_updates: int | None = eqx.field(static=True, default=None)
    target_rate: FloatLike = 0.005
    discount: FloatLike = 0.99
    ensemble_size: int = eqx.field(static=True, default=2)
    target_members: int = eqx.field(static=True, default=2)
    entropy_per_component: FloatLike = -0.5
    initial_temperature: FloatLike = 1.0
    backup_entropy: bool = eqx.field(static=True, default=True)
    deterministic: bool = eqx.field(static=True, default=False)
    critic: NetworkConfig = eqx.field(
        static=True, default=MLPConfig((256, 256), layer_norm=True, norm_first=True)
    )
    actor: NetworkConfig = eqx.field(static=True, default=MLPConfig((256, 256), output_scale=0.01))

    def __check_init__(self):
        check_sizes(target_members=self.target_members)
        if self.target_members > self.ensemble_size:
            raise ValueError(
                f"target_members must be at most ensemble_size = {self.ensemble_size}, got "
                f"{self.target_members}."
            )
        check_range("entropy_per_component", self.entropy_per_component, float("-inf"))
        check_range("initial_temperature", self.initial_temperature, 1e-8)

    def init(self, observation_size: int, action_size: int, *, key: Key) -> State:
        self.check_init_sizes(observation_size, action_size)
        critic_key, actor_key = jax.random.split(key)
        critic = ensemble(
            lambda k: Critic(self.critic.build(observation_size + action_size, 1, key=k)),
            self.ensemble_size,
            key=critic_key,
        )
        network = self.actor.build(observation_size, 2 * action_size, key=actor_key)
        log_temperature = jnp.log(jnp.asarray(self.initial_temperature, jnp.float32))
        params = SacParams(critic, TanhGaussianActor(network), log_temperature)
        return self.fresh_state(params, critic)

    def noise(self, batch_size: int, *, key: Key) -> SacNoise:
        keys = jax.random.split(key, 3)
        shape = self.action_shape(batch_size)
        return SacNoise(
            next_action=jax.random.normal(keys[0], shape),
            action=jax.random.normal(keys[1], shape),
            members=jax.random.normal(keys[2], (batch_size, self.ensemble_size)),
        )

    def loss(
        self, params: SacParams, targets: Critic, batch: Batch, noise: SacNoise
    ) -> tuple[Scalar, Metrics]:
        critic, metrics = self.critic_loss(params, targets, batch, noise)
        actor, actor_metrics = self.actor_loss(params, batch, noise)
        temperature, temperature_metrics = self.temperature_loss(params, actor_metrics["entropy"])
        loss = critic + actor + temperature
        return loss, {"loss": loss} | metrics | actor_metrics | temperature_metrics

    def critic_loss(
        self, params: SacParams, targets: Critic, batch: Batch, noise: SacNoise
    ) -> tuple[Scalar, Metrics]:
        """The mean squared soft TD error; no gradient reaches the actor or the temperature."""
        act = jax.vmap(params.actor.act_with_log_prob)
        next_action, log_prob = act(batch.next_observation, noise.next_action)
        members = jnp.transpose(member_values(targets, batch.next_observation, next_action))
        _, chosen = jax.lax.top_k(noise.members, self.target_members)
        next_value = jnp.min(jnp.take_along_axis(members, chosen, axis=1), axis=1)
        if self.backup_entropy:
            next_value = next_value - jnp.exp(params.log_temperature) * log_prob
        target = td_target(batch.reward, batch.mask, next_value, discount=self.discount)
        q = member_values(params.critic, batch.observation, batch.action)
        loss = critic_loss(q, target)
        return loss, {
            "critic_loss": loss,
            "q": jnp.mean(q),
            "q_min": jnp.min(q),
            "q_max": jnp.max(q),
        }

    def actor_loss(
        self, params: SacParams, batch: Batch, noise: SacNoise
    ) -> tuple[Scalar, Metrics]:
        """The mean of α log π - Q over drawn actions, whose gradient reaches the actor alone."""
        act = jax.vmap(params.actor.act_with_log_prob)
        action, log_prob = act(batch.observation, noise.action)
        q = jnp.mean(member_values(frozen(params.critic), batch.observation, action), axis=0)
        temperature = jnp.exp(stop_gradient(params.log_temperature))
        loss = jnp.mean(temperature * log_prob - q)
        return loss, {
            "actor_loss": loss,
            "actor_q": jnp.mean(q),
            "entropy": -jnp.mean(log_prob),
        }

    def temperature_loss(self, params: SacParams, entropy: Scalar) -> tuple[Scalar, Metrics]:
        """α times what the entropy, without its gradient, has above its target."""
        target = self.entropy_per_component * self.action_shape()[0]
        temperature = jnp.exp(params.log_temperature)
        loss = temperature * (stop_gradient(entropy) - target)
        return loss, {"temperature_loss": loss, "temperature": temperature}

    def next_targets(self, state: State) -> Critic:
        return average(state.targets, state.params.critic, self.target_rate)

    def for_evaluation(self) -> "SAC":
        return dataclasses.replace(self, deterministic=True)

    def act(self, state: State, observation: Observation, *, key: Key) -> Action:
        shape = self.action_shape()
        noise = jnp.zeros(shape) if self.deterministic else jax.random.normal(key, shape)
        return state.params.actor.act(observation, noise)
