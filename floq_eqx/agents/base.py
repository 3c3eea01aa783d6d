"""What every agent is: a frozen module of hyperparameters around pure functions of its state."""

import abc
import dataclasses
from collections.abc import Callable
from typing import Any, ClassVar, TypeVar, get_args

import equinox as eqx
import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Float, Int, PyTree

from .._types import Action, FloatLike, Key, Metrics, Number, Observation, Scalar
from ..data.transitions import Batch, reward_range
from ..targets import Aggregation

Noise = Any
T = TypeVar("T")
AgentT = TypeVar("AgentT", bound="Agent")

OF_THE_DATA = ("action_size", "reward_min", "reward_max")
"""The hyperparameters that `Agent.for_data` fills in."""

# What hyperparameters of these names may be, whichever agent has them; the last says whether the
# upper end is excluded.
_RANGES = {
    "learning_rate": (0, float("inf"), False),
    "target_rate": (0, 1, False),
    "discount": (0, 1, True),
    "alpha": (0, float("inf"), False),
    "expectile": (0, 1, True),
    "temperature": (0, float("inf"), False),
}
_COUNTS = (
    "decay_updates",
    "ensemble_size",
    "flow_steps",
    "num_noise",
    "num_steps",
    "num_candidates",
)


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

    Float hyperparameters are Python numbers or scalar arrays; arrays can be changed, or vmapped
    over, without compiling again. Structural ones are static.

    Every random number of an update is made first, by `noise`; `loss` and `update` are
    deterministic functions of their arguments.
    """

    uses_next_action: ClassVar[bool] = False
    """Whether its batches need `next_action`."""

    action_size: eqx.AbstractVar[int | None]
    learning_rate: eqx.AbstractVar[FloatLike]
    decay_updates: eqx.AbstractVar[int | None]

    def __check_init__(self):
        for name, (low, high, open_high) in _RANGES.items():
            if hasattr(self, name):
                check_range(name, getattr(self, name), low, high, open_high=open_high)
        counts = {name: getattr(self, name) for name in _COUNTS if hasattr(self, name)}
        check_sizes(**{name: count for name, count in counts.items() if count is not None})
        if hasattr(self, "aggregation"):
            check_choice("aggregation", self.aggregation, Aggregation)  # pyright: ignore
        rewards = [getattr(self, name, None) for name in ("reward_min", "reward_max")]
        low, high = (r if isinstance(r, int | float) else None for r in rewards)
        if low is not None and high is not None and not low < high:
            raise ValueError(
                f"Needs reward_min < reward_max, got {low} and {high}: with equal rewards every "
                "value is the same and their interval is empty."
            )

    @abc.abstractmethod
    def init(self, observation_size: int, action_size: int, *, key: Key) -> State:
        """The state before the first update.

        **Arguments:** the sizes of an observation and an action, and a key for the parameters.
        """

    @abc.abstractmethod
    def noise(self, batch_size: int, *, key: Key) -> Noise:
        """Every random number that one update of a batch of this size takes."""

    @abc.abstractmethod
    def loss(self, params: Any, targets: Any, batch: Batch, noise: Any) -> tuple[Scalar, Metrics]:
        """The loss whose gradient in `params` moves them, and metrics; nothing in it is random."""

    @abc.abstractmethod
    def next_targets(self, state: State) -> Any:
        """The targets after an update, from the state before it: as in the released code, they
        take in the parameters from before the step.
        """

    @abc.abstractmethod
    def act(self, state: State, observation: Observation, *, key: Key) -> Action:
        """The action for one observation, each component in [-1, 1]."""

    def for_data(self: AgentT, data: Batch) -> AgentT:
        """The agent with what it must know of the data: the size of an action and, where the agent
        has them, the smallest and largest reward.
        """
        known: dict[str, Any] = {"action_size": data.action.shape[1]}
        if hasattr(self, "reward_min"):
            known["reward_min"], known["reward_max"] = reward_range(data)
        return dataclasses.replace(self, **known)

    def explore(self, state: State, observation: Observation, *, key: Key) -> Action:
        """The action by which data is collected: `act`'s, unless that draws none."""
        return self.act(state, observation, key=key)

    def for_evaluation(self: AgentT) -> AgentT:
        """The agent as it is evaluated: itself, unless it acts otherwise to explore."""
        return self

    def action_shape(self, *batch: int) -> tuple[int, ...]:
        """`(*batch, action_size)`, for drawing noise.

        **Raises:** `ValueError` if the agent does not know the size of an action, or a size in
        `batch` is not at least 1.
        """
        if self.action_size is None:
            raise ValueError(
                f"This {type(self).__name__} does not know the size of an action: make it with "
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

    def update(self, state: State, batch: Batch, noise: Noise) -> tuple[State, Metrics]:
        """One step of Adam on `loss`, and one of the targets.

        **Returns:** the new state, and the metrics of the loss.
        """
        return self.descend(state, lambda params: self.loss(params, state.targets, batch, noise))

    def descend(
        self, state: State, objective: Callable[[Any], tuple[Scalar, Metrics]]
    ) -> tuple[State, Metrics]:
        """What `update` does, for any function of the parameters."""
        grad = eqx.filter_value_and_grad(objective, has_aux=True)
        (_, metrics), grads = grad(state.params)
        # Optax raises a float to an integer count, which strict promotion forbids.
        with jax.numpy_dtype_promotion("standard"):
            updates, opt_state = self.optimiser().update(grads, state.opt_state)
        return State(
            params=eqx.apply_updates(state.params, updates),
            targets=self.next_targets(state),
            opt_state=opt_state,
            step=state.step + 1,
        ), metrics

    def optimiser(self) -> optax.GradientTransformation:
        """Adam at `learning_rate`, which falls to zero as a cosine over `decay_updates`.

        Its state has the same structure with a decay and without, so that a run can change it.
        """
        decay = self.decay_updates
        schedule = optax.constant_schedule(1.0)
        if decay is not None:
            schedule = optax.cosine_decay_schedule(1.0, decay)
        return optax.chain(optax.adam(self.learning_rate), optax.scale_by_schedule(schedule))

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
        return State(
            params=params,
            targets=targets,
            opt_state=self.optimiser().init(eqx.filter(params, eqx.is_inexact_array)),
            step=jnp.zeros((), jnp.int32),
        )


def average(slow: T, fast: T, rate: FloatLike) -> T:
    """`rate * fast + (1 - rate) * slow`, leaf by leaf: the exponential average of targets."""
    return jax.tree.map(lambda s, f: rate * f + (1 - rate) * s, slow, fast)


def best_of(
    action: Float[Array, "candidate action"],
    value: Float[Array, "candidate"],
    *,
    temperature: FloatLike = 0.0,
    key: Key | None = None,
) -> Float[Array, "action"]:
    r"""One of the candidates, drawn in proportion to $\exp(Q / \text{temperature})$.

    This extracts a policy without training one: at temperature 0 it is the best of N; above, with
    candidates of the behaviour, rejection sampling of the policy that is regularised towards it.

    **Arguments:** the candidates, their values, the temperature in units of the return, and a key
    for the draw; without one the best is taken.
    """
    if key is not None:
        # The largest of values disturbed by Gumbel noise is a draw from their softmax.
        value = value + temperature * jax.random.gumbel(key, value.shape)
    return action[jnp.argmax(value)]


def frozen(tree: T) -> T:
    """`tree` without its gradient."""
    return jax.tree.map(jax.lax.stop_gradient, tree)


def check_range(
    name: str,
    value: Any,
    low: Number,
    high: Number = float("inf"),
    *,
    open_high: bool = False,
) -> None:
    """Raises a `ValueError` unless a hyperparameter is in its range.

    Arrays pass: their values are not known when a program is traced.
    """
    if isinstance(value, str | bool | None):
        raise ValueError(f"{name} must be a number, got {value!r}.")
    if isinstance(value, int | float) and not (
        low <= value < float("inf") and (value < high if open_high else value <= high)
    ):
        interval = f"[{low}, {high}{')' if open_high or high == float('inf') else ']'}"
        raise ValueError(f"{name} must be in {interval}, got {value!r}.")


def check_sizes(**sizes: Any) -> None:
    """Raises a `ValueError` unless every given size or count is a whole number of at least 1."""
    for name, size in sizes.items():
        if not isinstance(size, int) or isinstance(size, bool) or size < 1:
            raise ValueError(f"{name} must be a whole number of at least 1, got {size!r}.")


def check_choice(name: str, value: Any, choices: Any) -> None:
    """Raises a `ValueError` unless `value` is one of the alternatives of a `Literal`."""
    if value not in get_args(choices):
        raise ValueError(f"{name} must be one of {get_args(choices)}, got {value!r}.")
