"""SAC against closed forms: its policy's density, its terms, a one-step problem, and Pendulum."""

import dataclasses

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.stats
from gymnasium.vector import AutoresetMode, SyncVectorEnv

from floq_eqx.agents import Parts, sac, with_options
from floq_eqx.data import Batch, Replay
from floq_eqx.data.environments import make_box_environment
from floq_eqx.evaluation import evaluate
from floq_eqx.modules import TanhGaussianActor, member_values
from floq_eqx.networks import MLPConfig
from floq_eqx.training import fit_online, train_steps

KEY = jax.random.key(0)
SMALL = MLPConfig((16,), layer_norm=True)


def constant_actor(mean, log_std):
    """An actor of these in every state."""
    network = SMALL.build(3, 2 * len(mean), key=KEY)
    output = network.output
    bias = jnp.concatenate([jnp.asarray(mean), jnp.asarray(log_std)])
    network = eqx.tree_at(
        lambda n: (n.output.weight, n.output.bias), network, (0 * output.weight, bias)
    )
    return TanhGaussianActor(network)


def transitions(size=64, **changes):
    keys = jax.random.split(KEY, 4)
    batch = Batch(
        observation=jax.random.normal(keys[0], (size, 3)),
        action=jax.random.uniform(keys[1], (size, 2), minval=-1),
        reward=jax.random.normal(keys[2], (size,)),
        mask=(jnp.arange(size) % 4 > 0).astype(jnp.float32),
        next_observation=jax.random.normal(keys[3], (size, 3)),
    )
    return dataclasses.replace(batch, **changes)


class TestTanhGaussian:
    @pytest.mark.parametrize(("mean", "log_std"), [(0.0, 0.0), (1.5, -1.0), (-0.7, 0.5)])
    def test_density_integrates_to_one(self, mean, log_std):
        actor = constant_actor([mean], [log_std])
        noise = jnp.linspace(-8, 8, 4001)[:, None]
        sample = jax.vmap(lambda e: actor.act_with_log_prob(jnp.ones(3), e))
        action, log_prob = (np.asarray(x, np.float64) for x in sample(noise))
        assert np.trapezoid(np.exp(log_prob), action[:, 0]) == pytest.approx(1, abs=2e-3)

    def test_change_of_variables(self):
        mean, log_std = np.array([0.3, -1.0]), np.array([-0.5, 0.2])
        actor = constant_actor(mean.astype(np.float32), log_std.astype(np.float32))
        noise = jax.random.normal(KEY, (100, 2))
        action, log_prob = jax.vmap(lambda e: actor.act_with_log_prob(jnp.ones(3), e))(noise)
        raw = mean + np.exp(log_std) * np.asarray(noise, np.float64)
        density = scipy.stats.norm.pdf(raw, mean, np.exp(log_std)) / (1 - np.tanh(raw) ** 2)
        np.testing.assert_allclose(action, np.tanh(raw), rtol=1e-4, atol=1e-6)
        np.testing.assert_allclose(log_prob, np.log(density).sum(axis=1), rtol=1e-5, atol=1e-4)
        np.testing.assert_array_equal(actor.act(jnp.ones(3), noise[0]), action[0])

    @pytest.mark.parametrize("sign", [-1.0, 1.0])
    def test_far_tails(self, sign):
        """There the action is 1, and the density's slope 4 exp(-2 |u|)."""
        actor = constant_actor([0.0], [2.0])
        noise = jnp.array([50 * sign])

        def log_prob(actor):
            return actor.act_with_log_prob(jnp.ones(3), noise)[1]

        value, gradient = eqx.filter_value_and_grad(log_prob)(actor)
        raw = 50 * np.exp(2.0)
        expected = scipy.stats.norm.logpdf(50) - 2 - (np.log(4) - 2 * raw)
        np.testing.assert_allclose(value, expected, rtol=1e-5)
        assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(gradient))
        assert actor.act(jnp.ones(3), noise) == sign

    def test_deviation_is_bounded(self):
        mean, log_std = constant_actor([0.5, 0.5], [30.0, -30.0])(jnp.ones(3))
        np.testing.assert_array_equal(mean, [0.5, 0.5])
        np.testing.assert_array_equal(log_std, [2, -20])


class TestLosses:
    agent = sac(
        critic={"network": SMALL, "ensemble_size": 5, "target_members": 2},
        policy={"network": SMALL, "initial_temperature": 0.3}, action_size=2,
    )  # fmt: skip

    def start(self):
        return self.agent.init(3, 2, key=KEY), self.agent.noise(64, key=KEY), transitions()

    @pytest.mark.parametrize("backup_entropy", [True, False])
    def test_target_is_the_lower_of_two_members(self, backup_entropy):
        agent = with_options(self.agent, {"policy": {"backup_entropy": backup_entropy}})
        state, noise, data = self.start()
        state = dataclasses.replace(state, targets=agent.init(3, 2, key=jax.random.key(1)).targets)
        act = jax.vmap(state.params.policy.actor.act_with_log_prob)
        next_action, log_prob = act(data.next_observation, noise.action)
        q = np.asarray(member_values(state.targets.critic, data.next_observation, next_action))
        value, pairs = np.zeros(64), set()
        for i, scores in enumerate(np.asarray(noise.critic)):
            pair = np.argsort(scores)[-2:]
            pairs.add(frozenset(pair.tolist()))
            value[i] = q[pair, i].min() - 0.3 * backup_entropy * log_prob[i]
        assert len(pairs) == 10  # all there are
        target = np.asarray(data.reward) + 0.99 * np.asarray(data.mask) * value
        predicted = np.asarray(member_values(state.params.critic, data.observation, data.action))
        both = Parts(data, data)
        loss, _ = agent.critic_loss(state.params, state.targets, both, noise)
        np.testing.assert_allclose(loss, np.mean((predicted - target) ** 2), rtol=1e-5)

    def test_actor_and_temperature_by_hand(self):
        state, noise, data = self.start()
        act = jax.vmap(state.params.policy.actor.act_with_log_prob)
        action, log_prob = act(data.observation, noise.policy)
        q = member_values(state.params.critic, data.observation, action)
        _, metrics = self.agent.loss(state.params, state.targets, data, noise)
        expected = jnp.mean(0.3 * log_prob - jnp.mean(q, axis=0))
        np.testing.assert_allclose(metrics["actor_loss"], expected, rtol=1e-5)
        expected = 0.3 * (-jnp.mean(log_prob) + 0.5 * 2)
        np.testing.assert_allclose(metrics["temperature_loss"], expected, rtol=1e-5)

    @pytest.mark.parametrize("term", ["critic", "actor", "log_temperature"])
    def test_every_term_reaches_its_own_part_alone(self, term):
        state, noise, data = self.start()
        both = Parts(data, data)

        def loss(params):
            if term == "critic":
                return self.agent.critic_loss(params, state.targets, both, noise)[0]
            _, metrics = self.agent.policy_loss(params, state.targets, both, noise)
            return metrics["actor_loss" if term == "actor" else "temperature_loss"]

        gradient = eqx.filter_grad(loss)(state.params)
        parts = {
            "critic": gradient.critic,
            "actor": gradient.policy.actor,
            "log_temperature": gradient.policy.log_temperature,
        }
        for name, part in parts.items():
            reached = any(np.any(leaf) for leaf in jax.tree.leaves(part))
            assert reached == (name == term), name

    def test_policy_loss_is_the_sum_of_its_terms(self):
        state, noise, data = self.start()
        both = Parts(data, data)
        loss, metrics = self.agent.policy_loss(state.params, state.targets, both, noise)
        expected = metrics["actor_loss"] + metrics["temperature_loss"]
        np.testing.assert_allclose(loss, expected, rtol=1e-6)

    def test_is_evaluated_by_its_mean(self):
        state, *_ = self.start()
        mean, _ = state.params.policy.actor(jnp.ones(3))
        for seed in range(2):
            key = jax.random.key(seed)
            action = self.agent.act(state, jnp.ones(3), key=key)
            np.testing.assert_array_equal(action, jnp.tanh(mean))
            assert not np.allclose(self.agent.explore(state, jnp.ones(3), key=key), action)

    @pytest.mark.parametrize(
        ("changes", "message"),
        [
            ({"critic": {"target_members": 6}}, "at most ensemble_size = 5, got 6"),
            ({"critic": {"target_members": 0}}, "target_members"),
            ({"policy": {"initial_temperature": 0.0}}, "initial_temperature"),
            ({"policy": {"entropy_per_component": float("nan")}}, "entropy_per_component"),
        ],
    )
    def test_bad_hyperparameters(self, changes, message):
        with pytest.raises(ValueError, match=message):
            with_options(self.agent, changes)


@pytest.mark.usefixtures("optimised")
def test_finds_the_maximum_entropy_policy_of_one_step():
    """With the reward -(a - b)² the best density is exp(r / α), all but a Gaussian around b; its
    deviation follows from the entropy that the temperature aims at, and gives the temperature.
    """
    size, best = 2000, 0.3
    action = jax.random.uniform(KEY, (size, 1), minval=-1)
    reward = -((action[:, 0] - best) ** 2)
    nowhere = jnp.zeros((size, 3))
    data = Batch(nowhere, action, reward, jnp.zeros(size), nowhere)
    agent = sac(
        critic={"network": MLPConfig((64, 64), layer_norm=True)},
        policy={"network": SMALL, "initial_temperature": 0.1}, learning_rate=3e-3, action_size=1,
    )  # fmt: skip
    state = agent.init(3, 1, key=KEY)
    state, metrics = train_steps(agent, state, data, num_updates=3000, batch_size=256, key=KEY)
    entropy = float(np.mean(metrics["entropy"][-500:]))
    assert entropy == pytest.approx(-0.5, abs=0.03)

    temperature = float(jnp.exp(state.params.policy.log_temperature))
    deviation = np.exp(-0.5) / np.sqrt(2 * np.pi * np.e)
    assert temperature == pytest.approx(2 * deviation**2, rel=0.1)
    grid = np.linspace(-1, 1, 20_001)
    density = np.exp(-((grid - best) ** 2) / temperature)
    density /= np.trapezoid(density, grid)
    mean = np.trapezoid(density * grid, grid)
    spread = np.sqrt(np.trapezoid(density * (grid - mean) ** 2, grid))
    noise = jax.random.normal(KEY, (20_000, 1))
    drawn = np.asarray(jax.vmap(lambda e: state.params.policy.actor.act(jnp.zeros(3), e))(noise))
    assert drawn.mean() == pytest.approx(mean, abs=0.02)
    assert drawn.std() == pytest.approx(spread, rel=0.1)


def pendulums(num):
    make = [lambda: make_box_environment("Pendulum-v1")] * num
    return SyncVectorEnv(make, autoreset_mode=AutoresetMode.DISABLED)


@pytest.mark.slow
@pytest.mark.usefixtures("optimised")
@pytest.mark.parametrize("seed", [0, 1, 2])
def test_learns_pendulum(seed):
    """Random actions get about -1200, what can be had is about -150."""
    network = MLPConfig((64, 64), layer_norm=True, norm_first=True)
    agent = sac(
        critic={"network": network, "discount": 0.95},
        policy={"network": MLPConfig((64, 64), output_scale=0.01)},
        learning_rate=3e-3, target_rate=0.01, action_size=1,
    )  # fmt: skip
    key = jax.random.key(seed)
    state, _ = fit_online(
        agent, agent.init(3, 1, key=key), Replay.empty(10_000, 3, 1), pendulums(1),
        num_steps=10_000, batch_size=128, key=key, warmup=500, seed=seed,
    )  # fmt: skip
    returns = evaluate(agent, state, pendulums(10), num_episodes=10, seed=1000).returns
    assert np.mean(returns) > -250, returns
