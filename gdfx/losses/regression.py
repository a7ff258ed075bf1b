"""Regression losses: functions of the difference of each prediction from its target."""

import math

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike

from gdfx.checks import check_float, check_same_shape, compute_dtype, positive


def squared_error(predictions: ArrayLike, targets: ArrayLike | None = None) -> jax.Array:
    """Squares the difference of each prediction from its target; targets of None are zeros.

    Both have one shape, which the result keeps. Its dtype is float64 if either is float64, else float32. Raises
    `ValueError` for shapes that differ and `TypeError` for integers or complex numbers.
    """
    return jnp.square(_difference(predictions, targets))


def l2_loss(predictions: ArrayLike, targets: ArrayLike | None = None) -> jax.Array:
    """Half the square of the difference of each prediction from its target; targets of None are zeros.

    Shapes, dtypes and errors as in `squared_error`.
    """
    return 0.5 * jnp.square(_difference(predictions, targets))


def absolute_error(predictions: ArrayLike, targets: ArrayLike) -> jax.Array:
    """Takes the absolute difference of each prediction from its target; its slope at 0 is 0.

    Shapes, dtypes and errors as in `squared_error`.
    """
    error = _difference(predictions, targets)
    return error * jnp.sign(error)  # the slope of jnp.abs at 0 is 1


def huber_loss(predictions: ArrayLike, targets: ArrayLike | None = None, *, delta: ArrayLike = 1.0) -> jax.Array:
    """Half the squared error up to an error of `delta`, and linear with slope `delta` beyond; None stands for zeros.

    `delta` is a positive finite scalar; otherwise shapes, dtypes and errors as in `squared_error`.
    Source: Huber, 1964, https://doi.org/10.1214/aoms/1177703732.
    """
    error = _difference(predictions, targets)
    size = jnp.abs(error)
    delta = positive("delta", delta, error.dtype)
    return jnp.where(size <= delta, 0.5 * jnp.square(error), delta * (size - 0.5 * delta))


def log_cosh(predictions: ArrayLike, targets: ArrayLike | None = None) -> jax.Array:
    """The logarithm of cosh of each error x, near x² / 2 if small and |x| - log 2 if large; None stands for zeros.

    Its slope is tanh x. The relative error is that of the dtype for small x as well. Shapes, dtypes and errors as in
    `squared_error`. Source: Chen et al., 2019, https://openreview.net/pdf?id=rkglvsC9Ym.
    """
    x = _difference(predictions, targets)
    size = jnp.abs(x)
    # The second form cancels where x is small, and the first, 1 + 2 sinh² (x / 2), overflows where it is large.
    near = jnp.log1p(2 * jnp.square(jnp.sinh(0.5 * jnp.clip(x, -1, 1))))
    far = size + (jnp.log1p(jnp.exp(-2 * size)) - math.log(2))
    return jnp.where(size < 1, near, far)


def mean_squared_error(predictions: ArrayLike, targets: ArrayLike) -> jax.Array:
    """Averages `squared_error` over all elements; raises `ValueError` when there are none."""
    return _mean(squared_error(predictions, targets))


def mean_absolute_error(predictions: ArrayLike, targets: ArrayLike) -> jax.Array:
    """Averages `absolute_error` over all elements; raises `ValueError` when there are none."""
    return _mean(absolute_error(predictions, targets))


def _difference(predictions: ArrayLike, targets: ArrayLike | None) -> jax.Array:
    predictions = check_float("predictions", predictions)
    if targets is None:
        return predictions.astype(compute_dtype(predictions))
    targets = check_float("targets", targets)
    check_same_shape("predictions", predictions.shape, "targets", targets.shape)
    dtype = compute_dtype(predictions, targets)
    return predictions.astype(dtype) - targets.astype(dtype)


def _mean(errors: jax.Array) -> jax.Array:
    if errors.size == 0:
        raise ValueError(f"predictions and targets {errors.shape} are empty: no mean to take")
    return errors.mean()
