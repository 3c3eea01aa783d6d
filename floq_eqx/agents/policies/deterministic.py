r"""Deterministic: one action a state, which raises Q and stays near the data's.

$$-\frac{\mathbb{E}\, Q(s, \pi(s))}{\mathbb{E} |Q|} +
w\, \mathbb{E} \lVert \pi(s) - a \rVert^2, \qquad
a' = \operatorname{clip}(\bar\pi(s') + \operatorname{clip}(\sigma \epsilon, \pm c)),$$

and the next value is less $w' \lVert a' - a'_{data} \rVert^2$. Sources: TD3, arXiv 1802.09477, for
the blurred action of the slow policy; Tarasov et al., "Revisiting the Minimalist Approach to
Offline Reinforcement Learning" (ReBRAC, arXiv 2305.09836), for the penalties, as in FQL's released
code.
"""

from typing import Any, ClassVar

import equinox as eqx
import jax
import jax.numpy as jnp

from ..._types import Actions, AtLeastZero, FloatLike, Key, Loss, Observations
from ...data.transitions import Batch
from ...modules.actors import GaussianActor
from ...networks import MLPConfig, NetworkConfig
from .policy import AbstractPolicy, Critique, NextAction


class Deterministic(AbstractPolicy[GaussianActor, GaussianActor, None]):
    """The policy of ReBRAC, bounded by a tanh; draws are blurred as the target's action is.

    **Arguments:**

    - `cloning_weight`: The weight w of the squared distance from the data's action.
    - `next_penalty`: The weight w' of that of the next action from the data's, off its value.
    - `blur`: The standard deviation σ of the noise on the next action, and on draws.
    - `blur_clip`: The largest size c of this noise.
    - `network`: The network of the policy.
    """

    uses_next_action: ClassVar[bool] = True
    acts_by_mode: ClassVar[bool] = True
    target_options: ClassVar[tuple[str, ...]] = ("next_penalty",)

    cloning_weight: AtLeastZero = 0.1
    next_penalty: AtLeastZero = 0.01
    blur: AtLeastZero = 0.2
    blur_clip: AtLeastZero = 0.5
    network: NetworkConfig = eqx.field(static=True, default=MLPConfig(output_scale=0.01))

    def init(self, observation_size: int, action_size: int, *, key: Key) -> GaussianActor:
        network = self.network.build(observation_size, action_size, key=key)
        return GaussianActor(network, squash=True)

    def slow(self, params: GaussianActor) -> GaussianActor:
        return params

    def sample(self, params: GaussianActor, observation: Observations, noise: Actions) -> Actions:
        blur = jnp.clip(self.blur * noise, -self.blur_clip, self.blur_clip)
        return jnp.clip(jax.vmap(params)(observation) + blur, -1, 1)

    def next_action(
        self, params: GaussianActor, slow: GaussianActor, batch: Batch, noise: Any
    ) -> NextAction:
        """The slow policy's action, blurred, with the penalty as its bonus."""
        if batch.next_action is None:
            raise ValueError(
                "Deterministic needs the data's next actions: load the dataset with "
                "with_next_action=True."
            )
        action = self.sample(slow, batch.next_observation, noise)
        distance = jnp.sum((action - batch.next_action) ** 2, axis=1)
        return NextAction(action, -self.next_penalty * distance)

    def bonus_bounds(self, action_size: int) -> tuple[FloatLike, FloatLike]:
        """Components in [-1, 1] are at most 2 apart."""
        return -4.0 * action_size * self.next_penalty, 0.0

    def loss(
        self,
        params: GaussianActor,
        slow: GaussianActor,
        batch: Batch,
        critique: Critique,
        noise: None,
    ) -> Loss:
        action = jax.vmap(params)(batch.observation)
        q_loss, metrics = critique.raised(action, normalise=True)
        error = (action - batch.action) ** 2
        if batch.component_valid is not None:
            error = error * batch.component_valid
        distance = jnp.mean(jnp.sum(error, axis=1))
        bc_loss = self.cloning_weight * distance
        loss = q_loss + bc_loss
        return loss, metrics | {"actor_loss": loss, "bc_loss": bc_loss, "action_error": distance}
