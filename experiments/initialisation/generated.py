"""Figures of the generated birth on tables whose groups its weights have not seen.

    AUTOMETA_DATA=FOLDER python experiments/initialisation/generated.py rivals FILE      # what needs no generator
    AUTOMETA_DATA=FOLDER python experiments/initialisation/generated.py births FILE      # generated, and its controls
    python experiments/initialisation/generated.py report FILE                           # tables, as in generated.md

On the classification tables of dev; with --collection open_test on those, once, at the very end. Each cell is a table,
32, 128 or 512 training rows and one of three draws of rows; the rest, at most 500 rows, is the test. FILE holds one
JSON row a line; cells that are there are not run again. One thread.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
import typer
from lightgbm import LGBMClassifier
from sklearn.ensemble import RandomForestClassifier
from sklearn.linear_model import LogisticRegressionCV
from sklearn.model_selection import StratifiedKFold
from tables import load_sources
from torch import Tensor

from autometa.families._net_births import generate_net
from autometa.gradient.fit import Rows
from autometa.meta_training.generation_tasks import TableSource
from autometa.nets._readout import Labels, Shrinkage, discriminant
from autometa.nets.batched import call_batched, task_losses
from autometa.nets.mlp import MLP, TableInput
from autometa.nets.standard_input import StandardInput
from autometa.nets.weight_generator import WeightGenerator

SIZES, SEEDS, RATES = (32, 128, 512), (0, 1, 2), (1e-3, 4e-3, 1.6e-2)
CHECKED = (*range(1, 21), *range(25, 101, 5), *range(120, 1001, 20))
MIN_TEST, MAX_TEST, MAX_CLASSES = 100, 500, 10
app = typer.Typer(add_completion=False)


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


# -------------------- what needs no generator


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


@app.command()
def rivals(file: Path, collection: str = "dev", cache: Path | None = None) -> None:
    """Random nets, logistic regression, forest, LightGBM and random features with the closed-form readout."""
    torch.set_num_threads(1)
    done = _done(file)
    for drawn in cells(collection, cache):
        for cell in drawn:
            for arm, predict in RIVALS.items():
                if (cell.name, cell.size, cell.seed, arm) not in done:
                    _write(file, cell, {"arm": arm, "loss": log_loss(predict(cell), cell.test_y)})
        if (drawn[0].name, drawn[0].size, drawn[0].seed, "random curves") not in done:
            found = random_curves(drawn)
            for i, cell in enumerate(drawn):
                _write(file, cell, found[2 * i])
                _write(file, cell, found[2 * i + 1])


# -------------------- what needs a generator


def generated(cell: Cell, generator: WeightGenerator, *, shuffled: bool = False) -> np.ndarray:
    y = np.random.default_rng(0).permutation(cell.y) if shuffled else cell.y
    net = generate_net(Rows(torch.from_numpy(cell.x), torch.from_numpy(y)), (), cell.n_classes, generator=generator)
    with torch.no_grad():
        return softmax(net(torch.from_numpy(cell.test_x)))


@app.command()
def births(
    file: Path, collection: str = "dev", cache: Path | None = None, weights: Path | None = None, label: str = ""
) -> None:
    """The generated birth after its own steps, with shuffled labels, and from a generator that was not trained."""
    torch.set_num_threads(1)
    folder = weights or Path("autometa/pretrained/weight_generator")
    trained, untrained = WeightGenerator.load(folder), WeightGenerator(seed=1).eval().requires_grad_(False)
    done = _done(file)
    for cell in (cell for drawn in cells(collection, cache) for cell in drawn):
        arms = {"generated": (trained, False), "shuffled labels": (trained, True), "untrained": (untrained, False)}
        for arm, (generator, shuffled) in arms.items():
            if (cell.name, cell.size, cell.seed, arm + label) not in done:
                started = time.process_time()
                probability = generated(cell, generator, shuffled=shuffled)
                row = {"arm": arm + label, "loss": log_loss(probability, cell.test_y)}
                _write(file, cell, {**row, "seconds": time.process_time() - started})


def _done(file: Path) -> set[tuple[str, int, int, str]]:
    if not file.exists():
        return set()
    rows = [json.loads(line) for line in file.read_text().splitlines()]
    return {(row["name"], row["size"], row["seed"], row["arm"]) for row in rows}


def _write(file: Path, cell: Cell, row: dict[str, Any]) -> None:
    with file.open("a") as out:
        out.write(json.dumps({"name": cell.name, "size": cell.size, "seed": cell.seed, **row}) + "\n")


# -------------------- report


def interval(values: np.ndarray, n_draws: int = 4_000) -> str:
    """Mean and 95 % bootstrap interval over datasets."""
    rng = np.random.default_rng(0)
    means = values[rng.integers(len(values), size=(n_draws, len(values)))].mean(1)
    low, high = np.quantile(means, [0.025, 0.975])
    return f"{values.mean():+.3f} [{low:+.3f}, {high:+.3f}]"


def best_fixed(curves: pd.DataFrame) -> tuple[pd.Series, str]:
    """Loss of each table at the one rate and step with the best mean test loss: more than a user could know."""
    stacked = np.stack([_padded(c) for c in curves["curves"]])  # (cells, rates, steps)
    mean = pd.DataFrame({"name": curves["name"], "i": range(len(curves))}).groupby("name")["i"].apply(list)
    by_table = np.stack([stacked[rows].mean(0) for rows in mean])
    rate, step = np.unravel_index(by_table.mean(0).argmin(), by_table.shape[1:])
    return pd.Series(by_table[:, rate, step], mean.index), f"rate {RATES[rate]:g}, step {CHECKED[step]}"


def _padded(curves: list[list[float]]) -> np.ndarray:
    """Curves that ended early stay where they were."""
    found = np.array(curves)
    return np.pad(found, ((0, 0), (0, len(CHECKED) - found.shape[1])), mode="edge")


def steps_needed(curves: pd.DataFrame, target: pd.Series) -> np.ndarray:
    """Steps of the random net, at the rate that gets there first, until it is as good; 1,000 where it never is."""
    found = []
    for row in curves.itertuples():
        reached = (np.array(row.curves) <= target[(row.name, row.seed)]).any(0)
        found.append(CHECKED[int(reached.argmax())] if reached.any() else 1_000)
    return np.array(found)


@app.command()
def report(file: Path, label: str = "") -> None:
    """Print the tables."""
    rows = pd.DataFrame(json.loads(line) for line in file.read_text().splitlines())
    for size in SIZES:
        part = rows[rows["size"] == size]
        table = part.dropna(subset=["loss"]).pivot_table(index="name", columns="arm", values="loss")
        curves = part[part["arm"] == "random curves"]
        table["random, best fixed"], setting = best_fixed(curves)
        ours = table.pop("generated" + label)
        print(f"\n## {size} rows: {len(ours)} tables\n\n| arm | log loss | arm less generated |\n|---|---|---|")
        print(f"| generated + 5 own steps | {ours.mean():.3f} | |")
        for arm in table.columns[table.notna().all()]:
            told = f"{arm} ({setting})" if arm == "random, best fixed" else arm
            print(f"| {told} | {table[arm].mean():.3f} | {interval((table[arm] - ours).to_numpy())} |")
        target = part[part["arm"] == "generated" + label].set_index(["name", "seed"])["loss"]
        needed = steps_needed(curves, target)
        print(f"\nsteps of a random net to get there: median {np.median(needed):.0f}, "
              f"never within 1,000: {np.mean(needed >= 1_000):.0%}")  # fmt: skip
        seconds = part.loc[part["arm"] == "generated" + label, "seconds"]
        print(f"CPU milliseconds of generation, steps and prediction: median {1e3 * seconds.median():.0f}")


if __name__ == "__main__":
    app()
