"""Updates in a compiled loop, and chunks of that loop with the host in between."""

import dataclasses
import time
from collections.abc import Callable, Iterable, Sequence
from typing import Any, TypeVar

import diffrax
import equinox as eqx
import jax
import jax.core
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Shaped

from .._checks import check_sizes
from .._types import Key, Metrics
from ..agents.agent import Agent, State
from ..data.windows import Data
from .checks import RewardWatch, check_fits, explained

T = TypeVar("T")

_PIECE = 10


def train_steps(
    agent: Agent, state: State, data: Data, *, num_updates: int, batch_size: int, key: Key
) -> tuple[State, dict[str, Float[Array, "steps"]]]:
    """`num_updates` updates on batches drawn from `data`, as one `lax.scan`.

    The random numbers of an update depend on `key` and `state.step` alone, so that one call of ten
    updates does the same as two of five, or as a run that was interrupted in between: to the bit,
    but for a call of a single update, which XLA compiles without a loop.

    **Arguments:**

    - `agent`, `state`: what to train. Float hyperparameters, arrays or Python's, can change from
        call to call without compiling again.
    - `data`: the transitions; an argument, so other data of the same shape do not compile again.
    - `num_updates`, `batch_size`: each at least 1; batches are drawn with replacement.
    - `key`: one key for the whole run.

    **Returns:** the state after the updates, and the metrics of each of them. A NaN or an infinity
    is in the metrics from the update on that made it; nothing raises here.

    To train several seeds at once on the same data, stack their states and keys and
    `eqx.filter_vmap` this over them: see [`floq_eqx.training.train_seeds`][].

    **Raises:** `ValueError` if the agent's learning rate decays to zero before the last update, if
    the data are of other sizes than agent and state, or as [`floq_eqx.data.check_batch`][].
    """
    check_sizes(num_updates=num_updates, batch_size=batch_size)
    check_fits(agent, data)
    if not isinstance(state.step, jax.core.Tracer):
        agent.check_decay(state, num_updates)
    with explained(agent, state, data.observation_size):
        return _train_steps(with_arrays(agent), state, data, num_updates, batch_size, key)


def with_arrays(agent: Agent) -> Agent:
    """The agent with arrays for its Python numbers, for each of which jit would compile anew."""

    def array(leaf: Any) -> Any:
        # Weakly typed, as a Python number is.
        return jnp.asarray(float(leaf)) if isinstance(leaf, int | float) else leaf

    theirs = (diffrax.AbstractSolver, diffrax.AbstractAdjoint)  # whose numbers are structural
    return jax.tree.map(array, agent, is_leaf=lambda leaf: isinstance(leaf, theirs))


@eqx.filter_jit
def _train_steps(
    agent: Agent, state: State, data: Data, num_updates: int, batch_size: int, key: Key
) -> tuple[State, dict[str, Float[Array, "steps"]]]:
    update = update_on_sample(agent, data, batch_size, key)
    return jax.lax.scan(update, state, None, length=num_updates)


def compile_steps(*inputs: Any) -> Any:
    """The program of [`floq_eqx.training.train_steps`][] for these inputs, which it takes again."""
    program: Any = _train_steps
    return program.lower(*inputs).compile()


def update_on_sample(
    agent: Agent, data: Data, batch_size: int, key: Key
) -> Callable[[State, None], tuple[State, Metrics]]:
    """One update on a batch of `data`, for `lax.scan`; its random numbers come from `key` and the
    number of the update.
    """

    def one(state: State, _: None) -> tuple[State, Metrics]:
        batch_key, noise_key = jax.random.split(jax.random.fold_in(key, state.step))
        batch = agent.sample(data, batch_size, key=batch_key)
        return agent.update(state, batch, agent.noise(batch_size, key=noise_key))

    return one


def train_seeds(
    agent: Agent,
    states: State,
    data: Data,
    *,
    num_updates: int,
    batch_size: int,
    keys: Shaped[Array, "seeds ..."],
) -> tuple[State, dict[str, Float[Array, "seeds steps"]]]:
    """[`floq_eqx.training.train_steps`][] for several seeds at once, on the same data.

    **Arguments:** as there, but `states` and `keys` have a leading axis of seeds; make the states
    with `eqx.filter_vmap(lambda key: agent.init(..., key=key))(keys)`.

    **Raises:** as there.
    """
    if not isinstance(states.step, jax.core.Tracer):
        agent.check_decay(states, num_updates)

    def train(state: State, key: Key) -> tuple[State, dict[str, Float[Array, "steps"]]]:
        return train_steps(
            agent, state, data, num_updates=num_updates, batch_size=batch_size, key=key
        )

    return eqx.filter_vmap(train)(states, keys)


class DivergedError(RuntimeError):
    """A metric or a parameter became NaN or infinite.

    **Attributes:** `step`: the first update whose metrics show it; `env_step`: online, the
    environment step that it followed.
    """

    def __init__(self, step: int, names: list[str], env_step: int | None = None):
        self.step, self.env_step = step, env_step
        when = f"update {step}"
        if env_step is not None:
            when += f", after environment step {env_step}"
        super().__init__(
            f"Training diverged: {', '.join(names)} NaN or infinite at {when}. Lower the "
            "learning rate, raise alpha, or normalise the Q loss; checkpoints before it are whole."
        )


@dataclasses.dataclass(frozen=True)
class Progress:
    """What a callback of [`floq_eqx.training.fit`][] sees after each chunk of updates.

    **Attributes:** the number of updates so far, the state after them, the means over the chunk of
    every metric, and updates per second in it (compilation included in the first).
    """

    step: int
    state: State
    metrics: dict[str, float]
    updates_per_second: float


def fit(
    agent: Agent,
    state: State,
    data: Data,
    *,
    num_updates: int,
    batch_size: int,
    key: Key,
    chunk: int = 1000,
    callbacks: Iterable[Callable[[Progress], None]] = (),
    between: Callable[[int], bool] = lambda step: False,
) -> State:
    """Trains until `state.step` is `num_updates`, in chunks that end at multiples of `chunk`.

    **Arguments:** as in [`floq_eqx.training.train_steps`][], and

    - `num_updates`: the total, with those that `state` already has.
    - `chunk`: how many updates run between returns to the host.
    - `callbacks`: called in order after every chunk: evaluation, logging, checkpoints.
    - `between`: called after every few updates with their number so far; if it returns true, the
        chunk ends there, and the training after its callbacks.

    **Returns:** the state at the end.

    **Raises:** `DivergedError` after a chunk in which a metric or a parameter became NaN or
    infinite, before any callback sees it; `ValueError` as `train_steps`.

    Warns of rewards outside the agent's `reward_min` and `reward_max`, if it has them.
    """
    check_sizes(num_updates=num_updates, batch_size=batch_size, chunk=chunk)
    check_fits(agent, data)
    RewardWatch(agent, "of the data").see(data.reward)
    callbacks = tuple(callbacks)
    step, stopped = int(state.step), False
    agent.check_decay(state, max(0, num_updates - step))
    arrays = with_arrays(agent)

    def some(state: State, count: int) -> tuple[State, dict[str, Array]]:
        with explained(agent, state, data.observation_size):
            return _train_steps(arrays, state, data, count, batch_size, key)

    while step < num_updates and not stopped:
        start = time.perf_counter()
        length = min(chunk - step % chunk, num_updates - step)
        state, metrics, count, stopped = in_pieces(some, state, step, length, between)
        step += count
        raise_if_diverged(step, count, metrics, state)
        progress = Progress(
            step=step,
            state=state,
            metrics={name: float(values.mean()) for name, values in metrics.items()},
            updates_per_second=count / (time.perf_counter() - start),
        )
        for callback in callbacks:
            callback(progress)
    return state


def in_pieces(
    some: Callable[[T, int], tuple[T, dict[str, Any]]],
    state: T,
    step: int,
    length: int,
    between: Callable[[int], bool],
) -> tuple[T, dict[str, np.ndarray], int, bool]:
    """Updates in parts that end soon, for a signal to be heard between them.

    **Arguments:** `some`: makes so many updates of a state; `step`, `length`: how many there were
    before, and how many are to be made; `between`: as in [`floq_eqx.training.fit`][].

    **Returns:** the state, the metrics of each update, how many there were, and whether `between`
    ended them.
    """
    parts: list[dict[str, Any]] = []
    done, stopped = 0, False
    for count in pieces(length):
        state, metrics = some(state, count)
        jax.block_until_ready(parts[-1:])  # The next waits already, and no more than that.
        parts.append(metrics)
        done += count
        stopped = between(step + done)
        if stopped:
            break
    joined = {n: np.concatenate([part[n] for part in parts], axis=-1) for n in parts[0]}
    return state, joined, done, stopped


def pieces(count: int) -> list[int]:
    """The lengths of the parts in which `in_pieces` makes so many updates.

    Of two lengths at most, since each compiles, and none of one update, which XLA compiles without
    a loop.
    """
    number = -(-count // _PIECE)
    return [count // number + (index < count % number) for index in range(number)]


def raise_if_diverged(
    step: int,
    count: int,
    metrics: dict[str, np.ndarray],
    state: State,
    env_steps: Sequence[int] | None = None,
) -> None:
    """Looks through the last `count` updates, which ended with number `step`; online each of them
    followed one of `env_steps`.
    """
    finite = {name: np.isfinite(values) for name, values in metrics.items()}
    bad = {name: int(np.argmin(values)) for name, values in finite.items() if not values.all()}
    if bad:
        first = min(bad.values())
        names = [name for name, index in bad.items() if index == first]
        raise DivergedError(
            step - count + first + 1, names, None if env_steps is None else env_steps[first]
        )
    # On the host: JAX compiles this anew for every shape.
    if not all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(state.params)):
        raise DivergedError(step, ["a parameter"], env_steps[-1] if env_steps else None)
