"""Minari's datasets, made here with its own collector: what is read, and what is refused."""

import sys
import warnings

import equinox as eqx
import gymnasium
import numpy as np
import pytest
from gymnasium import spaces

from floq_eqx.data import Trajectories, load_own_data, of_minari
from floq_eqx.training import Run, train

from .test_own_runs import POINT, Point, config, floq

minari = pytest.importorskip("minari")
NAME = "floq/point-v0"


class Other(Point):
    """Of other spaces; by default with a dict as its observation."""

    observation_space = spaces.Dict({"place": spaces.Box(-np.inf, np.inf, (2,), np.float32)})

    def __init__(self, observed=None, acted=None):
        super().__init__()
        if observed is not None:
            self.observation_space = observed
        if acted is not None:
            self.action_space = acted

    def look(self):
        return self.observation_space.sample()

    def step(self, action):
        return self.look(), 0.0, False, True, {}


NARROW = {
    "observed": Point.observation_space,
    "acted": spaces.Box(np.float32(-2), np.float32(2), (1,), np.float32),
}
BOX = Point.observation_space
gymnasium.register("floq_eqx/Narrow-v0", Other, kwargs=NARROW)


@pytest.fixture(autouse=True)
def places(tmp_path, monkeypatch):
    monkeypatch.setenv("MINARI_DATASETS_PATH", str(tmp_path / "minari"))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


def collect(name=NAME, episodes=20, environment=None):
    """Episodes of random actions; what was seen and done in each of them."""
    from minari import DataCollector

    env = DataCollector(environment or gymnasium.make(POINT, disable_env_checker=True))
    env.action_space.seed(0)
    seen = []
    for seed in range(episodes):
        observation, _ = env.reset(seed=seed)
        over = False
        while not over:
            action = env.action_space.sample()
            after, reward, terminated, truncated, _ = env.step(action)
            seen.append((observation, action, reward, terminated, truncated, after))
            observation, over = after, terminated or truncated
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of what it would like to know of the author
        env.create_dataset(name, algorithm_name="random")
    env.close()
    env._tmp_dir.cleanup()  # which it leaves to the garbage collector, that warns of it
    return seen


def test_every_step_is_a_transition():
    seen = collect()
    observation, action, reward, terminated, truncated, after = map(
        np.array, zip(*seen, strict=True)
    )
    data = load_own_data(f"minari:{NAME}")
    expected = Trajectories.from_arrays(
        observation, action, reward, terminated, timeouts=truncated, next_observations=after,
        action_low=-3, action_high=5,
    )  # fmt: skip
    assert eqx.tree_equal(data, expected)
    assert len(data) == len(seen)
    assert set(np.asarray(data.mask)) == {0.0, 1.0}


def test_it_is_converted_once(monkeypatch):
    collect()
    first = load_own_data(f"minari:{NAME}")
    with monkeypatch.context() as patch:
        patch.setattr(of_minari, "_read", pytest.fail)
        assert eqx.tree_equal(load_own_data(f"minari:{NAME}"), first)
    minari.delete_dataset(NAME)
    collect(episodes=2)
    assert len(load_own_data(f"minari:{NAME}")) < len(first)


def test_a_run(tmp_path, capsys):
    collect()
    made = config(None, data=f"minari:{NAME}")
    run = train(made, tmp_path / "run")
    assert (run.config.action_low, run.config.action_high) == ((-3.0,), (5.0,))
    assert run.config.data == f"minari:{NAME}"
    words = ["train", "--resume", "--out", run.folder, "--num-updates", "15"]
    status, out, _ = floq(capsys, *words)
    assert (status, f"training fql on minari:{NAME}" in out) == (0, True)
    assert Run(run.folder).steps() == [10, 15]
    inside = train(config(None, data=made.data, environment=POINT), tmp_path / "inside")
    assert len(inside.table("evaluation.csv")) == 2
    with pytest.raises(ValueError, match=r"and the environment's between \[-2.0\] and \[2.0\]"):
        train(config(None, data=made.data, environment="floq_eqx/Narrow-v0"), tmp_path / "bad")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({}, "observation space is Dict.*record it with gymnasium.wrappers.FlattenObservation"),
        ({"observed": spaces.Box(0, 255, (8, 8, 3), np.uint8)}, "look like images"),
        ({"observed": BOX, "acted": spaces.Discrete(3)}, "action space is Discrete"),
        ({"observed": BOX, "acted": spaces.Box(-1, np.inf, (1,))}, "have no bounds.*record it"),
    ],
)
def test_spaces_that_are_no_boxes(options, message):
    collect(episodes=1, environment=Other(**options))
    with pytest.raises(ValueError, match=f"cannot learn from minari:{NAME}: .*{message}"):
        load_own_data(f"minari:{NAME}")


def test_unknown_names():
    with pytest.raises(FileNotFoundError, match=r"there are none. Fetch .*minari download x/y-v0"):
        load_own_data("minari:x/y-v0")
    collect(episodes=1)
    with pytest.raises(FileNotFoundError, match=f"'floq/piont-v0' .*; there are {NAME}"):
        load_own_data("minari:floq/piont-v0")
    for name in ("", "..", "floq"):
        with pytest.raises((FileNotFoundError, ValueError), match="minari"):
            load_own_data(f"minari:{name}")


def test_without_minari(monkeypatch):
    monkeypatch.setitem(sys.modules, "minari", None)
    with pytest.raises(ModuleNotFoundError, match=r"pip install floq_eqx\[minari\]"):
        load_own_data(f"minari:{NAME}")


def test_damaged(tmp_path):
    collect()
    (path,) = (tmp_path / "minari").rglob("main_data.hdf5")
    path.write_bytes(path.read_bytes()[:-2000])
    with pytest.raises(ValueError, match=f"minari:{NAME} cannot be read"):
        load_own_data(f"minari:{NAME}")
    (path.parent / "metadata.json").write_text("{")
    with pytest.raises(ValueError, match=f"minari:{NAME} cannot be read"):
        load_own_data(f"minari:{NAME}")
    assert not (tmp_path / "cache").exists()
