"""The picture of a sweep."""

from typing import Any

import numpy as np

from ..extras import new_figure


def plot_sweep(result: Any, path: Any = None) -> Any:
    """Draws each metric of a `SweepResult` against the first hyperparameter that was varied.

    The line is the mean over the seeds and the band its standard deviation, with one line for each combination of the
    others that were varied; optimizers that diverged with some seed are marked at the top by a cross. Axes are
    logarithmic where the values are positive and span more than a factor of 20. Returns the figure, and writes it to
    `path` if that is given; otherwise it is one of pyplot's, for `plt.show()`.
    """
    varied = result.varied or {"optimizer": np.arange(len(result.diverged))}
    (x_name, x), *others = varied.items()
    groups: dict[str, list[int]] = {}
    for i in range(len(x)):
        groups.setdefault(", ".join(f"{name}={values[i]:.3g}" for name, values in others), []).append(i)

    figure = new_figure(path, figsize=(1.5 + 4.8 * len(result.metrics), 4.2), layout="constrained")
    axes = figure.subplots(1, len(result.metrics), squeeze=False)
    any_diverged = result.diverged.any(axis=1)
    best = None if any_diverged.all() else int(result.order[0])
    for ax, name in zip(axes[0], result.metrics, strict=True):
        mean, spread = result.mean(name), result.spread(name)
        for label, members in groups.items():
            rows = np.array(members)[np.argsort(x[members], kind="stable")]
            (line,) = ax.plot(x[rows], mean[rows], marker=".", label=label or None)
            low, high = mean[rows] - spread[rows], mean[rows] + spread[rows]
            if (mean[rows] > 0).any():
                low = np.maximum(low, np.nanmin(mean[rows]) / 2) if _wide(mean) else low
            ax.fill_between(x[rows], low, high, alpha=0.25, color=line.get_color(), linewidth=0)
        if _wide(x):
            ax.set_xscale("log")
        if _wide(mean):
            ax.set_yscale("log")
        if any_diverged.any():
            top = ax.get_xaxis_transform()  # x in data, y in fractions of the axis
            ax.plot(
                x[any_diverged],
                np.full(any_diverged.sum(), 0.97),
                "x",
                color="tab:red",
                transform=top,
                label="diverged",
            )
        if best is not None:
            ax.axvline(
                x[best],
                color="0.5",
                linestyle="--",
                linewidth=1,
                label=f"best: {x_name}={x[best]:.3g}",
            )
        ax.set_xlabel(x_name.replace("_", " "))
        ax.set_ylabel(name.replace("_", " "))
        ax.grid(alpha=0.3)
        ax.legend(fontsize="small")
    seeds = f"{len(result.seeds)} seeds" if len(result.seeds) > 1 else "1 seed"
    figure.suptitle(f"{type(result.optimizers).__name__}, {len(x)} optimizers, {seeds}", fontsize="medium")
    if path is not None:
        figure.savefig(path, dpi=120)
    return figure


def _wide(values: np.ndarray) -> bool:
    finite = values[np.isfinite(values)]
    return bool(len(finite)) and finite.min() > 0 and finite.max() > 20 * finite.min()
