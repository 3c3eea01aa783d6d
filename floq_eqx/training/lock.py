"""One process at a time in a run's folder."""

import contextlib
import os
import socket
from collections.abc import Iterator
from pathlib import Path

from .files import writing

LOCK = ".lock"
"""What is locked; it stays."""

HOLDER = f"{LOCK}.holder"
"""Says which process holds the lock."""


@contextlib.contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Makes a run's folder and keeps other processes from training in it.

    The lock ends with the block, or with this process however that ends. Where nothing came to be,
    its file is removed again, with the folders that were made for it.

    **Raises:** `BlockingIOError` that names the process that holds it; `OSError` if the folder
    cannot be written to.
    """
    import filelock

    made = [path for path in (folder, *folder.parents) if not path.exists()]
    with writing(folder):
        folder.mkdir(parents=True, exist_ok=True)
    before = set(os.listdir(folder))
    lock = filelock.FileLock(folder / LOCK)
    try:
        lock.acquire(timeout=0)
    except filelock.Timeout:
        holder = "another process"
        with contextlib.suppress(OSError, ValueError):
            holder = (folder / HOLDER).read_text(encoding="utf-8")[:200] or holder
        raise BlockingIOError(
            f"{holder} trains in {folder}: wait for it, stop it, or choose another folder."
        ) from None
    except OSError as error:
        raise OSError(error.errno, f"Cannot write {folder / LOCK}: {error.strerror}") from error
    try:
        with writing(folder / HOLDER):
            text = f"process {os.getpid()} on {socket.gethostname()}"
            (folder / HOLDER).write_text(text, encoding="utf-8")
        yield
    finally:
        with contextlib.suppress(OSError):
            (folder / HOLDER).unlink()
        if set(os.listdir(folder)) - before == {LOCK}:
            with contextlib.suppress(OSError):
                (folder / LOCK).unlink()
                for path in made:
                    path.rmdir()
        lock.release()
