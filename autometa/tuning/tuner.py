"""The search: proposals, evaluations in killable workers, a ledger of everything, within a budget."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field, replace
from typing import Any, Protocol, runtime_checkable

import numpy as np
import optuna

from autometa.evaluation import Evaluator
from autometa.family import Candidate, ModelFamily
from autometa.interrupts import interrupts_deferred, wait_for_first
from autometa.metrics import Metric
from autometa.records import Evaluation, Ledger, LedgerEntry, Status
from autometa.tuning.allowance import Allowance
from autometa.tuning.budget import Budget
from autometa.tuning.costs import FIXED_SECONDS
from autometa.tuning.library import library
from autometa.tuning.proposals import OUTCOMES, Proposal, Proposer, WarmStart, estimated_score
from autometa.tuning.recall import recall
from autometa.tuning.result import TuningResult
from autometa.tuning.shared_study import SharedStudy
from autometa.tuning.stopping import reason_to_end, rival
from autometa.tuning.study import new_study, quiet_optuna
from autometa.workers import one_line


@runtime_checkable
class Watcher(Protocol):
    """Who wants to know of trials that begin, too."""

    def __call__(self, ledger: Ledger) -> Any:
        """A trial has ended; ``True`` ends the search."""

    def begin(self, candidate: Candidate, final: float) -> None:
        """A trial begins; ``final`` is the score that the best candidate is expected to have in the end, or NaN."""


@dataclass
class _Search:
    """State of one search; ``run`` empties the budget."""

    evaluator: Evaluator
    proposer: Proposer
    metric: Metric
    budget: Budget
    n_jobs: int
    on_trial: Callable[[Ledger], Any] | Watcher | None
    later: Future[WarmStart] | None
    allowance: Allowance
    evaluations: list[Evaluation]
    shared: SharedStudy | None = None
    ledger: Ledger = field(default_factory=Ledger)
    running: dict[Future[Evaluation], tuple[Proposal, float]] = field(default_factory=dict)
    n_before: int = 0
    ended: bool = False
    stopping: bool = False
    halted: bool = False

    def run(self) -> None:
        try:
            with interrupts_deferred(), self.shared or contextlib.nullcontext():
                self._search()
        except KeyboardInterrupt:
            self._note("Interrupted: the best model so far is used.")
        except (optuna.exceptions.OptunaError, OSError) as error:
            if self.shared is None:
                raise
            self._note(f"The storage failed, so that the search ended: {one_line(error)}")

    def _search(self) -> None:
        try:
            self._resume()
            self._await_start()
            while self._fill() or self.running or self._start_arrives():
                done, late = wait_for_first(self.running, self.allowance.for_trials())
                for future in done:
                    self._finish(future, future.result())
                if late and not done:
                    break
        finally:
            self._stop_all()
        self._recall(self.allowance.absent())

    def _await_start(self) -> None:
        """Where times must not matter, nothing starts before the warm start is there."""
        if self.later is not None and not self.budget.counts_time:
            wait_for_first([self.later], self.allowance.for_start())
            self._adopt()

    def _start_arrives(self) -> bool:
        """Where nothing is left to try, whether the better warm start came in time."""
        if self.later is None or not self._allows_trial():
            return False
        wait_for_first([self.later], self.allowance.for_trials())
        self._adopt()
        return self.later is None

    def _adopt(self) -> None:
        if self.later is not None and self.later.done():
            self.proposer.adopt(self.later.result())
            self.later = None

    def _fill(self) -> bool:
        """Start trials until all workers are busy; whether one was started."""
        started = False
        self._look()
        while not self.ended and len(self.running) < self.n_jobs + self.allowance.n_ahead() and self._allows_trial():
            self._adopt()
            limit = self.allowance.for_next(len(self.running))
            if limit is not None and limit <= self.allowance.least():
                break
            if reason := self._reason_to_end():
                self.later, self.ended = None, True
                self._note(reason)
                break
            proposal = self._next(math.inf if limit is None else limit)
            if proposal is None:
                if not self.running and self.later is None:
                    self._note("Stopped early: no untried candidate fits into the remaining time.")
                break
            self._begin(proposal, limit)
            started = True
        return started

    def _allows_trial(self) -> bool:
        return self.budget.allows_trial(self.proposer.n_proposed - self.n_before)

    def _next(self, spendable: float) -> Proposal | None:
        """The next proposal that is this process's own."""
        if self.shared is None:
            return self.proposer.next(spendable)
        for trial, candidate in self.shared.waiting():
            if self.shared.claim(trial, candidate):
                self.proposer.taken.add(candidate)
                self.proposer.n_proposed += 1
                return Proposal(candidate, str(trial.user_attrs.get("source", "queue")), trial)
        while (proposal := self.proposer.next(spendable)) is not None:
            assert proposal.trial is not None
            if self.shared.claim(proposal.trial, proposal.candidate):
                break
            self.proposer.n_proposed -= 1
        return proposal

    def _resume(self) -> None:
        """Go on from what the storage holds; the best of it is measured here first, to have a model at once."""
        if self.shared is None:
            return
        resumed = not self.evaluations
        self._look()
        self.n_before = self.proposer.n_proposed if self.shared.further else 0
        if resumed and self.evaluations:
            self._note(f"Resumed: the storage holds {len(self.evaluations)} trials of this table and these settings.")
        elif resumed and self.shared.others:
            text = f"Begun anew: the {self.shared.others} studies in the storage are of other tables or settings."
            self._note(text)
        self._recall(self.allowance.absent()[:1])

    def _look(self) -> None:
        """Hear of the trials of other processes."""
        if self.shared is None:
            return
        news = self.shared.news()
        self.proposer.taken.update(news.running)
        for evaluation in news.ended:
            self.proposer.taken.add(evaluation.candidate)
            self.proposer.n_proposed += 1
            self.evaluations.append(evaluation)
            self.proposer.tell(evaluation)
            score, _ = estimated_score(evaluation, self.evaluations[:-1], self.metric.name)
            self.ledger = self.ledger.add(
                LedgerEntry(
                    evaluation.candidate, evaluation.status, "storage", score if evaluation.ok else math.nan,
                    evaluation.seconds, self.budget.elapsed, evaluation.reason,
                )
            )  # fmt: skip

    def _recall(self, wanted: Sequence[Evaluation]) -> None:
        """Have the models of candidates that were measured elsewhere."""
        name, started = self.metric.name, self.budget.elapsed
        time_left = self.allowance.seconds_left
        for known, found in recall(self.evaluator, wanted, n_jobs=self.n_jobs, seconds_left=time_left):
            if found.ok:
                self.evaluations[self.evaluations.index(known)] = found
            reason = found.reason or "measured again, as its models were in another process"
            entry = LedgerEntry(
                known.candidate, found.status, "recall", found.score(name), found.seconds, started, reason
            )
            self.ledger, started = self.ledger.add(entry), self.budget.elapsed

    def _begin(self, proposal: Proposal, limit: float | None) -> None:
        expected = self.proposer.trial_seconds(proposal.candidate)
        self.budget.book(np.nan_to_num(expected, nan=1.0) + FIXED_SECONDS)
        started = self.budget.elapsed
        limit = self.allowance.patience(proposal.candidate, expected, limit)
        if reason := self.allowance.objection(proposal.candidate, limit):
            skipped = Evaluation(self.evaluator.dataset.fingerprint, proposal.candidate, Status.SKIPPED, reason=reason)
            self._record(proposal, skipped, started)
            return
        best = rival(self.evaluations, self.metric.name, proposal.candidate.family, keeps_all=self.shared is not None)
        future = self.evaluator.submit(
            proposal.candidate, time_limit=limit, predictions=True, rival=best, keep_models=True,
            cut_short=self.budget.counts_time,
        )  # fmt: skip
        self.running[future] = (proposal, started)
        if isinstance(self.on_trial, Watcher):
            self.on_trial.begin(proposal.candidate, self._expected_end())

    def _expected_end(self) -> float:
        """Score that the best candidate is expected to have when the budget is spent; NaN where nothing is known."""
        seconds = [entry.seconds for entry in self.ledger if entry.candidate is not None]
        left = math.inf if self.budget.max_trials is None else self.budget.max_trials - len(seconds)
        if seconds and math.isfinite(self.budget.seconds):
            left = min(left, self.n_jobs * self.budget.remaining / max(float(np.mean(seconds)), FIXED_SECONDS))
        return min(self.proposer.expected_best(left), self.metric.best)  # NaN stays NaN

    def _reason_to_end(self) -> str:
        """Why going on brings nothing; empty where it may. Only the clock is cut short, never a number of trials."""
        if self.halted:
            return "Stopped by a callback: the best model so far is used."
        if self.budget.counts_trials:
            return ""
        return reason_to_end(self.evaluations, self.metric, self.proposer.expected_gain)

    def _finish(self, future: Future[Evaluation], evaluation: Evaluation) -> None:
        proposal, started = self.running.pop(future)
        self._record(proposal, evaluation, started)
        if len(self.running) >= self.n_jobs:  # now the one that waited begins
            waiting = next(reversed(self.running))
            self.running[waiting] = self.running[waiting][0], self.budget.elapsed

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
        self._tell_study(proposal, evaluation, score)
        took = self.budget.elapsed - started if status is Status.TIMEOUT else math.nan
        self.proposer.tell(replace(evaluation, candidate=proposal.candidate), took)
        if status is Status.OK:
            self.evaluator.forget_models(e.candidate for e in library(self.evaluations, name))
        entry = LedgerEntry(
            proposal.candidate, status, proposal.source, score if status is Status.OK else math.nan,
            self.budget.elapsed - started, started, evaluation.reason,
        )  # fmt: skip
        self.ledger = self.ledger.add(entry)
        if self.on_trial is not None:
            self.halted = self.on_trial(self.ledger) is True or self.halted

    def _tell_study(self, proposal: Proposal, evaluation: Evaluation, score: float) -> None:
        """Tell Optuna; where the storage fails nothing that was measured is lost."""
        trial, status = proposal.trial, evaluation.status
        assert trial is not None
        try:
            if self.shared is not None and status is not Status.SKIPPED and not self.stopping:
                self.shared.tell(trial, evaluation, proposal.candidate)  # others may try what was only cut short here
            if status is Status.PRUNED and np.isfinite(score):
                trial.report(score, step=len(evaluation.fit_seconds))
            state = OUTCOMES.get(status, optuna.trial.TrialState.FAIL)
            self.proposer.study.tell(trial, score if status is Status.OK else None, state=state)
        except (optuna.exceptions.OptunaError, OSError, ValueError) as error:
            if self.shared is None:
                raise
            self._note(f"A trial could not be written to the storage: {one_line(error)}")

    def _stop_all(self) -> None:
        """End what still runs; folds that were finished are kept."""
        self.on_trial, self.stopping = None, True
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
    on_trial: Callable[[Ledger], Any] | Watcher | None = None,
    later: Future[WarmStart] | None = None,
    earlier: TuningResult | None = None,
    n_refits: int = 0,
    shared: SharedStudy | None = None,
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
        Called with the ledger after each trial; ``True`` ends the search. A :class:`Watcher` is also told what begins.
    later : Future of WarmStart or None
        A better warm start that is still being made; the search goes over to it when it is there. Where measured
        times must not matter it is waited for.
    earlier : TuningResult or None
        A search on the same evaluator to go on from.
    n_refits : int, default=0
        Of how many of the best candidates the time is kept to fit them on all rows. With one it must be done if it can
        be; with several it is worth a part of the time only.
    shared : SharedStudy or None
        The study in a storage, which other processes may work on too.

    Returns
    -------
    TuningResult
        Possibly without a single good evaluation; the ledger then says why.
    """
    with quiet_optuna():
        study = new_study(random_state, n_jobs) if shared is None else shared.study
        study = study if earlier is None else earlier.study
        proposer = Proposer(start, families, study, len(evaluator.splits), budget, metric.name, random_state)
        evaluations = [] if earlier is None else list(earlier.evaluations)
        allowance = Allowance(evaluator, metric, budget, n_jobs, n_refits, evaluations, is_shared=shared is not None)
        search = _Search(evaluator, proposer, metric, budget, n_jobs, on_trial, later, allowance, evaluations, shared)
        if shared is not None:
            proposer.worker = shared.worker
        if earlier is not None:
            proposer.resume(earlier.evaluations)
            search.ledger = earlier.ledger
        search.run()
    saved = proposer.warm_start_report()
    return TuningResult(study, tuple(search.evaluations), search.ledger, proposer.start, saved)
