"""Hyperparameters in the state, where a training loop can read and change them."""

import functools
import inspect
from collections.abc import Callable, Iterable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from ..core import GradientTransformation, Schedule, Tree, as_transformation, from_function, increment
from ..pytrees import Frozen, pytree, show, static


@pytree
class InjectHyperparamsState:
    """The state of a transform from `inject_hyperparams`."""

    count: jax.Array  # int32 scalar: the updates made so far, by which schedules go
    hyperparams: dict[str, Any]  # arrays by the name of the argument: of the newest update, for the next
    hyperparams_states: dict[str, Tree]  # empty: schedules have no state but the count
    inner_state: Tree  # the state of the transform


def inject_hyperparams(
    inner_factory: Callable[..., Any], static_args: str | Iterable[str] = (), hyperparam_dtype: Any = None
) -> Callable[..., GradientTransformation]:
    """Lets the hyperparameters of `inner_factory` be set in the state: `state.hyperparams["learning_rate"] = 0.1`.

    It returns a factory of the same arguments. The factory's transform holds those that are numbers or arrays, the
    defaults included, in `state.hyperparams`, a dict by name, and is built from it at each update. Schedules, and
    functions of the count (a float scalar), are evaluated and written there at each update, over what a user sets.
    All else stays as given: flags, strings, None, classes, the arguments named in `static_args`, and those of an
    optimizer of gdfx that are not its hyperparameters.

    Optimizers of gdfx need it not: they are values, of which `replace` makes one with another learning rate, without
    compiling anew. It is for loops that keep the hyperparameters in the state, as of optax.

    Args:
        inner_factory: a class of gdfx, or a function that returns a transform, of gdfx, of optax, or a pair of
            functions.
        static_args: names of arguments that stay as given, such as functions that are no schedules.
        hyperparam_dtype: the dtype of those that are floats; by default float32, or float64 where x64 is enabled,
            whatever the dtype of the params. An int may be set where there was a float. An int argument of a function
            is held as int32, until a float is set.

    Raises:
        ValueError: `static_args` has a name that is no argument; or, by `update`, `state.hyperparams` has other names.
        TypeError: by `init`, a function does not give a number for the count: it is no schedule.
    """
    signature = inspect.signature(inner_factory)
    constants = {static_args} if isinstance(static_args, str) else set(static_args)
    if unknown := constants - signature.parameters.keys():
        raise ValueError(
            f"inject_hyperparams: static_args has {', '.join(sorted(unknown))}, expected names of arguments of "
            f"{show(inner_factory)}: {', '.join(signature.parameters)}"
        )
    if variadic := [p.name for p in signature.parameters.values() if p.kind is p.VAR_POSITIONAL]:
        raise TypeError(
            f"inject_hyperparams: {show(inner_factory)} takes any number of arguments, *{variadic[0]}, which have no "
            "names: wrap it in a function of named arguments"
        )

    # updated=(): the attributes of a class are not to become those of the function.
    @functools.wraps(inner_factory, updated=())
    def factory(*args: Any, **kwargs: Any) -> GradientTransformation:
        bound = signature.bind(*args, **kwargs)
        bound.apply_defaults()
        arguments = dict(bound.arguments)
        for p in signature.parameters.values():
            if p.kind is p.VAR_KEYWORD:
                arguments |= arguments.pop(p.name)
        if isinstance(inner_factory, type):
            inner_factory(*args, **kwargs)  # checks the values
        return _sorted_out(inner_factory, arguments, frozenset(constants), hyperparam_dtype)

    return factory


def _sorted_out(factory: Any, arguments: dict[str, Any], constants: frozenset[str], dtype: Any) -> "InjectHyperparams":
    of_gdfx = isinstance(factory, type) and issubclass(factory, GradientTransformation)
    numbers, integers, others = {}, {}, {}
    for name, value in arguments.items():
        value = value.item() if isinstance(value, np.generic) else value
        if name in constants or (of_gdfx and name not in factory._ranges):
            others[name] = value
        elif isinstance(value, Schedule | float | jax.Array | np.ndarray) and not isinstance(value, bool):
            numbers[name] = value
        elif type(value) is int:
            (numbers if of_gdfx else integers)[name] = float(value) if of_gdfx else value
        elif callable(value) and not isinstance(value, type | GradientTransformation):
            numbers[name] = from_function(value)
        else:
            others[name] = value
    return InjectHyperparams(factory, numbers, Frozen(integers), Frozen(others), tuple(sorted(constants)), dtype)


@pytree
class InjectHyperparams(GradientTransformation):
    """A transform whose hyperparameters are in its state; made by the factory that `inject_hyperparams` returns."""

    factory: Callable[..., Any] = static()
    numbers: dict[str, Any]  # floats, arrays and schedules, by the name of the argument
    integers: Any = static()  # ints by name: static, so that they stay ints
    others: Any = static()  # arguments that are no numbers, by name
    static_args: tuple[str, ...] = static(default=())
    hyperparam_dtype: Any = static(default=None)

    @property
    def needs(self):
        return self._first().needs

    @property
    def takes(self):
        return self._first().takes

    @property
    def makes_steps(self):
        return self._first().makes_steps

    def init(self, params):
        count = jnp.zeros((), jnp.int32)
        values = self._values(self._given(), count)
        inner = self._build(values).init(params)
        return InjectHyperparamsState(count, {name: jnp.array(x, copy=True) for name, x in values.items()}, {}, inner)

    def update(self, updates, state, params=None, **extra):
        if state.hyperparams.keys() != self._given().keys():
            raise ValueError(
                f"state.hyperparams has {', '.join(state.hyperparams) or 'no names'}, expected those of the arguments "
                f"of {show(self.factory)} that are numbers: {', '.join(self._given()) or 'none'}"
            )
        values = self._values(state.hyperparams, state.count)
        new, inner = self._build(values).update(updates, state.inner_state, params, **extra)
        # Arrays in the place of Python numbers may have widened what the functions of other libraries keep.
        inner = jax.tree.map(
            lambda x, old: x if x.dtype == old.dtype else x.astype(old.dtype), inner, state.inner_state
        )
        return new, InjectHyperparamsState(increment(state.count), values, state.hyperparams_states, inner)

    def eval_params(self, state, params):
        return self._build(self._values(state.hyperparams, state.count)).eval_params(state.inner_state, params)

    def _given(self) -> dict[str, Any]:
        return {**self.numbers, **self.integers.value}

    def _first(self) -> GradientTransformation:
        return self._build(self._values(self._given(), jnp.zeros((), jnp.int32)))

    def _build(self, values: dict[str, Any]) -> GradientTransformation:
        arguments = {**self.others.value, **values}
        parameters = inspect.signature(self.factory).parameters.values()
        positional = [arguments.pop(p.name) for p in parameters if p.kind is p.POSITIONAL_ONLY]
        return as_transformation(self.factory(*positional, **arguments))

    def _values(self, held: dict[str, Any], count: jax.Array) -> dict[str, jax.Array]:
        """The values of an update, as arrays: what is held, but of schedules the values at the count."""
        values = {}
        for name in held:
            given = self.numbers.get(name)
            value = self._scheduled(name, given, count) if isinstance(given, Schedule) else held[name]
            values[name] = self._as_array(name, value)
        return values

    def _scheduled(self, name: str, schedule: Schedule, count: jax.Array) -> Any:
        if not isinstance(schedule, from_function):
            return schedule(count)
        told = f"{show(self.factory)}: {name} is a function, taken for a schedule, "
        hint = f"If it is no function of the count, name it: static_args={name!r}"
        try:
            value = schedule.fn(count.astype(float))
        except Exception as error:
            raise TypeError(f"{told}but it raised {type(error).__name__} for the count: {error}. {hint}") from error
        dtype = getattr(value, "dtype", type(value))
        if not (dtype in (int, float) or jnp.issubdtype(dtype, jnp.number)):
            raise TypeError(f"{told}but for the count it gave {value!r}, expected a number. {hint}")
        return jnp.asarray(value).astype(float)

    def _as_array(self, name: str, value: Any) -> jax.Array:
        if not isinstance(value, bool | int | float | complex | np.generic | np.ndarray | jax.Array):
            raise TypeError(f"hyperparams[{name!r}] is {value!r}, expected a number or an array")
        array = jnp.asarray(value)
        if jnp.issubdtype(array.dtype, jax.dtypes.prng_key):
            return array
        given = self.numbers.get(name)
        was_float = given is not None and (
            isinstance(given, Schedule) or jnp.issubdtype(jnp.result_type(given), jnp.floating)
        )
        dtype = jnp.result_type(array)
        if jnp.issubdtype(dtype, jnp.floating) or (was_float and jnp.issubdtype(dtype, jnp.signedinteger)):
            dtype = jnp.result_type(float) if self.hyperparam_dtype is None else self.hyperparam_dtype
        # With a dtype, so that it is not weak.
        return jnp.asarray(value, dtype)

    def __repr__(self):
        own = [show(self.factory)]
        own += [f"static_args={self.static_args!r}"] if self.static_args else []
        own += [f"hyperparam_dtype={show(self.hyperparam_dtype)}"] if self.hyperparam_dtype is not None else []
        defaults = {p.name: p.default for p in inspect.signature(self.factory).parameters.values()}
        others = {name: x for name, x in self.others.value.items() if x is not defaults.get(name, inspect.Parameter)}
        arguments = [f"{name}={show(value)}" for name, value in {**self._given(), **others}.items()]
        return f"inject_hyperparams({', '.join(own)})({', '.join(arguments)})"
