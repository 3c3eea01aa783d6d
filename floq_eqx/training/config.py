"""What a run is asked to do."""

import dataclasses
from typing import Any, Literal, TypeAlias

from .._types import Number
from ..agents.base import Agent, check_choice, check_range, check_sizes
from ..agents.floq import Floq
from ..agents.registry import AGENTS, from_plain, nearest, to_plain
from ..data import dataset_names, parse_name

SuccessTiming: TypeAlias = Literal["pre", "post"]
OfflineData: TypeAlias = Literal["buffer", "mixture", "none"]

# What a setting is that is `None` by default.
_OPTIONAL = {"data": "", "collect_episodes": 1, "success_timing": "", "warmup": 0, "start": ""}


@dataclasses.dataclass(frozen=True)
class OnlineConfig:
    """The part of a run that acts in its environment and learns from what it sees.

    **Arguments:**

    - `num_steps`: environment steps.
    - `utd`: updates for each of them.
    - `warmup`: how many of them come first, with random actions and without updates; by default
        1000 where nothing was learned offline, and none otherwise.
    - `num_environments`: how many act side by side.
    - `capacity`: how many transitions collected online are kept; the offline data come on top.
    - `offline_data`: in one `buffer` with the online data (floq, FQL), a `mixture` of which
        `offline_fraction` of each batch is offline data (RLPD, arXiv 2302.02948), or `none` of it.
        Environments that are not OGBench's have none.
    - `offline_fraction`: of a mixture, in [0, 1].
    - `keep_offline`: whether a full buffer keeps the offline data and replaces the oldest online
        data; otherwise the oldest go first, which are the offline data.
    - `start`: the folder of a run whose last state is where this one begins.
    """

    num_steps: int = 100_000
    utd: int = 1
    warmup: int | None = None
    num_environments: int = 1
    capacity: int = 1_000_000
    offline_data: OfflineData = "buffer"
    offline_fraction: Number = 0.5
    keep_offline: bool = True
    start: str | None = None

    def __post_init__(self):
        sizes = ("num_steps", "utd", "num_environments", "capacity")
        check_sizes(**{name: getattr(self, name) for name in sizes})
        if self.warmup is not None and self.warmup < 0:
            raise ValueError(f"warmup must be at least 0, got {self.warmup}.")
        if self.num_environments > self.capacity:
            raise ValueError(
                f"A capacity of {self.capacity} cannot hold one step of {self.num_environments} "
                "environments."
            )
        if self.num_steps % self.num_environments:
            raise ValueError(
                f"num_steps must be a multiple of num_environments = {self.num_environments}, got "
                f"{self.num_steps}."
            )
        check_choice("offline_data", self.offline_data, OfflineData)
        check_range("offline_fraction", self.offline_fraction, 0, 1)


@dataclasses.dataclass(frozen=True)
class TrainConfig:
    """What a run is made of.

    **Arguments:**

    - `environment`: a single-task OGBench name or, for a run without offline data, the id of a
        Gymnasium environment whose observations and actions are boxes.
    - `agent`: the algorithm with its hyperparameters.
    - `seed`: of the parameters, the batches, the noise, the environments and the evaluation.
    - `num_updates`: how long to train offline; 0 to learn online from scratch.
    - `batch_size`: transitions in an update.
    - `log_every`: steps between rows of `train.csv`: updates offline, which run without return to
        the host, and environment steps online.
    - `evaluate_every`: steps between evaluations, a multiple of `log_every`; the last step is
        always followed by one.
    - `evaluation_episodes`: episodes in an evaluation.
    - `checkpoint_every`: steps between checkpoints, a multiple of `log_every`.
    - `data`: the dataset's `.npz` file, or the folder to look for it; `None` for OGBench's own
        folder.
    - `collect_episodes`: unless `data` says where they are, collect this many episodes with
        OGBench's scripted expert, and keep them for later runs; `None` for no collecting.
    - `success_timing`: evaluate success before a step (`pre`) or after it (`post`, as published);
        `None` for OGBench's default.
    - `online`: what follows online; `None` for nothing.
    """

    environment: str = "cube-single-play-singletask-task1-v0"
    agent: Agent = dataclasses.field(default_factory=Floq)
    seed: int = 0
    num_updates: int = 1_000_000
    batch_size: int = 256
    log_every: int = 1000
    evaluate_every: int = 100_000
    evaluation_episodes: int = 50
    checkpoint_every: int = 10_000
    data: str | None = None
    collect_episodes: int | None = None
    success_timing: SuccessTiming | None = None
    online: OnlineConfig | None = None

    def __post_init__(self):
        sizes = (
            *(("num_updates",) if self.num_updates or self.online is None else ()),
            "batch_size",
            "log_every",
            "evaluate_every",
            "evaluation_episodes",
            "checkpoint_every",
        )
        check_sizes(**{name: getattr(self, name) for name in sizes})
        for name in ("evaluate_every", "checkpoint_every"):
            if getattr(self, name) % self.log_every:
                raise ValueError(
                    f"{name} must be a multiple of log_every = {self.log_every}, got "
                    f"{getattr(self, name)}."
                )
        if self.collect_episodes is not None:
            check_sizes(collect_episodes=self.collect_episodes)
        if not 0 <= self.seed < 2**31:
            raise ValueError(f"seed must be in [0, 2**31), got {self.seed}.")
        if self.success_timing is not None:
            check_choice("success_timing", self.success_timing, SuccessTiming)
        if self.environment in dataset_names() or self.online is None:
            self._check_ogbench()
        elif self.num_updates and self.online.start is None:
            raise ValueError(
                f"{self.environment} is not OGBench's, so there are no offline data of it: learn "
                "from scratch, with num_updates = 0."
            )
        if self.online is not None:
            self._check_online(self.online)

    def _check_online(self, online: OnlineConfig) -> None:
        before = 0 if online.start is not None else self.num_updates
        decay = self.agent.decay_updates
        if decay is not None and decay < before + online.num_steps * online.utd:
            raise ValueError(
                f"With decay_updates = {decay} the learning rate is zero before the run ends: give "
                "none to learn online."
            )
        if self.agent.uses_next_action:
            raise ValueError(
                f"{type(self.agent).__name__} needs the data's next action, which is not known "
                "online."
            )

    def _check_ogbench(self) -> None:
        try:
            name = parse_name(self.environment)
        except ValueError as error:
            other = "Other Gymnasium environments can be learned online, from scratch."
            raise ValueError(f"{error} {other}") from None
        if name.task is None:
            raise ValueError(
                f"{self.environment} has no reward: name one of its tasks, such as "
                f"{self.environment.removesuffix('-v0')}-singletask-task1-v0."
            )

    @property
    def last_step(self) -> int:
        """Of the steps that checkpoints count: updates, and environment steps after them."""
        return self.num_updates + (0 if self.online is None else self.online.num_steps)

    @property
    def needs_data(self) -> bool:
        """Whether it uses offline data."""
        if self.online is None:
            return True
        offline = self.num_updates > 0 and self.online.start is None
        mixed = self.online.offline_data != "none" and self.environment in dataset_names()
        return offline or mixed

    @property
    def agent_name(self) -> str:
        """The agent's name in `floq_eqx.agents.AGENTS`."""
        return next(name for name, kind in AGENTS.items() if type(self.agent) is kind)

    def to_plain(self) -> dict[str, Any]:
        """The configuration as plain data, fit for JSON."""
        plain = {f.name: getattr(self, f.name) for f in dataclasses.fields(self)}
        plain |= {"agent": self.agent_name, "hyperparameters": to_plain(self.agent)}
        online = plain.pop("online")
        return plain if online is None else plain | {"online": dataclasses.asdict(online)}

    @classmethod
    def from_plain(cls, plain: dict[str, Any]) -> "TrainConfig":
        """The inverse of `to_plain`.

        **Raises:** `ValueError` for a name or value that is not known.
        """
        values = dict(plain)
        name = values.pop("agent", None)
        hyperparameters = values.pop("hyperparameters", {})
        if not isinstance(name, str) or name not in AGENTS:
            raise nearest("agent", name, AGENTS)
        default = cls(agent=from_plain(name, {})).to_plain()
        _check_kind("hyperparameters", hyperparameters, default.pop("hyperparameters"))
        online = values.pop("online", None)
        _check_known(values, default)
        if online is not None:
            known = dataclasses.asdict(OnlineConfig())
            _check_kind("online", online, {})
            _check_known(online, known)
            values["online"] = OnlineConfig(**online)
        return cls(agent=from_plain(name, hyperparameters), **values)


def _check_known(values: dict[str, Any], default: dict[str, Any]) -> None:
    """Raises a `ValueError` for a setting that is not known, or of another kind."""
    for key, value in values.items():
        if key not in default:
            raise nearest("setting", key, default)
        kind = _OPTIONAL.get(key, default[key]) if value is not None else default[key]
        _check_kind(key, value, kind)


def _check_kind(name: str, value: Any, default: Any) -> None:
    """Raises a `ValueError` unless a value from JSON is of the same kind as its default."""
    kinds = {bool: "true or false", int: "a whole number", float: "a number", str: "a text"}
    kinds |= {list: "a list", dict: "a mapping of names to values"}
    kind = type(value)
    if default is not None and kind is not type(default) and (kind, type(default)) != (int, float):
        raise ValueError(f"{name} must be {kinds[type(default)]}, got {value!r}.")
    if isinstance(default, dict):
        for key in value.keys() & default.keys():
            _check_kind(key, value[key], default[key])
    if isinstance(default, list) and default:
        for entry in value:
            _check_kind(f"every entry of {name}", entry, default[0])
