"""What `solve_flow` can be asked for: checks of its arguments, and their errors."""

from collections.abc import Callable
from typing import Any, get_origin

import diffrax
import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array

# What an implicit solver holds where it will use the step size controller's tolerances.
_CONTROLLER_TOLERANCE = diffrax.ImplicitEuler().root_finder.rtol


def checked_int(name: str, value: Any) -> int:
    if isinstance(value, bool) or not isinstance(value, int | np.integer):
        raise TypeError(
            f"`{name}` is {value!r}, of type {type(value).__name__}; expected an int of at least "
            "1. It sets the length of a loop, so it cannot be a traced value either."
        )
    if value < 1:
        raise ValueError(f"`{name}` is {value}; expected an int of at least 1.")
    return int(value)


def check_solver(solver: Any) -> None:
    if not isinstance(solver, diffrax.AbstractSolver):
        what = f"the class {solver.__name__}" if isinstance(solver, type) else repr(solver)
        raise TypeError(
            f"`solver` is {what}; expected an instance of a Diffrax ODE solver, for example "
            "`diffrax.Euler()` or `diffrax.Tsit5()`."
        )
    structure = solver.term_structure
    structure = get_origin(structure) or structure
    if not (isinstance(structure, type) and issubclass(diffrax.ODETerm, structure)):
        raise ValueError(
            f"`solver` is {type(solver).__name__}, which solves stochastic or split equations: "
            f"it takes terms {solver.term_structure}. The flow is one ordinary differential "
            "equation; use a solver of those, for example `diffrax.Euler()`."
        )


def check_stepping(solver: diffrax.AbstractSolver, controller: Any) -> None:
    if controller is None:
        tolerance = getattr(getattr(solver, "root_finder", None), "rtol", None)
        if tolerance is _CONTROLLER_TOLERANCE:
            name = type(solver).__name__
            raise ValueError(
                f"`solver` is {name}, an implicit solver that takes the tolerance of its root "
                "finder from an adaptive controller, and there is none. Set the tolerance, as "
                f"in `diffrax.{name}(root_finder=diffrax.VeryChord(rtol=1e-3, atol=1e-4, "
                "norm=optimistix.rms_norm))`, or pass a `stepsize_controller`."
            )
        return
    if not isinstance(controller, diffrax.AbstractAdaptiveStepSizeController):
        raise TypeError(
            f"`stepsize_controller` is {controller!r}; expected an adaptive one, for example "
            "`diffrax.PIDController(rtol=1e-3, atol=1e-6)`. For fixed steps leave it `None` and "
            "set `num_steps`."
        )
    if not isinstance(solver, diffrax.AbstractAdaptiveSolver):
        name = type(solver).__name__
        raise ValueError(
            f"`stepsize_controller` adapts steps to the solver's error estimate, and {name} "
            "makes none. Use a solver that does, such as `diffrax.Heun()` or `diffrax.Tsit5()`; "
            f"or `diffrax.HalfSolver(diffrax.{name}())`; or `stepsize_controller=None` for "
            "`num_steps` fixed steps."
        )


def check_clipping(x0: Array, num_steps: int) -> None:
    # Diffrax joins what ends within 100 ulp of t = 1 to it.
    dtype = at_least_float32(x0.dtype)
    most = int(1 / (64 * jnp.finfo(dtype).eps))
    if num_steps > most:
        raise ValueError(
            f"`num_steps` is {num_steps}; with an `adjoint` Diffrax makes at most {most} equal "
            f"steps in {dtype}, and would make fewer. Leave `adjoint` `None`, or use float64."
        )


def at_least_float32(dtype: Any) -> np.dtype:
    return np.dtype(np.float32) if jnp.finfo(dtype).bits < 32 else np.dtype(dtype)


def check_velocity(velocity: Callable, x0: Array, args: tuple) -> jax.ShapeDtypeStruct:
    time = jax.ShapeDtypeStruct((), x0.dtype)
    got = eqx.filter_eval_shape(velocity, time, x0, *args)
    if not isinstance(got, jax.ShapeDtypeStruct):
        raise TypeError(
            f"`velocity` returned {got}; expected one array of the shape and dtype of `x0`, "
            f"{x0.dtype}{list(x0.shape)}."
        )
    if (got.shape, got.dtype) != (x0.shape, x0.dtype):
        raise ValueError(
            f"`velocity` returned {got.dtype}{list(got.shape)}; expected the shape and dtype of "
            f"`x0`, {x0.dtype}{list(x0.shape)}. It is called with a scalar time and all of `x0` "
            "(with `independent=True`, one element of it): vmap a field of one example first."
        )
    return got


def check_elements(x0: Array, args: tuple) -> None:
    if x0.ndim == 0:
        raise ValueError(
            "`independent=True` solves along the leading axis of `x0`, and `x0` is a scalar. "
            "Use `independent=False`, or give `x0` a batch axis."
        )
    for path, leaf in jax.tree_util.tree_leaves_with_path(args):
        if eqx.is_array(leaf) and leaf.shape[:1] != x0.shape[:1]:
            raise ValueError(
                f"`args{jax.tree_util.keystr(path)}` has shape {leaf.shape}; with "
                f"`independent=True` every array in `args` is split along its leading axis, "
                f"which is that of `x0`: expected ({x0.shape[0]}, ...). What all elements share "
                "belongs in `velocity`: a field of a module, or a closure."
            )
