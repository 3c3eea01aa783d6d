"""Environments of other people: what they tell, what they are, and how they fail."""

import dataclasses

import gymnasium
import jax
import numpy as np
import pytest
from gymnasium import spaces
from gymnasium.vector import AutoresetMode, SyncVectorEnv
from PIL import Image

from floq_eqx import cli
from floq_eqx.agents import fql, sac
from floq_eqx.data import Replay
from floq_eqx.data.environments import make_box_environment
from floq_eqx.data.episodes import Successes
from floq_eqx.evaluation import evaluate, make_environments
from floq_eqx.networks import MLPConfig
from floq_eqx.recording import record
from floq_eqx.training import (
    EnvironmentFaultError,
    OnlineConfig,
    Run,
    TrainConfig,
    fit_online,
    train,
)

SMALL = MLPConfig((8,))
KEY = jax.random.key(0)


class Odd(gymnasium.Env):
    """Five steps of reward 1; `tell(episode, step)` is its info, `fail(episode, step, out)` changes
    what it returns, and `length` is 0 for no end."""

    observation_space = spaces.Box(-1, 1, (2,), np.float32)
    action_space = spaces.Box(-1, 1, (1,), np.float32)
    metadata = {"render_modes": ["human", "rgb_array"]}  # noqa: RUF012
    episodes = 0  # of all of them

    def __init__(self, tell=None, fail=None, length=5, render_mode=None, draw=None):
        self.tell, self.fail, self.length = tell or (lambda *at: {}), fail, length
        self.render_mode, self.draw = render_mode, draw

    def out(self, *values):
        at = self.episode, self.now
        return self.fail(*at, values) if self.fail else values

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.episode, self.now = Odd.episodes, 0
        Odd.episodes += 1
        return self.out(np.zeros(2, np.float32), {})

    def step(self, action):
        self.now += 1
        info = self.tell(self.episode, self.now)
        return self.out(np.zeros(2, np.float32), 1.0, False, self.now == self.length, info)

    def render(self):
        return self.draw() if self.draw else np.full((8, 8, 3), 9 * self.now, np.uint8)


gymnasium.register("floq_eqx/Odd-v0", Odd)


@pytest.fixture(autouse=True)
def _count_from_zero(monkeypatch):
    monkeypatch.setattr(Odd, "episodes", 0)


def odd(num=1, **options):
    return SyncVectorEnv([lambda: Odd(**options)] * num, autoreset_mode=AutoresetMode.DISABLED)


@pytest.fixture(scope="module")
def policy():
    agent = fql(
        critic={"network": SMALL}, policy={"network": SMALL, "flow_steps": 1}, action_size=1
    )
    return agent, agent.init(2, 1, key=KEY)


# ---------------------------------------------------------------------------------------- success


def told(**infos):
    """An info for the last step."""
    return lambda episode, step: infos if step == 5 else {}


@pytest.mark.parametrize("num", [1, 4])
def test_success_that_is_told_only_when_there_is_some(policy, num):
    """Whichever episode is the first, also one that nobody counts."""

    def when(*episodes):
        return lambda e, s: {"success": True} if e in episodes and s == 5 else {}

    result = evaluate(*policy, odd(num, tell=when(5, 7, 11, 13)), num_episodes=20)
    assert result.summary()["success"] == 0.2
    assert list(np.flatnonzero(result.success)) == [5, 7, 11, 13]
    Odd.episodes = 0
    assert np.isnan(evaluate(*policy, odd(4, tell=when(6)), num_episodes=6).success).all()


def test_only_the_last_step_counts(policy):
    def tell(episode, step):
        return {"success": True} if (episode, step) == (1, 3) else {}

    assert list(evaluate(*policy, odd(tell=tell), num_episodes=3).success) == [0, 0, 0]


@pytest.mark.parametrize(
    ("info", "success"),
    [
        ({"success": True}, 1),
        ({"success": np.True_}, 1),
        ({"success": np.array([False])}, 0),
        ({"success": np.array([1.0])}, 1),
        ({"success": np.array(1)}, 1),
        ({"success": 1}, 1),
        ({"success": 0.0}, 0),
        ({"success": [True]}, 1),
        ({"is_success": 1.0}, 1),
        ({"is_success": np.False_}, 0),
        ({"is_success": True, "success": False}, 0),
        ({"is_success": True, "success": None}, 1),
        ({"success": None}, np.nan),
        ({"success": "yes"}, "success.*is 'yes', which is neither true nor false"),
        ({"success": "True"}, "success.*neither true nor false"),
        ({"is_success": 0.5}, r"is_success.*0\.5"),
        ({"success": np.nan}, "success.*nan"),
        ({"success": 2}, "success.*2"),
        ({"success": np.ones(3)}, "success.*1., 1., 1."),
        ({"success": {"left": True}}, "success.*left"),
        ({"success": b"yes"}, "success.*b'yes'"),
        ({"success": object}, "success.*class 'object'"),
    ],
    ids=str,
)
@pytest.mark.parametrize("num", [1, 2])
def test_what_success_may_be(policy, info, success, num):
    environments = odd(num, tell=told(**info))
    if not isinstance(success, str):
        result = evaluate(*policy, environments, num_episodes=2)
        np.testing.assert_array_equal(result.success, [success] * 2)
        return
    with pytest.raises(EnvironmentFaultError, match=rf"step 5: its info\[\"{success}") as caught:
        evaluate(*policy, environments, num_episodes=2)
    assert "\n" not in str(caught.value)


def test_infos_of_vector_environments():
    """Which may leave out masks, and hold objects."""
    two = np.array([True, True])

    def read(info, told=False):
        return list(Successes(told).read(info, two, two))

    assert read({"success": np.array([1.0, 0.0])}) == [1, 0]
    assert read({"success": np.array([np.True_, None]), "_success": np.array([True, False])}) == [
        1,
        0,
    ]
    assert read({"success": [False, True]}) == [0, 1]
    assert read({"is_success": np.array([[True], [False]])}) == [1, 0]
    assert read({}, told=True) == [0, 0]
    assert np.isnan(read({})).all()
    assert np.isnan(read(None)).all()
    for bad in (True, {"a": two}, np.ones(3)):
        with pytest.raises(ValueError, match=r'its info\["success"\] is'):
            read({"success": bad})


def learn(environments, **options):
    agent = sac(critic={"network": SMALL}, policy={"network": SMALL}, action_size=1)
    seen = []
    fit_online(
        agent,
        agent.init(2, 1, key=KEY),
        Replay.empty(100, 2, 1),
        environments,
        **{"num_steps": 20, "batch_size": 4, "key": KEY, "warmup": 20, "callbacks": [seen.append]},
        **options,
    )
    return [episode.get("success") for now in seen for episode in now.episodes]


def test_success_online():
    def when(e, s):
        return {"is_success": np.True_} if e == 1 and s == 5 else {}

    assert learn(odd(tell=when)) == [None, 1.0, 0.0, 0.0]
    Odd.episodes = 2
    assert learn(odd(tell=when), tells_success=True) == [0.0] * 4
    Odd.episodes = 0
    tell = told(success="yes")
    with pytest.raises(EnvironmentFaultError, match=r"at step 4: its info\[\"success\"\] is 'yes'"):
        learn(odd(tell=tell))


def online(**changes):
    config = TrainConfig(
        environment="floq_eqx/Odd-v0",
        agent=sac(critic={"network": SMALL}, policy={"network": SMALL}),
        num_updates=0,
        batch_size=4,
        log_every=10,
        evaluate_every=20,
        evaluation_episodes=2,
        checkpoint_every=20,
        online=OnlineConfig(num_steps=20, warmup=40),
    )
    return dataclasses.replace(config, **changes)


def patched(monkeypatch, **options):
    """Environments of that id behave so."""
    original = Odd.__init__

    def init(self, **given):
        return original(self, **(options | given))

    monkeypatch.setattr(Odd, "__init__", init)


def test_success_of_a_run(tmp_path, monkeypatch):
    """Also when it is resumed, and has told success before."""

    # Episodes 0 to 3 are the training's, with the success of the second; 4 is begun, not ended.
    def when(e, s):
        return {"success": True} if e == 1 and s == 5 else {}

    patched(monkeypatch, tell=when)
    run = train(online(evaluate_every=50), tmp_path / "run")
    assert [row["episode_success"] for row in run.table("train.csv")] == [0.5, 0.0]
    longer = online(evaluate_every=50, online=OnlineConfig(num_steps=40, warmup=40))
    again = train(longer, tmp_path / "run", resume=True)
    assert [row["episode_success"] for row in again.table("train.csv")] == [0.5, 0, 0, 0]


# ------------------------------------------------------------------------------ without an end


@pytest.mark.parametrize("num", [1, 3])
def test_episodes_that_do_not_end(policy, num):
    def tell(episode, step):
        return {"success": step == 7}

    with pytest.warns(UserWarning, match=r"4 of 4 episodes did not end within 7 steps.*--max-ep"):
        result = evaluate(
            *policy, odd(num, length=0, tell=tell), num_episodes=4, max_episode_steps=7
        )
    np.testing.assert_array_equal(result.lengths, 7)
    np.testing.assert_array_equal(result.returns, 7)
    np.testing.assert_array_equal(result.success, 1)
    # One that ends just then is not cut, and one that nobody counts says nothing.
    assert list(evaluate(*policy, odd(2), num_episodes=1, max_episode_steps=5).lengths) == [5]
    with pytest.raises(ValueError, match="max_episode_steps must be a whole number"):
        evaluate(*policy, odd(), max_episode_steps=0)


@pytest.mark.filterwarnings("default")
def test_a_run_whose_episodes_do_not_end(tmp_path, monkeypatch, capsys):
    patched(monkeypatch, length=0)
    config = online(max_episode_steps=9)
    with pytest.warns(UserWarning, match="2 of 2 episodes did not end within 9 steps"):
        run = train(config, tmp_path / "run")
    assert [row["lengths"] for row in run.table("evaluation.csv")] == [9]
    words = ["evaluate", str(run.folder), "--episodes", "1"]
    assert cli.main(words) == 0
    out, err = capsys.readouterr()
    assert "length 9 ± 0" in out
    assert err.startswith("floq: note: 1 of 1 episodes did not end within 9 steps")
    video = tmp_path / "a.gif"
    assert cli.main([*words, "--max-episode-steps", "3", "--video", str(video)]) == 0
    assert "length 3 ± 0" in capsys.readouterr().out
    with Image.open(video) as image:
        assert image.n_frames == 4
    assert cli.main([*words, "--max-episode-steps", "0"]) == 1
    assert "max_episode_steps must be" in capsys.readouterr().err


# ---------------------------------------------------------------------------------------- spaces


class Shaped(gymnasium.Env):
    closed = 0

    def __init__(self, observation=None, action=None, bounds=None):
        one = spaces.Box(-1, 1, (1,), np.float32)
        self.observation_space = one if observation is None else observation
        self.action_space = one if action is None else action
        if bounds is not None:
            self.action_space.low[:], self.action_space.high[:] = bounds

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.observation_space.seed(seed)
        return self.observation_space.sample(), {}

    def step(self, action):
        self.action = action
        return self.observation_space.sample(), 0.0, False, False, {}

    def close(self):
        Shaped.closed += 1


gymnasium.register("floq_eqx/Shaped-v0", Shaped, disable_env_checker=True)


def box(low, high, shape, dtype=np.float32):
    return spaces.Box(low, high, shape, dtype)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"observation": box(0, 255, (4, 4, 3), np.uint8)}, "look like images.*only vectors"),
        ({"observation": box(0, 255, (128,), np.uint8)}, "look like images"),
        ({"observation": box(0, 1, (4, 4, 3))}, "look like images"),
        ({"observation": box(0, 1, (0,))}, "observations have no components"),
        ({"observation": box(0, 1, (3, 0))}, "observations have no components"),
        ({"observation": spaces.Discrete(3)}, r"Discrete\(3\), not a box.*FlattenObservation"),
        ({"observation": spaces.Dict(a=box(0, 1, (1,)))}, "not a box.*FlattenObservation"),
        ({"observation": spaces.Tuple([box(0, 1, (1,))])}, "not a box.*FlattenObservation"),
        ({"action": spaces.Discrete(2)}, "action space is Discrete.*not a box"),
        ({"action": box(-np.inf, np.inf, (1,))}, "actions have no bounds.*RescaleAction"),
        ({"action": box(0, np.inf, (1,))}, "actions have no bounds"),
        ({"action": box(0, 3, (1,), np.int32)}, "actions are whole numbers"),
        ({"action": box(0, 1, (0,))}, "actions have no components"),
        ({"action": box(-1, 1, (2,)), "bounds": ([0, 1], [1, 1])}, "component 1 .* 1.0 and 1.0"),
        ({"bounds": (1, -1)}, "between 1.0 and -1.0"),
        ({"bounds": (np.nan, 1)}, "actions have no bounds"),
        ({"action": box(-3e38, 3e38, (1,))}, "too far apart"),
    ],
)
def test_spaces_that_agents_cannot_act_in(options, message, monkeypatch):
    monkeypatch.setattr(Shaped, "closed", 0)
    with pytest.raises(ValueError, match=f"cannot act in floq_eqx/Shaped-v0: .*{message}") as info:
        make_box_environment("floq_eqx/Shaped-v0", **options)
    assert "\n" not in str(info.value)
    assert Shaped.closed == 1


@pytest.mark.parametrize(
    ("options", "sizes"),
    [
        ({"observation": box(-1, 1, ())}, (1, 1)),
        ({"observation": box(0, 9, (2, 3), np.int64)}, (6, 1)),
        ({"observation": box(-np.inf, np.inf, (3,), np.float64)}, (3, 1)),
        ({"action": box(-2, 2, (2, 3))}, (1, 6)),
        ({"action": box(-2, 2, ())}, (1, 1)),
        ({"action": box(-2, 2, (2,), np.float64)}, (1, 2)),
    ],
)
def test_spaces_that_become_vectors(options, sizes):
    environment = make_box_environment("floq_eqx/Shaped-v0", **options)
    assert (environment.observation_space.shape, environment.action_space.shape) == (
        sizes[:1],
        sizes[1:],
    )
    observation, _ = environment.reset(seed=0)
    assert (observation.dtype, observation.shape) == (np.float32, sizes[:1])
    environment.step(np.full(sizes[1:], 0.5, np.float32))
    action = environment.unwrapped.action
    assert np.shape(action) == environment.unwrapped.action_space.shape
    if "action" in options:
        np.testing.assert_allclose(action, 1.0)


# ---------------------------------------------------------------------------------------- making


@pytest.mark.parametrize(
    ("name", "kwargs", "message"),
    [
        ("no_such_module:Env-v0", {}, "cannot be made: ModuleNotFoundError: .*no_such_module"),
        ("floq_eqx_broken:Env-v0", {}, "cannot be made: .*no luck"),
        ("floq_eqx/Odd-v0", {"colour": 3}, "cannot be made: TypeError: .*colour"),
        ("floq_eqx/Odd-v0", {"name": 3}, "cannot be made: TypeError: .*name"),
        ("floq_eqx/Fails-v0", {}, "cannot be made: OSError: no luck here"),
        ("a:b:c", {}, "cannot be made|neither an OGBench"),
        ("", {}, "cannot be made|neither an OGBench"),
        ("cube-single-play-singletask-task1-v0", {"colour": 3}, "TypeError: .*colour"),
    ],
)
def test_environments_that_cannot_be_made(name, kwargs, message, monkeypatch, tmp_path, capsys):
    (tmp_path / "floq_eqx_broken.py").write_text("raise OSError('no luck')")
    monkeypatch.syspath_prepend(tmp_path)

    def fails():
        raise OSError("no luck\nhere.")

    if "floq_eqx/Fails-v0" not in gymnasium.registry:
        gymnasium.register("floq_eqx/Fails-v0", fails)
    with pytest.raises(ValueError, match=message) as info:
        make_environments(name, 2, **kwargs)
    assert info.value.__cause__ is not None
    assert "\n" not in str(info.value)


def test_names_that_are_taken():
    with pytest.raises(ValueError, match="environment_kwargs cannot set num, success_timing"):
        online(environment_kwargs={"success_timing": "pre", "num": 3, "name": 4})


def test_the_program_says_so_in_one_line(capsys, tmp_path):
    words = ["train", "--agent", "sac", "--online-steps", "4", "--out", str(tmp_path / "run")]
    assert cli.main([*words, "--env", "no_such_module:Env-v0"]) == 1
    err = capsys.readouterr().err
    assert err.startswith("floq: error: The environment no_such_module:Env-v0 cannot be made")
    assert err.count("\n") == 1


def test_in_processes_of_their_own(policy):
    """A script's own ids are unknown there; those of a module are not."""
    with pytest.raises(ValueError, match=r"made here, but not in a process.*module:Id-v0"):
        make_environments("floq_eqx/Odd-v0", 1, asynchronous=True)
    environments = make_environments(
        "tests.test_environments:floq_eqx/Odd-v0", 1, asynchronous=True
    )
    try:
        assert list(evaluate(*policy, environments, num_episodes=2).lengths) == [5, 5]
    finally:
        environments.close()


# ---------------------------------------------------------------------------------------- faults


def at(episode, step, change):
    return lambda e, s, values: change(*values) if (e, s) == (episode, step) else values


def raises(*values):
    raise OSError("the cable\nis loose")


FAULTS = [
    (1, 3, raises, "its step raised OSError: the cable is loose"),
    (1, 0, raises, "its reset raised OSError: the cable is loose"),
    (1, 3, lambda o, *rest: (o * np.nan, *rest), "its observation is NaN or infinite"),
    (1, 0, lambda o, *rest: (o + np.inf, *rest), "its observation is NaN or infinite"),
    (1, 3, lambda o, r, *rest: (o, np.nan, *rest), "its reward is nan"),
    (1, 3, lambda o, r, *rest: (o, -np.inf, *rest), "its reward is -inf"),
    (1, 3, lambda o, r, *rest: (o, None, *rest), "its reward is nan"),
    (1, 3, lambda o, *rest: (np.zeros(3, np.float32), *rest), "its step raised ValueError"),
    (1, 3, lambda o, *rest: o, "its step raised ValueError"),
]


@pytest.mark.parametrize(("episode", "step", "change", "message"), FAULTS)
def test_faults_name_episode_and_step(policy, episode, step, change, message):
    fail = at(episode, step, change)
    with pytest.raises(EnvironmentFaultError, match=f"in episode 1 at step {step}: {message}") as e:
        evaluate(*policy, odd(fail=fail), num_episodes=3)
    assert (e.value.episode, e.value.step, "\n" in str(e.value)) == (1, step, False)
    # Where several run side by side, one that raised is not known.
    Odd.episodes = 0
    where = "episode 1" if "raised" not in message else "one of episodes 0, 1"
    with pytest.raises(EnvironmentFaultError, match=f"in {where} at step {step}: {message}"):
        evaluate(*policy, odd(2, fail=fail), num_episodes=2)


def test_faults_that_nobody_looks_at(policy):
    fail = at(2, 3, lambda o, *rest: (o * np.nan, *rest))
    assert list(evaluate(*policy, odd(3, fail=fail), num_episodes=2).returns) == [5, 5]


def test_an_evaluation_that_fails_loses_no_training(tmp_path, monkeypatch, capsys):
    # Episodes 0 to 2 are the training's; the next two are evaluated at step 10.
    patched(monkeypatch, fail=at(3, 2, raises))
    lines = []
    config = online(evaluate_every=10)
    with pytest.raises(EnvironmentFaultError, match=r"at step 2: .*the cable is loose") as caught:
        train(config, tmp_path / "run", report=lines.append)
    saved = f"what was trained until step 10 is saved in {tmp_path / 'run'}"
    assert lines == [f"the evaluation failed, and {saved}"]
    assert caught.value.__notes__ == [f"In an evaluation; {saved}."]
    assert Run(tmp_path / "run").steps() == [10]
    run = train(config, tmp_path / "run", resume=True)
    assert [row["step"] for row in run.table("evaluation.csv")] == [10, 20]


@pytest.mark.filterwarnings("default")
def test_closing_only_warns(tmp_path, monkeypatch, capsys):
    run = train(online(), tmp_path / "run")
    capsys.readouterr()
    monkeypatch.setattr(Odd, "close", raises)
    words = ["evaluate", str(run.folder), "--episodes", "1"]
    assert cli.main([*words, "--video", str(tmp_path / "a.gif")]) == 0
    out, err = capsys.readouterr()
    assert f"wrote {tmp_path / 'a.gif'}" in out
    assert "an environment could not be closed: OSError: the cable is loose" in err
    monkeypatch.setattr(Odd, "step", raises)
    assert cli.main(words) == 1
    err = capsys.readouterr().err.splitlines()
    assert "could not be closed" in err[0]
    assert err[1].startswith("floq: error: The environment failed in episode 0 at step 1")


# -------------------------------------------------------------------------------------- recording


def film(policy, path, **options):
    return record(*policy, "floq_eqx/Odd-v0", path, **options)


def test_a_recording(policy, tmp_path):
    path = film(policy, tmp_path / "new" / "a.GIF")
    with Image.open(path) as image:
        assert (image.format, image.n_frames) == ("GIF", 6)
    with pytest.warns(UserWarning, match="within 2 steps"):
        film(
            policy, path, environment_kwargs={"length": 3, "render_mode": "x"}, max_episode_steps=2
        )
    with Image.open(path) as image:
        assert image.n_frames == 3


@pytest.mark.parametrize("name", ["a.mp4", "a", "a.gif.png", ".gif"])
def test_recordings_are_gifs(policy, tmp_path, monkeypatch, capsys, name):
    monkeypatch.setattr(Odd, "reset", lambda *a, **k: pytest.fail("too late"))
    path = tmp_path / name
    with pytest.raises(ValueError, match=r"animated GIFs: .* must end in \.gif"):
        film(policy, path)
    assert cli.main(["evaluate", "/nonexistent", "--video", str(path)]) == 1
    assert "must end in .gif" in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


def no_pygame():
    raise gymnasium.error.DependencyNotInstalled("pygame is not installed")


@pytest.mark.parametrize(
    ("draw", "message"),
    [
        (no_pygame, r"cannot render here: DependencyNotInstalled: pygame is not installed\.$"),
        (lambda: None, "it draws no picture, but NoneType; .*human, rgb_array"),
        (lambda: "x", "it draws no picture, but str"),
        (lambda: np.zeros(3, np.uint8), "it draws no picture"),
    ],
)
def test_what_cannot_be_drawn(policy, tmp_path, draw, message):
    with pytest.raises(RuntimeError, match=message):
        film(policy, tmp_path / "a.gif", environment_kwargs={"draw": draw})
    assert not list(tmp_path.iterdir())


def test_recording_what_fails(policy, tmp_path):
    fail = at(1, 3, lambda o, *rest: (o * np.nan, *rest))  # 0 is reset to see whether it draws
    with pytest.raises(EnvironmentFaultError, match="in episode 0 at step 3: its observation"):
        film(policy, tmp_path / "a.gif", environment_kwargs={"fail": fail})
    assert not list(tmp_path.iterdir())


def test_advice_for_mujoco_alone(policy, tmp_path, monkeypatch):
    def no_display():
        raise RuntimeError("no display")

    class Model:
        __module__ = "mujoco._structs"

    original = Odd.__init__

    def init(self, **options):
        original(self, **options)
        self.model = Model()

    monkeypatch.setattr(Odd, "__init__", init)
    with pytest.raises(RuntimeError, match=r"no display\. MuJoCo needs OpenGL.*MUJOCO_GL=egl"):
        film(policy, tmp_path / "a.gif", environment_kwargs={"draw": no_display})
