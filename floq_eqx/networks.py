"""Networks in the layout of the released code: one example in, one out."""

import abc
import dataclasses
from collections.abc import Callable
from typing import Annotated, Any, TypeAlias, TypeVar

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from ._checks import check_fields, nearest
from ._types import Key, Number, Precision, Range

T = TypeVar("T")


def ensemble(make: Callable[[Key], T], size: int, *, key: Key) -> T:
    """`size` members made by `make(key)`, stacked: every array gets a leading axis.

    Evaluate with `eqx.filter_vmap(lambda member: member(...))(members)`.
    """
    if size < 1:
        raise ValueError(f"An ensemble needs at least one member, got {size}.")
    return eqx.filter_vmap(make)(jax.random.split(key, size))


class Layer(eqx.Module):
    """Dense, then GELU (tanh-approximate), then LayerNorm (epsilon 1e-6) where it is asked for.

    The kernel is drawn from variance-scaling(1, fan_avg, uniform), the bias is zero.
    `norm_first` swaps the last two.
    """

    linear: eqx.nn.Linear
    norm: eqx.nn.LayerNorm | None
    norm_first: bool = eqx.field(static=True)
    precision: Precision = eqx.field(static=True, default="float32")

    def __init__(
        self, in_size: int, out_size: int, *, layer_norm: bool, norm_first: bool = False, key: Key
    ):
        self.linear = dense(in_size, out_size, key=key)
        self.norm = eqx.nn.LayerNorm(out_size, eps=1e-6) if layer_norm else None
        self.norm_first = norm_first

    def __call__(self, x: Float[Array, "in_size"]) -> Float[Array, "out_size"]:
        h = product(self.linear.weight, x, self.precision)
        return self.activated(_biased(h, self.linear))

    def activated(self, h: Float[Array, "out_size"]) -> Float[Array, "out_size"]:
        """What follows the dense part, from its result."""
        if self.norm is None:
            return jax.nn.gelu(h)
        if self.norm_first:
            return jax.nn.gelu(self.norm(h))
        standardised: Any = _standardised_gelu(h)
        return standardised * self.norm.weight + self.norm.bias


def _standardised(x: Float[Array, "size"]) -> Float[Array, "size"]:
    """(x - mean) / sqrt(variance + 1e-6): LayerNorm without its scale and bias."""
    mean = jnp.mean(x)
    return (x - mean) * jax.lax.rsqrt(jnp.mean((x - mean) ** 2) + 1e-6)


@jax.custom_jvp
def _standardised_gelu(h: Float[Array, "size"]) -> Float[Array, "size"]:
    """`_standardised(gelu(h))`, which costs a CPU more than the product before it."""
    if jax.default_backend() != "cpu":
        return _standardised(jax.nn.gelu(h))
    # XLA vectorises products and no sums, and would evaluate the summands again in each of them.
    x = jax.lax.optimization_barrier(jax.nn.gelu(h))
    shares = jnp.full(x.shape, 1 / x.size, x.dtype)
    # With x to the left, or a batch of it is transposed first.
    average = lambda x: jnp.dot(x, shares, precision=jax.lax.Precision.HIGHEST)  # noqa: E731
    mean = average(x)
    squares = jax.lax.optimization_barrier((x - mean) ** 2)
    return (x - mean) * jax.lax.rsqrt(average(squares) + 1e-6)


@_standardised_gelu.defjvp
def _derivative(primals: Any, tangents: Any) -> Any:
    """By sums, whose derivatives cost less than those of products."""

    def by_sums(h: Float[Array, "size"]) -> Float[Array, "size"]:
        return _standardised(jax.lax.optimization_barrier(jax.nn.gelu(h)))

    return jax.jvp(by_sums, primals, tangents)


def product(
    weight: Float[Array, "out_size in_size"],
    x: Float[Array, "in_size"],
    precision: Precision = "float32",
) -> Float[Array, "out_size"]:
    """`weight @ x` with factors of this precision, and a sum in float32."""
    if precision == "bfloat16":
        # Not by JAX's own `precision`, which a CPU ignores; and with x to the left, or a CPU takes
        # longer than in float32 where batches are small.
        factors = (x.astype(jnp.bfloat16), weight.astype(jnp.bfloat16))
        return jax.lax.dot_general(*factors, _FROM_THE_LEFT, preferred_element_type=x.dtype)
    return jnp.dot(weight, x, precision=_ALGORITHMS[precision])


# Contracts x with the rows of a weight to its right.
_FROM_THE_LEFT = (((0,), (1,)), ((), ()))


def _biased(h: Float[Array, "out_size"], linear: eqx.nn.Linear) -> Float[Array, "out_size"]:
    return h if linear.bias is None else h + linear.bias


# A GPU's default for float32 is TF32: float32 is asked for by name.
_ALGORITHMS: dict[Precision, Any] = {
    "float32": jax.lax.Precision.HIGHEST,
    "tf32": jax.lax.DotAlgorithmPreset.TF32_TF32_F32,
}


def with_precision(tree: T, precision: Precision) -> T:
    """The networks of a tree, with the products of their hidden layers in this precision.

    Those are the products between two hidden layers, which cost the most: the first layer, which
    sees the inputs, and the last, whose sum is the output, stay in float32, as do parameters, norms
    and activations.

    **Raises:** `ValueError` for `tf32` where the device is a CPU, which has no such products.
    """
    if precision == "tf32" and jax.default_backend() == "cpu":
        raise ValueError(
            "precision = 'tf32' is for NVIDIA's GPUs, and JAX runs on a CPU here: give float32, or "
            "bfloat16."
        )

    def one(node: Any) -> Any:
        if not isinstance(node, AbstractNetwork):
            return node
        inner = node.inner_layers
        if all(layer.precision == precision for layer in inner):
            return node
        changed = [_with_static(layer, precision=precision) for layer in inner]
        return eqx.tree_at(lambda n: n.inner_layers, node, changed)

    return jax.tree.map(one, tree, is_leaf=lambda node: isinstance(node, AbstractNetwork))


def _with_static(layer: Layer, **fields: Any) -> Layer:
    """`dataclasses.replace` for a module that has an `__init__` of its own."""
    made = object.__new__(Layer)
    for f in dataclasses.fields(Layer):
        object.__setattr__(made, f.name, fields.get(f.name, getattr(layer, f.name)))
    return made


def dense(in_size: int, out_size: int, *, scale: Number = 1.0, key: Key) -> eqx.nn.Linear:
    """`eqx.nn.Linear` with a variance-scaling(`scale`, fan_avg, uniform) kernel and a zero bias.

    **Raises:** `ValueError` unless both sizes are positive.
    """
    if in_size < 1 or out_size < 1:
        raise ValueError(f"Layer sizes must be positive, got {in_size} -> {out_size}.")
    # Its own values, which are replaced, are not drawn: each drawing compiles for a while.
    linear = eqx.filter_eval_shape(eqx.nn.Linear, in_size, out_size, key=key)
    kernel = jax.nn.initializers.variance_scaling(
        scale, "fan_avg", "uniform", in_axis=1, out_axis=0
    )
    new = (kernel(key, linear.weight.shape, linear.weight.dtype), jnp.zeros((out_size,)))
    return eqx.tree_at(lambda m: (m.weight, m.bias), linear, new)


class AbstractNetwork(eqx.Module):
    """A vector in, a vector out; `features` is what the last layer, `output`, sees.

    The first dense layer, W x + b, is a sum over parts of x. `weighted` gives a part's share of it
    and `continued` takes the sum to the output, so that what many inputs have in common is
    multiplied once: `continued(weighted(x[:n]) + weighted(x[n:], start=n))` is the network of x.
    """

    output: eqx.AbstractVar[eqx.nn.Linear]

    @property
    @abc.abstractmethod
    def entrance(self) -> eqx.nn.Linear:
        """The dense layer that sees x."""

    @property
    @abc.abstractmethod
    def inner_layers(self) -> list[Layer]:
        """The hidden layers that see another hidden layer."""

    @abc.abstractmethod
    def features(self, x: Float[Array, "in_size"]) -> Float[Array, "width"]:
        """The penultimate features."""

    @abc.abstractmethod
    def continued(self, h: Float[Array, "width"]) -> Float[Array, "out_size"]:
        """The output, from W x, the result of the first dense layer without its bias."""

    def weighted(self, part: Float[Array, "part"], *, start: int = 0) -> Float[Array, "width"]:
        """What a part of x, from its component `start` on, adds to W x."""
        weight = self.entrance.weight[:, start : start + part.size]
        # With the part to the left: where members share a batch of it, the product with the weight
        # there is transposed, number by number, in whatever follows.
        algorithm = _ALGORITHMS["float32"]
        return jax.lax.dot_general(part, weight, _FROM_THE_LEFT, precision=algorithm)

    def __call__(self, x: Float[Array, "in_size"]) -> Float[Array, "out_size"]:
        """The output of the last layer, which has neither activation nor norm."""
        return self.outcome(self.features(x))

    def outcome(self, features: Float[Array, "width"]) -> Float[Array, "out_size"]:
        """The last layer's output."""
        return _biased(product(self.output.weight, features), self.output)


class MLP(AbstractNetwork):
    """Hidden layers as in [`floq_eqx.networks.Layer`][], then a plain dense one."""

    hidden: tuple[Layer, ...]
    output: eqx.nn.Linear

    def __init__(
        self,
        in_size: int,
        hidden_sizes: tuple[int, ...],
        out_size: int,
        *,
        layer_norm: bool = False,
        norm_first: bool = False,
        output_scale: Number = 1.0,
        key: Key,
    ):
        """**Arguments:**

        - `in_size`, `hidden_sizes`, `out_size`: layer sizes, each at least 1.
        - `layer_norm`: whether hidden layers are normalised.
        - `norm_first`: LayerNorm before the activation instead of after it.
        - `output_scale`: of the last layer's initial variance.
        - `key`: for the initialisation.
        """
        sizes = (in_size, *hidden_sizes)
        keys = jax.random.split(key, len(sizes))
        self.hidden = tuple(
            Layer(i, o, layer_norm=layer_norm, norm_first=norm_first, key=k)
            for i, o, k in zip(sizes[:-1], sizes[1:], keys[:-1], strict=True)
        )
        self.output = dense(sizes[-1], out_size, scale=output_scale, key=keys[-1])

    @property
    def entrance(self) -> eqx.nn.Linear:
        return self.hidden[0].linear if self.hidden else self.output

    @property
    def inner_layers(self) -> list[Layer]:
        return list(self.hidden[1:])

    def features(self, x: Float[Array, "in_size"]) -> Float[Array, "width"]:
        for layer in self.hidden:
            x = layer(x)
        return x

    def continued(self, h: Float[Array, "width"]) -> Float[Array, "out_size"]:
        h = _biased(h, self.entrance)
        if not self.hidden:
            return h
        x = self.hidden[0].activated(h)
        for layer in self.hidden[1:]:
            x = layer(x)
        return self.outcome(x)


class ResidualMLP(AbstractNetwork):
    """A first layer, then blocks of layers with a skip connection around each, then a dense one.

    With K blocks it spends about as much computation as K integration steps of a field of the same
    width: the control with matched compute of floq, arXiv 2509.06863, section 5.
    """

    first: Layer
    blocks: tuple[tuple[Layer, ...], ...]
    output: eqx.nn.Linear

    def __init__(
        self,
        in_size: int,
        width: int,
        num_blocks: int,
        out_size: int,
        *,
        block_layers: int = 2,
        layer_norm: bool = False,
        norm_first: bool = False,
        key: Key,
    ):
        """**Arguments:**

        - `in_size`, `width`, `out_size`: layer sizes, each at least 1.
        - `num_blocks`: the number of skip connections, at least 0.
        - `block_layers`: the number of layers that each skips.
        - `layer_norm`, `norm_first`, `key`: as in [`floq_eqx.networks.MLP`][].
        """
        if num_blocks < 0 or block_layers < 1:
            raise ValueError(
                f"Needs num_blocks >= 0 and block_layers >= 1, got {num_blocks} and {block_layers}."
            )
        first_key, blocks_key, last_key = jax.random.split(key, 3)

        def layer(size: int, key: Key) -> Layer:
            return Layer(size, width, layer_norm=layer_norm, norm_first=norm_first, key=key)

        self.first = layer(in_size, first_key)
        self.blocks = tuple(
            tuple(layer(width, k) for k in jax.random.split(block_key, block_layers))
            for block_key in jax.random.split(blocks_key, num_blocks)
        )
        self.output = dense(width, out_size, key=last_key)

    @property
    def entrance(self) -> eqx.nn.Linear:
        return self.first.linear

    @property
    def inner_layers(self) -> list[Layer]:
        return [layer for block in self.blocks for layer in block]

    def features(self, x: Float[Array, "in_size"]) -> Float[Array, "width"]:
        return self._after_first(self.first(x))

    def continued(self, h: Float[Array, "width"]) -> Float[Array, "out_size"]:
        x = self.first.activated(_biased(h, self.entrance))
        return self.outcome(self._after_first(x))

    def _after_first(self, x: Float[Array, "width"]) -> Float[Array, "width"]:
        for block in self.blocks:
            h = x
            for layer in block:
                h = layer(h)
            x = x + h
        return x


def _check_depth(num_layers: int) -> None:
    """Refuses what a damaged configuration may hold, and would take hours to build."""
    if num_layers > 1000:
        raise ValueError(f"A network has at most 1000 layers, got {num_layers}.")


@dataclasses.dataclass(frozen=True)
class MLPConfig:
    """How to build an [`floq_eqx.networks.MLP`][] once its input and output sizes are known.

    **Arguments:**

    - `hidden_sizes`: The widths of the hidden layers.
    - `layer_norm`: Normalise every hidden layer.
    - `norm_first`: Normalise before the activation instead of after it.
    - `output_scale`: The scale of the last layer's initial variance.
    """

    hidden_sizes: tuple[int, ...] = (512, 512, 512, 512)
    layer_norm: bool = False
    norm_first: bool = False
    output_scale: Number = 1.0

    def __post_init__(self):
        check_fields(self)
        _check_depth(len(self.hidden_sizes))

    def build(self, in_size: int, out_size: int, *, key: Key) -> AbstractNetwork:
        """A freshly initialised network."""
        return MLP(
            in_size,
            self.hidden_sizes,
            out_size,
            layer_norm=self.layer_norm,
            norm_first=self.norm_first,
            output_scale=self.output_scale,
            key=key,
        )


@dataclasses.dataclass(frozen=True)
class ResidualConfig:
    """The same for a [`floq_eqx.networks.ResidualMLP`][].

    **Arguments:**

    - `width`: The width of every hidden layer.
    - `num_blocks`: The number of blocks, with a skip connection around each.
    - `block_layers`: The number of layers of a block.
    - `layer_norm`: Normalise every hidden layer.
    - `norm_first`: Normalise before the activation instead of after it.
    """

    width: int = 512
    num_blocks: Annotated[int, Range(0)] = 8
    block_layers: int = 2
    layer_norm: bool = False
    norm_first: bool = False

    def __post_init__(self):
        check_fields(self)
        _check_depth(self.num_blocks * self.block_layers)

    def build(self, in_size: int, out_size: int, *, key: Key) -> AbstractNetwork:
        """A freshly initialised network."""
        return ResidualMLP(
            in_size,
            self.width,
            self.num_blocks,
            out_size,
            block_layers=self.block_layers,
            layer_norm=self.layer_norm,
            norm_first=self.norm_first,
            key=key,
        )


NetworkConfig: TypeAlias = MLPConfig | ResidualConfig

NETWORKS: dict[str, type[NetworkConfig]] = {"mlp": MLPConfig, "residual": ResidualConfig}
"""The kinds of network that a configuration can name."""


def of_kind(network: NetworkConfig, kind: str) -> NetworkConfig:
    """The network as one of another kind: as wide, and the same in what both kinds have."""
    if kind not in NETWORKS:
        raise nearest("kind of network", kind, NETWORKS)
    if isinstance(network, NETWORKS[kind]):
        return network
    values = {f.name: getattr(network, f.name) for f in dataclasses.fields(network)}
    if isinstance(network, MLPConfig):
        values["width"] = max(network.hidden_sizes)
    known = {f.name for f in dataclasses.fields(NETWORKS[kind])}
    return NETWORKS[kind](**{name: value for name, value in values.items() if name in known})
