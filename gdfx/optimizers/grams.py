"""Grams, gradient descent with adaptive momentum scaling: https://arxiv.org/abs/2412.17107."""

import jax.numpy as jnp

from ..composition import Optimizer
from ..core import GradientTransformation
from ..pytrees import Decay, NonNegative, pytree, static
from ..transforms.decay import Mask, add_decayed_weights
from ..transforms.scale import scale_by_learning_rate
from ..tree import absolute, leafwise
from .adam import scale_by_adam


@pytree
class scale_by_grams(GradientTransformation):
    """Gives each element of the updates the absolute value of Adam's: momentum sets the size, not the sign.

    A complex element keeps its direction. Where a gradient is 0 the update is.
    """

    b1: Decay = 0.9
    b2: Decay = 0.999
    eps: NonNegative = 1e-8

    @property
    def takes(self):
        return "gradients"

    def init(self, params):
        return scale_by_adam(self.b1, self.b2, self.eps).init(params)

    def update(self, updates, state, params=None, **extra):
        sizes, state = scale_by_adam(self.b1, self.b2, self.eps).update(updates, state)
        return leafwise(_signed, (), updates, read=(sizes,)), state


def _signed(g, size):
    return jnp.sign(g) * absolute(size)


@pytree
class grams(Optimizer):
    """AdamW whose steps have the sign of the present gradient; see `scale_by_grams`.

    Weight decay is decoupled. Typical learning rates are 1e-4 to 1e-2.
    """

    learning_rate: NonNegative
    b1: Decay = 0.9
    b2: Decay = 0.999
    eps: NonNegative = 1e-8
    weight_decay: NonNegative = 0.0
    mask: Mask = static(default=None)

    def links(self):
        directions = scale_by_grams(self.b1, self.b2, self.eps)
        decay = add_decayed_weights(self.weight_decay, self.mask)
        return directions, decay, scale_by_learning_rate(self.learning_rate)
