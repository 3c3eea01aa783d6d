"""Minari's datasets, by their names; those that are on this machine."""

import dataclasses
import difflib
import hashlib
from pathlib import Path
from typing import Any

import numpy as np

from .environments import action_problem, observation_problem
from .files import cache_directory, short
from .own import Steps, checked_steps
from .own_copies import read_copy, write_copy

PREFIX = "minari:"
"""What the name of a dataset of Minari's begins with where a file could be named too."""


def minari_steps(name: str) -> Steps:
    """The steps of a dataset of Minari's, with the bounds of their actions.

    Every step has a next state there, so every one is a transition. Read once; as a file of the
    user's, it is kept converted under the hash of its files.

    **Arguments:** `name`: such as `D4RL/door/human-v2`, after `minari:`.

    **Raises:** `ModuleNotFoundError` without Minari; `FileNotFoundError` for a name that is not on
    this machine; `ValueError` for a dataset whose spaces are no boxes of real numbers, or that
    cannot be read; `OSError` as [`floq_eqx.data.load_own_data`][].
    """
    try:
        import minari
        from minari.storage.datasets_root_dir import get_dataset_path
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError(
            f"{PREFIX}{name} is read by Minari, which cannot be imported ({error}): "
            "pip install floq_eqx[minari]",
            name=error.name,
        ) from error
    folder = Path(get_dataset_path(name)) / "data"
    if not name or not folder.is_dir():
        known = sorted(minari.list_local_datasets())
        near = difflib.get_close_matches(name, known, n=3) or known[:5]
        raise FileNotFoundError(
            f"There is no dataset {name!r} of Minari's on this machine, in "
            f"{get_dataset_path('')}; there are {', '.join(near) or 'none'}. Fetch it first: "
            f"minari download {name or 'NAME'}."
        )
    copy = cache_directory() / "own" / f"{_digest(folder)}-minari.npz"
    steps = read_copy(copy)
    if steps is None:
        steps = _read(minari, name)
        write_copy(steps, copy, PREFIX + name)
    return steps


def _digest(folder: Path) -> str:
    """A text that other files do not have: of their names and contents."""
    digest = hashlib.sha256()
    for path in sorted(path for path in folder.rglob("*") if path.is_file()):
        with path.open("rb") as file:
            own = hashlib.file_digest(file, "sha256").hexdigest()
        digest.update(f"{path.relative_to(folder).as_posix()}\n{own}\n".encode())
    return digest.hexdigest()


def _read(minari: Any, name: str) -> Steps:
    try:
        dataset = minari.load_dataset(name)
    except Exception as error:  # The library raises whatever it runs into.
        raise ValueError(
            f"{PREFIX}{name} cannot be read: {short(error)}. Fetch it again: minari download "
            f"{name} --force."
        ) from error
    how = "record it"
    problem = observation_problem(dataset, how) or action_problem(dataset, how)
    if problem is not None:
        raise ValueError(f"Agents cannot learn from {PREFIX}{name}: {problem}.")
    seen, space = dataset.observation_space.shape, dataset.action_space
    parts: dict[str, list[np.ndarray]] = {}
    try:
        for episode in dataset.iterate_episodes():
            # Some versions leave out axes of size 1.
            observations = np.reshape(episode.observations, (-1, *seen))
            arrays = {
                "observations": observations[:-1],
                "next_observations": observations[1:],
                "actions": np.reshape(episode.actions, (-1, *space.shape)),
                "rewards": np.reshape(episode.rewards, -1),
                "terminals": np.reshape(episode.terminations, -1),
                "truncations": np.reshape(episode.truncations, -1),
            }
            for key, array in arrays.items():
                parts.setdefault(key, []).append(array)
        whole = {key: np.concatenate(each) for key, each in parts.items()}
    except Exception as error:
        raise ValueError(f"{PREFIX}{name} cannot be read: {short(error)}.") from error
    lengths = [len(rewards) for rewards in parts.get("rewards", ())]
    steps = checked_steps(whole | {"episode_lengths": lengths}, where=PREFIX + name)
    low, high = (bound.astype(np.float32).reshape(-1) for bound in (space.low, space.high))
    return dataclasses.replace(steps, low=low, high=high)
