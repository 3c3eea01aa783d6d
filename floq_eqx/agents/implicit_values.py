"""The values of IQL, shared by the agents that extract their policies from them.

V is an expectile of the target critic's Q over the actions of the data, and Q the TD target that
V gives: no action outside the data is ever evaluated. Source: Kostrikov, Nair and Levine, "Offline
Reinforcement Learning with Implicit Q-Learning" (arXiv 2110.06169), equations 5 and 6.
"""

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from .._types import FloatLike, Key, Metrics, Scalar
from ..critics import Critic, StateValue, member_values
from ..data.transitions import Batch
from ..losses import critic_loss, expectile_loss
from ..networks import NetworkConfig, ensemble
from ..targets import td_target
from .base import frozen


class ImplicitValues(eqx.Module):
    """The critic's two members, stacked, and the state's value."""

    critic: Critic
    value: StateValue

    def __init__(
        self, observation_size: int, action_size: int, network: NetworkConfig, *, key: Key
    ):
        critic_key, value_key = jax.random.split(key)
        inputs = observation_size + action_size
        self.critic = ensemble(lambda k: Critic(network.build(inputs, 1, key=k)), 2, key=critic_key)
        self.value = StateValue(network.build(observation_size, 1, key=value_key))


def implicit_values_loss(
    values: ImplicitValues,
    targets: Critic,
    batch: Batch,
    *,
    discount: FloatLike,
    expectile: FloatLike,
) -> tuple[Scalar, Metrics]:
    """The sum of the expectile loss of V and the TD error of Q.

    **Arguments:** the parameters, the target critic, the data, γ and the expectile in [0, 1).

    **Returns:** the loss, and its terms as metrics.
    """
    v = jax.vmap(values.value)(batch.observation)
    value_loss = jnp.mean(expectile_loss(v, data_value(targets, batch), expectile))

    next_v = jax.vmap(frozen(values.value))(batch.next_observation)
    target = td_target(batch.reward, batch.mask, next_v, discount=discount)
    q = member_values(values.critic, batch.observation, batch.action)
    # The released code adds the members' errors.
    q_loss = 2 * critic_loss(q, target)
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


def data_value(critic: Critic, batch: Batch) -> Float[Array, "batch"]:
    """The lower member's Q of the actions of the data, without gradient."""
    return jnp.min(member_values(frozen(critic), batch.observation, batch.action), axis=0)
