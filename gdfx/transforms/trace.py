"""Momentum as a decaying sum: https://proceedings.mlr.press/v28/sutskever13.html."""

from typing import Any

import jax
import jax.numpy as jnp

from ..core import GradientTransformation, Tree, increment
from ..pytrees import Decay, pytree, static
from ..tree import leafwise, zeros_like


@pytree
class TraceState:
    """The state of `trace`."""

    count: jax.Array  # int32 scalar: the updates made so far
    trace: Tree  # the decaying sum, shaped like params


@pytree
class trace(GradientTransformation):
    """Replaces the updates by their decaying sum `t = g + decay * t`, or with `nesterov` by `g + decay * t`.

    `accumulator_dtype` is the dtype of the sum; by default that of the params, at least float32.
    """

    decay: Decay
    nesterov: bool = static(default=False)
    accumulator_dtype: Any = static(default=None)

    def init(self, params):
        return TraceState(jnp.zeros((), jnp.int32), zeros_like(params, self.accumulator_dtype))

    def update(self, updates, state, params=None, **extra):
        updates, sums = leafwise(_trace, (self.at(state.count),), updates, state.trace)
        return updates, TraceState(increment(state.count), sums)


def _trace(now, g, t):
    t = g + now.decay * t
    return g + now.decay * t if now.nesterov else t, t
