"""Comparing ODE solvers for the integral that Q is: accuracy, ranking and cost."""

import csv
import dataclasses
import io
import math
import statistics
import time
from collections.abc import Iterable
from typing import Any

import diffrax
import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from .._checks import check_sizes
from .._progress import progress_bar
from .._types import Key
from ..data.transitions import Batch
from ..integrate import RESULTS, FlowSolution
from ..modules.velocity import AbstractValueVelocity
from .accuracy import rank_agreement, widen
from .solver_configurations import SolverConfiguration, default_configurations


@dataclasses.dataclass(frozen=True)
class SolverRow:
    """What one configuration did. NaN where it is not known or the solve failed.

    **Attributes:**

    - `name`: of the configuration.
    - `evaluations`: of the field, for one integral; the mean over members and, where each has its
        own steps, examples.
    - `most_evaluations`: the largest of them, for which all others wait.
    - `seconds`: the median wall time of integrating the whole batch, compiled.
    - `compile_seconds`: to trace and compile that.
    - `mean_error`, `worst_error`: |Q - reference|, in units of the return.
    - `exact_error`: the root mean square of Q - exact Q, where that is known.
    - `gradient_error`: the mean norm of the error of dQ/da over the mean norm of dQ/da.
    - `kendall_tau`: the mean over observations of Kendall's rank correlation between the
        candidates' Q and the reference's.
    - `best_agreement`: how often the best candidate is the reference's best.
    - `failure`: why there are no numbers; empty if there are.
    """

    name: str
    evaluations: float = math.nan
    most_evaluations: float = math.nan
    seconds: float = math.nan
    compile_seconds: float = math.nan
    mean_error: float = math.nan
    worst_error: float = math.nan
    exact_error: float = math.nan
    gradient_error: float = math.nan
    kendall_tau: float = math.nan
    best_agreement: float = math.nan
    failure: str = ""


@dataclasses.dataclass(frozen=True)
class SolverComparison:
    """The rows of [`floq_eqx.analysis.compare_solvers`][].

    **Attributes:** `rows`: one a configuration, in their order; `reference_error`: the root mean
    square of the reference's Q - exact Q: the learning's error, below which no solver helps; NaN
    where the exact Q is not known.
    """

    rows: tuple[SolverRow, ...]
    reference_error: float = math.nan

    def pareto(self) -> list[SolverRow]:
        """The rows that no other beats: fewer evaluations, or a smaller mean error."""
        known = [row for row in self.rows if math.isfinite(row.evaluations + row.mean_error)]
        known.sort(key=lambda row: (row.evaluations, row.mean_error))
        front: list[SolverRow] = []
        for row in known:
            if not front or row.mean_error < front[-1].mean_error:
                front.append(row)
        return front

    def csv(self) -> str:
        """All rows as CSV, with a header."""
        text = io.StringIO()
        names = [f.name for f in dataclasses.fields(SolverRow)]
        writer = csv.DictWriter(text, names, lineterminator="\n")
        writer.writeheader()
        writer.writerows(dataclasses.asdict(row) for row in self.rows)
        return text.getvalue()

    def markdown(self) -> str:
        """A table of all rows; those on the Pareto front are bold."""
        front = {row.name for row in self.pareto()}
        lines = [
            "| configuration | evaluations (most) | time, ms | compile, s | mean error "
            "| worst error | RMSE to exact Q | dQ/da error | Kendall's τ | same best |",
            "|" + "---|" * 10,
        ]
        for row in self.rows:
            name = f"**{row.name}**" if row.name in front else row.name
            if row.failure:
                lines.append(f"| {name} | {row.failure.replace('|', '/')} |" + " |" * 8)
                continue
            count = f"{row.evaluations:.4g} ({row.most_evaluations:.4g})"
            if row.evaluations == row.most_evaluations:
                count = f"{row.evaluations:.4g}"
            cells = [
                name,
                "unknown" if math.isnan(row.evaluations) else count,
                f"{1e3 * row.seconds:.3g}",
                f"{row.compile_seconds:.2g}",
                f"{row.mean_error:.2e}",
                f"{row.worst_error:.2e}",
                "" if math.isnan(row.exact_error) else f"{row.exact_error:.3g}",
                f"{row.gradient_error:.2e}",
                f"{row.kendall_tau:.3f}",
                f"{row.best_agreement:.3f}",
            ]
            lines.append("| " + " | ".join(cells) + " |")
        return "\n".join(lines) + "\n"


class _Values(eqx.Module):
    """One configuration's results."""

    value: Float[Array | np.ndarray, "ensemble batch candidate"]
    gradient: Float[Array | np.ndarray, "batch candidate action"]
    evaluations: Int[Array, "ensemble *independent"]
    result: RESULTS


def compare_solvers(
    field: AbstractValueVelocity,
    batch: Batch,
    configurations: Iterable[SolverConfiguration] | None = None,
    *,
    z0: Float[Array, "batch"],
    candidates: Float[Array, "batch candidate action"] | None = None,
    num_candidates: int = 16,
    exact: Float[Array, "batch candidate"] | None = None,
    repeats: int = 5,
    key: Key | None = None,
    progress: bool = False,
) -> SolverComparison:
    """Integrates the same field from the same z0 with each solver.

    Q is the mean over the members. The reference is Dopri8 in float64 with adaptive steps of
    tolerance 1e-10.

    **Arguments:**

    - `field`: an ensemble of fields, stacked.
    - `batch`: transitions, of which only the observations and actions count.
    - `configurations`: `default_configurations()` by default.
    - `z0`: where each observation's integrals start, the same for all its candidates.
    - `candidates`: actions to rank in each observation, at least 2. By default the batch's own and
        `num_candidates - 1` uniform ones, drawn with `key`.
    - `exact`: the exact Q of the candidates, where it is known.
    - `repeats`: timed runs of each.
    - `progress`: show a progress bar where standard error is a terminal.

    **Returns:** a row for every configuration. One that fails has the reason in its row.

    **Raises:** `ValueError` if there are no configurations or too few candidates, if shapes do not
    fit, or if the reference itself fails: then the field is at fault.
    """
    chosen = default_configurations() if configurations is None else list(configurations)
    if not chosen:
        raise ValueError("There are no configurations to compare.")
    check_sizes(repeats=repeats)
    if candidates is None:
        candidates = _candidates(batch, num_candidates, key)
    if candidates.shape[1] < 2:
        raise ValueError(f"Ranking takes at least 2 candidates, got {candidates.shape[1]}.")
    if z0.shape != batch.reward.shape or candidates.shape[0] != len(batch):
        raise ValueError(
            f"z0 and candidates must have the batch's {len(batch)} rows, got shapes {z0.shape} and "
            f"{candidates.shape}."
        )
    arguments = (field, z0, batch.observation, candidates)
    with jax.enable_x64(True):
        wide = jax.tree.map(widen, arguments)
        reference = eqx.filter_jit(_values)(_REFERENCE, *wide)
        failure = _failure(reference)
        if failure:
            raise ValueError(f"The reference solution failed, so the field is at fault: {failure}")
        reference = dataclasses.replace(
            reference,
            value=np.asarray(reference.value),
            gradient=np.asarray(reference.gradient),
        )
    rows: list[SolverRow] = []
    with progress_bar("solver", total=len(chosen), show=progress) as show:
        for configuration in chosen:
            rows.append(_row(configuration, arguments, reference, exact, repeats))
            show(len(rows))
    known = (
        math.nan
        if exact is None
        else _rms(np.asarray(reference.value).mean(axis=0) - np.asarray(exact))
    )
    return SolverComparison(tuple(rows), known)


_REFERENCE = SolverConfiguration(diffrax.Dopri8(), tolerance=1e-10, max_steps=4096)


def _candidates(
    batch: Batch, number: int, key: Key | None
) -> Float[Array, "batch candidate action"]:
    check_sizes(num_candidates=number)
    if key is None:
        raise ValueError("Give candidates, or a key to draw them with.")
    shape = (len(batch), number - 1, batch.action.shape[1])
    others = jax.random.uniform(key, shape, minval=-1, maxval=1)
    return jnp.concatenate([batch.action[:, None], others], axis=1)


def _solve(
    configuration: SolverConfiguration,
    field: AbstractValueVelocity,
    z0: Float[Array, "batch"],
    observation: Float[Array, "batch observation"],
    candidates: Float[Array, "batch candidate action"],
) -> FlowSolution:
    """Every member's solution for all candidates in a row."""
    number = candidates.shape[1]
    z0, observation = jnp.repeat(z0, number), jnp.repeat(observation, number, axis=0)
    action = jnp.reshape(candidates, (len(z0), -1))
    return eqx.filter_vmap(lambda member: configuration.solve(member, z0, observation, action))(
        field
    )


_jitted_solve: Any = eqx.filter_jit(_solve)


def _values(
    configuration: SolverConfiguration,
    field: AbstractValueVelocity,
    z0: Float[Array, "batch"],
    observation: Float[Array, "batch observation"],
    candidates: Float[Array, "batch candidate action"],
) -> _Values:
    def total(candidates: Array) -> tuple[Array, FlowSolution]:
        solution = _solve(configuration, field, z0, observation, candidates)
        return jnp.sum(jnp.mean(solution.value, axis=0)), solution

    gradient, solution = jax.grad(total, has_aux=True)(candidates)
    value = jnp.reshape(solution.value, (-1, *candidates.shape[:2]))
    return _Values(value, gradient, solution.num_evaluations, solution.result)


def _failure(values: _Values) -> str:
    """The message of the first solve that failed, and how many did; empty if none."""
    codes = np.atleast_1d(np.asarray(values.result._value)).ravel()
    failed = np.flatnonzero(codes)
    if not failed.size:
        gradient = np.asarray(values.gradient)
        return "" if np.isfinite(gradient).all() else "dQ/da is not finite."
    first = jax.tree.map(lambda leaf: jnp.ravel(leaf)[failed[0]], values.result)
    which = f"{failed.size} of {codes.size} solves: " if codes.size > 1 else ""
    return which + str(RESULTS[first]).split(". ")[0].rstrip(".") + "."


def _row(
    configuration: SolverConfiguration,
    arguments: tuple,
    reference: _Values,
    exact: Float[Array, "batch candidate"] | None,
    repeats: int,
) -> SolverRow:
    try:
        values = eqx.filter_jit(_values)(configuration, *arguments)
        failure = _failure(values)
        if failure:
            return SolverRow(configuration.name, failure=failure)
        start = time.perf_counter()
        solve = _jitted_solve.lower(configuration, *arguments).compile()
        compiled = time.perf_counter()
        seconds = []
        for _ in range(repeats + 1):  # the first warms the caches
            begin = time.perf_counter()
            jax.block_until_ready(solve(configuration, *arguments).value)
            seconds.append(time.perf_counter() - begin)
    except (ValueError, TypeError, RuntimeError) as error:  # its row says why; the others go on
        return SolverRow(configuration.name, failure=" ".join(str(error).split()))

    counts = np.asarray(values.evaluations)
    error = np.abs(np.asarray(values.value, np.float64) - reference.value)
    value = np.asarray(values.value, np.float64).mean(axis=0)
    best = np.asarray(reference.value).mean(axis=0)
    gradient_error = np.linalg.norm(np.asarray(values.gradient) - reference.gradient, axis=-1)
    return SolverRow(
        name=configuration.name,
        evaluations=float(counts.mean()) if counts.min() >= 0 else math.nan,
        most_evaluations=float(counts.max()) if counts.min() >= 0 else math.nan,
        seconds=statistics.median(seconds[1:]),
        compile_seconds=compiled - start,
        mean_error=float(error.mean()),
        worst_error=float(error.max()),
        exact_error=math.nan if exact is None else _rms(value - np.asarray(exact)),
        gradient_error=float(
            gradient_error.mean() / np.linalg.norm(reference.gradient, axis=-1).mean()
        ),
        kendall_tau=rank_agreement(value, best),
        best_agreement=float(np.mean(value.argmax(axis=1) == best.argmax(axis=1))),
    )


def _rms(error: Float[np.ndarray, "..."]) -> float:
    return float(np.sqrt(np.mean(np.square(error))))
