"""Fixed: a policy that is given, not learned, for learning its value: policy evaluation."""

import jax
import jax.numpy as jnp

from ..._types import Actions, Key, Loss, Observations
from ...data.transitions import Batch
from ...modules.actors import AbstractActor
from .policy import AbstractPolicy, Critique


class Fixed(AbstractPolicy[None, None, None]):
    """A policy that is given, such as that of a [`floq_eqx.analysis.Problem`][].

    Its actions may leave [-1, 1].

    **Arguments:**

    - `actor`: What acts in one observation, on standard normal noise.
    """

    actor: AbstractActor

    @property
    def uses_value(self) -> bool:
        return False

    def init(self, observation_size: int, action_size: int, *, key: Key) -> None:
        """There is nothing to learn."""

    def sample(self, params: None, observation: Observations, noise: Actions) -> Actions:
        return jax.vmap(self.actor.act)(observation, noise)

    def loss(self, params: None, slow: None, batch: Batch, critique: Critique, noise: None) -> Loss:
        """Zero."""
        return jnp.zeros(()), {}
