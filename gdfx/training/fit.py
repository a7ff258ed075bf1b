"""Training from the first step to the last: `fit`."""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import jax
import jax.numpy as jnp

from ..core import Tree, as_transformation
from ..pytrees import as_arrays
from .data import Shuffled, batch_of, check_data, check_epochs
from .loop import run_loop
from .progress import progress_bar
from .step import TrainState, step_function
from .stopping import StoppingRule, check_rules, diverged

_MESSAGES = {
    "epochs": "all epochs were run",
    "max_steps": "the largest number of steps was reached",
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
    status: str  # the name of the rule that ended it, or "epochs"
    steps: int  # steps made
    history: dict[str, Any] = field(repr=False)  # one row a step: loss, grad_norm, and what the optimizer tells
    seconds: dict[str, float]  # to "compile" and to "run"

    @property
    def message(self) -> str:
        """The status as a sentence."""
        why = _MESSAGES.get(self.status, f"the rule {self.status} held")
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
) -> FitResult:
    """Trains `params` to make `loss_fn(params, batch)`, the mean loss over a batch, small on `data`.

    `data` is a pytree of arrays with one row an example; a batch is the same pytree with `batch_size` rows. With
    `batch_size=None` every step sees all of the data (gradient descent), with 1 a single example (stochastic gradient
    descent). Each epoch goes through the examples in a new order, without replacement, that `key` (a PRNG key or an
    integer) determines; the rest that does not fill a batch is left out of that epoch.

    Training ends after `epochs`, or when one of the rules in `stop` holds (see `gdfx.stopping`), or when the loss or
    the gradients are not finite; `status` says which. `progress` shows a bar: by default where tqdm is installed.
    """
    size = check_data(data, batch_size)
    check_epochs(epochs)
    rules = (*check_rules(stop), diverged())
    optimizer = as_arrays(as_transformation(optimizer))
    order = Shuffled(size, batch_size, key) if batch_size is not None else None
    per_epoch = order.steps_per_epoch if order else 1
    step = step_function(loss_fn, has_aux=has_aux)

    def body(constants, carry, row):
        optimizer, rules, data = constants
        state, metrics = step(optimizer, carry["state"], batch_of(data, row))
        made = carry["step"] + 1
        signals = {name: metrics[name].astype(float) for name in ("loss", "grad_norm")}
        signals |= {"step": made.astype(float), "epoch_end": made % per_epoch == 0}
        checked = [rule.check(s, signals) for rule, s in zip(rules, carry["rules"], strict=True)]
        reason = carry["reason"]
        for i, (_, over) in reversed(list(enumerate(checked))):  # the first rule that holds is the reason
            reason = jnp.where(over, i, reason)
        return {
            "state": state,
            "rules": [s for s, _ in checked],
            "step": made,
            "reason": reason,
        }, metrics

    carry = {
        "state": TrainState.create(optimizer, params),
        "rules": [rule.init() for rule in rules],
        "step": jnp.zeros((), jnp.int32),
        "reason": jnp.full((), -1, jnp.int32),
    }
    constants = (optimizer, as_arrays(rules), jax.tree.map(jnp.asarray, data))
    bar = progress_bar(epochs * per_epoch, progress, "fit")

    def watch(made, metrics):
        bar.set_postfix_str(f"loss {metrics['loss'][-1]:.4g}", refresh=False)
        bar.update(made)

    try:
        carry, history, seconds = run_loop(
            body,
            lambda carry: carry["reason"] >= 0,
            constants,
            carry,
            order.take if order else lambda n: None,
            epochs * per_epoch,
            watch,
        )
    finally:
        bar.close()
    reason = int(carry["reason"])
    return FitResult(
        params=carry["state"].params,
        opt_state=carry["state"].opt_state,
        status="epochs" if reason < 0 else type(rules[reason]).__name__,
        steps=int(carry["step"]),
        history=history,
        seconds=seconds,
    )
