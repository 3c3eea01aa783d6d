"""The baselines' own pieces against closed forms; their parity is in `test_parity`."""

import dataclasses

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from floq_eqx.actors import GaussianActor
from floq_eqx.agents import BC, IFQL, IQL, IQN, BCFlow, ReBRAC, best_of
from floq_eqx.critics import member_quantiles, member_values
from floq_eqx.data import Batch
from floq_eqx.losses import expectile_loss, quantile_loss
from floq_eqx.networks import MLPConfig
from floq_eqx.training import train_steps

KEY = jax.random.key(0)
SMALL = MLPConfig((16,), layer_norm=True)


def minimum(loss, start=0.0):
    """Where gradient descent takes a scalar or an array."""
    optimiser = optax.adam(optax.cosine_decay_schedule(0.1, 2000))

    def step(carry, _):
        x, state = carry
        updates, state = optimiser.update(jax.grad(loss)(x), state)
        return (optax.apply_updates(x, updates), state), None

    x = jnp.asarray(start)
    with jax.numpy_dtype_promotion("standard"):
        return jax.lax.scan(step, (x, optimiser.init(x)), None, length=2000)[0][0]


def transitions(size=64, **changes):
    keys = jax.random.split(KEY, 4)
    batch = Batch(
        observation=jax.random.normal(keys[0], (size, 3)),
        action=jax.random.uniform(keys[1], (size, 2), minval=-1),
        reward=jax.random.normal(keys[2], (size,)),
        mask=jnp.zeros(size),
        next_observation=jax.random.normal(keys[3], (size, 3)),
        next_action=jnp.zeros((size, 2)),
    )
    return dataclasses.replace(batch, **changes)


class TestLosses:
    samples = jnp.asarray(np.random.default_rng(0).gamma(2.0, size=400), jnp.float32)

    def test_expectile_of_half_is_the_mean(self):
        def loss(x, tau):
            return jnp.mean(expectile_loss(jnp.full(400, x), self.samples, tau))

        mean = minimum(lambda x: loss(x, 0.5))
        np.testing.assert_allclose(mean, self.samples.mean(), atol=1e-3)
        high = float(minimum(lambda x: loss(x, 0.9)))
        # Its definition: tau of the mass of the distances is above it.
        above = np.maximum(np.asarray(self.samples) - high, 0).sum()
        below = np.maximum(high - np.asarray(self.samples), 0).sum()
        np.testing.assert_allclose(0.9 * above, 0.1 * below, rtol=1e-2)

    def test_quantile_huber_loss_finds_quantiles_and_the_squared_one_expectiles(self):
        levels = jnp.array([[0.1, 0.5, 0.9]])

        def loss(x, threshold):
            return quantile_loss(
                x[None, None], self.samples[None], levels, huber_threshold=threshold
            )

        quantiles = minimum(lambda x: loss(x, 1e-3), jnp.ones(3))
        expected = np.quantile(self.samples, levels[0])
        np.testing.assert_allclose(quantiles, expected, atol=0.05)
        expectiles = minimum(lambda x: loss(x, None), jnp.ones(3))
        np.testing.assert_allclose(expectiles[1], self.samples.mean(), atol=1e-3)

    def test_quantile_loss_by_hand(self):
        prediction, target = jnp.array([[[0.0, 4.0]]]), jnp.array([[1.0, 2.0]])
        levels = jnp.array([[0.25, 0.75]])
        # delta: 1, 2 at level 0.25; -3, -2 at level 0.75.
        squared = 0.25 * (1 + 4) / 2 + 0.25 * (9 + 4) / 2
        np.testing.assert_allclose(quantile_loss(prediction, target, levels), squared)
        huber = 0.25 * (0.5 + 1.5) / 2 + 0.25 * (2.5 + 1.5) / 2
        found = quantile_loss(prediction, target, levels, huber_threshold=1.0)
        np.testing.assert_allclose(found, huber)
        gradient = jax.grad(lambda t: quantile_loss(prediction, t, levels))(target)
        assert not np.any(gradient)


class TestGaussian:
    def test_density(self):
        actor = GaussianActor(SMALL.build(3, 2, key=KEY))
        observation, action = jnp.ones(3), jnp.array([0.3, -0.2])
        distance = np.sum((action - actor(observation)) ** 2)
        expected = -0.5 * distance - np.log(2 * np.pi)
        np.testing.assert_allclose(actor.log_prob(observation, action), expected, rtol=1e-6)

    def test_squashed(self):
        network = SMALL.build(3, 2, key=KEY)
        mean = GaussianActor(network)(50 * jnp.ones(3))
        np.testing.assert_allclose(
            GaussianActor(network, squash=True)(50 * jnp.ones(3)), np.tanh(mean)
        )

    def test_small_outputs_at_first(self):
        wide, small = (
            MLPConfig((64,), output_scale=scale).build(3, 50, key=KEY) for scale in (1.0, 0.01)
        )
        ratio = np.std(small.output.weight) / np.std(wide.output.weight)
        np.testing.assert_allclose(ratio, 0.1, rtol=1e-5)


def test_bc_learns_the_mean_and_its_flow_the_actions():
    data = transitions()
    function = jnp.stack([jnp.sin(data.observation[:, 0]), 0 * data.observation[:, 0]], axis=1)
    data = dataclasses.replace(data, action=0.5 * function)
    for agent in (
        BC(actor=MLPConfig((64,)), learning_rate=3e-3, action_size=2),
        BCFlow(actor=MLPConfig((64,)), learning_rate=3e-3, action_size=2),
    ):
        state = agent.init(3, 2, key=KEY)
        state, _ = train_steps(agent, state, data, num_updates=1500, batch_size=64, key=KEY)
        act = jax.vmap(lambda o, key, a=agent, s=state: a.act(s, o, key=key))
        actions = act(data.observation, jax.random.split(KEY, len(data)))
        assert float(jnp.mean((actions - data.action) ** 2)) < 0.01, type(agent).__name__


class TestIql:
    def test_values_of_terminal_transitions(self):
        """Q is the reward; V at expectile 0.5 its mean over the actions of one observation."""
        data = transitions(observation=jnp.zeros((64, 3)))
        data = dataclasses.replace(data, reward=data.action[:, 0])
        agent = IQL(
            expectile=0.5, critic=MLPConfig((64,), layer_norm=True), actor=SMALL,
            learning_rate=3e-3, target_rate=0.05, action_size=2,
        )  # fmt: skip
        state = agent.init(3, 2, key=KEY)
        state, _ = train_steps(agent, state, data, num_updates=1500, batch_size=64, key=KEY)
        values = state.params.values
        q = member_values(values.critic, data.observation, data.action)
        np.testing.assert_allclose(q[0], data.reward, atol=0.15)
        v = values.value(jnp.zeros(3))
        np.testing.assert_allclose(v, data.reward.mean(), atol=0.1)

    def test_weights_of_the_better_actions(self):
        agent = IQL(critic=SMALL, actor=SMALL, alpha=2.0, action_size=2)
        state, data = agent.init(3, 2, key=KEY), transitions()
        params = state.params
        q = jnp.min(member_values(params.values.critic, data.observation, data.action), axis=0)
        v = jax.vmap(params.values.value)(data.observation)
        weight = jnp.minimum(jnp.exp(2 * (q - v)), 100)
        log_prob = jax.vmap(params.actor.log_prob)(data.observation, data.action)
        loss, _ = agent.actor_loss(params, data)
        np.testing.assert_allclose(loss, -jnp.mean(weight * log_prob), rtol=1e-5)

    @pytest.mark.parametrize("extraction", ["awr", "ddpgbc"])
    def test_the_policy_leaves_the_values_alone(self, extraction):
        agent = IQL(critic=SMALL, actor=SMALL, extraction=extraction, action_size=2)
        state, data = agent.init(3, 2, key=KEY), transitions()
        gradient = eqx.filter_grad(lambda p: agent.actor_loss(p, data)[0])(state.params)
        assert all(not np.any(leaf) for leaf in jax.tree.leaves(gradient.values))
        assert any(np.any(leaf) for leaf in jax.tree.leaves(gradient.actor))


def test_ifql_takes_the_best_of_its_flows_actions():
    agent = IFQL(critic=SMALL, actor=SMALL, flow_steps=2, num_candidates=64, action_size=2)
    one = dataclasses.replace(agent, num_candidates=1)
    state = agent.init(3, 2, key=KEY)

    def values(agent):
        def value(key):
            action = agent.act(state, jnp.ones(3), key=key)
            critic = state.params.values.critic
            return member_values(critic, jnp.ones((1, 3)), action[None]).min()

        return np.asarray(jax.vmap(value)(jax.random.split(KEY, 50)))

    assert values(agent).min() > np.median(values(one))
    assert np.array_equal(best_of(jnp.eye(3), jnp.array([0.0, 2.0, 1.0])), [0, 1, 0])


class TestRebrac:
    agent = ReBRAC(critic=SMALL, actor=SMALL, actor_every=3, target_rate=0.5, action_size=2)

    def test_actor_and_targets_wait(self):
        data = transitions(mask=jnp.ones(64))
        state = self.agent.init(3, 2, key=KEY)
        for step in range(4):
            noise = self.agent.noise(64, key=jax.random.key(step))
            new, _ = eqx.filter_jit(self.agent.update)(state, data, noise)
            moved = not eqx.tree_equal(new.targets, state.targets)
            # Before the first update targets and parameters are the same.
            assert moved == (step == 3)
            assert not eqx.tree_equal(new.params.critic, state.params.critic)
            state = new

    def test_target_is_penalised_and_blurred_within_limits(self):
        agent = dataclasses.replace(self.agent, alpha_critic=2.0, actor_noise=10.0)
        data = transitions(mask=jnp.ones(64))
        state = agent.init(3, 2, key=KEY)
        noise = agent.noise(64, key=KEY)
        mean = jax.vmap(state.targets.actor)(data.next_observation)
        action = jnp.clip(mean + jnp.clip(10 * noise.target_policy, -0.5, 0.5), -1, 1)
        q = member_values(state.targets.critic, data.next_observation, action).min(axis=0)
        target = data.reward + 0.99 * (q - 2 * jnp.sum(action**2, axis=1))
        value = member_values(state.params.critic, data.observation, data.action)
        loss, _ = agent.critic_loss(state.params, state.targets, data, noise)
        np.testing.assert_allclose(loss, jnp.mean((value - target[None]) ** 2), rtol=1e-5)

    def test_needs_next_actions(self):
        state, noise = self.agent.init(3, 2, key=KEY), self.agent.noise(64, key=KEY)
        with pytest.raises(ValueError, match="with_next_action=True"):
            self.agent.update(state, transitions(next_action=None), noise)


def test_iqn_learns_the_quantiles_of_a_known_return():
    """Terminal transitions of one observation and action whose reward is uniform in [0, 1]."""
    size = 2000
    data = transitions(
        size,
        observation=jnp.zeros((size, 3)),
        action=jnp.zeros((size, 2)),
        reward=jax.random.uniform(KEY, (size,)),
    )
    agent = IQN(
        loss_kind="huber", huber_threshold=0.01, critic=MLPConfig((32,), layer_norm=True),
        actor=SMALL, flow_steps=1, num_noise=4, num_terms=8, learning_rate=3e-3, action_size=2,
        ensemble_size=1, decay_updates=2000,
    )  # fmt: skip
    state = agent.init(3, 2, key=KEY)
    state, metrics = train_steps(agent, state, data, num_updates=2000, batch_size=64, key=KEY)
    levels = jnp.linspace(0.1, 0.9, 9)[None]
    zeros = jnp.zeros((1, 3)), jnp.zeros((1, 2))
    quantiles = member_quantiles(state.params.critic, *zeros, levels)
    np.testing.assert_allclose(quantiles[0], levels, atol=0.08)
    assert np.isfinite(metrics["loss"]).all()
