"""Newton's method with truncated conjugate gradients: https://doi.org/10.1137/0719025.

Nocedal and Wright, algorithm 7.1: https://doi.org/10.1007/978-0-387-40065-5.
"""

from typing import Any

import jax
import jax.numpy as jnp

from ..composition import Optimizer
from ..core import as_transformation
from ..pytrees import pytree, static
from ..tree import cast_like, check_params, conj, vdot, where
from .conjugate_gradients import check_iterations, hessian_product, inexact_newton
from .line import NEEDS, Direction, line_of, searched
from .zoom import scale_by_zoom_linesearch


@pytree
class ScaleByNewtonCGState:
    """The state of `scale_by_newton_cg`."""

    products: jax.Array  # int32 scalar: the Hessian products of the last update

    def report(self):
        """What `gdfx.metrics` tells of it."""
        return {"cg_iterations": self.products}


@pytree
class scale_by_newton_cg(Direction):
    """Multiplies gradients by the inverse Hessian, approximately, by conjugate gradients that stop early.

    They stop where the residual has shrunk to the square root of the norm of the gradient, at most 0.1, after a
    direction of negative curvature, along which they go as if it were positive, or after `max_cg_iterations`, by
    default twice as many as there are numbers in the params. What comes out descends: where nothing else does it is the
    gradient.

    No matrix is formed, only products of the Hessian at `params` with vectors; for them half-precision params reach
    `value_fn` as float32. Derivatives see what comes out as a constant.

    `update` takes `value`, `grad`, and `value_fn(params)`, which `jax.grad` and `jax.jvp` go through together.
    """

    max_cg_iterations: int | None = static(default=None)

    def __post_init__(self):
        super().__post_init__()
        check_iterations(self)

    @property
    def needs(self):
        return NEEDS

    def init(self, params):
        check_params(params)
        return ScaleByNewtonCGState(jnp.zeros((), jnp.int32))

    def update(self, updates, state, params=None, **extra):
        line = line_of(self, updates, params, extra)
        g = conj(line.direction)
        product = hessian_product(line.value_fn, line.params)
        found = inexact_newton(product, g, self.max_cg_iterations)
        new = where(vdot(g, found.step) < 0, jax.tree.map(jnp.negative, found.step), g)
        return cast_like(conj(new), updates), ScaleByNewtonCGState(found.products)


_ZOOM = scale_by_zoom_linesearch(20, initial_guess_strategy="one")


@pytree
class newton_cg(Optimizer):
    """Newton's method by conjugate gradients: steps along an approximate Newton step, as far as a line search says.

    It is for a loss without noise, twice differentiable: full batches. `update` takes `value`, `grad` and `value_fn`.
    The search finds the learning rate, first trying 1; `linesearch` is a transform of steps. See `scale_by_newton_cg`
    for the rest, and `trust_region` for a loss with much negative curvature.
    """

    max_cg_iterations: int | None = static(default=None)
    linesearch: Any = _ZOOM

    def __post_init__(self):
        object.__setattr__(self, "linesearch", as_transformation(self.linesearch))
        super().__post_init__()
        check_iterations(self)

    def links(self):
        return searched(scale_by_newton_cg(self.max_cg_iterations), 1.0, self.linesearch)
