"""`floq data`: what a dataset is, or how to get it."""

import dataclasses
import hashlib
from pathlib import Path

import tyro

from .output import say


def run(arguments: list[str]) -> None:
    from ..data import fetch_dataset, load_dataset, parse_name
    from ..data.fetching import DEFAULT_DIRECTORY, dataset_paths, how_to_get

    @dataclasses.dataclass
    class Data:
        env: tyro.conf.Positional[str]
        """An OGBench name, such as cube-single-play-v0; with a task, its rewards are told too."""
        data: str = DEFAULT_DIRECTORY
        """The folder that it lies in, or the file."""
        fetch: bool = False
        """Download it if it is not there."""
        mirror: str | None = None
        """With --fetch: the address of a folder that is tried first."""

    options = tyro.cli(
        Data,
        prog="floq data",
        description="Say where a dataset lies and what it holds.",
        args=arguments,
    )
    if options.mirror is not None and not options.fetch:
        raise ValueError("--mirror says where to fetch from: give --fetch with it.")
    name, place = parse_name(options.env), Path(options.data).expanduser()
    path = place if place.suffix == ".npz" else dataset_paths(name, place)[0]
    if options.fetch and path != place:
        fetch_dataset(options.env, place, mirror=options.mirror, report=say)
    if not path.is_file():
        fetch = f"floq data {name.dataset} --fetch downloads it"
        raise FileNotFoundError(f"There is no file {path}: {fetch}; or {how_to_get(name)}.")

    with path.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    say(f"{path}: {path.stat().st_size:,} bytes, SHA-256 {digest}")
    told = name if name.task is not None else dataclasses.replace(name, task=0)
    data = load_dataset(str(told), path=path)
    trajectories = int((data.left == 1).sum())
    say(
        f"{len(data):,} transitions in {trajectories:,} trajectories, the longest of "
        f"{int(data.left.max()):,}; observations of {data.observation_size} and actions of "
        f"{data.action_size} components"
    )
    low, high, reached = float(data.reward.min()), float(data.reward.max()), data.mask == 0
    count = int(reached.sum())
    share = f"reached in {count:,} of {len(data):,} transitions ({count / len(data):.2%})"
    goal = share if count else "never reached"
    say(f"rewards of {told}: {low:g} to {high:g}; its goal is {goal}")
