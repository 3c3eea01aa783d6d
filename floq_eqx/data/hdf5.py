"""HDF5 files of arrays, as D4RL's: checked before memory is taken for them.

Links to other files, objects, and filters that are programs of their own are never followed.
"""

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any, cast

import numpy as np

from .files import MAX_DEFLATE_RATIO, short

_SIGNATURE = b"\x89HDF\r\n\x1a\n"
# Deflate, shuffle, a checksum, and LZF: what h5py itself knows how to read.
_FILTERS = {1: "gzip", 2: "shuffle", 3: "fletcher32", 32000: "lzf"}
_COMPRESSING = (1, 32000)
_MOST_IN_A_CHUNK = 64 << 20


def is_hdf5(path: Path) -> bool:
    """Whether a file begins as one in HDF5, which may have a block of the user's before it."""
    size, offset = path.stat().st_size, 0
    with path.open("rb") as file:
        while offset + len(_SIGNATURE) <= size:
            file.seek(offset)
            if file.read(len(_SIGNATURE)) == _SIGNATURE:
                return True
            offset = max(512, 2 * offset)
    return False


def read_hdf5(path: Path, names: Sequence[str]) -> tuple[dict[str, np.ndarray], list[str]]:
    """The arrays of these names at the top of a file, and the names of the other arrays there.

    **Raises:** `ModuleNotFoundError` without h5py; `ValueError` if the file is not intact, if
    something else than an array of numbers has one of the names, or if an array announces more
    than can be in the file.
    """
    try:
        import h5py
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError(
            f"{path} is in HDF5, and h5py, which reads it, cannot be imported ({error}): "
            "pip install floq_eqx[hdf5]",
            name=error.name,
        ) from error
    try:
        with h5py.File(path, "r", locking=False) as file:
            links: dict[str, Any] = {n: file.get(n, getlink=True) for n in cast(Any, file)}
            linked = [n for n in names if n in links and not isinstance(links[n], h5py.HardLink)]
            if linked:
                raise ValueError(f"`{linked[0]}` is a link to elsewhere, which is never followed")
            whole = [name for name, link in links.items() if isinstance(link, h5py.HardLink)]
            found: dict[str, Any] = {name: file[name] for name in whole}
            groups = [name for name in whole if isinstance(found[name], h5py.Group)]
            _check_layout(names, whole, groups, found)
            room, out = path.stat().st_size, {}
            for name in names:
                if name in found:
                    room -= _checked_storage(name, found[name], room)
            for name in names:
                if name in found:
                    out[name] = found[name][()]
            return out, [name for name in whole if name not in names and name not in groups]
    except Exception as error:  # The library raises whatever it runs into.
        raise ValueError(
            f"{path} cannot be read as own data in HDF5: {short(error)}. If it is damaged, make or "
            "fetch it again."
        ) from error


def _check_layout(
    names: Sequence[str], whole: Sequence[str], groups: Sequence[str], found: dict[str, Any]
) -> None:
    """Raises a `ValueError` for groups where arrays are expected."""
    for name in names:
        if name in groups:
            inner = ", ".join(sorted(found[name]))[:200]
            raise ValueError(
                f"`{name}` is a group of {inner or 'nothing'}, and only vectors are supported: "
                "make each one row of numbers, as gymnasium.wrappers.FlattenObservation does"
            )
    if groups and not any(name in whole for name in names):
        shown = ", ".join(groups)[:200]
        hint = "; Minari's datasets are read by their name, --data minari:NAME"
        raise ValueError(
            f"its arrays are in groups, {shown}, which is another layout: expected the arrays "
            f"{', '.join(names)} at the top of the file, all trajectories one after the other"
            f"{hint if groups[0].startswith('episode_') else ''}"
        )


def _checked_storage(name: str, array: Any, room: int) -> int:
    """The bytes that an array takes in the file, if it is one of numbers that can be in it."""
    if array.dtype.kind not in "biuf" or array.shape is None:
        raise ValueError(f"`{name}` is of type {array.dtype}, expected numbers")
    plist = array.id.get_create_plist()
    if array.is_virtual or plist.get_external_count():
        raise ValueError(f"`{name}` lies in other files, which are never read")
    filters = [plist.get_filter(index)[0] for index in range(plist.get_nfilters())]
    unknown = [code for code in filters if code not in _FILTERS]
    if unknown:
        raise ValueError(
            f"`{name}` is packed by filter {unknown[0]}, which is not supported; write it with "
            "gzip, lzf or nothing"
        )
    num_packings = sum(code in _COMPRESSING for code in filters)
    if num_packings > 1:
        raise ValueError(f"`{name}` is packed more than once")
    # In Python's integers, which a forged shape cannot overflow.
    size = math.prod(array.shape) * array.dtype.itemsize
    stored = array.id.get_storage_size()
    most = MAX_DEFLATE_RATIO * (stored + 64) if num_packings else stored
    if stored > room or size > most:
        raise ValueError(
            f"`{name}` announces {array.shape} of {array.dtype}, {size} bytes, but the file holds "
            f"{min(stored, room)} for it"
        )
    chunk = math.prod(array.chunks) * array.dtype.itemsize if array.chunks else 0
    if chunk > max(2 * size, _MOST_IN_A_CHUNK):
        raise ValueError(
            f"`{name}` of {size} bytes is in chunks of {chunk}, each of which is read at once; "
            "write it with smaller ones"
        )
    return stored
