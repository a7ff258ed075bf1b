"""Evaluation on data that is not trained on: `evaluator`, and the best params of a run."""

import math
from collections.abc import Callable
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np

from ..core import Tree, eval_params
from .data import check_data, check_steps

TAKEN = frozenset({"loss", "grad_norm", "step", "seconds", "epoch_end"})
"""Signals of training, whose names no evaluation may have."""


def evaluator(
    data: Tree, *, batch_size: int | None = None, **metrics: Callable[[Tree, Tree], Any]
) -> Callable[[Tree], dict[str, jax.Array]]:
    """A function `evaluate(params)` that gives the mean of each of `metrics` over all of `data`.

    `data` is a pytree of arrays with one row an example. A metric is a function of params and a batch: its mean over
    the batch, as a loss is, or one number for each example. It is called, compiled, with `batch_size` examples at a
    time, in their order, and once with what is left over; with `batch_size=None` with all at once. No example is left
    out or counted twice.

    For `evaluate=` of `fit` and `sweep`: `evaluator((x, y), batch_size=500, val_loss=loss_fn)`.
    """
    size = check_data(data, None)
    if batch_size is not None:
        check_steps("batch_size", batch_size, "examples")
    if not metrics:
        raise ValueError("evaluator: there are no metrics, expected functions by name, such as val_loss=loss_fn")
    for name, metric in metrics.items():
        if not callable(metric):
            raise TypeError(
                f"evaluator: {name} is a {type(metric).__name__}, expected a function of params and a batch"
            )
    data = jax.tree.map(jnp.asarray, data)
    step = size if batch_size is None else batch_size

    @jax.jit
    def means(params: Tree, batch: Tree) -> dict[str, jax.Array]:
        n = len(jax.tree.leaves(batch)[0])
        found = {name: jnp.asarray(metric(params, batch)) for name, metric in metrics.items()}
        for name, value in found.items():
            if value.shape not in ((), (n,)):
                raise ValueError(
                    f"evaluator: {name} has shape {value.shape}, expected a scalar, or ({n},), one an example"
                )
        return {
            name: jnp.mean(value, dtype=jnp.promote_types(value.dtype, jnp.float32)) for name, value in found.items()
        }

    def evaluate(params: Tree) -> dict[str, jax.Array]:
        totals = {}
        for start in range(0, size, step):
            batch = jax.tree.map(lambda a, start=start: a[start : start + step], data)
            part = min(step, size - start) / size
            for name, mean in means(params, batch).items():
                totals[name] = totals[name] + part * mean if name in totals else part * mean
        return {name: totals[name] for name in metrics}  # jit has sorted them

    return evaluate


class Evaluations:
    """The evaluations of one run, and the best params by one of them."""

    def __init__(self, evaluate: Callable[[Tree], Any] | None, metric: str | None, mode: Literal["min", "max"]):
        if mode not in ("min", "max"):
            raise ValueError(f'mode is {mode!r}, expected "min" or "max"')
        if evaluate is None and metric is not None:
            raise ValueError(f"metric is {metric!r}, but nothing is evaluated: pass evaluate=")
        self.evaluate, self.metric, self.sign = evaluate, metric, 1 if mode == "min" else -1
        self.history: dict[str, list[float]] = {}
        self.best_params: Tree = None
        self.best_step: int | None = None
        self.best_score = math.inf

    @property
    def last(self) -> dict[str, float] | None:
        """The last evaluation."""
        return {name: values[-1] for name, values in self.history.items() if name != "step"} or None

    @property
    def last_step(self) -> int | None:
        """The step of the last evaluation."""
        return int(self.history["step"][-1]) if self.history else None

    def __call__(self, step: int, optimizer: Any, state: Any) -> dict[str, float]:
        """Evaluates the params of a `TrainState`, those to be used where the optimizer keeps an average."""
        # Copies, which outlive the step that they are donated to.
        params = jax.tree.map(lambda p: jnp.array(p, copy=True), eval_params(optimizer, state.opt_state, state.params))
        scores = self._checked(self.evaluate(params) if self.evaluate else {})
        for name, value in {"step": step, **scores}.items():
            self.history.setdefault(name, []).append(value)
        name = self.metric or (next(iter(scores)) if len(scores) == 1 else None)
        if name is not None:  # of several, none is better than another
            score = self.sign * scores[name]
            if self.best_step is None or score < self.best_score or math.isnan(self.best_score) > math.isnan(score):
                self.best_params, self.best_step, self.best_score = params, step, score
        return scores

    def _checked(self, scores: Any) -> dict[str, float]:
        if not isinstance(scores, dict) or not scores:
            found = "an empty dict" if isinstance(scores, dict) else f"a {type(scores).__name__}"
            raise TypeError(f"evaluate returned {found}, expected a dict of scalars by name")
        for name, score in scores.items():
            if name in TAKEN:
                raise ValueError(f"evaluate: {name} is the name of a number of the training itself: choose another")
            if not isinstance(score, int | float | np.number | np.ndarray | jax.Array):
                raise TypeError(f"evaluate: {name} is a {type(score).__name__}, expected a scalar")
            if np.shape(score) != ():
                raise ValueError(f"evaluate: {name} has shape {np.shape(score)}, expected a scalar")
        if self.history and (names := self.history.keys() - {"step"}) != scores.keys():
            raise ValueError(f"evaluate returned {', '.join(scores)}, expected {', '.join(names)} as the first time")
        if self.metric is not None and self.metric not in scores:
            raise ValueError(f"metric is {self.metric!r}, expected one of what evaluate returns: {', '.join(scores)}")
        return {name: float(score) for name, score in scores.items()}

    def arrays(self) -> dict[str, np.ndarray]:
        """All evaluations, a row each."""
        return {name: np.array(values) for name, values in self.history.items()}

    def saved(self) -> dict[str, Any]:
        """What a checkpoint holds of this beside the best params."""
        return {"history": self.history, "best_step": self.best_step, "best_score": self.best_score}

    def restore(self, saved: dict[str, Any], best_params: Tree) -> None:
        """Goes on with what `saved` gave."""
        self.history = {name: list(values) for name, values in saved["history"].items()}
        self.best_step, self.best_score = saved["best_step"], saved["best_score"]
        self.best_params = None if self.best_step is None else best_params
