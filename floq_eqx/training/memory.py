"""Whether runs fit in the memory of the device."""

from pathlib import Path
from typing import Any

import jax


def free_memory() -> int | None:
    """The bytes that are free on the device or, on a CPU, on this machine; `None` if unknown."""
    stats = jax.local_devices()[0].memory_stats()
    if stats and "bytes_limit" in stats:
        return stats["bytes_limit"] - stats.get("bytes_in_use", 0)
    try:
        lines = Path("/proc/meminfo").read_text(encoding="ascii").splitlines()
    except OSError:  # Not Linux.
        return None
    known = dict(line.split(":", 1) for line in lines)
    return int(known["MemAvailable"].split()[0]) * 1024


def needs(compiled: Any) -> tuple[int, int]:
    """What a compiled program takes besides its arguments: what lies in between, and its results,
    in bytes.
    """
    known = compiled.compiled.memory_analysis()
    return (0, 0) if known is None else (known.temp_size_in_bytes, known.output_size_in_bytes)


def check_memory(count: int, each: int, shared: int = 0) -> None:
    """Raises a `MemoryError` if so many runs do not fit, which says how many do.

    **Arguments:** `count`: the number of runs; `each`, `shared`: what one of them, and what all
    together still take, in bytes.
    """
    free = free_memory()
    if free is not None and count * each + shared > free:
        raise MemoryError(
            f"{count} runs in one program take {(count * each + shared) / 2**30:.3g} GiB, and "
            f"{free / 2**30:.3g} GiB are free: {max(0, free - shared) // max(1, each)} fit. Give "
            "fewer runs, a smaller batch or a smaller network."
        )
