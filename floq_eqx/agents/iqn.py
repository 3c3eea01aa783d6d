"""FQL with an implicit quantile critic: a distributional critic that integrates nothing.

Sources: Dabney et al., "Implicit Quantile Networks for Distributional Reinforcement Learning"
(arXiv 1806.06923); as a baseline of floq, arXiv 2509.06863, section 5.
"""

from typing import Literal, TypeAlias

import equinox as eqx
import jax
import jax.numpy as jnp
from jax.lax import stop_gradient
from jaxtyping import Array, Float

from .._types import FloatLike, Key, Metrics, Number, Scalar
from ..critics import QuantileCritic, member_quantiles
from ..data.transitions import Batch
from ..embeddings import Fourier
from ..losses import quantile_loss, squared_error
from ..networks import MLPConfig, NetworkConfig, ensemble
from ..targets import Aggregation, aggregate, flow_td_target
from .base import State, average, check_choice, check_range
from .flow_policy import FlowPolicy, FlowPolicyAgent, FlowPolicyNoise, Proposal

QuantileLoss: TypeAlias = Literal["squared", "huber"]


class IqnParams(eqx.Module):
    """The quantile critic's members, stacked, and the policy."""

    critic: QuantileCritic
    policy: FlowPolicy


class IqnNoise(FlowPolicyNoise):
    """The random numbers of one update.

    `next_action` is standard normal; `next_quantile`, `quantile` and `actor_quantile`, of the
    target, the prediction and the policy's loss, are uniform in [0, 1).
    """

    next_action: Float[Array, "batch noise action"]
    next_quantile: Float[Array, "batch noise"]
    quantile: Float[Array, "batch noise"]
    actor_quantile: Float[Array, "batch noise"]


class IQN(FlowPolicyAgent):
    """FQL's policy on implicit quantile networks.

    **Arguments:**

    - `action_size`: components of an action; `for_data` fills it in.
    - `learning_rate`: of Adam.
    - `decay_updates`: the learning rate falls to zero as a cosine over so many updates; `None`
        keeps it, as the papers do.
    - `target_rate`: τ of the target critic, in [0, 1].
    - `discount`: γ, in [0, 1).
    - `alpha`: the weight of the actor's distillation from the behavioural flow.
    - `num_noise`: quantile levels a transition, in the target as in the prediction.
    - `loss_kind`: `squared` weights the squared error by the quantile level, as floq's released
        baseline; `huber` is the quantile Huber loss of the IQN paper.
    - `huber_threshold`: where the Huber loss becomes linear, in units of the return.
    - `ensemble_size`: members of the critic.
    - `aggregation`: how the target combines the members.
    - `num_candidates`: N > 1 makes `act` draw N actions and choose by Q.
    - `proposal`: where they come from: the one-step actor or the behavioural flow.
    - `temperature`: of the choice, in units of the return; at 0 the best is taken.
    - `flow_steps`: Euler steps of the behavioural flow.
    - `normalise_q`: divide the actor's Q term by mean |Q|.
    - `num_terms`: cosines that embed a quantile level.
    - `critic`: its network.
    - `actor`: the networks of the behavioural flow and the one-step actor.
    """

    action_size: int | None = eqx.field(static=True, default=None)
    learning_rate: FloatLike = 3e-4
    decay_updates: int | None = eqx.field(static=True, default=None)
    target_rate: FloatLike = 0.005
    discount: FloatLike = 0.99
    alpha: FloatLike = 10.0
    num_noise: int = eqx.field(static=True, default=8)
    loss_kind: QuantileLoss = eqx.field(static=True, default="squared")
    huber_threshold: Number = eqx.field(static=True, default=1.0)
    ensemble_size: int = eqx.field(static=True, default=2)
    aggregation: Aggregation = eqx.field(static=True, default="mean")
    num_candidates: int = eqx.field(static=True, default=1)
    proposal: Proposal = eqx.field(static=True, default="one_step")
    temperature: FloatLike = 0.0
    flow_steps: int = eqx.field(static=True, default=10)
    normalise_q: bool = eqx.field(static=True, default=False)
    num_terms: int = eqx.field(static=True, default=64)
    critic: NetworkConfig = eqx.field(static=True, default=MLPConfig(layer_norm=True))
    actor: NetworkConfig = eqx.field(static=True, default=MLPConfig())

    def __check_init__(self):
        check_choice("loss_kind", self.loss_kind, QuantileLoss)
        check_range("huber_threshold", self.huber_threshold, 0)

    def init(self, observation_size: int, action_size: int, *, key: Key) -> State:
        self.check_init_sizes(observation_size, action_size)
        critic_key, policy_key = jax.random.split(key)
        embedding = Fourier(self.num_terms)
        inputs = observation_size + action_size + embedding.size
        critic = ensemble(
            lambda k: QuantileCritic(self.critic.build(inputs, 1, key=k), embedding),
            self.ensemble_size,
            key=critic_key,
        )
        policy = FlowPolicy(observation_size, action_size, self.actor, key=policy_key)
        return self.fresh_state(IqnParams(critic, policy), critic)

    def noise(self, batch_size: int, *, key: Key) -> IqnNoise:
        keys = jax.random.split(key, 7)
        shape, levels = self.action_shape(batch_size), (batch_size, self.num_noise)
        return IqnNoise(
            bc_action=jax.random.normal(keys[0], shape),
            bc_time=jax.random.uniform(keys[1], (batch_size,)),
            actor=jax.random.normal(keys[2], shape),
            next_action=jax.random.normal(keys[3], self.action_shape(*levels)),
            next_quantile=jax.random.uniform(keys[4], levels),
            quantile=jax.random.uniform(keys[5], levels),
            actor_quantile=jax.random.uniform(keys[6], levels),
        )

    def critic_loss(
        self, params: IqnParams, targets: QuantileCritic, batch: Batch, noise: IqnNoise
    ) -> tuple[Scalar, Metrics]:
        """Every quantile level against every sample of the target."""
        act = jax.vmap(params.policy.act, in_axes=(None, 0))
        next_action = jax.vmap(act)(batch.next_observation, noise.next_action)
        next_value = aggregate(
            member_quantiles(targets, batch.next_observation, next_action, noise.next_quantile),
            self.aggregation,
        )
        # Each sample keeps its own target, as in a distributional backup.
        target = stop_gradient(
            flow_td_target(
                batch.reward,
                batch.mask,
                next_value,
                discount=self.discount,
                backup="distributional",
            )
        )
        value = member_quantiles(params.critic, batch.observation, batch.action, noise.quantile)
        threshold = self.huber_threshold if self.loss_kind == "huber" else None
        loss = quantile_loss(value, target, noise.quantile, huber_threshold=threshold)
        mean = jnp.mean(value, axis=(0, 2))
        return loss, {
            "critic_loss": loss,
            "td_error": jnp.mean(squared_error(mean, jnp.mean(target, axis=1))),
            "value_variance": jnp.mean(jnp.var(jnp.mean(value, axis=0), axis=1)),
            "q": jnp.mean(value),
        }

    def extracted_value(
        self,
        params: IqnParams,
        observation: Float[Array, "batch observation"],
        action: Float[Array, "batch action"],
        noise: IqnNoise,
    ) -> Float[Array, "batch"]:
        value = member_quantiles(params.critic, observation, action, noise.actor_quantile)
        return jnp.mean(value, axis=(0, 2))

    def next_targets(self, state: State) -> QuantileCritic:
        return average(state.targets, state.params.critic, self.target_rate)

    def candidate_value(
        self,
        params: IqnParams,
        observation: Float[Array, "candidate observation"],
        action: Float[Array, "candidate action"],
        *,
        key: Key,
    ) -> Float[Array, "candidate"]:
        """The mean over members and `num_noise` quantiles at evenly spread levels."""
        levels = (jnp.arange(self.num_noise, dtype=float) + 0.5) / self.num_noise
        levels = jnp.broadcast_to(levels, (len(action), self.num_noise))
        value = member_quantiles(params.critic, observation, action, levels)
        return jnp.mean(value, axis=(0, 2))
