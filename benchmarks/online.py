"""The papers' online studies in miniature.

    python -m benchmarks.online finetune --out FOLDER --data FILE   # offline data, then online
    python -m benchmarks.online tune --out FOLDER                   # alpha of the next
    python -m benchmarks.online utd --out FOLDER                    # many updates a step
    python -m benchmarks.online table --out FOLDER

A curve is a line for each of its points in `FOLDER/<study>.csv`; curves that are whole are not
made again, so that an interrupted command goes on, and two can share the work with `--agents` and
`--seeds`.
"""

import argparse
import time
from pathlib import Path
from typing import Any

import jax

from floq_eqx.agents import RECIPES, ActorCritic, Agent
from floq_eqx.data import Batch, Replay, load_dataset
from floq_eqx.evaluation import evaluate, make_environments
from floq_eqx.training import OnlineProgress, fit_online, train_steps

from .agents import SHARED, TASK, read, scaled, spread, write

SEEDS = (0, 1, 2)

# Offline to online: the default data, then half as many environment steps as updates before.
OFFLINE_UPDATES, CUBE_STEPS, CUBE_EVERY, CUBE_EPISODES, CUBE_BATCH = 20_000, 10_000, 2_500, 50, 128
CUBE_SETTINGS: dict[str, Any] = SHARED | {"learning_rate": 5e-4, "policy.alpha": 300.0}
CUBE_AGENTS = ("floq", "fql", "sac")

# Many updates for each step of an environment.
PENDULUM = "Pendulum-v1"
PENDULUM_STEPS, PENDULUM_EVERY, PENDULUM_EPISODES, PENDULUM_BATCH = 2_000, 250, 10, 64
WARMUP, UTD = 250, (1, 8, 32, 128)
PENDULUM_SETTINGS: dict[str, Any] = {
    "critic.discount": 0.95,
    "critic.reward_min": -16.2736044,
    "critic.reward_max": 0.0,
    "policy.normalise_q": True,
    "policy.flow_steps": 5,
    "target_rate": 0.005,
    "action_size": 1,
}
PENDULUM_AGENTS = ("floq", "fql", "sac")
# The best of three, on a seed that is not among the study's, at a UTD of 8: the `tune` command.
PENDULUM_ALPHA = {"floq": 0.01, "fql": 0.003}
ALPHAS, TUNING_SEED, TUNING_UTD = (0.003, 0.01, 0.03), 9, 8


def make(name: str, width: int, settings: dict[str, Any]) -> ActorCritic:
    """The agent with two hidden layers in each network, and what it has of the settings."""
    return scaled(RECIPES[name](), width, settings)


def finetune(name: str, seed: int, data: Batch) -> list[dict[str, Any]]:
    """Offline updates, then online with all data in one buffer; SAC starts from scratch, with half
    of each batch offline (RLPD).
    """
    agent = make(name, 128, CUBE_SETTINGS).for_data(data)
    init_key, offline_key, online_key = jax.random.split(jax.random.key(seed), 3)
    state = agent.init(data.observation_size, data.action_size, key=init_key)
    options: dict[str, Any] = {}
    if name == "sac":
        replay = Replay.empty(CUBE_STEPS, data.observation_size, data.action_size)
        options = {"offline": data, "warmup": 1000}
    else:
        replay = Replay.from_data(data, len(data) + CUBE_STEPS)
        state, _ = train_steps(
            agent,
            state,
            data,
            num_updates=OFFLINE_UPDATES,
            batch_size=CUBE_BATCH,
            key=offline_key,
        )
    return learn(
        agent,
        state,
        replay,
        TASK,
        seed,
        key=online_key,
        num_steps=CUBE_STEPS,
        every=CUBE_EVERY,
        episodes=CUBE_EPISODES,
        batch_size=CUBE_BATCH,
        **options,
    )


def utd(name: str, seed: int, ratio: int, alpha: float | None = None) -> list[dict[str, Any]]:
    """From scratch, with so many updates for each of few environment steps."""
    alpha = PENDULUM_ALPHA.get(name, 0.0) if alpha is None else alpha
    agent = make(name, 64, PENDULUM_SETTINGS | {"policy.alpha": alpha})
    init_key, online_key = jax.random.split(jax.random.key(seed))
    state = agent.init(3, 1, key=init_key)
    return learn(
        agent,
        state,
        Replay.empty(PENDULUM_STEPS, 3, 1),
        PENDULUM,
        seed,
        key=online_key,
        num_steps=PENDULUM_STEPS,
        every=PENDULUM_EVERY,
        episodes=PENDULUM_EPISODES,
        batch_size=PENDULUM_BATCH,
        utd=ratio,
        warmup=WARMUP,
    )


def learn(
    agent: Agent,
    state: Any,
    replay: Replay,
    environment: str,
    seed: int,
    *,
    every: int,
    episodes: int,
    **options: Any,
) -> list[dict[str, Any]]:
    """The points of a curve: the evaluation before, and after every so many steps."""
    world, test = make_environments(environment, 1), make_environments(environment, 10)
    points: list[dict[str, Any]] = []
    began = time.perf_counter()

    def point(step: int, state: Any, q: float | None = None) -> None:
        result = evaluate(agent, state, test, num_episodes=episodes, seed=10_000 + 1000 * seed)
        summary = result.summary()
        points.append(
            {
                "env_steps": step,
                "success": summary["success"],
                "returns": summary["returns"],
                "q": q,
                "seconds": time.perf_counter() - began,
            }
        )

    def after(now: OnlineProgress) -> None:
        point(now.step, now.state, now.metrics.get("q"))

    point(0, state)
    fit_online(agent, state, replay, world, chunk=every, seed=seed, callbacks=[after], **options)
    return points


def table(rows: list[dict[str, Any]], metric: str) -> str:
    """Mean and sample standard deviation over seeds, a row a label and a column a step."""
    steps = sorted({int(row["env_steps"]) for row in rows})
    lines = [
        f"| {metric} after | seeds | {' | '.join(f'{step:,}' for step in steps)} |",
        "|---" * (len(steps) + 2) + "|",
    ]
    for label in dict.fromkeys(row["label"] for row in rows):
        mine = [row for row in rows if row["label"] == label]
        cells = []
        for step in steps:
            values = [row[metric] for row in mine if row["env_steps"] == step]
            cells.append(spread(values, 2 if metric == "success" else 0))
        lines.append(f"| {label} | {len({row['seed'] for row in mine})} | {' | '.join(cells)} |")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("command", choices=("finetune", "tune", "utd", "table"))
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--data", type=Path, default=None, help="the dataset (.npz)")
    parser.add_argument("--agents", nargs="+", default=None)
    parser.add_argument("--seeds", nargs="+", type=int, default=list(SEEDS))
    parser.add_argument("--utd", nargs="+", type=int, default=list(UTD))
    options = parser.parse_args()
    if options.command == "table":
        for study, metric in (("finetune", "success"), ("utd", "returns")):
            if rows := read(options.out / f"{study}.csv"):
                print(table(rows, metric), end="\n\n")
        return

    path = options.out / f"{options.command}.csv"
    todo: list[tuple[str, int, Any]]
    if options.command == "finetune":
        data = load_dataset(TASK, path=options.data)
        todo = [
            (name, seed, lambda name=name, seed=seed: finetune(name, seed, data))
            for name in options.agents or CUBE_AGENTS
            for seed in options.seeds
        ]
    elif options.command == "tune":
        todo = [
            (
                f"{name}, {a}",
                TUNING_SEED,
                lambda name=name, a=a: utd(name, TUNING_SEED, TUNING_UTD, a),
            )
            for name in PENDULUM_ALPHA
            for a in ALPHAS
        ]
    else:
        todo = [
            (f"{name}, {r}", seed, lambda name=name, seed=seed, r=r: utd(name, seed, r))
            for name in options.agents or PENDULUM_AGENTS
            for seed in options.seeds
            for r in options.utd
        ]
    for label, seed, points in todo:
        if any((row["label"], row["seed"]) == (label, seed) for row in read(path)):
            continue
        rows = [{"label": label, "seed": seed} | point for point in points()]
        write(path, rows)
        print(
            label,
            seed,
            [
                round(row["success"] if row["success"] == row["success"] else row["returns"], 2)
                for row in rows
            ],
            round(rows[-1]["seconds"]),
            flush=True,
        )


if __name__ == "__main__":
    main()
