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
from autometa.families._deadlines import ends_in_time
from autometa.family import Candidate, ModelFamily
from autometa.folds import Rival
from autometa.interrupts import interrupts_deferred, wait_for_first
from autometa.metrics import Metric
from autometa.records import Evaluation, Ledger, LedgerEntry, Status
from autometa.tuning.budget import Budget
from autometa.tuning.library import entry_score, library
from autometa.tuning.proposals import FIXED_SECONDS, OUTCOMES, Proposal, Proposer, WarmStart, estimated_score
from autometa.tuning.recall import absent, recall, recall_seconds
from autometa.tuning.result import TuningResult
from autometa.tuning.storage import SharedStudy, new_study, quiet_optuna
from autometa.workers import free_memory_mb, one_line

_REFIT_MARGIN = 1.5
_OVERDUE = 3.0
_LEAST_TRIAL_SHARE = 0.1
_LEAST_START = 0.5
_LEAST_START_SHARE = 0.04
_MAX_REFIT_SHARE = 0.4
_REFITS_SHARE = 0.15
_MAX_TRIAL_SHARE = 0.5
_MATRIX_COPIES = 4
_PEAK_MARGIN = 1.2
_MIN_TRIALS = 20
_PATIENCE = 15
_NO_GAIN = 0.02
_ROUNDING = 1e-9
_RECENT = 5
_SHORT_SECONDS = 1.0
_ENCODING_MARGIN = 1.5


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
    n_refits: int
    shared: SharedStudy | None = None
    evaluations: list[Evaluation] = field(default_factory=list)
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
                done, late = wait_for_first(self.running, self._spendable())
                for future in done:
                    self._finish(future, future.result())
                if late and not done:
                    break
        finally:
            self._stop_all()
        self._recall(self._absent())

    def _await_start(self) -> None:
        """Where times must not matter, nothing starts before the warm start is there."""
        if self.later is not None and not self.budget.counts_time:
            limit = self._spendable()
            wait_for_first([self.later], None if limit is None else _MAX_TRIAL_SHARE * limit)
            self._adopt()

    def _start_arrives(self) -> bool:
        """Where nothing is left to try, whether the better warm start came in time."""
        if self.later is None or not self._allows_trial():
            return False
        wait_for_first([self.later], self._spendable())
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
        while not self.ended and len(self.running) < self.n_jobs + self._n_ahead() and self._allows_trial():
            self._adopt()
            limit = self._trial_limit()
            if limit is not None and limit <= self._least_limit():
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

    def _n_ahead(self) -> int:
        """Trials that wait for a worker: one where trials are short, so that no worker idles during a proposal.

        It is proposed without the outcomes of those that run, which is worth less than the time of a short trial. Where
        times must not matter there is none, as the order in which trials end would.
        """
        return int(self.budget.counts_time and self._usual_seconds() < _SHORT_SECONDS)

    def _usual_seconds(self) -> float:
        """What a trial takes, judged by the last few."""
        recent = [e.seconds for e in self.evaluations[-_RECENT:]]
        return float(np.median(recent)) if recent else math.inf

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
        self._recall(self._absent()[:1])

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

    def _absent(self) -> list[Evaluation]:
        """Good candidates whose models are in another process, or went with it."""
        return [] if self.shared is None else absent(self.evaluations, self.metric.name)

    def _recall(self, wanted: Sequence[Evaluation]) -> None:
        """Have the models of candidates that were measured elsewhere."""
        name, started = self.metric.name, self.budget.elapsed
        for known, found in recall(self.evaluator, wanted, n_jobs=self.n_jobs, seconds_left=self._left):
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
        limit = self._patience(proposal.candidate, expected, limit)
        if reason := self._lack_of_time(proposal.candidate, limit) or self._lack_of_memory(proposal.candidate):
            skipped = Evaluation(self.evaluator.dataset.fingerprint, proposal.candidate, Status.SKIPPED, reason=reason)
            self._record(proposal, skipped, started)
            return
        future = self.evaluator.submit(
            proposal.candidate, time_limit=limit, predictions=True, rival=self._rival(proposal.candidate),
            keep_models=True, cut_short=self.budget.counts_time,
        )  # fmt: skip
        self.running[future] = (proposal, started)
        if isinstance(self.on_trial, Watcher):
            self.on_trial.begin(proposal.candidate, self._expected_end())

    def _least_limit(self) -> float:
        """Seconds below which no trial begins: one that does not end in time costs its worker, wanted for new fits."""
        can_wait = self.n_refits and self.budget.counts_time and any(e.ok for e in self.evaluations)
        return min(_LEAST_START, _LEAST_START_SHARE * self.budget.seconds) if can_wait else 0.0

    def _patience(self, candidate: Candidate, expected: float, limit: float | None) -> float | None:
        """Seconds that a trial may take: less than the limit where it could end with nothing after all of it.

        What cannot be cut short is stopped when it takes much longer than expected, once there is a model.
        """
        hurries = self.budget.counts_time and any(e.ok for e in self.evaluations)
        can_be_cut = ends_in_time(self.evaluator.families[candidate.family])
        if limit is None or can_be_cut or not hurries or not math.isfinite(expected):
            return limit
        return min(limit, max(_OVERDUE * expected, _LEAST_TRIAL_SHARE * self.budget.seconds))

    def _expected_end(self) -> float:
        """Score that the best candidate is expected to have when the budget is spent; NaN where nothing is known."""
        seconds = [entry.seconds for entry in self.ledger if entry.candidate is not None]
        left = math.inf if self.budget.max_trials is None else self.budget.max_trials - len(seconds)
        if seconds and math.isfinite(self.budget.seconds):
            left = min(left, self.n_jobs * self.budget.remaining / max(float(np.mean(seconds)), FIXED_SECONDS))
        return self.proposer.expected_best(left)

    def _trial_limit(self) -> float | None:
        """Seconds that the next trial may take: the rest of the budget less what the end needs."""
        spendable = self._left()
        if spendable is None:
            return None
        spendable -= self._recall_seconds() + (self._usual_seconds() if len(self.running) >= self.n_jobs else 0.0)
        if any(e.ok for e in self.evaluations):
            return min(spendable, max(_MAX_TRIAL_SHARE * self.budget.seconds, 1.0))
        return spendable

    def _spendable(self) -> float | None:
        """Seconds until the last trial must end; ``None`` for no limit."""
        left = self._left()
        return None if left is None else max(0.0, left - self._recall_seconds())

    def _recall_seconds(self) -> float:
        return recall_seconds(self._absent(), n_jobs=self.n_jobs, budget_seconds=self.budget.seconds)

    def _left(self) -> float | None:
        """Seconds until the search must end; ``None`` for no limit."""
        left = self.budget.seconds_left
        return None if left is None else left - self.reserve()

    def reserve(self) -> float:
        """Seconds kept for choosing the weights and for fitting again what was chosen."""
        fixed = min(0.15 + 0.03 * self.budget.seconds, 3.0)
        good = [e for e in self.evaluations if e.ok]
        if not (good and self.n_refits):
            return fixed
        best = sorted(good, key=lambda e: -e.score(self.metric.name))[: self.n_refits]
        fits = [e.seconds_on(self.evaluator.dataset.n_rows) for e in best]
        if self.n_refits > 1:
            return fixed + min(max(sum(fits) / self.n_jobs, max(fits)), _REFITS_SHARE * self.budget.seconds)
        # Where a new fit would take most of the time, another trial is worth more: there are models of the folds.
        refit = _REFIT_MARGIN * fits[0]
        return fixed + (refit if refit <= _MAX_REFIT_SHARE * self.budget.seconds else 0.0)

    def _rival(self, candidate: Candidate) -> Rival | None:
        """What a candidate is up against: the best, and how much two good candidates differ from split to split."""
        name = self.metric.name
        good = library(self.evaluations, name)
        if not good or not np.isfinite(good[0].scores[name]).all():
            return None
        noise = _noise(good, name)
        alone = self.shared is None
        keep_from = entry_score(self.evaluations, name, candidate.family) if alone else -math.inf
        return Rival(name, good[0].scores[name], noise, keep_from) if np.isfinite(noise) and noise > 0 else None

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

    def _reason_to_end(self) -> str:
        """Why going on brings nothing; empty where it may. Only the clock is cut short, never a number of trials."""
        if self.halted:
            return "Stopped by a callback: the best model so far is used."
        name = self.metric.name
        scores = np.array([e.score(name) if e.ok else -np.inf for e in self.evaluations])
        if self.budget.counts_trials or len(scores) < _MIN_TRIALS or not np.isfinite(scores[:-_PATIENCE]).any():
            return ""
        good = library(self.evaluations, name)
        if good[0].score(name) >= self.metric.best - _ROUNDING:
            return f"Stopped early: {name} cannot be better than {self.metric.from_score(good[0].score(name)):g}."
        error = _noise(good, name) / math.sqrt(len(good[0].scores[name]))
        enough = _NO_GAIN * error
        if not np.max(scores) - np.max(scores[:-_PATIENCE]) < enough:
            return ""
        gain = self.proposer.expected_gain()
        gain = self.proposer.expected_gain(wide=True) if gain < enough else gain
        if not gain < enough:
            return ""
        return f"Stopped early: the expected gain of a further trial, {gain:.2g}, is far below the noise, {error:.2g}."

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


def _noise(good: Sequence[Evaluation], metric: str) -> float:
    """How much the difference of two good candidates varies from split to split; ``good`` is best first.

    That of the best and the others, since some splits are harder for all of them.
    """
    scores = np.array([e.scores[metric] for e in good])  # (n_candidates, n_splits)
    if len(good) < 3 or scores.shape[1] < 2:
        return float(np.std(scores[0]))
    return float(np.median(np.std(scores[1:] - scores[0], axis=1, ddof=1)))


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
        search = _Search(evaluator, proposer, metric, budget, n_jobs, on_trial, later, n_refits, shared)
        if shared is not None:
            proposer.worker = shared.worker
        if earlier is not None:
            proposer.resume(earlier.evaluations)
            search.evaluations, search.ledger = list(earlier.evaluations), earlier.ledger
        search.run()
    saved = proposer.warm_start_report()
    return TuningResult(study, tuple(search.evaluations), search.ledger, proposer.start, saved)
