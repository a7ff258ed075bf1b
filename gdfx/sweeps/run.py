"""Many training runs as one compiled program: `sweep`."""

import operator
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from ..core import Tree
from ..training.data import Shuffled, batch_of, check_data, check_epochs, seed_words
from ..training.loop import counted, joined, run_loop
from ..training.progress import progress_bar
from ..training.step import TrainState, step_function
from ..tree import norm
from .grid import batched
from .result import SweepResult

SAMPLE = 16
"""Batches on which the loss before training is taken."""


def sweep(
    loss_fn: Callable[..., Any],
    init_fn: Callable[[jax.Array], Tree],
    optimizers: Any,
    data: Tree,
    *,
    epochs: int,
    batch_size: int | None = None,
    seeds: int | Sequence[int] = 1,
    key: Any = 0,
    evaluate: Callable[[Tree], dict[str, jax.Array]] | None = None,
    metric: str = "train_loss",
    mode: str = "min",
    progress: bool | None = None,
) -> SweepResult:
    """Trains one model for each of `optimizers` and each seed, all in one program that is compiled once.

    `optimizers` is a batch of one kind: from `gdfx.grid`, from `jax.vmap`, or a list. `init_fn(key)` makes the params
    (such as the `init` of a model in `gdfx.models`), `loss_fn`, `data`, `batch_size` and `epochs` are as for `fit`. A
    seed, together with `key`, determines the params at the start and the order of the examples; all optimizers see
    the same. `evaluate(params)` returns scalars by name, for each member after training.

    A member whose loss or params stop being finite is kept at its last finite params and marked as diverged, and so is
    one whose loss ends above where it began, beyond chance; the others are not affected. The best optimizer is the one
    with the best mean over the seeds of `metric`, `"train_loss"` or a name from `evaluate`, the `mode` being `"min"`
    or `"max"`.
    """
    size = check_data(data, batch_size)
    check_epochs(epochs)
    if mode not in ("min", "max"):
        raise ValueError(f'mode is {mode!r}, expected "min" or "max"')
    seeds = list(range(seeds)) if isinstance(seeds, int | np.integer) else [operator.index(seed) for seed in seeds]
    if not seeds:
        raise ValueError("sweep: there are no seeds, expected at least one")
    if min(seeds) < 0:
        raise ValueError(f"sweep: a seed is {min(seeds)}, expected non-negative integers")
    optimizer, members = batched(optimizers)
    _check_metrics(init_fn, evaluate, metric)
    words = seed_words(key)
    base = jax.random.key(key) if isinstance(key, int | np.integer) else key
    orders = [] if batch_size is None else [Shuffled(size, batch_size, [*words, seed]) for seed in seeds]
    per_epoch = orders[0].steps_per_epoch if orders else 1
    step = step_function(loss_fn)

    def start(optimizer, seed):
        state = TrainState.create(optimizer, init_fn(jax.random.fold_in(base, seed)))
        return {"state": state, "diverged_at": jnp.full((), -1, jnp.int32)}

    @jax.jit
    def start_all(optimizer, seeds, data, rows):
        def losses(seed, rows):
            params = init_fn(jax.random.fold_in(base, seed))
            return jax.vmap(lambda row: loss_fn(params, batch_of(data, row)))(rows)

        first = None if rows is None else jax.vmap(losses)(seeds, rows)
        # An optax transform has no numbers, from which vmap would know how many members there are.
        return jax.vmap(jax.vmap(start, (None, 0)), (0, None), axis_size=members)(optimizer, seeds), first

    def member_step(optimizer, member, batch, made):
        state, metrics = step(optimizer, member["state"], batch)
        alive = member["diverged_at"] < 0
        good = alive & jnp.isfinite(metrics["loss"]) & jnp.isfinite(norm(state.params))
        state = jax.tree.map(lambda new, old: jnp.where(good, new, old), state, member["state"])
        diverged_at = jnp.where(alive & ~good, made, member["diverged_at"])
        # The norm of the gradients would have to be computed for nothing else.
        told = {name: x for name, x in metrics.items() if name != "grad_norm"}
        return {"state": state, "diverged_at": diverged_at}, told | {"loss": jnp.where(alive, metrics["loss"], jnp.nan)}

    def body(constants, held, row):
        optimizer, data = constants
        made, row = row
        batch = batch_of(data, row)
        over_seeds = jax.vmap(member_step, (None, 0, None if row is None else 0, None))
        over_all = jax.vmap(over_seeds, (0, 0, None, None))
        held, told = over_all(optimizer, held, batch, made)
        return held, told

    total = epochs * per_epoch
    take = counted(total, lambda n: np.stack([order.take(n) for order in orders], axis=1) if orders else None)
    parts = []

    def watch(made, told, carry):
        parts.append(told)
        losses = told["loss"][-1]
        finite = losses[np.isfinite(losses)]
        bar.set_postfix_str(
            f"{finite.size} of {losses.size} finite" + (f", best loss {finite.min():.3g}" if finite.size else ""),
            refresh=False,
        )
        bar.update(made)

    data = jax.tree.map(jnp.asarray, data)
    with progress_bar(total, progress, f"sweep of {members * len(seeds)}") as bar:
        rows = np.stack([order.epoch(0)[:SAMPLE] for order in orders]) if orders else None
        held, first = start_all(optimizer, jnp.asarray(seeds, jnp.uint32), data, rows)
        held, seconds, _ = run_loop(
            body,
            lambda held: jnp.all(held["diverged_at"] >= 0),
            (optimizer, data),
            held,
            take(1),
            take,
            watch,
        )
    diverged_at = np.asarray(held["diverged_at"])
    history = {name: np.moveaxis(x, 0, -1) for name, x in joined(parts).items()}
    losses = history["loss"]
    losses = losses.astype(np.promote_types(losses.dtype, np.float32))  # NumPy adds up bfloat16 in bfloat16
    params = held["state"].params
    scores = jax.jit(jax.vmap(jax.vmap(evaluate)))(params) if evaluate else {}
    train_loss = losses[..., -per_epoch:].mean(axis=-1)
    return SweepResult(
        optimizers=optimizer,
        seeds=seeds,
        params=params,
        history=history | {"loss": losses},
        metrics={"train_loss": train_loss} | {name: np.asarray(values) for name, values in scores.items()},
        diverged=(diverged_at >= 0) | ~(train_loss <= _limit(losses[..., :1] if first is None else np.asarray(first))),
        diverged_at=diverged_at,
        metric=metric,
        mode=mode,
        seconds=seconds,
    )


def _limit(first: np.ndarray) -> np.ndarray:
    """What a loss may be after training, given losses from before it: their mean, with room for chance and rounding."""
    first = first.astype(np.float64)
    with np.errstate(invalid="ignore"):  # losses that are not finite from the start
        mean, error = first.mean(axis=-1), first.std(axis=-1) * np.sqrt(2 / first.shape[-1])
        return mean + 3 * error + 1e-5 * np.abs(mean)


def _check_metrics(init_fn: Any, evaluate: Any, metric: str) -> None:
    """Raises before the training, not after it, for an `evaluate` or a `metric` that cannot be ranked by."""
    scores: Any = {}
    if evaluate is not None:
        scores = jax.eval_shape(lambda: evaluate(init_fn(jax.random.key(0))))
    if not isinstance(scores, dict):
        raise TypeError(f"evaluate returned a {type(scores).__name__}, expected a dict of scalars by name")
    for name, score in scores.items():
        if name == "train_loss":
            raise ValueError("evaluate: train_loss is the name of the mean loss of the last epoch: choose another")
        if not hasattr(score, "shape"):
            raise TypeError(f"evaluate: {name} is a {type(score).__name__}, expected a scalar")
        if score.shape != ():
            raise ValueError(f"evaluate: {name} has shape {score.shape}, expected a scalar")
    if metric not in (names := ["train_loss", *scores]):
        raise ValueError(f"metric is {metric!r}, expected one of: {', '.join(names)}")
