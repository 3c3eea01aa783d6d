"""Settings of the whole suite: JAX is made strict about dtypes and ranks."""

import os

import jax
import pytest

# Most of the suite's time goes into compiling what runs once, here and in programs that it starts.
os.environ["JAX_DISABLE_MOST_OPTIMIZATIONS"] = "1"
jax.config.update("jax_disable_most_optimizations", True)

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
