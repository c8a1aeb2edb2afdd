"""k nearest neighbours."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

from optuna.distributions import CategoricalDistribution, IntDistribution
from sklearn.base import BaseEstimator
from sklearn.neighbors import KNeighborsClassifier, KNeighborsRegressor

from autometa.family import MatrixShape, ModelFamily
from autometa.search_space import SearchSpace


class NearestNeighbors(ModelFamily):
    """k nearest neighbours on standardised columns; ``n_neighbors`` is capped at half of the training rows."""

    name = "knn"
    matrix = "linear"
    search_space = SearchSpace(
        {
            "n_neighbors": IntDistribution(1, 100, log=True),
            "weights": CategoricalDistribution(("uniform", "distance")),
            "p": CategoricalDistribution((1, 2)),
        }
    )
    default_config: ClassVar = {"n_neighbors": 10, "weights": "distance", "p": 2}
    presets: ClassVar = (
        {"n_neighbors": 1},
        {"n_neighbors": 30, "p": 1},
        {"n_neighbors": 5, "p": 1},
        {"n_neighbors": 60, "weights": "uniform"},
    )

    def build(
        self, config: Mapping[str, Any], shape: MatrixShape, *, random_state: int = 0, n_threads: int = 1
    ) -> BaseEstimator:
        model = KNeighborsClassifier if shape.task.is_classification else KNeighborsRegressor
        n_neighbors = max(1, min(config["n_neighbors"], shape.n_rows // 2))
        return model(n_neighbors, weights=config["weights"], p=config["p"], n_jobs=n_threads)
