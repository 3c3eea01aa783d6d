"""Figures of runs."""

import dataclasses
import subprocess
import sys

import matplotlib.image
import numpy as np
import pytest

from floq_eqx import plotting
from floq_eqx.analysis import SolverComparison, SolverRow
from floq_eqx.plotting import compare, final_values, learning_curves
from floq_eqx.training import OnlineConfig, Run
from floq_eqx.training.loggers import CSVLogger

from .runs import CUBE, FACTS, small_agent, small_config


@pytest.fixture
def runs(tmp_path):
    made = []
    for seed, success in enumerate([(0.0, 0.5), (0.2, 1.0)]):
        run = Run.create(tmp_path / f"run{seed}", small_config("x.npz", seed=seed), FACTS)
        for step, value in zip((10, 20), success, strict=True):
            row = {"step": step, "seconds": 1.0, "episodes": 20, "success": value}
            row |= {"success_std": 0.5, "returns": -200.0 * (1 - value), "returns_std": 2.0}
            row |= {"lengths": 100.0, "lengths_std": 10.0}
            CSVLogger(run.folder).log(row.pop("step"), row, table="evaluation")
        made.append(run)
    return made


@pytest.fixture
def make_run(tmp_path):
    """A run with evaluations of a success each, and any other columns."""

    def make(success, *, steps=None, columns=(), data="x.npz", **changes):
        folder = tmp_path / f"made{len(list(tmp_path.glob('made*')))}"
        run = Run.create(folder, small_config(data, **changes), FACTS)
        steps = range(10, 10 * len(success) + 1, 10) if steps is None else steps
        for step, value in zip(steps, success, strict=True):
            row = {"step": step, "seconds": step / 10 + run.config.seed, "episodes": 20}
            row |= {"success": value, "success_std": 0.5, "returns": -value, "returns_std": 1.0}
            row |= {name: f(step) for name, f in columns}
            CSVLogger(run.folder).log(row.pop("step"), row, table="evaluation")
        return run

    return make


@pytest.fixture
def drawn(monkeypatch):
    """The figures that are saved."""
    figures = []
    save = plotting._save
    monkeypatch.setattr(plotting, "_save", lambda f, path: (figures.append(f), save(f, path))[1])
    return figures


@pytest.mark.parametrize("metric", ["success", "returns", "lengths"])
@pytest.mark.parametrize("name", ["curve.png", "curve.pdf", "new/curve.SVG"])
def test_figures(runs, tmp_path, metric, name):
    path = learning_curves(runs, tmp_path / name, metric=metric)
    assert path == tmp_path / name
    assert path.stat().st_size > 5000
    if path.suffix == ".png":
        assert np.ptp(matplotlib.image.imread(path)) > 0.5
    assert not [p for p in path.parent.iterdir() if "partial" in p.name]


def test_what_is_drawn(runs, tmp_path, drawn):
    learning_curves(runs, tmp_path / "curve.png")
    (axes,) = drawn[0].axes
    assert [list(line.get_ydata()) for line in axes.lines] == [[0.0, 0.5], [0.2, 1.0]]
    assert [list(line.get_xdata()) for line in axes.lines] == [[10, 20], [10, 20]]
    assert [text.get_text() for text in drawn[0].legends[0].get_texts()] == [
        "run0 (fql, seed 0)",
        "run1 (fql, seed 1)",
    ]
    # Wilson's interval at 10 of 20 and 0 of 20, as in the tables of Brown, Cai and DasGupta.
    low, high = plotting._interval({"episodes": 20.0, "success": 0.5}, "success")
    np.testing.assert_allclose((low, high), (0.2993, 0.7007), atol=1e-4)
    low, high = plotting._interval({"episodes": 20.0, "success": 0.0}, "success")
    np.testing.assert_allclose((low, high), (0.0, 0.1611), atol=1e-4)
    row = {"episodes": 4.0, "returns": -3.0, "returns_std": 1.0}
    assert plotting._interval(row, "returns") == (-3.5, -2.5)


def test_nothing_to_draw(runs, tmp_path):
    empty = Run.create(tmp_path / "empty", small_config("x.npz"), FACTS)
    with pytest.raises(ValueError, match=r"no evaluation yet in \S*empty\.$"):
        learning_curves([*runs, empty], tmp_path / "curve.png")
    with pytest.raises(ValueError, match="no evaluation yet in no run"):
        learning_curves([], tmp_path / "curve.png")
    with pytest.raises(ValueError, match="metric must be one of success, returns, lengths, got 'q"):
        learning_curves(runs, tmp_path / "curve.png", metric="q")
    for name in ("curve.xyz", "curve"):
        with pytest.raises(ValueError, match=r"must end in one of .*\.png"):
            learning_curves(runs, tmp_path / name)
    (tmp_path / "file").write_text("")
    with pytest.raises(OSError, match="file"):
        learning_curves(runs, tmp_path / "file" / "curve.png")
    assert not list(tmp_path.glob("*curve*"))


def test_a_figure_is_whole_or_not_there(runs, tmp_path, monkeypatch):
    from matplotlib.figure import Figure

    path = learning_curves(runs, tmp_path / "curve.png")
    before = path.read_bytes()

    def savefig(self, file, **kwargs):
        file.write(b"half")
        raise OSError("No space left on device")

    monkeypatch.setattr(Figure, "savefig", savefig)
    with pytest.raises(OSError, match="No space left"):
        learning_curves(runs, path, metric="returns")
    assert path.read_bytes() == before
    assert [p.name for p in tmp_path.glob("*curve*")] == ["curve.png"]


def test_matplotlib_is_imported_late():
    code = (
        "import sys, floq_eqx, floq_eqx.cli; print([m for m in sys.modules if 'matplotlib' in m])"
    )
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert out.stdout == "[]\n"


def test_solver_comparison_figure(tmp_path, drawn):
    rows = [
        SolverRow("Euler K=1", 1.0, 1.0, 1e-3, 1.0, 0.5, 1.0, kendall_tau=0.5),
        SolverRow("Euler K=8", 8.0, 8.0, 1e-3, 1.0, 0.1, 1.0, kendall_tau=0.9),
        SolverRow("Heun K=4", 8.0, 8.0, 1e-3, 1.0, 0.05, 1.0, kendall_tau=0.95),
        SolverRow("Heun tol=0.1", 9.0, 9.0, 1e-3, 1.0, 0.2, 1.0, kendall_tau=0.8),
        SolverRow("Dopri8 K=1", failure="it failed"),
    ]
    path = plotting.solver_comparison(SolverComparison(tuple(rows)), tmp_path / "solvers.png")
    assert path.stat().st_size > 5000
    left, right = drawn[0].axes
    drawn = {line.get_label(): line.get_xydata().tolist() for line in left.lines}
    assert drawn == {
        "Euler": [[1, 0.5], [8, 0.1]],
        "Heun": [[8, 0.05]],
        "Heun adaptive": [[9, 0.2]],
    }
    assert left.collections[0].get_offsets().tolist() == [[1, 0.5], [8, 0.05]]
    assert right.lines[0].get_ydata().tolist() == [0.5, 0.9]
    with pytest.raises(ValueError, match="every configuration failed"):
        plotting.solver_comparison(SolverComparison(tuple(rows[-1:])), tmp_path / "none.png")


# ------------------------------------------------------------------------------ groups of seeds

SEEDS = np.array([[0.0, 0.9], [0.2, 0.8], [0.1, 0.2], [0.5, 0.7], [0.3, 0.6]])


def test_mean_of_seeds(make_run):
    runs = [make_run(values, seed=seed) for seed, values in enumerate(SEEDS)]
    (curve,) = compare(runs)
    assert (curve.label, curve.num_runs) == ("fql, 5 seeds", 5)
    np.testing.assert_array_equal(curve.x, [10, 20])
    np.testing.assert_allclose(curve.value, SEEDS.mean(0))
    assert (curve.low <= curve.value).all()
    assert (curve.value <= curve.high).all()
    # A bootstrap by hand, to its own error.
    draws = SEEDS[np.random.default_rng(1).integers(5, size=(20_000, 5))].mean(1)
    low, high = np.quantile(draws, [0.025, 0.975], axis=0)
    np.testing.assert_allclose(curve.low, low, atol=0.03)
    np.testing.assert_allclose(curve.high, high, atol=0.03)
    # The same every time.
    np.testing.assert_array_equal(compare(runs)[0].low, curve.low)


def test_interquartile_mean_of_seeds(make_run):
    runs = [make_run(values, seed=seed) for seed, values in enumerate(SEEDS)]
    (curve,) = compare(runs, aggregate="iqm")
    np.testing.assert_allclose(curve.value, np.sort(SEEDS, axis=0)[1:-1].mean(0))
    assert (curve.low <= curve.value).all()
    assert (curve.value <= curve.high).all()
    (few,) = compare(runs[:3], aggregate="iqm")
    np.testing.assert_allclose(few.value, SEEDS[:3].mean(0))


def test_groups_and_their_labels(make_run):
    runs = [
        make_run([0.0, 0.5], seed=0),
        make_run([0.3, 0.3], seed=0, agent=small_agent("fql", policy={"alpha": 3.0})),
        make_run([0.2, 0.7], seed=1, data="elsewhere.npz"),
        make_run([1.0, 1.0], seed=4, agent="floq"),
    ]
    first, second, third = compare(runs)
    assert [curve.label for curve in (first, second, third)] == [
        "fql, policy.alpha=10.0, 2 seeds",
        "fql, policy.alpha=3.0, seed 0",
        "floq, seed 4",
    ]
    np.testing.assert_allclose(first.value, [0.1, 0.6])
    assert np.isfinite([first.low, first.high]).all()
    for alone in (second, third):
        assert np.isnan([alone.low, alone.high]).all()
    assert final_values((first, second)) == (
        "| runs | updates | success rate | 95 % interval |\n"
        "|---|---|---|---|\n"
        "| fql, policy.alpha=10.0, 2 seeds | 20 | 0.6 | 0.5 to 0.7 |\n"
        "| fql, policy.alpha=3.0, seed 0 | 20 | 0.3 | – |\n"
    )


def test_seeds_that_began_from_runs_of_their_own(make_run):
    runs = [
        make_run([0.1 * seed], seed=seed, online=OnlineConfig(start=f"runs/seed{seed}"))
        for seed in (1, 2)
    ]
    (curve,) = compare(runs)
    assert curve.num_runs == 2


def test_runs_of_several_environments(make_run):
    other = CUBE.replace("task1", "task2")
    runs = [make_run([0.1], seed=0), make_run([0.2], seed=0, environment=other)]
    assert [c.label for c in compare(runs)] == [f"fql, {CUBE}, seed 0", f"fql, {other}, seed 0"]


def test_tasks_together(make_run):
    """Each task is drawn from by itself, so that what lies between tasks widens no interval."""
    values = {"task1": (0.0, 0.1), "task2": (0.8, 1.0)}
    runs = [
        make_run([value], seed=seed, environment=CUBE.replace("task1", task))
        for task, pair in values.items()
        for seed, value in enumerate(pair)
    ]
    (curve,) = compare(runs, pool_tasks=True)
    assert curve.label == "fql, 4 runs of 2 tasks"
    np.testing.assert_allclose(curve.value, [0.475])
    # The lowest and highest means of one draw from each task, both of probability 1 / 16.
    np.testing.assert_allclose((curve.low[0], curve.high[0]), (0.4, 0.55))
    (uneven,) = compare(runs[:3], pool_tasks=True)
    assert np.isnan(uneven.low).all()


def test_seeds_that_agree(make_run):
    (curve,) = compare([make_run([0.4, 1.0], seed=seed) for seed in range(3)])
    np.testing.assert_allclose([curve.low, curve.value, curve.high], [[0.4, 1.0]] * 3)


def test_only_evaluations_of_all_seeds(make_run):
    runs = [make_run([0.1, 0.2, 0.3], seed=0), make_run([0.3, 0.6], seed=1, steps=[10, 30])]
    (curve,) = compare(runs)
    assert curve.label == "fql, 2 seeds, the 2 evaluations of all"
    np.testing.assert_array_equal(curve.x, [10, 30])
    np.testing.assert_allclose(curve.value, [0.2, 0.45])
    apart = make_run([0.1], seed=2, steps=[7])
    with pytest.raises(ValueError, match=r"no evaluation at the same step: \S*made0, \S*made2"):
        compare([runs[0], apart])


def test_what_is_no_group(make_run):
    twins = [make_run([0.1], seed=1), make_run([0.2], seed=1, data="elsewhere.npz")]
    with pytest.raises(ValueError, match=r"made0 and \S*made1 have the same configuration and se"):
        compare(twins)
    assert len(compare(twins, aggregate=None)) == 2
    nan = make_run([float("nan")], seed=0)
    with pytest.raises(ValueError, match=r"success rate of \S*made2 is NaN: .* returns, lengths"):
        compare([twins[0], nan])


def test_against_what(make_run):
    runs = [make_run([0.1, 0.2], seed=seed) for seed in (0, 2)]
    (curve,) = compare(runs, x="seconds")
    np.testing.assert_allclose(curve.x, [2.0, 3.0])  # means of 1, 3 and of 2, 4
    with pytest.raises(
        ValueError, match=r"do not count environment steps: .* env_steps. Draw them .* seconds"
    ):
        compare(runs, x="env_steps")
    # Online, `step` counts environment steps.
    counts = [("updates", lambda n: 4 * n), ("env_steps", lambda n: n)]
    online = [make_run([0.1, 0.2], seed=seed, columns=counts) for seed in (0, 2)]
    np.testing.assert_array_equal(compare(online)[0].x, [40, 80])
    np.testing.assert_array_equal(compare(online, x="env_steps")[0].x, [10, 20])
    assert "| environment steps |" in final_values(compare(online, x="env_steps"), x="env_steps")
    without = make_run([0.1], columns=counts[1:])
    with pytest.raises(ValueError, match=r"no column updates. Draw them against env_steps or sec"):
        compare([without])


def test_figure_of_groups(make_run, drawn, tmp_path):
    runs = [make_run(values, seed=seed) for seed, values in enumerate(SEEDS)]
    runs.append(make_run([1.0, 1.0], agent="floq"))
    path = learning_curves(
        runs, tmp_path / "x.png", aggregate="iqm", x="seconds", references={"a line": 0.96}
    )
    assert np.ptp(matplotlib.image.imread(path)) > 0.5
    (figure,) = drawn
    (axes,) = figure.axes
    assert axes.get_xlabel() == "seconds"
    assert axes.get_ylabel() == "success rate, interquartile mean"
    group, alone, published = axes.lines
    np.testing.assert_allclose(group.get_ydata(), [0.2, 0.7])
    assert list(alone.get_ydata()) == [1.0, 1.0]
    assert (published.get_linestyle(), set(published.get_ydata())) == ("--", {0.96})
    # The legend lies below the axes, and below what is written there.
    figure.draw_without_rendering()
    legend = figure.legends[0]
    assert [text.get_text() for text in legend.get_texts()] == [
        "fql, 5 seeds",
        "floq, seed 0",
        "a line",
    ]
    assert legend.get_window_extent().y1 <= axes.get_tightbbox().y0
    assert legend.get_window_extent().y0 >= 0
    assert axes.get_window_extent().height > 0.5 * figure.get_window_extent().height


def test_published_lines(make_run):
    from floq_eqx.cli.plot import _published_lines

    runs = [make_run([0.1], agent="floq"), make_run([0.1]), make_run([0.2], seed=1)]
    note = "on cube-single: published offline, mean of five tasks"
    assert _published_lines(runs) == {
        f"floq (default), floq (best) {note}": 0.98,
        f"FQL (1M) {note}": 0.96,
        f"FQL (2M) {note}": 0.94,
    }
    noisy = dataclasses.replace(runs[0].config, environment=CUBE.replace("play", "noisy"))
    runs[0].config = noisy
    assert _published_lines(runs[:1]) == {}
    assert _published_lines([make_run([0.1], agent="iql")]) == {}


def test_plot_command(make_run, drawn, tmp_path, capsys):
    from floq_eqx.cli import main

    folders = [str(make_run([0.0, value], seed=seed).folder) for seed, value in enumerate((0, 1))]
    path = str(tmp_path / "curves.png")
    assert main(["plot", *folders, "--out", path]) == 0
    assert capsys.readouterr().out == (
        "| runs | updates | success rate | 95 % interval |\n"
        "|---|---|---|---|\n"
        f"| fql, 2 seeds | 20 | 0.5 | 0 to 1 |\n\nwrote {path}\n"
    )
    assert main(["plot", *folders, "--out", path, "--no-published", "--aggregate", "none"]) == 0
    assert "| made0 (fql, seed 0) | 20 | 0 |" in capsys.readouterr().out
    assert [len(figure.axes[0].lines) for figure in drawn] == [3, 2]
    assert main(["plot", *folders, "--out", path, "--x", "env_steps"]) == 1
    assert "do not count environment steps" in capsys.readouterr().err
