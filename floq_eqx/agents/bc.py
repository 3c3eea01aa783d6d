"""Behavioural cloning: the policy of the data, by a Gaussian or by a flow."""

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from .._types import Action, FloatLike, Key, Metrics, Observation, Scalar
from ..actors import GaussianActor
from ..data.transitions import Batch
from ..networks import MLPConfig, NetworkConfig
from ..velocity import ActionVelocity
from .base import Agent, State
from .flow_policy import behavioural_flow_loss, integrate_actions


class BC(Agent):
    """Gaussian behavioural cloning, of unit deviation in every state; it acts by the mean.

    Source: the baseline of OGBench, arXiv 2410.20092.

    **Arguments:**

    - `action_size`: components of an action; `for_data` fills it in.
    - `learning_rate`: of Adam.
    - `decay_updates`: the learning rate falls to zero as a cosine over so many updates; `None`
        keeps it.
    - `actor`: the policy's network.
    """

    action_size: int | None = eqx.field(static=True, default=None)
    learning_rate: FloatLike = 3e-4
    decay_updates: int | None = eqx.field(static=True, default=None)
    actor: NetworkConfig = eqx.field(static=True, default=MLPConfig(output_scale=0.01))

    def init(self, observation_size: int, action_size: int, *, key: Key) -> State:
        self.check_init_sizes(observation_size, action_size)
        network = self.actor.build(observation_size, action_size, key=key)
        return self.fresh_state(GaussianActor(network), None)

    def noise(self, batch_size: int, *, key: Key) -> None:
        """An update draws nothing: `None`."""
        self.action_shape(batch_size)

    def loss(
        self, params: GaussianActor, targets: None, batch: Batch, noise: None
    ) -> tuple[Scalar, Metrics]:
        log_prob = jax.vmap(params.log_prob)(batch.observation, batch.action)
        mean = jax.vmap(params)(batch.observation)
        loss = -jnp.mean(log_prob)
        return loss, {
            "loss": loss,
            "actor_loss": loss,
            "action_error": jnp.mean((mean - batch.action) ** 2),
        }

    def next_targets(self, state: State) -> None:
        """There are none."""

    def act(self, state: State, observation: Observation, *, key: Key) -> Action:
        return jnp.clip(state.params(observation), -1, 1)


class BcFlowNoise(eqx.Module):
    """The random numbers of one update: standard normal, and times uniform in [0, 1)."""

    bc_action: Float[Array, "batch action"]
    bc_time: Float[Array, "batch"]


class BCFlow(Agent):
    """The behavioural flow of FQL alone: flow matching from noise to the data's actions.

    Source: FQL, arXiv 2502.02538, section 4.

    **Arguments:**

    - `action_size`: components of an action; `for_data` fills it in.
    - `learning_rate`: of Adam.
    - `decay_updates`: the learning rate falls to zero as a cosine over so many updates; `None`
        keeps it.
    - `flow_steps`: Euler steps of the flow.
    - `actor`: its network.
    """

    action_size: int | None = eqx.field(static=True, default=None)
    learning_rate: FloatLike = 3e-4
    decay_updates: int | None = eqx.field(static=True, default=None)
    flow_steps: int = eqx.field(static=True, default=10)
    actor: NetworkConfig = eqx.field(static=True, default=MLPConfig())

    def init(self, observation_size: int, action_size: int, *, key: Key) -> State:
        self.check_init_sizes(observation_size, action_size)
        inputs = observation_size + action_size + 1
        return self.fresh_state(
            ActionVelocity(self.actor.build(inputs, action_size, key=key)), None
        )

    def noise(self, batch_size: int, *, key: Key) -> BcFlowNoise:
        action_key, time_key = jax.random.split(key)
        return BcFlowNoise(
            bc_action=jax.random.normal(action_key, self.action_shape(batch_size)),
            bc_time=jax.random.uniform(time_key, (batch_size,)),
        )

    def loss(
        self, params: ActionVelocity, targets: None, batch: Batch, noise: BcFlowNoise
    ) -> tuple[Scalar, Metrics]:
        loss = behavioural_flow_loss(params, batch, noise.bc_action, noise.bc_time)
        return loss, {"loss": loss, "bc_flow_loss": loss, "actor_loss": loss}

    def next_targets(self, state: State) -> None:
        """There are none."""

    def act(self, state: State, observation: Observation, *, key: Key) -> Action:
        x0 = jax.random.normal(key, self.action_shape(1))
        return integrate_actions(state.params, x0, observation[None], num_steps=self.flow_steps)[0]
