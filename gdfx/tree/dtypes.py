"""The dtypes of trees."""

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import DTypeLike

from .checks import Tree, path_str


def _inexact(x: Any) -> bool:
    return jnp.issubdtype(jnp.result_type(x), jnp.inexact)


def _real(x: Any) -> np.dtype:
    """The dtype of the real part of `x`."""
    return jnp.finfo(x.dtype).dtype


def _with_real(dtype: Any, real: np.dtype) -> np.dtype:
    """`dtype`, real or complex, with its real part in `real`."""
    complex_of = {4: np.complex64, 8: np.complex128}
    return np.dtype(complex_of[real.itemsize]) if jnp.issubdtype(dtype, jnp.complexfloating) else real


def real_dtype(params: Tree) -> np.dtype:
    """The dtype for numbers about all of `params`: float32, or float64 if that is what the widest leaf is in."""
    widths = [_real(jnp.asarray(p)).itemsize for p in jax.tree.leaves(params)]
    return np.dtype(np.float64 if max(widths, default=4) == 8 else np.float32)


def widen(tree: Tree) -> Tree:
    """`tree` with its half-precision leaves as float32."""

    def wide(x):
        return x.astype(jnp.float32) if _inexact(x) and _real(x).itemsize < 4 else x

    return jax.tree.map(wide, tree)


def cast(tree: Tree, dtype: DTypeLike | None) -> Tree:
    """`tree` with its leaves in `dtype`; as it is for `None`.

    Raises:
        TypeError: a leaf is complex and `dtype` is not; the path is named.
    """
    if dtype is None:
        return tree
    to_complex = jnp.issubdtype(dtype, jnp.complexfloating)

    def convert(path, x):
        x = jnp.asarray(x)
        if jnp.iscomplexobj(x) and not to_complex:
            raise TypeError(
                f"cast: at {path_str(path)} the tree has dtype {x.dtype}, of which {jnp.dtype(dtype)} would lose the "
                "imaginary part: take `real` first if that is meant"
            )
        return x.astype(dtype)

    return jax.tree_util.tree_map_with_path(convert, tree)


def cast_like(tree: Tree, other_tree: Tree) -> Tree:
    """`tree` with the dtypes of `other_tree`; leaves stay as they are where those of `other_tree` have no dtype."""
    return jax.tree.map(lambda x, y: x.astype(y.dtype) if hasattr(y, "dtype") else x, tree, other_tree)


def dtype(tree: Tree, mixed_dtype_handler: str | None = None) -> np.dtype:
    """The dtype of the leaves of `tree`; JAX's default float for no leaves.

    Where they have several, `mixed_dtype_handler` decides: `None` raises, `"promote"` gives what they all promote to;
    `"highest"` and `"lowest"` give the one of them that the others promote to, or that promotes to the others.

    Raises:
        ValueError: there are several dtypes and no handler, or, for the highest and lowest, two of which neither
            promotes to the other; the paths are named.
    """
    if mixed_dtype_handler not in (None, "promote", "highest", "lowest"):
        raise ValueError(
            f"dtype: mixed_dtype_handler is {mixed_dtype_handler!r}, expected None, 'promote', 'highest' or 'lowest'"
        )
    paths: dict[np.dtype, str] = {}
    for path, leaf in jax.tree_util.tree_leaves_with_path(tree):
        paths.setdefault(jnp.asarray(leaf).dtype, path_str(path))
    if not paths:
        return jnp.asarray([]).dtype
    if mixed_dtype_handler is None and len(paths) > 1:
        found = ", ".join(f"{name} (at {path})" for name, path in paths.items())
        raise ValueError(
            f"dtype: the leaves have the dtypes {found}, expected one. "
            "Pass mixed_dtype_handler, 'promote', 'highest' or 'lowest', to choose"
        )

    def higher(x, y):
        with jax.numpy_dtype_promotion("standard"):
            wide = jnp.promote_types(x, y)
        if mixed_dtype_handler != "promote" and wide not in (x, y):
            raise ValueError(f"dtype: neither of {x} (at {paths[x]}) and {y} (at {paths[y]}) promotes to the other")
        return (y if wide == x else x) if mixed_dtype_handler == "lowest" else wide

    return functools.reduce(higher, paths)
