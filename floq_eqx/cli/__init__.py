"""The `floq` program: parsing and printing; the work is done by the library."""

import importlib
import io
import re
import signal
import sys
import warnings
from collections.abc import Sequence
from typing import Any

from .._checks import nearest
from ..training import Interrupted, stopping
from .output import note

COMMANDS = {
    "train": "train an agent on an OGBench task, offline, online or both, in a folder of its own",
    "finetune": "go on online where another run ended",
    "evaluate": "run a trained policy",
    "collect": "collect or fetch a dataset",
    "data": "say where a dataset lies and what it holds, or fetch it",
    "plot": "draw learning curves",
    "solvers": "compare ODE solvers on the field of a run, or of a problem with a known Q",
}
"""Every command, each in a module of its name."""


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the program.

    **Arguments:** `argv`: the words after the program's name; `sys.argv`'s by default.

    **Returns:** the exit status: 0, 1 after an error that is printed, 2 after options that do not
    parse, 130 after Ctrl-C and 143 after SIGTERM.
    """
    arguments = list(sys.argv[1:] if argv is None else argv)
    for stream in (sys.stdout, sys.stderr):
        # No character that a terminal lacks ends a run.
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="replace")
    if not arguments or arguments[0] in ("-h", "--help"):
        print("usage: floq COMMAND [-h] ...\n\nFlow-matching Q-functions.\n\ncommands:")
        for name, text in COMMANDS.items():
            print(f"  {name:10} {text}")
        print("\n`floq COMMAND --help` lists a command's options.")
        return 0 if arguments else 2
    try:
        command, *rest = arguments
        if command not in COMMANDS:
            raise nearest("command", command, COMMANDS)
        with warnings.catch_warnings(), stopping():
            warnings.showwarning = note
            if command not in ("collect", "data", "plot") and not {"-h", "--help"} & set(rest):
                _check_device()
            importlib.import_module(f".{command}", __name__).run(rest)
    except KeyboardInterrupt as interrupt:
        text = str(interrupt) or "interrupted"
        print(f"floq: {text}", file=sys.stderr)
        return 128 + (interrupt.signum if isinstance(interrupt, Interrupted) else signal.SIGINT)
    except (ValueError, OSError, ArithmeticError, RuntimeError, MemoryError, ImportError) as error:
        text = re.sub(r"^\[Errno \d+\] ", "", str(error)) or type(error).__name__
        print(f"floq: error: {text}", file=sys.stderr)
        return 1
    return 0


def _check_device() -> None:
    """Raises a `RuntimeError` for a platform that JAX was told to use and cannot."""
    import jax

    options: Any = jax.config
    try:
        jax.devices()
    except Exception as error:  # An assertion without a text, where a plugin is missing.
        raise RuntimeError(
            f"JAX cannot start on JAX_PLATFORMS={options.jax_platforms}: "
            f"{str(error) or 'there is no such device, or its plugin is not installed'}. "
            "JAX_PLATFORMS=cpu runs on the CPU; for NVIDIA's GPUs, pip install 'jax[cuda13]'."
        ) from error
