"""Agreement with the reference implementations' numbers."""

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from floq_eqx import interop
from floq_eqx.agents import Parts
from floq_eqx.modules import member_values, member_velocities

from .reference import FILES, Reference

FLOQ_FILES = [name for name in FILES if name.startswith("floq")]


@pytest.fixture(scope="module", params=FILES)
def reference(request):
    return Reference(request.param)


@pytest.fixture(scope="module", params=FLOQ_FILES)
def floq_reference(request):
    return Reference(request.param)


def assert_close(ours, theirs, *, relative=1e-5):
    """Largest difference over largest entry: a single small entry may carry rounding."""
    ours, theirs = np.asarray(ours), np.asarray(theirs)
    assert ours.shape == theirs.shape
    np.testing.assert_allclose(ours, theirs, rtol=0, atol=relative * np.abs(theirs).max())


def test_gradient_of_first_update(reference):
    agent, state = reference.load("params0")
    _, expected = reference.load("grads0")
    gradient = eqx.filter_jit(eqx.filter_grad(agent.loss, has_aux=True))
    grads, _ = gradient(state.params, state.targets, reference.batch(0), reference.noise(0))
    leaves = zip(jax.tree.leaves(grads), jax.tree.leaves(expected.params), strict=True)
    for ours, theirs in leaves:
        assert_close(ours, theirs)


def test_losses_metrics_and_parameters_of_three_updates(reference):
    agent, state = reference.load("params0")
    update = eqx.filter_jit(agent.update)
    for number in range(3):
        state, metrics = update(state, reference.batch(number), reference.noise(number))
        info = reference.below(f"info{number}")
        assert set(info) <= set(reference.metrics) | reference.ignored
        for name, value in info.items():
            if name not in reference.ignored:
                # The released flow loss of FQL with quantiles is not reduced.
                ours, theirs = metrics[reference.metrics[name]], float(value.mean())
                assert ours == pytest.approx(theirs, rel=1e-5, abs=1e-6), name
    _, expected = reference.load("params3")
    for part in ("params", "targets"):
        leaves = zip(
            jax.tree.leaves(getattr(state, part)),
            jax.tree.leaves(getattr(expected, part)),
            strict=True,
        )
        for ours, theirs in leaves:
            np.testing.assert_allclose(ours, theirs, rtol=0, atol=2e-5)
    assert int(state.step) == 3


def test_actions_and_returns(floq_reference):
    agent, state = floq_reference.load("params0")
    batch, noise = floq_reference.batch(0), floq_reference.noise(0)
    mid = floq_reference.below("mid0")
    params, critic, policy = state.params, agent.critic, agent.policy
    both = Parts(batch, batch)
    next_action = agent.next_action(params, state.targets, both, noise).action
    assert_close(next_action.reshape(mid["next_actions"].shape), mid["next_actions"])

    integrate = eqx.filter_jit(critic.integrate)
    next_value = integrate(
        state.targets.critic,
        critic.initial_value(noise.critic.next_value),
        batch.next_observation,
        next_action.reshape(*noise.critic.next_value.shape, -1),
    )
    combine = {"mean": jnp.mean, "min": jnp.min}[critic.aggregation]
    assert_close(combine(next_value, axis=0).reshape(-1, 1), mid["next_returns"])

    value = integrate(
        params.critic.field,
        critic.initial_value(noise.critic.value),
        batch.observation,
        batch.action,
    )
    assert_close(value.reshape(mid["current_returns"].shape), mid["current_returns"])

    flow_action = policy.behaviour(params.policy, batch.observation, noise.policy.actor)
    assert_close(flow_action, mid["flow_actions"])
    # The reference evaluates its distilled critic at the clipped one-step actions.
    action = policy.sample(params.policy, batch.observation, noise.policy.actor)
    values = {
        "policy": member_values(params.critic.distilled, batch.observation, action),
        "data": member_values(params.critic.distilled, batch.observation, batch.action),
    }
    errors = {k: np.abs(np.asarray(v) - mid["critic_q"]).max() for k, v in values.items()}
    assert min(errors.values()) < 1e-5, errors


def test_velocity_on_a_grid_beyond_the_support(floq_reference):
    _, state = floq_reference.load("params0")
    batch, mid = floq_reference.batch(0), floq_reference.below("mid0")
    velocity = member_velocities(
        state.params.critic.field,
        jnp.asarray(mid["field_t"]),
        jnp.asarray(mid["field_z"]),
        batch.observation,
        batch.action,
    )
    assert_close(velocity, mid["field_v"])


class TestFromFlax:
    reference = Reference("floq_default")

    def changed(self, **changes):
        params = self.reference.below("params0")
        for path, array in changes.items():
            if array is None:
                del params[path]
            else:
                params[path] = array
        return params

    @pytest.mark.parametrize(
        ("path", "array", "message"),
        [
            ("modules_floq/mlp/Dense_1/kernel", None, "missing: modules_floq/mlp/Dense_1/kernel"),
            ("modules_floq/mlp/Dense_9x/kernel", np.ones(3), "unknown: .*Dense_9x"),
            (
                "modules_critic/value_net/Dense_0/kernel",
                np.ones((2, 9, 32)),
                "misshapen: .*Dense_0",
            ),
            ("modules_floq/mlp/Dense_0/bias", np.full((2, 32), np.nan), "not finite: .*Dense_0"),
            ("modules_floq/mlp/Dense_0/bias", np.full((2, 32), None), "not numeric: .*Dense_0"),
        ],
    )
    def test_names_what_does_not_fit(self, path, array, message):
        with pytest.raises(ValueError, match=message):
            interop.from_flax(self.changed(**{path: array}), self.reference.config)

    @pytest.mark.parametrize(
        ("key", "value", "message"),
        [
            ("agent_name", "dqn", "only .*floq"),
            ("encoder", "impala_small", "encoder=None"),
            ("alpha", None, "lacks 'alpha'"),
            ("discount", 1.5, "discount must be in"),
        ],
    )
    def test_names_what_the_config_lacks(self, key, value, message):
        config = dict(self.reference.config)
        if value is None:
            del config[key]
        else:
            config[key] = value
        with pytest.raises(ValueError, match=message):
            interop.from_flax(self.reference.below("params0"), config)

    def test_both_members_of_value_flows_are_needed(self):
        reference = Reference("value_flows_default")
        params = reference.below("params0")
        del params["modules_critic_flow2/value_net/Dense_1/bias"]
        with pytest.raises(
            ValueError, match="unknown: modules_critic_flow1/value_net/Dense_1/bias"
        ):
            interop.from_flax(params, reference.config)
        config = reference.config | {"clip_flow_returns": False}
        with pytest.raises(ValueError, match="clip_flow_returns"):
            interop.from_flax(reference.below("params0"), config)

    def test_state_is_fresh(self):
        _, state = self.reference.load("params0")
        assert int(state.step) == 0
        assert all(not jnp.any(leaf) for leaf in jax.tree.leaves(state.opt_state))
