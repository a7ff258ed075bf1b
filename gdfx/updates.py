"""Slow copies of params: the target networks of reinforcement learning, the teachers of self-supervision."""

from typing import Any

import jax
import jax.numpy as jnp

from .core import Tree
from .pytrees import Range
from .tree import cast_like, check_like, leafwise


def incremental_update(new_tensors: Tree, old_tensors: Tree, step_size: Any) -> Tree:
    """`step_size * new_tensors + (1 - step_size) * old_tensors`: a moving average, moved on by one step.

    `step_size` is a scalar in [0, 1]. The leaves are floats or complex numbers; the average is taken in at least
    float32 and returned in the dtypes of `old_tensors`. To average within an optimizer see `ema_params`.

    Raises:
        ValueError: the trees have different structures or shapes, or `step_size` is not in [0, 1].
        TypeError: a leaf is no array of floats.
    """
    if isinstance(step_size, int | float) and step_size not in Range(0.0, 1.0):
        raise ValueError(f"incremental_update: step_size is {step_size}, expected at least 0 and at most 1")
    check_like(new_tensors, old_tensors, "new_tensors", "old_tensors")
    return leafwise(_mix, (step_size,), old_tensors, read=(new_tensors,))


def _mix(part, old, new):
    return part * new + (1 - part) * old


def periodic_update(new_tensors: Tree, old_tensors: Tree, steps: Any, update_period: Any) -> Tree:
    """`new_tensors` where `steps` is a multiple of `update_period`, `old_tensors` elsewhere: in the dtypes of these.

    Both are integer scalars and may be traced; 0 is a multiple.

    Raises:
        ValueError: the trees have different structures or shapes, or `update_period` is less than 1.
        TypeError: a leaf is no array of floats, or a number is no integer.
    """
    for name, value in (("steps", steps), ("update_period", update_period)):
        if not jnp.issubdtype(jnp.result_type(value), jnp.integer) or jnp.ndim(value):
            raise TypeError(f"periodic_update: {name} is {value!r}, expected an int or an integer scalar")
    if isinstance(update_period, int) and update_period < 1:
        raise ValueError(f"periodic_update: update_period is {update_period}, expected at least 1")
    check_like(new_tensors, old_tensors, "new_tensors", "old_tensors")
    steps = jnp.asarray(steps)
    is_due = steps % jnp.asarray(update_period).astype(steps.dtype) == 0
    return jax.tree.map(lambda new, old: jnp.where(is_due, new, old), cast_like(new_tensors, old_tensors), old_tensors)
