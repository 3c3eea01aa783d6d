"""Where the time of learning online goes, and environment steps a second against a plain loop.

    python -m benchmarks.online_speed

At one update a step: the loop of `fit_online`, its parts by themselves, and the loop that is
usually written: transitions in NumPy arrays on the host, a batch sent to the device each time.
"""

import argparse
import time
from collections.abc import Callable
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np

from floq_eqx.agents import Agent
from floq_eqx.data import Batch, Replay
from floq_eqx.evaluation import make_environments
from floq_eqx.training import OnlineProgress, fit_online, online
from floq_eqx.training.loop import with_arrays

from .agents import TASK
from .online import CUBE_SETTINGS, PENDULUM, make

CASES = {
    "sac, 2 × 256, Pendulum": (PENDULUM, "sac", 256, {"action_size": 1}),
    "floq, 2 × 128, cube-single": (TASK, "floq", 128, CUBE_SETTINGS | {"action_size": 5}),
    "fql, 2 × 128, cube-single": (TASK, "fql", 128, CUBE_SETTINGS | {"action_size": 5}),
}
BATCH, CAPACITY = 128, 1_000_000


def ours(agent: Agent, state: Any, world: Any, key: Any, steps: int) -> float:
    """Environment steps a second, in the second of two chunks."""
    rates: list[float] = []

    def after(now: OnlineProgress) -> None:
        rates.append(now.env_steps_per_second)

    size = world.single_observation_space.shape[0]
    replay = Replay.empty(CAPACITY, size, world.single_action_space.shape[0])
    options = {"num_steps": 2 * steps, "batch_size": BATCH, "key": key, "chunk": steps}
    fit_online(agent, state, replay, world, callbacks=[after], **options)
    return rates[1]


def plain(agent: Agent, state: Any, world: Any, key: Any, steps: int) -> float:
    """The same of a loop that keeps transitions on the host."""
    agent = with_arrays(agent)
    (size,), (action_size,) = world.single_observation_space.shape, world.single_action_space.shape
    shapes = {
        "observation": (size,),
        "action": (action_size,),
        "reward": (),
        "mask": (),
        "next_observation": (size,),
    }
    held = {name: np.zeros((CAPACITY, *shape), np.float32) for name, shape in shapes.items()}

    @eqx.filter_jit
    def act(agent: Agent, state: Any, observation: Any, key: Any) -> Any:
        return agent.explore(state, observation, key=key)

    @eqx.filter_jit
    def update(agent: Agent, state: Any, batch: Batch, key: Any) -> Any:
        return agent.update(state, batch, agent.noise(BATCH, key=key))

    rng = np.random.default_rng(0)
    observation, _ = world.reset(seed=0)
    began = 0.0
    for step in range(2 * steps):
        if step == steps:
            began = time.perf_counter()
        key, act_key, update_key = jax.random.split(key, 3)
        action = np.asarray(act(agent, state, jnp.asarray(observation[0], jnp.float32), act_key))
        new, reward, terminated, truncated, _ = world.step(action[None])
        row = (observation[0], action, reward[0], 1.0 - terminated[0], new[0])
        for array, value in zip(held.values(), row, strict=True):
            array[step % CAPACITY] = value
        index = rng.integers(0, step + 1, BATCH)
        batch = Batch(**{name: jnp.asarray(array[index]) for name, array in held.items()})
        state, _ = update(agent, state, batch, update_key)
        observation = new
        if terminated[0] or truncated[0]:
            observation, _ = world.reset(options={"reset_mask": np.ones(1, bool)})
    jax.block_until_ready(state)
    return steps / (time.perf_counter() - began)


def parts(agent: Agent, state: Any, world: Any, key: Any, steps: int) -> dict[str, float]:
    """Milliseconds of each part of a step of `fit_online`, by itself."""
    size, action_size = world.single_observation_space.shape[0], agent.action_shape()[0]
    seen = online._World(world, seed=0, step=0, tells_success=False)
    replay = Replay.empty(CAPACITY, size, action_size)
    inputs = online._Inputs(with_arrays(agent), None, 0.5, BATCH, 1, key)
    state = jax.tree.map(jnp.copy, state)
    action = seen.random_action()
    step = np.asarray(1)

    def environment() -> None:
        nonlocal transition
        transition = seen.advance(action)

    def remember() -> None:
        nonlocal replay
        replay = jax.block_until_ready(online._remember(transition, replay))

    def policy() -> None:
        np.asarray(online._explore(inputs, state, seen.observation, step))

    def all_on_the_device() -> None:
        nonlocal state
        state, _, action = online._learn(inputs, replay, state, seen.observation, step)
        np.asarray(action)
        jax.block_until_ready(state)

    transition: Any = None
    found = {
        "environment": milliseconds(environment, steps),
        "transfer": milliseconds(remember, steps),
        "policy": milliseconds(policy, steps),
    }
    return found | {"update": milliseconds(all_on_the_device, steps) - found["policy"]}


def milliseconds(call: Callable[[], None], count: int) -> float:
    call()
    began = time.perf_counter()
    for _ in range(count):
        call()
    return (time.perf_counter() - began) / count * 1e3


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--steps", type=int, default=400, help="environment steps that are timed")
    options = parser.parse_args()
    print("| case | steps a second, ours | plain loop | environment | transfer | policy | update |")
    print("|---|---|---|---|---|---|---|")
    for label, (environment, name, width, settings) in CASES.items():
        agent = make(name, width, settings)
        key = jax.random.key(0)
        world = make_environments(environment, 1)
        state = agent.init(
            world.single_observation_space.shape[0], agent.action_shape()[0], key=key
        )
        rates = [run(agent, state, world, key, options.steps) for run in (ours, plain)]
        spent = parts(agent, state, world, key, options.steps)
        each = " | ".join(f"{value:.2f} ms" for value in spent.values())
        print(f"| {label} | {rates[0]:.0f} | {rates[1]:.0f} | {each} |", flush=True)
        world.close()


if __name__ == "__main__":
    main()
