"""Arithmetic of trees, leaf by leaf."""

import operator
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike

from .checks import Tree, check_scalar, path_str, side_by_side
from .lifting import leafwise


def add(tree_x: Tree, tree_y: Tree, *other_trees: Tree) -> Tree:
    """The sum of two or more trees.

    As in all functions of two trees, structures and shapes must agree, but for scalars in place of leaves, and dtypes
    promote as JAX is set to promote them. Intermediate results are float32 at least.
    """
    names = ("tree_x", "tree_y", *(f"other_trees[{i}]" for i in range(len(other_trees))))
    return _each(_total, names, tree_x, tree_y, *other_trees)


def sub(tree_x: Tree, tree_y: Tree) -> Tree:
    """`tree_x - tree_y`."""
    return _each(operator.sub, ("tree_x", "tree_y"), tree_x, tree_y)


def mul(tree_x: Tree, tree_y: Tree) -> Tree:
    """`tree_x * tree_y`, element-wise."""
    return _each(operator.mul, ("tree_x", "tree_y"), tree_x, tree_y)


def div(tree_x: Tree, tree_y: Tree) -> Tree:
    """`tree_x / tree_y`, element-wise: as IEEE 754 has it where `tree_y` is 0."""
    return _each(operator.truediv, ("tree_x", "tree_y"), tree_x, tree_y)


def scale(scalar: ArrayLike, tree: Tree) -> Tree:
    """`scalar * tree`; dtypes promote as JAX is set to promote them, so that a Python number changes none."""
    check_scalar(scalar, "scale: scalar")
    return jax.tree.map(lambda x: scalar * x, tree)


def add_scale(tree_x: Tree, scalar: ArrayLike, tree_y: Tree) -> Tree:
    """`tree_x + scalar * tree_y`, computed in float32 at least; `None` where `tree_x` is."""
    check_scalar(scalar, "add_scale: scalar")
    tree_y = without_those_of(tree_x, tree_y)
    return _each(lambda x, y: _in_float32(_add_scaled, x, scalar, y), ("tree_x", "tree_y"), tree_x, tree_y)


def difference(tree: Tree, other: Tree) -> Tree:
    """`tree - other`, in the dtypes of `other`."""
    return leafwise(_subtract_from, (), other, read=(tree,))


def clip(tree: Tree, min_value: ArrayLike | None = None, max_value: ArrayLike | None = None) -> Tree:
    """`tree` with its elements in [`min_value`, `max_value`], either of which may be None for no limit.

    The limits are scalars, or arrays of the shape of all leaves.
    """
    limits = {name: x for name, x in (("min_value", min_value), ("max_value", max_value)) if x is not None}

    def limited(path, x):
        for name, limit in limits.items():
            if jnp.shape(limit) not in ((), jnp.shape(x)):
                raise ValueError(
                    f"clip: {name} has shape {jnp.shape(limit)}, but at {path_str(path)} the tree has shape "
                    f"{jnp.shape(x)}; expected a scalar, as nothing is broadcast"
                )
        return jnp.clip(x, min_value, max_value)

    return jax.tree_util.tree_map_with_path(limited, tree)


def where(condition: Tree, tree_x: Tree, tree_y: Tree) -> Tree:
    """The elements of `tree_x` where `condition` is true and of `tree_y` elsewhere.

    `condition` is a scalar, an array of the shape of all leaves, or a tree like `tree_x` of either.
    """
    structure = jax.tree.structure(tree_x)
    if jax.tree_util.treedef_is_leaf(jax.tree.structure(condition)):
        condition = jax.tree.unflatten(structure, [condition] * structure.num_leaves)
    return _each(jnp.where, ("condition", "tree_x", "tree_y"), condition, tree_x, tree_y)


def conj(tree: Tree) -> Tree:
    """`tree` with its complex leaves conjugated."""
    return jax.tree.map(lambda x: jnp.conj(x) if jnp.iscomplexobj(x) else x, tree)


def real(tree: Tree) -> Tree:
    """The real part of `tree`."""
    return jax.tree.map(jnp.real, tree)


def without_those_of(tree: Tree, other: Tree) -> Tree:
    """`other` with `None` where `tree`, of the same structure but for that, has `None`."""
    is_none = lambda x: x is None
    leaves, structure = jax.tree.flatten(tree, is_leaf=is_none)
    try:
        others = structure.flatten_up_to(other)
    except ValueError:
        return other  # what does not go together is told by the checks of the caller
    return jax.tree.unflatten(structure, [None if x is None else y for x, y in zip(leaves, others, strict=True)])


def _each(rule: Callable[..., Any], names: tuple[str, ...], *trees: Tree) -> Tree:
    _, rows, structure = side_by_side(names, *trees)
    return jax.tree.unflatten(structure, [rule(*row) for row in rows])


def _total(*leaves):
    return _in_float32(lambda *xs: sum(xs), *leaves) if len(leaves) > 2 else sum(leaves)


def _add_scaled(x, scalar, y):
    return x + scalar * y


def _in_float32(rule: Callable[..., Any], *arrays: Any) -> Any:
    """`rule(*arrays)` in the dtype that the arrays promote to; computed in float32 where that is half precision."""
    dtype = jnp.result_type(*arrays)
    if not jnp.issubdtype(dtype, jnp.floating) or jnp.finfo(dtype).bits >= 32:
        return rule(*arrays)
    return rule(*(jnp.asarray(x).astype(jnp.float32) for x in arrays)).astype(dtype)


def _subtract_from(y, x):
    return x - y
