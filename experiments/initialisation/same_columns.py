"""Families of tables with the same columns: a new table with 5 or 20 labelled rows.

Adapted (``MetaInitializer``) against training alone on the shots, one pooled model of all earlier tables, and that
pooled model plus the shots' mean error. Real families: houses in Melbourne by council area, pupils by school
(mlmrev_star, mlmrev_bdf); synthetic: each table has its own mixture of three functions. Tables are split in two
halves, each meta-trained on once and tested on once; two draws of the shots a table; intervals by bootstrap over
tables. RMSE is in units of the table's own standard deviation. About five CPU minutes:

    AUTOMETA_DATA=... OMP_NUM_THREADS=1 .venv/bin/python experiments/initialisation/same_columns.py
"""

from __future__ import annotations

import sys
import warnings

import numpy as np
import pandas as pd
import torch
from joblib import Parallel, delayed
from numpy.typing import NDArray
from sklearn.linear_model import RidgeCV

from autometa import MetaInitializer
from autometa.collection import data_folder
from autometa.experiment.simulation import bootstrap_interval
from autometa.families._net_estimators import NetRegressor
from autometa.preprocessing import TableEncoder

Table = tuple[pd.DataFrame, NDArray[np.float64]]
SHOTS = (5, 20)
N_DRAWS = 2
MIN_ROWS = 45
MAX_ROWS = 200
MAX_TABLES = 40
EPOCHS = {"n_epochs": 24}


def real(name: str, group: str, drop: tuple[str, ...] = (), *, log: bool = False) -> list[Table]:
    """One table for each value of a column."""
    frame = pd.read_parquet(data_folder() / f"{name}.parquet").dropna(subset=[group]).reset_index(drop=True)
    target = np.log(frame["target"]) if log else frame["target"]
    X = frame.drop(columns=["target", group, *drop])
    rng, tables = np.random.default_rng(0), []
    for rows in frame.groupby(group, observed=True).indices.values():
        if len(rows) >= MIN_ROWS:
            rows = rng.permutation(rows)[:MAX_ROWS]
            tables.append((X.iloc[rows].reset_index(drop=True), target.to_numpy(float)[rows]))
    return tables[:MAX_TABLES]


def synthetic(n_tables: int = 40) -> list[Table]:
    """Each table mixes the same three functions with weights of its own."""
    rng, tables = np.random.default_rng(0), []
    for _ in range(n_tables):
        x = rng.normal(size=(120, 5))
        parts = np.stack([np.sin(2 * x[:, 0]), x[:, 1] * x[:, 2], np.abs(x[:, 3])], axis=1)
        y = parts @ rng.normal(size=3) + 0.5 * x[:, 4] + rng.normal() + 0.3 * rng.normal(size=120)
        tables.append((pd.DataFrame(x, columns=list("abcde")), y))
    return tables


FAMILIES = {
    "synthetic": synthetic,
    "melbourne, council": lambda: real(
        "melbourne_housing", "CouncilArea", ("Suburb", "SellerG", "Postcode", "Regionname", "Propertycount"), log=True
    ),
    "star, school": lambda: real("mlmrev_star", "sch", ("tch",)),
    "bdf, school": lambda: real("mlmrev_bdf", "schoolNR", ("classNR",)),
}


def alone(encoder: TableEncoder, few: Table, X: pd.DataFrame) -> dict[str, NDArray[np.float64]]:
    """Models of the shots only."""
    linear = RidgeCV(np.logspace(-1, 4, 11)).fit(encoder.transform(few[0]), few[1])
    net_encoder = TableEncoder("net", kinds=encoder.kinds_).fit(few[0])
    net = NetRegressor(config=EPOCHS, n_categorical=net_encoder.n_categorical_).fit(
        net_encoder.transform(few[0]), few[1]
    )
    return {
        "alone, ridge": linear.predict(encoder.transform(X)), "alone, net": net.predict(net_encoder.transform(X)),
        "alone, mean": np.full(len(X), few[1].mean()),
    }  # fmt: skip


def compare(train: list[Table], test: list[Table]) -> list[dict[str, float]]:
    """One row for each test table, number of shots and arm."""
    X, y = pd.concat([table[0] for table in train], ignore_index=True), np.concatenate([table[1] for table in train])
    meta = MetaInitializer(n_shots=(4, 30), n_meta_steps=500, task="regression").fit(train)
    linear, net_encoder = TableEncoder("linear").fit(X), TableEncoder("net").fit(X)
    pooled = NetRegressor(config=EPOCHS, n_categorical=net_encoder.n_categorical_).fit(net_encoder.transform(X), y)
    rows = []
    for number, (X_table, y_table) in enumerate(test):
        for shots in SHOTS:
            for draw in range(N_DRAWS):
                order = np.random.default_rng([number, shots, draw]).permutation(len(y_table))
                few, rest = order[:shots], order[shots:]
                X_few, X_rest = X_table.iloc[few], X_table.iloc[rest]
                said = pooled.predict(net_encoder.transform(X_table))
                arms = {
                    "adapted": meta.adapt(X_few, y_table[few]).predict(X_rest), "pooled": said[rest],
                    "pooled + mean error": said[rest] + (y_table[few] - said[few]).mean(),
                    **alone(linear, (X_few, y_table[few]), X_rest),
                }  # fmt: skip
                for arm, prediction in arms.items():
                    error = np.sqrt(np.mean((prediction - y_table[rest]) ** 2)) / y_table.std()
                    rows.append({"table": number, "shots": shots, "arm": arm, "error": error})
    return rows


def interval(values: NDArray[np.float64]) -> str:
    """Mean and 95 % bootstrap interval over tables."""
    mean, low, high = bootstrap_interval(values)
    return f"{mean:+.3f} [{low:+.3f}, {high:+.3f}]"


def main() -> None:
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    chosen = sys.argv[1:] or list(FAMILIES)
    for name in chosen:
        tables = FAMILIES[name]()
        halves = [list(range(0, len(tables), 2)), list(range(1, len(tables), 2))]
        pairs = [([tables[j] for j in halves[1 - i]], [tables[j] for j in halves[i]]) for i in range(2)]
        found = Parallel(n_jobs=2)(delayed(compare)(train, test) for train, test in pairs)
        rows = [{**row, "table": f"{i} {row['table']}"} for i, half in enumerate(found) for row in half]
        errors = pd.DataFrame(rows).groupby(["shots", "arm", "table"])["error"].mean().unstack("table")
        print(f"\n{name}: {len(tables)} tables", flush=True)
        for shots in SHOTS:
            table = errors.loc[shots]
            print(
                f"  {shots} shots: adapted {table.loc['adapted'].mean():.3f}; others, and how much better adapted is:"
            )
            for arm in table.index.drop("adapted"):
                gain = (table.loc[arm] - table.loc["adapted"]).to_numpy()
                print(f"    {arm:20} {table.loc[arm].mean():.3f}  {interval(gain)}", flush=True)


if __name__ == "__main__":
    main()
