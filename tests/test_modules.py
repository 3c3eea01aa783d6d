"""Embeddings, networks, fields, values and actors: closed forms and layouts."""

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import stats

from floq_eqx.embeddings import Cosine, Fourier, HLGauss, Rescale
from floq_eqx.modules import (
    ActionValue,
    ActionVelocity,
    OneStepActor,
    ValueVelocity,
    action_velocities,
    member_values,
    member_velocities,
)
from floq_eqx.networks import MLP, MLPConfig, ResidualConfig, ResidualMLP, ensemble

KEY = jax.random.key(0)


def normal(*shape, seed=0):
    return jax.random.normal(jax.random.key(seed), shape)


class TestHLGauss:
    embed = HLGauss(-101.0, 1.0)

    def exact(self, x, sigma=16.0):
        """The masses in float64, from whichever tail keeps their digits."""
        points = np.linspace(-101, 1, 51)
        lower, upper = (f(points, x, sigma * 102 / 50) for f in (stats.norm.cdf, stats.norm.sf))
        masses = np.diff(lower) if x > -50 else -np.diff(upper)
        return masses / masses.sum()

    @pytest.mark.parametrize("sigma", [0.5, 3.0, 16.0])
    @pytest.mark.parametrize("x", [-300.0, -150.0, -101.0, -50.0, -49.99, -3.0, 1.0, 60.0, 200.0])
    def test_masses_of_the_normal_distribution(self, x, sigma):
        features = HLGauss(-101.0, 1.0, sigma=sigma)(jnp.float32(x))
        # Narrow Gaussians underflow in float32 where they are far from the support.
        if abs(x + 50) < 51 + 7 * sigma * 102 / 50:
            np.testing.assert_allclose(features, self.exact(x, sigma), atol=1e-6)

    def test_released_formula_where_it_keeps_its_digits(self):
        x = jnp.linspace(-130.0, 30.0, 200)
        points = jnp.linspace(-101.0, 1.0, 51)[None]
        cdf = jax.scipy.special.erf((points - x[:, None]) / (2**0.5 * 16 * 102 / 50))
        released = (cdf[:, 1:] - cdf[:, :-1]) / (cdf[:, -1:] - cdf[:, :1])
        np.testing.assert_allclose(jax.vmap(self.embed)(x), released, atol=1e-6)

    @pytest.mark.parametrize("x", [-1e30, -1e6, -1e3, 1e3, 1e6, 1e30])
    def test_finite_far_outside_the_support(self, x):
        value, grad = jax.value_and_grad(lambda x: jnp.sum(self.embed(x) ** 2))(jnp.float32(x))
        features = self.embed(jnp.float32(x))
        assert jnp.isfinite(value)
        assert jnp.isfinite(grad)
        assert features.min() >= 0
        assert features.sum() == pytest.approx(1, abs=1e-5)
        assert jnp.argmax(features) == (0 if x < 0 else 49)

    def test_gradient_is_that_of_the_masses(self):
        x, step = -30.0, 1e-3
        exact = (self.exact(x + step) - self.exact(x - step)) / (2 * step)
        jacobian = jax.jacobian(self.embed)(jnp.float32(x))
        np.testing.assert_allclose(jacobian, exact, atol=1e-6)

    def test_float64(self):
        with jax.enable_x64(True):
            features = self.embed(jnp.float64(-300.0))
            assert features.dtype == jnp.float64
            np.testing.assert_allclose(features, self.exact(-300.0), rtol=1e-9)

    @pytest.mark.parametrize(
        ("arguments", "message"),
        [
            ({"low": 1.0, "high": 1.0}, "low < high"),
            ({"num_bins": 1}, "num_bins"),
            ({"sigma": 0.0}, "sigma"),
        ],
    )
    def test_bad_input(self, arguments, message):
        with pytest.raises(ValueError, match=message):
            HLGauss(**({"low": 0.0, "high": 1.0} | arguments))


def test_fourier():
    features = Fourier(3)(jnp.float32(0.25))
    np.testing.assert_allclose(features, np.cos(np.pi * np.array([1, 2, 3]) / 4), atol=1e-6)
    with pytest.raises(ValueError, match="num_terms"):
        Fourier(0)


def test_cosine_and_rescale():
    assert Cosine()(jnp.float32(0.5))[0] == pytest.approx(np.cos(0.5))
    assert Rescale(-100.0, 0.0)(jnp.float32(-25.0))[0] == pytest.approx(0.75)
    assert Rescale()(jnp.float32(0.3))[0] == jnp.float32(0.3)
    with pytest.raises(ValueError, match="low < high"):
        Rescale(1.0, 0.0)


@pytest.mark.parametrize("embedding", [HLGauss(0.0, 1.0, 7), Fourier(5), Cosine(), Rescale()])
def test_embedding_sizes(embedding):
    assert embedding(jnp.float32(0.5)).shape == (embedding.size,)


class TestNetworks:
    def test_mlp_is_dense_gelu_norm(self):
        mlp = MLP(3, (4,), 2, layer_norm=True, key=KEY)
        x = np.array([0.5, -1.0, 2.0])
        h = np.asarray(mlp.hidden[0].linear.weight) @ x
        h = 0.5 * h * (1 + np.tanh(np.sqrt(2 / np.pi) * (h + 0.044715 * h**3)))
        features = (h - h.mean()) / np.sqrt(h.var() + 1e-6)
        np.testing.assert_allclose(mlp.features(jnp.float32(x)), features, atol=1e-5)
        expected = np.asarray(mlp.output.weight) @ features
        np.testing.assert_allclose(mlp(jnp.float32(x)), expected, atol=1e-5)

    def test_norm_first(self):
        layer = MLP(3, (64,), 2, layer_norm=True, norm_first=True, key=KEY).hidden[0]
        out = layer(normal(3))
        h = layer.norm(layer.linear(normal(3)))
        np.testing.assert_allclose(out, jax.nn.gelu(h), rtol=1e-6)

    def test_residual_without_blocks_is_a_one_layer_mlp(self):
        residual = ResidualMLP(3, 8, 0, 1, layer_norm=True, key=KEY)
        assert residual.features(normal(3)).shape == (8,)
        np.testing.assert_array_equal(residual.features(normal(3)), residual.first(normal(3)))

    def test_residual_blocks_add(self):
        residual = ResidualMLP(3, 8, 2, 1, block_layers=1, key=KEY)
        x = residual.first(normal(3))
        for (layer,) in residual.blocks:
            x = x + layer(x)
        np.testing.assert_allclose(residual.features(normal(3)), x, rtol=1e-6)

    def test_initialisation(self):
        linear = MLP(300, (500,), 1, key=KEY).hidden[0].linear
        limit = np.sqrt(3 / 400)  # variance 1 / fan_avg
        assert jnp.abs(linear.weight).max() <= limit
        assert linear.weight.var() == pytest.approx(1 / 400, rel=0.02)
        assert not jnp.any(linear.bias)

    def test_ensemble_members_differ_and_are_stacked(self):
        members = ensemble(lambda key: MLP(3, (4,), 1, key=key), 5, key=KEY)
        weights = members.output.weight
        assert weights.shape == (5, 1, 4)
        assert len(np.unique(np.asarray(weights)[:, 0, 0])) == 5

    @pytest.mark.parametrize(
        "make",
        [
            lambda: MLP(0, (4,), 1, key=KEY),
            lambda: MLP(3, (0,), 1, key=KEY),
            lambda: MLPConfig((4, -1)).build(3, 1, key=KEY),
            lambda: ResidualConfig(num_blocks=-1).build(3, 1, key=KEY),
            lambda: ensemble(lambda key: MLP(3, (4,), 1, key=key), 0, key=KEY),
        ],
    )
    def test_bad_sizes(self, make):
        with pytest.raises(ValueError, match=r"positive|>=|at least"):
            make()


class TestInputs:
    observation, action = jnp.arange(3.0), -jnp.arange(1.0, 3.0)

    def test_value_velocity_sees_state_action_value_time(self):
        field = ValueVelocity(MLP(8, (), 1, key=KEY), HLGauss(0.0, 1.0, 3), Cosine())
        t, z = jnp.float32(0.3), jnp.float32(0.8)
        seen = jnp.concatenate(
            [self.observation, self.action, HLGauss(0.0, 1.0, 3)(z), jnp.cos(t)[None]]
        )
        out = field(t, z, self.observation, self.action)
        assert out.shape == ()
        assert out == pytest.approx(float(field.network(seen)[0]))

    @pytest.mark.parametrize(
        "network",
        [MLPConfig(()), MLPConfig((8, 8), layer_norm=True), ResidualConfig(8, 2, norm_first=True)],
    )
    def test_a_network_is_what_its_first_layer_makes_of_parts_of_its_input(self, network):
        made = jax.tree.map(lambda leaf: leaf + 0.1, network.build(6, 2, key=KEY))
        x = normal(6)
        h = made.weighted(x[:4]) + made.weighted(x[4:], start=4)
        np.testing.assert_allclose(made.continued(h), made(x), atol=1e-5)

    @pytest.mark.parametrize("sizes", [(4, 2), (2, 2), (3, 1)])
    def test_a_field_refuses_other_sizes(self, sizes):
        field = ValueVelocity(MLP(8, (4,), 1, key=KEY), HLGauss(0.0, 1.0, 3), Cosine())
        with pytest.raises(ValueError, match=rf"5 components together, got {sizes[0]} and "):
            field(jnp.float32(0.3), jnp.float32(0.8), *map(jnp.ones, sizes))

    def test_a_field_with_a_call_of_its_own_is_refused(self):
        with pytest.raises(TypeError, match=r"Own has a __call__ of its own.*conditioned"):

            class Own(ValueVelocity):
                def __call__(self, t, z, observation, action):
                    return z

    def test_action_velocity_actor_and_critic(self):
        t = jnp.float32(0.5)
        both = jnp.concatenate([self.observation, self.action])
        flow = ActionVelocity(MLP(6, (), 2, key=KEY))
        np.testing.assert_array_equal(
            flow(t, self.action, self.observation),
            flow.network(jnp.concatenate([both, t[None]])),
        )
        actor = OneStepActor(MLP(5, (), 2, key=KEY))
        np.testing.assert_array_equal(actor(self.observation, self.action), actor.network(both))
        critic = ActionValue(MLP(5, (), 1, key=KEY))
        assert critic(self.observation, self.action) == critic.network(both)[0]


class TestBatched:
    """The batched evaluations equal a loop over the modules that map one example."""

    members = ensemble(
        lambda key: ValueVelocity(
            MLP(3 + 2 + 6 + 1, (8,), 1, layer_norm=True, key=key), HLGauss(-1.0, 1.0, 7), Cosine()
        ),
        2,
        key=KEY,
    )
    observation = normal(4, 3)

    def loop(self, t, z, action):
        out = np.zeros((2, 4, 5), np.float32)
        for e, b, n in np.ndindex(*out.shape):
            member = jax.tree.map(lambda leaf, e=e: leaf[e], self.members)
            out[e, b, n] = member(t[b, n], z[e, b, n], self.observation[b], action[b, n])
        return out

    @pytest.mark.parametrize("own_time", [True, False])
    @pytest.mark.parametrize("own_value", [True, False])
    @pytest.mark.parametrize("own_action", [True, False])
    def test_member_velocities(self, own_time, own_value, own_action):
        t = jax.random.uniform(KEY, (4, 5)) if own_time else jnp.float32(0.3)
        z = normal(2, 4, 5) if own_value else normal(4, 5)
        action = normal(4, 5, 2) if own_action else normal(4, 2)
        expected = self.loop(
            jnp.broadcast_to(t, (4, 5)),
            jnp.broadcast_to(z, (2, 4, 5)),
            action if own_action else jnp.broadcast_to(action[:, None], (4, 5, 2)),
        )
        out = member_velocities(self.members, t, z, self.observation, action)
        np.testing.assert_allclose(out, expected, atol=1e-5)

    def test_action_velocities_and_member_values(self):
        field = ActionVelocity(MLP(6, (8,), 2, key=KEY))
        t, x = jax.random.uniform(KEY, (4,)), normal(4, 2)
        expected = [field(t[i], x[i], self.observation[i]) for i in range(4)]
        np.testing.assert_allclose(
            action_velocities(field, t, x, self.observation), jnp.stack(expected), atol=1e-6
        )
        critics = ensemble(lambda key: ActionValue(MLP(5, (8,), 1, key=key)), 2, key=KEY)
        values = member_values(critics, self.observation, x)
        second = jax.tree.map(lambda leaf: leaf[1], critics)
        assert values.shape == (2, 4)
        assert values[1, 3] == pytest.approx(float(second(self.observation[3], x[3])), rel=1e-5)


def test_modules_hold_no_function_as_a_leaf():
    field = TestBatched.members
    assert all(eqx.is_inexact_array(leaf) for leaf in jax.tree.leaves(field))
