"""A training run as a folder that can be interrupted, resumed, evaluated and plotted.

config.json       what was asked for, and what the data and the environment said
train.csv         means of every metric, a row a chunk of updates
evaluation.csv    success, return and length, a row an evaluation
checkpoints/<n>/  the state after n steps, with the checksums of its files

A step is an update offline and an environment step online, which go on counting from the last
update. Online checkpoints hold what was collected too.
"""

import contextlib
import dataclasses
import json
import os
import re
import shutil
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal, TypeAlias

import equinox as eqx
import jax
from jaxtyping import PyTree

from ..agents.agent import Agent, State
from ..data import Batch, Collected, Replay
from . import checkpoints
from .config import TrainConfig
from .files import read_json, write_text, writing
from .lock import LOCK
from .loggers import CSVLogger

_STATE, _COLLECTED = "default", "collected"
_SAFETY = 2

Which: TypeAlias = int | Literal["last", "best"]
"""A checkpoint: by its number, the last one that is whole, or the one that was evaluated best."""


@dataclasses.dataclass(frozen=True)
class Facts:
    """What a run found when it began, so that it needs neither data nor environment to be read.

    **Attributes:** the sizes of an observation and an action, and the fingerprint of its data
    ([`floq_eqx.data.fingerprint`][]), `None` without data.
    """

    observation_size: int
    action_size: int
    data: str | None = None


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
            plain = dict(read_json(path))
            self.facts = _facts(plain.pop("facts", None))
            self.config = TrainConfig.from_plain(plain)
        except (ValueError, TypeError, AttributeError, ArithmeticError) as error:
            raise ValueError(f"{path} is not a run's configuration: {str(error)[:1000]}") from error

    @classmethod
    def create(cls, folder: str | os.PathLike[str], config: TrainConfig, facts: Facts) -> "Run":
        """A new run in a folder that is empty or not there yet.

        **Raises:** `FileExistsError` if the folder holds anything; `OSError` if it cannot be
        written to.
        """
        folder = Path(folder)
        claim(folder)
        write_config(folder, config, facts)
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

    # ------------------------------------------------------------------------------- checkpoints

    @contextlib.contextmanager
    def checkpoints(self) -> Iterator[Any]:
        """What `save` writes checkpoints with.

        It removes what a killed run left unfinished, so there must be no other process that trains
        in this folder.
        """
        with writing(self._checkpoints):
            self._checkpoints.mkdir(exist_ok=True)
            for path in self._checkpoints.glob(".*.partial"):
                shutil.rmtree(path)
        with checkpoints.writer() as writer:
            yield writer

    @property
    def _checkpoints(self) -> Path:
        return (self.folder / "checkpoints").absolute()

    def save(
        self, writer: Any, state: State, *, step: int | None = None, replay: Replay | None = None
    ) -> None:
        """Writes a checkpoint; it appears under its name only when it is whole.

        **Arguments:** `writer`: from `checkpoints`; `state`: what to write; `step`: of the run, by
        default the state's number of updates; `replay`: the buffer of an online run, of which what
        it collected is written.

        **Raises:** `OSError` if it cannot be written; the checkpoints before it stay.
        """
        step = int(state.step) if step is None else step
        parts: dict[str, PyTree] = {_STATE: state}
        collected = None if replay is None else replay.collected()
        if collected is not None and len(collected.data):
            parts[_COLLECTED] = collected
        try:
            checkpoints.write_checkpoint(writer, self._checkpoints / str(step), parts)
        except Exception as error:  # Orbax has no error of its own for a disk that is full.
            raise OSError(f"Cannot write checkpoint {step} of {self.folder}: {error}") from error

    def prune(self) -> None:
        """Removes the checkpoints that the configuration's `keep` and `num_kept` do not ask for.

        The last two always stay: the second should the first be damaged.
        """
        config, steps = self.config, self.steps()
        if config.keep == "all":
            return
        kept = set(steps[-_SAFETY:])
        if config.keep == "last":
            kept |= set(steps[-config.num_kept :])
        else:
            kept |= set(self._best_first()[: config.num_kept])
        for step in steps:
            if step not in kept:
                self._remove(step)

    def _best_first(self) -> list[int]:
        """The checkpoints that were evaluated, the best first and of equals the later.

        By success, or by the return where the environment does not tell success.
        """
        rows = {int(row["step"]): row for row in self.table("evaluation.csv")}
        told = any(row["success"] == row["success"] for row in rows.values())
        metric = "success" if told else "returns"
        known = [step for step in self.steps() if step in rows]
        return sorted(known, key=lambda step: (rows[step][metric], step), reverse=True)

    def _remove(self, step: int) -> None:
        """Removes a checkpoint, which loses its name first: no half of one is ever listed."""
        path = self._checkpoints / str(step)
        partial = checkpoints.unfinished_path(path)
        with writing(partial):
            shutil.rmtree(partial, ignore_errors=True)
            path.rename(partial)
            shutil.rmtree(partial)

    def steps(self) -> list[int]:
        """The numbers of steps after which there is a checkpoint, in order."""
        paths = self._checkpoints.iterdir() if self._checkpoints.is_dir() else ()
        # A folder is renamed to its number once it is whole.
        names = [path.name for path in paths if path.is_dir()]
        return sorted(int(name) for name in names if re.fullmatch("0|[1-9][0-9]*", name))

    def damage(self, step: int) -> str | None:
        """What is wrong with the files of a checkpoint, compared with their checksums; or `None`.

        **Raises:** `OSError` if they cannot be read at all.
        """
        return checkpoints.damage(self._checkpoints / str(step))

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
            f"{self.folder} has no checkpoint that can be used: {'; '.join(damaged)}. Restore its "
            "files from a copy, or train again in another folder."
        )

    def restore(self, state: PyTree, *, step: Which = "last", checked: bool = False) -> State:
        """The state of a checkpoint.

        **Arguments:** `state`: one of the same structure, with arrays or their shapes; `step`:
        which, by default the last one that is whole; a warning names those after it; `checked`:
        `step` is what `last_step` has just found whole, so its files are not read again to see.

        **Raises:** `FileNotFoundError` if there is no such checkpoint; `ValueError` that names
        what differs if it belongs to another configuration, is damaged or cannot be read.
        """
        step = self._choose(step, checked)
        changed = checkpoints.changed_versions(self._checkpoints / str(step))
        if changed:
            warnings.warn(
                f"Checkpoint {step} of {self.folder} was written by other versions: {changed}.",
                stacklevel=2,
            )
        return self._read(step, _STATE, state)

    def has_collected(self, step: int) -> bool:
        """Whether a checkpoint holds transitions that were collected online."""
        return (self._checkpoints / str(step) / _COLLECTED).is_dir()

    def restore_replay(
        self, replay: Replay, *, step: Which = "last", checked: bool = False
    ) -> Replay:
        """The buffer of an online run's checkpoint.

        **Arguments:** `replay`: the buffer as it was before anything was collected; `step`,
        `checked`: as in `restore`.

        **Raises:** as `restore`.
        """
        return replay.with_collected(self._restore_collected(replay.data, step, checked))

    def restore_collected(
        self, like: Batch, *, step: Which = "last", checked: bool = False
    ) -> Collected:
        """What a checkpoint's buffer had collected, the oldest transition first.

        **Arguments:** `like`: transitions of the same sizes, any number; `step`, `checked`: as in
        `restore`.

        **Raises:** as `restore`.
        """
        return self._restore_collected(like, step, checked).in_order()

    def _restore_collected(self, like: Batch, step: Which, checked: bool) -> Collected:
        def any_number(x: Any) -> Any:
            return jax.ShapeDtypeStruct((-1, *x.shape[1:]), x.dtype) if x.ndim else x

        shapes = jax.tree.map(any_number, Collected.none(like))
        step = self._choose(step, checked)
        try:
            return self._read(step, _COLLECTED, shapes)
        except ValueError as error:
            # Before there were windows it was not kept which transition follows which.
            with contextlib.suppress(ValueError):
                return self._read(step, _COLLECTED, dataclasses.replace(shapes, ahead=None))
            raise error

    def choose(self, which: Which) -> int:
        """The number of a checkpoint that is whole.

        **Raises:** `FileNotFoundError` if there is no such checkpoint, or for `"best"` none that
        was evaluated; `ValueError` if it is damaged.
        """
        steps = self.steps()
        if which == "last" or not steps:
            return self.last_step()
        if which == "best":
            best = self._best_first()
            if not best:
                raise FileNotFoundError(
                    f"{self.folder} holds no checkpoint that was evaluated; it has those of "
                    f"{', '.join(map(str, steps))}. --keep best keeps the best of those to come."
                )
            which = best[0]
        if which not in steps:
            raise FileNotFoundError(
                f"{self.folder} holds no checkpoint of step {which}; it has "
                f"{', '.join(map(str, steps))}."
            )
        if damage := self.damage(which):
            raise ValueError(
                f"Checkpoint {which} of {self.folder} is damaged: {damage}. There are those of "
                f"step {', '.join(map(str, steps))}."
            )
        return which

    def _choose(self, which: Which, checked: bool) -> int:
        return which if checked and isinstance(which, int) else self.choose(which)

    def _read(self, step: int, part: str, like: PyTree) -> PyTree:
        try:
            return checkpoints.read_checkpoint(self._checkpoints / str(step), part, like)
        except ValueError as error:
            raise ValueError(
                f"Checkpoint {step} of {self.folder} cannot be used: {error}"
            ) from error

    def load(self, *, step: Which = "last") -> tuple[Agent, State]:
        """The trained agent and its state, for use in other code; no environment is made.

        **Arguments:** `step`: as in `restore`.

        **Raises:** as `restore`.
        """
        agent, facts = self.config.agent, self.facts
        # Only the shapes: the numbers come from the checkpoint.
        init = lambda key: agent.init(facts.observation_size, facts.action_size, key=key)  # noqa: E731
        try:
            state = eqx.filter_eval_shape(init, jax.random.key(0))
        except (TypeError, ValueError, ArithmeticError) as error:
            path = self.folder / "config.json"
            raise ValueError(
                f"{path}: its networks cannot be built: {str(error)[:1000]}"
            ) from error
        return agent, self.restore(state, step=step)


def _facts(plain: Any) -> Facts:
    if plain is None:
        raise ValueError(
            "it does not say the sizes of observations and actions, so it was written by a "
            "version before 0.1.0; load it with that one"
        )
    known = {f.name for f in dataclasses.fields(Facts)}
    if not isinstance(plain, dict) or set(plain) != known:
        raise ValueError(f"facts must hold {', '.join(sorted(known))}, got {plain!r}")
    for name in ("observation_size", "action_size"):
        if not isinstance(plain[name], int) or plain[name] < 1:
            raise ValueError(f"{name} must be a whole number of at least 1, got {plain[name]!r}")
    if plain["data"] is not None and not isinstance(plain["data"], str):
        raise ValueError(f"facts: data must be a text, got {plain['data']!r}")
    return Facts(**plain)


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
    if any(not name.startswith((".config.json.", LOCK)) for name in names):
        raise FileExistsError(f"{folder} holds other files: choose an empty or a new folder.")


def write_config(folder: Path, config: TrainConfig, facts: Facts) -> None:
    """Writes a run's `config.json`."""
    plain = config.to_plain() | {"facts": dataclasses.asdict(facts)}
    write_text(folder / "config.json", json.dumps(plain, indent=2) + "\n")
