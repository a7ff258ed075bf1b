"""optax.transforms."""

from collections.abc import Callable, Mapping
from typing import Any

import gdfx
from gdfx import (
    adaptive_grad_clip as adaptive_grad_clip,
    add_decayed_weights as add_decayed_weights,
    clip as clip,
    clip_by_block_rms as clip_by_block_rms,
    clip_by_global_norm as clip_by_global_norm,
    ema as ema,
    keep_params_nonnegative as keep_params_nonnegative,
    measure_with_ema as measure_with_ema,
    monitor as monitor,
    named_chain as named_chain,
    snapshot as snapshot,
    trace as trace,
    zero_nans as zero_nans,
)
from gdfx.transforms.block_clip import unitwise_clip as unitwise_clip, unitwise_norm as unitwise_norm
from gdfx.transforms.per_example import (
    per_example_global_norm_clip as per_example_global_norm_clip,
    per_example_layer_norm_clip as per_example_layer_norm_clip,
)
from gdfx.wrappers.accumulate import skip_large_updates as skip_large_updates, skip_not_finite as skip_not_finite

from ..wrappers import MultiSteps as MultiSteps
from ._states import (
    AddNoiseState as AddNoiseState,
    ApplyIfFiniteState as ApplyIfFiniteState,
    ConditionallyMaskState as ConditionallyMaskState,
    ConditionallyTransformState as ConditionallyTransformState,
    EmaState as EmaState,
    MaskedNode as MaskedNode,
    MaskedState as MaskedState,
    MonitorState as MonitorState,
    MultiStepsState as MultiStepsState,
    NonNegativeParamsState as NonNegativeParamsState,
    PartitionState as PartitionState,
    SnapshotState as SnapshotState,
    TraceState as TraceState,
    ZeroNansState as ZeroNansState,
)
from ._types import ConditionFn as ConditionFn, ShouldSkipUpdateFunction as ShouldSkipUpdateFunction


def add_noise(eta: Any, gamma: Any, key: Any = None, *, seed: int | None = None) -> gdfx.add_noise:
    return gdfx.add_noise(eta, gamma, key if seed is None else seed)


def apply_if_finite(inner: Any, max_consecutive_errors: int) -> gdfx.guard:
    return gdfx.guard(inner, max_in_a_row=max_consecutive_errors)


def chain(*args: Any) -> gdfx.Chain:
    # Optax's states nest as the chains do.
    links = map(gdfx.as_transformation, args)
    return gdfx.chain(*(gdfx.whole(x) if isinstance(x, gdfx.Chain | gdfx.Optimizer) else x for x in links))


def conditionally_mask(
    inner: Any, should_transform_fn: Callable[..., Any], forward_extra_args: bool = False
) -> gdfx.conditionally_mask:
    # The function is given what its signature takes, forwarded or not.
    return gdfx.conditionally_mask(inner, should_transform_fn)


def conditionally_transform(
    inner: Any, should_transform_fn: Callable[..., Any], forward_extra_args: bool = False
) -> gdfx.conditionally_transform:
    return gdfx.conditionally_transform(inner, should_transform_fn)


def flatten(inner: Any) -> gdfx.flatten:
    return gdfx.flatten(inner)


def freeze(mask: Any) -> gdfx.masked:
    return gdfx.masked(gdfx.set_to_zero(), mask)


def masked(inner: Any, mask: Any, *, mask_compatible_extra_args: bool = False) -> gdfx.masked:
    return gdfx.masked(inner, mask)


def partition(
    transforms: Mapping[Any, Any], param_labels: Any, *, mask_compatible_extra_args: bool = False
) -> gdfx.partition:
    return gdfx.partition(transforms, param_labels)


def selective_transform(optimizer: Any, *, freeze_mask: Any) -> gdfx.selective_transform:
    return gdfx.selective_transform(optimizer, freeze_mask=freeze_mask)
