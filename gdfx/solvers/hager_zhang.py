"""Line search of Hager and Zhang: https://doi.org/10.1137/030601880 and https://doi.org/10.1145/1132973.1132979."""

from typing import Annotated, Any, Literal, NamedTuple, TypeAlias, get_args

import jax
import jax.numpy as jnp

from ..core import Tree, increment
from ..pytrees import Interval, NonNegative, Range, pytree, static
from ..tree import check_params, norm, ratio, real_dtype, where, zeros_like
from .line import LineSearch, Point, guess_from, line_of, numbers_of, step_along

InitialGuess: TypeAlias = Literal["one", "parabola"]


@pytree
class HagerZhangLinesearchInfo:
    """How a search by `scale_by_hager_zhang_linesearch` went."""

    num_linesearch_steps: jax.Array  # int32 scalar: the learning rates tried, that of the guess included
    # Float scalars: by how much the conditions are missed by the learning rate found, or if no step is made by the last
    # one tried; 0 if they hold, infinity if they are undefined or none was tried.
    decrease_error: jax.Array
    curvature_error: jax.Array


@pytree
class ScaleByHagerZhangLinesearchState:
    """The state of `scale_by_hager_zhang_linesearch`."""

    count: jax.Array  # int32 scalar: the updates made so far
    learning_rate: jax.Array  # float scalar: the one found, or where no step was made the last one tried
    value: jax.Array  # float scalar: the loss after the step, infinity at the start
    grad: Tree  # the gradient after the step, in at least float32
    info: HagerZhangLinesearchInfo

    @property
    def evaluations(self):
        """How often the last update evaluated the loss."""
        return self.info.num_linesearch_steps

    def report(self):
        """What `gdfx.metrics` tells of it."""
        return {"linesearch_rate": self.learning_rate, "linesearch_steps": self.info.num_linesearch_steps}


# What a point is tried for: an upper end, the two of a double secant step, the middle of an interval that they did not
# shorten enough.
_BRACKET, _SECANT, _SECOND, _MIDDLE = range(4)


class _Search(NamedTuple):
    """A search under way; in the letters of the paper `low` is a and `high` is b."""

    tried: jax.Array  # how many points
    stage: jax.Array
    stepsize: jax.Array  # to try next
    low: Point  # the slope falls there, and the loss is about that of the start or lower
    high: Point  # the slope rises there, or while `too_high` the loss is higher than at the start, or undefined
    too_high: jax.Array
    before: tuple[Point, Point]  # the ends before the double secant step
    last: Point  # tried last
    best: tuple[Point, Tree]  # the lowest point with sufficient decrease, at first the start, and the gradient there
    done: jax.Array


@pytree
class scale_by_hager_zhang_linesearch(LineSearch):
    """Multiplies steps by a learning rate for which the loss is lower and its slope less steep, found by secants.

    It stands after the link that makes steps. The slope along the step is to rise to at least `curv_rtol` of what it
    was, and the loss to fall by `slope_rtol` times what the slope promises. Where the loss is at most `approx_dec_rtol`
    of it above the first, a slope of at most `1 - 2 * slope_rtol` of the first in size, up or down, tells the decrease:
    near a minimum, where losses are rounded off, slopes are not.

    The learning rate starts from 1 with `initial_guess_strategy="one"`, for directions that have a length, as those of
    L-BFGS. With `"parabola"` it starts from the minimum of the parabola through the loss and its slope at 0 and the
    loss at the last learning rate, or from twice the last; at first the step is a hundredth of the params. It grows by
    `increase_factor` until the slope rises or the loss does. An interval with a rising slope at its upper end is found
    by dividing at `bisection`; it shrinks by double secant steps, and by halving where those leave more than
    `shrinkage` of it. After `max_linesearch_steps` it is the best that decreases the loss sufficiently. If there is
    none, or the slope along the step is not negative, no step is made.

    `update` takes `value`, `grad`, the gradient as `jax.grad` gives it, and `value_fn(params)`, which gets the other
    extra arguments that its signature names. `value_and_grad_from_state` finds value and gradient at the new params in
    the state. Derivatives see the learning rate as a constant.
    """

    max_linesearch_steps: Interval = 50
    slope_rtol: Annotated[Any, Range(above=0.0, below=0.5)] = 0.1
    curv_rtol: Annotated[Any, Range(above=0.0, below=1.0)] = 0.9
    approx_dec_rtol: NonNegative = 1e-6
    increase_factor: Annotated[Any, Range(above=1.0)] = 5.0
    bisection: Annotated[Any, Range(above=0.0, below=1.0)] = 0.5
    shrinkage: Annotated[Any, Range(above=0.0, below=1.0)] = 0.66
    initial_guess_strategy: InitialGuess = static(default="parabola")

    def __post_init__(self):
        super().__post_init__()
        if self.initial_guess_strategy not in get_args(InitialGuess):
            found = f"initial_guess_strategy is {self.initial_guess_strategy!r}"
            raise ValueError(f"{type(self).__name__}: {found}, expected one of {get_args(InitialGuess)}")

    def init(self, params):
        check_params(params)
        one, value, *errors = (jnp.full((), x, real_dtype(params)) for x in (1.0, jnp.inf, jnp.inf, jnp.inf))
        info = HagerZhangLinesearchInfo(jnp.zeros((), jnp.int32), *errors)
        return ScaleByHagerZhangLinesearchState(jnp.zeros((), jnp.int32), one, value, zeros_like(params), info)

    def update(self, updates, state, params=None, **extra):
        line = line_of(self, updates, params, extra)
        now = numbers_of(self, state.count, line.dtype)
        descends = (line.slope < 0) & jnp.isfinite(line.slope) & jnp.isfinite(line.value)
        guess, tried = jnp.ones_like(line.value), jnp.zeros((), jnp.int32)
        if self.initial_guess_strategy == "parabola":
            guess, tried = _guess(line, state, descends)
        search = jax.lax.while_loop(
            lambda search: ~search.done,
            lambda search: _try(now, line, search),
            _start(line, guess, tried, ~descends),
        )
        made, grad = search.best
        stuck = made.stepsize == 0
        told = where(stuck, search.last, made)
        learning_rate = jnp.where(told.stepsize > 0, told.stepsize, state.learning_rate)
        info = HagerZhangLinesearchInfo(search.tried, told.decrease_error, told.curvature_error)
        grad = jax.tree.map(lambda g, slot: g.astype(slot.dtype), grad, state.grad)
        count = increment(state.count)
        state = ScaleByHagerZhangLinesearchState(count, learning_rate, made.value, grad, info)
        return step_along(made.stepsize, updates), state


def _guess(line, state, descends):
    """The learning rate to begin from, and how many points were tried for it."""
    last = guess_from(state.learning_rate)
    tries = descends & (state.count > 0)
    value = jax.lax.cond(tries, lambda: line.value_at(last), lambda: line.value)
    curvature = value - line.value - line.slope * last
    lowest = -line.slope * last**2 / (2 * curvature)
    usable = (value <= line.value) & (curvature > 0) & jnp.isfinite(lowest)
    return jnp.where(state.count == 0, _first(line), jnp.where(usable, lowest, 2 * last)), tries.astype(jnp.int32)


def _first(line):
    """The learning rate to begin from in the first search."""
    sizes = norm(line.params, "inf"), norm(line.direction, "inf")
    x, d = (size.astype(line.dtype) for size in sizes)
    of_loss = 0.01 * ratio(jnp.abs(line.value), jnp.abs(line.slope))
    guess = jnp.where(x > 0, 0.01 * ratio(x, d), of_loss)
    return jnp.where((guess > 0) & jnp.isfinite(guess), guess, 1)


def _start(line, guess, tried, done):
    zero, infinity = (jnp.full((), x, line.dtype) for x in (0.0, jnp.inf))
    start = Point(zero, line.value, line.slope, infinity, infinity)
    no, stage = jnp.zeros((), bool), jnp.full((), _BRACKET, jnp.int32)
    return _Search(tried, stage, guess, start, start, no, (start, start), start, (start, line.grad), done)


def _try(now, line, search):
    """The search after one more point."""
    tried, stage, x, low, high, too_high, before, _, best, _ = search
    new, grad = _point(now, line, x)
    both = (new.decrease_error <= 0) & (new.curvature_error <= 0)
    best = where(both | ((new.decrease_error <= 0) & (new.value < best[0].value)), (new, grad), best)

    defined = jnp.isfinite(new.value) & jnp.isfinite(new.slope)
    rises = defined & (new.slope >= 0)
    falls = defined & ~rises & (new.value <= _limit(now, line))
    low, high = where(falls, new, low), where(falls, high, new)
    grows = falls & (stage == _BRACKET) & ~too_high
    now_too_high = ~falls & ~rises | too_high & falls

    # Where the new point is an end of the interval, a secant with the end that it replaces is the second of two.
    second = where(rises, _secant(before[1], high), _secant(before[0], low))
    is_second = (stage == _SECANT) & ~too_high & _inside(second, low, high)
    is_middle = ~is_second & ((stage == _SECANT) | (stage == _SECOND))
    is_middle &= high.stepsize - low.stepsize > now.shrinkage * (before[1].stepsize - before[0].stepsize)
    middle = low.stepsize / 2 + high.stepsize / 2
    first = _secant(low, high)
    starts = ~is_second & ~is_middle
    of_secant = starts & _inside(first, low, high)
    next_x = jnp.where(is_second, second, jnp.where(of_secant, first, middle))
    next_stage = jnp.where(is_second, _SECOND, jnp.where(of_secant, _SECANT, _MIDDLE)).astype(jnp.int32)

    divided = (1 - now.bisection) * low.stepsize + now.bisection * high.stepsize
    settled = ~grows & ~now_too_high
    x = jnp.where(settled, next_x, jnp.where(grows, now.increase_factor * x, divided))
    stage = jnp.where(settled, next_stage, stage)
    before = where(settled & starts, (low, high), before)

    tried = tried + 1
    done = both | (tried.astype(line.dtype) >= now.max_linesearch_steps) | ~(grows | _inside(x, low, high))
    return _Search(tried, stage, x, low, high, now_too_high, before, new, best, done)


def _limit(now, line):
    return line.value + now.approx_dec_rtol * jnp.abs(line.value)


def _inside(x, low, high):
    return (x > low.stepsize) & (x < high.stepsize)


def _secant(a, b):
    """Where the slope would be 0 if it were linear; NaN or infinite for two equal slopes."""
    return (a.stepsize * b.slope - b.stepsize * a.slope) / (b.slope - a.slope)


def _point(now, line, stepsize):
    """The point at `stepsize`, and the gradient there."""
    value, grad, slope = line.at(stepsize)
    decrease = value - line.value - now.slope_rtol * stepsize * line.slope
    flatter = slope - (2 * now.slope_rtol - 1) * line.slope
    decrease = jnp.minimum(decrease, jnp.maximum(flatter, value - _limit(now, line)))
    errors = decrease, now.curv_rtol * line.slope - slope
    # Where the gradient is not finite the next direction would not be.
    defined = jnp.isfinite(value) & jnp.isfinite(slope)
    decrease, curvature = (jnp.where(defined, jnp.maximum(x, 0), jnp.inf) for x in errors)
    return Point(stepsize, value, slope, decrease, curvature), grad
