"""Do auxiliary outputs help? Leave-group-out on the shipped corpus: a trial's other metrics, and scores on few rows.

Usage: python experiments/meta_model/outputs.py [--corpus FOLDER] [--folds 5] [--halves 2] [--report FILE]

The same meta-model in several ways: "target" observes the target's score alone; "all metrics" observes every metric
of a trial; "one: M" the target and the metric M. Where the corpus has scores on few training rows, "few rows" observes
all of them before the first trial, "few rows: @128" those of one size. Every way chooses on one half of the validation
splits and is scored on the other, as in own_corpus.py; datasets without spread are left out. Scores are the
incumbent's after k trials (0 = median candidate, 1 = best); "error" is the mean absolute error of the forecast of
untried candidates after three trials, in the same units, at most 1; "coverage" that of the 80 % intervals before the
first trial. Intervals are 95 % bootstraps over groups of the
paired difference to "target".
"""

from __future__ import annotations

import json
import os
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")

import numpy as np
import pandas as pd
import torch
from own_corpus import KS, World, command_line, interval, load_worlds

from autometa.experiment.simulation import incumbent_curve
from autometa.meta_dataset import SMALL_ROWS, MetaDataset, candidate_key
from autometa.meta_model import Belief, MetaModel
from autometa.meta_model.outputs import TrainRows
from autometa.meta_training import TrainingOptions, train_meta_model

METRICS = {
    "binary": ("log_loss", "accuracy", "balanced_accuracy", "f1"),
    "multiclass": ("accuracy", "roc_auc", "balanced_accuracy", "f1"),
    "regression": ("mae", "r2"),
}
Scores = dict[str, tuple[np.ndarray, np.ndarray]]
"""Name of an output -> scores and standard errors of the candidates."""


def outputs_of(meta: MetaDataset, world: World) -> dict[str, tuple[pd.DataFrame, pd.DataFrame]]:
    """Scores and standard errors of every auxiliary output, (n_datasets, n_candidates), raw."""
    keys = [candidate_key(c.family, c.config) for c in world.candidates]
    found = {}
    for metric in METRICS[world.task]:
        rows = meta.evaluations[meta.evaluations["metric"] == metric]
        found[metric] = tuple(
            rows.pivot_table(index="dataset", columns="key", values=v, dropna=False).reindex(columns=keys)
            for v in ("score", "standard_error")
        )
    for n_rows in meta.train_sizes(world.metric):
        assert meta.small_rows is not None
        rows = meta.small_rows
        rows = rows[(rows["metric"] == world.metric) & (rows["train_rows"] == n_rows)]
        found[f"@{n_rows}"] = tuple(
            rows.pivot_table(index="dataset", columns="key", values=v, dropna=False).reindex(columns=keys)
            for v in ("score", "standard_error")
        )
    return found


def chosen_half(cells: pd.DataFrame, half: int) -> pd.DataFrame:
    """Scores and standard errors on the validation splits that choose."""
    known = cells["scores"].map(lambda values: values is not None and len(values) > 1)
    cells = cells[known & (cells["status"].astype(str) == "ok")]
    values = cells["scores"].map(lambda v: np.asarray(v, dtype=float))
    return cells.assign(
        score=values.map(lambda v: float(np.nanmean(v[half::2]))),
        standard_error=values.map(lambda v: float(np.nanstd(v, ddof=1) / np.sqrt(len(v) / 2))),
    )


def hinted(belief: Belief, index: int, scores: Scores, names: tuple[str, ...]) -> Belief:
    """The belief after the scores of one candidate in these outputs."""
    for name in names:
        if name in belief.outputs and name in scores and np.isfinite(scores[name][0][index]):
            error = float(scores[name][1][index])
            output = TrainRows(int(name[1:])) if name.startswith("@") else name
            belief = belief.observe(index, float(scores[name][0][index]), error if error > 0 else None, output=output)
    return belief


def search(
    belief: Belief, raw: np.ndarray, error: np.ndarray, *, scores: Scores, names: tuple[str, ...]
) -> tuple[list[int], Belief]:
    """The order of ten trials that report these metrics, and the belief after three."""
    order: list[int] = []
    third = belief
    for k in range(min(max(KS), int(np.isfinite(raw).sum()))):
        gain = belief.expected_improvement()
        gain[order] = -np.inf
        index = int(np.argmax(gain))
        order.append(index)
        if np.isfinite(raw[index]):
            belief = belief.observe(index, float(raw[index]), float(error[index]) or None)
            belief = hinted(belief, index, scores, names)
        else:
            belief = belief.observe_failure(index)
        third = belief if k == 2 else third
    return order, third


def ways(belief: Belief, scores: Scores) -> Iterator[tuple[str, Belief, tuple[str, ...]]]:
    """Name of a way, the belief that it starts from, and the metrics that its trials report."""
    metrics = tuple(name for name in scores if not name.startswith("@") and name in belief.outputs)
    sizes = tuple(name for name in scores if name.startswith("@") and name in belief.outputs)
    sizes = tuple(name for name in sizes if np.isfinite(scores[name][0]).any())
    yield "target", belief, ()
    yield "all metrics", belief, metrics
    for metric in metrics:
        yield f"one: {metric}", belief, (metric,)
    for names in (sizes, *((size,) for size in sizes)) if sizes else ():
        later = belief
        for index in range(len(belief)):
            later = hinted(later, index, scores, names)
        yield "few rows" if len(names) > 1 else f"few rows: {names[0]}", later, ()


def trained(train: MetaDataset, folder: Path | None) -> MetaModel:
    """A meta-model, kept in a folder where one is given: training takes most of the time."""
    if folder is not None and (folder / "card.json").is_file():
        return MetaModel.load(folder)
    model = train_meta_model(train, options=TrainingOptions(n_rehearsals=3))
    if folder is not None:
        model.save(folder)
    return model


def rows(corpus: Path, n_folds: int, halves: int, models: Path | None) -> Iterator[dict[str, Any]]:
    for half in range(halves):
        meta, worlds = load_worlds(corpus, half)
        if (corpus / SMALL_ROWS).is_file():
            meta = meta.with_small_rows(chosen_half(pd.read_parquet(corpus / SMALL_ROWS), half))
        for fold, (train, test) in enumerate(meta.split_by_group(n_folds, seed=0)):
            model = trained(train, None if models is None else models / f"half{half}_fold{fold}")
            for world in worlds:
                tables = outputs_of(meta, world)
                for name in (d for d in test.datasets if d in world.choose.index):
                    case = world.case(name)
                    if case.flat:
                        continue
                    raw, error, value, spread = case.raw, case.error, case.value, float(world.spread[name])
                    scores = {
                        output: (
                            values.loc[name].to_numpy()[case.columns],
                            errors.reindex(values.index).loc[name].to_numpy()[case.columns],
                        )
                        for output, (values, errors) in tables.items()
                        if name in values.index
                    }
                    start = model.belief(meta.meta_features.loc[name], case.candidates, metric=world.metric)
                    for way, belief, names in ways(start, scores):
                        order, third = search(belief, raw, error, scores=scores, names=names)
                        rest = np.setdiff1d(np.flatnonzero(np.isfinite(raw)), order[:3])
                        miss = np.minimum(np.abs(third.mean - raw)[rest] / spread, 1.0).mean()
                        curve = incumbent_curve(order, raw, value)
                        low, high = belief.interval()
                        known = np.isfinite(raw)
                        yield {
                            "dataset": name, "group": str(meta.groups[name]), "task": world.task, "way": way,
                            "error": float(miss), "coverage": float(np.mean(((raw >= low) & (raw <= high))[known])),
                            "mean": float(np.mean(curve)),
                            **{f"@{k}": float(curve[min(k, len(curve)) - 1]) for k in KS},
                        }  # fmt: skip
        print(f"half {half} done, {time.process_time():.0f} CPU seconds", flush=True)


def summarise(frame: pd.DataFrame) -> dict[str, Any]:
    columns = [*(f"@{k}" for k in KS), "mean", "error", "coverage"]
    cells = frame.groupby(["task", "way", "dataset", "group"])[columns].mean().reset_index()
    report: dict[str, Any] = {}
    for task in ("pooled", *cells["task"].unique()):
        part = cells if task == "pooled" else cells[cells["task"] == task]
        target = part[part["way"] == "target"].set_index("dataset")
        block = report.setdefault(task, {"datasets": len(target)})
        for way, mine in part.groupby("way", sort=False):
            mine = mine.set_index("dataset")
            other = target.loc[mine.index]
            block[way] = {"n": {"value": len(mine)}}
            block[way] |= {c: {"value": round(float(mine[c].mean()), 4)} for c in columns}
            if way != "target":
                for c in columns:
                    gain = interval((mine[c] - other[c]).to_numpy(), mine["group"].to_numpy())
                    block[way][c]["difference"] = [round(v, 4) for v in gain]
    return report


def shown(column: str, value: dict[str, Any]) -> str:
    text = f"{column} {value['value']:.3f}"
    return text + (" ({:+.3f} [{:+.3f}, {:+.3f}])".format(*value["difference"]) if "difference" in value else "")


def main() -> None:
    parser = command_line(__doc__, "outputs.json")
    parser.add_argument("--models", type=Path, help="Folder to keep trained meta-models in, and to take them from.")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    report = summarise(pd.DataFrame(rows(arguments.corpus, arguments.folds, arguments.halves, arguments.models)))
    report["cpu_seconds"] = round(time.process_time())
    arguments.report.write_text(json.dumps(report, indent=1) + "\n", "utf-8")
    for task, block in report.items():
        if not isinstance(block, dict):
            continue
        print(f"\n{task}: {block['datasets']} datasets")
        for way, values in block.items():
            if isinstance(values, dict):
                print(f"  {way:24s}" + "  ".join(shown(c, v) for c, v in values.items()))


if __name__ == "__main__":
    main()
