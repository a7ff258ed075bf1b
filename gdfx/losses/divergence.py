"""Divergences: how far a predicted distribution, given by its logarithms, is from a target distribution."""

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike

from gdfx.checks import check_axes, check_float, check_mask, check_same_shape, compute_dtype


def kl_divergence(
    log_predictions: ArrayLike,
    targets: ArrayLike,
    axis: int | tuple[int, ...] | None = -1,
    where: ArrayLike | None = None,
) -> jax.Array:
    """Kullback-Leibler divergence of the predictions from `targets`: the sum of t (log t - log q) along `axis`.

    `log_predictions` are logarithms of probabilities (`jax.nn.log_softmax` makes them of logits) and `targets`
    probabilities, of one shape; neither is checked to sum to 1. The result has that shape without `axis`: an axis,
    several, or None for all. It is float64 if either argument is, else float32.

    A target of 0 adds 0, with gradient 0 (the slope there is infinite), whatever the prediction; a positive target
    whose prediction is -inf adds infinity. `where`, boolean and shaped like the arguments, removes the elements it
    marks False; shaped like the result, it removes whole rows. A row without elements costs 0, with gradient 0.

    Raises `ValueError` for shapes that do not fit and `TypeError` for integers or complex numbers.
    Source: Kullback and Leibler, 1951, https://doi.org/10.1214/aoms/1177729694.
    """
    log_q, targets, axes, mask = _arguments(log_predictions, "targets", targets, axis, where)
    return _relative_entropy(log_q, targets, mask).sum(axes)


def kl_divergence_with_log_targets(
    log_predictions: ArrayLike,
    log_targets: ArrayLike,
    axis: int | tuple[int, ...] | None = -1,
    where: ArrayLike | None = None,
) -> jax.Array:
    """`kl_divergence` from targets that are given by their logarithms; one of -inf adds 0, with gradient 0."""
    log_q, log_t, axes, mask = _arguments(log_predictions, "log_targets", log_targets, axis, where)
    # Where the probability is 0 by underflow, too: the difference of the logarithms may be infinite there.
    used = jnp.exp(log_t) > 0 if mask is None else mask & (jnp.exp(log_t) > 0)
    log_t, log_q = jnp.where(used, log_t, 0), jnp.where(used, log_q, 0)
    return (jnp.exp(log_t) * (log_t - log_q)).sum(axes)


def generalized_kl_divergence(
    log_predictions: ArrayLike,
    targets: ArrayLike,
    axis: int | tuple[int, ...] | None = -1,
    where: ArrayLike | None = None,
) -> jax.Array:
    """`kl_divergence` plus the sum of q - t: the divergence of non-negative numbers that need not sum to 1.

    It is 0 only where predictions and targets are equal, and convex in both. At a target of 0, where its term is q,
    the gradient with respect to the target is 0.
    Source: Boyd and Vandenberghe, 2004, page 90, https://stanford.edu/~boyd/cvxbook/bv_cvxbook.pdf.
    """
    log_q, targets, axes, mask = _arguments(log_predictions, "targets", targets, axis, where)
    entropy = _relative_entropy(log_q, targets, mask)
    if mask is not None:
        log_q, targets = jnp.where(mask, log_q, -jnp.inf), jnp.where(mask, targets, 0)
    targets = jnp.where(targets == 0, 0, targets)  # for the gradient
    return (entropy + (jnp.exp(log_q) - targets)).sum(axes)


def _relative_entropy(log_q: jax.Array, targets: jax.Array, mask: jax.Array | None) -> jax.Array:
    """Returns t (log t - log q) for each element, 0 where t is 0 or the mask is False."""
    used = targets != 0 if mask is None else mask & (targets != 0)
    log_t = jnp.log(jnp.where(used, targets, 1))
    return jnp.where(used, targets, 0) * (log_t - jnp.where(used, log_q, 0))


def _arguments(
    log_predictions: ArrayLike,
    name: str,
    targets: ArrayLike,
    axis: int | tuple[int, ...] | None,
    where: ArrayLike | None,
) -> tuple[jax.Array, jax.Array, tuple[int, ...], jax.Array | None]:
    log_q, t = check_float("log_predictions", log_predictions), check_float(name, targets)
    check_same_shape("log_predictions", log_q.shape, name, t.shape)
    axes = check_axes("log_predictions", log_q.shape, axis)
    mask = check_mask("log_predictions", log_q.shape, where, axes)
    dtype = compute_dtype(log_q, t)
    return log_q.astype(dtype), t.astype(dtype), axes, mask
