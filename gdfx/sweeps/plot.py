"""The pictures of a sweep. Each draws into matplotlib axes `ax`, which are new ones of pyplot's if None are given."""

import io
from pathlib import Path
from typing import Any

import numpy as np

from ..extras import new_figure, require
from .curves import plot_curves, plot_lineage
from .drawing import axes, finish, named, positions, steps, text, tick, wide
from .export import write
from .result import STATUSES, SweepResult, shown

LABELS = 10
"""The most lines that a legend tells apart; where there would be more, members are drawn as points."""


def plot_sweep(result: SweepResult, path: Any = None) -> Any:
    """One figure of all that there is to draw of a `SweepResult`.

    That is `plot_curves`, `plot_metric` for all that was varied, `plot_heat_map` if that is a grid of two, and
    `plot_lineage` of a population. Returns the figure, and writes it to `path` if that is given (whole or not at all;
    the ending tells the format); otherwise it is one of pyplot's, for `plt.show()`.
    """
    figure = draw_sweep(result, path)
    if path is not None:
        image = io.BytesIO()
        figure.savefig(image, format=Path(path).suffix[1:] or "png", dpi=120)
        write(path, image.getvalue())
    return figure


def draw_sweep(result: SweepResult, path: Any = None) -> Any:
    """The figure of `plot_sweep`, not written anywhere."""
    varied = list(result.varied)
    panels = [lambda ax: plot_curves(result, ax=ax)] if steps(result, "loss") else []
    panels += [lambda ax, name=name: plot_metric(result, name, ax=ax) for name in varied or [None]]
    if len(varied) == 2 and _cells(result, *varied) is not None:
        panels.append(lambda ax: plot_heat_map(result, ax=ax))
    if result.lineage:
        panels.append(lambda ax: plot_lineage(result, ax=ax))

    columns = min(len(panels), 2 if len(panels) == 4 else 3)
    rows = -(-len(panels) // columns)
    figure = new_figure(path, figsize=(5.4 * columns, 4.2 * rows), layout="constrained")
    for i, panel in enumerate(panels):
        panel(figure.add_subplot(rows, columns, i + 1))
    counts, status = [result.size], result.status
    counts += [f"{status.count(name)} {name}" for name in STATUSES[1:] if name in status]
    figure.suptitle(", ".join(counts), fontsize="medium")
    return figure


def plot_metric(result: SweepResult, name: str | None = None, metric: str | None = None, *, ax: Any = None) -> Any:
    """A metric, by default the one that ranks, against one of the names of what was varied, by default the members.

    A line is the mean over the seeds and its band the standard deviation, with one line for each choice of the others
    that were varied; of more than ten, or where all members differ in everything, there are points. Members that were
    culled have hollow points, and those that diverged with some seed a cross at the top. Axes are logarithmic where the
    values are positive and span more than a factor of 20. Returns the axes.
    """
    ax, metric = axes(ax), metric or result.metric
    x, ticks = positions(result, name)
    mean, spread = result.mean(metric), result.spread(metric)
    status = np.array(result.status)
    drawn = np.isfinite(mean) & np.isfinite(x)
    for place in range(len(ticks or ())):  # members of one label stand side by side
        alike = np.flatnonzero(x == place)
        x[alike] += np.linspace(-0.3, 0.3, len(alike)) if len(alike) > 1 else 0

    groups: dict[str, list[int]] = {}
    for i, point in enumerate(result.points):
        members = groups.setdefault(", ".join(f"{k}={shown(v)}" for k, v in point.items() if k != name), [])
        members += [i] * bool(drawn[i] and status[i] == "finished")
    groups = {label: members for label, members in groups.items() if members}
    lines = ticks is None and len(groups) <= LABELS and any(len(rows) > 1 for rows in groups.values())
    if not lines:
        groups = {"": [i for rows in groups.values() for i in rows]}
    for label, members in groups.items():
        rows = np.array(members, int)[np.argsort(x[members], kind="stable")]
        style = {"fmt": ".", "elinewidth": 0.8} if not lines else {"marker": "."}
        if lines:
            (line,) = ax.plot(x[rows], mean[rows], label=text(label) or None, **style)
            low = mean[rows] - spread[rows]
            if wide(mean[status == "finished"]):
                low = np.maximum(low, mean[rows] / 4)  # a band below zero has no place on a logarithmic axis
            ax.fill_between(x[rows], low, mean[rows] + spread[rows], alpha=0.2, color=line.get_color(), linewidth=0)
        elif len(rows):
            ax.errorbar(x[rows], mean[rows], spread[rows] if len(result.seeds) > 1 else None, **style)
    for halted in ("culled", "interrupted"):
        rows = drawn & (status == halted)
        if rows.any():
            ax.plot(x[rows], mean[rows], "o", color="0.5", fillstyle="none", markersize=4, label=halted)
    lost = np.isfinite(x) & (status == "diverged")
    if lost.any():
        top = ax.get_xaxis_transform()  # x in data, y in fractions of the axis
        ax.plot(x[lost], np.full(lost.sum(), 0.97), "x", color="tab:red", transform=top, label="diverged")
    best = result.best_index
    if best is not None and drawn[best]:
        value = f"{name}={shown(result.points[best].get(name))}" if name else f"member {best}"
        ax.plot(
            x[best],
            mean[best],
            "*",
            color="tab:orange",
            markeredgecolor="k",
            markersize=11,
            zorder=5,
            label=text(f"best: {value}"),
        )

    if ticks is not None:
        tick(ax.xaxis, ticks, rotate=max(map(len, ticks), default=0) > 6)
        ax.set_xlim(-0.5, len(ticks) - 0.5)
    elif wide(x):
        ax.set_xscale("log")
    shown_means = mean[drawn & (status == "finished")]
    if wide(shown_means if len(shown_means) else mean[drawn]):
        ax.set_yscale("log")
    if np.isfinite(x).any() and not drawn.any():
        ax.set_yticks([])
    ax.set(xlabel=named(name or "member"), ylabel=named(metric))
    return finish(ax)


def plot_heat_map(
    result: SweepResult, x: str | None = None, y: str | None = None, metric: str | None = None, *, ax: Any = None
) -> Any:
    """A metric, by default the one that ranks, over the grid of two that were varied, by default the first two.

    Crosses stand where a member diverged or failed, brackets about the values of culled ones, a frame about the best.
    Returns the axes; raises `ValueError` if there is not exactly one member for each pair of values.
    """
    names = list(result.varied)
    x = x or next((name for name in names if name != y), None)
    y = y or next((name for name in names if name != x), None)
    cells = None if x is None or y is None else _cells(result, x, y)
    if cells is None or x is None or y is None:
        raise ValueError(f"plot_heat_map: {x} and {y} have no grid, expected one member for each pair of their values")
    ax, metric = axes(ax), metric or result.metric
    status = np.array(result.status)[cells]
    good = np.isin(status, ("finished", "interrupted", "culled"))
    values = np.where(good, result.mean(metric)[cells], np.nan)
    values[~np.isfinite(values)] = np.nan
    log = wide(values)
    image = ax.imshow(values, origin="lower", aspect="auto", norm="log" if log else "linear", cmap="viridis")
    ax.figure.colorbar(image, ax=ax, label=named(metric))
    best = result.best_index
    for (row, column), i in np.ndenumerate(cells):
        value, around = values[row, column], "({})" if status[row, column] != "finished" else "{}"
        if not np.isfinite(value):
            ax.plot(column, row, "x", color="tab:red")
        elif cells.size <= 64:
            dark = image.norm(value) < 0.6
            ax.text(
                column, row, around.format(f"{value:.3g}"), color="w" if dark else "k", size=8, ha="center", va="center"
            )
        if i == best:
            frame = require("matplotlib.patches", "examples").Rectangle
            ax.add_patch(frame((column - 0.5, row - 0.5), 1, 1, fill=False, edgecolor="tab:orange", linewidth=3))
    tick(ax.xaxis, [shown(result.points[i][x]) for i in cells[0]], rotate=cells.shape[1] > 6)
    tick(ax.yaxis, [shown(result.points[i][y]) for i in cells[:, 0]])
    ax.set(xlabel=named(x), ylabel=named(y))
    return ax


def _cells(result: SweepResult, x: str, y: str) -> np.ndarray | None:
    """The member at each place of the grid of two names, with an axis for `y` and one for `x`; None if it is none."""
    index = []
    for name in (y, x):
        column, _ = positions(result, name)
        if not np.isfinite(column).all():
            return None
        index.append(np.unique(column, return_inverse=True)[1])
    shape = tuple(int(places.max()) + 1 for places in index)
    cells = np.full(shape, -1)
    cells[index[0], index[1]] = np.arange(len(result.points))
    return cells if len(result.points) == cells.size and (cells >= 0).all() and min(shape) > 1 else None
