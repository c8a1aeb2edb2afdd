"""Methods: whole procedures measured on raw tables beside single candidates, on the same splits.

In a study file, ``[[method]]`` with ``kind = "fit"`` (an AutoML search with a ``time_budget``), ``"select"`` (the first
choice of :func:`autometa.select`, fitted once) or ``"default"`` (the default configuration of a ``family``). ``folds``
measures only the first splits.
"""

from __future__ import annotations

import time
from abc import abstractmethod
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray
from sklearn.base import BaseEstimator

from autometa.data import Dataset
from autometa.family import Candidate, MatrixShape, ModelFamily
from autometa.metrics import task_metrics
from autometa.records import Evaluation, Status
from autometa.search_space import SearchSpace
from autometa.selection import select
from autometa.splitting import Split, make_splits
from autometa.workers import Failure, shared_workers

_SLACK_SECONDS = 60.0


class Method(ModelFamily):
    """A procedure that takes the raw table. It has configurations and a version like a family, and can be killed."""

    search_space = SearchSpace({})
    default_config: ClassVar[Mapping[str, Any]] = {}
    """The options of the method and their defaults."""

    @abstractmethod
    def estimator(self, dataset: Dataset, config: Mapping[str, Any], seed: int) -> Any:
        """An unfitted estimator whose ``fit`` takes ``dataset.X`` and ``dataset.y``."""

    def seconds(self, config: Mapping[str, Any]) -> float:
        """What one fit may take, before the slack that it is given on top."""
        return _SLACK_SECONDS

    def build(
        self, config: Mapping[str, Any], shape: MatrixShape, *, random_state: int = 0, n_threads: int = 1
    ) -> BaseEstimator:
        """Always raises: a method cannot be fitted on an encoded matrix."""
        raise ValueError(f"The method {self.name!r} takes a raw table. Use estimator(dataset, config, seed).")


class Fit(Method):
    """:class:`autometa.AutoMetaClassifier` or ``AutoMetaRegressor`` with a time budget."""

    name = "method_fit"
    default_config: ClassVar[Mapping[str, Any]] = {
        "time_budget": 10.0, "ensemble": True, "warm_start": True, "folds": 100,
    }  # fmt: skip

    def estimator(self, dataset: Dataset, config: Mapping[str, Any], seed: int) -> Any:
        from autometa.estimator import AutoMetaClassifier, AutoMetaRegressor

        kind = AutoMetaClassifier if dataset.task.is_classification else AutoMetaRegressor
        return kind(
            time_budget=config["time_budget"], ensemble=config["ensemble"], n_jobs=1, random_state=seed,
            meta_model=None if config["warm_start"] else "none",
        )  # fmt: skip

    def seconds(self, config: Mapping[str, Any]) -> float:
        return 2.0 * float(config["time_budget"]) + _SLACK_SECONDS


class Select(Method):
    """The best candidate of :func:`autometa.select`, fitted once with nothing tuned."""

    name = "method_select"
    default_config: ClassVar[Mapping[str, Any]] = {"folds": 100}

    def estimator(self, dataset: Dataset, config: Mapping[str, Any], seed: int) -> Any:
        return select(dataset, random_state=seed).best.build()


class Default(Method):
    """The default configuration of one family."""

    name = "method_default"
    default_config: ClassVar[Mapping[str, Any]] = {"family": "lightgbm", "folds": 100}

    def estimator(self, dataset: Dataset, config: Mapping[str, Any], seed: int) -> Any:
        return select(dataset, families=[config["family"]], meta_model="none", random_state=seed).best.build()


METHODS: Mapping[str, Method] = {"fit": Fit(), "select": Select(), "default": Default()}
"""By the ``kind`` of a ``[[method]]``."""


def method_candidate(row: Mapping[str, Any]) -> Candidate:
    """A ``[[method]]`` table of a study file as a candidate.

    Raises
    ------
    ValueError
        An unknown kind or option.
    """
    options = dict(row)
    kind = options.pop("kind", None)
    if kind not in METHODS:
        raise ValueError(f"The kind of a method must be one of {', '.join(METHODS)}. Got {kind!r} instead.")
    method = METHODS[kind]
    if unknown := sorted(set(options) - set(method.default_config)):
        known = ", ".join(method.default_config)
        raise ValueError(f"A method of kind {kind!r} may have the options {known}. Got {', '.join(unknown)}.")
    return Candidate(method.name, {**method.default_config, **options})


def evaluate_method(method: Method, candidate: Candidate, dataset: Dataset, seed: int) -> Evaluation:
    """Measure a method on the splits of the dataset, in a process that is killed if the method overruns.

    Fit seconds are those of the whole procedure, imports of its process included in the first fit.
    """
    splits = make_splits(dataset, seed)[: candidate.config["folds"]]
    limit = len(splits) * method.seconds(candidate.config)
    unmeasured = Evaluation(dataset.fingerprint, candidate, Status.FAILED, seed=seed)

    def finish(outcome: Evaluation | Failure) -> Evaluation:
        if isinstance(outcome, Failure):
            return Evaluation(
                unmeasured.dataset, candidate, outcome.status, seed=seed, reason=outcome.reason
            )  # fmt: skip
        return outcome

    workers = shared_workers(1, purpose="methods")
    task = workers.submit(_measure, method, candidate, dataset, splits, seed, time_limit=limit, finish=finish)
    evaluation: Evaluation = task.result()
    return evaluation


def _measure(method: Method, candidate: Candidate, dataset: Dataset, splits: Sequence[Split], seed: int) -> Evaluation:
    """Runs in the worker."""
    metrics = task_metrics(dataset.task)
    scores: dict[str, list[float]] = {metric.name: [] for metric in metrics}
    fit_seconds, predict_seconds = [], []
    for train, test in splits:
        part = dataset.take(train)
        started = time.perf_counter()
        model = method.estimator(part, candidate.config, seed)
        model.fit(part.X, part.labels)
        fitted = time.perf_counter()
        prediction = predict_rows(model, dataset, test)
        predict_seconds.append(time.perf_counter() - fitted)
        fit_seconds.append(fitted - started)
        for metric in metrics:
            scores[metric.name].append(metric.score(dataset.y[test], prediction))
    return Evaluation(
        dataset.fingerprint, candidate, Status.OK, {name: tuple(values) for name, values in scores.items()},
        tuple(fit_seconds), tuple(predict_seconds),
        n_train_rows=int(np.mean([len(train) for train, _ in splits])), seed=seed,
    )  # fmt: skip


def predict_rows(model: Any, dataset: Dataset, rows: NDArray[np.intp]) -> NDArray[np.float64]:
    """What a fitted estimator answers on some rows of a dataset.

    Parameters
    ----------
    model : estimator
        Fitted on a part of the dataset, with its labels.
    dataset : Dataset
    rows : ndarray of int
        Positions.

    Returns
    -------
    ndarray
        Values of shape (n_rows,), or probabilities of shape (n_rows, n_classes), 0 for classes never seen.
    """
    table = dataset.X.iloc[rows]
    if dataset.classes is None:
        return np.asarray(model.predict(table), dtype=np.float64)
    whole = np.zeros((len(rows), dataset.n_classes))
    whole[:, np.searchsorted(dataset.classes, model.classes_)] = model.predict_proba(table)
    return whole
