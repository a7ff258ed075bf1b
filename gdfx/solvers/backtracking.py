"""Backtracking line search, with the condition of Armijo: https://doi.org/10.2140/pjm.1966.16.1."""

from typing import Annotated, Any

import jax
import jax.numpy as jnp

from ..core import Tree, increment
from ..pytrees import NonNegative, Positive, Range, pytree, static
from ..tree import check_params, real_dtype, where, zeros_like
from .line import LineSearch, guess_from, line_of, numbers_of, step_along


@pytree
class BacktrackingLinesearchInfo:
    """How a search by `scale_by_backtracking_linesearch` went."""

    num_linesearch_steps: jax.Array  # int32 scalar: the learning rates tried
    decrease_error: jax.Array  # by how much the last missed the condition, 0 if it holds, infinity if it is undefined


@pytree
class ScaleByBacktrackingLinesearchState:
    """The state of `scale_by_backtracking_linesearch`."""

    count: jax.Array  # int32 scalar: the updates made so far
    learning_rate: jax.Array  # float scalar: the last one tried
    value: jax.Array  # float scalar: the loss after the step, infinity at the start
    grad: Tree | None  # the gradient after the step, in at least float32; None without `store_grad`
    info: BacktrackingLinesearchInfo

    @property
    def evaluations(self):
        """How often the last update evaluated the loss, an int32 scalar: with `store_grad` at the last point again."""
        tried = self.info.num_linesearch_steps
        return tried if self.grad is None else tried + (tried > 0).astype(jnp.int32)

    def report(self):
        """What `gdfx.metrics` tells of it."""
        return {"linesearch_rate": self.learning_rate, "linesearch_steps": self.info.num_linesearch_steps}


@pytree
class scale_by_backtracking_linesearch(LineSearch):
    """Multiplies steps by a learning rate found by trial: `chain(sgd(1.0), scale_by_backtracking_linesearch(15))`.

    It stands after the link that makes steps. Of learning rates that fall from `increase_factor` times the last one, at
    most `max_learning_rate`, each `decrease_factor` times the one before, it takes the first that brings the loss down
    to `(1 + rtol) * value + slope_rtol * learning_rate * slope + atol`, with the slope of the loss along the step. That
    is there to be found if the slope is negative. If there is none after `max_backtracking_steps` more than the first,
    no step is made; the next search begins from the last.

    `update` takes `value`, `grad`, the gradient as `jax.grad` gives it, and `value_fn(params)`, which gets the other
    extra arguments that its signature names. With `store_grad`, `value_and_grad_from_state` finds both in the state.
    `verbose` prints searches that failed. Derivatives see the learning rate as a constant.
    """

    max_backtracking_steps: NonNegative
    slope_rtol: NonNegative = 1e-4
    decrease_factor: Annotated[Any, Range(above=0.0, below=1.0)] = 0.8
    increase_factor: Positive = 1.5
    max_learning_rate: Positive = 1.0
    atol: NonNegative = 0.0
    rtol: NonNegative = 0.0
    store_grad: bool = static(default=False)
    verbose: bool = static(default=False)

    def init(self, params):
        check_params(params)
        one, value, error = (jnp.full((), fill, real_dtype(params)) for fill in (1.0, jnp.inf, jnp.inf))
        zero = lambda: jnp.zeros((), jnp.int32)
        grad = zeros_like(params) if self.store_grad else None
        return ScaleByBacktrackingLinesearchState(zero(), one, value, grad, BacktrackingLinesearchInfo(zero(), error))

    def update(self, updates, state, params=None, **extra):
        line = line_of(self, updates, params, extra)
        now = numbers_of(self, state.count, line.dtype)

        def goes_on(search):
            tried, _, _, error = search
            return ~(error <= now.atol) & (tried.astype(line.dtype) <= now.max_backtracking_steps)

        def attempt(search):
            tried, rate, _, _ = search
            rate = jnp.where(tried > 0, now.decrease_factor * rate, rate)
            value = line.value_at(rate)
            error = value - (1 + now.rtol) * line.value - rate * now.slope_rtol * line.slope
            return tried + 1, rate, value, jnp.where(jnp.isnan(error), jnp.inf, jnp.maximum(error, 0))

        rate = jnp.minimum(now.increase_factor * guess_from(state.learning_rate), now.max_learning_rate)
        start = jnp.zeros((), jnp.int32), rate, line.value, jnp.full((), jnp.inf, line.dtype)
        tried, rate, value, error = jax.lax.while_loop(goes_on, attempt, start)
        moves = error <= now.atol
        made = jnp.where(moves, rate, 0)
        value, grad = jnp.where(moves, value, line.value), None
        if self.store_grad:
            grad = where(moves, line.at(made)[1], line.grad)
            grad = jax.tree.map(lambda g, slot: g.astype(slot.dtype), grad, state.grad)
        if self.verbose:
            _tell(line, rate, error, error > now.atol)
        info = BacktrackingLinesearchInfo(tried, error)
        state = ScaleByBacktrackingLinesearchState(increment(state.count), rate, value, grad, info)
        return step_along(made, updates), state


def _tell(line, rate, error, failed):
    said = (
        "scale_by_backtracking_linesearch found no learning rate that decreases the loss sufficiently: the last, "
        "{rate}, misses by {error}; the loss is {value}, and its slope along the step, which should be negative, "
        "{slope}. No step is made."
    )
    tell = lambda: jax.debug.print(said, rate=rate, error=error, value=line.value, slope=line.slope)
    jax.lax.cond(failed, tell, lambda: None)
