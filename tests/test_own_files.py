"""Own data from files: what is read of them, what is kept, and what is refused."""

import os
import sys
import warnings
import zipfile
from pathlib import Path

import equinox as eqx
import h5py
import numpy as np
import pytest

from floq_eqx.data import Trajectories, files, load_own_data, own_copies, own_files

from .test_faults import limits
from .test_own_data import steps, with_next


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path / "cache" / "floq_eqx" / "own"


WHOLE = steps(ends=(4, 9), terminals=(4, 9))


def write(path, arrays, **options):
    if path.suffix == ".npz":
        np.savez(path, **arrays)
    else:
        with h5py.File(path, "w") as file:
            for name, array in arrays.items():
                file.create_dataset(name, data=array, **options)
    return path


def quiet(path, **options):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return load_own_data(path, **options)


FORMS = {
    "npz": (".npz", {}),
    "hdf5": (".hdf5", {}),
    "chunked": (".h5", {"chunks": True, "maxshape": None}),
    "gzip": (".hdf5", {"compression": "gzip", "shuffle": True, "fletcher32": True}),
    "lzf": (".hdf5", {"compression": "lzf"}),
}


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("arrays", [WHOLE, with_next(steps())], ids=["flags", "next"])
def test_a_file_is_what_its_arrays_are(form, arrays, tmp_path, cache):
    suffix, options = FORMS[form]
    path = write(tmp_path / f"x{suffix}", arrays, **options)
    before, at = path.read_bytes(), path.stat().st_mtime_ns
    expected = Trajectories.from_arrays(**arrays)
    assert eqx.tree_equal(load_own_data(path), expected)
    (copy,) = cache.iterdir()
    assert eqx.tree_equal(load_own_data(str(path)), expected)
    assert (path.read_bytes(), path.stat().st_mtime_ns) == (before, at)
    assert list(cache.iterdir()) == [copy]


def test_it_is_converted_once(tmp_path, monkeypatch, cache):
    path = write(tmp_path / "x.npz", WHOLE)
    expected = load_own_data(path)
    moved = path.rename(tmp_path / "y.npz")
    with monkeypatch.context() as patch:
        patch.setattr(own_files, "checked_steps", pytest.fail)
        assert eqx.tree_equal(load_own_data(moved), expected)
        # Of one copy every box of actions and every reward can be made.
        other = load_own_data(moved, action_low=-2, action_high=2, reward_shift=1.0)
    expected = Trajectories.from_arrays(**WHOLE, action_low=-2, action_high=2, reward_shift=1.0)
    assert eqx.tree_equal(other, expected)
    write(moved, WHOLE | {"rewards": np.arange(10.0)})
    np.testing.assert_array_equal(load_own_data(moved).reward, np.arange(10.0))
    assert len(list(cache.iterdir())) == 2


def test_a_damaged_copy_is_made_again(tmp_path, cache):
    path = write(tmp_path / "x.npz", WHOLE)
    expected = load_own_data(path)
    (copy,) = cache.iterdir()
    whole = copy.read_bytes()
    # The last is among the numbers, where only the checksums tell.
    at = whole.index(WHOLE["rewards"].tobytes())
    for broken in (whole[:-100], b"", whole[:at] + b"xxxx" + whole[at + 4 :]):
        copy.write_bytes(broken)
        with pytest.warns(UserWarning, match="was damaged, and is made again"):
            assert eqx.tree_equal(load_own_data(path), expected)
        assert copy.read_bytes() == whole


def test_no_room_for_the_copy(tmp_path, monkeypatch, cache):
    path = write(tmp_path / "x.npz", WHOLE)

    def full(file, **arrays):
        file.write(b"some")
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(own_copies.np, "savez", full)
        with pytest.raises(OSError, match=r"x.npz, of .* bytes, .*No space.*set XDG_CACHE_HOME"):
            load_own_data(path)
    assert list(cache.iterdir()) == []
    assert len(load_own_data(path)) == 10


def test_a_cache_that_cannot_be(tmp_path, monkeypatch):
    path = write(tmp_path / "x.npz", WHOLE)
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    with pytest.raises(OSError, match="set XDG_CACHE_HOME"):
        load_own_data(path)


def test_the_cache_without_a_variable(monkeypatch):
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setenv("HOME", "/home/me")
    assert files.cache_directory() == Path("/home/me/.cache/floq_eqx")


def test_d4rl(tmp_path):
    """Its layout: terminals and timeouts, groups of infos beside them, the last step cut off."""
    arrays = steps(12, ends=(3, 7), terminals=(3,))
    path = write(tmp_path / "hopper.hdf5", arrays)
    with h5py.File(path, "a") as file:
        file.create_dataset("infos/qpos", data=np.zeros((12, 3)))
        file.create_dataset("metadata/algorithm", data="SAC")
    with pytest.warns(UserWarning, match="2 of 12 steps end a trajectory"):
        data = load_own_data(path)
    assert len(data) == 10
    np.testing.assert_array_equal(data.left, [4, 3, 2, 1, 3, 2, 1, 3, 2, 1])
    np.testing.assert_array_equal(data.mask, [1, 1, 1, 0, 1, 1, 1, 1, 1, 1])


def test_what_is_not_used_is_named(tmp_path):
    for suffix in (".npz", ".hdf5"):
        path = write(tmp_path / f"x{suffix}", WHOLE | {"qpos": np.zeros(10), "dones": np.ones(10)})
        with pytest.warns(UserWarning, match="dones, qpos are not used; what is: observations,"):
            load_own_data(path)


def test_bad_rows_of_a_file(tmp_path, cache):
    rewards = np.where(np.arange(10) == 7, np.nan, 0.0)
    path = write(tmp_path / "x.npz", WHOLE | {"rewards": rewards})
    with pytest.raises(ValueError, match=r"x.npz: `rewards` is NaN.*first in row 7"):
        load_own_data(path)
    assert not cache.exists()
    path = write(tmp_path / "y.npz", WHOLE | {"actions": 2 * np.ones((10, 1))})
    with pytest.raises(ValueError, match=r"y.npz: `actions` are outside.*row 0"):
        load_own_data(path)


def test_no_file(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"no file .*x.hdf5: --data takes"):
        load_own_data(tmp_path / "x.hdf5")
    with pytest.raises(FileNotFoundError, match="--data takes"):
        load_own_data(tmp_path)


def test_without_h5py(tmp_path, monkeypatch):
    path = write(tmp_path / "x.hdf5", WHOLE)
    monkeypatch.setitem(sys.modules, "h5py", None)
    with pytest.raises(ModuleNotFoundError, match=r"pip install floq_eqx\[hdf5\]"):
        load_own_data(path)


def other(path, change):
    """The HDF5 file, changed by a function of it."""
    with h5py.File(path, "a") as file:
        change(file)


def replaced(name, make):
    def change(file):
        del file[name]
        make(file)

    return change


def external(file):
    with h5py.File(Path(file.filename).with_name("other.hdf5"), "w") as other_file:
        other_file["rewards"] = np.zeros(10)
    file["rewards"] = h5py.ExternalLink("other.hdf5", "rewards")


def raw(file):
    path = Path(file.filename).with_name("secret")
    path.write_bytes(bytes(80))
    file.create_dataset("rewards", (10,), "f8", external=[(str(path), 0, 80)])


def virtual(file):
    layout = h5py.VirtualLayout((10,), "f8")
    layout[:] = h5py.VirtualSource("other.hdf5", "rewards", shape=(10,))
    file.create_virtual_dataset("rewards", layout)


def huge_chunk(file):
    dataset = file.create_dataset(
        "rewards", (10,), "f8", maxshape=(None,), chunks=(1 << 28,), compression="gzip"
    )
    del dataset


HOSTILE = {
    "external link": (replaced("rewards", external), "`rewards` is a link to elsewhere"),
    "soft link": (
        replaced("rewards", lambda f: f.__setitem__("rewards", h5py.SoftLink("/terminals"))),
        "`rewards` is a link to elsewhere",
    ),
    "external data": (replaced("rewards", raw), "`rewards` lies in other files"),
    "virtual": (replaced("rewards", virtual), "`rewards` lies in other files"),
    "huge": (
        replaced("rewards", lambda f: f.create_dataset("rewards", (1 << 40,), "f8", chunks=(99,))),
        r"`rewards` announces \(1099511627776,\) of float64, .* but the file holds 0",
    ),
    "huge and packed": (
        replaced(
            "rewards",
            lambda f: f.create_dataset("rewards", (1 << 40,), "f8", compression="gzip"),
        ),
        "`rewards` announces",
    ),
    "huge chunk": (replaced("rewards", huge_chunk), "in chunks of 2147483648"),
    "objects": (
        replaced("rewards", lambda f: f.create_dataset("rewards", data=["a"] * 10)),
        "`rewards` is of type object, expected numbers",
    ),
    "records": (
        replaced("rewards", lambda f: f.create_dataset("rewards", (10,), "f4,i4")),
        "expected numbers",
    ),
    "nothing": (
        replaced("rewards", lambda f: f.create_dataset("rewards", data=h5py.Empty("f4"))),
        "expected numbers",
    ),
    "another filter": (
        replaced(
            "rewards", lambda f: f.create_dataset("rewards", data=np.arange(10), scaleoffset=4)
        ),
        "packed by filter 6, which is not supported",
    ),
    "dict": (
        replaced("observations", lambda f: f.create_dataset("observations/joints", data=[1.0])),
        "`observations` is a group of joints, .*FlattenObservation",
    ),
}


@pytest.mark.parametrize("case", HOSTILE)
def test_hostile_hdf5(case, tmp_path, cache):
    change, message = HOSTILE[case]
    path = write(tmp_path / "x.hdf5", WHOLE)
    other(path, change)
    with limits(), pytest.raises(ValueError, match=rf"(?s)x.hdf5 cannot be read .*{message}"):
        quiet(path)
    assert not cache.exists()


@pytest.mark.parametrize(
    ("group", "hint"), [("data/demo_0", "in groups, data,"), ("episode_0", "--data minari:NAME")]
)
def test_groups_of_another_layout(group, hint, tmp_path):
    path = tmp_path / "x.hdf5"
    with h5py.File(path, "w") as file:
        for name, array in WHOLE.items():
            file[f"{group}/{name}"] = array
    with pytest.raises(ValueError, match="another layout: expected the arrays obs") as caught:
        load_own_data(path)
    assert hint in str(caught.value)


def test_files_that_are_cut_off(tmp_path, cache):
    for suffix in (".npz", ".hdf5"):
        path = write(tmp_path / f"x{suffix}", WHOLE)
        whole = path.read_bytes()
        for length in (0, 3, 9, 100, len(whole) // 2, len(whole) - 1):
            path.write_bytes(whole[:length])
            with limits(), pytest.raises(ValueError, match=f"x{suffix}"):
                quiet(path)
    assert not cache.exists()


def test_other_files(tmp_path):
    for content in (b"a,b\n1,2\n", os.urandom(5000)):
        path = tmp_path / "x.npz"
        path.write_bytes(content)
        with pytest.raises(ValueError, match="nor an HDF5 file, or it is cut off"):
            load_own_data(path)
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("a.txt", "text")
    with pytest.raises(ValueError, match=r"x\.npz is not an intact"):
        load_own_data(path)


def test_pickles_are_not_loaded(tmp_path):
    path = tmp_path / "x.npz"
    np.savez(path, **WHOLE | {"observations": np.array([{"a": 1}] * 10)})
    with pytest.raises(ValueError, match=r"`obs.*` is of type object.* never loaded"):
        load_own_data(path)
