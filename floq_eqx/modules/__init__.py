"""Equinox modules: one example in, one out; batches and ensembles are the caller's `vmap`."""

from .actors import (
    AbstractActor as AbstractActor,
    GaussianActor as GaussianActor,
    OneStepActor as OneStepActor,
    TanhGaussianActor as TanhGaussianActor,
)
from .values import (
    ActionValue as ActionValue,
    CategoricalValue as CategoricalValue,
    QuantileValue as QuantileValue,
    StateValue as StateValue,
    member_logits as member_logits,
    member_quantiles as member_quantiles,
    member_values as member_values,
)
from .velocity import (
    AbstractValueVelocity as AbstractValueVelocity,
    ActionVelocity as ActionVelocity,
    EndpointVelocity as EndpointVelocity,
    ShortcutVelocity as ShortcutVelocity,
    ValueVelocity as ValueVelocity,
    action_velocities as action_velocities,
    conditioned_velocities as conditioned_velocities,
    member_conditions as member_conditions,
    member_velocities as member_velocities,
)
