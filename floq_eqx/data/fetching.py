"""Datasets from the servers that have them: downloads that go on where they were broken off."""

import contextlib
import dataclasses
import hashlib
import http.client
import json
import os
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from .._progress import progress_bar
from .files import check_file, validation_path
from .names import DatasetName, parse_name

DEFAULT_DIRECTORY = "~/.ogbench/data"
"""Where OGBench itself keeps its datasets."""

SERVER = "https://rail.eecs.berkeley.edu/datasets/ogbench"
"""OGBench's server of datasets."""

HUB = "https://huggingface.co/datasets/zhouzypaul/ogbench_datasets/resolve/main"
"""A public mirror of it."""

SOURCES = (SERVER, SERVER.replace("https:", "http:"), HUB)
"""Where datasets are looked for, in this order, after a mirror that is named."""

_TRIES = 3  # of a transfer that breaks off, from one source


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
    report: Callable[[str], None] = lambda line: None,
) -> Path:
    """Downloads the training and the validation file of an OGBench dataset.

    Files that are there already are kept. The sources are the mirror that is named, OGBench's
    server by https and by http, and a public mirror on Hugging Face's hub. A file gets its name
    only once it is complete and checked, the validation file first. What came of one that is broken
    off is kept beside it, hidden, and the next time the download goes on from there.

    **Arguments:**

    - `name`: such as `cube-single-play-v0`; of a single-task name, the dataset is taken.
    - `directory`: where to put the files.
    - `mirror`: the address of a folder with the files (`https:`, `http:` or `file:`), which is
        tried first.
    - `timeout`: seconds without any answer after which a server counts as unreachable.
    - `progress`: whether to show a progress bar, if stderr is a terminal.
    - `report`: takes a line for each source that is tried.

    **Returns:** the path of the training file.

    **Raises:** `ConnectionError` that says of every source why it did not do; `BlockingIOError` if
    another process fetches the same file; `ValueError` for an unknown name or address.
    """
    parsed = parse_name(name)
    if mirror is not None and urllib.parse.urlsplit(mirror).scheme not in ("http", "https", "file"):
        raise ValueError(
            f"mirror must be an address that begins with https:, http: or file:, got {mirror!r}."
        )
    if not timeout > 0:
        raise ValueError(f"timeout must be positive, got {timeout}.")
    paths = dataset_paths(parsed, directory)
    sources = (*([] if mirror is None else [mirror]), *SOURCES)
    for path in reversed(paths):
        if path.exists():
            report(f"{path} is there already")
            continue
        path.parent.mkdir(parents=True, exist_ok=True)
        with _alone(path):
            failed = []
            for source in sources:
                url = f"{source.rstrip('/')}/{path.name}"
                report(f"trying {url}")
                try:
                    _Download(url, path, timeout, progress).run()
                    break
                except (ConnectionError, ValueError) as error:
                    failed.append(f"{url}: {error}")
                    report(f"not from there: {error}")
            else:
                raise ConnectionError(
                    f"Could not fetch {path.name}. {'; '.join(failed)}. Try again later, name a "
                    f"mirror, or {how_to_get(parsed)}."
                )
    return paths[0]


@contextlib.contextmanager
def _alone(path: Path) -> Iterator[None]:
    """Keeps other processes from fetching the same file."""
    lock = path.with_name(f".{path.name}.lock")
    try:
        with FileLock(lock, timeout=0):
            yield
            lock.unlink(missing_ok=True)
    except Timeout:
        raise BlockingIOError(f"Another process is fetching {path}: wait for it.") from None
    except BaseException:
        lock.unlink(missing_ok=True)
        raise


class _Linked(urllib.request.HTTPRedirectHandler):
    """Follows redirects, and keeps what the hub says of the file that it leads to."""

    sha256: str | None = None

    def redirect_request(
        self, req: Any, fp: Any, code: int, msg: str, headers: Any, newurl: str
    ) -> Any:
        told = headers.get("X-Linked-ETag", "").strip('"')
        if len(told) == 64:
            self.sha256 = told
        return super().redirect_request(req, fp, code, msg, headers, newurl)


@dataclasses.dataclass
class _Download:
    """One file from one address, by way of a hidden one beside it that holds what has come."""

    url: str
    path: Path
    timeout: float
    progress: bool

    def __post_init__(self):
        # By the address, so that bytes of two sources never meet.
        mark = hashlib.sha256(self.url.encode()).hexdigest()[:8]
        self.partial = self.path.with_name(f".{self.path.name}.{mark}.download")
        self.about = self.partial.with_suffix(".json")

    def run(self) -> None:
        sha256 = None
        for number in range(_TRIES):
            try:
                sha256 = self._transfer()
                break
            except ConnectionError:
                if number + 1 == _TRIES or not self._has():
                    raise
        try:
            self._check(sha256)
        except ValueError:
            self._forget()
            raise
        with open(self.partial, "rb") as file:
            os.fsync(file.fileno())
        os.replace(self.partial, self.path)
        self.about.unlink(missing_ok=True)

    def _has(self) -> int:
        """How many bytes have come."""
        return self.partial.stat().st_size if self.partial.exists() else 0

    def _forget(self) -> None:
        self.partial.unlink(missing_ok=True)
        self.about.unlink(missing_ok=True)

    def _transfer(self) -> str | None:
        """Fetches what is missing, and returns the SHA-256 of the whole file where it is told."""
        request, had = urllib.request.Request(self.url), self._has()
        version = self._version()
        if had and version is not None:
            # The rest, if it is still the same file, and else all of it.
            request.add_header("Range", f"bytes={had}-")
            request.add_header("If-Range", version)
        linked = _Linked()
        try:
            with _network():
                response = urllib.request.build_opener(linked).open(request, timeout=self.timeout)
        except ConnectionError as error:
            cause = error.__cause__
            if isinstance(cause, urllib.error.HTTPError) and cause.code == 416:
                self._forget()  # It is shorter now than what had come.
                return self._transfer()
            raise
        with response:
            if response.headers.get_content_type() == "text/html":
                raise ConnectionError(f"a web page came instead of the file, from {response.url}")
            goes_on = response.status == 206 if hasattr(response, "status") else False
            span = response.headers.get("Content-Range", "")
            if goes_on and not span.startswith(f"bytes {had}-"):
                raise ConnectionError(f"the server sent another part than was asked for, {span!r}")
            start = had if goes_on else 0
            length = response.headers.get("Content-Length", "")
            total = start + int(length) if length.isdigit() else None
            if not goes_on:
                self._note(response.headers)
            self._copy(response, start, total)
        return linked.sha256

    def _version(self) -> str | None:
        """What the server called the file of which a part has come."""
        with contextlib.suppress(OSError, ValueError, KeyError, TypeError):
            return json.loads(self.about.read_text())["version"]
        return None

    def _note(self, headers: Any) -> None:
        tag = headers.get("ETag", "")
        version = headers.get("Last-Modified") if tag.startswith("W/") or not tag else tag
        self.about.write_text(json.dumps({"url": self.url, "version": version}))

    def _copy(self, response: Any, start: int, total: int | None) -> None:
        received = start
        options = {"total": total, "show": self.progress, "name": self.path.name}
        with (
            open(self.partial, "ab" if start else "wb") as file,
            progress_bar("B", unit_scale=True, **options) as show,
        ):
            while True:
                with _network():
                    chunk = response.read(1 << 20)
                if not chunk:
                    break
                file.write(chunk)
                received += len(chunk)
                show(received)
        # http.client takes a connection that closes early for the end of the file.
        if total is not None and received != total:
            raise ConnectionError(f"the server stopped after {received} of {total} bytes")

    def _check(self, sha256: str | None) -> None:
        with open(self.partial, "rb") as file:
            if file.read(256).lstrip().lower().startswith((b"<!doctype", b"<html")):
                raise ValueError("a web page came instead of the file")
            file.seek(0)
            if sha256 is not None and hashlib.file_digest(file, "sha256").hexdigest() != sha256:
                raise ValueError("what came is not what was announced: its SHA-256 is another")
        try:
            check_file(self.partial, thorough=True)
        except ValueError as error:
            raise ValueError(f"what came is not a dataset: {error.__cause__}") from error


@contextlib.contextmanager
def _network() -> Iterator[None]:
    """Turns what the network raises into one kind of error; the disk's errors lie outside."""
    try:
        yield
    except (OSError, http.client.HTTPException) as error:
        if isinstance(error, urllib.error.HTTPError):
            error.close()  # It holds the connection.
        raise ConnectionError(f"{error!r}") from error
