"""LightGBM and XGBoost models in their own formats."""

from __future__ import annotations

import tempfile
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    import lightgbm
    import xgboost

Matrix = NDArray[np.float32]
_MANY_ROWS = 2_000


class _Kept:
    """A model as its library writes it, which reads it on first use: most models of a search are never used."""

    def __init__(self, content: Any, classes: NDArray[Any] | None) -> None:
        self.content = content
        if classes is not None:
            self.classes_ = np.asarray(classes)

    def __getstate__(self) -> dict[str, Any]:
        return {name: value for name, value in vars(self).items() if name in {"content", "classes_"}}

    def predict_proba(self, X: Matrix) -> NDArray[np.float64]:
        """Class probabilities, shape (n_rows, n_classes)."""
        return _two_columns(self._outputs(X), len(self.classes_))

    def predict(self, X: Matrix) -> NDArray[Any]:
        """Values, or the most probable class, shape (n_rows,)."""
        if hasattr(self, "classes_"):
            return np.asarray(self.classes_[self.predict_proba(X).argmax(axis=1)])
        return self._outputs(X)

    def _outputs(self, X: Matrix) -> NDArray[np.float64]:
        raise NotImplementedError


class FrozenLightGBM(_Kept):
    """A LightGBM model as its own text format.

    Parameters
    ----------
    content : str
        From ``Booster.save_model()``.
    classes : ndarray or None
        ``None`` for regression.
    """

    @classmethod
    def from_estimator(cls, model: Any) -> Self:
        """From a fitted ``LGBMClassifier`` or ``LGBMRegressor``.

        By way of a file, because ``Booster.model_to_string()`` writes texts of more than a megabyte twice.
        """
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "model.txt"
            model.booster_.save_model(path)
            return cls(path.read_text(encoding="utf-8"), getattr(model, "classes_", None))

    @cached_property
    def booster(self) -> lightgbm.Booster:
        """The model as LightGBM knows it."""
        from lightgbm import Booster

        return Booster(model_str=self.content)

    def _outputs(self, X: Matrix) -> NDArray[np.float64]:
        # Waking threads takes longer than one row; rows never share a sum, so threads change no bit.
        return np.asarray(self.booster.predict(X, num_threads=1 if len(X) < _MANY_ROWS else 0))


class FrozenXGBoost(_Kept):
    """An XGBoost model as its own JSON or, written in half the time, UBJSON.

    Parameters
    ----------
    content : bytes
        From ``Booster.save_raw()``.
    classes : ndarray or None
        ``None`` for regression.
    """

    _n_threads = -1

    @classmethod
    def from_estimator(cls, model: Any) -> Self:
        """From a fitted ``XGBClassifier`` or ``XGBRegressor``."""
        return cls(bytes(model.get_booster().save_raw("ubj")), getattr(model, "classes_", None))

    @cached_property
    def booster(self) -> xgboost.Booster:
        """The model as XGBoost knows it."""
        from xgboost import Booster

        booster = Booster()
        booster.load_model(bytearray(self.content))
        return booster

    @property
    def json(self) -> str:
        """The model as JSON."""
        return bytes(self.booster.save_raw("json")).decode()

    def _outputs(self, X: Matrix) -> NDArray[np.float64]:
        n_threads = 1 if len(X) < _MANY_ROWS else 0
        if n_threads != self._n_threads:
            self.booster.set_param({"nthread": n_threads})
            self._n_threads = n_threads
        return np.asarray(self.booster.inplace_predict(X, validate_features=False), dtype=np.float64)


def _two_columns(outputs: NDArray[np.float64], n_classes: int) -> NDArray[np.float64]:
    """Both probabilities where a library gives only that of the second class."""
    if n_classes == 1:
        return np.ones((len(outputs), 1))
    return np.column_stack([1.0 - outputs, outputs]) if outputs.ndim == 1 else outputs
