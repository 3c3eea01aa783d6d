"""What is done between chunks of a run: its tables, checkpoints, evaluations and progress bar."""

import contextlib
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np

from .._progress import progress_bar
from .._types import Number
from ..agents.agent import Agent, State
from ..data import Replay
from ..data.episodes import close_or_warn
from ..evaluation import Evaluation, check_resets, evaluate_many, make_environments
from .config import TrainConfig
from .interruption import Interrupted, Stop
from .loggers import Logger
from .run import Run

_SIDE_BY_SIDE = 10  # environments in which episodes of an evaluation run


class Watch:
    """What is done between chunks: rows in the tables, checkpoints, evaluations, the bar."""

    def __init__(
        self,
        *,
        run: Run,
        agent: Agent,
        writer: Any,
        logger: Logger,
        report: Callable[[str], None],
        stop: Stop,
        stack: contextlib.ExitStack,
        progress: bool,
        environments: Any = None,
    ):
        self.run, self.agent, self.writer, self.logger = run, agent, writer, logger
        self.report, self.stop, self.progress = report, stop, progress
        self._stack, self._environments, self._show = stack, environments, lambda step: None
        rows, evaluations = run.table("train.csv"), run.table("evaluation.csv")
        # An evaluation takes time after the row of its step.
        told = [r["seconds"] for r in (*rows, *evaluations)]
        self._start = time.perf_counter() - max(told, default=0.0)
        self.logged = int(rows[-1]["step"]) if rows else 0
        self._saved = max(run.steps(), default=0)
        self._assessed = int(max((r["step"] for r in evaluations), default=0))

    @contextlib.contextmanager
    def bar(self, unit: str, initial: int, total: int) -> Iterator[None]:
        """Shows one while it lasts."""
        with progress_bar(unit, total=total, initial=initial, show=self.progress) as self._show:
            yield

    def between(self, done: int) -> bool:
        """Shows how many updates or steps are done, and says whether to stop there."""
        self._show(done)
        return self.stop()

    def after_chunk(
        self,
        step: int,
        state: State,
        rates: dict[str, float],
        metrics: dict[str, Number],
        replay: Replay | None = None,
        *,
        leave: bool = False,
    ) -> None:
        """A row, and what is due of a checkpoint and an evaluation, in this order: an evaluation
        that was missed is made up for when the run is resumed. To `leave`, only save.
        """
        self.note(step, state, rates, metrics, replay, leave=leave)
        settle([(self, step, state, replay)], leave=leave)

    def note(
        self,
        step: int,
        state: State,
        rates: dict[str, float],
        metrics: dict[str, Number],
        replay: Replay | None = None,
        *,
        leave: bool = False,
    ) -> None:
        """The row, and the checkpoint if one is due."""
        config = self.run.config
        row = self._counts(step, state) | rates | dict(sorted(metrics.items()))
        self.logger.log(step, row, table="train")
        self.logged = step
        if (
            leave
            or self.stop()
            or self._due(step, config.checkpoint_every, self._saved)
            or (self.wants_evaluation(step) and config.keep == "best")
        ):
            self.save(step, state, replay)

    def save(self, step: int, state: State, replay: Replay | None = None) -> None:
        if step not in self.run.steps():
            self.run.save(self.writer, state, step=step, replay=replay)
        self._saved = step

    def assess_if_due(self, step: int, state: State) -> None:
        """An evaluation that is made up for, of what is saved already."""
        assess([(self, step, state, None)])

    @property
    def evaluates(self) -> bool:
        """Whether there is an environment to evaluate in."""
        return self._environments is not None or self.run.config.environment is not None

    def wants_evaluation(self, step: int) -> bool:
        return self.evaluates and self._due(step, self.run.config.evaluate_every, self._assessed)

    def environments(self, num: int) -> Any:
        """Those that it is evaluated in, made when they are first asked for."""
        if self._environments is None:
            config = self.run.config
            self._environments = make_world(config, min(num, config.evaluation_episodes))
            self._stack.callback(close_or_warn, "an environment", self._environments.close)
        return self._environments

    def take(self, result: Evaluation, step: int, state: State) -> None:
        """A row of the evaluations, and a line."""
        row = self._counts(step, state) | result.summary()
        self.logger.log(step, row, table="evaluation")
        self._assessed = step
        steps = step - self.run.config.num_updates
        where = f"update {int(state.step)}" if steps <= 0 else f"environment step {steps}"
        self.say(f"{where}: {describe(result)}")

    def tells_success(self) -> bool:
        """Whether an episode of the run told success before, online or in an evaluation."""
        online = [row.get("episode_success") for row in self.run.table("train.csv")]
        evaluated = [row.get("success") for row in self.run.table("evaluation.csv")]
        return any(told is not None and not np.isnan(told) for told in online + evaluated)

    def say_failed(self, error: BaseException, step: int) -> None:
        """Says that an evaluation failed, and what is saved."""
        text = f"what was trained until step {step} is saved in {self.run.folder}"
        error.add_note(f"In an evaluation; {text}.")
        self.say(f"the evaluation failed, and {text}")

    def say(self, line: str) -> None:
        from tqdm import tqdm

        with tqdm.external_write_mode():
            self.report(line)

    def _due(self, step: int, every: int, last: int) -> bool:
        """Whether a multiple has been passed since: several environments may step over it."""
        ends = (self.run.config.num_updates, self.run.config.last_step)
        return step // every > last // every or (step in ends and step != last)

    def _counts(self, step: int, state: State) -> dict[str, Number]:
        seconds = {"seconds": time.perf_counter() - self._start}
        if self.run.config.online is None:
            return seconds
        env_steps = max(0, step - self.run.config.num_updates)
        return seconds | {"updates": int(state.step), "env_steps": env_steps}


def settle(
    runs: Sequence[tuple[Watch, int, State, Replay | None]], *, leave: bool = False
) -> dict[Watch, Exception]:
    """What follows the rows of a chunk: evaluations, unless to `leave`, and fewer checkpoints.

    After a signal it saves and raises `Interrupted`.

    **Arguments:** `runs`: as in `assess`. **Returns:** as there.
    """
    failed: dict[Watch, Exception] = {}
    if not runs:
        return failed
    stop = runs[0][0].stop
    if not (leave or stop()):
        failed = assess(runs)
    for watch, *_ in runs:
        watch.run.prune()
    if stop():  # since it was asked for above
        for watch, step, state, replay in runs:
            watch.save(step, state, replay)
        stop.check()
    return failed


def assess(
    runs: Sequence[tuple[Watch, int, State, Replay | None]],
) -> dict[Watch, Exception]:
    """Evaluates those of the runs that are due, side by side; what fails there loses no training.

    **Arguments:** `runs`: each with the number of steps, the state after them and the buffer.

    **Returns:** of several runs, the errors of those whose evaluation failed; of one it is raised.
    """
    due = [entry for entry in runs if entry[0].wants_evaluation(entry[1])]
    failed: dict[Watch, Exception] = {}
    if not due:
        return failed
    config = due[0][0].run.config
    try:
        results = evaluate_many(
            [watch.agent for watch, *_ in due],
            [state for _, _, state, _ in due],
            [watch.environments(-(-_SIDE_BY_SIDE // len(due))) for watch, *_ in due],
            num_episodes=config.evaluation_episodes,
            max_episode_steps=config.max_episode_steps,
            seeds=[watch.run.config.seed for watch, *_ in due],
            before_step=due[0][0].stop.check,
        )
        for (watch, step, state, replay), result in zip(due, results, strict=True):
            if isinstance(result, Exception):
                if len(runs) == 1:
                    raise result
                watch.save(step, state, replay)
                watch.say_failed(result, step)
                failed[watch] = result
            else:
                watch.take(result, step, state)
    except (Interrupted, Exception) as error:
        for watch, step, state, replay in runs:
            watch.save(step, state, replay)
            if not isinstance(error, Interrupted):
                watch.say_failed(error, step)
        raise
    return failed


def check_own_environments(config: TrainConfig, environments: Any) -> None:
    """Raises a `ValueError` for environments that a run could not be evaluated in."""
    if config.environment is not None:
        raise ValueError(
            f"The configuration names the environment {config.environment}, and environments of "
            "your own are given too: give one of them."
        )
    check_resets(environments)


def make_world(config: TrainConfig, num: int) -> Any:
    """As many copies of a run's environment.

    **Raises:** `ValueError` if it has none; as [`floq_eqx.evaluation.make_environments`][].
    """
    if config.environment is None:
        raise ValueError("The run has no environment: name one (--env).")
    return make_environments(
        config.environment,
        num,
        success_timing=config.success_timing,
        sparse=config.sparse,
        **config.environment_kwargs,
    )


def describe(result: Evaluation) -> str:
    """One line: success, return and length, each with its standard deviation over episodes."""
    s = result.summary()
    success = "" if np.isnan(s["success"]) else f"success {s['success']:.2f}, "
    return (
        f"{success}return {s['returns']:.1f} ± {s['returns_std']:.1f}, "
        f"length {s['lengths']:.0f} ± {s['lengths_std']:.0f} ({len(result.success)} episodes)"
    )
