"""Workloads of sweeps: `gdfx.sweep` against loops over optimizers and a batched training written by hand.

All start from the same params and see batches of the same size. What is counted is the time from nothing, compiling
included, of each member: nobody makes a sweep twice.
"""

import time
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

import gdfx

from .data import digits
from .runner import GDFX, Repeat, Setting, Skipped, Workload, workload
from .training import Task, order

LOOP, INJECTED, BATCHED = "loop, optax.adam(rate)", "loop, inject_hyperparams", "jit(vmap(train))"


def swept(task: Task, rates: np.ndarray) -> Callable[[], Repeat]:
    """`gdfx.sweep` as it comes."""

    def start() -> Repeat:
        def repeat() -> dict[str, float]:
            model = task.model  # a loss of its own each time: JAX keeps what it traced for the old
            loss_fn = lambda params, batch: task.loss_fn(params, batch)
            began = time.perf_counter()
            result = gdfx.sweep(
                loss_fn,
                model.init,
                gdfx.grid(gdfx.adam, learning_rate=rates),
                (task.x, task.y),
                epochs=task.epochs,
                batch_size=task.batch_size,
                progress=False,
            )
            total = time.perf_counter() - began
            return {
                "run": total / len(rates),
                "compile": result.seconds["compile"],
                "total": total,
                "loss": float(np.nanmin(result.metrics["train_loss"])),
            }

        return repeat

    return start


def by_hand(task: Task, rates: np.ndarray, how: str) -> Callable[[], Repeat]:
    """What one would write with optax."""

    def start() -> Repeat:
        try:
            import optax
        except ImportError:
            raise Skipped("optax is not installed") from None

        def step_of(optimizer: Any) -> Callable[[Any, Any], Any]:
            def step(state: Any, batch: Any) -> Any:
                params, opt_state = state
                loss, grads = jax.value_and_grad(task.loss_fn)(params, batch)
                updates, opt_state = optimizer.update(grads, opt_state, params)
                return (optax.apply_updates(params, updates), opt_state), loss

            return step

        def trained(step: Any, state: Any) -> list[Any]:
            rng, losses = np.random.default_rng(0), []
            for _ in range(task.epochs):
                for rows in order(task, rng):
                    state, loss = step(state, (task.x[rows], task.y[rows]))
                    losses.append(loss)
            return losses

        def loop() -> Any:
            ended = []
            for rate in rates:
                optimizer, params = optax.adam(float(rate)), task.start()
                step = jax.jit(step_of(optimizer), donate_argnums=0)
                ended.append(trained(step, (params, optimizer.init(params)))[-1])
            return ended

        def injected() -> Any:
            optimizer = optax.inject_hyperparams(optax.adam)(learning_rate=0.1)
            step, ended = jax.jit(step_of(optimizer), donate_argnums=0), []
            for rate in rates:
                params = task.start()
                state: Any = optimizer.init(params)
                state.hyperparams["learning_rate"] = jnp.asarray(rate, jnp.float32)
                ended.append(trained(step, (params, state))[-1])
            return ended

        def batched() -> Any:
            def train(rate: jax.Array, key: jax.Array, data: Any) -> jax.Array:
                optimizer = optax.adam(rate)
                params = task.model.init(key)
                step = step_of(optimizer)

                def epoch(state: Any, key: jax.Array) -> Any:
                    rows = jax.random.permutation(key, len(task.x))[: task.steps * task.batch_size]
                    rows = rows.reshape(task.steps, task.batch_size)
                    return jax.lax.scan(lambda s, row: step(s, jax.tree.map(lambda x: x[row], data)), state, rows)

                keys = jax.random.split(key, task.epochs)
                return jax.lax.scan(epoch, (params, optimizer.init(params)), keys)[1].reshape(-1)

            train = jax.jit(jax.vmap(train, (0, None, None)))
            return list(train(jnp.asarray(rates, jnp.float32), jax.random.key(0), (task.x, task.y))[:, -1])

        def repeat() -> dict[str, float]:
            began = time.perf_counter()
            losses = jax.block_until_ready({LOOP: loop, INJECTED: injected, BATCHED: batched}[how]())
            total = time.perf_counter() - began
            return {"run": total / len(rates), "total": total, "loss": float(np.nanmin(np.asarray(losses)))}

        return repeat

    return start


def _task(setting: Setting, width: int, epochs: int) -> tuple[Task, str]:
    x, y, source = digits()
    n = 128 if setting.quick else len(x)
    model = gdfx.models.mlp([64, width, width, 10])
    return Task(model, x[:n], y[:n], 64, 1 if setting.quick else epochs, "adam", {}), source


@workload
def sweep_rates(setting: Setting) -> Workload:
    """32 learning rates, from nothing."""
    task, source = _task(setting, 128, 20)
    rates = np.geomspace(1e-4, 1, 4 if setting.quick else 32)
    return Workload(
        about="32 learning rates of Adam for an MLP 64-128-128-10 on digits, compile time included",
        unit="member",
        sizes=task.sizes | {"members": len(rates), "data": source},
        contestants={GDFX: swept(task, rates)} | {how: by_hand(task, rates, how) for how in (BATCHED, INJECTED, LOOP)},
        targets={LOOP: 12.0, INJECTED: 7.0, BATCHED: 2.2},
    )


@workload
def sweep_members(setting: Setting) -> Workload:
    """Ever more members: what one costs must not rise by more than 10 %."""
    task, source = _task(setting, 32, 10)
    counts = [1, 2] if setting.quick else [1, 4, 16, 64, 256, 1024]
    sized = {count: swept(task, np.geomspace(1e-4, 1, count)) for count in counts}
    named = {GDFX if count == counts[-1] else f"{count} members": sized[count] for count in counts}
    return Workload(
        about=f"the same with {counts[-1]} members of width 32, against fewer",
        unit="member",
        sizes=task.sizes | {"members": counts[-1], "data": source},
        contestants=named,
        targets={name: 1 / 1.1 for name in named if name != GDFX},
    )


@workload
def sweep_halving(setting: Setting) -> Workload:
    """Successive halving: a third of the time for a winner as good."""
    task, source = _task(setting, 128, 100)
    epochs = 9 if setting.quick else task.epochs  # culling needs steps
    counts = (3, 3) if setting.quick else (27, 3)
    optimizers = lambda: gdfx.grid(
        gdfx.adamw,
        learning_rate=np.geomspace(1e-4, 1, counts[0]),
        weight_decay=np.geomspace(1e-4, 1e-2, counts[1]),
    )
    cut = len(task.x) * 2 // 3
    data, held_out = (task.x[:cut], task.y[:cut]), (task.x[cut:], task.y[cut:])

    def evaluate(params: Any) -> dict[str, jax.Array]:
        x, y = held_out
        return {"accuracy": (task.model.apply(params, x).argmax(-1) == y).mean()}

    def start(**culling: Any) -> Repeat:
        def repeat() -> dict[str, float]:
            loss_fn = lambda params, batch: task.loss_fn(params, batch)
            began = time.perf_counter()
            result = gdfx.sweep(
                loss_fn,
                task.model.init,
                optimizers(),
                data,
                epochs=epochs,
                batch_size=task.batch_size,
                evaluate=evaluate,
                metric="accuracy",
                mode="max",
                progress=False,
                **culling,
            )
            total = time.perf_counter() - began
            best = result.best.metrics["accuracy"]
            return {
                "run": total / len(result.points),
                "compile": result.seconds["compile"],
                "total": total,
                "best": best,
            }

        return repeat

    members = counts[0] * counts[1]
    return Workload(
        about=f"{members} settings of AdamW with successive halving, against all of them to the end",
        unit="member",
        sizes=task.sizes | {"epochs": epochs, "members": members, "data": source},
        contestants={GDFX: lambda: start(culling=gdfx.halving()), "without culling": start},
        targets={"without culling": 3.0},
    )
