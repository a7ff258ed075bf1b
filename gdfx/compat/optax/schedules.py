"""optax.schedules."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from itertools import accumulate
from typing import Any, Literal

from gdfx import from_function, inject_hyperparams as inject_hyperparams, schedules as _schedules
from gdfx.core import Schedule as Schedule

from ._states import (
    InjectHyperparamsState as InjectHyperparamsState,
    InjectStatefulHyperparamsState as InjectStatefulHyperparamsState,
)
from ._types import StatefulSchedule as StatefulSchedule

cosine_decay_schedule = _schedules.cosine
cosine_onecycle_schedule = _schedules.cosine_onecycle
exponential_decay = _schedules.exponential
linear_onecycle_schedule = _schedules.linear_onecycle
linear_schedule = _schedules.linear
polynomial_schedule = _schedules.polynomial
warmup_constant_schedule = _schedules.warmup_constant
warmup_exponential_decay_schedule = _schedules.warmup_exponential


def WrappedSchedule(schedule_fn: Callable[..., Any]) -> Schedule:  # noqa: N802 - optax's name
    return from_function(schedule_fn)


def constant_schedule(value: Any) -> Schedule:
    return _schedules.constant(value)


def join_schedules(schedules: Sequence[Callable[..., Any]], boundaries: Sequence[int]) -> Schedule:
    return _schedules.join(
        tuple(s if isinstance(s, Schedule) else from_function(s) for s in schedules), tuple(boundaries)
    )


def piecewise_constant_schedule(init_value: Any, boundaries_and_scales: Mapping[int, float] | None = None) -> Schedule:
    return _schedules.piecewise_constant(init_value, *_columns(boundaries_and_scales))


def piecewise_interpolate_schedule(
    interpolate_type: Literal["linear", "cosine"],
    init_value: Any,
    boundaries_and_scales: Mapping[int, float] | None = None,
) -> Schedule:
    rows = sorted((boundaries_and_scales or {}).items())
    return _schedules.piecewise_interpolate(
        interpolate_type, init_value, *(zip(*rows, strict=True) if rows else ((), ()))
    )


def warmup_cosine_decay_schedule(
    init_value: Any,
    peak_value: Any,
    warmup_steps: int,
    decay_steps: int,
    end_value: Any = 0.0,
    exponent: Any = 1.0,
) -> Schedule:
    alpha = 0.0 if peak_value == 0.0 else end_value / peak_value
    decay = cosine_decay_schedule(peak_value, decay_steps - warmup_steps, alpha, exponent)
    return _schedules.join((linear_schedule(init_value, peak_value, warmup_steps), decay), (warmup_steps,))


def sgdr_schedule(cosine_kwargs: Iterable[Mapping[str, Any]]) -> Schedule:
    cycles = list(cosine_kwargs)
    ends = list(accumulate(cycle["decay_steps"] for cycle in cycles))
    return _schedules.join(tuple(warmup_cosine_decay_schedule(**cycle) for cycle in cycles), tuple(ends[:-1]))


def _columns(rows: Mapping[int, float] | None) -> tuple[tuple[int, ...], tuple[float, ...]]:
    return tuple(sorted(rows or {})), tuple(scale for _, scale in sorted((rows or {}).items()))
