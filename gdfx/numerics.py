"""Arithmetic that stays finite, in value and in gradient, at 0, at overflow and at the largest count."""

import math
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike

from .checks import check_float, check_same_shape, check_scalar, compute_dtype
from .core import increment
from .tree import Tree, _with_real, abs2 as abs_sq, absolute, norm, ratio, sqrt

__all__ = [
    "MultiNormal",
    "abs_sq",
    "multi_normal",
    "safe_increment",
    "safe_norm",
    "safe_root_mean_squares",
    "scale_gradient",
]


def safe_norm(
    x: ArrayLike,
    min_norm: ArrayLike,
    ord: int | float | str | None = None,
    axis: int | tuple[int, ...] | None = None,
    keepdims: bool = False,
) -> jax.Array:
    """The norm as in `jnp.linalg.norm`, and `min_norm` where that is larger, with gradient 0 there.

    `x` is real or complex. The norm is real, in float32 or wider; `min_norm` is a scalar of at least 0.
    Raises `TypeError` for integers, and `ValueError` where `jnp.linalg.norm` does.
    """
    x = _inexact("x", x)
    min_norm = check_scalar("min_norm", min_norm, x.real.dtype, lambda m: bool(m >= 0), "at least 0")
    small = jnp.linalg.norm(x, ord, axis, keepdims=True) <= min_norm
    size = jnp.linalg.norm(jnp.where(small, jnp.ones_like(x), x), ord, axis, keepdims)
    return jnp.where(small.reshape(size.shape), min_norm, size)


def safe_root_mean_squares(x: ArrayLike, min_rms: ArrayLike) -> jax.Array:
    """The root of the mean squared absolute value of all elements, and `min_rms` where that is larger.

    A real scalar, in float32 or wider, with gradient 0 where it is `min_rms`, as it is for no elements; `min_rms` is
    a scalar of at least 0. `x` is real or complex; integers raise `TypeError`.
    """
    x = _inexact("x", x)
    min_rms = check_scalar("min_rms", min_rms, x.real.dtype, lambda m: bool(m >= 0), "at least 0")
    rms = sqrt(jnp.sum(abs_sq(x)) / max(x.size, 1))
    return jnp.where(rms <= min_rms, min_rms, rms)


def safe_increment(count: ArrayLike) -> jax.Array:
    """`count + 1`, and the largest number of its dtype rather than one beyond.

    `count` is an integer or real floating-point array, element by element; others raise `TypeError`. A float stops
    growing where 1 is less than its precision: float32 at 2**24.
    """
    count = jnp.asarray(count)
    if not jnp.issubdtype(count.dtype, jnp.integer):
        check_float("count", count)
    return increment(count)


def scale_gradient(inputs: Tree, scale: ArrayLike) -> Tree:
    """Gives `inputs` back, and multiplies the derivatives that pass, in either mode, by the scalar `scale`.

    A negative scale reverses gradients (https://arxiv.org/abs/1409.7495); 0 stops them. The derivative with respect to
    `scale` is 0. Leaves that are no floats or complex numbers stay as they are.
    """
    scale = check_scalar("scale", scale, float, lambda s: math.isfinite(s), "finite")
    scaled = lambda x: _scale_gradient(x, scale) if jnp.issubdtype(jnp.result_type(x), jnp.inexact) else x
    return jax.tree.map(scaled, inputs)


@jax.custom_jvp
def _scale_gradient(x, scale):
    return jnp.asarray(x)


@_scale_gradient.defjvp
def _scale_gradient_jvp(primals, tangents):
    x, scale = primals
    dx, _ = tangents
    return jnp.asarray(x), dx * scale.astype(dx.dtype)


class MultiNormal(NamedTuple):
    """The normal distribution of independent components, as `multi_normal` makes it."""

    loc: jax.Array  # the means
    log_scale: jax.Array  # the logs of the standard deviations, in the shape of `loc`

    @property
    def params(self) -> list[jax.Array]:
        """`[loc, log_scale]`."""
        return [self.loc, self.log_scale]

    def sample(self, shape: tuple[int, ...], key: Any) -> jax.Array:
        """Samples of shape `(*shape, *loc.shape)`, differentiable in `loc` and `log_scale`."""
        noise = jax.random.normal(key, (*shape, *self.loc.shape), self.loc.dtype)
        to_rank = lambda x: jnp.broadcast_to(x, noise.shape)
        return to_rank(self.loc) + to_rank(jnp.exp(self.log_scale)) * noise

    def log_prob(self, x: ArrayLike) -> jax.Array:
        """The log density at `x`, of shape `(..., *loc.shape)`: an array without the axes of `loc`.

        Raises `ValueError` for other shapes and `TypeError` for integers.
        """
        x = check_float("x", x)
        batch = x.ndim - self.loc.ndim
        check_same_shape("the last axes of x", x.shape[max(batch, 0) :], "loc", self.loc.shape)
        to_rank = lambda y: jnp.broadcast_to(y, x.shape)
        z = (x.astype(self.loc.dtype) - to_rank(self.loc)) * to_rank(jnp.exp(-self.log_scale))
        terms = -0.5 * (z**2 + math.log(2 * math.pi)) - to_rank(self.log_scale)
        return terms.sum(tuple(range(batch, x.ndim)))


def multi_normal(loc: ArrayLike, log_scale: ArrayLike) -> MultiNormal:
    """The normal distribution of independent components with means `loc` and standard deviations `exp(log_scale)`.

    Both have one shape, or `log_scale` is a scalar that holds for all. It computes in float64 if either is float64,
    else in float32. Raises `ValueError` for shapes that differ and `TypeError` for what is no real float.
    """
    loc, log_scale = check_float("loc", loc), check_float("log_scale", log_scale)
    if log_scale.ndim:
        check_same_shape("loc", loc.shape, "log_scale", log_scale.shape)
    dtype = compute_dtype(loc, log_scale)
    return MultiNormal(loc.astype(dtype), jnp.broadcast_to(log_scale.astype(dtype), loc.shape))


def _inexact(name: str, x: ArrayLike) -> jax.Array:
    """`x` in float32 or wider, real or complex."""
    x = jnp.asarray(x)
    if jnp.iscomplexobj(x):
        return x
    x = check_float(name, x)
    return x.astype(compute_dtype(x))


# Shared by other modules; not part of the public API.


def float_leaves(name: str, tree: Tree, *, allow_complex: bool = False) -> tuple[Tree, Tree]:
    """`tree` as arrays, and these in one width, at least float32.

    Raises `TypeError`, naming the path, for a leaf that is not real floating point (or complex, where allowed).
    """

    def check(path, x):
        x = jnp.asarray(x, jnp.result_type(x))  # a Python float, too, gets a dtype that promotion respects
        complex_ok = allow_complex and jnp.iscomplexobj(x)
        return x if complex_ok else check_float(f"{name}{jax.tree_util.keystr(path)}", x)

    arrays = jax.tree_util.tree_map_with_path(check, tree)
    dtype = compute_dtype(*(x.real for x in jax.tree.leaves(arrays)))
    return arrays, jax.tree.map(lambda x: x.astype(_with_real(x.dtype, dtype)), arrays)


def check_alike(name: str, tree: Tree, like_name: str, like: Tree) -> None:
    """Raises `ValueError`, naming the path, where `tree` has another structure or shape than `like`."""
    if jax.tree.structure(tree) != jax.tree.structure(like):
        raise ValueError(
            f"{name} must have the structure of {like_name}, got {jax.tree.structure(tree)}, expected "
            f"{jax.tree.structure(like)}: put one array where {like_name} has one"
        )
    for (path, x), y in zip(jax.tree_util.tree_leaves_with_path(tree), jax.tree.leaves(like), strict=True):
        where = jax.tree_util.keystr(path)
        check_same_shape(f"{name}{where}", jnp.shape(x), f"{like_name}{where}", jnp.shape(y))


def direction(tree: Tree) -> tuple[Tree, jax.Array]:
    """`tree` divided by its L2 norm, and that norm: no square overflows or vanishes; 0, with gradient 0, at 0.

    The leaves are all of one width, float32 or wider.
    """
    leaves = [absolute(x) for x in jax.tree.leaves(tree) if x.size]
    if not leaves:
        return tree, norm(tree)
    largest = jax.lax.stop_gradient(jnp.max(jnp.stack([x.max() for x in leaves])))
    unit = jnp.where((largest >= jnp.finfo(largest.dtype).tiny) & jnp.isfinite(largest), largest, 1)
    scaled = jax.tree.map(lambda x: x / unit.astype(x.dtype), tree)
    size = norm(scaled)
    inverse = ratio(jnp.ones_like(size), size)
    return jax.tree.map(lambda x: x * inverse.astype(x.dtype), scaled), size * unit
