"""The exact update of a belief, given the scale, and the mixture over scales and components."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from autometa.meta_model.outputs import Hint, Output, levels, names_of
from autometa.meta_model.priors import Floats, Prior

_MAX_CELLS = 20_000
_MIN_WEIGHT = 1e-3
_FAILURE_NOISE = 0.25
"""Variance of a failure's score: it says "about -1", not more."""
_FAILURE_SCORE = -1.0
_RANGE = 2.0
"""From the best score of an output down to what is no longer told apart, in units of its scale: from 1 to -1, as in
the tables that relations are learned from."""


@dataclass(frozen=True, eq=False)
class Posterior:
    """Mixture over scales and components: weights (K,), means (K, C) and standard deviations (K, C), raw units."""

    weight: Floats
    mean: Floats
    std: Floats
    scale: Floats
    offset: Floats


@dataclass(frozen=True, eq=False)
class Seen:
    """What was observed: scores, then failures, then scores in auxiliary outputs.

    Parameters
    ----------
    tried, failed : sequence of int
    raw_scores, standard_errors : sequence of float
        Of ``tried``; NaN errors are unknown.
    hints : sequence of Hint
    columns : ndarray of shape (C, n)
        Covariance of every candidate with each that was observed.
    """

    tried: Sequence[int]
    raw_scores: Sequence[float]
    standard_errors: Sequence[float]
    failed: Sequence[int]
    hints: Sequence[Hint]
    columns: Floats

    @property
    def index(self) -> list[int]:
        """Positions of the candidates, shape (n,)."""
        return [*self.tried, *self.failed, *(hint.index for hint in self.hints)]


@dataclass(frozen=True, eq=False)
class _Rows:
    """Observations in units of their scales, for each of B scales of the target and its outputs.

    ``loading`` (n,) of the normalised score, ``centre`` (n,) of the rest, ``offset`` (B, n) of the unknown offset (one
    standard deviation of it), ``noise`` (B, n, n), ``value`` (B, n) and the logarithm of all scales, (B,).
    """

    loading: Floats
    centre: Floats
    offset: Floats
    noise: Floats
    value: Floats
    log_scales: Floats


def unconditioned(prior: Prior) -> Posterior:
    """Before any trial the components need not be told apart: their displacements enter the variance."""
    scales, log_weights, offsets, offset_std = prior.scale.grid(None, prior.n_scales)
    weight = np.exp(log_weights) / np.exp(log_weights).sum()
    mean, variance = _opened(prior), prior.covariance.diagonal
    if len(prior.shifts):
        mean, variance = mean + prior.shifts.mean(axis=0), variance + prior.shifts.var(axis=0)
    std = np.sqrt(scales[:, None] ** 2 * variance + offset_std**2)
    return Posterior(weight, offsets[:, None] + scales[:, None] * mean, std, scales, offsets)


def _opened(prior: Prior) -> Floats:
    """The forecast of a single choice."""
    if prior.opening is None:
        return prior.mean
    # candidates that were added to the prior have none
    return np.asarray(prior.mean + np.pad(prior.opening, (0, len(prior.mean) - len(prior.opening))))


def condition(prior: Prior, seen: Seen) -> Posterior:
    """Exact update for each scale and component; unlikely pairs of them are dropped."""
    first = seen.raw_scores[0] if len(seen.tried) else None
    scales, log_weights, offsets, offset_std = prior.scale.grid(first, prior.n_scales)
    grid = levels(len(names_of(seen.hints)))
    scales, offsets = np.repeat(scales, len(grid)), np.repeat(offsets, len(grid))  # (B,)
    log_weights = np.repeat(log_weights, len(grid))
    rows = _rows(prior, seen, scales, offsets, offset_std, np.tile(grid, (len(scales) // len(grid), 1)))
    index = seen.index
    within = seen.columns[index] * np.outer(rows.loading, rows.loading)  # (n, n)
    within = within + rows.offset[:, :, None] * rows.offset[:, None, :] + rows.noise  # (B, n, n)
    factor = np.linalg.cholesky(within)
    inverse = np.linalg.inv(factor)  # (B, n, n): a product is faster than solving for every candidate
    start = prior.mean if len(seen.tried) or len(seen.failed) else _opened(prior)
    shifts = prior.shifts if len(prior.shifts) else np.zeros((1, len(start)))
    expected = rows.loading * (start + shifts)[:, index] + rows.centre  # (I, n)
    white = inverse @ (rows.value[:, :, None] - expected.T[None, :, :])  # (B, n, I)
    log_det = np.log(np.diagonal(factor, axis1=1, axis2=2)).sum(axis=1)
    log_like = log_weights - log_det - rows.log_scales
    log_like = log_like[:, None] - 0.5 * np.square(white).sum(axis=1)  # (B, I)
    b, i, weight = _likely_pairs(log_like, len(start))
    mean, std = np.empty((len(b), len(start))), np.empty((len(b), len(start)))  # (K, C)
    cross = (seen.columns * rows.loading).T  # (n, C)
    for k in np.unique(b):
        at, shared = b == k, offset_std / scales[k]
        gain = inverse[k] @ cross + shared * (inverse[k] @ rows.offset[k])[:, None]  # (n, C)
        variance = prior.covariance.diagonal + shared**2 - np.einsum("nc,nc->c", gain, gain)  # (C,)
        std[at] = scales[k] * np.sqrt(np.maximum(variance, 1e-9))
        mean[at] = offsets[k] + scales[k] * (white[k][:, i[at]].T @ gain)
    mean += scales[b][:, None] * (start + shifts[i])
    return Posterior(weight, mean, std, scales[b], offsets[b])


def _rows(prior: Prior, seen: Seen, scales: Floats, offsets: Floats, offset_std: float, grid: Floats) -> _Rows:
    n_scored, n_failed = len(seen.tried), len(seen.failed)
    n, B = n_scored + n_failed + len(seen.hints), len(scales)
    errors = np.array(seen.standard_errors)
    noise, value, offset = np.full((B, n), _FAILURE_NOISE), np.full((B, n), _FAILURE_SCORE), np.zeros((B, n))
    noise[:, :n_scored] = np.where(
        np.isfinite(errors), prior.noise_share * (errors / scales[:, None]) ** 2 + 1e-6, prior.noise
    )
    value[:, :n_scored] = (np.array(seen.raw_scores)[None, :] - offsets[:, None]) / scales[:, None]
    offset[:, :n_scored] = offset_std / scales[:, None]
    log_scales = n_scored * np.log(scales)
    if not seen.hints:
        full = np.zeros((B, n, n))
        full[:, np.arange(n), np.arange(n)] = noise
        return _Rows(np.ones(n), np.zeros(n), offset, full, value, log_scales)
    return _with_hints(prior, seen, _Rows(np.ones(n), np.zeros(n), offset, noise, value, log_scales),
                       (scales, offsets, offset_std, grid))  # fmt: skip


def _with_hints(prior: Prior, seen: Seen, rows: _Rows, scale: tuple[Floats, Floats, float, Floats]) -> _Rows:
    """The rows with those of the auxiliary outputs filled in, and the noise in full."""
    scales, offsets, offset_std, grid = scale
    n_plain, n = len(seen.tried) + len(seen.failed), rows.noise.shape[1]
    outputs = {name: (prior.outputs[name], number) for number, name in enumerate(names_of(seen.hints))}
    loading, centre, log_scales = rows.loading.copy(), rows.centre.copy(), rows.log_scales.copy()
    full = np.zeros((*rows.noise.shape, n))
    for name, (output, number) in outputs.items():
        log_scale = output.log_scale(np.log(scales), grid[:, number])  # (B,)
        size = np.exp(log_scale)
        at = [n_plain + j for j, hint in enumerate(seen.hints) if hint.output == name]
        own = (output.offset_std / size) ** 2
        full[:, np.array(at)[:, None], np.array(at)[None, :]] += own[:, None, None]
        for j in at:
            hint = seen.hints[j - n_plain]
            loading[j], centre[j] = output.relation.loading, output.centre_of(hint.index)
            rows.value[:, j] = (hint.raw_score - output.offset(offsets)) / size
            rows.offset[:, j] = output.offset_loading * offset_std / size
            known = math.isfinite(hint.standard_error)
            rows.noise[:, j] = prior.noise_share * (hint.standard_error / size) ** 2 + 1e-6 if known else prior.noise
            log_scales += log_scale
        rows.value[:, at] = np.maximum(rows.value[:, at], rows.value[:, at].max(axis=1, keepdims=True) - _RANGE)
    _correlate(full, rows.noise, seen, outputs)
    full[:, n_plain:, n_plain:] += _residuals(prior, seen)
    return _Rows(loading, centre, rows.offset, full, rows.value, log_scales)


def _residuals(prior: Prior, seen: Seen) -> Floats:
    """Covariance of what the auxiliary outputs have of their own, shape (n_hints, n_hints)."""
    at = [hint.index for hint in seen.hints]
    std = np.sqrt(prior.covariance.diagonal[at])
    n_plain = len(seen.tried) + len(seen.failed)
    alike = seen.columns[np.ix_(at, range(n_plain, n_plain + len(at)))] / np.outer(std, std)
    relations = [prior.outputs[hint.output].relation for hint in seen.hints]
    same = np.array([[a.output == b.output for b in seen.hints] for a in seen.hints])
    share = np.array([r.residual_correlation for r in relations])
    correlation = np.where(same, share * alike, 0.0)
    np.fill_diagonal(correlation, 1.0)
    size = np.sqrt([r.residual for r in relations])
    return np.asarray(correlation * np.outer(size, size))


def _correlate(full: Floats, noise: Floats, seen: Seen, outputs: Mapping[str, tuple[Output, int]]) -> None:
    """Noise of all rows, in place: that of one trial's scores is correlated, they come from the same rows."""
    index, n_scored, n_plain = seen.index, len(seen.tried), len(seen.tried) + len(seen.failed)
    share = np.ones(len(index))  # of the noise that a trial's scores have in common; all of the target's
    share[n_plain:] = [outputs[hint.output][0].relation.noise_correlation for hint in seen.hints]
    for i in range(len(index)):
        full[:, i, i] += noise[:, i]
        for j in range(max(i + 1, n_plain), len(index)):
            if index[i] == index[j] and not n_scored <= i < n_plain:
                full[:, i, j] += share[i] * share[j] * np.sqrt(noise[:, i] * noise[:, j])
                full[:, j, i] = full[:, i, j]


def _likely_pairs(log_like: Floats, n_candidates: int) -> tuple[Any, Any, Floats]:
    """The most likely (scale, component) pairs and their normalised weights."""
    flat = log_like.ravel()
    weight = np.exp(flat - flat.max())
    order = np.argsort(-weight)[: max(16, _MAX_CELLS // n_candidates)]
    order = order[weight[order] > _MIN_WEIGHT]
    b, i = np.divmod(order, log_like.shape[1])
    return b, i, weight[order] / weight[order].sum()
