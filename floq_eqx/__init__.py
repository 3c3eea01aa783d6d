"""Flow-matching Q-functions: Equinox velocity fields, Diffrax integration, pure losses."""

from . import (
    actors as actors,
    agents as agents,
    analysis as analysis,
    critics as critics,
    data as data,
    embeddings as embeddings,
    evaluation as evaluation,
    integrate as integrate,
    interop as interop,
    losses as losses,
    networks as networks,
    paths as paths,
    plotting as plotting,
    presets as presets,
    targets as targets,
    training as training,
    velocity as velocity,
)
from .agents import FQL as FQL, Agent as Agent, Floq as Floq, State as State
from .data import Batch as Batch
from .integrate import FlowPath as FlowPath, FlowSolution as FlowSolution, solve_flow as solve_flow
from .interop import from_flax as from_flax

__version__ = "0.1.0"
