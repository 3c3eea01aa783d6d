"""People's own data: arrays, .npz, HDF5 and Minari; converted, checked, trained on, refused."""

import contextlib
import dataclasses
import sys

import gymnasium
import h5py
import hypothesis
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import strategies as st

from floq_eqx.agents import to_plain
from floq_eqx.cli import main
from floq_eqx.data import Replay, Trajectories, load_own
from floq_eqx.data.own import is_own
from floq_eqx.training import OnlineConfig, Run, TrainConfig, finetune, train
from floq_eqx.training.beginning import find_data

from .runs import small_agent

few = hypothesis.settings(max_examples=40, deadline=None, derandomize=True)
MARGIN = 1 - 1e-5


def arrays(lengths=(3, 4), seed=0, **changes):
    """Episodes of these lengths, of which the first ends by itself and the others are cut off."""
    rng, count = np.random.default_rng(seed), sum(lengths)
    ends = np.zeros(count, bool)
    ends[np.cumsum(lengths) - 1] = True
    first = np.arange(count) < lengths[0]
    return {
        "observations": rng.normal(size=(count, 2)).astype(np.float32),
        "actions": rng.uniform(-1, 1, (count, 1)).astype(np.float32),
        "rewards": -np.arange(count, dtype=np.float32),
        "terminals": ends & first,
        "timeouts": ends & ~first,
    } | changes


def of(arrays, **options):
    arrays = dict(arrays)
    truncations = arrays.pop("truncations", None)
    if truncations is not None:
        arrays["timeouts"] = truncations
    return Trajectories.from_arrays(**arrays, **options)


# ---------------------------------------------------------------------------------- conversion


def test_a_cut_off_episode_ends_before_its_last_step():
    given, lines = arrays(), []
    data = of(given, report=lines.append)
    assert lines == ["1 of 7 steps have no known next state and only end a trajectory"]
    assert data.left.tolist() == [3, 2, 1, 3, 2, 1]
    np.testing.assert_array_equal(data.observation, given["observations"][:6])
    # Of a terminal step the next state does not matter: it is the last one again.
    expected = given["observations"][[1, 2, 2, 4, 5, 6]]
    np.testing.assert_array_equal(data.next_observation, expected)
    assert data.mask.tolist() == [1, 1, 0, 1, 1, 1]
    assert data.reward.tolist() == [0, -1, -2, -3, -4, -5]
    np.testing.assert_allclose(data.action, given["actions"][:6], atol=1e-5)


def test_next_observations_keep_every_step():
    given, told = arrays(), []
    following = np.concatenate([given["observations"][1:], np.zeros((1, 2), np.float32)])
    following[2] = 7
    data = of(given | {"next_observations": following})
    assert data.left.tolist() == [3, 2, 1, 4, 3, 2, 1]
    apart = following.copy()
    apart[4] += 1
    of(given | {"next_observations": apart}, report=told.append)
    assert told == [
        "1 of 7 steps end a trajectory where nothing says so: their `next_observations` are not "
        "the next row"
    ]
    np.testing.assert_array_equal(data.next_observation, following)
    # With a next action, which no algorithm has after a cut, that step is left out again.
    lines = []
    with_action = of(
        given | {"next_observations": following}, with_next_action=True, report=lines.append
    )
    assert with_action.left.tolist() == [3, 2, 1, 3, 2, 1]
    assert lines == ["1 of 7 steps have no known next action and only end a trajectory"]
    np.testing.assert_allclose(
        with_action.next_action[:, 0],
        [*given["actions"][[1, 2], 0], 0, *given["actions"][4:, 0]],
        atol=1e-5,
    )


@few
@hypothesis.given(
    st.lists(st.tuples(st.integers(1, 4), st.booleans()), min_size=1, max_size=5),
    st.permutations(range(3)),
)
def test_what_is_stored_is_what_was_given(episodes, order):
    """Every step with a next state, whatever their order: lossless, and no step twice."""
    count = sum(length for length, _ in episodes)
    number = np.arange(count, dtype=np.float32)
    ends = np.cumsum([length for length, _ in episodes]) - 1
    terminal = np.zeros(count, bool)
    terminal[ends] = [by_itself for _, by_itself in episodes]
    cut = np.zeros(count, bool)
    cut[ends] = True
    following = number + 1
    following[ends] = 1000 + number[ends]
    # A part left out of the middle, as by a filter: its neighbours are not joined.
    keep = number != order[0] if count > 3 else np.ones(count, bool)
    given = {
        "observations": number[keep, None],
        "actions": np.zeros((keep.sum(), 1)),
        "rewards": number[keep],
        "terminals": terminal[keep],
        "timeouts": (cut & ~terminal)[keep],
        "next_observations": following[keep, None],
    }
    if not (given["terminals"] | given["timeouts"]).any() and count == 1:
        return
    data = of(given)
    np.testing.assert_array_equal(data.observation[:, 0], number[keep])
    np.testing.assert_array_equal(data.next_observation[:, 0], following[keep])
    np.testing.assert_array_equal(data.reward, number[keep])
    np.testing.assert_array_equal(data.mask, 1.0 - terminal[keep])
    joined = np.asarray(data.left) > 1
    np.testing.assert_array_equal(following[keep][:-1][joined[:-1]], number[keep][1:][joined[:-1]])


@pytest.mark.parametrize(
    ("name", "dtype"),
    [
        *[("observations", d) for d in (np.float16, np.float64, np.int32)],
        *[("actions", d) for d in (np.float16, np.float64)],
        *[("rewards", d) for d in (np.float64, np.int64)],
        *[("terminals", d) for d in (np.float32, np.uint8, np.int64)],
    ],
)
def test_types_and_columns(name, dtype):
    given = arrays()
    given["observations"] = np.round(given["observations"])
    changed = given | {name: given[name].astype(dtype)}
    for one in ({}, {n: given[n][:, None] for n in ("rewards", "terminals", "timeouts")}):
        data = of(changed | {k: v for k, v in one.items() if k != name})
        np.testing.assert_allclose(data.observation, of(given).observation, atol=1e-3)
        np.testing.assert_allclose(data.action, of(given).action, atol=1e-3)
        assert all(leaf.dtype in (jnp.float32, jnp.int32) for leaf in jax.tree.leaves(data))


def test_other_ways_to_tell_the_end():
    given, expected = arrays(), of(arrays())
    lengths = {k: v for k, v in given.items() if k != "timeouts"} | {"episode_lengths": [3, 4]}
    np.testing.assert_array_equal(of(lengths).left, expected.left)
    # In OGBench's way terminals only end trajectories, and masks say what is terminal.
    both = given["terminals"] | given["timeouts"]
    masks = {"terminals": both, "timeouts": np.zeros(7), "masks": 1.0 - given["terminals"]}
    np.testing.assert_array_equal(of(given | masks).mask, expected.mask)
    lines = []
    of(given | {"timeouts": np.zeros(7)}, report=lines.append)
    assert lines[0] == "the last trajectory has no end, and is taken as cut off"


def test_bounds_and_rewards():
    given = arrays()
    given["actions"] = 3 * given["actions"] + 1
    data = of(given, action_low=[-2.0], action_high=4.0, reward_scale=0.5, reward_shift=-1.0)
    expected = np.clip(arrays()["actions"][:6], -MARGIN, MARGIN)
    np.testing.assert_allclose(data.action, expected, atol=1e-6)
    np.testing.assert_array_equal(data.reward, [-1, -1.5, -2, -2.5, -3, -3.5])


NAN_ROW = np.where(np.arange(14).reshape(7, 2) == 9, np.nan, 0.0)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"rewards": np.zeros(6)}, r"differ in length, .*'rewards': 6.*row for every step"),
        (
            {"observations": NAN_ROW},
            r"`observations` is NaN or infinite in 1 of 7 .*first in row 4",
        ),
        (
            {"actions": np.full((7, 1), 1.5)},
            r"outside of \[-1, 1\] in 7 of 7 .*row 0.*--action-low",
        ),
        ({"terminals": np.zeros(7), "timeouts": np.zeros(7)}, "none of the 7 steps ends"),
        ({"terminals": np.full(7, 2)}, r"`terminals` is neither 0 nor 1 in 7 .*Make it a flag"),
        ({"masks": np.full(7, 2.0)}, r"`masks` is outside \[0, 1\] in 7"),
        ({"actions": np.zeros((7, 1), int)}, "`actions` are whole numbers.*only actions of real"),
        ({"observations": np.zeros((7, 4, 4, 3), np.uint8)}, "look like images: only vectors"),
        ({"rewards": np.zeros((7, 2))}, r"`rewards` has shape \(7, 2\), expected one number"),
        ({"rewards": np.array(["a"] * 7)}, "`rewards` is of type .*expected numbers"),
        ({"episode_lengths": [3, 3]}, "whose sum is the number of steps, 7; their sum is 6"),
        ({"next_observations": np.zeros((7, 3))}, r"`next_observations` has shape \(7, 3\), and"),
        ({k: v[:0] for k, v in arrays().items()}, "there are no steps"),
    ],
)
def test_bad_arrays_are_named(changes, message):
    with pytest.raises(ValueError, match=message):
        of(arrays() | changes)


def test_bad_bounds():
    with pytest.raises(ValueError, match="bounds of actions must be finite"):
        of(arrays(), action_low=1.0)


# --------------------------------------------------------------------------------------- files


def write_hdf5(path, arrays, **options):
    with h5py.File(path, "w") as file:
        for name, array in arrays.items():
            file.create_dataset(name, data=array, **options)


def test_files_hold_what_arrays_do(tmp_path):
    given, lines = arrays(), []
    np.savez(tmp_path / "a.npz", **given, other=np.zeros(3))
    write_hdf5(tmp_path / "a.hdf5", given, compression="gzip")
    with h5py.File(tmp_path / "a.hdf5", "a") as file:  # as D4RL's
        file["metadata/algorithm"] = np.bytes_("SAC")
        file["infos/qpos"] = np.zeros((7, 3))
    before = {p.name: p.read_bytes() for p in tmp_path.iterdir()}
    expected = jax.tree.leaves(of(given))
    for name in before:
        data = load_own(tmp_path / name, report=lines.append)
        for ours, theirs in zip(jax.tree.leaves(data), expected, strict=True):
            np.testing.assert_array_equal(ours, theirs)
        assert is_own(tmp_path / name)
    assert sum("also holds other, which are not used" in line for line in lines) == 1
    assert {p.name: p.read_bytes() for p in tmp_path.iterdir()} == before
    np.savez(tmp_path / "b.npz", **given, qpos=np.zeros((7, 3)))
    assert not is_own(tmp_path / "b.npz")
    assert not is_own(tmp_path)


def test_bad_files(tmp_path, monkeypatch):
    path = tmp_path / "a.hdf5"
    with pytest.raises(FileNotFoundError, match="no file"):
        load_own(path)
    write_hdf5(path, arrays())
    whole = path.read_bytes()
    path.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(ValueError, match="not an intact HDF5 file"):
        load_own(path)
    with h5py.File(path, "w") as file:  # robomimic's
        file["data/demo_0/actions"] = np.zeros((3, 1))
    with pytest.raises(ValueError, match=r"holds data, and none of .*outside of groups"):
        load_own(path)
    with h5py.File(path, "w") as file:
        file.create_dataset("observations", (10**9, 8), "f4", chunks=(10**6, 8))
        file["rewards"] = np.zeros(3)
    with pytest.raises(ValueError, match=r"`observations` announces .*smaller chunks"):
        load_own(path)
    with h5py.File(path, "w") as file:
        file["observations"] = h5py.ExternalLink("other.hdf5", "/observations")
        file["rewards"] = np.zeros(3)
    with pytest.raises(ValueError, match="observations, actions, terminals are missing"):
        load_own(path)
    with h5py.File(path, "w") as file:
        file.create_dataset("rewards", (3,), "f4", external=[(str(tmp_path / "b"), 0, 12)])
    with pytest.raises(ValueError, match="lies in other files"):
        load_own(path)
    monkeypatch.setitem(sys.modules, "h5py", None)
    with pytest.raises(ModuleNotFoundError, match="pip install h5py"):
        load_own(path)
    (tmp_path / "a.npz").write_text("no archive")
    with pytest.raises(ValueError, match=r"not an intact .npz"):
        load_own(tmp_path / "a.npz")


# -------------------------------------------------------------------------------------- Minari


@pytest.fixture
def collected(tmp_path, monkeypatch):
    """A dataset that Minari's own collector made on this machine."""
    import minari

    monkeypatch.setenv("MINARI_DATASETS_PATH", str(tmp_path / "minari"))

    def make(name, environment):
        with contextlib.closing(minari.DataCollector(environment)) as collector:
            for episode in range(2):
                collector.reset(seed=episode)
                over = False
                while not over:
                    *_, terminated, truncated, _ = collector.step(collector.action_space.sample())
                    over = terminated or truncated
            return collector.create_dataset(name, algorithm_name="random")

    return make


@pytest.mark.filterwarnings("ignore")
def test_minari(collected, tmp_path):
    short = gymnasium.make("Pendulum-v1", max_episode_steps=5)
    dataset = collected("pendulum/short-v0", short)
    data = load_own("minari:pendulum/short-v0")
    episodes = list(dataset.iterate_episodes())
    seen = np.concatenate([e.observations[:-1] for e in episodes])
    np.testing.assert_allclose(data.observation, seen)
    following = np.concatenate([e.observations[1:] for e in episodes])
    np.testing.assert_allclose(data.next_observation, following)
    taken = np.concatenate([e.actions for e in episodes]) / 2  # of [-2, 2]
    np.testing.assert_allclose(data.action, taken, atol=2e-5)
    assert data.left.tolist() == [5, 4, 3, 2, 1] * 2
    assert data.mask.tolist() == [1] * 10
    run = train(config("minari:pendulum/short-v0", environment="none"), tmp_path / "a")
    assert run.config.data == "minari:pendulum/short-v0"
    assert is_own("minari:pendulum/short-v0")


@pytest.mark.filterwarnings("ignore")
def test_minari_that_cannot_be_used(collected, monkeypatch):
    environment = gymnasium.make("CartPole-v1", max_episode_steps=3)
    collected("cart/pole-v0", environment)
    with pytest.raises(ValueError, match=r"has actions of Discrete.*only boxes"):
        load_own("minari:cart/pole-v0")

    class Dictionaries(gymnasium.ObservationWrapper):
        observation_space = gymnasium.spaces.Dict(x=environment.observation_space)

        def observation(self, observation):
            return {"x": observation}

    collected("cart/dict-v0", Dictionaries(environment))
    with pytest.raises(ValueError, match=r"has observations of Dict.*FlattenObservation"):
        load_own("minari:cart/dict-v0")
    monkeypatch.setattr("minari.storage.hosting.download_dataset", lambda name: 1 / 0)
    with pytest.raises(ValueError, match=r"minari:no/such-v0 cannot be loaded.*minari list"):
        load_own("minari:no/such-v0")
    monkeypatch.setitem(sys.modules, "minari", None)
    with pytest.raises(ModuleNotFoundError, match=r"pip install 'floq_eqx\[minari\]'"):
        load_own("minari:cart/pole-v0")


# ------------------------------------------------------------------------------------ training


@pytest.fixture(scope="module")
def pendulum(tmp_path_factory):
    """Random steps in Pendulum-v1, whose actions are in [-2, 2]."""
    path, rng = tmp_path_factory.mktemp("own") / "pendulum.npz", np.random.default_rng(0)
    rows = {name: [] for name in ("observations", "actions", "rewards", "terminals", "timeouts")}
    with gymnasium.make("Pendulum-v1") as environment:
        for episode in range(2):
            observation, _ = environment.reset(seed=episode)
            over = False
            while not over:
                action = rng.uniform(-2, 2, 1).astype(np.float32)
                new, reward, terminated, over, _ = environment.step(action)
                for name, value in zip(
                    rows, (observation, action, reward, terminated, over), strict=True
                ):
                    rows[name].append(value)
                observation = new
    np.savez(path, **{name: np.array(values) for name, values in rows.items()})
    return path


def config(path, **changes):
    options = {
        "agent": small_agent("floq"),
        "num_updates": 20,
        "batch_size": 4,
        "log_every": 10,
        "evaluate_every": 10,
        "checkpoint_every": 10,
        "data": str(path),
    }
    return TrainConfig(**options | changes)


def test_a_run_without_an_environment(pendulum, tmp_path):
    lines = []
    asked = config(pendulum, environment="none", action_low=-2, action_high=2)
    run = train(asked, tmp_path / "a", progress=False, report=lines.append)
    assert "there is no environment: nothing is evaluated" in lines
    assert run.table("evaluation.csv") == []
    assert len(run.table("train.csv")) == 2
    assert Run(tmp_path / "a").config == run.config
    # In two parts it ends where it ends in one.
    half = dataclasses.replace(asked, num_updates=10)
    train(half, tmp_path / "b", progress=False)
    again = train(asked, tmp_path / "b", progress=False, resume=True)
    for ours, theirs in zip(
        jax.tree.leaves(again.load()[1]), jax.tree.leaves(run.load()[1]), strict=True
    ):
        np.testing.assert_array_equal(ours, theirs)
    changed = dataclasses.replace(asked, reward_scale=2.0, num_updates=30)
    with pytest.raises(ValueError, match=r"reward_scale: 1.0 before, 2.0 now"):
        train(changed, tmp_path / "b", progress=False, resume=True)


def test_a_run_with_an_environment_of_its_own(pendulum, tmp_path):
    asked = config(pendulum, environment="Pendulum-v1", evaluation_episodes=1)
    run = train(asked, tmp_path / "a", progress=False)
    assert [row["step"] for row in run.table("evaluation.csv")] == [10, 20]
    assert run.config.agent.action_size == 1
    with pytest.raises(ValueError, match=r"`observations` have 3 components, and .* environment 2"):
        train(config(pendulum, environment="MountainCarContinuous-v0"), tmp_path / "b")
    assert not (tmp_path / "b" / "config.json").exists()


def test_going_on_online_from_own_data(pendulum, tmp_path):
    asked = config(pendulum, environment="Pendulum-v1", evaluation_episodes=1, num_updates=10)
    train(asked, tmp_path / "a", progress=False)
    online = OnlineConfig(num_steps=10, capacity=50)
    run = finetune(tmp_path / "a", tmp_path / "b", online, progress=False)
    # Beside what it collects, the buffer has the data; windows of both can be drawn.
    data = find_data(run.config)
    replay = run.restore_replay(Replay.from_data(data, len(data) + 50))
    assert int(replay.size) == len(data) + 10
    assert replay.ahead[: len(data)].sum() == (data.left > 1).sum()
    assert replay.ahead[len(data) : len(data) + 9].tolist() == [1] * 9
    alone = OnlineConfig(num_steps=10, capacity=50, offline_data="none")
    run = finetune(tmp_path / "a", tmp_path / "c", alone, progress=False)
    assert run.config.data is None


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"environment": "none", "keep": "best"}, "needs evaluations, and there is no environment"),
        ({"environment": "none", "sparse": True}, "the data are not OGBench's"),
        ({"environment": "none", "evaluation_episodes": 3}, "means nothing without an environment"),
        ({"environment": "none", "reward_scale": 0.0}, "would make all rewards equal"),
        ({"environment": "none", "action_low": 2.0}, "Needs action_low < action_high"),
        ({"environment": "Pendulum-v1", "action_low": -2.0}, "the environment has bounds"),
        ({"action_low": -2.0}, "action_low = -2.0 means nothing where the data are OGBench's"),
        (
            {"environment": "none", "online": OnlineConfig()},
            "There is no environment to learn online in",
        ),
        (
            {"environment": "Pendulum-v1", "online": OnlineConfig(), "reward_shift": 1.0},
            "the environment's rewards are as they are",
        ),
    ],
)
def test_configurations_that_make_no_sense(changes, message):
    with pytest.raises(ValueError, match=message):
        config("a.npz", **changes)


def test_command_line(pendulum, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    sizes = "--num-updates 4 --batch-size 4 --log-every 2 --evaluate-every 2 --checkpoint-every 2"
    small = ["--critic.network.hidden-sizes", "8", "--policy.network.hidden-sizes", "8"]
    words = ["train", "--data", str(pendulum), *sizes.split(), *small]
    assert main([*words, "--action-low", "-2", "--action-high", "2", "--out", "a"]) == 0
    assert "nothing is evaluated" in capsys.readouterr().out
    assert to_plain(Run("a").config.agent)["action_size"] == 1
    assert main(["evaluate", "a"]) == 1
    assert "a has no environment to be evaluated in" in capsys.readouterr().err
    assert main([*words, "--out", "b"]) == 1
    assert "first in row" in capsys.readouterr().err
    assert main(["train", "--resume", "--out", "a", "--num-updates", "6"]) == 0
    assert main(["train", "--env", "none"]) == 1
    assert "give a file with --data" in capsys.readouterr().err
    assert main([*words, "--preset", "paper"]) == 1
    assert "is of OGBench's environments" in capsys.readouterr().err
