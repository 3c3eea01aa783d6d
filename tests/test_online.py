"""Learning online, on environments whose every step is known."""

import dataclasses
import warnings

import equinox as eqx
import gymnasium
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from gymnasium import spaces
from gymnasium.vector import AutoresetMode, SyncVectorEnv

from floq_eqx.agents import RECIPES, rebrac, sac
from floq_eqx.data import Batch, Replay
from floq_eqx.data.environments import make_box_environment
from floq_eqx.networks import MLPConfig
from floq_eqx.training import DivergedError, EnvironmentFaultError, fit_online

from .runs import small_agent

KEY = jax.random.key(0)
SMALL = MLPConfig((8,), layer_norm=True)
AGENT = sac(critic={"network": SMALL}, policy={"network": SMALL}, action_size=1)


class Clock(gymnasium.Env):
    """Observes (which episode of its own, how many steps into it); a reward of that number.

    Odd episodes end after `length` steps by termination, even ones by truncation.
    """

    observation_space = spaces.Box(-np.inf, np.inf, (2,), np.float32)
    action_space = spaces.Box(-1, 1, (1,), np.float32)

    def __init__(self, length, fault=None):
        self.length, self.fault = length, fault
        self.episode, self.total, self.seeds = 0, 0, []

    def look(self):
        return np.array([self.episode, self.now], np.float32)

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.seeds.append(seed)
        self.episode, self.now = self.episode + 1, 0
        return self.look(), {}

    def step(self, action):
        self.now, self.total = self.now + 1, self.total + 1
        over, odd = self.now == self.length, self.episode % 2 == 1
        observation, reward = self.look(), float(self.now)
        if self.total == 7 and self.fault is not None:
            observation, reward = self.fault(observation, reward)
        return observation, reward, over and odd, over and not odd, {}


def clocks(*lengths, fault=None, mode=AutoresetMode.DISABLED):
    make = [lambda n=n: Clock(n, fault) for n in lengths]
    return SyncVectorEnv(make, autoreset_mode=mode)


def fit(environments=None, *, agent=AGENT, num_steps=24, replay=None, state=None, **options):
    environments = environments or clocks(3)
    replay = replay or Replay.empty(100, 2, 1)
    state = state or agent.init(2, 1, key=KEY)
    settings = {"batch_size": 4, "key": KEY, "warmup": 6} | options
    return fit_online(agent, state, replay, environments, num_steps=num_steps, **settings)


def assert_equal(ours, theirs):
    for a, b in zip(jax.tree.leaves(ours), jax.tree.leaves(theirs), strict=True):
        np.testing.assert_array_equal(a, b)


@pytest.mark.parametrize("lengths", [(3,), (2, 3, 5)])
def test_every_transition_is_the_environments_own(lengths):
    _, replay = fit(clocks(*lengths), num_steps=30)
    assert int(replay.size) == 30
    held = jax.tree.map(np.asarray, replay.data)
    for index, length in enumerate(lengths):
        rows = slice(index, 30, len(lengths))
        count = 30 // len(lengths)
        episode, now = np.divmod(np.arange(count), length)
        np.testing.assert_array_equal(held.observation[rows], np.stack([episode + 1, now], 1))
        # The last one of an episode is its own, not the first of the next.
        following = np.stack([episode + 1, now + 1], 1)
        np.testing.assert_array_equal(held.next_observation[rows], following)
        np.testing.assert_array_equal(held.reward[rows], now + 1)
        terminated = (now + 1 == length) & (episode % 2 == 0)
        np.testing.assert_array_equal(held.mask[rows], 1 - terminated)


def test_updates_for_each_step_after_the_warmup():
    for environments, utd in ((clocks(3), 1), (clocks(3), 4), (clocks(2, 3, 5), 2)):
        state, _ = fit(environments, utd=utd, num_steps=24)
        assert int(state.step) == (24 - 6) * utd


def test_chunks_and_callbacks_change_nothing():
    seen = []
    whole, replay = fit()
    pieces, again = fit(chunk=5, callbacks=[seen.append])
    assert_equal((whole, replay), (pieces, again))
    assert [now.step for now in seen] == [5, 10, 15, 20, 24]
    assert seen[0].metrics == {}
    assert np.isfinite(seen[-1].metrics["critic_loss"])
    assert [e for now in seen for e in now.episodes] == [{"return": 6.0, "length": 3.0}] * 8


def test_what_is_given_stays_as_it_was():
    state, replay = AGENT.init(2, 1, key=KEY), Replay.empty(100, 2, 1)
    fit(state=state, replay=replay)
    assert int(state.step) == int(replay.size) == 0
    assert np.isfinite(jax.tree.leaves(state.params)[0]).all()


def test_a_run_that_goes_on_meets_other_episodes():
    first = clocks(3)
    state, replay = fit(first, num_steps=12)
    second = clocks(3)
    fit(second, num_steps=24, start=12, state=state, replay=replay)
    # The first run's last episode did not begin: it is the second's first.
    seeds = first.envs[0].seeds[:-1] + second.envs[0].seeds
    assert len(set(seeds)) == len(seeds) == 9


@pytest.mark.parametrize(
    ("fault", "message"),
    [
        (lambda o, r: (o * np.nan, r), "observation is NaN or infinite"),
        (lambda o, r: (o, np.inf), "reward is"),
        (lambda o, r: (o[:1].repeat(3), r), "step raised ValueError|shape of its observations"),
        (lambda o, r: 1 / 0, "step raised ZeroDivisionError: division by zero"),
    ],
)
def test_faults_name_the_step_and_keep_what_was_learned(fault, message):
    with pytest.raises(EnvironmentFaultError, match=message) as caught:
        fit(clocks(5, fault=fault), warmup=2)
    assert caught.value.step == 6
    now = caught.value.progress
    assert now is not None
    assert (now.step, int(now.replay.size), int(now.state.step)) == (6, 6, 4)


def test_offline_data_in_the_mixture():
    data = Batch(
        observation=jnp.zeros((8, 2)),
        action=jnp.zeros((8, 1)),
        reward=jnp.full(8, jnp.nan),  # a batch with any of it shows
        mask=jnp.ones(8),
        next_observation=jnp.zeros((8, 2)),
    )
    with pytest.raises(DivergedError):
        fit(offline=data, offline_fraction=0.5)
    state, _ = fit(offline=data, offline_fraction=0.0)
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(state.params))
    fine = dataclasses.replace(data, reward=jnp.ones(8))
    _, replay = fit(replay=Replay.from_data(fine, 20), num_steps=30)
    np.testing.assert_array_equal(replay.data.reward[:8], 1)
    np.testing.assert_array_equal(replay.data.observation[:8], 0)


def test_divergence_names_the_step_of_the_environment():
    zeros = jnp.zeros((8, 2)), jnp.zeros((8, 1))
    data = Batch(*zeros, jnp.full(8, jnp.nan), jnp.ones(8), zeros[0])
    with pytest.raises(DivergedError, match=r"at update 1, after environment step 7\. ") as caught:
        fit(offline=data, utd=2, chunk=1)
    assert (caught.value.step, caught.value.env_step) == (1, 7)
    state = jax.tree.map(
        lambda x: x * jnp.asarray(jnp.nan, x.dtype) if eqx.is_inexact_array(x) else x,
        AGENT.init(2, 1, key=KEY),
    )
    with pytest.raises(DivergedError, match=r"action .* at update 0, after environment step 0\. "):
        fit(state=state, warmup_with="policy")


@pytest.mark.parametrize("name", ["c51", "floq"])
def test_rewards_that_the_agent_is_not_made_for(name):
    """Said once, after the first chunk that shows it."""
    agent = small_agent(name, action_size=1, critic={"reward_min": 0.0, "reward_max": 3.0})
    state = agent.init(2, 1, key=KEY)
    options = {"agent": agent, "state": state, "warmup": 99, "num_steps": 12, "chunk": 3}
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        fit(clocks(3, 2), **options | {"chunk": 4})
    with pytest.warns(UserWarning, match="reward_min, reward_max") as caught:
        fit(clocks(5), **options)
    assert len(caught) == 1
    text = str(caught[0].message)
    assert "2 of 6 rewards of the environment so far lie outside" in text
    assert "[0.0, 3.0]: they are between 1.0 and 5.0" in text
    assert "--reward-max" in text


def test_sizes_that_do_not_agree():
    with pytest.raises(ValueError, match=r"state is made for observations of 4 .* they have 2"):
        fit(state=AGENT.init(4, 1, key=KEY))
    with pytest.raises(
        ValueError, match=r"TD x TanhGaussian is made for actions of 1 .* data have 3"
    ):
        fit(replay=Replay.empty(9, 2, 3))
    zeros = jnp.zeros((8, 2)), jnp.zeros((8, 1)), jnp.zeros(8), jnp.ones(8), jnp.zeros((8, 2))
    cut = eqx.tree_at(lambda b: b.reward, Batch(*zeros), jnp.zeros(4))
    with pytest.raises(ValueError, match=r"`reward` has the shape \(4,\), expected \(8,\)"):
        fit(offline=cut)


def test_what_cannot_be_done_says_so():
    with pytest.raises(ValueError, match="autoreset_mode"):
        fit(clocks(3, mode=AutoresetMode.NEXT_STEP))
    with pytest.raises(ValueError, match="next action"):
        fit(agent=rebrac(critic={"network": SMALL}, policy={"network": SMALL}, action_size=1))
    with pytest.raises(ValueError, match="utd"):
        fit(utd=0)


@pytest.mark.parametrize("name", ["sac", "iql", "rebrac", "bc"])
def test_exploring(name):
    """Policies that are evaluated by one action a state draw others to explore; a clone collects
    what it clones.
    """
    networks = {"critic": {"network": SMALL}} if name != "bc" else {}
    agent = RECIPES[name](policy={"network": SMALL}, action_size=1, **networks)
    state = agent.init(2, 1, key=KEY)
    keys = jax.random.split(KEY, 50)
    actions = jax.vmap(lambda k: agent.explore(state, jnp.ones(2), key=k))(keys)
    assert np.abs(actions).max() <= 1
    assert (np.unique(actions).size > 1) == (name != "bc")
    evaluated = jax.vmap(lambda k: agent.act(state, jnp.ones(2), key=k))(keys)
    assert np.unique(evaluated).size == 1


class TestBoxEnvironments:
    def test_actions_are_rescaled(self):
        environment = make_box_environment("Pendulum-v1")
        assert environment.action_space.low == -1
        assert environment.action_space.high == 1
        observation, _ = environment.reset(seed=0)
        assert (observation.dtype, observation.shape) == (np.float32, (3,))
        raw = gymnasium.make("Pendulum-v1")
        raw.reset(seed=0)
        ours = environment.step(np.array([0.5], np.float32))[0]
        np.testing.assert_allclose(ours, raw.step(np.array([1.0], np.float32))[0], rtol=1e-6)

    @pytest.mark.parametrize(
        ("name", "message"), [("CartPole-v1", "not a box"), ("Nowhere-v3", "neither an OGBench")]
    )
    def test_what_agents_cannot_act_in(self, name, message):
        with pytest.raises(ValueError, match=message):
            make_box_environment(name)
