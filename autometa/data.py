"""The dataset: a table, a target and what is known of both. It checks itself on birth."""

from __future__ import annotations

import warnings
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from enum import StrEnum
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from autometa.exceptions import DataError
from autometa.fingerprint import content_fingerprint

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


@dataclass(frozen=True, eq=False)
class Dataset:
    """A table with a target.

    Build one with :meth:`from_frame`, :meth:`from_arrays` or :func:`as_dataset`; the constructor takes what is
    already clean.

    Parameters
    ----------
    X : DataFrame of shape (n_rows, n_features)
        Features, any pandas dtypes, unique column names.
    y : ndarray of shape (n_rows,)
        Class codes 0 .. n_classes - 1 (int64), or finite values (float64) for regression.
    task : TaskType
    classes : ndarray or None
        Class labels in sorted order, ``None`` for regression.
    kinds : mapping of column name to ColumnKind
    groups, time, sample_weight : ndarray of shape (n_rows,) or None
        Rows of one group stay together in validation; ``time`` orders rows; weights enter fits and scores.
    name : str
    source_fingerprint : str or None
        Fingerprint of the table this one is a part of.

    Raises
    ------
    DataError
        One sentence on what is wrong with the table.
    """

    X: pd.DataFrame
    y: NDArray[Any]
    task: TaskType
    classes: NDArray[Any] | None
    kinds: Mapping[Hashable, ColumnKind]
    groups: NDArray[Any] | None = None
    time: NDArray[Any] | None = None
    sample_weight: NDArray[np.float64] | None = None
    name: str = "dataset"
    source_fingerprint: str | None = field(default=None, repr=False)

    def __post_init__(self) -> None:
        check_columns(self.X)
        if len(self.X) != len(self.y):
            raise DataError(f"X and y must have the same number of rows. Got {len(self.X)} and {len(self.y)}.")
        if self.n_rows < 3:
            raise DataError(
                f"At least 3 rows with a target are needed. Got {self.n_rows} rows (n_samples={self.n_rows})."
            )
        if self.task.is_classification and self.n_classes < 2:
            found = [] if self.classes is None else self.classes.tolist()
            raise DataError(f"The target must have at least 2 classes. Got one class: {found}.")
        if self.task.is_classification and self.sample_weight is not None:
            weighted = np.unique(self.y[self.sample_weight > 0]) if len(self.sample_weight) == self.n_rows else [0, 1]
            if len(weighted) < 2:
                raise DataError("At least 2 classes must have a positive sample_weight. Got one class.")
        for label in ("groups", "time", "sample_weight"):
            values = getattr(self, label)
            if values is not None and len(values) != self.n_rows:
                raise DataError(f"{label} must have one value per row ({self.n_rows}). Got {len(values)} instead.")

    @classmethod
    def from_frame(cls, frame: Any, target: Hashable, **options: Any) -> Dataset:
        """From one table (pandas or polars) that holds the target as a column; options as in :meth:`from_arrays`.

        ``groups``, ``time`` and ``sample_weight`` may also name a column of the table: ``groups`` and
        ``sample_weight`` columns are then left out of the features, the ``time`` column stays among them.
        """
        frame = as_frame(frame)
        check_columns(frame)
        if target not in frame.columns:
            raise DataError(
                f"The target column {target!r} is not in the table. Its columns are {_listing(frame.columns)}."
            )
        drop = [target]
        for label in ("groups", "time", "sample_weight"):
            column = options.get(label)
            if isinstance(column, str):
                if column not in frame.columns:
                    raise DataError(f"The {label} column {column!r} is not in the table.")
                options[label] = frame[column].to_numpy()
                drop += [column] if label != "time" else []
        return cls.from_arrays(frame.drop(columns=drop), frame[target], **options)

    @classmethod
    def from_arrays(
        cls,
        X: Any,
        y: Any,
        *,
        task: TaskType | str | None = None,
        groups: Any = None,
        time: Any = None,
        sample_weight: Any = None,
        kinds: Mapping[Hashable, ColumnKind] | None = None,
        name: str = "dataset",
    ) -> Dataset:
        """From features and target (pandas, polars, NumPy, lists).

        Rows without a target are dropped with a warning. ``task=None`` is inferred from the target: text, booleans,
        categories and up to 20 repeated whole numbers are classes, everything else is regression.
        """
        frame, target = as_frame(X), as_series(y)
        if len(frame) != len(target):
            raise DataError(f"X and y must have the same number of rows. Got {len(frame)} and {len(target)}.")
        if len(frame) == 0 or frame.shape[1] == 0:
            rows, columns = frame.shape
            raise DataError(
                f"The table is empty: it has {rows} sample(s) and {columns} feature(s) (shape=({rows}, {columns})) "
                "while a minimum of 1 is required."
            )
        row_data = {"groups": _row_array(groups), "time": _row_array(time), "sample_weight": _row_array(sample_weight)}
        known = target.notna().to_numpy()
        if not known.any():
            raise DataError("The target has no value at all: every row is missing.")
        if not known.all():
            warnings.warn(f"{int((~known).sum())} rows without a target are left out.", UserWarning, stacklevel=2)
            frame, target = frame.loc[known], target[known]
            row_data = {k: v if v is None or len(v) != len(known) else v[known] for k, v in row_data.items()}
        target = _unboxed(target)
        resolved = infer_task(target) if task is None else TaskType(task)
        codes, classes = _encode_target(target, resolved)
        if classes is not None:
            resolved = TaskType.MULTICLASS if len(classes) > 2 else TaskType.BINARY
        frame = frame.reset_index(drop=True)
        check_columns(frame)
        return cls(
            X=frame, y=codes, task=resolved, classes=classes,
            kinds=dict(kinds) if kinds is not None else infer_kinds(frame),
            groups=row_data["groups"], time=row_data["time"],
            sample_weight=None if row_data["sample_weight"] is None else _check_weights(row_data["sample_weight"]),
            name=name,
        )  # fmt: skip

    @property
    def n_rows(self) -> int:
        return len(self.X)

    @property
    def n_features(self) -> int:
        return self.X.shape[1]

    @property
    def n_classes(self) -> int:
        """Number of classes; 0 for regression."""
        return 0 if self.classes is None else len(self.classes)

    @property
    def labels(self) -> NDArray[Any]:
        """The target as it was given, of shape (n_rows,): class labels, or values for regression."""
        return self.y if self.classes is None else self.classes[self.y]

    @property
    def n_categorical(self) -> int:
        """Number of columns of kind ``CATEGORICAL``."""
        return sum(kind is ColumnKind.CATEGORICAL for kind in self.kinds.values())

    @cached_property
    def fingerprint(self) -> str:
        """Content hash of the whole source table (32 hex digits), blind to row order, column order and names."""
        return self.source_fingerprint or content_fingerprint(self.X, self.y)

    def take(self, rows: NDArray[np.integer[Any]]) -> Dataset:
        """The same dataset with only these rows (positions), which keeps the fingerprint of the whole."""
        part: dict[str, Any] = {
            label: None if (values := getattr(self, label)) is None else values[rows]
            for label in ("groups", "time", "sample_weight")
        }
        return replace(
            self,
            X=self.X.iloc[rows].reset_index(drop=True),
            y=self.y[rows],
            source_fingerprint=self.fingerprint,
            **part,
        )

    def subsample(self, n_rows: int, seed: int = 0) -> Dataset:
        """At most ``n_rows`` rows, drawn by seed and stratified by class or by target quantile."""
        if n_rows >= self.n_rows:
            return self
        return self.take(stratified_sample(self.y, self.task, n_rows, seed))


def as_dataset(
    data: Any, y: Any = None, *, target: Hashable | None = None, name: str | None = None, **options: Any
) -> Dataset:
    """Whatever a person has at hand as a :class:`Dataset`.

    ``data`` is a Dataset, a path to CSV or Parquet with ``target=``, a pandas or polars DataFrame with ``target=``,
    or features with ``y``.
    """
    if isinstance(data, Dataset):
        return data
    if isinstance(data, str | Path):
        name = name or Path(data).stem
        data = read_table(data)
    options["name"] = name or "dataset"
    if (target is None) == (y is None):
        raise DataError("Say what to predict: either target=<column name> or y=<values>, and not both.")
    if target is not None:
        return Dataset.from_frame(data, target, **options)
    return Dataset.from_arrays(data, y, **options)


def read_table(path: str | Path) -> pd.DataFrame:
    """A CSV (also compressed) or Parquet file as a DataFrame; DataError in one sentence where it cannot be read."""
    path = Path(path)
    if not path.is_file():
        raise DataError(f"There is no file {str(path)!r}.")
    try:
        if path.suffix in {".parquet", ".pq"}:
            return pd.read_parquet(path)
        _check_header(path)
        return pd.read_csv(path, sep="\t" if ".tsv" in path.suffixes else ",", low_memory=False)
    except DataError:
        raise
    except Exception as error:
        raise DataError(f"The file {str(path)!r} cannot be read as a table: {error}") from error


def _check_header(path: Path) -> None:
    """Duplicate names in a CSV header; pandas would quietly rename them."""
    header = pd.read_csv(path, sep="\t" if ".tsv" in path.suffixes else ",", header=None, nrows=1, dtype=str)
    names = header.iloc[0]
    twice = names[names.notna() & names.duplicated()].unique().tolist()
    if twice:
        raise DataError(f"Column names must be unique. {_listing(twice)} occur more than once in {str(path)!r}.")


def as_frame(X: Any) -> pd.DataFrame:
    """Pandas view of a pandas, polars or array-like table. Array columns are named ``x0, x1, ...``."""
    if isinstance(X, pd.DataFrame):
        return X
    if isinstance(X, pd.Series):
        return X.to_frame()
    if hasattr(X, "to_pandas"):
        return pd.DataFrame(X.to_pandas())
    if hasattr(X, "toarray"):
        raise DataError("Sparse input is not supported: convert it with .toarray() if it fits in memory.")
    values = np.asarray(X)
    if values.dtype.kind == "c":
        raise DataError("Complex data not supported.")
    if values.ndim != 2:
        raise DataError(f"X must be a table of rows and columns. Got {values.ndim} dimension(s). Reshape your data.")
    frame = pd.DataFrame(values, columns=[f"x{i}" for i in range(values.shape[1])])
    return frame.infer_objects() if values.dtype == object else frame


def check_columns(frame: pd.DataFrame) -> None:
    """Raise ``DataError`` unless the columns are one flat level of unique names."""
    if frame.columns.nlevels > 1:
        raise DataError("Columns must have one level of names. Flatten the MultiIndex first.")
    if not frame.columns.is_unique:
        twice = frame.columns[frame.columns.duplicated()].unique().tolist()
        raise DataError(f"Column names must be unique. {_listing(twice)} occur more than once.")


def infer_task(target: pd.Series) -> TaskType:
    """Task of a target without missing values; see :meth:`Dataset.from_arrays` for the rule."""
    labels = target.nunique()
    if not _is_real_number(target):
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


def as_series(y: Any) -> pd.Series:
    """One column (pandas, polars, array, list) as a Series with a fresh index."""
    if hasattr(y, "to_pandas"):
        y = y.to_pandas()
    if isinstance(y, pd.Series):
        return y.reset_index(drop=True)
    values = y.to_numpy() if isinstance(y, pd.DataFrame) else np.asarray(y)
    if values.ndim == 2 and values.shape[1] == 1:
        values = values[:, 0]
    if values.ndim != 1:
        raise DataError(f"y must be one column. Got shape {values.shape} instead.")
    if values.dtype.kind == "c":
        raise DataError("Complex data not supported.")
    return pd.Series(values)


def _unboxed(target: pd.Series) -> pd.Series:
    """Numbers kept as objects (Python's own, ``decimal.Decimal``) as a numeric column; anything else as it is."""
    if pd.api.types.is_complex_dtype(target.dtype):
        raise DataError("Complex data not supported.")
    if target.dtype != object:
        return target
    try:
        target.nunique()
    except TypeError as error:
        raise DataError(
            f"The target must hold numbers or labels. Got {type(target.iloc[0]).__name__} values."
        ) from error
    inferred = pd.api.types.infer_dtype(target)
    if inferred in {"floating", "mixed-integer-float", "decimal"}:
        return target.astype(float)
    return target.infer_objects() if inferred == "integer" else target


def _row_array(values: Any) -> NDArray[Any] | None:
    return None if values is None else np.asarray(values)


def _check_weights(values: NDArray[Any]) -> NDArray[np.float64]:
    weights = np.asarray(values, dtype=float)
    if weights.ndim != 1 or not np.isfinite(weights).all() or (weights < 0).any():
        raise DataError("sample_weight must be one column of finite values >= 0.")
    if not weights.any():
        raise DataError("sample_weight must not be zero for every row.")
    return weights


def _encode_target(target: pd.Series, task: TaskType) -> tuple[NDArray[Any], NDArray[Any] | None]:
    if task is TaskType.REGRESSION:
        try:
            values = target.to_numpy(dtype=float)
        except (TypeError, ValueError) as error:
            raise DataError(
                f"A regression target must be numeric. Got {target.dtype} values that are not: {error}"
            ) from error
        if not np.isfinite(values).all():
            raise DataError("The target must be finite. Got infinite values (inf).")
        return values, None
    if _is_real_number(target) and not np.isfinite(target.to_numpy(dtype=float)).all():
        raise DataError("Class labels must be finite. Got infinite values (inf).")
    try:
        classes, codes = np.unique(target.to_numpy(), return_inverse=True)
    except TypeError:
        classes, codes = np.unique(target.astype(str).to_numpy(), return_inverse=True)
    return codes.astype(np.int64), classes


def _is_real_number(column: pd.Series) -> bool:
    return pd.api.types.is_numeric_dtype(column.dtype) and not pd.api.types.is_bool_dtype(column.dtype)


def _n_distinct(column: pd.Series) -> int:
    try:
        return int(column.nunique(dropna=False)) if column.notna().any() else 0
    except (TypeError, NotImplementedError):  # values such as lists, which cannot be hashed
        return int(column.astype(str).nunique())


def _listing(names: Any, most: int = 8) -> str:
    names = [repr(name) for name in list(names)]
    return ", ".join(names[:most]) + (f" and {len(names) - most} more" if len(names) > most else "")


def feature_names(kinds: Mapping[Hashable, ColumnKind], wanted: Sequence[ColumnKind]) -> list[Hashable]:
    """Names of the columns of the wanted kinds, in table order."""
    return [name for name, kind in kinds.items() if kind in wanted]
