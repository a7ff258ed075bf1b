"""Random trees, and the keys in trees."""

import inspect
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax.typing import DTypeLike

from .checks import Tree


def split_key_like(rng_key: jax.Array, target_tree: Tree) -> Tree:
    """A key of `jax.random`, split from `rng_key`, for each leaf of `target_tree`."""
    structure = jax.tree.structure(target_tree)
    return jax.tree.unflatten(structure, list(jax.random.split(rng_key, structure.num_leaves)))


def random_like(
    rng_key: jax.Array,
    target_tree: Tree,
    sampler: Callable[..., Any] = jax.random.normal,
    dtype: DTypeLike | None = None,
) -> Tree:
    """Random numbers in the shapes, dtypes and shardings of `target_tree`, each leaf with a key of its own.

    A leaf is `sampler(key, shape, dtype)`, given `out_sharding=` where its signature has that; `dtype` is that of all
    leaves, instead of their own.
    """
    is_sharded = "out_sharding" in inspect.signature(sampler).parameters

    def sample(key, leaf):
        leaf = jnp.asarray(leaf)
        placed = {"out_sharding": jax.typeof(leaf).sharding} if is_sharded else {}
        return sampler(key, leaf.shape, leaf.dtype if dtype is None else dtype, **placed)

    return jax.tree.map(sample, split_key_like(rng_key, target_tree), target_tree)


def unwrap_random_key_data(input_tree: Tree) -> Tree:
    """`input_tree` with the words, of dtype uint32, in place of each typed key, as comparisons need them."""
    is_key = lambda x: isinstance(x, jax.Array) and jnp.issubdtype(x.dtype, jax.dtypes.prng_key)
    return jax.tree.map(lambda x: jax.random.key_data(x) if is_key(x) else x, input_tree)
