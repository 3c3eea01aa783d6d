"""FQL with a categorical critic: a histogram over returns, trained by cross-entropy.

Sources: Farebrother et al., "Stop Regressing: Training Value Functions via Classification for
Scalable Deep RL" (arXiv 2403.03950), for the histogram of a scalar target; Bellemare, Dabney and
Munos, "A Distributional Perspective on Reinforcement Learning" (arXiv 1707.06887), for C51's.
"""

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from .._types import FloatLike, Key, Metrics, Number, Scalar
from ..critics import CategoricalCritic, member_logits
from ..data.transitions import Batch
from ..embeddings import HLGauss
from ..losses import categorical_loss, squared_error
from ..networks import MLPConfig, NetworkConfig, ensemble
from ..targets import (
    Aggregation,
    Backup,
    aggregate,
    categorical_td_target,
    td_target,
    value_bounds,
)
from .base import State, average, check_choice, check_range, check_sizes
from .flow_policy import FlowPolicy, FlowPolicyAgent, FqlNoise, Proposal


class C51Params(eqx.Module):
    """The categorical critic's members, stacked, and the policy."""

    critic: CategoricalCritic
    policy: FlowPolicy


class C51(FlowPolicyAgent):
    """FQL's policy on a categorical critic.

    Its noise is FQL's.

    **Arguments:**

    - `action_size`: components of an action; `for_data` fills it in.
    - `reward_min`, `reward_max`: the smallest and largest reward; `for_data` fills them in.
    - `learning_rate`: of Adam.
    - `decay_updates`: the learning rate falls to zero as a cosine over so many updates; `None`
        keeps it, as the papers do.
    - `target_rate`: τ of the target critic, in [0, 1].
    - `discount`: γ, in [0, 1).
    - `alpha`: the weight of the actor's distillation from the behavioural flow.
    - `backup`: `expected` fits the HL-Gauss histogram of the scalar TD target; `distributional`
        is C51's, the next return's distribution, moved and put back onto the atoms.
    - `num_bins`: bins over the returns, at least 2; their middles are the atoms.
    - `sigma`: the HL-Gauss histogram's standard deviation in bin widths.
    - `reward_offset`: o in the support, [r_min - o, r_max + o] / (1 - γ), as they are at `init`.
    - `ensemble_size`: members of the critic.
    - `aggregation`: how the target combines the members: by the mean, or for each transition
        the member of the lowest Q.
    - `num_candidates`: N > 1 makes `act` draw N actions and choose by Q.
    - `proposal`: where they come from: the one-step actor or the behavioural flow.
    - `temperature`: of the choice, in units of the return; at 0 the best is taken.
    - `flow_steps`: Euler steps of the behavioural flow.
    - `normalise_q`: divide the actor's Q term by mean |Q|.
    - `critic`: its network.
    - `actor`: the networks of the behavioural flow and the one-step actor.
    """

    action_size: int | None = eqx.field(static=True, default=None)
    reward_min: FloatLike = -1.0
    reward_max: FloatLike = 0.0
    learning_rate: FloatLike = 3e-4
    decay_updates: int | None = eqx.field(static=True, default=None)
    target_rate: FloatLike = 0.005
    discount: FloatLike = 0.99
    alpha: FloatLike = 10.0
    backup: Backup = eqx.field(static=True, default="expected")
    num_bins: int = eqx.field(static=True, default=101)
    sigma: Number = eqx.field(static=True, default=0.75)
    reward_offset: Number = eqx.field(static=True, default=0.01)
    ensemble_size: int = eqx.field(static=True, default=2)
    aggregation: Aggregation = eqx.field(static=True, default="mean")
    num_candidates: int = eqx.field(static=True, default=1)
    proposal: Proposal = eqx.field(static=True, default="one_step")
    temperature: FloatLike = 0.0
    flow_steps: int = eqx.field(static=True, default=10)
    normalise_q: bool = eqx.field(static=True, default=False)
    critic: NetworkConfig = eqx.field(static=True, default=MLPConfig(layer_norm=True))
    actor: NetworkConfig = eqx.field(static=True, default=MLPConfig())

    def __check_init__(self):
        check_choice("backup", self.backup, Backup)
        check_sizes(num_bins=self.num_bins)
        check_range("sigma", self.sigma, 0)

    def init(self, observation_size: int, action_size: int, *, key: Key) -> State:
        self.check_init_sizes(observation_size, action_size)
        critic_key, policy_key = jax.random.split(key)
        low, high = value_bounds(
            float(self.reward_min) - self.reward_offset,
            float(self.reward_max) + self.reward_offset,
            float(self.discount),
        )
        histogram = HLGauss(float(low), float(high), self.num_bins + 1, self.sigma)
        inputs = observation_size + action_size
        critic = ensemble(
            lambda k: CategoricalCritic(self.critic.build(inputs, self.num_bins, key=k), histogram),
            self.ensemble_size,
            key=critic_key,
        )
        policy = FlowPolicy(observation_size, action_size, self.actor, key=policy_key)
        return self.fresh_state(C51Params(critic, policy), critic)

    def noise(self, batch_size: int, *, key: Key) -> FqlNoise:
        return FqlNoise.draw(self.action_shape(batch_size), key=key)

    def critic_loss(
        self, params: C51Params, targets: CategoricalCritic, batch: Batch, noise: FqlNoise
    ) -> tuple[Scalar, Metrics]:
        """The cross-entropy of every member against the target's histogram."""
        next_action = jax.vmap(params.policy.act)(batch.next_observation, noise.next_action)
        next_logits = member_logits(targets, batch.next_observation, next_action)
        target = jax.lax.stop_gradient(self.target_histogram(targets, next_logits, batch))
        logits = member_logits(params.critic, batch.observation, batch.action)
        loss = categorical_loss(logits, target)
        q = jnp.mean(params.critic.mean(logits), axis=0)
        return loss, {
            "critic_loss": loss,
            "td_error": jnp.mean(squared_error(q, target @ targets.histogram.centers)),
            "q": jnp.mean(q),
        }

    def target_histogram(
        self,
        targets: CategoricalCritic,
        next_logits: Float[Array, "ensemble batch bins"],
        batch: Batch,
    ) -> Float[Array, "batch bins"]:
        """What every member is to predict."""
        next_q = targets.mean(next_logits)
        if self.backup == "expected":
            q = aggregate(next_q, self.aggregation)
            target = td_target(batch.reward, batch.mask, q, discount=self.discount)
            return jax.vmap(targets.histogram)(target)
        probability = jax.nn.softmax(next_logits)
        if self.aggregation == "mean":
            probability = jnp.mean(probability, axis=0)
        else:
            lowest = jnp.argmin(next_q, axis=0)
            probability = jnp.take_along_axis(probability, lowest[None, :, None], axis=0)[0]
        return categorical_td_target(
            batch.reward,
            batch.mask,
            probability,
            targets.histogram.centers,
            discount=self.discount,
        )

    def q(
        self,
        critic: CategoricalCritic,
        observation: Float[Array, "batch observation"],
        action: Float[Array, "batch action"],
    ) -> Float[Array, "batch"]:
        """The mean over members of their histograms' means."""
        return jnp.mean(critic.mean(member_logits(critic, observation, action)), axis=0)

    def extracted_value(
        self,
        params: C51Params,
        observation: Float[Array, "batch observation"],
        action: Float[Array, "batch action"],
        noise: FqlNoise,
    ) -> Float[Array, "batch"]:
        return self.q(params.critic, observation, action)

    def candidate_value(
        self,
        params: C51Params,
        observation: Float[Array, "candidate observation"],
        action: Float[Array, "candidate action"],
        *,
        key: Key,
    ) -> Float[Array, "candidate"]:
        return self.q(params.critic, observation, action)

    def next_targets(self, state: State) -> CategoricalCritic:
        return average(state.targets, state.params.critic, self.target_rate)
