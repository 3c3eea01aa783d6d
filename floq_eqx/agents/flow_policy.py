"""The policy of FQL, shared by the agents that extract theirs like it.

A flow of actions clones the behaviour; a one-step actor is distilled from its integral and, in the
same loss, raises Q. Source: FQL, arXiv 2502.02538, section 4, algorithm 1.
"""

import abc
from collections.abc import Callable
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from .._types import Action, FloatLike, Key, Metrics, Observation, Scalar
from ..actors import AbstractPolicy, OneStepActor
from ..data.transitions import Batch
from ..integrate import solve_flow
from ..losses import distillation_loss, flow_matching_loss, policy_loss
from ..networks import NetworkConfig
from ..paths import linear_path
from ..velocity import ActionVelocity, action_velocities
from .base import Agent, frozen


class FlowPolicy(AbstractPolicy):
    """The parameters: the behavioural flow and the one-step actor."""

    flow: ActionVelocity
    actor: OneStepActor

    def __init__(
        self, observation_size: int, action_size: int, network: NetworkConfig, *, key: Key
    ):
        flow_key, actor_key = jax.random.split(key)
        inputs = observation_size + action_size
        self.flow = ActionVelocity(network.build(inputs + 1, action_size, key=flow_key))
        self.actor = OneStepActor(network.build(inputs, action_size, key=actor_key))

    def act(self, observation: Observation, noise: Action) -> Action:
        """The one-step actor's action, clipped to [-1, 1]."""
        return jnp.clip(self.actor(observation, noise), -1, 1)


class FlowPolicyNoise(eqx.Module):
    """The random numbers of `flow_policy_loss`: standard normal, but times uniform in [0, 1)."""

    bc_action: Float[Array, "batch action"]
    bc_time: Float[Array, "batch"]
    actor: Float[Array, "batch action"]


def integrate_actions(
    flow: ActionVelocity,
    x0: Float[Array, "batch action"],
    observation: Float[Array, "batch observation"],
    *,
    num_steps: int,
) -> Float[Array, "batch action"]:
    """Where Euler's steps along the behavioural flow take x0, clipped to [-1, 1]."""
    solution = solve_flow(
        lambda t, x: action_velocities(flow, t, x, observation),
        x0,
        num_steps=num_steps,
        throw=False,
    )
    return jnp.clip(solution.value, -1, 1)


def behavioural_flow_loss(
    flow: ActionVelocity,
    batch: Batch,
    x0: Float[Array, "batch action"],
    time: Float[Array, "batch"],
) -> Scalar:
    """Flow matching from noise to the actions of the data."""
    path = linear_path(x0, batch.action, time)
    velocity = action_velocities(flow, path.t, path.xt, batch.observation)
    return flow_matching_loss(velocity, path.velocity)


def flow_policy_loss(
    policy: FlowPolicy,
    q: Callable[[Float[Array, "batch action"]], Float[Array, "batch"]],
    batch: Batch,
    noise: FlowPolicyNoise,
    *,
    alpha: FloatLike,
    num_steps: int,
    normalise_q: bool,
) -> tuple[Scalar, Metrics]:
    r"""Behavioural flow matching + $\alpha$ distillation - Q.

    **Arguments:**

    - `policy`: the parameters that receive the gradient.
    - `q`: the value of a batch of actions in the batch's observations; its parameters must be
        frozen by the caller.
    - `batch`, `noise`: the data, and the random numbers.
    - `alpha`: the weight of the distillation from the flow to the actor.
    - `num_steps`: Euler steps of the flow.
    - `normalise_q`: divide the Q term by mean |Q|.

    **Returns:** the loss, and its terms as metrics.
    """
    flow_loss = behavioural_flow_loss(policy.flow, batch, noise.bc_action, noise.bc_time)
    cloned = integrate_actions(
        frozen(policy.flow), noise.actor, batch.observation, num_steps=num_steps
    )
    action = jax.vmap(policy.actor)(batch.observation, noise.actor)
    distillation = distillation_loss(action, cloned)

    value = q(jnp.clip(action, -1, 1))
    q_loss = policy_loss(value, normalise=normalise_q)

    loss = flow_loss + alpha * distillation + q_loss
    return loss, {
        "actor_loss": loss,
        "bc_flow_loss": flow_loss,
        "actor_distillation_loss": distillation,
        "q_loss": q_loss,
        "actor_q": jnp.mean(value),
    }


class FlowPolicyAgent(Agent):
    """An agent with this policy: what is its own is the critic, and the Q that it extracts."""

    discount: eqx.AbstractVar[FloatLike]
    alpha: eqx.AbstractVar[FloatLike]
    flow_steps: eqx.AbstractVar[int]
    normalise_q: eqx.AbstractVar[bool]

    @abc.abstractmethod
    def critic_loss(
        self, params: Any, targets: Any, batch: Batch, noise: Any
    ) -> tuple[Scalar, Metrics]:
        """The part of the loss that trains the critic."""

    @abc.abstractmethod
    def extracted_value(
        self,
        params: Any,
        observation: Float[Array, "batch observation"],
        action: Float[Array, "batch action"],
        noise: Any,
    ) -> Float[Array, "batch"]:
        """The Q that the actor raises."""

    def loss(self, params: Any, targets: Any, batch: Batch, noise: Any) -> tuple[Scalar, Metrics]:
        """The critic's loss and the policy's, whose Q passes no gradient on to the critic."""
        critic, metrics = self.critic_loss(params, targets, batch, noise)
        policy, policy_metrics = flow_policy_loss(
            params.policy,
            lambda action: self.extracted_value(frozen(params), batch.observation, action, noise),
            batch,
            noise,
            alpha=self.alpha,
            num_steps=self.flow_steps,
            normalise_q=self.normalise_q,
        )
        loss = critic + policy
        return loss, {"loss": loss} | metrics | policy_metrics
