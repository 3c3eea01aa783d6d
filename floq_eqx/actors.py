"""Actors: an observation and noise in, an action out, for one example."""

import abc

import equinox as eqx
import jax.numpy as jnp
from jaxtyping import Array, Float

from ._types import Action, Observation
from .networks import AbstractNetwork


class AbstractPolicy(eqx.Module):
    """A policy that turns normal noise into an action."""

    @abc.abstractmethod
    def act(self, observation: Observation, noise: Action) -> Action:
        """The action in one observation; `noise` is standard normal."""


class OneStepActor(eqx.Module):
    """An action from one forward pass over an observation and noise, concatenated in this order.

    Source: FQL, arXiv 2502.02538, section 4.
    """

    network: AbstractNetwork

    def __call__(self, observation: Observation, noise: Action) -> Float[Array, "action"]:
        """**Arguments:** the observation, and standard normal noise of the action's size.

        **Returns:** the action, not clipped: it can leave [-1, 1].
        """
        return self.network(jnp.concatenate([observation, noise]))
