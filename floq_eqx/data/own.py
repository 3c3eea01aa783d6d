"""People's own data: arrays of steps in the order of time, checked and made into trajectories.

A row is one step. What a layout may hold besides `observations`, `actions` and `rewards`, and what
it means, [`floq_eqx.data.Trajectories.from_arrays`][] says.
"""

import dataclasses
import warnings
from collections.abc import Mapping
from typing import Any

import numpy as np
from jaxtyping import Bool, Float

from .checks import ACTION_MARGIN, check_data
from .windows import Trajectories

_REQUIRED = ("observations", "actions", "rewards")
_FLAGS = ("terminals", "timeouts", "truncations")
KNOWN = (*_REQUIRED, *_FLAGS, "masks", "next_observations", "episode_lengths")
"""The names of the arrays of a layout."""


@dataclasses.dataclass(frozen=True)
class Steps:
    """Checked steps, a row each, with actions and rewards as they were given.

    **Attributes:**

    - `observations`, `actions`, `rewards`, `masks`: of each step.
    - `ends`: whether a step is the last one of its trajectory.
    - `last`: the observations after those that are; `None` where the data have none.
    - `low`, `high`: the bounds of the actions, where the source tells them.
    """

    observations: Float[np.ndarray, "rows observation"]
    actions: Float[np.ndarray, "rows action"]
    rewards: Float[np.ndarray, "rows"]
    masks: Float[np.ndarray, "rows"]
    ends: Bool[np.ndarray, "rows"]
    last: Float[np.ndarray, "trajectories observation"] | None = None
    low: Float[np.ndarray, "action"] | None = None
    high: Float[np.ndarray, "action"] | None = None

    def trajectories(
        self,
        *,
        action_low: Any = None,
        action_high: Any = None,
        reward_scale: float = 1.0,
        reward_shift: float = 0.0,
        with_next_action: bool = False,
        where: str = "The data",
    ) -> Trajectories:
        """The transitions, with actions in [-1, 1].

        **Arguments:** as [`floq_eqx.data.Trajectories.from_arrays`][]; the bounds are by default
        the source's own, and else -1 and 1; `where`: what messages begin with.

        **Raises:** `ValueError` for actions outside their bounds, for bounds that are none, and if
        there is no transition.
        """
        given = (action_low, action_high) if action_low is not None else (self.low, self.high)
        actions = _rescaled(self.actions, *given, where)
        # A step has a next state unless it ends a trajectory, and is itself that of a terminal one.
        known = ~self.ends | (self.masks == 0)
        if self.last is not None:
            known[:] = True
        num_lost = int((~known).sum())
        if num_lost:
            warnings.warn(
                f"{where}: {num_lost:,} of {len(known):,} steps end a trajectory without being "
                "terminal and have no next state, so they are no transitions; with "
                "`next_observations` they are.",
                stacklevel=3,
            )
        if with_next_action:
            unknown = known & self.ends & (self.masks != 0)
            if unknown.any():
                warnings.warn(
                    f"{where}: of {int(unknown.sum()):,} of {len(known):,} steps, which end a "
                    "trajectory without being terminal, the next action is not known: they are "
                    "left out, as the algorithm needs it.",
                    stacklevel=3,
                )
            known &= ~unknown
        if not known.any():
            raise ValueError(
                f"{where}: there is no transition, as every step ends a trajectory and has no next "
                "state. Give `next_observations`, or longer trajectories."
            )
        extra = known & self.ends
        place = np.arange(len(extra)) + np.cumsum(extra) - extra
        size = len(extra) + int(extra.sum())
        states = np.zeros((size, self.observations.shape[1]), np.float32)
        rows = np.zeros((size, actions.shape[1]), np.float32)
        begins = np.zeros(size, bool)
        states[place], rows[place], begins[place] = self.observations, actions, known
        after = self.observations[extra] if self.last is None else self.last[extra[self.ends]]
        states[place[extra] + 1] = after
        with np.errstate(over="ignore", invalid="ignore"):
            rewards = np.float64(reward_scale) * self.rewards[known] + np.float64(reward_shift)
            rewards = rewards.astype(np.float32)
        data = Trajectories.of_rows(
            states, rows, begins, rewards, self.masks[known], with_next_action=with_next_action
        )
        check_data(data)
        return data


def checked_steps(arrays: Mapping[str, Any], *, where: str = "The data") -> Steps:
    """The steps that arrays of the documented layout hold; other names are not looked at.

    **Arguments:** `arrays`: by the names of `KNOWN`; one that is `None` is not there; `where`: what
    messages begin with, such as a file's name.

    **Raises:** `ValueError` that names the array, the first row at fault and the remedy.
    """
    given = {name: arrays[name] for name in KNOWN if arrays.get(name) is not None}
    missing = [name for name in _REQUIRED if name not in given]
    if missing:
        raise ValueError(
            f"{where}: there is no {', '.join(missing)}; it has "
            f"{', '.join(sorted(given))[:500] or 'nothing'}. Own data need "
            f"{', '.join(_REQUIRED)} and what ends a trajectory, a row for each step."
        )
    observations = _vectors("observations", given["observations"], where)
    actions = _vectors("actions", given["actions"], where)
    num = len(observations)
    columns = {
        name: _column(name, given[name], where)
        for name in ("rewards", "masks", *_FLAGS)
        if name in given
    }
    after = None
    if "next_observations" in given:
        after = _vectors("next_observations", given["next_observations"], where)
        if after.shape[1:] != observations.shape[1:]:
            raise ValueError(
                f"{where}: `next_observations` have {after.shape[1]} components, and "
                f"`observations` {observations.shape[1]}: give both of the same."
            )
    lengths = {"observations": num, "actions": len(actions)}
    lengths |= {name: len(column) for name, column in columns.items()}
    lengths |= {} if after is None else {"next_observations": len(after)}
    if len(set(lengths.values())) != 1:
        raise ValueError(
            f"{where}: the arrays differ in length, {lengths}: give one row a step in each of them."
        )
    if num == 0:
        raise ValueError(f"{where}: there are no steps.")
    for name in _FLAGS:
        if name in columns:
            flag = columns[name]
            _refuse(~np.isin(flag, (0, 1)), name, "is neither 0 nor 1", flag, where)
    terminal = columns.get("terminals", np.zeros(num, np.float32)) == 1
    masks = columns["masks"] if "masks" in columns else 1.0 - terminal.astype(np.float32)
    _refuse((masks < 0) | (masks > 1), "masks", "is outside [0, 1]", masks, where)

    ends = terminal.copy()
    for name in _FLAGS[1:]:
        ends |= columns.get(name, np.zeros(num)) == 1
    if "episode_lengths" in given:
        ends[_ends_of(given["episode_lengths"], num, where)] = True
    if after is not None:
        apart = np.zeros(num, bool)
        apart[:-1] = (after[:-1] != observations[1:]).any(axis=1)
        unsaid = apart & ~ends
        if unsaid.any() and ends.any():
            warnings.warn(
                f"{where}: in {int(unsaid.sum()):,} of {num:,} steps that no flag ends, first in "
                f"row {int(np.argmax(unsaid))}, `next_observations` is not the next row's "
                "observation: a trajectory ends there too.",
                stacklevel=3,
            )
        ends |= apart
    elif not ends.any():
        raise ValueError(
            f"{where}: no row ends a trajectory, as "
            f"{' and '.join(f for f in _FLAGS if f in columns) or 'no array'} marks one. Give "
            "`terminals`, `timeouts`, `truncations`, `episode_lengths` or `next_observations`; of "
            f"a single trajectory, `episode_lengths` = [{num}]."
        )
    ends[-1] = True
    last = None if after is None else after[ends]
    return Steps(observations, actions, columns["rewards"], masks, ends, last)


def _as_array(name: str, value: Any, where: str) -> np.ndarray:
    """Real numbers, as they are."""
    if isinstance(value, Mapping):
        raise ValueError(
            f"{where}: `{name}` is a mapping of {', '.join(sorted(map(str, value)))[:200]}, and "
            "only vectors are supported: make each one row of numbers, as "
            "gymnasium.wrappers.FlattenObservation and gymnasium.spaces.utils.flatten do."
        )
    try:
        array = np.asarray(value)
    except ValueError as error:
        raise ValueError(f"{where}: `{name}` is no array of numbers: {error}.") from None
    if array.dtype.kind not in "biuf":
        raise ValueError(
            f"{where}: `{name}` is of type {array.dtype}, expected real numbers: rows of different "
            "sizes, texts and objects are not supported."
        )
    return array


def _as_float(array: np.ndarray) -> np.ndarray:
    with np.errstate(over="ignore"):  # which the check for infinite values finds
        return array.astype(np.float32)


def _vectors(name: str, value: Any, where: str) -> np.ndarray:
    """An array with a row for each step, of finite float32."""
    array = _as_array(name, value, where)
    if name == "actions" and array.dtype.kind != "f":
        raise ValueError(
            f"{where}: `actions` are whole numbers, of type {array.dtype}: discrete actions are "
            "not supported, only real ones between bounds. If yours are real numbers, convert "
            "them with actions.astype(np.float32)."
        )
    if array.ndim > 3 or (array.ndim == 3 and array.dtype == np.uint8):
        raise ValueError(
            f"{where}: `{name}` look like images, of shape {array.shape} and type {array.dtype}, "
            "and only vectors are supported: make features of them first."
        )
    if array.ndim == 0:
        raise ValueError(f"{where}: `{name}` is a single number, expected a row for each step.")
    array = array.reshape(len(array), -1) if array.size else array.reshape(len(array), 0)
    if len(array) and array.shape[1] == 0:
        raise ValueError(f"{where}: `{name}` have no components.")
    array = _as_float(array)
    bad = ~np.isfinite(array).all(axis=1)
    if bad.any():
        _refuse_rows(bad, name, "is NaN or infinite", "", where)
    return array


def _column(name: str, value: Any, where: str) -> np.ndarray:
    """A finite float32 for each step, also of a column of shape [N, 1]."""
    array = _as_array(name, value, where)
    if array.ndim == 2 and array.shape[1] == 1:
        array = array[:, 0]
    if array.ndim != 1:
        raise ValueError(
            f"{where}: `{name}` has the shape {array.shape}, expected one number a step."
        )
    array = _as_float(array)
    _refuse(~np.isfinite(array), name, "is NaN or infinite", array, where)
    return array


def _refuse(bad: Any, name: str, what: str, values: np.ndarray, where: str) -> None:
    if bad.any():
        _refuse_rows(bad, name, what, f", where it is {values[np.argmax(bad)]!s}", where)


def _refuse_rows(bad: Any, name: str, what: str, value: str, where: str) -> None:
    raise ValueError(
        f"{where}: `{name}` {what} in {int(bad.sum()):,} of {len(bad):,} rows, first in row "
        f"{int(np.argmax(bad))}{value}. Mend those rows, or leave their trajectories out."
    )


def _ends_of(value: Any, num: int, where: str) -> np.ndarray:
    """The last rows of trajectories of these lengths."""
    lengths = np.atleast_1d(_as_array("episode_lengths", value, where)).reshape(-1)
    bad = ~(lengths >= 1) | (lengths != np.floor(lengths)) | (lengths > num)
    if bad.any():
        first = int(np.argmax(bad))
        raise ValueError(
            f"{where}: `episode_lengths` must be whole numbers from 1 to the {num:,} steps there "
            f"are, got {lengths[first]!s} in number {first}."
        )
    ends = np.cumsum(lengths.astype(np.int64)) - 1
    if len(ends) == 0 or ends[-1] != num - 1:
        total = int(ends[-1]) + 1 if len(ends) else 0
        raise ValueError(
            f"{where}: `episode_lengths` sum up to {total:,}, and there are {num:,} steps: give "
            "the length of every trajectory, in their order."
        )
    return ends


def box(low: Any, high: Any, size: int, where: str) -> tuple[np.ndarray, np.ndarray]:
    """The bounds of actions of so many components, of a number or one for each of them.

    **Raises:** `ValueError` if they are no finite numbers, one below the other.
    """
    if (low is None) != (high is None):
        raise ValueError(f"{where}: give both bounds of the actions, or none.")
    if low is None:
        low, high = -1.0, 1.0
    bounds = [np.asarray(bound, np.float64).reshape(-1) for bound in (low, high)]
    for bound in bounds:
        if bound.size not in (1, size):
            raise ValueError(
                f"{where}: the actions have {size} components and their bounds {bound.size}: give "
                "one bound for all, or one for each."
            )
    lower, upper = (np.broadcast_to(bound, (size,)) for bound in bounds)
    # As float32, which the actions are.
    with np.errstate(over="ignore", invalid="ignore"):
        width = upper.astype(np.float32) - lower.astype(np.float32)
    bad = ~(np.isfinite(width) & (width > 0))
    if bad.any():
        first = int(np.argmax(bad))
        raise ValueError(
            f"{where}: component {first} of the actions is said to lie between {lower[first]!s} "
            f"and {upper[first]!s}, which are not one below the other."
        )
    return lower, upper


def _rescaled(actions: np.ndarray, low: Any, high: Any, where: str) -> np.ndarray:
    """Actions between their bounds, mapped to [-1, 1]."""
    lower, upper = box(low, high, actions.shape[1], where)
    scaled = 2.0 * (actions.astype(np.float64) - lower) / (upper - lower) - 1.0
    outside = np.abs(scaled) > 1.0 + ACTION_MARGIN
    bad = np.asarray(outside.any(axis=1))
    if bad.any():
        row = int(np.argmax(bad))
        part = int(np.argmax(outside[row]))
        raise ValueError(
            f"{where}: `actions` are outside their bounds in {int(bad.sum()):,} of {len(bad):,} "
            f"rows, first in row {row}, where component {part} is {actions[row, part]!s} and must "
            f"lie in [{lower[part]!s}, {upper[part]!s}]. Give the bounds that they have "
            "(action_low and action_high), the environment, or clip them."
        )
    edge = 1.0 - ACTION_MARGIN
    return np.clip(scaled, -edge, edge).astype(np.float32)
