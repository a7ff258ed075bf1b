"""Classification losses: cross entropy against probabilities, class indices or binary labels."""

import operator

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike

from gdfx.losses.regression import check_float, check_same_shape, check_scalar, compute_dtype


def softmax_cross_entropy(
    logits: ArrayLike,
    labels: ArrayLike,
    axis: int = -1,
    label_smoothing: ArrayLike = 0.0,
    *,
    where: ArrayLike | None = None,
) -> jax.Array:
    """Cross entropy between the softmax of `logits` along `axis` and probabilities `labels`.

    `labels` has the shape of `logits` and sums to 1 along `axis` (not checked): one-hot or soft.
    The result has the shape of `logits` without `axis`; its dtype is float64 if either argument is
    float64, else float32. With smoothing s over K classes, labels become (1 - s) labels + s / K
    (https://arxiv.org/abs/1512.00567).

    `where`, boolean and shaped like `logits`, removes the classes it marks False, together with
    what `labels` gives them; shaped like the result, it removes whole rows. A row without classes
    costs 0, with gradient 0. A class of probability and label 0 (logit -inf) adds 0.

    Raises `ValueError` for shapes that do not fit and `TypeError` for integer labels.
    """
    logits, axis = _check_logits(logits, axis)
    labels = jnp.asarray(labels)
    if not jnp.issubdtype(labels.dtype, jnp.floating):
        raise TypeError(
            f"labels must be floating-point probabilities, got {labels.dtype}: for class indices "
            "use softmax_cross_entropy_with_integer_labels; cast one-hot labels with "
            "labels.astype(jnp.float32)"
        )
    if labels.shape == _without(axis, logits.shape):
        raise ValueError(
            f"labels {labels.shape} must give every class of logits {logits.shape} a probability: "
            "for class indices use softmax_cross_entropy_with_integer_labels"
        )
    check_same_shape("logits", logits.shape, "labels", labels.shape)
    dtype = compute_dtype(logits, labels)
    logits, labels = logits.astype(dtype), labels.astype(dtype)
    mask = _class_mask(where, logits, axis)

    shifted, log_z = _shift(logits, axis, mask)
    if not _is_zero(label_smoothing):
        s = check_scalar("label_smoothing", label_smoothing, dtype, _fraction, "in [0, 1]")
        labels = (1 - s) * labels + s / _count(logits, axis, mask)
    if mask is not None:
        labels = jnp.where(mask, labels, 0)
    cost = log_z - shifted
    cost = jnp.where((labels == 0) & jnp.isposinf(cost), 0, cost)  # 0 log 0 = 0
    return (labels * cost).sum(axis)


def softmax_cross_entropy_with_integer_labels(
    logits: ArrayLike,
    labels: ArrayLike,
    axis: int = -1,
    label_smoothing: ArrayLike = 0.0,
    *,
    where: ArrayLike | None = None,
) -> jax.Array:
    """Cross entropy between the softmax of `logits` along `axis` and class indices `labels`.

    `labels` are integers shaped like `logits` without `axis`, as is the result. Its dtype is
    float64 if `logits` is, else float32. `label_smoothing` and `where` as in
    `softmax_cross_entropy`.

    A label outside [0, classes), or at a class that `where` removes, makes its row NaN, with
    gradient 0: forgotten padding shows in the loss, and a mask afterwards
    (`jnp.where(labels >= 0, loss, 0)`) or rows removed by `where` keep gradients finite.

    Raises `ValueError` for shapes that do not fit and `TypeError` for labels that are no integers.
    """
    logits, axis = _check_logits(logits, axis)
    labels = jnp.asarray(labels)
    if not jnp.issubdtype(labels.dtype, jnp.integer):
        raise TypeError(
            f"labels must be integer class indices, got {labels.dtype}: for probabilities or "
            "one-hot labels use softmax_cross_entropy"
        )
    if labels.shape == logits.shape:
        raise ValueError(
            f"labels {labels.shape} must be logits {logits.shape} without axis {axis}: for one-hot "
            "labels use softmax_cross_entropy, or take their argmax"
        )
    rows = _without(axis, logits.shape)
    check_same_shape(f"logits {logits.shape} without axis {axis}", rows, "labels", labels.shape)
    dtype = compute_dtype(logits)
    logits = logits.astype(dtype)
    mask = _class_mask(where, logits, axis)
    # A narrow dtype could not be compared with a number of classes beyond its range.
    labels = labels.astype(jnp.int64 if labels.dtype.itemsize == 8 else jnp.int32)

    shifted, log_z = _shift(logits, axis, mask)
    known = (labels >= 0) & (labels < logits.shape[axis])
    index = jnp.expand_dims(jnp.where(known, labels, 0), axis)
    loss = log_z - jnp.take_along_axis(shifted, index, axis)
    if not _is_zero(label_smoothing):
        s = check_scalar("label_smoothing", label_smoothing, dtype, _fraction, "in [0, 1]")
        total = shifted.sum(axis, keepdims=True, where=mask)
        loss = (1 - s) * loss + s * (log_z - total / _count(logits, axis, mask))
    loss = loss.squeeze(axis)
    if mask is not None:
        present = mask.any(axis)
        loss = jnp.where(present, loss, 0)
        known = known & jnp.take_along_axis(mask, index, axis).squeeze(axis) | ~present
    # A NaN only where one is due: `jax_debug_nans` objects even to the constant.
    return jnp.where(known, loss, jnp.log(jnp.where(known, 1.0, -1.0)))


def sigmoid_binary_cross_entropy(
    logits: ArrayLike,
    labels: ArrayLike,
    label_smoothing: ArrayLike = 0.0,
) -> jax.Array:
    """Cross entropy between the sigmoid of each logit and the probability `labels` of class 1.

    Both have one shape, which the result keeps; its dtype is float64 if either is float64, else
    float32. Labels are probabilities, booleans or the integers 0 and 1 (values are not checked).
    With smoothing s they become (1 - s) labels + s / 2.

    Raises `ValueError` for shapes that differ.
    """
    logits = check_float("logits", logits)
    labels = jnp.asarray(labels)
    if not jnp.issubdtype(labels.dtype, jnp.floating):
        if jnp.issubdtype(labels.dtype, jnp.complexfloating):
            raise TypeError(f"labels must be real, got {labels.dtype}")
        labels = labels.astype(jnp.float32)
    check_same_shape("logits", logits.shape, "labels", labels.shape)
    dtype = compute_dtype(logits, labels)
    logits, labels = logits.astype(dtype), labels.astype(dtype)
    if not _is_zero(label_smoothing):
        s = check_scalar("label_smoothing", label_smoothing, dtype, _fraction, "in [0, 1]")
        labels = (1 - s) * labels + 0.5 * s
    # Two softplus rather than softplus(x) - x y, which cancels where the loss is small.
    return labels * jax.nn.softplus(-logits) + (1 - labels) * jax.nn.softplus(logits)


def _shift(logits: jax.Array, axis: int, mask: jax.Array | None) -> tuple[jax.Array, jax.Array]:
    """Returns logits less their largest along `axis`, and the log of their summed exponentials."""
    if mask is not None:
        # A row without classes is discarded later; zeros keep its gradient from becoming 0 / 0.
        removed = jnp.where(mask.any(axis, keepdims=True), -jnp.inf, 0.0)
        logits = jnp.where(mask, logits, removed)
    # Not logsumexp(x) - x, which cancels where logits are large.
    shifted = logits - jax.lax.stop_gradient(logits.max(axis, keepdims=True))
    return shifted, jnp.log(jnp.exp(shifted).sum(axis, keepdims=True))


def _count(logits: jax.Array, axis: int, mask: jax.Array | None) -> jax.Array | int:
    """Returns the number of classes of each row, at least 1."""
    if mask is None:
        return logits.shape[axis]
    return jnp.maximum(mask.sum(axis, dtype=logits.dtype, keepdims=True), 1)


def _check_logits(logits: ArrayLike, axis: int) -> tuple[jax.Array, int]:
    """Returns logits as an array, and the axis of their classes counted from the front."""
    logits = check_float("logits", logits)
    if isinstance(axis, bool) or not hasattr(axis, "__index__"):
        raise TypeError(f"axis must be an int, got {axis!r}")
    axis = operator.index(axis)
    if not -logits.ndim <= axis < logits.ndim:
        raise ValueError(f"logits {logits.shape} have no axis {axis}")
    if logits.shape[axis] == 0:
        raise ValueError(f"logits {logits.shape} have no classes along axis {axis}")
    return logits, axis % logits.ndim


def _class_mask(where: ArrayLike | None, logits: jax.Array, axis: int) -> jax.Array | None:
    """Returns `where` in the shape of logits."""
    if where is None:
        return None
    mask = jnp.asarray(where)
    if mask.dtype != bool:
        raise TypeError(f"where must be boolean, got {mask.dtype}")
    if mask.shape == _without(axis, logits.shape):
        mask = jnp.expand_dims(mask, axis)
        return jnp.broadcast_to(mask, logits.shape)
    check_same_shape("logits", logits.shape, "where", mask.shape)
    return mask


def _without(axis: int, shape: tuple[int, ...]) -> tuple[int, ...]:
    return shape[:axis] + shape[axis + 1 :]


def _fraction(value: np.ndarray) -> bool:
    return bool(0 <= value <= 1)


def _is_zero(value: ArrayLike) -> bool:
    """Tells if `value` is known to be 0: then its terms (0 times an infinity?) can be left out."""
    return isinstance(value, float | int) and not isinstance(value, bool) and value == 0
