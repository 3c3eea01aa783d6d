"""Rollouts: against an environment whose episodes are known, and against OGBench's."""

import dataclasses
import functools

import gymnasium
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from gymnasium.vector import AutoresetMode, SyncVectorEnv
from PIL import Image

from floq_eqx.agents import fql
from floq_eqx.evaluation import Evaluation, evaluate, make_environments
from floq_eqx.networks import MLPConfig
from floq_eqx.recording import record
from floq_eqx.training import EnvironmentFaultError

CUBE = "cube-single-play-singletask-task1-v0"


class Counting(gymnasium.Env):
    """Seed s has 2 + s % 3 steps, pays 10 s + t for step t, and succeeds at the end if s is odd.

    It notes the actions, and refuses what a real environment would not forgive.
    """

    observation_space = gymnasium.spaces.Box(-np.inf, np.inf, (3,), np.float32)
    action_space = gymnasium.spaces.Box(-1.0, 1.0, (2,), np.float32)

    def __init__(self, tells=True, bad=None):
        self.tells, self.bad, self.time = tells, bad, None
        self.actions = {}

    def _observation(self):
        value = np.nan if (self.seed, self.time) == self.bad else 0.1
        return np.array([self.seed / 100, self.time / 10, value], np.float32)

    def reset(self, *, seed=None, options=None):
        self.seed, self.time = seed, 0
        self.actions[seed] = []
        return self._observation(), {}

    def step(self, action):
        if self.time is None:
            raise RuntimeError("stepped after the end")
        self.actions[self.seed].append(np.array(action))
        self.time += 1
        observation, reward = self._observation(), 10.0 * self.seed + self.time
        done = self.time == 2 + self.seed % 3
        # Success comes and goes on the way: only the last step's counts.
        info = {"success": self.seed % 2 == 1 if done else self.seed % 2 == 0}
        if done:
            self.time = None
        truncated = done and self.seed % 2 == 0
        return observation, reward, done and not truncated, truncated, info if self.tells else {}


def counting(num, **kwargs):
    make = functools.partial(Counting, **kwargs)
    return SyncVectorEnv([make] * num, autoreset_mode=AutoresetMode.DISABLED)


@pytest.fixture(scope="module")
def policy():
    network = MLPConfig((8,))
    agent = fql(critic={"network": network}, policy={"network": network, "flow_steps": 1})

    def make(observation_size, action_size):
        own = dataclasses.replace(agent, action_size=action_size)
        return own, own.init(observation_size, action_size, key=jax.random.key(0))

    return make


@pytest.mark.parametrize("num", [1, 4, 9])
def test_episodes_are_counted_exactly(policy, num):
    environments = counting(num)
    result = evaluate(*policy(3, 2), environments, num_episodes=6, seed=3)
    seeds = np.arange(3, 9)
    lengths = 2 + seeds % 3
    np.testing.assert_array_equal(result.lengths, lengths)
    np.testing.assert_array_equal(
        result.returns, 10 * seeds * lengths + lengths * (lengths + 1) / 2
    )
    np.testing.assert_array_equal(result.success, seeds % 2)


def test_actions_do_not_depend_on_the_number_of_environments(policy):
    def actions(num):
        environments = counting(num)
        evaluate(*policy(3, 2), environments, num_episodes=6, seed=3)
        taken = {}
        for environment in environments.envs:
            taken |= {s: np.array(a) for s, a in environment.actions.items() if 3 <= s < 9}
        return taken

    one, again = actions(1), actions(1)
    for num in (2, 5, 8):
        many = actions(num)
        assert many.keys() == one.keys()
        for seed in one:
            np.testing.assert_array_equal(many[seed], one[seed])
            np.testing.assert_array_equal(again[seed], one[seed])
    # Each episode and each step draws its own noise.
    assert len({row.tobytes() for rows in one.values() for row in rows}) == sum(
        map(len, one.values())
    )


def test_an_environment_that_does_not_tell_success(policy):
    result = evaluate(*policy(3, 2), counting(2, tells=False), num_episodes=3)
    assert np.isnan(result.success).all()
    assert np.isnan(result.summary()["success"])


@pytest.mark.parametrize("num", [1, 3])
def test_what_is_not_finite_is_named(policy, num):
    with pytest.raises(EnvironmentFaultError, match=r"in episode 2 at step 1: its obs.* is NaN"):
        evaluate(*policy(3, 2), counting(num, bad=(7, 1)), num_episodes=4, seed=5)
    # An environment that nobody looks at any more does not matter.
    evaluate(*policy(3, 2), counting(num, bad=(9, 1)), num_episodes=4, seed=5)
    agent, state = policy(3, 2)
    broken = jax.tree.map(lambda x: jnp.full_like(x, jnp.nan), state.params)
    with pytest.raises(FloatingPointError, match="in episode 0 at step 0:"):
        evaluate(agent, dataclasses.replace(state, params=broken), counting(num))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"num_episodes": 0}, "num_episodes must be a whole number of at least 1, got 0"),
        ({"seed": -1}, r"seed must be in \[0, 2\*\*31\), got -1"),
        ({"seed": 2**31}, "seed must be in"),
    ],
)
def test_options_that_make_no_sense(policy, options, message):
    with pytest.raises(ValueError, match=message):
        evaluate(*policy(3, 2), counting(2), **options)


def test_environments_that_reset_themselves_are_refused(policy):
    with pytest.raises(ValueError, match=r"autoreset_mode=AutoresetMode.DISABLED"):
        evaluate(*policy(3, 2), SyncVectorEnv([Counting]))


def test_summary():
    result = Evaluation(np.array([1.0, 0.0]), np.array([-3.0, -5.0]), np.array([10, 20]))
    assert result.summary() == {
        **{"episodes": 2, "success": 0.5, "success_std": 0.5, "returns": -4.0},
        **{"returns_std": 1.0, "lengths": 15.0, "lengths_std": 5.0},
    }


# ---------------------------------------------------------------------------------------- OGBench


def run(policy, num, **kwargs):
    environments = make_environments(CUBE, num, max_episode_steps=15, **kwargs)
    try:
        size = environments.single_observation_space.shape[0]
        agent, state = policy(size, environments.single_action_space.shape[0])
        seen = []

        def noted(name):
            original = getattr(environments, name)

            def call(*args, **options):
                out = original(*args, **options)
                seen.append(np.array(out[0]))
                return out

            setattr(environments, name, call)

        noted("step")
        return evaluate(agent, state, environments, num_episodes=3, seed=1), seen
    finally:
        environments.close()


def test_ogbench_is_the_same_alone_side_by_side_and_in_processes(policy):
    result, seen = run(policy, 3)
    other, others_seen = run(policy, 3, asynchronous=True)
    np.testing.assert_array_equal(seen, others_seen)
    for name in ("success", "returns", "lengths"):
        np.testing.assert_array_equal(getattr(other, name), getattr(result, name))
    alone, alone_seen = run(policy, 1)
    # One after the other: the three episodes' observations, to the bit.
    assert [len(alone_seen), len(seen)] == [45, 15]
    for episode in range(3):
        np.testing.assert_array_equal(
            np.array(alone_seen)[15 * episode : 15 * (episode + 1), 0],
            np.array(seen)[:, episode],
        )
    np.testing.assert_array_equal(alone.returns, result.returns)
    assert list(result.lengths) == [15, 15, 15]


@pytest.mark.parametrize(("timing", "length"), [("pre", 2), ("post", 1), (None, 2)])
def test_success_timing(policy, timing, length):
    environments = make_environments(CUBE, 1, success_timing=timing)
    try:
        agent, state = policy(environments.single_observation_space.shape[0], 5)
        reset = environments.reset

        def above_the_goal(**kwargs):
            out = reset(**kwargs)
            inner = environments.envs[0].unwrapped
            # It is out of tolerance now (4 cm), and falls into it within a step.
            position = inner._data.joint("object_joint_0").qpos
            position[:3] = inner._data.mocap_pos[0] + np.array([0.0, 0.0, 0.045])
            return out

        environments.reset = above_the_goal
        result = evaluate(agent, state, environments, num_episodes=1)
    finally:
        environments.close()
    assert list(result.success) == [1.0]
    assert list(result.lengths) == [length]


def test_unknown_names_and_sizes():
    with pytest.raises(ValueError, match="Did you mean cube-single-play-singletask-task1-v0"):
        make_environments("cube-singel-play-singletask-task1-v0", 1)
    with pytest.raises(ValueError, match="at least 1, got 0"):
        make_environments(CUBE, 0)


def test_record(policy, tmp_path):
    path = tmp_path / "new" / "episode.gif"
    try:
        assert record(*policy(28, 5), CUBE, path, seed=2) == path
    except RuntimeError as error:
        pytest.skip(str(error))
    with Image.open(path) as image:
        assert 100 < image.n_frames <= 201  # frames that are alike become one that lasts longer
    assert [p.name for p in path.parent.iterdir()] == ["episode.gif"]


def test_a_machine_that_cannot_render(policy, tmp_path, monkeypatch):
    from ogbench.manipspace.envs.cube_env import CubeEnv

    def render(self):
        raise ImportError("no OpenGL")

    monkeypatch.setattr(CubeEnv, "render", render)
    with pytest.raises(RuntimeError, match=r"cannot render.*no OpenGL.*MUJOCO_GL=egl"):
        record(*policy(28, 5), CUBE, tmp_path / "x.gif")
    assert not list(tmp_path.iterdir())
