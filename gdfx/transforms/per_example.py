"""Gradients of single examples: how many there are, and their sum with each clipped."""

import math
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike

from ..tree import Tree, cast_like, norm, path_str, real_dtype, widen
from .clip import shrink_factor


def per_example_global_norm_clip(grads: Tree, l2_norm_clip: ArrayLike) -> tuple[Tree, jax.Array]:
    """Clips the gradient of each example to the joint L2 norm `l2_norm_clip` and sums them, as in DP-SGD.

    The leaves of `grads` have a leading axis for the examples, as `jax.vmap(jax.grad(loss), in_axes=(None, 0))` gives.
    Returns the sums, computed in at least float32, in the dtypes of `grads`; and how many examples had a larger norm,
    an int32 scalar. A NaN or an infinity in the gradient of an example spoils the sums. Source:
    https://arxiv.org/abs/1607.00133.

    Raises:
        TypeError: a leaf does not hold floats, or `l2_norm_clip` is no real scalar.
        ValueError: a leaf has no such axis, or one of another length; `l2_norm_clip` is a negative number.
    """
    _check_floats(grads)
    sums, is_clipped = sum_clipped(grads, _limit("l2_norm_clip", l2_norm_clip, grads))
    return cast_like(sums, grads), jnp.sum(is_clipped, dtype=jnp.int32)


def per_example_layer_norm_clip(grads: Tree, global_l2_norm_clip: ArrayLike, uniform: bool = True) -> tuple[Tree, Tree]:
    """Clips the gradient of each example leaf by leaf and sums them; the joint norm is then at most the given one.

    The limit of a leaf is `global_l2_norm_clip` times the root of its share: one over the number of leaves, or, with
    `uniform=False`, the part of all params that it holds. Returns the sums and, for each leaf, how many examples were
    clipped. Otherwise as `per_example_global_norm_clip`. Source: https://arxiv.org/abs/1710.06963.
    """
    _check_floats(grads)
    count_examples(grads)
    limit = _limit("global_l2_norm_clip", global_l2_norm_clip, grads)
    leaves, structure = jax.tree.flatten(grads)
    total = max(sum(g.size for g in leaves), 1)
    shares = [1 / len(leaves) if uniform else g.size / total for g in leaves]
    rows = [per_example_global_norm_clip(g, limit * math.sqrt(s)) for g, s in zip(leaves, shares, strict=True)]
    sums, counts = zip(*rows, strict=True)
    return jax.tree.unflatten(structure, sums), jax.tree.unflatten(structure, counts)


# Shared with transforms that take a gradient for each example.


def sum_clipped(grads: Tree, limit: ArrayLike) -> tuple[Tree, jax.Array]:
    """The sums of gradients, each clipped to the joint norm `limit`, in at least float32; and which were larger.

    The second is an array of bools, one for each example. Raises as `count_examples`.
    """
    count_examples(grads)
    norms = jax.vmap(norm)(grads)
    factors = jax.vmap(shrink_factor, in_axes=(0, None))(norms, limit)

    def total(g: jax.Array) -> jax.Array:
        # A product and a sum: a dot product would be rounded to fewer bits on accelerators.
        return jnp.sum(jax.vmap(jnp.multiply)(factors.astype(jnp.finfo(g.dtype).dtype), g), axis=0)

    with jax.numpy_dtype_promotion("standard"):  # a real number times a complex leaf
        return jax.tree.map(total, widen(grads)), norms > jnp.asarray(limit).astype(norms.dtype)


def count_examples(grads: Tree, axis: int | Sequence[int] = 0) -> int:
    """The number of examples in `grads`: the length of `axis`, or the product of the lengths of several.

    Raises `ValueError`, with the path, for a leaf that has no such axes, or others than the first leaf.
    """
    axes = (axis,) if isinstance(axis, int) else tuple(axis)
    leading = axes == (0,)
    rows = [(path_str(path), jnp.shape(leaf)) for path, leaf in jax.tree_util.tree_leaves_with_path(grads)]
    if not rows:
        raise ValueError("the gradients have no leaves, so that the number of examples is unknown")
    lengths = [_lengths(shape, axes) for _, shape in rows]
    for (path, shape), found in zip(rows, lengths, strict=True):
        if not found or 0 in found or found != lengths[0]:
            told = f"{shape}, those at {rows[0][0]} {rows[0][1]}" if found and 0 not in found else f"{shape}"
            where = "a leading axis" if leading else f"the axes {axes}"
            raise ValueError(
                f"at {path}, the gradients have shape {told}, expected {where} for the examples, as long on all "
                "leaves. Were they taken with jax.vmap(jax.grad(loss), in_axes=(None, 0))?"
            )
    return math.prod(lengths[0])


def _lengths(shape: tuple[int, ...], axes: tuple[int, ...]) -> tuple[int, ...]:
    """The lengths of the axes; none if one of them is missing."""
    return tuple(shape[a] for a in axes) if all(-len(shape) <= a < len(shape) for a in axes) else ()


def _limit(name: str, value: ArrayLike, grads: Tree) -> jax.Array:
    if jnp.ndim(value) or jnp.iscomplexobj(value):
        raise TypeError(f"{name} is {value!r}, expected a real scalar")
    if not isinstance(value, jax.Array) and not np.asarray(value) >= 0:
        raise ValueError(f"{name} is {value}, expected at least 0")
    return jnp.asarray(value, real_dtype(grads))


def _check_floats(grads: Tree) -> None:
    for path, leaf in jax.tree_util.tree_leaves_with_path(grads):
        dtype: Any = getattr(leaf, "dtype", None)
        if dtype is None or not jnp.issubdtype(dtype, jnp.inexact):
            found = f"dtype {dtype}" if dtype is not None else f"type {type(leaf).__name__}"
            raise TypeError(f"at {path_str(path)}, grads have {found}, expected an array of floats")
