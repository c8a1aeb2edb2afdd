"""The search: proposals, evaluations in killable workers, a ledger of everything, within a budget."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, wait
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np
import optuna

from autometa.evaluation import Evaluator
from autometa.family import Candidate, ModelFamily
from autometa.metrics import Metric
from autometa.records import Evaluation, Ledger, LedgerEntry, Status
from autometa.tuning.budget import Budget
from autometa.tuning.proposals import OUTCOMES, Proposal, Proposer

if TYPE_CHECKING:
    from autometa.meta_model import Belief

_REFIT_MARGIN = 1.5
_MAX_TRIAL_SHARE = 0.5


@dataclass(frozen=True)
class TuningResult:
    """What a search leaves behind.

    Parameters
    ----------
    study : optuna.Study
    evaluations : tuple of Evaluation
        All finished trials in the order in which they ended, out-of-fold predictions included.
    ledger : Ledger
    """

    study: optuna.Study
    evaluations: tuple[Evaluation, ...]
    ledger: Ledger

    def ranked(self, metric: str) -> list[Evaluation]:
        """The evaluations that ended well, best mean score first."""
        good = [e for e in self.evaluations if e.ok and np.isfinite(e.score(metric))]
        return sorted(good, key=lambda e: -e.score(metric))


@dataclass
class _Search:
    """State of one search; ``run`` empties the budget."""

    evaluator: Evaluator
    proposer: Proposer
    metric: Metric
    budget: Budget
    n_jobs: int
    on_trial: Callable[[Ledger], None] | None
    evaluations: list[Evaluation] = field(default_factory=list)
    ledger: Ledger = field(default_factory=Ledger)
    running: dict[Future[Evaluation], tuple[Proposal, float]] = field(default_factory=dict)

    def run(self) -> None:
        try:
            while self._fill() or self.running:
                done, _ = wait(self.running, return_when=FIRST_COMPLETED)
                for future in done:
                    self._finish(future)
        except KeyboardInterrupt:
            self._note("Interrupted: the best model so far is used.")
        finally:
            self._cancel_all()

    def _fill(self) -> bool:
        """Start trials until all workers are busy; whether one was started."""
        started = False
        while len(self.running) < self.n_jobs and self.budget.allows_trial(self.proposer.n_proposed):
            limit = self._trial_limit()
            if limit is not None and limit <= 0:
                break
            proposal = self.proposer.next()
            if proposal is None:
                if not self.running:
                    self._note("Stopped early: no untried candidate fits into the remaining time.")
                break
            future = self.evaluator.submit(proposal.candidate, time_limit=limit, predictions=True)
            self.running[future] = (proposal, self.budget.elapsed)
            started = True
        return started

    def _trial_limit(self) -> float | None:
        """Seconds that the next trial may take: the rest of the budget less the time to refit the best model."""
        if not np.isfinite(self.budget.seconds):
            return None
        spendable = self.budget.remaining - self.reserve()
        if self.evaluations and any(e.ok for e in self.evaluations):
            return min(spendable, max(_MAX_TRIAL_SHARE * self.budget.seconds, 1.0))
        return spendable

    def reserve(self) -> float:
        """Seconds kept for refitting the best model on all rows."""
        good = [e for e in self.evaluations if e.ok]
        if not good:
            return 0.05 * self.budget.seconds
        best = max(good, key=lambda e: e.score(self.metric.name))
        share = self.evaluator.dataset.n_rows / max(1, best.n_train_rows)
        return _REFIT_MARGIN * float(np.mean(best.fit_seconds)) * share + 0.03 * self.budget.seconds + 0.2

    def _finish(self, future: Future[Evaluation]) -> None:
        proposal, started = self.running.pop(future)
        evaluation = future.result()
        score = evaluation.score(self.metric.name)
        status, reason = evaluation.status, evaluation.reason
        if evaluation.ok and not np.isfinite(score):
            status, reason = Status.FAILED, f"{self.metric.name} is not defined on the validation rows"
        else:
            self.evaluations.append(evaluation)
        assert proposal.trial is not None
        state = OUTCOMES.get(status, optuna.trial.TrialState.FAIL)
        self.proposer.study.tell(proposal.trial, score if status is Status.OK else None, state=state)
        self.proposer.tell(proposal, evaluation, self.metric.name)
        seconds = self.budget.elapsed - started
        entry = LedgerEntry(proposal.candidate, status, proposal.source, score, seconds, started, reason)
        self.ledger = self.ledger.add(entry)
        if self.on_trial is not None:
            self.on_trial(self.ledger)

    def _cancel_all(self) -> None:
        for future, (proposal, started) in list(self.running.items()):
            future.cancel()
            assert proposal.trial is not None
            self.proposer.study.tell(proposal.trial, state=optuna.trial.TrialState.FAIL)
            seconds = self.budget.elapsed - started
            entry = LedgerEntry(
                proposal.candidate, Status.SKIPPED, proposal.source,
                seconds=seconds, started=started, reason="stopped with the search",
            )  # fmt: skip
            self.ledger = self.ledger.add(entry)
        self.running.clear()

    def _note(self, text: str) -> None:
        self.ledger = self.ledger.add(
            LedgerEntry(None, Status.SKIPPED, "search", started=self.budget.elapsed, reason=text)
        )


def tune(
    evaluator: Evaluator,
    candidates: Sequence[Candidate],
    *,
    families: Sequence[ModelFamily],
    metric: Metric,
    budget: Budget,
    belief: Belief | None = None,
    seconds_factor: float = 1.0,
    n_jobs: int = 1,
    random_state: int = 0,
    on_trial: Callable[[Ledger], None] | None = None,
) -> TuningResult:
    """Search for the best candidate.

    Parameters
    ----------
    evaluator : Evaluator
        Measures a candidate on the dataset, in workers that can be killed.
    candidates : sequence of Candidate
        The warm start, best first; the first ``len(belief)`` in the order of the belief.
    families : sequence of ModelFamily
        Their search spaces are what Optuna samples from.
    metric : Metric
    budget : Budget
        Shared with the caller: what was spent before the search counts.
    belief : Belief or None
    seconds_factor : float, default=1.0
        Factor on the belief's seconds for rows beyond the corpus.
    n_jobs : int, default=1
        Trials at a time; the evaluator must have as many workers.
    random_state : int, default=0
    on_trial : callable or None
        Called with the ledger after each trial.

    Returns
    -------
    TuningResult
        Possibly without a single good evaluation; the ledger then says why.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
        sampler = optuna.samplers.TPESampler(
            n_startup_trials=5, multivariate=True, group=True, seed=random_state, constant_liar=n_jobs > 1
        )
    verbosity = optuna.logging.get_verbosity()
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    try:
        study = optuna.create_study(direction="maximize", sampler=sampler)
        proposer = Proposer(
            candidates, families, study, belief,
            n_fits=len(evaluator.splits), budget=budget, seconds_factor=seconds_factor,
        )  # fmt: skip
        search = _Search(evaluator, proposer, metric, budget, n_jobs, on_trial)
        search.run()
    finally:
        optuna.logging.set_verbosity(verbosity)
    return TuningResult(study, tuple(search.evaluations), search.ledger)
