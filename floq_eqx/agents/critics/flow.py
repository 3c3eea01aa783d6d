r"""Flow: Q as the endpoint of a flow, trained by flow matching towards its own TD target.

With $z_0$ uniform in $\kappa\, [r_{min}, r_{max}] / (1 - \gamma)$ and
$z_t = (1 - t)\, z_0 + t\, y$, the field is regressed on the velocity of straight paths,

$$\mathbb{E} \left[ \sum_{j=1}^m (v(t_j, z_{t_j} \mid s, a) - (y - z_{0,j}))^2 \right], \qquad
y = r + \gamma\, m(s')\, \frac{1}{m} \sum_{j=1}^m \bar\psi(1, z'_{0,j} \mid s', a'_j),$$

where $\bar\psi(1, z \mid s, a)$ is where K steps along the field's slow average take z. A distilled
critic, regressed on the field's own integral, is what a policy raises.

Source: Agrawalla et al., "floq: Training Critics via Flow-Matching for Scaling Compute in
Value-Based RL" (arXiv 2509.06863), algorithm 1; where the paper and its released code differ, the
released code, because the published results are its.
"""

from typing import Annotated, ClassVar, Literal, TypeAlias

import diffrax
import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from ..._checks import check_unused
from ..._types import (
    Actions,
    AtLeastZero,
    AtLeastZeroNumber,
    Key,
    Loss,
    MemberSamples,
    NextActions,
    Number,
    Observations,
    Range,
    Samples,
    Values,
)
from ...data.transitions import Batch
from ...embeddings import AbstractEmbedding, Cosine, Fourier, HLGauss, Rescale
from ...integrate import solve_flow
from ...losses import critic_loss, squared_error, value_flow_loss
from ...modules.values import ActionValue, member_values
from ...modules.velocity import (
    EndpointVelocity,
    ValueVelocity,
    conditioned_velocities,
    member_conditions,
    member_velocities,
)
from ...networks import MLPConfig, NetworkConfig, ensemble
from ...paths import linear_path
from ...targets import Backup
from ..agent import frozen
from .critic import BoundedCritic, FlowNoise

ValueEmbedding: TypeAlias = Literal["hl_gauss", "rescaled"]
TimeEmbedding: TypeAlias = Literal["cosine", "fourier", "raw"]
Prediction: TypeAlias = Literal["velocity", "endpoint"]


class FlowParams(eqx.Module):
    """The field's members and the distilled critic's, both stacked; the latter `None` without
    distillation.
    """

    field: ValueVelocity
    distilled: ActionValue | None


class Flow(BoundedCritic[FlowParams, ValueVelocity, FlowNoise, Samples | None]):
    """The critic of floq: a velocity field that carries noise to Q.

    **Arguments:**

    - `noise_coverage`: The share κ of the returns' interval that z0 is uniform in:
        κ [r_min, r_max] / (1 - γ).
    - `num_noise`: The number m of samples of z0 a transition, each with a next action of its own.
    - `num_steps`: The number K of equal steps that take z0 to the value.
    - `solver`: The Diffrax solver that makes the steps.
    - `adjoint`: How Diffrax differentiates through the steps, which counts without distillation;
        `None` is the default of [`floq_eqx.solve_flow`][].
    - `backup`: One TD target a transition (`expected`), or one a sample (`distributional`).
    - `train_at_zero_only`: Use the flow loss at t = 0 alone, an ablation.
    - `prediction`: The network predicts the velocity or, an ablation, the endpoint x1, on which
        it is then regressed.
    - `distil`: Let policies raise a critic of one pass, regressed on the integral; without it they
        raise the integral itself.
    - `distilled_size`: The number of members of the distilled critic.
    - `value_embedding`: How the field sees z: by HL-Gauss features, or rescaled to [0, 1].
    - `time_embedding`: How the field sees t: by the released code's cosines, others, or as it is.
    - `num_bins`: The support points of HL-Gauss; see [`floq_eqx.embeddings.HLGauss`][].
    - `sigma`: The standard deviation of HL-Gauss, in bin widths.
    - `reward_offset`: The o in the support of the embedding, [r_min - o, r_max + o] / (1 - γ), of
        the rewards and the discount at initialisation.
    - `network`: The network of the field.
    - `distilled_network`: The network of the distilled critic, where there is one.
    """

    test_time: ClassVar[tuple[str, ...]] = ("num_steps", "solver", "num_noise")

    noise_coverage: AtLeastZero = 0.1
    num_noise: int = eqx.field(static=True, default=8)
    num_steps: int = eqx.field(static=True, default=8)
    solver: diffrax.AbstractSolver = eqx.field(default_factory=diffrax.Euler)
    adjoint: diffrax.AbstractAdjoint | None = None
    backup: Backup = eqx.field(static=True, default="expected")
    train_at_zero_only: bool = eqx.field(static=True, default=False)
    prediction: Prediction = eqx.field(static=True, default="velocity")
    distil: bool = eqx.field(static=True, default=True)
    distilled_size: int = eqx.field(static=True, default=2)
    value_embedding: ValueEmbedding = eqx.field(static=True, default="hl_gauss")
    time_embedding: TimeEmbedding = eqx.field(static=True, default="cosine")
    num_bins: Annotated[int, Range(2)] = eqx.field(static=True, default=51)
    sigma: AtLeastZeroNumber = eqx.field(static=True, default=16.0)
    reward_offset: Number = eqx.field(static=True, default=0.01)
    network: NetworkConfig = eqx.field(static=True, default=MLPConfig((512, 512), layer_norm=True))
    distilled_network: NetworkConfig = eqx.field(static=True, default=MLPConfig(layer_norm=True))

    def __check_init__(self):
        if self.value_embedding == "rescaled":
            check_unused(self, "with value_embedding = 'rescaled'", "num_bins", "sigma")
        if not self.distil:
            check_unused(self, "with distil = False", "distilled_size")

    @property
    def num_next_actions(self) -> int:
        return self.num_noise

    def init(self, observation_size: int, action_size: int, *, key: Key) -> FlowParams:
        field_key, distilled_key = jax.random.split(key)
        embed_z, embed_t = self.embeddings()
        inputs = observation_size + action_size
        field_inputs = inputs + embed_z.size + embed_t.size
        velocity = ValueVelocity if self.prediction == "velocity" else EndpointVelocity
        field = self.members(
            lambda network: velocity(network, embed_z, embed_t), field_inputs, key=field_key
        )
        if not self.distil:
            return FlowParams(field, None)
        distilled = ensemble(
            lambda k: ActionValue(self.distilled_network.build(inputs, 1, key=k)),
            self.distilled_size,
            key=distilled_key,
        )
        return FlowParams(field, distilled)

    def embeddings(self) -> tuple[AbstractEmbedding, AbstractEmbedding]:
        """What the field sees of z and of t."""
        bounds, hl_gauss = self.support(self.reward_offset), self.value_embedding == "hl_gauss"
        value = HLGauss(*bounds, self.num_bins, self.sigma) if hl_gauss else Rescale(*bounds)
        time = {"cosine": Cosine(), "fourier": Fourier(), "raw": Rescale()}[self.time_embedding]
        return value, time

    def slow(self, params: FlowParams) -> ValueVelocity:
        return params.field

    def noise(self, batch_size: int, *, key: Key) -> FlowNoise:
        """All uniform in [0, 1); z0 is placed by its numbers within its interval."""
        samples = (batch_size, self.num_noise)
        return FlowNoise(*(jax.random.uniform(k, samples) for k in jax.random.split(key, 3)))

    def value_noise(self, count: int, *, key: Key) -> Samples | None:
        return None if self.distil else self.score_noise(count, key=key)

    def score_noise(self, count: int, *, key: Key) -> Samples:
        """Uniform in [0, 1), placing z0 within its interval."""
        return jax.random.uniform(key, (count, self.num_noise))

    def loss(
        self,
        params: FlowParams,
        slow: ValueVelocity,
        batch: Batch,
        next_action: NextActions,
        noise: FlowNoise,
    ) -> Loss:
        """The field's flow matching towards the TD target, and its distillation to a critic."""
        target = self.td_target(slow, batch, next_action, noise.next_value)
        z0 = self.initial_value(noise.value)
        time = jnp.zeros_like(noise.time) if self.train_at_zero_only else noise.time
        path = linear_path(z0, target, time)
        velocity = member_velocities(params.field, path.t, path.xt, batch.observation, batch.action)
        if self.prediction == "velocity":
            flow_loss = value_flow_loss(velocity, path.velocity, batch.whole)
        else:
            endpoint = path.xt[None] + (1 - path.t)[None] * velocity
            flow_loss = value_flow_loss(endpoint, target, batch.whole)

        value = self.integrate(frozen(params.field), z0, batch.observation, batch.action)
        value = jnp.mean(value, axis=0)
        teacher = jnp.mean(value, axis=1)
        metrics = {
            "flow_loss": flow_loss,
            "td_error": jnp.mean(squared_error(teacher, jnp.mean(target, axis=1))),
            "value_variance": jnp.mean(jnp.var(value, axis=1)),
        }
        if params.distilled is None:
            return flow_loss, metrics | {"critic_loss": flow_loss, "q": jnp.mean(teacher)}

        q = member_values(params.distilled, batch.observation, batch.action)
        distillation = critic_loss(q, teacher, batch.whole)
        loss = flow_loss + distillation
        return loss, metrics | {
            "critic_distillation_loss": distillation,
            "critic_loss": loss,
            "q": jnp.mean(q),
        }

    def td_target(
        self, slow: ValueVelocity, batch: Batch, next_action: NextActions, ratio: Samples
    ) -> Samples:
        """x1 of every sample's path: each has its own next action and z0; without gradient."""
        next_z0 = self.initial_value(ratio)
        next_value = self.integrate(slow, next_z0, batch.next_observation, next_action)
        next_value = self.combined(next_value)
        return self.sample_targets(batch, next_value, self.backup)

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
        z0: Samples,
        observation: Observations,
        action: Actions | NextActions,
    ) -> MemberSamples:
        """Where every member's field takes every z0: the value of (s, a)."""
        given = member_conditions(field, observation, action, num_noise=z0.shape[-1])
        z0 = jnp.broadcast_to(z0[None], (self.ensemble_size, *z0.shape))
        return solve_flow(
            # With all that it depends on as arguments: `BacksolveAdjoint` sees no others.
            lambda t, z, field, given: conditioned_velocities(field, t, z, given),
            *(z0, field, given),
            solver=self.solver,
            num_steps=self.num_steps,
            adjoint=self.adjoint,
            throw=False,
        ).value

    def value(
        self, params: FlowParams, observation: Observations, action: Actions, noise: Samples | None
    ) -> Values:
        """The distilled critic's Q; without one, the integral's."""
        if params.distilled is None:
            return self.score(params, observation, action, noise)
        q = member_values(params.distilled, observation, action)
        return self.combined_value(q)

    def score(
        self, params: FlowParams, observation: Observations, action: Actions, noise: Samples | None
    ) -> Values:
        """The integral: the mean over samples of z0, the members combined."""
        if noise is None:
            raise ValueError("The integral needs z0: the noise that score_noise draws, got None.")
        value = self.integrate(params.field, self.initial_value(noise), observation, action)
        return jnp.mean(self.combined_value(value), axis=1)
