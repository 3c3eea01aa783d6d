r"""Implicit: values that never leave the data.

V is an expectile of Q over the actions of the data, and Q the TD target that V gives: no action
outside the data is ever evaluated.

$$\mathbb{E} \left[ |\tau - 1[\bar Q < V(s)]|\, (\bar Q(s, a) - V(s))^2 \right] +
\sum_i \mathbb{E} \left[ (r + \gamma\, m\, V(s') - Q_i(s, a))^2 \right].$$

Source: Kostrikov, Nair and Levine, "Offline Reinforcement Learning with Implicit Q-Learning" (IQL,
arXiv 2110.06169), equations 5 and 6.
"""

import equinox as eqx
import jax
import jax.numpy as jnp
from jax.lax import stop_gradient
from jaxtyping import Array, Float

from ..._types import Actions, BelowOne, Key, Loss, Observations, Values
from ...data.transitions import Batch
from ...losses import critic_loss, expectile_loss
from ...modules.values import ActionValue, StateValue, member_values
from ...targets import Aggregation, td_target
from ..agent import frozen
from .critic import AbstractCritic


class ImplicitParams(eqx.Module):
    """Q's members, stacked, and V."""

    q: ActionValue
    v: StateValue


class Implicit(AbstractCritic[ImplicitParams, ActionValue, None, None]):
    """The values of IQL.

    **Arguments:**

    - `aggregation`: How the members' slow averages are combined in the target of V.
    - `value_aggregation`: How the members are combined where a policy raises Q, and where actions
        are chosen by it.
    - `expectile`: The expectile of V, in [0, 1); above 0.5 for values of the better actions.
    - `network`: The networks of Q and V.
    """

    aggregation: Aggregation = eqx.field(static=True, default="min")
    value_aggregation: Aggregation = eqx.field(static=True, default="min")
    expectile: BelowOne = 0.9

    @property
    def num_next_actions(self) -> int:
        return 0

    def init(self, observation_size: int, action_size: int, *, key: Key) -> ImplicitParams:
        q_key, v_key = jax.random.split(key)
        q = self.members(ActionValue, observation_size + action_size, key=q_key)
        return ImplicitParams(q, StateValue(self.network.build(observation_size, 1, key=v_key)))

    def slow(self, params: ImplicitParams) -> ActionValue:
        return params.q

    def loss(
        self,
        params: ImplicitParams,
        slow: ActionValue,
        batch: Batch,
        next_action: Float[Array, "batch 0 action"],
        noise: None,
    ) -> Loss:
        """The expectile loss of V and the TD error of Q, whose members' errors are added."""
        v = jax.vmap(params.v)(batch.observation)
        slow_q = member_values(slow, batch.observation, batch.action)
        slow_q = stop_gradient(self.combined(slow_q))
        value_error = expectile_loss(v, slow_q, self.expectile)
        value_loss = jnp.mean(value_error if batch.whole is None else value_error * batch.whole)

        next_v = jax.vmap(frozen(params.v))(batch.next_observation)
        target = td_target(batch.reward, batch.mask, next_v, discount=self.next_discount(batch))
        q = member_values(params.q, batch.observation, batch.action)
        q_loss = self.ensemble_size * critic_loss(q, target, batch.whole)
        return value_loss + q_loss, {
            "value_loss": value_loss,
            "critic_loss": q_loss,
            "v": jnp.mean(v),
            "v_min": jnp.min(v),
            "v_max": jnp.max(v),
            "q": jnp.mean(target),
            "q_min": jnp.min(target),
            "q_max": jnp.max(target),
        }

    def value(
        self, params: ImplicitParams, observation: Observations, action: Actions, noise: None
    ) -> Values:
        return self.combined_value(member_values(params.q, observation, action))

    def state_value(self, params: ImplicitParams, observation: Observations) -> Values:
        return jax.vmap(params.v)(observation)
