"""What is predicted, and how columns are read: inferred from what they hold."""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence
from enum import StrEnum

import numpy as np
import pandas as pd

MAX_CATEGORIES = 254
"""A column with more distinct values than this is treated as text (its code must fit one byte with room to spare)."""

_KIND_SAMPLE_ROWS = 20_000
_MAX_CLASS_LABELS = 20


class TaskType(StrEnum):
    """What is predicted."""

    BINARY = "binary"
    MULTICLASS = "multiclass"
    REGRESSION = "regression"

    @property
    def is_classification(self) -> bool:
        return self is not TaskType.REGRESSION


class ColumnKind(StrEnum):
    """How a column is read. ``EMPTY`` columns (constant or all missing) carry nothing and are left out."""

    NUMERIC = "numeric"
    BOOLEAN = "boolean"
    CATEGORICAL = "categorical"
    DATETIME = "datetime"
    TEXT = "text"
    EMPTY = "empty"


def infer_task(target: pd.Series) -> TaskType:
    """Task of a target without missing values; see :meth:`Dataset.from_arrays` for the rule."""
    labels = target.nunique()
    if not is_real_number(target):
        return TaskType.BINARY if labels <= 2 else TaskType.MULTICLASS
    values = target.to_numpy(dtype=float)
    whole = bool(np.all(np.isfinite(values)) and np.all(values == np.round(values)))
    if whole and labels <= min(_MAX_CLASS_LABELS, max(2, len(target) // 5)):
        return TaskType.BINARY if labels <= 2 else TaskType.MULTICLASS
    return TaskType.REGRESSION


def infer_kinds(frame: pd.DataFrame) -> dict[Hashable, ColumnKind]:
    """Kind of each column, from its dtype and, for objects, from up to 20,000 of its values."""
    return {name: infer_kind(frame[name]) for name in frame.columns}


def infer_kind(column: pd.Series) -> ColumnKind:
    """Kind of one column. Numbers, booleans and ISO dates kept as objects or strings are recognised."""
    dtype = column.dtype
    if len(column) > _KIND_SAMPLE_ROWS:
        sample = column.iloc[np.linspace(0, len(column) - 1, _KIND_SAMPLE_ROWS).astype(int)]
    else:
        sample = column
    if _n_distinct(sample) < 2 and (sample is column or _n_distinct(column) < 2):
        return ColumnKind.EMPTY
    if pd.api.types.is_bool_dtype(dtype):
        return ColumnKind.BOOLEAN
    if pd.api.types.is_numeric_dtype(dtype) or pd.api.types.is_timedelta64_dtype(dtype):
        return ColumnKind.NUMERIC
    if pd.api.types.is_datetime64_any_dtype(dtype) or isinstance(dtype, pd.PeriodDtype):
        return ColumnKind.DATETIME
    if isinstance(dtype, pd.CategoricalDtype):
        return ColumnKind.CATEGORICAL if sample.nunique() <= MAX_CATEGORIES else ColumnKind.TEXT
    return _infer_object_kind(sample.dropna())


def _infer_object_kind(values: pd.Series) -> ColumnKind:
    inferred = pd.api.types.infer_dtype(values, skipna=True)
    if inferred == "boolean":
        return ColumnKind.BOOLEAN
    if inferred in {"integer", "floating", "mixed-integer-float", "decimal"}:
        return ColumnKind.NUMERIC
    if inferred in {"datetime64", "datetime", "date"}:
        return ColumnKind.DATETIME
    strings = values.astype(str)
    if pd.to_numeric(strings, errors="coerce").notna().all():
        return ColumnKind.NUMERIC
    looks_like_dates = strings.iloc[:100].str.match(r"^\d{4}-\d{1,2}-\d{1,2}").all()
    if looks_like_dates and pd.to_datetime(strings, errors="coerce", format="ISO8601", utc=True).notna().mean() > 0.95:
        return ColumnKind.DATETIME
    distinct = strings.nunique()
    words = float(strings.iloc[:1000].str.count(" ").mean()) + 1
    if distinct > MAX_CATEGORIES or (words >= 4 and distinct > max(30, 0.5 * len(strings))):
        return ColumnKind.TEXT
    return ColumnKind.CATEGORICAL


def is_real_number(column: pd.Series) -> bool:
    """Whether a column has a numeric dtype that is not boolean."""
    return pd.api.types.is_numeric_dtype(column.dtype) and not pd.api.types.is_bool_dtype(column.dtype)


def _n_distinct(column: pd.Series) -> int:
    try:
        return int(column.nunique(dropna=False)) if column.notna().any() else 0
    except (TypeError, NotImplementedError):  # values such as lists, which cannot be hashed
        return int(column.astype(str).nunique())


def feature_names(kinds: Mapping[Hashable, ColumnKind], wanted: Sequence[ColumnKind]) -> list[Hashable]:
    """Names of the columns of the wanted kinds, in table order."""
    return [name for name, kind in kinds.items() if kind in wanted]
