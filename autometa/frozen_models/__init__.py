"""Fitted models in the form that is kept: arrays or a library's own text, quick for one row, the same after loading."""

from __future__ import annotations

from typing import Any

from autometa.frozen_models.forests import FrozenForest
from autometa.frozen_models.histograms import FrozenHistogram
from autometa.frozen_models.texts import FrozenLightGBM, FrozenXGBoost

__all__ = ["FrozenForest", "FrozenHistogram", "FrozenLightGBM", "FrozenXGBoost", "freeze"]

_FORESTS = frozenset({"RandomForestClassifier", "RandomForestRegressor", "ExtraTreesClassifier", "ExtraTreesRegressor"})
_HISTOGRAMS = frozenset({"HistGradientBoostingClassifier", "HistGradientBoostingRegressor"})


def freeze(model: Any) -> Any:
    """The model in the form that is kept; frozen models and estimators without such a form come back unchanged."""
    home, name = type(model).__module__, type(model).__name__
    if home.startswith("sklearn.ensemble.") and name in _FORESTS:
        return FrozenForest.from_estimator(model)
    if home.startswith("sklearn.ensemble.") and name in _HISTOGRAMS and FrozenHistogram.can_hold(model):
        return FrozenHistogram.from_estimator(model)
    if home.startswith("lightgbm.") and name in {"LGBMClassifier", "LGBMRegressor"}:
        return FrozenLightGBM.from_estimator(model)
    if home.startswith("xgboost.") and name in {"XGBClassifier", "XGBRegressor"}:
        return FrozenXGBoost.from_estimator(model)
    return model
