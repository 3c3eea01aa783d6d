"""Parameters of the reference implementations, brought into this library's agents."""

import dataclasses
import re
from collections.abc import Callable, Mapping
from typing import Any, NoReturn

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np

from .agents.base import Agent, State
from .agents.floq import Floq
from .agents.fql import FQL
from .networks import (
    MLP,
    AbstractNetwork,
    Layer,
    MLPConfig,
    NetworkConfig,
    ResidualConfig,
    ResidualMLP,
)


def from_flax(params: Mapping[str, Any], config: Mapping[str, Any]) -> tuple[Agent, State]:
    """The agent and state of a reference checkpoint.

    **Arguments:**

    - `params`: from flax parameter path, such as `modules_floq/mlp/Dense_0/kernel`, to array.
        Kernels are `[in, out]`, with a leading axis for the members of an ensemble.
    - `config`: the reference's configuration; `agent_name` says which agent. Besides what the
        reference itself keeps there it needs `ob_dims` and `action_dim` and, for floq, the
        dataset's rewards `r_min` and `r_max`.

    **Returns:** the agent with the configuration's hyperparameters, and a state with these
    parameters and targets, a fresh optimiser and no updates.

    **Raises:** `ValueError` that names a configuration key that is missing or not supported, or
    every parameter that is unknown, missing, misshapen, not numeric or not finite.
    """
    config = _Config(config)
    name = config["agent_name"]
    if name not in _REFERENCES:
        raise ValueError(
            f"config['agent_name'] is {name!r}; only {sorted(_REFERENCES)} can be imported."
        )
    if config.get("encoder") is not None:
        raise ValueError(
            f"config['encoder'] is {config['encoder']!r}: agents that see images cannot be "
            "imported, only those with encoder=None."
        )
    reference = _REFERENCES[name]
    observation_size, action_size = int(config["ob_dims"][0]), int(config["action_dim"])
    agent = dataclasses.replace(reference.make(config, params), action_size=action_size)
    template = agent.init(observation_size, action_size, key=jax.random.key(0))

    arrays = _Arrays(params)
    tree = (template.params, template.targets)
    for prefix, where in reference.networks.items():
        tree = eqx.tree_at(where, tree, arrays.network(where(tree), prefix))
    arrays.raise_problems()
    return agent, agent.fresh_state(*tree)


class _Config(dict):
    def __missing__(self, key: str) -> NoReturn:
        raise ValueError(f"config lacks {key!r}, which is needed to build the agent.")


class _Arrays:
    """The flax parameters, with a note of which were used and what was wrong with them."""

    def __init__(self, params: Mapping[str, Any]):
        self.params = params
        self.used: set[str] = set()
        self.problems: list[str] = []

    def network(self, network: AbstractNetwork, prefix: str) -> AbstractNetwork:
        """`network` with the parameters below `prefix`."""
        if isinstance(network, MLP):
            hidden = tuple(self.layer(m, prefix, index) for index, m in enumerate(network.hidden))
            new = (hidden, self.linear(network.output, f"{prefix}/Dense_{len(hidden)}"))
            return eqx.tree_at(lambda n: (n.hidden, n.output), network, new)
        if not isinstance(network, ResidualMLP):
            raise TypeError(f"The references have no network like {type(network).__name__}.")
        first = self.layer(network.first, f"{prefix}/initial_block", 0)
        blocks = tuple(
            tuple(self.layer(m, f"{prefix}/hidden_blocks_{j}", index) for index, m in enumerate(b))
            for j, b in enumerate(network.blocks)
        )
        new = (first, blocks, self.linear(network.output, f"{prefix}/final_block/Dense_0"))
        return eqx.tree_at(lambda n: (n.first, n.blocks, n.output), network, new)

    def layer(self, layer: Layer, prefix: str, index: int) -> Layer:
        linear = self.linear(layer.linear, f"{prefix}/Dense_{index}")
        if layer.norm is None:
            return eqx.tree_at(lambda m: m.linear, layer, linear)
        norm = f"{prefix}/LayerNorm_{index}"
        new = (
            linear,
            self.take(f"{norm}/scale", layer.norm.weight),
            self.take(f"{norm}/bias", layer.norm.bias),
        )
        return eqx.tree_at(lambda m: (m.linear, m.norm.weight, m.norm.bias), layer, new)

    def linear(self, linear: eqx.nn.Linear, prefix: str) -> eqx.nn.Linear:
        new = (
            self.take(f"{prefix}/kernel", linear.weight, transpose=True),
            self.take(f"{prefix}/bias", linear.bias),
        )
        return eqx.tree_at(lambda m: (m.weight, m.bias), linear, new)

    def take(self, path: str, like: Any, *, transpose: bool = False) -> Any:
        """The array at `path` in the layout of `like`, or `like` itself and a problem noted."""
        shape = (*like.shape[:-2], like.shape[-1], like.shape[-2]) if transpose else like.shape
        if path not in self.params:
            self.problems.append(f"missing: {path} {shape}")
            return like
        self.used.add(path)
        array = np.asarray(self.params[path])
        if array.dtype.kind not in "fiu":
            self.problems.append(f"not numeric: {path} has dtype {array.dtype}")
        elif array.shape != shape:
            self.problems.append(f"misshapen: {path} is {array.shape}, expected {shape}")
        elif not np.isfinite(array).all():
            self.problems.append(f"not finite: {path} holds NaN or infinity")
        else:
            return jnp.asarray(np.swapaxes(array, -1, -2) if transpose else array, like.dtype)
        return like

    def raise_problems(self) -> None:
        unknown = [f"unknown: {path}" for path in self.params if path not in self.used]
        problems = self.problems + sorted(unknown)
        if problems:
            raise ValueError(
                "These parameters do not fit the configuration:\n  " + "\n  ".join(problems)
            )


@dataclasses.dataclass(frozen=True)
class _Reference:
    """How a reference agent is built, and where each of its networks goes in (params, targets)."""

    make: Callable[[_Config, Mapping[str, Any]], Agent]
    networks: dict[str, Callable[[Any], AbstractNetwork]]


def _critic_network(config: _Config, hidden_sizes: tuple[int, ...] | None) -> NetworkConfig:
    """A residual network without `hidden_sizes`."""
    norm = {
        "layer_norm": bool(config["layer_norm"]),
        "norm_first": not config["activate_before_layernorm"],
    }
    if hidden_sizes is not None:
        return MLPConfig(hidden_sizes=hidden_sizes, **norm)
    return ResidualConfig(
        width=config["block_width"],
        num_blocks=config["block_depth"],
        block_layers=config["num_transformations"],
        **norm,
    )


def _shared(config: _Config) -> dict[str, Any]:
    return {
        "learning_rate": config["lr"],
        "target_rate": config["tau"],
        "discount": config["discount"],
        "alpha": config["alpha"],
        "aggregation": config["q_agg"],
        "normalise_q": config["normalize_q_loss"],
        "actor": MLPConfig(
            hidden_sizes=tuple(config["actor_hidden_dims"]),
            layer_norm=bool(config["actor_layer_norm"]),
            norm_first=not config["activate_before_layernorm"],
        ),
    }


def _floq(config: _Config, params: Mapping[str, Any]) -> Floq:
    residual = config["use_resnets"]
    field = None if residual else _hidden_sizes(params, "modules_floq/mlp")
    critic = _hidden_sizes(params, "modules_critic/value_net")
    return Floq(
        **_shared(config),
        reward_min=config["r_min"],
        reward_max=config["r_max"],
        noise_coverage=config["noise_coverage"],
        num_noise=config["noise_samples"],
        num_steps=config["critic_flow_steps"],
        ensemble_size=config["flow_num_ensembles"],
        distilled_size=config["distill_num_ensembles"],
        train_at_zero_only=config["train_at_zero_only"],
        flow_steps=config["actor_flow_steps"],
        value_embedding="hl_gauss" if config["use_prob_embed"] else "rescaled",
        time_embedding="cosine" if config["embed_time"] else "raw",
        num_bins=config["num_bins"],
        sigma=config["sigma"],
        reward_offset=config["reward_offset"],
        field=_critic_network(config, field),
        critic=_critic_network(config, critic),
    )


def _hidden_sizes(params: Mapping[str, Any], prefix: str) -> tuple[int, ...]:
    """The hidden widths of the MLP below `prefix`, by its biases.

    Which of the configuration's keys holds them differs between networks and releases.
    """
    widths: dict[int, int] = {}
    for path, array in params.items():
        match = re.fullmatch(rf"{re.escape(prefix)}/Dense_(\d+)/(kernel|bias)", path)
        if match and np.ndim(array) and (match[2] == "bias" or int(match[1]) not in widths):
            widths[int(match[1])] = int(np.shape(array)[-1])
    return tuple(width for _, width in sorted(widths.items()))[:-1]


def _fql(config: _Config, params: Mapping[str, Any]) -> FQL:
    hidden = _hidden_sizes(params, "modules_critic/value_net")
    return FQL(
        **_shared(config),
        ensemble_size=config["value_num_ensembles"],
        flow_steps=config["flow_steps"],
        critic=_critic_network(config, None if config["use_resnets"] else hidden),
    )


_POLICY: dict[str, Callable[[Any], AbstractNetwork]] = {
    "modules_actor_bc_flow/mlp": lambda tree: tree[0].policy.flow.network,
    "modules_actor_onestep_flow/mlp": lambda tree: tree[0].policy.actor.network,
}
_REFERENCES = {
    "floq": _Reference(
        _floq,
        {
            "modules_floq/mlp": lambda tree: tree[0].field.network,
            "modules_target_floq/mlp": lambda tree: tree[1].network,
            "modules_critic/value_net": lambda tree: tree[0].critic.network,
            **_POLICY,
        },
    ),
    "fql": _Reference(
        _fql,
        {
            "modules_critic/value_net": lambda tree: tree[0].critic.network,
            "modules_target_critic/value_net": lambda tree: tree[1].network,
            **_POLICY,
        },
    ),
}
