"""Hyperparameters by environment: the papers', and a small set for a laptop; published results.

Sources: floq, arXiv 2509.06863, appendix, with its released commands, which also give `iqn`; `fql`
from FQL, arXiv 2502.02538, and where it says so from floq's; `sorl` from SORL, arXiv 2505.22866;
`value_flows` from Value Flows, arXiv 2510.07650; `qc` from the released commands of Q-chunking,
arXiv 2507.07969, which are of sparse rewards on scene and puzzles. Of `iql`, `ifql` and `rebrac`
there is what FQL's released commands state for humanoidmaze-medium, and those of Value Flows for
antmaze-large online; the papers' `c51`, and Value Flows' own `iqn`, are other algorithms than the
agents of these names.
"""

import dataclasses
from typing import Any, Literal, TypeAlias, get_args

from ._checks import check_choice, nearest
from .agents import RECIPES, ActorCritic, TanhGaussian, with_options
from .data import dataset_names, parse_name
from .networks import MLPConfig
from .training import OnlineConfig, TrainConfig

Preset: TypeAlias = Literal["laptop", "paper", "paper-best", "paper-online"]
Variant: TypeAlias = Literal["default", "best", "online"]


@dataclasses.dataclass(frozen=True)
class PaperEnvironment:
    """What the papers share for an environment.

    **Arguments:** `default_task`: the one that hyperparameters were tuned on, in 1 to 5;
    `discount`: γ of every agent that states no other.
    """

    default_task: int
    discount: float


ENVIRONMENTS: dict[str, PaperEnvironment] = {
    "antmaze-large": PaperEnvironment(1, 0.99),
    "antmaze-giant": PaperEnvironment(1, 0.995),
    "humanoidmaze-medium": PaperEnvironment(1, 0.995),
    "humanoidmaze-large": PaperEnvironment(1, 0.995),
    "antsoccer-arena": PaperEnvironment(4, 0.995),
    "cube-single": PaperEnvironment(2, 0.99),
    "cube-double": PaperEnvironment(2, 0.99),
    "scene": PaperEnvironment(2, 0.99),
    "puzzle-3x3": PaperEnvironment(4, 0.99),
    "puzzle-4x4": PaperEnvironment(4, 0.99),
}
"""The environments of the papers, as OGBench's `play` and `navigate` datasets."""

PAPER: dict[str, dict[str, dict[str, Any]]] = {
    "antmaze-large": {
        "floq": {"policy.alpha": 10.0},
        "fql": {"policy.alpha": 10.0, "critic.aggregation": "min"},
        "sorl": {"policy.q_weight": 500.0, "critic.aggregation": "min"},
    },
    "antmaze-giant": {
        "floq": {"policy.alpha": 10.0, "critic.aggregation": "min", "batch_size": 512},
        "fql": {"policy.alpha": 10.0, "critic.aggregation": "min"},
        "iqn": {"policy.alpha": 10.0, "critic.aggregation": "min", "batch_size": 512},
        "sorl": {"policy.q_weight": 500.0, "critic.aggregation": "min"},
    },
    "humanoidmaze-medium": {
        "floq": {"policy.alpha": 30.0},
        "fql": {"policy.alpha": 30.0},
        "iql": {"policy.inverse_temperature": 10.0},
        "ifql": {"selection.num_candidates": 32},
        "rebrac": {"policy.cloning_weight": 0.01, "policy.next_penalty": 0.01},
        "sorl": {"policy.q_weight": 100.0},
    },
    "humanoidmaze-large": {
        "floq": {"policy.alpha": 20.0, "batch_size": 512},
        "fql": {"policy.alpha": 30.0, "batch_size": 512},
        "sorl": {"policy.q_weight": 500.0},
    },
    "antsoccer-arena": {
        "floq": {"policy.alpha": 10.0},
        "fql": {"policy.alpha": 10.0},
        "sorl": {"policy.q_weight": 500.0},
    },
    "cube-single": {
        "floq": {"policy.alpha": 300.0, "depth": 2},
        "fql": {"policy.alpha": 300.0},
        "sorl": {"policy.q_weight": 10.0},
    },
    "cube-double": {
        "floq": {"policy.alpha": 300.0, "depth": 2},
        "fql": {"policy.alpha": 300.0},
        "sorl": {"policy.q_weight": 50.0},
        "value_flows": {"critic.discount": 0.995, "critic.confidence_temperature": 3.0},
        "qc": {},
    },
    "scene": {
        "floq": {"policy.alpha": 300.0},
        "fql": {"policy.alpha": 300.0},
        "sorl": {"policy.q_weight": 100.0},
        "value_flows": {"critic.aggregation": "min"},
        "qc": {"sparse": True},
    },
    "puzzle-3x3": {
        "floq": {"policy.alpha": 1000.0},
        "fql": {"policy.alpha": 1000.0},
        "value_flows": {"critic.bcfm_weight": 0.5, "critic.aggregation": "min"},
        "qc": {"sparse": True},
    },
    "puzzle-4x4": {
        "floq": {"policy.alpha": 1000.0},
        "fql": {"policy.alpha": 1000.0},
        "value_flows": {
            "critic.bcfm_weight": 3.0,
            "critic.confidence_temperature": 100.0,
            "critic.value_aggregation": "min",
        },
    },
}
"""By environment and agent, what differs offline from the agents' defaults. Where no other stands,
the discount is the environment's, the batch 256, and floq's field has a `depth` of 4 layers."""

CHANGES: dict[str, dict[str, dict[str, dict[str, Any]]]] = {
    "default": {},
    "best": {
        "antmaze-giant": {"floq": {"critic.num_steps": 4}},
        "puzzle-4x4": {"floq": {"critic.noise_coverage": 0.25}},
    },
    "online": {
        "antmaze-large": {
            "floq": {},
            "iql": {"policy.inverse_temperature": 10.0},
            "ifql": {"selection.num_candidates": 32},
            "value_flows": {
                "critic.bcfm_weight": 10.0,
                "critic.confidence_temperature": 0.01,
                "policy.alpha": 30.0,
                "critic.value_aggregation": "min",
            },
        },
        "antmaze-giant": {"floq": {"critic.num_steps": 4}},
        "humanoidmaze-medium": {
            "floq": {},
            "fql": {"policy.alpha": 100.0},
            "iql": {},
            "ifql": {},
            "rebrac": {},
            "value_flows": {
                "critic.bcfm_weight": 3.0,
                "critic.confidence_temperature": 0.3,
                "policy.alpha": 100.0,
                "critic.value_aggregation": "min",
                "critic.aggregation": "min",
            },
        },
        "humanoidmaze-large": {"floq": {"critic.num_steps": 16}, "fql": {"policy.alpha": 40.0}},
        "antsoccer-arena": {"floq": {"policy.alpha": 30.0}, "fql": {"policy.alpha": 30.0}},
        "cube-single": {"floq": {}},
        "cube-double": {"floq": {}, "fql": {}, "value_flows": {"policy.alpha": 300.0}},
        "scene": {"floq": {}, "fql": {}, "value_flows": {"policy.alpha": 300.0}},
        "puzzle-3x3": {"floq": {}},
        "puzzle-4x4": {
            "floq": {"critic.noise_coverage": 0.25},
            "fql": {},
            "value_flows": {"critic.confidence_temperature": 0.1, "policy.alpha": 300.0},
        },
    },
}
"""By variant, environment and agent, what differs from `PAPER`: `best` is floq as tuned to the
environment, `online` every agent of which settings for offline-to-online are reported."""

_UPDATES = {"floq": 2_000_000, "iqn": 2_000_000}  # the others', and all before online: a million


@dataclasses.dataclass(frozen=True)
class PublishedMethod:
    """A column of the published results.

    **Arguments:** `agent`: its name here; `num_updates`: after how many; `variant`: of floq.
    """

    agent: str
    num_updates: int
    variant: str = ""


METHODS: dict[str, PublishedMethod] = {
    "BC": PublishedMethod("bc", 1_000_000),
    "ReBRAC": PublishedMethod("rebrac", 1_000_000),
    "SORL": PublishedMethod("sorl", 1_000_000),
    "FQL (1M)": PublishedMethod("fql", 1_000_000),
    "FQL (2M)": PublishedMethod("fql", 2_000_000),
    "floq (default)": PublishedMethod("floq", 2_000_000, "default"),
    "floq (best)": PublishedMethod("floq", 2_000_000, "best"),
}
"""The methods of `PUBLISHED`, in the order of its columns."""

PUBLISHED: dict[str, dict[str, int | None]] = {
    name: dict(zip(METHODS, rates, strict=True))
    for name, rates in {
        "antmaze-large": (11, 81, 89, 79, 83, 91, 91),
        "antmaze-giant": (0, 26, 9, 22, 27, 36, 51),
        "humanoidmaze-medium": (2, 22, 64, 57, 69, 82, 82),
        "humanoidmaze-large": (1, 2, 5, 9, 16, 28, 28),
        "antsoccer-arena": (1, 0, 69, 60, 61, 65, 65),
        "cube-single": (5, 91, 97, 96, 94, 98, 98),
        "cube-double": (2, 12, 25, 29, 25, 47, 47),
        "scene": (5, 41, 57, 56, 57, 58, 58),
        "puzzle-3x3": (2, 21, None, 30, 29, 37, 37),
        "puzzle-4x4": (0, 14, None, 17, 9, 21, 28),
    }.items()
}
"""Success offline in percent, the mean of an environment's five tasks, by environment and method;
`None` where none is reported. Source: the comparison of floq's paper, arXiv 2509.06863, which takes
BC, ReBRAC and FQL (1M) from FQL's and SORL from its own. With OGBench 1.1, which scores the state
after a step (`success_timing="post"`)."""


def paper(agent: str, environment: str, *, variant: Variant = "default") -> TrainConfig:
    """The configuration that the papers report for an agent and an environment.

    **Arguments:**

    - `agent`: its name.
    - `environment`: an OGBench name, of any of its tasks.
    - `variant`: `best` is floq as tuned to the environment, and any other agent's default;
        `online` is offline-to-online: a million updates, then a million environment steps (but of
        ReBRAC, which needs the data's next action, the part offline alone).

    **Raises:** `ValueError` if they report none, with the nearest that they do.
    """
    check_choice("variant", variant, Variant)
    name = parse_name(environment).environment
    if name not in PAPER:
        raise nearest("environment of the papers", name, PAPER)
    changes = CHANGES[variant].get(name, {})
    reported, online = (changes, " online") if variant == "online" else (PAPER[name], "")
    if agent not in reported:
        raise nearest(f"agent of the papers' {name}{online}", agent, reported)
    settings: dict[str, Any] = {"critic.discount": ENVIRONMENTS[name].discount}
    settings |= PAPER[name].get(agent, {}) | changes.get(agent, {})
    batch_size, sparse = settings.pop("batch_size", 256), settings.pop("sparse", False)
    if agent == "floq":
        settings["critic.network.hidden_sizes"] = (512,) * settings.pop("depth", 4)
    made = RECIPES[agent](**settings)
    goes_online = bool(online) and not made.uses_next_action
    return TrainConfig(
        environment=environment,
        agent=made,
        num_updates=1_000_000 if online else _UPDATES.get(agent, 1_000_000),
        batch_size=batch_size,
        sparse=sparse,
        online=OnlineConfig(num_steps=1_000_000) if goes_online else None,
    )


def published_rates(agent: str, environment: str) -> dict[str, int]:
    """The agent's results in `PUBLISHED`, in percent, by the name of the method.

    **Arguments:** `agent`: its name; `environment`: an OGBench name, of any of its tasks.
    """
    if environment not in dataset_names():
        return {}
    name = parse_name(environment)
    rates = PUBLISHED.get(name.environment, {}) if name.kind in ("navigate", "play") else {}
    return {
        label: rate
        for label, rate in rates.items()
        if METHODS[label].agent == agent and rate is not None
    }


def published(agent: str, environment: str) -> str | None:
    """A line to print beside the success of a run.

    **Arguments:** `agent`: its name; `environment`: an OGBench name, of any of its tasks.

    **Returns:** the agent's results in `PUBLISHED`, in [0, 1], each with its number of updates;
    `None` if there are none.
    """
    results = []
    for label, rate in published_rates(agent, environment).items():
        method = METHODS[label]
        variant = f"{method.variant}, " if method.variant else ""
        results.append(f"{rate / 100:.2f} ({variant}{method.num_updates:,} updates)")
    if not results:
        return None
    note = "floq, arXiv 2509.06863; mean of five tasks, while a run is of one"
    return f"published ({note}): success {', '.join(results)}"


LAPTOP: dict[str, dict[str, Any]] = {
    "floq": {"policy.alpha": 300.0},
    "fql": {"policy.alpha": 300.0},
    "qc": {"policy.alpha": 300.0},
    "iqn": {"policy.alpha": 300.0},
    "c51": {"policy.alpha": 300.0},
    "value_flows": {
        "policy.alpha": 300.0,
        "selection.num_candidates": 4,
        "next_selection.num_candidates": 4,
    },
    "sorl": {"policy.q_weight": 30.0, "policy.max_steps": 4, "policy.action_steps": 4},
    "iql": {"policy.inverse_temperature": 1.0},
    "ifql": {"selection.num_candidates": 8},
    "rebrac": {"policy.cloning_weight": 1.0},
}
"""By agent, what the small configuration sets besides sizes and schedule."""


def laptop(
    agent: str | ActorCritic,
    environment: str | None,
    *,
    online_steps: int | None = None,
    data: str | None = None,
) -> TrainConfig:
    """A small configuration: minutes on two cores, on 100 episodes that are collected first.

    Tuned for floq on cube-single; other agents get the same sizes and schedule, and the best of the
    three values of `LAPTOP` that `benchmarks/agents.py` tried there on smaller networks; `qc` gets
    FQL's.

    **Arguments:**

    - `agent`: its name; or a critic and a policy of no name, which get the sizes and the schedule.
    - `environment`: an OGBench name or, to learn online or from your own data, another Gymnasium
        id; or `None` for your own data alone.
    - `data`: as in [`floq_eqx.training.TrainConfig`][].
    - `online_steps`: environment steps, after fewer updates offline at a constant learning rate.
        From scratch where there are no data, and by SAC's policy, of whose batches they are half.
    """
    online = None if online_steps is None else OnlineConfig(num_steps=online_steps)
    schedule: dict[str, Any] = {"learning_rate": 1e-3, "decay_updates": 30_000}
    if online is not None:
        schedule = {"learning_rate": 5e-4, "decay_updates": None}
    if isinstance(agent, str):
        if agent not in RECIPES:
            raise nearest("agent", agent, RECIPES)
        agent = RECIPES[agent](**LAPTOP.get(agent, {}))
    made = small(with_options(agent, schedule))
    from_scratch = isinstance(made.policy, TanhGaussian)
    is_ogbench = environment in dataset_names()
    has_data = is_ogbench or data is not None
    if online is not None and has_data and from_scratch:
        online = dataclasses.replace(online, offline_data="mixture")
    lengths: dict[str, Any] = {
        "num_updates": 30_000,
        "evaluate_every": 10_000,
        "checkpoint_every": 5_000,
        "collect_episodes": 100 if is_ogbench else None,
    }
    if online is not None:
        lengths |= {"num_updates": 0 if from_scratch else 20_000, "evaluate_every": 5_000}
    if online is not None and not has_data:
        lengths |= {
            "num_updates": 0,
            "log_every": 250,
            "evaluate_every": 1_000,
            "evaluation_episodes": 10,
            "checkpoint_every": 1_000,
        }
    return TrainConfig(
        environment=environment,
        agent=made,
        online=online,
        data=data,
        **lengths,
    )


def small(agent: ActorCritic) -> ActorCritic:
    """An agent at the sizes of the small configuration, whatever its critic and policy.

    Networks of values are 2 x 128, of policies 2 x 256; m = 1, K = 4 and τ = 0.01 where it has
    them.
    """
    settings: dict[str, Any] = {} if agent.critic is None else {"target_rate": 0.01}
    for part, width in (("critic", 128), ("policy", 256)):
        module = getattr(agent, part)
        for f in dataclasses.fields(module) if module is not None else ():
            if isinstance(getattr(module, f.name), MLPConfig):
                settings[f"{part}.{f.name}.hidden_sizes"] = (width, width)
            elif f.name in ("num_noise", "num_steps"):
                settings[f"{part}.{f.name}"] = {"num_noise": 1, "num_steps": 4}[f.name]
    return with_options(agent, settings)


def preset(
    name: Preset,
    *,
    agent: str | ActorCritic,
    environment: str | None,
    online_steps: int | None = None,
    data: str | None = None,
) -> TrainConfig:
    """The configuration of a preset by its name.

    **Arguments:** `name`; `agent`: its name or, with the laptop's preset, a critic and a policy of
    no name; `environment`: an OGBench name or, with the laptop's preset, of an environment to learn
    online or from your own data, or `None`; `online_steps`: environment steps, instead of the
    preset's own; `data`: as in [`floq_eqx.training.TrainConfig`][].

    **Raises:** `ValueError` for a name that is not known, with the nearest, and for an agent that
    the papers do not name.
    """
    variants: dict[str, Variant] = {
        "paper": "default",
        "paper-best": "best",
        "paper-online": "online",
    }
    if name == "laptop":
        return laptop(agent, environment, online_steps=online_steps, data=data)
    if name not in variants:
        raise nearest("preset", name, get_args(Preset))
    if not isinstance(agent, str):
        raise ValueError(
            f"The papers report nothing of {agent.name}: take the laptop's preset, or one of their "
            "algorithms."
        )
    if environment is None:
        raise ValueError(
            f"The preset {name} is of the papers' environments: name one (--env), or take the "
            "laptop's for data without one."
        )
    config = paper(agent, environment, variant=variants[name])
    config = dataclasses.replace(config, data=data)
    if online_steps is None:
        return config
    return dataclasses.replace(config, online=OnlineConfig(num_steps=online_steps))
