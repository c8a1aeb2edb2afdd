"""Seconds and extra memory of ``extract`` at two sizes, and how its features spread over a folder of tables.

    python experiments/benchmarks/meta_features.py [--tables 40]

The second part reads the tables of AUTOMETA_DATA (parquet files with a ``target`` column), where it is set.
"""

from __future__ import annotations

import argparse
import json
import os
import time
import tracemalloc
from pathlib import Path

import numpy as np
import pandas as pd

from autometa.data import Dataset
from autometa.meta_features import FEATURE_GROUPS, FEATURE_NAMES, extract

SIZES = ((10_000, 50), (1_000_000, 100))


def mixed_table(n_rows: int, n_columns: int, seed: int = 0) -> Dataset:
    """60 % floats (some missing), 20 % whole numbers, 16 % categories of 5 to 200 levels, 4 % dates; two classes."""
    rng = np.random.default_rng(seed)
    columns: dict[str, object] = {}
    for j in range(n_columns):
        part = j % 25
        if part < 15:
            values = rng.standard_normal(n_rows) * 10.0 ** (j % 5)
            values[rng.random(n_rows) < 0.05 * (j % 3)] = np.nan
            columns[f"float{j}"] = values
        elif part < 20:
            columns[f"whole{j}"] = rng.poisson(1 + j % 7, n_rows)
        elif part < 24:
            levels = [f"level {k}" for k in range((5, 20, 60, 200)[part - 20])]
            columns[f"category{j}"] = pd.Categorical.from_codes(rng.integers(0, len(levels), n_rows), levels)
        else:
            columns[f"date{j}"] = pd.Timestamp("2020-01-01") + pd.to_timedelta(rng.integers(0, 10**8, n_rows), "s")
    table = pd.DataFrame(columns)
    signal = table["float0"].fillna(0) + table["float1"].fillna(0) / 10 + rng.standard_normal(n_rows)
    return Dataset.from_arrays(table, (signal > 0.5).to_numpy().astype(int))


def measure_sizes(n_repeats: int) -> None:
    print(
        f"{'table':>16} {'min s':>8} {'median s':>9} {'min CPU s':>10} {'peak MB':>8} {'bound MB':>9}   slowest groups"
    )
    for n_rows, n_columns in SIZES:
        dataset = mixed_table(n_rows, n_columns)
        runs, cpu_seconds = [], []
        for _ in range(n_repeats):
            began = time.process_time()  # the fairer figure while other work shares the cores: extract uses one
            runs.append(extract(dataset))
            cpu_seconds.append(time.process_time() - began)
        seconds = [run.seconds for run in runs]
        tracemalloc.start()
        extract(dataset)
        peak = tracemalloc.get_traced_memory()[1] / 2**20
        tracemalloc.stop()
        bound = 64 + 0.1 * dataset.X.memory_usage(deep=True).sum() / 2**20
        slowest = sorted(runs[int(np.argmin(seconds))].group_seconds.items(), key=lambda item: -item[1])[:4]
        groups = ", ".join(f"{name} {value:.3f}" for name, value in slowest)
        print(f"{n_rows:>9} x {n_columns:<4} {min(seconds):>8.3f} {np.median(seconds):>9.3f} {min(cpu_seconds):>10.3f} "
              f"{peak:>8.1f} {bound:>9.1f}   {groups}")  # fmt: skip


def survey_tables(folder: Path, n_tables: int) -> None:
    """Share of NaN, distinct values and quantiles of each feature over tables that may be learned from."""
    index = [json.loads(line) for line in (folder / "index.jsonl").read_text().splitlines()]
    index = [entry for entry in index if entry["collection"] == "meta_train"]
    rows, began = [], time.perf_counter()
    for entry in index[:: max(1, len(index) // n_tables)][:n_tables]:
        dataset = Dataset.from_frame(pd.read_parquet(folder / f"{entry['name']}.parquet"), "target")
        found = extract(dataset)
        rows.append({**found.values, "seconds": found.seconds, "task": str(dataset.task)})
    table = pd.DataFrame(rows)
    regression = table["task"] == "regression"
    print(f"\n{len(table)} tables ({int(regression.sum())} regression) in {time.perf_counter() - began:.1f} s; "
          f"extract: median {table['seconds'].median():.3f} s, most {table['seconds'].max():.3f} s")  # fmt: skip
    print(f"{'feature':<34} {'NaN classes':>11} {'NaN regr.':>9} {'distinct':>9} {'10 %':>9} {'50 %':>9} {'90 %':>9}")
    for name in FEATURE_NAMES:
        column = table[name]
        low, middle, high = column.quantile([0.1, 0.5, 0.9])
        print(f"{name:<34} {column[~regression].isna().mean():>11.2f} {column[regression].isna().mean():>9.2f} "
              f"{column.nunique():>9} {low:>9.3f} {middle:>9.3f} {high:>9.3f}")  # fmt: skip
    distinct = table[list(FEATURE_NAMES)].round(9).drop_duplicates().shape[0]
    print(f"distinct feature vectors: {distinct} of {len(table)}; groups: {', '.join(FEATURE_GROUPS)}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--repeats", type=int, default=7)
    parser.add_argument("--tables", type=int, default=40)
    options = parser.parse_args()
    measure_sizes(options.repeats)
    if os.environ.get("AUTOMETA_DATA"):
        survey_tables(Path(os.environ["AUTOMETA_DATA"]), options.tables)


if __name__ == "__main__":
    main()
