"""What is done together to all matrices that are alike, so that programs grow with their shapes, not their number."""

import functools
from collections.abc import Callable, Hashable, Sequence
from typing import Any

import jax
import jax.numpy as jnp

from ..core import Tree
from ..tree.lifting import blocks
from .matrix_layout import MatrixLayout, placed_like, unsharded

_BLOCK = 16  # arrays in a stack: XLA takes longer to compile how each is taken out of longer ones
_AT_ONCE = 2**19  # elements of a stack that are worked on at once: more leave the cache of a CPU, fewer idle a GPU


def map_matrices_together(
    fn: Callable[[list[tuple[jax.Array, ...]]], list[jax.Array]], layouts: list[MatrixLayout | None], *trees: Tree
) -> Tree:
    """`fn` of the matrices, each on one device, that the trees hold of all leaves with a layout.

    The other leaves are those of the first tree.
    """
    leaves, structure = jax.tree.flatten(trees[0])
    rows = list(zip(*map(jax.tree.leaves, trees), strict=True))
    placed = [(i, y) for i, y in enumerate(layouts) if y]
    new = fn([tuple(y.to_matrix(unsharded(y, x)) for x in rows[i]) for i, y in placed])
    for (i, layout), x in zip(placed, new, strict=True):
        leaves[i] = placed_like(layout.to_leaf(x), leaves[i])
    return structure.unflatten(leaves)


def map_rows_together(
    fn: Callable[[list[Any]], list[Any]], layouts: list[MatrixLayout | None], *trees: Tree
) -> list[Tree]:
    """New trees from those, as matrices, by `fn` from tuples of what they hold of each leaf to new ones."""
    structure = jax.tree.structure(trees[0])
    rows = list(zip(*map(structure.flatten_up_to, trees), strict=True))
    placed = [i for i, y in enumerate(layouts) if y]
    for i, new in zip(placed, fn([rows[i] for i in placed]), strict=True):
        rows[i] = new
    return [structure.unflatten([row[k] for row in rows]) for k in range(len(trees))]


def in_stacks(
    fn: Callable[..., Any], static: tuple[Hashable, ...], scalars: tuple[Any, ...], arrays: Sequence[Any]
) -> list[Any]:
    """`fn(static, scalars, x)` for each `x`, an array or a tuple of them, batched for those alike.

    Alike are shapes, dtypes and placement, so that programs grow with the number of shapes, not of leaves. `fn` is a
    function of a module, not one made for each call, and goes under `jax.vmap`; `static` are compiled in, `scalars` are
    arrays, the same for all.
    """
    new: list[Any] = [None] * len(arrays)
    for block in blocks(list(arrays), _BLOCK):
        for i, y in zip(block, _of_alike(fn, static, scalars, [arrays[i] for i in block]), strict=True):
            new[i] = y
    return new


@functools.partial(jax.jit, static_argnums=(0, 1))
def _of_alike(fn: Any, static: Any, scalars: Any, arrays: list[Any]) -> list[Any]:
    def one(x):
        with jax.numpy_dtype_promotion("standard"):  # of real numbers times complex matrices
            return fn(static, scalars, x)

    if len(arrays) == 1:
        return [one(arrays[0])]
    at_once = max(1, _AT_ONCE // max(x.size for x in jax.tree.leaves(arrays[0])))
    stack = jax.tree.map(lambda *x: jnp.stack(x), *arrays)
    new = jax.vmap(one)(stack) if at_once >= len(arrays) else jax.lax.map(one, stack, batch_size=at_once)
    stacks, structure = jax.tree.flatten(new)
    return [structure.unflatten(each) for each in zip(*map(list, stacks), strict=True)]
