"""Fine-tuning at the end of ``fit``, in the time that is left: as one more trial, or on the one model that predicts.

A boosted configuration is fine-tuned into another configuration (a lower rate, rounds by early stopping), which is
then measured on all splits like any trial. It takes the place of its origin only if it scored better there, with fold
models and out-of-fold predictions of its own, so that weights and temperature are chosen from what really predicts.

A net is fine-tuned in its weights, which no out-of-fold prediction describes afterwards. So that is done only where
one net, fitted on all rows, is all that predicts; a bag of nets has seen all rows already and stays as it is.
"""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import TimeoutError as NotInTime
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import numpy as np

from autometa.evaluation import Evaluator
from autometa.families._staged import ROUNDS_AND_RATE
from autometa.family import Candidate
from autometa.fine_tuning import Rounds, choose_rounds, fine_tune
from autometa.fitting import FittedModel
from autometa.folds import quietly
from autometa.metrics import Metric
from autometa.predictor import Member
from autometa.records import Evaluation, LedgerEntry, Status
from autometa.tuning import Budget
from autometa.workers import WorkerError, WorkerPool

_N_SPLITS = 2
_ROUNDS_FITS = 10.0
"""What choosing the rounds costs, in plain fits: on each split a plain one and one with four times the rounds."""
_NET_FITS = 4.0
_MARGIN = 1.3
_SOFT_SHARE = 0.8
"""Share of the time after which a net's fine-tuning begins no further step; then the worker is killed."""


@dataclass(frozen=True, eq=False)
class Polisher:
    """Fine-tunes what the search chose, never beyond the budget.

    Where times may not decide (``max_trials``, ``budget_unit="work"``), whether it is tried does not depend on
    measured times either: always, and only within the work that is left.

    Parameters
    ----------
    evaluator : Evaluator
    workers : WorkerPool
    metric : Metric
    budget : Budget
    """

    evaluator: Evaluator
    workers: WorkerPool
    metric: Metric
    budget: Budget

    def boost(
        self, ranked: Sequence[Evaluation], members: Sequence[Member], reserve: float
    ) -> tuple[Evaluation | None, Evaluation | None, LedgerEntry | None]:
        """The heaviest boosted member as it was measured, and fine-tuned where that scores better; the line to
        write.

        Parameters
        ----------
        ranked : sequence of Evaluation
        members : sequence of Member
            Heaviest first.
        reserve : float
            Seconds to keep for choosing weights and fitting again.
        """
        measured = {e.candidate.key: e for e in ranked}
        keys = [m.candidate.key for m in members if m.family in ROUNDS_AND_RATE]
        origin = next((measured[key] for key in keys if key in measured), None)
        if origin is None:
            return None, None, None
        started, n_splits = self.budget.elapsed, len(self.evaluator.splits)
        if reason := self._too_long(origin, _ROUNDS_FITS, reserve, later=n_splits):
            return origin, None, self._line(origin.candidate, started, reason)
        rounds, problem = self._rounds(origin, reserve)
        if rounds is None or not rounds.better:
            return origin, None, self._line(origin.candidate, started, problem if rounds is None else rounds.reason)
        candidate = Candidate(origin.candidate.family, dict(rounds.config))
        if reason := self._too_long(origin, (1 + n_splits) * _growth(origin.candidate, candidate), reserve):
            return origin, None, self._line(candidate, started, reason)
        tuned = self.evaluator.evaluate(
            candidate, time_limit=self._limit(reserve), predictions=True, keep_models=True
        )  # fmt: skip
        return (origin, *self._verdict(origin, tuned, rounds, started))

    def _rounds(self, origin: Evaluation, reserve: float) -> tuple[Rounds | None, str]:
        family = self.evaluator.families[origin.candidate.family]
        task = partial(
            choose_rounds, family, dict(origin.candidate.config), data=self.evaluator.data(family.matrix),
            metric=self.metric, splits=self.evaluator.splits[:_N_SPLITS], seed=self.evaluator.seed,
            score_weight=self._score_weight(),
        )  # fmt: skip
        return self._in_worker(task, self._limit(reserve))

    def _verdict(
        self, origin: Evaluation, tuned: Evaluation, rounds: Rounds, started: float
    ) -> tuple[Evaluation | None, LedgerEntry]:
        """Kept only where all of the splits agree in the mean."""
        before, after = origin.score(self.metric.name), tuned.score(self.metric.name)
        told = rounds.reason.partition(":")[0]
        if not tuned.ok:
            return None, self._line(tuned.candidate, started, f"undone: {told}; {tuned.reason or tuned.status}")
        if not after > before:
            reason = f"undone: {told}; on all splits the score went from {before:.5g} to {after:.5g}"
            return None, self._line(tuned.candidate, started, reason)
        reason = f"{told}; on all splits the score went from {before:.5g} to {after:.5g}"
        return tuned, self._line(tuned.candidate, started, reason, status=Status.OK, score=after)

    def refine(self, member: Member, origin: Evaluation) -> tuple[Member, LedgerEntry | None]:
        """A single net trained on with all rows, or the member as it was; the line to write."""
        model = member.models[0]
        if len(member.models) > 1 or not hasattr(model, "refine"):
            return member, None
        started = self.budget.elapsed
        if reason := self._too_long(origin, _NET_FITS, 0.0):
            return member, self._line(origin.candidate, started, reason)
        family, dataset = self.evaluator.families[member.family], self.evaluator.dataset
        limit = self._limit(0.0)
        codes = np.array(member.class_codes[0], dtype=np.int64) if dataset.task.is_classification else None
        task = partial(
            fine_tune, family, dict(member.config), data=self.evaluator.data(member.matrix), metric=self.metric,
            splits=self.evaluator.splits[:_N_SPLITS], model=FittedModel(model, codes, dataset.n_classes),
            seed=self.evaluator.seed, score_weight=self._score_weight(),
            time_limit_seconds=_SOFT_SHARE * limit if limit is not None and self.budget.counts_time else None,
        )  # fmt: skip
        tuned, problem = self._in_worker(task, limit)
        if tuned is None:
            return member, self._line(origin.candidate, started, problem)
        entry = replace(tuned.entry(member.family, started), seconds=self.budget.elapsed - started)
        return (replace(member, models=(tuned.model,)) if tuned.kept else member), entry

    def _too_long(self, origin: Evaluation, n_fits: float, reserve: float, later: float = 0.0) -> str:
        """Why there is no time for so many plain fits, and ``later`` more; empty where there is, the work booked."""
        if self.budget.counts_trials:
            return "" if self.budget.remaining > 0 else "undone: no time is left"
        forecast, left = origin.candidate.forecast, self.budget.remaining - reserve
        one = _MARGIN * float(np.mean(origin.fit_seconds))
        if self.budget.counts_work:
            one, left = float(np.nan_to_num(forecast.fit_seconds if forecast else np.nan, nan=1.0)), left + reserve
        if (n_fits + later) * one > left:
            needed = f"about {(n_fits + later) * one:.2g} s of the {max(0.0, left):.2g} s that are left"
            return f"undone: it would need {needed}"
        self.budget.book(n_fits * one)
        return ""

    def _limit(self, reserve: float) -> float | None:
        """Seconds that a step may take; ``None`` for no limit."""
        left = self.budget.seconds_left
        return None if left is None else max(0.0, left - (reserve if self.budget.counts_time else 0.0))

    def _in_worker(self, task: Any, limit: float | None) -> tuple[Any, str]:
        """What the task answers, and why it does not."""
        try:
            return self.workers.run(quietly, task, time_limit=limit), ""
        except NotInTime:
            return None, "undone: the time ran out before it was done"
        except WorkerError as error:
            return None, f"undone: {error}"

    def _score_weight(self) -> Any:
        """Class weights enter fits, not scores."""
        weight = self.evaluator.dataset.sample_weight
        return np.ones(self.evaluator.dataset.n_rows) if weight is None else weight

    def _line(
        self, candidate: Candidate, started: float, reason: str, *, status: Status = Status.SKIPPED,
        score: float = float("nan"),
    ) -> LedgerEntry:  # fmt: skip
        seconds = self.budget.elapsed - started
        return LedgerEntry(candidate, status, "fine_tune", score, seconds, started, reason)


def _growth(origin: Candidate, tuned: Candidate) -> float:
    """How many times the rounds."""
    name, _ = ROUNDS_AND_RATE[origin.family]
    return float(tuned.config[name]) / max(1.0, float(origin.config[name]))
