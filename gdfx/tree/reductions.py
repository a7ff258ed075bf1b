"""Numbers about whole trees."""

import functools
import operator
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike

from .checks import Tree, side_by_side
from .dtypes import widen
from .lifting import blocks
from .numerics import abs2, absolute, sqrt


def norm(tree: Tree, ord: int | float | str | None = None, squared: bool = False) -> jax.Array:
    """The L2 norm of all leaves taken as one vector: a real scalar, summed in float32 or wider; 0 for no leaves.

    `ord` is None or 2 for that norm, 1 for the sum and infinity (also as "inf") for the largest of the absolute values.
    With `squared` it is the square. The gradient of the L2 norm at 0 is 0.
    """
    if ord is None or ord == 2:
        total = jnp.sum(jnp.abs(_terms(_square, operator.add, jnp.sum, tree)))  # the abs: see _terms
        return total if squared else sqrt(total)
    if ord == 1:
        size = sum_of_abs(tree)
    elif ord in (np.inf, "inf", "infinity"):
        size = jnp.max(_terms(_size, jnp.maximum, _largest, tree), initial=0)
    else:
        raise ValueError(f"norm: ord is {ord!r}, expected None, 1, 2 or infinity")
    return jnp.square(size) if squared else size


def sum_of_abs(tree: Tree) -> jax.Array:
    """The L1 norm of all leaves taken as one vector: a real scalar, summed in float32 or wider; 0 for no leaves."""
    return jnp.sum(jnp.abs(_terms(_size, operator.add, jnp.sum, tree)))  # the abs: see _terms


def vdot(tree_x: Tree, tree_y: Tree, *, real: bool = True) -> jax.Array:
    """The inner product of the leaves taken as real vectors, the real part of `conj(tree_x) * tree_y` summed.

    With `real=False` the imaginary part is kept where there are complex leaves, as in `jnp.vdot`. Half-precision leaves
    are summed in float32.

    Of a gradient as `jax.grad` gives it and a direction in the params it is, with the gradient conjugated (`conj`), the
    slope of the loss along that direction.
    """
    side_by_side(("tree_x", "tree_y"), tree_x, tree_y, scalars=False)
    return jnp.sum(_terms(_real_product if real else _product, operator.add, jnp.sum, tree_x, tree_y))


def sum(tree: Tree, associative_reduction: bool = False) -> jax.Array:
    """The sum of all elements, a scalar: half-precision leaves are summed in float32; 0 for no leaves.

    With `associative_reduction` the sums of the leaves are added in pairs, and the pairs in pairs, and so on.
    """
    terms = _stack([_sum_of_leaf(x) for x in jax.tree.leaves(widen(jax.tree.map(jnp.asarray, tree)))])
    if associative_reduction:
        return jax.tree.reduce_associative(operator.add, list(terms), identity=jnp.zeros((), terms.dtype))
    return jnp.sum(terms)


def max(tree: Tree) -> jax.Array:
    """The largest element, a scalar in the dtype that the leaves promote to; minus infinity for no elements."""
    terms = _stack([jnp.max(x) for x in jax.tree.leaves(tree) if jnp.size(x)])
    return jnp.max(terms) if terms.size else jnp.asarray(-jnp.inf, terms.dtype)


def min(tree: Tree) -> jax.Array:
    """The smallest element, a scalar in the dtype that the leaves promote to; infinity for no elements."""
    terms = _stack([jnp.min(x) for x in jax.tree.leaves(tree) if jnp.size(x)])
    return jnp.min(terms) if terms.size else jnp.asarray(jnp.inf, terms.dtype)


def size(tree: Tree) -> int:
    """The number of elements of all leaves."""
    return int(np.sum([jnp.size(leaf) for leaf in jax.tree.leaves(tree)], dtype=np.int64))


def allclose(a: Tree, b: Tree, rtol: ArrayLike = 1e-05, atol: ArrayLike = 1e-08, equal_nan: bool = False) -> jax.Array:
    """Whether `abs(a - b) <= atol + rtol * abs(b)` for all elements, a bool scalar: true for no leaves.

    Structures and shapes must agree, but for scalars in place of leaves; dtypes may differ.
    """
    _, rows, _ = side_by_side(("a", "b"), a, b)
    with jax.numpy_dtype_promotion("standard"):
        close = [jnp.allclose(x, y, rtol=rtol, atol=atol, equal_nan=equal_nan) for x, y in rows]
    return jnp.all(jnp.stack(close)) if close else jnp.ones((), bool)


_SMALL = 2**14  # elements


def _terms(
    of_element: Callable[..., jax.Array],
    joined: Callable[[jax.Array, jax.Array], jax.Array],
    reduced: Callable[[jax.Array], jax.Array],
    *trees: Tree,
) -> jax.Array:
    """Numbers that stand for the leaves, stacked: of `of_element` on each, `reduced`.

    Small leaves of one shape are `joined`, element by element, and reduced together: XLA:CPU takes three programs to
    reduce a small array, and an array of its size, which took as long as all else in trees of 1000 leaves.

    XLA turns the sum of a stack into a chain of additions, which XLA:CPU would fuse into each leaf that the sum scales:
    300 leaves took 100 seconds to compile. An abs in between, which changes nothing for norms, brings that to 5.
    """
    rows = list(zip(*(jax.tree.leaves(widen(jax.tree.map(jnp.asarray, tree))) for tree in trees), strict=True))
    terms = []
    for block in blocks(rows, size=8):
        parts = [block] if rows[block[0]][0].size <= _SMALL else [[i] for i in block]
        terms += [_reduced(of_element, joined, reduced, [rows[i] for i in part]) for part in parts]
    return _stack(terms)


@functools.partial(jax.jit, static_argnums=(0, 1, 2))
def _reduced(of_element, joined, reduced, rows):
    return reduced(functools.reduce(joined, [of_element(*row) for row in rows]))


def _stack(terms: list[jax.Array]) -> jax.Array:
    """Scalars as one array, in the dtype that they promote to; in float32 for none."""
    if not terms:
        return jnp.zeros((0,), jnp.float32)
    wide = _common_dtype(terms)
    return jnp.stack([x.astype(wide) for x in terms])


def _common_dtype(arrays: list[jax.Array]) -> np.dtype:
    with jax.numpy_dtype_promotion("standard"):  # where the terms differ, no leaf changes: only the sum is wider
        return functools.reduce(jnp.promote_types, [x.dtype for x in arrays])


def _square(x: jax.Array) -> jax.Array:
    return abs2(_as_float(x))


def _size(x: jax.Array) -> jax.Array:
    return absolute(_as_float(x))


def _product(x: jax.Array, y: jax.Array) -> jax.Array:
    wide = _common_dtype([x, y])
    return jnp.conj(x).astype(wide) * y.astype(wide)


def _real_product(x: jax.Array, y: jax.Array) -> jax.Array:
    return _product(x, y).real


def _largest(x: jax.Array) -> jax.Array:
    return jnp.max(x, initial=0)


@jax.jit
def _sum_of_leaf(x: jax.Array) -> jax.Array:
    return jnp.sum(x)


def _as_float(x: jax.Array) -> jax.Array:
    return x if jnp.issubdtype(x.dtype, jnp.inexact) else x.astype(float)
