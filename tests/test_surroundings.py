"""Where the program runs: terminals, pipes, notebooks, and what comes after the last checkpoint."""

import io
import json
import os
import subprocess
import sys
import types

import gymnasium
import numpy as np
import pytest
from gymnasium import spaces

from floq_eqx import _progress, cli
from floq_eqx._progress import progress_bar
from floq_eqx.evaluation import make_environments
from floq_eqx.training import Run

from .runs import names

SMALL = [
    *("--num-updates", "10", "--batch-size", "8", "--log-every", "5", "--evaluate-every", "10"),
    *("--evaluation-episodes", "1", "--checkpoint-every", "5", "--flow-steps", "2"),
    *("--critic.network.hidden-sizes", "8", "--policy.network.hidden-sizes", "8"),
]


def floq(capsys, *words):
    capsys.readouterr()
    status = cli.main([str(word) for word in words])
    return status, *capsys.readouterr()


# ------------------------------------------------------------------------- terminals and pipes


@pytest.mark.parametrize("encoding", ["ascii", "cp1252"])
def test_terminals_without_some_characters(monkeypatch, encoding, data, tmp_path):
    out = io.TextIOWrapper(io.BytesIO(), encoding=encoding)
    monkeypatch.setattr(sys, "stdout", out)
    words = ["train", "--agent", "fql", *SMALL, "--data", str(data), "--out", str(tmp_path / "run")]
    assert cli.main(words) == 0
    out.flush()
    text = out.buffer.getvalue().decode(encoding)
    assert "update 10: success" in text
    assert ("? 0.0" if encoding == "ascii" else "± 0.0") in text


def test_a_reader_that_has_gone(data, tmp_path):
    """`floq train | head -1` trains to its end."""
    read, write = os.pipe()
    os.close(read)
    words = ["train", "--agent", "fql", *SMALL, "--data", str(data), "--out", str(tmp_path / "run")]
    with os.fdopen(write, "w") as pipe:
        done = subprocess.run(
            [sys.executable, "-m", "floq_eqx", *words],
            stdout=pipe,
            stderr=subprocess.PIPE,
            text=True,
        )
    assert done.returncode == 0, done.stderr
    assert Run(tmp_path / "run").steps() == [5, 10]


class Clock:
    """Time that passes when it is told to."""

    def __init__(self, monkeypatch):
        self.now = 0.0
        monkeypatch.setattr(_progress.time, "monotonic", lambda: self.now)


def test_a_line_now_and_then_where_nothing_can_be_drawn(monkeypatch, capsys):
    clock = Clock(monkeypatch)
    with progress_bar("update", total=1000, initial=100) as show:
        for done in range(101, 601):
            clock.now += 2.0
            show(done)
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 500 // 30  # two seconds each
    assert lines[0] == "update 130 of 1000, 0.5 a second, 29:00 left"
    with progress_bar("update", total=1000, show=False) as show:
        clock.now += 1000
        show(500)
    with progress_bar("step", total=10**6) as show:  # No more than a hundred lines.
        for done in range(0, 10**6, 1000):
            clock.now += 1000
            show(done)
    assert len(capsys.readouterr().err.splitlines()) == 99


def test_a_bar_in_a_notebook(monkeypatch, capsys):
    """Whose standard error is no terminal; without ipywidgets it is the bar of one."""
    shell = types.SimpleNamespace(config={"IPKernelApp": {}})
    module = types.SimpleNamespace(get_ipython=lambda: shell, version_info=(8,))
    monkeypatch.setitem(sys.modules, "IPython", module)
    with progress_bar("update", total=10) as show:
        show(10)
    shown = capsys.readouterr()
    assert "10/10" in shown.out + shown.err


# ---------------------------------------------------------------- after the last checkpoint


@pytest.mark.parametrize("backend", ["module://matplotlib_inline.backend_inline", "nonsense"])
def test_a_backend_inherited_from_a_notebook(data, tmp_path, backend):
    words = ["train", "--agent", "fql", *SMALL, "--data", str(data), "--out", str(tmp_path / "run")]
    done = subprocess.run(
        [sys.executable, "-m", "floq_eqx", *words],
        capture_output=True,
        text=True,
        env=os.environ | {"MPLBACKEND": backend},
    )
    assert (done.returncode, done.stderr) == (0, "")
    assert "learning_curve.png" in names(tmp_path / "run")


@pytest.mark.filterwarnings("default")
def test_what_comes_after_the_last_checkpoint_fails_no_run(capsys, monkeypatch, data, tmp_path):
    """A figure that cannot be drawn, a logger or an environment that cannot be closed."""
    from floq_eqx.training import watch

    def fail(*args, **kwargs):
        raise OSError("no luck")

    def make(*args, **kwargs):
        environments = make_environments(*args, **kwargs)
        environments.close = fail
        return environments

    monkeypatch.setattr("floq_eqx.plotting.learning_curves", fail)
    monkeypatch.setattr(watch, "make_environments", make)
    monkeypatch.setattr("floq_eqx.training.loggers.MultiLogger.close", fail)
    folder = tmp_path / "run"
    words = ["train", "--agent", "fql", *SMALL, "--data", data, "--out", folder]
    status, out, err = floq(capsys, *words)
    assert status == 0
    assert out.splitlines()[-2] == f"done: {folder} holds checkpoints and tables"
    notes = err.splitlines()
    assert len(notes) == 3
    assert "floq: note: the figure could not be drawn: OSError: no luck" in err
    assert "a logger could not be closed: OSError: no luck" in err
    assert "an environment could not be closed" in err
    assert Run(folder).steps() == [5, 10]


# ------------------------------------------------------------------------ options and numbers


@pytest.mark.parametrize("number", ["-1e1", "-10.", "-1.5e3", "-7"])
def test_negative_numbers(capsys, monkeypatch, number):
    seen = []
    monkeypatch.setattr(
        "floq_eqx.cli.train.train", lambda config, *a, **k: seen.append(config) or 1 / 0
    )
    words = ["--env", "Pendulum-v1", "--online-steps", "9", "--reward-max", "0"]
    floq(capsys, "train", *words, "--reward-min", number)
    floq(capsys, "train", *words, f"--reward_min={number}")
    assert [config.agent.critic.reward_min for config in seen] == [float(number)] * 2


@pytest.mark.parametrize("platform", ["cuda", "nonsense"])
def test_a_platform_that_is_not_there(tmp_path, platform):
    done = subprocess.run(
        [sys.executable, "-m", "floq_eqx", "train", "--out", str(tmp_path / "run")],
        env=os.environ | {"JAX_PLATFORMS": platform, "CUDA_VISIBLE_DEVICES": ""},
        capture_output=True,
        text=True,
    )
    assert (done.returncode, done.stdout, done.stderr.count("\n")) == (1, "", 1), done.stderr
    assert done.stderr.startswith(f"floq: error: JAX cannot start on JAX_PLATFORMS={platform}: ")
    assert names(tmp_path) == []


class Drawn(gymnasium.Env):
    """An environment with an argument, which its rewards show."""

    observation_space = spaces.Box(-1, 1, (2,), np.float32)
    action_space = spaces.Box(-1, 1, (1,), np.float32)

    def __init__(self, reward=0.0):
        self.reward = reward

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.now = 0
        return np.zeros(2, np.float32), {}

    def step(self, action):
        self.now += 1
        return np.zeros(2, np.float32), self.reward, False, self.now == 4, {}


gymnasium.register("floq_eqx/Drawn-v0", Drawn)


def test_arguments_of_the_environment(capsys, tmp_path):
    folder = tmp_path / "run"
    words = ["train", "--agent", "sac", "--env", "floq_eqx/Drawn-v0", "--online-steps", "4"]
    words += ["--log-every", "4", "--evaluate-every", "4", "--checkpoint-every", "4"]
    words += ["--warmup", "4"]
    words += ["--critic.network.hidden-sizes", "8", "--policy.network.hidden-sizes", "8"]
    words += ["--out", folder]
    status, out, err = floq(capsys, *words, "--env-kwargs", '{"reward": 2.5}')
    assert (status, err) == (0, "")
    assert "return 10.0 " in out
    assert json.loads((folder / "config.json").read_text())["environment_kwargs"] == {"reward": 2.5}
    status, out, _ = floq(capsys, "evaluate", folder, "--episodes", "1")
    assert "return 10.0 " in out
    status, out, err = floq(capsys, "train", "--resume", "--out", folder, "--online-steps", "8")
    assert (status, err) == (0, "")
    assert "environment step 8: return 10.0 " in out
    status, _, err = floq(
        capsys, "train", "--resume", "--out", folder, "--env-kwargs", '{"reward": 3}'
    )
    assert "Different: environment_kwargs: {'reward': 2.5} before, {'reward': 3} now" in err
    for text in ('{"reward"', "[1]", "3"):
        status, _, err = floq(capsys, *words, "--env-kwargs", text)
        assert (status, err.count("\n")) == (1, 1)
        assert "--env-kwargs must be a JSON object" in err


def test_options_that_would_mean_nothing(capsys, tmp_path, data):
    """None is ignored without a word."""
    pendulum = ["--agent", "sac", "--env", "Pendulum-v1", "--online-steps", "9"]
    online = ["--agent", "fql", "--online-steps", "9"]
    for words, message in [
        ([*pendulum, "--data", data, "--offline-data", "none"], "data = "),
        ([*pendulum, "--success-timing", "post"], "success_timing = 'post' means nothing"),
        ([*pendulum, "--collect-episodes", "3"], "collect_episodes = 3 means nothing"),
        ([*pendulum, "--offline-data", "mixture"], "no offline data but your own"),
        (
            [*online, "--offline-fraction", "0.2"],
            "offline_fraction is for offline_data = 'mixture'",
        ),
        ([*online, "--offline-data", "none", "--no-keep-offline"], "keep_offline is for"),
        (["--keep", "all", "--num-kept", "5"], "num_kept = 5 means nothing"),
        ([*pendulum, "--rewards", "file"], "rewards = 'file' means nothing"),
        ([*pendulum, "--warmup", "0", "--warmup-with", "policy"], "means nothing with warmup = 0"),
        (
            [*online, "--num-updates", "0", "--offline-data", "none", "--data", data],
            "no offline data are used",
        ),
    ]:
        status, _, err = floq(capsys, "train", *words, "--out", tmp_path / "run")
        assert (status, message in err, err.count("\n")) == (1, True, 1), err
    cube = "cube-single-play-v0"
    for words, message in [
        (["collect", cube, "--fetch", "--seed", "0"], "--seed is for collecting"),
        (["collect", cube, "--fetch", "--episodes", "3"], "--episodes is for collecting"),
        (["solvers", tmp_path, "--num-updates", "3"], "--num-updates is for --problem"),
    ]:
        status, _, err = floq(capsys, *words)
        assert (status, message in err, err.count("\n")) == (1, True, 1), err
    assert names(tmp_path) == []


def test_options_that_would_mean_nothing_for_a_run(capsys, tmp_path):
    folder = tmp_path / "run"
    words = ["--agent", "sac", "--env", "floq_eqx/Drawn-v0", "--online-steps", "4", "--warmup", "4"]
    words += ["--log-every", "4", "--evaluate-every", "4", "--checkpoint-every", "4"]
    words += ["--critic.network.hidden-sizes", "8", "--policy.network.hidden-sizes", "8"]
    words += ["--out", folder]
    assert floq(capsys, "train", *words)[0] == 0
    for words, message in [
        (["evaluate", folder, "--success-timing", "post"], "success_timing = 'post' means nothing"),
        (["plot", folder, "--aggregate", "none", "--pool-tasks"], "pool_tasks means nothing"),
    ]:
        status, _, err = floq(capsys, *words)
        assert (status, message in err, err.count("\n")) == (1, True, 1), err


def test_evaluation_leaves_the_run_as_it_is(capsys, monkeypatch, data, tmp_path):
    """Whatever ends it."""
    import signal

    from floq_eqx import evaluation

    folder = tmp_path / "run"
    words = ["train", "--agent", "fql", *SMALL, "--data", data, "--out", folder]
    assert floq(capsys, *words)[0] == 0
    before = {p: p.read_bytes() for p in folder.rglob("*") if p.is_file()}
    act = evaluation.act_batch
    for signum in (signal.SIGINT, signal.SIGTERM):
        previous = signal.signal(signum, signal.default_int_handler)
        monkeypatch.setattr(
            evaluation,
            "act_batch",
            lambda *a: os.kill(os.getpid(), signum) or act(*a),  # noqa: B023
        )
        status, out, err = floq(capsys, "evaluate", folder, "--episodes", "1")
        signal.signal(signum, previous)
        assert (status, out) == (128 + signum, "")
        assert err == f"floq: interrupted by {signum.name}\n"
    assert {p: p.read_bytes() for p in folder.rglob("*") if p.is_file()} == before
