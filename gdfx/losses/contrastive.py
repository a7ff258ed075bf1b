"""Contrastive losses, which compare embeddings with each other."""

import math

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike

from gdfx.checks import (
    check_axes,
    check_float,
    check_same_shape,
    check_scalar,
    compute_dtype,
    not_negative,
    positive,
)
from gdfx.tree import ratio, sqrt


def ntxent(embeddings: ArrayLike, labels: ArrayLike, temperature: ArrayLike = 0.07) -> jax.Array:
    """NT-Xent: for each pair of equal labels, the cross entropy of picking the partner among the other labels' rows.

    `embeddings` are (batch, features), `labels` integers (batch,), and similarity is the cosine divided by
    `temperature` (positive). The result is a scalar, float64 if `embeddings` are, else float32: the mean over all
    ordered pairs of two different rows with equal labels. The negatives of a pair are the rows of other labels; other
    positives of the row do not compete. Without any pair, and for pairs without negatives, the loss is 0 with
    gradient 0. The similarity to a row of zeros is 0, with gradient 0.

    Raises `ValueError` for shapes that do not fit and `TypeError` for labels that are no integers.

    Source: Chen et al., 2020, https://arxiv.org/abs/2002.05709.
    """
    embeddings = check_float("embeddings", embeddings)
    labels = jnp.asarray(labels)
    if embeddings.ndim != 2:
        raise ValueError(f"embeddings must be (batch, features), got {embeddings.shape}")
    if not (jnp.issubdtype(labels.dtype, jnp.integer) or labels.dtype == bool):
        raise TypeError(f"labels must be integers, equal for rows that belong together, got {labels.dtype}")
    rows = embeddings.shape[:1]
    check_same_shape(f"embeddings {embeddings.shape} without their features", rows, "labels", labels.shape)
    dtype = compute_dtype(embeddings)
    temperature = positive("temperature", temperature, dtype)

    x = embeddings.astype(dtype)
    x = ratio(x, sqrt(jnp.square(x).sum(1, keepdims=True)))
    # In full precision: temperatures are small, and the default of some devices has three digits.
    similarity = jnp.matmul(x, x.T, precision="highest") / temperature
    equal = labels[:, None] == labels[None, :]
    partners = equal & ~jnp.eye(len(labels), dtype=bool)
    opposed = ~equal.all(1, keepdims=True)  # rows with negatives; the others must not take the log of 0
    negatives = jnp.where(equal & opposed, -jnp.inf, similarity)
    cost = jax.nn.softplus(jax.nn.logsumexp(negatives, axis=1, keepdims=True) - similarity)
    count = jnp.maximum(partners.sum(dtype=dtype), 1)
    return jnp.where(partners & opposed, cost, 0).sum() / count


def triplet_margin_loss(
    anchors: ArrayLike,
    positives: ArrayLike,
    negatives: ArrayLike,
    axis: int = -1,
    norm_degree: ArrayLike = 2,
    margin: ArrayLike = 1.0,
    eps: ArrayLike = 1e-6,
) -> jax.Array:
    """How much less than `margin` an anchor is nearer to its positive than to its negative; at least 0.

    The three have one shape; the result lacks `axis`, along which the distance (sum |difference|^d + eps)^(1/d) is
    taken, with d = `norm_degree` at least 1. Its dtype is float64 if an argument has it, else float32. The gradient of
    a distance of 0 is 0, also for `eps` 0.

    Raises `ValueError` for shapes that differ and `TypeError` for integers or complex numbers.

    Source: Balntas et al., 2016, https://doi.org/10.5244/C.30.119.
    """
    anchors = check_float("anchors", anchors)
    positives = check_float("positives", positives)
    negatives = check_float("negatives", negatives)
    check_same_shape("anchors", anchors.shape, "positives", positives.shape)
    check_same_shape("anchors", anchors.shape, "negatives", negatives.shape)
    axes = check_axes("anchors", anchors.shape, axis)
    dtype = compute_dtype(anchors, positives, negatives)
    degree = check_scalar("norm_degree", norm_degree, dtype, lambda d: bool(1 <= d < math.inf), "at least 1 and finite")
    margin = not_negative("margin", margin, dtype)
    eps = not_negative("eps", eps, dtype)

    def distance(others: jax.Array) -> jax.Array:
        difference = anchors.astype(dtype) - others.astype(dtype)
        size = difference * jnp.sign(difference)  # the slope of jnp.abs at 0 is 1
        total = jnp.power(size, degree).sum(axes) + eps
        apart = ~(total <= 0)  # NaN stays NaN
        return jnp.where(apart, jnp.power(jnp.where(apart, total, 1), 1 / degree), 0)

    return jnp.maximum(distance(positives) - distance(negatives) + margin, 0)
