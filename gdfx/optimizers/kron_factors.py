"""The Kronecker factors of PSGD, and how they are fitted: https://arxiv.org/abs/1512.04202."""

import jax.numpy as jnp

from ..decompositions import solve_adjoint
from ..tree import abs2, ratio, sqrt
from ..tree.numerics import adjoint


def _is_diagonal(q, x):
    return q.ndim < x.ndim


def _times(q, x, transposed=False):
    if _is_diagonal(q, x):
        return q[..., None] * x
    return (adjoint(q) if transposed else q) @ x


def whitened(factors, m):
    """`Q1'Q1 @ M @ Q2'Q2`, or the elements of `m` times the squares of theirs."""
    if not isinstance(factors, tuple):
        return jnp.square(factors) * m
    left, right = factors
    u = _times(left, _times(left, m), transposed=True)
    return adjoint(_times(right, _times(right, adjoint(u)), transposed=True))


def fitted_diagonal(q, g, probe, is_active, rate):
    """A step of the factors to where `g` and `probe`, whitened by them and their inverse, have equal squares."""
    a, b = abs2(q * g), abs2(probe / q)
    step = ratio(a - b, jnp.max(a + b, initial=0))
    return jnp.where(is_active, q - rate * step * q, q)


def fitted_pair(factors, g, probe, is_active, rate):
    """A step of the factors to where `g` and `probe`, whitened by them and their inverse, have equal second moments."""
    left, right = factors
    a = adjoint(_times(right, adjoint(_times(left, g))))
    b = adjoint(_solved(right, adjoint(_solved(left, probe))))
    new = _fitted(left, a, b, rate), _fitted(right, adjoint(a), adjoint(b), rate)
    return _balanced(factors, new, g, is_active)


def turned_diagonal(q, g, probe, is_active, rate):
    """A step of the factors to where `g`, whitened by their squares, has squares of 1."""
    square = abs2(whitened(q, g))
    return jnp.where(is_active, q - rate * (square - 1) / (jnp.max(square, initial=0) + 1) * q, q)


def turned_pair(factors, g, probe, is_active, rate):
    """A step of the factors to where `g`, whitened by their squares, has rows and columns with moments of identities.

    Each factor is then turned to be more nearly hermitian: Q0.5EQ1.5, or PRO, of https://arxiv.org/abs/2402.11858.
    """
    u = whitened(factors, g)
    new = _turned(factors[0], u, rate), _turned(factors[1], adjoint(u), rate)
    return _balanced(factors, new, g, is_active)


def _balanced(factors, new, g, is_active):
    """The new factors, of the matrices that are active."""
    # Only their product counts: so that neither grows beyond what its dtype holds, both get the same largest element.
    norms = [jnp.max(jnp.abs(q), (-2, -1) if q.ndim == g.ndim else -1) for q in new]
    scale = sqrt(norms[1] / norms[0])
    active = is_active[..., 0, 0]
    spread = lambda x, q: x.reshape(x.shape + (1,) * (q.ndim - x.ndim))
    new = new[0] * spread(scale, new[0]), new[1] / spread(scale, new[1])
    return tuple(jnp.where(spread(active, q), q, old) for q, old in zip(new, factors, strict=True))


def _solved(q, x):
    """The adjoint of `q` inverted, times `x`."""
    if _is_diagonal(q, x):
        return x / q[..., None]
    return solve_adjoint(q, x)


def _fitted(q, a, b, rate):
    """A step of `q` to where the rows of `a` have the second moments of those of `b`."""
    if _is_diagonal(q, a):
        x, y = (jnp.sum(abs2(z), -1) for z in (a, b))
        return q - rate * ratio(x - y, jnp.max(x + y, -1, keepdims=True)) * q
    x, y = a @ adjoint(a), b @ adjoint(b)
    return q - rate * jnp.triu(ratio(x - y, _norm_bound(x + y))) @ q


def _turned(q, u, rate):
    """A step of `q` to where the rows of `u` have as many elements, of mean square 1, for second moments."""
    n = u.shape[-1]
    if _is_diagonal(q, u):
        x = jnp.sum(abs2(u), -1)
        return q - rate * (x - n) / (jnp.max(x, -1, keepdims=True) + n) * q
    x = u @ adjoint(u)
    q = q - rate * (x @ q - n * q) / (_norm_bound(x, 4) + n)
    turn = adjoint(q) - q
    turn = ratio(turn, _norm_bound(turn, 4))
    once = turn @ q
    twice = turn @ once
    trace = lambda x: jnp.trace(x, axis1=-2, axis2=-1).real[..., None, None]
    # The angle at which the trace of the turned factor is largest, to second order.
    slope, curvature = trace(once), trace(twice)
    angle = jnp.where(curvature < 0, jnp.clip(ratio(slope, -curvature), 0, 0.5), 0.5)
    return q + angle * once + 0.5 * angle**2 * twice


def _norm_bound(x, steps=1):
    """A lower bound of the largest absolute eigenvalue of matrices that are hermitian, or the negative of that.

    It is that of the image of their largest column after so many steps of power iteration.
    """
    largest = jnp.max(jnp.abs(x), (-2, -1), keepdims=True)
    x = ratio(x, largest)
    column = jnp.argmax(jnp.sum(abs2(x), -2), -1)[..., None, None]
    y = jnp.take_along_axis(x, column, -1)
    for _ in range(steps):
        y = x @ y
        y = ratio(y, sqrt(jnp.sum(abs2(y), -2, keepdims=True)))
    return largest * sqrt(jnp.sum(abs2(x @ y), -2, keepdims=True))
