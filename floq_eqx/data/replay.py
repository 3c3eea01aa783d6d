"""A replay buffer on the device: pure functions of a module that holds every transition.

Source of the mixture: RLPD, arXiv 2302.02948, section 4.1.
"""

import dataclasses

import equinox as eqx
import jax
import jax.core
import jax.numpy as jnp
from jaxtyping import Array, Int

from .._types import Key, Number
from .checks import check_batch
from .transitions import Batch
from .windows import Data, Trajectories, sample, take


class Replay(eqx.Module):
    """The last transitions that were added, up to a fixed capacity.

    Make one with `Replay.empty` or `Replay.from_data`. `add` and `sample` are pure and can be
    jitted; contents and counters are arrays, so that they change without compiling again. `add`
    returns a new buffer: donate the old one (`donate=` of `eqx.filter_jit`) for it to be
    written in place.

    **Attributes:**

    - `data`: every slot; those that hold no transition yet are zeros.
    - `size`: how many slots hold one; they are the first.
    - `position`: the slot that is written next.
    - `num_protected`: how many of the first slots are never overwritten.
    """

    data: Batch
    size: Int[Array, ""]
    position: Int[Array, ""]
    num_protected: int = eqx.field(static=True, default=0)

    @property
    def capacity(self) -> int:
        """How many transitions there is room for."""
        return len(self.data)

    @staticmethod
    def empty(
        capacity: int, observation_size: int, action_size: int, *, with_next_action: bool = False
    ) -> "Replay":
        """A buffer without transitions.

        **Arguments:** how many there is room for, the sizes of an observation and an action, and
        whether transitions come with their `next_action`.

        **Raises:** `ValueError` unless all three are whole numbers of at least 1.
        """
        _check_counts(capacity=capacity, observation_size=observation_size, action_size=action_size)
        observation = jnp.zeros((0, observation_size))
        action, scalar = jnp.zeros((0, action_size)), jnp.zeros(0)
        none = Batch(
            observation, action, scalar, scalar, observation, action if with_next_action else None
        )
        return Replay.from_data(none, capacity)

    @staticmethod
    def from_data(data: Data, capacity: int, *, protect: bool = True) -> "Replay":
        """A buffer that begins with a dataset.

        **Arguments:**

        - `data`: the transitions, from the oldest to the newest.
        - `capacity`: how many there is room for, these included.
        - `protect`: keep all of `data` for ever, so that once the buffer is full what is added
            replaces what was added; otherwise the oldest go first, which are those of `data`.

        **Raises:** `ValueError` if `data` does not fit, or with `protect` leaves no room, or as
        [`floq_eqx.data.check_batch`][].
        """
        _check_counts(capacity=capacity)
        check_batch(data)
        if isinstance(data, Trajectories):
            data = data.transitions()
        size = len(data)
        if size > capacity - (1 if protect else 0):
            room = " and, with protect=True, one to add" if protect else ""
            raise ValueError(f"A capacity of {capacity} cannot hold {size} transitions{room}.")

        def padded(x: Array) -> Array:
            # Finite, so that JAX_DEBUG_NANS can be used.
            rest = jnp.zeros((capacity - size, *x.shape[1:]), x.dtype)
            return jnp.concatenate([x, rest])

        return Replay(
            data=jax.tree.map(padded, data),
            size=jnp.asarray(size, jnp.int32),
            position=jnp.asarray(size % capacity, jnp.int32),
            num_protected=size if protect else 0,
        )

    def add(self, batch: Batch) -> "Replay":
        """The buffer after the transitions of a batch, of one or more, in their order.

        **Raises:** `ValueError` if they are more than there is unprotected room for, or of other
        sizes than those in the buffer, or as [`floq_eqx.data.check_batch`][].
        """
        check_batch(batch)
        _check_alike(self.data, batch, "the buffer", "the batch")
        room = self.capacity - self.num_protected
        if len(batch) > room:
            raise ValueError(
                f"A batch of {len(batch)} transitions does not fit the {room} slots that can be "
                "overwritten: add it in parts, or make a buffer of a larger capacity."
            )
        start = self.position - self.num_protected
        slots = self.num_protected + (start + jnp.arange(len(batch), dtype=jnp.int32)) % room
        return dataclasses.replace(
            self,
            data=jax.tree.map(
                lambda held, new: held.at[slots].set(new, unique_indices=True), self.data, batch
            ),
            size=jnp.minimum(self.size + len(batch), self.capacity),
            position=self.num_protected + (start + len(batch)) % room,
        )

    def collected(self) -> "Collected":
        """What its unprotected slots hold, to be saved; not to be jitted."""
        held = slice(self.num_protected, int(self.size))
        return Collected(
            jax.tree.map(lambda x: x[held], self.data), self.position - self.num_protected
        )

    def with_collected(self, collected: "Collected") -> "Replay":
        """The buffer as it was when it had `collected`, from one that is as that began.

        **Raises:** `ValueError` if there is no room for so many, or they are of other sizes.
        """
        _check_alike(self.data, collected.data, "the buffer", "what was collected")
        count, room = len(collected.data), self.capacity - self.num_protected
        if count > room:
            raise ValueError(f"{count} collected transitions do not fit in {room} slots.")
        size = self.num_protected + count
        return dataclasses.replace(
            self,
            data=jax.tree.map(
                lambda held, new: held.at[self.num_protected : size].set(new),
                self.data,
                collected.data,
            ),
            size=jnp.asarray(size, jnp.int32),
            position=self.num_protected + collected.next % room,
        )

    def sample(self, batch_size: int, *, key: Key) -> Batch:
        """Draws `batch_size` transitions uniformly, with replacement.

        **Raises:** `ValueError` if the buffer holds none. Where its size is not known, as inside
        `jit`, nothing can be raised, and what comes are zeros: add a transition first.
        """
        if not isinstance(self.size, jax.core.Tracer) and int(self.size) == 0:
            raise ValueError(
                "Cannot draw a batch from a buffer without transitions: add some first."
            )
        return self._draw(batch_size, key=key)

    def _draw(self, batch_size: int, *, key: Key) -> Batch:
        _check_counts(batch_size=batch_size)
        check_batch(self.data)
        return take(self.data, jax.random.randint(key, (batch_size,), 0, self.size))


class Collected(eqx.Module):
    """What a buffer has collected.

    **Attributes:** `data`: its unprotected slots, as they lie; `next`: which of them is written
    next, the oldest one once the buffer is full.
    """

    data: Batch
    next: Int[Array, ""]

    @staticmethod
    def none(like: Batch) -> "Collected":
        """Nothing, of the same sizes as other transitions."""
        return Collected(jax.tree.map(lambda x: x[:0], like), jnp.zeros((), jnp.int32))

    def in_order(self) -> Batch:
        """The transitions, the oldest first."""
        return jax.tree.map(lambda x: jnp.roll(x, -int(self.next), axis=0), self.data)


def sample_mixture(
    offline: Data, replay: Replay, batch_size: int, fraction: Number, *, key: Key
) -> Batch:
    """Draws a batch of which exactly `round(fraction * batch_size)` transitions are offline data.

    Those come first and the rest, from the replay, after them; each uniformly, with replacement.
    As long as the replay is empty the rest is offline data too.

    **Arguments:**

    - `offline`: the dataset; the replay should be without it.
    - `replay`: what was collected online.
    - `batch_size`: transitions in all.
    - `fraction`: in [0, 1]: 0.5 as in RLPD; 1 is offline data alone.

    **Raises:** `ValueError` if the fraction is out of its range, if there is no offline data, or if
    the transitions of the two are not of the same sizes.
    """
    _check_counts(batch_size=batch_size, offline_transitions=len(offline))
    if not 0 <= fraction <= 1:
        raise ValueError(f"fraction must be in [0, 1], got {fraction}.")
    _check_alike(offline, replay.data, "the offline data", "the replay")
    count = round(fraction * batch_size)
    offline_key, online_key = jax.random.split(key)
    # Enough to fill the batch when the replay is empty.
    old = sample(offline, batch_size, key=offline_key)
    if count == batch_size:
        return old
    new = replay._draw(batch_size - count, key=online_key)

    def mixed(old: Array, new: Array) -> Array:
        return jnp.concatenate([old[:count], jnp.where(replay.size > 0, new, old[count:])])

    return jax.tree.map(mixed, old, new)


def _check_counts(**counts: object) -> None:
    for name, count in counts.items():
        if not isinstance(count, int) or isinstance(count, bool) or count < 1:
            raise ValueError(f"{name} must be a whole number of at least 1, got {count!r}.")


def _check_alike(first: Data, second: Data, first_name: str, second_name: str) -> None:
    """Raises a `ValueError` unless the transitions of two batches have the same sizes."""
    # Of one transition each, as those of trajectories are not gathered for their shapes.
    one = [eqx.filter_eval_shape(take, data, jnp.zeros(1, jnp.int32)) for data in (first, second)]
    for field in dataclasses.fields(Batch):
        sizes = [None if x is None else x.shape[1:] for x in (getattr(b, field.name) for b in one)]
        if sizes[0] != sizes[1]:
            raise ValueError(
                f"`{field.name}` has the shape {sizes[0]} in each transition of {first_name}, but "
                f"{sizes[1]} in {second_name}: load both with the same next actions, and of one "
                "environment."
            )
