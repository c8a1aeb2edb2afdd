"""Linear models and naive Bayes as matrix products."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from autometa.onnx_export.graph import Graph


def linear(graph: Graph, model: Any, matrix: str) -> str:
    """Scores or values, float64 of shape (n_rows, n_outputs)."""
    inner, center, scale = model, 0.0, 1.0
    if type(model).__name__ == "TransformedTargetRegressor":
        inner, center, scale = model.regressor_, model.transformer_.mean_[0], model.transformer_.scale_[0]
    weights = np.atleast_2d(np.asarray(inner.coef_, dtype=np.float64)).T * scale  # (n_columns, n_outputs)
    intercept = np.atleast_1d(np.asarray(inner.intercept_, dtype=np.float64)) * scale + center
    return graph.affine(graph.cast(matrix, np.float64), weights, intercept)


def naive_bayes(graph: Graph, model: Any, matrix: str) -> str:
    """Probabilities: the joint log likelihood of Gaussians is linear in x and its square."""
    x = graph.cast(matrix, np.float64)
    means, variances = model.theta_, model.var_  # (n_classes, n_columns)
    constant = np.log(model.class_prior_) - 0.5 * (np.log(2 * np.pi * variances) + means**2 / variances).sum(axis=1)
    squares = graph.affine(graph.add("Mul", x, x), (-0.5 / variances).T, constant)
    found = graph.add("Add", squares, graph.add("MatMul", x, graph.constant((means / variances).T)))
    return graph.add("Softmax", found, axis=1)


_LINEAR = ("LogisticRegression", "Ridge", "ElasticNet", "TransformedTargetRegressor")
LINEAR_SCORES: dict[str, Callable[[Graph, Any, str], str]] = dict.fromkeys(_LINEAR, linear)
"""Models whose answers are scores or values."""

BAYES_PROBABILITIES: dict[str, Callable[[Graph, Any, str], str]] = {"GaussianNB": naive_bayes}
"""Models whose answers are probabilities."""
