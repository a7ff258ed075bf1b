"""Line search for the strong conditions of Wolfe: Nocedal and Wright, algorithms 3.5 and 3.6.

https://doi.org/10.1007/978-0-387-40065-5. The approximate condition of decrease is that of Hager and Zhang:
https://doi.org/10.1145/1132973.1132979.
"""

from typing import Literal, NamedTuple, TypeAlias, get_args

import jax
import jax.numpy as jnp

from ..core import Tree, increment
from ..pytrees import Interval, NonNegative, Positive, pytree, static
from ..tree import check_params, real_dtype, where, zeros_like
from .line import LineSearch, Point, guess_from, line_of, numbers_of, step_along

InitialGuess: TypeAlias = Literal["one", "keep"]


@pytree
class ZoomLinesearchInfo:
    """How a search by `scale_by_zoom_linesearch` went."""

    num_linesearch_steps: jax.Array  # int32 scalar: the learning rates tried
    # Float scalars: by how much the conditions are missed by the learning rate found, or if no step is made by the last
    # one tried; 0 if they hold, infinity if they are undefined.
    decrease_error: jax.Array
    curvature_error: jax.Array


@pytree
class ScaleByZoomLinesearchState:
    """The state of `scale_by_zoom_linesearch`."""

    count: jax.Array  # int32 scalar: the updates made so far
    learning_rate: jax.Array  # float scalar: the one found, or where no step was made the last one tried
    value: jax.Array  # float scalar: the loss after the step, infinity at the start
    grad: Tree  # the gradient after the step, in at least float32
    info: ZoomLinesearchInfo

    @property
    def evaluations(self):
        """How often the last update evaluated the loss, an int32 scalar."""
        return self.info.num_linesearch_steps

    def report(self):
        """What `gdfx.metrics` tells of it."""
        return {"linesearch_rate": self.learning_rate, "linesearch_steps": self.info.num_linesearch_steps}


class _Search(NamedTuple):
    """A search under way."""

    tried: jax.Array  # how many points
    # While no interval is found, `low` is the last point tried. Then one between `low` and `high` is wanted: `low` has
    # the lower loss, and may lie to the right.
    found: jax.Array
    low: Point
    high: Point
    other: Point  # a third, for the cubic
    last: tuple[Point, Tree]  # the last point tried, and the gradient there
    safe: tuple[Point, Tree]  # the best point so far with sufficient decrease, at first the start
    done: jax.Array
    failed: jax.Array


@pytree
class scale_by_zoom_linesearch(LineSearch):
    """Multiplies steps by a learning rate for which the loss is lower and its slope less steep.

    It stands after the link that makes steps: `chain(sgd(1.0), scale_by_zoom_linesearch(15))`. The loss is to fall by
    `slope_rtol` times what the slope along the step promises, and the slope to shrink to at most `curv_rtol` of what it
    was, both up to `tol`. Where the loss differs from the first by no more than `approx_dec_rtol` of it, a slope in
    place of a loss, which would be rounded off, may tell the decrease; None turns that off. `curv_rtol=float("inf")`
    asks for a decrease alone.

    The learning rate starts from 1, or with `initial_guess_strategy="keep"`, and where the last search made no step,
    from the last one; it grows by `increase_factor` until an interval is found, at most to `max_learning_rate`, and
    then closes in on the minimum of a cubic or a parabola. After `max_linesearch_steps`, or in an interval shorter than
    `stepsize_precision`, it is the best found that decreases the loss; if there is none, no step is made.

    `update` takes `value`, `grad`, the gradient as `jax.grad` gives it, and `value_fn(params)`, which gets the other
    extra arguments that its signature names. `value_and_grad_from_state` finds value and gradient at the new params in
    the state. `verbose` prints searches that failed. Derivatives see the learning rate as a constant.
    """

    max_linesearch_steps: Interval
    max_learning_rate: Positive | None = None
    tol: NonNegative = 0.0
    increase_factor: Interval = 2.0
    slope_rtol: NonNegative = 1e-4
    curv_rtol: NonNegative = 0.9
    approx_dec_rtol: NonNegative | None = 1e-6
    stepsize_precision: NonNegative = 1e-5
    initial_guess_strategy: InitialGuess = static(default="keep")
    verbose: bool = static(default=False)

    def __post_init__(self):
        super().__post_init__()
        if self.initial_guess_strategy not in get_args(InitialGuess):
            found = f"initial_guess_strategy is {self.initial_guess_strategy!r}"
            raise ValueError(f"{type(self).__name__}: {found}, expected one of {get_args(InitialGuess)}")

    def init(self, params):
        check_params(params)
        one, *infinities = (jnp.full((), fill, real_dtype(params)) for fill in (1.0, jnp.inf, jnp.inf, jnp.inf))
        value, *errors = infinities
        info = ZoomLinesearchInfo(jnp.zeros((), jnp.int32), *errors)
        return ScaleByZoomLinesearchState(jnp.zeros((), jnp.int32), one, value, zeros_like(params), info)

    def update(self, updates, state, params=None, **extra):
        line = line_of(self, updates, params, extra)
        now = numbers_of(self, state.count, line.dtype)
        # From 1, a search that had to end without a step would do so again.
        keeps = self.initial_guess_strategy == "keep"
        goes_on = True if keeps else state.info.decrease_error > now.tol
        first_guess = jnp.where(goes_on, guess_from(state.learning_rate), 1)
        search = jax.lax.while_loop(
            lambda search: ~(search.done | search.failed),
            lambda search: _try(now, line, first_guess, search),
            _start(line),
        )
        made, grad = where(search.failed, search.safe, search.last)
        stuck = search.failed & (made.stepsize == 0)
        told = where(stuck, search.last[0], made)
        if self.verbose:
            _tell(line, told, search.failed)
        info = ZoomLinesearchInfo(search.tried, told.decrease_error, told.curvature_error)
        grad = jax.tree.map(lambda g, slot: g.astype(slot.dtype), grad, state.grad)
        count = increment(state.count)
        state = ScaleByZoomLinesearchState(count, told.stepsize, made.value, grad, info)
        return step_along(made.stepsize, updates), state


def _start(line):
    zero, infinity = (jnp.full((), x, line.dtype) for x in (0.0, jnp.inf))
    start = Point(zero, line.value, line.slope, infinity, infinity)
    no = jnp.zeros((), bool)
    at_start = start, line.grad
    return _Search(jnp.zeros((), jnp.int32), no, start, start, start, at_start, at_start, no, no)


def _try(now, line, first_guess, search):
    """The search after one more point."""
    tried, found, low, high, other, _, (safe, safe_grad), *_ = search
    limit = jnp.inf if now.max_learning_rate is None else now.max_learning_rate
    larger = jnp.where(tried == 0, first_guess, now.increase_factor * low.stepsize)
    at_limit = ~found & (larger >= limit)
    new, grad = _point(now, line, jnp.where(found, _between(low, high, other), jnp.minimum(larger, limit)))
    enough = new.decrease_error <= now.tol
    both = jnp.maximum(new.decrease_error, new.curvature_error) <= now.tol

    safe, safe_grad = where(enough & (~found | (new.value < safe.value)), (new, grad), (safe, safe_grad))

    too_far = (new.decrease_error > 0) | ((new.value >= low.value) & (found | (tried > 0)))
    rises = new.slope * jnp.where(found, high.stepsize - low.stepsize, 1) >= 0  # away from low
    turns = rises & ~too_far
    new_low = where(too_far, low, new)
    new_high = where(too_far, new, where(turns, low, high))
    new_other = where(found, where(too_far | turns, high, low), new_low)
    now_found = found | too_far | turns | both

    done = both | (at_limit & ~now_found)
    tried = tried + 1
    too_short = found & (jnp.abs(high.stepsize - low.stepsize) <= now.stepsize_precision) & (safe.stepsize > 0)
    failed = ((tried.astype(line.dtype) >= now.max_linesearch_steps) | too_short) & ~done
    return _Search(tried, now_found, new_low, new_high, new_other, (new, grad), (safe, safe_grad), done, failed)


def _point(now, line, stepsize):
    """The point at `stepsize`, and the gradient there."""
    value, grad, slope = line.at(stepsize)
    decrease = value - line.value - now.slope_rtol * stepsize * line.slope
    if now.approx_dec_rtol is not None:
        about_equal = value - line.value - now.approx_dec_rtol * jnp.abs(line.value)
        flatter = slope - (2 * now.slope_rtol - 1) * line.slope
        decrease = jnp.minimum(decrease, jnp.maximum(flatter, about_equal))
    # At the slope 0 an infinite curv_rtol would give NaN.
    bound = jnp.where(line.slope == 0, 0, now.curv_rtol * jnp.abs(line.slope))
    errors = decrease, jnp.abs(slope) - bound
    # Where the gradient is not finite the next direction would not be.
    undefined = lambda error: jnp.isnan(error) | ~jnp.isfinite(slope)
    decrease, curvature = (jnp.where(undefined(x), jnp.inf, jnp.maximum(x, 0)) for x in errors)
    return Point(stepsize, value, slope, decrease, curvature), grad


def _between(low, high, other):
    """The minimum of the cubic through three points, else of the parabola through two, else the middle."""
    left, right = jnp.minimum(low.stepsize, high.stepsize), jnp.maximum(low.stepsize, high.stepsize)
    inside = lambda x, margin: (x > left + margin * (right - left)) & (x < right - margin * (right - left))
    cubic, parabola = _of_cubic(low, high, other), _of_parabola(low, high)
    middle = jnp.where(inside(parabola, 0.1), parabola, (low.stepsize + high.stepsize) / 2)
    return jnp.where(inside(cubic, 0.2), cubic, middle)


def _of_parabola(low, high):
    d = high.stepsize - low.stepsize
    b = (high.value - low.value - low.slope * d) / d**2
    return low.stepsize - low.slope / (2 * b)


def _of_cubic(low, high, other):
    # a d**3 + b d**2 + slope d is what the value gains at the distance d from low.
    d, e = high.stepsize - low.stepsize, other.stepsize - low.stepsize
    gain_d, gain_e = high.value - low.value - low.slope * d, other.value - low.value - low.slope * e
    # As a product, as in optax: of a parabola `a` is what is rounded off, and decides which points are tried.
    rows = jnp.array([[e**2, -(d**2)], [-(e**3), d**3]])
    a, b = jnp.dot(rows, jnp.array([gain_d, gain_e]), precision=jax.lax.Precision.HIGHEST) / ((d * e) ** 2 * (d - e))
    return low.stepsize + (-b + jnp.sqrt(b**2 - 3 * a * low.slope)) / (3 * a)


def _tell(line, point, failed):
    said = (
        "scale_by_zoom_linesearch found no learning rate that meets both conditions: {rate} misses the decrease by "
        "{decrease} and the curvature by {curvature}; the loss is {value}, and its slope along the step, which should "
        "be negative, {slope}. If the decrease is missed, no step is made."
    )
    values = {"rate": point.stepsize, "decrease": point.decrease_error, "curvature": point.curvature_error}
    tell = lambda: jax.debug.print(said, value=line.value, slope=line.slope, **values)
    jax.lax.cond(failed, tell, lambda: None)
