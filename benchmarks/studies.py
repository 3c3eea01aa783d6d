"""Why flow critics work, on problems whose exact Q is known.

    python -m benchmarks.studies curvature            # one study
    python -m benchmarks.studies all --out results    # every one

Each study trains critics for a fixed policy (`floq_eqx.analysis.evaluate_policy`), several seeds
side by side, prints a Markdown table of means ± standard deviations over the seeds, and writes it
with a figure to the folder `--out`. Errors are root mean square errors against the exact Q over its
standard deviation: 1 is what predicting the mean scores. `docs/why.md` discusses the numbers.
"""

import argparse
import dataclasses
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import diffrax
import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from matplotlib.figure import Figure

from floq_eqx import analysis
from floq_eqx.agents import TD, Flow, Quantile
from floq_eqx.networks import MLPConfig, with_precision

NETWORK = MLPConfig((64, 64), layer_norm=True)
UPDATES = 6_000
SETTINGS = {"learning_rate": 3e-3, "target_rate": 0.02}


@dataclasses.dataclass
class Bench:
    """A problem with its transitions, and how critics are trained on it."""

    problem: analysis.Problem
    seeds: int
    size: int = 20_000

    def __post_init__(self):
        data_key, held_key, self.key = jax.random.split(jax.random.key(1), 3)
        self.data = self.problem.data(self.size, key=data_key)
        self.held_out = self.problem.data(1000, key=held_key)
        exact = jax.vmap(self.problem.q)(self.held_out.observation, self.held_out.action)
        self.exact, self.scale = exact, float(jnp.std(exact))

    def flow(self, *, decay: int | None = UPDATES, evaluation=None, **changes):
        """floq's field alone, as the integral of it is what is measured."""
        settings = {"num_noise": 2, "num_steps": 8}
        return self.evaluated(Flow, decay, evaluation, distil=False, **(settings | changes))

    def monolithic(self, *, decay: int | None = UPDATES, evaluation=None, **changes):
        """One forward pass, trained by the mean squared TD error."""
        return self.evaluated(TD, decay, evaluation, **changes)

    def quantile(self, **changes):
        """Implicit quantiles by the quantile Huber loss; Q is the mean over levels."""
        settings = {"num_noise": 8, "loss_kind": "huber", "huber_threshold": 0.1}
        return self.evaluated(Quantile, UPDATES, None, **(settings | changes))

    def evaluated(self, kind, decay, evaluation, **options):
        """An agent that trains such a critic for the problem's policy."""
        settings = {"discount": self.problem.discount, "ensemble_size": 1, "network": NETWORK}
        critic = kind(**(settings | options)).for_data(self.data)
        learning = SETTINGS | {"decay_updates": decay} | (evaluation or {})
        return analysis.policy_evaluation(critic, self.problem, **learning)

    def train(self, agents, *, updates=UPDATES, every=None, **options):
        started = time.perf_counter()
        curves = analysis.evaluate_policy(
            agents,
            options.pop("data", self.data),
            options.pop("held_out", self.held_out),
            num_updates=updates,
            every=every or updates,
            num_seeds=self.seeds,
            key=self.key,
            **options,
        )
        print(f"  trained {', '.join(agents)}: {time.perf_counter() - started:.0f} s", flush=True)
        return curves

    def z0(self, agent, samples: int = 32):
        ratio = jax.random.uniform(self.key, (len(self.held_out), samples))
        return agent.critic.initial_value(ratio)

    def per_seed(self, states, function: Callable):
        """A function of the field's parameters, for each seed."""
        fields = states.params.critic.field
        return eqx.filter_jit(eqx.filter_vmap(function))(fields)

    def error(self, value):
        """Of values with trailing axes `ensemble batch noise`, for each seed."""
        value = np.asarray(value).mean(axis=(-3, -1))
        return np.sqrt(np.mean((value - np.asarray(self.exact)) ** 2, axis=-1)) / self.scale


def linear_quadratic(seeds: int, **changes) -> Bench:
    return Bench(
        analysis.LinearQuadratic.random(key=jax.random.key(0), **{"discount": 0.8, **changes}),
        seeds,
    )


def random_walk(seeds: int) -> Bench:
    return Bench(analysis.RandomWalk(key=jax.random.key(0)), seeds)


PROBLEMS = {"linear-quadratic": linear_quadratic, "random walk": random_walk}


class Report:
    """A table and a figure."""

    def __init__(self, title: str, columns: list[str], panels: int = 1):
        self.lines = ["| " + " | ".join(columns) + " |", "|" + "---|" * len(columns)]
        self.figure = Figure(figsize=(4.2 * panels, 4), layout="constrained")
        self.axes = self.figure.subplots(1, panels, squeeze=False)[0]
        self.title = title

    def row(self, *cells):
        self.lines.append("| " + " | ".join(map(str, cells)) + " |")

    def line(self, panel, x, values, label, **style):
        """Values `[seeds points]` as a line with the range of the seeds as a band."""
        mean = np.mean(values, axis=0)
        (line,) = self.axes[panel].plot(x, mean, marker="o", label=label, **style)
        low, high = np.min(values, axis=0), np.max(values, axis=0)
        self.axes[panel].fill_between(x, low, high, alpha=0.2, color=line.get_color())

    def label(self, panel, x, y, **scales):
        axes = self.axes[panel]
        axes.set(xlabel=x, ylabel=y, **scales)
        axes.grid(alpha=0.3)
        if axes.get_legend_handles_labels()[0]:
            axes.legend(fontsize="x-small", loc="upper center", bbox_to_anchor=(0.5, -0.2), ncols=2)

    def write(self, folder: Path, name: str):
        folder.mkdir(parents=True, exist_ok=True)
        table = "\n".join(self.lines) + "\n"
        (folder / f"{name}.md").write_text(table)
        self.figure.suptitle(self.title, fontsize="medium")
        self.figure.savefig(folder / f"{name}.png", dpi=120)
        print(f"\n{self.title}\n\n{table}", flush=True)


def spread(values, digits: int = 3) -> str:
    """Mean ± standard deviation over seeds."""
    return f"{np.mean(values):.{digits}f} ± {np.std(values):.{digits}f}"


def curvature(seeds: int) -> Report:
    """Straightness of trajectories against the width of the noise interval."""
    columns = ["problem", "κ", "deviation / chord", "arc / chord > 1.01", "late change"]
    columns += ["error, K = 1", "error, K = 8", "error, K = 32"]
    report = Report("Curvature against the noise interval", columns, 2)
    kappas = [0.01, 0.03, 0.1, 0.3, 1.0]
    for name, problem in PROBLEMS.items():
        bench = problem(seeds)
        deviations, errors = [], []
        for kappa in kappas:
            critic = bench.flow(noise_coverage=kappa)
            states = bench.train({f"κ = {kappa}": critic})[f"κ = {kappa}"].states
            where = (bench.z0(critic), bench.held_out.observation, bench.held_out.action)
            paths = bench.per_seed(states, lambda f, w=where: analysis.straightness(f, *w))
            axes = (1, 2, 3)
            size = np.abs(paths.chord).mean(axis=axes)
            deviation = paths.deviation.mean(axis=axes) / size
            turned = np.mean(np.asarray(paths.arc_over_chord) > 1.01, axis=axes)
            late = np.sqrt(np.mean(np.square(paths.late_change), axis=axes)) / bench.scale
            tested = [
                bench.error(
                    bench.per_seed(
                        states,
                        lambda f, w=where, k=k: analysis.disturbed_value(
                            f, *w, after=0, num_steps=k
                        ),
                    )
                )
                for k in (1, 8, 32)
            ]
            deviations.append(deviation)
            errors.append(tested[1])
            report.row(
                name,
                kappa,
                spread(deviation),
                spread(turned),
                spread(late, 2),
                *map(spread, tested),
            )
        report.line(0, kappas, np.transpose(deviations), name)
        report.line(1, kappas, np.transpose(errors), name)
    report.label(0, "κ", "mean |v - chord| / mean |chord|", xscale="log")
    report.label(1, "κ", "error of Q", xscale="log", yscale="log")
    return report


def scaling(seeds: int) -> Report:
    """K in training at equal updates, and other critics of the same compute."""
    columns = ["problem", "critic", "FLOPs a value", "error on data", "error held out"]
    report = Report("Compute for the value, at equal updates", columns)
    for name, problem in PROBLEMS.items():
        bench = problem(seeds)
        inputs = bench.problem.observation_size + bench.problem.action_size
        field_inputs = inputs + 51
        budgets, errors = [], []

        def add(label, critic, flops, bench=bench, name=name):
            curve = bench.train({label: critic})[label]
            error = curve.held_out["error"][:, -1]
            report.row(name, label, flops, spread(curve.data["error"][:, -1]), spread(error))
            return error

        once = analysis.network_flops(NETWORK, field_inputs)
        for k in (1, 2, 4, 8, 16):
            budgets.append(k * once)
            errors.append(add(f"flow, K = {k}", bench.flow(num_steps=k), k * once))
        report.line(0, budgets, np.transpose(errors), f"flow, {name}")
        others = {"MLP": (NETWORK, 1)}
        others["residual, as K = 8"] = (
            analysis.matched_residual(NETWORK, 8, field_inputs, inputs),
            1,
        )
        others["ensemble, as K = 8"] = (
            NETWORK,
            analysis.matched_ensemble(NETWORK, 8, field_inputs, inputs),
        )
        for label, (network, members) in others.items():
            flops = members * analysis.network_flops(network, inputs)
            critic = bench.monolithic(network=network, ensemble_size=members)
            error = add(f"{label} ({members} members)" if members > 1 else label, critic, flops)
            marker = {"MLP": "s", "residual, as K = 8": "^", "ensemble, as K = 8": "v"}[label]
            report.axes[0].scatter(
                [flops], [error.mean()], marker=marker, label=f"{label.split(',')[0]}, {name}"
            )
        flops = 8 * analysis.network_flops(NETWORK, inputs + 64)
        error = add("quantile critic (IQN), 8 levels", bench.quantile(), flops)
        report.axes[0].scatter([flops], [error.mean()], marker="D", label=f"quantile, {name}")
    report.label(0, "FLOPs a value", "error of Q, held out", xscale="log", yscale="log")
    return report


def backup(seeds: int) -> Report:
    """Expected against distributional backup where the return is Gaussian and known."""
    columns = ["reward noise", "backup", "error of Q", "std over z0", "exact std of the return"]
    report = Report("Expected and distributional backups", [*columns, "W1 to the return"])
    levels = [0.0, 0.3, 1.0]
    errors = {"expected": [], "distributional": []}
    for level in levels:
        quiet = {"process_noise": 0.0, "policy_noise": 0.0}
        bench = linear_quadratic(seeds, reward_noise=level, **quiet)
        truth = bench.problem.return_std()
        for kind, found in errors.items():
            critic = bench.flow(backup=kind, num_noise=4)
            states = bench.train({f"{kind}, noise {level}": critic})[
                f"{kind}, noise {level}"
            ].states
            where = (bench.z0(critic, 64), bench.held_out.observation, bench.held_out.action)
            value = bench.per_seed(
                states, lambda f, w=where: analysis.disturbed_value(f, *w, after=0, num_steps=16)
            )
            found.append(bench.error(value))
            samples = np.sort(np.asarray(value)[:, 0], axis=-1)
            ranks = (np.arange(64) + 0.5) / 64
            normal = np.asarray(jax.scipy.stats.norm.ppf(ranks))
            quantiles = np.asarray(bench.exact)[:, None] + truth * normal
            distance = np.abs(samples - quantiles).mean(axis=(1, 2))
            std = np.sqrt(samples.var(axis=-1).mean(axis=-1))
            report.row(
                level, kind, spread(found[-1]), spread(std), f"{truth:.3f}", spread(distance)
            )
    for kind, found in errors.items():
        report.line(0, levels, np.transpose(found), kind)
    report.label(0, "standard deviation of the reward's noise", "error of Q", yscale="log")
    return report


def recovery(seeds: int) -> Report:
    """A stale field for the first steps, or a kick midway: what is left at the end."""
    columns = [
        "problem",
        "field of the first steps",
        "0 of 8",
        "2 of 8",
        "4 of 8",
        "6 of 8",
        "8 of 8",
    ]
    report = Report("Test-time recovery", columns, 2)
    steps = [0, 2, 4, 6, 8]
    for name, problem in PROBLEMS.items():
        bench = problem(seeds)
        critic = bench.flow(decay=None)
        stages, state = {}, None
        for stage in (1500, 3000, 6000):
            done = 0 if state is None else int(state.step[0])
            states = None if state is None else {"flow": state}
            state = bench.train({"flow": critic}, updates=stage - done, states=states)[
                "flow"
            ].states
            stages[stage] = state.params.critic.field
        where = (bench.z0(critic), bench.held_out.observation, bench.held_out.action)
        final = stages.pop(6000)

        def value(stale, final=final, where=where, **options):
            def one(field, stale):
                return analysis.disturbed_value(field, *where, stale=stale, **options)

            return np.asarray(eqx.filter_jit(eqx.filter_vmap(one))(final, stale))

        for stage, stale in stages.items():
            errors = [bench.error(value(stale, after=k)) for k in steps]
            report.row(name, f"stale, of update {stage}", *map(spread, errors))
            report.line(0, np.array(steps) / 8, np.transpose(errors), f"{name}, {stage}")
        whole = value(final, after=0)
        axes = (1, 2, 3)
        left = [
            np.abs(value(final, after=k, kick=bench.scale) - whole).mean(axis=axes) / bench.scale
            for k in steps
        ]
        report.row(name, "kick of one std: what is left", *map(spread, left))
        report.line(1, np.array(steps) / 8, np.transpose(left), name)
        measured = bench.per_seed(state, lambda f, w=where: analysis.contraction(f, *w))
        gain = np.abs(np.asarray(measured.final_gain)).mean(axis=axes)
        slope = np.asarray(measured.slope).mean(axis=(2, 3, 4))
        report.row(name, f"c of -c / (1 - t): {spread(measured.rate)}", *[""] * 5)
        report.row(
            name, f"mean ∂v/∂z at t = 0, ½, 31/32: {slope.mean(0)[[0, 16, 31]].round(2)}", *[""] * 5
        )
        report.row(name, f"mean size of ∂z(1)/∂z(0): {spread(gain)}", *[""] * 5)
    report.label(0, "fraction by the stale field", "error of Q", yscale="log")
    report.label(1, "time of the kick", "part of it left at t = 1")
    return report


def noise(seeds: int) -> Report:
    """Noise on every TD target, from the same start."""
    columns = ["problem", "noise / std of Q", "flow, mean of 1 z0", "of 32 z0", "MLP"]
    report = Report("Noisy TD targets", columns, 2)
    levels = [0.0, 0.5, 1.0, 3.0]
    for panel, (name, problem) in enumerate(PROBLEMS.items()):
        bench = problem(seeds)
        found = {"flow": [], "MLP": []}
        for level in levels:
            disturbed = {"target_noise": level * bench.scale}
            critics = {
                "flow": bench.flow(evaluation=disturbed),
                "MLP": bench.monolithic(evaluation=disturbed),
            }
            curves = bench.train(critics, measure=few_and_many)
            for kind, curve in curves.items():
                found[kind].append(curve.held_out["error"][:, -1])
            one = curves["flow"].held_out["error of one"][:, -1]
            report.row(name, level, spread(one), *(spread(values[-1]) for values in found.values()))
        for kind, values in found.items():
            report.line(panel, levels, np.transpose(values), kind)
        report.label(panel, f"target noise / std of Q ({name})", "error of Q", yscale="log")
    return report


def few_and_many(agent, state, batch, key):
    """The error with one z0 and with many."""
    one = analysis.q_error(agent, state, batch, key, num_noise=1)["error"]
    return analysis.q_error(agent, state, batch, key) | {"error of one": one}


def measure(agent, state, batch, key):
    """The error, and statistics of the penultimate features; a flow's are those at t = 0."""
    where = (batch.observation, batch.action)
    critic, params = agent.critic, state.params.critic
    if isinstance(critic, Flow):
        z0 = critic.initial_value(jax.random.uniform(key, (len(batch),)))
        features = analysis.field_features(params.field, jnp.zeros_like(z0), z0, *where)
    else:
        features = analysis.critic_features(params, *where)
    return analysis.q_error(agent, state, batch, key) | analysis.feature_statistics(features)


def plasticity(seeds: int) -> Report:
    """Features frozen part-way, their norm and rank, and supervising x1 instead of velocities."""
    columns = ["problem", "critic", "error at 2,000", "then 6,000 more, all trained"]
    columns += ["then 6,000 more, features frozen", "feature norm (0, 2,000, 8,000)"]
    report = Report("Plasticity", [*columns, "effective rank (0, 2,000, 8,000)"], 2)
    for panel, (name, problem) in enumerate(PROBLEMS.items()):
        bench = problem(seeds)
        makers = {
            "flow": bench.flow,
            "flow, x1 supervised": lambda b=bench, **o: b.flow(prediction="endpoint", **o),
            "MLP": bench.monolithic,
        }
        for kind, make in makers.items():
            free = make(decay=None)
            frozen = make(decay=None, evaluation={"frozen_features": True})
            options = {"measure": measure, "every": 2000}
            first = bench.train({kind: free}, updates=2000, **options)[kind]
            state = first.states
            on = {kind: state}
            then = bench.train({kind: free}, updates=6000, states=on, **options)[kind]
            # A new optimiser: the old one's momentum would still move what is frozen.
            fresh = eqx.filter_vmap(frozen.fresh_state)(state.params, state.targets)
            held = bench.train({kind: frozen}, updates=6000, states={kind: fresh}, **options)[kind]
            report.row(
                name,
                kind,
                spread(first.held_out["error"][:, -1]),
                spread(then.held_out["error"][:, -1]),
                spread(held.held_out["error"][:, -1]),
                *(
                    ", ".join(
                        f"{np.mean(values):.1f}"
                        for values in (
                            first.held_out[statistic][:, 0],
                            first.held_out[statistic][:, -1],
                            then.held_out[statistic][:, -1],
                        )
                    )
                    for statistic in ("feature_norm", "effective_rank")
                ),
            )
            report.line(panel, then.steps, then.held_out["error"], f"{kind}")
            color = report.axes[panel].lines[-1].get_color()
            steps, frozen_error = held.steps + 2000, held.held_out["error"]
            report.line(panel, steps, frozen_error, f"{kind}, frozen", ls="--", color=color)
        report.label(panel, f"updates ({name})", "error of Q", yscale="log")
    return report


def targets(seeds: int) -> Report:
    """A sequence of changing targets: plain regression, a new function every 1,000 updates."""
    report = Report(
        "A sequence of changing targets", ["phase", "flow", "flow, x1 supervised", "MLP"]
    )
    bench = linear_quadratic(seeds, discount=0.0)
    phases = 8

    def relabelled(batch, phase):
        keys = jax.random.split(jax.random.fold_in(jax.random.key(7), phase))
        inputs = jnp.concatenate([batch.observation, batch.action], axis=1)
        hidden = jnp.sin(3 * inputs @ jax.random.normal(keys[0], (inputs.shape[1], 16)))
        reward = hidden @ jax.random.normal(keys[1], (16,)) / 4
        return dataclasses.replace(batch, reward=jnp.clip(reward, -3, 3))

    def against_reward(agent, state, batch, key):
        value = analysis.learned_value(agent, state, batch.observation, batch.action, key=key)
        error = jnp.sqrt(jnp.mean((value - batch.reward) ** 2))
        return {"error": error / jnp.std(batch.reward)}

    interval = dataclasses.replace(relabelled(bench.data, 0))
    ends = jnp.array([-3.0, 3.0])
    bench.data = dataclasses.replace(interval, reward=interval.reward.at[:2].set(ends))
    critics = {
        "flow": bench.flow(decay=None),
        "flow, x1 supervised": bench.flow(decay=None, prediction="endpoint"),
        "MLP": bench.monolithic(decay=None),
    }
    states, found = None, {kind: [] for kind in critics}
    for phase in range(phases):
        curves = bench.train(
            critics,
            updates=1000,
            states=states,
            data=relabelled(bench.data, phase),
            held_out=relabelled(bench.held_out, phase),
            measure=against_reward,
        )
        states = {kind: curve.states for kind, curve in curves.items()}
        for kind, curve in curves.items():
            found[kind].append(curve.held_out["error"][:, -1])
        report.row(phase + 1, *(spread(values[-1]) for values in found.values()))
    for kind, values in found.items():
        report.line(0, np.arange(1, phases + 1), np.transpose(values), kind)
    report.label(0, "phase of 1,000 updates", "error at its end, held out")
    return report


def generalisation(seeds: int) -> Report:
    """Held-out (s, a), more steps than in training, longer training."""
    columns = ["problem", "transitions", "critic", "updates", "error on data", "error held out"]
    columns += [f"K = {k} at test" for k in (1, 4, 8, 16, 64)]
    report = Report("Which axes generalise", columns, 2)
    for panel, (name, problem) in enumerate(PROBLEMS.items()):
        for size in (500, 20_000):
            bench = dataclasses.replace(problem(seeds), size=size)
            critics = {"flow": bench.flow(decay=None), "MLP": bench.monolithic(decay=None)}
            for kind, critic in critics.items():
                curve = bench.train({kind: critic}, updates=12_000, every=3000)[kind]
                for column, step in enumerate(curve.steps[1:], start=1):
                    cells = [spread(e["error"][:, column]) for e in (curve.data, curve.held_out)]
                    if kind == "flow" and step == 12_000:
                        w = (bench.z0(critic), bench.held_out.observation, bench.held_out.action)
                        for k in (1, 4, 8, 16, 64):
                            values = bench.per_seed(
                                curve.states,
                                lambda f, w=w, k=k: analysis.disturbed_value(
                                    f, *w, after=0, num_steps=k
                                ),
                            )
                            cells.append(spread(bench.error(values)))
                    report.row(name, size, kind, step, *cells, *[""] * (7 - len(cells)))
                for label, values, style in (
                    ("data", curve.data, ":"),
                    ("held out", curve.held_out, "-"),
                ):
                    label = f"{kind}, {size} transitions, {label}"
                    report.line(panel, curve.steps[1:], values["error"][:, 1:], label, ls=style)
        report.label(panel, f"updates ({name})", "error of Q", yscale="log")
    return report


TRAINED_WITH = {
    "Euler K=8": (diffrax.Euler(), 8),
    "Midpoint K=4": (diffrax.Midpoint(), 4),
    "Heun K=4": (diffrax.Heun(), 4),
    "Bosh3 K=3": (diffrax.Bosh3(), 3),
    "Tsit5 K=1": (diffrax.Tsit5(), 1),
    "Euler K=4": (diffrax.Euler(), 4),
    "Euler K=2": (diffrax.Euler(), 2),
}


def solvers(seeds: int) -> Report:
    """Training with each solver at about equal evaluations, and testing with another."""
    tests = {"Euler K=1": (diffrax.Euler(), 1), "Euler K=2": (diffrax.Euler(), 2)}
    tests |= {"Euler K=4": (diffrax.Euler(), 4), "Euler K=8": (diffrax.Euler(), 8)}
    tests |= {"Midpoint K=4": (diffrax.Midpoint(), 4), "Dopri8 K=16": (diffrax.Dopri8(), 16)}
    columns = ["problem", "trained with", *(f"tested with {name}" for name in tests)]
    report = Report("One solver in training, another at test", columns)
    for name, problem in PROBLEMS.items():
        bench = problem(seeds)
        own = []
        for trained, (solver, k) in TRAINED_WITH.items():
            critic = bench.flow(solver=solver, num_steps=k)
            curve = bench.train({trained: critic})[trained]
            own.append(curve.held_out["error"][:, -1])
            where = (bench.z0(critic), bench.held_out.observation, bench.held_out.action)
            cells = []
            for test, (other, steps) in tests.items():
                values = bench.per_seed(
                    curve.states,
                    lambda f, w=where, o=other, s=steps: analysis.disturbed_value(
                        f, *w, after=0, num_steps=s, solver=o
                    ),
                )
                cells.append(
                    ("**{}**" if test == trained else "{}").format(spread(bench.error(values)))
                )
            report.row(name, trained, *cells)
        report.line(0, list(TRAINED_WITH), np.transpose(own), name)
    report.label(0, "solver in training and at test", "error of Q", yscale="log")
    report.axes[0].tick_params(axis="x", rotation=30)
    return report


def precision(seeds: int) -> Report:
    """The error of Q with products between hidden layers in float32 and in bfloat16."""
    steps = {f"Euler K={k}": (diffrax.Euler(), k) for k in (1, 2, 4, 8, 16, 32)}
    columns = ["problem", "trained and tested with", "float32", "bfloat16"]
    columns += ["trained in bfloat16, tested in float32", "trained in float32, tested in bfloat16"]
    report = Report("Products between hidden layers in float32 and bfloat16", columns)
    kinds: tuple[Any, ...] = ("float32", "bfloat16")
    for name, problem in PROBLEMS.items():
        bench, drawn = problem(seeds), {}
        for label, (solver, k) in (steps | TRAINED_WITH).items():
            options = {"solver": solver, "num_steps": k}
            agents = {kind: bench.flow(evaluation={"precision": kind}, **options) for kind in kinds}
            curves = bench.train(agents)
            errors = {}
            for trained, curve in curves.items():
                where = (bench.z0(agents[trained]), bench.held_out.observation)
                where += (bench.held_out.action,)
                for tested in kinds:
                    values = bench.per_seed(
                        curve.states,
                        lambda f, w=where, kind=tested, s=solver, k=k: analysis.disturbed_value(
                            with_precision(f, kind), *w, after=0, num_steps=k, solver=s
                        ),
                    )
                    errors[trained, tested] = bench.error(values)
            order = [(a, a) for a in kinds] + [kinds[::-1], kinds]
            report.row(name, label, *(spread(errors[pair]) for pair in order))
            drawn[label] = errors
        for kind in kinds:
            own = [drawn[label][kind, kind] for label in steps]
            report.line(0, [k for _, k in steps.values()], np.transpose(own), f"{name}, {kind}")
    report.label(0, "Euler steps in training and at test", "error of Q", xscale="log", yscale="log")
    return report


STUDIES = {
    function.__name__: function
    for function in (
        curvature,
        scaling,
        backup,
        recovery,
        noise,
        plasticity,
        targets,
        generalisation,
        solvers,
        precision,
    )
}


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("studies", nargs="+", choices=[*STUDIES, "all"])
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--out", type=Path, default=Path("results"))
    options = parser.parse_args()
    names = list(STUDIES) if "all" in options.studies else options.studies
    for name in names:
        started = time.perf_counter()
        STUDIES[name](options.seeds).write(options.out, name)
        print(f"{name}: {time.perf_counter() - started:.0f} s, {options.seeds} seeds", flush=True)


if __name__ == "__main__":
    main()
