"""Which solver, and how it chooses its steps."""

import dataclasses
import math
from collections.abc import Sequence

import diffrax
import equinox as eqx
import jax
from jaxtyping import Array, Float

from .._types import Number, Scalar
from ..integrate import FlowSolution, solve_flow
from ..modules.velocity import AbstractValueVelocity

FIXED_SOLVERS: tuple[diffrax.AbstractSolver, ...] = (
    diffrax.Euler(),
    diffrax.Midpoint(),
    diffrax.Heun(),
    diffrax.Ralston(),
    diffrax.Bosh3(),
    diffrax.Tsit5(),
    diffrax.Dopri5(),
    diffrax.Dopri8(),
)
"""What `default_configurations` takes equal steps with."""


@dataclasses.dataclass(frozen=True)
class SolverConfiguration:
    """A solver and its steps: equal ones or, by a tolerance, adaptive ones.

    **Arguments:**

    - `solver`: a Diffrax solver of ordinary differential equations.
    - `num_steps`: K equal steps, or
    - `tolerance`: adaptive steps with this relative and absolute tolerance of an integral
        controller; absolute in units of the return.
    - `independent`: every example takes its own adaptive steps.
    - `max_steps`: the most that an adaptive solve tries.
    """

    solver: diffrax.AbstractSolver
    num_steps: int | None = None
    tolerance: Number | None = None
    independent: bool = False
    max_steps: int = 1024

    @property
    def name(self) -> str:
        """Such as `Euler K=8` or `Tsit5 tol=0.001 each`."""
        kind = type(self.solver).__name__
        if self.tolerance is None:
            return f"{kind} K={self.num_steps}"
        return f"{kind} tol={self.tolerance:g}{' each' if self.independent else ''}"

    def check(self) -> None:
        """**Raises:** `ValueError` if it does not say how to choose the steps."""
        if (self.num_steps is None) == (self.tolerance is None):
            raise ValueError("Give num_steps for equal steps, or a tolerance for adaptive ones.")
        if self.tolerance is not None and not 0 < self.tolerance < math.inf:
            raise ValueError(f"tolerance must be positive, got {self.tolerance}.")
        if self.tolerance is None and self.independent:
            raise ValueError("Equal steps are the same for every example: independent=False.")

    def solve(
        self,
        member: AbstractValueVelocity,
        z0: Float[Array, "batch"],
        observation: Float[Array, "batch observation"],
        action: Float[Array, "batch action"],
    ) -> FlowSolution:
        """One field's integrals for a batch, without raising for those that fail."""
        self.check()
        controller = None
        if self.tolerance is not None:
            controller = diffrax.PIDController(rtol=self.tolerance, atol=self.tolerance)
        return solve_flow(
            member if self.independent else OverBatch(member),
            z0,
            observation,
            action,
            solver=self.solver,
            num_steps=1 if self.num_steps is None else self.num_steps,
            stepsize_controller=controller,
            max_steps=self.max_steps,
            independent=self.independent,
            throw=False,
        )


class OverBatch(eqx.Module):
    """A field of one example for a batch; a module, so that its parameters are seen as such."""

    member: AbstractValueVelocity

    def __call__(self, t: Scalar, *args: Array) -> Float[Array, "batch"]:
        return jax.vmap(self.member, in_axes=(None, 0, 0, 0))(t, *args)


def default_configurations(
    *,
    num_steps: Sequence[int] = (1, 2, 4, 8, 16, 32),
    tolerances: Sequence[Number] = (1e-1, 1e-2, 1e-3),
) -> list[SolverConfiguration]:
    """Every solver of `FIXED_SOLVERS` at each number of steps; Heun, Bosh3, Tsit5 and Dopri8 with
    shared adaptive steps, Tsit5 also with each example's own; and Kvaerno3, which is implicit, for
    fields that are stiff, at each tolerance.
    """
    fixed = [SolverConfiguration(solver, k) for solver in FIXED_SOLVERS for k in num_steps]
    shared = (diffrax.Heun(), diffrax.Bosh3(), diffrax.Tsit5(), diffrax.Dopri8())
    adaptive = [SolverConfiguration(s, tolerance=tol) for s in shared for tol in tolerances]
    own = [
        SolverConfiguration(diffrax.Tsit5(), tolerance=tol, independent=True) for tol in tolerances
    ]
    stiff = [
        SolverConfiguration(diffrax.Kvaerno3(), tolerance=tol, independent=True)
        for tol in tolerances
    ]
    return fixed + adaptive + own + stiff
