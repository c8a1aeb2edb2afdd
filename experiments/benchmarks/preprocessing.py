"""Milliseconds of TableEncoder: fit and transform of 2,000 rows, and transform of one row, for each kind of matrix.

    OMP_NUM_THREADS=1 python experiments/benchmarks/preprocessing.py [TABLE.parquet ...]

A synthetic table of 100 columns and one of 20 columns, then the Parquet tables given (column ``target``; up to 2,000
rows, half to fit and half to transform). Without arguments, a few tables of the folder AUTOMETA_DATA if it is set.
The figure is the fastest of several repeats; "fit" has the kinds of columns given, as from a Dataset.
"""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Callable, Hashable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from autometa.data import ColumnKind, as_dataset, infer_kinds
from autometa.preprocessing import TableEncoder

TABLES = ("adult", "abalone", "melbourne_housing", "nycflights13_flights", "dna_splice_binary")
HEADER = f"{'table':24}{'matrix':>8}{'rows':>7}{'columns':>9}{'out':>6}{'fit':>9}{'transform':>11}{'one row':>9}"


def fastest(function: Callable[[], Any], repeats: int) -> float:
    """Milliseconds of the fastest call."""
    seconds = []
    for _ in range(repeats):
        start = time.perf_counter()
        function()
        seconds.append(time.perf_counter() - start)
    return 1000 * min(seconds)


def synthetic(n_rows: int, n_columns: int, seed: int = 0) -> pd.DataFrame:
    """60 % floats (some missing), 10 % whole numbers, 25 % categories of 20 levels, 5 % booleans."""
    rng = np.random.default_rng(seed)
    columns: dict[str, Any] = {}
    for i in range(n_columns):
        share = i / n_columns
        if share < 0.6:
            values = rng.normal(size=n_rows)
            columns[f"x{i}"] = np.where(rng.random(n_rows) < 0.1, np.nan, values) if i % 6 == 0 else values
        elif share < 0.7:
            columns[f"x{i}"] = rng.integers(0, 50, n_rows)
        elif share < 0.95:
            columns[f"x{i}"] = rng.choice([f"level {j}" for j in range(20)], n_rows)
        else:
            columns[f"x{i}"] = rng.random(n_rows) < 0.5
    return pd.DataFrame(columns)


def report(name: str, train: pd.DataFrame, test: pd.DataFrame, kinds: Mapping[Hashable, ColumnKind]) -> None:
    """One line per kind of matrix."""
    for matrix in ("tree", "linear", "net"):
        encoder = TableEncoder(matrix, kinds).fit(train)
        row = test.iloc[[0]].copy()
        width = encoder.transform(row).shape[1]
        fit = fastest(lambda matrix=matrix: TableEncoder(matrix, kinds).fit(train), 5)  # type: ignore[misc]
        batch = fastest(lambda encoder=encoder: encoder.transform(test), 7)  # type: ignore[misc]
        single = fastest(lambda encoder=encoder, row=row: encoder.transform(row), 200)  # type: ignore[misc]
        shape = f"{len(test):>7}{train.shape[1]:>9}{width:>6}"
        print(f"{name[:23]:24}{matrix:>8}{shape}{fit:>9.1f}{batch:>11.2f}{single:>9.3f}")


def main() -> None:
    folder = os.environ.get("AUTOMETA_DATA")
    paths = [Path(argument) for argument in sys.argv[1:]]
    if not paths and folder:
        paths = [path for name in TABLES if (path := Path(folder) / f"{name}.parquet").is_file()]
    print(HEADER)
    for n_columns in (100, 20):
        table = synthetic(2000, n_columns)
        report(f"synthetic {n_columns}", table, table, infer_kinds(table))
    for path in paths:
        dataset = as_dataset(path, target="target").subsample(2000)
        half = dataset.n_rows // 2
        report(path.stem, dataset.X.iloc[:half], dataset.X.iloc[half:], dataset.kinds)


if __name__ == "__main__":
    main()
