"""The scikit-learn faces: select, tune, ensemble, refit, predict."""

from __future__ import annotations

import os
from collections.abc import Iterable
from functools import partial
from typing import TYPE_CHECKING, Any, Self

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from sklearn.base import BaseEstimator, ClassifierMixin, RegressorMixin
from sklearn.dummy import DummyClassifier, DummyRegressor
from sklearn.utils.multiclass import check_classification_targets
from sklearn.utils.validation import check_is_fitted, check_random_state, column_or_1d, validate_data

from autometa.data import Dataset, TaskType, as_frame, as_series
from autometa.ensembling import choose_weights
from autometa.evaluation import Evaluator
from autometa.fitting import FittedModel, fit_model
from autometa.metrics import Metric, resolve_metric
from autometa.predictor import Member, Predictor, make_predictor
from autometa.progress import progress_line
from autometa.records import Evaluation, Ledger, LedgerEntry, Status
from autometa.selection import CORPUS_ROWS, Selection, select
from autometa.tuning import Budget, TuningResult, tune
from autometa.workers import WorkerError, WorkerPool, shared_workers

if TYPE_CHECKING:
    from autometa.family import ModelFamily
    from autometa.meta_model import MetaModel

_MAX_ENSEMBLED = 12
_GRACE_SECONDS = 0.5


class _AutoMeta(BaseEstimator):
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
        memory_limit_mb: float | None = None,
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
        self.memory_limit_mb = memory_limit_mb
        self.n_jobs = n_jobs
        self.random_state = random_state
        self.verbose = verbose

    def fit(self, X: Any, y: Any, *, sample_weight: Any = None, groups: Any = None, time: Any = None) -> Self:
        """Select, tune within the budget, and fit the chosen models on all rows.

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

        Returns
        -------
        self

        Raises
        ------
        DataError
            The table or the target cannot be used; one sentence says why.
        ValueError
            A parameter is out of range or does not fit the task.
        """
        budget = Budget(self.time_budget, self.max_trials)
        seed = int(check_random_state(self.random_state).randint(2**31 - 1))
        workers = shared_workers(_n_workers(self.n_jobs))
        dataset = self._dataset(X, y, sample_weight=sample_weight, groups=groups, time=time)
        validate_data(self, X if hasattr(X, "columns") else as_frame(X).to_numpy(), skip_check_array=True)
        metric = resolve_metric(self.metric, dataset.task)
        selection = select(
            dataset, metric=metric, families=self.families, meta_model=self.meta_model, random_state=seed
        )  # fmt: skip
        refitters = shared_workers(1, purpose="refit")  # warm by the time that the search ends
        with Evaluator(
            dataset, families=selection.families, splits=self.cv, metrics=_metrics(metric, dataset.task),
            workers=workers, memory_limit_mb=self.memory_limit_mb, seed=seed,
        ) as evaluator:  # fmt: skip
            with progress_line(budget, metric, enabled=self.verbose > 0) as on_trial:
                result = tune(
                    evaluator, selection.candidates, families=selection.families, metric=metric, budget=budget,
                    belief=selection.belief, seconds_factor=max(1.0, dataset.n_rows / CORPUS_ROWS),
                    n_jobs=workers.n_workers, random_state=seed, on_trial=on_trial,
                )  # fmt: skip
            members, ledger = _final_members(result, evaluator, refitters, metric, budget, self.ensemble)
        self._keep(dataset, selection, result, ledger, members, evaluator, metric)
        return self

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

    def _keep(
        self,
        dataset: Dataset,
        selection: Selection,
        result: TuningResult,
        ledger: Ledger,
        members: tuple[Member, ...],
        evaluator: Evaluator,
        metric: Metric,
    ) -> None:
        """Fitted attributes."""
        self.selection_ = selection
        self.study_ = result.study
        self.ledger_ = ledger
        self.metric_ = metric
        self._leaderboard = _leaderboard(result, metric)
        ranked = result.ranked(metric.name)
        self.best_candidate_ = ranked[0].candidate if ranked else None
        self.best_score_ = metric.from_score(ranked[0].score(metric.name)) if ranked else float("nan")
        encoders = {member.matrix: evaluator.encoder(member.matrix) for member in members}
        self.predictor_ = make_predictor(dataset, members, encoders=encoders)

    def _artefact_records(self) -> dict[str, Any]:
        """What is stored beside a saved model, as JSON."""
        ledger = self.ledger_.to_frame()
        return {
            "metric": self.metric_.name,
            "selection": _json_rows(self.selection_.to_frame().reset_index()),
            "leaderboard": _json_rows(self.leaderboard_.reset_index()),
            "ledger": _json_rows(ledger),
        }

    def __sklearn_tags__(self) -> Any:
        tags = super().__sklearn_tags__()
        tags.input_tags.allow_nan = True
        tags.input_tags.string = True
        tags.input_tags.categorical = True
        tags.non_deterministic = self.max_trials is None
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
    metric : str, Metric or scorer, default=None
        ``None``: ROC AUC for two classes, log loss for more.
    families : iterable of str or ModelFamily, default=None
        ``None``: all that are installed.
    ensemble : bool, default=True
        Combine several models where nested validation finds that better; ``False`` for one plain model.
    cv : scikit-learn splitter or list of (train, test), default=None
        ``None``: by size, and by ``groups`` or ``time`` where they are given.
    meta_model : MetaModel, path or "none", default=None
        ``None``: the one that comes with the library.
    memory_limit_mb : float or None, default=None
        Memory that one trial may take; beyond it the trial is stopped.
    n_jobs : int or None, default=None
        Trials at a time. ``None`` means 1, -1 all cores.
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
    leaderboard_ : DataFrame
    study_ : optuna.Study
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
        y = _as_column(y)
        _refuse_continuous(y)
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
        return Dataset.from_arrays(X, _as_column(y), task=TaskType.REGRESSION, **row_data)


def _final_members(
    result: TuningResult, evaluator: Evaluator, workers: WorkerPool, metric: Metric, budget: Budget, ensemble: bool
) -> tuple[tuple[Member, ...], Ledger]:
    """The chosen candidates fitted on all rows, heaviest first, as far as the time goes; always at least one."""
    ranked = result.ranked(metric.name)[:_MAX_ENSEMBLED]
    chosen = _weighted(ranked, evaluator.dataset, metric, evaluator.seed) if ensemble and ranked else []
    chosen = chosen or [(evaluation, 1.0) for evaluation in ranked[:1]]
    spare = [(e, 1.0) for e in sorted(ranked, key=lambda e: e.seconds)[:2]]
    ledger = result.ledger
    members: list[Member] = []
    for evaluation, weight in [*chosen, *spare]:
        if members and (evaluation, weight) in spare:
            break
        model, reason = _refit(evaluation, evaluator, workers, budget, urgent=not members)
        if model is not None:
            members.append(_member(evaluation, evaluator, model, weight))
        status = Status.OK if model is not None else Status.TIMEOUT
        entry = LedgerEntry(evaluation.candidate, status, "refit", weight, started=budget.elapsed, reason=reason)
        ledger = ledger.add(entry)
    if members:
        return tuple(members), ledger
    note = "No candidate could be fitted within the limits: a constant prediction is used."
    ledger = ledger.add(LedgerEntry(None, Status.FAILED, "refit", started=budget.elapsed, reason=note))
    return (_constant(evaluator),), ledger


def _weighted(ranked: list[Evaluation], dataset: Dataset, metric: Metric, seed: int) -> list[tuple[Evaluation, float]]:
    predictions = [e.predictions for e in ranked if e.predictions is not None]
    weights = choose_weights(predictions, dataset.y, metric=metric, sample_weight=dataset.sample_weight, seed=seed)
    pairs = [(e, float(w)) for e, w in zip(ranked, weights, strict=True) if w > 0]
    return sorted(pairs, key=lambda pair: -pair[1])


def _refit(
    evaluation: Evaluation, evaluator: Evaluator, workers: WorkerPool, budget: Budget, *, urgent: bool
) -> tuple[FittedModel | None, str]:
    """A model of this candidate on all rows, fitted in a worker so that it can be stopped."""
    remaining = budget.remaining + (_GRACE_SECONDS if urgent else 0.0)
    expected = float(np.mean(evaluation.fit_seconds)) * evaluator.dataset.n_rows / max(1, evaluation.n_train_rows)
    if not urgent and expected > remaining:
        return None, "no time left to fit it on all rows"
    family = evaluator.families[evaluation.candidate.family]
    data = evaluator.data(family.matrix)
    task = partial(fit_model, family, dict(evaluation.candidate.config), data=data, seed=evaluator.seed)
    limit = remaining if np.isfinite(remaining) else None
    try:
        return workers.submit(task, time_limit=limit).result(), ""
    except WorkerError as error:
        return None, str(error)


def _member(evaluation: Evaluation, evaluator: Evaluator, model: FittedModel, weight: float) -> Member:
    candidate = evaluation.candidate
    matrix = evaluator.families[candidate.family].matrix
    return Member(candidate.family, dict(candidate.config), matrix, (model.estimator,), weight)


def _constant(evaluator: Evaluator) -> Member:
    """The prior of the classes or the mean of the target, when nothing else could be fitted."""
    dataset = evaluator.dataset
    model = DummyClassifier() if dataset.task.is_classification else DummyRegressor()
    model.fit(np.zeros((dataset.n_rows, 1)), dataset.y, sample_weight=dataset.sample_weight)
    return Member("constant", {}, "tree", (model,))


def _leaderboard(result: TuningResult, metric: Metric) -> pd.DataFrame:
    rows = [
        (
            e.candidate.family, metric.from_score(e.score(metric.name)), e.standard_error(metric.name),
            float(np.mean(e.fit_seconds)), dict(e.candidate.config),
        )
        for e in result.ranked(metric.name)
    ]  # fmt: skip
    columns = ["family", metric.name, "standard_error", "fit_seconds", "config"]
    return pd.DataFrame(rows, columns=columns, index=pd.RangeIndex(1, len(rows) + 1, name="rank"))


def _metrics(metric: Metric, task: TaskType) -> list[Metric]:
    """The metric that decides and, for the record, the default one."""
    default = resolve_metric(None, task)
    return [metric] if metric.name == default.name else [metric, default]


def _as_column(y: Any) -> Any:
    """scikit-learn warns where y is a table of one column; so does this."""
    return column_or_1d(y, warn=True) if getattr(y, "ndim", 1) == 2 and y.shape[1] == 1 else y


def _refuse_continuous(y: Any) -> None:
    """scikit-learn's own check that y holds labels, blind to missing ones (they are dropped later)."""
    known = as_series(y).dropna()
    if len(known):
        check_classification_targets(known.to_numpy())


def _n_workers(n_jobs: int | None) -> int:
    if n_jobs is None:
        return 1
    if n_jobs == 0:
        raise ValueError("n_jobs must not be 0. Use None or 1 for one worker, -1 for all cores.")
    n_cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return n_jobs if n_jobs > 0 else max(1, n_cores + 1 + n_jobs)


def _json_rows(frame: pd.DataFrame) -> list[dict[str, Any]]:
    """Rows with plain values, NaN as None."""
    rows = frame.astype(object).where(frame.notna(), None).to_dict(orient="records")
    return [{str(k): v.item() if isinstance(v, np.generic) else v for k, v in row.items()} for row in rows]
