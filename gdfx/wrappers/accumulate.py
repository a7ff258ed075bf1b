"""Gradient accumulation: one update for several batches."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from ..core import Tree, increment
from ..pytrees import Interval, pytree, static
from ..transforms.basic import whole
from ..tree import cast_like, leafwise, vdot, zeros_like
from .wrapper import Wrapper


@pytree
class AccumulateState:
    """The state of `accumulate`."""

    count: jax.Array  # int32 scalar: the batches seen so far
    batches: jax.Array  # int32 scalar: how many are in the sums
    made: jax.Array  # int32 scalar: the updates made so far
    gradients: Tree  # their sum, shaped like params, in at least float32
    value: jax.Array  # the sum of the losses
    info: Tree  # what `should_skip` told of the last batch; None without it
    inner: Tree  # the state of the transform


@pytree
class accumulate(Wrapper):
    """Updates with the mean gradient of every `every` batches, and not in between: the effect is a larger batch.

    The mean is taken in at least float32, and so is that of the losses, if `value=` is given. Of the other extra
    arguments the transform gets those of the last batch. Its schedules count its own updates. A gradient that is not
    finite spoils the mean that it is part of, and no other: to leave it out put `guard` around. Except under `vmap` the
    transform costs nothing in between.

    Args:
        every: the number of batches; a schedule goes by the batches seen.
        mean: False for the sums of the gradients and of the losses.
        should_skip: a function `(updates, made, params) -> (skip, info)` of the gradients of a batch, the number of
            updates made and the params. Where `skip`, a scalar bool, is true, the batch is left out, and not counted
            among the `every`. `info`, of arrays, is kept in the state. See `skip_not_finite` and `skip_large_updates`.
        accumulator_dtype: the dtype of the sums of the gradients; by default that of the params, at least float32.

    See `gdfx.make_step(..., accumulate=...)` for parts of one batch within one step.
    """

    every: Interval
    mean: bool = static(default=True, kw_only=True)
    should_skip: Callable[..., Any] | None = static(default=None, kw_only=True)
    accumulator_dtype: Any = static(default=None, kw_only=True)

    def init(self, params):
        count, batches, made = (jnp.zeros((), jnp.int32) for _ in range(3))
        value = jnp.zeros((), jnp.result_type(float))
        sums = zeros_like(params, self.accumulator_dtype)
        _, info = self._skip(jax.tree.map(jnp.zeros_like, params), made, params)
        info = jax.tree.map(lambda x: jnp.array(x, jnp.result_type(x), copy=True), info)
        return AccumulateState(count, batches, made, sums, value, info, self.transform.init(params))

    def update(self, updates, state, params=None, **extra):
        now = self.at(state.count)
        skip, info = self._skip(updates, state.made, params)
        n = jnp.where(skip, state.batches, increment(state.batches))
        _, sums = leafwise(_add, (skip,), updates, state.gradients)
        given, value = extra.get("value"), state.value
        if given is not None:
            value = jnp.where(skip, value, value + jnp.asarray(given).astype(value.dtype))
        is_due = ~skip & (n >= whole(now.every))

        def emit():
            terms = n if self.mean else jnp.ones_like(n)
            total = cast_like(leafwise(_over, (terms,), sums), updates)
            joint = {**extra} if given is None else {**extra, "value": value / terms.astype(value.dtype)}
            new, inner = self.transform.update(total, state.inner, params, **joint)
            cleared = jax.tree.map(jnp.zeros_like, (sums, value, n))
            return cast_like(new, updates), inner, increment(state.made), *cleared

        def wait():
            return jax.tree.map(jnp.zeros_like, updates), state.inner, state.made, sums, value, n

        new, inner, made, sums, value, n = jax.lax.cond(is_due, emit, wait)
        info = jax.tree.map(lambda x, old: jnp.asarray(x, old.dtype), info, state.info)
        return new, AccumulateState(increment(state.count), n, made, sums, value, info, inner)

    def _skip(self, updates: Tree, made: jax.Array, params: Tree | None) -> tuple[jax.Array, Tree]:
        if self.should_skip is None:
            return jnp.zeros((), bool), None
        found = self.should_skip(updates, made, params)
        if not isinstance(found, tuple) or len(found) != 2:
            raise TypeError(f"accumulate: should_skip returned a {type(found).__name__}, expected a pair (skip, info)")
        skip, info = jnp.asarray(found[0]), found[1]
        if skip.shape or skip.dtype != bool:
            raise TypeError(
                f"accumulate: should_skip returned {skip.dtype}{list(skip.shape)} for whether to skip, expected a "
                "scalar bool, such as norm(updates) > 10"
            )
        return skip, info


def _add(skip, g, total):
    return g, jnp.where(skip, total, total + g)


def _over(n, total):
    return total / n


def skip_not_finite(updates: Tree, gradient_step: Any, params: Tree | None) -> tuple[jax.Array, dict[str, jax.Array]]:
    """Whether `updates` have a NaN or an infinity, for `should_skip` of `accumulate`, and how many.

    The second of the pair is a dict of the scalars `should_skip` and `num_not_finite`. The other arguments are not
    used.
    """
    counts = [jnp.sum(~jnp.isfinite(u)).astype(jnp.int32) for u in jax.tree.leaves(updates)]
    bad = jnp.sum(jnp.stack(counts)).astype(jnp.int32) if counts else jnp.zeros((), jnp.int32)
    return bad > 0, {"should_skip": bad > 0, "num_not_finite": bad}


def skip_large_updates(
    updates: Tree, gradient_step: Any, params: Tree | None, max_squared_norm: Any
) -> tuple[jax.Array, dict[str, jax.Array]]:
    """Whether the squared joint norm of `updates` is not below `max_squared_norm`, or NaN; for `accumulate`.

    As `should_skip` it is given by `functools.partial(skip_large_updates, max_squared_norm=...)`. The second of the
    pair is a dict of the scalars `should_skip` and `norm_squared`, in float32 or wider. The other arguments are not
    used.
    """
    squared = vdot(updates, updates)
    skip = ~(squared < jnp.asarray(max_squared_norm).astype(squared.dtype))
    return skip, {"should_skip": skip, "norm_squared": squared}
