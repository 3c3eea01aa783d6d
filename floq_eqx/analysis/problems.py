"""Problems whose exact Q is known: what a learned critic can be held against."""

import abc

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, ArrayLike, Float, Int

from .._checks import check_range, check_sizes
from .._types import Action, Key, Number, Observation, Scalar
from ..data.transitions import Batch
from ..modules.actors import AbstractActor

_EFFORT = 0.5  # the cost of an action, by that of an observation


class Problem(AbstractActor):
    """A Markov decision process, a policy in it, and that policy's exact Q.

    **Attributes:** `observation_size`, `action_size`: components; `discount`: γ.
    """

    observation_size: eqx.AbstractVar[int]
    action_size: eqx.AbstractVar[int]
    discount: eqx.AbstractVar[float]

    @abc.abstractmethod
    def draw(self, *, key: Key) -> tuple[Observation, Action]:
        """An observation and an action, from the distribution of the data."""

    @abc.abstractmethod
    def step(
        self, observation: Observation, action: Action, *, key: Key
    ) -> tuple[Scalar, Scalar, Observation]:
        """**Returns:** the reward, the mask (0 where the episode ends) and s'."""

    @abc.abstractmethod
    def q(self, observation: Observation, action: Action) -> Scalar:
        """The exact Q of the policy, in units of the return."""

    def data(self, size: int, *, key: Key) -> Batch:
        """`size` independent transitions from the distribution of the data."""
        check_sizes(size=size)

        def transition(key: Key) -> tuple:
            draw_key, step_key = jax.random.split(key)
            observation, action = self.draw(key=draw_key)
            return observation, action, *self.step(observation, action, key=step_key)

        return Batch(*jax.vmap(transition)(jax.random.split(key, size)))

    def sampled_return(
        self, observation: Observation, action: Action, *, num_steps: int, key: Key
    ) -> Scalar:
        """One discounted return: the action first, then `num_steps - 1` of the policy's."""
        check_sizes(num_steps=num_steps)

        def one(carry: tuple, key: Key) -> tuple[tuple, Scalar]:
            observation, action, weight = carry
            step_key, action_key = jax.random.split(key)
            reward, mask, observation = self.step(observation, action, key=step_key)
            action = self.act(observation, jax.random.normal(action_key, (self.action_size,)))
            return (observation, action, self.discount * mask * weight), weight * reward

        start = (observation, action, jnp.ones(()))
        return jnp.sum(jax.lax.scan(one, start, jax.random.split(key, num_steps))[1])


class LinearQuadratic(Problem):
    r"""$s' = A s + B a + w$, $r = -s^\top C s - a^\top D a + e$, and a linear Gaussian policy.

    The policy is $a = -G s + \sigma_\pi \epsilon$; $w$ and $e$ are Gaussian; $C$ is the identity
    and $D$ half of it. The policy's value is $-s^\top P s - c$, where
    $P = C + G^\top D G + \gamma (A - B G)^\top P (A - B G)$, a discrete Lyapunov equation.

    In the data, observations are uniform in the unit ball and actions in $[-1, 1]^m$. The policy's
    actions are not clipped.

    **Arguments:**

    - `dynamics`, `control`, `gain`: A, B and G; see `random` for some.
    - `discount`: γ, in [0, 1).
    - `process_noise`, `policy_noise`, `reward_noise`: standard deviations of each component of w,
        $\sigma_\pi$ and that of e.

    **Raises:** `ValueError` if the shapes do not fit, a value is not in its range, or the policy's
    cost is infinite.
    """

    dynamics: Float[Array, "observation observation"]
    control: Float[Array, "observation action"]
    gain: Float[Array, "action observation"]
    cost_to_go: Float[Array, "observation observation"]
    constant: Float[Array, ""]
    observation_size: int = eqx.field(static=True)
    action_size: int = eqx.field(static=True)
    discount: float = eqx.field(static=True)
    process_noise: float = eqx.field(static=True)
    policy_noise: float = eqx.field(static=True)
    reward_noise: float = eqx.field(static=True)

    def __init__(
        self,
        dynamics: ArrayLike,
        control: ArrayLike,
        gain: ArrayLike,
        *,
        discount: Number = 0.9,
        process_noise: Number = 0.05,
        policy_noise: Number = 0.2,
        reward_noise: Number = 0.0,
    ):
        from scipy.linalg import solve_discrete_lyapunov  # slow to import

        a, b, g = (np.asarray(matrix, np.float64) for matrix in (dynamics, control, gain))
        if not (a.ndim == b.ndim == 2 and a.shape == (len(b), len(b)) and g.shape == b.T.shape):
            raise ValueError(
                "dynamics, control and gain must be [n, n], [n, m] and [m, n], got "
                f"{a.shape}, {b.shape} and {g.shape}."
            )
        check_range("discount", discount, 0, 1, open_high=True)
        check_range("process_noise", process_noise, 0)
        check_range("policy_noise", policy_noise, 0)
        check_range("reward_noise", reward_noise, 0)
        closed_loop = a - b @ g
        radius = np.abs(np.linalg.eigvals(closed_loop)).max()
        if discount * radius**2 >= 1:
            raise ValueError(
                f"The policy's cost is infinite: A - B G has a spectral radius of {radius}, "
                f"and with a discount of {discount} it must be below {discount**-0.5}."
            )
        self.observation_size, self.action_size = b.shape
        self.discount = float(discount)
        self.process_noise = float(process_noise)
        self.policy_noise = float(policy_noise)
        self.reward_noise = float(reward_noise)

        p = solve_discrete_lyapunov(
            discount**0.5 * closed_loop.T, np.eye(len(b)) + _EFFORT * g.T @ g
        )
        spread = process_noise**2 * np.eye(len(b)) + policy_noise**2 * b @ b.T
        constant = policy_noise**2 * _EFFORT * len(g) + discount * np.trace(p @ spread)
        self.dynamics, self.control, self.gain, self.cost_to_go, self.constant = (
            jnp.asarray(x, jnp.float32) for x in (a, b, g, p, constant / (1 - discount))
        )

    @classmethod
    def random(
        cls,
        observation_size: int = 4,
        action_size: int = 2,
        *,
        key: Key,
        discount: Number = 0.9,
        **noises: Number,
    ) -> "LinearQuadratic":
        """A rotation shrunk to 0.95 as A, a Gaussian B of norm 0.3, and the optimal G.

        So s' hardly leaves the unit ball that the data's observations are in.
        """
        from scipy.linalg import solve_discrete_are  # slow to import

        check_sizes(observation_size=observation_size, action_size=action_size)
        check_range("discount", discount, 0, 1, open_high=True)
        a_key, b_key = jax.random.split(key)
        a = np.asarray(jax.random.normal(a_key, (observation_size, observation_size)), np.float64)
        b = np.asarray(jax.random.normal(b_key, (observation_size, action_size)), np.float64)
        a = 0.95 * np.linalg.qr(a)[0]
        b *= 0.3 / np.linalg.norm(b)
        # The discount is as good as dynamics that shrink by its square root.
        da, db = discount**0.5 * a, discount**0.5 * b
        effort = _EFFORT * np.eye(action_size)
        p = solve_discrete_are(da, db, np.eye(observation_size), effort)
        gain = np.linalg.solve(effort + db.T @ p @ db, db.T @ p @ da)
        return cls(a, b, gain, discount=discount, **noises)

    def draw(self, *, key: Key) -> tuple[Observation, Action]:
        observation_key, action_key = jax.random.split(key)
        observation = jax.random.ball(observation_key, self.observation_size)
        return observation, jax.random.uniform(action_key, (self.action_size,), minval=-1, maxval=1)

    def step(
        self, observation: Observation, action: Action, *, key: Key
    ) -> tuple[Scalar, Scalar, Observation]:
        reward_key, process_key = jax.random.split(key)
        reward = self._reward(observation, action)
        reward = reward + self.reward_noise * jax.random.normal(reward_key)
        shift = self.process_noise * jax.random.normal(process_key, observation.shape)
        return reward, jnp.ones(()), self._next(observation, action) + shift

    def act(self, observation: Observation, noise: Action) -> Action:
        return self.policy_noise * noise - self.gain @ observation

    def q(self, observation: Observation, action: Action) -> Scalar:
        following = self._next(observation, action)
        cost = following @ self.cost_to_go @ following
        cost = cost + self.process_noise**2 * jnp.trace(self.cost_to_go) + self.constant
        return self._reward(observation, action) - self.discount * cost

    def return_std(self) -> float:
        r"""The standard deviation of the return, $\sigma_e / \sqrt{1 - \gamma^2}$, in every (s, a).

        **Raises:** `ValueError` unless dynamics and policy are deterministic: only then is the
        return Gaussian, and its deviation everywhere the same.
        """
        if self.process_noise or self.policy_noise:
            raise ValueError(
                "The return's deviation is known with process_noise=0 and policy_noise=0 only, "
                f"got {self.process_noise} and {self.policy_noise}."
            )
        return self.reward_noise / (1 - self.discount**2) ** 0.5

    def _reward(self, observation: Observation, action: Action) -> Scalar:
        return -(observation @ observation) - _EFFORT * (action @ action)

    def _next(self, observation: Observation, action: Action) -> Observation:
        return self.dynamics @ observation + self.control @ action


class RandomWalk(Problem):
    """A walk on a line of cells that ends on either side, with a reward of 1 on the right.

    An action moves it to the right with probability 0.5 + 0.4 a. The policy draws a uniformly, so
    the walk it makes is symmetric. An observation is a unit vector that stands for the cell: to
    tell cells apart takes a nonlinear function, since there are more of them than components.

    **Arguments:**

    - `num_cells`: between the two ends, at least 1.
    - `observation_size`: components of an observation.
    - `discount`: γ, in [0, 1).
    - `key`: of the unit vectors.
    """

    cells: Float[Array, "cells observation"]
    value_right: Float[Array, "cells"]
    value_left: Float[Array, "cells"]
    observation_size: int = eqx.field(static=True)
    action_size: int = eqx.field(static=True)
    discount: float = eqx.field(static=True)

    def __init__(
        self,
        num_cells: int = 15,
        observation_size: int = 6,
        *,
        discount: Number = 0.97,
        key: Key,
    ):
        check_sizes(num_cells=num_cells, observation_size=observation_size)
        check_range("discount", discount, 0, 1, open_high=True)
        self.observation_size, self.action_size, self.discount = (
            observation_size,
            1,
            float(discount),
        )
        cells = jax.random.normal(key, (num_cells, observation_size))
        self.cells = cells / jnp.linalg.norm(cells, axis=1, keepdims=True)
        # V = (V to the right + V to the left) / 2 with what a step to each side is worth.
        step = discount * (np.eye(num_cells, k=1) + np.eye(num_cells, k=-1)) / 2
        reward = np.zeros(num_cells)
        reward[-1] = 0.5
        value = np.concatenate([[0], np.linalg.solve(np.eye(num_cells) - step, reward), [0]])
        right, left = discount * value[2:], discount * value[:-2]
        right[-1] = 1.0
        self.value_right, self.value_left = (jnp.asarray(x, jnp.float32) for x in (right, left))

    def draw(self, *, key: Key) -> tuple[Observation, Action]:
        cell_key, action_key = jax.random.split(key)
        cell = jax.random.randint(cell_key, (), 0, len(self.cells))
        return self.cells[cell], jax.random.uniform(action_key, (1,), minval=-1, maxval=1)

    def step(
        self, observation: Observation, action: Action, *, key: Key
    ) -> tuple[Scalar, Scalar, Observation]:
        right = jax.random.bernoulli(key, self._chance(action))
        cell = self._cell(observation) + jnp.where(right, 1, -1)
        last = len(self.cells) - 1
        reward = (cell > last).astype(jnp.float32)
        mask = ((cell >= 0) & (cell <= last)).astype(jnp.float32)
        return reward, mask, self.cells[jnp.clip(cell, 0, last)]

    def act(self, observation: Observation, noise: Action) -> Action:
        return 2 * jax.scipy.stats.norm.cdf(noise) - 1

    def q(self, observation: Observation, action: Action) -> Scalar:
        cell, chance = self._cell(observation), self._chance(action)
        return chance * self.value_right[cell] + (1 - chance) * self.value_left[cell]

    def _cell(self, observation: Observation) -> Int[Array, ""]:
        return jnp.argmax(self.cells @ observation)

    def _chance(self, action: Action) -> Scalar:
        return 0.5 + 0.4 * action[0]
