"""Files of arrays: checked before memory is taken for them, named only when they are complete."""

import contextlib
import glob
import math
import os
import time
import uuid
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

# Deflate cannot pack more than about 1032 bytes into one (zlib's technical details).
MAX_DEFLATE_RATIO = 1040
"""How many bytes a byte of a packed file can become."""
_STALE_SECONDS = 3600.0


def cache_directory() -> Path:
    """Where files are kept that can be made again: `floq_eqx` in the user's cache."""
    return Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser() / "floq_eqx"


def validation_path(path: Path) -> Path:
    """The validation file beside a dataset's file: `x.npz` has `x-val.npz`."""
    return path.with_name(f"{path.stem}-val.npz")


@contextlib.contextmanager
def unfinished(path: Path) -> Iterator[BinaryIO]:
    """A new file beside `path`, gone on leaving unless `finish` has given it its name."""
    path.parent.mkdir(parents=True, exist_ok=True)
    for old in path.parent.glob(f".{glob.escape(path.name)}.*.partial"):
        # A killed process leaves its file behind; one that is written to is never this old.
        with contextlib.suppress(OSError):
            if time.time() - old.stat().st_mtime > _STALE_SECONDS:
                old.unlink()
    partial = path.with_name(f".{path.name}.{uuid.uuid4().hex[:8]}.partial")
    try:
        with open(partial, "xb") as file:
            yield file
    finally:
        partial.unlink(missing_ok=True)


def finish(file: BinaryIO, path: Path) -> None:
    """Gives a file of `unfinished` its final name, once its bytes are on the disk."""
    file.flush()
    os.fsync(file.fileno())
    os.replace(file.name, path)


def _header(member: Any) -> tuple[tuple[int, ...], np.dtype, int]:
    """Shape, dtype and length of the header of an array in NumPy's format."""
    version = np.lib.format.read_magic(member)
    if version != (1, 0):  # Later ones are for named fields, and their headers are of any length.
        raise ValueError(f"version {version} of the array format is not supported")
    shape, _, dtype = np.lib.format.read_array_header_1_0(member)
    return shape, dtype, member.tell()


def short(error: Exception) -> str:
    """An error's text, which can hold any amount of what is in a file."""
    return str(error)[:500] or type(error).__name__


def check_file(path: str | os.PathLike[str], *, thorough: bool = False) -> dict[str, tuple]:
    """Checks that a file is a readable `.npz` of plain arrays, before memory is taken for them.

    **Arguments:**

    - `path`: the file.
    - `thorough`: whether to also read everything and compare the checksums.

    **Returns:** the shape of each array, by name.

    **Raises:** `FileNotFoundError`; `ValueError` if the file is no `.npz`, truncated or corrupt,
    holds pickled objects or two arrays of one name, or announces arrays that cannot be in it.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"There is no file {path}.")
    shapes = {}
    room = path.stat().st_size
    with path.open("rb") as file:
        try:
            with zipfile.ZipFile(file) as archive:
                for info in archive.infolist():
                    name = info.filename.removesuffix(".npy")
                    if name in shapes:
                        raise ValueError(f"there are two arrays `{name}`")
                    with archive.open(info) as member:
                        shape, dtype, offset = _header(member)
                    if dtype.kind not in "biuf":
                        raise ValueError(
                            f"`{name}` is of type {dtype}, expected numbers; pickled objects are "
                            "never loaded"
                        )
                    # In Python's integers, which a forged shape cannot overflow.
                    size = offset + math.prod(shape) * dtype.itemsize
                    packed = min(info.compress_size, room)
                    room -= packed  # No two arrays are packed in the same place.
                    if size != info.file_size or size > MAX_DEFLATE_RATIO * (packed + 64):
                        raise ValueError(
                            f"`{name}` announces {shape} of {dtype}, {size} bytes with its header, "
                            f"but the file holds {info.file_size} ({packed} packed) for it"
                        )
                    shapes[name] = shape
                if thorough:
                    broken = archive.testzip()
                    if broken is not None:
                        raise ValueError(f"`{broken}` does not match its checksum")
        except Exception as e:  # The readers of archives and headers raise whatever they run into.
            raise ValueError(
                f"{path} is not an intact .npz of arrays: {short(e)}. Move it elsewhere and "
                "make or fetch it again, or name another file or directory (--data)."
            ) from e
    return shapes
