"""OGBench's environments (arXiv 2410.20092), and what else is imported from it."""

import contextlib
import importlib
import sys
import warnings
from collections.abc import Iterator
from typing import Any, Literal

import numpy as np

from .names import parse_name


def ogbench_module(name: str = "ogbench") -> Any:
    """A module of OGBench, which registers its environments in Gymnasium.

    **Raises:** `ModuleNotFoundError` that says how to install it.
    """
    try:
        return importlib.import_module(name)
    except ModuleNotFoundError as error:
        # From 3.13 on, a requirement of dm_control that OGBench does not use cannot be installed.
        install = "--no-deps ogbench dm_control" if sys.version_info >= (3, 13) else "ogbench"
        raise ModuleNotFoundError(
            f"OGBench is needed for this and cannot be imported ({error}): pip install {install}",
            name=error.name,
        ) from error


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Silences what OGBench's environments warn of on every machine and to no purpose."""
    with warnings.catch_warnings():
        # MuJoCo's viewer is imported with the environment and misses a screen, which nobody uses.
        warnings.filterwarnings("ignore", module="glfw")
        warnings.filterwarnings("ignore", message=".*precision lowered by casting")
        yield


def _make(environment_id: str, **kwargs: Any) -> Any:
    """`gymnasium.make`, quiet, with an action space that is made once."""
    import gymnasium

    ogbench_module()
    with _quiet():
        env = gymnasium.make(environment_id, disable_env_checker=True, **kwargs)
        cls = type(env.unwrapped)
        if isinstance(getattr(cls, "action_space", None), property):
            # The manipulation environments make a new space, with a warning and an unseeded
            # generator, at every access; `reset` accesses it too.
            space: Any = env.action_space
            low, high = space.low.astype(np.float32), space.high.astype(np.float32)
            fixed = gymnasium.spaces.Box(low, high, dtype=np.float32)
            env.unwrapped.__class__ = type(cls.__name__, (cls,), {"action_space": fixed})
    return env


def make_environment(
    name: str,
    *,
    success_timing: Literal["pre", "post"] | None = None,
    sparse: bool = False,
    **kwargs: Any,
) -> Any:
    """Makes the Gymnasium environment that belongs to a dataset.

    **Arguments:**

    - `name`: an OGBench dataset name, of a single task or goal-conditioned.
    - `success_timing`: whether success, reward and termination are those of the state before the
        action (`"pre"`) or after it (`"post"`). `None` takes the installed OGBench's own: from
        1.2 on that is `"pre"` for single tasks, whereas published numbers were made with 1.1,
        which knew only `"post"`.
    - `sparse`: whether a reward is -1 unless the task is solved, instead of counting what of it is
        not.
    - `kwargs`: passed on to the environment.

    **Returns:** a `gymnasium.Env` with a time limit. Its `action_space.seed` works, which it does
    not for OGBench's own manipulation environments.

    **Raises:** `ValueError` for an unknown name or timing.
    """
    parsed = parse_name(name)
    if success_timing not in (None, "pre", "post"):
        raise ValueError(f"success_timing must be 'pre', 'post' or None, got {success_timing!r}.")
    if success_timing is not None:
        kwargs["success_timing"] = success_timing
    environment = _make(parsed.environment_id, **kwargs)
    if not sparse:
        return environment
    from gymnasium.wrappers import TransformReward

    return TransformReward(environment, lambda reward: float(sparse_reward(reward)))


def sparse_reward(reward: Any) -> Any:
    """0 where a reward of OGBench's tasks is 0, which is where the task is solved, and else -1."""
    return np.where(np.asarray(reward) == 0.0, np.float32(0.0), np.float32(-1.0))
