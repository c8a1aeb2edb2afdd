"""How far a dataset lies from the known ones, as a percentile of how far these lie from each other."""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

Floats = NDArray[np.float64]

_N_NEAREST = 3
_MOST = 3.0
_BLOCK = 256


class Novelty(nn.Module):
    """Distances to the nearest training datasets of other groups.

    The distance is the mean Euclidean one to the three nearest in encoded meta-features. Encoded ones are ranks and
    so cannot leave the known range; for each meta-feature that does, its excess in units of that range is added, and
    for each one that is missing though it never was, one.

    Parameters
    ----------
    n_datasets, n_inputs, n_columns : int
        Training datasets N, encoded meta-features D, expanded meta-features E.

    Attributes
    ----------
    points : Tensor of shape (N, D), float16
    reference : Tensor of shape (N,)
        Distance of each training dataset to those of other groups, ascending.
    low, high : Tensor of shape (E,)
        Known range of each expanded meta-feature.
    always : Tensor of shape (E,)
        1 where it was never missing.
    """

    points: Tensor
    reference: Tensor
    low: Tensor
    high: Tensor
    always: Tensor

    def __init__(self, n_datasets: int, n_inputs: int, n_columns: int) -> None:
        super().__init__()
        self.register_buffer("points", torch.zeros(n_datasets, n_inputs, dtype=torch.float16))
        self.register_buffer("reference", torch.zeros(n_datasets, dtype=torch.float64))
        for name in ("low", "high", "always"):
            self.register_buffer(name, torch.zeros(n_columns, dtype=torch.float64))

    @property
    def sizes(self) -> list[int]:
        """Arguments of the constructor."""
        return [*self.points.shape, len(self.low)]

    @classmethod
    def fit(cls, X: Floats, table: Floats, groups: NDArray[np.int64]) -> Novelty:
        """From encoded (N, D) and expanded (N, E) meta-features and the number of each dataset's group (N,)."""
        model = cls(X.shape[0], X.shape[1], table.shape[1])
        model.points.copy_(torch.from_numpy(X))
        low, high = _range(table)
        always = np.isfinite(table).all(axis=0).astype(float)
        for name, values in (("low", low), ("high", high), ("always", always)):
            getattr(model, name).copy_(torch.from_numpy(values))
        distances = [_from_others(X, table, groups == group) for group in np.unique(groups)]
        model.reference.copy_(torch.from_numpy(np.sort(np.concatenate(distances))))
        return model

    def distance(self, X: Floats, table: Floats) -> Floats:
        """Distance of datasets given by encoded (n, D) and expanded (n, E) meta-features, shape (n,)."""
        low, high, always = (t.cpu().numpy() for t in (self.low, self.high, self.always))
        near = _nearest(X, self.points.cpu().numpy().astype(float))
        return np.asarray(np.sqrt(near**2 + _excess(table, low, high, always)))

    def percentile(self, X: Floats, table: Floats) -> Floats:
        """Share of the known datasets that lie nearer to the others, shape (n,), in [0, 1]."""
        reference = self.reference.cpu().numpy()
        return np.asarray(np.searchsorted(reference, self.distance(X, table)) / max(len(reference), 1))


def _from_others(X: Floats, table: Floats, own: NDArray[np.bool_]) -> Floats:
    """Distance of the datasets of one group to all others, shape (own.sum(),)."""
    if own.all():
        return np.zeros(len(X))
    known = np.isfinite(table[~own])
    low, high = _range(table[~own])
    extra = _excess(table[own], low, high, known.all(axis=0).astype(float))
    return np.asarray(np.sqrt(_nearest(X[own], X[~own]) ** 2 + extra))


def _range(table: Floats) -> tuple[Floats, Floats]:
    known = np.isfinite(table)
    low = np.where(known, table, np.inf).min(axis=0, initial=np.inf)
    return low, np.where(known, table, -np.inf).max(axis=0, initial=-np.inf)


def _nearest(a: Floats, b: Floats) -> Floats:
    """Mean distance of each row of ``a`` to its nearest rows of ``b``, shape (len(a),)."""
    result, k = np.empty(len(a)), min(_N_NEAREST, len(b))
    norm = np.square(b).sum(axis=1)
    for start in range(0, len(a), _BLOCK):
        part = a[start : start + _BLOCK]
        squared = np.square(part).sum(axis=1)[:, None] + norm - 2 * part @ b.T
        nearest = np.partition(np.maximum(squared, 0.0), k - 1, axis=1)[:, :k]
        result[start : start + _BLOCK] = np.sqrt(nearest).mean(axis=1)
    return result


def _excess(table: Floats, low: Floats, high: Floats, always: Floats) -> Floats:
    """Squared excess over the known range, each meta-feature bounded, summed, shape (n,)."""
    width = np.where(high > low, high - low, 1.0)
    with np.errstate(invalid="ignore"):
        beyond = np.maximum(np.maximum(table - high, low - table), 0.0) / width
    beyond = np.where(np.isfinite(table), np.minimum(beyond, _MOST), always)
    return np.asarray(np.square(np.where(np.isfinite(beyond), beyond, 0.0)).sum(axis=1))
