"""Floating point operations of a function, counted from the shapes in what JAX traces of it.

XLA's own cost analysis counts the body of a loop once, however often it runs.
"""

import dataclasses
import math
from collections.abc import Callable, Iterator
from typing import Any

import equinox as eqx
from jax.extend import core


@dataclasses.dataclass(frozen=True)
class Flops:
    """What was counted.

    **Attributes:** `products`: operations of the matrix products, 2 a multiplication and addition;
    `loops`: how many loops of unknown length there are, whose bodies count once.
    """

    products: int
    loops: int

    def __add__(self, other: "Flops") -> "Flops":
        return Flops(self.products + other.products, self.loops + other.loops)


def count_flops(function: Callable[..., Any], *args: Any) -> Flops:
    """The operations of the matrix products in `function(*args)`.

    What is elementwise is left out: it grows with a network's width, products with its square.
    A scan's body counts by its length, the costliest branch of a `cond` for all of them, and the
    body of a `while` once, which `loops` tells.

    **Raises:** `ValueError` for what holds products that are not counted: a convolution, a kernel.
    """
    closed, _, _ = eqx.filter_make_jaxpr(function)(*args)
    return _of_jaxpr(closed)


def _of_jaxpr(jaxpr: Any) -> Flops:
    total = Flops(0, 0)
    for equation in getattr(jaxpr, "jaxpr", jaxpr).eqns:
        total += _of_equation(equation)
    return total


def _of_equation(equation: Any) -> Flops:
    name, params = equation.primitive.name, equation.params
    if name == "dot_general":
        (contracted, _), _ = params["dimension_numbers"]
        left, right = (variable.aval.shape for variable in equation.invars)
        if len(right) == 1:  # A norm's average, which is written as a product with a vector.
            return Flops(0, 0)
        # Each number of the result is a sum over the contracted axes.
        summed = math.prod(left[axis] for axis in contracted)
        return Flops(2 * math.prod(equation.outvars[0].aval.shape) * summed, 0)
    if name.startswith("conv_general") or name == "pallas_call":
        raise ValueError(f"The operations of {name} are not counted: extend `count_flops`.")
    inner = [_of_jaxpr(jaxpr) for jaxpr in _inner(params)]
    if name == "cond":
        return max(inner, key=lambda branch: branch.products)
    total = sum(inner, Flops(0, 0))
    if name == "scan":
        return Flops(params["length"] * total.products, total.loops)
    return total + Flops(0, 1) if name == "while" else total


def _inner(params: dict[str, Any]) -> Iterator[Any]:
    """The programs that an equation calls: of `jit`, loops, derivatives, whatever it is."""
    for value in params.values():
        for each in value if isinstance(value, tuple | list) else [value]:
            if isinstance(each, core.Jaxpr | core.ClosedJaxpr):
                yield each
