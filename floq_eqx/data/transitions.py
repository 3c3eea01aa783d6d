"""Transitions as arrays: the batch that every agent's update takes."""

import dataclasses
from typing import Any

import equinox as eqx
import jax.numpy as jnp
from jaxtyping import Array, Float


class Batch(eqx.Module):
    """Transitions (s, a, r, s') with a leading batch axis; a whole dataset is one too.

    **Attributes:**

    - `observation`, `next_observation`: s and s'.
    - `action`: a, each component in [-1, 1]; of a chunk its actions one after the other.
    - `reward`: r; of several steps their discounted sum.
    - `mask`: 0 where s' is terminal, so that its value is not bootstrapped, else 1.
    - `next_action`: the action the data took in s', or `None` where no algorithm needs it.
    - `discount`: the γ^n of s' after n steps; `None` for the agent's γ, of one.
    - `valid`: 1 for each action of a chunk that lies within its trajectory, else 0; `None` where
        all of them do. A chunk whose last action is not valid teaches a critic nothing.
    """

    observation: Float[Array, "batch observation"]
    action: Float[Array, "batch action"]
    reward: Float[Array, "batch"]
    mask: Float[Array, "batch"]
    next_observation: Float[Array, "batch observation"]
    next_action: Float[Array, "batch action"] | None = None
    discount: Float[Array, "batch"] | None = None
    valid: Float[Array, "batch chunk"] | None = None

    @staticmethod
    def from_arrays(
        observations: Any, actions: Any, rewards: Any, *args: Any, **named: Any
    ) -> "Batch":
        """Your own transitions: those of [`floq_eqx.data.Trajectories.from_arrays`][], which takes
        the same arguments, with an array of its own for each of their parts.
        """
        from .windows import Trajectories

        made = Trajectories.from_arrays(observations, actions, rewards, *args, **named)
        return made.transitions()

    def __len__(self) -> int:
        return self.reward.shape[0]

    @property
    def observation_size(self) -> int:
        return self.observation.shape[1]

    @property
    def action_size(self) -> int:
        return self.action.shape[1]

    @property
    def whole(self) -> Float[Array, "batch"] | None:
        """1 where all actions of a chunk lie within its trajectory, else 0; `None` where all do."""
        return None if self.valid is None else self.valid[:, -1]

    @property
    def component_valid(self) -> Float[Array, "batch action"] | None:
        """`valid` for each component of a chunk's actions; `None` for a single action, which always
        is.
        """
        if self.valid is None or self.valid.shape[1] == 1:
            return None
        return jnp.repeat(self.valid, self.action_size // self.valid.shape[1], axis=1)

    def check(self) -> None:
        """What [`floq_eqx.data.check_batch`][] does."""
        for field in dataclasses.fields(Batch):
            name, array = field.name, getattr(self, field.name)
            if array is None and field.default is None:
                continue
            if array is None or not hasattr(array, "shape"):
                raise ValueError(f"`{name}` must be an array, got {type(array).__name__}.")
            if not jnp.issubdtype(array.dtype, jnp.floating):
                raise ValueError(
                    f"`{name}` is of type {array.dtype}, expected floating point numbers: convert "
                    f"it to float32, as with {name}.astype(jnp.float32)."
                )
            like = name.removeprefix("next_")
            if like in ("reward", "mask", "discount"):
                expected, what = self.observation.shape[:1], "one number a transition"
            elif len(array.shape) != 2:
                raise ValueError(
                    f"`{name}` has the shape {array.shape}, expected (transitions, components): "
                    "make each a flat row, of one component where it is a single number."
                )
            else:
                expected = (self.observation.shape[0], *getattr(self, like).shape[1:])
                what = "one row a transition"
            if array.shape != expected:
                also = "" if like == name else f" and of the components of `{like}`"
                raise ValueError(
                    f"`{name}` has the shape {array.shape}, expected {expected}: give {what}, as "
                    f"many as `observation` has{also}."
                )
