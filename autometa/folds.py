"""What a worker does for one candidate: fit and score fold after fold, and stop where going on is not worth it."""

from __future__ import annotations

import contextlib
import json
import math
import os
import time
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Protocol, TypeVar

import numpy as np
from numpy.typing import NDArray
from scipy.special import stdtr
from threadpoolctl import threadpool_limits

from autometa.families._deadlines import ROUNDS, FitLimit
from autometa.families._staged import ROUNDS_AND_RATE, early_stages, net_stages, staged_predictions
from autometa.family import Candidate, ModelFamily
from autometa.fitting import EncodedData, FittedModel, prepare_fit, run_fit
from autometa.fold_models import FoldModels
from autometa.frozen_models import freeze
from autometa.metrics import Metric
from autometa.records import Evaluation, Status
from autometa.shared_files import SharedFile
from autometa.splitting import Split
from autometa.workers import THREAD_VARIABLES, Failure, memory_guard, one_line

Answer = TypeVar("Answer")

_PRUNED_BELOW = 0.01
_PRIOR_FOLDS = 4
_SLACK = 1.0
_HASTE = 0.8
_FIT_SHARE = 0.7


@dataclass(frozen=True)
class Rival:
    """The best candidate so far, against which a running one is pruned.

    Parameters
    ----------
    metric : str
    scores : tuple of float
        One per split, higher is better.
    noise : float
        Standard deviation of the difference of two candidates on one split.
    keep_from : float, default=-inf
        Mean score below which nobody wants a candidate's models, so that they are not stored.
    """

    metric: str
    scores: tuple[float, ...]
    noise: float
    keep_from: float = -math.inf

    def verdict(self, scores: Sequence[float]) -> str:
        """Why a candidate with these first scores should be stopped; empty to go on.

        It is stopped when the probability that it ends less than one ``noise`` behind is below 1 %. Differences on
        splits are taken as Gaussian with the same mean, their variance shrunk towards ``noise``; a candidate that is
        a little worse may still help an ensemble.

        Examples
        --------
        >>> rival = Rival("accuracy", (0.9, 0.9, 0.9, 0.9, 0.9), noise=0.01)
        >>> rival.verdict([0.89])
        ''
        >>> rival.verdict([0.7])
        'It would most likely end far behind the best: 0.2 worse in accuracy after 1 of 5 folds.'
        """
        done, total = len(scores), len(self.scores)
        if not 0 < done < total or total < 3 or not self.noise > 0:
            return ""
        difference = np.asarray(scores) - np.asarray(self.scores[:done])
        if not np.isfinite(difference).all():
            return ""
        mean = float(difference.mean())
        freedom = _PRIOR_FOLDS + done - 1
        variance = (_PRIOR_FOLDS * self.noise**2 + float(np.square(difference - mean).sum())) / freedom
        rest = total - done
        error = math.sqrt(variance * (1 / done + 1 / rest)) * rest / total
        if float(stdtr(freedom, (mean + _SLACK * self.noise) / error)) >= _PRUNED_BELOW:
            return ""
        behind = f"{-mean:.4g} worse in {self.metric} after {done} of {total} folds"
        return f"It would most likely end far behind the best: {behind}."


@dataclass(frozen=True, eq=False)
class Job:
    """What all candidates on one matrix have in common. ``data.sample_weight`` enters fits, ``score_weight`` scores."""

    data: EncodedData
    splits: Sequence[Split]
    metrics: Sequence[Metric]
    score_weight: NDArray[np.float64] | None = None


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


@dataclass
class _Tally:
    """Results of the splits so far."""

    scores: dict[str, list[float]] = field(default_factory=dict)
    fit_seconds: list[float] = field(default_factory=list)
    predict_seconds: list[float] = field(default_factory=list)

    def add(self, scores: Mapping[str, float], fit_seconds: float, predict_seconds: float) -> None:
        for name, value in scores.items():
            self.scores.setdefault(name, []).append(value)
        self.fit_seconds.append(fit_seconds)
        self.predict_seconds.append(predict_seconds)

    def evaluation(self, request: Request, splits: Sequence[Split], **changes: Any) -> Evaluation:
        return replace(
            request.blank(),
            scores={name: tuple(values) for name, values in self.scores.items()},
            fit_seconds=tuple(self.fit_seconds),
            predict_seconds=tuple(self.predict_seconds),
            n_train_rows=round(float(np.mean([len(train) for train, _ in splits]))),
            **changes,
        )

    def verdict(self, request: Request, n_splits: int, elapsed: float) -> dict[str, Any]:
        """Status and reason where the remaining splits are not worth their time; empty to go on."""
        done = len(self.fit_seconds)
        if done == n_splits:
            return {}
        if request.rival is not None:
            reason = request.rival.verdict(self.scores.get(request.rival.metric, ()))
            if reason:
                return {"status": Status.PRUNED, "reason": reason}
        each = min(f + p for f, p in zip(self.fit_seconds, self.predict_seconds, strict=True))
        needed = elapsed + _HASTE * each * (n_splits - done)  # the first fold may be slow for other reasons
        if request.time_limit is not None and needed > request.time_limit:
            reason = f"It would need about {needed:.2g} s of the {request.time_limit:.2g} s that are left for it."
            return {"status": Status.TIMEOUT, "reason": reason}
        return {}


@dataclass
class _Pace:
    """Cuts fits short so that all splits of a candidate end within its time limit.

    Boosting and forests are cut in the first split, and the others do as many rounds or trees: what is measured then is
    a candidate of that many, comparable and repeatable (CatBoost's first split nearly so). Nets are cut in every split.
    """

    request: Request
    n_splits: int
    started: float = field(default_factory=time.perf_counter)
    note: str = ""
    done_share: float = 1.0

    def limit(self, estimator: Any, done: int) -> FitLimit | None:
        """The limit of the next fit, ``None`` where nothing is cut."""
        request = self.request
        if not request.cut_short or request.time_limit is None or (done and request.family.name in ROUNDS):
            return None
        left = request.time_limit - (time.perf_counter() - self.started)
        return FitLimit(estimator, max(_FIT_SHARE * left / (self.n_splits - done), 1e-3))

    def see(self, limit: FitLimit | None) -> None:
        """Learn from a fit whether it was cut short."""
        if limit is None:
            return
        candidate = self.request.candidate
        rounds, epochs = limit.rounds(), limit.epochs()
        if rounds is not None:
            name = ROUNDS[candidate.family]
            self._cut(rounds, candidate.config[name], "rounds" if candidate.family in ROUNDS_AND_RATE else "trees")
            shorter = Candidate(candidate.family, {**candidate.config, name: rounds})
            self.request = replace(self.request, candidate=shorter)
        elif epochs is not None:
            self._cut(epochs, candidate.config.get("n_epochs"), "epochs")

    def _cut(self, done: int, asked: int | None, unit: str) -> None:
        self.note = f"stopped after {done}{f' of {asked}' if asked else ''} {unit}, as time was short"
        if asked:
            self.done_share = min(self.done_share, max(done, 1) / asked)

    def verdict(self, tally: _Tally) -> dict[str, Any]:
        """Status and reason where a candidate that was cut short is not even as good as the best on its splits."""
        rival = self.request.rival
        if not self.note or rival is None or len(tally.fit_seconds) == self.n_splits:
            return {}
        found = tally.scores.get(rival.metric, [])
        if np.mean(found) >= np.mean(rival.scores[: len(found)]):
            return {}
        return {"status": Status.TIMEOUT, "reason": f"{self.note}, and behind the best"}


class Report(Protocol):
    """Told of every finished split."""

    def __call__(self, model: FittedModel, scores: Mapping[str, float], *seconds: float) -> None: ...


def ignore(model: FittedModel, scores: Mapping[str, float], *seconds: float) -> None:
    """A report that nobody reads."""


def run_in_worker(
    files: tuple[SharedFile, SharedFile], request: Request, progress: SharedFile, models: SharedFile | None
) -> Evaluation:
    """All splits in a worker; finished ones are written down at once, in case the worker is killed."""
    job: Job = files[0].load()
    job = replace(job, data=replace(job.data, matrix=files[1].load()))
    with (
        memory_guard(request.memory_limit_mb) as peak,
        open(progress.path, "a", encoding="utf-8") as file,
        FoldModels(None if models is None else models.path) as store,
    ):
        keeper = _Keeper(store, request.rival, len(job.splits))

        def report(model: FittedModel, scores: Mapping[str, float], *seconds: float) -> None:
            keeper.see(model, scores)
            file.write(json.dumps([scores, *seconds, peak.mb]) + "\n")
            file.flush()

        evaluation = run_splits(job, request, report)
        keeper.end(evaluation)
    return replace(evaluation, peak_memory_mb=peak.mb)


@dataclass
class _Keeper:
    """Decides whose models are written: all of a first candidate, later only of those that will be among the best.

    There are other models then, and freezing and writing these may not be worth it. It begins after half of the folds,
    where the mean so far would do.
    """

    store: FoldModels
    rival: Rival | None
    n_splits: int
    waiting: list[FittedModel] = field(default_factory=list)
    scores: list[float] = field(default_factory=list)

    def see(self, model: FittedModel, scores: Mapping[str, float]) -> None:
        """One more fold is done."""
        self.waiting.append(model)
        if self.rival is None:
            self._write()
            self.store.wait()  # before its line: a line promises a model
            return
        self.scores.append(scores.get(self.rival.metric, math.nan))
        if 2 * len(self.scores) >= self.n_splits and np.mean(self.scores) >= self.rival.keep_from:
            self._write()

    def end(self, evaluation: Evaluation) -> None:
        """All folds are done, or the candidate was given up."""
        if self.rival is None:
            return
        if evaluation.ok and evaluation.score(self.rival.metric) >= self.rival.keep_from:
            self._write()
        else:
            self.store.discard()

    def _write(self) -> None:
        for model in self.waiting:
            self.store.add(model)
        self.waiting.clear()


def finished_part(request: Request, progress: SharedFile, failure: Failure, splits: Sequence[Split]) -> Evaluation:
    """What a dead worker had finished."""
    tally, peak = _Tally(), float("nan")
    with contextlib.suppress(OSError):
        for line in Path(progress.path).read_text(encoding="utf-8").splitlines():
            with contextlib.suppress(json.JSONDecodeError):  # the last line may be cut
                *split, peak = json.loads(line)
                tally.add(*split)
    if failure.status is Status.MEMORY and request.memory_limit_mb is not None:
        peak = float(np.fmax(peak, request.memory_limit_mb))  # it needed at least that
    return tally.evaluation(request, splits, status=failure.status, reason=failure.reason, peak_memory_mb=peak)


def run_splits(job: Job, request: Request, report: Report = ignore) -> Evaluation:
    """All splits in this process. A split that fails ends the candidate; earlier ones keep their scores."""
    tally, oof = _Tally(), _OutOfFold(job.data) if request.predictions else None
    curve = _Curve(job, request) if request.staged else None
    ending: dict[str, Any] = {}
    pace = _Pace(request, len(job.splits))
    with _calm(request.n_threads):
        for done, (train, test) in enumerate(job.splits):
            try:
                model, prediction, *seconds = _run_split(job.data, pace, done, train, test)
                scores = {metric.name: _score(metric, job, test, prediction) for metric in job.metrics}
                if curve is not None:
                    curve.add(model, test, scores)
            except Exception as error:
                status = Status.MEMORY if isinstance(error, MemoryError) else Status.FAILED
                ending = {"status": status, "reason": one_line(error)}
                break
            tally.add(scores, *seconds)
            report(model, scores, *seconds)
            if oof is not None:
                oof.add(test, prediction)
            elapsed = time.perf_counter() - pace.started
            ending = tally.verdict(request, len(job.splits), elapsed) or pace.verdict(tally)
            if ending:
                break
    if oof is not None and not ending:
        ending["predictions"] = oof.mean()
    if curve is not None and not ending.keys() - {"predictions"}:
        ending["curve"] = curve.mean()
    ending = {"reason": pace.note, "done_share": pace.done_share, **ending}
    return tally.evaluation(pace.request, job.splits, **ending)


def quietly(task: Callable[[], Answer]) -> Answer:
    """What a task answers, on one thread; what models warn of stays unsaid."""
    with _calm(1):
        return task()


def fit_quietly(
    family: ModelFamily, config: Mapping[str, Any], data: EncodedData, seed: int, seconds: float | None = None
) -> FittedModel:
    """One configuration on all rows, in the form that is kept; what the model warns of stays unsaid.

    Boosting, forests and nets are cut short where their fit would take longer than ``seconds``.
    """

    def fit() -> FittedModel:
        unfitted, matrix, y, options = prepare_fit(family, config, data, None, seed, 1)
        limit = None if seconds is None else FitLimit(unfitted.estimator, seconds)
        model = _fit_within(limit, unfitted, matrix, y, options)
        return replace(model, estimator=freeze(model.estimator))

    return quietly(fit)


def _fit_within(
    limit: FitLimit | None, unfitted: FittedModel, matrix: NDArray[Any], y: NDArray[Any], options: Mapping[str, Any]
) -> FittedModel:
    """The fit, in so much time."""
    if limit is None:
        return run_fit(unfitted, matrix, y, options)
    limit.fit(matrix, y, **options)
    return unfitted


def _run_split(
    data: EncodedData, pace: _Pace, done: int, train: NDArray[np.intp], test: NDArray[np.intp]
) -> tuple[FittedModel, NDArray[np.float64], float, float]:
    """Model, prediction of the test rows, fit seconds, predict seconds. Copies of rows are not timed."""
    request = pace.request
    unfitted, matrix, y, options = prepare_fit(
        request.family, request.candidate.config, data, train, request.seed, request.n_threads
    )
    held_out = data.matrix[test]
    limit = pace.limit(unfitted.estimator, done)
    started = time.perf_counter()
    model = _fit_within(limit, unfitted, matrix, y, options)
    fitted = time.perf_counter()
    pace.see(limit)
    prediction = model.predict(held_out)
    return model, prediction, fitted - started, time.perf_counter() - fitted


def _score(metric: Metric, job: Job, test: NDArray[np.intp], prediction: NDArray[np.float64]) -> float:
    weight = None if job.score_weight is None else job.score_weight[test]
    if weight is not None and not weight.any():
        return float("nan")
    return metric.score(job.data.y[test], prediction, weight)


class _OutOfFold:
    """Predictions of held-out rows, averaged where a row was held out more than once."""

    def __init__(self, data: EncodedData) -> None:
        n_rows = len(data.y)
        self.total = np.zeros((n_rows, data.n_classes) if data.task.is_classification else n_rows)
        self.count = np.zeros(n_rows)

    def add(self, rows: NDArray[np.intp], prediction: NDArray[np.float64]) -> None:
        self.total[rows] += prediction
        self.count[rows] += 1

    def mean(self) -> NDArray[np.float64]:
        count = np.where(self.count == 0, np.nan, self.count)
        return np.asarray(self.total / (count[:, None] if self.total.ndim == 2 else count), dtype=np.float64)


class _Curve:
    """Scores at a few stages of the fits: of boosting on the test rows, of nets on the hold-out of their own."""

    def __init__(self, job: Job, request: Request) -> None:
        self.job, self.family, config = job, request.family.name, request.candidate.config
        self.rounds = int(config[ROUNDS_AND_RATE[self.family][0]]) if self.family in ROUNDS_AND_RATE else 0
        self.epochs = 0 if self.rounds else int(config.get("n_epochs", 0))
        self.values: list[list[float]] = []

    def add(self, model: FittedModel, test: NDArray[np.intp], scores: Mapping[str, float]) -> None:
        metric = self.job.metrics[0]
        if self.rounds:
            stages = early_stages(self.rounds)
            answers = staged_predictions(self.family, model.estimator, self.job.data.matrix[test], stages)
            early = [_score(metric, self.job, test, model.for_all_classes(answer)) for answer in answers]
            self.values.append([*early, scores[metric.name]])
        elif self.epochs:
            losses = net_stages(model.estimator, [*early_stages(self.epochs), self.epochs])
            self.values.append([-loss for loss in losses])

    def mean(self) -> dict[str, list[float]]:
        """Stages and their scores, averaged over the splits; empty where the family has none."""
        known = [values for values in self.values if values]
        if not known:
            return {}
        n_stages, unit, name = (
            (self.rounds, "rounds", self.job.metrics[0].name) if self.rounds
            else (self.epochs, "epochs", "negative_validation_loss")
        )  # fmt: skip
        stages = [float(stage) for stage in [*early_stages(n_stages), n_stages]]
        return {unit: stages, name: [float(value) for value in np.mean(known, axis=0)]}


@contextlib.contextmanager
def _calm(n_threads: int) -> Iterator[None]:
    """No warnings of models, and no more native threads than asked for."""
    limited = os.environ.get(THREAD_VARIABLES[0]) == str(n_threads)  # as in workers: asking the libraries takes 5 ms
    limits = contextlib.nullcontext() if limited else threadpool_limits(limits=n_threads)
    with warnings.catch_warnings(), np.errstate(all="ignore"), limits:
        warnings.simplefilter("ignore")
        yield
