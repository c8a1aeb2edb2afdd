"""Meta-features of the columns' distributions, of what they say of the target, and of what they say of each other.

Sources: Rivolli et al., "Meta-features for meta-learning" (2022); Michie et al. (1994); Brazdil et al. (2003).
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from scipy.stats import chi2

from autometa.data import ColumnKind
from autometa.meta_features.sample import Floats, TableSample
from autometa.meta_features.simple import NAN, correlate, target_columns

N_BINS = 8
_MAX_LEVELS = 16


# --- statistical: one numeric column at a time ---------------------------------------------------------------------


class Moments(NamedTuple):
    """Of each numeric column, missing cells left out; the last two are NaN for constants. Shapes (n_numeric,)."""

    mean: Floats
    spread: Floats
    skewness: Floats
    kurtosis: Floats


def moments(sample: TableSample) -> Moments:
    """Mean, standard deviation, skewness m3 / m2^1.5 and kurtosis m4 / m2^2 of the scaled numeric columns."""
    known = ~np.isnan(sample.numeric)
    counts = known.sum(axis=0)
    mean = np.where(known, sample.numeric, 0.0).sum(axis=0) / counts
    centred = np.where(known, sample.numeric - mean, 0.0)
    squared = centred**2
    variance = squared.sum(axis=0) / counts
    safe = np.where(variance > 1e-24, variance, np.nan)
    skewness = (squared * centred).sum(axis=0) / counts / safe**1.5
    return Moments(mean, np.sqrt(variance), skewness, (squared**2).sum(axis=0) / counts / safe**2)


def quartiles(sample: TableSample) -> Floats:
    """Quartiles of each scaled numeric column, missing cells left out. Shape (3, n_numeric)."""
    ranked = sample.ranked[:, sample.kinds == ColumnKind.NUMERIC]
    last = np.maximum((~np.isnan(ranked)).sum(axis=0) - 1, 0)
    places = np.array([0.25, 0.5, 0.75])[:, None] * last
    below, above = np.floor(places).astype(np.intp), np.ceil(places).astype(np.intp)
    columns = np.arange(ranked.shape[1])
    low, high = ranked[below, columns], ranked[above, columns]
    return np.asarray(low + (places - below) * (high - low))


def _nan_mean(values: Floats) -> float:
    known = values[np.isfinite(values)]
    return float(known.mean()) if len(known) else NAN


def skewness_abs_mean(sample: TableSample) -> float:
    """Mean of log1p |skewness| of numeric columns (``skewness``, Michie et al. 1994)."""
    return _nan_mean(np.log1p(np.abs(sample.once(moments).skewness)))


def skewness_abs_max(sample: TableSample) -> float:
    """Largest log1p |skewness| of a numeric column."""
    return float(np.nanmax(np.log1p(np.abs(sample.once(moments).skewness))))


def kurtosis_mean(sample: TableSample) -> float:
    """Mean log kurtosis of numeric columns, log 3 for normal ones (``kurtosis``, Michie et al. 1994)."""
    return _nan_mean(np.log(sample.once(moments).kurtosis))


def outlier_share(sample: TableSample) -> float:
    """Share of numeric cells outside 1.5 interquartile ranges of the quartiles (Tukey, 1977)."""
    low, _, high = sample.once(quartiles)
    margin = 1.5 * (high - low)
    outside = (sample.numeric < low - margin) | (sample.numeric > high + margin)
    return float(outside.sum() / (~np.isnan(sample.numeric)).sum())


def normal_share(sample: TableSample) -> float:
    """Share of numeric columns with |skewness| < 0.5 and kurtosis within 1 of 3 (after ``nr_norm``)."""
    skewness, kurtosis = sample.once(moments).skewness, sample.once(moments).kurtosis
    return float(np.mean((np.abs(skewness) < 0.5) & (np.abs(kurtosis - 3) < 1))) if len(skewness) else NAN


def zero_share(sample: TableSample) -> float:
    """Share of zeros among known numeric cells: how sparse the table is."""
    return float((sample.numeric == 0).sum() / (~np.isnan(sample.numeric)).sum())


def distinct_share_mean(sample: TableSample) -> float:
    """Mean over numeric columns of log10 of distinct values per row: 0 for continuous, negative for counts."""
    distinct = sample.n_distinct[sample.kinds == ColumnKind.NUMERIC]
    return float(np.log10(distinct / sample.n_rows).mean()) if len(distinct) else NAN


def variation_mean(sample: TableSample) -> float:
    """Mean over numeric columns of log10 of standard deviation over |mean|, clipped to [-3, 3]."""
    mean, spread = sample.once(moments)[:2]
    return _nan_mean(np.clip(np.log10(spread / np.abs(mean)), -3, 3)[spread > 0])


def scale_spread(sample: TableSample) -> float:
    """Standard deviation over numeric columns of log10 of their raw standard deviation: how unlike their units are."""
    numbers = sample.values[:, sample.kinds == ColumnKind.NUMERIC]
    largest = np.nanmax(np.abs(numbers), axis=0)
    spread = sample.once(moments).spread
    logs = np.log10(spread[spread > 0]) + np.log10(largest[spread > 0])
    return float(logs.std()) if len(logs) > 1 else NAN


def tail_weight_mean(sample: TableSample) -> float:
    """Mean over numeric columns of log10 of (standard deviation / interquartile range): 0 - .13 for a normal one.

    Columns whose quartiles coincide are left out. A robust companion of the kurtosis (after ``mad`` / ``sd``).
    """
    low, _, high = sample.once(quartiles)
    ratio = sample.once(moments).spread / np.where(high > low, high - low, np.nan)
    return _nan_mean(np.log10(ratio))


# --- information-theoretic: columns cut into bins, against the target ---------------------------------------------


class Information(NamedTuple):
    """Entropies and mutual informations in nats. Shapes (p,), (), (p,), and (p,) for the test of independence."""

    column_entropies: Floats
    target_entropy: float
    mutual: Floats
    significant: NDArray[np.bool_]


def bin_columns(sample: TableSample) -> NDArray[np.intp]:
    """Quantile bins of ordered columns, levels of categories (the 14 largest and the rest), missing as a bin of its
    own. Shape (n, p)."""
    bins = np.empty(sample.values.shape, dtype=np.intp)
    for j in range(len(sample.kinds)):
        column, missing = sample.values[:, j], sample.missing[:, j]
        bins[:, j] = _levels(column) if sample.is_code[j] else _quantile_bins(column, ~missing)
        bins[missing, j] = _MAX_LEVELS - 1
    return bins


def bin_target(sample: TableSample) -> NDArray[np.intp]:
    """Classes (the 15 largest and the rest) or 8 quantile bins of a continuous target. Shape (n,)."""
    if sample.is_classification:
        return _levels(sample.y.astype(float), _MAX_LEVELS - 1)
    return _quantile_bins(sample.y, np.ones(sample.n_rows, dtype=bool))


def _quantile_bins(column: Floats, known: NDArray[np.bool_]) -> NDArray[np.intp]:
    values = np.sort(column[known])
    if not len(values):
        return np.zeros(len(column), dtype=np.intp)
    edges = np.unique(values[(np.arange(1, N_BINS) * len(values)) // N_BINS])
    return np.asarray(np.searchsorted(edges, column, side="right"), dtype=np.intp)


def _levels(codes: Floats, most: int = _MAX_LEVELS - 2) -> NDArray[np.intp]:
    """Codes by falling frequency, all beyond ``most`` in one level."""
    known = ~np.isnan(codes)
    whole = np.where(known, codes, 0).astype(np.intp)
    counts = np.bincount(whole[known], minlength=1)
    rank = np.empty(len(counts), dtype=np.intp)
    rank[np.argsort(-counts, kind="stable")] = np.arange(len(counts))
    return np.asarray(np.minimum(rank[whole], most))


def mutual_information(bins: NDArray[np.intp], target: NDArray[np.intp]) -> Information:
    """Mutual information of each binned column (n, p) with the binned target (n,).

    Corrected by its bias under independence, (levels - 1)(target levels - 1) / 2n (Miller, 1955), and not below 0;
    significant where 2n MI exceeds the 99 % quantile of chi-squared.
    """
    n, p = bins.shape
    flat = (np.arange(p) * _MAX_LEVELS + bins) * _MAX_LEVELS + target[:, None]
    counts = np.bincount(flat.ravel(), minlength=p * _MAX_LEVELS**2).reshape(p, _MAX_LEVELS, _MAX_LEVELS)
    levels, totals = counts.sum(axis=2), np.bincount(target, minlength=_MAX_LEVELS)
    freedom = (np.maximum((levels > 0).sum(axis=1), 1) - 1) * ((totals > 0).sum() - 1)
    entropies, target_entropy = _count_entropy(levels, n), float(_count_entropy(totals[None], n)[0])
    raw = entropies + target_entropy - _count_entropy(counts.reshape(p, -1), n)
    mutual = np.clip(raw - freedom / (2 * n), 0.0, None)
    return Information(entropies, target_entropy, mutual, 2 * n * raw > chi2.ppf(0.99, np.maximum(freedom, 1)))


def _count_entropy(counts: NDArray[np.intp], n: int) -> Floats:
    shares = counts / n
    return np.asarray(-(shares * np.log(np.where(shares > 0, shares, 1.0))).sum(axis=1))


def information(sample: TableSample) -> Information:
    """Entropies and mutual informations of the sample's columns."""
    return sample.once(_information)


def _information(sample: TableSample) -> Information:
    return mutual_information(sample.once(bin_columns), bin_target(sample))


def column_entropy_mean(sample: TableSample) -> float:
    """Mean entropy of the binned columns over log 8 (``attr_ent``, Michie et al. 1994)."""
    return _nan_mean(information(sample).column_entropies / np.log(N_BINS))


def mutual_information_mean(sample: TableSample) -> float:
    """Mean mutual information with the target over the target's entropy (``mut_inf``, Michie et al. 1994)."""
    return _nan_mean(_explained(sample))


def mutual_information_max(sample: TableSample) -> float:
    """Share of the target's entropy that the best single column explains."""
    return float(_explained(sample).max())


def mutual_information_concentration(sample: TableSample) -> float:
    """Effective share of informative columns: (sum MI)^2 / (p sum MI^2), in (0, 1]; NaN if nothing informs."""
    mutual = information(sample).mutual
    total = float((mutual**2).sum())
    return float(mutual.sum() ** 2 / (total * len(mutual))) if total > 0 else NAN


def informative_share(sample: TableSample) -> float:
    """Share of columns whose mutual information with the target is significant at 1 %."""
    return _nan_mean(information(sample).significant.astype(float))


def log_equivalent_columns(sample: TableSample) -> float:
    """log10 of target entropy over mean mutual information (``eq_num_attr``, Michie et al. 1994), at most 4."""
    mean = mutual_information_mean(sample)
    return float(min(4.0, -np.log10(mean))) if mean > 0 else (4.0 if mean == 0 else NAN)


def log_noise_to_signal(sample: TableSample) -> float:
    """log10 of (mean entropy - mean MI) / mean MI (``ns_ratio``, Michie et al. 1994), clipped to [-4, 4]."""
    found = information(sample)
    signal, noise = found.mutual.mean(), (found.column_entropies - found.mutual).mean()
    return float(np.clip(np.log10(noise / signal), -4, 4)) if signal > 0 and noise > 0 else NAN


def categorical_information_share(sample: TableSample) -> float:
    """Share of the summed mutual information that sits in categorical columns."""
    mutual = information(sample).mutual
    return float(mutual[sample.is_code].sum() / mutual.sum()) if mutual.sum() > 0 else NAN


def nonmonotone_information(sample: TableSample) -> float:
    """Mean over significant ordered columns of sqrt(1 - exp(-2 MI)) minus |correlation| with the target.

    The first term is the correlation that a normal pair of that mutual information would have (Linfoot, 1957): large
    where dependence is not linear. NaN without such columns.
    """
    found, used = information(sample), ~sample.is_code
    used &= found.significant
    linear = np.abs(correlate(sample.filled[:, used], target_columns(sample))).max(axis=1)
    return _nan_mean(np.sqrt(1 - np.exp(-2 * found.mutual[used])) - linear)


def _explained(sample: TableSample) -> Floats:
    found = information(sample)
    return found.mutual / found.target_entropy if found.target_entropy > 0 else np.full(len(found.mutual), NAN)


# --- redundancy and dimensionality: columns against each other ----------------------------------------------------


def _pair_correlations(sample: TableSample) -> Floats:
    """|correlation| of each pair of ordered columns. Shape (q (q - 1) / 2,)."""
    z = sample.ordered
    return np.abs(z.T @ z / max(1, len(z)))[np.triu_indices(z.shape[1], 1)]


def _spectrum(sample: TableSample) -> Floats:
    """Variance shares of the principal components of the ordered columns, largest first. Shape (q,)."""
    z = sample.ordered
    if z.shape[1] < 2:
        return np.empty(0)
    eigenvalues = np.clip(np.linalg.eigvalsh(z.T @ z)[::-1], 0, None)
    return np.asarray(eigenvalues / eigenvalues.sum())


def correlation_abs_mean(sample: TableSample) -> float:
    """Mean |correlation| of pairs of ordered columns (``cor``, Castiello et al. 2005)."""
    return _nan_mean(sample.once(_pair_correlations))


def correlation_abs_max(sample: TableSample) -> float:
    """Largest |correlation| of a pair of ordered columns."""
    return float(sample.once(_pair_correlations).max())


def correlated_pairs_share(sample: TableSample) -> float:
    """Share of pairs of ordered columns with |correlation| above 0.5 (``nr_cor_attr``, Salama et al. 2013)."""
    return _nan_mean((sample.once(_pair_correlations) > 0.5).astype(float))


def first_component_share(sample: TableSample) -> float:
    """Variance share of the first principal component (``PCAFractionFirst``, Bardenet et al. 2013)."""
    return float(sample.once(_spectrum)[0]) if len(sample.once(_spectrum)) else NAN


def components_for_95(sample: TableSample) -> float:
    """Components for 95 % of the variance per ordered column (``t4``-like; Bardenet et al. 2013)."""
    shares = sample.once(_spectrum)
    return float((np.searchsorted(np.cumsum(shares), 0.95 - 1e-12) + 1) / len(shares)) if len(shares) else NAN


def effective_rank(sample: TableSample) -> float:
    """Participation ratio of the spectrum, 1 / sum of squared variance shares, per ordered column."""
    shares = sample.once(_spectrum)
    return float(1 / (shares**2).sum() / len(shares)) if len(shares) else NAN


def target_correlation_max(sample: TableSample) -> float:
    """Largest |correlation| of an ordered column with the target, or with the indicator of a class."""
    return float(np.abs(correlate(sample.ordered, target_columns(sample))).max())


def target_correlation_mean(sample: TableSample) -> float:
    """Mean over ordered columns of the largest |correlation| with the target, or with the indicator of a class."""
    return _nan_mean(np.abs(correlate(sample.ordered, target_columns(sample))).max(axis=1))


STATISTICAL = (
    skewness_abs_mean, skewness_abs_max, kurtosis_mean, outlier_share, normal_share, zero_share, distinct_share_mean,
    variation_mean, scale_spread, tail_weight_mean,
)  # fmt: skip
INFORMATION = (
    column_entropy_mean, mutual_information_mean, mutual_information_max, mutual_information_concentration,
    informative_share, log_equivalent_columns, log_noise_to_signal, categorical_information_share,
    nonmonotone_information,
)  # fmt: skip
REDUNDANCY = (
    correlation_abs_mean, correlation_abs_max, correlated_pairs_share, first_component_share, components_for_95,
    effective_rank, target_correlation_max, target_correlation_mean,
)  # fmt: skip
