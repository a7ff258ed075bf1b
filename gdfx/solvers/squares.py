"""Losses that are half a sum of squares, and what the methods for them see: residuals, with all params as one vector.

The robust losses are those of Triggs et al., https://doi.org/10.1007/3-540-44480-7_21, section 4.3.
"""

import functools
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple, TypeAlias, get_args

import jax
import jax.numpy as jnp
from jax.flatten_util import ravel_pytree

from ..core import GradientTransformation, Tree
from ..decompositions import svd
from ..tree import cast, cast_like, check_real_params, norm, path_str, ratio, real_dtype, widen
from .line import NEEDS as LINE_NEEDS, Line, bound_fn, check_needs

NEEDS = LINE_NEEDS | {"residual_fn"}
"""What a method for least squares that evaluates the loss takes beyond the gradients and the state."""

RobustLoss: TypeAlias = Literal["linear", "soft_l1", "huber", "cauchy", "arctan"]


def _soft_l1(z):
    t = 1 + z
    return 2 * (jnp.sqrt(t) - 1), t**-0.5, -0.5 * t**-1.5


def _huber(z):
    t = jnp.maximum(z, 1)
    return jnp.where(z <= 1, z, 2 * jnp.sqrt(t) - 1), t**-0.5, jnp.where(z <= 1, 0, -0.5 * t**-1.5)


def _cauchy(z):
    t = 1 + z
    return jnp.log1p(z), 1 / t, -1 / t**2


def _arctan(z):
    t = 1 + z**2
    return jnp.arctan(z), 1 / t, -2 * z / t**2


# What a squared residual, over the squared scale, counts for, and the first two derivatives of that.
_RHO: dict[str, Callable[[jax.Array], tuple[jax.Array, jax.Array, jax.Array]]] = {
    "soft_l1": _soft_l1,
    "huber": _huber,
    "cauchy": _cauchy,
    "arctan": _arctan,
}


@dataclass(frozen=True)
class SumOfSquares:
    """A loss made by `sum_of_squares`: called with the params and what the residuals take besides."""

    fn: Callable[..., Tree]
    loss: RobustLoss = "linear"
    scale: float = 1.0

    def __call__(self, params: Tree, *args: Any) -> jax.Array:
        """Half the sum of squares, a real scalar in at least float32."""
        residuals = residual_vector(self.fn(params, *args))
        if self.loss == "linear":
            return 0.5 * norm(residuals, squared=True)
        rho, *_ = _RHO[self.loss](jnp.square(residuals / self.scale))
        return 0.5 * self.scale**2 * jnp.sum(rho)

    @property
    def residual_fn(self) -> Callable[..., Tree]:
        """The residuals with which the products of Gauss and Newton are right; corrected ones for a robust loss."""
        return self.fn if self.loss == "linear" else self._corrected

    def _corrected(self, params: Tree, *args: Any) -> jax.Array:
        return _correct(_RHO[self.loss], self.scale, residual_vector(self.fn(params, *args)))


def sum_of_squares(residual_fn: Callable[..., Tree], loss: RobustLoss = "linear", scale: float = 1.0) -> SumOfSquares:
    """The loss `loss_fn(params, *args)`, half the sum of squares of what `residual_fn(params, *args)` returns.

    The residuals are any tree of arrays, of which the real and the imaginary parts of complex ones count each by
    itself. A robust `loss` lets those larger than `scale` count for less, as in `scipy.optimize.least_squares`, where
    the scale is `f_scale`: `0.5 * scale**2 * sum(rho((residuals / scale)**2))`.

    Solvers find the residuals in the attribute `residual_fn`. Those of a robust loss are corrected, so that with their
    Jacobian J the gradient is `J.T @ residuals`, and `J.T @ J` the Hessian as far as the Jacobian tells it, where that
    is positive; the sum of their squares is not the loss. The value is hashable, and equal for the same function.
    """
    if not callable(residual_fn):
        raise TypeError(f"sum_of_squares: residual_fn is a {type(residual_fn).__name__}, expected a function of params")
    if loss not in get_args(RobustLoss):
        raise ValueError(f"sum_of_squares: loss is {loss!r}, expected one of {get_args(RobustLoss)}")
    if isinstance(scale, bool) or not isinstance(scale, int | float) or not 0 < scale < math.inf:
        raise ValueError(f"sum_of_squares: scale is {scale!r}, expected a Python number of more than 0")
    return SumOfSquares(residual_fn, loss, float(scale))


@functools.partial(jax.custom_jvp, nondiff_argnums=(0, 1))
def _correct(rho_of, scale, residuals):
    first, slope = _weights(rho_of, scale, residuals)
    return residuals * first / slope


@_correct.defjvp
def _(rho_of, scale, primals, tangents):
    _, slope = _weights(rho_of, scale, *primals)
    return _correct(rho_of, scale, *primals), slope * tangents[0]


def _weights(rho_of, scale, residuals):
    z = jnp.square(residuals / scale)
    _, first, second = rho_of(z)
    # Where the loss curves down no Jacobian can say so: there it shrinks to almost nothing.
    return first, jnp.sqrt(jnp.maximum(first + 2 * second * z, jnp.finfo(z.dtype).eps))


def residual_vector(residuals: Tree) -> jax.Array:
    """All residuals as one real vector, in at least float32, complex ones as real and imaginary parts."""
    leaves = jax.tree_util.tree_leaves_with_path(residuals)
    parts = []
    for path, leaf in leaves:
        if not jnp.issubdtype(jnp.result_type(leaf), jnp.inexact):
            raise TypeError(
                f"residual_fn returned dtype {jnp.result_type(leaf)} at {path_str(path)}, expected arrays of floats"
            )
        leaf = jnp.ravel(widen(jnp.asarray(leaf)))
        parts += [leaf.real, leaf.imag] if jnp.iscomplexobj(leaf) else [leaf]
    dtype = real_dtype(parts)
    return jnp.concatenate([part.astype(dtype) for part in parts]) if parts else jnp.zeros((0,), dtype)


class Residuals(NamedTuple):
    """Residuals around params that are one vector."""

    x: jax.Array  # the params, of shape (n,)
    fn: Callable[[jax.Array], jax.Array]  # of such a vector, in its dtype
    unravel: Callable[[jax.Array], Tree]  # to a tree like the params, in at least float32

    def linearized(self) -> tuple[jax.Array, jax.Array]:
        """The residuals, of shape (m,), and their Jacobian, of shape (m, n), in as few passes as there are.

        Both are constant for derivatives.
        """
        rows = jax.eval_shape(self.fn, self.x).size
        derivative = jax.jacfwd if self.x.size <= rows else jax.jacrev
        jacobian, residuals = derivative(lambda x: (self.fn(x),) * 2, has_aux=True)(self.x)
        return jax.lax.stop_gradient((residuals, jacobian))


def residuals_of(transform: GradientTransformation, params: Tree | None, extra: Mapping[str, Any]) -> Residuals:
    """The residuals around `params` that the extra arguments of `update` tell.

    `residual_fn` is also given those other extra arguments that its signature takes by name.
    """
    check_needs(transform, params, extra)
    check_real_params(params, type(transform).__name__)
    bound = bound_fn("residual_fn", extra)
    x, unravel = raveled(jax.lax.stop_gradient(widen(jax.tree.map(jnp.asarray, params))))
    return Residuals(x, lambda x: residual_vector(bound(unravel(x))).astype(x.dtype), unravel)


def attempt(line: Line, step: Tree, predicted: jax.Array) -> tuple[Tree, jax.Array, Tree, jax.Array]:
    """The updates that `step` makes, in the dtypes of the params, the loss and its gradient after them, and the gain.

    That is the decrease of the loss over the one predicted; minus infinity where either is undefined, or the one
    predicted is not above 0. Where both are so small that they may be rounding, the slopes at both ends tell the
    decrease, which is 0 if neither the loss is lower nor its slope less steep.
    """
    updates = cast_like(step, line.params)
    line = line._replace(direction=widen(updates))
    value, grad, slope = line.at(jnp.ones((), line.dtype))
    decrease, predicted = line.value - value, predicted.astype(line.dtype)
    # The loss may be less precise than its dtype, the smaller it is beside what it was computed from.
    noise = jnp.finfo(line.dtype).eps ** (2 / 3) * jnp.abs(line.value)
    rounding = (jnp.abs(decrease) <= noise) & (predicted <= noise)
    first = line.slope_of(line.grad)
    better = (decrease > 0) | (jnp.abs(slope) < jnp.abs(first))
    by_slopes = jnp.where(better, -(first + slope) / 2, 0)
    gain = jnp.where(rounding, by_slopes, decrease) / predicted
    defined = (predicted > 0) & jnp.isfinite(value) & jnp.isfinite(norm(grad)) & ~jnp.isnan(gain)
    return updates, value, grad, jnp.where(defined, gain, -jnp.inf)


def least_norm(matrix: jax.Array, vector: jax.Array) -> jax.Array:
    """The shortest of the vectors that `matrix`, of any shape and rank, takes nearest to `vector`."""
    u, s, vt = svd(matrix)
    return dot(_inverses(s, matrix.shape) * dot(vector, u), vt)


def _inverses(s, shape):
    """Those of the singular values of a matrix of this shape, 0 for those that are rounding."""
    least = jnp.finfo(s.dtype).eps * max(shape) * jnp.max(s, initial=0)
    return ratio(jnp.ones_like(s), jnp.where(s <= least, 0, s))


def dot(x: jax.Array, y: jax.Array) -> jax.Array:
    """The product of matrices and vectors in their full precision."""
    return jnp.dot(x, y, precision=jax.lax.Precision.HIGHEST)


def raveled(tree: Tree) -> tuple[jax.Array, Callable[[jax.Array], Tree]]:
    """The real leaves of `tree` as one vector, in the width of the widest, and the way back to their dtypes."""
    vector, unravel = ravel_pytree(cast(tree, real_dtype(tree)))
    return vector.astype(real_dtype(tree)), lambda x: cast_like(unravel(x), tree)


def covariance(residual_fn: Callable[..., Tree], params: Tree, *args: Any) -> jax.Array:
    """The covariance of the estimates `params`, a least-squares solution, as a matrix of shape (n, n).

    It is `s2 * inv(J.T @ J)`, with the Jacobian J and the residuals r of `residual_fn(params, *args)`, and
    `s2 = sum(r**2) / (m - n)`, for m residuals and n params: `pcov` of `scipy.optimize.curve_fit`. Where J has not the
    rank n it is the pseudo-inverse, with 0 for what the residuals do not tell. Its rows and columns are the elements of
    `params` in the order of `vector, unravel = jax.flatten_util.ravel_pytree(params)`; `unravel(sqrt(diag(...)))` are
    the standard errors, like the params. With weighted residuals it is for weights that are known up to a factor.

    Raises:
        TypeError: params are no floats, or complex; residuals are no floats.
        ValueError: there are no more residuals than params.
    """
    params = jax.tree.map(jnp.asarray, params)
    check_real_params(params, "covariance")
    x, unravel = raveled(widen(params))
    of_vector = lambda x: residual_vector(residual_fn(unravel(x), *args)).astype(x.dtype)
    residuals = of_vector(x)
    m, n = residuals.size, x.size
    if m <= n:
        raise ValueError(f"covariance: {m} residuals for {n} params, expected more residuals than params")
    _, s, vt = jnp.linalg.svd(jax.jacfwd(of_vector)(x), full_matrices=False)  # has derivatives, unlike `svd`
    half = _inverses(s, (m, n))[:, None] * vt
    return norm(residuals, squared=True) / (m - n) * dot(half.T, half)
