"""Products in reduced precision: where they are, how far they are off, and what never changes."""

import dataclasses

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from floq_eqx.agents import RECIPES, floq
from floq_eqx.data import Batch
from floq_eqx.networks import MLPConfig, ResidualConfig, with_precision
from floq_eqx.training import TrainConfig, train

from .runs import CONTRACTED, shrunk

KEY = jax.random.key(0)
NETWORKS = [MLPConfig((16, 16, 16), layer_norm=True), ResidualConfig(16, 1)]


def transitions(size):
    keys = jax.random.split(KEY, 3)
    return Batch(
        observation=jax.random.normal(keys[0], (size, 3)),
        action=jax.random.uniform(keys[1], (size, 2), minval=-1),
        reward=-jnp.ones(size),
        mask=jnp.ones(size),
        next_observation=jax.random.normal(keys[2], (size, 3)),
        next_action=jax.random.uniform(keys[1], (size, 2), minval=-1),
    )


def bfloat16_products(f, *args):
    """How many products of two factors that are rounded to bfloat16 there are in a function."""
    return str(jax.make_jaxpr(f)(*args)).count("new_dtype=bfloat16") / 2


@pytest.mark.parametrize("network", NETWORKS)
def test_products_between_hidden_layers_alone(network):
    made = network.build(3, 2, key=KEY)
    x = jnp.arange(1.0, 4.0)
    low = with_precision(made, "bfloat16")
    assert bfloat16_products(low, x) == 2
    assert not bfloat16_products(made, x)
    assert not bfloat16_products(with_precision(low, "float32"), x)
    assert low(x).dtype == jnp.float32
    # Eight bits of a mantissa; and not one more than asked for.
    error = np.abs(np.asarray(low(x) - made(x))).max()
    assert 0 < error < 0.05
    assert jax.tree.leaves(low) == jax.tree.leaves(made)


@pytest.mark.parametrize("name", CONTRACTED)
def test_an_update_of_every_agent(name):
    agent = dataclasses.replace(shrunk(RECIPES[name](), hidden_sizes=(8, 8)), action_size=2)
    low = dataclasses.replace(agent, precision="bfloat16")
    data = transitions(8)
    state, noise = agent.init(3, 2, key=KEY), agent.noise(8, key=KEY)
    assert jax.tree.structure(state) == jax.tree.structure(low.init(3, 2, key=KEY))
    new, metrics = low.update(state, data, noise)
    assert jax.tree.structure(new) == jax.tree.structure(state)
    assert all(leaf.dtype != jnp.bfloat16 for leaf in jax.tree.leaves((new, metrics)))
    np.testing.assert_allclose(
        metrics["loss"], agent.loss(state.params, state.targets, data, noise)[0], rtol=0.1
    )


def test_the_field_is_integrated_and_the_actor_acts_in_it():
    agent = floq(
        critic={"network": MLPConfig((16, 16)), "num_noise": 2, "num_steps": 2},
        policy={"network": MLPConfig((16, 16))},
        action_size=2,
    )
    low = dataclasses.replace(agent, precision="bfloat16")
    state, data, noise = agent.init(3, 2, key=KEY), transitions(4), agent.noise(4, key=KEY)

    def loss(agent):
        return lambda params: agent.loss(params, state.targets, data, noise)[0]

    assert bfloat16_products(loss(low), state.params)
    assert not bfloat16_products(loss(agent), state.params)
    act = lambda s: low.act(state, s, key=KEY)  # noqa: E731
    assert bfloat16_products(act, data.observation[0])
    values = [eqx.filter_grad(loss(a))(state.params) for a in (agent, low)]
    for a, b in zip(*map(jax.tree.leaves, values), strict=True):
        np.testing.assert_allclose(a, b, atol=0.05 * max(1e-3, float(jnp.abs(a).max())))


def test_what_this_device_or_nobody_has(tmp_path):
    with pytest.raises(ValueError, match=r"precision must be one of .*float32.*tf32.*bfloat16"):
        floq(precision="float16")
    if jax.default_backend() == "cpu":
        config = TrainConfig(agent=floq(precision="tf32"), collect_episodes=1)
        with pytest.raises(ValueError, match=r"tf32.* is for NVIDIA.*float32, or bfloat16"):
            train(config, tmp_path / "run")
        assert not (tmp_path / "run" / "config.json").exists()
