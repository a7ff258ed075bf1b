"""COCOB-Backprop, continuous coin betting: https://arxiv.org/abs/1705.07795."""

import jax
import jax.numpy as jnp

from ..composition import Optimizer
from ..core import GradientTransformation, Tree, increment, missing_argument
from ..pytrees import NonNegative, pytree, static
from ..transforms.decay import Mask, add_decayed_weights
from ..transforms.scale import scale, scale_by_learning_rate
from ..tree import absolute, copies, leafwise, ratio, zeros_like


@pytree
class ScaleByCocobState:
    """The state of `scale_by_cocob`."""

    count: jax.Array  # int32 scalar: the updates made so far
    init_particles: Tree  # copies of the params at the start
    cumulative_gradients: Tree  # minus the sum of the gradients, shaped like params
    scale: Tree  # the largest absolute gradient so far
    subgradients: Tree  # the sum of the absolute gradients
    reward: Tree  # what the bets have won


@pytree
class scale_by_cocob(GradientTransformation):
    """Replaces the updates by the way back to where a gambler, who bets on the sign of each gradient, would stand.

    Each element has a gambler, that of a complex one bets on a direction. In its first `alpha` steps one bets less.
    `eps` is the scale of gradients to start from. Unlike optax's, what it returns is to be subtracted from the params,
    as a gradient: put `scale_by_learning_rate(1.0)` behind it.
    """

    alpha: NonNegative = 100.0
    eps: NonNegative = 1e-8

    @property
    def needs(self):
        return frozenset({"params"})

    def init(self, params):
        count = jnp.zeros((), jnp.int32)
        first = zeros_like(params, real=True, fill=self.at(count).eps)
        total, absolute, reward = zeros_like(params), zeros_like(params, real=True), zeros_like(params, real=True)
        return ScaleByCocobState(count, copies(params), total, first, absolute, reward)

    def update(self, updates, state, params=None, **extra):
        if params is None:
            raise missing_argument(self, {"params"})
        slots = state.cumulative_gradients, state.scale, state.subgradients, state.reward
        updates, *slots = leafwise(
            _cocob, (self.at(state.count),), updates, *slots, read=(params, state.init_particles)
        )
        return updates, ScaleByCocobState(increment(state.count), state.init_particles, *slots)


def _cocob(now, g, total, largest, subgradients, reward, x, x0):
    size = absolute(g)
    largest = jnp.maximum(largest, size)
    subgradients = subgradients + size
    reward = jnp.maximum(reward - (g * (x - x0)).real, 0)
    total = total - g
    bet = ratio(largest + reward, largest * jnp.maximum(subgradients + largest, now.alpha * largest)) * total
    return jnp.conj(x - x0) - bet, total, largest, subgradients, reward


@pytree
class cocob(Optimizer):
    """Coin betting on each element, without a learning rate to tune; see `scale_by_cocob`.

    `learning_rate` multiplies the gradients: a constant one cancels, a schedule weights early against late gradients.
    Weight decay is coupled, a part of the gradient.
    """

    learning_rate: NonNegative = 1.0
    alpha: NonNegative = 100.0
    eps: NonNegative = 1e-8
    weight_decay: NonNegative = 0.0
    mask: Mask = static(default=None)

    def links(self):
        decay = add_decayed_weights(self.weight_decay, self.mask, mode="coupled")
        return decay, scale(self.learning_rate), scale_by_cocob(self.alpha, self.eps), scale_by_learning_rate(1.0)
