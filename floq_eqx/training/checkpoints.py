"""One checkpoint: a folder of Orbax's with checksums, and the versions of what wrote it.

default/        the state
collected/      online, what was collected and where the buffer goes on
versions.json   of Python, JAX and what else decides the numbers
checksums.json  size and SHA-256 of every file, written last
"""

import contextlib
import hashlib
import importlib.metadata
import json
import logging
import platform
import re
import shutil
import sys
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jaxtyping import PyTree

from .files import read_json, write_text

_CHECKSUMS, _VERSIONS = "checksums.json", "versions.json"
# What another version of each may change.
_MATTERS = {
    "python": "nothing that is known",
    "jax": "rounding and random numbers",
    "jaxlib": "rounding",
    "equinox": "initialisation and layers",
    "optax": "the optimiser",
    "floq_eqx": "losses, and what a state holds",
    "backend": "rounding",
}


@contextlib.contextmanager
def writer() -> Iterator[Any]:
    """What `write_checkpoint` writes with."""
    import orbax.checkpoint as ocp

    with ocp.Checkpointer(ocp.StandardCheckpointHandler()) as writer:
        yield writer


def write_checkpoint(writer: Any, path: Path, parts: Mapping[str, PyTree]) -> None:
    """Writes a checkpoint, which appears under its name only when it is whole.

    **Arguments:** `writer`: from `writer()`; `path`: the checkpoint's folder; `parts`: PyTrees of
    arrays by the names of their folders.

    **Raises:** what Orbax and the disk raise; nothing of it is left then.
    """
    import orbax.checkpoint as ocp

    partial = unfinished_path(path)
    shutil.rmtree(partial, ignore_errors=True)  # what a killed process left
    try:
        with _quiet():
            for name, part in parts.items():
                writer.save(partial / name, args=ocp.args.StandardSave(_by_path(part)))
        write_text(partial / _VERSIONS, json.dumps(versions(), indent=0))
        entries = {
            name: [file.stat().st_size, _checksum(file)] for name, file in _files(partial).items()
        }
        write_text(partial / _CHECKSUMS, json.dumps(entries, indent=0))
        partial.rename(path)
    except Exception:
        shutil.rmtree(partial, ignore_errors=True)
        raise


def unfinished_path(path: Path) -> Path:
    """Where a checkpoint lies while it is written or removed."""
    return path.with_name(f".{path.name}.partial")


def damage(path: Path) -> str | None:
    """What is wrong with the files of a checkpoint, compared with their checksums; or `None`.

    **Raises:** `OSError` if they cannot be read at all.
    """
    if not (path / _CHECKSUMS).is_file():
        return f"{_CHECKSUMS} is missing"
    try:
        written = dict(read_json(path / _CHECKSUMS))
    except (ValueError, TypeError) as error:
        return f"{_CHECKSUMS} is damaged: {error}"
    # Only what is in the folder is read, wherever the names of a forged file may point.
    present = _files(path)
    for name, entry in written.items():
        if name not in present:
            return f"{name[:200]} is missing"
        # The size first: a file that has become absurdly large is not read.
        size = present[name].stat().st_size
        known = isinstance(entry, list) and entry[:1] == [size]
        if not known or entry[1:] != [_checksum(present[name])]:
            return f"{name} is not as it was written"
    return None


def read_checkpoint(path: Path, part: str, like: PyTree) -> PyTree:
    """A part of a checkpoint.

    **Arguments:** `like`: arrays or their shapes, in the structure that is wanted; a size of -1 is
    whatever the file says.

    **Raises:** `ValueError` that says what differs, or why it cannot be read.
    """
    import orbax.checkpoint as ocp
    from etils import epath  # Orbax's own paths

    device = jax.sharding.SingleDeviceSharding(jax.devices()[0])
    handler = ocp.StandardCheckpointHandler()
    folder = epath.Path(path) / part
    try:
        with _quiet():
            saved = dict(handler.metadata(folder).tree)
            shapes = {
                name: _filled(tuple(leaf.shape), saved.get(name))
                for name, leaf in _by_path(like).items()
            }
            _check_same_arrays(shapes, saved)
            wanted = {
                name: jax.ShapeDtypeStruct(shapes[name], leaf.dtype, sharding=device)
                for name, leaf in _by_path(like).items()
            }
            arrays = handler.restore(folder, args=ocp.args.StandardRestore(wanted))
    except Exception as error:
        reason = re.split(r" \[tensorstore_spec| See full Tensor", str(error))[0][:1000]
        raise ValueError(reason) from error
    finally:
        handler.close()
    # Bound to no device, as a fresh state is: another program would be compiled for those that are.
    leaves = [jax.device_put(np.asarray(arrays[name])) for name in wanted]
    return jax.tree.unflatten(jax.tree.structure(like), leaves)


def versions() -> dict[str, str]:
    """Of what decides a run's numbers, and the kind of device."""
    from .. import __version__

    packages = ("jax", "jaxlib", "equinox", "optax")
    return {
        "python": platform.python_version(),
        **{name: importlib.metadata.version(name) for name in packages},
        "floq_eqx": __version__,
        "backend": jax.default_backend(),
    }


def changed_versions(path: Path) -> str | None:
    """What wrote a checkpoint that is not what runs now, and what may differ by it; or `None`."""
    try:
        before = dict(read_json(path / _VERSIONS))
    except (OSError, ValueError, TypeError):
        return f"{_VERSIONS} cannot be read"
    now = versions()
    return (
        "; ".join(
            f"{name} {str(before.get(name))[:50]} then, {now[name]} now (may change {matters})"
            for name, matters in _MATTERS.items()
            if before.get(name) != now[name]
        )
        or None
    )


def _filled(shape: tuple[int, ...], saved: Any) -> tuple[int, ...]:
    known = () if saved is None else tuple(saved.shape)
    if len(known) != len(shape):
        return shape
    return tuple(k if size == -1 else size for size, k in zip(shape, known, strict=True))


def _files(folder: Path) -> dict[str, Path]:
    """Every file below a folder, by its path from there."""
    paths = sorted(path for path in folder.rglob("*") if path.is_file())
    return {path.relative_to(folder).as_posix(): path for path in paths}


def _checksum(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Keeps Orbax from printing tracebacks of an error that it raises as well."""
    logger = logging.getLogger("absl")
    before = logger.disabled, sys.unraisablehook
    interrupts: list[object] = []

    def unraisable(unraised: Any) -> None:
        # A Ctrl-C that hits a finalizer is not lost.
        if issubclass(unraised.exc_type, KeyboardInterrupt):
            interrupts.append(unraised.exc_type)

    logger.disabled, sys.unraisablehook = True, unraisable
    try:
        yield
    except Exception:
        time.sleep(0.5)  # what else was being read or written ends, and complains, after the first
        raise
    finally:
        logger.disabled, sys.unraisablehook = before
    if interrupts:
        raise KeyboardInterrupt


def _by_path(state: PyTree) -> dict[str, Any]:
    """The arrays of a state by their place in it, which is how a checkpoint names them."""
    leaves, _ = jax.tree_util.tree_flatten_with_path(state)
    return {jax.tree_util.keystr(path, simple=True, separator="."): leaf for path, leaf in leaves}


def _check_same_arrays(wanted: dict[str, tuple[int, ...]], saved: dict[str, Any]) -> None:
    problems = [f"it lacks {name}" for name in wanted if name not in saved]
    problems += [f"it has {name}, which this agent lacks" for name in saved if name not in wanted]
    problems += [
        f"{name} is {tuple(saved[name].shape)}, expected {shape}"
        for name, shape in wanted.items()
        if name in saved and tuple(saved[name].shape) != shape
    ]
    if problems:
        more = f"; and {len(problems) - 4} more" if len(problems) > 4 else ""
        raise ValueError(f"it belongs to another configuration: {'; '.join(problems[:4])}{more}.")
