"""What ``fine_tune`` gains on rows that it never saw, on tables of the collection ``dev``.

Each table (at most 1,500 rows): 70 % to train on, 30 % to test on. Plain: the family's default configuration fitted on
all training rows. Tuned: ``fine_tune`` with two validation splits of the training rows. The gain is the share by
which log loss or RMSE falls; the interval is a bootstrap over tables. The recipe (rate divisor, rounds, share of the
schedule) was fixed before any of these tables was looked at; that of the net on 14 tables of
``meta_train`` that are not in ``dev``. About seven CPU minutes for all:

    AUTOMETA_DATA=... OMP_NUM_THREADS=1 .venv/bin/python experiments/fine_tuning/gain.py lightgbm xgboost catboost mlp
"""

from __future__ import annotations

import sys
import time
import warnings

import numpy as np
from numpy.typing import NDArray
from sklearn.model_selection import KFold

from autometa.collection import load_collection
from autometa.data import Dataset
from autometa.experiment.simulation import bootstrap_interval
from autometa.families import resolve_families
from autometa.family import ModelFamily
from autometa.fine_tuning import fine_tune
from autometa.fitting import EncodedData, fit_model
from autometa.metrics import resolve_metric
from autometa.preprocessing import TableEncoder

MAX_ROWS = 1_500
MAX_FEATURES = 40
MIN_ROWS = 200
MAX_TABLES = 26


def gain(dataset: Dataset, family: ModelFamily) -> tuple[float, bool, float, float]:
    """Share of the loss that fine-tuning takes away on test rows, whether it was kept, seconds of both fits."""
    rows = np.random.default_rng(0).permutation(dataset.n_rows)[:MAX_ROWS]
    train, test = np.sort(rows[: 7 * len(rows) // 10]), np.sort(rows[7 * len(rows) // 10 :])
    encoder = TableEncoder(family.matrix, kinds=dataset.kinds)
    matrix = encoder.fit_transform(dataset.X.iloc[train])
    data = EncodedData(matrix, dataset.y[train], dataset.task, dataset.n_classes, encoder.n_categorical_)
    metric = resolve_metric("log_loss" if dataset.n_classes else "rmse", dataset.task)
    splits = list(KFold(2, shuffle=True, random_state=0).split(matrix))
    started = time.process_time()
    plain = fit_model(family, family.default_config, data=data)
    middle = time.process_time()
    tuned = fine_tune(family, family.default_config, data=data, metric=metric, splits=splits, model=plain)
    ended = time.process_time()
    unseen = encoder.transform(dataset.X.iloc[test])
    losses = [-metric.score(dataset.y[test], model.predict(unseen)) for model in (plain, tuned.model)]
    return 1 - losses[1] / losses[0], tuned.kept, middle - started, ended - middle


def interval(values: NDArray[np.float64]) -> str:
    """Mean and 95 % bootstrap interval."""
    mean, low, high = bootstrap_interval(values, n_samples=4_000)
    return f"{mean:+.4f} [{low:+.4f}, {high:+.4f}]"


def main() -> None:
    warnings.simplefilter("ignore")
    dev = load_collection("dev")
    entries = [e for e in dev if e.n_rows >= MIN_ROWS and e.n_features <= MAX_FEATURES][:MAX_TABLES]
    for family in resolve_families(sys.argv[1:] or ["lightgbm", "hist_gradient_boosting", "mlp"]):
        found = []
        for entry in entries:
            found.append(gain(dev.load(entry), family))
            print(f"  {entry.name:36} {found[-1][0]:+.4f} {'' if found[-1][1] else 'undone'}", flush=True)
        gains, kept = np.array([row[0] for row in found]), np.array([row[1] for row in found])
        print(
            f"{family.name}: {len(found)} tables, loss falls by {interval(gains)}; where kept {interval(gains[kept])}; "
            f"undone {1 - kept.mean():.0%}; CPU seconds a table {np.mean([r[2] for r in found]):.1f} plain, "
            f"{np.mean([r[3] for r in found]):.1f} fine-tuning",
            flush=True,
        )


if __name__ == "__main__":
    main()
