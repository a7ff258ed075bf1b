"""Adam-atan2: https://arxiv.org/abs/2407.05872."""

import jax
import jax.numpy as jnp

from ..composition import Optimizer
from ..core import GradientTransformation, increment
from ..pytrees import Decay, NonNegative, pytree, static
from ..transforms.decay import Mask, add_decayed_weights
from ..transforms.scale import scale_by_learning_rate
from ..tree import abs2, absolute, debias, leafwise, ratio, sqrt, zeros_like
from .adam import ScaleByAdamState


@pytree
class scale_by_adam_atan2(GradientTransformation):
    """Adam's updates with `a * atan2(mu, b * sqrt(nu))`, of the debiased moments, in place of the division.

    There is no `eps`: gradients of any scale, however small, give the same updates. Their absolute value is at most
    `a * pi / 2`; `a` 1.27, about `4 / pi`, makes that of a constant gradient 1, as Adam's is.
    """

    b1: Decay = 0.9
    b2: Decay = 0.999
    a: NonNegative = 1.27
    b: NonNegative = 1.0

    def init(self, params):
        return ScaleByAdamState(jnp.zeros((), jnp.int32), zeros_like(params), zeros_like(params, real=True))

    def update(self, updates, state, params=None, **extra):
        t = increment(state.count)
        updates, mu, nu = leafwise(_adam_atan2, (self.at(state.count), t), updates, state.mu, state.nu)
        return updates, ScaleByAdamState(t, mu, nu)


def _adam_atan2(now, t, g, mu, nu):
    mu = now.b1 * mu + (1 - now.b1) * g
    nu = now.b2 * nu + (1 - now.b2) * abs2(g)
    mu_hat = mu / debias(now.b1, t)
    rms = now.b * sqrt(nu / debias(now.b2, t))
    return now.a * _angle_over_size(absolute(mu_hat), rms) * mu_hat, mu, nu


def _angle_over_size(x, y):
    """`atan2(x, y) / x` of numbers that are not negative, and its limit `1 / y` at 0; 0 where both are 0."""
    # Relative to the larger of the two, as the derivative of atan2 squares them.
    scale = jax.lax.stop_gradient(jnp.maximum(x, y))
    scale = jnp.where(scale > 0, scale, 1)
    turned = x > 0
    angle = jnp.arctan2(jnp.where(turned, x / scale, 1), y / scale)
    return jnp.where(turned, angle / jnp.where(turned, x, 1), ratio(jnp.ones_like(y), y))


@pytree
class adam_atan2(Optimizer):
    """AdamW that needs no `eps`, and does not mind the scale of the gradients; see `scale_by_adam_atan2`.

    Weight decay is decoupled. Typical learning rates are 1e-4 to 1e-2.
    """

    learning_rate: NonNegative
    b1: Decay = 0.9
    b2: Decay = 0.999
    a: NonNegative = 1.27
    b: NonNegative = 1.0
    weight_decay: NonNegative = 0.0
    mask: Mask = static(default=None)

    def links(self):
        moments = scale_by_adam_atan2(self.b1, self.b2, self.a, self.b)
        decay = add_decayed_weights(self.weight_decay, self.mask)
        return moments, decay, scale_by_learning_rate(self.learning_rate)
