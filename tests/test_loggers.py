"""What a run logs, read back from where it went."""

import errno
import importlib.util
import math
import os
import socket
import subprocess
import sys
import textwrap

import pytest

from floq_eqx.training.loggers import (
    CSVLogger,
    Logger,
    MultiLogger,
    TensorBoardLogger,
    open_loggers,
)


def needs(package):
    return pytest.mark.skipif(
        importlib.util.find_spec(package) is None, reason=f"{package} is not installed"
    )


# --------------------------------------------------------------------------------------- tables


def test_tables(tmp_path):
    with CSVLogger(tmp_path) as logger:
        assert logger.read("train") == []
        logger.log(5, {"seconds": 0.1 + 0.2, "loss": 1}, table="train")
        logger.log(5, {"success": 0.5}, table="evaluation")
        logger.log(10, {"seconds": 2.0, "loss": math.inf}, table="train")
    text = "step,seconds,loss\n5,0.30000000000000004,1\n10,2.0,inf\n"
    assert (tmp_path / "train.csv").read_text() == text
    assert (tmp_path / "evaluation.csv").read_text() == "step,success\n5,0.5\n"
    assert logger.read("evaluation") == [{"step": 5, "success": 0.5}]


def test_a_table_is_cut_where_a_run_continues(tmp_path):
    logger = CSVLogger(tmp_path)
    for step in (5, 10, 15):
        logger.log(step, {"loss": 1.0}, table="train")
        logger.log(step, {"success": 0.0}, table="evaluation")
    CSVLogger(tmp_path)
    assert [row["step"] for row in logger.read("train")] == [5, 10, 15]
    again = CSVLogger(tmp_path, resume_at=10)
    assert (tmp_path / "train.csv").read_text() == "step,loss\n5,1.0\n10,1.0\n"
    assert [row["step"] for row in again.read("evaluation")] == [5, 10]
    again.forget_after(0)
    assert (tmp_path / "train.csv").read_text() == "step,loss\n"
    again.log(5, {"loss": 2.0}, table="train")
    assert again.read("train") == [{"step": 5, "loss": 2.0}]


def test_columns_may_change(tmp_path):
    logger = CSVLogger(tmp_path)
    logger.log(1, {"a": 1.0, "b": 2}, table="train")
    logger.log(2, {"b": 4.0, "a": 3.0}, table="train")  # another order
    logger.log(3, {"a": 5.0}, table="train")
    assert (tmp_path / "train.csv").read_text() == "step,a,b\n1,1.0,2\n2,3.0,4.0\n3,5.0,nan\n"
    logger.log(4, {"c": 6.0, "d": 7.0}, table="train")
    assert (tmp_path / "train.csv").read_text() == (
        "step,a,b,c,d\n1,1.0,2,nan,nan\n2,3.0,4.0,nan,nan\n3,5.0,nan,nan,nan\n4,nan,nan,6.0,7.0\n"
    )
    assert [row["c"] for row in logger.read("train")] == pytest.approx(
        [math.nan] * 3 + [6.0], nan_ok=True
    )


@pytest.mark.parametrize("cut", ["st", "step,loss", "step,loss\n5,1.0\n10,"])
def test_a_row_without_its_end_is_cut_off(tmp_path, cut):
    (tmp_path / "train.csv").write_text(cut)
    logger = CSVLogger(tmp_path)
    before = logger.read("train")
    logger.log(20, {"loss": 2.0}, table="train")
    assert logger.read("train") == [*before, {"step": 20, "loss": 2.0}]


@pytest.mark.parametrize(
    "garbage", [b"step,loss\n5\n", b"step,loss\n5,x\n", b"step,loss\n5,1,2\n", b"a\n5\n", b"\xff\n"]
)
def test_a_damaged_table_is_named_and_left_alone(tmp_path, garbage):
    (tmp_path / "train.csv").write_bytes(garbage + b"6,2\n")
    logger = CSVLogger(tmp_path)
    for use in (
        lambda: logger.read("train"),
        lambda: logger.forget_after(0),
        lambda: logger.log(7, {"loss": 1.0, "new": 1.0}, table="train"),
    ):
        with pytest.raises(ValueError, match=r"train\.csv is damaged"):
            use()
    assert (tmp_path / "train.csv").read_bytes() == garbage + b"6,2\n"


def test_errors_of_the_disk_name_the_table(tmp_path):
    (tmp_path / "file").write_text("")
    logger = CSVLogger(tmp_path / "file")
    with pytest.raises(OSError, match=r"file.*train\.csv|train\.csv"):
        logger.log(1, {"loss": 1.0}, table="train")


# ------------------------------------------------------------------------------ several at once


class Recorder(Logger):
    def __init__(self, seen, name, error=None):
        self.seen, self.name, self.error = seen, name, error

    def log(self, step, metrics, *, table):
        self.seen.append((self.name, step, dict(metrics), table))

    def close(self):
        self.seen.append((self.name, "closed"))
        if self.error:
            raise self.error


def test_several_loggers():
    seen = []
    with (
        pytest.raises(OSError, match="full"),
        MultiLogger(Recorder(seen, "a"), Recorder(seen, "b", OSError("full"))) as logger,
    ):
        logger.log(3, {"loss": 1.0}, table="train")
    assert seen == [
        ("a", 3, {"loss": 1.0}, "train"),
        ("b", 3, {"loss": 1.0}, "train"),
        ("b", "closed"),
        ("a", "closed"),
    ]


def test_names_of_loggers(tmp_path):
    (only,) = open_loggers(tmp_path).loggers
    assert isinstance(only, CSVLogger)
    with pytest.raises(ValueError, match=r"Unknown logger 'tensorbord'; did you mean tensorboard"):
        open_loggers(tmp_path, ["tensorbord"])
    with pytest.raises(ValueError, match="offline or online, not both"):
        open_loggers(tmp_path, ["wandb", "wandb-online"])


@pytest.mark.parametrize(("name", "package"), [("tensorboard", "tensorboardX"), ("wandb", "wandb")])
def test_an_extra_that_is_not_installed_is_named(tmp_path, monkeypatch, name, package):
    monkeypatch.setitem(sys.modules, package, None)
    monkeypatch.setenv("WANDB_ERROR_REPORTING", "false")
    with pytest.raises(RuntimeError, match=rf"pip install 'floq_eqx\[{name}\]'"):
        open_loggers(tmp_path, [name])


# ---------------------------------------------------------------------------------- TensorBoard


def scalars(folder):
    """Event files by the framing of TFRecord: length, its checksum, the event, its checksum."""
    from tensorboardX.proto.event_pb2 import Event

    found, starts = [], []
    for path in sorted(folder.iterdir()):
        content, at = path.read_bytes(), 0
        while at < len(content):
            length = int.from_bytes(content[at : at + 8], "little")
            event = Event.FromString(content[at + 12 : at + 12 + length])
            at += length + 16
            found += [(value.tag, event.step, value.simple_value) for value in event.summary.value]
            starts += [event.step] if event.HasField("session_log") else []
    return found, starts


@needs("tensorboardX")
def test_tensorboard(tmp_path):
    logger = TensorBoardLogger(tmp_path)
    logger.log(5, {"loss": 0.5, "seconds": 2}, table="train")
    logger.log(5, {"success": 1.0}, table="evaluation")
    written = [("train/loss", 5, 0.5), ("train/seconds", 5, 2.0), ("evaluation/success", 5, 1.0)]
    # Before it is closed: a killed run keeps what it logged.
    assert scalars(tmp_path / "tensorboard") == (written, [])
    logger.log(10, {"loss": math.nan}, table="train")
    logger.close()
    (*_, last), _ = scalars(tmp_path / "tensorboard")
    assert last == pytest.approx(("train/loss", 10, math.nan), nan_ok=True)


@needs("tensorboardX")
def test_tensorboard_leaves_out_what_is_logged_again(tmp_path):
    for resume_at, first in ((None, 5), (10, 15)):
        with open_loggers(tmp_path, ["tensorboard"], resume_at=resume_at) as logger:
            for step in range(first, 21, 5):
                logger.log(step, {"loss": float(first)}, table="train")
    _, starts = scalars(tmp_path / "tensorboard")
    assert starts == [11]
    assert [row["loss"] for row in CSVLogger(tmp_path).read("train")] == [5, 5, 15, 15]


@needs("tensorboardX")
def test_tensorboard_on_a_full_disk(tmp_path, monkeypatch):
    def full(*_):
        raise OSError(errno.ENOSPC, "No space left on device")

    logger = TensorBoardLogger(tmp_path)
    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", full)
        with pytest.raises(OSError, match=r"Cannot write \S*tensorboard: No space left"):
            logger.log(5, {"loss": 0.5}, table="train")
    logger.close()


@needs("tensorboard")
@needs("tensorboardX")
@pytest.mark.filterwarnings("ignore")
def test_tensorboard_reads_it(tmp_path):
    for resume_at, first in ((None, 5), (10, 15)):
        with TensorBoardLogger(tmp_path, resume_at=resume_at) as logger:
            for step in range(first, 21, 5):
                logger.log(step, {"loss": float(first)}, table="train")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(tmp_path / "tensorboard"))
    events.Reload()
    assert [(e.step, e.value) for e in events.Scalars("train/loss")] == [
        (5, 5.0),
        (10, 5.0),
        (15, 15.0),
        (20, 15.0),
    ]


# ---------------------------------------------------------------------------- Weights & Biases

OFFLINE = """
import socket, sys, threading, time

server = socket.create_server(("127.0.0.1", int(sys.argv[2])))

def serve():
    while True:
        server.accept()
        print("a connection")

threading.Thread(target=serve, daemon=True).start()

def blocked(self, address):
    if self.family != socket.AF_UNIX and address[0] not in ("127.0.0.1", "localhost", "::1"):
        print("a connection to", address)
        raise OSError("no network here")
    return connect(self, address)

connect, socket.socket.connect = socket.socket.connect, blocked
from floq_eqx.training.loggers import open_loggers

for resume_at, steps in ((None, (5, 10)), (5, (10,))):
    time.sleep(1.1)  # W&B's folders are named by the second
    with open_loggers(sys.argv[1], ["wandb"], resume_at=resume_at, config={"seed": 3}) as logger:
        for step in steps:
            logger.log(step, {"loss": 0.25, "seconds": 2}, table="train")
        logger.log(10, {"success": 1.0}, table="evaluation")
"""


def records(path):
    """Those of a W&B file, by the framing of LevelDB's logs: blocks of 32 KiB after 7 bytes."""
    content, at, parts = path.read_bytes(), 7, b""
    while at < len(content):
        if 2**15 - at % 2**15 < 7:
            at += 2**15 - at % 2**15
            continue
        length, kind = int.from_bytes(content[at + 4 : at + 6], "little"), content[at + 6]
        parts += content[at + 7 : at + 7 + length]
        at += 7 + length
        if kind in (1, 4):  # a whole record, or the last part of one
            yield parts
            parts = b""


@needs("wandb")
def test_wandb_offline(tmp_path):
    """Without a network: all that its processes would send goes to a port that is watched."""
    from wandb.proto.wandb_internal_pb2 import Record

    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    proxy = f"http://127.0.0.1:{port}"
    names = ("http_proxy", "https_proxy", "all_proxy", "WANDB_BASE_URL")
    environment = {k: v for k, v in os.environ.items() if not k.startswith("WANDB_")}
    environment |= {name: proxy for low in names for name in (low, low.upper())}
    environment |= {"no_proxy": "", "NO_PROXY": "", "HOME": str(tmp_path / "home")}
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(OFFLINE), str(tmp_path / "run"), str(port)],
        capture_output=True,
        text=True,
        env=environment,
        check=False,
        cwd=tmp_path,
    )
    assert (done.returncode, done.stdout) == (0, ""), done.stderr

    first, second = sorted((tmp_path / "run" / "wandb").glob("offline-run-*-*"))
    assert first.name.rpartition("-")[2] == second.name.rpartition("-")[2]
    rows, config = [], {}
    for content in records(next(first.glob("*.wandb"))):
        record = Record.FromString(content)
        config |= {item.key: item.value_json for item in record.run.config.update}
        names = {item.nested_key[0]: item.value_json for item in record.history.item}
        rows += [{k: float(v) for k, v in names.items() if not k.startswith("_")}] if names else []
    assert config["seed"] == "3"
    loss = {"train/loss": 0.25, "train/seconds": 2.0}
    assert rows == [
        {"step": 5} | loss,
        {"step": 10} | loss,
        {"step": 10, "evaluation/success": 1.0},
    ]
    assert [row["step"] for row in CSVLogger(tmp_path / "run").read("train")] == [5, 10]
