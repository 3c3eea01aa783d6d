"""`floq collect`: a dataset, collected or fetched."""

import dataclasses
from pathlib import Path

import tyro

from .output import say


def run(arguments: list[str]) -> None:
    from ..data import collect_dataset, fetch_dataset, parse_name
    from ..data.fetching import DEFAULT_DIRECTORY

    @dataclasses.dataclass
    class Collect:
        env: tyro.conf.Positional[str]
        """An OGBench name, such as cube-single-play-v0."""
        out: str = DEFAULT_DIRECTORY
        """The folder for <name>.npz and <name>-val.npz."""
        episodes: int | None = None
        """The number of training episodes; OGBench's own number by default."""
        workers: int | None = None
        """The number of processes that collect; one a core by default."""
        seed: int | None = None
        """Episodes depend on this alone, not on the number of workers; 0 by default."""
        fetch: bool = False
        """Download the published files instead of collecting."""
        mirror: str | None = None
        """With --fetch: the address of a folder that is tried before OGBench's server."""

    options = tyro.cli(Collect, prog="floq collect", args=arguments)
    if options.mirror is not None and not options.fetch:
        raise ValueError("--mirror says where to fetch from: give --fetch with it.")
    for option in ("episodes", "workers", "seed"):
        if options.fetch and getattr(options, option) is not None:
            raise ValueError(f"--{option} is for collecting: leave it out to --fetch.")
    name = parse_name(options.env).dataset
    if options.fetch:
        path = fetch_dataset(name, options.out, mirror=options.mirror, report=say)
    else:
        path = Path(options.out).expanduser() / f"{name}.npz"
        collect_dataset(
            name,
            path,
            num_episodes=options.episodes,
            num_workers=options.workers,
            seed=options.seed or 0,
        )
    say(f"wrote {path}")
