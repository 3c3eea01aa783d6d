"""`solve_flow`: closed forms, orders, gradients, counts, failures, and bad input."""

import re

import diffrax
import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optimistix as optx
import pytest

from floq_eqx.integrate import RESULTS, solve_flow

jax.config.update("jax_numpy_dtype_promotion", "strict")
jax.config.update("jax_numpy_rank_promotion", "raise")

EXPLICIT = {
    "Euler": diffrax.Euler(),
    "Midpoint": diffrax.Midpoint(),
    "Heun": diffrax.Heun(),
    "Ralston": diffrax.Ralston(),
    "Bosh3": diffrax.Bosh3(),
    "Tsit5": diffrax.Tsit5(),
    "Dopri5": diffrax.Dopri5(),
    "Dopri8": diffrax.Dopri8(),
    "ReversibleHeun": diffrax.ReversibleHeun(),
    "LeapfrogMidpoint": diffrax.LeapfrogMidpoint(),
    "HalfEuler": diffrax.HalfSolver(diffrax.Euler()),
    "HalfBosh3": diffrax.HalfSolver(diffrax.Bosh3()),
}
ADAPTIVE = {k: s for k, s in EXPLICIT.items() if isinstance(s, diffrax.AbstractAdaptiveSolver)}
PID = diffrax.PIDController(rtol=1e-4, atol=1e-6)
CHORD = diffrax.VeryChord(rtol=1e-3, atol=1e-4, norm=optx.rms_norm)


def each(solvers):
    return pytest.mark.parametrize("solver", solvers.values(), ids=solvers.keys())


class Linear(eqx.Module):
    """dx/dt = a x + b, whose endpoint is exp(a) x0 + b (exp(a) - 1) / a."""

    a: jax.Array
    b: jax.Array

    def __call__(self, t, x, *args):
        return self.a * x + self.b

    def endpoint(self, x0):
        return jnp.exp(self.a) * x0 + self.b * jnp.expm1(self.a) / self.a


class Network(eqx.Module):
    """A field of one scalar z, given one observation: a small MLP."""

    mlp: eqx.nn.MLP

    def __init__(self, *, key):
        self.mlp = eqx.nn.MLP(5, 1, 16, 1, activation=jax.nn.gelu, key=key)

    def __call__(self, t, z, observation):
        return self.mlp(jnp.concatenate([observation, z[None], t[None]]))[0]


class Batched(eqx.Module):
    one: eqx.Module

    def __call__(self, t, z, observation):
        return jax.vmap(self.one, (None, 0, 0))(t, z, observation)


def linear(a=-1.3, b=0.4, dtype=jnp.float32):
    return Linear(jnp.asarray(a, dtype), jnp.asarray(b, dtype))


def network_problem(batch=6):
    keys = jax.random.split(jax.random.key(0), 3)
    return (
        Network(key=keys[0]),
        jax.random.normal(keys[1], (batch,)),
        jax.random.normal(keys[2], (batch, 3)),
    )


def wavy(t, x):
    """Nonlinear, smooth, time dependent, and steep enough that adaptive steps are rejected."""
    return jnp.sin(9 * t) * jnp.exp(-x) + x


def euler_scan(velocity, x0, *args, num_steps):
    def step(x, k):
        return x + velocity(k * (1 / num_steps), x, *args) / num_steps, None

    return jax.lax.scan(step, x0, jnp.arange(num_steps, dtype=x0.dtype))[0]


# Values


@pytest.mark.parametrize("shape", [(), (3,), (2, 4, 3), (0,)])
def test_value_has_the_shape_and_dtype_of_x0_and_the_exact_endpoint(shape):
    field, x0 = linear(), jnp.linspace(-1.0, 2.0, int(np.prod(shape))).reshape(shape)
    solution = solve_flow(field, x0, solver=diffrax.Dopri8())
    assert solution.value.shape == shape
    assert solution.value.dtype == jnp.float32
    assert np.allclose(solution.value, field.endpoint(x0), rtol=1e-6, atol=1e-6)
    assert solution.path is None
    assert bool(solution.result == RESULTS.successful)


@pytest.mark.parametrize("num_steps", [1, 2, 8, 10])
@pytest.mark.parametrize("adjoint", [None, diffrax.RecursiveCheckpointAdjoint()])
def test_euler_multiplies_by_one_plus_a_over_k(num_steps, adjoint):
    x0 = jnp.asarray([1.0, -2.0])
    solution = solve_flow(linear(0.7, 0.0), x0, num_steps=num_steps, adjoint=adjoint)
    assert np.allclose(solution.value, (1 + 0.7 / num_steps) ** num_steps * x0, rtol=1e-6)
    assert int(solution.num_steps) == int(solution.num_evaluations) == num_steps


@pytest.mark.parametrize("num_steps", [1, 8, 10])
def test_euler_is_the_plain_sum(num_steps):
    network, z0, observation = network_problem()
    field = Batched(network)
    got = jax.jit(lambda: solve_flow(field, z0, observation, num_steps=num_steps).value)()
    expected = jax.jit(lambda: euler_scan(field, z0, observation, num_steps=num_steps))()
    assert np.allclose(got, expected, rtol=3e-6, atol=1e-6)
    wrong = euler_scan(field, z0, observation, num_steps=num_steps + 1)
    assert not np.allclose(got, wrong, rtol=3e-6, atol=1e-6)


def test_euler_is_the_plain_sum_bitwise_for_eight_steps_of_an_exact_field():
    x0 = jax.random.normal(jax.random.key(1), (100,))
    field = lambda t, x: -x + t  # noqa: E731
    got = solve_flow(field, x0).value
    x = np.asarray(x0)
    for k in range(8):
        x = x + np.float32(1 / 8) * (-x + np.float32(k / 8))
    assert np.abs(np.asarray(got) - x).max() <= np.spacing(np.float32(2))


@pytest.mark.parametrize("adjoint", [None, diffrax.RecursiveCheckpointAdjoint()])
@pytest.mark.parametrize("num_steps", [1, 3, 8, 10])
def test_times_are_k_over_num_steps(num_steps, adjoint):
    path = solve_flow(
        wavy, jnp.float32(0), num_steps=num_steps, save_path=True, adjoint=adjoint
    ).path
    expected = (np.arange(num_steps + 1) / num_steps).astype(np.float32)
    assert path.time.shape == (num_steps + 1,)
    assert np.abs(np.asarray(path.time) - expected).max() <= np.spacing(np.float32(1))


ORDERS = {
    "Euler": (1, 128),
    "Midpoint": (2, 32),
    "Heun": (2, 32),
    "Ralston": (2, 32),
    "Bosh3": (3, 32),
    "Tsit5": (5, 64),
    "Dopri5": (5, 32),
    "Dopri8": (8, 8),
}


def turning(t, x):
    """A rotation at speed 3 + 2 cos(t): from 0 to 1 it turns by 3 + 2 sin(1)."""
    return (3 + 2 * jnp.cos(t)) * jnp.stack([-x[1], x[0]])


@pytest.mark.parametrize("name", ORDERS)
def test_order_of_convergence(name):
    order, num_steps = ORDERS[name]
    angle = 3 + 2 * np.sin(1.0)
    exact = np.array([np.cos(angle), np.sin(angle)])
    with jax.enable_x64(True):
        x0 = jnp.asarray([1.0, 0.0])
        assert x0.dtype == jnp.float64
        errors = [
            np.linalg.norm(
                solve_flow(turning, x0, solver=EXPLICIT[name], num_steps=k).value - exact
            )
            for k in (num_steps, 2 * num_steps)
        ]
    assert np.log2(errors[0] / errors[1]) == pytest.approx(order, abs=0.3)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("controller", [None, PID], ids=["fixed", "adaptive"])
def test_dtype_of_x0_decides_under_x64(dtype, controller):
    with jax.enable_x64(True):
        field, x0 = linear(dtype=dtype), jnp.ones(2, dtype)
        seen = []

        def velocity(t, x):
            seen.append((t.dtype, x.dtype))
            return field(t, x)

        solution = solve_flow(
            velocity,
            x0,
            solver=diffrax.Heun(),
            stepsize_controller=controller,
            save_path=True,
            max_steps=200,
        )
        assert solution.value.dtype == solution.path.time.dtype == dtype
        assert set(seen) == {(np.dtype(dtype), np.dtype(dtype))}
        assert np.allclose(solution.value, field.endpoint(x0), rtol=1e-2)


@each(ADAPTIVE)
def test_adaptive_meets_its_tolerance(solver):
    field, x0 = linear(-1.3, 0.4), jnp.asarray([1.0, 2.0])
    controller = diffrax.PIDController(rtol=1e-3, atol=1e-4)
    solution = solve_flow(field, x0, solver=solver, stepsize_controller=controller)
    # The controller bounds the error of a step; over the steps it grows, most at order one.
    assert np.allclose(solution.value, field.endpoint(x0), rtol=2e-2)
    assert 2 <= int(solution.num_steps) < 200


@pytest.mark.parametrize(
    ("solver", "options"),
    [
        (diffrax.Kvaerno3(root_finder=CHORD), {}),
        (diffrax.ImplicitEuler(root_finder=CHORD), {"num_steps": 400}),
        (diffrax.Kvaerno3(), {"stepsize_controller": PID}),
        (diffrax.Kvaerno5(), {"stepsize_controller": PID, "independent": True}),
    ],
)
def test_implicit_solvers(solver, options):
    # Stiff: eight explicit steps of this would multiply by more than 10 each.
    field, x0 = linear(-100.0, 50.0), jnp.asarray([1.0, 0.2])
    solution = solve_flow(field, x0, solver=solver, **options)
    assert np.allclose(solution.value, field.endpoint(x0), rtol=5e-3)
    assert (solution.num_evaluations == -1).all()


def test_an_implicit_step_that_diverges_is_reported():
    solver = diffrax.Kvaerno3(
        root_finder=diffrax.VeryChord(rtol=1e-6, atol=1e-9, norm=optx.rms_norm)
    )
    solution = solve_flow(
        lambda t, x: 60 * jnp.sin(40 * x), jnp.float32(0.3), solver=solver, throw=False
    )
    assert not bool(solution.result == RESULTS.successful)
    assert "Nonlinear" in RESULTS[solution.result]


# Half precision, and many steps


HALVES = pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float16])
ADJOINTS = pytest.mark.parametrize(
    "adjoint",
    [None, diffrax.RecursiveCheckpointAdjoint(), diffrax.BacksolveAdjoint()],
    ids=lambda value: type(value).__name__,
)


@HALVES
@ADJOINTS
@pytest.mark.parametrize("num_steps", [8, 10, 100])
def test_steps_in_half_precision_are_equal(dtype, adjoint, num_steps):
    x0 = jnp.asarray([1.0, -2.0], dtype)
    solution = solve_flow(lambda t, x: -x, x0, num_steps=num_steps, adjoint=adjoint)
    assert int(solution.num_steps) == num_steps
    assert solution.value.dtype == dtype
    # Half precision only rounds the velocities, and the value at the end.
    expected = (1 - 1 / num_steps) ** num_steps * np.asarray([1.0, -2.0])
    got = np.asarray(solution.value, np.float64)
    assert np.allclose(got, expected, rtol=float(jnp.finfo(dtype).eps))


@HALVES
@pytest.mark.parametrize("controller", [None, PID], ids=["fixed", "adaptive"])
def test_a_field_in_half_precision_sees_half_precision(dtype, controller):
    seen = []

    def velocity(t, x):
        seen.append((t.dtype, x.dtype))
        return jnp.ones_like(x)

    options = {"solver": diffrax.Heun(), "stepsize_controller": controller, "max_steps": 20}
    solution = solve_flow(velocity, jnp.zeros(2, dtype), num_steps=10, save_path=True, **options)
    assert set(seen) == {(jnp.dtype(dtype), jnp.dtype(dtype))}
    assert solution.path.value.dtype == dtype
    assert np.array_equal(np.asarray(solution.value, np.float32), [1, 1])


@HALVES
@ADJOINTS
def test_small_steps_in_half_precision_are_made(dtype, adjoint):
    # In bfloat16 0.5 + 1 / 1000 is 0.5: neither the times nor the value would move.
    save_path = not isinstance(adjoint, diffrax.BacksolveAdjoint)
    solution = solve_flow(
        lambda t, x: jnp.ones_like(x),
        jnp.zeros((), dtype),
        num_steps=1000,
        save_path=save_path,
        adjoint=adjoint,
    )
    assert int(solution.num_steps) == 1000
    assert float(solution.value) == 1
    if save_path:
        assert solution.path.time.dtype == jnp.float32
        assert np.allclose(np.diff(solution.path.time), 1e-3, rtol=1e-3)


@HALVES
def test_adaptive_steps_in_half_precision(dtype):
    x0, eps = jnp.asarray([1.0, 2.0], dtype), float(jnp.finfo(dtype).eps)
    solution = solve_flow(
        lambda t, x: jnp.cos(3 * t) * jnp.ones_like(x),
        x0,
        solver=diffrax.Tsit5(),
        stepsize_controller=diffrax.PIDController(rtol=eps, atol=eps),
        save_path=True,
        max_steps=40,
    )
    expected = np.asarray([1.0, 2.0]) + np.sin(3) / 3
    assert np.allclose(np.asarray(solution.value, np.float64), expected, rtol=2 * eps)
    time = np.asarray(solution.path.time)
    assert time.dtype == np.float32
    assert (np.diff(time[np.isfinite(time)]) > 0).all()


@ADJOINTS
@pytest.mark.parametrize("num_steps", [1000, 3001])
def test_many_steps_are_as_many_and_equal(adjoint, num_steps):
    save_path = not isinstance(adjoint, diffrax.BacksolveAdjoint)
    solution = solve_flow(
        linear(0.7, 0.0), jnp.float32(1), num_steps=num_steps, save_path=save_path, adjoint=adjoint
    )
    assert int(solution.num_steps) == int(solution.num_evaluations) == num_steps
    assert np.allclose(solution.value, (1 + 0.7 / num_steps) ** num_steps, rtol=1e-5)
    if save_path:
        expected = (np.arange(num_steps + 1) / num_steps).astype(np.float32)
        assert np.array_equal(solution.path.time, expected)


def test_more_steps_than_diffrax_makes_are_refused():
    field, x0 = linear(), jnp.float32(1)
    options = {"num_steps": 200_000, "adjoint": diffrax.RecursiveCheckpointAdjoint()}
    with pytest.raises(ValueError, match=r"200000; with an `adjoint`.*131072"):
        solve_flow(field, x0, **options)
    options = {"num_steps": 131_072, "adjoint": diffrax.ForwardMode()}
    assert int(solve_flow(field, x0, **options).num_steps) == 131_072


# Paths


def test_path_of_fixed_steps_holds_every_step():
    x0 = jnp.asarray([[1.0, -2.0]])
    solution = solve_flow(linear(0.5, 0.0), x0, num_steps=4, save_path=True)
    factor = (1 + 0.5 / 4) ** np.arange(5, dtype=np.float32)[:, None, None]
    assert solution.path.value.shape == (5, 1, 2)
    assert np.allclose(solution.path.value, factor * np.asarray(x0), rtol=1e-6)
    assert np.array_equal(solution.path.value[-1], solution.value)


def test_path_of_adaptive_steps_is_padded_with_infinity():
    field, x0 = linear(), jnp.asarray([1.0, -2.0])
    solution = solve_flow(
        field,
        x0,
        solver=diffrax.Tsit5(),
        stepsize_controller=PID,
        max_steps=20,
        save_path=True,
    )
    time, value = np.asarray(solution.path.time), np.asarray(solution.path.value)
    assert time.shape == (21,)
    assert value.shape == (21, 2)
    reached = np.isfinite(time)
    count = reached.sum()
    assert 3 <= count <= int(solution.num_steps) + 1
    assert reached[:count].all()
    assert (time[0], time[count - 1]) == (0, 1)
    assert (np.diff(time[:count]) > 0).all()
    assert np.isinf(value[count:]).all()
    for t, x in zip(time[:count], value[:count], strict=True):
        exact = np.exp(-1.3 * t) * np.asarray(x0) + 0.4 * np.expm1(-1.3 * t) / -1.3
        assert np.allclose(x, exact, rtol=1e-3, atol=1e-4)
    assert np.array_equal(value[count - 1], solution.value)


# Evaluations


def counted(velocity, x0, *args, **options):
    """A jitted solve, and how often it called the field at run time."""
    calls = 0

    def tick():
        nonlocal calls
        calls += 1

    def ticking(t, x, *args):
        jax.debug.callback(tick)
        return velocity(t, x, *args)

    solution = jax.jit(lambda x0: solve_flow(ticking, x0, *args, throw=False, **options))(x0)
    jax.block_until_ready(solution.value)
    jax.effects_barrier()
    return solution, calls


@pytest.mark.parametrize(
    ("solver", "num_steps"),
    [*((solver, 5) for solver in EXPLICIT.values()), (EXPLICIT["Tsit5"], 1)],
    ids=[*EXPLICIT, "Tsit5-1"],
)
def test_evaluations_of_fixed_steps(solver, num_steps):
    solution, calls = counted(wavy, jnp.asarray([0.3, 1.0]), solver=solver, num_steps=num_steps)
    assert int(solution.num_evaluations) == calls
    assert int(solution.num_steps) == num_steps


@pytest.mark.parametrize("name", ["Euler", "Heun", "Tsit5"])
def test_evaluations_of_fixed_steps_with_an_adjoint(name):
    solution, calls = counted(
        wavy,
        jnp.float32(0.3),
        solver=EXPLICIT[name],
        num_steps=5,
        adjoint=diffrax.RecursiveCheckpointAdjoint(),
    )
    assert int(solution.num_evaluations) == calls


@each(ADAPTIVE)
def test_evaluations_of_adaptive_steps(solver):
    # From t = 0.6 there is a force that steps chosen before do not expect: some are rejected.
    field = lambda t, x: wavy(t, x) + 20 * jax.nn.sigmoid(100 * (t - 0.6))  # noqa: E731
    controller = diffrax.PIDController(rtol=1e-3, atol=1e-5)
    solution, calls = counted(
        field,
        jnp.asarray([0.3, 1.0]),
        solver=solver,
        stepsize_controller=controller,
        save_path=True,
        max_steps=1000,
    )
    accepted = int(np.isfinite(solution.path.time).sum()) - 1
    assert int(solution.num_steps) > accepted
    assert int(solution.num_evaluations) == calls


def test_evaluations_of_a_first_step_that_is_rejected():
    # A solver that reuses its last stage can not do so until a step was accepted.
    fast = lambda t, x: -400 * x  # noqa: E731
    solution, calls = counted(
        fast, jnp.float32(3), solver=diffrax.Tsit5(), stepsize_controller=PID, max_steps=2000
    )
    assert int(solution.num_evaluations) == calls
    assert calls > 6 * int(solution.num_steps) + 1


@pytest.mark.parametrize("name", ["Heun", "Tsit5", "ReversibleHeun"])
def test_evaluations_with_jumps(name):
    controller = diffrax.ClipStepSizeController(PID, jump_ts=[0.3, 0.6])
    solution, calls = counted(
        wavy, jnp.float32(0.3), solver=ADAPTIVE[name], stepsize_controller=controller
    )
    assert int(solution.num_evaluations) == calls


class Slow(diffrax.Euler):
    def step(self, terms, t0, t1, y0, args, solver_state, made_jump):
        terms.vf(t0, y0, args)
        return super().step(terms, t0, t1, y0, args, solver_state, made_jump)


def test_evaluations_are_unknown_for_a_solver_with_a_step_of_its_own():
    solution = solve_flow(linear(), jnp.float32(1), solver=Slow())
    assert int(solution.num_evaluations) == -1


# Independent systems


def test_independent_elements_take_their_own_steps():
    stiffness = jnp.asarray([-0.1, -5.0, -60.0])
    field = lambda t, x, a: a * x  # noqa: E731
    x0 = jnp.ones(3)
    options = {"solver": diffrax.Tsit5(), "stepsize_controller": PID}
    own = solve_flow(field, x0, stiffness, independent=True, **options)
    shared = solve_flow(field, x0, stiffness, **options)
    assert own.num_steps.shape == own.num_evaluations.shape == (3,)
    assert np.asarray(own.num_steps)[0] < own.num_steps[1] < own.num_steps[2]
    assert shared.num_steps.shape == ()
    assert int(shared.num_steps) > int(own.num_steps[0])
    for i in range(3):
        alone = solve_flow(field, x0[i], stiffness[i], **options)
        assert int(alone.num_steps) == int(own.num_steps[i])
        assert int(alone.num_evaluations) == int(own.num_evaluations[i])
        assert np.allclose(alone.value, own.value[i], rtol=1e-6)
    assert np.allclose(own.value, jnp.exp(stiffness), rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("controller", [None, PID], ids=["fixed", "adaptive"])
def test_independent_splits_args_and_shares_the_field(controller):
    network, z0, observation = network_problem()
    options = {"solver": diffrax.Bosh3(), "stepsize_controller": controller}
    own = solve_flow(
        lambda t, z, arg: network(t, z, arg["observation"]),
        z0,
        {"observation": np.asarray(observation), "flag": True},
        independent=True,
        save_path=True,
        max_steps=50,
        **options,
    )
    batch = solve_flow(Batched(network), z0, observation, **options)
    assert np.allclose(own.value, batch.value, rtol=1e-3)
    assert own.path.time.shape == (6, 9 if controller is None else 51)
    assert own.path.value.shape == own.path.time.shape
    assert own.num_steps.shape == (6,)


def test_independent_reports_the_element_that_failed():
    x0 = jnp.asarray([0.1, 3.0, 0.2, 4.0])
    square = lambda t, x: x**2 * x**2 * x**2  # noqa: E731
    solution = solve_flow(square, x0, num_steps=8, independent=True, throw=False)
    failed = np.asarray(solution.result == RESULTS.non_finite)
    assert failed.tolist() == [False, True, False, True]
    with pytest.raises(RuntimeError, match=r"2 of 4 solves failed. The first, element 1"):
        solve_flow(square, x0, num_steps=8, independent=True)
    shared = solve_flow(square, x0, num_steps=8, throw=False)
    assert bool(shared.result == RESULTS.non_finite)


# Derivatives


def closed_form_gradients(field, x0):
    return jax.grad(lambda field, x0: field.endpoint(x0), argnums=(0, 1))(field, x0)


@pytest.mark.parametrize("name", ["Euler", "Heun", "Bosh3", "ReversibleHeun", "HalfEuler"])
def test_gradients_of_fixed_steps_are_those_of_the_endpoint(name):
    solver = EXPLICIT[name]
    with jax.enable_x64(True):
        field, x0 = linear(dtype=jnp.float64), jnp.asarray(0.7)
        got = jax.grad(
            lambda field, x0: solve_flow(field, x0, solver=solver, num_steps=200).value,
            argnums=(0, 1),
        )(field, x0)
        expected = closed_form_gradients(field, x0)
        for g, e in zip(jax.tree.leaves(got), jax.tree.leaves(expected), strict=True):
            assert np.allclose(g, e, rtol=1e-2)


@pytest.mark.parametrize(
    ("controller", "adjoint"),
    [
        (None, None),
        (None, diffrax.RecursiveCheckpointAdjoint(checkpoints=2)),
        (None, diffrax.BacksolveAdjoint()),
        (PID, None),
    ],
    ids=lambda value: type(value).__name__,
)
def test_gradients_of_every_adjoint(controller, adjoint):
    field, x0 = linear(), jnp.float32(0.7)

    def value(field, x0):
        return solve_flow(
            field,
            x0,
            solver=diffrax.Tsit5(),
            stepsize_controller=controller,
            adjoint=adjoint,
            max_steps=32,
        ).value

    got = jax.grad(value, argnums=(0, 1))(field, x0)
    expected = closed_form_gradients(field, x0)
    for g, e in zip(jax.tree.leaves(got), jax.tree.leaves(expected), strict=True):
        assert np.allclose(g, e, rtol=1e-3)


@pytest.mark.parametrize("adjoint", [None, diffrax.RecursiveCheckpointAdjoint()])
def test_gradients_of_parameters_args_and_x0_are_those_of_the_plain_sum(adjoint):
    network, z0, observation = network_problem()
    params, static = eqx.partition(network, eqx.is_array)

    def gradients(solve):
        def loss(params, z0, observation):
            field = Batched(eqx.combine(params, static))
            return jnp.sum(solve(field, z0, observation, num_steps=8) ** 2)

        return jax.jit(jax.grad(loss, argnums=(0, 1, 2)))(params, z0, observation)

    got = gradients(lambda *a, **k: solve_flow(*a, adjoint=adjoint, **k).value)
    expected = gradients(euler_scan)
    leaves = list(zip(jax.tree.leaves(got), jax.tree.leaves(expected), strict=True))
    assert len(leaves) == 6
    for g, e in leaves:
        assert np.abs(e).max() > 0
        assert np.allclose(g, e, rtol=1e-4, atol=1e-6)


def test_gradients_reach_what_a_plain_function_closes_over():
    def value(a):
        return solve_flow(lambda t, x: a * x, jnp.float32(1.5), num_steps=4).value

    a = jnp.float32(0.8)
    expected = 1.5 * (1 + 0.8 / 4) ** 3
    assert np.allclose(jax.grad(value)(a), expected, rtol=1e-5)
    assert np.allclose(jax.jit(jax.grad(value))(a), expected, rtol=1e-5)


@pytest.mark.parametrize(
    ("solver", "controller", "adjoint"),
    [
        (diffrax.Euler(), None, None),
        (diffrax.Euler(), None, diffrax.ForwardMode()),
        (diffrax.Tsit5(), None, None),
        (diffrax.HalfSolver(diffrax.Bosh3()), None, None),
        (diffrax.Tsit5(), None, diffrax.ForwardMode()),
        (diffrax.Tsit5(), None, diffrax.DirectAdjoint()),
        (diffrax.Tsit5(), PID, diffrax.ForwardMode()),
    ],
)
def test_forward_mode(solver, controller, adjoint):
    field, x0 = linear(), jnp.float32(0.7)

    def value(field, x0):
        return solve_flow(
            field,
            x0,
            solver=solver,
            num_steps=64,
            stepsize_controller=controller,
            adjoint=adjoint,
        ).value

    tangents = (linear(0.3, -0.2), jnp.float32(1.1))
    _, got = jax.jvp(value, (field, x0), tangents)
    _, expected = jax.jvp(lambda field, x0: field.endpoint(x0), (field, x0), tangents)
    assert np.allclose(got, expected, rtol=0.02 if isinstance(solver, diffrax.Euler) else 1e-3)


class Square(eqx.Module):
    """dx/dt = a x^2, whose endpoint is x0 / (1 - a x0)."""

    a: jax.Array

    def __call__(self, t, x):
        return self.a * x * x


@each(EXPLICIT)
@pytest.mark.parametrize(
    "second",
    [lambda f: jax.jacrev(jax.jacrev(f)), jax.hessian, lambda f: jax.jacfwd(jax.jacfwd(f))],
    ids=["reverse over reverse", "forward over reverse", "forward over forward"],
)
def test_second_derivatives_of_fixed_steps(second, solver):
    def value(point):
        return solve_flow(Square(point[0]), point[1], solver=solver, num_steps=64).value

    with jax.enable_x64(True):
        point = jnp.asarray([0.4, 0.6])
        got = second(value)(point)
        expected = second(lambda point: point[1] / (1 - point[0] * point[1]))(point)
    rtol = 0.1 if isinstance(solver, diffrax.Euler) else 1e-2
    assert np.allclose(got, expected, rtol=rtol)


@pytest.mark.parametrize("name", ["Midpoint", "Tsit5"])
def test_a_gradient_penalty_trains(name):
    # The derivative of the endpoint with respect to x0 is 1 / (1 - a x0)^2.
    @jax.jit
    def slope(a):
        def penalty(a):
            endpoint = lambda x0: solve_flow(Square(a), x0, solver=EXPLICIT[name]).value  # noqa: E731
            return jax.grad(endpoint)(jnp.float32(0.6)) ** 2

        return jax.grad(penalty)(a)

    expected = jax.grad(lambda a: (1 - 0.6 * a) ** -4)(jnp.float32(0.4))
    assert np.allclose(slope(jnp.float32(0.4)), expected, rtol=1e-2)


@pytest.mark.parametrize("name", ["Midpoint", "Tsit5"])
def test_the_way_back_stores_stages_and_not_what_they_compute(name):
    network, z0, observation = network_problem(64)
    params, static = eqx.partition(Batched(network), eqx.is_array)

    def memory(num_steps):
        def value(params):
            field = eqx.combine(params, static)
            options = {"solver": EXPLICIT[name], "num_steps": num_steps}
            return jnp.sum(solve_flow(field, z0, observation, **options).value ** 2)

        compiled = jax.jit(jax.grad(value)).lower(params).compile()
        return compiled.memory_analysis().temp_size_in_bytes

    stages = EXPLICIT[name].tableau.num_stages
    # A hidden layer is 16 times as large as the value.
    assert memory(24) - memory(8) < 16 * stages * 4 * z0.nbytes


def shard_map(function, in_specs, out_specs):
    shard_map = getattr(jax, "shard_map", None)
    if shard_map is None:
        from jax.experimental.shard_map import shard_map
    mesh = jax.sharding.Mesh(np.asarray(jax.devices()), ("batch",))
    return shard_map(function, mesh=mesh, in_specs=in_specs, out_specs=out_specs)


@each(EXPLICIT)
@pytest.mark.parametrize("split", ["x0", "args"])
def test_fixed_steps_in_shard_map(solver, split):
    whole, part = jax.sharding.PartitionSpec(), jax.sharding.PartitionSpec("batch")
    size = 2 * jax.device_count()
    x0, force = jnp.linspace(0.1, 1.0, size), jnp.linspace(-1.0, 1.0, size)
    x0, force = (x0, force[:2]) if split == "x0" else (x0[:2], force)

    def value(a, x0, force):
        field = lambda t, x, force: a * x + force  # noqa: E731
        return solve_flow(field, x0, force, solver=solver, num_steps=4, throw=False).value

    def loss(a, x0, force):
        return jax.lax.psum(value(a, x0, force).sum(), "batch")

    specs = (whole, part, whole) if split == "x0" else (whole, whole, part)
    a, copies = jnp.float32(0.5), jax.device_count()
    x0s, forces = (x0, jnp.tile(force, copies)) if split == "x0" else (jnp.tile(x0, copies), force)
    got = jax.jit(shard_map(value, specs, part))(a, x0, force)
    assert np.allclose(got, value(a, x0s, forces), rtol=1e-6)
    got = jax.jit(jax.grad(shard_map(loss, specs, whole)))(a, x0, force)
    expected = jax.grad(lambda a: value(a, x0s, forces).sum())(a)
    assert np.allclose(got, expected, rtol=1e-5)


def test_vmap_over_parameters_is_a_loop():
    fields = Linear(jnp.asarray([-1.0, 0.5]), jnp.asarray([0.0, 1.0]))
    x0 = jnp.asarray([[1.0, 2.0], [3.0, 4.0]])
    got = jax.vmap(lambda field, x0: solve_flow(field, x0).value)(fields, x0)
    for i in range(2):
        field = jax.tree.map(lambda leaf, i=i: leaf[i], fields)
        assert np.allclose(got[i], solve_flow(field, x0[i]).value, rtol=1e-6)


# Compilation


@pytest.mark.parametrize("controller", [None, PID], ids=["fixed", "adaptive"])
def test_changed_values_do_not_retrace(controller):
    traces = 0

    class Counting(Linear):
        def __call__(self, t, x, *args):
            nonlocal traces
            traces += 1
            return super().__call__(t, x)

    def solve(a, x0):
        field = Counting(jnp.float32(a), jnp.float32(1))
        return solve_flow(field, x0, solver=diffrax.Heun(), stepsize_controller=controller).value

    first = solve(-1.0, jnp.ones(3))
    before = traces
    assert before > 0
    second = solve(0.5, jnp.zeros(3))
    assert traces == before
    assert not np.allclose(first, second)
    solve(0.5, jnp.zeros(4))
    assert traces > before


@pytest.mark.parametrize("direction", ["forward", "backward"])
def test_euler_compiles_to_the_cost_of_the_plain_sum(direction):
    # What `benchmarks/solve_flow.py` times, free of noise.
    network, z0, observation = network_problem(64)
    params, static = eqx.partition(Batched(network), eqx.is_array)

    def cost(solve):
        def value(params):
            return jnp.sum(solve(eqx.combine(params, static), z0, observation, num_steps=8))

        function = value if direction == "forward" else jax.grad(value)
        compiled = jax.jit(function).lower(params).compile()
        memory = compiled.memory_analysis().temp_size_in_bytes
        return np.array([*map(compiled.cost_analysis().get, ["flops", "bytes accessed"]), memory])

    ratio = cost(lambda *a, **k: solve_flow(*a, **k).value) / cost(euler_scan)
    assert (ratio < 1.05).all(), ratio


@pytest.mark.parametrize(("controller", "independent"), [(None, False), (PID, True)])
def test_a_compiled_solve_calls_nothing_on_the_host(controller, independent):
    def loss(field, x0):
        return solve_flow(
            field,
            x0,
            solver=diffrax.Tsit5(),
            stepsize_controller=controller,
            independent=independent,
            save_path=True,
            max_steps=16,
        ).value.sum()

    text = jax.jit(jax.value_and_grad(loss)).lower(linear(), jnp.ones(3)).as_text()
    assert "while" in text
    assert "callback" not in text


# Failures


def test_step_limit():
    options = {"solver": diffrax.Tsit5(), "stepsize_controller": PID, "max_steps": 2}
    x0 = jnp.float32(0.3)
    with pytest.raises(RuntimeError, match="max_steps"):
        solve_flow(wavy, x0, **options)
    solution = solve_flow(wavy, x0, throw=False, **options)
    assert bool(solution.result == RESULTS.max_steps_reached)
    assert int(solution.num_steps) == 2
    assert np.isfinite(solution.value)


def test_blow_up_is_not_finite():
    # dx/dt = x^4 from 3 is infinite before t = 1; Euler's steps soon leave float32.
    blow_up = lambda t, x: x**2 * x**2  # noqa: E731
    x0 = jnp.asarray([0.1, 3.0])
    with pytest.raises(RuntimeError, match=r"NaN or an infinity.*throw=False"):
        solve_flow(blow_up, x0, num_steps=16)
    solution = solve_flow(blow_up, x0, num_steps=16, throw=False)
    assert bool(solution.result == RESULTS.non_finite)
    assert "NaN" in RESULTS[solution.result]


def test_adaptive_steps_into_a_singularity_reach_the_step_limit():
    # dx/dt = x^2 from 2 is infinite at t = 1/2.
    solution = solve_flow(
        lambda t, x: x**2,
        jnp.float32(2),
        solver=diffrax.Tsit5(),
        stepsize_controller=PID,
        max_steps=300,
        throw=False,
    )
    assert not bool(solution.result == RESULTS.successful)


@pytest.mark.parametrize("controller", [None, PID], ids=["fixed", "adaptive"])
def test_a_nan_is_reported_under_jit_without_raising(controller):
    @jax.jit
    def solve(x0):
        solution = solve_flow(
            linear(), x0, solver=diffrax.Heun(), stepsize_controller=controller, max_steps=100
        )
        return solution.result == RESULTS.non_finite, solution.result

    failed, result = solve(jnp.asarray([1.0, jnp.nan]))
    assert bool(failed)
    assert "NaN" in RESULTS[result]
    assert not bool(solve(jnp.asarray([1.0, 2.0]))[0])


def test_a_failed_solve_raises_under_grad_outside_jit_or_is_seen_in_the_gradient():
    with pytest.raises(RuntimeError, match="NaN"):
        jax.grad(lambda x0: solve_flow(linear(), x0).value)(jnp.float32(jnp.nan))


# Bad input


@pytest.mark.parametrize(
    ("options", "error", "match"),
    [
        ({"solver": diffrax.Euler}, TypeError, "the class Euler|Euler"),
        ({"solver": "euler"}, TypeError, "euler|solver"),
        ({"solver": diffrax.ShARK()}, ValueError, "ShARK.*stochastic"),
        ({"solver": diffrax.EulerHeun()}, ValueError, "EulerHeun.*stochastic"),
        ({"solver": diffrax.SemiImplicitEuler()}, ValueError, "SemiImplicitEuler"),
        ({"solver": diffrax.KenCarp3()}, ValueError, "KenCarp3"),
        ({"solver": diffrax.Kvaerno3()}, ValueError, "Kvaerno3.*tolerance"),
        ({"stepsize_controller": PID}, ValueError, "error estimate.*HalfSolver"),
        (
            {"stepsize_controller": PID, "solver": diffrax.LeapfrogMidpoint()},
            ValueError,
            "error estimate",
        ),
        (
            {"stepsize_controller": diffrax.ConstantStepSize()},
            TypeError,
            "adaptive|stepsize_controller",
        ),
        ({"num_steps": 0}, ValueError, "`num_steps` is 0; expected"),
        ({"num_steps": -3}, ValueError, "`num_steps` is -3; expected"),
        ({"num_steps": 2.0}, TypeError, "num_steps"),
        ({"num_steps": True}, TypeError, "num_steps"),
        ({"max_steps": 0}, ValueError, "`max_steps` is 0; expected"),
        ({"max_steps": 1.5}, TypeError, "max_steps"),
    ],
    ids=lambda value: str(value)[:40],
)
def test_bad_options(options, error, match):
    with pytest.raises(error, match=re.compile(match, re.DOTALL)):
        solve_flow(linear(), jnp.ones(2), **options)


@pytest.mark.parametrize("x0", [jnp.arange(3), jnp.ones(2, bool), jnp.ones(2, jnp.complex64)])
def test_x0_that_is_not_floating_point(x0):
    with pytest.raises(TypeError, match=f"dtype {x0.dtype}; expected floating"):
        solve_flow(linear(), x0)


def test_x0_may_be_a_number():
    assert solve_flow(linear(0.5, 0.0), 2.0, num_steps=1).value == 3.0


def test_velocity_of_another_shape_or_dtype():
    with pytest.raises(ValueError, match=r"float32\[1\].*float32\[3\]"):
        solve_flow(lambda t, x: x[:1], jnp.ones(3))
    with pytest.raises(ValueError, match=r"float32\[\].*float32\[3\]"):
        solve_flow(lambda t, x: x.sum(), jnp.ones(3))
    with pytest.raises(ValueError, match=r"float16\[3\].*float32\[3\]"):
        solve_flow(lambda t, x: x.astype(jnp.float16), jnp.ones(3))
    with pytest.raises(TypeError, match="one array"):
        solve_flow(lambda t, x: (x, x), jnp.ones(3))
    # With independent elements it is called on one.
    with pytest.raises(ValueError, match=r"float32\[3\].*float32\[\]"):
        solve_flow(lambda t, x: jnp.ones(3), jnp.ones(3), independent=True)


def test_independent_needs_matching_leading_axes():
    field = lambda t, x, arg: x  # noqa: E731
    with pytest.raises(ValueError, match="`x0` is a scalar"):
        solve_flow(field, jnp.float32(1), 0, independent=True)
    with pytest.raises(ValueError, match=r"`args\[0\]\['w'\]` has shape \(2,\).*\(3, ...\)"):
        solve_flow(field, jnp.ones(3), {"w": jnp.ones(2)}, independent=True)
    with pytest.raises(ValueError, match=r"has shape \(\)"):
        solve_flow(field, jnp.ones(3), jnp.float32(1), independent=True)
