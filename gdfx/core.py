"""The one idea, to be read first: an optimizer is a pytree of its hyperparameters.

It has two methods, `init` and `update`, and everything that JAX does to values it does to optimizers:
`jit` takes one as an argument and compiles once for all values, `vmap` batches them, `grad` differentiates
through them. Schedules are pytrees too, and stand wherever a scalar hyperparameter does.
"""

import inspect
from collections.abc import Callable, Iterator, Set
from typing import Any, ClassVar, Self, TypeAlias

import jax
import jax.numpy as jnp

from .pytrees import Value, as_arrays, pytree, static
from .tree import cast_like, check_like, check_params, leafwise, widen

Tree: TypeAlias = Any
"""A pytree of arrays: params, grads, updates or state."""


class Schedule(Value):
    """A hyperparameter over time: `schedule(count)` is its value after `count` updates.

    Subclasses are `@pytree` classes that define `value(self, count)`, where the count and all numeric fields
    arrive as floats (float32, or float64 where x64 is enabled) and may be traced.
    """

    def value(self, count: jax.Array) -> jax.Array:
        """The value after `count` updates."""
        raise NotImplementedError

    def __call__(self, count: Any) -> jax.Array:
        """The value after `count` updates: a float scalar, or shaped like `count`."""
        return jax.tree.map(jnp.asarray, as_arrays(self)).value(jnp.asarray(count).astype(float))

    def plot(self, total: int | None = None, **kwargs: Any) -> Any:
        """Draws the schedule over its first `total` steps; see `gdfx.schedules.plot`."""
        from .schedules import plot

        return plot(self, total=total, **kwargs)


@pytree
class from_function(Schedule):
    """The schedule given by a function from the count, a float scalar, to a number; equal for the same function."""

    fn: Callable[[Any], Any] = static()

    def value(self, count):
        return jnp.asarray(self.fn(count)).astype(float)


class GradientTransformation(Value):
    """Maps updates to updates, with state carried from step to step: any link of an optimizer, or a whole one.

    Subclasses are `@pytree` classes with `init` and `update`. The fields are the hyperparameters.
    """

    per_example: ClassVar[bool] = False
    """Whether `update` takes a gradient for each example: leaves with one more axis than the params, in front."""

    @property
    def takes(self) -> str | None:
        """`"gradients"` or `"steps"` if it must stand before, or after, the link of a chain that makes steps."""
        return None

    @property
    def makes_steps(self) -> bool:
        """Whether the updates are gradients before it, and after it steps, which are added to params."""
        return False

    @property
    def differentiable(self) -> bool:
        """Whether derivatives pass through what it makes of updates; if not, they see it as constant."""
        return True

    def __post_init__(self):
        for name in self._ranges:
            value = getattr(self, name)
            if name in self._lengths and isinstance(value, tuple | list):
                value = tuple(self._as_number(name, part) for part in value)
            object.__setattr__(self, name, self._as_number(name, value))
        super().__post_init__()

    def _as_number(self, name: str, value: Any) -> Any:
        if isinstance(value, type):
            raise TypeError(
                f"{type(self).__name__}: {name} is the class {value.__name__}: call it, as in {value.__name__}(...)"
            )
        return from_function(value) if callable(value) and not isinstance(value, Schedule) else value

    def init(self, params: Tree) -> Tree:
        """The state before the first update."""
        raise NotImplementedError

    def update(self, updates: Tree, state: Tree, params: Tree | None = None, **extra: Any) -> tuple[Tree, Tree]:
        """The new updates, in the dtypes of the old, and the next state, with the avals of the old.

        Of `extra` (`value`, `grad`, `value_fn`, `key`, ...) it takes what it `needs`, and ignores the rest.
        """
        raise NotImplementedError

    def eval_params(self, state: Tree, params: Tree) -> Tree:
        """The params to evaluate and to keep: those of an average, if it keeps one; see `gdfx.eval_params`."""
        return params

    @property
    def needs(self) -> frozenset[str]:
        """Names of the arguments, beyond updates and state, without which `update` cannot work."""
        return frozenset()

    def at(self, count: jax.Array) -> Self:
        """This transform with each schedule of its own replaced by its value after `count` updates."""
        now = {}
        for name in self._ranges:
            value = getattr(self, name)
            if name in self._lengths:
                new = tuple(self._number_at(f"{name}[{i}]", part, count) for i, part in enumerate(value))
                changed = any(x is not y for x, y in zip(new, value, strict=True))
            elif value is None and name in self._optional:
                continue
            else:
                new = self._number_at(name, value, count)
                changed = new is not value
            if changed:
                now[name] = new
        return self.replace(**now) if now else self

    def _number_at(self, name: str, value: Any, count: jax.Array) -> Any:
        if isinstance(value, Schedule):
            value = value(count)
        if value is None:
            raise TypeError(f"{type(self).__name__}: {name} is None, expected a number or a schedule")
        if jnp.ndim(value):
            raise ValueError(
                f"{type(self).__name__}: {name} has shape {jnp.shape(value)}, expected a scalar. To run one "
                "optimizer for each value, put the update under jax.vmap, or use gdfx.sweep"
            )
        return value

    def __iter__(self) -> Iterator[Callable[..., Any]]:
        """Unpacks: `init, update = gdfx.adam(1e-3)`."""
        yield self.init
        yield self.update


@pytree
class EmptyState:
    """The state of a transform that carries nothing from step to step."""


@pytree
class CountState:
    """The state of a stateless transform that has a schedule and stands alone, outside a chain."""

    count: jax.Array  # int32 scalar: the updates made so far


class Stateless(GradientTransformation):
    """A transform without memory: subclasses define `apply(self, updates, params)`."""

    applies_extra: ClassVar[bool] = False
    """Whether `apply` is also given the extra arguments, by name."""

    def apply(self, updates: Tree, params: Tree | None) -> Tree:
        """The new updates; schedules in the fields of `self` have their present value."""
        raise NotImplementedError

    def init(self, params):
        check_params(params)
        # In a chain the schedules are evaluated before a link is asked, so that the state does not depend on them.
        numbers = jax.tree.leaves(
            [getattr(self, name) for name in self._ranges], is_leaf=lambda x: isinstance(x, Schedule)
        )
        alone = any(isinstance(number, Schedule) for number in numbers)
        return CountState(jnp.zeros((), jnp.int32)) if alone else EmptyState()

    def update(self, updates, state, params=None, **extra):
        provided = {name for name, value in {"params": params, **extra}.items() if value is not None}
        if missing := self.needs - provided:
            raise missing_argument(self, missing)
        extra = extra if self.applies_extra else {}
        if isinstance(state, CountState):
            now, state = self.at(state.count), CountState(increment(state.count))
        else:
            now = self.at(jnp.zeros((), jnp.int32))
        return now.apply(updates, params, **extra), state


@pytree
class identity(Stateless):
    """Leaves the updates as they are."""

    def apply(self, updates, params):
        return updates


@pytree
class stateless(Stateless):
    """A transform from a function `f(updates, params) -> updates`."""

    f: Callable[[Tree, Tree | None], Tree] = static()

    def apply(self, updates, params):
        return self.f(updates, params)


@pytree
class from_functions(GradientTransformation):
    """A transform from a plain pair of functions, such as those of an optax transform.

    `update_fn(updates, state, params)` gets those extra arguments that its signature takes. Half-precision params and
    updates reach the functions as float32, so that the state has float32 slots and keeps its dtypes.
    """

    init_fn: Callable[[Tree], Tree] = static()
    update_fn: Callable[..., Any] = static()

    def init(self, params):
        return self.init_fn(widen(params))

    def update(self, updates, state, params=None, **extra):
        new, state = self.update_fn(widen(updates), state, widen(params), **taken_by(self.update_fn, extra))
        return cast_like(new, updates), state


def taken_by(fn: Callable[..., Any], extra: dict[str, Any]) -> dict[str, Any]:
    """Those of the extra arguments that the signature of `fn` takes."""
    parameters = inspect.signature(fn).parameters
    takes_all = any(p.kind is p.VAR_KEYWORD for p in parameters.values())
    return extra if takes_all else {name: value for name, value in extra.items() if name in parameters}


def missing_argument(transform: GradientTransformation, names: Set[str]) -> TypeError:
    """The error for an `update` that was not given what `transform` needs."""
    call = ["grads", "state", "params", *(f"{name}=..." for name in sorted(names - {"params"}))]
    return TypeError(f"{transform} needs {', '.join(sorted(names))}, which are missing: update({', '.join(call)})")


def as_transformation(transform: Any) -> GradientTransformation:
    """`transform` itself, or the gdfx form of an optax transform or other `(init, update)` pair of functions."""
    if isinstance(transform, GradientTransformation):
        return transform
    if isinstance(transform, type):
        raise TypeError(
            f"{transform.__name__} is a class, expected a transform: call it, as in {transform.__name__}(...)"
        )
    is_pair = isinstance(transform, tuple) and len(transform) == 2
    init, update = transform if is_pair else (getattr(transform, "init", None), getattr(transform, "update", None))
    if not (callable(init) and callable(update)):
        raise TypeError(
            f"{transform!r} is a {type(transform).__name__}, expected a transform, or a pair of functions init, update"
        )
    return from_functions(init, update)


@jax.jit
def increment(count: jax.Array) -> jax.Array:
    """`count + 1`, staying at the largest number of its dtype rather than going beyond."""
    limits = jnp.iinfo if jnp.issubdtype(count.dtype, jnp.integer) else jnp.finfo
    return jnp.where(count < jnp.asarray(limits(count.dtype).max, count.dtype), count + 1, count)


def eval_params(optimizer: Any, state: Tree, params: Tree) -> Tree:
    """The params to evaluate and to keep: what the averages in `optimizer` make of `params`, or these themselves.

    It finds averages through any nesting of chains, groups and wrappers, and changes nothing: training goes on with
    `params`. Structure, shapes and dtypes are those of `params`.
    """
    return as_transformation(optimizer).eval_params(state, params)


def apply_updates(params: Tree, updates: Tree) -> Tree:
    """`params + updates`, leaf by leaf: added in at least float32, returned in the dtypes of `params`."""
    check_like(updates, params, "updates", "params")
    return leafwise(_add, (), params, read=(updates,))


def _add(p, u):
    return p + u
