"""What a run is asked to do."""

import dataclasses
import difflib
from pathlib import Path
from typing import Annotated, Any, Literal, TypeAlias

from .._checks import check_fields, check_kind, check_sizes, nearest
from .._types import Number, PositiveNumber, Range
from ..agents import Agent, floq, from_plain, to_plain
from ..data import dataset_names, parse_name
from ..data.of_minari import PREFIX as MINARI

SuccessTiming: TypeAlias = Literal["pre", "post"]
OfflineData: TypeAlias = Literal["buffer", "mixture", "none"]
Keep: TypeAlias = Literal["last", "best", "all"]
Rewards: TypeAlias = Literal["task", "file"]
WarmupWith: TypeAlias = Literal["random", "policy"]

CHANGEABLE = (
    *("log_every", "evaluate_every", "evaluation_episodes", "max_episode_steps"),
    *("checkpoint_every", "keep", "num_kept", "data", "collect_episodes", "decay_updates"),
    "online.start",
)
"""What may change when a run is resumed: what only watches, where its data lie (their content may
not), the decay of the learning rate, and the run that it started from once it has begun.
"""

# What a setting is that is `None` by default.
_OPTIONAL = {"environment": "", "data": "", "collect_episodes": 1, "success_timing": ""}
_OPTIONAL |= {"warmup": 0, "start": "", "action_low": [0.0], "action_high": [0.0]}


@dataclasses.dataclass(frozen=True)
class OnlineConfig:
    """The part of a run that acts in its environment and learns from what it sees.

    **Arguments:**

    - `num_steps`: the number of environment steps.
    - `utd`: the number of updates for each environment step.
    - `warmup`: the number of environment steps that come first, without updates; by default none
        where something was learned before, there are transitions to learn from and `warmup_with`
        is left alone, and else 1000.
    - `warmup_with`: how the first steps act: at `random`, or by the `policy` as it was learned
        before.
    - `num_environments`: how many act side by side.
    - `capacity`: how many transitions collected online are kept; the offline data come on top.
    - `offline_data`: in one `buffer` with the online data (floq, FQL), a `mixture` of which
        `offline_fraction` of each batch is offline data (RLPD, arXiv 2302.02948), or `none` of it.
        Environments that are not OGBench's have none.
    - `offline_fraction`: the share of offline data in a batch of a mixture, in [0, 1].
    - `keep_offline`: whether a full buffer keeps the offline data and replaces the oldest online
        data; otherwise the oldest go first, which are the offline data.
    - `start`: the folder of a run whose last state is where this one begins.
    """

    num_steps: int = 100_000
    utd: int = 1
    warmup: Annotated[int, Range(0)] | None = None
    warmup_with: WarmupWith = "random"
    num_environments: int = 1
    capacity: int = 1_000_000
    offline_data: OfflineData = "buffer"
    offline_fraction: Annotated[Number, Range(0, 1)] = 0.5
    keep_offline: bool = True
    start: str | None = None

    def __post_init__(self):
        check_fields(self)
        if self.warmup == 0 and self.warmup_with != OnlineConfig.warmup_with:
            raise ValueError(f"warmup_with = {self.warmup_with!r} means nothing with warmup = 0.")
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
        for name, where in (("offline_fraction", "mixture"), ("keep_offline", "buffer")):
            changed = getattr(self, name) != getattr(OnlineConfig, name)
            if changed and self.offline_data != where:
                raise ValueError(
                    f"{name} is for offline_data = {where!r} alone, which is {self.offline_data!r}."
                )


@dataclasses.dataclass(frozen=True)
class TrainConfig:
    """What a run is made of.

    **Arguments:**

    - `environment`: a single-task OGBench name or, to learn online or from your own data, the id of
        a Gymnasium environment whose observations and actions are boxes; `None` for your own data
        without one, of which nothing is evaluated.
    - `agent`: the algorithm with its hyperparameters.
    - `seed`: the seed of the parameters, the batches, the noise, the environments and the
        evaluation.
    - `num_updates`: how long to train offline; 0 to learn online from scratch.
    - `batch_size`: the number of transitions in an update.
    - `log_every`: the number of steps between rows of `train.csv`: updates offline, which run
        without return to the host, and environment steps online.
    - `evaluate_every`: the number of steps between evaluations, a multiple of `log_every`; the last
        step is always followed by one.
    - `evaluation_episodes`: the number of episodes in an evaluation.
    - `max_episode_steps`: the number of steps after which an episode of an evaluation is cut off.
    - `checkpoint_every`: the number of steps between checkpoints, a multiple of `log_every`.
    - `keep`: which checkpoints stay: the `last`, those that were evaluated `best`, which are saved
        at every evaluation then, or `all`. The last two always stay.
    - `num_kept`: the number of checkpoints that are kept as the last or the best.
    - `data`: the dataset's `.npz` file, or the folder to look for it; `None` for OGBench's own
        folder. Unless the environment is OGBench's: a file of your own, `.npz` or HDF5, or
        `minari:NAME`, as [`floq_eqx.data.load_own_data`][] reads them.
    - `collect_episodes`: unless `data` says where a dataset is, collect this many episodes with
        OGBench's scripted expert, and keep them for later runs; `None` for no collecting.
    - `rewards`: the environment's `task` labels the transitions of the dataset, or they keep the
        `rewards` and `masks` of its `file`, as your own data always do.
    - `sparse`: whether the rewards of an OGBench task are -1 unless it is solved, in the dataset
        and the environment.
    - `reward_scale`, `reward_shift`: of a reward r of the data, the agent learns scale · r + shift.
    - `action_low`, `action_high`: the bounds of the actions in your own data, a number or one for
        each component; by default the environment's or, without one, -1 and 1.
    - `environment_kwargs`: arguments for the environment, of any names but those that
        [`floq_eqx.evaluation.make_environments`][] has itself.
    - `success_timing`: evaluate success before a step (`pre`) or after it (`post`, as published);
        `None` for OGBench's default.
    - `online`: what follows online; `None` for nothing.
    """

    environment: str | None = "cube-single-play-singletask-task1-v0"
    agent: Agent = dataclasses.field(default_factory=floq)
    seed: Annotated[int, Range(0)] = 0
    num_updates: Annotated[int, Range(0)] = 1_000_000
    batch_size: int = 256
    log_every: int = 1000
    evaluate_every: int = 100_000
    evaluation_episodes: int = 50
    max_episode_steps: int = 10_000
    checkpoint_every: int = 10_000
    keep: Keep = "last"
    num_kept: int = 2
    data: str | None = None
    collect_episodes: int | None = None
    rewards: Rewards = "task"
    sparse: bool = False
    reward_scale: PositiveNumber = 1.0
    reward_shift: Number = 0.0
    action_low: tuple[Number, ...] | None = None
    action_high: tuple[Number, ...] | None = None
    environment_kwargs: dict[str, Any] = dataclasses.field(default_factory=dict)
    success_timing: SuccessTiming | None = None
    online: OnlineConfig | None = None

    def __post_init__(self):
        check_sizes(1 if self.online is None else 0, num_updates=self.num_updates)
        if isinstance(self.seed, int) and not 0 <= self.seed < 2**31:
            raise ValueError(f"seed must be in [0, 2**31), got {self.seed}.")
        check_fields(self)
        for name in ("evaluate_every", "checkpoint_every"):
            if getattr(self, name) % self.log_every:
                raise ValueError(
                    f"{name} must be a multiple of log_every = {self.log_every}, got "
                    f"{getattr(self, name)}."
                )
        if own := {"num", "asynchronous", "success_timing", "sparse"} & set(
            self.environment_kwargs
        ):
            raise ValueError(
                f"environment_kwargs cannot set {', '.join(sorted(own))}: the run itself does."
            )
        if self.keep == "all" and self.num_kept != TrainConfig.num_kept:
            raise ValueError(f"num_kept = {self.num_kept} means nothing where keep is 'all'.")
        if self.is_ogbench or _near_ogbench(self.environment):
            self._check_ogbench()
        else:
            self._check_not_ogbench()
        if self.online is not None:
            self._check_online(self.online)
        of_data = ("reward_scale", "reward_shift", "action_low", "action_high")
        if not self.needs_data:
            self._check_default("no offline data are used", "data", "rewards", *of_data)
        elif (self.action_low is None) != (self.action_high is None):
            raise ValueError("Give both action_low and action_high, or neither.")
        self._check_decay()

    def _check_decay(self) -> None:
        """A schedule that has ended must never look like training."""
        decay, total = self.agent.decay_updates, self.num_updates
        if self.online is not None:
            before = 0 if self.online.start is not None else self.num_updates
            total = before + self.online.num_steps * self.online.utd
        if decay is not None and decay < total:
            raise ValueError(
                f"With decay_updates = {decay} the learning rate is zero before the run of {total} "
                f"updates ends: give decay_updates = {total}, or None for a constant learning rate."
            )

    def _check_default(self, why: str, *names: str) -> None:
        """Raises a `ValueError` for a setting that means nothing."""
        for field in dataclasses.fields(self):
            value = getattr(self, field.name)
            if field.name in names and value != field.default:
                raise ValueError(f"{field.name} = {value!r} means nothing: {why}.")

    def _check_not_ogbench(self) -> None:
        name = self.environment or "the environment"
        of_ogbench = ("collect_episodes", "success_timing", "sparse")
        self._check_default(f"{name} is not OGBench's", *of_ogbench)
        if self.environment is not None:
            return
        if self.environment_kwargs:
            raise ValueError(
                f"environment_kwargs = {self.environment_kwargs!r} means nothing: there is no "
                "environment."
            )
        if self.online is not None:
            raise ValueError("To learn online takes an environment: name one (--env).")
        if self.keep == "best":
            raise ValueError(
                "keep = 'best' takes evaluations, and there is no environment for them: name one "
                "(--env), or keep the last or all."
            )

    def _check_online(self, online: OnlineConfig) -> None:
        if self.agent.uses_next_action:
            raise ValueError(
                f"{self.agent.name} needs the data's next action, which is not known online."
            )
        if self.reward_scale != 1.0 or self.reward_shift != 0.0:
            raise ValueError(
                "reward_scale and reward_shift are of the data alone, and what is collected online "
                "would be of another scale: leave them out, or wrap the environment and convert "
                "the data."
            )

    def _check_ogbench(self) -> None:
        name = parse_name(str(self.environment))
        self._check_default("OGBench's actions lie in [-1, 1]", "action_low", "action_high")
        if name.task is None:
            raise ValueError(
                f"{self.environment} has no reward: name one of its tasks, in which the agent is "
                "evaluated even if it learns from a file's own rewards, such as "
                f"{dataclasses.replace(name, task=1)}."
            )
        if self.rewards == "file" and self.sparse:
            raise ValueError(
                "sparse = True is for the task's rewards, and these are the file's: leave it out."
            )
        if self.rewards == "file" and self.data is None:
            raise ValueError(
                "rewards = 'file' needs a file that holds rewards, which OGBench's and collected "
                "ones do not: give data, its path or folder (--data)."
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
        has = self.is_ogbench or self.data is not None
        how = self.online.offline_data
        return offline or how == "mixture" or (how == "buffer" and has)

    @property
    def is_ogbench(self) -> bool:
        """Whether the environment is one of OGBench's, and the data with it."""
        return self.environment in dataset_names()

    @property
    def task(self) -> str:
        """What it is about, in words: the environment or, without one, the data."""
        if self.environment is not None:
            return self.environment
        if self.data is None:
            return "own data"
        return self.data if self.data.startswith(MINARI) else Path(self.data).name

    @property
    def agent_name(self) -> str:
        """The algorithm's name in `floq_eqx.agents.RECIPES` or, where it has none, those of the
        critic and the policy.
        """
        plain = to_plain(self.agent)
        kinds = [plain[part]["kind"] for part in ("critic", "policy") if plain[part] is not None]
        return plain["recipe"] or "-".join(kinds)

    def to_plain(self) -> dict[str, Any]:
        """The configuration as plain data, fit for JSON."""
        plain = {f.name: getattr(self, f.name) for f in dataclasses.fields(self)}
        plain["agent"] = to_plain(self.agent)
        online = plain.pop("online")
        return plain if online is None else plain | {"online": dataclasses.asdict(online)}

    @classmethod
    def from_plain(cls, plain: dict[str, Any]) -> "TrainConfig":
        """The inverse of `to_plain`.

        **Raises:** `ValueError` for a name or value that is not known, and for a configuration of
        floq_eqx 0.1.
        """
        values = dict(plain)
        agent = values.pop("agent", None)
        if "hyperparameters" in values:
            raise ValueError(
                "This is a configuration of floq_eqx 0.1, which knew no critics and policies: that "
                "version reads the run, and resumes it."
            )
        check_kind("agent", agent, {})
        default = cls().to_plain()
        del default["agent"]
        online = values.pop("online", None)
        _check_known(values, default)
        if online is not None:
            known = dataclasses.asdict(OnlineConfig())
            check_kind("online", online, {})
            _check_known(online, known)
            values["online"] = OnlineConfig(**online)
        for bound in ("action_low", "action_high"):
            if values.get(bound) is not None:
                values[bound] = tuple(values[bound])
        return cls(agent=from_plain(agent), **values)


def _check_known(values: dict[str, Any], default: dict[str, Any]) -> None:
    """Raises a `ValueError` for a setting that is not known, or of another kind."""
    for key, value in values.items():
        if key not in default:
            raise nearest("setting", key, default)
        if value is not None or key not in _OPTIONAL:
            check_kind(key, value, _OPTIONAL.get(key, default[key]))


def _near_ogbench(name: str | None) -> bool:
    """Whether a name looks like one of OGBench's that is misspelled."""
    return name is not None and bool(difflib.get_close_matches(name, dataset_names(), 1, 0.9))
