"""Critics: how a value is represented and learned, a file each."""

from .categorical import Categorical as Categorical
from .critic import AbstractCritic as AbstractCritic, BoundedCritic as BoundedCritic
from .flow import Flow as Flow, FlowNoise as FlowNoise, FlowParams as FlowParams
from .implicit import Implicit as Implicit, ImplicitParams as ImplicitParams
from .quantile import Quantile as Quantile, QuantileNoise as QuantileNoise
from .return_flow import ReturnFlow as ReturnFlow, ReturnFlowNoise as ReturnFlowNoise
from .soft_return_flow import SoftReturnFlow as SoftReturnFlow
from .td import TD as TD

CRITICS: dict[str, type[AbstractCritic]] = {
    "flow": Flow,
    "td": TD,
    "quantile": Quantile,
    "categorical": Categorical,
    "return_flow": ReturnFlow,
    "soft_return_flow": SoftReturnFlow,
    "implicit": Implicit,
}
"""Every critic; one that is added here is known to the command line, the docs and the tests."""
