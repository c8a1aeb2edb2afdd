"""What a corpus holds: coverage, seconds, noise, wins, the best single candidate and the greedy portfolio's regret.

Usage: python experiments/corpus/report.py [FOLDER] [--plots FOLDER] [--json FILE]

Portfolios are learned on other groups of datasets (5 folds by group) and on one half of the validation splits; their
incumbent is chosen on that half and scored on the other, and the halves change places. Intervals are bootstraps by
group. Weighted by source: every source of tables counts the same, however many tables it has.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from autometa.data import TaskType
from autometa.experiment.simulation import bootstrap_interval, greedy_portfolio, incumbent_curve, normalise
from autometa.meta_dataset import group_folds
from autometa.metrics import task_metrics

HERE = Path(__file__).parent
CORPUS = HERE.parent.parent / "autometa" / "pretrained" / "corpus"
KS = (1, 3, 5, 10, 20)
EVERYWHERE = 0.9
"""Candidates that fewer of a task's datasets have belong to a supplement, which this report leaves out."""
TEXTS = ("dataset", "group", "task", "family", "config_id", "metric", "status", "config")


def read(folder: Path) -> tuple[dict[str, Any], pd.DataFrame, pd.DataFrame]:
    """Card, long table of evaluations, table of datasets."""
    rows = pd.read_parquet(folder / "evaluations.parquet").astype(dict.fromkeys(TEXTS, str))
    share = rows.groupby(["config_id", "task"])["dataset"].nunique() / rows.groupby("task")["dataset"].nunique()
    whole = share.groupby("config_id").max() >= EVERYWHERE
    rows = rows[rows["config_id"].isin(whole.index[whole])]
    datasets = pd.read_parquet(folder / "datasets.parquet").set_index("name")
    datasets["source"] = datasets["source"].str.split(":").str[:2].str.join(":")  # the repository, without the file
    return json.loads((folder / "card.json").read_text()), rows, datasets


def families_table(cells: pd.DataFrame) -> pd.DataFrame:
    """Cells, failures, seconds and wins of each family."""
    ok = cells[cells["status"] == "ok"]
    best = ok.loc[ok.groupby("dataset")["score"].idxmax()]
    runner_up = ok.groupby(["dataset", "family"])["score"].max().unstack()
    return pd.DataFrame({
        "cells": cells.groupby("family").size(),
        "not ok": cells[cells["status"] != "ok"].groupby("family").size(),
        "median seconds": ok.groupby("family")["seconds"].median().round(3),
        "90 % below": ok.groupby("family")["seconds"].quantile(0.9).round(3),
        "wins": best.groupby("family").size(),
        "within one standard error of the winner": within_error(best, runner_up),
    }).fillna(0).sort_values("wins", ascending=False)  # fmt: skip


def within_error(best: pd.DataFrame, by_family: pd.DataFrame) -> pd.Series:
    """On how many datasets the best candidate of a family is within the standard error of the overall best."""
    limit = best.set_index("dataset").eval("score - standard_error")
    return by_family.ge(limit, axis=0).sum()


def noise(cells: pd.DataFrame) -> dict[str, float]:
    """Median standard error of a score, as a share of the spread from the median to the best candidate."""
    found = {}
    for task, part in cells[cells["status"] == "ok"].groupby("task"):
        table = part.pivot_table(index="dataset", columns="config_id", values="score")
        spread = table.max(axis=1) - table.median(axis=1)
        error = part.groupby("dataset")["standard_error"].median()
        found[str(task)] = round(float((error / spread.clip(lower=1e-12)).median()), 3)
    return found


def halves(rows: pd.DataFrame, metric: str, half: int) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Scores on one half of the splits and on the other, (datasets, candidates) each."""
    part = rows[(rows["metric"] == metric) & (rows["status"] == "ok")]
    values = part["scores"].map(lambda v: np.asarray(v, dtype=float))
    known = values.map(len) > 1
    part, values = part[known], values[known]
    part = part.assign(choose=values.map(lambda v: np.nanmean(v[half::2])),
                       held=values.map(lambda v: np.nanmean(v[1 - half :: 2])))  # fmt: skip
    tables = [part.pivot_table(index="dataset", columns="config_id", values=v) for v in ("choose", "held")]
    return tables[0], tables[1]


def portfolio_curves(rows: pd.DataFrame, metric: str, groups: pd.Series) -> tuple[pd.DataFrame, pd.Series]:
    """Normalised score after k trials of a portfolio of other groups, and of the best single candidate."""
    curves, single = [], []
    for half in (0, 1):
        choose, held = halves(rows, metric, half)
        mine = groups.loc[choose.index]
        fold = mine.map(dict(zip(mine.drop_duplicates(), group_folds(mine, 5), strict=True))).to_numpy()
        scaled, judged = normalise(choose.to_numpy()), normalise(held.to_numpy())
        for k in range(5):
            order = greedy_portfolio(scaled[fold != k], max(KS))
            first = int(scaled[fold != k].mean(axis=0).argmax())
            for i in np.flatnonzero(fold == k):
                name = choose.index[i]
                curves.append((name, *incumbent_curve(order, choose.to_numpy()[i], judged[i])))
                single.append((name, judged[i, first]))
    frame = pd.DataFrame(curves).set_index(0).groupby(level=0).mean()
    return frame, pd.DataFrame(single).set_index(0).groupby(level=0).mean()[1]


def weighted(values: pd.Series, source: pd.Series) -> float:
    """Mean over sources of the mean over the tables of a source."""
    return float(values.groupby(source.loc[values.index]).mean().mean())


def regret(rows: pd.DataFrame, datasets: pd.DataFrame) -> dict[str, Any]:
    """Regret of portfolio and single best for each task type and metric: mean, interval, and weighted by source."""
    found: dict[str, Any] = {}
    for task in TaskType:
        mine = rows[rows["task"] == str(task)]
        if mine["dataset"].nunique() < 10:
            continue
        for metric in task_metrics(task):
            curves, single = portfolio_curves(mine, metric.name, datasets["group"])
            groups = datasets["group"].loc[curves.index].tolist()
            found[f"{task}, {metric.name}"] = {
                "datasets": len(curves),
                "single": bootstrap_interval(1 - single.to_numpy(), groups),
                "single, by source": 1 - weighted(single, datasets["source"]),
                **{f"@{k}": bootstrap_interval(1 - curves[k].to_numpy(), groups) for k in KS if k in curves},
                "@5, by source": 1 - weighted(curves[5], datasets["source"]),
                "curve": [float(1 - curves[k].mean()) for k in curves],
            }
    return found


def plot(report: dict[str, Any], cells: pd.DataFrame, folder: Path) -> None:
    """Two pictures: regret after k trials, and seconds of a fit by family."""
    import matplotlib as mpl

    mpl.use("Agg")
    mpl.rcParams["svg.hashsalt"] = "autometa"
    import matplotlib.pyplot as plt

    folder.mkdir(parents=True, exist_ok=True)
    figure, axes = plt.subplots(figsize=(6, 3.6), layout="constrained")
    for task in TaskType:
        name = f"{task}, {task_metrics(task)[0].name}"
        if name in report["regret"]:
            curve = report["regret"][name]["curve"]
            axes.plot(range(1, len(curve) + 1), curve, marker=".", label=name)
    axes.set(xlabel="trials", ylabel="normalised regret", title="Greedy portfolio on unseen groups of datasets", ylim=0)
    axes.set_xticks([1, 5, 10, 15, 20])
    axes.legend()
    figure.savefig(folder / "portfolio_regret.svg", metadata={"Date": None})
    figure, axes = plt.subplots(figsize=(6, 3.6), layout="constrained")
    ok = cells[cells["status"] == "ok"]
    order = ok.groupby("family")["seconds"].median().sort_values().index
    axes.boxplot([ok.loc[ok["family"] == f, "seconds"] for f in order], orientation="horizontal", showfliers=False)
    axes.set_yticks(range(1, len(order) + 1), order)
    axes.set(xscale="log", xlabel="seconds of one fit (one thread, at most 2,000 rows)")
    figure.savefig(folder / "seconds_by_family.svg", metadata={"Date": None})


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", nargs="?", type=Path, default=CORPUS)
    parser.add_argument("--plots", type=Path, default=HERE)
    parser.add_argument("--json", type=Path, default=HERE / "report.json")
    arguments = parser.parse_args()
    card, rows, datasets = read(arguments.folder)
    default = {str(task): task_metrics(task)[0].name for task in TaskType}
    cells = rows[rows["metric"] == rows["task"].map(default)].drop_duplicates(["dataset", "config_id", "seed"])
    report = {
        **{k: card[k] for k in ("n_datasets", "n_groups", "core_hours", "from", "to")},
        "n_candidates": int(rows["config_id"].nunique()),
        "tasks": datasets["task"].astype(str).value_counts().to_dict(),
        "sources": datasets["source"].astype(str).value_counts().to_dict(),
        "status": cells["status"].value_counts().to_dict(),
        "noise": noise(cells),
        "families": families_table(cells).reset_index(names="family").to_dict(orient="records"),
        "regret": regret(rows, datasets),
    }
    for name in ("n_datasets", "n_groups", "n_candidates", "core_hours", "from", "to", "tasks", "sources", "status"):
        print(f"{name}: {report[name]}")
    print(f"standard error of a score, as a share of the spread from median to best: {report['noise']}")
    print("\n" + pd.DataFrame(report["families"]).to_string(index=False))
    table = pd.DataFrame(report["regret"]).T.drop(columns="curve")
    show = lambda v: f"{v[0]:.2f} [{v[1]:.2f}, {v[2]:.2f}]" if isinstance(v, tuple) else f"{v:.2f}"  # noqa: E731
    print("\nregret (0 = best candidate, 1 = median candidate)\n" + table.map(show).T.to_string())
    arguments.json.write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")
    plot(report, cells, arguments.plots)


if __name__ == "__main__":
    main()
