"""Algorithms: each a frozen module of hyperparameters around pure functions of its state."""

from .base import (
    Agent as Agent,
    State as State,
    average as average,
    best_of as best_of,
    frozen as frozen,
)
from .bc import BC as BC, BCFlow as BCFlow, BcFlowNoise as BcFlowNoise
from .c51 import C51 as C51, C51Params as C51Params
from .evor import EVOR as EVOR, EvorNoise as EvorNoise, EvorParams as EvorParams
from .floq import Floq as Floq, FloqNoise as FloqNoise, FloqParams as FloqParams
from .flow_policy import (
    FlowPolicy as FlowPolicy,
    FlowPolicyAgent as FlowPolicyAgent,
    FlowPolicyNoise as FlowPolicyNoise,
    FqlNoise as FqlNoise,
    behavioural_flow_loss as behavioural_flow_loss,
    flow_policy_loss as flow_policy_loss,
    integrate_actions as integrate_actions,
)
from .fql import FQL as FQL, FqlParams as FqlParams
from .ifql import IFQL as IFQL, IfqlNoise as IfqlNoise, IfqlParams as IfqlParams
from .implicit_values import (
    ImplicitValues as ImplicitValues,
    implicit_values_loss as implicit_values_loss,
)
from .iql import IQL as IQL, IqlParams as IqlParams
from .iqn import IQN as IQN, IqnNoise as IqnNoise, IqnParams as IqnParams
from .rebrac import (
    ReBRAC as ReBRAC,
    RebracNoise as RebracNoise,
    RebracParams as RebracParams,
)
from .registry import (
    ADJOINTS as ADJOINTS,
    AGENTS as AGENTS,
    SOLVERS as SOLVERS,
    from_plain as from_plain,
    to_plain as to_plain,
)
from .sac import SAC as SAC, SacNoise as SacNoise, SacParams as SacParams
from .sorl import (
    SORL as SORL,
    SorlNoise as SorlNoise,
    SorlParams as SorlParams,
    shortcut_actions as shortcut_actions,
)
from .value_flows import (
    ValueFlows as ValueFlows,
    ValueFlowsNoise as ValueFlowsNoise,
    ValueFlowsParams as ValueFlowsParams,
    confidence_weight as confidence_weight,
)
