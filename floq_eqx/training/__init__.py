"""Training: a compiled loop over updates, and what goes around it."""

from .loop import (
    DivergedError as DivergedError,
    Progress as Progress,
    fit as fit,
    train_seeds as train_seeds,
    train_steps as train_steps,
)
from .online import (
    EnvironmentFaultError as EnvironmentFaultError,
    OnlineProgress as OnlineProgress,
    fit_online as fit_online,
)
from .run import Run as Run, TrainConfig as TrainConfig, train as train
