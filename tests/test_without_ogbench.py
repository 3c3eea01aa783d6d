"""What needs OGBench says so; everything else works where it is not installed."""

import os
import subprocess
import sys

import pytest

from floq_eqx.data import dataset_names, fetching, ogbench, parse_name

# A process in which OGBench and what comes with it alone cannot be imported.
PRELUDE = """
import sys

class Missing:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in ("ogbench", "dm_control", "mujoco"):
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)

sys.meta_path.insert(0, Missing())
import jax, numpy as np, floq_eqx as fq
from floq_eqx import cli
"""
INSTALL = "--no-deps ogbench dm_control" if sys.version_info >= (3, 13) else "ogbench"
SMALL = (
    *("--critic.network.hidden-sizes", "8", "--policy.network.hidden-sizes", "8"),
    *("--batch-size", "8"),
)


def run(code, folder):
    return subprocess.run(
        [sys.executable, "-W", "error", "-c", PRELUDE + code],
        capture_output=True,
        text=True,
        cwd=folder,
        # The folder of the tests has no package in it.
        env=os.environ | {"PYTHONPATH": os.pathsep.join(filter(None, sys.path))},
    )


def test_names_are_those_that_ogbench_registers():
    import gymnasium

    ogbench.ogbench_module()
    registered = {
        key
        for key, spec in gymnasium.registry.items()
        if str(spec.entry_point).startswith("ogbench.")
    }
    assert {parse_name(name).environment_id for name in dataset_names()} == registered
    assert ogbench.ogbench_module("ogbench.utils").DATASET_URL == fetching.SERVER


def test_names_are_known(tmp_path):
    code = """
from floq_eqx.data import dataset_names, parse_name
from floq_eqx.data.environments import make_box_environment
assert parse_name("cube-single-play-singletask-task1-v0").dataset == "cube-single-play-v0"
assert "visual-scene-play-v0" in dataset_names()
for call in (parse_name, make_box_environment):
    try:
        call("cube-singel-play-v0")
    except ValueError as error:
        assert "Did you mean cube-single-play-v0" in str(error), error
for environment in dataset_names()[:3]:
    fq.presets.preset("laptop", agent="floq", environment=environment)
"""
    done = run(code, tmp_path)
    assert (done.returncode, done.stderr) == (0, "")


def test_agents_studies_and_other_environments(tmp_path):
    """From data of one's own, from a problem with a known Q, and online."""
    code = f"""
def floq(*words):
    status = cli.main([str(word) for word in words])
    assert status == 0, status

floq("--help")
key = jax.random.key(0)
draw = lambda *shape: np.asarray(jax.random.uniform(key, shape), np.float32)
np.savez("own.npz", s=draw(32, 3), a=draw(32, 2), r=draw(32))
own = np.load("own.npz")
data = fq.Batch(own["s"], own["a"], own["r"], np.ones(32, np.float32), own["s"])
small = fq.networks.MLPConfig(hidden_sizes=(8,))
agent = fq.agents.fql(critic={{"network": small}}, policy={{"network": small}}).for_data(data)
state = agent.init(observation_size=3, action_size=2, key=key)
fq.training.train_steps(agent, state, data, num_updates=2, batch_size=8, key=key)
problem = fq.analysis.RandomWalk(key=key)
problem.data(8, key=key)
solver = fq.analysis.default_configurations()[0].solver
field = lambda t, z: -z
fq.solve_flow(field, jax.numpy.ones(3), solver=solver, num_steps=2)
assert abs(fq.analysis.rank_agreement(np.eye(3), np.eye(3)) - 1) < 1e-6
floq("train", "--env", "Pendulum-v1", "--agent", "sac", "--online-steps", 10, "--warmup", 8,
    "--log-every", 10, "--evaluate-every", 10, "--checkpoint-every", 10,
    "--evaluation-episodes", 1, "--out", "run", *{SMALL})
floq("evaluate", "run", "--episodes", 1)
floq("plot", "run", "--out", "curves.png", "--metric", "returns")
try:
    cli.main(["train", "--help"])
except SystemExit as end:
    assert not end.code
assert not [name for name in sys.modules if name.partition(".")[0] in ("ogbench", "mujoco")]
"""
    done = run(code, tmp_path)
    assert done.returncode == 0, done.stderr
    assert {"run", "curves.png"} <= {path.name for path in tmp_path.iterdir()}


@pytest.mark.parametrize(
    "words",
    [
        ("train", "--data", "data.npz", "--out", "run"),
        ("train", "--online-steps", "10", "--offline-data", "none", "--out", "run"),
        ("collect", "cube-single-play-v0", "--out", "data"),
    ],
    ids=["offline", "online", "collect"],
)
def test_what_needs_it_says_how_to_install_it(words, data, tmp_path):
    (tmp_path / "data.npz").symlink_to(data)
    done = run(f"sys.exit(cli.main({words}))", tmp_path)
    assert done.returncode == 1
    assert done.stderr.splitlines()[-1] == (
        "floq: error: OGBench is needed for this and cannot be imported "
        f"(No module named 'ogbench'): pip install {INSTALL}"
    )
    assert not (tmp_path / "data").exists()
