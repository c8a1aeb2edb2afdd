"""What a worker is asked for: one candidate on the splits of one dataset."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from autometa.family import Candidate, ModelFamily
from autometa.fitting import EncodedData
from autometa.folds.rival import Rival
from autometa.metrics import Metric
from autometa.records import Evaluation, Status
from autometa.splitting import Split


@dataclass(frozen=True, eq=False)
class Job:
    """What all candidates on one matrix have in common. ``data.sample_weight`` enters fits, ``score_weight`` scores."""

    data: EncodedData
    splits: Sequence[Split]
    metrics: Sequence[Metric]
    score_weight: NDArray[np.float64] | None = None

    def score(self, metric: Metric, test: NDArray[np.intp], prediction: NDArray[np.float64]) -> float:
        """The score of the predicted test rows, higher is better; NaN where none of them has any weight."""
        weight = None if self.score_weight is None else self.score_weight[test]
        if weight is not None and not weight.any():
            return float("nan")
        return metric.score(self.data.y[test], prediction, weight)


@dataclass(frozen=True, eq=False)
class Request:
    """What is asked for one candidate."""

    family: ModelFamily
    candidate: Candidate
    fingerprint: str
    seed: int
    n_threads: int
    memory_limit_mb: float | None
    predictions: bool
    time_limit: float | None = None
    rival: Rival | None = None
    staged: bool = False
    cut_short: bool = False

    def blank(self) -> Evaluation:
        return Evaluation(self.fingerprint, self.candidate, Status.OK, seed=self.seed)
