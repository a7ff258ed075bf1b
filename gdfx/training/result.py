"""What training tells: reports while it runs, and the result."""

from dataclasses import dataclass, field
from typing import Any

from ..core import Tree
from .plot import plot_fit

_MESSAGES = {
    "epochs": "all epochs were run",
    "interrupted": "it was interrupted",
    "max_steps": "the largest number of steps was reached",
    "wall_time": "the time was up",
    "gradient_norm": "the norm of the gradients fell to the tolerance",
    "target": "the target was reached",
    "diverged": "the loss or its gradients were not finite, or too large: try a smaller learning rate",
    "no_progress": "there was no more progress",
}


@dataclass(frozen=True)
class Report:
    """What `watch` of `fit` is told: of the start, and then of each part of the run."""

    step: int  # steps made so far
    epoch: int  # whole epochs made so far
    history: dict[str, Any] = field(repr=False)  # in NumPy, one row for each step since the last report
    evaluation: dict[str, float] | None  # of the params after `step`, if they were evaluated now
    optimizer: Any  # in force
    seconds: float  # since training began


@dataclass(frozen=True, repr=False)
class FitResult:
    """What training ended with."""

    params: Tree
    opt_state: Tree
    status: str  # the name of the rule that ended it, "a and b" for one of several parts, "epochs" or "interrupted"
    steps: int  # steps made
    history: dict[str, Any] = field(repr=False)  # one row a step: loss, grad_norm, and what the optimizer tells
    seconds: dict[str, float]  # to "compile" and to "run"
    evaluations: dict[str, Any] = field(repr=False)  # one row an evaluation: step, and what `evaluate` returned
    best_params: Tree  # of the best evaluation, as evaluated; None if nothing says which it is
    best_step: int | None  # the steps made until then
    executor: str  # "scan" or "loop"; "none" where there was nothing left to do

    @property
    def message(self) -> str:
        """The status as a sentence."""
        why = " and ".join(_MESSAGES.get(name, f"the rule {name} held") for name in self.status.split(" and "))
        return f"stopped after {self.steps} steps: {why}"

    def plot(self, path: Any = None) -> Any:
        """Draws the loss, the evaluations and the norm of the gradients against the steps.

        Returns the figure, and writes it to `path` if that is given; otherwise it is one of pyplot's, for `plt.show()`.
        """
        return plot_fit(self, path)

    def __repr__(self) -> str:
        loss = f", loss={self.history['loss'][-1]:.6g}" if self.steps else ""
        best = f", best_step={self.best_step}" if self.best_step is not None else ""
        return f"FitResult(status={self.status!r}, steps={self.steps}{loss}{best})"
