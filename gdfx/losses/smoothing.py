"""Smoothing of labels before they enter a loss."""

from collections.abc import Sequence

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike

from gdfx.checks import check_axes, check_float, check_mask, compute_dtype, fraction


def smooth_labels(
    labels: ArrayLike,
    alpha: ArrayLike,
    *,
    axis: int | Sequence[int] | None = -1,
    where: ArrayLike | None = None,
) -> jax.Array:
    """Mixes one-hot or soft `labels` with the uniform distribution: (1 - alpha) labels + alpha / K.

    K is the number of elements along `axis`: an axis, several, or None for all of them. The result has the shape and
    dtype of `labels`; `alpha` is a scalar in [0, 1]. `where`, boolean and shaped like `labels`, removes the classes it
    marks False: they do not count in K and their labels become 0, so that labels that summed to 1 over the other
    classes still do.

    Raises `ValueError` for shapes that differ and `TypeError` for integer labels.

    Source: Szegedy et al., 2015, https://arxiv.org/abs/1512.00567.
    """
    labels = check_float("labels", labels)
    dtype = compute_dtype(labels)
    alpha = fraction("alpha", alpha, dtype)
    mask = check_mask("labels", labels.shape, where)
    mask = jnp.ones(labels.shape, bool) if mask is None else mask
    axes = check_axes("labels", labels.shape, axis)
    count = jnp.maximum(mask.sum(axes, dtype=dtype, keepdims=True), 1)
    smooth = (1 - alpha) * labels.astype(dtype) + alpha / count
    return jnp.where(mask, smooth, 0).astype(labels.dtype)
