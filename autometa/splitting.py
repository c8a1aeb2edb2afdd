"""Validation that fits the data: how a dataset is cut into training and test rows."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from sklearn.model_selection import (
    GroupKFold,
    GroupShuffleSplit,
    KFold,
    RepeatedKFold,
    RepeatedStratifiedKFold,
    StratifiedGroupKFold,
    StratifiedKFold,
    TimeSeriesSplit,
)

from autometa.data import Dataset
from autometa.exceptions import DataError

Split = tuple[NDArray[np.intp], NDArray[np.intp]]
_HOLD_OUT_ROWS = 30_000


def make_splits(dataset: Dataset, seed: int = 0, splitter: Any = None) -> list[Split]:
    """Training and test positions, the same for every candidate of a dataset.

    Below 500 rows 2 x 5 folds, up to 1,500 rows 5 folds, up to 30,000 rows 3 folds, above that the first of 5 folds.
    Stratified for classification. Groups are never split; with ``time`` every test row is later than its training
    rows.

    Parameters
    ----------
    dataset : Dataset
    seed : int
    splitter : scikit-learn splitter or None
        Replaces the rule above; it is called as ``splitter.split(X, y, groups)``.

    Raises
    ------
    DataError
        Fewer than two groups, or no split with two classes in training.
    """
    n = dataset.n_rows
    if splitter is not None:
        return _usable(list(splitter.split(dataset.X, dataset.y, dataset.groups)), dataset)
    n_folds, n_repeats = folds_for(n)
    if dataset.time is not None:
        splits = _time_splits(dataset.time, 3 if n_folds == 3 else 5)
    elif dataset.groups is not None:
        splits = _group_splits(dataset, n_folds, seed)
    else:
        splits = _plain_splits(dataset, min(n_folds, n), n_repeats, seed)
    return _usable(splits[:1] if n > _HOLD_OUT_ROWS and dataset.time is None else splits, dataset)


def folds_for(n_rows: int) -> tuple[int, int]:
    """Number of folds and of repeats that :func:`make_splits` uses for a table of so many rows."""
    return (5, 2) if n_rows < 500 else (5, 1) if n_rows <= 1_500 else (3, 1) if n_rows <= _HOLD_OUT_ROWS else (5, 1)


def _plain_splits(dataset: Dataset, n_folds: int, n_repeats: int, seed: int) -> list[Split]:
    stratify = dataset.task.is_classification and np.bincount(dataset.y).max() >= n_folds
    rows = np.zeros(dataset.n_rows)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # a class with fewer rows than folds is handled by evaluate
        if n_repeats > 1:
            cls = RepeatedStratifiedKFold if stratify else RepeatedKFold
            return list(cls(n_splits=n_folds, n_repeats=n_repeats, random_state=seed).split(rows, dataset.y))
        one = StratifiedKFold if stratify else KFold
        return list(one(n_splits=n_folds, shuffle=True, random_state=seed).split(rows, dataset.y))


def _group_splits(dataset: Dataset, n_folds: int, seed: int) -> list[Split]:
    assert dataset.groups is not None
    n_groups = len(np.unique(dataset.groups.astype(str)))
    if n_groups < 2:
        raise DataError("Validation by group needs at least two groups. Got one.")
    rows, groups = np.zeros(dataset.n_rows), dataset.groups.astype(str)
    n_folds = min(n_folds, n_groups)
    if n_groups < 5:
        return list(GroupKFold(n_splits=n_folds).split(rows, dataset.y, groups))
    if dataset.task.is_classification and np.bincount(dataset.y).max() >= n_folds:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", UserWarning)
            splitter = StratifiedGroupKFold(n_splits=n_folds, shuffle=True, random_state=seed)
            return list(splitter.split(rows, dataset.y, groups))
    test_share = 1 / n_folds
    return list(GroupShuffleSplit(n_folds, test_size=test_share, random_state=seed).split(rows, dataset.y, groups))


def _time_splits(time: NDArray[Any], n_folds: int) -> list[Split]:
    order = np.argsort(time, kind="stable")
    n_folds = max(1, min(n_folds, len(order) // 2 - 1))
    splits = TimeSeriesSplit(n_splits=max(2, n_folds)).split(order)
    return [(np.sort(order[train]), np.sort(order[test])) for train, test in splits]


def _usable(splits: Sequence[Split], dataset: Dataset) -> list[Split]:
    """Drop splits whose training part holds a single class; at least one must remain."""
    kept = [(np.asarray(a), np.asarray(b)) for a, b in splits if len(a) > 1 and len(b)]
    if dataset.task.is_classification:
        kept = [(a, b) for a, b in kept if len(np.unique(dataset.y[a])) > 1]
    if not kept:
        raise DataError("No split of these rows leaves two classes to train on. Add rows or pass another splitter.")
    return kept
