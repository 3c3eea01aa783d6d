"""`floq train`: an agent on an OGBench task or online, in a folder of its own."""

import dataclasses
import json
import typing
import zipfile
from pathlib import Path
from typing import Annotated, Any, Literal

import tyro

from .._checks import nearest
from ..agents import CRITICS, POLICIES, RECIPES, ActorCritic, Selection, to_plain, with_options
from ..agents.critics import BoundedCritic
from ..agents.recipes import composed
from ..data.files import check_file
from ..networks import NetworkConfig, of_kind
from ..training import Run, StoppedRunsError, TrainConfig, train, train_many
from ..training.loggers import LoggerName, loggers_of
from .compilation import CompilationCache, keep_compiled
from .many import Member, folders, members, runs_below
from .options import (
    documented,
    help_asked,
    json_object,
    online_config,
    online_options,
    options_like,
    plain_of,
    print_help,
    saying_how_to_continue,
    values_of,
    with_parts_named,
)
from .output import finish, say

GROUPS = ("run", "data", "learning", "online")
PARTS = ("critic", "policy", "selection", "next_selection")
_DATA = (
    *("data", "collect_episodes", "rewards", "sparse", "reward_scale", "reward_shift"),
    *("action_low", "action_high", "success_timing"),
)
_NONE = "none"
_DESCRIPTION = """Train an agent on an OGBench task or your own data, offline, online or both.

Add the name of a group to --help, or several, to see what its options mean. An option of a part
can go without the part's name where only one part has it: --num-steps is --critic.num-steps."""


def run(arguments: list[str]) -> None:
    arguments, asked = help_asked(arguments, (*GROUPS, *PARTS))
    first = _first(arguments)
    options = _options(first)
    spelled = with_parts_named(arguments, options.kind, [*options.parts])
    if (again := _first(spelled)) != first:  # a part's network was named without its part
        options = _options(again)
        spelled = with_parts_named(spelled, options.kind, [*options.parts])
    if asked is not None:
        print_help("floq train", _DESCRIPTION, options.kind, (*GROUPS, *options.parts), asked)
    for name, _ in options.members[0].changes:
        flag = f"--{name.replace('_', '-')}"
        if any(word.partition("=")[0].replace("_", "-") == flag for word in spelled):
            raise ValueError(f"{flag} is one value and --sweep {name} several: give one of them.")
    parsed = tyro.cli(options.kind, prog="floq train", args=spelled)
    config = _config(parsed, options)
    keep_compiled(parsed.compilation_cache)
    places = options.folders
    where = f"{len(places)} folders, {places[0]} and others" if places[1:] else str(places[0])
    say(f"training {config.agent_name} on {config.task} in {where}")
    decay = config.agent.decay_updates
    if not options.stored and decay not in (None, options.defaults.agent.decay_updates):
        say(f"the learning rate falls to zero over {decay} updates (--decay-updates)")
    how: Any = {"resume": parsed.resume, "report": say, "loggers": parsed.log}
    if options.alone:
        with saying_how_to_continue("train", ["--out", str(places[0])], places[0]):
            made = train(config, places[0], **how)
        finish([made])
        return
    configs = [member.config(config) for member in options.members]
    again = [word for word in arguments if word != "--resume"]
    try:
        with saying_how_to_continue("train", again, places[0]):
            finish(train_many(configs, places, **how))
    except StoppedRunsError as error:
        finish(error.runs)
        raise


@dataclasses.dataclass
class _Options:
    """The options that there are: their dataclass, and what they change."""

    kind: type
    parts: dict[str, type]
    defaults: TrainConfig
    ask: tuple[str, ...]
    members: list[Member]
    folders: list[Path]
    alone: bool
    stored: bool


def _first(arguments: list[str]) -> Any:
    """What decides which options there are, and what their defaults are; by the same parser."""

    @dataclasses.dataclass
    class Network:
        kind: str | None = None

    networks = {
        f.name: (f.name, Network, dataclasses.field(default_factory=Network))
        for kind in (*CRITICS.values(), *POLICIES.values())
        for f in dataclasses.fields(kind)
        if f.type == NetworkConfig
    }
    part: Any = dataclasses.make_dataclass("Part", networks.values())

    @dataclasses.dataclass
    class First:
        critic: Annotated[Any, tyro.conf.arg(name="critic", constructor=part)]
        policy: Annotated[Any, tyro.conf.arg(name="policy", constructor=part)]
        critic_kind: Annotated[str | None, tyro.conf.arg(name="critic")] = None
        policy_kind: Annotated[str | None, tyro.conf.arg(name="policy")] = None
        agent: str | None = None
        data: str | None = None
        rewards: str | None = None
        env: str | None = None
        preset: str | None = None
        out: str | None = None
        online_steps: int | None = None
        resume: bool = False
        seed: int | None = None
        seeds: str | None = None
        sweep: tyro.conf.UseAppendAction[tuple[str, ...]] = ()

    return tyro.cli(
        First, prog="floq train", args=arguments, return_unknown_args=True, add_help=False
    )[0]


def _options(first: Any) -> _Options:
    from ..presets import Preset

    environment = _environment(first)
    name = first.preset or "laptop"
    if name not in typing.get_args(Preset):
        raise nearest("preset", name, typing.get_args(Preset))
    agent, label = _agent(first)
    subject = environment or Path(first.data or _NONE).stem
    stem = subject.removesuffix("-v0").replace("/", "-").replace(":", "-")
    alone = first.seeds is None and not first.sweep
    named: Any = agent
    asked = (first.agent, first.critic_kind, first.policy_kind)
    if first.resume and first.out and asked == (None, None, None):
        for folder in runs_below(first.out)[:1]:
            named = Run(folder).config.agent
    runs = members(named, first.seeds, first.seed, first.sweep)
    default = f"runs/{stem}-{label}-{name}"
    places = (
        [Path(first.out)]
        if alone and first.out
        else folders(first.out, default, runs, resume=first.resume)
    )
    there = [folder for folder in places if (folder / "config.json").exists()]
    stored = there[0] if there and first.resume and first.preset is None else None
    if stored is not None:
        defaults = Run(stored).config
        _check_as_stored(first, defaults, stored)
        environment = defaults.environment
    else:
        defaults = _preset(name, agent, environment, first)
    made: Any = defaults.agent
    kinds = {
        f"{part}.{network}": of_kind(getattr(getattr(made, part), network), choice.kind)
        for part in ("critic", "policy")
        for network, choice in values_of(getattr(first, part)).items()
        if choice.kind and isinstance(getattr(getattr(made, part), network, None), NetworkConfig)
    }
    made = with_options(made, kinds)
    defaults = dataclasses.replace(defaults, agent=made)

    # The range of rewards is the data's; without data it must be given.
    bounds = ("reward_min", "reward_max") if isinstance(made.critic, BoundedCritic) else ()
    ask = () if stored is not None or not defaults.online else bounds
    known = () if defaults.online else bounds
    parts: dict[str, type] = {}
    for part in PARTS:
        module = getattr(made, part)
        if module is None or (isinstance(module, Selection) and not _selects(made, part)):
            continue
        parts[part] = options_like(type(module), module, skip=known, ask=ask)
    own = ("agent", "online", "environment", "environment_kwargs")
    unused = () if made.critic is not None else ("target_rate", "policy_every")
    groups = {
        "run": options_like(TrainConfig, defaults, skip=(*own, *_DATA)),
        "data": options_like(TrainConfig, defaults, only=_DATA),
        "learning": options_like(
            ActorCritic, made, skip=(*PARTS, "action_size", "recipe", *unused)
        ),
        "online": online_options(defaults.online),
    }
    kind = _command(groups, parts, made, environment, name, defaults, stored)
    return _Options(kind, parts, defaults, ask, runs, places, alone, stored is not None)


def _selects(agent: ActorCritic, part: str) -> bool:
    """Whether a selection can be asked for."""
    wants = agent.critic is not None
    return wants and (part == "selection" or agent.critic.num_next_actions > 0)  # pyright: ignore


def _command(
    groups: dict[str, type],
    parts: dict[str, type],
    agent: ActorCritic,
    environment: str | None,
    name: str,
    defaults: TrainConfig,
    stored: Path | None,
) -> type:
    """The dataclass of the whole command."""
    from ..presets import Preset

    of_folder = () if stored is None else loggers_of(stored)
    recipe: Any = Literal[tuple(RECIPES)]
    options = [
        (
            *("agent", recipe if agent.recipe else recipe | None, agent.recipe),
            "The algorithm: a critic, a policy and a selection, of which the options below decide.",
        ),
        (
            *("critic_kind", Literal[(*CRITICS, _NONE)], _name(agent.critic)),
            "How a value is represented and learned, instead of the algorithm's; none to clone the "
            "data's policy alone.",
        ),
        (
            *("policy_kind", Literal[tuple(POLICIES)], _name(agent.policy)),
            "How to act and to learn it, instead of the algorithm's.",
        ),
        (
            *("env", str, environment or _NONE),
            "An OGBench task or, online or with your own data, a Gymnasium id; or none.",
        ),
        (
            *("env_kwargs", str, json.dumps(defaults.environment_kwargs)),
            "Arguments for the environment, as JSON: '{\"name\": value}'.",
        ),
        (
            *("preset", Preset, name),
            "The defaults of the options below: a small set, or the papers' for the environment.",
        ),
        (
            *("out", str | None, None),
            "The run's folder (default: runs/<env>-<agent>-<preset>-seed<seed>); of several runs, "
            "the one that holds a folder for each.",
        ),
        (
            *("seeds", str | None, None),
            "Train a run for each of these seeds in one program, such as 0-7 or 0,2,5, instead of "
            "one run.",
        ),
        (
            *("sweep", tyro.conf.UseAppendAction[tuple[str, ...]], ()),
            "Train a run for each value of a float hyperparameter in one program: "
            "policy.alpha=30,100,300. Given again, it takes every combination.",
        ),
        (
            *("resume", bool, False),
            "Continue the run that is in the folder, with its own options but for those given "
            "here, or start it if there is none.",
        ),
        (
            *("log", tuple[LoggerName, ...], of_folder),
            "Where metrics go besides the tables: tensorboard, wandb (offline) or wandb-online, "
            "which are extras.",
        ),
    ]
    fields: list[Any] = []
    for field, hint, default, text in options:
        shown = {"help": text} | ({"name": field[:-5]} if field.endswith("_kind") else {})
        hint = Annotated[hint, tyro.conf.arg(**shown)]
        fields.append((field, hint, dataclasses.field(default=default)))
    fields.append(("compilation_cache", CompilationCache, dataclasses.field(default=True)))
    for group, kind in groups.items():
        hint = Annotated[kind, tyro.conf.OmitArgPrefixes]
        fields.append((group, hint, dataclasses.field(default_factory=kind)))
    described = documented(ActorCritic)
    for part, kind in parts.items():
        hint = Annotated[kind, tyro.conf.arg(help=described[part])]
        fields.append((part, hint, dataclasses.field(default_factory=kind)))
    return dataclasses.make_dataclass("Train", fields)


def _agent(first: Any) -> tuple[ActorCritic, str]:
    """The algorithm that is asked for, with its name or those of its parts."""
    name = first.agent or "floq"
    if name not in RECIPES:
        raise nearest("agent", name, RECIPES)
    made = RECIPES[name]()
    if first.critic_kind is None and first.policy_kind is None:
        return made, name
    critic = first.critic_kind or _name(made.critic)
    policy = first.policy_kind or _name(made.policy)
    pair = composed(None if critic == _NONE else critic, policy)
    label = pair.recipe or f"{critic}-{policy}"
    if first.agent is not None and label != name:
        raise ValueError(
            f"--agent {name} has the critic {_name(made.critic)} and the policy "
            f"{_name(made.policy)}, and {critic} and {policy} were asked for: leave --agent out."
        )
    return pair, label


def _name(part: Any) -> str:
    """A critic's or a policy's name."""
    return _NONE if part is None else to_plain(part)["kind"]


def _environment(first: Any) -> str | None:
    """The environment that is asked for; without a word, your own data have none."""
    if first.env is not None:
        return None if first.env == _NONE else first.env
    own = first.data is not None and first.rewards is None and _is_own(Path(first.data))
    return None if own else TrainConfig().environment


def _is_own(path: Path) -> bool:
    """Whether these are not OGBench's data: a folder, or a file with the state of the simulator."""
    path = path.expanduser()
    if path.is_dir() or (path.suffix == ".npz" and not zipfile.is_zipfile(path)):
        return False
    return path.suffix != ".npz" or "qpos" not in check_file(path)


def _preset(name: str, agent: ActorCritic, environment: str | None, first: Any) -> TrainConfig:
    from ..data import dataset_names
    from ..presets import preset

    given: Any = {"agent": agent.recipe or agent, "environment": environment}
    data = None if environment in dataset_names() else first.data
    return preset(typing.cast(Any, name), online_steps=first.online_steps, data=data, **given)


def _check_as_stored(first: Any, stored: TrainConfig, folder: Path) -> None:
    """Raises a `ValueError` if another agent or environment than that of the run was given."""
    agent: Any = stored.agent
    for option, given, own in (
        ("--agent", first.agent, stored.agent_name),
        ("--critic", first.critic_kind, _name(agent.critic)),
        ("--policy", first.policy_kind, _name(agent.policy)),
        ("--env", first.env, stored.environment or _NONE),
    ):
        if given not in (None, own):
            raise ValueError(
                f"The run in {folder} is of {option} {own}, and {given} was given: leave {option} "
                "out to resume it, or choose another folder with --out."
            )
    if stored.online is None and first.online_steps is not None:
        raise ValueError(
            f"The run in {folder} is offline: floq finetune {folder} --online-steps "
            f"{first.online_steps} goes on online, in a folder of its own."
        )


def _config(parsed: Any, options: _Options) -> TrainConfig:
    """The configuration that the options come to."""
    defaults, values = options.defaults, values_of(parsed.run) | values_of(parsed.data)
    learning = values_of(parsed.learning)
    parts = {part: plain_of(getattr(parsed, part)) for part in options.parts}
    bounds = parts.get("critic", {})
    missing = [bounds.pop(name) for name in options.ask if bounds.get(name, 0) is None]
    decay = defaults.agent.decay_updates
    stretched = decay == learning["decay_updates"] == defaults.num_updates
    if stretched and 0 < values["num_updates"] != decay:  # A schedule goes with its run.
        learning["decay_updates"] = values["num_updates"]
    config = dataclasses.replace(
        defaults,
        agent=with_options(typing.cast(Any, defaults.agent), learning | parts),
        online=online_config(parsed.online, defaults.online),
        environment_kwargs=json_object(parsed.env_kwargs),
        **values,
    )
    if not config.needs_data and missing:
        raise ValueError(
            f"{config.agent_name} must know the range of rewards, and there are no data to tell "
            "it: give --critic.reward-min and --critic.reward-max."
        )
    if config.needs_data and not options.stored and set(bounds) & set(options.ask):
        raise ValueError("The data tell the range of rewards: leave out --reward-min and -max.")
    return config
