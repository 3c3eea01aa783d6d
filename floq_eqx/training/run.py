"""A training run as a folder that can be interrupted, resumed, evaluated and plotted.

config.json       what was asked for
train.csv         means of every metric, a row a chunk of updates
evaluation.csv    success, return and length, a row an evaluation
checkpoints/<n>/  the state after n steps, with the checksums of its files

A step is an update offline and an environment step online, which go on counting from the last
update. Online checkpoints hold what was collected too.
"""

import contextlib
import hashlib
import json
import logging
import os
import re
import shutil
import socket
import sys
import time
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal, TextIO

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import PyTree

from ..agents.base import Agent, State
from ..data import Batch
from ..evaluation import make_environments
from .config import TrainConfig
from .files import write_text, writing
from .loggers import CSVLogger

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None

_CHECKSUMS = "checksums.json"
_STATE, _COLLECTED = "default", "collected"
_KEPT = 2
_LARGEST_JSON = 1 << 20
_LOCK = ".lock"


class Run:
    """One run's folder.

    **Arguments:** `folder`: where it is; make one with [`floq_eqx.training.train`][].

    **Raises:** `FileNotFoundError` if there is no run, `ValueError` if its configuration cannot be
    read.
    """

    def __init__(self, folder: str | os.PathLike[str]):
        self.folder = Path(folder)
        path = self.folder / "config.json"
        if not path.is_file():
            raise FileNotFoundError(f"{self.folder} holds no run: it has no config.json.")
        try:
            self.config = TrainConfig.from_plain(_read_json(path))
        except (ValueError, TypeError, AttributeError, ArithmeticError) as error:
            raise ValueError(f"{path} is not a run's configuration: {str(error)[:1000]}") from error

    @classmethod
    def create(cls, folder: str | os.PathLike[str], config: TrainConfig) -> "Run":
        """A new run in a folder that is empty or not there yet.

        **Raises:** `FileExistsError` if the folder holds anything; `OSError` if it cannot be
        written to.
        """
        folder = Path(folder)
        claim(folder)
        write_config(folder, config)
        return cls(folder)

    def table(self, name: Literal["train.csv", "evaluation.csv"]) -> list[dict[str, float]]:
        """The rows of `train.csv` or `evaluation.csv`; none if there is no such file yet.

        **Raises:** `ValueError` if it is damaged.
        """
        return CSVLogger(self.folder).read("train" if name == "train.csv" else "evaluation")

    def forget_after(self, step: int) -> None:
        """Removes the rows of later updates from both tables, and later checkpoints.

        Those are damaged, or they would have been resumed from. There must be no other process
        that trains in this folder.
        """
        for later in self.steps():
            if later > step:
                self._remove(later)
        CSVLogger(self.folder).forget_after(step)

    @contextlib.contextmanager
    def checkpoints(self) -> Iterator[Any]:
        """What `save` writes checkpoints with.

        It removes what a killed run left unfinished, so there must be no other process that trains
        in this folder.
        """
        import orbax.checkpoint as ocp

        with writing(self._checkpoints):
            self._checkpoints.mkdir(exist_ok=True)
            for path in self._checkpoints.glob(".*.partial"):
                shutil.rmtree(path)
        with ocp.Checkpointer(ocp.StandardCheckpointHandler()) as writer:
            yield writer

    @property
    def _checkpoints(self) -> Path:
        return (self.folder / "checkpoints").absolute()

    def save(
        self, writer: Any, state: State, *, step: int | None = None, collected: Batch | None = None
    ) -> None:
        """Writes a checkpoint; it appears under its name only when it is whole.

        The last two are kept.

        **Arguments:** `writer`: from `checkpoints`; `state`: what to write; `step`: of the run, by
        default the state's number of updates; `collected`: the transitions of an online run.

        **Raises:** `OSError` if it cannot be written; the checkpoints before it stay.
        """
        import orbax.checkpoint as ocp

        step = int(state.step) if step is None else step
        parts = {_STATE: state} | ({} if collected is None else {_COLLECTED: collected})
        partial = self._checkpoints / f".{step}.partial"
        shutil.rmtree(partial, ignore_errors=True)  # what a Ctrl-C left
        try:
            with _quiet():
                for name, part in parts.items():
                    writer.save(partial / name, args=ocp.args.StandardSave(_by_path(part)))
            entries = {
                name: [path.stat().st_size, _checksum(path)]
                for name, path in _files(partial).items()
            }
            write_text(partial / _CHECKSUMS, json.dumps(entries, indent=0))
            partial.rename(self._checkpoints / str(step))
        except Exception as error:  # Orbax has no error of its own for a disk that is full.
            shutil.rmtree(partial, ignore_errors=True)
            raise OSError(f"Cannot write checkpoint {step} of {self.folder}: {error}") from error
        for old in self.steps()[:-_KEPT]:
            self._remove(old)

    def _remove(self, step: int) -> None:
        """Removes a checkpoint, which loses its name first: no half of one is ever listed."""
        partial = self._checkpoints / f".{step}.partial"
        with writing(partial):
            shutil.rmtree(partial, ignore_errors=True)
            (self._checkpoints / str(step)).rename(partial)
            shutil.rmtree(partial)

    def steps(self) -> list[int]:
        """The numbers of updates after which there is a checkpoint, in order."""
        paths = self._checkpoints.iterdir() if self._checkpoints.is_dir() else ()
        # A folder is renamed to its number once it is whole.
        names = [path.name for path in paths if path.is_dir()]
        return sorted(int(name) for name in names if re.fullmatch("0|[1-9][0-9]*", name))

    def damage(self, step: int) -> str | None:
        """What is wrong with the files of a checkpoint, compared with their checksums; or `None`.

        **Raises:** `OSError` if they cannot be read at all.
        """
        folder = self._checkpoints / str(step)
        if not (folder / _CHECKSUMS).is_file():
            return f"{_CHECKSUMS} is missing"
        try:
            written = dict(_read_json(folder / _CHECKSUMS))
        except (ValueError, TypeError) as error:
            return f"{_CHECKSUMS} is damaged: {error}"
        # Only what is in the folder is read, wherever the names of a forged file may point.
        present = _files(folder)
        for name, entry in written.items():
            if name not in present:
                return f"{name[:200]} is missing"
            # The size first: a file that has become absurdly large is not read.
            size = present[name].stat().st_size
            known = isinstance(entry, list) and entry[:1] == [size]
            if not known or entry[1:] != [_checksum(present[name])]:
                return f"{name} is not as it was written"
        return None

    def last_step(self) -> int:
        """The last checkpoint that is as it was written, with a warning of those after it.

        **Raises:** `FileNotFoundError` if there is none; `ValueError` if all are damaged.
        """
        if not self.steps():
            raise FileNotFoundError(f"{self.folder} holds no checkpoint yet.")
        damaged = []
        for step in reversed(self.steps()):
            damage = self.damage(step)
            if damage is None:
                if damaged:
                    warnings.warn(
                        f"{self.folder}: {'; '.join(damaged)}. Checkpoint {step} is used instead.",
                        stacklevel=3,
                    )
                return step
            damaged.append(f"checkpoint {step} is damaged ({damage})")
        raise ValueError(
            f"{self.folder} has no checkpoint that can be used: {'; '.join(damaged)}. Remove "
            f"{self.folder / 'checkpoints'} to start from the beginning with --resume."
        )

    def restore(self, state: PyTree, *, step: int | None = None, checked: bool = False) -> State:
        """The state of a checkpoint.

        **Arguments:** `state`: one of the same structure, with arrays or their shapes; `step`:
        which, by default the last one that is whole; a warning names those after it; `checked`:
        `step` is what `last_step` has just found whole, so its files are not read again to see.

        **Raises:** `FileNotFoundError` if there is no such checkpoint; `ValueError` that names
        what differs if it belongs to another configuration, is damaged or cannot be read.
        """
        return self._read(self._choose(step, checked), _STATE, state)

    def restore_collected(self, like: Batch, *, step: int, checked: bool = False) -> Batch:
        """The transitions that were collected online until a checkpoint.

        **Arguments:** `like`: of the same shapes; `step`: the checkpoint's; `checked`: as in
        `restore`.

        **Raises:** as `restore`.
        """
        return self._read(self._choose(step, checked), _COLLECTED, like)

    def _choose(self, step: int | None, checked: bool) -> int:
        """A checkpoint that is whole: this one, or by default the last."""
        if step is not None and checked:
            return step
        steps = self.steps()
        if step is None or not steps:
            return self.last_step()
        if step not in steps:
            raise FileNotFoundError(
                f"{self.folder} holds no checkpoint of update {step}; it has "
                f"{', '.join(map(str, steps))}."
            )
        if damage := self.damage(step):
            raise ValueError(
                f"Checkpoint {step} of {self.folder} is damaged: {damage}. There are those of "
                f"update {', '.join(map(str, steps))}."
            )
        return step

    def _read(self, step: int, part: str, like: PyTree) -> PyTree:
        import orbax.checkpoint as ocp
        from etils import epath  # Orbax's own paths

        device = jax.sharding.SingleDeviceSharding(jax.devices()[0])
        wanted = {
            name: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=device)
            for name, leaf in _by_path(like).items()
        }
        path = epath.Path(self._checkpoints) / str(step) / part
        handler = ocp.StandardCheckpointHandler()
        try:
            with _quiet():
                _check_same_arrays(wanted, dict(handler.metadata(path).tree))
                arrays = handler.restore(path, args=ocp.args.StandardRestore(wanted))
        except Exception as error:
            reason = re.split(r" \[tensorstore_spec| See full Tensor", str(error))[0][:1000]
            raise ValueError(
                f"Checkpoint {step} of {self.folder} cannot be used: {reason}"
            ) from error
        finally:
            handler.close()
        return jax.tree.unflatten(
            jax.tree.structure(like), [jnp.asarray(arrays[name]) for name in wanted]
        )

    def load(self, *, step: int | None = None) -> tuple[Agent, State]:
        """The trained agent and its state, for use in other code.

        **Arguments:** `step`: as in `restore`.

        **Raises:** as `restore`.
        """
        with contextlib.closing(make_environments(self.config.environment, 1)) as environments:
            (observation_size,) = environments.single_observation_space.shape
            (action_size,) = environments.single_action_space.shape
        agent = self.config.agent
        # Only the shapes: the numbers come from the checkpoint.
        init = lambda key: agent.init(observation_size, action_size, key=key)  # noqa: E731
        try:
            state = eqx.filter_eval_shape(init, jax.random.key(0))
        except (TypeError, ValueError, ArithmeticError) as error:
            path = self.folder / "config.json"
            raise ValueError(
                f"{path}: its networks cannot be built: {str(error)[:1000]}"
            ) from error
        return agent, self.restore(state, step=step)


def _read_json(path: Path) -> Any:
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


def _files(folder: Path) -> dict[str, Path]:
    """Every file below a folder, by its path from there."""
    paths = sorted(path for path in folder.rglob("*") if path.is_file())
    return {path.relative_to(folder).as_posix(): path for path in paths}


def _checksum(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


@contextlib.contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Makes a run's folder and keeps other processes from training in it.

    The lock ends with the block, or with this process however that ends. Where the system or the
    file system has no such locks, as on Windows, there is none.

    **Raises:** `BlockingIOError` that names the process that holds it; `OSError` if the folder
    cannot be written to.
    """
    with writing(folder):
        folder.mkdir(parents=True, exist_ok=True)
    path = folder / _LOCK
    with _open_locked(path) as file:
        try:
            with writing(path):
                file.truncate(0)
                file.write(f"process {os.getpid()} on {socket.gethostname()}")
                file.flush()
            yield
        finally:
            with contextlib.suppress(OSError):
                path.unlink()


def _open_locked(path: Path) -> TextIO:
    while True:
        with writing(path):
            file = path.open("a+", errors="replace")
        try:
            if fcntl is not None:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            with file:
                file.seek(0)
                holder = file.read(200) or "another process"
            raise BlockingIOError(
                f"{holder} trains in {path.parent}: wait for it, stop it, or choose another folder."
            ) from None
        except OSError:
            return file  # Some network file systems have no locks.
        # The one that held it may have removed the file since it was opened.
        with contextlib.suppress(FileNotFoundError):
            if os.path.samestat(os.fstat(file.fileno()), path.stat()):
                return file
        file.close()


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


def _check_same_arrays(wanted: dict[str, Any], saved: dict[str, Any]) -> None:
    problems = [f"it lacks {name}" for name in wanted if name not in saved]
    problems += [f"it has {name}, which this agent lacks" for name in saved if name not in wanted]
    problems += [
        f"{name} is {tuple(saved[name].shape)}, expected {tuple(array.shape)}"
        for name, array in wanted.items()
        if name in saved and tuple(saved[name].shape) != tuple(array.shape)
    ]
    if problems:
        more = f"; and {len(problems) - 4} more" if len(problems) > 4 else ""
        raise ValueError(f"it belongs to another configuration: {'; '.join(problems[:4])}{more}.")


def claim(folder: Path) -> None:
    """Makes a folder for a new run, or raises if there is anything in it but a lock."""
    with writing(folder):
        folder.mkdir(parents=True, exist_ok=True)
        names = [path.name for path in folder.iterdir()]
    if "config.json" in names:
        raise FileExistsError(
            f"{folder} already holds a run, which is never overwritten: continue it with --resume "
            "(resume=True), or choose another folder."
        )
    # A run that was killed in its first moment leaves a part of its configuration.
    if any(not name.startswith((".config.json.", _LOCK)) for name in names):
        raise FileExistsError(f"{folder} holds other files: choose an empty or a new folder.")


def write_config(folder: Path, config: TrainConfig) -> None:
    """Writes a run's `config.json`."""
    write_text(folder / "config.json", json.dumps(config.to_plain(), indent=2) + "\n")
