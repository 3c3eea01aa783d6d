"""How a run begins, or goes on: its data, its state, its folder and what watches it."""

import contextlib
import dataclasses
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import equinox as eqx
import jax

from .._types import Key
from ..agents.actor_critic import ActorCritic
from ..agents.agent import Agent, State
from ..data import Data, fingerprint
from ..data.episodes import close_or_warn
from ..data.of_minari import PREFIX as MINARI
from ..networks import with_precision
from .config import CHANGEABLE, TrainConfig
from .interruption import Interrupted, Stop
from .loggers import LoggerName, open_loggers
from .resuming import (
    OF_THE_DATA,
    check_more_to_do,
    check_same_config,
    check_same_data,
    say_new_decay,
)
from .run import Facts, Run, claim, write_config
from .watch import Watch


def found_run(config: TrainConfig, folder: Path, *, resume: bool) -> Run | None:
    """The run that goes on in a folder, which has this configuration; without one, the folder is
    made for a new run.
    """
    if not (resume and (folder / "config.json").exists()):
        claim(folder)
        return None
    old = Run(folder)
    ignored = (_grows(config), *CHANGEABLE, *OF_THE_DATA)
    if config.action_low is None:  # it takes those of the environment
        ignored += ("action_low", "action_high")
    check_same_config(old.config, config, ignore=ignored)
    return old


def _grows(config: TrainConfig) -> str:
    return "num_updates" if config.online is None else "online.num_steps"


@dataclasses.dataclass(frozen=True)
class Beginning:
    """Where a run begins, or goes on.

    **Attributes:**

    - `config`: what was asked for, with what the data and the environment said.
    - `facts`: what it found.
    - `old`: the run that is in its folder already.
    - `state`, `step`: the state after so many steps.
    - `start`: the folder of the run that it begins from online, if that comes next.
    - `train_key`, `online_key`: for updates offline and online.
    """

    config: TrainConfig
    facts: Facts
    old: Run | None
    state: Any
    step: int
    start: str | None
    train_key: Key
    online_key: Key


def begin(
    config: TrainConfig,
    old: Run | None,
    data: Data | None,
    facts: Facts,
    report: Callable[[str], None],
) -> Beginning:
    """The state of a run before its next step; nothing is written.

    **Arguments:** `config`: what was asked for; `old`: the run that goes on; `data`, `facts`: what
    was found; `report`: takes lines of text.

    **Raises:** `ValueError` if there are other data than before, no checkpoint of it can be used,
    or it is past its end.
    """
    agent = dataclasses.replace(config.agent, action_size=facts.action_size)
    if data is not None:
        agent = config.agent.for_data(data)
    path = config.data
    if path is not None and not path.startswith(MINARI):
        path = str(Path(path).expanduser().absolute())
    config = dataclasses.replace(config, agent=agent, data=path)
    key = jax.random.key(config.seed)
    init_key, train_key = jax.random.split(key)
    online_key = jax.random.fold_in(key, 2)
    state = agent.init(facts.observation_size, facts.action_size, key=init_key)
    step = 0
    if old is not None:
        check_same_data(old, facts)
        check_same_config(old.config, config, ignore=(_grows(config), *CHANGEABLE))
        if old.steps():
            step = old.last_step()
            state = old.restore(state, step=step, checked=True)
        check_more_to_do(step, config, _grows(config), report)
        say_new_decay(old.config.agent, agent, report)
    start = None
    if config.online is not None and step < config.num_updates:
        start = config.online.start
    if start is not None:
        state = _restore_start(config, start, state)
    return Beginning(config, facts, old, state, step, start, train_key, online_key)


def open_watch(
    begun: Beginning,
    folder: Path,
    *,
    loggers: Sequence[LoggerName],
    report: Callable[[str], None],
    stop: Stop,
    stack: contextlib.ExitStack,
    progress: bool,
    environments: Any = None,
) -> Watch:
    """Writes what a run's folder begins with, and opens what it writes to from now on."""
    config, old = begun.config, begun.old
    if old is None:
        run = Run.create(folder, config, begun.facts)
    else:
        if old.config.to_plain() != config.to_plain():
            write_config(folder, config, begun.facts)
        run = Run(folder)
        run.forget_after(begun.step)
    resume_at = None if old is None else begun.step
    logger = open_loggers(folder, loggers, resume_at=resume_at, config=config.to_plain())
    stack.callback(close_or_warn, "a logger", logger.close)
    watch = Watch(
        run=run,
        agent=config.agent,
        writer=stack.enter_context(run.checkpoints()),
        logger=logger,
        report=report,
        stop=stop,
        stack=stack,
        progress=progress,
        environments=environments,
    )
    if not watch.evaluates:
        report("there is no environment, so nothing is evaluated: --env names one")
    return watch


@contextlib.contextmanager
def saying_what_is_saved(runs: Sequence[Run]) -> Iterator[None]:
    """Adds to an interruption what of the runs is saved."""
    try:
        yield
    except Interrupted as interrupted:
        saved = "; nothing was trained yet"
        if kept := [run for run in runs if run.steps()]:
            steps = " and ".join(dict.fromkeys(str(run.steps()[-1]) for run in kept))
            saved = f" at step {steps}, which is saved in {', '.join(str(r.folder) for r in kept)}"
        raise Interrupted(interrupted.signum, saved) from None


def facts_of(data: Data | None, world: Any) -> Facts:
    """What a run finds in its data or, without any, in its environment."""
    if data is not None:
        return Facts(data.observation_size, data.action_size, fingerprint(data))
    (observation_size,) = world.single_observation_space.shape
    (action_size,) = world.single_action_space.shape
    return Facts(observation_size, action_size)


def check_networks(agent: Agent) -> None:
    """Raises for networks that cannot be built, or not at their precision on this device, before
    minutes go into collecting.
    """
    if isinstance(agent, ActorCritic):
        with_precision((), agent.precision)
    size = agent.action_size or 1
    eqx.filter_eval_shape(lambda key: agent.init(1, size, key=key), jax.random.key(0))


def _restore_start(config: TrainConfig, start: str, like: State) -> State:
    """The state that a run begins with, from another run."""
    source = Run(start)
    agent, state = source.load(step=config.num_updates)
    shapes = [jax.tree.map(lambda x: x.shape, s.params) for s in (state, like)]
    if jax.tree.structure(state.params) != jax.tree.structure(like.params) or (
        jax.tree.leaves(shapes[0]) != jax.tree.leaves(shapes[1])
    ):
        raise ValueError(f"{start} is a run of another agent, or of other networks.")
    if agent.decay_updates != config.agent.decay_updates:
        state = dataclasses.replace(state, opt_state=like.opt_state)
    return state
