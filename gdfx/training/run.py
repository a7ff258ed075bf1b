"""One run of `fit`: what it holds, and what it does between the compiled calls."""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from ..core import GradientTransformation, Tree, as_transformation
from ..inspection import effective
from ..pytrees import as_arrays
from .evaluation import Evaluations
from .loop import joined
from .result import Report
from .resume import Resumable
from .sources import Arrays, Batches
from .stopping import StoppingRule, signals_of


@dataclass
class Run:
    """A training run, of which `body` is a step; `take` and `watch` are called between steps."""

    step: Callable[..., Any]  # of `step_function`
    optimizer: GradientTransformation
    source: Arrays | Batches
    rule: StoppingRule
    total: int | None  # steps; None where it is not known
    evaluations: Evaluations
    evaluate_every: int | None
    watchers: tuple[Callable[[Report], Any], ...]
    watch_every: int | None
    saved: Resumable
    carry: dict[str, Any]
    clock: Callable[[], float]  # seconds since training began, in this process
    stop: Callable[[], bool]  # whether it was interrupted
    bar: Any = None
    made: int = 0
    taken: int = 0
    earlier: float = 0.0  # seconds, in the processes before
    replaced: bool = False  # whether a watcher has replaced the optimizer
    history: list[Tree] = field(default_factory=list)  # in parts
    unreported: list[Tree] = field(default_factory=list)

    @property
    def seconds(self) -> float:
        """Seconds since training began, without the time between processes."""
        return self.earlier + self.clock()

    @property
    def constants(self) -> Tree:
        """What all steps share."""
        return as_arrays(self.optimizer), as_arrays(self.rule), self.source.constants

    @property
    def lost(self) -> bool:
        """Whether training has diverged."""
        over = bool(self.carry["over"])
        return over and "diverged" in self.rule.status(self.carry["rule"]).split(" and ")

    def body(self, constants: Tree, carry: Tree, row: Tree) -> tuple[Tree, Tree]:
        """A step, traced."""
        optimizer, rule, data = constants
        batch = self.source.batch(data, row)
        state, metrics = self.step(optimizer, carry["state"], (batch, row.get("real")) if self.source.masked else batch)
        made = carry["step"] + 1
        rule_state, over = rule.check(carry["rule"], signals_of(metrics, made, row["seconds"], row["epoch_end"]))
        if self.evaluations.evaluate is not None:  # `watch` checks once the evaluation is known
            rule_state = jax.tree.map(lambda new, old: jnp.where(row["evaluated"], old, new), rule_state, carry["rule"])
            over &= ~row["evaluated"]
        return {"state": state, "rule": rule_state, "step": made, "over": over}, metrics

    def take(self, n: int) -> Tree | None:
        """The rows of up to `n` steps, up to the next evaluation or report."""
        for every in (self._evaluate_every, self.watch_every):
            n = min(n, every - self.taken % every) if every else n
        n = n if self.total is None else min(n, self.total - self.taken)
        rows = self.source.take(n) if n else None
        if rows is None:
            return None
        n = len(rows["epoch_end"])
        self.taken += n
        rows["seconds"] = np.full(n, self.seconds, jnp.result_type(float))
        if self.evaluations.evaluate is not None:
            last = self._evaluated_at(self.taken, rows["epoch_end"][-1])
            rows["evaluated"] = np.arange(1, n + 1) == (n if last else 0)
        return rows

    def watch(self, made: int, outs: Tree, carry: Tree) -> tuple[Tree, Tree, bool]:
        """Goes on to evaluate, report and save, where that is due, after `made` more steps."""
        self.made, self.carry = self.made + made, carry
        self.history.append(outs)
        self.unreported.append(outs)
        scores, epoch_end = None, self.source.epoch(self.made)[1]
        if self.evaluations.evaluate is not None and not carry["over"] and self._evaluated_at(self.made, epoch_end):
            last = {name: outs[name][-1] for name in ("loss", "grad_norm")}
            scores = self._evaluate() if np.isfinite(last["loss"]) else {}
            signals = signals_of(last, self.made, self.seconds, epoch_end) | jax.tree.map(jnp.asarray, scores)
            rule_state, over = self.constants[1].check(carry["rule"], signals)
            self.carry = carry | {"rule": rule_state, "over": jnp.asarray(over)}
        self._tell(outs)
        self.bar.update(made)
        if scores or self.watch_every is None or self.made % self.watch_every == 0:
            self.report(scores or None)
        if self.saved.due():
            self.save()
        return self.constants, self.carry, bool(self.carry["over"]) or self.stop()

    def begin(self) -> None:
        """Evaluates and reports the start, or goes on from a checkpoint."""
        if not self._restore() and self.evaluations.evaluate is not None:
            self._evaluate()
        known = self.evaluations.history.keys() - {"step"}
        if unknown := self.rule.evaluations() - known:
            raise ValueError(
                f"stop is {self.rule}, but evaluate returns no {', '.join(sorted(unknown))}; it returns "
                f"{', '.join(sorted(known)) or 'nothing, as there is none'}"
            )
        self.report(None if self.made else self.evaluations.last)

    def finish(self, interrupted: bool) -> None:
        """Evaluates, reports and saves what is not yet."""
        scores = None
        if self.evaluations.evaluate is not None and not (interrupted or self.lost):
            scores = self._evaluate() if self.evaluations.last_step != self.made else None
        if scores or self.unreported:
            self.report(scores)
        self.save()

    def report(self, scores: dict[str, float] | None) -> None:
        """Tells the watchers of the steps since the last report, and takes over what optimizer they return."""
        if not self.watchers:
            self.unreported = []
            return
        history = joined(self.unreported) if self.unreported else {}
        self.unreported = []
        for watcher in self.watchers:
            epoch = self.source.epoch(self.made)[0]
            found = watcher(Report(self.made, epoch, history, scores, self.optimizer, self.seconds))
            if found is not None:
                self._replace(found, watcher)

    def save(self) -> None:
        """Saves the run, if it is to be saved."""
        if self.lost or not self.made:
            return
        self.history = [joined(self.history)]
        extra = {
            "history": {name: jax.tree.leaves(part) for name, part in self.history[0].items()},
            "position": self.source.position(self.made),
            "seconds": self.seconds,
            "evaluations": self.evaluations.saved(),
            "replaced": self.replaced,
        }
        metrics = {"loss": self.history[0]["loss"][-1]} | (self.evaluations.last or {})
        self.saved.save(self.made, self._state(), self.optimizer, extra, metrics)

    def _restore(self) -> bool:
        found = self.saved.restore(self._state(), self.optimizer)
        if found is None:
            return False
        self.made = self.taken = found.step
        self.carry = found.state["carry"]
        if found.extra["run"]["stop"] != self.saved.run["stop"]:
            self.carry["over"] = jnp.zeros((), bool)
        self.source.go_to(found.step, found.extra["position"])
        self.evaluations.restore(found.extra["evaluations"], found.state["best_params"])
        self.earlier = found.extra["seconds"]
        if found.extra["replaced"]:
            self.optimizer, self.replaced = found.optimizer, True
        parts = found.extra["history"]
        self.history = [{name: part[0] if name != "aux" else part for name, part in parts.items()}]
        return True

    def with_aux_like(self, rows: Tree) -> None:
        """Gives the aux of the steps before, of which a checkpoint knows the leaves, the structure it has in `body`."""
        if self.history and "aux" in self.history[0]:
            row = jax.tree.map(lambda r: r[0], rows)
            aux = jax.eval_shape(self.body, self.constants, self.carry, row)[1]["aux"]
            self.history[0]["aux"] = jax.tree.unflatten(jax.tree.structure(aux), self.history[0]["aux"])

    def _state(self) -> dict[str, Any]:
        best = None
        if self.evaluations.evaluate is not None:
            best = self.carry["state"].params if self.evaluations.best_params is None else self.evaluations.best_params
        return {"carry": self.carry, "best_params": best}

    @property
    def _evaluate_every(self) -> int | None:
        return (self.evaluate_every or self.source.steps_per_epoch) if self.evaluations.evaluate is not None else None

    def _evaluated_at(self, step: int, epoch_end: bool) -> bool:
        return step % self.evaluate_every == 0 if self.evaluate_every else bool(epoch_end)

    def _evaluate(self) -> dict[str, float]:
        return self.evaluations(self.made, self.optimizer, self.carry["state"])

    def _replace(self, found: Any, watcher: Any) -> None:
        name = getattr(watcher, "__name__", type(watcher).__name__)
        try:
            new = as_transformation(found)
        except TypeError:
            raise TypeError(
                f"watch: {name} returned a {type(found).__name__}, expected None, or an optimizer to go on with"
            ) from None
        shapes = [jax.tree.map(lambda x: (x.shape, x.dtype), as_arrays(x)) for x in (new, self.optimizer)]
        if jax.tree.structure(shapes[0]) != jax.tree.structure(shapes[1]) or shapes[0] != shapes[1]:
            raise ValueError(
                f"watch: {name} returned {new}, which differs from {self.optimizer} by more than numbers: expected "
                "what report.optimizer.replace(...) gives"
            )
        self.optimizer, self.replaced = new, True

    def _tell(self, outs: Tree) -> None:
        """Shows the last loss and the learning rate on the bar."""
        if not self.bar.shown:
            return
        text = f"loss {outs['loss'][-1]:.4g}"
        try:
            rates = _rates(as_arrays(self.optimizer), self.carry["state"].opt_state)
        except (TypeError, ValueError):  # an optimizer of another library
            rates = []
        self.bar.set_postfix_str(text + (f", rate {float(rates[0]):.3g}" if len(rates) == 1 else ""), refresh=False)


@jax.jit
def _rates(optimizer: Any, state: Tree) -> list[jax.Array]:
    return [rate for path, rate in effective(optimizer, state).items() if path.endswith("learning_rate")]
