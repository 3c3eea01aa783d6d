"""What every critic is: how a value is represented, and what it is regressed on."""

import abc
import dataclasses
from collections.abc import Callable
from typing import ClassVar, Generic, TypeVar

import equinox as eqx
import jax
from jaxtyping import Array, Float

from ..._checks import check_fields, check_unused
from ..._types import (
    Actions,
    AtLeastZero,
    BelowOne,
    Discounts,
    FloatLike,
    Key,
    Loss,
    NextActions,
    Number,
    Observations,
    Samples,
    Values,
)
from ...data.checks import reward_range
from ...data.transitions import Batch
from ...data.windows import Data
from ...networks import AbstractNetwork, MLPConfig, NetworkConfig, ensemble
from ...targets import Aggregation, Backup, aggregate, flow_td_target, value_bounds

Params = TypeVar("Params")
Slow = TypeVar("Slow")
Draws = TypeVar("Draws")
ValueDraws = TypeVar("ValueDraws")
T = TypeVar("T")
CriticT = TypeVar("CriticT", bound="AbstractCritic")
BoundedT = TypeVar("BoundedT", bound="BoundedCritic")


class FlowNoise(eqx.Module):
    """The random numbers of flow matching: of z0, for the next value and the value, and t."""

    next_value: Samples
    value: Samples
    time: Samples


class AbstractCritic(eqx.Module, Generic[Params, Slow, Draws, ValueDraws]):
    """A way to represent Q by an ensemble, and to learn it; generic in its parameters, their slow
    average, and the random numbers of its loss and of Q.

    **Arguments:**

    - `discount`: The discount γ of the return, in [0, 1).
    - `ensemble_size`: The number of members, at least 1.
    - `aggregation`: How the target combines the members: their mean, their minimum, or
        `pessimistic`, their mean less ρ of their standard deviations.
    - `value_aggregation`: How Q combines the members where a policy raises it, and where actions
        are chosen by it.
    - `rho`: The ρ of what is combined pessimistically.
    - `network`: The network of every member.
    """

    uses_next_action: ClassVar[bool] = False
    """Whether it needs the action that the data took in the next observation."""
    test_time: ClassVar[tuple[str, ...]] = ()
    """The options of `score` that can change after training."""

    discount: BelowOne = 0.99
    ensemble_size: int = eqx.field(static=True, default=2)
    aggregation: Aggregation = eqx.field(static=True, default="mean")
    value_aggregation: Aggregation = eqx.field(static=True, default="mean")
    rho: AtLeastZero = 0.5
    network: NetworkConfig = eqx.field(static=True, default=MLPConfig(layer_norm=True))

    def __check_init__(self):
        check_fields(self)
        if "pessimistic" not in (self.aggregation, self.value_aggregation):
            check_unused(self, "where no aggregation is pessimistic", "rho")

    @property
    def num_next_actions(self) -> int:
        """How many next actions its target wants of a transition: none for values of the data."""
        return 1

    @abc.abstractmethod
    def init(self, observation_size: int, action_size: int, *, key: Key) -> Params:
        """The parameters, for an observation and an action of these sizes."""

    def slow(self, params: Params) -> Slow:
        """The part of the parameters that is averaged for the target: by default all of it."""
        return params  # pyright: ignore[reportReturnType]

    def noise(self, batch_size: int, *, key: Key) -> Draws:
        """The random numbers of `loss`: by default `None`, for one that is deterministic."""
        return None  # pyright: ignore[reportReturnType]

    def value_noise(self, count: int, *, key: Key) -> ValueDraws:
        """The random numbers of `value` for `count` actions: by default `None`, for values that
        are deterministic.
        """
        return None  # pyright: ignore[reportReturnType]

    def score_noise(self, count: int, *, key: Key) -> ValueDraws:
        """The random numbers of `score` for `count` actions: by default those of `value`."""
        return self.value_noise(count, key=key)

    @abc.abstractmethod
    def loss(
        self, params: Params, slow: Slow, batch: Batch, next_action: NextActions, noise: Draws
    ) -> Loss:
        """The loss that trains the value, and metrics.

        **Arguments:** the parameters and their slow average; the transitions; as many next actions
        for each as `num_next_actions` says; and the random numbers.
        """

    @abc.abstractmethod
    def value(
        self, params: Params, observation: Observations, action: Actions, noise: ValueDraws
    ) -> Values:
        """The Q that a policy raises, in units of the return; differentiable in the action."""

    def score(
        self, params: Params, observation: Observations, action: Actions, noise: ValueDraws
    ) -> Values:
        """The Q by which actions are chosen; by default `value`'s."""
        return self.value(params, observation, action, noise)

    def state_value(self, params: Params, observation: Observations) -> Values | None:
        """V, where it is learned without a policy; else `None`."""
        return None

    def for_data(self: CriticT, data: Data) -> CriticT:
        """The critic with what it must know of the data."""
        return self

    def members(
        self, make: Callable[[AbstractNetwork], T], in_size: int, out_size: int = 1, *, key: Key
    ) -> T:
        """As many of what `make` makes of a network as there are members, stacked."""
        return ensemble(
            lambda k: make(self.network.build(in_size, out_size, key=k)),
            self.ensemble_size,
            key=key,
        )

    def combined(self, values: Float[Array, "ensemble *shape"]) -> Float[Array, "*shape"]:
        """What the target makes of the members' values."""
        return aggregate(values, self.aggregation, self.rho)

    def combined_value(self, values: Float[Array, "ensemble *shape"]) -> Float[Array, "*shape"]:
        """What Q makes of the members' values."""
        return aggregate(values, self.value_aggregation, self.rho)

    def next_discount(self, batch: Batch) -> Discounts:
        """By what the value of the next state counts: γ, or γ^n after n steps."""
        return self.discount if batch.discount is None else batch.discount

    def sample_targets(self, batch: Batch, next_value: Samples, backup: Backup) -> Samples:
        """The TD target of every sample, its own or their mean, without gradient."""
        discount = self.next_discount(batch)
        target = flow_td_target(
            batch.reward, batch.mask, next_value, discount=discount, backup=backup
        )
        return jax.lax.stop_gradient(target)


class BoundedCritic(AbstractCritic[Params, Slow, Draws, ValueDraws]):
    """A critic whose returns lie between bounds, which follow from those of the rewards.

    **Arguments:**

    - `reward_min`: The smallest reward; `for_data` fills it in.
    - `reward_max`: The largest reward; `for_data` fills it in.
    """

    reward_min: FloatLike = -1.0
    reward_max: FloatLike = 0.0

    def __check_init__(self):
        low, high = self.reward_min, self.reward_max
        if isinstance(low, int | float) and isinstance(high, int | float) and not low < high:
            raise ValueError(
                f"Needs reward_min < reward_max, got {low} and {high}: with equal rewards every "
                "value is the same and their interval is empty."
            )

    def for_data(self: BoundedT, data: Data) -> BoundedT:
        low, high = reward_range(data)
        return dataclasses.replace(self, reward_min=low, reward_max=high)

    def support(self, offset: Number = 0.0) -> tuple[float, float]:
        """[r_min - o, r_max + o] / (1 - γ) in numbers, for what is made of them once."""
        low, high = float(self.reward_min) - offset, float(self.reward_max) + offset
        return value_bounds(low, high, float(self.discount))  # pyright: ignore
