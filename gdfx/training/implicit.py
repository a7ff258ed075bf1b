"""The derivative of a minimizer by what the loss depends on, by the implicit function theorem."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.flatten_util import ravel_pytree

from ..core import Tree
from ..solvers.conjugate_gradients import truncated_cg
from ..solvers.squares import least_norm
from ..tree import cast_like, scale, widen

_DENSE = 512
"""Up to so many params the Hessian is made, and inverted where it can be; beyond, conjugate gradients."""


def by_implicit_function(
    loss: Callable[[Tree, Tree], jax.Array], solve: Callable[[Tree, Tree], tuple[Tree, jax.Array, Tree, Tree]]
) -> Callable[[Tree, Tree], tuple[Tree, jax.Array, Tree, Tree]]:
    """`solve(problem, other) -> (params, value, held, rest)`, where params and value have derivatives by `problem`.

    They are those of a point where the gradient of `loss(params, problem)` is 0, or where `held`, booleans shaped like
    the params, says that a param is at a bound. By what is in `other`, and of `rest`, derivatives are 0. Of a singular
    Hessian the least derivative is taken.
    """
    solved = jax.custom_jvp(solve)
    gradient = jax.grad(loss)

    @solved.defjvp
    def _(primals, tangents):
        params, value, mask, rest = solved(*primals)
        problem, problem_dot = primals[0], tangents[0]
        _, gradient_dot = jax.jvp(lambda problem: gradient(params, problem), (problem,), (problem_dot,))
        free = lambda tree: jax.tree.map(lambda x, m: jnp.where(m, jnp.zeros_like(x), x), tree, mask)

        def hessian(v):
            _, curved = jax.jvp(lambda p: gradient(p, problem), (params,), (cast_like(free(v), params),))
            return free(widen(curved))

        params_dot = cast_like(free(_solution(hessian, scale(-1.0, free(widen(gradient_dot))))), params)
        _, value_dot = jax.jvp(loss, (params, problem), (params_dot, problem_dot))
        dots = params_dot, value_dot.astype(value.dtype), *jax.tree.map(_no_tangent, (mask, rest))
        return (params, value, mask, rest), dots

    return solved


def _solution(product: Callable[[Tree], Tree], rhs: Tree) -> Tree:
    """The least solution of a symmetric system."""
    flat, unravel = ravel_pytree(rhs)
    of_flat = lambda v: ravel_pytree(product(unravel(v)))[0]
    solve = _by_conjugate_gradients if flat.size > _DENSE else _by_singular_values
    return unravel(jax.lax.custom_linear_solve(of_flat, flat, solve, symmetric=True))


def _by_singular_values(product: Callable[[Tree], Tree], rhs: jax.Array) -> jax.Array:
    matrix = jax.vmap(product)(jnp.eye(rhs.size, dtype=rhs.dtype))
    return least_norm((matrix + matrix.T) / 2, rhs)


def _by_conjugate_gradients(product: Callable[[Tree], Tree], rhs: jax.Array) -> jax.Array:
    return truncated_cg(product, -rhs, rtol=jnp.finfo(rhs.dtype).eps, max_iterations=10 * _DENSE).step


def _no_tangent(x: Any) -> Any:
    x = jnp.asarray(x)
    return jnp.zeros_like(x) if jnp.issubdtype(x.dtype, jnp.inexact) else np.zeros(x.shape, jax.dtypes.float0)
