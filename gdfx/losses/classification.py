"""Classification losses: cross entropy against probabilities, class indices or binary labels."""

import math

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike

from gdfx.checks import (
    check_axes,
    check_float,
    check_indices,
    check_mask,
    check_real,
    check_same_shape,
    compute_dtype,
    fraction,
    nan_unless,
    without,
)


def softmax_cross_entropy(
    logits: ArrayLike,
    labels: ArrayLike,
    axis: int | tuple[int, ...] | None = -1,
    where: ArrayLike | None = None,
    *,
    label_smoothing: ArrayLike = 0.0,
) -> jax.Array:
    """Cross entropy between the softmax of `logits` along `axis` and probabilities `labels`.

    `labels` has the shape of `logits` and sums to 1 along `axis` (not checked): one-hot or soft. Several axes, or None
    for all, together hold the classes. The result has the shape of `logits` without `axis`; its dtype is float64 if
    either argument is float64, else float32. With smoothing s over K classes, labels become (1 - s) labels + s / K
    (https://arxiv.org/abs/1512.00567).

    `where`, boolean and shaped like `logits`, removes the classes it marks False, together with what `labels` gives
    them; shaped like the result, it removes whole rows. A row without classes costs 0, with gradient 0. A class of
    probability and label 0 (logit -inf) adds 0.

    Raises `ValueError` for shapes that do not fit and `TypeError` for integer labels.
    """
    logits, axes = _check_logits(logits, axis)
    labels = jnp.asarray(labels)
    if not jnp.issubdtype(labels.dtype, jnp.floating):
        raise TypeError(
            f"labels must be floating-point probabilities, got {labels.dtype}: for class indices "
            "use softmax_cross_entropy_with_integer_labels; cast one-hot labels with "
            "labels.astype(jnp.float32)"
        )
    if labels.shape == without(axes, logits.shape) != logits.shape:
        raise ValueError(
            f"labels {labels.shape} must give every class of logits {logits.shape} a probability: "
            "for class indices use softmax_cross_entropy_with_integer_labels"
        )
    check_same_shape("logits", logits.shape, "labels", labels.shape)
    dtype = compute_dtype(logits, labels)
    logits, labels = logits.astype(dtype), labels.astype(dtype)
    mask = check_mask("logits", logits.shape, where, axes)

    shifted, log_z = shift(logits, axes, mask)
    if not _is_zero(label_smoothing):
        s = fraction("label_smoothing", label_smoothing, dtype)
        labels = (1 - s) * labels + s / _count(logits, axes, mask)
    if mask is not None:
        labels = jnp.where(mask, labels, 0)
    cost = log_z - shifted
    cost = jnp.where((labels == 0) & jnp.isposinf(cost), 0, cost)  # 0 log 0 = 0
    return (labels * cost).sum(axes)


def softmax_cross_entropy_with_integer_labels(
    logits: ArrayLike,
    labels: ArrayLike,
    axis: int | tuple[int, ...] | None = -1,
    where: ArrayLike | None = None,
    *,
    label_smoothing: ArrayLike = 0.0,
) -> jax.Array:
    """Cross entropy between the softmax of `logits` along `axis` and class indices `labels`.

    `labels` are integers shaped like `logits` without `axis`, as is the result. Its dtype is float64 if `logits` is,
    else float32. Several axes, or None for all, together hold the classes, which are counted in the order in which
    `axis` names the axes, the last fastest (`jnp.ravel_multi_index`). `where` and `label_smoothing` as in
    `softmax_cross_entropy`.

    A label outside [0, classes), or at a class that `where` removes, makes its row NaN, with gradient 0: forgotten
    padding shows in the loss, and a mask afterwards (`jnp.where(labels >= 0, loss, 0)`) or rows removed by `where` keep
    gradients finite.

    Raises `ValueError` for shapes that do not fit and `TypeError` for labels that are no integers.
    """
    logits, axes = _check_logits(logits, axis)
    labels = check_indices("labels", labels, "for probabilities or one-hot labels use softmax_cross_entropy")
    rows, along = without(axes, logits.shape), f"axis {axes[0] if len(axes) == 1 else axes}"
    if labels.shape == logits.shape != rows:
        raise ValueError(
            f"labels {labels.shape} must be logits {logits.shape} without {along}: for one-hot "
            "labels use softmax_cross_entropy, or take their argmax"
        )
    check_same_shape(f"logits {logits.shape} without {along}", rows, "labels", labels.shape)
    dtype = compute_dtype(logits)
    mask = check_mask("logits", logits.shape, where, axes)
    logits = _classes_last(logits.astype(dtype), axes)
    mask = None if mask is None else _classes_last(mask, axes)

    shifted, log_z = shift(logits, (-1,), mask)
    known = (labels >= 0) & (labels < logits.shape[-1])
    index = jnp.where(known, labels, 0)[..., None]
    loss = log_z - jnp.take_along_axis(shifted, index, -1)
    if not _is_zero(label_smoothing):
        s = fraction("label_smoothing", label_smoothing, dtype)
        total = shifted.sum(-1, keepdims=True, where=mask)
        loss = (1 - s) * loss + s * (log_z - total / _count(logits, (-1,), mask))
    loss = loss.squeeze(-1)
    if mask is not None:
        present = mask.any(-1)
        loss = jnp.where(present, loss, 0)
        known = known & jnp.take_along_axis(mask, index, -1).squeeze(-1) | ~present
    return nan_unless(known, loss)


def sigmoid_binary_cross_entropy(
    logits: ArrayLike,
    labels: ArrayLike,
    *,
    label_smoothing: ArrayLike = 0.0,
) -> jax.Array:
    """Cross entropy between the sigmoid of each logit and the probability `labels` of class 1.

    Both have one shape, which the result keeps; its dtype is float64 if either is float64, else float32. Labels are
    probabilities, booleans or the integers 0 and 1 (values are not checked). With smoothing s they become
    (1 - s) labels + s / 2. An infinite logit that agrees with its label costs 0, with gradient 0.

    Raises `ValueError` for shapes that differ and `TypeError` for integer logits.
    """
    logits, labels = check_float("logits", logits), check_real("labels", labels)
    check_same_shape("logits", logits.shape, "labels", labels.shape)
    dtype = compute_dtype(logits, labels)
    logits, labels = logits.astype(dtype), labels.astype(dtype)
    if not _is_zero(label_smoothing):
        s = fraction("label_smoothing", label_smoothing, dtype)
        labels = (1 - s) * labels + 0.5 * s
    # Two softplus rather than softplus(x) - x y, which cancels where the loss is small.
    cost_1, cost_0 = jax.nn.softplus(-logits), jax.nn.softplus(logits)
    cost_1 = jnp.where((labels == 0) & jnp.isposinf(cost_1), 0, cost_1)
    cost_0 = jnp.where((labels == 1) & jnp.isposinf(cost_0), 0, cost_0)
    return labels * cost_1 + (1 - labels) * cost_0


# Shared by the modules of this package; not part of the public API.


def shift(logits: jax.Array, axes: tuple[int, ...], mask: jax.Array | None) -> tuple[jax.Array, jax.Array]:
    """Returns logits less their largest along `axes`, and the log of their summed exponentials."""
    if mask is not None:
        # A row without classes is discarded later; zeros keep its gradient from becoming 0 / 0.
        removed = jnp.where(mask.any(axes, keepdims=True), -jnp.inf, 0.0)
        logits = jnp.where(mask, logits, removed)
    # Not logsumexp(x) - x, which cancels where logits are large.
    shifted = logits - jax.lax.stop_gradient(logits.max(axes, keepdims=True))
    return shifted, jnp.log(jnp.exp(shifted).sum(axes, keepdims=True))


def _count(logits: jax.Array, axes: tuple[int, ...], mask: jax.Array | None) -> jax.Array | int:
    """Returns the number of classes of each row, at least 1."""
    if mask is None:
        return math.prod(logits.shape[axis] for axis in axes)
    return jnp.maximum(mask.sum(axes, dtype=logits.dtype, keepdims=True), 1)


def _check_logits(logits: ArrayLike, axis: int | tuple[int, ...] | None) -> tuple[jax.Array, tuple[int, ...]]:
    """Returns logits as an array, and the axes of their classes counted from the front."""
    logits = check_float("logits", logits)
    axes = check_axes("logits", logits.shape, axis)
    if any(logits.shape[a] == 0 for a in axes):
        raise ValueError(f"logits {logits.shape} have no classes along axis {axis}")
    return logits, axes


def _classes_last(x: jax.Array, axes: tuple[int, ...]) -> jax.Array:
    """Returns x with `axes` made one, the last."""
    classes = math.prod(x.shape[axis] for axis in axes)
    return jnp.moveaxis(x, axes, range(-len(axes), 0)).reshape(*without(axes, x.shape), classes)


def _is_zero(value: ArrayLike) -> bool:
    """Tells if `value` is known to be 0: then its terms (0 times an infinity?) can be left out."""
    return isinstance(value, float | int) and not isinstance(value, bool) and value == 0
