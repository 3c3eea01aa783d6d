"""How much longer than JAX, Equinox, Diffrax and Optax together `import floq_eqx` takes.

    python benchmarks/import_time.py

Each import is the first of a fresh process; the two take turns, so that a busy machine slows both.
What counts is the process's CPU time from its first statement on, and of each pair their ratio.
"""

import argparse
import os
import statistics
import subprocess
import sys

IMPORTS = {"dependencies": "jax, equinox, diffrax, optax", "floq_eqx": "floq_eqx"}


def cpu_seconds(modules: str) -> float:
    """What a fresh process takes to import the modules."""
    code = f"import time; t = time.process_time(); import {modules}; print(time.process_time() - t)"
    child = [sys.executable, "-c", code]
    # An installed package has its bytecode: that of a source tree is to be kept as well.
    env = {key: value for key, value in os.environ.items() if key != "PYTHONDONTWRITEBYTECODE"}
    done = subprocess.run(child, env=env, stdout=subprocess.PIPE, text=True, check=True)
    return float(done.stdout)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--repeats", type=int, default=9)
    repeats = parser.parse_args().repeats
    for modules in IMPORTS.values():  # writes the bytecode
        cpu_seconds(modules)
    rounds = [
        {name: cpu_seconds(modules) for name, modules in IMPORTS.items()} for _ in range(repeats)
    ]
    seconds = {name: [one[name] for one in rounds] for name in IMPORTS}
    for name, modules in IMPORTS.items():
        median, least = statistics.median(seconds[name]), min(seconds[name])
        print(f"{modules}: {median:.2f} s, at least {least:.2f}")
    ratios = [one["floq_eqx"] / one["dependencies"] for one in rounds]
    least = min(seconds["floq_eqx"]) / min(seconds["dependencies"])
    print(f"ratio: {statistics.median(ratios):.2f}, {min(ratios):.2f} to {max(ratios):.2f}")
    print(f"ratio of the shortest times, which other jobs disturb least: {least:.2f}")


if __name__ == "__main__":
    main()
