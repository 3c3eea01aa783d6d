"""Datasets in OGBench's format, checked once, before an agent sees them.

A dataset is a pair of `.npz` files, `<dataset>.npz` and `<dataset>-val.npz`, with the keys
`observations`, `actions`, `terminals`, `qpos`, `qvel` and, where there are buttons,
`button_states`; one row is one environment step, and a terminal ends a trajectory. Files come from
anywhere.
"""

import contextlib
import dataclasses
import os
import warnings
from pathlib import Path
from typing import Any, Literal

import numpy as np

from .checks import ACTION_MARGIN, check_data
from .fetching import DEFAULT_DIRECTORY, dataset_paths, fetch_dataset, how_to_get
from .files import check_file, short, validation_path
from .names import DatasetName, parse_name
from .ogbench import make_environment, ogbench_module, sparse_reward
from .windows import Trajectories


def load_dataset(
    name: str,
    *,
    path: str | os.PathLike[str] | None = None,
    directory: str | os.PathLike[str] | None = None,
    mirror: str | None = None,
    validation: bool = False,
    with_next_action: bool = False,
    rewards: Literal["task", "file"] = "task",
    sparse: bool = False,
) -> Trajectories:
    """Loads the transitions of an OGBench dataset, with the rewards of a single task.

    Rewards and masks are OGBench's own (`ogbench.relabel_utils`), of the state before the action,
    or the file's. Those that a file has and that are not used are counted in a warning.
    Actions are clipped to ±(1 - 1e-5), as in the reference code of FQL and floq.

    **Arguments:**

    - `name`: a single-task name, such as `cube-single-play-singletask-task1-v0`; with the file's
        own rewards also a goal-conditioned one.
    - `path`: the one file to load; the training file, also for `validation`.
    - `directory`: where `<dataset>.npz` lies, if no `path` is given; by default
        `~/.ogbench/data`, which OGBench uses.
    - `mirror`: if given, a dataset that is missing in `directory` is fetched from there first; see
        `fetch_dataset`.
    - `validation`: whether to load `<stem>-val.npz` beside that file.
    - `with_next_action`: whether to fill in `next_action`, which some algorithms need.
    - `rewards`: `"task"` labels the transitions for the task of `name`; `"file"` takes the file's
        `rewards` and `masks`, one of each a step, for the transition that begins there. Those of
        the last state of a trajectory are not used. Without `masks` no state is terminal, as
        `terminals` only end trajectories. `qpos` is not needed then.
    - `sparse`: whether the task's rewards are -1 unless it is solved, as the papers of Q-chunking
        and QAM use on scene and puzzles, instead of counting what of it is not.

    **Returns:** all transitions, in float32 and in the order of time. The last state of a
    trajectory is only a `next_observation`.

    **Raises:** `ValueError` for a name or a file without the rewards that are asked for, and for
    whatever is wrong with the file:
    not an intact `.npz`, missing or misshapen arrays, NaN or infinite values, actions outside
    [-1, 1], no transitions, a trajectory without end. `FileNotFoundError` if it is missing.
    """
    parsed = parse_name(name)
    if parsed.family in ("visual", "powderworld"):
        raise ValueError(f"{name} has image observations, which are not supported.")
    if rewards not in ("task", "file"):
        raise ValueError(f"rewards must be 'task' or 'file', got {rewards!r}.")
    if parsed.task is None and rewards == "task":
        raise ValueError(
            f"{name} is goal-conditioned and has no rewards: name a task, such as "
            f"{dataclasses.replace(parsed, task=1)}, or "
            f"{dataclasses.replace(parsed, task=0)} for OGBench's default task, or take the file's "
            "own with rewards='file'."
        )
    if sparse and rewards == "file":
        raise ValueError("sparse is for the task's rewards: leave it out with rewards='file'.")
    if path is not None and (directory is not None or mirror is not None):
        raise ValueError("Give either path, or directory and mirror, not both.")
    if path is None:
        train, _ = dataset_paths(parsed, directory or DEFAULT_DIRECTORY)
        if mirror is not None:
            fetch_dataset(name, train.parent, mirror=mirror)
    else:
        train = Path(path).expanduser()
    file = validation_path(train) if validation else train
    if not file.is_file():
        raise FileNotFoundError(f"There is no file {file}: {how_to_get(parsed)}.")

    shapes = check_file(file)
    # What is too large for float32 becomes infinite, which is found below or is far from any goal.
    with contextlib.closing(make_environment(name)) as env, np.errstate(over="ignore"):
        _check_shapes(shapes, env, parsed, file, own_rewards=rewards == "file")
        try:
            raw = ogbench_module().load_dataset(str(file), compact_dataset=True, add_info=True)
            with np.load(file) as archive:
                own = {key: archive[key] for key in ("rewards", "masks") if key in shapes}
        except Exception as e:  # whatever the readers run into
            raise ValueError(
                f"{file} is corrupt: {short(e)}. Move it elsewhere and collect or fetch the "
                "dataset again, or name another file or directory (--data)."
            ) from e
        # The compact form keeps every row; a row that is valid is a transition to the next one.
        valid = raw["valids"].astype(bool)
        _check_values(raw, valid, file)
        if rewards == "file":
            rows = _own_rewards(own, valid, file)
        else:
            keys = ("qpos", "qvel", "button_states")
            rows = {key: raw[key][valid] for key in keys if key in raw}
            ogbench_module("ogbench.relabel_utils").relabel_dataset(
                parsed.environment_id, env, rows
            )
            _say_unused(own, valid, rows, name, file)
            if sparse:
                rows["rewards"] = sparse_reward(rows["rewards"])

    action = np.clip(raw["actions"], -1.0 + ACTION_MARGIN, 1.0 - ACTION_MARGIN)
    data = Trajectories.of_rows(
        raw["observations"],
        action,
        valid,
        np.asarray(rows["rewards"]),
        np.asarray(rows["masks"]),
        with_next_action=with_next_action,
    )
    check_data(data)
    return data


def _own_rewards(
    own: dict[str, np.ndarray], valid: np.ndarray, file: Path
) -> dict[str, np.ndarray]:
    """The file's rewards and masks of the transitions, checked."""
    own = {"masks": np.ones(len(valid), np.float32)} | own
    for key, array in own.items():
        array = own[key] = array.astype(np.float32)
        if key == "rewards":
            bad, what = ~np.isfinite(array), "is NaN or infinite"
        else:
            bad, what = ~((array >= 0) & (array <= 1)), "is outside [0, 1]"
        bad &= valid
        if bad.any():
            first = int(np.argmax(bad))
            raise ValueError(
                f"{file}: `{key}` {what} in {int(bad.sum())} of {int(valid.sum())} transitions, "
                f"first {array[first]!s} in step number {first}. Mend the file, or take the task's "
                "with rewards='task'."
            )
    return {key: array[valid] for key, array in own.items()}


def _say_unused(
    own: dict[str, np.ndarray],
    valid: np.ndarray,
    labels: dict[str, np.ndarray],
    name: str,
    file: Path,
) -> None:
    """Warns of rewards and masks in a file that are not those of the task."""
    different = {}
    for key, array in own.items():
        if array.shape != valid.shape:
            different[key] = int(valid.sum())
        else:
            different[key] = int((array[valid].astype(np.float32) != labels[key]).sum())
    total = f"{int(valid.sum()):,}"
    parts = [
        f"`{key}` of {count:,} of {total} transitions" for key, count in different.items() if count
    ]
    if parts:
        warnings.warn(
            f"{file}: {' and '.join(parts)} are not those of the task of {name}, and are not used; "
            "rewards='file' (--rewards file) takes the file's own.",
            stacklevel=3,
        )


def _check_shapes(
    shapes: dict[str, tuple], env: Any, name: DatasetName, file: Path, *, own_rewards: bool
) -> None:
    """Compares a file's arrays with what the environment yields."""
    expected = {
        "observations": env.observation_space.shape,
        "actions": env.action_space.shape,
        "terminals": (),
        "qpos": (env.unwrapped.model.nq,),
        "qvel": (env.unwrapped.model.nv,),
    }
    required = ["observations", "actions", "terminals", "rewards" if own_rewards else "qpos"]
    if own_rewards:  # Of the task nothing is needed.
        expected |= {"rewards": (), "masks": ()}
    elif name.family in ("scene", "puzzle"):
        expected["button_states"] = (env.unwrapped._num_buttons,)
        required.append("button_states")
    missing = [key for key in required if key not in shapes]
    if missing:
        present = ", ".join(sorted(shapes))[:500]
        raise ValueError(
            f"{file} lacks {', '.join(missing)}; it has {present or 'nothing'}. "
            f"{name.dataset} needs {', '.join(required)}"
            f"{' with the rewards of the file' if own_rewards else ''}."
        )
    for key, shape in expected.items():
        got = shapes.get(key)
        if got is not None and key in ("rewards", "masks") and len(got) != 1:
            raise ValueError(f"{file}: `{key}` has shape {got}, expected one number a step.")
        if got is not None and (len(got) != 1 + len(shape) or got[1:] != shape):
            raise ValueError(
                f"{file}: `{key}` has shape {got}, expected {('steps', *shape)} for "
                f"{name.environment_id}. Is it the dataset of another environment?"
            )
    lengths = {key: shapes[key][0] for key in expected if key in shapes}
    if len(set(lengths.values())) != 1:
        raise ValueError(
            f"{file}: the arrays differ in length, {lengths}; collect or fetch it again."
        )
    if lengths["observations"] == 0:
        raise ValueError(f"{file} holds no steps; collect or fetch the dataset again.")


def _check_values(raw: dict[str, np.ndarray], valid: np.ndarray, file: Path) -> None:
    """Checks what the clipping and the labelling of rewards would hide."""
    ends = 1.0 - raw["valids"]
    if not np.isin(ends, (0.0, 1.0)).all():
        raise ValueError(f"{file}: `terminals` must be 0 or 1, got other values.")
    if valid[-1]:
        raise ValueError(
            f"{file}: the last trajectory has no end, its last `terminals` is {ends[-1]} and "
            "must be 1. The file was cut off; collect or fetch it again."
        )
    if not valid.any():
        raise ValueError(f"{file} holds no transitions: every step ends a trajectory.")
    for key in ("observations", "actions", "qpos"):
        if key not in raw:
            continue
        finite = np.asarray(np.isfinite(raw[key]).all(axis=1))
        if not finite.all():
            raise ValueError(
                f"{file}: `{key}` is NaN or infinite in {int((~finite).sum())} of {len(finite)} "
                f"steps, first in number {int(np.argmin(finite))}. Collect or fetch it again."
            )
    largest = np.abs(raw["actions"]).max()
    if largest > 1.0 + ACTION_MARGIN:
        raise ValueError(f"{file}: actions must lie in [-1, 1], got {largest!s}; rescale them.")
