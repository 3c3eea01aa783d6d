"""Figures and comparisons of runs; matplotlib is imported when the first figure is drawn."""

import dataclasses
import json
import os
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, TypeAlias, get_args

import numpy as np

from ._checks import check_choice
from .analysis import SolverComparison
from .data.files import finish, unfinished
from .training import Run

_LABELS = {"success": "success rate", "returns": "return", "lengths": "length"}
_X_LABELS = {"updates": "updates", "env_steps": "environment steps", "seconds": "seconds"}

Aggregate: TypeAlias = Literal["mean", "iqm"]
"""The mean of a group's runs, or its interquartile mean: without the best and the worst quarter."""

XAxis: TypeAlias = Literal["updates", "env_steps", "seconds"]
"""Updates, environment steps, or the time since the start of a run."""


@dataclasses.dataclass(frozen=True)
class Curve:
    """A metric of one run or of a group of runs, an entry an evaluation in each array.

    **Attributes:**

    - `label`: what it is of.
    - `num_runs`: how many runs.
    - `x`: where it was evaluated, in what the curve is drawn against.
    - `value`: the run's, or the group's aggregate.
    - `low`, `high`: the ends of its 95 % interval; NaN where there is none.
    """

    label: str
    num_runs: int
    x: np.ndarray
    value: np.ndarray
    low: np.ndarray
    high: np.ndarray


def compare(
    runs: Sequence[Run],
    *,
    metric: str = "success",
    aggregate: Aggregate | None = "mean",
    x: XAxis = "updates",
    pool_tasks: bool = False,
) -> tuple[Curve, ...]:
    """A metric of the evaluations, for groups of runs that differ only in their seed.

    A group's interval is that of a percentile bootstrap over its runs, each task's by themselves
    (stratified; Agarwal et al., arXiv 2108.13264). With few seeds it is too narrow; with one there
    is none. A group has the evaluations that all of its runs have, at the mean of their times.

    **Arguments:**

    - `runs`: at least one, each with an evaluation. Configurations are compared without the seed
        and the paths of the data and of the run that an online one began from.
    - `metric`: `"success"`, `"returns"` or `"lengths"`.
    - `aggregate`: of a group; the interquartile mean of fewer than four runs is their mean. `None`
        for every run by itself: then success has the 95 % Wilson score interval of its episodes,
        another metric a standard error of their mean on each side.
    - `x`: what evaluations are counted in.
    - `pool_tasks`: put runs that also differ in the task of their environment into one group.

    **Raises:** `ValueError` if a run has no evaluation, or none that counts `x`; if a group has a
    seed twice, no evaluation in common or a NaN; for `pool_tasks` of runs by themselves; and for
    an unknown metric, aggregate or x.
    """
    if metric not in _LABELS:
        raise ValueError(f"metric must be one of {', '.join(_LABELS)}, got {metric!r}.")
    if aggregate is not None:
        check_choice("aggregate", aggregate, Aggregate)
    elif pool_tasks:
        raise ValueError("pool_tasks means nothing where every run stands by itself (aggregate).")
    check_choice("x", x, XAxis)
    tables = [run.table("evaluation.csv") for run in runs]
    empty = [str(run.folder) for run, rows in zip(runs, tables, strict=True) if not rows]
    if empty or not tables:
        never = any(run.config.environment is None for run in runs)
        hint = "; there is none where a run has no environment" if never else ""
        raise ValueError(
            f"Nothing to plot: no evaluation yet in {', '.join(empty) or 'no run'}{hint}."
        )
    members = [_Member.of(run, rows, x) for run, rows in zip(runs, tables, strict=True)]
    if aggregate is None:
        return tuple(member.curve(metric) for member in members)
    groups: dict[str, list[_Member]] = {}
    for member in members:
        settings = member.settings(pool_tasks=pool_tasks)
        groups.setdefault(json.dumps(settings, sort_keys=True), []).append(member)
    labels = _differences([json.loads(key) for key in groups])
    return tuple(
        _aggregated(label, group, metric, aggregate)
        for label, group in zip(labels, groups.values(), strict=True)
    )


def final_values(curves: Sequence[Curve], *, metric: str = "success", x: XAxis = "updates") -> str:
    """A Markdown table of where each of the curves ends, with its interval.

    **Arguments:** `curves`: from [`floq_eqx.plotting.compare`][], with the same `metric` and `x`.
    """
    lines = [f"| runs | {_X_LABELS[x]} | {_LABELS[metric]} | 95 % interval |", "|---|---|---|---|"]
    for curve in curves:
        low, high = curve.low[-1], curve.high[-1]
        interval = "–" if np.isnan(low) else f"{low:.4g} to {high:.4g}"
        lines.append(f"| {curve.label} | {curve.x[-1]:,.0f} | {curve.value[-1]:.4g} | {interval} |")
    return "\n".join(lines) + "\n"


def learning_curves(
    runs: Sequence[Run],
    path: str | os.PathLike[str],
    *,
    metric: str = "success",
    aggregate: Aggregate | None = None,
    x: XAxis = "updates",
    pool_tasks: bool = False,
    references: Mapping[str, float] | None = None,
) -> Path:
    """Draws a metric of the evaluations, a line a run or a group of seeds, with its interval.

    **Arguments:**

    - `runs`, `metric`, `aggregate`, `x`, `pool_tasks`: as in [`floq_eqx.plotting.compare`][].
    - `path`: the figure's file; its suffix decides the format.
    - `references`: values to draw as dashed lines, by what the legend says of them.

    **Returns:** the path.

    **Raises:** as `compare`; `ValueError` for an unknown format.
    """
    curves = compare(runs, metric=metric, aggregate=aggregate, x=x, pool_tasks=pool_tasks)
    figure, axes = _axes()
    for curve in curves:
        (line,) = axes.plot(curve.x, curve.value, marker="o", label=curve.label)
        axes.fill_between(curve.x, curve.low, curve.high, alpha=0.2, color=line.get_color())
    references = references or {}
    for index, (label, value) in enumerate(references.items(), len(curves)):
        axes.axhline(value, linestyle="--", color=f"C{index}", label=label)
    axes.set_xlabel(_X_LABELS[x])
    axes.set_ylabel(_LABELS[metric] + (", interquartile mean" if aggregate == "iqm" else ""))
    if metric == "success":
        axes.set_ylim(-0.02, 1.02)
    # Below the axes, where it covers no line.
    figure.set_figheight(4 + 0.2 * (len(curves) + len(references)))
    figure.legend(loc="outside lower center", fontsize="small")
    environments = dict.fromkeys(run.config.task for run in runs)
    axes.set_title("\n".join(environments), fontsize="medium")
    return _save(figure, Path(path))


def solver_comparison(comparison: SolverComparison, path: str | os.PathLike[str]) -> Path:
    """Draws error and ranking agreement of each configuration against evaluations of the field.

    A line a solver with equal steps, crosses for adaptive steps, and rings around the Pareto front
    of mean error and evaluations. Failed configurations and those whose evaluations are not known
    are left out.

    **Arguments:** the `comparison`, and the figure's `path`, whose suffix decides the format.

    **Returns:** the path.

    **Raises:** `ValueError` if there is nothing to draw, and for an unknown format.
    """
    known = [row for row in comparison.rows if row.evaluations + row.mean_error < float("inf")]
    if not known:
        raise ValueError("Nothing to plot: every configuration failed.")
    figure, (left, right) = _axes(2)
    front = comparison.pareto()
    for axes, metric in ((left, "mean_error"), (right, "kendall_tau")):
        kinds = dict.fromkeys(row.name.split(" tol=")[0].split(" K=")[0] for row in known)
        for index, kind in enumerate(kinds):
            color = f"C{index}"
            equal = [row for row in known if row.name.startswith(f"{kind} K=")]
            adaptive = [row for row in known if row.name.startswith(f"{kind} tol=")]
            for rows, style in ((equal, {"marker": "."}), (adaptive, {"marker": "x", "ls": ":"})):
                x = [row.evaluations for row in rows]
                y = [getattr(row, metric) for row in rows]
                label = f"{kind}{' adaptive' if rows is adaptive else ''}"
                if rows:
                    axes.plot(x, y, color=color, label=label, **style)
        axes.scatter(
            [row.evaluations for row in front],
            [getattr(row, metric) for row in front],
            s=70,
            facecolors="none",
            edgecolors="black",
            label="Pareto front",
        )
        axes.set_xscale("log", base=2)
        axes.set_xlabel("evaluations of the field")
    left.set_yscale("log")
    left.set_ylabel("mean error of Q")
    right.set_ylabel("Kendall's τ with the reference")
    right.legend(fontsize="x-small")
    return _save(figure, Path(path))


@dataclasses.dataclass(frozen=True)
class _Member:
    """A run among others: its configuration, and its evaluations by their step."""

    run: Run
    plain: dict[str, Any]
    rows: dict[float, dict[str, float]]
    x: dict[float, float]

    @classmethod
    def of(cls, run: Run, rows: Sequence[dict[str, float]], x: XAxis) -> "_Member":
        # The step of an online run counts environment steps.
        column = "step" if x == "updates" and not {"updates", "env_steps"} & set(rows[0]) else x
        if column not in rows[0]:
            others = [name for name in get_args(XAxis) if name != x and name in rows[0]]
            raise ValueError(
                f"The evaluations of {run.folder} do not count {_X_LABELS[x]}: there is no column "
                f"{column}. Draw them against {' or '.join(others or ['updates'])}."
            )
        plain = json.loads((run.folder / "config.json").read_text())
        by_step = {row["step"]: row for row in rows}
        return cls(run, plain, by_step, {step: row[column] for step, row in by_step.items()})

    def settings(self, *, pool_tasks: bool) -> dict[str, Any]:
        """What the members of a group have in common, flat."""
        apart = ("seed", "data", "facts", "agent")
        kept = {key: value for key, value in self.plain.items() if key not in apart}
        kept |= self.plain["agent"]
        if "online" in kept:
            kept["online"] = {k: v for k, v in kept["online"].items() if k != "start"}
        if pool_tasks:
            kept["environment"] = re.sub(r"-task\d+", "", kept["environment"])
        return dict(_flat(kept)) | {"agent": self.run.config.agent_name}

    def curve(self, metric: str) -> Curve:
        config = self.run.config
        label = f"{self.run.folder.resolve().name} ({config.agent_name}, seed {config.seed})"
        rows = self.rows.values()
        low, high = zip(*(_interval(row, metric) for row in rows), strict=True)
        values = ([*self.x.values()], [row[metric] for row in rows], low, high)
        return Curve(label, 1, *map(np.asarray, values))


def _flat(settings: dict[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for name, value in settings.items():
        if isinstance(value, dict):
            yield from _flat(value, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}", value


def _differences(groups: Sequence[dict[str, Any]]) -> list[str]:
    """A label for each group: its agent, and what sets it apart from others of that agent."""
    labels = []
    for settings in groups:
        others = [other for other in groups if other["agent"] == settings["agent"]]
        names = [name for name in settings if any(o.get(name) != settings[name] for o in others)]
        if "environment" not in names and len({g["environment"] for g in groups}) > 1:
            names.insert(0, "environment")
        shown = [f"{'' if n == 'environment' else f'{n}='}{settings[n]}" for n in names]
        labels.append(", ".join([settings["agent"], *shown]))
    return labels


def _aggregated(label: str, group: Sequence[_Member], metric: str, aggregate: Aggregate) -> Curve:
    strata: dict[str, dict[int, _Member]] = {}
    for member in group:
        task, seed = member.plain["environment"], member.run.config.seed
        twin = strata.setdefault(task, {}).setdefault(seed, member)
        if twin is not member:
            raise ValueError(
                f"{twin.run.folder} and {member.run.folder} have the same configuration and seed, "
                "so the second is no further sample: leave one out, or aggregate nothing."
            )
    steps = sorted(set.intersection(*(set(member.rows) for member in group)))
    if not steps:
        folders = ", ".join(str(member.run.folder) for member in group)
        raise ValueError(f"These runs of one group have no evaluation at the same step: {folders}.")
    for member in group:
        if np.isnan([member.rows[step][metric] for step in steps]).any():
            raise ValueError(
                f"The {_LABELS[metric]} of {member.run.folder} is NaN: its environment does not "
                f"tell it. Choose another metric: {', '.join(m for m in _LABELS if m != metric)}."
            )
    samples = tuple(
        np.array([[member.rows[step][metric] for step in steps] for member in stratum.values()])
        for stratum in strata.values()
    )
    low, high = _bootstrap(samples, aggregate)
    counts = f"seed {group[0].run.config.seed}" if len(group) == 1 else f"{len(group)} seeds"
    if len(strata) > 1:
        counts = f"{len(group)} runs of {len(strata)} tasks"
    parts = [label, counts]
    if any(len(member.rows) > len(steps) for member in group):
        parts.append(f"the {len(steps)} evaluations of all")
    return Curve(
        label=", ".join(parts),
        num_runs=len(group),
        x=np.mean([[member.x[step] for step in steps] for member in group], axis=0),
        value=_statistic(aggregate)(*samples, axis=0),
        low=low,
        high=high,
    )


def _statistic(aggregate: Aggregate) -> Callable[..., np.ndarray]:
    from scipy import stats

    def statistic(*samples: np.ndarray, axis: int) -> np.ndarray:
        values = np.concatenate(samples, axis=axis)
        return stats.trim_mean(values, 0.25 if aggregate == "iqm" else 0.0, axis=axis)

    return statistic


def _bootstrap(
    samples: tuple[np.ndarray, ...], aggregate: Aggregate
) -> tuple[np.ndarray, np.ndarray]:
    """The 95 % interval of an aggregate over the first axis of all samples, each by itself."""
    from scipy import stats

    if min(map(len, samples)) < 2:
        nothing = np.full(samples[0].shape[1], np.nan)
        return nothing, nothing
    interval = stats.bootstrap(
        samples,
        _statistic(aggregate),
        axis=0,
        vectorized=True,
        method="percentile",
        n_resamples=2000,
        batch=100,
        random_state=np.random.default_rng(0),  # pyright: ignore  # `rng` from SciPy 1.15 on
    ).confidence_interval
    return interval.low, interval.high


def _interval(row: dict[str, float], metric: str) -> tuple[float, float]:
    count, mean = row["episodes"], row[metric]
    if metric != "success":
        error = row[f"{metric}_std"] / count**0.5
        return mean - error, mean + error
    z = 1.96
    centre = (mean + z**2 / (2 * count)) / (1 + z**2 / count)
    half = z / (1 + z**2 / count) * (mean * (1 - mean) / count + (z / (2 * count)) ** 2) ** 0.5
    return centre - half, centre + half


def _axes(columns: int = 1) -> tuple[Any, Any]:
    # A notebook hands its backend on to the programs it starts, where matplotlib may not know it.
    inherited = os.environ.pop("MPLBACKEND", None)
    try:
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure
    finally:
        if inherited is not None:
            os.environ["MPLBACKEND"] = inherited

    figure = Figure(figsize=(6 if columns == 1 else 5 * columns, 4), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots(1, columns, squeeze=False)[0]
    for one in axes:
        one.grid(alpha=0.3)
    return figure, axes[0] if columns == 1 else axes


def _save(figure: Any, path: Path) -> Path:
    """Writes a figure that appears under its name only when it is complete."""
    kinds = figure.canvas.get_supported_filetypes()
    kind = path.suffix[1:].lower()
    if kind not in kinds:
        raise ValueError(f"{path} must end in one of {', '.join(f'.{k}' for k in sorted(kinds))}.")
    with unfinished(path) as file:
        figure.savefig(file, format=kind, dpi=150)
        finish(file, path)
    return path
