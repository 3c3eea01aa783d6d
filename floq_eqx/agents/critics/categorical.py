r"""Categorical: a histogram over returns, trained by cross-entropy.

With atoms $c_i$, $Q = \sum_i p_i c_i$, and the loss is $-\sum_i h_i \log p_i(s, a)$ against the
histogram h of the target: the HL-Gauss histogram of the scalar $r + \gamma\, m\, \bar Q(s', a')$,
or the next return's own distribution, moved by the reward, shrunk by γ and put back onto the atoms.

Sources: Farebrother et al., "Stop Regressing: Training Value Functions via Classification for
Scalable Deep RL" (arXiv 2403.03950), for the former; Bellemare, Dabney and Munos, "A Distributional
Perspective on Reinforcement Learning" (C51, arXiv 1707.06887), for the latter.
"""

from typing import Annotated

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from ..._checks import check_unused
from ..._types import Actions, AtLeastZeroNumber, Key, Loss, Number, Observations, Range, Values
from ...data.transitions import Batch
from ...embeddings import HLGauss
from ...losses import categorical_loss, squared_error
from ...modules.values import CategoricalValue, member_logits
from ...targets import Backup, categorical_td_target, td_target
from .critic import BoundedCritic


class Categorical(BoundedCritic[CategoricalValue, CategoricalValue, None, None]):
    """A histogram over returns.

    With a distributional backup the target of a transition is the members' mean distribution,
    moved down where they are combined pessimistically; with `aggregation="min"` it is that of the
    member with the lowest Q.

    **Arguments:**

    - `backup`: `expected` fits the HL-Gauss histogram of the scalar TD target; `distributional`
        is C51's, the next return's distribution, moved and put back onto the atoms.
    - `num_bins`: The number of bins over the returns, at least 2; their middles are the atoms.
    - `sigma`: The standard deviation of the HL-Gauss histogram, in bin widths.
    - `reward_offset`: The o in the support, [r_min - o, r_max + o] / (1 - γ), of the
        rewards and the discount at initialisation.
    """

    backup: Backup = eqx.field(static=True, default="expected")
    num_bins: Annotated[int, Range(2)] = eqx.field(static=True, default=101)
    sigma: AtLeastZeroNumber = eqx.field(static=True, default=0.75)
    reward_offset: Number = eqx.field(static=True, default=0.01)

    def __check_init__(self):
        if self.backup == "distributional":
            check_unused(self, "with backup = 'distributional'", "sigma")

    def init(self, observation_size: int, action_size: int, *, key: Key) -> CategoricalValue:
        histogram = HLGauss(*self.support(self.reward_offset), self.num_bins + 1, self.sigma)
        inputs = observation_size + action_size
        return self.members(
            lambda network: CategoricalValue(network, histogram), inputs, self.num_bins, key=key
        )

    def loss(
        self,
        params: CategoricalValue,
        slow: CategoricalValue,
        batch: Batch,
        next_action: Float[Array, "batch 1 action"],
        noise: None,
    ) -> Loss:
        """The cross-entropy of every member against the target's histogram."""
        next_logits = member_logits(slow, batch.next_observation, next_action[:, 0])
        target = jax.lax.stop_gradient(self.target_histogram(slow, next_logits, batch))
        logits = member_logits(params, batch.observation, batch.action)
        loss = categorical_loss(logits, target, batch.whole)
        q = jnp.mean(params.mean(logits), axis=0)
        return loss, {
            "critic_loss": loss,
            "td_error": jnp.mean(squared_error(q, target @ slow.histogram.centers)),
            "q": jnp.mean(q),
        }

    def target_histogram(
        self, slow: CategoricalValue, next_logits: Float[Array, "ensemble batch bins"], batch: Batch
    ) -> Float[Array, "batch bins"]:
        """What every member is to predict."""
        next_q = slow.mean(next_logits)
        if self.backup == "expected":
            q = self.combined(next_q)
            target = td_target(batch.reward, batch.mask, q, discount=self.next_discount(batch))
            return jax.vmap(slow.histogram)(target)
        probability = jax.nn.softmax(next_logits)
        discount, reward = self.next_discount(batch), batch.reward
        if self.aggregation == "min":
            lowest = jnp.argmin(next_q, axis=0)
            probability = jnp.take_along_axis(probability, lowest[None, :, None], axis=0)[0]
        else:
            probability = jnp.mean(probability, axis=0)
            lower = self.combined(next_q) - jnp.mean(next_q, axis=0)
            reward = reward + discount * batch.mask * lower
        atoms = slow.histogram.centers
        return categorical_td_target(reward, batch.mask, probability, atoms, discount=discount)

    def value(
        self, params: CategoricalValue, observation: Observations, action: Actions, noise: None
    ) -> Values:
        """The mean of the histogram, the members combined."""
        value = params.mean(member_logits(params, observation, action))
        return self.combined_value(value)
