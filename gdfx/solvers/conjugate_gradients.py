"""Truncated conjugate gradients, and the products with curvature that they take.

Steihaug, https://doi.org/10.1137/0720042; Nocedal and Wright, algorithm 7.2, https://doi.org/10.1007/978-0-387-40065-5.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from ..core import Tree
from ..tree import conj, leafwise, norm, ratio, size, vdot, where, widen


class CGResult(NamedTuple):
    """Where `truncated_cg` ended."""

    step: Tree  # like the gradient, in at least float32
    decrease: jax.Array  # float scalar: how much lower the quadratic model is after the step, at least 0
    on_boundary: jax.Array  # bool scalar: whether the step is as long as the radius
    products: jax.Array  # int32 scalar


class _Search(NamedTuple):
    """Conjugate gradients under way."""

    result: CGResult
    residual: Tree  # the gradient of the model after the step
    direction: Tree
    rr: jax.Array  # the squared norm of the residual
    done: jax.Array


def truncated_cg(
    product: Callable[[Tree], Tree], gradient: Tree, *, radius: Any = jnp.inf, rtol: Any, max_iterations: int
) -> CGResult:
    """The step, no longer than `radius`, that lowers `vdot(gradient, step) + vdot(step, product(step)) / 2`.

    `product` is linear and symmetric, of trees like `gradient`, which points uphill: for complex leaves it is the
    conjugate of what `jax.grad` gives. It ends where the gradient of the model has shrunk to `rtol` of what it was,
    after `max_iterations`, or at the boundary, to which it goes along a direction without positive curvature. Where no
    radius stops such a direction it ends after it, and has gone as far as the same curvature, if positive, would allow;
    along one without curvature it does not go, unless it is the first, steepest descent. A product that is not finite
    is seen as no curvature; for a gradient that is not finite the step is 0. Derivatives see the step as a constant.
    """
    gradient = jax.lax.stop_gradient(widen(gradient))
    rr = norm(gradient, squared=True)
    dtype, eps = rr.dtype, jnp.finfo(rr.dtype).eps
    as_number = lambda x: jax.lax.stop_gradient(jnp.asarray(x).astype(dtype))
    radius, zero = as_number(radius), jnp.zeros((), dtype)
    target = jnp.maximum(as_number(rtol), eps) * jnp.sqrt(rr)
    limited = jnp.isfinite(radius)

    def goes_on(search: _Search) -> jax.Array:
        return ~search.done & (search.result.products < max_iterations)

    def iterate(search: _Search) -> _Search:
        (step, decrease, _, products), r, d, rr, _ = search
        bd = jax.lax.stop_gradient(product(d))
        dd, pd, curvature = norm(d, squared=True), jnp.maximum(vdot(step, d), 0), vdot(d, bd)
        length_of_bd = norm(bd)
        curvature = jnp.where(jnp.isfinite(curvature) & jnp.isfinite(length_of_bd), curvature, 0)
        least = eps * jnp.sqrt(dd) * jnp.where(jnp.isfinite(length_of_bd), length_of_bd, 0)
        convex = curvature > least

        room = jnp.maximum(jnp.square(radius) - norm(step, squared=True), 0)
        far = jnp.where(limited, ratio(room, pd + jnp.sqrt(jnp.square(pd) + dd * room)), jnp.inf)
        flat = jnp.abs(curvature) <= least
        newton = jnp.where(flat, jnp.where(products == 0, 1, 0), ratio(rr, jnp.abs(curvature)))
        outside = limited & (~convex | (newton >= far))
        length = jnp.where(outside, far, newton)

        step = leafwise(_add, (length,), step, read=(d,))
        decrease = decrease + jnp.maximum(length * (rr - length * curvature / 2), 0)
        # Of a direction that is not followed the product may be infinite.
        r = leafwise(_add, (length,), r, read=(where(convex, bd, r),))
        new_rr = norm(r, squared=True)
        d = leafwise(_turn, (ratio(new_rr, rr),), d, read=(r,))
        done = outside | ~convex | ~(jnp.sqrt(new_rr) > target)
        return _Search(CGResult(step, decrease, outside, products + 1), r, d, new_rr, done)

    no = jnp.zeros((), bool)
    nothing = CGResult(jax.tree.map(jnp.zeros_like, gradient), zero, no, jnp.zeros((), jnp.int32))
    downhill = jax.tree.map(jnp.negative, gradient)
    nowhere = ~((rr > 0) & jnp.isfinite(rr))
    found = jax.lax.while_loop(goes_on, iterate, _Search(nothing, gradient, downhill, rr, nowhere)).result
    finite = jnp.isfinite(norm(found.step)) & jnp.isfinite(found.decrease)
    return found._replace(
        step=where(finite, found.step, nothing.step),
        decrease=jnp.where(finite, found.decrease, 0),
        on_boundary=found.on_boundary & finite,
    )


def _add(length, x, d):
    return x + length * d


def _turn(beta, d, r):
    return beta * d - r


def hessian_product(value_fn: Callable[[Tree], jax.Array], params: Tree) -> Callable[[Tree], Tree]:
    """The Hessian of a loss times a step: both like `params`, in at least float32, in which `value_fn` gets them."""
    _, derivative = jax.linearize(jax.grad(value_fn), widen(params))
    return lambda step: conj(derivative(step))


def gauss_newton_product(residual_fn: Callable[[Tree], Tree], params: Tree) -> Callable[[Tree], Tree]:
    """The Hessian of half the sum of squares, without what the curvature of the residuals adds, times a step.

    Both are like `params`, in at least float32, in which `residual_fn` gets them. Of complex residuals the squared
    absolute values are summed.
    """
    params = widen(params)
    _, forward = jax.linearize(residual_fn, params)
    backward = jax.linear_transpose(forward, params)
    return lambda step: conj(backward(conj(forward(step)))[0])


def inexact_newton(
    product: Callable[[Tree], Tree], gradient: Tree, max_iterations: int | None, radius: Any = jnp.inf
) -> CGResult:
    """`truncated_cg` as far as a Newton step needs it: to the tolerance for which convergence is superlinear."""
    rtol = jnp.minimum(jnp.sqrt(norm(gradient)), 0.1)  # 0.5 takes twice as long on functions like Rosenbrock's
    limit = 2 * size(gradient) if max_iterations is None else max_iterations
    return truncated_cg(product, gradient, radius=radius, rtol=rtol, max_iterations=limit)


def check_iterations(transform: Any) -> None:
    """Raises `ValueError` where the field `max_cg_iterations` is no number of iterations, nor None."""
    found = transform.max_cg_iterations
    if found is not None and (type(found) is not int or found < 1):
        raise ValueError(
            f"{type(transform).__name__}: max_cg_iterations is {found!r}, expected an int of at least 1, or None for "
            "twice as many as there are numbers in the params"
        )
