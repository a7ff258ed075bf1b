"""Workloads of training: `gdfx.fit` against loops written by hand, and against PyTorch.

All train the same model on the same data with the same loss, from the same kind of start, in float32, the state
donated, and keep the loss of every step. `gdfx.fit` also keeps the norm of the gradients.
"""

import json
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

import gdfx

from .data import digits, fashion
from .runner import GDFX, Repeat, Setting, Skipped, Subprocess, Workload, cores, workload

NUMPY_STEP, STEP, SCAN, TORCH = "jitted step, NumPy batches", "jitted step", "jitted scan", "PyTorch"
OWN_LOOP = "gdfx.make_step"


@dataclass(frozen=True)
class Task:
    """What is trained."""

    model: Any
    x: np.ndarray
    y: np.ndarray
    batch_size: int
    epochs: int
    optimizer: str
    options: dict[str, float]

    @property
    def steps(self) -> int:
        """The steps of an epoch."""
        return len(self.x) // self.batch_size

    @property
    def sizes(self) -> dict[str, int]:
        return {"examples": len(self.x), "batch_size": self.batch_size, "epochs": self.epochs}

    def start(self) -> Any:
        return self.model.init(jax.random.key(0))

    def loss_fn(self, params: Any, batch: Any) -> jax.Array:
        x, y = batch
        logits = self.model.apply(params, x)
        return gdfx.losses.softmax_cross_entropy_with_integer_labels(logits, y).mean()


def fit(task: Task) -> Callable[[], Repeat]:
    """`gdfx.fit` as it comes."""

    def start() -> Repeat:
        optimizer = getattr(gdfx, task.optimizer)(**task.options)
        params, data = jax.block_until_ready((task.start(), jax.device_put((task.x, task.y))))
        how: dict[str, Any] = {"epochs": task.epochs, "batch_size": task.batch_size, "progress": False}

        def repeat() -> dict[str, float]:
            began = time.perf_counter()
            result = gdfx.fit(task.loss_fn, params, optimizer, data, **how)
            jax.block_until_ready(result.params)
            total = time.perf_counter() - began
            compiling, running = result.seconds["compile"], result.seconds["run"]
            return {
                "run": running / result.steps,
                "compile": compiling,
                "total": total,
                "around": total - compiling - running,  # what `fit` counts as neither
                "loss": float(result.history["loss"][-1]),
            }

        return repeat

    return start


def by_hand(task: Task, how: str) -> Callable[[], Repeat]:
    """A loop as one would write it with optax."""

    def start() -> Repeat:
        try:
            import optax
        except ImportError:
            raise Skipped("optax is not installed") from None
        optimizer = getattr(optax, task.optimizer)(**task.options)
        params, data = task.start(), (task.x, task.y)
        if how != NUMPY_STEP:
            data = jax.device_put(data)

        def update(state: Any, batch: Any) -> Any:
            params, opt_state = state
            loss, grads = jax.value_and_grad(task.loss_fn)(params, batch)
            updates, opt_state = optimizer.update(grads, opt_state, params)
            return (optax.apply_updates(params, updates), opt_state), loss

        def gathered(state: Any, rows: Any, data: Any) -> Any:
            x, y = data
            return update(state, (x[rows], y[rows]))

        def scanned(state: Any, order: Any, data: Any) -> Any:
            return jax.lax.scan(lambda state, rows: gathered(state, rows, data), state, order)

        def epoch(step: Any, state: Any, order: np.ndarray) -> Any:
            if how == SCAN:
                return step(state, order, data)
            losses = []
            for rows in order:
                args = ((task.x[rows], task.y[rows]),) if how == NUMPY_STEP else (rows, data)
                state, loss = step(state, *args)
                losses.append(loss)
            return state, losses

        def fresh() -> Any:
            return jax.block_until_ready(jax.tree.map(jnp.copy, (params, optimizer.init(params))))

        def repeat() -> dict[str, float]:
            rng = np.random.default_rng(0)
            # A new function each time: JAX keeps what it compiled for the old.
            function = {NUMPY_STEP: update, STEP: gathered, SCAN: scanned}[how]
            step = jax.jit(lambda *args: function(*args), donate_argnums=0)
            state, first = fresh(), order(task, rng)[: None if how == SCAN else 1]
            began = time.perf_counter()
            jax.block_until_ready(epoch(step, state, first))
            compiled = time.perf_counter()
            state, losses = fresh(), []
            started = time.perf_counter()
            for _ in range(task.epochs):
                state, loss = epoch(step, state, order(task, rng))
                losses.append(loss)
            jax.block_until_ready((state, losses))
            running = time.perf_counter() - started
            run = running / (task.epochs * task.steps)
            compiling = compiled - began - run * len(first)
            return {"run": run, "compile": compiling, "total": compiling + running, "loss": float(losses[-1][-1])}

        return repeat

    return start


def own_loop(task: Task) -> Callable[[], Repeat]:
    """A loop as one would write it with `gdfx.make_step`."""

    def start() -> Repeat:
        optimizer = getattr(gdfx, task.optimizer)(**task.options)
        params, data = jax.block_until_ready((task.start(), jax.device_put((task.x, task.y))))

        def loss_fn(params: Any, batch: Any) -> jax.Array:
            rows, (x, y) = batch
            return task.loss_fn(params, (x[rows], y[rows]))

        def repeat() -> dict[str, float]:
            rng = np.random.default_rng(0)
            step, state = gdfx.make_step(lambda *args: loss_fn(*args)), gdfx.TrainState.create(optimizer, params)
            jax.block_until_ready(state)
            began = time.perf_counter()
            jax.block_until_ready(step(optimizer, state, (order(task, rng)[0], data)))
            compiled = time.perf_counter()
            state, losses = jax.block_until_ready(gdfx.TrainState.create(optimizer, params)), []
            started = time.perf_counter()
            for _ in range(task.epochs):
                for rows in order(task, rng):
                    state, metrics = step(optimizer, state, (rows, data))
                    losses.append(metrics["loss"])
            jax.block_until_ready((state, losses))
            running = time.perf_counter() - started
            run = running / (task.epochs * task.steps)
            compiling = compiled - began - run
            return {"run": run, "compile": compiling, "total": compiling + running, "loss": float(losses[-1])}

        return repeat

    return start


def order(task: Task, rng: np.random.Generator) -> np.ndarray:
    """The examples of each step of an epoch, a row a step."""
    order = rng.permutation(len(task.x)).astype(np.int32)
    return order[: task.steps * task.batch_size].reshape(task.steps, task.batch_size)


def torch(task: Task, setting: Setting, model: str) -> Callable[[], Repeat]:
    """PyTorch, in its own process."""

    def start() -> Repeat:
        if setting.torch_python is None:
            raise Skipped("--torch-python does not say which Python has PyTorch")
        request = task.sizes | {"model": model, "options": task.options, "cores": cores()}
        process = Subprocess([setting.torch_python, "-m", f"{__package__}.torch_peer", json.dumps(request)])
        setting.closing.callback(process.close)
        return process

    return start


def contestants(task: Task, setting: Setting, model: str) -> dict[str, Callable[[], Repeat]]:
    return {
        GDFX: fit(task),
        SCAN: by_hand(task, SCAN),
        STEP: by_hand(task, STEP),
        TORCH: torch(task, setting, model),
    }


@workload
def mlp_digits(setting: Setting) -> Workload:
    """A small network, where the time goes into what is around the arithmetic."""
    x, y, source = digits()
    sizes, epochs = [64, 32, 32, 10], 1 if setting.quick else 200
    task = Task(gdfx.models.mlp(sizes), x, y, 64, epochs, "adam", {"learning_rate": 1e-3})
    return Workload(
        about="MLP 64-32-32-10 on digits, batches of 64, adam",
        unit="step",
        sizes=task.sizes | {"data": source},
        contestants={GDFX: fit(task), NUMPY_STEP: by_hand(task, NUMPY_STEP), SCAN: by_hand(task, SCAN)},
        targets={NUMPY_STEP: 10.0},
    )


@workload
def mlp_fashion(setting: Setting) -> Workload:
    """A network of the usual size, on a data set of the usual size."""
    x, y, source = fashion(512 if setting.quick else 60000)
    epochs, options = 1 if setting.quick else 2, {"learning_rate": 1e-3, "weight_decay": 1e-4}
    task = Task(gdfx.models.mlp([784, 256, 128, 10]), x, y, 128, epochs, "adamw", options)
    return Workload(
        about="MLP 784-256-128-10 on Fashion-MNIST, batches of 128, adamw",
        unit="step",
        sizes=task.sizes | {"data": source},
        contestants=contestants(task, setting, "mlp") | {OWN_LOOP: own_loop(task)},
        targets={SCAN: 0.97, STEP: 0.97, TORCH: 1.5},
    )


@workload
def cnn_fashion(setting: Setting) -> Workload:
    """A small convolutional network."""
    x, y, source = fashion(128 if setting.quick else 6400)
    options = {"learning_rate": 1e-3, "weight_decay": 1e-4}
    task = Task(gdfx.models.cnn((28, 28, 1)), x.reshape(-1, 28, 28, 1), y, 64, 1, "adamw", options)
    return Workload(
        about="CNN of 16 and 32 channels on Fashion-MNIST, batches of 64, adamw",
        unit="step",
        sizes=task.sizes | {"data": source},
        contestants=contestants(task, setting, "cnn"),
        targets={SCAN: 0.97, STEP: 0.97},
    )


@workload
def transformer_random(setting: Setting) -> Workload:
    """A small transformer, as of examples/language_model.py."""
    windows, length, width, depth = (32, 8, 16, 1) if setting.quick else (1024, 64, 128, 4)
    tokens = np.random.default_rng(0).integers(0, 96, (windows, length + 1), np.int32)
    model = gdfx.models.transformer(96, width, depth, 2 if setting.quick else 4, length)
    options = {"learning_rate": 1e-3, "weight_decay": 1e-4}
    task = Task(model, tokens[:, :-1], tokens[:, 1:], 16, 1 if setting.quick else 4, "adamw", options)
    hands = {SCAN: by_hand(task, SCAN), STEP: by_hand(task, STEP), OWN_LOOP: own_loop(task)}
    return Workload(
        about="transformer of 4 layers of 128 on random tokens, batches of 16 windows of 64, adamw",
        unit="step",
        sizes=task.sizes | {"data": "random"},
        contestants={GDFX: fit(task)} | hands,
        targets={SCAN: 0.97, STEP: 0.97},
    )
