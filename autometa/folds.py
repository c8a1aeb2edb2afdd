"""What a worker does for one candidate: fit and score fold after fold, and stop where going on is not worth it."""

from __future__ import annotations

import contextlib
import io
import json
import math
import os
import time
import warnings
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Protocol

import cloudpickle
import numpy as np
from numpy.typing import NDArray
from scipy.special import stdtr
from threadpoolctl import threadpool_limits

from autometa.family import Candidate, ModelFamily
from autometa.fitting import EncodedData, FittedModel, fit_model, prepare_fit, run_fit
from autometa.frozen_models import freeze
from autometa.metrics import Metric
from autometa.records import Evaluation, Status
from autometa.splitting import Split
from autometa.workers import THREAD_VARIABLES, Failure, SharedFile, memory_guard, one_line

MAX_FOLD_MODELS = 5
"""Of repeated cross-validation the first repeat is kept."""
_MAX_MODEL_BYTES = 64 * 2**20
_PRUNED_BELOW = 0.01
_PRIOR_FOLDS = 4
_SLACK = 1.0
_HASTE = 0.8


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
    """

    metric: str
    scores: tuple[float, ...]
    noise: float

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


class Report(Protocol):
    """Told of every finished split."""

    def __call__(self, model: FittedModel, *split: Any) -> None: ...


def ignore(model: FittedModel, *split: Any) -> None:
    """A report that nobody reads."""


def run_in_worker(
    files: tuple[SharedFile, SharedFile], request: Request, progress: SharedFile, models: SharedFile | None
) -> Evaluation:
    """All splits in a worker; finished ones are written down at once, in case the worker is killed."""
    job: Job = files[0].load()
    job = replace(job, data=replace(job.data, matrix=files[1].load()))
    store = _ModelStore(None if models is None else models.path)
    with memory_guard(request.memory_limit_mb) as peak, open(progress.path, "a", encoding="utf-8") as file:

        def report(model: FittedModel, *split: Any) -> None:
            store.add(model)  # before its line: a line promises a model
            file.write(json.dumps([*split, peak.mb]) + "\n")
            file.flush()

        evaluation = run_splits(job, request, report)
    return replace(evaluation, peak_memory_mb=peak.mb)


class _ModelStore:
    """The models of the first folds in a file, in the form that is kept; none of them if they are too large."""

    def __init__(self, path: str | None) -> None:
        self.path, self.n_models, self.n_bytes = path, 0, 0

    def add(self, model: FittedModel) -> None:
        if self.path is None or self.n_models == MAX_FOLD_MODELS:
            return
        content = io.BytesIO()
        with contextlib.suppress(Exception):  # a model that cannot travel is fitted again in the end
            cloudpickle.dump(replace(model, estimator=freeze(model.estimator)), content)
            self.n_models, self.n_bytes = self.n_models + 1, self.n_bytes + content.tell()
            if self.n_bytes <= _MAX_MODEL_BYTES:
                with open(self.path, "ab") as file:
                    file.write(content.getbuffer())
                return
        Path(self.path).unlink(missing_ok=True)
        self.path = None


def read_models(path: str) -> list[FittedModel]:
    """The fold models that a worker of this session has written; a last one that was cut off is left out."""
    models: list[FittedModel] = []
    with contextlib.suppress(FileNotFoundError), open(path, "rb") as file, contextlib.suppress(Exception):
        while len(models) < MAX_FOLD_MODELS:
            models.append(cloudpickle.load(file))
    return models


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
    ending: dict[str, Any] = {}
    started = time.perf_counter()
    with _calm(request.n_threads):
        for train, test in job.splits:
            try:
                model, prediction, *seconds = _run_split(job.data, request, train, test)
                scores = {metric.name: _score(metric, job, test, prediction) for metric in job.metrics}
            except Exception as error:
                status = Status.MEMORY if isinstance(error, MemoryError) else Status.FAILED
                ending = {"status": status, "reason": one_line(error)}
                break
            tally.add(scores, *seconds)
            report(model, scores, *seconds)
            if oof is not None:
                oof.add(test, prediction)
            ending = tally.verdict(request, len(job.splits), time.perf_counter() - started)
            if ending:
                break
    if oof is not None and not ending:
        ending["predictions"] = oof.mean()
    return tally.evaluation(request, job.splits, **ending)


def fit_quietly(family: ModelFamily, config: Mapping[str, Any], data: EncodedData, seed: int) -> FittedModel:
    """One configuration on all rows, in the form that is kept; what the model warns of stays unsaid."""
    with _calm(1):
        model = fit_model(family, config, data=data, seed=seed)
        return replace(model, estimator=freeze(model.estimator))


def _run_split(
    data: EncodedData, request: Request, train: NDArray[np.intp], test: NDArray[np.intp]
) -> tuple[FittedModel, NDArray[np.float64], float, float]:
    """Model, prediction of the test rows, fit seconds, predict seconds. Copies of rows are not timed."""
    prepared = prepare_fit(request.family, request.candidate.config, data, train, request.seed, request.n_threads)
    held_out = data.matrix[test]
    started = time.perf_counter()
    model = run_fit(*prepared)
    fitted = time.perf_counter()
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


@contextlib.contextmanager
def _calm(n_threads: int) -> Iterator[None]:
    """No warnings of models, and no more native threads than asked for."""
    limited = os.environ.get(THREAD_VARIABLES[0]) == str(n_threads)  # as in workers: asking the libraries takes 5 ms
    limits = contextlib.nullcontext() if limited else threadpool_limits(limits=n_threads)
    with warnings.catch_warnings(), np.errstate(all="ignore"), limits:
        warnings.simplefilter("ignore")
        yield
