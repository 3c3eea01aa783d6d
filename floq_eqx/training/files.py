"""Writing the files of a run."""

import contextlib
from collections.abc import Iterator
from pathlib import Path

from ..data.ogbench import finish, unfinished


@contextlib.contextmanager
def writing(path: Path) -> Iterator[None]:
    """Names the file in an error about the disk."""
    try:
        yield
    except OSError as error:
        raise OSError(error.errno, f"Cannot write {path}: {error.strerror}") from error


def write_text(path: Path, text: str) -> None:
    """Writes a text file that appears under its name only when it is complete."""
    with writing(path), unfinished(path) as file:
        file.write(text.encode())
        finish(file, path)
