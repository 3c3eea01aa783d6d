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

from ..._types import Actions, AtLeastZero, Key, Loss, Observations
from ...data.transitions import Batch
from ...losses import distillation_loss
from ...modules.actors import OneStepActor
from ...modules.velocity import ActionVelocity
from ...networks import MLPConfig, NetworkConfig
from ..agent import frozen
from .behavioural_flow import BehaviouralFlow, BehaviouralFlowNoise
from .policy import AbstractPolicy, Critique


class OneStepParams(eqx.Module):
    """The behavioural flow and the one-step actor."""

    flow: ActionVelocity
    actor: OneStepActor


class OneStepNoise(BehaviouralFlowNoise):
    """The flow's, and the noise of the actor, standard normal."""

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
    - `time_features`: The number of sinusoidal features of the flow's time, even and at least 4;
        `None` for the time itself.
    """

    alpha: AtLeastZero = 10.0
    flow_steps: int = eqx.field(static=True, default=10)
    normalise_q: bool = eqx.field(static=True, default=False)
    clip_steps: bool = eqx.field(static=True, default=False)
    network: NetworkConfig = eqx.field(static=True, default=MLPConfig())
    time_features: int | None = eqx.field(static=True, default=None)

    def __check_init__(self):
        self.clone.embedding()

    @property
    def clone(self) -> BehaviouralFlow:
        """The behavioural flow."""
        return BehaviouralFlow(self.flow_steps, self.clip_steps, self.network, self.time_features)

    def init(self, observation_size: int, action_size: int, *, key: Key) -> OneStepParams:
        flow_key, actor_key = jax.random.split(key)
        actor = self.network.build(observation_size + action_size, action_size, key=actor_key)
        flow = self.clone.init(observation_size, action_size, key=flow_key)
        return OneStepParams(flow, OneStepActor(actor))

    def noise(self, shape: tuple[int, ...], *, key: Key) -> OneStepNoise:
        keys = jax.random.split(key, 3)
        x0, actor = (jax.random.normal(k, shape) for k in (keys[0], keys[2]))
        return OneStepNoise(x0, jax.random.uniform(keys[1], shape[:1]), actor)

    def sample(self, params: OneStepParams, observation: Observations, noise: Actions) -> Actions:
        return jnp.clip(jax.vmap(params.actor)(observation, noise), -1, 1)

    def behaviour(
        self, params: OneStepParams, observation: Observations, noise: Actions
    ) -> Actions:
        return self.clone.sample(params.flow, observation, noise)

    def loss(
        self,
        params: OneStepParams,
        slow: None,
        batch: Batch,
        critique: Critique,
        noise: OneStepNoise,
    ) -> Loss:
        flow_loss, _ = self.clone.loss(params.flow, None, batch, critique, noise)
        cloned = self.behaviour(frozen(params), batch.observation, noise.actor)
        action = jax.vmap(params.actor)(batch.observation, noise.actor)
        clipped = jnp.clip(action, -1, 1)
        distillation = distillation_loss(clipped if self.clip_steps else action, cloned)

        q_loss, metrics = critique.raised(clipped, normalise=self.normalise_q)
        loss = flow_loss + self.alpha * distillation + q_loss
        return loss, metrics | {
            "actor_loss": loss,
            "bc_flow_loss": flow_loss,
            "actor_distillation_loss": distillation,
        }
