"""What came of a sweep: the members ranked, as a table, and the best of them."""

from dataclasses import dataclass, field
from typing import Any

import jax
import numpy as np

from ..core import GradientTransformation, Tree

STATUSES = ("finished", "interrupted", "culled", "diverged", "failed")
"""How a member ended, in the order in which members are ranked."""
LONG = 60
"""The most characters of a cell of the table."""


@dataclass(frozen=True)
class Best:
    """The best member of a sweep."""

    optimizer: GradientTransformation  # with plain numbers: its repr evaluates back
    point: dict[str, Any]  # what was varied, and where it stands: hyperparameters, batch_size, static settings
    params: Tree  # of its best seed
    seed: int
    index: int  # which of the members it is
    metrics: dict[str, float]  # means over the seeds


@dataclass(frozen=True, repr=False)
class SweepResult:
    """The runs of a sweep: a member is one optimizer with one choice of the settings; printing it gives a table."""

    points: list[dict[str, Any]]  # for each member what differs between members; a name that its kind lacks is absent
    optimizers: list[GradientTransformation]  # for each member, with plain numbers: the repr evaluates back
    seeds: list[int]
    params: list[Tree]  # for each member, with leaves of shape (seeds, ...)
    # Of shape (members, seeds, steps): loss, and what the optimizers tell; NaN where a member made no such step.
    history: dict[str, np.ndarray]
    metrics: dict[str, np.ndarray]  # of shape (members, seeds): train_loss (mean of the last epoch), and others
    diverged: np.ndarray  # bools of shape (members, seeds)
    diverged_at: np.ndarray  # of that shape: the step that was not finite, -1 if there was none
    culled_at: np.ndarray  # of shape (members,): the steps that were made when it was dropped, -1 if it was not
    errors: dict[int, str]  # by member: why it could not be compiled or run
    metric: str
    mode: str
    lineage: list[dict[str, Any]] | None = None  # of a population: {"step", "member", "from", "values"} of each copy
    executor: str = ""  # what was chosen, and why
    seconds: dict[str, float] = field(default_factory=dict)
    # Of shape (members,): steps made when the sweep was interrupted, -1 for who was done; None if all were.
    interrupted_at: np.ndarray | None = None

    @property
    def varied(self) -> dict[str, np.ndarray]:
        """What differs between the members, by name, one value for each member.

        In float64, with NaN where a member has no such number; of objects, with None, if not all are numbers.
        """
        found = {}
        for name in dict.fromkeys(name for point in self.points for name in point):
            values = [point.get(name) for point in self.points]
            numeric = all(_is_number(point[name]) for point in self.points if name in point)
            column = np.empty(len(values), float if numeric else object)
            for i, value in enumerate(values):
                column[i] = np.nan if numeric and value is None else value
            found[name] = column
        return found

    @property
    def size(self) -> str:
        """How many members and seeds there are, in words."""
        counts = {"member": len(self.points), "seed": len(self.seeds)}
        return ", ".join(f"{count} {name}{'s' * (count != 1)}" for name, count in counts.items())

    @property
    def status(self) -> list[str]:
        """How each ended: `"finished"`, `"interrupted"`, `"culled"`, `"diverged"` (with some seed) or `"failed"`."""
        halted = np.where(self._interrupted_at >= 0, "interrupted", np.where(self.culled_at >= 0, "culled", "finished"))
        return [
            "failed" if i in self.errors else "diverged" if self.diverged[i].any() else str(halted[i])
            for i in range(len(self.points))
        ]

    def mean(self, name: str) -> np.ndarray:
        """The mean of a metric over the seeds that did not diverge, for each member; NaN if all did."""
        kept = (~self.diverged).sum(axis=1)
        total = np.where(self.diverged, 0, self._of(name)).sum(axis=1)
        return np.where(kept > 0, total / np.maximum(kept, 1), np.nan)

    def spread(self, name: str) -> np.ndarray:
        """The standard deviation of a metric over the seeds that did not diverge; 0 for a single one, NaN for none."""
        kept = (~self.diverged).sum(axis=1)
        with np.errstate(invalid="ignore"):  # infinity minus infinity
            squares = np.where(self.diverged, 0, self._of(name) - self.mean(name)[:, None]) ** 2
        return np.where(kept > 0, np.sqrt(squares.sum(axis=1) / np.maximum(kept - 1, 1)), np.nan)

    @property
    def order(self) -> np.ndarray:
        """The indices of the members, best first.

        Those that finished come first, by the mean of the metric; then those that were interrupted, and then the
        culled, by how far they came and then the metric; then those that diverged with some seed, and then those that
        failed. A mean that is not finite is worse than any that is.
        """
        scores = self.mean(self.metric) * (1 if self.mode == "min" else -1)
        ended = np.array([STATUSES.index(status) for status in self.status])
        far = np.maximum(self._interrupted_at, np.where(ended == STATUSES.index("culled"), self.culled_at, 0))
        return np.lexsort((np.where(np.isfinite(scores), scores, np.inf), -far, ended))

    @property
    def best_index(self) -> int | None:
        """The first of the ranking, None if every member diverged, failed, or made no step before an interruption."""
        first = int(self.order[0])
        if self._interrupted_at[first] == 0:
            return None
        return first if self.status[first] in ("finished", "interrupted", "culled") else None

    @property
    def best(self) -> Best:
        """The first of the ranking, with the params of its best seed.

        Raises `RuntimeError` if there is none; see `best_index`.
        """
        index = self.best_index
        if index is None:
            why = f"; the first that failed: {next(iter(self.errors.values()))}" if self.errors else ""
            diverged = "diverged with some seed: try smaller learning rates"
            if len(self.errors) == len(self.points):
                diverged = "failed"
            elif self.errors:
                diverged = "diverged with some seed, or failed"
            if (self._interrupted_at == 0).any():
                raise RuntimeError("the sweep was interrupted before the first steps")
            raise RuntimeError(f"every member of the sweep {diverged}{why}")
        scores = self._of(self.metric)[index] * (1 if self.mode == "min" else -1)
        seed = int(np.where(np.isfinite(scores), scores, np.inf).argmin())
        return Best(
            optimizer=self.replay(index) if self.lineage else self.optimizers[index],
            point=self.points[index],
            params=jax.tree.map(lambda p: p[seed], self.params[index]),
            seed=self.seeds[seed],
            index=index,
            metrics={name: float(self.mean(name)[index]) for name in self.metrics},
        )

    def replay(self, index: int | None = None) -> GradientTransformation:
        """The optimizer with the schedules that a member of a population went through, the best by default.

        See `gdfx.sweeps.population.replayed`.
        """
        from .population import replayed

        return replayed(self, index)

    def cells(self) -> dict[str, list[str]]:
        """The columns of the table, in the order of the members: member, what was varied, metrics, status."""
        several, best = len(self.seeds) > 1, self.best_index
        columns = {"member": [str(i) for i in range(len(self.points))]}
        for name in self.varied:
            columns[unused(name, columns)] = [shown(point[name]) if name in point else "" for point in self.points]
        for name in self.metrics:
            columns[unused(name, columns)] = [
                "-" if d.all() or i in self.errors else f"({m:.4g})" if d.any() else _with_spread(m, s, several)
                for i, (m, s, d) in enumerate(zip(self.mean(name), self.spread(name), self.diverged, strict=True))
            ]
        notes = [[] for _ in self.points]
        for i, (note, d) in enumerate(zip(notes, self.diverged, strict=True)):
            if i == best:
                note.append("best")
            if i in self.errors:
                note.append("failed: " + (self.errors[i].strip().splitlines() or ["unknown"])[0])
            if d.any():
                note.append(f"{d.sum()} of {d.size} diverged")
            if self._interrupted_at[i] >= 0:
                note.append(f"interrupted at {self._interrupted_at[i]}")
            if self.culled_at[i] >= 0:
                note.append(f"culled at {self.culled_at[i]}")
        columns[unused("status", columns)] = [", ".join(note) for note in notes]
        return columns

    def table(self, rows: int | None = 40) -> str:
        """The members, best first: what was varied, means ± spreads over the seeds, and how they ended.

        Where some seeds diverged, the mean of the others stands in brackets. At most so many `rows`, None for all.
        """
        if rows is not None and rows < 1:
            raise ValueError(f"table: rows is {rows}, expected at least 1, or None for all")
        order, left = self.order[:rows], max(0, len(self.points) - (rows or len(self.points)))
        columns = {_cut(name): [_cut(cells[i]) for i in order] for name, cells in self.cells().items()}
        *numbers, (status, notes) = columns.items()
        widths = [max(len(name), *map(len, cells)) for name, cells in numbers]
        wide = max(len(status), *map(len, notes))
        lines = ["  ".join([*(name.rjust(w) for (name, _), w in zip(numbers, widths, strict=True)), status])]
        lines.append("  ".join("-" * width for width in [*widths, wide]))
        for *cells, note in zip(*columns.values(), strict=True):
            lines.append("  ".join([*(c.rjust(w) for c, w in zip(cells, widths, strict=True)), note]).rstrip())
        if left:
            lines.append(f"... and {left} more: table(rows=None) has all")
        return "\n".join(lines)

    def __repr__(self) -> str:
        return self.table()

    def plot(self, path: Any = None) -> Any:
        """Draws what there is, and returns the figure; see `gdfx.sweeps.plot.plot_sweep`."""
        from .plot import plot_sweep

        return plot_sweep(self, path)

    def report(self, path: Any) -> None:
        """Writes one HTML page with the best, the table, the plots; see `gdfx.sweeps.report.write_report`."""
        from .report import write_report

        write_report(self, path)

    def to_dict(self) -> dict[str, Any]:
        """All but the params, in plain Python that JSON can hold; see `gdfx.sweeps.export.to_dict`."""
        from .export import to_dict

        return to_dict(self)

    def to_json(self, path: Any) -> None:
        """Writes `to_dict()`, whole or not at all; the folder must exist."""
        from .export import to_json

        to_json(self, path)

    def to_csv(self, path: Any) -> None:
        """Writes one row for each member and seed, whole or not at all; the folder must exist."""
        from .export import to_csv

        to_csv(self, path)

    def to_pandas(self) -> Any:
        """A pandas `DataFrame` with one row for each member and seed."""
        from .export import to_pandas

        return to_pandas(self)

    @property
    def _interrupted_at(self) -> np.ndarray:
        return np.full(len(self.points), -1) if self.interrupted_at is None else self.interrupted_at

    def _of(self, name: str) -> np.ndarray:
        if name not in self.metrics:
            raise ValueError(f"there is no metric {name!r}: expected one of: {', '.join(self.metrics)}")
        return np.asarray(self.metrics[name]).astype(np.float64)


def shown(value: Any) -> str:
    """A value of what was varied, to be read: four digits of a number that is not whole."""
    if isinstance(value, float | np.floating):
        return f"{value:.4g}"
    return getattr(value, "__name__", str(value))


def unused(name: str, columns: Any) -> str:
    """The name, or one like it, that no column has: a metric may be called as a hyperparameter is."""
    while name in columns:
        name += "_"
    return name


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float | np.integer | np.floating) and not isinstance(value, bool)


def _with_spread(mean: float, spread: float, several: bool) -> str:
    return f"{mean:.4g} ± {spread:.2g}" if several else f"{mean:.4g}"


def _cut(text: str) -> str:
    text = " ".join(text.split())
    return text if len(text) <= LONG else text[: LONG - 1] + "…"
