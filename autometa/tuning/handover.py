"""When the study's own trials know more than earlier datasets: a surrogate of the study, and who leads."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

import numpy as np
from scipy.special import log_ndtr, ndtr

from autometa.family import Candidate
from autometa.tuning.history import Outcome, floor, thinned
from autometa.tuning.spaces import Floats, Spaces

if TYPE_CHECKING:
    from autometa.meta_model.belief import Belief
    from autometa.tuning.knowledge import Knowledge

_MAX_LOG_RATIO = 3.0
_TOLERANCE = 0.1
_LENGTHS = (0.2, 0.4, 0.8, 1.6, 3.2)
_NOISES = (1e-4, 1e-2, 1e-1, 0.5)
_MIN_WEIGHT = 1e-2
_MIN_BEFORE_COMPARING = 4
_LOG_SQRT_2PI = 0.5 * math.log(2 * math.pi)


@dataclass(frozen=True)
class Forecasts:
    """What a surrogate expects of candidates, raw units: means, standard deviations (both (C,)) and noise."""

    mean: Floats
    std: Floats
    noise: float


class Surrogate:
    """A Gaussian process fitted to the trials of one study only.

    Matérn 5/2 over encoded configurations, all families equally wide, about an unknown constant, averaged over a grid
    of length scales and noises with the weights of their marginal likelihoods, the variance at its mode: closed forms
    of one eigendecomposition per length scale. Scores far below the median are drawn up (see
    :func:`autometa.tuning.history.floor`), since how bad a bad configuration is says little about the good ones.

    Parameters
    ----------
    spaces : Spaces
    history : sequence of Outcome
        Those without a score are ignored; at least two must have one.
    spread : float, default=0
        Standard deviation that is expected among candidates, raw units: trials that gathered in one place do not make
        other places look alike.
    """

    def __init__(self, spaces: Spaces, history: Sequence[Outcome], *, spread: float = 0.0) -> None:
        scored = [outcome for outcome in history if outcome.scored]
        if len(scored) < 2:
            raise ValueError(f"A surrogate must be given at least 2 scored trials. Got {len(scored)} instead.")
        self.spaces = spaces
        scores = np.array([outcome.score for outcome in scored])
        self.spread, self.floor = spread, floor(scores, spread)
        self.scores = np.maximum(scores, self.floor)
        self._vectors = self._encode([outcome.candidate for outcome in scored])
        self._centre, self._unit = float(self.scores.mean()), max(float(self.scores.std()), 0.5 * spread) or 1.0
        self._fits = _fits(_distances(self._vectors, self._vectors), (self.scores - self._centre) / self._unit)

    @property
    def incumbent(self) -> float:
        """The best score, raw units."""
        return float(self.scores.max())

    def forecast(self, candidates: Sequence[Candidate]) -> Forecasts:
        """Means and standard deviations of the noise-free scores."""
        distances = _distances(self._encode(candidates), self._vectors)  # (C, n)
        parts = [fit.predict(distances) for fit in self._fits]
        weight = np.array([fit.weight for fit in self._fits])
        means, variances = np.stack([m for m, _ in parts]), np.stack([v for _, v in parts])  # (F, C)
        mean = weight @ means
        variance = weight @ (variances + np.square(means - mean))
        noise = float(weight @ np.array([fit.variance * fit.noise for fit in self._fits]))
        std = self._unit * np.sqrt(np.maximum(variance, 1e-12))
        return Forecasts(self._centre + self._unit * mean, std, self._unit * math.sqrt(noise))

    def expected_improvement(self, candidates: Sequence[Candidate]) -> Floats:
        """Expected gain over the best score, raw units, shape (len(candidates),)."""
        forecast = self.forecast(candidates)
        return _improvement(forecast.mean - self.incumbent, forecast.std)

    def _encode(self, candidates: Sequence[Candidate]) -> Floats:
        return self.spaces.vectors(candidates) * self.spaces.even_scale

    def shortlist(self, candidates: Sequence[Candidate], n: int, *, seconds: Floats | None = None) -> list[int]:
        """Positions of the ``n`` most promising candidates, per second where those are given, in their order.

        As the most likely fit alone sees them.
        """
        if len(candidates) <= n:
            return list(range(len(candidates)))
        best = max(self._fits, key=lambda fit: fit.weight)
        mean, variance = best.predict(_distances(self._encode(candidates), self._vectors))
        top = (self.incumbent - self._centre) / self._unit
        value = _improvement(mean - top, np.sqrt(np.maximum(variance, 1e-12)))
        value = value if seconds is None else value / seconds
        return [int(i) for i in np.sort(np.argsort(-value, kind="stable")[:n])]


@dataclass(frozen=True)
class _Fit:
    """A Gaussian process with fixed length scale and noise (in units of its variance)."""

    length: float
    noise: float
    variance: float
    weight: float
    centre: float
    coefficients: Floats
    """Shape (n,)."""
    half: Floats
    """Half of the inverse covariance, shape (n, n)."""

    def predict(self, distances: Floats) -> tuple[Floats, Floats]:
        """Means and variances at points of given distances to the trials, shape (C, n)."""
        cross = _matern(distances / self.length)
        explained = np.square(cross @ self.half).sum(axis=1)
        return self.centre + cross @ self.coefficients, self.variance * np.maximum(1.0 - explained, 0.0)


def _fits(distances: Floats, target: Floats) -> list[_Fit]:
    """One fit for each length scale and noise that is not much less likely than the best, weights summing to 1."""
    n, found, log_likelihoods = len(target), [], []
    for length in _LENGTHS:
        values, vectors = np.linalg.eigh(_matern(distances / length))
        whole, ones = vectors.T @ target, vectors.sum(axis=0)
        for noise in _NOISES:
            spectrum = np.maximum(values, 0.0) + noise
            centre = float((ones / spectrum) @ whole / (np.square(ones) @ (1 / spectrum)))
            rotated = whole - centre * ones
            # One pseudo-observation of unit variance keeps few equal scores from looking certain.
            variance = (1.0 + float(np.square(rotated) @ (1 / spectrum))) / (n + 1)
            log_likelihoods.append(-0.5 * (n + 1) * math.log(variance) - 0.5 * float(np.log(spectrum).sum()))
            half = vectors / np.sqrt(spectrum)
            found.append(_Fit(length, noise, variance, 0.0, centre, half @ (half.T @ (target - centre)), half))
    weights = np.exp(np.array(log_likelihoods) - max(log_likelihoods))
    kept = [replace(fit, weight=float(w)) for fit, w in zip(found, weights, strict=True) if w > _MIN_WEIGHT]
    total = sum(fit.weight for fit in kept)
    return [replace(fit, weight=fit.weight / total) for fit in kept]


def _improvement(mean: Floats, std: Floats) -> Floats:
    """Expected positive part of Gaussians."""
    z = mean / std
    return np.asarray(std * (z * ndtr(z) + np.exp(-0.5 * z * z) / math.sqrt(2 * math.pi)))


def _distances(a: Floats, b: Floats) -> Floats:
    squares = np.square(a).sum(axis=1)[:, None] + np.square(b).sum(axis=1) - 2 * a @ b.T
    return np.asarray(np.sqrt(np.maximum(squares, 0.0)))


def _matern(distance: Floats) -> Floats:
    scaled = math.sqrt(5) * distance
    return np.asarray((1 + scaled + scaled**2 / 3) * np.exp(-scaled))


@dataclass
class Handover:
    """Who leads: the belief, or the surrogate fitted to this study's own trials.

    After each scored trial both are asked how likely they held its score to be, knowing the trials before it only.
    Both are blurred by the score's standard error and a tenth of the spread among candidates, since finer
    differences do not matter. The surrogate leads once the product of these ratios, over the last ``window`` trials,
    outweighs the prior odds of the belief, and never before ``min_trials`` scored trials; the lead can go back. One
    trial counts for at most a factor of e^3, and scores below the floor count as "below the floor" for both.

    Source: predictive (prequential) model comparison, Dawid 1984.

    Parameters
    ----------
    prior_weight : float, default=0.9
        Prior probability that the belief is the better guide; must lie strictly between 0 and 1.
    min_trials : int, default=10
    window : int, default=25
    """

    prior_weight: float = 0.9
    min_trials: int = 10
    window: int = 25
    log_ratios: dict[int, float] = field(default_factory=dict)
    """Log density under the belief less that under the surrogate, by trial number."""
    compared: set[int] = field(default_factory=set)
    """Trials that were compared, or came too early to be."""
    _last: tuple[Any, Surrogate] | None = field(default=None, repr=False, compare=False)

    def __post_init__(self) -> None:
        if not 0 < self.prior_weight < 1:
            raise ValueError(f"prior_weight must lie between 0 and 1. Got {self.prior_weight} instead.")

    def reset(self) -> None:
        """Forget all comparisons: another study, or another belief."""
        self.log_ratios.clear()
        self.compared.clear()

    def compare(self, history: Sequence[Outcome], knowledge: Knowledge) -> None:
        """Compare belief and surrogate on each of the recent trials that was not compared yet."""
        recent = [i for i, o in enumerate(history) if o.scored and o.complete][-self.window :]
        for i in (i for i in recent if history[i].number not in self.compared):
            outcome, before = history[i], history[:i]
            self.compared.add(outcome.number)
            if sum(o.scored for o in before) >= _MIN_BEFORE_COMPARING:
                belief, position = knowledge.updated(before, more=[outcome.candidate])
                surrogate = self.surrogate(knowledge.spaces, thinned(before), knowledge.spread(before))
                self.record(outcome, belief, position[outcome.candidate], surrogate=surrogate)

    def surrogate(self, spaces: Spaces, history: Sequence[Outcome], spread: float) -> Surrogate:
        """The surrogate of these trials; the last one is remembered."""
        key = (tuple(history), spread)
        if self._last is None or self._last[0] != key:
            self._last = key, Surrogate(spaces, history, spread=spread)
        return self._last[1]

    def record(self, outcome: Outcome, belief: Belief, index: int, *, surrogate: Surrogate) -> None:
        """Compare the forecasts for one more trial; ``belief`` and ``surrogate`` know the trials before it."""
        error = outcome.standard_error if math.isfinite(outcome.standard_error) else 0.0
        error = math.hypot(error, _TOLERANCE * surrogate.spread)
        own = surrogate.forecast([outcome.candidate])
        ratio = _log_density(outcome.score, belief.mean[index], math.hypot(belief.std[index], error), surrogate.floor)
        ratio -= _log_density(outcome.score, own.mean[0], math.hypot(own.std[0], own.noise, error), surrogate.floor)
        self.log_ratios[outcome.number] = float(np.clip(ratio, -_MAX_LOG_RATIO, _MAX_LOG_RATIO))

    def weight(self, history: Sequence[Outcome]) -> float:
        """Posterior probability that the belief is the better guide."""
        recent = [o.number for o in history if o.number in self.log_ratios][-self.window :]
        log_odds = math.log(self.prior_weight / (1 - self.prior_weight))
        log_odds += sum(self.log_ratios[number] for number in recent)
        return 1 / (1 + math.exp(-min(max(log_odds, -50.0), 50.0)))

    def surrogate_leads(self, history: Sequence[Outcome]) -> bool:
        """Whether the next trial should come from the surrogate."""
        n_scored = sum(outcome.scored for outcome in history)
        return n_scored >= self.min_trials and self.weight(history) < 0.5


def _log_density(score: float, mean: float, std: float, limit: float) -> float:
    """Log density of a score under a Gaussian; log probability of "at most ``limit``" for scores below it."""
    std = max(float(std), 1e-12)
    if score < limit:
        return float(log_ndtr((limit - float(mean)) / std))
    return -0.5 * ((score - float(mean)) / std) ** 2 - math.log(std) - _LOG_SQRT_2PI
