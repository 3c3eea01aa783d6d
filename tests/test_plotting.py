"""Figures of runs."""

import subprocess
import sys

import matplotlib.image
import numpy as np
import pytest

from floq_eqx import plotting
from floq_eqx.analysis import SolverComparison, SolverRow
from floq_eqx.plotting import learning_curves
from floq_eqx.training import Run

from .runs import small_config


@pytest.fixture
def runs(tmp_path):
    made = []
    for seed, success in enumerate([(0.0, 0.5), (0.2, 1.0)]):
        run = Run.create(tmp_path / f"run{seed}", small_config("x.npz", seed=seed))
        for step, value in zip((10, 20), success, strict=True):
            row = {"step": step, "seconds": 1.0, "episodes": 20, "success": value}
            row |= {"success_std": 0.5, "returns": -200.0 * (1 - value), "returns_std": 2.0}
            run.append("evaluation.csv", row | {"lengths": 100.0, "lengths_std": 10.0})
        made.append(run)
    return made


@pytest.mark.parametrize("metric", ["success", "returns", "lengths"])
@pytest.mark.parametrize("name", ["curve.png", "curve.pdf", "new/curve.SVG"])
def test_figures(runs, tmp_path, metric, name):
    path = learning_curves(runs, tmp_path / name, metric=metric)
    assert path == tmp_path / name
    assert path.stat().st_size > 5000
    if path.suffix == ".png":
        assert np.ptp(matplotlib.image.imread(path)) > 0.5
    assert not [p for p in path.parent.iterdir() if "partial" in p.name]


def test_what_is_drawn(runs, tmp_path, monkeypatch):
    figures = []
    save = plotting._save
    monkeypatch.setattr(plotting, "_save", lambda f, path: (figures.append(f), save(f, path))[1])
    learning_curves(runs, tmp_path / "curve.png")
    (axes,) = figures[0].axes
    assert [list(line.get_ydata()) for line in axes.lines] == [[0.0, 0.5], [0.2, 1.0]]
    assert [list(line.get_xdata()) for line in axes.lines] == [[10, 20], [10, 20]]
    assert [text.get_text() for text in axes.get_legend().get_texts()] == [
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
    empty = Run.create(tmp_path / "empty", small_config("x.npz"))
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


def test_solver_comparison_figure(tmp_path, monkeypatch):
    figures = []
    save = plotting._save
    monkeypatch.setattr(plotting, "_save", lambda f, path: (figures.append(f), save(f, path))[1])
    rows = [
        SolverRow("Euler K=1", 1.0, 1.0, 1e-3, 1.0, 0.5, 1.0, kendall_tau=0.5),
        SolverRow("Euler K=8", 8.0, 8.0, 1e-3, 1.0, 0.1, 1.0, kendall_tau=0.9),
        SolverRow("Heun K=4", 8.0, 8.0, 1e-3, 1.0, 0.05, 1.0, kendall_tau=0.95),
        SolverRow("Heun tol=0.1", 9.0, 9.0, 1e-3, 1.0, 0.2, 1.0, kendall_tau=0.8),
        SolverRow("Dopri8 K=1", failure="it failed"),
    ]
    path = plotting.solver_comparison(SolverComparison(tuple(rows)), tmp_path / "solvers.png")
    assert path.stat().st_size > 5000
    left, right = figures[0].axes
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
