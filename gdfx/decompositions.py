"""Decompositions of matrices and stacks of them, and systems of equations, as constants for derivatives.

LAPACK, as jaxlib calls it on a CPU, deals the matrices of a stack out to the threads that also run the program, and
waits for them: on a machine of two cores two stacks wait for each other without end (jaxlib 0.10). So they go to it one
matrix at a time, also under `vmap`.
"""

from collections.abc import Callable
from typing import TypeVar

import jax
import jax.numpy as jnp

Result = TypeVar("Result", jax.Array, tuple[jax.Array, ...])


def _one_at_a_time(decompose: Callable[..., Result]) -> Callable[..., Result]:
    @jax.custom_batching.sequential_vmap
    def of_stack(*xs):
        if xs[0].ndim == 2:
            return decompose(*xs)
        stack = xs[0].shape[:-2]
        parts = jax.lax.map(lambda x: decompose(*x), tuple(x.reshape(-1, *x.shape[-2:]) for x in xs))
        return jax.tree.map(lambda part: part.reshape(*stack, *part.shape[1:]), parts)

    return lambda *xs: jax.lax.platform_dependent(*jax.lax.stop_gradient(xs), cpu=of_stack, default=decompose)


@_one_at_a_time
def eigh(x: jax.Array) -> tuple[jax.Array, ...]:
    """The eigenvalues of symmetric matrices, ascending, and their eigenvectors in columns."""
    return tuple(jnp.linalg.eigh(x))


@_one_at_a_time
def qr(x: jax.Array) -> tuple[jax.Array, ...]:
    """Orthonormal columns, and the triangle that makes `x` of them."""
    return tuple(jnp.linalg.qr(x))


@_one_at_a_time
def svd(x: jax.Array) -> tuple[jax.Array, ...]:
    """Left singular vectors in columns, singular values, descending, and right singular vectors in rows."""
    return tuple(jnp.linalg.svd(x, full_matrices=False))


@_one_at_a_time
def solve(a: jax.Array, x: jax.Array) -> jax.Array:
    """The inverse of `a` times the matrices `x`."""
    return jnp.linalg.solve(a, x)


@_one_at_a_time
def solve_upper(r: jax.Array, x: jax.Array) -> jax.Array:
    """The inverse of `r`, upper triangular, times the matrices `x`."""
    return jax.lax.linalg.triangular_solve(r, x, left_side=True)


@_one_at_a_time
def solve_adjoint(r: jax.Array, x: jax.Array) -> jax.Array:
    """The inverse of the adjoint of `r`, upper triangular, times the matrices `x`."""
    return jax.lax.linalg.triangular_solve(r, x, left_side=True, transpose_a=True, conjugate_a=True)
