"""Whether runs fit in the memory of the device."""

import contextlib
from pathlib import Path
from typing import Any

import jax


def free_memory() -> int | None:
    """The bytes that are free on the device or, on a CPU, for this process; `None` if unknown."""
    stats = jax.local_devices()[0].memory_stats()
    if stats and "bytes_limit" in stats:
        return stats["bytes_limit"] - stats.get("bytes_in_use", 0)
    if jax.default_backend() != "cpu":
        return None
    try:
        lines = Path("/proc/meminfo").read_text(encoding="ascii").splitlines()
    except OSError:  # Not Linux.
        return None
    known = dict(line.split(":", 1) for line in lines)
    free = int(known["MemAvailable"].split()[0]) * 1024
    group = Path("/sys/fs/cgroup")  # of a container
    with contextlib.suppress(OSError, ValueError):  # There is none, or it has no limit.
        limit, used = (int((group / f"memory.{n}").read_text()) for n in ("max", "current"))
        free = min(free, limit - used)
    return free


def needs(compiled: Any) -> tuple[int, int]:
    """What a compiled program takes besides its arguments: what lies in between, and its results,
    in bytes.
    """
    known = compiled.compiled.memory_analysis()
    return (0, 0) if known is None else (known.temp_size_in_bytes, known.output_size_in_bytes)


def check_memory(
    count: int, each: int, *, held: int = 0, temporary: int = 0, at_once: int = 1
) -> None:
    """Raises a `MemoryError` if so many runs do not fit, which says how many do.

    **Arguments:** `count`: the number of runs; `each`, `held`: what one of them still takes, and
    what it has taken already, in bytes; `temporary`: what an update takes besides, of which there
    are `at_once`.
    """
    free = free_memory()
    if free is None:
        return

    def takes(runs: int) -> int:
        return runs * (each + held) + min(runs, at_once) * temporary

    available = free + count * held
    if takes(count) > available:
        most = max(runs for runs in range(count) if takes(runs) <= available or not runs)
        raise MemoryError(
            f"{count} runs in one program take {takes(count) / 2**30:.3g} GiB, and "
            f"{available / 2**30:.3g} GiB are there for them: {most} fit. Give fewer runs, a "
            "smaller batch or a smaller network."
        )
