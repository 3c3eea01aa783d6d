"""Checks of hyperparameters and sizes, which say what was got and what was expected."""

import difflib
from collections.abc import Iterable
from typing import Any, get_args

from ._types import Number


def check_range(
    name: str,
    value: Any,
    low: Number = 0,
    high: Number = float("inf"),
    *,
    open_low: bool = False,
    open_high: bool = False,
) -> None:
    """Raises a `ValueError` unless a hyperparameter is in its range.

    Arrays pass: their values are not known when a program is traced.
    """
    if isinstance(value, str | bool | None):
        raise ValueError(f"{name} must be a number, got {value!r}.")
    if not isinstance(value, int | float):
        return
    above = low < value if open_low else low <= value
    below = value < high if open_high else value <= high
    if not (above and below and value < float("inf")):
        left, right = "(" if open_low else "[", ")" if open_high or high == float("inf") else "]"
        raise ValueError(f"{name} must be in {left}{low}, {high}{right}, got {value!r}.")


def check_sizes(**sizes: Any) -> None:
    """Raises a `ValueError` unless every given size or count is a whole number of at least 1."""
    for name, size in sizes.items():
        if not isinstance(size, int) or isinstance(size, bool) or size < 1:
            raise ValueError(f"{name} must be a whole number of at least 1, got {size!r}.")


def check_choice(name: str, value: Any, choices: Any) -> None:
    """Raises a `ValueError` unless `value` is one of the alternatives of a `Literal`."""
    if value not in get_args(choices):
        raise ValueError(f"{name} must be one of {get_args(choices)}, got {value!r}.")


def check_unused(what: str, **options: tuple[Any, Any]) -> None:
    """Raises a `ValueError` for an option, given with its default, that was changed without effect.

    Arrays pass, as in `check_range`.
    """
    for name, (value, default) in options.items():
        if isinstance(value, int | float | str | None) and value != default:
            raise ValueError(f"{name} = {value!r} means nothing {what}: leave it out.")


def nearest(kind: str, name: Any, known: Iterable[str]) -> ValueError:
    """The error for an unknown name, with the known ones that look most like it."""
    known = sorted(known)
    close = difflib.get_close_matches(str(name), known, n=3) or known
    return ValueError(f"Unknown {kind} {name!r}; did you mean {' or '.join(close)}?")


def check_kind(name: str, value: Any, default: Any) -> None:
    """Raises a `ValueError` unless a value from JSON is of the same kind as its default."""
    kinds = {bool: "true or false", int: "a whole number", float: "a number", str: "a text"}
    kinds |= {list: "a list", dict: "a mapping of names to values"}
    kind = type(value)
    if default is not None and kind is not type(default) and (kind, type(default)) != (int, float):
        raise ValueError(f"{name} must be {kinds[type(default)]}, got {value!r}.")
    if isinstance(default, dict):
        for key in value.keys() & default.keys():
            check_kind(key, value[key], default[key])
    if isinstance(default, list) and default:
        for entry in value:
            check_kind(f"every entry of {name}", entry, default[0])
