"""Pictures over the steps of a sweep: learning curves, and the lineage of a population."""

from typing import Any

import numpy as np

from ..extras import require
from .drawing import axes, finish, named, steps, tick, wide
from .result import SweepResult

CURVES = 60
"""The most members of which the learning curves are drawn, the best ones."""
BINS = 200
"""Of a curve with more than twice so many steps, the means in so many parts are drawn."""


def plot_curves(result: SweepResult, name: str = "loss", *, ax: Any = None) -> Any:
    """A row of the history against the steps, as means over the seeds that did not diverge, one line for each member.

    The best is thick; members that were culled fade out where they stop, at a point. Of many members the best sixty are
    drawn. The color is the first number that was varied. Returns the axes; raises `ValueError` for an unknown name.
    """
    if name not in result.history:
        raise ValueError(f"plot_curves: there is no {name!r} in the history, only: {', '.join(result.history)}")
    ax = axes(ax)
    chosen, status, best = result.order[:CURVES], result.status, result.best_index
    numbers = {k: v for k, v in result.varied.items() if v.dtype != object and np.ptp(v[np.isfinite(v)]) > 0}
    colors: Any = lambda i: f"C{i % 10}"
    if numbers:
        key, values = next(iter(numbers.items()))
        norm = require("matplotlib.colors", "examples").LogNorm if wide(values) else None
        norm = (norm or require("matplotlib.colors", "examples").Normalize)(np.nanmin(values), np.nanmax(values))
        scale = require("matplotlib.cm", "examples").ScalarMappable(norm, "viridis")
        ax.figure.colorbar(scale, ax=ax, label=named(key))
        colors = lambda i: scale.to_rgba(values[i]) if np.isfinite(values[i]) else (0.6, 0.6, 0.6, 1.0)
    to_rgba = require("matplotlib.colors", "examples").to_rgba
    lines = require("matplotlib.collections", "examples").LineCollection
    finished = []
    for i in chosen[::-1]:  # the best on top
        rows = result.history[name][i]
        at, curve = _curve(rows if result.diverged[i].all() else rows[~result.diverged[i]])
        if not np.isfinite(curve).any():
            continue
        color, width = colors(i), 3 if i == best else 1
        alpha = 1.0 if i == best else 0.35 if status[i] == "diverged" else 0.7
        if status[i] in ("culled", "interrupted"):
            points = np.stack([at, curve], axis=1)
            fading = np.array([to_rgba(color)] * (len(curve) - 1)).reshape(-1, 4)
            fading[:, 3] = alpha * np.linspace(1, 0.2, len(fading))
            parts = np.stack([points[:-1], points[1:]], axis=1)
            ax.add_collection(lines(parts, colors=fading, linewidths=width, capstyle="round"))
            ax.plot(at[-1], curve[-1], "o", color=color, alpha=0.6, markersize=3)
        else:
            ax.plot(at, curve, "-" if len(curve) > 1 else ".", color=color, alpha=alpha, linewidth=width)
        if status[i] in ("finished", "interrupted", "culled"):
            finished.append(curve)
    ax.autoscale_view()
    seen = np.concatenate(finished) if finished else np.array([np.nan])
    if wide(seen):
        ax.set_yscale("log")
    if len(seen := seen[np.isfinite(seen)]) and seen.min() < seen.max():  # those that diverge may leave the picture
        low, high = (seen.min() / 1.3, seen.max() * 1.3) if wide(seen) else (seen.min(), seen.max())
        room = 0 if wide(seen) else 0.05 * (high - low)
        ax.set_ylim(low - room, high + room)
    several = f" (the best {len(chosen)} of {len(result.points)} members)" if len(chosen) < len(result.points) else ""
    if best is not None:
        ax.plot([], [], color=colors(best), linewidth=3, label=f"best: member {best}")
    if "culled" in status:
        ax.plot([], [], "o", color="0.5", markersize=3, label="culled")
    ax.set(xlabel=f"steps{several}", ylabel=named(name))
    ax.xaxis.get_major_locator().set_params(integer=True)
    return finish(ax)


def plot_lineage(result: SweepResult, *, ax: Any = None) -> Any:
    """Who was copied by whom in a population: a line for each member over the steps, an arrow for each copy.

    What became of the best in the end, all the way back through its ancestors, is thick. Returns the axes; raises
    `ValueError` for a sweep without a lineage.
    """
    if result.lineage is None:
        raise ValueError("plot_lineage: this sweep has no lineage: it was not a population's training")
    ax, members = axes(ax), len(result.points)
    copies = sorted(result.lineage, key=lambda copy: copy["step"])
    total = max(steps(result, "loss"), max((copy["step"] for copy in copies), default=0))
    ax.hlines(np.arange(members), 0, total, color="0.85", linewidth=1)
    for copy in copies:
        arrow = {"arrowstyle": "-|>", "color": "0.6", "linewidth": 0.8, "shrinkA": 0, "shrinkB": 1}
        ax.annotate("", (copy["step"], copy["member"]), (copy["step"], copy["from"]), arrowprops=arrow)
    best = result.best_index
    if best is not None:
        xs, ys, until = [total], [best], total + 1
        for copy in reversed(copies):
            if copy["member"] == ys[-1] and copy["step"] < until:  # a copy is of what the other was before that step
                until = copy["step"]
                xs, ys = [*xs, until, until], [*ys, ys[-1], copy["from"]]
        ax.plot([*xs, 0], [*ys, ys[-1]], color="tab:orange", linewidth=3, label=f"ancestors of member {best}, the best")
        ax.plot(total, best, "*", color="tab:orange", markeredgecolor="k", markersize=11)
    tick(ax.yaxis, [str(i) for i in range(members)])
    ax.set(xlabel="steps", ylabel="member", ylim=(members - 0.5, -0.5))
    return finish(ax)


def _curve(rows: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The steps and the mean of the rows there, up to the last that was made, thinned to means of parts if long."""
    rows = np.asarray(rows).astype(float)
    rows = np.where(np.isfinite(rows), rows, np.nan)
    made = np.flatnonzero(np.isfinite(rows).any(axis=0))
    rows = rows[:, : int(made[-1]) + 1 if len(made) else 0]
    parts = min(rows.shape[1], BINS if rows.shape[1] > 2 * BINS else rows.shape[1])
    if not parts:
        return np.zeros(0), np.zeros(0)
    edges = np.linspace(0, rows.shape[1], parts + 1).astype(int)
    count = np.add.reduceat(np.isfinite(rows).sum(axis=0), edges[:-1])
    total = np.add.reduceat(np.nansum(rows, axis=0), edges[:-1])
    mean = np.divide(total, count, out=np.full(parts, np.nan), where=count > 0)
    return (edges[:-1] + edges[1:] - 1) / 2, mean
