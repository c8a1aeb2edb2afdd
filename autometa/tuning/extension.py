"""A belief over more candidates: configurations outside the pool are read through their neighbours in it."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from autometa.family import Candidate
from autometa.tuning.spaces import Floats, Spaces

if TYPE_CHECKING:
    from autometa.meta_model.belief import Belief, Covariance

_NUGGET = 1e-2
_LENGTH_SCALE = 0.5


class _Bridge(NamedTuple):
    """Newcomers (N) read through known candidates (C)."""

    weights: Floats
    """Interpolation weights, shape (N, C)."""
    whitened: Floats
    """Whitened kernel between all candidates and the known ones, zeros for the known, shape (C + N, C)."""
    vectors: Floats
    """Encoded configurations, shape (C + N, D)."""
    family: np.ndarray[tuple[int], np.dtype[np.int64]]
    """Number of the family, shape (C + N,)."""
    precisions: list[tuple[np.ndarray[tuple[int], np.dtype[np.intp]], Floats]]
    """For each family with known members: their positions (k) and the inverse of their kernel, (k, k)."""


def extend(belief: Belief, candidates: Sequence[Candidate], new: Sequence[Candidate], spaces: Spaces) -> Belief:
    """The belief over ``candidates`` followed by ``new``, before any trial.

    Within a family a newcomer's forecast, covariance and displacements are kriged from those of the known members
    (half of the kernel is common to the family). What this leaves open is estimated by leaving out each known member
    in turn. A family without a known member gets the mean over all candidates and the largest variance.

    Parameters
    ----------
    belief : Belief
        Untouched by trials (but for what earlier fits took), over ``candidates``.
    candidates, new : sequence of Candidate
    spaces : Spaces
    """
    if not new:
        return belief
    bridge = _bridge(candidates, new, spaces)
    prior, seconds = belief.prior, belief.seconds_prior
    shifts = prior.shifts
    if len(shifts):
        shifts = np.hstack([shifts, shifts @ bridge.weights.T])
    later = replace(
        prior,
        mean=_extended_mean(prior.mean, bridge),
        covariance=_extended_covariance(prior.covariance, prior.mean, prior.shifts, bridge),
        shifts=shifts,
    )
    if seconds is not None:
        covariance = _extended_covariance(seconds.covariance, seconds.mean, np.zeros((0, 0)), bridge)
        seconds = replace(seconds, mean=_extended_mean(seconds.mean, bridge), covariance=covariance)
    extended = type(belief)(later, seconds)
    for hint in belief.hints:
        extended = extended.observe(hint.index, hint.raw_score, hint.standard_error, output=hint.output)
    for index, log_seconds in zip(belief.timed, belief.log_seconds, strict=True):
        extended = extended.observe_seconds(index, math.exp(log_seconds))
    return extended


def _bridge(candidates: Sequence[Candidate], new: Sequence[Candidate], spaces: Spaces) -> _Bridge:
    from autometa.meta_model.belief import kernel

    everyone = [*candidates, *new]
    names = list(dict.fromkeys(c.family for c in everyone))
    family = np.array([names.index(c.family) for c in everyone], dtype=np.int64)
    vectors = spaces.vectors(everyone)
    n = len(candidates)
    weights, whitened = np.zeros((len(new), n)), np.zeros((len(everyone), n))
    precisions = []
    for number in range(len(names)):
        known = np.flatnonzero(family[:n] == number)
        fresh = np.flatnonzero(family[n:] == number)
        if not len(known):
            continue
        root = np.linalg.cholesky(kernel(vectors[known], vectors[known], _LENGTH_SCALE) + _NUGGET * np.eye(len(known)))
        inverse = np.linalg.inv(root)
        precisions.append((known, inverse.T @ inverse))
        if len(fresh):
            cross = inverse @ kernel(vectors[known], vectors[n + fresh], _LENGTH_SCALE)  # (k, f)
            weights[np.ix_(fresh, known)] = (inverse.T @ cross).T
            whitened[np.ix_(n + fresh, known)] = cross.T
    return _Bridge(weights, whitened, vectors, family, precisions)


def _extended_mean(mean: Floats, bridge: _Bridge) -> Floats:
    n = len(mean)
    centre = np.full(int(bridge.family.max()) + 1, float(mean.mean()))
    for known, _ in bridge.precisions:
        centre[bridge.family[known[0]]] = mean[known].mean()
    deviation = mean - centre[bridge.family[:n]]
    return np.concatenate([mean, centre[bridge.family[n:]] + bridge.weights @ deviation])


def _extended_covariance(covariance: Covariance, mean: Floats, shifts: Floats, bridge: _Bridge) -> Covariance:
    from autometa.meta_model.belief import Covariance

    root = _closed_root(covariance)
    n = len(root)
    spread = np.full(int(bridge.family.max()) + 1, float(np.sqrt(covariance.diagonal.max())))
    for known, precision in bridge.precisions:
        if len(known) > 2:
            parts = [root[known], (mean[known] - mean[known].mean())[:, None]]
            parts += [shifts[:, known].T / np.sqrt(len(shifts))] if len(shifts) else []
            missed = precision @ np.hstack(parts)  # (k, R + 1 + I)
            open_ = np.square(missed).sum(axis=1) / np.diag(precision)
            spread[bridge.family[known[0]]] = float(np.sqrt(open_.mean()))
    own = np.concatenate([np.zeros(n), spread[bridge.family[n:]]])
    full = np.vstack([root, bridge.weights @ root])
    return Covariance(full, own, bridge.family, bridge.vectors, bridge.whitened, _LENGTH_SCALE)


def _closed_root(covariance: Covariance) -> Floats:
    """The root with what it leaves open as further columns, one for each candidate concerned."""
    own = np.maximum(covariance.diagonal - np.square(covariance.root).sum(axis=1), 0.0)
    outside = np.flatnonzero(own > 0)
    columns = np.zeros((len(own), len(outside)))
    columns[outside, np.arange(len(outside))] = np.sqrt(own[outside])
    return np.hstack([covariance.root, columns])
