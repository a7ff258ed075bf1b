"""Gauss-Newton with a line search: Nocedal and Wright, section 10.3, https://doi.org/10.1007/978-0-387-40065-5."""

from typing import Any

import jax
import jax.numpy as jnp

from ..composition import Optimizer
from ..core import Tree, as_transformation, increment
from ..pytrees import pytree
from ..tree import cast_like, check_like, check_real_params, copies, norm, ratio, widen
from .line import Direction, searched
from .squares import dot, least_norm, raveled, residuals_of
from .zoom import scale_by_zoom_linesearch


@pytree
class ScaleByGaussNewtonState:
    """The state of `scale_by_gauss_newton`."""

    count: jax.Array  # int32 scalar: the updates made so far
    params: Tree  # those of the last update, in at least float32


@pytree
class scale_by_gauss_newton(Direction):
    """Turns gradients into the change of the params that takes the residuals, as far as they are linear, to 0.

    Where no change does it is the one that comes nearest, and of those the shortest: `pinv(J) @ residuals`, with the
    Jacobian J, a matrix that is decomposed, of any shape and rank. Its negative descends. Where that is not finite, and
    where the params are those of the last update, as the search found nothing along it, what comes out is the gradient,
    as long as the linear residuals tell.

    `update` takes `residual_fn`, for a loss that is half the sum of squares of residuals, as `sum_of_squares` makes it.
    Params are real. Derivatives see the direction as a constant.
    """

    @property
    def needs(self):
        return frozenset({"params", "residual_fn"})

    def init(self, params):
        check_real_params(params, type(self).__name__)
        return ScaleByGaussNewtonState(jnp.zeros((), jnp.int32), copies(params))

    def update(self, updates, state, params=None, **extra):
        residuals = residuals_of(self, params, extra)
        check_like(updates, state.params, "updates", "the params that the state was made for")
        values, jacobian = residuals.linearized()
        newton = least_norm(jacobian, values)
        g, last = (jax.lax.stop_gradient(raveled(widen(tree))[0]) for tree in (updates, state.params))
        steepest = ratio(norm(g, squared=True), norm(dot(jacobian, g), squared=True)) * g
        stuck = (state.count > 0) & jnp.all(last == residuals.x)
        new = jnp.where(~stuck & jnp.isfinite(norm(newton)), newton, steepest)
        state = ScaleByGaussNewtonState(increment(state.count), copies(params))
        return cast_like(residuals.unravel(new), updates), state


_ZOOM = scale_by_zoom_linesearch(20, initial_guess_strategy="one")


@pytree
class gauss_newton(Optimizer):
    """Gauss-Newton, for a loss that is half the sum of squares of residuals: steps as far as a line search says.

    Each step solves the linear least-squares problem that the Jacobian of the residuals tells, by a singular value
    decomposition. It is for residuals that are nearly linear or can be brought nearly to 0; `levenberg_marquardt` and
    `dogleg` depend less on where they start. Full batches, without noise: `update` takes `value`, `grad`, `value_fn`
    and `residual_fn`. The search finds the learning rate, first trying 1; `linesearch` is a transform of steps. See
    `scale_by_gauss_newton` for the rest.
    """

    linesearch: Any = _ZOOM

    def __post_init__(self):
        object.__setattr__(self, "linesearch", as_transformation(self.linesearch))
        super().__post_init__()

    def links(self):
        return searched(scale_by_gauss_newton(), 1.0, self.linesearch)
