"""FTRL-Proximal, follow the regularized leader: https://research.google/pubs/pub41159."""

from typing import Annotated, Any

import jax
import jax.numpy as jnp

from ..composition import Optimizer
from ..core import GradientTransformation, Tree, increment, missing_argument
from ..pytrees import NonNegative, Range, pytree
from ..transforms.clip import shrink_factor
from ..transforms.scale import scale_by_learning_rate
from ..tree import abs2, absolute, leafwise, zeros_like


@pytree
class ScaleByFtrlState:
    """The state of `scale_by_ftrl`."""

    count: jax.Array  # int32 scalar: the updates made so far
    accumulator: Tree  # sum of the squared gradients, shaped like params
    subgradient: Tree  # of the L1 penalty at the present params


@pytree
class scale_by_ftrl(GradientTransformation):
    """The direction of `ftrl`, with the learning rate in it: to be followed by `scale_by_learning_rate(1.0)`."""

    learning_rate: NonNegative = 1e-3
    learning_rate_power: Annotated[Any, Range(high=0.0)] = -0.5
    initial_accumulator_value: NonNegative = 0.1
    l1_regularization_strength: NonNegative = 0.0
    l2_regularization_strength: NonNegative = 0.0
    l2_shrinkage_regularization_strength: NonNegative = 0.0
    beta: NonNegative = 0.0

    @property
    def needs(self):
        return frozenset({"params"})

    def init(self, params):
        count = jnp.zeros((), jnp.int32)
        accumulator = zeros_like(params, real=True, fill=self.at(count).initial_accumulator_value)
        return ScaleByFtrlState(count, accumulator, zeros_like(params))

    def update(self, updates, state, params=None, **extra):
        if params is None:
            raise missing_argument(self, {"params"})
        slots = state.accumulator, state.subgradient
        updates, accumulator, subgradient = leafwise(_ftrl, (self.at(state.count),), updates, *slots, read=(params,))
        return updates, ScaleByFtrlState(increment(state.count), accumulator, subgradient)


def _ftrl(now, g, n, s, p):
    # The leader w minimizes z w + l1 |w| + curvature / (2 rate) w^2, where z is the sum of g - sigma w over the steps.
    # Of the paper's z all but s, the subgradient of l1 |w|, can be told from w: so the state keeps s in place of z.
    rate, l1, w = now.learning_rate, now.l1_regularization_strength, jnp.conj(p)
    n = n + abs2(g)
    g = g + 2 * now.l2_shrinkage_regularization_strength * w
    positive = n > 0
    power = jnp.where(positive, jnp.where(positive, n, 1) ** -now.learning_rate_power, 0)
    curvature = now.beta + power + 2 * rate * now.l2_regularization_strength
    moves = (rate > 0) & (curvature > 0)
    rate, curvature = jnp.where(moves, rate, 1), jnp.where(moves, curvature, 1)
    z = g - s - curvature / rate * w
    size = absolute(z)
    new_s = -shrink_factor(size, l1) * z
    # From w by w: it ends at 0 exactly.
    step = jnp.where(size > l1, rate / curvature * (g + new_s - s), w)
    return jnp.where(moves, step, 0), n, jnp.where(moves, new_s, s)


@pytree
class ftrl(Optimizer):
    """FTRL-Proximal: AdaGrad with an L1 penalty that makes params exactly 0, for sparse linear models.

    The rate of a param is `learning_rate / (beta + n**-learning_rate_power)`, where `n` is the sum of its squared
    gradients, from `initial_accumulator_value` on. `learning_rate_power` is at most 0. The L1 and L2 penalties,
    `l1_regularization_strength * |w| + l2_regularization_strength * w**2`, are counted once, against the sum of the
    losses of all steps; `l2_shrinkage_regularization_strength * w**2` is counted in each step. The L1 penalty of a
    complex param is on its absolute value. Typical learning rates are 0.1 to 1.

    The arguments are those of Keras, and the params too if they start at 0. Otherwise Keras draws them to 0 in the
    first step, and again when the learning rate falls: here the proximal and L2 terms are centered where params start.
    """

    learning_rate: NonNegative = 1e-3
    learning_rate_power: Annotated[Any, Range(high=0.0)] = -0.5
    initial_accumulator_value: NonNegative = 0.1
    l1_regularization_strength: NonNegative = 0.0
    l2_regularization_strength: NonNegative = 0.0
    l2_shrinkage_regularization_strength: NonNegative = 0.0
    beta: NonNegative = 0.0

    def links(self):
        return (
            scale_by_ftrl(
                self.learning_rate,
                self.learning_rate_power,
                self.initial_accumulator_value,
                self.l1_regularization_strength,
                self.l2_regularization_strength,
                self.l2_shrinkage_regularization_strength,
                self.beta,
            ),
            scale_by_learning_rate(1.0),
        )
