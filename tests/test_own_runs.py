"""Runs on people's own data: without an environment, in one, resumed, and by the program."""

import dataclasses
import json

import equinox as eqx
import gymnasium
import h5py
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from gymnasium import spaces
from gymnasium.vector import AutoresetMode, SyncVectorEnv

from floq_eqx import cli
from floq_eqx.data import Trajectories
from floq_eqx.presets import laptop, preset
from floq_eqx.training import OnlineConfig, Run, TrainConfig, finetune, train, train_many
from floq_eqx.training.gathering import find_data

from .runs import CUBE, names, same_run, small_agent
from .test_own_data import steps


class Point(gymnasium.Env):
    """To be moved to 0, by actions of a box that is not [-1, 1]; its info tells success."""

    observation_space = spaces.Box(-np.inf, np.inf, (2,), np.float32)
    action_space = spaces.Box(np.float32(-3), np.float32(5), (1,), np.float32)
    acted = ()

    def __init__(self, limit=4):
        self.limit = limit

    def look(self):
        return np.array([self.place, self.now], np.float32)

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.place, self.now = self.np_random.normal(), 0
        return self.look(), {}

    def step(self, action):
        Point.acted = (*Point.acted, float(action[0]))
        self.place, self.now = self.place + float(action[0]), self.now + 1
        near = abs(self.place) < 1
        return self.look(), -abs(self.place), bool(near), self.now == self.limit, {"success": near}


gymnasium.register("floq_eqx/Point-v0", "tests.test_own_runs:Point")  # which can be stored
POINT = "floq_eqx/Point-v0"


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


def own(scale=4.0, middle=1.0):
    """Steps of actions in [-3, 5], which are the environment's."""
    arrays = steps(40, ends=range(7, 40, 8), terminals=range(7, 40, 8))
    return arrays | {"actions": middle + scale * arrays["actions"]}


@pytest.fixture
def file(tmp_path):
    path = tmp_path / "mine.npz"
    np.savez(path, **own())
    return path


def config(file, agent="fql", **changes):
    box = {"action_low": (-3.0,), "action_high": (5.0,)}
    if changes.get("environment") is not None or file is None:
        box = {}
    given = {
        "environment": None,
        "agent": small_agent(agent) if isinstance(agent, str) else agent,
        "num_updates": 10,
        "batch_size": 8,
        "log_every": 5,
        "evaluate_every": 5,
        "evaluation_episodes": 2,
        "checkpoint_every": 5,
        "data": None if file is None else str(file),
    }
    return TrainConfig(**given | box | changes)


def test_without_an_environment(file, tmp_path):
    lines = []
    run = train(config(file, "floq"), tmp_path / "run", report=lines.append)
    assert lines == ["there is no environment, so nothing is evaluated: --env names one"]
    assert run.steps() == [5, 10]
    assert [row["step"] for row in run.table("train.csv")] == [5, 10]
    assert run.table("evaluation.csv") == []
    assert "evaluation.csv" not in names(run.folder)
    rewards = own()["rewards"]
    critic = run.config.agent.critic
    assert (critic.reward_min, critic.reward_max) == (rewards.min(), rewards.max())
    assert Run(run.folder).config == run.config
    agent, state = run.load()
    assert agent.act(state, jnp.zeros(2), key=jax.random.key(0)).shape == (1,)


def test_resuming_is_bitwise(file, tmp_path):
    whole = train(config(file), tmp_path / "whole")
    half = train(config(file, num_updates=5), tmp_path / "half")
    file = file.rename(tmp_path / "moved.npz")
    resumed = train(config(file), half.folder, resume=True)
    same_run(resumed, whole)
    with pytest.raises(ValueError, match="environment: None before, 'floq_eqx/Point-v0' now"):
        train(config(file, environment=POINT), half.folder, resume=True)
    with pytest.raises(ValueError, match=r"action_high: \(5.0,\) before, \(6.0,\) now"):
        train(config(file, num_updates=20, action_high=(6.0,)), half.folder, resume=True)


@pytest.mark.parametrize("environment", [POINT, None])
def test_in_an_environment(file, tmp_path, environment, monkeypatch):
    monkeypatch.setattr(Point, "acted", ())
    lines = []
    made = config(
        file, environment=environment, environment_kwargs={"limit": 3} if environment else {}
    )
    own_environments = None
    if environment is None:
        wrapped = lambda: gymnasium.wrappers.RescaleAction(Point(3), -1, 1)  # noqa: E731
        own_environments = SyncVectorEnv([wrapped] * 2, autoreset_mode=AutoresetMode.DISABLED)
    options = {"environments": own_environments, "report": lines.append}
    run = train(made, tmp_path / "run", **options)
    rows = run.table("evaluation.csv")
    assert [row["step"] for row in rows] == [5, 10]
    assert all(1 <= row["lengths"] <= 3 and 0 <= row["success"] <= 1 for row in rows)
    assert lines[0].startswith("update 5: success")
    assert (run.config.action_low, run.config.action_high) == ((-3.0,), (5.0,))
    # The networks see the actions in [-1, 1], and the environment those of its box.
    np.testing.assert_allclose(
        find_data(run.config).action, Trajectories.from_arrays(**own(1.0, 0.0)).action, atol=1e-6
    )
    assert Point.acted
    assert all(-3 <= action <= 5 for action in Point.acted)
    # What was found is no change of what was asked for.
    again = dataclasses.replace(made, num_updates=15)
    assert train(again, run.folder, resume=True, **options).steps() == [10, 15]


def test_an_action_of_the_data_is_that_of_the_environment(tmp_path, monkeypatch):
    """What is cloned of data whose every action is 4 acts by 4, and is not cut off at 1."""
    arrays = own()
    np.savez(tmp_path / "x.npz", **arrays | {"actions": np.full((40, 1), 4.0)})
    agent = small_agent("bc", learning_rate=0.03, decay_updates=None)
    monkeypatch.setattr(Point, "acted", ())
    made = config(tmp_path / "x.npz", environment=POINT, num_updates=200, agent=agent)
    train(dataclasses.replace(made, evaluate_every=200), tmp_path / "run")
    assert np.mean(Point.acted) == pytest.approx(4.0, abs=0.5)


def test_rewards_are_scaled_and_recorded(file, tmp_path):
    made = config(file, "floq", reward_scale=0.5, reward_shift=-1.0)
    run = train(made, tmp_path / "run")
    rewards = 0.5 * own()["rewards"].astype(float) - 1.0
    critic = run.config.agent.critic
    assert (critic.reward_min, critic.reward_max) == pytest.approx((rewards.min(), rewards.max()))
    plain = json.loads((run.folder / "config.json").read_text())
    assert (plain["reward_scale"], plain["reward_shift"]) == (0.5, -1.0)
    with pytest.raises(ValueError, match=r"reward_shift: -1.0 before, 0.0 now"):
        train(config(file, "floq", reward_scale=0.5), run.folder, resume=True)


def test_of_ogbench_too(data):
    made = TrainConfig(agent=small_agent("bc"), data=str(data))
    plain = find_data(made).reward
    scaled = find_data(dataclasses.replace(made, reward_scale=2.0, reward_shift=1.0)).reward
    np.testing.assert_allclose(scaled, 2 * plain + 1)


def test_data_themselves(tmp_path, file):
    dataset = Trajectories.from_arrays(**own(), action_low=-3, action_high=5)
    by_file = train(config(file), tmp_path / "file")
    run = train(config(None), tmp_path / "run", dataset=dataset)
    assert eqx.tree_equal(run.load()[1], by_file.load()[1])
    longer = train(config(None, num_updates=15), run.folder, resume=True, dataset=dataset)
    assert longer.steps() == [10, 15]
    two = [tmp_path / "a", tmp_path / "b"]
    configs = [config(None), config(None, seed=1)]
    first, _ = train_many(configs, two, dataset=dataset)
    same_run(first, by_file)
    world = train(config(None, environment=POINT), tmp_path / "world", dataset=dataset)
    assert len(world.table("evaluation.csv")) == 2
    other = Trajectories.from_arrays(**steps(40, ends=[39], terminals=[39]))
    with pytest.raises(ValueError, match="trained on other data"):
        train(config(None, num_updates=20), run.folder, resume=True, dataset=other)
    for changes, message in [
        ({"data": str(file)}, "either data or the dataset itself"),
        ({"reward_shift": 1.0}, "scale yours"),
        ({"action_low": (-1.0,), "action_high": (1.0,)}, "either action_low or the dataset"),
        (
            {"environment": "Pendulum-v1"},
            "observations have 2 components and those of Pendulum-v1 3",
        ),
    ]:
        with pytest.raises(ValueError, match=message):
            train(config(None, **changes), tmp_path / "bad", dataset=dataset)
    with pytest.raises(ValueError, match=r"no data: .*--data.*dataset in Python"):
        train(config(None), tmp_path / "bad")


def test_several_runs(file, tmp_path):
    configs = [config(file, seed=seed, environment=POINT) for seed in range(2)]
    runs = train_many(configs, [tmp_path / "a", tmp_path / "b"])
    alone = train(configs[1], tmp_path / "alone")
    same_run(runs[1], alone)
    assert runs[1].config == alone.config
    quiet = [config(file, seed=seed) for seed in range(2)]
    runs = train_many(quiet, [tmp_path / "c", tmp_path / "d"])
    assert [run.table("evaluation.csv") for run in runs] == [[], []]


def test_on_online(file, tmp_path):
    """After own data, in their environment, with both in the buffer."""
    source = train(config(file, environment=POINT), tmp_path / "source")
    run = finetune(source.folder, tmp_path / "run", OnlineConfig(num_steps=10))
    assert run.steps() == [15, 20]
    mixture = OnlineConfig(num_steps=10, offline_data="mixture")
    assert finetune(source.folder, tmp_path / "mixed", mixture).steps() == [15, 20]
    none = OnlineConfig(num_steps=10, offline_data="none")
    assert finetune(source.folder, tmp_path / "none", none).steps() == [15, 20]
    alone = train(config(file), tmp_path / "alone")
    with pytest.raises(ValueError, match=r"To learn online takes an environment: .*--env"):
        finetune(alone.folder, tmp_path / "bad", OnlineConfig(num_steps=10))


SENSELESS = [
    ({"keep": "best"}, "keep = 'best' takes evaluations"),
    ({"environment_kwargs": {"a": 1}}, "environment_kwargs = .* there is no environment"),
    ({"success_timing": "post"}, "success_timing = 'post' means nothing"),
    ({"collect_episodes": 3}, "collect_episodes = 3 means nothing"),
    ({"action_low": None}, "both action_low and action_high"),
    ({"reward_scale": 0.0}, "reward_scale must be in"),
    ({"online": OnlineConfig(), "environment": POINT, "reward_shift": 1.0}, "of the data alone"),
    ({"environment": CUBE, "action_low": (0.0,)}, "OGBench's actions lie in"),
    ({"environment": "cube-singel-play-v0"}, "Did you mean cube-single-play-v0"),
]


@pytest.mark.parametrize(("changes", "message"), SENSELESS)
def test_settings_that_make_no_sense(changes, message):
    with pytest.raises(ValueError, match=message):
        config("x.npz", **changes)


WORLDS = [
    (
        {"environment": "Pendulum-v1"},
        "observations have 2 components and those of Pendulum-v1 3: n",
    ),
    ({"environment": "CartPole-v1"}, "its action space is Discrete"),
    ({"environment": "Nowhere-v0"}, "neither an OGBench name nor a Gymnasium environment"),
    ({"environment": "FrozenLake-v1"}, "FlattenObservation"),
    (
        {"environment": POINT, "action_low": (-1.0,), "action_high": (1.0,)},
        r"between \[-1.0\] and \[1.0\], and the environment's between \[-3.0\] and \[5.0\]",
    ),
    ({"action_low": None, "action_high": None}, r"component 0 is .* must lie in \[-1.0, 1.0\]"),
    ({"data": "nothing.hdf5"}, "There is no file nothing.hdf5"),
]


@pytest.mark.parametrize(("changes", "message"), WORLDS)
def test_what_does_not_fit(changes, message, file, tmp_path):
    with pytest.raises((ValueError, FileNotFoundError), match=message):
        train(config(file, **changes), tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_rewards_that_are_all_equal(tmp_path):
    np.savez(tmp_path / "x.npz", **own() | {"rewards": np.ones(40)})
    with pytest.raises(ValueError, match="All 40 rewards are equal"):
        train(config(tmp_path / "x.npz", "floq"), tmp_path / "run")


def test_configurations_from_before(file):
    plain = config(file).to_plain()
    new = ("reward_scale", "reward_shift", "action_low", "action_high")
    old = {name: value for name, value in plain.items() if name not in new}
    assert TrainConfig.from_plain(old) == config(file, action_low=None, action_high=None)
    plain = json.loads(json.dumps(plain))
    assert TrainConfig.from_plain(plain) == config(file)
    for change, message in [
        ({"environment": 3}, "environment must be a text"),
        ({"action_low": 3.0}, "action_low must be a list"),
        ({"action_low": ["a"]}, "every entry of action_low must be a number"),
        ({"reward_scale": "a"}, "reward_scale must be a number"),
    ]:
        with pytest.raises(ValueError, match=message):
            TrainConfig.from_plain(plain | change)


def test_presets(file):
    assert laptop("floq", None, data="x.npz").collect_episodes is None
    both = laptop("floq", POINT, data="x.npz", online_steps=100)
    assert (both.num_updates, both.data) == (20_000, "x.npz")
    with pytest.raises(ValueError, match="preset paper is of the papers' environments"):
        preset("paper", agent="floq", environment=None, data="x.npz")


# ------------------------------------------------------------------------------------ the program

SMALL = [
    *("--agent", "fql", "--num-updates", "10", "--batch-size", "8", "--log-every", "5"),
    *("--evaluate-every", "5", "--evaluation-episodes", "2", "--checkpoint-every", "5"),
    *("--flow-steps", "2", "--critic.network.hidden-sizes", "8"),
    *("--policy.network.hidden-sizes", "8"),
]
BOX = ["--action-low", "-3", "--action-high", "5"]


def floq(capsys, *words):
    capsys.readouterr()
    status = cli.main([str(word) for word in words])
    return status, *capsys.readouterr()


def test_the_program_without_an_environment(capsys, file, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    status, out, err = floq(capsys, "train", "--data", file, *SMALL, *BOX)
    folder = "runs/mine-fql-laptop-seed0"
    assert (status, err) == (0, "")
    assert f"training fql on mine.npz in {folder}" in out
    assert "so nothing is evaluated: --env names one" in out
    assert "holds checkpoints and tables; nothing was evaluated, without an environment" in out
    assert Run(folder).steps() == [5, 10]
    words = ["--resume", "--out", folder, "--num-updates", "15"]
    status, out, _ = floq(capsys, "train", *words)
    assert (status, "continuing at update 10 of 15" in out) == (0, True)
    status, _, err = floq(capsys, "evaluate", folder)
    assert (status, "trained without an environment: name the one to evalu" in err) == (1, True)
    status, _, err = floq(capsys, "plot", folder)
    assert (status, "there is none where a run has no environment" in err) == (1, True)
    words = ["evaluate", folder, "--episodes", "2", "--env", POINT]
    status, out, _ = floq(capsys, *words, "--env-kwargs", '{"limit": 2}')
    assert (status, out.startswith("checkpoint 15: success")) == (0, True)
    status, _, err = floq(capsys, *words[:-1], "Pendulum-v1")
    assert (status, "observations of 2 and actions of 1 components, and Pend" in err) == (1, True)


def test_the_program_in_an_environment(capsys, file, tmp_path):
    with h5py.File(tmp_path / "mine.hdf5", "w") as out:
        for name, array in own().items():
            out[name] = array
    folder = tmp_path / "run"
    words = ["--data", tmp_path / "mine.hdf5", "--env", "floq_eqx/Point-v0", "--out", folder]
    status, out, err = floq(capsys, "train", *words, *SMALL, "--env-kwargs", '{"limit": 2}')
    assert (status, err) == (0, "")
    assert "update 10: success" in out
    assert "learning_curve.png" in names(folder)
    status, out, _ = floq(capsys, "evaluate", folder, "--episodes", "1")
    assert (status, "success" in out) == (0, True)
    status, _, err = floq(capsys, "train", "--resume", "--out", folder, "--env", "none")
    assert (status, "of --env floq_eqx/Point-v0, and none was given" in err) == (1, True)


def test_what_the_program_takes_for_own_data(capsys, file, data, tmp_path):
    out = tmp_path / "run"
    for words, message in [
        (["--data", file], "actions` are outside their bounds"),
        (["--data", file, "--env", CUBE], "lacks qpos"),
        (
            ["--data", data, "--env", "none"],
            "there is no rewards; it has actions, observations, terminals",
        ),
        (["--data", tmp_path / "no.hdf5"], "There is no file"),
        (["--data", file, "--preset", "paper"], "preset paper is of the papers' environments"),
        (["--data", file, "--online-steps", "9"], "To learn online takes an environment"),
        (["--env", "none"], "There are no data: of no environment"),
        (["--env", "Pendulum-v1"], "Other Gymnasium environments can be learned online"),
    ]:
        status, _, err = floq(capsys, "train", *words, *SMALL, "--out", out)
        assert (status, err.count("\n")) == (1, 1)
        assert message in err
        assert not out.exists() or names(out) == []
