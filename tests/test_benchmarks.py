"""The counts of `benchmarks/flops.py`, and that `benchmarks/speed.py` runs; none asserts a time."""

import json
import sys

import equinox as eqx
import jax
import jax.numpy as jnp
import pytest

from benchmarks import gpu, seeds, speed, speed_parts, speed_tables, speed_worker
from benchmarks.flops import Flops, count_flops
from floq_eqx.networks import MLP

BATCH, IN, WIDTH, OUT = 7, 3, 5, 2
FORWARD = 2 * BATCH * (IN * WIDTH + WIDTH * WIDTH + WIDTH * OUT)
TINY = {
    "critic.network.hidden_sizes": (4,),
    "critic.distilled_network.hidden_sizes": (4,),
    "policy.network.hidden_sizes": (4,),
}


@pytest.fixture(scope="module")
def network():
    return MLP(IN, (WIDTH, WIDTH), OUT, layer_norm=True, key=jax.random.key(0))


def forward(network, x):
    return jnp.sum(jax.vmap(network)(x))


def test_flops_of_a_network(network):
    x = jnp.ones((BATCH, IN))
    assert count_flops(forward, network, x) == Flops(FORWARD, 0)
    # Backward, a product for each kernel, and one for each layer's input but the first.
    backward = 2 * FORWARD - 2 * BATCH * IN * WIDTH
    assert count_flops(eqx.filter_grad(forward), network, x).products == FORWARD + backward
    # An average is none, even where it is written as a product with a vector.
    assert count_flops(lambda x: x @ jnp.ones(IN), x) == Flops(0, 0)
    # A batch of products, a member's each, here a vector by a matrix.
    stacked = jnp.ones((4, 1, 3)), jnp.ones((4, 3, 5))
    assert count_flops(jnp.matmul, *stacked).products == 2 * 4 * 3 * 5


def test_flops_of_loops_and_branches(network):
    x = jnp.ones((BATCH, IN))
    inside = jax.checkpoint(jax.jit(lambda x: forward(network, x)))

    def scanned(x):
        def step(total, _):
            return total + inside(x), None

        def inner(total, _):
            return jax.lax.scan(step, total, None, length=3)

        return jax.lax.scan(inner, 0.0, None, length=2)[0]

    assert count_flops(scanned, x) == Flops(6 * FORWARD, 0)

    def branched(x):
        branches = [lambda x: forward(network, x), lambda x: x[0, 0], lambda x: 2 * inside(x)]
        return jax.lax.switch(jnp.int32(x[0, 0]), branches, x)

    assert count_flops(branched, x) == Flops(FORWARD, 0)

    def unknown(x):
        return jax.lax.while_loop(lambda total: total < 10, lambda total: total + inside(x), 0.0)

    assert count_flops(unknown, x) == Flops(FORWARD, 1)
    with pytest.raises(ValueError, match="conv_general_dilated are not counted"):
        count_flops(lambda x: jnp.convolve(x, x), jnp.ones(3))


def test_the_parts_of_an_update_make_up_the_whole():
    case = speed_worker.Case("floq", "laptop", batch_size=3, settings=TINY)
    whole = speed_parts.update_flops(case)
    agent, size = speed_worker.make_agent(case)
    assert size == 3
    parts = speed_parts.parts_of(agent.for_data(speed_worker.random_data()))
    inputs = speed_parts.abstract_inputs(case)
    counts = [count_flops(part, *inputs) for part in parts.values()]
    assert sum(counts, Flops(0, 0)) == whole
    assert whole.loops == 0 < min(count.products for count in counts)


def test_growth_changes_a_size_at_a_time():
    case = speed_worker.Case("floq", "laptop", batch_size=8)
    grown = speed_parts.growing(case)
    assert {name: tuple(cases) for name, cases in grown.items()} == speed_parts.AROUND

    def sizes(case):
        agent, batch_size = speed_worker.make_agent(case)
        critic = agent.critic
        width = {*critic.network.hidden_sizes, *agent.policy.network.hidden_sizes}
        distinct = {"batch": batch_size, "width": max(width), "K": critic.num_steps}
        return distinct | {
            "m": critic.num_noise,
            "members": critic.ensemble_size,
            "seeds": case.seeds,
        }

    for name, cases in grown.items():
        for value, each in cases.items():
            assert sizes(each) == sizes(case) | {name: value}


def test_speed_measures_and_tells(tmp_path, monkeypatch, capsys):
    tiny = speed.Size("laptop", updates=2, batch_size=3, settings=TINY)
    monkeypatch.setitem(speed.SIZES, "tiny", tiny)
    monkeypatch.setattr(speed, "PRODUCTS", ((2, 8, 8, 8),))
    monkeypatch.setattr(speed_parts, "AROUND", {"seeds": (2,)})
    files = tmp_path / "out.json", tmp_path / "out.md"
    words = ["--agents", "floq", "--sizes", "tiny", "--repetitions", "1", "--grow"]
    speed.main([*words, "--json", str(files[0]), "--markdown", str(files[1])])
    results = json.loads(files[0].read_text())
    tables = files[1].read_text()
    assert tables == speed_tables.markdown(results)
    assert tables in capsys.readouterr().out

    assert results["machine"]["jax"] == jax.__version__
    assert results["command"].startswith(f"python benchmarks/speed.py {' '.join(words)}")
    (case,), (block,), (growth,) = (results[k] for k in ("cases", "breakdown", "growth"))
    assert case["batch_size"] == 3
    assert case["precision"] == "float32"
    assert case["flops"] == block["rows"][-1]["flops"] == block["rows"][-2]["flops"]
    assert case["memory"] > 4 * case["parameters"]
    assert case["resident"] > case["memory"]
    first = case["first"]
    assert list(first) == [
        "import", "construction", "tracing", "compilation", "first call", "total",
    ]  # fmt: skip
    assert min(part["cpu"] for part in first.values()) > 0
    assert case["updates_per_second"] == pytest.approx(1 / case["wall"]["median"])
    assert len(block["rows"]) == 12
    assert growth["rows"][0]["flops"] == 2 * case["flops"]


def test_checkouts_take_turns(monkeypatch, tmp_path):
    ran = []

    class Worker:
        def __init__(self, checkout, case):
            self.theirs = checkout == tmp_path
            self.ready = {"checkout": "", "precision": "float32", "first": {}}
            assert case.or_float32 == self.theirs

        def run(self):
            ran.append(self.theirs)
            slow = 10 if len(ran) < 3 else 1  # the turn that warms up
            times = {"wall": 2 + self.theirs, "cpu": 1 + self.theirs, "system": 0}
            return {kind: slow * seconds for kind, seconds in times.items()} | {"resident": 1}

        def close(self):
            ran.append("closed")

    monkeypatch.setattr(speed, "Worker", Worker)
    case = speed_worker.Case("floq", "laptop", updates=2, batch_size=3, settings=TINY)
    result = speed.measure(case, tmp_path, 3, {"wall": 1.0, "cpu": 1.0})
    assert ran == [True, False, False, True, True, False, False, True, "closed", "closed"]
    assert result["cpu"] == {"median": 0.5, "least": 0.5, "most": 0.5}
    assert result["other"]["cpu"]["median"] == 1
    assert result["other"]["ratio"]["cpu"] == {"median": 0.5, "least": 0.5, "most": 0.5}


def test_a_worker_of_another_package_is_refused(monkeypatch, tmp_path):
    fake = tmp_path / "speed_worker.py"
    fake.write_text("import json; print(json.dumps({'checkout': '/elsewhere'}), flush=True)\n")
    monkeypatch.setattr(speed, "__file__", str(fake))
    case = speed_worker.Case("floq", "laptop")
    with pytest.raises(SystemExit, match="found the package in /elsewhere"):
        speed.Worker(tmp_path, case)
    fake.write_text("raise SystemExit(3)\n")
    with pytest.raises(SystemExit, match=r"float32, of .* ended with 3"):
        speed.Worker(tmp_path, case)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--updates", "0"], "--updates must be at least 1, got 0"),
        (["--json", "no/such/folder.json"], "make it first"),
        (["--against", "no/such"], "expected a folder with floq_eqx in it"),
        (["--agents", "sac"], "agent of the papers' cube-double"),
    ],
)
def test_bad_options_are_refused_before_anything_runs(words, message, monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["speed.py"])
    with pytest.raises(SystemExit):
        speed.main(words)
    assert message in capsys.readouterr().err


def test_precisions(monkeypatch):
    agent, _ = speed_worker.make_agent(speed_worker.Case("floq", "laptop"))
    assert agent == speed_worker.at_precision(agent, "float32")

    low, _ = speed_worker.make_agent(speed_worker.Case("floq", "laptop", "bfloat16"))
    assert low.precision == "bfloat16"
    # Agents of a checkout from before they had one.
    monkeypatch.setattr(speed_worker, "has_precision", lambda agent: False)
    with pytest.raises(ValueError, match="no precision but float32, got 'bfloat16'"):
        speed_worker.make_agent(speed_worker.Case("floq", "laptop", "bfloat16"))
    case = speed_worker.Case("floq", "laptop", "bfloat16", or_float32=True)
    assert speed_worker.make_agent(case)[0] == agent


def test_seeds_together_and_one_after_the_other(monkeypatch, capsys):
    tiny = speed.Size("laptop", updates=2, batch_size=3, settings=TINY)
    monkeypatch.setitem(speed.SIZES, "tiny", tiny)
    seeds.main(["--sizes", "tiny", "--seeds", "1", "3", "--turns", "1"])
    rows = [line.split(" | ")[2:4] for line in capsys.readouterr().out.splitlines()[-4:]]
    assert rows == [[n, way] for n in ("1", "3") for way in ("threads", "vmap")]
    with pytest.raises(SystemExit):
        seeds.main(["--sizes", "tiny", "--seeds", "0"])


@pytest.mark.filterwarnings("ignore:.*os.fork")
def test_the_gpu_command_runs_small_on_a_cpu(monkeypatch, tmp_path):
    tiny = speed.Size("laptop", updates=2, batch_size=3, settings=TINY)
    monkeypatch.setitem(speed.SIZES, "tiny", tiny)
    monkeypatch.setattr(speed, "PRODUCTS", ((2, 8, 8, 8),))
    # Its processes know no size that is made here.
    monkeypatch.setattr(gpu, "resume", lambda options, flag: ["a", "b"])
    words = [
        "--updates",
        "2",
        "--size",
        "tiny",
        "--agents",
        "floq",
        "--precisions",
        "float32",
        "--seeds",
        "1",
        "2",
    ]
    words += ["--repetitions", "1", "--flag=--xla_no_such_flag=1", "--out", str(tmp_path)]
    gpu.main(words)
    results = json.loads((tmp_path / "gpu.json").read_text())
    assert [row[:3] for row in results["rates"]] == [["floq", "float32", n] for n in "12"]
    assert results["not_reached"] == []
    known, unknown = results["flags"]
    assert float(known[1]) > 0
    assert unknown[:2] == ["`--xla_no_such_flag=1`", "not known to this version of XLA"]
    assert (tmp_path / "gpu.md").read_text() == gpu.markdown(results)
    gpu.main([*words, "--minutes", "0"])
    results = json.loads((tmp_path / "gpu.json").read_text())
    assert (results["rates"], len(results["not_reached"])) == ([], 6)


def test_resumed_updates_are_bitwise_the_same():
    case = speed_worker.Case("floq", "laptop", batch_size=3, settings=TINY)
    assert gpu.resumes(case) == [True, True]
    iql = speed_worker.Case("iql", "paper", environment=gpu.ENVIRONMENTS["iql"])
    assert speed_worker.make_agent(iql)[0].recipe == "iql"
