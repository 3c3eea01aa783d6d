r"""Trajectories in time order, and windows of them: one primitive for the next action, n-step
returns and action chunks.

A window of h steps from a transition on has, with n steps left in its trajectory of h,

$$R = \sum_{i < n} \gamma^i r_i, \qquad m = \min_{i < n} m_i, \qquad
y = R + \gamma^n m\, Q(s_n, \cdot), \qquad n = \min(h, \text{steps left}).$$

Source: the released code of Q-chunking, arXiv 2507.07969, and of QAM, whose windows stay where the
trajectory ends.
"""

from typing import Any, TypeAlias

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int

from .._types import FloatLike, Key, Number
from .transitions import Batch


class Trajectories(eqx.Module):
    """Transitions in the order of time, with every state stored once.

    What a [`floq_eqx.data.Batch`][] has is to be read by the same names, of which `observation`,
    `action`, `next_observation` and `next_action` are gathered when they are asked for.

    **Attributes:**

    - `states`: every state, the last one of each trajectory too, trajectory after trajectory.
    - `actions`: the action in each state; in a trajectory's last state what the data have there, or
        zeros.
    - `reward`, `mask`: of each transition, as in a `Batch`.
    - `row`: the row of `states` that each transition begins in; it ends in the next one.
    - `left`: how many transitions of its trajectory are left, with itself.
    - `with_next_action`: whether batches have the data's next action.
    """

    states: Float[Array, "rows observation"]
    actions: Float[Array, "rows action"]
    reward: Float[Array, "batch"]
    mask: Float[Array, "batch"]
    row: Int[Array, "batch"]
    left: Int[Array, "batch"]
    with_next_action: bool = eqx.field(static=True, default=False)

    @staticmethod
    def of_rows(
        states: Float[np.ndarray, "rows observation"],
        actions: Float[np.ndarray, "rows action"],
        begins: Bool[np.ndarray, "rows"],
        reward: Float[np.ndarray, "batch"],
        mask: Float[np.ndarray, "batch"],
        *,
        with_next_action: bool = False,
    ) -> "Trajectories":
        """Puts them together on the host, from arrays with a row for every state.

        **Arguments:** `begins`: whether a transition begins in a row, which it does in all but the
        last one of each trajectory; `reward`, `mask`: of the transitions alone; others as the
        attributes.

        **Raises:** `ValueError` if a transition begins in the last row.
        """
        if len(begins) and begins[-1]:
            raise ValueError("A transition begins in the last row: it has no state to end in.")
        row = np.flatnonzero(begins)
        ends = np.flatnonzero(~begins)
        left = ends[np.searchsorted(ends, row)] - row
        return Trajectories(
            # Converted on the host, or each shape is compiled for.
            *(jnp.asarray(np.asarray(x, np.float32)) for x in (states, actions, reward, mask)),
            *(jnp.asarray(x.astype(np.int32)) for x in (row, left)),
            with_next_action=with_next_action,
        )

    @staticmethod
    def from_arrays(
        observations: Any,
        actions: Any,
        rewards: Any,
        terminals: Any = None,
        *,
        timeouts: Any = None,
        truncations: Any = None,
        masks: Any = None,
        next_observations: Any = None,
        episode_lengths: Any = None,
        action_low: Any = None,
        action_high: Any = None,
        reward_scale: Number = 1.0,
        reward_shift: Number = 0.0,
        with_next_action: bool = False,
    ) -> "Trajectories":
        """Your own data: a row for each step, in the order of time.

        Numbers are of any real type, flags also booleans, and columns of shape [N, 1] or [N]. A
        trajectory ends where a flag or a length says so, and where `next_observations` is not the
        next row's observation; the last row always ends one. A step that does has
        `next_observations` as its next state. Without these, a step of mask 0 is its own next
        state, which is never looked at; one of another mask is no transition, as what comes after
        it is not known: a warning counts those.

        **Arguments:**

        - `observations`, `actions`, `rewards`: of each step; those of two dimensions are flattened.
        - `terminals`: whether a step ends in a terminal state, and a trajectory with it.
        - `timeouts`, `truncations`: whether a trajectory ends with a step for another reason. The
            two are names of one thing.
        - `masks`: 0 where the next state has no value, else 1; by default 1 - `terminals`. Give
            them where `terminals` only end trajectories, as in OGBench's files.
        - `next_observations`: the state after each step.
        - `episode_lengths`: the number of steps of each trajectory.
        - `action_low`, `action_high`: the bounds of the actions, a number or one for each
            component, which become -1 and 1; these are the default. Within them actions keep
            1e-5 from the edge.
        - `reward_scale`, `reward_shift`: of a reward r, the agent learns scale · r + shift.
        - `with_next_action`: whether batches have the data's next action. Transitions whose next
            action is not known and whose mask is not 0 are left out then, and counted.

        **Returns:** all transitions, in float32 and in the order of time.

        **Raises:** `ValueError` that names the array, the first row at fault and the remedy:
        lengths that differ, NaN, flags that are none, actions outside their bounds, no end of a
        trajectory, discrete actions, images.
        """
        from .own import checked_steps

        arrays = {
            "observations": observations,
            "actions": actions,
            "rewards": rewards,
            "terminals": terminals,
            "timeouts": timeouts,
            "truncations": truncations,
            "masks": masks,
            "next_observations": next_observations,
            "episode_lengths": episode_lengths,
        }
        return checked_steps(arrays).trajectories(
            action_low=action_low,
            action_high=action_high,
            reward_scale=reward_scale,
            reward_shift=reward_shift,
            with_next_action=with_next_action,
        )

    def __len__(self) -> int:
        return self.reward.shape[0]

    @property
    def observation_size(self) -> int:
        return self.states.shape[1]

    @property
    def action_size(self) -> int:
        return self.actions.shape[1]

    @property
    def observation(self) -> Float[Array, "batch observation"]:
        return self.states[self.row]

    @property
    def action(self) -> Float[Array, "batch action"]:
        return self.actions[self.row]

    @property
    def next_observation(self) -> Float[Array, "batch observation"]:
        return self.states[self.row + 1]

    @property
    def next_action(self) -> Float[Array, "batch action"] | None:
        return self.actions[self.row + 1] if self.with_next_action else None

    def check(self) -> None:
        """Raises a `ValueError` unless its arrays belong together, of which it gathers none."""
        lengths = {n: getattr(self, n).shape[0] for n in ("reward", "mask", "row", "left")}
        rows = {n: getattr(self, n).shape[0] for n in ("states", "actions")}
        for each, what in ((lengths, "transition"), (rows, "state")):
            if len(set(each.values())) != 1:
                raise ValueError(
                    f"The trajectories' arrays differ in length, {each}, expected one row a "
                    f"{what}: make them with Trajectories.of_rows."
                )

    def transitions(self) -> Batch:
        """All transitions, with an array of its own for each of their parts."""
        return window(self, jnp.arange(len(self)))


Data: TypeAlias = Batch | Trajectories
"""A whole dataset."""


def window(
    data: Trajectories,
    start: Int[Array, "batch"],
    length: int = 1,
    *,
    discount: FloatLike = 1.0,
    chunk: bool = False,
) -> Batch:
    """What happens from transitions on within `length` steps.

    A window that reaches the end of its trajectory stays there: what is after it adds no reward,
    and `next_observation` is the trajectory's last state.

    **Arguments:**

    - `start`: the number of the transition that each window begins with.
    - `length`: h, at least 1.
    - `discount`: the γ of the rewards within a window.
    - `chunk`: whether `action` is all h actions, one after the other, and `valid` says which of
        them the trajectory has; otherwise it is the first action. Past its end a chunk repeats the
        trajectory's last actions.

    **Returns:** a batch, of one step exactly the transitions; of more, its `discount` is γ^n.
    """
    row, left = data.row[start], data.left[start]
    if length == 1:
        return Batch(
            data.states[row],
            data.actions[row],
            data.reward[start],
            data.mask[start],
            data.states[row + 1],
            data.actions[row + 1] if data.with_next_action else None,
        )
    steps = jnp.arange(length)[None]
    count = jnp.minimum(left, length)[:, None]
    within = steps < count
    index = start[:, None] + jnp.minimum(steps, count - 1)
    reward, mask, factor = summed(data.reward[index], data.mask[index], within, discount)

    def flat(rows: Int[Array, "batch steps"]) -> Float[Array, "batch action"]:
        return jnp.reshape(data.actions[rows], (len(start), -1))

    action, after = row[:, None], row[:, None] + count
    if chunk:
        action = action + jnp.minimum(steps, count - 1)
    following = None
    if data.with_next_action:
        last = (row + left)[:, None]
        following = flat(jnp.minimum(after + steps, last) if chunk else after)
    return Batch(
        observation=data.states[row],
        action=flat(action),
        reward=reward,
        mask=mask,
        next_observation=data.states[after[:, 0]],
        next_action=following,
        discount=factor,
        valid=within.astype(jnp.float32) if chunk else None,
    )


def summed(
    reward: Float[Array, "batch steps"],
    mask: Float[Array, "batch steps"],
    within: Bool[Array, "batch steps"],
    discount: FloatLike,
) -> tuple[Float[Array, "batch"], Float[Array, "batch"], Float[Array, "batch"]]:
    """Of windows, whose steps are `within` their trajectories up to one: the discounted sum of the
    rewards, the least mask, and the γ^n of the state after them.
    """
    gamma = jnp.asarray(discount, jnp.float32)
    power = gamma ** jnp.arange(reward.shape[1], dtype=jnp.float32)[None]
    count = jnp.sum(within, axis=1).astype(jnp.float32)
    return (
        jnp.sum(jnp.where(within, power * reward, 0.0), axis=1),
        jnp.min(jnp.where(within, mask, 1.0), axis=1),
        gamma**count,
    )


def take(data: Data, indices: Int[Array, "batch"]) -> Batch:
    """The transitions of `data` at `indices`, in that order."""
    if isinstance(data, Trajectories):
        return window(data, indices)
    return jax.tree.map(lambda x: x[indices], data)


def draw(data: Data, batch_size: int, *, key: Key) -> Int[Array, "batch"]:
    """The numbers of `batch_size` transitions, drawn uniformly, with replacement; jittable.

    **Raises:** `ValueError` if there are none, or as `check_batch`.
    """
    data.check()
    if batch_size < 1:
        raise ValueError(f"batch_size must be at least 1, got {batch_size}.")
    if len(data) == 0:
        raise ValueError("Cannot draw a batch from a dataset without transitions.")
    return jax.random.randint(key, (batch_size,), 0, len(data))


def sample(data: Data, batch_size: int, *, key: Key) -> Batch:
    """Draws `batch_size` transitions uniformly, with replacement; jittable.

    **Raises:** as `draw`.
    """
    return take(data, draw(data, batch_size, key=key))


def sample_windows(
    data: Data,
    batch_size: int,
    length: int,
    *,
    discount: FloatLike = 1.0,
    chunk: bool = False,
    key: Key,
) -> Batch:
    """Draws as many windows, which begin in any transition, with replacement; jittable.

    **Arguments:** as `window`'s.

    **Raises:** as `draw`; `ValueError` for windows of several steps of a `Batch`, of whose
    transitions it is not known which follows which.
    """
    start = draw(data, batch_size, key=key)
    if length == 1:
        return take(data, start)
    if not isinstance(data, Trajectories):
        raise ValueError(
            f"Windows of {length} steps need to know which transition follows which: give "
            "Trajectories, got a Batch."
        )
    return window(data, start, length, discount=discount, chunk=chunk)
