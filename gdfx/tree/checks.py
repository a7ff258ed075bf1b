"""What is raised, with the path of the leaf, where trees do not go together."""

import functools
from typing import Any, TypeAlias

import jax
import jax.numpy as jnp

Tree: TypeAlias = Any
"""A pytree of arrays; `None` stands for no leaf."""


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


def check_real_params(params: Tree, name: str) -> None:
    """As `check_params`, and raises `TypeError`, naming the path, for a complex leaf; `name` is who cannot take it."""
    check_params(params)
    for path, leaf in jax.tree_util.tree_leaves_with_path(params):
        if jnp.iscomplexobj(leaf):
            raise TypeError(
                f"{name}: at {path_str(path)}, params have dtype {leaf.dtype}, expected a real one: pass the real and "
                "imaginary parts as two leaves"
            )


def check_like(tree: Tree, like: Tree, name: str, like_name: str, *, same_kind: bool = True) -> None:
    """Raises, naming the path, where `tree` has another structure or shape than `like`, or no array of floats.

    With `same_kind`, complex leaves may only stand where those of `like` are complex.
    """
    if jax.tree.structure(tree) != jax.tree.structure(like):
        _raise_structure(tree, like, name, like_name)
    for i, (x, y) in enumerate(zip(jax.tree.leaves(tree), jax.tree.leaves(like), strict=True)):
        if fault := _fault(x, y, like_name, same_kind):
            path, _ = jax.tree_util.tree_leaves_with_path(tree)[i]
            error, told = fault
            raise error(f"at {path_str(path)}, {name} have {told}")


def _fault(x: Any, y: Any, like_name: str, same_kind: bool) -> tuple[type[Exception], str] | None:
    """What is wrong with a leaf that is to be like `y`, and the error for it."""
    dtype = getattr(x, "dtype", None)
    if dtype is None or not _is_inexact(dtype):
        found = f"dtype {dtype}" if dtype is not None else f"type {type(x).__name__}"
        return TypeError, f"{found}, expected an array of floats. Are the params there integers?"
    if x.shape != jnp.shape(y):
        return ValueError, (
            f"shape {x.shape}, expected {jnp.shape(y)} as in {like_name}; nothing is broadcast. "
            "Were the gradients summed or averaged over an axis, or taken with respect to other params?"
        )
    if same_kind and dtype.kind == "c" and not jnp.iscomplexobj(y):
        return TypeError, f"dtype {dtype}, expected a real one, as {like_name} have {y.dtype}"
    return None


@functools.cache
def _is_inexact(dtype: Any) -> bool:
    return jnp.issubdtype(dtype, jnp.inexact)


def side_by_side(
    names: tuple[str, ...], *trees: Tree, scalars: bool = True
) -> tuple[list[tuple[Any, ...]], list[tuple[Any, ...]], Any]:
    """The paths of the leaves, the leaves of all trees at each, and the structure, which all trees share.

    Raises `ValueError`, naming the path, for other structures and shapes; with `scalars`, a scalar goes with any shape.
    """
    with_paths, structure = jax.tree_util.tree_flatten_with_path(trees[0])
    for name, tree in zip(names[1:], trees[1:], strict=True):
        if jax.tree.structure(tree) != structure:
            _raise_structure(tree, trees[0], name, names[0], have="has", cause="Is a part of one of them left out?")
    paths = [path for path, _ in with_paths]
    rows = list(zip(*map(jax.tree.leaves, trees), strict=True))
    for path, row in zip(paths, rows, strict=True):
        shapes = [jnp.shape(leaf) for leaf in row]
        if len({shape for shape in shapes if shape or not scalars}) > 1:
            found = ", ".join(f"{name} has shape {shape}" for name, shape in zip(names, shapes, strict=True))
            expected = "shapes that agree" + (", or scalars" if scalars else "")
            raise ValueError(
                f"at {path_str(path)}, {found}, expected {expected}; nothing is broadcast. "
                "Were leaves summed or batched on one side only?"
            )
    return paths, rows, structure


def check_scalar(value: Any, name: str) -> None:
    """Raises `ValueError` where `value` has axes."""
    if jnp.shape(value):
        raise ValueError(
            f"{name} has shape {jnp.shape(value)}, expected a scalar. For an array a leaf, use a tree: `mul`, `add`"
        )


_OTHER_PARAMS = "Were the gradients taken with respect to another argument of the loss, or to other params?"


def _raise_structure(
    tree: Tree, like: Tree, name: str, like_name: str, *, have: str = "have", cause: str = _OTHER_PARAMS
) -> None:
    paths, like_paths = ([path_str(path) for path, _ in jax.tree_util.tree_leaves_with_path(t)] for t in (tree, like))
    missing = [p for p in like_paths if p not in paths]
    surplus = [p for p in paths if p not in like_paths]
    if missing or surplus:
        parts = [f"{name} {have} no leaf at {', '.join(missing[:3])}"] if missing else []
        parts += (
            [f"{name} {have} a leaf at {', '.join(surplus[:3])} that is not there in {like_name}"] if surplus else []
        )
        raise ValueError(f"{name} and {like_name} have different structures: {'; '.join(parts)}. {cause}")
    raise ValueError(
        f"{name} and {like_name} have different structures: found {jax.tree.structure(tree)}, expected "
        f"{jax.tree.structure(like)}. {cause}"
    )
