"""The loop around a step: many steps in one compiled call, or one call a step, whichever the backend runs faster."""

import math
import time
from collections.abc import Callable
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from ..core import Tree

Executor = Literal["auto", "scan", "loop"]

BLOCK = 2048
"""The most steps that one call makes."""
SECONDS = 0.25
"""How long a call should take: short enough to watch the progress, long enough for calling to cost nothing."""
BYTES = 2**26
"""The most that the rows of one call, and what its steps put out, may take."""


class Loop(NamedTuple):
    """What a loop ended with."""

    carry: Tree
    seconds: dict[str, float]  # to "compile" and to "run"
    executor: str  # "scan" or "loop"


def run_loop(
    body: Callable[[Tree, Tree, Tree], tuple[Tree, Tree]],
    halted: Callable[[Tree], jax.Array],
    constants: Tree,
    carry: Tree,
    rows: Tree,
    take: Callable[[int], Tree | None],
    watch: Callable[[int, Tree, Tree], tuple[Tree, Tree, bool] | None],
    *,
    executor: Executor = "auto",
) -> Loop:
    """Makes steps `carry, out = body(constants, carry, row)`, until `halted(carry)` or there are no more rows.

    `rows` is the row of the first step, stacked, in NumPy, and `take(n)` gives those of up to the next `n` steps; None
    for no more. It is called while the device makes the steps before. `watch(n, outs, carry)` is told of `n` steps made
    and what they put out, stacked, in NumPy; it may return other constants and another carry to go on with, and whether
    to stop. The carry is donated. The numbers do not depend on how many steps a call makes.
    """
    started = time.perf_counter()
    one_by_one, block, call = _compile(body, halted, constants, carry, rows, executor)
    seconds = {"compile": time.perf_counter() - started, "run": 0.0}

    following, n, over = rows, 1, False
    while following is not None and not over:
        started = time.perf_counter()
        rows, length = following, len(jax.tree.leaves(following)[0])
        carry, out, made, over = call(constants, carry, *((rows,) if one_by_one else (_pad(rows, block), length)))
        following = take(n)  # while the device is at work
        made, over = int(made), bool(over)
        elapsed = time.perf_counter() - started
        seconds["run"] += elapsed
        # Cut in NumPy: a slice of a JAX array is a program of its own for each length.
        told = watch(made, jax.tree.map(lambda o, made=made: np.asarray(o)[:made].copy(), out), carry)
        if told is not None:
            constants, carry, over = told
        if not one_by_one:
            n = max(1, min(8 * length, int(length * SECONDS / elapsed), block))
    return Loop(carry, seconds, "loop" if one_by_one else "scan")


def counted(total: int, rows: Callable[[int], Tree]) -> Callable[[int], tuple[np.ndarray, Tree] | None]:
    """For `take`: the numbers of the next steps, from 0, and `rows(n)`, up to `total` steps."""
    made = 0

    def take(n):
        nonlocal made
        n = min(n, total - made)
        made += n
        return (np.arange(made - n, made, dtype=np.int32), rows(n)) if n else None

    return take


def joined(parts: list[Tree]) -> Tree:
    """What steps put out, of all parts together."""
    return jax.tree.map(lambda *arrays: np.concatenate(arrays), *parts)


def _compile(
    body: Any, halted: Any, constants: Tree, carry: Tree, rows: Tree, executor: Executor
) -> tuple[bool, int, Callable[..., Any]]:
    """Whether steps are called one by one, how many one call makes at most, and the compiled call."""

    def row(rows, i):
        return jax.tree.map(lambda r: r[i], rows)

    def one(constants, carry, rows):
        carry, out = body(constants, carry, row(rows, 0))
        return carry, jax.tree.map(lambda o: o[None], out), jnp.int32(1), halted(carry)

    def many(constants, carry, rows, n):
        def step(held):
            i, carry, outs = held
            carry, out = body(constants, carry, row(rows, i))
            outs = jax.tree.map(lambda all, o: lax.dynamic_update_index_in_dim(all, o, i, 0), outs, out)
            return i + 1, carry, outs

        start = jax.tree.map(lambda s: jnp.zeros((block, *s.shape), s.dtype), shapes)
        made, carry, outs = lax.while_loop(
            lambda held: (held[0] < n) & ~halted(held[1]), step, (jnp.int32(0), carry, start)
        )
        return carry, outs, made, halted(carry)

    # Rows that lie on devices stay there as they are, whatever their sharding.
    on_device = any(isinstance(leaf, jax.Array) for leaf in jax.tree.leaves(rows))
    if executor == "scan" or (executor == "auto" and not on_device):
        shapes = jax.eval_shape(body, constants, carry, jax.tree.map(lambda r: r[0], rows))[1]
        sizes = [math.prod(leaf.shape) * leaf.dtype.itemsize for leaf in jax.tree.leaves((rows, shapes))]
        block = int(np.clip(BYTES // max(sum(sizes), 1), 1, BLOCK))
        traced = jax.jit(many, donate_argnums=1).trace(constants, carry, _pad(rows, block), 1)
        # XLA runs convolutions about ten times slower inside of a loop than outside on CPU.
        slow = jax.default_backend() == "cpu" and "conv_general_dilated" in str(traced.jaxpr)
        if executor == "scan" or not slow:
            return False, block, traced.lower().compile()
    return True, 1, jax.jit(one, donate_argnums=1).trace(constants, carry, rows).lower().compile()


def _pad(rows: Tree, length: int) -> Tree:
    def padded(r):
        r = np.asarray(r)
        return np.concatenate([r, np.zeros((length - len(r), *r.shape[1:]), r.dtype)])

    return jax.tree.map(padded, rows)
