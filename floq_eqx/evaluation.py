"""Rollouts of a policy: success, return and length over episodes that can be repeated."""

import contextlib
import dataclasses
import functools
import os
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from ._types import Key, Number
from .agents.base import Agent, State, check_sizes
from .data.environments import make_box_environment
from .data.ogbench import dataset_names, finish, make_environment, unfinished


@dataclasses.dataclass(frozen=True)
class Evaluation:
    """What episodes came to; each array has one entry an episode.

    **Attributes:**

    - `success`: 1 where the last step's `info["success"]` was true, else 0; NaN where the
        environment does not tell.
    - `returns`: the undiscounted sum of rewards.
    - `lengths`: the number of steps.
    """

    success: np.ndarray
    returns: np.ndarray
    lengths: np.ndarray

    def summary(self) -> dict[str, Number]:
        """Mean and standard deviation over episodes of each, and the number of episodes."""
        out: dict[str, Number] = {"episodes": len(self.success)}
        for name in ("success", "returns", "lengths"):
            values = getattr(self, name)
            out[name] = float(values.mean())
            out[f"{name}_std"] = float(values.std())
        return out


def evaluate(
    agent: Agent,
    state: State,
    environments: Any,
    *,
    num_episodes: int = 50,
    seed: int = 0,
    max_episode_steps: int = 10_000,
    before_step: Callable[[], None] = lambda: None,
) -> Evaluation:
    """Runs `num_episodes` episodes and says what they came to.

    Episode i is reset with the seed `seed + i` and acts on keys made from `seed`, i and the step,
    so the result does not depend on how many environments run side by side.

    **Arguments:**

    - `agent`, `state`: who acts, as `agent.for_evaluation()` says.
    - `environments`: from [`floq_eqx.evaluation.make_environments`][], or any Gymnasium vector
        environment with `autoreset_mode=AutoresetMode.DISABLED` and actions in [-1, 1].
    - `num_episodes`: at least 1.
    - `seed`: in [0, 2³¹).
    - `before_step`: called before every step; what it raises ends the evaluation.

    **Raises:** `ValueError` for an environment that resets by itself; `FloatingPointError` if the
    policy's action is NaN or infinite, naming episode and step.
    """
    check_sizes(num_episodes=num_episodes)
    _check_seed(seed)
    check_resets(environments)
    num = environments.num_envs
    key = jax.random.key(seed)
    success = np.full(num_episodes, np.nan)
    returns = np.zeros(num_episodes)
    lengths = np.zeros(num_episodes, np.int64)

    # Which episode each environment is in, and at which step of it. Gymnasium steps them all, so
    # environments beyond the last episode go on with episodes that nobody looks at.
    episode, step = np.arange(num), np.zeros(num, np.int64)
    next_episode = num
    observation = np.zeros(environments.observation_space.shape, np.float32)

    def reset(mask: np.ndarray) -> None:
        seeds = [seed + int(e) for e in episode]
        new, _ = environments.reset(seed=seeds, options={"reset_mask": mask})
        observation[mask] = new[mask]
        step[mask] = 0

    reset(np.ones(num, bool))
    while (running := episode < num_episodes).any():
        before_step()
        action = np.asarray(act_batch(agent, state, observation, key, episode, step))
        bad = np.flatnonzero(running & ~np.isfinite(action).all(axis=1))
        if len(bad):
            raise FloatingPointError(
                f"The policy's action is NaN or infinite in episode {episode[bad[0]]} at step "
                f"{step[bad[0]]}: the parameters or the observation are not finite."
            )
        new, reward, terminated, truncated, info = environments.step(action)
        observation[:] = new
        step += 1
        returns[episode[running]] += reward[running]
        done = terminated | truncated
        ended = running & done
        lengths[episode[ended]] = step[ended]
        if "success" in info:
            told = ended & info.get("_success", True)
            success[episode[told]] = info["success"][told]
        for index in np.flatnonzero(done):
            episode[index] = next_episode
            next_episode += 1
        if done.any():
            reset(done)
    return Evaluation(success, returns, lengths)


def check_resets(environments: Any) -> None:
    """Raises a `ValueError` for a vector environment that resets its episodes by itself.

    It would lose their last observations, and choose the seeds of the next.
    """
    from gymnasium.vector import AutoresetMode

    mode = environments.metadata.get("autoreset_mode")
    if mode != AutoresetMode.DISABLED:
        raise ValueError(
            "Needs a vector environment with autoreset_mode=AutoresetMode.DISABLED, whose episodes "
            f"are reset here, by their seed; got {mode}."
        )


def _check_seed(seed: int) -> None:
    # NumPy's global generator, which OGBench's mazes draw from, takes no larger seeds.
    if not 0 <= seed < 2**31:
        raise ValueError(f"seed must be in [0, 2**31), got {seed}.")


@eqx.filter_jit
def act_batch(
    agent: Agent,
    state: State,
    observation: Float[np.ndarray | Array, "batch observation"],
    key: Key,
    episode: Int[np.ndarray | Array, "batch"],
    step: Int[np.ndarray | Array, "batch"],
) -> Float[Array, "batch action"]:
    """What the agent does when it is evaluated, on a key for each (episode, step)."""
    agent = agent.for_evaluation()

    def act(inputs: tuple[Array, Array, Array]) -> Array:
        observation, episode, step = inputs
        own = jax.random.fold_in(jax.random.fold_in(key, episode), step)
        return agent.act(state, observation, key=own)

    # Not vmap: the rounding of a batched product depends on the size of the batch, and a rollout
    # is chaotic. For networks of this size one after the other is as fast.
    return jax.lax.map(act, jax.tree.map(jnp.asarray, (observation, episode, step)))


def make_environments(
    name: str,
    num: int = 10,
    *,
    asynchronous: bool = False,
    success_timing: Literal["pre", "post"] | None = None,
    **kwargs: Any,
) -> Any:
    """`num` copies of an environment, as a Gymnasium vector environment.

    **Arguments:**

    - `name`: an OGBench name such as `cube-single-play-singletask-task1-v0`, or the id of any
        Gymnasium environment whose observations and actions are boxes, such as `Pendulum-v1`; see
        [`floq_eqx.data.environments.make_box_environment`][].
    - `num`: how many run side by side.
    - `asynchronous`: each in a process of its own, instead of one after the other in this one;
        scripts then need the `if __name__ == "__main__":` guard of `multiprocessing`.
    - `success_timing`: whether success and reward are those of the state before a step (`"pre"`,
        OGBench from 1.2 on) or after it (`"post"`, before; published numbers are made so).
    - `**kwargs`: for the environment.

    **Raises:** `ValueError` for an environment that is not known, or not of boxes.
    """
    from gymnasium.vector import AsyncVectorEnv, AutoresetMode, SyncVectorEnv

    check_sizes(num=num)
    make = functools.partial(_seeded, name, success_timing, kwargs)
    mode = AutoresetMode.DISABLED
    if asynchronous:
        return AsyncVectorEnv([make] * num, context="spawn", autoreset_mode=mode)
    return SyncVectorEnv([make] * num, autoreset_mode=mode)


def _seeded(name: str, success_timing: Literal["pre", "post"] | None, kwargs: dict) -> Any:
    import gymnasium

    class SeededReset(gymnasium.Wrapper):
        """OGBench's mazes draw from NumPy's global generator: seed it around each reset."""

        def reset(self, *, seed: int | None = None, options: dict | None = None):
            before = np.random.get_state()  # noqa: NPY002
            np.random.seed(seed)  # noqa: NPY002
            try:
                return self.env.reset(seed=seed, options=options)
            finally:
                np.random.set_state(before)  # noqa: NPY002

    if name not in dataset_names():
        return make_box_environment(name, **kwargs)
    return SeededReset(make_environment(name, success_timing=success_timing, **kwargs))


def record(
    agent: Agent,
    state: State,
    name: str,
    path: str | os.PathLike[str],
    *,
    seed: int = 0,
    success_timing: Literal["pre", "post"] | None = None,
    fps: int = 20,
) -> Path:
    """Writes the first episode of an evaluation with the same seed as an animated GIF.

    **Arguments:** `agent`, `state`: who acts; `name`: the environment's; `path`: the file;
    `seed`: the episode's; `success_timing`: as in
    [`floq_eqx.evaluation.make_environments`][]; `fps`: frames a second.

    **Returns:** the path.

    **Raises:** `RuntimeError` if this machine cannot render.
    """
    from PIL import Image

    check_sizes(fps=fps)
    _check_seed(seed)
    path = Path(path)
    # OGBench's environments know what to render; Gymnasium's others must be told.
    options = {} if name in dataset_names() else {"render_mode": "rgb_array"}
    with contextlib.closing(_seeded(name, success_timing, options)) as environment:
        observation, _ = environment.reset(seed=seed)
        try:
            with warnings.catch_warnings():
                warnings.filterwarnings("ignore", module="glfw")  # the error below says it all
                frames = [environment.unwrapped.render()]
        except Exception as error:
            raise RuntimeError(
                "This machine cannot render. MuJoCo needs OpenGL: without a display, install EGL "
                f"or OSMesa and set MUJOCO_GL=egl or MUJOCO_GL=osmesa. It says: {error}"
            ) from error
        key, done, step = jax.random.key(seed), False, 0
        while not done:
            batch = np.asarray(observation, np.float32)[None]
            action = act_batch(agent, state, batch, key, np.array([0]), np.array([step]))
            observation, _, terminated, truncated, _ = environment.step(np.asarray(action)[0])
            frames.append(environment.unwrapped.render())
            done, step = terminated or truncated, step + 1
    first, *others = [Image.fromarray(frame) for frame in frames]
    with unfinished(path) as file:
        first.save(
            file, format="GIF", save_all=True, append_images=others, duration=1000 // fps, loop=0
        )
        finish(file, path)
    return path
