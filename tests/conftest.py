"""Settings of the whole suite: JAX is made strict about dtypes and ranks."""

import jax
import pytest

jax.config.update("jax_numpy_dtype_promotion", "strict")
jax.config.update("jax_numpy_rank_promotion", "raise")


@pytest.fixture(autouse=True, scope="module")
def _forget_compiled_programs():
    """Hundreds of them would otherwise fill gigabytes by the end."""
    yield
    jax.clear_caches()
