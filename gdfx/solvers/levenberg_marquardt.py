"""Levenberg-Marquardt: https://doi.org/10.1137/0111030.

The scaling is that of Moré, https://doi.org/10.1007/BFb0067700; the damping follows the rule of Nielsen, as in Madsen,
Nielsen and Tingleff, Methods for Non-Linear Least Squares Problems, algorithm 3.16.
"""

from typing import Any, Literal, TypeAlias, get_args

import jax
import jax.numpy as jnp
from jax.core import Tracer

from ..composition import Optimizer
from ..core import Tree, apply_updates, increment
from ..decompositions import qr, solve_upper
from ..pytrees import Positive, pytree, static
from ..transforms.project import box_like, projected_grad_norm, steps_within
from ..tree import cast_like, check_real_params, norm, path_str, ratio, real_dtype, where, widen, zeros_like
from .conjugate_gradients import truncated_cg
from .line import WholeSteps, line_of
from .squares import NEEDS, attempt, dot, raveled, residuals_of

Method: TypeAlias = Literal["qr", "cg"]


@pytree
class ScaleByLevenbergMarquardtState:
    """The state of `scale_by_levenberg_marquardt`; what it tells of a point is told of the params after the update."""

    count: jax.Array  # int32 scalar: the updates made so far
    damping: jax.Array  # float scalar: that of the next step; 0 at the start
    growth: jax.Array  # float scalar: by what it is multiplied if that step is not made
    scale: jax.Array  # the largest squared norms of the columns of the Jacobian so far; with "cg" one estimate of them
    value: jax.Array  # float scalar: the loss, infinity at the start
    grad: Tree  # its gradient, in at least float32
    projected_grad_norm: jax.Array  # float scalar: how far the negative gradient leads in the box; infinity at first
    gain: jax.Array  # float scalar: the decrease of the loss over the one predicted; not above 0 where no step was made
    step_norm: jax.Array  # float scalar: the length of the step tried
    evaluations: jax.Array  # int32 scalar: the points tried by the last update

    def report(self):
        """What `gdfx.metrics` tells of it."""
        return {"damping": self.damping, "gain": self.gain}


@pytree
class scale_by_levenberg_marquardt(WholeSteps):
    """Turns gradients into the steps of `levenberg_marquardt`, or into 0 where such a step does not lower the loss."""

    damping: Positive = 1e-2
    method: Method = static(default="qr")
    bounds: Any = None

    def __post_init__(self):
        super().__post_init__()
        _check(self)

    @property
    def needs(self):
        return NEEDS

    def init(self, params):
        check_real_params(params, type(self).__name__)
        _check_start(self, params)
        dtype = real_dtype(params)
        number = lambda fill: jnp.full((), fill, dtype)
        count = lambda: jnp.zeros((), jnp.int32)
        size = raveled(zeros_like(params))[0].size if self.method == "qr" else 1
        return ScaleByLevenbergMarquardtState(
            count=count(),
            damping=number(0.0),
            growth=number(2.0),
            scale=jnp.zeros((size,), dtype),
            value=number(jnp.inf),
            grad=zeros_like(params),
            projected_grad_norm=number(jnp.inf),
            gain=number(0.0),
            step_norm=number(0.0),
            evaluations=count(),
        )

    def update(self, updates, state, params=None, **extra):
        residuals = residuals_of(self, params, extra)
        line = line_of(self, updates, params, extra)
        box = _box(self, line.params)
        vector = lambda tree: raveled(widen(tree))[0].astype(line.dtype)
        x, g, lower, upper = map(vector, (line.params, line.grad, *box))
        outside = jnp.any((x < lower) | (x > upper))
        free = ~(((x <= lower) & (g > 0)) | ((x >= upper) & (g < 0)))

        first = jnp.asarray(self.at(state.count).damping).astype(x.dtype)
        damping = jnp.where(state.count > 0, state.damping, jax.lax.stop_gradient(first))
        solve = _by_qr if self.method == "qr" else _by_cg
        step, scale, along = solve(residuals, jnp.where(free, g, 0), free, damping, state.scale)
        step = jnp.clip(x + step, lower, upper) - x
        predicted = -dot(g, step) - 0.5 * norm(along(step), squared=True)
        made, value, grad, gain = attempt(line, steps_within(residuals.unravel(step), line.params, *box), predicted)
        accepted = (gain > 0) | (outside & jnp.isfinite(value) & jnp.isfinite(norm(grad)))

        nothing = jax.tree.map(jnp.zeros_like, made)
        value, grad, made = where(accepted, (value, grad, made), (line.value, line.grad, nothing))
        params = apply_updates(line.params, made)
        damping, growth = _damping_after(gain, accepted, damping, state.growth)
        new = ScaleByLevenbergMarquardtState(
            count=increment(state.count),
            damping=damping,
            growth=growth,
            scale=scale,
            value=value,
            grad=cast_like(grad, state.grad),
            projected_grad_norm=projected_grad_norm(params, grad, *box).astype(line.dtype),
            gain=gain,
            step_norm=norm(step),
            evaluations=jnp.ones((), jnp.int32),
        )
        return cast_like(made, updates), new


def _by_qr(residuals, gradient, free, damping, scale):
    """The damped step, the scale, and the product of the Jacobian with a step."""
    values, jacobian = residuals.linearized()
    largest = jnp.maximum(scale, _finite(jnp.sum(jnp.square(jacobian), axis=0)))
    d = _roots(largest)
    scaled = jnp.where(free[None], jacobian / d[None], 0)
    q, r = qr(jnp.concatenate([scaled, jnp.sqrt(damping) * jnp.eye(d.size, dtype=d.dtype)]))
    step = -solve_upper(r, dot(values, q[: values.size])[:, None])[:, 0] / d
    return step, largest, lambda step: dot(jacobian, step)


def _by_cg(residuals, gradient, free, damping, scale):
    """As `_by_qr`, with the curvature along the gradient as the scale of all params."""
    _, forward = jax.linearize(residuals.fn, residuals.x)
    backward = jax.linear_transpose(forward, residuals.x)
    along = lambda step: jax.lax.stop_gradient(forward(step))
    squared = norm(gradient, squared=True)
    largest = jnp.maximum(scale, _finite(ratio(norm(along(gradient), squared=True), squared)))
    shift = damping * jnp.square(_roots(largest))
    product = lambda step: jnp.where(free, backward(along(step))[0], 0) + shift * step
    rtol = jnp.minimum(0.1, jnp.sqrt(jnp.sqrt(squared)))
    return truncated_cg(product, gradient, rtol=rtol, max_iterations=2 * gradient.size).step, largest, along


def _finite(x):
    return jnp.where(jnp.isfinite(x), x, 0)


def _roots(scale):
    """The square roots, 1 for a column that has always been 0."""
    return jnp.sqrt(jnp.where(scale > 0, scale, 1))


def _damping_after(gain, accepted, damping, growth):
    """Nielsen's rule; within limits, so that after many updates it is neither 0 nor infinite."""
    eps = jnp.finfo(damping.dtype).eps
    less = jnp.maximum(1 / 3, 1 - (2 * jnp.where(gain > 0, gain, 0) - 1) ** 3)
    damping = jnp.clip(damping * jnp.where(accepted, less, growth), eps**2, eps**-2)
    return damping, jnp.where(accepted, 2, jnp.minimum(2 * growth, 1 / eps))


def _check(transform):
    name, bounds = type(transform).__name__, transform.bounds
    if transform.method not in get_args(Method):
        raise ValueError(f"{name}: method is {transform.method!r}, expected one of {get_args(Method)}")
    if bounds is not None and not (isinstance(bounds, tuple) and len(bounds) == 2):
        raise TypeError(f"{name}: bounds is {bounds!r}, expected None or a pair (lower, upper)")


def _box(transform, params):
    return jax.lax.stop_gradient(box_like(transform.bounds or (-jnp.inf, jnp.inf), params))


def _check_start(transform, params):
    """Raises `ValueError`, naming the path, for params outside of the bounds, unless they are traced."""
    if transform.bounds is None:
        return
    lower, upper = _box(transform, params)
    for (path, p), low, high in zip(
        jax.tree_util.tree_leaves_with_path(params), jax.tree.leaves(lower), jax.tree.leaves(upper), strict=True
    ):
        here = f"{type(transform).__name__}: at {path_str(path)}"
        if any(isinstance(x, Tracer) for x in (p, low, high)):
            continue
        if not bool(jnp.all((low <= p) & (p <= high))):
            raise ValueError(f"{here}, params are {p}, outside of the bounds {low} and {high}: clip the start to them")


@pytree
class levenberg_marquardt(Optimizer):
    """Levenberg-Marquardt, for a loss that is half the sum of squares of residuals: Gauss-Newton steps, damped.

    A step solves `(J.T @ J + damping * D**2) @ step = -J.T @ residuals`, with the Jacobian J of the residuals and the
    diagonal D of the largest norms so far of its columns. It is made if it lowers the loss, which is evaluated once an
    update. Then the damping falls, to a third at best, the more the better J told the decrease; otherwise it doubles,
    the next time it grows fourfold, and so on. `damping` is what it starts from, relative to the squares of D.

    With `method="qr"` the Jacobian is computed, as a matrix, and decomposed: for up to some thousand params; it may
    have fewer rows than columns, and be singular. With `"cg"` the equations are solved by conjugate gradients, about as
    well as needed, with two products with J an iteration, and in place of D stands the square root of the largest
    curvature met along a gradient: params of very different scales are left to the user.

    `bounds=(lower, upper)`, numbers or trees like params, infinite ones allowed, are in the dtypes of the params. Those
    at a bound that the gradient pushes against are held, and steps are cut off at the bounds. A start outside of them
    is an error, or, if it is traced, goes to the nearest point inside in the first update.

    It is for a loss without noise: full batches. There is no learning rate. `update` takes `value`, `grad`, `value_fn`
    and `residual_fn`, as for a loss made by `sum_of_squares`; the gradients are used as they are in `grad`. Params are
    real. Derivatives see the steps as constants.
    """

    damping: Positive = 1e-2
    method: Method = static(default="qr")
    bounds: Any = None

    def __post_init__(self):
        super().__post_init__()
        _check(self)

    def links(self):
        return (scale_by_levenberg_marquardt(self.damping, self.method, self.bounds),)
