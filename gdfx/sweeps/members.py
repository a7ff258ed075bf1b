"""The programs of a group: how its members begin, make steps, and are evaluated."""

import threading
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from ..core import Tree, eval_params
from ..training.data import Shuffled, batch_of
from ..training.loop import Program, compile_loop, counted, joined, memory_of, run_loop
from ..training.step import TrainState, step_function
from ..tree import norm
from .plan import Group

SAMPLE = 16
"""Batches on which the loss before training is taken."""
FAST = {
    "xla_backend_optimization_level": 0,
    "xla_llvm_disable_expensive_passes": True,
    "xla_cpu_parallel_codegen_split_count": 1,
    "xla_cpu_use_fusion_emitters": False,
}
"""How XLA compiles fastest, on a CPU in a quarter of the time, what runs once."""
FLOPS = 4e6
"""Operations in a step of one run, above which on a CPU members are faster one after another than batched."""


class Members:
    """The compiled programs of one group, for parts of its members."""

    def __init__(self, group: Group, seeds: Sequence[int], data: Tree, size: int, words: list[int], base: jax.Array):
        self.group, self.seeds, self.data = group, np.asarray(seeds, np.uint32), data
        self.base, self.words, self.size = base, words, size
        self.step = step_function(group.loss_fn)
        self.per_epoch = self._orders()[0].steps_per_epoch if group.batch_size is not None else 1
        self.bytes = sum(leaf.nbytes for leaf in jax.tree.leaves(data))
        self.programs: dict[Any, Any] = {}
        self.locks: dict[Any, threading.Lock] = {}
        self.seconds = {"compile": 0.0, "run": 0.0}

    def _orders(self, seeds: slice = slice(None)) -> list[Shuffled]:
        size = self.group.batch_size or self.size
        return [Shuffled(self.size, size, [*self.words, int(seed)]) for seed in self.seeds[seeds]]

    def _start(self, optimizer: Tree, seeds: jax.Array, data: Tree, rows: Any) -> tuple[Tree, jax.Array | None]:
        def one(optimizer, seed):
            state = TrainState.create(optimizer, self.group.init_fn(jax.random.fold_in(self.base, seed)))
            return {"state": state, "diverged_at": jnp.full((), -1, jnp.int32)}

        def losses(seed, rows):
            params = self.group.init_fn(jax.random.fold_in(self.base, seed))
            return jax.vmap(lambda row: self.group.loss_fn(params, batch_of(data, row)))(rows)

        first = None if rows is None else jax.vmap(losses)(seeds, rows)
        over_seeds = jax.vmap(one, (None, 0))
        if not jax.tree.leaves(optimizer):  # as an optimizer of optax
            return jax.tree.map(lambda x: x[None], over_seeds(optimizer, seeds)), first
        return jax.vmap(over_seeds, (0, None))(optimizer, seeds), first

    def start(self, optimizer: Tree) -> tuple[Tree, np.ndarray | None]:
        """Members with these optimizers before the first step, and losses from before it, of shape (seeds, batches)."""
        rows = None
        if self.group.batch_size is not None:
            rows = np.stack([order.epoch(0)[:SAMPLE] for order in self._orders()])
        arguments = (optimizer, self.seeds, self.data, rows)
        compiled = self._once(("start", _shapes(optimizer)), lambda: _run_once(self._start, arguments))
        carry, first = compiled(*arguments)
        return jax.tree.map(np.asarray, carry), None if first is None else np.asarray(first)

    def advance(
        self,
        how: str,
        optimizer: Tree,
        carry: Tree,
        seeds: slice,
        begin: int,
        end: int,
        watch: Callable[[int, Tree], bool],
        device: Any,
    ) -> tuple[Tree, Tree]:
        """Makes the steps from `begin` to `end`; the next carry, and what the steps put out, of shape (steps, ...).

        It ends before where all members have diverged, or where `watch`, told of each call, returns True.
        """
        orders = self._orders(seeds) if self.group.batch_size is not None else []
        for order in orders:
            order.skip(begin)

        def rows(n):
            return np.stack([order.take(n) for order in orders], axis=1) if orders else None

        take, parts = counted(end, rows, begin), []
        first = take(1)
        constants, carry = self._placed(optimizer, device), _put(carry, device)
        program = self._program(how, constants, carry, first, device)

        def told(made, outs, carry):
            parts.append(outs)
            return (constants, carry, True) if watch(made, outs) else None

        ended = run_loop(program, constants, carry, first, take, told)
        return jax.tree.map(np.asarray, ended.carry), joined(parts)

    def memory(self, how: str, optimizer: Tree, carry: Tree, device: Any) -> int:
        """The bytes that a thread takes which trains these members."""
        seeds, size = carry["diverged_at"].shape[1], self.group.batch_size
        rows = None if size is None else np.zeros((1, seeds, size), np.int32)
        first = np.zeros(1, np.int32), rows
        return self._program(how, self._placed(optimizer, device), carry, first, device).memory

    def _placed(self, optimizer: Tree, device: Any) -> tuple[Tree, Tree]:
        data = self._once(("data", device), lambda: jax.device_put(self.data, device))
        return _put(optimizer, device), data

    def _once(self, name: Any, make: Callable[[], Any]) -> Any:
        """What `make` gives, made once for all threads; others are not kept waiting by it."""
        with self.locks.setdefault(name, threading.Lock()):
            if name not in self.programs:
                self.programs[name] = make()
            return self.programs[name]

    def _program(self, how: str, constants: Tree, carry: Tree, rows: Tree, device: Any) -> Program:
        def make() -> Program:
            body = self._batched if how == "vmap" else self._single
            executor = "loop" if how == "loop" else "scan"
            halted = lambda held: jnp.all(held["diverged_at"] >= 0)
            program = compile_loop(body, halted, constants, _put(carry, device), rows, executor=executor)
            self.seconds["compile"] += program.seconds
            return program

        return self._once((how, device, _shapes(carry)), make)

    def _member(self, optimizer: Tree, member: Tree, batch: Tree, made: jax.Array) -> tuple[Tree, Tree]:
        state, metrics = self.step(optimizer, member["state"], batch)
        alive = member["diverged_at"] < 0
        good = alive & jnp.isfinite(metrics["loss"]) & jnp.isfinite(norm(state.params))
        state = jax.tree.map(lambda new, old: jnp.where(good, new, old), state, member["state"])
        diverged_at = jnp.where(alive & ~good, made, member["diverged_at"])
        # The norm of the gradients would have to be computed for nothing else.
        told = {name: x for name, x in metrics.items() if name != "grad_norm"}
        return {"state": state, "diverged_at": diverged_at}, told | {"loss": jnp.where(alive, metrics["loss"], jnp.nan)}

    def _batched(self, constants: Tree, held: Tree, row: Tree) -> tuple[Tree, Tree]:
        (optimizer, data), (made, row) = constants, row
        batch = batch_of(data, row)
        over_seeds = jax.vmap(self._member, (None, 0, None if row is None else 0, None))
        return jax.vmap(over_seeds, (0, 0, None, None))(optimizer, held, batch, made)

    def _single(self, constants: Tree, held: Tree, row: Tree) -> tuple[Tree, Tree]:
        (optimizer, data), (made, row) = constants, row
        one = jax.tree.map(lambda x: x[0, 0], held)
        batch = batch_of(data, None if row is None else row[0])
        new = self._member(jax.tree.map(lambda x: x[0], optimizer), one, batch, made)
        return jax.tree.map(lambda x: x[None, None], new)

    def evaluation_memory(self, optimizer: Tree, carry: Tree, device: Any) -> int:
        """The bytes that a thread takes which evaluates these members, and what all have in common."""
        return self.bytes + memory_of(self._evaluation(optimizer, carry, device))

    def evaluate(self, optimizer: Tree, carry: Tree, device: Any) -> dict[str, np.ndarray]:
        """The scores of these members, each of shape (members, seeds)."""
        found = self._evaluation(optimizer, carry, device)(_put(optimizer, device), _put(carry, device))
        return jax.tree.map(np.asarray, found)

    def _evaluation(self, optimizer: Tree, carry: Tree, device: Any) -> Any:
        def make() -> Any:
            started = time.perf_counter()
            compiled = jax.jit(self._evaluate).trace(_put(optimizer, device), _put(carry, device)).lower().compile()
            self.seconds["compile"] += time.perf_counter() - started
            return compiled

        return self._once(("evaluate", device, _shapes(carry)), make)

    def _evaluate(self, optimizer: Tree, carry: Tree) -> dict[str, jax.Array]:
        evaluate = self.group.evaluate
        assert evaluate is not None

        def one(optimizer, held):
            state = held["state"]
            return evaluate(eval_params(optimizer, state.opt_state, state.params))

        over_seeds = jax.vmap(one, (None, 0))
        return jax.vmap(over_seeds)(optimizer, carry)

    def choose(self) -> tuple[str, str]:
        """The executor for this group on this backend, and why."""
        if (backend := jax.default_backend()) != "cpu":
            return "vmap", f"all members at once, on {backend}"
        optimizer = jax.tree.map(lambda x: x[0], self.group.optimizer)
        # The optimizer as an argument: numbers in it would be checked, and those of a batch were not.
        state = jax.eval_shape(lambda o: TrainState.create(o, self.group.init_fn(self.base)), optimizer)
        rows = None if self.group.batch_size is None else jax.ShapeDtypeStruct((self.group.batch_size,), jnp.int32)
        traced = jax.jit(lambda o, s, d, r: self.step(o, s, batch_of(d, r))).trace(optimizer, state, self.data, rows)
        if "conv_general_dilated" in str(traced.jaxpr):
            return "loop", "runs one by one, as XLA on a CPU is slow at convolutions in loops and batches of models"
        flops = (traced.lower().cost_analysis() or {}).get("flops", 0.0)
        if flops > FLOPS:
            return "map", f"members one after another, as a step has more than {FLOPS:.2g} operations"
        return "vmap", f"members batched, as a step has at most {FLOPS:.2g} operations"


def _put(tree: Tree, device: Any) -> Tree:
    """Copies on one device, which may be donated, and which a program for that device takes."""
    return jax.device_put(tree, device, may_alias=False)


def _shapes(tree: Tree) -> str:
    return str([(leaf.shape, leaf.dtype) for leaf in jax.tree.leaves(tree)])


def _run_once(fn: Callable[..., Any], arguments: tuple[Any, ...]) -> Any:
    """Compiles `fn`, which is little work, for these arguments, fast rather than well."""
    lowered = jax.jit(fn).trace(*arguments).lower()
    if jax.default_backend() == "cpu":
        with suppress(jax.errors.JaxRuntimeError):  # an XLA without these options
            return lowered.compile(compiler_options=FAST)
    return lowered.compile()
