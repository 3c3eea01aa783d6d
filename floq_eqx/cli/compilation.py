"""What JAX compiles is kept for later runs of the program, in a private folder.

JAX runs what lies in its cache, writes it in place and, where it packs with zstd, adds no checksum:
a damaged entry may crash the program or compute something else. So the folder is its user's alone,
and every entry is held against a checksum of ours when the program starts.
"""

import atexit
import contextlib
import hashlib
import json
import os
import platform
import re
import stat
import warnings
from pathlib import Path
from typing import Annotated, Any

import tyro
from filelock import FileLock

from ..training.files import read_json, write_text

CompilationCache = Annotated[
    bool,
    tyro.conf.arg(
        help="Keep what is compiled in a private folder of the user's cache, for later runs."
    ),
]
"""The option of every command that compiles."""

_SETTINGS = {
    # Of the default run this keeps 4 programs of 23, and the next begins as soon as with all of
    # them: the others compile in 0.3 s together.
    "jax_persistent_cache_min_compile_time_secs": 0.1,
    "jax_persistent_cache_min_entry_size_bytes": -1,
    # That run's are 0.7 MB. The least recently used go.
    "jax_compilation_cache_max_size": 256 * 2**20,
}
_CHECKSUMS = "checksums.json"
_JAX_WARNS = r"Error (read|writ)ing persistent compilation cache entry for '(.*?)': "


def keep_compiled(wanted: bool) -> None:
    """Has JAX keep what it compiles from now on, or keep nothing if that is not `wanted`.

    A folder, or settings, that JAX was given by its environment variables stay as they are. A
    folder that cannot be used is a warning, and nothing is kept.
    """
    import jax

    options: Any = jax.config
    if not wanted:
        jax.config.update("jax_compilation_cache_dir", None)
        return
    named = "JAX_COMPILATION_CACHE_DIR" in os.environ or options.jax_compilation_cache_dir
    if named or not options.jax_enable_compilation_cache:
        return
    try:
        folder = _private_folder()
        damaged = _vet(folder)
    except (OSError, RuntimeError) as error:  # RuntimeError: there is no home.
        text = re.sub(r"^\[Errno \d+\] ", "", str(error))
        warnings.warn(f"nothing that is compiled is kept for later runs: {text}", stacklevel=1)
        return
    if damaged:
        warnings.warn(f"{damaged} damaged entries of {folder} are compiled anew", stacklevel=1)
    for name, value in _SETTINGS.items():
        if name.upper() not in os.environ:
            jax.config.update(name, value)
    jax.config.update("jax_compilation_cache_dir", str(folder))
    _mend(folder, told=damaged > 0)
    atexit.register(_vet_quietly, folder)


def _private_folder() -> Path:
    """The folder for this machine, made if there is none.

    **Raises:** `OSError` if it cannot be made or written, or is not its user's alone.
    """
    cache = Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser()
    folder = cache / "floq_eqx" / "compiled"
    for path in (folder, folder / _machine()):
        path.mkdir(mode=0o700, parents=True, exist_ok=True)
        for found in (path.lstat(), path.stat()):
            if hasattr(os, "getuid") and found.st_uid != os.getuid():
                raise PermissionError(f"{path} belongs to another user")
        if path.stat().st_mode & (stat.S_IWGRP | stat.S_IWOTH):
            raise PermissionError(f"others may write to {path}: chmod 700 {path}")
    return path


def _machine() -> str:
    """The same for processors that run the same instructions, whatever JAX's keys hold of it."""
    try:
        text = Path("/proc/cpuinfo").read_text().partition("\n\n")[0]
    except OSError:
        text = ""
    kept = r"(?m)^(?:vendor_id|cpu family|model|stepping|flags|Features|CPU )\b.*"
    told = re.findall(kept, text) or [platform.node()]
    return hashlib.sha256("\n".join([platform.machine(), *told]).encode()).hexdigest()[:16]


def _vet(folder: Path, unusable: str | None = None) -> int:
    """Removes entries that are not as they were written, that have no time of use, without which
    JAX fails, or that are of a program that is `unusable`; writes the others' checksums down.

    **Returns:** how many were not as they were written.

    **Raises:** `OSError`, also if the folder cannot be locked.
    """
    sums, damaged = {}, 0
    with FileLock(folder / ".lockfile", timeout=5):  # JAX's own
        try:
            known = dict(read_json(folder / _CHECKSUMS))
        except (OSError, ValueError, TypeError):
            known = None
        for entry in folder.glob("*-cache"):
            time_of_use = entry.with_name(entry.name.removesuffix("cache") + "atime")
            checksum = hashlib.sha256(entry.read_bytes()).hexdigest()
            whole = (known or {}).get(entry.name, checksum) == checksum
            damaged += not whole
            if whole and time_of_use.exists() and not entry.name.startswith(f"{unusable}-"):
                sums[entry.name] = checksum
            else:
                entry.unlink()
                time_of_use.unlink(missing_ok=True)
        if sums != known:
            write_text(folder / _CHECKSUMS, json.dumps(sums, indent=0))
    return damaged


def _vet_quietly(folder: Path, unusable: str | None = None) -> None:
    """The same where nothing depends on it any more."""
    with contextlib.suppress(OSError):
        if folder.is_dir():  # Locking would make it again.
            _vet(folder, unusable)


def _mend(folder: Path, *, told: bool) -> None:
    """Removes the entries that JAX warns of, which it would never write again, and shows the first
    of its warnings, unless the user is `told` already: there is one for every entry.
    """
    show: Any = warnings.showwarning

    def shown(message: Any, *others: Any, **more: Any) -> None:
        nonlocal told
        match = re.match(_JAX_WARNS, str(message))
        if match is None:
            show(message, *others, **more)
            return
        _vet_quietly(folder, unusable=match[2])
        if not told:
            told = True
            deed = "read, and is compiled anew" if match[1] == "read" else "written"
            reason = " ".join(str(message)[match.end() :].split())[:200]
            text = f"an entry of {folder} cannot be {deed}: {reason}"
            show(UserWarning(text), *others, **more)

    warnings.filterwarnings("always", message=_JAX_WARNS)
    warnings.showwarning = shown
