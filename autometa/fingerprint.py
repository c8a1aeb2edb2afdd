"""Content hash of a table: how a dataset is recognised wherever it turns up."""

from __future__ import annotations

import hashlib
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray


def content_fingerprint(X: pd.DataFrame, y: NDArray[Any]) -> str:
    """Hash of a table's content that ignores the order of rows and columns and the names of columns.

    Every value is hashed (numbers as float64, the rest as text), mixed with a hash of its whole column, and summed
    over columns to a row hash; the row hashes are mixed and summed. The target counts as a marked column.
    """
    total = np.zeros(len(X), dtype=np.uint64)
    for position in range(X.shape[1]):
        total += _column_hash(X.iloc[:, position])
    total += _mix(_column_hash(pd.Series(y, dtype=float)))
    sums = [int(part.sum(dtype=np.uint64)) for part in (_mix(total), _mix(total ^ np.uint64(0x9E3779B97F4A7C15)))]
    text = f"{X.shape[0]}x{X.shape[1]}:{sums[0]}:{sums[1]}"
    return hashlib.blake2b(text.encode(), digest_size=16).hexdigest()


def _column_hash(column: pd.Series) -> NDArray[np.uint64]:
    """Row-wise hash of one column, salted by the multiset of its values. Shape (n_rows,)."""
    if pd.api.types.is_numeric_dtype(column.dtype) or pd.api.types.is_bool_dtype(column.dtype):
        values: Any = column.to_numpy(dtype=float, na_value=np.nan) + 0.0  # -0.0 becomes 0.0
    else:
        values = column.astype(object).where(column.notna(), "").astype(str).to_numpy(dtype=object)
    hashes = _mix(pd.util.hash_array(values))
    salt = _mix(np.array([hashes.sum(dtype=np.uint64)], dtype=np.uint64))[0]
    return _mix(hashes ^ salt)


def _mix(values: NDArray[np.uint64]) -> NDArray[np.uint64]:
    """Finaliser of SplitMix64 (Steele et al., 2014): every input bit moves every output bit."""
    z = (values ^ (values >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return z ^ (z >> np.uint64(31))
