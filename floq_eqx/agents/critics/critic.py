"""What every critic is: how a value is represented, and what it is regressed on."""

import abc
import dataclasses
from typing import Any, ClassVar, Generic, TypeVar

import equinox as eqx
from jaxtyping import Array, Float

from ..._checks import check_choice, check_range, check_sizes
from ..._types import Actions, FloatLike, Key, Metrics, Observations, Scalar, Values
from ...data.transitions import Batch, reward_range
from ...targets import Aggregation

Params = TypeVar("Params")
Slow = TypeVar("Slow")
Draws = TypeVar("Draws")
ValueDraws = TypeVar("ValueDraws")
CriticT = TypeVar("CriticT", bound="AbstractCritic")
BoundedT = TypeVar("BoundedT", bound="BoundedCritic")


class AbstractCritic(eqx.Module, Generic[Params, Slow, Draws, ValueDraws]):
    """A way to represent Q and to learn it; generic in its parameters, their slow average, and the
    random numbers of its loss and of Q.

    **Arguments:**

    - `discount`: γ, in [0, 1).
    """

    uses_next_action: ClassVar[bool] = False
    """Whether it needs the action that the data took in the next observation."""
    test_time: ClassVar[tuple[str, ...]] = ()
    """The options of `score` that can change after training."""

    discount: eqx.AbstractVar[FloatLike]

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
        self,
        params: Params,
        slow: Slow,
        batch: Batch,
        next_action: Float[Array, "batch noise action"],
        noise: Draws,
    ) -> tuple[Scalar, Metrics]:
        """The loss that trains the value, and metrics.

        **Arguments:** the parameters and their slow average; the transitions; as many next actions
        for each as `num_next_actions` says; and the random numbers.
        """

    @abc.abstractmethod
    def value(
        self,
        params: Params,
        observation: Observations,
        action: Actions,
        noise: ValueDraws,
    ) -> Values:
        """The Q that a policy raises, in units of the return; differentiable in the action."""

    def score(
        self,
        params: Params,
        observation: Observations,
        action: Actions,
        noise: ValueDraws,
    ) -> Values:
        """The Q by which actions are chosen; by default `value`'s."""
        return self.value(params, observation, action, noise)

    def state_value(self, params: Params, observation: Observations) -> Values | None:
        """V, where it is learned without a policy; else `None`."""
        return None

    def for_data(self: CriticT, data: Batch) -> CriticT:
        """The critic with what it must know of the data."""
        return self


class EnsembleCritic(AbstractCritic[Params, Slow, Draws, ValueDraws]):
    """A critic of several members.

    **Arguments:**

    - `discount`: γ, in [0, 1).
    - `ensemble_size`: The number of members, at least 1.
    - `aggregation`: How the target combines the members.
    - `value_aggregation`: How Q combines the members where a policy raises it, and where actions
        are chosen by it.
    """

    discount: FloatLike = 0.99
    ensemble_size: int = eqx.field(static=True, default=2)
    aggregation: Aggregation = eqx.field(static=True, default="mean")
    value_aggregation: Aggregation = eqx.field(static=True, default="mean")

    def __check_init__(self):
        check_range("discount", self.discount, 0, 1, open_high=True)
        check_sizes(ensemble_size=self.ensemble_size)
        check_choice("aggregation", self.aggregation, Aggregation)
        check_choice("value_aggregation", self.value_aggregation, Aggregation)


class BoundedCritic(EnsembleCritic[Params, Slow, Draws, ValueDraws]):
    """A critic whose returns lie between bounds, which follow from those of the rewards.

    **Arguments:**

    - `reward_min`: The smallest reward; `for_data` fills it in.
    - `reward_max`: The largest reward; `for_data` fills it in.
    """

    reward_min: FloatLike = -1.0
    reward_max: FloatLike = 0.0

    def __check_init__(self):
        low, high = self.reward_min, self.reward_max
        check_range("reward_min", low, float("-inf"))
        check_range("reward_max", high, float("-inf"))
        if isinstance(low, int | float) and isinstance(high, int | float) and not low < high:
            raise ValueError(
                f"Needs reward_min < reward_max, got {low} and {high}: with equal rewards every "
                "value is the same and their interval is empty."
            )

    def for_data(self: BoundedT, data: Batch) -> BoundedT:
        low, high = reward_range(data)
        return dataclasses.replace(self, reward_min=low, reward_max=high)

    def widened(self: BoundedT, low: Any, high: Any) -> BoundedT:
        """The critic for rewards to which something between `low` and `high` is added."""
        return dataclasses.replace(
            self, reward_min=self.reward_min + low, reward_max=self.reward_max + high
        )
