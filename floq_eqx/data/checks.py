"""What is checked of data before an agent learns from them, and what is read off them."""

import dataclasses
import hashlib
from collections.abc import Iterator

import jax.numpy as jnp
import numpy as np

from .transitions import Batch
from .windows import Data, Trajectories

ACTION_MARGIN = 1e-5
"""How far loaded actions stay from ±1, as in FQL's data loading and floq's: at the very edge the
log-density under a squashed policy is infinite."""


def check_batch(data: Data) -> None:
    """Checks the arrays' ranks, sizes and types, but no values, so that it can be traced.

    An index beyond an array's end is no error in JAX: arrays of other lengths train without a word.

    **Raises:** `ValueError` that names the field, if arrays differ in length, if they have another
    rank or other components than they should, or if they are not of floating point numbers.
    """
    data.check()


def check_data(data: Data) -> None:
    """Checks once, on the host, what a training run relies on.

    **Raises:** `ValueError` as `check_batch`, if there is no transition, if a value is NaN or
    infinite, if an action lies outside [-1, 1] or a mask outside [0, 1]; the message names the
    field and the first transition at fault.
    """
    check_batch(data)
    if len(data) == 0:
        raise ValueError("The dataset holds no transitions; collect or fetch it again.")
    for name, array in _arrays(data):
        finite = np.isfinite(array).reshape(len(data), -1).all(axis=1)
        if not finite.all():
            raise ValueError(
                f"The dataset's `{name}` is NaN or infinite in {int((~finite).sum())} of "
                f"{len(data)} transitions, first in number {int(np.argmin(finite))}. "
                "Leave those transitions out or collect the dataset again."
            )
    actions = dict(_arrays(data, "action"))["action"]
    size = np.abs(actions).max(axis=1, initial=0.0)
    if size.max() > 1.0:
        raise ValueError(
            f"Actions must lie in [-1, 1], got {size.max()!s} in {int((size > 1.0).sum())} of "
            f"{len(data)} transitions, first in number {int(np.argmax(size > 1.0))}: rescale them "
            "before training."
        )
    mask = np.asarray(data.mask)
    outside = (mask < 0.0) | (mask > 1.0)
    if outside.any():
        first = int(np.argmax(outside))
        raise ValueError(
            f"Masks must lie in [0, 1], got {mask[first]!s} in {int(outside.sum())} of {len(data)} "
            f"transitions, first in number {first}: a mask is 0 where the next state is terminal, "
            "else 1."
        )


def reward_range(data: Data) -> tuple[float, float]:
    """The smallest and largest reward of the data, which bound the values a flow must reach.

    **Raises:** `ValueError` if all rewards are equal: then every value is a constant, the noise
    interval and the support have no width, and nothing can be learned.
    """
    low, high = float(jnp.min(data.reward)), float(jnp.max(data.reward))
    if not low < high:
        raise ValueError(
            f"All {len(data)} rewards are equal ({low}), so the interval of values is empty. "
            "Check that the dataset was labelled for this task and that some transition "
            "reaches its goal."
        )
    return low, high


def fingerprint(data: Data) -> str:
    """A text that other data do not have: the SHA-256 of every array, with its name and shape."""
    digest = hashlib.sha256()
    for name, array in _arrays(data):
        array = np.ascontiguousarray(array)
        digest.update(f"{name} {array.dtype.str} {array.shape}".encode())
        digest.update(array.data)
    return digest.hexdigest()


def _arrays(data: Data, *only: str) -> Iterator[tuple[str, np.ndarray]]:
    """Each part of the transitions by its name, in the order of a `Batch`, on the host: there are
    too many for the device to hold them twice.
    """
    for name in only or [field.name for field in dataclasses.fields(Batch)]:
        if not isinstance(data, Trajectories) or name in ("reward", "mask"):
            array = getattr(data, name, None)
        elif name == "next_action" and not data.with_next_action:
            array = None
        elif name.endswith(("observation", "action")):
            rows = np.asarray(data.states if name.endswith("observation") else data.actions)
            array = rows[np.asarray(data.row) + name.startswith("next_")]
        else:
            array = None
        if array is not None:
            yield name, np.asarray(array)
