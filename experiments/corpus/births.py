"""Does a meta-model that has seen all births choose the right one? Each judged by one that never saw its group.

    AUTOMETA_DATA=... OMP_NUM_THREADS=1 python experiments/corpus/births.py autometa/pretrained/corpus FOLDER

FOLDER gets the collected births, the joined corpus, a meta-model of it, and a report that is printed.

Folds are by group and over the datasets with births. For each, a meta-model is trained on the joined corpus without the
fold's groups and forecasts the births of its datasets from their meta-features, as ``select`` does. Compared by log
loss or RMSE, in normalised units (1 = from the dataset's median candidate to its best): the birth that it puts first,
always the random one, and the fixed birth that is best on the other folds. Scores are those of the corpus.
"""

from __future__ import annotations

import json
import sys
from collections import Counter
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from joblib import Parallel, delayed

from autometa.experiment.corpus import collect
from autometa.experiment.joining import join_corpora
from autometa.experiment.simulation import bootstrap_interval
from autometa.experiment.study import Study, config_id, load_study
from autometa.family import Candidate
from autometa.meta_dataset import MetaDataset
from autometa.meta_model import MetaModel
from autometa.meta_training import train_meta_model

BIRTHS = ("random", "learned", "generated")
LOSSES = ("log_loss", "rmse")
"""The heads that are trained; the shipped meta-model learns those of all metrics together."""
N_FOLDS = 6
MIN_OTHERS = 10
"""Candidates of other families that a dataset must have, or its scores have no scale."""


def _setting(config: Mapping[str, Any]) -> str:
    return f"{config['optimizer']} {config['learning_rate']:g} {config['schedule']}"


def score_table(evaluations: pd.DataFrame, study: Study) -> pd.DataFrame:
    """Scores of (dataset, setting) by birth, "normal" and "raw", by the default loss of each task; whole rows only."""
    losses = evaluations[evaluations["metric"].isin(LOSSES) & (evaluations["status"] == "ok")]
    losses = losses.astype({"dataset": str, "config_id": str, "config": str, "family": str})
    cells = losses.groupby(["dataset", "config_id"], as_index=False).agg(
        raw=("score", "mean"), family=("family", "first"), config=("config", "first")
    )
    by_dataset = cells.groupby("dataset")["raw"]
    centre, best = by_dataset.transform("median"), by_dataset.transform("max")
    cells["normal"] = ((cells["raw"] - centre) / (best - centre).where(best > centre)).clip(-1.0, 1.0)
    others = cells[cells["family"] != "mlp"].groupby("dataset").size()
    ids = {config_id(candidate) for candidate in study.candidates if candidate.family == "mlp"}
    mlp = cells[cells["config_id"].isin(ids) & cells["dataset"].isin(others.index[others >= MIN_OTHERS])].copy()
    configs = mlp["config"].map(json.loads)
    mlp["setting"], mlp["init"] = configs.map(_setting), configs.map(lambda config: config["init"])
    return mlp.pivot_table(index=["dataset", "setting"], columns="init", values=["normal", "raw"]).dropna()


def forecasts(model: MetaModel, table: MetaDataset, dataset: str, candidates: dict[str, Candidate]) -> dict[str, float]:
    """Expected score of each of these candidates before any trial."""
    features = table.meta_features.loc[dataset]
    metric = "rmse" if features["task"] == "regression" else "log_loss"
    belief = model.belief(features, list(candidates.values()), metric=metric)
    return dict(zip(candidates, belief.mean, strict=True))


def judge(table: MetaDataset, evaluations: pd.DataFrame, study: Study) -> pd.DataFrame:
    """One row per dataset and setting: the birth that was put first, and normalised scores of the choices."""
    wide = score_table(evaluations, study)
    known = {(_setting(c.config), c.config["init"]): c for c in study.candidates if c.family == "mlp"}
    groups = table.groups
    nets = {key: candidate for key, candidate in table.candidates.items() if candidate.family == "mlp"}
    names = np.array(sorted({groups[d] for d in wide.index.get_level_values("dataset")}))
    fold = dict(zip(names, np.random.default_rng(0).permutation(len(names)) % N_FOLDS, strict=True))
    folds = [[d for d in table.datasets if fold.get(groups[d]) == k] for k in range(N_FOLDS)]
    rows = Parallel(n_jobs=3)(delayed(_judge_fold)(table, wide, known, nets, held) for held in folds)
    return pd.DataFrame([row for part in rows for row in part])


def _judge_fold(table: MetaDataset, wide: pd.DataFrame, known: Any, nets: Any, held: list[str]) -> list[dict[str, Any]]:
    """The datasets that were held out, judged by a meta-model of the others."""
    model = train_meta_model(table.subset([d for d in table.datasets if d not in held]))
    training = wide[~wide.index.get_level_values("dataset").isin(held)]
    fixed = max(BIRTHS, key=lambda birth: training["normal"][birth].mean())
    rows = []
    for (dataset, setting), found in wide[wide.index.get_level_values("dataset").isin(held)].iterrows():
        expected = forecasts(model, table, dataset, {birth: known[setting, birth] for birth in BIRTHS})
        every = forecasts(model, table, dataset, nets)
        rows.append(
            {"dataset": dataset, "setting": setting, "group": table.groups[dataset], "fixed": fixed,
             "predicted": max(expected, key=lambda birth: expected[birth]),
             "leader": nets[max(every, key=lambda key: every[key])].config["init"],
             "oracle": max(BIRTHS, key=lambda birth: found["normal"][birth]),
             **{birth: found["normal"][birth] for birth in BIRTHS},
             **{f"loss of {birth}": -found["raw"][birth] for birth in BIRTHS}}
        )  # fmt: skip
    return rows


def report(rows: pd.DataFrame) -> str:
    """Regrets and differences with 95 % bootstrap intervals over groups."""
    best = rows[list(BIRTHS)].max(axis=1)
    took = {
        "predicted birth": rows.apply(lambda row: row[row["predicted"]], axis=1), "always random": rows["random"],
        "best fixed birth": rows.apply(lambda row: row[row["fixed"]], axis=1),
        "always learned": rows["learned"], "always generated": rows["generated"],
    }  # fmt: skip
    lines = [
        f"{rows['dataset'].nunique()} datasets, {len(rows)} pairs of dataset and setting; settings: "
        + ", ".join(f"{name} ({n})" for name, n in rows["setting"].value_counts().items()),
        "", "| choice | regret to the best birth | less than the predicted birth's score by |", "|---|---|---|",
    ]  # fmt: skip
    for name, scores in took.items():
        regret = bootstrap_interval((best - scores).to_numpy(), rows["group"].tolist())
        behind = bootstrap_interval((took["predicted birth"] - scores).to_numpy(), rows["group"].tolist())
        lines.append(f"| {name} | {_told(regret)} | {'' if name == 'predicted birth' else _told(behind)} |")
    losses = {kind: rows.apply(lambda row, k=kind: row[f"loss of {row[k]}"], axis=1) for kind in ("predicted", "fixed")}
    for name, other in (("random", rows["loss of random"]), ("best fixed", losses["fixed"])):
        ratio = bootstrap_interval(np.log(losses["predicted"] / other).to_numpy(), rows["group"].tolist())
        lines.append(f"\nlog loss or RMSE of the predicted birth against the {name} one: {_told(ratio)} (log ratio)")
    leaders = Counter(rows.drop_duplicates("dataset")["leader"])
    lines += [
        "",
        f"birth of the net that select puts first, by dataset: {dict(leaders)}",
        f"put first: {dict(Counter(rows['predicted']))}",
        f"best: {dict(Counter(rows['oracle']))}",
    ]
    return "\n".join(lines)


def _told(interval: tuple[float, float, float]) -> str:
    return f"{interval[0]:+.3f} [{interval[1]:+.3f}, {interval[2]:+.3f}]"


def main() -> None:
    corpus, folder = Path(sys.argv[1]), Path(sys.argv[2])
    births, joined = folder / "births", folder / "joined"
    study = load_study(Path(__file__).with_name("births.toml"))
    collect(study, births)
    print(json.dumps({k: v for k, v in join_corpora(corpus, births, joined).items() if k[:2] in {"n_", "se", "st"}}))
    evaluations = pd.read_parquet(joined / "evaluations.parquet")
    table = MetaDataset.from_parquet(joined)
    table = replace(table, evaluations=table.evaluations[table.evaluations["metric"].isin(LOSSES)], small_rows=None)
    rows = judge(table, evaluations, study)
    rows.to_csv(folder / "births.csv", index=False)
    print(report(rows))


if __name__ == "__main__":
    main()
