"""What "tree", "linear" and "net" do to numbers, as five arrays."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from autometa.family import MatrixKind
from autometa.preprocessing.columns import FLOAT32_MAX

_FIT_ROWS = 50_000
_IQR_OF_NORMAL = 1.349
_CLIP_SPREADS = 6.0
_CLIP_STANDARDISED = 10.0
NET_REACH = 3.0
"""Numbers for nets stay within this many interquartile ranges, smoothly."""


@dataclass(frozen=True, eq=False)
class NumberScaling:
    """Affine maps with bounds, one per number column; quantiles come from up to 50,000 evenly spaced rows.

    Parameters
    ----------
    matrix : {"tree", "linear", "net"}
    fill, lower, upper, center, factor : ndarray of shape (n_numbers,)
        A missing value becomes ``fill`` (not for "tree"), is clipped to the bounds, and turned into
        ``(value - center) * factor``.
    indicators : ndarray of shape (n_indicators,)
        Columns that get a missing indicator, because a value was missing in ``fit``; none for "tree".
    """

    matrix: MatrixKind
    fill: NDArray[np.float64]
    lower: NDArray[np.float64]
    upper: NDArray[np.float64]
    center: NDArray[np.float64]
    factor: NDArray[np.float64]
    indicators: NDArray[np.int64]

    @classmethod
    def fit(cls, raw: NDArray[np.float64], matrix: MatrixKind, owns_indicator: NDArray[np.bool_]) -> NumberScaling:
        """From numbers of shape (n_rows, n_numbers) with NaN where missing and infinities as the float32 maximum."""
        step = -(-len(raw) // _FIT_ROWS)
        sample = raw[::step].T  # (n_numbers, n_sample)
        sample = np.where(np.abs(sample) < FLOAT32_MAX, sample, np.nan)
        lowest, first, median, third, highest = _quantiles(sample, (0.0, 0.25, 0.5, 0.75, 1.0))
        none = np.zeros(0, dtype=np.int64)
        if matrix == "tree":
            narrow = highest - lowest < 0.01 * np.maximum(np.abs(lowest), np.abs(highest))
            center = np.where(narrow & (highest > lowest), np.round(median), 0.0)
            bound = np.full(len(median), FLOAT32_MAX)
            return cls(matrix, np.full(len(median), np.nan), -bound, bound, center, np.ones(len(median)), none)
        indicators = np.flatnonzero(np.isnan(raw).any(axis=0) & owns_indicator)
        noise = 1e-13 * np.maximum(np.abs(lowest), np.abs(highest)) + 1e-200
        if matrix == "net":
            spread = np.where(third - first > noise, third - first, 0.5 * (highest - lowest))
            factor = _inverse(spread, noise)
            reach = 1e6 * spread
            return cls(matrix, median, median - reach, median + reach, median, factor, indicators)
        lower, upper, center, factor = _standardise(sample, median, third - first, noise)
        return cls(matrix, median, lower, upper, center, factor, indicators)

    def transform(self, raw: NDArray[np.float64]) -> NDArray[np.float64]:
        """Numbers in the layout of the matrix. Shape (n_rows, n_numbers)."""
        if self.matrix == "tree":
            return np.clip(raw - self.center, self.lower, self.upper)
        values = np.where(np.isnan(raw), self.fill, raw)
        values = (np.clip(values, self.lower, self.upper) - self.center) * self.factor
        return values / np.sqrt(1.0 + (values / NET_REACH) ** 2) if self.matrix == "net" else values

    def to_state(self) -> dict[str, Any]:
        return dict(vars(self))

    @classmethod
    def from_state(cls, state: Mapping[str, Any]) -> NumberScaling:
        return cls(**state)


def _standardise(
    sample: NDArray[np.float64], median: NDArray[np.float64], iqr: NDArray[np.float64], noise: NDArray[np.float64]
) -> tuple[NDArray[np.float64], ...]:
    """Bounds, mean and inverse standard deviation of clipped values. Sample of shape (n_numbers, n_sample)."""
    deviations = sample - median[:, None]
    spread = np.where(iqr > noise, iqr / _IQR_OF_NORMAL, np.sqrt(_mean(deviations**2)))
    reach = _CLIP_SPREADS * spread
    deviations = np.clip(deviations, -reach[:, None], reach[:, None])
    mean = _mean(deviations)
    deviation = np.sqrt(_mean((deviations - mean[:, None]) ** 2))
    lower = np.maximum(-reach, mean - _CLIP_STANDARDISED * deviation)
    upper = np.minimum(reach, mean + _CLIP_STANDARDISED * deviation)
    return median + lower, median + upper, median + mean, _inverse(deviation, noise)


def _mean(values: NDArray[np.float64]) -> NDArray[np.float64]:
    """Mean over the last axis without missing values; 0 where there is none."""
    known = ~np.isnan(values)
    total: NDArray[np.float64] = np.where(known, values, 0.0).sum(axis=-1)
    return np.asarray(total / np.maximum(1, known.sum(axis=-1)))


def _inverse(spread: NDArray[np.float64], noise: NDArray[np.float64]) -> NDArray[np.float64]:
    """1 / spread; 0 for a column that does not vary, which then stays 0 whatever comes."""
    varies = spread > noise
    return np.where(varies, 1.0 / np.where(varies, spread, 1.0), 0.0)


def _quantiles(sample: NDArray[np.float64], levels: tuple[float, ...]) -> list[NDArray[np.float64]]:
    """Linearly interpolated quantiles over the last axis, blind to NaN (sorted last); 0 where all is missing."""
    if sample.shape[1] == 0:
        return [np.zeros(len(sample)) for _ in levels]
    ordered = np.sort(sample, axis=1)
    last = np.maximum(0, (~np.isnan(ordered)).sum(axis=1) - 1)
    rows = np.arange(len(sample))
    found = []
    for level in levels:
        place = level * last
        below = np.floor(place).astype(np.int64)
        low, high = ordered[rows, below], ordered[rows, np.minimum(below + 1, last)]
        found.append(np.nan_to_num(low + (place - below) * (high - low)))
    return found
