"""Damaged and malicious files: nothing executes, hangs or takes memory; each gives one clear error.

Every case is a file that is made from a good one, from a seed. It must be refused, with a
`ValueError` or an `OSError` that names it, or load as what the good one holds.
"""

import contextlib
import dataclasses
import io
import json
import os
import pickle
import random
import resource
import shutil
import signal
import struct
import subprocess
import sys
import time
import warnings
import zipfile
from collections import Counter
from pathlib import Path

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from floq_eqx import cli, interop
from floq_eqx.data import fetching, files, load_dataset, loading, make_environment, parse_name
from floq_eqx.training import Run, TrainConfig, checkpoints
from floq_eqx.training.gathering import find_data

from .reference import Reference
from .runs import FACTS, small_agent, small_config

MAZE = "pointmaze-medium-navigate-singletask-task1-v0"
SECONDS = 600.0
MEMORY = 2 << 30


@pytest.fixture(params=[1, pytest.param(8, marks=pytest.mark.slow)], ids=["few", "many"])
def effort(request):
    """How many times as many cases to try."""
    return request.param


@contextlib.contextmanager
def limits():
    """Nothing may hang, nor take memory without bound."""

    def late(number, frame):
        pytest.fail("it hangs")

    soft, hard = resource.getrlimit(resource.RLIMIT_AS)
    statm = Path("/proc/self/statm")
    if statm.exists():
        used = int(statm.read_text().split()[0]) * resource.getpagesize()
        resource.setrlimit(resource.RLIMIT_AS, (used + MEMORY, hard))
    before = signal.signal(signal.SIGALRM, late)
    signal.setitimer(signal.ITIMER_REAL, SECONDS)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0.0)
        signal.signal(signal.SIGALRM, before)
        resource.setrlimit(resource.RLIMIT_AS, (soft, hard))


class Fuzz:
    """Tries cases and counts what became of them."""

    def __init__(self):
        self.counts = Counter()

    def __call__(self, load, *, names, harmless):
        """`names` must be in an error; `harmless` says whether what was loaded is good."""
        try:
            with limits():
                loaded = load()
        except (ValueError, OSError) as error:
            text = str(error)
            assert str(names) in text
            assert len(text) < (40_000 if "do not fit the configuration" in text else 2000)
            self.counts["refused"] += 1
        else:
            assert harmless(loaded)
            self.counts["harmless"] += 1


@pytest.fixture
def fuzz(request, capsys, record_property):
    fuzz = Fuzz()
    yield fuzz
    record_property("cases", fuzz.counts.total())
    with capsys.disabled():
        counts = ", ".join(f"{count} {name}" for name, count in sorted(fuzz.counts.items()))
        print(f"\n{request.node.name}: {fuzz.counts.total()} cases ({counts})")


def damaged(content, rng):
    """Bytes with something wrong: cut, flipped, zeroed, moved, repeated."""
    size = len(content)
    start = rng.randrange(size)
    end = min(size, start + rng.choice([1, 4, 64, 1000]))
    part = content[start:end]
    kind = rng.randrange(6)
    if kind == 0:
        return content[:start]
    if kind == 1:
        return content[:start] + bytes(len(part)) + content[end:]
    if kind == 2:
        return content[:start] + rng.randbytes(len(part)) + content[end:]
    if kind == 3:
        return content[:start] + part + content[start:]
    if kind == 4:
        return content[:start] + content[end:]
    flipped = bytearray(content)
    for _ in range(rng.choice([1, 1, 3, 20])):
        flipped[rng.randrange(size)] ^= 1 << rng.randrange(8)
    return bytes(flipped)


class Trap:
    """Makes a file when it is unpickled."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return (os.mkdir, (str(self.path),))


def member(header, data=b"", version=(1, 0)):
    """An array file with a header of any text."""
    text = header.encode() if isinstance(header, str) else header
    length = struct.pack("<H" if version == (1, 0) else "<I", len(text))
    return b"\x93NUMPY" + bytes(version) + length + text + data


def described(shape, descr="'<f4'"):
    return f"{{'descr': {descr}, 'fortran_order': False, 'shape': {shape}, }}\n"


ABSURD_HEADERS = [
    *(described(s) for s in ("(10**15, 2)", "(1000000000000000, 2)", "(9223372036854775808,)")),
    *(described(s) for s in ("(4294967296, 4294967296)", "(-8, 2)", "(-8, -2)", "(8.0, 2)", "8")),
    *(described(s) for s in ("(1e400,)", "()", "(True, True)", "(" * 9000, "-" * 9000 + "1")),
    *(described("(8, 2)", d) for d in ("'|O'", "'O'", "'<U4'", "'|V8'", "'<c8'", "'<M8[s]'")),
    *(described("(8, 2)", d) for d in ("'(1000000000,)f4'", "[('a', '<f4')]", "'|V2000000000'")),
    *(described("(8, 2)", d) for d in ("'nonsense'", "None", "3", "('<f4', (10**9,))", "'<f16'")),
    "__import__('os').mkdir('executed')",
    "{" * 3000,
    "[" * 9000 + "]" * 9000,
    "",
    "\x00\xff\n",
    "{'descr': '<f4', 'fortran_order': False, 'shape': (8, 2), 'shape': (9, 2)}" + " " * 60000,
]
NAMES = ["../../x", "/etc/passwd", "..\\..\\x", "a/../../x", "\u202e", "x" * 60000, "", "."]


def malicious(arrays, trap):
    """Archives in which something other than damage is wrong, as lists of names and bytes."""

    def packed(array):
        file = io.BytesIO()
        np.save(file, array, allow_pickle=True)
        return file.getvalue()

    good = {f"{name}.npy": packed(array) for name, array in arrays.items()}
    first, *_ = good
    array = arrays[first.removesuffix(".npy")]
    pickled = pickle.dumps(Trap(trap))
    odd = [
        pickled,
        b"",
        member(described("(8, 2)", "'|O'"), pickled),
        packed(np.array([Trap(trap)])),
    ]
    odd += [member(header, array.tobytes()) for header in ABSURD_HEADERS]
    odd += [
        member(described(array.shape), array.tobytes(), version) for version in ((2, 0), (9, 9))
    ]
    odd.append(b"\x93NUMPY\x02\x00\xff\xff\xff\xff" + b" " * 1000)
    odd += [
        packed(value)
        for value in (
            np.zeros(()),
            np.zeros((0, 2)),
            np.zeros((8, 2, 1), np.float32),
            np.array(["a"] * 8),
            array.astype(complex),
            array.astype(object),
            array.reshape(-1)[:-1],
            np.full(array.shape, np.nan, np.float32),
            np.full(array.shape, 1e300),
            np.full(array.shape, np.finfo(np.longdouble).max),
        )
    ]
    yield from (list((good | {first: content}).items()) for content in odd)
    for name in NAMES:
        yield [*good.items(), (f"{name}.npy", good[first])]
        yield [(f"{name}.npy" if n == first else n, content) for n, content in good.items()]
    yield [*good.items(), *good.items()]
    yield [*good.items(), (first.removesuffix(".npy"), packed(array * 0))]
    yield [*good.items(), ("more.npy", pickled), ("more.pkl", pickled)]
    yield [*good.items(), *((f"{i}.npy", b"") for i in range(2000))]
    yield []


def archive(path, members, compression=zipfile.ZIP_DEFLATED):
    with warnings.catch_warnings(), zipfile.ZipFile(path, "w", compression) as file:
        warnings.simplefilter("ignore")  # of two members of one name
        for name, content in members:
            file.writestr(name, content)


def bombs(path, arrays):
    """Files that announce, or unpack to, far more than they hold."""
    first = next(iter(arrays))
    good = [
        (f"{name}.npy", member(described(a.shape, repr(a.dtype.str)), a.tobytes()))
        for name, a in arrays.items()
        if name != first
    ]
    rows = 10**7
    for compression in (zipfile.ZIP_DEFLATED, zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA):
        for zeros in (rows * 8, 10):
            content = member(described(f"({rows}, 2)"), bytes(zeros))
            archive(path, [(f"{first}.npy", content), *good], compression)
            yield
    # A directory that lies about every size, and one whose entries share one place.
    archive(path, [(f"{first}.npy", member(described("(1000000000000000, 2)"), bytes(64))), *good])
    content = path.read_bytes()
    for size in (0xFFFFFFFE, 0x7FFFFFFF):
        at = content.index(b"PK\x01\x02") + 20
        path.write_bytes(content[:at] + struct.pack("<II", size, size) + content[at + 8 :])
        yield
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as file:
        file.writestr(f"{first}.npy", member(described("(1000000, 2)"), bytes(8_000_000)))
        info = file.infolist()[0]
        for i in range(20_000):
            again = zipfile.ZipInfo(f"{i}.npy")
            for field in ("compress_type", "CRC", "compress_size", "file_size", "header_offset"):
                setattr(again, field, getattr(info, field))
            file.filelist.append(again)
    yield


# -------------------------------------------------------------------------------------- datasets


@pytest.fixture
def maze(monkeypatch):
    """Arrays of the maze's shapes, with an environment that is made only once."""
    environment = make_environment(MAZE)
    monkeypatch.setattr(loading, "make_environment", lambda name: environment)
    monkeypatch.setattr(environment, "close", lambda: None)
    rng = np.random.default_rng(0)
    terminals = np.zeros(40, bool)
    terminals[[19, 39]] = True
    return {
        "observations": rng.normal(size=(40, 2)).astype(np.float32),
        "actions": rng.uniform(-1, 1, size=(40, 2)).astype(np.float32),
        "terminals": terminals,
        "qpos": rng.normal(size=(40, 2)).astype(np.float32),
        "qvel": rng.normal(size=(40, 2)).astype(np.float32),
    }


def test_datasets(maze, fuzz, effort, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    path, trap = tmp_path / "a.npz", tmp_path / "executed"
    rng = random.Random(0)
    np.savez(path, **maze)
    good = load_dataset(MAZE, path=path)

    def load():
        return load_dataset(MAZE, path=path)

    def same(loaded):
        return eqx.tree_equal(loaded, good)

    for save in (np.savez, np.savez_compressed):
        save(path, **maze)
        content = path.read_bytes()
        for _ in range(60 * effort):
            path.write_bytes(damaged(content, rng))
            fuzz(load, names=path, harmless=same)
    own = {"rewards": rng.choices((-1.0, 0.0), k=40), "masks": rng.choices((0.0, 1.0), k=40)}
    np.savez(path, **maze, **own)
    content, load_own = path.read_bytes(), lambda: load_dataset(MAZE, path=path, rewards="file")
    good_own = load_own()
    for _ in range(20 * effort):
        path.write_bytes(damaged(content, rng))
        fuzz(load_own, names=path, harmless=lambda loaded: eqx.tree_equal(loaded, good_own))
    for key in maze:
        arrays = {key: maze[key]} | maze
        for members in malicious(arrays, trap):
            archive(path, members)
            # Numbers may be others than before, as long as they are numbers.
            fuzz(load, names=path, harmless=lambda data: np.isfinite(data.observation).all())
            if effort == 1 and key != "observations" and rng.random() < 0.7:
                break
        for _ in bombs(path, arrays):
            fuzz(load, names=path, harmless=lambda loaded: False)
            if effort == 1 and key != "observations":
                break
    path.write_bytes(pickle.dumps(Trap(trap)))
    fuzz(load, names=path, harmless=lambda loaded: False)
    np.save(tmp_path / "a.npy", np.array([Trap(trap)]), allow_pickle=True)
    (tmp_path / "a.npy").rename(path)
    fuzz(load, names=path, harmless=lambda loaded: False)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["a.npz"]
    assert fuzz.counts["refused"] > 100 * effort


@pytest.mark.parametrize("name", ["../x", "/etc/passwd", "..\\x", "a\0b", "", "x" * 10**6, "-v0"])
def test_names_of_datasets(name, tmp_path):
    for full in (name, f"{name}/{MAZE}", f"cube-single-play-{name}-v0"):
        with pytest.raises(ValueError, match="Unknown dataset"):
            parse_name(full)
        with pytest.raises(ValueError, match="Unknown dataset"):
            fetching.fetch_dataset(full, tmp_path, mirror=tmp_path.as_uri())


# --------------------------------------------------------------------------------- configurations

VALUES = [
    *("1e400", "-1e400", "NaN", "-1", "0", "0.5", "1" + "0" * 30, "1" + "0" * 5000, '"x"', '""'),
    *("true", "null", "[]", "{}", "[[]]", '[1e400, "x", null]', '{"kind": "mlp"}', '{"kind": []}'),
    *('{"kind": "residual", "num_blocks": 1000000000000}', '{"kind": "mlp", "hidden_sizes": [-1]}'),
    *('{"kind": "residual", "width": "x"}', '{"kind": "mlp", "hidden_sizes": [[8]]}'),
    *('{"kind": "mlp", "hidden_sizes": [1000000000000000]}', "[" * 100_000),
    *('{"kind": "implicit"}', '{"kind": "gaussian"}', '{"num_candidates": 2, "temperature": 1}'),
    '{"kind": "mlp", "hidden_sizes": [' + "8, " * 20_000 + "8]}",
    *('"../../../etc/passwd"', '"\\u0000"', '"' + "x" * 100_000 + '"'),
]


def test_configurations(fuzz, effort, tmp_path, monkeypatch):
    rng = random.Random(0)
    run = Run.create(tmp_path / "run", small_config("x.npz", small_agent("floq")), FACTS)
    path = run.folder / "config.json"
    content = path.read_bytes()

    def load():
        return Run(run.folder)

    def holds(run):
        return isinstance(run.config, TrainConfig)

    for _ in range(100 * effort):
        path.write_bytes(damaged(content, rng))
        fuzz(load, names=path, harmless=holds)
    plain = json.loads(content)
    mark = "here"
    accepted = []
    agent = plain["agent"]
    parts = (plain, agent, agent["critic"], agent["policy"], agent["selection"])
    for where, key in [(part, key) for part in parts for key in part]:
        before = where[key]
        where[key] = mark
        text = json.dumps(plain)
        where[key] = before
        for value in VALUES if effort > 1 else rng.sample(VALUES, 6):
            path.write_text(text.replace(f'"{mark}"', value))
            before = fuzz.counts["harmless"]
            fuzz(load, names=path, harmless=holds)
            if fuzz.counts["harmless"] > before and where is not plain:
                accepted.append(path.read_text())
    # What is accepted builds a network of some size, for which there is no checkpoint.
    sizes = [t for t in accepted if "0000000" in t or "8, 8, 8" in t or "num_blocks" in t]
    for text in sizes if effort > 1 else sizes[:8]:
        path.write_text(text)
        fuzz(lambda: Run(run.folder).load(), names=run.folder, harmless=lambda loaded: False)
    large = [
        b"[" * 10**6,
        b" " * 10**8,
        b'{"a": ' * 10**5,
        content + bytes(2 << 20),
        b"\xff\xfe" * 99,
    ]
    for case in [*large, b"", b"null", b"NaN", b"1e400", pickle.dumps(Trap(tmp_path / "executed"))]:
        path.write_bytes(case)
        fuzz(load, names=path, harmless=lambda run: False)
    assert [p.name for p in tmp_path.iterdir()] == ["run"]
    assert fuzz.counts["refused"] > 100 * effort


# -------------------------------------------------------------------------------- killed collection


def test_a_validation_file_alone_is_no_obstacle(tmp_path, monkeypatch):
    """What a collection leaves that is killed between its two files."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    config = dataclasses.replace(small_config(None), environment=MAZE, data=None)
    config = dataclasses.replace(config, collect_episodes=1)
    folder = tmp_path / "floq_eqx" / "pointmaze-medium-navigate-v0-1-episodes"
    folder.mkdir(parents=True)
    (folder / "pointmaze-medium-navigate-v0-val.npz").write_bytes(b"old")
    assert len(find_data(config, progress=False)) == 1000
    for path in folder.iterdir():
        files.check_file(path, thorough=True)


@pytest.mark.slow
def test_killed_collection_at_random_moments(tmp_path, capsys):
    command = [sys.executable, "-m", "floq_eqx", "collect", "pointmaze-medium-navigate-v0"]
    command += ["--workers", "1", "--episodes", "5", "--out"]
    begin = time.monotonic()
    subprocess.run([*command, tmp_path / "whole"], check=True, capture_output=True)
    seconds = time.monotonic() - begin
    rng = random.Random(0)
    counts = Counter()
    for number in range(60):
        if counts["killed"] == 20:
            break
        out = tmp_path / "out" / str(number)
        with subprocess.Popen(
            [*command, out],
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
        ) as p:
            if number % 2:  # while the files are written
                while p.poll() is None and not list(out.glob(".*.partial")):
                    time.sleep(0.002)
                time.sleep(rng.uniform(0.0, 0.1))
            else:
                time.sleep(rng.uniform(0.0, 0.6 * seconds))
            with contextlib.suppress(ProcessLookupError):
                os.killpg(p.pid, signal.SIGKILL)
        files = sorted(out.glob("*")) if out.exists() else []
        whole = [path for path in files if path.suffix == ".npz"]
        for path in whole:
            assert path.read_bytes() == (tmp_path / "whole" / path.name).read_bytes()
        assert all(path.suffix == ".npz" or path.name.endswith(".partial") for path in files)
        assert len(whole) != 1 or whole[0].name.endswith("-val.npz")
        counts["killed"] += p.returncode == -signal.SIGKILL
        counts["while writing"] += p.returncode == -signal.SIGKILL and bool(files)
    with capsys.disabled():
        print(f"\ncollection: {dict(counts)}")
    assert counts["killed"] == 20
    assert counts["while writing"] > 0


# ------------------------------------------------------------------------------------ checkpoints


@pytest.fixture
def states(tmp_path):
    """A run with two checkpoints, of 10 and of 20 updates, and these states."""
    run = Run.create(tmp_path / "run", small_config("x.npz"), FACTS)
    agent, states = run.config.agent, {}
    with run.checkpoints() as writer:
        for step in (10, 20):
            state = agent.init(28, 5, key=jax.random.key(step))
            states[step] = dataclasses.replace(state, step=jnp.asarray(step, state.step.dtype))
            run.save(writer, states[step])
    return run, states


def forge(folder):
    """Makes the checksums fit."""
    path = folder / "checksums.json"
    path.unlink(missing_ok=True)
    files = checkpoints._files(folder).items()
    entries = {name: [p.stat().st_size, checkpoints._checksum(p)] for name, p in files}
    path.write_text(json.dumps(entries))


def test_checkpoints(states, fuzz, effort, tmp_path):
    run, states = states
    last = run.folder / "checkpoints" / "20"
    backup = tmp_path / "backup"
    shutil.copytree(last, backup)
    shapes = jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype), states[20])
    files = sorted(p.relative_to(last) for p in last.rglob("*") if p.is_file())
    rng = random.Random(0)

    def undo():
        shutil.rmtree(last)
        shutil.copytree(backup, last)

    def attempt():
        damage = run.damage(20)
        fuzz.counts["named"] += damage is not None
        fuzz.counts["harmless"] -= damage is not None
        if fuzz.counts.total() % 5:
            return True  # The rest is slow.
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always", UserWarning)
            loaded = run.restore(shapes)
        assert eqx.tree_equal(loaded, states[10 if damage else 20])
        if damage:
            assert f"checkpoint 20 is damaged ({damage})" in str(caught[0].message)
            with pytest.raises(ValueError, match=r"Checkpoint 20 of .* is damaged"):
                run.restore(shapes, step=20)
        return True

    for name in files:
        content = (backup / name).read_bytes()
        for _ in range(3 * effort):
            (last / name).write_bytes(damaged(content, rng) if content else b"x")
            fuzz(attempt, names=run.folder, harmless=bool)
        (last / name).unlink()
        fuzz(attempt, names=run.folder, harmless=bool)
        for target in ("/dev/zero", "/", str(last), str(backup / name)):
            (last / name).symlink_to(target)
            fuzz(attempt, names=run.folder, harmless=bool)
            (last / name).unlink()
        (last / name).touch()
        os.truncate(last / name, 1 << 42)
        fuzz(attempt, names=run.folder, harmless=bool)
        (last / name).unlink()
        os.mkfifo(last / name)
        fuzz(attempt, names=run.folder, harmless=bool)
        undo()
    manifests = [
        b"",
        b"{",
        b"[]",
        b"3",
        b"null",
        b"[" * 10**5,
        b" " * 10**7,
        b'{"default/_METADATA": 3}',
    ]
    manifests += [
        json.dumps({name: "0" * 64}).encode() for name in ("../../../x", "/dev/zero", "..")
    ]
    for content in manifests:
        (last / "checksums.json").write_bytes(content)
        fuzz(attempt, names=run.folder, harmless=bool)
    undo()
    (last / "more").mkdir()
    (last / "more" / "link").symlink_to("/")
    (last / "more" / "file").write_text("harmless")
    fuzz(attempt, names=run.folder, harmless=bool)
    undo()
    for name in ("٣", "²", "0x7", "-7", "007", "7 "):
        (run.folder / "checkpoints" / name).write_text("")
    fuzz(attempt, names=run.folder, harmless=bool)
    assert run.steps() == [10, 20]
    (run.folder / "checkpoints" / ("9" * 200)).mkdir()
    with pytest.warns(UserWarning, match="9999 is damaged .*Checkpoint 20 is used instead"):
        fuzz(lambda: run.restore(shapes), names=run.folder, harmless=lambda loaded: True)


@pytest.mark.filterwarnings("ignore:Checkpoint 20 of .* was written by other versions")
def test_forged_checkpoints(states, fuzz, effort, tmp_path):
    """Also where the checksums fit, what is loaded has the shapes that were asked for."""
    run, states = states
    last = run.folder / "checkpoints" / "20"
    backup = tmp_path / "backup"
    shutil.copytree(last, backup)
    files = sorted(p.relative_to(last) for p in last.rglob("*") if p.is_file())
    rng = random.Random(1)

    def alike(loaded):
        return all(
            a.shape == b.shape and a.dtype == b.dtype
            for a, b in zip(jax.tree.leaves(loaded), jax.tree.leaves(states[20]), strict=True)
        )

    for name in files:
        content = (backup / name).read_bytes()
        for _ in range(effort):
            (last / name).write_bytes(damaged(content, rng) if content else b"x")
            forge(last)
            fuzz(lambda: run.restore(states[20]), names=run.folder, harmless=alike)
        (last / name).write_bytes(content)
    for name in ("_METADATA", "array_metadatas/process_0", "_sharding"):
        text = (backup / "default" / name).read_text()
        for old, new in [
            ("28", "280000000000"),
            ("8", "-8"),
            ("8", "1e400"),
            ("float32", "object"),
        ]:
            (last / "default" / name).write_text(text.replace(old, new))
            forge(last)
            fuzz(lambda: run.restore(states[20]), names=run.folder, harmless=alike)
        (last / "default" / name).write_text(text)


# --------------------------------------------------------------------------------- flax parameters


def test_flax_parameters(fuzz, effort, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    reference = Reference("fql_default")
    params, config = reference.below("params0"), reference.config
    path, trap = tmp_path / "a.npz", tmp_path / "executed"
    rng = random.Random(0)
    np.savez(path, **params)
    content = path.read_bytes()
    _, good = interop.from_flax(path, config)
    assert eqx.tree_equal(good, interop.from_flax(params, config)[1])

    def load():
        return interop.from_flax(path, config)

    for _ in range(60 * effort):
        path.write_bytes(damaged(content, rng))
        fuzz(load, names="", harmless=lambda loaded: eqx.tree_equal(loaded[1], good))
    members = list(malicious(params, trap))
    for case in members if effort > 1 else rng.sample(members, 30):
        archive(path, case)
        fuzz(load, names="", harmless=lambda loaded: bool(trees_are_finite(loaded[1])))
    for _ in bombs(path, params):
        fuzz(load, names="", harmless=lambda loaded: False)
    path.write_bytes(pickle.dumps(Trap(trap)))
    fuzz(load, names=path, harmless=lambda loaded: False)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["a.npz"]

    values = [
        None,
        "x",
        -1,
        0,
        10**12,
        10**400,
        float("inf"),
        float("nan"),
        [],
        {},
        [10**12],
        ["x"],
    ]
    keys = [key for key in config if key != "agent_name"]
    for key in keys if effort > 1 else rng.sample(keys, 8):
        for value in values if effort > 1 else rng.sample(values, 3):
            changed = dict(config) | {key: value}
            fuzz(
                lambda: interop.from_flax(params, changed),  # noqa: B023
                names="",
                harmless=lambda loaded: trees_are_finite(loaded[1]),
            )
    for name in (None, [], {}, 3, "x" * 1000):
        fuzz(
            lambda: interop.from_flax(params, dict(config) | {"agent_name": name}),  # noqa: B023
            names="agent_name",
            harmless=lambda loaded: False,
        )


def trees_are_finite(tree):
    return all(bool(jnp.isfinite(leaf).all()) for leaf in jax.tree.leaves(tree))


# --------------------------------------------------------------------------------- the program


def test_the_program_prints_one_line(tmp_path, capfd, states):
    run, _ = states
    bad = tmp_path / "bad.npz"
    bad.write_bytes(pickle.dumps(Trap(tmp_path / "executed")))
    other = tmp_path / "other"
    other.mkdir()
    (other / "config.json").write_text("[" * 100_000)
    for step in (10, 20):
        (run.folder / "checkpoints" / str(step) / "default" / "_METADATA").write_text("{}")
    for words, message in [
        (["train", "--agent", "bc", "--data", str(bad), "--out", str(tmp_path / "new")], str(bad)),
        (["train", "--env", "../../x-v0"], "Unknown dataset"),
        (["evaluate", str(other)], "nested too deeply"),
        (["plot", str(other)], "nested too deeply"),
        (["evaluate", str(run.folder)], "no checkpoint that can be used"),
        (["evaluate", str(run.folder), "--checkpoint", "10"], "Checkpoint 10 of"),
        (["collect", "../../x-v0", "--out", str(tmp_path)], "Unknown dataset"),
    ]:
        assert cli.main(words) == 1
        error = capfd.readouterr().err
        assert error.startswith("floq: error: ")
        assert message in error
        assert error.count("\n") == 1
    assert not (tmp_path / "executed").exists()
