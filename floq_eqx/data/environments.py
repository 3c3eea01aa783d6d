"""Environments of Gymnasium that are not OGBench's, in the form that agents act in."""

import difflib
from typing import Any

import numpy as np

from .ogbench import dataset_names


def make_box_environment(name: str, **kwargs: Any) -> Any:
    """A Gymnasium environment whose observation is a float32 vector and whose actions are in
    [-1, 1], rescaled to its own bounds.

    **Arguments:** the environment's id, and arguments for it.

    **Raises:** `ValueError` for an id that Gymnasium does not know, or an environment whose
    observations or actions are not a box, or whose actions are not bounded.
    """
    import gymnasium
    from gymnasium import spaces, wrappers

    try:
        environment = gymnasium.make(name, **kwargs)
    except gymnasium.error.Error as error:
        near = difflib.get_close_matches(name, dataset_names(), n=3)
        hint = f" Did you mean {', '.join(near)}?" if near else ""
        raise ValueError(
            f"{name!r} is neither an OGBench name nor a Gymnasium environment that can be made: "
            f"{error}.{hint}"
        ) from error
    problem = None
    for what in ("observation", "action"):
        space = getattr(environment, f"{what}_space")
        if not isinstance(space, spaces.Box):
            problem = f"its {what} space is {space}, not a box of real numbers"
    action_space: Any = environment.action_space
    if problem is None and not action_space.is_bounded():
        problem = f"its actions have no bounds: {action_space}"
    if problem is not None:
        environment.close()
        raise ValueError(f"Agents cannot act in {name}: {problem}.")
    environment = wrappers.RescaleAction(environment, np.float32(-1), np.float32(1))
    environment = wrappers.FlattenObservation(environment)
    return wrappers.DtypeObservation(environment, np.float32)
