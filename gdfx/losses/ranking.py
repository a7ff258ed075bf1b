"""Ranking losses: the last axis of their arguments holds the items of a list."""

from collections.abc import Callable

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike

from gdfx.checks import check_float, check_mask, check_real, check_same_shape, compute_dtype
from gdfx.losses.classification import softmax_cross_entropy


def ranking_softmax_loss(
    logits: ArrayLike,
    labels: ArrayLike,
    *,
    where: ArrayLike | None = None,
    weights: ArrayLike | None = None,
    reduce_fn: Callable[..., ArrayLike] | None = jnp.mean,
) -> jax.Array:
    """Cross entropy of each list, the softmax of its scores `logits` against the relevance `labels` of its items.

    All arguments have one shape, (..., items). Labels are floats, integers or booleans of any scale (they need not sum
    to 1) and are multiplied by `weights`; items that `where` (boolean) marks False are left out. An item of relevance
    0 and logit -inf adds 0. dtypes as in `softmax_cross_entropy`.

    `reduce_fn` is called with the losses (...) and with `where=`, which tells the lists that have items, or None; the
    mean of no lists is 0. With None the losses are returned, 0 for a list without items.

    Raises `ValueError` for shapes that differ.

    Source: Cao et al., Learning to rank: from pairwise approach to listwise approach, 2007,
    https://doi.org/10.1145/1273496.1273513.
    """
    logits = check_float("logits", logits)
    arrays = {"labels": check_real("labels", labels)}
    if weights is not None:
        arrays["weights"] = check_real("weights", weights)
    for name, array in arrays.items():
        check_same_shape("logits", logits.shape, name, array.shape)
    if logits.shape[-1:] in ((), (0,)):
        raise ValueError(f"logits {logits.shape} must be (..., items) with at least one item")
    mask = check_mask("logits", logits.shape, where)

    dtype = compute_dtype(logits, *arrays.values())
    relevance = arrays["labels"].astype(dtype)
    if weights is not None:
        relevance = relevance * arrays["weights"].astype(dtype)
    losses = softmax_cross_entropy(logits, relevance, where=mask)
    if reduce_fn is None:
        return losses
    lists = None if mask is None else mask.any(-1)
    if reduce_fn is jnp.mean:  # which is NaN when there are no lists
        count = losses.size if lists is None else lists.sum(dtype=dtype)
        return losses.sum() / jnp.maximum(count, 1)
    return jnp.asarray(reduce_fn(losses, where=lists))
