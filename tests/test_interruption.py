"""Signals: what is saved, what is said, and where the run goes on."""

import os
import signal
import subprocess
import sys
import threading

import gymnasium
import numpy as np
import pytest
from gymnasium import spaces

from floq_eqx.agents import sac
from floq_eqx.networks import MLPConfig
from floq_eqx.training import (
    Interrupted,
    OnlineConfig,
    Run,
    TrainConfig,
    stopping,
    train,
    watch,
)

from .runs import (
    PROGRAM,
    check_folder,
    processes,
    same_parameters,
    same_run,
    small_config,
    wait_for,
)

SIGNALS = [signal.SIGINT, signal.SIGTERM]


def send(signum):
    os.kill(os.getpid(), signum)


@pytest.fixture(autouse=True)
def _hears_signals():
    """A suite in the background ignores SIGINT; what it tests must not."""
    before = {signum: signal.getsignal(signum) for signum in SIGNALS}
    signal.signal(signal.SIGINT, signal.default_int_handler)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    yield
    for signum, handler in before.items():
        signal.signal(signum, handler)


# --------------------------------------------------------------------------------- the mechanism


@pytest.mark.parametrize("signum", SIGNALS)
def test_a_signal_raises_at_once_where_nothing_can_be_lost(signum):
    with stopping(), pytest.raises(Interrupted, match=f"by {signum.name}$") as caught:
        send(signum)
    assert caught.value.signum == signum
    assert isinstance(caught.value, KeyboardInterrupt)


def test_signals_wait_where_something_can_be_lost(capfd):
    with stopping() as stop:
        stop.check()
        with stop.deferred():
            assert not stop()
            send(signal.SIGTERM)
            send(signal.SIGINT)
            assert stop()
        with pytest.raises(Interrupted, match=r"by SIGTERM$"):  # The first counts.
            stop.check()
    first, second = capfd.readouterr().err.split("\n\n")
    assert first.strip() == (
        "floq: SIGTERM: stopping as soon as nothing is lost; the third signal ends it at once"
    )
    assert second.startswith("floq: SIGINT: stopping already")


def test_handlers_are_put_back():
    before = signal.getsignal(signal.SIGTERM)
    with stopping() as outer:
        with stopping():
            pass
        with outer.deferred():
            send(signal.SIGTERM)
        assert outer()
    assert signal.getsignal(signal.SIGTERM) is before
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


def test_the_third_signal_ends_the_process():
    code = (
        "import os, signal; from floq_eqx.training import stopping\n"
        "with stopping() as stop, stop.deferred():\n"
        "    for _ in range(3): os.kill(os.getpid(), signal.SIGTERM)\n"
        "print('alive')"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (-signal.SIGTERM, "")


def test_an_ignored_signal_stays_ignored():
    """As in the background of a shell, or below nohup and cron; SIGTERM works all the same."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    with stopping() as stop, stop.deferred():
        send(signal.SIGINT)
        assert not stop()
        send(signal.SIGTERM)
        assert stop()


def test_other_threads_leave_signals_alone():
    seen = []

    def run():
        with stopping() as stop:
            seen.append((stop(), signal.getsignal(signal.SIGINT)))

    thread = threading.Thread(target=run)
    thread.start()
    thread.join()
    assert seen == [(False, signal.default_int_handler)]


# ----------------------------------------------------------------------------------- whole runs


@pytest.fixture(scope="module")
def whole(data, tmp_path_factory):
    return train(small_config(data), tmp_path_factory.mktemp("whole") / "run")


def between(monkeypatch, step, signum):
    """Sends a signal after so many updates or steps, once."""
    sent = []

    def counted(self, done):
        if done >= step and not sent:
            sent.append(done)
            send(signum)
        return original(self, done)

    original = watch.Watch.between
    monkeypatch.setattr(watch.Watch, "between", counted)


@pytest.mark.parametrize("signum", SIGNALS)
def test_offline(data, whole, tmp_path, monkeypatch, signum):
    config = small_config(data, checkpoint_every=10)
    with monkeypatch.context() as patch:
        between(patch, 15, signum)
        with pytest.raises(Interrupted) as caught:
            train(config, tmp_path / "run")
    assert caught.value.saved == f" at step 15, which is saved in {tmp_path / 'run'}"
    run = Run(tmp_path / "run")
    assert run.steps() == [10, 15]
    same_run(train(config, run.folder, resume=True), whole, checkpoints=[15, 20])


def test_in_the_middle_of_a_chunk(data, tmp_path, monkeypatch):
    """A thousand updates can take minutes: signals are heard every few of them."""
    config = small_config(
        data, num_updates=40, log_every=40, evaluate_every=40, checkpoint_every=40
    )
    with monkeypatch.context() as patch:
        between(patch, 1, signal.SIGTERM)
        with pytest.raises(Interrupted, match="SIGTERM"):
            train(config, tmp_path / "run")
    run = Run(tmp_path / "run")
    assert run.steps() == [10]
    assert [row["step"] for row in run.table("train.csv")] == [10]
    resumed = train(config, run.folder, resume=True)
    assert [row["step"] for row in resumed.table("train.csv")] == [10, 40]
    assert same_parameters(resumed, train(config, tmp_path / "whole"))


def test_between_two_checkpoints_when_all_else_is_done(data, whole, tmp_path, monkeypatch):
    """A chunk that was not due to be saved is, before the program ends."""
    config = small_config(data, checkpoint_every=10)
    with monkeypatch.context() as patch:
        patch.setattr(Run, "prune", lambda self: send(signal.SIGTERM))
        with pytest.raises(Interrupted, match="SIGTERM at step 5, which is saved"):
            train(config, tmp_path / "run")
    assert Run(tmp_path / "run").steps() == [5]
    same_run(train(config, tmp_path / "run", resume=True), whole, checkpoints=[10, 20])


def test_after_a_row_that_nothing_was_due_at(data, whole, tmp_path, monkeypatch):
    """What was trained until then is saved, although no checkpoint was due."""
    sent, prune = [], Run.prune

    def interrupted(self):
        if not sent:
            sent.append(signal.SIGTERM)
            send(signal.SIGTERM)
        return prune(self)

    config = small_config(data, checkpoint_every=10)
    with monkeypatch.context() as patch:
        patch.setattr(Run, "prune", interrupted)
        with pytest.raises(Interrupted, match="at step 5, which is saved"):
            train(config, tmp_path / "run")
    run = Run(tmp_path / "run")
    assert run.steps() == [5]
    same_run(train(config, run.folder, resume=True), whole, checkpoints=[10, 20])


@pytest.mark.parametrize("when", ["in an evaluation", "while it saves"])
def test_at_a_bad_moment(data, whole, tmp_path, monkeypatch, when):
    """A missed evaluation is made up for, and a second signal does not break a checkpoint."""
    folder = tmp_path / "run"
    with monkeypatch.context() as patch:
        if when == "in an evaluation":
            evaluate = watch.evaluate_many

            def interrupted(*args, before_step, **kwargs):
                send(signal.SIGINT)
                return evaluate(*args, before_step=before_step, **kwargs)

            patch.setattr(watch, "evaluate_many", interrupted)
        else:
            save = Run.save

            def twice(self, *args, **kwargs):
                send(signal.SIGINT)
                save(self, *args, **kwargs)

            patch.setattr(Run, "save", twice)
            between(patch, 5, signal.SIGINT)
        with pytest.raises(Interrupted, match="SIGINT"):
            train(small_config(data), folder)
    run = Run(folder)
    assert run.steps()[-1] == (10 if when == "in an evaluation" else 5)
    assert run.table("evaluation.csv") == []
    check_folder(folder)
    same_run(train(small_config(data), folder, resume=True), whole)


def test_the_last_evaluation_is_made_up_for(data, whole, tmp_path, monkeypatch):
    with monkeypatch.context() as patch:
        patch.setattr(watch, "evaluate_many", lambda *a, **k: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            train(small_config(data, evaluate_every=20), tmp_path / "run")
    # Older checkpoints go after the evaluation, which may make one of them the best.
    assert Run(tmp_path / "run").steps() == [10, 15, 20]
    resumed = train(small_config(data, evaluate_every=20), tmp_path / "run", resume=True)
    assert resumed.steps() == [15, 20]
    assert [row["step"] for row in resumed.table("evaluation.csv")] == [20]


class Walk(gymnasium.Env):
    observation_space = spaces.Box(-np.inf, np.inf, (2,), np.float32)
    action_space = spaces.Box(-1, 1, (1,), np.float32)

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.now = 0
        return np.zeros(2, np.float32), {}

    def step(self, action):
        self.now += 1
        return np.array([self.now, action[0]], np.float32), -1.0, False, self.now == 5, {}


gymnasium.register("floq_eqx/Walk-v0", Walk)


@pytest.mark.parametrize("signum", SIGNALS)
@pytest.mark.parametrize("step", [3, 17])
def test_online(tmp_path, monkeypatch, signum, step):
    """Nothing is lost, in the warm-up either."""
    small = MLPConfig((8,), layer_norm=True)
    config = TrainConfig(
        environment="floq_eqx/Walk-v0",
        agent=sac(critic={"network": small}, policy={"network": small}),
        num_updates=0,
        batch_size=4,
        log_every=10,
        evaluate_every=20,
        evaluation_episodes=1,
        checkpoint_every=20,
        online=OnlineConfig(num_steps=20, warmup=10),
    )
    with monkeypatch.context() as patch:
        between(patch, step, signum)
        with pytest.raises(Interrupted, match=signum.name):
            train(config, tmp_path / "run")
    run = Run(tmp_path / "run")
    assert run.steps() == [step]
    assert run.table("train.csv")[-1]["step"] == step
    assert int(run.load()[1].step) == max(0, step - 10)
    lines = []
    run = train(config, run.folder, resume=True, report=lines.append)
    assert lines[0] == f"continuing at step {step} of 20"
    assert int(run.load()[1].step) == 10


# --------------------------------------------------------------------------------- the program

WORDS = [
    *("train", "--agent", "fql", "--num-updates", "1000000", "--batch-size", "8"),
    *("--log-every", "100", "--evaluate-every", "1000000", "--checkpoint-every", "1000000"),
    *("--evaluation-episodes", "1"),
    *("--critic.network.hidden-sizes", "8", "--policy.network.hidden-sizes", "8"),
    *("--flow-steps", "2"),
]


@pytest.mark.parametrize("signum", SIGNALS)
def test_the_program(data, tmp_path, signum):
    folder = tmp_path / "run"
    with processes() as begin:
        process = begin(*WORDS, "--data", data, "--out", folder)
        wait_for(process, (folder / "train.csv").exists)
        process.send_signal(signum)
        _, err = process.communicate()
        assert process.returncode == 128 + signum
        (step,) = Run(folder).steps()
        assert err.splitlines()[-1] == (
            f"floq: interrupted by {signum.name} at step {step}, which is saved in {folder}; "
            f"floq train --resume --out {folder} continues"
        )
        check_folder(folder)
        process = begin("train", "--resume", "--out", folder, "--num-updates", step)
        out, _ = process.communicate()
        assert process.returncode == 0
    assert f"finished before: update {step} of {step}" in out


def test_the_program_in_the_background(data, tmp_path):
    """Started with SIGINT ignored, as by `nohup floq train &`, it stays so and hears SIGTERM."""
    folder = tmp_path / "run"
    code = "import signal; signal.signal(signal.SIGINT, signal.SIG_IGN); "
    code += PROGRAM.partition("; ")[0] + "; " + PROGRAM.rpartition("; ")[2]
    words = [*WORDS, "--data", data, "--out", folder]
    with subprocess.Popen(
        [sys.executable, "-c", code, *map(str, words)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    ) as process:
        wait_for(process, (folder / "train.csv").exists)
        process.send_signal(signal.SIGINT)
        rows = len((folder / "train.csv").read_text().splitlines())
        wait_for(process, lambda: len((folder / "train.csv").read_text().splitlines()) > rows + 1)
        process.send_signal(signal.SIGTERM)
        _, err = process.communicate()
    assert process.returncode == 128 + signal.SIGTERM
    assert "SIGINT" not in err


def test_before_training(tmp_path):
    """What was not begun is not left behind."""
    folder = tmp_path / "run"
    words = ["train", "--collect-episodes", "50", "--out", folder]
    os.environ["XDG_CACHE_HOME"] = str(tmp_path / "cache")
    try:
        with processes() as begin:
            process = begin(*words)
            wait_for(process, (folder / ".lock.holder").exists)
            process.send_signal(signal.SIGTERM)
            _, err = process.communicate()
    finally:
        del os.environ["XDG_CACHE_HOME"]
    assert process.returncode == 143
    assert err.splitlines()[-1] == "floq: interrupted by SIGTERM"
    assert not folder.exists()
    assert not list((tmp_path / "cache").rglob("*.npz"))
