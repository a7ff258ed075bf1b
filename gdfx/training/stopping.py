"""When to stop: rules as pytrees, checked after each step inside the compiled program."""

from typing import Any, ClassVar, Literal

import jax
import jax.numpy as jnp

from ..pytrees import Interval, NonNegative, Positive, ScalarOrSchedule, pytree, static
from .rules import StoppingRule as StoppingRule, all_of as all_of, any_of as any_of


@pytree
class max_steps(StoppingRule):
    """Stops after `steps` steps."""

    steps: NonNegative

    converged: ClassVar[bool] = False
    says: ClassVar[str] = (
        "no other rule holds after as many steps as were allowed. Allow more, scale the params to be of one size, or "
        "try another method"
    )

    def check(self, state, signals):
        return state, signals["step"] >= self.steps


@pytree
class wall_time(StoppingRule):
    """Stops when training has taken `seconds`, with the time it took to compile.

    A compiled program cannot read the clock, and `fit` makes many steps in one call of it: this is checked with the
    time at which the call began, and may hold too late by such a call, about a second, and one step.
    """

    seconds: NonNegative

    converged: ClassVar[bool] = False
    says: ClassVar[str] = "the time is over"

    def check(self, state, signals):
        return state, signals["seconds"] >= self.seconds


@pytree
class gradient_norm(StoppingRule):
    """Stops when the L2 norm of all gradients is at most `tolerance`."""

    tolerance: NonNegative

    says: ClassVar[str] = "the norm of the gradient is at most the tolerance"

    def check(self, state, signals):
        return state, signals["grad_norm"] <= self.tolerance


@pytree
class target(StoppingRule):
    """Stops when the loss of a step, or with `metric` an evaluation of that name, is at most `value`.

    With `mode="max"`, when it is at least that: `target(0.95, metric="val_accuracy", mode="max")`.
    """

    value: ScalarOrSchedule
    metric: str | None = static(default=None)
    mode: Literal["min", "max"] = static(default="min")

    says: ClassVar[str] = "the target is reached"

    def __post_init__(self):
        super().__post_init__()
        _check_mode(self)

    def check(self, state, signals):
        found = signals.get(self.metric or "loss")
        if found is None:
            return state, jnp.zeros((), bool)
        return state, found <= self.value if self.mode == "min" else found >= self.value


@pytree
class diverged(StoppingRule):
    """Stops when the loss or the norm of the gradients is not finite, or the loss is above `limit`.

    `fit` always checks this, so that params which have been lost are not trained further.
    """

    limit: ScalarOrSchedule = float("inf")

    converged: ClassVar[bool] = False
    says: ClassVar[str] = (
        "where the next step led, the loss or its gradient is not finite, or the loss is above the limit. Look at the "
        "loss there: it may have no minimum; else begin elsewhere, bound the params, or make shorter steps"
    )

    def check(self, state, signals):
        finite = jnp.isfinite(signals["loss"]) & jnp.isfinite(signals["grad_norm"])
        return state, ~finite | (signals["loss"] > self.limit)


@pytree
class unbounded(StoppingRule):
    """Stops when the loss is below -`limit`: it seems to have no minimum."""

    limit: Positive = 1e30

    converged: ClassVar[bool] = False
    says: ClassVar[str] = "the loss falls as far as one likes: it has no minimum, or only within bounds"

    def check(self, state, signals):
        return state, signals["loss"] < -self.limit


@pytree
class no_progress(StoppingRule):
    """Stops when the mean loss of an epoch has not fallen by more than `min_delta` for `patience` epochs in a row.

    With full batches an epoch is one step. With `metric`, it is an evaluation of that name instead, for `patience`
    evaluations in a row; `mode="max"` is for one that is to rise.
    """

    patience: NonNegative = 10
    min_delta: NonNegative = 0.0
    metric: str | None = static(default=None)
    mode: Literal["min", "max"] = static(default="min")

    says: ClassVar[str] = "the loss, or the metric, no longer falls by more than min_delta"

    def __post_init__(self):
        super().__post_init__()
        _check_mode(self)

    def init(self):
        start = {"sum": 0.0, "steps": 0.0, "best": jnp.inf, "stale": 0.0}
        return {name: jnp.full((), value) for name, value in start.items()}

    def check(self, state, signals):
        if self.metric not in {None, *signals}:
            return state, jnp.zeros((), bool)
        end = signals["epoch_end"] if self.metric is None else jnp.ones((), bool)
        total, steps = state["sum"] + signals[self.metric or "loss"], state["steps"] + 1
        mean = total / steps if self.mode == "min" else -total / steps
        better = mean < state["best"] - self.min_delta
        best = jnp.where(end & better, mean, state["best"])
        stale = jnp.where(end, jnp.where(better, 0.0, state["stale"] + 1), state["stale"])
        kept = {
            "sum": jnp.where(end, 0.0, total),
            "steps": jnp.where(end, 0.0, steps),
            "best": best,
            "stale": stale,
        }
        return kept, end & (stale >= self.patience)


@pytree
class small_step(StoppingRule):
    """Stops when a step was made whose norm is at most `rtol` times that of the params; of `minimize`."""

    rtol: NonNegative = 1e-8

    says: ClassVar[str] = (
        "the last step hardly changed the params. If the gradient there is large, the loss is as exact as its dtype "
        "allows, or not smooth"
    )

    def check(self, state, signals):
        size, moved = (_signal(self, signals, name) for name in ("step_norm", "moved"))
        return state, moved & (size <= self.rtol * _signal(self, signals, "params_norm"))


@pytree
class small_decrease(StoppingRule):
    """Stops when a step lowers the loss by at most `rtol` times its absolute value; of `minimize`."""

    rtol: NonNegative = 1e-8

    says: ClassVar[str] = "the last step hardly lowered the loss"

    def check(self, state, signals):
        decrease, moved = (_signal(self, signals, name) for name in ("decrease", "moved"))
        return state, (signals["step"] > 0) & moved & (decrease <= self.rtol * jnp.abs(signals["loss"]))


@pytree
class stalled(StoppingRule):
    """Stops when `patience` steps in a row had at most `rtol` times the norm of the params, made or not; of `minimize`.

    Line searches that fail, steps of 0, end so: after the first, methods with a memory begin anew along the gradient.
    """

    patience: Interval = 2
    rtol: NonNegative = 0.0

    converged: ClassVar[bool] = False
    says: ClassVar[str] = (
        "no step was found that lowers the loss. It may be as low as its dtype can tell: try float64, or a larger "
        "tolerance. Or the loss is not smooth here, or it and its gradient do not belong together"
    )

    def init(self):
        return jnp.zeros((), jnp.int32)

    def check(self, state, signals):
        size, of_params = (_signal(self, signals, name) for name in ("step_norm", "params_norm"))
        state = jnp.where(size <= self.rtol * of_params, state + 1, 0)
        return state, state.astype(float) >= self.patience


def _signal(rule: StoppingRule, signals: dict[str, jax.Array], name: str) -> jax.Array:
    if name not in signals:
        raise ValueError(f"stop: {type(rule).__name__} reads {name}, which only gdfx.minimize tells")
    return signals[name]


def _check_mode(rule: "target | no_progress") -> None:
    name = type(rule).__name__
    if rule.mode not in ("min", "max"):
        raise ValueError(f'{name}: mode is {rule.mode!r}, expected "min" or "max"')
    if rule.metric is not None and not isinstance(rule.metric, str):
        raise TypeError(f"{name}: metric is {rule.metric!r}, expected the name of an evaluation")


def check_rules(stop: Any) -> tuple[StoppingRule, ...]:
    """`stop`, one rule or several, as a tuple."""
    rules = tuple(stop) if isinstance(stop, tuple | list) else (stop,)
    for rule in rules:
        if not isinstance(rule, StoppingRule):
            raise TypeError(f"stop holds {rule!r}, expected stopping rules such as gdfx.stopping.target(0.1)")
    return rules


def signals_of(metrics: Any, step: Any, seconds: Any, epoch_end: Any) -> dict[str, jax.Array]:
    """The signals that rules read, of one dtype wherever they come from."""
    numbers = {"loss": metrics["loss"], "grad_norm": metrics["grad_norm"], "step": step, "seconds": seconds}
    return {name: jnp.asarray(x).astype(float) for name, x in numbers.items()} | {"epoch_end": jnp.asarray(epoch_end)}
