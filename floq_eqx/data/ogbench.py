"""OGBench's names, environments and dataset files (arXiv 2410.20092).

A dataset is a pair of `.npz` files, `<dataset>.npz` and `<dataset>-val.npz`, with the keys
`observations`, `actions`, `terminals`, `qpos`, `qvel` and, where there are buttons,
`button_states`; one row is one environment step, and a terminal ends a trajectory. Files come from
anywhere, so everything is checked here, once, before an agent sees it.
"""

import contextlib
import dataclasses
import difflib
import glob
import http.client
import importlib
import itertools
import math
import os
import sys
import time
import urllib.error
import urllib.parse
import urllib.request
import uuid
import warnings
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO, Literal

import jax.numpy as jnp
import numpy as np

from .._progress import progress_bar
from .transitions import Batch, check_data

DEFAULT_DIRECTORY = "~/.ogbench/data"
"""Where OGBench itself keeps its datasets."""

SERVER = "https://rail.eecs.berkeley.edu/datasets/ogbench"
"""OGBench's server of datasets."""

# The names are known without OGBench: each family's environments, and the kinds of their data.
_MAZES = ("medium", "large", "giant", "teleport")
_NAMES = {
    "antmaze": (_MAZES, ("navigate", "stitch", "explore")),
    "antsoccer": (("arena", "medium"), ("navigate", "stitch")),
    "cube": (("single", "double", "triple", "quadruple", "octuple"), ("play", "noisy")),
    "humanoidmaze": (_MAZES, ("navigate", "stitch")),
    "pointmaze": (_MAZES, ("navigate", "stitch")),
    "powderworld": (("easy", "medium", "hard"), ("play",)),
    "puzzle": (("3x3", "4x4", "4x5", "4x6"), ("play", "noisy")),
    "scene": (("",), ("play", "noisy")),
}
_VISUAL = ("antmaze", "cube", "humanoidmaze", "puzzle", "scene")
_TASKS = ("", "-singletask", *(f"-singletask-task{number}" for number in range(1, 6)))
# Actions at the very edge have infinite log-density under a squashed policy; FQL's data loading
# keeps this distance, and floq's with it.
_ACTION_MARGIN = 1e-5
# Deflate cannot pack more than about 1032 bytes into one (zlib's technical details).
_MAX_DEFLATE_RATIO = 1040
_STALE_SECONDS = 3600.0


# --------------------------------------------------------------------------------------- names


@dataclasses.dataclass(frozen=True)
class DatasetName:
    """An OGBench name, `<environment>-<kind>[-singletask[-task<N>]]-v0`, taken apart.

    **Attributes:**

    - `environment`: such as `cube-single`.
    - `kind`: how the data were collected, such as `play`.
    - `task`: `None` for the goal-conditioned environment; else the task, 1 to 5, or 0 for the
        one that OGBench takes by default.
    """

    environment: str
    kind: str
    task: int | None = None

    @property
    def family(self) -> str:
        """The environment's first word, such as `cube`; `visual` where it shows pixels."""
        return self.environment.split("-")[0]

    @property
    def dataset(self) -> str:
        """The dataset's name, which all tasks share: its files' stem."""
        return f"{self.environment}-{self.kind}-v0"

    @property
    def environment_id(self) -> str:
        """The name under which OGBench registers the environment in Gymnasium."""
        return f"{self.environment}{self._suffix}-v0"

    @property
    def _suffix(self) -> str:
        if self.task is None:
            return ""
        return "-singletask" + (f"-task{self.task}" if self.task else "")

    def __str__(self) -> str:
        return f"{self.environment}-{self.kind}{self._suffix}-v0"


def dataset_names() -> list[str]:
    """All the dataset names that `parse_name` accepts, sorted; OGBench is not needed for them.

    **Returns:** goal-conditioned names such as `cube-single-play-v0` and, where OGBench has the
    tasks, single-task names such as `cube-single-play-singletask-task1-v0`.
    """
    names = []
    for family, (sizes, kinds) in _NAMES.items():
        tasks = _TASKS if family != "powderworld" else ("",)
        for size, kind, task in itertools.product(sizes, kinds, tasks):
            if (size, kind) == ("giant", "explore"):
                continue
            name = "-".join(filter(None, (family, size, kind)))
            names.append(f"{name}{task}-v0")
            if family in _VISUAL and size != "octuple":
                names.append(f"visual-{name}{task}-v0")
    return sorted(names)


def parse_name(name: str) -> DatasetName:
    """Takes an OGBench dataset name apart.

    **Arguments:**

    - `name`: such as `cube-single-play-v0` or `cube-single-play-singletask-task1-v0`.

    **Returns:** its parts, as a `DatasetName`.

    **Raises:** `ValueError` for a name that OGBench does not have, with the nearest it has.
    """
    known = dataset_names()
    if name not in known:
        near = difflib.get_close_matches(name, known, n=3, cutoff=0.4)
        hint = f" Did you mean {', '.join(near)}?" if near else ""
        raise ValueError(
            f"Unknown dataset {name!r}: expected an OGBench name, "
            f"<environment>-<kind>[-singletask[-task<N>]]-v0.{hint}"
        )
    stem, _, task = name.removesuffix("-v0").partition("-singletask")
    environment, kind = stem.rsplit("-", 1)
    number = int(task.removeprefix("-task") or 0) if "-singletask" in name else None
    return DatasetName(environment, kind, number)


# --------------------------------------------------------------------------------- environments


def _ogbench(name: str = "ogbench") -> Any:
    """A module of OGBench, which registers its environments in Gymnasium.

    **Raises:** `ModuleNotFoundError` that says how to install it.
    """
    try:
        return importlib.import_module(name)
    except ModuleNotFoundError as error:
        # From 3.13 on, a requirement of dm_control that OGBench does not use cannot be installed.
        install = "--no-deps ogbench dm_control" if sys.version_info >= (3, 13) else "ogbench"
        raise ModuleNotFoundError(
            f"OGBench is needed for this and cannot be imported ({error}): pip install {install}",
            name=error.name,
        ) from error


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Silences what OGBench's environments warn of on every machine and to no purpose."""
    with warnings.catch_warnings():
        # MuJoCo's viewer is imported with the environment and misses a screen, which nobody uses.
        warnings.filterwarnings("ignore", module="glfw")
        warnings.filterwarnings("ignore", message=".*precision lowered by casting")
        yield


def _make(environment_id: str, **kwargs: Any) -> Any:
    """`gymnasium.make`, quiet, with an action space that is made once."""
    import gymnasium

    _ogbench()
    with _quiet():
        env = gymnasium.make(environment_id, disable_env_checker=True, **kwargs)
        cls = type(env.unwrapped)
        if isinstance(getattr(cls, "action_space", None), property):
            # The manipulation environments make a new space, with a warning and an unseeded
            # generator, at every access; `reset` accesses it too.
            space: Any = env.action_space
            low, high = space.low.astype(np.float32), space.high.astype(np.float32)
            fixed = gymnasium.spaces.Box(low, high, dtype=np.float32)
            env.unwrapped.__class__ = type(cls.__name__, (cls,), {"action_space": fixed})
    return env


def make_environment(
    name: str, *, success_timing: Literal["pre", "post"] | None = None, **kwargs: Any
) -> Any:
    """Makes the Gymnasium environment that belongs to a dataset.

    **Arguments:**

    - `name`: an OGBench dataset name, of a single task or goal-conditioned.
    - `success_timing`: whether success, reward and termination are those of the state before the
        action (`"pre"`) or after it (`"post"`). `None` takes the installed OGBench's own: from
        1.2 on that is `"pre"` for single tasks, whereas published numbers were made with 1.1,
        which knew only `"post"`.
    - `kwargs`: passed on to the environment.

    **Returns:** a `gymnasium.Env` with a time limit. Its `action_space.seed` works, which it does
    not for OGBench's own manipulation environments.

    **Raises:** `ValueError` for an unknown name or timing.
    """
    parsed = parse_name(name)
    if success_timing not in (None, "pre", "post"):
        raise ValueError(f"success_timing must be 'pre', 'post' or None, got {success_timing!r}.")
    if success_timing is not None:
        kwargs["success_timing"] = success_timing
    return _make(parsed.environment_id, **kwargs)


# ---------------------------------------------------------------------------------------- files


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


def _short(error: Exception) -> str:
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
                    if size != info.file_size or size > _MAX_DEFLATE_RATIO * (packed + 64):
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
                f"{path} is not an intact .npz of arrays: {_short(e)}. Move it elsewhere and "
                "make or fetch it again, or name another file or directory (--data)."
            ) from e
    return shapes


# ------------------------------------------------------------------------------------- datasets


def _dataset_paths(name: DatasetName, directory: str | os.PathLike[str]) -> list[Path]:
    """The training and the validation file of a dataset."""
    train = Path(directory).expanduser() / f"{name.dataset}.npz"
    return [train, validation_path(train)]


def _how_to_get(name: DatasetName) -> str:
    how = f"fetch it with floq_eqx.data.fetch_dataset({name.dataset!r}, mirror=...)"
    if name.family in ("pointmaze", "cube", "scene", "puzzle"):
        how = f"collect it with floq_eqx.data.collect_dataset({name.dataset!r}, path) or {how}"
    return how


def load_dataset(
    name: str,
    *,
    path: str | os.PathLike[str] | None = None,
    directory: str | os.PathLike[str] | None = None,
    mirror: str | None = None,
    validation: bool = False,
    with_next_action: bool = False,
    rewards: Literal["task", "file"] = "task",
) -> Batch:
    """Loads the transitions of an OGBench dataset, with the rewards of a single task.

    Rewards and masks are OGBench's own (`ogbench.relabel_utils`), of the state before the action,
    or the file's. Those that a file has and that are not used are counted in a warning.
    Actions are clipped to ±(1 - 1e-5), as in the reference code of FQL and floq.

    **Arguments:**

    - `name`: a single-task name, such as `cube-single-play-singletask-task1-v0`; with the file's
        own rewards also a goal-conditioned one.
    - `path`: the one file to load; the training file, also for `validation`.
    - `directory`: where `<dataset>.npz` lies, if no `path` is given; by default
        `~/.ogbench/data`, which OGBench uses.
    - `mirror`: if given, a dataset that is missing in `directory` is fetched from there first; see
        `fetch_dataset`.
    - `validation`: whether to load `<stem>-val.npz` beside that file.
    - `with_next_action`: whether to fill in `next_action`, which some algorithms need.
    - `rewards`: `"task"` labels the transitions for the task of `name`; `"file"` takes the file's
        `rewards` and `masks`, one of each a step, for the transition that begins there. Those of
        the last state of a trajectory are not used. Without `masks` no state is terminal, as
        `terminals` only end trajectories. `qpos` is not needed then.

    **Returns:** a `Batch` of all transitions, in float32. The last state of a trajectory is only
    a `next_observation`.

    **Raises:** `ValueError` for a name or a file without the rewards that are asked for, and for
    whatever is wrong with the file:
    not an intact `.npz`, missing or misshapen arrays, NaN or infinite values, actions outside
    [-1, 1], no transitions, a trajectory without end. `FileNotFoundError` if it is missing.
    """
    parsed = parse_name(name)
    if parsed.family in ("visual", "powderworld"):
        raise ValueError(f"{name} has image observations, which are not supported.")
    if rewards not in ("task", "file"):
        raise ValueError(f"rewards must be 'task' or 'file', got {rewards!r}.")
    if parsed.task is None and rewards == "task":
        raise ValueError(
            f"{name} is goal-conditioned and has no rewards: name a task, such as "
            f"{dataclasses.replace(parsed, task=1)}, or "
            f"{dataclasses.replace(parsed, task=0)} for OGBench's default task, or take the file's "
            "own with rewards='file'."
        )
    if path is not None and (directory is not None or mirror is not None):
        raise ValueError("Give either path, or directory and mirror, not both.")
    if path is None:
        train, _ = _dataset_paths(parsed, directory or DEFAULT_DIRECTORY)
        if mirror is not None:
            fetch_dataset(name, train.parent, mirror=mirror)
    else:
        train = Path(path).expanduser()
    file = validation_path(train) if validation else train
    if not file.is_file():
        raise FileNotFoundError(f"There is no file {file}: {_how_to_get(parsed)}.")

    shapes = check_file(file)
    # What is too large for float32 becomes infinite, which is found below or is far from any goal.
    with contextlib.closing(make_environment(name)) as env, np.errstate(over="ignore"):
        _check_shapes(shapes, env, parsed, file, own_rewards=rewards == "file")
        try:
            raw = _ogbench().load_dataset(str(file), compact_dataset=True, add_info=True)
            with np.load(file) as archive:
                own = {key: archive[key] for key in ("rewards", "masks") if key in shapes}
        except Exception as e:  # whatever the readers run into
            raise ValueError(
                f"{file} is corrupt: {_short(e)}. Move it elsewhere and collect or fetch the "
                "dataset again, or name another file or directory (--data)."
            ) from e
        # The compact form keeps every row; a row that is valid is a transition to the next one.
        valid = raw["valids"].astype(bool)
        _check_values(raw, valid, file)
        following = np.concatenate([[False], valid[:-1]])
        if rewards == "file":
            rows = _own_rewards(own, valid, file)
        else:
            keys = ("qpos", "qvel", "button_states")
            rows = {key: raw[key][valid] for key in keys if key in raw}
            _ogbench("ogbench.relabel_utils").relabel_dataset(parsed.environment_id, env, rows)
            _say_unused(own, valid, rows, name, file)

    action = np.clip(raw["actions"], -1.0 + _ACTION_MARGIN, 1.0 - _ACTION_MARGIN)
    data = Batch(
        observation=jnp.asarray(raw["observations"][valid]),
        action=jnp.asarray(action[valid]),
        reward=jnp.asarray(rows["rewards"]),
        mask=jnp.asarray(rows["masks"]),
        next_observation=jnp.asarray(raw["observations"][following]),
        next_action=jnp.asarray(action[following]) if with_next_action else None,
    )
    check_data(data)
    return data


def _own_rewards(
    own: dict[str, np.ndarray], valid: np.ndarray, file: Path
) -> dict[str, np.ndarray]:
    """The file's rewards and masks of the transitions, checked."""
    own = {"masks": np.ones(len(valid), np.float32)} | own
    for key, array in own.items():
        array = own[key] = array.astype(np.float32)
        if key == "rewards":
            bad, what = ~np.isfinite(array), "is NaN or infinite"
        else:
            bad, what = ~((array >= 0) & (array <= 1)), "is outside [0, 1]"
        bad &= valid
        if bad.any():
            first = int(np.argmax(bad))
            raise ValueError(
                f"{file}: `{key}` {what} in {int(bad.sum())} of {int(valid.sum())} transitions, "
                f"first {array[first]!s} in step number {first}. Mend the file, or take the task's "
                "with rewards='task'."
            )
    return {key: array[valid] for key, array in own.items()}


def _say_unused(
    own: dict[str, np.ndarray],
    valid: np.ndarray,
    labels: dict[str, np.ndarray],
    name: str,
    file: Path,
) -> None:
    """Warns of rewards and masks in a file that are not those of the task."""
    different = {}
    for key, array in own.items():
        if array.shape != valid.shape:
            different[key] = int(valid.sum())
        else:
            different[key] = int((array[valid].astype(np.float32) != labels[key]).sum())
    total = f"{int(valid.sum()):,}"
    parts = [
        f"`{key}` of {count:,} of {total} transitions" for key, count in different.items() if count
    ]
    if parts:
        warnings.warn(
            f"{file}: {' and '.join(parts)} are not those of the task of {name}, and are not used; "
            "rewards='file' (--rewards file) takes the file's own.",
            stacklevel=3,
        )


def _check_shapes(
    shapes: dict[str, tuple], env: Any, name: DatasetName, file: Path, *, own_rewards: bool
) -> None:
    """Compares a file's arrays with what the environment yields."""
    expected = {
        "observations": env.observation_space.shape,
        "actions": env.action_space.shape,
        "terminals": (),
        "qpos": (env.unwrapped.model.nq,),
        "qvel": (env.unwrapped.model.nv,),
    }
    required = ["observations", "actions", "terminals", "rewards" if own_rewards else "qpos"]
    if own_rewards:  # Of the task nothing is needed.
        expected |= {"rewards": (), "masks": ()}
    elif name.family in ("scene", "puzzle"):
        expected["button_states"] = (env.unwrapped._num_buttons,)
        required.append("button_states")
    missing = [key for key in required if key not in shapes]
    if missing:
        present = ", ".join(sorted(shapes))[:500]
        raise ValueError(
            f"{file} lacks {', '.join(missing)}; it has {present or 'nothing'}. "
            f"{name.dataset} needs {', '.join(required)}"
            f"{' with the rewards of the file' if own_rewards else ''}."
        )
    for key, shape in expected.items():
        got = shapes.get(key)
        if got is not None and key in ("rewards", "masks") and len(got) != 1:
            raise ValueError(f"{file}: `{key}` has shape {got}, expected one number a step.")
        if got is not None and (len(got) != 1 + len(shape) or got[1:] != shape):
            raise ValueError(
                f"{file}: `{key}` has shape {got}, expected {('steps', *shape)} for "
                f"{name.environment_id}. Is it the dataset of another environment?"
            )
    lengths = {key: shapes[key][0] for key in expected if key in shapes}
    if len(set(lengths.values())) != 1:
        raise ValueError(
            f"{file}: the arrays differ in length, {lengths}; collect or fetch it again."
        )
    if lengths["observations"] == 0:
        raise ValueError(f"{file} holds no steps; collect or fetch the dataset again.")


def _check_values(raw: dict[str, np.ndarray], valid: np.ndarray, file: Path) -> None:
    """Checks what the clipping and the labelling of rewards would hide."""
    ends = 1.0 - raw["valids"]
    if not np.isin(ends, (0.0, 1.0)).all():
        raise ValueError(f"{file}: `terminals` must be 0 or 1, got other values.")
    if valid[-1]:
        raise ValueError(
            f"{file}: the last trajectory has no end, its last `terminals` is {ends[-1]} and "
            "must be 1. The file was cut off; collect or fetch it again."
        )
    if not valid.any():
        raise ValueError(f"{file} holds no transitions: every step ends a trajectory.")
    for key in ("observations", "actions", "qpos"):
        if key not in raw:
            continue
        finite = np.asarray(np.isfinite(raw[key]).all(axis=1))
        if not finite.all():
            raise ValueError(
                f"{file}: `{key}` is NaN or infinite in {int((~finite).sum())} of {len(finite)} "
                f"steps, first in number {int(np.argmin(finite))}. Collect or fetch it again."
            )
    largest = np.abs(raw["actions"]).max()
    if largest > 1.0 + _ACTION_MARGIN:
        raise ValueError(f"{file}: actions must lie in [-1, 1], got {largest!s}; rescale them.")


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
    paths = _dataset_paths(parsed, directory)
    for path in reversed(paths):
        if path.exists():
            continue
        url = f"{base.rstrip('/')}/{path.name}"
        advice = f"Try again later, name a mirror, or {_how_to_get(parsed)}."
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
