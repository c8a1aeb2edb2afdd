"""Gradient boosting: LightGBM, XGBoost, CatBoost and scikit-learn's histogram boosting."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution
from sklearn.base import BaseEstimator

from autometa.family import MatrixShape, ModelFamily
from autometa.search_space import SearchSpace

_HINT = "Install it with: pip install 'autometa-ml[boosting]'"


class HistGradientBoosting(ModelFamily):
    """scikit-learn's histogram gradient boosting, categories native."""

    name = "hist_gradient_boosting"
    matrix = "tree"
    search_space = SearchSpace(
        {
            "max_iter": IntDistribution(30, 500, log=True),
            "learning_rate": FloatDistribution(0.01, 0.5, log=True),
            "max_leaf_nodes": IntDistribution(4, 128, log=True),
            "min_samples_leaf": IntDistribution(2, 100, log=True),
            "l2_regularization": FloatDistribution(1e-6, 100.0, log=True),
            "max_features": FloatDistribution(0.2, 1.0),
        }
    )
    default_config: ClassVar = {
        "max_iter": 120, "learning_rate": 0.08, "max_leaf_nodes": 16, "min_samples_leaf": 10,
        "l2_regularization": 0.1, "max_features": 0.7,
    }  # fmt: skip
    presets: ClassVar = (
        {"max_iter": 60, "max_leaf_nodes": 6, "min_samples_leaf": 5},
        {"max_iter": 250, "learning_rate": 0.03, "max_leaf_nodes": 8},
        {"max_leaf_nodes": 31, "min_samples_leaf": 20, "max_features": 1.0, "l2_regularization": 1e-6},
    )

    def build(
        self, config: Mapping[str, Any], shape: MatrixShape, *, random_state: int = 0, n_threads: int = 1
    ) -> BaseEstimator:
        from sklearn.ensemble import HistGradientBoostingClassifier, HistGradientBoostingRegressor

        model = HistGradientBoostingClassifier if shape.task.is_classification else HistGradientBoostingRegressor
        settings = {**config, "min_samples_leaf": _leaf_cap(config["min_samples_leaf"], shape)}
        categorical = list(range(shape.n_categorical)) or None
        return model(**settings, categorical_features=categorical, early_stopping=False, random_state=random_state)


class LightGBM(ModelFamily):
    """LightGBM (Ke et al., 2017), categories native."""

    name = "lightgbm"
    matrix = "tree"
    requires = ("lightgbm",)
    search_space = SearchSpace(
        {
            "n_estimators": IntDistribution(30, 1000, log=True),
            "learning_rate": FloatDistribution(0.01, 0.3, log=True),
            "num_leaves": IntDistribution(4, 256, log=True),
            "min_child_samples": IntDistribution(2, 100, log=True),
            "subsample": FloatDistribution(0.4, 1.0),
            "colsample_bytree": FloatDistribution(0.2, 1.0),
            "reg_lambda": FloatDistribution(1e-6, 100.0, log=True),
            "extra_trees": CategoricalDistribution((False, True)),
        }
    )
    default_config: ClassVar = {
        "n_estimators": 200, "learning_rate": 0.05, "num_leaves": 20, "min_child_samples": 10, "subsample": 0.8,
        "colsample_bytree": 0.7, "reg_lambda": 0.1, "extra_trees": False,
    }  # fmt: skip
    presets: ClassVar = (
        {"n_estimators": 100, "learning_rate": 0.1, "num_leaves": 31, "min_child_samples": 20, "subsample": 1.0,
         "colsample_bytree": 1.0, "reg_lambda": 1e-6},
        {"n_estimators": 100, "num_leaves": 5, "min_child_samples": 5},
        {"n_estimators": 400, "extra_trees": True},
        {"n_estimators": 500, "learning_rate": 0.02, "num_leaves": 10, "colsample_bytree": 0.4, "reg_lambda": 5.0},
    )  # fmt: skip

    def build(
        self, config: Mapping[str, Any], shape: MatrixShape, *, random_state: int = 0, n_threads: int = 1
    ) -> BaseEstimator:
        from lightgbm import LGBMClassifier, LGBMRegressor

        model = LGBMClassifier if shape.task.is_classification else LGBMRegressor
        settings = {**config, "min_child_samples": _leaf_cap(config["min_child_samples"], shape)}
        if shape.n_categorical:
            # the alias: under its own name LightGBM takes it too, but warns that it does not
            settings["categorical_column"] = list(range(shape.n_categorical))
        return model(
            **settings, subsample_freq=1, deterministic=True, force_row_wise=True, verbose=-1,
            random_state=random_state, n_jobs=n_threads,
        )  # fmt: skip


class XGBoost(ModelFamily):
    """XGBoost (Chen and Guestrin, 2016) with histograms; category codes are read as numbers."""

    name = "xgboost"
    matrix = "tree"
    requires = ("xgboost",)
    install_hint = _HINT
    search_space = SearchSpace(
        {
            "n_estimators": IntDistribution(30, 1000, log=True),
            "learning_rate": FloatDistribution(0.01, 0.3, log=True),
            "max_depth": IntDistribution(2, 12),
            "min_child_weight": FloatDistribution(0.1, 50.0, log=True),
            "subsample": FloatDistribution(0.4, 1.0),
            "colsample_bytree": FloatDistribution(0.2, 1.0),
            "reg_lambda": FloatDistribution(1e-3, 100.0, log=True),
        }
    )
    default_config: ClassVar = {
        "n_estimators": 200, "learning_rate": 0.06, "max_depth": 5, "min_child_weight": 1.0, "subsample": 0.8,
        "colsample_bytree": 0.7, "reg_lambda": 1.0,
    }  # fmt: skip
    presets: ClassVar = (
        {"n_estimators": 100, "learning_rate": 0.3, "max_depth": 6, "subsample": 1.0, "colsample_bytree": 1.0},
        {"n_estimators": 150, "max_depth": 2, "learning_rate": 0.1},
        {"n_estimators": 500, "learning_rate": 0.02, "max_depth": 4, "reg_lambda": 10.0, "colsample_bytree": 0.4},
    )

    def build(
        self, config: Mapping[str, Any], shape: MatrixShape, *, random_state: int = 0, n_threads: int = 1
    ) -> BaseEstimator:
        from xgboost import XGBClassifier, XGBRegressor

        model = XGBClassifier if shape.task.is_classification else XGBRegressor
        return model(**config, tree_method="hist", verbosity=0, random_state=random_state, n_jobs=n_threads)


class CatBoost(ModelFamily):
    """CatBoost (Prokhorenkova et al., 2018) with plain boosting, categories native."""

    name = "catboost"
    matrix = "tree"
    requires = ("catboost",)
    install_hint = _HINT
    search_space = SearchSpace(
        {
            "iterations": IntDistribution(30, 600, log=True),
            "learning_rate": FloatDistribution(0.01, 0.3, log=True),
            "depth": IntDistribution(2, 9),
            "l2_leaf_reg": FloatDistribution(0.1, 100.0, log=True),
            "random_strength": FloatDistribution(0.1, 10.0, log=True),
            "bagging_temperature": FloatDistribution(0.0, 2.0),
        }
    )
    default_config: ClassVar = {
        "iterations": 200, "learning_rate": 0.08, "depth": 6, "l2_leaf_reg": 3.0, "random_strength": 1.0,
        "bagging_temperature": 1.0,
    }  # fmt: skip
    presets: ClassVar = (
        {"iterations": 150, "depth": 3, "learning_rate": 0.1},
        {"iterations": 450, "depth": 5, "learning_rate": 0.03, "l2_leaf_reg": 10.0},
    )

    def build(
        self, config: Mapping[str, Any], shape: MatrixShape, *, random_state: int = 0, n_threads: int = 1
    ) -> BaseEstimator:
        from autometa.families._estimators import CategoricalCatBoostClassifier, CategoricalCatBoostRegressor

        is_classification = shape.task.is_classification
        model = CategoricalCatBoostClassifier if is_classification else CategoricalCatBoostRegressor
        border_count = 64 if shape.n_rows < 5_000 else 254
        return model(
            **config, border_count=border_count, n_categorical=shape.n_categorical, random_state=random_state,
            n_threads=n_threads,
        )  # fmt: skip


def _leaf_cap(min_rows: int, shape: MatrixShape) -> int:
    """At most a fifth of the rows in a leaf, so that small tables are split at all."""
    return max(1, min(min_rows, shape.n_rows // 5))
