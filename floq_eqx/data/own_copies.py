"""Converted copies of people's own data, in the user's cache."""

import dataclasses
import warnings
from pathlib import Path
from typing import Any

import numpy as np

from .files import check_file, finish, unfinished
from .own import Steps


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
