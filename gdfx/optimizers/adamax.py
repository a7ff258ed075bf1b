"""AdaMax: https://arxiv.org/abs/1412.6980, section 7."""

import jax
import jax.numpy as jnp

from ..composition import Optimizer
from ..core import GradientTransformation, Tree, increment
from ..pytrees import Decay, NonNegative, pytree
from ..transforms.scale import scale_by_learning_rate
from ..tree import absolute, debias, leafwise, zeros_like


@pytree
class ScaleByAdamaxState:
    """The state of `scale_by_adamax`."""

    count: jax.Array  # int32 scalar: the updates made so far
    mu: Tree  # first moment of the gradients, shaped like params
    nu: Tree  # the largest absolute gradient, decaying by `b2` a step


@pytree
class scale_by_adamax(GradientTransformation):
    """Divides the debiased mean of the updates by their largest absolute value, which decays.

    `eps` is added to each absolute value.
    """

    b1: Decay = 0.9
    b2: Decay = 0.999
    eps: NonNegative = 1e-8

    def init(self, params):
        return ScaleByAdamaxState(jnp.zeros((), jnp.int32), zeros_like(params), zeros_like(params, real=True))

    def update(self, updates, state, params=None, **extra):
        t = increment(state.count)
        updates, mu, nu = leafwise(_adamax, (self.at(state.count), t), updates, state.mu, state.nu)
        return updates, ScaleByAdamaxState(t, mu, nu)


def _adamax(now, t, g, mu, nu):
    size = absolute(g)
    mu = now.b1 * mu + (1 - now.b1) * g
    nu = jnp.maximum(now.b2 * nu, size + now.eps)
    return mu / debias(now.b1, t) / nu, mu, nu


@pytree
class adamax(Optimizer):
    """Adam with the largest gradient in place of the second moment; the typical learning rate is 2e-3."""

    learning_rate: NonNegative
    b1: Decay = 0.9
    b2: Decay = 0.999
    eps: NonNegative = 1e-8

    def links(self):
        return scale_by_adamax(self.b1, self.b2, self.eps), scale_by_learning_rate(self.learning_rate)
