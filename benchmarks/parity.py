"""The largest differences from the reference implementations' numbers, file by file.

    python -m benchmarks.parity

Relative differences are a tensor's largest one over its largest entry; scalars their own.
"""

import equinox as eqx
import jax
import numpy as np

from tests.reference import FILES, Reference


def relative(ours, theirs) -> float:
    ours, theirs = np.asarray(ours), np.asarray(theirs)
    return float(np.abs(ours - theirs).max() / np.abs(theirs).max())


def compare(name: str) -> tuple[float, float, float]:
    """Largest relative difference of metrics and gradients, absolute one of the parameters."""
    reference = Reference(name)
    agent, state = reference.load("params0")
    _, expected = reference.load("grads0")
    gradient = eqx.filter_jit(eqx.filter_grad(agent.loss, has_aux=True))
    grads, _ = gradient(state.params, state.targets, reference.batch(0), reference.noise(0))
    pairs = zip(jax.tree.leaves(grads), jax.tree.leaves(expected.params), strict=True)
    gradients = max(relative(ours, theirs) for ours, theirs in pairs)

    update, metric = eqx.filter_jit(agent.update), 0.0
    for number in range(3):
        state, metrics = update(state, reference.batch(number), reference.noise(number))
        for key, value in reference.below(f"info{number}").items():
            if key not in reference.ignored:
                metric = max(metric, relative(metrics[reference.metrics[key]], value.mean()))
    _, expected = reference.load("params3")
    ours, theirs = (jax.tree.leaves((s.params, s.targets)) for s in (state, expected))
    parameters = max(np.abs(a - b).max() for a, b in zip(ours, theirs, strict=True))
    return metric, gradients, float(parameters)


def main() -> None:
    print(
        "| file | losses and metrics, relative | gradients, relative | parameters after 3 updates |"
    )
    print("|---|---|---|---|")
    for name in FILES:
        print(f"| {name} | " + " | ".join(f"{value:.1e}" for value in compare(name)) + " |")


if __name__ == "__main__":
    main()
