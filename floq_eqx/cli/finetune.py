"""`floq finetune`: on online where another run ended."""

import dataclasses
import typing
from pathlib import Path
from typing import Annotated, Any

import tyro

from ..training import OnlineConfig, Run, TrainConfig, finetune
from ..training.config import Keep
from ..training.loggers import LoggerName, loggers_of
from .compilation import CompilationCache, keep_compiled
from .options import online_config, online_options, saying_how_to_continue, values_of
from .output import finish, say


def run(arguments: list[str]) -> None:
    def parse(defaults: OnlineConfig, logged: tuple[LoggerName, ...]) -> Any:
        options = online_options(defaults)

        @dataclasses.dataclass
        class Finetune:
            online: Annotated[Any, tyro.conf.arg(name="", constructor=options)]
            run: tyro.conf.Positional[str | None] = None
            """The folder of the run to start from; it stays as it is, and to resume takes no part.
            """
            out: str | None = None
            """The new run's folder (default: runs/<name of the old one>-online)."""
            seed: int | None = None
            """The seed of the batches, the noise, the environments and the evaluation; by default
            the run's."""
            batch_size: int | None = None
            """The number of transitions in an update; this and what follows are by default the
            run's."""
            log_every: int | None = None
            """The number of environment steps between rows of train.csv."""
            evaluate_every: int | None = None
            """The number of environment steps between evaluations."""
            evaluation_episodes: int | None = None
            """The number of episodes in an evaluation."""
            max_episode_steps: int | None = None
            """The number of steps after which an episode of an evaluation is cut off."""
            checkpoint_every: int | None = None
            """The number of environment steps between checkpoints."""
            keep: Keep | None = None
            """Which checkpoints stay: the last, those that were evaluated best, or all."""
            num_kept: int | None = None
            """The number of checkpoints that are kept as the last or the best."""
            data: str | None = None
            """The dataset's .npz file, or the folder to look for it."""
            resume: bool = False
            """Continue the run that is in the new folder, with its own options but for those given
            here, or start it if there is none."""
            log: tuple[LoggerName, ...] = logged
            """Where metrics go besides the tables: tensorboard, wandb (offline) or wandb-online,
            which are extras."""
            compilation_cache: CompilationCache = True

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
        for name, value in values_of(parsed).items()
        if name in known and value is not None
    }
    keep_compiled(parsed.compilation_cache)
    say(f"fine-tuning {parsed.run or ''} in {folder}".replace("  ", " "))
    with saying_how_to_continue("finetune", ["--out", str(folder)], folder):
        made = finetune(
            parsed.run or folder,
            folder,
            typing.cast(OnlineConfig, online_config(parsed.online, before)),
            changes=changes,
            resume=parsed.resume,
            report=say,
            loggers=parsed.log,
        )
    finish([made])
