"""IQL: a Gaussian policy extracted from values that never leave the data.

Sources: Kostrikov, Nair and Levine, arXiv 2110.06169; the extraction by DDPG+BC is that of Park et
al., "Is Value Learning Really the Main Bottleneck in Offline RL?" (arXiv 2406.09329, section 3).
"""

from typing import Literal, TypeAlias

import equinox as eqx
import jax
import jax.numpy as jnp
from jax.lax import stop_gradient

from .._types import Action, FloatLike, Key, Metrics, Observation, Scalar
from ..actors import GaussianActor
from ..critics import Critic, member_values
from ..data.transitions import Batch
from ..losses import policy_loss
from ..networks import MLPConfig, NetworkConfig
from .base import Agent, State, average, check_choice, frozen
from .implicit_values import ImplicitValues, data_value, implicit_values_loss

PolicyExtraction: TypeAlias = Literal["awr", "ddpgbc"]


class IqlParams(eqx.Module):
    """The values and the policy."""

    values: ImplicitValues
    actor: GaussianActor


class IQL(Agent):
    """Implicit Q-learning.

    **Arguments:**

    - `action_size`: components of an action; `for_data` fills it in.
    - `learning_rate`: of Adam.
    - `decay_updates`: the learning rate falls to zero as a cosine over so many updates; `None`
        keeps it, as the papers do.
    - `target_rate`: τ of the target critic, in [0, 1].
    - `discount`: γ, in [0, 1).
    - `expectile`: of V, in [0, 1); above 0.5 for values of the better actions.
    - `extraction`: `awr` clones the data's actions, weighted by exp(α advantage) up to 100;
        `ddpgbc` raises Q at the policy's mean, with α times cloning.
    - `alpha`: the inverse temperature of `awr`, or the weight of cloning in `ddpgbc`.
    - `critic`: the networks of Q and V.
    - `actor`: the policy's.
    """

    action_size: int | None = eqx.field(static=True, default=None)
    learning_rate: FloatLike = 3e-4
    decay_updates: int | None = eqx.field(static=True, default=None)
    target_rate: FloatLike = 0.005
    discount: FloatLike = 0.99
    expectile: FloatLike = 0.9
    extraction: PolicyExtraction = eqx.field(static=True, default="awr")
    alpha: FloatLike = 10.0
    critic: NetworkConfig = eqx.field(static=True, default=MLPConfig(layer_norm=True))
    actor: NetworkConfig = eqx.field(static=True, default=MLPConfig(output_scale=0.01))

    def __check_init__(self):
        check_choice("extraction", self.extraction, PolicyExtraction)

    def init(self, observation_size: int, action_size: int, *, key: Key) -> State:
        self.check_init_sizes(observation_size, action_size)
        values_key, actor_key = jax.random.split(key)
        values = ImplicitValues(observation_size, action_size, self.critic, key=values_key)
        actor = GaussianActor(self.actor.build(observation_size, action_size, key=actor_key))
        return self.fresh_state(IqlParams(values, actor), values.critic)

    def noise(self, batch_size: int, *, key: Key) -> None:
        """An update draws nothing: `None`."""
        self.action_shape(batch_size)

    def loss(
        self, params: IqlParams, targets: Critic, batch: Batch, noise: None
    ) -> tuple[Scalar, Metrics]:
        values, metrics = implicit_values_loss(
            params.values, targets, batch, discount=self.discount, expectile=self.expectile
        )
        actor, actor_metrics = self.actor_loss(params, batch)
        loss = values + actor
        return loss, {"loss": loss} | metrics | actor_metrics

    def actor_loss(self, params: IqlParams, batch: Batch) -> tuple[Scalar, Metrics]:
        """The policy's loss by `extraction`."""
        log_prob = jax.vmap(params.actor.log_prob)(batch.observation, batch.action)
        mean = jax.vmap(params.actor)(batch.observation)
        metrics = {
            "log_prob": jnp.mean(log_prob),
            "action_error": jnp.mean((mean - batch.action) ** 2),
        }
        if self.extraction == "awr":
            v = jax.vmap(frozen(params.values.value))(batch.observation)
            advantage = data_value(params.values.critic, batch) - v
            weight = jnp.minimum(jnp.exp(self.alpha * advantage), 100.0)
            loss = -jnp.mean(stop_gradient(weight) * log_prob)
            return loss, metrics | {"actor_loss": loss, "advantage": jnp.mean(advantage)}

        action = jnp.clip(mean, -1, 1)
        q = member_values(frozen(params.values.critic), batch.observation, action)
        q = jnp.min(q, axis=0)
        q_loss = policy_loss(q, normalise=True)
        bc_loss = -self.alpha * jnp.mean(log_prob)
        loss = q_loss + bc_loss
        return loss, metrics | {
            "actor_loss": loss,
            "q_loss": q_loss,
            "bc_loss": bc_loss,
            "actor_q": jnp.mean(q),
        }

    def next_targets(self, state: State) -> Critic:
        return average(state.targets, state.params.values.critic, self.target_rate)

    def explore(self, state: State, observation: Observation, *, key: Key) -> Action:
        """A draw from the policy, clipped to [-1, 1]."""
        noise = jax.random.normal(key, self.action_shape())
        return jnp.clip(state.params.actor(observation) + noise, -1, 1)

    def act(self, state: State, observation: Observation, *, key: Key) -> Action:
        return jnp.clip(state.params.actor(observation), -1, 1)
