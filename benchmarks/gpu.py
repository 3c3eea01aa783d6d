"""What a GPU reaches: updates a second, XLA's flags, and whether a resumed run is the same.

    python -m benchmarks.gpu --out results

One command, of less than nine minutes and without a network, for the papers' sizes on random
numbers. A program compiles for half a minute to a minute on an H100, so that in this time the most
telling cases come first, and what does not fit into `--minutes` is listed as not reached: an hour
holds all of them. It writes `gpu.json` and `gpu.md` to the folder `--out`, after every case. Seeds
are one `vmap`, as `floq train --seeds` trains them on a GPU; the fraction is of the best rate of
large matrix products at the same precision in the same run.
"""

import argparse
import dataclasses
import datetime
import functools
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from contextlib import closing
from pathlib import Path
from typing import Any

import equinox as eqx
import jax
import numpy as np

import floq_eqx
from floq_eqx.training import train_steps

from .speed import PRECISIONS, SIZES, Worker, case_of, fraction, machine, product_rate
from .speed_parts import per_update, update_flops
from .speed_worker import ACTION, OBSERVATION, Case, Program, make_agent, random_data

ENVIRONMENTS = {"iql": "humanoidmaze-medium-navigate-singletask-task1-v0"}
"""Whose settings an agent has that the papers do not report on cube-double."""

FLAGS = (
    "",
    "--xla_gpu_autotune_level=0",
    "--xla_gpu_enable_command_buffer=",
    "--xla_gpu_enable_command_buffer=+WHILE",
    "--xla_gpu_command_buffer_unroll_loops=true",
)
DETERMINISTIC = "--xla_gpu_deterministic_ops=true"
TABLES = {
    "rates": (
        *("agent", "precision", "seeds", "updates a second, of all", "hours of 2,000,000 of each"),
        *("of the products' rate", "memory, GiB", "to the first update, s"),
    ),
    "flags": ("XLA_FLAGS", "updates a second", "to the first update, s"),
    "resume": ("XLA_FLAGS", "ten updates twice", "five and five against ten"),
}
RATES = 0.6
"""The share of the minutes after which no rate is measured, but what there are few rows of."""


def case(options: argparse.Namespace, agent: str, precision: str, seeds: int) -> Case:
    """One case at the size that was asked for."""
    made = case_of(agent, options.size, precision, options.updates)
    environment = ENVIRONMENTS.get(agent, made.environment)
    return dataclasses.replace(made, seeds=seeds, environment=environment)


class Clock:
    """How much of the time is left."""

    def __init__(self, minutes: float):
        self._start, self._seconds = time.monotonic(), 60 * minutes

    def passed(self) -> float:
        return time.monotonic() - self._start

    def left(self, share: float = 1.0) -> float:
        """Seconds to the end of this share of it."""
        return max(0.0, share * self._seconds - self.passed())


def rate(
    options: argparse.Namespace, agent: str, precision: str, seeds: int, best: dict[str, float]
) -> list[str]:
    """What the table of rates says of a case, whose products' rate is `best`."""
    program = Program(case(options, agent, precision, seeds))
    times = [program.run() for _ in range(options.repetitions)]
    taken = per_update(times, program.case.updates)
    total = seeds / taken["wall"]["median"]
    flops = seeds * update_flops(dataclasses.replace(program.case, seeds=1)).products
    return [
        *(f"{total:.0f}", f"{2e6 / (total / seeds) / 3600:.2f}"),
        *(f"{fraction(flops, taken, best)['wall']:.0%}", f"{program.memory / 2**30:.2f}"),
        f"{sum(part['wall'] for part in program.first.values()):.1f}",
    ]


def with_flag(options: argparse.Namespace, flag: str) -> list[str]:
    """What the first agent's update takes with this flag of XLA's, in a process of its own."""
    own = Path(floq_eqx.__file__).resolve().parents[1]
    one = case(options, options.agents[0], options.precisions[0], 1)
    try:
        with closing(Worker(own, one, XLA_FLAGS=flag)) as worker:
            times = [worker.run() for _ in range(options.repetitions + 1)][1:]
            first = sum(part["wall"] for part in worker.ready["first"].values())
    except SystemExit:
        return ["not known to this version of XLA", ""]
    rate = 1 / per_update(times, one.updates)["wall"]["median"]
    return [f"{rate:.1f}", f"{first:.1f}"]


def resume(options: argparse.Namespace, flag: str) -> list[str]:
    """Whether ten updates are bitwise the same twice, and as five and five."""
    words = ["--resumes", "--agents", options.agents[0], "--size", options.size]
    words += ["--precisions", options.precisions[0]]
    command = [sys.executable, "-m", "benchmarks.gpu", *words]
    variables = os.environ | {"XLA_FLAGS": flag}
    done = subprocess.run(command, env=variables, capture_output=True, text=True)
    if done.returncode:
        return [f"failed: {done.stderr.strip().splitlines()[-1][:100]}", ""]
    return ["the same" if same else "not the same" for same in json.loads(done.stdout)]


def resumes(one: Case) -> list[bool]:
    """Whether ten updates are bitwise the same twice, and as five and five; in this process."""
    data = random_data()
    agent, batch_size = make_agent(one)
    agent = agent.for_data(data)
    start = agent.init(OBSERVATION, ACTION, key=jax.random.key(0))

    def updates(state: Any, count: int) -> Any:
        sizes = {"num_updates": count, "batch_size": batch_size}
        return train_steps(agent, state, data, **sizes, key=jax.random.key(1))[0]

    whole, again, parts = updates(start, 10), updates(start, 10), updates(updates(start, 5), 5)
    arrays = [jax.tree.map(np.asarray, state) for state in (whole, again, parts)]
    return [bool(eqx.tree_equal(arrays[0], other)) for other in arrays[1:]]


def shown(flag: str) -> str:
    return f"`{flag}`" if flag else "none"


def markdown(results: dict[str, Any]) -> str:
    """Every table, as Markdown."""
    about = results["machine"]
    blocks = [
        f"{about['device']}, {about['cpu']}, {about['cores']} cores, JAX {about['jax']}, "
        f"{results['date']}, the {results['size']} sizes, {results['seconds']:.0f} s in all."
    ]
    for name, columns in TABLES.items():
        lines = [f"| {' | '.join(columns)} |", "|---" * len(columns) + "|"]
        lines += [f"| {' | '.join(row)} |" for row in results[name]]
        blocks.append("\n".join(lines))
    if results["not_reached"]:
        blocks.append(f"Not reached in time: {'; '.join(results['not_reached'])}.")
    return "\n\n".join(blocks) + "\n"


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    known = (
        ["tf32", "bfloat16", "float32"]
        if jax.default_backend() == "gpu"
        else ["float32", "bfloat16"]
    )
    agents = ["floq", "fql", "iql", "value_flows"]
    parser.add_argument("--agents", nargs="+", default=agents)
    parser.add_argument("--size", choices=SIZES, default="paper")
    parser.add_argument("--seeds", nargs="+", type=int, default=[1, 8, 4, 16], help="in this order")
    parser.add_argument("--precisions", nargs="+", choices=PRECISIONS, default=known)
    parser.add_argument(
        "--flag", dest="flags", action="append", help="one of XLA's to try, as --flag=--xla_gpu_..."
    )
    parser.add_argument("--updates", type=int, default=50, help="in a call")
    parser.add_argument("--repetitions", type=int, default=3, help="calls that are timed")
    parser.add_argument("--minutes", type=float, default=8.0, help="no case begins after these")
    parser.add_argument("--out", type=Path, default=Path("results"))
    parser.add_argument("--resumes", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args(arguments)
    options.flags = list(FLAGS if options.flags is None else ["", *options.flags])
    numbers = {"seeds": min(options.seeds), "repetitions": options.repetitions}
    for name, number in numbers.items():
        if number < 1:
            parser.error(f"--{name} must be at least 1, got {number}")
    return options


def main(arguments: Sequence[str] | None = None) -> None:
    # With processes beside this one, none may take all of a GPU's memory.
    os.environ.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")
    options = parse(arguments)
    if options.resumes:
        print(json.dumps(resumes(case(options, options.agents[0], options.precisions[0], 1))))
        return
    options.out.mkdir(parents=True, exist_ok=True)
    clock = Clock(options.minutes)
    results: dict[str, Any] = {
        "date": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "machine": machine(),
        "size": options.size,
        **{name: [] for name in TABLES},
        "not_reached": [],
    }

    def save() -> None:
        results["seconds"] = clock.passed()
        (options.out / "gpu.json").write_text(json.dumps(results, indent=1) + "\n")

    def keep(table: str, names: list[str], row: Callable[[], list[str]], share: float = 1) -> None:
        """What is measured is not lost with what comes after it."""
        label = f"{table}, {', '.join(names)}"
        if not clock.left(share):
            results["not_reached"].append(label)
        else:
            print(label, file=sys.stderr, flush=True)
            try:
                columns = row()
            except jax.errors.JaxRuntimeError as error:  # as of one that does not fit into memory
                columns = [f"failed: {str(error).splitlines()[0][:100]}"]
            empty = [""] * (len(TABLES[table]) - len(names) - len(columns))
            results[table].append([*names, *columns, *empty])
        save()

    best = functools.cache(product_rate)
    for seeds in options.seeds:
        for agent in options.agents:
            for precision in options.precisions:
                asked = (options, agent, precision, seeds)
                row = lambda asked=asked: rate(*asked, best(asked[2]))  # noqa: E731
                keep("rates", [agent, precision, str(seeds)], row, RATES)
    for flag in ("", DETERMINISTIC):
        keep("resume", [shown(flag)], lambda flag=flag: resume(options, flag))
    for flag in options.flags:
        keep("flags", [shown(flag)], lambda flag=flag: with_flag(options, flag))
    save()
    tables = markdown(results)
    (options.out / "gpu.md").write_text(tables)
    print(tables)


if __name__ == "__main__":
    main()
