"""Embeddings: one scalar in, a vector of features out."""

import abc

import equinox as eqx
import jax.numpy as jnp
from jax.lax import stop_gradient
from jax.scipy.special import erfc
from jaxtyping import Array, Float

from ._types import Number, Scalar


class AbstractEmbedding(eqx.Module):
    """Maps one scalar to `size` features."""

    @property
    @abc.abstractmethod
    def size(self) -> int:
        """The number of features."""

    @abc.abstractmethod
    def __call__(self, x: Scalar) -> Float[Array, "bins"]:
        """Embeds one scalar."""


class HLGauss(AbstractEmbedding):
    r"""Histogram of a Gaussian around the scalar.

    With $n$ support points $s_0 < \dots < s_{n-1}$ evenly spaced over [`low`, `high`] and
    $\sigma$ = `sigma` times their spacing, the feature of bin $i$ is the mass of
    $\mathcal{N}(x, \sigma^2)$ in $[s_i, s_{i+1}]$ over its mass in $[s_0, s_{n-1}]$: features are
    in [0, 1] and sum to 1.

    The released code forms both masses as differences of erf, which lose their digits as `x`
    leaves the support and end as 0/0. Here `x` is mirrored to the lower half of the support,
    where the same masses are differences of erfc, which keep theirs. Where erfc itself
    underflows, more than `sqrt(2) * 8` (float64: 25) standard deviations away, the distance
    is held at that.

    Source: Imani and White, "Improving Regression Performance with Distributional Losses"
    (2018), as an input embedding in floq, arXiv 2509.06863, section 4.2.
    """

    low: Number = eqx.field(static=True)
    high: Number = eqx.field(static=True)
    num_bins: int = eqx.field(static=True, default=51)
    sigma: Number = eqx.field(static=True, default=16.0)

    def __check_init__(self):
        if not self.low < self.high:
            raise ValueError(
                f"The support must have low < high, got low={self.low}, high={self.high}."
            )
        if self.num_bins < 2:
            raise ValueError(f"num_bins must be at least 2, got {self.num_bins}.")
        if not self.sigma > 0:
            raise ValueError(f"sigma must be positive, got {self.sigma}.")

    @property
    def size(self) -> int:
        return self.num_bins - 1

    @property
    def centers(self) -> Float[Array, "bins"]:
        """The middle of every bin."""
        width = (self.high - self.low) / self.size
        return self.low + width * (jnp.arange(self.size, dtype=float) + 0.5)

    def __call__(self, x: Scalar) -> Float[Array, "bins"]:
        """**Arguments:** `x`: a scalar, also outside of [`low`, `high`].

        **Returns:** `num_bins - 1` features in [0, 1] that sum to 1.
        """
        width = (self.high - self.low) / (self.num_bins - 1)
        scale = 2**0.5 * self.sigma * width
        offset = jnp.arange(self.num_bins, dtype=x.dtype) * (width / scale)
        below = x < 0.5 * (self.low + self.high)
        first = jnp.where(below, self.low - x, x - self.high) / scale
        farthest = 8.0 if x.dtype.itemsize <= 4 else 25.0
        tail = erfc(jnp.minimum(first, farthest) + offset)
        # The scale cancels; with it the derivative of the quotient squares no tiny number.
        tail = tail * stop_gradient(1 / tail[0])
        features = (tail[:-1] - tail[1:]) / (tail[0] - tail[-1])
        return jnp.where(below, features, features[::-1])


class Fourier(AbstractEmbedding):
    r"""$\cos(k \pi x)$ for $k = 1, \dots,$ `size`.

    The time embedding that the floq paper describes (arXiv 2509.06863, section 4.2; 64 terms),
    and that of quantiles in IQN (arXiv 1806.06923, equation 4).
    """

    num_terms: int = eqx.field(static=True, default=64)

    def __check_init__(self):
        if self.num_terms < 1:
            raise ValueError(f"num_terms must be at least 1, got {self.num_terms}.")

    @property
    def size(self) -> int:
        return self.num_terms

    def __call__(self, x: Scalar) -> Float[Array, "bins"]:
        """**Arguments:** `x`: a scalar in [0, 1]."""
        return jnp.cos(jnp.pi * jnp.arange(1, self.num_terms + 1, dtype=x.dtype) * x)


class Sinusoidal(AbstractEmbedding):
    r"""$\cos(w_k x)$ for $k = 0, \dots, n - 1$, then $\sin(w_k x)$, with
    $w_k = 10000^{-k / (n - 1)}$ and $n$ = `num_features` / 2.

    Source: Vaswani et al., arXiv 1706.03762, section 3.5, in the order of Q-chunking's released
    code, which embeds the time of its flow so if asked to.
    """

    num_features: int = eqx.field(static=True, default=64)

    def __check_init__(self):
        if self.num_features < 4 or self.num_features % 2:
            raise ValueError(f"num_features must be even and at least 4, got {self.num_features}.")

    @property
    def size(self) -> int:
        return self.num_features

    def __call__(self, x: Scalar) -> Float[Array, "bins"]:
        """**Arguments:** `x`: a scalar."""
        half = self.num_features // 2
        exponent = jnp.arange(half, dtype=x.dtype) / (half - 1)
        angle = x * jnp.exp(-jnp.log(jnp.asarray(10000.0, x.dtype)) * exponent)
        return jnp.concatenate([jnp.cos(angle), jnp.sin(angle)])


class Cosine(AbstractEmbedding):
    r"""$\cos x$, one feature: the time embedding of the released floq code."""

    @property
    def size(self) -> int:
        return 1

    def __call__(self, x: Scalar) -> Float[Array, "bins"]:
        """**Arguments:** `x`: a scalar, in radians."""
        return jnp.cos(x)[None]


class Rescale(AbstractEmbedding):
    """(x - low) / (high - low), one feature: [low, high] becomes [0, 1], nothing is clipped."""

    low: Number = eqx.field(static=True, default=0.0)
    high: Number = eqx.field(static=True, default=1.0)

    def __check_init__(self):
        if not self.low < self.high:
            raise ValueError(f"Needs low < high, got low={self.low}, high={self.high}.")

    @property
    def size(self) -> int:
        return 1

    def __call__(self, x: Scalar) -> Float[Array, "bins"]:
        """**Arguments:** `x`: a scalar."""
        return ((x - self.low) / (self.high - self.low))[None]
