"""Where an update of floq spends its time, and how the whole grows with its sizes."""

import dataclasses
import statistics
from collections.abc import Callable, Iterable
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp

from floq_eqx.agents.actor_critic import Parts
from floq_eqx.agents.agent import frozen
from floq_eqx.agents.critics import Flow
from floq_eqx.agents.policies import OneStep
from floq_eqx.agents.policies.policy import Critique
from floq_eqx.data import sample
from floq_eqx.losses import distillation_loss, value_flow_loss
from floq_eqx.modules.values import member_values
from floq_eqx.modules.velocity import member_velocities
from floq_eqx.paths import linear_path

from .flops import Flops, count_flops
from .speed_worker import ACTION, OBSERVATION, Case, Program, Stopwatch, make_agent, random_data

KINDS = ("wall", "cpu", "system")
WHOLE = "the whole update"
AROUND: dict[str, tuple[int, ...]] = {
    "batch": (64, 128, 256, 512),
    "width": (64, 128, 256, 512),
    "K": (1, 2, 4, 8, 16),
    "m": (1, 2, 4, 8),
    "members": (1, 2, 4, 8),
    "seeds": (1, 2, 4, 8),
}
"""The values that `growth` tries of each size, the others as in the preset."""


def spread(values: Iterable[float]) -> dict[str, float]:
    """The median of what was measured, and its range."""
    found = sorted(values)
    return {"median": statistics.median(found), "least": found[0], "most": found[-1]}


def per_update(times: list[dict[str, float]], updates: int) -> dict[str, dict[str, float]]:
    """What one update takes of each kind of time, from the times of so many."""
    return {kind: spread(each[kind] / updates for each in times) for kind in KINDS}


def abstract_inputs(case: Case) -> Any:
    """A state, a batch and noise of the case, as shapes alone."""
    data = random_data()
    agent, size = make_agent(case)
    agent = agent.for_data(data)

    def inputs(key: Any) -> Any:
        state = agent.init(OBSERVATION, ACTION, key=key)
        return state, sample(data, size, key=key), agent.noise(size, key=key)

    return eqx.filter_eval_shape(inputs, jax.random.key(0))


def update_flops(case: Case) -> Flops:
    """The operations of one update of one seed."""
    agent = make_agent(case)[0].for_data(random_data())
    return count_flops(agent.update, *abstract_inputs(case))


def parts_of(agent: Any) -> dict[str, Callable[[Any, Any, Any], Any]]:
    """The parts of an update, as functions of the state, a batch and noise.

    Where a part takes what another has made, such as a target, random numbers of that shape stand
    for it. Together they have the matrix products of the whole.

    **Raises:** `ValueError` unless the agent is a distilling `Flow` with a `OneStep`.
    """
    critic, policy = agent.bounded_critic(agent.action_size), agent.policy
    if not (isinstance(critic, Flow) and critic.distil and isinstance(policy, OneStep)):
        raise ValueError(f"The parts are those of floq's update, and this is {agent.name}.")

    def next_actions(state: Any, batch: Any, noise: Any) -> Any:
        return agent.next_action(state.params, state.targets, Parts(batch, batch), noise).action

    def target(state: Any, batch: Any, noise: Any) -> Any:
        actions = jnp.reshape(noise.action, (len(batch), critic.num_noise, -1))
        return critic.td_target(state.targets.critic, batch, actions, noise.critic.next_value)

    def own(state: Any, batch: Any, noise: Any) -> Any:
        z0 = critic.initial_value(noise.critic.value)
        return critic.integrate(state.params.critic.field, z0, batch.observation, batch.action)

    def flow_loss(state: Any, batch: Any, noise: Any) -> Any:
        path = linear_path(noise.critic.value, noise.critic.next_value, noise.critic.time)

        def loss(field: Any) -> Any:
            velocity = member_velocities(field, path.t, path.xt, batch.observation, batch.action)
            return value_flow_loss(velocity, path.velocity)

        return eqx.filter_grad(loss)(state.params.critic.field)

    def distilled(state: Any, batch: Any, noise: Any) -> Any:
        teacher = noise.critic.value[:, 0]

        def loss(members: Any) -> Any:
            q = member_values(members, batch.observation, batch.action)
            return distillation_loss(q, jnp.broadcast_to(teacher[None], q.shape))

        return eqx.filter_grad(loss)(state.params.critic.distilled)

    def cloning(state: Any, batch: Any, noise: Any) -> Any:
        nothing = Critique(lambda action: jnp.zeros(len(action)), lambda: None)

        def loss(flow: Any) -> Any:
            return policy.clone.loss(flow, None, batch, nothing, noise.policy)[0]

        return eqx.filter_grad(loss)(state.params.policy.flow)

    def cloned(state: Any, batch: Any, noise: Any) -> Any:
        return policy.behaviour(state.params.policy, batch.observation, noise.policy.actor)

    def actor(state: Any, batch: Any, noise: Any) -> Any:
        fixed, draws = frozen(state.params.critic), noise.policy.actor

        def q(action: Any) -> Any:
            return critic.value(fixed, batch.observation, action, noise.value)

        def loss(actor: Any) -> Any:
            action = jax.vmap(actor)(batch.observation, draws)
            raised, _ = Critique(q, lambda: None).raised(
                jnp.clip(action, -1, 1), normalise=policy.normalise_q
            )
            return policy.alpha * distillation_loss(action, batch.action) + raised

        return eqx.filter_grad(loss)(state.params.policy.actor)

    return {
        "next actions": next_actions,
        "target integral": target,
        "own integral": own,
        "flow loss, forward and backward": flow_loss,
        "distilled critic": distilled,
        "behavioural flow, its loss": cloning,
        "behavioural flow, its integral": cloned,
        "one-step actor": actor,
    }


def optimiser(agent: Any) -> Callable[[Any, Any, Any], Any]:
    """Adam's step and the average, on a gradient of ones, as the next state."""

    def objective(params: Any) -> Any:
        return sum(jnp.sum(leaf) for leaf in jax.tree.leaves(params)), {}

    return lambda state, batch, noise: agent.descend(state, objective)[0]


def repeated(
    part: Callable[[Any, Any, Any], Any], state: Any, batches: Any, noises: Any
) -> Callable[[], dict[str, float]]:
    """A part as a compiled loop over batches, as in training: what a call of it takes.

    A state that the part returns is that of its next turn.
    """

    @eqx.filter_jit
    def loop(state: Any, batches: Any, noises: Any) -> Any:
        first = jax.tree.map(lambda x: x[0], (batches, noises))
        shapes = jax.eval_shape(part, state, *first)
        moves = isinstance(shapes, type(state))
        start = state if moves else jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), shapes)

        def one(carry: Any, each: tuple[Any, Any]) -> tuple[Any, None]:
            return part(carry if moves else state, *each), None

        return jax.lax.scan(one, start, (batches, noises))[0]

    jitted: Any = loop
    compiled = jitted.lower(state, batches, noises).compile()

    def run() -> dict[str, float]:
        watch = Stopwatch()
        jax.block_until_ready(compiled(state, batches, noises))
        return watch.read()

    return run


def breakdown(case: Case, repetitions: int) -> list[dict[str, Any]]:
    """What each part of an update takes by itself, their sum, and the whole, by turns."""
    program = Program(case)
    agent, state, size = program.agent, program.state, program.batch_size
    keys = jax.random.split(jax.random.key(0), case.updates)

    def draw(key: Any) -> Any:
        batch_key, noise_key = jax.random.split(key)
        return sample(program.data, size, key=batch_key), agent.noise(size, key=noise_key)

    batches, noises = eqx.filter_jit(jax.vmap(draw))(keys)
    first = jax.tree.map(lambda x: x[0], (batches, noises))
    # One part is not of the state, a batch and noise: the one that makes the latter two.
    parts = parts_of(agent) | {"optimiser and average": optimiser(agent)}
    calls: dict[str, Callable[[], dict[str, float]]] = {
        name: repeated(part, state, batches, noises) for name, part in parts.items()
    }
    calls["batch and noise"] = repeated(lambda _, key, __: draw(key), state, keys, keys)
    calls[WHOLE] = program.run
    flops = {name: count_flops(part, state, *first).products for name, part in parts.items()}
    flops |= {"batch and noise": 0, WHOLE: update_flops(case).products}
    times: dict[str, list[dict[str, float]]] = {name: [] for name in calls}
    for turn in range(repetitions + 1):
        for name, call in calls.items():
            took = call()
            if turn:  # after one to warm up
                times[name].append(took)

    rows: list[dict[str, Any]] = [
        {"part": name, "flops": flops[name]} | per_update(times[name], case.updates)
        for name in calls
    ]
    *alone, whole = rows
    turns = zip(*(times[name] for name in calls if name != WHOLE), strict=True)
    summed = [{kind: sum((t[kind] for t in turn), 0.0) for kind in KINDS} for turn in turns]
    total: dict[str, Any] = {"part": "their sum", "flops": sum(row["flops"] for row in alone)}
    return [*alone, total | per_update(summed, case.updates), whole]


def growing(case: Case) -> dict[str, dict[int, Case]]:
    """The case with each of its sizes by turns at each of the values of `AROUND`."""

    def at(name: str, value: int) -> Case:
        options = {
            "K": "critic.num_steps",
            "m": "critic.num_noise",
            "members": "critic.ensemble_size",
        }
        if name == "batch":
            return dataclasses.replace(case, batch_size=value)
        if name == "seeds":
            return dataclasses.replace(case, seeds=value)
        settings: dict[str, Any] = {}
        if name == "width":
            for network in ("critic.network", "critic.distilled_network", "policy.network"):
                settings[f"{network}.hidden_sizes"] = (value, value)
        else:
            settings[options[name]] = value
        return dataclasses.replace(case, settings=case.settings | settings)

    return {name: {value: at(name, value) for value in around} for name, around in AROUND.items()}


def growth(case: Case, repetitions: int, tell: Callable[[str], None]) -> list[dict[str, Any]]:
    """What an update takes, by size and value; of several seeds, an update of all of them."""
    rows = []
    for name, cases in growing(case).items():
        for value, each in cases.items():
            tell(f"{name} = {value}")
            program = Program(each)
            program.run()
            times = [program.run() for _ in range(repetitions)]
            flops = update_flops(each).products * each.seeds
            rows.append({"size": name, "value": value, "flops": flops})
            rows[-1] |= per_update(times, each.updates)
    return rows
