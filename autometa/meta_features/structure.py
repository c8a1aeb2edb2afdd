"""Meta-features of how rows hang together: groups, time, duplicates, weights. They decide how validation behaves."""

from __future__ import annotations

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from scipy.stats import rankdata

from autometa.meta_features.sample import Floats, TableSample
from autometa.meta_features.simple import NAN, correlate, target_columns


def _group_codes(sample: TableSample) -> NDArray[np.intp]:
    """Code of the group of every row of the whole table; empty without groups."""
    return sample.once(_factorize_groups)


def _factorize_groups(sample: TableSample) -> NDArray[np.intp]:
    groups = sample.dataset.groups
    if groups is None:
        return np.empty(0, dtype=np.intp)
    try:
        codes = pd.factorize(groups, use_na_sentinel=False)[0]
    except TypeError:  # labels that cannot be hashed
        codes = pd.factorize(np.array([str(group) for group in groups], dtype=object))[0]
    return np.asarray(codes, dtype=np.intp)


def order_by_time(sample: TableSample) -> NDArray[np.intp]:
    """Positions of the sampled rows, earliest first; ties in canonical order. Needs ``dataset.time``."""
    time = np.asarray(sample.dataset.time)[sample.rows]
    try:
        codes = pd.factorize(time, sort=True)[0]
    except TypeError:  # moments of several types
        codes = pd.factorize(time.astype(str), sort=True)[0]
    return np.asarray(np.argsort(codes, kind="stable"))


def has_groups(sample: TableSample) -> float:
    """1 if rows come in groups that must stay together, else 0."""
    return float(sample.dataset.groups is not None)


def log_groups_per_row(sample: TableSample) -> float:
    """log10 of the number of groups per row: 0 when every row is a group of its own; NaN without groups."""
    codes = _group_codes(sample)
    return float(np.log10((codes.max() + 1) / len(codes))) if len(codes) else NAN


def largest_group_share(sample: TableSample) -> float:
    """Share of rows in the largest group; NaN without groups."""
    codes = _group_codes(sample)
    return float(np.bincount(codes).max() / len(codes)) if len(codes) else NAN


def group_target_share(sample: TableSample) -> float:
    """Share of the target's variance that lies between groups, adjusted for their number; NaN without groups.

    For regression the adjusted eta squared (Kelley, 1935), for classes the same of all class indicators together
    (tau, Goodman and Kruskal, 1954). Near 1: random folds would leak.
    """
    codes, y = _group_codes(sample), sample.dataset.y
    n, n_groups = len(codes), int(codes.max(initial=-1)) + 1
    if not 1 < n_groups < n:
        return NAN
    within = _within_classes(codes, y) if sample.is_classification else _within_values(codes, y)
    return float(1 - within * (n - 1) / (n - n_groups))


def _within_values(codes: NDArray[np.intp], y: Floats) -> float:
    """Share of the variance of ``y`` that lies within groups."""
    largest = np.abs(y).max()
    centred = y / (largest or 1.0)
    centred = centred - centred.mean()
    means = np.bincount(codes, centred) / np.bincount(codes)
    return float(((centred - means[codes]) ** 2).sum() / (centred**2).sum())


def _within_classes(codes: NDArray[np.intp], y: NDArray[np.int64]) -> float:
    """Gini impurity within groups over the Gini impurity of the whole."""
    n, n_classes = len(y), int(y.max()) + 1
    pairs, counts = np.unique(codes * n_classes + y, return_counts=True)
    group_rows = np.bincount(codes)[pairs // n_classes]
    within = 1 - float((counts**2 / group_rows).sum()) / n
    return within / (1 - float(((np.bincount(y) / n) ** 2).sum()))


def has_time(sample: TableSample) -> float:
    """1 if rows are ordered in time, else 0."""
    return float(sample.dataset.time is not None)


def time_target_autocorrelation(sample: TableSample) -> float:
    """Correlation of the target with that of the next sampled row in time; NaN without time.

    For classes: the mean over the indicators of the ten largest, weighted by their variance.
    """
    if sample.dataset.time is None:
        return NAN
    y = target_columns(sample)[order_by_time(sample)]
    y = y - y.mean(axis=0)
    return float((y[1:] * y[:-1]).sum() / (y**2).sum())


def time_target_trend(sample: TableSample) -> float:
    """Largest |rank correlation| of time with the target or the indicator of a class; NaN without time."""
    if sample.dataset.time is None:
        return NAN
    y = target_columns(sample)[order_by_time(sample)]
    ranks = np.arange(len(y), dtype=float)[:, None]
    return float(np.abs(correlate(ranks, rankdata(y, axis=0))).max())


def duplicate_share(sample: TableSample) -> float:
    """Share of sampled rows whose features occur in an earlier sampled row too."""
    return float(1 - len(np.unique(sample.row_hashes)) / sample.n_rows)


def duplicate_conflict_share(sample: TableSample) -> float:
    """Of the rows with the features of another one, the share with another target than the first of their kind."""
    _, first, position, counts = np.unique(
        sample.row_hashes, return_index=True, return_inverse=True, return_counts=True
    )
    repeated = counts[position] > 1
    repeated[first] = False
    return float(np.mean((sample.y != sample.y[first[position]])[repeated])) if repeated.any() else NAN


def effective_row_share(sample: TableSample) -> float:
    """(sum w)^2 / (n sum w^2) of the sample weights (Kish, 1965); 1 without weights."""
    weights = sample.dataset.sample_weight
    if weights is None:
        return 1.0
    weights = np.sort(weights / weights.max())
    return float(weights.sum() ** 2 / (len(weights) * (weights**2).sum()))


STRUCTURE = (
    has_groups, log_groups_per_row, largest_group_share, group_target_share, has_time, time_target_autocorrelation,
    time_target_trend, duplicate_share, duplicate_conflict_share, effective_row_share,
)  # fmt: skip
