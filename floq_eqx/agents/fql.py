"""FQL: a flow policy distilled into a one-step actor that raises an ordinary critic.

Source: Park, Li and Levine, "Flow Q-Learning" (arXiv 2502.02538), algorithm 1.
"""

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from .._types import FloatLike, Key, Metrics, Scalar
from ..critics import Critic, member_values
from ..data.transitions import Batch
from ..losses import critic_loss, squared_error
from ..networks import MLPConfig, NetworkConfig, ensemble
from ..targets import Aggregation, aggregate, td_target
from .base import State, average
from .flow_policy import FlowPolicy, FlowPolicyAgent, FqlNoise, Proposal


class FqlParams(eqx.Module):
    """The critic's members, stacked, and the policy."""

    critic: Critic
    policy: FlowPolicy


class FQL(FlowPolicyAgent):
    """Flow Q-learning.

    **Arguments:**

    - `action_size`: components of an action; `for_data` fills it in.
    - `learning_rate`: of Adam.
    - `decay_updates`: the learning rate falls to zero as a cosine over so many updates; `None`
        keeps it, as the papers do.
    - `target_rate`: τ of the target critic, in [0, 1].
    - `discount`: γ, in [0, 1).
    - `alpha`: the weight of the actor's distillation from the behavioural flow.
    - `ensemble_size`: members of the critic.
    - `aggregation`: how the target combines the members.
    - `num_candidates`: N > 1 makes `act` draw N actions and choose by Q.
    - `proposal`: where they come from: the one-step actor or the behavioural flow.
    - `temperature`: of the choice, in units of the return; at 0 the best is taken.
    - `flow_steps`: Euler steps of the behavioural flow.
    - `normalise_q`: divide the actor's Q term by mean |Q|.
    - `critic`: its network; a [`floq_eqx.networks.ResidualConfig`][] makes it residual.
    - `actor`: the networks of the behavioural flow and the one-step actor.
    """

    action_size: int | None = eqx.field(static=True, default=None)
    learning_rate: FloatLike = 3e-4
    decay_updates: int | None = eqx.field(static=True, default=None)
    target_rate: FloatLike = 0.005
    discount: FloatLike = 0.99
    alpha: FloatLike = 10.0
    ensemble_size: int = eqx.field(static=True, default=2)
    aggregation: Aggregation = eqx.field(static=True, default="mean")
    num_candidates: int = eqx.field(static=True, default=1)
    proposal: Proposal = eqx.field(static=True, default="one_step")
    temperature: FloatLike = 0.0
    flow_steps: int = eqx.field(static=True, default=10)
    normalise_q: bool = eqx.field(static=True, default=False)
    critic: NetworkConfig = eqx.field(static=True, default=MLPConfig(layer_norm=True))
    actor: NetworkConfig = eqx.field(static=True, default=MLPConfig())

    def init(self, observation_size: int, action_size: int, *, key: Key) -> State:
        self.check_init_sizes(observation_size, action_size)
        critic_key, policy_key = jax.random.split(key)
        critic = ensemble(
            lambda k: Critic(self.critic.build(observation_size + action_size, 1, key=k)),
            self.ensemble_size,
            key=critic_key,
        )
        policy = FlowPolicy(observation_size, action_size, self.actor, key=policy_key)
        return self.fresh_state(FqlParams(critic, policy), critic)

    def noise(self, batch_size: int, *, key: Key) -> FqlNoise:
        return FqlNoise.draw(self.action_shape(batch_size), key=key)

    def critic_loss(
        self, params: FqlParams, targets: Critic, batch: Batch, noise: FqlNoise
    ) -> tuple[Scalar, Metrics]:
        """The mean squared TD error of every member."""
        next_action = jax.vmap(params.policy.act)(batch.next_observation, noise.next_action)
        next_value = aggregate(
            member_values(targets, batch.next_observation, next_action), self.aggregation
        )
        target = td_target(batch.reward, batch.mask, next_value, discount=self.discount)
        q = member_values(params.critic, batch.observation, batch.action)
        loss = critic_loss(q, target)
        return loss, {
            "critic_loss": loss,
            "td_error": jnp.mean(squared_error(jnp.mean(q, axis=0), target)),
            "q": jnp.mean(q),
        }

    def extracted_value(
        self,
        params: FqlParams,
        observation: Float[Array, "batch observation"],
        action: Float[Array, "batch action"],
        noise: FqlNoise,
    ) -> Float[Array, "batch"]:
        return jnp.mean(member_values(params.critic, observation, action), axis=0)

    def next_targets(self, state: State) -> Critic:
        return average(state.targets, state.params.critic, self.target_rate)

    def candidate_value(
        self,
        params: FqlParams,
        observation: Float[Array, "candidate observation"],
        action: Float[Array, "candidate action"],
        *,
        key: Key,
    ) -> Float[Array, "candidate"]:
        """The mean over members."""
        return jnp.mean(member_values(params.critic, observation, action), axis=0)
