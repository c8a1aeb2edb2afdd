"""Fit and score one candidate fold after fold, and stop where going on is not worth it."""

from __future__ import annotations

import contextlib
import os
import time
import warnings
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from typing import Any, Protocol, TypeVar

import numpy as np
from numpy.typing import NDArray
from threadpoolctl import threadpool_limits

from autometa.families._deadlines import FitLimit
from autometa.family import ModelFamily
from autometa.fitting import EncodedData, FittedModel, prepare_fit, run_fit
from autometa.folds.curve import Curve
from autometa.folds.progress import OutOfFold, Pace, Tally
from autometa.folds.request import Job, Request
from autometa.frozen_models import freeze
from autometa.records import Evaluation, Status
from autometa.workers import THREAD_VARIABLES, one_line

Answer = TypeVar("Answer")


class Report(Protocol):
    """Told of every finished split."""

    def __call__(self, model: FittedModel, scores: Mapping[str, float], *seconds: float) -> None: ...


def ignore(model: FittedModel, scores: Mapping[str, float], *seconds: float) -> None:
    """A report that nobody reads."""


def run_splits(job: Job, request: Request, report: Report = ignore) -> Evaluation:
    """All splits in this process. A split that fails ends the candidate; earlier ones keep their scores."""
    tally, oof = Tally(), OutOfFold(job.data) if request.predictions else None
    curve = Curve(job, request) if request.staged else None
    ending: dict[str, Any] = {}
    pace = Pace(request, len(job.splits))
    with _calm(request.n_threads):
        for done, (train, test) in enumerate(job.splits):
            try:
                model, prediction, *seconds = _run_split(job.data, pace, done, train, test)
                scores = {metric.name: job.score(metric, test, prediction) for metric in job.metrics}
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


def _run_split(
    data: EncodedData, pace: Pace, done: int, train: NDArray[np.intp], test: NDArray[np.intp]
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


def _fit_within(
    limit: FitLimit | None, unfitted: FittedModel, matrix: NDArray[Any], y: NDArray[Any], options: Mapping[str, Any]
) -> FittedModel:
    """The fit, in so much time."""
    if limit is None:
        return run_fit(unfitted, matrix, y, options)
    limit.fit(matrix, y, **options)
    return unfitted


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


def quietly(task: Callable[[], Answer]) -> Answer:
    """What a task answers, on one thread; what models warn of stays unsaid."""
    with _calm(1):
        return task()


@contextlib.contextmanager
def _calm(n_threads: int) -> Iterator[None]:
    """No warnings of models, and no more native threads than asked for."""
    limited = os.environ.get(THREAD_VARIABLES[0]) == str(n_threads)  # as in workers: asking the libraries takes 5 ms
    limits = contextlib.nullcontext() if limited else threadpool_limits(limits=n_threads)
    with warnings.catch_warnings(), np.errstate(all="ignore"), limits:
        warnings.simplefilter("ignore")
        yield
