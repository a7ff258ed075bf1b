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
SECONDS = 1.0
"""How long a call should take: short enough to watch the progress, long enough for it to cost nothing that each call is
given its memory anew."""
BYTES = 2**26
"""The most that the rows of one call, and what its steps put out, may take."""


class Program(NamedTuple):
    """A compiled loop; see `compile_loop`."""

    executor: str  # "scan" or "loop"
    block: int  # the most steps that one call makes
    call: Callable[..., Any]
    seconds: float  # that compiling took
    memory: int  # bytes that a call needs; 0 where the backend does not tell


class Loop(NamedTuple):
    """What a loop ended with."""

    carry: Tree
    seconds: dict[str, float]  # to "compile" and to "run"
    executor: str  # "scan" or "loop"


def run_loop(
    program: Program,
    constants: Tree,
    carry: Tree,
    rows: Tree,
    take: Callable[[int], Tree | None],
    watch: Callable[[int, Tree, Tree], tuple[Tree, Tree, bool] | None],
) -> Loop:
    """Makes the steps of `program`, until it has halted or there are no more rows.

    `rows` is the row of the first step, stacked, in NumPy, and `take(n)` gives those of up to the next `n` steps; None
    for no more. It is called while the device makes the steps before. `watch(n, outs, carry)` is told of `n` steps made
    and what they put out, stacked, in NumPy; it may return other constants and another carry to go on with, and whether
    to stop. The carry is donated. The numbers do not depend on how many steps a call makes.
    """
    seconds, following, n, over = 0.0, rows, 1, False
    while following is not None and not over:
        started = time.perf_counter()
        length = len(jax.tree.leaves(following)[0])
        carry, collect = program.call(constants, carry, following, length)
        following = take(n)  # while the device is at work
        made, out, over = collect()
        elapsed = time.perf_counter() - started
        seconds += elapsed
        told = watch(made, out, carry)
        if told is not None:
            constants, carry, over = told
        n = max(1, min(8 * length, int(length * SECONDS / elapsed), program.block))
    return Loop(carry, {"compile": program.seconds, "run": seconds}, program.executor)


def counted(total: int, rows: Callable[[int], Tree], made: int = 0) -> Callable[[int], tuple[np.ndarray, Tree] | None]:
    """For `take`: the numbers of the next steps, from `made`, and `rows(n)`, up to `total` steps."""

    def take(n):
        nonlocal made
        n = min(n, total - made)
        made += n
        return (np.arange(made - n, made, dtype=np.int32), rows(n)) if n else None

    return take


def joined(parts: list[Tree]) -> Tree:
    """What steps put out, of all parts together."""
    return jax.tree.map(lambda *arrays: np.concatenate(arrays), *parts)


def compile_loop(
    body: Callable[[Tree, Tree, Tree], tuple[Tree, Tree]],
    halted: Callable[[Tree], jax.Array],
    constants: Tree,
    carry: Tree,
    rows: Tree,
    *,
    executor: Executor = "auto",
) -> Program:
    """Compiles steps `carry, out = body(constants, carry, row)`, which are made until `halted(carry)`.

    The call gives the next carry, and a function that waits for the steps: how many were made, what they put out,
    whether they have halted.
    """
    started = time.perf_counter()

    def row(rows, i):
        return jax.tree.map(lambda r: r[i], rows)

    def one(constants, carry, rows):
        # The next step is on its way before it is known that the last has halted: it then changes nothing.
        new, out = body(constants, carry, row(rows, 0))
        over = halted(carry)
        return jax.tree.map(lambda old, new: jnp.where(over, old, new), carry, new), out, 1 - over.astype(jnp.int32)

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

    # Rows that lie on devices stay there as they are, whatever their sharding; each is a call of its own.
    on_device = any(isinstance(leaf, jax.Array) for leaf in jax.tree.leaves(rows))
    shapes = jax.eval_shape(body, constants, carry, row(rows, 0))[1]
    sizes = [math.prod(leaf.shape) * leaf.dtype.itemsize for leaf in jax.tree.leaves((rows, shapes))]
    block = int(np.clip(BYTES // max(sum(sizes), 1), 1, BLOCK))
    if executor == "scan" or (executor == "auto" and not on_device):
        traced = jax.jit(many, donate_argnums=1).trace(constants, carry, _pad(rows, block), 1)
        # XLA runs convolutions about ten times slower inside of a loop than outside on CPU.
        slow = jax.default_backend() == "cpu" and "conv_general_dilated" in str(traced.jaxpr)
        if executor == "scan" or not slow:
            compiled = traced.lower().compile()

            def scan(constants, carry, rows, n):
                carry, outs, made, over = compiled(constants, carry, _pad(rows, block), n)
                # Cut in NumPy: a slice of a JAX array is a program of its own for each length.
                return carry, lambda: (int(made), _cut(outs, int(made)), bool(over))

            return Program("scan", block, scan, time.perf_counter() - started, memory_of(compiled))
    step = jax.jit(one, donate_argnums=1).trace(constants, carry, rows).lower().compile()

    def loop(constants, carry, rows, n):
        outs, done = [], []
        for i in range(n):
            carry, out, made = step(
                constants, carry, jax.tree.map(lambda r, i=i: r[i : i + 1], rows) if n > 1 else rows
            )
            outs.append(out)
            done.append(made)
        over = halted(carry)

        def collect():
            made = sum(map(int, done))
            return made, jax.tree.map(lambda *os: np.stack([np.asarray(o) for o in os]), *outs[:made]), bool(over)

        return carry, collect

    return Program("loop", 1 if on_device else block, loop, time.perf_counter() - started, memory_of(step))


def memory_of(compiled: Any) -> int:
    """The bytes that a call takes, its arguments and results included."""
    told = compiled.memory_analysis()
    names = ("argument_size_in_bytes", "output_size_in_bytes", "temp_size_in_bytes")
    aliased = getattr(told, "alias_size_in_bytes", 0) or 0
    return sum(getattr(told, name, 0) or 0 for name in names) - aliased


def _cut(outs: Tree, length: int) -> Tree:
    return jax.tree.map(lambda o: np.asarray(o)[:length].copy(), outs)


def _pad(rows: Tree, length: int) -> Tree:
    def padded(r):
        r = np.asarray(r)
        return np.concatenate([r, np.zeros((length - len(r), *r.shape[1:]), r.dtype)])

    return jax.tree.map(padded, rows)
