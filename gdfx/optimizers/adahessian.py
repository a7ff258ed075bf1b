"""AdaHessian: https://arxiv.org/abs/2006.00719."""

from typing import Any

import jax
import jax.numpy as jnp

from ..composition import Optimizer
from ..core import GradientTransformation, Tree, as_transformation, increment
from ..pytrees import Decay, Interval, NonNegative, pytree, static
from ..transforms.basic import whole
from ..transforms.decay import Mask, add_decayed_weights
from ..transforms.scale import scale_by_learning_rate
from ..tree import debias, leafwise, sqrt, zeros_like
from .sophia import hutchinson_estimator_diag_hessian


@pytree
class ScaleByAdahessianState:
    """The state of `scale_by_adahessian`."""

    count: jax.Array  # int32 scalar: the updates made so far
    mu: Tree  # first moment of the gradients, shaped like params
    nu: Tree  # second moment of the estimates of the diagonal of the Hessian, real
    estimates: jax.Array  # int32 scalar: those made so far
    hessian_fn_state: Tree  # of `hessian_diagonal_fn`


@pytree
class scale_by_adahessian(GradientTransformation):
    """Divides the mean gradient by a power of the root mean square of the curvature, both debiased.

    At the first step, and then at every `update_interval`-th, `hessian_diagonal_fn`, any transform that returns
    estimates of the diagonal of the Hessian in place of the updates, is called with all arguments of `update`; at no
    other step does it cost anything, except under `vmap`. With `average_conv_kernel` the estimates of leaves of four or
    more axes, `[height, width, in, out]`, are averaged over all axes but the last two. `hessian_power` is between 0,
    for SGD with momentum, and 1; `eps` is added to the power.
    """

    b1: Decay = 0.9
    b2: Decay = 0.999
    eps: NonNegative = 1e-4
    hessian_power: NonNegative = 1.0
    update_interval: Interval = 1
    average_conv_kernel: bool = static(default=False)
    hessian_diagonal_fn: Any = hutchinson_estimator_diag_hessian()

    def __post_init__(self):
        object.__setattr__(self, "hessian_diagonal_fn", as_transformation(self.hessian_diagonal_fn))
        super().__post_init__()

    @property
    def needs(self):
        return self.hessian_diagonal_fn.needs

    def init(self, params):
        zero, fn_state = jnp.zeros((), jnp.int32), self.hessian_diagonal_fn.init(params)
        mu, nu = zeros_like(params), zeros_like(params, real=True)
        return ScaleByAdahessianState(zero, mu, nu, jnp.zeros((), jnp.int32), fn_state)

    def update(self, updates, state, params=None, **extra):
        now, t = self.at(state.count), increment(state.count)

        def refreshed():
            estimate, fn_state = self.hessian_diagonal_fn.update(updates, state.hessian_fn_state, params, **extra)
            _, nu = leafwise(_average, (now,), estimate, state.nu)
            return nu, increment(state.estimates), fn_state

        is_due = state.count % whole(now.update_interval) == 0
        kept = state.nu, state.estimates, state.hessian_fn_state
        nu, estimates, fn_state = jax.lax.cond(is_due, refreshed, lambda: kept)
        scalars = now.b1, now.b2, now.eps, now.hessian_power, t, estimates
        updates, mu = leafwise(_adahessian, scalars, updates, state.mu, read=(nu,))
        return updates, ScaleByAdahessianState(t, mu, nu, estimates, fn_state)


def _average(now, estimate, nu):
    curvature = estimate.real
    if now.average_conv_kernel and curvature.ndim >= 4 and curvature.size:
        curvature = jnp.mean(curvature, axis=tuple(range(curvature.ndim - 2)), keepdims=True)
    return estimate, now.b2 * nu + (1 - now.b2) * jnp.square(curvature)


def _adahessian(b1, b2, eps, power, t, estimates, g, mu, nu):
    mu = b1 * mu + (1 - b1) * g
    root = sqrt(nu / debias(b2, estimates))
    positive = root > 0
    curvature = jnp.where(positive, jnp.where(positive, root, 1) ** power, jnp.where(power > 0, 0, 1))
    return mu / debias(b1, t) / (curvature + eps), mu


@pytree
class adahessian(Optimizer):
    """AdaHessian: Adam with the curvature, by default Hutchinson's estimate, in place of the gradient's second moment.

    See `scale_by_adahessian`; a key is to be given to each `update` as `key=`, or once to the estimator, as in
    `hessian_diagonal_fn=hutchinson_estimator_diag_hessian(0)`. Weight decay is decoupled; `mask` says which leaves
    decay, by default all. Typical learning rates are 0.05 to 0.15.
    """

    learning_rate: NonNegative
    b1: Decay = 0.9
    b2: Decay = 0.999
    eps: NonNegative = 1e-4
    weight_decay: NonNegative = 0.0
    mask: Mask = static(default=None)
    hessian_power: NonNegative = 1.0
    update_interval: Interval = 1
    average_conv_kernel: bool = static(default=False)
    hessian_diagonal_fn: Any = hutchinson_estimator_diag_hessian()

    def __post_init__(self):
        object.__setattr__(self, "hessian_diagonal_fn", as_transformation(self.hessian_diagonal_fn))
        super().__post_init__()

    def links(self):
        scaled = scale_by_adahessian(
            self.b1,
            self.b2,
            self.eps,
            self.hessian_power,
            self.update_interval,
            self.average_conv_kernel,
            self.hessian_diagonal_fn,
        )
        decay = add_decayed_weights(self.weight_decay, self.mask)
        return scaled, decay, scale_by_learning_rate(self.learning_rate)
