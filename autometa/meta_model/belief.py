"""What is believed of every candidate's score on one dataset, and how a measured score changes it.

A dataset's raw scores are ``offset + scale * f``, with ``f`` in normalised units (0 = the median candidate, 1 = the
best) and offset and scale unknown. Given the scale everything is Gaussian and exact; the scale lives on a grid. The
prior of ``f`` is a mixture of equal Gaussians around the forecast, each displaced by the residuals of one earlier
dataset (a smoothed bootstrap of what forecasts get wrong); with no displacements it is one Gaussian.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.special import ndtr, ndtri

Floats = NDArray[np.float64]

_MAX_CELLS = 20_000
_MIN_WEIGHT = 1e-3
_TINY = 1e-12


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
    n_scales : int
    """

    mean: Floats
    covariance: Covariance
    scale: ScalePrior
    shifts: Floats = field(default_factory=lambda: np.zeros((0, 0)))
    noise: float = 1e-2
    n_scales: int = 15


@dataclass(frozen=True, eq=False)
class SecondsPrior:
    """Log fit seconds: a forecast, a covariance and the unknown speed of this machine.

    Parameters
    ----------
    mean : ndarray of shape (C,)
    covariance : Covariance
    speed_std : float
        Standard deviation of the logarithm of the machine's speed, common to all candidates.
    noise : float
        Variance of a measured log-time.
    """

    mean: Floats
    covariance: Covariance
    speed_std: float = 0.7
    noise: float = 0.02


@dataclass(frozen=True, eq=False)
class _Posterior:
    """Mixture over scales and components: weights (K,), means (K, C) and standard deviations (K, C), raw units."""

    weight: Floats
    mean: Floats
    std: Floats
    scale: Floats
    offset: Floats


@dataclass(frozen=True, eq=False)
class Belief:
    """A joint belief over the scores of candidates on one dataset. Immutable.

    Made by :meth:`autometa.meta_model.MetaModel.belief`. Scores are higher = better.

    Parameters
    ----------
    prior : Prior
    seconds_prior : SecondsPrior or None

    Examples
    --------
    >>> import numpy as np
    >>> scale = ScalePrior(offset=0.8, offset_std=0.1, slope=0.0, log_scale=-3.0, log_scale_std=0.5)
    >>> covariance = Covariance.from_matrix(np.array([[1.0, 0.9], [0.9, 1.0]]))
    >>> belief = Belief(Prior(np.array([0.1, 0.0]), covariance, scale))
    >>> belief.next()
    0
    >>> belief.observe(0, 0.9).next()
    1
    """

    prior: Prior
    seconds_prior: SecondsPrior | None = None
    tried: tuple[int, ...] = ()
    raw_scores: tuple[float, ...] = ()
    standard_errors: tuple[float, ...] = ()
    failed: tuple[int, ...] = ()
    timed: tuple[int, ...] = ()
    log_seconds: tuple[float, ...] = ()
    _columns: Any = None
    _timed_columns: Any = None

    def __len__(self) -> int:
        return len(self.prior.mean)

    def observe(
        self, index: int, raw_score: float, standard_error: float | None = None, *, seconds: float | None = None
    ) -> Belief:
        """The belief after one more trial.

        Parameters
        ----------
        index : int
            Position of the candidate.
        raw_score : float
            As measured, higher = better.
        standard_error : float, optional
            Of the raw score. Default: a small share of the dataset's scale.
        seconds : float, optional
            Measured fit seconds.

        Raises
        ------
        ValueError
            The index or the score is not usable; report a failed trial with :meth:`observe_failure`.
        """
        index = self._check_index(index)
        if not math.isfinite(raw_score):
            raise ValueError(f"raw_score must be finite. Got {raw_score}; report a failure with observe_failure.")
        error = math.nan if standard_error is None else float(standard_error)
        later = self.observe_seconds(index, seconds) if seconds is not None else self
        n = len(self.tried)
        column = self.prior.covariance.column(index)[:, None]
        columns = column if self._columns is None else np.insert(self._columns, n, column[:, 0], axis=1)
        return replace(
            later, tried=(*self.tried, index), raw_scores=(*self.raw_scores, float(raw_score)),
            standard_errors=(*self.standard_errors, error), _columns=columns,
        )  # fmt: skip

    def observe_failure(self, index: int) -> Belief:
        """The belief after a trial that ended without a score: never proposed again, and its like looks worse."""
        index = self._check_index(index)
        column = self.prior.covariance.column(index)[:, None]
        columns = column if self._columns is None else np.hstack([self._columns, column])
        return replace(self, failed=(*self.failed, index), _columns=columns)

    def observe_seconds(self, index: int, seconds: float) -> Belief:
        """The belief after fit seconds were measured; a time that is not positive is ignored."""
        index = self._check_index(index)
        if self.seconds_prior is None or not (math.isfinite(seconds) and seconds > 0):
            return self
        column = self.seconds_prior.covariance.column(index)[:, None]
        columns = column if self._timed_columns is None else np.hstack([self._timed_columns, column])
        return replace(
            self, timed=(*self.timed, index), log_seconds=(*self.log_seconds, math.log(seconds)),
            _timed_columns=columns,
        )  # fmt: skip

    def next(self) -> int:
        """Position of the candidate to try now: the largest expected improvement among those not tried.

        Before the first score it is the best forecast.

        Raises
        ------
        ValueError
            Every candidate was tried.
        """
        gain = self.expected_improvement()
        gain[[*self.tried, *self.failed]] = -np.inf
        if not np.isfinite(gain).any():
            raise ValueError("Every candidate was tried; there is no next one.")
        return int(np.argmax(gain))

    def expected_improvement(self) -> Floats:
        """Expected gain over the best score found, raw units, shape (C,); before the first score, the mean."""
        if not self.tried:
            return self.mean.copy()
        post = self._posterior
        z = (post.mean - self.incumbent) / post.std
        gain = post.std * (z * ndtr(z) + np.exp(-0.5 * z * z) / math.sqrt(2 * math.pi))
        return np.asarray(post.weight @ gain)

    @property
    def incumbent(self) -> float:
        """The best score found, raw units; noisy scores are judged by their posterior mean. NaN before the first."""
        if not self.tried:
            return math.nan
        raw = np.array(self.raw_scores)
        noisy = np.isfinite(self.standard_errors)
        return float(np.where(noisy, self.mean[list(self.tried)], raw).max())

    @property
    def mean(self) -> Floats:
        """Expected score of each candidate, raw units, shape (C,)."""
        return self._moments[0]

    @property
    def std(self) -> Floats:
        """Standard deviation of each candidate's score, raw units, shape (C,)."""
        return self._moments[1]

    @property
    def normalised_mean(self) -> Floats:
        """Expected score in normalised units, shape (C,): about 0 for a median candidate, 1 for the best one."""
        post = self._posterior
        return np.asarray(post.weight @ ((post.mean - post.offset[:, None]) / post.scale[:, None]))

    def interval(self, level: float = 0.8) -> tuple[Floats, Floats]:
        """Lower and upper end of the central interval of each score, raw units, each of shape (C,)."""
        if not 0 < level < 1:
            raise ValueError(f"level must lie between 0 and 1. Got {level} instead.")
        width = float(ndtri(0.5 + level / 2))
        return self.mean - width * self.std, self.mean + width * self.std

    @property
    def seconds(self) -> Floats:
        """Expected fit seconds of each candidate (median), shape (C,); NaN where nothing is known."""
        return np.exp(self._time_moments[0])

    @property
    def seconds_std(self) -> Floats:
        """Standard deviation of the logarithm of the fit seconds, shape (C,)."""
        return self._time_moments[1]

    def _check_index(self, index: int) -> int:
        if not 0 <= int(index) < len(self):
            raise ValueError(f"index must be the position of one of {len(self)} candidates. Got {index} instead.")
        return int(index)

    @cached_property
    def _moments(self) -> tuple[Floats, Floats]:
        post = self._posterior
        mean = post.weight @ post.mean
        variance = post.weight @ (post.std**2 + (post.mean - mean) ** 2)
        return mean, np.sqrt(variance)

    @cached_property
    def _posterior(self) -> _Posterior:
        seen = [*self.tried, *self.failed]
        return _condition(self, seen) if seen else _unconditioned(self.prior)

    @cached_property
    def _time_moments(self) -> tuple[Floats, Floats]:
        prior = self.seconds_prior
        if prior is None:
            return np.full(len(self), math.nan), np.full(len(self), math.nan)
        speed = prior.speed_std**2
        variance = prior.covariance.diagonal + speed
        if not self.timed:
            return prior.mean, np.sqrt(variance)
        seen = list(self.timed)
        cross = self._timed_columns + speed  # (C, n)
        within = cross[seen] + prior.noise * np.eye(len(seen))
        gain = np.linalg.solve(within, cross.T)  # (n, C)
        mean = prior.mean + (np.array(self.log_seconds) - prior.mean[seen]) @ gain
        return mean, np.sqrt(np.maximum(variance - np.einsum("cn,nc->c", cross, gain), _TINY))


def _unconditioned(prior: Prior) -> _Posterior:
    """Before any trial the components need not be told apart: their displacements enter the variance."""
    scales, log_weights, offsets, offset_std = prior.scale.grid(None, prior.n_scales)
    weight = np.exp(log_weights) / np.exp(log_weights).sum()
    mean, variance = prior.mean, prior.covariance.diagonal
    if len(prior.shifts):
        mean, variance = mean + prior.shifts.mean(axis=0), variance + prior.shifts.var(axis=0)
    std = np.sqrt(scales[:, None] ** 2 * variance + offset_std**2)
    return _Posterior(weight, offsets[:, None] + scales[:, None] * mean, std, scales, offsets)


def _condition(belief: Belief, seen: list[int]) -> _Posterior:
    """Exact update for each scale and component; unlikely pairs of them are dropped."""
    prior, n_scored = belief.prior, len(belief.tried)
    first = belief.raw_scores[0] if n_scored else None
    scales, log_weights, offsets, offset_std = prior.scale.grid(first, prior.n_scales)
    n, B = len(seen), len(scales)
    scored = np.zeros(n)
    scored[:n_scored] = 1.0
    shared = (offset_std / scales) ** 2  # (B,) variance of the offset in units of the scale
    errors = np.array(belief.standard_errors)
    noise = np.full((B, n), 0.25)  # a failure says "about -1", not more
    noise[:, :n_scored] = np.where(np.isfinite(errors), (errors / scales[:, None]) ** 2 + 1e-6, prior.noise)
    within = belief._columns[seen] + shared[:, None, None] * np.outer(scored, scored)  # (B, n, n)
    within[:, np.arange(n), np.arange(n)] += noise
    factor = np.linalg.cholesky(within)  # (B, n, n)
    expected = prior.mean[seen][None, :] + (prior.shifts[:, seen] if len(prior.shifts) else np.zeros((1, n)))  # (I, n)
    target = np.full((B, n), -1.0)
    target[:, :n_scored] = (np.array(belief.raw_scores)[None, :] - offsets[:, None]) / scales[:, None]
    residual = target[:, :, None] - expected.T[None, :, :]  # (B, n, I)
    white = np.linalg.solve(factor, residual)  # (B, n, I)
    log_det = np.log(np.diagonal(factor, axis1=1, axis2=2)).sum(axis=1)
    log_like = log_weights - log_det - n_scored * np.log(scales)
    log_like = log_like[:, None] - 0.5 * np.square(white).sum(axis=1)  # (B, I)
    b, i, weight = _likely_pairs(log_like, len(prior.mean))
    cross = belief._columns.T[None] + shared[:, None, None] * scored[None, :, None]  # (B, n, C)
    used = np.unique(b)
    gain = np.zeros((B, n, len(prior.mean)))
    gain[used] = np.linalg.solve(factor[used], cross[used])  # (B, n, C)
    variance = prior.covariance.diagonal + shared[:, None] - np.square(gain).sum(axis=1)  # (B, C)
    centre = np.empty((len(b), len(prior.mean)))  # (K, C)
    for k in used:
        centre[b == k] = white[k][:, i[b == k]].T @ gain[k]
    centre += prior.mean + (prior.shifts[i] if len(prior.shifts) else 0.0)
    std = scales[:, None] * np.sqrt(np.maximum(variance, 1e-9))
    mean = offsets[b][:, None] + scales[b][:, None] * centre
    return _Posterior(weight, mean, std[b], scales[b], offsets[b])


def _likely_pairs(log_like: Floats, n_candidates: int) -> tuple[Any, Any, Floats]:
    """The most likely (scale, component) pairs and their normalised weights."""
    flat = log_like.ravel()
    weight = np.exp(flat - flat.max())
    order = np.argsort(-weight)[: max(16, _MAX_CELLS // n_candidates)]
    order = order[weight[order] > _MIN_WEIGHT]
    b, i = np.divmod(order, log_like.shape[1])
    return b, i, weight[order] / weight[order].sum()
