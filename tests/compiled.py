"""Cheap calls for tests: one program for a function where JAX would compile one for each operation in it."""

from functools import cache, wraps
from importlib.metadata import version

import jax
import jax.numpy as jnp
import numpy as np


def on_host(tree):
    """Arrays as NumPy's, whose arithmetic compiles nothing; what is being traced stays as it is."""
    return jax.tree.map(lambda x: x if isinstance(x, jax.core.Tracer) else np.asarray(x), tree)


def array(x, dtype=None):
    """An array of NumPy in the dtype that it would have in JAX."""
    if isinstance(x, jax.core.Tracer):
        return jnp.asarray(x, dtype)
    x = np.asarray(x)
    return x.astype(jax.dtypes.canonicalize_dtype(x.dtype if dtype is None else dtype))


# As users' programs are compiled, unlike the others here (see conftest.py): for what takes many steps.
OPTIMIZED = {"xla_backend_optimization_level": 3, "xla_llvm_disable_expensive_passes": False}
if version("jaxlib").startswith("0.10."):
    OPTIMIZED["xla_cpu_use_fusion_emitters"] = True


def jit(f, **options):
    """`jax.jit` whose results are NumPy's."""
    jitted = jax.jit(f, **options)

    @wraps(f)
    def call(*args, **kwargs):
        return on_host(jitted(*args, **kwargs))

    return call


def grad(f, argnums=0):
    return jit(jax.grad(f, argnums))


def value_and_grad(f, argnums=0, **options):
    return jit(jax.value_and_grad(f, argnums, **options))


@cache
def _program(f, settings):
    static = {name: value for name, _, value in settings}

    def call(arrays):
        named = static | arrays
        positional = [named.pop(k) for k in sorted(k for k in named if k.isdigit())]
        return f(*positional, **named)

    return jit(call)


@cache
def compiled(f):
    """`f` compiled for the arrays among its arguments; the others are settings, each a program of its own."""

    @wraps(f)
    def call(*args, **kwargs):
        named = {str(i): x for i, x in enumerate(args)} | kwargs
        named = {k: np.asarray(x) if isinstance(x, list) else x for k, x in named.items()}
        arrays = {k: x for k, x in named.items() if isinstance(x, np.ndarray | jax.Array)}
        settings = tuple((k, type(x), x) for k, x in named.items() if k not in arrays)
        return _program(f, settings)(arrays)

    return call


class Compiled:
    """The functions of a module, compiled."""

    def __init__(self, module):
        self._module = module

    def __getattr__(self, name):
        return compiled(getattr(self._module, name))
