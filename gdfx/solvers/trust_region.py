"""Trust-region Newton: Steihaug, https://doi.org/10.1137/0720042; Nocedal and Wright, algorithm 4.1.

https://doi.org/10.1007/978-0-387-40065-5.
"""

from typing import Literal, TypeAlias, get_args

import jax
import jax.numpy as jnp

from ..composition import Optimizer
from ..core import Tree, increment
from ..pytrees import Positive, pytree, static
from ..tree import cast_like, check_params, conj, norm, real_dtype, where, zeros_like
from .conjugate_gradients import check_iterations, gauss_newton_product, hessian_product, inexact_newton
from .line import NEEDS, WholeSteps, bound_fn, line_of, numbers_of, step_along
from .squares import attempt

Curvature: TypeAlias = Literal["hessian", "gauss_newton"]

# Gains: below the first a step is not made, below the second the radius shrinks, above the third it may grow.
_MADE, _POOR, _GOOD = 1e-4, 0.25, 0.75


@pytree
class ScaleByTrustRegionState:
    """The state of `scale_by_trust_region`."""

    count: jax.Array  # int32 scalar: the updates made so far
    radius: jax.Array  # float scalar: that of the next step; 0 at the start
    value: jax.Array  # float scalar: the loss after the update, infinity at the start
    grad: Tree  # the gradient after the update, in at least float32
    gain: jax.Array  # float scalar: by how much the loss fell, of what the model had told
    step_norm: jax.Array  # float scalar: the length of the last step, made or not
    products: jax.Array  # int32 scalar: the products with the curvature that it took
    evaluations: jax.Array  # int32 scalar: the points at which the last update evaluated the loss

    def report(self):
        """What `gdfx.metrics` tells of it."""
        return {"trust_radius": self.radius, "gain": self.gain, "cg_iterations": self.products}


@pytree
class scale_by_trust_region(WholeSteps):
    """Turns gradients into steps to the minimum of a quadratic model of the loss, within a radius in which it is good.

    The minimum is found approximately, by conjugate gradients that stop where the residual has shrunk to the square
    root of the norm of the gradient, at most 0.1, at the radius, to which they follow negative curvature, or after
    `max_cg_iterations`, by default twice as many as there are numbers in the params. The loss is evaluated after the
    step, with its gradient. If it did not fall as the model tells, or is not finite, no step is made; the updates are
    0, and the next step is at most a quarter as long. Where the loss falls well with a step as long as the radius, the
    radius doubles, up to `max_radius`, None for no limit. It is the L2 norm of all leaves.

    The curvature of the model is the Hessian, which may be indefinite: products with it are taken from `value_fn`,
    which `jax.grad` and `jax.jvp` go through together. With `curvature="gauss_newton"` it is that of half the sum of
    squares of residuals taken as linear, from `residual_fn(params)`, any tree of arrays. For these products
    half-precision params reach the functions as float32.

    `update` takes `value`, `grad`, the gradient as `jax.grad` gives it, `value_fn(params)`, and `residual_fn` if that
    is what the curvature is from. Derivatives see the step as a constant.
    """

    initial_radius: Positive = 1.0
    max_radius: Positive | None = None
    curvature: Curvature = static(default="hessian")
    max_cg_iterations: int | None = static(default=None)

    def __post_init__(self):
        super().__post_init__()
        _check(self)

    @property
    def needs(self):
        return NEEDS | {"residual_fn"} if self.curvature == "gauss_newton" else NEEDS

    def init(self, params):
        check_params(params)
        number = lambda fill: jnp.full((), fill, real_dtype(params))
        whole = lambda: jnp.zeros((), jnp.int32)
        return ScaleByTrustRegionState(
            count=whole(),
            radius=number(0.0),
            value=number(jnp.inf),
            grad=zeros_like(params),
            gain=number(0.0),
            step_norm=number(0.0),
            products=whole(),
            evaluations=whole(),
        )

    def update(self, updates, state, params=None, **extra):
        line = line_of(self, updates, params, extra)
        now = numbers_of(self, state.count, line.dtype)
        limit = jnp.inf if now.max_radius is None else now.max_radius
        radius = jnp.minimum(jnp.where(state.count > 0, state.radius, now.initial_radius), limit)

        found = inexact_newton(self._product(line, extra), conj(line.direction), self.max_cg_iterations, radius)
        step, value, grad, gain = attempt(line, found.step, found.decrease)
        made = gain > _MADE
        length = norm(found.step).astype(line.dtype)
        grown = jnp.minimum(2 * radius, limit)
        # A shorter step changes nothing, but is seen to be too short.
        shorter = jnp.maximum(length, jnp.finfo(line.dtype).eps * norm(line.params)) / 4
        radius = jnp.where((gain > _GOOD) & found.on_boundary, grown, jnp.where(gain < _POOR, shorter, radius))
        value, grad = where(made, (value, grad), (line.value, line.grad))
        state = ScaleByTrustRegionState(
            count=increment(state.count),
            radius=radius,
            value=value,
            grad=jax.tree.map(lambda g, slot: jnp.array(g, slot.dtype, copy=True), grad, state.grad),
            gain=gain,
            step_norm=length,
            products=found.products,
            evaluations=jnp.ones((), jnp.int32),
        )
        return cast_like(step_along(made.astype(line.dtype), step), updates), state

    def _product(self, line, extra):
        if self.curvature == "hessian":
            return hessian_product(line.value_fn, line.params)
        return gauss_newton_product(bound_fn("residual_fn", extra), line.params)


def _check(transform: "scale_by_trust_region | trust_region") -> None:
    if transform.curvature not in get_args(Curvature):
        raise ValueError(
            f"{type(transform).__name__}: curvature is {transform.curvature!r}, expected one of {get_args(Curvature)}"
        )
    check_iterations(transform)


@pytree
class trust_region(Optimizer):
    """Newton's method in a trust region: steps are as long as a quadratic model of the loss has proved good.

    It is for a loss without noise, twice differentiable, which need not be convex: full batches. There is no learning
    rate. `update` takes `value`, `grad` and `value_fn`, and with `curvature="gauss_newton"` also `residual_fn`, for a
    loss that is half the sum of squares of residuals. See `scale_by_trust_region` for the rest.
    """

    initial_radius: Positive = 1.0
    max_radius: Positive | None = None
    curvature: Curvature = static(default="hessian")
    max_cg_iterations: int | None = static(default=None)

    def __post_init__(self):
        super().__post_init__()
        _check(self)

    def links(self):
        return (scale_by_trust_region(self.initial_radius, self.max_radius, self.curvature, self.max_cg_iterations),)
