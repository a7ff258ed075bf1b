"""The states of optax's transforms: gdfx's classes under its names, and with the names of its fields."""

import dataclasses
from collections.abc import Callable
from typing import Any

from gdfx.core import CountState, EmptyState as EmptyState
from gdfx.optimizers.adabelief import ScaleByBeliefState as ScaleByBeliefState
from gdfx.optimizers.adadelta import ScaleByAdaDeltaState as ScaleByAdaDeltaState
from gdfx.optimizers.adagrad import ScaleByRssState as ScaleByRssState
from gdfx.optimizers.adam import ScaleByAdamState as ScaleByAdamState
from gdfx.optimizers.adan import ScaleByAdanState as ScaleByAdanState
from gdfx.optimizers.ademamix import ScaleByAdemamixState as ScaleByAdemamixState
from gdfx.optimizers.amsgrad import ScaleByAmsgradState as ScaleByAmsgradState
from gdfx.optimizers.cocob import ScaleByCocobState
from gdfx.optimizers.dadapt_adamw import ScaleByDadaptAdamState
from gdfx.optimizers.dog import ScaleByDogState
from gdfx.optimizers.dowg import ScaleByDowgState
from gdfx.optimizers.factored_rms import FactoredState as FactoredState
from gdfx.optimizers.galore import ScaleByGaLoreState
from gdfx.optimizers.lion import ScaleByLionState as ScaleByLionState
from gdfx.optimizers.madgrad import MadgradState as MadgradState
from gdfx.optimizers.momo import ScaleByMomoState
from gdfx.optimizers.momo_adam import ScaleByMomoAdamState
from gdfx.optimizers.muon import MuonState as MuonState
from gdfx.optimizers.novograd import ScaleByNovogradState as ScaleByNovogradState
from gdfx.optimizers.optimistic import ScaleByOptimisticGradientState
from gdfx.optimizers.prodigy import ScaleByProdigyState
from gdfx.optimizers.rmsprop import ScaleByRmsState as ScaleByRmsState, ScaleByStddevState
from gdfx.optimizers.rprop import ScaleByRpropState as ScaleByRpropState
from gdfx.optimizers.simplified_ademamix import ScaleBySimplifiedAdemamixState
from gdfx.optimizers.sm3 import ScaleBySM3State as ScaleBySM3State
from gdfx.optimizers.sophia import ScaleBySophiaState
from gdfx.solvers.backtracking import ScaleByBacktrackingLinesearchState as ScaleByBacktrackingLinesearchState
from gdfx.solvers.lbfgs import ScaleByLBFGSState as ScaleByLBFGSState
from gdfx.solvers.zoom import (
    ScaleByZoomLinesearchState as ScaleByZoomLinesearchState,
    ZoomLinesearchInfo as ZoomLinesearchInfo,
)
from gdfx.transforms.basic import ApplyEveryState
from gdfx.transforms.ema import EmaState as EmaState
from gdfx.transforms.monitor import MonitorState as MonitorState
from gdfx.transforms.nans import ZeroNansState as ZeroNansState
from gdfx.transforms.plateau import ReduceOnPlateauState
from gdfx.transforms.trace import TraceState as TraceState
from gdfx.wrappers.conditional import ConditionalState
from gdfx.wrappers.guard import GuardState
from gdfx.wrappers.inject import InjectHyperparamsState as InjectHyperparamsState
from gdfx.wrappers.mechanize import MechanizeState
from gdfx.wrappers.partition import PartitionState as PartitionState, SelectiveState
from gdfx.wrappers.reshape import ReshapedState
from gdfx.wrappers.schedule_free import ScheduleFreeState as ScheduleFreeState

from ..wrappers import (
    LookaheadState as LookaheadState,
    MultiStepsState as MultiStepsState,
    SAMState as SAMState,
)

ApplyEvery = ApplyEveryState
ApplyIfFiniteState = GuardState
COCOBState = ScaleByCocobState
DAdaptAdamWState = ScaleByDadaptAdamState
DoGState = ScaleByDogState
DoWGState = ScaleByDowgState
GaLoreState = ScaleByGaLoreState
MaskedState = SelectiveState
MechanicState = MechanizeState
MomoAdamState = ScaleByMomoAdamState
MomoState = ScaleByMomoState
ProdigyState = ScaleByProdigyState
ReduceLROnPlateauState = ReduceOnPlateauState
ScaleByRStdDevState = ScaleByStddevState
ScaleBySimplifiedAdEMAMixState = ScaleBySimplifiedAdemamixState
SophiaState = ScaleBySophiaState
SplitRealAndImaginaryState = ReshapedState
AdaptiveGradClipState = AddDecayedWeightsState = ClipByGlobalNormState = ClipState = EmptyState
NonNegativeParamsState = NormalizeState = ScaleByTrustRatioState = ScaleState = EmptyState
AddNoiseState = DifferentiallyPrivateAggregateState = HutchinsonState = ScaleByScheduleState = CountState
ConditionallyMaskState = ConditionallyTransformState = ConditionalState
InjectStatefulHyperparamsState = InjectHyperparamsState
MultiTransformState = PartitionState
SnapshotState = MonitorState
MaskedNode = type(None)  # what stands in a state for a leaf of another group: None


def _rename(cls: type, **names: str | Callable[[Any], Any]) -> None:
    """Lets the state answer to optax's names of its fields as well."""
    for name, ours in names.items():
        read = ours if callable(ours) else lambda state, ours=ours: getattr(state, ours)
        setattr(cls, name, property(read))


for _cls in (GuardState, ConditionalState, SelectiveState, ReshapedState):
    _rename(_cls, inner_state="inner")
for _cls in (MechanizeState, ScheduleFreeState):
    _rename(_cls, base_optimizer_state="inner")
_rename(GuardState, notfinite_count="in_a_row", total_notfinite="skipped", last_finite=lambda s: s.in_a_row == 0)
_rename(ConditionalState, step="count")
_rename(MonitorState, measurement=lambda s: next(iter(s.measurements.values())))
_rename(PartitionState, inner_states="groups")
_rename(ScaleByAdanState, t="count")
_rename(ScaleByAdemamixState, count_m2="count")
_rename(ScaleByDogState, is_init_step=lambda s: s.count == 0)
_rename(ScaleByOptimisticGradientState, is_initial_step=lambda s: s.count == 0)
_rename(ScaleBySimplifiedAdemamixState, t="count")
_rename(ScheduleFreeState, step_count="count", max_lr="max_learning_rate")
for _cls in [value for name, value in vars().items() if dataclasses.is_dataclass(value)]:
    setattr(_cls, "_replace", dataclasses.replace)  # noqa: B010 - the type checker knows no such attribute
