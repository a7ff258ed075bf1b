"""Gradients freed of their spikes: https://arxiv.org/abs/2502.17055."""

import jax
import jax.numpy as jnp

from ..core import GradientTransformation, Tree, increment
from ..pytrees import Decay, NonNegative, pytree
from ..tree import absolute, check_params, debias, leafwise, ratio, real_dtype, sqrt
from .clip import shrink_factor
from .trust_ratio import leaf_norm


@pytree
class SteadyGradientsState:
    """The state of `steady_gradients`."""

    count: jax.Array  # int32 scalar: the updates made so far
    largest: Tree  # mean of the largest absolute values, a scalar for each leaf
    norm: Tree  # mean of the norms after clipping, a scalar for each leaf
    squared_norm: Tree  # mean of their squares


@pytree
class steady_gradients(GradientTransformation):
    """Clips the spikes of each leaf's gradient, and brings its norm to what it has been of late.

    Elements above the mean of the largest ones so far, of which the past has the weight `theta`, are shrunk by one
    factor, so that the largest is at that mean. Then the gradient is divided by its norm, and multiplied by the mean of
    the norms, with weight `gamma1`, over their root mean square, with weight `gamma2`, to which `eps` is added. All
    means are debiased. It stands in front of the moments of any optimizer.
    """

    gamma1: Decay = 0.7
    gamma2: Decay = 0.9
    theta: Decay = 0.999
    eps: NonNegative = 1e-8

    @property
    def takes(self):
        return "gradients"

    def init(self, params):
        check_params(params)
        zeros = lambda: jax.tree.map(lambda p: jnp.zeros((), real_dtype(p)), params)
        return SteadyGradientsState(jnp.zeros((), jnp.int32), zeros(), zeros(), zeros())

    def update(self, updates, state, params=None, **extra):
        t = increment(state.count)
        slots = state.largest, state.norm, state.squared_norm
        updates, *slots = leafwise(_steady, (self.at(state.count), t), updates, other=slots)
        return updates, SteadyGradientsState(t, *slots)


def _steady(now, t, g, largest, norm, squared_norm):
    sizes = absolute(g)
    peak = jnp.max(sizes, initial=0)
    largest = now.theta * largest + (1 - now.theta) * peak
    limit = largest / debias(now.theta, t)
    g = jnp.where(sizes > limit, shrink_factor(peak, limit), 1) * g
    size = leaf_norm(g)
    norm = now.gamma1 * norm + (1 - now.gamma1) * size
    squared_norm = now.gamma2 * squared_norm + (1 - now.gamma2) * jnp.square(size)
    target = norm / debias(now.gamma1, t) / (sqrt(squared_norm / debias(now.gamma2, t)) + now.eps)
    return ratio(target, size) * g, largest, norm, squared_norm
