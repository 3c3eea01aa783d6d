"""Windows of several steps: of trajectories, of the replay buffer, and what agents make of them."""

import dataclasses

import equinox as eqx
import gymnasium
import hypothesis
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from gymnasium import spaces
from gymnasium.vector import AutoresetMode, SyncVectorEnv
from hypothesis import strategies as st

from floq_eqx.agents import ActorCritic, BehaviouralFlow, Parts, Selection, bc_flow, floq, qc
from floq_eqx.data import (
    Batch,
    Replay,
    Trajectories,
    check_data,
    fingerprint,
    sample_mixture,
    window as windows_of,
)
from floq_eqx.evaluation import evaluate
from floq_eqx.networks import MLPConfig
from floq_eqx.training import fit_online, train_steps

from .reference import DATA, Reference

KEY = jax.random.key(0)
few = hypothesis.settings(max_examples=25, deadline=None, derandomize=True)
window = eqx.filter_jit(windows_of)


# -------------------------------------------------------------------------------- trajectories


def toy():
    """Those of the reference numbers, and their arrays."""
    with np.load(DATA / "sequence_sampler.npz", allow_pickle=False) as file:
        arrays = {key: file[key] for key in file.files}
    data = {key.removeprefix("data/"): x for key, x in arrays.items() if key.startswith("data/")}
    ends = data["terminals"] > 0
    before = np.flatnonzero(ends) + 1
    rows = [np.insert(np.arange(60), before, -1)]
    states = np.insert(data["observations"], before, data["next_observations"][ends], axis=0)
    actions = np.insert(data["actions"], before, 0.0, axis=0)
    made = Trajectories.of_rows(
        states, actions, rows[0] >= 0, data["rewards"], data["masks"], with_next_action=True
    )
    return made, arrays


@pytest.mark.parametrize("tag", ["h5", "h3", "h1"])
@pytest.mark.parametrize("code", ["qc", "qam"])
def test_windows_are_those_of_the_released_code(tag, code):
    data, arrays = toy()
    start, length = arrays[f"{tag}/start"], int(arrays[f"{tag}/h"])
    theirs = {k.split("/")[2]: x for k, x in arrays.items() if k.startswith(f"{tag}/{code}/")}
    discount = float(arrays[f"{tag}/discount"])
    ours = window(data, jnp.asarray(start), length, discount=discount, chunk=True)
    valid = theirs["valid"]
    np.testing.assert_array_equal(ours.observation, theirs["observations"])
    if length == 1:
        assert ours.discount is None
        assert ours.valid is None
    else:
        np.testing.assert_array_equal(ours.valid, valid)
        np.testing.assert_allclose(ours.discount, discount ** valid.sum(axis=1), rtol=1e-6)
    actions = np.asarray(ours.action).reshape(len(start), length, -1)
    np.testing.assert_array_equal(actions[valid > 0], theirs["actions"][valid > 0])
    # What is past an end the two released samplers fill differently, and no loss looks at it.
    whole = valid[:, -1] > 0
    np.testing.assert_allclose(ours.reward[whole], theirs["rewards"][whole, -1], rtol=0, atol=1e-6)
    np.testing.assert_array_equal(ours.mask[whole], theirs["masks"][whole, -1])
    next_observation = theirs["next_observations"][whole, -1]
    np.testing.assert_array_equal(ours.next_observation[whole], next_observation)
    if code == "qam":  # whose windows stay at an end, as these do
        np.testing.assert_allclose(ours.reward, theirs["rewards"][:, -1], rtol=0, atol=1e-6)
        np.testing.assert_array_equal(ours.next_observation, theirs["next_observations"][:, -1])


@st.composite
def lengths_of_trajectories(draw):
    return draw(st.lists(st.integers(1, 6), min_size=1, max_size=5))


def numbered(lengths):
    """Trajectories whose states, actions and rewards are numbers that tell them."""
    rows = sum(lengths) + len(lengths)
    begins = np.ones(rows, bool)
    begins[np.cumsum(np.asarray(lengths) + 1) - 1] = False
    number = np.arange(rows, dtype=np.float32)
    mask = (np.arange(sum(lengths)) % 3 != 2).astype(np.float32)
    return Trajectories.of_rows(
        np.stack([number, -number], 1), number[:, None] / 100, begins, number[begins], mask
    )


@few
@hypothesis.given(lengths_of_trajectories(), st.integers(1, 5), st.booleans())
def test_windows_by_hand(lengths, length, chunk):
    data = numbered(lengths)
    made = windows_of(data, jnp.arange(len(data)), length, discount=0.5, chunk=chunk)
    transition, row = 0, 0
    for count in lengths:
        for step in range(count):
            steps = min(length, count - step)
            rewards = [0.5**i * (row + i) for i in range(steps)]
            last = row + steps
            assert float(made.reward[transition]) == pytest.approx(sum(rewards))
            assert made.observation[transition, 0] == row
            assert made.next_observation[transition, 0] == last
            masks = np.asarray(data.mask)[transition : transition + steps]
            assert made.mask[transition] == masks.min()
            if length > 1:
                assert float(made.discount[transition]) == 0.5**steps
            if length > 1 and chunk:
                taken = [min(row + i, last - 1) / 100 for i in range(length)]
                np.testing.assert_allclose(made.action[transition], taken, rtol=1e-6)
                assert made.valid[transition].tolist() == [1.0] * steps + [0.0] * (length - steps)
            else:
                assert float(made.action[transition, 0]) == pytest.approx(row / 100)
                assert made.valid is None
            transition, row = transition + 1, row + 1
        row += 1


def test_trajectories_read_as_their_transitions():
    data = numbered([3, 1, 4])
    whole = data.transitions()
    for field in dataclasses.fields(Batch):
        ours, theirs = getattr(data, field.name, None), getattr(whole, field.name)
        assert (ours is None) == (theirs is None)
        if ours is not None:
            np.testing.assert_array_equal(ours, theirs)
    assert (len(data), data.observation_size, data.action_size) == (8, 2, 1)
    assert (len(whole), whole.observation_size, whole.action_size) == (8, 2, 1)
    # A run that was begun with transitions goes on with trajectories of the same.
    assert fingerprint(data) == fingerprint(whole)
    check_data(data)
    with pytest.raises(ValueError, match="last row"):
        Trajectories.of_rows(*(np.zeros((2, 1)),) * 2, np.array([True, True]), *[np.zeros(2)] * 2)
    short = eqx.tree_at(lambda d: d.mask, data, data.mask[:3])
    with pytest.raises(ValueError, match=r"differ in length.*'mask': 3.*one row a transition"):
        check_data(short)
    short = eqx.tree_at(lambda d: d.actions, data, data.actions[:3])
    with pytest.raises(ValueError, match="one row a state"):
        check_data(short)


def test_states_are_stored_once():
    data = numbered([99] * 10)
    assert data.states.nbytes == 4 * 2 * 1000
    every = data.transitions()
    assert every.observation.nbytes + every.next_observation.nbytes == 2 * 4 * 2 * 990


def test_the_next_chunk_stays_in_its_trajectory():
    data = dataclasses.replace(numbered([3, 4]), with_next_action=True)
    made = windows_of(data, jnp.array([0, 1, 3]), 2, chunk=True)
    expected = [[2, 3], [3, 3], [6, 7]]  # the last state's own action, again
    np.testing.assert_allclose(100 * made.next_action, expected, rtol=1e-6)
    made = windows_of(data, jnp.array([0, 1, 3]), 2)
    np.testing.assert_allclose(100 * made.next_action[:, 0], [2, 3, 6], rtol=1e-6)


# -------------------------------------------------------------------------------- replay buffer


@st.composite
def lives(draw):
    """How many environments act, when their episodes end, the room, and offline trajectories."""
    num = draw(st.integers(1, 3))
    steps = draw(st.lists(st.lists(st.booleans(), min_size=num, max_size=num), max_size=12))
    offline = draw(st.lists(st.integers(1, 3), max_size=2))
    room = draw(st.integers(max(num, 2), 20))
    return num, steps, offline, room, draw(st.booleans()), draw(st.integers(2, 4))


@few
@hypothesis.given(lives())
def test_windows_of_a_buffer_are_those_of_its_episodes(life):
    num, steps, offline, room, protect, length = life
    data = numbered(offline) if offline else None
    count = 0 if data is None else len(data)
    capacity = count + room
    if data is None:
        replay = Replay.empty(capacity, 2, 1)
    else:
        replay = Replay.from_data(data, capacity, protect=protect)
    # Every transition by its reward, a number of its own, and the one that follows it.
    follows, last, number = {}, [None] * num, 1000.0
    if data is not None:
        rewards, left = np.asarray(data.reward), np.asarray(data.left)
        follows = {float(rewards[i]): float(rewards[i + 1]) for i in np.flatnonzero(left > 1)}
    for ended in steps:
        new = number + np.arange(num, dtype=np.float32)
        number += num
        parts = [np.stack([new, -new], 1), new[:, None] / 1e4, new, np.ones(num)]
        batch = Batch(*map(jnp.float32, [*parts, np.stack([new + 1, new], 1)]))
        replay = replay.add(batch, jnp.asarray(np.where(ended, 0, num), jnp.int32))
        for index in range(num):
            if last[index] is not None:
                follows[last[index]] = float(new[index])
            last[index] = None if ended[index] else float(new[index])
    size = int(replay.size)
    if not size:
        return
    slots = jnp.arange(size)
    held = np.asarray(replay.data.reward)[:size]
    made = replay.window(slots, length, discount=1.0, chunk=True)
    for slot in range(size):
        episode = [float(held[slot])]
        while len(episode) < length and follows.get(episode[-1]) in set(held.tolist()):
            episode.append(follows[episode[-1]])
        assert made.valid[slot].sum() == len(episode)
        assert float(made.reward[slot]) == pytest.approx(sum(episode))
    # After an interruption all episodes begin anew; no window joins what comes to what was.
    cut = replay.interrupted()
    again = cut.window(slots, length, discount=1.0, chunk=True)
    np.testing.assert_array_equal(again.reward, made.reward)
    np.testing.assert_array_equal(again.valid, made.valid)
    new = jax.tree.map(lambda x: x[:1] * 0 - 1, replay.data)
    for _ in range(min(num, room)):
        cut = cut.add(new, jnp.ones(1, jnp.int32))
    made = cut.window(jnp.arange(int(cut.size)), 2, discount=1.0, chunk=True)
    rewards = np.asarray(cut.data.reward)[: int(cut.size)]
    joined = (rewards >= 0) & (np.asarray(made.next_observation)[:, 0] < 0)
    assert not joined.any()


def test_what_was_collected_keeps_its_windows():
    replay = Replay.empty(4, 2, 1)
    for number in range(6):
        one = jax.tree.map(lambda x, n=number: jnp.full((1, *x.shape[1:]), float(n)), replay.data)
        replay = replay.add(one, jnp.ones(1, jnp.int32))
    again = Replay.empty(4, 2, 1).with_collected(replay.collected())
    slots = jnp.arange(4)
    assert eqx.tree_equal(again.window(slots, 3), replay.window(slots, 3))
    ordered = replay.collected().in_order()
    assert ordered.data.reward.tolist() == [2, 3, 4, 5]
    old = dataclasses.replace(replay.collected(), ahead=None)  # of a version without windows
    alone = Replay.empty(4, 2, 1).with_collected(old).window(slots, 3, discount=0.5)
    np.testing.assert_array_equal(alone.discount, 0.5)


def test_a_mixture_of_windows():
    data = numbered([5, 5])
    replay = Replay.empty(8, 2, 1)
    options = {"discount": 0.5, "chunk": True, "key": KEY}
    alone = sample_mixture(data, replay, 6, 0.5, 3, **options)
    assert alone.action.shape == (6, 3)
    new = jax.tree.map(lambda x: x[:4] - 100, replay.data)
    both = sample_mixture(data, replay.add(new), 6, 0.5, 3, **options)
    assert (both.reward < -50).tolist() == [False] * 3 + [True] * 3
    assert both.valid.shape == (6, 3)


# -------------------------------------------------------------------------------------- agents


def test_actions_of_the_released_code():
    for name in ("acfql_distill", "acfql_bestofn", "acfql_nstep"):
        reference = Reference(name)
        agent, state = reference.load("params0")
        batch, mid = reference.batch(0), reference.below("mid0")
        both, noise = Parts(batch, batch), reference.noise(0)
        action = agent.next_action(state.params, state.targets, both, noise).action
        np.testing.assert_allclose(action, mid["next_actions"], atol=1e-5)
        # Acting is the same, in other observations.
        drawn = jnp.asarray(mid["act_noise"])
        here = dataclasses.replace(
            jax.tree.map(lambda x: x[:4], batch),
            next_observation=jnp.asarray(mid["act_observations"]),
        )
        choice = None if noise.choice is None else noise.choice[:4]
        own = dataclasses.replace(noise, action=drawn.reshape(-1, drawn.shape[-1]), choice=choice)
        action = agent.next_action(state.params, state.targets, Parts(here, here), own).action
        np.testing.assert_allclose(action, mid["act_actions"], atol=1e-5)
        _, expected = reference.load("params3")
        for number in range(3):
            state, _ = agent.update(state, reference.batch(number), reference.noise(number))
        for ours, theirs in zip(
            jax.tree.leaves(state.targets), jax.tree.leaves(expected.targets), strict=True
        ):
            np.testing.assert_allclose(ours, theirs, rtol=0, atol=1e-6)


def small(make, **options):
    sizes = {"critic.network.hidden_sizes": (8,), "policy.network.hidden_sizes": (8,)}
    if make is floq:
        sizes["critic.distilled_network.hidden_sizes"] = (8,)
    return make(**sizes, action_size=1, **options)


@pytest.mark.parametrize("make", [floq, qc])
def test_training_on_chunks_and_on_several_steps(make):
    data = numbered([7, 9, 5])
    data = dataclasses.replace(data, reward=data.reward / 100, states=data.states / 100)
    for options in ({"chunk": 3}, {"chunk": 1, "n_step": 3}):
        agent = small(make, **options).for_data(data)
        state = agent.init(2, 1, key=KEY)
        sizes = {"batch_size": 4, "key": KEY}
        five, _ = train_steps(agent, state, data, num_updates=3, **sizes)
        five, _ = train_steps(agent, five, data, num_updates=3, **sizes)
        ten, metrics = train_steps(agent, state, data, num_updates=6, **sizes)
        assert eqx.tree_equal(five, ten)
        assert all(np.isfinite(x).all() for x in metrics.values())
        shape = (3, 1) if agent.chunk == 3 else (1,)
        assert agent.act(ten, jnp.zeros(2), key=KEY).shape == shape


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: qc(n_step=3), "leave out n_step, got 3"),
        (lambda: bc_flow(n_step=3), "n_step = 3 means nothing without a critic"),
        (lambda: qc(chunk=0), "chunk must be a whole number of at least 1"),
        (lambda: qc(critic={"rho": 0.3}), "rho = 0.3 means nothing where no aggregation is pess"),
        (lambda: qc(policy={"time_features": 3}), "even and at least 4"),
    ],
)
def test_what_makes_no_sense(make, message):
    with pytest.raises(ValueError, match=message):
        make()


def test_windows_need_trajectories_that_are_long_enough():
    data = numbered([7, 9, 5])
    agent = small(qc, chunk=3).for_data(data)
    state = agent.init(2, 1, key=KEY)
    options = {"num_updates": 2, "batch_size": 4, "key": KEY}
    with pytest.raises(ValueError, match="which transition follows which: give Trajectories"):
        train_steps(agent, state, data.transitions(), **options)
    long = dataclasses.replace(agent, chunk=10)
    with pytest.raises(ValueError, match=r"10 steps.*longest trajectory has 9"):
        train_steps(long, long.init(2, 1, key=KEY), data, **options)


# -------------------------------------------------------------------------------------- acting


class Told(gymnasium.Env):
    """Keeps what it was told to do; an episode ends after `length` steps."""

    observation_space = spaces.Box(-np.inf, np.inf, (2,), np.float32)
    action_space = spaces.Box(-1, 1, (1,), np.float32)

    def __init__(self, length):
        self.length, self.actions = length, []

    def look(self):
        return np.array([len(self.actions), self.now], np.float32)

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.now = 0
        self.actions.append([])
        return self.look(), {}

    def step(self, action):
        self.actions[-1].append(float(action[0]))
        self.now += 1
        return self.look(), 0.0, self.now == self.length, False, {}


def told(*lengths):
    worlds = [Told(length) for length in lengths]
    make = [lambda w=w: w for w in worlds]
    return worlds, SyncVectorEnv(make, autoreset_mode=AutoresetMode.DISABLED)


class Counts(ActorCritic):
    """An agent whose k-th action of a chunk tells k and where the chunk was chosen."""

    def act(self, state, observation, *, key):
        return (0.01 * observation[1] + 0.1 * jnp.arange(self.chunk, dtype=float))[:, None]


def test_an_evaluation_carries_out_chunks_whole():
    worlds, environments = told(7, 4)
    agent = Counts(None, BehaviouralFlow(network=MLPConfig((4,))), chunk=3)
    evaluate(agent, agent.init(2, 1, key=KEY), environments, num_episodes=4)
    for world in worlds:
        episode = next(e for e in world.actions if len(e) == world.length)
        expected = [0.01 * (i - i % 3) + 0.1 * (i % 3) for i in range(world.length)]
        np.testing.assert_allclose(episode, expected, atol=1e-6)


@pytest.mark.parametrize("lengths", [(7,), (7, 4, 5)])
def test_learning_online_in_chunks(lengths):
    _, environments = told(*lengths)
    agent = small(qc, chunk=3)
    state = agent.init(2, 1, key=KEY)
    replay = Replay.empty(40, 2, 1)
    options = {"num_steps": 45, "batch_size": 4, "key": KEY, "warmup": 15}
    state, replay = fit_online(agent, state, replay, environments, **options)
    assert int(state.step) == 30
    made = replay.window(jnp.arange(int(replay.size)), 3, chunk=True)
    observation, after = np.asarray(made.observation), np.asarray(made.next_observation)
    steps = np.asarray(made.valid).sum(axis=1)
    # The observation counts the steps of an episode, so a window's ends tell its length.
    np.testing.assert_array_equal(after[:, 1] - observation[:, 1], steps)
    np.testing.assert_array_equal(after[:, 0], observation[:, 0])
    assert set(steps.tolist()) == {1.0, 2.0, 3.0}


def test_the_papers_two_policies():
    assert qc().recipe == "qc"
    best = Selection(32)
    agent = qc(policy=BehaviouralFlow(), selection=best, next_selection=best, action_size=2)
    assert agent.recipe is None
    assert agent.action_shape(4) == (4, 10)
