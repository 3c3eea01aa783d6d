"""The replay buffer against a plain list that does the same."""

import collections
import functools

import equinox as eqx
import hypothesis
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.stats
from hypothesis import strategies as st

from floq_eqx.data import Batch, Collected, Replay, sample_mixture

KEY = jax.random.key(0)
DRAWS = 2000

add = eqx.filter_jit(lambda replay, batch: replay.add(batch))
sample = eqx.filter_jit(lambda replay, key: replay.sample(DRAWS, key=key))
mixture = eqx.filter_jit(
    lambda offline, replay, fraction, key: sample_mixture(offline, replay, 10, fraction, key=key)
)

few = hypothesis.settings(max_examples=25, deadline=None, derandomize=True)


def of(number, with_next_action=False):
    """The transitions of these numbers, which all their parts can be told by."""
    number = np.asarray(number, np.float32)
    observation = np.stack([number, -number], axis=1)
    action = number[:, None] / 4096
    parts = [observation, action, number, number % 2, observation + 1]
    return Batch(*map(jnp.asarray, [*parts, 1 - action] if with_next_action else parts))


def transitions(first, count, **options):
    return of(np.arange(first, first + count), **options)


def cut():
    """Four transitions of which one action is lost."""
    batch = transitions(0, 4)
    return eqx.tree_at(lambda b: b.action, batch, batch.action[:3])


def numbers(batch):
    """Those of a batch, once it is certain that no transition is made of two."""
    assert equal(batch, of(batch.reward))
    return np.asarray(batch.reward).astype(int).tolist()


def equal(ours, theirs):
    """To the bit; nothing of it is compiled."""
    pairs = zip(jax.tree.leaves(ours), jax.tree.leaves(theirs), strict=True)
    return all(np.array_equal(a, b) for a, b in pairs)


def held(replay):
    """The numbers in the buffer; the rest of it has to be empty."""
    size = int(replay.size)
    empty = jax.tree.map(lambda x: np.asarray(x)[size:], replay.data)
    assert not any(np.any(leaf) for leaf in jax.tree.leaves(empty))
    return numbers(jax.tree.map(lambda x: np.asarray(x)[:size], replay.data))


@st.composite
def histories(draw):
    """A capacity, an offline dataset that fits, whether it is protected, and what is added."""
    capacity = draw(st.sampled_from([1, 3, 6]))
    protect = draw(st.booleans())
    offline = draw(st.integers(0, capacity - protect))
    room = capacity - offline if protect else capacity
    counts = draw(st.lists(st.integers(1, room), max_size=8))
    return capacity, offline, protect, counts


def model(capacity, offline, protect, counts):
    """What a buffer with this history holds: what is kept for ever, and the rest by age."""
    kept = list(range(offline)) if protect else []
    rest = collections.deque([] if protect else range(offline), maxlen=capacity - len(kept))
    rest.extend(range(offline, offline + sum(counts)))
    return kept, list(rest)


def made(capacity, offline, protect, counts, add=add):
    replay = Replay.from_data(transitions(0, offline), capacity, protect=protect)
    first = offline
    for count in counts:
        replay = add(replay, transitions(first, count))
        first += count
    return replay


@few
@hypothesis.given(histories())
def test_holds_what_a_list_would(history):
    replay = made(*history)
    kept, rest = model(*history)
    assert sorted(held(replay)) == kept + rest
    assert held(replay)[: len(kept)] == kept
    assert replay.size.dtype == replay.position.dtype == jnp.int32
    # Adding one after the other goes over the rest from the oldest to the newest.
    room = history[0] - len(kept)
    new = 1000
    while len(rest) == room and rest[0] < 1000:
        replay = add(replay, transitions(new, 1))
        gone, rest, new = rest[0], [*rest[1:], new], new + 1
        assert gone not in held(replay)
        assert sorted(held(replay)) == kept + rest


@few
@hypothesis.given(histories(), st.integers(0, 1000))
def test_draws_uniformly_what_it_holds(history, seed):
    replay = made(*history)
    content = held(replay)
    if not content:
        return
    drawn = collections.Counter(numbers(sample(replay, jax.random.key(seed))))
    assert set(drawn) == set(content)
    if len(content) > 1:
        assert scipy.stats.chisquare([drawn[number] for number in content]).pvalue > 1e-5


@hypothesis.settings(few, max_examples=12)
@hypothesis.given(histories())
def test_batches_equal_single_transitions_and_jit_changes_nothing(history):
    *start, counts = history
    batches = made(*start, counts)
    assert equal(batches, made(*start, [1] * sum(counts)))
    with jax.disable_jit():
        plain = made(*start, counts, add=lambda replay, batch: replay.add(batch))
    assert equal(batches, plain)


def test_draws_of_one_key_are_the_same_and_of_another_not():
    replay = Replay.from_data(transitions(0, 8), 20)
    first, again, other = (sample(replay, jax.random.key(seed)) for seed in (0, 0, 1))
    assert equal(first, again)
    assert not equal(first, other)


def test_contents_do_not_compile_again_and_offline_data_are_not_given_away():
    traces = []

    @eqx.filter_jit(donate="all-except-first")
    def step(inputs, replay):
        traces.append(None)
        batch, key = inputs
        replay = replay.add(batch)
        return replay, replay.sample(4, key=key)

    data = transitions(0, 4)
    for capacity, protect in ((6, True), (4, False)):
        replay = Replay.from_data(data, capacity, protect=protect)
        for index in range(10):
            replay, drawn = step((transitions(4 + 2 * index, 2), KEY), replay)
            assert len(numbers(drawn)) == 4
    assert len(traces) == 2
    assert numbers(data) == [0, 1, 2, 3]


@pytest.mark.parametrize("protect", [True, False])
@pytest.mark.parametrize("offline", [0, 3])
@pytest.mark.parametrize("added", [1, 4, 5, 6, 13])
def test_what_was_collected_restores_the_buffer(protect, offline, added):
    def fresh():
        return Replay.from_data(transitions(0, offline), 8, protect=protect)

    replay = fresh()
    for index in range(added):
        replay = replay.add(transitions(100 + index, 1))
    assert equal(fresh().with_collected(replay.collected()), replay)
    newest = [*range(offline), *range(100, 100 + added)][-8:]
    if protect:
        newest = [*range(100, 100 + added)][-(8 - offline) :]
    assert numbers(replay.collected().in_order().data) == newest
    with pytest.raises(ValueError, match="9 collected transitions do not fit"):
        fresh().with_collected(Collected(transitions(0, 9), jnp.zeros((), jnp.int32)))


def test_empty():
    replay = Replay.empty(3, 2, 1)
    assert (replay.capacity, int(replay.size)) == (3, 0)
    with pytest.raises(ValueError, match="buffer without transitions: add some first"):
        replay.sample(4, key=KEY)
    drawn = sample(replay, KEY)  # compiled, where nothing can be raised
    assert not any(np.any(leaf) for leaf in jax.tree.leaves(drawn))
    assert len(replay.add(transitions(0, 1)).sample(4, key=KEY)) == 4
    assert replay.data.next_action is None
    with_next = Replay.empty(3, 2, 1, with_next_action=True)
    full = with_next.add(transitions(0, 3, with_next_action=True))
    assert equal(full.data, of([0, 1, 2], with_next_action=True))


class TestMixture:
    offline = transitions(0, 50)

    @pytest.mark.parametrize("fraction", [0, 0.25, 0.5, 0.77, 1.0])
    def test_parts_are_exact(self, fraction):
        replay = Replay.empty(6, 2, 1).add(transitions(1000, 4))
        count = round(10 * fraction)
        seen = set()
        draw = functools.partial(mixture, self.offline, replay, fraction)
        for key in jax.random.split(KEY, 40):
            drawn = numbers(draw(key))
            assert all(number < 1000 for number in drawn[:count])
            assert all(number >= 1000 for number in drawn[count:])
            seen |= set(drawn)
        assert seen >= (set(range(1000, 1004)) if count < 10 else set())
        assert (len(seen & set(range(50))) > 45) == (count > 2)

    def test_all_is_offline_while_there_is_nothing_else(self):
        for draw in (mixture, lambda a, b, c, key: sample_mixture(a, b, 10, c, key=key)):
            drawn = numbers(draw(self.offline, Replay.empty(4, 2, 1), 0.5, KEY))
            assert len(set(drawn)) > 5
            assert max(drawn) < 50

    @pytest.mark.parametrize("fraction", [-0.1, 1.5, float("nan")])
    def test_bad_fraction(self, fraction):
        with pytest.raises(ValueError, match=r"fraction must be in \[0, 1\]"):
            sample_mixture(self.offline, Replay.empty(4, 2, 1), 10, fraction, key=KEY)

    def test_bad_data(self):
        with pytest.raises(ValueError, match="offline_transitions"):
            sample_mixture(transitions(0, 0), Replay.empty(4, 2, 1), 10, 0.5, key=KEY)
        replay = Replay.empty(4, 2, 1, with_next_action=True)
        with pytest.raises(ValueError, match="`next_action` has the shape None"):
            sample_mixture(self.offline, replay, 10, 0.5, key=KEY)


@pytest.mark.parametrize(
    ("misuse", "message"),
    [
        (lambda: Replay.empty(0, 2, 1), "capacity must be a whole number of at least 1, got 0"),
        (lambda: Replay.empty(3, 0, 1), "observation_size must be"),
        (lambda: Replay.empty(3, 2, -1), "action_size must be"),
        (lambda: Replay.from_data(transitions(0, 4), 3, protect=False), "cannot hold 4"),
        (lambda: Replay.from_data(transitions(0, 3), 3), "and, with protect=True, one to add"),
        (lambda: Replay.empty(3, 2, 1).add(transitions(0, 4)), "4 transitions does not fit the 3"),
        (
            lambda: Replay.from_data(transitions(0, 3), 5).add(transitions(0, 3)),
            "does not fit the 2 slots",
        ),
        (lambda: Replay.empty(3, 3, 1).add(transitions(0, 1)), r"`observation` .* \(3,\) .*buffer"),
        (
            lambda: Replay.empty(3, 2, 1).add(transitions(0, 1, with_next_action=True)),
            "same next actions",
        ),
        (
            lambda: Replay.from_data(transitions(0, 2), 3).sample(0, key=KEY),
            "batch_size must be",
        ),
        (lambda: Replay.from_data(cut(), 9), r"`action` has the shape \(3, 1\), .*\(4, 1\)"),
        (lambda: Replay.empty(9, 2, 1).add(cut()), r"`action` has the shape \(3, 1\), .*\(4, 1\)"),
        (lambda: add(Replay.empty(9, 2, 1), cut()), r"`action` has the shape \(3, 1\)"),
    ],
)
def test_misuse(misuse, message):
    with pytest.raises(ValueError, match=message):
        misuse()
