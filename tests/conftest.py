"""Settings of the whole suite: JAX is made strict about dtypes and ranks."""

import atexit
import os
import shutil
import tempfile

if "PYTEST_XDIST_WORKER" not in os.environ:
    _cache = tempfile.mkdtemp(prefix="floq-jax-")
    atexit.register(shutil.rmtree, _cache, ignore_errors=True)
    # Most of the suite's time goes into compiling what runs once, here and in programs it starts:
    # do little of it, and what processes have in common once.
    os.environ |= {
        "JAX_DISABLE_MOST_OPTIMIZATIONS": "1",
        "JAX_COMPILATION_CACHE_DIR": _cache,
        "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
        "JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES": "-1",
    }

import jax  # it reads these when it is imported
import pytest

jax.config.update("jax_numpy_dtype_promotion", "strict")
jax.config.update("jax_numpy_rank_promotion", "raise")


@pytest.fixture(autouse=True, scope="module")
def _forget_compiled_programs():
    """Hundreds of them would otherwise fill gigabytes by the end."""
    yield
    jax.clear_caches()


@pytest.fixture
def optimised():
    """For a test that runs what it compiles for long."""
    jax.config.update("jax_disable_most_optimizations", False)
    yield
    jax.config.update("jax_disable_most_optimizations", True)
