"""Fenchel-Young losses: one for each function that smooths the maximum."""

from collections.abc import Callable

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike

from gdfx.checks import check_float, check_same_shape, compute_dtype


def make_fenchel_young_loss(max_fun: Callable[..., ArrayLike]) -> Callable[..., jax.Array]:
    """Makes the loss `max_fun(scores) - sum(targets * scores)` along the last axis, of a convex `max_fun`.

    `max_fun` maps a vector of scores to a scalar: `jax.scipy.special.logsumexp` gives softmax cross entropy. The loss
    is called as `loss(scores, targets, *args, **kwargs)`, with scores and targets of one shape, and passes what follows
    them on to `max_fun`. Its result is without the last axis; its dtype, and that of the scores in `max_fun`, is
    float64 if either argument is, else float32. A score of -inf whose target is 0 adds nothing to the sum.

    The gradient is that of `max_fun`, the predicted distribution, less the targets. The minimum over scores is minus
    the conjugate of `max_fun` at the targets: 0 for one-hot targets and `logsumexp`, and not in general.

    The loss raises `ValueError` for shapes that differ and where `max_fun` returns no scalar, and `TypeError` for
    integers or complex numbers.
    Source: Blondel et al., 2020, https://arxiv.org/abs/1901.02324.
    """

    def fenchel_young_loss(scores: ArrayLike, targets: ArrayLike, *args, **kwargs) -> jax.Array:
        s, t = check_float("scores", scores), check_float("targets", targets)
        check_same_shape("scores", s.shape, "targets", t.shape)
        if s.ndim == 0 or s.shape[-1] == 0:
            raise ValueError(f"scores {s.shape} must have classes along a last axis")
        dtype = compute_dtype(s, t)
        s, t = s.astype(dtype), t.astype(dtype)
        rows = s.reshape(-1, s.shape[-1])
        largest = jax.vmap(lambda row: jnp.asarray(max_fun(row, *args, **kwargs)))(rows)
        if largest.shape != rows.shape[:1]:
            raise ValueError(f"max_fun must return a scalar for a vector of scores, got shape {largest.shape[1:]}")
        s = jnp.where((t == 0) & jnp.isneginf(s), 0, s)
        return largest.astype(dtype).reshape(s.shape[:-1]) - (t * s).sum(-1)

    return fenchel_young_loss
