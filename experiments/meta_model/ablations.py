"""What each part of the meta-model brings on its own corpus: all ablations in one table, whole groups left out.

    python experiments/meta_model/ablations.py [--corpus FOLDER] [--folds 5] [--halves 2] [--seeds 1] [--quick]

Choosing and scoring as in ``own_corpus.py``. Every way is trained without rehearsals (full trust), so that ways differ
in nothing else. Writes ``ablations.json`` and prints the table: normalised score after k trials and its paired
difference to the whole model, 95 % bootstrap over groups; then the same for the datasets of ``dev`` alone, by which
parts enter. ``--quick`` leaves out the ways that train another model.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")

import numpy as np
import pandas as pd
import torch
from own_corpus import (
    KS,
    World,
    believed,
    command_line,
    interval,
    load_worlds,
    same_machine,
    training_table,
)

from autometa.collection import load_collection
from autometa.experiment.simulation import incumbent_curve
from autometa.meta_dataset import MetaDataset
from autometa.meta_model import Belief, MetaModel
from autometa.meta_model.priors import Covariance, ScalePrior
from autometa.meta_training import TrainingOptions, train_meta_model

WHOLE = "whole model"
OPTIONS = TrainingOptions(n_rehearsals=0)

Row = dict[str, Any]


def with_features(meta: MetaDataset, keep: Callable[[str], bool]) -> MetaDataset:
    """The same evaluations with these meta-features only."""
    return MetaDataset(meta.evaluations, meta.meta_features[[c for c in meta.meta_features if keep(c)]], meta.groups)


def some_groups(meta: MetaDataset, share: float, seed: int) -> MetaDataset:
    """A random part of the groups of each task, four at least."""
    rng, kept = np.random.default_rng(seed), set()
    for _, groups in meta.groups.groupby(meta.meta_features["task"].loc[meta.groups.index]):
        kept |= set(rng.permutation(groups.unique())[: max(4, round(share * groups.nunique()))])
    return meta.subset([d for d in meta.datasets if meta.groups[d] in kept])


def trained(train: MetaDataset, seed: int, *, quick: bool = False) -> dict[str, MetaModel]:
    """The ways that differ in what was learned; ``quick``: only those that share its weights."""

    def learn(meta: MetaDataset) -> MetaModel:
        return train_meta_model(meta, seed=seed, options=OPTIONS)

    whole = learn(train)
    assert whole.memory is not None
    shared = {
        WHOLE: whole, "no memory": whole.with_memory(None),
        "memory shuffled": whole.with_memory(whole.memory.shuffled(seed)),
    }  # fmt: skip
    if quick:
        return shared
    return shared | {
        "no meta-features": learn(with_features(train, lambda c: c == "task")),
        "no landmarkers": learn(with_features(train, lambda c: not c.startswith("landmark_"))),
        "a quarter of the datasets": learn(some_groups(train, 1 / 4, seed)),
        "a sixteenth of the datasets": learn(some_groups(train, 1 / 16, seed)),
    }


def diagonal(belief: Belief) -> Belief:
    """No candidate says anything about another one, but for the unknown offset and scale."""
    prior = belief.prior
    variance = prior.covariance.diagonal + (prior.shifts.var(axis=0) if len(prior.shifts) else 0.0)
    middle = prior.mean + (prior.shifts.mean(axis=0) if len(prior.shifts) else 0.0)
    alone = replace(prior, mean=middle, covariance=Covariance.from_matrix(np.diag(variance)), shifts=np.zeros((0, 0)))
    return replace(belief, prior=alone)


def knowing(belief: Belief, raw: np.ndarray) -> Belief:
    """The leak: offset and scale are read off the scores of all candidates."""
    middle = float(np.nanmedian(raw))
    scale = max(float(np.nanmax(raw)) - middle, 1e-9)
    known = ScalePrior(middle, 1e-6 * scale, 0.0, float(np.log(scale)), 0.0)
    return replace(belief, prior=replace(belief.prior, scale=known))


def by_mean(belief: Belief, n_splits: int, limit: float) -> list[int]:
    """The order of the first forecast, whatever the trials say; candidates beyond the limit come last."""
    late = belief.seconds * n_splits > limit
    return list(np.lexsort((-belief.mean, late))[: max(KS)])


def run(
    meta: MetaDataset, worlds: list[World], *, n_folds: int, seed: int, limit: float, quick: bool = False
) -> Iterator[Row]:
    """One row per test dataset that is not flat, and way."""
    for train, test in meta.split_by_group(n_folds, seed=seed):
        ways = trained(train, seed, quick=quick)
        for world in worlds:
            table = training_table(world, list(train.datasets))
            for name in (d for d in test.datasets if d in world.choose.index):
                case, features = world.case(name), meta.meta_features.loc[name]
                if case.flat:
                    continue
                orders = {"portfolio": world.portfolio(table, case)}
                rules = {"n_splits": case.n_splits, "limit": limit}
                for way, model in ways.items():
                    belief = same_machine(model.belief(features, case.candidates, metric=world.metric))
                    orders[way] = believed(belief, case.raw, case.error, **rules)[0]
                    if way == WHOLE:
                        known = knowing(belief, case.raw)
                        orders["mean only"] = by_mean(belief, **rules)
                        orders["diagonal covariance"] = believed(diagonal(belief), case.raw, case.error, **rules)[0]
                        orders["known offset and scale (a leak)"] = believed(known, case.raw, case.error, **rules)[0]
                for way, order in orders.items():
                    curve = incumbent_curve(order, case.raw, case.value)
                    yield {"dataset": name, "group": str(meta.groups[name]), "task": world.task, "way": way} | {
                        **{f"@{k}": float(curve[k - 1]) for k in KS}, "mean": float(np.mean(curve)),
                    }  # fmt: skip


def summarise(rows: list[Row]) -> dict[str, dict[str, Any]]:
    """Mean score of each way and its difference to the whole model, with intervals; seeds and halves are averaged."""
    columns = [f"@{k}" for k in KS] + ["mean"]
    frame = pd.DataFrame(rows).groupby(["way", "group", "dataset"], sort=False)[columns].mean().reset_index()
    whole = frame[frame["way"] == WHOLE].set_index("dataset")
    report = {}
    for way, part in frame.groupby("way", sort=False):
        part = part.set_index("dataset").loc[whole.index]
        groups = part["group"].to_numpy()
        report[str(way)] = {
            "score": {c: float(part[c].mean()) for c in columns},
            "difference": {c: interval((part[c] - whole[c]).to_numpy(), groups) for c in columns},
        }
    return report


def table(report: dict[str, dict[str, Any]]) -> str:
    """The report as a table in Markdown."""
    columns = list(next(iter(report.values()))["score"])
    lines = ["| way | " + " | ".join(columns) + " | mean, less the whole model |", "|---" * (len(columns) + 2) + "|"]
    for way, block in report.items():
        middle, low, high = block["difference"]["mean"]
        difference = "" if way == WHOLE else f"{middle:+.3f} [{low:+.3f}, {high:+.3f}]"
        scores = " | ".join(f"{v:.3f}" for v in block["score"].values())
        lines.append(f"| {way} | {scores} | {difference} |")
    return "\n".join(lines)


def main() -> None:
    parser = command_line(__doc__, "ablations.json")
    parser.add_argument("--seeds", type=int, default=1)
    parser.add_argument("--quick", action="store_true")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    card = json.loads((arguments.corpus / "card.json").read_text("utf-8"))
    rules = {"n_folds": arguments.folds, "limit": float(card["measure"]["time_limit"] or np.inf)}
    rows: list[Row] = []
    for half in range(arguments.halves):
        meta, worlds = load_worlds(arguments.corpus, half)
        for seed in range(arguments.seeds):
            rows += run(meta, worlds, seed=seed, quick=arguments.quick, **rules)
    dev = {entry.name for entry in load_collection("dev")}
    report = {}
    for name, part in {"all": rows, "dev": [row for row in rows if row["dataset"] in dev]}.items():
        report[name] = {"n_datasets": len({row["dataset"] for row in part}), "ways": summarise(part)}
        print(f"\n{name}: {report[name]['n_datasets']} datasets that are not flat\n\n{table(report[name]['ways'])}")
    arguments.report.write_text(json.dumps(report, indent=1) + "\n")


if __name__ == "__main__":
    main()
