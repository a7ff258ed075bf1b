"""CAME: https://arxiv.org/abs/2307.02047."""

from typing import Any

import jax
import jax.numpy as jnp

from ..composition import Optimizer
from ..core import GradientTransformation, Tree, increment
from ..pytrees import Decay, NonNegative, pytree, static
from ..transforms.block_clip import clip_by_block_rms
from ..transforms.decay import Mask, add_decayed_weights
from ..transforms.scale import scale_by_learning_rate
from ..tree import abs2, leafwise, zeros_like
from .factored_rms import (
    check_size,
    check_slots,
    factored_axes,
    factored_root,
    factored_shapes,
    factored_zeros,
    scale_by_factored_rms,
)


@pytree
class ScaleByConfidenceState:
    """The state of `scale_by_confidence`."""

    count: jax.Array  # int32 scalar: the updates made so far
    mu: Tree  # first moment of the updates, shaped like params
    res_row: Tree  # squared residuals averaged over the largest axis; None for a leaf that is not factored
    res_col: Tree  # squared residuals averaged over the second largest axis


@pytree
class scale_by_confidence(GradientTransformation):
    """Replaces the updates by their mean, divided by the root mean square of their residuals, the distances from it.

    In the mean the past has the weight `b1`, and in the mean square `b2`; neither is debiased. `eps` is added to the
    squared residuals, of which a row and a column are kept, as in `scale_by_factored_rms`, for leaves of two or more
    axes, the two largest of at least `min_dim_size_to_factor`. Other leaves get the mean itself.
    """

    b1: Decay = 0.9
    b2: Decay = 0.9999
    eps: NonNegative = 1e-16
    min_dim_size_to_factor: int = static(default=1)

    def __post_init__(self):
        super().__post_init__()
        check_size(self, "min_dim_size_to_factor")

    def init(self, params):
        mu = zeros_like(params)
        leaves, structure = jax.tree.flatten(zeros_like(params, real=True))
        pairs = [factored_zeros(leaf, self._axes(leaf.shape)) for leaf in leaves]
        rows, columns = (structure.unflatten([pair[k] for pair in pairs]) for k in range(2))
        return ScaleByConfidenceState(jnp.zeros((), jnp.int32), mu, rows, columns)

    def update(self, updates, state, params=None, **extra):
        shapes = [factored_shapes(jnp.shape(u), self._axes(jnp.shape(u))) for u in jax.tree.leaves(updates)]
        for k, slot in enumerate((state.res_row, state.res_col)):
            check_slots(updates, slot, [pair[k] for pair in shapes])
        updates, *slots = leafwise(
            _confidence, (self.at(state.count),), updates, state.mu, other=(state.res_row, state.res_col)
        )
        return updates, ScaleByConfidenceState(increment(state.count), *slots)

    def _axes(self, shape):
        return factored_axes(shape, self.min_dim_size_to_factor)


def _confidence(now, u, mu, row, col):
    mu = now.b1 * mu + (1 - now.b1) * u
    if row is None:
        return mu, mu, None, None
    root, row, col = factored_root(now.b2, abs2(u - mu) + now.eps, row, col, now._axes(u.shape))
    # The slope at 0, of 1e10 and 1e17 in the two moments, would overflow in derivatives, though the step is 0.
    return mu / jnp.where((mu != 0) & (root > 0), root, 1), mu, row, col


@pytree
class came(Optimizer):
    """CAME: Adafactor whose steps are longer where they agree with their mean; see `scale_by_confidence`.

    `betas` are the weights of the past in the mean of the steps, in the second moment of the gradients and in the
    squared residuals; `eps` are added to the squares that the last two average. The updates of each leaf are clipped to
    a root mean square of `clip_threshold` before the mean is taken. Weight decay is decoupled; `mask` says which leaves
    decay, by default all. Typical learning rates are 5e-5 to 2e-4, below Adam's.
    """

    learning_rate: NonNegative
    betas: tuple[Decay, Decay, Decay] = (0.9, 0.999, 0.9999)
    eps: tuple[NonNegative, NonNegative] = (1e-30, 1e-16)
    clip_threshold: NonNegative | None = 1.0
    min_dim_size_to_factor: int = static(default=1)
    weight_decay: NonNegative = 0.0
    mask: Mask = static(default=None)

    def __post_init__(self):
        super().__post_init__()
        check_size(self, "min_dim_size_to_factor")

    def links(self):
        b1, b2, b3 = self.betas
        eps, eps_res = self.eps
        least = self.min_dim_size_to_factor
        moments: list[Any] = [
            scale_by_factored_rms(
                decay_rate=b2, min_dim_size_to_factor=least, epsilon=eps, decay_rate_fn=_constant_decay
            )
        ]
        if self.clip_threshold is not None:
            moments.append(clip_by_block_rms(self.clip_threshold))
        decay = add_decayed_weights(self.weight_decay, self.mask)
        mean = scale_by_confidence(b1, b3, eps_res, least)
        return *moments, mean, decay, scale_by_learning_rate(self.learning_rate)


def _constant_decay(step, b2):
    return b2
