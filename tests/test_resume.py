"""What a run that goes on needs, what may have changed, and which checkpoints there are."""

import dataclasses
import json
import os
import shutil
import subprocess
import sys

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from floq_eqx import cli
from floq_eqx.data import Replay, fingerprint
from floq_eqx.evaluation import make_environments
from floq_eqx.training import OnlineConfig, Run, checkpoints, finetune, fit, fit_online, train
from floq_eqx.training.gathering import find_data

from .runs import names, same_run, small_agent, small_config


@pytest.fixture(scope="module")
def finished(tmp_path_factory, data):
    return train(small_config(data), tmp_path_factory.mktemp("run") / "run")


@pytest.fixture
def copy(finished, tmp_path):
    folder = tmp_path / "copy"
    shutil.copytree(finished.folder, folder)
    return folder


# ------------------------------------------------------------------------------- what it needs


def test_folder_and_data_may_move(copy, data, tmp_path):
    shutil.copytree(data.parent, tmp_path / "elsewhere")
    moved = tmp_path / "elsewhere" / "other-name.npz"
    (tmp_path / "elsewhere" / data.name).rename(moved)
    copy.rename(tmp_path / "moved")
    config = small_config(moved, num_updates=30)
    run = train(config, tmp_path / "moved", resume=True)
    assert run.config.data == str(moved)
    same_run(run, train(small_config(data, num_updates=30), tmp_path / "whole"))


def test_seconds_go_on_after_a_last_evaluation(copy, data):
    """Which ended after the last row of train.csv."""
    path = copy / "evaluation.csv"
    header, *rows = (line.split(",") for line in path.read_text().splitlines())
    rows[-1][header.index("seconds")] = "1000.0"
    path.write_text("".join(",".join(line) + "\n" for line in [header, *rows]))
    run = train(small_config(data, num_updates=30), copy, resume=True)
    for name in ("train.csv", "evaluation.csv"):
        seconds = [row["seconds"] for row in run.table(name)]
        assert seconds == sorted(seconds)
        assert seconds[-1] > 1000


def test_other_data_are_refused(copy, data, tmp_path):
    with np.load(data) as arrays:
        changed = dict(arrays)
    changed["observations"][3, 2] += 1e-3
    other = tmp_path / data.name
    np.savez(other, **changed)
    before = {p: p.read_bytes() for p in copy.rglob("*") if p.is_file()}
    with pytest.raises(ValueError, match=r"trained on other data: .* content .* the same data"):
        train(small_config(other, num_updates=30), copy, resume=True)
    assert {p: p.read_bytes() for p in copy.rglob("*") if p.is_file()} == before


def test_a_fingerprint_is_of_content(data):
    found = find_data(small_config(data))
    batch = found.transitions()
    assert fingerprint(found) == fingerprint(batch)
    assert fingerprint(batch) == fingerprint(jax.tree.map(jnp.copy, batch))
    changes = {
        "reward": batch.reward.at[5].add(1),
        "mask": batch.mask[::-1].at[0].set(0),
        "next_action": batch.action,
        "observation": batch.observation.reshape(-1, batch.observation.shape[1])[::-1],
    }
    prints = [fingerprint(dataclasses.replace(batch, **{k: v})) for k, v in changes.items()]
    assert len({*prints, fingerprint(batch)}) == 5


def test_a_relative_path_is_kept_as_it_was_meant(data, tmp_path, monkeypatch):
    monkeypatch.chdir(data.parent)
    run = train(small_config(data.name, num_updates=5), tmp_path / "run")
    monkeypatch.chdir(tmp_path)
    assert run.config.data == str(data)
    assert train(run.config, tmp_path / "run", resume=True).steps() == [5]


def test_loading_makes_no_environment(copy, monkeypatch):
    def unknown(*args, **kwargs):
        raise AssertionError("an environment was made")

    monkeypatch.setattr("floq_eqx.evaluation._seeded", unknown)
    monkeypatch.setattr("gymnasium.make", unknown)
    agent, state = Run(copy).load()
    assert agent.act(state, jnp.zeros(28), key=jax.random.key(0)).shape == (5,)


@pytest.mark.parametrize(
    ("facts", "message"),
    [
        (None, "does not say the sizes.*version before"),
        ({"observation_size": 3}, "facts must hold action_size, data, observation_size"),
        ({"observation_size": 0, "action_size": 5, "data": None}, "observation_size must be"),
        ({"observation_size": 28, "action_size": 5, "data": 3}, "data must be a text"),
        ([28, 5], "facts must hold"),
    ],
)
def test_facts_that_are_none(copy, facts, message):
    path = copy / "config.json"
    plain = json.loads(path.read_text()) | {"facts": facts}
    path.write_text(json.dumps(plain))
    with pytest.raises(ValueError, match=message):
        Run(copy)


# ------------------------------------------------------------------------------ what may change


def test_what_only_watches_may_change(copy, data):
    config = small_config(
        data,
        num_updates=40,
        log_every=10,
        evaluate_every=20,
        checkpoint_every=20,
        evaluation_episodes=2,
        max_episode_steps=50,
        keep="all",
    )
    with pytest.warns(UserWarning, match="episodes did not end within 50 steps"):
        run = train(config, copy, resume=True)
    assert run.config.evaluate_every == Run(copy).config.evaluate_every == 20
    rows = run.table("evaluation.csv")
    assert [(row["step"], row["episodes"]) for row in rows] == [(10, 1), (20, 1), (40, 2)]
    assert [row["step"] for row in run.table("train.csv")] == [5, 10, 15, 20, 30, 40]
    assert run.steps() == [15, 20, 40]


def test_a_schedule_that_ended_never_looks_like_training(data, tmp_path):
    """The default run, made longer: it trained at a learning rate of zero."""
    agent = small_agent("fql", decay_updates=20)
    run = train(small_config(data, agent), tmp_path / "run")
    with pytest.raises(
        ValueError, match=r"decay_updates = 20 the learning rate is zero.*run of 30"
    ):
        small_config(data, agent, num_updates=30)
    before, lines = run.load()[1], []
    longer = small_config(data, small_agent("fql", decay_updates=30), num_updates=30)
    after = train(longer, tmp_path / "run", resume=True, report=lines.append).load()[1]
    change = jax.tree.map(lambda a, b: float(jnp.abs(a - b).max()), before.params, after.params)
    assert min(jax.tree.leaves(change)) > 0
    assert "falls to zero at update 30 from now on; until now decay_updates was 20" in lines[1]
    # A constant one can be had as well.
    constant = small_config(data, small_agent("fql"), num_updates=40)
    run = train(constant, tmp_path / "run", resume=True, report=lines.append)
    assert run.config.agent.decay_updates is None
    assert any("is constant from now on" in line for line in lines)


def test_loops_refuse_an_ended_schedule(data):
    found = find_data(small_config(data))
    batch = found.transitions()
    assert fingerprint(found) == fingerprint(batch)
    agent = small_agent("fql", decay_updates=5).for_data(batch)
    state = agent.init(28, 5, key=jax.random.key(0))
    shared = {"batch_size": 4, "key": jax.random.key(0)}
    state = fit(agent, state, batch, num_updates=5, **shared)
    with pytest.raises(ValueError, match="zero after decay_updates = 5 updates, and 6 are asked"):
        fit(agent, state, batch, num_updates=6, **shared)
    world = make_environments("Pendulum-v1", 1)
    agent = small_agent("sac", decay_updates=5, action_size=1)
    state = agent.init(3, 1, key=jax.random.key(0))
    with pytest.raises(ValueError, match="zero after decay_updates = 5 updates, and 8 are asked"):
        fit_online(
            agent, state, Replay.empty(9, 3, 1), world, num_steps=6, warmup=2, utd=2, **shared
        )
    world.close()


# ------------------------------------------------------------------------------ which are kept


@pytest.mark.parametrize(
    ("changes", "steps"),
    [
        ({}, [15, 20]),
        ({"num_kept": 3}, [10, 15, 20]),
        ({"num_kept": 1}, [15, 20]),
        ({"keep": "all"}, [5, 10, 15, 20]),
        ({"keep": "best", "num_kept": 1, "checkpoint_every": 20}, [5, 15, 20]),
        ({"keep": "best", "num_kept": 3}, [5, 15, 20]),
    ],
)
def test_keep(data, tmp_path, monkeypatch, changes, steps):
    """The best was the first evaluation."""
    successes = iter([1.0, 0.0, 0.5, 0.25])

    def evaluate(*args, **kwargs):
        (result,) = real(*args, **kwargs)
        return [dataclasses.replace(result, success=np.full(1, next(successes)))]

    from floq_eqx.training import watch

    real = watch.evaluate_many
    monkeypatch.setattr(watch, "evaluate_many", evaluate)
    config = small_config(data, evaluate_every=5, max_episode_steps=2, **changes)
    with pytest.warns(UserWarning, match="2 steps"):
        run = train(config, tmp_path / "run")
    assert run.steps() == steps
    best = 5 if 5 in steps else 15
    assert run.choose("best") == int(run.load(step="best")[1].step) == best


def test_the_best_of_none(copy, capsys):
    (copy / "evaluation.csv").unlink()
    with pytest.raises(
        FileNotFoundError, match=r"no checkpoint that was evaluated; it has.* 15, 20"
    ):
        Run(copy).choose("best")
    assert cli.main(["evaluate", str(copy), "--checkpoint", "best"]) == 1
    assert "no checkpoint that was evaluated" in capsys.readouterr().err


def test_other_versions_are_named(copy, data, monkeypatch):
    now = checkpoints.versions()
    assert set(now) == {"python", "jax", "jaxlib", "equinox", "optax", "floq_eqx", "backend"}
    saved = json.loads((copy / "checkpoints" / "20" / "versions.json").read_text())
    assert saved == now
    Run(copy).load()  # without a warning
    monkeypatch.setattr(checkpoints, "versions", lambda: now | {"jax": "9.9"})
    message = rf"Checkpoint 20 .* other versions: jax {now['jax']} then, 9.9 now .*rounding"
    with pytest.warns(UserWarning, match=message):
        Run(copy).load()
    with pytest.warns(UserWarning, match=message):
        train(small_config(data, num_updates=25), copy, resume=True)


# ---------------------------------------------------------------------------------- fine-tuning

ONLINE = {"evaluate_every": 5, "checkpoint_every": 5, "evaluation_episodes": 1}


def held(run, step):
    return run.restore_collected(Replay.empty(1, 28, 5).data, step=step).data


def test_what_was_collected_comes_along(data, copy, tmp_path):
    first = finetune(copy, tmp_path / "first", OnlineConfig(num_steps=10), changes=ONLINE)
    lines = []
    second = finetune(
        first.folder,
        tmp_path / "second",
        OnlineConfig(num_steps=5, capacity=12),
        changes=ONLINE,
        report=lines.append,
    )
    assert "10 of 10 transitions that" in lines[0]
    before, after = held(first, 30), held(second, 35)
    assert len(after) == 12
    assert eqx.tree_equal(
        jax.tree.map(lambda x: x[3:], before), jax.tree.map(lambda x: x[:7], after)
    )
    # From its first checkpoint on, it needs neither of the runs before.
    shutil.rmtree(first.folder)
    shutil.rmtree(copy)
    config = dataclasses.replace(
        second.config, online=dataclasses.replace(second.config.online, num_steps=10)
    )
    longer = train(config, second.folder, resume=True)
    assert len(held(longer, 40)) == 12
    again = finetune("nowhere", second.folder, OnlineConfig(num_steps=15, capacity=12), resume=True)
    assert again.steps()[-1] == 45


def test_killed_right_after_its_first_checkpoint(copy, tmp_path, monkeypatch):
    """What comes along is in it, though nothing has been collected yet."""
    first = finetune(copy, tmp_path / "first", OnlineConfig(num_steps=5), changes=ONLINE)
    from floq_eqx.training import trainer

    with monkeypatch.context() as patch:
        patch.setattr(trainer, "fit_online", lambda *a, **k: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            finetune(first.folder, tmp_path / "second", OnlineConfig(num_steps=5), changes=ONLINE)
    second = Run(tmp_path / "second")
    assert second.steps() == [25]
    shutil.rmtree(first.folder)
    resumed = train(second.config, second.folder, resume=True)
    assert len(held(resumed, 30)) == 10


def test_warming_up_with_the_policy(copy, tmp_path, monkeypatch):
    from floq_eqx.training import online

    random = []
    monkeypatch.setattr(
        online._World,
        "random_action",
        lambda self: random.append(1) or np.zeros((1, 5), np.float32),
    )
    options = {"num_steps": 10, "warmup": 5, "offline_data": "none"}
    run = finetune(
        copy, tmp_path / "a", OnlineConfig(**options, warmup_with="policy"), changes=ONLINE
    )
    assert (len(random), int(run.load()[1].step)) == (0, 25)
    finetune(copy, tmp_path / "b", OnlineConfig(**options), changes=ONLINE)
    assert len(random) == 5
    # Without anything to learn from, it begins by collecting.
    run = finetune(
        copy, tmp_path / "c", OnlineConfig(num_steps=10, offline_data="none"), changes=ONLINE
    )
    assert int(run.load()[1].step) == 20


# ---------------------------------------------------------------------------------- the program


def floq(capsys, *words):
    capsys.readouterr()
    try:
        status = cli.main([str(word) for word in words])
    except SystemExit as error:
        status = error.code
    return status, *capsys.readouterr()


def test_resume_alone_takes_the_options_from_the_folder(copy, capsys, data):
    before = names(copy)
    status, out, err = floq(capsys, "train", "--resume", "--out", copy)
    assert (status, err) == (0, "")
    assert "finished before: update 20 of 20" in out
    assert set(names(copy)) == {*before, "learning_curve.png"}
    words = ["--num-updates", "30", "--evaluate-every", "15", "--keep", "all"]
    status, out, err = floq(capsys, "train", "--resume", "--out", copy, *words)
    assert (status, err) == (0, "")
    config = Run(copy).config
    assert (config.num_updates, config.keep, config.agent_name) == (30, "all", "fql")
    for words, message in [
        (["--agent", "floq"], "is of --agent fql, and floq was given"),
        (["--env", "scene-play-singletask-task1-v0"], "is of --env cube-single-play"),
        (["--online-steps", "5"], "floq finetune"),
        (["--alpha", "3"], "Different: policy.alpha: 10.0 before, 3.0 now"),
        (["--seed", "3"], "Different: seed: 0 before, 3 now"),
        (["--preset", "laptop"], "Different: "),
    ]:
        status, _, err = floq(capsys, "train", "--resume", "--out", copy, *words)
        assert (status, message in err, err.count("\n")) == (1, True, 1)


def test_a_decay_goes_with_its_run(data, tmp_path, capsys):
    words = ["train", "--agent", "fql", "--data", data, "--out", tmp_path / "run"]
    words += ["--batch-size", "8", "--log-every", "5", "--evaluate-every", "10"]
    words += ["--checkpoint-every", "10", "--evaluation-episodes", "1", "--flow-steps", "2"]
    words += ["--critic.network.hidden-sizes", "8", "--policy.network.hidden-sizes", "8"]
    status, out, _ = floq(capsys, *words, "--num-updates", "10")
    assert status == 0
    assert "the learning rate falls to zero over 10 updates (--decay-updates)" in out
    status, out, _ = floq(
        capsys, "train", "--resume", "--out", tmp_path / "run", "--num-updates", 20
    )
    assert status == 0
    assert "falls to zero at update 20 from now on; until now decay_updates was 10" in out
    assert Run(tmp_path / "run").config.agent.decay_updates == 20
    words = ["--num-updates", 30, "--decay-updates", 25]
    status, _, err = floq(capsys, "train", "--resume", "--out", tmp_path / "run", *words)
    assert status == 1
    assert "give decay_updates = 30" in err


def test_finetune_resumes_from_its_own_folder(copy, capsys, tmp_path):
    out = tmp_path / "online"
    words = ["--log-every", "5", "--evaluate-every", "5", "--checkpoint-every", "5"]
    words += ["--evaluation-episodes", "1", "--out", out]
    status, _, err = floq(capsys, "finetune", copy, "--online-steps", "5", "--utd", "2", *words)
    assert (status, err) == (0, "")
    shutil.rmtree(copy)
    status, _, err = floq(capsys, "finetune", "--resume", "--out", out, "--online-steps", "10")
    assert (status, err) == (0, "")
    assert (Run(out).config.online.num_steps, Run(out).config.online.utd) == (10, 2)
    status, _, err = floq(capsys, "finetune", "--online-steps", "5")
    assert (status, "folder of the run to start from" in err) == (1, True)
    status, _, err = floq(capsys, "finetune", "--resume", "--out", tmp_path / "no")
    assert (status, "holds no run" in err) == (1, True)


# ---------------------------------------------------------------------- online, and other devices


@pytest.fixture(scope="module")
def online(finished, tmp_path_factory):
    folder = tmp_path_factory.mktemp("online") / "run"
    return finetune(finished.folder, folder, OnlineConfig(num_steps=10), changes=ONLINE)


def test_damage_to_what_was_collected(online, tmp_path):
    """The checkpoint before it is used."""
    folder = tmp_path / "copy"
    shutil.copytree(online.folder, folder)
    for file in (folder / "checkpoints" / "30" / "collected").rglob("*"):
        if file.is_file():
            file.write_bytes(file.read_bytes()[:-1])
    lines = []
    with pytest.warns(UserWarning, match=r"checkpoint 30 is damaged \(collected/.*25 is used"):
        run = train(online.config, folder, resume=True, report=lines.append)
    assert lines[0] == "continuing at step 25 of 30"
    assert len(held(run, 30)) == 10


def test_a_full_disk_online(online, tmp_path, monkeypatch):
    """The checkpoints before it stay, and the run goes on once there is room."""
    folder = tmp_path / "copy"
    shutil.copytree(online.folder, folder)
    longer = dataclasses.replace(
        online.config, online=dataclasses.replace(online.config.online, num_steps=15)
    )
    with monkeypatch.context() as patch:

        def full(path, text):
            raise OSError(28, "No space left on device")

        patch.setattr(checkpoints, "write_text", full)
        with pytest.raises(OSError, match=r"Cannot write checkpoint 35 of .*No space left"):
            train(longer, folder, resume=True)
    run = Run(folder)
    assert run.steps() == [25, 30]
    assert not list(folder.rglob("*.partial"))
    resumed = train(longer, folder, resume=True)
    assert [row["step"] for row in resumed.table("train.csv")][-2:] == [30, 35]


def test_another_number_of_devices(copy, data):
    """A run goes on where JAX has more of them, on the first."""
    code = (
        "import sys, jax; from floq_eqx.training import Run, train; import dataclasses\n"
        "run = Run(sys.argv[1])\n"
        "config = dataclasses.replace(run.config, num_updates=25)\n"
        "print(len(jax.devices()), train(config, run.folder, resume=True).steps())"
    )
    flags = "--xla_force_host_platform_device_count=3"
    done = subprocess.run(
        [sys.executable, "-c", code, copy],
        capture_output=True,
        text=True,
        env=os.environ | {"XLA_FLAGS": flags},
    )
    assert (done.stdout, done.returncode) == ("3 [20, 25]\n", 0), done.stderr
