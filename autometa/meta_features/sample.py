"""A bounded, numeric, canonically ordered sample of a table: what every meta-feature is computed from.

Rows and columns are put into an order that depends on their content only, so that the order in which a table
happens to be stored, and the names of its columns, cannot move a meta-feature.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, TypeVar

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from autometa.data import ColumnKind, Dataset, infer_kind, stratified_sample

MAX_ROWS = 5_000
MIN_ROWS = 500
MAX_COLUMNS = 100
_MAX_CELLS = 2_000_000
_STRATIFY_ROWS = 100_000

Floats = NDArray[np.float64]
Hashes = NDArray[np.uint64]
T = TypeVar("T")


@dataclass(frozen=True, eq=False)
class TableSample:
    """At most 5,000 rows and 100 columns of a dataset as numbers, in canonical order.

    Parameters
    ----------
    dataset : Dataset
        The whole table, for what is cheap to know of all of it (rows, kinds, target, groups).
    rows : ndarray of shape (n,)
        Positions of the sampled rows in the dataset.
    values : ndarray of shape (n, p)
        Numbers, seconds for dates, lengths for text, codes for categories; NaN = missing or infinite. Columns of
        kind ``EMPTY`` are left out.
    kinds : ndarray of shape (p,) of ColumnKind
    y : ndarray of shape (n,)
        Class codes, or the target in units of its standard deviation around its mean.
    row_hashes : ndarray of shape (n,)
        Hash of the features of each row; equal for equal rows.
    seed : int
    """

    dataset: Dataset
    rows: NDArray[np.intp]
    values: Floats
    kinds: NDArray[Any]
    y: NDArray[Any]
    row_hashes: Hashes
    seed: int
    _known: dict[Any, Any] = field(default_factory=dict, repr=False)

    def once(self, compute: Callable[[TableSample], T]) -> T:
        """``compute(self)``, computed at the first call only; for what several features share."""
        if compute not in self._known:
            self._known[compute] = compute(self)
        result: T = self._known[compute]
        return result

    @property
    def n_rows(self) -> int:
        return len(self.rows)

    @property
    def is_classification(self) -> bool:
        return self.dataset.task.is_classification

    @cached_property
    def numeric(self) -> Floats:
        """The columns of kind ``NUMERIC``, each divided by its largest absolute value. Shape (n, n_numeric)."""
        return self.scaled[:, self.kinds == ColumnKind.NUMERIC]

    @cached_property
    def is_code(self) -> NDArray[np.bool_]:
        """Columns whose numbers are names without an order. Shape (p,)."""
        return np.asarray(self.kinds == ColumnKind.CATEGORICAL)

    @cached_property
    def missing(self) -> NDArray[np.bool_]:
        """Missing or infinite cells. Shape (n, p)."""
        return np.isnan(self.values)

    @cached_property
    def scaled(self) -> Floats:
        """Values divided by the largest absolute value of their column, so that no moment overflows. Shape (n, p)."""
        largest = np.where(self.missing, 0.0, np.abs(self.values)).max(axis=0, initial=0.0)
        return self.values / np.where(largest > 0, largest, 1.0)

    @cached_property
    def filled(self) -> Floats:
        """``scaled`` with the column's median in missing cells. Shape (n, p)."""
        if not self.missing.any():
            return self.scaled
        incomplete = np.flatnonzero(self.missing.any(axis=0))
        filled = self.scaled.copy()
        for j in incomplete:
            known = self.scaled[~self.missing[:, j], j]
            filled[self.missing[:, j], j] = np.median(known) if len(known) else 0.0
        return filled

    @cached_property
    def ordered(self) -> Floats:
        """Standardised columns with an order (all but categories of three and more levels). Shape (n, q)."""
        return standardise(self.filled[:, ~self.is_code | (self.n_distinct <= 2)])

    @cached_property
    def ranked(self) -> Floats:
        """``scaled`` with each column sorted by itself, missing cells last. Shape (n, p)."""
        return np.sort(self.scaled, axis=0)

    @cached_property
    def n_distinct(self) -> NDArray[np.intp]:
        """Distinct known values of each column in the sample. Shape (p,)."""
        steps = (self.ranked[1:] > self.ranked[:-1]).sum(axis=0)
        return np.asarray(steps + (~self.missing).any(axis=0), dtype=np.intp)


def draw_sample(dataset: Dataset, seed: int = 0) -> TableSample:
    """The canonical sample of a dataset.

    Tables of up to 5,000 rows (fewer above 400 columns: 2,000,000 cells, but at least 500 rows) are used whole, so
    nothing depends on the order of their rows; of longer ones rows are drawn by seed and stratified by target. Of more
    than 100 columns those with the smallest content hash are used.
    """
    rows = _draw_rows(dataset, seed)
    frame = dataset.X if len(rows) == dataset.n_rows else dataset.X.iloc[rows]
    y = _sample_target(dataset, rows)
    values, kinds = _encode(frame, dataset, y, seed)
    row_order, column_order, row_hashes = _canonical_order(values, kinds, y, seed)
    return TableSample(
        dataset=dataset,
        rows=rows[row_order],
        values=np.asfortranarray(values[np.ix_(row_order, column_order)]),
        kinds=kinds[column_order],
        y=y[row_order],
        row_hashes=row_hashes[row_order],
        seed=seed,
    )


def standardise(values: Floats) -> Floats:
    """Columns with mean 0 and standard deviation 1; constant columns become 0."""
    if len(values) == 0:
        return values
    centred = values - values.mean(axis=0)
    spread = np.sqrt(np.mean(centred**2, axis=0))
    spread = np.where(spread > 1e-12 * np.abs(values).max(axis=0), spread, np.inf)
    return np.asarray(centred / spread)


def _draw_rows(dataset: Dataset, seed: int) -> NDArray[np.intp]:
    limit = int(np.clip(_MAX_CELLS // max(1, dataset.n_features), MIN_ROWS, MAX_ROWS))
    if dataset.n_rows <= limit:
        return np.arange(dataset.n_rows)
    if dataset.n_rows <= _STRATIFY_ROWS:
        return stratified_sample(dataset.y, dataset.task, limit, seed)
    rng = np.random.default_rng(seed)  # stratifying millions of rows would cost more than all features together
    some = np.sort(rng.choice(dataset.n_rows, _STRATIFY_ROWS, replace=False))
    return np.asarray(some[stratified_sample(dataset.y[some], dataset.task, limit, seed)])


def _sample_target(dataset: Dataset, rows: NDArray[np.intp]) -> NDArray[Any]:
    """Class codes, or floats whose standardisation does not depend on the order of rows."""
    y = dataset.y[rows]
    if dataset.task.is_classification:
        return np.asarray(y)
    largest = np.abs(y).max(initial=0.0)
    scaled = np.asarray(y / largest if largest > 0 else y, dtype=float)
    ranked = np.sort(scaled)
    spread = ranked.std()
    return np.asarray((scaled - ranked.mean()) / (spread if spread > 1e-12 else 1.0))


def _encode(frame: pd.DataFrame, dataset: Dataset, y: NDArray[Any], seed: int) -> tuple[Floats, NDArray[Any]]:
    """Encoded matrix of the (at most 100) columns in use, and their kinds."""
    kinds = [dataset.kinds.get(name) or infer_kind(frame[name]) for name in frame.columns]
    used = [j for j, kind in enumerate(kinds) if kind is not ColumnKind.EMPTY]
    if len(used) > MAX_COLUMNS:
        target = _hash(y.astype(float)) ^ np.uint64(seed % 2**63)
        keys = []
        for j in used:
            cells = _hash(_encode_column(frame.iloc[:, j], kinds[j])) ^ target
            keys.append(_hash(cells).sum(dtype=np.uint64))
        smallest = np.argsort(_hash(np.asarray(keys, dtype=np.uint64)), kind="stable")[:MAX_COLUMNS]
        used = [used[k] for k in smallest]
    values = np.empty((len(frame), len(used)))
    for position, j in enumerate(used):
        values[:, position] = _encode_column(frame.iloc[:, j], kinds[j])
    return values, np.array([kinds[j] for j in used], dtype=object)


def _encode_column(column: pd.Series, kind: ColumnKind) -> Floats:
    """One column as floats; what does not fit its kind is read as categories."""
    try:
        values = _ENCODERS[kind](column)
    except (TypeError, ValueError, OverflowError):
        values = _category_codes(column)
    values = np.where(np.isfinite(values), values, np.nan)
    return values + 0.0  # -0.0 and 0.0 must hash alike


def _numbers(column: pd.Series) -> Floats:
    if pd.api.types.is_timedelta64_dtype(column.dtype):
        return np.asarray(column.dt.total_seconds(), dtype=float)
    if not pd.api.types.is_numeric_dtype(column.dtype):
        column = pd.to_numeric(column, errors="coerce")
    return np.asarray(column.to_numpy(dtype=float, na_value=np.nan))


def _seconds(column: pd.Series) -> Floats:
    if isinstance(column.dtype, pd.PeriodDtype):
        column = column.dt.to_timestamp()
    stamps = pd.to_datetime(column, errors="coerce", utc=True, format=None if _is_date(column) else "ISO8601")
    return np.where(stamps.isna(), np.nan, stamps.astype("datetime64[us, UTC]").astype("int64") / 1e6)


def _is_date(column: pd.Series) -> bool:
    return pd.api.types.is_datetime64_any_dtype(column.dtype)


def _category_codes(column: pd.Series) -> Floats:
    """Codes in the sorted order of the labels read as text (ordered categories keep their order)."""
    if isinstance(column.dtype, pd.CategoricalDtype):
        codes, labels, ordered = column.cat.codes.to_numpy(), column.cat.categories, bool(column.cat.ordered)
    else:
        missing = column.isna().to_numpy()
        codes, labels = pd.factorize(column.astype(str))
        codes, ordered = np.where(missing, -1, codes), False
    rank = np.arange(len(labels)) if ordered else np.argsort(np.argsort(np.asarray(labels).astype(str), kind="stable"))
    present = np.unique(rank[codes[codes >= 0]])  # unused categories leave no gap
    return np.where(codes < 0, np.nan, np.searchsorted(present, rank[codes]) if len(rank) else np.nan).astype(float)


def _text_lengths(column: pd.Series) -> Floats:
    lengths = np.fromiter(map(len, column.astype(str)), dtype=float, count=len(column))
    return np.where(column.isna(), np.nan, lengths)


_ENCODERS = {
    ColumnKind.NUMERIC: _numbers,
    ColumnKind.BOOLEAN: _category_codes,
    ColumnKind.CATEGORICAL: _category_codes,
    ColumnKind.DATETIME: _seconds,
    ColumnKind.TEXT: _text_lengths,
    ColumnKind.EMPTY: _category_codes,
}


def _hash(values: NDArray[Any]) -> Hashes:
    """64-bit hash of each element, same shape; NaN has one hash."""
    if values.dtype.kind == "f":
        values = np.where(np.isnan(values), np.nan, values)
    return np.asarray(pd.util.hash_array(np.ascontiguousarray(values).ravel()).reshape(values.shape))


def _canonical_order(
    values: Floats, kinds: NDArray[Any], y: NDArray[Any], seed: int
) -> tuple[NDArray[np.intp], NDArray[np.intp], Hashes]:
    """Order of rows, order of columns, and the hash of each row's features.

    Rows are hashed by their cells, each salted by its column's hash, and columns by their cells, each salted by its
    row's hash, in turn (colour refinement, Weisfeiler and Leman, 1968). Ties that are left are twins, up to tables
    built to defeat the refinement.
    """
    ordinal = np.array([list(ColumnKind).index(kind) for kind in kinds], dtype=np.uint64)
    cells = _hash(values) + ordinal
    target = _hash(y.astype(float)) + np.uint64(seed % 2**63)
    columns = _hash(cells).sum(axis=0, dtype=np.uint64)
    features = _hash(_hash(cells ^ columns).sum(axis=1, dtype=np.uint64))
    rows = _hash(features ^ target)
    for _ in range(2):
        columns = _hash(_hash(cells ^ rows[:, None]).sum(axis=0, dtype=np.uint64))
        rows = _hash(_hash(cells ^ columns).sum(axis=1, dtype=np.uint64) ^ target)
    column_order = np.argsort(columns, kind="stable")
    row_order = np.argsort(rows, kind="stable")
    if len(np.unique(rows)) < len(rows):  # equal hashes of unequal rows happen in symmetric tables: sort by value
        keys = (*cells.T[column_order[::-1]], rows)
        row_order = np.lexsort(keys)
    return row_order, column_order, features
