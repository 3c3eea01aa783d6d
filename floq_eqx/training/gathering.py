"""What a run learns from: OGBench's data, collected first if need be, or the user's own."""

import contextlib
import dataclasses
import functools
from pathlib import Path
from typing import Any

import equinox as eqx
import numpy as np

from ..data import (
    Data,
    check_data,
    collect_dataset,
    load_dataset,
    parse_name,
)
from ..data.environments import Boxes, boxes_of
from ..data.files import cache_directory
from ..data.own import Steps
from ..data.own_files import own_steps
from .config import TrainConfig
from .watch import make_world


def gather(
    config: TrainConfig, dataset: Data | None, *, progress: bool = True
) -> tuple[TrainConfig, Data | None]:
    """The data that a run trains on, and its configuration with the bounds of their actions.

    **Arguments:** `dataset`: the data, where they are given and not to be found.

    **Raises:** `ValueError` if there are none, if they are given twice, and as their loading does.
    """
    if dataset is None:
        if not config.needs_data:
            return config, None
        if config.is_ogbench:
            return config, find_data(config, progress=progress)
        steps = _own_steps(config)
        config = _with_bounds(config, steps)
        return config, _own_data(config, steps)
    for name in ("data", "action_low", "action_high"):
        if getattr(config, name) is not None:
            raise ValueError(f"Give either {name} or the dataset itself, not both.")
    if config.reward_scale != 1.0 or config.reward_shift != 0.0:
        raise ValueError("reward_scale and reward_shift are of data that are loaded: scale yours.")
    check_data(dataset)
    if config.environment is not None:
        environments = make_world(config, 1)
        with contextlib.closing(environments):
            sizes = tuple(
                int(np.prod(space.shape))
                for space in (
                    environments.single_observation_space,
                    environments.single_action_space,
                )
            )
        _check_sizes_fit(config, (dataset.observation_size, dataset.action_size), sizes)
    return config, dataset


def find_data(config: TrainConfig, *, progress: bool = True) -> Data:
    """The transitions that a configuration names, collected first if that is what it asks for."""
    if not config.is_ogbench:
        return _own_data(config, _own_steps(config))
    data = _ogbench_data(config, progress)
    if (config.reward_scale, config.reward_shift) != (1.0, 0.0):
        reward = data.reward * config.reward_scale + config.reward_shift
        data = eqx.tree_at(lambda d: d.reward, data, reward)
    return data


def _with_bounds(config: TrainConfig, steps: Steps) -> TrainConfig:
    """The configuration with the bounds of the actions in the user's own data, which the
    environment or the data know; their sizes are compared.
    """
    if config.action_low is None and steps.low is not None and steps.high is not None:
        config = _bounded(config, steps.low, steps.high)
    if config.environment is None:
        return config
    boxes = boxes_of(config.environment, **config.environment_kwargs)
    sizes = (steps.observations.shape[1], steps.actions.shape[1])
    _check_sizes_fit(config, sizes, (boxes.observation_size, len(boxes.low)))
    if config.action_low is not None:
        check_bounds(config, boxes)
    return _bounded(config, boxes.low, boxes.high)


def _bounded(config: TrainConfig, *bounds: np.ndarray) -> TrainConfig:
    low, high = (tuple(float(x) for x in bound) for bound in bounds)
    return dataclasses.replace(config, action_low=low, action_high=high)


def check_bounds(config: TrainConfig, boxes: Boxes) -> None:
    """Raises a `ValueError` if the actions of a run's own data have other bounds than those of an
    environment.
    """
    given = (config.action_low or (-1.0,), config.action_high or (1.0,))
    own = [np.broadcast_to(np.asarray(bound, np.float32), boxes.low.shape) for bound in given]
    if not (np.array_equal(own[0], boxes.low) and np.array_equal(own[1], boxes.high)):
        raise ValueError(
            f"The actions of the data lie between {own[0].tolist()} and {own[1].tolist()}, and the "
            f"environment's between {boxes.low.tolist()} and {boxes.high.tolist()}: an action "
            "would not be the same in both. Leave the bounds out to take the environment's."
        )


def _check_sizes_fit(config: TrainConfig, data: tuple[int, ...], world: tuple[int, ...]) -> None:
    for what, own, other in zip(("observations", "actions"), data, world, strict=True):
        if own != other:
            raise ValueError(
                f"The data's {what} have {own} components and those of {config.environment} "
                f"{other}: name the environment that the data are of, with its environment_kwargs "
                "(--env, --env-kwargs), or none."
            )


def _own_steps(config: TrainConfig) -> Steps:
    if config.data is None:
        name = config.environment or "no environment"
        raise ValueError(
            f"There are no data: of {name}, which is not OGBench's, there are no offline data but "
            "your own. Name a file of them (--data), or give them as dataset in Python. Other "
            "Gymnasium environments can be learned online, from scratch, with num_updates = 0."
        )
    return own_steps(config.data)


def _own_data(config: TrainConfig, steps: Steps) -> Data:
    return steps.trajectories(
        action_low=config.action_low,
        action_high=config.action_high,
        reward_scale=config.reward_scale,
        reward_shift=config.reward_shift,
        with_next_action=config.agent.uses_next_action,
        where=str(config.data),
    )


def _ogbench_data(config: TrainConfig, progress: bool) -> Any:
    load = functools.partial(
        load_dataset,
        str(config.environment),
        with_next_action=config.agent.uses_next_action,
        rewards=config.rewards,
        sparse=config.sparse,
    )
    if config.data is not None and Path(config.data).expanduser().is_dir():
        return load(directory=config.data)
    if config.data is not None or config.collect_episodes is None:
        return load(path=config.data)
    dataset = parse_name(str(config.environment)).dataset
    # Not among OGBench's own files: a shorter dataset must not pass for the published one.
    folder = cache_directory() / f"{dataset}-{config.collect_episodes}-episodes"
    path = folder / f"{dataset}.npz"
    if not path.exists():
        collect_dataset(
            dataset,
            path,
            num_episodes=config.collect_episodes,
            seed=0,
            overwrite=True,  # the same files, which another run may have collected by now
            progress=progress,
        )
    return load(path=path)
