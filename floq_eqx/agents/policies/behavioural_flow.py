r"""BehaviouralFlow: a flow of actions that clones the data's policy.

The field v(t, x | s) is matched to straight paths from standard normal $x_0$ to the data's action,

$$\mathbb{E} \left\lVert v(t, (1 - t)\, x_0 + t\, a \mid s) - (a - x_0) \right\rVert^2,$$

and an action is where Euler's steps take $x_0$. Source: FQL, arXiv 2502.02538, section 4.
"""

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from ..._checks import check_sizes
from ..._types import Actions, Key, Metrics, Observations, Scalar
from ...data.transitions import Batch
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
    """

    flow_steps: int = eqx.field(static=True, default=10)
    clip_steps: bool = eqx.field(static=True, default=False)
    network: NetworkConfig = eqx.field(static=True, default=MLPConfig())

    def __check_init__(self):
        check_sizes(flow_steps=self.flow_steps)

    @property
    def uses_value(self) -> bool:
        return False

    def init(self, observation_size: int, action_size: int, *, key: Key) -> ActionVelocity:
        inputs = observation_size + action_size + 1
        return ActionVelocity(self.network.build(inputs, action_size, key=key))

    def noise(self, shape: tuple[int, ...], *, key: Key) -> BehaviouralFlowNoise:
        action_key, time_key = jax.random.split(key)
        return BehaviouralFlowNoise(
            bc_action=jax.random.normal(action_key, shape),
            bc_time=jax.random.uniform(time_key, shape[:1]),
        )

    def sample(self, params: ActionVelocity, observation: Observations, noise: Actions) -> Actions:
        return integrate_actions(
            params, noise, observation, num_steps=self.flow_steps, clip_steps=self.clip_steps
        )

    def behaviour(
        self, params: ActionVelocity, observation: Observations, noise: Actions
    ) -> Actions:
        """`sample`'s actions: the policy is the clone itself."""
        return self.sample(params, observation, noise)

    def loss(
        self,
        params: ActionVelocity,
        slow: None,
        batch: Batch,
        critique: Critique,
        noise: BehaviouralFlowNoise,
    ) -> tuple[Scalar, Metrics]:
        loss = behavioural_flow_loss(params, batch, noise.bc_action, noise.bc_time)
        return loss, {"actor_loss": loss, "bc_flow_loss": loss}


def integrate_actions(
    flow: ActionVelocity,
    x0: Actions,
    observation: Observations,
    *,
    num_steps: int,
    clip_steps: bool = False,
) -> Actions:
    """Where Euler's steps along the behavioural flow take x0, clipped to [-1, 1] at the end or,
    with `clip_steps`, after every step.
    """

    def velocity(t: Scalar, x: Actions) -> Actions:
        return action_velocities(flow, t, x, observation)

    if clip_steps:
        velocity = confine(velocity, -1, 1, num_steps=num_steps)
    solution = solve_flow(velocity, x0, num_steps=num_steps, throw=False)
    return jnp.clip(solution.value, -1, 1)


def behavioural_flow_loss(
    flow: ActionVelocity, batch: Batch, x0: Actions, time: Float[Array, "batch"]
) -> Scalar:
    """Flow matching from noise to the actions of the data."""
    path = linear_path(x0, batch.action, time)
    velocity = action_velocities(flow, path.t, path.xt, batch.observation)
    return flow_matching_loss(velocity, path.velocity)
