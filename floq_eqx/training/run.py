"""A training run as a folder that can be interrupted, resumed, evaluated and plotted.

config.json       what was asked for
train.csv         means of every metric, a row a chunk of updates
evaluation.csv    success, return and length, a row an evaluation
checkpoints/<n>/  the state after n updates
"""

import contextlib
import csv
import dataclasses
import functools
import io
import json
import logging
import os
import sys
import time
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any, Literal, TypeAlias

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import PyTree
from tqdm import tqdm

from .._types import Number
from ..agents.base import Agent, State, check_choice, check_sizes
from ..agents.floq import Floq
from ..agents.registry import AGENTS, from_plain, nearest, to_plain
from ..data import Batch, collect_dataset, load_dataset, make_environment, parse_name
from ..data.ogbench import finish, unfinished
from ..evaluation import Evaluation, evaluate, make_environments
from .loop import Progress, fit

SuccessTiming: TypeAlias = Literal["pre", "post"]

_OF_THE_DATA = ("action_size", "reward_min", "reward_max")


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
            self.config = TrainConfig.from_plain(json.loads(path.read_text()))
        except (ValueError, TypeError, AttributeError) as error:
            raise ValueError(f"{path} is not a run's configuration: {error}") from error

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

    def table(self, name: str) -> list[dict[str, float]]:
        """The rows of `train.csv` or `evaluation.csv`; none if there is no such file yet.

        **Raises:** `ValueError` if it is damaged.
        """
        try:
            rows = list(csv.DictReader(self._lines(name), strict=True))
            return [{key: float(value) for key, value in row.items()} for row in rows]
        except (ValueError, TypeError, csv.Error) as error:
            raise ValueError(f"{self.folder / name} is damaged: {error}.") from error

    def append(self, name: str, row: dict[str, Number]) -> None:
        """Adds a row to a table, and the header if it is the first."""
        path = self.folder / name
        text = io.StringIO()
        writer = csv.DictWriter(text, fieldnames=list(row), lineterminator="\n")
        if not path.exists() or path.stat().st_size == 0:
            writer.writeheader()
        writer.writerow(row)
        with _writing(path), path.open("a") as file:
            file.write(text.getvalue())

    def forget_after(self, step: int) -> None:
        """Removes the rows of later updates from both tables."""
        for name in ("train.csv", "evaluation.csv"):
            self.table(name)  # raises if it is damaged
            header, *rows = self._lines(name) or [""]
            kept = [row for row in rows if float(row.split(",")[0]) <= step]
            if (self.folder / name).exists():
                write_text(self.folder / name, header + "".join(kept))

    def _lines(self, name: str) -> list[str]:
        """A table's lines, without one that was being written when the run was killed."""
        path = self.folder / name
        lines = path.read_text().splitlines(keepends=True) if path.is_file() else []
        return [line for line in lines if line.endswith("\n")]

    @contextlib.contextmanager
    def checkpoints(self) -> Iterator[Any]:
        """Orbax's manager for writing checkpoints, which finishes writing on exit.

        It removes what a killed run left unfinished, so there must be no other process that trains
        in this folder.
        """
        import orbax.checkpoint as ocp

        options = ocp.CheckpointManagerOptions(
            max_to_keep=2, cleanup_tmp_directories=True, enable_async_checkpointing=False
        )
        with ocp.CheckpointManager(self._checkpoints, options=options) as manager:
            yield manager

    @property
    def _checkpoints(self) -> Path:
        return (self.folder / "checkpoints").absolute()

    def save(self, manager: Any, state: State) -> None:
        """Writes a checkpoint; it appears under its name only when it is whole."""
        import orbax.checkpoint as ocp

        step = int(state.step)
        try:
            with _quiet():
                manager.save(step, args=ocp.args.StandardSave(_by_path(state)))
        except Exception as error:  # Orbax has no error of its own for a disk that is full.
            raise OSError(f"Cannot write checkpoint {step} of {self.folder}: {error}") from error

    def steps(self) -> list[int]:
        """The numbers of updates after which there is a checkpoint, in order."""
        paths = self._checkpoints.iterdir() if self._checkpoints.is_dir() else ()
        # Orbax renames a folder to the bare number once it is whole.
        return sorted(int(path.name) for path in paths if path.name.isdecimal())

    def restore(self, state: PyTree, *, step: int | None = None) -> State:
        """The state of a checkpoint.

        **Arguments:** `state`: one of the same structure, with arrays or their shapes; `step`:
        which, the last one by default.

        **Raises:** `FileNotFoundError` if there is no such checkpoint; `ValueError` that names
        what differs if it belongs to another configuration, or cannot be read.
        """
        import orbax.checkpoint as ocp
        from etils import epath  # Orbax's own paths

        steps = self.steps()
        if not steps:
            raise FileNotFoundError(f"{self.folder} holds no checkpoint yet.")
        step = steps[-1] if step is None else step
        if step not in steps:
            raise FileNotFoundError(
                f"{self.folder} holds no checkpoint of update {step}; it has "
                f"{', '.join(map(str, steps))}."
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
            reason = str(error).partition(" [tensorstore_spec")[0]
            raise ValueError(
                f"Checkpoint {step} of {self.folder} cannot be used: {reason}"
            ) from error
        finally:
            handler.close()
        return jax.tree.unflatten(
            jax.tree.structure(state), [jnp.asarray(arrays[name]) for name in wanted]
        )

    def load(self, *, step: int | None = None) -> tuple[Agent, State]:
        """The trained agent and its state, for use in other code."""
        with contextlib.closing(make_environment(self.config.environment)) as environment:
            (observation_size,) = environment.observation_space.shape
            (action_size,) = environment.action_space.shape
        agent = self.config.agent
        # Only the shapes: the numbers come from the checkpoint.
        init = lambda key: agent.init(observation_size, action_size, key=key)  # noqa: E731
        state = eqx.filter_eval_shape(init, jax.random.key(0))
        return agent, self.restore(state, step=step)


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
    """Makes a folder for a new run, or raises if there is anything in it."""
    with _writing(folder):
        folder.mkdir(parents=True, exist_ok=True)
        names = [path.name for path in folder.iterdir()]
    if "config.json" in names:
        raise FileExistsError(
            f"{folder} already holds a run, which is never overwritten: continue it with --resume "
            "(resume=True), or choose another folder."
        )
    # A run that was killed in its first moment leaves a part of its configuration.
    if any(not name.startswith(".config.json.") for name in names):
        raise FileExistsError(f"{folder} holds other files: choose an empty or a new folder.")


@contextlib.contextmanager
def _writing(path: Path) -> Iterator[None]:
    """Names the file in an error about the disk."""
    try:
        yield
    except OSError as error:
        raise OSError(error.errno, f"Cannot write {path}: {error.strerror}") from error


def write_text(path: Path, text: str) -> None:
    """Writes a text file that appears under its name only when it is complete."""
    with _writing(path), unfinished(path) as file:
        file.write(text.encode())
        finish(file, path)


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
            dataset, path, num_episodes=config.collect_episodes, seed=0, progress=progress
        )
    return load(path=path)


def train(
    config: TrainConfig,
    folder: str | os.PathLike[str],
    *,
    resume: bool = False,
    progress: bool = True,
    report: Callable[[str], None] = lambda line: None,
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

    **Returns:** the run.

    **Raises:** as `Run`; `ValueError` if a resumed run has another configuration or other data;
    `DivergedError`, which leaves the last finite checkpoint in place. Ctrl-C saves a checkpoint
    before it raises.
    """
    folder = Path(folder)
    _check_networks(config.agent)
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

    def log(now: Progress) -> None:
        row: dict[str, Number] = {"step": now.step, "seconds": time.perf_counter() - start}
        row["updates_per_second"] = now.updates_per_second
        run.append("train.csv", row | dict(sorted(now.metrics.items())))

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
        row: dict[str, Number] = {"step": now.step, "seconds": time.perf_counter() - start}
        run.append("evaluation.csv", row | result.summary())
        with tqdm.external_write_mode():
            report(f"update {now.step}: {describe(result)}")

    with contextlib.ExitStack() as stack:
        manager = stack.enter_context(run.checkpoints())
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
                run.save(manager, now.state)
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
            if latest is not None and latest.step not in manager.all_steps():
                run.save(manager, latest.state)
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
