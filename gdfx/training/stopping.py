"""When to stop: rules as pytrees, checked after each step inside the compiled program."""

from typing import Any

import jax
import jax.numpy as jnp

from ..core import Tree
from ..pytrees import NonNegative, ScalarOrSchedule, Value, pytree


class StoppingRule(Value):
    """Says after each step whether training is over.

    Subclasses are `@pytree` classes, whose name becomes the status of the result. The signals are float scalars, of the
    dtype of the rule's numbers: `loss` and `grad_norm` from before the step, and `step`, the number of steps made; and
    the bool `epoch_end`, true at the last step of an epoch.
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


@pytree
class max_steps(StoppingRule):
    """Stops after `steps` steps."""

    steps: NonNegative

    def check(self, state, signals):
        return state, signals["step"] >= self.steps


@pytree
class gradient_norm(StoppingRule):
    """Stops when the L2 norm of all gradients is at most `tolerance`."""

    tolerance: NonNegative

    def check(self, state, signals):
        return state, signals["grad_norm"] <= self.tolerance


@pytree
class target(StoppingRule):
    """Stops when the loss is at most `loss`."""

    loss: ScalarOrSchedule

    def check(self, state, signals):
        return state, signals["loss"] <= self.loss


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

    With full batches an epoch is one step.
    """

    patience: NonNegative = 10
    min_delta: NonNegative = 0.0

    def init(self):
        start = {"sum": 0.0, "steps": 0.0, "best": jnp.inf, "stale": 0.0}
        return {name: jnp.full((), value) for name, value in start.items()}

    def check(self, state, signals):
        end = signals["epoch_end"]
        total, steps = state["sum"] + signals["loss"], state["steps"] + 1
        better = total / steps < state["best"] - self.min_delta
        best = jnp.where(end & better, total / steps, state["best"])
        stale = jnp.where(end, jnp.where(better, 0.0, state["stale"] + 1), state["stale"])
        kept = {
            "sum": jnp.where(end, 0.0, total),
            "steps": jnp.where(end, 0.0, steps),
            "best": best,
            "stale": stale,
        }
        return kept, end & (stale >= self.patience)


def check_rules(stop: Any) -> tuple[StoppingRule, ...]:
    """`stop`, one rule or several, as a tuple."""
    rules = tuple(stop) if isinstance(stop, tuple | list) else (stop,)
    for rule in rules:
        if not isinstance(rule, StoppingRule):
            raise TypeError(f"stop holds {rule!r}, expected stopping rules such as gdfx.stopping.target(0.1)")
    return rules
