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
    """Draws `batch_size` transitions uniformly, with replacement; jittable."""
    if batch_size < 1:
        raise ValueError(f"batch_size must be at least 1, got {batch_size}.")
    if len(data) == 0:
        raise ValueError("Cannot draw a batch from a dataset without transitions.")
    return take(data, jax.random.randint(key, (batch_size,), 0, len(data)))


def check_data(data: Batch) -> None:
    """Checks once, on the host, what a training run relies on.

    **Raises:** `ValueError` if there is no transition, if a value is NaN or infinite, or if an
    action lies outside [-1, 1]; the message names the field and the first transition at fault.
    """
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
                "Remove those transitions or collect the dataset again."
            )
    largest = float(jnp.abs(data.action).max())
    if largest > 1.0:
        raise ValueError(
            f"Actions must lie in [-1, 1], got {largest:.4g}: rescale them before training."
        )


def reward_range(data: Batch) -> tuple[float, float]:
    """The smallest and largest reward of the data, which bound the values a flow must reach.

    **Raises:** `ValueError` if all rewards are equal: then every value is a constant, the noise
    interval and the support have no width, and nothing can be learned.
    """
    low, high = float(jnp.min(data.reward)), float(jnp.max(data.reward))
    if not low < high:
        raise ValueError(
            f"All {len(data)} rewards are equal ({low:g}), so the interval of values is empty. "
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
