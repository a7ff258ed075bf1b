"""Checks of arrays and numbers, which name what was found and its likely cause: for functions, not public."""

import math
import operator
from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike, DTypeLike


def check_same_shape(
    first_name: str,
    first: tuple[int, ...],
    second_name: str,
    second: tuple[int, ...],
) -> None:
    """Raises `ValueError` with both names, both shapes and the likely cause if shapes differ."""
    if first != second:
        cause = _likely_cause(first_name, first, second_name, second)
        raise ValueError(
            f"{first_name} and {second_name} must have the same shape (nothing broadcasts), "
            f"got {first} and {second}: {cause}"
        )


def _likely_cause(
    first_name: str,
    first: tuple[int, ...],
    second_name: str,
    second: tuple[int, ...],
) -> str:
    pairs = ((first_name, first, second), (second_name, second, first))
    for name, longer, shorter in pairs:
        if longer == (*shorter, 1):
            return f"squeeze the last axis of {name}, {name}[..., 0]"
        if longer == (1, *shorter):
            return f"squeeze the first axis of {name}, {name}[0]"
    for name, scalar, full in pairs:
        if scalar == ():
            return f"{name} is a scalar; if that is meant, fill an array: jnp.full({full}, {name})"
    if first == second[::-1]:
        return f"transpose one of them, {second_name}.T"
    if math.prod(first) == math.prod(second):
        return "both hold as many elements; reshape one to the shape of the other"
    if first[1:] == second[1:]:
        return "the batch sizes differ; do both come from the same batch?"
    return "give both the same shape"


def check_float(name: str, value: ArrayLike) -> jax.Array:
    """Returns `value` as an array; raises `TypeError` unless its dtype is real floating point."""
    array = jnp.asarray(value)
    if jnp.issubdtype(array.dtype, jnp.floating):
        return array
    if jnp.issubdtype(array.dtype, jnp.complexfloating):
        raise TypeError(f"{name} must be real, got {array.dtype}: use the real part or jnp.abs")
    cast = f"{name}.astype(jnp.float32)"
    raise TypeError(f"{name} must be floating point, got {array.dtype}: cast with {cast}")


def check_real(name: str, value: ArrayLike) -> jax.Array:
    """Returns `value` as an array of floats, integers or booleans; raises `TypeError` for complex numbers."""
    array = jnp.asarray(value)
    if jnp.issubdtype(array.dtype, jnp.complexfloating):
        raise TypeError(f"{name} must be real, got {array.dtype}")
    return array


def check_indices(name: str, value: ArrayLike, hint: str) -> jax.Array:
    """Returns integer class indices in at least int32; raises `TypeError`, ending in `hint`, for other dtypes."""
    array = jnp.asarray(value)
    if not jnp.issubdtype(array.dtype, jnp.integer):
        raise TypeError(f"{name} must be integer class indices, got {array.dtype}: {hint}")
    # A narrow dtype could not be compared with a number of classes beyond its range.
    return array.astype(jnp.int64 if array.dtype.itemsize == 8 else jnp.int32)


def compute_dtype(*arrays: jax.Array) -> jnp.dtype:
    """Returns float64 if any of `arrays` has it, else float32: half precision is too coarse."""
    wide = any(array.dtype == jnp.float64 for array in arrays)
    return jnp.dtype(jnp.float64 if wide else jnp.float32)


def check_scalar(
    name: str, value: ArrayLike, dtype: DTypeLike, valid: Callable[[np.ndarray], bool], must: str
) -> jax.Array:
    """Returns `value` as a scalar array of `dtype`.

    Raises `TypeError` for what is no real scalar, and `ValueError` for a Python or NumPy number
    that is not `valid`. The value of a JAX array may be unknown during tracing, so is not checked.
    """
    kind = value.dtype if isinstance(value, jax.Array) else np.asarray(value).dtype
    real = jnp.issubdtype(kind, jnp.floating) or jnp.issubdtype(kind, jnp.integer)
    if not real or np.shape(value) != ():
        raise TypeError(f"{name} must be a real scalar, got {value!r}")
    if not isinstance(value, jax.Array) and not valid(np.asarray(value)):
        raise ValueError(f"{name} must be {must}, got {value}")
    return jnp.asarray(value, dtype)


def positive(name: str, value: ArrayLike, dtype: DTypeLike) -> jax.Array:
    """Returns `value` as a scalar array of `dtype`, positive and finite; errors as in `check_scalar`."""
    return check_scalar(name, value, dtype, lambda x: bool(0 < x < np.inf), "positive and finite")


def not_negative(name: str, value: ArrayLike, dtype: DTypeLike) -> jax.Array:
    """Returns `value` as a scalar array of `dtype`, at least 0 and finite; errors as in `check_scalar`."""
    return check_scalar(name, value, dtype, lambda x: bool(0 <= x < np.inf), "at least 0 and finite")


def fraction(name: str, value: ArrayLike, dtype: DTypeLike) -> jax.Array:
    """Returns `value` as a scalar array of `dtype`, in [0, 1]; errors as in `check_scalar`."""
    return check_scalar(name, value, dtype, lambda x: bool(0 <= x <= 1), "in [0, 1]")


def check_axes(name: str, shape: tuple[int, ...], axis: int | Sequence[int] | None) -> tuple[int, ...]:
    """Returns `axis` (None: all) as axes counted from the front; raises unless they are different axes of `name`."""
    if axis is None:
        return tuple(range(len(shape)))
    axes = axis if isinstance(axis, Sequence) else (axis,)
    if any(isinstance(a, bool) or not hasattr(a, "__index__") for a in axes):
        raise TypeError(f"axis must be an int, a sequence of ints or None, got {axis!r}")
    counted = []
    for a in map(operator.index, axes):
        if not -len(shape) <= a < len(shape):
            raise ValueError(f"{name} {shape} have no axis {a}")
        counted.append(a % len(shape))
    if len(set(counted)) < len(counted):
        raise ValueError(f"axis {axis!r} names an axis of {name} {shape} twice")
    return tuple(counted)


def check_mask(
    name: str, shape: tuple[int, ...], where: ArrayLike | None, axes: tuple[int, ...] = ()
) -> jax.Array | None:
    """Returns `where`, which marks elements of `name` or whole rows along `axes`, in the `shape` of the elements.

    Raises `TypeError` unless it is boolean, and `ValueError` for other shapes.
    """
    if where is None:
        return None
    mask = jnp.asarray(where)
    if mask.dtype != bool:
        raise TypeError(f"where must be boolean, got {mask.dtype}")
    if axes and mask.shape == without(axes, shape):
        return jnp.broadcast_to(jnp.expand_dims(mask, axes), shape)
    check_same_shape(name, shape, "where", mask.shape)
    return mask


def without(axes: tuple[int, ...], shape: tuple[int, ...]) -> tuple[int, ...]:
    """Returns the shape of the rows along `axes`."""
    return tuple(n for i, n in enumerate(shape) if i not in axes)


def nan_unless(known: jax.Array, loss: jax.Array) -> jax.Array:
    """Returns `loss`, NaN with gradient 0 where `known` is False."""
    # A NaN only where one is due: `jax_debug_nans` objects even to the constant.
    return jnp.where(known, loss, jnp.log(jnp.where(known, 1.0, -1.0)).astype(loss.dtype))
