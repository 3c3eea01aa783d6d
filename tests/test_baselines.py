"""The baselines' own pieces against closed forms; their parity is in `test_parity`."""

import dataclasses

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from floq_eqx.agents import (
    Parts,
    Quantile,
    bc,
    bc_flow,
    ifql,
    iql,
    iqn,
    rebrac,
    with_options,
)
from floq_eqx.data import Batch
from floq_eqx.losses import expectile_loss, quantile_loss
from floq_eqx.modules import GaussianActor, member_quantiles, member_values
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
            GaussianActor(network, squash=True)(50 * jnp.ones(3)), jnp.tanh(mean)
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
        bc(policy={"network": MLPConfig((64,))}, learning_rate=3e-3, action_size=2),
        bc_flow(policy={"network": MLPConfig((64,))}, learning_rate=3e-3, action_size=2),
    ):
        state = agent.init(3, 2, key=KEY)
        state, _ = train_steps(agent, state, data, num_updates=1500, batch_size=64, key=KEY)
        act = jax.vmap(lambda o, key, a=agent, s=state: a.act(s, o, key=key))
        actions = act(data.observation, jax.random.split(KEY, len(data)))
        assert float(jnp.mean((actions - data.action) ** 2)) < 0.01, agent.name


def small_iql(**policy):
    policy = {"network": SMALL} | policy
    return iql(critic={"network": SMALL}, policy=policy, action_size=2)


class TestIql:
    def test_values_of_terminal_transitions(self):
        """Q is the reward; V at expectile 0.5 its mean over the actions of one observation."""
        data = transitions(observation=jnp.zeros((64, 3)))
        data = dataclasses.replace(data, reward=data.action[:, 0])
        agent = iql(
            critic={"expectile": 0.5, "network": MLPConfig((64,), layer_norm=True)},
            policy={"network": SMALL}, learning_rate=3e-3, target_rate=0.05, action_size=2,
        )  # fmt: skip
        state = agent.init(3, 2, key=KEY)
        state, _ = train_steps(agent, state, data, num_updates=1500, batch_size=64, key=KEY)
        values = state.params.critic
        q = member_values(values.q, data.observation, data.action)
        np.testing.assert_allclose(q[0], data.reward, atol=0.15)
        v = values.v(jnp.zeros(3))
        np.testing.assert_allclose(v, data.reward.mean(), atol=0.1)

    def policy_loss(self, agent, params, data):
        noise = agent.noise(len(data), key=KEY)
        return agent.policy_loss(params, agent.slow(params), Parts(data, data), noise)[0]

    def test_weights_of_the_better_actions(self):
        agent = small_iql(inverse_temperature=2.0)
        params, data = agent.init(3, 2, key=KEY).params, transitions()
        q = jnp.min(member_values(params.critic.q, data.observation, data.action), axis=0)
        v = jax.vmap(params.critic.v)(data.observation)
        weight = jnp.minimum(jnp.exp(2 * (q - v)), 100)
        log_prob = jax.vmap(params.policy.log_prob)(data.observation, data.action)
        loss = self.policy_loss(agent, params, data)
        np.testing.assert_allclose(loss, -jnp.mean(weight * log_prob), rtol=1e-5)

    def test_without_a_learned_v_it_is_q_at_the_mean(self):
        agent = with_options(small_iql(), {"critic": {"kind": "td", "network": SMALL}})
        params, data = agent.init(3, 2, key=KEY).params, transitions()
        mean = jnp.clip(jax.vmap(params.policy)(data.observation), -1, 1)
        q, v = (
            jnp.mean(member_values(params.critic, data.observation, a), axis=0)
            for a in (data.action, mean)
        )
        weight = jnp.minimum(jnp.exp(10 * (q - v)), 100)
        log_prob = jax.vmap(params.policy.log_prob)(data.observation, data.action)
        loss = self.policy_loss(agent, params, data)
        np.testing.assert_allclose(loss, -jnp.mean(weight * log_prob), rtol=1e-5)

    @pytest.mark.parametrize("extraction", ["awr", "ddpgbc"])
    def test_the_policy_leaves_the_values_alone(self, extraction):
        agent = small_iql(extraction=extraction)
        params, data = agent.init(3, 2, key=KEY).params, transitions()
        gradient = eqx.filter_grad(lambda p: self.policy_loss(agent, p, data))(params)
        assert all(not np.any(leaf) for leaf in jax.tree.leaves(gradient.critic))
        assert any(np.any(leaf) for leaf in jax.tree.leaves(gradient.policy))

    @pytest.mark.parametrize(
        "options",
        [
            {"extraction": "awr", "cloning_weight": 1.0},
            {"extraction": "ddpgbc", "inverse_temperature": 1.0},
        ],
    )
    def test_the_weight_of_the_other_extraction_is_refused(self, options):
        with pytest.raises(ValueError, match="means nothing with extraction"):
            small_iql(**options)


def test_ifql_takes_the_best_of_its_flows_actions():
    policy = {"network": SMALL, "flow_steps": 2}
    agent = ifql(
        critic={"network": SMALL}, policy=policy, selection={"num_candidates": 64}, action_size=2
    )
    one = bc_flow(policy=policy, action_size=2)
    state = agent.init(3, 2, key=KEY)

    def values(agent):
        def value(key):
            action = agent.act(state, jnp.ones(3), key=key)
            critic = state.params.critic.q
            return member_values(critic, jnp.ones((1, 3)), action[None]).min()

        return np.asarray(jax.vmap(value)(jax.random.split(KEY, 50)))

    assert values(agent).min() > np.median(values(one))


class TestRebrac:
    agent = rebrac(
        critic={"network": SMALL}, policy={"network": SMALL}, policy_every=3, target_rate=0.5,
        action_size=2,
    )  # fmt: skip

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
        agent = with_options(self.agent, {"policy": {"next_penalty": 2.0, "blur": 10.0}})
        data = transitions(mask=jnp.ones(64))
        state = agent.init(3, 2, key=KEY)
        noise = agent.noise(64, key=KEY)
        mean = jax.vmap(state.targets.policy)(data.next_observation)
        action = jnp.clip(mean + jnp.clip(10 * noise.action, -0.5, 0.5), -1, 1)
        q = member_values(state.targets.critic, data.next_observation, action).min(axis=0)
        target = data.reward + 0.99 * (q - 2 * jnp.sum(action**2, axis=1))
        value = member_values(state.params.critic, data.observation, data.action)
        both = Parts(data, data)
        loss, _ = agent.critic_loss(state.params, state.targets, both, noise)
        np.testing.assert_allclose(loss, jnp.mean((value - target[None]) ** 2), rtol=1e-5)

    def test_needs_next_actions(self):
        assert self.agent.uses_next_action
        state, noise = self.agent.init(3, 2, key=KEY), self.agent.noise(64, key=KEY)
        with pytest.raises(ValueError, match="with_next_action=True"):
            self.agent.update(state, transitions(next_action=None), noise)

    def test_needs_none_where_the_critic_asks_for_none(self):
        agent = with_options(self.agent, {"critic": {"kind": "implicit", "network": SMALL}})
        assert not agent.uses_next_action
        state, noise = agent.init(3, 2, key=KEY), agent.noise(64, key=KEY)
        _, metrics = agent.update(state, transitions(next_action=None), noise)
        assert np.isfinite(metrics["loss"])


def test_iqn_learns_the_quantiles_of_a_known_return():
    """Terminal transitions of one observation and action whose reward is uniform in [0, 1]."""
    size = 2000
    data = transitions(
        size,
        observation=jnp.zeros((size, 3)),
        action=jnp.zeros((size, 2)),
        reward=jax.random.uniform(KEY, (size,)),
    )
    critic = Quantile(
        loss_kind="huber", huber_threshold=0.01, num_noise=4, num_terms=8, ensemble_size=1,
        network=MLPConfig((32,), layer_norm=True),
    )  # fmt: skip
    agent = iqn(
        critic=critic, policy={"network": SMALL, "flow_steps": 1}, learning_rate=3e-3,
        action_size=2, decay_updates=2000,
    )  # fmt: skip
    state = agent.init(3, 2, key=KEY)
    state, metrics = train_steps(agent, state, data, num_updates=2000, batch_size=64, key=KEY)
    levels = jnp.linspace(0.1, 0.9, 9)[None]
    zeros = jnp.zeros((1, 3)), jnp.zeros((1, 2))
    quantiles = member_quantiles(state.params.critic, *zeros, levels)
    np.testing.assert_allclose(quantiles[0], levels, atol=0.08)
    assert np.isfinite(metrics["loss"]).all()
