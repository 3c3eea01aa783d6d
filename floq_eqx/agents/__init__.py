"""Algorithms: each a frozen module of hyperparameters around pure functions of its state."""

from .base import Agent as Agent, State as State, average as average, frozen as frozen
from .floq import Floq as Floq, FloqNoise as FloqNoise, FloqParams as FloqParams
from .flow_policy import (
    FlowPolicy as FlowPolicy,
    FlowPolicyAgent as FlowPolicyAgent,
    FlowPolicyNoise as FlowPolicyNoise,
    flow_policy_loss as flow_policy_loss,
    integrate_actions as integrate_actions,
)
from .fql import FQL as FQL, FqlNoise as FqlNoise, FqlParams as FqlParams
from .registry import (
    AGENTS as AGENTS,
    SOLVERS as SOLVERS,
    from_plain as from_plain,
    to_plain as to_plain,
)
