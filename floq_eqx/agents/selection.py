"""Choosing among several actions by their values: extracting a policy without training one.

At temperature 0 this is the best of N; above, with candidates of the behaviour, rejection sampling
of the policy that is regularised towards it.
"""

from typing import Literal, TypeAlias

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from .._checks import check_fields, check_unused
from .._types import AtLeastZero, Key

Proposal: TypeAlias = Literal["policy", "behaviour"]


class Selection(eqx.Module):
    r"""The best of N actions or, at a temperature, one in proportion to $\exp(Q / \text{T})$.

    **Arguments:**

    - `num_candidates`: The number N of actions that are drawn; with 1 it is taken without asking
        its value.
    - `temperature`: The temperature T of the choice, at least 0, in units of the return; at 0 the
        best is taken.
    - `proposal`: Where the actions come from: the `policy`, or its clone of the data's `behaviour`.
    """

    num_candidates: int = eqx.field(static=True, default=1)
    temperature: AtLeastZero = 0.0
    proposal: Proposal = eqx.field(static=True, default="policy")

    def __check_init__(self):
        check_fields(self)
        if self.num_candidates == 1:
            check_unused(self, "with num_candidates = 1", "temperature")

    def noise(self, count: int, *, key: Key) -> Float[Array, "batch candidates"] | None:
        """Standard Gumbel numbers for `count` choices, `None` where there is nothing to choose."""
        if self.num_candidates == 1:
            return None
        return jax.random.gumbel(key, (count, self.num_candidates))

    def choose(
        self,
        score: Float[Array, "batch candidates"],
        noise: Float[Array, "batch candidates"] | None,
    ) -> Int[Array, "batch"]:
        """The index of the chosen candidate; without noise, that of the best."""
        if noise is not None:
            # The largest of values disturbed by Gumbel noise is a draw from their softmax.
            score = score + self.temperature * noise
        return jnp.argmax(score, axis=1)
