"""IFQL: IQL's values over a behavioural flow, of which the best of N actions is taken.

Source: Park, Li and Levine, "Flow Q-Learning" (arXiv 2502.02538), appendix C, after IDQL
(Hansen-Estruch et al., arXiv 2304.10573).
"""

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from .._types import Action, FloatLike, Key, Metrics, Observation, Scalar
from ..critics import Critic, member_values
from ..data.transitions import Batch
from ..networks import MLPConfig, NetworkConfig
from ..velocity import ActionVelocity
from .base import Agent, State, average, best_of
from .flow_policy import behavioural_flow_loss, integrate_actions
from .implicit_values import ImplicitValues, implicit_values_loss


class IfqlParams(eqx.Module):
    """The values and the behavioural flow."""

    values: ImplicitValues
    flow: ActionVelocity


class IfqlNoise(eqx.Module):
    """The behavioural flow's random numbers: standard normal, and times uniform in [0, 1)."""

    bc_action: Float[Array, "batch action"]
    bc_time: Float[Array, "batch"]


class IFQL(Agent):
    """Implicit flow Q-learning.

    **Arguments:**

    - `action_size`: components of an action; `for_data` fills it in.
    - `learning_rate`: of Adam.
    - `decay_updates`: the learning rate falls to zero as a cosine over so many updates; `None`
        keeps it, as the papers do.
    - `target_rate`: τ of the target critic, in [0, 1].
    - `discount`: γ, in [0, 1).
    - `expectile`: of V, in [0, 1).
    - `num_candidates`: N: `act` takes the action of the highest Q among so many of the flow's.
    - `flow_steps`: Euler steps of the behavioural flow.
    - `critic`: the networks of Q and V.
    - `actor`: the behavioural flow's.
    """

    action_size: int | None = eqx.field(static=True, default=None)
    learning_rate: FloatLike = 3e-4
    decay_updates: int | None = eqx.field(static=True, default=None)
    target_rate: FloatLike = 0.005
    discount: FloatLike = 0.99
    expectile: FloatLike = 0.9
    num_candidates: int = eqx.field(static=True, default=32)
    flow_steps: int = eqx.field(static=True, default=10)
    critic: NetworkConfig = eqx.field(static=True, default=MLPConfig(layer_norm=True))
    actor: NetworkConfig = eqx.field(static=True, default=MLPConfig())

    def init(self, observation_size: int, action_size: int, *, key: Key) -> State:
        self.check_init_sizes(observation_size, action_size)
        values_key, flow_key = jax.random.split(key)
        values = ImplicitValues(observation_size, action_size, self.critic, key=values_key)
        inputs = observation_size + action_size + 1
        flow = ActionVelocity(self.actor.build(inputs, action_size, key=flow_key))
        return self.fresh_state(IfqlParams(values, flow), values.critic)

    def noise(self, batch_size: int, *, key: Key) -> IfqlNoise:
        action_key, time_key = jax.random.split(key)
        return IfqlNoise(
            bc_action=jax.random.normal(action_key, self.action_shape(batch_size)),
            bc_time=jax.random.uniform(time_key, (batch_size,)),
        )

    def loss(
        self, params: IfqlParams, targets: Critic, batch: Batch, noise: IfqlNoise
    ) -> tuple[Scalar, Metrics]:
        values, metrics = implicit_values_loss(
            params.values, targets, batch, discount=self.discount, expectile=self.expectile
        )
        flow = behavioural_flow_loss(params.flow, batch, noise.bc_action, noise.bc_time)
        loss = values + flow
        return loss, {"loss": loss, "bc_flow_loss": flow, "actor_loss": flow} | metrics

    def next_targets(self, state: State) -> Critic:
        return average(state.targets, state.params.values.critic, self.target_rate)

    def act(self, state: State, observation: Observation, *, key: Key) -> Action:
        x0 = jax.random.normal(key, self.action_shape(self.num_candidates))
        observations = jnp.broadcast_to(observation, (len(x0), *observation.shape))
        action = integrate_actions(state.params.flow, x0, observations, num_steps=self.flow_steps)
        q = member_values(state.params.values.critic, observations, action)
        return best_of(action, jnp.min(q, axis=0))
