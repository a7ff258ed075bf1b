"""Powell's dogleg for least squares.

Madsen, Nielsen and Tingleff, Methods for Non-Linear Least Squares Problems, algorithm 3.21; with scaled variables.
"""

import jax
import jax.numpy as jnp

from ..composition import Optimizer
from ..core import Tree, increment
from ..pytrees import Positive, pytree
from ..tree import cast_like, check_real_params, norm, ratio, real_dtype, where, zeros_like
from .line import WholeSteps, line_of
from .squares import NEEDS, attempt, dot, least_norm, raveled, residuals_of


@pytree
class ScaleByDoglegState:
    """The state of `scale_by_dogleg`; what it tells of a point is told of the params after the update."""

    count: jax.Array  # int32 scalar: the updates made so far
    radius: jax.Array  # float scalar: that of the next step; 0 at the start
    scale: jax.Array  # of shape (n,): the largest squared norms of the columns of the Jacobian so far
    value: jax.Array  # float scalar: the loss, infinity at the start
    grad: Tree  # its gradient, in at least float32
    gain: jax.Array  # float scalar: the decrease of the loss over the one predicted; not above 0 where no step was made
    step_norm: jax.Array  # float scalar: the length of the step tried
    evaluations: jax.Array  # int32 scalar: the points tried by the last update

    def report(self):
        """What `gdfx.metrics` tells of it."""
        return {"trust_radius": self.radius, "gain": self.gain}


@pytree
class scale_by_dogleg(WholeSteps):
    """Turns gradients into the steps of `dogleg`, or into 0 where such a step does not lower the loss."""

    initial_radius: Positive = 1.0

    @property
    def needs(self):
        return NEEDS

    def init(self, params):
        check_real_params(params, type(self).__name__)
        number = lambda fill: jnp.full((), fill, real_dtype(params))
        whole = lambda: jnp.zeros((), jnp.int32)
        return ScaleByDoglegState(
            count=whole(),
            radius=number(0.0),
            scale=jnp.zeros_like(raveled(zeros_like(params))[0]),
            value=number(jnp.inf),
            grad=zeros_like(params),
            gain=number(0.0),
            step_norm=number(0.0),
            evaluations=whole(),
        )

    def update(self, updates, state, params=None, **extra):
        residuals = residuals_of(self, params, extra)
        line = line_of(self, updates, params, extra)
        values, jacobian = residuals.linearized()
        norms = jnp.sum(jnp.square(jacobian), axis=0)
        scale = jnp.maximum(state.scale, jnp.where(jnp.isfinite(norms), norms, 0))
        d = jnp.sqrt(jnp.where(scale > 0, scale, 1))
        first = jax.lax.stop_gradient(jnp.asarray(self.at(state.count).initial_radius)).astype(line.dtype)
        radius = jnp.where(state.count > 0, state.radius, first * norm(values))

        g = raveled(line.grad)[0].astype(line.dtype)
        step = _dogleg(jacobian / d[None], values, g / d, radius)
        length = norm(step)
        step = step / d
        predicted = -dot(g, step) - 0.5 * norm(dot(jacobian, step), squared=True)
        made, value, grad, gain = attempt(line, residuals.unravel(step), predicted)

        nothing = jax.tree.map(jnp.zeros_like, made)
        value, grad, made = where(gain > 0, (value, grad, made), (line.value, line.grad, nothing))
        shorter = jnp.where(jnp.isfinite(length) & (length > 0), jnp.minimum(length, radius), radius) / 2
        after = jnp.where(gain > 0.75, jnp.maximum(radius, 3 * length), jnp.where(gain < 0.25, shorter, radius))
        state = ScaleByDoglegState(
            count=increment(state.count),
            radius=after,
            scale=scale,
            value=value,
            grad=cast_like(grad, state.grad),
            gain=gain,
            step_norm=norm(step),
            evaluations=jnp.ones((), jnp.int32),
        )
        return cast_like(made, updates), state


def _dogleg(jacobian, values, gradient, radius):
    """The point within the radius that is farthest on the way from 0 by the minimum downhill to that of the model."""
    newton = -least_norm(jacobian, values)
    newton = jnp.where(jnp.isfinite(norm(newton)), newton, 0)
    curvature = ratio(norm(dot(jacobian, gradient), squared=True), norm(gradient, squared=True))
    cauchy = -ratio(jnp.ones_like(radius), curvature) * gradient
    short = -ratio(radius, norm(gradient)) * gradient
    # Where the way from the one to the other leaves the ball: |cauchy + t along|^2 = radius^2, by the stable root.
    along = newton - cauchy
    a, b = norm(along, squared=True), dot(cauchy, along)
    c = jnp.maximum(jnp.square(radius) - norm(cauchy, squared=True), 0)
    root = jnp.sqrt(jnp.square(b) + a * c)
    t = jnp.where(b > 0, ratio(c, b + root), ratio(root - b, a))
    between = cauchy + jnp.minimum(t, 1) * along
    step = jnp.where(norm(cauchy) >= radius, short, between)
    return jnp.where(norm(newton) <= radius, newton, step)


@pytree
class dogleg(Optimizer):
    """Powell's dogleg, for a loss that is half the sum of squares of residuals: Gauss-Newton within a trust region.

    A step goes to the minimum of the linear residuals' squares; where that is outside of the radius, to where the way
    there leaves it that leads from the start, down the gradient, by the minimum along it. The params are measured in
    units in which the columns of the Jacobian have norms of at most 1, the largest so far, so that the radius is in
    units of the residuals: `initial_radius` is relative to their norm at the start. The loss is evaluated once an
    update. If it falls as told the radius grows, to three times the step at most; if not, it halves, and where the loss
    does not fall at all no step is made.

    The Jacobian is a matrix that is decomposed, of any shape and rank: for up to some thousand params. It is for a loss
    without noise: full batches. There is no learning rate. `update` takes `value`, `grad`, `value_fn` and
    `residual_fn`, as for a loss made by `sum_of_squares`; the gradients are used as they are in `grad`. Params are
    real. Derivatives see the steps as constants.
    """

    initial_radius: Positive = 1.0

    def links(self):
        return (scale_by_dogleg(self.initial_radius),)
