r"""Gaussian: a Gaussian of unit deviation, which clones the data or what the critic prefers in it.

With $\pi(a \mid s) = N(a; \mu(s), 1)$, by `extraction`,

$$\text{clone: } -\mathbb{E} \log \pi(a \mid s), \qquad
\text{awr: } -\mathbb{E} \left[ \min(e^{\beta (Q(s, a) - V(s))}, 100) \log \pi(a \mid s) \right],$$
$$\text{ddpgbc: } -\frac{\mathbb{E}\, Q(s, \mu(s))}{\mathbb{E} |Q|} - w\,
\mathbb{E} \log \pi(a \mid s).$$

Sources: OGBench, arXiv 2410.20092, for cloning; IQL, arXiv 2110.06169, for advantage-weighted
regression; Park et al., arXiv 2406.09329, section 3, for DDPG+BC. Where the critic learns no V, it
is Q at the policy's mean, as in AWAC, arXiv 2006.09359.
"""

from typing import ClassVar, Literal, TypeAlias

import equinox as eqx
import jax
import jax.numpy as jnp
from jax.lax import stop_gradient

from ..._checks import check_unused
from ..._types import Actions, AtLeastZero, Key, Loss, Observations
from ...data.transitions import Batch
from ...modules.actors import GaussianActor
from ...networks import MLPConfig, NetworkConfig
from .policy import AbstractPolicy, Critique, NextAction

Extraction: TypeAlias = Literal["clone", "awr", "ddpgbc"]


class Gaussian(AbstractPolicy[GaussianActor, None, None]):
    """A Gaussian of unit deviation, evaluated by its mean; draws are clipped to [-1, 1].

    **Arguments:**

    - `extraction`: What is learned: to `clone` the data's actions; to clone them by the weight of
        their advantage (`awr`); or to raise Q at the mean, and clone (`ddpgbc`).
    - `inverse_temperature`: The β of `awr`, whose weights are exp(β advantage), up to 100.
    - `cloning_weight`: The weight w of cloning in `ddpgbc`.
    - `network`: The network of the mean.
    """

    acts_by_mode: ClassVar[bool] = True

    extraction: Extraction = eqx.field(static=True, default="awr")
    inverse_temperature: AtLeastZero = 10.0
    cloning_weight: AtLeastZero = 10.0
    network: NetworkConfig = eqx.field(static=True, default=MLPConfig(output_scale=0.01))

    def __check_init__(self):
        where = f"with extraction = {self.extraction!r}"
        if self.extraction != "awr":
            check_unused(self, where, "inverse_temperature")
        if self.extraction != "ddpgbc":
            check_unused(self, where, "cloning_weight")

    @property
    def uses_value(self) -> bool:
        return self.extraction != "clone"

    def init(self, observation_size: int, action_size: int, *, key: Key) -> GaussianActor:
        return GaussianActor(self.network.build(observation_size, action_size, key=key))

    def sample(self, params: GaussianActor, observation: Observations, noise: Actions) -> Actions:
        return jnp.clip(jax.vmap(params)(observation) + noise, -1, 1)

    def next_action(
        self, params: GaussianActor, slow: None, batch: Batch, noise: Actions
    ) -> NextAction:
        """The mean, by which it is evaluated: most draws of unit deviation would be at the edge."""
        return NextAction(jnp.clip(jax.vmap(params)(batch.next_observation), -1, 1))

    def loss(
        self, params: GaussianActor, slow: None, batch: Batch, critique: Critique, noise: None
    ) -> Loss:
        log_prob = jax.vmap(params.log_prob)(batch.observation, batch.action)
        if batch.whole is not None:  # Of a chunk that leaves its trajectory no part is cloned.
            log_prob = log_prob * batch.whole
        mean = jax.vmap(params)(batch.observation)
        metrics = {
            "log_prob": jnp.mean(log_prob),
            "action_error": jnp.mean((mean - batch.action) ** 2),
        }
        if self.extraction == "clone":
            loss = -jnp.mean(log_prob)
            return loss, metrics | {"actor_loss": loss}

        action = jnp.clip(mean, -1, 1)
        if self.extraction == "awr":
            v = critique.v()
            v = critique.q(action) if v is None else v
            advantage = critique.q(batch.action) - v
            weight = jnp.minimum(jnp.exp(self.inverse_temperature * advantage), 100.0)
            loss = -jnp.mean(stop_gradient(weight) * log_prob)
            return loss, metrics | {"actor_loss": loss, "advantage": jnp.mean(advantage)}

        q_loss, raised = critique.raised(action, normalise=True)
        bc_loss = -self.cloning_weight * jnp.mean(log_prob)
        loss = q_loss + bc_loss
        return loss, metrics | raised | {"actor_loss": loss, "bc_loss": bc_loss}
