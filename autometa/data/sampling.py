"""A part of the rows that stands for all of them."""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from autometa.data.kinds import TaskType


def stratified_sample(y: NDArray[Any], task: TaskType, n_rows: int, seed: int) -> NDArray[np.intp]:
    """Sorted positions of ``n_rows`` rows with the class shares (or target deciles) of the whole."""
    rng = np.random.default_rng(seed)
    if task.is_classification:
        strata = np.asarray(y)
    else:
        strata = np.searchsorted(np.quantile(y, np.linspace(0.1, 0.9, 9)), y)
    shuffled = rng.permutation(len(y))
    order = shuffled[np.argsort(strata[shuffled], kind="stable")]
    start = rng.random()
    positions = ((np.arange(n_rows) + start) * len(y) / n_rows).astype(np.intp)
    if task.is_classification:  # a class that systematic sampling stepped over gets two rows back
        chosen = np.union1d(order[positions], _first_rows(strata, shuffled, per_stratum=2))
        surplus = len(chosen) - n_rows
        if surplus > 0:
            common = np.flatnonzero(strata[chosen] == np.bincount(strata.astype(np.intp)).argmax())
            spare = max(0, len(common) - 2)  # the commonest class keeps two rows as well
            chosen = np.delete(chosen, rng.permutation(common)[: min(surplus, spare)])
        while len(chosen) > n_rows:  # many classes: the one with the most rows left gives the next row
            largest = np.bincount(strata[chosen].astype(np.intp)).argmax()
            chosen = np.delete(chosen, rng.choice(np.flatnonzero(strata[chosen] == largest)))
        return np.sort(chosen)
    return np.sort(order[positions])


def _first_rows(strata: NDArray[Any], shuffled: NDArray[np.intp], per_stratum: int) -> NDArray[np.intp]:
    rows = pd.Series(strata[shuffled]).groupby(strata[shuffled]).head(per_stratum).index.to_numpy()
    return np.asarray(shuffled[rows], dtype=np.intp)
