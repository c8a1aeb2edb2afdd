"""What a search leaves behind."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
import optuna
import pandas as pd

from autometa.metrics import Metric
from autometa.records import Evaluation, Ledger
from autometa.tuning.proposals import WarmStart
from autometa.tuning.warm_start import WarmStartReport


@dataclass(frozen=True)
class TuningResult:
    """What a search leaves behind.

    Parameters
    ----------
    study : optuna.Study
    evaluations : tuple of Evaluation
        All trials that were measured at least in part, in the order in which they ended, out-of-fold predictions
        included.
    ledger : Ledger
    start : WarmStart
        What the search went on from in the end.
    warm_start : WarmStartReport
        What the warm start saved or cost.
    """

    study: optuna.Study
    evaluations: tuple[Evaluation, ...]
    ledger: Ledger
    start: WarmStart
    warm_start: WarmStartReport = field(default_factory=WarmStartReport)

    def ranked(self, metric: str) -> list[Evaluation]:
        """The evaluations that ended well, best mean score first."""
        good = [e for e in self.evaluations if e.ok and np.isfinite(e.score(metric))]
        return sorted(good, key=lambda e: -e.score(metric))

    def usable(self, metric: str) -> list[Evaluation]:
        """The best of them whose predictions are here; all, where none are. Others come out of a storage."""
        ranked = self.ranked(metric)
        return [e for e in ranked if e.predictions is not None] or ranked

    def unfinished(self, metric: str) -> list[Evaluation]:
        """Evaluations of some of the folds only, best mean score first: better than nothing."""
        parts = [e for e in self.evaluations if not e.ok and np.isfinite(e.score(metric))]
        return sorted(parts, key=lambda e: -e.score(metric))

    def leaderboard(self, metric: Metric) -> pd.DataFrame:
        """One row per evaluation that ended well, best first; the score in the metric's own sign."""
        rows = [
            (
                e.candidate.family,
                metric.from_score(e.score(metric.name)),
                e.standard_error(metric.name),
                float(np.mean(e.fit_seconds)),
                dict(e.candidate.config),
            )
            for e in self.ranked(metric.name)
        ]
        columns = ["family", metric.name, "standard_error", "fit_seconds", "config"]
        return pd.DataFrame(rows, columns=columns, index=pd.RangeIndex(1, len(rows) + 1, name="rank"))
