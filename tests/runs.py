"""Runs that are small enough to train in a test, and processes to kill."""

import contextlib
import dataclasses
import signal
import subprocess
import sys
import time
from pathlib import Path

import equinox as eqx
import numpy as np
import pytest

from floq_eqx.agents import (
    CRITICS,
    POLICIES,
    RECIPES,
    ActorCritic,
    BoundedCritic,
    Selection,
    with_options,
)
from floq_eqx.data import make_environment
from floq_eqx.networks import MLPConfig, NetworkConfig
from floq_eqx.training import Facts, Run, TrainConfig

CUBE = "cube-single-play-singletask-task1-v0"
FACTS = Facts(observation_size=28, action_size=5)
# Contracts hold for every agent, and each compiles for seconds: one agent of each kind is looked at
# in every run of the suite, and the others by `pytest -m slow`.
CONTRACTED = [
    name
    if name in ("floq", "value_flows", "sac", "iql")
    else pytest.param(name, marks=pytest.mark.slow)
    for name in RECIPES
]
# A child inherits that signals are ignored, as they are in the background of a shell.
PROGRAM = (
    "import runpy, signal; signal.signal(signal.SIGINT, signal.default_int_handler); "
    "signal.signal(signal.SIGTERM, signal.SIG_DFL); "
    "runpy.run_module('floq_eqx', run_name='__main__', alter_sys=True)"
)


def small_agent(name, **changes):
    """A recipe with tiny networks and few samples, whatever its options are called."""
    return with_options(shrunk(RECIPES[name]()), changes)


def small_pair(critic, policy, /, **changes):
    """The same of a critic and a policy by their kinds, with what it takes to make sense of them.

    A policy that never asks the critic has it choose among two actions.
    """
    critic, policy = CRITICS[critic](), POLICIES[policy]()
    if isinstance(critic, BoundedCritic) and hasattr(policy, "backup_entropy"):
        policy = with_options(policy, {"backup_entropy": False})
    selection = Selection(1 if policy.uses_value else 2)
    return with_options(shrunk(ActorCritic(critic, policy, selection)), changes)


def shrunk(agent, hidden_sizes=(8,)):
    """The agent with tiny networks and few samples."""
    few = dict.fromkeys(("num_noise", "num_steps", "flow_steps", "max_steps", "action_steps"), 2)
    options = {}
    for part in ("critic", "policy", "selection", "next_selection"):
        module = getattr(agent, part)
        for field in dataclasses.fields(module) if module is not None else ():
            value = getattr(module, field.name)
            if isinstance(value, NetworkConfig):
                value = MLPConfig(hidden_sizes, layer_norm=True)
            elif field.name == "num_candidates":
                value = min(value, 2)
            value = few.get(field.name, value)
            options.setdefault(part, {})[field.name] = value
    return with_options(agent, options)


def small_config(data, agent="fql", **changes):
    config = TrainConfig(
        agent=small_agent(agent) if isinstance(agent, str) else agent,
        num_updates=20,
        batch_size=8,
        log_every=5,
        evaluate_every=10,
        evaluation_episodes=1,
        checkpoint_every=5,
        data=str(data),
    )
    return dataclasses.replace(config, **changes)


def write_dataset(path, *, solved=True, steps=30, episodes=4):
    """A file of cube-single's shapes, of noise, in which the cube lies at the goal now and then."""
    env = make_environment(CUBE)
    try:
        env.reset(seed=0)
        model, goal = env.unwrapped.model, env.unwrapped._data.mocap_pos[0].copy()
        size = env.observation_space.shape[0]
    finally:
        env.close()
    rng = np.random.default_rng(0)
    rows = steps * episodes
    qpos = rng.normal(size=(rows, model.nq))
    if solved:
        qpos[::7, 14:17] = goal
    terminals = np.zeros(rows, bool)
    terminals[steps - 1 :: steps] = True
    np.savez(
        path,
        observations=rng.normal(size=(rows, size)).astype(np.float32),
        actions=rng.uniform(-1, 1, size=(rows, 5)).astype(np.float32),
        terminals=terminals,
        qpos=qpos.astype(np.float32),
        qvel=np.zeros((rows, model.nv), np.float32),
    )
    return path


@contextlib.contextmanager
def processes():
    """Starts the program, and ends what is left of it."""
    running = []

    def begin(*words):
        process = subprocess.Popen(
            [sys.executable, "-c", PROGRAM, *map(str, words)],
            **{"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True},
        )
        running.append(process)
        return process

    yield begin
    for process in running:
        process.kill()
        process.communicate()


def names(folder):
    return sorted(p.name for p in Path(folder).iterdir())


def wait_for(process, condition):
    """Until it holds, or the process that is to make it hold has ended."""
    while not condition() and process.poll() is None:
        time.sleep(0.001)


def check_folder(folder):
    """What holds at any moment: nothing under its final name is half-written."""
    if not folder.exists():
        return
    if not (folder / "config.json").exists():
        assert all(name.startswith(".lock") or name.endswith(".partial") for name in names(folder))
        return
    run = Run(folder)
    for name in ("train.csv", "evaluation.csv"):
        steps = [row["step"] for row in run.table(name)]
        assert steps == sorted(set(steps))
    assert [run.damage(step) for step in run.steps()] == [None] * len(run.steps())
    assert all(p.name.isdecimal() or ".partial" in p.name for p in folder.glob("checkpoints/*"))
    known = {"config.json", "train.csv", "evaluation.csv", "checkpoints", "learning_curve.png"}
    others = set(names(folder)) - known - {".lock", ".lock.holder"}
    assert all(name.endswith(".partial") for name in others)


def kill(process):
    """Whether it was still running."""
    process.send_signal(signal.SIGKILL)
    process.communicate()
    return process.returncode == -signal.SIGKILL


def saved(folder):
    """The number of the last checkpoint."""
    steps = [int(p.name) for p in folder.glob("checkpoints/*") if p.name.isdecimal()]
    return max(steps, default=0)


def held_by(folder):
    with contextlib.suppress(FileNotFoundError):
        return (folder / ".lock.holder").read_text()
    return ""


def same_parameters(a, b):
    return eqx.tree_equal(a.load()[1], b.load()[1])


def same_run(run, expected, checkpoints=None):
    assert names(run.folder) == names(expected.folder)
    assert run.steps() == (checkpoints or expected.steps())
    assert same_parameters(run, expected)
    for name, columns in [("train.csv", ["step", "loss"]), ("evaluation.csv", ["step", "success"])]:
        rows, expected_rows = run.table(name), expected.table(name)
        for column in columns:
            assert [row[column] for row in rows] == [row[column] for row in expected_rows]
        seconds = [row["seconds"] for row in rows]
        assert seconds == sorted(seconds)
