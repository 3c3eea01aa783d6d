"""Signals as requests to stop, which are heard where nothing is lost by it.

SIGINT is what Ctrl-C sends; SIGTERM what SLURM, Kubernetes and machines about to be taken away do.
"""

import contextlib
import os
import signal
import sys
import threading
from collections.abc import Iterator
from typing import Any

_SIGNALS = (signal.SIGINT, signal.SIGTERM)
_PATIENCE = 3


class Interrupted(KeyboardInterrupt):
    """SIGINT or SIGTERM, after what was to be saved has been.

    **Attributes:** `signum`: the signal's number; a program ends with the status 128 + `signum`;
    `saved`: what of the work is saved, to end a sentence with.
    """

    def __init__(self, signum: int, saved: str = ""):
        self.signum, self.saved = signum, saved
        super().__init__(f"interrupted by {signal.Signals(signum).name}{saved}")


class Stop:
    """Whether a signal has asked to stop: make one with [`floq_eqx.training.stopping`][].

    A signal raises `Interrupted` at once, but within `deferred` it waits to be asked for. The
    second changes nothing, so that it breaks no checkpoint; the third ends the process.
    """

    def __init__(self):
        self.signum: int | None = None
        self._count = self._deferred = 0

    def __call__(self, *_: Any) -> bool:
        """Whether there was a signal."""
        return self.signum is not None

    def check(self) -> None:
        """Raises `Interrupted` if there was a signal."""
        if self.signum is not None:
            raise Interrupted(self.signum)

    @contextlib.contextmanager
    def deferred(self) -> Iterator[None]:
        """Signals wait, as long as this lasts, for whoever asks."""
        self._deferred += 1
        try:
            yield
        finally:
            self._deferred -= 1

    def handle(self, signum: int, frame: Any) -> None:
        """What is to be done at a signal."""
        self._count += 1
        if self._count >= _PATIENCE:
            signal.signal(signum, signal.SIG_DFL)
            os.kill(os.getpid(), signum)
            return
        self.signum = self.signum or signum
        if self._count == 1 and not self._deferred:
            raise Interrupted(signum)
        what = "stopping as soon as nothing is lost" if self._count == 1 else "stopping already"
        _say(f"{signal.Signals(signum).name}: {what}; the third signal ends it at once")


def _say(line: str) -> None:
    """To standard error, past Python's buffers, in which the signal may have hit a write."""
    with contextlib.suppress(OSError, ValueError, AttributeError):
        os.write(sys.stderr.fileno(), f"\nfloq: {line}\n".encode())


@contextlib.contextmanager
def stopping() -> Iterator[Stop]:
    """Handles SIGINT and SIGTERM by a `Stop`, as long as the block lasts.

    A signal that the process ignores stays ignored: programs in the background of a shell, or
    started by `nohup` or cron, inherit that. Outside the main thread, which alone can handle
    signals, nothing changes.
    """
    stop = Stop()
    before: dict[int, Any] = {}
    if threading.current_thread() is threading.main_thread():
        for signum in _SIGNALS:
            handler = signal.getsignal(signum)
            if handler not in (signal.SIG_IGN, None):  # None: not set by Python, cannot be put back
                before[signum] = signal.signal(signum, stop.handle)
    try:
        yield stop
    finally:
        for signum, handler in before.items():
            signal.signal(signum, handler)
