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
import warnings
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

import numpy as np
import pandas as pd
import torch
from joblib import Parallel, delayed
from numpy.typing import NDArray

from autometa.collection import load_collection
from autometa.data import Dataset
from autometa.experiment.simulation import bootstrap_interval
from autometa.families._net_config import hold_out, make_plan
from autometa.families._net_defaults import MLP_DEFAULTS
from autometa.families._net_estimators import NetClassifier, NetRegressor
from autometa.families._net_learned import learned_net, shipped_birth
from autometa.gradient.fit import Rows, fit_net
from autometa.gradient.learned import Initialisation
from autometa.gradient.losses import classification_loss, regression_loss
from autometa.nets.mlp import MLP
from autometa.preprocessing import TableEncoder

SIZES, STEPS, N_DRAWS = (32, 128), (30, 100), 2
MAX_TABLES, MIN_ROWS, MAX_FEATURES, MAX_CLASSES = 30, 220, 60, 10
MIN_BATCH = 16
OWN_STEPS = 5


def random_birth(kind: str) -> Initialisation:
    """Weights of the learned birth's shape, drawn as PyTorch draws them."""
    found = shipped_birth(kind)
    weights = {}
    for name, value in found.weights.items():
        n_inputs = found.weights[name.replace("bias", "weight")].shape[1]
        weights[name] = (2 * torch.rand(value.shape) - 1) / n_inputs**0.5
    return replace(found, weights=weights)


ARMS: Mapping[str, tuple[Callable[[str], Initialisation], int, bool]] = {
    "learned": (shipped_birth, 0, True),
    "learned, own steps first": (shipped_birth, OWN_STEPS, True),
    "learned, own steps only": (shipped_birth, OWN_STEPS, False),
    "random, same net": (random_birth, 0, True),
}
"""Where the weights come from, full-batch steps at their own rates, and whether the schedule follows."""


def losses(dataset: Dataset, n_rows: int, draw: int) -> list[dict[str, Any]]:
    """Test loss of each arm after each number of steps."""
    order = np.random.default_rng([draw, n_rows]).permutation(dataset.n_rows)
    train, test = order[:n_rows], order[n_rows : n_rows + 500]
    y = dataset.y[train]
    if len(np.unique(y)) < 2:
        return []
    if dataset.n_classes:
        test = test[np.isin(dataset.y[test], y)]
    encoder = TableEncoder("net", kinds=dataset.kinds)
    x, unseen = encoder.fit_transform(dataset.X.iloc[train]), encoder.transform(dataset.X.iloc[test])
    left = len(hold_out(y, stratify=dataset.n_classes > 0, seed=draw)[0])
    rows = []
    for n_steps in STEPS:
        config = {**MLP_DEFAULTS, "n_epochs": max(1, round(n_steps / round(left / MIN_BATCH)))}
        make = NetClassifier if dataset.n_classes else NetRegressor
        default = make(config=config, n_categorical=encoder.n_categorical_, random_state=draw).fit(x, y)
        found = {"random, default net": _loss(default, unseen, dataset.y[test], y)}
        for name, arm in ARMS.items():
            torch.manual_seed(draw)
            # The estimator brings the coding of classes, targets and columns; its net is replaced.
            default.net_ = born(default, arm, config, (x, y), draw)
            found[name] = _loss(default, unseen, dataset.y[test], y)
        rows += [{"arm": name, "rows": n_rows, "steps": n_steps, "loss": loss} for name, loss in found.items()]
    return rows


def born(
    model: Any, arm: tuple[Callable[[str], Initialisation], int, bool], config: Mapping[str, Any], data: Any, seed: int
) -> MLP:
    """A net of one arm, trained on the rows that the model was trained on."""
    (source, own_steps, goes_on), (x, y) = arm, data
    n_classes = len(model.classes_) if hasattr(model, "classes_") else 0
    target = np.searchsorted(model.classes_, y) if n_classes else ((y - model._mean) / model._scale).astype(np.float32)
    train, held = hold_out(target, stratify=n_classes > 0, seed=seed)
    rows = Rows(model._to_net(x), torch.from_numpy(target))
    seen, validation = rows.take(torch.from_numpy(train)), rows.take(torch.from_numpy(held)) if len(held) else None
    birth = source("classification" if n_classes else "regression")
    net = learned_net(
        seen, model._sizes, n_classes, dropout=config["dropout"], seed=seed, n_steps=own_steps, birth=birth
    )  # fmt: skip
    if goes_on:
        plan = make_plan(config, len(train), early_stopping=len(held) > 0)
        loss = classification_loss() if n_classes else regression_loss()
        fit_net(net, seen, plan=plan, loss=loss, validation=validation, seed=seed)
    return net.eval()


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
    mean, low, high = bootstrap_interval(values, n_samples=4_000)
    return f"{mean:+.3f} [{low:+.3f}, {high:+.3f}]"


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
        for arm in ("random, same net", "random, default net"):
            print(f"  {arm} {table.loc[arm].mean():.3f}")
            for other in [name for name in ARMS if name.startswith("learned")]:
                gain = (table.loc[arm] - table.loc[other]).to_numpy()
                print(f"    {other:24} {table.loc[other].mean():.3f}, lower by {interval(gain)}", flush=True)


if __name__ == "__main__":
    main()
