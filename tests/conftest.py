"""Settings of the whole suite: JAX is made strict about dtypes and ranks."""

import jax

jax.config.update("jax_numpy_dtype_promotion", "strict")
jax.config.update("jax_numpy_rank_promotion", "raise")
