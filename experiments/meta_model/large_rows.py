"""What the measurements at up to 20,000 rows teach: leave-group-out on the tables that have them.

    python experiments/meta_model/large_rows.py [--corpus FOLDER] [--folds 5] [--seeds 1]

For each fold two meta-models are trained on the other groups, without rehearsals: on what the corpus measured at no
more than its own cap, after which seconds grow as the rows do, and with ``large_rows.parquet``, which tells how they
grow for each family. Both are asked what to expect of the candidates that were measured on a large table of the fold,
with all of its rows. ``choice`` is the score of the candidate that is forecast to be best (0 = median of those
measured, 1 = best), ``order`` the rank correlation of forecasts and scores, ``seconds`` how many forecasts of the
seconds of a fit are within a factor of 2 on the same machine, and ``log_ratio`` the natural logarithm of forecast over
measured seconds. Writes one row per table and way (CSV) and prints the means, and what the large rows bring, with 95 %
bootstraps over groups.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")

import numpy as np
import pandas as pd
from own_corpus import command_line, interval, same_machine
from scipy.stats import spearmanr

from autometa.family import Candidate
from autometa.meta_dataset import MetaDataset, row_features
from autometa.meta_model import MetaModel
from autometa.meta_training import TrainingOptions, train_meta_model

WAYS = ("without", "with")
NO_REHEARSALS = TrainingOptions(n_rehearsals=0)
FACTS = ("choice", "order", "seconds", "log_ratio")
MIN_CANDIDATES = 5


def run(corpus: Path, *, n_folds: int, seed: int) -> pd.DataFrame:
    """One row per large table and way."""
    meta = MetaDataset.from_parquet(corpus)
    large = measured(meta)
    rows = []
    for train, test in meta.split_by_group(n_folds, seed=seed):
        parts = dict(zip(WAYS, (replace(train, large_rows=None), train), strict=True))
        models = {way: train_meta_model(part, seed, options=NO_REHEARSALS) for way, part in parts.items()}
        for name, cells in large[large["dataset"].isin(test.datasets)].groupby("dataset"):
            features = dict(meta.meta_features.loc[str(name)].items())
            powers = np.log10(float(cells["n_rows"].iloc[0])) - features["log_rows"]
            features |= row_features(features, powers)
            head = {"dataset": name, "group": str(meta.groups[name]), "seed": seed}
            rows += [head | {"way": way} | judged(model, features, cells) for way, model in models.items()]
    return pd.DataFrame(rows)


def measured(meta: MetaDataset) -> pd.DataFrame:
    """The cells of the large tables in the default metric of their task, of tables with enough candidates."""
    cells = meta.large_rows
    assert cells is not None
    cells = cells[cells["metric"] == cells.groupby("dataset")["metric"].transform("first")]
    return cells[cells.groupby("dataset")["key"].transform("nunique") >= MIN_CANDIDATES]


def judged(model: MetaModel, features: Mapping[str, Any], cells: pd.DataFrame) -> dict[str, float]:
    """How the forecasts before any trial compare with what was measured on one table."""
    candidates = [Candidate(row.family, json.loads(row.config)) for row in cells.itertuples()]
    score, seconds = (cells[name].to_numpy(dtype=float) for name in ("score", "seconds"))
    belief = same_machine(model.belief(features, candidates, metric=cells["metric"].iloc[0]))
    log_ratio = np.log(belief.seconds / np.maximum(seconds, 1e-6))
    spread = max(float(score.max() - np.median(score)), 1e-12)
    return {
        "n_candidates": len(cells),
        "choice": float(np.clip((score[belief.mean.argmax()] - np.median(score)) / spread, -1.0, None)),
        "order": float(spearmanr(belief.mean, score).statistic),
        "seconds": float(np.mean(np.abs(log_ratio) <= np.log(2.0))),
        "log_ratio": float(np.mean(log_ratio)),
    }


def summarise(rows: pd.DataFrame) -> pd.DataFrame:
    """Mean and 95 % interval of each fact, for each way and for what the large rows bring."""
    wide = rows.groupby(["group", "dataset", "way"])[list(FACTS)].mean().unstack("way")
    groups = wide.index.get_level_values("group").to_numpy()
    found = {way: {fact: interval(wide[fact, way].to_numpy(), groups) for fact in FACTS} for way in WAYS}
    found["gain"] = {fact: interval((wide[fact, "with"] - wide[fact, "without"]).to_numpy(), groups) for fact in FACTS}
    return pd.DataFrame(found).T


def main() -> None:
    parser = command_line(__doc__, "large_rows.csv")
    parser.add_argument("--seeds", type=int, default=1)
    arguments = parser.parse_args()
    rows = pd.concat(run(arguments.corpus, n_folds=arguments.folds, seed=seed) for seed in range(arguments.seeds))
    rows.to_csv(arguments.report, index=False, float_format="%.4g")
    print(f"{rows['dataset'].nunique()} tables in {rows['group'].nunique()} groups")
    for name, line in summarise(rows).iterrows():
        facts = [f"{fact} {v:+.3f} [{low:+.3f}, {high:+.3f}]" for fact, (v, low, high) in line.items()]
        print(f"{name:8s}" + "  ".join(facts))


if __name__ == "__main__":
    main()
