"""A training run as a folder that can be interrupted, resumed, evaluated and plotted.

config.json       what was asked for
train.csv         means of every metric, a row a chunk of updates
evaluation.csv    success, return and length, a row an evaluation
checkpoints/<n>/  the state after n updates
"""

import contextlib
import csv
import dataclasses
import json
import os
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Literal, TypeVar

import jax
import jax.numpy as jnp
from tqdm import tqdm

from ..agents.base import Agent, State, check_sizes
from ..agents.floq import Floq
from ..agents.registry import AGENTS, from_plain, nearest, to_plain
from ..data import Batch, collect_dataset, load_dataset, parse_name
from ..evaluation import Evaluation, evaluate, make_environments
from .loop import Progress, fit

T = TypeVar("T")


@dataclasses.dataclass(frozen=True)
class TrainConfig:
    """What a run is made of.

    **Arguments:**

    - `environment`: a single-task OGBench name.
    - `agent`: the algorithm with its hyperparameters.
    - `seed`: for the parameters, the batches, the noise and the evaluation.
    - `num_updates`, `batch_size`: how long, and on how many transitions at once.
    - `log_every`: updates between rows of `train.csv`, run without return to the host.
    - `evaluate_every`, `evaluation_episodes`: updates between evaluations, and their size.
    - `checkpoint_every`: updates between checkpoints. This and `evaluate_every` must be multiples
        of `log_every`.
    - `data`: the dataset's `.npz` file, or a folder to look for it; `None` for the default folder.
    - `collect_episodes`: collect that many episodes with OGBench's scripted expert instead of
        looking for a published dataset; they are kept for later runs.
    - `success_timing`: see [`floq_eqx.evaluation.make_environments`][].
    """

    environment: str = "cube-single-play-singletask-task1-v0"
    agent: Agent = dataclasses.field(default_factory=Floq)
    seed: int = 0
    num_updates: int = 1_000_000
    batch_size: int = 256
    log_every: int = 1000
    evaluate_every: int = 100_000
    evaluation_episodes: int = 50
    checkpoint_every: int = 100_000
    data: str | None = None
    collect_episodes: int | None = None
    success_timing: Literal["pre", "post"] | None = None

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
        if self.seed < 0:
            raise ValueError(f"seed must not be negative, got {self.seed}.")
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
        agent = from_plain(values.pop("agent", None), values.pop("hyperparameters", {}))
        known = {f.name for f in dataclasses.fields(cls)}
        for name in values:
            if name not in known:
                raise nearest("setting", name, known)
        return cls(agent=agent, **values)


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
        with contextlib.suppress(FileNotFoundError, NotADirectoryError):
            if any(folder.iterdir()):
                raise FileExistsError(
                    f"{folder} already holds files, and a run is never overwritten: choose another "
                    "folder, or continue the run that is there with --resume."
                )
        try:
            folder.mkdir(parents=True, exist_ok=True)
            write_whole(folder / "config.json", json.dumps(config.to_plain(), indent=2) + "\n")
        except OSError as error:
            raise OSError(
                error.errno, f"Cannot write a run to {folder}: {error.strerror}"
            ) from error
        return cls(folder)

    def table(self, name: str) -> list[dict[str, float]]:
        """The rows of `train.csv` or `evaluation.csv`; none if there is no such file yet."""
        path = self.folder / name
        if not path.is_file():
            return []
        with path.open(newline="") as file:
            rows = list(csv.DictReader(file))
        # A row that was being written when the run was killed lacks its end.
        return [
            {key: float(value) for key, value in row.items()}
            for row in rows
            if row and None not in row.values() and None not in row
        ]

    def append(self, name: str, row: dict[str, float]) -> None:
        """Adds a row to a table, and the header if it is the first."""
        path = self.folder / name
        new = not path.exists()
        with path.open("a", newline="") as file:
            writer = csv.DictWriter(file, fieldnames=list(row))
            if new:
                writer.writeheader()
            writer.writerow(row)

    def forget_after(self, step: int) -> None:
        """Removes the rows of later updates from both tables."""
        for name in ("train.csv", "evaluation.csv"):
            rows = [row for row in self.table(name) if row["step"] <= step]
            path = self.folder / name
            if rows:
                temporary = path.with_suffix(".tmp")
                temporary.unlink(missing_ok=True)
                with temporary.open("w", newline="") as file:
                    writer = csv.DictWriter(file, fieldnames=list(rows[0]))
                    writer.writeheader()
                    writer.writerows(rows)
                os.replace(temporary, path)
            else:
                path.unlink(missing_ok=True)

    @contextlib.contextmanager
    def checkpoints(self) -> Iterator[Any]:
        """Orbax's manager of the run's checkpoints, which finishes writing on exit."""
        import orbax.checkpoint as ocp

        options = ocp.CheckpointManagerOptions(
            max_to_keep=2, cleanup_tmp_directories=True, enable_async_checkpointing=False
        )
        folder = (self.folder / "checkpoints").absolute()
        with ocp.CheckpointManager(folder, options=options) as manager:
            yield manager

    def save(self, manager: Any, state: State) -> None:
        """Writes a checkpoint; it appears under its name only when it is whole."""
        import orbax.checkpoint as ocp

        manager.save(int(state.step), args=ocp.args.StandardSave(_by_path(state)))

    def restore(self, state: State, *, step: int | None = None) -> State:
        """The state of a checkpoint.

        **Arguments:** `state`: one of the same structure; `step`: which, the last one by default.

        **Raises:** `FileNotFoundError` if there is no such checkpoint; `ValueError` that names
        what differs if it belongs to another configuration, or cannot be read.
        """
        import orbax.checkpoint as ocp

        with self.checkpoints() as manager:
            steps = sorted(manager.all_steps())
            if not steps or (step is not None and step not in steps):
                which = "no checkpoint" if step is None else f"no checkpoint of update {step}"
                raise FileNotFoundError(f"{self.folder} holds {which}; it has {steps}.")
            step = steps[-1] if step is None else step
            wanted = _by_path(state)
            try:
                saved = manager.item_metadata(step)
                _check_same_arrays(wanted, dict(saved))
                abstract = jax.tree.map(ocp.utils.to_shape_dtype_struct, wanted)
                arrays = manager.restore(step, args=ocp.args.StandardRestore(abstract))
            except Exception as error:
                raise ValueError(
                    f"Checkpoint {step} of {self.folder} cannot be used: {error}"
                ) from error
        return jax.tree.unflatten(
            jax.tree.structure(state), [jnp.asarray(arrays[name]) for name in wanted]
        )

    def load(self, *, step: int | None = None) -> tuple[Agent, State]:
        """The trained agent and its state, for use in other code."""
        environment = make_environments(self.config.environment, 1)
        observation_size = environment.single_observation_space.shape[0]
        action_size = environment.single_action_space.shape[0]
        environment.close()
        agent = self.config.agent
        state = agent.init(observation_size, action_size, key=jax.random.key(0))
        return agent, self.restore(state, step=step)


def _by_path(state: State) -> dict[str, jax.Array]:
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


def write_whole(path: Path, text: str) -> None:
    """Writes a text file that appears under its name only when it is complete."""
    temporary = path.with_name(path.name + ".tmp")
    with temporary.open("w") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
    os.replace(temporary, path)


def find_data(config: TrainConfig, *, progress: bool = True) -> Batch:
    """The transitions that a run trains on, collected first if that is what it asks for."""
    if config.data is not None or config.collect_episodes is None:
        return load_dataset(config.environment, path=config.data)
    dataset = parse_name(config.environment).dataset
    cache = Path(os.environ.get("XDG_CACHE_HOME", "~/.cache")).expanduser() / "floq_eqx"
    # Not among OGBench's own files: a shorter dataset must not pass for the published one.
    path = cache / f"{dataset}-{config.collect_episodes}-episodes" / f"{dataset}.npz"
    if not path.exists():
        collect_dataset(
            dataset, path, num_episodes=config.collect_episodes, seed=0, progress=progress
        )
    return load_dataset(config.environment, path=path)


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
        ends. The configuration must be the run's own, but `num_updates` may differ. A folder
        without a run starts one.
    - `progress`: show progress bars where standard error is a terminal.
    - `report`: takes a line of text for each evaluation.

    **Returns:** the run.

    **Raises:** as `Run`, and `DivergedError`, which leaves the last finite checkpoint in place.
    """
    folder = Path(folder)
    if resume and (folder / "config.json").exists():
        run = Run(folder)
        _check_same_config(run.config, config)
    else:
        run = Run.create(folder, config)

    data = find_data(config, progress=progress)
    config = dataclasses.replace(config, agent=config.agent.for_data(data))
    write_whole(folder / "config.json", json.dumps(config.to_plain(), indent=2) + "\n")
    run = Run(folder)

    agent = config.agent
    init_key, train_key = jax.random.split(jax.random.key(config.seed))
    state = agent.init(data.observation.shape[1], data.action.shape[1], key=init_key)
    with run.checkpoints() as manager:
        started = manager.latest_step() is not None
    if started:
        state = run.restore(state)
    run.forget_after(int(state.step))

    start = time.perf_counter()
    environments = None

    def log(now: Progress) -> None:
        row = {"step": now.step, "seconds": time.perf_counter() - start}
        row["updates_per_second"] = now.updates_per_second
        run.append("train.csv", row | dict(sorted(now.metrics.items())))

    def assess(now: Progress) -> None:
        nonlocal environments
        if now.step % config.evaluate_every and now.step != config.num_updates:
            return
        if environments is None:
            environments = make_environments(
                config.environment, success_timing=config.success_timing
            )
        result = evaluate(
            agent,
            now.state,
            environments,
            num_episodes=config.evaluation_episodes,
            seed=config.seed,
        )
        row = {"step": now.step, "seconds": time.perf_counter() - start}
        run.append("evaluation.csv", row | result.summary())
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
        finally:
            if environments is not None:
                environments.close()
    return run


def describe(result: Evaluation) -> str:
    """One line: success, return and length, each with its standard deviation over episodes."""
    s = result.summary()
    return (
        f"success {s['success']:.2f}, return {s['returns']:.1f} ± {s['returns_std']:.1f}, "
        f"length {s['lengths']:.0f} ± {s['lengths_std']:.0f} ({len(result.success)} episodes)"
    )


def _check_same_config(old: TrainConfig, new: TrainConfig) -> None:
    """Raises a `ValueError` that names the settings of a resumed run that have changed."""

    def flat(config: TrainConfig) -> dict[str, Any]:
        plain = config.to_plain()
        plain.pop("num_updates")
        hyperparameters = plain.pop("hyperparameters")
        for name in ("action_size", "reward_min", "reward_max"):  # the data's, not the user's
            hyperparameters.pop(name, None)
        return plain | hyperparameters

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
