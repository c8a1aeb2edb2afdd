"""Meta-features of size, kinds of columns, missing values and the target.

Sources: Rivolli et al., "Meta-features for meta-learning" (2022); Michie et al., "Machine Learning, Neural and
Statistical Classification" (1994); Feurer et al. (2015) for missingness.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from autometa.data import ColumnKind
from autometa.meta_features.sample import Floats, TableSample

NAN = float("nan")


def _kind_share(sample: TableSample, *kinds: ColumnKind) -> float:
    return sum(kind in kinds for kind in sample.dataset.kinds.values()) / sample.dataset.n_features


def log_rows(sample: TableSample) -> float:
    """log10 of the number of rows (``nr_inst``, Michie et al. 1994)."""
    return float(np.log10(sample.dataset.n_rows))


def log_columns(sample: TableSample) -> float:
    """log10 of the number of feature columns (``nr_attr``, Michie et al. 1994)."""
    return float(np.log10(sample.dataset.n_features))


def log_columns_per_row(sample: TableSample) -> float:
    """log10 of columns per row (``attr_to_inst``, Kalousis and Theoharis 1999)."""
    return float(np.log10(sample.dataset.n_features / sample.dataset.n_rows))


def numeric_share(sample: TableSample) -> float:
    """Share of columns that hold numbers (``nr_num`` / ``nr_attr``, Engels and Theusinger 1998)."""
    return _kind_share(sample, ColumnKind.NUMERIC)


def categorical_share(sample: TableSample) -> float:
    """Share of columns that hold categories or booleans (``nr_cat`` / ``nr_attr``, Engels and Theusinger 1998)."""
    return _kind_share(sample, ColumnKind.CATEGORICAL, ColumnKind.BOOLEAN)


def text_share(sample: TableSample) -> float:
    """Share of columns that hold free text."""
    return _kind_share(sample, ColumnKind.TEXT)


def datetime_share(sample: TableSample) -> float:
    """Share of columns that hold dates."""
    return _kind_share(sample, ColumnKind.DATETIME)


def empty_share(sample: TableSample) -> float:
    """Share of columns that are constant or all missing."""
    return _kind_share(sample, ColumnKind.EMPTY)


def binary_share(sample: TableSample) -> float:
    """Share of the columns in use with two distinct values (``nr_bin`` / ``nr_attr``, Michie et al. 1994)."""
    return float(np.mean(sample.n_distinct == 2)) if sample.values.shape[1] else NAN


def whole_number_share(sample: TableSample) -> float:
    """Share of the numeric columns that hold whole numbers only: counts, or categories in disguise."""
    numbers = sample.values[:, sample.kinds == ColumnKind.NUMERIC]
    return float(np.mean(np.all(np.isnan(numbers) | (numbers == np.round(numbers)), axis=0))) if numbers.size else NAN


def log_levels_mean(sample: TableSample) -> float:
    """Mean log2 of the number of levels of categorical columns (after ``SymbolsMean``, Feurer et al. 2015)."""
    levels = sample.n_distinct[sample.is_code]
    return float(np.log2(levels).mean()) if len(levels) else NAN


def log_levels_max(sample: TableSample) -> float:
    """Largest log2 of the number of levels of a categorical column (after ``SymbolsMax``, Feurer et al. 2015)."""
    levels = sample.n_distinct[sample.is_code]
    return float(np.log2(levels).max()) if len(levels) else NAN


def missing_share(sample: TableSample) -> float:
    """Share of missing (or infinite) cells among columns that are not empty (Feurer et al. 2015)."""
    return float(sample.missing.mean()) if sample.missing.size else NAN


def missing_columns_share(sample: TableSample) -> float:
    """Share of the columns in use with a missing cell (Feurer et al. 2015)."""
    return float(sample.missing.any(axis=0).mean()) if sample.missing.size else NAN


def missing_rows_share(sample: TableSample) -> float:
    """Share of rows with a missing cell (Feurer et al. 2015)."""
    return float(sample.missing.any(axis=1).mean()) if sample.missing.size else NAN


def missing_share_max(sample: TableSample) -> float:
    """Largest share of missing cells in one column."""
    return float(sample.missing.mean(axis=0).max()) if sample.missing.size else NAN


def missing_target_correlation(sample: TableSample) -> float:
    """Largest |correlation| of a column's missing indicator with the target, 0 without missing cells.

    For classes: with the indicator of the most correlated of the ten largest classes. Values that are missing
    because of the target make an indicator worth having (Little and Rubin, 2002).
    """
    if not sample.missing.size:
        return NAN
    mask = sample.missing[:, sample.missing.any(axis=0)]
    return float(np.abs(correlate(mask.astype(float), target_columns(sample))).max(initial=0.0))


def target_columns(sample: TableSample, most: int = 10) -> Floats:
    """The target as columns: itself, or indicators of the ``most`` largest classes. Shape (n, k)."""
    if not sample.is_classification:
        return np.asarray(sample.y, dtype=float)[:, None]
    classes, counts = np.unique(sample.y, return_counts=True)
    largest = np.sort(classes[np.argsort(-counts, kind="stable")[:most]])
    return np.asarray(sample.y[:, None] == largest, dtype=float)


def correlate(a: Floats, b: Floats) -> Floats:
    """Pearson correlations of the columns of ``a`` (n, p) and ``b`` (n, k); 0 for constants. Shape (p, k)."""
    a, b = a - a.mean(axis=0), b - b.mean(axis=0)
    norms = np.sqrt(np.outer((a**2).sum(axis=0), (b**2).sum(axis=0)))
    return np.asarray((a.T @ b) / np.where(norms > 0, norms, np.inf))


def class_shares(sample: TableSample) -> Floats:
    """Shares of the classes in the whole table (``freq_class``). Shape (n_classes,); empty for regression."""
    if not sample.is_classification:
        return np.empty(0)
    counts: NDArray[np.intp] = np.bincount(sample.dataset.y, minlength=sample.dataset.n_classes)
    return np.asarray(counts / counts.sum())


def target_is_continuous(sample: TableSample) -> float:
    """1 for regression, 0 for classification."""
    return float(not sample.is_classification)


def log_classes(sample: TableSample) -> float:
    """log2 of the number of classes (``nr_class``, Michie et al. 1994); NaN for regression."""
    return float(np.log2(sample.dataset.n_classes)) if sample.is_classification else NAN


def class_entropy(sample: TableSample) -> float:
    """Entropy of the classes divided by its largest value (``class_ent``, Michie et al. 1994), in [0, 1]."""
    shares = class_shares(sample)
    return _entropy(shares) / float(np.log(len(shares))) if len(shares) else NAN


def class_share_max(sample: TableSample) -> float:
    """Share of the largest class: the accuracy of a constant prediction (``DefAcc``, Michie et al. 1994)."""
    shares = class_shares(sample)
    return float(shares.max()) if len(shares) else NAN


def class_share_min(sample: TableSample) -> float:
    """Share of the smallest class times the number of classes: 1 when balanced."""
    shares = class_shares(sample)
    return float(shares.min() * len(shares)) if len(shares) else NAN


def log_smallest_class_rows(sample: TableSample) -> float:
    """log10 of one plus the rows of the smallest class: can it be learned and validated at all?"""
    shares = class_shares(sample)
    return float(np.log10(1 + shares.min() * sample.dataset.n_rows)) if len(shares) else NAN


def constant_log_loss(sample: TableSample) -> float:
    """Log loss in nats of predicting the class shares; NaN for regression."""
    shares = class_shares(sample)
    return _entropy(shares) if len(shares) else NAN


def constant_log_rmse(sample: TableSample) -> float:
    """log10 of the RMSE of predicting the mean, in the target's own unit; NaN for classes or a constant target."""
    spread = _whole_target_spread(sample)
    return float(np.log10(spread)) if spread > 0 else NAN


def constant_mae_per_rmse(sample: TableSample) -> float:
    """MAE of predicting the median over RMSE of predicting the mean: 0.80 for a normal target, less for long tails."""
    if sample.is_classification or sample.y.std() == 0:
        return NAN
    return float(np.abs(sample.y - np.median(sample.y)).mean() / sample.y.std())


def target_skewness(sample: TableSample) -> float:
    """Skewness of a continuous target, as sign times log1p |skewness|."""
    skewness = _moment(sample, 3)
    return float(np.sign(skewness) * np.log1p(abs(skewness)))


def target_kurtosis(sample: TableSample) -> float:
    """log of the kurtosis of a continuous target (log 3 = 1.1 for a normal one)."""
    return float(np.log(_moment(sample, 4)))


def target_distinct_share(sample: TableSample) -> float:
    """Distinct values of a continuous target per sampled row: low for counts and ratings."""
    return NAN if sample.is_classification else len(np.unique(sample.y)) / sample.n_rows


def target_mode_share(sample: TableSample) -> float:
    """Share of the most frequent value of a continuous target: high for zero-inflated or censored ones."""
    if sample.is_classification:
        return NAN
    return float(np.unique(sample.y, return_counts=True)[1].max() / sample.n_rows)


def target_outlier_share(sample: TableSample) -> float:
    """Share of a continuous target outside 1.5 interquartile ranges of the quartiles (Tukey, 1977)."""
    if sample.is_classification:
        return NAN
    low, high = np.quantile(sample.y, [0.25, 0.75])
    margin = 1.5 * (high - low)
    return float(np.mean((sample.y < low - margin) | (sample.y > high + margin)))


def target_nonnegative(sample: TableSample) -> float:
    """1 if a continuous target has no negative value (a log or a Poisson loss is possible), else 0."""
    return NAN if sample.is_classification else float(sample.dataset.y.min() >= 0)


def _entropy(shares: Floats) -> float:
    known = shares[shares > 0]
    return float(-(known * np.log(known)).sum())


def _moment(sample: TableSample, order: int) -> float:
    """Mean power of the standardised target; NaN for classes or a constant target."""
    if sample.is_classification or not sample.y.any():
        return NAN
    return float(np.mean(sample.y**order))


def _whole_target_spread(sample: TableSample) -> float:
    if sample.is_classification:
        return 0.0
    y = np.sort(sample.dataset.y[sample.rows])  # sorted: the sum must not depend on the order of rows
    largest = float(np.abs(y).max())
    return float((y / largest).std() * largest) if largest > 0 else 0.0


SIMPLE = (
    log_rows, log_columns, log_columns_per_row, numeric_share, categorical_share, text_share, datetime_share,
    empty_share, binary_share, whole_number_share, log_levels_mean, log_levels_max,
)  # fmt: skip
MISSINGNESS = (
    missing_share, missing_columns_share, missing_rows_share, missing_share_max, missing_target_correlation,
)  # fmt: skip
TARGET = (
    target_is_continuous, log_classes, class_entropy, class_share_max, class_share_min, log_smallest_class_rows,
    constant_log_loss, constant_log_rmse, constant_mae_per_rmse, target_skewness, target_kurtosis,
    target_distinct_share, target_mode_share, target_outlier_share, target_nonnegative,
)  # fmt: skip
