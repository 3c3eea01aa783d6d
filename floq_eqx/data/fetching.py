"""Datasets from OGBench's server, or a mirror of it."""

import contextlib
import http.client
import os
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

from .._progress import progress_bar
from .files import check_file, finish, unfinished, validation_path
from .names import DatasetName, parse_name

DEFAULT_DIRECTORY = "~/.ogbench/data"
"""Where OGBench itself keeps its datasets."""

SERVER = "https://rail.eecs.berkeley.edu/datasets/ogbench"
"""OGBench's server of datasets."""


def dataset_paths(name: DatasetName, directory: str | os.PathLike[str]) -> list[Path]:
    """The training and the validation file of a dataset."""
    train = Path(directory).expanduser() / f"{name.dataset}.npz"
    return [train, validation_path(train)]


def how_to_get(name: DatasetName) -> str:
    """What to do about a dataset that is missing, for an error."""
    how = f"fetch it with floq_eqx.data.fetch_dataset({name.dataset!r}, mirror=...)"
    if name.family in ("pointmaze", "cube", "scene", "puzzle"):
        how = f"collect it with floq_eqx.data.collect_dataset({name.dataset!r}, path) or {how}"
    return how


def fetch_dataset(
    name: str,
    directory: str | os.PathLike[str] = DEFAULT_DIRECTORY,
    *,
    mirror: str | None = None,
    timeout: float = 30.0,
    progress: bool = True,
) -> Path:
    """Downloads the training and the validation file of an OGBench dataset.

    Files that are there already are kept. A file gets its name only once it is complete and
    checked, the validation file first.

    **Arguments:**

    - `name`: such as `cube-single-play-v0`; of a single-task name, the dataset is taken.
    - `directory`: where to put the files.
    - `mirror`: the address of a folder with the files (`https:`, `http:` or `file:`); by default
        OGBench's own server.
    - `timeout`: seconds without any answer after which the server counts as unreachable.
    - `progress`: whether to show a progress bar, if stderr is a terminal.

    **Returns:** the path of the training file.

    **Raises:** `ConnectionError` if the server cannot be reached, does not have the file or stops
    half-way; `ValueError` for an unknown name or address, or if what came is not a dataset.
    """
    parsed = parse_name(name)
    base = SERVER if mirror is None else mirror
    if urllib.parse.urlsplit(base).scheme not in ("http", "https", "file"):
        raise ValueError(
            f"mirror must be an address that begins with https:, http: or file:, got {base!r}."
        )
    if not timeout > 0:
        raise ValueError(f"timeout must be positive, got {timeout}.")
    paths = dataset_paths(parsed, directory)
    for path in reversed(paths):
        if path.exists():
            continue
        url = f"{base.rstrip('/')}/{path.name}"
        advice = f"Try again later, name a mirror, or {how_to_get(parsed)}."
        with unfinished(path) as file:
            _download(url, file, timeout=timeout, progress=progress, advice=advice)
            try:
                check_file(file.name, thorough=True)
            except ValueError as e:
                raise ValueError(f"What {url} sent is not a dataset: {e.__cause__}.") from e
            finish(file, path)
    return paths[0]


@contextlib.contextmanager
def _network(url: str, advice: str) -> Iterator[None]:
    """Turns what the network raises into one kind of error; the disk's errors lie outside."""
    try:
        yield
    except (OSError, http.client.HTTPException) as e:
        if isinstance(e, urllib.error.HTTPError):
            e.close()  # It holds the connection.
        raise ConnectionError(f"Could not fetch {url}: {e!r}. {advice}") from e


def _download(url: str, file: BinaryIO, *, timeout: float, progress: bool, advice: str) -> None:
    """Copies `url` to `file`, and makes sure that all of it came."""
    with _network(url, advice):
        response = urllib.request.urlopen(url, timeout=timeout)
    with response:
        announced = response.headers.get("Content-Length", "")
        total = int(announced) if announced.isdigit() else None
        received = 0
        name = url.rsplit("/", 1)[-1]
        with progress_bar("B", total=total, show=progress, name=name, unit_scale=True) as show:
            while True:
                with _network(url, advice):
                    chunk = response.read(1 << 20)
                if not chunk:
                    break
                file.write(chunk)
                received += len(chunk)
                show(received)
    file.flush()
    # http.client takes a connection that closes early for the end of the file.
    if total is not None and received != total:
        raise ConnectionError(
            f"Could not fetch {url}: the server stopped after {received} of {total} bytes. {advice}"
        )
