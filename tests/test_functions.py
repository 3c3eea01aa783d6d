"""Paths, targets and losses: hand-made cases, and shapes that must not broadcast."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jaxtyping import TypeCheckError

from floq_eqx.losses import (
    critic_loss,
    distillation_loss,
    flow_matching_loss,
    policy_loss,
    squared_error,
    value_flow_loss,
)
from floq_eqx.paths import linear_path
from floq_eqx.targets import aggregate, flow_td_target, td_target


class TestPath:
    def test_a_time_for_each_example(self):
        x0, x1 = jnp.zeros((2, 3)), jnp.ones((2, 3)) * 4
        path = linear_path(x0, x1, jnp.array([0.25, 1.0]))
        np.testing.assert_allclose(path.xt, [[1, 1, 1], [4, 4, 4]])
        np.testing.assert_allclose(path.velocity, 4)

    @pytest.mark.parametrize("t", [0.0, 0.3, 1.0])
    def test_is_the_integral_of_its_velocity(self, t):
        x0, x1 = jnp.array([1.0, -2.0]), jnp.array([3.0, 5.0])
        path = linear_path(x0, x1, jnp.float32(t))
        np.testing.assert_allclose(path.xt, x0 + t * path.velocity, atol=1e-6)
        slope = jax.jvp(lambda t: linear_path(x0, x1, t).xt, (path.t,), (jnp.ones(()),))[1]
        np.testing.assert_allclose(slope, path.velocity, rtol=1e-6)

    @pytest.mark.parametrize(
        "shapes", [((3,), (4,), ()), ((3, 2), (3, 2), (2,)), ((3,), (3,), (3, 1))]
    )
    def test_shapes_must_fit(self, shapes):
        with pytest.raises((ValueError, TypeCheckError)):
            linear_path(*(jnp.zeros(shape) for shape in shapes))


class TestTargets:
    reward, mask = jnp.array([-1.0, -1.0, 0.0]), jnp.array([1.0, 0.0, 1.0])

    def test_td_target(self):
        target = td_target(self.reward, self.mask, jnp.array([10.0, 10.0, -2.0]), discount=0.5)
        np.testing.assert_allclose(target, [4, -1, -1])

    def test_backups(self):
        values = jnp.array([[0.0, 4.0], [0.0, 4.0], [2.0, 4.0]])
        args = (self.reward, self.mask, values)
        np.testing.assert_allclose(
            flow_td_target(*args, discount=0.5, backup="distributional"),
            [[-1, 1], [-1, -1], [1, 2]],
        )
        np.testing.assert_allclose(
            flow_td_target(*args, discount=0.5), [[0, 0], [-1, -1], [1.5, 1.5]]
        )

    def test_aggregate(self):
        values = jnp.array([[1.0, 5.0], [3.0, 2.0]])
        np.testing.assert_allclose(aggregate(values, "mean"), [2, 3.5])
        np.testing.assert_allclose(aggregate(values, "min"), [1, 2])

    def test_unknown_choices(self):
        # The runtime type check sees them first; without it the functions do.
        with pytest.raises((ValueError, TypeCheckError)):
            aggregate(jnp.zeros((2, 2)), "max")
        with pytest.raises((ValueError, TypeCheckError)):
            flow_td_target(self.reward, self.mask, jnp.zeros((3, 2)), discount=0.5, backup="mean")


class TestLosses:
    def test_value_flow_loss_sums_over_noise_and_averages_the_rest(self):
        target = jnp.zeros((3, 4))
        velocity = jnp.stack([jnp.ones((3, 4)), 3 * jnp.ones((3, 4))])
        assert value_flow_loss(velocity, target) == pytest.approx(4 * (1 + 9) / 2)

    def test_flow_matching_loss_averages(self):
        assert flow_matching_loss(jnp.ones((3, 4)), jnp.full((3, 4), 3.0)) == pytest.approx(4)

    def test_teachers_get_no_gradient(self):
        student, teacher = jnp.ones(3), 2 * jnp.ones(3)
        grads = jax.grad(distillation_loss, argnums=(0, 1))(student, teacher)
        np.testing.assert_allclose(grads[0], -2 / 3 * np.ones(3))
        np.testing.assert_allclose(grads[1], 0)
        q, target = jnp.ones((2, 3)), 2 * jnp.ones(3)
        assert critic_loss(q, target) == pytest.approx(1)
        np.testing.assert_allclose(jax.grad(critic_loss, argnums=1)(q, target), 0)

    def test_policy_loss(self):
        q = jnp.array([-1.0, -3.0])
        assert policy_loss(q) == pytest.approx(2)
        assert policy_loss(q, normalise=True) == pytest.approx(1)
        grad = jax.grad(lambda q: policy_loss(q, normalise=True))(q)
        np.testing.assert_allclose(grad, -0.25, rtol=1e-6)
        nothing = jnp.zeros(2)
        assert policy_loss(nothing, normalise=True) == 0
        grad = jax.grad(lambda q: policy_loss(q, normalise=True))(nothing)
        np.testing.assert_allclose(grad, -0.5)

    @pytest.mark.parametrize(
        ("loss", "shapes"),
        [
            (squared_error, ((3,), (3, 1))),
            (squared_error, ((2, 3), (3,))),
            (critic_loss, ((2, 3), (2,))),
            (value_flow_loss, ((2, 3, 4), (3, 1))),
            (distillation_loss, ((3,), (1,))),
        ],
    )
    def test_nothing_broadcasts(self, loss, shapes):
        with pytest.raises((ValueError, TypeCheckError)):
            loss(*(jnp.zeros(shape) for shape in shapes))
