"""Agents as plain data, which configurations, presets and the command line hold."""

import dataclasses
from collections.abc import Mapping
from typing import Any, TypeVar

import diffrax
import equinox as eqx

from .._checks import check_field, nearest
from ..networks import NETWORKS, NetworkConfig, of_kind
from .actor_critic import ActorCritic
from .agent import Agent
from .critics import CRITICS, AbstractCritic
from .policies import POLICIES, AbstractPolicy
from .selection import Selection

T = TypeVar("T")


def _by_name(*kinds: type[T]) -> dict[str, type[T]]:
    return {kind.__name__.lower(): kind for kind in kinds}


SOLVERS: dict[str, type[diffrax.AbstractSolver]] = _by_name(
    *(diffrax.Euler, diffrax.Midpoint, diffrax.Heun, diffrax.Ralston),
    *(diffrax.Bosh3, diffrax.Tsit5, diffrax.Dopri5, diffrax.Dopri8),
)
"""The explicit solvers that a configuration can name; in code, any Diffrax solver will do."""

ADJOINTS: dict[str, type[diffrax.AbstractAdjoint]] = _by_name(
    diffrax.RecursiveCheckpointAdjoint, diffrax.DirectAdjoint, diffrax.BacksolveAdjoint
)
"""The adjoints that a configuration can name; in code, any that Diffrax has will do."""

NAMED: dict[str, tuple[Any, dict[str, Any]]] = {
    "solver": (diffrax.AbstractSolver, SOLVERS),
    "adjoint": (diffrax.AbstractAdjoint, ADJOINTS),
}
"""What is told by its name alone: fields, by what they hold, with the known ones."""

KINDS: dict[str, tuple[Any, dict[str, Any]]] = {
    "critic": (AbstractCritic, CRITICS),
    "policy": (AbstractPolicy, POLICIES),
    "network": (NetworkConfig, NETWORKS),
}
"""What is told by a `kind` and its options: what it is, with the known kinds."""


def to_plain(value: Any) -> Any:
    """An agent, or a part of one, as numbers, strings, lists and dicts, fit for JSON.

    **Raises:** `ValueError` for a critic, policy, solver or adjoint that is in no registry, and for
    a solver or an adjoint with options, which its name does not hold.
    """
    for what, (base, known) in NAMED.items():
        if isinstance(value, base):
            name = type(value).__name__.lower()
            if name not in known:
                raise nearest(what, name, known)
            if not eqx.tree_equal(value, known[name]()):
                raise ValueError(
                    f"{value} has options that its name, {name!r}, does not hold; a "
                    "configuration can name what has its defaults."
                )
            return name
    for what, (base, known) in KINDS.items():
        if isinstance(value, base):
            kind = next((name for name, one in known.items() if type(value) is one), None)
            if kind is None:
                raise ValueError(
                    f"{type(value).__name__} is no {what} that a configuration can name: they are "
                    f"{', '.join(known)}."
                )
            return {"kind": kind} | _fields(value)
    if isinstance(value, ActorCritic | Selection):
        return _fields(value)
    if isinstance(value, Agent):
        raise ValueError(
            f"{value.name} is no critic and policy, which a configuration can name: train it with "
            "floq_eqx.training.fit."
        )
    if isinstance(value, tuple | list):
        return [to_plain(entry) for entry in value]
    if value is None or isinstance(value, bool | int | str):
        return value
    return float(value)


def _fields(value: Any) -> dict[str, Any]:
    return {f.name: to_plain(getattr(value, f.name)) for f in dataclasses.fields(value)}


def from_plain(plain: Mapping[str, Any]) -> ActorCritic:
    """The agent of this plain form; what is absent keeps its default.

    **Raises:** `ValueError` for an unknown critic, policy, network, solver, adjoint or option, with
    the nearest names, and for values that the agent refuses.
    """
    for part in ("critic", "policy"):
        if part not in plain:
            raise ValueError(f"An agent needs a {part}: its kind and its options.")
    options = {"selection": {}, "next_selection": {}} | dict(plain)
    hints, parts = {f.name: f.type for f in dataclasses.fields(ActorCritic)}, {}
    for part in ("critic", "policy", "selection", "next_selection"):
        parts[part] = _value(part, options.pop(part), None)
        check_field(part, parts[part], hints[part])
    return with_options(ActorCritic(**parts), options, "an agent")


def with_options(module: T, options: Mapping[str, Any], name: str = "") -> T:
    """The agent, or a part of one, with other options.

    **Arguments:**

    - `module`: a critic, a policy, a selection, an agent or a network's configuration.
    - `options`: by field: values, in the plain form too; a mapping changes the options of a part,
        and with another `kind` the part, which begins with that kind's defaults; a network keeps
        its width and what else both kinds have. A name with dots, such as `critic.num_steps`,
        reaches into a part too.
    - `name`: what it is called in errors; by default the module's class.

    **Raises:** `ValueError` for an unknown option, with the nearest names, and for values that the
    module refuses.
    """
    known: dict[str, Any] = {f.name: f for f in dataclasses.fields(module)}  # pyright: ignore
    changes = {}
    for key, value in nested(options).items():
        if key not in known:
            raise _unknown(module, key, name or type(module).__name__)
        changes[key] = _value(key, value, getattr(module, key))
        check_field(key, changes[key], known[key].type)
    if isinstance(module, ActorCritic):
        parts = [(getattr(module, part), changes.get(part)) for part in ("critic", "policy")]
        if any(new is not None and type(new) is not type(old) for old, new in parts):
            changes["recipe"] = None  # another critic or policy makes another algorithm
    changed: Any = module
    return dataclasses.replace(changed, **changes)


def _unknown(module: Any, key: str, name: str) -> ValueError:
    """The error for an option that a module lacks, with the part that has it or the nearest."""
    parts = {f.name: getattr(module, f.name) for f in dataclasses.fields(module)}
    having = [
        f'{part}={{"{key}": ...}}'
        for part, value in parts.items()
        if isinstance(value, eqx.Module) and key in {f.name for f in dataclasses.fields(value)}
    ]
    if having:
        return ValueError(f"{key} is an option of a part: give {' or '.join(having)}.")
    return nearest(f"option of {name}", key, parts)


def nested(options: Mapping[str, Any]) -> dict[str, Any]:
    """Options of which those with dots in their names are put into mappings.

    **Raises:** `ValueError` for a part that is given whole, and options of it besides.
    """
    tree: dict[str, Any] = {}
    for name, value in options.items():
        key, dot, rest = name.partition(".")
        part = tree.get(key, {})
        if key in tree and not (dot and isinstance(part, Mapping)):
            raise ValueError(f"{key} is given twice, whole and by its options.")
        tree[key] = {**part, rest: value} if dot else value
    return tree


def _value(key: str, value: Any, now: Any) -> Any:
    """An option from its plain form; anything else is what it is."""
    if isinstance(value, Mapping):
        options = dict(value)
        what = key if key in KINDS else "selection" if "selection" in key else "network"
        if what == "selection":
            return with_options(Selection() if now is None else now, options, key)
        if key not in KINDS and not isinstance(now, NetworkConfig):
            raise ValueError(f"{key} has no options of its own, got {value!r}.")
        known = KINDS[what][1]
        kind = options.pop("kind", None)
        if kind is None and now is None:
            raise ValueError(f"{key} needs its kind, one of {', '.join(known)}.")
        if kind is not None and (not isinstance(kind, str) or kind not in known):
            raise nearest(f"kind of {what}", kind, known)
        if kind is not None and type(now) is not known[kind]:
            now = of_kind(now, kind) if isinstance(now, NetworkConfig) else known[kind]()
        return with_options(now, options, key)
    if key in NAMED and not isinstance(value, NAMED[key][0] | None):
        known = NAMED[key][1]
        if not isinstance(value, str) or value not in known:
            raise nearest(key, value, known)
        return known[value]()
    return tuple(value) if isinstance(value, list) else value
