"""Fitting one configuration on some rows of an encoded table: what a fold and a final model have in common."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from sklearn.utils.validation import has_fit_parameter

from autometa.data import TaskType
from autometa.family import MatrixShape, ModelFamily


@dataclass(frozen=True, eq=False)
class EncodedData:
    """What models are fitted on: an encoded table and its target.

    Parameters
    ----------
    matrix : ndarray of shape (n_rows, n_columns)
        float32, from a :class:`~autometa.preprocessing.TableEncoder`.
    y : ndarray of shape (n_rows,)
        Class codes or values, as in the Dataset.
    task : TaskType
    n_classes : int
        0 for regression.
    n_categorical : int
        Leading columns with category codes.
    sample_weight : ndarray of shape (n_rows,) or None
    """

    matrix: NDArray[np.float32]
    y: NDArray[Any]
    task: TaskType
    n_classes: int = 0
    n_categorical: int = 0
    sample_weight: NDArray[np.float64] | None = None


@dataclass(frozen=True, eq=False)
class FittedModel:
    """An estimator and the classes that it saw.

    Parameters
    ----------
    estimator : scikit-learn estimator
        Fitted on the codes 0 .. k - 1 of the classes that were present.
    classes : ndarray of shape (k,) or None
        The dataset's code of each class that the estimator knows; ``None`` for regression.
    n_classes : int
        Classes of the dataset; 0 for regression.
    """

    estimator: Any
    classes: NDArray[np.int64] | None
    n_classes: int

    def predict(self, matrix: NDArray[np.float32]) -> NDArray[np.float64]:
        """Probabilities of shape (n_rows, n_classes), 0 for classes never seen, or values of shape (n_rows,).

        Raises
        ------
        ValueError
            The estimator answers with another shape, or with NaN or infinite values.
        """
        if self.classes is None:
            prediction = np.asarray(self.estimator.predict(matrix), dtype=np.float64).reshape(-1)
            expected: tuple[int, ...] = (len(matrix),)
        else:
            prediction = np.asarray(self.estimator.predict_proba(matrix), dtype=np.float64)
            expected = (len(matrix), len(self.classes))
        if prediction.shape != expected:
            raise ValueError(f"Predictions must have shape {expected}. Got {prediction.shape} instead.")
        if not np.isfinite(prediction).all():
            raise ValueError("Predictions must be finite. Got NaN or infinite values.")
        return self.for_all_classes(prediction)

    def for_all_classes(self, prediction: NDArray[np.float64]) -> NDArray[np.float64]:
        """What the estimator answers, (n_rows, k) or (n_rows,), as (n_rows, n_classes), 0 for classes never seen."""
        if self.classes is None or len(self.classes) == self.n_classes:
            return prediction
        expanded = np.zeros((len(prediction), self.n_classes))
        expanded[:, self.classes] = prediction
        return expanded


def fit_model(
    family: ModelFamily,
    config: Mapping[str, Any],
    *,
    data: EncodedData,
    rows: NDArray[np.intp] | None = None,
    seed: int = 0,
    n_threads: int = 1,
) -> FittedModel:
    """Fit one configuration on some rows, in this process. Every fold and every final model is fitted by this.

    Parameters
    ----------
    family : ModelFamily
    config : mapping
    data : EncodedData
        With the matrix of ``family.matrix``.
    rows : ndarray of int or None
        Positions to fit on; ``None`` for all.
    seed : int
    n_threads : int
    """
    return run_fit(*prepare_fit(family, config, data, rows, seed, n_threads))


def prepare_fit(
    family: ModelFamily,
    config: Mapping[str, Any],
    data: EncodedData,
    rows: NDArray[np.intp] | None,
    seed: int,
    n_threads: int,
) -> tuple[FittedModel, NDArray[np.floating], NDArray[Any], dict[str, Any]]:
    """An estimator that is not fitted yet and the arrays to fit it on, classes coded without gaps."""
    matrix, y = (data.matrix, data.y) if rows is None else (data.matrix[rows], data.y[rows])
    matrix = matrix.astype(np.float64) if family.double_precision else matrix
    classes = None
    if data.task.is_classification:
        classes, y = np.unique(y, return_inverse=True)
    shape = MatrixShape(data.task, len(y), 0 if classes is None else len(classes), data.n_categorical)
    estimator = family.build(config, shape, random_state=seed, n_threads=n_threads)
    options = {}
    if data.sample_weight is not None and has_fit_parameter(estimator, "sample_weight"):
        options["sample_weight"] = data.sample_weight if rows is None else data.sample_weight[rows]
    return FittedModel(estimator, classes, data.n_classes), matrix, y, options


def run_fit(
    model: FittedModel, matrix: NDArray[np.floating], y: NDArray[Any], options: Mapping[str, Any]
) -> FittedModel:
    model.estimator.fit(matrix, y, **options)
    return model
