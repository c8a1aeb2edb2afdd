"""Models stage by stage: boosting after fewer rounds, nets after fewer epochs."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from itertools import islice
from typing import Any

import numpy as np
from numpy.typing import NDArray

ROUNDS_AND_RATE: Mapping[str, tuple[str, str]] = {
    "hist_gradient_boosting": ("max_iter", "learning_rate"),
    "lightgbm": ("n_estimators", "learning_rate"),
    "xgboost": ("n_estimators", "learning_rate"),
    "catboost": ("iterations", "learning_rate"),
}
"""Names of the two hyperparameters in each boosted family's configuration."""
_SHARES = (0.1, 0.25, 0.5)


def early_stages(n_stages: int) -> list[int]:
    """A tenth, a quarter and half of so many rounds or epochs.

    Examples
    --------
    >>> early_stages(200), early_stages(3)
    ([20, 50, 100], [1, 2])
    """
    return sorted({max(1, round(share * n_stages)) for share in _SHARES} - {n_stages})


def net_stages(estimator: Any, epochs: Sequence[int]) -> list[float]:
    """The best loss on a net's own hold-out up to each of the epochs; empty where there was none or no net."""
    losses = getattr(getattr(estimator, "result_", None), "validation_loss", ())
    return [float(min(losses[:epoch])) for epoch in epochs] if losses else []


def staged_predictions(
    family: str, estimator: Any, matrix: NDArray[np.float32], rounds: Sequence[int]
) -> Iterator[NDArray[np.float64]]:
    """Predictions of a fitted boosted estimator as if it had stopped after so many rounds.

    Parameters
    ----------
    family : str
        A key of :data:`ROUNDS_AND_RATE`.
    estimator : scikit-learn estimator
    matrix : ndarray of shape (n_rows, n_columns)
    rounds : sequence of int
        Increasing, none above the rounds of the fit.

    Yields
    ------
    ndarray
        Probabilities of shape (n_rows, n_classes), or values of shape (n_rows,).
    """
    classifies = hasattr(estimator, "predict_proba")
    if family == "hist_gradient_boosting":
        stages = estimator.staged_predict_proba(matrix) if classifies else estimator.staged_predict(matrix)
        done = 0
        for stop in rounds:
            yield np.asarray(next(islice(stages, stop - done - 1, None)), dtype=np.float64)
            done = stop
        return
    if family == "catboost":
        matrix, estimator = estimator._pool(matrix), estimator.model_
    predict = estimator.predict_proba if classifies else estimator.predict
    for stop in rounds:
        if family == "lightgbm":
            answer = predict(matrix, num_iteration=stop)
        elif family == "xgboost":
            answer = predict(matrix, iteration_range=(0, stop))
        else:
            answer = predict(matrix, ntree_end=stop)
        yield np.asarray(answer, dtype=np.float64)
