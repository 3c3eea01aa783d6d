"""What is compiled: once in a process, and kept for the program's next."""

import collections
import dataclasses
import logging
import os
import types
import warnings

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.experimental.compilation_cache import compilation_cache as jax_cache

from floq_eqx import cli
from floq_eqx.cli import compilation
from floq_eqx.cli.compilation import keep_compiled
from floq_eqx.training import Run, train
from floq_eqx.training.watch import Watch

from .runs import same_run, small_config

SMALL = [
    *("--num-updates", "10", "--batch-size", "8", "--log-every", "5", "--evaluate-every", "10"),
    *("--evaluation-episodes", "1", "--checkpoint-every", "5", "--flow-steps", "2"),
    *("--critic.network.hidden-sizes", "8", "--policy.network.hidden-sizes", "8"),
]
EVENTS = collections.Counter()
jax.monitoring.register_event_listener(lambda name, **_: EVENTS.update([name.rpartition("/")[2]]))


@pytest.mark.filterwarnings("ignore:.*episodes did not end")
def test_chunks_evaluations_seeds_and_resumed_runs_share_programs(
    caplog, monkeypatch, data, tmp_path
):
    counts = []
    after_chunk = Watch.after_chunk

    def compiled():
        texts = [record.getMessage() for record in caplog.records]
        return [text for text in texts if text.startswith("Finished XLA compilation")]

    def counting(*args, **kwargs):
        after_chunk(*args, **kwargs)
        counts.append(len(compiled()))

    monkeypatch.setattr(Watch, "after_chunk", counting)
    caplog.set_level(logging.WARNING)
    config = small_config(data, num_updates=30, max_episode_steps=5)
    with jax.log_compiles():
        train(config, tmp_path / "a", progress=False)
        # Five updates, and an evaluation after ten; at most two dozen programs in all.
        assert counts[0] < counts[1] <= 24
        assert counts[1:] == [counts[1]] * 5
        config = dataclasses.replace(config, seed=1)
        train(config, tmp_path / "b", progress=False)
        longer = dataclasses.replace(config, num_updates=40)
        train(longer, tmp_path / "b", progress=False, resume=True)
    assert compiled()[counts[1] :] == []


# --------------------------------------------------------------------------- for later runs


@pytest.fixture
def folder(monkeypatch, tmp_path):
    """Where the program will keep what it compiles, as on a user's machine."""
    for name in [name for name in os.environ if name.startswith(("JAX_COMPIL", "JAX_PERSIST"))]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr(compilation, "_machine", lambda: "machine")
    # However fast it compiles here.
    monkeypatch.setitem(compilation._SETTINGS, "jax_persistent_cache_min_compile_time_secs", 0.0)
    names = ["jax_compilation_cache_dir", "jax_enable_compilation_cache", *compilation._SETTINGS]
    before = {name: getattr(jax.config, name) for name in names}
    yield tmp_path / "cache" / "floq_eqx" / "compiled" / "machine"
    for name, value in before.items():
        jax.config.update(name, value)
    jax_cache.reset_cache()


@pytest.fixture
def process(monkeypatch, folder):
    """Calls a function as if in a process of its own; its result, hits, misses and warnings."""

    def run(function):
        ends = []
        own = types.SimpleNamespace(register=lambda *words: ends.append(words))
        monkeypatch.setattr(compilation, "atexit", own)
        jax.config.update("jax_compilation_cache_dir", None)
        jax_cache.reset_cache()
        jax.clear_caches()
        EVENTS.clear()
        with warnings.catch_warnings():
            warnings.simplefilter("default")
            told = []
            warnings.showwarning = lambda message, *_: told.append(str(message))
            result = function()
        for end, *words in ends:
            end(*words)
        return result, EVENTS["cache_hits"], EVENTS["cache_misses"], told

    return run


def compute():
    """Of two programs that take and return the same."""

    def sines(x):
        return jnp.sin(x @ x.T).sum()

    def cosines(x):
        return jnp.cos(x @ x.T).sum()

    keep_compiled(True)
    return [float(jax.jit(f)(np.eye(3, dtype=np.float32))) for f in (sines, cosines)]


def test_a_run_is_the_same_from_what_was_kept(process, folder, data, tmp_path):
    def run(name):
        words = ["train", "--agent", "fql", *SMALL, "--data", data, "--out", tmp_path / name]
        return cli.main([str(word) for word in words])

    status, hits, misses, told = process(lambda: run("cold"))
    assert (status, told) == (0, [])
    assert misses > 10
    assert len(list(folder.glob("*-cache"))) == misses
    assert all(path.stat().st_mode & 0o777 == 0o700 for path in (folder, folder.parent))
    assert process(lambda: run("warm")) == (0, hits + misses, 0, [])
    same_run(Run(tmp_path / "warm"), Run(tmp_path / "cold"))
    words = ["evaluate", str(tmp_path / "cold"), "--episodes", "1", "--no-compilation-cache"]
    assert process(lambda: cli.main(words)) == (0, 0, 0, [])


@pytest.mark.parametrize("command", ["train", "finetune", "evaluate", "solvers"])
def test_every_command_that_compiles_can_do_without(monkeypatch, capsys, tmp_path, command):
    asked = []

    def stop(wanted):
        asked.append(wanted)
        raise ValueError("far enough")

    monkeypatch.setattr(f"floq_eqx.cli.{command}.keep_compiled", stop)
    words = [command] if command == "train" else [command, str(tmp_path)]
    for more in ([], ["--no-compilation-cache"]):
        assert cli.main([*words, *more]) == 1
    assert asked == [True, False]


def swap(folder):
    """JAX would run the one for the other."""
    one, other = folder.glob("*-cache")
    content = one.read_bytes()
    one.write_bytes(other.read_bytes())
    other.write_bytes(content)


def cut(folder):
    """As by processes that were killed, with no checksums taken."""
    (folder / "checksums.json").unlink()
    for entry in folder.glob("*-cache"):
        os.truncate(entry, 100)


def forget_use(folder):
    for path in folder.glob("*-atime"):
        path.unlink()


def spoil_checksums(folder):
    (folder / "checksums.json").write_text("[")


@pytest.mark.parametrize(
    ("damage", "again", "note"),
    [
        (swap, 2, "2 damaged entries of {} are compiled anew"),
        (cut, 2, "an entry of {} cannot be read, and is compiled anew: "),
        (forget_use, 2, None),
        (spoil_checksums, 0, None),
    ],
)
def test_damaged_entries_are_compiled_anew(process, folder, damage, again, note):
    values, hits, misses, told = process(compute)
    assert (hits, misses, told) == (0, 2, [])
    damage(folder)
    result, hits, misses, told = process(compute)
    assert (result, hits, misses) == (values, 2 - again, again)
    assert len(told) == (note is not None)
    assert not told or told[0].startswith(note.format(folder))
    assert process(compute) == (values, 2, 0, [])


def a_file_in_its_place(folder, monkeypatch):
    folder.parent.parent.mkdir(parents=True)
    folder.parent.touch()


def others_may_write(folder, monkeypatch):
    folder.mkdir(parents=True)
    folder.parent.chmod(0o775)


def of_another_user(folder, monkeypatch):
    monkeypatch.setattr(os, "getuid", lambda: 4321)


def full(folder, monkeypatch):
    def write(*args):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(compilation, "write_text", write)


def cannot_be_locked(folder, monkeypatch):
    (folder / ".lockfile").mkdir(parents=True)


def no_home(folder, monkeypatch):
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setattr("os.path.expanduser", lambda path: path)


@pytest.mark.parametrize(
    ("spoil", "text"),
    [
        (a_file_in_its_place, "exists"),
        (others_may_write, "others may write to "),
        (of_another_user, "belongs to another user"),
        (full, "No space left on device"),
        (cannot_be_locked, ".lockfile"),
        (no_home, "home directory"),
    ],
)
def test_a_folder_that_cannot_be_used(process, folder, monkeypatch, spoil, text):
    spoil(folder, monkeypatch)
    _, hits, misses, (told,) = process(compute)
    assert told.startswith("nothing that is compiled is kept for later runs: ")
    assert text in told
    assert (hits, misses, jax.config.jax_compilation_cache_dir) == (0, 0, None)


def test_what_jax_was_told_stays(folder, monkeypatch, tmp_path):
    mine = str(tmp_path / "mine")
    monkeypatch.setenv("JAX_COMPILATION_CACHE_DIR", mine)  # JAX has read it when it was imported.
    keep_compiled(True)
    assert jax.config.jax_compilation_cache_dir is None
    monkeypatch.delenv("JAX_COMPILATION_CACHE_DIR")
    jax.config.update("jax_compilation_cache_dir", mine)
    keep_compiled(True)
    assert jax.config.jax_compilation_cache_dir == mine
    keep_compiled(False)
    assert jax.config.jax_compilation_cache_dir is None
    jax.config.update("jax_enable_compilation_cache", False)
    keep_compiled(True)
    assert (jax.config.jax_compilation_cache_dir, folder.parent.exists()) == (None, False)
    jax.config.update("jax_enable_compilation_cache", True)
    monkeypatch.setenv("JAX_COMPILATION_CACHE_MAX_SIZE", "7")
    jax.config.update("jax_compilation_cache_max_size", 7)
    keep_compiled(True)
    assert jax.config.jax_compilation_cache_dir == str(folder)
    assert jax.config.jax_compilation_cache_max_size == 7
    assert jax.config.jax_persistent_cache_min_entry_size_bytes == -1
