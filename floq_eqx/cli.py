"""The `floq` program: parsing and printing; the work is done by the library."""

import contextlib
import dataclasses
import io
import json
import os
import re
import shlex
import signal
import sys
import typing
import warnings
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

import tyro

from ._types import FloatLike, Number
from ._checks import check_sizes
from .agents.agent import OF_THE_DATA, Agent
from .agents.registry import _NAMED, AGENTS, NETWORKS, SOLVERS, from_plain, nearest, to_plain
from .networks import MLPConfig, NetworkConfig
from .training import Interrupted, OnlineConfig, Run, TrainConfig, finetune, stopping, train
from .training.config import Keep
from .training.loggers import LoggerName, loggers_of

_COMMANDS = {
    "train": "train an agent on an OGBench task, offline, online or both, in a folder of its own",
    "finetune": "go on online where another run ended",
    "evaluate": "run a trained policy",
    "collect": "collect or fetch a dataset",
    "plot": "draw learning curves",
    "solvers": "compare ODE solvers on the field of a run, or of a problem with a known Q",
}


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the program.

    **Arguments:** `argv`: the words after the program's name; `sys.argv`'s by default.

    **Returns:** the exit status: 0, 1 after an error that is printed, 2 after options that do not
    parse, 130 after Ctrl-C and 143 after SIGTERM.
    """
    arguments = list(sys.argv[1:] if argv is None else argv)
    commands = {
        "train": _train,
        "finetune": _finetune,
        "evaluate": _evaluate,
        "collect": _collect,
        "plot": _plot,
        "solvers": _solvers,
    }
    for stream in (sys.stdout, sys.stderr):
        # No character that a terminal lacks ends a run.
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="replace")
    if not arguments or arguments[0] in ("-h", "--help"):
        print("usage: floq COMMAND [-h] ...\n\nFlow-matching Q-functions.\n\ncommands:")
        for name, text in _COMMANDS.items():
            print(f"  {name:10} {text}")
        print("\n`floq COMMAND --help` lists a command's options.")
        return 0 if arguments else 2
    try:
        if arguments[0] not in commands:
            raise nearest("command", arguments[0], commands)
        with warnings.catch_warnings(), stopping():
            warnings.showwarning = _note
            if arguments[0] not in ("collect", "plot") and not {"-h", "--help"} & set(arguments):
                _check_device()
            commands[arguments[0]](arguments[1:])
    except KeyboardInterrupt as interrupt:
        text = str(interrupt) or "interrupted"
        print(f"floq: {text}", file=sys.stderr)
        return 128 + (interrupt.signum if isinstance(interrupt, Interrupted) else signal.SIGINT)
    except (ValueError, OSError, ArithmeticError, RuntimeError, MemoryError, ImportError) as error:
        text = re.sub(r"^\[Errno \d+\] ", "", str(error)) or type(error).__name__
        print(f"floq: error: {text}", file=sys.stderr)
        return 1
    return 0


def _check_device() -> None:
    """Raises a `RuntimeError` for a platform that JAX was told to use and cannot."""
    import jax

    options: Any = jax.config
    try:
        jax.devices()
    except Exception as error:  # An assertion without a text, where a plugin is missing.
        raise RuntimeError(
            f"JAX cannot start on JAX_PLATFORMS={options.jax_platforms}: "
            f"{str(error) or 'there is no such device, or its plugin is not installed'}. "
            "JAX_PLATFORMS=cpu runs on the CPU; for NVIDIA's GPUs, pip install 'jax[cuda13]'."
        ) from error


def _note(message: Warning | str, *_: Any) -> None:
    print(f"floq: note: {message}", file=sys.stderr)


def _train(arguments: list[str]) -> None:
    from .presets import Preset, preset

    first = _first(arguments)
    agent_name, environment = first.agent or "floq", first.env or TrainConfig().environment
    name = first.preset or "laptop"
    if agent_name not in AGENTS:
        raise nearest("agent", agent_name, AGENTS)
    if name not in typing.get_args(Preset):
        raise nearest("preset", name, typing.get_args(Preset))
    stem = environment.removesuffix("-v0").replace("/", "-").replace(":", "-")
    folder = Path(first.out or f"runs/{stem}-{agent_name}-{name}-seed{first.seed}")
    stored = None
    if first.resume and first.preset is None and (folder / "config.json").exists():
        stored = Run(folder).config
        agent_name, environment = _as_stored(first, stored, folder)
    defaults = stored or preset(
        name, agent=agent_name, environment=environment, online_steps=first.online_steps
    )
    kinds = {
        network: _of_kind(getattr(defaults.agent, network), choice.kind)
        for network in _NETWORKS
        if (choice := getattr(first, network)).kind and hasattr(defaults.agent, network)
    }
    defaults = dataclasses.replace(defaults, agent=dataclasses.replace(defaults.agent, **kinds))

    skip = ("environment", "agent", "online", "environment_kwargs")
    options = _dataclass_like(TrainConfig, defaults, skip=skip)
    # The range of rewards is the data's; without data it must be given.
    known = ("action_size",) if defaults.online else OF_THE_DATA
    ask = () if stored else ("reward_min", "reward_max")
    agent_options = _dataclass_like(AGENTS[agent_name], defaults.agent, skip=known, ask=ask)
    online_options = _online_options(defaults.online)

    @dataclasses.dataclass
    class Train:
        run: Annotated[Any, tyro.conf.arg(name="", constructor=options)]
        hyperparameters: Annotated[Any, tyro.conf.arg(name="", constructor=agent_options)]
        online: Annotated[Any, tyro.conf.arg(name="", constructor=online_options)]
        env: str = environment
        """The single-task OGBench name or, to learn online, a Gymnasium id such as Pendulum-v1."""
        env_kwargs: str = json.dumps(defaults.environment_kwargs)
        """Arguments for the environment, as JSON: '{"name": value}'."""
        agent: Literal[tuple(AGENTS)] = agent_name  # pyright: ignore
        """The algorithm; it decides which of the options below there are."""
        preset: Preset = name
        """The defaults of the options below: a small set, or the papers' for the environment."""
        out: str | None = None
        """The run's folder (default: runs/<env>-<agent>-<preset>-seed<seed>)."""
        resume: bool = False
        """Continue the run that is in the folder, with its own options but for those given here, or
        start it if there is none."""
        log: tuple[LoggerName, ...] = loggers_of(folder) if stored else ()
        """Besides the tables: tensorboard, wandb (offline) or wandb-online; they are extras."""

    parsed = tyro.cli(
        Train,
        prog="floq train",
        description="Train an agent on an OGBench task, offline, online or both.",
        args=arguments,
    )
    values, hyperparameters = _shallow(parsed.run), _shallow(parsed.hyperparameters)
    rewards = [hyperparameters.pop(n) for n in ask if hyperparameters.get(n, 0) is None]
    decay = defaults.agent.decay_updates
    stretched = decay == hyperparameters["decay_updates"] == defaults.num_updates
    stretched = stretched and 0 < values["num_updates"] != decay
    if stretched:  # A schedule goes with its run.
        hyperparameters["decay_updates"] = values["num_updates"]
    config = dataclasses.replace(
        defaults,
        agent=_rebuilt(defaults.agent, hyperparameters),
        online=_online_config(parsed.online, defaults.online),
        environment_kwargs=_json(parsed.env_kwargs),
        **values,
    )
    if not config.needs_data and rewards:
        raise ValueError(
            f"{agent_name} must know the range of rewards, and there are no data to tell it: "
            "give --reward-min and --reward-max."
        )
    if config.needs_data and not stored and set(hyperparameters) & set(ask):
        raise ValueError("The data tell the range of rewards: leave out --reward-min and -max.")
    _print(f"training {agent_name} on {environment} in {folder}")
    decay = config.agent.decay_updates
    if not stored and (stretched or decay not in (None, config.num_updates)):
        _print(f"the learning rate falls to zero over {decay} updates (--decay-updates)")
    with _saying_how_to_continue("train", folder):
        run = train(config, folder, resume=parsed.resume, report=_print, loggers=parsed.log)
    _finish(run)


_NETWORKS = sorted(
    {
        f.name
        for kind in AGENTS.values()
        for f in dataclasses.fields(kind)
        if f.type == NetworkConfig
    }
)


def _first(arguments: list[str]) -> Any:
    """What decides which options there are, and what their defaults are; by the same parser."""

    @dataclasses.dataclass
    class Kind:
        kind: str | None = None

    words = {
        "agent": str | None,
        "env": str | None,
        "preset": str | None,
        "out": str | None,
        "online_steps": int | None,
    }
    fields = [(name, hint, dataclasses.field(default=None)) for name, hint in words.items()]
    fields += [("resume", bool, dataclasses.field(default=False))]
    fields += [("seed", int, dataclasses.field(default=0))]
    fields += [(name, Kind, dataclasses.field(default_factory=Kind)) for name in _NETWORKS]
    kind = dataclasses.make_dataclass("First", fields)
    return tyro.cli(
        kind, prog="floq train", args=arguments, return_unknown_args=True, add_help=False
    )[0]


def _as_stored(first: Any, stored: TrainConfig, folder: Path) -> tuple[str, str]:
    """The agent and the environment of the run that is resumed.

    **Raises:** `ValueError` if others were given.
    """
    for name, given, own in (
        ("--agent", first.agent, stored.agent_name),
        ("--env", first.env, stored.environment),
    ):
        if given not in (None, own):
            raise ValueError(
                f"The run in {folder} is of {name} {own}, and {given} was given: leave {name} out "
                "to resume it, or choose another folder with --out."
            )
    if stored.online is None and first.online_steps is not None:
        raise ValueError(
            f"The run in {folder} is offline: floq finetune {folder} --online-steps "
            f"{first.online_steps} goes on online, in a folder of its own."
        )
    return stored.agent_name, stored.environment


def _json(text: str) -> dict[str, Any]:
    try:
        values = json.loads(text)
        if not isinstance(values, dict):
            raise ValueError("it is no object")
    except ValueError as error:
        raise ValueError(
            f"--env-kwargs must be a JSON object such as '{{\"name\": 1}}', got {text}: {error}."
        ) from None
    return values


@contextlib.contextmanager
def _saying_how_to_continue(command: str, folder: Path) -> Iterator[None]:
    try:
        yield
    except Interrupted as interrupted:
        hint = f"; floq {command} --resume --out {shlex.quote(str(folder))} continues"
        if not (folder / "config.json").exists():
            hint = ""
        raise Interrupted(interrupted.signum, interrupted.saved + hint) from None


def _finetune(arguments: list[str]) -> None:
    def parse(defaults: OnlineConfig, logged: tuple[LoggerName, ...]) -> Any:
        online_options = _online_options(defaults)

        @dataclasses.dataclass
        class Finetune:
            online: Annotated[Any, tyro.conf.arg(name="", constructor=online_options)]
            run: tyro.conf.Positional[str | None] = None
            """The folder of the run to start from; it stays as it is, and to resume takes no part.
            """
            out: str | None = None
            """The new run's folder (default: runs/<name of the old one>-online)."""
            seed: int | None = None
            """Of the batches, the noise, the environments and the evaluation; by default the run's.
            """
            batch_size: int | None = None
            """Transitions in an update; this and what follows are by default the run's."""
            log_every: int | None = None
            """Environment steps between rows of train.csv."""
            evaluate_every: int | None = None
            """Environment steps between evaluations."""
            evaluation_episodes: int | None = None
            """Episodes in an evaluation."""
            max_episode_steps: int | None = None
            """Cut an evaluation's episodes off there that do not end before."""
            checkpoint_every: int | None = None
            """Environment steps between checkpoints."""
            keep: Keep | None = None
            """Which checkpoints stay: the last, those that were evaluated best, or all."""
            num_kept: int | None = None
            """How many of the last or the best."""
            data: str | None = None
            """The dataset's .npz file, or the folder to look for it."""
            resume: bool = False
            """Continue the run that is in the new folder, with its own options but for those given
            here, or start it if there is none."""
            log: tuple[LoggerName, ...] = logged
            """Besides the tables: tensorboard, wandb (offline) or wandb-online; they are extras."""

        return tyro.cli(
            Finetune,
            prog="floq finetune",
            description="Go on learning online where another run ended, in a folder of its own.",
            args=arguments,
        )

    parsed = parse(OnlineConfig(), ())
    if parsed.run is None and not (parsed.resume and parsed.out):
        raise ValueError(
            "Give the folder of the run to start from, or --resume --out FOLDER to continue."
        )
    folder = Path(parsed.out or f"runs/{Path(parsed.run or '').resolve().name}-online")
    before = OnlineConfig()
    if parsed.resume and (folder / "config.json").exists():
        before = Run(folder).config.online
        if before is None:
            raise ValueError(f"The run in {folder} is offline: floq train --resume continues it.")
        parsed = parse(before, loggers_of(folder))
    elif parsed.run is None:
        raise FileNotFoundError(f"{folder} holds no run: give the one to start from.")
    known = {f.name for f in dataclasses.fields(TrainConfig)} - {"online"}
    changes = {
        name: value
        for name, value in _shallow(parsed).items()
        if name in known and value is not None
    }
    _print(f"fine-tuning {parsed.run or ''} in {folder}".replace("  ", " "))
    with _saying_how_to_continue("finetune", folder):
        run = finetune(
            parsed.run or folder,
            folder,
            typing.cast(OnlineConfig, _online_config(parsed.online, before)),
            changes=changes,
            resume=parsed.resume,
            report=_print,
            loggers=parsed.log,
        )
    _finish(run)


def _print(line: str) -> None:
    """Prints a line; that nobody reads any more ends no run."""
    try:
        print(line, flush=True)
    except BrokenPipeError:
        sys.stdout = open(os.devnull, "w")  # noqa: SIM115  # for what is still to come


def _finish(run: Run) -> None:
    """Draws a run's curve and says where everything is; the run is whole whatever comes of it."""
    holds = "checkpoints and tables"
    try:
        from .plotting import learning_curves

        told = any(row["success"] == row["success"] for row in run.table("evaluation.csv"))
        figure = learning_curves(
            [run],
            run.folder / "learning_curve.png",
            metric="success" if told else "returns",
            x="updates" if run.config.num_updates else "env_steps",
        )
        holds = f"checkpoints, tables and {figure.name}"
    except Exception as error:
        warnings.warn(
            f"the figure could not be drawn: {type(error).__name__}: {error}. floq plot "
            f"{run.folder} draws it.",
            stacklevel=1,
        )
    _print(f"done: {run.folder} holds {holds}")
    _print_published(run)


def _online_options(online: OnlineConfig | None) -> type:
    """The options of learning online; without it, the one that asks for it."""
    if online is None:
        text = "Learn online for so many environment steps afterwards; this adds its options."
        hint = Annotated[int | None, tyro.conf.arg(help=text)]
        return dataclasses.make_dataclass("Online", [("online_steps", hint, None)], frozen=True)
    return _dataclass_like(
        OnlineConfig, online, skip=("start",), renamed={"num_steps": "online_steps"}
    )


def _online_config(parsed: Any, before: OnlineConfig | None) -> OnlineConfig | None:
    values = _shallow(parsed)
    steps = values.pop("online_steps")
    if steps is None:
        return None
    return dataclasses.replace(before or OnlineConfig(), num_steps=steps, **values)


def _evaluate(arguments: list[str]) -> None:
    from .data.episodes import close_or_warn
    from .evaluation import check_recording, evaluate, make_environments, record
    from .training.running import describe

    @dataclasses.dataclass
    class Evaluate:
        run: tyro.conf.Positional[str]
        """The run's folder."""
        checkpoint: int | Literal["last", "best"] = "last"
        """Which checkpoint: by its number of steps, the last, or the one evaluated best."""
        episodes: int = 50
        """How many episodes."""
        seed: int = 0
        """The first episode's seed; the others follow it."""
        success_timing: Literal["pre", "post"] | None = None
        """Score the state before a step (OGBench 1.2's default) or after it (as published)."""
        num_candidates: int | None = None
        """Take the best of this many actions by the integral of the field."""
        num_steps: int | None = None
        """Integrate the field in this many steps (K)."""
        solver: Literal[tuple(SOLVERS)] | None = None  # pyright: ignore
        """Integrate the field with this solver."""
        max_episode_steps: int | None = None
        """Cut episodes off there that do not end before; by default the run's own."""
        video: str | None = None
        """Also write the first episode to this file, which ends in .gif."""

    options = tyro.cli(Evaluate, prog="floq evaluate", args=arguments)
    check_sizes(episodes=options.episodes)
    if options.max_episode_steps is not None:
        check_sizes(max_episode_steps=options.max_episode_steps)
    if options.video is not None:
        check_recording(options.video)
    run = Run(options.run)
    step = run.choose(options.checkpoint)
    agent, state = run.load(step=step)
    changes = {
        name: value
        for name in ("num_candidates", "num_steps", "solver")
        if (value := getattr(options, name)) is not None
    }
    agent = _with_test_time_options(agent, changes)
    name, timing = run.config.environment, options.success_timing or run.config.success_timing
    shared = {"success_timing": timing, **run.config.environment_kwargs}
    cap = options.max_episode_steps
    cap = run.config.max_episode_steps if cap is None else cap
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
    _print(f"checkpoint {step}: {describe(result)}")
    _print_published(run)
    if options.video is not None:
        path = record(
            agent,
            state,
            name,
            options.video,
            seed=options.seed,
            success_timing=timing,
            max_episode_steps=cap,
            environment_kwargs=run.config.environment_kwargs,
        )
        _print(f"wrote {path}")


def _print_published(run: Run) -> None:
    from .presets import published

    line = published(run.config.agent_name, run.config.environment)
    if line and run.config.online is None:
        _print(line)


def _with_test_time_options(agent: Agent, changes: dict[str, Any]) -> Agent:
    """The agent with another K, solver or number of candidates, where its policy uses them."""
    known = {f.name for f in dataclasses.fields(agent)}
    for name in changes:
        if name not in known:
            raise ValueError(
                f"A policy of {type(agent).__name__} integrates no value: {name} means nothing."
            )
    name = next(name for name, kind in AGENTS.items() if type(agent) is kind)
    changed = from_plain(name, to_plain(agent) | changes)
    if {"num_steps", "solver"} & set(changes) and to_plain(changed)["num_candidates"] == 1:
        raise ValueError(
            "The one-step policy does not integrate the field, so K and the solver change "
            "nothing; with --num-candidates N it takes the best of N actions by the integral."
        )
    return changed


def _collect(arguments: list[str]) -> None:
    from .data import collect_dataset, fetch_dataset, parse_name
    from .data.ogbench import DEFAULT_DIRECTORY

    @dataclasses.dataclass
    class Collect:
        env: tyro.conf.Positional[str]
        """An OGBench name, such as cube-single-play-v0."""
        out: str = DEFAULT_DIRECTORY
        """The folder for <name>.npz and <name>-val.npz."""
        episodes: int | None = None
        """How many training episodes; OGBench's own number by default."""
        workers: int | None = None
        """How many processes; one a core by default."""
        seed: int | None = None
        """Episodes depend on this alone, not on the number of workers; 0 by default."""
        fetch: bool = False
        """Download the published files instead of collecting."""
        mirror: str | None = None
        """With --fetch: the address to download from, instead of OGBench's server."""

    options = tyro.cli(Collect, prog="floq collect", args=arguments)
    if options.mirror is not None and not options.fetch:
        raise ValueError("--mirror says where to fetch from: give --fetch with it.")
    for option in ("episodes", "workers", "seed"):
        if options.fetch and getattr(options, option) is not None:
            raise ValueError(f"--{option} is for collecting: leave it out to --fetch.")
    name = parse_name(options.env).dataset
    if options.fetch:
        path = fetch_dataset(name, options.out, mirror=options.mirror)
    else:
        path = Path(options.out).expanduser() / f"{name}.npz"
        collect_dataset(
            name,
            path,
            num_episodes=options.episodes,
            num_workers=options.workers,
            seed=options.seed or 0,
        )
    _print(f"wrote {path}")


def _plot(arguments: list[str]) -> None:
    from .plotting import XAxis, compare, final_values, learning_curves

    @dataclasses.dataclass
    class Plot:
        runs: tyro.conf.Positional[tuple[str, ...]]
        """The folders of one or more runs."""
        out: str = "learning_curves.png"
        """The figure's file."""
        metric: Literal["success", "returns", "lengths"] = "success"
        """What to draw."""
        x: XAxis = "updates"
        """What to draw it against."""
        aggregate: Literal["mean", "iqm", "none"] = "mean"
        """Of runs that differ only in their seed: the mean, the interquartile mean, or each run."""
        pool_tasks: bool = False
        """Aggregate over the tasks of an environment as well."""
        published: bool = True
        """Draw the published success beside that of the runs, where it is known."""

    options = tyro.cli(Plot, prog="floq plot", args=arguments)
    if not options.runs:
        raise ValueError("Nothing to plot: give the folder of at least one run.")
    runs = [Run(folder) for folder in options.runs]
    shown = {
        "metric": options.metric,
        "x": options.x,
        "aggregate": None if options.aggregate == "none" else options.aggregate,
        "pool_tasks": options.pool_tasks,
    }
    published = options.published and options.metric == "success"
    references = _published_lines(runs) if published else {}
    path = learning_curves(runs, options.out, references=references, **shown)
    _print(final_values(compare(runs, **shown), metric=options.metric, x=options.x))
    _print(f"wrote {path}")


def _published_lines(runs: Sequence[Run]) -> dict[str, float]:
    """The published success of the runs' agents on their environments, by a label."""
    from .data import parse_name
    from .presets import published_rates

    methods: dict[tuple[str, int], list[str]] = {}
    for agent, name in dict.fromkeys((r.config.agent_name, r.config.environment) for r in runs):
        for label, rate in published_rates(agent, name).items():
            known = methods.setdefault((parse_name(name).environment, rate), [])
            if label not in known:
                known.append(label)
    return {
        f"{', '.join(labels)} on {name}: published offline, mean of five tasks": rate / 100
        for (name, rate), labels in methods.items()
    }


def _solvers(arguments: list[str]) -> None:
    import jax

    from .analysis import ProblemName, default_configurations, study_problem, study_run
    from .plotting import solver_comparison
    from .training.files import write_text

    @dataclasses.dataclass
    class Solvers:
        run: tyro.conf.Positional[str | None] = None
        """The folder of a floq run."""
        problem: ProblemName | None = None
        """Instead of a run: train a field on a linear-quadratic problem or a random walk."""
        out: str | None = None
        """The folder for solvers.md, .csv and .png (default: the run's, or solvers-<problem>)."""
        num_steps: tuple[int, ...] = (1, 2, 4, 8, 16, 32)
        """Numbers of equal steps (K)."""
        tolerances: tuple[float, ...] = (1e-1, 1e-2, 1e-3)
        """Tolerances of adaptive steps."""
        observations: int = 64
        """How many observations."""
        candidates: int = 16
        """How many actions to rank in each."""
        num_updates: int | None = None
        """With --problem: how long to train; 6000 updates by default."""
        seed: int = 0
        """Of all random numbers."""

    options = tyro.cli(Solvers, prog="floq solvers", args=arguments)
    if (options.run is None) == (options.problem is None):
        raise ValueError("Give the folder of a run, or --problem lqr or walk: one of the two.")
    if options.problem is None and options.num_updates is not None:
        raise ValueError("--num-updates is for --problem: a run has been trained already.")
    num_updates = 6000 if options.num_updates is None else options.num_updates
    shared = {
        "num_observations": options.observations,
        "num_candidates": options.candidates,
        "configurations": default_configurations(
            num_steps=options.num_steps, tolerances=options.tolerances
        ),
        "key": jax.random.key(options.seed),
        "progress": True,
    }
    if options.problem is not None:
        folder = Path(options.out or f"solvers-{options.problem}")
        study = study_problem(options.problem, num_updates=num_updates, **shared)
    else:
        run = Run(typing.cast(str, options.run))
        folder = Path(options.out or run.folder)
        study = study_run(run, **shared)
    folder.mkdir(parents=True, exist_ok=True)
    write_text(folder / "solvers.md", study.markdown())
    write_text(folder / "solvers.csv", study.comparison.csv())
    _print(study.markdown())
    solver_comparison(study.comparison, folder / "solvers.png")
    _print(f"wrote solvers.md, solvers.csv and solvers.png to {folder}")


def _dataclass_like(
    kind: type,
    defaults: Any,
    *,
    skip: Sequence[str],
    ask: Sequence[str] = (),
    renamed: dict[str, str] | None = None,
) -> type:
    """A dataclass for tyro with the fields of `kind`, the values of `defaults` as its defaults, and
    `None` where `ask` says that there is none.

    Scalar arrays become floats, solvers and adjoints their names, which a command line can give; a
    network has its kind, and the options of the kind that the default is of.
    """
    documented = _documented(kind)
    hints = typing.get_type_hints(kind)
    fields = []
    for name, network in NETWORKS.items():
        if kind is network:
            text = "What the network is, which decides the options of this group."
            hint = Annotated[Literal[tuple(NETWORKS)], tyro.conf.arg(help=text)]
            fields.append(("kind", hint, dataclasses.field(default=name)))
    for f in dataclasses.fields(kind):
        if f.name in skip:
            continue
        hint, default = hints[f.name], getattr(defaults, f.name)
        if hint in (FloatLike, Number):
            hint, default = float, float(default)
            if f.name in ask:
                hint, default = float | None, None
        elif f.name in _NAMED:
            hint: Any = Literal[tuple(_NAMED[f.name])]
            hint, default = hint | None if f.default is None else hint, to_plain(defaults)[f.name]
        elif isinstance(default, NetworkConfig):
            hint = _dataclass_like(type(default), default, skip=())
            default = hint()
        hint = Annotated[hint, tyro.conf.arg(help=documented.get(f.name, ""))]
        name = (renamed or {}).get(f.name, f.name)
        fields.append((name, hint, dataclasses.field(default=default)))
    return dataclasses.make_dataclass(kind.__name__, fields, frozen=True)


def _documented(kind: type) -> dict[str, str]:
    """What the bullets of a class's docstring say of each field, without Markdown."""
    text = re.sub(r"\n\s+(?!\s*- `)(?=\S)", " ", (kind.__doc__ or "") + "\n\n")
    text = re.sub(r"\[`(?:\w+\.)*(\w+)`\]\[.*?\]", r"\1", text)
    return {
        name: re.sub(r"^[a-z](?=[a-z])", lambda m: m[0].upper(), description.replace("`", ""))
        for names, description in re.findall(r"- (`.+?`): (.+)", text)
        for name in re.findall(r"`(\w+)`", names)
    }


def _of_kind(network: NetworkConfig, kind: str) -> NetworkConfig:
    """The network as one of another kind: as wide, and the same in what both kinds have."""
    if kind not in NETWORKS:
        raise nearest("kind of network", kind, NETWORKS)
    if isinstance(network, NETWORKS[kind]):
        return network
    values = _shallow(network)
    if isinstance(network, MLPConfig):
        values["width"] = max(network.hidden_sizes)
    known = {f.name for f in dataclasses.fields(NETWORKS[kind])}
    return NETWORKS[kind](**{name: value for name, value in values.items() if name in known})


def _rebuilt(agent: Agent, options: dict[str, Any]) -> Agent:
    values = dict(options)
    for name, value in values.items():
        if isinstance(getattr(agent, name), NetworkConfig):
            options = _shallow(value)
            values[name] = NETWORKS[options.pop("kind")](**options)
    for name in _NAMED.keys() & values.keys():
        if values[name] is not None:
            values[name] = _NAMED[name][values[name]]()
    return dataclasses.replace(agent, **values)


def _shallow(parsed: Any) -> dict[str, Any]:
    return {f.name: getattr(parsed, f.name) for f in dataclasses.fields(parsed)}
