"""Side-by-side runs of AutoML libraries, read: mean rank, normalised error, every table, failures and overruns.

    python experiments/anytime/peers_report.py RESULTS.jsonl [--budget 60] [--early 10] [--rows CSV] [--plot SVG]

RESULTS holds one JSON object per run, as the runner of ``README.md`` writes it: dataset, task, peer, budget, seed,
status, metrics, fit_s. ``--rows`` keeps what is read here as a small CSV, which can be given in place of RESULTS.

Error: 1 - ROC AUC for two classes, log loss for more, RMSE for numbers; mean over seeds. Normalised error: 0 = the best
of all on this table, 1 = the constant predictor (``dummy``, if it was run; else the worst). A run that gave no model
counts as the constant predictor. Intervals are 95 % bootstraps over tables; the primary endpoint is the difference in
mean normalised error to each other library, its p-values corrected by Holm. ``--early`` sets the focus at a smaller
budget against the others at ``--budget``. ``--plot`` draws normalised error beside the seconds that ``fit`` took.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from autometa.experiment.simulation import bootstrap_interval

CONSTANT = "dummy"
METRICS = {"binary": "roc_auc", "multiclass": "log_loss", "regression": "rmse"}
COLUMNS = ("dataset", "task", "peer", "budget", "seed", "status", "error", "fit_seconds", "n_train")


def read(path: Path) -> pd.DataFrame:
    """One row per run with the columns ``COLUMNS``; the last run of a cell counts."""
    if path.suffix == ".csv":
        return pd.read_csv(path)
    rows = []
    for line in path.read_text("utf-8").splitlines():
        run = json.loads(line)
        value = (run.get("metrics") or {}).get(METRICS[run["task"]])
        ended = run["status"] == "ok" and value is not None
        error = np.nan if not ended else 1 - value if run["task"] == "binary" else value
        cell = (run[name] for name in COLUMNS[:5])
        rows.append((*cell, "ok" if ended else run["status"], error, run.get("fit_s"), run.get("n_train")))
    frame = pd.DataFrame(rows, columns=list(COLUMNS))
    return frame.drop_duplicates(["dataset", "peer", "budget", "seed"], keep="last").reset_index(drop=True)


def errors(runs: pd.DataFrame) -> pd.DataFrame:
    """Error of each library (columns) on each table that all were run on; NaN where one gave no model."""
    table = runs.pivot_table(index="dataset", columns="peer", values="error", aggfunc="mean", dropna=False)
    failed = runs.assign(failed=runs["error"].isna()).groupby(["dataset", "peer"])["failed"].any().unstack()
    complete = failed.notna().all(axis=1)
    return table[complete].mask(failed[complete].astype(bool))


def normalised(table: pd.DataFrame) -> pd.DataFrame:
    """0 = best of all on this table, 1 = the constant predictor or worse, or no model."""
    best = table.min(axis=1)
    worst = table[CONSTANT] if CONSTANT in table else table.max(axis=1)
    scaled = table.sub(best, axis=0).div((worst - best).clip(lower=1e-12), axis=0)
    return scaled.clip(0, 1).fillna(1.0)


def holm(p_values: pd.Series) -> pd.Series:
    """Corrected p-values (Holm, 1979)."""
    order = p_values.sort_values()
    steps = order.to_numpy() * np.arange(len(order), 0, -1)
    return pd.Series(np.minimum(np.maximum.accumulate(steps), 1.0), index=order.index)


def p_value(values: np.ndarray, n_samples: int = 10_000) -> float:
    """Two-sided, from the bootstrap distribution of the mean."""
    rng = np.random.default_rng(0)
    draws = values[rng.integers(len(values), size=(n_samples, len(values)))].mean(axis=1)
    return float(min(1.0, 2 * (min((draws <= 0).sum(), (draws >= 0).sum()) + 1) / (n_samples + 1)))


def summarise(runs: pd.DataFrame, focus: str) -> dict[str, dict[str, Any]]:
    """Rank, normalised error, duels against ``focus``, failures and seconds of each library."""
    table = errors(runs)
    scaled, rivals = normalised(table), [c for c in table if c not in (focus, CONSTANT)]
    ranks = table.drop(columns=[CONSTANT], errors="ignore").rank(axis=1, na_option="bottom")
    gaps = {peer: (scaled[peer] - scaled[focus]).to_numpy() for peer in rivals}
    corrected = holm(pd.Series({peer: p_value(gap) for peer, gap in gaps.items()}))
    report: dict[str, dict[str, Any]] = {}
    for peer in ranks.mean().sort_values().index:
        part = runs[(runs["peer"] == peer) & runs["dataset"].isin(table.index)]
        report[str(peer)] = {
            "rank": bootstrap_interval(ranks[peer].to_numpy()),
            "normalised_error": bootstrap_interval(scaled[peer].to_numpy()),
            "failed": int(part["error"].isna().sum()),
            "mean_seconds": float(part["fit_seconds"].mean()),
            "most_seconds": float(part["fit_seconds"].max()),
        }
        if peer != focus:
            report[str(peer)] |= {
                "behind": bootstrap_interval(gaps[str(peer)]), "p": float(corrected[peer]),
                "focus_better": int((scaled[focus] < scaled[peer]).sum()),
                "focus_worse": int((scaled[focus] > scaled[peer]).sum()),
            }  # fmt: skip
    return report


def show(runs: pd.DataFrame, report: dict[str, dict[str, Any]]) -> str:
    """The report of :func:`summarise` and every table in Markdown; the best error of a table in bold."""
    table, names = errors(runs), list(report)
    lines = [
        f"{len(table)} tables", "",
        "| library | mean rank | normalised error | behind | p (Holm) | better / worse | no model | seconds, most |",
        "|---" * 8 + "|",
    ]  # fmt: skip
    for peer, block in report.items():
        duel = ["", "", ""]
        if "behind" in block:
            duel = [
                _interval(block["behind"]),
                f"{block['p']:.4f}",
                f"{block['focus_better']} / {block['focus_worse']}",
            ]
        seconds = f"{block['mean_seconds']:.1f}, {block['most_seconds']:.1f}"
        cells = [_interval(block["rank"], 1), _interval(block["normalised_error"]), *duel]
        lines.append(f"| {peer} | {' | '.join(cells)} | {block['failed']} | {seconds} |")
    lines += ["", "| table | " + " | ".join(names) + " |", "|---" * (len(names) + 1) + "|"]
    for dataset, row in table[names].iterrows():
        cells = ["none" if np.isnan(v) else f"**{v:.4g}**" if v == row.min() else f"{v:.4g}" for v in row]
        lines.append(f"| {dataset} | {' | '.join(cells)} |")
    return "\n".join(lines)


def head_start(early: pd.DataFrame, late: pd.DataFrame, focus: str, peers: Iterable[str]) -> str:
    """The focus of the runs ``early`` against each other library of the runs ``late``, on the tables that both have."""
    table = errors(late)
    own = early[early["peer"] == focus].groupby("dataset")["error"].mean().fillna(np.inf)
    own = own[own.index.isin(table.index)]
    lines = ["", f"| {focus} early against | better | equal | worse | share not worse |", "|---" * 5 + "|"]
    for peer in (peer for peer in peers if peer != focus):
        other = table.loc[own.index, peer].fillna(np.inf)
        better, equal = own < other, own == other
        share = bootstrap_interval((better | equal).to_numpy(float))
        lines.append(f"| {peer} | {better.sum()} | {equal.sum()} | {(own > other).sum()} | {_interval(share, 2)} |")
    return "\n".join(lines)


def plot(report: dict[str, dict[str, Any]], focus: str, path: Path) -> None:
    """Mean normalised error with its interval and mean seconds of ``fit``, one line a library, best rank on top."""
    import matplotlib as mpl

    mpl.use("svg")
    mpl.rcParams["svg.hashsalt"] = "autometa"
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(figsize=(6, 3.6), layout="constrained")
    for place, (peer, block) in enumerate(report.items()):
        middle, low, high = block["normalised_error"]
        colour = "C3" if peer == focus else "C0"
        axes.errorbar(middle, place, xerr=[[middle - low], [high - middle]], fmt="o", ms=5, lw=1.5, color=colour)
    labels = [f"{peer}, {block['mean_seconds']:.3g} s" for peer, block in report.items()]
    axes.set_yticks(range(len(labels)), labels)
    axes.invert_yaxis()
    axes.set(xlabel="mean normalised error, 95 % over tables", xlim=(0, None))
    axes.set_title("best mean rank on top; seconds that fit really took", fontsize=9)
    figure.savefig(path, metadata={"Date": None})


def _interval(values: tuple[float, float, float], digits: int = 3) -> str:
    middle, low, high = (f"{v:.{digits}f}" for v in values)
    return f"{middle} [{low}, {high}]"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("results", type=Path)
    parser.add_argument("--focus", default="autometa")
    parser.add_argument("--budget", type=float, default=10.0)
    parser.add_argument("--early", type=float)
    parser.add_argument("--rows", type=Path)
    parser.add_argument("--plot", type=Path)
    arguments = parser.parse_args()
    everything = read(arguments.results)
    runs, early = (everything[everything["budget"] == budget] for budget in (arguments.budget, arguments.early))
    if arguments.rows is not None:
        pd.concat([early, runs]).to_csv(arguments.rows, index=False, float_format="%.6g")
    report = summarise(runs, arguments.focus)
    print(show(runs, report))
    if len(early):
        print(head_start(early, runs, arguments.focus, report))
    if arguments.plot is not None:
        plot(report, arguments.focus, arguments.plot)


if __name__ == "__main__":
    main()
