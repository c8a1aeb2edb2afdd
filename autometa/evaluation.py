"""Measuring: one candidate on one dataset, cross-validated, in a worker that can be killed.

``evaluate`` never raises because of a model: what goes wrong is a status and a sentence in the Evaluation.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Iterable, Mapping
from concurrent.futures import Future
from dataclasses import replace
from typing import Any
from weakref import WeakKeyDictionary

import numpy as np
from sklearn.utils.class_weight import compute_sample_weight

from autometa.data import Dataset, TaskType
from autometa.family import Candidate, MatrixKind, ModelFamily
from autometa.fitting import EncodedData, FittedModel
from autometa.fold_models import read_fold_models
from autometa.folds import Job, Request, Rival, finished_part, run_in_worker, run_splits
from autometa.interrupts import interrupts_deferred, wait_for_first
from autometa.metrics import Metric, resolve_metric, task_metrics
from autometa.preprocessing import TableEncoder, encode_dataset
from autometa.records import Evaluation, Status
from autometa.shared_files import SharedFile
from autometa.splitting import Split, make_splits
from autometa.workers import Failure, WorkerPool, shared_workers


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
    staged : bool, default=False
        Also score boosting and nets at a few earlier stages of each fit, see :attr:`Evaluation.curve`.
    class_weight : mapping of label to float, "balanced" or None
        Enters the fits of models that take sample weights, not the scores.

    Attributes
    ----------
    splits : list of (train, test)
    metrics : tuple of Metric
    families : dict of name to ModelFamily
    fit_weight : ndarray of shape (n_rows,) or None
        Sample weights times class weights.
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
        staged: bool = False,
        class_weight: Mapping[Any, float] | str | None = None,
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
        self.staged = staged
        self.fit_weight = _fit_weight(dataset, class_weight)
        self._encoded: dict[MatrixKind, tuple[TableEncoder, EncodedData]] = {}
        self._encoding_seconds: list[float] = []
        self._shared: dict[tuple[MatrixKind, WorkerPool], tuple[SharedFile, SharedFile]] = {}
        self._running: WeakKeyDictionary[Future[Evaluation], tuple[Request, SharedFile]] = WeakKeyDictionary()
        self._models: dict[str, SharedFile] = {}
        self._lock = threading.RLock()

    def evaluate(self, candidate: Candidate, **options: Any) -> Evaluation:
        """Measure one candidate and wait for it; options as in :meth:`submit`. An interrupt kills its worker."""
        with interrupts_deferred():
            future = self.submit(candidate, **options)
            try:
                wait_for_first([future])
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
        rival: Rival | None = None,
        keep_models: bool = False,
        cut_short: bool = False,
    ) -> Future[Evaluation]:
        """Start measuring one candidate.

        Parameters
        ----------
        candidate : Candidate
        time_limit, memory_limit_mb, predictions
            ``None`` keeps what the Evaluator was made with.
        rival : Rival or None
            The candidate is stopped (``PRUNED``) once it is clearly worse after some of the folds.
        keep_models : bool, default=False
            Keep the fitted models of the folds for :meth:`fold_models`; needs workers.
        cut_short : bool, default=False
            Boosting, forests and nets that would not keep the time limit are stopped early, not given up. The candidate
            of the evaluation then has the rounds that were done, and the reason says so.

        Returns
        -------
        Future of Evaluation
            Cancelling it kills the worker. Without workers and limits it is done already.
        """
        family = self._family(candidate)
        time_limit = self.time_limit if time_limit is None else time_limit
        request = Request(
            family=family,
            candidate=Candidate(candidate.family, dict(candidate.config)),
            fingerprint=self.dataset.fingerprint,
            seed=self.seed,
            n_threads=self.n_threads,
            memory_limit_mb=self.memory_limit_mb if memory_limit_mb is None else memory_limit_mb,
            predictions=self.predictions if predictions is None else predictions,
            time_limit=time_limit,
            rival=rival,
            staged=self.staged,
            cut_short=cut_short,
        )
        reason = _unusable(family, self.dataset.task)
        if reason:
            return _done(replace(request.blank(), candidate=candidate, status=Status.SKIPPED, reason=reason))
        workers = self.workers
        if workers is None and (time_limit is not None or request.memory_limit_mb is not None):
            workers = shared_workers(1)
        if workers is None:
            return _done(replace(run_splits(self._job(family.matrix), request), candidate=candidate))
        return self._send(workers, request, candidate, keep_models)

    def stop(self, future: Future[Evaluation], reason: str) -> Evaluation:
        """End a candidate that was submitted, and say what it had finished; its worker is killed if it has begun.

        Parameters
        ----------
        future : Future
            From :meth:`submit`.
        reason : str
            Why; becomes the reason of a ``TIMEOUT``.
        """
        future.cancel()
        if not future.cancelled():
            return future.result()
        request, progress = self._running[future]
        return finished_part(request, progress, Failure(Status.TIMEOUT, reason), self.splits)

    def fold_models(self, candidate: Candidate) -> list[FittedModel]:
        """The models of the first finished folds, at most five; none where they were not kept or are too large."""
        file = self._models.get(candidate.key)
        return [] if file is None else read_fold_models(file.path)

    def forget_models(self, keep: Iterable[Candidate]) -> None:
        """Remove the fold models of all candidates that have ended but these."""
        kept = {candidate.key for candidate in keep}
        kept |= {request.candidate.key for future, (request, _) in list(self._running.items()) if not future.done()}
        for key in set(self._models) - kept:
            del self._models[key]

    def encoding_seconds(self, matrix: MatrixKind) -> float:
        """What encoding the table for this kind of matrix is expected to take: as long as others did, 0 once done."""
        return 0.0 if matrix in self._encoded else max(self._encoding_seconds, default=0.0)

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
            self._models.clear()

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
                started = time.perf_counter()
                encoder, values = encode_dataset(self.dataset, matrix)
                self._encoding_seconds.append(time.perf_counter() - started)
                self._encoded[matrix] = (
                    encoder,
                    EncodedData(
                        np.ascontiguousarray(values, dtype=np.float32),
                        self.dataset.y,
                        self.dataset.task,
                        self.dataset.n_classes,
                        encoder.n_categorical_,
                        self.fit_weight,
                    ),
                )
            return self._encoded[matrix]

    def _job(self, matrix: MatrixKind) -> Job:
        return Job(self.data(matrix), self.splits, self.metrics, self.dataset.sample_weight)

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
        self, workers: WorkerPool, request: Request, candidate: Candidate, keep_models: bool
    ) -> Future[Evaluation]:
        files = self._share(workers, request.family.matrix)
        progress = workers.new_file(".jsonl")
        models = workers.new_file(".models") if keep_models else None
        workers.warm_up((run_in_worker.__module__, type(request.family).__module__, *request.family.requires))

        def finish(outcome: Evaluation | Failure) -> Evaluation:
            _ = files  # held until the task has ended
            if isinstance(outcome, Failure):
                outcome = finished_part(request, progress, outcome, self.splits)
            if outcome.candidate == candidate:
                return replace(outcome, candidate=candidate)
            if models is not None:
                self._models[outcome.candidate.key] = models  # fewer rounds than asked for
            return outcome

        future = workers.submit(
            run_in_worker, files, request, progress, models, time_limit=request.time_limit, finish=finish
        )
        self._running[future] = (request, progress)
        if models is not None:
            self._models[candidate.key] = models
        return future


def _unusable(family: ModelFamily, task: TaskType) -> str:
    if task not in family.tasks:
        return f"The family {family.name!r} does not handle {task} tasks."
    if not family.is_available():
        return f"The family {family.name!r} needs {', '.join(family.requires)}. {family.install_hint}".strip()
    return ""


def _fit_weight(dataset: Dataset, class_weight: Mapping[Any, float] | str | None) -> Any:
    """Sample weights times class weights: what fits see. Scores see the sample weights alone."""
    if class_weight is None or not dataset.task.is_classification:
        return dataset.sample_weight
    weight = compute_sample_weight(class_weight, dataset.labels)
    return weight if dataset.sample_weight is None else weight * dataset.sample_weight


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
