"""Mini-batches: which examples go into which step."""

from collections.abc import Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from ..core import Tree
from ..tree import path_str


def check_data(data: Tree, batch_size: int | None) -> int:
    """The number of examples in `data`, a pytree of arrays with one leading axis.

    Raises `TypeError` or `ValueError` for what cannot be cut into batches of `batch_size`.
    """
    leaves = jax.tree_util.tree_leaves_with_path(data, is_leaf=lambda x: isinstance(x, Iterator))
    for path, leaf in leaves:
        if not isinstance(leaf, np.ndarray | jax.Array) or leaf.ndim == 0:
            found = "a scalar" if isinstance(leaf, np.ndarray | jax.Array) else f"a {type(leaf).__name__}"
            raise TypeError(
                f"data at {path_str(path)} is {found}, expected an array, NumPy's or JAX's, with one row an example"
            )
    if not leaves or len(leaves[0][1]) == 0:
        raise ValueError("data is empty, expected at least one example")
    (first, array), *others = leaves
    for path, leaf in others:
        if len(leaf) != len(array):
            raise ValueError(
                f"data arrays have different lengths: {len(array)} at {path_str(first)}, {len(leaf)} at "
                f"{path_str(path)}, expected one row for each example in all of them"
            )
    if batch_size is not None:
        if not isinstance(batch_size, int | np.integer) or isinstance(batch_size, bool) or batch_size < 1:
            raise ValueError(f"batch_size is {batch_size!r}, expected a positive integer, or None for all examples")
        if batch_size > len(array):
            raise ValueError(
                f"batch_size is {batch_size}, but there are only {len(array)} examples; for full batches use None"
            )
    return len(array)


def check_epochs(epochs: Any) -> None:
    """Raises `ValueError` unless `epochs` is a positive integer."""
    if not isinstance(epochs, int | np.integer) or isinstance(epochs, bool) or epochs < 1:
        raise ValueError(f"epochs is {epochs!r}, expected an integer of at least 1")


def check_steps(name: str, steps: Any, of: str = "steps") -> None:
    """Raises `ValueError` unless `steps` is a positive integer."""
    if not isinstance(steps, int | np.integer) or isinstance(steps, bool) or steps < 1:
        raise ValueError(f"{name} is {steps!r}, expected a number of {of} of at least 1")


def seed_words(key: Any) -> list[int]:
    """The integers in a PRNG key, which seed NumPy's generators; the integer 7 stands for `jax.random.key(7)`."""
    if isinstance(key, int | np.integer) and not isinstance(key, bool) and key >= 0:
        key = jax.random.key(key)
    if isinstance(key, jax.Array) and jnp.issubdtype(key.dtype, jax.dtypes.prng_key):
        key = jax.random.key_data(key)
    words = np.atleast_1d(np.asarray(key))
    if words.dtype.kind not in "iu" or (words < 0).any():
        raise TypeError(f"key is {key!r}, expected a PRNG key or a non-negative integer")
    return [int(word) for word in words]


def batch_of(data: Tree, row: jax.Array | None) -> Tree:
    """The examples in `row`, integers; all of `data` for None."""
    return data if row is None else jax.tree.map(lambda rows: rows[row], data)


class Shuffled:
    """The order of the examples: each epoch a new permutation, which depends on the key and the epoch alone.

    Where `batch_size` does not divide `size`, the examples left over are left out of that epoch, and which these are
    changes from epoch to epoch; with `pad` they make a last batch, filled up with the first examples of the epoch.
    """

    def __init__(self, size: int, batch_size: int, key: Any, *, pad: bool = False):
        self.size, self.batch_size = size, batch_size
        self.steps_per_epoch = -(-size // batch_size) if pad else size // batch_size
        self._seed = seed_words(key)
        self._waiting, self._epochs = np.empty((0, batch_size), np.int32), 0

    def epoch(self, number: int) -> np.ndarray:
        """The examples of one epoch, as int32 of shape `(steps_per_epoch, batch_size)`."""
        # The length, as NumPy takes [5, 0] and [5] for the same seed.
        order = np.random.default_rng([len(self._seed), *self._seed, number]).permutation(self.size).astype(np.int32)
        return np.resize(order, (self.steps_per_epoch, self.batch_size))  # repeats the beginning, or cuts the end

    def skip(self, n: int) -> None:
        """Leaves out the next `n` steps, at no cost."""
        waiting = min(n, len(self._waiting))
        epochs, rest = divmod(n - waiting, self.steps_per_epoch)
        self._waiting, self._epochs = self._waiting[waiting:], self._epochs + epochs
        self.take(rest)

    def take(self, n: int) -> np.ndarray:
        """The examples of the next `n` steps, as int32 of shape `(n, batch_size)`."""
        while len(self._waiting) < n:
            self._waiting = np.concatenate([self._waiting, self.epoch(self._epochs)])
            self._epochs += 1
        taken, self._waiting = self._waiting[:n], self._waiting[n:]
        return taken
