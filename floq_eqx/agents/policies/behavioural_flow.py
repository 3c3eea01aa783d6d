r"""BehaviouralFlow: a flow of actions that clones the data's policy.

The field v(t, x | s) is matched to straight paths from standard normal $x_0$ to the data's action,

$$\mathbb{E} \left\lVert v(t, (1 - t)\, x_0 + t\, a \mid s) - (a - x_0) \right\rVert^2,$$

and an action is where Euler's steps take $x_0$. Source: FQL, arXiv 2502.02538, section 4.
"""

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from ..._types import Actions, Key, Loss, Observations, Scalar
from ...data.transitions import Batch
from ...embeddings import AbstractEmbedding, Rescale, Sinusoidal
from ...integrate import confine, solve_flow
from ...losses import flow_matching_loss
from ...modules.velocity import ActionVelocity, action_velocities
from ...networks import MLPConfig, NetworkConfig
from ...paths import linear_path
from .policy import AbstractPolicy, Critique


class BehaviouralFlowNoise(eqx.Module):
    """x0, standard normal, and t, uniform in [0, 1)."""

    bc_action: Actions
    bc_time: Float[Array, "batch"]


class BehaviouralFlow(AbstractPolicy[ActionVelocity, None, BehaviouralFlowNoise]):
    """A clone of the data's policy, of any shape.

    **Arguments:**

    - `flow_steps`: The number of Euler steps of the flow.
    - `clip_steps`: Clip every step of the flow to [-1, 1], not its end alone.
    - `network`: The network of the flow.
    - `time_features`: The number of sinusoidal features of the flow's time, even and at least 4;
        `None` for the time itself.
    """

    flow_steps: int = eqx.field(static=True, default=10)
    clip_steps: bool = eqx.field(static=True, default=False)
    network: NetworkConfig = eqx.field(static=True, default=MLPConfig())
    time_features: int | None = eqx.field(static=True, default=None)

    def __check_init__(self):
        self.embedding()

    @property
    def uses_value(self) -> bool:
        return False

    def init(self, observation_size: int, action_size: int, *, key: Key) -> ActionVelocity:
        embedding = self.embedding()
        inputs = observation_size + action_size + embedding.size
        return ActionVelocity(self.network.build(inputs, action_size, key=key), embedding)

    def embedding(self) -> AbstractEmbedding:
        """What the flow sees of its time."""
        return Rescale() if self.time_features is None else Sinusoidal(self.time_features)

    def noise(self, shape: tuple[int, ...], *, key: Key) -> BehaviouralFlowNoise:
        keys = jax.random.split(key)
        x0, time = jax.random.normal(keys[0], shape), jax.random.uniform(keys[1], shape[:1])
        return BehaviouralFlowNoise(x0, time)

    def sample(self, params: ActionVelocity, observation: Observations, noise: Actions) -> Actions:
        """Where Euler's steps take the noise, clipped at the end or after every step."""

        def velocity(t: Scalar, x: Actions) -> Actions:
            return action_velocities(params, t, x, observation)

        if self.clip_steps:
            velocity = confine(velocity, -1, 1, num_steps=self.flow_steps)
        solution = solve_flow(velocity, noise, num_steps=self.flow_steps, throw=False)
        return jnp.clip(solution.value, -1, 1)

    behaviour = sample
    """The policy is the clone itself."""

    def loss(
        self,
        params: ActionVelocity,
        slow: None,
        batch: Batch,
        critique: Critique,
        noise: BehaviouralFlowNoise,
    ) -> Loss:
        """Flow matching from noise to the actions of the data."""
        path = linear_path(noise.bc_action, batch.action, noise.bc_time)
        velocity = action_velocities(params, path.t, path.xt, batch.observation)
        loss = flow_matching_loss(velocity, path.velocity, batch.component_valid)
        return loss, {"actor_loss": loss, "bc_flow_loss": loss}
