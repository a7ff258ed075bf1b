"""optax.contrib."""

from typing import Any

import gdfx
from gdfx import (
    GaLoreDimensionNumbers as GaLoreDimensionNumbers,
    MuonDimensionNumbers as MuonDimensionNumbers,
    acprop as acprop,
    ademamix as ademamix,
    adopt as adopt,
    cocob as cocob,
    dadapt_adamw as dadapt_adamw,
    dog as dog,
    dowg as dowg,
    galore as galore,
    madgrad as madgrad,
    momo as momo,
    momo_adam as momo_adam,
    muon as muon,
    normalize as normalize,
    prodigy as prodigy,
    reduce_on_plateau as reduce_on_plateau,
    scale_by_acprop as scale_by_acprop,
    scale_by_ademamix as scale_by_ademamix,
    scale_by_adopt as scale_by_adopt,
    scale_by_cocob as scale_by_cocob,
    scale_by_galore as scale_by_galore,
    scale_by_madgrad as scale_by_madgrad,
    scale_by_muon as scale_by_muon,
    scale_by_simplified_ademamix as scale_by_simplified_ademamix,
    schedule_free_adamw as schedule_free_adamw,
    schedule_free_sgd as schedule_free_sgd,
    simplified_ademamix as simplified_ademamix,
)
from gdfx.core import GradientTransformation

from ..wrappers import TakesObjFn, sam as sam
from ._states import (
    COCOBState as COCOBState,
    DAdaptAdamWState as DAdaptAdamWState,
    DifferentiallyPrivateAggregateState as DifferentiallyPrivateAggregateState,
    DoGState as DoGState,
    DoWGState as DoWGState,
    GaLoreState as GaLoreState,
    HutchinsonState as HutchinsonState,
    MadgradState as MadgradState,
    MechanicState as MechanicState,
    MomoAdamState as MomoAdamState,
    MomoState as MomoState,
    MuonState as MuonState,
    NormalizeState as NormalizeState,
    ProdigyState as ProdigyState,
    ReduceLROnPlateauState as ReduceLROnPlateauState,
    SAMState as SAMState,
    ScaleByAdemamixState as ScaleByAdemamixState,
    ScaleBySimplifiedAdEMAMixState as ScaleBySimplifiedAdEMAMixState,
    ScheduleFreeState as ScheduleFreeState,
    SophiaState as SophiaState,
    SplitRealAndImaginaryState as SplitRealAndImaginaryState,
)


def differentially_private_aggregate(
    l2_norm_clip: Any, noise_multiplier: Any, key: Any = None, *, seed: int | None = None
) -> gdfx.differentially_private_aggregate:
    return gdfx.differentially_private_aggregate(l2_norm_clip, noise_multiplier, key if seed is None else seed)


def dpsgd(
    learning_rate: Any,
    l2_norm_clip: Any,
    noise_multiplier: Any,
    seed: int,
    momentum: Any = None,
    nesterov: bool = False,
) -> gdfx.dpsgd:
    return gdfx.dpsgd(learning_rate, l2_norm_clip, noise_multiplier, seed, momentum, nesterov)


def hutchinson_estimator_diag_hessian(random_seed: Any = None) -> GradientTransformation:
    return TakesObjFn(gdfx.hutchinson_estimator_diag_hessian(0 if random_seed is None else random_seed))


def mechanize(
    base_optimizer: Any, weight_decay: Any = 1e-2, eps: Any = 1e-8, s_init: Any = 1e-6, num_betas: int = 6
) -> gdfx.mechanize:
    return gdfx.mechanize(base_optimizer, weight_decay, eps, s_init, num_betas)


def schedule_free(
    base_optimizer: Any, learning_rate: Any, b1: Any = 0.9, weight_lr_power: Any = 2.0, state_dtype: Any = None
) -> gdfx.schedule_free:
    return gdfx.schedule_free(base_optimizer, learning_rate, b1, weight_lr_power, state_dtype)


def schedule_free_eval_params(state: Any, params: Any) -> Any:
    return gdfx.schedule_free_eval_params(state, params)


_HUTCHINSON = hutchinson_estimator_diag_hessian()


def sophia(
    learning_rate: Any,
    b1: Any = 0.965,
    b2: Any = 0.99,
    eps: Any = 1e-8,
    weight_decay: Any = 1e-4,
    weight_decay_mask: Any = None,
    gamma: Any = 0.01,
    clip_threshold: Any = 1.0,
    update_interval: int = 10,
    hessian_diagonal_fn: Any = _HUTCHINSON,
    mu_dtype: Any = None,
    verbose: bool = False,
    print_win_rate_every_n_steps: int = 0,
) -> GradientTransformation:
    # What optax prints, a `gdfx.monitor` measures.
    decay = weight_decay, weight_decay_mask
    rest = gamma, clip_threshold, update_interval, hessian_diagonal_fn, mu_dtype
    return TakesObjFn(gdfx.sophia(learning_rate, b1, b2, eps, *decay, *rest))


def split_real_and_imaginary(inner: Any) -> gdfx.split_real_and_imaginary:
    return gdfx.split_real_and_imaginary(inner)
