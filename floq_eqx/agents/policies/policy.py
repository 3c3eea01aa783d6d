"""What every policy is: how one acts, and what is learned to act so."""

import abc
from collections.abc import Callable
from typing import Any, ClassVar, Generic, TypeVar

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import PyTree

from ..._checks import check_fields
from ..._types import Actions, FloatLike, Key, Loss, Observations, Values
from ...data.transitions import Batch
from ...losses import policy_loss

Params = TypeVar("Params")
Slow = TypeVar("Slow")
Draws = TypeVar("Draws")


class NextAction(eqx.Module):
    """Actions in the next observations, and what is added to their values: an entropy (SAC), a
    penalty (ReBRAC); `None` for nothing.
    """

    action: Actions
    bonus: Values | None = None


class Critique(eqx.Module):
    """What a policy's loss may ask of the critic, whose parameters receive no gradient.

    **Attributes:**

    - `q`: Q of a batch of actions in the batch's observations, always on the same random numbers.
    - `v`: V of these observations, or `None` of a critic that learns none.
    """

    q: Callable[[Actions], Values]
    v: Callable[[], Values | None]

    def raised(self, action: Actions, *, normalise: bool) -> Loss:
        """-E Q of these actions, by the mean |Q| if it is to be normalised, and metrics of both."""
        q = self.q(action)
        loss = policy_loss(q, normalise=normalise)
        return loss, {"q_loss": loss, "actor_q": jnp.mean(q)}


class AbstractPolicy(eqx.Module, Generic[Params, Slow, Draws]):
    """A way to act and to learn it; generic in its parameters, their slow average and the random
    numbers of its loss.
    """

    uses_next_action: ClassVar[bool] = False
    """Whether it needs the action that the data took in the next observation."""
    acts_by_mode: ClassVar[bool] = False
    """Whether it is evaluated by the action of noise zero; it explores by draws all the same."""
    target_options: ClassVar[tuple[str, ...]] = ()
    """The options that count in a critic's target alone, which the policy's next actions make."""

    def __check_init__(self):
        check_fields(self)

    @property
    def has_behaviour(self) -> bool:
        """Whether it has a clone of the data's policy, or is one."""
        return type(self).behaviour is not AbstractPolicy.behaviour

    @property
    def uses_value(self) -> bool:
        """Whether its loss asks the critic."""
        return True

    @abc.abstractmethod
    def init(self, observation_size: int, action_size: int, *, key: Key) -> Params:
        """The parameters, for an observation and an action of these sizes."""

    def slow(self, params: Params) -> Slow:
        """The part of the parameters that is averaged: by default none, `None`."""
        return None  # pyright: ignore[reportReturnType]

    def noise(self, shape: tuple[int, ...], *, key: Key) -> Draws:
        """The random numbers of `loss` for actions of `shape`, `[batch action]`: by default `None`,
        for one that is deterministic.
        """
        return None  # pyright: ignore[reportReturnType]

    def next_noise(self, shape: tuple[int, ...], *, key: Key) -> PyTree:
        """The random numbers of `next_action`: by default standard normal, of `shape`."""
        return jax.random.normal(key, shape)

    @abc.abstractmethod
    def sample(self, params: Params, observation: Observations, noise: Actions) -> Actions:
        """The actions, in [-1, 1], that standard normal noise becomes."""

    def behaviour(self, params: Params, observation: Observations, noise: Actions) -> Actions:
        """The actions that noise becomes under the clone of the data's policy."""
        raise NotImplementedError(f"{type(self).__name__} has no clone of the data's policy.")

    def next_action(self, params: Params, slow: Slow, batch: Batch, noise: Any) -> NextAction:
        """Actions for the critic's target: by default `sample`'s in the next observations."""
        return NextAction(self.sample(params, batch.next_observation, noise))

    def bonus_bounds(self, action_size: int) -> tuple[FloatLike, FloatLike]:
        """The least and the greatest bonus of an action of this size."""
        return 0.0, 0.0

    @abc.abstractmethod
    def loss(
        self, params: Params, slow: Slow, batch: Batch, critique: Critique, noise: Draws
    ) -> Loss:
        """The loss that trains the policy, and metrics.

        **Arguments:** the parameters and their slow average; the transitions; what the critic says
        of actions in them; and the random numbers.
        """
