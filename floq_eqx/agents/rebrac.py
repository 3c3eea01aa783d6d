"""ReBRAC: TD3 with behavioural penalties on the actor and on the critic's target.

Source: Tarasov et al., "Revisiting the Minimalist Approach to Offline Reinforcement Learning"
(arXiv 2305.09836), as in FQL's released code.
"""

from typing import ClassVar

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from .._types import Action, FloatLike, Key, Metrics, Observation, Scalar
from ..actors import GaussianActor
from ..critics import Critic, member_values
from ..data.transitions import Batch
from ..losses import critic_loss, policy_loss
from ..networks import MLPConfig, NetworkConfig, ensemble
from ..targets import td_target
from .base import Agent, State, average, check_range, check_sizes, frozen


class RebracParams(eqx.Module):
    """The critic's members, stacked, and the actor; the targets hold the same."""

    critic: Critic
    actor: GaussianActor


class RebracNoise(eqx.Module):
    """`target_policy`: standard normal, before it is scaled and clipped."""

    target_policy: Float[Array, "batch action"]


class ReBRAC(Agent):
    """Revisited behaviour-regularised actor-critic.

    Batches need their `next_action`.

    **Arguments:**

    - `action_size`: components of an action; `for_data` fills it in.
    - `learning_rate`: of Adam.
    - `decay_updates`: the learning rate falls to zero as a cosine over so many updates; `None`
        keeps it, as the paper does.
    - `target_rate`: τ of the targets, in [0, 1].
    - `discount`: γ, in [0, 1).
    - `alpha_actor`: the weight of the actor's squared distance from the data's action.
    - `alpha_critic`: that of the next action from the data's, off the target's next value.
    - `actor_every`: updates from one of the actor and the targets to the next.
    - `actor_noise`: the standard deviation of the target policy's noise.
    - `actor_noise_clip`: its largest size.
    - `ensemble_size`: members of the critic; the target is their minimum.
    - `critic`: its network.
    - `actor`: the actor's, whose output a tanh bounds.
    """

    uses_next_action: ClassVar[bool] = True

    action_size: int | None = eqx.field(static=True, default=None)
    learning_rate: FloatLike = 3e-4
    decay_updates: int | None = eqx.field(static=True, default=None)
    target_rate: FloatLike = 0.005
    discount: FloatLike = 0.99
    alpha_actor: FloatLike = 0.1
    alpha_critic: FloatLike = 0.01
    actor_every: int = eqx.field(static=True, default=2)
    actor_noise: FloatLike = 0.2
    actor_noise_clip: FloatLike = 0.5
    ensemble_size: int = eqx.field(static=True, default=2)
    critic: NetworkConfig = eqx.field(static=True, default=MLPConfig(layer_norm=True))
    actor: NetworkConfig = eqx.field(static=True, default=MLPConfig(output_scale=0.01))

    def __check_init__(self):
        for name in ("alpha_actor", "alpha_critic", "actor_noise", "actor_noise_clip"):
            check_range(name, getattr(self, name), 0)
        check_sizes(actor_every=self.actor_every)

    def init(self, observation_size: int, action_size: int, *, key: Key) -> State:
        self.check_init_sizes(observation_size, action_size)
        critic_key, actor_key = jax.random.split(key)
        critic = ensemble(
            lambda k: Critic(self.critic.build(observation_size + action_size, 1, key=k)),
            self.ensemble_size,
            key=critic_key,
        )
        network = self.actor.build(observation_size, action_size, key=actor_key)
        params = RebracParams(critic, GaussianActor(network, squash=True))
        return self.fresh_state(params, params)

    def noise(self, batch_size: int, *, key: Key) -> RebracNoise:
        return RebracNoise(jax.random.normal(key, self.action_shape(batch_size)))

    def loss(
        self, params: RebracParams, targets: RebracParams, batch: Batch, noise: RebracNoise
    ) -> tuple[Scalar, Metrics]:
        critic, metrics = self.critic_loss(params, targets, batch, noise)
        actor, actor_metrics = self.actor_loss(params, batch)
        loss = critic + actor
        return loss, {"loss": loss} | metrics | actor_metrics

    def critic_loss(
        self, params: RebracParams, targets: RebracParams, batch: Batch, noise: RebracNoise
    ) -> tuple[Scalar, Metrics]:
        """The mean squared TD error, with the next action's penalty in the target."""
        if batch.next_action is None:
            raise ValueError(
                "ReBRAC needs the data's next actions: load the dataset with with_next_action=True."
            )
        limit = self.actor_noise_clip
        blur = jnp.clip(self.actor_noise * noise.target_policy, -limit, limit)
        next_action = jnp.clip(jax.vmap(targets.actor)(batch.next_observation) + blur, -1, 1)
        next_q = jnp.min(member_values(targets.critic, batch.next_observation, next_action), axis=0)
        penalty = jnp.sum((next_action - batch.next_action) ** 2, axis=1)
        target = td_target(
            batch.reward,
            batch.mask,
            next_q - self.alpha_critic * penalty,
            discount=self.discount,
        )
        q = member_values(params.critic, batch.observation, batch.action)
        loss = critic_loss(q, target)
        return loss, {
            "critic_loss": loss,
            "q": jnp.mean(q),
            "q_min": jnp.min(q),
            "q_max": jnp.max(q),
        }

    def actor_loss(self, params: RebracParams, batch: Batch) -> tuple[Scalar, Metrics]:
        """The normalised Q, and the squared distance from the data's action."""
        action = jax.vmap(params.actor)(batch.observation)
        q = jnp.min(member_values(frozen(params.critic), batch.observation, action), axis=0)
        q_loss = policy_loss(q, normalise=True)
        distance = jnp.sum((action - batch.action) ** 2, axis=1)
        distance = jnp.mean(distance)
        bc_loss = self.alpha_actor * distance
        loss = q_loss + bc_loss
        return loss, {
            "actor_loss": loss,
            "q_loss": q_loss,
            "bc_loss": bc_loss,
            "action_error": distance,
        }

    def update(self, state: State, batch: Batch, noise: RebracNoise) -> tuple[State, Metrics]:
        """As every agent's, but the actor's loss counts in every `actor_every`-th update only,
        from the first on.
        """

        def objective(params: RebracParams) -> tuple[Scalar, Metrics]:
            critic, metrics = self.critic_loss(params, state.targets, batch, noise)
            actor, actor_metrics = self.actor_loss(params, batch)
            loss = critic + jnp.where(self._moves_actor(state), actor, 0.0)
            return loss, {"loss": loss} | metrics | actor_metrics

        return self.descend(state, objective)

    def next_targets(self, state: State) -> RebracParams:
        averaged = average(state.targets, state.params, self.target_rate)
        moves = self._moves_actor(state)
        return jax.tree.map(lambda a, b: jnp.where(moves, a, b), averaged, state.targets)

    def _moves_actor(self, state: State) -> Bool[Array, ""]:
        return state.step % self.actor_every == 0

    def explore(self, state: State, observation: Observation, *, key: Key) -> Action:
        """The action, with the target policy's noise."""
        limit = self.actor_noise_clip
        noise = self.actor_noise * jax.random.normal(key, self.action_shape())
        action = state.params.actor(observation) + jnp.clip(noise, -limit, limit)
        return jnp.clip(action, -1, 1)

    def act(self, state: State, observation: Observation, *, key: Key) -> Action:
        return state.params.actor(observation)
