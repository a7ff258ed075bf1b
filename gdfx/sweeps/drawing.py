"""What the pictures of a sweep have in common."""

from typing import Any

import numpy as np

from ..extras import new_figure
from .result import SweepResult, shown


def axes(ax: Any) -> Any:
    """The axes to draw into: new ones of pyplot's for None."""
    return new_figure(None, layout="constrained").add_subplot() if ax is None else ax


def finish(ax: Any) -> Any:
    """The axes with a grid and a legend, which stands above them, where it hides nothing."""
    ax.grid(alpha=0.3)
    if ax.get_legend_handles_labels()[1]:
        ax.legend(fontsize="small", loc="lower left", bbox_to_anchor=(0, 1), ncols=2, frameon=False)
    return ax


def steps(result: SweepResult, name: str) -> int:
    """How many steps the history of this name has."""
    return result.history[name].shape[-1] if name in result.history else 0


def positions(result: SweepResult, name: str | None) -> tuple[np.ndarray, list[str] | None]:
    """Where the members stand on an axis, NaN for those that lack the name; labels of it if they are no numbers."""
    if name is None:
        return np.arange(len(result.points)).astype(float), None
    if name not in result.varied:
        raise ValueError(f"{name!r} was not varied: expected one of: {', '.join(result.varied) or 'none was'}")
    if (column := result.varied[name]).dtype != object:
        return column, None
    texts = [shown(point[name]) if name in point else None for point in result.points]
    labels = list(dict.fromkeys(text for text in texts if text is not None))
    return np.array([np.nan if text is None else labels.index(text) for text in texts], float), labels


def tick(axis: Any, labels: list[str], rotate: bool = False) -> None:
    """Labels at 0, 1, ...: of many, some."""
    shown_at = range(0, len(labels), -(-len(labels) // 16) or 1)
    texts = [text(labels[i] if len(labels[i]) <= 20 else labels[i][:19] + "…") for i in shown_at]
    axis.set_ticks(list(shown_at), texts, **({"rotation": 40, "ha": "right"} if rotate else {}))


def named(name: str) -> str:
    """The name as a label."""
    return text(name.replace("_", " "))


def text(text: str) -> str:
    """The text as matplotlib draws it: no formula between dollars, no line that a leading underscore hides."""
    return text.replace("$", r"\$").lstrip("_")


def wide(values: np.ndarray) -> bool:
    """Whether the values want a logarithmic axis: positive, and spanning more than a factor of 20."""
    finite = values[np.isfinite(values)]
    return bool(len(finite)) and finite.min() > 0 and finite.max() > 20 * finite.min()
