"""A replay buffer on the device: pure functions of a module that holds every transition.

Source of the mixture: RLPD, arXiv 2302.02948, section 4.1.
"""

import dataclasses

import equinox as eqx
import jax
import jax.core
import jax.numpy as jnp
from jaxtyping import Array, Bool, Int

from .._types import FloatLike, Key, Number
from .checks import check_batch
from .transitions import Batch
from .windows import Data, Trajectories, sample_windows, summed, take


class Replay(eqx.Module):
    """The last transitions that were added, up to a fixed capacity.

    Make one with `Replay.empty` or `Replay.from_data`. `add` and `sample` are pure and can be
    jitted; contents and counters are arrays, so that they change without compiling again. `add`
    returns a new buffer: donate the old one (`donate=` of `eqx.filter_jit`) for it to be
    written in place.

    **Attributes:**

    - `data`: every slot; those that hold no transition yet are zeros.
    - `ahead`: how many slots after each the next transition of its episode lies; 0 where there is
        none, or it is not known which.
    - `size`: how many slots hold one; they are the first.
    - `position`: the slot that is written next.
    - `num_protected`: how many of the first slots are never overwritten.
    """

    data: Batch
    ahead: Int[Array, "batch"]
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

        - `data`: the transitions, from the oldest to the newest; of a `Batch` it is not known which
            follows which.
        - `capacity`: how many there is room for, these included.
        - `protect`: keep all of `data` for ever, so that once the buffer is full what is added
            replaces what was added; otherwise the oldest go first, which are those of `data`.

        **Raises:** `ValueError` if `data` does not fit, or with `protect` leaves no room, or as
        [`floq_eqx.data.check_batch`][].
        """
        _check_counts(capacity=capacity)
        check_batch(data)
        ahead = jnp.zeros(len(data), jnp.int32)
        if isinstance(data, Trajectories):
            ahead = (data.left > 1).astype(jnp.int32)
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
            ahead=padded(ahead),
            size=jnp.asarray(size, jnp.int32),
            position=jnp.asarray(size % capacity, jnp.int32),
            num_protected=size if protect else 0,
        )

    def add(self, batch: Batch, ahead: Int[Array, "batch"] | None = None) -> "Replay":
        """The buffer after the transitions of a batch, of one or more, in their order.

        **Arguments:** `ahead`: how many transitions after each, of those that are added from now
        on, the next one of its episode comes: as many as environments act side by side, and 0 where
        the episode ends; `None` for no windows of several steps.

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
        if ahead is None:
            ahead = jnp.zeros(len(batch), jnp.int32)

        def written(held: Array, new: Array) -> Array:
            return held.at[slots].set(new, unique_indices=True)

        return dataclasses.replace(
            self,
            data=jax.tree.map(written, self.data, batch),
            ahead=written(self.ahead, ahead),
            size=jnp.minimum(self.size + len(batch), self.capacity),
            position=self.num_protected + (start + len(batch)) % room,
        )

    def interrupted(self) -> "Replay":
        """The buffer after which every episode begins anew: those that are under way end here."""
        _, exists = self._following(jnp.arange(self.capacity, dtype=jnp.int32))
        return dataclasses.replace(self, ahead=jnp.where(exists, self.ahead, 0))

    def collected(self) -> "Collected":
        """What its unprotected slots hold, to be saved; not to be jitted."""
        held = slice(self.num_protected, int(self.size))
        return Collected(
            jax.tree.map(lambda x: x[held], self.data),
            self.position - self.num_protected,
            self.ahead[held],
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
        ahead = collected.ahead
        if ahead is None:
            ahead = jnp.zeros(count, jnp.int32)

        def written(held: Array, new: Array) -> Array:
            return held.at[self.num_protected : size].set(new)

        return dataclasses.replace(
            self,
            data=jax.tree.map(written, self.data, collected.data),
            ahead=written(self.ahead, ahead),
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
        return self.windows(batch_size, key=key)

    def windows(
        self,
        batch_size: int,
        length: int = 1,
        *,
        discount: FloatLike = 1.0,
        chunk: bool = False,
        key: Key,
    ) -> Batch:
        """Draws as many windows of `length` steps, which begin in any transition, as
        [`floq_eqx.data.window`][] makes them of trajectories; of an empty buffer they are zeros.

        None crosses the end of an episode, or joins the newest transitions and the oldest.
        """
        _check_counts(batch_size=batch_size)
        check_batch(self.data)
        start = jax.random.randint(key, (batch_size,), 0, self.size)
        return self.window(start, length, discount=discount, chunk=chunk)

    def window(
        self,
        start: Int[Array, "batch"],
        length: int = 1,
        *,
        discount: FloatLike = 1.0,
        chunk: bool = False,
    ) -> Batch:
        """The windows that begin in these slots: see `windows`."""
        if length == 1:
            return take(self.data, start)
        slots, within = [start], [jnp.ones_like(start, bool)]
        for _ in range(length - 1):
            after, exists = self._following(slots[-1])
            within.append(within[-1] & exists)
            slots.append(jnp.where(within[-1], after, slots[-1]))
        index, inside = jnp.stack(slots, axis=1), jnp.stack(within, axis=1)
        data = self.data
        reward, mask, factor = summed(data.reward[index], data.mask[index], inside, discount)
        first = data.action[start]
        return Batch(
            observation=data.observation[start],
            action=jnp.reshape(data.action[index], (len(start), -1)) if chunk else first,
            reward=reward,
            mask=mask,
            next_observation=data.next_observation[slots[-1]],
            discount=factor,
            valid=inside.astype(jnp.float32) if chunk else None,
        )

    def _following(
        self, slot: Int[Array, "batch"]
    ) -> tuple[Int[Array, "batch"], Bool[Array, "batch"]]:
        """The slot of the next transition of the episode, and whether it holds it."""
        protected, ahead = self.num_protected, self.ahead[slot]
        room = self.capacity - protected
        count = self.size - protected
        age = (slot - self.position) % room - (room - count)  # 0 for the oldest
        inside = slot < protected
        exists = (ahead > 0) & (inside | (age + ahead < count))
        return jnp.where(
            inside, slot + ahead, protected + (slot - protected + ahead) % room
        ), exists


class Collected(eqx.Module):
    """What a buffer has collected.

    **Attributes:** `data`: its unprotected slots, as they lie; `next`: which of them is written
    next, the oldest one once the buffer is full; `ahead`: as the buffer's, `None` where it was not
    kept.
    """

    data: Batch
    next: Int[Array, ""]
    ahead: Int[Array, "batch"] | None = None

    @staticmethod
    def none(like: Batch) -> "Collected":
        """Nothing, of the same sizes as other transitions."""
        none = jnp.zeros(0, jnp.int32)
        return Collected(jax.tree.map(lambda x: x[:0], like), jnp.zeros((), jnp.int32), none)

    def in_order(self) -> "Collected":
        """The same with the oldest first."""
        first = int(self.next)
        data, ahead = jax.tree.map(lambda x: jnp.roll(x, -first, axis=0), (self.data, self.ahead))
        return Collected(data, jnp.zeros((), jnp.int32), ahead)


def sample_mixture(
    offline: Data,
    replay: Replay,
    batch_size: int,
    fraction: Number,
    length: int = 1,
    *,
    discount: FloatLike = 1.0,
    chunk: bool = False,
    key: Key,
) -> Batch:
    """Draws a batch of which exactly `round(fraction * batch_size)` transitions are offline data.

    Those come first and the rest, from the replay, after them; each uniformly, with replacement.
    As long as the replay is empty the rest is offline data too.

    **Arguments:**

    - `offline`: the dataset; the replay should be without it.
    - `replay`: what was collected online.
    - `batch_size`: transitions in all.
    - `fraction`: in [0, 1]: 0.5 as in RLPD; 1 is offline data alone.
    - `length`, `discount`, `chunk`: of windows, as in [`floq_eqx.data.window`][].

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
    window = {"discount": discount, "chunk": chunk}
    old = sample_windows(offline, batch_size, length, key=offline_key, **window)
    if count == batch_size:
        return old
    new = replay.windows(batch_size - count, length, key=online_key, **window)

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
