"""Learning online: steps of an environment and updates in turn."""

import dataclasses
import functools
import time
from collections.abc import Callable, Iterable
from typing import Any, Literal

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from .._checks import check_choice, check_sizes
from .._types import Key, Number, Scalar
from ..agents.agent import Agent, State
from ..data import Batch, Data, Replay, sample_mixture
from ..data.episodes import EnvironmentFaultError, Successes, observation_fault, one_line
from ..evaluation import check_resets
from .checks import RewardWatch, check_fits, explained
from .loop import DivergedError, raise_if_diverged, with_arrays


@dataclasses.dataclass(frozen=True)
class OnlineProgress:
    """What a callback of [`floq_eqx.training.fit_online`][] sees after each chunk of steps.

    **Attributes:**

    - `step`: environment steps so far.
    - `state`, `replay`: after them; they are overwritten afterwards, so copy what is to be kept.
    - `metrics`: the means over the chunk's updates of every metric; empty before the first.
    - `episodes`: the `return`, the `length` and the `success` (0 or 1) of every episode that ended
        in the chunk; those that ended before any info told success have no `success`.
    - `env_steps_per_second`, `updates_per_second`: in the chunk.
    """

    step: int
    state: State
    replay: Replay
    metrics: dict[str, float]
    episodes: list[dict[str, float]]
    env_steps_per_second: float
    updates_per_second: float


def fit_online(
    agent: Agent,
    state: State,
    replay: Replay,
    environments: Any,
    *,
    num_steps: int,
    batch_size: int,
    key: Key,
    utd: int = 1,
    warmup: int = 0,
    offline: Data | None = None,
    offline_fraction: Number = 0.5,
    start: int = 0,
    chunk: int = 1000,
    seed: int = 0,
    warmup_with: Literal["random", "policy"] = "random",
    callbacks: Iterable[Callable[[OnlineProgress], None]] = (),
    between: Callable[[int], bool] = lambda step: False,
    tells_success: bool = False,
) -> tuple[State, Replay]:
    """Acts, remembers and learns until `num_steps` environment steps are done.

    A transition that ends its episode keeps the episode's own last observation; if it was
    truncated, its value is bootstrapped. The random numbers of a step depend on `key` and its
    number alone.

    **Arguments:**

    - `agent`, `state`: who learns, from scratch or from offline training.
    - `replay`: what the updates draw from; with the offline data in it
        ([`floq_eqx.data.Replay.from_data`][]) this is the papers' protocol.
    - `environments`: as for [`floq_eqx.evaluation.evaluate`][]; each of its environments' steps
        counts.
    - `num_steps`: environment steps, with those before `start`.
    - `batch_size`: transitions in an update.
    - `key`: one key for the whole run.
    - `utd`: updates for each environment step, made in one `lax.scan`.
    - `warmup`: environment steps without updates, at the beginning.
    - `warmup_with`: actions of the warm-up: at random, or by the policy as it is.
    - `offline`: offline transitions that are no part of `replay`, for batches of both (RLPD,
        arXiv 2302.02948): `offline_fraction` of each.
    - `start`: environment steps that are done already.
    - `chunk`: environment steps between callbacks.
    - `seed`: of the environments' resets.
    - `callbacks`: called in order after every chunk: evaluation, logging, checkpoints.
    - `between`: called after every environment step with their number so far; if it returns true,
        the chunk ends there, and the training after its callbacks.
    - `tells_success`: the environments are known to tell success, so that an episode whose last
        info does not has failed; otherwise that is so once one has told.

    **Returns:** the state and the replay at the end.

    **Raises:** `EnvironmentFaultError`; `DivergedError` after a chunk in which a metric or a
    parameter became NaN or infinite; `ValueError` for an agent that needs the data's next actions,
    or whose learning rate decays to zero before the last update, and if `replay` or `offline` are
    of other sizes than agent, state and environment.

    Warns once, after a chunk, of rewards outside the agent's `reward_min` and `reward_max`, if it
    has them.
    """
    check_sizes(num_steps=num_steps, batch_size=batch_size, utd=utd, chunk=chunk)
    if agent.uses_next_action:
        raise ValueError(
            f"{type(agent).__name__} needs the data's next action, which is not known online."
        )
    check_choice("warmup_with", warmup_with, Literal["random", "policy"])
    for data in (replay.data, offline):
        if data is not None:
            check_fits(agent, data)
    agent.check_decay(state, max(0, num_steps - max(start, warmup)) * utd)
    callbacks = tuple(callbacks)
    # Copies, since the loop writes both in place.
    state, replay = jax.tree.map(jnp.copy, (state, replay.interrupted()))
    inputs = _Inputs(
        with_arrays(agent), offline, offline_fraction, batch_size, utd * environments.num_envs, key
    )
    world = _World(environments, seed=seed, step=start, tells_success=tells_success)
    watch = RewardWatch(agent, "of the environment so far")
    how = _Schedule(warmup, warmup_with == "random", between, watch)
    action = None
    while world.step < num_steps and not how.stopped:
        end = min(world.step - world.step % chunk + chunk, num_steps)
        with explained(agent, state, environments.observation_space.shape[-1]):
            now, action = _learn_until(end, inputs, state, replay, world, action, how)
        state, replay = now.state, now.replay
        for callback in callbacks:
            callback(now)
    return state, replay


@dataclasses.dataclass
class _Schedule:
    """Until when there are no updates, whose actions come first, whether to stop, and what is seen
    of the rewards.
    """

    warmup: int
    random: bool
    between: Callable[[int], bool]
    rewards: RewardWatch
    stopped: bool = False


class _Inputs(eqx.Module):
    """What stays the same throughout."""

    agent: Agent
    offline: Data | None
    offline_fraction: Number = eqx.field(static=True)
    batch_size: int = eqx.field(static=True)
    num_updates: int = eqx.field(static=True)
    key: Key

    def draw(self, replay: Replay, *, key: Key) -> Batch:
        windows = self.agent.windows()
        if self.offline is None:
            return replay.windows(self.batch_size, key=key, **windows)
        sizes = (self.batch_size, self.offline_fraction)
        return sample_mixture(self.offline, replay, *sizes, key=key, **windows)


def _learn_until(
    end: int,
    inputs: _Inputs,
    state: State,
    replay: Replay,
    world: "_World",
    action: Array | None,
    how: _Schedule,
) -> tuple[OnlineProgress, Array | None]:
    """One chunk, with the next action."""
    began, first, fault = time.perf_counter(), world.step, None
    history: list[dict[str, Scalar]] = []
    learned_at: list[int] = []
    rewards: list[np.ndarray] = []
    world.episodes = []
    try:
        while world.step < end and not how.stopped:
            warming = world.step < how.warmup
            if warming and how.random:
                chosen = world.random_action()
            else:
                if action is None:
                    action = _explore(inputs, state, world.observation, np.asarray(world.step))
                chosen, action = world.next_of(np.asarray(action)), None
                if not np.isfinite(chosen).all():
                    raise DivergedError(int(state.step), ["the policy's action"], world.step)
            transition, ahead = world.advance(chosen)
            rewards.append(transition["reward"])
            replay = _remember(transition, ahead, replay)
            if not warming:
                now = world.observation, np.asarray(world.step)
                state, metrics, action = _learn(inputs, replay, state, *now)
                history.append(metrics)
                learned_at.append(world.step)
            how.stopped = how.between(world.step)
    except EnvironmentFaultError as error:
        fault = error
    how.rewards.see(np.concatenate([*rewards, np.zeros(0, np.float32)]))
    history = jax.device_get(history)  # at once, and when the updates are done
    columns = {name: np.array([row[name] for row in history]) for name in (history or [{}])[0]}
    each = {name: column.repeat(inputs.num_updates) for name, column in columns.items()}
    steps = [step for step in learned_at for _ in range(inputs.num_updates)]
    raise_if_diverged(int(state.step), len(steps), each, state, steps)
    metrics = {name: float(column.mean()) for name, column in columns.items()}
    seconds = time.perf_counter() - began
    progress = OnlineProgress(
        step=world.step,
        state=state,
        replay=replay,
        metrics=metrics,
        episodes=world.episodes,
        env_steps_per_second=(world.step - first) / seconds,
        updates_per_second=len(history) * inputs.num_updates / seconds,
    )
    if fault is not None:
        fault.progress = progress
        raise fault
    return progress, action


# Two calls, because one that both writes and reads the buffer copies it. And `jax.jit`, because at
# every step the time to take modules apart counts: all their leaves are arrays here.
@functools.partial(jax.jit, donate_argnums=2)
def _remember(transition: dict[str, Array], ahead: Array, replay: Replay) -> Replay:
    return replay.add(Batch(**transition), ahead)


@functools.partial(jax.jit, donate_argnums=2)
def _learn(
    inputs: _Inputs, replay: Replay, state: State, observation: Array, step: Array
) -> tuple[State, dict[str, Scalar], Float[Array, "batch *chunk action"]]:
    """The updates of a step, and the next actions."""

    def one(state: State, _: None) -> tuple[State, dict[str, Scalar]]:
        key = jax.random.fold_in(jax.random.fold_in(inputs.key, 1), state.step)
        batch_key, noise_key = jax.random.split(key)
        batch = inputs.draw(replay, key=batch_key)
        return inputs.agent.update(
            state, batch, inputs.agent.noise(inputs.batch_size, key=noise_key)
        )

    state, metrics = jax.lax.scan(one, state, None, length=inputs.num_updates)
    return state, jax.tree.map(jnp.mean, metrics), _explore(inputs, state, observation, step)


@jax.jit
def _explore(
    inputs: _Inputs, state: State, observation: Array, step: Array
) -> Float[Array, "batch *chunk action"]:
    """An action, or a chunk of them, for every environment, on keys of their own."""
    key = jax.random.fold_in(jax.random.fold_in(inputs.key, 0), step)
    keys = jax.random.split(key, len(observation))
    return jax.vmap(lambda o, k: inputs.agent.explore(state, o, key=k))(observation, keys)


class _World:
    """A vector environment between two steps."""

    def __init__(self, environments: Any, *, seed: int, step: int, tells_success: bool):
        check_resets(environments)
        self.successes = Successes(tells_success)
        self.environments, self.seed, self.step = environments, seed, step
        self.num = environments.num_envs
        self.returns, self.lengths = np.zeros(self.num), np.zeros(self.num, np.int64)
        self.episodes: list[dict[str, float]] = []
        # Of the actions that were chosen at once: the chunks, and how many were carried out.
        self.chunk, self.used = np.zeros((self.num, 0, 0)), np.zeros(self.num, np.int64)
        self.observation = np.zeros(environments.observation_space.shape, np.float32)
        self.reset(np.ones(self.num, bool))

    def reset(self, mask: np.ndarray) -> None:
        """Starts an episode where the mask is true, on a seed of its own."""
        # Of step and environment, so that a run that continues meets no episode again.
        seeds = [(self.seed + 7919 * self.step + index) % 2**31 for index in range(self.num)]
        new = self.call("reset", seed=seeds, options={"reset_mask": mask})[0]
        self.check(new)
        self.observation = np.where(mask[:, None], new, self.observation).astype(np.float32)
        self.returns[mask], self.lengths[mask], self.used[mask] = 0, 0, 0

    def random_action(self) -> np.ndarray:
        """Uniform in [-1, 1], of the step's own random numbers."""
        generator = np.random.default_rng([self.seed, self.step])
        self.used[:] = 0
        return generator.uniform(-1, 1, self.environments.action_space.shape).astype(np.float32)

    def next_of(self, chosen: np.ndarray) -> np.ndarray:
        """The next action of each environment's chunk, or of the one that is chosen now where there
        is none left.
        """
        if chosen.ndim == 2:
            return chosen
        length = chosen.shape[1]
        anew = self.used % length == 0
        old = self.chunk if self.chunk.shape == chosen.shape else chosen
        self.chunk = np.where(anew[:, None, None], chosen, old)
        action = self.chunk[np.arange(self.num), self.used % length]
        self.used += 1
        return action

    def advance(self, action: np.ndarray) -> tuple[dict[str, np.ndarray], np.ndarray]:
        """Makes a step in each environment, and starts new episodes where theirs ended.

        **Returns:** the transitions, and how many after each the next one of its episode comes.
        """
        new, reward, terminated, truncated, info = self.call("step", action)
        self.check(new, reward)
        before, self.observation = self.observation, np.asarray(new, np.float32)
        transition = {
            "observation": before,
            "action": action,
            "reward": np.asarray(reward, np.float32),
            "mask": np.asarray(~terminated, np.float32),
            "next_observation": self.observation,
        }
        done = terminated | truncated
        try:
            success = self.successes.read(info, np.ones(self.num, bool), done)
        except ValueError as error:
            raise self.fault(str(error)) from None
        self.step += self.num
        self.returns += reward
        self.lengths += 1
        for index in np.flatnonzero(done):
            ended = {"return": self.returns[index], "length": self.lengths[index]}
            if self.successes.told:
                ended["success"] = success[index]
            self.episodes.append({name: float(value) for name, value in ended.items()})
        if done.any():
            self.reset(done)
        return transition, np.where(done, 0, self.num).astype(np.int32)

    def call(self, method: str, *args: Any, **kwargs: Any) -> Any:
        try:
            return getattr(self.environments, method)(*args, **kwargs)
        except Exception as error:
            raise self.fault(f"its {method} raised {one_line(error)}") from error

    def check(self, observation: Any, reward: Any = 0.0) -> None:
        shape = self.environments.observation_space.shape
        fault = observation_fault(observation, shape, np.ones(self.num, bool))
        if fault is not None:
            raise self.fault(fault[0])
        if not np.isfinite(reward).all():
            raise self.fault(f"its reward is {reward}")

    def fault(self, problem: str) -> EnvironmentFaultError:
        return EnvironmentFaultError(
            problem,
            step=self.step,
            where=f"at step {self.step}",
            advice="What was learned before is kept; mend the environment and continue.",
        )
