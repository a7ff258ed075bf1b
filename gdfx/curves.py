"""What schedules are made of: fields that are numbers, formulas, and the drawing of them."""

import os
import textwrap
from collections.abc import Callable, Sequence
from dataclasses import fields, is_dataclass
from typing import TYPE_CHECKING, Annotated, Any, NoReturn, TypeAlias

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer

from .core import Schedule
from .extras import new_figure
from .pytrees import Range, show

if TYPE_CHECKING:
    from matplotlib.axes import Axes


class _Updates(Range):
    """A range of lengths; the sum of those of a schedule is its own length."""


Number: TypeAlias = Annotated[Any, Range()]
"""A number or a scalar array."""
NonNegative: TypeAlias = Annotated[Any, Range(0.0)]
"""A `Number` of at least 0."""
Positive: TypeAlias = Annotated[Any, Range(above=0.0)]
"""A `Number` of more than 0."""
Fraction: TypeAlias = Annotated[Any, Range(0.0, 1.0)]
"""A `Number` between 0 and 1."""
Length: TypeAlias = Annotated[Any, _Updates(0.0)]
"""A `Number` of updates."""
Period: TypeAlias = Annotated[Any, _Updates(1.0)]
"""A `Length` of at least 1."""
Row: TypeAlias = Any
"""Numbers: a tuple, each one a leaf, or an array with one axis, which is one leaf."""


class Curve(Schedule):
    """A schedule whose fields are numbers."""

    def __post_init__(self):
        super().__post_init__()
        for name in self._ranges:
            if callable(getattr(self, name)):
                expected = "a number; schedules are put one after another by schedules.join"
                reject(self, name, expected, TypeError)

    def _length(self) -> float:
        """The number of updates after which nothing new happens; 0 if there is none."""
        lengths = (getattr(self, n) for n, r in self._ranges.items() if isinstance(r, _Updates))
        return sum(float(np.max(length)) for length in lengths)


class Piecewise(Curve):
    """A schedule with `boundaries` and `scales`."""

    boundaries: Row
    scales: Row

    def __post_init__(self):
        super().__post_init__()
        count = set_row(self, "boundaries", ordered=True)
        if set_row(self, "scales", ordered=False) != count:
            reject(self, "scales", f"{count} numbers, as many as there are boundaries")

    def _length(self):
        return 1.25 * last(self.boundaries)  # room to see the last of the levels


def length(schedule: Any) -> float:
    """The number of updates after which nothing new happens; 0 if none is known."""
    return schedule._length() if hasattr(schedule, "_length") else 0.0


def last(row: Row) -> float:
    """The last of the boundaries, 0 if there are none."""
    return float(np.max(np.asarray(row), initial=0.0))


def reject(schedule: Schedule, name: str, expected: str, error: type[Exception] = ValueError) -> NoReturn:
    """Raises an error about the field `name`."""
    value = getattr(schedule, name)
    raise error(f"{type(schedule).__name__}: {name} is {value!r}, expected {expected}")


def decreases(*numbers: Any) -> bool:
    """Whether these are concrete numbers and one is less than the one before."""
    values = _concrete(numbers)
    return values is not None and bool(np.any(np.diff(values) < 0))


def set_row(schedule: Schedule, name: str, *, ordered: bool) -> int:
    """Checks the field `name`, a `Row`, makes a list a tuple, and returns the length."""
    row = getattr(schedule, name)
    if isinstance(row, list | tuple):
        row = tuple(x.item() if isinstance(x, np.generic) else x for x in row)
        object.__setattr__(schedule, name, row)
    elif not getattr(row, "ndim", 0):
        reject(schedule, name, "a tuple of numbers, or an array with one axis", TypeError)
    for x in row if isinstance(row, tuple) else ():
        if not isinstance(x, int | float | np.ndarray | jax.Array | None):
            reject(schedule, name, "numbers", TypeError)
    values = _concrete(row)
    if values is not None and not np.all(values >= 0):
        reject(schedule, name, "numbers of at least 0")
    if values is not None and ordered and np.any(np.diff(values) < 0):
        reject(schedule, name, "numbers none of which is less than the one before")
    return len(row) if isinstance(row, tuple) else row.shape[-1]


def _concrete(row: Any) -> np.ndarray | None:
    """The numbers along the last axis, or nothing if they are not known before the program runs."""
    if not isinstance(row, tuple):
        return None if isinstance(row, Tracer) else np.asarray(row)
    if any(isinstance(x, Tracer) or x is None for x in row):
        return None
    return np.stack([np.asarray(x) for x in row], -1) if row else np.zeros(0)


# Formulas: for counts of any shape, and for scalar numbers, which may be traced.


def part(elapsed: jax.Array, steps: jax.Array) -> jax.Array:
    """The part of `steps` that is over: 0 to 1; exactly 1 from the end on, also of no steps."""
    inside = (elapsed > 0) & (elapsed < steps)
    over = (elapsed >= steps).astype(elapsed.dtype)
    return jnp.where(inside, elapsed / jnp.where(inside, steps, 1), over)


def transition(count: jax.Array, begin: Any, steps: jax.Array) -> jax.Array:
    """`part`, but 0 for ever if there are no steps."""
    return jnp.where(steps > 0, part(count - begin, steps), 0)


def half_wave(done: jax.Array) -> jax.Array:
    """From 1 to 0 in half a cosine wave, as `done` goes from 0 to 1."""
    return 0.5 * (1 + jnp.cos(jnp.pi * done))


def power(base: jax.Array, exponent: jax.Array) -> jax.Array:
    """`base**exponent`, both at least 0; the slope at base 0, which may be infinite, is 0."""
    positive = base > 0
    at_0 = (exponent == 0).astype(base.dtype)
    return jnp.where(positive, jnp.where(positive, base, 1) ** exponent, at_0)


def whole(x: jax.Array) -> jax.Array:
    """`x` rounded down, with the derivative of `x`."""
    return x + jax.lax.stop_gradient(jnp.floor(x) - x)


def geometric_sum(ratio: jax.Array, terms: jax.Array) -> jax.Array:
    """`1 + ratio + ratio**2 + ...`, for a ratio of at least 1, where the closed form is 0/0."""
    d = ratio - 1
    near_1 = terms * d < 1e-3
    safe = jnp.where(near_1, 1, d)
    log = terms * jnp.log1p(safe)
    quotient = jnp.where(log < 1, jnp.expm1(log), (1 + safe) ** terms - 1) / safe
    a, b, c = ((terms - i) * jnp.where(near_1, d, 0) / (i + 1) for i in (1, 2, 3))
    return jnp.where(near_1, terms * (1 + a * (1 + b * (1 + c))), quotient)


def repeat(count: jax.Array, period: jax.Array, multiplier: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Start and length of the period that `count` is in; each is `multiplier` times the one before."""
    period = jnp.where(period > 0, period, 1)
    # Which period it is has no derivative.
    first, growth = jax.lax.stop_gradient((period, multiplier - 1))
    grows = growth > 0
    log = jnp.log1p(count / first * growth) / jnp.log1p(jnp.where(grows, growth, 1))
    # The logarithm is off by rounding errors, so that its floor may be too: of the periods on both sides of the
    # nearest start, `count` itself tells which. Room for the rounding of the start lets no period begin an update late.
    i = jnp.round(jnp.where(grows, log, count / first))
    start = first * geometric_sum(1 + growth, i)
    i -= (count < start * (1 - 8 * jnp.finfo(count.dtype).eps)).astype(count.dtype)
    return period * geometric_sum(multiplier, i), period * multiplier**i


def levels(schedule: Any) -> jax.Array:
    """The products of `init_value` and the first 0, 1, 2, ... `scales`."""
    factors = [schedule.init_value[None], jnp.asarray(schedule.scales)]
    return jnp.cumprod(jnp.concatenate(factors))


def passed(bounds: jax.Array, count: jax.Array) -> jax.Array:
    """How many of `bounds` are at most `count`."""
    return jnp.searchsorted(bounds, count, side="right", method="compare_all")


def interpolate(kind: str, count: jax.Array, bounds: jax.Array, levels: jax.Array) -> jax.Array:
    """`levels[0]` at count 0, then each next level at the next of `bounds`."""
    i = passed(bounds, count)
    j = jnp.minimum(i + 1, len(bounds))
    bounds = jnp.concatenate([jnp.zeros(1, bounds.dtype), bounds])
    done = part(count - bounds[i], bounds[j] - bounds[i])
    left = half_wave(done) if kind == "cosine" else 1 - done
    return (levels[i] - levels[j]) * left + levels[j]


def plot(
    *schedules: Schedule | Callable[[Any], Any],
    total: int | None = None,
    labels: Sequence[str] | None = None,
    ax: "Axes | None" = None,
    path: str | os.PathLike[str] | None = None,
) -> "Axes":
    """Draws schedules over the first `total` updates, into `ax` or a new figure.

    The default of `total` is the longest of their own lengths; of `labels` the names of the schedules, with the
    fields in which those of one name differ. With `path` the figure is saved there.
    """
    if total is None:
        total = round(max(map(length, schedules), default=0))
        if not total:
            shown = ", ".join(map(repr, schedules))
            raise ValueError(f"plot: no length is known of {shown}; give the number of updates, total=...")
    counts = np.unique(np.linspace(0, total - 1, min(total, 10_000)).round())
    axes: Any = ax if ax is not None else new_figure(path, layout="constrained").add_subplot()
    for schedule, label in zip(schedules, labels or _labels(schedules), strict=True):
        values = jax.vmap(schedule)(counts)
        if values.ndim > 1:
            raise ValueError(f"plot: {schedule!r} is a batch of schedules; plot the members one by one")
        axes.plot(counts, values, label=label)
    axes.set(xlabel="update", ylabel="value")
    if labels or len(schedules) > 1:
        axes.legend(fontsize="small").set_in_layout(False)  # a long one must not squeeze the axes
    if path is not None:
        axes.get_figure(root=True).savefig(path)
    return axes


def _labels(schedules: Sequence[Any]) -> list[str]:
    labels = []
    for schedule in schedules:
        alike = [other for other in schedules if type(other) is type(schedule)]
        names = [f.name for f in fields(schedule)] if is_dataclass(schedule) else []
        differing = [n for n in names if len({show(getattr(other, n)) for other in alike}) > 1]
        shown = ", ".join(f"{n}={show(getattr(schedule, n))}" for n in differing)
        name = getattr(schedule, "__name__", type(schedule).__name__)
        labels.append(textwrap.fill(f"{name}({shown})" if shown else name, 60))
    return labels
