"""Weighted ensembles of out-of-fold predictions, and how sure they may be."""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import minimize_scalar
from scipy.special import logsumexp

from autometa.metrics import Metric

Floats = NDArray[np.float64]
_SMALL_TABLE = 500
_SMALL_MEMBERS = 5
_INNER_FOLDS = 5
_MAX_ROWS = 10_000
_MIN_ROWS = 1_000
_ROUNDS_PER_MEMBER = 1.5
_MIN_CALIBRATED = 100


def choose_weights(
    predictions: Sequence[Floats],
    y: NDArray[Any],
    *,
    metric: Metric,
    sample_weight: NDArray[Any] | None = None,
    max_members: int = 8,
    seed: int = 0,
    max_seconds: float | None = None,
) -> Floats:
    """Weights of the models, best single model or greedy ensemble, whichever generalises.

    Greedy selection with replacement (Caruana et al., 2004). Whether the ensemble is used is decided by nested
    validation: weights chosen on four fifths of the rows are scored on the last fifth against the model that is best
    on the four fifths. Below 500 rows at most 5 members, half of the weight shared equally among them, and the gain
    must exceed its standard error.

    Parameters
    ----------
    predictions : sequence of arrays of shape (n_rows, n_classes) or (n_rows,)
        Out-of-fold predictions; rows with a NaN in any of them are left out.
    y : ndarray of shape (n_rows,)
    metric : Metric
    sample_weight : ndarray of shape (n_rows,) or None
    max_members : int, default=8
    seed : int, default=0
        Of the inner folds, and of the rows where there are more than 10,000.
    max_seconds : float or None, default=None
        Fewer rows decide where all would take longer; when the time has passed nevertheless, the best single model is
        the answer. By default weights do not depend on time.

    Returns
    -------
    ndarray of shape (n_models,)
        >= 0, sums to 1; a single 1 where no ensemble is better.
    """
    stacked = np.stack(predictions)  # (n_models, n_rows, ...)
    held_out = np.isfinite(stacked.reshape(len(stacked), len(y), -1)).all(axis=(0, 2))
    rows = np.flatnonzero(held_out)
    problem = _Problem(stacked, y, metric, sample_weight).take(_at_most(rows, _MAX_ROWS, seed))
    single = problem.best_single(np.arange(len(problem.y)))
    if max_seconds is not None:
        started = time.perf_counter()
        n_rows = problem.affordable_rows(max_members, max_seconds)
        problem = problem.take(_at_most(np.arange(len(problem.y)), n_rows, seed))
        problem.deadline = started + max_seconds
    y, everything = problem.y, np.arange(len(problem.y))
    if len(stacked) < 2 or len(y) < 2 * _INNER_FOLDS:
        return single
    small = len(y) < _SMALL_TABLE
    members = min(max_members, _SMALL_MEMBERS) if small else max_members
    try:
        gains = problem.gains(members, small, seed)
    except TimeoutError:
        return single
    error = gains.std(ddof=1) / np.sqrt(len(gains)) if len(gains) > 1 else np.inf
    worth_it = len(gains) > 0 and gains.mean() > (error if small else 0.0)
    problem.deadline = np.inf  # one search more, a fifth of what was already done
    return problem.greedy(everything, members, small) if worth_it else single


def greedy_weights(predictions: Sequence[Floats], y: NDArray[Any], *, metric: Metric, max_members: int = 8) -> Floats:
    """Weights of the greedy ensemble alone, on all rows, without asking whether a single model is better.

    Parameters
    ----------
    predictions : sequence of arrays of shape (n_rows, n_classes) or (n_rows,)
        Without NaN.
    y : ndarray of shape (n_rows,)
    metric : Metric
    max_members : int, default=8
        Below 500 rows at most 5, as in :func:`choose_weights`.

    Returns
    -------
    ndarray of shape (n_models,)
        >= 0, sums to 1.
    """
    small = len(y) < _SMALL_TABLE
    problem = _Problem(np.stack(predictions), y, metric, None)
    return problem.greedy(np.arange(len(y)), min(max_members, _SMALL_MEMBERS) if small else max_members, small)


def choose_temperature(
    probabilities: Floats, y: NDArray[Any], *, sample_weight: NDArray[Any] | None = None, seed: int = 0
) -> float:
    """Temperature that calibrates probabilities for log loss; 1 unless another is better beyond its noise.

    Probabilities are raised to 1 / temperature and normalised again (Guo et al., 2017). Whether that is done is
    decided by nested validation: the temperature of four fifths of the rows must gain more on the last fifths than
    the standard error of that gain.

    Parameters
    ----------
    probabilities : ndarray of shape (n_rows, n_classes)
        Out-of-fold; rows with a NaN are left out.
    y : ndarray of shape (n_rows,)
        Class codes.
    sample_weight : ndarray of shape (n_rows,) or None
    seed : int, default=0
        Of the inner folds, and of the rows where there are more than 10,000.

    Examples
    --------
    >>> rng = np.random.default_rng(0)
    >>> p = rng.uniform(0.05, 0.95, 2000)
    >>> y = (rng.uniform(size=2000) < p).astype(int)
    >>> sharp = np.stack([(1 - p) ** 2, p**2], axis=1)
    >>> round(choose_temperature(sharp / sharp.sum(axis=1, keepdims=True), y), 1)
    2.0
    """
    rng = np.random.default_rng(seed)
    rows = rng.permutation(np.flatnonzero(np.isfinite(probabilities).all(axis=1)))[:_MAX_ROWS]
    if len(rows) < _MIN_CALIBRATED:
        return 1.0
    logs = np.log(np.clip(probabilities[rows], 1e-15, 1.0))  # (n, k)
    weight = np.ones(len(rows)) if sample_weight is None else sample_weight[rows]

    def losses(temperature: float, part: NDArray[np.intp]) -> Floats:
        scaled = logs[part] / temperature
        return np.asarray(logsumexp(scaled, axis=1) - scaled[np.arange(len(part)), y[rows[part]]])

    def fitted(part: NDArray[np.intp]) -> float:
        def mean_loss(log_temperature: float) -> float:
            return float(weight[part] @ losses(float(np.exp(log_temperature)), part))

        return float(np.exp(minimize_scalar(mean_loss, bounds=(-1.5, 1.5), method="bounded").x))

    everything = np.arange(len(rows))
    gains = np.zeros(len(rows))
    for fold in range(_INNER_FOLDS):
        test = everything[fold::_INNER_FOLDS]
        temperature = fitted(np.setdiff1d(everything, test))
        gains[test] = weight[test] * (losses(1.0, test) - losses(temperature, test))
    error = gains.std(ddof=1) / np.sqrt(len(gains))
    return fitted(everything) if gains.mean() > error else 1.0


def _at_most(rows: NDArray[np.intp], n: int, seed: int) -> NDArray[np.intp]:
    """The rows, or ``n`` of them at random, in their order."""
    return rows if len(rows) <= n else np.sort(np.random.default_rng(seed).choice(rows, n, replace=False))


class _Problem:
    """Predictions and target on which weights are scored."""

    def __init__(self, stacked: Floats, y: NDArray[Any], metric: Metric, weight: NDArray[Any] | None) -> None:
        self.stacked, self.y, self.metric, self.weight = stacked, y, metric, weight
        self.deadline = np.inf

    def take(self, rows: NDArray[np.intp]) -> _Problem:
        """The problem on some of the rows."""
        weight = None if self.weight is None else self.weight[rows]
        return _Problem(self.stacked[:, rows], self.y[rows], self.metric, weight)

    def affordable_rows(self, max_members: int, max_seconds: float) -> int:
        """Rows on which weights can be chosen in this time, judged by what one look at all models takes."""
        started = time.perf_counter()
        self.best_single(np.arange(len(self.y)))
        seconds = time.perf_counter() - started
        n_looks = _ROUNDS_PER_MEMBER * max_members * (_INNER_FOLDS + 1)
        return max(_MIN_ROWS, int(len(self.y) * max_seconds / (n_looks * seconds)))

    def score(self, prediction: Floats, rows: NDArray[np.intp]) -> float:
        weight = None if self.weight is None else self.weight[rows]
        value = self.metric.score(self.y[rows], prediction, weight)
        return value if np.isfinite(value) else -np.inf

    def mix(self, weights: Floats, rows: NDArray[np.intp]) -> Floats:
        return np.asarray(np.tensordot(weights, self.stacked[:, rows], axes=1))

    def best_single(self, rows: NDArray[np.intp]) -> Floats:
        scores = [self.score(model[rows], rows) for model in self.stacked]
        return np.asarray(np.eye(len(self.stacked))[int(np.argmax(scores))])

    def greedy(self, rows: NDArray[np.intp], max_members: int, shrink: bool) -> Floats:
        """Add the model that helps most, with replacement, until three rounds in a row bring nothing."""
        counts = np.zeros(len(self.stacked))
        total = np.zeros_like(self.stacked[0, rows])
        best, best_counts, stale = -np.inf, counts.copy(), 0
        for size in range(1, 4 * max_members + 1):
            if time.perf_counter() > self.deadline:
                raise TimeoutError
            full = np.count_nonzero(counts) >= max_members
            options = np.flatnonzero(counts > 0) if full else np.arange(len(counts))
            scores = [self.score((total + self.stacked[i, rows]) / size, rows) for i in options]
            chosen = int(options[int(np.argmax(scores))])
            counts[chosen] += 1
            total = total + self.stacked[chosen, rows]
            if max(scores) > best + 1e-12:
                best, best_counts, stale = max(scores), counts.copy(), 0
            else:
                stale += 1
            if stale == 3:
                break
        weights = best_counts / max(best_counts.sum(), 1.0)
        if shrink:
            used = weights > 0
            weights = 0.5 * weights + 0.5 * used / used.sum()
        return np.asarray(weights)

    def gains(self, max_members: int, shrink: bool, seed: int) -> Floats:
        """Held-out score of the greedy ensemble less that of the best single model, one value per inner fold."""
        folds = np.random.default_rng(seed).permutation(len(self.y)) % _INNER_FOLDS
        gains = []
        for fold in range(_INNER_FOLDS):
            train, test = np.flatnonzero(folds != fold), np.flatnonzero(folds == fold)
            ensemble, single = self.greedy(train, max_members, shrink), self.best_single(train)
            scores = [self.score(self.mix(weights, test), test) for weights in (ensemble, single)]
            if np.isfinite(scores).all():
                gains.append(scores[0] - scores[1])
        return np.asarray(gains)
