"""How much a further model adds to an ensemble: learned from cached predictions, and replayed on datasets left out.

    AUTOMETA_DATA=<folder of tables> python experiments/ensemble_gain/fit.py --predictions FOLDER [--ship]

FOLDER holds one folder of out-of-fold predictions per dataset, as `autometa.experiment` keeps them with
``keep_predictions = true``. Half of a dataset's rows choose (scores, weights of ensembles), gains are measured on the
other half. Datasets are split into folds by group. For every fold a meta-model and the numbers of an `EnsembleGain` are
learned from the other folds; on the fold itself a search is replayed twice under the same belief: the next candidate by
expected improvement of the best single model, or by expected gain to the ensemble. What is compared is the score of the
final ensemble (`choose_weights`) after k trials. `--ship` learns from all groups outside `dev` and writes the numbers
to the package.
"""

from __future__ import annotations

import argparse
import json
import os
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")

import numpy as np
import pandas as pd
from scipy.optimize import least_squares
from scipy.special import ndtr

from autometa.collection import Collection, load_collection
from autometa.data import TaskType
from autometa.ensembling import choose_weights, greedy_weights
from autometa.experiment.simulation import bootstrap_interval
from autometa.family import Candidate
from autometa.meta_dataset import MetaDataset
from autometa.meta_training import TrainingOptions, train_meta_model
from autometa.metrics import Metric, resolve_metric
from autometa.tuning.ensemble_gain import SLOPES, EnsembleGain, EnsembleValue, describe

HERE = Path(__file__).parent
PRETRAINED = HERE.parent.parent / "autometa" / "pretrained"
N_FOLDS = 4
KS = (5, 10, 20)
MAX_ROWS, SUBSAMPLE_SEED = 2000, 0  # of the corpus
SIZES = (3, 4, 6, 9, 14)


@dataclass(frozen=True, eq=False)
class Table:
    """One dataset: targets, and the predictions of the candidates of its corpus row, in a fixed order."""

    name: str
    group: str
    task: TaskType
    y: np.ndarray
    candidates: tuple[Candidate, ...]
    predictions: tuple[np.ndarray, ...]
    errors: np.ndarray

    @property
    def metric(self) -> Metric:
        return resolve_metric(None, self.task)

    def halves(self, half: int) -> tuple[np.ndarray, np.ndarray]:
        """Rows that choose and rows that score."""
        mixed = np.random.default_rng(0).permutation(len(self.y)) % 2
        return np.flatnonzero(mixed == half), np.flatnonzero(mixed != half)

    def scores(self, rows: np.ndarray) -> np.ndarray:
        return np.array([self.metric.score(self.y[rows], p[rows]) for p in self.predictions])


def load_tables(predictions: Path, min_candidates: int = 30) -> list[Table]:
    """Every dataset of the shipped corpus with enough cached predictions."""
    cells = pd.read_parquet(PRETRAINED / "corpus" / "evaluations.parquet")
    cells["config_id"] = cells["config_id"].astype(str)
    collection: Collection = load_collection("meta_train")
    tables = []
    for entry in collection:
        rows = cells[(cells["dataset"].astype(str) == entry.name) & (cells["metric"] == default_metric(entry.task))]
        found: dict[str, np.ndarray] = {}
        for path in sorted((predictions / entry.fingerprint).glob("0-*.npz")):
            with np.load(path, allow_pickle=False) as arrays:
                found |= {key: arrays[key].astype(float) for key in arrays.files}
        rows = rows[rows["config_id"].isin(list(found))].drop_duplicates("config_id")
        if len(rows) < min_candidates:
            continue
        dataset = collection.load(entry)
        dataset = dataset.subsample(MAX_ROWS, SUBSAMPLE_SEED) if dataset.n_rows > MAX_ROWS else dataset
        known = [
            (row, found[row.config_id]) for row in rows.itertuples() if len(found[row.config_id]) == len(dataset.y)
        ]
        known = [(row, p) for row, p in known if np.isfinite(p).all()]
        if len(known) < min_candidates:
            continue
        candidates = tuple(Candidate(str(r.family), json.loads(r.config)) for r, _ in known)
        errors = np.array([r.standard_error for r, _ in known], dtype=float) * np.sqrt(2)  # of half the rows
        tables.append(Table(entry.name, entry.group, entry.task, np.asarray(dataset.y), candidates,
                            tuple(p for _, p in known), errors))  # fmt: skip
    return tables


def default_metric(task: TaskType) -> str:
    return resolve_metric(None, task).name


def error_correlation(tables: Sequence[Table]) -> dict[tuple[str, str], float]:
    """Mean correlation of the errors of two models by their families; of good models only, different ones."""
    found: dict[tuple[str, str], list[float]] = {}
    for table in tables:
        scores = table.scores(np.arange(len(table.y)))
        good = np.flatnonzero(scores >= np.median(scores))
        truth = np.eye(table.predictions[0].shape[1])[table.y.astype(int)] if table.task.is_classification else table.y
        residuals = np.corrcoef([(table.predictions[i] - truth).ravel() for i in good])
        for a, i in enumerate(good):
            for b, j in enumerate(good[:a]):
                if np.isfinite(residuals[a, b]):
                    pair = tuple(sorted((table.candidates[i].family, table.candidates[j].family)))
                    found.setdefault(pair, []).append(float(residuals[a, b]))
    means = {pair: float(np.mean(values)) for pair, values in found.items()}
    names = sorted({name for pair in means for name in pair})
    overall = float(np.mean(list(means.values())))
    return {(a, b): means.get(tuple(sorted((a, b))), overall) for a in names for b in names}


def gain_rows(table: Table, correlation: dict[tuple[str, str], float], seed: int) -> list[dict[str, Any]]:
    """Measured gains of newcomers to ensembles of some candidates, in normalised units."""
    rng = np.random.default_rng([seed, len(table.y)])
    found = []
    for half in (0, 1):
        choose, score = table.halves(half)
        known, held = table.scores(choose), table.scores(score)
        spread = min(np.nanmax(v) - np.nanmedian(v) for v in (known, held))
        if not spread > 0 or not np.isfinite(known).all():
            continue
        good = np.argsort(-known)[: len(known) // 3]
        for size in rng.choice(SIZES, 2, replace=False):
            members = np.unique(np.concatenate([rng.choice(good, size // 2 + 1), rng.integers(len(known), size=size)]))
            members = members[np.argsort(-known[members])][:size]
            before = ensemble_score(table, members, choose, score)
            others = np.setdiff1d(np.arange(len(known)), members)
            families = [table.candidates[i].family for i in members]
            for new in rng.choice(others, min(5, len(others)), replace=False):
                gain = ensemble_score(table, [*members, new], choose, score) - before
                kind = describe([table.candidates[new].family], families, n_rows=len(table.y), correlation=correlation)
                found.append(
                    {
                        "group": table.group,
                        "task": str(table.task),
                        "gain": gain / spread,
                        "margin": (known[new] - known[members[0]]) / spread,
                        **dict(zip(SLOPES, kind[0], strict=True)),
                    }
                )
    return found


def ensemble_score(table: Table, members: Sequence[int], choose: np.ndarray, score: np.ndarray) -> float:
    predictions = [table.predictions[i] for i in members]
    weights = greedy_weights([p[choose] for p in predictions], table.y[choose], metric=table.metric)
    mixed = np.tensordot(weights, np.stack([p[score] for p in predictions]), axes=1)
    return table.metric.score(table.y[score], mixed)


def fit_gain(rows: pd.DataFrame, correlation: dict[tuple[str, str], float]) -> EnsembleGain:
    """The numbers of the gain by robust least squares; every group counts the same."""
    tasks = sorted(rows["task"].unique())
    weight = 1.0 / np.sqrt(rows.groupby("group")["gain"].transform("size").to_numpy())
    described, margin = rows[list(SLOPES)].to_numpy(), rows["margin"].clip(-3, 3).to_numpy()
    gain = rows["gain"].clip(-1, 1).to_numpy()
    task = rows["task"].map(tasks.index).to_numpy()
    n = len(SLOPES)

    def expected(numbers: np.ndarray) -> np.ndarray:
        bonus = numbers[n + task] + described @ numbers[:n]
        blur = np.exp(numbers[n + len(tasks) + task])
        return improvement(margin + bonus, blur)

    def residuals(numbers: np.ndarray) -> np.ndarray:
        prior = 0.05 * np.concatenate([numbers[: n + len(tasks)], numbers[n + len(tasks) :] - np.log(0.1)])
        return np.concatenate([weight * (gain - expected(numbers)), prior])

    start = np.concatenate([np.zeros(n + len(tasks)), np.full(len(tasks), np.log(0.1))])
    numbers = least_squares(residuals, start, loss="soft_l1", f_scale=0.05).x
    names = sorted({a for a, _ in correlation})
    table = tuple(tuple(round(correlation[a, b], 4) for b in names) for a in names)
    return EnsembleGain(
        tuple(names), table, dict(zip(SLOPES, np.round(numbers[:n], 4).tolist(), strict=True)),
        dict(zip(tasks, np.round(numbers[n : n + len(tasks)], 4).tolist(), strict=True)),
        dict(zip(tasks, np.round(np.exp(numbers[n + len(tasks) :]), 4).tolist(), strict=True)),
    )  # fmt: skip


def improvement(mean: np.ndarray, std: np.ndarray) -> np.ndarray:
    """Expected positive part of a Gaussian."""
    z = mean / std
    return std * (z * ndtr(z) + np.exp(-0.5 * z * z) / np.sqrt(2 * np.pi))


def replay(table: Table, model: Any, features: pd.Series, gain: EnsembleGain) -> list[dict[str, Any]]:
    """Ensemble scores after k trials of both ways to choose, in normalised units."""
    found = []
    for half in (0, 1):
        choose, score = table.halves(half)
        known, held = table.scores(choose), table.scores(score)
        spread = np.nanmax(held) - np.nanmedian(held)
        if not spread > 0 or not np.isfinite(known).all():
            continue
        for way in ("single", "gain"):
            order = searched(table, known, model.belief(features, table.candidates, metric=table.metric.name),
                             gain if way == "gain" else None)  # fmt: skip
            for k in KS:
                predictions = [table.predictions[i] for i in sorted(order[:k], key=lambda i: -known[i])[:12]]
                weights = choose_weights([p[choose] for p in predictions], table.y[choose], metric=table.metric)
                mixed = np.tensordot(weights, np.stack([p[score] for p in predictions]), axes=1)
                value = (table.metric.score(table.y[score], mixed) - np.nanmedian(held)) / spread
                best = max(order[:k], key=lambda i: known[i])
                found.append({"dataset": table.name, "group": table.group, "task": str(table.task), "half": half,
                              "way": way, "k": k, "ensemble": max(value, -1.0),
                              "single": max((held[best] - np.nanmedian(held)) / spread, -1.0),
                              "families": len({table.candidates[i].family for i in order[:k]})})  # fmt: skip
    return found


def searched(table: Table, known: np.ndarray, belief: Any, gain: EnsembleGain | None) -> list[int]:
    """The order in which candidates are tried."""
    families = [candidate.family for candidate in table.candidates]
    order: list[int] = []
    while len(order) < min(max(KS), len(known)):
        value = belief.expected_improvement()
        if gain is not None and order:
            members = [families[i] for i in sorted(order, key=lambda i: -known[i])]
            value = EnsembleValue(gain, table.task, len(table.y))(belief, families, members)
        value[order] = -np.inf
        order.append(int(np.argmax(value)))
        error = table.errors[order[-1]]
        belief = belief.observe(order[-1], float(known[order[-1]]), float(error) if error > 0 else None)
    return order


def summarise(frame: pd.DataFrame, dev: set[str]) -> dict[str, Any]:
    """Paired differences with intervals over groups, for all datasets and for those of dev."""
    report: dict[str, Any] = {}
    for name, part in (("all", frame), ("dev", frame[frame["dataset"].isin(dev)]),
                       *((t, frame[frame["task"] == t]) for t in sorted(frame["task"].unique()))):  # fmt: skip
        table = part.pivot_table(index=["dataset", "group"], columns=["way", "k"], values="ensemble")
        rows: dict[str, Any] = {"n_datasets": len(table)}
        differences = table["gain"] - table["single"]
        groups = list(differences.index.get_level_values("group"))
        for k in KS:
            low_high = bootstrap_interval(differences[k].to_numpy(), groups)
            rows[f"@{k}"] = {"single": float(table["single"][k].mean()), "gain": float(table["gain"][k].mean()),
                             "difference": [round(v, 4) for v in low_high]}  # fmt: skip
        rows["mean"] = [round(v, 4) for v in bootstrap_interval(differences.mean(axis=1).to_numpy(), groups)]
        report[name] = rows
    return report


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--predictions", type=Path, required=True)
    parser.add_argument("--ship", action="store_true", help="learn from all groups outside dev and write the numbers")
    parser.add_argument("--limit", type=int, default=None, help="datasets, for a quick look")
    arguments = parser.parse_args()
    started = time.process_time()
    tables = load_tables(arguments.predictions)[: arguments.limit]
    meta = MetaDataset.from_parquet(PRETRAINED / "corpus")
    dev = load_collection("dev")
    print(f"{len(tables)} datasets, {time.process_time() - started:.0f} s", flush=True)
    found: list[dict[str, Any]] = []
    numbers = []
    for train, test in meta.split_by_group(N_FOLDS, seed=0):
        mine = [t for t in tables if t.name in set(train.datasets)]
        correlation = error_correlation(mine)
        rows = pd.DataFrame([row for t in mine for row in gain_rows(t, correlation, 0)])
        gain = fit_gain(rows, correlation)
        numbers.append({"slopes": gain.slopes, "intercept": gain.intercept, "blur": gain.blur})
        model = train_meta_model(train, options=TrainingOptions(n_rehearsals=0))
        for table in tables:
            if table.name in set(test.datasets):
                found += replay(table, model, meta.meta_features.loc[table.name], gain)
        print(f"{numbers[-1]}, {time.process_time() - started:.0f} s", flush=True)
    frame = pd.DataFrame(found)
    report = {"folds": numbers, "replay": summarise(frame, {e.name for e in dev})}
    print(json.dumps(report["replay"], indent=1))
    if arguments.limit is None:
        (HERE / "report.json").write_text(json.dumps(report, indent=1) + "\n")
    if arguments.ship:
        ship([t for t in tables if t.group not in dev.groups], report)
    print(f"{time.process_time() - started:.0f} s of processor time")


def ship(tables: Sequence[Table], report: dict[str, Any]) -> None:
    """Write the numbers and their card to the package."""
    correlation = error_correlation(tables)
    rows = pd.DataFrame([row for t in tables for row in gain_rows(t, correlation, 0)])
    card = {"what": "expected gain of a further model to an ensemble, see autometa/tuning/ensemble_gain.py",
            "made_by": "experiments/ensemble_gain/fit.py --ship", "n_datasets": len(tables), "n_gains": len(rows),
            "not_trained_on": "any group of dev or open_test", "groups": sorted({t.group for t in tables}),
            "replay": report["replay"]["all"]["mean"]}  # fmt: skip
    folder = PRETRAINED / "ensemble_gain"
    folder.mkdir(exist_ok=True)
    content = {**fit_gain(rows, correlation).to_dict(), "card": card}
    (folder / "gain.json").write_text(json.dumps(content, indent=1) + "\n")


if __name__ == "__main__":
    main()
