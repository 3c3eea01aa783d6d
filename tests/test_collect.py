"""Collection: recipes, files, processes."""

import contextlib
import json
import os
import signal
import subprocess
import sys
import time
import warnings
from pathlib import Path

import gymnasium
import numpy as np
import ogbench
import pytest

from floq_eqx.data import DatasetName, collect, collect_dataset, parse_name

STEPS = 40
ENVIRONMENT = os.environ | {"PYTHONPATH": str(Path(__file__).parents[1])}


def _arrays(path):
    with np.load(path) as file:
        return {key: file[key] for key in file.files}


def _folder(path):
    return sorted(item.name for item in path.iterdir())


@pytest.fixture(scope="module")
def cube(tmp_path_factory):
    """A short cube dataset in the recipe's form."""
    path = tmp_path_factory.mktemp("cube") / "cube-single-play-v0.npz"
    result = collect_dataset(
        "cube-single-play-singletask-task1-v0",
        path,
        num_episodes=3,
        episode_steps=STEPS,
        num_workers=1,
    )
    assert result == path
    return path


def test_files_and_recipe(cube):
    assert _folder(cube.parent) == ["cube-single-play-v0-val.npz", "cube-single-play-v0.npz"]
    data, val = _arrays(cube), _arrays(cube.with_name("cube-single-play-v0-val.npz"))
    assert set(data) == {"observations", "actions", "terminals", "qpos", "qvel"}
    for key, size in {"observations": 28, "actions": 5, "qpos": 21, "qvel": 20}.items():
        assert data[key].dtype == np.float32
        assert data[key].shape == (3 * STEPS, size)
        assert val[key].shape == (STEPS, size)
    assert data["terminals"].dtype == np.bool_
    np.testing.assert_array_equal(np.flatnonzero(data["terminals"]), STEPS * np.arange(1, 4) - 1)
    assert np.abs(data["actions"]).max() <= 1.0
    assert np.abs(data["actions"]).std() > 0.05
    # Each row holds the state that its observation shows: the arm's joints are in both.
    np.testing.assert_array_equal(data["observations"][:, :6], data["qpos"][:, :6])
    # Episodes differ, and the validation split repeats none of the training split.
    starts = np.concatenate([data["qpos"][::STEPS], val["qpos"][::STEPS]])
    assert len(np.unique(starts, axis=0)) == 4


def test_ogbench_reads_it(cube):
    with warnings.catch_warnings():
        # OGBench's environments warn of a missing screen and of float32 bounds.
        warnings.simplefilter("ignore")
        env, train, val = ogbench.make_env_and_datasets(
            "cube-single-play-singletask-task1-v0", dataset_path=str(cube)
        )
        env.close()
    assert train["observations"].shape == (3 * (STEPS - 1), 28)
    assert val["observations"].shape == (STEPS - 1, 28)
    assert set(np.unique(train["rewards"])) <= {-1.0, 0.0}
    assert train["terminals"].sum() == 3


def test_expert_moves_the_cube(tmp_path):
    """The play expert lifts cubes and reaches targets, or the data would teach nothing."""
    path = tmp_path / "a.npz"
    collect_dataset("cube-single-play-v0", path, num_episodes=1, num_workers=1, validation=False)
    data = _arrays(path)
    assert _folder(tmp_path) == ["a.npz"]
    assert data["terminals"].shape == (1001,)
    height = data["qpos"][:, 16]
    assert height.max() > 0.08
    lifts = np.diff((height > 0.06).astype(int)) == 1
    assert 4 <= lifts.sum() <= 30


def test_workers_agree_bitwise(tmp_path):
    """On the environment that carries most from one episode to the next."""
    for workers in (1, 2):
        collect_dataset(
            "scene-noisy-v0",
            tmp_path / str(workers) / "a.npz",
            num_episodes=4,
            episode_steps=120,
            num_workers=workers,
            seed=7,
        )
    for name in ("a.npz", "a-val.npz"):
        assert (tmp_path / "1" / name).read_bytes() == (tmp_path / "2" / name).read_bytes()


def test_seed_and_prefix(tmp_path, capfd):
    def run(label, **kwargs):
        return _arrays(
            collect_dataset(
                "pointmaze-medium-navigate-v0",
                tmp_path / f"{label}.npz",
                episode_steps=STEPS,
                num_workers=1,
                **kwargs,
            )
        )

    np.random.seed(3)  # noqa: NPY002
    before = np.random.get_state()[1].copy()  # noqa: NPY002
    four = run("four", num_episodes=4)
    np.testing.assert_array_equal(np.random.get_state()[1], before)  # noqa: NPY002
    two = run("two", num_episodes=2)
    other = run("other", num_episodes=2, seed=1)
    for key, values in two.items():
        np.testing.assert_array_equal(values, four[key][: len(values)])
    assert not np.array_equal(two["observations"], other["observations"])
    assert capfd.readouterr() == ("", "")  # no progress bar: stderr is no terminal


@pytest.mark.parametrize(
    ("name", "observation", "action", "buttons"),
    [
        ("pointmaze-large-navigate-v0", 2, 2, None),
        ("pointmaze-teleport-stitch-v0", 2, 2, None),
        ("cube-double-noisy-v0", 37, 5, None),
        ("scene-play-v0", 40, 5, 2),
        ("puzzle-3x3-play-v0", 55, 5, 9),
        ("puzzle-3x3-noisy-v0", 55, 5, 9),
    ],
)
def test_every_kind(name, observation, action, buttons, tmp_path):
    path = collect_dataset(
        name, tmp_path / "a.npz", num_episodes=1, episode_steps=STEPS, num_workers=1
    )
    data = _arrays(path)
    assert data["observations"].shape == (STEPS, observation)
    assert data["actions"].shape == (STEPS, action)
    if buttons is None:
        assert "button_states" not in data
    else:
        assert data["button_states"].dtype == np.int64
        assert data["button_states"].shape == (STEPS, buttons)
        assert set(np.unique(data["button_states"])) <= {0, 1}
    assert all(np.isfinite(values).all() for values in data.values())


def test_point_maze_recipes(tmp_path):
    """Navigation goes on to new goals; stitching stays within four cells of its start."""

    def run(kind, episodes, steps):
        return _arrays(
            collect_dataset(
                f"pointmaze-large-{kind}-v0",
                tmp_path / f"{kind}.npz",
                num_episodes=episodes,
                episode_steps=steps,
                num_workers=1,
            )
        )

    far = run("navigate", 2, 1001)["observations"].reshape(2, 1001, 2)
    # The first goal is reached by then, and the point would stay: a cell is 4 wide.
    assert (np.ptp(far[:, 600:], axis=1) > 8.0).any()
    near = run("stitch", 10, 201)["observations"].reshape(10, 201, 2)
    distance = np.abs(near - near[:, :1]).sum(axis=-1).max(axis=1) / 4.0
    assert (distance < 6.0).all()
    assert (distance > 1.5).all()


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("cube-single-play-v0", (1000, 1001)),
        ("cube-quadruple-noisy-v0", (5000, 1001)),
        ("puzzle-4x5-play-v0", (3000, 1001)),
        ("scene-play-v0", (1000, 1001)),
        ("pointmaze-giant-navigate-v0", (500, 2001)),
        ("pointmaze-giant-stitch-v0", (5000, 201)),
        ("pointmaze-teleport-navigate-v0", (1000, 1001)),
    ],
)
def test_published_sizes(name, expected):
    assert collect._recipe(parse_name(name)) == expected


def test_vertices_are_no_hallways():
    job = collect._Job(DatasetName("pointmaze-medium", "navigate"), 5, 0)
    maze = collect._PointMaze(job)
    maze.env.close()
    # Read off OGBench's map of the medium maze: a crossing and two corners are vertices;
    # (3, 3) leads from left to right, (5, 6) up and down.
    assert {(3, 2), (1, 1), (6, 6)} <= set(maze.vertices)
    assert {(3, 3), (5, 6)} <= set(maze.cells) - set(maze.vertices)
    assert len(maze.cells) == int((maze.env.unwrapped.maze_map == 0).sum())


def test_scene_health_check():
    scene = collect._Manipulation.__new__(collect._Manipulation)
    scene.job = collect._Job(DatasetName("scene", "play"), 5, 0)

    def healthy(y, z):
        qpos = np.zeros((5, 30), np.float32)
        qpos[3, 15], qpos[3, 16] = y, z
        return scene.healthy({"qpos": qpos})

    assert healthy(0.28, 0.02)
    assert not healthy(0.30, 0.02)
    assert healthy(-0.35, 0.07)  # in the drawer
    assert not healthy(-0.35, 0.02)
    assert not healthy(-0.35, 0.10)


def test_unhealthy_episode_is_drawn_again(monkeypatch):
    job = collect._Job(DatasetName("pointmaze-medium", "navigate"), 5, 0)
    maze = collect._PointMaze(job)
    first = collect._collect_episode(maze, 0, 0)
    verdicts = iter([False, True])
    monkeypatch.setattr(maze, "healthy", lambda episode: next(verdicts))
    second = collect._collect_episode(maze, 0, 0)
    assert not np.array_equal(first["actions"], second["actions"])
    monkeypatch.setattr(maze, "healthy", lambda episode: False)
    with pytest.raises(RuntimeError, match="health check"):
        collect._collect_episode(maze, 0, 0)
    maze.env.close()


# ---------------------------------------------------------------------------- what is refused


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("antmaze-large-navigate-v0", "trained policy.*fetch_dataset.*https?://"),
        ("humanoidmaze-medium-stitch-v0", "trained policy"),
        ("antsoccer-arena-navigate-v0", "trained policy"),
        ("visual-cube-single-play-v0", "image observations"),
        ("powderworld-easy-play-v0", "not supported"),
        ("cube-octuple-play-v0", "give num_episodes"),
        ("cube-singel-play-v0", "cube-single-play-v0"),
    ],
)
def test_uncollectable_names(name, message, tmp_path):
    with pytest.raises(ValueError, match=message):
        collect_dataset(name, tmp_path / "a.npz")
    assert _folder(tmp_path) == []


@pytest.mark.parametrize(
    ("kwargs", "message"),
    [
        ({"num_episodes": 0}, "num_episodes must be at least 1, got 0"),
        ({"episode_steps": -1}, "episode_steps"),
        ({"num_workers": 0}, "num_workers"),
        ({"seed": -1}, "seed must not be negative"),
    ],
)
def test_bad_numbers(kwargs, message, tmp_path):
    with pytest.raises(ValueError, match=message):
        collect_dataset("pointmaze-medium-navigate-v0", tmp_path / "a.npz", **kwargs)


def test_wrong_suffix(tmp_path):
    with pytest.raises(ValueError, match=r"end in \.npz"):
        collect_dataset("pointmaze-medium-navigate-v0", tmp_path / "a.npy", num_episodes=1)


@pytest.mark.parametrize("existing", ["a.npz", "a-val.npz"])
def test_existing_file_is_refused(existing, tmp_path):
    def run(**kwargs):
        return collect_dataset(
            "pointmaze-medium-navigate-v0",
            tmp_path / "a.npz",
            num_episodes=1,
            episode_steps=5,
            num_workers=1,
            **kwargs,
        )

    (tmp_path / existing).write_text("mine")
    with pytest.raises(FileExistsError, match="overwrite=True"):
        run()
    assert _folder(tmp_path) == [existing]
    assert (tmp_path / existing).read_text() == "mine"
    run(overwrite=True)
    assert len(_arrays(tmp_path / existing)["terminals"]) == 5


# ------------------------------------------------------------------------------ what goes wrong


@pytest.mark.parametrize("error", [KeyboardInterrupt, RuntimeError])
def test_failure_leaves_nothing(error, tmp_path, monkeypatch):
    original, calls = collect._collect_episode, []

    def fail(*args):
        calls.append(args)
        if len(calls) == 2:
            raise error("stop")
        return original(*args)

    monkeypatch.setattr(collect, "_collect_episode", fail)
    with pytest.raises(error, match="stop"):
        collect_dataset(
            "pointmaze-medium-navigate-v0",
            tmp_path / "a.npz",
            num_episodes=3,
            episode_steps=5,
            num_workers=1,
        )
    assert _folder(tmp_path) == []


def test_failure_while_writing_leaves_nothing(tmp_path, monkeypatch):
    def fail(file, **arrays):
        file.write(b"half")
        raise OSError("disk full")

    monkeypatch.setattr(np, "savez_compressed", fail)
    with pytest.raises(OSError, match="disk full"):
        collect_dataset(
            "pointmaze-medium-navigate-v0",
            tmp_path / "a.npz",
            num_episodes=1,
            episode_steps=5,
            num_workers=1,
        )
    assert _folder(tmp_path) == []


def test_stale_partial_files_are_removed(tmp_path):
    old, fresh = tmp_path / ".a.npz.0.partial", tmp_path / ".a.npz.1.partial"
    for path in (old, fresh):
        path.write_bytes(b"")
    os.utime(old, (0, time.time() - 1e5))
    collect_dataset(
        "pointmaze-medium-navigate-v0",
        tmp_path / "a.npz",
        num_episodes=1,
        episode_steps=5,
        num_workers=1,
    )
    assert _folder(tmp_path) == [".a.npz.1.partial", "a-val.npz", "a.npz"]


def test_worker_error_reaches_the_parent():
    job = collect._Job(DatasetName("cube-none", "play"), 5, 0)
    with pytest.raises(gymnasium.error.UnregisteredEnv) as caught:
        list(collect._episodes(job, [(0, 0), (0, 1)], 2))
    assert "_make_collector" in str(caught.value.__cause__)  # the worker's traceback


SCRIPT = """
import json, signal, sys
from floq_eqx.data import collect_dataset

if {guard}:
    # A suite in the background hands on that it ignores this.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    collect_dataset("cube-single-play-v0", sys.argv[1], num_workers=2, num_episodes=1000)
"""


def _group(leader):
    """The living processes of a process group, from Linux's /proc."""
    alive = []
    for stat in Path("/proc").glob("[0-9]*/stat"):
        try:
            state, _, group = stat.read_text().rsplit(")", 1)[1].split()[:3]
        except OSError:
            continue
        if int(group) == leader and state != "Z":
            alive.append(int(stat.parent.name))
    return alive


def _wait(condition, process=None):
    """Until it holds, or the process that is to make it hold has ended."""
    while not condition() and (process is None or process.poll() is None):
        time.sleep(0.1)
    return condition()


@pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="reads Linux's /proc")
@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGINT, signal.SIGTERM])
def test_killed_collection(number, tmp_path):
    """Whether killed or interrupted, no worker goes on and no file has its final name."""
    script = tmp_path / "script.py"
    script.write_text(SCRIPT.format(guard="__name__ == '__main__'"))
    out = tmp_path / "out"
    out.mkdir()
    process = subprocess.Popen(
        [sys.executable, script, out / "a.npz"],
        start_new_session=True,
        stderr=subprocess.PIPE,
        text=True,
        env=ENVIRONMENT,
    )
    try:
        # The leader, two workers, and multiprocessing's resource tracker.
        assert _wait(lambda: len(_group(process.pid)) >= 4, process)
        time.sleep(1.0)
        if number != signal.SIGKILL:
            os.killpg(process.pid, number)  # as a terminal and a scheduler do
        else:
            process.send_signal(number)
        _, errors = process.communicate()
        assert process.returncode != 0
        assert _wait(lambda: not _group(process.pid))
        assert "SpawnProcess" not in errors  # no traceback for each worker
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()
    assert _folder(out) == []


def test_script_without_guard(tmp_path):
    script = tmp_path / "script.py"
    script.write_text(SCRIPT.format(guard="True"))
    result = subprocess.run(
        [sys.executable, script, tmp_path / "a.npz"],
        capture_output=True,
        text=True,
        env=ENVIRONMENT,
    )
    assert result.returncode != 0
    assert "lacks `if __name__ == '__main__':`" in result.stderr
    assert _folder(tmp_path) == ["script.py"]


def test_import_is_light():
    code = (
        "import json, sys, floq_eqx.data; "
        "print(json.dumps([m for m in ('ogbench', 'mujoco', 'gymnasium', 'matplotlib') "
        "if m in sys.modules]))"
    )
    result = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, env=ENVIRONMENT
    )
    assert json.loads(result.stdout) == []
