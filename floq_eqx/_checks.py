"""Checks of hyperparameters and sizes, which say what was got and what was expected."""

import dataclasses
import difflib
import types
from collections.abc import Iterable
from typing import Annotated, Any, Literal, Union, get_args, get_origin

import jax

from ._types import Number, Range


def check_fields(options: Any) -> None:
    """Raises a `ValueError` unless every field of a dataclass is what its annotation says.

    Numbers are finite and in the `Range` of their annotation, whole ones at least 1 without one; a
    `Literal` lists all choices. Arrays pass as numbers, and annotations of other kinds check
    nothing.
    """
    for field in dataclasses.fields(options):
        check_field(field.name, getattr(options, field.name), field.type)


def check_field(name: str, value: Any, hint: Any) -> None:
    """Raises a `ValueError` unless this value is what an annotation says."""
    hint, limits = get_args(hint)[:2] if get_origin(hint) is Annotated else (hint, None)
    kinds = get_args(hint) if get_origin(hint) in (Union, types.UnionType) else (hint,)
    if value is None and types.NoneType in kinds:
        return
    kinds = tuple(kind for kind in kinds if kind is not types.NoneType)
    if float in kinds:
        limits = limits or Range()
        check_range(name, value, **dataclasses.asdict(limits))
    elif kinds == (int,):
        check_sizes(1 if limits is None else limits.low, **{name: value})
    elif kinds == (bool,):
        if not isinstance(value, bool):
            raise ValueError(f"{name} must be true or false, got {value!r}.")
    elif kinds == (str,):
        if not isinstance(value, str):
            raise ValueError(f"{name} must be a text, got {value!r}.")
    elif get_origin(kinds[0]) is Literal:
        check_choice(name, value, kinds[0])
    elif get_origin(kinds[0]) is Annotated:
        check_field(name, value, kinds[0])
    elif get_origin(kinds[0]) is tuple:
        if not isinstance(value, tuple):
            raise ValueError(f"{name} must be a tuple (in JSON a list), got {value!r}.")
        for entry in value:
            check_field(f"every entry of {name}", entry, get_args(kinds[0])[0])
    elif all(isinstance(kind, type) for kind in kinds) and not isinstance(value, kinds):
        if isinstance(value, type):
            made = f"an instance, such as {value.__name__}()"
            raise ValueError(f"{name} is the class {value.__name__}; expected {made}.")
        names = " or ".join(kind.__name__ for kind in kinds)
        raise ValueError(f"{name} is {value!r}; expected {names}, or options by their names.")


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
    if hasattr(value, "shape"):
        return
    if not isinstance(value, int | float) or isinstance(value, bool):
        raise ValueError(f"{name} must be a number, got {value!r}.")
    above = low < value if open_low else low <= value
    below = value < high if open_high else value <= high
    if not (above and below and value < float("inf")):
        left, right = "(" if open_low else "[", ")" if open_high or high == float("inf") else "]"
        raise ValueError(f"{name} must be in {left}{low}, {high}{right}, got {value!r}.")


def check_sizes(low: Number = 1, **sizes: Any) -> None:
    """Raises a `ValueError` unless every size or count is a whole number of at least `low`."""
    for name, size in sizes.items():
        if not isinstance(size, int) or isinstance(size, bool) or size < low:
            raise ValueError(f"{name} must be a whole number of at least {low}, got {size!r}.")


def check_choice(name: str, value: Any, choices: Any) -> None:
    """Raises a `ValueError` unless `value` is one of the alternatives of a `Literal`."""
    if value not in get_args(choices):
        raise ValueError(f"{name} must be one of {get_args(choices)}, got {value!r}.")


def check_unused(options: Any, where: str, *names: str) -> None:
    """Raises a `ValueError` for a field of a dataclass that was changed without effect.

    Arrays pass, as in `check_range`.
    """
    for field in dataclasses.fields(options):
        value, make = getattr(options, field.name), field.default_factory
        known = not any(hasattr(leaf, "shape") for leaf in jax.tree.leaves(value))
        default = field.default if make is dataclasses.MISSING else make()
        if field.name in names and known and value != default:
            raise ValueError(f"{field.name} = {value!r} means nothing {where}: leave it out.")


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
