"""Training a run: updates offline, then what it learns online."""

import contextlib
import dataclasses
import functools
import os
import time
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

import equinox as eqx
import jax
import numpy as np
from tqdm import tqdm

from .._types import Number
from ..agents.base import OF_THE_DATA, Agent, State
from ..data import Batch, Replay, collect_dataset, load_dataset, parse_name
from ..evaluation import Evaluation, evaluate, make_environments
from .config import OnlineConfig, TrainConfig
from .loggers import Logger, LoggerName, check_loggers, open_loggers
from .loop import Progress, fit
from .online import EnvironmentFaultError, OnlineProgress, fit_online
from .run import Run, claim, locked, write_config


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
    - `resume`: continue from the last checkpoint. Offline it ends bitwise where a run without
        interruption ends; online the episode begins anew. The configuration must be the run's own,
        but `num_updates`, or `online.num_steps` of a run that has them, may be larger. An empty
        folder starts a run.
    - `progress`: show progress bars where standard error is a terminal.
    - `report`: takes lines of text: each evaluation, and where a resumed run continues.
    - `loggers`: where metrics go besides the tables: `tensorboard`, `wandb` (offline, in the
        folder) or `wandb-online`; their packages are extras.

    **Returns:** the run.

    **Raises:** as `Run`; `ValueError` if a resumed run has another configuration or other data, or
    no checkpoint of it can be used; `BlockingIOError` if another process trains in the folder;
    `OSError` if it cannot be written to; `DivergedError`, which leaves the last finite checkpoint
    in place; `EnvironmentFaultError`, after a checkpoint. Ctrl-C offline saves a checkpoint before
    it raises.
    """
    _check_networks(config.agent)
    check_loggers(loggers)
    with locked(Path(folder)), contextlib.ExitStack() as stack:
        return _train(config, Path(folder), resume, progress, report, loggers, stack)


def finetune(
    source: str | os.PathLike[str],
    folder: str | os.PathLike[str],
    online: OnlineConfig,
    *,
    changes: dict[str, Any] | None = None,
    **options: Any,
) -> Run:
    """Goes on learning online, in a folder of its own, from the last state of a run.

    A learning rate that decayed there is constant here, with an optimiser that begins anew.

    **Arguments:**

    - `source`: the folder of the run; it stays as it is.
    - `folder`, `options`: as in [`floq_eqx.training.train`][].
    - `online`: how, but for its `start`.
    - `changes`: fields of its `TrainConfig` to change, such as `evaluate_every`.

    **Raises:** as `train`; `FileNotFoundError` if there is no such run or checkpoint.
    """
    run = Run(source)
    config = dataclasses.replace(
        run.config,
        agent=dataclasses.replace(run.config.agent, decay_updates=None),
        num_updates=run.last_step(),
        online=dataclasses.replace(online, start=str(run.folder.resolve())),
        **(changes or {}),
    )
    return train(config, folder, **options)


def _train(
    config: TrainConfig,
    folder: Path,
    resume: bool,
    progress: bool,
    report: Callable[[str], None],
    loggers: Sequence[LoggerName],
    stack: contextlib.ExitStack,
) -> Run:
    resumed = resume and (folder / "config.json").exists()
    grows = "num_updates" if config.online is None else "online.num_steps"
    if resumed:
        _check_same_config(Run(folder).config, config, ignore=(grows, *OF_THE_DATA))
    else:
        claim(folder)

    data = find_data(config, progress=progress) if config.needs_data else None
    world = None
    if config.online is not None:
        world = make_environments(
            config.environment,
            config.online.num_environments,
            success_timing=config.success_timing,
        )
        stack.callback(world.close)
    agent, sizes = _fitted(config.agent, data, world)
    config = dataclasses.replace(config, agent=agent)
    key = jax.random.key(config.seed)
    init_key, train_key = jax.random.split(key)
    online_key = jax.random.fold_in(key, 2)
    state = agent.init(*sizes, key=init_key)
    run, step = None, 0
    if resumed:
        run = Run(folder)
        _check_same_config(run.config, config, ignore=(grows,))
        if run.steps():
            step = run.last_step()
            state = run.restore(state, step=step, checked=True)
        _check_more_to_do(step, config, grows, report)
    start = None if config.online is None or step >= config.num_updates else config.online.start
    if start is not None:
        state = _restore_start(config, start, state)
    if run is None:
        run = Run.create(folder, config)
    elif run.config.last_step != config.last_step:
        write_config(folder, config)
        run = Run(folder)
    run.forget_after(step)

    writer = stack.enter_context(run.checkpoints())
    logger = stack.enter_context(
        open_loggers(folder, loggers, resume_at=step if resumed else None, config=config.to_plain())
    )
    watch = _Watch(run, agent, writer, logger, report, stack, step, progress)
    if start is not None:
        watch.step = step = config.num_updates
        watch.assess(step, state)
        watch.save(step, state)
    if step < config.num_updates:
        with watch.bar("update", step, config.num_updates):
            state = _offline(config, state, data, train_key, watch)
    if config.online is not None and step < config.last_step:
        done = max(0, step - config.num_updates)
        with watch.bar("step", done, config.online.num_steps):
            _online(config, config.online, state, data, world, done, online_key, watch)
    return run


def _fitted(agent: Agent, data: Batch | None, world: Any) -> tuple[Agent, tuple[int, int]]:
    """The agent with what it must know, and the sizes of an observation and an action."""
    if data is not None:
        return agent.for_data(data), (data.observation.shape[1], data.action.shape[1])
    (observation_size,) = world.single_observation_space.shape
    (action_size,) = world.single_action_space.shape
    return dataclasses.replace(agent, action_size=action_size), (observation_size, action_size)


def _restore_start(config: TrainConfig, start: str, like: State) -> State:
    """The state that a run begins with, from another run."""
    source = Run(start)
    agent, state = source.load(step=config.num_updates)
    if jax.tree.structure(state.params) != jax.tree.structure(like.params):
        raise ValueError(f"{start} is a run of another agent, or of other networks.")
    if agent.decay_updates != config.agent.decay_updates:
        state = dataclasses.replace(state, opt_state=like.opt_state)
    return state


def _offline(config: TrainConfig, state: State, data: Any, key: Any, watch: "_Watch") -> State:
    latest: Progress | None = None

    def after(now: Progress) -> None:
        nonlocal latest
        row = {"updates_per_second": now.updates_per_second}
        watch.log(now.step, now.state, row, now.metrics)
        watch.assess_if_due(now.step, now.state)
        latest = now
        watch.save_if_due(now.step, now.state)

    try:
        return fit(
            config.agent,
            state,
            data,
            num_updates=config.num_updates,
            batch_size=config.batch_size,
            key=key,
            chunk=config.log_every,
            callbacks=(after,),
        )
    except KeyboardInterrupt:
        if latest is not None and latest.step not in watch.run.steps():
            watch.save(latest.step, latest.state)
        raise


def _online(
    config: TrainConfig,
    online: OnlineConfig,
    state: State,
    data: Batch | None,
    world: Any,
    start: int,
    key: Any,
    watch: "_Watch",
) -> None:
    if online.offline_data == "buffer" and data is not None:
        replay = Replay.from_data(data, len(data) + online.capacity, protect=online.keep_offline)
    else:
        (observation_size,) = world.single_observation_space.shape
        replay = Replay.empty(online.capacity, observation_size, *world.single_action_space.shape)
    if start:
        count = replay.num_collected(start)
        like = jax.tree.map(
            lambda x: jax.ShapeDtypeStruct((count, *x.shape[1:]), x.dtype), replay.data
        )
        step = config.num_updates + start  # which the state came from, so it is checked
        collected = watch.run.restore_collected(like, step=step, checked=True)
        replay = replay.with_collected(collected, start)

    def log(now: OnlineProgress) -> None:
        rates = {
            "updates_per_second": now.updates_per_second,
            "env_steps_per_second": now.env_steps_per_second,
        }
        episodes = {
            f"episode_{name}": float(np.mean([e[name] for e in now.episodes]))
            for name in (now.episodes or [{}])[0]
        }
        counts = {"episodes": len(now.episodes)}
        watch.log(config.num_updates + now.step, now.state, rates, now.metrics | counts | episodes)

    def after(now: OnlineProgress) -> None:
        log(now)
        step = config.num_updates + now.step
        watch.assess_if_due(step, now.state)
        watch.save_if_due(step, now.state, now.replay)

    warmup = online.warmup
    if warmup is None:
        warmup = 0 if config.num_updates else 1000
    try:
        fit_online(
            config.agent,
            state,
            replay,
            world,
            num_steps=online.num_steps,
            batch_size=config.batch_size,
            key=key,
            utd=online.utd,
            warmup=warmup,
            offline=data if online.offline_data == "mixture" else None,
            offline_fraction=online.offline_fraction,
            start=start,
            chunk=config.log_every,
            seed=config.seed,
            callbacks=(after,),
        )
    except EnvironmentFaultError as fault:
        now = fault.progress
        if now is not None and config.num_updates + now.step > watch.step:
            log(now)
            watch.save(config.num_updates + now.step, now.state, now.replay)
        raise


class _Watch:
    """What is done between chunks: rows in the tables, evaluations, checkpoints, the bar."""

    def __init__(
        self,
        run: Run,
        agent: Agent,
        writer: Any,
        logger: Logger,
        report: Callable[[str], None],
        stack: contextlib.ExitStack,
        step: int,
        progress: bool,
    ):
        self.run, self.agent, self.writer, self.logger = run, agent, writer, logger
        self.report, self.step, self.progress = report, step, progress
        self._stack, self._environments, self._bar = stack, None, tqdm(disable=True)
        rows = run.table("train.csv")
        self._start = time.perf_counter() - (rows[-1]["seconds"] if rows else 0.0)

    @contextlib.contextmanager
    def bar(self, unit: str, initial: int, total: int):
        """Shows one while it lasts."""
        disable = None if self.progress else True
        with tqdm(total=total, initial=initial, unit=unit, disable=disable) as self._bar:
            yield

    def log(
        self, step: int, state: State, rates: dict[str, float], metrics: dict[str, Number]
    ) -> None:
        row = self._counts(step, state) | rates | dict(sorted(metrics.items()))
        self.logger.log(step, row, table="train")

    def assess_if_due(self, step: int, state: State) -> None:
        if self._due(step, self.run.config.evaluate_every):
            self.assess(step, state)

    def assess(self, step: int, state: State) -> None:
        config = self.run.config
        if self._environments is None:
            self._environments = make_environments(
                config.environment,
                min(10, config.evaluation_episodes),
                success_timing=config.success_timing,
            )
            self._stack.callback(self._environments.close)
        result = evaluate(
            self.agent,
            state,
            self._environments,
            num_episodes=config.evaluation_episodes,
            seed=config.seed,
        )
        row = self._counts(step, state) | result.summary()
        self.logger.log(step, row, table="evaluation")
        steps = step - config.num_updates
        where = f"update {step}" if steps <= 0 else f"environment step {steps}"
        with tqdm.external_write_mode():
            self.report(f"{where}: {describe(result)}")

    def save(self, step: int, state: State, replay: Replay | None = None) -> None:
        collected = None if replay is None else replay.collected()
        self.run.save(self.writer, state, step=step, collected=collected)

    def save_if_due(self, step: int, state: State, replay: Replay | None = None) -> None:
        """The last that is done after a chunk."""
        if self._due(step, self.run.config.checkpoint_every):
            self.save(step, state, replay)
        self._bar.update(step - self.step)
        self.step = step

    def _due(self, step: int, every: int) -> bool:
        """Whether a multiple has been passed: several environments may step over it."""
        ends = (self.run.config.num_updates, self.run.config.last_step)
        return step // every > self.step // every or step in ends

    def _counts(self, step: int, state: State) -> dict[str, Number]:
        seconds = {"seconds": time.perf_counter() - self._start}
        if self.run.config.online is None:
            return seconds
        env_steps = max(0, step - self.run.config.num_updates)
        return seconds | {"updates": int(state.step), "env_steps": env_steps}


def _check_networks(agent: Agent) -> None:
    """Raises for networks that cannot be built, before minutes go into collecting."""
    size = agent.action_size or 1
    eqx.filter_eval_shape(lambda key: agent.init(1, size, key=key), jax.random.key(0))


def describe(result: Evaluation) -> str:
    """One line: success, return and length, each with its standard deviation over episodes."""
    s = result.summary()
    success = "" if np.isnan(s["success"]) else f"success {s['success']:.2f}, "
    return (
        f"{success}return {s['returns']:.1f} ± {s['returns_std']:.1f}, "
        f"length {s['lengths']:.0f} ± {s['lengths_std']:.0f} ({len(result.success)} episodes)"
    )


def _check_same_config(old: TrainConfig, new: TrainConfig, *, ignore: Iterable[str]) -> None:
    """Raises a `ValueError` that names the settings of a resumed run that have changed."""

    def flat(config: TrainConfig) -> dict[str, Any]:
        plain = config.to_plain()
        plain |= plain.pop("hyperparameters")
        plain |= {f"online.{name}": value for name, value in plain.pop("online", {}).items()}
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


def _check_more_to_do(
    step: int, config: TrainConfig, grows: str, report: Callable[[str], None]
) -> None:
    unit = "update" if config.online is None else "step"
    if step > config.last_step:
        raise ValueError(
            f"The run is at {unit} {step} already: resume with a larger {grows} than ends at "
            f"{config.last_step}."
        )
    report(
        f"finished before: {unit} {step} of {config.last_step}"
        if step == config.last_step
        else f"continuing at {unit} {step} of {config.last_step}"
    )
