"""People's own data: arrays in memory, `.npz` or HDF5, checked once and put in the order of time.

The layout is D4RL's (arXiv 2004.07219): a row for each step, in the order of time, trajectory after
trajectory.
"""

import contextlib
import math
import os
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from .._types import Number
from .checks import check_data
from .files import check_file, short
from .windows import Trajectories

REQUIRED = ("observations", "actions", "rewards", "terminals")
"""The arrays that data must have."""

OPTIONAL = ("timeouts", "truncations", "masks", "next_observations", "episode_lengths")
"""Those that they may have besides."""

MINARI = "minari:"
"""What the name of a Minari dataset begins with, where a file could be named."""

_MARGIN = 1e-5  # as in OGBench's data: at the very edge a squashed policy has no density
_MOST_PER_BYTE = 1040  # what deflate can pack into one
_CHUNK = 1 << 30  # bytes of an HDF5 file's chunk, all of which is read for any part of it


def load_own(
    path: str | os.PathLike[str],
    *,
    with_next_action: bool = False,
    action_low: Any = -1.0,
    action_high: Any = 1.0,
    reward_scale: Number = 1.0,
    reward_shift: Number = 0.0,
    sizes: tuple[int, int] | None = None,
    report: Callable[[str], None] = lambda line: None,
) -> Trajectories:
    """Loads trajectories from a `.npz` or HDF5 file, which it never changes, or from Minari.

    **Arguments:**

    - `path`: a file with the arrays that [`floq_eqx.data.Trajectories.from_arrays`][] takes, by
        their names; others are left alone, and named to `report`. Or `minari:NAME`, a dataset
        that Minari has on this machine, or fetches.
    - `sizes`: how many components the observations and the actions must have.
    - the others: as in `from_arrays`. A Minari dataset has bounds of its own.

    **Raises:** `FileNotFoundError`; `ValueError` for a file that cannot be read, for other sizes,
    and as `from_arrays`; `ModuleNotFoundError` for HDF5 without h5py, and without Minari.
    """
    if str(path).startswith(MINARI):
        known, (action_low, action_high) = _minari(str(path).removeprefix(MINARI))
    else:
        path = Path(path).expanduser()
        if not path.is_file():
            raise FileNotFoundError(f"There is no file {path}.")
        arrays = read_arrays(path)
        known = {name: arrays.pop(name) for name in (*REQUIRED, *OPTIONAL) if name in arrays}
        if arrays:
            report(f"{path} also holds {', '.join(sorted(arrays))[:300]}, which are not used")
    try:
        for name, size in zip(("observations", "actions"), sizes or (), strict=False):
            shape = np.shape(known.get(name, ()))
            if len(shape) == 2 and shape[1] != size:
                raise ValueError(
                    f"`{name}` have {shape[1]} components, and those of the environment {size}: "
                    "give the environment that the data are of, or none (--env none)."
                )
        return trajectories_of(
            known,
            with_next_action=with_next_action,
            action_low=action_low,
            action_high=action_high,
            reward_scale=reward_scale,
            reward_shift=reward_shift,
            report=report,
        )
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from error


def is_own(path: str | os.PathLike[str]) -> bool:
    """Whether a file has rewards and no state of OGBench's simulator: people's own layout."""
    if str(path).startswith(MINARI):
        return True
    path = Path(path).expanduser()
    if not path.is_file():
        return False
    names = set(_hdf5_names(path) if _is_hdf5(path) else check_file(path))
    return "rewards" in names and "qpos" not in names


def read_arrays(path: Path) -> dict[str, np.ndarray]:
    """The arrays of a file, by their names; of an HDF5 file those that are in no group.

    **Raises:** as `load_own`.
    """
    if not _is_hdf5(path):
        check_file(path)
        with np.load(path, allow_pickle=False) as file:
            return {name: file[name] for name in file.files}
    with _hdf5(path) as file:
        names = _hdf5_names(path)
        if not set(REQUIRED) & set(names):
            groups = ", ".join(sorted(file))[:300] or "nothing"
            raise ValueError(
                f"{path} holds {groups}, and none of {', '.join(REQUIRED)} outside of groups: "
                "write each of them as one array of all steps, trajectory after trajectory."
            )
        return {name: _read(path, file, name) for name in names}


def _minari(name: str) -> tuple[dict[str, np.ndarray], tuple[np.ndarray, np.ndarray]]:
    """The arrays of a Minari dataset, and the bounds of its actions."""
    try:
        import minari
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError(
            f"{MINARI}{name} needs Minari: pip install 'floq_eqx[minari]'.", name="minari"
        ) from error
    from gymnasium import spaces

    try:
        dataset = minari.load_dataset(name, download=True)
    except Exception as error:  # whatever it, or the network, runs into
        raise ValueError(
            f"{MINARI}{name} cannot be loaded: {short(error)}. `minari list local` and "
            "`minari list remote` name those that there are."
        ) from error
    for what, space in (
        ("observations", dataset.observation_space),
        ("actions", dataset.action_space),
    ):
        if not isinstance(space, spaces.Box) or len(space.shape) != 1:
            raise ValueError(
                f"{MINARI}{name} has {what} of {' '.join(str(space).split())}: only boxes of one "
                "dimension are supported. Collect it again with "
                "gymnasium.wrappers.FlattenObservation around the environment, if they are a "
                "mapping, a tuple or of more dimensions."
            )
    rows: dict[str, list[np.ndarray]] = {}
    for episode in dataset.iterate_episodes():
        for key, values in {
            "observations": episode.observations[:-1],
            "next_observations": episode.observations[1:],
            "actions": episode.actions,
            "rewards": episode.rewards,
            "terminals": episode.terminations,
            "timeouts": episode.truncations,
        }.items():
            rows.setdefault(key, []).append(np.asarray(values))
    box: Any = dataset.action_space
    return {key: np.concatenate(values) for key, values in rows.items()}, (box.low, box.high)


def _is_hdf5(path: Path) -> bool:
    with path.open("rb") as file:
        return file.read(8) == b"\x89HDF\r\n\x1a\n"


@contextlib.contextmanager
def _hdf5(path: Path) -> Iterator[Any]:
    try:
        import h5py
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError(
            f"{path} is an HDF5 file, for which h5py is needed: pip install h5py.", name="h5py"
        ) from error
    try:
        with h5py.File(path, "r") as file:
            yield file
    except ValueError:
        raise
    except Exception as error:  # whatever the reader runs into
        raise ValueError(
            f"{path} is not an intact HDF5 file: {short(error)}. Make or fetch it again."
        ) from error


def _hdf5_names(path: Path) -> list[str]:
    """The datasets of a file that are in no group, of numbers, and in the file itself."""
    import h5py

    with _hdf5(path) as file:
        hard = [n for n in file if isinstance(file.get(n, getlink=True), h5py.HardLink)]
        kinds = {name: file[name] for name in hard}
        return [
            name
            for name, item in kinds.items()
            if isinstance(item, h5py.Dataset) and item.dtype.kind in "biuf"
        ]


def _read(path: Path, file: Any, name: str) -> np.ndarray:
    item = file[name]
    if item.external or item.is_virtual:
        raise ValueError(f"{path}: `{name}` lies in other files, which are not followed.")
    size, chunk = item.nbytes, math.prod(item.chunks or (1,)) * item.dtype.itemsize
    if size > _MOST_PER_BYTE * path.stat().st_size or chunk > _CHUNK:
        raise ValueError(
            f"{path}: `{name}` announces {item.shape} of {item.dtype} in chunks of {chunk} bytes, "
            "more than there can be in it, or than can be read at once: write it again with "
            "smaller chunks."
        )
    return item[()]


def trajectories_of(
    arrays: Mapping[str, Any],
    *,
    with_next_action: bool = False,
    action_low: Any = -1.0,
    action_high: Any = 1.0,
    reward_scale: Number = 1.0,
    reward_shift: Number = 0.0,
    report: Callable[[str], None] = lambda line: None,
) -> Trajectories:
    """What [`floq_eqx.data.Trajectories.from_arrays`][] does, of arrays by their names."""
    given = _checked(arrays)
    observations, count = given["observations"], len(given["observations"])
    terminals = given["terminals"] > 0
    cut = np.zeros(count, bool)  # where a trajectory ends for another reason than a terminal
    for name in ("timeouts", "truncations"):
        if name in given:
            cut |= given[name] > 0
    if "episode_lengths" in given:
        cut |= _ends_of(given["episode_lengths"], count)
    following = given.get("next_observations")
    if following is not None:
        # Data of which a part was left out have steps that no other one follows.
        apart = (following[:-1] != observations[1:]).any(axis=1)
        if alone := int((apart & ~(terminals | cut)[:-1]).sum()):
            report(
                f"{alone} of {count} steps end a trajectory where nothing says so: their "
                "`next_observations` are not the next row"
            )
        cut[:-1] |= apart
    ends = terminals | cut
    if not ends.any():
        raise ValueError(
            f"none of the {count} steps ends a trajectory: set `terminals` to 1 where an episode "
            "ended by itself and `timeouts` where it was cut off, or give `episode_lengths`."
        )
    if not ends[-1]:
        report("the last trajectory has no end, and is taken as cut off")
        ends[-1] = True
    masks = given.get("masks", 1.0 - terminals)

    # After its last step a trajectory has a state more, where that is known or does not matter.
    known = ends & ((masks == 0) | (following is not None))
    if with_next_action:  # which no step is known to have after the last
        known &= masks == 0
    keeps = ~ends | known
    after = np.flatnonzero(known) + 1
    last = observations if following is None else following
    rows = np.insert(observations, after, last[known], axis=0)
    actions = _rescaled(given["actions"], action_low, action_high)
    begins = np.insert(keeps, after, False)
    if not begins.any():
        raise ValueError("no step has a next state: give `next_observations`.")
    if dropped := int((~keeps).sum()):
        why = "next action" if following is not None else "next state"
        report(f"{dropped} of {count} steps have no known {why} and only end a trajectory")
    data = Trajectories.of_rows(
        rows,
        np.insert(actions, after, 0.0, axis=0),
        begins,
        (reward_scale * given["rewards"] + reward_shift)[keeps],
        masks[keeps],
        with_next_action=with_next_action,
    )
    check_data(data)
    return data


def _checked(arrays: Mapping[str, Any]) -> dict[str, np.ndarray]:
    """The arrays as float32, whose shapes and values are what they should be."""
    missing = [name for name in REQUIRED if name not in arrays]
    if missing:
        raise ValueError(
            f"{', '.join(missing)} are missing; there are {', '.join(arrays) or 'none'}. Give "
            f"{', '.join(REQUIRED)}, a row for each step."
        )
    given: dict[str, np.ndarray] = {}
    for name, value in arrays.items():
        array = np.asarray(value)
        if array.dtype.kind not in "biuf":
            raise ValueError(f"`{name}` is of type {array.dtype}, expected numbers.")
        if name == "actions" and array.dtype.kind in "biu":
            raise ValueError(
                f"`actions` are whole numbers ({array.dtype}): only actions of real numbers are "
                "supported. Discrete ones need another library; convert real ones to float32."
            )
        if name == "observations" and (array.ndim > 2 or array.dtype == np.uint8):
            raise ValueError(
                f"`observations` of shape {array.shape} and type {array.dtype} look like images: "
                "only vectors are supported. Store features of them, or flatten what are none, as "
                "gymnasium.wrappers.FlattenObservation does, as float32."
            )
        matrix = name in ("observations", "actions", "next_observations")
        if matrix and array.ndim == 1:
            array = array[:, None]
        if not matrix and array.ndim == 2 and array.shape[1] == 1:
            array = array[:, 0]
        if array.ndim != 1 + matrix:
            what = "a row of components" if matrix else "one number"
            raise ValueError(f"`{name}` has shape {array.shape}, expected {what} for each step.")
        given[name] = array.astype(np.float32)
    _check_lengths(given)
    for name, array in given.items():
        finite = np.isfinite(array).reshape(len(array), -1).all(axis=1)
        _named(name, ~finite, "is NaN or infinite", "Leave out its trajectory, or mend it.")
        if name in ("terminals", "timeouts", "truncations"):
            _named(name, ~np.isin(array, (0, 1)), "is neither 0 nor 1", "Make it a flag.")
        if name == "masks":
            _named(name, (array < 0) | (array > 1), "is outside [0, 1]", "It is 0 or 1.")
    return given


def _check_lengths(given: Mapping[str, np.ndarray]) -> None:
    lengths = {name: len(array) for name, array in given.items() if name != "episode_lengths"}
    if len(set(lengths.values())) != 1:
        raise ValueError(
            f"the arrays differ in length, {lengths}: each needs a row for every step."
        )
    if not lengths["observations"]:
        raise ValueError("there are no steps.")
    if "next_observations" in given:
        shapes = [given[name].shape for name in ("observations", "next_observations")]
        if shapes[0] != shapes[1]:
            raise ValueError(
                f"`next_observations` has shape {shapes[1]}, and `observations` {shapes[0]}."
            )


def _named(name: str, bad: Any, problem: str, remedy: str) -> None:
    if bad.any():
        raise ValueError(
            f"`{name}` {problem} in {int(bad.sum())} of {len(bad)} rows, first in row "
            f"{int(np.argmax(bad))}. {remedy}"
        )


def _ends_of(lengths: np.ndarray, count: int) -> np.ndarray:
    """Where trajectories of these lengths end."""
    if (lengths != np.round(lengths)).any() or (lengths < 1).any() or lengths.sum() != count:
        raise ValueError(
            f"`episode_lengths` must be whole numbers of at least 1 whose sum is the number of "
            f"steps, {count}; their sum is {lengths.sum():g}."
        )
    ends = np.zeros(count, bool)
    ends[np.cumsum(lengths.astype(np.int64)) - 1] = True
    return ends


def _rescaled(actions: np.ndarray, low: Any, high: Any) -> np.ndarray:
    """Actions of a box in [-1, 1], a little away from its edges."""
    low, high = (np.broadcast_to(np.asarray(x, np.float32), actions.shape[1:]) for x in (low, high))
    if not (np.isfinite(low) & np.isfinite(high) & (low < high)).all():
        raise ValueError(f"the bounds of actions must be finite, got {low} and {high}.")
    slack = _MARGIN * (high - low)
    outside = ((actions < low - slack) | (actions > high + slack)).any(axis=1)
    if outside.any():
        row = int(np.argmax(outside))
        raise ValueError(
            f"`actions` are outside of [{low.min():g}, {high.max():g}] in {int(outside.sum())} of "
            f"{len(actions)} rows, first in row {row}: {actions[row].tolist()}. Give their bounds, "
            "action_low and action_high (--action-low and --action-high), or the environment "
            "whose actions they are (--env)."
        )
    scaled = 2.0 * (actions - low) / (high - low) - 1.0
    return np.clip(scaled, -1.0 + _MARGIN, 1.0 - _MARGIN)
