"""What the shipped corpus holds: coverage, statuses, seconds and wins by family, the best single candidate.

Usage: python experiments/corpus/report.py [FOLDER]
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

import numpy as np
import pandas as pd

CORPUS = Path(__file__).parent.parent.parent / "autometa" / "pretrained" / "corpus"
DEFAULT = {"binary": "roc_auc", "multiclass": "log_loss", "regression": "rmse"}


def normalised(table: pd.DataFrame) -> pd.DataFrame:
    """0 = the dataset's median candidate, 1 = its best; not below -1."""
    middle, best = table.median(axis=1), table.max(axis=1)
    return table.sub(middle, axis=0).div((best - middle).clip(lower=1e-9), axis=0).clip(lower=-1)


def main() -> None:
    folder = Path(sys.argv[1]) if len(sys.argv) > 1 else CORPUS
    card = json.loads((folder / "card.json").read_text())
    rows = pd.read_parquet(folder / "evaluations.parquet")
    rows = rows.astype(dict.fromkeys(("dataset", "task", "family", "config_id", "metric", "status", "config"), str))
    print(f"{card['n_datasets']} datasets in {card['n_groups']} groups, {card['n_candidates']} candidates, "
          f"{card['core_hours']} core-hours, {card['from']} to {card['to']}")  # fmt: skip
    main_rows = rows[rows["metric"] == rows["task"].map(DEFAULT)]
    cells = main_rows.drop_duplicates(["dataset", "config_id", "seed"])
    print("\ncells by status\n" + cells.groupby("status").size().to_string())
    ok = cells[cells["status"] == "ok"]
    by_family = pd.DataFrame({
        "cells": cells.groupby("family").size(),
        "not ok": cells[cells["status"] != "ok"].groupby("family").size(),
        "median seconds of a fit": ok.groupby("family")["seconds"].median().round(3),
        "90 % below": ok.groupby("family")["seconds"].quantile(0.9).round(3),
    }).fillna({"not ok": 0})  # fmt: skip
    wins = ok.loc[ok.groupby("dataset")["score"].idxmax()].groupby(["task", "family"]).size().unstack(0, fill_value=0)
    print("\n" + by_family.join(wins.add_prefix("wins, ")).fillna(0).to_string())
    print("\nstandard error of a score: median over cells, and as a share of the spread from median to best candidate")
    for task, part in ok.groupby("task"):
        table = part.pivot_table(index="dataset", columns="config_id", values="score")
        spread = table.max(axis=1) - table.median(axis=1)
        error = part.groupby("dataset")["standard_error"].median()
        print(f"  {task}: {error.median():.3g}, {(error / spread).median():.2f}")
        mean = normalised(table).fillna(-1).mean().sort_values(ascending=False)
        first = part.drop_duplicates("config_id").set_index("config_id")
        top = [f"{first.loc[i, 'family']} ({v:.2f})" for i, v in mean.head(5).items()]
        print(f"    best single candidates, mean normalised score: {', '.join(top)}")
    print(f"\nscores with a standard error: {np.mean(np.isfinite(ok['standard_error'])):.0%}")


if __name__ == "__main__":
    main()
