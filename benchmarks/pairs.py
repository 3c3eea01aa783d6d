"""Any critic with any policy, on the default task, by the budget of `benchmarks/agents.py`.

    python -m benchmarks.pairs --out pairs.csv
    python -m benchmarks.pairs --out pairs.csv --critics flow td --policies one_step awr

A policy's one knob, if it has one, is tuned for every critic: three values, each for half the
updates, on a seed of its own. The best value then takes `--seeds`. A run is a row of the CSV file;
runs that are there are not done again, so that a command which was interrupted goes on, and two can
share the work with `--critics` or `--policies`. The table, as Markdown, comes last.
"""

import argparse
import dataclasses
from pathlib import Path
from typing import Any

from floq_eqx.agents import composed, with_options
from floq_eqx.evaluation import make_environments

from .agents import (
    ALPHA,
    EPISODES,
    INVERSE_TEMPERATURE,
    SEEDS,
    SHARED,
    TASK,
    TUNING_SEED,
    UPDATES,
    WIDTH,
    Entry,
    Runs,
    find,
    scaled,
    spread,
)


@dataclasses.dataclass(frozen=True)
class Column:
    """A policy: its kind, with other options than the pair's own, and the knob with its values."""

    title: str
    kind: str
    options: dict[str, Any] = dataclasses.field(default_factory=dict)
    knob: str | None = None
    values: tuple[float, ...] = ()


CRITICS = ("flow", "td", "quantile", "categorical", "implicit")
POLICIES = {
    "one_step": Column("one_step", "one_step", {}, *ALPHA),
    "awr": Column("gaussian, awr", "gaussian", {"policy.extraction": "awr"}, *INVERSE_TEMPERATURE),
    "ddpgbc": Column(
        "gaussian, ddpgbc",
        "gaussian",
        {"policy.extraction": "ddpgbc"},
        "policy.cloning_weight",
        (0.3, 1.0, 3.0),
    ),
    "behavioural_flow": Column(
        "behavioural_flow, best of 16", "behavioural_flow", {"selection.num_candidates": 16}
    ),
}


def entry(critic: str, policy: str) -> Entry:
    """The pair, with its label in the file."""
    column = POLICIES[policy]
    agent = with_options(scaled(composed(critic, column.kind), WIDTH, SHARED), column.options)
    return Entry(f"{critic} x {policy}", agent, column.knob, column.values)


def table(
    rows: dict[tuple[str, str], list[dict[str, Any]]], critics: list[str], policies: list[str]
) -> str:
    """Success of each pair, a row a critic and a column a policy, at the knob's best value."""
    titles = [POLICIES[policy].title for policy in policies]
    lines = [f"| critic | {' | '.join(titles)} |", "|---" * (len(policies) + 1) + "|"]
    for critic in critics:
        cells = []
        for policy in policies:
            found = rows[critic, policy]
            value = found[0]["value"]
            at = "" if value is None else f" at {value:g}"
            cells.append(spread([row["success"] for row in found]) + at)
        lines.append(f"| {critic} | {' | '.join(cells)} |")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--out", type=Path, default=Path("pairs.csv"), help="the CSV file")
    parser.add_argument("--data", help="the dataset (.npz); by default 100 collected episodes")
    parser.add_argument("--updates", type=int, default=UPDATES)
    parser.add_argument("--episodes", type=int, default=EPISODES, help="of each evaluation")
    parser.add_argument("--critics", nargs="+", choices=CRITICS, default=list(CRITICS))
    parser.add_argument("--policies", nargs="+", choices=POLICIES, default=list(POLICIES))
    parser.add_argument("--seeds", nargs="+", type=int, default=list(SEEDS))
    options = parser.parse_args()
    if TUNING_SEED in options.seeds:
        parser.error(f"seed {TUNING_SEED} is that of tuning")

    environments = make_environments(TASK, 10)
    runs = Runs(options.out, find(options.data), environments, options.updates, options.episodes)
    rows = {
        (critic, policy): runs.train(entry(critic, policy), options.seeds)
        for critic in options.critics
        for policy in options.policies
    }
    environments.close()
    print("\n" + table(rows, options.critics, options.policies) + "\n")
    print(
        f"Success over {options.episodes} episodes after {options.updates:,} updates: mean ± "
        f"sample standard deviation over the seeds {', '.join(map(str, options.seeds))}, at the "
        "best of three values of the policy's knob, each tried for "
        f"{options.updates // 2:,} updates on seed {TUNING_SEED}:"
    )
    for policy in options.policies:
        column = POLICIES[policy]
        values = ", ".join(f"{value:g}" for value in column.values)
        print(f"- {column.title}: {f'{column.knob} of {values}' if column.knob else 'no knob'}")


if __name__ == "__main__":
    main()
