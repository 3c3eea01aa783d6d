"""What may change when a run is resumed, and what is said of what does."""

from collections.abc import Callable, Iterable
from typing import Any

from ..agents.agent import Agent
from .config import TrainConfig
from .run import Facts, Run

OF_THE_DATA = ("action_size", "critic.reward_min", "critic.reward_max")
"""What a run fills in of its agent, from the data."""


def check_same_data(old: Run, facts: Facts) -> None:
    """Raises a `ValueError` if a resumed run finds other data than it was trained on."""
    if old.facts != facts:
        raise ValueError(
            f"{old.folder} was trained on other data: it found {_facts_text(old.facts)}, and now "
            f"there are {_facts_text(facts)}. Resume with the same data, wherever they lie now, or "
            "start in another folder."
        )


def _facts_text(facts: Facts) -> str:
    content = "" if facts.data is None else f", content {facts.data[:12]}"
    return (
        f"observations of {facts.observation_size} and actions of {facts.action_size} "
        f"components{content}"
    )


def say_new_decay(old: Agent, new: Agent, report: Callable[[str], None]) -> None:
    """Says so if a resumed run has another decay of its learning rate."""
    if old.decay_updates != new.decay_updates:
        until = (
            "is constant from now on"
            if new.decay_updates is None
            else f"falls to zero at update {new.decay_updates} from now on"
        )
        report(f"the learning rate {until}; until now decay_updates was {old.decay_updates}")


def differences(one: TrainConfig, other: TrainConfig) -> list[tuple[str, Any, Any]]:
    """The settings in which two runs differ, by name, with the values of both."""

    def flat(config: TrainConfig) -> dict[str, Any]:
        plain = config.to_plain()
        plain |= plain.pop("agent")
        for part in ("critic", "policy", "selection", "next_selection", "online"):
            options = plain.pop(part, None) or {}
            plain |= {f"{part}.{name}": value for name, value in options.items()}
        return plain

    a, b = flat(one), flat(other)
    return [(name, a.get(name), b.get(name)) for name in a | b if a.get(name) != b.get(name)]


def check_same_config(old: TrainConfig, new: TrainConfig, *, ignore: Iterable[str]) -> None:
    """Raises a `ValueError` that names the settings of a resumed run that have changed."""
    changed = [
        f"{name}: {before!r} before, {after!r} now"
        for name, before, after in differences(old, new)
        if name not in ignore
    ]
    if changed:
        raise ValueError(
            "The run in this folder has another configuration; resume with its own, or start "
            "in another folder. Different: " + "; ".join(changed) + "."
        )


def check_more_to_do(
    step: int, config: TrainConfig, grows: str, report: Callable[[str], None]
) -> None:
    """Says where a resumed run continues, and raises a `ValueError` if it is past its end."""
    unit = "update" if config.online is None else "step"
    if step > config.last_step:
        raise ValueError(
            f"The run is at {unit} {step} already: resume with a larger {grows} than ends at "
            f"{config.last_step}."
        )
    report(
        f"finished before: {unit} {step} of {config.last_step}"
        if step == config.last_step
        else f"continuing at {unit} {step} of {config.last_step}"
    )
