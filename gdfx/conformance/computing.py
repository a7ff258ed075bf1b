"""Invariants of what a transform computes: avals, buffers, programs, precision, derivatives.

Each is a function that raises where its docstring is not true.
"""

import contextlib
import functools
import warnings
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from ..core import Tree
from ..tree import abs2
from .compare import close, expect_avals, expect_finite, is_named, retrace_cause, works_or_raises
from .subject import Subject, static_fields


def _blame(s: Subject, with_number: Callable[[int], Any], error: Exception) -> AssertionError:
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


def init_avals(s: Subject) -> None:
    """`jax.eval_shape(init, params)` has the avals of the state that `init` makes."""
    expect_avals("state", s.transform.init(s.params), jax.eval_shape(s.transform.init, s.params))


def update_avals(s: Subject) -> None:
    """Updates come back with the structure, shapes and dtypes that they went in with."""
    s.expect_avals(s.params, s.grads[0], updates=True)
    expect_avals("updates", s.eager[0][2], s.grads[0], weak=False)


def state_avals(s: Subject) -> None:
    """The state has the same structure, shapes, dtypes and weak types before and after `update`: safe in `lax.scan`."""
    s.expect_avals(s.params, s.grads[0], state=True)
    expect_avals("state", s.eager[0][1], s.transform.init(s.params))
    jax.eval_shape(functools.partial(s.steps, s.transform), s.params, s.stacked)


def no_aliases(s: Subject) -> None:
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


def donation(s: Subject) -> None:
    """Params and state can be donated at every step, the first included."""
    params = jax.tree.map(jnp.copy, s.params)
    state = s.transform.init(params)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Donation is not implemented")  # on some platforms
        for grads in s.grads:
            params, state, _ = s.donating_step(grads, state, params)
    jax.block_until_ready((params, state))


def eager_is_jit(s: Subject) -> None:
    """`update` computes the same with and without `jit`."""
    params, state = (
        jax.tree.map(jnp.copy, s.params),
        jax.tree.map(jnp.copy, s.transform.init(s.params)),
    )
    for i, (grads, eager) in enumerate(zip(s.grads, s.eager, strict=True), 1):
        after = s.donating_step(grads, state, params)
        for name, found, expected in zip(("params", "state", "updates"), after, eager, strict=True):
            close(f"after {i} steps under jit, {name}", jax.device_get(found), expected, s.rtol)
        params, state, _ = after


def one_trace(s: Subject) -> None:
    """With the transform as an argument of `jit`, one trace serves all values of its numbers, and computes the same."""
    for part in s.parts:
        for name, value in static_fields(part).items():
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
            f"{', '.join(h.path for h in s.hyperparameters)}: {retrace_cause(s.traces[before + 1], s.traces[before])}"
        )
    # A traced number has the precision of its dtype; a Python number in the transform's own arithmetic has more.
    expected = (
        *s.eager[-1][:2],
        jax.tree.map(lambda *x: jnp.stack(x), *(updates for *_, updates in s.eager)),
    )
    for name, found, eager in zip(("params", "state", "updates"), outcomes[0], expected, strict=True):
        close(f"with the numbers traced, {name}", found, eager, max(s.rtol, 1e-4))


def vmap_is_loop(s: Subject) -> None:
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
            close(f"under vmap, for {label}, {name}", found, jax.tree.map(_data, expected), s.rtol)


def _data(x: Any) -> Any:
    return jax.random.key_data(x) if jnp.issubdtype(x.dtype, jax.dtypes.prng_key) else x


def finite_at_zero(s: Subject) -> None:
    """Updates are finite where gradients and params are 0."""
    zeros = functools.partial(jax.tree.map, lambda x: jnp.asarray(np.zeros_like(x)))
    params, _, updates = s.run(s.with_values(s.values), zeros(s.params), zeros(s.stacked))
    expect_finite("updates", updates)
    expect_finite("params", params)


def finite_gradients(s: Subject) -> None:
    """`jax.grad` through ten steps, by the numbers of the transform and by params, is finite, also at gradients 0."""
    leaves, structure = jax.tree.flatten(s.params)
    # The gradient is 0 for all of the first leaf that has elements, and for the first element of each other.
    untouched = next((i for i, x in enumerate(leaves) if x.size), 0) if len(leaves) > 1 else -1
    masks = [(np.arange(x.size) > 0).reshape(x.shape) & (i != untouched) for i, x in enumerate(leaves)]
    masks = jax.tree.unflatten(structure, masks)

    # No param is likely to be there: where a gradient with a slope is 0, the derivative of Adam's step is 1 / eps.
    target = 1.2345

    def loss(params):
        terms = jax.tree.map(lambda m, p: jnp.sum(jnp.where(m, abs2(p - target), 0)).astype(float), masks, params)
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
        expect_finite(f"the derivative by {h.path}", value)
    expect_finite("the derivative by params", by_params)


def dtypes(s: Subject) -> None:
    """All the above on avals and finite numbers is true for params of each float dtype, or a named error is raised."""
    names = ["bfloat16", "float16", "float32", *(["float64"] if jnp.result_type(float) == jnp.float64 else [])]
    transform, runs = s.with_values(s.values), {}

    def attempt(dtype):
        params, grads = _cast(s.params, dtype), _cast(s.grads[0], dtype)
        s.expect_avals(params, grads, updates=True, state=True)
        zero_first = jax.tree.map(lambda g: jnp.asarray(np.stack([np.zeros_like(g), g, g])), grads)
        jax.eval_shape(s.run, transform, params, zero_first)
        runs[dtype] = params, zero_first

    for name in names:
        works_or_raises(f"{name} params", functools.partial(attempt, name))
    if s.complex:
        try:
            attempt("complex64")
        except Exception as error:
            raise AssertionError(f"with complex64 params, {type(error).__name__}: {str(error)[:500]}") from error
    # One program compiles faster than one for each dtype; other invariants run the one for float32.
    known = {name: runs.pop(name) for name in ("float32",) if name in runs}
    updates = {name: s.run(transform, *run)[2] for name, run in known.items()}
    updates |= jax.jit(lambda transform, runs: {n: s.run(transform, *run)[2] for n, run in runs.items()})(
        transform, runs
    )
    for name, found in updates.items():
        expect_finite(f"with {name} params, updates", found)


def _cast(tree: Tree, dtype: str) -> Tree:
    # In NumPy, where a cast costs no compilation.
    real = lambda x: np.asarray(x) if dtype == "complex64" else np.real(x)
    return jax.tree.map(lambda x: jnp.asarray(real(x).astype(jnp.dtype(dtype))), tree)


def float32_moments(s: Subject) -> None:
    """The state of half-precision params is held in at least float32, unless a `..._dtype` field asks otherwise."""
    if any(
        name.endswith("dtype") and value is not None for part in s.parts for name, value in static_fields(part).items()
    ):
        return
    for dtype in ("bfloat16", "float16"):
        try:
            state = jax.eval_shape(s.transform.init, _cast(s.params, dtype))
        except Exception as error:
            if not is_named(error):
                raise
            continue
        for path, leaf in jax.tree_util.tree_leaves_with_path(state):
            if jnp.issubdtype(leaf.dtype, jnp.inexact) and leaf.dtype.itemsize < 4:
                here = f"state{jax.tree_util.keystr(path)}"
                raise AssertionError(f"with {dtype} params, {here}: found {leaf.dtype}, expected at least float32")


def edge_trees(s: Subject) -> None:
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
            expect_avals("updates", updates, params, weak=False)
            expect_avals("state", after, state)
            expect_finite("updates", updates)
            state = after

    for name, params in trees.items():
        works_or_raises(f"{name} as params", functools.partial(attempt, params))
