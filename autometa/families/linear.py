"""Linear models: logistic regression, ridge and elastic net."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

from optuna.distributions import CategoricalDistribution, FloatDistribution
from sklearn import __version__ as sklearn_version
from sklearn.base import BaseEstimator
from sklearn.compose import TransformedTargetRegressor
from sklearn.linear_model import ElasticNet, LogisticRegression, Ridge
from sklearn.preprocessing import StandardScaler

from autometa.family import MatrixShape, ModelFamily
from autometa.search_space import SearchSpace

_HAS_L1_RATIO_ONLY = tuple(int(part) for part in sklearn_version.split(".")[:2]) >= (1, 8)


class Linear(ModelFamily):
    """Logistic regression for classes; ridge or elastic net on the standardised target for numbers.

    ``C`` is the inverse of the penalty for the sum of losses, for every task. ``l1_ratio`` 0 is ridge, 1 is lasso.
    """

    name = "linear"
    matrix = "linear"
    double_precision = True
    search_space = SearchSpace(
        {
            "C": FloatDistribution(1e-4, 1e4, log=True),
            "l1_ratio": CategoricalDistribution((0.0, 0.5, 1.0)),
        }
    )
    default_config: ClassVar = {"C": 1.0, "l1_ratio": 0.0}
    presets: ClassVar = ({"C": 0.03}, {"C": 30.0}, {"C": 0.3, "l1_ratio": 0.5}, {"C": 0.001})

    def build(
        self, config: Mapping[str, Any], shape: MatrixShape, *, random_state: int = 0, n_threads: int = 1
    ) -> BaseEstimator:
        penalty, l1_ratio = 1.0 / config["C"], config["l1_ratio"]
        if shape.task.is_classification:
            return _logistic(config["C"], l1_ratio, random_state)
        model = (
            Ridge(alpha=penalty)
            if l1_ratio == 0.0
            else ElasticNet(alpha=penalty / shape.n_rows, l1_ratio=l1_ratio, max_iter=500, random_state=random_state)
        )
        return TransformedTargetRegressor(model, transformer=StandardScaler())


def _logistic(c: float, l1_ratio: float, random_state: int) -> LogisticRegression:
    if l1_ratio == 0.0:
        return LogisticRegression(C=c, max_iter=300)
    penalty = {} if _HAS_L1_RATIO_ONLY else {"penalty": "elasticnet"}
    options = {"solver": "saga", "max_iter": 100, "tol": 1e-3, "random_state": random_state}
    return LogisticRegression(C=c, l1_ratio=l1_ratio, **options, **penalty)
