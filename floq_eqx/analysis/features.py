"""What a critic's penultimate features are like: their norm and their effective rank."""

from typing import TypeVar

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from .._types import Metrics, Number
from ..modules.values import ActionValue
from ..modules.velocity import ValueVelocity

T = TypeVar("T")


def feature_statistics(features: Float[Array, "batch width"], *, delta: Number = 0.01) -> Metrics:
    r"""**Arguments:** the penultimate `features` of some examples, and the rank's `delta`.

    **Returns:**

    - `feature_norm`: the mean Euclidean norm over the examples.
    - `effective_rank`: the least number of singular values whose sum is at least 1 - `delta` of
        all of theirs (Kumar et al., arXiv 2010.14498, section 3: srank with δ = 0.01).
    """
    values = jnp.linalg.svd(features, compute_uv=False)
    share = jnp.cumsum(values) / jnp.sum(values)
    return {
        "feature_norm": jnp.mean(jnp.linalg.norm(features, axis=1)),
        "effective_rank": 1.0 + jnp.sum(share < 1 - delta).astype(features.dtype),
    }


def critic_features(
    members: ActionValue,
    observation: Float[Array, "batch observation"],
    action: Float[Array, "batch action"],
) -> Float[Array, "batch width"]:
    """The first member's penultimate features."""
    member = first_member(members)
    inputs = jnp.concatenate([observation, action], axis=1)
    return jax.vmap(member.network.features)(inputs)


def field_features(
    members: ValueVelocity,
    t: Float[Array, "batch"],
    z: Float[Array, "batch"],
    observation: Float[Array, "batch observation"],
    action: Float[Array, "batch action"],
) -> Float[Array, "batch width"]:
    """The first member's penultimate features at these times and flow variables."""
    return jax.vmap(first_member(members).features)(t, z, observation, action)


def first_member(members: T) -> T:
    """The first of an ensemble of stacked modules."""
    return jax.tree.map(lambda x: x[0] if eqx.is_array(x) else x, members)
