r"""ActorCritic: a critic, a policy and a selection, trained together.

An update draws m next actions a transition from the policy, or chooses them among several by the
critic, for the critic's loss; adds the policy's, which sees the critic's values but never its
parameters; takes one Adam step on the sum; and averages the slow parts,
$\bar\theta \leftarrow \tau \theta + (1 - \tau) \bar\theta$.
"""

import dataclasses
from typing import Any, Generic, TypeVar

import equinox as eqx
import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Bool, Float, PyTree

from .._checks import check_fields, check_unused
from .._types import (
    Action,
    Actions,
    Chunk,
    FloatLike,
    Key,
    Loss,
    Metrics,
    Observation,
    Observations,
    Positive,
    Precision,
    Share,
)
from ..data.transitions import Batch
from ..data.windows import Data
from ..networks import with_precision
from .agent import Agent, State, average, frozen
from .critics.critic import AbstractCritic, BoundedCritic
from .policies.fixed import Fixed
from .policies.policy import AbstractPolicy, Critique, NextAction
from .selection import Selection

C = TypeVar("C")
P = TypeVar("P")
T = TypeVar("T")


class Parts(eqx.Module, Generic[C, P]):
    """What is the critic's, and what is the policy's."""

    critic: C
    policy: P


class ActorCriticNoise(eqx.Module):
    """The random numbers of one update.

    - `critic`, `policy`: those of their losses.
    - `value`: those of the Q that the policy's loss asks for.
    - `action`: those of the next actions, `[batch * num_next_actions * candidates, action]`, a
        transition's rows side by side.
    - `score`, `choice`: those of the choice among the candidates; `None` where there is one.
    """

    critic: PyTree
    policy: PyTree
    value: PyTree
    action: PyTree
    score: PyTree
    choice: Float[Array, "batch candidates"] | None


class ActorCritic(Agent):
    """A critic and a policy, and how actions are chosen by the one among the other's.

    **Arguments:** those of every [`floq_eqx.agents.Agent`][], and

    - `critic`: How a value is represented and learned; `None` clones the data's policy alone.
    - `policy`: How one acts, and what is learned to act so.
    - `selection`: Which of several actions is taken when acting.
    - `next_selection`: Which of several actions is the next one in the critic's target.
    - `target_rate`: The share τ of the new parameters in the slow averages, in [0, 1].
    - `gradient_norm`: The largest norm of the critic's gradient, and of the policy's; `None` for
        no limit.
    - `precision`: The precision of the factors in products between hidden layers, in `loss`,
        `update` and `act`: float32, tf32 (NVIDIA's GPUs) or bfloat16. Sums, parameters, the
        optimiser, norms, the flow's time and value, targets and losses stay in float32.
    - `chunk`: The number h of actions that are chosen at once, valued together, and carried out one
        after the other: Q-chunking, arXiv 2507.07969. The critic learns from windows of h steps.
    - `n_step`: The number of steps after which the critic's target takes the value of a state; the
        rewards before it count as they were.
    - `policy_every`: Move the policy and all slow averages, the critic's too, in every n-th update.
    - `recipe`: The name of the algorithm in [`floq_eqx.agents.recipes.RECIPES`][], if it has one.

    **Raises:** `ValueError` for a pair that makes no sense, and says why: a policy that raises a
    value without a critic, a critic that a cloning policy never asks, or settings without effect.
    """

    critic: AbstractCritic | None
    policy: AbstractPolicy
    selection: Selection = dataclasses.field(default_factory=Selection)
    next_selection: Selection = dataclasses.field(default_factory=Selection)
    target_rate: Share = eqx.field(default=0.005, kw_only=True)
    gradient_norm: Positive | None = eqx.field(default=None, kw_only=True)
    precision: Precision = eqx.field(static=True, default="float32", kw_only=True)
    chunk: int = eqx.field(static=True, default=1, kw_only=True)
    n_step: int = eqx.field(static=True, default=1, kw_only=True)
    policy_every: int = eqx.field(static=True, default=1, kw_only=True)
    recipe: str | None = eqx.field(static=True, default=None, kw_only=True)

    def __check_init__(self):
        check_fields(self)
        policy = type(self.policy).__name__
        if self.chunk > 1 and self.n_step > 1:
            raise ValueError(
                f"The target of a chunk comes after its {self.chunk} steps already: leave out "
                f"n_step, got {self.n_step}."
            )
        if self.critic is None:
            self._check_without_critic(policy)
        elif self.selection.num_candidates == 1 and not (
            self.policy.uses_value or isinstance(self.policy, Fixed)
        ):
            raise ValueError(
                f"{policy} clones the data and never asks {type(self.critic).__name__}: let the "
                "critic choose, with num_candidates > 1 in selection, or leave the critic out "
                "(--critic none)."
            )
        elif self.critic.num_next_actions == 0:
            if isinstance(self.policy, Fixed):
                raise ValueError(
                    f"{type(self.critic).__name__} learns values of the data and would never ask "
                    "the fixed policy: take a critic that wants next actions."
                )
            where = f"where {type(self.critic).__name__} wants no next action"
            check_unused(self, where, "next_selection")
        if not self._asks_policy:
            where = "where no target takes the policy's next action"
            check_unused(self.policy, where, *self.policy.target_options)
        for selection in (self.selection, self.next_selection):
            if selection.proposal == "behaviour" and not self.policy.has_behaviour:
                raise ValueError(
                    f"{policy} has no clone of the data's policy to propose actions: leave out "
                    "proposal = 'behaviour', or take a policy that has one, such as OneStep."
                )
        bounded = self._asks_policy and isinstance(self.critic, BoundedCritic)
        if bounded and float("inf") in self.policy.bonus_bounds(1):
            raise ValueError(
                f"{policy} adds an entropy without bounds to the next value, and "
                f"{type(self.critic).__name__} represents values within the bounds of the rewards "
                "alone: leave the entropy out of the target, with backup_entropy = False."
            )

    def _check_without_critic(self, policy: str) -> None:
        if self.policy.uses_value:
            raise ValueError(f"{policy} raises a value, and there is no critic: give one.")
        if self.selection.num_candidates > 1:
            raise ValueError("Nothing can choose among candidates without a critic: give one.")
        where = "without a critic"
        check_unused(self, where, "next_selection", "policy_every", "n_step")
        if type(self.policy).slow is AbstractPolicy.slow:  # which averages nothing
            check_unused(self, where, "target_rate")

    @property
    def name(self) -> str:
        critic = "" if self.critic is None else f"{type(self.critic).__name__} x "
        return critic + type(self.policy).__name__

    @property
    def uses_next_action(self) -> bool:
        policy = self.policy.uses_next_action and self._asks_policy
        return policy or (self.critic is not None and self.critic.uses_next_action)

    @property
    def _asks_policy(self) -> bool:
        """Whether the critic's target takes the policy's own next action."""
        wants = self.critic is not None and self.critic.num_next_actions > 0
        return wants and self.next_selection.proposal == "policy"

    @property
    def reward_bounds(self) -> tuple[FloatLike, FloatLike] | None:
        critic = self.critic
        return (critic.reward_min, critic.reward_max) if isinstance(critic, BoundedCritic) else None

    @property
    def num_actions(self) -> int:
        return self.chunk

    def action_shape(self, *batch: int) -> tuple[int, ...]:
        """The shape of the noise of whole chunks, flat."""
        *rest, size = super().action_shape(*batch)
        return (*rest, self.chunk * size)

    def windows(self) -> dict[str, Any]:
        discount = 1.0 if self.critic is None else self.critic.discount
        length = max(self.chunk, self.n_step)
        return {"length": length, "discount": discount, "chunk": self.chunk > 1}

    def for_data(self, data: Data) -> "ActorCritic":
        critic = None if self.critic is None else self.critic.for_data(data)
        return dataclasses.replace(super().for_data(data), critic=critic)

    def init(self, observation_size: int, action_size: int, *, key: Key) -> State:
        self.check_init_sizes(observation_size, action_size)
        # Or each of dozens of operations compiles by itself. Arrays among the hyperparameters must
        # stay known, as a critic's support is made of their numbers.
        known = not any(hasattr(leaf, "shape") for leaf in jax.tree.leaves(self))
        make = eqx.filter_jit(_initial_state) if known else _initial_state
        return make(self, observation_size, action_size, key)

    def slow(self, params: Parts) -> Parts:
        """The part of the parameters that is averaged."""
        critic = None if self.critic is None else self.critic.slow(params.critic)
        return Parts(critic, self.policy.slow(params.policy))

    def noise(self, batch_size: int, *, key: Key) -> ActorCriticNoise:
        shape = self.action_shape(batch_size)
        keys = jax.random.split(key, 6)
        policy = self.policy.noise(shape, key=keys[1])
        if self.critic is None:
            return ActorCriticNoise(None, policy, None, None, None, None)
        value = self.critic.value_noise(batch_size, key=keys[2]) if self.policy.uses_value else None
        action = score = choice = None
        if self.critic.num_next_actions:
            choices = batch_size * self.critic.num_next_actions
            rows = choices * self.next_selection.num_candidates
            if self._asks_policy:
                action = self.policy.next_noise(self.action_shape(rows), key=keys[3])
            else:
                action = jax.random.normal(keys[3], self.action_shape(rows))
            choice = self.next_selection.noise(choices, key=keys[5])
            if choice is not None:
                score = self.critic.score_noise(rows, key=keys[4])
        critic = self.critic.noise(batch_size, key=keys[0])
        return ActorCriticNoise(critic, policy, value, action, score, choice)

    def loss(
        self,
        params: Parts,
        targets: Parts,
        batch: Batch | Parts,
        noise: ActorCriticNoise,
        *,
        moves_policy: Bool[Array, ""] | bool = True,
    ) -> Loss:
        """The critic's loss and, where it `moves_policy`, the policy's; neither moves the other's
        parameters.

        **Arguments:** as every agent's, and `batch` may be `Parts`: the transitions as the critic
        and as the policy see them.
        """
        seen = batch if isinstance(batch, Parts) else Parts(batch, batch)
        # Here and in `_act`, not in the state: what is stored is the same at every precision.
        params, targets = with_precision((params, targets), self.precision)
        loss, metrics = self.policy_loss(params, targets, seen, noise)
        if moves_policy is not True:
            loss = jnp.where(moves_policy, loss, 0.0)
        if self.critic is not None:
            critic_loss, critic_metrics = self.critic_loss(params, targets, seen, noise)
            loss, metrics = critic_loss + loss, critic_metrics | metrics
        return loss, {"loss": loss} | metrics

    def critic_loss(
        self, params: Parts, targets: Parts, batch: Parts, noise: ActorCriticNoise
    ) -> Loss:
        """The part of the loss that trains the critic."""
        size, action_size = batch.critic.action.shape
        critic: Any = self.bounded_critic(action_size)
        next_action = jnp.zeros((size, 0, action_size))
        seen = batch.critic
        if critic.num_next_actions:
            following = frozen(self.next_action(params, targets, batch, noise))
            shape = (size, critic.num_next_actions)
            next_action = jnp.reshape(following.action, (*shape, action_size))
            if following.bonus is not None:
                # A value of s' that is larger by a bonus pays as a reward before, discounted.
                bonus = jnp.mean(jnp.reshape(following.bonus, shape), axis=1)
                reward = seen.reward + critic.next_discount(seen) * seen.mask * bonus
                seen = dataclasses.replace(seen, reward=reward)
        return critic.loss(params.critic, targets.critic, seen, next_action, noise.critic)

    def policy_loss(
        self, params: Parts, targets: Parts, batch: Parts, noise: ActorCriticNoise
    ) -> Loss:
        """The part of the loss that trains the policy."""
        critic: Any = self.bounded_critic(batch.policy.action.shape[1])
        fixed, observation = frozen(params.critic), batch.critic.observation
        critique = Critique(
            q=lambda action: critic.value(fixed, observation, action, noise.value),
            v=lambda: critic.state_value(fixed, observation),
        )
        return self.policy.loss(params.policy, targets.policy, batch.policy, critique, noise.policy)

    def next_action(
        self, params: Parts, targets: Parts, batch: Parts, noise: ActorCriticNoise
    ) -> NextAction:
        """`num_next_actions` actions for each next observation, a transition's side by side."""
        critic: Any = self.bounded_critic(batch.policy.action.shape[1])
        count = self.next_selection.num_candidates
        rows = critic.num_next_actions * count
        repeated = _repeat(batch.policy, rows)
        if self._asks_policy:
            proposed = self.policy.next_action(
                params.policy, targets.policy, repeated, noise.action
            )
        else:
            proposed = NextAction(
                self.policy.behaviour(params.policy, repeated.next_observation, noise.action)
            )
        if count == 1:
            return proposed
        observation = _repeat(batch.critic.next_observation, rows)
        score = critic.score(params.critic, observation, proposed.action, noise.score)
        chosen = self.next_selection.choose(jnp.reshape(score, (-1, count)), noise.choice)
        rows = count * jnp.arange(len(chosen)) + chosen
        return jax.tree.map(lambda x: x[rows], proposed)

    def bounded_critic(self, action_size: int) -> AbstractCritic | None:
        """The critic, with bounds that hold the rewards and the bonus that the policy pays."""
        if not isinstance(self.critic, BoundedCritic) or not self._asks_policy:
            return self.critic
        low, high = self.policy.bonus_bounds(action_size)
        if all(isinstance(bound, float) and bound == 0 for bound in (low, high)):
            return self.critic
        discount, bounds = self.critic.discount, (self.critic.reward_min, self.critic.reward_max)
        low, high = bounds[0] + discount * low, bounds[1] + discount * high
        return dataclasses.replace(self.critic, reward_min=low, reward_max=high)

    def update(
        self, state: State, batch: Batch | Parts, noise: ActorCriticNoise
    ) -> tuple[State, Metrics]:
        """One step of Adam on `loss`, in which the policy's counts in every `policy_every`-th
        update only, from the first on; and one of the averages in these.
        """
        moves = self._moves_policy(state)
        return self.descend(
            state, lambda params: self.loss(params, state.targets, batch, noise, moves_policy=moves)
        )

    def next_targets(self, state: State) -> Parts:
        averaged = average(state.targets, self.slow(state.params), self.target_rate)
        moves = self._moves_policy(state)
        if moves is True:
            return averaged
        return jax.tree.map(lambda a, b: jnp.where(moves, a, b), averaged, state.targets)

    def _moves_policy(self, state: State) -> Bool[Array, ""] | bool:
        return self.policy_every == 1 or state.step % self.policy_every == 0

    def optimiser(self) -> optax.GradientTransformation:
        """Every agent's, with the norms of the critic's and of the policy's gradient clipped."""
        if self.gradient_norm is None:
            return super().optimiser()
        clip = optax.clip_by_global_norm(self.gradient_norm)

        def each(gradient: Any, params: Any) -> Any:
            parts = (gradient.critic, gradient.policy)
            return Parts(*(clip.update(part, optax.EmptyState())[0] for part in parts))

        return optax.chain(optax.stateless(each), super().optimiser())

    def act(self, state: State, observation: Observation, *, key: Key) -> Action | Chunk:
        """The action or, with `chunk` > 1, the actions of a chunk, `[chunk action]`."""
        return self._act(state, observation, key, by_mode=self.policy.acts_by_mode)

    def explore(self, state: State, observation: Observation, *, key: Key) -> Action | Chunk:
        # A clone has nothing to explore for.
        by_mode = self.policy.acts_by_mode and not self.policy.uses_value
        return self._act(state, observation, key, by_mode=by_mode)

    def _act(
        self, state: State, observation: Observation, key: Key, *, by_mode: bool
    ) -> Action | Chunk:
        chosen = self._choose(state, observation, key, by_mode=by_mode)
        return chosen if self.chunk == 1 else jnp.reshape(chosen, (self.chunk, -1))

    def _choose(self, state: State, observation: Observation, key: Key, *, by_mode: bool) -> Action:
        params = with_precision(state.params, self.precision)
        count = self.selection.num_candidates
        shape = self.action_shape(count)
        observations = jnp.broadcast_to(observation, (count, *observation.shape))
        if count == 1:
            by_mode = by_mode and self.selection.proposal == "policy"
            noise = jnp.zeros(shape) if by_mode else jax.random.normal(key, shape)
            return self._propose(params.policy, observations, noise)[0]
        critic: Any = self.bounded_critic(shape[1])
        action_key, score_key, choice_key = jax.random.split(key, 3)
        noise = jax.random.normal(action_key, shape)
        action = self._propose(params.policy, observations, noise)
        # The same numbers for all candidates: only the actions make a difference.
        draws = _repeat(critic.score_noise(1, key=score_key), count)
        score = critic.score(params.critic, observations, action, draws)
        chosen = self.selection.choose(score[None], self.selection.noise(1, key=choice_key))
        return action[chosen[0]]

    def _propose(self, params: Any, observation: Observations, noise: Actions) -> Actions:
        if self.selection.proposal == "behaviour":
            return self.policy.behaviour(params, observation, noise)
        return self.policy.sample(params, observation, noise)


def _initial_state(agent: ActorCritic, observation_size: int, action_size: int, key: Key) -> State:
    critic_key, policy_key = jax.random.split(key)
    sizes = (observation_size, agent.chunk * action_size)
    critic = agent.bounded_critic(sizes[1])
    params = Parts(
        None if critic is None else critic.init(*sizes, key=critic_key),
        agent.policy.init(*sizes, key=policy_key),
    )
    return agent.fresh_state(params, agent.slow(params))


def _repeat(tree: T, count: int) -> T:
    """Every row `count` times, side by side."""
    return tree if count == 1 else jax.tree.map(lambda x: jnp.repeat(x, count, axis=0), tree)
