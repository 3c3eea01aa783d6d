"""Critics that read Q off in one forward pass, for one example."""

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from ._types import Action, Observation, Scalar
from .networks import AbstractNetwork


class Critic(eqx.Module):
    """Q(s, a) by a network that sees s and a, concatenated in this order."""

    network: AbstractNetwork

    def __call__(self, observation: Observation, action: Action) -> Scalar:
        """**Returns:** Q(s, a), in units of the return."""
        return jnp.squeeze(self.network(jnp.concatenate([observation, action])), 0)


def member_values(
    members: Critic,
    observation: Float[Array, "batch observation"],
    action: Float[Array, "batch action"],
) -> Float[Array, "ensemble batch"]:
    """Every member's Q for every example of a batch."""
    return eqx.filter_vmap(lambda member: jax.vmap(member)(observation, action))(members)
