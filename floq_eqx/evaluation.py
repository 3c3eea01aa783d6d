"""Rollouts of a policy: success, return and length over episodes that can be repeated."""

import contextlib
import dataclasses
import functools
import warnings
from collections.abc import Callable, Generator, Iterator, Sequence
from typing import Any, Literal, TypeAlias

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from ._checks import check_sizes
from ._types import Number
from .agents.agent import Agent, State, stacked, stacked_agents
from .data.environments import make_box_environment, making
from .data.episodes import (
    EnvironmentFaultError,
    Successes,
    observation_fault,
    one_line,
)
from .data.names import dataset_names
from .data.ogbench import make_environment


@dataclasses.dataclass(frozen=True)
class Evaluation:
    """What episodes came to; each array has one entry an episode.

    **Attributes:**

    - `success`: 1 where the last step's info said so, by `success` or `is_success`, else 0; NaN
        in all of them where no info of any step said either.
    - `returns`: the undiscounted sum of rewards.
    - `lengths`: the number of steps.
    """

    success: np.ndarray
    returns: np.ndarray
    lengths: np.ndarray

    def summary(self) -> dict[str, Number]:
        """Mean and standard deviation over episodes of each, and the number of episodes."""
        out: dict[str, Number] = {"episodes": len(self.success)}
        for name in ("success", "returns", "lengths"):
            values = getattr(self, name)
            out[name] = float(values.mean())
            out[f"{name}_std"] = float(values.std())
        return out


def evaluate(
    agent: Agent,
    state: State,
    environments: Any,
    *,
    num_episodes: int = 50,
    seed: int = 0,
    max_episode_steps: int = 10_000,
    before_step: Callable[[], None] = lambda: None,
) -> Evaluation:
    """Runs `num_episodes` episodes and says what they came to.

    Episode i is reset with the seed `seed + i` and acts on keys made from `seed`, i and the step,
    so the result does not depend on how many environments run side by side. The actions of a chunk
    are carried out one after the other, and the next chunk is chosen when they are used up.

    **Arguments:**

    - `agent`, `state`: who acts.
    - `environments`: from [`floq_eqx.evaluation.make_environments`][], or any Gymnasium vector
        environment with `autoreset_mode=AutoresetMode.DISABLED` and actions in [-1, 1].
    - `num_episodes`: at least 1.
    - `seed`: in [0, 2³¹).
    - `max_episode_steps`: an episode that does not end before is cut off there, and counts with
        its return and length so far; a warning says how many were.
    - `before_step`: called before every step; what it raises ends the evaluation.

    **Raises:** `ValueError` for an environment that resets by itself; `FloatingPointError` if the
    policy's action is NaN or infinite, and [`floq_eqx.training.EnvironmentFaultError`][] for an
    environment that raises, or returns what is no observation, reward or success; both name
    episode and step.
    """
    (result,) = evaluate_many(
        [agent],
        [state],
        [environments],
        num_episodes=num_episodes,
        seeds=[seed],
        max_episode_steps=max_episode_steps,
        before_step=before_step,
    )
    if isinstance(result, Exception):
        raise result
    return result


def evaluate_many(
    agents: Sequence[Agent],
    states: Sequence[State],
    environments: Sequence[Any],
    *,
    seeds: Sequence[int],
    num_episodes: int = 50,
    max_episode_steps: int = 10_000,
    before_step: Callable[[], None] = lambda: None,
) -> list[Evaluation | Exception]:
    """What [`floq_eqx.evaluation.evaluate`][] says of each of several agents; those of one program
    act in one call a step.

    **Arguments:** as there, but an agent, a state, environments and a seed for each.

    **Returns:** for each an evaluation, or the error that `evaluate` would raise once its episodes
    have begun.

    **Raises:** as `evaluate`.
    """
    check_sizes(num_episodes=num_episodes, max_episode_steps=max_episode_steps)
    rollouts = []
    for agent, own, seed in zip(agents, environments, seeds, strict=True):
        check_seed(seed)
        check_resets(own)
        rollouts.append(_rollout(own, num_episodes, seed, max_episode_steps, agent.num_actions))
    asked = [next(rollout) for rollout in rollouts]
    # Those of one program: a critic's support is a part of the program, not of its inputs.
    groups: dict[Any, list[int]] = {}
    for index, pair in enumerate(zip(agents, states, strict=True)):
        groups.setdefault((jax.tree.structure(pair), asked[index][0].shape), []).append(index)
    programs: list[tuple[list[int], Any]] = []
    for group in groups.values():
        of_group = stacked_agents([agents[index] for index in group])
        inputs = (stacked([states[i] for i in group]), np.array([seeds[i] for i in group]))
        programs.append((group, (*of_group, *inputs)))
    results: list[Any] = [None] * len(rollouts)
    while None in results:
        before_step()
        for group, inputs in programs:
            if all(results[index] is not None for index in group):
                continue
            arrays = [np.stack(each) for each in zip(*(asked[i] for i in group), strict=True)]
            actions = np.asarray(act_batch(*inputs, *arrays))
            for index, action in zip(group, actions, strict=True):
                if results[index] is None:
                    try:
                        asked[index] = rollouts[index].send(action)
                    except StopIteration as ended:
                        results[index] = ended.value
                    except Exception as error:
                        results[index] = error
    return results


_Asked: TypeAlias = tuple[np.ndarray, np.ndarray, np.ndarray]
"""The observations that actions are asked for, and of each its episode and the step in it."""


def _rollout(
    environments: Any, num_episodes: int, seed: int, max_episode_steps: int, num_actions: int
) -> Generator[_Asked, np.ndarray, Evaluation]:
    """Runs the episodes of one agent, and asks for its actions, of which it gets `num_actions`."""
    num = environments.num_envs
    successes, num_cut = Successes(), 0
    success = np.full(num_episodes, np.nan)
    returns = np.zeros(num_episodes)
    lengths = np.zeros(num_episodes, np.int64)

    # Which episode each environment is in, and at which step of it. Gymnasium steps them all, so
    # environments beyond the last episode go on with episodes that nobody looks at.
    episode, step = np.arange(num), np.zeros(num, np.int64)
    next_episode = num
    observation = np.zeros(environments.observation_space.shape, np.float32)
    chunk = np.zeros((num, num_actions, 0), np.float32)

    def reset(mask: np.ndarray) -> None:
        step[mask] = 0
        seeds = [seed + int(e) for e in episode]
        with faults_named(episode[mask], step[mask], "reset"):
            new, _ = environments.reset(seed=seeds, options={"reset_mask": mask})
        fault = observation_fault(new, observation.shape, mask & (episode < num_episodes))
        _raise_fault(fault, episode, step)
        observation[mask] = new[mask]

    reset(np.ones(num, bool))
    while (running := episode < num_episodes).any():
        # One that begins an episode asks for a chunk while others carry out theirs.
        asks = step % num_actions == 0
        if asks.any():
            chosen = yield observation, episode, step
            chosen = np.reshape(chosen, (num, num_actions, -1))
            chunk = chosen if asks.all() else np.where(asks[:, None, None], chosen, chunk)
        action = chunk[np.arange(num), step % num_actions]
        bad = np.flatnonzero(running & ~np.isfinite(action).all(axis=1))
        if len(bad):
            raise FloatingPointError(
                f"The policy's action is NaN or infinite in episode {episode[bad[0]]} at step "
                f"{step[bad[0]]}: the parameters are not finite, or the observation is too large."
            )
        step += 1
        with faults_named(episode[running], step[running], "step"):
            new, reward, terminated, truncated, info = environments.step(action)
        fault = observation_fault(new, observation.shape, running) or _reward_fault(reward, running)
        _raise_fault(fault, episode, step)
        observation[:] = new
        returns[episode[running]] += reward[running]
        over = terminated | truncated
        done = over | (step >= max_episode_steps)
        ended = running & done
        num_cut += int((ended & ~over).sum())
        lengths[episode[ended]] = step[ended]
        try:
            success[episode[ended]] = successes.read(info, running, ended)[ended]
        except ValueError as error:
            _raise_fault((str(error), ended), episode, step)
        for index in np.flatnonzero(done):
            episode[index] = next_episode
            next_episode += 1
        if done.any() and (episode < num_episodes).any():
            reset(done)
    if successes.told:
        success = np.nan_to_num(success)  # of those that ended before any had told
    if num_cut:
        warnings.warn(
            f"{num_cut} of {num_episodes} episodes did not end within {max_episode_steps} steps "
            "and were cut off there; max_episode_steps (--max-episode-steps) allows more.",
            stacklevel=2,
        )
    return Evaluation(success, returns, lengths)


def _reward_fault(reward: Any, rows: np.ndarray) -> tuple[str, np.ndarray] | None:
    if np.shape(reward) != rows.shape:
        return f"the shape of its rewards is {np.shape(reward)}, expected {rows.shape}", rows
    finite = np.isfinite(reward)
    if finite.all():
        return None
    bad = rows & ~finite
    return (f"its reward is {reward[bad][0]}", bad) if bad.any() else None


def _raise_fault(
    fault: tuple[str, np.ndarray] | None, episode: np.ndarray, step: np.ndarray
) -> None:
    if fault is not None:
        problem, rows = fault
        raise _fault(problem, episode[rows], step[rows])


def _fault(problem: str, episode: np.ndarray, step: np.ndarray) -> EnvironmentFaultError:
    """In one of these episodes: which, a vector environment that raised does not say."""

    def one_of(name: str, numbers: np.ndarray) -> str:
        known = [str(number) for number in np.unique(numbers)]
        return f"{name} {known[0]}" if len(known) == 1 else f"one of {name}s {', '.join(known)}"

    return EnvironmentFaultError(
        problem,
        step=int(step.max()),
        where=f"in {one_of('episode', episode)} at {one_of('step', step)}",
        episode=int(episode[0]) if len(episode) == 1 else None,
    )


@contextlib.contextmanager
def faults_named(episode: np.ndarray, step: np.ndarray, method: str) -> Iterator[None]:
    """Says of what an environment's method raises in which episodes and steps it was."""
    try:
        yield
    except Exception as error:
        raise _fault(f"its {method} raised {one_line(error)}", episode, step) from error


def check_resets(environments: Any) -> None:
    """Raises a `ValueError` for a vector environment that resets its episodes by itself.

    It would lose their last observations, and choose the seeds of the next.
    """
    from gymnasium.vector import AutoresetMode

    mode = environments.metadata.get("autoreset_mode")
    if mode != AutoresetMode.DISABLED:
        raise ValueError(
            "Needs a vector environment with autoreset_mode=AutoresetMode.DISABLED, whose episodes "
            f"are reset here, by their seed; got {mode}."
        )


def check_seed(seed: int) -> None:
    """Raises a `ValueError` for a seed that episodes cannot have."""
    # NumPy's global generator, which OGBench's mazes draw from, takes no larger seeds.
    if not 0 <= seed < 2**31:
        raise ValueError(f"seed must be in [0, 2**31), got {seed}.")


@eqx.filter_jit
def act_batch(
    varying: Agent,
    shared: Agent,
    states: State,
    seeds: Int[np.ndarray | Array, "agents"],
    observation: Float[np.ndarray | Array, "agents batch observation"],
    episode: Int[np.ndarray | Array, "agents batch"],
    step: Int[np.ndarray | Array, "agents batch"],
) -> Float[Array, "agents batch *chunk action"]:
    """What agents do when they are evaluated, on a key for each (seed, episode, step).

    **Arguments:** `varying`, `shared`: of [`floq_eqx.agents.agent.stacked_agents`][]; `states`:
    with a leading axis of agents.
    """

    def act_all(inputs: tuple[Any, ...]) -> Array:
        varying, state, seed, *asked = inputs
        agent, key = eqx.combine(varying, shared), jax.random.key(seed)

        def act(inputs: list[Array]) -> Array:
            observation, episode, step = inputs
            own = jax.random.fold_in(jax.random.fold_in(key, episode), step)
            return agent.act(state, observation, key=own)

        return jax.lax.map(act, asked)

    # Not vmap: the rounding of a batched product depends on the size of the batch, and a rollout
    # is chaotic. For networks of this size one after the other is as fast.
    inputs = (varying, states, seeds, observation, episode, step)
    return jax.lax.map(act_all, jax.tree.map(jnp.asarray, inputs))


def make_environments(
    name: str,
    /,
    num: int = 10,
    *,
    asynchronous: bool = False,
    success_timing: Literal["pre", "post"] | None = None,
    sparse: bool = False,
    **kwargs: Any,
) -> Any:
    """`num` copies of an environment, as a Gymnasium vector environment.

    **Arguments:**

    - `name`: an OGBench name such as `cube-single-play-singletask-task1-v0`, or the id of any
        Gymnasium environment whose observations and actions are boxes, such as `Pendulum-v1`; see
        [`floq_eqx.data.environments.make_box_environment`][].
    - `num`: how many run side by side.
    - `asynchronous`: each in a process of its own, instead of one after the other in this one;
        scripts then need the `if __name__ == "__main__":` guard of `multiprocessing`.
    - `success_timing`: whether success and reward are those of the state before a step (`"pre"`,
        OGBench from 1.2 on) or after it (`"post"`, before; published numbers are made so).
    - `sparse`: whether the rewards of an OGBench task are -1 unless it is solved.
    - `**kwargs`: for the environment.

    **Raises:** `ValueError` for an environment that is not known, cannot be made, or is not of
    boxes, and for a `success_timing` or `sparse` of one that is not OGBench's.
    """
    from gymnasium.vector import AsyncVectorEnv, AutoresetMode, SyncVectorEnv

    check_sizes(num=num)
    own: dict[str, Any] = {"success_timing": success_timing, "sparse": sparse}
    for option, value in own.items():
        if value and name not in dataset_names():
            raise ValueError(f"{option} = {value!r} means nothing: {name} is not OGBench's.")
    make = functools.partial(_seeded, name, own, kwargs)
    mode = AutoresetMode.DISABLED
    if asynchronous:
        try:
            return AsyncVectorEnv([make] * num, context="spawn", autoreset_mode=mode)
        except ValueError:  # the first is made here, and says it all
            raise
        except Exception as error:
            raise ValueError(
                f"{name} can be made here, but not in a process of its own: {one_line(error)}. "
                "What a script registers is not known there: give its id as module:Id-v0."
            ) from error
    return SyncVectorEnv([make] * num, autoreset_mode=mode)


def _seeded(name: str, own: dict, kwargs: dict) -> Any:
    import gymnasium

    class SeededReset(gymnasium.Wrapper):
        """OGBench's mazes draw from NumPy's global generator: seed it around each reset."""

        def reset(self, *, seed: int | None = None, options: dict | None = None):
            before = np.random.get_state()  # noqa: NPY002
            np.random.seed(seed)  # noqa: NPY002
            try:
                return self.env.reset(seed=seed, options=options)
            finally:
                np.random.set_state(before)  # noqa: NPY002

    if name not in dataset_names():
        return make_box_environment(name, **kwargs)
    with making(name):
        environment = make_environment(name, **own, **kwargs)
    return SeededReset(environment)
