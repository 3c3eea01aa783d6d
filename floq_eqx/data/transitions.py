"""Transitions as arrays: the batch that every agent's update takes."""

import dataclasses
import hashlib

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from .._types import Key


class Batch(eqx.Module):
    """Transitions (s, a, r, s') with a leading batch axis; a whole dataset is one too.

    **Attributes:**

    - `observation`, `next_observation`: s and s'.
    - `action`: a, each component in [-1, 1].
    - `reward`: r.
    - `mask`: 0 where s' is terminal, so that its value is not bootstrapped, else 1.
    - `next_action`: the action the data took in s', or `None` where no algorithm needs it.
    """

    observation: Float[Array, "batch observation"]
    action: Float[Array, "batch action"]
    reward: Float[Array, "batch"]
    mask: Float[Array, "batch"]
    next_observation: Float[Array, "batch observation"]
    next_action: Float[Array, "batch action"] | None = None

    def __len__(self) -> int:
        return self.reward.shape[0]


def take(data: Batch, indices: Int[Array, "batch"]) -> Batch:
    """The transitions of `data` at `indices`, in that order."""
    return jax.tree.map(lambda x: x[indices], data)


def sample(data: Batch, batch_size: int, *, key: Key) -> Batch:
    """Draws `batch_size` transitions uniformly, with replacement; jittable.

    **Raises:** `ValueError` if there are none, or as `check_batch`.
    """
    check_batch(data)
    if batch_size < 1:
        raise ValueError(f"batch_size must be at least 1, got {batch_size}.")
    if len(data) == 0:
        raise ValueError("Cannot draw a batch from a dataset without transitions.")
    return take(data, jax.random.randint(key, (batch_size,), 0, len(data)))


def check_batch(data: Batch) -> None:
    """Checks the arrays' ranks, sizes and types, but no values, so that it can be traced.

    An index beyond an array's end is no error in JAX: arrays of other lengths train without a word.

    **Raises:** `ValueError` that names the field, if arrays differ in length, if they have another
    rank or other components than they should, or if they are not of floating point numbers.
    """
    for field in dataclasses.fields(Batch):
        name, array = field.name, getattr(data, field.name)
        if array is None and field.default is None:
            continue
        if array is None or not hasattr(array, "shape"):
            raise ValueError(f"`{name}` must be an array, got {type(array).__name__}.")
        if not jnp.issubdtype(array.dtype, jnp.floating):
            raise ValueError(
                f"`{name}` is of type {array.dtype}, expected floating point numbers: convert it "
                f"to float32, as with {name}.astype(jnp.float32)."
            )
        like = name.removeprefix("next_")
        if like in ("reward", "mask"):
            expected, what = data.observation.shape[:1], "one number a transition"
        elif len(array.shape) != 2:
            raise ValueError(
                f"`{name}` has the shape {array.shape}, expected (transitions, components): make "
                "each a flat row, of one component where it is a single number."
            )
        else:
            expected = (data.observation.shape[0], *getattr(data, like).shape[1:])
            what = "one row a transition"
        if array.shape != expected:
            also = "" if like == name else f" and of the components of `{like}`"
            raise ValueError(
                f"`{name}` has the shape {array.shape}, expected {expected}: give {what}, as many "
                f"as `observation` has{also}."
            )


def check_data(data: Batch) -> None:
    """Checks once, on the host, what a training run relies on.

    **Raises:** `ValueError` as `check_batch`, if there is no transition, if a value is NaN or
    infinite, if an action lies outside [-1, 1] or a mask outside [0, 1]; the message names the
    field and the first transition at fault.
    """
    check_batch(data)
    if len(data) == 0:
        raise ValueError("The dataset holds no transitions; collect or fetch it again.")
    for name in ("observation", "action", "reward", "mask", "next_observation", "next_action"):
        array = getattr(data, name)
        if array is None:
            continue
        finite = np.isfinite(np.asarray(array)).reshape(len(data), -1).all(axis=1)
        if not finite.all():
            raise ValueError(
                f"The dataset's `{name}` is NaN or infinite in {int((~finite).sum())} of "
                f"{len(data)} transitions, first in number {int(np.argmin(finite))}. "
                "Leave those transitions out or collect the dataset again."
            )
    size = np.abs(np.asarray(data.action)).max(axis=1, initial=0.0)
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


def reward_range(data: Batch) -> tuple[float, float]:
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


def fingerprint(data: Batch) -> str:
    """A text that other data do not have: the SHA-256 of every array, with its name and shape."""
    digest = hashlib.sha256()
    for field in dataclasses.fields(Batch):
        array = getattr(data, field.name)
        if array is not None:
            array = np.ascontiguousarray(array)
            digest.update(f"{field.name} {array.dtype.str} {array.shape}".encode())
            digest.update(array.data)
    return digest.hexdigest()
