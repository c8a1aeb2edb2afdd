"""The search: budget, proposals, tuner."""

from autometa.tuning.budget import Budget
from autometa.tuning.tuner import TuningResult, tune

__all__ = ["Budget", "TuningResult", "tune"]
