"""When going on is not worth it: for a trial that is clearly behind, for a search that gains less than the noise."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import numpy as np

from autometa.folds import Rival
from autometa.metrics import Metric
from autometa.records import Evaluation
from autometa.tuning.library import entry_score, library

_MIN_TRIALS = 20
_PATIENCE = 15
_NO_GAIN = 0.02
_ROUNDING = 1e-9


def noise(good: Sequence[Evaluation], metric: str) -> float:
    """How much the difference of two good candidates varies from split to split.

    That of the best and the others, since some splits are harder for all of them.

    Parameters
    ----------
    good : sequence of Evaluation
        Best first, at least one.
    metric : str
    """
    scores = np.array([e.scores[metric] for e in good])  # (n_candidates, n_splits)
    if len(good) < 3 or scores.shape[1] < 2:
        return float(np.std(scores[0]))
    return float(np.median(np.std(scores[1:] - scores[0], axis=1, ddof=1)))


def rival(evaluations: Sequence[Evaluation], metric: str, family: str, *, keeps_all: bool = False) -> Rival | None:
    """What a candidate is up against; ``None`` where nothing is known.

    Parameters
    ----------
    evaluations : sequence of Evaluation
    metric : str
    family : str
        Of the candidate.
    keeps_all : bool, default=False
        Whether its models are wanted whatever its score.
    """
    good = library(evaluations, metric)
    if not good or not np.isfinite(good[0].scores[metric]).all():
        return None
    spread = noise(good, metric)
    if not (np.isfinite(spread) and spread > 0):
        return None
    keep_from = -math.inf if keeps_all else entry_score(evaluations, metric, family)
    return Rival(metric, good[0].scores[metric], spread, keep_from)


def reason_to_end(evaluations: Sequence[Evaluation], metric: Metric, expected_gain: Callable[..., float]) -> str:
    """Why a search need not go on; empty where it may gain.

    Parameters
    ----------
    evaluations : sequence of Evaluation
        In the order in which they ended.
    metric : Metric
    expected_gain : callable
        The gain that one more trial promises; ``wide=True``: of all that could be tried.
    """
    scores = np.array([e.score(metric.name) if e.ok else -np.inf for e in evaluations])
    if len(scores) < _MIN_TRIALS or not np.isfinite(scores[:-_PATIENCE]).any():
        return ""
    good = library(evaluations, metric.name)
    if good[0].score(metric.name) >= metric.best - _ROUNDING:
        return f"Stopped early: {metric.name} cannot be better than {metric.best:g}."
    error = noise(good, metric.name) / math.sqrt(len(good[0].scores[metric.name]))
    enough = _NO_GAIN * error
    if not np.max(scores) - np.max(scores[:-_PATIENCE]) < enough:
        return ""
    gain = expected_gain()
    gain = expected_gain(wide=True) if gain < enough else gain
    if not gain < enough:
        return ""
    return f"Stopped early: the expected gain of a further trial, {gain:.2g}, is far below the noise, {error:.2g}."
