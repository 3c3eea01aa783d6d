"""Actors: an observation and noise in, an action out, for one example."""

import abc

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from ._types import Action, Observation, Scalar
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


class GaussianActor(eqx.Module):
    """A Gaussian around the network's output, of deviation 1 in every state.

    With `squash` the mean passes through a tanh, into (-1, 1).
    """

    network: AbstractNetwork
    squash: bool = eqx.field(static=True, default=False)

    def __call__(self, observation: Observation) -> Float[Array, "action"]:
        """The mean, which without `squash` can leave [-1, 1]."""
        mean = self.network(observation)
        return jnp.tanh(mean) if self.squash else mean

    def log_prob(self, observation: Observation, action: Action) -> Scalar:
        """The logarithm of the action's density."""
        return jnp.sum(jax.scipy.stats.norm.logpdf(action - self(observation)))
