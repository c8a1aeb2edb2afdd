"""The meta-model on external meta-benchmarks, against a portfolio and against a belief without meta-features.

    python experiments/meta_model/external.py FOLDER... [--seeds 3] [--learners ridge forest mlp]

Each FOLDER holds ``evaluations.parquet``, ``meta_features.parquet`` and ``folds.parquet``. For every fold a meta-model
is trained on the other folds only; on each dataset of the fold it proposes configurations and sees the raw scores of
those that it proposed, nothing else. Scores are then normalised (0 = the dataset's median configuration, 1 = its
best), averaged over seeds within a dataset, and compared in pairs; intervals are bootstraps over datasets and over
folds (related datasets share a fold). The figures are written to ``report.json`` beside this file.
"""

from __future__ import annotations

import argparse
import json
import os
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")

import numpy as np
import pandas as pd

from autometa.experiment.simulation import bootstrap_interval, greedy_portfolio
from autometa.meta_dataset import MetaDataset
from autometa.meta_model import MetaModel
from autometa.meta_training import TrainingOptions, train_meta_model

TRIALS = (1, 2, 3, 5, 10, 20)
N_TRIALS = 20
COVERED = (0, 1, 3, 10)


def load(folder: Path) -> tuple[MetaDataset, pd.Series]:
    """The bench as a meta-dataset whose groups are its folds, and the fold of each dataset."""
    frame = pd.read_parquet(folder / "folds.parquet")
    folds = frame.assign(dataset=frame["dataset"].astype(str)).set_index("dataset")["fold"]
    evaluations = pd.read_parquet(folder / "evaluations.parquet")
    return MetaDataset.from_frames(evaluations, pd.read_parquet(folder / "meta_features.parquet"), folds), folds


def normalise(raw: pd.DataFrame) -> pd.DataFrame:
    """0 = the dataset's median configuration, 1 = its best; used to judge, never to choose."""
    median = raw.median(axis=1)
    return raw.sub(median, axis=0).div(raw.max(axis=1) - median + 1e-9, axis=0).clip(lower=-1)


def propose(model: MetaModel, meta_features: pd.Series, candidates: list[Any], raw: np.ndarray, n: int) -> Any:
    """Positions in the order in which the belief asks for them, and the hits of its 80 % interval."""
    belief = model.belief(meta_features, candidates)
    order, covered = [], []
    for k in range(n):
        if k in COVERED:
            low, high = belief.interval(0.8)
            rest = np.setdiff1d(np.arange(len(raw)), order)
            covered.append(float(((raw >= low) & (raw <= high))[rest].mean()))
        order.append(belief.next())
        belief = belief.observe(order[-1], raw[order[-1]])
    return order, covered


def run(folder: Path, seeds: int, options: TrainingOptions) -> dict[str, Any]:
    """All methods on one bench."""
    data, folds = load(folder)
    raw, metas = data.score_table(), data.meta_features
    scores, candidates = normalise(raw), [data.candidates[key] for key in raw.columns]
    n = min(N_TRIALS, len(candidates))
    methods = {"belief": replace(options, learners=(), n_rehearsals=0), "belief+meta-features": options}
    found = {name: np.zeros((len(raw), n)) for name in ("portfolio", *methods)}
    coverage: list[list[float]] = []
    started = time.perf_counter()
    for fold in sorted(folds.unique()):
        test = np.flatnonzero(folds.loc[raw.index] == fold)
        train = data.subset([d for d in raw.index if folds[d] != fold])
        order = greedy_portfolio(scores.loc[list(train.datasets)].to_numpy(), n)
        found["portfolio"][test] = np.maximum.accumulate(scores.to_numpy()[test][:, order], axis=1)
        for name, choice in methods.items():
            for seed in range(seeds if choice.learners else 1):
                model = train_meta_model(train, seed=seed, options=choice)
                for i in test:
                    order, hits = propose(model, metas.loc[raw.index[i]], candidates, raw.to_numpy()[i], n)
                    path = np.maximum.accumulate(scores.to_numpy()[i, order])
                    found[name][i] += path / (seeds if choice.learners else 1)
                    if choice.learners:
                        coverage.append(hits)
    report = summarise(found, folds.loc[raw.index].to_numpy())
    report |= {
        "datasets": len(raw), "configurations": len(candidates), "seeds": seeds,
        "seconds": round(time.perf_counter() - started, 1),
        "coverage_of_80_percent_interval": dict(
            zip([f"@{k}" for k in COVERED], np.mean(coverage, axis=0).round(3), strict=True)
        ),
    }  # fmt: skip
    return report


def summarise(found: dict[str, np.ndarray], fold: np.ndarray) -> dict[str, Any]:
    """Mean normalised score at k and its difference to the portfolio with two 95 % bootstrap intervals."""
    result: dict[str, Any] = {}
    for name, paths in found.items():
        rows = {}
        columns = {f"@{k}": k - 1 for k in TRIALS if k <= paths.shape[1]}
        values = {label: (paths[:, k], found["portfolio"][:, k]) for label, k in columns.items()}
        values["mean of 1..20"] = (paths.mean(axis=1), found["portfolio"].mean(axis=1))
        for label, (mine, base) in values.items():
            gain = mine - base
            rows[label] = {
                "score": round(float(mine.mean()), 4), "gain": round(float(gain.mean()), 4),
                "interval": bootstrap(gain, None), "interval_by_fold": bootstrap(gain, fold),
            }  # fmt: skip
        result[name] = rows
    return {"methods": result}


def bootstrap(values: np.ndarray, cluster: np.ndarray | None) -> list[float]:
    """95 % interval of the mean when whole clusters are drawn again."""
    return [round(v, 4) for v in bootstrap_interval(values, cluster, n_samples=4_000)[1:]]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folders", nargs="+", type=Path)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--learners", nargs="*", default=list(TrainingOptions().learners))
    parser.add_argument("--bandwidth", type=float, default=TrainingOptions().bandwidth)
    parser.add_argument("--report", type=Path, default=Path(__file__).with_name("report.json"))
    arguments = parser.parse_args()
    options = TrainingOptions(learners=tuple(arguments.learners), bandwidth=arguments.bandwidth)
    report = {}
    for folder in arguments.folders:
        report[folder.resolve().name] = result = run(folder, arguments.seeds, options)
        print(f"{folder.resolve().name}: {result['datasets']} datasets x {result['configurations']} configurations")
        for name, rows in result["methods"].items():
            cells = [f"{k} {r['score']:.3f} ({r['gain']:+.3f} {r['interval']})" for k, r in rows.items()]
            print(f"  {name:22s}", "  ".join(cells), flush=True)
        print("  coverage of the 80 % interval:", result["coverage_of_80_percent_interval"], flush=True)
        arguments.report.write_text(json.dumps(report, indent=1, default=float) + "\n", "utf-8")


if __name__ == "__main__":
    main()
