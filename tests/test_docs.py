"""The documentation: its API pages name everything public, and its examples run."""

import ast
import importlib
import json
import re
import subprocess
import sys
import typing
from pathlib import Path

import jax
import numpy as np
import pytest

import floq_eqx
from floq_eqx.agents import floq
from floq_eqx.networks import MLPConfig
from floq_eqx.training import Facts, Run, TrainConfig

ROOT = Path(__file__).parents[1]
DOCS = ROOT / "docs"
PAGES = sorted(DOCS.rglob("*.md"))
DIRECTIVE = re.compile(r"^::: (\S+)((?:\n    .*)*)", re.MULTILINE)
BLOCK = re.compile(r"(?:<!-- (.+?) -->\n)?```python\n(.*?)^```$", re.MULTILINE | re.DOTALL)


def module_names() -> list[str]:
    package = Path(floq_eqx.__file__).parent
    names = []
    for path in sorted(package.rglob("*.py")):
        parts = path.relative_to(package.parent).with_suffix("").parts
        if parts[:2] == ("floq_eqx", "cli") and parts[-1] != "__init__":
            continue  # What the program is made of is no interface.
        if not any(part.startswith("_") and part != "__init__" for part in parts):
            names.append(".".join(part for part in parts if part != "__init__"))
    return names


def defined(module: str) -> dict[str, bool]:
    """The public names that a module defines, and whether each has a docstring."""
    path = importlib.import_module(module).__file__
    assert path is not None
    body = ast.parse(Path(path).read_text()).body
    names: dict[str, bool] = {}
    for node, following in zip(body, [*body[1:], None], strict=True):
        if isinstance(node, ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
            names[node.name] = ast.get_docstring(node) is not None
        elif isinstance(node, ast.Assign | ast.AnnAssign):
            targets = node.targets if isinstance(node, ast.Assign) else [node.target]
            documented = isinstance(following, ast.Expr) and isinstance(
                following.value, ast.Constant
            )
            names |= {target.id: documented for target in targets if isinstance(target, ast.Name)}
    return {name: has for name, has in names.items() if not name.startswith("_")}


def find(path: str) -> object:
    """The object at a dotted path; raises ImportError or AttributeError if there is none."""
    parts = path.split(".")
    for length in range(len(parts), 0, -1):
        try:
            found: object = importlib.import_module(".".join(parts[:length]))
        except ModuleNotFoundError:
            continue
        for part in parts[length:]:
            found = getattr(found, part)
        return found
    raise ImportError(path)


def directives() -> dict[str, str]:
    """The path of every directive of the API pages, and its options."""
    found = [match for page in PAGES for match in DIRECTIVE.findall(page.read_text())]
    assert len(found) == len({path for path, _ in found}), "a directive occurs twice"
    return dict(found)


@pytest.mark.parametrize("path", directives())
def test_directive_names_something(path):
    find(path)


@pytest.mark.parametrize("module", module_names())
def test_api_pages_have_everything_public(module):
    shown = directives()
    own = [(path.rpartition(".")[2], find(path), options) for path, options in shown.items()]
    missing = []
    for name, documented in defined(module).items():
        value = getattr(importlib.import_module(module), name)
        if isinstance(value, typing.TypeVar):
            continue
        # A page leaves out what has no docstring, unless it is told otherwise.
        by_module = module in shown and documented
        by_name = any(
            name == shown_name
            and value is shown_value
            and (documented or "show_if_no_docstring: true" in options)
            for shown_name, shown_value, options in own
        )
        if not by_module and not by_name:
            missing.append(f"{module}.{name}")
    assert not missing, "add them to a page in docs/api"


def blocks(page: Path) -> list[tuple[str, str]]:
    """The Python examples of a page: the comment before each, and its code."""
    return BLOCK.findall(page.read_text())


@pytest.mark.parametrize("page", [p for p in PAGES if blocks(p)], ids=lambda p: p.stem)
def test_examples_run(page, tmp_path, monkeypatch):
    """Those of a page marked `<!-- run -->`, one after the other; of the others, the syntax."""
    monkeypatch.chdir(tmp_path)
    if "checkpoint.npz" in page.read_text():
        write_reference_checkpoint()
    if "Run(" in page.read_text():
        write_run()
    namespace: dict[str, object] = {}
    for how, code in blocks(page):
        if how == "run":
            exec(compile(code, str(page), "exec"), namespace)
        elif how == "run in a process of its own":
            done = subprocess.run(
                [sys.executable, "-c", code], capture_output=True, text=True, check=False
            )
            assert done.returncode == 0, done.stderr
        else:
            assert how == ""
            compile(code, str(page), "exec")


def write_reference_checkpoint() -> None:
    """`checkpoint.npz` and `checkpoint.json` in this folder, of one of the reference's."""
    with np.load(ROOT / "tests" / "data" / "floq_default.npz", allow_pickle=False) as file:
        arrays = {key: file[key] for key in file.files if key.startswith("params0/")}
        config = str(file["config"])
    np.savez("checkpoint.npz", **{key.removeprefix("params0/"): a for key, a in arrays.items()})
    Path("checkpoint.json").write_text(json.dumps(json.loads(config)))


def write_run() -> None:
    """A run at the place where `floq train` puts its default one, with untrained parameters."""
    small = MLPConfig(hidden_sizes=(8,))
    agent = floq(
        critic={"network": small, "distilled_network": small},
        policy={"network": small},
        action_size=5,
    )
    run = Run.create(
        "runs/cube-single-play-singletask-task1-floq-laptop-seed0",
        TrainConfig(agent=agent),
        Facts(28, 5),
    )
    with run.checkpoints() as manager:
        run.save(manager, agent.init(28, 5, key=jax.random.key(0)))


@pytest.mark.parametrize("page", ["adding-a-critic.md", "adding-a-policy.md"])
def test_a_part_takes_under_60_lines(page):
    """Its imports included, blank ones not."""
    _, code = blocks(DOCS / page)[0]
    lines = [line for line in code.splitlines() if line.strip()]
    assert len(lines) < 60
    assert all(len(line) <= 100 for line in lines)


def test_pages_are_in_the_navigation():
    navigation = (ROOT / "mkdocs.yml").read_text()
    for page in PAGES:
        assert f": {page.relative_to(DOCS).as_posix()}\n" in navigation


def test_works_without_beartype():
    """As the page says of run-time checks: without its line, beartype is not imported."""
    code = (
        "import sys; sys.modules['beartype'] = None; import jax.numpy as jnp; "
        "from floq_eqx.targets import td_target; "
        "td_target(jnp.zeros(4), jnp.ones(4), jnp.zeros(4), discount=0.99)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_promises_name_tests_that_exist():
    """`file.py::name` or, in the same cell, `::name`."""
    text = (DOCS / "what-survives.md").read_text()
    named = 0
    for cell in text.replace("\n", "|").split("|"):
        file = None
        for path, name in re.findall(r"`(?:(\w+\.py))?::(\w+)`", cell):
            file = path or file
            assert f"def {name}(" in (ROOT / "tests" / file).read_text(), (file, name)
            named += 1
    assert named > 30
