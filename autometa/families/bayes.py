"""Gaussian naive Bayes."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

from optuna.distributions import FloatDistribution
from sklearn.base import BaseEstimator
from sklearn.naive_bayes import GaussianNB

from autometa.family import CLASSIFICATION_TASKS, MatrixShape, ModelFamily
from autometa.search_space import SearchSpace


class GaussianNaiveBayes(ModelFamily):
    """Gaussian naive Bayes; ``var_smoothing`` is added to variances as a share of the largest one."""

    name = "naive_bayes"
    matrix = "linear"
    tasks = CLASSIFICATION_TASKS
    search_space = SearchSpace({"var_smoothing": FloatDistribution(1e-9, 1.0, log=True)})
    default_config: ClassVar = {"var_smoothing": 1e-3}
    presets: ClassVar = ({"var_smoothing": 0.1},)

    def build(
        self, config: Mapping[str, Any], shape: MatrixShape, *, random_state: int = 0, n_threads: int = 1
    ) -> BaseEstimator:
        return GaussianNB(var_smoothing=config["var_smoothing"])
