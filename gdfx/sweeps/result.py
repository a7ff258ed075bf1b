"""What came of a sweep: as arrays, as a table, as a picture, and the best of it."""

from dataclasses import dataclass, field
from typing import Any

import jax
import numpy as np

from ..core import GradientTransformation, Tree


@dataclass(frozen=True)
class Best:
    """The best optimizer of a sweep."""

    optimizer: GradientTransformation  # with plain numbers: its repr evaluates back
    params: Tree  # of its best seed
    seed: int
    index: int  # its row in the table
    metrics: dict[str, float]  # means over the seeds


@dataclass(frozen=True, repr=False)
class SweepResult:
    """The runs of a sweep: arrays have the axes (optimizer, seed, ...); printing it gives a table."""

    optimizers: GradientTransformation  # batched
    seeds: list[int]
    params: Tree  # leaves of shape (optimizers, seeds, ...)
    # Of shape (optimizers, seeds, steps): loss, NaN once diverged, and what the optimizers tell (see gdfx.metrics).
    history: dict[str, np.ndarray] = field(repr=False)
    metrics: dict[str, np.ndarray]  # of shape (optimizers, seeds): train_loss (mean of the last epoch), and others
    diverged: np.ndarray  # bools of shape (optimizers, seeds)
    diverged_at: np.ndarray  # the step that was not finite, -1 if there was none
    metric: str
    mode: str
    seconds: dict[str, float]  # to "compile" and to "run"

    @property
    def varied(self) -> dict[str, np.ndarray]:
        """The hyperparameters that differ between the optimizers, by name, one value for each optimizer."""
        leaves = jax.tree_util.tree_leaves_with_path(self.optimizers)
        named = {jax.tree_util.keystr(path).lstrip("."): np.asarray(leaf) for path, leaf in leaves}
        short = {name: name.rsplit(".", 1)[-1] for name in named}
        unique = [name for name in short.values() if list(short.values()).count(name) == 1]
        return {
            short[name] if short[name] in unique else name: values
            for name, values in named.items()
            if len(np.unique(values)) > 1
        }

    def optimizer(self, index: int) -> GradientTransformation:
        """One of the optimizers, with plain numbers in it."""
        # The shortest decimal that is this number in its own dtype, so that a rate reads 0.01 and not 0.009999999776.
        return jax.tree.map(lambda x: float(str(np.asarray(x)[index])), self.optimizers)

    def mean(self, name: str) -> np.ndarray:
        """The mean of a metric over the seeds that did not diverge; NaN if all did."""
        kept = np.maximum((~self.diverged).sum(axis=1), 1)
        mean = np.where(self.diverged, 0, self.metrics[name]).sum(axis=1) / kept
        return np.where(self.diverged.all(axis=1), np.nan, mean)

    def spread(self, name: str) -> np.ndarray:
        """The standard deviation of a metric over the seeds that did not diverge; 0 for a single one, NaN for none."""
        kept = (~self.diverged).sum(axis=1)
        with np.errstate(invalid="ignore"):  # infinity minus infinity
            squares = np.where(self.diverged, 0, self.metrics[name] - self.mean(name)[:, None]) ** 2
        return np.where(kept > 0, np.sqrt(squares.sum(axis=1) / np.maximum(kept - 1, 1)), np.nan)

    @property
    def order(self) -> np.ndarray:
        """The indices of the optimizers, best first, those with diverged seeds last."""
        scores = self.mean(self.metric) * (1 if self.mode == "min" else -1)
        return np.lexsort((np.where(np.isnan(scores), np.inf, scores), self.diverged.any(axis=1)))

    @property
    def best(self) -> Best:
        """The optimizer with the best mean of the metric, and the params of its best seed.

        Raises `RuntimeError` if every optimizer diverged.
        """
        index = int(self.order[0])
        if self.diverged[index].any():
            raise RuntimeError("every optimizer of the sweep diverged with some seed: try smaller learning rates")
        scores = self.metrics[self.metric][index] * (1 if self.mode == "min" else -1)
        seed = int(scores.argmin())
        return Best(
            optimizer=self.optimizer(index),
            params=jax.tree.map(lambda p: p[index, seed], self.params),
            seed=self.seeds[seed],
            index=index,
            metrics={name: float(self.mean(name)[index]) for name in self.metrics},
        )

    def table(self) -> str:
        """One row for each optimizer: what was varied, means ± spreads over the seeds, how many seeds diverged.

        The best is marked with a star. Where some seeds diverged, the means of the others stand in brackets.
        """
        varied = self.varied or {"optimizer": np.arange(len(self.diverged))}
        several = len(self.seeds) > 1
        columns = {name: [f"{value:.4g}" for value in values] for name, values in varied.items()}
        for name in self.metrics:
            means, spreads = self.mean(name), self.spread(name)
            columns[name] = [
                "-" if d.all() else f"({m:.4f})" if d.any() else f"{m:.4f}" + (f" ± {s:.4f}" if several else "")
                for m, s, d in zip(means, spreads, self.diverged, strict=True)
            ]
        columns["diverged"] = [f"{d.sum()} of {d.size}" if d.any() else "" for d in self.diverged]
        best = None if self.diverged.any(axis=1).all() else int(self.order[0])
        columns[""] = ["*" if i == best else "" for i in range(len(self.diverged))]
        widths = {name: max(len(name), *map(len, cells)) for name, cells in columns.items()}
        lines = ["  ".join(name.rjust(widths[name]) for name in columns).rstrip()]
        lines.append("  ".join("-" * width for width in widths.values() if width))
        for cells in zip(*columns.values(), strict=True):
            lines.append("  ".join(c.rjust(w) for c, w in zip(cells, widths.values(), strict=True)).rstrip())
        return "\n".join(lines)

    def __repr__(self) -> str:
        return self.table()

    def plot(self, path: Any = None) -> Any:
        """Draws each metric against what was varied, and returns the figure; see `gdfx.sweeps.plot.plot_sweep`."""
        from .plot import plot_sweep

        return plot_sweep(self, path)
