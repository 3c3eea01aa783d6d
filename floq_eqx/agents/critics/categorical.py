r"""Categorical: a histogram over returns, trained by cross-entropy.

With atoms $c_i$, $Q = \sum_i p_i c_i$, and the loss is $-\sum_i h_i \log p_i(s, a)$ against the
histogram h of the target: the HL-Gauss histogram of the scalar $r + \gamma\, m\, \bar Q(s', a')$,
or the next return's own distribution, moved by the reward, shrunk by γ and put back onto the atoms.

Sources: Farebrother et al., "Stop Regressing: Training Value Functions via Classification for
Scalable Deep RL" (arXiv 2403.03950), for the former; Bellemare, Dabney and Munos, "A Distributional
Perspective on Reinforcement Learning" (C51, arXiv 1707.06887), for the latter.
"""

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from ..._checks import check_choice, check_range, check_sizes, check_unused
from ..._types import Actions, Key, Metrics, Number, Observations, Scalar, Values
from ...data.transitions import Batch
from ...embeddings import HLGauss
from ...losses import categorical_loss, squared_error
from ...modules.values import CategoricalValue, member_logits
from ...networks import MLPConfig, NetworkConfig, ensemble
from ...targets import Backup, aggregate, categorical_td_target, td_target, value_bounds
from .critic import BoundedCritic


class Categorical(BoundedCritic[CategoricalValue, CategoricalValue, None, None]):
    """A histogram over returns.

    With `aggregation="min"` and a distributional backup, the target of a transition is the
    distribution of the member with the lowest Q.

    **Arguments:**

    - `backup`: `expected` fits the HL-Gauss histogram of the scalar TD target; `distributional`
        is C51's, the next return's distribution, moved and put back onto the atoms.
    - `num_bins`: The number of bins over the returns, at least 2; their middles are the atoms.
    - `sigma`: The standard deviation of the HL-Gauss histogram, in bin widths.
    - `reward_offset`: The o in the support, [r_min - o, r_max + o] / (1 - γ), of the
        rewards and the discount at initialisation.
    - `network`: The network of every member.
    """

    backup: Backup = eqx.field(static=True, default="expected")
    num_bins: int = eqx.field(static=True, default=101)
    sigma: Number = eqx.field(static=True, default=0.75)
    reward_offset: Number = eqx.field(static=True, default=0.01)
    network: NetworkConfig = eqx.field(static=True, default=MLPConfig(layer_norm=True))

    def __check_init__(self):
        check_choice("backup", self.backup, Backup)
        check_sizes(num_bins=self.num_bins)
        if self.num_bins < 2:
            raise ValueError(f"num_bins must be at least 2, got {self.num_bins}.")
        check_range("sigma", self.sigma)
        if self.backup == "distributional":
            check_unused("with backup = 'distributional'", sigma=(self.sigma, 0.75))

    def init(self, observation_size: int, action_size: int, *, key: Key) -> CategoricalValue:
        low, high = value_bounds(
            float(self.reward_min) - self.reward_offset,
            float(self.reward_max) + self.reward_offset,
            float(self.discount),
        )
        histogram = HLGauss(float(low), float(high), self.num_bins + 1, self.sigma)
        inputs = observation_size + action_size
        return ensemble(
            lambda k: CategoricalValue(self.network.build(inputs, self.num_bins, key=k), histogram),
            self.ensemble_size,
            key=key,
        )

    def loss(
        self,
        params: CategoricalValue,
        slow: CategoricalValue,
        batch: Batch,
        next_action: Float[Array, "batch 1 action"],
        noise: None,
    ) -> tuple[Scalar, Metrics]:
        """The cross-entropy of every member against the target's histogram."""
        next_logits = member_logits(slow, batch.next_observation, next_action[:, 0])
        target = jax.lax.stop_gradient(self.target_histogram(slow, next_logits, batch))
        logits = member_logits(params, batch.observation, batch.action)
        loss = categorical_loss(logits, target)
        q = jnp.mean(params.mean(logits), axis=0)
        return loss, {
            "critic_loss": loss,
            "td_error": jnp.mean(squared_error(q, target @ slow.histogram.centers)),
            "q": jnp.mean(q),
        }

    def target_histogram(
        self,
        slow: CategoricalValue,
        next_logits: Float[Array, "ensemble batch bins"],
        batch: Batch,
    ) -> Float[Array, "batch bins"]:
        """What every member is to predict."""
        next_q = slow.mean(next_logits)
        if self.backup == "expected":
            q = aggregate(next_q, self.aggregation)
            target = td_target(batch.reward, batch.mask, q, discount=self.discount)
            return jax.vmap(slow.histogram)(target)
        probability = jax.nn.softmax(next_logits)
        if self.aggregation == "mean":
            probability = jnp.mean(probability, axis=0)
        else:
            lowest = jnp.argmin(next_q, axis=0)
            probability = jnp.take_along_axis(probability, lowest[None, :, None], axis=0)[0]
        return categorical_td_target(
            batch.reward,
            batch.mask,
            probability,
            slow.histogram.centers,
            discount=self.discount,
        )

    def value(
        self, params: CategoricalValue, observation: Observations, action: Actions, noise: None
    ) -> Values:
        """The mean of the histogram, the members combined."""
        value = params.mean(member_logits(params, observation, action))
        return aggregate(value, self.value_aggregation)
