"""Random forests and extremely randomised trees."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

from optuna.distributions import FloatDistribution, IntDistribution
from sklearn.base import BaseEstimator
from sklearn.ensemble import (
    ExtraTreesClassifier,
    ExtraTreesRegressor,
    RandomForestClassifier,
    RandomForestRegressor,
)

from autometa.family import MatrixShape, ModelFamily
from autometa.search_space import SearchSpace

_SPACE = SearchSpace(
    {
        "n_estimators": IntDistribution(50, 400, log=True),
        "max_features": FloatDistribution(0.05, 1.0),
        "min_samples_leaf": IntDistribution(1, 64, log=True),
        "max_depth": IntDistribution(2, 32, log=True),
    }
)


class RandomForest(ModelFamily):
    """Random forest (Breiman, 2001); ``max_features`` is a share of the columns."""

    name = "random_forest"
    matrix = "tree"
    search_space = _SPACE
    default_config: ClassVar = {"n_estimators": 100, "max_features": 0.4, "min_samples_leaf": 1, "max_depth": 32}
    presets: ClassVar = (
        {"min_samples_leaf": 5},
        {"max_features": 0.15, "min_samples_leaf": 2},
        {"max_features": 1.0, "min_samples_leaf": 3},
        {"min_samples_leaf": 10, "max_depth": 6},
    )

    def build(
        self, config: Mapping[str, Any], shape: MatrixShape, *, random_state: int = 0, n_threads: int = 1
    ) -> BaseEstimator:
        model = RandomForestClassifier if shape.task.is_classification else RandomForestRegressor
        return model(**_capped(config, shape), random_state=random_state, n_jobs=n_threads)


class ExtraTrees(ModelFamily):
    """Extremely randomised trees (Geurts et al., 2006) without bootstrap."""

    name = "extra_trees"
    matrix = "tree"
    search_space = _SPACE
    default_config: ClassVar = {"n_estimators": 100, "max_features": 0.6, "min_samples_leaf": 1, "max_depth": 32}
    presets: ClassVar = (
        {"min_samples_leaf": 4},
        {"max_features": 0.2, "min_samples_leaf": 2},
        {"max_features": 1.0, "min_samples_leaf": 2},
        {"min_samples_leaf": 8, "max_depth": 8},
    )

    def build(
        self, config: Mapping[str, Any], shape: MatrixShape, *, random_state: int = 0, n_threads: int = 1
    ) -> BaseEstimator:
        model = ExtraTreesClassifier if shape.task.is_classification else ExtraTreesRegressor
        return model(**_capped(config, shape), random_state=random_state, n_jobs=n_threads)


def _capped(config: Mapping[str, Any], shape: MatrixShape) -> dict[str, Any]:
    """A leaf may hold at most a quarter of the rows, or nothing would be split."""
    return {**config, "min_samples_leaf": max(1, min(config["min_samples_leaf"], shape.n_rows // 4))}
