"""Where the metrics of a run go: tables in its folder, TensorBoard, Weights & Biases.

A row belongs to one of two tables and to one `step`, the counter of the run's checkpoints: updates
offline, environment steps online. What any row may have besides metrics:

| name                   | what                                                              |
|------------------------|-------------------------------------------------------------------|
| `seconds`              | since the start of the run, without the time that it was stopped  |
| `updates`              | so far; `step` itself in a run without an environment             |
| `env_steps`            | environment steps so far, in online runs                          |
| `updates_per_second`   | since the row before, in the training table                       |
| `env_steps_per_second` | the same for environment steps, in online runs                    |
"""

import abc
import contextlib
import csv
import importlib.util
import io
import os
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Literal, TypeAlias, get_args

from .._checks import nearest
from .._types import Number
from .files import write_text, writing

Table: TypeAlias = Literal["train", "evaluation"]
"""Which rows: of training, or of evaluations."""

LoggerName: TypeAlias = Literal["tensorboard", "wandb", "wandb-online"]
"""What a run can log to besides its tables."""

# The extra and the package of each.
_PACKAGES = {
    "tensorboard": ("tensorboard", "tensorboardX"),
    "wandb": ("wandb", "wandb"),
    "wandb-online": ("wandb", "wandb"),
}


class Logger(abc.ABC):
    """Takes the metrics of a run as they come; a context manager that closes itself."""

    @abc.abstractmethod
    def log(self, step: int, metrics: Mapping[str, Number], *, table: Table) -> None:
        """Takes a row.

        **Arguments:** `step`: the counter of the run's checkpoints; `metrics`: numbers by name;
        `table`: `"train"` or `"evaluation"`.
        """

    def close(self) -> None:  # noqa: B027
        """Writes what is not yet written; nothing can be logged afterwards."""

    def __enter__(self):  # beartype cannot check Self here
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()


class CSVLogger(Logger):
    """`train.csv` and `evaluation.csv` in a folder, each row on the disk once it is logged.

    A metric that a table does not have yet becomes a new column, NaN in the rows before; one that a
    row lacks is NaN in it.

    **Arguments:**

    - `folder`: where the tables are, or will be.
    - `resume_at`: the step that a run continues from: later rows are removed. By default all stay.

    **Raises:** `ValueError` if a table is damaged; `OSError` if it cannot be written.
    """

    def __init__(self, folder: str | os.PathLike[str], *, resume_at: int | None = None):
        self.folder = Path(folder)
        if resume_at is not None:
            self.forget_after(resume_at)

    def log(self, step: int, metrics: Mapping[str, Number], *, table: Table) -> None:
        row = {"step": step, **metrics}
        path = self._path(table)
        columns = self._columns(path)
        if new := [name for name in row if name not in columns]:
            self.read(table)  # raises if it is damaged
            columns += new
            old = [line.removesuffix("\n") + ",nan" * len(new) + "\n" for line in _lines(path)[1:]]
            write_text(path, _line(columns) + "".join(old))
        with writing(path), path.open("a", encoding="utf-8") as file:
            file.write(_line([row.get(name, "nan") for name in columns]))

    def read(self, table: Table) -> list[dict[str, float]]:
        """The rows of a table; none if there is no such file yet.

        **Raises:** `ValueError` if it is damaged.
        """
        path = self._path(table)
        try:
            rows = list(csv.DictReader(_lines(path), strict=True))
            if any("step" not in row for row in rows[:1]):
                raise ValueError("it has no column step")
            return [{key: float(value) for key, value in row.items()} for row in rows]
        except (ValueError, TypeError, csv.Error) as error:
            raise ValueError(f"{path} is damaged: {str(error)[:1000]}.") from error

    def forget_after(self, step: int) -> None:
        """Removes the rows of later steps from both tables.

        **Raises:** `ValueError` if one is damaged; `OSError` if it cannot be written.
        """
        for table in get_args(Table):
            path = self._path(table)
            kept = [row["step"] <= step for row in self.read(table)]
            header, *lines = _lines(path) or [""]
            if path.exists():
                rows = [line for line, keep in zip(lines, kept, strict=True) if keep]
                write_text(path, header + "".join(rows))

    def _path(self, table: Table) -> Path:
        return self.folder / f"{table}.csv"

    def _columns(self, path: Path) -> list[str]:
        """Those of a table, from which a row without its end is cut off first."""
        if not path.is_file():
            return []
        with path.open("rb") as file:
            header = file.readline().decode(errors="replace")  # damage is for `read` to tell
            whole = not header or (file.seek(-1, os.SEEK_END) >= 0 and file.read() == b"\n")
        if not whole:
            write_text(path, "".join(_lines(path)))
        return next(csv.reader([header]), []) if header.endswith("\n") else []


def _line(values: Sequence[Any]) -> str:
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerow(values)
    return text.getvalue()


def _lines(path: Path) -> list[str]:
    """A table's lines, without one that was being written when the run was killed."""
    lines = path.read_text(encoding="utf-8").splitlines(keepends=True) if path.is_file() else []
    return [line for line in lines if line.endswith("\n")]


class TensorBoardLogger(Logger):
    """Event files for TensorBoard in `tensorboard/` of a folder, with tags such as `train/loss`.

    Needs the extra `tensorboard`, which is tensorboardX alone: to look at them, install TensorBoard
    itself and run `tensorboard --logdir FOLDER`.

    **Arguments:**

    - `folder`: the run's.
    - `resume_at`: the step that a run continues from: TensorBoard leaves out what an earlier
        process logged of later steps. By default it shows all.

    **Raises:** `RuntimeError` if the extra is not installed; `OSError` if it cannot be written.
    """

    def __init__(self, folder: str | os.PathLike[str], *, resume_at: int | None = None):
        try:
            from tensorboardX.event_file_writer import EventsWriter
            from tensorboardX.proto.event_pb2 import Event, SessionLog  # pyright: ignore
            from tensorboardX.proto.summary_pb2 import Summary  # pyright: ignore
        except ImportError as error:
            raise _missing("tensorboard", error) from error
        self._event, self._summary = Event, Summary
        self.folder = Path(folder) / "tensorboard"
        with writing(self.folder):
            self.folder.mkdir(parents=True, exist_ok=True)
            # Not SummaryWriter: its thread loses what it has not written yet in a run that is
            # killed, and a full disk makes it wait for ever. The file's name counts seconds only.
            self._file = EventsWriter(str(self.folder / "events"), f".{time.time_ns()}")
        if resume_at is not None:
            again = SessionLog(status=SessionLog.START)
            self._write(Event(wall_time=time.time(), step=resume_at + 1, session_log=again))

    def log(self, step: int, metrics: Mapping[str, Number], *, table: Table) -> None:
        values = [
            self._summary.Value(tag=f"{table}/{name}", simple_value=float(value))
            for name, value in metrics.items()
        ]
        summary = self._summary(value=values)
        self._write(self._event(wall_time=time.time(), step=step, summary=summary))

    def _write(self, event: Any) -> None:
        with writing(self.folder):
            self._file.write_event(event)
            self._file.flush()

    def close(self) -> None:
        with writing(self.folder):
            self._file.close()


class WandbLogger(Logger):
    """A run of Weights & Biases, with names such as `train/loss` against `step`.

    Needs the extra `wandb`. Offline, as it is by default, it takes no account and sends nothing,
    crash reports included; the run lies in `wandb/` of the folder, and `wandb sync` uploads it. A
    run that is resumed keeps its id, and logs again what came after its last checkpoint.

    **Arguments:**

    - `folder`: the run's; its name is the run's at Weights & Biases.
    - `mode`: `"offline"` or `"online"`, whatever `WANDB_MODE` says.
    - `project`: to which the run belongs.
    - `config`: what to show as its configuration, such as `TrainConfig.to_plain()`.

    **Raises:** `RuntimeError` if the extra is not installed, or the run cannot be started.
    """

    def __init__(
        self,
        folder: str | os.PathLike[str],
        *,
        mode: Literal["offline", "online"] = "offline",
        project: str = "floq_eqx",
        config: Mapping[str, Any] | None = None,
    ):
        if mode == "offline":
            # Read when it is imported and when its process starts; it would send these offline too.
            os.environ.setdefault("WANDB_ERROR_REPORTING", "false")
        try:
            import wandb  # pyright: ignore
        except ImportError as error:
            raise _missing("wandb", error) from error
        folder = Path(folder).absolute()
        # Its folders are called [offline-]run-<time>-<id>.
        ids = [path.name.rpartition("-")[2] for path in folder.glob("wandb/*run-*-*")]
        try:
            self._run = wandb.init(
                project=project,
                name=folder.name,
                dir=folder,
                id=ids[0] if ids else None,
                resume="allow" if mode == "online" else None,
                mode=mode,
                config=dict(config or {}),
                reinit="create_new",
                settings=wandb.Settings(
                    silent=True,
                    console="off",
                    disable_git=True,
                    save_code=False,
                    x_disable_stats=True,
                    x_disable_machine_info=True,
                ),
            )
        except wandb.Error as error:
            raise RuntimeError(f"Weights & Biases cannot start a run: {error}") from error
        # Its own counter only rises, but a resumed run goes back to its last checkpoint.
        self._run.define_metric("*", step_metric="step")

    def log(self, step: int, metrics: Mapping[str, Number], *, table: Table) -> None:
        self._run.log({"step": step} | {f"{table}/{name}": metrics[name] for name in metrics})

    def close(self) -> None:
        self._run.finish()


class MultiLogger(Logger):
    """Several loggers as one, which it owns: they are closed with it, last first.

    **Arguments:** `*loggers`: in the order in which each takes a row.
    """

    def __init__(self, *loggers: Logger):
        self.loggers = loggers

    def log(self, step: int, metrics: Mapping[str, Number], *, table: Table) -> None:
        for logger in self.loggers:
            logger.log(step, metrics, table=table)

    def close(self) -> None:
        with contextlib.ExitStack() as stack:  # Closes the others even if one raises.
            for logger in self.loggers:
                stack.callback(logger.close)


def check_loggers(names: Sequence[str]) -> None:
    """Before a run begins: that these loggers exist, go together, and have their packages.

    **Raises:** `ValueError` or `RuntimeError` otherwise.
    """
    for name in names:
        if name not in get_args(LoggerName):
            raise nearest("logger", name, get_args(LoggerName))
    if {"wandb", "wandb-online"} <= set(names):
        raise ValueError("A run is logged to Weights & Biases offline or online, not both.")
    for name in names:
        extra, package = _PACKAGES[name]
        if importlib.util.find_spec(package) is None:
            raise _missing(extra, ModuleNotFoundError(f"No module named {package!r}"))


def open_loggers(
    folder: str | os.PathLike[str],
    names: Sequence[str] = (),
    *,
    resume_at: int | None = None,
    config: Mapping[str, Any] | None = None,
) -> MultiLogger:
    """The tables of a run, and what else it logs to.

    **Arguments:**

    - `folder`: the run's.
    - `names`: any of `"tensorboard"`, `"wandb"` (offline: nothing is sent) and `"wandb-online"`.
    - `resume_at`: the step that a run continues from: later rows are removed, or left out.
    - `config`: for loggers that show one.

    **Raises:** as the loggers; `ValueError` for an unknown name.
    """
    check_loggers(names)
    with contextlib.ExitStack() as stack:  # Closes those that are open if the next fails.
        loggers: list[Logger] = [CSVLogger(folder, resume_at=resume_at)]
        for name in dict.fromkeys(names):
            if name == "tensorboard":
                logger = TensorBoardLogger(folder, resume_at=resume_at)
            else:
                mode = "online" if name == "wandb-online" else "offline"
                logger = WandbLogger(folder, mode=mode, config=config)
            loggers.append(stack.enter_context(logger))
        stack.pop_all()
    return MultiLogger(*loggers)


def loggers_of(folder: str | os.PathLike[str]) -> tuple[LoggerName, ...]:
    """What the run in a folder has been logged to besides its tables."""
    folder = Path(folder)
    found: list[LoggerName] = []
    if (folder / "tensorboard").is_dir():
        found.append("tensorboard")
    runs = {path.name.startswith("offline-") for path in folder.glob("wandb/*run-*-*")}
    if runs:
        found.append("wandb" if True in runs else "wandb-online")
    return tuple(found)


def _missing(extra: str, error: ImportError) -> RuntimeError:
    return RuntimeError(
        f"Logging to {extra} needs packages that are not installed: pip install "
        f"'floq_eqx[{extra}]'. It says: {error}"
    )
