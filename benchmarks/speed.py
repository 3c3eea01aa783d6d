"""What an update costs, and where its time goes.

    python benchmarks/speed.py
    python benchmarks/speed.py --agents floq fql --sizes paper laptop --json out.json
    python benchmarks/speed.py --sizes laptop --grow --markdown out.md
    python benchmarks/speed.py --against ../before   # another checkout, by turns

Every case runs in a process of its own, on random numbers of cube-double's sizes (observation 37,
action 5). CPU time is that of all threads, which other programs disturb less than wall time.
Operations are those of the matrix products, counted from shapes; the fraction is of the best rate
of large products that this machine reached at the same precision in the same run.
"""

import argparse
import dataclasses
import datetime
import json
import os
import platform
import shlex
import subprocess
import sys
from collections.abc import Sequence
from contextlib import ExitStack, closing
from pathlib import Path
from typing import Any

if not __package__:  # run as a script, not with -m
    sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import jax
import jax.numpy as jnp

import floq_eqx
from benchmarks.speed_parts import breakdown, growth, per_update, spread, update_flops
from benchmarks.speed_tables import markdown
from benchmarks.speed_worker import Case, Stopwatch, make_agent
from floq_eqx.agents import RECIPES

PRECISIONS = ("float32", "tf32", "bfloat16")


@dataclasses.dataclass(frozen=True)
class Size:
    """How large the networks and batches are: those of a preset, but for some settings.

    **Arguments:** `updates`: in a call of the compiled loop; others as `Case`.
    """

    preset: str
    updates: int
    batch_size: int | None = None
    settings: dict[str, Any] = dataclasses.field(default_factory=dict)


SIZES = {"paper": Size("paper", 5), "laptop": Size("laptop", 50)}
PRODUCTS = ((1, 2048, 512, 512), (2, 2048, 512, 512), (1, 4096, 1024, 1024))
"""Matrix products, as batch, m, k, n, whose best rate counts; on a GPU a larger one too."""


class Worker:
    """A process that runs a case, with the `floq_eqx` of a checkout and more environment
    variables.
    """

    def __init__(self, checkout: Path, case: Case, **variables: str):
        script = Path(__file__).with_name("speed_worker.py")
        command = [sys.executable, "-P", str(script), json.dumps(dataclasses.asdict(case))]
        env = os.environ | {"PYTHONPATH": str(checkout)} | variables
        env.pop("JAX_COMPILATION_CACHE_DIR", None)  # or the compilation was another run's
        pipe = subprocess.PIPE
        self._process: Any = subprocess.Popen(command, env=env, stdin=pipe, stdout=pipe, text=True)
        self._what = f"{case.agent}, {case.precision}, of {checkout}"
        try:
            self.ready = self._read()
            found = self.ready["checkout"]
            if found != str(checkout):
                raise SystemExit(
                    f"Expected a checkout, with a folder floq_eqx, in {checkout}, and Python found "
                    f"the package in {found}: name the folder that has floq_eqx in it."
                )
        except BaseException:
            self.close()
            raise

    def run(self) -> dict[str, float]:
        """What a call of the compiled loop takes, and the most memory so far."""
        self._process.stdin.write("run 1\n")
        self._process.stdin.flush()
        return self._read()

    def _read(self) -> dict[str, Any]:
        line = self._process.stdout.readline()
        if not line:
            status = self._process.wait()
            raise SystemExit(f"{self._what}: the process ended with {status}, as told above.")
        return json.loads(line)

    def close(self) -> None:
        self._process.communicate()  # which closes its input, and so it ends


def measure(
    case: Case, other: Path | None, repetitions: int, rate: dict[str, float]
) -> dict[str, Any]:
    """Everything about a case, and beside it about the same of another checkout."""
    own = Path(floq_eqx.__file__).resolve().parents[1]
    flops = update_flops(case)
    with ExitStack() as stack:
        workers = [stack.enter_context(closing(Worker(own, case)))]
        if other is not None:
            same = dataclasses.replace(case, or_float32=True)
            workers.append(stack.enter_context(closing(Worker(other, same))))
        turns: list[list[dict[str, float]]] = []
        for turn in range(repetitions + 1):
            # The one that begins is another in every turn, and the first turn warms up.
            order = workers if turn % 2 else workers[::-1]
            took = {worker: worker.run() for worker in order}
            turns.append([took[worker] for worker in workers])
    mine, *theirs = (list(each) for each in zip(*turns[1:], strict=True))
    taken = per_update(mine, case.updates)
    result = _ready(workers[0]) | taken
    result |= {
        "updates_per_second": 1 / taken["wall"]["median"],
        "resident": mine[-1]["resident"],
        "flops": flops.products,
        "loops": flops.loops,
        "fraction": fraction(flops.products, taken, rate),
    }
    for worker, times in zip(workers[1:], theirs, strict=True):
        ratios = {
            kind: spread(a[kind] / b[kind] for a, b in zip(mine, times, strict=True))
            for kind in ("wall", "cpu")
        }
        result["other"] = _ready(worker) | per_update(times, case.updates) | {"ratio": ratios}
    return result


def _ready(worker: Worker) -> dict[str, Any]:
    """What a worker said when it was ready, with the sum of the times."""
    ready = {name: value for name, value in worker.ready.items() if name != "checkout"}
    first = ready["first"]
    total = {kind: sum(part[kind] for part in first.values()) for kind in ("wall", "cpu")}
    return ready | {"first": first | {"total": total}}


def fraction(flops: int, taken: dict[str, Any], rate: dict[str, float]) -> dict[str, float]:
    """What share of the matrix products' rate an update reaches, by wall and by CPU time."""
    return {kind: flops / taken[kind]["median"] / rate[kind] for kind in ("wall", "cpu")}


def product_rate(precision: str, repetitions: int = 15) -> dict[str, float]:
    """Operations a second, and a CPU second, of the fastest of `PRODUCTS`, accumulated in float32.

    **Raises:** `SystemExit` where the device has no such product.
    """
    on_gpu = jax.default_backend() == "gpu"
    if precision == "tf32" and not on_gpu:
        raise SystemExit("tf32 is a precision of GPUs: measure float32 or bfloat16 here.")
    # Float32 is to be float32: on a GPU the default is tf32.
    tf32 = jax.lax.DotAlgorithmPreset.TF32_TF32_F32
    algorithm = tf32 if precision == "tf32" else jax.lax.Precision.HIGHEST
    dtype = jnp.bfloat16 if precision == "bfloat16" else jnp.float32

    @jax.jit
    def product(x: jax.Array, y: jax.Array) -> jax.Array:
        return jnp.matmul(x, y, precision=algorithm, preferred_element_type=jnp.float32)

    best = {"wall": 0.0, "cpu": 0.0}
    for batch, m, k, n in (*PRODUCTS, *([(1, 8192, 8192, 8192)] if on_gpu else [])):
        x, y = (
            jax.random.normal(jax.random.key(0), (batch, *shape)).astype(dtype)
            for shape in ((m, k), (k, n))
        )
        jax.block_until_ready(product(x, y))
        for _ in range(repetitions):
            watch = Stopwatch()
            jax.block_until_ready(product(x, y))
            took = watch.read()
            for kind in best:
                best[kind] = max(best[kind], 2 * batch * m * k * n / took[kind])
    return best


def machine() -> dict[str, Any]:
    """What the numbers are of."""
    cpu = platform.processor() or platform.machine()
    info = Path("/proc/cpuinfo")
    if info.exists():
        models = [line for line in info.read_text().splitlines() if line.startswith("model name")]
        cpu = models[0].partition(":")[2].strip() if models else cpu
    affinity = getattr(os, "sched_getaffinity", None)
    cores = len(affinity(0)) if affinity else os.cpu_count()
    return {
        "jax": jax.__version__,
        "cpu": cpu,
        "cores": cores,
        "device": jax.devices()[0].device_kind,
    }


def case_of(agent: str, size: str, precision: str, updates: int | None) -> Case:
    """The case of these names; a call of the loop makes the size's number of updates or another."""
    fields = dataclasses.asdict(SIZES[size])
    if updates is not None:
        fields["updates"] = updates
    return Case(agent=agent, precision=precision, **fields)


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    several: dict[str, Any] = {"nargs": "+"}
    parser.add_argument("--agents", **several, choices=RECIPES, default=["floq", "fql"])
    parser.add_argument("--sizes", **several, choices=SIZES, default=list(SIZES))
    parser.add_argument("--precisions", **several, choices=PRECISIONS, default=["float32"])
    parser.add_argument("--updates", type=int, help="in a call, instead of the size's own number")
    parser.add_argument("--repetitions", type=int, default=7, help="calls that are timed")
    parser.add_argument(
        "--breakdown",
        action=argparse.BooleanOptionalAction,
        default=True,
        help="the parts of floq's update, in float32, where floq is among the agents",
    )
    parser.add_argument(
        "--grow", action="store_true", help="floq's cost by size, around the last of --sizes"
    )
    parser.add_argument(
        "--against", type=Path, metavar="CHECKOUT", help="another checkout, measured by turns"
    )
    parser.add_argument("--json", type=Path, help="write the numbers to this file")
    parser.add_argument("--markdown", type=Path, help="write the tables to this file")
    options = parser.parse_args(arguments)
    for name in ("updates", "repetitions"):
        number = getattr(options, name)
        if number is not None and number < 1:
            parser.error(f"--{name} must be at least 1, got {number}")
    for path in (options.json, options.markdown):  # which are written at the end of all
        if path is not None and not path.resolve().parent.is_dir():
            parser.error(f"{path}: there is no such folder to write to; make it first")
    if options.against is not None and not (options.against / "floq_eqx").is_dir():
        parser.error(f"--against {options.against}: expected a folder with floq_eqx in it")
    for agent in options.agents:
        for size in options.sizes:
            for precision in options.precisions:
                try:
                    make_agent(case_of(agent, size, precision, None))
                except ValueError as error:
                    parser.error(f"{agent}, {size}, {precision}: {error}")
    return options


def tell(what: str) -> None:
    print(what, file=sys.stderr, flush=True)


def main(arguments: Sequence[str] | None = None) -> None:
    options = parse(arguments)
    # With a process for each case beside this one, none may take all of a GPU's memory.
    os.environ.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")
    words = sys.argv[1:] if arguments is None else arguments
    results: dict[str, Any] = {
        "command": shlex.join(["python", "benchmarks/speed.py", *words]),
        "date": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "machine": machine(),
        "against": None if options.against is None else str(options.against),
        "rates": {},
        "cases": [],
        "breakdown": [],
        "growth": [],
    }
    rates, repetitions = results["rates"], options.repetitions
    # The parts are float32's, whatever else is asked for.
    for precision in dict.fromkeys([*options.precisions, "float32"]):
        tell(f"matrix products, {precision}")
        rates[precision] = product_rate(precision)
    other = None if options.against is None else options.against.resolve()
    for agent in options.agents:
        for size in options.sizes:
            for precision in options.precisions:
                names = {"agent": agent, "size": size, "precision": precision}
                tell(", ".join(names.values()))
                case = case_of(agent, size, precision, options.updates)
                results["cases"].append(names | measure(case, other, repetitions, rates[precision]))
    if options.breakdown and "floq" in options.agents:
        for size in options.sizes:
            tell(f"the parts of floq's update, {size}")
            rows = breakdown(case_of("floq", size, "float32", options.updates), repetitions)
            for row in rows:
                row["fraction"] = fraction(row["flops"], row, rates["float32"])
            results["breakdown"].append({"agent": "floq", "size": size, "rows": rows})
    if options.grow:
        size, precision = options.sizes[-1], options.precisions[0]
        tell(f"the growth of floq's update around {size}")
        rows = growth(case_of("floq", size, precision, options.updates), repetitions, tell)
        block = {"agent": "floq", "precision": precision, "around": size, "rows": rows}
        results["growth"].append(block)
    tables = markdown(results)
    print(tables)
    if options.json is not None:
        options.json.write_text(json.dumps(results, indent=1) + "\n")
    if options.markdown is not None:
        options.markdown.write_text(tables)


if __name__ == "__main__":
    main()
