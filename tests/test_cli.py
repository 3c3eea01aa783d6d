"""The program: every command, what it prints, and its exit status."""

import csv
import fcntl
import json
import math
import os
import pty
import re
import shutil
import struct
import subprocess
import sys
import termios

import diffrax
import jax
import pytest

from floq_eqx import analysis, cli
from floq_eqx.agents import (
    RECIPES,
    TD,
    BehaviouralFlow,
    Deterministic,
    Flow,
    Gaussian,
    OneStep,
    Selection,
    Shortcut,
    SoftReturnFlow,
)
from floq_eqx.analysis import solver_study
from floq_eqx.networks import MLPConfig, ResidualConfig
from floq_eqx.presets import published
from floq_eqx.recording import record
from floq_eqx.training import Run, TrainConfig

from .runs import CUBE, FACTS, small_agent

SMALL = [
    *("--num-updates", "10", "--batch-size", "8", "--log-every", "5", "--evaluate-every", "10"),
    *("--evaluation-episodes", "1", "--checkpoint-every", "5", "--flow-steps", "2"),
    *("--critic.network.hidden-sizes", "8", "--policy.network.hidden-sizes", "8"),
]
FLOQ = ["--num-noise", "2", "--num-steps", "2", "--critic.distilled-network.hidden-sizes", "8"]


@pytest.fixture(scope="module", params=["floq", "fql"])
def run(request, data, tmp_path_factory):
    """A run of each agent, made by the program; not to be changed."""
    folder = tmp_path_factory.mktemp("runs") / request.param
    words = [*SMALL, *(FLOQ if request.param == "floq" else [])]
    words += ["--agent", request.param, "--data", str(data), "--out", str(folder)]
    assert cli.main(["train", *words]) == 0
    return folder, words


def floq(capsys, *words):
    """Exit status, and what was printed to stdout and stderr."""
    capsys.readouterr()
    try:
        status = cli.main(list(words))
    except SystemExit as stop:
        status = stop.code
    out, err = capsys.readouterr()
    return status, out, err


# ------------------------------------------------------------------------------------------ help


@pytest.mark.parametrize("words", [["--help"], ["-h"]])
def test_help(capsys, words):
    status, out, err = floq(capsys, *words)
    assert (status, err) == (0, "")
    for command in ("train", "evaluate", "collect", "plot"):
        assert re.search(rf"^  {command} +\w", out, re.MULTILINE)


def test_without_a_command(capsys):
    status, out, _ = floq(capsys)
    assert (status, out.split()[0]) == (2, "usage:")


@pytest.fixture
def told(capsys, monkeypatch):
    """The lines of a help, and its text; every option says what it is, without Markdown."""
    monkeypatch.setenv("COLUMNS", "120")  # one column, in which the names of all agents fit

    def read(*words, groups=()):
        status, out, err = floq(capsys, *words, "--help", *groups)
        assert (status, err) == (0, "")
        text = " ".join(re.sub("[│╭╮╰╯─]|-{9,}", " ", out).split())
        options = re.split(r"(?<!,) (?=--[\w.-]+,? )", text.partition("exit")[2])[1:]
        assert len(options) > 2
        assert not [o for o in options if not re.search(r"\. \((default: |required|repeat)", o)]
        assert not [mark for mark in ("`", "**", "](", "][", "Raises") if mark in text]
        return out, text

    return read


@pytest.mark.parametrize("command", cli.COMMANDS)
def test_help_of_a_command(told, command):
    assert f"usage: floq {command}" in told(command)[1]


@pytest.mark.parametrize(
    ("words", "groups"),
    [
        (
            "train",
            "run data learning online critic critic.network critic.distilled-network policy "
            "policy.network selection next-selection",
        ),
        (
            "train --agent iql",
            "run data learning online critic critic.network policy policy.network selection",
        ),
        ("train --agent bc", "run data learning online policy policy.network"),
        ("evaluate", "selection critic"),
    ],
)
def test_help_in_groups(told, words, groups):
    asked = TRAIN_GROUPS if words.startswith("train") else ()
    out, _ = told(*words.split(), groups=asked)
    found = re.findall(r"^\W*([\w.-]+) options\b", out, re.MULTILINE)
    assert found == groups.split()


TRAIN_GROUPS = ("run", "data", "learning", "online", "critic", "policy", "selection")
TRAIN_GROUPS += ("next_selection",)


def test_help_of_train_is_short(told):
    """It names the options of every group, and explains those of a group that is asked for."""
    out, text = told("train")
    assert len(out.splitlines()) < 60
    assert "selection: num-candidates, proposal, temperature next-selection: num-" in text
    assert "critic: adjoint, aggregation" in text
    assert "--critic.adjoint" not in text
    assert "num-updates" in text
    assert "--num-updates" not in text
    out, text = told("train", "--critic", "td", groups=("critic", "selection"))
    assert re.findall(r"^\W*([\w.-]+) options\b", out, re.MULTILINE) == [
        *("critic", "critic.network", "selection")
    ]
    assert "--critic.target-members" in text
    assert "--agent" not in text


@pytest.mark.parametrize(
    ("preset", "agent"),
    [
        *(("laptop", agent) for agent in RECIPES),
        *(("paper", "floq"), ("paper", "fql"), ("paper-best", "floq"), ("paper-online", "floq")),
    ],
)
def test_help_of_train_shows_the_choice(told, agent, preset):
    words = ("train", "--agent", agent, f"--preset={preset}")
    _, text = told(*words)
    assert f"--agent {{{','.join(RECIPES)}}}" in text
    assert f"(default: {agent})" in text
    assert "--preset {laptop,paper,paper-best,paper-online}" in text
    assert f"(default: {preset})" in text
    assert (
        "--env STR An OGBench task or, online or with your own data, a Gymnasium id; or none."
        in text
    )
    assert f"(default: {CUBE})" in text
    _, text = told(*words, groups=("run",))
    assert "--batch-size INT The number of transitions in an update. (default: 256)" in text


def test_as_a_module():
    done = subprocess.run(
        [sys.executable, "-m", "floq_eqx", "trian"], capture_output=True, text=True
    )
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr == "floq: error: Unknown command 'trian'; did you mean train?\n"


# ---------------------------------------------------------------------------------------- errors


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["trian"], "Unknown command 'trian'; did you mean train?"),
        (["train", "--agent", "flok"], "Unknown agent 'flok'; did you mean floq?"),
        (["train", "--preset", "papr"], "Unknown preset 'papr'; did you mean paper"),
        (["train", "--preset", "paper", "--agent", "bc"], "agent of the papers' cube-single 'bc'"),
        (["train", "--preset", "paper-online", "--agent", "fql"], "cube-single online 'fql'"),
        (
            ["train", "--critic.network.kind", "resnet"],
            "Unknown kind of network 'resnet'; did you mean",
        ),
        (["train", "--env", "cube-singel-play-v0"], "Did you mean cube-single-play-v0"),
        (["train", "--env", "cube-single-play-v0"], "cube-single-play-singletask-task1-v0"),
        (
            ["train", "--preset", "paper", "--env", "pointmaze-medium-navigate-singletask-v0"],
            "Unknown environment of the papers 'pointmaze-medium'",
        ),
        (["train", "--critic", "flo"], "Unknown critic 'flo'; did you mean flow"),
        (["train", "--policy", "onestep"], "Unknown policy 'onestep'; did you mean one_step?"),
        (["train", "--agent", "iql", "--policy", "one_step"], "were asked for: leave --agent out."),
        (["train", "--agent", "floq", "--critic", "td"], "the critic flow and the policy one_step"),
        (["train", "--critic", "none"], "OneStep raises a value, and there is no critic"),
        (["train", "--policy", "gaussian", "--preset", "paper"], "report nothing of Flow x Gauss"),
        (["train", "--policy", "gaussian", "--cloning-weight", "3"], "with extraction = 'awr'"),
        (["train", "--policy", "gaussian", "--selection.proposal", "behaviour"], "has no clone of"),
        (
            ["train", "--network.hidden-sizes", "8"],
            "could be --critic.network.hidden-sizes and --policy.network.hidden-sizes: name",
        ),
        (
            ["train", "--num-candidates", "8"],
            "--next-selection.num-candidates and --selection.num-candidates",
        ),
        (["train", "--discount", "1.0"], "discount must be in [0, 1), got 1.0."),
        (["train", "--discount", "-0.5"], "discount must be in [0, 1), got -0.5."),
        (["train", "--batch-size", "0"], "batch_size must be a whole number of at least 1, got 0"),
        (["train", "--num-updates", "-5"], "num_updates must be a whole number of at least 1"),
        (["train", "--num-noise", "0"], "num_noise must be a whole number of at least 1, got 0"),
        (["train", "--num-steps", "-1"], "num_steps must be a whole number of at least 1, got -1"),
        (["train", "--ensemble-size", "0"], "ensemble_size must be"),
        (["train", "--num-bins", "-2"], "-2"),
        (["train", "--policy.network.hidden-sizes", "0"], "0"),
        (["train", "--log-every", "7"], "evaluate_every must be a multiple of log_every = 7"),
        (["train", "--seed", "-1"], "seed must be in [0, 2**31), got -1"),
        (["train", "--data", "/nonexistent/x.npz"], "/nonexistent/x.npz"),
        (["evaluate", "/nonexistent"], "/nonexistent holds no run: it has no config.json."),
        (["evaluate", "/nonexistent", "--episodes", "0"], "episodes must be a whole number"),
        (["plot"], "give the folder of at least one run"),
        (["plot", "/nonexistent"], "/nonexistent holds no run"),
        (["collect", "cube-singel-play-v0"], "Did you mean cube-single-play-v0"),
        (["collect", "antmaze-large-navigate-v0"], "its expert is a trained policy"),
        (["collect", "cube-single-play-v0", "--mirror", "http://x"], "give --fetch with it"),
        (["collect", "cube-single-play-v0", "--episodes", "0"], "at least 1, got 0"),
    ],
)
def test_errors_are_one_line(capsys, tmp_path, monkeypatch, words, message):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path))
    # No mistake here may come to light only after minutes of collecting.
    monkeypatch.setattr("floq_eqx.training.gathering.collect_dataset", pytest.fail)
    status, _, err = floq(capsys, *words)
    assert status == 1
    assert err.startswith("floq: error: ")
    assert err.count("\n") == 1
    assert message in err


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["train", "--agent"], "--agent"),
        (["train", "--critic.network.kind"], "--critic.network.kind"),
        (["train", "--num-update", "4"], "--num-updates"),
        (["train", "--num-updates", "many"], "many"),
        (["train", "--agent", "fql", "--num-noise", "4"], "--num-noise"),
        (["train", "--agent", "bc", "--critic.network.kind", "residual"], "--critic.network.kind"),
        (
            ["train", "--critic.network.kind", "residual", "--critic.network.hidden-sizes", "8"],
            "hidden-sizes",
        ),
        (["train", "--critic.network.width", "8"], "--critic.network.width"),
        (["train", "--solver", "eular"], "euler"),
        (["evaluate"], "STR"),
        (["evaluate", "x", "--checkpiont", "3"], "--checkpoint"),
        (["collect"], "STR"),
        (["plot", "x", "--metric", "q"], "success"),
    ],
)
def test_options_that_do_not_parse(capsys, words, message):
    status, out, err = floq(capsys, *words)
    assert status == 2
    assert message in out + err
    assert "Traceback" not in out + err


@pytest.mark.parametrize(
    ("error", "line"),
    [
        (OSError(28, "No space left on device"), "No space left on device"),
        (OSError(28, "No space left on device", "/x"), "No space left on device: '/x'"),
        (RuntimeError("This machine cannot render"), "This machine cannot render"),
        (MemoryError(), "MemoryError"),
    ],
)
def test_errors_of_the_machine(capsys, monkeypatch, error, line):
    def fail(*args, **kwargs):
        raise error

    monkeypatch.setattr("floq_eqx.cli.train.train", fail)
    status, _, err = floq(capsys, "train", "--out", "/nonexistent")
    assert (status, err) == (1, f"floq: error: {line}\n")


def test_interrupted(capsys, monkeypatch):
    def interrupt(*args, **kwargs):
        raise KeyboardInterrupt

    monkeypatch.setattr("floq_eqx.cli.train.train", interrupt)
    monkeypatch.setattr("floq_eqx.cli.evaluate.Run", interrupt)
    status, _, err = floq(capsys, "train")
    assert (status, err) == (130, "floq: interrupted\n")
    status, _, err = floq(capsys, "evaluate", "x")
    assert (status, err) == (130, "floq: interrupted\n")


# -------------------------------------------------------------------------------------- commands


def test_train(run, capsys):
    folder, words = run
    assert {p.name for p in folder.iterdir()} == {
        *(".lock", "config.json", "train.csv", "evaluation.csv", "checkpoints"),
        "learning_curve.png",
    }
    config = Run(folder).config
    assert (config.num_updates, config.agent_name) == (10, folder.name)
    assert config.agent.critic.network.hidden_sizes == (8,)
    status, _, err = floq(capsys, "train", *words)
    assert status == 1
    assert "already holds a run, which is never overwritten" in err
    status, out, err = floq(capsys, "train", *words, "--resume")
    assert (status, err) == (0, "")
    assert "finished before: update 10 of 10" in out
    assert out.endswith(published(folder.name, CUBE) + "\n")
    status, _, err = floq(capsys, "train", *words, "--resume", "--alpha", "3")
    assert status == 1
    assert "Different: policy.alpha: 300.0 before, 3.0 now." in err


def test_where_a_run_goes(capsys, monkeypatch, tmp_path):
    seen = []

    def train(config, folder, **kwargs):
        seen.append((config, folder))
        raise ValueError("enough")

    monkeypatch.setattr("floq_eqx.cli.train.train", train)
    floq(capsys, "train", "--adjoint", "directadjoint")
    assert type(seen.pop()[0].agent.critic.adjoint).__name__ == "DirectAdjoint"
    floq(capsys, "train", "--agent=fql", "--seed", "3", "--alpha", "7", "--normalise-q")
    config, folder = seen[0]
    policy = config.agent.policy
    assert str(folder) == "runs/cube-single-play-singletask-task1-fql-laptop-seed3"
    assert (config.seed, policy.alpha, policy.normalise_q) == (3, 7.0, True)
    env = "scene-play-singletask-task2-v0"
    floq(capsys, "train", "--preset", "paper", "--env", env, "--solver", "heun")
    config, folder = seen[1]
    assert str(folder) == "runs/scene-play-singletask-task2-floq-paper-seed0"
    assert (config.environment, config.num_updates) == (env, 2_000_000)
    assert type(config.agent.critic.solver).__name__ == "Heun"
    env = "antmaze-giant-navigate-singletask-v0"
    floq(capsys, "train", "--preset=paper-best", "--env", env)
    config, folder = seen[2]
    assert str(folder) == "runs/antmaze-giant-navigate-singletask-floq-paper-best-seed0"
    assert (config.agent.critic.num_steps, config.batch_size) == (4, 512)


@pytest.fixture
def asked(capsys, monkeypatch):
    """The configuration and the folder that the words come to, without training."""
    seen = []

    def train(config, folder, **kwargs):
        seen.append((config, folder))
        raise ValueError("enough")

    monkeypatch.setattr("floq_eqx.cli.train.train", train)

    def ask(*words):
        assert floq(capsys, "train", *words) == (1, seen_line(), "floq: error: enough\n")
        return seen.pop()

    def seen_line():
        config, folder = seen[-1]
        return f"training {config.agent_name} on {config.environment} in {folder}\n"

    return ask


@pytest.mark.parametrize(
    ("words", "critic", "policy", "name"),
    [
        ("--critic flow --policy gaussian", Flow, Gaussian, "flow-gaussian"),
        # One part of floq is exchanged.
        ("--critic td", TD, OneStep, "fql"),
        ("--critic=soft_return_flow", SoftReturnFlow, OneStep, "soft_return_flow-one_step"),
        ("--policy shortcut", Flow, Shortcut, "flow-shortcut"),
        ("--policy behavioural_flow", Flow, BehaviouralFlow, "flow-behavioural_flow"),
        ("--agent rebrac --policy deterministic", TD, Deterministic, "rebrac"),
        ("--critic none --policy behavioural_flow", type(None), BehaviouralFlow, "bc_flow"),
    ],
)
def test_critics_and_policies_by_their_names(asked, words, critic, policy, name):
    config, folder = asked(*words.split())
    agent = config.agent
    assert (type(agent.critic), type(agent.policy), config.agent_name) == (critic, policy, name)
    assert str(folder) == f"runs/cube-single-play-singletask-task1-{name}-laptop-seed0"
    # What only clones has the critic choose among its actions.
    clones = agent.critic is not None and not agent.policy.uses_value
    assert agent.selection == Selection(16 if clones else 1)
    assert agent.policy.network.hidden_sizes == (256, 256)


def test_options_of_the_parts(asked):
    words = ["--critic", "flow", "--policy", "gaussian", "--policy.extraction", "ddpgbc"]
    agent = asked(*words, "--cloning-weight", "3", "--no-distil")[0].agent
    assert agent.policy.extraction == "ddpgbc"
    assert agent.policy.cloning_weight == 3
    assert not agent.critic.distil
    words = ["--selection.num-candidates", "16", "--selection.proposal", "behaviour"]
    agent = asked(*words)[0].agent
    assert agent.selection == Selection(16, proposal="behaviour")
    assert agent.next_selection == Selection()
    config, _ = asked("--num-steps", "16", "--policy.network.hidden-sizes", "8", "4")
    assert (config.agent.critic.num_steps, config.online) == (16, None)
    assert config.agent.policy.network.hidden_sizes == (8, 4)
    assert config.agent.critic.network.hidden_sizes == (128, 128)
    # Without another part of such an option, the bare name will do.
    agent = asked("--agent", "ifql", "--num_candidates=5")[0].agent
    assert agent.selection.num_candidates == 5
    agent = asked("--agent", "bc", "--network.kind", "residual", "--network.width", "8")[0].agent
    assert agent.policy.network == ResidualConfig(width=8)


def test_a_run_of_no_name(capsys, data, tmp_path):
    folder = tmp_path / "run"
    words = ["--critic", "flow", "--policy", "gaussian", "--policy.extraction", "ddpgbc", *FLOQ]
    words += [word for word in SMALL if word not in ("--flow-steps", "2")]
    words += ["--data", str(data), "--out", str(folder)]
    status, out, err = floq(capsys, "train", *words)
    assert (status, err) == (0, "")
    assert out.startswith("training flow-gaussian on")
    plain = json.loads((folder / "config.json").read_text())["agent"]
    assert (plain["critic"]["kind"], plain["policy"]["kind"]) == ("flow", "gaussian")
    status, out, _ = floq(capsys, "train", *words, "--resume")
    assert (status, "finished before: update 10 of 10" in out) == (0, True)
    status, out, _ = floq(capsys, "plot", str(folder), "--out", str(tmp_path / "x.png"))
    assert (status, "| flow-gaussian, seed 0 | 10 |" in out) == (0, True)


def test_resuming_with_another_part(run, capsys):
    folder, _ = run
    words = ["train", "--resume", "--out", str(folder)]
    own = {"floq": "flow", "fql": "td"}[folder.name]
    for option, other, mine in [
        ("--critic", "quantile", own),
        ("--policy", "shortcut", "one_step"),
        ("--agent", "iql", folder.name),
    ]:
        status, _, err = floq(capsys, *words, option, other)
        assert (status, err.count("\n")) == (1, 1)
        assert f"is of {option} {mine}, and {other} was given: leave {option} out" in err
    status, out, _ = floq(capsys, *words, "--critic", own, "--policy", "one_step")
    assert (status, "finished before" in out) == (0, True)


def test_a_run_of_version_0_1(run, capsys, tmp_path):
    plain = json.loads((run[0] / "config.json").read_text())
    plain |= {"agent": "floq", "hyperparameters": {"alpha": 3.0}}
    (tmp_path / "config.json").write_text(json.dumps(plain))
    for words in (["train", "--resume", "--out"], ["evaluate"], ["plot"], ["finetune"]):
        status, _, err = floq(capsys, *words, str(tmp_path))
        assert (status, err.count("\n")) == (1, 1)
        assert "This is a configuration of floq_eqx 0.1" in err


def test_a_residual_critic(capsys, monkeypatch, data, tmp_path):
    """The control with matched compute: its kind, its options, and the rest as it was."""
    words = ["train", "--agent", "fql", "--critic.network.kind", "residual"]
    status, out, _ = floq(capsys, *words, "--help", "critic", "policy")
    assert status == 0
    text = " ".join(re.sub("[│╭╮╰╯─]", " ", out).split())
    assert "--critic.network.kind {mlp,residual} What the network is" in text
    assert "(default: residual) --critic.network.width INT The width of every hidden" in text
    assert "(default: mlp) --policy.network.hidden-sizes" in text

    folder = tmp_path / "run"
    words += [
        *SMALL[:-4],
        "--policy.network.hidden-sizes",
        "8",
        "--data",
        str(data),
        "--out",
        str(folder),
    ]
    words += [
        "--critic.network.width=8",
        "--critic.network.num-blocks",
        "2",
        "--critic.network.block-layers",
        "1",
    ]
    status, _, err = floq(capsys, *words)
    assert (status, err) == (0, "")
    plain = json.loads((folder / "config.json").read_text())["agent"]
    sizes = {"width": 8, "num_blocks": 2, "block_layers": 1}
    others = {"layer_norm": True, "norm_first": False}
    assert plain["critic"]["network"] == {"kind": "residual"} | sizes | others
    assert plain["policy"]["network"]["hidden_sizes"] == [8]
    _, state = Run(folder).load()
    assert [len(block) for block in state.params.critic.network.blocks] == [1, 1]

    seen = []
    monkeypatch.setattr(
        "floq_eqx.cli.train.train", lambda config, *a, **k: (seen.append(config), 1 / 0)
    )
    scene = ["--env", "scene-play-singletask-v0", "--preset", "paper"]
    floq(capsys, *words[:5], *scene)
    floq(capsys, "train", "--agent", "fql", "--critic.network.kind", "mlp", *scene)
    residual, mlp = (config.agent.critic.network for config in seen)
    assert residual == ResidualConfig(width=512, layer_norm=True)
    assert mlp == MLPConfig(layer_norm=True)


def test_evaluate(run, capsys, monkeypatch):
    folder, _ = run
    line = r"success \d\.\d\d, return -?\d+\.\d ± \d+\.\d, length \d+ ± \d+ \(1 episodes\)\n"
    line += re.escape(published(folder.name, CUBE) + "\n")
    status, out, err = floq(capsys, "evaluate", str(folder), "--episodes", "1")
    assert (status, err) == (0, "")
    assert re.fullmatch("checkpoint 10: " + line, out)
    again = ["evaluate", str(folder), "--episodes", "1", "--checkpoint", "5", "--seed", "3"]
    status, out, _ = floq(capsys, *again, "--success-timing", "post")
    assert status == 0
    assert re.fullmatch("checkpoint 5: " + line, out)
    status, _, err = floq(capsys, "evaluate", str(folder), "--checkpoint", "7")
    assert (status, "no checkpoint of step 7; it has 5, 10" in err) == (1, True)


@pytest.mark.parametrize("words", [[], ["--precision", "bfloat16"]])
def test_evaluate_at_a_precision(run, capsys, monkeypatch, words):
    folder, _ = run
    monkeypatch.setattr("floq_eqx.evaluation.evaluate", lambda agent, *a, **k: seen.append(agent))
    seen = []
    # Nothing is evaluated, so there is nothing to describe.
    monkeypatch.setattr("floq_eqx.training.watch.describe", lambda result: "nothing")
    assert floq(capsys, "evaluate", str(folder), "--episodes", "1", *words)[0] == 0
    assert [agent.precision for agent in seen] == [words[-1] if words else "float32"]


def test_evaluate_with_another_integral(run, capsys, monkeypatch):
    folder, _ = run
    words = ["evaluate", str(folder), "--episodes", "1"]
    options = ["--critic.num-steps", "3", "--solver", "heun"]
    status, _, err = floq(capsys, *words, *options, "--num-candidates", "3")
    if folder.name == "fql":
        assert status == 1
        assert err == "floq: error: TD has no num_steps that can change after training.\n"
        return
    assert (status, err) == (0, "")
    status, _, err = floq(capsys, *words, *options)
    assert status == 1
    assert "so num_steps, solver would change nothing; with --num-candidates N" in err
    status, _, err = floq(capsys, *words, "--value-samples", "3")
    assert status == 1
    assert "value_samples that can change after training; it has --critic.num-steps or" in err
    for option in ("--num-steps", "--num-candidates"):
        status, _, err = floq(capsys, *words, option, "0")
        assert status == 1
        assert "must be a whole number of at least 1, got 0" in err


def test_evaluate_with_another_selection(run, capsys):
    folder, _ = run
    words = ["evaluate", str(folder), "--episodes", "1"]
    options = ["--selection.num-candidates", "3", "--selection.proposal", "behaviour"]
    status, out, err = floq(capsys, *words, *options, "--temperature", "0.5")
    assert (status, err) == (0, "")
    assert out.startswith("checkpoint 10: success ")
    for option, message in [
        (["--temperature", "0.5"], "temperature = 0.5 means nothing with num_candidates = 1"),
        (["--selection.num-candidates", "0"], "num_candidates must be a whole number"),
    ]:
        status, _, err = floq(capsys, *words, *option)
        assert (status, message in err, err.count("\n")) == (1, True, 1)
    assert Run(folder).config.agent.selection == Selection()


@pytest.mark.parametrize(
    ("agent", "words", "message"),
    [
        ("bc", ["--num-candidates", "3"], "has no critic: nothing can be selected by its values"),
        (
            "iql",
            ["--num-steps", "3"],
            "Implicit has no num_steps that can change after training.\n",
        ),
        ("iql", ["--selection.proposal", "behaviour"], "Gaussian has no clone of the data's"),
    ],
)
def test_evaluate_refuses(capsys, tmp_path, agent, words, message):
    agent = small_agent(agent, action_size=5)
    run = Run.create(tmp_path / "run", TrainConfig(agent=agent), FACTS)
    with run.checkpoints() as manager:
        run.save(manager, agent.init(28, 5, key=jax.random.key(0)))
    status, _, err = floq(capsys, "evaluate", str(run.folder), *words)
    assert (status, message in err) == (1, True)


def test_evaluate_shows_what_it_records(run, capsys, monkeypatch, tmp_path):
    folder, _ = run
    calls = []
    monkeypatch.setattr(
        "floq_eqx.recording.record", lambda *a, **k: (calls.append((a, k)), a[3])[1]
    )
    path = str(tmp_path / "x.gif")
    words = ["--episodes", "1", "--video", path, "--seed", "2", "--success-timing", "post"]
    status, out, _ = floq(capsys, "evaluate", str(folder), *words)
    assert status == 0
    assert out.endswith(f"wrote {path}\n")
    ((args, options),) = calls
    assert args[2:] == (CUBE, path)
    assert options == {
        **{"seed": 2, "success_timing": "post"},
        **{"max_episode_steps": 10_000, "environment_kwargs": {}},
    }
    assert callable(record)


def test_plot(run, capsys, tmp_path):
    folder, _ = run
    other = tmp_path / "other"
    shutil.copytree(folder, other)
    path = tmp_path / "curves.svg"
    words = ["plot", str(folder), str(other), "--out", str(path), "--metric", "lengths"]
    status, _, err = floq(capsys, *words)
    assert (status, "have the same configuration and seed" in err) == (1, True)
    status, out, err = floq(capsys, *words, "--aggregate", "none")
    assert (status, err) == (0, "")
    assert out.endswith(f"|\n\nwrote {path}\n")
    assert path.stat().st_size > 5000
    (other / "evaluation.csv").unlink()
    status, _, err = floq(capsys, *words)
    assert (status, err) == (
        1,
        f"floq: error: Nothing to plot: no evaluation yet in {other}.\n",
    )
    status, _, err = floq(capsys, "plot", str(folder), "--out", str(tmp_path / "x.xyz"))
    assert (status, "x.xyz must end in one of" in err) == (1, True)


def test_collect(capsys, monkeypatch, tmp_path):
    calls = []
    monkeypatch.setattr("floq_eqx.data.collect_dataset", lambda *a, **k: calls.append((a, k)))
    monkeypatch.setattr(
        "floq_eqx.data.fetch_dataset", lambda *a, **k: (calls.append((a, k)), "fetched.npz")[1]
    )
    words = ["collect", CUBE, "--out", str(tmp_path), "--episodes", "3", "--workers", "2"]
    path = tmp_path / "cube-single-play-v0.npz"
    assert floq(capsys, *words, "--seed", "4") == (0, f"wrote {path}\n", "")
    options = {"num_episodes": 3, "num_workers": 2, "seed": 4}
    assert calls.pop() == (("cube-single-play-v0", path), options)
    words = ["collect", CUBE, "--out", str(tmp_path), "--fetch", "--mirror", "file:///x"]
    assert floq(capsys, *words) == (0, "wrote fetched.npz\n", "")
    assert calls.pop() == (("cube-single-play-v0", str(tmp_path)), {"mirror": "file:///x"})


def test_progress_is_for_terminals(data, tmp_path):
    words = ["train", "--agent", "fql", *SMALL, "--data", str(data), "--out", str(tmp_path / "run")]
    main, terminal = pty.openpty()
    fcntl.ioctl(terminal, termios.TIOCSWINSZ, struct.pack("4H", 24, 100, 0, 0))
    with subprocess.Popen(
        [sys.executable, "-m", "floq_eqx", *words], stdout=subprocess.PIPE, stderr=terminal
    ) as process:
        os.close(terminal)
        shown = b""
        while True:
            try:
                piece = os.read(main, 1024)
            except OSError:  # how Linux says that the other end is closed
                break
            if not piece:
                break
            shown += piece
        out = process.stdout.read().decode()
    os.close(main)
    assert process.returncode == 0
    assert "10/10" in shown.decode()
    assert "update/s" in shown.decode()
    assert "10/10" not in out


# --------------------------------------------------------------------------------------- solvers

QUICK = ["--num-steps", "1", "2", "--tolerances", "0.1", "--observations", "3", "--candidates", "3"]


@pytest.fixture
def few_solvers(monkeypatch):
    """Three configurations: each of the others compiles for seconds."""

    def configurations(*, num_steps, tolerances):
        equal = [analysis.SolverConfiguration(diffrax.Euler(), k) for k in num_steps]
        return [*equal, analysis.SolverConfiguration(diffrax.Heun(), tolerance=tolerances[0])]

    monkeypatch.setattr(analysis, "default_configurations", configurations)
    monkeypatch.setattr(solver_study, "FIXED_SOLVERS", (diffrax.Euler(),))


@pytest.mark.usefixtures("few_solvers")
def test_solvers_on_a_run(capsys, run, tmp_path):
    folder, _ = run
    status, out, err = floq(capsys, "solvers", str(folder), *QUICK, "--out", str(tmp_path))
    if folder.name == "fql":
        assert status == 1
        assert "has no flow critic" in err
        return
    assert status == 0, err
    assert {path.name for path in tmp_path.iterdir()} == {
        "solvers.md",
        "solvers.csv",
        "solvers.png",
    }
    assert "| Euler K=2 | 2 |" in out.replace("**", "")
    assert (tmp_path / "solvers.md").read_text() in out
    assert "update 10" in out
    with (tmp_path / "solvers.csv").open() as file:
        rows = {row["name"]: row for row in csv.DictReader(file)}
    assert not [row["failure"] for row in rows.values() if row["failure"]]
    assert math.isnan(float(rows["Euler K=2"]["exact_error"]))
    assert {path.name for path in folder.iterdir()} >= {"config.json"}


@pytest.mark.slow
@pytest.mark.usefixtures("few_solvers")
def test_solvers_on_a_problem(capsys, tmp_path):
    words = ["solvers", "--problem", "walk", *QUICK, "--num-updates", "5", "--out", str(tmp_path)]
    status, out, err = floq(capsys, *words)
    assert status == 0, err
    assert "after 5 updates" in out
    assert "RMSE of the exactly integrated field to the exact Q" in out
    assert "Observed order of convergence: Euler " in out


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ([], "one of the two"),
        (["a", "--problem", "lqr"], "one of the two"),
        (["nowhere"], "holds no run"),
        (["--problem", "lqr", "--candidates", "1", "--num-updates", "1"], "at least 2 candidates"),
        (["--problem", "lqr", "--num-updates", "0"], "num_updates must be"),
        (["--problem", "lqr", "--observations", "0"], "num_observations must be"),
    ],
)
def test_solvers_refuses(capsys, tmp_path, monkeypatch, words, message):
    monkeypatch.chdir(tmp_path)
    status, _, err = floq(capsys, "solvers", *words)
    assert status == 1
    assert message in err
    assert not list(tmp_path.iterdir())


# ---------------------------------------------------------------------------------------- online


ONLINE = [
    *("train", "--agent", "sac", "--env", "Pendulum-v1", "--warmup", "10", "--batch-size", "4"),
    *("--log-every", "20", "--evaluate-every", "40", "--checkpoint-every", "20"),
    *("--evaluation-episodes", "1"),
    *("--critic.network.hidden-sizes", "8", "--policy.network.hidden-sizes", "8"),
]


def test_learning_online(capsys, tmp_path):
    folder = str(tmp_path / "run")
    status, out, err = floq(capsys, *ONLINE, "--online-steps", "40", "--out", folder)
    assert (status, err) == (0, "")
    assert re.search(r"^environment step 40: return -\d", out, re.MULTILINE)
    assert "published" not in out
    assert {"checkpoints", "config.json", "learning_curve.png"} <= set(os.listdir(folder))
    status, out, _ = floq(capsys, *ONLINE, "--online-steps", "60", "--out", folder, "--resume")
    assert status == 0
    assert "continuing at step 40 of 60" in out
    status, out, _ = floq(capsys, "evaluate", folder, "--episodes", "1")
    assert (status, "success" in out) == (0, False)
    figure = str(tmp_path / "figure.png")
    words = ["--metric", "returns", "--x", "env_steps", "--out", figure]
    status, out, _ = floq(capsys, "plot", folder, *words)
    assert status == 0
    assert "| sac, seed 0 | 60 |" in out
    other = str(tmp_path / "other")
    words = ["--online-steps", "20", "--utd", "2", "--out", other, "--seed", "3"]
    status, out, _ = floq(capsys, "finetune", folder, *words)
    assert status == 0
    config = Run(other).config
    assert (config.num_updates, config.seed, config.batch_size) == (60, 3, 4)
    assert int(Run(other).load()[1].step) == 50 + 40
    assert Run(folder).steps() == [40, 60]


def test_what_cannot_be_learned_online(capsys, tmp_path):
    for words, message in [
        (["--agent", "sac", "--env", "Pendulum-v1"], "Other Gymnasium environments can be learned"),
        (
            ["--env", "Pendulum-v1", "--online-steps", "9"],
            "give --critic.reward-min and --critic.reward-max",
        ),
        (["--agent", "rebrac", "--online-steps", "9"], "next action"),
        (["--env", "CartPole-v1", "--agent", "sac", "--online-steps", "9"], "not a box"),
        (["--online-steps", "9", "--utd", "0"], "utd must be a whole number of at least 1"),
    ]:
        folder = tmp_path / "run"
        status, _, err = floq(capsys, "train", *words, "--out", str(folder))
        assert status == 1
        assert message in err
        assert not folder.exists() or not os.listdir(folder)
    status, _, err = floq(capsys, "finetune", str(tmp_path / "none"))
    assert (status, "holds no run" in err) == (1, True)
