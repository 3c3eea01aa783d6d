"""Runs that learn online: from scratch, after offline updates, from another run, after a kill."""

import dataclasses
import json
import random
import time

import equinox as eqx
import gymnasium
import jax
import numpy as np
import pytest
from gymnasium import spaces

from floq_eqx.agents import floq, fql, rebrac, sac
from floq_eqx.data import Replay
from floq_eqx.networks import MLPConfig
from floq_eqx.training import EnvironmentFaultError, OnlineConfig, Run, TrainConfig, finetune, train

from .runs import (
    check_folder,
    kill,
    processes,
    saved,
    small_agent,
    small_config,
    wait_for,
)

SMALL = MLPConfig((8,), layer_norm=True)


class Line(gymnasium.Env):
    """A point to be kept near 0; one step of all raises where `broken` says so."""

    observation_space = spaces.Box(-np.inf, np.inf, (2,), np.float32)
    action_space = spaces.Box(-1, 1, (1,), np.float32)
    broken = None
    total = 0

    def look(self):
        return np.array([self.place, self.now], np.float32)

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.place, self.now = self.np_random.normal(), 0
        return self.look(), {}

    def step(self, action):
        Line.total += 1
        if Line.total == Line.broken:
            raise OSError("the cable is loose")
        self.place, self.now = self.place + float(action[0]), self.now + 1
        return self.look(), -abs(self.place), False, self.now == 7, {}


gymnasium.register("floq_eqx/Line-v0", Line)


def scratch(**online):
    return TrainConfig(
        environment="floq_eqx/Line-v0",
        agent=sac(critic={"network": SMALL}, policy={"network": SMALL}),
        num_updates=0,
        batch_size=4,
        log_every=10,
        evaluate_every=20,
        evaluation_episodes=2,
        checkpoint_every=20,
        online=OnlineConfig(**{"num_steps": 50, "warmup": 10} | online),
    )


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    lines = []
    folder = tmp_path_factory.mktemp("online") / "run"
    return train(scratch(), folder, report=lines.append), lines


def collected(run, step):
    return run.restore_collected(Replay.empty(1, 2, 1).data, step=step).data


def test_from_scratch(finished):
    run, lines = finished
    rows = run.table("train.csv")
    assert (
        [row["step"] for row in rows] == [row["env_steps"] for row in rows] == [*range(10, 51, 10)]
    )
    assert [row["updates"] for row in rows] == [0, 10, 20, 30, 40]
    assert [row["episodes"] for row in rows] == [1, 1, 2, 1, 2]
    assert all(row["episode_length"] == 7 for row in rows)
    assert np.isnan(rows[0]["critic_loss"])
    assert np.isfinite(rows[-1]["critic_loss"])
    assert rows[-1]["env_steps_per_second"] > 0
    assert [row["step"] for row in run.table("evaluation.csv")] == [20, 40, 50]
    assert lines[0].startswith("environment step 20: return")
    assert run.steps() == [40, 50]
    agent, state = run.load()
    assert (agent.action_size, int(state.step)) == (1, 40)
    held = collected(run, 50)
    same = np.asarray(held.observation[1:] == held.next_observation[:-1]).all(axis=1)
    assert list(np.flatnonzero(~same)) == [6, 13, 20, 27, 34, 41, 48]  # the ends of episodes
    assert np.asarray(held.mask == 1).all()  # which are truncations


def test_resuming_goes_on_from_the_last_checkpoint(finished, tmp_path):
    run, _ = finished
    lines = []
    folder = tmp_path / "run"
    train(scratch(num_steps=40), folder)
    longer = train(scratch(), folder, resume=True, report=lines.append)
    assert lines[0] == "continuing at step 40 of 50"
    before, after = collected(run, 40), collected(longer, 50)
    assert eqx.tree_equal(before, jax.tree.map(lambda x: x[:40], after))
    assert eqx.tree_equal(collected(longer, 40), before)
    assert [row["step"] for row in longer.table("train.csv")] == [*range(10, 51, 10)]
    assert int(longer.load()[1].step) == 40
    with pytest.raises(ValueError, match=r"at step 50 already.*larger online.num_steps"):
        train(scratch(num_steps=40), folder, resume=True)
    with pytest.raises(ValueError, match=r"Different: online.utd: 1 before, 2 now"):
        train(scratch(utd=2), folder, resume=True)


def test_several_environments_and_a_small_buffer(tmp_path):
    config = scratch(num_steps=51, num_environments=3, utd=2, capacity=20)
    run = train(config, tmp_path / "run")
    assert [row["step"] for row in run.table("train.csv")] == [12, 21, 30, 42, 51]
    assert [row["step"] for row in run.table("evaluation.csv")] == [21, 42, 51]
    assert run.steps() == [42, 51]
    assert int(run.load()[1].step) == (51 - 12) * 2
    config = dataclasses.replace(config, online=dataclasses.replace(config.online, num_steps=60))
    longer = train(config, run.folder, resume=True)
    assert longer.steps()[-1] == 60


def test_offline_then_online(data, tmp_path):
    agent = dataclasses.replace(small_agent("bc"), decay_updates=None)
    online = OnlineConfig(num_steps=10)
    config = small_config(data, agent, num_updates=20, evaluate_every=20, online=online)
    run = train(config, tmp_path / "run")
    rows = run.table("train.csv")
    assert [row["step"] for row in rows] == [5, 10, 15, 20, 25, 30]
    assert [row["updates"] for row in rows] == [5, 10, 15, 20, 25, 30]
    assert [row["env_steps"] for row in rows] == [0, 0, 0, 0, 5, 10]
    assert [row["step"] for row in run.table("evaluation.csv")] == [20, 30]
    assert run.steps() == [25, 30]
    # The part offline is that of a run without another.
    alone = train(dataclasses.replace(config, online=None), tmp_path / "alone")
    losses = [row["loss"] for row in alone.table("train.csv")]
    assert losses == [row["loss"] for row in rows][:4]
    # And a run that starts from that one does the same online.
    again = finetune(alone.folder, tmp_path / "again", online)
    assert again.config.online.start == str(alone.folder)
    assert again.steps() == [25, 30]
    assert eqx.tree_equal(again.load()[1], run.load()[1])
    assert [row["step"] for row in again.table("evaluation.csv")] == [20, 30]
    assert alone.steps() == [15, 20]


def test_a_rate_that_decayed_is_constant_online(data, tmp_path):
    agent = dataclasses.replace(small_agent("bc"), decay_updates=20)
    source = train(small_config(data, agent, evaluate_every=20), tmp_path / "source")
    online = OnlineConfig(num_steps=5, offline_data="mixture")
    run = finetune(source.folder, tmp_path / "run", online, changes={"evaluate_every": 5})
    assert run.config.agent.decay_updates is None
    start, end = source.load()[1], run.load()[1]
    assert int(end.step) == 25
    assert not eqx.tree_equal(start.params, end.params)


def test_a_broken_environment_leaves_a_run_that_resumes(tmp_path, monkeypatch):
    monkeypatch.setattr(Line, "total", 0)
    monkeypatch.setattr(Line, "broken", 17)
    folder = tmp_path / "run"
    with pytest.raises(EnvironmentFaultError, match=r"at step 16.*the cable is loose"):
        train(scratch(), folder)
    run = Run(folder)
    assert run.steps() == [16]
    assert [row["step"] for row in run.table("train.csv")] == [10, 16]
    monkeypatch.setattr(Line, "broken", None)
    assert train(scratch(), folder, resume=True).steps() == [40, 50]
    assert [r["step"] for r in run.table("train.csv")] == [10, 16, 20, 30, 40, 50]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"utd": 0}, "utd must be a whole number"),
        ({"num_steps": 0}, "num_steps must be"),
        ({"warmup": -1}, "warmup must be a whole number of at least 0, got -1"),
        ({"capacity": 2, "num_environments": 3}, "cannot hold one step of 3"),
        ({"num_steps": 10, "num_environments": 3}, "multiple of num_environments = 3"),
        ({"offline_fraction": 1.5}, "offline_fraction must be in"),
        ({"offline_data": "some"}, "offline_data"),
    ],
)
def test_settings_that_make_no_sense(change, message):
    # A TypeError where types are checked too, as in these tests.
    with pytest.raises((ValueError, TypeError), match=message):
        OnlineConfig(**change)


def test_what_cannot_be_learned_online():
    with pytest.raises(ValueError, match="no offline data but your own"):
        train(dataclasses.replace(scratch(), num_updates=10), "nowhere")
    with pytest.raises(ValueError, match="next action"):
        dataclasses.replace(scratch(), agent=rebrac())
    with pytest.raises(ValueError, match="learning rate is zero before the run of"):
        dataclasses.replace(scratch(), agent=fql(decay_updates=10))
    with pytest.raises(ValueError, match=r"of Line-v0, which is not .*online, from scratch"):
        train(TrainConfig(environment="Line-v0"), "nowhere")
    with pytest.raises(ValueError, match="Nowhere-v0' is neither"):
        train(dataclasses.replace(scratch(), environment="Nowhere-v0"), "nowhere")


def test_configurations_of_online_runs(tmp_path):
    config = dataclasses.replace(scratch(start="elsewhere"), agent=floq(decay_updates=None))
    plain = json.loads(json.dumps(config.to_plain()))
    assert TrainConfig.from_plain(plain).to_plain() == plain
    for name, value, message in [
        ("utdd", 3, "Unknown setting 'utdd'; did you mean utd"),
        ("utd", "3", "utd must be a whole number, got '3'"),
        ("warmup", "3", "warmup must be a whole number, got '3'"),
        ("start", 3, "start must be a text, got 3"),
        ("keep_offline", 1, "keep_offline must be true or false, got 1"),
    ]:
        with pytest.raises(ValueError, match=message):
            TrainConfig.from_plain(plain | {"online": plain["online"] | {name: value}})
    with pytest.raises(ValueError, match="online must be a mapping"):
        TrainConfig.from_plain(plain | {"online": 3})


# ------------------------------------------------------------------------------------------- kills

COMMAND = [
    *("train", "--agent", "sac", "--env", "Pendulum-v1", "--warmup", "50", "--batch-size", "8"),
    *("--log-every", "20", "--evaluate-every", "100", "--evaluation-episodes", "1"),
    *("--checkpoint-every", "20"),
    *("--critic.network.hidden-sizes", "8", "--policy.network.hidden-sizes", "8"),
    *("--resume", "--online-steps"),
]


def check_online(folder):
    check_folder(folder)
    if (folder / "config.json").exists():
        run = Run(folder)
        for step in run.steps():
            held = run.restore_collected(Replay.empty(1, 3, 1).data, step=step).data
            assert len(held) == step
            assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(held))
            assert int(run.load(step=step)[1].step) == max(0, step - 50)


def kill_and_resume(folder, times, num_steps):
    """Kills a run so often, at random moments after a start or a checkpoint, and lets it end."""
    rng = random.Random(0)
    killed = checkpointing = 0
    starting = 0.0  # seconds to the first checkpoint
    with processes() as begin:
        while killed < times:
            began, last = time.monotonic(), saved(folder)
            process = begin(*COMMAND, num_steps, "--out", folder)
            if killed % 5 == 1:  # in a start
                time.sleep(rng.uniform(0.0, starting))
            else:
                wait_for(process, lambda: saved(folder) > last)  # noqa: B023
                starting = time.monotonic() - began
                time.sleep(rng.uniform(0.0, num_steps / 4000))
            if not kill(process):
                break
            killed += 1
            checkpointing += bool(list(folder.glob("checkpoints/.*.partial")))
            check_online(folder)
        out, err = begin(*COMMAND, num_steps, "--out", folder).communicate()
    assert err == ""
    assert "done" in out
    check_online(folder)
    run = Run(folder)
    steps = [row["step"] for row in run.table("train.csv")]
    assert steps == [*range(20, num_steps + 1, 20)]
    assert [r["step"] for r in run.table("evaluation.csv")] == [*range(100, num_steps + 1, 100)]
    assert [r["updates"] for r in run.table("train.csv")] == [max(0, step - 50) for step in steps]
    return killed, checkpointing


def test_killed_online(tmp_path):
    killed, _ = kill_and_resume(tmp_path / "run", 3, 200)
    assert killed >= 2


@pytest.mark.slow
def test_killed_online_at_random_moments(tmp_path, capsys):
    killed, checkpointing = kill_and_resume(tmp_path / "run", 22, 4000)
    with capsys.disabled():
        print(f"\nkilled {killed} times online, {checkpointing} in a checkpoint")
    assert killed >= 20
    assert checkpointing > 0
