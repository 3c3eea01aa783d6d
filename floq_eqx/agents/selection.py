"""Choosing among several actions by their values: extracting a policy without training one.

At temperature 0 this is the best of N; above, with candidates of the behaviour, rejection sampling
of the policy that is regularised towards it.
"""

from typing import Literal, TypeAlias

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from .._checks import check_choice, check_range, check_sizes, check_unused
from .._types import FloatLike, Key

Proposal: TypeAlias = Literal["policy", "behaviour"]


class Selection(eqx.Module):
    r"""The best of N actions or, at a temperature, one in proportion to $\exp(Q / \text{T})$.

    **Arguments:**

    - `num_candidates`: N, how many actions are drawn; 1 takes the only one without asking its
        value.
    - `temperature`: T of the choice, at least 0, in units of the return; at 0 the best is taken.
    - `proposal`: where the actions come from: the `policy`, or its clone of the data's `behaviour`.
    """

    num_candidates: int = eqx.field(static=True, default=1)
    temperature: FloatLike = 0.0
    proposal: Proposal = eqx.field(static=True, default="policy")

    def __check_init__(self):
        check_sizes(num_candidates=self.num_candidates)
        check_range("temperature", self.temperature)
        check_choice("proposal", self.proposal, Proposal)
        if self.num_candidates == 1:
            check_unused("with num_candidates = 1", temperature=(self.temperature, 0.0))

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
