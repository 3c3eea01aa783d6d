"""The policy of FQL, shared by the agents that extract theirs like it.

A flow of actions clones the behaviour; a one-step actor is distilled from its integral and, in the
same loss, raises Q. Source: FQL, arXiv 2502.02538, section 4, algorithm 1.
"""

import abc
from collections.abc import Callable
from typing import Any, ClassVar, Literal, TypeAlias

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from .._types import Action, FloatLike, Key, Metrics, Observation, Scalar
from ..actors import AbstractPolicy, OneStepActor
from ..data.transitions import Batch
from ..integrate import confine, solve_flow
from ..losses import distillation_loss, flow_matching_loss, policy_loss
from ..networks import NetworkConfig
from ..paths import linear_path
from ..velocity import ActionVelocity, action_velocities
from .base import Agent, State, best_of, check_choice, frozen

Proposal: TypeAlias = Literal["one_step", "flow"]


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


class FqlNoise(FlowPolicyNoise):
    """The random numbers of one update of FQL, and of agents that differ from it in the critic
    alone: standard normal, but `bc_time` uniform in [0, 1).
    """

    next_action: Float[Array, "batch action"]

    @classmethod
    def draw(cls, shape: tuple[int, ...], *, key: Key) -> "FqlNoise":
        """Draws them for actions of `shape`, `[batch action]`."""
        keys = jax.random.split(key, 4)
        return cls(
            next_action=jax.random.normal(keys[0], shape),
            bc_action=jax.random.normal(keys[1], shape),
            bc_time=jax.random.uniform(keys[2], shape[:1]),
            actor=jax.random.normal(keys[3], shape),
        )


def integrate_actions(
    flow: ActionVelocity,
    x0: Float[Array, "batch action"],
    observation: Float[Array, "batch observation"],
    *,
    num_steps: int,
    clip_steps: bool = False,
) -> Float[Array, "batch action"]:
    """Where Euler's steps along the behavioural flow take x0, clipped to [-1, 1] at the end or,
    with `clip_steps`, after every step.
    """

    def velocity(t: Scalar, x: Float[Array, "batch action"]) -> Float[Array, "batch action"]:
        return action_velocities(flow, t, x, observation)

    if clip_steps:
        velocity = confine(velocity, -1, 1, num_steps=num_steps)
    solution = solve_flow(velocity, x0, num_steps=num_steps, throw=False)
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
    clip_steps: bool = False,
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
    - `clip_steps`: clip every step of the flow, and the action that is distilled.

    **Returns:** the loss, and its terms as metrics.
    """
    flow_loss = behavioural_flow_loss(policy.flow, batch, noise.bc_action, noise.bc_time)
    cloned = integrate_actions(
        frozen(policy.flow),
        noise.actor,
        batch.observation,
        num_steps=num_steps,
        clip_steps=clip_steps,
    )
    action = jax.vmap(policy.actor)(batch.observation, noise.actor)
    clipped = jnp.clip(action, -1, 1)
    distillation = distillation_loss(clipped if clip_steps else action, cloned)

    value = q(clipped)
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
    """An agent with this policy: what is its own is the critic, and the Q that it extracts.

    At test time it can draw `num_candidates` actions of its `proposal`, the one-step actor or the
    behavioural flow, and choose among them by Q at a `temperature`: [`floq_eqx.agents.best_of`][].
    """

    clips_flow_steps: ClassVar[bool] = False
    """Whether every step of the behavioural flow is clipped, not its end alone."""

    discount: eqx.AbstractVar[FloatLike]
    alpha: eqx.AbstractVar[FloatLike]
    num_candidates: eqx.AbstractVar[int]
    proposal: eqx.AbstractVar[Proposal]
    temperature: eqx.AbstractVar[FloatLike]
    flow_steps: eqx.AbstractVar[int]
    normalise_q: eqx.AbstractVar[bool]

    def __check_init__(self):
        check_choice("proposal", self.proposal, Proposal)

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

    @abc.abstractmethod
    def candidate_value(
        self,
        params: Any,
        observation: Float[Array, "candidate observation"],
        action: Float[Array, "candidate action"],
        *,
        key: Key,
    ) -> Float[Array, "candidate"]:
        """The Q by which `act` chooses; what is random in it is the same for all candidates."""

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
            clip_steps=self.clips_flow_steps,
        )
        loss = critic + policy
        return loss, {"loss": loss} | metrics | policy_metrics

    def propose(
        self,
        policy: FlowPolicy,
        observation: Float[Array, "candidate observation"],
        noise: Float[Array, "candidate action"],
    ) -> Float[Array, "candidate action"]:
        """The action that each noise becomes under the `proposal`."""
        if self.proposal == "one_step":
            return jax.vmap(policy.act)(observation, noise)
        return integrate_actions(
            policy.flow,
            noise,
            observation,
            num_steps=self.flow_steps,
            clip_steps=self.clips_flow_steps,
        )

    def act(self, state: State, observation: Observation, *, key: Key) -> Action:
        params, count = state.params, self.num_candidates
        observation = jnp.broadcast_to(observation, (count, *observation.shape))
        if count == 1:
            noise = jax.random.normal(key, self.action_shape(1))
            return self.propose(params.policy, observation, noise)[0]
        action_key, value_key, choice_key = jax.random.split(key, 3)
        noise = jax.random.normal(action_key, self.action_shape(count))
        action = self.propose(params.policy, observation, noise)
        value = self.candidate_value(params, observation, action, key=value_key)
        return best_of(action, value, temperature=self.temperature, key=choice_key)
