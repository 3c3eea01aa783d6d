"""Transitions, OGBench datasets and their collection."""

from .checks import (
    check_batch as check_batch,
    check_data as check_data,
    fingerprint as fingerprint,
    reward_range as reward_range,
)
from .collect import collect_dataset as collect_dataset
from .fetching import fetch_dataset as fetch_dataset
from .loading import load_dataset as load_dataset
from .names import (
    DatasetName as DatasetName,
    dataset_names as dataset_names,
    parse_name as parse_name,
)
from .ogbench import make_environment as make_environment
from .own_files import load_own_data as load_own_data
from .replay import (
    Collected as Collected,
    Replay as Replay,
    sample_mixture as sample_mixture,
)
from .transitions import Batch as Batch
from .windows import (
    Data as Data,
    Trajectories as Trajectories,
    sample as sample,
    sample_windows as sample_windows,
    take as take,
    window as window,
)

__all__ = [
    "Batch",
    "Collected",
    "Data",
    "DatasetName",
    "Replay",
    "Trajectories",
    "check_batch",
    "check_data",
    "collect_dataset",
    "dataset_names",
    "fetch_dataset",
    "fingerprint",
    "load_dataset",
    "load_own_data",
    "make_environment",
    "parse_name",
    "reward_range",
    "sample",
    "sample_mixture",
    "sample_windows",
    "take",
    "window",
]
