"""People's own data from files: read once, checked once, and kept in a form of ours.

The converted copy is in the user's cache, under the SHA-256 of its source, which is never changed.
"""

import dataclasses
import hashlib
import os
import warnings
import zipfile
from pathlib import Path
from typing import Any

import numpy as np

from .._types import Number
from .files import cache_directory, check_file, finish, short, unfinished
from .hdf5 import is_hdf5, read_hdf5
from .own import KNOWN, Steps, checked_steps
from .windows import Trajectories

_FORM = 1  # of the converted copy; another one is converted again


def load_own_data(
    source: str | os.PathLike[str],
    *,
    action_low: Any = None,
    action_high: Any = None,
    reward_scale: Number = 1.0,
    reward_shift: Number = 0.0,
    with_next_action: bool = False,
) -> Trajectories:
    """Loads your own data: an `.npz` or HDF5 file with a row for each step.

    Its arrays are at the top of the file, with the names of the arguments of
    [`floq_eqx.data.Trajectories.from_arrays`][], and mean what they mean there; D4RL's files are
    such. The first time, the file is checked and a copy kept in the cache (`XDG_CACHE_HOME`, by
    default `~/.cache`), which is read from then on while the file is the same.

    **Arguments:** `source`: the file; the others as there.

    **Returns:** all transitions, in float32 and in the order of time.

    **Raises:** `FileNotFoundError`; `ModuleNotFoundError` without h5py for HDF5; `ValueError` for
    whatever is wrong with the file, with the array, its row and the remedy; `OSError` if the copy
    cannot be written.
    """
    return own_steps(source).trajectories(
        action_low=action_low,
        action_high=action_high,
        reward_scale=reward_scale,
        reward_shift=reward_shift,
        with_next_action=with_next_action,
        where=str(source),
    )


def own_steps(source: str | os.PathLike[str]) -> Steps:
    """The steps of a file, from its converted copy if there is one.

    **Raises:** as `load_own_data`.
    """
    path = Path(source).expanduser()
    if not path.is_file():
        raise FileNotFoundError(
            f"There is no file {path}: --data takes an .npz or HDF5 file of your own, or, of "
            "OGBench's data, their file or folder."
        )
    with path.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    copy = cache_directory() / "own" / f"{digest}-{_FORM}.npz"
    steps = read_copy(copy)
    if steps is None:
        steps = _read(path)
        write_copy(steps, copy, path)
    return steps


def _read(path: Path) -> Steps:
    if is_hdf5(path):
        arrays, others = read_hdf5(path, KNOWN)
    elif zipfile.is_zipfile(path):
        arrays, others = _read_npz(path)
    else:
        raise ValueError(
            f"{path} is neither an .npz nor an HDF5 file, or it is cut off: convert it with "
            "numpy.savez, or make or fetch it again."
        )
    steps = checked_steps(arrays, where=str(path))
    if others:
        warnings.warn(
            f"{path}: {', '.join(sorted(others))[:500]} are not used; what is: {', '.join(KNOWN)}.",
            stacklevel=2,
        )
    return steps


def _read_npz(path: Path) -> tuple[dict[str, np.ndarray], list[str]]:
    shapes = check_file(path)
    try:
        with np.load(path) as archive:
            arrays = {name: archive[name] for name in KNOWN if name in shapes}
    except Exception as error:  # whatever the readers run into
        raise ValueError(f"{path} is corrupt: {short(error)}. Make or fetch it again.") from error
    return arrays, [name for name in shapes if name not in KNOWN]


def read_copy(copy: Path) -> Steps | None:
    """What a converted copy holds; `None` if it is not there, or was damaged since."""
    if not copy.is_file():
        return None
    try:
        names = check_file(copy, thorough=True)
        with np.load(copy) as archive:
            return Steps(**{name: archive[name] for name in names})
    except (ValueError, TypeError):
        warnings.warn(f"{copy} was damaged, and is made again from its source.", stacklevel=2)
        return None


def write_copy(steps: Steps, copy: Path, source: Path | str) -> None:
    """Keeps what was read of a source.

    **Raises:** `OSError` if it cannot be written; nothing of it stays then.
    """
    values = {f.name: getattr(steps, f.name) for f in dataclasses.fields(steps)}
    arrays: dict[str, Any] = {name: array for name, array in values.items() if array is not None}
    try:
        with unfinished(copy) as file:
            np.savez(file, **arrays)
            finish(file, copy)
    except OSError as error:
        needed = sum(array.nbytes for array in arrays.values())
        raise OSError(
            f"The converted copy of {source}, of {needed:,} bytes, cannot be written to "
            f"{copy.parent}: {error}. Make room there, or set XDG_CACHE_HOME to a folder that has "
            "it; the source is as it was, and nothing half-written stays."
        ) from error
