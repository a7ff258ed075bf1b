"""L-BFGS-B: https://doi.org/10.1137/0916069, with the projection of https://doi.org/10.1145/2049662.2049669."""

from typing import Any

import jax
import jax.numpy as jnp
from jax.flatten_util import ravel_pytree

from ..composition import Optimizer
from ..core import apply_updates, increment
from ..decompositions import solve
from ..pytrees import Interval, pytree, static
from ..transforms.project import box_like, projected_grad_norm, steps_within
from ..tree import cast, cast_like, check_like, norm, ratio, real_dtype
from .line import NEEDS, WholeSteps, line_of
from .zoom import ScaleByZoomLinesearchState, scale_by_zoom_linesearch


@pytree
class ScaleByLBFGSBState:
    """The state of `scale_by_lbfgsb`: vectors are all params in a row, in at least float32.

    The memory holds pairs whose product is 1, the oldest first; rows not in use yet, in front, are 0.
    """

    count: jax.Array  # int32 scalar: the updates made so far
    params: jax.Array  # of the last update, in the box
    updates: jax.Array  # the gradient there
    diff_params_memory: jax.Array  # (memory_size, all params): changes of the params
    diff_updates_memory: jax.Array  # likewise: changes of the gradients
    projected_grad_norm: jax.Array  # float scalar: how far the negative gradient leads in the box; infinity at first
    evaluations: jax.Array  # int32 scalar: of the loss and its gradient in the last update
    search: ScaleByZoomLinesearchState

    @property
    def value(self):
        """The loss after the step, infinity at the start."""
        return self.search.value

    @property
    def grad(self):
        """The gradient after the step, in at least float32."""
        return self.search.grad

    def report(self):
        """What `gdfx.metrics` tells of it."""
        return {**self.search.report(), "projected_grad_norm": self.projected_grad_norm}


@pytree
class scale_by_lbfgsb(WholeSteps):
    """Makes steps of gradients that keep the params in a box: to the minimum there of a quadratic model of the loss.

    The model has the curvature of L-BFGS; a search along the way to its minimum decides how far to go. See `lbfgsb`.
    """

    bounds: tuple[Any, Any] | None = None
    memory_size: int = static(default=10)
    max_linesearch_steps: Interval = 20

    def __post_init__(self):
        super().__post_init__()
        _check(self)

    @property
    def needs(self):
        return NEEDS

    def init(self, params):
        box_like(_bounds(self.bounds), params)
        zeros = lambda *shape: jnp.zeros((*shape, sum(p.size for p in jax.tree.leaves(params))), real_dtype(params))
        pairs = lambda: zeros(self.memory_size)
        count, evaluations = (jnp.zeros((), jnp.int32) for _ in range(2))
        infinity = jnp.full((), jnp.inf, real_dtype(params))
        search = self._search(infinity).init(params)
        return ScaleByLBFGSBState(count, zeros(), zeros(), pairs(), pairs(), infinity, evaluations, search)

    def update(self, updates, state, params=None, **extra):
        updates, state, params, bounds = jax.lax.stop_gradient((updates, state, params, _bounds(self.bounds)))
        line = line_of(self, updates, params, extra)
        check_like(line.grad, state.search.grad, "grad", "the params that the state was made for")
        lower, upper = box_like(bounds, params)
        flat = lambda tree: ravel_pytree(cast(tree, real_dtype(params)))[0]
        tree_of = ravel_pytree(cast(params, real_dtype(params)))[1]
        l, u = flat(lower), flat(upper)  # noqa: E741 # the paper's
        inside = lambda p: jax.tree.map(_clip, p, lower, upper)
        loss = lambda p: line.value_fn(inside(p)).astype(line.dtype)

        # A start outside: from where the box is nearest.
        old, given = flat(params), (line.value, line.grad, flat(updates))
        x = jnp.clip(old, l, u)
        base = cast_like(tree_of(x), params)
        outside = jnp.any(x != old)

        def evaluated():
            value, grad = jax.value_and_grad(loss)(base)
            return value, cast_like(grad, line.grad), flat(grad)

        value, grad, g = jax.lax.stop_gradient(jax.lax.cond(outside, evaluated, lambda: given))

        s, y = _remembered(state, x, g)
        d = _direction(x, g, l, u, s, y)
        limit = jnp.maximum(_room(x, d, l, u), 1)
        steps, search = self._search(limit).update(
            tree_of(d), state.search, base, value=value, grad=grad, value_fn=loss
        )
        steps = flat(steps)
        moved = jnp.any(steps != 0)
        s, y = jnp.where(moved, s, 0), jnp.where(moved, y, 0)

        new = cast_like(steps_within(tree_of((x - old) + steps), params, lower, upper), updates)
        left = projected_grad_norm(apply_updates(params, new), search.grad, lower, upper).astype(line.dtype)
        evaluations = search.info.num_linesearch_steps + outside.astype(jnp.int32)
        return new, ScaleByLBFGSBState(increment(state.count), x, g, s, y, left, evaluations, search)

    def _search(self, limit):
        return scale_by_zoom_linesearch(self.max_linesearch_steps, limit, initial_guess_strategy="one")


@jax.jit
def _clip(x, lower, upper):
    """`x` clipped, with the derivative 1 also where it is at a bound or, by rounding, beyond."""
    return jax.lax.stop_gradient(jnp.clip(x, lower, upper)) + (x - jax.lax.stop_gradient(x))


def _remembered(state, x, g):
    """The memory with the newest pair, unless the curvature along that is not positive or not finite."""
    s, y = x - state.params, g - state.updates
    sy = _dot(s, y)
    noise = jnp.finfo(sy.dtype).eps * norm(s) * norm(y)
    usable = (state.count > 0) & (sy > noise) & jnp.isfinite(noise)
    root = jnp.sqrt(jnp.where(usable, sy, 1))
    put = lambda rows, new: jnp.where(usable, jnp.concatenate([rows[1:], new[None] / root]), rows)
    return put(state.diff_params_memory, s), put(state.diff_updates_memory, y)


def _direction(x, g, l, u, s, y):  # noqa: E741 # the paper's l
    """From `x` to where the model is near to its minimum in the box.

    Which variables end at bounds is told by the way of steepest descent. Of the ends that the two papers propose, the
    projected and the truncated one, it takes that at which the model is lower: projection alone may lose the decrease.
    The model is `g @ d + d @ B @ d / 2` with `B = theta * I - W.T @ M @ W`, where W is the transpose of the paper's.
    """
    used = jnp.any(s != 0, axis=1)
    blocked = ((x <= l) & (g >= 0)) | ((x >= u) & (g <= 0))
    first = jnp.maximum(norm(jnp.where(blocked, 0, g)), 1)
    theta = jnp.where(used[-1], _dot(y[-1], y[-1]), first)
    w = jnp.concatenate([y, theta * s])
    lower, unused = jnp.tril(_dot(s, y.T), -1), jnp.diag(jnp.where(used, 0, 1).astype(x.dtype))
    inverse_m = jnp.block([[-jnp.eye(len(s), dtype=x.dtype), lower.T], [lower, theta * _dot(s, s.T) + unused]])
    m = solve(inverse_m, jnp.eye(len(inverse_m), dtype=x.dtype))

    cauchy = _cauchy_point(x, g, l, u, theta, w, m)
    free = (cauchy > l) & (cauchy < u)
    z = cauchy - x
    # Over the free variables the model is minimized by the formula of Sherman, Morrison and Woodbury.
    w_free = jnp.where(free[None], w, 0)
    r = jnp.where(free, g + theta * z - _dot(_dot(m, _dot(w, z)), w), 0)
    v = solve(inverse_m - _dot(w_free, w_free.T) / theta, _dot(w_free, r)[:, None])[:, 0]
    newton = -(r + _dot(v, w_free) / theta) / theta
    projected = jnp.clip(cauchy + newton, l, u) - x
    truncated = jnp.clip(cauchy + jnp.minimum(_room(cauchy, newton, l, u), 1) * newton, l, u) - x
    model = lambda d: _dot(g, d) + (theta * _dot(d, d) - _dot(_dot(m, _dot(w, d)), _dot(w, d))) / 2
    d = jnp.where(model(projected) < model(truncated), projected, truncated)
    return jnp.where(_dot(g, d) < 0, d, z)


def _cauchy_point(x, g, l, u, theta, w, m):  # noqa: E741 # the paper's l
    """The first minimum of the model along the way of steepest descent, where each variable stops at its bound."""
    t = jnp.where(g < 0, (x - u) / g, jnp.where(g > 0, (x - l) / g, jnp.inf))  # when it stops
    d = jnp.where(t > 0, -g, 0)
    order = jnp.argsort(t)
    # Stretch j of the way goes from the j-th stop to the next, and moves what has not stopped before: `rest` sums that.
    edge = lambda fill: jnp.full((1,), fill, x.dtype)
    start, end = jnp.concatenate([edge(0), t[order]]), jnp.concatenate([t[order], edge(jnp.inf)])
    begun = jnp.where(jnp.isfinite(start), start, 0)
    terms = w[:, order] * d[order][None]
    rest = jnp.concatenate([terms, d[order][None] ** 2])
    rest = jnp.pad(jax.lax.cumsum(rest, axis=1, reverse=True), [(0, 0), (0, 1)])
    p, squares = rest[:-1], rest[-1]
    stopped = jnp.pad(jax.lax.cumsum(terms * begun[None, 1:], axis=1), [(0, 0), (1, 0)])

    m_p = _dot(m, p)
    slope = (theta * begun - 1) * squares - jnp.sum(m_p * (stopped + begun[None] * p), axis=0)
    curvature = theta * squares - jnp.sum(m_p * p, axis=0)
    curvature = jnp.maximum(curvature, jnp.finfo(x.dtype).eps * theta * squares)
    length = ratio(-slope, curvature)
    j = jnp.argmax(jnp.isfinite(start) & (end > start) & (length <= end - start))
    best = begun[j] + jnp.maximum(length[j], 0)
    return jnp.clip(jnp.where(t <= best, jnp.where(g < 0, u, l), x + best * d), l, u)


def _room(x, d, l, u):  # noqa: E741 # the paper's l
    """How far along `d` the box reaches: in its lengths, infinity for no end."""
    room = jnp.where(d > 0, (u - x) / d, jnp.where(d < 0, (l - x) / d, jnp.inf))
    return jnp.min(room, initial=jnp.inf)


def _dot(a, b):
    return jnp.dot(a, b, precision=jax.lax.Precision.HIGHEST)


def _check(transform: Any) -> None:
    name, size = type(transform).__name__, transform.memory_size
    if type(size) is not int or size < 1:
        raise ValueError(f"{name}: memory_size is {size!r}, expected an int of at least 1, a number of pairs")
    bounds = transform.bounds
    if bounds is not None and not (isinstance(bounds, tuple) and len(bounds) == 2):
        raise TypeError(f"{name}: bounds is {bounds!r}, expected a pair (lower, upper) of numbers or trees")


def _bounds(bounds):
    return (-float("inf"), float("inf")) if bounds is None else bounds


@pytree
class lbfgsb(Optimizer):
    """L-BFGS-B: L-BFGS for params in a box, `lower <= params <= upper` with `bounds=(lower, upper)`; None is no box.

    It is for a loss without noise: full batches. A search finds the learning rate. `update` takes `value`, `grad` and
    `value_fn`, which is evaluated in the box alone. Each bound is a number for all params, or a tree like the params
    with a number or an array of the same shape for each leaf; it may be infinite, and equal bounds hold a param fixed.
    A start outside is brought in by the first update. At a minimum `projected_grad_norm` in the state, the norm of
    `clip(params - grad) - params`, is 0.

    Pairs along which the curvature is not positive are left out, and after a search that made no step all are
    forgotten. Derivatives see the steps as constants. Params are real, and the memory holds `2 * memory_size` vectors
    of all of them; see `keep_params_in_box` for rounding and for errors.
    """

    bounds: tuple[Any, Any] | None = None
    memory_size: int = static(default=10)
    max_linesearch_steps: Interval = 20

    def __post_init__(self):
        super().__post_init__()
        _check(self)

    def links(self):
        return (scale_by_lbfgsb(self.bounds, self.memory_size, self.max_linesearch_steps),)
