"""What trials may take, seconds and memory, so that a search ends in time with a model that is fitted again."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from autometa.evaluation import Evaluator
from autometa.families._deadlines import ends_in_time
from autometa.family import Candidate
from autometa.metrics import Metric
from autometa.records import Evaluation
from autometa.resident_memory import free_memory_mb
from autometa.tuning.budget import Budget
from autometa.tuning.library import best_first
from autometa.tuning.recall import absent, recall_seconds

_REFIT_MARGIN = 1.5
_MAX_REFIT_SHARE = 0.4
_REFITS_SHARE = 0.15
_MAX_TRIAL_SHARE = 0.5
_LEAST_TRIAL_SHARE = 0.1
_LEAST_START = 0.5
_LEAST_START_SHARE = 0.04
_OVERDUE = 3.0
_RECENT = 5
_SHORT_SECONDS = 1.0
_ENCODING_MARGIN = 1.5
_MATRIX_COPIES = 4
_PEAK_MARGIN = 1.2


@dataclass(eq=False)
class Allowance:
    """What the trials of one search may take.

    Parameters
    ----------
    evaluator : Evaluator
    metric : Metric
    budget : Budget
    n_jobs : int
        Trials at a time.
    n_refits : int
        Of how many of the best candidates the time is kept to fit them on all rows, see :func:`tune`.
    evaluations : list of Evaluation
        Those of the search, read as they grow.
    is_shared : bool, default=False
        Whether other processes work on the same study, so that models of good candidates may be elsewhere.
    """

    evaluator: Evaluator
    metric: Metric
    budget: Budget
    n_jobs: int
    n_refits: int
    evaluations: list[Evaluation]
    is_shared: bool = False

    def seconds_left(self) -> float | None:
        """Seconds until the search must end; ``None`` for no limit."""
        left = self.budget.seconds_left
        return None if left is None else left - self.reserve()

    def for_trials(self) -> float | None:
        """Seconds until the last trial must end; ``None`` for no limit."""
        left = self.seconds_left()
        return None if left is None else max(0.0, left - self._recall_seconds())

    def for_start(self) -> float | None:
        """Seconds that may be waited for a better warm start before anything is tried; ``None`` for no limit."""
        limit = self.for_trials()
        return None if limit is None else _MAX_TRIAL_SHARE * limit

    def for_next(self, n_running: int) -> float | None:
        """Seconds that the next trial may take beside those that run; ``None`` for no limit."""
        left = self.seconds_left()
        if left is None:
            return None
        left -= self._recall_seconds() + (self._usual_seconds() if n_running >= self.n_jobs else 0.0)
        return min(left, max(_MAX_TRIAL_SHARE * self.budget.seconds, 1.0)) if self._has_model() else left

    def least(self) -> float:
        """Seconds below which no trial begins: one that does not end in time costs its worker, wanted for new fits."""
        can_wait = self.n_refits and self.budget.counts_time and self._has_model()
        return min(_LEAST_START, _LEAST_START_SHARE * self.budget.seconds) if can_wait else 0.0

    def patience(self, candidate: Candidate, expected: float, limit: float | None) -> float | None:
        """Seconds that a trial may take: less than the limit where it could end with nothing after all of it.

        What cannot be cut short is stopped when it takes much longer than expected, once there is a model.
        """
        hurries = self.budget.counts_time and self._has_model()
        can_be_cut = ends_in_time(self.evaluator.families[candidate.family])
        if limit is None or can_be_cut or not hurries or not math.isfinite(expected):
            return limit
        return min(limit, max(_OVERDUE * expected, _LEAST_TRIAL_SHARE * self.budget.seconds))

    def n_ahead(self) -> int:
        """Trials that wait for a worker: one where trials are short, so that no worker idles during a proposal.

        It is proposed without the outcomes of those that run, which is worth less than the time of a short trial. Where
        times must not matter there is none, as the order in which trials end would.
        """
        return int(self.budget.counts_time and self._usual_seconds() < _SHORT_SECONDS)

    def reserve(self) -> float:
        """Seconds kept for choosing the weights and for fitting again what was chosen."""
        fixed = min(0.15 + 0.03 * self.budget.seconds, 3.0)
        if not (self._has_model() and self.n_refits):
            return fixed
        best = best_first(self.evaluations, self.metric.name)[: self.n_refits]
        fits = [e.seconds_on(self.evaluator.dataset.n_rows) for e in best]
        if self.n_refits > 1:
            return fixed + min(max(sum(fits) / self.n_jobs, max(fits)), _REFITS_SHARE * self.budget.seconds)
        # Where a new fit would take most of the time, another trial is worth more: there are models of the folds.
        refit = _REFIT_MARGIN * fits[0]
        return fixed + (refit if refit <= _MAX_REFIT_SHARE * self.budget.seconds else 0.0)

    def absent(self) -> list[Evaluation]:
        """Good candidates whose models are in another process, or went with it."""
        return absent(self.evaluations, self.metric.name) if self.is_shared else []

    def objection(self, candidate: Candidate, limit: float | None) -> str:
        """Why a candidate cannot be tried in so many seconds and the free memory; empty if it can."""
        return self._lack_of_time(candidate, limit) or self._lack_of_memory(candidate)

    def _lack_of_time(self, candidate: Candidate, limit: float | None) -> str:
        """Why the table cannot be encoded for a candidate, which nobody can interrupt; empty if it can."""
        if limit is None or not self.budget.counts_time:
            return ""
        seconds = _ENCODING_MARGIN * self.evaluator.encoding_seconds(self.evaluator.families[candidate.family].matrix)
        return f"The table would need about {seconds:.1f} s to be encoded for it." if seconds > limit else ""

    def _lack_of_memory(self, candidate: Candidate) -> str:
        """Why a candidate would not fit into memory; empty if it would."""
        matrix = self.evaluator.data(self.evaluator.families[candidate.family].matrix).matrix
        peaks = [e.peak_memory_mb for e in self.evaluations if e.candidate.family == candidate.family]
        need = max([_MATRIX_COPIES * matrix.nbytes / 2**20, *(_PEAK_MARGIN * p for p in peaks if np.isfinite(p))])
        allowed = self.evaluator.memory_limit_mb
        free = free_memory_mb() / self.n_jobs if allowed is None else min(allowed, free_memory_mb())
        if need <= free:
            return ""
        return f"It would need about {need:.0f} MB of the {free:.0f} MB that are free for a trial."

    def _has_model(self) -> bool:
        return any(e.ok for e in self.evaluations)

    def _usual_seconds(self) -> float:
        """What a trial takes, judged by the last few."""
        recent = [e.seconds for e in self.evaluations[-_RECENT:]]
        return float(np.median(recent)) if recent else math.inf

    def _recall_seconds(self) -> float:
        return recall_seconds(self.absent(), n_jobs=self.n_jobs, budget_seconds=self.budget.seconds)
