"""Prodigy: https://arxiv.org/abs/2306.06101."""

import jax
import jax.numpy as jnp

from ..composition import Optimizer
from ..core import GradientTransformation, Tree, increment, missing_argument
from ..pytrees import Decay, NonNegative, Positive, pytree, static
from ..transforms.decay import Mask, add_decayed_weights
from ..transforms.scale import _times, scale_by_learning_rate
from ..tree import (
    abs2,
    conj,
    copies,
    difference,
    leafwise,
    ratio,
    real_dtype,
    sqrt,
    sum_of_abs,
    vdot,
    zeros_like,
)
from .dadapt_adamw import adam_rate


@pytree
class ScaleByProdigyState:
    """The state of `scale_by_prodigy`."""

    count: jax.Array  # int32 scalar: the updates made so far
    exp_avg: Tree  # first moment of the gradients times the estimate, shaped like params
    exp_avg_sq: Tree  # second moment of the same
    grad_sum: Tree  # decaying sum of the gradients, weighted by the steps
    params0: Tree  # copies of the params at the start
    estim_lr: jax.Array  # scalar: the distance to the solution, as estimated
    numerator_weighted: jax.Array  # scalar

    def report(self):
        """What `gdfx.metrics` tells of it."""
        return {"estim_lr": self.estim_lr}


@pytree
class scale_by_prodigy(GradientTransformation):
    """Adam's step, with a learning rate that is `learning_rate` times an estimate of the distance to the solution.

    The estimate is one for all leaves; it starts at `estim_lr0`, which should be too small, only grows, and is
    multiplied by `estim_lr_coef`. `beta3` is the decay of the sums that it is made of; None is the square root of the
    second of `betas`. `safeguard_warmup` takes the learning rate out of its denominator, for long warm-ups. Bias
    correction multiplies the learning rate. The rate is part of the step, as is the weight decay, which is decoupled.
    """

    learning_rate: NonNegative = 1.0
    betas: tuple[Decay, Decay] = (0.9, 0.999)
    beta3: Decay | None = None
    eps: NonNegative = 1e-8
    estim_lr0: Positive = 1e-6
    estim_lr_coef: NonNegative = 1.0
    weight_decay: NonNegative = 0.0
    safeguard_warmup: bool = static(default=False)
    weight_decay_mask: Mask = static(default=None)

    @property
    def needs(self):
        return frozenset({"params"})

    def init(self, params):
        count, dtype = jnp.zeros((), jnp.int32), real_dtype(params)
        mu, nu, total = zeros_like(params), zeros_like(params, real=True), zeros_like(params)
        start = copies(params)
        d = jnp.array(self.at(count).estim_lr0, dtype)
        return ScaleByProdigyState(count, mu, nu, total, start, d, jnp.zeros((), dtype))

    def update(self, updates, state, params=None, **extra):
        if params is None:
            raise missing_argument(self, {"params"})
        now, t, d = self.at(state.count), increment(state.count), state.estim_lr
        rate = leafwise(adam_rate, (now, t), d)
        g, mu, nu, total = leafwise(_moments, (now, d, rate), updates, state.exp_avg, state.exp_avg_sq, state.grad_sum)
        slope = vdot(conj(g), difference(params, state.params0))
        scalars = (now, rate, slope, sum_of_abs(total))
        d, numerator = leafwise(_estimate, scalars, d, state.numerator_weighted)
        direction = leafwise(_direction, (now, d, rate), g, read=(mu, nu))
        decay = add_decayed_weights(leafwise(_times, (now.weight_decay,), rate), self.weight_decay_mask)
        state = ScaleByProdigyState(t, mu, nu, total, state.params0, d, numerator)
        return decay.apply(direction, params), state


def _moments(now, d, rate, g, mu, nu, total):
    b1, b2 = now.betas
    mu = b1 * mu + (1 - b1) * d * g
    nu = b2 * nu + (1 - b2) * abs2(d * g)
    weight = d / now.estim_lr0 * (d if now.safeguard_warmup else rate)
    return g, mu, nu, _beta3(now) * total + weight * g


def _estimate(now, rate, slope, size, d, numerator):
    # The weights hold the estimate in units of its first value, as it may be of the order of 1e-6.
    numerator = _beta3(now) * numerator - d / now.estim_lr0 * rate * slope
    return jnp.maximum(d, now.estim_lr_coef * ratio(numerator, size)), numerator


def _beta3(now):
    return sqrt(now.betas[1]) if now.beta3 is None else now.beta3


def _direction(now, d, rate, g, mu, nu):
    return rate * mu / (sqrt(nu) + d * now.eps)


@pytree
class prodigy(Optimizer):
    """AdamW that estimates its learning rate, with more weight on late gradients; see `scale_by_prodigy`.

    Leave `learning_rate` at 1, or let a schedule with the peak 1 stand for it. Weight decay is decoupled, where
    `weight_decay_mask` is true. It is the variant with bias correction, `use_bias_correction=True` of the authors'
    package. Gradients of 0 leave the estimate as it is, where optax's becomes NaN.
    """

    learning_rate: NonNegative = 1.0
    betas: tuple[Decay, Decay] = (0.9, 0.999)
    beta3: Decay | None = None
    eps: NonNegative = 1e-8
    estim_lr0: Positive = 1e-6
    estim_lr_coef: NonNegative = 1.0
    weight_decay: NonNegative = 0.0
    safeguard_warmup: bool = static(default=False)
    weight_decay_mask: Mask = static(default=None)

    def links(self):
        link = scale_by_prodigy(
            self.learning_rate,
            self.betas,
            self.beta3,
            self.eps,
            self.estim_lr0,
            self.estim_lr_coef,
            self.weight_decay,
            self.safeguard_warmup,
            self.weight_decay_mask,
        )
        return link, scale_by_learning_rate(1.0)
