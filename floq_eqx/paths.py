"""The linear interpolant between noise and target, on which flows are trained."""

import equinox as eqx
import jax.numpy as jnp
from jaxtyping import Array, Float


class PathSample(eqx.Module):
    r"""One point of each path, and the velocity to regress on.

    **Attributes:** `x0` the noise, `x1` the data or target, `t` the flow time in [0, 1], `xt` the
    point at that time and `velocity` its time derivative.
    """

    x0: Float[Array, "*shape"]
    x1: Float[Array, "*shape"]
    t: Float[Array, "..."]
    xt: Float[Array, "*shape"]
    velocity: Float[Array, "*shape"]


def linear_path(
    x0: Float[Array, "*shape"], x1: Float[Array, "*shape"], t: Float[Array, "..."]
) -> PathSample:
    r"""The straight path $x_t = (1 - t) x_0 + t x_1$, whose velocity is $x_1 - x_0$.

    **Arguments:**

    - `x0`, `x1`: noise and data, of the same shape.
    - `t`: flow times in [0, 1]; its shape is the leading part of `x0.shape`, so `()` is one time
        for all, `(batch,)` one for each example.

    **Raises:** `ValueError` if the shapes do not fit.

    Source: Lipman et al., "Flow Matching for Generative Modeling" (arXiv 2210.02747, section 4.1,
    with a minimal deviation of 0).
    """
    if x0.shape != x1.shape or x0.shape[: t.ndim] != t.shape:
        raise ValueError(
            "x0 and x1 must have the same shape and t a leading part of it, got "
            f"{x0.shape}, {x1.shape} and {t.shape}."
        )
    s = jnp.reshape(t, t.shape + (1,) * (x0.ndim - t.ndim))
    return PathSample(x0=x0, x1=x1, t=t, xt=(1 - s) * x0 + s * x1, velocity=x1 - x0)
