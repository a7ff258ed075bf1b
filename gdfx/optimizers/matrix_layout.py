"""Leaves as matrices: which axes of a leaf are the rows and which the columns."""

import math
from collections.abc import Callable
from typing import Any, NamedTuple, TypeAlias

import jax
import jax.numpy as jnp

from ..core import Tree
from ..pytrees import Frozen
from ..tree import path_str


class GaLoreDimensionNumbers(NamedTuple):
    """The axes of a leaf that are the rows, and those that are the columns, of a matrix; over others it is a stack.

    `blocks` cut that into so many equal parts of its rows, and of its columns, each a matrix of its own: `(1, heads)`
    for a fused kernel `[in, heads * head_dim]`, `(heads, 1)` for one `[heads * head_dim, out]`.
    """

    reduction_axis: int | tuple[int, ...] = 0
    output_axis: int | tuple[int, ...] = 1
    blocks: tuple[int, int] = (1, 1)


class MuonDimensionNumbers(GaLoreDimensionNumbers):
    """The axes of a leaf that are the rows, and those that are the columns, of a matrix; over others it is a stack.

    `blocks` cut that into so many equal parts of its rows, and of its columns, each a matrix of its own: `(1, heads)`
    for a fused kernel `[in, heads * head_dim]`, `(heads, 1)` for one `[heads * head_dim, out]`.
    """


DimensionNumbers: TypeAlias = GaLoreDimensionNumbers | Callable[[Tree], Tree] | Any
"""Numbers for all leaves of two or more axes, a pytree of them with None for leaves to be left whole, or a function
from the params to one; None is those of a kernel `[in, out]` for all leaves of two axes. In a pytree, what stands at an
inner node goes for all leaves below."""


class MatrixLayout(NamedTuple):
    """How a leaf is a stack of matrices, `[*stack, *blocks, rows, columns]`; mostly the stack has no axes."""

    order: tuple[int, ...]  # the axes of the leaf: those of the stack, of the rows, of the columns
    ordered: tuple[int, ...]  # its shape in that order
    matrix: tuple[int, ...]  # the shape as a stack of matrices
    blocks: tuple[int, ...]  # how many blocks there are of rows, and of columns; () where all is one

    def to_matrix(self, leaf: jax.Array) -> jax.Array:
        """The leaf as a stack of matrices."""
        if not self.blocks:
            return jnp.transpose(leaf, self.order).reshape(self.matrix)
        *stack, i, j, m, n = self.matrix
        x = jnp.transpose(unsharded(self, leaf), self.order)
        return jnp.swapaxes(x.reshape(*stack, i, m, j, n), -3, -2)

    def to_leaf(self, matrix: jax.Array) -> jax.Array:
        """A stack of matrices as the leaf."""
        matrix = jnp.swapaxes(matrix, -3, -2) if self.blocks else matrix
        return jnp.transpose(matrix.reshape(self.ordered), [self.order.index(i) for i in range(len(self.order))])


def matrix_layouts(numbers: DimensionNumbers, tree: Tree, *, wide: bool = False) -> list[MatrixLayout | None]:
    """The layout of each leaf of `tree`, None for one that is no matrix or has no elements.

    With `wide`, rows and columns change places where there are more rows than columns.

    Raises:
        ValueError: `numbers` do not go with the tree, or with the shape of a leaf; the path is named.
    """
    numbers = numbers.value if isinstance(numbers, Frozen) else numbers
    numbers = numbers(tree) if callable(numbers) else numbers
    leaves, structure = jax.tree_util.tree_flatten_with_path(tree)
    if numbers is None:
        each = [GaLoreDimensionNumbers() if jnp.ndim(x) == 2 else None for _, x in leaves]
    elif hasattr(numbers, "reduction_axis"):
        each = [numbers if jnp.ndim(x) >= 2 else None for _, x in leaves]
    else:
        each = _spread(numbers, tree, structure)
    return [_layout(path_str(path), jnp.shape(x), pair, wide) for (path, x), pair in zip(leaves, each, strict=True)]


def map_matrices(
    fn: Callable[[MatrixLayout, jax.Array], jax.Array], layouts: list[MatrixLayout | None], tree: Tree
) -> Tree:
    """`fn(layout, leaf)` for the leaves that have a layout; the others stay."""
    leaves, structure = jax.tree.flatten(tree)
    return structure.unflatten([fn(y, x) if y else x for y, x in zip(layouts, leaves, strict=True)])


def only_matrices(transform: Any, tree: Tree) -> list[MatrixLayout | None]:
    """The layouts by the `weight_dimension_numbers` of `transform`, which raises `ValueError` for other leaves."""
    layouts, name = matrix_layouts(transform.weight_dimension_numbers, tree), type(transform).__name__
    for (path, leaf), layout in zip(jax.tree_util.tree_leaves_with_path(tree), layouts, strict=True):
        if layout is None and leaf.size:
            raise ValueError(
                f"{name}: the leaf at {path_str(path)}, of the shape {leaf.shape}, is no matrix. Give it dimension "
                "numbers, or to another optimizer, as gdfx.muon and gdfx.partition do"
            )
    return layouts


def unsharded(layout: MatrixLayout, leaf: jax.Array) -> jax.Array:
    """The leaf with each of its matrices on one device."""
    axes = jax.typeof(leaf).sharding.spec
    if not any(axes):
        return leaf
    stack = layout.order[: len(layout.matrix) - len(layout.blocks) - 2]
    return jax.sharding.reshard(leaf, jax.P(*(axis if i in stack else None for i, axis in enumerate(axes))))


def placed_like(x: jax.Array, leaf: jax.Array) -> jax.Array:
    """`x` as `leaf`, of its shape, lies on the explicit axes of a mesh."""
    axes = jax.typeof(leaf).sharding.spec
    return jax.sharding.reshard(x, axes) if any(axes) else x


def split_matrices(layouts: list[MatrixLayout | None], tree: Tree) -> tuple[Tree, Tree]:
    """The matrices, and the other leaves: `tree` twice, with `None` in place of what is in the other one.

    Of a tree that is one leaf the other is `()`, as `None` would be no tree.
    """
    leaves, structure = jax.tree.flatten(tree)
    if structure == jax.tree.structure(0):
        return (tree, ()) if layouts[0] else ((), tree)
    pairs = [(x, None) if y else (None, x) for y, x in zip(layouts, leaves, strict=True)]
    return structure.unflatten([x for x, _ in pairs]), structure.unflatten([x for _, x in pairs])


def join_matrices(layouts: list[MatrixLayout | None], matrices: Tree, others: Tree, like: Tree) -> Tree:
    """The inverse of `split_matrices`."""
    mine, rest = iter(jax.tree.leaves(matrices)), iter(jax.tree.leaves(others))
    return jax.tree.structure(like).unflatten([next(mine if y else rest) for y in layouts])


def _spread(numbers: Tree, tree: Tree, structure: Any) -> list[Any]:
    """The pair, or None, of each leaf."""
    each = []
    collect = lambda pair, below: each.extend([pair] * len(jax.tree.leaves(below)))
    try:
        jax.tree.map(collect, numbers, tree, is_leaf=lambda x: x is None or hasattr(x, "reduction_axis"))
        return each
    except ValueError:
        pass  # raised below, without the traceback inside JAX
    raise ValueError(
        f"the dimension numbers are {numbers}, expected MuonDimensionNumbers, GaLoreDimensionNumbers or None for each "
        f"leaf of {structure}, or for inner nodes of it"
    )


def _layout(path: str, shape: tuple[int, ...], pair: Any, wide: bool) -> MatrixLayout | None:
    if pair is None or not math.prod(shape):
        return None
    if not hasattr(pair, "reduction_axis"):
        raise ValueError(
            f"the dimension numbers at {path} are {pair}, expected MuonDimensionNumbers(rows, columns) or None"
        )
    rows, columns = (_axes(axes, len(shape)) for axes in (pair.reduction_axis, pair.output_axis))
    named = {*rows, *columns}
    if not rows or not columns or len(named) < len(rows + columns) or not named <= {*range(len(shape))}:
        raise ValueError(f"the dimension numbers at {path} are {pair}, expected different axes of the shape {shape}")
    m, n = (math.prod(shape[i] for i in axes) for axes in (rows, columns))
    blocks = getattr(pair, "blocks", (1, 1))  # which optax's have not
    if not _divide(blocks, (m, n)):
        expected = f"two numbers of blocks that divide its {m} rows and {n} columns"
        raise ValueError(f"the dimension numbers at {path} are {pair}, expected {expected}")
    i, j = blocks
    m, n = m // i, n // j
    if wide and m > n:
        rows, columns, i, j, m, n = columns, rows, j, i, n, m
    stack = tuple(i for i in range(len(shape)) if i not in named)
    order = stack + rows + columns
    cut = (i, j) if i * j > 1 else ()
    matrix = (*(shape[i] for i in stack), *cut, m, n)
    return MatrixLayout(order, tuple(shape[i] for i in order), matrix, cut)


def _divide(blocks: Any, sizes: tuple[int, int]) -> bool:
    are_two = isinstance(blocks, tuple | list) and len(blocks) == 2 and all(isinstance(n, int) for n in blocks)
    return are_two and all(n > 0 and size % n == 0 for n, size in zip(blocks, sizes, strict=True))


def _axes(axes: Any, ndim: int) -> tuple[int, ...]:
    return tuple(i + ndim if i < 0 else i for i in (axes if isinstance(axes, tuple | list) else (axes,)))
