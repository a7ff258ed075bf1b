"""Measurements of the updates on their way through a chain, kept in the state."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from ..core import GradientTransformation, Stateless, Tree, as_transformation, increment
from ..pytrees import Decay, pytree, static
from ..tree import check_like, check_params, widen
from .ema import ema


@pytree
class MonitorState:
    """The state of `monitor`: `state["name"]` is the newest measurement of that name, 0 before the first update."""

    count: jax.Array  # int32 scalar: the updates made so far
    measurements: dict[str, Tree]  # the newest, by name
    measure_states: dict[str, Tree]  # what measurements over time carry from step to step, by name

    def __getitem__(self, name: str) -> Tree:
        if name not in self.measurements:
            raise KeyError(f"nothing is measured as {name!r}; there are: {', '.join(self.measurements)}")
        return self.measurements[name]

    def report(self):
        """What `gdfx.metrics` tells of it."""
        return self.measurements


@pytree
class monitor(GradientTransformation):
    """Measures the updates, which it leaves as they are, and keeps the results in its state.

    `measures` has for each name a function from the updates to a number, an array or a pytree of them, or a measurement
    over time, such as `measure_with_ema`; for a single one, write `monitor("name", measure)`. `gdfx.metrics` reads the
    newest, and in a chain `state["monitor"]["name"]` is it. Half-precision updates reach the functions as float32.

    A function compiles once for each: give one with a name, not a lambda made anew for each call.
    """

    measures: Any
    measure: Any = static(default=None)

    def __post_init__(self):
        if isinstance(self.measures, str):
            object.__setattr__(self, "measures", {self.measures: self.measure})
            object.__setattr__(self, "measure", None)
        if self.measure is not None:
            raise TypeError(f"monitor: measure goes with a single name, but measures is {self.measures!r}")
        if not isinstance(self.measures, dict) or not all(isinstance(name, str) for name in self.measures):
            raise TypeError(f"monitor: measures is {self.measures!r}, expected a dict from names to functions")
        measures = {name: _as_measurement(measure) for name, measure in self.measures.items()}
        object.__setattr__(self, "measures", measures)
        super().__post_init__()

    @property
    def needs(self):
        return frozenset[str]().union(*(measure.needs for measure in self.measures.values()))

    def init(self, params):
        check_params(params)
        params = widen(params)
        states = {name: measure.init(params) for name, measure in self.measures.items()}
        measured = jax.eval_shape(lambda: {n: m.update(params, states[n], params)[0] for n, m in self.measures.items()})
        measured = jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), measured)
        return MonitorState(jnp.zeros((), jnp.int32), measured, states)

    def update(self, updates, state, params=None, **extra):
        measured, states = {}, {}
        for name, measure in self.measures.items():
            found, states[name] = measure.update(widen(updates), state.measure_states[name], params, **extra)
            check_like(_floats(found), _floats(state[name]), f"what {name!r} measures", "the first update")
            # A copy: a measurement that is the updates themselves would share their buffers.
            measured[name] = jax.tree.map(lambda x, old: jnp.array(x, old.dtype), found, state[name])
        return updates, MonitorState(increment(state.count), measured, states)


@pytree
class snapshot(GradientTransformation):
    """Keeps the newest `measure(updates)` in its state, in a chain as `state["snapshot"][measure_name]`.

    The same as a `monitor` of one function.
    """

    measure_name: str = static()
    measure: Callable[[Tree], Tree] = static()

    @property
    def _monitor(self):
        return monitor({self.measure_name: self.measure})

    def init(self, params):
        return self._monitor.init(params)

    def update(self, updates, state, params=None, **extra):
        return self._monitor.update(updates, state, params, **extra)


@pytree
class measure_with_ema(GradientTransformation):
    """A measurement for `monitor`: the exponential moving average of `measure(updates)`, as `ema` takes it.

    What the function returns is averaged as floats: of a bool it is the share of steps at which it was true. It is no
    link for a chain, as its `update` returns the average in place of updates.
    """

    measure: Callable[[Tree], Tree] = static()
    decay: Decay
    debias: bool = static(default=True)
    accumulator_dtype: Any = static(default=None)

    @property
    def _average(self):
        return ema(self.decay, self.debias, self.accumulator_dtype)

    def _measured(self, updates):
        return _floats(self.measure(widen(updates)))

    def init(self, params):
        measured = jax.eval_shape(self._measured, params)
        return self._average.init(jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), measured))

    def update(self, updates, state, params=None, **extra):
        return self._average.update(self._measured(updates), state)


@pytree
class Measure(Stateless):
    """The measurement for `monitor` that is a function of the updates."""

    fn: Callable[[Tree], Tree] = static()

    def apply(self, updates, params):
        return jax.tree.map(jnp.asarray, self.fn(updates))


def _as_measurement(measure: Any) -> GradientTransformation:
    return Measure(measure) if callable(measure) and not isinstance(measure, type) else as_transformation(measure)


def _floats(tree: Tree) -> Tree:
    arrays = jax.tree.map(jnp.asarray, tree)
    return jax.tree.map(lambda x: x if jnp.issubdtype(x.dtype, jnp.inexact) else x.astype(float), arrays)
