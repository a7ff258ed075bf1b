"""D-Adaptation of SGD: https://arxiv.org/abs/2301.07733."""

import jax
import jax.numpy as jnp

from ..composition import Optimizer
from ..core import GradientTransformation, Tree, increment
from ..pytrees import Decay, NonNegative, Positive, pytree, static
from ..transforms.decay import Mask, add_decayed_weights
from ..transforms.ema import ema
from ..transforms.scale import _times, scale_by_learning_rate
from ..tree import leafwise, norm, ratio, real_dtype, vdot, zeros_like


@pytree
class ScaleByDadaptSgdState:
    """The state of `scale_by_dadapt_sgd`."""

    count: jax.Array  # int32 scalar: the updates made so far
    grad_sum: Tree  # of the steps, shaped like params
    estim_lr: jax.Array  # scalar: the distance to the solution, as estimated
    numerator_weighted: jax.Array  # scalar
    first_norm: jax.Array  # scalar: the norm of the first gradient that is not 0

    def report(self):
        """What `gdfx.metrics` tells of it."""
        return {"estim_lr": self.estim_lr}


@pytree
class scale_by_dadapt_sgd(GradientTransformation):
    """Multiplies the gradients by `learning_rate` times the estimated distance to the solution over the first norm.

    The estimate is one for all leaves; it starts at `estim_lr0`, which should be too small, and only grows, in one step
    at most `growth_rate` times, or without a limit with None. The norm is that of the first gradient that is not 0.
    """

    learning_rate: NonNegative = 1.0
    estim_lr0: Positive = 1e-6
    growth_rate: NonNegative | None = None

    def init(self, params):
        count, dtype = jnp.zeros((), jnp.int32), real_dtype(params)
        d, zero = jnp.array(self.at(count).estim_lr0, dtype), jnp.zeros((), dtype)
        return ScaleByDadaptSgdState(count, zeros_like(params), d, zero, jnp.zeros((), dtype))

    def update(self, updates, state, params=None, **extra):
        now = self.at(state.count)
        rate, first = leafwise(_rate, (now, norm(updates)), state.estim_lr, state.first_norm)
        step, total = leafwise(_add_step, (rate,), updates, state.grad_sum)
        scalars = now, rate, vdot(updates, state.grad_sum), norm(total)
        d, numerator = leafwise(_estimate, scalars, state.estim_lr, state.numerator_weighted)
        return step, ScaleByDadaptSgdState(increment(state.count), total, d, numerator, first)


def _rate(now, size, d, first):
    first = jnp.where(first > 0, first, size)
    return ratio(d * now.learning_rate, first), first


def _add_step(rate, g, total):
    step = _times(rate, g)
    return step, total + step


def _estimate(now, rate, slope, size, d, numerator):
    numerator = numerator + rate * slope
    return limited_growth(now.growth_rate, d, ratio(2 * numerator, size)), numerator


def limited_growth(growth_rate, d, estimate):
    """The larger of `d` and the estimate, which counts as at most `growth_rate * d`."""
    return jnp.maximum(d, estimate if growth_rate is None else jnp.minimum(estimate, growth_rate * d))


@pytree
class dadapt_sgd(Optimizer):
    """SGD that estimates its learning rate by D-Adaptation; see `scale_by_dadapt_sgd`.

    Typical values of `learning_rate`, or of a schedule's peak, are 0.1 to 1; lower it where training is unstable, as it
    may be at 1 without noise in the gradients. With `momentum` the step is the moving average of the steps. Weight
    decay is coupled: a part of the gradient; `mask` says which leaves decay, by default all.
    """

    learning_rate: NonNegative = 1.0
    momentum: Decay | None = None
    estim_lr0: Positive = 1e-6
    growth_rate: NonNegative | None = None
    weight_decay: NonNegative | None = None
    mask: Mask = static(default=None)

    def links(self):
        decay = (
            () if self.weight_decay is None else (add_decayed_weights(self.weight_decay, self.mask, mode="coupled"),)
        )
        average = () if self.momentum is None else (ema(self.momentum, debias=False),)
        link = scale_by_dadapt_sgd(self.learning_rate, self.estim_lr0, self.growth_rate)
        return *decay, link, *average, scale_by_learning_rate(1.0)
