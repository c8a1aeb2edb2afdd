"""Tables as people have them, files and frames and arrays, read as pandas."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from autometa.exceptions import DataError


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
        raise DataError(f"Column names must be unique. {listing(twice)} occur more than once in {str(path)!r}.")


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


def check_columns(frame: pd.DataFrame) -> None:
    """Raise ``DataError`` unless the columns are one flat level of unique names."""
    if frame.columns.nlevels > 1:
        raise DataError("Columns must have one level of names. Flatten the MultiIndex first.")
    if not frame.columns.is_unique:
        twice = frame.columns[frame.columns.duplicated()].unique().tolist()
        raise DataError(f"Column names must be unique. {listing(twice)} occur more than once.")


def listing(names: Any, most: int = 8) -> str:
    """The first names in quotation marks, and how many more there are."""
    names = [repr(name) for name in list(names)]
    return ", ".join(names[:most]) + (f" and {len(names) - most} more" if len(names) > most else "")
