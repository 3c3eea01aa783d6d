"""Reading and writing the files of a run."""

import contextlib
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from ..data.files import finish, unfinished

_LARGEST_JSON = 1 << 20


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


def read_json(path: Path) -> Any:
    """The content of a file of ours, which is never large or deep.

    **Raises:** `ValueError` if it is no JSON, or too large or too deep.
    """
    with path.open("rb") as file:
        content = file.read(_LARGEST_JSON + 1)
    if len(content) > _LARGEST_JSON:
        raise ValueError(f"it has more than {_LARGEST_JSON} bytes")
    try:
        return json.loads(content)
    except RecursionError:
        raise ValueError("it is nested too deeply") from None
