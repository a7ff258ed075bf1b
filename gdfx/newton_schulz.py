"""Orthogonalization of matrices by Newton-Schulz iterations, for Muon: https://kellerjordan.github.io/posts/muon/."""

import functools
from typing import Any, Literal, TypeAlias

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike

from .decompositions import svd
from .tree import absolute, ratio, sqrt, widen
from .tree.numerics import adjoint, matrix_norm

Preconditioning: TypeAlias = Literal["frobenius", "spectral", "aol", "schatten"]
"""What a matrix is divided by before the first iteration; see `orthogonalize`."""

_JORDAN = (3.4445, -4.7750, 2.0315)

# Their authors divide the matrix by 1.02 more than its norm: here the first iteration does.
_POLAR_EXPRESS = (
    (8.156554524902461 / 1.02, -22.48329292557795 / 1.02**3, 15.878769915207462 / 1.02**5),
    (4.042929935166739, -2.808917465908714, 0.5000178451051316),
    (3.8916678022926607, -2.772484153217685, 0.5060648178503393),
    (3.285753657755655, -2.3681294933425376, 0.46449024233003106),
    (2.3465413258596377, -1.7097828382687081, 0.42323551169305323),
)
_DION = (
    (4.0848, -6.8946, 2.9270),
    (3.9505, -6.3029, 2.6377),
    (3.7418, -5.5913, 2.3037),
    (2.8769, -3.1427, 1.2046),
    (2.8366, -3.0525, 1.2012),
)

PRESETS: dict[str, tuple[Any, ...]] = {
    "standard": _JORDAN,
    "jordan": _JORDAN,
    "dion": _DION,
    "polar_express": _POLAR_EXPRESS,
}
"""Coefficients by name: of Jordan's post, for any number of steps, of Dion (https://arxiv.org/abs/2504.05295) and of
Polar Express (https://arxiv.org/abs/2505.16932), for up to five."""


def check_coefficients(ns_coeffs: Any, ns_steps: int) -> Any:
    """`ns_coeffs`, or those of the preset that it names, with tuples in place of lists.

    Raises:
        ValueError: they are no preset, not three numbers or three a step, or those of more than `ns_steps`.
    """
    expected = f"one of {', '.join(map(repr, PRESETS))}, three numbers, or three a step"
    if isinstance(ns_coeffs, str):
        if ns_coeffs not in PRESETS:
            raise ValueError(f"ns_coeffs is {ns_coeffs!r}, expected {expected}")
        ns_coeffs = PRESETS[ns_coeffs]
    coeffs = _tuples(ns_coeffs)
    shape = _shape(coeffs)
    if shape is None or len(shape) not in (1, 2) or shape[-1] != 3:
        raise ValueError(f"ns_coeffs is {ns_coeffs!r}, of the shape {shape}, expected {expected}")
    if len(shape) == 2 and not 1 <= shape[0] <= ns_steps:
        raise ValueError(
            f"ns_coeffs has {shape[0]} triples, one a step, expected 1 to ns_steps={ns_steps} of them: set ns_steps to "
            "their number, or leave some out"
        )
    return coeffs


def _tuples(value: Any) -> Any:
    return tuple(map(_tuples, value)) if isinstance(value, tuple | list) else value


def _shape(value: Any) -> tuple[int, ...] | None:
    """The shape as an array, None where it is none of numbers; the numbers may be traced."""
    if isinstance(value, tuple):
        shapes = {_shape(part) for part in value}
        inner = shapes.pop() if len(shapes) == 1 else None
        return None if inner is None else (len(value), *inner)
    is_number = isinstance(value, int | float | np.number | np.ndarray | jax.Array) and not isinstance(value, bool)
    return jnp.shape(value) if is_number else None


def coefficient_table(ns_coeffs: Any, ns_steps: int) -> jax.Array:
    """The rows for `orthogonalize`: three numbers `ns_steps` times, or the triples that there are."""
    table = jnp.asarray(ns_coeffs, float)
    return jnp.broadcast_to(table, (ns_steps, 3)) if table.ndim == 1 else table


def orthogonalize(
    x: jax.Array,
    coefficients: ArrayLike,
    *,
    eps: ArrayLike = 1e-8,
    preconditioning: Preconditioning = "frobenius",
    dtype: Any = None,
) -> jax.Array:
    """Brings the singular values of each matrix near 1 and leaves its singular vectors: `U S V^H` to about `U V^H`.

    `x` is a stack of matrices `[..., m, n]`, `coefficients` are `[steps, 3]`; a row a, b, c takes a singular value s to
    `a s + b s**3 + c s**5`. Before that they are brought to at most 1, by division by a norm: `"frobenius"`,
    `"spectral"`, the largest one, by a singular value decomposition, `"schatten"`, the fourth root of the sum of fourth
    powers (https://arxiv.org/abs/2506.10935), or `"aol"`, by a number for each row (or column, if they are the shorter
    side) that the products with the others give, which changes the singular vectors (https://arxiv.org/abs/2512.04632).
    `eps` is added to the norm, or is the least one of the last two: matrices of 0 stay 0.

    The iterations are in `dtype`, by default that of `x` and at least float32; matrix products in
    `jax.default_matmul_precision`. If one side is at least twice as long as the other, only the first and the last
    product are with the long side, and the others of squares of the short one; but not in half precision.
    """
    if jnp.ndim(x) < 2:
        raise ValueError(f"x has shape {jnp.shape(x)}, expected a matrix or a stack of matrices [..., m, n]")
    if jnp.ndim(coefficients) != 2 or jnp.shape(coefficients)[1] != 3:
        raise ValueError(f"coefficients have shape {jnp.shape(coefficients)}, expected [steps, 3]")
    if dtype is not None and jnp.iscomplexobj(x) and not jnp.issubdtype(dtype, jnp.complexfloating):
        raise TypeError(f"x is complex, but the iterations are to be in {dtype}")
    return _orthogonalize(x, jnp.asarray(coefficients), jnp.asarray(eps), preconditioning, dtype)


@functools.partial(jax.jit, static_argnums=(3, 4))  # traced once for each shape, not for each leaf
def _orthogonalize(
    x: jax.Array, coefficients: jax.Array, eps: jax.Array, preconditioning: Preconditioning, dtype: Any
) -> jax.Array:
    tall = x.shape[-2] > x.shape[-1]
    y = widen(jnp.swapaxes(x, -1, -2) if tall else x)
    eps = eps.astype(jnp.finfo(y.dtype).dtype)
    if preconditioning == "frobenius":
        y = _times(y, ratio(jnp.ones_like(eps), matrix_norm(y) + eps))
    elif preconditioning == "spectral":
        y = _times(y, ratio(jnp.ones_like(eps), _spectral_norm(y) + eps))
    y = y.astype(dtype or y.dtype)
    c = coefficients.astype(y.dtype)
    gram = y @ adjoint(y)
    if preconditioning == "aol":
        factor = _inverse_root(jnp.sum(absolute(gram), axis=-1, keepdims=True), eps)
        y, gram = _times(y, factor), _times(_times(gram, factor), jnp.swapaxes(factor, -1, -2))
    elif preconditioning == "schatten":
        factor = _inverse_root(matrix_norm(gram), eps)
        y, gram = _times(y, factor), _times(gram, factor * factor)
    y = _of_flat(y, gram, c) if _is_flat(y) else _iterated(y, gram, c)
    return (jnp.swapaxes(y, -1, -2) if tall else y).astype(x.dtype)


def _iterated(y: jax.Array, gram: jax.Array, c: jax.Array) -> jax.Array:
    # A loop in Python: as a scan it compiles a third faster, and takes 1.7 times as long on a CPU.
    for i in range(c.shape[0]):
        gram = y @ adjoint(y) if i else gram
        y = c[i, 0] * y + (c[i, 1] * gram + c[i, 2] * (gram @ gram)) @ y
    return y


def _is_flat(y: jax.Array) -> bool:
    """Whether `_of_flat` takes fewer products; half precision would lose the squares of small singular values."""
    rows, columns = y.shape[-2:]
    return columns >= 2 * rows and jnp.finfo(y.dtype).bits >= 32


def _of_flat(y: jax.Array, gram: jax.Array, c: jax.Array) -> jax.Array:
    """What `_iterated` gives, as `q @ y`, with `q` from products of matrices of the size of `gram` alone."""
    identity = q = jnp.broadcast_to(jnp.eye(gram.shape[-1], dtype=gram.dtype), gram.shape)
    for i in range(c.shape[0]):
        z = c[i, 0] * identity + c[i, 1] * gram + c[i, 2] * (gram @ gram)
        q = z @ q if i else z
        gram = z @ gram @ z  # the last one is not computed
    return q @ y


def _times(y: jax.Array, factor: jax.Array) -> jax.Array:
    return y * factor.astype(y.dtype)


def _spectral_norm(y: jax.Array) -> jax.Array:
    """The largest singular value, with the first derivative that it has; the vectors are constants."""
    u, _, vh = svd(y)
    return jnp.real(adjoint(u[..., :, :1]) @ y @ adjoint(vh[..., :1, :]))


def _inverse_root(square: jax.Array, eps: jax.Array) -> jax.Array:
    """The inverse of a root of at least `eps`."""
    least = jnp.maximum(square, jnp.square(eps).astype(square.dtype))
    return sqrt(ratio(jnp.ones_like(least), least))
