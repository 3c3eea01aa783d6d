"""What a GPU reaches: updates a second, XLA's flags, and whether a resumed run is the same.

    python -m benchmarks.gpu --out results

One command, of less than nine minutes and without a network, for the papers' sizes on random
numbers. What does not fit into `--minutes` is listed as not reached. It writes `gpu.json` and
`gpu.md` to the folder `--out`. Seeds are one `vmap`, as `floq train --seeds` trains them on a GPU;
the fraction is of the best rate of large matrix products at the same precision in the same run.
"""

import argparse
import dataclasses
import datetime
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
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
    "--xla_gpu_enable_command_buffer=+WHILE",
    "--xla_gpu_command_buffer_unroll_loops=true",
    "--xla_gpu_enable_command_buffer=",
    "--xla_gpu_autotune_level=0",
)
DETERMINISTIC = "--xla_gpu_deterministic_ops=true"
TABLES = {
    "rates": (
        *("agent", "precision", "seeds", "updates a second, of all", "hours of 2,000,000 of each"),
        *("of the products' rate", "to the first update, s", "memory, GiB"),
    ),
    "flags": ("XLA_FLAGS", "updates a second", "to the first update, s"),
    "resume": ("XLA_FLAGS", "ten updates twice", "five and five against ten"),
}


def case(options: argparse.Namespace, agent: str, precision: str, seeds: int) -> Case:
    """One case at the size that was asked for."""
    made = case_of(agent, options.size, precision, options.updates)
    environment = ENVIRONMENTS.get(agent, made.environment)
    return dataclasses.replace(made, seeds=seeds, environment=environment)


def rates(options: argparse.Namespace) -> Iterator[tuple[list[str], Callable[[], list[str]]]]:
    """A row for each agent, precision and number of seeds; those of one seed first."""
    best: dict[str, dict[str, float]] = {}
    for seeds in options.seeds:
        for agent in options.agents:
            for precision in options.precisions:

                def row(agent: str = agent, precision: str = precision, seeds: int = seeds) -> Any:
                    best.setdefault(precision, product_rate(precision))
                    program = Program(case(options, agent, precision, seeds))
                    times = [program.run() for _ in range(options.repetitions)]
                    taken = per_update(times, program.case.updates)
                    rate = seeds / taken["wall"]["median"]
                    flops = (
                        seeds * update_flops(dataclasses.replace(program.case, seeds=1)).products
                    )
                    share = fraction(flops, taken, best[precision])["wall"]
                    first = sum(part["wall"] for part in program.first.values())
                    hours = 2e6 / (rate / seeds) / 3600
                    return [
                        *(f"{rate:.0f}", f"{hours:.2f}", f"{share:.0%}", f"{first:.1f}"),
                        f"{memory(program) / 2**30:.2f}",
                    ]

                yield [agent, precision, str(seeds)], row


def memory(program: Program) -> int:
    """The most bytes that the device has held or, where it does not say, what the program needs."""
    stats = jax.local_devices()[0].memory_stats() or {}
    return stats.get("peak_bytes_in_use", program.memory)


def flags(options: argparse.Namespace) -> Iterator[tuple[list[str], Callable[[], list[str]]]]:
    """A row for each of XLA's flags, in a process of its own, of one seed of the first agent."""
    own = Path(floq_eqx.__file__).resolve().parents[1]
    for flag in options.flags:

        def row(flag: str = flag) -> list[str]:
            one = case(options, options.agents[0], options.precisions[0], 1)
            try:
                with closing(Worker(own, one, XLA_FLAGS=flag)) as worker:
                    times = [worker.run() for _ in range(options.repetitions + 1)][1:]
                    first = sum(part["wall"] for part in worker.ready["first"].values())
            except SystemExit:
                return ["not known to this version of XLA", ""]
            rate = 1 / per_update(times, one.updates)["wall"]["median"]
            return [f"{rate:.1f}", f"{first:.1f}"]

        yield [f"`{flag}`" if flag else "none"], row


def resume(options: argparse.Namespace) -> Iterator[tuple[list[str], Callable[[], list[str]]]]:
    """Whether ten updates are bitwise the same twice, and as five and five."""
    for flag in ("", DETERMINISTIC):

        def row(flag: str = flag) -> list[str]:
            words = ["--resumes", "--agents", options.agents[0], "--size", options.size]
            words += ["--precisions", options.precisions[0]]
            command = [sys.executable, "-m", "benchmarks.gpu", *words]
            variables = os.environ | {"XLA_FLAGS": flag}
            done = subprocess.run(command, env=variables, capture_output=True, text=True)
            if done.returncode:
                return [f"failed: {done.stderr.strip().splitlines()[-1][:100]}", ""]
            return ["the same" if same else "not the same" for same in json.loads(done.stdout)]

        yield [f"`{flag}`" if flag else "none"], row


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
    known = [p for p in PRECISIONS if p != "tf32" or jax.default_backend() == "gpu"]
    agents = ["floq", "fql", "iql", "value_flows"]
    parser.add_argument("--agents", nargs="+", default=agents)
    parser.add_argument("--size", choices=SIZES, default="paper")
    parser.add_argument("--seeds", nargs="+", type=int, default=[1, 8, 4, 16], help="in this order")
    parser.add_argument("--precisions", nargs="+", choices=PRECISIONS, default=known)
    parser.add_argument(
        "--flag", dest="flags", action="append", help="one of XLA's to try, as --flag=--xla_gpu_..."
    )
    parser.add_argument("--updates", type=int, help="in a call, instead of the size's own number")
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
    options = parse(arguments)
    # With processes beside this one, none may take all of a GPU's memory.
    os.environ.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")
    if options.resumes:
        print(json.dumps(resumes(case(options, options.agents[0], options.precisions[0], 1))))
        return
    options.out.mkdir(parents=True, exist_ok=True)
    start = time.monotonic()
    results: dict[str, Any] = {
        "date": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "machine": machine(),
        "size": options.size,
        "not_reached": [],
    }
    # The short ones first: they are of a few processes.
    for name, rows in {"resume": resume, "flags": flags, "rates": rates}.items():
        results[name] = []
        for names, row in rows(options):
            label = f"{name}, {', '.join(names)}"
            if time.monotonic() - start > 60 * options.minutes:
                results["not_reached"].append(label)
                continue
            print(label, file=sys.stderr, flush=True)
            results[name].append([*names, *row()])
            # What is measured is not lost with what comes after it.
            results["seconds"] = time.monotonic() - start
            (options.out / "gpu.json").write_text(json.dumps(results, indent=1) + "\n")
    results["seconds"] = time.monotonic() - start
    (options.out / "gpu.json").write_text(json.dumps(results, indent=1) + "\n")
    tables = markdown(results)
    (options.out / "gpu.md").write_text(tables)
    print(tables)


if __name__ == "__main__":
    main()
