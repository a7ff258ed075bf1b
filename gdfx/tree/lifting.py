"""The engine that lifts a rule for one leaf to trees."""

import contextlib
import functools
import threading
from collections.abc import Callable, Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import typeof
from jax.core import Tracer, eval_jaxpr

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
    no slots; `None` for an update stands for the old one. It computes in float32 or wider: half-precision leaves arrive
    as float32, and hyperparameters and counts (any pytrees in `scalars`) as real scalars of the width of the leaf. What
    it returns is cast back to the dtypes that came in, so that the state after an update has the avals of the state
    before it.

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
    made = _foreseen.here() if n_returned else None
    run = _compiled(rule)
    rows: list[Any] = [None] * len(leaves)
    for block in blocks([(leaf, *(column[i] for column in columns)) for i, leaf in enumerate(leaves)]):
        arrays = [(leaves[i], [column[i] for column in columns]) for i in block]
        for i, row in zip(block, run(scalars, arrays, n_returned, made), strict=True):
            rows[i] = row if row[0] is not None else (leaves[i], *row[1:])
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
        kind = tuple([x.aval if isinstance(x, Tracer) else (typeof(x), getattr(x, "sharding", None)) for x in arrays])
        alike.setdefault((structure, kind), []).append(i)
    return [same[k : k + size] for same in alike.values() for k in range(0, len(same), size)]


@functools.lru_cache(maxsize=1024)
def _compiled(rule: Callable[..., Any]) -> Callable[..., Any]:
    # The rule is traced once for each distinct shape and dtype, and called once for a block of leaves alike: with many
    # leaves, tracing, lowering and what XLA does with calls would take longer than all the rest, and outside of any jit
    # the dispatch of calls longer than the arithmetic.
    @functools.partial(jax.jit, static_argnums=3, inline=True)
    def of_leaf(scalars, update, others, n_returned, made):
        real = _real_of(update, others)

        def new(scalars, update, others):
            wide = lambda x: x.astype(_with_real(x.dtype, real)) if _inexact(x) else x
            # All arrays have one width by now; what is left to promote is a real number times a complex leaf.
            # What is compiled apart in the rule, such as `jnp.where`, would be a call more for each leaf.
            with jax.numpy_dtype_promotion("standard"), jax.disable_jit():
                out = rule(*scalars, *jax.tree.map(wide, (update, *others)))
            out = out if n_returned else (out,)
            # The structures are compared too: a rule cannot change what a slot holds.
            kept = None if out[0] is None else update
            return jax.tree.map(lambda x, like: x.astype(like.dtype), tuple(out), (kept, *others[:n_returned]))

        if made is None:
            return new(scalars, update, others)
        update = jnp.where(made, update, jnp.zeros_like(update))
        return _of_selected(made, others[:n_returned], new, scalars, update, others)

    def run(scalars, rows, n_returned, made):
        scalars = jax.tree.map(functools.partial(_scalar, _real_of(*rows[0])), scalars)
        return [of_leaf(scalars, *row, n_returned, made) for row in rows]

    run.__name__ = rule.__name__
    return jax.jit(run, static_argnums=2)


class _Foreseen(threading.local):
    """What `foreseeing` was told in this thread, and in which trace: others cannot use its number."""

    made: Any = None
    trace: Any = None

    def here(self) -> Any:
        return self.made if self.made is not None and self.trace == _trace_state() else None


_foreseen = _Foreseen()


def _trace_state() -> Any:
    from jax.extend.core import get_opaque_trace_state  # here, as jax.extend takes long to import

    return get_opaque_trace_state()


@contextlib.contextmanager
def foreseeing(made: jax.Array) -> Iterator[None]:
    """Tells `leafwise` that new slots are kept, and updates made, only where the bool scalar `made` is true.

    To select them, with `jnp.where`, is left to the caller. Elsewhere the updates have no meaning: they are made of the
    slots that will have been selected, as XLA would otherwise write out the new slots, for the updates, beside these.
    """
    before = _foreseen.made, _foreseen.trace
    _foreseen.made, _foreseen.trace = made, _trace_state()
    try:
        yield
    finally:
        _foreseen.made, _foreseen.trace = before


def _of_selected(made: jax.Array, old: Any, fn: Callable[..., Any], *args: Any) -> Any:
    """`fn(*args)`, an update and new slots; but each slot, once known, is for the update `old` unless `made`."""
    from jax.extend.core import Literal

    closed, shapes = jax.make_jaxpr(fn, return_shape=True)(*args)
    jaxpr, arrays = closed.jaxpr, jax.tree.leaves(old)
    n_slots, unnamed = len(arrays), jaxpr.debug_info.with_unknown_names()
    kept = {id(v): x for v, x in zip(jaxpr.outvars[-n_slots:], arrays, strict=True)}
    new = dict(zip([*jaxpr.constvars, *jaxpr.invars], [*closed.consts, *jax.tree.leaves(args)], strict=True))
    selected = dict(new)
    for eqn in jaxpr.eqns:
        inputs = [v for v in eqn.invars if not isinstance(v, Literal)]
        one = jaxpr.replace(constvars=(), invars=inputs, outvars=eqn.outvars, eqns=[eqn], debug_info=unnamed)
        for v, x in zip(eqn.outvars, eval_jaxpr(one, (), *[selected[v] for v in inputs]), strict=True):
            new[v], selected[v] = x, jnp.where(made, x, kept[id(v)]) if id(v) in kept else x
    read = lambda values, outvars: [v.val if isinstance(v, Literal) else values[v] for v in outvars]
    out = [*read(selected, jaxpr.outvars[:-n_slots]), *read(new, jaxpr.outvars[-n_slots:])]
    return jax.tree.unflatten(jax.tree.structure(shapes), out)


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
