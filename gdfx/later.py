"""What is imported when it is first asked for: training, sweeps, losses and other things that updates do not need."""

from . import (
    aggregating as aggregating,
    assignment as assignment,
    interop as interop,
    losses as losses,
    microbatching as microbatching,
    models as models,
    perturbations as perturbations,
    projections as projections,
    testing as testing,
)
from .sweeps import distributions as distributions
from .sweeps.culling import (
    CullingRule as CullingRule,
    halving as halving,
    hyperband as hyperband,
    median_rule as median_rule,
)
from .sweeps.population import population as population
from .sweeps.result import Best as Best, SweepResult as SweepResult
from .sweeps.run import sweep as sweep
from .sweeps.spaces import grid as grid, sample as sample, zipped as zipped
from .training import stopping as stopping
from .training.checkpoints.checkpoint import Checkpoint as Checkpoint
from .training.checkpoints.store import Checkpoints as Checkpoints
from .training.evaluation import evaluator as evaluator
from .training.finder import LearningRateResult as LearningRateResult, find_learning_rate as find_learning_rate
from .training.fit import fit as fit
from .training.loggers import csv_logger as csv_logger, json_lines_logger as json_lines_logger
from .training.minimize import MinimizeResult as MinimizeResult, minimize as minimize
from .training.result import FitResult as FitResult, Report as Report
from .training.step import (
    TrainState as TrainState,
    make_step as make_step,
    step_function as step_function,
)
