"""When to stop: rules as pytrees, checked after each step inside the compiled program."""

from typing import Any, Literal, NoReturn

import jax
import jax.numpy as jnp
import numpy as np

from ..core import Tree
from ..pytrees import NonNegative, ScalarOrSchedule, Value, pytree, static


class StoppingRule(Value):
    """Says after each step whether training is over.

    Rules compose: `a | b` stops when either holds, `a & b` when both do at the same step, as in
    `max_steps(1000) | (target(0.1) & gradient_norm(1e-3))`.

    Subclasses are `@pytree` classes, whose name becomes the status of the result. The signals are float scalars, of the
    dtype of the rule's numbers: `loss` and `grad_norm` from before the step; `step`, the number of steps made;
    `seconds`, the time since training began, as known at the start of the compiled call that makes the step; and the
    bool `epoch_end`, true at the last step of an epoch. At steps after which the params are evaluated, also what that
    gave, by its names. A loop of one's own gives those that its rules read.
    """

    def __post_init__(self):
        super().__post_init__()
        for name in self._ranges:
            if callable(value := getattr(self, name)):
                raise TypeError(f"{type(self).__name__}: {name} is {value!r}, expected a number")

    def init(self) -> Tree:
        """The state before the first step."""
        return ()

    def check(self, state: Tree, signals: dict[str, jax.Array]) -> tuple[Tree, jax.Array]:
        """The next state, and whether to stop; may be traced."""
        raise NotImplementedError

    def evaluations(self) -> frozenset[str]:
        """The names of evaluations that the rule reads."""
        metric = getattr(self, "metric", None)
        return frozenset() if metric is None else frozenset({metric})

    def status(self, state: Tree) -> str:
        """The name of the rule, which held when `check` returned `state`; of a composed one, of the parts that held."""
        return type(self).__name__

    def __or__(self, other: "StoppingRule") -> "any_of":
        return any_of((self, other))

    def __and__(self, other: "StoppingRule") -> "all_of":
        return all_of((self, other))

    def __bool__(self) -> NoReturn:
        # `a and b` would be b alone.
        raise TypeError(f"{self!r} is neither true nor false: compose rules with | and &, not with `or` and `and`")


class _Composed(StoppingRule):
    """Several rules, checked together; those of its own kind among them are taken apart."""

    rules: tuple[StoppingRule, ...]

    def __post_init__(self):
        name, flat = type(self).__name__, []
        if not isinstance(self.rules, tuple | list):
            raise TypeError(f"{name}: rules is {self.rules!r}, expected a tuple of stopping rules")
        for rule in self.rules:
            if not isinstance(rule, StoppingRule):
                raise TypeError(f"{name}: {rule!r} is no stopping rule, expected one such as gdfx.stopping.target(0.1)")
            flat += rule.rules if isinstance(rule, type(self)) else [rule]
        if len(flat) < 2:
            raise ValueError(f"{name}: there are {len(flat)} rules, expected at least 2")
        object.__setattr__(self, "rules", tuple(flat))
        super().__post_init__()

    def init(self):
        return {"rules": [rule.init() for rule in self.rules], "held": jnp.zeros(len(self.rules), bool)}

    def evaluations(self):
        return frozenset().union(*(rule.evaluations() for rule in self.rules))

    def _checked(self, state: Tree, signals: dict[str, jax.Array]) -> Tree:
        checked = [rule.check(s, signals) for rule, s in zip(self.rules, state["rules"], strict=True)]
        return {"rules": [s for s, _ in checked], "held": jnp.stack([jnp.asarray(over, bool) for _, over in checked])}

    def _statuses(self, state: Tree) -> list[str]:
        held = zip(self.rules, state["rules"], np.asarray(state["held"]), strict=True)
        return [rule.status(s) for rule, s, over in held if over]


@pytree
class any_of(_Composed):
    """Stops when one of `rules` holds, `a | b`; the status is that of the first that does."""

    rules: tuple[StoppingRule, ...]

    def check(self, state, signals):
        state = self._checked(state, signals)
        return state, state["held"].any()

    def status(self, state):
        if statuses := self._statuses(state):
            return statuses[0]
        raise ValueError(f"status: none of {self} holds in this state")

    def __repr__(self):
        return " | ".join(map(repr, self.rules))


@pytree
class all_of(_Composed):
    """Stops when all of `rules` hold at the same step, `a & b`; the status is theirs, as in "target and max_steps"."""

    rules: tuple[StoppingRule, ...]

    def check(self, state, signals):
        state = self._checked(state, signals)
        return state, state["held"].all()

    def status(self, state):
        if len(statuses := self._statuses(state)) == len(self.rules):
            return " and ".join(statuses)
        raise ValueError(f"status: not all of {self} hold in this state")

    def __repr__(self):
        return " & ".join(f"({rule})" if isinstance(rule, any_of) else repr(rule) for rule in self.rules)


@pytree
class max_steps(StoppingRule):
    """Stops after `steps` steps."""

    steps: NonNegative

    def check(self, state, signals):
        return state, signals["step"] >= self.steps


@pytree
class wall_time(StoppingRule):
    """Stops when training has taken `seconds`, with the time it took to compile.

    A compiled program cannot read the clock, and `fit` makes many steps in one call of it: this is checked with the
    time at which the call began, and may hold too late by such a call, about a quarter of a second, and one step.
    """

    seconds: NonNegative

    def check(self, state, signals):
        return state, signals["seconds"] >= self.seconds


@pytree
class gradient_norm(StoppingRule):
    """Stops when the L2 norm of all gradients is at most `tolerance`."""

    tolerance: NonNegative

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

    def check(self, state, signals):
        finite = jnp.isfinite(signals["loss"]) & jnp.isfinite(signals["grad_norm"])
        return state, ~finite | (signals["loss"] > self.limit)


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
