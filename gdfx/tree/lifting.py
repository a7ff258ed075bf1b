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
    run = _compiled(rule)
    selection = _current.selection
    made = selection._made if selection and n_returned else None
    if selection and n_returned:
        leaves = jax.tree.leaves(selection.or_zero(leaves))
    rows: list[Any] = [None] * len(leaves)
    for block in blocks([(leaf, *(column[i] for column in columns)) for i, leaf in enumerate(leaves)]):
        arrays = [(leaves[i], [column[i] for column in columns]) for i in block]
        for i, row in zip(block, run(scalars, arrays, n_returned, made), strict=True):
            rows[i] = row if row[0] is not None else (leaves[i], *row[1:])
            if selection and n_returned:
                selection._record(row[1:], [column[i] for column in columns[:n_returned]])
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
        return _only_where(made, new, others[:n_returned], scalars, update, others)

    def run(scalars, rows, n_returned, made):
        scalars = jax.tree.map(functools.partial(_scalar, _real_of(*rows[0])), scalars)
        return [of_leaf(scalars, *row, n_returned, made) for row in rows]

    run.__name__ = rule.__name__
    return jax.jit(run, static_argnums=2)


class Selection:
    """What `only_where` has `leafwise` select by, and what was selected."""

    def __init__(self, made: Any):
        self._made = made
        self._done: dict[int, tuple[Any, Any]] = {}  # what was selected, with what it is elsewhere; 0 is None

    def _record(self, new: Any, old: Any) -> None:
        self._done |= {id(x): (x, y) for x, y in zip(jax.tree.leaves(new), jax.tree.leaves(old), strict=True)}

    def or_zero(self, updates: Tree) -> Tree:
        """The updates where they are made, and 0 elsewhere."""

        def select(u):
            if self._done.get(id(u), (None, u))[1] is None:
                return u
            selected = jnp.where(self._made, u, jnp.zeros_like(u))
            self._done[id(selected)] = selected, None
            return selected

        return jax.tree.map(select, updates)

    def __call__(self, new: Tree, old: Tree) -> Tree:
        """`new` where the update is made, and `old` elsewhere."""
        is_done = lambda x, y: id(x) in self._done and self._done[id(x)][1] is y
        return jax.tree.map(lambda x, y: x if is_done(x, y) else jnp.where(self._made, x, y), new, old)


class _Current(threading.local):
    selection: Selection | None = None


_current = _Current()


@contextlib.contextmanager
def only_where(made: jax.Array) -> Iterator[Selection]:
    """Within it `leafwise` leaves slots as they are unless `made`, a bool scalar; the updates are then meaningless.

    It spares memory: XLA would write out the new slots for the updates, and again what is selected of them later. Here
    the updates are made of the selected slots. The `Selection` does the rest.
    """
    before, _current.selection = _current.selection, Selection(made)
    try:
        yield _current.selection
    finally:
        _current.selection = before


def _only_where(made: jax.Array, fn: Callable[..., Any], old: Any, *args: Any) -> Any:
    """`fn(*args)`, an update and slots, in which the slots are `old` unless `made`, and what is made of them too."""
    closed, shapes = jax.make_jaxpr(fn, return_shape=True)(*args)
    jaxpr, arrays = closed.jaxpr, [*closed.consts, *jax.tree.leaves(args)]
    inputs = [*jaxpr.constvars, *jaxpr.invars]
    n_slots = len(jax.tree.leaves(old))
    update, slots = jaxpr.outvars[:-n_slots], jaxpr.outvars[-n_slots:]
    new = _evaluate(jaxpr, jaxpr.eqns, inputs, slots, arrays)
    selected = [jnp.where(made, x, y) for x, y in zip(new, jax.tree.leaves(old), strict=True)]
    known = {id(v): x for v, x in zip(slots, selected, strict=True)}
    replaced = [v for e in jaxpr.eqns for v in e.outvars if len(e.outvars) == 1 and id(v) in known]
    names = {id(v) for v in replaced}
    rest = [e for e in jaxpr.eqns if not (len(e.outvars) == 1 and id(e.outvars[0]) in names)]
    out = _evaluate(jaxpr, rest, [*inputs, *replaced], update, [*arrays, *(known[id(v)] for v in replaced)])
    return jax.tree.unflatten(jax.tree.structure(shapes), [*out, *selected])


def _evaluate(jaxpr: Any, eqns: Any, inputs: Any, outputs: Any, arrays: list[Any]) -> list[Any]:
    part = jaxpr.replace(
        constvars=(), invars=inputs, outvars=outputs, eqns=eqns, debug_info=jaxpr.debug_info.with_unknown_names()
    )
    return eval_jaxpr(part, (), *arrays)


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
