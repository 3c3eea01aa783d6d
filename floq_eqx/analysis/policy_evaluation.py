"""Training critics on problems whose exact Q is known, and their error over training."""

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, PyTree

from .._types import Action, FloatLike, Key, Metrics, Observation, Scalar
from .._checks import check_range, check_sizes
from ..agents.agent import Agent, State, frozen
from ..agents.floq import Floq
from ..agents.flow_policy import FlowPolicyAgent
from ..agents.iqn import IQN
from ..data.transitions import Batch, take
from ..networks import AbstractNetwork
from ..training.loop import train_seeds
from .problems import Problem


class PolicyEvaluation(Agent):
    """An agent's critic, trained for the policy of a problem instead of one of its own.

    It is an agent itself, so `train_steps`, `train_seeds` and `fit` train it.

    **Arguments:**

    - `agent`: whose critic: floq with `extraction="integral"`, FQL for one forward pass, ….
    - `problem`: whose policy.
    - `target_noise`: the standard deviation of normal noise on every TD target, fresh in each
        update.
    - `frozen_features`: train the last layer of every network alone.
    """

    agent: FlowPolicyAgent
    problem: Problem
    target_noise: FloatLike
    frozen_features: bool = eqx.field(static=True)

    def __init__(
        self,
        agent: FlowPolicyAgent,
        problem: Problem,
        target_noise: FloatLike = 0.0,
        frozen_features: bool = False,
    ):
        self.agent, self.problem = agent, problem
        self.target_noise, self.frozen_features = target_noise, frozen_features

    def __check_init__(self):
        check_range("target_noise", self.target_noise, 0)
        discount = self.agent.discount
        if isinstance(discount, int | float) and discount != self.problem.discount:
            raise ValueError(
                f"The agent has a discount of {discount}, the problem one of "
                f"{self.problem.discount}: the exact Q is that of the problem's."
            )

    @property
    def action_size(self) -> int:  # pyright: ignore[reportIncompatibleVariableOverride]
        return self.problem.action_size

    @property
    def learning_rate(self) -> FloatLike:  # pyright: ignore[reportIncompatibleVariableOverride]
        return self.agent.learning_rate

    @property
    def decay_updates(self) -> int | None:  # pyright: ignore[reportIncompatibleVariableOverride]
        return self.agent.decay_updates

    def init(self, observation_size: int, action_size: int, *, key: Key) -> State:
        state = self.agent.init(observation_size, action_size, key=key)
        params = eqx.tree_at(lambda p: p.policy, state.params, None)
        return self.fresh_state(params, state.targets)

    def noise(self, batch_size: int, *, key: Key) -> tuple:
        agent_key, target_key = jax.random.split(key)
        target = jax.random.normal(target_key, (batch_size,))
        return self.agent.noise(batch_size, key=agent_key), target

    def loss(
        self, params: eqx.Module, targets: eqx.Module, batch: Batch, noise: tuple
    ) -> tuple[Scalar, Metrics]:
        agent_noise, target_noise = noise
        reward = batch.reward + self.target_noise * target_noise
        batch = dataclasses.replace(batch, reward=reward)
        if self.frozen_features:
            params = jax.tree.map(_freeze_features, params, is_leaf=_is_network)
        loss, _ = self.agent.critic_loss(self._complete(params), targets, batch, agent_noise)
        return loss, {"loss": loss}

    def next_targets(self, state: State) -> eqx.Module:
        return self.agent.next_targets(state)

    def act(self, state: State, observation: Observation, *, key: Key) -> Action:
        return self.problem.act(observation, jax.random.normal(key, self.action_shape()))

    def value(
        self,
        state: State,
        observation: Float[Array, "batch observation"],
        action: Float[Array, "batch action"],
        *,
        key: Key,
        num_noise: int = 32,
    ) -> Float[Array, "batch"]:
        """The critic's Q by the online parameters: the mean over members and, of a flow or a
        quantile critic, over `num_noise` z0 or levels.

        A flow's endpoints spread over the targets that it saw, so few z0 make a noisy Q.
        """
        agent: FlowPolicyAgent = self.agent
        if isinstance(agent, Floq | IQN):
            agent = dataclasses.replace(agent, num_noise=num_noise)
        noise: Any = agent.noise(len(observation), key=key)
        return agent.extracted_value(self._complete(state.params), observation, action, noise)

    def _complete(self, params: Any) -> Any:
        """The agent's parameters, with the problem as their policy."""
        return eqx.tree_at(lambda p: p.policy, params, self.problem, is_leaf=lambda x: x is None)


def _is_network(tree: object) -> bool:
    return isinstance(tree, AbstractNetwork)


def _freeze_features(network: AbstractNetwork) -> AbstractNetwork:
    return eqx.tree_at(lambda n: n.output, frozen(network), network.output)


Measure = Callable[[PolicyEvaluation, State, Batch, Key], Metrics]
"""What to know of a critic: scalars, from its state and some transitions."""


def q_error(
    critic: PolicyEvaluation, state: State, batch: Batch, key: Key, *, num_noise: int = 32
) -> Metrics:
    """How far a critic is from the exact Q over the transitions of a batch.

    `num_noise` z0 are averaged where the critic is a flow.

    **Returns:** `error`, the root mean square error over the standard deviation of the exact Q, so
    that predicting its mean everywhere scores 1; and `bias`, the mean error over the same.
    """
    exact = jax.vmap(critic.problem.q)(batch.observation, batch.action)
    value = critic.value(state, batch.observation, batch.action, key=key, num_noise=num_noise)
    error = value - exact
    scale = jnp.std(exact)
    return {"error": jnp.sqrt(jnp.mean(error**2)) / scale, "bias": jnp.mean(error) / scale}


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
    critics: Mapping[str, PolicyEvaluation],
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

    - `critics`: by name.
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
    for name, critic in critics.items():
        sizes = critic.problem.observation_size, critic.problem.action_size
        if states is None:
            state = eqx.filter_vmap(lambda k: critic.init(*sizes, key=k))(init_keys)  # noqa: B023
        else:
            state = states[name]
        measured = eqx.filter_jit(_measure_seeds)
        rows = [measured(measure, critic, state, seen, held_out, measure_keys)]
        for _ in range(num_updates // every):
            state, _ = train_seeds(
                critic, state, data, num_updates=every, batch_size=batch_size, keys=keys
            )
            rows.append(measured(measure, critic, state, seen, held_out, measure_keys))
        start = int(state.step[0]) - num_updates
        on_data, elsewhere = jax.tree.map(lambda *x: np.stack(x, axis=1), *rows)
        steps = start + every * np.arange(len(rows))
        curves[name] = Curves(steps, on_data, elsewhere, state)
    return curves


def _measure_seeds(
    measure: Measure,
    critic: PolicyEvaluation,
    states: State,
    data: Batch,
    held_out: Batch,
    keys: PyTree,
) -> tuple[dict[str, Float[Array, "seeds"]], ...]:
    return eqx.filter_vmap(
        lambda state, key: tuple(measure(critic, state, batch, key) for batch in (data, held_out))
    )(states, keys)
