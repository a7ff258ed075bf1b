"""The loop around a step: many steps in one compiled call, or one call a step, whichever the backend runs faster."""

import time
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from ..core import Tree

BLOCK = 256
"""The most steps that one call makes."""
SECONDS = 0.25
"""How long a call should take: short enough to watch the progress, long enough for calling to cost nothing."""


def run_loop(
    body: Callable[[Tree, Tree, Tree], tuple[Tree, Tree]],
    halted: Callable[[Tree], jax.Array],
    constants: Tree,
    carry: Tree,
    take: Callable[[int], Tree],
    total: int,
    watch: Callable[[int, Tree, Tree], None],
) -> tuple[Tree, Tree, dict[str, float]]:
    """Makes up to `total` steps `carry, out = body(constants, carry, row)`, until `halted(carry)`.

    `take(n)` gives the rows of the next `n` steps, stacked, in NumPy. `watch(n, outs, carry)` is told of `n` steps
    made. Returns the last carry, what the steps put out, stacked, in NumPy, and the seconds it took to "compile" and to
    "run". The carry is donated. The numbers do not depend on how many steps a call makes.
    """
    block = min(BLOCK, total)
    rows = take(1)
    started = time.perf_counter()
    one_by_one, call = _compile(body, halted, block, constants, carry, rows)
    seconds = {"compile": time.perf_counter() - started, "run": 0.0}

    outs, done, n = [], 0, 1
    while True:
        started = time.perf_counter()
        carry, out, made, over = call(constants, carry, *((rows,) if one_by_one else (_pad(rows, block), n)))
        made, over = int(made), bool(over)
        elapsed = time.perf_counter() - started
        seconds["run"] += elapsed
        # Cut in NumPy: a slice of a JAX array is a program of its own for each length.
        outs.append(jax.tree.map(lambda o, made=made: np.asarray(o)[:made].copy(), out))
        done += made
        watch(made, outs[-1], carry)
        if over or done == total:
            break
        fitting = 1 if one_by_one else max(1, min(8 * n, int(n * SECONDS / elapsed), block))
        n = min(fitting, total - done)
        rows = take(n)
    return carry, jax.tree.map(lambda *parts: np.concatenate(parts), *outs), seconds


def _compile(
    body: Any, halted: Any, block: int, constants: Tree, carry: Tree, rows: Tree
) -> tuple[bool, Callable[..., Any]]:
    """Whether steps are called one by one, and the compiled call."""

    def row(rows, i):
        return jax.tree.map(lambda r: r[i], rows)

    def one(constants, carry, rows):
        carry, out = body(constants, carry, row(rows, 0))
        return carry, jax.tree.map(lambda o: o[None], out), jnp.int32(1), halted(carry)

    def many(constants, carry, rows, n):
        shapes = jax.eval_shape(body, constants, carry, row(rows, 0))[1]

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

    traced = jax.jit(many, donate_argnums=1).trace(constants, carry, _pad(rows, block), 1)
    # XLA runs convolutions about ten times slower inside of a loop than outside on CPU.
    one_by_one = jax.default_backend() == "cpu" and "conv_general_dilated" in str(traced.jaxpr)
    if one_by_one:
        traced = jax.jit(one, donate_argnums=1).trace(constants, carry, rows)
    return one_by_one, traced.lower().compile()


def _pad(rows: Tree, length: int) -> Tree:
    return jax.tree.map(lambda r: np.concatenate([r, np.zeros((length - len(r), *r.shape[1:]), r.dtype)]), rows)
