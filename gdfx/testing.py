"""For those who write transforms of their own: the invariants of gdfx, checked one by one.

`check_transformation(my_transform)` raises `InvariantError` for the first invariant that does not hold: it says which,
at which leaf, and what was found. `INVARIANTS` lists them all.
"""

import contextlib
import copy
import dataclasses
import dis
import functools
import pickle
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

import gdfx

from .composition import Chain, Optimizer
from .core import (
    GradientTransformation,
    Schedule,
    Tree,
    apply_updates,
    as_transformation,
    from_functions,
)
from .pytrees import Range, Value
from .tree import abs2, path_str

ExtraArguments = Mapping[str, Any] | Callable[[Tree, Tree], Mapping[str, Any]]


class InvariantError(AssertionError):
    """A transform breaks `invariant`, one of the names in `INVARIANTS`."""

    def __init__(self, invariant: str, message: str):
        super().__init__(message)
        self.invariant = invariant

    def __reduce__(self):
        return type(self), (self.invariant, str(self))


def example_params(dtype: Any = jnp.float32) -> dict[str, Any]:
    """A small tree with a matrix, a vector, a scalar, a leaf without elements and a `None`."""
    values = jnp.linspace(-1.0, 1.5, 16).astype(dtype)
    matrix, vector, scalar = values[:12].reshape(4, 3), values[12:15], values[15]
    return {
        "empty": jnp.zeros((0, 2), dtype),
        "matrix": matrix,
        "none": None,
        "scalar": scalar,
        "vector": vector,
    }


def check_transformation(
    transform: Any,
    params: Tree | None = None,
    *,
    extra: ExtraArguments | None = None,
    check: Iterable[str] | None = None,
    complex: bool = False,
    rtol: float | None = None,
) -> None:
    """Raises `InvariantError` for the first invariant that `transform`, one of gdfx or optax or a pair, does not hold.

    Args:
        transform: the transform, with the hyperparameters to check it at; each is also tried at nearby values.
        params: what to optimize, small; `example_params()` by default.
        extra: arguments that `update` needs beyond params, or a function `(params, grads)` to them.
        check: names of `INVARIANTS`; all of them by default.
        complex: whether it must work for complex params.
        rtol: the relative difference allowed between two ways to compute the same; by default 16 units in the last
            place of the params, for half precision 2.
    """
    transform = as_transformation(transform)
    params = example_params() if params is None else params
    names = list(INVARIANTS) if check is None else [check] if isinstance(check, str) else list(check)
    if unknown := set(names) - set(INVARIANTS):
        raise ValueError(f"no invariant is named {', '.join(sorted(unknown))}; there are: {', '.join(INVARIANTS)}")
    subject = _Subject(transform, jax.tree.map(jnp.asarray, params), extra, complex, rtol)
    if missing := transform.needs - {"params", *subject.extra(subject.params, subject.grads[0])}:
        listed = ", ".join(sorted(missing))
        raise TypeError(f"{transform} needs {listed}: pass check_transformation(..., extra=...) with it")
    for name in names:
        invariant = INVARIANTS[name]
        try:
            invariant(subject)
        except Exception as error:
            told = "" if type(error) is AssertionError else f"it raised {type(error).__name__}: "
            told = f"{_show(transform)} breaks the invariant {name!r}: {told}{str(error)[:2000]}"
            raise InvariantError(name, f"{told}\n({name}: {invariant.__doc__})") from error


def _show(transform: Any) -> str:
    try:
        return repr(transform)
    except Exception:  # the invariant "repr" is to tell
        return type(transform).__name__


def trees_close(found: Tree, expected: Tree, rtol: float = 1e-6, atol: float = 0.0) -> None:
    """Raises `AssertionError`, naming the path of the worst leaf, unless the trees hold the same numbers.

    A leaf may deviate by `atol` plus `rtol` times its largest element in `expected`; dtypes may differ. NaNs are equal
    to nothing, infinities only to themselves.
    """
    structures = jax.tree.structure(found), jax.tree.structure(expected)
    if structures[0] != structures[1]:
        raise AssertionError(f"the trees have different structures: found {structures[0]}, expected {structures[1]}")
    worst, told = 1.0, ""
    pairs = zip(jax.tree_util.tree_leaves_with_path(found), jax.tree.leaves(expected), strict=True)
    for (path, x), y in pairs:
        x, y = _numbers(x), _numbers(y)
        if x.shape != y.shape:
            raise AssertionError(f"at {path_str(path)}: found shape {x.shape}, expected {y.shape}")
        if not x.size:
            continue
        size = np.max(np.abs(y), where=np.isfinite(y), initial=0.0)
        with np.errstate(all="ignore"):
            off = np.where(x == y, 0.0, np.abs(x - y))
            ratio = np.nan_to_num(off / (atol + rtol * size), nan=np.inf)
        ratio = np.where(off == 0, 0.0, ratio)
        where = np.unravel_index(np.argmax(ratio), ratio.shape)
        if ratio[where] > worst:
            worst = ratio[where]
            index = f"[{', '.join(map(str, where))}]" if where else ""
            told = f"at {path_str(path)}{index}: found {x[where]}, expected {y[where]}: off by {off[where]:.3g}, "
            told += f"allowed is {atol + rtol * size:.3g}"
    if told:
        raise AssertionError(told)


@contextlib.contextmanager
def assert_single_trace(fn: Callable[..., Any]) -> Iterator[Callable[..., Any]]:
    """Yields `jax.jit(fn)`, which raises when it is traced a second time, and says which argument is to blame.

    One compilation serves all learning rates::

        with assert_single_trace(step) as step:
            for learning_rate in (0.1, 0.01):
                step(gdfx.as_arrays(gdfx.adam(learning_rate)), grads, state, params)
    """
    traced: list[Tree] = []

    @functools.wraps(fn)
    def counted(*args: Any, **kwargs: Any) -> Any:
        traced.append(jax.tree.map(jax.typeof, (args, kwargs)))
        if len(traced) > 1:
            raise AssertionError(f"it was traced again: {_retrace_cause(traced[-1], traced[0])}")
        return fn(*args, **kwargs)

    yield jax.jit(counted)
    if not traced:
        raise AssertionError("it was not traced at all: the function was not called")


def _retrace_cause(now: Tree, first: Tree) -> str:
    try:
        _expect_avals("argument", now, first)
    except AssertionError as error:
        return str(error)
    return "a static field or other compiled-in value differs from the first call's"


# What is checked: a transform and what is computed from it once for several invariants.


class _Hyperparameter(NamedTuple):
    leaf: int  # its position among the leaves of the transform
    path: str
    value: jax.Array
    others: list[jax.Array]  # nearby values in its range


class _Subject:
    def __init__(
        self,
        transform: GradientTransformation,
        params: Tree,
        extra: ExtraArguments | None,
        complex: bool,
        rtol: float | None,
    ):
        self.transform, self.params, self.complex = transform, params, complex
        self.extra = extra if callable(extra) else lambda params, grads: extra or {}
        self.rtol = _default_rtol(params) if rtol is None else rtol
        self.grads = [_normal(params, seed) for seed in range(3)]
        self.stacked = jax.tree.map(lambda *x: jnp.asarray(np.stack(x)), *self.grads)
        self.traces: list[Tree] = []
        self.run = jax.jit(self._counted)
        self.parts = list(_parts(transform))

    @functools.cached_property
    def hyperparameters(self) -> list[_Hyperparameter]:
        """All numbers in the transform, those in its schedules included."""
        found = []
        for position, (path, leaf) in enumerate(jax.tree_util.tree_leaves_with_path(self.transform)):
            owner, allowed = _owner(self.transform, path)
            is_number = isinstance(leaf, int) and not isinstance(leaf, bool)
            is_float = isinstance(leaf, float) or jnp.issubdtype(getattr(leaf, "dtype", bool), jnp.floating)
            if is_float or (is_number and (allowed is not None or isinstance(owner, Schedule))):
                value = jnp.asarray(leaf).astype(float)
                others = _nearby(value, allowed or Range())
                found.append(_Hyperparameter(position, path_str(path).lstrip("."), value, others))
        return found

    @functools.cached_property
    def values(self) -> list[jax.Array]:
        return [h.value for h in self.hyperparameters]

    @functools.cached_property
    def members(self) -> list[tuple[str, list[jax.Array]]]:
        """The hyperparameters as they are, and with each in turn at other values."""
        members = [("as given", self.values)]
        for i, h in enumerate(self.hyperparameters):
            for other in h.others:
                members.append((f"{h.path}={other}", [*self.values[:i], other, *self.values[i + 1 :]]))
        return members

    def with_values(self, values: list[Any]) -> GradientTransformation:
        leaves, structure = jax.tree.flatten(self.transform)
        for h, value in zip(self.hyperparameters, values, strict=True):
            leaves[h.leaf] = value
        return jax.tree.unflatten(structure, leaves)

    def step(self, transform: Any, grads: Tree, state: Tree, params: Tree) -> tuple[Tree, Tree, Tree]:
        updates, state = transform.update(grads, state, params, **self.extra(params, grads))
        return apply_updates(params, updates), state, updates

    def steps(self, transform: Any, params: Tree, grads: Tree) -> tuple[Tree, Tree, Tree]:
        """From `init` through a scan over stacked grads: the last params, the last state, all updates."""

        def body(carry, grads):
            params, state, updates = self.step(transform, grads, carry[1], carry[0])
            return (params, state), updates

        (params, state), updates = jax.lax.scan(body, (params, transform.init(params)), grads)
        return params, state, updates

    def steps_with(self, i: int, value: Any) -> tuple[Tree, Tree, Tree]:
        """As `steps`, with one of the numbers changed and the others as given."""
        leaves, structure = jax.tree.flatten(self.transform)
        leaves[self.hyperparameters[i].leaf] = value
        return self.steps(jax.tree.unflatten(structure, leaves), self.params, self.stacked)

    def _counted(self, transform: Any, params: Tree, grads: Tree) -> tuple[Tree, Tree, Tree]:
        self.traces.append(jax.tree.map(jax.typeof, (transform, params, grads)))
        return self.steps(transform, params, grads)

    @functools.cached_property
    def loop(self) -> list[tuple[Tree, Tree, Tree]]:
        """The outcome for each of `members`, one after another."""
        return [self.run(self.with_values(v), self.params, self.stacked) for _, v in self.members]

    @functools.cached_property
    def eager(self) -> list[tuple[Tree, Tree, Tree]]:
        """Params, state and updates after each step, with the transform as given and no jit."""
        params, state, after = self.params, self.transform.init(self.params), []
        for grads in self.grads:
            params, state, updates = self.step(self.transform, grads, state, params)
            after.append((params, state, updates))
        return after

    @functools.cached_property
    def donating_step(self) -> Callable[..., tuple[Tree, Tree, Tree]]:
        return jax.jit(functools.partial(self.step, self.transform), donate_argnums=(1, 2))

    def expect_avals(self, params: Tree, grads: Tree, *, updates: bool = False, state: bool = False) -> None:
        """Takes a step abstractly, with the numbers of the transform as given and as arrays."""
        for transform in (self.transform, self.with_values(self.values)):
            before = jax.eval_shape(transform.init, params)
            update = lambda g, s, p, t=transform: t.update(g, s, p, **self.extra(p, g))
            new, after = jax.eval_shape(update, grads, before, params)
            told = "" if transform is self.transform else "with the numbers as arrays, "
            if updates:
                _expect_avals(f"{told}updates", new, grads, weak=False)
            if state:
                _expect_avals(f"{told}state", after, before)

    def update_avals(self, grads: Tree, params: Tree | None, extra: Mapping[str, Any]) -> Tree:
        """`update` without computing anything: for the errors that it raises."""
        state = jax.eval_shape(self.transform.init, self.params)
        return jax.eval_shape(lambda g, s, p: self.transform.update(g, s, p, **extra), grads, state, params)


def _parts(value: Any) -> Iterator[Any]:
    """The transforms and schedules that `value` is made of."""
    if isinstance(value, Value) and dataclasses.is_dataclass(value):
        yield value
        for f in dataclasses.fields(value):
            yield from _parts(getattr(value, f.name))
    elif isinstance(value, tuple | list | dict):
        for part in value.values() if isinstance(value, dict) else value:
            yield from _parts(part)


def _static(part: Any) -> dict[str, Any]:
    return {f.name: getattr(part, f.name) for f in dataclasses.fields(part) if f.metadata.get("static")}


def _owner(transform: Any, path: tuple[Any, ...]) -> tuple[Any, Range | None]:
    """The innermost transform or schedule on the way to a leaf, and the range of its field on that way."""
    node, owner, allowed = transform, transform, None
    for key in path:
        name = getattr(key, "name", None)
        if isinstance(node, Value):
            owner, allowed = node, node._ranges.get(str(name))
        if name is not None:
            node = getattr(node, name)
        elif isinstance(node, tuple | list | dict):
            node = node[getattr(key, "idx", getattr(key, "key", None))]  # pyright: ignore[reportArgumentType, reportCallIssue]
        else:
            break
    return owner, allowed


def _nearby(value: jax.Array, allowed: Range) -> list[jax.Array]:
    candidates = [value * 0.9, value * 0.5, value + 0.01, value * 1.1, value + 0.1, value - 0.1]
    candidates += [jnp.full_like(value, x) for x in (0.5, 1.0, 2.0)]  # for infinities
    changed = [c for c in candidates if np.isfinite(c).all() and not np.array_equal(c, value)]
    return [c for c in changed if all(x in allowed for x in np.ravel(c))][:2]


def _normal(like: Tree, seed: int) -> Tree:
    rng = np.random.default_rng(seed)

    def leaf(x):
        values = rng.standard_normal(x.shape)
        if jnp.iscomplexobj(x):
            values = values + 1j * rng.standard_normal(x.shape)
        return jnp.asarray(np.asarray(values, x.dtype))

    return jax.tree.map(leaf, like)


def _default_rtol(params: Tree) -> float:
    eps = [float(jnp.finfo(x.dtype).eps) for x in jax.tree.leaves(params) if jnp.issubdtype(x.dtype, jnp.inexact)]
    return max((e * (16 if e < 1e-4 else 2) for e in eps), default=1e-6)


def _numbers(leaf: Any) -> np.ndarray:
    if jnp.issubdtype(getattr(leaf, "dtype", bool), jax.dtypes.prng_key):
        leaf = jax.random.key_data(leaf)
    array = np.asarray(leaf)
    return array.astype(np.complex128 if jnp.iscomplexobj(array) else np.float64)


def _expect_avals(name: str, found: Tree, expected: Tree, weak: bool = True) -> None:
    """Raises where structure, shape, dtype or, if asked for, weak type differ."""
    if jax.tree.structure(found) != jax.tree.structure(expected):
        raise AssertionError(
            f"{name} has another structure: found {jax.tree.structure(found)}, expected {jax.tree.structure(expected)}"
        )
    pairs = zip(jax.tree_util.tree_leaves_with_path(found), jax.tree.leaves(expected), strict=True)
    for (path, x), y in pairs:
        seen, wanted = _aval(x, weak), _aval(y, weak)
        if seen != wanted:
            raise AssertionError(f"{name}{jax.tree_util.keystr(path)}: found {seen}, expected {wanted}")


def _aval(x: Any, weak: bool) -> str:
    if not hasattr(x, "weak_type"):
        x = jax.typeof(x)
    is_weak = weak and getattr(x, "weak_type", False)
    return f"{'weakly typed ' if is_weak else ''}{x.dtype}[{','.join(map(str, x.shape))}]"


def _expect_finite(name: str, tree: Tree) -> None:
    for path, leaf in jax.tree_util.tree_leaves_with_path(tree):
        numbers = _numbers(leaf)
        if not np.isfinite(numbers).all():
            bad = numbers[~np.isfinite(numbers)].ravel()[0]
            raise AssertionError(f"{name}{jax.tree_util.keystr(path)}: found {bad}, expected finite numbers")


def _close(name: str, found: Tree, expected: Tree, rtol: float) -> None:
    try:
        trees_close(found, expected, rtol)
    except AssertionError as error:
        raise AssertionError(f"{name} {error}") from None


def _is_named(error: Exception) -> bool:
    """Whether the transform itself raised this `ValueError` or `TypeError`, rather than JAX or Python underneath."""
    trace = error.__traceback__
    while trace is not None and trace.tb_next is not None:
        trace = trace.tb_next
    if trace is None or not isinstance(error, ValueError | TypeError) or not str(error):
        return False
    package = trace.tb_frame.f_globals.get("__name__", "").partition(".")[0]
    by_statement = trace.tb_frame.f_code.co_code[trace.tb_lasti] == dis.opmap["RAISE_VARARGS"]
    return by_statement and package not in ("jax", "jaxlib", "numpy")


def _works_or_raises(what: str, attempt: Callable[[], None]) -> None:
    try:
        attempt()
    except AssertionError as error:
        raise AssertionError(f"with {what}, {error}") from error
    except Exception as error:
        if not _is_named(error):
            raise AssertionError(
                f"with {what} it raised {type(error).__name__}, and not from a statement of its own that says what is "
                f"wrong: {str(error)[:500]}"
            ) from error


def _blame(s: _Subject, with_number: Callable[[int], Any], error: Exception) -> AssertionError:
    """The error, told with the name of the number for which alone `with_number(i)` raises, if there is one."""
    told = f"{type(error).__name__}: {str(error)[:500]}"
    with contextlib.suppress(Exception):
        jax.eval_shape(functools.partial(s.steps, s.transform), s.params, s.stacked)
        for i, h in enumerate(s.hyperparameters):
            try:
                with_number(i)
            except Exception as alone:
                return AssertionError(f"{h.path}: {type(alone).__name__}: {str(alone)[:500]}")
    return AssertionError(told)


# The invariants, each a function that raises where its sentence is not true. The order is that in which they are
# checked: what many others build on comes first.


def _init_avals(s: _Subject) -> None:
    """`jax.eval_shape(init, params)` has the avals of the state that `init` makes."""
    _expect_avals("state", s.transform.init(s.params), jax.eval_shape(s.transform.init, s.params))


def _update_avals(s: _Subject) -> None:
    """Updates come back with the structure, shapes and dtypes that they went in with."""
    s.expect_avals(s.params, s.grads[0], updates=True)
    _expect_avals("updates", s.eager[0][2], s.grads[0], weak=False)


def _state_avals(s: _Subject) -> None:
    """The state has the same structure, shapes, dtypes and weak types before and after `update`: safe in `lax.scan`."""
    s.expect_avals(s.params, s.grads[0], state=True)
    _expect_avals("state", s.eager[0][1], s.transform.init(s.params))
    jax.eval_shape(functools.partial(s.steps, s.transform), s.params, s.stacked)


def _no_aliases(s: _Subject) -> None:
    """No leaf of the state shares its buffer with a param, a hyperparameter or another leaf of the state."""
    state = s.transform.init(s.params)
    seen: dict[int, str] = {}
    for name, tree in (("params", s.params), ("transform", s.transform), ("state", state)):
        for path, leaf in jax.tree_util.tree_leaves_with_path(tree):
            if not isinstance(leaf, jax.Array) or not leaf.size:
                continue
            address = leaf.addressable_shards[0].data.unsafe_buffer_pointer()
            here = f"{name}{jax.tree_util.keystr(path)}"
            if tree is state and address in seen:
                raise AssertionError(
                    f"{here} is the buffer of {seen[address]}, expected one of its own, as jnp.copy makes"
                )
            seen[address] = here


def _donation(s: _Subject) -> None:
    """Params and state can be donated at every step, the first included."""
    params = jax.tree.map(jnp.copy, s.params)
    state = s.transform.init(params)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Donation is not implemented")  # on some platforms
        for grads in s.grads:
            params, state, _ = s.donating_step(grads, state, params)
    jax.block_until_ready((params, state))


def _eager_is_jit(s: _Subject) -> None:
    """`update` computes the same with and without `jit`."""
    params, state = (
        jax.tree.map(jnp.copy, s.params),
        jax.tree.map(jnp.copy, s.transform.init(s.params)),
    )
    for i, (grads, eager) in enumerate(zip(s.grads, s.eager, strict=True), 1):
        after = s.donating_step(grads, state, params)
        for name, found, expected in zip(("params", "state", "updates"), after, eager, strict=True):
            _close(f"after {i} steps under jit, {name}", jax.device_get(found), expected, s.rtol)
        params, state, _ = after


def _one_trace(s: _Subject) -> None:
    """With the transform as an argument of `jit`, one trace serves all values of its numbers, and computes the same."""
    for part in s.parts:
        for name, value in _static(part).items():
            if isinstance(value, float):
                raise AssertionError(
                    f"{type(part).__name__}.{name} is a static field that holds {value}: each value compiles anew. "
                    "Make it a field without static()"
                )
    before = len(s.traces)
    try:
        outcomes = [s.run(s.with_values(v), s.params, s.stacked) for _, v in s.members]
    except Exception as error:
        trace = lambda i: jax.eval_shape(functools.partial(s.steps_with, i), s.values[i])
        raise _blame(s, trace, error) from error
    if len(s.traces) > before + 1:
        raise AssertionError(
            f"it was traced {len(s.traces) - before} times for {len(s.members)} values of "
            f"{', '.join(h.path for h in s.hyperparameters)}: {_retrace_cause(s.traces[before + 1], s.traces[before])}"
        )
    # A traced number has the precision of its dtype; a Python number in the transform's own arithmetic has more.
    expected = (
        *s.eager[-1][:2],
        jax.tree.map(lambda *x: jnp.stack(x), *(updates for *_, updates in s.eager)),
    )
    for name, found, eager in zip(("params", "state", "updates"), outcomes[0], expected, strict=True):
        _close(f"with the numbers traced, {name}", found, eager, max(s.rtol, 1e-4))


def _vmap_is_loop(s: _Subject) -> None:
    """`vmap` over each number of the transform, schedules' included, computes what a Python loop does."""
    if not s.hyperparameters:
        return
    columns = [jnp.stack(column) for column in zip(*(v for _, v in s.members), strict=True)]
    # Each alone, without computing anything; then all in one program.
    trace = lambda i: jax.eval_shape(jax.vmap(functools.partial(s.steps_with, i)), columns[i])
    together = lambda values: jax.tree.map(_data, s.steps(s.with_values(values), s.params, s.stacked))
    try:
        for i in range(len(columns)):
            trace(i)
        batched = jax.device_get(jax.jit(jax.vmap(together))(columns))
    except Exception as error:
        raise _blame(s, trace, error) from error
    for i, ((label, _), looped) in enumerate(zip(s.members, s.loop, strict=True)):
        member = jax.tree.map(lambda x, i=i: x[i], batched)
        for name, found, expected in zip(("params", "state", "updates"), member, looped, strict=True):
            _close(f"under vmap, for {label}, {name}", found, jax.tree.map(_data, expected), s.rtol)


def _data(x: Any) -> Any:
    return jax.random.key_data(x) if jnp.issubdtype(x.dtype, jax.dtypes.prng_key) else x


def _finite_at_zero(s: _Subject) -> None:
    """Updates are finite where gradients and params are 0."""
    zeros = functools.partial(jax.tree.map, lambda x: jnp.asarray(np.zeros_like(x)))
    params, _, updates = s.run(s.with_values(s.values), zeros(s.params), zeros(s.stacked))
    _expect_finite("updates", updates)
    _expect_finite("params", params)


def _finite_gradients(s: _Subject) -> None:
    """`jax.grad` through ten steps, by the numbers of the transform and by params, is finite, also at gradients 0."""
    leaves, structure = jax.tree.flatten(s.params)
    # The gradient is 0 for all of the first leaf that has elements, and for the first element of each other.
    untouched = next((i for i, x in enumerate(leaves) if x.size), 0) if len(leaves) > 1 else -1
    masks = [(np.arange(x.size) > 0).reshape(x.shape) & (i != untouched) for i, x in enumerate(leaves)]
    masks = jax.tree.unflatten(structure, masks)

    def loss(params):
        terms = jax.tree.map(lambda m, p: jnp.sum(jnp.where(m, abs2(p - 1), 0)).astype(float), masks, params)
        return 0.1 * sum(jax.tree.leaves(terms), jnp.zeros((), float))

    def final(values, params):
        transform = s.with_values(values)

        def body(carry, _):
            params, state, _ = s.step(transform, jax.grad(loss)(carry[0]), carry[1], carry[0])
            return (params, state), None

        (params, _), _ = jax.lax.scan(body, (params, transform.init(params)), length=10)
        squares = [jnp.sum(abs2(p)).astype(float) for p in jax.tree.leaves(params)]
        return sum(squares, jnp.zeros((), float))

    by_values, by_params = jax.jit(jax.grad(final, argnums=(0, 1)))(s.values, s.params)
    for h, value in zip(s.hyperparameters, by_values, strict=True):
        _expect_finite(f"the derivative by {h.path}", value)
    _expect_finite("the derivative by params", by_params)


def _dtypes(s: _Subject) -> None:
    """All the above on avals and finite numbers is true for params of each float dtype, or a named error is raised."""
    names = ["bfloat16", "float16", "float32", *(["float64"] if jnp.result_type(float) == jnp.float64 else [])]

    def attempt(dtype):
        params, grads = _cast(s.params, dtype), _cast(s.grads[0], dtype)
        s.expect_avals(params, grads, updates=True, state=True)
        zero_first = jax.tree.map(lambda g: jnp.asarray(np.stack([np.zeros_like(g), g, g])), grads)
        _expect_finite("updates", s.run(s.with_values(s.values), params, zero_first)[2])

    for name in names:
        _works_or_raises(f"{name} params", functools.partial(attempt, name))
    if s.complex:
        try:
            attempt("complex64")
        except Exception as error:
            raise AssertionError(f"with complex64 params, {type(error).__name__}: {str(error)[:500]}") from error


def _cast(tree: Tree, dtype: str) -> Tree:
    # In NumPy, where a cast costs no compilation.
    real = lambda x: np.asarray(x) if dtype == "complex64" else np.real(x)
    return jax.tree.map(lambda x: jnp.asarray(real(x).astype(jnp.dtype(dtype))), tree)


def _float32_moments(s: _Subject) -> None:
    """The state of half-precision params is held in at least float32, unless a `..._dtype` field asks otherwise."""
    if any(name.endswith("dtype") and value is not None for part in s.parts for name, value in _static(part).items()):
        return
    for dtype in ("bfloat16", "float16"):
        try:
            state = jax.eval_shape(s.transform.init, _cast(s.params, dtype))
        except Exception as error:
            if not _is_named(error):
                raise
            continue
        for path, leaf in jax.tree_util.tree_leaves_with_path(state):
            if jnp.issubdtype(leaf.dtype, jnp.inexact) and leaf.dtype.itemsize < 4:
                here = f"state{jax.tree_util.keystr(path)}"
                raise AssertionError(f"with {dtype} params, {here}: found {leaf.dtype}, expected at least float32")


def _edge_trees(s: _Subject) -> None:
    """Params that are an empty tree, one scalar, or leaves without elements work, or a named error is raised."""
    one = jnp.ones((), jnp.float32)
    trees = {
        "an empty tree": {},
        "one scalar": one,
        "a leaf without elements and None": {"empty": jnp.zeros((0, 2), jnp.float32), "none": None},
    }

    def attempt(params):
        state = s.transform.init(params)
        for _ in range(2):
            updates, after = s.transform.update(params, state, params, **s.extra(params, params))
            _expect_avals("updates", updates, params, weak=False)
            _expect_avals("state", after, state)
            _expect_finite("updates", updates)
            state = after

    for name, params in trees.items():
        _works_or_raises(f"{name} as params", functools.partial(attempt, params))


def _repr(s: _Subject) -> None:
    """The repr, unless functions are held, evaluates with the names of gdfx and its own class to an equal transform."""
    if _holds_functions(s) or any(getattr(x, "ndim", 0) for x in jax.tree.leaves(s.transform)):
        return
    text = repr(s.transform)
    names = {**vars(gdfx), **{type(part).__name__: type(part) for part in s.parts}}
    try:
        back = eval(text, names)
    except Exception as error:
        raise AssertionError(f"{text} raised {type(error).__name__}: {error}") from error
    if back != s.transform:
        raise AssertionError(f"{text} gave {back!r}, which is not equal to the transform")


def _holds_functions(s: _Subject) -> bool:
    """Whether there are functions other than those of gdfx."""
    held = [value for part in s.parts for value in _static(part).values() if callable(value)]
    return any(getattr(gdfx, getattr(value, "__name__", ""), None) is not value for value in held)


def _copies(s: _Subject) -> None:
    """`pickle` and `copy.deepcopy` give an equal transform with the same hash; pickle unless functions are held."""
    copies = {
        "copy.deepcopy": copy.deepcopy,
        "copy.copy": copy.copy,
        "the flattened and rebuilt": _rebuilt,
    }
    copies |= {} if _holds_functions(s) else {"pickle": lambda t: pickle.loads(pickle.dumps(t))}
    for name, make in copies.items():
        again = make(s.transform)
        if again != s.transform:
            raise AssertionError(f"{name} gave {again!r}, which is not equal to the transform")
        if hash(again) != hash(s.transform):
            raise AssertionError(f"{name} gave an equal transform with another hash")


def _rebuilt(transform: Any) -> Any:
    leaves, structure = jax.tree.flatten(transform)
    return jax.tree.unflatten(structure, leaves)


def _extra_ignored(s: _Subject) -> None:
    """`update` ignores arguments that it does not know."""
    extra = {**s.extra(s.params, s.grads[0]), "an_unknown_argument": 1}
    s.update_avals(s.grads[0], s.params, extra)


def _needs(s: _Subject) -> None:
    """`update` works with the arguments in `needs` alone, and without one raises a `TypeError` that names it."""
    needs = s.transform.needs
    given = {"params": s.params, **s.extra(s.params, s.grads[0])}
    given = {name: value for name, value in given.items() if name in needs}

    def update(params=None, **extra):
        s.update_avals(s.grads[0], params, extra)

    if not any(isinstance(part, from_functions) for part in s.parts):  # a pair of functions declares nothing
        try:
            update(**given)
        except Exception as error:
            declared = ", ".join(sorted(needs)) or "nothing"
            raise AssertionError(f"it declares {declared}, but {type(error).__name__}: {str(error)[:500]}") from error
    for missing in sorted(needs):
        try:
            update(**{name: value for name, value in given.items() if name != missing})
        except TypeError as error:
            if missing not in str(error):
                raise AssertionError(f"without {missing}, the TypeError does not name it: {error}") from error
        else:
            raise AssertionError(f"it declares {missing}, but update without it raised nothing")


def _named_errors(s: _Subject) -> None:
    """Gradients of another structure or shape than the params raise an error with the path of the leaf."""
    state = jax.eval_shape(s.transform.init, s.params)
    # A link without state has nothing to compare with; the chain that it is in does.
    if not isinstance(s.transform, Optimizer | Chain) and not any(x.ndim for x in jax.tree.leaves(state)):
        return
    grads, extra = s.grads[0], s.extra(s.params, s.grads[0])
    leaves, structure = jax.tree.flatten(grads)
    for i, (path, leaf) in enumerate(jax.tree_util.tree_leaves_with_path(grads)):
        # a shape that would broadcast
        changed = {
            "a leaf of another shape": leaf.reshape(-1)[:1] if leaf.size > 1 else jnp.stack([leaf] * 2),
            "no leaf": None,
        }
        for what, other in changed.items():
            bad = jax.tree.unflatten(structure, [*leaves[:i], other, *leaves[i + 1 :]])
            try:
                s.update_avals(bad, s.params, extra)
            except (ValueError, TypeError) as error:
                if path_str(path) not in str(error):
                    raise AssertionError(
                        f"for grads with {what} at {path_str(path)} the error does not name that path: {error}"
                    ) from error
            else:
                raise AssertionError(f"grads with {what} at {path_str(path)} raised nothing")


INVARIANTS: dict[str, Callable[[_Subject], None]] = {
    "init_avals": _init_avals,
    "update_avals": _update_avals,
    "state_avals": _state_avals,
    "no_aliases": _no_aliases,
    "donation": _donation,
    "eager_is_jit": _eager_is_jit,
    "one_trace": _one_trace,
    "vmap_is_loop": _vmap_is_loop,
    "finite_at_zero": _finite_at_zero,
    "finite_gradients": _finite_gradients,
    "dtypes": _dtypes,
    "float32_moments": _float32_moments,
    "edge_trees": _edge_trees,
    "extra_ignored": _extra_ignored,
    "needs": _needs,
    "named_errors": _named_errors,
    "repr": _repr,
    "copies": _copies,
}
"""What holds for every transform in gdfx, by name, in the order of checking; the docstrings say what each means."""
