"""Temporal-difference targets and ensemble aggregation: arrays in, arrays out."""

from typing import Literal, TypeAlias

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from ._types import Discounts, FloatLike

Aggregation: TypeAlias = Literal["mean", "min", "pessimistic"]
Backup: TypeAlias = Literal["expected", "distributional"]


def aggregate(
    values: Float[Array, "ensemble *shape"],
    aggregation: Aggregation = "mean",
    rho: FloatLike = 0.5,
) -> Float[Array, "*shape"]:
    r"""Combines the members of an ensemble, for each entry by itself.

    **Arguments:**

    - `aggregation`: their `mean`; their `min`; or `pessimistic`, the mean less $\rho$ times their
        standard deviation, whose divisor is the number of members.
    - `rho`: that $\rho$.

    Source of the latter: Ghasemipour et al., arXiv 2205.13703, and the released code of QAM.
    """
    if aggregation == "mean":
        return jnp.mean(values, axis=0)
    if aggregation == "min":
        return jnp.min(values, axis=0)
    if aggregation != "pessimistic":
        raise ValueError(
            f"aggregation must be 'mean', 'min' or 'pessimistic', got {aggregation!r}."
        )
    variance = jnp.var(values, axis=0)
    # Equal members have no deviation, and their square root no derivative.
    apart = variance > 0
    deviation = jnp.where(apart, jnp.sqrt(jnp.where(apart, variance, 1.0)), 0.0)
    return jnp.mean(values, axis=0) - rho * deviation


def value_bounds(
    reward_min: FloatLike, reward_max: FloatLike, discount: FloatLike
) -> tuple[FloatLike, FloatLike]:
    r"""$[r_{min}, r_{max}] / (1 - \gamma)$: no return leaves it."""
    return reward_min / (1 - discount), reward_max / (1 - discount)


def td_target(
    reward: Float[Array, "batch"],
    mask: Float[Array, "batch"],
    next_value: Float[Array, "batch"],
    *,
    discount: Discounts,
) -> Float[Array, "batch"]:
    r"""$r + \gamma\, m\, Q(s', a')$, with the mask $m$ = 0 where s' is terminal; after n steps with
    their discounted rewards as r and $\gamma^n$ as $\gamma$.
    """
    return reward + discount * mask * next_value


def flow_td_target(
    reward: Float[Array, "batch"],
    mask: Float[Array, "batch"],
    next_value: Float[Array, "batch noise"],
    *,
    discount: Discounts,
    backup: Backup = "expected",
) -> Float[Array, "batch noise"]:
    r"""The endpoint $x_1$ of every sample's path, from m integrated next values.

    **Arguments:**

    - `reward`, `mask`: of the transition.
    - `next_value`: the target field's integrals, one a noise sample, aggregated over members.
    - `discount`: $\gamma$ in [0, 1), or that of each transition.
    - `backup`: `"expected"` gives all samples of a transition the mean of their targets, so that
        the flow's endpoint is Q itself; `"distributional"` lets each keep its own, so that the
        endpoint is distributed like the return.

    Source: floq, arXiv 2509.06863, section 4.1 (expected) and its ablation (distributional).
    """
    target = reward[:, None] + (discount * mask)[:, None] * next_value
    if backup == "distributional":
        return target
    if backup == "expected":
        return jnp.broadcast_to(jnp.mean(target, axis=1, keepdims=True), target.shape)
    raise ValueError(f"backup must be 'expected' or 'distributional', got {backup!r}.")


def categorical_td_target(
    reward: Float[Array, "batch"],
    mask: Float[Array, "batch"],
    next_probability: Float[Array, "batch bins"],
    atoms: Float[Array, "bins"],
    *,
    discount: Discounts,
) -> Float[Array, "batch bins"]:
    r"""The distribution of $r + \gamma\, m\, Z(s', a')$, put back onto the atoms.

    Each atom's mass moves to where its return goes, is clipped to the ends, and is shared by the
    two atoms next to it in proportion to their nearness, so that within the ends the mean is kept.

    **Arguments:**

    - `reward`, `mask`: of the transition.
    - `next_probability`: of the next return, over the atoms.
    - `atoms`: equally spaced and increasing, at least two.

    Source: Bellemare, Dabney and Munos, arXiv 1707.06887, equation 7.
    """
    moved = reward[:, None] + (discount * mask)[:, None] * atoms[None]
    moved = jnp.clip(moved, atoms[0], atoms[-1])
    distance = jnp.abs(moved[:, None, :] - atoms[None, :, None]) / (atoms[1] - atoms[0])
    share = jnp.clip(1 - distance, 0, 1)
    return jnp.sum(share * next_probability[:, None, :], axis=2)


def soft_value(
    samples: Float[Array, "*shape noise"], temperature: FloatLike
) -> Float[Array, "*shape"]:
    r"""$\eta \log \frac{1}{m} \sum_i \exp(z_i / \eta)$ over samples of the return.

    The optimal value of deterministic dynamics under a KL penalty of weight η towards the policy
    that the returns are from; their largest as η goes to 0, their mean as it grows.

    **Arguments:** returns along the last axis, and η > 0 in units of the return.

    Source: EVOR, arXiv 2510.08218; Zhou et al., arXiv 2502.20548.
    """
    mean = jnp.mean(samples, axis=-1, keepdims=True)
    # About the mean, so that a large temperature does not cancel all digits.
    excess = jax.nn.logsumexp((samples - mean) / temperature, axis=-1)
    return mean[..., 0] + temperature * (excess - jnp.log(samples.shape[-1]))
