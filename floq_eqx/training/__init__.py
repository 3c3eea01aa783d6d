"""Training: a compiled loop over updates, and what goes around it."""

from ..data.episodes import EnvironmentFaultError as EnvironmentFaultError
from .config import OnlineConfig as OnlineConfig, TrainConfig as TrainConfig
from .interruption import Interrupted as Interrupted, Stop as Stop, stopping as stopping
from .loop import (
    DivergedError as DivergedError,
    Progress as Progress,
    fit as fit,
    train_seeds as train_seeds,
    train_steps as train_steps,
)
from .many import StoppedRunsError as StoppedRunsError, train_many as train_many
from .online import OnlineProgress as OnlineProgress, fit_online as fit_online
from .run import Facts as Facts, Run as Run
from .trainer import finetune as finetune, train as train
