"""What the belief, the ensemble and the search for gain to the ensemble are worth on small tables, under one budget.

    AUTOMETA_DATA=... OMP_NUM_THREADS=1 python experiments/anytime/small_tables.py ROWS.jsonl [--budget 10]
    python experiments/anytime/peers_report.py ROWS.jsonl --focus "belief, ensemble"

Tables of ``dev`` with at most 1,000 rows, in the seeded order of the collection; three quarters of the rows to fit on,
the others to score once. A search starts from the belief of a meta-model that was trained without the groups of
``dev``, from that of one which knows the task alone (a portfolio, updated by its trials), or from the defaults; it ends
with an ensemble or with the best single model; trials are valued by their own improvement or, where there is a belief,
by their gain to the ensemble. The estimators have no switch for the last one (``experiments/ensemble_gain`` says why it
is off): the warm start of the search is replaced here. Arms come in random order on each table; a file of rows resumes.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import time
from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple
from unittest import mock

os.environ.setdefault("OMP_NUM_THREADS", "1")

import numpy as np
from numpy.typing import NDArray
from sklearn.dummy import DummyClassifier, DummyRegressor
from sklearn.model_selection import train_test_split

import autometa.estimator
import autometa.opening
from autometa import AutoMetaClassifier, AutoMetaRegressor
from autometa.collection import load_collection, load_entry
from autometa.data import Dataset, TaskType
from autometa.experiment.methods import predict_rows
from autometa.meta_dataset import MetaDataset
from autometa.meta_model import MetaModel
from autometa.meta_training import train_meta_model
from autometa.metrics import resolve_metric
from autometa.selection import Selection
from autometa.tuning import EnsembleValue, WarmStart, shipped_gain

ROOT = Path(__file__).parent.parent.parent
CORPUS = ROOT / "autometa" / "pretrained" / "corpus"
MODELS = ROOT / "build" / "small_tables"
MAX_ROWS, MIN_ROWS = 1_000, 60


class Arm(NamedTuple):
    """Where a search starts, whether it ends with an ensemble, and whether trials are valued by their gain to it."""

    start: str
    ensemble: bool
    by_gain: bool = False

    def __str__(self) -> str:
        return f"{self.start}, {'ensemble' if self.ensemble else 'single'}{', by gain' if self.by_gain else ''}"


ARMS = (
    *(Arm(start, ensemble) for start in ("belief", "portfolio", "defaults") for ensemble in (True, False)),
    Arm("belief", True, by_gain=True), Arm("portfolio", True, by_gain=True),
)  # fmt: skip


def meta_models(corpus: Path, folder: Path) -> dict[str, MetaModel | str]:
    """Meta-models that have not seen the groups of ``dev``: with all meta-features, and with the task alone."""
    return {"defaults": "none", **{name: unseen_model(name, corpus, folder) for name in ("belief", "portfolio")}}


def unseen_model(name: str, corpus: Path = CORPUS, folder: Path = MODELS) -> MetaModel:
    """The meta-model "belief" or "portfolio" without the groups of ``dev``, trained unless it is in the folder."""
    if not (folder / name).is_dir():
        held_out = {entry.group for entry in load_collection("dev")}
        meta = MetaDataset.from_parquet(corpus)
        meta = meta.subset([d for d in meta.datasets if meta.groups[d] not in held_out])
        blind = MetaDataset(meta.evaluations, meta.meta_features[["task"]], meta.groups)
        train_meta_model(meta if name == "belief" else blind, seed=0).save(folder / name)
    return MetaModel.load(folder / name)


def split(dataset: Dataset, seed: int) -> tuple[NDArray[np.intp], NDArray[np.intp]]:
    """Rows to fit on, three quarters, and rows to score on; stratified where that is possible."""
    is_possible = dataset.task.is_classification and np.bincount(dataset.y).min() > 1
    rows, classes = np.arange(dataset.n_rows), dataset.y if is_possible else None
    train, test = train_test_split(rows, test_size=0.25, stratify=classes, random_state=seed)
    return train, test


@contextlib.contextmanager
def valued_by_gain(task: TaskType, n_rows: int) -> Iterator[None]:
    """Searches that begin in this context value a trial by its gain to the ensemble."""

    def start(selection: Selection, *first: Any) -> WarmStart:
        return replace(warm_start(selection, *first), ensemble=EnsembleValue(shipped_gain(), task, n_rows))

    warm_start = autometa.opening.warm_start
    with contextlib.ExitStack() as stack:
        for place in (autometa.opening, autometa.estimator):
            stack.enter_context(mock.patch.object(place, "warm_start", start))
        yield


def measure(dataset: Dataset, arm: Arm | None, model: Any, *, budget: float, seed: int) -> dict[str, Any]:
    """One fit and its error on the held-out rows, as ``peers_report.py`` reads it; no arm: the constant predictor."""
    is_classification = dataset.task.is_classification
    train, test = split(dataset, seed)
    started = time.perf_counter()
    if arm is None:
        fitted: Any = DummyClassifier(strategy="prior") if is_classification else DummyRegressor()
        fitted.fit(dataset.X.iloc[train], dataset.labels[train])
    else:
        kind = AutoMetaClassifier if is_classification else AutoMetaRegressor
        search = kind(budget, ensemble=arm.ensemble, meta_model=model, random_state=seed)
        with valued_by_gain(dataset.task, len(train)) if arm.by_gain else contextlib.nullcontext():
            fitted = search.fit(dataset.X.iloc[train], dataset.labels[train])
    seconds = time.perf_counter() - started
    metric = resolve_metric(None, dataset.task)
    value = metric.from_score(metric.score(dataset.y[test], predict_rows(fitted, dataset, test), None))
    return {"status": "ok", "metrics": {metric.name: float(value)}, "fit_s": seconds, "n_train": len(train)}


def run(file: Path, models: Mapping[str, Any], names: list[str], *, budget: float, seeds: int) -> None:
    """Measure what is not in the file yet; every row is written at once."""
    lines = file.read_text("utf-8").splitlines() if file.is_file() else []
    done = {(row["dataset"], row["peer"], row["budget"], row["seed"]) for row in map(json.loads, lines)}
    entries = {entry.name: entry for entry in load_collection("dev")}
    rng = np.random.default_rng(0)
    for seed in range(seeds):
        for name in names:
            arms = [(None, "dummy"), *((arm, str(arm)) for arm in ARMS)]
            open_ = [arms[i] for i in rng.permutation(len(arms)) if (name, arms[i][1], budget, seed) not in done]
            dataset = load_entry(entries[name]) if open_ else None
            for arm, label in open_:
                assert dataset is not None
                head = {"dataset": name, "task": str(dataset.task), "peer": label, "budget": budget, "seed": seed}
                found = measure(dataset, arm, arm and models[arm.start], budget=budget, seed=seed)
                with file.open("a", encoding="utf-8") as out:
                    out.write(json.dumps(head | found) + "\n")
                print(name, seed, label, found["metrics"], f"{found['fit_s']:.1f} s", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("rows", type=Path)
    parser.add_argument("--budget", type=float, default=10.0)
    parser.add_argument("--tables", type=int, default=16)
    parser.add_argument("--seeds", type=int, default=1)
    arguments = parser.parse_args()
    models = meta_models(CORPUS, MODELS)
    names = [entry.name for entry in load_collection("dev") if MIN_ROWS <= entry.n_rows <= MAX_ROWS]
    run(arguments.rows, models, names[: arguments.tables], budget=arguments.budget, seeds=arguments.seeds)


if __name__ == "__main__":
    main()
