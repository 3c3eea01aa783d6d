"""The options of the command line, built from the modules that they set."""

import contextlib
import dataclasses
import json
import re
import shlex
import textwrap
import typing
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

import tyro

from .._types import FloatLike, Number
from ..agents.plain import NAMED, to_plain
from ..networks import NETWORKS, NetworkConfig
from ..training import Interrupted, OnlineConfig


def options_like(
    kind: type,
    defaults: Any,
    *,
    only: Sequence[str] | None = None,
    skip: Sequence[str] = (),
    ask: Sequence[str] = (),
    renamed: Mapping[str, str] | None = None,
) -> type:
    """A dataclass for tyro with the fields of `kind`, the values of `defaults` as its defaults, and
    `None` where `ask` says that there is none.

    Scalar arrays become floats, solvers and adjoints their names, which a command line can give; a
    network has its kind, and the options of the kind that the default is of.
    """
    described = documented(kind)
    hints = typing.get_type_hints(kind)
    fields = []
    for name, network in NETWORKS.items():
        if kind is network:
            text = "What the network is, which decides the options of this group."
            hint = Annotated[Literal[tuple(NETWORKS)], tyro.conf.arg(help=text)]
            fields.append(("kind", hint, dataclasses.field(default=name)))
    for f in dataclasses.fields(kind):
        if f.name in skip or (only is not None and f.name not in only):
            continue
        hint, default = hints[f.name], getattr(defaults, f.name)
        if hint in (FloatLike, Number):
            hint, default = float, float(default)
            if f.name in ask:
                hint, default = float | None, None
        elif hint == FloatLike | None:
            hint, default = float | None, None if default is None else float(default)
        elif f.name in NAMED:
            hint: Any = Literal[tuple(NAMED[f.name][1])]
            hint, default = hint | None if f.default is None else hint, to_plain(default)
        elif isinstance(default, NetworkConfig):
            hint = options_like(type(default), default)
            default = hint()
        hint = Annotated[hint, tyro.conf.arg(help=described.get(f.name, ""))]
        name = (renamed or {}).get(f.name, f.name)
        fields.append((name, hint, dataclasses.field(default=default)))
    return dataclasses.make_dataclass(kind.__name__, fields, frozen=True)


def documented(kind: type) -> dict[str, str]:
    """What the bullets of a class's docstring, and of its bases', say of each field, without
    Markdown.
    """
    out: dict[str, str] = {}
    for base in reversed(kind.__mro__):
        bullets = (base.__dict__.get("__doc__") or "").partition("**Raises:**")[0] + "\n\n"
        text = re.sub(r"\n\s+(?!\s*- `)(?=\S)", " ", bullets)
        text = re.sub(r"\[`(?:\w+\.)*(\w+)`\]\[.*?\]", r"\1", text)
        out |= {
            name: re.sub(r"^[a-z](?=[a-z])", lambda m: m[0].upper(), description.replace("`", ""))
            for names, description in re.findall(r"- (`.+?`): (.+)", text)
            for name in re.findall(r"`(\w+)`", names)
        }
    return out


def values_of(parsed: Any) -> dict[str, Any]:
    """What was parsed, by field."""
    return {f.name: getattr(parsed, f.name) for f in dataclasses.fields(parsed)}


def plain_of(parsed: Any) -> dict[str, Any]:
    """What was parsed, with mappings for the parts: what `with_options` takes."""
    return {
        name: plain_of(value) if dataclasses.is_dataclass(value) else value
        for name, value in values_of(parsed).items()
    }


def with_parts_named(arguments: Sequence[str], options: type, own: Sequence[str]) -> list[str]:
    """The words, with the part's name put before an option that only one part has.

    **Arguments:** the words of a command line; the dataclass of its options; and the names of those
    fields that are parts, such as `critic`.

    **Raises:** `ValueError` for an option that several parts have, and names them.
    """
    hints = typing.get_type_hints(options)
    flags: dict[str, set[str]] = {}
    for part in own:
        for name in _flags(hints[part]):
            flags.setdefault(name, set()).add(part)
    known = {name for field in hints.keys() - set(own) for name in _flags_of_field(field, hints)}
    out = []
    for word in arguments:
        name, equals, value = word.partition("=")
        bare = name.removeprefix("--").replace("_", "-")
        parts = sorted(flags.get(bare, ())) if name.startswith("--") and bare not in known else []
        if len(parts) > 1:
            names = " and ".join(f"--{part.replace('_', '-')}.{bare}" for part in parts)
            raise ValueError(f"{name} could be {names}: name the part that is meant.")
        out.append(f"--{parts[0].replace('_', '-')}.{bare}{equals}{value}" if parts else word)
    return out


def _flags_of_field(field: str, hints: dict[str, Any]) -> set[str]:
    """The flags of a field of the whole command's: its own name, or those of a group's fields."""
    kind = _kind(hints[field])
    return {field.replace("_", "-")} if kind is None else _flags(hints[field])


def _flags(hint: Any) -> set[str]:
    """The flags of a part's options, below its name, and those that turn them off."""
    kind, out = _kind(hint), set()
    for f in dataclasses.fields(kind) if kind is not None else ():
        inner, name = typing.get_type_hints(kind, include_extras=True)[f.name], f.name
        name = name.replace("_", "-")
        if _kind(inner) is not None:
            out |= {f"{name}.{below}" for below in _flags(inner)}
        else:
            out |= {name, f"no-{name}"}
    return out


def _kind(hint: Any) -> Any:
    """The dataclass of a group of options; `None` of a single option."""
    while typing.get_origin(hint) is Annotated:
        hint = typing.get_args(hint)[0]
    return hint if dataclasses.is_dataclass(hint) else None


def help_asked(
    arguments: Sequence[str], groups: Sequence[str]
) -> tuple[list[str], set[str] | None]:
    """The words without a request for help, and the groups that it names; `None` without one."""
    words = list(arguments)
    asked = [index for index, word in enumerate(words) if word in ("-h", "--help")]
    if not asked:
        return words, None
    after = words[asked[0] + 1 :]
    rest = [word for word in after if word not in groups and word not in ("-h", "--help")]
    return words[: asked[0]] + rest, {word for word in after if word in groups}


def print_help(
    program: str, description: str, options: type, groups: Sequence[str], asked: set[str]
) -> typing.NoReturn:
    """Prints the options that are in no group and the names of those in one or, if groups are asked
    for, these with their texts; and ends the program as `--help` does.
    """
    hints = typing.get_type_hints(options, include_extras=True)
    fields, rows = [], []
    for f in dataclasses.fields(options):
        hint, grouped = hints[f.name], f.name in groups
        if grouped and not asked:
            flags = _flags(hint)
            own = [name for name in flags if not re.search(r"(^|\.)no-[\w-]+$", name)]
            text = f"  {f.name.replace('_', '-')}: {', '.join(sorted(own))}"
            rows += textwrap.wrap(text, 80, subsequent_indent="    ", break_on_hyphens=False)
        if grouped != bool(asked) or (asked and f.name not in asked):
            hint = Annotated[hint, tyro.conf.Suppress]
        default: Any = {"default": f.default, "default_factory": f.default_factory}
        known = {name: one for name, one in default.items() if one is not dataclasses.MISSING}
        fields.append((f.name, hint, dataclasses.field(**known)))
    if rows:
        description = "\n".join((description, "", *rows))
    shown = dataclasses.make_dataclass(options.__name__, fields)
    tyro.cli(shown, prog=program, description=description, args=["--help"])
    raise SystemExit(0)


def online_options(online: OnlineConfig | None) -> type:
    """The options of learning online; without it, the one that asks for it."""
    if online is None:
        text = "Learn online for so many environment steps afterwards; this adds its options."
        hint = Annotated[int | None, tyro.conf.arg(help=text)]
        return dataclasses.make_dataclass("Online", [("online_steps", hint, None)], frozen=True)
    return options_like(
        OnlineConfig, online, skip=("start",), renamed={"num_steps": "online_steps"}
    )


def online_config(parsed: Any, before: OnlineConfig | None) -> OnlineConfig | None:
    """What was parsed of them."""
    values = values_of(parsed)
    steps = values.pop("online_steps")
    if steps is None:
        return None
    return dataclasses.replace(before or OnlineConfig(), num_steps=steps, **values)


def json_object(text: str) -> dict[str, Any]:
    """What `--env-kwargs` says."""
    try:
        values = json.loads(text)
        if not isinstance(values, dict):
            raise ValueError("it is no object")
    except ValueError as error:
        raise ValueError(
            f"--env-kwargs must be a JSON object such as '{{\"name\": 1}}', got {text}: {error}."
        ) from None
    return values


@contextlib.contextmanager
def saying_how_to_continue(command: str, words: Sequence[str], folder: Path) -> Iterator[None]:
    """Adds to an interruption the command that continues, if there is a run in the folder."""
    try:
        yield
    except Interrupted as interrupted:
        hint = f"; floq {command} --resume {shlex.join(words)} continues"
        if not (folder / "config.json").exists():
            hint = ""
        raise Interrupted(interrupted.signum, interrupted.saved + hint) from None
