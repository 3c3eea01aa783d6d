"""What is checked of an agent, its state and the data before and while it learns from them."""

import contextlib
import warnings
from collections.abc import Iterator
from typing import Any

import equinox as eqx
import jax
import jax.core
import numpy as np

from ..agents.agent import Agent, State
from ..data.checks import check_batch
from ..data.windows import Data, Trajectories


def check_fits(agent: Agent, data: Data) -> None:
    """Raises a `ValueError` unless the data are whole, and what the agent learns from."""
    check_batch(data)
    size = data.action_size
    if agent.action_size not in (None, size):
        raise ValueError(
            f"This {agent.name} is made for actions of {agent.action_size} components, "
            f"and those of the data have {size}: use agent.for_data(data), and init a new state."
        )
    has = data.with_next_action if isinstance(data, Trajectories) else data.next_action is not None
    if agent.uses_next_action and not has:
        raise ValueError(
            f"{agent.name} needs the data's `next_action`, which they lack: load them "
            "with with_next_action=True."
        )
    length = agent.windows()["length"]
    if length > 1 and isinstance(data, Trajectories) and not isinstance(data.left, jax.core.Tracer):
        longest = int(np.max(data.left, initial=0))
        if longest < length:
            raise ValueError(
                f"{agent.name} learns from windows of {length} steps, and the longest trajectory "
                f"has {longest}: take a smaller chunk or n_step, or longer trajectories."
            )


@contextlib.contextmanager
def explained(agent: Agent, state: State, observation_size: int) -> Iterator[None]:
    """Says of an error in a program's tracing if the state is made for other observations.

    Only afterwards, since it takes time to find out.
    """
    try:
        yield
    except (TypeError, ValueError) as error:
        own = _observation_size(agent, state, observation_size)
        if own in (None, observation_size):
            raise
        raise ValueError(
            f"The state is made for observations of {own} components, and here they have "
            f"{observation_size}: use the data or the environment that it was made for, or init a "
            "new state."
        ) from error


def _observation_size(agent: Agent, state: State, guess: int) -> int | None:
    """The size of the observations that a state is for, if it can be told from its parameters."""
    if agent.action_size is None:
        return None
    action_size: int = agent.action_size

    def shapes(size: int) -> list[tuple[int, ...]]:
        made = eqx.filter_eval_shape(
            lambda key: agent.init(size, action_size, key=key).params, jax.random.key(0)
        )
        return [leaf.shape for leaf in jax.tree.leaves(made)]

    try:
        got = [leaf.shape for leaf in jax.tree.leaves(state.params)]
        expected = shapes(guess)
        for a, b in zip(got, expected, strict=True):
            if a != b:
                # The first layer grows with the observation, by one row for each component.
                size = guess + sum(a) - sum(b)
                return size if shapes(size) == got else None
    except Exception:  # The agent's own; what went wrong is told by the error that led here.
        return None
    return guess


class RewardWatch:
    """Warns once of rewards outside what an agent is made for, if it has such bounds."""

    def __init__(self, agent: Agent, which: str):
        self._name, self._which = agent.name, which
        bounds = agent.reward_bounds
        # Bounds that are traced or swept over are not known here.
        if bounds is not None and any(isinstance(b, jax.core.Tracer) or np.ndim(b) for b in bounds):
            bounds = None
        self._bounds: Any = bounds
        self._count, self._outside, self._low, self._high = 0, 0, np.inf, -np.inf

    def see(self, rewards: Any) -> None:
        """Counts these, and warns if they are the first with some outside."""
        if self._bounds is None or not len(rewards):
            return
        rewards, warned = np.asarray(rewards), self._outside > 0
        # As precise as the rewards: a bound of -0.1 holds the float32 that was made of it.
        low, high = (rewards.dtype.type(bound) for bound in self._bounds)
        self._count += len(rewards)
        self._outside += int(((rewards < low) | (rewards > high)).sum())
        self._low, self._high = min(self._low, rewards.min()), max(self._high, rewards.max())
        if self._outside and not warned:
            warnings.warn(
                f"{self._outside:,} of {self._count:,} rewards {self._which} lie outside "
                f"[reward_min, reward_max] = [{low!s}, {high!s}]: they are between {self._low!s} "
                f"and {self._high!s}. {self._name} may not be able to represent the values that "
                "follow from them: begin anew with bounds that hold them, reward_min and "
                "reward_max of the critic (--reward-min and --reward-max), or agent.for_data(data) "
                "with data that have such rewards.",
                stacklevel=3,
            )
