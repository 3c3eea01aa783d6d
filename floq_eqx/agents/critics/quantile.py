r"""Quantile: the quantiles of the return at random levels, integrating nothing.

For levels $\tau_i$ and targets $y_j = r + \gamma\, m\, \bar Z_{\tau'_j}(s', a'_j)$, each with a
next action of its own,

$$\sum_i \operatorname{mean}_j \left| \tau_i - 1[y_j < Z_{\tau_i}] \right|
L(y_j - Z_{\tau_i}(s, a)).$$

Sources: Dabney et al., "Implicit Quantile Networks for Distributional Reinforcement Learning"
(arXiv 1806.06923); as a baseline of floq, arXiv 2509.06863, section 5.
"""

from typing import ClassVar, Literal, TypeAlias

import equinox as eqx
import jax
import jax.numpy as jnp

from ..._checks import check_unused
from ..._types import Actions, Key, Loss, NextActions, Observations, PositiveNumber, Samples, Values
from ...data.transitions import Batch
from ...embeddings import Fourier
from ...losses import quantile_loss, squared_error
from ...modules.values import QuantileValue, member_quantiles
from .critic import AbstractCritic

QuantileLoss: TypeAlias = Literal["squared", "huber"]


class QuantileNoise(eqx.Module):
    """The levels of the target and of the prediction, uniform in [0, 1)."""

    next_quantile: Samples
    quantile: Samples


class Quantile(AbstractCritic[QuantileValue, QuantileValue, QuantileNoise, Samples | None]):
    """An implicit quantile network: a distributional critic.

    **Arguments:**

    - `num_noise`: The number of quantile levels a transition, in the target as in the prediction.
    - `loss_kind`: The loss L: `squared`, as in floq's released baseline, or `huber`, the quantile
        Huber loss of the IQN paper.
    - `huber_threshold`: Where the Huber loss becomes linear, in units of the return.
    - `num_terms`: The number of cosines that embed a quantile level.
    """

    test_time: ClassVar[tuple[str, ...]] = ("num_noise",)

    num_noise: int = eqx.field(static=True, default=8)
    loss_kind: QuantileLoss = eqx.field(static=True, default="squared")
    huber_threshold: PositiveNumber = eqx.field(static=True, default=1.0)
    num_terms: int = eqx.field(static=True, default=64)

    def __check_init__(self):
        if self.loss_kind != "huber":
            check_unused(self, "with loss_kind = 'squared'", "huber_threshold")

    @property
    def num_next_actions(self) -> int:
        return self.num_noise

    def init(self, observation_size: int, action_size: int, *, key: Key) -> QuantileValue:
        embedding = Fourier(self.num_terms)
        inputs = observation_size + action_size + embedding.size
        return self.members(lambda network: QuantileValue(network, embedding), inputs, key=key)

    def noise(self, batch_size: int, *, key: Key) -> QuantileNoise:
        levels = (batch_size, self.num_noise)
        return QuantileNoise(*(jax.random.uniform(k, levels) for k in jax.random.split(key)))

    def value_noise(self, count: int, *, key: Key) -> Samples:
        """Quantile levels, uniform in [0, 1)."""
        return jax.random.uniform(key, (count, self.num_noise))

    def score_noise(self, count: int, *, key: Key) -> None:
        """Nothing: the levels of `score` are spread evenly."""

    def loss(
        self,
        params: QuantileValue,
        slow: QuantileValue,
        batch: Batch,
        next_action: NextActions,
        noise: QuantileNoise,
    ) -> Loss:
        """Every quantile level against every sample of the target."""
        next_value = self.combined(
            member_quantiles(slow, batch.next_observation, next_action, noise.next_quantile)
        )
        target = self.sample_targets(batch, next_value, "distributional")
        value = member_quantiles(params, batch.observation, batch.action, noise.quantile)
        threshold = self.huber_threshold if self.loss_kind == "huber" else None
        levels = noise.quantile
        loss = quantile_loss(value, target, levels, batch.whole, huber_threshold=threshold)
        mean = jnp.mean(value, axis=(0, 2))
        return loss, {
            "critic_loss": loss,
            "td_error": jnp.mean(squared_error(mean, jnp.mean(target, axis=1))),
            "value_variance": jnp.mean(jnp.var(jnp.mean(value, axis=0), axis=1)),
            "q": jnp.mean(value),
        }

    def value(
        self,
        params: QuantileValue,
        observation: Observations,
        action: Actions,
        noise: Samples | None,
    ) -> Values:
        """The mean over quantiles at the levels `noise`, evenly spread ones without."""
        if noise is None:
            levels = (jnp.arange(self.num_noise, dtype=float) + 0.5) / self.num_noise
            noise = jnp.broadcast_to(levels, (len(action), self.num_noise))
        value = member_quantiles(params, observation, action, noise)
        return jnp.mean(self.combined_value(value), axis=1)
