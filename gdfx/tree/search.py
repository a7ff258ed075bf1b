"""Parts of a state, or of any tree, by name."""

import difflib
from collections.abc import Callable, Iterator
from dataclasses import dataclass, is_dataclass
from typing import Any, TypeAlias

import jax
import jax.numpy as jnp
import numpy as np

from .checks import Tree, path_str

Path: TypeAlias = tuple[Any, ...]
Filter: TypeAlias = Callable[[Path, Any], bool]


@dataclass(frozen=True)
class NamedTupleKey:
    """The entry of a path that leads to a field of a NamedTuple or dataclass: it also names the class."""

    tuple_name: str
    name: str

    def __str__(self) -> str:
        return f"{self.tuple_name}.{self.name}"


def get_all_with_path(tree: Tree, key: Any, filtering: Filter | None = None) -> list[tuple[Path, Any]]:
    """All that is named `key` in `tree`, at any depth, with the paths: pairs in the order of the tree.

    Names are the keys of dicts, the names of links in the state of a chain, and of NamedTuples and dataclasses both the
    fields and the class. Static fields are not in the tree. Paths have the keys of `jax.tree_util`, but for
    `NamedTupleKey`. Only those remain for which `filtering(path, value)` is true, if it is given.
    """
    return [
        (path, value)
        for path, value in _nodes((), tree)
        if key in _names(path, value) and (filtering is None or filtering(path, value))
    ]


def get(tree: Tree, key: Any, default: Any = None, filtering: Filter | None = None) -> Any:
    """The one value named `key` in `tree`, or `default` if there is none; see `get_all_with_path`.

    The count of a chain stands for those of its links.

    Raises:
        KeyError: there are several; all paths are listed.
    """
    found = get_all_with_path(tree, key, filtering)
    chains = [path[:-1] for path, _ in found if path[-1:] == (_COUNT_OF_CHAIN,)]
    found = [(path, value) for path, value in found if path[:-2] not in chains or not _is_count_of_link(path)]
    if len(found) > 1:
        raise KeyError(
            f"get: there are {len(found)} values named {key!r}, at {', '.join(_shown(path) for path, _ in found)}; "
            "expected one. Choose by filtering, a function of path and value, or take get_all_with_path"
        )
    return found[0][1] if found else default


def set(tree: Tree, filtering: Filter | None = None, /, **kwargs: Any) -> Tree:
    """`tree` with other values for all that has the names in `kwargs`; see `get_all_with_path`.

    What replaces arrays must have their structure and shapes, and is copied into their dtypes, so that nothing compiles
    anew; things that are neither numbers nor arrays, such as a sharding, are put in as they are.

    Raises:
        KeyError: nothing has the name, or nothing for which `filtering(path, value)` is true.
        ValueError: a value has another structure or shape; the path is named.
        TypeError: a value does not fit into the dtype, as 0.5 into that of a count; the path is named.
    """
    for name in kwargs:
        if not get_all_with_path(tree, name, filtering):
            raise KeyError(_not_found(tree, name))

    def changed(path, node):
        for name in _names(path, node):
            if name in kwargs and (filtering is None or filtering(path, node)):
                return _in_place_of(node, kwargs[name], name, path)
        children, structure = _children(node)
        if structure is None:
            return node
        return jax.tree.unflatten(structure, [changed((*path, key), child) for key, child in children])

    return changed((), tree)


def instances(tree: Tree, kind: type) -> list[Any]:
    """All that is of the type `kind` in `tree`, at any depth, also within another."""
    return [node for _, node in _nodes((), tree) if isinstance(node, kind)]


_COUNT_OF_CHAIN = NamedTupleKey("ChainState", "count")


def _is_count_of_link(path: Path) -> bool:
    return len(path) > 1 and isinstance(path[-2], jax.tree_util.DictKey) and isinstance(path[-1], NamedTupleKey)


def _nodes(path: Path, node: Any) -> Iterator[tuple[Path, Any]]:
    """All that is in `node`, itself first, at any depth."""
    yield path, node
    for key, child in _children(node)[0]:
        yield from _nodes((*path, key), child)


def _children(node: Any) -> tuple[list[tuple[Any, Any]], Any]:
    """What is directly in `node`, with the keys, and the structure that rebuilds it; no structure for a leaf."""
    found, structure = jax.tree_util.tree_flatten_with_path(node, is_leaf=lambda x: x is not node)
    if jax.tree_util.treedef_is_leaf(structure) and found and not found[0][0]:
        return [], None
    keys = [path[0] for path, _ in found]
    if _has_fields(node):
        by_class = type(node).__name__
        keys = [NamedTupleKey(by_class, k.name) if isinstance(k, jax.tree_util.GetAttrKey) else k for k in keys]
    return [(key, child) for key, (_, child) in zip(keys, found, strict=True)], structure


def _has_fields(node: Any) -> bool:
    return is_dataclass(node) or (isinstance(node, tuple) and hasattr(node, "_fields"))


def _names(path: Path, node: Any) -> list[Any]:
    """By what names `node`, at the end of `path`, is known."""
    names = [type(node).__name__] if _has_fields(node) else []
    if path and isinstance(path[-1], jax.tree_util.DictKey):
        names.append(path[-1].key)
    elif path and isinstance(path[-1], NamedTupleKey | jax.tree_util.GetAttrKey):
        names.append(path[-1].name)
    return names


def _shown(path: Path) -> str:
    """The path as users write it after the name of the tree."""
    return path_str(tuple(jax.tree_util.GetAttrKey(k.name) if isinstance(k, NamedTupleKey) else k for k in path))


def _not_found(tree: Tree, name: str) -> str:
    if found := get_all_with_path(tree, name):
        paths = ", ".join(_shown(path) for path, _ in found)
        return f"set: filtering is false for all that is named {name!r}, at {paths}"
    known = list(dict.fromkeys(str(other) for path, node in _nodes((), tree) for other in _names(path, node)))
    near = difflib.get_close_matches(name, known)
    said = f"are you looking for {' or '.join(near)}?" if near else f"there are: {', '.join(known[:20])}"
    return f"set: nothing is named {name!r}; {said}"


def _in_place_of(old: Any, new: Any, name: str, path: Path) -> Any:
    if not any(map(_is_array, jax.tree.leaves(old))) or not any(map(_is_number, jax.tree.leaves(new))):
        return new
    if jax.tree.structure(old) != jax.tree.structure(new):
        raise ValueError(
            f"set: {name} has the structure {jax.tree.structure(new)}, expected that of what is at {_shown(path)}, "
            f"{jax.tree.structure(old)}"
        )
    convert = lambda inner, x, y: _as_aval(x, y, name, (*path, *inner))
    return jax.tree_util.tree_map_with_path(convert, old, new)


def _as_aval(old: Any, new: Any, name: str, path: Path) -> Any:
    """`new`, a leaf, with the shape and dtype of `old`, in a buffer of its own."""
    if not _is_array(old) or not _is_number(new):
        return new
    if jnp.shape(new) != old.shape:
        raise ValueError(
            f"set: {name} has shape {jnp.shape(new)}, expected {old.shape} as at {_shown(path)}; nothing is broadcast"
        )
    kinds = (jnp.bool_, jnp.integer, jnp.floating, jnp.complexfloating)
    new_dtype = jnp.result_type(new)
    if new_dtype != old.dtype:
        of_new, of_old = (
            next((i for i, kind in enumerate(kinds) if jnp.issubdtype(dtype, kind)), None)
            for dtype in (new_dtype, old.dtype)
        )
        fits = of_new is not None and of_old is not None and of_new <= of_old
        if not fits and not (of_old == 1 and isinstance(new, float) and new.is_integer()):
            raise TypeError(f"set: {name} is {new!r} of dtype {new_dtype}, expected {old.dtype} as at {_shown(path)}")
    return jnp.array(new, old.dtype)


def _is_array(x: Any) -> bool:
    return hasattr(x, "shape") and hasattr(x, "dtype")


def _is_number(x: Any) -> bool:
    return isinstance(x, int | float | complex | np.generic) or _is_array(x)
