"""The design's rules about imports, which no reviewer has to remember."""

import ast
import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

import floq_eqx

PACKAGE = Path(floq_eqx.__file__).parent
# Each row may import from those before it, from its own file, and, in a package, from its siblings.
ROWS = [
    {"_types", "_checks", "_machine", "_progress", "__version__"},
    {"embeddings", "paths", "targets", "losses", "data"},
    {"networks"},
    {"modules"},
    {"integrate", "_stepping", "_arguments", "_explicit"},
    {"agents"},
    {"training", "evaluation", "analysis", "interop"},
    {"plotting", "recording", "presets"},
    {"cli", "__main__"},
]
# What a row's files may use of their own row.
WITHIN_ROW = {
    ("_checks", "_types"),
    ("integrate", "_arguments"),
    ("integrate", "_explicit"),
    ("integrate", "_stepping"),
    ("_stepping", "_explicit"),
    ("analysis", "training"),
    ("training", "evaluation"),
    ("__main__", "cli"),
}
ROW = {name: number for number, names in enumerate(ROWS) for name in names}
FILES = [path for path in sorted(PACKAGE.rglob("*.py")) if path != PACKAGE / "__init__.py"]


def imported_modules(path: Path) -> set[str]:
    """The top-level modules of the package that a file imports, at any depth of nesting."""
    package = ("floq_eqx", *path.relative_to(PACKAGE).parent.parts)
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom):
            base = package[: len(package) - node.level + 1] if node.level else ()
            full = [*base, *(node.module or "").split(".")]
            full = [part for part in full if part]
            names = [full] if len(full) > 1 else [[*full, alias.name] for alias in node.names]
        elif isinstance(node, ast.Import):
            names = [alias.name.split(".") for alias in node.names]
        else:
            continue
        found |= {name[1] for name in names if name[0] == "floq_eqx" and len(name) > 1}
    return found


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_imports_only_from_rows_above(path):
    own = path.relative_to(PACKAGE).parts[0].removesuffix(".py")
    assert own in ROW, f"{own} is in no row: give it one"
    for name in imported_modules(path) - {own, "__version__"}:
        allowed = ROW[name] < ROW[own] or (own, name) in WITHIN_ROW
        assert allowed, f"{own} (row {ROW[own]}) imports {name} (row {ROW[name]})"


def imports_below(path: Path, level: int) -> set[str]:
    """What a file imports with so many dots."""
    nodes = ast.walk(ast.parse(path.read_text()))
    return {n.module for n in nodes if isinstance(n, ast.ImportFrom) and n.level == level}


@pytest.mark.parametrize(
    ("folder", "shared"),
    [("critics", {"critic"}), ("policies", {"policy", "behavioural_flow"})],
)
def test_critics_and_policies_share_only_named_pieces(folder, shared):
    for path in (PACKAGE / "agents" / folder).glob("*.py"):
        if path.stem == "__init__":
            continue
        siblings = imports_below(path, 1)
        assert siblings <= shared, f"{path.stem} imports another: {siblings - shared}"
        above = imports_below(path, 2)
        assert above <= {"agent"}, f"{path.stem} imports {above - {'agent'}}"


def test_what_combines_critics_and_policies_knows_none_of_them():
    for name in ("actor_critic", "selection", "agent"):
        inner = {m for m in imports_below(PACKAGE / "agents" / f"{name}.py", 1) if "." in m}
        known = {"critics.critic", "policies.policy", "policies.fixed"}
        assert inner <= known, f"{name} imports {inner - known}"


def test_only_integrate_calls_diffrax_solve():
    for path in FILES:
        calls = "diffeqsolve" in path.read_text()
        assert calls == (path.name == "integrate.py"), path


def in_new_process(code: str) -> str:
    result = subprocess.run(
        [sys.executable, "-W", "error", "-c", code], capture_output=True, text=True, check=False
    )
    assert result.returncode == 0, result.stderr
    return result.stdout.strip()


def test_import_is_light():
    heavy = """ogbench dm_control mujoco gymnasium matplotlib orbax PIL tyro tqdm beartype
        scipy.stats scipy.linalg tensorboard tensorboardX wandb h5py minari"""
    code = f"import sys, floq_eqx; print([m for m in {heavy.split()} if m in sys.modules])"
    assert in_new_process(code) == "[]"


def test_every_package_that_is_imported_is_required():
    text = (Path(__file__).parents[1] / "pyproject.toml").read_text()
    declared = tomllib.loads(text)["project"]
    extras = declared["optional-dependencies"]
    required = [*declared["dependencies"]]
    for extra in ("tensorboard", "wandb", "hdf5", "minari"):
        required += extras[extra]
    names = {re.split(r"[^\w-]", one)[0].replace("-", "_").lower() for one in required}
    renamed = {"PIL": "pillow", "orbax": "orbax_checkpoint", "tensorboardX": "tensorboardx"}
    for path in FILES:
        for node in ast.walk(ast.parse(path.read_text())):
            found = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            if isinstance(node, ast.ImportFrom) and not node.level:
                found = [node.module]
            for name in {name.partition(".")[0] for name in found} - sys.stdlib_module_names:
                assert renamed.get(name, name) in names, f"{path.name} imports {name}"


def test_works_without_beartype():
    code = """
import sys
sys.modules["beartype"] = None
import jax, floq_eqx
agent = floq_eqx.agents.floq(action_size=1, critic={"num_noise": 1, "num_steps": 1})
print(agent.init(2, 1, key=jax.random.key(0)).step)
"""
    assert in_new_process(code) == "0"


def test_shape_checking_is_switched_on_by_one_line():
    code = """
from jaxtyping import install_import_hook
with install_import_hook("floq_eqx", "beartype.beartype"):
    import floq_eqx
import jax.numpy as jnp
try:
    floq_eqx.losses.critic_loss(jnp.zeros((2, 3)), jnp.zeros(4))
except Exception as error:
    print(type(error).__name__)
"""
    assert in_new_process(code) == "TypeCheckError"


def test_no_postponed_annotations_asserts_or_pickles():
    for path in FILES:
        text = path.read_text()
        assert "from __future__ import annotations" not in text, path
        assert "allow_pickle=True" not in text, path
        asserts = [n for n in ast.walk(ast.parse(text)) if isinstance(n, ast.Assert)]
        assert not asserts, f"{path} asserts; raise an error that says what to do"
