"""Contracts that every agent of the registry keeps, and what is particular to floq."""

import dataclasses
import json

import diffrax
import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jaxtyping import TypeCheckError

from floq_eqx.agents import (
    ADJOINTS,
    AGENTS,
    FQL,
    Floq,
    FlowPolicyAgent,
    average,
    from_plain,
    to_plain,
)
from floq_eqx.critics import member_values
from floq_eqx.data import Batch
from floq_eqx.networks import MLPConfig, ResidualConfig
from floq_eqx.paths import linear_path
from floq_eqx.training import TrainConfig, train_steps
from floq_eqx.training.loop import with_arrays
from floq_eqx.velocity import ValueVelocity, member_velocities

from .runs import CONTRACTED

KEY = jax.random.key(0)
SMALL = MLPConfig(hidden_sizes=(16,), layer_norm=True)
FEW = {"num_noise": 3, "num_steps": 2, "flow_steps": 2, "num_candidates": 1}


def hyperparameters(name):
    return {field.name: field for field in dataclasses.fields(AGENTS[name])}


def small(name, **changes):
    """An agent with tiny networks and few samples.

    Its numbers are arrays, so that other ones do not compile again.
    """
    known = hyperparameters(name)
    networks = {key for key, f in known.items() if isinstance(f.default, MLPConfig)}
    settings = {key: value for key, value in FEW.items() if key in known}
    settings |= dict.fromkeys(networks, SMALL) | {"action_size": 2}
    return with_arrays(AGENTS[name](**(settings | changes)))


def transitions(size=6, seed=1):
    keys = jax.random.split(jax.random.key(seed), 4)
    return Batch(
        observation=jax.random.normal(keys[0], (size, 3)),
        action=jax.random.uniform(keys[1], (size, 2), minval=-1),
        reward=-(jnp.arange(size) % 2).astype(jnp.float32),
        mask=(jnp.arange(size) % 2).astype(jnp.float32),
        next_observation=jax.random.normal(keys[2], (size, 3)),
        next_action=jax.random.uniform(keys[3], (size, 2), minval=-1),
    )


BATCH = transitions()


@pytest.fixture(scope="module", params=CONTRACTED)
def name(request):
    return request.param


def start(agent):
    return agent.init(3, 2, key=KEY), agent.noise(len(BATCH), key=jax.random.key(2))


@eqx.filter_jit
def loss_of(agent, state, noise, batch=BATCH):
    return agent.loss(state.params, state.targets, batch, noise)


@eqx.filter_jit
def update(agent, state, noise, batch=BATCH):
    return agent.update(state, batch, noise)


@eqx.filter_jit
def gradients_of(agent, state, noise):
    """Those of the parameters and of the targets."""
    loss = eqx.filter_grad(lambda both: agent.loss(*both, BATCH, noise)[0])
    return loss((state.params, state.targets))


def gradient_of(agent, state, noise):
    return gradients_of(agent, state, noise)[0]


@eqx.filter_jit
def actions_of(agent, state, observation, keys):
    return jax.vmap(lambda key: agent.act(state, observation, key=key))(keys)


@eqx.filter_jit
def value_of_actions(agent, state, observation, keys):
    """The mean Q, by which candidates are chosen, of actions on these keys."""
    action = actions_of(agent, state, observation, keys)
    observations = jnp.broadcast_to(observation, (len(keys), *observation.shape))
    return jnp.mean(agent.candidate_value(state.params, observations, action, key=KEY))


@eqx.filter_jit
def target_of(agent, state, noise):
    return agent.td_target(state.params.policy, state.targets, BATCH, noise)


AVERAGED = {
    "floq": lambda params: params.field,
    "iql": lambda params: params.values.critic,
    "ifql": lambda params: params.values.critic,
    "rebrac": lambda params: params,
    "sac": lambda params: params.critic,
    "sorl": lambda params: params,
    "value_flows": lambda params: params.field,
    "evor": lambda params: params.field,
} | dict.fromkeys(("fql", "iqn", "c51"), lambda params: params.critic)


def only(name, **changes):
    """Those of the changes that this agent has a hyperparameter for."""
    return {key: value for key, value in changes.items() if key in hyperparameters(name)}


integrate = eqx.filter_jit(lambda agent, *args: agent.integrate(*args))


def assert_trees_close(ours, theirs, **tolerance):
    for a, b in zip(jax.tree.leaves(ours), jax.tree.leaves(theirs), strict=True):
        np.testing.assert_allclose(a, b, **(tolerance or {"rtol": 0, "atol": 0}))


class TestContracts:
    def test_loss_has_no_hidden_randomness(self, name):
        agent = small(name)
        state, noise = start(agent)
        first, again = (update(agent, state, noise) for _ in range(2))
        assert_trees_close(first, again)
        _, other = update(agent, state, agent.noise(len(BATCH), key=jax.random.key(3)))
        assert (other["loss"] != first[1]["loss"]) == (noise is not None)

    def test_noise_covers_every_random_number(self, name):
        agent = small(name)
        noise = agent.noise(4096, key=KEY)
        if noise is None:  # its updates draw nothing
            return
        # floq places z0 by a ratio; the others' z0 is normal.
        uniform = ("time", "quantile", "level", *(["value"] if name == "floq" else []))
        for field in dataclasses.fields(noise):
            values = np.asarray(getattr(noise, field.name))
            if values.ndim == 0:  # one number for the whole batch
                assert 0 <= values < 1, field.name
                continue
            assert values.shape[0] == 4096, field.name
            if field.name.endswith(uniform):
                assert values.min() >= 0, field.name
                assert values.max() < 1, field.name
                assert values.mean() == pytest.approx(0.5, abs=0.05), field.name
            else:
                assert values.mean() == pytest.approx(0, abs=0.05), field.name
                assert values.std() == pytest.approx(1, abs=0.05), field.name
        leaves = [np.asarray(leaf).ravel()[:4096] for leaf in jax.tree.leaves(noise) if leaf.ndim]
        correlation = np.atleast_2d(np.corrcoef(leaves)) - np.eye(len(leaves))
        assert np.abs(correlation).max() < 0.1, "two random numbers are the same"

    def test_update_is_adam_and_an_average_of_the_parameters_before(self, name):
        agent = small(name, **only(name, target_rate=0.25, learning_rate=0.01))
        state, noise = start(agent)
        new, metrics = update(agent, state, noise)
        if state.targets is not None:
            expected = average(state.targets, AVERAGED[name](state.params), 0.25)
            assert_trees_close(new.targets, expected, rtol=1e-6, atol=1e-7)
        # Adam's first step is the learning rate, in the direction against the gradient's sign.
        steps = [
            np.abs(np.asarray(a) - np.asarray(b)).max()
            for a, b in zip(jax.tree.leaves(new.params), jax.tree.leaves(state.params), strict=True)
        ]
        assert max(steps) == pytest.approx(0.01, rel=1e-3)
        assert int(new.step) == 1
        assert all(value.shape == () for value in metrics.values())

    def test_learning_rate_decays_to_zero(self, name):
        agent = small(name, decay_updates=2, learning_rate=0.01)
        state, noise = start(agent)
        moved = []
        for _ in range(4):
            new, _ = update(agent, state, noise)
            pairs = zip(jax.tree.leaves(new.params), jax.tree.leaves(state.params), strict=True)
            moved.append(max(float(jnp.abs(a - b).max()) for a, b in pairs))
            state = new
        assert moved[0] == pytest.approx(0.01, rel=1e-3)
        assert 0 < moved[1] < 0.7 * moved[0]
        assert moved[2:] == [0, 0]

    def test_targets_get_no_gradient(self, name):
        agent = small(name)
        state, noise = start(agent)
        _, grads = gradients_of(agent, state, noise)
        assert all(not np.any(leaf) for leaf in jax.tree.leaves(grads))

    def test_actor_terms_leave_the_critics_alone(self, name):
        if not issubclass(AGENTS[name], FlowPolicyAgent):
            return  # `test_baselines` has the others' own
        agent = small(name, alpha=10.0)
        state, noise = start(agent)
        other = dataclasses.replace(noise, actor=noise.actor + 1, bc_time=noise.bc_time / 2)
        before, after = gradient_of(agent, state, noise), gradient_of(agent, state, other)
        critics = [f.name for f in dataclasses.fields(before) if f.name != "policy"]
        for critic in critics:
            ours, theirs = getattr(before, critic), getattr(after, critic)
            assert_trees_close(ours, theirs, rtol=1e-5, atol=1e-6)
        changed = [
            not np.allclose(a, b)
            for a, b in zip(
                jax.tree.leaves(before.policy), jax.tree.leaves(after.policy), strict=True
            )
        ]
        assert any(changed)

    def test_sweep_over_a_hyperparameter_is_vmapped(self, name):
        key = next(
            k
            for k in ("alpha", "alpha_actor", "expectile", "learning_rate")
            if only(name, **{k: 0})
        )
        values = jnp.array([0.1, 0.9])
        state, noise = start(small(name))

        def updated(value):
            new, metrics = update(small(name, **{key: value}), state, noise)
            return metrics["loss"], jax.tree.leaves(new.params)[0]

        swept = eqx.filter_jit(eqx.filter_vmap(updated))(values)
        one, other = updated(values[0]), updated(values[1])
        for all_of_them, a, b in zip(swept, one, other, strict=True):
            np.testing.assert_allclose(all_of_them, jnp.stack([a, b]), rtol=1e-4, atol=1e-6)
        assert not all(np.array_equal(a, b) for a, b in zip(one, other, strict=True))

    def test_new_values_do_not_retrace(self, name):
        traces = []

        @eqx.filter_jit
        def traced(agent, state, batch, noise):
            traces.append(None)
            return agent.loss(state.params, state.targets, batch, noise)[0] * agent.learning_rate

        state, noise = start(small(name))
        names = ("alpha", "discount", "learning_rate", "target_rate")
        for scale in (0.5, 0.25):
            values = {key: jnp.asarray(scale, jnp.float32) for key in names}
            agent = small(name, **only(name, **values))
            traced(agent, state, transitions(seed=int(100 * scale)), noise)
        assert len(traces) == 1

    def test_act(self, name):
        agent = small(name)
        state, _ = start(agent)
        actions = actions_of(agent, state, 10 * jnp.ones(3), jax.random.split(KEY, 100))
        assert actions.shape == (100, 2)
        assert jnp.abs(actions).max() <= 1
        deterministic = name in ("bc", "iql", "rebrac")
        assert (jnp.unique(actions[:, 0]).size == 1) == deterministic

    @pytest.mark.parametrize("proposal", ["one_step", "flow"])
    def test_candidates_are_chosen_by_value_and_temperature(self, name, proposal):
        if not issubclass(AGENTS[name], FlowPolicyAgent):
            return  # `test_baselines` has the others' own
        state, _ = start(small(name))
        observation, keys = jnp.ones(3), jax.random.split(KEY, 64)

        def q(**changes):
            # Values of untrained networks, some of which the usual bounds would clip.
            bounds = only(name, reward_max=1.0)
            agent = small(name, proposal=proposal, **bounds, **changes)
            return float(value_of_actions(agent, state, observation, keys))

        one = q(num_candidates=1)
        hot, warm, best = (q(num_candidates=32, temperature=t) for t in (1e4, 0.05, 0.0))
        assert one < warm <= best + 1e-3
        assert abs(hot - one) < 0.5 * (best - one)

    def test_nan_in_a_batch_shows_in_the_metrics(self, name):
        agent = small(name)
        state, noise = start(agent)
        batch = dataclasses.replace(BATCH, action=BATCH.action.at[2].set(jnp.nan))
        _, metrics = update(agent, state, noise, batch)
        assert jnp.isnan(metrics["loss"])

    @pytest.mark.parametrize(
        ("changes", "message"),
        [
            ({"discount": 1.0}, r"discount must be in \[0, 1\), got 1.0"),
            ({"discount": -0.1}, "discount"),
            ({"discount": float("nan")}, "discount"),
            ({"target_rate": 1.5}, "target_rate"),
            ({"learning_rate": -1.0}, "learning_rate"),
            ({"alpha": float("inf")}, "alpha"),
            ({"decay_updates": 0}, "decay_updates"),
            ({"ensemble_size": 0}, "ensemble_size"),
            ({"num_candidates": 0}, "num_candidates"),
            ({"temperature": -1.0}, "temperature"),
            ({"reward_min": 1.0}, "reward_min < reward_max"),
            ({"flow_steps": -1}, "flow_steps"),
        ],
    )
    def test_bad_hyperparameters(self, name, changes, message):
        if not only(name, **changes):
            return
        with pytest.raises(ValueError, match=message):
            small(name, **changes)

    def test_bad_sizes(self, name):
        agent = small(name)
        with pytest.raises(ValueError, match="observation_size"):
            agent.init(0, 2, key=KEY)
        with pytest.raises(ValueError, match="made for actions of 2"):
            agent.init(3, 4, key=KEY)
        with pytest.raises(ValueError, match="batch_size"):
            agent.noise(0, key=KEY)
        with pytest.raises(ValueError, match="for_data"):
            small(name, action_size=None).noise(4, key=KEY)

    def test_for_data(self, name):
        agent = small(name, action_size=None).for_data(BATCH)
        assert agent.action_size == 2


class TestFloq:
    @pytest.mark.usefixtures("optimised")
    def test_learns_a_value_that_is_known(self):
        """Terminal transitions whose reward is a function of the action: Q is that reward."""
        keys = jax.random.split(KEY, 2)
        action = jax.random.uniform(keys[0], (512, 2), minval=-1)
        reward = -jnp.abs(action[:, 0])
        zeros = jnp.zeros((512, 3))
        data = Batch(zeros, action, reward, jnp.zeros(512), zeros)
        field = MLPConfig(hidden_sizes=(64, 64), layer_norm=True)
        agent = small(
            "floq", discount=0.5, learning_rate=3e-3, num_steps=4, field=field, critic=field
        ).for_data(data)
        state = agent.init(3, 2, key=keys[1])
        state, metrics = train_steps(agent, state, data, num_updates=600, batch_size=128, key=KEY)
        z0 = agent.initial_value(jax.random.uniform(KEY, (512, 4)))
        value = integrate(agent, state.params.field, z0, zeros, action)
        error = np.asarray(value) - np.asarray(reward)[None, :, None]
        assert np.sqrt((error**2).mean()) < 0.08
        distilled = member_values(state.params.critic, zeros, action)
        assert np.sqrt(((np.asarray(distilled) - np.asarray(reward)) ** 2).mean()) < 0.08
        assert metrics["flow_loss"][-1] < metrics["flow_loss"][0]

    def test_initial_values_fill_their_interval(self):
        agent = small("floq", reward_min=-2.0, reward_max=1.0, discount=0.9, noise_coverage=0.5)
        np.testing.assert_allclose(
            agent.initial_value(jnp.array([0.0, 0.5, 1.0])), [-10, -2.5, 5], rtol=1e-5
        )

    def test_next_actions_and_noise_differ_between_samples(self):
        agent = small("floq", backup="distributional")
        state, noise = start(agent)
        targets = target_of(agent, state, noise)
        bootstrapped = np.asarray(BATCH.mask) == 1
        assert (np.asarray(targets).std(axis=1) > 0).tolist() == bootstrapped.tolist()
        expected = target_of(small("floq"), state, noise)
        mean = np.asarray(targets).mean(axis=1, keepdims=True)
        np.testing.assert_allclose(expected, np.broadcast_to(mean, targets.shape), rtol=1e-5)

    def test_min_aggregation_is_the_lower_member(self):
        state, noise = start(small("floq"))
        means, mins = (
            target_of(small("floq", aggregation=how), state, noise) for how in ("mean", "min")
        )
        assert (np.asarray(mins) <= np.asarray(means)).all()
        assert (np.asarray(mins) < np.asarray(means)).any()

    def test_train_at_zero_only_ignores_the_time(self):
        losses = {}
        for zero_only in (True, False):
            agent = small("floq", train_at_zero_only=zero_only)
            state, noise = start(agent)
            other = dataclasses.replace(noise, time=noise.time / 2)
            losses[zero_only] = [
                float(loss_of(agent, state, n)[1]["flow_loss"]) for n in (noise, other)
            ]
        assert losses[True][0] == losses[True][1]
        assert losses[False][0] != losses[False][1]

    def test_policy_extraction_through_the_integral(self):
        agent = small("floq", extraction="integral")
        state, noise = start(agent)
        _, metrics = loss_of(agent, state, noise)
        action = jax.vmap(state.params.policy.act)(BATCH.observation, noise.actor)
        z0 = agent.initial_value(noise.value)
        value = integrate(agent, state.params.field, z0, BATCH.observation, action)
        assert metrics["actor_q"] == pytest.approx(float(value.mean()), rel=1e-5)

        assert state.params.critic is None
        assert "critic_distillation_loss" not in metrics
        distilling = small("floq")
        critic = start(distilling)[0].params.critic
        both = eqx.tree_at(
            lambda s: s.params.critic, state, critic, is_leaf=lambda leaf: leaf is None
        )
        integral = gradient_of(agent, state, noise)
        distilled = gradient_of(distilling, both, noise)
        assert_trees_close(integral.field, distilled.field, rtol=1e-5, atol=1e-6)
        actor = [jax.tree.leaves(g.policy.actor) for g in (integral, distilled)]
        assert not all(np.allclose(a, b) for a, b in zip(*actor, strict=True))

    def test_predicting_the_endpoint_regresses_the_network_on_it(self):
        agent = small("floq", prediction="endpoint")
        state, noise = start(agent)
        _, metrics = loss_of(agent, state, noise)
        target = target_of(agent, state, noise)
        path = linear_path(agent.initial_value(noise.value), target, noise.time)
        velocity = ValueVelocity(
            state.params.field.network, *agent.embeddings()
        )  # the same network, read as it is
        predicted = member_velocities(velocity, path.t, path.xt, BATCH.observation, BATCH.action)
        expected = jnp.mean(jnp.sum((predicted - target[None]) ** 2, axis=2))
        assert metrics["flow_loss"] == pytest.approx(float(expected), rel=1e-4)
        # The last Euler step, of length 1 - t, lands on what the network says there.
        value = integrate(agent, state.params.field, path.x0, BATCH.observation, BATCH.action)
        assert np.isfinite(value).all()

    @pytest.mark.parametrize("solver", [diffrax.Heun(), diffrax.Tsit5()])
    def test_any_solver_trains(self, solver):
        agent = small("floq", solver=solver)
        state, noise = start(agent)
        _, metrics = eqx.filter_jit(agent.update)(state, BATCH, noise)
        assert jnp.isfinite(metrics["loss"])

    @pytest.mark.parametrize("adjoint", ADJOINTS)
    def test_every_adjoint_differentiates_the_integral(self, adjoint):
        def gradient(adjoint):
            agent = small("floq", adjoint=adjoint, extraction="integral", num_steps=16)
            state, noise = start(agent)
            loss = lambda params: agent.loss(params, state.targets, BATCH, noise)[0]  # noqa: E731
            policy = eqx.filter_jit(eqx.filter_grad(loss))(state.params).policy
            return np.concatenate([leaf.ravel() for leaf in jax.tree.leaves(policy)])

        expected = gradient(None)
        # Backwards in time Euler's steps are others, so that this adjoint only approximates.
        rtol = 0.1 if adjoint == "backsolveadjoint" else 1e-4
        error = np.linalg.norm(gradient(ADJOINTS[adjoint]()) - expected)
        assert error < rtol * np.linalg.norm(expected)

    @pytest.mark.parametrize("adjoint", ADJOINTS)
    def test_an_adjoint_by_name(self, adjoint):
        plain = json.loads(json.dumps(to_plain(Floq(adjoint=ADJOINTS[adjoint]()))))
        assert plain["adjoint"] == adjoint
        assert type(from_plain("floq", plain).adjoint) is ADJOINTS[adjoint]
        config = TrainConfig(agent=Floq(adjoint=ADJOINTS[adjoint]()))
        assert eqx.tree_equal(TrainConfig.from_plain(config.to_plain()).agent, config.agent)

    def test_a_configuration_from_before_there_were_adjoints(self):
        plain = TrainConfig(agent=Floq()).to_plain()
        assert plain["hyperparameters"].pop("adjoint") is None
        assert eqx.tree_equal(TrainConfig.from_plain(plain).agent, Floq())

    def test_an_adjoint_that_a_configuration_can_not_hold(self):
        with pytest.raises(ValueError, match=r"options.*'recursivecheckpointadjoint'"):
            to_plain(Floq(adjoint=diffrax.RecursiveCheckpointAdjoint(checkpoints=4)))
        with pytest.raises(ValueError, match="Unknown adjoint 'forwardmode'"):
            to_plain(Floq(adjoint=diffrax.ForwardMode()))
        with pytest.raises(ValueError, match=r"'direct'.*directadjoint"):
            from_plain("floq", {"adjoint": "direct"})

    def test_best_of_candidates(self):
        agent, one = small("floq", num_candidates=64), small("floq")
        state, _ = start(agent)
        observation = jnp.ones(3)
        keys = jax.random.split(KEY, 16)

        def q(actions):
            z0 = agent.initial_value(jnp.full((16, 1), 0.5))
            observations = jnp.broadcast_to(observation, (16, 3))
            value = integrate(agent, state.params.field, z0, observations, actions)
            return float(value.mean())

        best, plain = (
            jax.vmap(lambda k, a=a: a.act(state, observation, key=k))(keys) for a in (agent, one)
        )
        assert q(best) > q(plain)

    @pytest.mark.parametrize(
        "changes",
        [
            {"value_embedding": "rescaled", "time_embedding": "raw"},
            {"time_embedding": "fourier"},
            {"field": ResidualConfig(width=8, num_blocks=1, layer_norm=True)},
            {"normalise_q": True, "ensemble_size": 3, "distilled_size": 1},
        ],
    )
    def test_options_train(self, changes):
        agent = small("floq", **changes)
        state, noise = start(agent)
        new, metrics = eqx.filter_jit(agent.update)(state, BATCH, noise)
        assert jnp.isfinite(metrics["loss"])
        moved = [
            bool((a != b).any())
            for a, b in zip(jax.tree.leaves(new.params), jax.tree.leaves(state.params), strict=True)
        ]
        assert all(moved)

    @pytest.mark.parametrize(
        "changes",
        [
            {"num_noise": 0},
            {"num_steps": 0},
            {"num_steps": -3},
            {"distilled_size": 0},
            {"num_candidates": 0},
            {"noise_coverage": -0.1},
            {"reward_min": 0.0, "reward_max": 0.0},
            {"reward_min": 1.0, "reward_max": 0.0},
            {"num_bins": 1},
            {"backup": "none"},
            {"aggregation": "max"},
            {"extraction": "none"},
            {"prediction": "none"},
            {"time_embedding": "none"},
        ],
    )
    def test_bad_hyperparameters(self, changes):
        # The runtime type check refuses the wrong literals before the agent does.
        with pytest.raises((ValueError, TypeCheckError)):
            small("floq", **changes).init(3, 2, key=KEY)

    def test_equal_rewards_are_refused(self):
        data = dataclasses.replace(BATCH, reward=jnp.zeros(len(BATCH)))
        with pytest.raises(ValueError, match="rewards are equal"):
            small("floq").for_data(data)


def test_fql_with_a_residual_critic():
    agent = FQL(action_size=2, critic=ResidualConfig(width=8, num_blocks=1), actor=SMALL)
    state, noise = start(agent)
    _, metrics = eqx.filter_jit(agent.update)(state, BATCH, noise)
    assert jnp.isfinite(metrics["loss"])
    assert isinstance(agent, FQL)
    assert not isinstance(agent, Floq)
