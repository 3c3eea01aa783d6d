"""Actors: an observation and noise in, an action out, for one example."""

import abc

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from .._types import Action, Number, Observation, Scalar
from ..networks import AbstractNetwork


class AbstractActor(eqx.Module):
    """A policy for one observation, which turns normal noise into an action."""

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


class TanhGaussianActor(AbstractActor):
    r"""$a = \tanh(u)$ with u Gaussian, whose mean and deviation depend on the state.

    The network's output is the mean and the logarithm of the deviation, concatenated in this order;
    the latter is clipped to its bounds, by default those of the released code of SAC and RLPD.

    Source: SAC, arXiv 1812.05905, appendix C.
    """

    network: AbstractNetwork
    log_std_min: Number = eqx.field(static=True, default=-20.0)
    log_std_max: Number = eqx.field(static=True, default=2.0)

    def __call__(
        self, observation: Observation
    ) -> tuple[Float[Array, "action"], Float[Array, "action"]]:
        """**Returns:** the mean and the logarithm of the deviation of u, before the tanh."""
        mean, log_std = jnp.split(self.network(observation), 2)
        return mean, jnp.clip(log_std, self.log_std_min, self.log_std_max)

    def act(self, observation: Observation, noise: Action) -> Action:
        return self.act_with_log_prob(observation, noise)[0]

    def act_with_log_prob(
        self, observation: Observation, noise: Action
    ) -> tuple[Float[Array, "action"], Scalar]:
        r"""The action that standard normal noise ε gives, and the logarithm of its density.

        With $u = \mu + \sigma \epsilon$, componentwise and then summed,

        $$\log \pi(a) = \log N(\epsilon; 0, 1) - \log \sigma - \log(1 - \tanh^2 u).$$

        It is exact and finite also where the action rounds to 1, which an action alone, without
        its noise, could not give.
        """
        mean, log_std = self(observation)
        raw = mean + jnp.exp(log_std) * noise
        # log(1 - tanh² u) without the cancellation of 1 - tanh².
        log_slope = 2 * (jnp.log(2.0) - raw - jax.nn.softplus(-2 * raw))
        log_prob = jnp.sum(jax.scipy.stats.norm.logpdf(noise) - log_std - log_slope)
        return jnp.tanh(raw), log_prob
