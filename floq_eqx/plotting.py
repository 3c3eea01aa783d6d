"""Figures; matplotlib is imported when the first is drawn."""

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from .analysis.solvers import SolverComparison
from .data.ogbench import finish, unfinished
from .training import Run

_LABELS = {"success": "success rate", "returns": "return", "lengths": "length"}


def learning_curves(
    runs: Sequence[Run], path: str | os.PathLike[str], *, metric: str = "success"
) -> Path:
    """Draws a metric of the evaluations against updates, a line a run.

    Success has the 95 % Wilson score interval of its episodes as a band; other metrics a standard
    error of the mean on each side.

    **Arguments:**

    - `runs`: at least one, each with an evaluation.
    - `path`: the figure's file; its suffix decides the format.
    - `metric`: `"success"`, `"returns"` or `"lengths"`.

    **Returns:** the path.

    **Raises:** `ValueError` if there is nothing to draw, and for an unknown metric or format.
    """
    if metric not in _LABELS:
        raise ValueError(f"metric must be one of {', '.join(_LABELS)}, got {metric!r}.")
    tables = [run.table("evaluation.csv") for run in runs]
    empty = [str(run.folder) for run, rows in zip(runs, tables, strict=True) if not rows]
    if empty or not tables:
        raise ValueError(f"Nothing to plot: no evaluation yet in {', '.join(empty) or 'no run'}.")
    environments = dict.fromkeys(run.config.environment for run in runs)
    figure, axes = _axes()
    for run, rows in zip(runs, tables, strict=True):
        steps = [row["step"] for row in rows]
        low, high = zip(*(_interval(row, metric) for row in rows), strict=True)
        label = f"{run.folder.resolve().name} ({run.config.agent_name}, seed {run.config.seed})"
        (line,) = axes.plot(steps, [row[metric] for row in rows], marker="o", label=label)
        axes.fill_between(steps, low, high, alpha=0.2, color=line.get_color())
    axes.set_xlabel("updates")
    axes.set_ylabel(_LABELS[metric])
    if metric == "success":
        axes.set_ylim(-0.02, 1.02)
    axes.legend(fontsize="small")
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
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

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
