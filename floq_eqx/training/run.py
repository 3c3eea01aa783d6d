"""A training run as a folder that can be interrupted, resumed, evaluated and plotted.

config.json       what was asked for
train.csv         means of every metric, a row a chunk of updates
evaluation.csv    success, return and length, a row an evaluation
checkpoints/<n>/  the state after n updates, with the checksums of its files
"""

import contextlib
import dataclasses
import functools
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
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, Literal, TextIO, TypeAlias

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import PyTree
from tqdm import tqdm

from ..agents.base import Agent, State, check_choice, check_sizes
from ..agents.floq import Floq
from ..agents.registry import AGENTS, from_plain, nearest, to_plain
from ..data import Batch, collect_dataset, load_dataset, make_environment, parse_name
from ..evaluation import Evaluation, evaluate, make_environments
from .files import write_text, writing
from .loggers import CSVLogger, LoggerName, check_loggers, open_loggers
from .loop import Progress, fit

SuccessTiming: TypeAlias = Literal["pre", "post"]

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None

_OF_THE_DATA = ("action_size", "reward_min", "reward_max")
_CHECKSUMS = "checksums.json"
_KEPT = 2
_LARGEST_JSON = 1 << 20
_LOCK = ".lock"


@dataclasses.dataclass(frozen=True)
class TrainConfig:
    """What a run is made of.

    **Arguments:**

    - `environment`: a single-task OGBench name.
    - `agent`: the algorithm with its hyperparameters.
    - `seed`: of the parameters, the batches, the noise and the evaluation.
    - `num_updates`: how long to train.
    - `batch_size`: transitions in an update.
    - `log_every`: updates between rows of `train.csv`; they run without return to the host.
    - `evaluate_every`: updates between evaluations, a multiple of `log_every`; the last update is
        always followed by one.
    - `evaluation_episodes`: episodes in an evaluation.
    - `checkpoint_every`: updates between checkpoints, a multiple of `log_every`.
    - `data`: the dataset's `.npz` file, or the folder to look for it; `None` for OGBench's own
        folder.
    - `collect_episodes`: unless `data` says where they are, collect this many episodes with
        OGBench's scripted expert, and keep them for later runs; `None` for no collecting.
    - `success_timing`: evaluate success before a step (`pre`) or after it (`post`, as published);
        `None` for OGBench's default.
    """

    environment: str = "cube-single-play-singletask-task1-v0"
    agent: Agent = dataclasses.field(default_factory=Floq)
    seed: int = 0
    num_updates: int = 1_000_000
    batch_size: int = 256
    log_every: int = 1000
    evaluate_every: int = 100_000
    evaluation_episodes: int = 50
    checkpoint_every: int = 10_000
    data: str | None = None
    collect_episodes: int | None = None
    success_timing: SuccessTiming | None = None

    def __post_init__(self):
        sizes = (
            "num_updates",
            "batch_size",
            "log_every",
            "evaluate_every",
            "evaluation_episodes",
            "checkpoint_every",
        )
        check_sizes(**{name: getattr(self, name) for name in sizes})
        for name in ("evaluate_every", "checkpoint_every"):
            if getattr(self, name) % self.log_every:
                raise ValueError(
                    f"{name} must be a multiple of log_every = {self.log_every}, got "
                    f"{getattr(self, name)}."
                )
        if self.collect_episodes is not None:
            check_sizes(collect_episodes=self.collect_episodes)
        if not 0 <= self.seed < 2**31:
            raise ValueError(f"seed must be in [0, 2**31), got {self.seed}.")
        if self.success_timing is not None:
            check_choice("success_timing", self.success_timing, SuccessTiming)
        if parse_name(self.environment).task is None:
            raise ValueError(
                f"{self.environment} has no reward: name one of its tasks, such as "
                f"{self.environment.removesuffix('-v0')}-singletask-task1-v0."
            )

    @property
    def agent_name(self) -> str:
        """The agent's name in `floq_eqx.agents.AGENTS`."""
        return next(name for name, kind in AGENTS.items() if type(self.agent) is kind)

    def to_plain(self) -> dict[str, Any]:
        """The configuration as plain data, fit for JSON."""
        fields = {f.name: getattr(self, f.name) for f in dataclasses.fields(self)}
        return fields | {"agent": self.agent_name, "hyperparameters": to_plain(self.agent)}

    @classmethod
    def from_plain(cls, plain: dict[str, Any]) -> "TrainConfig":
        """The inverse of `to_plain`.

        **Raises:** `ValueError` for a name or value that is not known.
        """
        values = dict(plain)
        name = values.pop("agent", None)
        hyperparameters = values.pop("hyperparameters", {})
        if not isinstance(name, str) or name not in AGENTS:
            raise nearest("agent", name, AGENTS)
        default = cls(agent=from_plain(name, {})).to_plain()
        _check_kind("hyperparameters", hyperparameters, default.pop("hyperparameters"))
        for key, value in values.items():
            if key not in default:
                raise nearest("setting", key, default)
            _check_kind(key, value, "" if key == "data" and value is not None else default[key])
        return cls(agent=from_plain(name, hyperparameters), **values)


def _check_kind(name: str, value: Any, default: Any) -> None:
    """Raises a `ValueError` unless a value from JSON is of the same kind as its default."""
    kinds = {bool: "true or false", int: "a whole number", float: "a number", str: "a text"}
    kinds |= {list: "a list", dict: "a mapping of names to values"}
    kind = type(value)
    if default is not None and kind is not type(default) and (kind, type(default)) != (int, float):
        raise ValueError(f"{name} must be {kinds[type(default)]}, got {value!r}.")
    if isinstance(default, dict):
        for key in value.keys() & default.keys():
            _check_kind(key, value[key], default[key])
    if isinstance(default, list) and default:
        for entry in value:
            _check_kind(f"every entry of {name}", entry, default[0])


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
        _claim(folder)
        _write_config(folder, config)
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

    def save(self, writer: Any, state: State) -> None:
        """Writes a checkpoint; it appears under its name only when it is whole.

        The last two are kept.

        **Arguments:** `writer`: from `checkpoints`; `state`: what to write.

        **Raises:** `OSError` if it cannot be written; the checkpoints before it stay.
        """
        import orbax.checkpoint as ocp

        step = int(state.step)
        partial = self._checkpoints / f".{step}.partial"
        shutil.rmtree(partial, ignore_errors=True)  # what a Ctrl-C left
        try:
            with _quiet():
                writer.save(partial / "default", args=ocp.args.StandardSave(_by_path(state)))
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

    def _last_whole(self) -> int:
        """The last checkpoint that is as it was written, with a warning of those after it."""
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

    def restore(self, state: PyTree, *, step: int | None = None) -> State:
        """The state of a checkpoint.

        **Arguments:** `state`: one of the same structure, with arrays or their shapes; `step`:
        which, by default the last one that is whole; a warning names those after it.

        **Raises:** `FileNotFoundError` if there is no such checkpoint; `ValueError` that names
        what differs if it belongs to another configuration, is damaged or cannot be read.
        """
        import orbax.checkpoint as ocp
        from etils import epath  # Orbax's own paths

        steps = self.steps()
        if not steps:
            raise FileNotFoundError(f"{self.folder} holds no checkpoint yet.")
        if step is None:
            step = self._last_whole()
        elif step not in steps:
            raise FileNotFoundError(
                f"{self.folder} holds no checkpoint of update {step}; it has "
                f"{', '.join(map(str, steps))}."
            )
        elif damage := self.damage(step):
            raise ValueError(
                f"Checkpoint {step} of {self.folder} is damaged: {damage}. There are those of "
                f"update {', '.join(map(str, steps))}."
            )
        device = jax.sharding.SingleDeviceSharding(jax.devices()[0])
        wanted = {
            name: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=device)
            for name, leaf in _by_path(state).items()
        }
        path = epath.Path(self._checkpoints) / str(step) / "default"
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
            jax.tree.structure(state), [jnp.asarray(arrays[name]) for name in wanted]
        )

    def load(self, *, step: int | None = None) -> tuple[Agent, State]:
        """The trained agent and its state, for use in other code.

        **Arguments:** `step`: as in `restore`.

        **Raises:** as `restore`.
        """
        with contextlib.closing(make_environment(self.config.environment)) as environment:
            (observation_size,) = environment.observation_space.shape
            (action_size,) = environment.action_space.shape
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


def _claim(folder: Path) -> None:
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


def _write_config(folder: Path, config: TrainConfig) -> None:
    write_text(folder / "config.json", json.dumps(config.to_plain(), indent=2) + "\n")


def find_data(config: TrainConfig, *, progress: bool = True) -> Batch:
    """The transitions that a run trains on, collected first if that is what it asks for."""
    load = functools.partial(
        load_dataset, config.environment, with_next_action=config.agent.uses_next_action
    )
    if config.data is not None and Path(config.data).expanduser().is_dir():
        return load(directory=config.data)
    if config.data is not None or config.collect_episodes is None:
        return load(path=config.data)
    dataset = parse_name(config.environment).dataset
    cache = Path(os.environ.get("XDG_CACHE_HOME", "~/.cache")).expanduser() / "floq_eqx"
    # Not among OGBench's own files: a shorter dataset must not pass for the published one.
    path = cache / f"{dataset}-{config.collect_episodes}-episodes" / f"{dataset}.npz"
    if not path.exists():
        collect_dataset(
            dataset,
            path,
            num_episodes=config.collect_episodes,
            seed=0,
            overwrite=True,  # the same files, which another run may have collected by now
            progress=progress,
        )
    return load(path=path)


def train(
    config: TrainConfig,
    folder: str | os.PathLike[str],
    *,
    resume: bool = False,
    progress: bool = True,
    report: Callable[[str], None] = lambda line: None,
    loggers: Sequence[LoggerName] = (),
) -> Run:
    """Trains, evaluates and writes it all to a folder.

    **Arguments:**

    - `config`: what to train.
    - `folder`: where; it must be empty unless the run is resumed.
    - `resume`: continue from the last checkpoint, to end bitwise where a run without interruption
        ends. The configuration must be the run's own, but `num_updates` may be larger. An empty
        folder starts a run.
    - `progress`: show progress bars where standard error is a terminal.
    - `report`: takes lines of text: each evaluation, and where a resumed run continues.
    - `loggers`: where metrics go besides the tables: `tensorboard`, `wandb` (offline, in the
        folder) or `wandb-online`; their packages are extras.

    **Returns:** the run.

    **Raises:** as `Run`; `ValueError` if a resumed run has another configuration or other data, or
    no checkpoint of it can be used; `BlockingIOError` if another process trains in the folder;
    `OSError` if it cannot be written to; `DivergedError`, which leaves the last finite checkpoint
    in place. Ctrl-C saves a checkpoint before it raises.
    """
    _check_networks(config.agent)
    check_loggers(loggers)
    with locked(Path(folder)):
        return _train(config, Path(folder), resume, progress, report, loggers)


def _train(
    config: TrainConfig,
    folder: Path,
    resume: bool,
    progress: bool,
    report: Callable[[str], None],
    loggers: Sequence[LoggerName],
) -> Run:
    resumed = resume and (folder / "config.json").exists()
    if resumed:
        _check_same_config(Run(folder).config, config, ignore=("num_updates", *_OF_THE_DATA))
    else:
        _claim(folder)

    data = find_data(config, progress=progress)
    agent = config.agent.for_data(data)
    config = dataclasses.replace(config, agent=agent)
    init_key, train_key = jax.random.split(jax.random.key(config.seed))
    state = agent.init(data.observation.shape[1], data.action.shape[1], key=init_key)
    if resumed:
        run = Run(folder)
        _check_same_config(run.config, config, ignore=("num_updates",))
        if run.steps():
            state = run.restore(state)
        _check_more_to_do(int(state.step), config.num_updates, report)
        if run.config.num_updates != config.num_updates:
            _write_config(folder, config)
            run = Run(folder)
    else:
        run = Run.create(folder, config)
    run.forget_after(int(state.step))

    rows = run.table("train.csv")
    start = time.perf_counter() - (rows[-1]["seconds"] if rows else 0.0)
    environments = None
    latest = None

    def seconds() -> float:
        return time.perf_counter() - start

    def log(now: Progress) -> None:
        row = {"seconds": seconds(), "updates_per_second": now.updates_per_second}
        logger.log(now.step, row | dict(sorted(now.metrics.items())), table="train")

    def assess(now: Progress) -> None:
        nonlocal environments
        if now.step % config.evaluate_every and now.step != config.num_updates:
            return
        if environments is None:
            environments = make_environments(
                config.environment,
                min(10, config.evaluation_episodes),
                success_timing=config.success_timing,
            )
        result = evaluate(
            agent,
            now.state,
            environments,
            num_episodes=config.evaluation_episodes,
            seed=config.seed,
        )
        logger.log(now.step, {"seconds": seconds()} | result.summary(), table="evaluation")
        with tqdm.external_write_mode():
            report(f"update {now.step}: {describe(result)}")

    with contextlib.ExitStack() as stack:
        resume_at = int(state.step) if resumed else None
        logger = stack.enter_context(
            open_loggers(folder, loggers, resume_at=resume_at, config=config.to_plain())
        )
        writer = stack.enter_context(run.checkpoints())
        bar = stack.enter_context(
            tqdm(
                total=config.num_updates,
                initial=int(state.step),
                unit="update",
                disable=None if progress else True,
            )
        )

        def save(now: Progress) -> None:
            nonlocal latest
            latest = now
            if now.step % config.checkpoint_every == 0 or now.step == config.num_updates:
                run.save(writer, now.state)
            bar.update(now.step - bar.n)

        try:
            fit(
                agent,
                state,
                data,
                num_updates=config.num_updates,
                batch_size=config.batch_size,
                key=train_key,
                chunk=config.log_every,
                callbacks=(log, assess, save),
            )
        except KeyboardInterrupt:
            if latest is not None and latest.step not in run.steps():
                run.save(writer, latest.state)
            raise
        finally:
            if environments is not None:
                environments.close()
    return run


def _check_networks(agent: Agent) -> None:
    """Raises for networks that cannot be built, before minutes go into collecting."""
    size = agent.action_size or 1
    eqx.filter_eval_shape(lambda key: agent.init(1, size, key=key), jax.random.key(0))


def describe(result: Evaluation) -> str:
    """One line: success, return and length, each with its standard deviation over episodes."""
    s = result.summary()
    return (
        f"success {s['success']:.2f}, return {s['returns']:.1f} ± {s['returns_std']:.1f}, "
        f"length {s['lengths']:.0f} ± {s['lengths_std']:.0f} ({len(result.success)} episodes)"
    )


def _check_same_config(old: TrainConfig, new: TrainConfig, *, ignore: Iterable[str]) -> None:
    """Raises a `ValueError` that names the settings of a resumed run that have changed."""

    def flat(config: TrainConfig) -> dict[str, Any]:
        plain = config.to_plain()
        plain |= plain.pop("hyperparameters")
        return {name: value for name, value in plain.items() if name not in ignore}

    before, after = flat(old), flat(new)
    changed = [
        f"{name}: {before.get(name)!r} before, {after.get(name)!r} now"
        for name in before | after
        if before.get(name) != after.get(name)
    ]
    if changed:
        raise ValueError(
            "The run in this folder has another configuration; resume with its own, or start "
            "in another folder. Different: " + "; ".join(changed) + "."
        )


def _check_more_to_do(step: int, num_updates: int, report: Callable[[str], None]) -> None:
    if step > num_updates:
        raise ValueError(
            f"The run is at update {step} already: resume with num_updates of at least that, got "
            f"{num_updates}."
        )
    report(
        f"finished before: update {step} of {num_updates}"
        if step == num_updates
        else f"continuing at update {step} of {num_updates}"
    )
