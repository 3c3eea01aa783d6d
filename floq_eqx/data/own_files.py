"""People's own data from files: read once, checked once, and kept in a form of ours.

The converted copy is in the user's cache, under the SHA-256 of its source, which is never changed.
"""

import hashlib
import os
import warnings
import zipfile
from pathlib import Path
from typing import Any

import numpy as np

from .._types import Number
from .files import cache_directory, check_file, short
from .hdf5 import is_hdf5, read_hdf5
from .of_minari import PREFIX, minari_steps
from .own import KNOWN, Steps, checked_steps
from .own_copies import read_copy, write_copy
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
    """Loads your own data: an `.npz` or HDF5 file with a row for each step, or Minari's.

    Its arrays are at the top of the file, with the names of the arguments of
    [`floq_eqx.data.Trajectories.from_arrays`][], and mean what they mean there; D4RL's files are
    such. The first time, the file is checked and a copy kept in the cache (`XDG_CACHE_HOME`, by
    default `~/.cache`), which is read from then on while the file is the same.

    **Arguments:** `source`: the file, or the name of a dataset of Minari's that is on this machine,
    as `minari:NAME`; the others as there.

    **Returns:** all transitions, in float32 and in the order of time.

    **Raises:** `FileNotFoundError`; `ModuleNotFoundError` without h5py for HDF5, or Minari;
    `ValueError` for whatever is wrong with the file, with the array, its row and the remedy;
    `OSError` if the copy cannot be written.
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
    """The steps of a file or of Minari's, from their converted copy if there is one.

    **Raises:** as `load_own_data`.
    """
    if str(source).startswith(PREFIX):
        return minari_steps(str(source).removeprefix(PREFIX))
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
