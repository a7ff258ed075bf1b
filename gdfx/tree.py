"""Pytrees: the engine that lifts a rule for one leaf to trees, arithmetic that is safe to differentiate, and checks."""

import functools
from collections.abc import Callable
from typing import Any, TypeAlias

import jax
import jax.numpy as jnp
import numpy as np

Tree: TypeAlias = Any


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
    rows = [run(scalars, leaf, [column[i] for column in columns], n_returned) for i, leaf in enumerate(leaves)]
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


@functools.lru_cache(maxsize=1024)
def _compiled(rule: Callable[..., Any]) -> Callable[..., Any]:
    # An inner jit: the rule is traced once for each distinct shape and dtype rather than once a leaf, and outside
    # of any jit the update of a leaf is one call rather than one an operation.
    def run(scalars, update, others, n_returned):
        arrays = [x for x in jax.tree.leaves((update, others)) if _inexact(x)]
        real = np.dtype(np.float64 if any(_real(x).itemsize == 8 for x in arrays) else np.float32)
        wide = lambda x: x.astype(_with_real(x.dtype, real)) if _inexact(x) else x
        # All arrays have one width by now; what is left to promote is a real number times a complex leaf.
        with jax.numpy_dtype_promotion("standard"):
            out = rule(*jax.tree.map(functools.partial(_scalar, real), scalars), *jax.tree.map(wide, (update, *others)))
        out = out if n_returned else (out,)
        # The structures are compared too: a rule cannot change what a slot holds.
        return jax.tree.map(lambda x, like: x.astype(like.dtype), tuple(out), (update, *others[:n_returned]))

    run.__name__ = rule.__name__
    return jax.jit(run, static_argnums=3)


def _inexact(x: Any) -> bool:
    return jnp.issubdtype(jnp.result_type(x), jnp.inexact)


def _real(x: Any) -> np.dtype:
    """The dtype of the real part of `x`."""
    return jnp.finfo(x.dtype).dtype


def _with_real(dtype: Any, real: np.dtype) -> np.dtype:
    """`dtype`, real or complex, with its real part in `real`."""
    complex_of = {4: np.complex64, 8: np.complex128}
    return np.dtype(complex_of[real.itemsize]) if jnp.issubdtype(dtype, jnp.complexfloating) else real


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


def zeros_like(params: Tree, dtype: Any = None, *, real: bool = False, fill: Any = 0) -> Tree:
    """Slots for `params`, filled with `fill`: in `dtype` if given, otherwise as wide as the params, at least float32.

    `real` makes the slots of complex leaves real, as for second moments.
    """
    check_params(params)

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

    return jax.tree_util.tree_map_with_path(slot, params)


def copies(params: Tree) -> Tree:
    """Slots that hold `params`, in buffers of their own, as wide as the params and at least float32."""
    check_params(params)
    return jax.tree.map(lambda p: jnp.array(p, copy=True), widen(params))


def real_dtype(params: Tree) -> np.dtype:
    """The dtype for numbers about all of `params`: float32, or float64 if that is what the widest leaf is in."""
    widths = [_real(jnp.asarray(p)).itemsize for p in jax.tree.leaves(params)]
    return np.dtype(np.float64 if max(widths, default=4) == 8 else np.float32)


def widen(tree: Tree) -> Tree:
    """`tree` with its half-precision leaves as float32."""

    def wide(x):
        return x.astype(jnp.float32) if _inexact(x) and _real(x).itemsize < 4 else x

    return jax.tree.map(wide, tree)


def cast_like(tree: Tree, like: Tree) -> Tree:
    """`tree` with the dtypes of `like`."""
    return jax.tree.map(lambda x, y: x.astype(y.dtype), tree, like)


def difference(tree: Tree, other: Tree) -> Tree:
    """`tree - other`, in the dtypes of `other`."""
    return leafwise(_subtract_from, (), other, read=(tree,))


def _subtract_from(y, x):
    return x - y


def norm(tree: Tree) -> jax.Array:
    """The L2 norm of all leaves taken as one vector: a real scalar, summed in float32 or wider; 0 for no leaves.

    Its gradient at 0 is 0.
    """
    return sqrt(jnp.sum(jnp.abs(_terms(_sum_of_squares, tree))))  # the abs: see _terms


def vdot(tree: Tree, other: Tree) -> jax.Array:
    """The inner product of the leaves taken as real vectors, the real part of `conj(tree) * other` summed.

    Of a gradient as `jax.grad` gives it and a direction in the params it is, with the gradient conjugated (`conj`), the
    slope of the loss along that direction.
    """
    return jnp.sum(_terms(_sum_of_products, tree, other))


def conj(tree: Tree) -> Tree:
    """`tree` with its complex leaves conjugated."""
    return jax.tree.map(lambda x: jnp.conj(x) if jnp.iscomplexobj(x) else x, tree)


def sum_of_abs(tree: Tree) -> jax.Array:
    """The L1 norm of all leaves taken as one vector: a real scalar, summed in float32 or wider; 0 for no leaves."""
    return jnp.sum(jnp.abs(_terms(_sum_of_abs, tree)))  # the abs: see _terms


def _terms(of_leaf: Callable[..., jax.Array], *trees: Tree) -> jax.Array:
    """A number for each leaf, stacked.

    XLA turns the sum of a stack into a chain of additions, which XLA:CPU would fuse into each leaf that the sum scales:
    300 leaves took 100 seconds to compile. An abs in between, which changes nothing for norms, brings that to 5.
    """
    columns = [jax.tree.leaves(widen(tree)) for tree in trees]
    terms = [of_leaf(*row) for row in zip(*columns, strict=True)]
    wide = max((x.dtype for x in terms), key=lambda dtype: dtype.itemsize, default=np.dtype(np.float32))
    return jnp.stack([x.astype(wide) for x in terms]) if terms else jnp.zeros((0,), wide)


@jax.jit
def _sum_of_squares(x: jax.Array) -> jax.Array:
    return jnp.sum(abs2(x))


@jax.jit
def _sum_of_products(x: jax.Array, y: jax.Array) -> jax.Array:
    wide = jnp.promote_types(x.dtype, y.dtype)
    return jnp.sum((jnp.conj(x).astype(wide) * y.astype(wide)).real)


@jax.jit
def _sum_of_abs(x: jax.Array) -> jax.Array:
    return jnp.sum(absolute(x))


# The rest is for single leaves.


def abs2(x: jax.Array) -> jax.Array:
    """The squared absolute value, element-wise: real also where `x` is complex."""
    return jnp.square(x.real) + jnp.square(x.imag) if jnp.iscomplexobj(x) else jnp.square(x)


def sqrt(x: jax.Array) -> jax.Array:
    """The square root, 0 at or below 0: its slope there is 0, not infinity, so that hypergradients stay finite."""
    positive = ~(x <= 0)  # NaN stays NaN
    return jnp.where(positive, jnp.sqrt(jnp.where(positive, x, jnp.ones_like(x))), jnp.zeros_like(x))


def absolute(x: jax.Array) -> jax.Array:
    """The absolute value, element-wise: real also where `x` is complex, and then with slope 0 at 0."""
    return sqrt(abs2(x)) if jnp.iscomplexobj(x) else jnp.abs(x)


def ratio(x: jax.Array, y: jax.Array) -> jax.Array:
    """`x / y`, and 0 where `y` is 0, with finite derivatives; `y` is not negative."""
    positive = ~(y <= 0)  # NaN stays NaN
    return jnp.where(positive, x / jnp.where(positive, y, jnp.ones_like(y)), jnp.zeros_like(y))


def debias(decay: jax.Array, count: jax.Array) -> jax.Array:
    """`1 - decay**count`, the total weight of an average from 0 after `count` terms.

    Near `decay` 1 it is computed from `1 - decay`, the weight of the newest term, so that rounding of the two cancels.
    """
    near_one = decay > 0.5
    safe = jnp.where(near_one, decay, jnp.ones_like(decay))
    from_weight = -jnp.expm1(count * jnp.log1p(-(1 - safe)))
    return jnp.where(near_one, from_weight, 1 - jnp.where(near_one, jnp.zeros_like(decay), decay) ** count)


def path_str(path: tuple[Any, ...]) -> str:
    """A path of a leaf as users write it, `['layer']['kernel']`; `the root` for a tree that is one leaf."""
    return jax.tree_util.keystr(path) or "the root"


def check_params(params: Tree) -> None:
    """Raises `TypeError`, naming the path, for a leaf that gradients do not exist for."""
    for path, leaf in jax.tree_util.tree_leaves_with_path(params):
        dtype = getattr(leaf, "dtype", None)
        if dtype is None or not jnp.issubdtype(dtype, jnp.inexact):
            found = f"dtype {dtype}" if dtype is not None else f"type {type(leaf).__name__}"
            raise TypeError(
                f"params{jax.tree_util.keystr(path)} has {found}, expected an array of floats (or complex numbers). "
                "Integers, keys and settings have no gradient: keep them outside params"
            )


def check_like(tree: Tree, like: Tree, name: str, like_name: str, *, same_kind: bool = True) -> None:
    """Raises, naming the path, where `tree` has another structure or shape than `like`, or no array of floats.

    With `same_kind`, complex leaves may only stand where those of `like` are complex.
    """
    if jax.tree.structure(tree) != jax.tree.structure(like):
        _raise_structure(tree, like, name, like_name)
    for (path, x), y in zip(jax.tree_util.tree_leaves_with_path(tree), jax.tree.leaves(like), strict=True):
        at = f"at {path_str(path)}, {name}"
        if not hasattr(x, "dtype") or not jnp.issubdtype(x.dtype, jnp.inexact):
            found = f"dtype {x.dtype}" if hasattr(x, "dtype") else f"type {type(x).__name__}"
            raise TypeError(f"{at} have {found}, expected an array of floats. Are the params there integers?")
        if jnp.shape(x) != jnp.shape(y):
            raise ValueError(
                f"{at} have shape {jnp.shape(x)}, expected {jnp.shape(y)} as in {like_name}; nothing is broadcast. "
                "Were the gradients summed or averaged over an axis, or taken with respect to other params?"
            )
        if same_kind and jnp.iscomplexobj(x) and not jnp.iscomplexobj(y):
            raise TypeError(f"{at} have dtype {x.dtype}, expected a real one, as {like_name} have {y.dtype}")


def _raise_structure(tree: Tree, like: Tree, name: str, like_name: str) -> None:
    paths, like_paths = ([path_str(path) for path, _ in jax.tree_util.tree_leaves_with_path(t)] for t in (tree, like))
    cause = "Were the gradients taken with respect to another argument of the loss, or to other params?"
    missing = [p for p in like_paths if p not in paths]
    surplus = [p for p in paths if p not in like_paths]
    if missing or surplus:
        parts = [f"{name} have no leaf at {', '.join(missing[:3])}"] if missing else []
        parts += [f"{name} have a leaf at {', '.join(surplus[:3])} that is not there in {like_name}"] if surplus else []
        raise ValueError(f"{name} and {like_name} have different structures: {'; '.join(parts)}. {cause}")
    raise ValueError(
        f"{name} and {like_name} have different structures: found {jax.tree.structure(tree)}, expected "
        f"{jax.tree.structure(like)}. {cause}"
    )
