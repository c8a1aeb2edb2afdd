"""Figures of the generated birth on tables whose groups its weights have not seen.

    AUTOMETA_DATA=FOLDER python experiments/initialisation/generated.py rivals FILE      # what needs no generator
    AUTOMETA_DATA=FOLDER python experiments/initialisation/generated.py births FILE      # generated, and its controls
    AUTOMETA_DATA=FOLDER python experiments/initialisation/generated.py race FILE        # the family "mlp" at use
    AUTOMETA_DATA=FOLDER python experiments/initialisation/generated.py numeric FILE     # regression tables
    python experiments/initialisation/generated.py report FILE                           # tables, as in generated.md

On the classification tables of dev; with --collection open_test on those, once, at the very end. Each cell is a table,
32, 128 or 512 training rows and one of three draws of rows; the rest, at most 500 rows, is the test. FILE holds one
JSON row a line; cells that are there are not run again. One thread.
"""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import rivals as others
import torch
import typer
from rivals import CHECKED, MAX_TEST, MIN_TEST, RATES, SEEDS, SIZES, Cell, cells, log_loss, softmax
from sklearn.model_selection import train_test_split
from tables import load_sources

from autometa.collection import load_collection, load_entry
from autometa.exceptions import DataError
from autometa.experiment.simulation import bootstrap_interval
from autometa.families._net_births import generate_net
from autometa.families._net_estimators import NetClassifier
from autometa.gradient.fit import Rows
from autometa.nets.weight_generator import WeightGenerator
from autometa.preprocessing import encode_dataset

BIRTHS = ("generated", "shuffled labels", "untrained")
app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)


@app.command()
def rivals(file: Path, collection: str = "dev", cache: Path | None = None) -> None:
    """Random nets, logistic regression, forest, LightGBM and random features with the closed-form readout."""
    torch.set_num_threads(1)
    done = _done(file)
    for drawn in cells(collection, cache):
        for cell in drawn:
            for arm, predict in others.RIVALS.items():
                if (cell.name, cell.size, cell.seed, arm) not in done:
                    _write(file, cell, {"arm": arm, "loss": log_loss(predict(cell), cell.test_y)})
        if (drawn[0].name, drawn[0].size, drawn[0].seed, "random curves") not in done:
            found = others.random_curves(drawn)
            for i, cell in enumerate(drawn):
                _write(file, cell, found[2 * i])
                _write(file, cell, found[2 * i + 1])


def generated(cell: Cell, generator: WeightGenerator, *, shuffled: int = 0) -> np.ndarray:
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
        for arm, (generator, shuffled) in zip(BIRTHS, ((trained, 0), (trained, 1), (untrained, 0)), strict=True):
            if (cell.name, cell.size, cell.seed, arm + label) not in done:
                started = time.process_time()
                probability = generated(cell, generator, shuffled=shuffled)
                row = {"arm": arm + label, "loss": log_loss(probability, cell.test_y)}
                _write(file, cell, {**row, "seconds": time.process_time() - started})


@app.command()
def race(file: Path, collection: str = "dev", max_rows: int = 2_000) -> None:
    """The family "mlp" with its default configuration, born at random and after the race, on 75 % of a table."""
    torch.set_num_threads(1)
    done = _done(file)
    for entry in load_collection(collection):
        if not entry.task.is_classification:
            continue
        try:
            dataset = load_entry(entry).subsample(max_rows)
        except DataError as error:
            print(f"left out: {entry.name}: {error}")
            continue
        encoder, matrix = encode_dataset(dataset, "net")
        train, test = train_test_split(np.arange(dataset.n_rows), stratify=dataset.y, random_state=0)
        cell = Cell(entry.name, len(train), 0, matrix[train], dataset.y[train], matrix[test], dataset.y[test])
        for init in ("random", "generated"):
            if (cell.name, cell.size, 0, f"mlp, {init}") in done:
                continue
            started = time.process_time()
            model = NetClassifier(config={"init": init}, n_categorical=encoder.n_categorical_).fit(cell.x, cell.y)
            seconds = time.process_time() - started
            found = np.zeros((len(test), dataset.n_classes))
            found[:, model.classes_] = model.predict_proba(cell.test_x)
            row = {"arm": f"mlp, {init}", "loss": log_loss(found, cell.test_y), "seconds": seconds}
            _write(file, cell, {**row, "winner": model.birth_.winner, "race_seconds": model.birth_.seconds})


@app.command()
def numeric(file: Path, collection: str = "dev", cache: Path | None = None, weights: Path | None = None) -> None:
    """Squared error, as a share of the target's variance and at most 2, on regression tables; one draw of rows."""
    torch.set_num_threads(1)
    generator = WeightGenerator.load(weights or Path("autometa/pretrained/weight_generator"))
    done = _done(file)
    for source in load_sources(collection, cache=cache):
        for size in SIZES if not source.n_classes and len(source.y) >= max(SIZES[:1]) + MIN_TEST else ():
            order = np.random.default_rng(size).permutation(len(source.y))
            train, test = order[:size], order[size : size + MAX_TEST]
            if len(test) < MIN_TEST or source.y[train].std() == 0:
                continue
            mean, spread = source.y[train].mean(), source.y[train].std()
            y, test_y = (source.y[train] - mean) / spread, (source.y[test] - mean) / spread
            cell = Cell(source.name, size, 0, source.x[train], y, source.x[test], test_y)
            for arm, predict in (
                *others.NUMERIC_RIVALS.items(),
                ("generated", lambda c: generated_numbers(c, generator)),
            ):
                if (cell.name, size, 0, f"numeric, {arm}") not in done:
                    error = float(np.mean((predict(cell) - test_y) ** 2) / test_y.var())
                    _write(file, cell, {"arm": f"numeric, {arm}", "error": min(2.0, error)})


def generated_numbers(cell: Cell, generator: WeightGenerator) -> np.ndarray:
    net = generate_net(Rows(torch.from_numpy(cell.x), torch.from_numpy(cell.y)), (), 0, generator=generator)
    low, high, margin = cell.y.min(), cell.y.max(), 0.1 * np.ptp(cell.y)
    with torch.no_grad():
        return np.clip(net(torch.from_numpy(cell.test_x))[:, 0].numpy(), low - margin, high + margin)


def _done(file: Path) -> set[tuple[str, int, int, str]]:
    if not file.exists():
        return set()
    rows = [json.loads(line) for line in file.read_text().splitlines()]
    return {(row["name"], row["size"], row["seed"], row["arm"]) for row in rows}


def _write(file: Path, cell: Cell, row: dict[str, Any]) -> None:
    with file.open("a") as out:
        out.write(json.dumps({"name": cell.name, "size": cell.size, "seed": cell.seed, **row}) + "\n")


def interval(values: np.ndarray) -> str:
    """Mean and 95 % bootstrap interval over datasets."""
    mean, low, high = bootstrap_interval(values, n_samples=4_000)
    return f"{mean:+.3f} [{low:+.3f}, {high:+.3f}]"


def best_fixed(curves: pd.DataFrame) -> tuple[pd.Series, int, int]:
    """Loss of each table at the one rate and step with the best mean test loss: more than a user could know."""
    stacked = np.stack([_padded(c) for c in curves["curves"]])  # (cells, rates, steps)
    mean = pd.DataFrame({"name": curves["name"], "i": range(len(curves))}).groupby("name")["i"].apply(list)
    by_table = np.stack([stacked[rows].mean(0) for rows in mean])
    rate, step = np.unravel_index(by_table.mean(0).argmin(), by_table.shape[1:])
    return pd.Series(by_table[:, rate, step], mean.index), int(rate), CHECKED[step]


def _padded(curves: list[list[float]]) -> np.ndarray:
    """Curves that ended early stay where they were."""
    found = np.array(curves)
    return np.pad(found, ((0, 0), (0, len(CHECKED) - found.shape[1])), mode="edge")


def steps_needed(curves: pd.DataFrame, target: pd.Series, rates: slice) -> str:
    """Steps of the random net, at the rate that gets there first, until it is as good; 1,000 where it never is."""
    found = []
    for row in curves.itertuples():
        reached = (np.array(row.curves)[rates] <= target[(row.name, row.seed)]).any(0)
        found.append(CHECKED[int(reached.argmax())] if reached.any() else 1_000)
    return f"median {np.median(found):.0f}, never within 1,000 in {np.mean(np.array(found) >= 1_000):.0%}"


@app.command()
def report(file: Path, label: str = "") -> None:
    """Print the tables."""
    rows = pd.DataFrame(json.loads(line) for line in file.read_text().splitlines())
    for size in SIZES:
        part = rows[rows["size"] == size]
        table = part.dropna(subset=["loss"]).pivot_table(index="name", columns="arm", values="loss")
        curves = part[part["arm"] == "random curves"]
        table["random, best fixed"], rate, step = best_fixed(curves)
        table = table[[*others.RIVALS, "random, hold-out", "random, best fixed", *(a + label for a in BIRTHS)]].dropna()
        ours = table.pop("generated" + label)
        print(f"\n## {size} rows: {len(ours)} tables, {len(SEEDS)} draws of rows\n")
        print("| arm | log loss | arm less generated |\n|---|---|---|")
        print(f"| generated + 5 own steps | {ours.mean():.3f} | |")
        for arm in table:
            told = f"{arm} (rate {RATES[rate]:g}, step {step})" if arm == "random, best fixed" else arm
            print(f"| {told} | {table[arm].mean():.3f} | {interval((table[arm] - ours).to_numpy())} |")
        target = part[part["arm"] == "generated" + label].set_index(["name", "seed"])["loss"]
        shown = curves[curves["name"].isin(table.index)]
        fixed, fastest = (steps_needed(shown, target, rates) for rates in (slice(rate, rate + 1), slice(None)))
        print(f"\nSteps of a random net until it is as good, at its best fixed rate: {fixed}.")
        print(f"At the rate that gets there first on the test rows: {fastest}.")
        seconds = part.loc[part["arm"] == "generated" + label, "seconds"]
        print(f"CPU milliseconds of generation, steps and prediction: median {1e3 * seconds.median():.0f}.")
    _report_race(rows)
    _report_numeric(rows)


def _report_race(rows: pd.DataFrame) -> None:
    part = rows[rows["arm"].str.startswith("mlp, ")]
    if part.empty:
        return
    loss = part.pivot_table(index="name", columns="arm", values="loss").dropna()
    seconds = part.pivot_table(index="name", columns="arm", values="seconds").dropna()
    print(f"\n## At use, 75 % of at most 2,000 rows: {len(loss)} tables\n")
    print("| arm | log loss | CPU seconds |\n|---|---|---|")
    for arm in loss.columns:
        print(f"| {arm} | {loss[arm].mean():.3f} | {seconds[arm].median():.2f} |")
    print(f"\ngenerated less random: {interval((loss['mlp, generated'] - loss['mlp, random']).to_numpy())}")
    print(part.loc[part["arm"] == "mlp, generated", "winner"].value_counts().to_dict())


def _report_numeric(rows: pd.DataFrame) -> None:
    part = rows[rows["arm"].str.startswith("numeric, ")] if "error" in rows else rows[:0]
    for size, some in part.groupby("size"):
        table = some.pivot_table(index="name", columns="arm", values="error").dropna()
        ours = table.pop("numeric, generated")
        print(f"\n## Regression, {size} rows: {len(table)} tables\n\n| arm | error | arm less generated |")
        print(f"|---|---|---|\n| generated + 5 own steps | {ours.mean():.3f} | |")
        for arm in table.columns:
            print(f"| {arm} | {table[arm].mean():.3f} | {interval((table[arm] - ours).to_numpy())} |")


if __name__ == "__main__":
    app()
