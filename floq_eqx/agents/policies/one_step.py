r"""OneStep: an actor of one pass, distilled from a behavioural flow while it raises Q.

With the flow's action $\mu(s, x)$, where its steps take the noise x, and the actor's $\pi(s, x)$,

$$L_{flow} + \alpha\, \mathbb{E} \lVert \pi(s, x) - \mu(s, x) \rVert^2
- \mathbb{E}\, Q(s, \pi(s, x)),$$

where $L_{flow}$ is the behavioural flow's own loss. Source: FQL, arXiv 2502.02538, section 4,
algorithm 1.
"""

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from ..._checks import check_range, check_sizes
from ..._types import Actions, FloatLike, Key, Metrics, Observations, Scalar
from ...data.transitions import Batch
from ...losses import distillation_loss, policy_loss
from ...modules.actors import OneStepActor
from ...modules.velocity import ActionVelocity
from ...networks import MLPConfig, NetworkConfig
from ..agent import frozen
from .behavioural_flow import behavioural_flow_loss, integrate_actions
from .policy import AbstractPolicy, Critique


class OneStepParams(eqx.Module):
    """The behavioural flow and the one-step actor."""

    flow: ActionVelocity
    actor: OneStepActor


class OneStepNoise(eqx.Module):
    """x0 of the flow and the noise of the actor, standard normal, and t, uniform in [0, 1)."""

    bc_action: Actions
    bc_time: Float[Array, "batch"]
    actor: Actions


class OneStep(AbstractPolicy[OneStepParams, None, OneStepNoise]):
    """The policy of FQL and floq.

    **Arguments:**

    - `alpha`: The weight α of the actor's distillation from the behavioural flow.
    - `flow_steps`: The number of Euler steps of the behavioural flow.
    - `normalise_q`: Divide the Q term by mean |Q|.
    - `clip_steps`: Clip every step of the flow to [-1, 1], and the action that is distilled, not
        the flow's end alone.
    - `network`: The networks of the behavioural flow and the actor.
    """

    alpha: FloatLike = 10.0
    flow_steps: int = eqx.field(static=True, default=10)
    normalise_q: bool = eqx.field(static=True, default=False)
    clip_steps: bool = eqx.field(static=True, default=False)
    network: NetworkConfig = eqx.field(static=True, default=MLPConfig())

    def __check_init__(self):
        check_range("alpha", self.alpha)
        check_sizes(flow_steps=self.flow_steps)

    def init(self, observation_size: int, action_size: int, *, key: Key) -> OneStepParams:
        flow_key, actor_key = jax.random.split(key)
        inputs = observation_size + action_size
        return OneStepParams(
            ActionVelocity(self.network.build(inputs + 1, action_size, key=flow_key)),
            OneStepActor(self.network.build(inputs, action_size, key=actor_key)),
        )

    def noise(self, shape: tuple[int, ...], *, key: Key) -> OneStepNoise:
        keys = jax.random.split(key, 3)
        return OneStepNoise(
            bc_action=jax.random.normal(keys[0], shape),
            bc_time=jax.random.uniform(keys[1], shape[:1]),
            actor=jax.random.normal(keys[2], shape),
        )

    def sample(self, params: OneStepParams, observation: Observations, noise: Actions) -> Actions:
        return jnp.clip(jax.vmap(params.actor)(observation, noise), -1, 1)

    def behaviour(
        self, params: OneStepParams, observation: Observations, noise: Actions
    ) -> Actions:
        return integrate_actions(
            params.flow, noise, observation, num_steps=self.flow_steps, clip_steps=self.clip_steps
        )

    def loss(
        self,
        params: OneStepParams,
        slow: None,
        batch: Batch,
        critique: Critique,
        noise: OneStepNoise,
    ) -> tuple[Scalar, Metrics]:
        flow_loss = behavioural_flow_loss(params.flow, batch, noise.bc_action, noise.bc_time)
        cloned = self.behaviour(frozen(params), batch.observation, noise.actor)
        action = jax.vmap(params.actor)(batch.observation, noise.actor)
        clipped = jnp.clip(action, -1, 1)
        distillation = distillation_loss(clipped if self.clip_steps else action, cloned)

        value = critique.q(clipped)
        q_loss = policy_loss(value, normalise=self.normalise_q)

        loss = flow_loss + self.alpha * distillation + q_loss
        return loss, {
            "actor_loss": loss,
            "bc_flow_loss": flow_loss,
            "actor_distillation_loss": distillation,
            "q_loss": q_loss,
            "actor_q": jnp.mean(value),
        }
