"""Measuring: one candidate on one dataset, cross-validated, in a worker that can be killed.

``evaluate`` never raises because of a model: what goes wrong is a status and a sentence in the Evaluation.
"""

from __future__ import annotations

import contextlib
import json
import os
import threading
import time
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from threadpoolctl import threadpool_limits

from autometa.data import Dataset, TaskType
from autometa.family import Candidate, MatrixKind, ModelFamily
from autometa.fitting import EncodedData, prepare_fit, run_fit
from autometa.metrics import Metric, resolve_metric, task_metrics
from autometa.preprocessing import TableEncoder, encode_dataset
from autometa.records import Evaluation, Status
from autometa.splitting import Split, make_splits
from autometa.workers import THREAD_VARIABLES, Failure, SharedFile, WorkerPool, memory_guard, one_line, shared_workers


def evaluate(
    candidate: Candidate,
    dataset: Dataset,
    *,
    families: Iterable[str | ModelFamily] | None = None,
    splits: Any = None,
    metrics: Iterable[Any] | None = None,
    time_limit: float | None = None,
    memory_limit_mb: float | None = None,
    seed: int = 0,
    predictions: bool = False,
    workers: WorkerPool | None = None,
    n_threads: int = 1,
) -> Evaluation:
    """Measure one candidate on one dataset. For several candidates use an :class:`Evaluator`.

    Parameters
    ----------
    candidate : Candidate
    dataset : Dataset
    families : iterable of str or ModelFamily, default=all shipped families
        Where the candidate's family name is looked up.
    splits : list of (train, test), scikit-learn splitter or None
        ``None``: :func:`autometa.splitting.make_splits`.
    metrics : iterable of str, Metric or scorer, default=all metrics of the task
    time_limit : float or None
        Seconds for the candidate, all splits together. Finished splits keep their scores.
    memory_limit_mb : float or None
        MB above the worker's idle level.
    seed : int
        Of the splits and the model.
    predictions : bool
        Keep the out-of-fold predictions.
    workers : WorkerPool or None
        ``None`` runs in this process, unless there is a limit to keep: then ``shared_workers(1)``.
    n_threads : int

    Returns
    -------
    Evaluation
        Its status is OK, TIMEOUT, MEMORY, FAILED, or SKIPPED where the family cannot be used on this task.

    Raises
    ------
    ValueError
        The candidate's family is not among the families, or a metric does not fit the task.
    DataError
        The dataset cannot be split.
    """
    with Evaluator(
        dataset, families=families, splits=splits, metrics=metrics, workers=workers, time_limit=time_limit,
        memory_limit_mb=memory_limit_mb, seed=seed, n_threads=n_threads, predictions=predictions,
    ) as evaluator:  # fmt: skip
        return evaluator.evaluate(candidate)


class Evaluator:
    """Repeated trials on one dataset, which is encoded once per kind of matrix.

    Parameters
    ----------
    dataset : Dataset
    families, splits, metrics, workers, time_limit, memory_limit_mb, seed, n_threads, predictions
        As in :func:`evaluate`; the limits and ``predictions`` hold for every candidate unless a call says otherwise.

    Attributes
    ----------
    splits : list of (train, test)
    metrics : tuple of Metric
    families : dict of name to ModelFamily
    """

    def __init__(
        self,
        dataset: Dataset,
        *,
        families: Iterable[str | ModelFamily] | None = None,
        splits: Any = None,
        metrics: Iterable[Any] | None = None,
        workers: WorkerPool | None = None,
        time_limit: float | None = None,
        memory_limit_mb: float | None = None,
        seed: int = 0,
        n_threads: int = 1,
        predictions: bool = False,
    ) -> None:
        self.dataset = dataset
        self.families = _by_name(families)
        self.splits = _as_splits(splits, dataset, seed)
        self.metrics = _as_metrics(metrics, dataset.task)
        self.workers = workers
        self.time_limit = time_limit
        self.memory_limit_mb = memory_limit_mb
        self.seed = seed
        self.n_threads = n_threads
        self.predictions = predictions
        self._encoded: dict[MatrixKind, tuple[TableEncoder, EncodedData]] = {}
        self._shared: dict[tuple[MatrixKind, WorkerPool], tuple[SharedFile, SharedFile]] = {}
        self._lock = threading.RLock()

    def evaluate(self, candidate: Candidate, **options: Any) -> Evaluation:
        """Measure one candidate and wait for it; options as in :meth:`submit`. An interrupt kills its worker."""
        future = self.submit(candidate, **options)
        try:
            return future.result()
        except BaseException:
            future.cancel()
            raise

    def submit(
        self,
        candidate: Candidate,
        *,
        time_limit: float | None = None,
        memory_limit_mb: float | None = None,
        predictions: bool | None = None,
    ) -> Future[Evaluation]:
        """Start measuring one candidate.

        Parameters
        ----------
        candidate : Candidate
        time_limit, memory_limit_mb, predictions
            ``None`` keeps what the Evaluator was made with.

        Returns
        -------
        Future of Evaluation
            Cancelling it kills the worker. Without workers and limits it is done already.
        """
        family = self._family(candidate)
        time_limit = self.time_limit if time_limit is None else time_limit
        request = _Request(
            family=family,
            candidate=Candidate(candidate.family, dict(candidate.config)),
            fingerprint=self.dataset.fingerprint,
            seed=self.seed,
            n_threads=self.n_threads,
            memory_limit_mb=self.memory_limit_mb if memory_limit_mb is None else memory_limit_mb,
            predictions=self.predictions if predictions is None else predictions,
        )
        reason = _unusable(family, self.dataset.task)
        if reason:
            return _done(replace(request.blank(), candidate=candidate, status=Status.SKIPPED, reason=reason))
        workers = self.workers
        if workers is None and (time_limit is not None or request.memory_limit_mb is not None):
            workers = shared_workers(1)
        if workers is None:
            return _done(replace(_run_splits(self._job(family.matrix), request), candidate=candidate))
        return self._send(workers, request, candidate, time_limit)

    def encoder(self, matrix: MatrixKind) -> TableEncoder:
        """The fitted encoder of a kind of matrix, for the final pipeline."""
        return self._encode(matrix)[0]

    def data(self, matrix: MatrixKind) -> EncodedData:
        """The encoded dataset, for :func:`fit_model`."""
        return self._encode(matrix)[1]

    def close(self) -> None:
        """Forget the encoded matrices; their files go when no task needs them any more."""
        with self._lock:
            self._encoded.clear()
            self._shared.clear()

    def __enter__(self) -> Evaluator:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _family(self, candidate: Candidate) -> ModelFamily:
        if candidate.family not in self.families:
            names = ", ".join(self.families)
            raise ValueError(f"The candidate's family must be one of {names}. Got {candidate.family!r} instead.")
        return self.families[candidate.family]

    def _encode(self, matrix: MatrixKind) -> tuple[TableEncoder, EncodedData]:
        with self._lock:
            if matrix not in self._encoded:
                encoder, values = encode_dataset(self.dataset, matrix)
                self._encoded[matrix] = (
                    encoder,
                    EncodedData(
                        np.ascontiguousarray(values, dtype=np.float32),
                        self.dataset.y,
                        self.dataset.task,
                        self.dataset.n_classes,
                        encoder.n_categorical_,
                        self.dataset.sample_weight,
                    ),
                )
            return self._encoded[matrix]

    def _job(self, matrix: MatrixKind) -> _Job:
        return _Job(self.data(matrix), self.splits, self.metrics)

    def _share(self, workers: WorkerPool, matrix: MatrixKind) -> tuple[SharedFile, SharedFile]:
        """Files with the job and with its matrix, written once per kind of matrix and pool."""
        with self._lock:
            key = (matrix, workers)
            if key not in self._shared:
                job = self._job(matrix)
                values = workers.share(job.data.matrix)
                light = replace(job, data=replace(job.data, matrix=np.zeros((0, 0), dtype=np.float32)))
                self._shared[key] = (workers.share(light), values)
            return self._shared[key]

    def _send(
        self, workers: WorkerPool, request: _Request, candidate: Candidate, time_limit: float | None
    ) -> Future[Evaluation]:
        files = self._share(workers, request.family.matrix)
        progress = workers.new_file(".jsonl")
        workers.warm_up((__name__, type(request.family).__module__, *request.family.requires))

        def finish(outcome: Evaluation | Failure) -> Evaluation:
            _ = files  # held until the task has ended
            if isinstance(outcome, Failure):
                outcome = _partial(request, progress, outcome, self.splits)
            return replace(outcome, candidate=candidate)

        return workers.submit(_run_in_worker, files, request, progress, time_limit=time_limit, finish=finish)


@dataclass(frozen=True, eq=False)
class _Job:
    """What all candidates on one matrix have in common."""

    data: EncodedData
    splits: Sequence[Split]
    metrics: Sequence[Metric]


@dataclass(frozen=True, eq=False)
class _Request:
    """What is asked for one candidate."""

    family: ModelFamily
    candidate: Candidate
    fingerprint: str
    seed: int
    n_threads: int
    memory_limit_mb: float | None
    predictions: bool

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

    def evaluation(self, request: _Request, splits: Sequence[Split], **changes: Any) -> Evaluation:
        return replace(
            request.blank(),
            scores={name: tuple(values) for name, values in self.scores.items()},
            fit_seconds=tuple(self.fit_seconds),
            predict_seconds=tuple(self.predict_seconds),
            n_train_rows=round(float(np.mean([len(train) for train, _ in splits]))),
            **changes,
        )


def _run_in_worker(files: tuple[SharedFile, SharedFile], request: _Request, progress: SharedFile) -> Evaluation:
    job: _Job = files[0].load()
    job = replace(job, data=replace(job.data, matrix=files[1].load()))
    with memory_guard(request.memory_limit_mb) as peak, open(progress.path, "a", encoding="utf-8") as file:

        def report(*split: Any) -> None:
            file.write(json.dumps([*split, peak.mb]) + "\n")
            file.flush()

        evaluation = _run_splits(job, request, report)
    return replace(evaluation, peak_memory_mb=peak.mb)


def _partial(request: _Request, progress: SharedFile, failure: Failure, splits: Sequence[Split]) -> Evaluation:
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


def _run_splits(job: _Job, request: _Request, report: Callable[..., None] = lambda *split: None) -> Evaluation:
    """All splits in this process. A split that fails ends the candidate; earlier ones keep their scores."""
    tally, oof = _Tally(), _OutOfFold(job.data) if request.predictions else None
    ending: dict[str, Any] = {}
    with _calm(request.n_threads):
        for train, test in job.splits:
            try:
                prediction, *seconds = _run_split(job.data, request, train, test)
                scores = {metric.name: _score(metric, job.data, test, prediction) for metric in job.metrics}
            except Exception as error:
                status = Status.MEMORY if isinstance(error, MemoryError) else Status.FAILED
                ending = {"status": status, "reason": one_line(error)}
                break
            tally.add(scores, *seconds)
            report(scores, *seconds)
            if oof is not None:
                oof.add(test, prediction)
    if oof is not None and not ending:
        ending["predictions"] = oof.mean()
    return tally.evaluation(request, job.splits, **ending)


def _run_split(
    data: EncodedData, request: _Request, train: NDArray[np.intp], test: NDArray[np.intp]
) -> tuple[NDArray[np.float64], float, float]:
    """Prediction of the test rows, fit seconds, predict seconds. Copies of rows are not timed."""
    prepared = prepare_fit(request.family, request.candidate.config, data, train, request.seed, request.n_threads)
    held_out = data.matrix[test]
    started = time.perf_counter()
    model = run_fit(*prepared)
    fitted = time.perf_counter()
    prediction = model.predict(held_out)
    return prediction, fitted - started, time.perf_counter() - fitted


def _score(metric: Metric, data: EncodedData, test: NDArray[np.intp], prediction: NDArray[np.float64]) -> float:
    weight = None if data.sample_weight is None else data.sample_weight[test]
    if weight is not None and not weight.any():
        return float("nan")
    return metric.score(data.y[test], prediction, weight)


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


def _unusable(family: ModelFamily, task: TaskType) -> str:
    if task not in family.tasks:
        return f"The family {family.name!r} does not handle {task} tasks."
    if not family.is_available():
        return f"The family {family.name!r} needs {', '.join(family.requires)}. {family.install_hint}".strip()
    return ""


def _by_name(families: Iterable[str | ModelFamily] | None) -> dict[str, ModelFamily]:
    chosen = None if families is None else list(families)
    if chosen and all(isinstance(family, ModelFamily) for family in chosen):
        named = {family.name: family for family in chosen if isinstance(family, ModelFamily)}
        if len(named) == len(chosen):
            return named
    from autometa.families import resolve_families

    return {family.name: family for family in resolve_families(chosen)}


def _as_splits(splits: Any, dataset: Dataset, seed: int) -> list[Split]:
    if splits is None or hasattr(splits, "split"):
        return make_splits(dataset, seed, splits)
    return [(np.asarray(train, dtype=np.intp), np.asarray(test, dtype=np.intp)) for train, test in splits]


def _as_metrics(metrics: Iterable[Any] | None, task: TaskType) -> tuple[Metric, ...]:
    if metrics is None:
        return task_metrics(task)
    listed = [metrics] if isinstance(metrics, str | Metric) else list(metrics)
    return tuple(resolve_metric(metric, task) for metric in listed)


def _done(evaluation: Evaluation) -> Future[Evaluation]:
    future: Future[Evaluation] = Future()
    future.set_result(evaluation)
    return future
