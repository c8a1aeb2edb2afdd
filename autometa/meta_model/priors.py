"""The parts that a belief is made of: covariance, prior of offset and scale, prior of scores and of seconds."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from autometa.meta_model.calibration import Calibration
from autometa.meta_model.outputs import Output

Floats = NDArray[np.float64]


@dataclass(frozen=True, eq=False)
class Covariance:
    """Covariance over candidates, held in factors: ``root root' + spread spread' * (kernel - bridge bridge')``.

    The second part speaks of candidates outside the training pool; it is zero inside.

    Parameters
    ----------
    root : ndarray of shape (C, R)
    spread : ndarray of shape (C,)
        Standard deviation of what the pool cannot say; zeros for pool members.
    family : int ndarray of shape (C,)
    vectors : ndarray of shape (C, D)
        Encoded configurations.
    bridge : ndarray of shape (C, P)
        Whitened kernel between each candidate and the pool.
    length_scale : float
    """

    root: Floats
    spread: Floats
    family: NDArray[np.int64]
    vectors: Floats
    bridge: Floats
    length_scale: float = 0.5

    @classmethod
    def from_matrix(cls, matrix: Floats) -> Covariance:
        """A covariance given in full, shape (C, C), positive definite."""
        n = len(matrix)
        root = np.linalg.cholesky(matrix + 1e-9 * np.trace(matrix) / n * np.eye(n))
        return cls(root, np.zeros(n), np.zeros(n, dtype=np.int64), np.zeros((n, 0)), np.zeros((n, 0)))

    @cached_property
    def diagonal(self) -> Floats:
        """Variances, shape (C,)."""
        own = self.spread**2 * np.maximum(1.0 - np.square(self.bridge).sum(axis=1), 0.0)
        return np.asarray(np.square(self.root).sum(axis=1) + own)

    def column(self, index: int) -> Floats:
        """Covariance of every candidate with one, shape (C,)."""
        column = self.root @ self.root[index]
        if self.spread[index] > 0:
            related = kernel(self.vectors, self.vectors[index : index + 1], self.length_scale)[:, 0]
            related = related * (self.family == self.family[index]) - self.bridge @ self.bridge[index]
            column = column + self.spread * self.spread[index] * related
        return np.asarray(column)


def kernel(a: Floats, b: Floats, length_scale: float) -> Floats:
    """Correlation of configurations of one family, shape (len(a), len(b)): half of it is common to the family."""
    distance = np.square(a).sum(axis=1)[:, None] + np.square(b).sum(axis=1) - 2 * a @ b.T
    return np.asarray(0.5 + 0.5 * np.exp(-0.5 * np.maximum(distance, 0.0) / length_scale**2))


@dataclass(frozen=True)
class ScalePrior:
    """Joint prior of a dataset's offset and log-scale: ``log b ~ N``, ``a | b ~ N``.

    Parameters
    ----------
    offset, offset_std : float
        Of the offset given the mean log-scale, in raw units (relative: in units of the offset's size).
    slope : float
        Change of the expected offset per unit of log-scale.
    log_scale, log_scale_std : float
        Relative: of the scale divided by the size of the offset.
    relative : bool
        For scores without a natural unit (errors in the units of a target): the first observed score sets the unit.
    log_size : float
        Relative: expected logarithm of the size of the offset.
    unit : float
        Not relative: offset and scale are given in multiples of it.
    """

    offset: float
    offset_std: float
    slope: float
    log_scale: float
    log_scale_std: float
    relative: bool = False
    log_size: float = 0.0
    unit: float = 1.0

    def grid(self, first: float | None, n_scales: int) -> tuple[Floats, Floats, Floats, float]:
        """Scales (B,), their log-weights (B,), the expected offset for each (B,) and its standard deviation."""
        nodes = np.linspace(-2.5, 2.5, n_scales) if self.log_scale_std > 0 and n_scales > 1 else np.zeros(1)
        log_scales = self.log_scale + self.log_scale_std * nodes
        offsets = self.offset + self.slope * self.log_scale_std * nodes
        unit = self.unit
        if self.relative:
            unit = math.exp(self.log_size) if first is None or first == 0 else abs(first)
            # A score is its own best guess of the offset: offsets are many scales away from zero.
            offsets = np.full(len(nodes), self.offset if first is None else np.sign(first))
        return np.exp(log_scales) * unit, -0.5 * nodes**2, offsets * unit, self.offset_std * unit


@dataclass(frozen=True, eq=False)
class Prior:
    """Everything that is believed before the first trial.

    Parameters
    ----------
    mean : ndarray of shape (C,)
        Forecast in normalised units.
    covariance : Covariance
        Of one component of the mixture.
    scale : ScalePrior
    shifts : ndarray of shape (I, C)
        Displacements of the components; no rows means one Gaussian.
    noise : float
        Variance of a measured score in normalised units where no standard error is given.
    noise_share : float
        Share of the squared standard error of a score that is its own; the rest is common to all candidates (easy and
        hard validation splits) and goes into the unknown offset.
    n_scales : int
    calibration : Calibration or None
        Of the intervals; ``None``: Gaussian ones.
    tail : ndarray of shape (C,) or None
        How far below the worst scores that the forecast tells apart a candidate falls, root mean square, normalised
        units: lower ends of intervals reach further for candidates that can fail badly.
    opening : ndarray of shape (C,) or None
        Added to the mean before the first trial: a single choice has to be right at once, while a search is also
        served by a bolder forecast that its trials correct.
    trust : float
        Share of the forecast from meta-features that enters before the first trial; 0 is the portfolio alone.
    novelty : float
        Share of the known datasets that lie nearer to the others than this one does, NaN where not known.
    outputs : mapping of str to Output
        Auxiliary outputs whose scores inform the belief.
    """

    mean: Floats
    covariance: Covariance
    scale: ScalePrior
    shifts: Floats = field(default_factory=lambda: np.zeros((0, 0)))
    noise: float = 1e-2
    noise_share: float = 1.0
    n_scales: int = 15
    calibration: Calibration | None = None
    tail: Floats | None = None
    opening: Floats | None = None
    trust: float = 1.0
    novelty: float = math.nan
    outputs: Mapping[str, Output] = field(default_factory=dict)


@dataclass(frozen=True, eq=False)
class SecondsPrior:
    """Log-seconds of a fit: a forecast, a covariance and the unknown speed of this machine.

    Parameters
    ----------
    mean : ndarray of shape (C,)
    covariance : Covariance
    speed_std : float
        Standard deviation of the logarithm of the machine's speed, common to all candidates.
    noise : float
        Variance of a measured log-time.
    calibration : Calibration or None
        Of the intervals; ``None``: Gaussian ones.
    """

    mean: Floats
    covariance: Covariance
    speed_std: float = 0.7
    noise: float = 0.02
    calibration: Calibration | None = None
