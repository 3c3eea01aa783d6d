"""Reading the reference numbers in `tests/data`."""

import json
from pathlib import Path

import jax.numpy as jnp
import numpy as np

from floq_eqx import interop
from floq_eqx.agents import ActorCriticNoise
from floq_eqx.agents.critics import FlowNoise, QuantileNoise, ReturnFlowNoise
from floq_eqx.agents.policies import BehaviouralFlowNoise, OneStepNoise
from floq_eqx.data import Batch

DATA = Path(__file__).parent / "data"
FILES = sorted(path.stem for path in DATA.glob("*.npz") if path.stem != "sequence_sampler")

# The names of the reference's metrics that the library has too; `mse` alone needs draws that only
# feed it.
METRICS = {
    "critic/floq_loss": "flow_loss",
    "critic/distilled_critic_loss": "critic_distillation_loss",
    "critic/critic_loss": "critic_loss",
    "critic/q": "q",
    "critic/var_flow_returns": "value_variance",
    "critic/td_error": "td_error",
    "actor/actor_loss": "actor_loss",
    "actor/bc_flow_loss": "bc_flow_loss",
    "actor/mean_bc_flow_loss": "bc_flow_loss",
    "actor/distill_loss": "actor_distillation_loss",
    "actor/q_loss": "q_loss",
    "actor/q": "actor_q",
    "total_loss": "loss",
    "critic/q_mean": "q",
    "critic/q_min": "q_min",
    "critic/q_max": "q_max",
    "value/value_loss": "value_loss",
    "value/v_mean": "v",
    "value/v_min": "v_min",
    "value/v_max": "v_max",
    "actor/adv": "advantage",
    "actor/bc_log_prob": "log_prob",
    "actor/bc_loss": "bc_loss",
    "actor/q_mean": "actor_q",
    "actor/mse": "action_error",
}
METRICS |= {
    "critic/bcfm_loss": "bootstrapped_loss",
    "critic/dcfm_loss": "distributional_loss",
    "critic/q_std": "return_spread",
    "critic/q_std_min": "return_spread_min",
    "critic/q_std_max": "return_spread_max",
    "critic/weight": "confidence_weight",
}
# ReBRAC's release calls the whole actor's loss `total_loss`, and its Q term `actor_loss`.
REBRAC_METRICS = METRICS | {"actor/total_loss": "actor_loss", "actor/actor_loss": "q_loss"}
# The deviation is 1 by construction; the size of Q only normalises it; gradients are compared.
WITHOUT_COUNTERPART = {"actor/std", "actor/q_abs_mean", "grad/max", "grad/min", "grad/norm"}


class Reference:
    """One file: parameters, batches and noise in this library's form, numbers as they are."""

    def __init__(self, name: str):
        with np.load(DATA / f"{name}.npz", allow_pickle=False) as file:
            self.arrays = {key: file[key] for key in file.files}
        self.config = json.loads(str(self.arrays.pop("config")))
        self.name = self.config["agent_name"]
        self.metrics = REBRAC_METRICS if self.name == "rebrac" else METRICS
        # For FQL's policy `mse` is that of an action drawn with noise of its own.
        sampled = self.name in ("floq", "fql", "fqliqn", "value_flows")
        self.ignored = WITHOUT_COUNTERPART | ({"actor/mse"} if sampled else set())
        if self.config.get("actor_type") == "best-of-n":  # a term that is not there, logged as 0
            self.ignored |= {"actor/distill_loss"}
        if self.name == "value_flows":  # its logged Q has noise of its own too
            self.ignored |= {"critic/q_mean", "critic/q_min", "critic/q_max"}

    def below(self, prefix: str) -> dict[str, np.ndarray]:
        start = prefix + "/"
        return {k.removeprefix(start): v for k, v in self.arrays.items() if k.startswith(start)}

    def load(self, prefix: str):
        """The agent and the state whose parameters are those below `prefix`."""
        return interop.from_flax(self.below(prefix), self.config)

    def batch(self, update: int) -> Batch:
        arrays = self.below(f"batch{update}")
        if self.name == "acfql":
            return self.window(arrays)
        names = ["observations", "actions", "rewards", "masks", "next_observations"]
        names += ["next_actions"] if "next_actions" in arrays else []
        return Batch(*(jnp.asarray(arrays[name]) for name in names))

    def window(self, arrays: dict[str, np.ndarray]) -> Batch:
        """A window of the released code, of whose rewards and states the last ones count."""
        size, steps, _ = arrays["actions"].shape
        chunked = self.config["action_chunking"]
        valid = arrays["valid"]
        return Batch(
            observation=jnp.asarray(arrays["observations"]),
            action=jnp.asarray(arrays["actions"][:, : steps if chunked else 1].reshape(size, -1)),
            reward=jnp.asarray(arrays["rewards"][:, -1]),
            mask=jnp.asarray(arrays["masks"][:, -1]),
            next_observation=jnp.asarray(arrays["next_observations"][:, -1]),
            discount=jnp.full(size, self.config["discount"] ** steps, jnp.float32),
            valid=jnp.asarray(valid if chunked else valid[:, -1:]),
        )

    def noise(self, update: int) -> ActorCriticNoise:
        draws = {k: jnp.asarray(v) for k, v in self.below(f"draws{update}").items()}
        if self.name == "iql":
            return ActorCriticNoise(None, None, None, None, None, None)
        if self.name == "rebrac":
            return ActorCriticNoise(None, None, None, draws["00_normal"], None, None)
        if self.name == "ifql":
            policy = BehaviouralFlowNoise(draws["00_normal"], draws["01_uniform"][:, 0])
            return ActorCriticNoise(None, policy, None, None, None, None)
        if self.name == "value_flows":
            candidate_value = draws["01_normal"][..., 0]
            return ActorCriticNoise(
                critic=ReturnFlowNoise(
                    confidence=draws["02_normal"][:, 0],
                    value=draws["03_normal"][:, 0],
                    time=draws["04_uniform"][:, 0],
                ),
                policy=OneStepNoise(
                    bc_action=draws["06_normal"],
                    bc_time=draws["07_uniform"][:, 0],
                    actor=draws["08_normal"],
                ),
                value=draws["09_normal"][:, 0],
                action=rows(draws["00_normal"]),
                score=candidate_value.reshape(-1),
                choice=jnp.zeros_like(candidate_value),  # the best is taken
            )
        if self.name == "acfql" and self.config["actor_type"] == "best-of-n":
            action = draws["next_action_noise"]
            policy = BehaviouralFlowNoise(draws["bc_x0"], draws["bc_t"][:, 0])
            choice = jnp.zeros(action.shape[:2])  # the best is taken
            return ActorCriticNoise(None, policy, None, rows(action), None, choice)
        policy = OneStepNoise(
            bc_action=draws["bc_x0"],
            bc_time=draws["bc_t"][:, 0],
            actor=draws["distill_noise"],
        )
        critic, value = None, None
        if self.name == "fqliqn":
            levels = (self.config["batch_size"], self.config["num_tau_samples"])
            critic = QuantileNoise(
                next_quantile=draws["tau_prime"].reshape(levels),
                quantile=draws["tau"].reshape(levels),
            )
            value = draws["actor_tau"].reshape(levels)
        if self.name == "floq":
            samples = (self.config["batch_size"], self.config["noise_samples"])
            critic = FlowNoise(
                next_value=draws["next_noise_ratio"].reshape(samples),
                value=draws["noise_ratio"].reshape(samples),
                time=draws["t"].reshape(samples),
            )
        action = rows(draws["next_action_noise"])
        return ActorCriticNoise(critic, policy, value, action, None, None)


def rows(actions):
    return actions.reshape(-1, actions.shape[-1])
