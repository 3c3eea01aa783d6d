"""Losses: arrays in, arrays out.

Elementwise where that makes sense, so that the caller decides what is summed or averaged. Shapes
must be equal: nothing broadcasts. A `weight` of each transition multiplies its part of a mean,
whose divisor stays their number: 0 leaves a transition out.
"""

import jax
import jax.numpy as jnp
from jax.lax import stop_gradient
from jaxtyping import Array, Float

from ._types import FloatLike, Number, Scalar


def squared_error(
    prediction: Float[Array, "*shape"], target: Float[Array, "*shape"]
) -> Float[Array, "*shape"]:
    """(prediction - target)², elementwise.

    **Raises:** `ValueError` if the shapes differ.
    """
    if prediction.shape != target.shape:
        raise ValueError(
            f"Prediction and target must have the same shape, got {prediction.shape} and "
            f"{target.shape}."
        )
    return jnp.square(prediction - target)


def _weighted(
    error: Float[Array, "ensemble batch"], weight: Float[Array, "batch"] | None
) -> Float[Array, "ensemble batch"]:
    return error if weight is None else error * weight[None]


def flow_matching_loss(
    velocity: Float[Array, "*shape"],
    target: Float[Array, "*shape"],
    weight: Float[Array, "*shape"] | None = None,
) -> Scalar:
    r"""$\mathbb{E} \lVert v(t, x_t) - (x_1 - x_0) \rVert^2$, the mean over all entries, each with a
    `weight` of its own.

    Source: Lipman et al., arXiv 2210.02747, equation 9.
    """
    error = squared_error(velocity, target)
    return jnp.mean(error if weight is None else error * weight)


def value_flow_loss(
    velocity: Float[Array, "ensemble batch noise"],
    target: Float[Array, "batch noise"],
    weight: Float[Array, "batch"] | None = None,
) -> Scalar:
    """The flow-matching loss of a value: the sum over noise samples, the mean over the rest.

    **Arguments:**

    - `velocity`: every member's v(t, z_t | s, a).
    - `target`: x1 - z0, the same for all members.

    Source: floq, arXiv 2509.06863, equation 4.2 (the sum over m is the released code's).
    """
    error = squared_error(velocity, jnp.broadcast_to(target[None], velocity.shape))
    return jnp.mean(_weighted(jnp.sum(error, axis=2), weight))


def distillation_loss(student: Float[Array, "*shape"], teacher: Float[Array, "*shape"]) -> Scalar:
    """The mean squared error against a teacher that receives no gradient."""
    return jnp.mean(squared_error(student, stop_gradient(teacher)))


def critic_loss(
    q: Float[Array, "ensemble batch"],
    target: Float[Array, "batch"],
    weight: Float[Array, "batch"] | None = None,
) -> Scalar:
    """The mean squared TD error of every member against one target, without its gradient."""
    target = stop_gradient(jnp.broadcast_to(target[None], q.shape))
    return jnp.mean(_weighted(squared_error(q, target), weight))


def expectile_loss(
    prediction: Float[Array, "*shape"], target: Float[Array, "*shape"], expectile: FloatLike
) -> Float[Array, "*shape"]:
    r"""$|\tau - \mathbb{1}[y < x]| (y - x)^2$ for a prediction x of y, elementwise.

    Its minimum over x is the $\tau$-expectile of y: the mean at 0.5, towards the largest at 1.

    Source: IQL, arXiv 2110.06169, equation 4.
    """
    error = squared_error(prediction, stop_gradient(target))
    return jnp.where(target >= prediction, expectile, 1 - expectile) * error


def quantile_loss(
    prediction: Float[Array, "ensemble batch noise"],
    target: Float[Array, "batch samples"],
    quantile: Float[Array, "batch noise"],
    weight: Float[Array, "batch"] | None = None,
    *,
    huber_threshold: Number | None = None,
) -> Scalar:
    r"""Every predicted quantile against every target sample, which receives no gradient.

    With δ = target - prediction at level τ: |τ - 1[δ < 0]| times δ² or, with a `huber_threshold`
    κ, times the Huber loss of δ over κ. Only the latter makes predictions quantiles; the former,
    an expectile loss, is the released floq baseline's. Summed over levels, averaged over the rest.

    Source: Dabney et al., arXiv 1806.06923, equation 3.
    """
    delta = stop_gradient(target)[None, :, None, :] - prediction[..., None]
    side = jnp.abs(quantile[None, :, :, None] - (delta < 0).astype(delta.dtype))
    if huber_threshold is None:
        error = delta**2
    else:
        size = jnp.abs(delta)
        linear = huber_threshold * (size - 0.5 * huber_threshold)
        error = jnp.where(size <= huber_threshold, 0.5 * delta**2, linear) / huber_threshold
    return jnp.mean(_weighted(jnp.mean(jnp.sum(side * error, axis=2), axis=2), weight))


def categorical_loss(
    logits: Float[Array, "ensemble batch bins"],
    target: Float[Array, "batch bins"],
    weight: Float[Array, "batch"] | None = None,
) -> Scalar:
    """The cross-entropy of every member against one target distribution, without its gradient.

    Source: Farebrother et al., arXiv 2403.03950, section 3.
    """
    cross_entropy = -jnp.sum(stop_gradient(target)[None] * jax.nn.log_softmax(logits), axis=2)
    return jnp.mean(_weighted(cross_entropy, weight))


def policy_loss(q: Float[Array, "batch"], *, normalise: bool = False) -> Scalar:
    """-mean(q), which the actor descends.

    With `normalise`, divided by mean |q| (without its gradient) unless that is 0, so that the
    weight of the other terms does not depend on the scale of the rewards (TD3+BC, arXiv 2106.06860,
    equation 5).
    """
    loss = -jnp.mean(q)
    if not normalise:
        return loss
    size = jnp.mean(jnp.abs(q))
    return loss * stop_gradient(1 / jnp.where(size > 0, size, 1.0))
