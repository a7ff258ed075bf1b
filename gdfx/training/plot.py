"""The picture of a training run."""

from typing import Any

import numpy as np

from ..extras import new_figure

POINTS = 1000
"""Of a curve with more points than twice this, the smallest and the largest in each of so many parts are drawn."""
MEANS = 100
"""The most means that the thick line goes through."""


def plot_fit(result: Any, path: Any = None) -> Any:
    """Draws a `FitResult` against the steps: loss, evaluations, norm of the gradients, learning rates.

    The loss of each step is a thin line, and its mean over each hundredth of the run a thick one. Evaluations whose
    name has "loss" in it are drawn over these, others beside them; the step of the best params is marked. Steps at
    which the loss or the gradients were not finite have a cross at the top. Axes of positive values that span more than
    a factor of 20 are logarithmic, as is that of the gradients. Returns the figure, and writes it to `path` if that is
    given; otherwise it is one of pyplot's, for `plt.show()`.
    """
    evaluated = {name: _finite(values) for name, values in result.evaluations.items() if name != "step"}
    losses = {name: evaluated.pop(name) for name in [*evaluated] if "loss" in name.lower()}
    rates = {name: _finite(values) for name, values in result.history.items() if name.endswith("learning_rate")}
    steps = {name: _finite(result.history[name]) for name in ("loss", "grad_norm")}

    beside = [*(["evaluation"] if evaluated else []), "gradient norm", *(["learning rate"] if rates else [])]
    figure = new_figure(path, figsize=(11, max(4.4, 2.2 * len(beside))), layout="constrained")
    axes = figure.subplot_mosaic([["loss", name] for name in beside], width_ratios=[3, 2])
    _draw_steps(axes["loss"], steps["loss"], "training loss")
    _draw_steps(axes["gradient norm"], steps["grad_norm"], "each step")
    for name, values in rates.items():
        axes["learning rate"].plot(*_outline(values), _style(values), label=name)
    for panel, drawn in (("loss", losses), ("evaluation", evaluated)):
        for i, (name, values) in enumerate(drawn.items()):
            axes[panel].plot(result.evaluations["step"], values, ".-", color=f"C{i + 1}", label=name.replace("_", " "))
        if drawn and result.best_step is not None:
            label = f"best: step {result.best_step}"
            axes[panel].axvline(result.best_step, color="0.4", linestyle="--", linewidth=1, label=label)

    curves = {
        "loss": [steps["loss"], *losses.values()],
        "evaluation": evaluated.values(),
        "learning rate": rates.values(),
    }
    for panel, ax in axes.items():
        ax.set(xlabel="steps", ylabel=panel)
        values = np.concatenate([steps["grad_norm"]] if panel == "gradient norm" else list(curves[panel]))
        if _wide(values) or (panel == "gradient norm" and (values > 0).any()):
            ax.set_yscale("log")
        room = max(0.03 * result.steps, 0.1)
        ax.set_xlim(-room, result.steps + room)
        ax.locator_params(axis="x", nbins=5, integer=True)
        ax.grid(alpha=0.3)
        if len(ax.get_legend_handles_labels()[1]) > 1:
            ax.legend(fontsize="small")
    figure.suptitle(result.message, fontsize="medium")
    if path is not None:
        figure.savefig(path, dpi=120)
    return figure


def _draw_steps(ax: Any, values: np.ndarray, label: str) -> None:
    """A value for each step: thin, its means thick, crosses where it is not finite."""
    parts = min(MEANS, len(values) // 10)
    smooth = parts >= 10
    thin: dict[str, Any] = {"alpha": 0.4, "linewidth": 0.8} if smooth else {}
    ax.plot(*_outline(values), _style(values), color="C0", label=label, **thin)
    if smooth:
        edges = np.linspace(0, len(values), parts + 1).astype(int)
        known = np.isfinite(values)
        count = np.add.reduceat(known, edges[:-1], dtype=float)
        total = np.add.reduceat(np.where(known, values, 0), edges[:-1])
        means = np.divide(total, count, out=np.full(parts, np.nan), where=count > 0)
        ax.plot((edges[:-1] + edges[1:] - 1) / 2, means, color="C0", label=f"mean of {len(values) // parts} steps")
    lost = np.flatnonzero(~np.isfinite(values))
    if len(lost):
        top = ax.get_xaxis_transform()  # x in data, y in fractions of the axis
        ax.plot(lost, np.full(len(lost), 0.97), "x", color="tab:red", transform=top, label="not finite")


def _outline(values: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Where to draw a value for each step: at the steps made before it, as the loss is that of the params then."""
    if len(values) <= 2 * POINTS:
        return np.arange(len(values)), values
    starts = np.linspace(0, len(values), POINTS, endpoint=False).astype(int)
    both = np.stack([np.fmin.reduceat(values, starts), np.fmax.reduceat(values, starts)], axis=1)
    return np.repeat(starts, 2), both.ravel()


def _style(values: np.ndarray) -> str:
    return ".-" if len(values) <= 30 else "-"


def _finite(values: Any) -> np.ndarray:
    """In float64, with NaN for what is not finite, which is not drawn."""
    values = np.asarray(values).astype(float)
    return np.where(np.isfinite(values), values, np.nan)


def _wide(values: np.ndarray) -> bool:
    known = values[np.isfinite(values)]
    return bool(len(known)) and known.min() > 0 and known.max() > 20 * known.min()
