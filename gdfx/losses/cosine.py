"""The cosine between vectors, as a similarity and as a distance."""

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike

from gdfx.checks import check_axes, check_float, check_mask, check_same_shape, compute_dtype, not_negative


def cosine_similarity(
    predictions: ArrayLike,
    targets: ArrayLike,
    *,
    epsilon: ArrayLike = 0.0,
    axis: int | tuple[int, ...] | None = -1,
    where: ArrayLike | None = None,
) -> jax.Array:
    """The cosine of the angle between predictions and targets, as vectors along `axis`.

    Both have one shape; the result is without `axis`: an axis, several, or None for all. It is float64 if either
    argument is, else float32. A norm below `epsilon`, a scalar of at least 0, counts as `epsilon`. A zero vector has
    similarity 0, and with epsilon 0 gradient 0. Norms are computed without overflow or underflow of the squares.

    `where`, boolean and shaped like the arguments, removes the elements it marks False; shaped like the result, it
    removes whole rows, whose similarity is 0.

    Raises `ValueError` for shapes that do not fit or a negative epsilon, and `TypeError` for integers or complex
    numbers.
    """
    a, b = check_float("predictions", predictions), check_float("targets", targets)
    check_same_shape("predictions", a.shape, "targets", b.shape)
    axes = check_axes("predictions", a.shape, axis)
    mask = check_mask("predictions", a.shape, where, axes)
    dtype = compute_dtype(a, b)
    epsilon = not_negative("epsilon", epsilon, dtype)
    return (_unit(a.astype(dtype), epsilon, axes, mask) * _unit(b.astype(dtype), epsilon, axes, mask)).sum(axes)


def cosine_distance(
    predictions: ArrayLike,
    targets: ArrayLike,
    *,
    epsilon: ArrayLike = 0.0,
    axis: int | tuple[int, ...] | None = -1,
    where: ArrayLike | None = None,
) -> jax.Array:
    """One minus `cosine_similarity`: 0 for vectors of one direction, 2 for opposite ones, 1 where either is zero."""
    return 1 - cosine_similarity(predictions, targets, epsilon=epsilon, axis=axis, where=where)


def _unit(x: jax.Array, epsilon: jax.Array, axes: tuple[int, ...], mask: jax.Array | None) -> jax.Array:
    """Returns x divided by the larger of its norm and epsilon, 0 if both are 0."""
    if mask is not None:
        x = jnp.where(mask, x, 0)
    # Scaled, the squares neither overflow nor vanish. The scale cancels, so that its own gradient is 0.
    largest = jax.lax.stop_gradient(jnp.abs(x).max(axes, keepdims=True, initial=0))
    scale = jnp.where(largest < jnp.finfo(x.dtype).tiny, 1, largest)
    x = x / scale
    squares = jnp.square(x).sum(axes, keepdims=True)
    nonzero = squares > 0
    norm = jnp.where(nonzero, jnp.sqrt(jnp.where(nonzero, squares, 1)), 0)
    norm = jnp.maximum(norm, epsilon / scale)
    return jnp.where(norm > 0, x / jnp.where(norm > 0, norm, 1), 0)
