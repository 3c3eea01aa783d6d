r"""TD: Q in one forward pass, regressed on its own target.

$$\frac{1}{N} \sum_{i=1}^N \mathbb{E} \left[ (Q_i(s, a) - y)^2 \right], \qquad
y = r + \gamma\, m\, \operatorname{agg}_j \bar Q_j(s', a'),$$

with the mean or the minimum over the members' slow averages as agg: clipped double Q-learning
(arXiv 1802.09477) is the minimum of two, REDQ (arXiv 2101.05982) that of a random subset.
"""

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from ..._checks import check_fields
from ..._types import Actions, Key, Loss, Observations, Values
from ...data.transitions import Batch
from ...losses import critic_loss, squared_error
from ...modules.values import ActionValue, member_values
from ...targets import td_target
from .critic import AbstractCritic


class TD(AbstractCritic[ActionValue, ActionValue, Float[Array, "batch ensemble"] | None, None]):
    """The ordinary critic: an ensemble that is regressed on one TD target.

    Its noise is standard normal, `[batch ensemble]`: the members whose numbers are largest make up
    the subset of a transition's target; `None` where the target takes all members.

    **Arguments:**

    - `target_members`: The number of members, drawn anew for every transition, that the target
        combines; `None` for all of them.
    """

    target_members: int | None = eqx.field(static=True, default=None)

    def __check_init__(self):
        check_fields(self)
        if self.target_members is not None and self.target_members > self.ensemble_size:
            raise ValueError(
                f"target_members must be at most ensemble_size = {self.ensemble_size}, got "
                f"{self.target_members}."
            )

    def init(self, observation_size: int, action_size: int, *, key: Key) -> ActionValue:
        return self.members(ActionValue, observation_size + action_size, key=key)

    def noise(self, batch_size: int, *, key: Key) -> Float[Array, "batch ensemble"] | None:
        if self.target_members in (None, self.ensemble_size):
            return None
        return jax.random.normal(key, (batch_size, self.ensemble_size))

    def loss(
        self,
        params: ActionValue,
        slow: ActionValue,
        batch: Batch,
        next_action: Float[Array, "batch 1 action"],
        noise: Float[Array, "batch ensemble"] | None,
    ) -> Loss:
        """The mean squared TD error of every member."""
        next_value = member_values(slow, batch.next_observation, next_action[:, 0])
        if noise is not None:
            _, chosen = jax.lax.top_k(noise, self.target_members or self.ensemble_size)
            next_value = jnp.take_along_axis(next_value, jnp.transpose(chosen), axis=0)
        next_value = self.combined(next_value)
        target = td_target(batch.reward, batch.mask, next_value, discount=self.next_discount(batch))
        q = member_values(params, batch.observation, batch.action)
        loss = critic_loss(q, target, batch.whole)
        return loss, {
            "critic_loss": loss,
            "td_error": jnp.mean(squared_error(jnp.mean(q, axis=0), target)),
            "q": jnp.mean(q),
            "q_min": jnp.min(q),
            "q_max": jnp.max(q),
        }

    def value(
        self, params: ActionValue, observation: Observations, action: Actions, noise: None
    ) -> Values:
        return self.combined_value(member_values(params, observation, action))
