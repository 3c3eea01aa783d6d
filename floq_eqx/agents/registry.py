"""All agents by name, and their hyperparameters as plain data."""

import dataclasses
import difflib
from collections.abc import Iterable
from typing import Any

import diffrax
import equinox as eqx

from ..networks import MLPConfig, ResidualConfig
from .base import Agent
from .bc import BC, BCFlow
from .c51 import C51
from .evor import EVOR
from .floq import Floq
from .fql import FQL
from .ifql import IFQL
from .iql import IQL
from .iqn import IQN
from .rebrac import ReBRAC
from .sac import SAC
from .sorl import SORL
from .value_flows import ValueFlows

AGENTS: dict[str, type[Agent]] = {
    "floq": Floq,
    "fql": FQL,
    "iqn": IQN,
    "c51": C51,
    "value_flows": ValueFlows,
    "sorl": SORL,
    "evor": EVOR,
    "iql": IQL,
    "ifql": IFQL,
    "rebrac": ReBRAC,
    "sac": SAC,
    "bc": BC,
    "bc_flow": BCFlow,
}
"""Every algorithm; adding one here adds it to the command line, the presets and the tests."""

SOLVERS: dict[str, type[diffrax.AbstractSolver]] = {
    solver.__name__.lower(): solver
    for solver in (
        diffrax.Euler,
        diffrax.Midpoint,
        diffrax.Heun,
        diffrax.Ralston,
        diffrax.Bosh3,
        diffrax.Tsit5,
        diffrax.Dopri5,
        diffrax.Dopri8,
    )
}
"""The explicit solvers that a configuration can name; in code, any Diffrax solver will do."""

ADJOINTS: dict[str, type[diffrax.AbstractAdjoint]] = {
    adjoint.__name__.lower(): adjoint
    for adjoint in (
        diffrax.RecursiveCheckpointAdjoint,
        diffrax.DirectAdjoint,
        diffrax.BacksolveAdjoint,
    )
}
"""The adjoints that a configuration can name; in code, any that Diffrax has will do."""

# The fields of an agent that hold an object of Diffrax, and the names of its classes.
_NAMED = {"solver": SOLVERS, "adjoint": ADJOINTS}

NETWORKS = {"mlp": MLPConfig, "residual": ResidualConfig}
"""The kinds of network that a configuration can name."""


def nearest(kind: str, name: Any, known: Iterable[str]) -> ValueError:
    """The error for an unknown name, with the known ones that look most like it."""
    known = sorted(known)
    close = difflib.get_close_matches(str(name), known, n=3) or known
    return ValueError(f"Unknown {kind} {name!r}; did you mean {' or '.join(close)}?")


def to_plain(agent: Agent) -> dict[str, Any]:
    """An agent's hyperparameters as numbers, strings, lists and dicts, fit for JSON.

    **Raises:** `ValueError` for a solver that has no name in `SOLVERS`, an adjoint that has none in
    `ADJOINTS`, or one with options, which a name does not hold.
    """

    def plain(value: Any) -> Any:
        for kind, config in NETWORKS.items():
            if isinstance(value, config):
                return {"kind": kind} | plain(dataclasses.asdict(value))
        for kind, base in {
            "solver": diffrax.AbstractSolver,
            "adjoint": diffrax.AbstractAdjoint,
        }.items():
            if isinstance(value, base):
                name = type(value).__name__.lower()
                if name not in _NAMED[kind]:
                    raise nearest(kind, name, _NAMED[kind])
                if not eqx.tree_equal(value, _NAMED[kind][name]()):
                    raise ValueError(
                        f"{value} has options that its name, {name!r}, does not hold; a "
                        "configuration can name what has its defaults."
                    )
                return name
        if isinstance(value, dict):
            return {key: plain(entry) for key, entry in value.items()}
        if isinstance(value, tuple | list):
            return [plain(entry) for entry in value]
        if value is None or isinstance(value, bool | int | str):
            return value
        return float(value)

    return {f.name: plain(getattr(agent, f.name)) for f in dataclasses.fields(agent)}


def from_plain(name: str, hyperparameters: dict[str, Any]) -> Agent:
    """The agent `name` with these hyperparameters; what is absent keeps its default.

    **Raises:** `ValueError` for an unknown agent, solver, adjoint or hyperparameter, with the
    nearest names, and for values that the agent refuses.
    """
    if name not in AGENTS:
        raise nearest("agent", name, AGENTS)
    known = {f.name for f in dataclasses.fields(AGENTS[name])}
    values = {}
    for key, value in hyperparameters.items():
        if key not in known:
            raise nearest(f"hyperparameter of {name}", key, known)
        values[key] = _from_plain_value(key, value)
    return AGENTS[name](**values)


def _from_plain_value(key: str, value: Any) -> Any:
    if isinstance(value, dict):
        fields = dict(value)
        kind = fields.pop("kind", None)
        if kind not in NETWORKS:
            raise nearest("kind of network", kind, NETWORKS)
        return NETWORKS[kind](**{k: _from_plain_value(k, v) for k, v in fields.items()})
    if isinstance(value, list):
        return tuple(value)
    if key in _NAMED and value is not None:
        if value not in _NAMED[key]:
            raise nearest(key, value, _NAMED[key])
        return _NAMED[key][value]()
    return value
