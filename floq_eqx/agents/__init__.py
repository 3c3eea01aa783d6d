"""Algorithms: a critic, a policy and a selection, each a frozen module of hyperparameters."""

from . import critics as critics, policies as policies, recipes as recipes
from .actor_critic import (
    ActorCritic as ActorCritic,
    ActorCriticNoise as ActorCriticNoise,
    Parts as Parts,
)
from .agent import Agent as Agent, State as State, average as average, frozen as frozen
from .critics import (
    CRITICS as CRITICS,
    TD as TD,
    AbstractCritic as AbstractCritic,
    BoundedCritic as BoundedCritic,
    Categorical as Categorical,
    Flow as Flow,
    Implicit as Implicit,
    Quantile as Quantile,
    ReturnFlow as ReturnFlow,
    SoftReturnFlow as SoftReturnFlow,
)
from .plain import (
    ADJOINTS as ADJOINTS,
    SOLVERS as SOLVERS,
    from_plain as from_plain,
    to_plain as to_plain,
    with_options as with_options,
)
from .policies import (
    POLICIES as POLICIES,
    AbstractPolicy as AbstractPolicy,
    BehaviouralFlow as BehaviouralFlow,
    Deterministic as Deterministic,
    Fixed as Fixed,
    Gaussian as Gaussian,
    OneStep as OneStep,
    Shortcut as Shortcut,
    TanhGaussian as TanhGaussian,
)
from .recipes import (
    RECIPES as RECIPES,
    bc as bc,
    bc_flow as bc_flow,
    c51 as c51,
    composed as composed,
    evor as evor,
    floq as floq,
    fql as fql,
    ifql as ifql,
    iql as iql,
    iqn as iqn,
    qc as qc,
    rebrac as rebrac,
    recipe as recipe,
    sac as sac,
    sorl as sorl,
    value_flows as value_flows,
)
from .selection import Selection as Selection
