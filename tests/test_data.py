"""Transitions, and OGBench's names, environments and files."""

import contextlib
import dataclasses
import functools
import http.server
import inspect
import re
import threading
import warnings
import zipfile

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import ogbench
import pytest

from floq_eqx.data import (
    Batch,
    DatasetName,
    check_batch,
    check_data,
    collect_dataset,
    dataset_names,
    fetch_dataset,
    load_dataset,
    make_environment,
    parse_name,
    reward_range,
    sample,
    take,
)
from floq_eqx.evaluation import make_environments
from floq_eqx.training import TrainConfig

MAZE = "pointmaze-medium-navigate-singletask-task1-v0"
MAZE_DATASET = "pointmaze-medium-navigate-v0"
CUBE = "cube-single-play-singletask-task1-v0"

# ----------------------------------------------------------------------------------- transitions


@pytest.fixture
def batch():
    n = 6
    return Batch(
        observation=jnp.arange(2.0 * n).reshape(n, 2),
        action=jnp.linspace(-1.0, 1.0, n)[:, None],
        reward=jnp.arange(float(n)) - n,
        mask=jnp.ones(n),
        next_observation=jnp.arange(2.0 * n).reshape(n, 2) + 1.0,
    )


def test_take(batch):
    taken = take(batch, jnp.array([4, 0, 4]))
    assert len(taken) == 3
    assert taken.next_action is None
    np.testing.assert_array_equal(taken.reward, [-2.0, -6.0, -2.0])
    np.testing.assert_array_equal(taken.observation, [[8.0, 9.0], [0.0, 1.0], [8.0, 9.0]])


def test_sample(batch):
    draw = eqx.filter_jit(sample)
    drawn = draw(batch, 4096, key=jax.random.key(0))
    # Whole rows, all of them, about equally often.
    np.testing.assert_array_equal(drawn.next_observation, drawn.observation + 1.0)
    values, counts = np.unique(np.asarray(drawn.reward), return_counts=True)
    np.testing.assert_array_equal(values, batch.reward)
    assert np.abs(counts / 4096 - 1 / 6).max() < 0.03
    again = draw(batch, 4096, key=jax.random.key(0))
    assert eqx.tree_equal(drawn, again)
    other = draw(batch, 4096, key=jax.random.key(1))
    assert not eqx.tree_equal(drawn, other)


def test_sample_refuses(batch):
    with pytest.raises(ValueError, match="at least 1, got 0"):
        sample(batch, 0, key=jax.random.key(0))
    with pytest.raises(ValueError, match="without transitions"):
        sample(take(batch, jnp.zeros(0, int)), 2, key=jax.random.key(0))


def test_check_data(batch):
    check_data(batch)
    check_data(eqx.tree_at(lambda b: b.next_action, batch, batch.action, is_leaf=_is_none))


def _is_none(x):
    return x is None


@pytest.mark.parametrize(
    "field", ["observation", "action", "reward", "mask", "next_observation", "next_action"]
)
@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_check_data_names_the_field(field, value, batch):
    batch = eqx.tree_at(lambda b: b.next_action, batch, batch.action, is_leaf=_is_none)
    array = getattr(batch, field)
    broken = array.at[(3,) + (0,) * (array.ndim - 1)].set(value)
    batch = eqx.tree_at(lambda b: getattr(b, field), batch, broken)
    with pytest.raises(ValueError, match=f"`{field}` is NaN or infinite in 1 of 6.*number 3"):
        check_data(batch)


def test_check_data_refuses(batch):
    with pytest.raises(ValueError, match="no transitions"):
        check_data(take(batch, jnp.zeros(0, int)))
    with pytest.raises(ValueError, match=r"\[-1, 1\], got 2"):
        check_data(eqx.tree_at(lambda b: b.action, batch, 2.0 * batch.action))
    # A number that is rounded must not contradict the message.
    barely = batch.action.at[2].set(jnp.nextafter(jnp.float32(1), jnp.float32(2)))
    with pytest.raises(ValueError, match=r"\[-1, 1\], got 1\.0000001 in 1 of 6 .* number 2"):
        check_data(eqx.tree_at(lambda b: b.action, batch, barely))
    for value in (-0.5, 1.5):
        masks = batch.mask.at[4].set(value)
        message = rf"\[0, 1\], got {value} in 1 of 6 .* number 4: a mask is 0"
        with pytest.raises(ValueError, match=message):
            check_data(eqx.tree_at(lambda b: b.mask, batch, masks))


MISSHAPEN = [
    ("action", lambda a: a[:4], r"`action` has the shape \(4, 1\), expected \(6, 1\)"),
    ("action", lambda a: a[:, 0], r"`action` has the shape \(6,\), expected \(transitions, comp"),
    ("observation", lambda a: a[..., None], r"`observation` has the shape \(6, 2, 1\)"),
    ("observation", lambda a: a[0, 0], r"`observation` has the shape \(\), expected \(trans"),
    ("observation", lambda a: a[:5], r"`action` has the shape \(6, 1\), expected \(5, 1\)"),
    ("reward", lambda a: a[:, None], r"`reward` has the shape \(6, 1\), expected \(6,\): give one"),
    ("reward", lambda a: a[:3], r"`reward` has the shape \(3,\), expected \(6,\)"),
    ("reward", lambda a: 0.0, "`reward` must be an array, got float"),
    ("mask", lambda a: a[:, None], r"`mask` has the shape \(6, 1\)"),
    ("mask", lambda a: a > 0, r"`mask` is of type bool, .* mask.astype\(jnp.float32\)"),
    ("next_observation", lambda a: a[:, :1], r"\(6, 2\): .* of the components of `observation`"),
    ("next_action", lambda a: a.repeat(2, 1), r"\(6, 1\): .* of the components of `action`"),
    ("observation", lambda a: a.astype(np.uint8), "`observation` is of type uint8"),
    ("action", lambda a: a.astype(int), "`action` is of type int.*convert it to float32"),
]


@pytest.mark.parametrize(("field", "change", "message"), MISSHAPEN)
def test_misshapen_batches(field, change, message, batch):
    batch = eqx.tree_at(lambda b: b.next_action, batch, batch.action, is_leaf=_is_none)
    check_batch(batch)
    # Not with `Batch(...)`, whose types are checked here, though not where people use it.
    bad = eqx.tree_at(lambda b: getattr(b, field), batch, change(getattr(batch, field)))
    for check in (check_batch, check_data, lambda b: sample(b, 2, key=jax.random.key(0))):
        with pytest.raises(ValueError, match=message):
            check(bad)
    with pytest.raises(ValueError, match=message):  # and where there are no values
        eqx.filter_eval_shape(lambda b: check_batch(b) or 0, bad)


def test_no_batch_of_lost_rows(batch):
    """JAX takes the last row for every index beyond an array's end."""
    with pytest.raises(ValueError, match="as many as `observation` has"):
        sample(eqx.tree_at(lambda b: b.action, batch, batch.action[:5]), 2, key=jax.random.key(0))


def test_reward_range(batch):
    assert reward_range(batch) == (-6.0, -1.0)
    with pytest.raises(ValueError, match=r"All 6 rewards are equal \(-1.0\)"):
        reward_range(eqx.tree_at(lambda b: b.reward, batch, -jnp.ones(6)))


# ----------------------------------------------------------------------------------------- names


@pytest.mark.parametrize(
    ("name", "parsed", "dataset", "environment_id", "family"),
    [
        (
            "cube-single-play-v0",
            DatasetName("cube-single", "play"),
            "cube-single-play-v0",
            "cube-single-v0",
            "cube",
        ),
        (
            "cube-double-noisy-singletask-v0",
            DatasetName("cube-double", "noisy", 0),
            "cube-double-noisy-v0",
            "cube-double-singletask-v0",
            "cube",
        ),
        (
            "antmaze-large-explore-singletask-task5-v0",
            DatasetName("antmaze-large", "explore", 5),
            "antmaze-large-explore-v0",
            "antmaze-large-singletask-task5-v0",
            "antmaze",
        ),
        (
            "scene-play-singletask-task2-v0",
            DatasetName("scene", "play", 2),
            "scene-play-v0",
            "scene-singletask-task2-v0",
            "scene",
        ),
    ],
)
def test_parse_name(name, parsed, dataset, environment_id, family):
    got = parse_name(name)
    assert got == parsed
    assert str(got) == name
    assert got.dataset == dataset
    assert got.environment_id == environment_id
    assert got.family == family


def test_every_name_is_registered():
    import gymnasium

    names = dataset_names()
    assert len(names) > 400
    for name in names:
        assert str(parse_name(name)) == name
        gymnasium.spec(parse_name(name).environment_id)
    assert "antmaze-giant-explore-v0" not in names


@pytest.mark.parametrize(
    ("name", "near"),
    [
        ("cube-singel-play-v0", "cube-single-play-v0"),
        ("cube-single-navigate-v0", "cube-single-noisy-v0|cube-single-play-v0"),
        ("cube-single-play-singletask-task6-v0", "cube-single-play-singletask-task"),
        ("cube-single-v0", "cube-single-play-v0"),
    ],
)
def test_unknown_name(name, near):
    with pytest.raises(ValueError, match=f"Did you mean .*({near})"):
        parse_name(name)


def test_hopeless_name():
    with pytest.raises(ValueError, match=r"expected an OGBench name.*v0\.$"):
        parse_name("!")


# ---------------------------------------------------------------------------------- environments


@pytest.mark.parametrize(("timing", "expected"), [(None, "pre"), ("pre", "pre"), ("post", "post")])
@pytest.mark.parametrize("name", [MAZE, CUBE])
def test_make_environment(name, timing, expected):
    """Made and used under warnings as errors, which OGBench's own environments do not stand."""
    with contextlib.closing(make_environment(name, success_timing=timing)) as env:
        assert env.unwrapped._success_timing == expected
        env.action_space.seed(3)
        first = env.action_space.sample()
        env.action_space.seed(3)
        np.testing.assert_array_equal(env.action_space.sample(), first)
        observation, _ = env.reset(seed=0)
        assert observation.shape == env.observation_space.shape
        _, reward, _, _, info = env.step(first)
        assert reward == -1.0
        assert not info["success"]
        assert env.spec.max_episode_steps == {MAZE: 1000, CUBE: 200}[name]


def test_success_timing_differs():
    """After a step onto the goal, only "post" has noticed."""
    rewards = {}
    for timing in ("pre", "post"):
        with contextlib.closing(make_environment(MAZE, success_timing=timing)) as env:
            env.reset(seed=0)
            maze = env.unwrapped
            maze.set_xy(np.asarray(maze.cur_goal_xy) + np.array([1.1, 0.0]))
            _, rewards[timing], _, _, _ = env.step(np.array([-1.0, 0.0], np.float32))
    assert rewards == {"pre": -1.0, "post": 0.0}


def test_bad_success_timing():
    with pytest.raises(ValueError, match="'pre', 'post' or None, got 'later'"):
        # The type checker, which the test configuration turns on, would refuse it first.
        inspect.unwrap(make_environment)(MAZE, success_timing="later")


# ------------------------------------------------------------------------------------ good files


@pytest.fixture(scope="module")
def maze_file(tmp_path_factory):
    return collect_dataset(
        MAZE_DATASET,
        tmp_path_factory.mktemp("maze") / f"{MAZE_DATASET}.npz",
        num_episodes=20,
        episode_steps=300,
        num_workers=1,
    )


def _reference(name, path):
    """What OGBench itself makes of the file."""
    with warnings.catch_warnings():
        # Its environments warn of a missing screen and of float32 bounds.
        warnings.simplefilter("ignore")
        env, *splits = ogbench.make_env_and_datasets(name, dataset_path=str(path))
        env.close()
    return splits


@pytest.mark.parametrize("validation", [False, True])
def test_load_agrees_with_ogbench(maze_file, validation):
    reference = _reference(MAZE, maze_file)[validation]
    data = load_dataset(MAZE, path=maze_file, validation=validation)
    assert len(data) == (2 if validation else 20) * 299
    for field, key in {
        "observation": "observations",
        "reward": "rewards",
        "mask": "masks",
        "next_observation": "next_observations",
    }.items():
        array = getattr(data, field)
        assert isinstance(array, jax.Array)
        assert array.dtype == jnp.float32
        np.testing.assert_array_equal(array, reference[key])
    np.testing.assert_allclose(data.action, reference["actions"], atol=1.01e-5)
    assert float(jnp.abs(data.action).max()) == np.float32(1.0 - 1e-5)
    assert data.next_action is None
    if not validation:
        assert reward_range(data) == (-1.0, 0.0)


def test_next_action(maze_file):
    data = load_dataset(MAZE, path=maze_file, with_next_action=True)
    with np.load(maze_file) as file:
        actions = file["actions"].reshape(20, 300, 2)
    expected = np.clip(actions[:, 1:].reshape(-1, 2), -1.0 + 1e-5, 1.0 - 1e-5)
    np.testing.assert_array_equal(data.next_action, expected)


def test_load_from_directory(maze_file):
    here = load_dataset(MAZE, directory=maze_file.parent)
    assert eqx.tree_equal(here, load_dataset(MAZE, path=str(maze_file)))


def test_cube_rewards(tmp_path):
    """A cube on its target, and only there, gives reward 0 and no bootstrap."""
    with contextlib.closing(make_environment(CUBE)) as env:
        env.reset()
        goal = env.unwrapped.task_infos[0]["goal_xyzs"][0]
    rng = np.random.default_rng(0)
    qpos = np.zeros((6, 21), np.float32)
    qpos[:, 14:17] = goal + np.array([0.2, 0.0, 0.0])
    qpos[2, 14:17] = goal + np.array([0.03, 0.0, 0.0])
    np.savez_compressed(
        tmp_path / "a.npz",
        observations=rng.normal(size=(6, 28)).astype(np.float32),
        actions=rng.uniform(-1.0, 1.0, size=(6, 5)).astype(np.float32),
        terminals=np.array([0, 0, 0, 0, 0, 1], bool),
        qpos=qpos,
        qvel=np.zeros((6, 20), np.float32),
    )
    data = load_dataset(CUBE, path=tmp_path / "a.npz")
    np.testing.assert_array_equal(data.reward, [-1.0, -1.0, 0.0, -1.0, -1.0])
    np.testing.assert_array_equal(data.mask, [1.0, 1.0, 0.0, 1.0, 1.0])


def test_sparse_rewards(tmp_path):
    """-1 unless the whole puzzle is solved, in the data and in the environment."""
    name, rng = "puzzle-3x3-play-singletask-v0", np.random.default_rng(0)
    with contextlib.closing(make_environment(name)) as env:
        env.reset()
        sizes = env.unwrapped.model.nq, env.unwrapped.model.nv
        goal = env.unwrapped._target_button_states
        _, reward, *_ = env.step(np.zeros(5, np.float32))
    assert reward < -1
    buttons = rng.integers(0, 2, (40, 9))
    buttons[3] = goal
    np.savez(
        tmp_path / "a.npz",
        observations=rng.normal(size=(40, 55)).astype(np.float32),
        actions=rng.uniform(-1.0, 1.0, size=(40, 5)).astype(np.float32),
        terminals=np.arange(40) == 39,
        qpos=np.zeros((40, sizes[0]), np.float32),
        qvel=np.zeros((40, sizes[1]), np.float32),
        button_states=buttons,
    )
    counted = load_dataset(name, path=tmp_path / "a.npz")
    sparse = load_dataset(name, path=tmp_path / "a.npz", sparse=True)
    assert float(counted.reward.min()) < -1
    assert sparse.reward.tolist() == [-1.0 if r else 0.0 for r in counted.reward.tolist()]
    assert sparse.reward.tolist().count(0.0) >= 1
    assert eqx.tree_equal(sparse, dataclasses.replace(counted, reward=sparse.reward))
    with contextlib.closing(make_environment(name, sparse=True)) as env:
        env.reset()
        assert env.step(np.zeros(5, np.float32))[1] == -1.0
    with pytest.raises(ValueError, match="leave it out with rewards='file'"):
        load_dataset(name, path=tmp_path / "a.npz", rewards="file", sparse=True)
    with pytest.raises(ValueError, match=r"sparse = True means nothing: Pendulum-v1"):
        make_environments("Pendulum-v1", 1, sparse=True)
    with pytest.raises(ValueError, match="these are the file's"):
        TrainConfig(environment=name, rewards="file", data="a.npz", sparse=True)


# ------------------------------------------------------------------------------------- bad files


@pytest.fixture
def arrays():
    rng = np.random.default_rng(0)
    n = 8
    return {
        "observations": rng.normal(size=(n, 2)).astype(np.float32),
        "actions": rng.uniform(-1.0, 1.0, size=(n, 2)).astype(np.float32),
        "terminals": np.array([0, 0, 0, 1, 0, 0, 0, 1], bool),
        "qpos": rng.normal(size=(n, 2)).astype(np.float32),
        "qvel": rng.normal(size=(n, 2)).astype(np.float32),
    }


def _load(path, arrays):
    np.savez_compressed(path, **arrays)
    return load_dataset(MAZE, path=path)


def test_the_arrays_are_good(arrays, tmp_path):
    assert len(_load(tmp_path / "a.npz", arrays)) == 6
    del arrays["qvel"]
    arrays["actions"] = arrays["actions"].astype(np.float64)
    assert _load(tmp_path / "b.npz", arrays).action.dtype == jnp.float32


def test_missing_file(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"collect_dataset.*or fetch it"):
        load_dataset(MAZE, path=tmp_path / "a.npz")
    ant = "antmaze-medium-navigate-singletask-v0"
    with pytest.raises(FileNotFoundError, match=r"antmaze-medium-navigate-v0\.npz: fetch it"):
        load_dataset(ant, directory=tmp_path)


def test_names_without_rewards():
    with pytest.raises(ValueError, match=r"no rewards.*pointmaze-medium-navigate-singletask-task1"):
        load_dataset(MAZE_DATASET)
    with pytest.raises(ValueError, match="image observations"):
        load_dataset("visual-cube-single-play-singletask-v0")


def test_path_and_directory(tmp_path):
    with pytest.raises(ValueError, match="not both"):
        load_dataset(MAZE, path=tmp_path / "a.npz", directory=tmp_path)


@pytest.mark.parametrize("content", [b"", b"<html>not found</html>", b"PK\x03\x04" + bytes(200)])
def test_not_an_archive(content, tmp_path):
    path = tmp_path / "a.npz"
    path.write_bytes(content)
    with pytest.raises(ValueError, match=r"not an intact .npz.*Move it elsewhere") as caught:
        load_dataset(MAZE, path=path)
    assert not re.search("remove|delete", str(caught.value), re.IGNORECASE)
    assert path.read_bytes() == content


@pytest.mark.parametrize("keep", [0.3, 0.9, 0.999])
def test_truncated(keep, arrays, tmp_path):
    path = tmp_path / "a.npz"
    np.savez_compressed(path, **arrays)
    content = path.read_bytes()
    path.write_bytes(content[: int(keep * len(content))])
    with pytest.raises(ValueError, match=r"not an intact .npz"):
        load_dataset(MAZE, path=path)


@pytest.mark.parametrize("save", [np.savez, np.savez_compressed])
def test_flipped_byte(save, arrays, tmp_path):
    arrays["qpos"] = np.zeros((8, 2), np.float32)
    path = tmp_path / "a.npz"
    save(path, **arrays)
    with zipfile.ZipFile(path) as archive:
        info = archive.getinfo("observations.npy")
    content = bytearray(path.read_bytes())
    # The last byte of the first member's data: 30 bytes of local header, name, extra field.
    extra = int.from_bytes(content[info.header_offset + 28 : info.header_offset + 30], "little")
    end = info.header_offset + 30 + len(info.filename) + extra + info.compress_size
    content[end - 3] ^= 0xFF
    path.write_bytes(content)
    with pytest.raises(ValueError, match=r"corrupt|not an intact"):
        load_dataset(MAZE, path=path)


def test_pickled_objects_are_never_loaded(arrays, tmp_path):
    class Trap:
        def __reduce__(self):
            return (pytest.fail, ("the pickle was loaded",))

    arrays["terminals"] = np.array([Trap()] * 8, dtype=object)
    with pytest.raises(ValueError, match=r"`terminals` is of type object.*never loaded"):
        _load(tmp_path / "a.npz", arrays)


def test_text_is_refused(arrays, tmp_path):
    arrays["actions"] = np.array([["a", "b"]] * 8)
    with pytest.raises(ValueError, match="`actions` is of type <U1, expected numbers"):
        _load(tmp_path / "a.npz", arrays)


@pytest.mark.parametrize("rows", [9, 10**13])
@pytest.mark.parametrize("compression", [zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED])
def test_absurd_header(compression, rows, arrays, tmp_path):
    """A header that announces terabytes must be found out before memory is taken."""
    path = tmp_path / "a.npz"
    with zipfile.ZipFile(path, "w", compression) as archive:
        for key, value in arrays.items():
            with archive.open(f"{key}.npy", "w") as member:
                shape = (rows, 2) if key == "qpos" else value.shape
                header = {
                    "descr": np.lib.format.dtype_to_descr(value.dtype),
                    "fortran_order": False,
                    "shape": shape,
                }
                np.lib.format.write_array_header_1_0(member, header)
                member.write(value.tobytes())
    with pytest.raises(ValueError, match=rf"`qpos` announces \({rows}, 2\)"):
        load_dataset(MAZE, path=path)


def test_absurd_header_and_archive(arrays, tmp_path):
    """Nor does it help if the archive's directory lies as well."""
    path = tmp_path / "a.npz"
    rows = 2**27
    arrays["qpos"] = np.zeros((8, 2), np.float32)
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for key, value in arrays.items():
            with archive.open(f"{key}.npy", "w") as member:
                header = {
                    "descr": np.lib.format.dtype_to_descr(value.dtype),
                    "fortran_order": False,
                    "shape": (rows, 2) if key == "qpos" else value.shape,
                }
                np.lib.format.write_array_header_1_0(member, header)
                member.write(value.tobytes())
        info = archive.getinfo("qpos.npy")
        info.file_size = 128 + rows * 8
    with zipfile.ZipFile(path) as archive:
        assert archive.getinfo("qpos.npy").file_size == 128 + rows * 8
    with pytest.raises(ValueError, match="`qpos` announces"):
        load_dataset(MAZE, path=path)


@pytest.mark.parametrize("key", ["observations", "actions", "terminals", "qpos"])
def test_missing_key(key, arrays, tmp_path):
    del arrays[key]
    with pytest.raises(ValueError, match=f"lacks {key}; it has .*qvel"):
        _load(tmp_path / "a.npz", arrays)


def test_missing_button_states(arrays, tmp_path):
    np.savez_compressed(tmp_path / "a.npz", **arrays)
    with pytest.raises(ValueError, match="lacks button_states"):
        load_dataset("puzzle-3x3-play-singletask-v0", path=tmp_path / "a.npz")


def test_no_steps(arrays, tmp_path):
    with pytest.raises(ValueError, match="holds no steps"):
        _load(tmp_path / "a.npz", {key: value[:0] for key, value in arrays.items()})


def test_no_transitions(arrays, tmp_path):
    arrays["terminals"][:] = True
    with pytest.raises(ValueError, match="holds no transitions"):
        _load(tmp_path / "a.npz", arrays)


@pytest.mark.parametrize(
    ("key", "shape"),
    [
        ("observations", (8, 3)),
        ("actions", (8, 5)),
        ("actions", (8,)),
        ("terminals", (8, 1)),
        ("qpos", (8, 15)),
        ("qvel", (8, 3)),
    ],
)
def test_wrong_shape(key, shape, arrays, tmp_path):
    arrays[key] = np.zeros(shape, arrays[key].dtype)
    with pytest.raises(ValueError, match=f"`{key}` has shape .*expected .*another environment"):
        _load(tmp_path / "a.npz", arrays)


@pytest.mark.parametrize("key", ["observations", "actions", "terminals", "qpos", "qvel"])
def test_wrong_length(key, arrays, tmp_path):
    arrays[key] = arrays[key][:-1]
    with pytest.raises(ValueError, match=f"differ in length.*'{key}': 7"):
        _load(tmp_path / "a.npz", arrays)


@pytest.mark.parametrize("value", [np.nan, np.inf])
@pytest.mark.parametrize("key", ["observations", "actions", "qpos"])
def test_not_finite(key, value, arrays, tmp_path):
    arrays[key][5, 1] = value
    with pytest.raises(ValueError, match=f"`{key}` is NaN or infinite in 1 of 8.*number 5"):
        _load(tmp_path / "a.npz", arrays)


def test_large_actions(arrays, tmp_path):
    arrays["actions"][1, 0] = 3.0
    with pytest.raises(ValueError, match=r"\[-1, 1\], got 3"):
        _load(tmp_path / "a.npz", arrays)


def test_trajectory_without_end(arrays, tmp_path):
    arrays["terminals"][-1] = False
    with pytest.raises(ValueError, match="last trajectory has no end"):
        _load(tmp_path / "a.npz", arrays)


def test_terminals_are_flags(arrays, tmp_path):
    arrays["terminals"] = arrays["terminals"].astype(np.float32)
    arrays["terminals"][0] = 0.5
    with pytest.raises(ValueError, match="must be 0 or 1"):
        _load(tmp_path / "a.npz", arrays)


# -------------------------------------------------------------------------- rewards of the file


def test_rewards_of_a_file_are_not_dropped_in_silence(arrays, tmp_path):
    task = _load(tmp_path / "a.npz", arrays)
    valid = ~arrays["terminals"]
    own = {"rewards": np.full(8, -1.0), "masks": np.ones(8, bool)}
    assert (task.reward == -1).all()  # so these are the task's, and nothing is to be said
    assert eqx.tree_equal(_load(tmp_path / "b.npz", arrays | own), task)
    own["rewards"][[1, 3, 6]], own["masks"][5] = 7.0, False  # 3 is the last of its trajectory
    message = "`rewards` of 2 of 6 transitions and `masks` of 1 of 6 .* not used.*--rewards file"
    with pytest.warns(UserWarning, match=message) as caught:
        assert eqx.tree_equal(_load(tmp_path / "c.npz", arrays | own), task)
    assert len(caught) == 1
    with pytest.warns(UserWarning, match="`rewards` of 6 of 6 transitions are not"):
        _load(tmp_path / "d.npz", arrays | {"rewards": np.full((8, 1), -1.0)})
    data = load_dataset(MAZE, path=tmp_path / "c.npz", rewards="file")
    np.testing.assert_array_equal(data.reward, own["rewards"][valid])
    np.testing.assert_array_equal(data.mask, own["masks"][valid])
    assert data.reward.dtype == data.mask.dtype == jnp.float32
    np.testing.assert_array_equal(data.next_observation, task.next_observation)


@pytest.mark.parametrize("name", [MAZE, MAZE_DATASET])
def test_rewards_of_a_file_alone(name, arrays, tmp_path):
    """Neither masks nor what a task is told by are needed, nor a task."""
    del arrays["qpos"], arrays["qvel"]
    arrays["rewards"] = np.arange(8)
    arrays["rewards"] = np.where(arrays["terminals"], np.nan, arrays["rewards"])
    np.savez(tmp_path / "a.npz", **arrays)
    data = load_dataset(name, path=tmp_path / "a.npz", rewards="file")
    np.testing.assert_array_equal(data.reward, [0, 1, 2, 4, 5, 6])
    np.testing.assert_array_equal(data.mask, np.ones(6))


@pytest.mark.parametrize(
    ("own", "message"),
    [
        ({}, "lacks rewards; .* needs .*rewards with the rewards of the file"),
        ({"masks": np.ones(8)}, "lacks rewards"),
        ({"rewards": np.ones((8, 1))}, r"`rewards` has shape \(8, 1\), expected one number a step"),
        ({"rewards": np.ones(7)}, "differ in length.*'rewards': 7"),
        ({"rewards": np.ones(8), "masks": np.ones(9)}, "differ in length.*'masks': 9"),
        (
            {"rewards": np.array([0, 1, 2, 3, 4, np.nan, np.inf, 7])},
            "`rewards` is NaN or infinite in 2 of 6 transitions, first nan in step number 5",
        ),
        ({"rewards": np.full(8, 1e39)}, "`rewards` is NaN or infinite in 6 of 6"),
        (
            {"rewards": np.ones(8), "masks": np.array([0, 0, 1, 0, 1, 2, 1, 1])},
            r"`masks` is outside \[0, 1\] in 1 of 6 transitions, first 2.0 in step number 5",
        ),
    ],
)
def test_bad_rewards_of_a_file(own, message, arrays, tmp_path):
    np.savez(tmp_path / "a.npz", **arrays, **own)
    with pytest.raises(ValueError, match=message):
        load_dataset(MAZE, path=tmp_path / "a.npz", rewards="file")


def test_rewards_of_another_kind(arrays, tmp_path):
    with pytest.raises(ValueError, match="rewards must be 'task' or 'file', got 'own'"):
        inspect.unwrap(load_dataset)(MAZE, path=tmp_path / "a.npz", rewards="own")


# ------------------------------------------------------------------------------------- fetching


class _Handler(http.server.SimpleHTTPRequestHandler):
    def log_message(self, format, *args):
        pass


class _HangsUp(_Handler):
    """Announces the whole file, sends half of it, and closes."""

    def copyfile(self, source, outputfile):
        content = source.read()
        outputfile.write(content[: len(content) // 2])


@contextlib.contextmanager
def _serve(folder, handler=_Handler):
    with http.server.ThreadingHTTPServer(
        ("127.0.0.1", 0), functools.partial(handler, directory=str(folder))
    ) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        try:
            yield f"http://127.0.0.1:{server.server_port}"
        finally:
            server.shutdown()
            thread.join()


def _folder(path):
    return sorted(item.name for item in path.iterdir())


BOTH = [f"{MAZE_DATASET}-val.npz", f"{MAZE_DATASET}.npz"]


def test_fetch_over_http(maze_file, tmp_path):
    with _serve(maze_file.parent) as address:
        path = fetch_dataset(MAZE, tmp_path / "new", mirror=f"{address}/")
    assert path == tmp_path / "new" / f"{MAZE_DATASET}.npz"
    assert _folder(path.parent) == BOTH
    for name in BOTH:
        assert (path.parent / name).read_bytes() == (maze_file.parent / name).read_bytes()
    # The server is gone: what is there already is not fetched again.
    assert fetch_dataset(MAZE, tmp_path / "new", mirror=address) == path


def test_load_fetches_from_a_mirror(maze_file, tmp_path):
    mirror = maze_file.parent.as_uri()
    data = load_dataset(MAZE, directory=tmp_path, mirror=mirror)
    assert _folder(tmp_path) == BOTH
    assert eqx.tree_equal(data, load_dataset(MAZE, path=maze_file))


def test_server_hangs_up(maze_file, tmp_path):
    message = r"stopped after \d+ of \d+ bytes.*mirror"
    with (
        _serve(maze_file.parent, _HangsUp) as address,
        pytest.raises(ConnectionError, match=message),
    ):
        fetch_dataset(MAZE, tmp_path, mirror=address)
    assert _folder(tmp_path) == []


def test_file_is_not_on_the_server(tmp_path):
    with (
        _serve(tmp_path) as address,
        pytest.raises(ConnectionError, match=r"404.*collect it with"),
    ):
        fetch_dataset(MAZE, tmp_path / "new", mirror=address)
    with pytest.raises(ConnectionError, match="Could not fetch file:"):
        fetch_dataset(MAZE, tmp_path / "new", mirror=tmp_path.as_uri())
    assert _folder(tmp_path / "new") == []


def test_server_is_down(tmp_path):
    with _serve(tmp_path) as address:
        pass
    with pytest.raises(ConnectionError, match="name a mirror, or fetch it"):
        fetch_dataset("antmaze-large-navigate-v0", tmp_path, mirror=address)
    assert _folder(tmp_path) == []


def test_server_sends_something_else(tmp_path):
    (tmp_path / BOTH[0]).write_text("<html>moved</html>")
    with pytest.raises(ValueError, match="not a dataset: File is not a zip file"):
        fetch_dataset(MAZE, tmp_path / "new", mirror=tmp_path.as_uri())
    assert _folder(tmp_path / "new") == []


def test_corrupt_member_is_not_kept(arrays, tmp_path):
    path = tmp_path / BOTH[0]
    np.savez(path, **{key: np.tile(value, (5000, 1)) for key, value in arrays.items()})
    content = bytearray(path.read_bytes())
    content[len(content) // 4] ^= 0xFF  # amid the numbers, far from any header
    path.write_bytes(content)
    with pytest.raises(ValueError, match="not a dataset"):
        fetch_dataset(MAZE, tmp_path / "new", mirror=tmp_path.as_uri())
    assert _folder(tmp_path / "new") == []


def test_slow_server(tmp_path):
    import socket

    with socket.create_server(("127.0.0.1", 0)) as server:  # accepts, and never answers
        mirror = f"http://127.0.0.1:{server.getsockname()[1]}"
        with pytest.raises(ConnectionError, match="timed out"):
            fetch_dataset(MAZE, tmp_path, mirror=mirror, timeout=0.2)
    assert _folder(tmp_path) == []


@pytest.mark.parametrize(
    ("kwargs", "message"),
    [
        ({"mirror": "ftp://example.org"}, "begins with https:.*got 'ftp:"),
        ({"mirror": "/some/folder"}, "begins with https:"),
        ({"timeout": 0.0}, "timeout must be positive"),
    ],
)
def test_bad_fetch_arguments(kwargs, message, tmp_path):
    with pytest.raises(ValueError, match=message):
        fetch_dataset(MAZE, tmp_path, **kwargs)
