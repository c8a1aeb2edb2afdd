"""Why a meta-model forecasts what it does: what won on the nearest datasets, what moved the forecast, what would."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd

from autometa.family import Candidate
from autometa.meta_dataset import row_features
from autometa.meta_model.model import MetaModel


def nearest_winners(
    model: MetaModel, meta_features: pd.Series | Mapping[str, Any], metric: str, n: int = 3
) -> list[tuple[str, float, Candidate]]:
    """The most similar training datasets with this metric, their weights, and what won there.

    Parameters
    ----------
    model : MetaModel
    meta_features : Series or mapping
    metric : str
    n : int, default 3
    """
    winners = model.winners(metric)
    found = model.neighbours(meta_features, len(model.card.get("trained_on", ())))
    return [(name, weight, winners[name]) for name, weight in found if name in winners and weight > 0][:n]


def moved_by(
    model: MetaModel,
    meta_features: pd.Series | Mapping[str, Any],
    candidate: Candidate,
    *,
    metric: str,
    groups: Mapping[str, Sequence[str]],
) -> list[tuple[str, float]]:
    """How far each group of meta-features moved the forecast of one candidate, largest move first.

    The move is the forecast less the one with the group at its medians, in normalised units: 1 is the distance from
    the median candidate to the best one.

    Parameters
    ----------
    model : MetaModel
    meta_features : Series or mapping
    candidate : Candidate
    metric : str
    groups : mapping of str to sequence of str
        Name -> meta-features.
    """
    features, medians = dict(meta_features.items()), model.encoder.medians
    trust = model.trust(meta_features, metric)

    def forecast(known: Mapping[Any, Any]) -> float:
        return float(model.forecast(known, [candidate], metric, trust=trust)[0])

    full = forecast(features)
    moves = []
    for name, members in groups.items():
        usual = {member: medians[member] for member in members if member in features and member in medians}
        if usual:
            moves.append((name, full - forecast(features | usual)))
    return sorted(moves, key=lambda move: -abs(move[1]))


def counterfactual(
    model: MetaModel,
    meta_features: Mapping[Any, Any],
    candidates: Sequence[Candidate],
    *,
    metric: str,
    factors: Sequence[float] = (5, 20, 100),
) -> tuple[float, str] | None:
    """The smallest factor on the number of rows at which another family would lead, and that family.

    ``None`` where none of the factors changes the leader, or the table has no ``log_rows``.
    """
    features = dict(meta_features.items())
    if not np.isfinite(features.get("log_rows", np.nan)):
        return None
    trust = model.trust(features, metric)
    leader = candidates[int(np.argmax(model.forecast(features, candidates, metric, trust=trust)))].family
    for factor in factors:
        step = float(np.log10(factor))
        shifted = features | row_features(features, step)
        other = candidates[int(np.argmax(model.forecast(shifted, candidates, metric, trust=trust)))].family
        if other != leader:
            return float(factor), other
    return None
