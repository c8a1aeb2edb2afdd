"""Conformal calibration: how far measured values lie from forecasts, on groups that the forecast had not seen.

Datasets of one group are related, so groups and not datasets are exchangeable. Every group weighs the same, as if one
cell were drawn from each: the hierarchical conformal prediction of Dunn, Wasserman and Ramdas (Distribution-free
prediction sets for two-layer hierarchical models, 2022) and of Lee, Barber and Willett (2023), for intervals whose
two ends are calibrated apart.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.special import ndtri

Floats = NDArray[np.float64]

PROBABILITIES = np.round(np.concatenate([np.arange(0.02, 0.5, 0.02), np.arange(0.5, 0.99, 0.02)]), 2)
"""Probabilities at which quantiles are kept."""


@dataclass(frozen=True, eq=False)
class Calibration:
    """Quantiles of ``(measured - mean) / std`` of a belief, by the number of trials that it had seen.

    Parameters
    ----------
    stages : tuple of int
        Numbers of trials, ascending; between them quantiles are interpolated, after the last they stay.
    quantiles : ndarray of shape (n_stages, len(PROBABILITIES))
    probed : Calibration or None
        Of a belief that has also seen scores after training on few rows; ``None``: not known.
    by_rows : tuple of float or None
        Decimal logarithm of the rows that part small tables from large ones, and the factors by which the quantiles of
        the small and of the large ones differ from these; ``None``: not known.

    Examples
    --------
    >>> wide = Calibration((0,), 2 * ndtri(PROBABILITIES)[None])
    >>> round(wide.quantile(0.9, 3), 2)
    2.56
    """

    stages: tuple[int, ...]
    quantiles: Floats
    probed: Calibration | None = None
    by_rows: tuple[float, float, float] | None = None

    @classmethod
    def from_spec(cls, spec: Mapping[str, Any]) -> Calibration:
        """What :attr:`spec` wrote."""
        probed = cls.from_spec(spec["probed"]) if "probed" in spec else None
        by_rows = tuple(spec["by_rows"]) if "by_rows" in spec else None
        return cls(tuple(spec["stages"]), np.array(spec["quantiles"], dtype=float), probed, by_rows)

    @property
    def spec(self) -> dict[str, Any]:
        """As JSON."""
        probed = {} if self.probed is None else {"probed": self.probed.spec}
        by_rows = {} if self.by_rows is None else {"by_rows": list(self.by_rows)}
        return {"stages": list(self.stages), "quantiles": self.quantiles.round(3).tolist(), **probed, **by_rows}

    def for_rows(self, log_rows: float) -> Calibration:
        """The calibration of a table with so many rows (decimal logarithm); the same where they are not known."""
        if self.by_rows is None or not np.isfinite(log_rows):
            return self
        limit, small, large = self.by_rows
        factor = small if log_rows < limit else large
        probed = None if self.probed is None else replace(self.probed, quantiles=factor * self.probed.quantiles)
        return replace(self, quantiles=factor * self.quantiles, probed=probed, by_rows=None)

    def quantile(self, probability: float, n_trials: int) -> float:
        """Quantile of the standardised error; beyond the outermost kept ones they grow as a Gaussian's do."""
        row = np.array([np.interp(n_trials, self.stages, column) for column in self.quantiles.T])
        z, grid = float(ndtri(probability)), ndtri(PROBABILITIES)
        inside = float(np.interp(z, grid, row))
        if z < grid[0] or z > grid[-1]:
            edge = grid[0] if z < 0 else grid[-1]
            return inside * max(z / float(edge), 1.0)
        return inside

    def ends(self, level: float, n_trials: int, *, probed: bool = False) -> tuple[float, float]:
        """Lower and upper end of the central interval in standard deviations from the mean, which lies inside."""
        if probed and self.probed is not None:
            return self.probed.ends(level, n_trials)
        n_trials = max(n_trials, int(probed))  # few rows tell level and scale of the dataset, as a first trial does
        tail = 0.5 * (1 - level)
        return min(self.quantile(tail, n_trials), 0.0), max(self.quantile(1 - tail, n_trials), 0.0)


def conformal_quantiles(errors: Floats, groups: NDArray[Any]) -> Floats:
    """Conformal quantiles of standardised errors at :data:`PROBABILITIES`, every group weighing the same.

    A mass of one group lies beyond each end: the group that is still to come. Where that mass is larger than the
    tail, the outermost known quantile is continued as a Gaussian.

    Parameters
    ----------
    errors : ndarray of shape (n,)
    groups : ndarray of shape (n,)

    Returns
    -------
    ndarray of shape (len(PROBABILITIES),)
    """
    _, number, count = np.unique(groups, return_inverse=True, return_counts=True)
    order = np.argsort(errors, kind="stable")
    mass = (1.0 / count[number])[order]
    ordered, n_groups = errors[order], len(count)
    from_below = np.cumsum(mass) / (n_groups + 1)
    from_above = np.cumsum(mass[::-1])[::-1] / (n_groups + 1)
    result = np.full(len(PROBABILITIES), np.nan)
    for i, p in enumerate(PROBABILITIES):
        if p >= 0.5:
            at = int(np.searchsorted(from_below, p - 1e-12))
        else:
            at = int(len(errors) - 1 - np.searchsorted(from_above[::-1], 1 - p - 1e-12))
        if 0 <= at < len(errors):
            result[i] = ordered[at]
    return _continued(np.maximum.accumulate(np.where(np.isnan(result), -np.inf, result)), np.isnan(result))


def _continued(quantiles: Floats, unknown: NDArray[np.bool_]) -> Floats:
    """Quantiles beyond the known ones, in proportion to a Gaussian's."""
    known = np.flatnonzero(~unknown)
    grid = ndtri(PROBABILITIES)
    if not len(known):
        return np.asarray(grid)
    result, first, last = quantiles.copy(), known[0], known[-1]
    low = min(quantiles[first], grid[first])
    high = max(quantiles[last], grid[last])
    result[:first] = low * grid[:first] / min(grid[first], -1e-9)
    result[last + 1 :] = high * grid[last + 1 :] / max(grid[last], 1e-9)
    return result
