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
from jax.lax import stop_gradient
from jaxtyping import Array, Float

from ..._checks import check_choice, check_range, check_sizes, check_unused
from ..._types import Actions, Key, Metrics, Number, Observations, Scalar, Values
from ...data.transitions import Batch
from ...embeddings import Fourier
from ...losses import quantile_loss, squared_error
from ...modules.values import QuantileValue, member_quantiles
from ...networks import MLPConfig, NetworkConfig, ensemble
from ...targets import aggregate, flow_td_target
from .critic import EnsembleCritic

QuantileLoss: TypeAlias = Literal["squared", "huber"]


class QuantileNoise(eqx.Module):
    """The levels of the target and of the prediction, uniform in [0, 1)."""

    next_quantile: Float[Array, "batch noise"]
    quantile: Float[Array, "batch noise"]


class Quantile(
    EnsembleCritic[QuantileValue, QuantileValue, QuantileNoise, Float[Array, "batch noise"] | None]
):
    """An implicit quantile network: a distributional critic.

    **Arguments:**

    - `num_noise`: The number of quantile levels a transition, in the target as in the prediction.
    - `loss_kind`: The loss L: `squared`, as in floq's released baseline, or `huber`, the quantile
        Huber loss of the IQN paper.
    - `huber_threshold`: Where the Huber loss becomes linear, in units of the return.
    - `num_terms`: The number of cosines that embed a quantile level.
    - `network`: The network of every member.
    """

    test_time: ClassVar[tuple[str, ...]] = ("num_noise",)

    num_noise: int = eqx.field(static=True, default=8)
    loss_kind: QuantileLoss = eqx.field(static=True, default="squared")
    huber_threshold: Number = eqx.field(static=True, default=1.0)
    num_terms: int = eqx.field(static=True, default=64)
    network: NetworkConfig = eqx.field(static=True, default=MLPConfig(layer_norm=True))

    def __check_init__(self):
        check_sizes(num_noise=self.num_noise, num_terms=self.num_terms)
        check_choice("loss_kind", self.loss_kind, QuantileLoss)
        check_range("huber_threshold", self.huber_threshold, open_low=True)
        if self.loss_kind != "huber":
            threshold = (self.huber_threshold, 1.0)
            check_unused("with loss_kind = 'squared'", huber_threshold=threshold)

    @property
    def num_next_actions(self) -> int:
        return self.num_noise

    def init(self, observation_size: int, action_size: int, *, key: Key) -> QuantileValue:
        embedding = Fourier(self.num_terms)
        inputs = observation_size + action_size + embedding.size
        return ensemble(
            lambda k: QuantileValue(self.network.build(inputs, 1, key=k), embedding),
            self.ensemble_size,
            key=key,
        )

    def noise(self, batch_size: int, *, key: Key) -> QuantileNoise:
        levels = (batch_size, self.num_noise)
        return QuantileNoise(*(jax.random.uniform(k, levels) for k in jax.random.split(key)))

    def value_noise(self, count: int, *, key: Key) -> Float[Array, "batch noise"]:
        """Quantile levels, uniform in [0, 1)."""
        return jax.random.uniform(key, (count, self.num_noise))

    def score_noise(self, count: int, *, key: Key) -> None:
        """Nothing: the levels of `score` are spread evenly."""

    def loss(
        self,
        params: QuantileValue,
        slow: QuantileValue,
        batch: Batch,
        next_action: Float[Array, "batch noise action"],
        noise: QuantileNoise,
    ) -> tuple[Scalar, Metrics]:
        """Every quantile level against every sample of the target."""
        next_value = aggregate(
            member_quantiles(slow, batch.next_observation, next_action, noise.next_quantile),
            self.aggregation,
        )
        # Each sample keeps its own target, as in a distributional backup.
        target = stop_gradient(
            flow_td_target(
                batch.reward,
                batch.mask,
                next_value,
                discount=self.discount,
                backup="distributional",
            )
        )
        value = member_quantiles(params, batch.observation, batch.action, noise.quantile)
        threshold = self.huber_threshold if self.loss_kind == "huber" else None
        loss = quantile_loss(value, target, noise.quantile, huber_threshold=threshold)
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
        noise: Float[Array, "batch noise"] | None,
    ) -> Values:
        """The mean over quantiles at the levels `noise`, evenly spread ones without."""
        if noise is None:
            levels = (jnp.arange(self.num_noise, dtype=float) + 0.5) / self.num_noise
            noise = jnp.broadcast_to(levels, (len(action), self.num_noise))
        value = member_quantiles(params, observation, action, noise)
        return jnp.mean(aggregate(value, self.value_aggregation), axis=1)
