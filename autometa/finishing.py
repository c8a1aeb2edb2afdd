"""What ``fit`` does when its search is over: from measured candidates to the members that predict, in the time left."""

from __future__ import annotations

import math
import time
from collections.abc import Mapping, Sequence
from concurrent.futures import Future
from concurrent.futures import TimeoutError as NotInTime
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, NamedTuple

import cloudpickle
import numpy as np
from sklearn.dummy import DummyClassifier, DummyRegressor

from autometa.ensembling import choose_temperature, choose_weights
from autometa.evaluation import Evaluator
from autometa.fitting import FittedModel
from autometa.folds import fit_quietly
from autometa.interrupts import interrupts_deferred, wait_for_first
from autometa.metrics import Metric
from autometa.opening import FirstModel
from autometa.polishing import Polisher
from autometa.predictor import Member
from autometa.records import Evaluation, Ledger, LedgerEntry, Status
from autometa.tuning import Budget, TuningResult
from autometa.tuning.library import library
from autometa.workers import WorkerError, WorkerPool

STABLE = frozenset({"linear", "knn", "naive_bayes", "svm"})
"""Families whose fold models hardly differ, so that one model on all rows is as good as their mean, and quicker."""
_MIN_BAG = 3
"""Fold models whose mean is worth as much as one model on all rows."""
_MIN_TRAIN_SHARE = 0.6
"""Share of the rows that they must have seen for that."""
_MIN_BAG_SHARE = 0.7
"""Share of the rows below which a model on all rows joins them: it knows more, they vary less."""
_N_MEMBERS = 4
"""Members that an ensemble usually has."""
_REFIT_MARGIN = 1.3
_GRACE_SECONDS = 0.5
_CHOICE_SHARE = 0.5
_FIT_SHARE = 0.9
"""After which share of its time a new fit of boosting, a forest or a net is cut short, before its worker is killed."""
_POLISH_RESERVE = 2.0
"""What choosing the members once more may take, in units of the first time."""
_NO_TIME = "no time left to fit it on all rows"


@dataclass(frozen=True)
class Limits:
    """What a model may cost once it predicts.

    Parameters
    ----------
    predict_ms : float or None
        Milliseconds of all members together for one encoded row.
    model_mb : float or None
        Megabytes of all members together.
    """

    predict_ms: float | None = None
    model_mb: float | None = None

    def __post_init__(self) -> None:
        for name, value in (("max_predict_ms", self.predict_ms), ("max_model_mb", self.model_mb)):
            if value is not None and not value > 0:
                raise ValueError(f"{name} must be > 0 or None. Got {value} instead.")

    def excess(self, members: Sequence[Member], evaluator: Evaluator) -> bool:
        """Whether members are too slow or too large together."""
        slow = self.predict_ms is not None and sum(_row_ms(m, evaluator) for m in members) > self.predict_ms
        return slow or (self.model_mb is not None and sum(map(_size_mb, members)) > self.model_mb)


@dataclass(frozen=True, eq=False)
class Finish:
    """What predicts in the end.

    Parameters
    ----------
    members : tuple of Member
        Heaviest first, at least one.
    ledger : Ledger
        With how the members came about.
    temperature : float, default=1.0
        Of the probabilities.
    """

    members: tuple[Member, ...]
    ledger: Ledger
    temperature: float = 1.0


class _Fit(NamedTuple):
    """A new fit on all rows: its model or the problem, when it started and what it took."""

    model: FittedModel | None
    problem: str
    started: float
    seconds: float


@dataclass(frozen=True, eq=False)
class Finisher:
    """Makes the final members; each is there at once from its fold models, or fitted again on all rows.

    Parameters
    ----------
    evaluator : Evaluator
    workers : WorkerPool
        Where models are fitted again.
    metric : Metric
    budget : Budget
    ensemble : bool
    limits : Limits
    first : FirstModel or None
        What is used where no candidate was measured.
    """

    evaluator: Evaluator
    workers: WorkerPool
    metric: Metric
    budget: Budget
    ensemble: bool
    limits: Limits
    first: FirstModel | None

    def finish(self, result: TuningResult) -> Finish:
        """Members from what was measured; never fails, and needs no time where fold models are there."""
        ranked = library(result.usable(self.metric.name), self.metric.name)
        ledger, end, started = result.ledger, None, self.budget.elapsed
        try:
            with interrupts_deferred():
                made: dict[str, Member] = {}
                members, ledger = self._chosen(ranked, ledger, made)
                if members:
                    end = Finish(tuple(members), ledger, self._temperature(members, ranked))
                    return self._polished(end, ranked, made, self.budget.elapsed - started)
        except KeyboardInterrupt:
            if end is not None:
                return replace(end, ledger=end.ledger.add(self._note("fine_tune", "Interrupted: it is left out.")))
            ledger = ledger.add(self._note("refit", "Interrupted: the models of the folds are used."))
        for evaluation in (*ranked, *result.unfinished(self.metric.name)):
            if models := self.evaluator.fold_models(evaluation.candidate):
                reason = f"{len(models)} of {len(self.evaluator.splits)} fold models are used as they are"
                entry = LedgerEntry(
                    evaluation.candidate, Status.OK, "folds", 1.0, started=self.budget.elapsed, reason=reason
                )
                return Finish((self._member(evaluation, models, 1.0),), ledger.add(entry))
        return Finish((self._stand_in(),), ledger.add(self._stand_in_entry()))

    def _polished(self, end: Finish, ranked: list[Evaluation], made: dict[str, Member], spent: float) -> Finish:
        """The same or better: fine-tuned where time is left and the validation agrees."""
        polisher = Polisher(self.evaluator, self.workers, self.metric, self.budget)
        reserve = _POLISH_RESERVE * spent
        origin, tuned, line = polisher.boost(ranked, end.members, reserve)
        if line is not None:
            end = replace(end, ledger=end.ledger.add(line))
        if tuned is not None:
            pool = sorted([tuned, *(e for e in ranked if e is not origin)], key=lambda e: -e.score(self.metric.name))
            members, ledger = self._chosen(pool, end.ledger, made)
            if not self._is_worth(tuned, members, end.members):
                note = self._note("fine_tune", "undone: what was fine-tuned cannot be had within time and limits")
                return replace(end, ledger=end.ledger.add(note))
            end = Finish(tuple(members), ledger, self._temperature(members, pool))
        found = [e for e in ranked if len(end.members) == 1 and e.candidate == end.members[0].candidate]
        if found:
            member, line = polisher.refine(end.members[0], found[0])
            if line is not None:
                end = replace(end, ledger=end.ledger.add(line))
            end = replace(end, members=(member,))
        return end

    def _is_worth(self, tuned: Evaluation, members: Sequence[Member], before: Sequence[Member]) -> bool:
        """Whether it predicts now: as one model where one was asked for, within the limits, in no lesser ensemble."""
        mine = [member for member in members if member.candidate == tuned.candidate]
        if not mine or (not self.ensemble and len(mine[0].models) > 1):
            return False
        in_time = self.budget.remaining > 0 or len(members) >= len(before)
        return in_time and (
            not self.limits.excess(members, self.evaluator) or self.limits.excess(before, self.evaluator)
        )

    def _note(self, source: str, text: str) -> LedgerEntry:
        return LedgerEntry(None, Status.SKIPPED, source, started=self.budget.elapsed, reason=text)

    def _temperature(self, members: Sequence[Member], ranked: Sequence[Evaluation]) -> float:
        """Calibration, where the metric asks for sure and right probabilities."""
        dataset = self.evaluator.dataset
        if self.metric.name != "log_loss" or not self.budget.remaining > 0:
            return 1.0
        measured = {e.candidate: e.predictions for e in ranked}
        total = sum(member.weight for member in members)
        mixed: Any = 0.0
        for member in members:
            found = measured.get(member.candidate)
            if found is None:
                return 1.0
            mixed = mixed + member.weight / total * found
        return choose_temperature(
            np.asarray(mixed), dataset.y, sample_weight=dataset.sample_weight, seed=self.evaluator.seed
        )

    def _chosen(self, ranked: list[Evaluation], ledger: Ledger, made: dict[str, Member]) -> tuple[list[Member], Ledger]:
        """The weighted members that can be had; weights are chosen anew where one cannot. ``made`` grows by them."""
        pool = [e for e in ranked if not self._too_costly(e, made)] or ranked
        while pool:
            weighted = self._weighted(pool)
            ledger = self._make([pair for pair in weighted if pair[0].candidate.key not in made], ledger, made)
            got = [replace(made[e.candidate.key], weight=w) for e, w in weighted if e.candidate.key in made]
            if len(got) == len(weighted):
                return self._within_limits(got), ledger
            lost = {e.candidate.key for e, _ in weighted} - set(made)
            if made and not self.budget.remaining > 0:
                return self._within_limits(got), ledger
            pool = [e for e in pool if e.candidate.key not in lost]
        return [], ledger

    def _weighted(self, pool: list[Evaluation]) -> list[tuple[Evaluation, float]]:
        dataset = self.evaluator.dataset
        predictions = [e.predictions for e in pool if e.predictions is not None]
        if not self.ensemble or len(pool) == 1 or len(predictions) < len(pool):
            return [(pool[0], 1.0)]
        seconds = _CHOICE_SHARE * self.budget.remaining if self.budget.counts_time else None
        weights = choose_weights(
            predictions, dataset.y, metric=self.metric, sample_weight=dataset.sample_weight,
            seed=self.evaluator.seed, max_seconds=seconds,
        )  # fmt: skip
        pairs = [(e, float(w)) for e, w in zip(pool, weights, strict=True) if w > 0]
        return sorted(pairs, key=lambda pair: -pair[1])

    def _make(self, weighted: Sequence[tuple[Evaluation, float]], ledger: Ledger, made: dict[str, Member]) -> Ledger:
        """Members from their fold models where their mean is at least as good, else from new fits; ``made`` grows."""
        bags = {e.candidate.key: self.evaluator.fold_models(e.candidate) for e, _ in weighted}
        fits = self._refits([e for e, _ in weighted if not self._bag_is_enough(e, bags[e.candidate.key])], bags, made)
        for evaluation, weight in weighted:
            key = evaluation.candidate.key
            models, fit = bags[key], fits.get(key)
            source, reason = "folds", f"mean of {len(models)} fold models"
            if fit is not None and fit.model is not None:
                joins = self._bag_counts(evaluation, models)
                source, reason = "refit", f"with {len(models)} fold models" if joins else ""
                models = [*models, fit.model] if joins else [fit.model]
            elif fit is not None and models:
                models = models[-1:] if self._folds_are_partial(evaluation) else models
                reason = f"{len(models)} fold models instead of a new fit: {fit.problem}"
            elif fit is not None:
                source, reason = "refit", fit.problem
            reason = "; ".join(filter(None, (reason, _births(models))))
            started = self.budget.elapsed if fit is None else fit.started
            seconds = 0.0 if fit is None else fit.seconds
            status = Status.OK if models else Status.TIMEOUT
            ledger = ledger.add(LedgerEntry(evaluation.candidate, status, source, weight, seconds, started, reason))
            if models:
                made[key] = self._member(evaluation, models, weight)
        return ledger

    def _bag_is_enough(self, evaluation: Evaluation, models: Sequence[FittedModel]) -> bool:
        """Whether a model on all rows would add nothing to the mean of the fold models."""
        return self._bag_counts(evaluation, models) and self._seen_share(evaluation) >= _MIN_BAG_SHARE

    def _bag_counts(self, evaluation: Evaluation, models: Sequence[FittedModel]) -> bool:
        """Whether the mean of the fold models is no worse than one model on all rows."""
        stable = evaluation.candidate.family in STABLE or not self.ensemble
        return len(models) >= _MIN_BAG and not stable and not self._folds_are_partial(evaluation)

    def _folds_are_partial(self, evaluation: Evaluation) -> bool:
        """Folds that see a small part of the rows only (earlier times, few folds) cannot stand for all of them."""
        return self._seen_share(evaluation) < _MIN_TRAIN_SHARE

    def _seen_share(self, evaluation: Evaluation) -> float:
        return evaluation.n_train_rows / self.evaluator.dataset.n_rows

    def _refits(
        self, wanted: Sequence[Evaluation], bags: Mapping[str, Sequence[FittedModel]], made: Mapping[str, Member]
    ) -> dict[str, _Fit]:
        """New fits on all rows, in order, as many at a time as there are workers; all that should end in time."""
        fits, queue, running = dict[str, _Fit](), list(wanted), dict[Future[Any], tuple[str, float]]()
        urgent = not (made or any(bags.values()))  # the first one that ends is all that could predict
        try:
            while queue or running:
                while queue and len(running) < self.workers.n_workers:
                    key = queue[0].candidate.key
                    alone = urgent and not (fits or running)
                    future = self._refit(queue.pop(0), urgent=alone, replaceable=bool(bags[key]))
                    started = self.budget.elapsed
                    if future is None:
                        fits[key] = _Fit(None, _NO_TIME, started, 0.0)
                    else:
                        running[future] = key, started
                left = self.budget.seconds_left
                limit = None if left is None else max(0.0, left + _GRACE_SECONDS * urgent)
                done, late = wait_for_first(running, limit)
                for future in done or late:
                    key, started = running.pop(future)
                    fits[key] = _fit(future, started, self.budget.elapsed - started)
        finally:
            for future in running:
                future.cancel()
        return fits

    def _refit(self, evaluation: Evaluation, *, urgent: bool, replaceable: bool) -> Future[Any] | None:
        """The coming model of a candidate on all rows, in a worker that can be stopped; ``None`` without the time.

        Where fold models could take its place it is stopped in time, not cut short.
        """
        left = self.budget.seconds_left
        expected = _REFIT_MARGIN * evaluation.seconds_on(self.evaluator.dataset.n_rows)
        if not urgent and left is not None and expected > _FIT_SHARE * left:
            return None
        family = self.evaluator.families[evaluation.candidate.family]
        data = self.evaluator.data(family.matrix)
        limit = seconds = None
        if left is not None:
            limit = left + _GRACE_SECONDS if urgent else _FIT_SHARE * left
            seconds = _FIT_SHARE * limit if self.budget.counts_time and not replaceable else None
        task = partial(fit_quietly, family, dict(evaluation.candidate.config), data, self.evaluator.seed, seconds)
        return self.workers.submit(task, time_limit=limit)

    def _member(self, evaluation: Evaluation, models: Sequence[FittedModel], weight: float) -> Member:
        candidate = evaluation.candidate
        matrix = self.evaluator.families[candidate.family].matrix
        return Member(candidate.family, dict(candidate.config), matrix, tuple(models), weight)

    def _too_costly(self, evaluation: Evaluation, made: dict[str, Member]) -> bool:
        """Whether a candidate breaks the limits alone; a bag that does is first cut down to one model."""
        if self.limits == Limits():
            return False
        models = self.evaluator.fold_models(evaluation.candidate)
        if not models:
            return False
        bag = self._member(evaluation, models, 1.0)
        if not self.limits.excess([bag], self.evaluator):
            return False
        one = self._member(evaluation, models[-1:], 1.0)
        if self.limits.excess([one], self.evaluator):
            return True
        made[evaluation.candidate.key] = one
        return False

    def _within_limits(self, members: list[Member]) -> list[Member]:
        """The heaviest members that keep the limits together."""
        while len(members) > 1 and self.limits.excess(members, self.evaluator):
            members = members[:-1]
        return members

    def _stand_in(self) -> Member:
        """The first model, or the prior of the classes or the mean of the target."""
        if self.first is not None:
            return self.first.member
        dataset = self.evaluator.dataset
        model = DummyClassifier() if dataset.task.is_classification else DummyRegressor()
        model.fit(np.zeros((dataset.n_rows, 1)), dataset.y, sample_weight=dataset.sample_weight)
        return Member("constant", {}, "tree", (model,))

    def _stand_in_entry(self) -> LedgerEntry:
        note = "No candidate could be fitted within the limits: "
        note += "a constant prediction is used." if self.first is None else "the first quick model is used."
        status = Status.FAILED if self.first is None else Status.OK
        candidate = None if self.first is None else self.first.candidate
        return LedgerEntry(candidate, status, "refit", started=self.budget.elapsed, reason=note)


def expected_refits(evaluator: Evaluator, *, ensemble: bool) -> int:
    """How many candidates :class:`Finisher` will fit again on all rows, where there is time.

    One for a single model, and where the mean of fold models cannot stand for one on all rows, since there are few or
    they saw too little; as many as an ensemble usually has where that model joins those of the folds; none where these
    are enough.
    """
    share = np.mean([len(train) for train, _ in evaluator.splits]) / evaluator.dataset.n_rows
    if not ensemble or len(evaluator.splits) < _MIN_BAG or share < _MIN_TRAIN_SHARE:
        return 1
    return _N_MEMBERS if share < _MIN_BAG_SHARE else 0


def completed(ledger: Ledger, first: FirstModel | None, result: TuningResult) -> Ledger:
    """With the first model as first line and, after the search, what the warm start saved or cost."""
    lines = list(ledger)
    if math.isfinite(result.warm_start.saved):
        note = LedgerEntry(None, Status.SKIPPED, "warm start", reason=str(result.warm_start))
        lines.insert(len(result.ledger), note)
    if first is not None and not any(entry.source == "first" for entry in ledger):
        reason = "fitted on a part of the rows, to have a model at once"
        entry = LedgerEntry(first.candidate, Status.OK, "first", first.score, first.seconds, first.started, reason)
        lines.insert(0, entry)
    return Ledger(tuple(lines))


def _births(models: Sequence[FittedModel]) -> str:
    """Where the weights of nets came from, each outcome of the race once; empty for other models."""
    births = (getattr(model.estimator, "birth_", None) for model in models)
    return "; ".join(dict.fromkeys(str(birth) for birth in births if birth is not None))


def _fit(future: Future[Any], started: float, seconds: float) -> _Fit:
    """What came of a new fit; one that is still running is stopped."""
    try:
        return _Fit(future.result(0), "", started, seconds)
    except NotInTime:
        future.cancel()
        return _Fit(None, _NO_TIME, started, seconds)
    except WorkerError as error:
        timed_out = error.failure.status is Status.TIMEOUT
        return _Fit(None, _NO_TIME if timed_out else str(error), started, seconds)


def _row_ms(member: Member, evaluator: Evaluator) -> float:
    """Milliseconds for one row, the best of three."""
    row = evaluator.data(member.matrix).matrix[:1]
    times = []
    for _ in range(3):
        started = time.perf_counter()
        member.predict_raw(row, evaluator.dataset.n_classes)
        times.append(time.perf_counter() - started)
    return 1e3 * min(times)


def _size_mb(member: Member) -> float:
    return len(cloudpickle.dumps(member.models)) / 2**20
