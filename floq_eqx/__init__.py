"""Flow-matching Q-functions: Equinox velocity fields, Diffrax integration, pure losses."""

import importlib
from typing import TYPE_CHECKING, Any

from . import (
    agents as agents,
    data as data,
    embeddings as embeddings,
    integrate as integrate,
    losses as losses,
    modules as modules,
    networks as networks,
    paths as paths,
    targets as targets,
)
from .agents import ActorCritic as ActorCritic, Agent as Agent, State as State
from .data import Batch as Batch
from .integrate import FlowPath as FlowPath, FlowSolution as FlowSolution, solve_flow as solve_flow

if TYPE_CHECKING:
    from . import (
        analysis as analysis,
        evaluation as evaluation,
        interop as interop,
        plotting as plotting,
        presets as presets,
        training as training,
    )
    from .interop import from_flax as from_flax

__version__ = "0.2.0"

# What only some programs use is imported when it is first asked for.
_LAZY = ("analysis", "evaluation", "interop", "plotting", "presets", "training")


def __getattr__(name: str) -> Any:
    if name in _LAZY:
        return importlib.import_module(f".{name}", __name__)
    if name == "from_flax":
        return importlib.import_module(".interop", __name__).from_flax
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *_LAZY, "from_flax"})
