"""What a run is asked to do."""

import dataclasses
import difflib
from typing import Annotated, Any, Literal, TypeAlias

from .._checks import check_fields, check_kind, check_sizes, check_unused, nearest
from .._types import Number, Range
from ..agents import Agent, floq, from_plain, to_plain
from ..data import dataset_names, parse_name

SuccessTiming: TypeAlias = Literal["pre", "post"]
OfflineData: TypeAlias = Literal["buffer", "mixture", "none"]
Keep: TypeAlias = Literal["last", "best", "all"]
Rewards: TypeAlias = Literal["task", "file"]
WarmupWith: TypeAlias = Literal["random", "policy"]

NO_ENVIRONMENT = "none"
"""The name of no environment: a run on own data that is not evaluated."""

CHANGEABLE = (
    *("log_every", "evaluate_every", "evaluation_episodes", "max_episode_steps"),
    *("checkpoint_every", "keep", "num_kept", "data", "collect_episodes", "decay_updates"),
    "online.start",
)
"""What may change when a run is resumed: what only watches, where its data lie (their content may
not), the decay of the learning rate, and the run that it started from once it has begun.
"""

_OF_OWN_DATA = ("action_low", "action_high", "reward_scale", "reward_shift")

# What a setting is that is `None` by default.
_OPTIONAL = {"data": "", "collect_episodes": 1, "success_timing": "", "warmup": 0, "start": ""}


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
        Environments that are not OGBench's have none but own data.
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

    - `environment`: a single-task OGBench name; the id of a Gymnasium environment whose
        observations and actions are boxes, to learn online or to be evaluated in after learning
        from own data; or `none`, for own data and no evaluation.
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
        folder. Where the environment is not OGBench's, an `.npz` or HDF5 file of
        [`floq_eqx.data.load_own`][].
    - `collect_episodes`: unless `data` says where a dataset is, collect this many episodes with
        OGBench's scripted expert, and keep them for later runs; `None` for no collecting.
    - `rewards`: the environment's `task` labels the transitions of the dataset, or they keep the
        `rewards` and `masks` of its `file`.
    - `sparse`: whether the rewards of an OGBench task are -1 unless it is solved, in the dataset
        and the environment.
    - `action_low`, `action_high`: the bounds of all components of own data's actions, which become
        -1 and 1; with an environment they are its own.
    - `reward_scale`, `reward_shift`: own data's rewards are scaled, then shifted.
    - `environment_kwargs`: arguments for the environment, of any names but those that
        [`floq_eqx.evaluation.make_environments`][] has itself.
    - `success_timing`: evaluate success before a step (`pre`) or after it (`post`, as published);
        `None` for OGBench's default.
    - `online`: what follows online; `None` for nothing.
    """

    environment: str = "cube-single-play-singletask-task1-v0"
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
    action_low: Number = -1.0
    action_high: Number = 1.0
    reward_scale: Number = 1.0
    reward_shift: Number = 0.0
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
        if self.environment in dataset_names():
            self._check_ogbench()
        elif self.online is not None and self.data is None:
            self._check_without_data(self.online)
        else:
            self._check_own()
        if not self.own_data:
            where = "where the data are OGBench's, or none are used"
            check_unused(self, where, *_OF_OWN_DATA)
        if self.online is not None:
            self._check_online(self.online)
        if not self.needs_data:
            for option, default in (("data", None), ("rewards", "task")):
                if getattr(self, option) != default:
                    raise ValueError(
                        f"{option} = {getattr(self, option)!r} means nothing: no offline data are "
                        "used."
                    )
        self._check_decay()

    @property
    def own_data(self) -> bool:
        """Whether it learns from a file of people's own, not OGBench's."""
        return self.data is not None and self.environment not in dataset_names()

    @property
    def evaluates(self) -> bool:
        """Whether there is an environment to be evaluated in."""
        return self.environment != NO_ENVIRONMENT

    def _check_own(self) -> None:
        """Raises for what makes no sense with own data."""
        # A name that nearly is OGBench's is none of another environment.
        near = difflib.get_close_matches(self.environment, dataset_names(), n=1, cutoff=0.8)
        if self.data is None or near:
            try:
                parse_name(self.environment)
            except ValueError as error:
                raise ValueError(
                    f"{error} Where another Gymnasium environment is meant, learn online in it, or "
                    "give own data of it (--data FILE)."
                ) from None
        for name in ("collect_episodes", "success_timing", "sparse", "rewards"):
            if getattr(self, name) != getattr(TrainConfig, name):
                raise ValueError(
                    f"{name} = {getattr(self, name)!r} means nothing: the data are not OGBench's."
                )
        if not self.action_low < self.action_high:
            raise ValueError(
                f"Needs action_low < action_high, got {self.action_low} and {self.action_high}."
            )
        if self.reward_scale == 0:
            raise ValueError("reward_scale = 0 would make all rewards equal.")
        if self.online is not None:
            where = "online, where the environment's rewards are as they are"
            check_unused(self, where, "reward_scale", "reward_shift")
            if not self.evaluates:
                raise ValueError(
                    "There is no environment to learn online in: give one (--env), or leave the "
                    "part online out."
                )
        if self.evaluates:
            check_unused(self, "where the environment has bounds", "action_low", "action_high")
            return
        if self.keep == "best":
            raise ValueError(
                "keep = 'best' needs evaluations, and there is no environment: keep the last or "
                "all, or give an environment (--env)."
            )
        names = ("evaluation_episodes", "max_episode_steps", "environment_kwargs")
        check_unused(self, "without an environment", *names)

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

    def _check_without_data(self, online: OnlineConfig) -> None:
        """Raises for what means nothing in an environment that is not OGBench's."""
        if self.num_updates and online.start is None:
            raise ValueError(
                f"{self.environment} is not OGBench's, so there are no offline data of it: learn "
                "from scratch, with num_updates = 0."
            )
        for name in ("collect_episodes", "success_timing", "sparse"):
            if getattr(self, name) != getattr(TrainConfig, name):
                raise ValueError(
                    f"{name} = {getattr(self, name)!r} means nothing: {self.environment} is not "
                    "OGBench's."
                )
        if online.offline_data == "mixture":
            raise ValueError(
                f"{self.environment} is not OGBench's, so there are no offline data to mix in."
            )

    def _check_online(self, online: OnlineConfig) -> None:
        if self.agent.uses_next_action:
            raise ValueError(
                f"{self.agent.name} needs the data's next action, which is not known online."
            )

    def _check_ogbench(self) -> None:
        if parse_name(self.environment).task is None:
            raise ValueError(
                f"{self.environment} has no reward: name one of its tasks, in which the agent is "
                "evaluated even if it learns from a file's own rewards, such as "
                f"{self.environment.removesuffix('-v0')}-singletask-task1-v0."
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
        has = self.own_data or self.environment in dataset_names()
        mixed = self.online.offline_data != "none" and has
        return offline or mixed

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
        return cls(agent=from_plain(agent), **values)


def _check_known(values: dict[str, Any], default: dict[str, Any]) -> None:
    """Raises a `ValueError` for a setting that is not known, or of another kind."""
    for key, value in values.items():
        if key not in default:
            raise nearest("setting", key, default)
        kind = _OPTIONAL.get(key, default[key]) if value is not None else default[key]
        check_kind(key, value, kind)
