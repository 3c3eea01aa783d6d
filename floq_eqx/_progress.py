"""How far long work has come: a bar in a terminal or a notebook, a line now and then elsewhere."""

import contextlib
import sys
import time
import warnings
from collections.abc import Callable, Iterator
from typing import Any

_SECONDS = 60.0


@contextlib.contextmanager
def progress_bar(
    unit: str,
    *,
    total: int | None,
    initial: int = 0,
    show: bool = True,
    name: str | None = None,
    **options: Any,
) -> Iterator[Callable[[int], None]]:
    """Shows how far work has come, its rate and the time that is left, on standard error.

    **Arguments:** `unit`: what is counted; `total`: how many there are; `initial`: how many are
    done already; `show`: whether to show anything; `name`: of the work; `options`: of tqdm's.

    **Returns:** what takes the number that is done.
    """
    if not show:
        yield lambda done: None
    elif _can_draw():
        with _bar()(total=total, initial=initial, unit=unit, desc=name, **options) as bar:
            yield lambda done: bar.update(done - bar.n)
    else:
        yield _lines(f"{name}: {unit}" if name else unit, total, initial)


def _can_draw() -> bool:
    """Whether a line of standard error can be drawn again: a terminal's, or a notebook's."""
    shell = getattr(sys.modules.get("IPython"), "get_ipython", lambda: None)()
    notebook = "IPKernelApp" in getattr(shell, "config", ())
    return notebook or bool(getattr(sys.stderr, "isatty", lambda: False)())


def _bar() -> Any:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # A notebook without ipywidgets gets the terminal's bar.
        from tqdm.auto import tqdm
    return tqdm


def _lines(unit: str, total: int | None, initial: int) -> Callable[[int], None]:
    """Lines at least a minute and a hundredth of the work apart, for logs that stay short."""
    from tqdm import tqdm

    began = last = time.monotonic()
    shown = initial

    def show(done: int) -> None:
        nonlocal last, shown
        now = time.monotonic()
        if now - last < _SECONDS or (done - shown) * 100 < (total or 0):
            return
        last, shown = now, done
        rate = (done - initial) / (now - began)
        line = f"{unit} {done}, {rate:.3g} a second"
        if total is not None:
            left = tqdm.format_interval((total - done) / rate)
            line = f"{unit} {done} of {total}, {rate:.3g} a second, {left} left"
        with contextlib.suppress(OSError, ValueError):  # Nobody may be reading any more.
            print(line, file=sys.stderr, flush=True)

    return show
