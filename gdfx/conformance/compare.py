"""Comparisons that tell, in their error, at which leaf and how two trees differ."""

import dis
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from ..core import Tree
from ..tree import path_str


def trees_close(found: Tree, expected: Tree, rtol: float = 1e-6, atol: float = 0.0) -> None:
    """Raises `AssertionError`, naming the path of the worst leaf, unless the trees hold the same numbers.

    A leaf may deviate by `atol` plus `rtol` times its largest element in `expected`; dtypes may differ. NaNs are equal
    to nothing, infinities only to themselves.
    """
    structures = jax.tree.structure(found), jax.tree.structure(expected)
    if structures[0] != structures[1]:
        raise AssertionError(f"the trees have different structures: found {structures[0]}, expected {structures[1]}")
    worst, told = 1.0, ""
    pairs = zip(jax.tree_util.tree_leaves_with_path(found), jax.tree.leaves(expected), strict=True)
    for (path, x), y in pairs:
        x, y = numbers_of(x), numbers_of(y)
        if x.shape != y.shape:
            raise AssertionError(f"at {path_str(path)}: found shape {x.shape}, expected {y.shape}")
        if not x.size:
            continue
        size = np.max(np.abs(y), where=np.isfinite(y), initial=0.0)
        with np.errstate(all="ignore"):
            off = np.where(x == y, 0.0, np.abs(x - y))
            ratio = np.nan_to_num(off / (atol + rtol * size), nan=np.inf)
        ratio = np.where(off == 0, 0.0, ratio)
        where = np.unravel_index(np.argmax(ratio), ratio.shape)
        if ratio[where] > worst:
            worst = ratio[where]
            index = f"[{', '.join(map(str, where))}]" if where else ""
            told = f"at {path_str(path)}{index}: found {x[where]}, expected {y[where]}: off by {off[where]:.3g}, "
            told += f"allowed is {atol + rtol * size:.3g}"
    if told:
        raise AssertionError(told)


def numbers_of(leaf: Any) -> np.ndarray:
    """The leaf in NumPy, in float64 or complex128; the words of a key."""
    if jnp.issubdtype(getattr(leaf, "dtype", bool), jax.dtypes.prng_key):
        leaf = jax.random.key_data(leaf)
    array = np.asarray(leaf)
    return array.astype(np.complex128 if jnp.iscomplexobj(array) else np.float64)


def expect_avals(name: str, found: Tree, expected: Tree, weak: bool = True) -> None:
    """Raises where structure, shape, dtype or, if asked for, weak type differ."""
    if jax.tree.structure(found) != jax.tree.structure(expected):
        raise AssertionError(
            f"{name} has another structure: found {jax.tree.structure(found)}, expected {jax.tree.structure(expected)}"
        )
    pairs = zip(jax.tree_util.tree_leaves_with_path(found), jax.tree.leaves(expected), strict=True)
    for (path, x), y in pairs:
        seen, wanted = _aval(x, weak), _aval(y, weak)
        if seen != wanted:
            raise AssertionError(f"{name}{jax.tree_util.keystr(path)}: found {seen}, expected {wanted}")


def _aval(x: Any, weak: bool) -> str:
    if not hasattr(x, "weak_type"):
        x = jax.typeof(x)
    is_weak = weak and getattr(x, "weak_type", False)
    return f"{'weakly typed ' if is_weak else ''}{x.dtype}[{','.join(map(str, x.shape))}]"


def expect_finite(name: str, tree: Tree) -> None:
    """Raises where a leaf is not finite."""
    for path, leaf in jax.tree_util.tree_leaves_with_path(tree):
        numbers = numbers_of(leaf)
        if not np.isfinite(numbers).all():
            bad = numbers[~np.isfinite(numbers)].ravel()[0]
            raise AssertionError(f"{name}{jax.tree_util.keystr(path)}: found {bad}, expected finite numbers")


def close(name: str, found: Tree, expected: Tree, rtol: float) -> None:
    """As `trees_close`, with the name of the tree in front of the error."""
    try:
        trees_close(found, expected, rtol)
    except AssertionError as error:
        raise AssertionError(f"{name} {error}") from None


def is_named(error: Exception) -> bool:
    """Whether the transform itself raised this `ValueError` or `TypeError`, rather than JAX or Python underneath."""
    trace = error.__traceback__
    while trace is not None and trace.tb_next is not None:
        trace = trace.tb_next
    if trace is None or not isinstance(error, ValueError | TypeError) or not str(error):
        return False
    package = trace.tb_frame.f_globals.get("__name__", "").partition(".")[0]
    by_statement = trace.tb_frame.f_code.co_code[trace.tb_lasti] == dis.opmap["RAISE_VARARGS"]
    return by_statement and package not in ("jax", "jaxlib", "numpy")


def works_or_raises(what: str, attempt: Callable[[], None]) -> None:
    """Runs `attempt`, which may raise a named error, but no other."""
    try:
        attempt()
    except AssertionError as error:
        raise AssertionError(f"with {what}, {error}") from error
    except Exception as error:
        if not is_named(error):
            raise AssertionError(
                f"with {what} it raised {type(error).__name__}, and not from a statement of its own that says what is "
                f"wrong: {str(error)[:500]}"
            ) from error


def retrace_cause(now: Tree, first: Tree) -> str:
    """Why arguments with these avals were traced again after those of the first call."""
    try:
        expect_avals("argument", now, first)
    except AssertionError as error:
        return str(error)
    return "a static field or other compiled-in value differs from the first call's"
