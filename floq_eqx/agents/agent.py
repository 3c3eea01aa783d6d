"""What every agent is: a frozen module of hyperparameters around pure functions of its state."""

import abc
import dataclasses
from collections.abc import Callable, Sequence
from typing import Any, TypeVar

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array, Float, Int, PyTree

from .._checks import check_fields, check_sizes
from .._types import (
    Action,
    AtLeastZero,
    AtLeastZeroNumber,
    Chunk,
    FloatLike,
    Key,
    Loss,
    Metrics,
    Observation,
)
from ..data.transitions import Batch
from ..data.windows import Data, sample_windows

T = TypeVar("T")
AgentT = TypeVar("AgentT", bound="Agent")


class State(eqx.Module):
    """Everything of an agent that evolves.

    **Attributes:**

    - `params`: what the optimiser moves.
    - `targets`: slow averages of a part of it.
    - `opt_state`: the optimiser's state.
    - `step`: the number of updates so far.
    """

    params: PyTree[Float[Array, "..."]]
    targets: PyTree[Float[Array, "..."]]
    opt_state: PyTree
    step: Int[Array, ""]


class Agent(eqx.Module):
    """An algorithm with its hyperparameters.

    Most algorithms are an [`floq_eqx.agents.ActorCritic`][]; one that is no critic and policy
    subclasses this.

    Float hyperparameters are Python numbers or scalar arrays; arrays can be changed, or vmapped
    over, without compiling again. Structural ones are static.

    Every random number of an update is made first, by `noise`; `loss` and `update` are
    deterministic functions of their arguments.

    **Arguments:**

    - `action_size`: The number of components of an action; `for_data` fills it in.
    - `learning_rate`: The learning rate of Adam.
    - `weight_decay`: The share of the parameters that Adam takes off them, times the learning rate,
        in every update: AdamW, arXiv 1711.05101.
    - `decay_updates`: Let the learning rate fall to zero as a cosine over so many updates; `None`
        keeps it, as the papers do.
    """

    action_size: int | None = eqx.field(static=True, default=None, kw_only=True)
    learning_rate: AtLeastZero = eqx.field(default=3e-4, kw_only=True)
    weight_decay: AtLeastZeroNumber = eqx.field(static=True, default=0.0, kw_only=True)
    decay_updates: int | None = eqx.field(static=True, default=None, kw_only=True)

    def __check_init__(self):
        check_fields(self)

    @property
    def name(self) -> str:
        """What it is called in files and figures."""
        return type(self).__name__

    @property
    def uses_next_action(self) -> bool:
        """Whether its batches need `next_action`."""
        return False

    @property
    def num_actions(self) -> int:
        """How many actions `act` chooses at once."""
        return 1

    @property
    def reward_bounds(self) -> tuple[FloatLike, FloatLike] | None:
        """The smallest and largest reward that it can represent the values of, if it has such."""
        return None

    @abc.abstractmethod
    def init(self, observation_size: int, action_size: int, *, key: Key) -> State:
        """The state before the first update.

        **Arguments:** the sizes of an observation and an action, and a key for the parameters.
        """

    @abc.abstractmethod
    def noise(self, batch_size: int, *, key: Key) -> Any:
        """Every random number that one update of a batch of this size takes."""

    @abc.abstractmethod
    def loss(self, params: Any, targets: Any, batch: Batch, noise: Any) -> Loss:
        """The loss whose gradient in `params` moves them, and metrics; nothing in it is random."""

    @abc.abstractmethod
    def next_targets(self, state: State) -> Any:
        """The targets after an update, from the state before it: as in the released code, they
        take in the parameters from before the step.
        """

    @abc.abstractmethod
    def act(self, state: State, observation: Observation, *, key: Key) -> Action | Chunk:
        """The action for one observation, each component in [-1, 1], as it is evaluated; of an
        agent that acts in chunks all of a chunk's, one after the other.
        """

    def sample(self, data: Data, batch_size: int, *, key: Key) -> Batch:
        """A batch of `data` for one update, drawn uniformly, with replacement."""
        return sample_windows(data, batch_size, key=key, **self.windows())

    def windows(self) -> dict[str, Any]:
        """The `length`, `discount` and `chunk` of the windows that it learns from."""
        return {"length": 1}

    def explore(self, state: State, observation: Observation, *, key: Key) -> Action | Chunk:
        """The action by which data is collected: `act`'s, unless that draws none."""
        return self.act(state, observation, key=key)

    def for_data(self: AgentT, data: Data) -> AgentT:
        """The agent with what it must know of the data: the size of an action and, where the agent
        has them, the smallest and largest reward.
        """
        return dataclasses.replace(self, action_size=data.action_size)

    def action_shape(self, *batch: int) -> tuple[int, ...]:
        """`(*batch, action_size)`, for drawing noise.

        **Raises:** `ValueError` if the agent does not know the size of an action, or a size in
        `batch` is not at least 1.
        """
        if self.action_size is None:
            raise ValueError(
                f"This {self.name} does not know the size of an action: make it with "
                "action_size=..., or from a dataset with agent.for_data(data)."
            )
        for size in batch:
            check_sizes(batch_size=size)
        return (*batch, self.action_size)

    def check_init_sizes(self, observation_size: int, action_size: int) -> None:
        """Raises a `ValueError` unless these are sizes that this agent can be initialised for."""
        check_sizes(observation_size=observation_size, action_size=action_size)
        if self.action_size not in (None, action_size):
            raise ValueError(
                f"This agent is made for actions of {self.action_size} components, got "
                f"action_size={action_size}."
            )

    def update(self, state: State, batch: Batch, noise: Any) -> tuple[State, Metrics]:
        """One step of Adam on `loss`, and one of the targets.

        **Returns:** the new state, and the metrics of the loss.
        """
        return self.descend(state, lambda params: self.loss(params, state.targets, batch, noise))

    def descend(self, state: State, objective: Callable[[Any], Loss]) -> tuple[State, Metrics]:
        """What `update` does, for any function of the parameters."""
        grad = eqx.filter_value_and_grad(objective, has_aux=True)
        (_, metrics), grads = grad(state.params)
        # Optax raises a float to an integer count, which strict promotion forbids.
        with jax.numpy_dtype_promotion("standard"):
            parameters = eqx.filter(state.params, eqx.is_inexact_array)
            updates, opt_state = self.optimiser().update(grads, state.opt_state, parameters)
        params = eqx.apply_updates(state.params, updates)
        return State(params, self.next_targets(state), opt_state, state.step + 1), metrics

    def optimiser(self) -> optax.GradientTransformation:
        """Adam at `learning_rate`, which falls to zero as a cosine over `decay_updates`.

        Its state has the same structure with a decay and without, so that a run can change it.
        """
        schedule = optax.constant_schedule(1.0)
        if self.decay_updates is not None:
            schedule = optax.cosine_decay_schedule(1.0, self.decay_updates)
        adam = optax.adam(self.learning_rate)
        if self.weight_decay:
            adam = optax.adamw(self.learning_rate, weight_decay=self.weight_decay)
        return optax.chain(adam, optax.scale_by_schedule(schedule))

    def check_decay(self, state: State, num_updates: int) -> None:
        """Raises a `ValueError` if the learning rate reaches zero before `num_updates` more.

        Nothing would be learned from then on, which no metric shows. The state's counters must be
        known, so not inside `jit`.
        """
        if self.decay_updates is None:
            return
        counts = optax.tree_utils.tree_get_all_with_path(state.opt_state, "count")
        done = max((int(jnp.max(count)) for _, count in counts), default=0)
        if done + num_updates > self.decay_updates:
            raise ValueError(
                f"The learning rate is zero after decay_updates = {self.decay_updates} updates, "
                f"and {done + num_updates} are asked for: raise decay_updates, or give None for a "
                "constant learning rate."
            )

    def fresh_state(self, params: Any, targets: Any) -> State:
        """A state with these parameters, a new optimiser and no updates."""
        opt_state = self.optimiser().init(eqx.filter(params, eqx.is_inexact_array))
        return State(params, targets, opt_state, step=jnp.zeros((), jnp.int32))


def average(slow: T, fast: T, rate: FloatLike) -> T:
    """`rate * fast + (1 - rate) * slow`, leaf by leaf: the exponential average of targets."""
    return jax.tree.map(lambda s, f: rate * f + (1 - rate) * s, slow, fast)


def stacked_agents(agents: Sequence[AgentT]) -> tuple[AgentT, AgentT]:
    """Agents that differ in their float hyperparameters alone, for a program of all of them.

    **Returns:** those in which they differ, with a leading axis of agents, and the agent without
    them; `eqx.combine` makes an agent of the two, inside a `vmap` over the first.

    **Raises:** `ValueError` if they differ in anything structural.
    """
    first, *others = agents
    if any(jax.tree.structure(first) != jax.tree.structure(other) for other in others):
        raise ValueError("The agents differ in more than float hyperparameters.")

    def varying_leaf(*leaves: Any) -> Any:
        same = all(leaf is leaves[0] or bool(np.all(leaf == leaves[0])) for leaf in leaves)
        return None if same else jnp.asarray(np.array(leaves, np.float32))

    varying = jax.tree.map(varying_leaf, first, *others)
    differs = jax.tree.map(lambda leaf: leaf is None, varying, is_leaf=lambda leaf: leaf is None)
    return varying, eqx.filter(first, differs)


def stacked(trees: Sequence[T]) -> T:
    """The trees as one, each of whose arrays has a leading axis of trees."""
    # On the host: JAX compiles this anew for every shape.
    return jax.tree.map(lambda *leaves: jax.device_put(np.stack(leaves)), *trees)


def frozen(tree: T) -> T:
    """`tree` without its gradient."""
    return jax.tree.map(jax.lax.stop_gradient, tree)
