"""Losses that ask for a margin between the right class and the others, and are exactly 0 beyond it."""

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike

from gdfx.checks import check_float, check_indices, check_real, check_same_shape, compute_dtype, nan_unless


def hinge_loss(predictor_outputs: ArrayLike, targets: ArrayLike) -> jax.Array:
    """Hinge loss max(0, 1 - x t) of each output x and its target t, which is -1 or 1.

    Both have one shape, which the result keeps; its dtype is float64 if either is float64, else float32. Targets are
    floating point or signed integers (values are not checked). At the kink the slope is half that beyond it.

    Raises `ValueError` for shapes that differ and `TypeError` for targets that cannot be -1.
    Source: Cortes and Vapnik, 1995, https://doi.org/10.1007/BF00994018.
    """
    return jnp.maximum(0, 1 - _signed(predictor_outputs, targets))


def perceptron_loss(predictor_outputs: ArrayLike, targets: ArrayLike) -> jax.Array:
    """Perceptron loss max(0, -x t) of each output x and its target t, which is -1 or 1.

    Shapes, dtypes, errors and the slope at the kink as in `hinge_loss`.
    Source: Rosenblatt, 1958, https://doi.org/10.1037/h0042519.
    """
    return jnp.maximum(0, -_signed(predictor_outputs, targets))


def sparsemax_loss(logits: ArrayLike, labels: ArrayLike) -> jax.Array:
    """Binary sparsemax loss, 0 only where `jax.nn.sparse_sigmoid(logits)` equals `labels`.

    Both have one shape, which the result keeps; its dtype is float64 if either is float64, else float32. Labels are
    booleans, the integers 0 and 1, or probabilities of class 1 (values are not checked). An infinite logit that agrees
    with its label costs 0, with gradient 0.

    Raises `ValueError` for shapes that differ and `TypeError` for integer logits.
    Source: Blondel et al., 2020, section 4.4, https://arxiv.org/abs/1901.02324.
    """
    logits, y = check_float("logits", logits), check_real("labels", labels)
    check_same_shape("logits", logits.shape, "labels", y.shape)
    dtype = compute_dtype(logits, y)
    x, y = logits.astype(dtype), y.astype(dtype)
    # sparse_plus(x) - x y and its conjugate at y, collected in terms that are not negative and do not cancel.
    near = jnp.square(0.5 * (jnp.clip(x, -1, 1) + 1) - y)
    end = (x > 0).astype(dtype)
    beyond = jnp.where(jnp.isinf(x) & (end == y), 0, x - (2 * end - 1))
    return jnp.where(jnp.abs(x) < 1, near, jnp.square(end - y) + beyond * (end - y))


def multiclass_hinge_loss(scores: ArrayLike, labels: ArrayLike) -> jax.Array:
    """Multiclass hinge loss: how far the score of the right class is from exceeding all others by 1.

    `scores` have classes along their last axis; `labels` are integer class indices, shaped like `scores` without it,
    as is the result. Its dtype is float64 if `scores` is, else float32. Tied classes share the slope.

    A label outside [0, classes) makes its row NaN, with gradient 0, as in `softmax_cross_entropy_with_integer_labels`.

    Raises `ValueError` for shapes that do not fit and `TypeError` for labels that are no integers.
    Source: Crammer and Singer, 2001, https://www.jmlr.org/papers/v2/crammer01a.html.
    """
    return _largest_lead(scores, labels, margin=1.0)


def multiclass_perceptron_loss(scores: ArrayLike, labels: ArrayLike) -> jax.Array:
    """Multiclass perceptron loss: how far the score of the right class is below the largest.

    Shapes, dtypes, errors, ties and labels out of range as in `multiclass_hinge_loss`.
    Source: Collins, 2002, https://doi.org/10.3115/1118693.1118694.
    """
    return _largest_lead(scores, labels, margin=0.0)


def multiclass_sparsemax_loss(scores: ArrayLike, labels: ArrayLike) -> jax.Array:
    """Multiclass sparsemax loss: 0 if the score of the right class exceeds all others by 1, and smooth.

    Its gradient is the projection of the scores onto the probability simplex less the one-hot label. Shapes, dtypes,
    errors and labels out of range as in `multiclass_hinge_loss`.
    Source: Martins and Astudillo, 2016, https://arxiv.org/abs/1602.02068.
    """
    scores, right, known = _scores_and_labels(scores, labels)
    # Only differences of scores matter; those of the largest score lose nothing to rounding.
    scores = scores - jax.lax.stop_gradient(scores.max(-1, keepdims=True))
    support = _support(jax.lax.stop_gradient(scores))
    # Given the support, all is smooth, and differentiated as it stands.
    total = jnp.where(support, scores, 0).sum(-1, keepdims=True)
    threshold = (total - 1) / support.sum(-1, dtype=scores.dtype, keepdims=True)
    p = jnp.where(support, scores - threshold, 0)
    # Terms that are not negative: <p, s - s_y> + (1 - |p|²) / 2 would cancel, and take 0 times -inf.
    missing = jnp.where(right & ~support, threshold - scores, 0).sum(-1)
    return nan_unless(known, 0.5 * jnp.square(p - right.astype(p.dtype)).sum(-1) + missing)


def _support(scores: jax.Array) -> jax.Array:
    """Returns where the projection of `scores`, whose largest is 0, onto the simplex is positive."""
    # The threshold is at least -1, so that smaller scores, even -inf, may stand for it.
    descending = -jnp.sort(-jnp.maximum(scores, -1), axis=-1)
    count = jnp.broadcast_to(jnp.arange(1, scores.shape[-1] + 1, dtype=scores.dtype), scores.shape)
    # Of the thresholds for each size of the support the largest is right. (To compare scores with each, as usual, may
    # round differently where the compiler does it twice: a wrong support, not a small error.)
    return scores > ((jnp.cumsum(descending, axis=-1) - 1) / count).max(-1, keepdims=True)


def _largest_lead(scores: ArrayLike, labels: ArrayLike, margin: float) -> jax.Array:
    """Returns the largest of 0 and, for each other class, its score plus the margin less the right score."""
    scores, right, known = _scores_and_labels(scores, labels)
    right_score = jnp.where(right, scores, 0).sum(-1, keepdims=True)
    lead = jnp.where(jnp.isneginf(scores), -jnp.inf, scores - right_score + margin)
    return nan_unless(known, jnp.where(right, 0, lead).max(-1))


def _scores_and_labels(scores: ArrayLike, labels: ArrayLike) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Returns scores, where they are those of the right class, and which labels are classes (others become 0)."""
    scores = check_float("scores", scores)
    if scores.ndim == 0 or scores.shape[-1] == 0:
        raise ValueError(f"scores {scores.shape} must have classes along a last axis")
    labels = check_indices("labels", labels, "of one-hot labels take the argmax")
    if labels.shape == scores.shape:
        raise ValueError(
            f"labels {labels.shape} must be scores {scores.shape} without the last axis: of one-hot labels take the "
            "argmax"
        )
    rows = scores.shape[:-1]
    check_same_shape(f"scores {scores.shape} without the last axis", rows, "labels", labels.shape)
    classes = scores.shape[-1]
    known = (labels >= 0) & (labels < classes)
    right = jax.nn.one_hot(jnp.where(known, labels, 0), classes, dtype=bool)
    return scores.astype(compute_dtype(scores)), right, known


def _signed(outputs: ArrayLike, targets: ArrayLike) -> jax.Array:
    """Returns each output times its target: positive where they agree."""
    x, t = check_float("predictor_outputs", outputs), jnp.asarray(targets)
    if not (jnp.issubdtype(t.dtype, jnp.floating) or jnp.issubdtype(t.dtype, jnp.signedinteger)):
        raise TypeError(
            f"targets must be -1 or 1, floating point or signed integers, got {t.dtype}: of labels 0 and 1 make "
            "2 * labels.astype(jnp.float32) - 1"
        )
    check_same_shape("predictor_outputs", x.shape, "targets", t.shape)
    dtype = compute_dtype(x, t)
    return x.astype(dtype) * t.astype(dtype)
