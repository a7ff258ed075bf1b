"""Segmentation losses, which compare the overlap of regions rather than single elements."""

from collections.abc import Sequence
from typing import Literal

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike

from gdfx.checks import check_axes, check_float, check_real, check_same_shape, compute_dtype, not_negative


def dice_loss(
    predictions: ArrayLike,
    targets: ArrayLike,
    *,
    class_weights: ArrayLike | None = None,
    smooth: ArrayLike = 1.0,
    alpha: ArrayLike = 0.5,
    beta: ArrayLike = 0.5,
    apply_softmax: bool = True,
    reduction: Literal["mean", "sum", "none"] = "mean",
    ignore_background: bool = False,
    axis: int | Sequence[int] | None = None,
) -> jax.Array:
    """One minus the soft Dice coefficient of predicted and true region, for each example and class.

    Both are (batch, ..., classes). `targets` are one-hot or soft; booleans and integers will do. `predictions` are
    logits, of which the softmax over classes is taken (the sigmoid if there is one class), or, without
    `apply_softmax`, probabilities (not checked). The sums run over `axis`, by default all but the first and the last.
    With I, P and T the sums of product, predictions and targets, the loss of a class is 1 - (I + smooth) / (I + alpha
    (P - I) + beta (T - I) + smooth): `alpha` weighs false positives and `beta` false negatives, as in the Tversky loss
    (https://arxiv.org/abs/1706.05721). All three are not negative. A class that is in neither region costs 0, with
    gradient 0, also for `smooth` 0.

    Losses are multiplied by `class_weights` (classes,), then `ignore_background` drops class 0, then `reduction` takes
    the "mean" or "sum" over classes, or with "none" keeps them. The dtype is float64 if an argument has it, else
    float32.

    Raises `ValueError` for shapes that do not fit.

    Source: Milletari et al., 2016, https://arxiv.org/abs/1606.04797.
    """
    predictions, targets, dtype = _check(predictions, targets)
    if class_weights is not None:
        class_weights = check_float("class_weights", class_weights)
        check_same_shape("classes", predictions.shape[-1:], "class_weights", class_weights.shape)
        dtype = compute_dtype(jnp.zeros((), dtype), class_weights)
    if reduction not in ("mean", "sum", "none"):
        raise ValueError(f'reduction must be "mean", "sum" or "none", got {reduction!r}')
    if ignore_background and predictions.shape[-1] == 1:
        raise ValueError(f"predictions {predictions.shape} have one class: there is no background to ignore")
    if axis is None:
        axes = tuple(range(1, predictions.ndim - 1))
    else:
        axes = check_axes("predictions", predictions.shape, axis)
        if predictions.ndim - 1 in axes:
            raise ValueError(
                f"axis {axis!r} names the last axis of predictions {predictions.shape}, which holds the classes"
            )

    x, y = predictions.astype(dtype), targets.astype(dtype)
    if apply_softmax:
        x = jax.nn.sigmoid(x) if x.shape[-1] == 1 else jax.nn.softmax(x, axis=-1)
    smooth = not_negative("smooth", smooth, dtype)
    alpha, beta = not_negative("alpha", alpha, dtype), not_negative("beta", beta, dtype)
    overlap = (x * y).sum(axes)
    # Not differences of sums, whose rounding could make the loss negative.
    wrong = alpha * (x * (1 - y)).sum(axes) + beta * (y * (1 - x)).sum(axes)
    whole = overlap + wrong + smooth
    # Below, the square of `whole` in the gradient of the quotient would be 0.
    present = ~(whole <= np.sqrt(jnp.finfo(dtype).tiny))  # NaN stays NaN
    losses = jnp.where(present, wrong / jnp.where(present, whole, 1), 0)
    if class_weights is not None:
        losses = losses * jnp.broadcast_to(class_weights.astype(dtype), losses.shape)
    if ignore_background:
        losses = losses[..., 1:]
    if reduction == "none":
        return losses
    return losses.mean(-1) if reduction == "mean" else losses.sum(-1)


def binary_dice_loss(
    predictions: ArrayLike, targets: ArrayLike, *, smooth: ArrayLike = 1.0, apply_sigmoid: bool = True
) -> jax.Array:
    """`dice_loss` of one class, for each example.

    Both have one shape, (batch, ...); a last axis of size 1 is taken for the axis of classes and may be left out.
    `predictions` are logits or, without `apply_sigmoid`, probabilities. The result is (batch,).
    """
    predictions, targets, _ = _check(predictions, targets)
    if predictions.shape[-1] != 1:
        predictions, targets = predictions[..., None], targets[..., None]
    return dice_loss(predictions, targets, smooth=smooth, apply_softmax=apply_sigmoid)


def multiclass_generalized_dice_loss(
    predictions: ArrayLike,
    targets: ArrayLike,
    *,
    smooth: ArrayLike = 1.0,
    apply_softmax: bool = True,
    ignore_background: bool = False,
) -> jax.Array:
    """Mean `dice_loss` over examples and classes, with classes weighted by the inverse square of their frequency.

    The frequency of a class is the sum of its `targets` over the whole batch; weights are scaled to a mean of 1 over
    classes, background included. A class that does not occur weighs as much as the rarest that does. Arguments, shapes
    and errors as in `dice_loss`; the result is a scalar.

    Source: Sudre et al., 2017, https://arxiv.org/abs/1707.03237 (there the sums of all classes are weighted before
    one quotient is taken).
    """
    predictions, targets, dtype = _check(predictions, targets)
    if predictions.size == 0:
        raise ValueError(f"predictions and targets {predictions.shape} are empty: no mean to take")
    frequency = targets.astype(dtype).sum(tuple(range(targets.ndim - 1)))
    occurs = frequency > 0
    rarest = jnp.min(frequency, initial=jnp.inf, where=occurs)
    rarest = jnp.where(occurs.any(), rarest, 1)
    weights = jnp.square(rarest / jnp.where(occurs, frequency, rarest))
    losses = dice_loss(
        predictions,
        targets,
        class_weights=weights / weights.mean(),
        smooth=smooth,
        apply_softmax=apply_softmax,
        reduction="none",
        ignore_background=ignore_background,
    )
    return losses.mean()


def _check(predictions: ArrayLike, targets: ArrayLike) -> tuple[jax.Array, jax.Array, jnp.dtype]:
    """Returns both as arrays, and the dtype to compute in."""
    predictions, targets = check_float("predictions", predictions), check_real("targets", targets)
    if predictions.shape[-1:] in ((), (0,)):
        raise ValueError(f"predictions {predictions.shape} must be (batch, ..., classes) with at least one class")
    classes = predictions.shape[-1]
    if classes > 1 and targets.shape == predictions.shape[:-1]:
        raise ValueError(
            f"targets {targets.shape} must give every class of predictions {predictions.shape} a value: for class "
            f"indices, pass jax.nn.one_hot(targets, {classes})"
        )
    check_same_shape("predictions", predictions.shape, "targets", targets.shape)
    return predictions, targets, compute_dtype(predictions, targets)
