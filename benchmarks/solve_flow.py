"""What `solve_flow` costs over a hand-written `jax.lax.scan` of Euler steps.

    python benchmarks/solve_flow.py
    python benchmarks/solve_flow.py --steps 8 --repetitions 21 --adjoint

The field has the sizes of floq's on a manipulation task: an ensemble of velocity networks, each
evaluated for every transition and noise sample. Forward is the value at t = 1; backward is the
gradient of its sum of squares with respect to the parameters. The two are timed in turns, so that
other work on the machine slows both; a ratio of 1.1 is the most that is acceptable.
"""

import argparse
import os
import statistics
import time

import diffrax
import equinox as eqx
import jax
import jax.numpy as jnp

from floq_eqx.integrate import solve_flow


class Field(eqx.Module):
    """One velocity network: 50 features of z and cos(t) beside the observation and action."""

    layers: list[eqx.nn.Linear]
    norms: list[eqx.nn.LayerNorm]

    def __init__(self, observation, action, hidden, *, key):
        sizes = (observation + action + 51, hidden, hidden, 1)
        keys = jax.random.split(key, len(sizes) - 1)
        self.layers = [
            eqx.nn.Linear(i, o, key=k) for i, o, k in zip(sizes[:-1], sizes[1:], keys, strict=True)
        ]
        self.norms = [eqx.nn.LayerNorm(size) for size in sizes[1:-1]]

    def __call__(self, t, z, observation, action):
        features = jnp.cos(z * jnp.arange(50, dtype=z.dtype))
        h = jnp.concatenate([observation, action, features, jnp.cos(t)[None]])
        for layer, norm in zip(self.layers[:-1], self.norms, strict=True):
            h = norm(jax.nn.gelu(layer(h)))
        return self.layers[-1](h)[0]


class Ensemble(eqx.Module):
    """The networks of an ensemble, each with its own z, on the same rows."""

    members: Field

    def __call__(self, t, z, observation, action):
        def one(field, z):
            return jax.vmap(field, (None, 0, 0, 0))(t, z, observation, action)

        return eqx.filter_vmap(one)(self.members, z)


def plain(field, z, *args, num_steps):
    def step(z, k):
        return z + field(k * (1 / num_steps), z, *args) * (1 / num_steps), None

    return jax.lax.scan(step, z, jnp.arange(num_steps, dtype=z.dtype))[0]


def compiled(function, *args):
    start = time.perf_counter()
    function = jax.jit(function).lower(*args).compile()
    return function, time.perf_counter() - start


def timed(functions, args, repetitions):
    """Seconds of each function in each repetition, in an order that alternates."""
    seconds = {name: [] for name in functions}
    for function in functions.values():
        jax.block_until_ready(function(*args))
    for repetition in range(repetitions):
        names = list(functions)
        for name in names if repetition % 2 else reversed(names):
            start = time.perf_counter()
            jax.block_until_ready(functions[name](*args))
            seconds[name].append(time.perf_counter() - start)
    return seconds


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--steps", type=int, nargs="+", default=[1, 4, 8, 16])
    parser.add_argument("--ensemble", type=int, default=2)
    parser.add_argument("--batch", type=int, default=256)
    parser.add_argument("--noise", type=int, default=8, help="noise samples of a transition")
    parser.add_argument("--hidden", type=int, default=512)
    parser.add_argument("--observation", type=int, default=37)
    parser.add_argument("--action", type=int, default=5)
    parser.add_argument("--repetitions", type=int, default=7)
    parser.add_argument(
        "--adjoint", action="store_true", help="time RecursiveCheckpointAdjoint, too"
    )
    options = parser.parse_args()

    rows = options.batch * options.noise
    keys = jax.random.split(jax.random.key(0), 4)
    make = eqx.filter_vmap(
        lambda key: Field(options.observation, options.action, options.hidden, key=key)
    )
    field = Ensemble(make(jax.random.split(keys[0], options.ensemble)))
    z = jax.random.normal(keys[1], (options.ensemble, rows))
    observation = jax.random.normal(keys[2], (rows, options.observation))
    action = jax.random.normal(keys[3], (rows, options.action))
    args = (field, z, observation, action)

    device = jax.devices()[0]
    print(
        f"jax {jax.__version__}, diffrax {diffrax.__version__}, {device.platform} "
        f"({device.device_kind}), {os.cpu_count()} cores, float32"
    )
    print(
        f"ensemble {options.ensemble} x {rows} rows, {options.observation} + {options.action} "
        f"+ 51 -> {options.hidden} -> {options.hidden} -> 1; medians of {options.repetitions}"
    )
    print(f"{'K':>3} {'':8} {'':12} {'compile s':>9} {'ms':>8} {'ratio':>6} {'of minima':>9}")
    for num_steps in options.steps:
        solves = {
            "plain scan": lambda *a, k=num_steps: plain(*a, num_steps=k),
            "solve_flow": lambda *a, k=num_steps: solve_flow(*a, num_steps=k).value,
        }
        if options.adjoint:
            solves["checkpointed"] = lambda *a, k=num_steps: (
                solve_flow(
                    *a, num_steps=k, adjoint=diffrax.RecursiveCheckpointAdjoint(checkpoints=k)
                ).value
            )
        for direction in ("forward", "backward"):
            functions, compile_seconds = {}, {}
            for name, solve in solves.items():
                function = solve
                if direction == "backward":
                    function = jax.grad(lambda *a, solve=solve: jnp.sum(solve(*a) ** 2))
                functions[name], compile_seconds[name] = compiled(function, *args)
            seconds = timed(functions, args, options.repetitions)
            base = seconds["plain scan"]
            for name, values in seconds.items():
                median = statistics.median(values)
                ratios = [v / b for v, b in zip(values, base, strict=True)]
                print(
                    f"{num_steps:>3} {direction:8} {name:12} {compile_seconds[name]:>9.2f} "
                    f"{1e3 * median:>8.1f} {statistics.median(ratios):>6.3f} "
                    f"{min(values) / min(base):>9.3f}",
                    flush=True,
                )


if __name__ == "__main__":
    main()
