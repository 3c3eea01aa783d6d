"""What it gains to train several seeds together instead of one after the other.

    python -m benchmarks.seeds
    python -m benchmarks.seeds --sizes laptop --seeds 1 4 --updates 20

In one process, by turns: each seed's updates in threads, as `floq train --seeds` trains on a CPU;
and all of them as one `vmap`, as it does on other devices. The gain is the time of the seeds one
after the other, over theirs together: median and range over the turns.
"""

import argparse
import shlex
import sys
from collections.abc import Sequence
from typing import Any

import jax

from floq_eqx.training.loop import with_arrays
from floq_eqx.training.many import Stacked, Threads

from .speed import SIZES, case_of, machine
from .speed_parts import spread
from .speed_worker import ACTION, OBSERVATION, Stopwatch, make_agent, random_data

WAYS = {"threads": Threads, "vmap": Stacked}


def measure(
    agent: str, size: str, seeds: Sequence[int], updates: int | None, turns: int
) -> list[dict[str, Any]]:
    """A row for each number of seeds and each way, with the gain in wall and CPU time."""
    case, data = case_of(agent, size, "float32", updates), random_data()
    made, batch_size = make_agent(case)
    made = made.for_data(data)
    keys = [jax.random.key(seed) for seed in range(max(1, *seeds))]
    states = [made.init(OBSERVATION, ACTION, key=key) for key in keys]

    def runs(kind: Any, count: int) -> Any:
        agents = [with_arrays(made)] * count
        return kind(agents, states[:count], keys[:count], data, batch_size)

    def seconds(group: Any, count: int) -> dict[str, float]:
        watch = Stopwatch()
        jax.block_until_ready(group.update(range(count), case.updates))
        return watch.read()

    cases = {(count, way): runs(kind, count) for count in seeds for way, kind in WAYS.items()}
    alone = runs(Threads, 1)
    for (count, _), group in cases.items():  # which compiles
        seconds(group, count)
    seconds(alone, 1)
    took: dict[tuple[int, str], list[dict[str, dict[str, float]]]] = {name: [] for name in cases}
    for _ in range(turns):
        for (count, way), group in cases.items():
            one, together = seconds(alone, 1), seconds(group, count)
            took[count, way].append({"one": one, "together": together})
    rows = []
    for (count, way), pairs in took.items():
        gains = {
            kind: spread(count * pair["one"][kind] / pair["together"][kind] for pair in pairs)
            for kind in ("wall", "cpu")
        }
        rate = spread(count * case.updates / pair["together"]["wall"] for pair in pairs)
        names = {"agent": agent, "size": size, "seeds": count, "way": way}
        rows.append(names | {"gain": gains, "updates_per_second": rate})
    return rows


def table(rows: Sequence[dict[str, Any]]) -> str:
    """The rows as Markdown."""

    def shown(x: dict[str, float]) -> str:
        return f"{x['median']:.2f} [{x['least']:.2f}, {x['most']:.2f}]"

    lines = [
        "| agent | sizes | seeds | together by | gain, wall | gain, CPU | updates a second |",
        "|---|---|---|---|---|---|---|",
    ]
    for row in rows:
        gain, rate = row["gain"], row["updates_per_second"]
        names = (row["agent"], row["size"], str(row["seeds"]), row["way"])
        cells = (*names, shown(gain["wall"]), shown(gain["cpu"]), f"{rate['median']:.1f}")
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--agents", nargs="+", default=["floq"])
    parser.add_argument("--sizes", nargs="+", choices=SIZES, default=list(SIZES))
    parser.add_argument("--seeds", nargs="+", type=int, default=[1, 2, 4, 8], help="how many")
    parser.add_argument("--updates", type=int, help="in a call, instead of the size's own number")
    parser.add_argument("--turns", type=int, default=5)
    options = parser.parse_args(arguments)
    for name, least in (("turns", options.turns), ("seeds", min(options.seeds))):
        if least < 1:
            parser.error(f"--{name} must be at least 1, got {least}")
    rows = []
    for agent in options.agents:
        for size in options.sizes:
            print(f"{agent}, {size}", file=sys.stderr, flush=True)
            rows += measure(agent, size, options.seeds, options.updates, options.turns)
    words = sys.argv[1:] if arguments is None else arguments
    found = machine()
    print(f"`{shlex.join(['python', '-m', 'benchmarks.seeds', *words])}`\n")
    print(f"{found['cpu']}, {found['cores']} cores, JAX {found['jax']}, {options.turns} turns.\n")
    print(table(rows))


if __name__ == "__main__":
    main()
