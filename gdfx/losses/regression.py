"""Regression losses, and the checks of shape and dtype that all losses share."""

import math
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike, DTypeLike


def squared_error(predictions: ArrayLike, targets: ArrayLike) -> jax.Array:
    """Squares the difference of each prediction from its target.

    Both have one shape, which the result keeps. Its dtype is float64 if either is float64, else
    float32. Raises `ValueError` for shapes that differ and `TypeError` for integers or complex
    numbers.
    """
    return jnp.square(_difference(predictions, targets))


def absolute_error(predictions: ArrayLike, targets: ArrayLike) -> jax.Array:
    """Takes the absolute difference of each prediction from its target; its slope at 0 is 0.

    Shapes, dtypes and errors as in `squared_error`.
    """
    error = _difference(predictions, targets)
    return error * jnp.sign(error)  # the slope of jnp.abs at 0 is 1


def huber_loss(predictions: ArrayLike, targets: ArrayLike, *, delta: ArrayLike = 1.0) -> jax.Array:
    """Half the squared error up to an error of `delta`, and linear with slope `delta` beyond.

    `delta` is a positive finite scalar; otherwise shapes, dtypes and errors as in `squared_error`.
    Source: Huber, 1964, https://doi.org/10.1214/aoms/1177703732.
    """
    error = _difference(predictions, targets)
    size = jnp.abs(error)
    delta = check_scalar("delta", delta, error.dtype, _positive, "positive and finite")
    return jnp.where(size <= delta, 0.5 * jnp.square(error), delta * (size - 0.5 * delta))


def mean_squared_error(predictions: ArrayLike, targets: ArrayLike) -> jax.Array:
    """Averages `squared_error` over all elements; raises `ValueError` when there are none."""
    return _mean(squared_error(predictions, targets))


def mean_absolute_error(predictions: ArrayLike, targets: ArrayLike) -> jax.Array:
    """Averages `absolute_error` over all elements; raises `ValueError` when there are none."""
    return _mean(absolute_error(predictions, targets))


def _difference(predictions: ArrayLike, targets: ArrayLike) -> jax.Array:
    predictions = check_float("predictions", predictions)
    targets = check_float("targets", targets)
    check_same_shape("predictions", predictions.shape, "targets", targets.shape)
    dtype = compute_dtype(predictions, targets)
    return predictions.astype(dtype) - targets.astype(dtype)


def _mean(errors: jax.Array) -> jax.Array:
    if errors.size == 0:
        raise ValueError(f"predictions and targets {errors.shape} are empty: no mean to take")
    return errors.mean()


def _positive(value: np.ndarray) -> bool:
    return bool(0 < value < np.inf)


# Shared by the modules of this package; not part of the public API.


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
