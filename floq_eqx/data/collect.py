"""Collection of OGBench datasets with OGBench's own scripted experts, in several processes.

The recipes are those of OGBench's `data_gen_scripts` (`generate_manipspace.py` and
`generate_locomaze.py`; arXiv 2410.20092): the same experts, noise, targets and
lengths. The random numbers differ, so a dataset is a fresh draw from the published distribution.
"""

import concurrent.futures
import contextlib
import copy
import dataclasses
import functools
import multiprocessing
import os
import signal
import threading
from collections.abc import Generator, Iterator
from pathlib import Path
from typing import Any

import numpy as np

from .._machine import available_cores
from .._progress import progress_bar
from .fetching import SERVER
from .files import finish, unfinished, validation_path
from .names import DatasetName, parse_name
from .ogbench import _make, ogbench_module

_Episode = dict[str, np.ndarray]

# Episodes of the published datasets; every episode of a manipulation dataset has 1001 steps.
_MANIPULATION_EPISODES = {
    "cube-single": 1000,
    "cube-double": 1000,
    "cube-triple": 3000,
    "cube-quadruple": 5000,
    "puzzle-3x3": 1000,
    "puzzle-4x4": 1000,
    "puzzle-4x5": 3000,
    "puzzle-4x6": 5000,
    "scene": 1000,
}
# Range of an episode's probability that a cube's target lies on another cube.
_STACK_RANGES = {
    "cube-single": (0.0, 0.0),
    "cube-double": (0.0, 0.25),
    "cube-triple": (0.05, 0.35),
    "cube-quadruple": (0.1, 0.5),
    "cube-octuple": (0.0, 0.35),
}
_MAZE_NOISE = 0.5
_STITCH_DISTANCE = 4
_MAX_ATTEMPTS = 100
# What the environments change in the physics model while they run, colours apart.
_MUTABLE = ("site_pos", "dof_damping")
_THREADS = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS")


@dataclasses.dataclass(frozen=True)
class _Job:
    """What every process must know to collect an episode."""

    name: DatasetName
    steps: int
    seed: int


class _Manipulation:
    """Cubes, scene and puzzle: a scripted oracle pursues one random target after another."""

    def __init__(self, job: _Job):
        self.job = job
        self.noisy = job.name.kind == "noisy"
        self.random_probability = 0.0
        if self.noisy:
            self.random_probability = 0.2 if job.name.family == "puzzle" else 0.1
        self.env = _make(
            job.name.environment_id,
            terminate_at_goal=False,
            mode="data_collection",
            max_episode_steps=job.steps,
        )
        self.oracles = self._make_oracles()
        self.env.reset(seed=0)
        state = vars(self.env.unwrapped)
        self.targets = copy.deepcopy({k: v for k, v in state.items() if k.startswith("_target")})
        self.model = {key: getattr(self.env.unwrapped.model, key).copy() for key in _MUTABLE}

    def _make_oracles(self) -> dict[str, Any]:
        import importlib

        style = "Markov" if self.noisy else "Plan"
        common = {"min_norm": 0.4} if self.noisy else {"noise": 0.1, "noise_smoothing": 0.5}

        def make(task: str, **kwargs: Any) -> Any:
            module = f"ogbench.manipspace.oracles.{style.lower()}.{task}_{style.lower()}"
            cls = getattr(importlib.import_module(module), f"{task.capitalize()}{style}Oracle")
            return cls(env=self.env, **common, **kwargs)

        if self.job.name.family == "cube":
            return {"cube": make("cube")}
        if self.job.name.family == "puzzle":
            return {"button": make("button", gripper_always_closed=True)}
        # OGBench asks for 100 steps here, though its oracle's reset sets 200 again.
        cube = make("cube", max_step=100) if self.noisy else make("cube")
        return {"cube": cube} | {task: make(task) for task in ("button", "drawer", "window")}

    def _forget(self) -> None:
        """Undoes what a reset leaves of the last episode: its targets, locks and markers.

        They enter the first action after a new target, and the solver's warm start.
        """
        vars(self.env.unwrapped).update(copy.deepcopy(self.targets))
        for key, value in self.model.items():
            getattr(self.env.unwrapped.model, key)[:] = value

    def run(self, rng: np.random.Generator, seed: int) -> _Episode:
        self._forget()
        ob, info = self.env.reset(seed=seed)
        p_stack = rng.uniform(*_STACK_RANGES.get(self.job.name.environment, (0.5, 0.5)))
        xi = rng.uniform(0.0, 0.1)
        noise = xi * np.array([1.0, 1.0, 1.0, 3.0, 10.0])
        has_buttons = hasattr(self.env.unwrapped, "_cur_button_states")

        oracle = self._oracle(info)
        oracle.reset(ob, info)
        rows: list[dict[str, Any]] = []
        done = False
        while not done:
            if rng.uniform() < self.random_probability:
                action = rng.uniform(-1.0, 1.0, size=noise.shape)
            else:
                # As in OGBench, the first action after a new target is chosen from the
                # information of the step before it.
                action = np.array(oracle.select_action(ob, info))
                if self.noisy:
                    action = action + rng.normal(0.0, noise)
            action = np.clip(action, -1.0, 1.0)
            next_ob, _, terminated, truncated, info = self.env.step(action)
            done = terminated or truncated
            if oracle.done:
                target_ob, target_info = self.env.unwrapped.set_new_target(p_stack=p_stack)
                oracle = self._oracle(target_info)
                oracle.reset(target_ob, target_info)
            row = {
                "observations": ob,
                "actions": action,
                "terminals": done,
                "qpos": info["prev_qpos"],
                "qvel": info["prev_qvel"],
            }
            if has_buttons:
                row["button_states"] = info["prev_button_states"]
            rows.append(row)
            ob = next_ob
        return _stack(rows)

    def _oracle(self, info: dict[str, Any]) -> Any:
        return self.oracles[str(info["privileged/target_task"])]

    def healthy(self, episode: _Episode) -> bool:
        """Whether the scene's cube stayed in sight, or lay in the drawer where it did not."""
        if self.job.name.family != "scene":
            return True
        y, z = episode["qpos"][:, 15], episode["qpos"][:, 16]
        escaped = (y >= 0.29) | ((y <= -0.3) & ((z < 0.06) | (z > 0.08)))
        return not escaped.any()


class _PointMaze:
    """A point that follows shortest paths, with much noise, to random cells."""

    def __init__(self, job: _Job):
        self.job = job
        self.env = _make(
            job.name.environment_id, terminate_at_goal=False, max_episode_steps=job.steps
        )
        free = self.env.unwrapped.maze_map == 0
        self.cells = [(int(i), int(j)) for i, j in np.argwhere(free)]
        self.vertices = [ij for ij in self.cells if not _is_hallway(free, ij)]

    def run(self, rng: np.random.Generator, seed: int) -> _Episode:
        maze = self.env.unwrapped
        start = self.cells[rng.integers(len(self.cells))]
        candidates = self.vertices
        if self.job.name.kind == "stitch":
            _, distances = maze.get_oracle_subgoal(maze.ij_to_xy(start), maze.ij_to_xy(start))
            # A cell that is walled in on all sides, as one of teleport's is, is its own goal.
            candidates = [ij for ij in self.cells if distances[ij] == _STITCH_DISTANCE] or [start]
        goal = candidates[rng.integers(len(candidates))]
        task = {"init_ij": start, "goal_ij": goal}
        ob, _ = self.env.reset(seed=seed, options={"task_info": task})

        rows: list[dict[str, Any]] = []
        done = False
        while not done:
            xy = maze.get_xy()
            direction = maze.get_oracle_subgoal(xy, maze.cur_goal_xy)[0] - xy
            direction = direction / (np.linalg.norm(direction) + 1e-6)
            action = np.clip(direction + rng.normal(0.0, _MAZE_NOISE, size=2), -1.0, 1.0)
            next_ob, _, terminated, truncated, info = self.env.step(action)
            done = terminated or truncated
            if info["success"] and self.job.name.kind == "navigate":
                goal = self.vertices[rng.integers(len(self.vertices))]
                # Given as coordinates: from a cell alone, the environment loses its target.
                maze.set_goal(goal_xy=maze.add_noise(maze.ij_to_xy(goal)))
            row = {
                "observations": ob,
                "actions": action,
                "terminals": done,
                "qpos": info["prev_qpos"],
                "qvel": info["prev_qvel"],
            }
            rows.append(row)
            ob = next_ob
        return _stack(rows)

    def healthy(self, episode: _Episode) -> bool:
        return True


def _is_hallway(free: np.ndarray, ij: tuple[int, int]) -> bool:
    """Whether a free cell only leads straight on; the outermost cells are all walls."""
    i, j = ij
    vertical = (bool(free[i - 1, j]), bool(free[i + 1, j]))
    horizontal = (bool(free[i, j - 1]), bool(free[i, j + 1]))
    open_, closed = (True, True), (False, False)
    return (vertical, horizontal) in ((open_, closed), (closed, open_))


def _stack(rows: list[dict[str, Any]]) -> _Episode:
    dtypes = {"terminals": np.bool_, "button_states": np.int64}
    return {
        key: np.asarray([row[key] for row in rows]).astype(dtypes.get(key, np.float32))
        for key in rows[0]
    }


def _make_collector(job: _Job) -> _Manipulation | _PointMaze:
    return _PointMaze(job) if job.name.family == "pointmaze" else _Manipulation(job)


def _collect_episode(collector: _Manipulation | _PointMaze, split: int, index: int) -> _Episode:
    """One episode, a function of the seed, the split (0: training) and its index alone."""
    job, env = collector.job, collector.env
    for attempt in range(_MAX_ATTEMPTS):
        # What `np.random.SeedSequence(seed).spawn` makes, without making the ones before it.
        sequence = np.random.SeedSequence(job.seed, spawn_key=(split, index, attempt))
        seed = int(sequence.generate_state(1)[0])
        # OGBench's oracles and mazes draw from NumPy's global generator.
        np.random.seed(seed)  # noqa: NPY002
        env.action_space.seed(seed)
        episode = collector.run(np.random.default_rng(sequence), seed)
        if len(episode["terminals"]) != job.steps:
            raise RuntimeError(
                f"Episode {index} of {job.name} ended after {len(episode['terminals'])} steps, "
                f"expected {job.steps}: this version of OGBench is not supported."
            )
        if collector.healthy(episode):
            return episode
    raise RuntimeError(
        f"Episode {index} of {job.name} failed its health check {_MAX_ATTEMPTS} times; "
        "try another seed."
    )


# ------------------------------------------------------------------------------------ processes

_job: tuple[_Job, Any] | None = None  # set once in each worker process


def _start_worker(job: _Job, stop: Any) -> None:
    global _job
    # Ctrl-C and a scheduler's SIGTERM reach the whole group; the parent decides what happens.
    for signum in (signal.SIGINT, signal.SIGTERM):
        signal.signal(signum, signal.SIG_IGN)
    parent = multiprocessing.parent_process()
    if parent is not None:
        # If the parent is killed outright, nobody else tells the workers to stop.
        def follow() -> None:
            parent.join()
            os._exit(1)

        threading.Thread(target=follow, daemon=True).start()
    _job = (job, stop)


# Made with the first episode, not in the pool's initializer, whose errors the pool does not report.
_worker_collector = functools.cache(_make_collector)


def _work(split: int, index: int) -> _Episode | None:
    if _job is None:
        raise RuntimeError("This runs in a worker process only; call collect_dataset.")
    job, stop = _job
    return None if stop.is_set() else _collect_episode(_worker_collector(job), split, index)


@contextlib.contextmanager
def _single_threaded() -> Iterator[None]:
    """An environment in which new processes use one thread each."""
    before = {key: os.environ.get(key) for key in _THREADS}
    os.environ.update(dict.fromkeys(_THREADS, "1"))
    try:
        yield
    finally:
        for key, value in before.items():
            if value is None:
                del os.environ[key]
            else:
                os.environ[key] = value


def _episodes(
    job: _Job, tasks: list[tuple[int, int]], num_workers: int
) -> Generator[tuple[tuple[int, int], _Episode], None, None]:
    """The episodes of `tasks`, pairs of split and index, in whatever order they are done."""
    if num_workers == 1:
        state = np.random.get_state()  # noqa: NPY002
        try:
            collector = _make_collector(job)
            with contextlib.closing(collector.env):
                for task in tasks:
                    yield task, _collect_episode(collector, *task)
        finally:
            np.random.set_state(state)  # noqa: NPY002
        return

    # "spawn": a fork of a process in which JAX or MuJoCo runs threads can deadlock.
    context = multiprocessing.get_context("spawn")
    stop = context.Event()
    with concurrent.futures.ProcessPoolExecutor(
        num_workers, mp_context=context, initializer=_start_worker, initargs=(job, stop)
    ) as pool:
        try:
            with _single_threaded():
                pending = {pool.submit(_work, *task): task for task in tasks}
            for future in concurrent.futures.as_completed(list(pending)):
                task, episode = pending.pop(future), future.result()
                if episode is not None:
                    yield task, episode
        except BaseException as e:
            # Episodes that have begun are finished and dropped; no further one begins.
            stop.set()
            pool.shutdown(cancel_futures=True)
            if isinstance(e, concurrent.futures.BrokenExecutor):
                raise RuntimeError(
                    "A worker process died. Either it was killed, perhaps for lack of memory, or "
                    "the calling script lacks `if __name__ == '__main__':`, which new processes "
                    "need; num_workers=1 starts none."
                ) from e
            raise


# ------------------------------------------------------------------------------------- interface


def _recipe(name: DatasetName) -> tuple[int | None, int]:
    """Episodes and steps per episode of the published dataset."""
    if name.family == "visual":
        raise ValueError(
            f"{name.dataset} has image observations, which are not supported; collect or fetch "
            f"{name.dataset.removeprefix('visual-')} instead."
        )
    if name.family == "pointmaze":
        if name.kind == "stitch":
            return 5000, 201
        return (500, 2001) if name.environment == "pointmaze-giant" else (1000, 1001)
    if name.family in ("cube", "scene", "puzzle"):
        return _MANIPULATION_EPISODES.get(name.environment), 1001
    if name.family == "powderworld":
        raise ValueError(f"{name.dataset}: Powderworld is not supported.")
    raise ValueError(
        f"{name.dataset} cannot be collected locally: its expert is a trained policy, which "
        f"OGBench does not ship. Fetch it with floq_eqx.data.fetch_dataset({name.dataset!r}), "
        f"from OGBench's server ({SERVER}) or from a mirror. Pointmaze, cube, scene and "
        "puzzle can be collected."
    )


def _positive(name: str, value: int | None) -> None:
    if value is not None and value < 1:
        raise ValueError(f"{name} must be at least 1, got {value}.")


def collect_dataset(
    name: str,
    path: str | os.PathLike[str],
    *,
    num_episodes: int | None = None,
    episode_steps: int | None = None,
    num_workers: int | None = None,
    seed: int = 0,
    validation: bool = True,
    overwrite: bool = False,
    progress: bool = True,
) -> Path:
    """Collects an OGBench dataset with OGBench's scripted experts.

    The result depends on `seed` and not on `num_workers`, to the bit, on one machine; episode i is
    the same for any `num_episodes` above i.

    More than one worker means new processes, which import the calling script again: a script must
    call this below `if __name__ == "__main__":`. One worker collects in the calling process.

    **Arguments:**

    - `name`: such as `cube-single-play-v0`; of a single-task name, the dataset is taken.
    - `path`: the file to write, ending in `.npz`; its folder is made if missing.
    - `num_episodes`: training episodes; by default as many as the published dataset has.
    - `episode_steps`: steps per episode; by default as many as the published dataset has.
    - `num_workers`: processes; by default one per available core.
    - `seed`: a non-negative integer.
    - `validation`: whether to also write `<stem>-val.npz`, with a tenth as many episodes (at
        least one); `ogbench.make_env_and_datasets` requires it.
    - `overwrite`: whether existing files may be replaced.
    - `progress`: whether to show episodes, rate and remaining time on standard error.

    **Returns:** the path of the training file. Files appear under their names only when complete,
    the validation file first, so a training file implies its validation file.

    **Raises:** `ValueError` for an unknown name, for data that no scripted expert makes, and for
    numbers out of range; `FileExistsError` if a file is in the way. An error in a worker is raised
    here, with its traceback, and stops the others.
    """
    parsed = parse_name(name)
    published_episodes, published_steps = _recipe(parsed)
    for label, value in (
        ("num_episodes", num_episodes),
        ("episode_steps", episode_steps),
        ("num_workers", num_workers),
    ):
        _positive(label, value)
    if seed < 0:
        raise ValueError(f"seed must not be negative, got {seed}.")
    num_episodes = num_episodes or published_episodes
    if num_episodes is None:
        raise ValueError(f"OGBench publishes no {parsed.dataset}: give num_episodes.")
    train_path = Path(path).expanduser()
    if train_path.suffix != ".npz":
        raise ValueError(f"A dataset's file must end in .npz, got {train_path}.")
    paths = [train_path, validation_path(train_path)][: 2 if validation else 1]
    _refuse_existing(paths, overwrite)

    ogbench_module()  # so that it is missed here, not in a worker
    counts = [num_episodes, max(1, num_episodes // 10)][: len(paths)]
    tasks = [(split, i) for split, count in enumerate(counts) for i in range(count)]
    job = _Job(dataclasses.replace(parsed, task=None), episode_steps or published_steps, seed)
    workers = min(num_workers or available_cores(), len(tasks))

    splits: list[_Episode] = [{} for _ in paths]
    bar = progress_bar("episode", total=len(tasks), show=progress, name=parsed.dataset)
    with bar as show, contextlib.closing(_episodes(job, tasks, workers)) as episodes:
        for done, ((split, index), episode) in enumerate(episodes, 1):
            rows = slice(index * job.steps, (index + 1) * job.steps)
            for key, values in episode.items():
                if key not in splits[split]:
                    shape = (counts[split] * job.steps, *values.shape[1:])
                    splits[split][key] = np.empty(shape, values.dtype)
                splits[split][key][rows] = values
            show(done)

    with contextlib.ExitStack() as stack:
        files = [stack.enter_context(unfinished(path)) for path in paths]
        for file, arrays in zip(files, splits, strict=True):
            np.savez_compressed(file, **arrays)  # pyright: ignore[reportArgumentType]
        _refuse_existing(paths, overwrite)
        for file, final in reversed(list(zip(files, paths, strict=True))):
            finish(file, final)
    return train_path


def _refuse_existing(paths: list[Path], overwrite: bool) -> None:
    for path in paths:
        if path.exists() and not overwrite:
            raise FileExistsError(
                f"{path} exists already: use it, choose another path, or pass overwrite=True."
            )
