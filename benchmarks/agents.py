"""Every agent on the default task: the same data, sizes, schedule and number of updates.

    python -m benchmarks.agents tune  --out FOLDER   # each agent's own knob, one seed a value
    python -m benchmarks.agents train --out FOLDER   # the best value, three seeds
    python -m benchmarks.agents speed --out FOLDER   # updates a second, on an idle machine
    python -m benchmarks.agents table --out FOLDER   # the table, as Markdown

A run is one line of `FOLDER/runs.jsonl`; runs that are there are not done again, so that a command
which was interrupted goes on, and two can share the work with `--agents`.
"""

import argparse
import dataclasses
import json
import statistics
import time
from pathlib import Path
from typing import Any

import jax

from floq_eqx.agents import AGENTS, Agent, from_plain
from floq_eqx.data import Batch, load_dataset
from floq_eqx.evaluation import evaluate, make_environments
from floq_eqx.networks import MLPConfig
from floq_eqx.training import train_steps

TASK = "cube-single-play-singletask-task1-v0"
UPDATES, TUNING_UPDATES, BATCH, EPISODES = 30_000, 15_000, 128, 50
SEEDS, TUNING_SEED = (0, 1, 2), 100

# What the agents share, where they have it: the laptop preset's schedule on smaller networks.
SHARED = {
    "learning_rate": 1e-3,
    "target_rate": 0.01,
    "num_noise": 1,
    "num_steps": 4,
    "flow_steps": 5,
}
HIDDEN = (128, 128)

# The hyperparameter that ties each to the data, or sets how greedy it is, and three values of it.
ALPHA = ("alpha", (100.0, 300.0, 1000.0))
KNOBS: dict[str, tuple[str, tuple[Any, ...]]] = {
    "floq": ALPHA,
    "fql": ALPHA,
    "iqn": ALPHA,
    "c51": ALPHA,
    "value_flows": ("bcfm_weight", (0.5, 1.0, 3.0)),  # α moves the one-step actor alone
    "sorl": ("q_weight", (3.0, 10.0, 30.0)),
    "evor": ("value_temperature", (0.3, 1.0, 3.0)),
    "iql": ("alpha", (1.0, 3.0, 10.0)),
    "ifql": ("num_candidates", (8, 32, 128)),
    "rebrac": ("alpha_actor", (0.1, 1.0, 10.0)),
}
# Variants that take another agent's best value, and what makes them affordable here.
VARIANTS: dict[str, tuple[str, dict[str, Any]]] = {
    "floq, trained at t = 0 only": ("floq", {"train_at_zero_only": True}),
    # Of a single sample the two backups are the same.
    "floq, m = 4": ("floq", {"num_noise": 4}),
    "floq, m = 4, distributional backup": (
        "floq",
        {"num_noise": 4, "backup": "distributional"},
    ),
}
FIXED: dict[str, dict[str, Any]] = {
    "value_flows": {"num_candidates": 4, "alpha": 300.0},
    "sorl": {"max_steps": 4, "action_steps": 4},
    "sac": {"deterministic": True},
}
LABELS = (*AGENTS, *VARIANTS)


def make(label: str, *, num_updates: int, value: Any = None) -> Agent:
    """The agent, or variant of one, of a row."""
    name, changes = VARIANTS.get(label, (label, {}))
    settings = SHARED | FIXED.get(name, {}) | changes | {"decay_updates": num_updates}
    if value is not None:
        settings[KNOBS[name][0]] = value
    default = from_plain(name, {})
    known = {f.name for f in dataclasses.fields(default)}
    for network in ("field", "critic", "actor"):
        if network in known:
            config: MLPConfig = getattr(default, network)
            settings[network] = dataclasses.replace(config, hidden_sizes=HIDDEN)
    settings = {key: setting for key, setting in settings.items() if key in known}
    return dataclasses.replace(default, **settings)


def run(label: str, data: Batch, environments: Any, *, seed: int, num_updates: int, value: Any):
    """Trains and evaluates once."""
    agent = make(label, num_updates=num_updates, value=value).for_data(data)
    init_key, train_key = jax.random.split(jax.random.key(seed))
    state = agent.init(data.observation.shape[1], data.action.shape[1], key=init_key)
    state, metrics = train_steps(
        agent, state, data, num_updates=num_updates, batch_size=BATCH, key=train_key
    )
    result = evaluate(agent, state, environments, num_episodes=EPISODES, seed=1000 * seed)
    return {
        "label": label,
        "value": value,
        "seed": seed,
        "updates": num_updates,
        "success": float(result.success.mean()),
        "loss": float(metrics["loss"][-1]),
    }


def speed(label: str, data: Batch) -> dict[str, Any]:
    """Updates a second: the median of five calls of 200."""
    agent = make(label, num_updates=UPDATES).for_data(data)
    key = jax.random.key(0)
    state = agent.init(data.observation.shape[1], data.action.shape[1], key=key)
    rates = []
    for _ in range(6):
        start = time.perf_counter()
        done = train_steps(agent, state, data, num_updates=200, batch_size=BATCH, key=key)
        jax.block_until_ready(done)
        rates.append(200 / (time.perf_counter() - start))
    return {"label": label, "speed": statistics.median(rates[1:])}  # the first one compiles


def read(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


def write(path: Path, row: dict[str, Any]) -> None:
    with path.open("a") as file:
        file.write(json.dumps(row) + "\n")
    print(row, flush=True)


def tuned(rows: list[dict[str, Any]], label: str) -> Any:
    """The value of the highest success in tuning; of equals the middle one first."""
    name = VARIANTS.get(label, (label, {}))[0]
    if name not in KNOBS:
        return None
    values = KNOBS[name][1]
    found = {r["value"]: r["success"] for r in rows if r["label"] == name and is_tuning(r)}
    if set(found) != set(values):
        raise SystemExit(f"{name} has not been tuned yet: {found}")
    return max(values, key=lambda v: (found[v], -abs(values.index(v) - 1)))


def is_tuning(row: dict[str, Any]) -> bool:
    return row.get("seed") == TUNING_SEED


def table(rows: list[dict[str, Any]]) -> str:
    """Mean and sample standard deviation of success over seeds."""
    lines = [
        "| agent | tuned | success of each seed | mean ± standard deviation | updates a second |",
        "|---|---|---|---|---|",
    ]
    summary = []
    for label in LABELS:
        mine = [r for r in rows if r["label"] == label]
        by_seed = {r["seed"]: r for r in mine if r.get("seed") in SEEDS}
        rates = [r["speed"] for r in mine if "speed" in r]
        if set(by_seed) != set(SEEDS):
            continue
        success = [by_seed[seed]["success"] for seed in SEEDS]
        knob = KNOBS.get(VARIANTS.get(label, (label, {}))[0])
        chosen = f"{knob[0]} = {by_seed[0]['value']:g}" if knob else "–"
        rate = f"{rates[-1]:.0f}" if rates else ""
        mean = statistics.mean(success)
        each = ", ".join(f"{s:.2f}" for s in success)
        spread = f"{mean:.2f} ± {statistics.stdev(success):.2f}"
        summary.append((mean, f"| {label} | {chosen} | {each} | {spread} | {rate} |"))
    return "\n".join(lines + [line for _, line in sorted(summary, key=lambda row: -row[0])])


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("command", choices=("tune", "train", "speed", "table"))
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--data", type=Path, default=None, help="the dataset (.npz)")
    parser.add_argument("--agents", nargs="+", choices=LABELS, default=list(LABELS))
    options = parser.parse_args()
    path = options.out / "runs.jsonl"
    if options.command == "table":
        print(table(read(path)))
        return

    options.out.mkdir(parents=True, exist_ok=True)
    data = load_dataset(TASK, path=options.data, with_next_action=True)
    if options.command == "speed":
        for label in options.agents:
            write(path, speed(label, data))
        return
    environments = make_environments(TASK, 10)
    for label in options.agents:
        if options.command == "tune":
            if label not in KNOBS:
                continue
            todo = [(TUNING_SEED, TUNING_UPDATES, value) for value in KNOBS[label][1]]
        else:
            value = tuned(read(path), label)
            todo = [(seed, UPDATES, value) for seed in SEEDS]
        for seed, num_updates, value in todo:
            done = {(r["label"], r.get("seed"), r.get("value")) for r in read(path)}
            if (label, seed, value) in done:
                continue
            row = run(label, data, environments, seed=seed, num_updates=num_updates, value=value)
            write(path, row)
    environments.close()


if __name__ == "__main__":
    main()
