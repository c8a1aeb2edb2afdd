"""The scikit-learn faces: select, tune, ensemble, refit, predict."""

from __future__ import annotations

import os
import warnings
from collections.abc import Iterable, Mapping
from concurrent.futures import Future
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from sklearn.base import BaseEstimator, ClassifierMixin, RegressorMixin
from sklearn.utils.validation import check_is_fitted, check_random_state, validate_data

from autometa.data import Dataset, TaskType, as_frame
from autometa.evaluation import Evaluator
from autometa.finishing import Finisher, Limits, completed, expected_refits
from autometa.html import fitted_html
from autometa.interrupts import interrupts_deferred, terminable, wait_for_first
from autometa.metrics import Metric, resolve_metric
from autometa.opening import (
    FirstModel,
    as_column,
    as_metric,
    first_model,
    in_background,
    keep_runs,
    measured_metrics,
    must_haste,
    provisional_selection,
    refuse_continuous,
    usable_families,
    warm_start,
    worker_count,
)
from autometa.predictor import Predictor, make_predictor
from autometa.probing import BUDGET_SECONDS
from autometa.progress import CallbackSupportMixin, progress_line, with_callbacks
from autometa.records import Ledger
from autometa.report import json_rows, run_record, summarise, write_report
from autometa.resident_memory import free_memory_mb
from autometa.selection import Selection, select
from autometa.tuning import Budget, SharedStudy, TuningResult, tune
from autometa.tuning.study import snapshot, study_name
from autometa.workers import shared_workers

if TYPE_CHECKING:
    from autometa.experience import Experience
    from autometa.family import ModelFamily
    from autometa.meta_model import MetaModel

_REFIT_POOL_SECONDS = 20.0
_MEMORY_SHARE = 0.8


@dataclass(frozen=True, eq=False)
class _Search:
    """What ``refine`` needs to go on where ``fit`` ended."""

    evaluator: Evaluator
    metric: Metric
    families: tuple[ModelFamily, ...]
    selection: Selection
    first: FirstModel | None
    shared: SharedStudy | None = None
    result: TuningResult | None = None


class _AutoMeta(CallbackSupportMixin, BaseEstimator):
    """What the classifier and the regressor share."""

    def __init__(
        self,
        time_budget: float = 60.0,
        *,
        max_trials: int | None = None,
        metric: str | Metric | None = None,
        families: Iterable[str | ModelFamily] | None = None,
        ensemble: bool = True,
        cv: Any = None,
        meta_model: MetaModel | str | None = None,
        experience: Experience | str | Path | None = None,
        class_weight: Mapping[Any, float] | str | None = None,
        max_predict_ms: float | None = None,
        max_model_mb: float | None = None,
        memory_limit_mb: float | None = None,
        budget_unit: str = "seconds",
        n_jobs: int | None = None,
        random_state: Any = None,
        verbose: int = 0,
    ) -> None:
        self.time_budget = time_budget
        self.max_trials = max_trials
        self.metric = metric
        self.families = families
        self.ensemble = ensemble
        self.cv = cv
        self.meta_model = meta_model
        self.experience = experience
        self.class_weight = class_weight
        self.max_predict_ms = max_predict_ms
        self.max_model_mb = max_model_mb
        self.memory_limit_mb = memory_limit_mb
        self.budget_unit = budget_unit
        self.n_jobs = n_jobs
        self.random_state = random_state
        self.verbose = verbose

    @with_callbacks
    def fit(
        self, X: Any, y: Any, *, sample_weight: Any = None, groups: Any = None, time: Any = None,
        storage: Any = None, warm_start: bool = False,
    ) -> Self:  # fmt: skip
        """Select, tune within the budget, fit the chosen models on all rows, and fine-tune them in the time left.

        Parameters
        ----------
        X : DataFrame (pandas or polars) or array of shape (n_rows, n_features)
            Raw columns: numbers, text, categories, dates, booleans, missing values.
        y : array-like of shape (n_rows,)
        sample_weight : array-like of shape (n_rows,), optional
            Enters fits (of the models that take weights) and scores.
        groups : array-like of shape (n_rows,), optional
            Rows of one group are never on both sides of a validation split.
        time : array-like of shape (n_rows,), optional
            Validation rows are later than training rows.
        storage : path, URL or optuna storage, optional
            Where trials are kept: an SQLite file (``.db``, ``.sqlite3``), any other file as an Optuna journal, or the
            URL of a database. A fit of the same table with the same settings goes on from there, after a crash too;
            several processes or machines may fit at once. ``max_trials`` counts the trials of all, ``time_budget``
            holds for each.
        warm_start : bool, default=False
            Go on from the last fit of this estimator, or from the storage, with a whole new budget.

        Returns
        -------
        self

        Raises
        ------
        DataError
            The table or the target cannot be used; one sentence says why.
        StorageError
            The storage cannot be opened.
        ValueError
            A parameter is out of range or does not fit the task; or a warm start on another table.
        """
        budget = Budget.of(self.time_budget, self.max_trials, self.budget_unit)
        limits = Limits(self.max_predict_ms, self.max_model_mb)
        workers = shared_workers(worker_count(self.n_jobs, budget))  # they start while this process goes on
        # The selection's thread and this one change the filters of warnings in turn; here they come back.
        with terminable(), warnings.catch_warnings():
            dataset = self._dataset(X, y, sample_weight=sample_weight, groups=groups, time=time)
            validate_data(self, X if hasattr(X, "columns") else as_frame(X).to_numpy(), skip_check_array=True)
            metric = resolve_metric(as_metric(self.metric), dataset.task)
            families = usable_families(self.families, dataset.task)
            earlier = self._earlier() if warm_start and storage is None else None
            seed = self._seed(dataset, storage) if earlier is None else earlier.evaluator.seed
            evaluator = Evaluator(
                dataset, families=families, splits=self.cv, metrics=measured_metrics(metric, dataset.task),
                memory_limit_mb=self.memory_limit_mb or _MEMORY_SHARE * free_memory_mb() / workers.n_workers,
                workers=workers, seed=seed, class_weight=self.class_weight,
            )  # fmt: skip
            if earlier is not None:
                _refuse_other(earlier, evaluator, metric)
                self._search(earlier, budget.after(len(earlier.result.evaluations) if earlier.result else 0), limits)
                return self
            shared = None
            if storage is not None:
                shared = SharedStudy.open(storage, evaluator, metric, n_jobs=workers.n_workers, further=warm_start)
            first = first_model(evaluator, metric, budget)
            haste = must_haste(evaluator, budget)
            ranking, later = in_background(
                partial(
                    select, dataset, metric=metric, families=families, meta_model=self.meta_model, random_state=seed,
                    this_machine=self.budget_unit == "seconds", experience=self.experience,
                    probe=budget.counts_time and budget.seconds >= BUDGET_SECONDS,
                ),
                first if haste else None,  # on small tables its time is that of imports
            )  # fmt: skip
            self.data_summary_ = summarise(dataset, n_splits=len(evaluator.splits))
            selection = provisional_selection(dataset, metric, families, haste=haste)
            search = _Search(evaluator, metric, families, selection, first, shared)
            self._search(search, budget, limits, ranking=ranking, later=later)
        return self

    @with_callbacks
    def refine(self, seconds: float) -> Self:
        """Search on for so many seconds where ``fit`` ended, and fit the chosen models again.

        Parameters
        ----------
        seconds : float
            Must be > 0; units of work where ``budget_unit="work"``.

        Returns
        -------
        self

        Raises
        ------
        ValueError
            The estimator came out of a file or another process: what the search needs did not travel with it.
        """
        check_is_fitted(self, "predictor_")
        with terminable(), warnings.catch_warnings():
            budget = Budget.of(seconds, None, self.budget_unit)
            self._search(self._earlier(), budget, Limits(self.max_predict_ms, self.max_model_mb))
        return self

    def _earlier(self) -> Any:
        """The search of the last fit; ``None`` before the first one."""
        if hasattr(self, "predictor_") and not hasattr(self, "_state"):
            raise ValueError(
                "refine and warm_start must follow a fit in the same process. This estimator was loaded; fit it again, "
                "or fit with storage=, which outlives the process."
            )
        return getattr(self, "_state", None)

    def _seed(self, dataset: Dataset, storage: Any) -> int:
        """Processes that share a storage must cut the same splits, also where no seed is given."""
        if self.random_state is None and storage is not None:
            return int(dataset.fingerprint[:7], 16)
        return int(check_random_state(self.random_state).randint(2**31 - 1))

    def _search(
        self,
        search: _Search,
        budget: Budget,
        limits: Limits,
        *,
        ranking: Future[Selection] | None = None,
        later: Any = None,
    ) -> None:
        """Search, finish and keep what comes out."""
        evaluator, metric, dataset = search.evaluator, search.metric, search.evaluator.dataset
        n_workers = worker_count(self.n_jobs, budget)
        n_refits = expected_refits(evaluator, ensemble=self.ensemble)
        spare = n_refits == 1 or not budget.counts_time or budget.seconds >= _REFIT_POOL_SECONDS
        # Further workers are warm by the time that the search ends, and those of the search may just have been killed.
        n_spare = min(n_workers, max(n_refits, 1))
        refitters = shared_workers(n_spare, purpose="refit") if spare else shared_workers(n_workers)
        with progress_line(budget, metric, enabled=self.verbose > 0, estimator=self) as on_trial:
            result = tune(
                evaluator, warm_start(search.selection), families=search.families, metric=metric,
                budget=budget, n_jobs=n_workers, random_state=evaluator.seed, on_trial=on_trial, later=later,
                earlier=search.result, n_refits=n_refits, shared=search.shared,
            )  # fmt: skip
        if ranking is not None:
            with interrupts_deferred():
                wait_for_first([ranking], 0.0 if self.experience is None else budget.remaining)
                if ranking.done():
                    search = replace(search, selection=ranking.result())
        if self.experience is not None and search.selection.meta_features.values:
            keep_runs(self.experience, dataset, search.selection, result.evaluations)
        finisher = Finisher(evaluator, refitters, metric, budget, self.ensemble, limits, search.first)
        end = finisher.finish(result)
        self._state = replace(search, result=result)
        encoders = {member.matrix: evaluator.encoder(member.matrix) for member in end.members}
        self.predictor_ = make_predictor(dataset, end.members, encoders=encoders, temperature=end.temperature)
        self._keep(search.selection, result, completed(end.ledger, search.first, result), metric)

    def __getstate__(self) -> Any:
        return {name: value for name, value in super().__getstate__().items() if name != "_state"}

    def predict(self, X: Any) -> NDArray[Any]:
        """Labels or values of shape (n_rows,).

        Raises
        ------
        DataError
            A column is missing or cannot be read as what it was at fit time.
        """
        return np.asarray(self._checked_predictor(X).predict(X))

    @property
    def leaderboard_(self) -> pd.DataFrame:
        """One row per finished trial, best first; the score in the metric's own sign."""
        check_is_fitted(self, "predictor_")
        return self._leaderboard

    def _checked_predictor(self, X: Any) -> Predictor:
        check_is_fitted(self, "predictor_")
        frame = as_frame(X)
        if not hasattr(X, "columns") and frame.shape[1] != self.n_features_in_:
            raise ValueError(
                f"X has {frame.shape[1]} features, but {type(self).__name__} is expecting {self.n_features_in_} "
                "features as input."
            )
        return self.predictor_

    def _dataset(self, X: Any, y: Any, **row_data: Any) -> Dataset:
        raise NotImplementedError

    def _keep(self, selection: Selection, result: TuningResult, ledger: Ledger, metric: Metric) -> None:
        """Fitted attributes."""
        self.selection_ = selection
        self.study_ = result.study if self._state.shared is None else snapshot(result.study)
        self.ledger_ = ledger
        self.metric_ = metric
        self._leaderboard = result.leaderboard(metric)
        ranked = result.ranked(metric.name)
        self.best_candidate_ = ranked[0].candidate if ranked else None
        self.best_score_ = metric.from_score(ranked[0].score(metric.name)) if ranked else float("nan")

    def _html_repr(self) -> str:
        """What a notebook shows: the outcome of the search where there is one, then scikit-learn's diagram."""
        diagram = str(super()._html_repr())
        if not hasattr(self, "predictor_"):
            return diagram
        members = [(member.family, member.weight) for member in self.predictor_.members]
        return fitted_html(
            type(self).__name__, best_score=self.best_score_, metric=self.metric_.name, members=members,
            ledger=f"Ledger: {self.ledger_.summary()}.", board=self.leaderboard_,
        ) + diagram  # fmt: skip

    def report(self, path: str | os.PathLike[str] = "report.html") -> Path:
        """Write one self-contained HTML page: what was chosen and why, what was tried, what is odd in the data.

        Parameters
        ----------
        path : path, default="report.html"
            A file; one that is there is replaced only if it is such a report.

        Returns
        -------
        Path

        Raises
        ------
        FileExistsError
            The file is there and not a report.
        """
        check_is_fitted(self, "predictor_")
        return write_report(self.predictor_, path, records=self._artefact_records())

    def _artefact_records(self) -> dict[str, Any]:
        """What is stored beside a saved model, as JSON."""
        ledger = self.ledger_.to_frame()
        return {
            "metric": self.metric_.name,
            "selection": json_rows(self.selection_.to_frame().reset_index()),
            "leaderboard": json_rows(self.leaderboard_.reset_index()),
            "ledger": json_rows(ledger),
            "run": run_record(
                self.selection_,
                self.ledger_,
                metric=self.metric_,
                data=self.data_summary_,
                best_score=self.best_score_,
                parameters=self._changed_parameters(),
            ),
        }

    def _changed_parameters(self) -> dict[str, Any]:
        """Arguments that differ from their defaults."""
        defaults = type(self)().get_params(deep=False)
        return {name: value for name, value in self.get_params(deep=False).items() if value is not defaults[name]}

    def __sklearn_tags__(self) -> Any:
        tags = super().__sklearn_tags__()
        tags.input_tags.allow_nan = True
        tags.input_tags.string = True
        tags.input_tags.categorical = True
        tags.non_deterministic = self.max_trials is None and self.budget_unit == "seconds"
        return tags


class AutoMetaClassifier(ClassifierMixin, _AutoMeta):
    """Classifier that starts its search from what earlier datasets taught.

    Parameters
    ----------
    time_budget : float, default=60.0
        Wall-clock seconds for everything ``fit`` does; must be > 0.
    max_trials : int or None, default=None
        At most so many trials. Decisions then do not depend on measured times, and the same ``random_state`` gives
        the same model as long as the time budget is not reached.
    metric : str, Metric, scorer or callable ``(estimator, X, y)``, default=None
        ``None``: ROC AUC for two classes, log loss for more.
    families : iterable of str or ModelFamily, default=None
        ``None``: all that are installed.
    ensemble : bool, default=True
        Combine several models where nested validation finds that better; ``False`` for one plain model.
    cv : scikit-learn splitter or list of (train, test), default=None
        ``None``: by size, and by ``groups`` or ``time`` where they are given.
    meta_model : MetaModel, path or "none", default=None
        ``None``: the one that comes with the library.
    experience : Experience, path or database URL, default=None
        A store of own runs: what is there informs the selection, and the meta-features and scores of this fit are added
        (never the data). ``None``: nothing is read or kept.
    class_weight : mapping of label to float, "balanced" or None, default=None
        Enters the fits of models that take sample weights, not the scores.
    max_predict_ms : float or None, default=None
        Milliseconds that all members together may take for one encoded row.
    max_model_mb : float or None, default=None
        Megabytes that all members together may take.
    memory_limit_mb : float or None, default=None
        Memory that one trial may take; beyond it the trial is stopped. ``None``: four fifths of what is free.
    budget_unit : {"seconds", "work"}, default="seconds"
        ``"work"``: the budget counts the seconds that the meta-model forecasts, so that the same seed gives the same
        model however busy the machine is. Trials are then not limited in time.
    n_jobs : int or None, default=None
        Trials at a time, each on one thread of a process of its own; -1: all cores. ``None``: all cores, at most 8; 1
        with ``max_trials`` or ``budget_unit="work"``, where the same seed must give the same model, and in a worker of
        a joblib loop.
    random_state : int, RandomState or None, default=None
    verbose : int, default=0
        1 shows one live line.

    Attributes
    ----------
    predictor_ : Predictor
        What predicts; all that :func:`autometa.save` stores.
    selection_ : Selection
    ledger_ : Ledger
        What was run, failed and skipped, and why.
    data_summary_ : DataSummary
        Shape of the table, and the problems that were found in it.
    leaderboard_ : DataFrame
    study_ : optuna.Study
        In memory; where a ``storage`` was given, a copy of what it held in the end.
    best_candidate_ : Candidate
    best_score_ : float
        Validation score of the best single candidate, in the metric's own sign.
    classes_ : ndarray of shape (n_classes,)
    n_features_in_ : int
    feature_names_in_ : ndarray, only for tables with text names

    Examples
    --------
    >>> from sklearn.datasets import load_iris
    >>> X, y = load_iris(return_X_y=True, as_frame=True)
    >>> model = AutoMetaClassifier(max_trials=2, families=["linear", "knn"], random_state=0).fit(X, y)
    >>> bool(model.score(X, y) > 0.9)
    True
    """

    def predict_proba(self, X: Any) -> NDArray[np.float64]:
        """Class probabilities of shape (n_rows, n_classes), in the order of ``classes_``."""
        return self._checked_predictor(X).predict_proba(X)

    def _dataset(self, X: Any, y: Any, **row_data: Any) -> Dataset:
        if y is None:
            raise ValueError("This AutoMetaClassifier estimator requires y to be passed, but the target y is None.")
        y = as_column(y)
        refuse_continuous(y)
        dataset = Dataset.from_arrays(X, y, task=TaskType.MULTICLASS, **row_data)
        self.classes_ = dataset.classes
        return dataset


class AutoMetaRegressor(RegressorMixin, _AutoMeta):
    """Regressor that starts its search from what earlier datasets taught.

    Parameters and attributes are those of :class:`AutoMetaClassifier`; ``metric=None`` means RMSE.

    Examples
    --------
    >>> from sklearn.datasets import load_diabetes
    >>> X, y = load_diabetes(return_X_y=True)
    >>> model = AutoMetaRegressor(max_trials=2, families=["linear", "knn"], random_state=0).fit(X, y)
    >>> bool(model.score(X, y) > 0.3)
    True
    """

    def _dataset(self, X: Any, y: Any, **row_data: Any) -> Dataset:
        if y is None:
            raise ValueError("This AutoMetaRegressor estimator requires y to be passed, but the target y is None.")
        return Dataset.from_arrays(X, as_column(y), task=TaskType.REGRESSION, **row_data)


def _refuse_other(earlier: _Search, evaluator: Evaluator, metric: Metric) -> None:
    if study_name(evaluator, metric) != study_name(earlier.evaluator, earlier.metric):
        raise ValueError(
            "warm_start must be given the table, metric, families, weights and splits of the last fit. Got others; "
            "fit without warm_start."
        )
