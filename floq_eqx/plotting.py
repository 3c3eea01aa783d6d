"""Figures; matplotlib is imported when the first is drawn."""

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from .training import Run


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

    **Raises:** `ValueError` if there is nothing to draw.
    """
    tables = {run: run.table("evaluation.csv") for run in runs}
    empty = [str(run.folder) for run, rows in tables.items() if not rows]
    if empty or not tables:
        raise ValueError(f"Nothing to plot: no evaluation yet in {', '.join(empty) or 'no run'}.")
    figure, axes = _axes()
    for run, rows in tables.items():
        if metric not in rows[0]:
            raise ValueError(f"metric must be success, returns or lengths, got {metric!r}.")
        steps = [row["step"] for row in rows]
        low, high = zip(*(_interval(row, metric) for row in rows), strict=True)
        label = f"{run.folder.name} ({run.config.agent_name}, seed {run.config.seed})"
        (line,) = axes.plot(steps, [row[metric] for row in rows], marker="o", label=label)
        axes.fill_between(steps, low, high, alpha=0.2, color=line.get_color())
    axes.set_xlabel("updates")
    axes.set_ylabel({"success": "success rate", "returns": "return"}.get(metric, "length"))
    if metric == "success":
        axes.set_ylim(-0.02, 1.02)
    axes.legend(fontsize="small")
    axes.set_title(runs[0].config.environment, fontsize="medium")
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
    temporary = path.with_name(f"{path.stem}.tmp{path.suffix}")
    figure.savefig(temporary, dpi=150)
    os.replace(temporary, path)
    return path
