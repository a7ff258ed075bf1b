"""Trees of the shapes of another: the slots of states, and constants."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike

from .checks import Tree, check_params, check_scalar
from .dtypes import _real, _with_real, widen


def zeros_like(tree: Tree, dtype: Any = None, *, real: bool = False, fill: Any = 0) -> Tree:
    """Slots for params like `tree`, filled with `fill`, in `dtype` or, by default, as wide as `tree`, at least float32.

    `real` makes the slots of complex leaves real, as for second moments.
    For zeros in the dtypes of `tree`, whichever these are, see `full_like`.

    Raises:
        TypeError: a leaf is not an array of floats, or complex and `dtype` is not; the path is named.
    """
    check_params(tree)

    if dtype is not None and not jnp.issubdtype(dtype, jnp.inexact):
        raise TypeError(f"the state cannot be kept in {dtype}, expected a floating-point dtype")

    def slot(path, p):
        p = jnp.asarray(p)  # NumPy's float64 is float32 without x64
        real_dtype = np.dtype(np.float64 if _real(p).itemsize == 8 else np.float32)
        chosen = dtype if dtype is not None else real_dtype if real else _with_real(p.dtype, real_dtype)
        if jnp.iscomplexobj(p) and not real and not jnp.issubdtype(chosen, jnp.complexfloating):
            raise TypeError(
                f"params{jax.tree_util.keystr(path)} are complex, but their state is to be kept in {chosen}"
            )
        return jnp.full_like(p, jnp.asarray(fill).astype(chosen), chosen)

    return jax.tree_util.tree_map_with_path(slot, tree)


def copies(params: Tree) -> Tree:
    """Slots that hold `params`, in buffers of their own, as wide as the params and at least float32."""
    check_params(params)
    return jax.tree.map(lambda p: jnp.array(p, copy=True), widen(params))


def full_like(tree: Tree, fill_value: ArrayLike, dtype: Any = None) -> Tree:
    """`tree` with each element `fill_value`, a scalar, in the dtypes of `tree` or in `dtype`."""
    check_scalar(fill_value, "full_like: fill_value")

    def full(x):
        chosen = jnp.result_type(x) if dtype is None else dtype
        return jnp.full_like(x, jnp.asarray(fill_value).astype(chosen), chosen)

    return jax.tree.map(full, tree)


def ones_like(tree: Tree, dtype: Any = None) -> Tree:
    """`tree` with each element 1, in the dtypes of `tree` or in `dtype`."""
    return full_like(tree, 1, dtype)


def batch_shape(tree: Tree, shape: tuple[int, ...] = ()) -> Tree:
    """`tree` with the axes `shape` in front of those of each leaf, along which it is repeated."""
    return jax.tree.map(lambda x: jnp.broadcast_to(x, (*shape, *jnp.shape(x))), tree)
