"""Figures; matplotlib is imported when the first is drawn."""

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

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


def _interval(row: dict[str, float], metric: str) -> tuple[float, float]:
    count, mean = row["episodes"], row[metric]
    if metric != "success":
        error = row[f"{metric}_std"] / count**0.5
        return mean - error, mean + error
    z = 1.96
    centre = (mean + z**2 / (2 * count)) / (1 + z**2 / count)
    half = z / (1 + z**2 / count) * (mean * (1 - mean) / count + (z / (2 * count)) ** 2) ** 0.5
    return centre - half, centre + half


def _axes() -> tuple[Any, Any]:
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(6, 4), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots()
    axes.grid(alpha=0.3)
    return figure, axes


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
