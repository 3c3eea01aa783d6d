"""EVOR: a flow of the behaviour's returns, of which a regularised policy is sampled at test time.

Source: Espinosa-Dice, Brantley and Sun, "Expressive Value Learning for Scalable Offline
Reinforcement Learning" (arXiv 2510.08218).
"""

import equinox as eqx
import jax
import jax.numpy as jnp
from jax.lax import stop_gradient
from jaxtyping import Array, Float

from .._types import Action, FloatLike, Key, Metrics, Observation, Scalar
from ..data.transitions import Batch
from ..embeddings import Rescale
from ..integrate import solve_flow
from ..losses import value_flow_loss
from ..networks import MLPConfig, NetworkConfig, ensemble
from ..paths import linear_path
from ..targets import Aggregation, aggregate, flow_td_target, soft_value
from ..velocity import ActionVelocity, ValueVelocity, member_velocities
from .base import Agent, State, average, best_of, check_range, check_sizes, frozen
from .flow_policy import behavioural_flow_loss, integrate_actions


class EvorParams(eqx.Module):
    """The members of the returns' field, stacked, and the behavioural flow."""

    field: ValueVelocity
    flow: ActionVelocity


class EvorNoise(eqx.Module):
    """The random numbers of one update: standard normal, but times uniform in [0, 1).

    `next_action` becomes an action of the behaviour; `next_value` and `value` are z0.
    """

    next_action: Float[Array, "batch noise action"]
    next_value: Float[Array, "batch noise"]
    value: Float[Array, "batch noise"]
    time: Float[Array, "batch noise"]
    bc_action: Float[Array, "batch action"]
    bc_time: Float[Array, "batch"]


class EVOR(Agent):
    """Expressive value learning for offline reinforcement learning.

    No policy is trained but the behaviour's, and no value but its distribution of returns Z. With
    deterministic dynamics and no discount, the best policy under a KL penalty of weight η towards
    the behaviour has Q(s, a) = η log E exp(Z(s, a) / η), and takes actions of the behaviour in
    proportion to exp(Q / η).

    **Arguments:**

    - `action_size`: components of an action; `for_data` fills it in.
    - `learning_rate`: of Adam.
    - `decay_updates`: the learning rate falls to zero as a cosine over so many updates; `None`
        keeps it, as the paper does.
    - `target_rate`: τ of the target field, in [0, 1].
    - `discount`: γ, in [0, 1).
    - `value_temperature`: η in Q, above 0, in units of the return.
    - `temperature`: η in the choice among candidates; at 0 the best is taken.
    - `num_candidates`: N, of the behaviour, among which `act` chooses.
    - `num_noise`: samples of z0 a transition in training.
    - `value_samples`: samples of the return of which `act` forms Q.
    - `num_steps`: Euler steps of the returns' field.
    - `flow_steps`: those of the behavioural flow.
    - `ensemble_size`: members of the field.
    - `aggregation`: how they are combined, sample by sample.
    - `field`: the network of the returns' field.
    - `actor`: that of the behavioural flow.
    """

    action_size: int | None = eqx.field(static=True, default=None)
    learning_rate: FloatLike = 3e-4
    decay_updates: int | None = eqx.field(static=True, default=None)
    target_rate: FloatLike = 0.005
    discount: FloatLike = 0.99
    value_temperature: FloatLike = 1.0
    temperature: FloatLike = 0.0
    num_candidates: int = eqx.field(static=True, default=32)
    num_noise: int = eqx.field(static=True, default=1)
    value_samples: int = eqx.field(static=True, default=16)
    num_steps: int = eqx.field(static=True, default=10)
    flow_steps: int = eqx.field(static=True, default=10)
    ensemble_size: int = eqx.field(static=True, default=2)
    aggregation: Aggregation = eqx.field(static=True, default="mean")
    field: NetworkConfig = eqx.field(static=True, default=MLPConfig(layer_norm=True))
    actor: NetworkConfig = eqx.field(static=True, default=MLPConfig())

    def __check_init__(self):
        check_range("value_temperature", self.value_temperature, 0)
        if isinstance(self.value_temperature, int | float) and self.value_temperature == 0:
            raise ValueError("value_temperature must be above 0; the largest return is its limit.")
        check_sizes(value_samples=self.value_samples)

    def init(self, observation_size: int, action_size: int, *, key: Key) -> State:
        self.check_init_sizes(observation_size, action_size)
        field_key, flow_key = jax.random.split(key)
        inputs = observation_size + action_size
        field = ensemble(
            lambda k: ValueVelocity(self.field.build(inputs + 2, 1, key=k), Rescale(), Rescale()),
            self.ensemble_size,
            key=field_key,
        )
        flow = ActionVelocity(self.actor.build(inputs + 1, action_size, key=flow_key))
        return self.fresh_state(EvorParams(field, flow), field)

    def noise(self, batch_size: int, *, key: Key) -> EvorNoise:
        keys = jax.random.split(key, 6)
        samples = (batch_size, self.num_noise)
        return EvorNoise(
            next_action=jax.random.normal(keys[0], self.action_shape(*samples)),
            next_value=jax.random.normal(keys[1], samples),
            value=jax.random.normal(keys[2], samples),
            time=jax.random.uniform(keys[3], samples),
            bc_action=jax.random.normal(keys[4], self.action_shape(batch_size)),
            bc_time=jax.random.uniform(keys[5], (batch_size,)),
        )

    def loss(
        self, params: EvorParams, targets: ValueVelocity, batch: Batch, noise: EvorNoise
    ) -> tuple[Scalar, Metrics]:
        target = self.td_target(frozen(params.flow), targets, batch, noise)
        path = linear_path(noise.value, target, noise.time)
        velocity = member_velocities(params.field, path.t, path.xt, batch.observation, batch.action)
        flow_loss = value_flow_loss(velocity, path.velocity)
        bc_flow_loss = behavioural_flow_loss(params.flow, batch, noise.bc_action, noise.bc_time)
        loss = flow_loss + bc_flow_loss
        return loss, {
            "loss": loss,
            "critic_loss": flow_loss,
            "actor_loss": bc_flow_loss,
            "target": jnp.mean(target),
        }

    def td_target(
        self, flow: ActionVelocity, targets: ValueVelocity, batch: Batch, noise: EvorNoise
    ) -> Float[Array, "batch noise"]:
        """Samples of the behaviour's return, each with a next action and a next return of its own;
        without gradient.
        """
        size, count = noise.next_value.shape
        next_action = integrate_actions(
            flow,
            jnp.reshape(noise.next_action, (size * count, -1)),
            jnp.repeat(batch.next_observation, count, axis=0),
            num_steps=self.flow_steps,
        )
        next_action = jnp.reshape(next_action, noise.next_action.shape)
        next_value = self.returns(targets, noise.next_value, batch.next_observation, next_action)
        target = flow_td_target(
            batch.reward,
            batch.mask,
            next_value,
            discount=self.discount,
            backup="distributional",
        )
        return stop_gradient(target)

    def returns(
        self,
        field: ValueVelocity,
        z0: Float[Array, "batch noise"],
        observation: Float[Array, "batch observation"],
        action: Float[Array, "batch action"] | Float[Array, "batch noise action"],
    ) -> Float[Array, "batch noise"]:
        """Where the members' fields take every z0, aggregated: samples of the return."""
        solution = solve_flow(
            lambda t, z: member_velocities(field, t, z, observation, action),
            jnp.broadcast_to(z0[None], (self.ensemble_size, *z0.shape)),
            num_steps=self.num_steps,
            throw=False,
        )
        return aggregate(solution.value, self.aggregation)

    def q(
        self,
        field: ValueVelocity,
        z0: Float[Array, "batch noise"],
        observation: Float[Array, "batch observation"],
        action: Float[Array, "batch action"],
    ) -> Float[Array, "batch"]:
        """The regularised Q, of as many samples of the return as there are z0."""
        return soft_value(self.returns(field, z0, observation, action), self.value_temperature)

    def next_targets(self, state: State) -> ValueVelocity:
        return average(state.targets, state.params.field, self.target_rate)

    def act(self, state: State, observation: Observation, *, key: Key) -> Action:
        action_key, value_key, choice_key = jax.random.split(key, 3)
        count = self.num_candidates
        x0 = jax.random.normal(action_key, self.action_shape(count))
        observations = jnp.broadcast_to(observation, (count, *observation.shape))
        action = integrate_actions(state.params.flow, x0, observations, num_steps=self.flow_steps)
        # The same z0 for all candidates: only the actions make a difference.
        z0 = jax.random.normal(value_key, (self.value_samples,))
        z0 = jnp.broadcast_to(z0, (count, self.value_samples))
        value = self.q(state.params.field, z0, observations, action)
        return best_of(action, value, temperature=self.temperature, key=choice_key)
