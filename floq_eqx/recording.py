"""An episode as an animated GIF."""

import contextlib
import os
import warnings
from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any, Literal

import numpy as np

from ._checks import check_sizes
from .agents.agent import Agent, State
from .data.episodes import close_or_warn, one_line
from .data.files import finish, unfinished
from .data.names import dataset_names
from .evaluation import check_seed, evaluate, faults_named, make_environments


def check_recording(path: str | os.PathLike[str]) -> Path:
    """The path of a recording, which must end as the GIF that it will be."""
    path = Path(path)
    if path.suffix.lower() != ".gif":
        raise ValueError(f"Recordings are animated GIFs: {path} must end in .gif.")
    return path


def record(
    agent: Agent,
    state: State,
    name: str,
    path: str | os.PathLike[str],
    *,
    seed: int = 0,
    success_timing: Literal["pre", "post"] | None = None,
    fps: int = 20,
    max_episode_steps: int = 10_000,
    environment_kwargs: Mapping[str, Any] = MappingProxyType({}),
) -> Path:
    """Writes the first episode of an evaluation with the same seed as an animated GIF.

    **Arguments:**

    - `agent`, `state`: who acts.
    - `name`, `success_timing`: as in [`floq_eqx.evaluation.make_environments`][].
    - `path`: the file, which ends in `.gif`.
    - `seed`, `max_episode_steps`: as in [`floq_eqx.evaluation.evaluate`][].
    - `fps`: frames a second.
    - `environment_kwargs`: arguments for the environment.

    **Returns:** the path.

    **Raises:** `RuntimeError` if the environment cannot be rendered here; as `make_environments`
    and `evaluate` do; `ValueError` for another ending.
    """
    from gymnasium.vector import VectorWrapper
    from PIL import Image

    check_sizes(fps=fps, max_episode_steps=max_episode_steps)
    check_seed(seed)
    path = check_recording(path)
    frames = []

    class Filming(VectorWrapper):
        def step(self, actions: Any):
            out = self.env.step(actions)
            frames.append(_frame(name, environment))
            return out

    # OGBench's environments know what to render; Gymnasium's others must be told.
    options = dict(environment_kwargs)
    if name not in dataset_names():
        options["render_mode"] = "rgb_array"
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".*render_mode")  # the errors say it
        environments = make_environments(name, 1, success_timing=success_timing, **options)
    with contextlib.ExitStack() as stack:
        stack.callback(close_or_warn, "an environment", environments.close)
        environment = environments.envs[0]
        with faults_named(np.zeros(1, int), np.zeros(1, int), "reset"):
            environment.reset(seed=seed)
        frames.append(_frame(name, environment))
        # Which resets it again, with the same seed.
        evaluate(
            agent,
            state,
            Filming(environments),
            num_episodes=1,
            seed=seed,
            max_episode_steps=max_episode_steps,
        )
    first, *others = [Image.fromarray(frame) for frame in frames]
    with unfinished(path) as file:
        first.save(
            file, format="GIF", save_all=True, append_images=others, duration=1000 // fps, loop=0
        )
        finish(file, path)
    return path


def _frame(name: str, environment: Any) -> np.ndarray:
    """A picture of an environment.

    **Raises:** `RuntimeError` if there is none, with advice if OpenGL may be what is missing.
    """
    inner = environment.unwrapped
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", module="glfw")  # the error below says it all
            frame = inner.render()
    except Exception as error:
        advice = ""
        if any(
            type(part).__module__.split(".")[0] == "mujoco"
            for part in getattr(inner, "__dict__", {}).values()
        ):
            advice = (
                " MuJoCo needs OpenGL: without a display, install EGL or OSMesa and set "
                "MUJOCO_GL=egl or MUJOCO_GL=osmesa."
            )
        raise RuntimeError(f"{name} cannot render here: {one_line(error)}.{advice}") from error
    if not (isinstance(frame, np.ndarray) and frame.dtype == np.uint8 and frame.ndim == 3):
        modes = inner.metadata.get("render_modes", [])
        raise RuntimeError(
            f"{name} cannot render: with render_mode='rgb_array' it draws no picture, but "
            f"{type(frame).__name__}; the modes that it knows: {', '.join(modes) or 'none'}."
        )
    return frame
