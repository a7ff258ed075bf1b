"""The engine that lifts a rule for one leaf to trees."""

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import typeof
from jax.core import Tracer

from .checks import Tree, check_like, path_str
from .dtypes import _inexact, _real, _with_real


def leafwise(
    rule: Callable[..., Any],
    scalars: tuple[Any, ...],
    updates: Tree,
    *slots: Tree,
    other: tuple[Tree, ...] = (),
    read: tuple[Tree, ...] = (),
) -> Any:
    """Maps `rule(*scalars, update, *slots, *other, *read)`, written for one leaf, over trees shaped like `updates`.

    The rule returns the new update, the new slots and the new other slots: as a tuple, or just the update if there are
    no slots. It computes in float32 or wider: half-precision leaves arrive as float32, and hyperparameters and counts
    (any pytrees in `scalars`) as real scalars of the width of the leaf. What it returns is cast back to the dtypes that
    came in, so that the state after an update has the avals of the state before it.

    `slots` have the shapes of the updates. `other` hold, for each leaf of the updates, an array of another shape or a
    pytree of them: a number a leaf, the factors of a moment. `read` are shaped like the updates and not returned.

    The rule is compiled once for all leaves alike, so it must be a function of a module, not one made for each call.

    Raises:
        ValueError: a tree has another structure than `updates`, or a leaf another shape; the path is named.
    """
    leaves, structure = jax.tree.flatten(updates)
    for tree in (*slots, *read):
        check_like(updates, tree, "updates", "the state or params that go with them", same_kind=False)
    columns = [jax.tree.leaves(tree) for tree in slots]
    columns += [_up_to(structure, updates, tree) for tree in other]
    columns += [jax.tree.leaves(tree) for tree in read]
    n_returned = len(slots) + len(other)
    run = _compiled(rule)
    # Traced scalars are computed before the leaves: XLA:CPU would fuse what they come from into every leaf.
    scalars = jax.tree.map(lambda x: jax.lax.optimization_barrier(x) if isinstance(x, Tracer) else x, scalars)
    rows: list[Any] = [None] * len(leaves)
    for block in blocks([(leaf, *(column[i] for column in columns)) for i, leaf in enumerate(leaves)]):
        arrays = [(leaves[i], [column[i] for column in columns]) for i in block]
        for i, row in zip(block, run(scalars, arrays, n_returned), strict=True):
            rows[i] = row
    new = [jax.tree.unflatten(structure, [row[k] for row in rows]) for k in range(1 + n_returned)]
    return tuple(new) if n_returned else new[0]


def _up_to(structure: Any, updates: Tree, tree: Tree) -> list[Any]:
    """What `tree` holds at each leaf of `updates`."""
    try:
        return structure.flatten_up_to(tree)
    except ValueError:
        pass  # raised below, with the cause and without the traceback inside JAX
    paths = ", ".join(path_str(path) for path, _ in jax.tree_util.tree_leaves_with_path(updates)[:8])
    raise ValueError(
        f"the updates, with leaves at {paths}, do not go with the state, {jax.tree.structure(tree)}. "
        "Were the gradients taken with respect to other params?"
    )


def blocks(rows: list[Any], size: int = 32) -> list[list[int]]:
    """The positions of rows alike in structure, shapes, dtypes and placement, in lists of at most `size`."""
    alike: dict[Any, list[int]] = {}
    for i, row in enumerate(rows):
        arrays, structure = jax.tree.flatten(row)
        kind = tuple([(typeof(x), None if isinstance(x, Tracer) else getattr(x, "sharding", None)) for x in arrays])
        alike.setdefault((structure, kind), []).append(i)
    return [same[k : k + size] for same in alike.values() for k in range(0, len(same), size)]


@functools.lru_cache(maxsize=1024)
def _compiled(rule: Callable[..., Any]) -> Callable[..., Any]:
    # The rule is traced once for each distinct shape and dtype, and called once for a block of leaves alike: with many
    # leaves, tracing, lowering and what XLA does with calls would take longer than all the rest, and outside of any jit
    # the dispatch of calls longer than the arithmetic.
    @functools.partial(jax.jit, static_argnums=3, inline=True)
    def of_leaf(scalars, update, others, n_returned):
        real = _real_of(update, others)
        wide = lambda x: x.astype(_with_real(x.dtype, real)) if _inexact(x) else x
        # All arrays have one width by now; what is left to promote is a real number times a complex leaf.
        # What is compiled apart in the rule, such as `jnp.where`, would be a call more for each leaf.
        with jax.numpy_dtype_promotion("standard"), jax.disable_jit():
            out = rule(*scalars, *jax.tree.map(wide, (update, *others)))
        out = out if n_returned else (out,)
        # The structures are compared too: a rule cannot change what a slot holds.
        return jax.tree.map(lambda x, like: x.astype(like.dtype), tuple(out), (update, *others[:n_returned]))

    def run(scalars, rows, n_returned):
        scalars = jax.tree.map(functools.partial(_scalar, _real_of(*rows[0])), scalars)
        return [of_leaf(scalars, *row, n_returned) for row in rows]

    run.__name__ = rule.__name__
    return jax.jit(run, static_argnums=2)


def _real_of(update: Any, others: Any) -> np.dtype:
    """The dtype to compute in: float32, or float64 where any array has it."""
    arrays = [x for x in jax.tree.leaves((update, others)) if _inexact(x)]
    return np.dtype(np.float64 if any(_real(x).itemsize == 8 for x in arrays) else np.float32)


def _scalar(real: np.dtype, value: Any) -> Any:
    dtype = jnp.result_type(value)
    if not (jnp.issubdtype(dtype, jnp.signedinteger) or jnp.issubdtype(dtype, jnp.floating)):
        return value  # flags and keys
    if jnp.ndim(value):
        raise ValueError(
            f"a hyperparameter has shape {jnp.shape(value)}, expected a scalar. To run one optimizer for each value, "
            "put the update under jax.vmap, or use gdfx.sweep"
        )
    return jnp.asarray(value).astype(real)
