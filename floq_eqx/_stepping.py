"""When a solve steps, and how many evaluations of the field its steps take."""

from typing import Any, NamedTuple

import diffrax
import equinox as eqx
import jax.numpy as jnp
import numpy as np

from ._explicit import ScannedStages, is_explicit, is_scanned


class Cost(NamedTuple):
    """Evaluations of the field that a solver makes."""

    init: int  # in `solver.init`
    step: int  # in a step that can reuse the last stage of the step before
    restart: int  # more, in a step that cannot
    starts_afresh: bool  # whether the first step is one that cannot

    def of_equal_steps(self, num_steps):
        return self.init + self.step * num_steps + self.restart * self.starts_afresh


def cost_of(solver: Any) -> Cost | None:
    """The cost of a solver's steps, or None if that is not known before the solve."""
    # A subclass that brings its own `step` may do anything in it.
    step = type(solver).step
    if step in (diffrax.Euler.step, diffrax.LeapfrogMidpoint.step):
        return Cost(init=0, step=1, restart=0, starts_afresh=False)
    if step is diffrax.ReversibleHeun.step:
        return Cost(init=1, step=1, restart=1, starts_afresh=False)
    if isinstance(solver, diffrax.HalfSolver):
        inner = cost_of(solver.solver)
        # One full step and the first half-step start where the last step ended, the second
        # half-step where the first one did.
        # With fixed steps nothing needs the full one, and a scan of which nothing is needed is
        # not run.
        count = 2 if is_scanned(solver.solver) else 3
        return inner and inner._replace(step=count * inner.step, restart=2 * inner.restart)
    if isinstance(solver, ScannedStages):
        reused = int(solver.tableau.fsal)
        return Cost(reused, solver.tableau.num_stages - reused, 0, False)
    if is_explicit(solver):
        reused = int(solver.tableau.fsal)
        return Cost(0, solver.tableau.num_stages - reused, reused, True)
    return None


class CountingController(diffrax.AbstractStepSizeController):
    """Counts evaluations of the field on behalf of the controller that it wraps.

    Only the controller's state survives a rejected step, so only here can a first step that is
    tried several times, and computes its first stage each time, be counted.
    """

    controller: diffrax.AbstractStepSizeController
    cost: Cost = eqx.field(static=True)

    def wrap(self, direction):
        return CountingController(self.controller.wrap(direction), self.cost)

    def init(self, terms, t0, t1, y0, dt0, args, func, error_order):
        selects = False

        def noticed(*call):
            nonlocal selects
            selects = True
            return func(*call)

        t_next, state = self.controller.init(terms, t0, t1, y0, dt0, args, noticed, error_order)
        # Choosing the first step (Hairer, Norsett and Wanner, II.4) takes two evaluations.
        count = self.cost.init + (2 if selects else 0)
        return t_next, (state, jnp.asarray(count, jnp.int32), jnp.asarray(self.cost.starts_afresh))

    def adapt_step_size(
        self, t0, t1, y0, y1_candidate, args, y_error, error_order, controller_state
    ):
        inner, count, afresh = controller_state
        keep_step, t_prev, t_next, made_jump, inner, result = self.controller.adapt_step_size(
            t0, t1, y0, y1_candidate, args, y_error, error_order, inner
        )
        count = count + self.cost.step + self.cost.restart * afresh.astype(jnp.int32)
        afresh = jnp.where(keep_step, made_jump, afresh)
        return keep_step, t_prev, t_next, made_jump, (inner, count, afresh), result


class EqualSteps(diffrax.AbstractStepSizeController):
    """The times k / K, from a table: sums of a rounded step would be others, or more of them."""

    num_steps: int = eqx.field(static=True)

    def wrap(self, direction):
        return self

    def init(self, terms, t0, t1, y0, dt0, args, func, error_order):
        times = t0 + (t1 - t0) * jnp.asarray(fractions(self.num_steps), jnp.result_type(t0))
        return times[1], (times, jnp.asarray(1, jnp.int32))

    def adapt_step_size(
        self, t0, t1, y0, y1_candidate, args, y_error, error_order, controller_state
    ):
        times, count = controller_state
        # Past the end this is the end again.
        unrejected = diffrax.RESULTS.successful
        return True, t1, times[count + 1], False, (times, count + 1), unrejected


def fractions(num_steps):
    """The times k / K of equal steps, in double precision."""
    return np.arange(num_steps + 1) / num_steps
