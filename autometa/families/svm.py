"""Support vector machines, with a kernel approximation on large tables."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

from optuna.distributions import CategoricalDistribution, FloatDistribution
from sklearn.base import BaseEstimator

from autometa.families._estimators import KernelClassifier, KernelRegressor
from autometa.family import MatrixShape, ModelFamily
from autometa.search_space import SearchSpace


class SupportVectorMachine(ModelFamily):
    """Support vector machine; above 5,000 rows a linear model on 400 Nystroem features of the same kernel.

    ``gamma_factor`` multiplies the usual kernel width 1 / (n_columns x variance).
    """

    name = "svm"
    matrix = "linear"
    double_precision = True
    search_space = SearchSpace(
        {
            "C": FloatDistribution(1e-2, 1e3, log=True),
            "gamma_factor": FloatDistribution(1e-2, 10.0, log=True),
            "kernel": CategoricalDistribution(("rbf", "poly", "sigmoid")),
        }
    )
    default_config: ClassVar = {"C": 1.0, "gamma_factor": 1.0, "kernel": "rbf"}
    presets: ClassVar = (
        {"C": 10.0, "gamma_factor": 0.3},
        {"C": 100.0, "gamma_factor": 0.03},
        {"C": 10.0, "gamma_factor": 3.0},
        {"C": 0.1, "gamma_factor": 0.3},
        {"C": 1.0, "kernel": "poly"},
    )

    def build(
        self, config: Mapping[str, Any], shape: MatrixShape, *, random_state: int = 0, n_threads: int = 1
    ) -> BaseEstimator:
        model = KernelClassifier if shape.task.is_classification else KernelRegressor
        return model(**config, random_state=random_state)
