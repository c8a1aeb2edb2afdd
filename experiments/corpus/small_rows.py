"""How well the order of the candidates after training on few rows agrees with their order after training on all.

Usage: python experiments/corpus/small_rows.py

Per dataset: Spearman's correlation, over the cheap candidates, of the scores in ``small_rows.parquet`` with those in
``evaluations.parquet`` (default metric), where folds have at least 1.5 times as many training rows.
"""

from __future__ import annotations

import pandas as pd
from report import CORPUS, TEXTS, read

from autometa.data import TaskType
from autometa.metrics import task_metrics

ENOUGH = 1.5


def default_scores(rows: pd.DataFrame) -> pd.DataFrame:
    """Finished rows of the default metric of their task."""
    default = {str(task): task_metrics(task)[0].name for task in TaskType}
    return rows[(rows["metric"] == rows["task"].map(default)) & (rows["status"] == "ok")]


def main() -> None:
    full = default_scores(read(CORPUS)[1])
    small = default_scores(pd.read_parquet(CORPUS / "small_rows.parquet").astype(dict.fromkeys(TEXTS, str)))
    about = full.drop_duplicates("dataset").set_index("dataset")
    whole = full.pivot_table(index="dataset", columns="config_id", values="score")[sorted(small["config_id"].unique())]
    print(
        "| training rows | datasets | median correlation | binary | multiclass | regression | all rows score higher |"
    )
    print("|---|---|---|---|---|---|---|")
    for n_rows, part in small.groupby("train_rows"):
        table = part.pivot_table(index="dataset", columns="config_id", values="score")[whole.columns]
        names = [d for d in whole.index.intersection(table.index) if about.loc[d, "n_train_rows"] >= ENOUGH * n_rows]
        rank = pd.Series({d: table.loc[d].corr(whole.loc[d], method="spearman") for d in names}).dropna()
        tasks = rank.groupby(about["task"].reindex(rank.index)).median()
        higher = (whole.loc[names] > table.loc[names]).to_numpy().mean()
        by_task = " | ".join(f"{tasks.get(str(task), float('nan')):.2f}" for task in TaskType)
        print(f"| {n_rows} | {len(names)} | {rank.median():.2f} | {by_task} | {higher:.0%} |")


if __name__ == "__main__":
    main()
