"""Every agent on the default task: the same data, sizes, schedule and number of updates.

    python -m benchmarks.agents tune  --out FOLDER   # each agent's own knob, one seed a value
    python -m benchmarks.agents train --out FOLDER   # the best value, three seeds
    python -m benchmarks.agents speed --out FOLDER   # updates a second, on an idle machine
    python -m benchmarks.agents table --out FOLDER   # the table, as Markdown

A run is a row of `FOLDER/runs.csv`; runs that are there are not done again, so that a command which
was interrupted goes on, and two can share the work with `--agents`. `train` tunes what is not tuned
yet. `benchmarks/pairs.py` does the same for critics and policies that make no agent of a name.
"""

import argparse
import csv
import dataclasses
import io
import statistics
import time
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import jax

from floq_eqx.agents import RECIPES, ActorCritic, with_options
from floq_eqx.data import Data
from floq_eqx.evaluation import evaluate, make_environments
from floq_eqx.networks import MLPConfig
from floq_eqx.presets import laptop, small
from floq_eqx.training import train_steps
from floq_eqx.training.gathering import find_data

TASK = "cube-single-play-singletask-task1-v0"
UPDATES, BATCH, EPISODES, WIDTH = 30_000, 128, 50, 128
SEEDS, TUNING_SEED = (0, 1, 2), 100

# Beside the sizes of the laptop preset, and where an agent has them.
SHARED = {"learning_rate": 1e-3, "policy.flow_steps": 5}

# The option that ties each to the data, or sets how greedy it is, and three values of it.
ALPHA = ("policy.alpha", (100.0, 300.0, 1000.0))
INVERSE_TEMPERATURE = ("policy.inverse_temperature", (1.0, 3.0, 10.0))
KNOBS: dict[str, tuple[str, tuple[Any, ...]]] = {
    "floq": ALPHA,
    "fql": ALPHA,
    "qc": ALPHA,
    "iqn": ALPHA,
    "c51": ALPHA,
    "value_flows": ("critic.bcfm_weight", (0.5, 1.0, 3.0)),  # α moves the one-step actor alone
    "sorl": ("policy.q_weight", (3.0, 10.0, 30.0)),
    "evor": ("critic.value_temperature", (0.3, 1.0, 3.0)),
    "iql": INVERSE_TEMPERATURE,
    "ifql": ("selection.num_candidates", (8, 32, 128)),
    "rebrac": ("policy.cloning_weight", (0.1, 1.0, 10.0)),
}
# Variants that take another agent's best value, and what makes some affordable here.
VARIANTS: dict[str, tuple[str, dict[str, Any]]] = {
    "floq, trained at t = 0 only": ("floq", {"critic.train_at_zero_only": True}),
    # Of a single sample the two backups are the same.
    "floq, m = 4": ("floq", {"critic.num_noise": 4}),
    "floq, m = 4, distributional backup": (
        "floq",
        {"critic.num_noise": 4, "critic.backup": "distributional"},
    ),
}
# Chunks of actions, with the α that floq and FQL were tuned to without them.
MANY = {"critic.ensemble_size": 10, "critic.aggregation": "pessimistic", "critic.rho": 0.5}
CHUNKS: dict[str, tuple[str, dict[str, Any]]] = {
    "floq, h = 1": ("floq", {}),
    "floq, h = 5": ("floq", {"chunk": 5}),
    "floq, h = 5, 10 members": ("floq", {"chunk": 5} | MANY),
    "fql, h = 1": ("fql", {}),
    "qc, h = 5": ("qc", {}),
    "qc, h = 5, 10 members": ("qc", MANY),
}
FIXED: dict[str, dict[str, Any]] = {
    "value_flows": {
        "selection.num_candidates": 4,
        "next_selection.num_candidates": 4,
        "policy.alpha": 300.0,
    },
    "sorl": {"policy.max_steps": 4, "policy.action_steps": 4},
}


@dataclasses.dataclass(frozen=True)
class Entry:
    """What has a place in the table.

    `knob` is the option of the agent that is tuned, over `values`, if there is one; `tuned_as`
    another entry, whose best value this one takes.
    """

    label: str
    agent: ActorCritic
    knob: str | None = None
    values: tuple[Any, ...] = ()
    tuned_as: "Entry | None" = None

    def make(self, num_updates: int, value: Any = None) -> ActorCritic:
        changes = {} if self.knob is None or value is None else {self.knob: value}
        return with_options(self.agent, {"decay_updates": num_updates} | changes)


def scaled(agent: ActorCritic, width: int, settings: Mapping[str, Any]) -> ActorCritic:
    """The agent at the sizes of the laptop preset, but with two layers of this width in each
    network, and with those of the settings that it has.
    """
    agent = small(agent)
    changes = {name: value for name, value in settings.items() if "." not in name}
    for part in ("critic", "policy"):
        module = getattr(agent, part)
        for f in dataclasses.fields(module) if module is not None else ():
            name = f"{part}.{f.name}"
            if isinstance(getattr(module, f.name), MLPConfig):
                changes[f"{name}.hidden_sizes"] = (width, width)
            elif name in settings:
                changes[name] = settings[name]
    return with_options(agent, changes)


def entries() -> dict[str, Entry]:
    """By label, every agent and variant."""
    found: dict[str, Entry] = {}
    for label in (*RECIPES, *VARIANTS):
        name, changes = VARIANTS.get(label, (label, {}))
        agent = scaled(RECIPES[name](), WIDTH, SHARED)
        agent = with_options(agent, FIXED.get(name, {}) | changes)
        found[label] = Entry(label, agent, *KNOBS.get(name, ()), tuned_as=found.get(name))
    for label, (name, changes) in CHUNKS.items():
        agent = scaled(RECIPES[name](), WIDTH, SHARED)
        found[label] = Entry(label, with_options(agent, {"policy.alpha": 300.0} | changes))
    return found


@dataclasses.dataclass
class Runs:
    """The runs of a table, each a row of a CSV file, where what is there is not done again."""

    path: Path
    data: Data
    environments: Any
    num_updates: int = UPDATES
    num_episodes: int = EPISODES

    def run(self, entry: Entry, *, seed: int, num_updates: int, value: Any) -> dict[str, Any]:
        """Trains and evaluates once; or what the file says of that."""
        asked = {
            "label": entry.label,
            "value": value,
            "seed": seed,
            "updates": num_updates,
            "episodes": self.num_episodes,
        }
        for row in read(self.path):
            if asked.items() <= row.items():
                return row
        agent = entry.make(num_updates, value).for_data(self.data)
        init_key, train_key = jax.random.split(jax.random.key(seed))
        sizes = self.data.observation_size, self.data.action_size
        state = agent.init(*sizes, key=init_key)
        state, metrics = train_steps(
            agent, state, self.data, num_updates=num_updates, batch_size=BATCH, key=train_key
        )
        try:
            result = evaluate(
                agent, state, self.environments, num_episodes=self.num_episodes, seed=1000 * seed
            )
            success = float(result.success.mean())
        except FloatingPointError:  # A run that diverged has no success; its loss tells.
            success = 0.0
        row = asked | {"success": success, "loss": float(metrics["loss"][-1])}
        write(self.path, [row])
        print(row, flush=True)
        return row

    def tune(self, entry: Entry) -> Any:
        """The value of the highest success on half the updates; of equals the middle one first."""
        if entry.knob is None:
            return None
        entry = entry.tuned_as or entry
        budget = {"seed": TUNING_SEED, "num_updates": self.num_updates // 2}
        success = [self.run(entry, value=v, **budget)["success"] for v in entry.values]
        middle = len(success) // 2
        best = max(range(len(success)), key=lambda i: (success[i], -abs(i - middle)))
        return entry.values[best]

    def train(self, entry: Entry, seeds: Iterable[int]) -> list[dict[str, Any]]:
        """Every seed at the best value."""
        value = self.tune(entry)
        return [
            self.run(entry, seed=seed, num_updates=self.num_updates, value=value) for seed in seeds
        ]


def speed(entry: Entry, data: Data) -> dict[str, Any]:
    """Updates a second: the median of five calls of 200."""
    agent = entry.make(UPDATES).for_data(data)
    key = jax.random.key(0)
    state = agent.init(data.observation_size, data.action_size, key=key)
    rates = []
    for _ in range(6):
        start = time.perf_counter()
        done = train_steps(agent, state, data, num_updates=200, batch_size=BATCH, key=key)
        jax.block_until_ready(done)
        rates.append(200 / (time.perf_counter() - start))
    return {"label": entry.label, "speed": statistics.median(rates[1:])}  # the first one compiles


def find(path: str | None = None) -> Data:
    """The transitions of this file; by default 100 episodes, which are collected once."""
    # ReBRAC's, which have the data's next action besides.
    return find_data(dataclasses.replace(laptop("rebrac", TASK), data=path))


def read(path: Path) -> list[dict[str, Any]]:
    """The rows of a CSV file, none if there is no such file; numbers are floats."""
    if not path.exists():
        return []
    with path.open(newline="") as file:
        return [{name: _value(text) for name, text in row.items()} for row in csv.DictReader(file)]


def _value(text: str) -> float | str | None:
    try:
        return float(text)
    except ValueError:
        return text or None


def write(path: Path, rows: list[dict[str, Any]]) -> None:
    """Adds rows to a CSV file, at once, so that one that is interrupted is no half of one."""
    text = io.StringIO()
    writer = csv.DictWriter(text, list(rows[0]), lineterminator="\n")
    if not path.exists():
        writer.writeheader()
    writer.writerows(rows)
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a", newline="") as file:
        file.write(text.getvalue())


def spread(values: list[float], digits: int = 2) -> str:
    """Mean and sample standard deviation."""
    mean = f"{statistics.mean(values):.{digits}f}"
    return mean if len(values) == 1 else f"{mean} ± {statistics.stdev(values):.{digits}f}"


def table(rows: list[dict[str, Any]], speeds: list[dict[str, Any]]) -> str:
    """Mean and sample standard deviation of success over seeds."""
    lines = [
        "| agent | tuned | success of each seed | mean ± standard deviation | updates a second |",
        "|---|---|---|---|---|",
    ]
    summary = []
    for label, entry in entries().items():
        by_seed = {r["seed"]: r for r in rows if r["label"] == label and r["seed"] in SEEDS}
        rates = [r["speed"] for r in speeds if r["label"] == label]
        if set(by_seed) != set(SEEDS):
            continue
        success = [by_seed[seed]["success"] for seed in SEEDS]
        chosen = f"{entry.knob} = {by_seed[0]['value']:g}" if entry.knob else "–"
        rate = f"{rates[-1]:.0f}" if rates else ""
        each = ", ".join(f"{s:.2f}" for s in success)
        line = f"| {label} | {chosen} | {each} | {spread(success)} | {rate} |"
        summary.append((statistics.mean(success), line))
    return "\n".join(lines + [line for _, line in sorted(summary, key=lambda row: -row[0])])


def main() -> None:
    known = entries()
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("command", choices=("tune", "train", "speed", "table"))
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--data", help="the dataset (.npz); by default 100 collected episodes")
    parser.add_argument("--agents", nargs="+", choices=known, default=list(known))
    options = parser.parse_args()
    path, speeds = options.out / "runs.csv", options.out / "speed.csv"
    if options.command == "table":
        print(table(read(path), read(speeds)))
        return

    data = find(options.data)
    if options.command == "speed":
        for label in options.agents:
            row = speed(known[label], data)
            write(speeds, [row])
            print(row, flush=True)
        return
    runs = Runs(path, data, make_environments(TASK, 10))
    for label in options.agents:
        if options.command == "tune":
            runs.tune(known[label])
        else:
            runs.train(known[label], SEEDS)
    runs.environments.close()


if __name__ == "__main__":
    main()
