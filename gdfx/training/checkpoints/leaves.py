"""The leaves of a checkpoint: what is written of each, and how it comes back as it was."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer

from ...core import Tree

Leaf = tuple[str, Any]
"""The path of a leaf, which begins with the part of the checkpoint it belongs to, and what is there."""

_NUMBERS = {bool: np.bool_, int: np.int64, float: np.float64, complex: np.complex128}


def flatten(tree: Tree, part: str) -> tuple[list[Leaf], Any]:
    """The leaves of `tree` with their paths, and its structure."""
    leaves, structure = jax.tree_util.tree_flatten_with_path(tree)
    return [(part + jax.tree_util.keystr(path), leaf) for path, leaf in leaves], structure


def describe(path: str, leaf: Any) -> dict[str, Any]:
    """The path, dtype and shape of a leaf; raises for one that cannot be saved, or that none saved can be like."""
    about: dict[str, Any] = {"path": path}
    if type(leaf) in _NUMBERS:
        if type(leaf) is int and not -(2**63) <= leaf < 2**63:
            raise TypeError(f"{path} is {leaf}, expected an integer of 64 bits")
        return about | {"dtype": f"Python {type(leaf).__name__}", "shape": []}
    if not isinstance(leaf, np.ndarray | np.generic | jax.Array | jax.ShapeDtypeStruct):
        raise TypeError(f"{path} is a {type(leaf).__name__}, expected an array, a key or a number")
    about["shape"] = [*leaf.shape]
    if jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key):
        about["dtype"] = str(leaf.dtype)
        if isinstance(leaf, jax.Array) and not leaf.is_deleted():
            about |= {"impl": str(jax.random.key_impl(leaf)), "words": jax.random.key_data(leaf).shape[leaf.ndim :]}
        return about
    if not (jnp.issubdtype(leaf.dtype, jnp.number) or leaf.dtype == np.bool_) or not leaf.dtype.isnative:
        raise TypeError(f"{path} has dtype {leaf.dtype}, expected numbers in the byte order of this machine")
    return about | {"dtype": leaf.dtype.name}


def check_known(path: str, leaf: Any) -> None:
    """Raises for a leaf without numbers; starts the copy of one that has them."""
    if isinstance(leaf, Tracer):
        raise TypeError(f"{path} is traced, expected known numbers: save outside of jit")
    if isinstance(leaf, jax.ShapeDtypeStruct):
        raise TypeError(f"{path} is a ShapeDtypeStruct, expected an array")
    if isinstance(leaf, jax.Array):
        if leaf.is_deleted():
            raise ValueError(f"{path} was deleted: it was donated to a step; save the state that the step returned")
        if not leaf.is_fully_addressable:
            raise ValueError(f"{path} is on devices of other processes, expected one process with all of the state")
        if not jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key):
            leaf.copy_to_host_async()


def to_host(leaf: Any) -> np.ndarray:
    """A copy in NumPy, which nothing that happens to `leaf` can reach, of a dtype that orbax can write.

    That is bytes for those it does not know everywhere, such as uint4.
    """
    if type(leaf) in _NUMBERS:
        return np.asarray(leaf, _NUMBERS[type(leaf)])
    if isinstance(leaf, jax.Array) and jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key):
        leaf = jax.random.key_data(leaf)
    array = np.array(np.asarray(leaf), order="C", copy=True)
    return array if array.dtype.isbuiltin == 1 or array.dtype == jnp.bfloat16 else array.view(np.uint8)


def stored_shape(about: dict[str, Any]) -> tuple[int, ...]:
    """The shape of the array on the disk of the leaf that `about` describes."""
    return *about["shape"], *about.get("words", ())


def as_saved(array: np.ndarray | None, about: dict[str, Any]) -> Any:
    """The leaf that `about` describes, in NumPy, from what was read; None stands for no elements."""
    name, shape = about["dtype"], stored_shape(about)
    kind = {f"Python {kind.__name__}": dtype for kind, dtype in _NUMBERS.items()}.get(name)
    dtype = np.dtype(kind or (np.uint32 if "impl" in about else jnp.dtype(name)))
    array = np.zeros(shape, dtype) if array is None else np.asarray(array).view(dtype)
    if array.shape != shape:
        raise ValueError(f"{about['path']} has shape {array.shape}, expected {shape}")
    if kind is not None:
        return array.item()
    return jax.random.wrap_key_data(jnp.asarray(array), impl=about["impl"]) if "impl" in about else array


def placed(leaves: list[Any], wanted: list[Leaf]) -> list[Any]:
    """The leaves as `wanted` has them: on its devices, or in NumPy."""
    return [_placed(leaf, path, like) for leaf, (path, like) in zip(leaves, wanted, strict=True)]


def _placed(leaf: Any, path: str, like: Any) -> Any:
    if not isinstance(like, jax.Array | jax.ShapeDtypeStruct):
        return leaf
    # What is on no device in particular goes there again: placed, it would be compiled for anew.
    free = isinstance(like, jax.Array) and not like.committed
    new = jax.device_put(leaf, None if free else like.sharding)
    if new.dtype != leaf.dtype:
        raise ValueError(f"{path} was saved as {leaf.dtype}, which JAX makes {new.dtype}: set jax_enable_x64")
    return new
