"""An affine correction of a model's predictions, learned from rows of another market, season or machine."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from autometa.family import MatrixKind

_LEAST_PROBABILITY = 1e-9


@dataclass(frozen=True, eq=False)
class Correction:
    """``slope * output + intercept + matrix @ weights``, on values, or on log-probabilities before a softmax.

    Two corrections in a row are one: see :meth:`then`.

    Parameters
    ----------
    slope : float
    intercept : ndarray of shape (n_outputs,)
        One output for regression, else one per class.
    weights : ndarray of shape (n_columns, n_outputs)
    matrix : {"linear"}
        The encoding that ``weights`` belong to.
    n_rows : int
        Labelled rows that it was learned from, in all.
    """

    slope: float
    intercept: NDArray[np.float64]
    weights: NDArray[np.float64] = field(repr=False)
    matrix: MatrixKind = "linear"
    n_rows: int = 0

    def __post_init__(self) -> None:
        n_outputs = self.weights.shape[1] if self.weights.ndim == 2 else -1
        finite = np.isfinite(self.slope) and np.isfinite(self.intercept).all() and np.isfinite(self.weights).all()
        if self.intercept.shape != (n_outputs,) or not finite or self.matrix != "linear":
            raise ValueError(
                "A Correction must hold finite numbers, one intercept and one column of weights an output."
            )

    @classmethod
    def none(cls, n_columns: int, n_outputs: int) -> Self:
        """The correction that changes nothing."""
        return cls(1.0, np.zeros(n_outputs), np.zeros((n_columns, n_outputs)))

    def outputs(self, raw: NDArray[np.float64], matrix: NDArray[np.float32]) -> NDArray[np.float64]:
        """Corrected values or unnormalised log-probabilities, shape (n_rows, n_outputs).

        Parameters
        ----------
        raw : ndarray of shape (n_rows,) or (n_rows, n_classes)
            Values, or probabilities.
        matrix : ndarray of shape (n_rows, n_columns)
        """
        base = raw[:, None] if raw.ndim == 1 else np.log(np.maximum(raw, _LEAST_PROBABILITY))
        return np.asarray(self.slope * base + self.intercept + matrix.astype(np.float64) @ self.weights)

    def apply(self, raw: NDArray[np.float64], matrix: NDArray[np.float32]) -> NDArray[np.float64]:
        """Corrected values of shape (n_rows,), or probabilities of shape (n_rows, n_classes)."""
        outputs = self.outputs(raw, matrix)
        if raw.ndim == 1:
            return outputs[:, 0]
        powers = np.exp(outputs - outputs.max(axis=1, keepdims=True))
        return np.asarray(powers / powers.sum(axis=1, keepdims=True))

    def then(self, other: Correction) -> Correction:
        """This correction followed by another one, as one."""
        return Correction(
            self.slope * other.slope,
            other.slope * self.intercept + other.intercept,
            other.slope * self.weights + other.weights,
            n_rows=self.n_rows + other.n_rows,
        )

    def to_state(self) -> dict[str, Any]:
        """Plain data; :meth:`from_state` reads it back."""
        return dict(vars(self))

    @classmethod
    def from_state(cls, state: Mapping[str, Any]) -> Self:
        """From :meth:`to_state`; ValueError where the parts do not fit."""
        return cls(**state)
