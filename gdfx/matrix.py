"""Iterations of linear algebra: the dominant eigenvalue, inverse roots, and least squares without negative solutions.

Matrices are real, checked to have the shapes asked for (`ValueError`) and to be floating point (`TypeError`). Half
precision is computed, and returned, in float32; float64 stays float64.
"""

import operator
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike

from .checks import check_float, check_scalar, compute_dtype
from .numerics import check_alike, direction, float_leaves
from .tree import Tree, cast_like, norm, vdot


def power_iteration(
    matrix: ArrayLike | Callable[[Tree], Tree],
    *,
    v0: Tree | None = None,
    num_iters: ArrayLike = 100,
    error_tolerance: ArrayLike = 1e-6,
    precision: jax.lax.PrecisionLike = jax.lax.Precision.HIGHEST,
    key: Any = None,
) -> tuple[jax.Array, Tree]:
    """The eigenvalue of largest absolute value, and its eigenvector of norm 1, by repeated multiplication.

    `matrix` is square, or a linear function from a pytree to one alike, which then is given as `v0`, the vector to
    start from. Otherwise that is random: from `key`, or the same each time. The loop ends when the residual
    `norm(matrix @ v - eigenvalue * v)` is at most `error_tolerance` times the eigenvalue, or after `num_iters` steps;
    it converges if no other eigenvalue is as large. A `matrix` of 0 has eigenvalue 0.

    The derivative of the eigenvalue is that for a symmetric `matrix`; the eigenvector is a constant in derivatives.
    """
    num_iters = check_scalar("num_iters", num_iters, int, lambda n: bool(n >= 1), "at least 1")
    if callable(matrix):
        if v0 is None:
            raise TypeError("v0 is missing: a matrix given as a function needs the vector to start from")
        arrays, v = float_leaves("v0", v0)
        product = lambda v: float_leaves("matrix(v0)", matrix(cast_like(v, arrays)))[1]
        check_alike("matrix(v0)", jax.eval_shape(matrix, arrays), "v0", arrays)
    else:
        A = _matrix("matrix", matrix, square=True)
        product = lambda v: jnp.matmul(A, v, precision=precision)
        if v0 is None:
            key = jax.random.key(0) if key is None else key
            v0 = jax.random.uniform(key, A.shape[:1], A.dtype, -1, 1)
        v = check_float("v0", v0).astype(A.dtype)
        check_alike("v0", v, "a column of matrix", A[0])
    # What the function closes over becomes an argument, so that the loop can be cut off from differentiation.
    pure, constants = jax.closure_convert(product, v)
    fixed = jax.lax.stop_gradient(constants)
    v, _ = direction(jax.lax.stop_gradient(v))
    like = v

    def times(v):
        return jax.tree.map(lambda z, v: z.astype(v.dtype), pure(v, *fixed), like)

    dtype = norm(v).dtype
    tolerance = check_scalar("error_tolerance", error_tolerance, dtype, lambda t: bool(t >= 0), "at least 0")

    def unfinished(carry):
        v, z, i = carry
        eigenvalue = vdot(v, z)
        _, residual = direction(jax.tree.map(lambda z, v: z - eigenvalue.astype(z.dtype) * v, z, v))
        return (residual > tolerance * jnp.abs(eigenvalue)) & (i < num_iters)

    def multiply(carry):
        v, _ = direction(carry[1])
        return v, times(v), carry[2] + 1

    v, z, _ = jax.lax.while_loop(unfinished, multiply, (v, times(v), jnp.zeros_like(num_iters)))
    eigenvalue = vdot(v, pure(v, *constants))
    next_v, size = direction(z)
    return eigenvalue, jax.tree.map(lambda new, old: jnp.where(size > 0, new, old), next_v, v)


def matrix_inverse_pth_root(
    matrix: ArrayLike,
    p: int,
    num_iters: ArrayLike = 100,
    ridge_epsilon: ArrayLike = 1e-6,
    error_tolerance: ArrayLike = 1e-6,
    precision: jax.lax.PrecisionLike = jax.lax.Precision.HIGHEST,
) -> tuple[jax.Array, jax.Array]:
    """`(matrix + ridge * identity) ** (-1 / p)` of a symmetric positive semidefinite matrix, and its error.

    `ridge` is `ridge_epsilon` times the largest eigenvalue (at least 1e-16), `p` a positive int. The coupled Newton
    iteration ends when its error, the largest deviation of `matrix @ root ** p` from the identity, is at most
    `error_tolerance`, grows or overflows, or after `num_iters` steps. An error that is not small tells of a matrix too
    ill-conditioned for its dtype, or not positive semidefinite: the root is finite but no root.

    Has no reverse-mode derivative. Source: Higham, Functions of Matrices, 2008, equation 7.18,
    https://doi.org/10.1137/1.9780898717778.
    """
    if isinstance(p, bool) or not hasattr(p, "__index__"):
        raise TypeError(f"p must be an int, got {p!r}")
    p = operator.index(p)
    if p < 1:
        raise ValueError(f"p must be at least 1, got {p}")
    A = _matrix("matrix", matrix, square=True)
    identity = jnp.eye(A.shape[0], dtype=A.dtype)
    num_iters = check_scalar("num_iters", num_iters, int, lambda n: bool(n >= 0), "at least 0")
    tolerance = check_scalar("error_tolerance", error_tolerance, A.dtype, lambda t: bool(t >= 0), "at least 0")
    ridge = check_scalar("ridge_epsilon", ridge_epsilon, A.dtype, lambda r: bool(0 <= r < np.inf), "at least 0")

    largest, _ = power_iteration(A, precision=precision)
    A = A + ridge * jnp.maximum(largest, 1e-16) * identity
    scale = jnp.max(jnp.abs(A))
    scale = jnp.where(scale > 0, scale, 1)
    A = A / scale  # so that no square in the norm overflows or vanishes
    size = jnp.linalg.norm(A)
    z = (1 + p) / (2 * jnp.where(size > 0, size, 1))

    def deviation(M):
        return jnp.max(jnp.abs(M - identity))

    def unfinished(carry):
        i, _, _, error, improving = carry
        return improving & (error > tolerance) & (i < num_iters)

    def newton(carry):
        i, M, H, error, _ = carry
        step = ((p + 1) * identity - M) / p
        new_M = jnp.matmul(_power(step, p, precision), M, precision=precision)
        new_H = jnp.matmul(H, step, precision=precision)
        new_error = deviation(new_M)
        # Of a positive matrix the first step brings all eigenvalues to [0, 1], where the error only falls, but for
        # rounding. NaN and infinity do not pass.
        improving = ((new_error < 1.2 * error) | (i == 0)) & jnp.isfinite(new_H).all()
        keep = lambda new, old: jnp.where(improving, new, old)
        return i + 1, keep(new_M, M), keep(new_H, H), keep(new_error, error), improving

    M = A * z
    start = (jnp.zeros_like(num_iters), M, identity * z ** (1 / p), deviation(M), jnp.ones((), bool))
    _, _, H, error, _ = jax.lax.while_loop(unfinished, newton, start)
    return H * scale ** (-1 / p), error


def _power(matrix: jax.Array, p: int, precision: Any) -> jax.Array:
    """`matrix` to the power of `p >= 1`, by squaring."""
    if p == 1:
        return matrix
    half = _power(matrix, p // 2, precision)
    square = jnp.matmul(half, half, precision=precision)
    return jnp.matmul(square, matrix, precision=precision) if p % 2 else square


def nnls(
    A: ArrayLike,
    b: ArrayLike,
    iters: int,
    unroll: int | bool = 1,
    L: ArrayLike | None = None,
) -> jax.Array:
    """The `x >= 0` of least `norm(A @ x - b)`, by `iters` steps of accelerated projected gradient descent.

    `A` has shape (M, N), `b` (M,) or (M, K), and the solution (N,) or (N, K), each column on its own. `L` is an upper
    bound of the largest eigenvalue of `A.T @ A`; by default the smaller of two norms. `unroll` is that of
    `jax.lax.scan`. Momentum starts anew wherever it points uphill, which makes convergence linear; derivatives are
    those of the solution once it has converged.

    Sources: https://doi.org/10.1137/080716542, with the restarts of https://arxiv.org/abs/1204.3982.
    """
    A, b = _matrix("A", A), check_float("b", b)
    if b.ndim not in (1, 2) or b.shape[0] != A.shape[0]:
        raise ValueError(
            f"b must have shape ({A.shape[0]},) or ({A.shape[0]}, K), one entry a row of A {A.shape}, got {b.shape}"
        )
    if isinstance(iters, bool) or not hasattr(iters, "__index__"):
        raise TypeError(f"iters must be an int, got {iters!r}")
    if iters < 0:
        raise ValueError(f"iters must be at least 0, got {iters}")
    dtype = compute_dtype(A, b)
    A, b = A.astype(dtype), b.astype(dtype)
    columns = b if b.ndim == 2 else b[:, None]
    Q = jnp.matmul(A.T, A, precision=jax.lax.Precision.HIGHEST)
    q = jnp.matmul(A.T, columns, precision=jax.lax.Precision.HIGHEST)
    if L is None:
        L = jax.lax.stop_gradient(jnp.minimum(jnp.linalg.norm(Q), jnp.abs(Q).sum(0).max(initial=0)))
    else:
        L = check_scalar("L", L, dtype, lambda L: bool(0 <= L < np.inf), "finite and at least 0")
    step = 1 / jnp.where(L > 0, L, 1)

    def descend(carry, _):
        x, y, t = carry
        new_x = jax.nn.relu(y - step * (jnp.matmul(Q, y, precision=jax.lax.Precision.HIGHEST) - q))
        uphill = jnp.sum((y - new_x) * (new_x - x), 0) > 0
        t = jnp.where(uphill, 1, t)
        new_t = (1 + jnp.sqrt(1 + 4 * t**2)) / 2
        momentum = jnp.where(uphill, 0, (t - 1) / new_t)
        return (new_x, new_x + momentum[None] * (new_x - x), new_t), None

    x = jnp.zeros((A.shape[1], columns.shape[1]), dtype)
    start = (x, x, jnp.ones(columns.shape[1], dtype))
    (x, _, _), _ = jax.lax.scan(descend, start, length=operator.index(iters), unroll=unroll)
    return x.reshape(A.shape[1:] + b.shape[1:])


def _matrix(name: str, value: Any, *, square: bool = False) -> jax.Array:
    """`value` as a matrix in float32 or wider."""
    matrix = check_float(name, value)
    if matrix.ndim != 2:
        cause = "map over a batch with jax.vmap" if matrix.ndim > 2 else "add an axis"
        raise ValueError(f"{name} must have two axes, got shape {matrix.shape}: {cause}")
    if square and (matrix.shape[0] != matrix.shape[1] or not matrix.size):
        raise ValueError(f"{name} must be square and not empty, got shape {matrix.shape}")
    return matrix.astype(compute_dtype(matrix))
