"""The papers' configurations, and the small one."""

import pytest
from jaxtyping import TypeCheckError

from floq_eqx.agents import AGENTS
from floq_eqx.presets import PAPER, laptop, paper, preset

KINDS = {"cube": "play", "scene": "play", "puzzle": "play"}


def task(environment):
    return f"{environment}-{KINDS.get(environment.split('-')[0], 'navigate')}-singletask-v0"


@pytest.mark.parametrize(
    ("environment", "agent"), [(env, agent) for env, agents in PAPER.items() for agent in agents]
)
def test_every_paper_configuration_builds(environment, agent):
    config = paper(agent, task(environment))
    assert config.agent_name == agent
    assert config.agent.alpha == PAPER[environment][agent]["alpha"]
    assert config.collect_episodes is None
    assert config.agent.decay_updates is None


def test_floq_on_cube_double_has_the_papers_sizes():
    config = paper("floq", task("cube-double"))
    agent = config.agent
    assert agent.field.hidden_sizes == (512,) * 2
    assert agent.critic.hidden_sizes == agent.actor.hidden_sizes == (512,) * 4
    assert (agent.num_noise, agent.num_steps, agent.noise_coverage) == (8, 8, 0.1)
    assert (config.batch_size, config.num_updates) == (256, 2_000_000)
    assert paper("floq", task("antmaze-giant")).agent.field.hidden_sizes == (512,) * 4


@pytest.mark.parametrize("agent", AGENTS)
def test_laptop_trains_any_agent_on_collected_data(agent):
    config = laptop(agent, task("cube-single"))
    assert (config.agent_name, config.collect_episodes) == (agent, 100)
    assert config.agent.decay_updates == config.num_updates


def test_what_the_papers_do_not_report_is_named():
    with pytest.raises(ValueError, match=r"cube-quadruple.*did you mean"):
        paper("floq", task("cube-quadruple"))
    # The runtime type check sees the wrong literal first; without it the function does.
    with pytest.raises((ValueError, TypeCheckError), match="papers"):
        preset("papers", agent="floq", environment=task("cube-single"))
