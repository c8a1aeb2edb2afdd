"""Metrics, all computed from one form of prediction and all higher = better.

A prediction is an array of shape (n_rows, n_classes) of probabilities for classification and of shape (n_rows,) for
regression. ``score`` turns losses round, so the score of log loss, RMSE and MAE is their negative.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from inspect import signature
from typing import Any

import numpy as np
from numpy.typing import NDArray
from sklearn import metrics as sk

from autometa.data import TaskType

Scores = dict[str, float]
_CLASSIFICATION = frozenset({TaskType.BINARY, TaskType.MULTICLASS})
_REGRESSION = frozenset({TaskType.REGRESSION})
_EPS = 1e-7


@dataclass(frozen=True)
class Metric:
    """How good a prediction is.

    Parameters
    ----------
    name : str
    tasks : frozenset of TaskType
    function : callable
        ``function(y, prediction, sample_weight) -> float`` in the metric's own sign.
    greater_is_better : bool
        False for losses; their score is the negative.
    worst, best : float, default=-inf, inf
        Range of the score, where it has one.
    """

    name: str
    tasks: frozenset[TaskType]
    function: Callable[[NDArray[Any], NDArray[Any], NDArray[Any] | None], float]
    greater_is_better: bool = True
    worst: float = -math.inf
    best: float = math.inf

    def score(self, y: NDArray[Any], prediction: NDArray[Any], sample_weight: NDArray[Any] | None = None) -> float:
        """Higher is better; NaN where the metric is not defined (ROC AUC of a single class, say)."""
        try:
            value = float(self.function(y, prediction, sample_weight))
        except ValueError:
            return float("nan")
        return value if self.greater_is_better else -value

    def from_score(self, score: float) -> float:
        """The metric in its own sign, for people to read."""
        return score if self.greater_is_better else -score


def _labels(p: NDArray[Any]) -> NDArray[np.intp]:
    return np.asarray(p.argmax(axis=1))


def _roc_auc(y: NDArray[Any], p: NDArray[Any], w: NDArray[Any] | None) -> float:
    """Binary: area under the ROC curve. Multiclass: one against the rest, averaged with the class shares."""
    weights = np.ones(len(y)) if w is None else np.asarray(w, dtype=float)
    if p.shape[1] == 2:
        return _area(y == 1, p[:, 1], weights)
    areas = np.array([_area(y == k, p[:, k], weights) for k in range(p.shape[1])])
    shares = np.bincount(y, weights, minlength=p.shape[1])
    known = np.isfinite(areas)
    return float(np.average(areas[known], weights=shares[known])) if known.any() else float("nan")


def _area(positive: NDArray[np.bool_], scores: NDArray[Any], weights: NDArray[Any]) -> float:
    """Share of weighted pairs (positive, negative) in the right order, ties by half; ten times faster than sklearn."""
    _, level = np.unique(scores, return_inverse=True)
    up = np.bincount(level, weights * positive)
    down = np.bincount(level, weights * ~positive)
    pairs = up.sum() * down.sum()
    return float((up * (np.cumsum(down) - 0.5 * down)).sum() / pairs) if pairs > 0 else float("nan")


def _log_loss(y: NDArray[Any], p: NDArray[Any], w: NDArray[Any] | None) -> float:
    p = np.clip(p, _EPS, 1.0)
    p = p / p.sum(axis=1, keepdims=True)
    return float(np.average(-np.log(p[np.arange(len(y)), y]), weights=w))


def _f1(y: NDArray[Any], p: NDArray[Any], w: NDArray[Any] | None) -> float:
    """Binary: F1 of the second class. Multiclass: macro average over the classes present; 0 where undefined."""
    labels, n = _labels(p), p.shape[1]
    weights = np.ones(len(y)) if w is None else np.asarray(w, dtype=float)
    hits = np.bincount(y, weights * (labels == y), minlength=n)
    support = np.bincount(y, weights, minlength=n) + np.bincount(labels, weights, minlength=n)
    each = 2.0 * hits / np.where(support > 0, support, 1.0)
    if n == 2:
        return float(each[1])
    present = np.union1d(y, labels)  # scikit-learn averages over the classes of either
    return float(each[present].mean())


def _balanced_accuracy(y: NDArray[Any], p: NDArray[Any], w: NDArray[Any] | None) -> float:
    hit, weights = _labels(p) == y, np.ones(len(y)) if w is None else w
    recalls = [np.average(hit[y == k], weights=weights[y == k]) for k in np.unique(y) if weights[y == k].sum() > 0]
    return float(np.mean(recalls))


def _accuracy(y: NDArray[Any], p: NDArray[Any], w: NDArray[Any] | None) -> float:
    return float(np.average(_labels(p) == y, weights=w))


def _rmse(y: NDArray[Any], p: NDArray[Any], w: NDArray[Any] | None) -> float:
    return float(np.sqrt(np.average((y - p) ** 2, weights=w)))


def _mae(y: NDArray[Any], p: NDArray[Any], w: NDArray[Any] | None) -> float:
    return float(np.average(np.abs(y - p), weights=w))


def _r2(y: NDArray[Any], p: NDArray[Any], w: NDArray[Any] | None) -> float:
    return float(sk.r2_score(y, p, sample_weight=w))


METRICS: dict[str, Metric] = {
    m.name: m
    for m in (
        Metric("roc_auc", _CLASSIFICATION, _roc_auc, worst=0.0, best=1.0),
        Metric("log_loss", _CLASSIFICATION, _log_loss, greater_is_better=False, best=0.0),
        Metric("accuracy", _CLASSIFICATION, _accuracy, worst=0.0, best=1.0),
        Metric("balanced_accuracy", _CLASSIFICATION, _balanced_accuracy, worst=0.0, best=1.0),
        Metric("f1", _CLASSIFICATION, _f1, worst=0.0, best=1.0),
        Metric("rmse", _REGRESSION, _rmse, greater_is_better=False, best=0.0),
        Metric("mae", _REGRESSION, _mae, greater_is_better=False, best=0.0),
        Metric("r2", _REGRESSION, _r2, best=1.0),
    )
}
"""The built-in metrics by name."""

_ALIASES = {
    "roc_auc_ovr": "roc_auc",
    "roc_auc_ovr_weighted": "roc_auc",
    "neg_log_loss": "log_loss",
    "f1_macro": "f1",
    "neg_root_mean_squared_error": "rmse",
    "neg_mean_absolute_error": "mae",
}
_DEFAULTS = {TaskType.BINARY: "roc_auc", TaskType.MULTICLASS: "log_loss", TaskType.REGRESSION: "rmse"}


def task_metrics(task: TaskType) -> tuple[Metric, ...]:
    """All built-in metrics that fit a task, the default one first."""
    default = METRICS[_DEFAULTS[task]]
    return (default, *(m for m in METRICS.values() if task in m.tasks and m is not default))


def resolve_metric(metric: str | Metric | Any | None, task: TaskType) -> Metric:
    """The metric that a person means.

    Parameters
    ----------
    metric : None, str, Metric or scikit-learn scorer
        ``None``: ROC AUC (binary), log loss (multiclass), RMSE (regression). A name of :data:`METRICS` or of a
        scikit-learn scorer, or a scorer made by ``sklearn.metrics.make_scorer``.
    task : TaskType

    Raises
    ------
    ValueError
        The metric is unknown or does not fit the task.
    """
    if metric is None:
        return METRICS[_DEFAULTS[task]]
    if isinstance(metric, str):
        name = _ALIASES.get(metric, metric)
        if name in METRICS:
            found = METRICS[name]
        elif metric in sk.get_scorer_names():
            found = _from_scorer(sk.get_scorer(metric), metric)
        else:
            fitting = ", ".join(m.name for m in task_metrics(task))
            raise ValueError(f"The metric must be one of {fitting}, or a scikit-learn scorer. Got {metric!r} instead.")
    elif isinstance(metric, Metric):
        found = metric
    elif hasattr(metric, "_score_func"):
        found = _from_scorer(metric, metric._score_func.__name__)
    else:
        raise ValueError(
            f"The metric must be a name, a Metric or a scorer made by make_scorer. Got {metric!r} instead."
        )
    if task not in found.tasks:
        fitting = ", ".join(m.name for m in task_metrics(task))
        raise ValueError(f"The metric {found.name!r} does not fit a {task} task. Use one of {fitting}.")
    return found


def _from_scorer(scorer: Any, name: str) -> Metric:
    """A scikit-learn scorer on predictions that were already made."""
    function, sign, options = scorer._score_func, scorer._sign, dict(scorer._kwargs)
    response = getattr(scorer, "_response_method", "predict")
    wants_scores = response != "predict"
    takes_weights = "sample_weight" in signature(function).parameters
    function_name = getattr(function, "__name__", "")
    regression = name in _REGRESSION_SCORERS or function_name in _REGRESSION_FUNCTIONS

    def evaluate(y: NDArray[Any], prediction: NDArray[Any], weight: NDArray[Any] | None) -> float:
        if prediction.ndim == 1:
            answer = prediction
        elif wants_scores:
            answer = prediction[:, 1] if prediction.shape[1] == 2 else prediction
        else:
            answer = _labels(prediction)
        extra = {"sample_weight": weight} if takes_weights and weight is not None else {}
        return float(sign * function(y, answer, **options, **extra))

    known = name in sk.get_scorer_names() or function_name in _CLASSIFICATION_FUNCTIONS
    tasks = _REGRESSION if regression else _CLASSIFICATION if known else _CLASSIFICATION | _REGRESSION
    return Metric(name, tasks, evaluate)


_REGRESSION_SCORERS = frozenset(
    name for name in sk.get_scorer_names()
    if "error" in name or "deviance" in name or name in {"r2", "explained_variance", "d2_absolute_error_score"}
)  # fmt: skip
_REGRESSION_FUNCTIONS = frozenset(
    {"r2_score", "mean_absolute_error", "mean_squared_error", "root_mean_squared_error", "median_absolute_error",
     "max_error", "explained_variance_score", "mean_absolute_percentage_error", "mean_squared_log_error",
     "mean_pinball_loss", "mean_poisson_deviance", "mean_gamma_deviance", "d2_absolute_error_score"}
)  # fmt: skip
_CLASSIFICATION_FUNCTIONS = frozenset(
    sk.get_scorer(n)._score_func.__name__ for n in sk.get_scorer_names() if n not in _REGRESSION_SCORERS
)
