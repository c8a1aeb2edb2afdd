"""The learned birth against a random one, on tables of ``dev``, none of whose groups it was trained on.

32 or 128 training rows, up to 500 test rows, two draws a table; about 30 or 100 steps of the default optimiser and
schedule (20 % of 128 rows are held out for early stopping, none of 32). Arms: the learned birth, alone, after 5
full-batch steps at its own rates, and after these only; the same net in the same layout born at random; the family's
default net (128-128, numerical embeddings) born at random. Loss: log loss, or squared error in units of the training
rows' variance. Intervals by bootstrap over tables. About five CPU minutes:

    AUTOMETA_DATA=... OMP_NUM_THREADS=1 .venv/bin/python experiments/initialisation/learned_birth.py
"""

from __future__ import annotations

import sys
import time
import warnings
from collections.abc import Mapping
from dataclasses import replace
from functools import partial
from typing import Any
from unittest.mock import patch

import numpy as np
import pandas as pd
import torch
from joblib import Parallel, delayed
from numpy.typing import NDArray

from autometa.collection import load_collection
from autometa.data import Dataset
from autometa.families import _net_estimators
from autometa.families._net_config import hold_out
from autometa.families._net_estimators import NetClassifier, NetRegressor
from autometa.families._net_learned import learned_net, shipped_birth
from autometa.gradient.learned import Initialisation
from autometa.preprocessing import TableEncoder

SIZES, STEPS, N_DRAWS = (32, 128), (30, 100), 2
MAX_TABLES, MIN_ROWS, MAX_FEATURES, MAX_CLASSES = 30, 220, 60, 10
MIN_BATCH = 16
OWN_STEPS = 5


def random_birth(kind: str, fold: int | None = None) -> Initialisation:
    """Weights of the learned birth's shape, drawn as PyTorch draws them."""
    found = shipped_birth(kind, fold)
    weights = {}
    for name, value in found.weights.items():
        n_inputs = found.weights[name.replace("bias", "weight")].shape[1]
        weights[name] = (2 * torch.rand(value.shape) - 1) / n_inputs**0.5
    return replace(found, weights=weights)


ARMS: Mapping[str, tuple[dict[str, Any], Any, int]] = {
    "learned": ({"init": "learned"}, shipped_birth, 0),
    "learned, own steps first": ({"init": "learned"}, shipped_birth, OWN_STEPS),
    "learned, own steps only": ({"init": "learned", "learning_rate": 1e-9}, shipped_birth, OWN_STEPS),
    "random, same net": ({"init": "learned"}, random_birth, 0),
    "random, default net": ({}, shipped_birth, 0),
}
"""Changes to the default configuration, where the weights of "learned" come from, and steps at its own rates."""


def losses(dataset: Dataset, n_rows: int, draw: int) -> list[dict[str, Any]]:
    """Test loss of each arm after each number of steps."""
    order = np.random.default_rng([draw, n_rows]).permutation(dataset.n_rows)
    train, test = order[:n_rows], order[n_rows : n_rows + 500]
    if dataset.n_classes:
        test = test[np.isin(dataset.y[test], dataset.y[train])]
        if len(np.unique(dataset.y[train])) < 2:
            return []
    encoder = TableEncoder("net", kinds=dataset.kinds)
    x, unseen = encoder.fit_transform(dataset.X.iloc[train]), encoder.transform(dataset.X.iloc[test])
    y = dataset.y[train]
    if not dataset.n_classes and y.std() == 0:
        return []
    left = len(hold_out(y, stratify=dataset.n_classes > 0, seed=draw)[0])
    rows = []
    for name, (changes, source, own) in ARMS.items():
        for n_steps in STEPS:
            config = {**changes, "n_epochs": max(1, round(n_steps / round(left / MIN_BATCH)))}
            estimator = (NetClassifier if dataset.n_classes else NetRegressor)(
                config=config, n_categorical=encoder.n_categorical_, random_state=draw
            )
            torch.manual_seed(draw)
            started = time.process_time()
            birth = partial(learned_net, n_steps=own)
            with patch.multiple(_net_estimators, shipped_birth=source, learned_net=birth):
                estimator.fit(x, y)
            loss = _loss(estimator, unseen, dataset.y[test], y)
            seconds = time.process_time() - started
            rows.append({"arm": name, "rows": n_rows, "steps": n_steps, "loss": loss, "seconds": seconds})
    return rows


def measure(name: str) -> list[dict[str, Any]]:
    """All losses on one table."""
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    dataset = load_collection("dev").load(name)
    if dataset.n_classes > MAX_CLASSES:
        return []
    kind = "classification" if dataset.n_classes else "regression"
    return [
        {**row, "table": name, "kind": kind}
        for n_rows in SIZES
        for draw in range(N_DRAWS)
        for row in losses(dataset, n_rows, draw)
    ]


def _loss(estimator: Any, x: NDArray[np.float32], y: NDArray[Any], y_train: NDArray[Any]) -> float:
    if hasattr(estimator, "predict_proba"):
        proba = estimator.predict_proba(x)[np.arange(len(y)), np.searchsorted(estimator.classes_, y)]
        return float(-np.log(np.maximum(proba, 1e-7)).mean())
    return float(np.mean((estimator.predict(x) - y) ** 2) / y_train.var())


def interval(values: NDArray[np.float64]) -> str:
    """Mean and 95 % bootstrap interval over tables."""
    rng = np.random.default_rng(0)
    means = [rng.choice(values, len(values)).mean() for _ in range(4_000)]
    return f"{values.mean():+.3f} [{np.quantile(means, 0.025):+.3f}, {np.quantile(means, 0.975):+.3f}]"


def main() -> None:
    n_tables = int(sys.argv[1]) if len(sys.argv) > 1 else MAX_TABLES
    dev = load_collection("dev")
    entries = [e for e in dev if e.n_rows >= MIN_ROWS and e.n_features <= MAX_FEATURES]
    found = Parallel(n_jobs=3)(delayed(measure)(entry.name) for entry in entries[:n_tables])
    rows = [row for part in found for row in part]
    frame = pd.DataFrame(rows)
    for (kind, n_rows, n_steps), part in frame.groupby(["kind", "rows", "steps"]):
        table = part.groupby(["arm", "table"])["loss"].mean().unstack("table")
        print(f"{kind}, {n_rows} rows, {n_steps} steps, {table.shape[1]} tables")
        for arm in [name for name in ARMS if name.startswith("random")]:
            print(f"  {arm} {table.loc[arm].mean():.3f}")
            for other in [name for name in ARMS if name.startswith("learned")]:
                gain = (table.loc[arm] - table.loc[other]).to_numpy()
                print(f"    {other:24} {table.loc[other].mean():.3f}, lower by {interval(gain)}", flush=True)


if __name__ == "__main__":
    main()
