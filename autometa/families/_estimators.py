"""Small scikit-learn estimators that adapt a library to the encoded matrix. Nothing here needs Optuna or torch."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray
from sklearn.base import BaseEstimator, ClassifierMixin, RegressorMixin, clone
from sklearn.calibration import CalibratedClassifierCV
from sklearn.kernel_approximation import Nystroem
from sklearn.linear_model import LogisticRegression, Ridge
from sklearn.multiclass import OneVsRestClassifier
from sklearn.pipeline import Pipeline
from sklearn.preprocessing import StandardScaler
from sklearn.svm import SVC, SVR

Matrix = NDArray[np.float32]
_MAX_EXACT_ROWS = 5_000
_N_COMPONENTS = 400
_POLY = {"degree": 3, "coef0": 1.0}


class _KernelMachine(BaseEstimator):
    """What the classifier and the regressor share: the kernel, exact or approximated.

    Parameters
    ----------
    C : float, default=1.0
    gamma_factor : float, default=1.0
        Multiple of 1 / (n_columns x variance).
    kernel : {"rbf", "poly", "sigmoid"}, default="rbf"
    random_state : int, default=0
    """

    def __init__(
        self, C: float = 1.0, *, gamma_factor: float = 1.0, kernel: str = "rbf", random_state: int = 0
    ) -> None:
        self.C = C
        self.gamma_factor = gamma_factor
        self.kernel = kernel
        self.random_state = random_state

    def _kernel_options(self, X: Matrix) -> dict[str, Any]:
        gamma = self.gamma_factor / (X.shape[1] * max(float(X.var()), 1e-12))
        return {"kernel": self.kernel, "gamma": gamma, **(_POLY if self.kernel == "poly" else {})}

    def _approximation(self, X: Matrix) -> Nystroem:
        components = min(_N_COMPONENTS, len(X))
        return Nystroem(**self._kernel_options(X), n_components=components, random_state=self.random_state)


class KernelClassifier(ClassifierMixin, _KernelMachine):
    """Support vector classifier with sigmoid calibration by three inner folds.

    Above 5,000 rows: logistic regression on Nystroem features (Williams and Seeger, 2000).
    """

    def fit(self, X: Matrix, y: NDArray[Any], sample_weight: NDArray[Any] | None = None) -> Self:
        """Fit on X (n_rows, n_columns) and class codes y."""
        self.classes_, counts = np.unique(y, return_counts=True)
        weights = {} if sample_weight is None else {"sample_weight": sample_weight}
        if len(X) > _MAX_EXACT_ROWS:
            self.model_ = Pipeline([("kernel", self._approximation(X)), ("model", LogisticRegression(C=self.C))])
            self.model_.fit(X, y, **{f"model__{k}": v for k, v in weights.items()})
            return self
        machine = SVC(C=self.C, cache_size=500, max_iter=200_000, **self._kernel_options(X))
        if counts.min() < 3:  # too few rows of a class to calibrate on: a logistic read-out of the kernel machine
            machine = OneVsRestClassifier(machine) if len(counts) > 2 else machine
            self.model_ = _MarginReadout(machine).fit(X, y, **({} if len(counts) > 2 else weights))
            return self
        self.model_ = CalibratedClassifierCV(machine, method="sigmoid", cv=3, ensemble=False).fit(X, y, **weights)
        return self

    def predict_proba(self, X: Matrix) -> NDArray[np.float64]:
        """Class probabilities, shape (n_rows, n_classes)."""
        return np.asarray(self.model_.predict_proba(X))

    def predict(self, X: Matrix) -> NDArray[Any]:
        """Most probable class, shape (n_rows,)."""
        return np.asarray(self.classes_[self.predict_proba(X).argmax(axis=1)])


class _MarginReadout(ClassifierMixin, BaseEstimator):
    """Probabilities from the margins of a machine by logistic regression on the training margins."""

    def __init__(self, machine: BaseEstimator) -> None:
        self.machine = machine

    def fit(self, X: Matrix, y: NDArray[Any], sample_weight: NDArray[Any] | None = None) -> Self:
        weights = {} if sample_weight is None else {"sample_weight": sample_weight}
        self.machine_ = self.machine.fit(X, y, **weights)
        self.readout_ = LogisticRegression(C=1.0).fit(self._margins(X), y)
        self.classes_ = self.readout_.classes_
        return self

    def predict_proba(self, X: Matrix) -> NDArray[np.float64]:
        return np.asarray(self.readout_.predict_proba(self._margins(X)))

    def _margins(self, X: Matrix) -> NDArray[np.float64]:
        margins = np.asarray(self.machine_.decision_function(X))
        return margins.reshape(len(X), -1)


class KernelRegressor(RegressorMixin, _KernelMachine):
    """Support vector regression of the standardised target; above 5,000 rows ridge on Nystroem features."""

    def fit(self, X: Matrix, y: NDArray[Any], sample_weight: NDArray[Any] | None = None) -> Self:
        """Fit on X (n_rows, n_columns) and values y."""
        self.scaler_ = StandardScaler().fit(np.asarray(y, dtype=float).reshape(-1, 1))
        target = self.scaler_.transform(np.asarray(y, dtype=float).reshape(-1, 1)).ravel()
        weights = {} if sample_weight is None else {"sample_weight": sample_weight}
        if len(X) > _MAX_EXACT_ROWS:
            self.model_ = Pipeline([("kernel", self._approximation(X)), ("model", Ridge(alpha=1.0 / self.C))])
            self.model_.fit(X, target, **{f"model__{k}": v for k, v in weights.items()})
        else:
            self.model_ = SVR(C=self.C, epsilon=0.1, cache_size=500, max_iter=200_000, **self._kernel_options(X))
            self.model_.fit(X, target, **weights)
        return self

    def predict(self, X: Matrix) -> NDArray[np.float64]:
        """Values, shape (n_rows,)."""
        return np.asarray(self.scaler_.inverse_transform(self.model_.predict(X).reshape(-1, 1))).ravel()


class _CatBoost(BaseEstimator):
    """CatBoost on a matrix whose first ``n_categorical`` columns hold category codes.

    Parameters
    ----------
    iterations, learning_rate, depth, l2_leaf_reg, random_strength, bagging_temperature
        As in CatBoost.
    border_count : int, default=64
        Bins per number; scoring splits is what a small table pays for.
    n_categorical : int, default=0
    random_state : int, default=0
    n_threads : int, default=1
    """

    def __init__(
        self,
        iterations: int = 200,
        *,
        learning_rate: float = 0.08,
        depth: int = 6,
        l2_leaf_reg: float = 3.0,
        random_strength: float = 1.0,
        bagging_temperature: float = 1.0,
        border_count: int = 64,
        n_categorical: int = 0,
        random_state: int = 0,
        n_threads: int = 1,
    ) -> None:
        self.iterations = iterations
        self.learning_rate = learning_rate
        self.depth = depth
        self.l2_leaf_reg = l2_leaf_reg
        self.random_strength = random_strength
        self.bagging_temperature = bagging_temperature
        self.border_count = border_count
        self.n_categorical = n_categorical
        self.random_state = random_state
        self.n_threads = n_threads

    def _options(self) -> dict[str, Any]:
        tuned = (
            "iterations", "learning_rate", "depth", "l2_leaf_reg", "random_strength", "bagging_temperature",
            "border_count",
        )  # fmt: skip
        return {
            **{name: getattr(self, name) for name in tuned},
            "boosting_type": "Plain", "bootstrap_type": "Bayesian", "random_seed": self.random_state,
            "thread_count": self.n_threads, "allow_writing_files": False, "logging_level": "Silent",
        }  # fmt: skip

    @staticmethod
    def boosting_callbacks(over: Callable[[], bool]) -> list[Any]:
        """Callbacks of ``fit`` that end it after the round in which ``over`` turned true."""
        return [_Stop(over)]

    def _pool(self, X: Matrix, y: Any = None, weight: Any = None) -> Any:
        from catboost import FeaturesData, Pool

        if not self.n_categorical:
            return Pool(X, y, weight=weight)
        codes = np.where(np.isnan(X[:, : self.n_categorical]), -2, X[:, : self.n_categorical]).astype(np.int64)
        numbers = np.ascontiguousarray(X[:, self.n_categorical :], dtype=np.float32)
        data = FeaturesData(
            num_feature_data=numbers if numbers.shape[1] else None,
            cat_feature_data=codes.astype(str).astype(bytes).astype(object),
        )
        return Pool(data, y, weight=weight)


class _Stop:
    """A callback of CatBoost."""

    def __init__(self, over: Callable[[], bool]) -> None:
        self.over = over

    def after_iteration(self, info: Any) -> bool:
        """Whether to go on."""
        return not self.over()


class CategoricalCatBoostClassifier(ClassifierMixin, _CatBoost):
    """CatBoost classifier with native categories."""

    def fit(self, X: Matrix, y: NDArray[Any], sample_weight: NDArray[Any] | None = None, callbacks: Any = None) -> Self:
        """Fit on X (n_rows, n_columns) and class codes y."""
        from catboost import CatBoostClassifier

        self.classes_ = np.unique(y)
        model = CatBoostClassifier(**self._options())
        self.model_ = model.fit(self._pool(X, y, sample_weight), callbacks=callbacks)
        return self

    def predict_proba(self, X: Matrix) -> NDArray[np.float64]:
        """Class probabilities, shape (n_rows, n_classes)."""
        return np.asarray(self.model_.predict_proba(self._pool(X), thread_count=self.n_threads))

    def predict(self, X: Matrix) -> NDArray[Any]:
        """Most probable class, shape (n_rows,)."""
        return np.asarray(self.classes_[self.predict_proba(X).argmax(axis=1)])


class CategoricalCatBoostRegressor(RegressorMixin, _CatBoost):
    """CatBoost regressor with native categories."""

    def fit(self, X: Matrix, y: NDArray[Any], sample_weight: NDArray[Any] | None = None, callbacks: Any = None) -> Self:
        """Fit on X (n_rows, n_columns) and values y."""
        from catboost import CatBoostRegressor

        model = CatBoostRegressor(**self._options())
        self.model_ = model.fit(self._pool(X, y, sample_weight), callbacks=callbacks)
        return self

    def predict(self, X: Matrix) -> NDArray[np.float64]:
        """Values, shape (n_rows,)."""
        return np.asarray(self.model_.predict(self._pool(X), thread_count=self.n_threads))


class LabelCodes(ClassifierMixin, BaseEstimator):
    """A classifier for codes 0 .. n_classes - 1 made to take any labels.

    Parameters
    ----------
    model : classifier
        Fitted on the codes of the sorted labels.
    """

    def __init__(self, model: BaseEstimator) -> None:
        self.model = model

    def fit(self, X: Matrix, y: Any, sample_weight: NDArray[Any] | None = None) -> Self:
        """Fit a clone of the model on X and the codes of y."""
        self.classes_, codes = np.unique(np.asarray(y), return_inverse=True)
        weights = {} if sample_weight is None else {"sample_weight": sample_weight}
        self.model_ = clone(self.model).fit(X, codes, **weights)
        return self

    def predict_proba(self, X: Matrix) -> NDArray[np.float64]:
        """Class probabilities, shape (n_rows, n_classes), in the order of ``classes_``."""
        return np.asarray(self.model_.predict_proba(X))

    def predict(self, X: Matrix) -> NDArray[Any]:
        """Most probable label, shape (n_rows,)."""
        return np.asarray(self.classes_[self.predict_proba(X).argmax(axis=1)])
