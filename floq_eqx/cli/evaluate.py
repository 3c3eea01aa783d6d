"""`floq evaluate`: a trained policy in its environment."""

import dataclasses
import typing
from collections.abc import Iterable, Sequence
from typing import Annotated, Any, Literal

import tyro

from .._checks import check_sizes
from .._types import FloatLike, Precision
from ..agents import CRITICS, ActorCritic, Selection, with_options
from ..agents.plain import NAMED
from ..data import dataset_names
from ..data.environments import boxes_of
from ..training import Run
from ..training.gathering import check_bounds
from .compilation import CompilationCache, keep_compiled
from .options import documented, json_object, values_of, with_parts_named
from .output import print_published, say


def _changes(name: str, kinds: Iterable[tuple[type, Sequence[str]]]) -> type:
    """A dataclass of options that are by default as they were trained."""
    fields: dict[str, Any] = {}
    for kind, options in kinds:
        hints, described = typing.get_type_hints(kind), documented(kind)
        for option in options:
            hint: Any = Literal[tuple(NAMED[option][1])] if option in NAMED else hints[option]
            hint = float if hint == FloatLike else hint
            hint = Annotated[hint | None, tyro.conf.arg(help=described[option])]
            fields.setdefault(option, (option, hint, None))
    return dataclasses.make_dataclass(name, fields.values())


_Selection = _changes("Selection", [(Selection, [f.name for f in dataclasses.fields(Selection)])])
_Critic = _changes("Critic", [(kind, kind.test_time) for kind in CRITICS.values()])


@dataclasses.dataclass
class Evaluate:
    """The options of the command."""

    run: tyro.conf.Positional[str]
    """The run's folder."""
    selection: Annotated[Any, tyro.conf.arg(name="selection", constructor=_Selection)]
    critic: Annotated[Any, tyro.conf.arg(name="critic", constructor=_Critic)]
    checkpoint: int | Literal["last", "best"] = "last"
    """Which checkpoint acts: that of a number of steps, the last, or the one evaluated best."""
    episodes: int = 50
    """The number of episodes."""
    seed: int = 0
    """The first episode's seed; the others follow it."""
    success_timing: Literal["pre", "post"] | None = None
    """Score the state before a step (OGBench 1.2's default) or after it (as published)."""
    max_episode_steps: int | None = None
    """The number of steps after which an episode is cut off; by default the run's own."""
    precision: Precision | None = None
    """The precision of the products between hidden layers; by default the run's own."""
    env: str | None = None
    """The environment, if it is another than the run's: a Gymnasium id."""
    env_kwargs: str | None = None
    """Arguments for the environment, as JSON; by default the run's own."""
    video: str | None = None
    """Also write the first episode to this file, which ends in .gif."""
    compilation_cache: CompilationCache = True


def run(arguments: list[str]) -> None:
    from ..data.episodes import close_or_warn
    from ..evaluation import evaluate, make_environments
    from ..recording import check_recording, record
    from ..training.watch import describe

    options = tyro.cli(
        Evaluate,
        prog="floq evaluate",
        description="Run a trained policy. The options of the selection and the critic are by "
        "default as they were trained.",
        args=_spelled(arguments),
    )
    check_sizes(episodes=options.episodes)
    if options.max_episode_steps is not None:
        check_sizes(max_episode_steps=options.max_episode_steps)
    if options.video is not None:
        check_recording(options.video)
    keep_compiled(options.compilation_cache)
    trained = Run(options.run)
    step = trained.choose(options.checkpoint)
    agent, state = trained.load(step=step)
    agent = _changed(agent, _given(options.selection), _given(options.critic))
    if options.precision is not None:
        agent = with_options(agent, {"precision": options.precision})
    config = trained.config
    name, kwargs = _environment(trained, options)
    timing = options.success_timing or config.success_timing
    shared = {"success_timing": timing, "sparse": config.sparse, **kwargs}
    cap = options.max_episode_steps
    cap = config.max_episode_steps if cap is None else cap
    environments = make_environments(name, min(10, options.episodes), **shared)
    try:
        result = evaluate(
            agent,
            state,
            environments,
            num_episodes=options.episodes,
            max_episode_steps=cap,
            seed=options.seed,
        )
    finally:
        close_or_warn("an environment", environments.close)
    say(f"checkpoint {step}: {describe(result)}")
    print_published(trained)
    if options.video is not None:
        path = record(
            agent,
            state,
            name,
            options.video,
            seed=options.seed,
            success_timing=timing,
            max_episode_steps=cap,
            environment_kwargs=kwargs,
        )
        say(f"wrote {path}")


def _environment(run: Run, options: Evaluate) -> tuple[str, dict[str, Any]]:
    """The environment to act in, and the arguments for it.

    **Raises:** `ValueError` if there is none, or if its actions are others than the data's.
    """
    config = run.config
    name = options.env or config.environment
    if name is None:
        raise ValueError(
            f"{run.folder} was trained without an environment: name the one to evaluate in (--env)."
        )
    kwargs = config.environment_kwargs if name == config.environment else {}
    if options.env_kwargs is not None:
        kwargs = json_object(options.env_kwargs)
    if name != config.environment and name not in dataset_names() and not config.is_ogbench:
        boxes = boxes_of(name, **kwargs)
        own = run.facts.observation_size, run.facts.action_size
        if own != (boxes.observation_size, len(boxes.low)):
            raise ValueError(
                f"{run.folder} was trained on observations of {own[0]} and actions of {own[1]} "
                f"components, and {name} has {boxes.observation_size} and {len(boxes.low)}: name "
                "the environment that its data are of."
            )
        check_bounds(config, boxes)
    return name, kwargs


def _spelled(arguments: list[str]) -> list[str]:
    parts = {"selection": _Selection, "critic": _Critic}
    fields = [(f.name, parts.get(f.name, Any)) for f in dataclasses.fields(Evaluate)]
    return with_parts_named(arguments, dataclasses.make_dataclass("Whole", fields), tuple(parts))


def _given(parsed: Any) -> dict[str, Any]:
    return {name: value for name, value in values_of(parsed).items() if value is not None}


def _changed(agent: Any, selection: dict[str, Any], critic: dict[str, Any]) -> Any:
    """The agent with other options of its selection and, where that asks it, its critic.

    **Raises:** `ValueError` for options that would change nothing.
    """
    if not (selection or critic):
        return agent
    if not isinstance(agent, ActorCritic) or agent.critic is None:
        raise ValueError(f"{agent.name} has no critic: nothing can be selected by its values.")
    kind = type(agent.critic)
    for name in critic:
        if name not in kind.test_time:
            known = " or ".join(f"--critic.{n.replace('_', '-')}" for n in kind.test_time)
            raise ValueError(
                f"{kind.__name__} has no {name} that can change after training"
                f"{f'; it has {known}' if known else ''}."
            )
    agent = with_options(agent, {"selection": selection, "critic": critic})
    if critic and agent.selection.num_candidates == 1:
        raise ValueError(
            f"The policy acts without asking its critic, so {', '.join(critic)} would change "
            "nothing; with --num-candidates N it takes the best of N actions."
        )
    return agent
