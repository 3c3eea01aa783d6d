"""Runs: whole at any moment, resumed to the bit, and clear about what is wrong with them."""

import contextlib
import dataclasses
import errno
import fcntl
import json
import os
import random
import re
import shutil
import socket
import subprocess
import sys
import time
import warnings

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from floq_eqx.agents import RECIPES, TD, to_plain, with_options
from floq_eqx.networks import MLPConfig
from floq_eqx.presets import PAPER, laptop, paper
from floq_eqx.training import DivergedError, Run, TrainConfig, train
from floq_eqx.training.gathering import find_data
from floq_eqx.training.lock import locked
from floq_eqx.training.loggers import CSVLogger

from .runs import (
    CUBE,
    FACTS,
    check_folder,
    held_by,
    kill,
    names,
    processes,
    same_parameters,
    same_run,
    saved,
    small_agent,
    small_config,
    wait_for,
    write_dataset,
)


@pytest.fixture(scope="session")
def finished(tmp_path_factory, data):
    """A finished run, and what it reported; not to be changed."""
    lines = []
    folder = tmp_path_factory.mktemp("run") / "run"
    return train(small_config(data), folder, report=lines.append), lines


@pytest.fixture
def copy(finished, tmp_path):
    folder = tmp_path / "copy"
    shutil.copytree(finished[0].folder, folder)
    return folder


# ---------------------------------------------------------------------------------- configuration


@pytest.mark.parametrize("agent", RECIPES)
def test_config_round_trip(agent, tmp_path):
    configs = [laptop(agent, CUBE), small_config("x.npz", agent)]
    configs += [
        paper(agent, f"{name}-{kind}-singletask-task1-v0")
        for name, agents in PAPER.items()
        for kind in ("navigate" if "maze" in name or "soccer" in name else "play",)
        if agent in agents
    ]
    for config in configs:
        plain = json.loads(json.dumps(config.to_plain()))
        again = TrainConfig.from_plain(plain)
        assert again.to_plain() == plain
        assert eqx.tree_equal(again.agent, config.agent)
    run = Run.create(tmp_path / "run", configs[0], FACTS)
    assert Run(run.folder).config.to_plain() == configs[0].to_plain()
    arrays = dataclasses.replace(configs[0].agent, learning_rate=jnp.array(2.0))
    plain = dataclasses.replace(configs[0], agent=arrays).to_plain()
    assert TrainConfig.from_plain(plain).agent.learning_rate == 2.0


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"num_updates": 0}, "num_updates must be a whole number of at least 1, got 0"),
        ({"batch_size": -3}, "batch_size must be a whole number of at least 1, got -3"),
        ({"log_every": 0}, "log_every must be"),
        ({"evaluation_episodes": 0}, "evaluation_episodes must be"),
        ({"collect_episodes": 0}, "collect_episodes must be"),
        ({"evaluate_every": 7}, "evaluate_every must be a multiple of log_every = 5, got 7"),
        ({"checkpoint_every": 7}, "checkpoint_every must be a multiple of log_every = 5, got 7"),
        ({"seed": -1}, r"seed must be in \[0, 2\*\*31\), got -1"),
        ({"seed": 2**40}, "seed must be in"),
        ({"environment": "cube-singel-play-v0"}, "Did you mean cube-single-play-v0"),
        ({"environment": "cube-single-play-v0"}, "has no reward.*-singletask-task1-v0"),
    ],
)
def test_settings_that_make_no_sense(change, message):
    with pytest.raises(ValueError, match=message):
        small_config("x.npz", **change)


@pytest.mark.parametrize("agent", RECIPES)
def test_hyperparameters_that_make_no_sense(agent):
    bad = {"discount": (1.0, -0.1), "target_rate": (1.5,), "learning_rate": (float("nan"),)}
    bad |= {"aggregation": ("max",)}
    weights = ("alpha", "inverse_temperature", "cloning_weight", "next_penalty", "q_weight")
    bad |= dict.fromkeys((*weights, "consistency_weight"), (-1.0,))
    sizes = ("num_steps", "num_noise", "ensemble_size", "flow_steps", "num_candidates")
    bad |= dict.fromkeys(sizes, (0, -2))
    made = small_agent(agent)
    plain = to_plain(made)
    names = [
        *plain,
        *(
            f"{part}.{name}"
            for part in ("critic", "policy", "selection")
            for name in plain[part] or ()
        ),
    ]
    changes = [(name, value) for name in names for value in bad.get(name.split(".")[-1], ())]
    assert len(changes) > 3
    for name, value in changes:
        # A TypeError where types are checked too, as in these tests.
        with pytest.raises((ValueError, TypeError), match=name.split(".")[-1]):
            with_options(made, {name: value})


def damaged(key, value):
    return lambda plain: plain | {key: value}


def hyper(part, key, value):
    """An option of a part of the agent; without `part` of the agent itself."""

    def change(plain):
        within = plain["agent"] if part is None else plain["agent"][part]
        within[key] = value
        return plain

    return change


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda plain: "no JSON", "config.json is not a run's configuration"),
        (lambda plain: [], "is not a run's configuration"),
        (lambda plain: "{}"[:1], "is not a run's configuration"),
        (damaged("agent", "fql"), "agent must be a mapping of names to values, got 'fql'"),
        (damaged("agent", ["fql"]), "agent must be a mapping"),
        (damaged("agent", None), "agent must be a mapping"),
        (damaged("agent", {}), "An agent needs a critic: its kind and its options"),
        (damaged("hyperparameters", {}), r"configuration of floq_eqx 0\.1, which knew no critics"),
        (damaged("environment", 3), "environment must be a text, got 3"),
        (damaged("environment", "cube-singel-play-v0"), "Did you mean cube-single-play-v0"),
        (damaged("seed", "0"), "seed must be a whole number, got '0'"),
        (damaged("seed", True), "seed must be a whole number, got True"),
        (damaged("num_updates", 2.5), "num_updates must be a whole number, got 2.5"),
        (damaged("num_updates", -1), "num_updates must be a whole number of at least 1, got -1"),
        (damaged("data", 3), "data must be a text, got 3"),
        (damaged("success_timing", "late"), "success_timing"),
        (damaged("num_update", 3), "Unknown setting 'num_update'; did you mean num_updates"),
        (
            hyper(None, "critic", [1]),
            r"critic is \(1,\); expected AbstractCritic, or options by their names",
        ),
        (hyper(None, "critics", {}), "Unknown option of an agent 'critics'; did you mean critic"),
        (
            hyper(None, "policy", None),
            "policy is None; expected AbstractPolicy, or options by their names",
        ),
        (hyper(None, "policy", {}), "policy needs its kind, one of one_step"),
        (hyper(None, "critic", {"kind": "tdd"}), "Unknown kind of critic 'tdd'; did you mean td"),
        (hyper(None, "selection", {"num": 3}), "Unknown option of selection 'num'"),
        (hyper("policy", "alfa", 3.0), "Unknown option of policy 'alfa'; did you mean alpha"),
        (hyper("policy", "alpha", "much"), "alpha must be a number, got 'much'"),
        (hyper("critic", "discount", 1.0), r"discount must be in \[0, 1\), got 1.0"),
        (hyper("policy", "normalise_q", 1), "normalise_q must be true or false, got 1"),
        (hyper("critic", "network", {"kind": "cnn"}), "Unknown kind of network 'cnn'"),
        (
            hyper("critic", "network", {"hidden_sizes": 3}),
            r"hidden_sizes must be a tuple \(in JSON a list\), got 3",
        ),
        (hyper("critic", "network", {"hidden_sizes": ["8"]}), "every entry of hidden_sizes"),
        (hyper("critic", "network", {"kind": "mlp", "widths": [8]}), "widths"),
    ],
)
def test_garbage_in_config(tmp_path, change, message):
    run = Run.create(tmp_path / "run", small_config("x.npz"), FACTS)
    path = run.folder / "config.json"
    changed = change(json.loads(path.read_text()))
    path.write_text(changed if isinstance(changed, str) else json.dumps(changed))
    with pytest.raises(ValueError, match=message) as caught:
        Run(run.folder)
    assert str(path) in str(caught.value)


def test_no_run(tmp_path):
    for folder in (tmp_path, tmp_path / "nothing"):
        with pytest.raises(FileNotFoundError, match=r"holds no run: it has no config\.json"):
            Run(folder)
    (tmp_path / "config.json").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(ValueError, match="is not a run's configuration"):
        Run(tmp_path)


# ----------------------------------------------------------------------------------------- a run


def test_a_run_holds_what_it_promises(finished):
    run, lines = finished
    assert names(run.folder) == [
        *(".lock", "checkpoints", "config.json", "evaluation.csv", "train.csv")
    ]
    assert run.steps() == [15, 20]
    assert [row["step"] for row in run.table("train.csv")] == [5, 10, 15, 20]
    rows = run.table("evaluation.csv")
    assert [row["step"] for row in rows] == [10, 20]
    assert {"success", "success_std", "returns", "lengths", "episodes"} <= rows[0].keys()
    assert [line.split(":")[0] for line in lines] == ["update 10", "update 20"]
    # What the data say is part of the configuration.
    assert run.config.agent.action_size == 5
    agent, state = run.load()
    assert int(state.step) == 20
    assert agent.act(state, jnp.zeros(28), key=jax.random.key(0)).shape == (5,)
    assert int(run.load(step=15)[1].step) == 15


def test_a_finished_run_has_nothing_to_resume(copy, data):
    before = {p: p.read_bytes() for p in copy.rglob("*") if p.is_file()}
    lines = []
    train(small_config(data), copy, resume=True, report=lines.append)
    assert lines == ["finished before: update 20 of 20"]
    assert {p: p.read_bytes() for p in copy.rglob("*") if p.is_file()} == before


def test_a_run_can_be_made_longer_but_not_shorter(copy, data, tmp_path):
    lines = []
    config = small_config(data, num_updates=30)
    longer = train(config, copy, resume=True, report=lines.append)
    assert lines[0] == "continuing at update 20 of 30"
    assert Run(copy).config.num_updates == 30
    assert [row["step"] for row in longer.table("train.csv")] == [5, 10, 15, 20, 25, 30]
    whole = train(config, tmp_path / "whole")
    assert same_parameters(longer, whole)
    with pytest.raises(ValueError, match=r"at update 30 already.*ends at 20"):
        train(small_config(data), copy, resume=True)


def test_a_run_is_never_overwritten(copy, data, tmp_path):
    with pytest.raises(FileExistsError, match=r"already holds a run.*--resume"):
        train(small_config(data), copy)
    other = tmp_path / "other"
    other.mkdir()
    (other / "thesis.tex").write_text("42")
    for resume in (False, True):
        with pytest.raises(FileExistsError, match="holds other files"):
            train(small_config(data), other, resume=resume)
    assert names(other) == ["thesis.tex"]


def test_resume_with_another_configuration(copy, data):
    agent = small_agent("fql", policy={"alpha": 3.0})
    for change, message in [
        ({"agent": agent}, r"Different: policy\.alpha: 10\.0 before, 3\.0 now\.$"),
        ({"seed": 1, "batch_size": 4}, "seed: 0 before, 1 now; batch_size: 8 before, 4 now"),
        ({"agent": small_agent("floq")}, "critic.kind: 'td' before, 'flow' now"),
    ]:
        with pytest.raises(ValueError, match=message):
            train(small_config(data, **change), copy, resume=True)


def test_resume_with_other_data(copy, data, tmp_path, monkeypatch):
    path = copy / "config.json"
    plain = json.loads(path.read_text())
    plain["agent"]["action_size"] = 4
    path.write_text(json.dumps(plain))
    with pytest.raises(ValueError, match="Different: action_size: 4 before, 5 now"):
        train(small_config(data), copy, resume=True)


def test_what_fails_before_training_leaves_nothing(tmp_path, data):
    folder = tmp_path / "run"
    missing = small_config(tmp_path / "missing.npz")
    with pytest.raises(FileNotFoundError, match=r"missing\.npz"):
        train(missing, folder)
    equal = write_dataset(tmp_path / "equal.npz", solved=False)
    with pytest.raises(ValueError, match="equal"):
        train(small_config(equal, agent="floq"), folder)
    assert not folder.exists()
    folder.mkdir()
    # A configuration that was being written when the run was killed does not block the folder.
    (folder / ".config.json.0123abcd.partial").write_text("{")
    run = train(small_config(data.parent, num_updates=5), folder)
    assert run.steps() == [5]


def test_rewards_of_a_file_need_one():
    """Before minutes go into collecting episodes, which have no rewards."""
    config = small_config("x.npz", rewards="file")
    with pytest.raises(ValueError, match=r"needs a file that holds rewards.*--data"):
        dataclasses.replace(config, data=None)


def test_rewards_of_the_file_reach_the_run(data, tmp_path):
    with np.load(data) as file:
        arrays = dict(file)
    path = tmp_path / data.name
    rewards = np.linspace(0, 5, len(arrays["terminals"])).astype(np.float32)
    np.savez(path, **arrays, rewards=rewards)
    config = small_config(path, "c51", rewards="file", num_updates=5, evaluate_every=5)
    run = train(config, tmp_path / "run", progress=False)
    own = rewards[~arrays["terminals"]]
    assert (run.config.agent.critic.reward_min, run.config.agent.critic.reward_max) == (
        own[0],
        own[-1],
    )
    assert run.config.rewards == "file"
    np.testing.assert_array_equal(find_data(run.config).reward, own)
    with pytest.warns(UserWarning, match="--rewards file"):
        find_data(dataclasses.replace(config, rewards="task"))
    with pytest.raises(ValueError, match="rewards: 'file' before, 'task' now"):
        train(dataclasses.replace(config, rewards="task"), run.folder, resume=True, progress=False)


def test_data_may_be_a_folder(data):
    whole = find_data(small_config(data))
    assert eqx.tree_equal(find_data(small_config(data.parent)), whole)


@pytest.mark.parametrize("name", ["train.csv", "evaluation.csv"])
def test_tables(tmp_path, name):
    run = Run.create(tmp_path / "run", small_config("x.npz"), FACTS)
    assert run.table(name) == []
    rows = [{"step": 5, "loss": 0.1 + 0.2}, {"step": 10, "loss": float("nan")}]

    def append(row):
        table = name.removesuffix(".csv")
        CSVLogger(run.folder).log(row["step"], {"loss": row["loss"]}, table=table)

    for row in rows:
        append(row)
    text = (run.folder / name).read_text()
    assert text == "step,loss\n5,0.30000000000000004\n10,nan\n"
    # A row without its end was cut off.
    (run.folder / name).write_text(text + "15,0.2")
    assert [row["step"] for row in run.table(name)] == [5, 10]
    run.forget_after(5)
    assert (run.folder / name).read_text() == "step,loss\n5,0.30000000000000004\n"
    run.forget_after(0)
    append(rows[0])
    assert run.table(name) == rows[:1]
    (run.folder / name).write_text("")
    run.forget_after(5)
    append(rows[0])
    assert run.table(name) == rows[:1]
    for garbage in ("step,loss\n5\n", "step,loss\n5,x\n", "step,loss\n5,1,2\n"):
        (run.folder / name).write_text(garbage)
        with pytest.raises(ValueError, match=rf"{name} is damaged"):
            run.table(name)


# ---------------------------------------------------------------------------------- checkpoints


def test_checkpoints_that_are_not_there(finished, tmp_path, data):
    run, _ = finished
    with pytest.raises(FileNotFoundError, match="no checkpoint of step 7; it has 15, 20"):
        run.load(step=7)
    with pytest.raises(FileNotFoundError, match="holds no checkpoint yet"):
        Run.create(tmp_path / "new", run.config, FACTS).load()
    assert names(tmp_path / "new") == ["config.json"]


def test_a_checkpoint_of_another_configuration(finished):
    run, _ = finished
    _, state = run.load()
    for agent, message in [
        (small_agent("fql", critic={"network": MLPConfig((9,))}), "lacks|expected"),
        (small_agent("fql", critic={"ensemble_size": 3}), r"critic\.\S* is \(2, .*expected \(3,"),
        (small_agent("floq"), r"it lacks params\.critic\.field.*and \d+ more"),
    ]:
        other = eqx.filter_eval_shape(lambda key: agent.init(28, 5, key=key), jax.random.key(0))  # noqa: B023
        with pytest.raises(ValueError, match="another configuration") as caught:
            run.restore(other)
        assert re.search(message, str(caught.value))
    assert eqx.tree_equal(run.restore(state), state)


def test_absurd_sizes_need_no_memory(copy):
    path = copy / "config.json"
    plain = json.loads(path.read_text())
    plain["agent"]["critic"]["network"]["hidden_sizes"] = [10**9]
    path.write_text(json.dumps(plain))
    with pytest.raises(ValueError, match=r"another configuration.*1000000000"):
        Run(copy).load()


@pytest.mark.parametrize("how", ["cut", "altered", "emptied", "gone"])
def test_a_damaged_checkpoint(copy, how, capfd):
    for file in (copy / "checkpoints" / "20" / "default").rglob("*"):
        if not file.is_file() or "/d/" not in str(file):
            continue
        content = bytearray(file.read_bytes())
        if how == "cut":
            file.write_bytes(content[: len(content) // 2])
        elif how == "altered":
            content[len(content) // 2] ^= 1  # which Orbax itself does not notice
            file.write_bytes(content)
        elif how == "emptied":
            file.write_bytes(b"")
        else:
            file.unlink()
    reason = "is missing" if how == "gone" else "is not as it was written"
    with pytest.raises(ValueError, match=rf"Checkpoint 20 of .*damaged: default/d/\w+ {reason}"):
        Run(copy).load(step=20)
    with pytest.warns(UserWarning, match=rf"checkpoint 20 is damaged .*{reason}.*Checkpoint 15 is"):
        _, state = Run(copy).load()
    assert int(state.step) == 15
    assert capfd.readouterr().err == ""


def alter(folder, step):
    """Flips one bit of a checkpoint's largest file."""
    files = [p for p in (folder / "checkpoints" / str(step)).rglob("*") if p.is_file()]
    largest = max(files, key=lambda p: p.stat().st_size)
    content = bytearray(largest.read_bytes())
    content[len(content) // 3] ^= 4
    largest.write_bytes(content)


def test_resuming_with_damaged_checkpoints(copy, finished, data):
    alter(copy, 20)
    lines = []
    with pytest.warns(UserWarning, match="checkpoint 20 is damaged.*Checkpoint 15 is used"):
        resumed = train(small_config(data), copy, resume=True, report=lines.append)
    assert lines[0] == "continuing at update 15 of 20"
    same_run(resumed, finished[0])
    for step in (15, 20):
        alter(copy, step)
    before = {p: p.read_bytes() for p in copy.rglob("*") if p.is_file()}
    with pytest.raises(ValueError, match=r"no checkpoint that can be used: checkpoint 20 .* 15 "):
        train(small_config(data), copy, resume=True)
    assert {p: p.read_bytes() for p in copy.rglob("*") if p.is_file()} == before


# -------------------------------------------------------------------------- one process at a time


def test_the_second_process_is_refused(copy, data):
    code = (
        "import pathlib, sys, time; from floq_eqx.training.lock import locked\n"
        "with locked(pathlib.Path(sys.argv[1])): print('locked', flush=True); time.sleep(300)"
    )
    process = subprocess.Popen([sys.executable, "-c", code, copy], stdout=subprocess.PIPE)
    try:
        process.stdout.readline()
        for resume in (False, True):
            message = rf"process {process.pid} on {re.escape(socket.gethostname())} trains in"
            with pytest.raises(BlockingIOError, match=message):
                train(small_config(data), copy, resume=resume)
        assert int(Run(copy).load()[1].step) == 20  # Reading is allowed.
    finally:
        process.kill()
        process.communicate()
    # What a killed process leaves keeps nobody out.
    assert (copy / ".lock.holder").exists()
    train(small_config(data), copy, resume=True)
    assert ".lock.holder" not in names(copy)


def test_file_systems_without_locks(tmp_path, monkeypatch):
    """There the lock is a file, which names its process so that a dead one keeps nobody out."""

    def unknown(file, operation):
        raise OSError(errno.ENOSYS, os.strerror(errno.ENOSYS))

    monkeypatch.setattr(fcntl, "flock", unknown)
    (tmp_path / "other").touch()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # filelock says that it does so
        with locked(tmp_path), pytest.raises(BlockingIOError), locked(tmp_path):
            pass
        with locked(tmp_path):
            pass


def test_a_lock_leaves_no_folder(tmp_path):
    for made in (tmp_path / "new", tmp_path / "more" / "new"):
        with locked(made):
            assert names(made) == [".lock", ".lock.holder"]
        assert names(tmp_path) == []
    (tmp_path / "own").mkdir()
    with locked(tmp_path / "own"):
        pass
    assert names(tmp_path / "own") == []


# ------------------------------------------------------------------------- when the disk says no


def test_a_folder_that_cannot_be(tmp_path, data):
    (tmp_path / "file").write_text("")
    for folder in (tmp_path / "file", tmp_path / "file" / "run"):
        with pytest.raises(OSError, match=f"Cannot write {folder}"):
            train(small_config(data), folder)
    assert (tmp_path / "file").read_text() == ""


def test_a_disk_that_is_full_at_the_start(tmp_path, monkeypatch):
    def full(descriptor):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match=r"Cannot write .*config\.json: No space left"):
        Run.create(tmp_path / "run", small_config("x.npz"), FACTS)
    assert names(tmp_path / "run") == []


@pytest.fixture
def disk(tmp_path):
    """A small one of its own."""
    disk = tmp_path / "disk"
    disk.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=400k", "tmpfs", str(disk)]
    if shutil.which("mount") is None or subprocess.run(mount, capture_output=True).returncode:
        pytest.skip("needs the right to mount")
    yield disk
    subprocess.run(["umount", str(disk)], check=True)


def test_a_disk_that_fills_up(disk, data, capfd):
    config = small_config(data, num_updates=100, evaluate_every=100)
    folder = disk / "run"
    with pytest.raises(OSError, match=r"Cannot write .*No space left"):
        train(config, folder)
    assert capfd.readouterr().err == ""
    check_folder(folder)
    run = Run(folder)
    step = run.steps()[-1]
    assert 0 < step < 100
    assert int(run.load()[1].step) == step
    subprocess.run(["mount", "-o", "remount,size=20m", str(disk)], check=True)
    resumed = train(config, folder, resume=True)
    assert resumed.steps()[-1] == 100
    rows = [row["step"] for row in resumed.table("train.csv")]
    assert rows == list(range(5, 101, 5))
    assert not [p for p in folder.rglob("*") if "tmp" in p.name or "partial" in p.name]


def test_a_disk_that_fills_up_with_rows(disk, data, capfd):
    config = small_config(data, evaluate_every=50, checkpoint_every=500)
    folder = disk / "run"
    train(config, folder)

    def fill(line):
        if line.startswith("update 50"):
            with contextlib.suppress(OSError), (disk / "other").open("wb", buffering=0) as file:
                while file.write(bytes(512)):
                    pass

    longer = dataclasses.replace(config, num_updates=500)
    with pytest.raises(OSError, match=r"Cannot write .*train\.csv: No space left"):
        train(longer, folder, resume=True, report=fill)
    assert capfd.readouterr().err == ""
    check_folder(folder)
    assert Run(folder).steps() == [20]
    (disk / "other").unlink()
    resumed = train(dataclasses.replace(config, num_updates=60), folder, resume=True)
    assert [row["step"] for row in resumed.table("train.csv")] == list(range(5, 61, 5))
    check_folder(folder)


# ------------------------------------------------------------------------------------ divergence


def test_a_diverged_run_keeps_its_last_finite_checkpoint(tmp_path, data, monkeypatch):
    config = small_config(data, num_updates=400, evaluate_every=400, batch_size=2)
    fatal = find_data(config).observation[:, 0].max()
    loss = TD.loss

    def diverging(self, params, slow, batch, next_action, noise):
        value, metrics = loss(self, params, slow, batch, next_action, noise)
        bad = jnp.where((batch.observation[:, 0] == fatal).any(), jnp.nan, 0.0)
        return value + bad, metrics

    monkeypatch.setattr(TD, "loss", diverging)
    folder = tmp_path / "run"
    for _ in range(2):  # Resumed, it ends the same way.
        with pytest.raises(DivergedError, match=r"Training diverged: .* at update") as caught:
            train(config, folder, resume=True)
        run = Run(folder)
        last = (caught.value.step - 1) // 5 * 5
        assert last > 0
        assert run.steps()[-1] == last
        assert [row["step"] for row in run.table("train.csv")] == list(range(5, last + 1, 5))
        _, state = run.load()
        assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(state.params))


# ----------------------------------------------------------------------------------- interruption

COMMAND = [
    *("train", "--agent", "floq"),
    *("--num-updates", "100", "--batch-size", "8", "--log-every", "5", "--evaluate-every", "25"),
    *("--evaluation-episodes", "1", "--checkpoint-every", "5", "--num-noise", "2"),
    *("--num-steps", "2", "--flow-steps", "2", "--critic.distilled-network.hidden-sizes", "8"),
    *("--critic.network.hidden-sizes", "8", "--policy.network.hidden-sizes", "8", "--resume"),
]

MORE = ("--num-updates", "600")


@pytest.fixture(scope="module")
def start(data):
    """Starts a run in a process of its own."""
    with processes() as begin:
        yield lambda folder, *more: begin(*COMMAND, "--data", data, "--out", folder, *more)


@pytest.fixture(scope="module")
def uninterrupted(start, tmp_path_factory):
    folder = tmp_path_factory.mktemp("uninterrupted") / "run"
    out, err = start(folder).communicate()
    assert err == ""  # nothing but a terminal sees progress, and nobody Orbax's log
    assert "update 25: success" in out
    return Run(folder)


@pytest.mark.slow
def test_killed_at_several_moments(start, uninterrupted, tmp_path):
    folder = tmp_path / "run"
    # Moments on the way, and then a random part of the time that a few updates take.
    moments = [folder / "config.json", folder / "train.csv"]
    moments += [folder / "checkpoints" / str(step) for step in (40, 90)]
    rng = random.Random(0)
    killed = 0
    for moment in moments:
        process = start(folder)
        wait_for(process, moment.exists)
        time.sleep(rng.uniform(0.0, 0.3))
        killed += kill(process)
        check_folder(folder)
    assert killed >= 3
    process = start(folder)
    out, err = process.communicate()
    assert (process.returncode, err) == (0, "")
    assert "done" in out
    same_run(Run(folder), uninterrupted)
    assert "learning_curve.png" in names(folder)


@pytest.mark.slow
def test_killed_at_random_moments(start, tmp_path, capsys):
    """Wherever they fall: in updates, evaluations, rows, checkpoints."""
    out, _ = start(tmp_path / "whole", *MORE).communicate()
    assert "done" in out
    folder = tmp_path / "run"
    rng = random.Random(0)
    killed = checkpointing = evaluating = before = 0
    while killed < 22:
        process = start(folder, *MORE)
        if killed % 4 == 0:  # in a start
            wait_for(process, lambda: str(process.pid) in held_by(folder))  # noqa: B023
            time.sleep(rng.uniform(0.0, 6.0))
        else:
            last = saved(folder)
            wait_for(process, lambda: saved(folder) > last)  # noqa: B023
            time.sleep(rng.uniform(0.0, 1.5))
        if not kill(process):
            break
        killed += 1
        check_folder(folder)
        if not (folder / "config.json").exists() or not Run(folder).table("train.csv"):
            before += 1
            continue
        checkpointing += bool(list(folder.glob("checkpoints/.*.partial")))
        trained = int(Run(folder).table("train.csv")[-1]["step"])
        rows = Run(folder).table("evaluation.csv")
        evaluating += trained % 25 == 0 and (not rows or rows[-1]["step"] != trained)
    process = start(folder, *MORE)
    out, err = process.communicate()
    assert (process.returncode, err) == (0, "")
    same_run(Run(folder), Run(tmp_path / "whole"))
    with capsys.disabled():
        print(
            f"\nkilled {killed} times: {checkpointing} in a checkpoint, {evaluating} in an "
            f"evaluation, {before} before the first update"
        )
    assert killed >= 20
    assert checkpointing > 0
    assert evaluating > 0


@pytest.mark.parametrize("moment", [2, 4, 5])
def test_killed_between_two_writes(tmp_path, data, monkeypatch, moment):
    """Each row and each checkpoint is a write; SIGKILL hits between two of them too rarely."""

    class Killed(BaseException):
        pass

    writes = []

    def counted(write):
        def call(self, *args, **kwargs):
            writes.append(args)
            if len(writes) == moment:
                raise Killed
            return write(self, *args, **kwargs)

        return call

    config = small_config(data, num_updates=10)
    with monkeypatch.context() as patch:
        patch.setattr(CSVLogger, "log", counted(CSVLogger.log))
        patch.setattr(Run, "save", counted(Run.save))
        with pytest.raises(Killed):
            train(config, tmp_path / "run")
    run = train(config, tmp_path / "run", resume=True)
    assert [row["step"] for row in run.table("train.csv")] == [5, 10]
    assert [row["step"] for row in run.table("evaluation.csv")] == [10]
    assert run.steps() == [5, 10]


def test_reading_does_not_disturb_a_run_that_is_being_written(copy):
    unfinished = copy / "checkpoints" / ".25.partial"
    unfinished.mkdir()
    before = names(copy / "checkpoints")
    assert int(Run(copy).load()[1].step) == 20
    assert names(copy / "checkpoints") == before
