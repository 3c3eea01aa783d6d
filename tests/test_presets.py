"""The papers' configurations and results, and the small configuration."""

import dataclasses

import jax
import pytest
from jaxtyping import TypeCheckError

from floq_eqx.agents import RECIPES, to_plain
from floq_eqx.data import make_environment
from floq_eqx.presets import (
    CHANGES,
    ENVIRONMENTS,
    METHODS,
    PAPER,
    PUBLISHED,
    laptop,
    paper,
    preset,
    published,
)

KINDS = {"cube": "play", "scene": "play", "puzzle": "play"}
REPORTED = [
    (environment, agent, variant)
    for variant in CHANGES
    for environment, agents in (CHANGES["online"] if variant == "online" else PAPER).items()
    for agent in agents
]


def flat(agent):
    """Its options, by dotted names."""

    def walk(tree, prefix):
        for key, value in tree.items():
            if isinstance(value, dict):
                yield from walk(value, f"{prefix}{key}.")
            else:
                yield prefix + key, value

    return dict(walk(to_plain(agent), ""))


def task(environment, suffix=""):
    kind = KINDS.get(environment.split("-")[0], "navigate")
    return f"{environment}-{kind}-singletask{suffix}-v0"


@pytest.mark.parametrize(("environment", "agent", "variant"), REPORTED)
def test_every_paper_configuration_builds(environment, agent, variant):
    config = paper(agent, task(environment), variant=variant)
    assert config.agent_name == agent
    assert config.collect_episodes is None
    plain = flat(config.agent) | {"batch_size": config.batch_size, "sparse": config.sparse}
    assert plain["decay_updates"] is None
    stated = PAPER[environment].get(agent, {}) | CHANGES[variant].get(environment, {}).get(
        agent, {}
    )
    expected = {"batch_size": 256, "sparse": False} | stated
    expected = {"critic.discount": ENVIRONMENTS[environment].discount} | expected
    for name, value in expected.items():
        if name == "depth":
            assert len(plain["critic.network.hidden_sizes"]) == value
        else:
            assert plain[name] == value, name


def test_the_tables_speak_of_the_same_environments_and_agents():
    assert list(ENVIRONMENTS) == list(PAPER) == list(PUBLISHED) == list(CHANGES["online"])
    assert all("floq" in CHANGES["online"][name] for name in PAPER)
    for variant in CHANGES.values():
        assert set(variant) <= set(PAPER)
    assert {method.agent for method in METHODS.values()} <= set(RECIPES)


@pytest.mark.parametrize("environment", ENVIRONMENTS)
def test_the_default_task_is_ogbenchs(environment):
    env = make_environment(task(environment))
    try:
        env.reset()
        default = env.unwrapped._reward_task_id
    finally:
        env.close()
    assert default == ENVIRONMENTS[environment].default_task


@pytest.mark.parametrize(
    ("agent", "environment", "variant", "expected"),
    [
        # Rows of the papers' tables, written down a second time.
        (
            *("floq", "antmaze-giant", "default"),
            {"critic.num_steps": 8, "critic.aggregation": "min"},
        ),
        (
            *("floq", "antmaze-giant", "best"),
            {"critic.num_steps": 4, "critic.aggregation": "min", "policy.alpha": 10},
        ),
        (
            *("floq", "antmaze-giant", "online"),
            {"critic.num_steps": 4, "critic.discount": 0.995, "policy.alpha": 10},
        ),
        ("floq", "humanoidmaze-large", "best", {"critic.num_steps": 8, "policy.alpha": 20}),
        ("floq", "humanoidmaze-large", "online", {"critic.num_steps": 16, "policy.alpha": 20}),
        ("floq", "puzzle-4x4", "default", {"critic.noise_coverage": 0.1, "policy.alpha": 1000}),
        ("floq", "puzzle-4x4", "best", {"critic.noise_coverage": 0.25, "critic.num_steps": 8}),
        ("floq", "puzzle-4x4", "online", {"critic.noise_coverage": 0.25, "policy.alpha": 1000}),
        ("fql", "humanoidmaze-large", "online", {"policy.alpha": 40, "critic.discount": 0.995}),
        ("fql", "antmaze-large", "best", {"policy.alpha": 10, "critic.aggregation": "min"}),
        ("sorl", "antmaze-large", "default", {"policy.q_weight": 500, "critic.aggregation": "min"}),
        ("value_flows", "cube-double", "default", {"critic.discount": 0.995, "policy.alpha": 10}),
        (
            *("value_flows", "cube-double", "online"),
            {
                "critic.discount": 0.995,
                "critic.confidence_temperature": 3,
                "policy.alpha": 300,
                "critic.bcfm_weight": 1,
            },
        ),
        (
            *("value_flows", "puzzle-4x4", "online"),
            {
                **{
                    "critic.bcfm_weight": 3,
                    "critic.confidence_temperature": 0.1,
                    "policy.alpha": 300,
                },
                **{
                    "critic.value_aggregation": "min",
                    "critic.aggregation": "mean",
                    "critic.discount": 0.99,
                },
            },
        ),
    ],
)
def test_rows_of_the_papers(agent, environment, variant, expected):
    plain = flat(paper(agent, task(environment), variant=variant).agent)
    assert {name: plain[name] for name in expected} == pytest.approx(expected)


def test_how_long_the_papers_train():
    scene = task("scene")
    assert paper("fql", scene).num_updates == 1_000_000
    assert paper("floq", scene, variant="best").num_updates == 2_000_000
    assert paper("floq", scene, variant="online").num_updates == 1_000_000
    assert paper("fql", task("humanoidmaze-large"), variant="online").batch_size == 512


def test_floq_on_cube_double_has_the_papers_sizes():
    config = paper("floq", task("cube-double"))
    critic, policy = config.agent.critic, config.agent.policy
    assert critic.network.hidden_sizes == (512,) * 2
    assert critic.distilled_network.hidden_sizes == policy.network.hidden_sizes == (512,) * 4
    assert (critic.num_noise, critic.num_steps, critic.noise_coverage) == (8, 8, 0.1)
    assert (config.batch_size, config.num_updates) == (256, 2_000_000)
    assert paper("floq", task("antmaze-giant")).agent.critic.network.hidden_sizes == (512,) * 4


@pytest.mark.parametrize("agent", RECIPES)
def test_laptop_trains_any_agent_on_collected_data(agent):
    config = laptop(agent, task("cube-single"))
    assert (config.agent_name, config.collect_episodes) == (agent, 100)
    assert config.agent.decay_updates == config.num_updates
    agent = dataclasses.replace(config.agent, action_size=5)
    for name, value in flat(agent).items():
        if name.endswith("hidden_sizes"):
            assert max(value) <= 256
    state = jax.eval_shape(lambda key: agent.init(28, 5, key=key).step, jax.random.key(0))
    assert state.shape == ()


def test_presets_by_name():
    giant = {"agent": "floq", "environment": task("antmaze-giant")}
    steps = [
        preset(name, **giant).agent.critic.num_steps for name in ("paper", "paper-best", "laptop")
    ]
    assert steps == [8, 4, 4]
    soccer = {"agent": "fql", "environment": task("antsoccer-arena")}
    assert preset("paper-online", **soccer).agent.policy.alpha == 30


def test_what_the_papers_do_not_report_is_named():
    with pytest.raises(ValueError, match=r"cube-quadruple.*did you mean"):
        paper("floq", task("cube-quadruple"))
    with pytest.raises(ValueError, match=r"agent of the papers' scene 'bc'; did you mean"):
        paper("bc", task("scene"))
    with pytest.raises(ValueError, match=r"papers' cube-single online 'sorl'; did you mean floq\?"):
        paper("sorl", task("cube-single"), variant="online")
    with pytest.raises(ValueError, match="papers' antmaze-large 'value_flows'"):
        paper("value_flows", task("antmaze-large"))
    # The runtime type check sees the wrong literal first; without it the function does.
    with pytest.raises((ValueError, TypeCheckError), match="papers"):
        preset("papers", agent="floq", environment=task("cube-single"))
    with pytest.raises((ValueError, TypeCheckError), match="bets"):
        paper("floq", task("cube-single"), variant="bets")


def test_published_results():
    start = (
        "published (floq, arXiv 2509.06863; mean of five tasks, while a run is of one): success "
    )
    floq = "0.36 (default, 2,000,000 updates), 0.51 (best, 2,000,000 updates)"
    assert published("floq", task("antmaze-giant", "-task3")) == start + floq
    fql = "0.96 (1,000,000 updates), 0.94 (2,000,000 updates)"
    assert published("fql", task("cube-single")) == start + fql
    assert published("rebrac", task("antsoccer-arena")) == start + "0.00 (1,000,000 updates)"
    nothing = [("sorl", task("puzzle-3x3")), ("iqn", task("scene"))]
    nothing += [("floq", "cube-quadruple-play-singletask-v0")]
    nothing += [("floq", "cube-single-noisy-singletask-v0")]
    assert [published(*names) for names in nothing] == [None] * 4
