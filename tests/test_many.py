"""Several runs in one program: the numbers of each are its own, and so is its folder."""

import dataclasses
import shlex
import shutil
import signal

import jax
import numpy as np
import pytest

from floq_eqx import cli, evaluation
from floq_eqx.agents import with_options
from floq_eqx.agents.agent import stacked_agents
from floq_eqx.cli.many import Member, members, seeds_of
from floq_eqx.evaluation import evaluate, evaluate_many, make_environments
from floq_eqx.training import (
    Interrupted,
    OnlineConfig,
    Run,
    StoppedRunsError,
    many,
    memory,
    train,
    train_many,
)
from floq_eqx.training.watch import Watch

from .runs import CUBE, names, same_run, small_agent, small_config

pytestmark = pytest.mark.filterwarnings("ignore:.*episodes did not end")
NUMBER = 3


@pytest.fixture(scope="module")
def configs(data):
    """Two seeds, and another value of two float hyperparameters."""
    config = small_config(data, max_episode_steps=5)
    swept = with_options(config.agent, {"policy.alpha": 3.0, "critic.discount": 0.9})
    return [
        config,
        dataclasses.replace(config, seed=7),
        dataclasses.replace(config, agent=swept),
    ]


@pytest.fixture(scope="module")
def alone(configs, tmp_path_factory):
    folder = tmp_path_factory.mktemp("alone")
    return [train(c, folder / str(i), progress=False) for i, c in enumerate(configs)]


@pytest.fixture(params=["Threads", "Stacked"])
def way(request, monkeypatch):
    """As on a CPU, and as on other devices."""
    monkeypatch.setattr(many, "Threads", getattr(many, request.param))
    return request.param


def paths(folder, number=NUMBER):
    return [folder / f"seed{index}" for index in range(number)]


def parameters(run):
    return jax.tree.leaves(run.load()[1].params)


def test_each_is_as_if_it_were_alone(configs, alone, tmp_path, way):
    lines = []
    runs = train_many(configs, paths(tmp_path), progress=False, report=lines.append)
    assert [line.partition(": ")[0] for line in lines] == ["seed0", "seed1", "seed2"] * 2
    for run, expected, config in zip(runs, alone, configs, strict=True):
        assert run.config.to_plain() == expected.config.to_plain() == {
            **config.to_plain(), "agent": expected.config.to_plain()["agent"]
        }  # fmt: skip
        assert names(run.folder) == names(expected.folder)
        if way == "Threads":  # one after the other would be the same
            same_run(run, expected)
            continue
        assert run.steps() == expected.steps()
        for ours, theirs in zip(parameters(run), parameters(expected), strict=True):
            np.testing.assert_allclose(ours, theirs, rtol=1e-4, atol=1e-6)
        for table in ("train.csv", "evaluation.csv"):
            for row, other in zip(run.table(table), expected.table(table), strict=True):
                assert row.keys() == other.keys()
                for name in row.keys() - {"seconds", "updates_per_second"}:
                    np.testing.assert_allclose(row[name], other[name], rtol=1e-4, atol=1e-5)
    # They differ from each other, or the above would say little.
    assert not np.array_equal(parameters(runs[0])[0], parameters(runs[1])[0])
    assert not np.array_equal(parameters(runs[0])[0], parameters(runs[2])[0])


def test_what_was_interrupted_ends_where_it_would_have(configs, tmp_path, monkeypatch, way):
    whole = train_many(configs, paths(tmp_path / "whole"), progress=False)
    sent, original = [], Watch.between

    def between(self, done):
        if done >= 12 and not sent:
            sent.append(done)
            signal.raise_signal(signal.SIGTERM)  # SIGINT may be ignored here
        return original(self, done)

    folders = paths(tmp_path / "parts")
    with monkeypatch.context() as patch:
        patch.setattr(Watch, "between", between)
        with pytest.raises(Interrupted) as caught:
            train_many(configs, folders, progress=False)
    saved = ", ".join(map(str, folders))
    assert caught.value.saved == f" at step {sent[0]}, which is saved in {saved}"
    # One has lost its last checkpoint, and goes on alone until the others are not ahead any more.
    shutil.rmtree(folders[1] / "checkpoints" / str(sent[0]))
    lines = []
    runs = train_many(configs, folders, progress=False, resume=True, report=lines.append)
    assert lines[:2] == [
        f"seed0: continuing at update {sent[0]} of 20",
        "seed1: continuing at update 10 of 20",
    ]
    for run, expected in zip(runs, whole, strict=True):
        assert [a.tolist() for a in parameters(run)] == [b.tolist() for b in parameters(expected)]
        assert run.table("evaluation.csv")[-1]["step"] == 20
    # Nothing is left to do, and one that is alone is an ordinary run.
    lines = []
    train_many(configs, folders, progress=False, resume=True, report=lines.append)
    assert lines == [f"seed{i}: finished before: update 20 of 20" for i in range(NUMBER)]
    longer = dataclasses.replace(configs[1], num_updates=30)
    assert train(longer, folders[1], progress=False, resume=True).last_step() == 30


def test_one_that_diverges_stops_alone(configs, alone, tmp_path, way):
    wild = with_options(configs[0].agent, {"learning_rate": 1e30})
    three = [*configs[:2], dataclasses.replace(configs[0], agent=wild)]
    lines = []
    with pytest.raises(StoppedRunsError, match=r"1 of 3 runs stopped: .*seed2: Tr") as caught:
        train_many(three, paths(tmp_path), progress=False, report=lines.append)
    assert list(caught.value.errors) == [tmp_path / "seed2"]
    assert [run.folder for run in caught.value.runs] == paths(tmp_path, 2)
    assert any(line.startswith("seed2: Training diverged") for line in lines)
    for run, expected in zip(caught.value.runs, alone, strict=False):
        assert run.steps() == expected.steps()
        for ours, theirs in zip(parameters(run), parameters(expected), strict=True):
            np.testing.assert_allclose(ours, theirs, rtol=1e-4, atol=1e-6)
    assert Run(tmp_path / "seed2").steps() == []


def test_what_an_update_does_is_compiled_once_for_all(configs, tmp_path, monkeypatch):
    counts = []

    def counting(*inputs):
        counts.append(inputs[3])
        return compile_steps(*inputs)

    compile_steps = many.compile_steps
    monkeypatch.setattr(many, "compile_steps", counting)
    train_many(configs, paths(tmp_path), progress=False)
    assert counts == [5]  # the updates in a call


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"batch_size": 4}, "train these one by one: batch_size: 8 and 4"),
        ({"num_updates": 30}, "one by one: num_updates: 20 and 30"),
        ({"agent": {"policy.flow_steps": 3}}, "one by one: policy.flow_steps: 2 and 3"),
        ({"agent": {"gradient_norm": 1.0}}, "one by one: gradient_norm: None and 1.0"),
        ({"online": OnlineConfig(num_steps=5)}, "online act in environments of their own"),
    ],
)
def test_only_what_changes_no_shapes_may_differ(configs, tmp_path, change, message):
    agent = with_options(configs[0].agent, change.pop("agent", {}))
    other = dataclasses.replace(configs[0], agent=agent, **change)
    both = [other, other] if other.online else [configs[0], other]
    with pytest.raises(ValueError, match=message):
        train_many(both, paths(tmp_path, 2))
    assert names(tmp_path) == []


def test_folders(configs, tmp_path):
    with pytest.raises(ValueError, match="seed0 is given twice"):
        train_many(configs[:2], [tmp_path / "seed0", tmp_path / "x" / ".." / "seed0"])
    with pytest.raises(ValueError, match="got 3 configurations and 2 folders"):
        train_many(configs, paths(tmp_path, 2))
    with pytest.raises(ValueError, match="got 0 configurations"):
        train_many([], [])
    assert names(tmp_path) == []
    train(configs[0], tmp_path / "seed0", progress=False)
    before = {p: p.read_bytes() for p in tmp_path.rglob("*") if p.is_file()}
    with pytest.raises(FileExistsError, match="never overwritten"):
        train_many(configs, paths(tmp_path))
    with pytest.raises(ValueError, match="seed0 have been trained, and seed1, seed2 are not there"):
        train_many(configs, paths(tmp_path), resume=True)
    with pytest.raises(ValueError, match=r"another configuration.*seed: 0 before, 7 now"):
        train_many([configs[1]], paths(tmp_path, 1), resume=True)
    assert {p: p.read_bytes() for p in tmp_path.rglob("*") if p.is_file()} == before
    # What a process leaves that is killed before it has made all of the folders.
    shutil.rmtree(tmp_path / "seed0" / "checkpoints")
    (tmp_path / "seed0" / "train.csv").unlink()
    (tmp_path / "seed0" / "evaluation.csv").unlink()
    runs = train_many(configs[:2], paths(tmp_path, 2), progress=False, resume=True)
    assert [run.last_step() for run in runs] == [20, 20]


def test_too_many_for_the_memory(configs, tmp_path, monkeypatch, way):
    free = memory.free_memory()
    assert free is None or free > 2**20
    monkeypatch.setattr(memory, "free_memory", lambda: 40_000)
    with pytest.raises(MemoryError, match=r"3 runs in one program take .* them: [012] fit"):
        train_many(configs, paths(tmp_path), progress=False)
    assert all(names(path) == [] for path in paths(tmp_path) if path.exists())


def test_how_many_fit(monkeypatch):
    monkeypatch.setattr(memory, "free_memory", lambda: 20)
    memory.check_memory(8, 2, held=5, temporary=4, at_once=1)
    with pytest.raises(MemoryError, match=r"them: 4 fit"):  # of 60 in all
        memory.check_memory(8, 10, held=5)
    with pytest.raises(MemoryError, match=r"them: 1 fit"):
        memory.check_memory(2, 1, temporary=15, at_once=2)
    with pytest.raises(MemoryError, match=r"them: 0 fit"):
        memory.check_memory(1, 21)


@pytest.mark.parametrize("name", ["floq", "c51"])
def test_values_that_are_a_part_of_the_program(data, tmp_path, monkeypatch, name):
    """A discount decides the support of these critics' values."""
    config = small_config(data, name, num_updates=10, max_episode_steps=3)
    other = with_options(config.agent, {"critic.discount": 0.9})
    both = [config, dataclasses.replace(config, agent=other)]
    runs = train_many(both, paths(tmp_path, 2), progress=False)
    same_run(runs[1], train(both[1], tmp_path / "alone", progress=False))
    monkeypatch.setattr(many, "Threads", many.Stacked)
    with pytest.raises(ValueError, match="on this device train them one by one"):
        train_many(both, [tmp_path / "x", tmp_path / "y"], progress=False)
    assert not (tmp_path / "x" / "config.json").exists()


def test_an_evaluation_that_fails_stops_its_run_alone(configs, tmp_path, monkeypatch):
    """And runs whose evaluations came to be due apart are evaluated side by side."""
    several = [dataclasses.replace(config, evaluation_episodes=6) for config in configs]
    act, lines = evaluation.act_batch, []

    def failing(varying, shared, states, seeds, *asked):
        action = np.array(act(varying, shared, states, seeds, *asked))
        action[np.asarray(seeds) == 7] = np.nan
        return action

    with monkeypatch.context() as patch:
        patch.setattr(evaluation, "act_batch", failing)
        with pytest.raises(StoppedRunsError, match=r"1 of 3 runs stopped: .*seed1: The policy's"):
            train_many(several, paths(tmp_path), progress=False, report=lines.append)
    text = "the evaluation failed, and what was trained until step 10 is saved in"
    assert f"seed1: {text} {tmp_path / 'seed1'}" in lines
    assert [Run(path).last_step() for path in paths(tmp_path)] == [20, 10, 20]
    runs = train_many(several, paths(tmp_path), progress=False, resume=True)
    for run in runs:
        assert [row["step"] for row in run.table("evaluation.csv")] == [10, 20]


def test_evaluations_side_by_side(monkeypatch):
    agent = small_agent("fql", action_size=5)
    other = with_options(agent, {"policy.alpha": 1.0})
    states = [agent.init(28, 5, key=jax.random.key(seed)) for seed in (0, 1)]
    calls, act = [], evaluation.act_batch

    def counting(*inputs):
        calls.append(inputs[4].shape)
        return act(*inputs)

    environments = [make_environments(CUBE, number) for number in (2, 2, 1)]
    options = {"num_episodes": 3, "max_episode_steps": 4}
    expected = [
        evaluate(agent, state, world, seed=seed, **options)
        for state, world, seed in zip(states, environments[:2], (0, 5), strict=True)
    ]
    monkeypatch.setattr(evaluation, "act_batch", counting)
    found = evaluate_many([agent, other], states, environments[:2], seeds=(0, 5), **options)
    for one, two in zip(found, expected, strict=True):
        for name in ("success", "returns", "lengths"):
            np.testing.assert_array_equal(getattr(one, name), getattr(two, name))
    assert calls == [(2, 2, 28)] * 8
    # Other numbers of environments, and another structure, are other programs.
    third = with_options(agent, {"policy.flow_steps": 3})
    worlds = [environments[0], environments[2]]
    found = evaluate_many([agent, third], states, worlds, seeds=(0, 5), **options)
    for one, two in zip(found, expected, strict=True):
        np.testing.assert_array_equal(one.returns, two.returns)
    for world in environments:
        world.close()


def test_agents_that_differ_in_more_cannot_be_stacked():
    agent = small_agent("fql", action_size=5)
    varying, _ = stacked_agents([agent, with_options(agent, {"policy.alpha": 3.0})])
    assert [leaf.tolist() for leaf in jax.tree.leaves(varying)] == [[10.0, 3.0]]
    with pytest.raises(ValueError, match="differ in more than float hyperparameters"):
        stacked_agents([agent, with_options(agent, {"policy.flow_steps": 3})])


# -------------------------------------------------------------------------------- command line


def test_seeds_and_sweeps():
    agent = small_agent("floq")
    assert seeds_of("0-2, 7") == [0, 1, 2, 7]
    found = members(agent, "3,4", None, ["alpha=30,1e2", "critic.discount=0.9"])
    assert found == [
        Member(seed, (("policy.alpha", alpha), ("critic.discount", 0.9)))
        for alpha in (30.0, 100.0)
        for seed in (3, 4)
    ]
    assert found[3].label == "policy.alpha=100-critic.discount=0.9-seed4"
    assert [m.seed for m in members(agent, None, 5, ["learning_rate=1e-4"])] == [5]


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--seeds", "0,1,0"], "--seeds 0,1,0 holds 0 twice"),
        (["--seeds", "3-1"], "such as 0-7 or 0,2,5-7: got 3-1"),
        (["--seeds", "one"], "such as 0-7 or 0,2,5-7: got one"),
        (["--seeds", "-1"], "such as 0-7 or 0,2,5-7: got -1"),
        (["--seeds", "0-999999999"], "too many for one program: at most 1000"),
        (["--seeds", "0-99", "--sweep", f"alpha={','.join(map(str, range(11)))}"], "1100 runs"),
        (["--seeds", "0,2147483648"], "seed must be in [0, 2**31), got 2147483648"),
        (["--seeds", "0", "--seed", "1"], "--seed 1 is one run and --seeds 0 several"),
        (["--sweep", "alpha"], "a hyperparameter and its values"),
        (["--sweep", "alpha=1,,2"], "a hyperparameter and its values"),
        (["--sweep", "alpha=one"], "takes numbers, got 'one'"),
        (["--sweep", "alpha=1,1.0"], "holds 1 twice"),
        (["--sweep", "alpha=1", "--sweep", "policy.alpha=2"], "is given policy.alpha twice"),
        (["--sweep", "alpa=1"], "Unknown float hyperparameter to sweep over 'alpa'"),
        (["--sweep", "temperature=1"], "selection.temperature or next_selection.temperature"),
        (["--sweep", "alpha=1,-2"], "alpha must be in [0, inf), got -2"),
        (["--sweep", "critic.num_steps=4,8"], "Others change the program"),
        (
            ["--sweep", "critic.reward_min=-1,-2"],
            "to sweep over 'critic.reward_min'",
        ),
        (["--sweep", "action_size=3"], "Unknown float hyperparameter"),
        (["--sweep", "alpha=3,30", "--alpha", "7"], "--policy.alpha is one value and --sweep"),
    ],
)
def test_bad_seeds_and_sweeps(capsys, data, monkeypatch, tmp_path, words, message):
    monkeypatch.chdir(tmp_path)
    assert cli.main(["train", "--data", str(data), *words]) == 1
    _, err = capsys.readouterr()
    assert message in err.replace("\n", " ")
    assert (err.count("\n"), names(tmp_path)) == (1, [])


def test_the_program(capsys, data, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    words = ["--agent", "fql", "--data", str(data), "--num-updates", "10", "--batch-size", "8"]
    words += ["--log-every", "5", "--evaluate-every", "10", "--evaluation-episodes", "1"]
    words += ["--checkpoint-every", "5", "--flow-steps", "2", "--max-episode-steps", "3"]
    words += ["--critic.network.hidden-sizes", "8", "--policy.network.hidden-sizes", "8"]
    both = ["--seeds", "0-1", "--sweep", "alpha=3,30"]
    assert cli.main(["train", *words, *both]) == 0
    stem = "cube-single-play-singletask-task1-fql-laptop"
    folders = [f"{stem}-policy.alpha={a}-seed{s}" for a in (3, 30) for s in (0, 1)]
    assert names("runs") == sorted(folders)
    out, _ = capsys.readouterr()
    for folder in folders:
        assert f"done: runs/{folder} holds checkpoints, tables and learning_curve.png" in out
    assert out.count("published") == 1
    # One alone is as it would be, and all go on with the options of their own.
    one = [*words, "--seed", "1", "--alpha", "30", "--out", "one"]
    assert cli.main(["train", *one]) == 0
    same_run(Run(f"runs/{folders[3]}"), Run("one"))
    assert cli.main(["train", *both, "--agent", "fql", "--resume", "--num-updates", "20"]) == 0
    assert [Run(f"runs/{folder}").last_step() for folder in folders] == [20] * 4

    # Others than are there, and a folder that is itself a run.
    before = sorted(names("runs"))
    group = ["train", "--resume", "--seeds", "8", "--out", "runs"]
    assert cli.main(group) == 1
    assert "None of the runs to resume is in runs, which holds cube" in capsys.readouterr().err
    assert cli.main(["train", *words, "--seeds", "0-1", "--out", "one"]) == 1
    assert "one is a run: several runs need a folder" in capsys.readouterr().err
    assert sorted(names("runs")) == before

    # A signal: what it prints continues all of them, here below one folder.
    words += ["--seeds", "0,3", "--out", "group"]
    original = Watch.between

    def between(self, done):
        if done == 5:
            signal.raise_signal(signal.SIGTERM)
        return original(self, done)

    with monkeypatch.context() as patch:
        patch.setattr(Watch, "between", between)
        capsys.readouterr()
        assert cli.main(["train", *words]) == 128 + signal.SIGTERM
    _, err = capsys.readouterr()
    assert "saved in group/seed0, group/seed3; floq train --resume --agent fql" in err
    command = err[err.index("; floq ") + 2 : err.index(" continues")]
    assert cli.main(shlex.split(command)[1:]) == 0
    assert [Run(f"group/seed{seed}").last_step() for seed in (0, 3)] == [10, 10]


def test_the_program_with_one_that_diverges(capsys, data, tmp_path):
    words = ["train", "--agent", "fql", "--data", str(data), "--num-updates", "10"]
    words += ["--batch-size", "8", "--log-every", "5", "--evaluation-episodes", "1"]
    words += ["--evaluate-every", "10", "--checkpoint-every", "5", "--max-episode-steps", "3"]
    words += ["--critic.network.hidden-sizes", "8", "--policy.network.hidden-sizes", "8"]
    words += ["--sweep", "learning_rate=1e-3,1e30", "--out", str(tmp_path)]
    assert cli.main(words) == 1
    out, err = capsys.readouterr()
    assert f"done: {tmp_path / 'learning_rate=0.001-seed0'} holds checkpoints" in out
    assert "floq: error: 1 of 2 runs stopped:" in err
    assert "learning_rate=1e+30-seed0: Training diverged" in err
