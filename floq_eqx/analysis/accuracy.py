"""How accurate a solver is: its order of convergence, and whether it ranks actions alike."""

from collections.abc import Callable, Sequence
from typing import Any

import diffrax
import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from ..integrate import solve_flow


def rank_agreement(
    value: Float[np.ndarray, "batch candidate"], other: Float[np.ndarray, "batch candidate"]
) -> float:
    """The mean over the batch of Kendall's τ-b between two rankings of the candidates."""
    from scipy.stats import kendalltau  # slow to import

    # A row without any order, such as that of a constant, agrees with nothing.
    taus = [kendalltau(*pair)[0] for pair in zip(value, other, strict=True)]  # pyright: ignore
    return float(np.nan_to_num(taus).mean())


def observed_order(
    velocity: Callable[..., Array],
    x0: Float[Array, "..."],
    *args: Any,
    solver: diffrax.AbstractSolver,
    num_steps: Sequence[int] = (8, 16, 32, 64),
) -> float:
    r"""The order p with which a solver's error falls as $K^{-p}$ on a field, in float64.

    The least-squares slope of log(mean error) against log K. On a field that is smooth enough at
    these steps it is the solver's own order; if it is less, the field is not.

    **Arguments:**

    - `velocity`, `x0`, `*args`: as in [`floq_eqx.solve_flow`][]; their floats become float64.
    - `solver`: a Diffrax solver, which takes equal steps.
    - `num_steps`: at least two K; errors are held against 4 times the largest with Dopri8.

    **Raises:** `ValueError` for fewer than two K, or if an error is exactly zero: then there is no
    order to see.
    """
    if len(set(num_steps)) < 2:
        raise ValueError(f"An order takes at least two different num_steps, got {num_steps}.")
    with jax.enable_x64(True):
        velocity, x0, args = jax.tree.map(widen, (velocity, x0, args))

        def value(solver: diffrax.AbstractSolver, k: int) -> np.ndarray:
            return np.asarray(solve_flow(velocity, x0, *args, solver=solver, num_steps=k).value)

        reference = value(diffrax.Dopri8(), 4 * max(num_steps))
        errors = [float(np.abs(value(solver, k) - reference).mean()) for k in num_steps]
    if min(errors) == 0:
        raise ValueError(f"An error is exactly zero, so there is no order to see: {errors}.")
    return -float(np.polyfit(np.log(num_steps), np.log(errors), 1)[0])


def widen(leaf: Any) -> Any:
    """An array of real numbers in float64, and anything else as it is."""
    return jnp.asarray(np.asarray(leaf), jnp.float64) if eqx.is_inexact_array(leaf) else leaf
