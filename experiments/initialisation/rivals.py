"""What the generated birth is compared with: draws of rows, usual models, random features, random nets."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from lightgbm import LGBMClassifier, LGBMRegressor
from sklearn.ensemble import RandomForestClassifier, RandomForestRegressor
from sklearn.linear_model import LogisticRegressionCV, RidgeCV
from sklearn.model_selection import StratifiedKFold
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from tables import load_sources
from torch import Tensor

from autometa.meta_training.generation_tasks import TableSource
from autometa.nets._readout import Labels, Shrinkage, discriminant
from autometa.nets.batched import call_batched, task_losses
from autometa.nets.mlp import MLP, TableInput
from autometa.nets.standard_input import StandardInput

SIZES, SEEDS, RATES = (32, 128, 512), (0, 1, 2), (1e-3, 4e-3, 1.6e-2)
CHECKED = (*range(1, 21), *range(25, 101, 5), *range(120, 1001, 20))
MIN_TEST, MAX_TEST, MAX_CLASSES = 100, 500, 10


@dataclass(frozen=True, eq=False)
class Cell:
    """One draw of rows: matrices, codes of the classes that are among the training rows."""

    name: str
    size: int
    seed: int
    x: np.ndarray
    y: np.ndarray
    test_x: np.ndarray
    test_y: np.ndarray

    @property
    def n_classes(self) -> int:
        return int(self.y.max()) + 1

    def holdout(self) -> tuple[np.ndarray, np.ndarray]:
        """Positions of 75 % and 25 % of the training rows; each class keeps a row to train on."""
        order = np.random.default_rng(self.seed).permutation(self.size)
        first = np.unique(self.y[order], return_index=True)[1]
        rest = np.setdiff1d(np.arange(self.size), first)
        held = order[rest[-self.size // 4 :]]
        return np.setdiff1d(np.arange(self.size), held), held


def draw_cell(source: TableSource, size: int, seed: int) -> Cell | None:
    """A stratified draw; test rows of classes that were not drawn are left out."""
    rng = np.random.default_rng(1_000 * seed + size)
    order = rng.permutation(len(source.y))
    if len(order) < size + MIN_TEST:
        return None
    train, test = order[:size], order[size : size + MAX_TEST]
    labels, y = np.unique(source.y[train], return_inverse=True)
    test = test[np.isin(source.y[test], labels)]
    if len(labels) < 2 or len(labels) > MAX_CLASSES:
        return None
    test_y = np.searchsorted(labels, source.y[test])
    return Cell(source.name, size, seed, source.x[train], y, source.x[test], test_y)


def cells(collection: str, cache: Path | None) -> Iterator[list[Cell]]:
    """The draws of each table and size, together."""
    for source in load_sources(collection, cache=cache):
        for size in SIZES if source.n_classes else ():
            drawn = [cell for seed in SEEDS if (cell := draw_cell(source, size, seed)) is not None]
            if drawn:
                yield drawn


def log_loss(probability: np.ndarray, y: np.ndarray) -> float:
    """With probabilities of at least 0.001, so that a forest's zero does not decide."""
    clipped = np.clip(probability, 1e-3, 1)
    clipped = clipped / clipped.sum(1, keepdims=True)
    return float(-np.log(clipped[np.arange(len(y)), y]).mean())


def softmax(output: Tensor) -> np.ndarray:
    return torch.softmax(output.double(), -1).numpy()


def logistic(cell: Cell) -> np.ndarray:
    scale = StandardInput(cell.x.shape[1], max_outputs=10**6).learn(torch.from_numpy(cell.x))
    x, test = scale(torch.from_numpy(cell.x)).numpy(), scale(torch.from_numpy(cell.test_x)).numpy()
    grid = np.logspace(-3, 2, 8)
    smallest = np.bincount(cell.y).min()
    if smallest < 2:  # a class with one row cannot be split: the penalty is chosen without it
        from sklearn.linear_model import LogisticRegression

        kept = np.isin(cell.y, np.flatnonzero(np.bincount(cell.y) >= 2))
        inner = _logistic_cv(grid, 2).fit(x[kept], cell.y[kept]) if len(np.unique(cell.y[kept])) > 1 else None
        c = 0.1 if inner is None else float(np.median(inner.C_))
        return LogisticRegression(C=c, max_iter=500).fit(x, cell.y).predict_proba(test)
    return _logistic_cv(grid, min(4, smallest)).fit(x, cell.y).predict_proba(test)


def _logistic_cv(grid: np.ndarray, n_splits: int) -> LogisticRegressionCV:
    folds = StratifiedKFold(n_splits, shuffle=True, random_state=0)
    return LogisticRegressionCV(
        Cs=grid, cv=folds, scoring="neg_log_loss", max_iter=300, l1_ratios=(0.0,), use_legacy_attributes=False
    )


def forest(cell: Cell) -> np.ndarray:
    """100 trees; leaves of 1, 3 or 6 rows by the log loss out of bag."""
    best, answer = np.inf, None
    for leaf in (1, 3, 6):
        model = RandomForestClassifier(100, min_samples_leaf=leaf, oob_score=True, random_state=cell.seed)
        model.fit(cell.x, cell.y)
        loss = log_loss(np.nan_to_num(model.oob_decision_function_, nan=1 / cell.n_classes), cell.y)
        if loss < best:
            best, answer = loss, model.predict_proba(cell.test_x)
    return answer


def boosting(cell: Cell) -> np.ndarray:
    """Trees of 7 leaves that hold a sixteenth of the rows; their number by 3-fold cross-validation."""

    def fit(rows: np.ndarray) -> LGBMClassifier:
        return LGBMClassifier(
            n_estimators=160, learning_rate=0.05, num_leaves=7, min_child_samples=max(2, len(rows) // 16),
            min_data_in_bin=1, n_jobs=1, verbose=-1, random_state=cell.seed,
        ).fit(cell.x[rows], cell.y[rows])  # fmt: skip

    def probabilities(model: LGBMClassifier, x: np.ndarray, n_trees: int) -> np.ndarray:
        found = np.zeros((len(x), cell.n_classes))
        found[:, model.classes_] = model.predict_proba(x, num_iteration=n_trees)
        return found

    grid, losses = (5, 10, 20, 40, 80, 160), np.zeros(6)
    for fold in np.array_split(np.random.default_rng(0).permutation(cell.size), 3):
        rest = np.setdiff1d(np.arange(cell.size), fold)
        if len(np.unique(cell.y[rest])) < 2:
            continue
        model = fit(rest)
        losses += [log_loss(probabilities(model, cell.x[fold], n), cell.y[fold]) for n in grid]
    return probabilities(fit(np.arange(cell.size)), cell.test_x, grid[int(losses.argmin())])


def random_features(cell: Cell) -> np.ndarray:
    """Two random hidden layers and the closed-form readout, its shrinkage by 3-fold cross-validation."""
    scale = StandardInput(cell.x.shape[1]).learn(torch.from_numpy(cell.x))
    x, test, y = scale(torch.from_numpy(cell.x)), scale(torch.from_numpy(cell.test_x)), torch.from_numpy(cell.y)
    torch.manual_seed(cell.seed)
    first, second = torch.randn(x.shape[1], 64) * (2 / x.shape[1]) ** 0.5, torch.randn(64, 64) * (2 / 64) ** 0.5
    bias = torch.randn(64) * 0.3

    def hidden(part: Tensor) -> Tensor:
        return torch.cat([torch.relu(torch.relu(part @ first + bias) @ second), part], 1)

    def output(z: Tensor, codes: Tensor, z_test: Tensor, setting: tuple[float, ...]) -> Tensor:
        one = torch.ones(1, z.shape[1])
        shrinkage = Shrinkage(*(one * value for value in setting))
        weight, b = discriminant(z[None], Labels.of(codes[None], cell.n_classes, z.dtype), shrinkage)
        return z_test @ weight[0].T + b[0]

    z, grid = hidden(x), [(m, r, g) for m in (0.1, 0.3, 0.6, 0.9) for r in (0.03, 0.3, 1.0) for g in (0.4, 0.7, 1.0)]
    losses = np.zeros(len(grid))
    for fold in np.array_split(np.random.default_rng(0).permutation(cell.size), 3):
        rest = np.setdiff1d(np.arange(cell.size), fold)
        losses += [log_loss(softmax(output(z[rest], y[rest], z[fold], s)), cell.y[fold]) for s in grid]
    return softmax(output(z, y, hidden(test), grid[int(losses.argmin())]))


def train_random(drawn: list[Cell], parts: list[np.ndarray], *, n_steps: int = 1_000) -> Iterator[tuple[int, Any]]:
    """Random nets of all draws and rates side by side, by full-batch Adam; yields (step, rows -> outputs).

    The net of the generated birth without its skip. ``parts`` are the positions of each draw to train on.
    """
    n, n_outputs = min(map(len, parts)), max(cell.n_classes for cell in drawn)
    inputs, rows = [], []
    for cell, part in zip(drawn, parts, strict=True):
        x = torch.from_numpy(cell.x)
        inputs.append(StandardInput(x.shape[1]).learn(x[part]))
        rows.append((inputs[-1](x[part[:n]]), torch.from_numpy(cell.y[part[:n]])))
    width, b = inputs[0].n_outputs, len(drawn) * len(RATES)
    net = MLP(TableInput(width), n_outputs, hidden_sizes=(64, 64), activation="relu")
    torch.manual_seed(drawn[0].size)
    twins = [MLP(TableInput(width), n_outputs, hidden_sizes=(64, 64), activation="relu") for _ in drawn]
    weights = {
        name: torch.stack([dict(t.named_parameters())[name].detach() for t in twins for _ in RATES]).requires_grad_()
        for name, _ in net.named_parameters()
    }
    x = torch.stack([part for part, _ in rows]).repeat_interleave(len(RATES), 0)
    y = torch.stack([codes for _, codes in rows]).repeat_interleave(len(RATES), 0)
    rate = torch.tensor(RATES).repeat(len(drawn))
    moments = {name: (torch.zeros_like(v), torch.zeros_like(v)) for name, v in weights.items()}

    def outputs(tables: list[np.ndarray]) -> Tensor:
        stacked = torch.stack([i(torch.from_numpy(t)) for i, t in zip(inputs, tables, strict=True)])
        with torch.no_grad():
            found = call_batched(net, weights, stacked.repeat_interleave(len(RATES), 0))
        return found.view(len(drawn), len(RATES), *found.shape[1:])

    for step in range(1, n_steps + 1):
        loss = task_losses(call_batched(net, weights, x), y).sum()
        gradients = torch.autograd.grad(loss, list(weights.values()))
        with torch.no_grad():
            for (name, value), gradient in zip(weights.items(), gradients, strict=True):
                first, second = moments[name]
                first.lerp_(gradient, 0.1)
                second.lerp_(gradient.square(), 0.001)
                move = first / (1 - 0.9**step) / ((second / (1 - 0.999**step)).sqrt() + 1e-8)
                value -= rate.view(-1, *[1] * (value.ndim - 1)) * move
        if step in _CHECKED_SET:
            yield step, outputs
    assert b == len(x)


_CHECKED_SET = frozenset(CHECKED)


def random_curves(drawn: list[Cell]) -> list[dict[str, Any]]:
    """Test loss of each draw, rate and checked step, trained on all rows; and at the step and rate of a hold-out."""
    n_test = min(len(cell.test_y) for cell in drawn)
    tests = [cell.test_x[:n_test] for cell in drawn]

    codes = [c.test_y[:n_test] for c in drawn]
    splits = [cell.holdout() for cell in drawn]
    n_held = min(len(held) for _, held in splits)
    held_x = [c.x[held[:n_held]] for c, (_, held) in zip(drawn, splits, strict=True)]
    held_y = [c.y[held[:n_held]] for c, (_, held) in zip(drawn, splits, strict=True)]
    full, test, held = [], [], []
    for step, outputs in train_random(drawn, [np.arange(c.size) for c in drawn]):
        full.append(_losses(outputs(tests), codes, drawn))
        if _is_over(full, step):
            break
    for step, outputs in train_random(drawn, [train for train, _ in splits]):
        test.append(_losses(outputs(tests), codes, drawn))
        held.append(_losses(outputs(held_x), held_y, drawn))
        if _is_over(held, step):
            break
    full, test, held = (np.stack(part, 2) for part in (full, test, held))  # (draws, rates, steps)
    rows = []
    for i in range(len(drawn)):
        chosen = np.unravel_index(held[i].argmin(), held[i].shape)
        rows.append({"arm": "random, hold-out", "loss": float(test[i][chosen])})
        rows.append({"arm": "random curves", "curves": np.round(full[i], 4).tolist()})
    return rows


def _losses(outputs: Tensor, codes: list[np.ndarray], drawn: list[Cell]) -> np.ndarray:
    """(draws, rates)"""
    return np.array(
        [
            [log_loss(softmax(outputs[i, r][:, : cell.n_classes]), codes[i]) for r in range(len(RATES))]
            for i, cell in enumerate(drawn)
        ]
    )


def _is_over(losses: list[np.ndarray], step: int) -> bool:
    """Whether no net has come to a new best since a third of the steps, so that nothing will happen any more."""
    best = np.array(CHECKED)[np.stack(losses, 2).argmin(2)]
    return step >= 100 and bool((best <= step / 3).all())


RIVALS: dict[str, Callable[[Cell], np.ndarray]] = {
    "logistic regression": logistic, "random forest": forest, "lightgbm": boosting,
    "random features": random_features,
}  # fmt: skip


def ridge(cell: Cell) -> np.ndarray:
    return make_pipeline(StandardScaler(), RidgeCV(np.logspace(-2, 4, 13))).fit(cell.x, cell.y).predict(cell.test_x)


def forest_numbers(cell: Cell) -> np.ndarray:
    return RandomForestRegressor(100, random_state=0).fit(cell.x, cell.y).predict(cell.test_x)


def boosting_numbers(cell: Cell) -> np.ndarray:
    model = LGBMRegressor(
        n_estimators=80, learning_rate=0.05, num_leaves=7, min_child_samples=max(2, cell.size // 16),
        min_data_in_bin=1, n_jobs=1, verbose=-1,
    )  # fmt: skip
    return model.fit(cell.x, cell.y).predict(cell.test_x)


NUMERIC_RIVALS = {"ridge": ridge, "random forest": forest_numbers, "lightgbm": boosting_numbers}
