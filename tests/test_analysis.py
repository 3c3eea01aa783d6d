"""Studies against closed forms: exact problems, trajectories, solvers, features, compute."""

import csv
import io
import math

import diffrax
import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jaxtyping import Array, Float

from floq_eqx import analysis
from floq_eqx.agents import TD, Flow, Quantile
from floq_eqx.analysis import SolverConfiguration, SolverRow
from floq_eqx.data import Batch
from floq_eqx.embeddings import Cosine, HLGauss
from floq_eqx.modules import (
    AbstractValueVelocity,
    ActionValue,
    ValueVelocity,
    member_quantiles,
    member_values,
    member_velocities,
)
from floq_eqx.networks import MLPConfig, ResidualConfig, ensemble

KEY = jax.random.key(0)
TINY = MLPConfig((8,), layer_norm=True)


class Linear(AbstractValueVelocity):
    """dz/dt = sum(a) - rate z: every endpoint and derivative is known."""

    rate: Float[Array, "..."]

    def __call__(self, t, z, observation, action):
        return jnp.sum(action) - self.rate * z

    def end(self, z0, action):
        decay = np.exp(-np.asarray(self.rate))[:, None, None]
        return decay * z0 + (1 - decay) / np.asarray(self.rate)[:, None, None] * action.sum(-1)


class Ideal(AbstractValueVelocity):
    """The exact field of an expected backup whose value is `target`: every path ends there."""

    target: Float[Array, "..."]

    def __call__(self, t, z, observation, action):
        return (self.target - z) / (1 - t)


def transitions(size=6, action_size=2):
    keys = jax.random.split(KEY, 2)
    return Batch(
        observation=jax.random.normal(keys[0], (size, 3)),
        action=jax.random.uniform(keys[1], (size, action_size), minval=-1),
        reward=jnp.zeros(size),
        mask=jnp.ones(size),
        next_observation=jnp.zeros((size, 3)),
    )


# ---------------------------------------------------------------------------------- problems

PROBLEMS = {
    "linear_quadratic": analysis.LinearQuadratic.random(key=KEY, reward_noise=0.3),
    "random_walk": analysis.RandomWalk(7, key=KEY),
}


@pytest.mark.parametrize("name", PROBLEMS)
def test_exact_q_is_the_mean_of_sampled_returns(name):
    problem, count = PROBLEMS[name], 4000
    batch = problem.data(5, key=jax.random.key(1))
    keys = jax.random.split(jax.random.key(2), count)
    sampled = jax.jit(
        jax.vmap(
            lambda o, a: jax.vmap(lambda key: problem.sampled_return(o, a, num_steps=150, key=key))(
                keys
            )
        )
    )(batch.observation, batch.action)
    exact = jax.vmap(problem.q)(batch.observation, batch.action)
    error = np.asarray(sampled.mean(axis=1) - exact)
    assert (np.abs(error) < 4 * np.asarray(sampled.std(axis=1)) / count**0.5).all()
    assert np.std(exact) > 0.05


@pytest.mark.parametrize("name", PROBLEMS)
def test_exact_q_solves_the_bellman_equation_on_its_data(name):
    """A regression of the TD error's mean on anything must find nothing: here, on 1 and Q."""
    problem = PROBLEMS[name]
    data = problem.data(20_000, key=jax.random.key(3))
    noise = jax.random.normal(jax.random.key(4), data.action.shape)
    q = jax.vmap(problem.q)
    next_action = jax.vmap(problem.act)(data.next_observation, noise)
    target = data.reward + problem.discount * data.mask * q(data.next_observation, next_action)
    value = q(data.observation, data.action)
    error = np.asarray(target - value)
    for weight in (np.ones_like(error), np.asarray(value - value.mean())):
        product = error * weight
        assert abs(product.mean()) < 4 * product.std() / len(error) ** 0.5


def test_linear_quadratic_without_dynamics_is_one_cost_after_another():
    problem = analysis.LinearQuadratic(
        np.zeros((2, 2)), np.zeros((2, 1)), np.zeros((1, 2)), discount=0.5, process_noise=1.0,
        policy_noise=2.0,
    )  # fmt: skip
    # Each later step costs E |w|^2 = 2 and half of E a^2 = 4.
    q = problem.q(jnp.array([1.0, 2.0]), jnp.array([3.0]))
    np.testing.assert_allclose(q, -(1 + 4) - 4.5 - 0.5 * 4 / 0.5, rtol=1e-6)


def test_random_walk_of_one_cell_ends_at_once():
    problem = analysis.RandomWalk(1, key=KEY)
    for action, chance in ((-1.0, 0.1), (0.0, 0.5), (1.0, 0.9)):
        np.testing.assert_allclose(problem.q(problem.cells[0], jnp.array([action])), chance)


def test_return_of_deterministic_dynamics_is_gaussian():
    problem = analysis.LinearQuadratic.random(
        key=KEY, process_noise=0.0, policy_noise=0.0, reward_noise=0.5
    )
    o, a = problem.draw(key=KEY)
    keys = jax.random.split(KEY, 4000)
    returns = jax.vmap(lambda key: problem.sampled_return(o, a, num_steps=100, key=key))(keys)
    np.testing.assert_allclose(np.std(returns), problem.return_std(), rtol=0.05)
    with pytest.raises(ValueError, match="process_noise=0 and policy_noise=0"):
        PROBLEMS["linear_quadratic"].return_std()


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: analysis.LinearQuadratic(np.eye(2), np.ones((2, 1)), np.ones((2, 1))), "n, n"),
        (
            lambda: analysis.LinearQuadratic(2 * np.eye(1), np.ones((1, 1)), np.zeros((1, 1))),
            "infinite",
        ),
        (lambda: analysis.LinearQuadratic.random(key=KEY, discount=1.0), "discount must be in"),
        (lambda: analysis.LinearQuadratic.random(key=KEY, reward_noise=-1), "reward_noise"),
        (lambda: analysis.LinearQuadratic.random(0, key=KEY), "observation_size"),
        (lambda: analysis.RandomWalk(0, key=KEY), "num_cells"),
        (lambda: PROBLEMS["random_walk"].data(0, key=KEY), "size must be"),
    ],
)
def test_problems_refuse_what_cannot_be(make, message):
    with pytest.raises(ValueError, match=message):
        make()


# ------------------------------------------------------------------------------ trajectories


def where(noise=3):
    batch = transitions()
    z0 = jax.random.normal(jax.random.key(5), (len(batch), noise))
    return z0, batch.observation, batch.action


def test_constant_field_is_straight():
    found = analysis.straightness(Linear(jnp.zeros(2)), *where())
    chord = jnp.broadcast_to(jnp.sum(where()[2], axis=1)[None, :, None], found.chord.shape)
    np.testing.assert_allclose(found.chord, chord, rtol=2e-5)
    np.testing.assert_allclose(found.deviation, 0, atol=3e-5)
    np.testing.assert_allclose(found.arc_over_chord, 1, atol=1e-4)
    np.testing.assert_allclose(found.late_change, 0, atol=3e-6)


def test_straightness_of_a_path_that_turns_back():
    class Turn(AbstractValueVelocity):
        size: Float[Array, "..."]

        def __call__(self, t, z, observation, action):
            return self.size * jnp.where(t < 0.75, 1.0, -1.0)

    found = analysis.straightness(Turn(jnp.array([2.0])), *where())
    np.testing.assert_allclose(found.chord, 1, rtol=1e-5)  # 0.75 * 2 - 0.25 * 2
    np.testing.assert_allclose(found.arc_over_chord, 2, rtol=1e-5)
    np.testing.assert_allclose(found.deviation, 0.75 * 1 + 0.25 * 3, rtol=1e-5)
    np.testing.assert_allclose(found.late_change, -1, rtol=1e-5)


def test_contraction_of_linear_fields():
    rates = jnp.array([0.5, 2.0])
    found = analysis.contraction(Linear(rates), *where(), num_steps=16)
    np.testing.assert_allclose(found.slope, jnp.broadcast_to(-rates[:, None, None], (16, 2, 6, 3)))
    gain = (1 - np.asarray(rates) / 16) ** 16
    np.testing.assert_allclose(found.final_gain[:, 0, 0], gain, rtol=1e-5)
    assert found.time.shape == (16,)


def test_contraction_rate_of_the_ideal_field_is_one():
    found = analysis.contraction(Ideal(jnp.array([1.0, -4.0])), *where())
    np.testing.assert_allclose(found.rate, 1, rtol=1e-5)
    np.testing.assert_allclose(found.final_gain, 0, atol=1e-6)


def test_disturbances_shrink_as_the_field_contracts():
    rates, steps = jnp.array([0.5, 2.0]), 8
    field, factor = Linear(rates), 1 - np.asarray(rates) / steps
    plain = analysis.disturbed_value(field, *where(), after=0, num_steps=steps)
    for after in range(steps + 1):
        kicked = analysis.disturbed_value(field, *where(), after=after, num_steps=steps, kick=3.0)
        left = np.asarray(kicked - plain)
        expected = np.broadcast_to(3 * factor[:, None, None] ** (steps - after), left.shape)
        np.testing.assert_allclose(left, expected, rtol=1e-4)


def test_a_stale_field_makes_the_first_steps():
    z0, observation, action = where()
    stale = Linear(jnp.array([4.0]))
    value = analysis.disturbed_value(
        Linear(jnp.array([0.0])), z0, observation, 0 * action, after=2, num_steps=8, stale=stale
    )
    np.testing.assert_allclose(value[0], z0 * 0.5**2, rtol=1e-5)
    ideal = Ideal(jnp.array([1.5]))
    mended = analysis.disturbed_value(ideal, z0, observation, action, after=6, stale=stale)
    np.testing.assert_allclose(mended, 1.5, rtol=1e-5)


@pytest.mark.parametrize("after", [-1, 9])
def test_disturbance_within_the_integral_only(after):
    with pytest.raises(ValueError, match=r"after must be in \[0, num_steps = 8\]"):
        analysis.disturbed_value(Linear(jnp.ones(1)), *where(), after=after)


# ----------------------------------------------------------------------------------- solvers

FIELD = Linear(jnp.array([1.0, 3.0]))


def compare(configurations, field=FIELD, **options):
    batch = transitions()
    options = {"z0": jnp.linspace(-1, 1, len(batch)), "key": KEY, "repeats": 1} | options
    return analysis.compare_solvers(field, batch, configurations, **options)


def test_comparison_on_a_field_with_known_endpoints():
    batch, z0 = transitions(), jnp.linspace(-1, 1, 6)
    candidates = jax.random.uniform(KEY, (6, 5, 2), minval=-1)
    exact = FIELD.end(np.asarray(z0)[None, :, None], np.asarray(candidates)).mean(axis=0)
    configurations = [
        SolverConfiguration(diffrax.Euler(), 1),
        SolverConfiguration(diffrax.Euler(), 16),
        SolverConfiguration(diffrax.Midpoint(), 8),
        SolverConfiguration(diffrax.Tsit5(), 4),
        SolverConfiguration(diffrax.Tsit5(), tolerance=1e-4, independent=True),
    ]
    found = compare(configurations, z0=z0, candidates=candidates, exact=jnp.asarray(exact))
    rows = found.rows
    assert [row.name for row in rows] == [c.name for c in configurations]
    assert all(row.failure == "" for row in rows)
    assert [row.evaluations for row in rows[:4]] == [1, 16, 16, 25]
    assert rows[4].most_evaluations >= rows[4].evaluations > 7

    euler = (1 - np.array([1.0, 3.0])[:, None, None]) * np.asarray(z0)[None, :, None]
    euler = euler + np.asarray(candidates.sum(-1))
    error = np.abs(euler - FIELD.end(np.asarray(z0)[None, :, None], np.asarray(candidates)))
    np.testing.assert_allclose(rows[0].mean_error, error.mean(), rtol=1e-4)
    np.testing.assert_allclose(rows[0].worst_error, error.max(), rtol=1e-4)
    # dQ/da is 1 by Euler's single step, and the mean of (1 - exp(-rate)) / rate exactly.
    slope = ((1 - np.exp([-1.0, -3.0])) / [1.0, 3.0]).mean()
    np.testing.assert_allclose(rows[0].gradient_error, 1 / slope - 1, rtol=1e-4)
    assert rows[0].mean_error > rows[1].mean_error > rows[2].mean_error > rows[3].mean_error
    # A sum of the action raises Q alike everywhere, so no solver gets the ranking wrong.
    assert [row.best_agreement for row in rows[:4]] == [1] * 4
    np.testing.assert_allclose([row.kendall_tau for row in rows[:4]], 1, rtol=1e-6)
    np.testing.assert_allclose(found.reference_error, 0, atol=1e-6)
    np.testing.assert_allclose(rows[3].exact_error, 0, atol=1e-3)
    assert all(row.seconds > 0 and row.compile_seconds > 0 for row in rows)
    assert len(batch) == 6


@pytest.mark.slow
def test_comparison_of_a_batch_as_one_and_of_an_implicit_solver():
    together, alone, implicit = compare(
        [
            SolverConfiguration(diffrax.Tsit5(), tolerance=1e-4),
            SolverConfiguration(diffrax.Tsit5(), tolerance=1e-4, independent=True),
            SolverConfiguration(diffrax.Kvaerno3(), tolerance=1e-3, independent=True),
        ]
    ).rows
    assert together.evaluations == alone.evaluations or alone.most_evaluations > 7
    # Diffrax does not tell how often a root finder evaluates the field.
    assert math.isnan(implicit.evaluations)
    assert max(row.mean_error for row in (together, alone, implicit)) < 1e-2


def test_a_configuration_that_fails_says_so_and_the_others_go_on():
    rows = compare(
        [
            SolverConfiguration(diffrax.Tsit5(), tolerance=1e-6, max_steps=2),
            SolverConfiguration(diffrax.Euler()),
            SolverConfiguration(diffrax.Euler(), tolerance=1e-3),
            SolverConfiguration(diffrax.EulerHeun(), 4),
            SolverConfiguration(diffrax.Euler(), 0),
            SolverConfiguration(diffrax.Tsit5(), 4, independent=True),
            SolverConfiguration(diffrax.Heun(), tolerance=0.0),
            SolverConfiguration(diffrax.Euler(), 2),
        ]
    ).rows
    reasons = ["maximum number", "Give num_steps", "error", "stochastic", "at least 1"]
    reasons += ["same for every example", "must be positive"]
    for row, reason in zip(rows[:-1], reasons, strict=True):
        assert reason in row.failure, (row.name, row.failure)
        assert math.isnan(row.mean_error)
    assert rows[-1].failure == ""
    assert rows[-1].evaluations == 2


def test_a_field_that_blows_up_is_named():
    class Explosion(AbstractValueVelocity):
        rate: Float[Array, "..."]

        def __call__(self, t, z, observation, action):
            return self.rate * z**2

    with pytest.raises(ValueError, match="the field is at fault"):
        compare([SolverConfiguration(diffrax.Euler(), 2)], field=Explosion(jnp.array([50.0])))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"candidates": jnp.zeros((6, 1, 2))}, "at least 2 candidates"),
        ({"num_candidates": 1}, "at least 2 candidates"),
        ({"key": None}, "or a key"),
        ({"z0": jnp.zeros(3)}, "6 rows"),
        ({"repeats": 0}, "repeats must be"),
    ],
)
def test_comparison_refuses_what_it_cannot_compare(options, message):
    with pytest.raises(ValueError, match=message):
        compare([SolverConfiguration(diffrax.Euler(), 2)], **options)
    with pytest.raises(ValueError, match="no configurations"):
        compare([])


def test_tables_and_pareto_front():
    rows = (
        SolverRow("a", 1.0, 1.0, 1e-3, 1.0, 0.5, 1.0, 0.1, 0.1, 0.9, 1.0),
        SolverRow("b", 2.0, 2.0, 1e-3, 1.0, 0.6, 1.0, 0.1, 0.1, 0.9, 1.0),
        SolverRow("c", 4.0, 5.0, 1e-3, 1.0, 0.1, 1.0, 0.1, 0.1, 0.9, 1.0),
        SolverRow("d", failure="too | steep"),
    )
    comparison = analysis.SolverComparison(rows)
    assert [row.name for row in comparison.pareto()] == ["a", "c"]
    read = list(csv.DictReader(io.StringIO(comparison.csv())))
    assert [row["name"] for row in read] == ["a", "b", "c", "d"]
    assert float(read[2]["mean_error"]) == 0.1
    assert read[3]["failure"] == "too | steep"
    lines = comparison.markdown().splitlines()
    assert lines[2].startswith("| **a** | 1 | 1 |")
    assert lines[4].startswith("| **c** | 4 (5) |")
    assert len({line.count("|") for line in lines}) == 1


def test_default_configurations_are_distinct_and_valid():
    configurations = analysis.default_configurations()
    for configuration in configurations:
        configuration.check()
    assert len({c.name for c in configurations}) == len(configurations) == 8 * 6 + 6 * 3


@pytest.mark.parametrize(
    ("solver", "order"),
    [
        (diffrax.Euler(), 1),
        (diffrax.Midpoint(), 2),
        (diffrax.Heun(), 2),
        (diffrax.Ralston(), 2),
        (diffrax.Bosh3(), 3),
        (diffrax.Dopri5(), 5),
        (diffrax.Tsit5(), 5),
        (diffrax.Dopri8(), 8),
    ],
    ids=lambda value: type(value).__name__,
)
def test_observed_order_is_the_solvers(solver, order):
    def velocity(t, x):
        return 3 * x * (1 - x)

    steps = (4, 6, 8) if order == 8 else (32, 64)
    x0 = jnp.linspace(0.1, 0.4, 5)
    found = analysis.observed_order(velocity, x0, solver=solver, num_steps=steps)
    assert abs(found - order) < 0.3


def test_order_of_a_field_with_a_kink_is_lower():
    def velocity(t, x):
        return jnp.abs(x - 0.3) + 1

    found = analysis.observed_order(velocity, jnp.linspace(-0.5, 0, 7), solver=diffrax.Dopri8())
    assert found < 3.5


def test_order_needs_errors_at_two_steps():
    with pytest.raises(ValueError, match="at least two"):
        analysis.observed_order(lambda t, x: x, jnp.ones(()), solver=diffrax.Euler(), num_steps=[8])
    with pytest.raises(ValueError, match="exactly zero"):
        analysis.observed_order(lambda t, x: 0 * x, jnp.ones(()), solver=diffrax.Euler())


def test_rank_agreement():
    ranked = np.array([[1.0, 2.0, 3.0, 4.0]])
    assert analysis.rank_agreement(ranked, 10 * ranked) == 1
    assert analysis.rank_agreement(ranked, -ranked) == -1
    swapped = np.array([[2.0, 1.0, 3.0, 4.0]])
    np.testing.assert_allclose(analysis.rank_agreement(ranked, swapped), 4 / 6)
    assert analysis.rank_agreement(ranked, np.ones((1, 4))) == 0


# ------------------------------------------------------------------------- features, compute


def test_feature_statistics():
    orthogonal = 3 * jnp.eye(6)
    found = analysis.feature_statistics(orthogonal)
    assert found["feature_norm"] == 3
    assert found["effective_rank"] == 6
    one = jnp.outer(jnp.arange(1.0, 6), jnp.array([3.0, 4.0]))
    found = analysis.feature_statistics(one)
    np.testing.assert_allclose(found["feature_norm"], 15, rtol=1e-6)
    assert found["effective_rank"] == 1
    nearly = jnp.diag(jnp.array([1.0, 1.0, 1e-3]))
    assert analysis.feature_statistics(nearly)["effective_rank"] == 2


def test_features_are_what_the_last_layer_sees():
    batch = transitions()
    size = batch.observation.shape[1] + batch.action.shape[1]
    members = ensemble(lambda key: ActionValue(TINY.build(size, 1, key=key)), 2, key=KEY)
    features = analysis.critic_features(members, batch.observation, batch.action)
    last = analysis.first_member(members).network.output
    value = features @ last.weight[0] + last.bias
    expected = member_values(members, batch.observation, batch.action)[0]
    np.testing.assert_allclose(value, expected, rtol=1e-5, atol=1e-6)

    embed_z, embed_t = HLGauss(-2.0, 2.0), Cosine()
    inputs = size + embed_z.size + embed_t.size
    fields = ensemble(
        lambda key: ValueVelocity(TINY.build(inputs, 1, key=key), embed_z, embed_t), 2, key=KEY
    )
    t, z = jnp.linspace(0, 0.9, len(batch)), jnp.linspace(-1, 1, len(batch))
    features = analysis.field_features(fields, t, z, batch.observation, batch.action)
    last = analysis.first_member(fields).network.output
    velocity = member_velocities(fields, t[:, None], z[:, None], batch.observation, batch.action)
    value = features @ last.weight[0] + last.bias
    np.testing.assert_allclose(value, velocity[0, :, 0], rtol=1e-5, atol=1e-6)


def test_flops_are_counted_from_shapes():
    assert analysis.network_flops(MLPConfig((10, 20), layer_norm=True), 5) == 2 * (50 + 200 + 20)
    residual = ResidualConfig(width=10, num_blocks=3, block_layers=2, layer_norm=True)
    assert analysis.network_flops(residual, 5, 4) == 2 * (50 + 3 * 200 + 40)


def test_controls_match_the_integrals_compute():
    field, k, field_inputs, inputs = MLPConfig((64, 64), layer_norm=True), 8, 57, 6
    wanted = k * analysis.network_flops(field, field_inputs)
    residual = analysis.matched_residual(field, k, field_inputs, inputs)
    assert residual.layer_norm
    assert abs(analysis.network_flops(residual, inputs) / wanted - 1) < 0.1
    members = analysis.matched_ensemble(field, k, field_inputs, inputs)
    assert abs(members * analysis.network_flops(field, inputs) / wanted - 1) < 0.1
    with pytest.raises(ValueError, match="num_evaluations"):
        analysis.matched_residual(field, 0, field_inputs, inputs)


# ------------------------------------------------------------------------- policy evaluation

WALK = PROBLEMS["random_walk"]
DATA = WALK.data(200, key=KEY)


def critic(kind="td", **options):
    shared = {"discount": WALK.discount, "network": TINY}
    if kind == "td":
        made = TD(ensemble_size=1, **shared)
    else:
        made = Flow(distil=False, num_noise=2, num_steps=2, **shared)
    return analysis.policy_evaluation(made.for_data(DATA), WALK, **options)


def evaluate(critics, **options):
    options = {"num_updates": 4, "every": 2, "num_seeds": 2, "key": KEY, "batch_size": 8} | options
    return analysis.evaluate_policy(critics, DATA, WALK.data(50, key=jax.random.key(9)), **options)


def same(a, b):
    return all(
        np.array_equal(x, y) for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True)
    )


def test_a_quantile_critic_is_evaluated_by_the_mean_of_its_levels():
    made = Quantile(discount=WALK.discount, network=TINY, num_noise=2)
    walk = analysis.policy_evaluation(made, WALK)
    curve = evaluate({"iqn": walk})["iqn"]
    assert np.isfinite(curve.held_out["error"]).all()
    state = walk.init(WALK.observation_size, 1, key=KEY)
    few = DATA.observation[:16], DATA.action[:16]
    value = analysis.learned_value(walk, state, *few, key=KEY, num_noise=4096)
    levels = jnp.broadcast_to(jnp.linspace(0.001, 0.999, 256), (16, 256))
    exact = member_quantiles(state.params.critic, *few, levels)
    np.testing.assert_allclose(value, exact.mean(axis=(0, 2)), atol=0.1)


@pytest.mark.parametrize("kind", ["td", "flow"])
def test_curves_of_equal_critics_are_equal_and_continue_bitwise(kind):
    curves = evaluate({"a": critic(kind), "b": critic(kind)})
    assert same(curves["a"].states, curves["b"].states)
    assert curves["a"].held_out["error"].shape == (2, 3)
    np.testing.assert_array_equal(curves["a"].steps, [0, 2, 4])
    half = evaluate({"a": critic(kind)}, num_updates=2)
    rest = evaluate({"a": critic(kind)}, num_updates=2, states={"a": half["a"].states})
    assert same(rest["a"].states, curves["a"].states)
    np.testing.assert_array_equal(rest["a"].steps, [2, 4])
    np.testing.assert_array_equal(rest["a"].data["error"][:, -1], curves["a"].data["error"][:, -1])


def test_error_of_a_known_critic():
    walk = critic()
    state = walk.init(WALK.observation_size, 1, key=KEY)
    network = state.params.critic.network
    # A last layer of zeros: Q is its bias, everywhere.
    zeroed = eqx.tree_at(
        lambda n: (n.output.weight, n.output.bias),
        network,
        (0 * network.output.weight, 0 * network.output.bias + 0.5),
    )
    state = eqx.tree_at(lambda s: s.params.critic.network, state, zeroed)
    exact = np.asarray(jax.vmap(WALK.q)(DATA.observation, DATA.action))
    found = analysis.q_error(walk, state, DATA, KEY)
    np.testing.assert_allclose(found["bias"], (0.5 - exact).mean() / exact.std(), rtol=1e-5)
    rms = np.sqrt(((0.5 - exact) ** 2).mean()) / exact.std()
    np.testing.assert_allclose(found["error"], rms, rtol=1e-5)


def test_monolithic_critic_learns_the_exact_q():
    network = MLPConfig((64, 64), layer_norm=True)
    made = TD(discount=WALK.discount, network=network, ensemble_size=1)
    data = WALK.data(4000, key=KEY)
    walk = analysis.policy_evaluation(made, WALK, learning_rate=3e-3, target_rate=0.05)
    curves = analysis.evaluate_policy(
        {"mlp": walk}, data, DATA, num_updates=1500, every=1500, num_seeds=1, key=KEY
    )
    assert curves["mlp"].held_out["error"][0, -1] < 0.35 < curves["mlp"].held_out["error"][0, 0]


@pytest.mark.parametrize("kind", ["td", "flow"])
def test_frozen_features_stay_and_the_last_layer_moves(kind):
    frozen = critic(kind, frozen_features=True)
    init = eqx.filter_vmap(lambda key: frozen.init(WALK.observation_size, 1, key=key))
    start = init(jax.random.split(KEY, 2))
    end = evaluate({"a": frozen}, states={"a": start})["a"].states
    before, after = (
        (s.params.critic if kind == "td" else s.params.critic.field).network for s in (start, end)
    )
    assert same(before.hidden, after.hidden)
    assert not np.array_equal(before.output.weight, after.output.weight)


def test_target_noise_is_in_the_targets():
    quiet, loud = critic(), critic(target_noise=100.0)
    losses = {}
    for name, walk in {"quiet": quiet, "loud": loud}.items():
        state = walk.init(WALK.observation_size, 1, key=KEY)
        noise = walk.noise(len(DATA), key=KEY)
        losses[name], _ = walk.loss(state.params, state.targets, DATA, noise)
    np.testing.assert_allclose(losses["loud"], 100**2, rtol=0.3)
    assert losses["quiet"] < 100


def test_policy_evaluation_refuses_what_cannot_be():
    with pytest.raises(ValueError, match=r"discount of 0\.5, the problem one of 0\.97"):
        analysis.policy_evaluation(TD(discount=0.5, network=TINY), WALK)
    with pytest.raises(ValueError, match="target_noise"):
        critic(target_noise=-1.0)
    with pytest.raises(ValueError, match="must divide"):
        evaluate({"a": critic()}, every=3)


def test_acting_is_the_problems_policy():
    walk = critic()
    state = walk.init(WALK.observation_size, 1, key=KEY)
    action = walk.act(state, WALK.cells[0], key=KEY)
    np.testing.assert_array_equal(action, WALK.act(WALK.cells[0], jax.random.normal(KEY, (1,))))
