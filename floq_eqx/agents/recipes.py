"""Every named algorithm: which critic, which policy and which selection it is.

Each takes options by part, as `floq(critic={"num_steps": 16}, policy={"alpha": 300.0},
learning_rate=1e-3)`: those of an [`floq_eqx.agents.ActorCritic`][], where a mapping changes options
of the recipe's own part, and a module takes its place.
"""

import functools
from collections.abc import Callable
from typing import Any

from .._checks import nearest
from ..networks import MLPConfig
from . import critics, policies
from .actor_critic import ActorCritic
from .plain import with_options
from .selection import Selection

RECIPES: dict[str, Callable[..., ActorCritic]] = {}
"""Every named algorithm; one that is added by `recipe` is known to the command line, the docs and
the tests.
"""


def recipe(make: Callable[[], ActorCritic]) -> Callable[..., ActorCritic]:
    """A decorator: gives an algorithm the name of its function, and options by part."""
    name = make.__name__

    @functools.wraps(make)
    def named(**options: Any) -> ActorCritic:
        return with_options(make(), {"recipe": name} | options)

    RECIPES[name] = named
    return named


@recipe
def floq() -> ActorCritic:
    """floq, arXiv 2509.06863, algorithm 1.

    1. Match the field to the mean of m integrals of the target field, K steps each, from next
       actions of the one-step actor; distil the field's own integral into a critic of one pass.
    2. Match the behavioural flow to the data's actions.
    3. Raise the distilled critic by the one-step actor, and distil the flow into it.
    """
    return ActorCritic(critics.Flow(), policies.OneStep())


@recipe
def fql() -> ActorCritic:
    """FQL, arXiv 2502.02538, algorithm 1.

    1. Regress Q on r + γ Q(s', a'), a' of the one-step actor.
    2. Match the behavioural flow to the data's actions.
    3. Raise Q by the one-step actor, and distil the flow into it.
    """
    return ActorCritic(critics.TD(), policies.OneStep())


@recipe
def qc() -> ActorCritic:
    """Q-chunking, arXiv 2507.07969, algorithm 1, with FQL's policy (QC-FQL).

    1. Regress Q of a chunk of h actions on its discounted rewards and γ^h Q(s_h, a'), a' a chunk
       of the one-step actor.
    2. Match the behavioural flow to the data's chunks.
    3. Raise Q by the one-step actor, and distil the flow into it; carry out its chunks whole.

    With `BehaviouralFlow()` as the policy and `Selection(32)` for both selections it is the paper's
    QC, whose chunks are the best of 32 of the behavioural flow.
    """
    return ActorCritic(critics.TD(), policies.OneStep(alpha=100.0), chunk=5)


@recipe
def iqn() -> ActorCritic:
    """FQL's policy on implicit quantile networks, arXiv 1806.06923: a baseline of floq.

    1. Regress quantiles at random levels on r + γ Z(s', a') at others.
    2. Raise their mean by FQL's policy.
    """
    return ActorCritic(critics.Quantile(), policies.OneStep())


@recipe
def c51() -> ActorCritic:
    """FQL's policy on a categorical critic, arXiv 2403.03950: a baseline of floq.

    1. Fit a histogram over returns to that of r + γ Q(s', a') by cross-entropy.
    2. Raise its mean by FQL's policy.
    """
    return ActorCritic(critics.Categorical(), policies.OneStep())


@recipe
def value_flows() -> ActorCritic:
    """Value Flows, arXiv 2510.07650, algorithm 1.

    1. Take the best of N behavioural actions as a', by Q = z0 + v(0, z0).
    2. Match the returns' field to the next return's flow and to its samples, by confidence.
    3. Train FQL's policy on Q; act by the best of N behavioural actions.
    """
    policy = policies.OneStep(clip_steps=True, network=MLPConfig(layer_norm=True))
    best = Selection(16, proposal="behaviour")
    return ActorCritic(critics.ReturnFlow(), policy, best, best)


@recipe
def sorl() -> ActorCritic:
    """SORL, arXiv 2505.22866, algorithm 1.

    1. Regress Q on r + γ Q(s', a'), a' of a random number of steps.
    2. Match the shortcut model to the data at its smallest steps, and to itself at larger ones.
    3. Raise Q through its steps, of a random number.
    """
    return ActorCritic(critics.TD(), policies.Shortcut(), learning_rate=1e-4, gradient_norm=1.0)


@recipe
def evor() -> ActorCritic:
    """EVOR, arXiv 2510.08218.

    1. Match a flow of returns to r + γ Z(s', a'), a' of the behavioural flow.
    2. Match that to the data's actions.
    3. Act by the best of N of its actions by Q = η log E exp(Z / η).
    """
    return ActorCritic(critics.SoftReturnFlow(), policies.BehaviouralFlow(), Selection(32))


@recipe
def iql() -> ActorCritic:
    """IQL, arXiv 2110.06169.

    1. Regress V on an expectile of Q over the data's actions, and Q on r + γ V(s').
    2. Clone the data's actions by the weight of their advantage; or raise Q at the mean of the
       policy and clone, which is DDPG+BC (arXiv 2406.09329).
    """
    return ActorCritic(critics.Implicit(), policies.Gaussian())


@recipe
def ifql() -> ActorCritic:
    """IFQL, arXiv 2502.02538, appendix C, after IDQL, arXiv 2304.10573.

    1. Learn the values of IQL.
    2. Match the behavioural flow to the data's actions.
    3. Act by the best of N of its actions by Q.
    """
    return ActorCritic(critics.Implicit(), policies.BehaviouralFlow(), Selection(32))


@recipe
def rebrac() -> ActorCritic:
    """ReBRAC, arXiv 2305.09836, as in FQL's released code. Batches need their `next_action`.

    1. Regress Q on r + γ (min Q(s', a') - w' |a' - a'_data|²), a' of the slow policy, blurred.
    2. Every other update: raise min Q by the policy less w |π(s) - a|², and average.
    """
    critic = critics.TD(aggregation="min", value_aggregation="min")
    return ActorCritic(critic, policies.Deterministic(), policy_every=2)


@recipe
def sac() -> ActorCritic:
    """SAC, arXiv 1812.05905, algorithm 1, with the settings of RLPD, arXiv 2302.02948.

    1. Regress Q on r + γ (min Q(s', a') - T log π(a' | s')).
    2. Raise mean Q - T log π by the policy, where the original raises the minimum.
    3. Move T to where the policy's entropy is the target's.

    RLPD's ensemble has 10 members, of which the target draws 2 (`target_members`). Half of a batch
    from offline data is its other part: [`floq_eqx.data.sample_mixture`][].
    """
    network = MLPConfig((256, 256), layer_norm=True, norm_first=True)
    return ActorCritic(critics.TD(aggregation="min", network=network), policies.TanhGaussian())


@recipe
def bc() -> ActorCritic:
    """Gaussian behavioural cloning, the baseline of OGBench, arXiv 2410.20092.

    1. Raise the likelihood of the data's actions.
    """
    return ActorCritic(None, policies.Gaussian(extraction="clone"))


@recipe
def bc_flow() -> ActorCritic:
    """The behavioural flow of FQL alone, arXiv 2502.02538, section 4.

    1. Match the flow to the data's actions.
    """
    return ActorCritic(None, policies.BehaviouralFlow())


def composed(critic: str | None, policy: str) -> ActorCritic:
    """The agent of a critic and a policy by their names: the algorithm that is such a pair, if
    there is one, and else their defaults.

    A policy that clones the data acts by the best of 16 of its actions, and a critic of bounded
    returns takes no entropy into its target, which it could not represent.

    **Raises:** `ValueError` for a name that is not known, and a pair that makes no sense.
    """
    for name, kind, known in (
        ("critic", critic, critics.CRITICS),
        ("policy", policy, policies.POLICIES),
    ):
        if kind is not None and kind not in known:
            raise nearest(name, kind, known)
    kind: Any = None if critic is None else critics.CRITICS[critic]
    made, actor = kind and kind(), policies.POLICIES[policy]()
    for named in (make() for make in RECIPES.values()):
        if (type(named.critic), type(named.policy)) == (type(made), type(actor)):
            return named
    if isinstance(made, critics.BoundedCritic) and isinstance(actor, policies.TanhGaussian):
        actor = policies.TanhGaussian(backup_entropy=False)
    return ActorCritic(made, actor, Selection(1 if actor.uses_value else 16))
