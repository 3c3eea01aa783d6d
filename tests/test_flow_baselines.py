"""C51, Value Flows, SORL and EVOR against closed forms; parity is in `test_parity`."""

import dataclasses

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from floq_eqx.agents import Parts, Selection, c51, evor, sorl, value_flows, with_options
from floq_eqx.agents.critics.return_flow import confidence_weight
from floq_eqx.data import Batch
from floq_eqx.embeddings import HLGauss
from floq_eqx.integrate import confine, solve_flow
from floq_eqx.losses import categorical_loss
from floq_eqx.modules import (
    CategoricalValue,
    ShortcutVelocity,
    ValueVelocity,
    member_logits,
    member_values,
)
from floq_eqx.networks import MLPConfig
from floq_eqx.targets import categorical_td_target, soft_value
from floq_eqx.training import train_steps

KEY = jax.random.key(0)
SMALL = MLPConfig((16,), layer_norm=True)
MEDIUM = MLPConfig((64, 64), layer_norm=True)

pytestmark = pytest.mark.usefixtures("optimised")


def transitions(size=64, **changes):
    """One terminal step after another, of the same observation and action."""
    batch = Batch(
        observation=jnp.zeros((size, 3)),
        action=jnp.zeros((size, 2)),
        reward=jnp.zeros(size),
        mask=jnp.zeros(size),
        next_observation=jnp.zeros((size, 3)),
    )
    return dataclasses.replace(batch, **changes)


def outcomes(size=1000):
    """Rewards of -1 and 0, as often one as the other."""
    return transitions(size, reward=-(jnp.arange(size) % 2).astype(jnp.float32))


def trained(agent, data, num_updates, **changes):
    changes |= {"action_size": 2, "decay_updates": num_updates}
    agent = with_options(agent, changes)
    state = agent.init(3, 2, key=KEY)
    state, metrics = train_steps(
        agent, state, data, num_updates=num_updates, batch_size=128, key=KEY
    )
    assert np.isfinite(metrics["loss"]).all()
    return agent, state


class TestSelection:
    actions = jnp.eye(3)
    values = jnp.array([0.0, 2.0, 1.0])

    def test_without_a_temperature_it_is_the_best(self):
        selection = Selection(3)
        for noise in (None, selection.noise(1, key=KEY)):
            chosen = selection.choose(self.values[None], noise)[0]
            assert np.array_equal(self.actions[chosen], [0, 1, 0])

    def test_with_one_it_is_drawn_from_the_softmax(self):
        selection = Selection(3, temperature=0.8)
        score = jnp.broadcast_to(self.values, (20_000, 3))
        chosen = selection.choose(score, selection.noise(20_000, key=KEY))
        frequency = self.actions[chosen].mean(axis=0)
        np.testing.assert_allclose(frequency, jax.nn.softmax(self.values / 0.8), atol=0.015)


class TestTargets:
    atoms = jnp.linspace(-10.0, 0.0, 11)

    def test_the_mean_of_a_moved_histogram_is_the_td_target(self):
        probability = jax.nn.softmax(jax.random.normal(KEY, (32, 11)))
        reward = -jax.random.uniform(KEY, (32,))
        mask = (jnp.arange(32) % 2).astype(jnp.float32)
        moved = categorical_td_target(reward, mask, probability, self.atoms, discount=0.9)
        np.testing.assert_allclose(moved.sum(axis=1), 1, rtol=1e-5)
        expected = reward + 0.9 * mask * (probability @ self.atoms)
        np.testing.assert_allclose(moved @ self.atoms, expected, atol=1e-5)

    def test_by_hand_and_beyond_the_ends(self):
        one = jax.nn.one_hot(jnp.array([4, 0]), 11)
        reward, mask = jnp.array([-0.4, -5.0]), jnp.ones(2)
        moved = categorical_td_target(reward, mask, one, self.atoms, discount=0.5)
        # -0.4 + 0.5 * -6 = -3.4 lies between the atoms -4 and -3; -5 - 5 = -10 is the end.
        np.testing.assert_allclose(moved[0, 6:8], [0.4, 0.6], atol=1e-5)
        np.testing.assert_allclose(moved[1], jax.nn.one_hot(0, 11), atol=1e-6)
        beyond = categorical_td_target(jnp.full(2, -99.0), mask, one, self.atoms, discount=0.5)
        np.testing.assert_allclose(beyond[:, 0], 1)

    def test_soft_value_of_two_outcomes_and_its_limits(self):
        samples = jnp.array([[0.0, 1.0], [-300.0, -299.0]])
        for eta in (0.1, 0.5, 3.0):
            expected = eta * np.log((1 + np.exp(1 / eta)) / 2)
            value = soft_value(samples, eta)
            np.testing.assert_allclose(value, [expected, expected - 300], rtol=1e-5)
        np.testing.assert_allclose(soft_value(samples, 1e-3), [1, -299], atol=1e-3)
        np.testing.assert_allclose(soft_value(samples, 1e5), [0.5, -299.5], atol=1e-4)


class TestC51:
    def test_cross_entropy_by_hand(self):
        logits = jnp.log(jnp.array([[[0.5, 0.25, 0.25]], [[0.2, 0.2, 0.6]]]))
        target = jnp.array([[0.0, 0.5, 0.5]])
        expected = -(np.log(0.25) + 0.5 * np.log(0.2 * 0.6)) / 2
        np.testing.assert_allclose(categorical_loss(logits, target), expected, rtol=1e-6)
        assert not np.any(jax.grad(lambda t: categorical_loss(logits, t))(target))

    def test_mean_of_a_histogram(self):
        histogram = HLGauss(-4.0, 0.0, 5, 0.75)
        np.testing.assert_allclose(histogram.centers, [-3.5, -2.5, -1.5, -0.5])
        critic = CategoricalValue(SMALL.build(5, 4, key=KEY), histogram)
        logits = jnp.log(jnp.array([[0.5, 0.5, 1e-30, 1e-30], [1e-30, 1e-30, 1e-30, 1.0]]))
        np.testing.assert_allclose(critic.mean(logits), [-3, -0.5], rtol=1e-6)

    @pytest.mark.parametrize(
        "backup", [pytest.param("expected", marks=pytest.mark.slow), "distributional"]
    )
    def test_learns_the_mean_and_c51_the_distribution_of_two_outcomes(self, backup):
        critic = {"backup": backup, "discount": 0.5, "num_bins": 21, "network": SMALL}
        policy = {"network": SMALL, "flow_steps": 1}
        agent = c51(critic=critic, policy=policy, learning_rate=1e-2)
        agent, state = trained(agent, outcomes(), 500)
        critic = state.params.critic
        zeros = jnp.zeros((1, 3)), jnp.zeros((1, 2))
        np.testing.assert_allclose(agent.critic.value(critic, *zeros, None), -0.5, atol=0.03)
        probability = jax.nn.softmax(member_logits(critic, *zeros))[0, 0]
        near = np.abs(np.asarray(critic.histogram.centers)[:, None] - np.array([-1, 0])) < 0.25
        mass = np.asarray(probability) @ near
        # HL-Gauss targets are those two outcomes too, but blurred by design.
        np.testing.assert_allclose(mass, 0.5, atol=0.05 if backup == "distributional" else 0.12)

    def test_the_lower_member_is_the_target(self):
        data = transitions(8, mask=jnp.ones(8), reward=-jnp.ones(8))
        critic = c51(
            critic={
                "backup": "distributional",
                "aggregation": "min",
                "discount": 0.5,
                "network": SMALL,
            }
        ).critic
        slow = critic.slow(critic.init(3, 2, key=KEY))
        action = jax.random.normal(KEY, (8, 2))
        logits = 3 * member_logits(slow, data.observation, action)
        target = critic.target_histogram(slow, logits, data)
        expected = -1 + 0.5 * slow.mean(logits).min(axis=0)
        np.testing.assert_allclose(target @ slow.histogram.centers, expected, rtol=1e-4)


class Steep(ValueVelocity):
    """v = slope z + 1."""

    slope: jax.Array

    def conditioned(self, t, z, given):
        return self.slope * z + 1


def steep(field, *slopes):
    """The members of a field, of these slopes instead."""
    network, value, time = field.network, field.value_embedding, field.time_embedding
    return Steep(network, value, time, jnp.array(slopes))


class TestValueFlows:
    agent = value_flows(
        critic={
            **{"reward_min": -1.0, "reward_max": 1.0, "discount": 0.9},
            **{"network": SMALL, "num_steps": 4},
        },
        policy={"network": SMALL, "flow_steps": 2},
        selection={"num_candidates": 4},
        next_selection={"num_candidates": 4},
        action_size=2,
    )
    critic = agent.critic

    def test_confined_steps_are_clipped_ones_with_the_derivative_of_free_ones(self):
        def velocity(t, z):
            return 3 * z + t

        def clipped(z):
            for step in range(4):
                z = jnp.clip(z + velocity(step / 4, z) / 4, -2, 2)
            return z

        def free(z):
            return solve_flow(velocity, z, num_steps=4).value

        def confined(z):
            return solve_flow(confine(velocity, -2, 2, num_steps=4), z, num_steps=4).value

        z = jnp.array([-3.0, -0.3, 0.0, 0.1, 1.5])
        np.testing.assert_allclose(confined(z), clipped(z), rtol=1e-6)
        assert np.abs(free(z)).max() > 10
        ours, theirs = (jax.jvp(f, (z,), (jnp.ones(5),))[1] for f in (confined, free))
        np.testing.assert_allclose(ours, theirs, rtol=1e-5)

    def test_spread_is_the_derivative_along_the_flow(self):
        field = steep(self.critic.init(3, 2, key=KEY), 0.5, -1.0)
        z0, data = jax.random.normal(KEY, (6,)), transitions(6)
        here = (data.observation, data.action)
        slopes = (1 + np.array([0.5, -1.0]) / 4) ** 4
        spread = self.critic.return_spread(field, z0, *here)
        np.testing.assert_allclose(spread, slopes.mean(), rtol=1e-5)
        lower = dataclasses.replace(self.critic, value_aggregation="min")
        np.testing.assert_allclose(lower.return_spread(field, z0, *here), slopes.min(), rtol=1e-5)
        # Half of the time: as many steps, half as long.
        value = self.critic.integrate(field, z0, *here, until=jnp.full(6, 0.5))
        expected = z0[None]
        for _ in range(4):
            expected = expected + (jnp.array([[0.5], [-1.0]]) * expected + 1) / 8
        np.testing.assert_allclose(value, expected, rtol=1e-5)

    def test_q_is_one_long_step_within_the_bounds(self):
        field = steep(self.critic.init(3, 2, key=KEY), 0.5, 99.0)
        z0, data = jnp.array([-2.0, 0.0, 3.0]), transitions(3)
        q = self.critic.value(field, data.observation, data.action, z0)
        np.testing.assert_allclose(q, [(-2 - 10) / 2, (1 + 1) / 2, (5.5 + 10) / 2], rtol=1e-6)

    def test_weights(self):
        spread = jnp.array([0.0, 0.1, 1.0, 1e6])
        weight = confidence_weight(spread, 0.5)
        assert (np.diff(weight) > 0).all()
        np.testing.assert_allclose(weight[jnp.array([0, 3])], [0.5, 1], atol=1e-5)
        np.testing.assert_allclose(weight[2], 1 / (1 + np.exp(0.5)) + 0.5, rtol=1e-6)
        np.testing.assert_allclose(confidence_weight(spread, 0.0), 1)

    @pytest.mark.slow
    def test_learns_the_distribution_of_a_known_return(self):
        size = 2000
        data = transitions(size, reward=-jax.random.uniform(KEY, (size,)))
        # Bounds that hold z0 too: where they clip it, samples collapse onto them.
        critic = {"network": MEDIUM, "dcfm_weight": 0.0, "num_steps": 2}
        agent, state = trained(self.agent, data, 1000, critic=critic, learning_rate=3e-3)
        critic = dataclasses.replace(agent.critic, num_steps=16)
        zeros = jnp.zeros((1000, 3)), jnp.zeros((1000, 2))
        z0 = jax.random.normal(KEY, (1000,))
        value = critic.integrate(state.params.critic, z0, *zeros, until=jnp.ones(1000))[0]
        quantiles = np.quantile(value, [0.1, 0.5, 0.9])
        np.testing.assert_allclose(quantiles, [-0.9, -0.5, -0.1], atol=0.08)
        q = critic.value(state.params.critic, *zeros, z0)
        np.testing.assert_allclose(q[jnp.abs(z0) < 1], -0.5, atol=0.25)


class Decay(ShortcutVelocity):
    """The steps of dx/dt = rate x, exact as far as a step of a level can know of smaller ones."""

    rate: jax.Array
    exact: bool = eqx.field(static=True)

    def __call__(self, t, level, x, observation):
        step = 2.0**-level
        growth = jnp.exp(self.rate * step) if self.exact else 1 + self.rate * step
        return (growth - 1) / step * x


class TestSorl:
    agent = sorl(critic={"network": SMALL}, policy={"network": SMALL}, action_size=2)
    policy = agent.policy

    def replaced(self, *, exact):
        flow = self.policy.init(3, 2, key=KEY)
        return Decay(flow.network, jnp.array(-1.0), exact)

    def noise(self):
        return self.policy.noise((64, 2), key=KEY)

    def test_steps_that_agree_are_consistent(self):
        data, noise = transitions(), self.noise()
        exact, euler = (self.replaced(exact=exact) for exact in (True, False))
        assert self.policy.consistency_loss(exact, exact, data, noise) < 1e-12
        loss = self.policy.consistency_loss(euler, euler, data, noise)
        # One Euler step of h against two of h/2: (1 - h/2)² x against (1 - h) x, so h x / 4 over h.
        level = jnp.floor(noise.consistency_level * 3)
        time = jnp.floor(noise.consistency_time * 2**level) / 2**level
        x = (1 - time)[:, None] * noise.consistency_action
        expected = jnp.mean((x * 2.0 ** -level[:, None] / 4) ** 2)
        np.testing.assert_allclose(loss, expected, rtol=1e-4)
        assert set(np.asarray(level).tolist()) == {0, 1, 2}

    def test_flow_matching_by_hand(self):
        data, noise = transitions(), self.noise()
        loss = self.policy.flow_loss(self.replaced(exact=False), data, noise)
        time = jnp.floor(noise.bc_time * 8) / 8
        velocity = -(1 - time)[:, None] * noise.bc_action
        np.testing.assert_allclose(loss, jnp.mean((velocity + noise.bc_action) ** 2), rtol=1e-5)

    @pytest.mark.parametrize(("level", "num_steps"), [(0.0, 1), (0.3, 2), (0.6, 4), (0.99, 8)])
    def test_numbers_of_steps(self, level, num_steps):
        data, x0 = transitions(), 0.5 * jax.random.normal(KEY, (64, 2))
        flow = self.replaced(exact=False)
        action = self.policy.by_level(flow, x0, data.observation, jnp.asarray(level))
        expected = jnp.clip((1 - 1 / num_steps) ** num_steps * x0, -1, 1)
        np.testing.assert_allclose(action, expected, atol=1e-6)

    def test_gradients_stay_where_they_belong(self):
        data = transitions(mask=jnp.ones(64))
        both = Parts(data, data)
        state, noise = self.agent.init(3, 2, key=KEY), self.agent.noise(64, key=KEY)
        critic = eqx.filter_grad(
            lambda p: self.agent.critic_loss(p, state.targets, both, noise)[0]
        )(state.params)
        actor = eqx.filter_grad(
            lambda p: self.agent.policy_loss(p, state.targets, both, noise)[1]["q_loss"]
        )(state.params)
        for gradient, touched in ((critic, "critic"), (actor, "policy")):
            for part in ("critic", "policy"):
                moved = any(np.any(leaf) for leaf in jax.tree.leaves(getattr(gradient, part)))
                assert moved == (part == touched)

    def test_gradients_are_clipped_part_by_part(self):
        params = self.agent.init(3, 2, key=KEY).params
        grads = Parts(
            jax.tree.map(lambda x: 100 * jnp.ones_like(x), params.critic),
            jax.tree.map(lambda x: 1e-4 * jnp.ones_like(x), params.policy),
        )
        optimiser = dataclasses.replace(self.agent, gradient_norm=2.0).optimiser()
        with jax.numpy_dtype_promotion("standard"):
            _, state = optimiser.update(grads, optimiser.init(params))
        moment = optax.tree_utils.tree_get(state, "mu")
        # Adam's first moment is a tenth of what it was given.
        norms = [
            10 * np.sqrt(sum((np.asarray(leaf) ** 2).sum() for leaf in jax.tree.leaves(part)))
            for part in (moment.critic, moment.policy)
        ]
        expected = 1e-4 * np.sqrt(sum(leaf.size for leaf in jax.tree.leaves(params.policy)))
        np.testing.assert_allclose(norms, [2.0, expected], rtol=1e-4)

    @pytest.mark.slow
    def test_any_number_of_steps_clones_the_behaviour(self):
        size = 512
        observation = jax.random.normal(KEY, (size, 3))
        data = transitions(size, observation=observation, action=0.7 * jnp.sin(observation[:, :2]))
        changes = {"policy": {"network": MLPConfig((64, 64)), "q_weight": 0.0}}
        changes |= {"learning_rate": 3e-3, "gradient_norm": 100.0}
        agent, state = trained(self.agent, data, 1500, **changes)
        for action_steps in (1, 8):
            few = with_options(agent, {"policy": {"action_steps": action_steps}})
            act = jax.vmap(lambda o, k, few=few: few.act(state, o, key=k))
            action = act(data.observation, jax.random.split(KEY, size))
            assert float(jnp.mean((action - data.action) ** 2)) < 0.02, action_steps

    def test_takes_the_best_of_its_actions(self):
        state = self.agent.init(3, 2, key=KEY)

        def q(count):
            changes = {"selection": {"num_candidates": count}, "policy": {"action_steps": 1}}
            agent = with_options(self.agent, changes)
            act = jax.vmap(lambda k: agent.act(state, jnp.ones(3), key=k))
            action = act(jax.random.split(KEY, 64))
            return float(member_values(state.params.critic, jnp.ones((64, 3)), action).mean())

        assert q(1) < q(32)

    @pytest.mark.parametrize(
        ("changes", "message"),
        [
            ({"policy": {"max_steps": 6}}, "power of 2"),
            ({"policy": {"action_steps": 3}}, "power of 2 up to max_steps = 8"),
            ({"policy": {"action_steps": 16}}, "power of 2 up to max_steps = 8"),
            ({"gradient_norm": -1.0}, "gradient_norm"),
        ],
    )
    def test_bad_hyperparameters(self, changes, message):
        with pytest.raises(ValueError, match=message):
            sorl(**changes)


class TestEvor:
    agent = evor(
        critic={"network": MEDIUM, "num_steps": 8}, policy={"network": SMALL, "flow_steps": 1},
        learning_rate=3e-3,
    )  # fmt: skip

    def q(self, agent, state, observation):
        z0 = jax.random.normal(KEY, (1, 2000))
        return agent.critic.value(state.params.critic, observation, jnp.zeros((1, 2)), z0)

    def test_deterministic_chain(self):
        """Three states in a row, and a reward of 1 at the end: Q is γ² , γ and 1."""
        place = jnp.arange(300) % 3
        states = jnp.eye(3)
        data = transitions(
            300,
            observation=states[place],
            next_observation=states[jnp.minimum(place + 1, 2)],
            reward=(place == 2).astype(jnp.float32),
            mask=(place < 2).astype(jnp.float32),
        )
        changes = {"critic": {"discount": 0.8}, "target_rate": 0.02}
        agent, state = trained(self.agent, data, 1200, **changes)
        q = [float(self.q(agent, state, states[i : i + 1])[0]) for i in range(3)]
        np.testing.assert_allclose(q, [0.64, 0.8, 1], atol=0.05)

    def test_two_outcomes(self):
        agent, state = trained(self.agent, outcomes(), 800, critic={"num_steps": 16})
        for eta in (0.3, 1.0):
            cold = with_options(agent, {"critic": {"value_temperature": eta}})
            expected = eta * np.log((1 + np.exp(-1 / eta)) / 2)
            q = self.q(cold, state, jnp.zeros((1, 3)))
            np.testing.assert_allclose(q, expected, atol=0.06)

    def test_temperature_of_zero_is_refused(self):
        with pytest.raises(ValueError, match="value_temperature must be in \\(0, inf\\)"):
            evor(critic={"value_temperature": 0.0})
