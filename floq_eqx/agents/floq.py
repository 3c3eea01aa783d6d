"""floq: Q as the endpoint of a flow, trained by flow matching towards its own TD target.

Source: Agrawalla et al., "floq: Training Critics via Flow-Matching for Scaling Compute in
Value-Based RL" (arXiv 2509.06863), algorithm 1; where the paper and its released code differ, the
released code, because the published results are its.
"""

from typing import Literal, TypeAlias

import diffrax
import equinox as eqx
import jax
import jax.numpy as jnp
from jax.lax import stop_gradient
from jaxtyping import Array, Float

from .._types import FloatLike, Key, Metrics, Number, Scalar
from ..actors import AbstractPolicy
from ..critics import Critic, member_values
from ..data.transitions import Batch
from ..embeddings import AbstractEmbedding, Cosine, Fourier, HLGauss, Rescale
from ..integrate import solve_flow
from ..losses import distillation_loss, squared_error, value_flow_loss
from ..networks import MLPConfig, NetworkConfig, ensemble
from ..paths import linear_path
from ..targets import Aggregation, Backup, aggregate, flow_td_target
from ..velocity import EndpointVelocity, ValueVelocity, member_velocities
from .base import State, average, check_choice, check_range, check_sizes, frozen
from .flow_policy import FlowPolicy, FlowPolicyAgent, FlowPolicyNoise, Proposal

ValueEmbedding: TypeAlias = Literal["hl_gauss", "rescaled"]
TimeEmbedding: TypeAlias = Literal["cosine", "fourier", "raw"]
Extraction: TypeAlias = Literal["distilled", "integral"]
Prediction: TypeAlias = Literal["velocity", "endpoint"]


class FloqParams(eqx.Module):
    """The field's members and the distilled critic's, both stacked, and the policy.

    Without distillation there is no critic.
    """

    field: ValueVelocity
    critic: Critic | None
    policy: FlowPolicy


class FloqNoise(FlowPolicyNoise):
    """The random numbers of one update.

    `next_action` is standard normal. `next_value` and `value`, uniform in [0, 1), place z0 within
    its interval; `time` is uniform in [0, 1).
    """

    next_action: Float[Array, "batch noise action"]
    next_value: Float[Array, "batch noise"]
    value: Float[Array, "batch noise"]
    time: Float[Array, "batch noise"]


class Floq(FlowPolicyAgent):
    """Flow-matching Q-learning.

    **Arguments:**

    - `action_size`: components of an action; `for_data` fills it in.
    - `reward_min`, `reward_max`: the smallest and largest reward; `for_data` fills them in.
    - `learning_rate`: of Adam.
    - `decay_updates`: the learning rate falls to zero as a cosine over so many updates; `None`
        keeps it, as the papers do.
    - `target_rate`: τ of the target field, in [0, 1].
    - `discount`: γ, in [0, 1).
    - `alpha`: the weight of the actor's distillation from the behavioural flow.
    - `noise_coverage`: κ: z0 is uniform in κ [r_min, r_max] / (1 - γ).
    - `num_noise`: m, the samples of z0 a transition.
    - `num_steps`: K, the equal steps that take z0 to the value.
    - `solver`: the Diffrax solver that makes them.
    - `adjoint`: how Diffrax differentiates through them, which counts with `extraction="integral"`;
        `None` is the default of [`floq_eqx.solve_flow`][].
    - `ensemble_size`: members of the field.
    - `aggregation`: how the target combines the members.
    - `distilled_size`: members of the distilled critic.
    - `backup`: one TD target a transition, or one a sample.
    - `train_at_zero_only`: the flow loss at t = 0 alone, an ablation.
    - `prediction`: the network predicts the velocity or, an ablation, the endpoint x1, on which
        it is then regressed.
    - `extraction`: the actor raises the distilled critic, or the integral of the field itself;
        then no critic is distilled.
    - `num_candidates`: N > 1 makes `act` draw N actions and choose by the integral.
    - `proposal`: where they come from: the one-step actor or the behavioural flow.
    - `temperature`: of the choice, in units of the return; at 0 the best is taken.
    - `flow_steps`: Euler steps of the behavioural flow.
    - `normalise_q`: divide the actor's Q term by mean |Q|.
    - `value_embedding`: what the field sees of z.
    - `time_embedding`: what the field sees of t; the released code's is the cosine.
    - `num_bins`: support points of HL-Gauss; see [`floq_eqx.embeddings.HLGauss`][].
    - `sigma`: its standard deviation in bin widths.
    - `reward_offset`: o in its support, [r_min - o, r_max + o] / (1 - γ), as they are at `init`.
    - `field`: the network of the field.
    - `critic`: the network of the distilled critic.
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
    noise_coverage: FloatLike = 0.1
    num_noise: int = eqx.field(static=True, default=8)
    num_steps: int = eqx.field(static=True, default=8)
    solver: diffrax.AbstractSolver = eqx.field(default_factory=diffrax.Euler)
    adjoint: diffrax.AbstractAdjoint | None = None
    ensemble_size: int = eqx.field(static=True, default=2)
    aggregation: Aggregation = eqx.field(static=True, default="mean")
    distilled_size: int = eqx.field(static=True, default=2)
    backup: Backup = eqx.field(static=True, default="expected")
    train_at_zero_only: bool = eqx.field(static=True, default=False)
    prediction: Prediction = eqx.field(static=True, default="velocity")
    extraction: Extraction = eqx.field(static=True, default="distilled")
    num_candidates: int = eqx.field(static=True, default=1)
    proposal: Proposal = eqx.field(static=True, default="one_step")
    temperature: FloatLike = 0.0
    flow_steps: int = eqx.field(static=True, default=10)
    normalise_q: bool = eqx.field(static=True, default=False)
    value_embedding: ValueEmbedding = eqx.field(static=True, default="hl_gauss")
    time_embedding: TimeEmbedding = eqx.field(static=True, default="cosine")
    num_bins: int = eqx.field(static=True, default=51)
    sigma: Number = eqx.field(static=True, default=16.0)
    reward_offset: Number = eqx.field(static=True, default=0.01)
    field: NetworkConfig = eqx.field(
        static=True, default=MLPConfig(hidden_sizes=(512, 512), layer_norm=True)
    )
    critic: NetworkConfig = eqx.field(static=True, default=MLPConfig(layer_norm=True))
    actor: NetworkConfig = eqx.field(static=True, default=MLPConfig())

    def __check_init__(self):
        check_range("noise_coverage", self.noise_coverage, 0)
        check_sizes(distilled_size=self.distilled_size)
        check_choice("backup", self.backup, Backup)
        check_choice("prediction", self.prediction, Prediction)
        check_choice("extraction", self.extraction, Extraction)
        check_choice("value_embedding", self.value_embedding, ValueEmbedding)
        check_choice("time_embedding", self.time_embedding, TimeEmbedding)

    def init(self, observation_size: int, action_size: int, *, key: Key) -> State:
        self.check_init_sizes(observation_size, action_size)
        field_key, critic_key, policy_key = jax.random.split(key, 3)
        embed_z, embed_t = self.embeddings()
        inputs = observation_size + action_size
        field_inputs = inputs + embed_z.size + embed_t.size
        velocity = ValueVelocity if self.prediction == "velocity" else EndpointVelocity
        field = ensemble(
            lambda k: velocity(self.field.build(field_inputs, 1, key=k), embed_z, embed_t),
            self.ensemble_size,
            key=field_key,
        )
        critic = None
        if self.extraction == "distilled":
            critic = ensemble(
                lambda k: Critic(self.critic.build(inputs, 1, key=k)),
                self.distilled_size,
                key=critic_key,
            )
        policy = FlowPolicy(observation_size, action_size, self.actor, key=policy_key)
        return self.fresh_state(FloqParams(field, critic, policy), field)

    def embeddings(self) -> tuple[AbstractEmbedding, AbstractEmbedding]:
        """What the field sees of z and of t."""
        horizon = 1 - float(self.discount)
        low = (float(self.reward_min) - self.reward_offset) / horizon
        high = (float(self.reward_max) + self.reward_offset) / horizon
        if self.value_embedding == "hl_gauss":
            value = HLGauss(low, high, self.num_bins, self.sigma)
        else:
            value = Rescale(low, high)
        time = {"cosine": Cosine(), "fourier": Fourier(), "raw": Rescale()}[self.time_embedding]
        return value, time

    def noise(self, batch_size: int, *, key: Key) -> FloqNoise:
        keys = jax.random.split(key, 7)
        samples = (batch_size, self.num_noise)
        return FloqNoise(
            next_action=jax.random.normal(keys[0], self.action_shape(*samples)),
            next_value=jax.random.uniform(keys[1], samples),
            value=jax.random.uniform(keys[2], samples),
            time=jax.random.uniform(keys[3], samples),
            bc_action=jax.random.normal(keys[4], self.action_shape(batch_size)),
            bc_time=jax.random.uniform(keys[5], (batch_size,)),
            actor=jax.random.normal(keys[6], self.action_shape(batch_size)),
        )

    def critic_loss(
        self, params: FloqParams, targets: ValueVelocity, batch: Batch, noise: FloqNoise
    ) -> tuple[Scalar, Metrics]:
        """The field's flow matching towards the TD target, and its distillation to a critic."""
        target = self.td_target(params.policy, targets, batch, noise)
        z0 = self.initial_value(noise.value)
        time = jnp.zeros_like(noise.time) if self.train_at_zero_only else noise.time
        path = linear_path(z0, target, time)
        velocity = member_velocities(params.field, path.t, path.xt, batch.observation, batch.action)
        if self.prediction == "velocity":
            flow_loss = value_flow_loss(velocity, path.velocity)
        else:
            endpoint = path.xt[None] + (1 - path.t)[None] * velocity
            flow_loss = value_flow_loss(endpoint, target)

        value = self.integrate(frozen(params.field), z0, batch.observation, batch.action)
        value = jnp.mean(value, axis=0)
        teacher = jnp.mean(value, axis=1)
        metrics = {
            "flow_loss": flow_loss,
            "td_error": jnp.mean(squared_error(teacher, jnp.mean(target, axis=1))),
            "value_variance": jnp.mean(jnp.var(value, axis=1)),
        }
        if params.critic is None:
            return flow_loss, metrics | {"critic_loss": flow_loss, "q": jnp.mean(teacher)}

        q = member_values(params.critic, batch.observation, batch.action)
        distillation = distillation_loss(q, jnp.broadcast_to(teacher[None], q.shape))
        loss = flow_loss + distillation
        return loss, metrics | {
            "critic_distillation_loss": distillation,
            "critic_loss": loss,
            "q": jnp.mean(q),
        }

    def td_target(
        self, policy: AbstractPolicy, targets: ValueVelocity, batch: Batch, noise: FloqNoise
    ) -> Float[Array, "batch noise"]:
        """x1 of every sample's path: each has its own next action and z0; without gradient."""
        act = jax.vmap(policy.act, in_axes=(None, 0))
        next_action = jax.vmap(act)(batch.next_observation, noise.next_action)
        next_value = aggregate(
            self.integrate(
                targets,
                self.initial_value(noise.next_value),
                batch.next_observation,
                next_action,
            ),
            self.aggregation,
        )
        return stop_gradient(
            flow_td_target(
                batch.reward, batch.mask, next_value, discount=self.discount, backup=self.backup
            )
        )

    def initial_value(self, ratio: Float[Array, "*shape"]) -> Float[Array, "*shape"]:
        """z0, placed by a ratio in [0, 1) within κ [r_min, r_max] / (1 - γ)."""
        low, high = (
            self.noise_coverage * r / (1 - self.discount)
            for r in (self.reward_min, self.reward_max)
        )
        return low + (high - low) * ratio

    def integrate(
        self,
        field: ValueVelocity,
        z0: Float[Array, "batch noise"],
        observation: Float[Array, "batch observation"],
        action: Float[Array, "batch action"] | Float[Array, "batch noise action"],
    ) -> Float[Array, "ensemble batch noise"]:
        """Where every member's field takes every z0: the value of (s, a)."""
        z0 = jnp.broadcast_to(z0[None], (self.ensemble_size, *z0.shape))
        return solve_flow(
            _velocities,
            z0,
            field,
            observation,
            action,
            solver=self.solver,
            num_steps=self.num_steps,
            adjoint=self.adjoint,
            throw=False,
        ).value

    def extracted_value(
        self,
        params: FloqParams,
        observation: Float[Array, "batch observation"],
        action: Float[Array, "batch action"],
        noise: FloqNoise,
    ) -> Float[Array, "batch"]:
        """The Q that the actor raises: the mean over members, and samples where there are any."""
        if params.critic is not None:
            return jnp.mean(member_values(params.critic, observation, action), axis=0)
        z0 = self.initial_value(noise.value)
        return jnp.mean(self.integrate(params.field, z0, observation, action), axis=(0, 2))

    def next_targets(self, state: State) -> ValueVelocity:
        return average(state.targets, state.params.field, self.target_rate)

    def candidate_value(
        self,
        params: FloqParams,
        observation: Float[Array, "candidate observation"],
        action: Float[Array, "candidate action"],
        *,
        key: Key,
    ) -> Float[Array, "candidate"]:
        """The integral: the mean over members and `num_noise` samples of z0."""
        z0 = self.initial_value(jax.random.uniform(key, (self.num_noise,)))
        z0 = jnp.broadcast_to(z0, (len(action), self.num_noise))
        return jnp.mean(self.integrate(params.field, z0, observation, action), axis=(0, 2))


def _velocities(
    t: Scalar,
    z: Float[Array, "ensemble batch noise"],
    field: ValueVelocity,
    observation: Float[Array, "batch observation"],
    action: Float[Array, "batch action"] | Float[Array, "batch noise action"],
) -> Float[Array, "ensemble batch noise"]:
    """With all that it depends on as arguments: `BacksolveAdjoint` sees no others."""
    return member_velocities(field, t, z, observation, action)
