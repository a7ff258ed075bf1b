"""The learning-rate range test, with all of the rates at once: `find_learning_rate`."""

import re
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from ..core import GradientTransformation, Tree, as_transformation
from ..extras import new_figure
from ..inspection import hyperparameters, replace
from ..pytrees import as_arrays
from ..tree import check_params, norm
from .data import Shuffled, batch_of, check_data
from .loop import compile_loop, counted, joined, run_loop
from .progress import progress_bar
from .step import TrainState, step_function

WINDOW = 5
"""Losses are averaged over the last of this many parts of the steps."""
MARGIN = 2.0
"""How far a suggestion keeps below the rates that fail: the smallest of them over this is the most it may be."""
TOLERANCE = 0.05
"""The part of what the best rate gained that another may at most fall behind by, and still be as good."""


@dataclass(frozen=True, repr=False, eq=False)
class LearningRateResult:
    """What a range test found: the rates, how each did, and which to take."""

    rates: np.ndarray  # rising, evenly spaced on a log scale
    losses: np.ndarray = field(repr=False)  # (rates, steps): before each step; NaN once it is not finite
    start_losses: np.ndarray = field(repr=False)  # (steps,): of the params at the start, on the same batches
    final: np.ndarray  # (rates,): mean loss over the last fifth of the steps; NaN where that is not finite
    start: float  # the mean of `start_losses` over the same steps
    diverged: np.ndarray  # (rates,): bools, not finite or above the start in the end
    suggestion: float  # one of the rates
    reason: str  # why, in a sentence
    seconds: dict[str, float]  # to "compile" and to "run"

    def __repr__(self) -> str:
        loss = self.final[list(self.rates).index(self.suggestion)]
        tried = f"{len(self.rates)} rates from {self.rates[0]:.3g} to {self.rates[-1]:.3g}"
        return (
            f"LearningRateResult(suggestion={self.suggestion:.3g}, loss {self.start:.4g} -> {loss:.4g}, "
            f"{self.diverged.sum()} of {tried} diverged)"
        )

    def plot(self, path: Any = None) -> Any:
        """Draws the loss at the start and at the end against the rate, the suggestion, and what diverged as crosses.

        Returns the figure, and writes it to `path` if that is given; otherwise it is one of pyplot's, for `plt.show()`.
        """
        figure = new_figure(path, figsize=(6.5, 4.2), layout="constrained")
        ax = figure.subplots()
        good = ~self.diverged
        ax.axhline(self.start, color="0.5", linewidth=1, label="loss at the start")
        ax.plot(self.rates[good], self.final[good], marker=".", label="loss at the end")
        if self.diverged.any():
            where = ax.get_xaxis_transform()  # x in data, y in fractions of the axis
            top = np.full(self.diverged.sum(), 0.97)
            ax.plot(self.rates[self.diverged], top, "x", color="tab:red", transform=where, label="diverged")
        label = f"suggestion: {self.suggestion:.3g}"
        ax.axvline(self.suggestion, color="tab:green", linestyle="--", linewidth=1, label=label)
        shown = np.append(self.final[good], self.start)
        wide = shown.min() > 0 and shown.max() > 20 * shown.min()
        ax.set(xscale="log", yscale="log" if wide else "linear", xlabel="learning rate", ylabel="loss")
        ax.set_title(f"{len(self.rates)} rates, {self.losses.shape[1]} steps each", fontsize="medium")
        ax.grid(alpha=0.3)
        ax.legend(fontsize="small")
        if path is not None:
            figure.savefig(path, dpi=120)
        return figure


def find_learning_rate(
    loss_fn: Callable[..., Any],
    params: Tree,
    optimizer: Any,
    data: Tree,
    *,
    low: float = 1e-6,
    high: float = 10.0,
    rates: int = 32,
    steps: int = 100,
    batch_size: int | None = None,
    key: Any = 0,
    path: str | None = None,
    has_aux: bool = False,
    progress: bool | None = None,
) -> LearningRateResult:
    """Trains from `params` for a few steps at each of many constant learning rates, and suggests one of them.

    All `rates`, evenly spaced from `low` to `high` on a log scale, train at once, in one compiled program, each from
    the same params and on the same batches; this takes the memory of as many optimizer states. `loss_fn`, `data`,
    `batch_size`, `key` and `progress` are as for `fit`. `optimizer` is one of gdfx, whose `learning_rate` is replaced,
    a schedule too, or else what is at `path`, as `gdfx.hyperparameters` writes it; or a function that makes an
    optimizer, also one of optax, from a rate: `lambda rate: optax.adam(rate)`.

    The losses of the last fifth of the steps are compared with each other and with those of the params at the start,
    batch by batch. A rate has diverged if its loss or params were not finite, or if it ends above the start, beyond
    chance. As good as the best are the neighboring rates behind it by no more than two standard errors of the
    difference, and 5 % of what the best gained: the suggestion is the middle one of these. It keeps a factor of 2 below
    the smallest rate above the best that fails, which is to diverge or to gain less than half as much; where none of
    these rates does, it is the largest that does and does not fail. It is for training at a constant rate from these
    params; with a schedule that starts low and decays, the peak may be a few times higher.

    Raises:
        TypeError: `optimizer` is neither of the two.
        ValueError: it has no learning rate, or several; the range, the numbers or the data cannot be used.
        RuntimeError: no rate got below the start.
    """
    check_params(params)
    size = check_data(data, batch_size)
    tried = _check_range(low, high, rates, steps)
    make = _factory(optimizer, path)
    for rate in (tried[0], tried[-1]):
        make(float(rate))  # raises for a value that is not allowed
    order = Shuffled(size, batch_size, key) if batch_size is not None else None
    step = step_function(loss_fn, has_aux=has_aux)

    def train_step(rate, state, alive, batch):
        state, metrics = step(make(rate), state, batch)
        alive &= jnp.isfinite(metrics["loss"]) & jnp.isfinite(norm(state.params))
        return state, alive, jnp.where(alive, metrics["loss"], jnp.nan)

    def body(constants, carry, row):
        rates, first, data = constants
        batch = batch_of(data, row[1])
        state, alive, losses = jax.vmap(train_step, (0, 0, 0, None))(rates, carry[0], carry[1], batch)
        start = loss_fn(first, batch)
        return (state, alive), {"losses": losses, "start": start[0] if has_aux else start}

    values = jnp.asarray(tried).astype(float)
    state = jax.jit(jax.vmap(lambda rate, params: TrainState.create(make(rate), params), (0, None)))(values, params)
    constants = values, jax.tree.map(jnp.asarray, params), jax.tree.map(jnp.asarray, data)
    take, parts = counted(steps, order.take if order else lambda n: None), []
    with progress_bar(steps, progress, f"find_learning_rate: {rates} rates") as bar:

        def watch(made, told, carry):
            parts.append(told)
            bar.update(made)

        held = (state, jnp.ones(rates, bool))
        rows = take(1)
        program = compile_loop(body, lambda held: ~held[1].any(), constants, held, rows)
        _, seconds, _ = run_loop(program, constants, held, rows, take, watch)
    told = joined(parts)
    return _judge(tried, told["losses"].astype(np.float64).T, told["start"].astype(np.float64), steps, seconds)


def _judge(
    rates: np.ndarray, losses: np.ndarray, start: np.ndarray, steps: int, seconds: dict[str, float]
) -> LearningRateResult:
    """The result; `losses` are of shape (rates, steps), or shorter where none was finite any more."""
    if losses.shape[1] < steps:
        raise RuntimeError(_nothing_found(rates, np.ones(len(rates), bool), float(start[0])))
    window = steps // WINDOW
    ends, start_ends = losses[:, -window:], start[-window:]
    with np.errstate(over="ignore", invalid="ignore"):
        final, began = ends.mean(axis=1), float(start_ends.mean())
        gain, error = _compare(start_ends - ends)  # batch by batch, so that easy and hard batches do not matter
        # Not the error of the difference: of a loss that grows and grows, it is as large as the loss.
        noise = _compare(start_ends)[1]
        diverged = ~np.isfinite(losses).all(axis=1) | ~(-gain <= 2 * noise + 1e-5 * abs(began))
        better = ~diverged & (gain > 2 * error + 1e-5 * abs(began))
    if not better.any():
        raise RuntimeError(_nothing_found(rates, diverged, began))
    best = int(np.where(better, final, np.inf).argmin())
    works = better & (gain >= gain[best] / 2)
    above = np.arange(len(rates)) > best
    failing = rates[~works & above]
    safe = rates <= (failing[0] / MARGIN if failing.size else np.inf)
    as_good = _as_good(ends, gain[best], works, best) & safe
    good = np.flatnonzero(as_good if as_good.any() else works & safe)
    chosen = best if not good.size else int(good[(good.size - 1) // 2] if as_good.any() else good[-1])
    return LearningRateResult(
        rates=rates,
        losses=losses,
        start_losses=start,
        final=final,
        start=began,
        diverged=diverged,
        suggestion=float(rates[chosen]),
        reason=_reason(rates, final, as_good, diverged, failing, chosen, best),
        seconds=seconds,
    )


def _compare(differences: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The means over the last axis, and their standard errors."""
    return differences.mean(axis=-1), differences.std(axis=-1, ddof=1) / np.sqrt(differences.shape[-1])


def _as_good(ends: np.ndarray, gained: float, works: np.ndarray, best: int) -> np.ndarray:
    """Which rates are as good as the best: it, and on either side of it those up to the first that is not."""
    good = np.zeros(len(ends), bool)
    behind, error = _compare(ends[works] - ends[best])
    good[works] = behind <= np.minimum(2 * error, TOLERANCE * gained)
    bad = np.flatnonzero(~good)
    good[: bad[bad < best].max(initial=-1) + 1] = False
    good[bad[bad > best].min(initial=len(good)) :] = False
    return good


def _reason(
    rates: np.ndarray,
    final: np.ndarray,
    as_good: np.ndarray,
    diverged: np.ndarray,
    failing: np.ndarray,
    chosen: int,
    best: int,
) -> str:
    here, lowest = f"{rates[chosen]:.3g}", f"{final[best]:.4g}"
    if as_good[chosen] and as_good.sum() > 1:
        low, high = rates[as_good][[0, -1]]
        said = f"{here} is the middle of the rates from {low:.3g} to {high:.3g}, which ended as low, up to noise, "
        said += f"as any: with a loss of {lowest} at {rates[best]:.3g}"
    elif chosen == best:
        said = f"{here} ended with the lowest loss, {lowest}"
    else:
        said = f"{here} ended with a loss of {final[chosen]:.4g}, and is safer than {rates[best]:.3g}, with {lowest}"
    if failing.size:
        how = "diverges" if diverged[rates == failing[0]].any() else "gains less than half as much"
        factor = failing[0] / rates[chosen]
        said += f"; {failing[0]:.3g}, a factor of {factor:.2g} above it, {how}"
        if factor < MARGIN:
            said += ", and no rate that is safer did well: try more rates"
    elif best == len(rates) - 1:
        said += "; larger rates were not tried: raise `high`"
    if best == 0:
        said += "; smaller rates were not tried: lower `low`"
    return f"{said}."


def _nothing_found(rates: np.ndarray, diverged: np.ndarray, start: float) -> str:
    tried = f"find_learning_rate: of {len(rates)} rates from {rates[0]:.3g} to {rates[-1]:.3g}"
    if not np.isfinite(start):
        return f"{tried} none can be judged: the loss at the start is {start}; check the params, the data and loss_fn"
    if diverged.all():
        return f"{tried} all diverged: lower `low`, and check the loss, {start:.4g} at the start, and its gradients"
    if diverged.any():
        return (
            f"{tried} {diverged.sum()} diverged and none got the loss below that at the start, {start:.4g}, beyond "
            "noise: try more `steps`, a larger batch_size, or more rates, and check that the gradients are not 0"
        )
    return (
        f"{tried} none diverged and none got the loss below that at the start, {start:.4g}, beyond noise: raise "
        "`high`, try more `steps` or a larger batch_size, and check that the gradients are not 0"
    )


def _check_range(low: Any, high: Any, rates: Any, steps: Any) -> np.ndarray:
    """The rates to try."""
    for name, value in (("low", low), ("high", high)):
        if isinstance(value, bool) or not isinstance(value, int | float | np.number):
            raise TypeError(f"{name} is {value!r}, expected a number, a learning rate")
        info = np.finfo(np.float32)
        if not info.tiny <= value <= info.max:
            raise ValueError(f"{name} is {value}, expected a positive learning rate that float32 can hold")
    if not low < high:
        raise ValueError(f"low is {low} and high is {high}, expected low < high: are they exchanged?")
    for name, value, least in (("rates", rates, 2), ("steps", steps, 10)):
        if isinstance(value, bool) or not isinstance(value, int | np.integer) or value < least:
            raise ValueError(f"{name} is {value!r}, expected an integer of at least {least}")
    return np.geomspace(low, high, rates)


def _factory(optimizer: Any, path: str | None) -> Callable[[Any], GradientTransformation]:
    """The optimizer for a rate."""
    if isinstance(optimizer, GradientTransformation):
        where = _path(optimizer) if path is None else path
        return lambda rate: as_arrays(replace(optimizer, {where: rate}))
    if not callable(optimizer):
        as_transformation(optimizer)  # raises for what is no optimizer either
        raise TypeError(
            f"optimizer is a {type(optimizer).__name__}, whose learning rate cannot be changed; expected an optimizer "
            "of gdfx, or a function that makes one from a rate, such as lambda rate: optax.adam(rate)"
        )
    if path is not None:
        raise ValueError(f"path is {path!r}, but optimizer is a function of the rate: leave path out")
    return lambda rate: as_arrays(as_transformation(optimizer(rate)))


def _path(optimizer: GradientTransformation) -> str:
    known = list(hyperparameters(optimizer))
    found = [name for name in known if re.search(r"(^|\.)learning_rate$|\['learning_rate'\]$", name)]
    if not found:
        raise ValueError(
            f"optimizer is {optimizer}, which has no learning_rate: name what to vary with path=, of "
            f"{', '.join(known) or 'which there is nothing'}, or add gdfx.scale_by_learning_rate"
        )
    if len(found) > 1:
        raise ValueError(
            f"optimizer has several learning rates: {', '.join(found)}; name one with path=, or pass a function that "
            "makes the optimizer from one rate"
        )
    return found[0]
