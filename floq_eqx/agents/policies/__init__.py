"""Policies: how one acts, and what is learned to act so, a file each."""

from .behavioural_flow import (
    BehaviouralFlow as BehaviouralFlow,
    BehaviouralFlowNoise as BehaviouralFlowNoise,
)
from .deterministic import Deterministic as Deterministic
from .fixed import Fixed as Fixed
from .gaussian import Gaussian as Gaussian
from .one_step import OneStep as OneStep, OneStepNoise as OneStepNoise
from .policy import AbstractPolicy as AbstractPolicy, Critique as Critique, NextAction as NextAction
from .shortcut import (
    Shortcut as Shortcut,
    ShortcutNextNoise as ShortcutNextNoise,
    ShortcutNoise as ShortcutNoise,
)
from .tanh_gaussian import TanhGaussian as TanhGaussian

POLICIES: dict[str, type[AbstractPolicy]] = {
    "one_step": OneStep,
    "behavioural_flow": BehaviouralFlow,
    "shortcut": Shortcut,
    "gaussian": Gaussian,
    "deterministic": Deterministic,
    "tanh_gaussian": TanhGaussian,
}
"""Every policy that learns; one that is added here is known to the command line, the docs and the
tests."""
