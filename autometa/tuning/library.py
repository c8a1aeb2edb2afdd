"""The library that an ensemble is chosen from: which candidates of a search keep the models of their folds."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable

from autometa.records import Evaluation

N_BEST = 12
"""Candidates that are in the library for their score."""
N_OF_FAMILY = 3
"""Candidates of each family that are in it whatever their score: errors of their own help an ensemble."""


def best_first(evaluations: Iterable[Evaluation], metric: str) -> list[Evaluation]:
    """The evaluations that ended well, best mean score first."""
    return sorted((e for e in evaluations if e.ok), key=lambda e: -e.score(metric))


def library(evaluations: Iterable[Evaluation], metric: str) -> list[Evaluation]:
    """The candidates whose models are kept: the best of all and the best of each family, best first.

    Those of the same family err alike; chosen from the best alone, an ensemble is often one of near copies (Caruana
    et al., 2004, choose from all models).

    Parameters
    ----------
    evaluations : iterable of Evaluation
        Only those that ended well count.
    metric : str
    """
    good = best_first(evaluations, metric)
    better, kept = Counter[str](), []
    for rank, evaluation in enumerate(good):
        family = evaluation.candidate.family
        if rank < N_BEST or better[family] < N_OF_FAMILY:
            kept.append(evaluation)
        better[family] += 1
    return kept


def entry_score(evaluations: Iterable[Evaluation], metric: str, family: str) -> float:
    """Score below which a further candidate of a family would not enter the library; -inf where there is room.

    Parameters
    ----------
    evaluations : iterable of Evaluation
    metric : str
    family : str
    """
    scores = sorted(((e.score(metric), e.candidate.family) for e in evaluations if e.ok), reverse=True)
    alike = [score for score, name in scores if name == family]
    if len(scores) < N_BEST or len(alike) < N_OF_FAMILY:
        return -math.inf
    return min(scores[N_BEST - 1][0], alike[N_OF_FAMILY - 1])
