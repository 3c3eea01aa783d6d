"""Comparing solvers on the field of a run, or on one trained for the purpose."""

import dataclasses
import math
from collections.abc import Iterable
from typing import Any, Literal, TypeAlias

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from .._checks import check_choice, check_sizes
from .._types import Key, Number
from ..agents import ActorCritic, Flow
from ..data.transitions import Batch
from ..modules.velocity import AbstractValueVelocity
from ..networks import MLPConfig
from ..training.gathering import find_data
from ..training.run import Run
from .accuracy import observed_order
from .features import first_member
from .policy_evaluation import evaluate_policy, policy_evaluation
from .problems import LinearQuadratic, RandomWalk
from .solver_comparison import SolverComparison, compare_solvers
from .solver_configurations import FIXED_SOLVERS, OverBatch, SolverConfiguration
from .trajectories import contraction, straightness

ProblemName: TypeAlias = Literal["lqr", "walk"]


@dataclasses.dataclass(frozen=True)
class SolverStudy:
    """What there is to know about integrating one field.

    **Attributes:**

    - `title`: whose field it is.
    - `comparison`: a row for every solver and budget.
    - `orders`: the order of convergence that each solver of `FIXED_SOLVERS` shows on the field, by
        its name; NaN where rounding hides it.
    - `slopes`: the least and greatest ∂v/∂z along the trajectories. A solver of fixed steps is
        stable where K is above half of -slope, about; far more than K = 8 allows would be stiff.
    - `rate`: the c of -c / (1 - t) that fits ∂v/∂z best; 1 for the ideal field.
    - `deviation`: mean |v - chord| over mean |chord|: 0 for straight paths.
    """

    title: str
    comparison: SolverComparison
    orders: dict[str, float]
    slopes: tuple[float, float]
    rate: float
    deviation: float

    def markdown(self) -> str:
        """All of it as text with tables."""
        low, high = self.slopes
        orders = ", ".join(f"{name} {order:.1f}" for name, order in self.orders.items())
        lines = [f"# {self.title}", "", self.comparison.markdown()]
        lines += ["The Pareto front of mean error against evaluations is bold.", ""]
        if math.isfinite(self.comparison.reference_error):
            error = self.comparison.reference_error
            lines += [f"RMSE of the exactly integrated field to the exact Q: {error:.3g}.", ""]
        lines += [f"Observed order of convergence: {orders}.", ""]
        lines += [f"∂v/∂z along the trajectories: {low:.3g} to {high:.3g}, rate {self.rate:.3g}."]
        lines += [f"Mean |v - chord| over mean |chord|: {self.deviation:.3g}."]
        return "\n".join(lines) + "\n"


def study_run(
    run: Run,
    *,
    num_observations: int = 64,
    num_candidates: int = 16,
    configurations: Iterable[SolverConfiguration] | None = None,
    key: Key,
    progress: bool = False,
) -> SolverStudy:
    """Compares solvers on the last checkpoint of a floq run.

    **Arguments:**

    - `run`: the run.
    - `num_observations`: drawn from its dataset.
    - `num_candidates`: actions in each, at least 2: the data's, and the policy's on fresh noise.
    - `configurations`, `progress`: as in [`floq_eqx.analysis.compare_solvers`][].
    - `key`: of the observations, the noise and z0.

    **Raises:** `ValueError` if the run's agent has no flow critic, or there are too few candidates.
    """
    made = run.config.agent
    if not (isinstance(made, ActorCritic) and isinstance(made.critic, Flow)):
        raise ValueError(
            f"{run.folder} trained {run.config.agent_name}, which has no flow critic: there is "
            "nothing to integrate."
        )
    check_sizes(num_observations=num_observations, num_candidates=num_candidates)
    agent: Any
    agent, state = run.load()
    batch_key, noise_key, z_key = jax.random.split(key, 3)
    data = find_data(run.config, progress=progress)
    batch = agent.sample(data, num_observations, key=batch_key)
    noise = jax.random.normal(noise_key, (num_observations, num_candidates - 1, batch.action_size))
    others = jax.vmap(agent.policy.sample, in_axes=(None, None, 1), out_axes=1)(
        state.params.policy, batch.observation, noise
    )
    candidates = jnp.concatenate([batch.action[:, None], others], axis=1)
    critic = agent.for_data(data).bounded_critic(batch.action_size)
    field = state.params.critic.field
    z0 = critic.initial_value(jax.random.uniform(z_key, (num_observations,)))
    comparison = compare_solvers(
        field, batch, configurations, z0=z0, candidates=candidates, progress=progress
    )
    title = f"Solvers on {run.config.task}, {run.folder.name}, update {int(state.step)}"
    return _study(title, comparison, field, z0, batch)


def study_problem(
    name: ProblemName,
    *,
    num_updates: int = 6000,
    num_observations: int = 64,
    num_candidates: int = 16,
    configurations: Iterable[SolverConfiguration] | None = None,
    key: Key,
    progress: bool = False,
) -> SolverStudy:
    """Trains a field on a problem whose exact Q is known, and compares solvers on it.

    **Arguments:**

    - `name`: `"lqr"` for a linear-quadratic problem, `"walk"` for a random walk.
    - `num_updates`: of 128 transitions, m = 2, K = 8, for a field of 2 x 64.
    - the others: as in `study_run`; candidates are uniform.
    """
    check_choice("problem", name, ProblemName)
    check_sizes(num_updates=num_updates, num_observations=num_observations)
    if num_candidates < 2:  # before minutes go into training
        raise ValueError(f"Ranking takes at least 2 candidates, got {num_candidates}.")
    problem_key, data_key, train_key, batch_key, action_key, z_key = jax.random.split(key, 6)
    if name == "lqr":
        problem = LinearQuadratic.random(key=problem_key, discount=0.8)
    else:
        problem = RandomWalk(key=problem_key)
    data = problem.data(20_000, key=data_key)
    critic = Flow(
        discount=problem.discount,
        num_noise=2,
        distil=False,
        network=MLPConfig((64, 64), layer_norm=True),
    ).for_data(data)
    schedule = {"learning_rate": 3e-3, "decay_updates": num_updates, "target_rate": 0.02}
    agent = policy_evaluation(critic, problem, **schedule)
    batch = problem.data(num_observations, key=batch_key)
    states = evaluate_policy(
        {"flow": agent},
        data,
        batch,
        num_updates=num_updates,
        every=num_updates,
        num_seeds=1,
        key=train_key,
    )["flow"].states
    field = first_member(states.params.critic.field)  # of the one seed
    shape = (num_observations, num_candidates - 1, problem.action_size)
    others = jax.random.uniform(action_key, shape, minval=-1, maxval=1)
    candidates = jnp.concatenate([batch.action[:, None], others], axis=1)
    z0 = critic.initial_value(jax.random.uniform(z_key, (num_observations,)))
    exact = jax.vmap(jax.vmap(problem.q, in_axes=(None, 0)))(batch.observation, candidates)
    comparison = compare_solvers(
        field,
        batch,
        configurations,
        z0=z0,
        candidates=candidates,
        exact=exact,
        progress=progress,
    )
    title = f"Solvers on {type(problem).__name__}, after {num_updates} updates"
    return _study(title, comparison, field, z0, batch)


def _study(
    title: str,
    comparison: SolverComparison,
    field: AbstractValueVelocity,
    z0: Float[Array, "batch"],
    batch: Batch,
) -> SolverStudy:
    where = (z0[:, None], batch.observation, batch.action)
    orders: dict[str, Number] = {}
    member = OverBatch(first_member(field))
    for solver in FIXED_SOLVERS:
        steps = (4, 8, 16) if solver.order(None) >= 5 else (16, 32, 64)  # pyright: ignore
        try:
            order = observed_order(
                member, z0, batch.observation, batch.action, solver=solver, num_steps=steps
            )
        except ValueError:  # no error at all
            order = math.nan
        orders[type(solver).__name__] = order
    found, paths = contraction(field, *where), straightness(field, *where)
    return SolverStudy(
        title=title,
        comparison=comparison,
        orders=orders,
        slopes=(float(found.slope.min()), float(found.slope.max())),
        rate=float(found.rate),
        deviation=float(jnp.mean(paths.deviation) / jnp.mean(jnp.abs(paths.chord))),
    )
