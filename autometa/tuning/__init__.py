"""The search: budget, proposals, tuner; and the sampler for anyone's own Optuna study."""

from autometa.tuning.budget import Budget
from autometa.tuning.ensemble_gain import EnsembleValue, shipped_gain
from autometa.tuning.neighbourhood import DatasetPolicy
from autometa.tuning.proposals import WarmStart
from autometa.tuning.result import TuningResult
from autometa.tuning.sampler import MetaSampler
from autometa.tuning.shared_study import SharedStudy
from autometa.tuning.tuner import tune
from autometa.tuning.warm_start import WarmStartReport

__all__ = [
    "Budget",
    "DatasetPolicy",
    "EnsembleValue",
    "MetaSampler",
    "SharedStudy",
    "TuningResult",
    "WarmStart",
    "WarmStartReport",
    "shipped_gain",
    "tune",
]
