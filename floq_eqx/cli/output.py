"""What the program prints."""

import os
import sys
import warnings
from collections.abc import Sequence
from typing import Any

from ..training import Run


def note(message: Warning | str, *_: Any) -> None:
    print(f"floq: note: {message}", file=sys.stderr)


def say(line: str) -> None:
    """Prints a line; that nobody reads any more ends no run."""
    try:
        print(line, flush=True)
    except BrokenPipeError:
        sys.stdout = open(os.devnull, "w")  # noqa: SIM115  # for what is still to come


def finish(runs: Sequence[Run]) -> None:
    """Draws the runs' curves and says where everything is; they are whole whatever comes of it."""
    for run in runs:
        _finish(run)
    for run in runs[:1]:
        print_published(run)


def _finish(run: Run) -> None:
    holds = "checkpoints and tables"
    if run.config.environment is None and not run.table("evaluation.csv"):
        say(f"done: {run.folder} holds {holds}; nothing was evaluated, without an environment")
        return
    try:
        from ..plotting import learning_curves

        told = any(row["success"] == row["success"] for row in run.table("evaluation.csv"))
        figure = learning_curves(
            [run],
            run.folder / "learning_curve.png",
            metric="success" if told else "returns",
            x="updates" if run.config.num_updates else "env_steps",
        )
        holds = f"checkpoints, tables and {figure.name}"
    except Exception as error:
        warnings.warn(
            f"the figure could not be drawn: {type(error).__name__}: {error}. floq plot "
            f"{run.folder} draws it.",
            stacklevel=1,
        )
    say(f"done: {run.folder} holds {holds}")


def print_published(run: Run) -> None:
    from ..presets import published

    line = published(run.config.agent_name, run.config.task)
    if line and run.config.online is None:
        say(line)
