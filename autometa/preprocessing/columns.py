"""One column of a table as a NumPy array: numbers, dates, category codes or texts, whatever dtype it arrives in."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Hashable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from autometa.data import MAX_CATEGORIES, ColumnKind
from autometa.exceptions import DataError

FLOAT32_MAX = float(np.finfo(np.float32).max)
UNKNOWN, MISSING = -1, -2
"""Codes of a category that was not seen in fit and of a missing one."""

CYCLES = {"month": 12.0, "weekday": 7.0, "hour": 24.0}
_UNRESOLVED = -9
_FEW_ROWS = 4
_WHOLE_NUMBER = re.compile(r"-?\d+\.0+")
_TRUTH_WORDS = {"true": 1.0, "false": 0.0}


def read_numbers(
    frame: pd.DataFrame, positions: Sequence[int], kinds: Sequence[ColumnKind] | None = None
) -> NDArray[np.float64]:
    """Number columns as one matrix of shape (n_rows, len(positions)): NaN where missing, infinities made finite.

    Columns of plain dtypes are read at once; only the others cost a visit each.

    Raises
    ------
    DataError
        A value cannot be read as a number.
    """
    dtypes = frame.dtypes.tolist()
    plain = [i for i, position in enumerate(positions) if _is_plain(dtypes[position])]
    values: NDArray[np.float64] = np.empty((len(frame), len(positions)))
    if plain and 2 * len(plain) > len(dtypes) and all(map(_is_plain, dtypes)):
        values = frame.to_numpy(dtype=np.float64)[:, positions]
    elif plain:
        values[:, plain] = frame.take([positions[i] for i in plain], axis=1).to_numpy(dtype=np.float64)
    for i in set(range(len(positions))).difference(plain):
        truth = kinds is not None and kinds[i] is ColumnKind.BOOLEAN
        values[:, i] = _read_number_column(column_at(frame, positions[i]), truth)
    return np.clip(values, -FLOAT32_MAX, FLOAT32_MAX)


def column_at(frame: pd.DataFrame, position: int) -> pd.Series:
    """Column by position; by its label underneath, which pandas finds in half the time of ``iloc``."""
    return frame[frame.columns[position]]


def _is_plain(dtype: Any) -> bool:
    return isinstance(dtype, np.dtype) and dtype.kind in "fiub"


def _read_number_column(column: pd.Series, truth: bool) -> NDArray[np.float64]:
    """Numbers of a nullable, time span, category, string or object column; time spans in seconds."""
    dtype = column.dtype
    if isinstance(dtype, np.dtype) and dtype.kind == "m":
        seconds = column.to_numpy().astype("timedelta64[ns]").astype(np.int64) / 1e9
        return np.where(column.isna().to_numpy(), np.nan, seconds)
    if not isinstance(dtype, np.dtype) and pd.api.types.is_numeric_dtype(dtype):
        return column.to_numpy(dtype=np.float64, na_value=np.nan)
    values = column.to_numpy(dtype=object)
    if isinstance(dtype, np.dtype) and not truth:
        try:
            return values.astype(np.float64)
        except (TypeError, ValueError, OverflowError):
            pass  # a value needs a closer look
    return np.array([_read_number(value, column.name, truth) for value in values.tolist()], dtype=np.float64)


def _read_number(value: Any, name: Hashable, truth: bool) -> float:
    if _is_missing(value):
        return np.nan
    if isinstance(value, timedelta):
        return value.total_seconds()
    if isinstance(value, str):
        text = value.strip().lower()
        if not text:
            return np.nan
        if truth and text in _TRUTH_WORDS:
            return _TRUTH_WORDS[text]
    try:
        return float(value)
    except OverflowError:
        return np.inf if value > 0 else -np.inf
    except (TypeError, ValueError):
        wanted = "true or false" if truth else "numbers"
        raise DataError(
            f"The column {name!r} must hold {wanted}. Got {_shorten(value)} ({type(value).__name__}) instead. "
            "Convert it, or leave it missing."
        ) from None


@dataclass(frozen=True)
class DateColumn:
    """How one date column becomes numbers.

    Parameters
    ----------
    origin : int
        Day (since 1970-01-01) from which days are counted, so that float32 keeps minutes apart.
    parts : tuple of str
        Which of "year", "month", "weekday" and "hour" vary and are given beside the days.
    lenient : bool
        Whether texts that are no dates count as missing, because the table of ``fit`` held some.
    cyclic : bool
        Whether month, weekday and hour are given as sine and cosine.
    """

    origin: int
    parts: tuple[str, ...]
    lenient: bool
    cyclic: bool

    @classmethod
    def fit(cls, column: pd.Series, cyclic: bool) -> DateColumn:
        """Days are counted from the middle of the column; parts that do not vary are left out."""
        dates, lenient = read_dates(column, lenient=True)
        if lenient and np.isnat(dates).all():
            read_dates(column, lenient=False)  # raises: not one value is a date
        parts = _date_parts(dates)
        days = parts["days"][~np.isnan(parts["days"])]
        varying = [name for name in ("year", "month", "weekday", "hour") if _varies(parts[name])]
        return cls(int(np.median(days)) if len(days) else 0, tuple(varying), lenient, cyclic)

    def transform(self, column: pd.Series) -> NDArray[np.float64]:
        """Matrix of shape (n_rows, len(self.names)), NaN where the date is missing."""
        parts = _date_parts(read_dates(column, self.lenient)[0])
        found = [parts["days"] - self.origin]
        for name in self.parts:
            if self.cyclic and name in CYCLES:
                angle = 2 * np.pi / CYCLES[name] * parts[name]
                found += [np.sin(angle), np.cos(angle)]
            else:
                found.append(parts[name])
        return np.column_stack(found)

    @property
    def names(self) -> list[str]:
        found = ["days"]
        for name in self.parts:
            found += [f"{name}_sin", f"{name}_cos"] if self.cyclic and name in CYCLES else [name]
        return found


def read_dates(column: pd.Series, lenient: bool) -> tuple[NDArray[np.datetime64], bool]:
    """Dates in UTC as datetime64[us], NaT where missing, and whether some texts were no dates.

    Raises
    ------
    DataError
        Numbers, or, unless ``lenient``, texts that are no dates.
    """
    dtype = column.dtype
    if isinstance(dtype, np.dtype) and dtype.kind == "M":
        return column.to_numpy().astype("datetime64[us]"), False
    if isinstance(dtype, pd.DatetimeTZDtype):
        return column.to_numpy(dtype="datetime64[us]"), False
    if isinstance(dtype, pd.PeriodDtype):
        return column.dt.to_timestamp().to_numpy().astype("datetime64[us]"), False
    values = pd.Series(column.to_numpy(dtype=object), dtype=object)
    known = values.notna().to_numpy()
    if not known.any():
        return np.full(len(column), "NaT", dtype="datetime64[us]"), False
    if pd.api.types.is_numeric_dtype(dtype) or isinstance(values[known].iloc[0], int | float):
        raise _no_date(column, values[known].iloc[0])
    texts = values.where(~known, values.astype(str))
    parsed = pd.to_datetime(texts, errors="coerce", format="ISO8601", utc=True)
    dates = parsed.dt.tz_localize(None).to_numpy().astype("datetime64[us]")
    failed = np.isnat(dates) & known
    if failed.any() and not lenient:
        raise _no_date(column, values[failed].iloc[0])
    return dates, bool(failed.any())


def _no_date(column: pd.Series, value: Any) -> DataError:
    return DataError(
        f"The column {column.name!r} must hold dates. Got {_shorten(value)} ({type(value).__name__}) instead. "
        "Write dates as YYYY-MM-DD, or leave them missing."
    )


def _date_parts(dates: NDArray[np.datetime64]) -> dict[str, NDArray[np.float64]]:
    """Days since 1970 (with fraction), year, month (1 = January), weekday (0 = Monday) and hour (with fraction)."""
    absent = np.isnat(dates)
    whole_days = dates.astype("datetime64[D]").astype(np.int64)
    months = dates.astype("datetime64[M]").astype(np.int64)
    hour = (dates - dates.astype("datetime64[D]")).astype(np.int64) / 3.6e9
    parts = {
        "days": whole_days + hour / 24.0,
        "year": 1970.0 + months // 12,
        "month": 1.0 + months % 12,
        "weekday": (whole_days + 3.0) % 7,
        "hour": hour,
    }
    return {name: np.where(absent, np.nan, values) for name, values in parts.items()}


def _varies(values: NDArray[np.float64]) -> bool:
    known = values[~np.isnan(values)]
    return len(known) > 0 and bool(known.min() < known.max())


def category_levels(column: pd.Series) -> tuple[list[str], list[int], bool]:
    """Levels from the most frequent on (ties by name, at most 254), their counts, and whether a value is missing."""
    counts: Counter[str] = Counter()
    missing = False
    for value, count in _count_values(column):
        key = category_key(value)
        if key is None:
            missing = True
        else:
            counts[key] += count
    ordered = sorted(counts.items(), key=lambda item: (-item[1], item[0]))[:MAX_CATEGORIES]
    return [key for key, _ in ordered], [count for _, count in ordered], missing


def _count_values(column: pd.Series) -> Iterable[tuple[Any, int]]:
    """Values with counts; values that are equal but of different types (1 and True) are not counted together."""
    if isinstance(column.dtype, pd.CategoricalDtype):
        codes = column.cat.codes.to_numpy()
        counts = np.bincount(codes + 1, minlength=len(column.cat.categories) + 1)
        values = [None, *column.cat.categories.tolist()]
        return [(value, int(count)) for value, count in zip(values, counts, strict=True) if count]
    values = column.to_numpy(dtype=object).tolist()
    if set(map(type, values)) <= {str, type(None), float}:
        return Counter(values).items()
    return ((value, 1) for value in values)


def category_lookup(levels: Sequence[str]) -> dict[Any, int]:
    """What :func:`category_codes` looks values up in."""
    lookup: dict[Any, int] = {level: code for code, level in enumerate(levels)}
    return lookup | {None: MISSING, pd.NA: MISSING, pd.NaT: MISSING, np.nan: MISSING}


def category_codes(column: pd.Series, lookup: Mapping[Any, int]) -> NDArray[np.int64]:
    """Code of each value, -1 if it was not seen in fit, -2 if it is missing. Shape (n_rows,)."""
    array = column.array
    if isinstance(array, pd.Categorical):
        categories, codes = array.categories, array.codes
        if len(codes) <= _FEW_ROWS:
            return _look_up([categories[code] if code >= 0 else None for code in codes.tolist()], lookup)
        if len(codes) > len(categories):
            found = _look_up([*categories.tolist(), None], lookup)  # code -1 takes the last one, missing
            return np.asarray(found[codes])
    return _look_up(column.to_numpy(dtype=object).tolist(), lookup)


def _look_up(values: list[Any], lookup: Mapping[Any, int]) -> NDArray[np.int64]:
    try:
        codes = np.array([lookup.get(value, _UNRESOLVED) for value in values], dtype=np.int64)
    except TypeError:  # unhashable values such as lists
        codes = np.full(len(values), _UNRESOLVED)
    for row in np.flatnonzero(codes == _UNRESOLVED).tolist():
        key = category_key(values[row])
        codes[row] = MISSING if key is None else lookup.get(key, UNKNOWN)
    return codes


def category_key(value: Any) -> str | None:
    """Text under which a category is known: 1, 1.0, "1" and "1.0" are one category; None where it is missing."""
    if type(value) is str:
        return value[: value.index(".")] if value[-1:] == "0" and _WHOLE_NUMBER.fullmatch(value) else value
    if _is_missing(value):
        return None
    if isinstance(value, float | np.floating):
        number = float(value)
        return str(int(number)) if number.is_integer() else str(number)
    return category_key(str(value))


def read_texts(column: pd.Series) -> list[str]:
    """Values as text, empty where missing."""
    values = column.to_numpy(dtype=object).tolist()
    return [value if type(value) is str else "" if _is_missing(value) else str(value) for value in values]


def _is_missing(value: Any) -> bool:
    return value is None or value is pd.NA or value is pd.NaT or (isinstance(value, float) and value != value)


def _shorten(value: Any, length: int = 40) -> str:
    text = repr(value)
    return text if len(text) <= length else text[: length - 3] + "..."
