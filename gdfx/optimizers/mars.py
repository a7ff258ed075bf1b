"""MARS, variance reduction by the last gradient: https://arxiv.org/abs/2411.10438."""

import jax
import jax.numpy as jnp

from ..composition import Optimizer
from ..core import GradientTransformation, Tree, increment
from ..pytrees import Decay, NonNegative, pytree, static
from ..transforms.clip import shrink_factor
from ..transforms.decay import Mask, add_decayed_weights
from ..transforms.scale import scale_by_learning_rate
from ..transforms.trust_ratio import leaf_norm
from ..tree import leafwise, zeros_like
from .adam import scale_by_adam


@pytree
class ScaleByMarsState:
    """The state of `scale_by_mars`."""

    count: jax.Array  # int32 scalar: the updates made so far
    last: Tree  # the last gradients, shaped like params


@pytree
class scale_by_mars(GradientTransformation):
    """Adds to the gradients their change since the last, times `gamma * b1 / (1 - b1)`, and limits norms to 1.

    The norm is that of a leaf; smaller ones stay as they are. It stands in front of the moments of any optimizer, as in
    `chain(scale_by_mars(b1=0.9), lion(1e-4))`, and `b1` is the weight of the past in its mean. Before the first
    gradient the last is 0, as in the authors' code.
    """

    b1: Decay = 0.95
    gamma: NonNegative = 0.025

    @property
    def takes(self):
        return "gradients"

    def init(self, params):
        return ScaleByMarsState(jnp.zeros((), jnp.int32), zeros_like(params))

    def update(self, updates, state, params=None, **extra):
        updates, last = leafwise(_correct, (self.at(state.count),), updates, state.last)
        return updates, ScaleByMarsState(increment(state.count), last)


def _correct(now, g, last):
    c = g + now.gamma * now.b1 / (1 - now.b1) * (g - last)
    return shrink_factor(leaf_norm(c), 1.0) * c, g


@pytree
class mars(Optimizer):
    """AdamW of gradients corrected by their change, which reduces their variance; see `scale_by_mars`.

    Weight decay is decoupled. Typical learning rates are 1e-3 to 1e-2, three times those of AdamW. The authors give
    leaves of one axis to AdamW: `partition({"matrix": mars(3e-3), "rest": adamw(3e-3)})`.
    """

    learning_rate: NonNegative
    b1: Decay = 0.95
    b2: Decay = 0.99
    eps: NonNegative = 1e-8
    gamma: NonNegative = 0.025
    weight_decay: NonNegative = 0.0
    mask: Mask = static(default=None)

    def links(self):
        moments = scale_by_adam(self.b1, self.b2, self.eps)
        decay = add_decayed_weights(self.weight_decay, self.mask)
        return scale_by_mars(self.b1, self.gamma), moments, decay, scale_by_learning_rate(self.learning_rate)
