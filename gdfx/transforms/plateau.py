"""A learning rate that falls when the loss no longer does."""

from typing import Annotated, Any

import jax
import jax.numpy as jnp

from ..core import GradientTransformation, increment, missing_argument
from ..pytrees import Interval, NonNegative, Range, pytree
from ..tree import check_params, leafwise, real_dtype
from .scale import _times


@pytree
class ReduceOnPlateauState:
    """The state of `reduce_on_plateau`."""

    count: jax.Array  # int32 scalar: the updates made so far
    scale: jax.Array  # the present factor, 1 at the start
    best_value: jax.Array  # the least mean so far, infinity at the start
    avg_value: jax.Array  # the mean of the values since the last look at it
    value_count: jax.Array  # int32 scalar: how many values are in that mean
    plateau_count: jax.Array  # int32 scalar: the means in a row that were no better
    cooldown_count: jax.Array  # int32 scalar: the means still to pass unjudged

    def report(self):
        """What `gdfx.metrics` tells of it."""
        return {"plateau_scale": self.scale}


@pytree
class reduce_on_plateau(GradientTransformation):
    """Multiplies the updates by a scale, which falls by `factor` when `patience` values in a row are no improvement.

    `update` is given the value, a number to be made small, as `value=`: the training step gives the loss of the batch.
    With `accumulation_size` above 1 it is the mean over that many steps that counts, and `patience` and `cooldown`, the
    number to pass without judgment after each fall, count such means. To improve is to fall below the best so far by
    more than `rtol` times its absolute value, plus `atol`. NaNs and infinities are no improvement. The scale does not
    fall below `min_scale`.

    In optax, as in PyTorch, `rtol` of a negative best value works the other way, so that every value about as good
    counts as better.
    """

    factor: Annotated[Any, Range(above=0.0, below=1.0)] = 0.1
    patience: Interval = 10
    rtol: Annotated[Any, Range(0.0, 1.0)] = 1e-4
    atol: NonNegative = 0.0
    cooldown: NonNegative = 0
    accumulation_size: Interval = 1
    min_scale: Annotated[Any, Range(0.0, 1.0)] = 0.0

    @property
    def needs(self):
        return frozenset({"value"})

    def init(self, params):
        check_params(params)
        dtype = real_dtype(params)
        zero = lambda: jnp.zeros((), jnp.int32)
        scale, best, average = (jnp.full((), fill, dtype) for fill in (1.0, jnp.inf, 0.0))
        return ReduceOnPlateauState(zero(), scale, best, average, zero(), zero(), zero())

    def update(self, updates, state, params=None, **extra):
        if extra.get("value") is None:
            raise missing_argument(self, {"value"})
        value = jnp.asarray(extra["value"])
        if value.shape != () or jnp.iscomplexobj(value):
            raise ValueError(f"{self}: value has dtype {value.dtype} and shape {value.shape}, expected one real number")
        slots = (state.best_value, state.avg_value, state.value_count, state.plateau_count, state.cooldown_count)
        scale, *slots = leafwise(_plateau, (self.at(state.count), value), state.scale, *slots)
        return leafwise(_times, (scale,), updates), ReduceOnPlateauState(increment(state.count), scale, *slots)


def _plateau(now, value, scale, best, average, n, bad, rest):
    average = (n * average + value) / (n + 1)
    n = n + 1
    judged = n >= now.accumulation_size

    started = jnp.isfinite(best)
    known = jnp.where(started, best, 0)
    better = average < jnp.where(started, known - now.rtol * jnp.abs(known) - now.atol, jnp.inf)
    resting = rest > 0
    new_bad = jnp.where(better | resting, 0, bad + 1)
    falls = new_bad >= now.patience
    after = (
        jnp.where(falls, jnp.maximum(scale * now.factor, now.min_scale), scale),
        jnp.where(better, average, best),
        jnp.zeros_like(average),
        jnp.zeros_like(n),
        jnp.where(falls, 0, new_bad),
        jnp.where(falls, jnp.round(now.cooldown), jnp.maximum(rest - 1, 0)),
    )
    before = scale, best, average, n, bad, rest
    return tuple(jnp.where(judged, new, old) for new, old in zip(after, before, strict=True))
