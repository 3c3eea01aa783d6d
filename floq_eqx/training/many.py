"""Several runs that differ in their seeds or float hyperparameters, trained in one program.

What an update does is compiled once for all of them. Each run has a folder of its own, as if it
were alone.
"""

import abc
import contextlib
import dataclasses
import os
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, cast

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Shaped

from .._machine import available_cores
from .._types import Key
from ..agents.agent import Agent, State, stacked, stacked_agents
from ..agents.plain import to_plain
from ..data import Data
from .beginning import (
    Beginning,
    begin,
    check_networks,
    facts_of,
    found_run,
    open_watch,
    saying_what_is_saved,
)
from .checks import RewardWatch, check_fits
from .config import TrainConfig
from .gathering import gather
from .interruption import stopping
from .lock import locked
from .loggers import LoggerName, check_loggers
from .loop import (
    DivergedError,
    compile_steps,
    in_pieces,
    pieces,
    raise_if_diverged,
    update_on_sample,
    with_arrays,
)
from .memory import check_memory, needs
from .resuming import OF_THE_DATA, differences
from .run import Run
from .watch import Watch, assess, settle


class StoppedRunsError(RuntimeError):
    """Some of the runs that were trained in one program stopped; the others are whole.

    **Attributes:** `errors`: why, by folder: a `DivergedError`, or what an evaluation raised;
    `runs`: the others.
    """

    def __init__(self, errors: dict[Path, Exception], runs: list[Run]):
        self.errors, self.runs = errors, runs
        texts = "; ".join(f"{folder}: {error}" for folder, error in errors.items())
        super().__init__(f"{len(errors)} of {len(errors) + len(runs)} runs stopped: {texts}")


def train_many(
    configs: Sequence[TrainConfig],
    folders: Sequence[str | os.PathLike[str]],
    *,
    resume: bool = False,
    progress: bool = True,
    report: Callable[[str], None] = lambda line: None,
    loggers: Sequence[LoggerName] = (),
    dataset: Data | None = None,
) -> list[Run]:
    """Trains several runs in one program, each in a folder of its own, as `train` would.

    On a CPU each run's updates are calls of one compiled program, from as many threads as there are
    cores, and its numbers are bitwise those that it has alone. On other devices all are one `vmap`,
    and the numbers are the same to rounding. A run that diverges, or whose evaluation fails, stops
    alone, and the others go on.

    **Arguments:**

    - `configs`: what to train: they may differ in `seed` and in the agent's float hyperparameters,
        and have no part online.
    - `folders`: where, one for each. It is an ordinary run's, which `train` resumes as well.
    - `resume`: continue each from its last checkpoint. All of them end bitwise where they end
        without interruption, if the same runs are resumed together. Those that are ahead wait.
    - `progress`, `loggers`, `dataset`: as in [`floq_eqx.training.train`][].
    - `report`: takes lines of text, which begin with the name of a run's folder.

    **Returns:** the runs.

    **Raises:** as `train`; `ValueError` for configurations that differ in more, for a folder given
    twice, and when it resumes runs of which some have been trained and others are not there;
    `MemoryError`, which says how many fit; `StoppedRunsError` after all others have ended.
    """
    paths = [Path(folder) for folder in folders]
    _check_together(configs, paths)
    check_networks(configs[0].agent)
    check_loggers(loggers)

    def reporter(path: Path) -> Callable[[str], None]:
        return lambda line: report(f"{path.name}: {line}")

    with stopping() as stop, contextlib.ExitStack() as stack:
        for path in paths:
            stack.enter_context(locked(path))
        _check_all_begun(paths, resume)
        each = list(zip(configs, paths, strict=True))
        olds = [found_run(config, path, resume=resume) for config, path in each]
        first, found = gather(configs[0], dataset, progress=progress)
        data = cast(Data, found)  # as they learn offline
        own = {"action_low": first.action_low, "action_high": first.action_high}
        facts = facts_of(data, None)  # once, as all of the data are read for them
        begun = [
            begin(dataclasses.replace(config, **own), old, data, facts, reporter(path))
            for (config, path), old in zip(each, olds, strict=True)
        ]
        group = _Group(begun, data)
        stack.callback(group.close)
        group.prepare()  # before there are folders, as it may not fit
        begun = [dataclasses.replace(one, state=None) for one in begun]
        with stop.deferred():
            watches = [
                open_watch(
                    one,
                    path,
                    loggers=loggers,
                    report=reporter(path),
                    stop=stop,
                    stack=stack,
                    progress=progress and path == paths[0],
                )
                for one, path in zip(begun, paths, strict=True)
            ]
            with saying_what_is_saved([watch.run for watch in watches]):
                errors = _go(group, watches)
                stop.check()
    runs = [watch.run for watch in watches if watch.run.folder not in errors]
    if errors:
        raise StoppedRunsError(errors, runs)
    return runs


def _go(group: "_Group", watches: Sequence[Watch]) -> dict[Path, Exception]:
    """Trains them to their end, but for those that diverge or cannot be evaluated."""
    config, errors = watches[0].run.config, {}

    def stopped(failed: dict[Watch, Exception]) -> None:
        errors.update({watch.run.folder: error for watch, error in failed.items()})

    stopped(assess([(w, group.steps[i], group.member(i), None) for i, w in enumerate(watches)]))
    with watches[0].bar("update", min(group.steps), config.num_updates):
        while waiting := [
            index
            for index, watch in enumerate(watches)
            if group.steps[index] < config.num_updates and watch.run.folder not in errors
        ]:
            start = time.perf_counter()
            # Those that are ahead, resumed from a later checkpoint, wait for the others.
            front = min(group.steps[index] for index in waiting)
            active = [index for index in waiting if group.steps[index] == front]
            metrics, count = group.advance(active, watches[0].between)
            rates = {"updates_per_second": count / (time.perf_counter() - start)}
            noted = []
            for row, index in enumerate(active):
                watch, step, state = watches[index], group.steps[index], group.member(index)
                own = {name: values[row] for name, values in metrics.items()}
                try:
                    raise_if_diverged(step, count, own, state)
                except DivergedError as error:
                    errors[watch.run.folder] = error
                    watch.say(str(error))
                    continue
                means = {name: float(values.mean()) for name, values in own.items()}
                watch.note(step, state, rates, means)
                noted.append((watch, step, state, None))
            stopped(settle(noted))
    return errors


class _Group:
    """The states of runs that advance together.

    **Arguments:** where each of them begins, and the data of all.

    **Raises:** `MemoryError` if they do not fit.
    """

    def __init__(self, begun: Sequence[Beginning], data: Data):
        self._config = begun[0].config
        agents = [one.config.agent for one in begun]
        check_fits(agents[0], data)
        RewardWatch(agents[0], "of the data").see(data.reward)
        for one in begun:
            one.config.agent.check_decay(one.state, one.config.num_updates - one.step)
        self.steps = [one.step for one in begun]
        # A vmap makes a GPU's products larger. A CPU's gain nothing and its caches lose, but two
        # programs in two threads leave no core waiting for the other.
        kind = Threads if jax.default_backend() == "cpu" else Stacked
        states, keys = [one.state for one in begun], [one.train_key for one in begun]
        arrays = [with_arrays(agent) for agent in agents]
        self._runs = kind(arrays, states, keys, data, self._config.batch_size)

    def prepare(self) -> None:
        """Compiles the first updates, which are known to fit in memory then."""
        left = [step for step in self.steps if step < self._config.num_updates]
        if left:
            self._runs.prepare(pieces(self._length(min(left)))[0])

    def close(self) -> None:
        self._runs.close()

    def _length(self, step: int) -> int:
        chunk = self._config.log_every
        return min(chunk - step % chunk, self._config.num_updates - step)

    def member(self, index: int) -> State:
        """The state of one of them."""
        return self._runs.member(index)

    def advance(
        self, active: Sequence[int], between: Callable[[int], bool]
    ) -> tuple[dict[str, Float[np.ndarray, "runs updates"]], int]:
        """Updates of those that are `active`, which are equally far, until the end of a chunk.

        **Returns:** the metrics of each of these, and how many updates there were.
        """
        step = self.steps[active[0]]

        def some(_: None, count: int) -> tuple[None, dict[str, Any]]:
            return None, self._runs.update(active, count)

        _, metrics, count, _ = in_pieces(some, None, step, self._length(step), between)
        for index in active:
            self.steps[index] += count
        return metrics, count


@dataclasses.dataclass
class Together(abc.ABC):
    """Several runs' updates.

    **Arguments:** the agents, with arrays for their numbers; their states and the keys of their
    updates; the data of all; and how many transitions a batch has.
    """

    agents: Sequence[Agent]
    states: Sequence[State]
    keys: Sequence[Key]
    data: Data
    batch_size: int

    @abc.abstractmethod
    def prepare(self, count: int) -> None:
        """Compiles so many updates.

        **Raises:** `MemoryError` if they do not fit.
        """

    @abc.abstractmethod
    def update(self, active: Sequence[int], count: int) -> dict[str, Any]:
        """Makes so many updates of those that are `active`.

        **Returns:** their metrics, each `[runs updates]`.
        """

    @abc.abstractmethod
    def member(self, index: int) -> State:
        """The state of one of them."""

    def close(self) -> None:  # noqa: B027
        """Ends what runs in the background."""


@dataclasses.dataclass
class Threads(Together):
    """Each run's updates by one compiled program, in as many threads as there are cores.

    The numbers are bitwise those of a run alone, whose program it is. Runs that differ in what is a
    part of the program, such as the support of a critic's values, each have their own.
    """

    def __post_init__(self):
        self._states = list(self.states)
        self._threads = min(len(self.states), available_cores())
        self._pool = ThreadPoolExecutor(self._threads)
        self._programs: dict[Any, Any] = {}

    def close(self) -> None:
        self._pool.shutdown(cancel_futures=True)

    def member(self, index: int) -> State:
        return self._states[index]

    def prepare(self, count: int) -> None:
        for index in range(len(self._states)):
            self._program(index, count)

    def _program(self, index: int, count: int) -> Any:
        own = jax.tree.structure((self.agents[index], self._states[index]))
        if (count, own) not in self._programs:
            compiled = compile_steps(*self._inputs(index, count))
            temporary, output = needs(compiled)
            check_memory(
                len(self._states),
                output,
                held=_size(self._states[index]),
                temporary=temporary,
                at_once=self._threads,
            )
            self._programs[count, own] = compiled
        return self._programs[count, own]

    def update(self, active: Sequence[int], count: int) -> dict[str, Any]:
        programs = {index: self._program(index, count) for index in active}

        def one(index: int) -> tuple[State, dict[str, Array]]:
            return jax.block_until_ready(programs[index](*self._inputs(index, count)))

        made = list(self._pool.map(one, active))
        for index, (state, _) in zip(active, made, strict=True):
            self._states[index] = state
        return jax.tree.map(lambda *rows: np.stack(rows), *(metrics for _, metrics in made))

    def _inputs(self, index: int, count: int) -> tuple[Any, ...]:
        own = self.agents[index], self._states[index]
        return (*own, self.data, count, self.batch_size, self.keys[index])


@dataclasses.dataclass
class Stacked(Together):
    """All runs' updates by one program, a `vmap` over their states."""

    def __post_init__(self):
        states, self._number = self.states, len(self.states)
        if any(jax.tree.structure(state) != jax.tree.structure(states[0]) for state in states):
            raise ValueError(
                "These runs differ in what is a part of the program, such as the support of a "
                "critic's values, which its discount decides: on this device train them one by one."
            )
        self._size = _size(states[0])
        check_memory(self._number, 2 * self._size)
        self._agents, self._states = stacked_agents(self.agents), stacked(states)
        keys = stacked([jax.random.key_data(key) for key in self.keys])
        self._keys = jax.random.wrap_key_data(keys)
        self._programs: dict[int, Any] = {}
        self._on_host: State | None = None

    def member(self, index: int) -> State:
        if self._on_host is None:
            self._on_host = jax.device_get(self._states)
        return jax.tree.map(lambda leaf: jax.device_put(np.asarray(leaf[index])), self._on_host)

    def prepare(self, count: int) -> None:
        if count not in self._programs:
            advance: Any = eqx.filter_jit(_advance)
            compiled = advance.lower(*self._inputs(range(self._number), count)).compile()
            each = sum(needs(compiled)) // self._number
            check_memory(self._number, each, held=self._size)
            self._programs[count] = compiled

    def update(self, active: Sequence[int], count: int) -> dict[str, Any]:
        self.prepare(count)
        self._states, metrics = self._programs[count](*self._inputs(active, count))
        self._on_host = None
        return metrics if len(active) == self._number else _rows(metrics, active)

    def _inputs(self, active: Sequence[int], count: int) -> tuple[Any, ...]:
        moves = jnp.asarray(np.isin(np.arange(self._number), active))
        arrays = (self._states, self.data, self._keys, moves)
        return (*self._agents, *arrays, count, self.batch_size)


def _rows(metrics: dict[str, Array], active: Sequence[int]) -> dict[str, Any]:
    return {name: np.asarray(values)[list(active)] for name, values in metrics.items()}


def _advance(
    varying: Agent,
    shared: Agent,
    states: State,
    data: Data,
    keys: Shaped[Array, "runs"],
    moves: Bool[Array, "runs"],
    num_updates: int,
    batch_size: int,
) -> tuple[State, dict[str, Float[Array, "runs updates"]]]:
    """Updates of all, of which those that do not move keep their state."""

    def one(varying: Agent, state: State, key: Any, moves: Any) -> tuple[State, Any]:
        agent = eqx.combine(varying, shared)
        update = update_on_sample(agent, data, batch_size, key)
        new, metrics = jax.lax.scan(update, state, None, length=num_updates)
        return jax.tree.map(lambda a, b: jnp.where(moves, a, b), new, state), metrics

    return eqx.filter_vmap(one)(varying, states, keys, moves)


def _size(state: State) -> int:
    return sum(leaf.nbytes for leaf in jax.tree.leaves(state))


def _check_together(configs: Sequence[TrainConfig], folders: Sequence[Path]) -> None:
    """Raises a `ValueError` unless these can be trained in one program, in these folders."""
    if not configs or len(configs) != len(folders):
        raise ValueError(
            f"There must be a folder for each of the configurations, and at least one: got "
            f"{len(configs)} configurations and {len(folders)} folders."
        )
    real = [folder.expanduser().resolve() for folder in folders]
    twice = [str(folder) for folder, at in zip(folders, real, strict=True) if real.count(at) > 1]
    if twice:
        raise ValueError(f"Every run needs a folder of its own: {twice[0]} is given twice.")
    if configs[0].online is not None:
        raise ValueError(
            "Runs that learn online act in environments of their own: train them one by one."
        )
    first = configs[0]
    for config in configs[1:]:
        same = jax.tree.structure(config.agent) == jax.tree.structure(first.agent)
        bad = [
            f"{name}: {a!r} and {b!r}"
            for name, a, b in differences(first, config)
            if name != "seed" and (name in OF_THE_DATA or not (same and _in_agent(first, name)))
        ]
        if bad:
            raise ValueError(
                "Runs in one program may differ in their seeds and in float hyperparameters, which "
                f"change no shapes; train these one by one: {'; '.join(bad)}."
            )


def _in_agent(config: TrainConfig, name: str) -> bool:
    return name.split(".")[0] in to_plain(config.agent)


def _check_all_begun(folders: Sequence[Path], resume: bool) -> None:
    """Raises a `ValueError` where some were trained before and others are not there.

    A process that was killed in its first moment leaves such folders, but nothing trained.
    """
    begun = [folder for folder in folders if (folder / "config.json").exists()]
    if not resume or len(begun) in (0, len(folders)):
        return
    trained = [
        f.name for f in begun if any(f.glob("checkpoints/[0-9]*")) or (f / "train.csv").exists()
    ]
    if trained:
        missing = [folder.name for folder in folders if folder not in begun]
        raise ValueError(
            f"Of these runs {', '.join(trained)} have been trained, and {', '.join(missing)} "
            "are not there: resume those alone, and start the others without --resume."
        )
