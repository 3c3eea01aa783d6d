"""People's own data: what each layout means, and what is wrong with those that mean nothing."""

import warnings

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from floq_eqx.agents import with_options
from floq_eqx.data import Batch, Trajectories, window
from floq_eqx.data.checks import ACTION_MARGIN
from floq_eqx.training.checks import check_fits

from .runs import small_agent


def steps(num=10, *, seed=0, ends=(3, 4, 9), terminals=(4,), sizes=(2, 1)):
    """Steps of noise, whose trajectories end where they are told to."""
    rng = np.random.default_rng(seed)
    flags = np.zeros((2, num), bool)
    flags[0, list(terminals)] = True
    flags[1, [end for end in ends if end not in terminals]] = True
    return {
        "observations": rng.normal(size=(num, sizes[0])).astype(np.float32),
        "actions": rng.uniform(-0.9, 0.9, size=(num, sizes[1])).astype(np.float32),
        "rewards": rng.normal(size=num).astype(np.float32),
        "terminals": flags[0],
        "timeouts": flags[1],
    }


def with_next(arrays, *, seed=1):
    """The same with the state after each step, which is new where a trajectory ends."""
    after = np.roll(arrays["observations"], -1, axis=0)
    ends = arrays["terminals"] | arrays["timeouts"]
    ends[-1] = True
    after[ends] = np.random.default_rng(seed).normal(size=after[ends].shape)
    return arrays | {"next_observations": after}


def loaded(arrays, **options):
    """The trajectories, with the warnings that came."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        data = Trajectories.from_arrays(**arrays | options)
    return data, [str(each.message) for each in caught]


def written_out(arrays, with_next_action):
    """The transitions by a loop over the steps, as one would write them on paper."""
    num = len(arrays["rewards"])
    masks = arrays.get("masks", 1.0 - arrays["terminals"])
    after, out = arrays.get("next_observations"), []
    for i in range(num):
        end = arrays["terminals"][i] or arrays["timeouts"][i] or i == num - 1
        if after is not None and i < num - 1:
            end = end or (after[i] != arrays["observations"][i + 1]).any()
        if not end:
            next_observation, next_action = arrays["observations"][i + 1], arrays["actions"][i + 1]
        elif after is not None:
            next_observation, next_action = after[i], None
        elif masks[i] == 0:
            next_observation, next_action = arrays["observations"][i], None
        else:
            continue
        if next_action is None:
            if with_next_action and masks[i] != 0:
                continue
            next_action = np.zeros_like(arrays["actions"][i])
        row = (arrays["observations"][i], arrays["actions"][i], arrays["rewards"][i], masks[i])
        out.append((*row, next_observation, next_action if with_next_action else None))
    return [None if column[0] is None else np.stack(column) for column in zip(*out, strict=True)]


@pytest.mark.parametrize("with_next_action", [False, True])
@pytest.mark.parametrize("given", ["flags", "next", "masks", "shuffled"])
@pytest.mark.parametrize("seed", range(3))
def test_every_transition_is_there(given, with_next_action, seed):
    rng = np.random.default_rng(seed)
    ends = np.unique([*rng.integers(0, 40, size=6), 39])
    arrays = steps(40, seed=seed, ends=ends, terminals=ends[::2])
    if given in ("next", "shuffled"):
        arrays = with_next(arrays)
    if given == "shuffled":
        order = rng.permutation(40)
        arrays = {name: array[order] for name, array in arrays.items()}
    if given == "masks":
        arrays["masks"] = (rng.random(40) > 0.3).astype(np.float32)
    data, _ = loaded(arrays, with_next_action=with_next_action)
    expected = written_out(arrays, with_next_action)
    batch = data.transitions()
    names = ("observation", "action", "reward", "mask", "next_observation", "next_action")
    for name, column in zip(names, expected, strict=True):
        got = getattr(batch, name)
        if column is None:
            assert got is None
        elif "action" in name:  # which were mapped from a box to itself
            np.testing.assert_allclose(got, column, atol=1e-6)
        else:
            np.testing.assert_array_equal(got, column)


def test_windows_stay_within_a_trajectory():
    data, _ = loaded(steps())
    np.testing.assert_array_equal(data.left, [3, 2, 1, 1, 4, 3, 2, 1])
    batch = window(data, jnp.arange(len(data)), 3, chunk=True)
    np.testing.assert_array_equal(batch.valid.sum(1), [3, 2, 1, 1, 3, 3, 2, 1])


def test_what_is_no_transition_is_counted():
    _, (line,) = loaded(steps())
    assert line.startswith("The data: 2 of 10 steps end a trajectory without being terminal")
    assert loaded(with_next(steps()))[1] == []
    _, (line,) = loaded(with_next(steps()), with_next_action=True)
    assert "of 2 of 10 steps, which end a trajectory without being terminal, the next a" in line
    hole = with_next(steps())
    hole["next_observations"][6] += 1.0
    _, (line,) = loaded(hole)
    assert "in 1 of 10 steps that no flag ends, first in row 6" in line
    cut = steps(ends=(3, 4), terminals=(4,))  # and nobody says that it was
    _, (line,) = loaded(cut)
    assert "2 of 10 steps" in line


KINDS = {
    "float16": lambda x: x.astype(np.float16),
    "float64": lambda x: x.astype(np.float64),
    "big-endian": lambda x: x.astype(">f8"),
    "column": lambda x: x.reshape(len(x), -1),
    "jax": jnp.asarray,
    "lists": lambda x: x.tolist(),
}


@pytest.mark.parametrize("kind", KINDS)
def test_numbers_of_every_kind(kind):
    arrays = steps(10, ends=(4, 9), terminals=(4, 9))
    arrays = {name: array.astype(np.float16) for name, array in arrays.items()}
    expected, _ = loaded({name: array.astype(np.float32) for name, array in arrays.items()})
    given = {name: KINDS[kind](array) for name, array in arrays.items()}
    assert eqx.tree_equal(loaded(given)[0], expected)
    assert expected.states.dtype == jnp.float32


def test_flags_and_lengths_of_every_kind():
    arrays = steps(10, ends=(4, 9), terminals=(4, 9))
    expected, _ = loaded(arrays)
    for kind in (bool, np.uint8, np.int64, np.float64):
        flags = {name: arrays[name].astype(kind) for name in ("terminals", "timeouts")}
        assert eqx.tree_equal(loaded(arrays | flags)[0], expected)
    bare = {name: arrays[name] for name in ("observations", "actions", "rewards", "terminals")}
    assert eqx.tree_equal(loaded(bare)[0], expected)
    masks = {"masks": 1.0 - arrays["terminals"]}
    del bare["terminals"]
    for lengths in ([5, 5], np.array([[5], [5]]), np.array([5.0, 5.0])):
        assert eqx.tree_equal(loaded(bare | masks, episode_lengths=lengths)[0], expected)
    timeouts = {"timeouts": arrays["terminals"]}
    truncations = {"truncations": arrays["terminals"]}
    a, b = loaded(bare | timeouts)[0], loaded(bare | truncations)[0]
    assert eqx.tree_equal(a, b)
    assert len(a) == 8
    assert (np.asarray(a.mask) == 1).all()  # nothing is terminal without terminals
    ints = {"rewards": np.arange(10), "observations": np.arange(20).reshape(10, 2)}
    np.testing.assert_array_equal(loaded(arrays | ints)[0].reward, np.arange(10))


def test_one_trajectory_or_thousands():
    arrays = steps(50, ends=(49,), terminals=(49,))
    data, _ = loaded(arrays)
    assert np.asarray(data.left).tolist() == list(range(50, 0, -1))
    arrays = steps(6000, ends=range(2, 6000, 3), terminals=range(2, 6000, 3))
    data, _ = loaded(arrays)
    assert len(data) == 6000
    np.testing.assert_array_equal(data.left, np.tile([3, 2, 1], 2000))
    one = with_next(steps(5, ends=(), terminals=()))
    del one["terminals"], one["timeouts"]
    assert loaded(one)[0].left[0] == 5  # next observations alone say where it goes on


def test_actions_of_a_box_are_rescaled():
    arrays = steps(sizes=(2, 2))
    low, high = np.array([-3.0, 10.0]), np.array([1.0, 20.0])
    own = low + (arrays["actions"] + 1) / 2 * (high - low)
    expected, _ = loaded(arrays)
    data, _ = loaded(arrays, actions=own, action_low=low, action_high=high)
    np.testing.assert_allclose(data.actions, expected.actions, atol=1e-6)
    edges = arrays["actions"].copy()
    edges[0], edges[1] = [1.0, -1.0], [1.0 + 0.5 * ACTION_MARGIN, 0.0]
    data, _ = loaded(arrays, actions=edges)
    edge = np.float32(1 - ACTION_MARGIN)
    np.testing.assert_array_equal(data.actions[:2], [[edge, -edge], [edge, 0.0]])
    data, _ = loaded(arrays, actions=3 * arrays["actions"], action_low=-3, action_high=3)
    np.testing.assert_allclose(data.actions, expected.actions, atol=1e-6)


def test_rewards_are_scaled_and_shifted():
    arrays = steps()
    plain, _ = loaded(arrays)
    data, _ = loaded(arrays, reward_scale=2.0, reward_shift=-1.0)
    np.testing.assert_allclose(data.reward, 2 * plain.reward - 1, rtol=1e-6)
    assert eqx.tree_equal(data.states, plain.states)


def test_a_batch_of_arrays():
    arrays = steps(ends=(4, 9), terminals=(4, 9))
    batch = Batch.from_arrays(**arrays)
    assert eqx.tree_equal(batch, loaded(arrays)[0].transitions())


def changed(name, rows, value):
    array = np.asarray(steps()[name], np.float64)
    array[rows] = value
    return {name: array}


BAD = {
    "no rewards": ({"rewards": None}, "there is no rewards; it has actions, .*observations"),
    "unequal": ({"rewards": np.zeros(9)}, r"differ in length, .*'rewards': 9.*one row a step"),
    "short actions": ({"actions": np.zeros((7, 1))}, "differ in length, .*'actions': 7"),
    "NaN state": (
        changed("observations", [6, 8], np.nan),
        "`obs.*` is NaN.* in 2 of 10 ro.*first in row 6.*Mend",
    ),
    "infinite": (changed("rewards", 3, np.inf), "`rewards` is NaN.*row 3, where .* inf"),
    "too large": (changed("rewards", 3, 1e300), "`rewards` is NaN or infinite.*row 3"),
    "NaN flag": (changed("terminals", 2, np.nan), "`terminals` is NaN.*row 2"),
    "flag": (changed("timeouts", 5, 0.5), "`timeouts` is neither 0 nor 1.*row 5, where it is 0.5"),
    "mask": ({"masks": np.full(10, -0.5)}, r"`masks` is outside \[0, 1\] in 10 of 10 rows.*-0.5"),
    "outside": (
        changed("actions", [4, 7], -1.5),
        r"outside their bounds in 2 of 10 rows, first in row 4, where component 0 is -1.5 and must "
        r"lie in \[-1.0, 1.0\].*action_low",
    ),
    "whole actions": ({"actions": np.arange(10)}, "discrete actions are not supported"),
    "flagged actions": ({"actions": np.zeros((10, 2), bool)}, "discrete actions are not supported"),
    "pixels": ({"observations": np.zeros((10, 8, 8), np.uint8)}, "look like images"),
    "colours": ({"observations": np.zeros((10, 8, 8, 3))}, "look like images"),
    "dict": ({"observations": {"joints": np.zeros((10, 2))}}, "mapping of joints.*FlattenObserv"),
    "objects": ({"observations": np.array([{}] * 10)}, "of type object, expected real numbers"),
    "ragged": ({"observations": [[1.0], [1.0, 2.0]]}, "`observations` is no array of numbers"),
    "texts": ({"rewards": ["a"] * 10}, "expected real numbers"),
    "no components": ({"observations": np.zeros((10, 0))}, "`observations` have no components"),
    "a number": ({"observations": 3.0}, "is a single number"),
    "two rewards": ({"rewards": np.zeros((10, 2))}, r"\(10, 2\), expected one number a step"),
    "other next": ({"next_observations": np.zeros((10, 3))}, "have 3 components, and `obs.* 2"),
    "lengths": ({"episode_lengths": [5, 4]}, "sum up to 9, and there are 10 steps"),
    "length 0": ({"episode_lengths": [10, 0]}, "whole numbers from 1 .* got 0 in number 1"),
    "half a step": ({"episode_lengths": [9.5, 0.5]}, "got 9.5 in number 0"),
    "NaN length": ({"episode_lengths": [np.nan]}, "got nan in number 0"),
    "one bound": ({"action_low": -1.0}, "give both bounds"),
    "bounds": ({"action_low": 1.0, "action_high": 1.0}, "between 1.0 and 1.0, which are not"),
    "many bounds": ({"action_low": [-1, -1], "action_high": [1, 1]}, "1 components and their b"),
    "no steps": (
        {name: array[:0] for name, array in steps().items()},
        "there are no steps",
    ),
    "no end": (
        {name: np.zeros(10) for name in ("terminals", "timeouts")},
        r"no row ends a trajectory, as terminals and timeouts marks one.*_lengths` = \[10\]",
    ),
    "every step ends": (
        {"terminals": np.zeros(10), "timeouts": np.ones(10)},
        "no transition, as every step ends",
    ),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_arrays(case):
    change, message = BAD[case]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        with pytest.raises(ValueError, match=message):
            Trajectories.from_arrays(**steps() | change)


def test_a_window_longer_than_every_trajectory():
    data, _ = loaded(steps())
    agent = small_agent("floq", action_size=1)
    check_fits(with_options(agent, {"n_step": 4}), data)
    message = "windows of 5 steps, and the longest trajectory has 4"
    with pytest.raises(ValueError, match=message):
        check_fits(with_options(agent, {"n_step": 5}), data)


def test_nothing_is_changed():
    arrays = with_next(steps())
    before = {name: array.copy() for name, array in arrays.items()}
    loaded(arrays, action_low=-2, action_high=2)
    assert jax.tree.all(jax.tree.map(np.array_equal, arrays, before))
