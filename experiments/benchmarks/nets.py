"""Cost and accuracy of the neural families against untuned tree ensembles.

    python experiments/benchmarks/nets.py                 # CPU seconds per fit on synthetic rows
    python experiments/benchmarks/nets.py adult abalone   # and scores on tables of AUTOMETA_DATA, capped at 2,000 rows

Seconds are CPU seconds of one thread, the least of three fits, so that a busy machine does not count. Scores are the
share of a constant model's loss that is removed on 25 % held-out rows: log loss for classes, squared error for numbers.
"""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from lightgbm import LGBMClassifier, LGBMRegressor
from sklearn.ensemble import RandomForestClassifier, RandomForestRegressor

from autometa.data import Dataset, TaskType, as_dataset
from autometa.families.neural import MLP, TabM
from autometa.family import MatrixShape
from autometa.preprocessing import TableEncoder

NETS = {"mlp": MLP(), "tabm": TabM()}


def measure_costs() -> None:
    rng = np.random.default_rng(0)
    print(f"{'family':8s} {'rows':>6s} {'CPU seconds':>12s} {'epochs':>7s}")
    for name, family in NETS.items():
        for n_rows in (200, 350, 2_000):
            X = rng.normal(size=(n_rows, 20)).astype(np.float32)
            y = (X[:, 0] + X[:, 1] * X[:, 2] + 0.5 * rng.normal(size=n_rows) > 0).astype(int)
            estimator = family.build(family.default_config, MatrixShape(TaskType.BINARY, n_rows, 2))
            seconds = min(cpu_seconds(lambda e=estimator, a=X, b=y: e.fit(a, b)) for _ in range(3))
            print(f"{name:8s} {n_rows:6d} {seconds:12.2f} {estimator.result_.n_epochs:7d}", flush=True)


def cpu_seconds(action: Callable[[], Any]) -> float:
    started = time.process_time()
    action()
    return time.process_time() - started


def compare(dataset: Dataset) -> dict[str, float]:
    order = np.random.default_rng(0).permutation(dataset.n_rows)
    cut = int(0.75 * dataset.n_rows)
    train, test = dataset.take(np.sort(order[:cut])), dataset.take(np.sort(order[cut:]))
    scores = {}
    for name, family in NETS.items():
        encoder = TableEncoder("net").fit(train.X)
        shape = MatrixShape(dataset.task, cut, dataset.n_classes, encoder.n_categorical_)
        scores[name] = skill(family.build(family.default_config, shape), encoder, train, test)
    classes = dataset.task.is_classification
    forest = RandomForestClassifier(200, random_state=0) if classes else RandomForestRegressor(200, random_state=0)
    boosted = LGBMClassifier if classes else LGBMRegressor
    for name, estimator in {"forest": forest, "lightgbm": boosted(n_jobs=1, verbose=-1)}.items():
        scores[name] = skill(estimator, TableEncoder("tree").fit(train.X), train, test)
    return scores


def skill(estimator: Any, encoder: TableEncoder, train: Dataset, test: Dataset) -> float:
    estimator.fit(encoder.transform(train.X), train.y)
    X = encoder.transform(test.X)
    if not train.task.is_classification:
        errors = np.mean((test.y - estimator.predict(X)) ** 2), np.mean((test.y - train.y.mean()) ** 2)
        return max(-1.0, 1.0 - float(errors[0] / errors[1]))
    found = np.zeros((test.n_rows, train.n_classes))
    found[:, estimator.classes_] = estimator.predict_proba(X)
    shares = np.bincount(train.y, minlength=train.n_classes) / train.n_rows
    losses = [-np.log(np.clip(p[np.arange(len(test.y)), test.y], 1e-7, 1)).mean() for p in (found, found * 0 + shares)]
    return max(-1.0, 1.0 - float(losses[0] / losses[1]))


def main(names: list[str]) -> None:
    measure_costs()
    rows = []
    for name in names:
        path = Path(os.environ["AUTOMETA_DATA"]) / f"{name}.parquet"
        scores = compare(as_dataset(path, target="target").subsample(2_000))
        rows.append(list(scores.values()))
        print(f"{name:30s} " + " ".join(f"{k} {v:+.3f}" for k, v in scores.items()), flush=True)
    if rows:
        print(f"{'mean':30s} " + " ".join(f"{v:+.3f}" for v in np.mean(rows, axis=0)))


if __name__ == "__main__":
    main(sys.argv[1:])
