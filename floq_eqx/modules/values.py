"""Values that are read off in one forward pass, for one example."""

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from .._types import Action, Observation, Scalar
from ..embeddings import AbstractEmbedding, HLGauss
from ..networks import AbstractNetwork


class ActionValue(eqx.Module):
    """Q(s, a) by a network that sees s and a, concatenated in this order."""

    network: AbstractNetwork

    def __call__(self, observation: Observation, action: Action) -> Scalar:
        """**Returns:** Q(s, a), in units of the return."""
        return jnp.squeeze(self.network(jnp.concatenate([observation, action])), 0)


class StateValue(eqx.Module):
    """V(s) by a network that sees s."""

    network: AbstractNetwork

    def __call__(self, observation: Observation) -> Scalar:
        """**Returns:** V(s), in units of the return."""
        return jnp.squeeze(self.network(observation), 0)


class QuantileValue(eqx.Module):
    """The quantile of the return at a level, by a network that sees s, a and the embedded level.

    Source: Dabney et al., arXiv 1806.06923, but for the layer that mixes the embedding in: here,
    as in the released floq code, it is one more input.
    """

    network: AbstractNetwork
    quantile_embedding: AbstractEmbedding

    def __call__(self, observation: Observation, action: Action, quantile: Scalar) -> Scalar:
        """**Arguments:** s, a and the level in [0, 1].

        **Returns:** the quantile, in units of the return.
        """
        inputs = [observation, action, self.quantile_embedding(quantile)]
        return jnp.squeeze(self.network(jnp.concatenate(inputs)), 0)


class CategoricalValue(eqx.Module):
    """The logits of a histogram over returns, by a network that sees s and a.

    Sources: Bellemare, Dabney and Munos, arXiv 1707.06887; Farebrother et al., arXiv 2403.03950.
    """

    network: AbstractNetwork
    histogram: HLGauss

    def __call__(self, observation: Observation, action: Action) -> Float[Array, "bins"]:
        """**Returns:** the logits of the bins."""
        return self.network(jnp.concatenate([observation, action]))

    def mean(self, logits: Float[Array, "*shape bins"]) -> Float[Array, "*shape"]:
        """The histogram's mean: Q, in units of the return."""
        return jax.nn.softmax(logits) @ self.histogram.centers


def member_values(
    members: ActionValue,
    observation: Float[Array, "batch observation"],
    action: Float[Array, "batch action"],
) -> Float[Array, "ensemble batch"]:
    """Every member's Q for every example of a batch."""
    return eqx.filter_vmap(lambda member: jax.vmap(member)(observation, action))(members)


def member_quantiles(
    members: QuantileValue,
    observation: Float[Array, "batch observation"],
    action: Float[Array, "batch action"] | Float[Array, "batch noise action"],
    quantile: Float[Array, "batch noise"],
) -> Float[Array, "ensemble batch noise"]:
    """Every member's quantiles; `action` is shared by a transition's levels, or one for each."""
    batch, noise = quantile.shape
    observation = jnp.repeat(observation, noise, axis=0)
    action = (
        jnp.reshape(action, (batch * noise, -1))
        if action.ndim == 3
        else jnp.repeat(action, noise, axis=0)
    )
    level = jnp.reshape(quantile, (batch * noise,))
    value = eqx.filter_vmap(lambda member: jax.vmap(member)(observation, action, level))(members)
    return jnp.reshape(value, (-1, batch, noise))


def member_logits(
    members: CategoricalValue,
    observation: Float[Array, "batch observation"],
    action: Float[Array, "batch action"],
) -> Float[Array, "ensemble batch bins"]:
    """Every member's logits for every example of a batch."""
    return eqx.filter_vmap(lambda member: jax.vmap(member)(observation, action))(members)
