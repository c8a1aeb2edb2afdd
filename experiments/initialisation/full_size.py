"""Neural families at full size against a default CatBoost: library defaults, one held-out quarter of each table.

    AUTOMETA_DATA=... OMP_NUM_THREADS=1 python experiments/initialisation/full_size.py run FILE       # cells
    python experiments/initialisation/full_size.py report FILE                                      # tables

Each table: 75 % of the rows to train on, 25 % to test on, by seed (stratified for classes); encoders and models see the
training rows only. Arms: the families "mlp" and "tabm" with their default configurations, the family "catboost" with
its own, and CatBoost as it comes (its own defaults: 1,000 rounds, its own rate). FILE holds one JSON row a line; cells
that are there are not run again. Smallest tables first. A fit that takes longer than --time-limit seconds is stopped
and loses. One thread. ``--collection open_test`` needs ``--open-test`` and leaves a line in ``open_test.log``.
"""

from __future__ import annotations

import json
import time
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import typer
from numpy.typing import NDArray
from sklearn.model_selection import train_test_split

from autometa import __version__
from autometa.collection import CollectionEntry, load_collection, load_entry
from autometa.data import Dataset
from autometa.exceptions import DataError
from autometa.experiment.simulation import bootstrap_interval
from autometa.families import resolve_families
from autometa.families._estimators import CategoricalCatBoostClassifier, CategoricalCatBoostRegressor
from autometa.families.boosting import CatBoost
from autometa.family import MatrixShape, ModelFamily
from autometa.fitting import EncodedData
from autometa.folds import fit_quietly
from autometa.metrics import resolve_metric, task_metrics
from autometa.preprocessing import TableEncoder
from autometa.workers import WorkerError, WorkerPool

HERE = Path(__file__).parent
RIVAL = "catboost as it comes"
MIN_ROWS = 100
app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)


class _AsItComes:
    def _options(self) -> dict[str, Any]:
        return {
            "random_seed": self.random_state, "thread_count": self.n_threads, "allow_writing_files": False,
            "logging_level": "Silent",
        }  # fmt: skip


class _Classifier(_AsItComes, CategoricalCatBoostClassifier):
    pass


class _Regressor(_AsItComes, CategoricalCatBoostRegressor):
    pass


class DefaultCatBoost(CatBoost):
    """CatBoost with nothing set but seed and threads."""

    name = RIVAL

    def build(self, config: Any, shape: MatrixShape, *, random_state: int = 0, n_threads: int = 1) -> Any:
        model = _Classifier if shape.task.is_classification else _Regressor
        return model(n_categorical=shape.n_categorical, random_state=random_state, n_threads=n_threads)


def fit_and_predict(
    family: ModelFamily, data: EncodedData, test: NDArray[np.float32], seed: int
) -> tuple[NDArray[np.float64], float, float]:
    """Predictions of the test rows, CPU seconds of the fit and of the predictions; runs in a worker."""
    started = time.process_time()
    model = fit_quietly(family, family.default_config, data, seed)
    fitted = time.process_time()
    found = np.asarray(model.predict(test), dtype=np.float64)
    return found, fitted - started, time.process_time() - fitted


def measure(dataset: Dataset, family: ModelFamily, seed: int, workers: WorkerPool, limit: float) -> dict[str, Any]:
    """Scores of one family on the held-out quarter."""
    stratify = dataset.y if dataset.task.is_classification and np.bincount(dataset.y).min() > 1 else None
    train, test = train_test_split(np.arange(dataset.n_rows), test_size=0.25, stratify=stratify, random_state=seed)
    encoder = TableEncoder(family.matrix, kinds=dataset.kinds)
    matrix = np.ascontiguousarray(encoder.fit_transform(dataset.X.iloc[train]), dtype=np.float32)
    unseen = np.ascontiguousarray(encoder.transform(dataset.X.iloc[test]), dtype=np.float32)
    data = EncodedData(matrix, dataset.y[train], dataset.task, dataset.n_classes, encoder.n_categorical_)
    future = workers.submit(partial(fit_and_predict, family, data, unseen, seed), time_limit=limit)
    try:
        prediction, fit_seconds, predict_seconds = future.result()
    except WorkerError as error:
        return {"status": str(error.failure.status), "reason": str(error), "n_train": len(train)}
    scores = {m.name: float(m.score(dataset.y[test], prediction, None)) for m in task_metrics(dataset.task)}
    seconds = {"fit_cpu_seconds": fit_seconds, "predict_cpu_seconds": predict_seconds}
    return {"status": "ok", "n_train": len(train), "scores": scores, **seconds}


@app.command()
def run(
    file: Path, collection: str = "dev", max_rows: int = 10**9, max_features: int = 10**9, seeds: int = 1,
    time_limit: float = 900.0, open_test: bool = False,
) -> None:  # fmt: skip
    """Run the cells that are not there yet, on tables of at most so many rows and features."""
    check_open_test(collection, open_test, file)
    done = {(row["dataset"], row["seed"], row["arm"]) for row in _rows(file)}
    families = [DefaultCatBoost(), *resolve_families(["mlp", "tabm", "catboost"])]
    entries = [e for e in load_collection(collection) if MIN_ROWS <= e.n_rows <= max_rows]
    entries = [e for e in entries if e.n_features <= max_features]
    with WorkerPool(1) as workers:
        for entry in sorted(entries, key=lambda e: e.n_rows * (10 + e.n_features)):
            todo = [(s, f) for s in range(seeds) for f in families if (entry.name, s, f.name) not in done]
            dataset = _load(entry) if todo else None
            for seed, family in todo if dataset is not None else ():
                found = measure(dataset, family, seed, workers, time_limit)
                head = {"dataset": entry.name, "group": entry.group, "task": str(entry.task), "n_rows": entry.n_rows}
                row = {**head, "collection": collection, "seed": seed, "arm": family.name, **found}
                with file.open("a", encoding="utf-8") as out:
                    out.write(json.dumps(row) + "\n")
                print(entry.name, seed, family.name, found["status"], flush=True)


@app.command()
def report(file: Path) -> None:
    """Shares of tables on which each arm beats CatBoost as it comes, with 95 % bootstrap intervals over groups."""
    frame = pd.DataFrame(_rows(file))
    print(f"{frame['dataset'].nunique()} tables, {frame['seed'].nunique()} seed(s)\n")
    print("| arm | metric | tables | better than CatBoost as it comes | loss against its (median ratio) | stopped |")
    print("|---|---|---|---|---|---|")
    for arm in [name for name in dict.fromkeys(frame["arm"]) if name != RIVAL]:
        for default in (True, False):
            _line(frame, arm, default)
    seconds = frame.groupby("arm")["fit_cpu_seconds"].agg(["median", "mean", "max", "sum"]).round(1)
    print("\nCPU seconds of a fit\n\n" + seconds.to_string())


def _line(frame: pd.DataFrame, arm: str, default: bool) -> None:
    """One row of the table: by the default metric of each task, or by log loss (RMSE for numbers)."""
    wins, ratios, groups, stopped = [], [], [], 0
    for _, cells in frame[frame["arm"].isin([arm, RIVAL])].groupby(["dataset", "seed"], sort=False):
        by_arm = {row["arm"]: row for row in cells.to_dict("records")}
        if len(by_arm) < 2:
            continue
        metric = resolve_metric(None, by_arm[arm]["task"])
        if not default:
            metric = resolve_metric("rmse" if by_arm[arm]["task"] == "regression" else "log_loss", by_arm[arm]["task"])
        ours, theirs = (_score(by_arm[name], metric.name) for name in (arm, RIVAL))
        stopped += ours == -np.inf
        wins.append(0.5 if ours == theirs else float(ours > theirs))
        groups.append(by_arm[arm]["group"])
        if np.isfinite([ours, theirs]).all():
            losses = [metric.best - ours, metric.best - theirs]
            ratios.append(losses[0] / losses[1] if losses[1] > 0 else 1.0 if losses[0] == 0 else np.inf)
    share, low, high = bootstrap_interval(np.array(wins), groups)
    name = "AUC, log loss or RMSE" if default else "log loss or RMSE"
    print(
        f"| {arm} | {name} | {len(wins)} | {share:.0%} [{low:.0%}, {high:.0%}] | {np.median(ratios):.3f} | {stopped} |"
    )


def check_open_test(collection: str, allowed: bool, file: Path) -> None:
    """The collection for release candidates is read on purpose only, and each reading is on record."""
    if collection != "open_test":
        return
    if not allowed:
        raise SystemExit("open_test is for release candidates: pass --open-test to use it. Nothing was run.")
    now = datetime.now(UTC).isoformat(timespec="seconds")
    line = {"when": now, "version": __version__, "script": Path(__file__).name, "rows": file.name}
    with (HERE / "open_test.log").open("a", encoding="utf-8") as log:
        log.write(json.dumps(line) + "\n")


def _load(entry: CollectionEntry) -> Dataset | None:
    try:
        return load_entry(entry)
    except DataError as error:
        print(f"left out: {entry.name}: {error}", flush=True)
        return None


def _score(row: dict[str, Any], metric: str) -> float:
    return float(row["scores"][metric]) if row["status"] == "ok" else -np.inf


def _rows(file: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in file.read_text(encoding="utf-8").splitlines()] if file.is_file() else []


if __name__ == "__main__":
    app()
