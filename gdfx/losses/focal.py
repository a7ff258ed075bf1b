"""Cross entropies that weigh an element by how well it is predicted already: focal loss and PolyLoss."""

import math

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike

from gdfx.checks import (
    check_axes,
    check_float,
    check_mask,
    check_real,
    check_same_shape,
    check_scalar,
    compute_dtype,
    fraction,
    not_negative,
    without,
)
from gdfx.losses.classification import shift, sigmoid_binary_cross_entropy, softmax_cross_entropy


def sigmoid_focal_loss(
    logits: ArrayLike,
    labels: ArrayLike,
    *,
    alpha: ArrayLike | None = None,
    gamma: ArrayLike = 2.0,
) -> jax.Array:
    """Binary cross entropy times (1 - p)^gamma, where p is the probability predicted for the label.

    `logits` and `labels` have one shape, which the result keeps; its dtype is float64 if either is float64, else
    float32. Labels are probabilities, booleans or the integers 0 and 1 (values are not checked); for a probability y,
    p is y sigmoid(x) + (1 - y) sigmoid(-x). `gamma` is a finite scalar of at least 0: 0 gives the cross entropy.
    `alpha`, a scalar in [0, 1], weighs class 1 by alpha and class 0 by 1 - alpha; None weighs neither.

    An infinite logit that agrees with its label costs 0, with gradient 0.

    Raises `ValueError` for shapes that differ and scalars out of range.
    Source: Lin et al., 2017, https://arxiv.org/abs/1708.02002.
    """
    logits, y = check_float("logits", logits), check_real("labels", labels)
    check_same_shape("logits", logits.shape, "labels", y.shape)
    dtype = compute_dtype(logits, y)
    x, y = logits.astype(dtype), y.astype(dtype)
    gamma = not_negative("gamma", gamma, dtype)

    # Not 1 - p, which cancels. Where it underflows, so does the cross entropy, and only the slope of the power matters.
    bounded = jnp.where(jnp.abs(x) < 1000, x, 1000 * jnp.sign(x))  # else the slope is 0 times an infinite cost
    missed = y * jax.nn.sigmoid(-bounded) + (1 - y) * jax.nn.sigmoid(bounded)
    missed = jnp.where(missed < jnp.finfo(dtype).tiny, 1, missed)
    loss = jnp.power(missed, gamma) * sigmoid_binary_cross_entropy(x, y)
    if alpha is None:
        return loss
    alpha = fraction("alpha", alpha, dtype)
    return (alpha * y + (1 - alpha) * (1 - y)) * loss


def poly_loss_cross_entropy(
    logits: ArrayLike,
    labels: ArrayLike,
    *,
    epsilon: ArrayLike = 2.0,
    axis: int | tuple[int, ...] | None = -1,
    where: ArrayLike | None = None,
) -> jax.Array:
    """Softmax cross entropy plus `epsilon` times the probability that the predictions give to other classes.

    The second term is the sum of labels (1 - softmax(logits)) along `axis`: an axis, several that together hold the
    classes, or None for all. `epsilon` is a finite scalar, at least -1 to keep the loss positive; the paper takes 2 for
    images and -1 for detection. Shapes, dtypes, errors, `where` and classes of probability 0 as in
    `softmax_cross_entropy`. Source: Leng et al., 2022, https://arxiv.org/abs/2204.12511.
    """
    logits, labels = check_float("logits", logits), jnp.asarray(labels)
    axes = check_axes("logits", logits.shape, axis)
    if not jnp.issubdtype(labels.dtype, jnp.floating) or labels.shape == without(axes, logits.shape) != logits.shape:
        raise (ValueError if jnp.issubdtype(labels.dtype, jnp.floating) else TypeError)(
            f"labels must be floating-point probabilities shaped like logits {logits.shape}, got {labels.dtype} "
            f"{labels.shape}: of class indices make jax.nn.one_hot(labels, classes)"
        )
    check_same_shape("logits", logits.shape, "labels", labels.shape)
    mask = check_mask("logits", logits.shape, where, axes)
    dtype = compute_dtype(logits, labels)
    epsilon = check_scalar("epsilon", epsilon, dtype, lambda e: math.isfinite(e), "finite")

    x, y = logits.astype(dtype), labels.astype(dtype)
    cross_entropy = softmax_cross_entropy(x, y, axes, mask)
    shifted, log_z = shift(x, axes, mask)
    missed = -jnp.expm1(shifted - log_z)
    if mask is not None:
        y = jnp.where(mask, y, 0)
    return cross_entropy + epsilon * (y * missed).sum(axes)
