r"""TanhGaussian: a stochastic policy of a state's own mean and deviation, and of high entropy.

$$\mathbb{E} \left[ T \log \pi(a \mid s) - Q(s, a) \right], \quad a \sim \pi(\cdot \mid s), \qquad
T\, (\mathcal{H} - \mathcal{H}_{target}),$$

the second of which moves the temperature T alone; the next action's bonus is
$-T \log \pi(a' \mid s')$.

Sources: Haarnoja et al., "Soft Actor-Critic Algorithms and Applications" (SAC, arXiv 1812.05905,
algorithm 1); Ball et al., "Efficient Online Reinforcement Learning with Offline Data" (RLPD, arXiv
2302.02948, algorithm 1), whose settings are the defaults.
"""

from typing import ClassVar

import equinox as eqx
import jax
import jax.numpy as jnp
from jax.lax import stop_gradient

from ..._types import Actions, FloatLike, Key, Loss, Observations, Positive, Scalar
from ...data.transitions import Batch
from ...modules.actors import TanhGaussianActor
from ...networks import MLPConfig, NetworkConfig
from .policy import AbstractPolicy, Critique, NextAction


class TanhGaussianParams(eqx.Module):
    """The actor, and the logarithm of the temperature."""

    actor: TanhGaussianActor
    log_temperature: Scalar


class TanhGaussian(AbstractPolicy[TanhGaussianParams, None, Actions]):
    """The policy of SAC, evaluated by the tanh of its mean.

    Its noise is standard normal, an action for each observation.

    **Arguments:**

    - `entropy_per_component`: The entropy that the temperature aims at, in nats for each component
        of an action: -0.5 as in RLPD; the original has -1.
    - `initial_temperature`: The weight of the entropy at first, above 0.
    - `backup_entropy`: Count the next action's entropy in the critic's target.
    - `network`: The network of the policy.
    """

    acts_by_mode: ClassVar[bool] = True
    target_options: ClassVar[tuple[str, ...]] = ("backup_entropy",)

    entropy_per_component: FloatLike = -0.5
    initial_temperature: Positive = 1.0
    backup_entropy: bool = eqx.field(static=True, default=True)
    network: NetworkConfig = eqx.field(
        static=True, default=MLPConfig((256, 256), output_scale=0.01)
    )

    def init(self, observation_size: int, action_size: int, *, key: Key) -> TanhGaussianParams:
        network = self.network.build(observation_size, 2 * action_size, key=key)
        log_temperature = jnp.log(jnp.asarray(self.initial_temperature, jnp.float32))
        return TanhGaussianParams(TanhGaussianActor(network), log_temperature)

    def noise(self, shape: tuple[int, ...], *, key: Key) -> Actions:
        return jax.random.normal(key, shape)

    def sample(
        self, params: TanhGaussianParams, observation: Observations, noise: Actions
    ) -> Actions:
        return jax.vmap(params.actor.act)(observation, noise)

    def next_action(
        self, params: TanhGaussianParams, slow: None, batch: Batch, noise: Actions
    ) -> NextAction:
        """A draw, with its share of the entropy as its bonus."""
        act = jax.vmap(params.actor.act_with_log_prob)
        action, log_prob = act(batch.next_observation, noise)
        if not self.backup_entropy:
            return NextAction(action)
        return NextAction(action, -jnp.exp(params.log_temperature) * log_prob)

    def bonus_bounds(self, action_size: int) -> tuple[FloatLike, FloatLike]:
        """The temperature is learned, so that its entropy has no bounds."""
        infinity = float("inf") if self.backup_entropy else 0.0
        return -infinity, infinity

    def loss(
        self,
        params: TanhGaussianParams,
        slow: None,
        batch: Batch,
        critique: Critique,
        noise: Actions,
    ) -> Loss:
        action, log_prob = jax.vmap(params.actor.act_with_log_prob)(batch.observation, noise)
        q = critique.q(action)
        temperature = jnp.exp(params.log_temperature)
        actor_loss = jnp.mean(stop_gradient(temperature) * log_prob - q)
        entropy = -jnp.mean(log_prob)
        target = self.entropy_per_component * batch.action.shape[1]
        temperature_loss = temperature * (stop_gradient(entropy) - target)
        return actor_loss + temperature_loss, {
            "actor_loss": actor_loss,
            "actor_q": jnp.mean(q),
            "entropy": entropy,
            "temperature_loss": temperature_loss,
            "temperature": temperature,
        }
