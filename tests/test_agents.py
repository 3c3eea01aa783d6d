"""Contracts that every recipe keeps, and every critic with every policy; what is floq's own."""

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
    CRITICS,
    POLICIES,
    RECIPES,
    TD,
    ActorCritic,
    Agent,
    BehaviouralFlow,
    BoundedCritic,
    Categorical,
    Deterministic,
    Flow,
    Gaussian,
    Implicit,
    OneStep,
    Parts,
    Quantile,
    ReturnFlow,
    Selection,
    Shortcut,
    SoftReturnFlow,
    State,
    TanhGaussian,
    average,
    composed,
    floq,
    from_plain,
    recipe,
    sac,
    to_plain,
    with_options,
)
from floq_eqx.data import Batch
from floq_eqx.modules import ValueVelocity, member_values, member_velocities
from floq_eqx.networks import MLPConfig, ResidualConfig
from floq_eqx.paths import linear_path
from floq_eqx.training import TrainConfig, train_steps
from floq_eqx.training.loop import with_arrays

from .runs import CONTRACTED, small_agent, small_pair

KEY = jax.random.key(0)
PARTS = ("critic", "policy", "selection", "next_selection")


def small(name, **changes):
    """A recipe with tiny networks and few samples.

    Its numbers are arrays, so that other ones do not compile again.
    """
    return with_arrays(small_agent(name, **({"action_size": 2} | changes)))


def only(name, **changes):
    """Those of the changes that this recipe has an option for."""
    agent, found = RECIPES[name](), {}
    for key, value in changes.items():
        if key in PARTS:
            part = getattr(agent, key)
            value = {option: v for option, v in value.items() if hasattr(part, option)}
        if key not in PARTS or value:
            found[key] = value
    return found


def distils(name):
    """Whether it has FQL's policy."""
    return isinstance(RECIPES[name]().policy, OneStep)


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
def scores_of(agent, state, observation, action, keys):
    """The Q by which actions are chosen on these keys."""

    def score(action, key):
        _, score_key, _ = jax.random.split(key, 3)
        noise = agent.critic.score_noise(1, key=score_key)
        return agent.critic.score(state.params.critic, observation[None], action[None], noise)[0]

    return jax.vmap(score)(action, keys)


@eqx.filter_jit
def target_of(agent, state, noise):
    both = Parts(BATCH, BATCH)
    action = agent.next_action(state.params, state.targets, both, noise).action
    action = jnp.reshape(action, (len(BATCH), -1, 2))
    critic = agent.critic
    return critic.td_target(state.targets.critic, BATCH, action, noise.critic.next_value)


AVERAGED = {
    "floq": lambda params: params.critic.field,
    "iql": lambda params: params.critic.q,
    "ifql": lambda params: params.critic.q,
    "rebrac": lambda params: params,
    "sorl": lambda params: params,
    "bc": lambda params: None,
    "bc_flow": lambda params: None,
} | dict.fromkeys(("fql", "iqn", "c51", "sac", "value_flows", "evor"), lambda params: params.critic)
# An option that moves the loss, where it is not OneStep's `alpha`.
SWEPT = {
    "iql": {"policy": "inverse_temperature"},
    "sorl": {"policy": "consistency_weight"},
    "rebrac": {"policy": "cloning_weight"},
    "ifql": {"critic": "expectile"},
    **{name: {} for name in ("sac", "evor", "bc", "bc_flow")},
}


def swept(name, value):
    where = SWEPT.get(name, {"policy": "alpha"})
    return {part: {key: value} for part, key in where.items()} or {"learning_rate": value}


integrate = eqx.filter_jit(lambda critic, *args: critic.integrate(*args))


def assert_trees_close(ours, theirs, **tolerance):
    for a, b in zip(jax.tree.leaves(ours), jax.tree.leaves(theirs), strict=True):
        np.testing.assert_allclose(a, b, **(tolerance or {"rtol": 0, "atol": 0}))


def is_zero(tree):
    return all(not np.any(leaf) for leaf in jax.tree.leaves(tree))


class TestContracts:
    def test_loss_has_no_hidden_randomness(self, name):
        agent = small(name)
        state, noise = start(agent)
        first, again = (update(agent, state, noise) for _ in range(2))
        assert_trees_close(first, again)
        _, other = update(agent, state, agent.noise(len(BATCH), key=jax.random.key(3)))
        draws = len(jax.tree.leaves(noise)) > 0
        assert (other["loss"] != first[1]["loss"]) == draws

    def test_noise_covers_every_random_number(self, name):
        agent = small(name)
        noise = agent.noise(4096, key=KEY)
        # floq places z0 by a ratio, and IQN's value has levels; the others' z0 is normal.
        levels = ["value"] if name in ("floq", "iqn") else []
        uniform = ("time", "quantile", "level", *levels)
        next_actions = 0 if agent.critic is None else agent.critic.num_next_actions
        choices = 4096 * next_actions
        rows = {
            "action": choices * agent.next_selection.num_candidates,
            "score": choices * agent.next_selection.num_candidates,
            "choice": choices,
        }
        leaves = []
        for path, leaf in jax.tree_util.tree_leaves_with_path(noise):
            values, names = np.asarray(leaf), [entry.name for entry in path]
            where = ".".join(names)
            if values.ndim == 0:  # one number for the whole batch
                assert 0 <= values < 1, where
                continue
            assert values.shape[0] == rows.get(names[0], 4096), where
            mean, deviation = values.mean(), values.std()
            if names[0] == "choice":
                assert mean == pytest.approx(np.euler_gamma, abs=0.05), where
                assert deviation == pytest.approx(np.pi / np.sqrt(6), abs=0.05), where
            elif names[-1].endswith(uniform):
                assert values.min() >= 0, where
                assert values.max() < 1, where
                assert mean == pytest.approx(0.5, abs=0.05), where
            else:
                assert mean == pytest.approx(0, abs=0.05), where
                assert deviation == pytest.approx(1, abs=0.05), where
            leaves.append(values.ravel()[:4096])
        if not leaves:  # its updates draw nothing
            return
        correlation = np.atleast_2d(np.corrcoef(leaves)) - np.eye(len(leaves))
        assert np.abs(correlation).max() < 0.1, "two random numbers are the same"

    def test_update_is_adam_and_an_average_of_the_parameters_before(self, name):
        averages = AVERAGED[name](small(name).init(3, 2, key=KEY).params) is not None
        rate = {"target_rate": 0.25} if averages else {}
        agent = small(name, learning_rate=0.01, **rate)
        state, noise = start(agent)
        new, metrics = update(agent, state, noise)
        assert (len(jax.tree.leaves(state.targets)) > 0) == averages
        if averages:
            slow = jax.tree.leaves(state.targets)
            expected = average(slow, jax.tree.leaves(AVERAGED[name](state.params)), 0.25)
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
        assert is_zero(grads)

    def test_actor_terms_leave_the_critics_alone(self, name):
        if not distils(name):
            return  # `TestPairs` has every policy's gradients
        agent = small(name, policy={"alpha": 10.0})
        state, noise = start(agent)
        policy = noise.policy
        policy = dataclasses.replace(policy, actor=policy.actor + 1, bc_time=policy.bc_time / 2)
        other = dataclasses.replace(noise, policy=policy)
        before, after = gradient_of(agent, state, noise), gradient_of(agent, state, other)
        assert_trees_close(before.critic, after.critic, rtol=1e-5, atol=1e-6)
        changed = [
            not np.allclose(a, b)
            for a, b in zip(
                jax.tree.leaves(before.policy), jax.tree.leaves(after.policy), strict=True
            )
        ]
        assert any(changed)

    def test_loss_is_the_critics_and_the_policys(self, name):
        agent = small(name)
        state, noise = start(agent)
        arguments = (state.params, state.targets, Parts(BATCH, BATCH), noise)
        parts = [] if agent.critic is None else [eqx.filter_jit(agent.critic_loss)(*arguments)]
        parts.append(eqx.filter_jit(agent.policy_loss)(*arguments))
        loss, metrics = loss_of(agent, state, noise)
        assert loss == pytest.approx(sum(float(one) for one, _ in parts), rel=1e-5)
        assert set(metrics) == {"loss"}.union(*(own for _, own in parts))

    def test_sweep_over_a_hyperparameter_is_vmapped(self, name):
        values = jnp.array([0.1, 0.9])
        state, noise = start(small(name))

        def updated(value):
            new, metrics = update(small(name, **swept(name, value)), state, noise)
            return metrics["loss"], jax.tree.leaves(new.params)[0]

        all_of_them = eqx.filter_jit(eqx.filter_vmap(updated))(values)
        one, other = updated(values[0]), updated(values[1])
        for both, a, b in zip(all_of_them, one, other, strict=True):
            np.testing.assert_allclose(both, jnp.stack([a, b]), rtol=1e-4, atol=1e-6)
        assert not all(np.array_equal(a, b) for a, b in zip(one, other, strict=True))

    def test_new_values_do_not_retrace(self, name):
        traces = []

        @eqx.filter_jit
        def traced(agent, state, batch, noise):
            traces.append(None)
            return agent.loss(state.params, state.targets, batch, noise)[0] * agent.learning_rate

        state, noise = start(small(name))
        for scale in (0.5, 0.25):
            value = jnp.asarray(scale, jnp.float32)
            changes = only(
                name,
                critic={"discount": value},
                policy={"alpha": value},
                learning_rate=value,
                target_rate=value,
            )
            agent = small(name, **changes)
            traced(agent, state, transitions(seed=int(100 * scale)), noise)
        assert len(traces) == 1

    def test_act(self, name):
        agent = small(name)
        state, _ = start(agent)
        keys = jax.random.split(KEY, 100)
        actions = actions_of(agent, state, 10 * jnp.ones(3), keys)
        assert actions.shape == (100, 2)
        assert jnp.abs(actions).max() <= 1
        deterministic = name in ("bc", "iql", "rebrac", "sac")
        assert (jnp.unique(actions[:, 0]).size == 1) == deterministic

    def test_explore(self, name):
        agent = small(name)
        state, _ = start(agent)
        explore = jax.vmap(lambda key: agent.explore(state, jnp.ones(3), key=key))
        actions = explore(jax.random.split(KEY, 100))
        assert jnp.abs(actions).max() <= 1
        assert jnp.unique(actions, axis=0).shape[0] > 10

    @pytest.mark.parametrize("proposal", ["policy", "behaviour"])
    def test_candidates_are_chosen_by_value_and_temperature(self, name, proposal):
        if not distils(name):
            return  # `test_baselines` has the others' own
        state, _ = start(small(name))
        observation, keys = jnp.ones(3), jax.random.split(KEY, 64)
        # Values of untrained networks, some of which the usual bounds would clip.
        bounds = only(name, critic={"reward_max": 1.0})

        def q(**changes):
            selection = {"proposal": proposal} | changes
            agent = small(name, selection=selection, **bounds)
            action = actions_of(agent, state, observation, keys)
            return float(jnp.mean(scores_of(agent, state, observation, action, keys)))

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
            ({"critic": {"discount": 1.0}}, r"discount must be in \[0, 1\), got 1.0"),
            ({"critic": {"discount": -0.1}}, "discount"),
            ({"critic": {"discount": float("nan")}}, "discount"),
            ({"target_rate": 1.5}, "target_rate"),
            ({"learning_rate": -1.0}, "learning_rate"),
            ({"policy": {"alpha": float("inf")}}, "alpha"),
            ({"decay_updates": 0}, "decay_updates"),
            ({"policy_every": 0}, "policy_every"),
            ({"gradient_norm": -1.0}, "gradient_norm"),
            ({"critic": {"ensemble_size": 0}}, "ensemble_size"),
            ({"selection": {"num_candidates": 0}}, "num_candidates"),
            ({"selection": {"num_candidates": 2, "temperature": -1.0}}, "temperature"),
            ({"selection": {"num_candidates": 1, "temperature": 1.0}}, "temperature = 1.0 means"),
            ({"selection": {"proposal": "none"}}, "proposal"),
            ({"critic": {"reward_min": 1.0}}, "reward_min < reward_max"),
            ({"policy": {"flow_steps": -1}}, "flow_steps"),
        ],
    )
    def test_bad_hyperparameters(self, name, changes, message):
        if not only(name, **changes):
            return
        # The runtime type check refuses the wrong literals before the part does.
        with pytest.raises((ValueError, TypeCheckError), match=message):
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
        data = dataclasses.replace(BATCH, reward=BATCH.reward - 1)
        agent = small(name, action_size=None).for_data(data)
        assert agent.action_size == 2
        bounded = name in ("floq", "c51", "value_flows")
        assert agent.reward_bounds == ((-2, -1) if bounded else None)

    def test_plain_form(self, name):
        for agent in (RECIPES[name](), small_agent(name)):
            assert eqx.tree_equal(from_plain(json.loads(json.dumps(to_plain(agent)))), agent)
            assert agent.recipe == name


QUICK = ("flow", "td", "implicit")
PAIRS = [
    pytest.param(critic, policy, marks=() if critic in QUICK else pytest.mark.slow)
    for critic in CRITICS
    for policy in POLICIES
]


def made_up(make, low, high):
    """What `make` makes of a key, of numbers that cost no compilation."""
    rng = np.random.default_rng(0)
    shapes = eqx.filter_eval_shape(make, KEY)
    return jax.tree.map(lambda x: rng.uniform(low, high, x.shape).astype(x.dtype), shapes)


@eqx.filter_jit
def looked_at(agent, params, batch, noise, keys):
    """All that is asked of a pair, in one program: the critic's loss and the policy's, their
    gradients in the parameters and in the targets, and actions.
    """
    both, targets = Parts(batch, batch), agent.slow(params)

    def losses(params, targets):
        critic, _ = agent.critic_loss(params, targets, both, noise)
        policy, _ = agent.policy_loss(params, targets, both, noise)
        return jnp.stack([critic, policy])

    values, pull_back = jax.vjp(losses, params, targets)
    gradients = jax.vmap(pull_back)(jnp.eye(2))
    state = State(params, targets, None, jnp.zeros((), jnp.int32))
    act = jax.vmap(lambda key: agent.act(state, 10 * jnp.ones(3), key=key))
    return values, gradients, act(keys)


class TestPairs:
    @pytest.mark.parametrize(("critic", "policy"), PAIRS)
    def test_contract(self, critic, policy):
        # Values of made-up networks, which the usual bounds would clip.
        bounds = {"reward_max": 1.0} if issubclass(CRITICS[critic], BoundedCritic) else {}
        # Of chunks of two actions, as the recipes' contracts are of single ones.
        agent = small_pair(critic, policy, action_size=2, chunk=2, critic=bounds)
        params = made_up(lambda key: agent.init(3, 2, key=key).params, -1, 1)
        noise = made_up(lambda key: agent.noise(4, key=key), 0, 1)
        parts = vars(jax.tree.map(lambda x: x[:4], BATCH))
        pairs = {k: jnp.concatenate([v, v], 1) for k, v in parts.items() if k.endswith("action")}
        valid = jnp.ones((4, 2)).at[2, 1].set(0.0)
        batch = Batch(**parts | pairs | {"discount": jnp.full(4, 0.9), "valid": valid})
        keys = jax.random.split(KEY, 8)
        found = looked_at(agent, params, batch, noise, keys)
        values, (gradients, slow), action = found
        assert np.isfinite(values).all()
        of_critic, of_policy = (jax.tree.map(lambda x, i=i: x[i], gradients) for i in range(2))
        assert is_zero(of_critic.policy)
        assert is_zero(of_policy.critic)
        assert not is_zero(of_critic.critic)
        assert not is_zero(of_policy.policy)
        assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(gradients))
        assert is_zero(slow)
        assert np.abs(action).max() <= 1

        assert_trees_close(looked_at(agent, params, batch, noise, keys), found)
        broken = dataclasses.replace(batch, reward=batch.reward.at[1].set(jnp.nan))
        assert np.isnan(looked_at(agent, params, broken, noise, keys)[0][0])
        # A chunk that its trajectory does not hold teaches the critic nothing.
        other = dataclasses.replace(batch, reward=batch.reward.at[2].add(-0.5))
        of_other = looked_at(agent, params, other, noise, keys)
        assert_trees_close(of_other[0][0], values[0])
        assert_trees_close(jax.tree.map(lambda x: x[0], of_other[1][0]), of_critic)

    @pytest.mark.parametrize(("critic", "policy"), [("flow", "shortcut"), ("quantile", "gaussian")])
    def test_plain_form(self, critic, policy):
        agent = small_pair(critic, policy, next_selection={"num_candidates": 3, "temperature": 0.5})
        plain = to_plain(agent)
        assert (plain["critic"]["kind"], plain["policy"]["kind"]) == (critic, policy)
        assert eqx.tree_equal(from_plain(json.loads(json.dumps(plain))), agent)
        assert agent.recipe is None
        assert agent.name == f"{CRITICS[critic].__name__} x {POLICIES[policy].__name__}"

    @pytest.mark.parametrize(
        ("make", "message"),
        [
            (
                lambda: ActorCritic(None, OneStep()),
                "OneStep raises a value, and there is no critic",
            ),
            (
                lambda: ActorCritic(None, BehaviouralFlow(), Selection(2)),
                "Nothing can choose among candidates without a critic",
            ),
            (
                lambda: ActorCritic(None, BehaviouralFlow(), next_selection=Selection(2)),
                "next_selection = Selection.* means nothing without a critic",
            ),
            (
                lambda: ActorCritic(
                    None, BehaviouralFlow(), next_selection=Selection(proposal="behaviour")
                ),
                "next_selection = Selection.* means nothing without a critic",
            ),
            (
                lambda: ActorCritic(None, BehaviouralFlow(), policy_every=2),
                "policy_every = 2 means nothing without a critic",
            ),
            (
                lambda: ActorCritic(None, BehaviouralFlow(), target_rate=0.1),
                "target_rate = 0.1 means nothing without a critic",
            ),
            (
                lambda: ActorCritic(Flow(), BehaviouralFlow()),
                "BehaviouralFlow clones the data and never asks Flow: let the critic choose",
            ),
            (
                lambda: ActorCritic(TD(), BehaviouralFlow(), next_selection=Selection(2)),
                "BehaviouralFlow clones the data and never asks TD",
            ),
            (
                lambda: ActorCritic(Implicit(), Deterministic(next_penalty=1.0)),
                "next_penalty = 1.0 means nothing where no target takes the policy's next action",
            ),
            (
                lambda: ActorCritic(Implicit(), TanhGaussian(backup_entropy=False)),
                "backup_entropy = False means nothing where no target takes",
            ),
            (
                lambda: ActorCritic(TD(), Gaussian(extraction="clone")),
                "Gaussian clones the data and never asks TD",
            ),
            (
                lambda: ActorCritic(Implicit(), OneStep(), next_selection=Selection(2)),
                "next_selection = Selection.* means nothing where Implicit wants no next action",
            ),
            (
                lambda: ActorCritic(TD(), Shortcut(), Selection(2, proposal="behaviour")),
                "Shortcut has no clone of the data's policy to propose actions",
            ),
            (
                lambda: ActorCritic(
                    TD(), Deterministic(), next_selection=Selection(proposal="behaviour")
                ),
                "Deterministic has no clone of the data's policy to propose actions",
            ),
            *(
                (
                    lambda critic=critic: ActorCritic(critic(), TanhGaussian()),
                    f"entropy without bounds.* {critic.__name__} .*backup_entropy = False",
                )
                for critic in (Flow, Categorical, ReturnFlow)
            ),
        ],
    )
    def test_what_makes_no_sense(self, make, message):
        with pytest.raises(ValueError, match=message):
            make()

    def test_what_makes_sense_all_the_same(self):
        for critic in (TD(), Quantile(), SoftReturnFlow(), Implicit()):
            ActorCritic(critic, TanhGaussian())
        ActorCritic(Flow(), TanhGaussian(backup_entropy=False))
        ActorCritic(None, Gaussian(extraction="clone"), learning_rate=1e-3)
        ActorCritic(TD(), Gaussian(extraction="clone"), Selection(2))
        ActorCritic(Implicit(), OneStep(), Selection(2, proposal="behaviour"))


class Untold(Agent):
    """An agent that is no critic and policy."""

    def init(self, observation_size, action_size, *, key):
        return self.fresh_state(None, None)

    noise = loss = next_targets = act = init


@pytest.mark.parametrize(
    ("part", "message"),
    [
        ({"critic": Flow}, r"critic is the class Flow; expected an instance, such as Flow\(\)"),
        ({"policy": OneStep}, r"policy is the class OneStep; .* such as OneStep\(\)"),
        ({"critic": OneStep()}, "critic is OneStep.*expected AbstractCritic"),
        ({"selection": 16}, "selection is 16; expected Selection"),
    ],
)
def test_parts_are_instances(part, message):
    with pytest.raises(ValueError, match=message):
        floq(**part)


@pytest.mark.parametrize("name", CRITICS)
def test_what_can_change_after_training_changes_the_choice(name):
    agent = small_pair(name, "behavioural_flow", action_size=2)
    state = start(agent)[0]
    other = {"num_steps": 3, "num_noise": 3, "value_samples": 3, "value_temperature": 0.1}
    other |= {"solver": diffrax.Heun()}

    def score(critic):
        noise = critic.score_noise(len(BATCH), key=KEY)
        return critic.score(state.params.critic, BATCH.observation, BATCH.action, noise)

    for option in agent.critic.test_time:
        changed = with_options(agent.critic, {option: other[option]})
        assert not np.allclose(score(agent.critic), score(changed), rtol=1e-6), option


def test_a_gaussian_is_valued_as_it_is_evaluated():
    agent = small_pair("td", "gaussian", action_size=2)
    state, noise = start(agent)
    both = Parts(BATCH, BATCH)
    found = agent.next_action(state.params, state.targets, both, noise).action
    mode = [agent.act(state, o, key=KEY) for o in BATCH.next_observation]
    np.testing.assert_allclose(found, jnp.stack(mode), rtol=1e-5, atol=1e-6)


class TestBonus:
    """What a policy pays beside the reward, and the bounds of values that hold it."""

    def agent(self, critic, **options):
        bounds = {"discount": 0.9, "reward_min": -1.0, "reward_max": 0.0}
        bounds = {key: value for key, value in bounds.items() if hasattr(CRITICS[critic](), key)}
        changes = {"critic": bounds | options, "policy": {"next_penalty": 0.5}, "action_size": 2}
        return small_pair(critic, "deterministic", **changes)

    def test_widens_the_support_of_values(self):
        # The least bonus is -4 * 2 * 0.5, discounted -3.6; 1 / (1 - γ) is 10.
        field = self.agent("flow", reward_offset=0.1).init(3, 2, key=KEY).params.critic.field
        assert field.value_embedding.low == pytest.approx(-47)
        assert field.value_embedding.high == pytest.approx(1)
        rescaled = self.agent("flow", value_embedding="rescaled", reward_offset=0.0)
        embedding = rescaled.init(3, 2, key=KEY).params.critic.field.value_embedding
        assert (embedding.low, embedding.high) == pytest.approx((-46, 0))
        histogram = self.agent("categorical", reward_offset=0.1).init(3, 2, key=KEY)
        histogram = histogram.params.critic.histogram
        assert (histogram.low, histogram.high) == pytest.approx((-47, 1))
        # Nothing is paid, nothing widened.
        plain = with_options(self.agent("flow"), {"policy": {"next_penalty": 0.0}})
        embedding = plain.init(3, 2, key=KEY).params.critic.field.value_embedding
        assert embedding.low == pytest.approx(-10.1)

    @pytest.mark.parametrize("critic", ["flow", "return_flow", "td"])
    def test_is_paid_and_moves_the_noise_interval(self, critic):
        agent = self.agent(critic)
        assert agent.reward_bounds == (None if critic == "td" else (-1, 0))
        state, noise = start(agent)
        both = Parts(BATCH, BATCH)
        following = agent.next_action(state.params, state.targets, both, noise)
        count = agent.critic.num_next_actions
        distance = following.action - jnp.repeat(BATCH.next_action, count, axis=0)
        expected = -0.5 * jnp.sum(distance**2, axis=1)
        np.testing.assert_allclose(following.bonus, expected, rtol=1e-5)

        wide = agent.critic
        if isinstance(wide, BoundedCritic):
            wide = dataclasses.replace(wide, reward_min=-4.6)
        if critic == "flow":
            ends = wide.initial_value(jnp.array([0.0, 1.0]))
            np.testing.assert_allclose(ends, [-4.6, 0], rtol=1e-5, atol=1e-6)
        bonus = jnp.mean(jnp.reshape(expected, (len(BATCH), count)), axis=1)
        batch = dataclasses.replace(BATCH, reward=BATCH.reward + 0.9 * BATCH.mask * bonus)
        action = jnp.reshape(following.action, (len(BATCH), count, 2))
        by_hand, _ = wide.loss(
            state.params.critic, state.targets.critic, batch, action, noise.critic
        )
        loss, _ = agent.critic_loss(state.params, state.targets, both, noise)
        np.testing.assert_allclose(loss, by_hand, rtol=1e-5)


class TestSelection:
    """Of several actions the one that scores best, by hand."""

    score = jnp.array([[0.0, 2.0, 1.0], [5.0, -1.0, 4.0]])

    def test_without_noise_or_temperature_it_is_the_best(self):
        selection = Selection(3)
        for noise in (None, selection.noise(2, key=KEY)):
            assert selection.choose(self.score, noise).tolist() == [1, 0]
        assert Selection().noise(2, key=KEY) is None

    @pytest.mark.parametrize("proposal", ["policy", "behaviour"])
    def test_act_takes_the_best_of_its_proposals(self, proposal):
        agent = small("floq", selection={"num_candidates": 16, "proposal": proposal})
        state, observation = start(agent)[0], jnp.ones(3)
        action_key, score_key, _ = jax.random.split(KEY, 3)
        noise, observations = jax.random.normal(action_key, (16, 2)), jnp.ones((16, 3))
        policy = agent.policy
        propose = policy.sample if proposal == "policy" else policy.behaviour
        actions = propose(state.params.policy, observations, noise)
        draws = jnp.repeat(agent.critic.score_noise(1, key=score_key), 16, axis=0)
        score = agent.critic.score(state.params.critic, observations, actions, draws)
        chosen = agent.act(state, observation, key=KEY)
        np.testing.assert_allclose(chosen, actions[jnp.argmax(score)], rtol=1e-5, atol=1e-6)

    @pytest.mark.parametrize("proposal", ["policy", "behaviour"])
    def test_next_action_is_the_best_of_its_proposals(self, proposal):
        agent = small("iqn", next_selection={"num_candidates": 4, "proposal": proposal})
        state, noise = start(agent)
        both, rows = Parts(BATCH, BATCH), agent.critic.num_next_actions * 4
        found = agent.next_action(state.params, state.targets, both, noise)
        assert found.action.shape == (len(BATCH) * rows // 4, 2)
        observations = jnp.repeat(BATCH.next_observation, rows, axis=0)
        policy = agent.policy
        propose = policy.sample if proposal == "policy" else policy.behaviour
        actions = propose(state.params.policy, observations, noise.action)
        score = agent.critic.score(state.params.critic, observations, actions, noise.score)
        best = jnp.argmax(jnp.reshape(score, (-1, 4)), axis=1)
        candidates = jnp.reshape(actions, (-1, 4, 2))
        expected = candidates[jnp.arange(len(best)), best]
        np.testing.assert_allclose(found.action, expected, rtol=1e-5, atol=1e-6)

        hot = with_options(agent, {"next_selection": {"temperature": 1e6}})
        drawn = hot.next_action(state.params, state.targets, both, noise).action
        drawn_by_noise = candidates[jnp.arange(len(best)), jnp.argmax(noise.choice, axis=1)]
        np.testing.assert_allclose(drawn, drawn_by_noise, rtol=1e-5, atol=1e-6)

    def test_a_bonus_stays_with_its_action(self):
        agent = with_options(
            small_pair("td", "deterministic", action_size=2),
            {"next_selection": {"num_candidates": 4}, "policy": {"next_penalty": 0.5}},
        )
        state, noise = start(agent)
        found = agent.next_action(state.params, state.targets, Parts(BATCH, BATCH), noise)
        distance = jnp.sum((found.action - BATCH.next_action) ** 2, axis=1)
        np.testing.assert_allclose(found.bonus, -0.5 * distance, rtol=1e-5)


class TestParts:
    """The transitions as the critic and as the policy see them."""

    def test_twice_the_batch_is_the_batch(self, name):
        agent = small(name)
        state, noise = start(agent)
        assert_trees_close(
            update(agent, state, noise, Parts(BATCH, BATCH)),
            update(agent, state, noise, BATCH),
            rtol=1e-5,
            atol=1e-6,
        )

    def test_each_sees_its_own(self):
        agent = small("fql")
        state, noise = start(agent)
        other = dataclasses.replace(
            BATCH, action=-BATCH.action, next_observation=2 * BATCH.next_observation
        )
        _, same = loss_of(agent, state, noise, Parts(BATCH, BATCH))
        _, critics = loss_of(agent, state, noise, Parts(other, BATCH))
        _, policys = loss_of(agent, state, noise, Parts(BATCH, other))
        assert critics["critic_loss"] != same["critic_loss"]
        assert critics["actor_loss"] == same["actor_loss"]
        assert policys["bc_flow_loss"] != same["bc_flow_loss"]
        # It draws the next actions too.
        assert policys["critic_loss"] != same["critic_loss"]


PLAIN = {"critic": {"kind": "flow"}, "policy": {"kind": "one_step"}}


class TestPlain:
    def test_an_algorithm_keeps_its_name_with_its_parts(self):
        assert floq(critic={"num_steps": 3}, policy=OneStep()).recipe == "floq"
        for changes in ({"policy": Gaussian()}, {"critic": {"kind": "td"}}, {"critic": TD()}):
            assert floq(**changes).recipe is None
        assert composed("td", "one_step").recipe == "fql"
        assert composed("td", "gaussian").recipe is None

    def test_an_algorithm_of_ones_own(self, monkeypatch):
        monkeypatch.setattr("floq_eqx.agents.recipes.RECIPES", known := {})

        @recipe
        def redq():
            return sac(critic={"ensemble_size": 10, "target_members": 2})

        agent = known["redq"](learning_rate=1e-3)
        assert (agent.recipe, agent.critic.ensemble_size, agent.learning_rate) == ("redq", 10, 1e-3)

    def test_options_at_the_wrong_place(self):
        with pytest.raises(
            ValueError, match=r'option of a part: give critic=\{"num_steps": \.\.\.\}'
        ):
            floq(num_steps=3)
        with pytest.raises(ValueError, match="critic is given twice"):
            with_options(floq(), {"critic.num_steps": 3, "critic": {"num_noise": 2}})
        with pytest.raises(
            ValueError, match="no critic and policy, which a configuration can name"
        ):
            to_plain(Untold())

    def test_what_is_absent_keeps_its_default(self):
        assert eqx.tree_equal(from_plain(PLAIN), dataclasses.replace(floq(), recipe=None))

    def test_a_kind_begins_with_its_defaults(self):
        agent = with_options(floq(critic={"num_steps": 3}), {"critic": {"kind": "td"}})
        assert eqx.tree_equal(agent.critic, TD())
        same = with_options(floq(critic={"num_steps": 3}), {"critic": {"kind": "flow"}})
        assert same.critic.num_steps == 3
        residual = floq(critic={"network": {"kind": "residual", "width": 8}}).critic.network
        assert residual == ResidualConfig(width=8, layer_norm=True)
        assert floq(critic=TD(discount=0.5)).critic.discount == 0.5

    def test_what_is_none_by_choice(self):
        agent = floq(critic={"adjoint": ADJOINTS["directadjoint"]()}, decay_updates=3)
        plain = {"critic": {"adjoint": None}, "decay_updates": None}
        assert eqx.tree_equal(with_options(agent, plain), floq())

    @pytest.mark.parametrize(
        ("changes", "message"),
        [
            ({"critic": {"kind": "flwo"}}, "Unknown kind of critic 'flwo'; did you mean flow"),
            ({"policy": {"kind": "onestep"}}, "Unknown kind of policy 'onestep'.*one_step"),
            ({"critic": {}}, "critic needs its kind, one of flow, td"),
            ({"critic": "flow"}, "critic is 'flow'; expected AbstractCritic, or options by their"),
            ({"policy": None}, "policy is None; expected AbstractPolicy"),
            ({"selection": 3}, "selection is 3; expected Selection"),
            ({"alpah": 3}, "Unknown option of an agent 'alpah'"),
            ({"learning_rat": 3}, "did you mean learning_rate"),
            ({"selection": {"num_candidate": 3}}, "of selection .*did you mean num_candidates"),
            ({"learning_rate": "fast"}, "learning_rate must be a number, got 'fast'"),
            ({"learning_rate": None}, "learning_rate must be a number, got None"),
            ({"learning_rate": {"kind": "mlp"}}, "learning_rate has no options of its own"),
            ({"target_rate": [0.1]}, r"target_rate must be a number, got \(0.1,\)"),
            ({"policy_every": 2.5}, "policy_every must be a whole number"),
        ],
    )
    def test_what_is_no_agent(self, changes, message):
        with pytest.raises(ValueError, match=message):
            from_plain(PLAIN | changes)

    @pytest.mark.parametrize(
        ("options", "message"),
        [
            ({"num_step": 3}, "Unknown option of critic 'num_step'; did you mean num_steps"),
            ({"num_steps": 2.5}, "num_steps must be a whole number of at least 1, got 2.5"),
            ({"num_steps": True}, "num_steps must be a whole number of at least 1, got True"),
            ({"distil": 1}, "distil must be true or false, got 1"),
            ({"distil": None}, "distil must be true or false, got None"),
            ({"backup": 1}, r"backup must be one of .* got 1"),
            ({"discount": "high"}, "discount must be a number"),
            ({"solver": "eule"}, "Unknown solver 'eule'; did you mean euler"),
            ({"solver": None}, "solver is None; expected AbstractSolver"),
            ({"adjoint": 3}, "Unknown adjoint 3; did you mean"),
            ({"network": None}, "network is None; expected MLPConfig or ResidualConfig"),
            ({"network": {"kind": "mpl"}}, "Unknown kind of network 'mpl'; did you mean mlp"),
            ({"network": {"width": 3}}, "Unknown option of network 'width'"),
            (
                {"network": {"hidden_sizes": 8}},
                r"hidden_sizes must be a tuple \(in JSON a list\), got 8",
            ),
            ({"network": {"hidden_sizes": ["a"]}}, "every entry of hidden_sizes must be a whole"),
        ],
    )
    def test_what_is_no_critic(self, options, message):
        with pytest.raises(ValueError, match=message):
            from_plain(PLAIN | {"critic": {"kind": "flow"} | options})
        with pytest.raises(ValueError, match=message):
            floq(critic=options)

    def test_parts_that_must_be_there(self):
        for part in ("critic", "policy"):
            plain = {key: value for key, value in PLAIN.items() if key != part}
            with pytest.raises(ValueError, match=f"An agent needs a {part}"):
                from_plain(plain)

    def test_what_no_configuration_can_name(self):
        class Own(TD):
            pass

        with pytest.raises(ValueError, match="Own is no critic that a configuration can name"):
            to_plain(ActorCritic(Own(), OneStep()))


UNDISTILLED = {"distil": False}


class TestFloq:
    @pytest.mark.usefixtures("optimised")
    def test_learns_a_value_that_is_known(self):
        """Terminal transitions whose reward is a function of the action: Q is that reward."""
        keys = jax.random.split(KEY, 2)
        action = jax.random.uniform(keys[0], (512, 2), minval=-1)
        reward = -jnp.abs(action[:, 0])
        zeros = jnp.zeros((512, 3))
        data = Batch(zeros, action, reward, jnp.zeros(512), zeros)
        network = MLPConfig(hidden_sizes=(64, 64), layer_norm=True)
        networks = {"network": network, "distilled_network": network}
        critic = {"discount": 0.5, "num_steps": 4, "num_noise": 3} | networks
        agent = small("floq", learning_rate=3e-3, critic=critic).for_data(data)
        state = agent.init(3, 2, key=keys[1])
        state, metrics = train_steps(agent, state, data, num_updates=300, batch_size=64, key=KEY)
        critic, params = agent.critic, state.params.critic
        z0 = critic.initial_value(jax.random.uniform(KEY, (512, 4)))
        value = integrate(critic, params.field, z0, zeros, action)
        error = np.asarray(value) - np.asarray(reward)[None, :, None]
        assert np.sqrt((error**2).mean()) < 0.08
        distilled = member_values(params.distilled, zeros, action)
        assert np.sqrt(((np.asarray(distilled) - np.asarray(reward)) ** 2).mean()) < 0.08
        assert metrics["flow_loss"][-1] < metrics["flow_loss"][0]

    def test_initial_values_fill_their_interval(self):
        options = {"reward_min": -2.0, "reward_max": 1.0, "discount": 0.9, "noise_coverage": 0.5}
        critic = small("floq", critic=options).critic
        np.testing.assert_allclose(
            critic.initial_value(jnp.array([0.0, 0.5, 1.0])), [-10, -2.5, 5], rtol=1e-5
        )

    def test_next_actions_and_noise_differ_between_samples(self):
        agent = small("floq", critic={"backup": "distributional"})
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
            target_of(small("floq", critic={"aggregation": how}), state, noise)
            for how in ("mean", "min")
        )
        assert (np.asarray(mins) <= np.asarray(means)).all()
        assert (np.asarray(mins) < np.asarray(means)).any()

    def test_train_at_zero_only_ignores_the_time(self):
        losses = {}
        for zero_only in (True, False):
            agent = small("floq", critic={"train_at_zero_only": zero_only})
            state, noise = start(agent)
            other = eqx.tree_at(lambda n: n.critic.time, noise, noise.critic.time / 2)
            losses[zero_only] = [
                float(loss_of(agent, state, n)[1]["flow_loss"]) for n in (noise, other)
            ]
        assert losses[True][0] == losses[True][1]
        assert losses[False][0] != losses[False][1]

    def test_policy_extraction_through_the_integral(self):
        agent = small("floq", critic=UNDISTILLED)
        state, noise = start(agent)
        _, metrics = loss_of(agent, state, noise)
        action = agent.policy.sample(state.params.policy, BATCH.observation, noise.policy.actor)
        z0 = agent.critic.initial_value(noise.value)
        value = integrate(agent.critic, state.params.critic.field, z0, BATCH.observation, action)
        assert metrics["actor_q"] == pytest.approx(float(value.mean()), rel=1e-5)

        assert state.params.critic.distilled is None
        assert "critic_distillation_loss" not in metrics
        distilling = small("floq")
        critic = start(distilling)[0].params.critic.distilled
        both = eqx.tree_at(
            lambda s: s.params.critic.distilled, state, critic, is_leaf=lambda leaf: leaf is None
        )
        integral = gradient_of(agent, state, noise)
        distilled = gradient_of(distilling, both, noise)
        assert_trees_close(integral.critic.field, distilled.critic.field, rtol=1e-5, atol=1e-6)
        actor = [jax.tree.leaves(g.policy.actor) for g in (integral, distilled)]
        assert not all(np.allclose(a, b) for a, b in zip(*actor, strict=True))

    def test_the_integral_needs_its_noise(self):
        critic = small("floq", critic=UNDISTILLED).critic
        params = critic.init(3, 2, key=KEY)
        with pytest.raises(ValueError, match="score_noise"):
            critic.value(params, BATCH.observation, BATCH.action, None)

    def test_predicting_the_endpoint_regresses_the_network_on_it(self):
        agent = small("floq", critic={"prediction": "endpoint"})
        state, noise = start(agent)
        _, metrics = loss_of(agent, state, noise)
        target = target_of(agent, state, noise)
        critic, field = agent.critic, state.params.critic.field
        path = linear_path(critic.initial_value(noise.critic.value), target, noise.critic.time)
        # The same network, read as it is.
        velocity = ValueVelocity(field.network, *critic.embeddings())
        predicted = member_velocities(velocity, path.t, path.xt, BATCH.observation, BATCH.action)
        expected = jnp.mean(jnp.sum((predicted - target[None]) ** 2, axis=2))
        assert metrics["flow_loss"] == pytest.approx(float(expected), rel=1e-4)
        # The last Euler step, of length 1 - t, lands on what the network says there.
        value = integrate(critic, field, path.x0, BATCH.observation, BATCH.action)
        assert np.isfinite(value).all()

    @pytest.mark.parametrize("solver", [diffrax.Heun(), diffrax.Tsit5()])
    def test_any_solver_trains(self, solver):
        agent = small("floq", critic={"solver": solver})
        state, noise = start(agent)
        _, metrics = eqx.filter_jit(agent.update)(state, BATCH, noise)
        assert jnp.isfinite(metrics["loss"])

    @pytest.mark.parametrize("adjoint", ADJOINTS)
    def test_every_adjoint_differentiates_the_integral(self, adjoint):
        def gradient(adjoint):
            critic = {"adjoint": adjoint, "num_steps": 16} | UNDISTILLED
            agent = small("floq", critic=critic)
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
        agent = floq(critic={"adjoint": ADJOINTS[adjoint]()})
        plain = json.loads(json.dumps(to_plain(agent)))
        assert plain["critic"]["adjoint"] == adjoint
        assert type(from_plain(plain).critic.adjoint) is ADJOINTS[adjoint]
        config = TrainConfig(agent=agent)
        assert eqx.tree_equal(TrainConfig.from_plain(config.to_plain()).agent, config.agent)

    def test_a_configuration_from_before_there_were_adjoints(self):
        plain = TrainConfig(agent=floq()).to_plain()
        assert plain["agent"]["critic"].pop("adjoint") is None
        assert eqx.tree_equal(TrainConfig.from_plain(plain).agent, floq())

    def test_an_adjoint_that_a_configuration_can_not_hold(self):
        def plain(adjoint):
            return to_plain(floq(critic={"adjoint": adjoint}))

        with pytest.raises(ValueError, match=r"options.*'recursivecheckpointadjoint'"):
            plain(diffrax.RecursiveCheckpointAdjoint(checkpoints=4))
        with pytest.raises(ValueError, match="Unknown adjoint 'forwardmode'"):
            plain(diffrax.ForwardMode())
        with pytest.raises(ValueError, match=r"'direct'.*directadjoint"):
            from_plain(PLAIN | {"critic": {"kind": "flow", "adjoint": "direct"}})

    def test_best_of_candidates(self):
        agent, one = small("floq", selection={"num_candidates": 64}), small("floq")
        state, _ = start(agent)
        observation = jnp.ones(3)
        keys = jax.random.split(KEY, 16)
        critic = agent.critic

        def q(actions):
            z0 = critic.initial_value(jnp.full((16, 1), 0.5))
            observations = jnp.broadcast_to(observation, (16, 3))
            value = integrate(critic, state.params.critic.field, z0, observations, actions)
            return float(value.mean())

        best, plain = (
            jax.vmap(lambda k, a=a: a.act(state, observation, key=k))(keys) for a in (agent, one)
        )
        assert q(best) > q(plain)

    @pytest.mark.parametrize(
        "changes",
        [
            {"critic": {"value_embedding": "rescaled", "time_embedding": "raw"}},
            {"critic": {"time_embedding": "fourier"}},
            {"critic": {"network": ResidualConfig(width=8, num_blocks=1, layer_norm=True)}},
            {"critic": {"ensemble_size": 3, "distilled_size": 1}, "policy": {"normalise_q": True}},
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
            {"critic": {"num_noise": 0}},
            {"critic": {"num_steps": 0}},
            {"critic": {"num_steps": -3}},
            {"critic": {"distilled_size": 0}},
            {"selection": {"num_candidates": 0}},
            {"critic": {"noise_coverage": -0.1}},
            {"critic": {"reward_min": 0.0, "reward_max": 0.0}},
            {"critic": {"reward_min": 1.0, "reward_max": 0.0}},
            {"critic": {"num_bins": 1}},
            {"critic": {"backup": "none"}},
            {"critic": {"aggregation": "max"}},
            {"critic": {"value_aggregation": "max"}},
            {"critic": {"distil": "none"}},
            {"critic": {"prediction": "none"}},
            {"critic": {"value_embedding": "none"}},
            {"critic": {"time_embedding": "none"}},
        ],
    )
    def test_bad_hyperparameters(self, changes):
        # The runtime type check refuses the wrong literals before the critic does.
        with pytest.raises((ValueError, TypeCheckError)):
            small("floq", **changes).init(3, 2, key=KEY)

    def test_equal_rewards_are_refused(self):
        data = dataclasses.replace(BATCH, reward=jnp.zeros(len(BATCH)))
        with pytest.raises(ValueError, match="rewards are equal"):
            small("floq").for_data(data)


def test_fql_with_a_residual_critic():
    agent = small("fql", critic={"network": ResidualConfig(width=8, num_blocks=1)})
    state, noise = start(agent)
    _, metrics = eqx.filter_jit(agent.update)(state, BATCH, noise)
    assert jnp.isfinite(metrics["loss"])
    assert agent.recipe == "fql"
    assert isinstance(agent.critic, TD)
    assert not isinstance(agent.critic, Flow)


def test_on_a_gpu_no_update_has_a_loop_in_it(name, monkeypatch):
    agent = small(name)
    state, noise = start(agent)

    def loops():
        jax.clear_caches()  # A solve's trace is kept, and with it how its loop was written.
        return update.lower(agent, state, noise).as_text().count("stablehlo.while")

    on_a_cpu = loops()
    monkeypatch.setattr(jax, "default_backend", lambda: "gpu")
    assert loops() == 0
    assert on_a_cpu > 0 or name != "floq"
    jax.clear_caches()
