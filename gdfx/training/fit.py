"""Training from the first step to the last: `fit`."""

import operator
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import reduce
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from ..core import Tree, as_transformation
from ..pytrees import as_arrays
from .data import Shuffled, batch_of, check_data, check_epochs, seed_words
from .loop import run_loop
from .progress import progress_bar
from .resume import Resumable, Store
from .step import TrainState, step_function
from .stopping import StoppingRule, check_rules, diverged

_MESSAGES = {
    "epochs": "all epochs were run",
    "max_steps": "the largest number of steps was reached",
    "wall_time": "the time was up",
    "gradient_norm": "the norm of the gradients fell to the tolerance",
    "target": "the loss reached the target",
    "diverged": "the loss or its gradients were not finite, or too large: try a smaller learning rate",
    "no_progress": "the loss no longer got smaller",
}


@dataclass(frozen=True, repr=False)
class FitResult:
    """What training ended with."""

    params: Tree
    opt_state: Tree
    status: str  # the name of the rule that ended it, "a and b" for one of several parts, or "epochs"
    steps: int  # steps made
    history: dict[str, Any] = field(repr=False)  # one row a step: loss, grad_norm, and what the optimizer tells
    seconds: dict[str, float]  # to "compile" and to "run"

    @property
    def message(self) -> str:
        """The status as a sentence."""
        why = " and ".join(_MESSAGES.get(name, f"the rule {name} held") for name in self.status.split(" and "))
        return f"stopped after {self.steps} steps: {why}"

    def __repr__(self) -> str:
        return f"FitResult(status={self.status!r}, steps={self.steps}, loss={self.history['loss'][-1]:.6g})"


def fit(
    loss_fn: Callable[..., Any],
    params: Tree,
    optimizer: Any,
    data: Tree,
    *,
    epochs: int,
    batch_size: int | None = None,
    key: Any = 0,
    stop: StoppingRule | tuple[StoppingRule, ...] = (),
    has_aux: bool = False,
    progress: bool | None = None,
    checkpoint: Store = None,
    checkpoint_seconds: float = 60.0,
) -> FitResult:
    """Trains `params` to make `loss_fn(params, batch)`, the mean loss over a batch, small on `data`.

    `data` is a pytree of arrays with one row an example; a batch is the same pytree with `batch_size` rows. With
    `batch_size=None` every step sees all of the data (gradient descent), with 1 a single example (stochastic gradient
    descent). Each epoch goes through the examples in a new order, without replacement, that `key` (a PRNG key or an
    integer) determines; the rest that does not fill a batch is left out of that epoch.

    Training ends after `epochs`, or when `stop` holds, a rule or several of which any will do (see `gdfx.stopping`), or
    when the loss or the gradients are not finite; `status` says which. `progress` shows a bar: by default where tqdm is
    installed.

    With `checkpoint`, a directory or a `gdfx.Checkpoints`, all that the run goes on from is saved every
    `checkpoint_seconds` and at the end. The same call made again resumes there by itself, and ends bit for bit where it
    would have ended if it had never been stopped; it goes by the optimizer and the epochs it is given, so that these
    may be changed in between. A run that has diverged is not saved.

    Raises:
        ValueError: the checkpoint is of another run; what differs is told, and nothing on the disk is changed.
    """
    began = time.perf_counter()
    size = check_data(data, batch_size)
    check_epochs(epochs)
    rule = reduce(operator.or_, (*check_rules(stop), diverged()))
    optimizer = as_arrays(as_transformation(optimizer))
    order = Shuffled(size, batch_size, key) if batch_size is not None else None
    per_epoch = order.steps_per_epoch if order else 1
    step = step_function(loss_fn, has_aux=has_aux)

    def body(constants, carry, row):
        optimizer, rule, data = constants
        state, metrics = step(optimizer, carry["state"], batch_of(data, row["examples"]))
        made = carry["step"] + 1
        signals = {name: metrics[name].astype(float) for name in ("loss", "grad_norm")}
        signals |= {"step": made.astype(float), "seconds": row["seconds"], "epoch_end": made % per_epoch == 0}
        rule_state, over = rule.check(carry["rule"], signals)
        return {"state": state, "rule": rule_state, "step": made, "over": over}, metrics

    def take(n):
        elapsed = np.full(n, time.perf_counter() - began, jnp.result_type(float))
        return {"examples": order.take(n) if order else None, "seconds": elapsed}

    def lost(carry):
        return bool(carry["over"]) and "diverged" in rule.status(carry["rule"]).split(" and ")

    carry = {
        "state": TrainState.create(optimizer, params),
        "rule": rule.init(),
        "step": jnp.zeros((), jnp.int32),
        "over": jnp.zeros((), bool),
    }
    constants = (optimizer, as_arrays(rule), jax.tree.map(jnp.asarray, data))
    total = epochs * per_epoch
    run = {"examples": size, "batch_size": batch_size, "key": seed_words(key), "stop": repr(rule)}
    saved = Resumable(checkpoint, checkpoint_seconds, optimizer, run)
    seconds = {"compile": 0.0, "run": 0.0}
    bar = progress_bar(total, progress, "fit")
    try:
        row = {"examples": order and jnp.zeros(order.batch_size, jnp.int32), "seconds": jnp.zeros((), float)}
        found = saved.restore(carry, lambda: jax.eval_shape(body, constants, carry, row)[1])
        if found is not None:
            carry = found.state
            if found.extra["run"]["stop"] != run["stop"]:
                carry["over"] = jnp.zeros((), bool)
            if order:
                order.skip(saved.made)
            began -= found.extra["seconds"]
            bar.update(saved.made)

        def watch(made, metrics, carry):
            bar.set_postfix_str(f"loss {metrics['loss'][-1]:.4g}", refresh=False)
            bar.update(made)
            saved.record(made, metrics, carry, time.perf_counter() - began, keep=not lost(carry))

        if saved.made < total and not carry["over"]:
            carry, _, seconds = run_loop(
                body, lambda carry: carry["over"], constants, carry, take, total - saved.made, watch
            )
            if not lost(carry):
                saved.save(carry, time.perf_counter() - began)
        history = saved.joined()
    finally:
        bar.close()
        saved.close()
    return FitResult(
        params=carry["state"].params,
        opt_state=carry["state"].opt_state,
        status=rule.status(carry["rule"]) if carry["over"] else "epochs",
        steps=int(carry["step"]),
        history=history,
        seconds=seconds,
    )
