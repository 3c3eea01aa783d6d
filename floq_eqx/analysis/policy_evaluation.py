"""Training critics on problems whose exact Q is known, and their error over training."""

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, PyTree

from .._checks import check_range, check_sizes
from .._types import Actions, FloatLike, Key, Metrics, Observations, Scalar, Values
from ..agents import (
    AbstractCritic,
    ActorCritic,
    ActorCriticNoise,
    Fixed,
    Flow,
    Parts,
    Quantile,
    State,
    frozen,
)
from ..data.transitions import Batch
from ..data.windows import take
from ..networks import AbstractNetwork
from ..training.loop import train_seeds
from .problems import Problem


def policy_evaluation(
    critic: AbstractCritic,
    problem: Problem,
    *,
    target_noise: FloatLike = 0.0,
    frozen_features: bool = False,
    **options: Any,
) -> "PolicyEvaluation":
    """An agent that learns the value of a problem's policy, and acts by that policy.

    **Arguments:**

    - `critic`: any that wants next actions; floq's with `distil=False` has its integral alone as Q.
    - `problem`: whose policy.
    - `target_noise`, `frozen_features`: as in [`floq_eqx.analysis.PolicyEvaluation`][].
    - `**options`: of the [`floq_eqx.agents.ActorCritic`][], such as `learning_rate`.

    **Raises:** `ValueError` unless critic and problem have the same discount, and for a critic that
    never asks the policy.
    """
    discount = critic.discount
    if isinstance(discount, int | float) and discount != problem.discount:
        raise ValueError(
            f"The critic has a discount of {discount}, the problem one of {problem.discount}: the "
            "exact Q is that of the problem's."
        )
    return PolicyEvaluation(
        critic,
        Fixed(problem),
        action_size=problem.action_size,
        target_noise=target_noise,
        frozen_features=frozen_features,
        **options,
    )


class EvaluationNoise(ActorCriticNoise):
    """An agent's random numbers, and standard normal ones for the rewards."""

    reward: Values


class PolicyEvaluation(ActorCritic):
    """A critic that learns the value of a given policy, under conditions that are made harder.

    **Arguments:** those of an [`floq_eqx.agents.ActorCritic`][], and

    - `target_noise`: the standard deviation of normal noise on every reward, and so on every TD
        target, fresh in each update.
    - `frozen_features`: train the last layer of every network alone.
    """

    target_noise: FloatLike = eqx.field(default=0.0, kw_only=True)
    frozen_features: bool = eqx.field(static=True, default=False, kw_only=True)

    def __check_init__(self):
        check_range("target_noise", self.target_noise)

    def noise(self, batch_size: int, *, key: Key) -> "EvaluationNoise":
        agent_key, reward_key = jax.random.split(key)
        own = super().noise(batch_size, key=agent_key)
        parts = {f.name: getattr(own, f.name) for f in dataclasses.fields(own)}
        return EvaluationNoise(**parts, reward=jax.random.normal(reward_key, (batch_size,)))

    def loss(
        self, params: Parts, targets: Parts, batch: Batch | Parts, noise: Any, **options: Any
    ) -> tuple[Scalar, Metrics]:
        seen = batch if isinstance(batch, Parts) else Parts(batch, batch)
        reward = seen.critic.reward + self.target_noise * noise.reward
        batch = Parts(dataclasses.replace(seen.critic, reward=reward), seen.policy)
        if self.frozen_features:
            params = jax.tree.map(_freeze_features, params, is_leaf=_is_network)
        return super().loss(params, targets, batch, noise, **options)


def _is_network(tree: object) -> bool:
    return isinstance(tree, AbstractNetwork)


def _freeze_features(network: AbstractNetwork) -> AbstractNetwork:
    return eqx.tree_at(lambda n: n.output, frozen(network), network.output)


def learned_value(
    agent: ActorCritic,
    state: State,
    observation: Observations,
    action: Actions,
    *,
    key: Key,
    num_noise: int = 32,
) -> Values:
    """The critic's Q by the online parameters: of a `Flow` or a `Quantile` critic, the mean over
    `num_noise` z0 or levels.

    A flow's endpoints spread over the targets that it saw, so few z0 make a noisy Q.
    """
    critic: Any = agent.critic
    if isinstance(critic, Flow | Quantile):
        critic = dataclasses.replace(critic, num_noise=num_noise)
    noise = critic.value_noise(len(observation), key=key)
    return critic.value(state.params.critic, observation, action, noise)


Measure = Callable[[ActorCritic, State, Batch, Key], Metrics]
"""What to know of a critic: scalars, from its agent, its state and some transitions."""


def q_error(
    agent: ActorCritic, state: State, batch: Batch, key: Key, *, num_noise: int = 32
) -> Metrics:
    """How far a critic is from the exact Q over the transitions of a batch.

    `num_noise` z0 or levels are averaged where the critic is a `Flow` or `Quantile`.

    **Returns:** `error`, the root mean square error over the standard deviation of the exact Q, so
    that predicting its mean everywhere scores 1; and `bias`, the mean error over the same.
    """
    exact = jax.vmap(_problem(agent).q)(batch.observation, batch.action)
    value = learned_value(
        agent, state, batch.observation, batch.action, key=key, num_noise=num_noise
    )
    error = value - exact
    scale = jnp.std(exact)
    return {"error": jnp.sqrt(jnp.mean(error**2)) / scale, "bias": jnp.mean(error) / scale}


def _problem(agent: ActorCritic) -> Problem:
    if not (isinstance(agent.policy, Fixed) and isinstance(agent.policy.actor, Problem)):
        raise ValueError(f"{agent.name} has no problem: make it with policy_evaluation.")
    return agent.policy.actor


@dataclasses.dataclass(frozen=True)
class Curves:
    """What was measured of one critic over training.

    **Attributes:**

    - `steps`: the numbers of updates after which it was measured, `[times]`.
    - `data`, `held_out`: by name, every measure on the training transitions and on others,
        `[seeds times]`.
    - `states`: the last ones, with a leading axis of seeds.
    """

    steps: np.ndarray
    data: dict[str, np.ndarray]
    held_out: dict[str, np.ndarray]
    states: State


def evaluate_policy(
    agents: Mapping[str, ActorCritic],
    data: Batch,
    held_out: Batch,
    *,
    num_updates: int,
    every: int,
    num_seeds: int,
    key: Key,
    batch_size: int = 128,
    measure: Measure = q_error,
    states: Mapping[str, State] | None = None,
) -> dict[str, Curves]:
    """Trains critics from the same batches, and measures them every so many updates.

    **Arguments:**

    - `agents`: by name, from [`floq_eqx.analysis.policy_evaluation`][].
    - `data`: what they are trained on; `problem.data(size, key=key)` makes it.
    - `held_out`: transitions that they are not trained on. The errors on the data are those on as
        many of its first transitions.
    - `num_updates`, `every`: how long, and how often to measure; `every` must divide it.
    - `num_seeds`: they differ in the parameters, the batches and the noise, and train side by
        side.
    - `key`: of all random numbers; the batches depend on it and the seed alone.
    - `batch_size`: transitions in an update.
    - `measure`: what to measure.
    - `states`: go on from these, by name, each with a leading axis of seeds.

    **Returns:** by name, the measures before the first update and after every `every`.

    **Raises:** `ValueError` for sizes below 1, and an `every` that does not divide `num_updates`.
    """
    check_sizes(num_updates=num_updates, every=every, num_seeds=num_seeds)
    if num_updates % every:
        raise ValueError(f"every = {every} must divide num_updates = {num_updates}.")
    init_keys, keys, measure_keys = (
        jax.random.split(k, num_seeds) for k in jax.random.split(key, 3)
    )
    seen = take(data, jnp.arange(min(len(data), len(held_out))))
    curves = {}
    for name, agent in agents.items():
        sizes = _problem(agent).observation_size, _problem(agent).action_size
        if states is None:
            state = eqx.filter_vmap(lambda k: agent.init(*sizes, key=k))(init_keys)  # noqa: B023
        else:
            state = states[name]
        measured = eqx.filter_jit(_measure_seeds)
        rows = [measured(measure, agent, state, seen, held_out, measure_keys)]
        for _ in range(num_updates // every):
            state, _ = train_seeds(
                agent, state, data, num_updates=every, batch_size=batch_size, keys=keys
            )
            rows.append(measured(measure, agent, state, seen, held_out, measure_keys))
        start = int(state.step[0]) - num_updates
        on_data, elsewhere = jax.tree.map(lambda *x: np.stack(x, axis=1), *rows)
        steps = start + every * np.arange(len(rows))
        curves[name] = Curves(steps, on_data, elsewhere, state)
    return curves


def _measure_seeds(
    measure: Measure,
    agent: ActorCritic,
    states: State,
    data: Batch,
    held_out: Batch,
    keys: PyTree,
) -> tuple[dict[str, Float[Array, "seeds"]], ...]:
    return eqx.filter_vmap(
        lambda state, key: tuple(measure(agent, state, batch, key) for batch in (data, held_out))
    )(states, keys)
