"""Settings of the whole suite: JAX is made strict about dtypes and ranks."""

import atexit
import gc
import os
import shutil
import subprocess
import sys
import tempfile

import gymnasium
import jax
import pytest

# Most of the suite's time goes into tracing and compiling what runs once, here and in programs that
# it starts. These, which are often the same, also keep what they compiled; each worker's by itself,
# since the cache has no locks.
_cache = tempfile.mkdtemp(prefix="floq-jax-")
atexit.register(shutil.rmtree, _cache, ignore_errors=True)
os.environ |= {
    "JAX_DISABLE_MOST_OPTIMIZATIONS": "1",
    "JAX_COMPILATION_CACHE_DIR": _cache,
    "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
    "JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES": "-1",
}

# Without these XLA takes four times as long. It ends a process at flags that it does not know,
# which is tried once: workers inherit what their controller found.
_flags = os.environ.get("XLA_FLAGS", "") + (
    " --xla_cpu_use_fusion_emitters=false --xla_cpu_parallel_codegen_split_count=1"
)
if "PYTEST_XDIST_WORKER" not in os.environ:
    _try = [sys.executable, "-c", "import jax; jax.devices()"]
    _tried = subprocess.run(_try, env=os.environ | {"XLA_FLAGS": _flags}, capture_output=True)
    if _tried.returncode == 0:
        os.environ["XLA_FLAGS"] = _flags

# Tracing makes many small objects, and little of it is garbage.
gc.set_threshold(50_000)

jax.config.update("jax_disable_most_optimizations", True)
jax.config.update("jax_compilation_cache_dir", None)
jax.config.update("jax_numpy_dtype_promotion", "strict")
jax.config.update("jax_numpy_rank_promotion", "raise")


@pytest.fixture(autouse=True, scope="module")
def _forget_compiled_programs():
    """Hundreds of them would otherwise fill gigabytes by the end."""
    yield
    jax.clear_caches()


@pytest.fixture(autouse=True, scope="session")
def _environments_used_again():
    """A run makes two environments, and MuJoCo takes longer to build them than it trains."""
    from floq_eqx.data import ogbench

    idle = {}
    make = ogbench._make

    class UsedAgain(gymnasium.Wrapper):
        def close(self):
            mine, self.env = self.env, None
            if mine is not None:
                idle[self.kind].append(mine)

    def take(environment_id, **kwargs):
        if set(kwargs) - {"success_timing"}:
            return make(environment_id, **kwargs)
        kind = environment_id, kwargs.get("success_timing")
        waiting = idle.setdefault(kind, [])
        env = UsedAgain(waiting.pop() if waiting else make(environment_id, **kwargs))
        env.kind = kind
        return env

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(ogbench, "_make", take)
        yield


@pytest.fixture
def optimised():
    """For a test that runs what it compiles for long."""
    jax.config.update("jax_disable_most_optimizations", False)
    yield
    jax.config.update("jax_disable_most_optimizations", True)


@pytest.fixture(scope="session")
def data(tmp_path_factory):
    """A dataset's file, small enough to train on in a test."""
    from .runs import write_dataset  # not before the package's types are checked

    return write_dataset(tmp_path_factory.mktemp("data") / "cube-single-play-v0.npz")
