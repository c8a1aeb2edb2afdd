"""The neural estimators: scikit-learn's contract around one net and one gradient loop. Needs no Optuna."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray
from sklearn.base import ClassifierMixin, RegressorMixin
from sklearn.utils.validation import check_is_fitted

from autometa.families._net_base import NetEstimator, State, check_lengths, check_matrix
from autometa.gradient import losses


class NetClassifier(ClassifierMixin, NetEstimator):
    """A neural classifier on a "net" matrix; parameters as described in the shared base class.

    Attributes
    ----------
    classes_ : ndarray
    """

    def fit(self, X: ArrayLike, y: ArrayLike, sample_weight: ArrayLike | None = None) -> NetClassifier:
        """Train on a float32 matrix (n_rows, n_features) and class labels (n_rows,)."""
        matrix = check_matrix(X, self.n_categorical)
        self.classes_, codes = np.unique(np.asarray(y), return_inverse=True)
        if len(self.classes_) < 2:
            raise ValueError(f"The target must have at least 2 classes. Got one class: {self.classes_.tolist()}.")
        check_lengths(matrix, codes, sample_weight)
        self.n_features_in_ = matrix.shape[1]
        self._fit(matrix, codes.astype(np.int64), sample_weight, len(self.classes_))
        return self

    def refine(
        self, X: ArrayLike, y: ArrayLike, sample_weight: ArrayLike | None = None, *,
        rate_factor: float = 0.3, epochs_factor: float = 0.3,
    ) -> NetClassifier:  # fmt: skip
        """Go on from the fitted weights on all rows, none held out, and end half way between old and new weights.

        The half-way point forgets less of what early stopping chose (Wortsman et al., Robust fine-tuning, 2022).

        Parameters
        ----------
        X : array of shape (n_rows, n_features)
        y : array of shape (n_rows,)
            Labels that :meth:`fit` has met.
        sample_weight : array of shape (n_rows,), optional
        rate_factor : float, default 0.3
            The schedule of the configuration runs once more with its peak times this.
        epochs_factor : float, default 0.3
            Epochs as a share of those that led to the present weights.
        """
        check_is_fitted(self, "net_")
        codes = np.searchsorted(self.classes_, np.asarray(y)).astype(np.int64)
        self._refine(X, codes, sample_weight, len(self.classes_), rate_factor=rate_factor, epochs_factor=epochs_factor)
        return self

    def predict_proba(self, X: ArrayLike) -> NDArray[np.float64]:
        """Class probabilities (n_rows, n_classes)."""
        probabilities = self._outputs(X, losses.classification_prediction)
        normalised: NDArray[np.float64] = probabilities / probabilities.sum(axis=1, keepdims=True)
        return normalised

    def predict(self, X: ArrayLike) -> NDArray[Any]:
        """Most probable class (n_rows,)."""
        labels: NDArray[Any] = self.classes_[self.predict_proba(X).argmax(axis=1)]
        return labels

    def _extra_state(self) -> State:
        return {}, {"classes": np.asarray(self.classes_)}

    def _set_extra_state(self, header: Mapping[str, Any], arrays: Mapping[str, NDArray[Any]]) -> None:
        self.classes_ = np.array(arrays["classes"])


class NetRegressor(RegressorMixin, NetEstimator):
    """A neural regressor on a "net" matrix; parameters as described in the shared base class.

    The target is standardised for training. Predictions are clipped to the range of the training targets, widened
    by a tenth of it on each side: a net has no reason to be right far outside of what it saw.
    """

    def fit(self, X: ArrayLike, y: ArrayLike, sample_weight: ArrayLike | None = None) -> NetRegressor:
        """Train on a float32 matrix (n_rows, n_features) and finite targets (n_rows,)."""
        matrix, target = check_matrix(X, self.n_categorical), np.asarray(y, dtype=np.float64)
        check_lengths(matrix, target, sample_weight)
        if not np.isfinite(target).all():
            raise ValueError("The target must be finite. Got NaN or infinite values.")
        margin = 0.1 * float(np.ptp(target))
        self._mean, self._scale = float(target.mean()), float(target.std()) or 1.0
        self._low, self._high = float(target.min()) - margin, float(target.max()) + margin
        self.n_features_in_ = matrix.shape[1]
        self._fit(matrix, ((target - self._mean) / self._scale).astype(np.float32), sample_weight, 0)
        return self

    def refine(
        self, X: ArrayLike, y: ArrayLike, sample_weight: ArrayLike | None = None, *,
        rate_factor: float = 0.3, epochs_factor: float = 0.3,
    ) -> NetRegressor:  # fmt: skip
        """Go on from the fitted weights on all rows; see :meth:`NetClassifier.refine`."""
        check_is_fitted(self, "net_")
        target = ((np.asarray(y, dtype=np.float64) - self._mean) / self._scale).astype(np.float32)
        self._refine(X, target, sample_weight, 0, rate_factor=rate_factor, epochs_factor=epochs_factor)
        return self

    def predict(self, X: ArrayLike) -> NDArray[np.float64]:
        """Predicted target (n_rows,)."""
        values = self._outputs(X, losses.regression_prediction) * self._scale + self._mean
        clipped: NDArray[np.float64] = np.clip(values, self._low, self._high)
        return clipped

    def _extra_state(self) -> State:
        return {"mean": self._mean, "scale": self._scale, "low": self._low, "high": self._high}, {}

    def _set_extra_state(self, header: Mapping[str, Any], arrays: Mapping[str, NDArray[Any]]) -> None:
        self._mean, self._scale = float(header["mean"]), float(header["scale"])
        self._low, self._high = float(header["low"]), float(header["high"])
