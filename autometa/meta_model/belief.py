"""What is believed of every candidate's score on one dataset, and how a measured score changes it.

A dataset's raw scores are ``offset + scale * f``, with ``f`` in normalised units (0 = the median candidate, 1 = the
best) and offset and scale unknown. Given the scale everything is Gaussian and exact; the scale lives on a grid. The
prior of ``f`` is a mixture of equal Gaussians around the forecast, each displaced by the residuals of one earlier
dataset (a smoothed bootstrap of what forecasts get wrong); with no displacements it is one Gaussian.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import numpy as np
from scipy.special import ndtr, ndtri

from autometa.meta_model.calibration import Calibration
from autometa.meta_model.conditioning import Posterior, Seen, condition, unconditioned
from autometa.meta_model.outputs import Hint, TrainRows, output_name
from autometa.meta_model.priors import Covariance as Covariance
from autometa.meta_model.priors import Floats as Floats
from autometa.meta_model.priors import Prior as Prior
from autometa.meta_model.priors import ScalePrior as ScalePrior
from autometa.meta_model.priors import SecondsPrior as SecondsPrior
from autometa.meta_model.priors import kernel as kernel

_TINY = 1e-12


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
    hints: tuple[Hint, ...] = ()
    _columns: Any = None
    _timed_columns: Any = None
    _hinted_columns: Any = None

    def __len__(self) -> int:
        return len(self.prior.mean)

    def observe(
        self,
        index: int,
        raw_score: float,
        standard_error: float | None = None,
        *,
        seconds: float | None = None,
        output: str | TrainRows | None = None,
    ) -> Belief:
        """The belief after one more trial, or after its score in an auxiliary output.

        Parameters
        ----------
        index : int
            Position of the candidate.
        raw_score : float
            As measured, higher = better.
        standard_error : float, optional
            Of the raw score. Default: a small share of the dataset's scale.
        seconds : float, optional
            Measured: of a fit and the prediction of the rows held out.
        output : str or TrainRows, optional
            What was measured, where it is not the target: another metric by its name, or the target's metric after
            training on fewer rows; one of :attr:`outputs`. The candidate does not count as tried.

        Raises
        ------
        ValueError
            The index, the score or the output is not usable; report a failed trial with :meth:`observe_failure`.
        """
        index = self._check_index(index)
        if not math.isfinite(raw_score):
            raise ValueError(f"raw_score must be finite. Got {raw_score}; report a failure with observe_failure.")
        error = math.nan if standard_error is None else float(standard_error)
        later = self.observe_seconds(index, seconds) if seconds is not None else self
        if output is not None:
            return later._hinted(Hint(index, output_name(output), float(raw_score), error))
        n = len(self.tried)
        column = self.prior.covariance.column(index)[:, None]
        columns = column if self._columns is None else np.insert(self._columns, n, column[:, 0], axis=1)
        return replace(
            later, tried=(*self.tried, index), raw_scores=(*self.raw_scores, float(raw_score)),
            standard_errors=(*self.standard_errors, error), _columns=columns,
        )  # fmt: skip

    def _hinted(self, hint: Hint) -> Belief:
        if hint.output not in self.outputs:
            raise ValueError(f"output must be one of {', '.join(self.outputs) or 'none'}. Got {hint.output!r} instead.")
        column = self.prior.covariance.column(hint.index)[:, None]
        columns = column if self._hinted_columns is None else np.hstack([self._hinted_columns, column])
        return replace(self, hints=(*self.hints, hint), _hinted_columns=columns)

    def observe_failure(self, index: int) -> Belief:
        """The belief after a trial that ended without a score: never proposed again, and its like looks worse."""
        index = self._check_index(index)
        column = self.prior.covariance.column(index)[:, None]
        columns = column if self._columns is None else np.hstack([self._columns, column])
        return replace(self, failed=(*self.failed, index), _columns=columns)

    def observe_seconds(self, index: int, seconds: float) -> Belief:
        """The belief after the seconds of a fit were measured; a time that is not positive is ignored."""
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

    def expected_improvement(self, *, bonus: Floats | float = 0.0, blur: float = 0.0) -> Floats:
        """Expected gain over the best score found, raw units, shape (C,); before the first score, the mean.

        Parameters
        ----------
        bonus : float or ndarray of shape (C,)
            Added to each score, normalised units: what a candidate is worth beside its own score.
        blur : float
            Standard deviation of that, normalised units.
        """
        if not self.tried:
            return self.mean.copy()
        post = self._posterior
        scale = post.scale[:, None]
        std = np.hypot(post.std, scale * blur)
        z = (post.mean + scale * bonus - self.incumbent) / std
        gain = std * (z * ndtr(z) + np.exp(-0.5 * z * z) / math.sqrt(2 * math.pi))
        return np.asarray(post.weight @ gain)

    @property
    def outputs(self) -> tuple[str, ...]:
        """Names of the auxiliary outputs that :meth:`observe` takes; fewer training rows are ``"@128"``, say."""
        return tuple(self.prior.outputs)

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
    def downside(self) -> Floats:
        """Spread of each score below its mean, raw units, shape (C,): at least :attr:`std`, more where a candidate can
        fail badly, which the Gaussian part does not tell."""
        tail = self.prior.tail
        if tail is None:
            return self.std
        if len(tail) < len(self):  # candidates that were added to the prior fail like the others
            tail = np.pad(tail, (0, len(self) - len(tail)), constant_values=float(tail.mean()))
        scale = float(self._posterior.weight @ self._posterior.scale)
        return np.sqrt(self.std**2 + (scale * tail) ** 2)

    @property
    def normalised_mean(self) -> Floats:
        """Expected score in normalised units, shape (C,): about 0 for a median candidate, 1 for the best one."""
        post = self._posterior
        return np.asarray(post.weight @ ((post.mean - post.offset[:, None]) / post.scale[:, None]))

    def interval(self, level: float = 0.8) -> tuple[Floats, Floats]:
        """Lower and upper end of the central interval of each measured score, raw units, each of shape (C,).

        Calibrated on datasets that the forecast had not seen, by the number of trials so far, where the meta-model
        brings a calibration.
        """
        n_seen = len(self.tried) + len(self.failed)
        low, high = _ends(level, self.prior.calibration, n_seen, probed=bool(self.hints))
        return self.mean + low * self.downside, self.mean + high * self.std

    @property
    def seconds(self) -> Floats:
        """Expected seconds of a fit and the prediction of the rows held out (median), shape (C,); NaN where nothing is
        known."""
        return np.exp(self._time_moments[0])

    @property
    def seconds_std(self) -> Floats:
        """Standard deviation of the logarithm of the seconds, shape (C,)."""
        return self._time_moments[1]

    def seconds_interval(self, level: float = 0.8) -> tuple[Floats, Floats]:
        """Lower and upper end of the central interval of the seconds, each of shape (C,); NaN if unknown."""
        calibration = None if self.seconds_prior is None else self.seconds_prior.calibration
        low, high = _ends(level, calibration, len(self.timed))
        mean, std = self._time_moments
        return np.exp(mean + low * std), np.exp(mean + high * std)

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
    def _posterior(self) -> Posterior:
        parts = [part for part in (self._columns, self._hinted_columns) if part is not None]
        if not parts:
            return unconditioned(self.prior)
        seen = Seen(self.tried, self.raw_scores, self.standard_errors, self.failed, self.hints, np.hstack(parts))
        return condition(self.prior, seen)

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


def _ends(level: float, calibration: Calibration | None, n_trials: int, *, probed: bool = False) -> tuple[float, float]:
    """Ends of the central interval in standard deviations from the mean."""
    if not 0 < level < 1:
        raise ValueError(f"level must lie between 0 and 1. Got {level} instead.")
    if calibration is not None:
        return calibration.ends(level, n_trials, probed=probed)
    width = float(ndtri(0.5 + level / 2))
    return -width, width
