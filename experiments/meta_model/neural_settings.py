"""Does the meta-model know a good learning rate, schedule, optimiser and birth of a net before any trial?

    python experiments/meta_model/neural_settings.py [--corpus FOLDER] [--folds 5] [--halves 2] [--seeds 1]

Among the neural candidates that were run on a dataset, the one with the best forecast is taken without a trial. Whole
groups are left out of the training. Log loss or RMSE; 0 is the best neural candidate (chosen on one half of the splits,
as the forecast's training scores are, and scored on the other), 1 the constant predictor. "Best fixed" is the candidate
with the best mean on the training datasets that all of them were run on. Datasets whose range from constant to best is
below two standard errors are left out. One at a time: only candidates that differ in one setting alone.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")

import numpy as np
import pandas as pd
import torch
from own_corpus import World, command_line, interval, load_worlds

from autometa.data import TaskType
from autometa.family import Candidate
from autometa.meta_dataset import MetaDataset
from autometa.meta_training import TrainingOptions, train_meta_model

NEURAL = ("mlp", "tabm")
SETTINGS = ("learning_rate", "schedule", "optimizer", "init")
METRICS = {TaskType.BINARY: "log_loss", TaskType.MULTICLASS: "log_loss", TaskType.REGRESSION: "rmse"}
NEAR = 0.01
MIN_DATASETS = 5
"""Training datasets that a best fixed candidate is chosen on, at least; all candidates were run on each."""

Row = dict[str, Any]


def constant_score(features: pd.Series, task: str) -> float:
    """Score of the constant predictor, higher = better."""
    return -float(10.0 ** features["constant_log_rmse"] if task == "regression" else features["constant_log_loss"])


def choices(candidates: list[Candidate]) -> dict[str, list[list[int]]]:
    """Positions to choose among: of all neural candidates, and of those that differ in one setting alone."""
    nets = [i for i, c in enumerate(candidates) if c.family in NEURAL]
    found = {"all neural candidates": [nets]}
    for setting in SETTINGS:
        alike: dict[str, list[int]] = {}
        for i in nets:
            rest = {name: value for name, value in candidates[i].config.items() if name != setting}
            alike.setdefault(json.dumps([candidates[i].family, rest], sort_keys=True), []).append(i)
        found[f"{setting} alone"] = list(alike.values())
    return {name: [part for part in parts if len(part) > 1] for name, parts in found.items()}


def losses(world: World, meta: MetaDataset, names: list[str]) -> np.ndarray:
    """Share of the range from the best candidate to the constant that each one leaves, choosing half."""
    raw = world.choose.loc[names].to_numpy()
    constant = np.array([constant_score(meta.meta_features.loc[name], world.task) for name in names])[:, None]
    best = np.nanmax(raw, axis=1, keepdims=True)
    return np.clip((best - raw) / np.maximum(best - constant, 1e-9), 0.0, 2.0)


def run(meta: MetaDataset, worlds: list[World], *, n_folds: int, seed: int) -> Iterator[Row]:
    """One row per test dataset and set of candidates to choose among."""
    for train, test in meta.split_by_group(n_folds, seed=seed):
        model = train_meta_model(train, seed=seed, options=TrainingOptions(n_rehearsals=0))
        known = set(train.datasets)
        for world in worlds:
            table = losses(world, meta, [d for d in world.choose.index if d in known])
            for name in (d for d in test.datasets if d in world.choose.index):
                case = world.case(name)
                forecast = model.belief(meta.meta_features.loc[name], case.candidates, metric=world.metric).mean
                constant = constant_score(meta.meta_features.loc[name], world.task)
                for among, parts in choices(case.candidates).items():
                    for part in parts:
                        open_ = [i for i in part if np.isfinite(case.raw[i])]
                        known_losses = table[:, case.columns[open_]]
                        known_losses = known_losses[np.isfinite(known_losses).all(axis=1)]
                        if len(open_) < 2 or len(known_losses) < MIN_DATASETS:
                            continue
                        best = open_[int(np.argmax(case.raw[open_]))]
                        span = case.held[best] - constant
                        if span < 2 * case.error[best]:
                            continue
                        taken = open_[int(np.argmax(forecast[open_]))]
                        fixed = open_[int(np.argmin(known_losses.mean(axis=0)))]
                        loss = (case.held[best] - case.held) / span
                        yield {
                            "dataset": name, "group": str(meta.groups[name]), "task": world.task, "among": among,
                            "predicted": float(loss[taken]), "fixed": float(loss[fixed]),
                            "random": float(np.mean(loss[open_])),
                        }  # fmt: skip


def summarise(rows: list[Row]) -> dict[str, dict[str, Any]]:
    """By what was chosen among and by task: mean loss, share within 1 %, and the gain over the best fixed one."""
    frame = pd.DataFrame(rows)
    pooled = [*frame.groupby("among", sort=False), *frame.groupby(["among", "task"], sort=False)]
    report = {}
    for key, part in pooled:
        groups = part["group"].to_numpy()
        ways = ("predicted", "fixed", "random")
        report[key if isinstance(key, str) else ", ".join(key)] = {
            "n_datasets": int(part["dataset"].nunique()),
            "loss": {way: interval(np.clip(part[way].to_numpy(), -1, 1), groups) for way in ways},
            "within": {way: interval((part[way] <= NEAR).to_numpy(dtype=float), groups) for way in ways},
            "gain": interval(np.clip(part["fixed"] - part["predicted"], -1, 1).to_numpy(), groups),
        }
    return report


def table(report: dict[str, dict[str, Any]]) -> str:
    """The report as a table in Markdown."""
    lines = ["| among | datasets | within 1 %: predicted | best fixed | loss: predicted | best fixed | random | gain |",
             "|---|---|---|---|---|---|---|---|"]  # fmt: skip
    for name, block in report.items():
        within, loss = block["within"], block["loss"]
        cells = [f"{within['predicted'][0]:.0%} [{within['predicted'][1]:.0%}, {within['predicted'][2]:.0%}]"]
        cells += [f"{within['fixed'][0]:.0%}", *(f"{loss[way][0]:.3f}" for way in ("predicted", "fixed", "random"))]
        middle, low, high = block["gain"]
        lines.append(
            f"| {name} | {block['n_datasets']} | {' | '.join(cells)} | {middle:+.3f} [{low:+.3f}, {high:+.3f}] |"
        )
    return "\n".join(lines)


def main() -> None:
    parser = command_line(__doc__, "neural_settings.json")
    parser.add_argument("--seeds", type=int, default=1)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    rows: list[Row] = []
    for half in range(arguments.halves):
        meta, worlds = load_worlds(arguments.corpus, half, METRICS)
        for seed in range(arguments.seeds):
            rows += run(meta, worlds, n_folds=arguments.folds, seed=seed)
    report = summarise(rows)
    arguments.report.write_text(json.dumps(report, indent=1) + "\n")
    print(table(report))


if __name__ == "__main__":
    main()
