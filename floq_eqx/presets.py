"""Hyperparameters by environment: the papers', and a small set for a laptop.

Sources: floq, arXiv 2509.06863, appendix C; FQL, arXiv 2502.02538, table 5.
"""

import dataclasses
from typing import Any, Literal, TypeAlias

from .agents.flow_policy import FlowPolicyAgent
from .agents.registry import AGENTS, from_plain, nearest
from .data import parse_name
from .training import TrainConfig

Preset: TypeAlias = Literal["laptop", "paper"]

PAPER: dict[str, dict[str, dict[str, Any]]] = {
    "antmaze-large": {"floq": {"alpha": 10.0}, "fql": {"alpha": 10.0, "aggregation": "min"}},
    "antmaze-giant": {
        "floq": {"alpha": 10.0, "aggregation": "min", "discount": 0.995, "batch_size": 512},
        "fql": {"alpha": 10.0, "aggregation": "min", "discount": 0.995},
    },
    "humanoidmaze-medium": {
        "floq": {"alpha": 30.0, "discount": 0.995},
        "fql": {"alpha": 30.0, "discount": 0.995},
    },
    "humanoidmaze-large": {
        "floq": {"alpha": 20.0, "discount": 0.995, "batch_size": 512},
        "fql": {"alpha": 30.0, "discount": 0.995, "batch_size": 512},
    },
    "antsoccer-arena": {
        "floq": {"alpha": 10.0, "discount": 0.995},
        "fql": {"alpha": 10.0, "discount": 0.995},
    },
    "cube-single": {"floq": {"alpha": 300.0, "depth": 2}, "fql": {"alpha": 300.0}},
    "cube-double": {"floq": {"alpha": 300.0, "depth": 2}, "fql": {"alpha": 300.0}},
    "scene": {"floq": {"alpha": 300.0}, "fql": {"alpha": 300.0}},
    "puzzle-3x3": {"floq": {"alpha": 1000.0}, "fql": {"alpha": 1000.0}},
    "puzzle-4x4": {"floq": {"alpha": 1000.0}, "fql": {"alpha": 1000.0}},
}
"""By environment and agent, what differs from the agents' defaults; offline, with a batch of 256
and two million updates (FQL: one) where nothing else stands. `depth`: the field's hidden layers."""

_PAPER_UPDATES = {"floq": 2_000_000, "fql": 1_000_000}


def paper(agent: str, environment: str) -> TrainConfig:
    """The configuration that the papers report for an agent and an environment.

    **Arguments:** `agent`: its name; `environment`: an OGBench name, of any of its tasks.

    **Raises:** `ValueError` if they report none, with the nearest environments that they do.
    """
    name = parse_name(environment).environment
    if name not in PAPER:
        raise nearest("environment of the papers", name, PAPER)
    if agent not in PAPER[name]:
        raise nearest(f"agent of the papers' {name}", agent, PAPER[name])
    settings = dict(PAPER[name][agent])
    batch_size = settings.pop("batch_size", 256)
    if agent == "floq":
        hidden = [512] * settings.pop("depth", 4)
        settings["field"] = {"kind": "mlp", "hidden_sizes": hidden, "layer_norm": True}
    return TrainConfig(
        environment=environment,
        agent=from_plain(agent, settings),
        num_updates=_PAPER_UPDATES[agent],
        batch_size=batch_size,
    )


def laptop(agent: str, environment: str) -> TrainConfig:
    """A small configuration: minutes on two cores, on 100 episodes that are collected first.

    Tuned for floq on cube-single; other agents get the same sizes and schedule.
    """
    settings: dict[str, Any] = {
        "learning_rate": 1e-3,
        "decay_updates": 30_000,
        "target_rate": 0.01,
        "num_noise": 1,
        "num_steps": 4,
    }
    if issubclass(AGENTS[agent], FlowPolicyAgent):
        settings["alpha"] = 300.0
    default = from_plain(agent, {})
    for name, sizes in (("field", (128, 128)), ("critic", (128, 128)), ("actor", (256, 256))):
        if hasattr(default, name):
            settings[name] = dataclasses.replace(getattr(default, name), hidden_sizes=sizes)
    known = {f.name for f in dataclasses.fields(default)}
    changes = {name: value for name, value in settings.items() if name in known}
    return TrainConfig(
        environment=environment,
        agent=dataclasses.replace(default, **changes),
        num_updates=30_000,
        evaluate_every=10_000,
        checkpoint_every=5_000,
        collect_episodes=100,
    )


def preset(name: Preset, *, agent: str, environment: str) -> TrainConfig:
    """The configuration of a preset by its name.

    **Raises:** `ValueError` for a name that is not known, with the nearest.
    """
    presets = {"laptop": laptop, "paper": paper}
    if name not in presets:
        raise nearest("preset", name, presets)
    return presets[name](agent, environment)
