"""Workloads of the update alone, and of `import gdfx`.

An update is what one would write: from gradients, which stay, to new params and a new state, in the memory of the old.
Its stages are timed one by one, with nothing traced or compiled before. The params of all contestants start the same.
"""

import gc
import importlib.util
import json
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from itertools import pairwise
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

import gdfx
from gdfx.training.loop import memory_of

from .data import leaf_shapes, normal
from .runner import GDFX, WORKLOADS, Repeat, Setting, Skipped, Subprocess, Targets, Workload, cores, workload

OPTAX, TORCH, HAND, COPY = "optax", "PyTorch", "jax.numpy by hand", "copy of as many bytes"
STAGES = ("trace", "lower", "trace_lower", "backend", "compile", "first_step", "first")
BYTES = 28  # that AdamW moves for each param: reads param, gradient and two moments, writes all but the gradient
PEAK = 1.05  # memory over that of params, state and gradients

RENEWED = (1, 10, 100)  # steps after which SOAP has new bases, and Shampoo new roots

OPTIMIZERS = {
    "sgd": "SGD with momentum",
    "adam": "Adam",
    "adamw": "AdamW",
    "clip_adamw": "clipping by the global norm and AdamW",
    "recipe": "clipping, AdamW with a decay mask and a warm-up cosine schedule, EMA of params, skipped if not finite",
}
MODELS = {
    "ten": "20 M params in 10 leaves",
    "thousand": "1000 leaves of 3500 params",
    "gpt2": "the leaves of GPT-2 small, 124 M params",
}
EQUAL: Targets = {OPTAX: 1 / 1.02}
TARGETS: dict[tuple[str, str], Targets] = {
    ("sgd", "ten"): EQUAL,
    ("adam", "ten"): EQUAL,
    ("adamw", "ten"): {**EQUAL, COPY: 1 / 1.1},
    ("clip_adamw", "ten"): {OPTAX: 1 / 0.45, TORCH: 1 / 1.1},
    ("recipe", "ten"): {OPTAX: 1 / 0.5},
    ("clip_adamw", "thousand"): {OPTAX: {"run": 1.0, "trace_lower": 1 / 0.3, "first": 1 / 0.6}},
    ("recipe", "thousand"): {OPTAX: 1 / 0.5},
    ("clip_adamw", "gpt2"): {},
    ("recipe", "gpt2"): {OPTAX: 1 / 0.5},
}


@dataclass(frozen=True)
class Task:
    """What is updated, how, and how often: `queued` steps are waited for at once, so many times."""

    optimizer: str
    shapes: list[tuple[int, ...]]
    samples: int
    queued: int

    @property
    def sizes(self) -> dict[str, int]:
        counts = {"leaves": len(self.shapes), "params": sum(map(np.prod, self.shapes))}
        return {name: int(count) for name, count in counts.items()}

    def params(self) -> list[jax.Array]:
        return [jnp.array(x) for x in normal(self.shapes, 0)]

    def grads(self) -> list[jax.Array]:
        return [jnp.array(x) for x in normal(self.shapes, 1)]


@dataclass(frozen=True)
class Updater:
    """An optimizer as its users write it."""

    optimizer: Any
    init: Callable[[Any], Any]  # (params) -> state
    step: Callable[[Any, Any, Any, Any], Any]  # (optimizer, params, state, grads) -> (params, state)
    held: Any = None  # the optimizer where the compiled step takes it as an argument


def in_gdfx(name: str) -> Updater:
    schedule = gdfx.warmup_cosine(1e-3, warmup=100, total=10_000)
    optimizer = {
        "sgd": lambda: gdfx.sgd(0.1, momentum=0.9),
        "adam": lambda: gdfx.adam(1e-3),
        "adamw": lambda: gdfx.adamw(1e-3),
        "muon": lambda: gdfx.muon(0.02),
        **{f"soap_{n}": partial(gdfx.soap, 3e-3, precondition_frequency=n) for n in RENEWED},
        **{f"shampoo_{n}": partial(_grafted_shampoo, n) for n in RENEWED},
        "clip_adamw": lambda: gdfx.chain(gdfx.clip_by_global_norm(1.0), gdfx.adamw(1e-3)),
        "recipe": lambda: gdfx.guard(
            gdfx.chain(
                gdfx.clip_by_global_norm(1.0),
                gdfx.adamw(schedule, weight_decay=0.1, mask=gdfx.matrices),
                gdfx.ema_params(0.999),
            )
        ),
    }[name]()

    def step(optimizer: Any, params: Any, state: Any, grads: Any) -> Any:
        updates, state = optimizer.update(grads, state, params)
        return gdfx.apply_updates(params, updates), state

    return Updater(optimizer, optimizer.init, step, gdfx.as_arrays(optimizer))


def _grafted_shampoo(every: int) -> Any:
    return gdfx.graft(gdfx.adamw(1e-3), gdfx.shampoo(1.0, precondition_frequency=every))


def in_optax(name: str) -> Updater:
    try:
        import optax
    except ImportError:
        raise Skipped("optax is not installed") from None
    matrices = lambda params: jax.tree.map(lambda p: p.ndim >= 2, params)
    schedule = optax.warmup_cosine_decay_schedule(1e-3 / 101, 1e-3, 100, 10_000)  # the same rates
    optimizer = {
        "sgd": lambda: optax.sgd(0.1, momentum=0.9),
        "adam": lambda: optax.adam(1e-3),
        "adamw": lambda: optax.adamw(1e-3),
        "muon": lambda: optax.contrib.muon(0.02),
        "clip_adamw": lambda: optax.chain(optax.clip_by_global_norm(1.0), optax.adamw(1e-3)),
        "recipe": lambda: optax.apply_if_finite(
            optax.chain(optax.clip_by_global_norm(1.0), optax.adamw(schedule, weight_decay=0.1, mask=matrices)),
            max_consecutive_errors=10,
        ),
    }[name]()

    def step(_: Any, params: Any, state: Any, grads: Any) -> Any:
        updates, state = optimizer.update(grads, state, params)
        return optax.apply_updates(params, updates), state

    def averaging(_: Any, params: Any, state: Any, grads: Any) -> Any:
        opt_state, average = state
        params, opt_state = step(_, params, opt_state, grads)
        return params, (opt_state, optax.incremental_update(params, average, 1 - 0.999))

    if name == "recipe":
        return Updater(optimizer, lambda p: (optimizer.init(p), jax.tree.map(jnp.copy, p)), averaging)
    return Updater(optimizer, optimizer.init, step)


def by_hand(name: str) -> Updater:
    """AdamW in as little of `jax.numpy` as it takes: what XLA makes of it is the limit for all that it compiles."""
    clips = name == "clip_adamw"

    def init(params: Any) -> Any:
        zeros = lambda: [jnp.zeros_like(p) for p in params]
        return jnp.zeros((), jnp.int32), zeros(), zeros()

    def step(_: Any, params: Any, state: Any, grads: Any) -> Any:
        t = state[0] + 1
        m_total, v_total = 1 - 0.9**t, 1 - 0.999**t
        factor = 1 / jnp.maximum(1, jnp.sqrt(sum(jnp.sum(g * g) for g in grads))) if clips else 1

        def leaf(p: jax.Array, m: jax.Array, v: jax.Array, g: jax.Array) -> tuple[jax.Array, ...]:
            g = factor * g
            m, v = 0.9 * m + 0.1 * g, 0.999 * v + 0.001 * g * g
            return p - 1e-3 * (m / m_total / (jnp.sqrt(v / v_total) + 1e-8) + 1e-4 * p), m, v

        params, *moments = map(list, zip(*map(leaf, params, *state[1:], grads), strict=True))
        return params, (t, *moments)

    return Updater(None, init, step)


def compiled(task: Task, write: Callable[[str], Updater]) -> Callable[[], Repeat]:
    """The update as a program of its own."""

    def start() -> Repeat:
        write(task.optimizer)  # or is skipped

        def repeat() -> dict[str, float]:
            jax.clear_caches()  # of what is traced within, too
            gc.collect()
            gc.freeze()  # what others left in this process is not looked through at the cost of this one
            params, grads = jax.block_until_ready((task.params(), task.grads()))
            before = np.array(params[0])
            times = [time.perf_counter()]

            def did(result: Any) -> Any:
                times.append(time.perf_counter())
                return result

            made = write(task.optimizer)
            state = did(jax.block_until_ready(made.init(params)))
            needed = _bytes((params, state, grads))
            traced = did(jax.jit(made.step, donate_argnums=(1, 2)).trace(made.held, params, state, grads))
            lowered = did(traced.lower())
            step = did(lowered.compile())
            for queued in (1, *[task.queued] * task.samples):
                for _ in range(queued):
                    params, state = step(made.held, params, state, grads)
                did(jax.block_until_ready((params, state)))
            init, trace, lower, backend, first_step, *runs = (b - a for a, b in pairwise(times))
            run = statistics.median(runs) / task.queued
            seconds = {
                "init": init,
                "trace": trace,
                "lower": lower,
                "trace_lower": trace + lower,
                "backend": backend,
                "compile": trace + lower + backend,
                "first_step": first_step,
                "first": trace + lower + backend + first_step,
                "run": run,
                "total": times[-1] - times[0],
                "moved": float(np.linalg.norm(np.asarray(params[0]) - before)),
            }
            if task.optimizer == "adamw":
                seconds["bandwidth"] = BYTES * task.sizes["params"] / run
            return seconds | _peak(step, needed)

        return repeat

    return start


def _bytes(tree: Any) -> int:
    return sum(leaf.nbytes for leaf in jax.tree.leaves(tree))


def _peak(step: Any, needed: int) -> dict[str, float]:
    """The bytes that the compiled program holds at most, and that over those `needed` for what comes in."""
    memory = float(memory_of(step))
    return {"memory": memory, "memory_over": memory / needed} if memory else {}


def copying(task: Task) -> Callable[[], Repeat]:
    """The limit that the memory sets: an array is copied that takes as many bytes to read and write as AdamW's step."""

    def start() -> Repeat:
        moved = BYTES * task.sizes["params"]

        def repeat() -> dict[str, float]:
            began = time.perf_counter()
            x = jnp.zeros(moved // 2 // 4)
            step = jax.jit(lambda x: x + 1)
            last = jax.block_until_ready(step(x))
            times = [time.perf_counter()]
            for _ in range(task.samples):
                for _ in range(task.queued):
                    last = step(x)
                jax.block_until_ready(last)
                times.append(time.perf_counter())
            run = statistics.median(b - a for a, b in pairwise(times)) / task.queued
            return {"run": run, "total": times[-1] - began, "bandwidth": moved / run}

        return repeat

    return start


def torch(task: Task, setting: Setting) -> Callable[[], Repeat]:
    """PyTorch, in its own process."""

    def start() -> Repeat:
        if setting.torch_python is None:
            raise Skipped("--torch-python does not say which Python has PyTorch")
        request = vars(task) | {"cores": cores()}
        process = Subprocess([setting.torch_python, "-m", f"{__package__}.torch_peer", json.dumps(request)])
        setting.closing.callback(process.close)
        return process

    return start


def update(optimizer: str, model: str, setting: Setting) -> Workload:
    """The workload of an optimizer and a model."""
    on_cpu = jax.default_backend() == "cpu"
    samples = 2 if setting.quick else 7 if model == "gpt2" else 15
    # Where a step takes less time than to wait for it, it is one of many.
    task = Task(optimizer, leaf_shapes(model, setting.quick), samples, 1 if on_cpu else 20)
    contestants = {GDFX: compiled(task, in_gdfx), OPTAX: compiled(task, in_optax), TORCH: torch(task, setting)}
    if optimizer in ("adamw", "clip_adamw"):
        contestants[HAND] = compiled(task, by_hand)
    if optimizer == "adamw" and (setting.quick or not on_cpu):
        contestants[COPY] = copying(task)
    return Workload(
        about=f"{OPTIMIZERS[optimizer]}; {MODELS[model]}",
        unit="step",
        sizes=task.sizes,
        contestants=contestants,
        targets=TARGETS[optimizer, model],
        kinds=("run", *STAGES, "total", "memory"),
        limits={"memory_over": PEAK},
    )


for pair in TARGETS:
    WORKLOADS[f"update_{'_'.join(pair)}"] = partial(update, *pair)


@workload
def muon_matrices(setting: Setting) -> Workload:
    """Many matrices of one shape, as of the layers of a transformer."""
    shapes: list[tuple[int, ...]] = [(8, 8)] * 4 if setting.quick else [(256, 256)] * 96
    task = Task("muon", shapes, 2 if setting.quick else 7, 1 if jax.default_backend() == "cpu" else 20)
    return Workload(
        about=f"Muon; {len(shapes)} matrices of {shapes[0][0]} x {shapes[0][1]}",
        unit="step",
        sizes=task.sizes,
        contestants={GDFX: compiled(task, in_gdfx), OPTAX: compiled(task, in_optax)},
        targets={OPTAX: {"run": 1 / 0.75, "first": 1 / 0.3}},
        kinds=("run", *STAGES, "total", "memory"),
    )


@workload
def soap_and_shampoo(setting: Setting) -> Workload:
    """What a step costs beyond AdamW's where bases or roots are renewed in every one, or in few."""
    shapes: list[tuple[int, ...]] = [(8, 8)] * 2 if setting.quick else [(256, 256)] * 4
    queued = 1 if jax.default_backend() == "cpu" else 20
    task = Task("adamw", shapes, 2 if setting.quick else 3, queued)

    def renewed(name: str, every: int) -> Callable[[], Repeat]:
        start = compiled(replace(task, optimizer=f"{name}_{every}", queued=max(queued, every)), in_gdfx)

        def started() -> Repeat:
            repeat = start()
            return lambda: {kind: value for kind, value in repeat().items() if kind != "moved"}  # as far as it likes

        return started

    methods = {f"gdfx.{name}, every {n}": (name, n) for name in ("soap", "shampoo") for n in RENEWED}
    return Workload(
        about=f"gdfx's AdamW (1), and SOAP and grafted Shampoo renewed every so many steps; {len(shapes)} matrices of "
        f"{shapes[0][0]} x {shapes[0][1]}",
        unit="step",
        sizes=task.sizes,
        contestants={GDFX: compiled(task, in_gdfx)} | {who: renewed(*method) for who, method in methods.items()},
        kinds=("run", *STAGES, "total", "memory"),
    )


@workload
def eager_update(setting: Setting) -> Workload:
    """The update outside of `jit`, where dispatching costs more than arithmetic."""
    task = Task("adam", [(64, 64), (64,)] * (2 if setting.quick else 10), 2 if setting.quick else 50, 1)

    def start(write: Callable[[str], Updater]) -> Repeat:
        write(task.optimizer)

        def repeat() -> dict[str, float]:
            jax.clear_caches()
            params, grads = jax.block_until_ready((task.params(), task.grads()))
            times = [time.perf_counter()]
            optimizer = write(task.optimizer).optimizer
            state = jax.block_until_ready(optimizer.init(params))
            times.append(time.perf_counter())
            updates = grads
            for _ in range(1 + task.samples):
                updates, state = optimizer.update(grads, state, params)
                jax.block_until_ready((updates, state))
                times.append(time.perf_counter())
            init, first, *runs = (b - a for a, b in pairwise(times))
            moved = float(np.linalg.norm(updates[0]))
            run = statistics.median(runs)
            return {"init": init, "first": first, "run": run, "total": times[-1] - times[0], "moved": moved}

        return repeat

    return Workload(
        about="Adam's update outside of jit, 20 leaves",
        unit="update",
        sizes=task.sizes,
        contestants={GDFX: lambda: start(in_gdfx), OPTAX: lambda: start(in_optax)},
        targets={OPTAX: 1.0},
        kinds=("run", "first", "total"),
    )


IMPORT = """\
import time
times = [time.perf_counter()]
import jax, numpy
times.append(time.perf_counter())
import {module}
times.append(time.perf_counter())
print(*times)
"""


@workload
def import_gdfx(setting: Setting) -> Workload:
    """What it takes to import, each time in a new process."""

    def start(module: str) -> Repeat:
        if importlib.util.find_spec(module) is None:
            raise Skipped(f"{module} is not installed")

        def repeat() -> dict[str, float]:
            command = [sys.executable, "-c", IMPORT.format(module=module)]
            told = subprocess.run(command, check=True, stdout=subprocess.PIPE, encoding="utf-8").stdout
            began, jax_is_there, ended = map(float, told.split())
            beyond = ended - jax_is_there
            return {"run": beyond, "beyond_jax": beyond, "total": ended - began}

        return repeat

    return Workload(
        about="import, in seconds beyond those of jax and numpy",
        unit="import",
        sizes={},
        contestants={GDFX: lambda: start("gdfx"), OPTAX: lambda: start("optax")},
        kinds=("run", "total"),
        limits={"beyond_jax": 0.15},
    )
