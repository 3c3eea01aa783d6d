"""Training a run: updates offline, then what it learns online."""

import contextlib
import dataclasses
import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np

from ..agents.agent import State
from ..data import Data, Replay
from ..data.episodes import EnvironmentFaultError, close_or_warn
from .beginning import (
    Beginning,
    begin,
    check_networks,
    facts_of,
    found_run,
    open_watch,
    saying_what_is_saved,
)
from .config import OnlineConfig, TrainConfig
from .gathering import gather
from .interruption import Stop, stopping
from .lock import locked
from .loggers import LoggerName, check_loggers
from .loop import Progress, fit
from .online import OnlineProgress, fit_online
from .run import Run
from .watch import Watch, check_own_environments, make_world


def train(
    config: TrainConfig,
    folder: str | os.PathLike[str],
    *,
    resume: bool = False,
    progress: bool = True,
    report: Callable[[str], None] = lambda line: None,
    loggers: Sequence[LoggerName] = (),
    dataset: Data | None = None,
    environments: Any = None,
) -> Run:
    """Trains, evaluates and writes it all to a folder.

    SIGINT (Ctrl-C) and SIGTERM, in the main thread, save a checkpoint within seconds and then
    raise `Interrupted`; a second one changes nothing, the third ends the process.

    **Arguments:**

    - `config`: what to train.
    - `folder`: where; it must be empty unless the run is resumed.
    - `resume`: continue from the last checkpoint. Offline it ends bitwise where a run without
        interruption ends; online the episode begins anew. The configuration must be the run's own,
        but for what only watches (intervals, episodes, which checkpoints are kept), where its data
        lie (their content may not change), the decay of its learning rate, and `num_updates`, or
        `online.num_steps` of a run that has them, which may be larger. An empty folder starts a
        run.
    - `progress`: show on standard error how far it has come: a bar in a terminal or a notebook, a
        line now and then elsewhere.
    - `report`: takes lines of text: each evaluation, and where a resumed run continues.
    - `loggers`: where metrics go besides the tables: `tensorboard`, `wandb` (offline, in the
        folder) or `wandb-online`; their packages are extras.
    - `dataset`: the offline data themselves, where the configuration names none; again to resume.
    - `environments`: a Gymnasium vector environment of your own to evaluate in, where the
        configuration names none; as [`floq_eqx.evaluation.evaluate`][] takes it. It stays open.

    **Returns:** the run.

    **Raises:** as `Run`; `ValueError` if a resumed run has another configuration or other data, or
    no checkpoint of it can be used; `BlockingIOError` if another process trains in the folder;
    `OSError` if it cannot be written to; `DivergedError`, which leaves the last finite checkpoint
    in place; `EnvironmentFaultError` and `Interrupted`, after a checkpoint.
    """
    check_networks(config.agent)
    check_loggers(loggers)
    if environments is not None:
        check_own_environments(config, environments)
    with stopping() as stop, locked(Path(folder)), contextlib.ExitStack() as stack:
        return _training(
            config,
            Path(folder),
            resume,
            progress,
            report,
            loggers,
            stack,
            stop,
            dataset,
            environments,
        )


def finetune(
    source: str | os.PathLike[str],
    folder: str | os.PathLike[str],
    online: OnlineConfig,
    *,
    changes: dict[str, Any] | None = None,
    resume: bool = False,
    **options: Any,
) -> Run:
    """Goes on learning online, in a folder of its own, from the last state of a run.

    A learning rate that decayed there is constant here, with an optimiser that begins anew. What
    that run had collected online comes along in the buffer, the newest first to stay.

    **Arguments:**

    - `source`: the folder of the run; it stays as it is, and is not needed any more to resume.
    - `folder`, `resume`, `options`: as in [`floq_eqx.training.train`][].
    - `online`: how, but for its `start`.
    - `changes`: fields of its `TrainConfig` to change, such as `evaluate_every`.

    **Raises:** as `train`; `FileNotFoundError` if there is no such run or checkpoint.
    """
    if resume and (Path(folder) / "config.json").exists():
        begun = Run(folder)
        start = None if begun.config.online is None else begun.config.online.start
        config = dataclasses.replace(
            begun.config, online=dataclasses.replace(online, start=start), **(changes or {})
        )
    else:
        run = Run(source)
        own = {
            "agent": dataclasses.replace(run.config.agent, decay_updates=None),
            "num_updates": run.last_step(),
            "online": dataclasses.replace(online, start=str(run.folder.resolve())),
        }
        if online.offline_data == "none":
            own |= {"data": None, "rewards": "task", "action_low": None, "action_high": None}
        config = dataclasses.replace(run.config, **own | (changes or {}))
    return train(config, folder, resume=resume, **options)


def _training(
    config: TrainConfig,
    folder: Path,
    resume: bool,
    progress: bool,
    report: Callable[[str], None],
    loggers: Sequence[LoggerName],
    stack: contextlib.ExitStack,
    stop: Stop,
    dataset: Data | None,
    environments: Any,
) -> Run:
    old = found_run(config, folder, resume=resume)
    config, data = gather(config, dataset, progress=progress)
    world = None
    if config.online is not None:
        world = make_world(config, config.online.num_environments)
        stack.callback(close_or_warn, "an environment", world.close)
    begun = begin(config, old, data, facts_of(data, world), report)
    with stop.deferred():
        watch = open_watch(
            begun,
            folder,
            loggers=loggers,
            report=report,
            stop=stop,
            stack=stack,
            progress=progress,
            environments=environments,
        )
        with saying_what_is_saved([watch.run]):
            _go(begun, data, world, watch)
            watch.run.prune()
    return watch.run


def _go(begun: Beginning, data: Data | None, world: Any, watch: Watch) -> None:
    """What is left to do from a step on."""
    config, state, step, start = begun.config, begun.state, begun.step, begun.start
    online = config.online
    if start is None and step < config.num_updates:
        watch.assess_if_due(step, state)
        with watch.bar("update", step, config.num_updates):
            state = _offline(config, state, data, begun.train_key, watch)
        step = config.num_updates
        watch.stop.check()
    if online is None:
        watch.assess_if_due(step, state)
        return
    replay = _replay(config, online, data, world)
    if start is not None:
        step = config.num_updates
        replay = _with_collected_before(replay, start, step, watch.report)
        watch.save(step, state, replay)
    elif watch.run.has_collected(step):
        replay = watch.run.restore_replay(replay, step=step, checked=True)
    watch.assess_if_due(step, state)
    if step < config.last_step:
        done = step - config.num_updates
        with watch.bar("step", done, online.num_steps):
            _online(config, online, state, data, replay, world, done, begun.online_key, watch)
        watch.stop.check()


def _replay(config: TrainConfig, online: OnlineConfig, data: Data | None, world: Any) -> Replay:
    """The buffer before anything is collected."""
    if online.offline_data == "buffer" and data is not None:
        return Replay.from_data(data, len(data) + online.capacity, protect=online.keep_offline)
    (observation_size,) = world.single_observation_space.shape
    return Replay.empty(online.capacity, observation_size, *world.single_action_space.shape)


def _with_collected_before(
    replay: Replay, start: str, step: int, report: Callable[[str], None]
) -> Replay:
    """The buffer with what the run that this one starts from had collected, if it had."""
    source = Run(start)
    if not source.has_collected(step):
        return replay
    collected = source.restore_collected(replay.data, step=step)
    room = replay.capacity - replay.num_protected
    newest, ahead = jax.tree.map(lambda x: x[-room:], (collected.data, collected.ahead))
    count = len(collected.data)
    report(f"{len(newest)} of {count} transitions that {start} had collected come along")
    return replay.add(newest, ahead)


def _offline(config: TrainConfig, state: State, data: Any, key: Any, watch: Watch) -> State:
    def after(now: Progress) -> None:
        rates = {"updates_per_second": now.updates_per_second}
        watch.after_chunk(now.step, now.state, rates, now.metrics)

    return fit(
        config.agent,
        state,
        data,
        num_updates=config.num_updates,
        batch_size=config.batch_size,
        key=key,
        chunk=config.log_every,
        callbacks=(after,),
        between=watch.between,
    )


def _online(
    config: TrainConfig,
    online: OnlineConfig,
    state: State,
    data: Data | None,
    replay: Replay,
    world: Any,
    start: int,
    key: Any,
    watch: Watch,
) -> None:
    def after(now: OnlineProgress, leave: bool = False) -> None:
        rates = {
            "updates_per_second": now.updates_per_second,
            "env_steps_per_second": now.env_steps_per_second,
        }
        # An episode without success failed, if another of the chunk tells it.
        episodes = {
            f"episode_{name}": float(np.mean([e.get(name, 0.0) for e in now.episodes]))
            for name in (now.episodes or [{}])[-1]
        }
        metrics = now.metrics | {"episodes": len(now.episodes)} | episodes
        step = config.num_updates + now.step
        watch.after_chunk(step, now.state, rates, metrics, now.replay, leave=leave)

    mixture = data if online.offline_data == "mixture" else None
    warmup = online.warmup
    if warmup is None:
        learned = config.num_updates > 0 and (int(replay.size) > 0 or mixture is not None)
        warmup = 0 if learned and online.warmup_with == "random" else 1000
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
            warmup_with=online.warmup_with,
            offline=mixture,
            offline_fraction=online.offline_fraction,
            start=start,
            chunk=config.log_every,
            seed=config.seed,
            callbacks=(after,),
            between=watch.between,
            tells_success=watch.tells_success(),
        )
    except EnvironmentFaultError as fault:
        now = fault.progress
        if now is not None and config.num_updates + now.step > watch.logged:
            after(now, leave=True)
        raise
