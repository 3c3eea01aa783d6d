"""One case of `benchmarks/speed.py`, compiled once and run when it is asked for.

As a program it is a process of its own, of the checkout that PYTHONPATH names: it prints a line of
JSON when it is ready, and for a line `run 3` another, of what three calls took. So two checkouts
can take turns. Nothing heavy is imported at the top, since the time of importing is measured.
"""

import dataclasses
import json
import resource
import sys
import time
from pathlib import Path
from typing import Any

SIZE, OBSERVATION, ACTION = 10_000, 37, 5  # cube-double's; only the shapes matter
ENVIRONMENT = "cube-double-play-singletask-task2-v0"


@dataclasses.dataclass(frozen=True)
class Case:
    """What is measured.

    **Arguments:** `agent`, `preset`: by name; `precision`: of the matrix products; `updates`: in
    one call of the compiled loop; `seeds`: trained side by side; `batch_size`: `None` for the
    preset's; `settings`: options of the agent that differ, with dots; `or_float32`: whether that
    is measured of an agent that has no other precision, instead of an error; `environment`: whose
    settings the preset has.
    """

    agent: str
    preset: str
    precision: str = "float32"
    updates: int = 10
    seeds: int = 1
    batch_size: int | None = None
    settings: dict[str, Any] = dataclasses.field(default_factory=dict)
    or_float32: bool = False
    environment: str = ENVIRONMENT


class Stopwatch:
    """Seconds since it was made: of wall time, of CPU time of all threads, and what of that the
    system took, which is mostly for memory that is given back and asked for again.
    """

    def __init__(self):
        self._start = self._now()

    def read(self) -> dict[str, float]:
        return {kind: now - self._start[kind] for kind, now in self._now().items()}

    @staticmethod
    def _now() -> dict[str, float]:
        system = resource.getrusage(resource.RUSAGE_SELF).ru_stime
        return {"wall": time.perf_counter(), "cpu": time.process_time(), "system": system}


def has_precision(agent: Any) -> bool:
    return "precision" in {field.name for field in dataclasses.fields(agent)}


def at_precision(agent: Any, precision: str) -> Any:
    """The agent with its matrix products at a precision.

    **Raises:** `ValueError` if it has but one, float32, and another is asked for.
    """
    if has_precision(agent):
        return dataclasses.replace(agent, precision=precision)
    if precision != "float32":
        raise ValueError(
            f"The agents of this checkout have no precision but float32, got {precision!r}: "
            "measure float32 alone, or a checkout whose agents have a `precision`."
        )
    return agent


def make_agent(case: Case) -> tuple[Any, int]:
    """The agent, and how many transitions a batch has."""
    from floq_eqx.agents import with_options
    from floq_eqx.presets import preset

    config = preset(case.preset, agent=case.agent, environment=case.environment)  # pyright: ignore
    agent = with_options(config.agent, case.settings)
    if has_precision(agent) or not case.or_float32:
        agent = at_precision(agent, case.precision)
    return agent, case.batch_size or config.batch_size


def random_data() -> Any:
    """Transitions of cube-double's sizes, made without JAX, which compiles nothing for them."""
    import jax.numpy as jnp
    import numpy as np

    from floq_eqx.data import Batch

    draw = np.random.default_rng(0)
    arrays = {
        "observation": draw.normal(size=(SIZE, OBSERVATION)),
        "action": draw.uniform(-1, 1, (SIZE, ACTION)),
        "reward": -(draw.uniform(size=SIZE) < 0.97).astype(float),
        "mask": np.ones(SIZE),
        "next_observation": draw.normal(size=(SIZE, OBSERVATION)),
        "next_action": draw.uniform(-1, 1, (SIZE, ACTION)),
    }
    return Batch(**{name: jnp.asarray(x.astype(np.float32)) for name, x in arrays.items()})


class Program:
    """The compiled loop of a case.

    **Attributes:** `agent`, `state`, `data`, `batch_size`; `first`: what the first update took, by
    part; `memory`: bytes that the compiled loop needs: arguments, results and what is in between.
    """

    def __init__(self, case: Case):
        import equinox as eqx
        import jax
        import jax.numpy as jnp

        from floq_eqx.training import train_seeds, train_steps
        from floq_eqx.training.loop import with_arrays

        self.case, self.first = case, {}
        watch = Stopwatch()
        self.data = random_data()
        agent, self.batch_size = make_agent(case)
        agent = agent.for_data(self.data)
        key = jax.random.key(0)
        self.state = jax.block_until_ready(agent.init(OBSERVATION, ACTION, key=key))
        self.first["construction"] = watch.read()

        # An array for every number, as `train_steps` makes them: no constants of the program.
        self.agent = with_arrays(agent)
        states, train, keys = self.state, train_steps, {"key": key}
        if case.seeds > 1:
            train, keys = train_seeds, {"keys": jax.random.split(key, case.seeds)}
            states = jax.tree.map(lambda x: jnp.repeat(x[None], case.seeds, axis=0), states)

        @eqx.filter_jit
        def loop(agent: Any, state: Any, data: Any, keys: Any) -> Any:
            sizes = {"num_updates": case.updates, "batch_size": self.batch_size}
            return train(agent, state, data, **sizes, **keys)

        self._inputs = self.agent, states, self.data, keys
        jitted: Any = loop
        watch = Stopwatch()
        lowered = jitted.lower(*self._inputs)
        self.first["tracing"] = watch.read()
        watch = Stopwatch()
        self._compiled = lowered.compile()
        self.first["compilation"] = watch.read()
        used: Any = self._compiled.compiled.memory_analysis()
        parts = ("temp", "argument", "output")
        size = sum(getattr(used, f"{part}_size_in_bytes") for part in parts)
        self.memory = size - used.alias_size_in_bytes
        self.first["first call"] = self.run()

    def run(self, calls: int = 1) -> dict[str, float]:
        """The seconds that so many calls take, always from the same state."""
        import jax

        watch = Stopwatch()
        for _ in range(calls):
            jax.block_until_ready(self._compiled(*self._inputs))
        return watch.read()


def resident() -> int:
    """The most bytes that this process has held."""
    unit = 1 if sys.platform == "darwin" else 1024
    return unit * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss


def serve(case: Case) -> None:
    watch = Stopwatch()
    import floq_eqx
    import floq_eqx.presets  # with training, which a program needs too

    imported = watch.read()
    import jax

    program = Program(case)
    ready = {
        "checkout": str(Path(floq_eqx.__file__).resolve().parents[1]),
        "precision": case.precision if has_precision(program.agent) else "float32",
        "batch_size": program.batch_size,
        "parameters": sum(leaf.size for leaf in jax.tree.leaves(program.state.params)),
        "first": {"import": imported} | program.first,
        "memory": program.memory,
    }
    print(json.dumps(ready), flush=True)
    for line in sys.stdin:
        command, _, calls = line.strip().partition(" ")
        if command != "run" or not calls.isdigit():
            raise SystemExit(f"Expected a line such as `run 3`, got {line.strip()!r}.")
        print(json.dumps(program.run(int(calls)) | {"resident": resident()}), flush=True)


if __name__ == "__main__":
    serve(Case(**json.loads(sys.argv[1])))
