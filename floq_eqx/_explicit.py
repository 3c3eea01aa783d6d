"""Explicit Runge--Kutta steps as a `jax.lax.scan` over the stages.

Diffrax's own loop over the stages has a derivative rule that can not be differentiated again, in
forward mode not even once, and that `jax.shard_map` refuses.
"""

from typing import Any

import diffrax
import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, PyTree


def unrolled(length: int) -> bool:
    """Whether a loop of so many steps is written out: on a GPU, whose kernels start one by one in a
    loop and together without it. It compiles for longer, so that a long one stays a loop.
    """
    return jax.default_backend() == "gpu" and length <= 16


def is_explicit(solver: Any) -> bool:
    """Whether a solver's step is what its explicit Butcher tableau says."""
    # A subclass that brings its own `step` may do anything in it.
    kind = type(solver)
    return (
        isinstance(solver, diffrax.AbstractERK)
        and kind.step is diffrax.AbstractERK.step
        and kind.init is diffrax.AbstractERK.init
        and isinstance(solver.tableau, diffrax.ButcherTableau)
        and not solver.tableau.implicit
    )


def with_scanned_stages(solver: Any) -> Any:
    """The solver, with the stages of its explicit tableau, or of the solver in it, scanned."""
    if is_explicit(solver):
        return ScannedStages(solver.tableau)
    if isinstance(solver, diffrax.HalfSolver):
        return diffrax.HalfSolver(with_scanned_stages(solver.solver))
    return solver


def is_scanned(solver: Any) -> bool:
    """Whether `with_scanned_stages` made it."""
    if isinstance(solver, diffrax.HalfSolver):
        return is_scanned(solver.solver)
    return isinstance(solver, ScannedStages)


class ScannedStages(eqx.Module):
    """The steps of an explicit tableau, with the `init` and `step` of a Diffrax solver.

    A backward pass evaluates each stage again, as Diffrax does, so that of every stage only its
    value is stored.
    """

    tableau: diffrax.ButcherTableau = eqx.field(static=True)

    def init(self, terms: PyTree, t0: Array, t1: Array, y0: Array, args: PyTree) -> Array | None:
        """The first stage, if every later step takes it from the step before."""
        return _stored_as_value(terms, args)(t0, y0) if self.tableau.fsal else None

    def step(
        self,
        terms: PyTree,
        t0: Array,
        t1: Array,
        y0: Array,
        args: PyTree,
        solver_state: Array | None,
        made_jump: bool,
    ) -> tuple[Array, None, dict, Array | None, diffrax.RESULTS]:
        """One step from `t0` to `t1`; the third and fourth of what it returns are unused."""
        tableau, dt = self.tableau, t1 - t0
        weights = np.zeros((tableau.num_stages, tableau.num_stages))
        for i, row in enumerate(tableau.a_lower):
            weights[i + 1, : i + 1] = row
        fraction = np.concatenate([[tableau.c1], tableau.c])
        field = _stored_as_value(terms, args)

        def combined(weights, stages):
            sums = jnp.tensordot(weights, stages, axes=1, precision=jax.lax.Precision.HIGHEST)
            return y0 + dt * sums

        def stage(carry, inputs):
            stages, _ = carry
            i, weights, fraction = inputs
            y = combined(weights, stages)
            # Not t0 + dt at the end, which may round to another number than t1.
            velocity = field(jnp.where(fraction == 1, t1, t0 + fraction * dt), y)
            return (stages.at[i].set(velocity), y), None

        # Zeros like `y0`: in `shard_map` they vary over the axes that it varies over.
        stages = jnp.broadcast_to(jnp.zeros_like(y0), (tableau.num_stages, *y0.shape))
        first = 0
        if solver_state is not None:
            stages, first = stages.at[0].set(solver_state), 1
        inputs = (
            jnp.arange(first, tableau.num_stages),
            jnp.asarray(weights[first:], y0.dtype),
            jnp.asarray(fraction[first:], t0.dtype),
        )
        count = tableau.num_stages
        (stages, y), _ = jax.lax.scan(stage, (stages, y0), inputs, unroll=unrolled(count))
        if not tableau.ssal:
            y = combined(jnp.asarray(tableau.b_sol, y0.dtype), stages)
        state = stages[-1] if tableau.fsal else None
        return y, None, {}, state, diffrax.RESULTS.successful


def _stored_as_value(terms, args):
    """The field, of which the backward pass stores what it takes and not what it computes."""
    return jax.checkpoint(lambda t, y: terms.vf(t, y, args), prevent_cse=False)
