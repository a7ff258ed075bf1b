"""Batches of optimizers: every combination of some values of their hyperparameters."""

import itertools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from ..core import GradientTransformation, as_transformation
from ..pytrees import as_arrays


def grid(optimizer: Callable[..., Any], **values: Any) -> Any:
    """One batched optimizer with every combination of `values`, the last of them changing fastest.

    `grid(gdfx.adamw, learning_rate=[1e-3, 1e-2], weight_decay=[0, 0.1], b2=0.99)` holds four optimizers, like
    `jax.vmap(gdfx.adamw)` of four numbers each. `optimizer` is one of gdfx's, or a function that makes one from
    numbers, as in `lambda peak: gdfx.adam(gdfx.warmup_cosine(peak, 10, 100))`. What is not a list or an array of one
    axis is given to all alike.
    """
    name = getattr(optimizer, "__name__", str(optimizer))
    rows = {k: v for k, v in values.items() if isinstance(v, list | tuple | range) or getattr(v, "ndim", 0)}
    axes = {k: np.asarray(v) for k, v in rows.items()}
    fixed = {k: v for k, v in values.items() if k not in axes}
    known = getattr(optimizer, "__dataclass_fields__", {})
    statics = [name for name, field in known.items() if field.metadata.get("static")]
    for key, axis in axes.items():
        if key in statics:
            raise TypeError(
                f"grid: {key} of {name} is compiled into the program, not batched: make one sweep for each value"
            )
        if axis.ndim != 1 or not np.issubdtype(axis.dtype, np.number):
            raise TypeError(f"grid: {key} has shape {axis.shape} and dtype {axis.dtype}, expected a list of numbers")
        if not len(axis):
            raise ValueError(f"grid: {key} is empty, expected at least one value")
    if not axes:
        raise ValueError(f"grid: nothing is varied: give a hyperparameter of {name} a list of values")
    for combination in itertools.product(*(axis.tolist() for axis in axes.values())):
        optimizer(**dict(zip(axes, combination, strict=True)), **fixed)  # raises for a value that is not allowed
    points = np.meshgrid(*axes.values(), indexing="ij")
    batch = {key: jnp.asarray(p.ravel()).astype(float) for key, p in zip(axes, points, strict=True)}
    return jax.vmap(lambda chosen: as_arrays(optimizer(**chosen, **fixed)))(batch)


def batched(optimizers: Any) -> tuple[GradientTransformation, int]:
    """`optimizers` with one row a member in every hyperparameter, and the number of members.

    Takes a batched optimizer, as from `grid` or `jax.vmap`, also where only some hyperparameters are batched; a list
    of optimizers of one structure; or a single one.
    """
    if isinstance(optimizers, list):
        if not optimizers:
            raise ValueError("sweep: the list of optimizers is empty, expected at least one")
        several = [as_arrays(as_transformation(o)) for o in optimizers]
        for path, leaf in jax.tree_util.tree_leaves_with_path(several):
            if jnp.ndim(leaf):
                raise ValueError(
                    f"sweep: {jax.tree_util.keystr(path)} has shape {jnp.shape(leaf)}, expected a number: in a list "
                    "each optimizer is one member"
                )
        for other in several[1:]:
            if jax.tree.structure(other) != jax.tree.structure(several[0]):
                raise ValueError(
                    f"sweep: {optimizers[0]} and {other} differ in more than numbers: make one sweep for each kind"
                )
        return jax.tree.map(lambda *xs: jnp.stack(xs), *several), len(several)
    optimizer = as_arrays(as_transformation(optimizers))
    lengths = {}
    for path, leaf in jax.tree_util.tree_leaves_with_path(optimizer):
        if jnp.ndim(leaf) > 1:
            raise ValueError(
                f"sweep: {jax.tree_util.keystr(path)} has shape {jnp.shape(leaf)}, expected one axis, over the members"
            )
        if jnp.ndim(leaf):
            lengths[jax.tree_util.keystr(path)] = len(leaf)
    if len(set(lengths.values())) > 1:
        raise ValueError(f"sweep: hyperparameters have different numbers of values: {lengths}; expected one a member")
    members = next(iter(lengths.values()), 1)
    if members == 0:
        raise ValueError("sweep: there is nothing to run: the optimizers' hyperparameters have no values")
    return jax.tree.map(
        lambda x: jnp.broadcast_to(x, (members,)) if jnp.ndim(x) == 0 else jnp.asarray(x), optimizer
    ), members
