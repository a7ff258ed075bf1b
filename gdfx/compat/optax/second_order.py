"""optax.second_order, all of which is deprecated there: see `jax.jvp` and `jax.hessian`."""
