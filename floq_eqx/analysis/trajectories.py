"""How a value's trajectory runs from z0 to Q: how straight, how contracting, how forgiving.

Throughout, `members` is an ensemble of fields, stacked; `z0` is shared by the members; results are
in units of the return unless they say otherwise.
"""

from typing import Any

import diffrax
import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from .._types import Scalar
from ..integrate import FlowPath, FlowSolution, solve_flow
from ..modules.velocity import (
    AbstractValueVelocity,
    conditioned_velocities,
    member_conditions,
    member_velocities,
)


def trajectory(
    members: AbstractValueVelocity,
    z0: Float[Array, "batch noise"],
    observation: Float[Array, "batch observation"],
    action: Float[Array, "batch action"],
    *,
    solver: diffrax.AbstractSolver | None = None,
    num_steps: int = 32,
) -> FlowPath:
    """The path of every member's integral: `value` is `[steps + 1, ensemble, batch, noise]`."""
    path: Any = _solve(
        members, _for_members(members, z0), observation, action, solver, num_steps, save_path=True
    ).path
    return path


class Straightness(eqx.Module):
    """How far paths are from straight lines, each `[ensemble batch noise]`.

    **Attributes:**

    - `chord`: z(1) - z(0).
    - `deviation`: the mean over time of |velocity - chord|.
    - `arc_over_chord`: the length of the path over |chord|, at least 1. In one dimension it is 1
        unless the path turns back, so it sees less than `deviation` does.
    - `late_change`: z(1) - (z(0) + v(0, z(0))): what the steps after one single step add.
    """

    chord: Float[Array, "ensemble batch noise"]
    deviation: Float[Array, "ensemble batch noise"]
    arc_over_chord: Float[Array, "ensemble batch noise"]
    late_change: Float[Array, "ensemble batch noise"]


def straightness(
    members: AbstractValueVelocity,
    z0: Float[Array, "batch noise"],
    observation: Float[Array, "batch observation"],
    action: Float[Array, "batch action"],
    *,
    num_steps: int = 32,
) -> Straightness:
    """Measures the paths of `num_steps` Euler steps.

    Sources: the curvature of floq, arXiv 2509.06863, section 4.2; the definitions are ours.
    """
    value = trajectory(members, z0, observation, action, num_steps=num_steps).value
    change = jnp.diff(value, axis=0)
    velocity = change * num_steps
    chord = value[-1] - value[0]
    return Straightness(
        chord=chord,
        deviation=jnp.mean(jnp.abs(velocity - chord[None]), axis=0),
        arc_over_chord=jnp.sum(jnp.abs(change), axis=0) / jnp.abs(chord),
        late_change=chord - velocity[0],
    )


class Contraction(eqx.Module):
    """How fast trajectories close in on each other.

    **Attributes:**

    - `time`: flow times, `[steps]`, 1 not among them.
    - `slope`: ∂v/∂z along each path, `[steps ensemble batch noise]`; below 0 where errors shrink.
    - `rate`: the c with which -c / (1 - t) fits the mean slope best, in least squares. For the
        exact field of the expected backup, v = (Q - z) / (1 - t), it is 1.
    - `final_gain`: ∂z(1)/∂z(0), `[ensemble batch noise]`: the product of the steps' factors.
    """

    time: Float[Array, "steps"]
    slope: Float[Array, "steps ensemble batch noise"]
    rate: Float[Array, ""]
    final_gain: Float[Array, "ensemble batch noise"]


def contraction(
    members: AbstractValueVelocity,
    z0: Float[Array, "batch noise"],
    observation: Float[Array, "batch observation"],
    action: Float[Array, "batch action"],
    *,
    num_steps: int = 32,
) -> Contraction:
    """Measures ∂v/∂z along the paths of `num_steps` Euler steps."""
    path = trajectory(members, z0, observation, action, num_steps=num_steps)
    time, value = path.time[:-1], path.value[:-1]

    def slope_at(t: Scalar, z: Float[Array, "ensemble batch noise"]) -> Array:
        velocity = lambda z: member_velocities(members, t, z, observation, action)  # noqa: E731
        # Each velocity depends on its own z alone: one tangent of ones holds all derivatives.
        return jax.jvp(velocity, (z,), (jnp.ones_like(z),))[1]

    slope = jax.lax.map(lambda point: slope_at(*point), (time, value))
    ideal = 1 / (1 - time)
    mean = jnp.mean(slope, axis=(1, 2, 3))
    return Contraction(
        time=time,
        slope=slope,
        rate=-jnp.sum(mean * ideal) / jnp.sum(ideal**2),
        final_gain=jnp.prod(1 + slope / num_steps, axis=0),
    )


def disturbed_value(
    members: AbstractValueVelocity,
    z0: Float[Array, "batch noise"],
    observation: Float[Array, "batch observation"],
    action: Float[Array, "batch action"],
    *,
    after: int,
    num_steps: int = 8,
    solver: diffrax.AbstractSolver | None = None,
    stale: AbstractValueVelocity | None = None,
    kick: float | Float[Array, ""] = 0.0,
) -> Float[Array, "ensemble batch noise"]:
    """The value at t = 1 after something went wrong on the way: what test-time recovery mends.

    **Arguments:**

    - `after`: how many of the `num_steps` equal steps are disturbed, 0 to `num_steps`.
    - `stale`: the fields that make those steps in place of `members`, such as those of an earlier
        checkpoint.
    - `kick`: added to z after those steps.

    **Raises:** `ValueError` if `after` is out of range.

    Source: the test-time recovery of arXiv 2603.04333; the perturbation is ours.
    """
    if not 0 <= after <= num_steps:
        raise ValueError(f"after must be in [0, num_steps = {num_steps}], got {after}.")
    z, switch = _for_members(members, z0), after / num_steps
    if after:
        first = members if stale is None else stale
        z = _solve(first, z, observation, action, solver, after, end=switch).value
    z = z + kick
    if after < num_steps:
        rest = num_steps - after
        z = _solve(members, z, observation, action, solver, rest, start=switch).value
    return z


def _for_members(members: AbstractValueVelocity, z0: Float[Array, "batch noise"]) -> Array:
    size = next(leaf.shape[0] for leaf in jax.tree.leaves(members) if eqx.is_array(leaf))
    return jnp.broadcast_to(z0, (size, *z0.shape))


def _solve(
    members: AbstractValueVelocity,
    z: Float[Array, "ensemble batch noise"],
    observation: Float[Array, "batch observation"],
    action: Float[Array, "batch action"],
    solver: diffrax.AbstractSolver | None,
    num_steps: int,
    *,
    start: float = 0.0,
    end: float = 1.0,
    save_path: bool = False,
) -> FlowSolution:
    """Carries z from the flow time `start` to `end`."""
    given = member_conditions(members, observation, action, num_noise=z.shape[-1])

    def velocity(t: Scalar, z: Array) -> Array:
        t = start + (end - start) * t
        return (end - start) * conditioned_velocities(members, t, z, given)

    return solve_flow(
        velocity,
        z,
        solver=diffrax.Euler() if solver is None else solver,
        num_steps=num_steps,
        save_path=save_path,
        throw=False,
    )
