"""Studies of flow critics: exact problems, solvers compared, and why they work."""

from .accuracy import (
    observed_order as observed_order,
    rank_agreement as rank_agreement,
)
from .compute import (
    matched_ensemble as matched_ensemble,
    matched_residual as matched_residual,
    network_flops as network_flops,
)
from .features import (
    critic_features as critic_features,
    feature_statistics as feature_statistics,
    field_features as field_features,
    first_member as first_member,
)
from .policy_evaluation import (
    Curves as Curves,
    Measure as Measure,
    PolicyEvaluation as PolicyEvaluation,
    evaluate_policy as evaluate_policy,
    learned_value as learned_value,
    policy_evaluation as policy_evaluation,
    q_error as q_error,
)
from .problems import (
    LinearQuadratic as LinearQuadratic,
    Problem as Problem,
    RandomWalk as RandomWalk,
)
from .solver_comparison import (
    SolverComparison as SolverComparison,
    SolverRow as SolverRow,
    compare_solvers as compare_solvers,
)
from .solver_configurations import (
    FIXED_SOLVERS as FIXED_SOLVERS,
    OverBatch as OverBatch,
    SolverConfiguration as SolverConfiguration,
    default_configurations as default_configurations,
)
from .solver_study import (
    ProblemName as ProblemName,
    SolverStudy as SolverStudy,
    study_problem as study_problem,
    study_run as study_run,
)
from .trajectories import (
    Contraction as Contraction,
    Straightness as Straightness,
    contraction as contraction,
    disturbed_value as disturbed_value,
    straightness as straightness,
    trajectory as trajectory,
)
