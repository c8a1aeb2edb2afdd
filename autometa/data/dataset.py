"""The dataset: a table, a target and what is known of both. It checks itself on birth."""

from __future__ import annotations

import warnings
from collections.abc import Hashable, Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from autometa.data.kinds import ColumnKind, TaskType, infer_kinds, infer_task, is_real_number
from autometa.data.reading import as_frame, as_series, check_columns, listing, read_table
from autometa.data.sampling import stratified_sample
from autometa.exceptions import DataError
from autometa.fingerprint import content_fingerprint


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
                f"The target column {target!r} is not in the table. Its columns are {listing(frame.columns)}."
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
    if is_real_number(target) and not np.isfinite(target.to_numpy(dtype=float)).all():
        raise DataError("Class labels must be finite. Got infinite values (inf).")
    try:
        classes, codes = np.unique(target.to_numpy(), return_inverse=True)
    except TypeError:
        classes, codes = np.unique(target.astype(str).to_numpy(), return_inverse=True)
    return codes.astype(np.int64), classes
