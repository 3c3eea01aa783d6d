"""Parameters of the reference implementations, brought into this library's agents."""

import dataclasses
import os
import re
from collections.abc import Callable, Mapping
from typing import Any, NoReturn, TypeAlias

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np

from .agents import (
    ActorCritic,
    Agent,
    BehaviouralFlow,
    State,
    floq,
    fql,
    ifql,
    iql,
    iqn,
    qc,
    rebrac,
    value_flows,
)
from .data.files import check_file
from .networks import (
    MLP,
    AbstractNetwork,
    Layer,
    MLPConfig,
    NetworkConfig,
    ResidualConfig,
    ResidualMLP,
)


def from_flax(
    params: Mapping[str, Any] | str | os.PathLike[str], config: Mapping[str, Any]
) -> tuple[Agent, State]:
    """The agent and state of a reference checkpoint.

    **Arguments:**

    - `params`: from flax parameter path, such as `modules_floq/mlp/Dense_0/kernel`, to array; or
        the `.npz` file of these arrays, which is checked before memory is taken for them. Kernels
        are `[in, out]`, with a leading axis for the members of an ensemble.
    - `config`: the reference's configuration; `agent_name` says which agent. Besides what the
        reference itself keeps there it needs, for floq, the dataset's rewards `r_min` and
        `r_max`. Value Flows' are `min_reward` and `max_reward`, and OGBench's -1 and 0 if absent.

    **Returns:** the agent with the configuration's hyperparameters, and a state with these
    parameters and targets, a fresh optimiser and no updates.

    **Raises:** `ValueError` that names a configuration key that is missing or not supported, or
    every parameter that is unknown, missing, misshapen, not numeric or not finite; and for a file
    that is no intact `.npz` of arrays. `FileNotFoundError` if there is none.
    """
    if isinstance(params, str | os.PathLike):
        check_file(params, thorough=True)
        with np.load(params, allow_pickle=False) as file:
            params = {path: file[path] for path in file.files}
    config = _Config(config)
    name = config["agent_name"]
    if not isinstance(name, str) or name not in _REFERENCES:
        raise ValueError(
            f"config['agent_name'] is {name!r}; only {sorted(_REFERENCES)} can be imported."
        )
    if config.get("encoder") is not None:
        raise ValueError(
            f"config['encoder'] is {config['encoder']!r}: agents that see images cannot be "
            "imported, only those with encoder=None."
        )
    reference = _REFERENCES[name]
    try:
        observation_size, action_size = _sizes(config, params)
        agent = dataclasses.replace(reference.make(config, params), action_size=action_size)
        # Only the shapes, which cost nothing where they are absurd.
        init = lambda key: agent.init(observation_size, action_size, key=key)  # noqa: E731
        template = eqx.filter_eval_shape(init, jax.random.key(0))
    except (TypeError, LookupError, AttributeError, ArithmeticError) as error:
        raise ValueError(
            f"config does not describe a {name} agent: {type(error).__name__}: {str(error)[:1000]}"
        ) from error

    arrays = _Arrays(reference.arrange(params, agent))
    tree = (template.params, template.targets)
    networks = reference.networks
    for prefix, where in (networks(agent) if callable(networks) else networks).items():
        tree = eqx.tree_at(where, tree, arrays.network(where(tree), prefix))
    arrays.raise_problems()
    return agent, agent.fresh_state(*tree)


def _sizes(config: "_Config", params: Mapping[str, Any]) -> tuple[int, int]:
    """Of observations and actions: the configuration's, or else, since some references do not keep
    them there, those of a layer that sees the observation alone and of a Gaussian's mean.
    """
    paths = ("modules_value/value_net/Dense_0/kernel", "modules_actor/actor_net/Dense_0/kernel")
    seen = [np.shape(params[path])[0] for path in paths if np.ndim(params.get(path, 0)) == 2]
    mean = np.shape(params.get("modules_actor/mean_net/bias", 0))
    observation_size = seen[0] if seen and "ob_dims" not in config else config["ob_dims"][0]
    action_size = mean[0] if mean and "action_dim" not in config else config["action_dim"]
    return int(observation_size), int(action_size)


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
            # A Gaussian's network has its hidden layers and its mean apart.
            gaussian = prefix.endswith("actor")
            below = f"{prefix}/actor_net" if gaussian else prefix
            hidden = tuple(self.layer(m, below, index) for index, m in enumerate(network.hidden))
            last = f"{prefix}/mean_net" if gaussian else f"{prefix}/Dense_{len(hidden)}"
            new = (hidden, self.linear(network.output, last))
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
        else:
            with np.errstate(over="ignore"):  # what is too large becomes infinite
                array = array.astype(like.dtype)
            if np.isfinite(array).all():
                return jnp.asarray(np.swapaxes(array, -1, -2) if transpose else array)
            self.problems.append(f"not finite: {path} holds NaN or infinity")
        return like

    def raise_problems(self) -> None:
        unknown = [f"unknown: {path}" for path in self.params if path not in self.used]
        problems = self.problems + sorted(unknown)
        if problems:
            # A file can hold any number of names, of any length.
            more = [f"and {len(problems) - 100} more"] if len(problems) > 100 else []
            lines = [problem[:300] for problem in problems[:100]] + more
            raise ValueError(
                "These parameters do not fit the configuration:\n  " + "\n  ".join(lines)
            )


_Params: TypeAlias = Mapping[str, Any]


@dataclasses.dataclass(frozen=True)
class _Reference:
    """How a reference agent is built, and where each of its networks goes in (params, targets)."""

    make: Callable[[_Config, Mapping[str, Any]], ActorCritic]
    networks: "_Networks | Callable[[ActorCritic], _Networks]"
    arrange: Callable[[Mapping[str, Any], ActorCritic], Mapping[str, Any]] = lambda params, _: (
        params
    )


def _critic_network(config: _Config, hidden_sizes: tuple[int, ...] | None) -> NetworkConfig:
    """A residual network without `hidden_sizes`."""
    norm = {
        "layer_norm": bool(config["layer_norm"]),
        "norm_first": not config.get("activate_before_layernorm", True),
    }
    if hidden_sizes is not None:
        return MLPConfig(hidden_sizes=hidden_sizes, **norm)
    return ResidualConfig(
        width=config["block_width"],
        num_blocks=config["block_depth"],
        block_layers=config["num_transformations"],
        **norm,
    )


def _mlp_actor(config: _Config) -> MLPConfig:
    return MLPConfig(
        hidden_sizes=tuple(config["actor_hidden_dims"]),
        layer_norm=bool(config["actor_layer_norm"]),
        norm_first=not config.get("activate_before_layernorm", True),
    )


def _gaussian_actor(config: _Config) -> MLPConfig:
    scale = config.get("actor_fc_scale", 0.01)
    return dataclasses.replace(_mlp_actor(config), output_scale=float(scale))


def _adam(config: _Config) -> dict[str, Any]:
    """What every reference sets for the whole agent."""
    return {"learning_rate": config["lr"], "target_rate": config["tau"]}


def _one_step(config: _Config, flow_steps: str = "flow_steps") -> dict[str, Any]:
    return {
        "alpha": config["alpha"],
        "normalise_q": config["normalize_q_loss"],
        "flow_steps": config[flow_steps],
        "network": _mlp_actor(config),
    }


def _floq(config: _Config, params: Mapping[str, Any]) -> ActorCritic:
    residual = config["use_resnets"]
    field = None if residual else _hidden_sizes(params, "modules_floq/mlp")
    distilled = _hidden_sizes(params, "modules_critic/value_net")
    critic = {
        "discount": config["discount"],
        "aggregation": config["q_agg"],
        "reward_min": config["r_min"],
        "reward_max": config["r_max"],
        "noise_coverage": config["noise_coverage"],
        "num_noise": config["noise_samples"],
        "num_steps": config["critic_flow_steps"],
        "ensemble_size": config["flow_num_ensembles"],
        "distilled_size": config["distill_num_ensembles"],
        "train_at_zero_only": config["train_at_zero_only"],
        "value_embedding": "hl_gauss" if config["use_prob_embed"] else "rescaled",
        "time_embedding": "cosine" if config["embed_time"] else "raw",
        "reward_offset": config["reward_offset"],
        "network": _critic_network(config, field),
        "distilled_network": _critic_network(config, distilled),
    }
    if config["use_prob_embed"]:
        critic |= {"num_bins": config["num_bins"], "sigma": config["sigma"]}
    return floq(critic=critic, policy=_one_step(config, "actor_flow_steps"), **_adam(config))


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


def _fql(config: _Config, params: Mapping[str, Any]) -> ActorCritic:
    hidden = _hidden_sizes(params, "modules_critic/value_net")
    critic = {
        "discount": config["discount"],
        "aggregation": config["q_agg"],
        "ensemble_size": config["value_num_ensembles"],
        "network": _critic_network(config, None if config["use_resnets"] else hidden),
    }
    return fql(critic=critic, policy=_one_step(config), **_adam(config))


def _acfql(config: _Config, params: Mapping[str, Any]) -> ActorCritic:
    """Q-chunking, by distillation or as the best of N, or n-step returns without chunks."""
    kinds = ("distill-ddpg", "best-of-n")
    if config["actor_type"] not in kinds:
        raise ValueError(f"config['actor_type'] is {config['actor_type']!r}: expected {kinds}.")
    if config["normalize_q_loss"]:
        raise ValueError("config['normalize_q_loss'] is True, which the reference never reads.")
    flow = {
        "flow_steps": config["flow_steps"],
        "network": _mlp_actor(config),
        "time_features": config["fourier_feature_dim"] if config["use_fourier_features"] else None,
    }
    critic = {
        "discount": config["discount"],
        "aggregation": config["q_agg"],
        "ensemble_size": config["num_qs"],
        "network": _critic_network(config, _hidden_sizes(params, "modules_critic/value_net")),
    }
    window = {"chunk": 1, "n_step": 1}
    window["chunk" if config["action_chunking"] else "n_step"] = config["horizon_length"]
    options = _adam(config) | window | {"weight_decay": config["weight_decay"]}
    if config["actor_type"] == "distill-ddpg":
        return qc(critic=critic, policy={"alpha": config["alpha"], **flow}, **options)
    best = {"num_candidates": config["actor_num_samples"]}
    return qc(
        critic=critic | {"value_aggregation": config["q_agg"]},
        policy=BehaviouralFlow(**flow),
        selection=best,
        next_selection=best,
        **options,
    )


def _iqn(config: _Config, params: Mapping[str, Any]) -> ActorCritic:
    if not config["embed_quantile"]:
        raise ValueError("config['embed_quantile'] is False: only embedded levels can be imported.")
    critic = {
        "discount": config["discount"],
        "aggregation": config["q_agg"],
        "num_noise": config["num_tau_samples"],
        "num_terms": config["quantile_embed_dim"],
        "ensemble_size": _members(params, "modules_critic/value_net"),
        "network": _critic_network(config, _hidden_sizes(params, "modules_critic/value_net")),
    }
    return iqn(critic=critic, policy=_one_step(config), **_adam(config))


def _members(params: Mapping[str, Any], prefix: str) -> int:
    """The size of the ensemble below `prefix`, by its first bias."""
    bias = params.get(f"{prefix}/Dense_0/bias", 0)
    return int(np.shape(bias)[0]) if np.ndim(bias) == 2 else 2


def _implicit(config: _Config, params: Mapping[str, Any]) -> dict[str, Any]:
    return {
        "discount": config["discount"],
        "expectile": config["expectile"],
        "network": _critic_network(config, _hidden_sizes(params, "modules_critic/value_net")),
    }


def _iql(config: _Config, params: Mapping[str, Any]) -> ActorCritic:
    if not config["const_std"]:
        raise ValueError("config['const_std'] is False: only unit deviations can be imported.")
    extraction = config["actor_loss"]
    knob = "inverse_temperature" if extraction == "awr" else "cloning_weight"
    policy = {
        "extraction": extraction,
        knob: config["alpha"],
        "network": _gaussian_actor(config),
    }
    return iql(critic=_implicit(config, params), policy=policy, **_adam(config))


def _ifql(config: _Config, params: Mapping[str, Any]) -> ActorCritic:
    return ifql(
        critic=_implicit(config, params),
        policy={"flow_steps": config["flow_steps"], "network": _mlp_actor(config)},
        selection={"num_candidates": config["num_samples"]},
        **_adam(config),
    )


def _rebrac(config: _Config, params: Mapping[str, Any]) -> ActorCritic:
    if not config["tanh_squash"]:
        raise ValueError("config['tanh_squash'] is False: only squashed actors can be imported.")
    return rebrac(
        critic={
            "discount": config["discount"],
            "network": _critic_network(config, _hidden_sizes(params, "modules_critic/value_net")),
        },
        policy={
            "cloning_weight": config["alpha_actor"],
            "next_penalty": config["alpha_critic"],
            "blur": config["actor_noise"],
            "blur_clip": config["actor_noise_clip"],
            "network": _gaussian_actor(config),
        },
        policy_every=config["actor_freq"],
        **_adam(config),
    )


def _value_flows(config: _Config, params: Mapping[str, Any]) -> ActorCritic:
    for name in ("clip_flow_actions", "clip_flow_returns"):
        if not config[name]:
            raise ValueError(f"config[{name!r}] is False: only clipped flows can be imported.")
    critic = {
        "discount": config["discount"],
        "reward_min": config.get("min_reward", -1.0),
        "reward_max": config.get("max_reward", 0.0),
        "dcfm_weight": config["dcfm_lambda"],
        "bcfm_weight": config["bcfm_lambda"],
        "confidence_temperature": config["confidence_weight_temp"],
        "num_steps": config["num_flow_steps"],
        "value_aggregation": config["q_agg"],
        "aggregation": config["ret_agg"],
        "network": MLPConfig(
            hidden_sizes=tuple(config["value_hidden_dims"]),
            layer_norm=bool(config["value_layer_norm"]),
        ),
    }
    best = {"num_candidates": config["num_samples"]}
    return value_flows(
        critic=critic,
        policy=_one_step(config, "num_flow_steps"),
        selection=best,
        next_selection=best,
        **_adam(config),
    )


def _arrange_value_flows(params: Mapping[str, Any], agent: ActorCritic) -> dict[str, Any]:
    """Its two members are modules of their own, and see z and t before the rest."""
    arranged = dict(params)
    for path, first in params.items():
        match = re.fullmatch(r"(modules_(?:target_)?critic_flow)1(/.+)", path)
        other = f"{match[1]}2{match[2]}" if match else path
        if match is None or other not in params or np.shape(params[other]) != np.shape(first):
            continue
        array = np.stack([arranged.pop(path), arranged.pop(other)])
        if path.endswith("Dense_0/kernel") and array.ndim == 3:
            array = np.roll(array, -2, axis=1)
        arranged[match[1] + match[2]] = array
    return arranged


def _arrange_acfql(params: Mapping[str, Any], agent: ActorCritic) -> Mapping[str, Any]:
    """Without the one-step actor where it is there and never trained."""
    if not isinstance(agent.policy, BehaviouralFlow):
        return params
    return {k: v for k, v in params.items() if not k.startswith("modules_actor_onestep_flow/")}


def _acfql_networks(agent: ActorCritic) -> "_Networks":
    if not isinstance(agent.policy, BehaviouralFlow):
        return {**_CRITIC, **_ONE_STEP}
    return {**_CRITIC, "modules_actor_bc_flow/mlp": lambda tree: tree[0].policy.network}


_Networks: TypeAlias = dict[str, Callable[[Any], AbstractNetwork]]

_ONE_STEP: _Networks = {
    "modules_actor_bc_flow/mlp": lambda tree: tree[0].policy.flow.network,
    "modules_actor_onestep_flow/mlp": lambda tree: tree[0].policy.actor.network,
}
_CRITIC: _Networks = {
    "modules_critic/value_net": lambda tree: tree[0].critic.network,
    "modules_target_critic/value_net": lambda tree: tree[1].critic.network,
}
_IMPLICIT: _Networks = {
    "modules_critic/value_net": lambda tree: tree[0].critic.q.network,
    "modules_target_critic/value_net": lambda tree: tree[1].critic.network,
    "modules_value/value_net": lambda tree: tree[0].critic.v.network,
}
_REFERENCES = {
    "floq": _Reference(
        _floq,
        {
            "modules_floq/mlp": lambda tree: tree[0].critic.field.network,
            "modules_target_floq/mlp": lambda tree: tree[1].critic.network,
            "modules_critic/value_net": lambda tree: tree[0].critic.distilled.network,
            **_ONE_STEP,
        },
    ),
    "fql": _Reference(_fql, {**_CRITIC, **_ONE_STEP}),
    "acfql": _Reference(_acfql, _acfql_networks, _arrange_acfql),
    "fqliqn": _Reference(_iqn, {**_CRITIC, **_ONE_STEP}),
    "iql": _Reference(_iql, {**_IMPLICIT, "modules_actor": lambda tree: tree[0].policy.network}),
    "ifql": _Reference(
        _ifql, {**_IMPLICIT, "modules_actor_flow/mlp": lambda tree: tree[0].policy.network}
    ),
    "rebrac": _Reference(
        _rebrac,
        {
            **_CRITIC,
            "modules_actor": lambda tree: tree[0].policy.network,
            "modules_target_actor": lambda tree: tree[1].policy.network,
        },
    ),
    "value_flows": _Reference(
        _value_flows,
        {
            "modules_critic_flow/value_net": lambda tree: tree[0].critic.network,
            "modules_target_critic_flow/value_net": lambda tree: tree[1].critic.network,
            "modules_actor_flow/mlp": lambda tree: tree[0].policy.flow.network,
            "modules_actor_onestep_flow/mlp": lambda tree: tree[0].policy.actor.network,
        },
        _arrange_value_flows,
    ),
}
