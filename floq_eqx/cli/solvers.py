"""`floq solvers`: ODE solvers compared on the field of a run, or of a problem with a known Q."""

import dataclasses
import typing
from pathlib import Path

import tyro

from ..training import Run
from .compilation import CompilationCache, keep_compiled
from .output import say


def run(arguments: list[str]) -> None:
    import jax

    from ..analysis import ProblemName, default_configurations, study_problem, study_run
    from ..plotting import solver_comparison
    from ..training.files import write_text

    @dataclasses.dataclass
    class Solvers:
        run: tyro.conf.Positional[str | None] = None
        """The folder of a floq run."""
        problem: ProblemName | None = None
        """Instead of a run: train a field on a linear-quadratic problem or a random walk."""
        out: str | None = None
        """The folder for solvers.md, .csv and .png (default: the run's, or solvers-<problem>)."""
        num_steps: tuple[int, ...] = (1, 2, 4, 8, 16, 32)
        """The numbers K of equal steps."""
        tolerances: tuple[float, ...] = (1e-1, 1e-2, 1e-3)
        """The tolerances of adaptive steps."""
        observations: int = 64
        """The number of observations."""
        candidates: int = 16
        """The number of actions that are ranked in each observation."""
        num_updates: int | None = None
        """With --problem: the number of updates of the field; 6000 by default."""
        seed: int = 0
        """The seed of all random numbers."""
        compilation_cache: CompilationCache = True

    options = tyro.cli(Solvers, prog="floq solvers", args=arguments)
    if (options.run is None) == (options.problem is None):
        raise ValueError("Give the folder of a run, or --problem lqr or walk: one of the two.")
    if options.problem is None and options.num_updates is not None:
        raise ValueError("--num-updates is for --problem: a run has been trained already.")
    keep_compiled(options.compilation_cache)
    num_updates = 6000 if options.num_updates is None else options.num_updates
    shared = {
        "num_observations": options.observations,
        "num_candidates": options.candidates,
        "configurations": default_configurations(
            num_steps=options.num_steps, tolerances=options.tolerances
        ),
        "key": jax.random.key(options.seed),
        "progress": True,
    }
    if options.problem is not None:
        folder = Path(options.out or f"solvers-{options.problem}")
        study = study_problem(options.problem, num_updates=num_updates, **shared)
    else:
        trained = Run(typing.cast(str, options.run))
        folder = Path(options.out or trained.folder)
        study = study_run(trained, **shared)
    folder.mkdir(parents=True, exist_ok=True)
    write_text(folder / "solvers.md", study.markdown())
    write_text(folder / "solvers.csv", study.comparison.csv())
    say(study.markdown())
    solver_comparison(study.comparison, folder / "solvers.png")
    say(f"wrote solvers.md, solvers.csv and solvers.png to {folder}")
