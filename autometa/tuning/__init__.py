"""The search: budget, proposals, tuner; and the sampler for anyone's own Optuna study."""

from autometa.tuning.budget import Budget
from autometa.tuning.neighbourhood import DatasetPolicy
from autometa.tuning.proposals import WarmStart
from autometa.tuning.sampler import MetaSampler
from autometa.tuning.tuner import TuningResult, tune
from autometa.tuning.warm_start import WarmStartReport

__all__ = ["Budget", "DatasetPolicy", "MetaSampler", "TuningResult", "WarmStart", "WarmStartReport", "tune"]
