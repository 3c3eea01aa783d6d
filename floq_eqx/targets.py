"""Temporal-difference targets and ensemble aggregation: arrays in, arrays out."""

from typing import Literal, TypeAlias

import jax.numpy as jnp
from jaxtyping import Array, Float

from ._types import FloatLike

Aggregation: TypeAlias = Literal["mean", "min"]
Backup: TypeAlias = Literal["expected", "distributional"]


def aggregate(
    values: Float[Array, "ensemble *shape"], aggregation: Aggregation = "mean"
) -> Float[Array, "*shape"]:
    """The mean or the minimum over the members of an ensemble, for each entry by itself."""
    if aggregation == "mean":
        return jnp.mean(values, axis=0)
    if aggregation == "min":
        return jnp.min(values, axis=0)
    raise ValueError(f"aggregation must be 'mean' or 'min', got {aggregation!r}.")


def td_target(
    reward: Float[Array, "batch"],
    mask: Float[Array, "batch"],
    next_value: Float[Array, "batch"],
    *,
    discount: FloatLike,
) -> Float[Array, "batch"]:
    r"""$r + \gamma\, m\, Q(s', a')$, with the mask $m$ = 0 where s' is terminal."""
    return reward + discount * mask * next_value


def flow_td_target(
    reward: Float[Array, "batch"],
    mask: Float[Array, "batch"],
    next_value: Float[Array, "batch noise"],
    *,
    discount: FloatLike,
    backup: Backup = "expected",
) -> Float[Array, "batch noise"]:
    r"""The endpoint $x_1$ of every sample's path, from m integrated next values.

    **Arguments:**

    - `reward`, `mask`: of the transition.
    - `next_value`: the target field's integrals, one a noise sample, aggregated over members.
    - `discount`: $\gamma$ in [0, 1).
    - `backup`: `"expected"` gives all samples of a transition the mean of their targets, so that
        the flow's endpoint is Q itself; `"distributional"` lets each keep its own, so that the
        endpoint is distributed like the return.

    Source: floq, arXiv 2509.06863, section 4.1 (expected) and its ablation (distributional).
    """
    target = reward[:, None] + discount * mask[:, None] * next_value
    if backup == "distributional":
        return target
    if backup == "expected":
        return jnp.broadcast_to(jnp.mean(target, axis=1, keepdims=True), target.shape)
    raise ValueError(f"backup must be 'expected' or 'distributional', got {backup!r}.")
