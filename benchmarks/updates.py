"""Updates per second of an agent, at the paper's sizes or the laptop preset's.

    python benchmarks/updates.py [--agent floq] [--preset paper|laptop] [--updates 20]

The data are random numbers of cube-double's sizes (observation 37, action 5); only their shapes
matter here. Prints the compile time, and the best and median of several calls of the compiled loop.
"""

import argparse
import os
import statistics
import time

import jax
import jax.numpy as jnp

from floq_eqx.agents import RECIPES
from floq_eqx.data import Batch
from floq_eqx.presets import preset
from floq_eqx.training import train_steps

SIZE, OBSERVATION, ACTION = 10_000, 37, 5


def random_data(key: jax.Array) -> Batch:
    keys = jax.random.split(key, 5)
    return Batch(
        observation=jax.random.normal(keys[0], (SIZE, OBSERVATION)),
        action=jax.random.uniform(keys[1], (SIZE, ACTION), minval=-1),
        reward=-(jax.random.uniform(keys[2], (SIZE,)) < 0.97).astype(jnp.float32),
        mask=jnp.ones(SIZE),
        next_observation=jax.random.normal(keys[3], (SIZE, OBSERVATION)),
        next_action=jax.random.uniform(keys[4], (SIZE, ACTION), minval=-1),
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--agent", choices=RECIPES, default="floq")
    parser.add_argument("--preset", choices=("paper", "laptop"), default="paper")
    parser.add_argument("--updates", type=int, default=20, help="updates a call")
    parser.add_argument("--calls", type=int, default=5)
    options = parser.parse_args()

    environment = "cube-double-play-singletask-task2-v0"
    config = preset(options.preset, agent=options.agent, environment=environment)
    key = jax.random.key(0)
    data = random_data(key)
    agent = config.agent.for_data(data)
    state = agent.init(OBSERVATION, ACTION, key=key)
    parameters = sum(leaf.size for leaf in jax.tree.leaves(state.params))
    device = jax.devices()[0].device_kind
    print(f"jax {jax.__version__}, {device}, {os.cpu_count()} cores")
    what = f"{options.agent}, {options.preset} preset, batch {config.batch_size}"
    print(f"{what}, {parameters:,} parameters")

    def call() -> float:
        start = time.perf_counter()
        done = train_steps(
            agent,
            state,
            data,
            num_updates=options.updates,
            batch_size=config.batch_size,
            key=key,
        )
        jax.block_until_ready(done)
        return time.perf_counter() - start

    first = call()
    times = [call() / options.updates for _ in range(options.calls)]
    median = statistics.median(times)
    print(f"first call, with compilation: {first:.1f} s")
    print(f"milliseconds an update: best {1e3 * min(times):.2f}, median {1e3 * median:.2f}")
    print(f"updates a second: {1 / median:.1f}")


if __name__ == "__main__":
    main()
