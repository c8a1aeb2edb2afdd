"""What a fixed order of candidates, or an ensemble of them, would have reached: replayed from measured scores."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from autometa.ensembling import choose_weights
from autometa.metrics import Metric

Floats = NDArray[np.float64]

FLOOR = -1.0
"""Normalised scores are cut off here: how bad a bad candidate is does not matter."""


def normalise(scores: Floats) -> Floats:
    """Scores per dataset with 0 = the median candidate and 1 = the best; missing ones count as the worst.

    Parameters
    ----------
    scores : ndarray of shape (n_datasets, n_candidates)
        Higher is better, NaN where a candidate has no score.

    Examples
    --------
    >>> normalise(np.array([[1.0, 2.0, 3.0, np.nan]])).tolist()
    [[-1.0, 0.0, 1.0, -1.0]]
    """
    middle, best = np.nanmedian(scores, axis=1, keepdims=True), np.nanmax(scores, axis=1, keepdims=True)
    scaled = (scores - middle) / np.maximum(best - middle, 1e-9)
    filled: Floats = np.clip(np.nan_to_num(scaled, nan=FLOOR), FLOOR, None)
    return filled


def greedy_portfolio(scores: Floats, length: int | None = None) -> list[int]:
    """Candidates in the order in which each adds most to the best of those before, on average over datasets.

    Parameters
    ----------
    scores : ndarray of shape (n_datasets, n_candidates)
        Comparable between datasets, see :func:`normalise`.
    length : int or None
        ``None``: all candidates.

    References
    ----------
    Wistuba, Schilling & Schmidt-Thieme (2015), Sequential model-free hyperparameter tuning; Feurer et al. (2022),
    Auto-sklearn 2.0.

    Examples
    --------
    >>> greedy_portfolio(np.array([[1.0, 0.9, 0.0], [0.0, 0.2, 1.0], [0.0, 0.6, 0.3]]))
    [1, 2, 0]
    """
    best = np.full(len(scores), -np.inf)
    order: list[int] = []
    for _ in range(scores.shape[1] if length is None else min(length, scores.shape[1])):
        gain = np.maximum(best[:, None], scores).mean(axis=0)
        gain[order] = -np.inf
        order.append(int(gain.argmax()))
        best = np.maximum(best, scores[:, order[-1]])
    return order


def incumbent_curve(order: Sequence[int], choose: Floats, value: Floats) -> Floats:
    """Value of the incumbent after each trial, where it is the best so far by another measurement.

    Parameters
    ----------
    order : sequence of int
    choose : ndarray of shape (n_candidates,)
        Scores that the choice is made on, NaN for a trial that failed.
    value : ndarray of shape (n_candidates,)
        What is reported, such as the score on other splits.

    Returns
    -------
    ndarray of shape (len(order),)
        ``FLOOR`` until the first trial that did not fail.
    """
    reached, best = np.full(len(order), FLOOR), -1
    for k, index in enumerate(order):
        if np.isfinite(choose[index]) and (best < 0 or choose[index] > choose[best]):
            best = index
        if best >= 0:
            reached[k] = value[best]
    return reached


def ensemble_curve(
    predictions: Mapping[str, Floats],
    order: Sequence[str],
    *,
    y: NDArray[Any],
    metric: Metric,
    choose: NDArray[np.intp],
    score: NDArray[np.intp],
    seed: int = 0,
) -> Floats:
    """Score of the ensemble of the first k candidates for each k, weights chosen on some rows and scored on others.

    Parameters
    ----------
    predictions : mapping of id to ndarray of shape (n_rows, n_classes) or (n_rows,)
        Out-of-fold, see :func:`autometa.experiment.load_predictions`.
    order : sequence of id
        Those without predictions are passed over.
    y : ndarray of shape (n_rows,)
    metric : Metric
    choose, score : ndarray of int
        Disjoint positions of rows.
    seed : int

    Returns
    -------
    ndarray of shape (len(order),)
    """
    found: list[Floats] = []
    curve = np.full(len(order), np.nan)
    for k, name in enumerate(order):
        if name in predictions:
            found.append(np.asarray(predictions[name], dtype=np.float64))
        if found:
            weights = choose_weights([p[choose] for p in found], y[choose], metric=metric, seed=seed)
            mixed = sum(w * p[score] for w, p in zip(weights, found, strict=True))
            curve[k] = metric.score(y[score], np.asarray(mixed))
    return curve


def bootstrap_interval(
    values: Floats,
    groups: Sequence[Any] | None = None,
    *,
    statistic: Callable[[Floats], float] = np.mean,
    level: float = 0.95,
    n_samples: int = 2_000,
    seed: int = 0,
) -> tuple[float, float, float]:
    """A statistic of one value per dataset and its percentile interval, drawing whole groups of related datasets.

    Without ``groups`` every dataset is one of its own.

    Examples
    --------
    >>> bootstrap_interval(np.ones(4), ["a", "a", "b", "c"])
    (1.0, 1.0, 1.0)
    """
    values = np.asarray(values, dtype=np.float64)
    rows = np.arange(len(values))
    code = rows if groups is None else np.unique(np.asarray(groups, dtype=str), return_inverse=True)[1]
    members = [np.flatnonzero(code == i) for i in range(len(np.unique(code)))]
    rng = np.random.default_rng(seed)
    draws = [
        statistic(values[np.concatenate([members[i] for i in rng.integers(len(members), size=len(members))])])
        for _ in range(n_samples)
    ]
    tail = (1.0 - level) / 2.0
    low, high = np.quantile(draws, [tail, 1.0 - tail])
    return float(statistic(values)), float(low), float(high)
