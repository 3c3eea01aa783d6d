"""`floq plot`: learning curves."""

import dataclasses
from collections.abc import Sequence
from typing import Literal

import tyro

from ..training import Run
from .output import say


def run(arguments: list[str]) -> None:
    from ..plotting import XAxis, compare, final_values, learning_curves

    @dataclasses.dataclass
    class Plot:
        runs: tyro.conf.Positional[tuple[str, ...]]
        """The folders of one or more runs."""
        out: str = "learning_curves.png"
        """The figure's file."""
        metric: Literal["success", "returns", "lengths"] = "success"
        """The quantity that is drawn."""
        x: XAxis = "updates"
        """The quantity that it is drawn against."""
        aggregate: Literal["mean", "iqm", "none"] = "mean"
        """How runs that differ only in their seed are drawn: by their mean, interquartile mean, or
        each."""
        pool_tasks: bool = False
        """Aggregate over the tasks of an environment as well."""
        published: bool = True
        """Draw the published success beside that of the runs, where it is known."""

    options = tyro.cli(Plot, prog="floq plot", args=arguments)
    if not options.runs:
        raise ValueError("Nothing to plot: give the folder of at least one run.")
    runs = [Run(folder) for folder in options.runs]
    shown = {
        "metric": options.metric,
        "x": options.x,
        "aggregate": None if options.aggregate == "none" else options.aggregate,
        "pool_tasks": options.pool_tasks,
    }
    published = options.published and options.metric == "success"
    references = _published_lines(runs) if published else {}
    path = learning_curves(runs, options.out, references=references, **shown)
    say(final_values(compare(runs, **shown), metric=options.metric, x=options.x))
    say(f"wrote {path}")


def _published_lines(runs: Sequence[Run]) -> dict[str, float]:
    """The published success of the runs' agents on their environments, by a label."""
    from ..data import parse_name
    from ..presets import published_rates

    methods: dict[tuple[str, int], list[str]] = {}
    for agent, name in dict.fromkeys((r.config.agent_name, r.config.task) for r in runs):
        for label, rate in published_rates(agent, name).items():
            known = methods.setdefault((parse_name(name).environment, rate), [])
            if label not in known:
                known.append(label)
    return {
        f"{', '.join(labels)} on {name}: published offline, mean of five tasks": rate / 100
        for (name, rate), labels in methods.items()
    }
