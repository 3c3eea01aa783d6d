"""`floq train --seeds` and `--sweep`: which runs are asked for."""

import dataclasses
import itertools
import re
import typing
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from .._checks import nearest
from .._types import Number
from ..agents import AbstractCritic, AbstractPolicy, Agent, Selection, with_options
from ..training import TrainConfig
from ..training.resuming import OF_THE_DATA

_MOST = 1000  # each keeps its lock's file open


@dataclasses.dataclass(frozen=True)
class Member:
    """One of several runs.

    **Attributes:** `seed`: its own; `changes`: what is swept over, with its value here.
    """

    seed: int
    changes: tuple[tuple[str, Number], ...] = ()

    @property
    def label(self) -> str:
        """What its folder is called, alone or at the end of a longer name."""
        swept = [f"{name}={_spelled(value)}" for name, value in self.changes]
        return "-".join([*swept, f"seed{self.seed}"])

    def config(self, config: TrainConfig) -> TrainConfig:
        """Its own configuration, of that of all."""
        agent: Any = with_options(typing.cast(Any, config.agent), dict(self.changes))
        return dataclasses.replace(config, agent=agent, seed=self.seed)


def members(
    agent: Agent, seeds: str | None, seed: int | None, sweep: Sequence[str]
) -> list[Member]:
    """The runs that are asked for: every seed with every value of each hyperparameter.

    **Raises:** `ValueError` for what cannot be read, and for a seed, a hyperparameter or a value
    that is given twice.
    """
    if seeds is not None and seed is not None:
        raise ValueError(f"--seed {seed} is one run and --seeds {seeds} several: give one of them.")
    numbers = [seed or 0] if seeds is None else seeds_of(seeds)
    options = _options(agent)
    swept = [_values(text, options) for text in sweep]
    names = [name for name, _ in swept]
    _check_once("--sweep", names, "is given")
    products = itertools.product(*([(name, v) for v in values] for name, values in swept))
    made = [Member(number, changes) for changes in products for number in numbers]
    if len(made) > _MOST:
        raise ValueError(f"{len(made)} runs are too many for one program: give at most {_MOST}.")
    return made


def seeds_of(text: str) -> list[int]:
    """The seeds of a text such as `0-3,7`.

    **Raises:** `ValueError` for a text of another form, and a seed that is given twice.
    """
    out: list[int] = []
    for part in text.split(","):
        match = re.fullmatch(r"\s*(\d{1,10})(?:-(\d{1,10}))?\s*", part)
        first, last = (int(n) for n in (match[1], match[2] or match[1])) if match else (1, 0)
        if last < first:
            raise ValueError(f"--seeds takes seeds and ranges, such as 0-7 or 0,2,5-7: got {text}.")
        if last - first >= _MOST:
            raise ValueError(f"--seeds {text} are too many for one program: at most {_MOST}.")
        out += range(first, last + 1)
    _check_once(f"--seeds {text}", [str(seed) for seed in out], "holds")
    return out


def _values(text: str, options: dict[str, Any]) -> tuple[str, list[Number]]:
    """What a text such as `alpha=30,100` sweeps over, by its full name, and the values."""
    name, equals, values = text.partition("=")
    name = name.strip().removeprefix("--").replace("-", "_")
    texts = [value.strip() for value in values.split(",")]
    if not (equals and name and all(texts)):
        raise ValueError(
            "--sweep takes a hyperparameter and its values, such as policy.alpha=30,100,300: got "
            f"{text}."
        )
    full = _full_name(name, options)
    numbers = [_number(full, each) for each in texts]
    _check_once(f"--sweep {text}", [_spelled(number) for number in numbers], "holds")
    return full, numbers


def _check_once(where: str, values: Sequence[str], verb: str) -> None:
    for value in values:
        if values.count(value) > 1:
            raise ValueError(f"{where} {verb} {value} twice: each once is a run.")


def _number(name: str, text: str) -> Number:
    try:
        return float(text) + 0.0  # for -0
    except ValueError:
        raise ValueError(f"--sweep {name} takes numbers, got {text!r}.") from None


def _spelled(number: Number) -> str:
    return repr(number).removesuffix(".0")


def _options(agent: Any) -> dict[str, Any]:
    """The float hyperparameters of an agent, by their names with the part's."""
    out: dict[str, Any] = {}
    for f in dataclasses.fields(agent):
        value = getattr(agent, f.name)
        number = value is None or isinstance(value, int | float)
        if isinstance(value, AbstractCritic | AbstractPolicy | Selection):
            out |= {f"{f.name}.{name}": inner for name, inner in _options(value).items()}
        elif number and not isinstance(value, bool) and not f.metadata.get("static"):
            out[f.name] = value
    return {name: value for name, value in out.items() if name not in OF_THE_DATA}


def _full_name(name: str, options: dict[str, Any]) -> str:
    """The name with the part's, which can be left out where one part alone has it.

    **Raises:** `ValueError` for a name that is not known, or that several parts have.
    """
    if name in options:
        return name
    found = [full for full in options if full.rpartition(".")[2] == name]
    if len(found) > 1:
        raise ValueError(f"--sweep {name} could be {' or '.join(found)}: name the part.")
    if not found:
        text = str(nearest("float hyperparameter to sweep over", name, options))
        raise ValueError(f"{text} Others change the program: train their values one by one.")
    return found[0]


def folders(out: str | None, default: str, runs: Sequence[Member], *, resume: bool) -> list[Path]:
    """A folder for each: below `out`, or beside each other with `default` before the labels.

    **Raises:** `ValueError` if `out` is itself a run, or holds others than those to `resume`.
    """
    if out is None:
        return [Path(f"{default}-{run.label}") for run in runs]
    if (Path(out) / "config.json").exists():
        raise ValueError(f"{out} is a run: several runs need a folder that holds one for each.")
    made, others = [Path(out) / run.label for run in runs], runs_below(out)
    if resume and others and not set(made) & set(others):
        names = ", ".join(folder.name for folder in others)
        raise ValueError(
            f"None of the runs to resume is in {out}, which holds {names}: give the seeds and the "
            "values of those, or another folder."
        )
    return made


def runs_below(out: str) -> list[Path]:
    """The folders of runs in a folder."""
    return sorted(path.parent for path in Path(out).glob("*/config.json"))
