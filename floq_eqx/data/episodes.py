"""What other people's environments tell of a step: faults, and whether an episode succeeded."""

import warnings
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

_SUCCESS = ("success", "is_success")  # the latter is Gymnasium-Robotics' and Stable-Baselines3's


class EnvironmentFaultError(RuntimeError):
    """An environment raised, or returned what is no observation, reward or success.

    **Attributes:**

    - `step`: in training, how many environment steps were done before it happened; in an
        evaluation, the step of the episode in which it happened, 0 for a reset.
    - `problem`, `where`: what happened, and where, in words.
    - `episode`: in an evaluation, which episode it happened in, by its number from 0 on, where
        that is known.
    - `progress`: in training, the [`floq_eqx.training.OnlineProgress`][] until then.
    """

    def __init__(
        self, problem: str, *, step: int, where: str, advice: str = "", episode: int | None = None
    ):
        self.problem, self.step, self.where, self.episode = problem, step, where, episode
        self.progress: Any = None
        super().__init__(f"The environment failed {where}: {problem}. {advice}".rstrip())


def one_line(error: Exception) -> str:
    """An exception's type and text."""
    text = " ".join(str(error).split()).rstrip(".")
    return f"{type(error).__name__}: {text}" if text else type(error).__name__


def observation_fault(
    observation: Any, shape: tuple[int, ...], rows: np.ndarray
) -> tuple[str, np.ndarray] | None:
    """What is wrong with the observations of a vector environment, and in which of the rows."""
    if np.shape(observation) != shape:
        return f"the shape of its observations is {np.shape(observation)}, expected {shape}", rows
    finite = np.isfinite(observation)
    if finite.all():
        return None
    bad = rows & ~finite.reshape(len(rows), -1).all(axis=1)
    return ("its observation is NaN or infinite", bad) if bad.any() else None


class Successes:
    """Reads success from the infos of a vector environment.

    The last step's info counts, by `success` or, where that is missing, `is_success`. Some
    environments tell it only when they succeed: once one has told, at whatever step, an episode
    whose last step does not tell has failed.

    **Arguments:** `told`: whether one has told before.
    """

    def __init__(self, told: bool = False):
        self.told = told

    def read(self, info: Any, running: np.ndarray, ended: np.ndarray) -> np.ndarray:
        """The success of each environment whose episode `ended`: 0, 1, or NaN while none of those
        that are `running` has told yet.

        **Raises:** `ValueError` for what is neither true nor false.
        """
        out = np.full(len(ended), np.nan)
        if self.told and not ended.any():
            return out
        for name in reversed(_SUCCESS):  # the first one has the last word
            if not isinstance(info, Mapping) or name not in info:
                continue
            values, mask = info[name], info.get(f"_{name}", True)
            if np.ndim(values) == 0 and len(ended) == 1:
                values = [values]
            if isinstance(values, Mapping) or np.shape(values)[:1] != ended.shape:
                if (ended & mask).any():
                    raise ValueError(_no_success(name, values))
                continue
            told = np.array([value is not None for value in values]) & mask
            self.told = self.told or bool((told & running).any())
            for index in np.flatnonzero(told & ended):
                out[index] = _as_success(name, values[index])
        if self.told:
            out[ended & np.isnan(out)] = 0.0
        return out


def _as_success(name: str, value: Any) -> float:
    array = np.asarray(value)
    if array.size == 1 and array.dtype.kind in "biuf" and array.item() in (0, 1):
        return float(array.item())
    raise ValueError(_no_success(name, value))


def _no_success(name: str, value: Any) -> str:
    text = " ".join(repr(value).split())
    text = text if len(text) < 100 else f"{text[:100]}…"
    return f'its info["{name}"] is {text}, which is neither true nor false'


def close_or_warn(what: str, close: Callable[[], None]) -> None:
    """Closes; what is done already does not fail with it."""
    try:
        close()
    except Exception as error:
        warnings.warn(f"{what} could not be closed: {one_line(error)}", stacklevel=2)
