"""The search: proposals, evaluations in killable workers, a ledger of everything, within a budget."""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, wait
from dataclasses import dataclass, field, replace

import numpy as np
import optuna

from autometa.evaluation import Evaluator
from autometa.family import Candidate, ModelFamily
from autometa.folds import Rival
from autometa.metrics import Metric
from autometa.records import Evaluation, Ledger, LedgerEntry, Status
from autometa.tuning.budget import Budget
from autometa.tuning.proposals import FIXED_SECONDS, OUTCOMES, Proposal, Proposer, WarmStart, estimated_score
from autometa.workers import free_memory_mb

MAX_KEPT = 12
"""Candidates whose fold models are kept: as many as an ensemble is chosen from."""
_REFIT_MARGIN = 1.5
_MAX_TRIAL_SHARE = 0.5
_MATRIX_COPIES = 4
_PEAK_MARGIN = 1.2
_MIN_TRIALS = 20
_PATIENCE = 15
_NO_GAIN = 0.02
_ROUNDING = 1e-9


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
    """

    study: optuna.Study
    evaluations: tuple[Evaluation, ...]
    ledger: Ledger
    start: WarmStart

    def ranked(self, metric: str) -> list[Evaluation]:
        """The evaluations that ended well, best mean score first."""
        good = [e for e in self.evaluations if e.ok and np.isfinite(e.score(metric))]
        return sorted(good, key=lambda e: -e.score(metric))

    def unfinished(self, metric: str) -> list[Evaluation]:
        """Evaluations of some of the folds only, best mean score first: better than nothing."""
        parts = [e for e in self.evaluations if not e.ok and np.isfinite(e.score(metric))]
        return sorted(parts, key=lambda e: -e.score(metric))


@dataclass
class _Search:
    """State of one search; ``run`` empties the budget."""

    evaluator: Evaluator
    proposer: Proposer
    metric: Metric
    budget: Budget
    n_jobs: int
    on_trial: Callable[[Ledger], None] | None
    later: Future[WarmStart] | None
    refit: bool
    evaluations: list[Evaluation] = field(default_factory=list)
    ledger: Ledger = field(default_factory=Ledger)
    running: dict[Future[Evaluation], tuple[Proposal, float]] = field(default_factory=dict)

    def run(self) -> None:
        try:
            self._await_start()
            while self._fill() or self.running or self._start_arrives():
                done, late = wait(self.running, timeout=self._spendable(), return_when=FIRST_COMPLETED)
                for future in done:
                    self._finish(future, future.result())
                if late and not done:
                    break
        except KeyboardInterrupt:
            self._note("Interrupted: the best model so far is used.")
        finally:
            self._stop_all()

    def _await_start(self) -> None:
        """Where times must not matter, nothing starts before the warm start is there."""
        if self.later is not None and not self.budget.counts_time:
            limit = self._spendable()
            wait([self.later], timeout=None if limit is None else _MAX_TRIAL_SHARE * limit)
            self._adopt()

    def _start_arrives(self) -> bool:
        """Where nothing is left to try, whether the better warm start came in time."""
        if self.later is None or not self.budget.allows_trial(self.proposer.n_proposed):
            return False
        wait([self.later], timeout=self._spendable())
        self._adopt()
        return self.later is None

    def _adopt(self) -> None:
        if self.later is not None and self.later.done():
            self.proposer.adopt(self.later.result())
            self.later = None

    def _fill(self) -> bool:
        """Start trials until all workers are busy; whether one was started."""
        started = False
        while len(self.running) < self.n_jobs and self.budget.allows_trial(self.proposer.n_proposed):
            self._adopt()
            limit = self._trial_limit()
            if limit is not None and limit <= 0:
                break
            if reason := self._reason_to_end():
                self.later = None
                self._note(reason)
                break
            proposal = self.proposer.next(math.inf if limit is None else limit)
            if proposal is None:
                if not self.running and self.later is None:
                    self._note("Stopped early: no untried candidate fits into the remaining time.")
                break
            self._begin(proposal, limit)
            started = True
        return started

    def _begin(self, proposal: Proposal, limit: float | None) -> None:
        self.budget.book(np.nan_to_num(self.proposer.trial_seconds(proposal.candidate), nan=1.0) + FIXED_SECONDS)
        started = self.budget.elapsed
        if reason := self._lack_of_memory(proposal.candidate):
            skipped = Evaluation(self.evaluator.dataset.fingerprint, proposal.candidate, Status.SKIPPED, reason=reason)
            self._record(proposal, skipped, started)
            return
        future = self.evaluator.submit(
            proposal.candidate, time_limit=limit, predictions=True, rival=self._rival(), keep_models=True
        )
        self.running[future] = (proposal, started)

    def _trial_limit(self) -> float | None:
        """Seconds that the next trial may take: the rest of the budget less what the end needs."""
        if self.budget.counts_work or not math.isfinite(self.budget.seconds):
            return None
        spendable = self.budget.remaining - self.reserve()
        if any(e.ok for e in self.evaluations):
            return min(spendable, max(_MAX_TRIAL_SHARE * self.budget.seconds, 1.0))
        return spendable

    def _spendable(self) -> float | None:
        """Seconds until the search must end; ``None`` for no limit."""
        if self.budget.counts_work or not math.isfinite(self.budget.seconds):
            return None
        return max(0.0, self.budget.remaining - self.reserve())

    def reserve(self) -> float:
        """Seconds kept for choosing the weights, and for refitting where a single model is wanted."""
        fixed = min(0.15 + 0.03 * self.budget.seconds, 3.0)
        good = [e for e in self.evaluations if e.ok]
        if not (good and self.refit):
            return fixed
        best = max(good, key=lambda e: e.score(self.metric.name))
        share = self.evaluator.dataset.n_rows / max(1, best.n_train_rows)
        return _REFIT_MARGIN * float(np.mean(best.fit_seconds)) * share + fixed

    def _rival(self) -> Rival | None:
        """The best candidate, and how much two good candidates differ from split to split."""
        name = self.metric.name
        good = sorted((e for e in self.evaluations if e.ok), key=lambda e: -e.score(name))[:MAX_KEPT]
        if not good or not np.isfinite(good[0].scores[name]).all():
            return None
        best = np.asarray(good[0].scores[name])
        noises = [float(np.std(np.asarray(e.scores[name]) - best, ddof=1)) for e in good[1:] if len(best) > 1]
        noise = float(np.median(noises)) if len(noises) > 1 else float(np.std(best))
        return Rival(name, good[0].scores[name], noise) if np.isfinite(noise) and noise > 0 else None

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

    def _reason_to_end(self) -> str:
        """Why going on brings nothing; empty where it may. Only the clock is cut short, never a number of trials."""
        name = self.metric.name
        scores = np.array([e.score(name) if e.ok else -np.inf for e in self.evaluations])
        if self.budget.counts_trials or len(scores) < _MIN_TRIALS or not np.isfinite(scores[:-_PATIENCE]).any():
            return ""
        best = max((e for e in self.evaluations if e.ok), key=lambda e: e.score(name))
        error = best.standard_error(name)
        if best.score(name) >= self.metric.best - _ROUNDING:
            return f"Stopped early: {name} cannot be better than {self.metric.from_score(best.score(name)):g}."
        gain = self.proposer.expected_gain()
        recent = float(np.max(scores) - np.max(scores[:-_PATIENCE]))
        if not (np.isfinite(gain) and gain < _NO_GAIN * error and recent < _NO_GAIN * error):
            return ""
        return f"Stopped early: the expected gain of a further trial, {gain:.2g}, is far below the noise, {error:.2g}."

    def _finish(self, future: Future[Evaluation], evaluation: Evaluation) -> None:
        proposal, started = self.running.pop(future)
        self._record(proposal, evaluation, started)

    def _record(self, proposal: Proposal, evaluation: Evaluation, started: float) -> None:
        name = self.metric.name
        if evaluation.ok and not np.isfinite(evaluation.score(name)):
            evaluation = replace(
                evaluation, status=Status.FAILED, reason=f"{name} is not defined on the validation rows"
            )
        status = evaluation.status
        score, _ = estimated_score(evaluation, self.evaluations, name)
        if status is not Status.SKIPPED:
            self.evaluations.append(evaluation)
        assert proposal.trial is not None
        if status is Status.PRUNED and np.isfinite(score):
            proposal.trial.report(score, step=len(evaluation.fit_seconds))
        state = OUTCOMES.get(status, optuna.trial.TrialState.FAIL)
        self.proposer.study.tell(proposal.trial, score if status is Status.OK else None, state=state)
        self.proposer.tell(evaluation)
        if status is Status.OK:
            good = sorted((e for e in self.evaluations if e.ok), key=lambda e: -e.score(name))
            self.evaluator.forget_models(e.candidate for e in good[:MAX_KEPT])
        entry = LedgerEntry(
            proposal.candidate, status, proposal.source, score if status is Status.OK else math.nan,
            self.budget.elapsed - started, started, evaluation.reason,
        )  # fmt: skip
        self.ledger = self.ledger.add(entry)
        if self.on_trial is not None:
            self.on_trial(self.ledger)

    def _stop_all(self) -> None:
        """End what still runs; folds that were finished are kept."""
        self.on_trial = None
        for future in list(self.running):
            self._finish(future, self.evaluator.stop(future, "Stopped with the search."))

    def _note(self, text: str) -> None:
        self.ledger = self.ledger.add(
            LedgerEntry(None, Status.SKIPPED, "search", started=self.budget.elapsed, reason=text)
        )


def tune(
    evaluator: Evaluator,
    start: WarmStart,
    *,
    families: Sequence[ModelFamily],
    metric: Metric,
    budget: Budget,
    n_jobs: int = 1,
    random_state: int = 0,
    on_trial: Callable[[Ledger], None] | None = None,
    later: Future[WarmStart] | None = None,
    earlier: TuningResult | None = None,
    refit: bool = False,
) -> TuningResult:
    """Search for the best candidate.

    Parameters
    ----------
    evaluator : Evaluator
        Measures a candidate on the dataset, in workers that can be killed.
    start : WarmStart
        Candidates and what is believed of them.
    families : sequence of ModelFamily
        Their search spaces are what Optuna samples from.
    metric : Metric
    budget : Budget
        Shared with the caller: what was spent before the search counts.
    n_jobs : int, default=1
        Trials at a time; the evaluator must have as many workers.
    random_state : int, default=0
    on_trial : callable or None
        Called with the ledger after each trial.
    later : Future of WarmStart or None
        A better warm start that is still being made; the search goes over to it when it is there. Where measured
        times must not matter it is waited for.
    earlier : TuningResult or None
        A search on the same evaluator to go on from.
    refit : bool, default=False
        Keep the time to fit the best candidate on all rows.

    Returns
    -------
    TuningResult
        Possibly without a single good evaluation; the ledger then says why.
    """
    verbosity = optuna.logging.get_verbosity()
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    try:
        study = _new_study(random_state, n_jobs) if earlier is None else earlier.study
        proposer = Proposer(start, families, study, len(evaluator.splits), budget, metric.name)
        search = _Search(evaluator, proposer, metric, budget, n_jobs, on_trial, later, refit)
        if earlier is not None:
            proposer.resume(earlier.evaluations)
            search.evaluations, search.ledger = list(earlier.evaluations), earlier.ledger
        search.run()
    finally:
        optuna.logging.set_verbosity(verbosity)
    return TuningResult(study, tuple(search.evaluations), search.ledger, proposer.start)


def _new_study(random_state: int, n_jobs: int) -> optuna.Study:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
        sampler = optuna.samplers.TPESampler(
            n_startup_trials=5, multivariate=True, group=True, seed=random_state, constant_liar=n_jobs > 1
        )
    return optuna.create_study(direction="maximize", sampler=sampler)
