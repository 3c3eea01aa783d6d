"""Memory of a long run: 200,000 updates, then 20,000 environment steps, with all around them.

    python -m benchmarks.memory --data FILE

Prints the resident memory of the process as the run goes on: FQL with small networks on
cube-single, with evaluations and a checkpoint every few thousand steps.
"""

import argparse
import itertools
import os
import statistics
import tempfile
import threading
from pathlib import Path

from floq_eqx.agents import fql
from floq_eqx.training import OnlineConfig, Run, TrainConfig, train


def resident() -> float:
    """Of this process, in MiB."""
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE") / 2**20


def watch(folder: Path, stop: threading.Event, seen: list[tuple[int, float]]) -> None:
    """The steps of the run and the memory then, ten times a second."""
    while not stop.wait(0.1):
        path = folder / "train.csv"
        rows = path.read_text().splitlines() if path.exists() else []
        if len(rows) > 1:
            seen.append((int(rows[-1].partition(",")[0] or 0), resident()))


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--data", required=True, help="the dataset (.npz)")
    parser.add_argument("--updates", type=int, default=200_000)
    parser.add_argument("--env-steps", type=int, default=20_000)
    options = parser.parse_args()
    network = {"hidden_sizes": (16, 16)}
    agent = fql(
        critic={"network": network},
        policy={"network": network, "flow_steps": 2, "alpha": 300.0},
    )
    config = TrainConfig(
        agent=agent,
        num_updates=options.updates,
        batch_size=32,
        log_every=1000,
        evaluate_every=20_000,
        evaluation_episodes=2,
        checkpoint_every=5000,
        data=options.data,
        online=OnlineConfig(num_steps=options.env_steps),
    )
    seen: list[tuple[int, float]] = []
    stop = threading.Event()
    with tempfile.TemporaryDirectory() as parent:
        folder = Path(parent) / "run"
        thread = threading.Thread(target=watch, args=(folder, stop, seen))
        thread.start()
        try:
            run: Run = train(config, folder, report=lambda line: print(line, flush=True))
        finally:
            stop.set()
            thread.join()
        print(f"{len(run.table('train.csv'))} rows, checkpoints {run.steps()}")
    print("| steps | resident memory, MiB: median | largest |\n|---|---|---|")
    total = options.updates + options.env_steps
    bounds = [i * options.updates // 10 for i in range(11)]
    bounds += [options.updates + i * options.env_steps // 5 for i in range(1, 6)]
    for low, high in itertools.pairwise(bounds):
        values = [memory for step, memory in seen if low < step <= high]
        if values:
            print(f"| {low:,} to {high:,} | {statistics.median(values):.0f} | {max(values):.0f} |")
    print(f"{total:,} steps in all: {options.updates:,} updates, {options.env_steps:,} online")


if __name__ == "__main__":
    main()
