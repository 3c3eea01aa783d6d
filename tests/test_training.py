"""The compiled loop: contracts that every agent keeps, and what `fit` does around it."""

import dataclasses
import os
import subprocess
import sys
import warnings

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from floq_eqx.agents import ActorCritic, Gaussian, with_options
from floq_eqx.data import Batch
from floq_eqx.training import DivergedError, fit, train_seeds, train_steps

from .runs import CONTRACTED, small_agent

KEY = jax.random.key(7)
PARTS = ("critic", "policy", "selection", "next_selection")
BAD = 53  # a transition that is not drawn before update 25


def small(name):
    return small_agent(name, action_size=2)


def transitions(seed=0, size=200):
    k = jax.random.split(jax.random.key(seed), 5)
    return Batch(
        observation=jax.random.normal(k[0], (size, 3)),
        action=jax.random.uniform(k[1], (size, 2), minval=-1.0),
        reward=-jax.random.uniform(k[2], (size,)),
        mask=jax.random.bernoulli(k[3], 0.9, (size,)).astype(jnp.float32),
        next_observation=jax.random.normal(k[4], (size, 3)),
        next_action=jax.random.uniform(k[1], (size, 2), minval=-1.0),
    )


def start(agent, seed=1):
    return agent.init(3, 2, key=jax.random.key(seed))


# Shapes and counts are the same all over this file, so that little has to be compiled.


@pytest.mark.usefixtures("optimised")
@pytest.mark.parametrize("name", CONTRACTED)
def test_five_and_five_equal_ten_to_the_bit(name):
    agent, data = small(name), transitions()
    whole, metrics = train_steps(agent, start(agent), data, num_updates=10, batch_size=8, key=KEY)
    state, pieces = start(agent), []
    for _ in range(2):
        state, piece = train_steps(agent, state, data, num_updates=5, batch_size=8, key=KEY)
        pieces.append(piece)
    assert int(whole.step) == 10
    assert eqx.tree_equal(state, whole)
    for key, values in metrics.items():
        np.testing.assert_array_equal(np.concatenate([piece[key] for piece in pieces]), values)
    assert not eqx.tree_equal(whole.params, start(agent).params)


def test_every_update_draws_anew():
    agent = dataclasses.replace(small("fql"), learning_rate=0.0, target_rate=0.0)
    _, metrics = train_steps(
        agent, start(agent), transitions(), num_updates=5, batch_size=8, key=KEY
    )
    assert len(set(np.asarray(metrics["loss"]).tolist())) == 5


@pytest.mark.parametrize("name", CONTRACTED)
def test_seeds_at_once_equal_a_loop(name):
    agent, data = small(name), transitions()
    keys = jax.random.split(KEY, 3)
    states = eqx.filter_vmap(lambda key: agent.init(3, 2, key=key))(keys)
    trained, metrics = train_seeds(agent, states, data, num_updates=5, batch_size=8, keys=keys)
    assert metrics["loss"].shape == (3, 5)
    for i in range(3):
        own = agent.init(3, 2, key=keys[i])
        alone, own_metrics = train_steps(agent, own, data, num_updates=5, batch_size=8, key=keys[i])
        for got, expected in zip(
            jax.tree.leaves(trained.params), jax.tree.leaves(alone.params), strict=True
        ):
            np.testing.assert_allclose(got[i], expected, rtol=1e-4, atol=1e-5)
        np.testing.assert_allclose(metrics["loss"][i], own_metrics["loss"], rtol=1e-4)
    assert not np.allclose(metrics["loss"][0], metrics["loss"][1])


def numbers(module, prefix=""):
    """The hyperparameters that are not static, by dotted names."""
    out = {}
    for f in dataclasses.fields(module):
        value = getattr(module, f.name)
        if isinstance(value, eqx.Module) and f.name in PARTS:
            out |= numbers(value, f"{f.name}.")
        elif isinstance(value, int | float) and not f.metadata.get("static"):
            out[prefix + f.name] = value
    return out


@pytest.mark.parametrize("name", CONTRACTED)
def test_nothing_but_structure_compiles_again(name, monkeypatch):
    traces, noise = [], ActorCritic.noise

    def counted(self, *args, **kwargs):
        traces.append(1)
        return noise(self, *args, **kwargs)

    monkeypatch.setattr(ActorCritic, "noise", counted)
    agent = small(name)
    state = start(agent)

    def losses(agent, data=None, key=KEY):
        data = transitions() if data is None else data
        _, metrics = train_steps(agent, state, data, num_updates=2, batch_size=9, key=key)
        return np.asarray(metrics["loss"])

    first = losses(agent)
    assert len(traces) == 1
    values = numbers(agent)
    assert {"learning_rate", "critic.discount"} <= values.keys()
    for key, value in values.items():
        value = value * 0.5 - (0.1 if key == "critic.reward_min" else 0.0)
        try:
            changed = with_options(agent, {key: value})
        except ValueError as error:
            assert "means nothing" in str(error)  # noqa: PT017
            continue
        losses(changed)
    key = "policy.alpha" if "policy.alpha" in values else "learning_rate"
    losses(with_options(agent, {key: 3}))
    for other in (
        losses(with_options(agent, {key: 0.5})),
        losses(agent, data=transitions(seed=3)),
        losses(agent, key=jax.random.key(8)),
    ):
        assert not np.allclose(other, first)
    assert len(traces) == 1
    # Arrays are as good as numbers.
    default = values[key]
    np.testing.assert_array_equal(losses(with_options(agent, {key: jnp.array(default)})), first)
    before = len(traces)
    losses(with_options(agent, {key: jnp.array(1.1 * default)}))
    assert len(traces) == before


def test_a_sweep_is_a_vmap():
    agent, data = small("fql"), transitions()
    state = start(agent)

    def loss(alpha):
        own = with_options(agent, {"policy.alpha": alpha})
        return train_steps(own, state, data, num_updates=5, batch_size=8, key=KEY)[1]["loss"]

    swept = eqx.filter_vmap(loss)(jnp.array([1.0, 30.0]))
    np.testing.assert_allclose(swept[1], loss(30.0), rtol=1e-5)
    assert not np.allclose(swept[0], swept[1])


def test_a_batch_may_be_larger_than_the_dataset():
    agent = small("fql")
    data = transitions(size=3)
    state, metrics = train_steps(agent, start(agent), data, num_updates=2, batch_size=64, key=KEY)
    assert int(state.step) == 2
    assert np.isfinite(metrics["loss"]).all()


@pytest.mark.parametrize("size", [0, -1, 2.0, True])
@pytest.mark.parametrize("name", ["num_updates", "batch_size"])
def test_sizes_that_make_no_sense(name, size):
    agent = small("fql")
    sizes = {"num_updates": 2, "batch_size": 2} | {name: size}
    with pytest.raises((ValueError, TypeError), match=name if size in (0, -1) else None):
        train_steps(agent, start(agent), transitions(), **sizes, key=KEY)
    with pytest.raises((ValueError, TypeError)):
        fit(agent, start(agent), transitions(), **sizes, key=KEY)


def test_fit_ends_chunks_at_multiples():
    agent, data = small("fql"), transitions()
    seen = []
    options = {"batch_size": 8, "key": KEY, "chunk": 10}
    state = fit(agent, start(agent), data, num_updates=15, callbacks=[seen.append], **options)
    assert [p.step for p in seen] == [10, 15]
    state = fit(agent, state, data, num_updates=25, callbacks=[seen.append], **options)
    assert [p.step for p in seen] == [10, 15, 20, 25]
    assert state is seen[-1].state
    expected, metrics = start(agent), []
    for _ in range(5):
        expected, row = train_steps(agent, expected, data, num_updates=5, batch_size=8, key=KEY)
        metrics.append(row["loss"])
    assert eqx.tree_equal(state, expected)
    assert seen[0].metrics["loss"] == pytest.approx(float(np.mean(metrics[:2])))
    assert seen[2].metrics["loss"] == pytest.approx(float(np.mean(metrics[3])))
    assert seen[2].updates_per_second > 0
    # There is nothing left to do.
    assert fit(agent, state, data, num_updates=25, callbacks=[pytest.fail], **options) is state


@pytest.mark.parametrize("name", CONTRACTED)
def test_fit_names_the_update_that_diverged(name):
    agent, data = small(name), transitions()
    data = eqx.tree_at(lambda d: d.action, data, data.action.at[BAD].set(jnp.nan))
    state, losses = start(agent), []
    for _ in range(6):
        state, metrics = train_steps(agent, state, data, num_updates=10, batch_size=8, key=KEY)
        losses.append(metrics["loss"])
    first = int(np.argmin(np.isfinite(np.concatenate(losses)))) + 1
    assert 10 < first < 60  # otherwise the test shows little
    seen = []
    options = {"num_updates": 60, "batch_size": 8, "key": KEY, "chunk": 10}
    with pytest.raises(DivergedError, match=rf"loss.* at update {first}\.") as caught:
        fit(agent, start(agent), data, callbacks=[seen.append], **options)
    assert caught.value.step == first
    # No callback saw a state that is not finite, and those before were all seen.
    assert [p.step for p in seen] == list(range(10, first, 10))
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(seen[-1].state.params))


def test_fit_sees_a_parameter_that_no_metric_shows():
    agent, data = small("fql"), transitions()
    state = start(agent)
    # Adam's moments are broken: the metrics of the first update do not show it, its result does.
    broken = jax.tree.map(
        lambda x: jnp.full_like(x, jnp.nan) if eqx.is_inexact_array(x) else x, state.opt_state
    )
    state = eqx.tree_at(lambda s: s.opt_state, state, broken)
    with pytest.raises(DivergedError, match="a parameter NaN or infinite at update 1"):
        fit(agent, state, data, num_updates=1, batch_size=8, key=KEY)


CUT = {
    "action": (lambda a: a[:190], r"`action` has the shape \(190, 2\), expected \(200, 2\)"),
    "reward": (lambda a: a[:, None], r"`reward` has the shape \(200, 1\), expected \(200,\)"),
    "mask": (lambda a: a[:100], r"`mask` has the shape \(100,\), expected \(200,\)"),
    "observation": (lambda a: a.astype(jnp.uint8), "`observation` is of type uint8"),
}


@pytest.mark.parametrize("field", CUT)
def test_data_that_are_not_whole_do_not_train(field):
    change, message = CUT[field]
    agent, data = small("fql"), transitions()
    data = eqx.tree_at(lambda d: getattr(d, field), data, change(getattr(data, field)))
    refuses_all(agent, start(agent), data, message)


def refuses_all(agent, state, data, message):
    """Also if it was made for several seeds at once."""
    options = {"num_updates": 2, "batch_size": 8}
    with pytest.raises(ValueError, match=message):
        train_steps(agent, state, data, key=KEY, **options)
    with pytest.raises(ValueError, match=message):
        fit(agent, state, data, key=KEY, **options)
    states = jax.tree.map(lambda x: jnp.stack([x, x]), state)
    with pytest.raises(ValueError, match=message):
        train_seeds(agent, states, data, keys=jax.random.split(KEY), **options)


@pytest.mark.parametrize("name", ["floq", "sac", "iql", "bc_flow"])
def test_a_state_for_other_observations(name):
    agent = small(name)
    message = "The state is made for observations of 5 components, and here they have 3"
    refuses_all(agent, agent.init(5, 2, key=KEY), transitions(), message)


def test_an_agent_for_other_data():
    agent, data = small_agent("fql", action_size=1), transitions()
    message = "TD x OneStep is made for actions of 1 components, and those of the data have 2"
    refuses_all(agent, agent.init(3, 1, key=KEY), data, message)
    agent = small("rebrac")
    data = dataclasses.replace(data, next_action=None)
    message = "TD x Deterministic needs the data's `next_action`.*with_next_action"
    refuses_all(agent, start(agent), data, message)


def test_other_errors_stay_what_they_are(monkeypatch):
    agent = small_agent("bc", action_size=2)

    def broken(self, *_):
        raise TypeError("of its own")

    monkeypatch.setattr(Gaussian, "loss", broken)
    with pytest.raises(TypeError, match="of its own"):
        train_steps(agent, start(agent), transitions(), num_updates=2, batch_size=8, key=KEY)


@pytest.mark.parametrize("array", [float, jnp.array])
@pytest.mark.parametrize("name", ["floq", "c51", "value_flows"])
def test_rewards_that_the_agent_is_not_made_for(name, array):
    data = transitions()
    rewards = data.reward.at[:3].set(jnp.array([-2.5, -2.0, 0.25]))
    data = dataclasses.replace(data, reward=rewards)
    bounds = {"reward_min": array(-1.0), "reward_max": array(0.0)}
    agent = with_options(small(name), {"critic": bounds})
    options = {"num_updates": 2, "batch_size": 8, "key": KEY, "chunk": 1}
    state = dataclasses.replace(start(agent), step=jnp.array(2))  # nothing is left to do
    with pytest.warns(UserWarning, match="reward_min, reward_max") as caught:
        fit(agent, state, data, **options)
    assert len(caught) == 1
    text = str(caught[0].message)
    assert "3 of 200 rewards of the data lie outside" in text
    assert "[-1.0, 0.0]: they are between -2.5 and 0.25" in text
    assert "--reward-min" in text
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        fit(agent.for_data(data), state, data, **options)
        fit(small("fql"), state, data, **options)  # which has no bounds


DEBUGGED = """
import jax, jax.numpy as jnp
from floq_eqx.data import Batch, Replay
from floq_eqx.evaluation import make_environments
from floq_eqx.training import fit, fit_online
from tests.runs import small_agent

key = jax.random.key(0)
data = Batch(*(jax.random.uniform(key, (20, n)[: 1 + (n > 0)]) for n in (3, 1, 0, 0, 3)))
agent = small_agent("floq").for_data(data)
state = agent.init(3, 1, key=key)
state = fit(agent, state, data, num_updates=4, batch_size=4, key=key, chunk=2)
agent = small_agent("sac", action_size=1)
state, replay = agent.init(3, 1, key=key), Replay.empty(20, 3, 1)
world = make_environments("Pendulum-v1", 1)
fit_online(agent, state, replay, world, num_steps=8, warmup=2, batch_size=4, key=key, chunk=4)
fit_online(agent, state, replay, world, num_steps=8, batch_size=4, key=key, offline=data)
print(jax.config.jax_debug_nans)
"""


def test_jax_can_look_for_nan():
    environment = os.environ | {"JAX_DEBUG_NANS": "1"}
    command = [sys.executable, "-W", "ignore", "-c", DEBUGGED]
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (0, "True\n"), done.stderr[-3000:]
