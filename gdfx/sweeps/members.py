"""The programs of a group: how its members begin, make steps, and are evaluated."""

import threading
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from ..core import Tree, eval_params
from ..training.data import Shuffled, batch_of
from ..training.loop import Program, compile_loop, counted, joined, run_loop
from ..training.step import TrainState, step_function
from ..tree import norm
from .plan import Group

SAMPLE = 16
"""Batches on which the loss before training is taken."""
FLOPS = 4e6
"""Operations in a step of one run, above which on a CPU members are faster one after another than batched."""


class Members:
    """The compiled programs of one group, for parts of its members."""

    def __init__(self, group: Group, seeds: Sequence[int], data: Tree, size: int, words: list[int], base: jax.Array):
        self.group, self.seeds, self.data = group, np.asarray(seeds, np.uint32), data
        self.base, self.words, self.size = base, words, size
        self.step = step_function(group.loss_fn)
        self.per_epoch = self._orders()[0].steps_per_epoch if group.batch_size is not None else 1
        self.programs: dict[Any, Program] = {}
        self.compiling = threading.Lock()
        self.seconds = {"compile": 0.0, "run": 0.0}
        self.evaluated = jax.jit(self._evaluate) if group.evaluate else None
        self.started = jax.jit(self._start)

    def _orders(self, seeds: slice = slice(None)) -> list[Shuffled]:
        return [Shuffled(self.size, self.group.batch_size, [*self.words, int(seed)]) for seed in self.seeds[seeds]]

    def _start(self, optimizer: Tree, seeds: jax.Array, data: Tree, rows: Any) -> tuple[Tree, jax.Array | None]:
        def one(optimizer, seed):
            state = TrainState.create(optimizer, self.group.init_fn(jax.random.fold_in(self.base, seed)))
            return {"state": state, "diverged_at": jnp.full((), -1, jnp.int32)}

        def losses(seed, rows):
            params = self.group.init_fn(jax.random.fold_in(self.base, seed))
            return jax.vmap(lambda row: self.group.loss_fn(params, batch_of(data, row)))(rows)

        first = None if rows is None else jax.vmap(losses)(seeds, rows)
        members = len(jax.tree.leaves(optimizer)[0])
        return jax.vmap(jax.vmap(one, (None, 0)), (0, None), axis_size=members)(optimizer, seeds), first

    def start(self, optimizer: Tree) -> tuple[Tree, np.ndarray | None]:
        """The members with these optimizers before the first step, and losses from before it, of shape (seeds, batches)."""
        rows = None
        if self.group.batch_size is not None:
            rows = np.stack([order.epoch(0)[:SAMPLE] for order in self._orders()])
        carry, first = self.started(optimizer, self.seeds, self.data, rows)
        return jax.tree.map(np.asarray, carry), None if first is None else np.asarray(first)

    def advance(
        self,
        how: str,
        optimizer: Tree,
        carry: Tree,
        seeds: slice,
        begin: int,
        end: int,
        watch: Callable[[int, Tree], None],
    ) -> tuple[Tree, Tree]:
        """Makes the steps from `begin` to `end`; the next carry, and what the steps put out, of shape (steps, ...)."""
        orders = self._orders(seeds) if self.group.batch_size is not None else []
        for order in orders:
            order.skip(begin)

        def rows(n):
            return np.stack([order.take(n) for order in orders], axis=1) if orders else None

        take, parts = counted(end, rows, begin), []
        first = take(1)
        constants = (jax.tree.map(jnp.asarray, optimizer), self.data)
        carry = jax.tree.map(jnp.array, carry)
        program = self.program(how, constants, carry, first)

        def told(made, outs, carry):
            parts.append(outs)
            watch(made, outs)

        ended = run_loop(program, constants, carry, first, take, told)
        self.seconds["run"] += ended.seconds["run"]
        return jax.tree.map(np.asarray, ended.carry), joined(parts)

    def program(self, how: str, constants: Tree, carry: Tree, rows: Tree) -> Program:
        shapes = jax.tree.map(lambda x: (x.shape, x.dtype), carry)
        name = how, str(shapes)
        with self.compiling:
            if name not in self.programs:
                body = {"vmap": self._batched, "map": self._one_by_one, "loop": self._single}[how]
                executor = "loop" if how == "loop" else "scan"
                halted = lambda held: jnp.all(held["diverged_at"] >= 0)
                self.programs[name] = compile_loop(body, halted, constants, carry, rows, executor=executor)
                self.seconds["compile"] += self.programs[name].seconds
        return self.programs[name]

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

    def _one_by_one(self, constants: Tree, held: Tree, row: Tree) -> tuple[Tree, Tree]:
        (optimizer, data), (made, row) = constants, row

        def member(pair):
            optimizer, held = pair

            def run(pair):
                held, row = pair
                return self._member(optimizer, held, batch_of(data, row), made)

            return jax.lax.map(run, (held, row))

        return jax.lax.map(member, (optimizer, held))

    def _single(self, constants: Tree, held: Tree, row: Tree) -> tuple[Tree, Tree]:
        (optimizer, data), (made, row) = constants, row
        one = jax.tree.map(lambda x: x[0, 0], held)
        batch = batch_of(data, None if row is None else row[0])
        new = self._member(jax.tree.map(lambda x: x[0], optimizer), one, batch, made)
        return jax.tree.map(lambda x: x[None, None], new)

    def _evaluate(self, optimizer: Tree, carry: Tree) -> dict[str, jax.Array]:
        def one(optimizer, held):
            state = held["state"]
            return self.group.evaluate(eval_params(optimizer, state.opt_state, state.params))

        return jax.vmap(jax.vmap(one, (None, 0)))(optimizer, carry)

    def choose(self) -> tuple[str, str]:
        """The executor for this group on this backend, and why."""
        if (backend := jax.default_backend()) != "cpu":
            return "vmap", f"all members at once, on {backend}"
        optimizer = jax.tree.map(lambda x: x[0], self.group.optimizer)
        state = jax.eval_shape(lambda: TrainState.create(optimizer, self.group.init_fn(self.base)))
        rows = None if self.group.batch_size is None else jax.ShapeDtypeStruct((self.group.batch_size,), jnp.int32)
        traced = jax.jit(lambda o, s, d, r: self.step(o, s, batch_of(d, r))).trace(optimizer, state, self.data, rows)
        if "conv_general_dilated" in str(traced.jaxpr):
            return "loop", "runs one by one, as XLA on a CPU is slow at convolutions in loops and batches of models"
        flops = (traced.lower().cost_analysis() or {}).get("flops", 0.0)
        if flops > FLOPS:
            return "map", f"members one after another, as a step has {flops:.2g} operations, above {FLOPS:.2g}"
        return "vmap", f"members batched, as a step has {flops:.2g} operations, at most {FLOPS:.2g}"
