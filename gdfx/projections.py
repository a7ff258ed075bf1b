"""Euclidean projections of pytrees: the nearest point of a set, all leaves taken as one vector.

Leaves are arrays of real floats, or Python floats; they keep their shapes and dtypes, and half precision is computed in
float32. Integers raise `TypeError`. A `scale` is a scalar of at least 0; at 0 the sets are the single point 0. Where
several points are nearest, one of them is returned, with finite derivatives.
"""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike

from .checks import check_float, check_same_shape, check_scalar, compute_dtype
from .numerics import check_alike, direction, float_leaves
from .tree import Tree, cast_like, vdot


def non_negative(tree: Tree) -> Tree:
    """The nearest tree whose elements are all at least 0."""
    return jax.tree.map(jax.nn.relu, float_leaves("tree", tree)[0])


def box(tree: Tree, lower: Any, upper: Any) -> Tree:
    """The nearest tree with `lower <= element <= upper` for all elements.

    Each bound is a scalar for the whole tree, or a tree of the same structure with a scalar or an array of the same
    shape for each leaf; bounds may be infinite. Raises `ValueError` for other structures or shapes, and for Python
    or NumPy numbers where `lower <= upper` does not hold.
    """
    leaves, structure = jax.tree.flatten(float_leaves("tree", tree)[0])
    paths = [jax.tree_util.keystr(path) for path, _ in jax.tree_util.tree_leaves_with_path(tree)]
    bounds = [_bounds(name, bound, structure) for name, bound in (("lower", lower), ("upper", upper))]
    rows = zip(paths, leaves, *bounds, strict=True)
    return jax.tree.unflatten(structure, [_clip(*row) for row in rows])


def _bounds(name: str, bound: Any, structure: Any) -> list[Any]:
    if jax.tree.structure(bound) == structure:
        return jax.tree.leaves(bound)
    if jax.tree_util.all_leaves([bound]) and jnp.ndim(bound) == 0:
        return [bound] * structure.num_leaves
    raise ValueError(
        f"{name} must be a scalar or have the structure of tree, got {jax.tree.structure(bound)}, expected {structure}"
    )


def _clip(path: str, x: jax.Array, lower: Any, upper: Any) -> jax.Array:
    known = not any(isinstance(bound, jax.Array) for bound in (lower, upper))
    if known and not np.all(np.asarray(lower) <= np.asarray(upper)):
        raise ValueError(f"lower{path} must be at most upper{path}, got {lower} and {upper}")
    dtype = compute_dtype(x)
    low, high = (_bound(name + path, bound, x, dtype) for name, bound in (("lower", lower), ("upper", upper)))
    return jnp.clip(x.astype(dtype), low, high).astype(x.dtype)


def _bound(name: str, bound: Any, x: jax.Array, dtype: Any) -> jax.Array:
    bound = jnp.asarray(bound)
    if not jnp.issubdtype(bound.dtype, jnp.integer):
        check_float(name, bound)
    if bound.ndim:
        check_same_shape(name, bound.shape, "the leaf of tree", x.shape)
    return bound.astype(dtype)


def hypercube(tree: Tree, scale: Any = 1) -> Tree:
    """The nearest tree with `0 <= element <= scale` for all elements; `scale` may be a tree, as a bound of `box`."""
    return box(tree, 0, scale)


def linf_ball(tree: Tree, scale: ArrayLike = 1) -> Tree:
    """The nearest tree whose elements have absolute values of at most `scale`."""
    _scale(scale, float)
    return box(tree, -scale, scale)  # pyright: ignore[reportOperatorIssue]: numbers and arrays have a minus


def l2_ball(tree: Tree, scale: ArrayLike = 1) -> Tree:
    """The nearest tree whose L2 norm is at most `scale`; leaves may be complex."""
    arrays, wide = float_leaves("tree", tree, allow_complex=True)
    unit, size = direction(wide)
    scale = _scale(scale, size.dtype)
    inside = size <= scale
    shrunk = jax.tree.map(lambda x, u: jnp.where(inside, x, u * scale.astype(u.dtype)), wide, unit)
    return cast_like(shrunk, arrays)


def l2_sphere(tree: Tree, scale: ArrayLike = 1) -> Tree:
    """The nearest tree whose L2 norm is `scale`; leaves may be complex.

    From 0, which is equally near to all of the sphere, it goes to the point whose elements are equal, with gradient 0.
    Raises `ValueError` for a tree without elements.
    """
    arrays, wide = float_leaves("tree", tree, allow_complex=True)
    n = _count(wide)
    unit, size = direction(wide)
    scale = _scale(scale, size.dtype)
    unit = jax.tree.map(lambda u: jnp.where(size == 0, jnp.full_like(u, n**-0.5), u), unit)
    return cast_like(jax.tree.map(lambda u: u * scale.astype(u.dtype), unit), arrays)


def simplex(tree: Tree, scale: ArrayLike = 1) -> Tree:
    """The nearest tree whose elements are all at least 0 and add up to `scale`.

    The derivative at ties is that of the elements which stay positive. Raises `ValueError` for a tree without elements.
    Source: https://arxiv.org/abs/1101.6081.
    """
    vector, back = _ravel(tree)
    _count(vector)
    return back(_simplex(vector, _scale(scale, vector.dtype)))


def l1_sphere(tree: Tree, scale: ArrayLike = 1) -> Tree:
    """The nearest tree whose absolute values add up to `scale`; elements that are 0 are free to become positive.

    Raises `ValueError` for a tree without elements.
    """
    vector, back = _ravel(tree)
    _count(vector)
    return back(_l1_sphere(vector, _scale(scale, vector.dtype)))


def l1_ball(tree: Tree, scale: ArrayLike = 1) -> Tree:
    """The nearest tree whose absolute values add up to at most `scale`. Source: https://doi.org/10.1145/1390156.1390191."""
    vector, back = _ravel(tree)
    if not vector.size:
        return back(vector)
    scale = _scale(scale, vector.dtype)
    return back(jnp.where(jnp.abs(vector).sum() <= scale, vector, _l1_sphere(vector, scale)))


def _l1_sphere(v: jax.Array, scale: jax.Array) -> jax.Array:
    sign = jnp.where(v < 0, -1, 1).astype(v.dtype)  # not 0 at 0, which would leave the sphere
    return sign * _simplex(sign * v, scale)


def _simplex(v: jax.Array, scale: jax.Array) -> jax.Array:
    v = v - jax.lax.stop_gradient(v.max())  # changes no projection, and sums cancel less
    known = jax.lax.stop_gradient((v, scale))
    threshold = _threshold(*known)
    # The threshold once more from the elements above it: fewer roundings than the running sum, and derivatives.
    above = ~(known[0] <= threshold)  # NaN stays NaN
    excess = jnp.where(above, v, 0).sum() - scale
    threshold = excess / jnp.maximum(above.sum(dtype=v.dtype), 1)
    return jnp.where(above, jax.nn.relu(v - threshold), 0)


def _threshold(v: jax.Array, scale: jax.Array) -> jax.Array:
    """What to subtract from all elements, so that those which stay positive add up to `scale`."""
    falling = jnp.sort(v, descending=True)
    excess = jnp.cumsum(falling) - scale
    number = jnp.arange(1, v.size + 1, dtype=v.dtype)
    n_above = jnp.maximum(jnp.sum(falling * number > excess), 1)  # at scale 0 none is above
    return excess[n_above - 1] / n_above.astype(v.dtype)


def vector(x: Tree, a: Tree) -> Tree:
    """The nearest point to `x` on the line through 0 and `a`: 0 if `a` is 0.

    `x` and `a` have the same structure and shapes; `ValueError` otherwise.
    """
    arrays, x, unit, _ = _pair(x, a)
    along = vdot(x, unit)
    return cast_like(jax.tree.map(lambda u: along * u, unit), arrays)


def hyperplane(x: Tree, a: Tree, b: ArrayLike) -> Tree:
    """The nearest point to `x` whose inner product with `a` is the scalar `b`; `x` itself if `a` is 0.

    `x` and `a` have the same structure and shapes; `ValueError` otherwise.
    """
    return _step(x, a, b, lambda distance: distance)


def halfspace(x: Tree, a: Tree, b: ArrayLike) -> Tree:
    """The nearest point to `x` whose inner product with `a` is at most the scalar `b`; `x` itself if `a` is 0.

    `x` and `a` have the same structure and shapes; `ValueError` otherwise.
    """
    return _step(x, a, b, lambda distance: jnp.minimum(distance, 0))


def _step(x: Tree, a: Tree, b: ArrayLike, limit: Any) -> Tree:
    """`x` moved along `a` by the limited signed distance to the hyperplane."""
    arrays, x, unit, size = _pair(x, a)
    b = check_scalar("b", b, size.dtype, lambda b: bool(np.isfinite(b)), "finite")
    distance = limit(b / jnp.where(size == 0, 1, size) - vdot(x, unit))
    return cast_like(jax.tree.map(lambda x, u: x + distance * u, x, unit), arrays)


def _pair(x: Tree, a: Tree) -> tuple[Tree, Tree, Tree, jax.Array]:
    """`x` as arrays, the same in one width with `a`, and the direction and norm of `a`."""
    check_alike("a", a, "x", x)
    arrays, _ = float_leaves("x", x)
    _, a = float_leaves("a", a)
    dtype = compute_dtype(*jax.tree.leaves((arrays, a)))
    x, a = (jax.tree.map(lambda leaf: leaf.astype(dtype), tree) for tree in (arrays, a))
    return arrays, x, *direction(a)


def _ravel(tree: Tree) -> tuple[jax.Array, Any]:
    """All elements as one vector of one width, and the function that makes the tree of such a vector."""
    arrays, wide = float_leaves("tree", tree)
    leaves, structure = jax.tree.flatten(wide)
    ends = np.cumsum([x.size for x in leaves])[:-1]
    flat = jnp.concatenate([x.ravel() for x in leaves]) if leaves else jnp.zeros(0)

    def back(vector):
        parts = jnp.split(vector, ends) if leaves else []
        shaped = [part.reshape(x.shape) for part, x in zip(parts, leaves, strict=True)]
        return cast_like(jax.tree.unflatten(structure, shaped), arrays)

    return flat, back


def _count(tree: Tree) -> int:
    count = sum(x.size for x in jax.tree.leaves(tree))
    if not count:
        raise ValueError("tree has no elements: there is nothing to project")
    return count


def _scale(scale: ArrayLike, dtype: Any) -> jax.Array:
    return check_scalar("scale", scale, dtype, lambda s: bool(0 <= s < np.inf), "finite and at least 0")
