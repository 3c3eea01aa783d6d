"""Integrating a velocity field from noise (t = 0) to data (t = 1).

The only file that calls Diffrax. `solve_flow` takes any of its ODE solvers, with a fixed number
of steps or with an adaptive step size controller, and returns a `FlowSolution`.
"""

from collections.abc import Callable
from typing import Any

import diffrax
import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, ArrayLike, Float, Int, PyTree, Shaped

from ._arguments import (
    at_least_float32,
    check_clipping,
    check_elements,
    check_solver,
    check_stepping,
    check_velocity,
    checked_int,
)
from ._explicit import unrolled, with_scanned_stages
from ._stepping import CountingController, EqualSteps, cost_of, fractions
from ._types import FloatLike


class RESULTS(diffrax.RESULTS):  # pyright: ignore[reportGeneralTypeIssues]
    """How a solve went: Diffrax's results, and one for values that are not finite."""

    non_finite = (
        "The flow left the finite numbers: its value at t = 1 holds a NaN or an infinity. "
        "Check x0, the arguments and the parameters of the velocity field for NaNs; if they are "
        "finite, the field is too steep for these steps: take more of them."
    )


class FlowPath(eqx.Module):
    """The values that a solve passed through, its start included.

    With a fixed number of steps there are `num_steps + 1` of them. An adaptive solve fills the
    first `accepted steps + 1` places of `max_steps + 1`; the rest hold infinity, as in Diffrax,
    so `jnp.isfinite(path.time)` marks the ones that were reached.

    **Attributes:**

    - `time`: the times, increasing from 0 to 1, in at least float32.
    - `value`: the values at these times, each of the shape and dtype of `x0`.
    """

    time: Float[Array, "*independent times"]
    value: Float[Array, "..."]


class FlowSolution(eqx.Module):
    """What [`floq_eqx.solve_flow`][] returns.

    With `independent=True` each attribute has the batch as its leading axis.

    **Attributes:**

    - `value`: the value at t = 1, of the shape and dtype of `x0`. After a solve that failed, the
        last value that was reached.
    - `num_steps`: how many steps were tried: those rejected by an adaptive controller count.
    - `num_evaluations`: how many times the solve evaluated the velocity field, as executed on
        the forward pass: stages of rejected steps and stages computed only for the error
        estimate count, a stage reused from the step before does not. One evaluation of a whole
        batch counts once. It is -1 where Diffrax does not tell: for implicit solvers, whose
        root finder evaluates the field as often as it needs, and for solvers from elsewhere
        that are not an explicit Runge--Kutta tableau.
    - `result`: a member of [`floq_eqx.integrate.RESULTS`][]: `successful`, or why not.
        `RESULTS[result]` is its message.
    - `path`: a [`floq_eqx.FlowPath`][] with `save_path=True`, otherwise `None`.
    """

    value: Float[Array, "..."]
    num_steps: Int[Array, "*independent"]
    num_evaluations: Int[Array, "*independent"]
    result: RESULTS
    path: FlowPath | None


class _VectorField(eqx.Module):
    """A velocity in the form that Diffrax takes; a module, so that its adjoints see inside.

    It takes times and values in the dtype of x0, which may have fewer digits than the solve.
    """

    velocity: Callable
    dtype: Any = eqx.field(static=True)

    def __call__(self, t, x, args):
        v = self.velocity(t.astype(self.dtype), x.astype(self.dtype), *(args or ()))
        return v.astype(x.dtype)


def _scan(terms, solver, cost, x0, args, num_steps, save_path):
    """Equal steps, driving the solver's own `init` and `step`.

    Without step size control a solve is a loop over these, and `lax.scan` keeps what the
    backward pass needs. Diffrax's loop would compute each step again there.
    """
    times = jnp.asarray(fractions(num_steps), x0.dtype)
    state = solver.init(terms, times[0], times[1], x0, args)
    state, static = eqx.partition(jax.tree.map(_as_array, state), eqx.is_array)

    def step(carry, interval):
        x, state, result = carry
        state = eqx.combine(state, static)
        x, _, _, state, outcome = solver.step(terms, *interval, x, args, state, made_jump=False)
        state = eqx.filter(jax.tree.map(_as_array, state), eqx.is_array)
        result = RESULTS.where(result == RESULTS.successful, RESULTS.promote(outcome), result)
        kept: Any = x if save_path else None
        return (x, state, result), kept

    start = (x0, state, RESULTS.successful)
    (value, _, result), values = jax.lax.scan(
        step, start, (times[:-1], times[1:]), unroll=unrolled(num_steps)
    )
    path = FlowPath(times, jnp.concatenate([x0[None], values])) if save_path else None
    num_evaluations = -1 if cost is None else cost.of_equal_steps(num_steps)
    return value, num_steps, num_evaluations, result, path


def _as_array(leaf):
    return jnp.asarray(leaf) if isinstance(leaf, bool | int | float) else leaf


def _diffeqsolve(
    terms, solver, cost, x0, args, num_steps, controller, max_steps, save_path, adjoint
):
    """Adaptive steps, or equal ones with one of Diffrax's adjoints."""
    if controller is None:
        stepper, max_steps = EqualSteps(num_steps), num_steps
    else:
        stepper = controller
        if cost is not None:
            stepper = CountingController(controller, cost)
    saved: Any = diffrax.SubSaveAt(t1=True)
    if save_path:
        saved = [saved, diffrax.SubSaveAt(t0=True, steps=True)]
    solution: Any = diffrax.diffeqsolve(
        terms,
        solver,
        # In the dtype of x0: Diffrax would promote x0 to that of the times.
        t0=jnp.zeros((), x0.dtype),
        t1=jnp.ones((), x0.dtype),
        dt0=None,  # the controller chooses the first step
        y0=x0,
        args=args or None,  # BacksolveAdjoint fails on an empty tuple
        saveat=diffrax.SaveAt(subs=saved, controller_state=True),
        stepsize_controller=stepper,
        adjoint=diffrax.RecursiveCheckpointAdjoint() if adjoint is None else adjoint,
        max_steps=max_steps,
        # A check inside jit would call back to the host.
        throw=False,
    )
    if save_path:
        [[value], values], [_, times] = solution.ys, solution.ts
        path = FlowPath(times, values)
    else:
        [value], path = solution.ys, None
    num_steps = solution.stats["num_steps"]
    if cost is None:
        num_evaluations = -1
    elif controller is None:
        num_evaluations = cost.of_equal_steps(num_steps)
    else:
        _, num_evaluations, _ = solution.controller_state
    return value, num_steps, num_evaluations, RESULTS.promote(solution.result), path


@eqx.filter_jit
def _solve(velocity, x0, args, solver, num_steps, controller, max_steps, save_path, adjoint):
    dtype = x0.dtype
    x0 = _varying_as(check_velocity(velocity, x0, args), x0)
    # In half precision times k / K collide, and Diffrax takes the last tenths for rounding errors.
    x0 = x0.astype(at_least_float32(dtype))
    terms = diffrax.ODETerm(_VectorField(velocity, dtype))
    if controller is None and adjoint is None:
        solver = with_scanned_stages(solver)
        solved = _scan(terms, solver, cost_of(solver), x0, args, num_steps, save_path)
    else:
        cost = cost_of(solver)
        solved = _diffeqsolve(
            terms, solver, cost, x0, args, num_steps, controller, max_steps, save_path, adjoint
        )
    result: Any
    value, num_steps, num_evaluations, result, path = solved
    value = value.astype(dtype)
    if path is not None:
        path = FlowPath(path.time, path.value.astype(dtype))
    finite = jnp.isfinite(value).all()
    return FlowSolution(
        value=value,
        num_steps=jnp.asarray(num_steps, jnp.int32),
        num_evaluations=jnp.asarray(num_evaluations, jnp.int32),
        result=RESULTS.where(finite, result, RESULTS.non_finite),
        path=path,
    )


def _varying_as(velocity: jax.ShapeDtypeStruct, x0: Array) -> Array:
    """In `shard_map`, x0 over the axes that its velocity varies over, as after a step."""
    axes = tuple(_varying_axes(velocity) - _varying_axes(jax.typeof(x0)))
    return jax.lax.pcast(x0, axes, to="varying") if axes else x0


def _varying_axes(of: Any) -> frozenset:
    # JAX 0.10 has the one, those before it the other or none.
    axes = getattr(getattr(of, "manual_axis_type", None), "varying", None)
    return axes or getattr(of, "vma", None) or frozenset()


def _raise_if_failed(solution: FlowSolution) -> None:
    """Raise on a failed solve whose result is known; do nothing on a traced one."""
    failed = solution.result != RESULTS.successful
    try:
        if not bool(failed.any()):
            return
    except jax.errors.ConcretizationTypeError:
        return
    if failed.ndim == 0:
        what, result = "The solve", solution.result
    else:
        first, count = int(failed.argmax()), int(failed.sum())
        what = f"{count} of {failed.size} solves failed. The first, element {first},"
        result = jax.tree.map(lambda leaf: leaf[first], solution.result)
    raise RuntimeError(
        f"{what} failed: {RESULTS[result]} "
        "(`throw=False` returns the solution all the same, with this in its `result`.)"
    )


def solve_flow(
    velocity: Callable[..., Array],
    x0: Shaped[ArrayLike, "..."],
    *args: PyTree,
    solver: diffrax.AbstractSolver = diffrax.Euler(),  # noqa: B008
    num_steps: int = 8,
    stepsize_controller: diffrax.AbstractAdaptiveStepSizeController | None = None,
    max_steps: int = 4096,
    independent: bool = False,
    save_path: bool = False,
    adjoint: diffrax.AbstractAdjoint | None = None,
    throw: bool = True,
) -> FlowSolution:
    r"""Carries `x0` along a velocity field from t = 0 to t = 1:

    $$\frac{\mathrm{d}x}{\mathrm{d}t}(t) = v(t, x(t), \text{args}), \qquad x(0) = x_0.$$

    With the defaults these are the K = 8 Euler steps of floq (arXiv 2509.06863),
    $x_{(k+1)/K} = x_{k/K} + v(k/K, x_{k/K}) / K$.

    !!! example

        ```python
        # One network, a batch of observations, one z each.
        field = lambda t, z, observation: jax.vmap(network, (None, 0, 0))(t, z, observation)
        q = solve_flow(field, z0, observation).value
        q = solve_flow(field, z0, observation, solver=diffrax.Midpoint(), num_steps=4).value
        ```

    **Arguments:**

    - `velocity`: the field, called as `velocity(t, x, *args)` with a scalar `t` and an `x` of
        the shape of `x0`, both in its dtype; it returns an array of that shape and dtype. If
        `x0` is a batch, it takes the whole batch. A module's arrays are arguments of the
        compiled solve. Outside `jit`, pass a module or a function that is defined once: a new
        lambda in every call compiles in every call.
    - `x0`: the value at t = 0: floats, of any shape. Times and values are kept in its dtype, but
        in float32 if that is half precision: then they are rounded for each call of `velocity`,
        and the value and the path at the end. A tolerance below what the velocity resolves
        is not met.
    - `*args`: further arguments of the field: any PyTrees.
    - `solver`: any Diffrax solver of ordinary differential equations.
    - `num_steps`: K, the number of equal steps. Not used with a `stepsize_controller`.
    - `stepsize_controller`: an adaptive controller, such as
        `diffrax.PIDController(rtol=1e-3, atol=1e-6)`. The solver must estimate its error.
        `None` makes `num_steps` equal steps.
    - `max_steps`: the most steps that an adaptive solve tries, rejected ones included. Not used
        with fixed steps.
    - `independent`: whether each element along the leading axis of `x0` is a system of its own,
        with its own steps and its own result. Then `velocity` takes *one* element; every array
        in `args` has the same leading axis and is split along it; what the elements share
        belongs in `velocity`. A solve takes as long as its slowest element. Otherwise all of
        `x0` is one system, and an adaptive controller chooses its steps by the root mean square
        of the errors of the whole batch.
    - `save_path`: whether to return the value at every step. An adaptive solve then allocates
        `max_steps + 1` values.
    - `adjoint`: how to differentiate. `None` with fixed steps is for reverse and forward mode and,
        with explicit solvers, for derivatives of any order. Euler then evaluates the field no
        more than the forward pass and stores its intermediates, as `jax.lax.scan` does; solvers
        of several stages store the stages' values and evaluate the field once more on the way
        back. With adaptive steps `None` is `diffrax.RecursiveCheckpointAdjoint()`, which is for
        one reverse pass; pass `diffrax.ForwardMode()` for forward mode (`jax.jvp`), or
        `diffrax.DirectAdjoint()` for second derivatives.
        With fixed steps `diffrax.RecursiveCheckpointAdjoint(checkpoints=num_steps)` stores only
        states, about `1 / num_steps` of Euler's memory, and evaluates the field once more on the
        way back; where memory is slow, as on a CPU, that can be the faster one.
    - `throw`: whether a solve that failed raises. It does so outside of JAX's transformations
        only, and waits for the solve to finish. Inside `jit` and `vmap` there is no check, so
        that no compiled update calls back to the host: look at `result`.

    !!! note "In `jax.shard_map`"

        Fixed steps of explicit solvers with `adjoint=None` work in `jax.shard_map`, also under
        `grad`. Diffrax's own loop, which adaptive steps, implicit solvers and an `adjoint` need,
        takes `check_vma=False`, and there only `diffrax.DirectAdjoint()` is differentiable. An
        adaptive controller sees, and adapts to, the elements of its own device alone.

    **Returns:**

    A [`floq_eqx.FlowSolution`][].

    **Raises:**

    - `TypeError`, `ValueError`: for an argument that cannot be right: not a solver or not one of
        ordinary differential equations, an adaptive controller with a solver that makes no
        error estimate, an implicit solver with no tolerance, a number of steps below 1 or above
        what an `adjoint` can make, an `x0` that is not floating point, a field that returns
        another shape or dtype, `args` that do not match `x0` with `independent=True`.
    - `RuntimeError`: with `throw=True` and outside of JAX's transformations, if the step limit
        was reached, the value is not finite, or an implicit step did not converge.
    """
    check_solver(solver)
    check_stepping(solver, stepsize_controller)
    num_steps = checked_int("num_steps", num_steps)
    max_steps = checked_int("max_steps", max_steps)
    dtype = jnp.result_type(x0)
    if not jnp.issubdtype(dtype, jnp.floating):
        raise TypeError(
            f"`x0` has dtype {dtype}; expected floating point numbers. Convert it, for example "
            "with `x0.astype(jnp.float32)`."
        )
    # With the dtype named, a Python number becomes a strongly typed array.
    x0 = jnp.asarray(x0, dtype)

    if stepsize_controller is None and adjoint is not None:
        check_clipping(x0, num_steps)

    def solve(x0, args):
        return _solve(
            velocity,
            x0,
            args,
            solver,
            num_steps,
            stepsize_controller,
            max_steps,
            save_path,
            adjoint,
        )

    if independent:
        check_elements(x0, args)
        solution = eqx.filter_vmap(solve)(x0, args)
    else:
        solution = solve(x0, args)
    if throw:
        _raise_if_failed(solution)
    return solution


def confine(
    velocity: Callable, low: FloatLike, high: FloatLike, *, num_steps: int
) -> Callable[..., Array]:
    """`velocity`, held back where one of Euler's equal steps would leave [low, high].

    With it, `num_steps` steps of Euler are those of `velocity` with every value clipped. Its
    derivatives are those of `velocity`: what flows away from a bound is not cut off at it.

    **Arguments:** `velocity`: as in [`floq_eqx.solve_flow`][]; `low`, `high`: the bounds;
    `num_steps`: the steps that it will be integrated in.

    Source: the clipped flows of Value Flows' released code (arXiv 2510.07650).
    """

    def confined(t, x, *args):
        v = velocity(t, x, *args)
        held = (jnp.clip(x + v / num_steps, low, high) - x) * num_steps
        return v + jax.lax.stop_gradient(held - v)

    return confined
