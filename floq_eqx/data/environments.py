"""Environments of Gymnasium that are not OGBench's, in the form that agents act in."""

import contextlib
import dataclasses
import difflib
from collections.abc import Iterator
from typing import Any

import numpy as np

from .episodes import close_or_warn, one_line
from .names import dataset_names


def make_box_environment(name: str, /, **kwargs: Any) -> Any:
    """A Gymnasium environment whose observation is a float32 vector and whose actions are in
    [-1, 1], rescaled to its own bounds.

    Boxes of up to two dimensions are flattened, observations and actions, and observations of
    whole numbers become float32. Images are refused.

    **Arguments:** the environment's id, such as `Pendulum-v1`, or `module:Id-v0` for one that is
    registered when `module` is imported; and arguments for it.

    **Raises:** `ValueError` for an environment that cannot be made, or in which agents cannot act:
    whose observations are images or no box, or whose actions are no box of real numbers between
    finite bounds.
    """
    environment = _with_boxes(name, kwargs)
    try:
        return _as_vectors(environment)
    except BaseException:
        close_or_warn(f"the environment {name}", environment.close)
        raise


@dataclasses.dataclass(frozen=True)
class Boxes:
    """The spaces of a Gymnasium environment, before they are rescaled.

    **Attributes:** the size of its flattened observations, and the bounds of each component of its
    flattened actions.
    """

    observation_size: int
    low: np.ndarray
    high: np.ndarray


def boxes_of(name: str, /, **kwargs: Any) -> Boxes:
    """The spaces of an environment that `make_box_environment` makes, of the same arguments.

    **Raises:** as there.
    """
    environment = _with_boxes(name, kwargs)
    actions = environment.action_space
    size = int(np.prod(environment.observation_space.shape))
    close_or_warn(f"the environment {name}", environment.close)
    return Boxes(size, *(x.astype(np.float32).reshape(-1) for x in (actions.low, actions.high)))


def _with_boxes(name: str, kwargs: dict[str, Any]) -> Any:
    import gymnasium

    with making(name):
        environment = gymnasium.make(name, **kwargs)
    try:
        problem = observation_problem(environment) or action_problem(environment)
        if problem is not None:
            raise ValueError(f"Agents cannot act in {name}: {problem}.")
        return environment
    except BaseException:
        close_or_warn(f"the environment {name}", environment.close)
        raise


@contextlib.contextmanager
def making(name: str) -> Iterator[None]:
    """Whatever the making of an environment raises becomes a `ValueError` of one line."""
    from gymnasium.error import DependencyNotInstalled, Error

    try:
        yield
    except Error as error:
        text = " ".join(str(error).split()).rstrip(".")
        if isinstance(error, DependencyNotInstalled):
            raise ValueError(f"The environment {name} cannot be made: {text}.") from error
        near = difflib.get_close_matches(name, dataset_names(), n=3)
        hint = f" Did you mean {', '.join(near)}?" if near else ""
        raise ValueError(
            f"{name!r} is neither an OGBench name nor a Gymnasium environment that can be made: "
            f"{text}.{hint}"
        ) from error
    except Exception as error:
        raise ValueError(f"The environment {name} cannot be made: {one_line(error)}.") from error


def observation_problem(environment: Any, how: str = "register it") -> str | None:
    """Why no agent can look at the observations of something that has an `observation_space`.

    **Arguments:** `how`: what to do with a wrapper that helps.
    """
    from gymnasium import spaces

    space = environment.observation_space
    text = " ".join(str(space).split())
    if not isinstance(space, spaces.Box):
        return (
            f"its observation space is {text}, not a box of real numbers; {how} with "
            "gymnasium.wrappers.FlattenObservation around it"
        )
    if space.dtype == np.uint8 or len(space.shape) > 2:
        return (
            f"its observations look like images: {text}; only vectors are supported: {how} "
            "with a wrapper around it that makes features, of another type than uint8"
        )
    if 0 in space.shape:
        return f"its observations have no components: {text}"
    return None


def action_problem(environment: Any, how: str = "register it") -> str | None:
    """Why no agent can act in the `action_space` of something; as `observation_problem`."""
    from gymnasium import spaces

    space = environment.action_space
    text = " ".join(str(space).split())
    if not isinstance(space, spaces.Box):
        return f"its action space is {text}, not a box of real numbers"
    if space.dtype.kind != "f":
        return f"its actions are whole numbers: {text}; only real numbers are supported"
    if 0 in space.shape:
        return f"its actions have no components: {text}"
    if not (np.isfinite(space.low) & np.isfinite(space.high)).all():
        return (
            f"its actions have no bounds: {text}; {how} with "
            "gymnasium.wrappers.RescaleAction or TransformAction around it, between finite ones"
        )
    # As float32, which the actions are: what overflows or coincides there cannot be rescaled.
    with np.errstate(over="ignore", invalid="ignore"):
        width = space.high.astype(np.float32) - space.low.astype(np.float32)
    bad = ~(np.isfinite(width) & (width > 0))
    if bad.any():
        index = np.argmax(bad)
        low, high = space.low.flat[index], space.high.flat[index]
        return (
            f"component {index} of its actions lies between {low} and {high}, which are not one "
            "below the other, or too far apart; leave a component that cannot change out of it"
        )
    return None


def _as_vectors(environment: Any) -> Any:
    from gymnasium import spaces, wrappers

    real = environment.action_space.dtype.type
    environment = wrappers.RescaleAction(environment, real(-1), real(1))
    shape = environment.action_space.shape
    if len(shape) != 1:
        flat = spaces.Box(-1, 1, (int(np.prod(shape)),), real)
        environment = wrappers.TransformAction(environment, lambda a: a.reshape(shape), flat)
    size = int(np.prod(environment.observation_space.shape))
    return wrappers.TransformObservation(
        environment,
        lambda observation: np.asarray(observation, np.float32).reshape(-1),
        spaces.Box(-np.inf, np.inf, (size,), np.float32),
    )
