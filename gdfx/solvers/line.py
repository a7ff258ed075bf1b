"""The loss along a line through the params, as line searches see it."""

import inspect
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from ..core import GradientTransformation, Tree, apply_updates, missing_argument
from ..transforms.scale import scale_by_learning_rate
from ..tree import check_like, conj, leafwise, real_dtype, vdot, widen

NEEDS = frozenset({"params", "value", "grad", "value_fn"})
"""What a line search takes beyond the direction and the state."""
_RESERVED = {"value", "grad", "value_fn", "residual_fn"}


class Line(NamedTuple):
    """The loss at `params + stepsize * direction`; its scalars are real, in the width of the params.

    All of it, what its functions return included, is constant for derivatives: they pass through a search as if the
    learning rate that it finds were given.
    """

    params: Tree
    direction: Tree
    value: jax.Array  # at stepsize 0
    grad: Tree  # at stepsize 0, in at least float32
    slope: jax.Array  # at stepsize 0
    value_fn: Callable[[Tree], Any]

    @property
    def dtype(self) -> Any:
        return self.value.dtype

    def value_at(self, stepsize: jax.Array) -> jax.Array:
        """The loss."""
        return jax.lax.stop_gradient(self._value(self._point(stepsize)))

    def at(self, stepsize: jax.Array) -> tuple[jax.Array, Tree, jax.Array]:
        """The loss, its gradient in at least float32, and its slope along the line."""
        value, grad = jax.lax.stop_gradient(jax.value_and_grad(self._value)(self._point(stepsize)))
        grad = widen(grad)
        return value, grad, self.slope_of(grad)

    def slope_of(self, grad: Tree) -> jax.Array:
        """The derivative by the stepsize, where the gradient is `grad`."""
        return vdot(conj(grad), self.direction).astype(self.dtype)

    def _point(self, stepsize: jax.Array) -> Tree:
        return apply_updates(self.params, step_along(stepsize, self.direction))

    def _value(self, params: Tree) -> jax.Array:
        return _scalar("value_fn returned a value that", self.value_fn(params)).astype(self.dtype)


class Point(NamedTuple):
    """A point on a line, and by how much it misses the conditions of decrease and curvature."""

    stepsize: jax.Array
    value: jax.Array
    slope: jax.Array
    decrease_error: jax.Array
    curvature_error: jax.Array


def searched(
    direction: GradientTransformation, learning_rate: Any, linesearch: GradientTransformation | None
) -> tuple[GradientTransformation, ...]:
    """The links that make steps of `direction`: by `learning_rate`, by default 1, and as far as `linesearch` says."""
    search = () if linesearch is None else (linesearch,)
    return direction, scale_by_learning_rate(1.0 if learning_rate is None else learning_rate), *search


class Direction(GradientTransformation):
    """A transform of gradients that solves for a direction, which is constant for derivatives."""

    @property
    def differentiable(self):
        return False

    @property
    def takes(self):
        return "gradients"


class WholeSteps(Direction):
    """One that also says how far to go: what comes out is added to the params."""

    @property
    def makes_steps(self):
        return True


class LineSearch(GradientTransformation):
    """A transform of steps that evaluates the loss along them."""

    @property
    def needs(self):
        return NEEDS

    @property
    def takes(self):
        return "steps"


def line_of(transform: GradientTransformation, direction: Tree, params: Tree | None, extra: Mapping[str, Any]) -> Line:
    """The line from `params` along `direction`, on the loss that the extra arguments of `update` tell.

    `value_fn` is also given those other extra arguments that its signature takes by name.
    """
    check_needs(transform, params, extra)
    check_like(direction, params, "updates", "params")
    check_like(extra["grad"], params, "grad", "params")
    value = _scalar(f"{type(transform).__name__}: value", extra["value"]).astype(real_dtype(params))
    params, direction, value, grad = jax.lax.stop_gradient((params, widen(direction), value, widen(extra["grad"])))
    line = Line(params, direction, value, grad, value, bound_fn("value_fn", extra))
    return line._replace(slope=line.slope_of(grad))


def step_along(stepsize: jax.Array, direction: Tree) -> Tree:
    """`stepsize * direction`, and 0 for the stepsize 0, also where the direction is not finite."""
    return leafwise(_step, (stepsize,), direction)


def _step(stepsize, u):
    return jnp.where(stepsize == 0, jnp.zeros_like(u), stepsize * u)


def numbers_of(transform: Any, count: jax.Array, dtype: Any) -> Any:
    """`transform` at `count`, with its numbers as arrays of `dtype`, which derivatives do not see."""
    return jax.tree.map(lambda x: jax.lax.stop_gradient(jnp.asarray(x).astype(dtype)), transform.at(count))


def guess_from(learning_rate: jax.Array) -> jax.Array:
    """The learning rate to begin from after the last one, which failures in a row may have brought to 0."""
    return jnp.where(learning_rate > 0, learning_rate, 1)


def _scalar(what: str, value: Any) -> jax.Array:
    value = jnp.asarray(value)
    if value.ndim or not jnp.issubdtype(value.dtype, jnp.floating):
        raise ValueError(f"{what} has shape {value.shape} and dtype {value.dtype}, expected the loss, a real scalar")
    return value


def check_needs(transform: GradientTransformation, params: Tree | None, extra: Mapping[str, Any]) -> None:
    """Raises `TypeError`, naming them, where arguments that `transform` needs are missing."""
    provided = {name for name, value in {"params": params, **extra}.items() if value is not None}
    if missing := transform.needs - provided:
        raise missing_argument(transform, missing)


def bound_fn(name: str, extra: Mapping[str, Any]) -> Callable[[Tree], Any]:
    """The function `name` among the extra arguments, as one of the params alone."""
    fn = extra[name]
    if not callable(fn):
        raise TypeError(f"{name} is a {type(fn).__name__}, expected a function of the params")
    try:
        parameters = list(inspect.signature(fn).parameters.values())[1:]  # the first takes the params
    except ValueError:  # written in C
        parameters = []
    takes_all = any(p.kind is p.VAR_KEYWORD for p in parameters)
    names = {p.name for p in parameters if p.kind in (p.POSITIONAL_OR_KEYWORD, p.KEYWORD_ONLY)}
    given = {name: x for name, x in extra.items() if name not in _RESERVED and (takes_all or name in names)}
    return lambda params: fn(params, **given)
