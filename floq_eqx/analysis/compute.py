"""Counting floating point operations from shapes, and networks that match a flow's."""

import dataclasses

import jax
import jax.numpy as jnp

from .._checks import check_sizes
from .._types import Number
from ..networks import MLPConfig, NetworkConfig, ResidualConfig


def network_flops(config: NetworkConfig, in_size: int, out_size: int = 1) -> int:
    """The operations of one forward pass for one example: 2 a weight.

    Biases, activations and norms are left out: they grow with the width, not with its square.
    XLA's own cost analysis is no help here, since it counts the body of a loop once.
    """
    check_sizes(in_size=in_size, out_size=out_size)
    network = jax.eval_shape(
        lambda key: config.build(in_size, out_size, key=key), jax.random.key(0)
    )
    return sum(2 * x.size for x in jax.tree.leaves(network) if jnp.ndim(x) == 2)


def matched_residual(
    field: MLPConfig, num_evaluations: int, field_inputs: int, inputs: int
) -> ResidualConfig:
    """The residual network whose forward pass costs most nearly that of integrating a field.

    **Arguments:**

    - `field`: the field's network; its last hidden size becomes the width.
    - `num_evaluations`: of the field in one integral: K for Euler.
    - `field_inputs`, `inputs`: components that the field and the residual network see.

    Source: the control of floq, arXiv 2509.06863, section 5.
    """
    check_sizes(num_evaluations=num_evaluations)
    wanted = num_evaluations * network_flops(field, field_inputs)
    config = ResidualConfig(
        width=field.hidden_sizes[-1],
        num_blocks=0,
        block_layers=2,
        layer_norm=field.layer_norm,
        norm_first=field.norm_first,
    )
    none = network_flops(config, inputs)
    block = network_flops(dataclasses.replace(config, num_blocks=1), inputs) - none
    return dataclasses.replace(config, num_blocks=max(0, _nearest((wanted - none) / block)))


def matched_ensemble(field: MLPConfig, num_evaluations: int, field_inputs: int, inputs: int) -> int:
    """How many MLPs of the field's hidden sizes cost most nearly what its integral does.

    **Arguments:** as in [`floq_eqx.analysis.matched_residual`][].
    """
    check_sizes(num_evaluations=num_evaluations)
    wanted = num_evaluations * network_flops(field, field_inputs)
    return max(1, _nearest(wanted / network_flops(field, inputs)))


def _nearest(x: Number) -> int:
    return int(x + 0.5)
