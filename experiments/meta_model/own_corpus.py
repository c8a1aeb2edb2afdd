"""Leave-group-out test of the meta-model on the shipped corpus, against the greedy portfolio and the best single one.

Usage: python experiments/meta_model/own_corpus.py [--corpus FOLDER] [--folds 5] [--seeds 1] [--n-jobs 1]

Writes the summary to the report (JSON) and one row per dataset, half and seed beside it (CSV).

Every selector chooses on one half of the validation splits of a cell and is scored on the other half, the oracle
likewise; then the halves change places. A score is normalised per dataset by the spread from the median to the best
candidate over all splits, so that 0 is the median candidate; the oracle stays below 1 because it chooses on one half
too. Datasets on which that spread is below two standard errors are counted apart as flat. Nothing is chosen on the
datasets that are scored: trust and calibration come from rehearsals inside the training folds. "Full trust" is the
same model without the former. Figures weighted by source let each source of datasets count the same.
"""

from __future__ import annotations

import argparse
import itertools
import json
import os
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")

import numpy as np
import pandas as pd
import torch
from joblib import Parallel, delayed

from autometa.data import TaskType
from autometa.experiment.simulation import FLOOR, greedy_portfolio, incumbent_curve
from autometa.family import Candidate
from autometa.meta_dataset import MetaDataset, candidate_key
from autometa.meta_model import Belief, MetaModel
from autometa.meta_training import TrainingOptions, train_meta_model
from autometa.metrics import task_metrics

KS = (1, 3, 5, 10)
SIZES = {"fewer than 500 rows": (0, 500), "500 to 1,500 rows": (500, 1_500), "more rows": (1_500, np.inf)}
LEVEL = 0.8
HERE = Path(__file__).parent
CORPUS = HERE.parent.parent / "autometa" / "pretrained" / "corpus"


@dataclass
class World:
    """Scores of one task's default metric on the choosing and the scoring half, (n_datasets, n_candidates)."""

    task: str
    metric: str
    choose: pd.DataFrame
    score: pd.DataFrame
    error: pd.DataFrame
    spread: pd.Series
    seconds: pd.DataFrame
    n_splits: pd.Series
    candidates: list[Candidate]
    ran: pd.DataFrame
    """Whether a candidate was run there at all, with whatever end; the others are missing by design."""

    def case(self, name: str) -> Case:
        """One dataset, with the candidates that were run on it."""
        ran = np.flatnonzero(self.ran.loc[name].to_numpy())
        raw, held, error, seconds = (
            table.loc[name].to_numpy()[ran] for table in (self.choose, self.score, self.error, self.seconds)
        )
        spread = float(self.spread[name])
        return Case(
            [self.candidates[i] for i in ran], ran, raw, normalised(held, spread), error, seconds,
            int(self.n_splits[name]), bool(spread < 2 * np.nanmedian(error) / np.sqrt(2)), held,
        )  # fmt: skip

    def portfolio(self, table: np.ndarray, case: Case) -> list[int]:
        """The greedy portfolio of the training table, of the candidates that can be looked up on this dataset."""
        return greedy_portfolio(table[:, case.columns], max(KS))


@dataclass
class Case:
    """One dataset: scores on both halves, the held ones also normalised; ``flat`` where they tell nothing apart."""

    candidates: list[Candidate]
    columns: np.ndarray
    raw: np.ndarray
    value: np.ndarray
    error: np.ndarray
    seconds: np.ndarray
    n_splits: int
    flat: bool
    held: np.ndarray


@dataclass
class Outcome:
    """What one dataset says: normalised score after k trials for each method, and the forecasts."""

    dataset: str
    group: str
    task: str
    source: str
    flat: bool
    curves: dict[str, list[float]]
    facts: dict[str, float] = field(default_factory=dict)


def load_worlds(
    folder: Path, half: int, metrics: Mapping[TaskType, str] | None = None
) -> tuple[MetaDataset, list[World]]:
    """The corpus as training data, with scores of the choosing half (0 or 1), and the table of each task.

    ``metrics`` names the metric of each task; by default the task's own default.
    """
    cells = pd.read_parquet(folder / "evaluations.parquet")
    for column in ("dataset", "group", "task", "family", "config", "config_id", "metric", "status"):
        cells[column] = cells[column].astype(str)
    known = cells["scores"].map(lambda values: values is not None and len(values) > 1)
    ran = pd.crosstab(cells["dataset"], cells["config_id"]) > 0
    cells = cells[known & (cells["status"] == "ok")].copy()
    values = cells["scores"].map(lambda v: np.asarray(v, dtype=float))
    cells["choose"] = values.map(lambda v: float(np.nanmean(v[half::2])))
    cells["held"] = values.map(lambda v: float(np.nanmean(v[1 - half :: 2])))
    if "predict_seconds" in cells:  # a belief forecasts both together
        cells["seconds"] += cells.pop("predict_seconds").fillna(0.0)
    cells["error"] = values.map(lambda v: float(np.nanstd(v, ddof=1) / np.sqrt(len(v) / 2)))
    training = cells.assign(score=cells["choose"], standard_error=cells["error"])
    meta_features = pd.read_parquet(folder / "meta_features.parquet")
    meta = MetaDataset.from_frames(training.drop(columns=["choose", "held", "error", "scores"]), meta_features)
    worlds = []
    for task in TaskType:
        metric = task_metrics(task)[0].name if metrics is None else metrics[task]
        part = cells[(cells["task"] == str(task)) & (cells["metric"] == metric)]
        if part["dataset"].nunique() < 10:
            continue
        first = part.drop_duplicates("config_id").set_index("config_id")
        tables = {
            v: part.pivot_table(index="dataset", columns="config_id", values=v, observed=True)
            for v in ("choose", "held", "error", "seconds", "score")
        }
        ids = list(tables["choose"].columns)
        candidates = [Candidate(first.loc[i, "family"], json.loads(first.loc[i, "config"])) for i in ids]
        n_splits = part.assign(n=part["scores"].map(len)).groupby("dataset")["n"].max()
        spread = tables["score"].max(axis=1) - tables["score"].median(axis=1)
        worlds.append(World(str(task), metric, tables["choose"], tables["held"], tables["error"], spread,
                            tables["seconds"], n_splits, candidates, ran.loc[tables["choose"].index, ids]))  # fmt: skip
    return meta, worlds


def normalised(held: np.ndarray, spread: float) -> np.ndarray:
    """Scoring-half scores on the scale 0 = median candidate, 1 = best candidate over all splits."""
    return np.clip((held - np.nanmedian(held)) / max(spread, 1e-9), -1.0, None)


def training_table(world: World, datasets: list[str]) -> np.ndarray:
    """Normalised scores for the portfolio: failures count as the floor, what was not run as its candidate's mean."""
    rows = [d for d in world.choose.index if d in set(datasets)]
    raw = world.choose.loc[rows].to_numpy()
    middle, best = np.nanmedian(raw, axis=1, keepdims=True), np.nanmax(raw, axis=1, keepdims=True)
    table = np.clip((raw - middle) / np.maximum(best - middle, 1e-9), -1.0, None)
    table[np.isnan(table) & world.ran.loc[rows].to_numpy()] = FLOOR
    means = np.array([column[np.isfinite(column)].mean() if np.isfinite(column).any() else 0.0 for column in table.T])
    return np.where(np.isfinite(table), table, means)


def believed(
    belief: Belief,
    raw: np.ndarray,
    error: np.ndarray,
    *,
    n_splits: int,
    limit: float = np.inf,
    seconds: np.ndarray | None = None,
) -> tuple[list[int], dict[str, float]]:
    """The order in which the belief tries candidates, seeing the raw choosing-half score of each, and its forecasts.

    A candidate that is forecast to exceed the time limit of a cell is passed over while there are others, as the tuner
    does. Forecasts are judged on the candidates that were not tried yet.
    """
    order: list[int] = []
    facts: dict[str, float] = {}
    for k in range(max(KS)):
        if k in (0, *KS) and seconds is not None:
            facts |= {f"{name}@{k}": v for name, v in judged(belief, raw, seconds, order).items()}
        gain = belief.expected_improvement()
        gain[order] = -np.inf
        in_time = np.where(belief.seconds * n_splits <= limit, gain, -np.inf)
        index = int(np.argmax(in_time if np.isfinite(in_time).any() else gain))
        order.append(index)
        if not np.isfinite(raw[index]):
            belief = belief.observe_failure(index)
            continue
        took = None if seconds is None else float(seconds[index])
        belief = belief.observe(index, float(raw[index]), standard_error=float(error[index]) or None, seconds=took)
    return order, facts


def judged(belief: Belief, raw: np.ndarray, seconds: np.ndarray, tried: list[int]) -> dict[str, float]:
    """Coverage and width of the intervals of scores and seconds, and how often seconds are within a factor of 2."""
    open_ = np.isfinite(raw)
    open_[tried] = False
    low, high = belief.interval(LEVEL)
    fast, slow = belief.seconds_interval(LEVEL)
    ratio = np.abs(np.log(np.maximum(belief.seconds, 1e-6) / np.maximum(seconds, 1e-6)))[open_]
    return {
        "coverage": float(np.mean((raw >= low)[open_] & (raw <= high)[open_])),
        "width_in_std": float(np.median(((high - low) / belief.std)[open_])),
        "seconds_coverage": float(np.mean((seconds >= fast)[open_] & (seconds <= slow)[open_])),
        "seconds_within_2": float(np.mean(ratio <= np.log(2.0))),
    }


def same_machine(belief: Belief) -> Belief:
    """The belief of someone who works on the machine of the corpus."""
    prior = belief.seconds_prior
    return belief if prior is None else replace(belief, seconds_prior=replace(prior, speed_std=0.0))


def full_trust(model: MetaModel, metric: str) -> MetaModel:
    """The same model, its forecasts neither shrunk nor faded for novel datasets."""
    head = model.head(metric)
    head.settings = {**head.settings, "shrink": {}, "opening": {}, "threshold": 1.0}
    return model


def forecasts(
    belief: Belief, features: pd.Series, world: World, case: Case, train: MetaDataset, table: np.ndarray
) -> dict[str, float]:
    """How the forecasts before any trial compare with what was measured."""
    known = np.isfinite(case.raw)
    unit = 10.0 ** features["constant_log_rmse"] if world.task == "regression" else 1.0
    family = np.array([c.family for c in case.candidates])
    best_family = family[int(np.nanargmax(case.raw))]
    by_belief = list(dict.fromkeys(family[np.argsort(-belief.mean)]))
    scores = train.score_table(world.metric).mean(axis=0)  # in units of the constant predictor for regression
    average = unit * np.array([scores.get(candidate_key(c.family, c.config), np.nan) for c in case.candidates])
    means = pd.Series(table.mean(axis=0)[case.columns]).groupby(family).max().sort_values(ascending=False)
    return {
        "absolute_error": float(np.mean(np.abs(belief.mean - case.raw)[known])) / unit,
        "absolute_error_of_mean": float(np.nanmean(np.abs(average - case.raw)[known])) / unit,
        "sampling_error": float(np.mean(np.abs(case.held - case.raw)[known])) / unit,
        "n_rows": 10.0 ** features.get("log_rows", np.nan),
        "trust": belief.prior.trust,
        "novelty": belief.prior.novelty,
        "family_top3": float(best_family in by_belief[:3]),
        "family_top3_fixed": float(best_family in list(means.index[:3])),
    }


def run(
    meta: MetaDataset,
    worlds: list[World],
    sources: dict[str, str],
    *,
    n_folds: int,
    seed: int,
    limit: float,
    ablate: bool,
) -> list[Outcome]:
    outcomes = []
    for train, test in meta.split_by_group(n_folds, seed=seed):
        model = train_meta_model(train, seed=seed)
        plain = train_meta_model(blind(train), seed=seed, options=TrainingOptions(n_rehearsals=0)) if ablate else None
        start_of_fold = len(outcomes)
        for world in worlds:
            table = training_table(world, list(train.datasets))
            names = [d for d in test.datasets if d in world.choose.index]
            for name in names:
                case, features = world.case(name), meta.meta_features.loc[name]
                portfolio = world.portfolio(table, case)
                rules = {"n_splits": case.n_splits, "limit": limit}
                belief = same_machine(model.belief(features, case.candidates, metric=world.metric))
                order, judgements = believed(belief, case.raw, case.error, seconds=case.seconds, **rules)
                single = case.value[portfolio[0]]
                curves = {
                    "portfolio": incumbent_curve(portfolio, case.raw, case.value).tolist(),
                    "belief": incumbent_curve(order, case.raw, case.value).tolist(),
                    "oracle": [float(case.value[int(np.nanargmax(case.raw))])] * max(KS),
                    "single": [float(single) if np.isfinite(single) else FLOOR] * max(KS),
                }
                if plain is not None:
                    start = plain.belief(blind_features(features), case.candidates, metric=world.metric)
                    order, _ = believed(same_machine(start), case.raw, case.error, **rules)
                    curves["belief, no meta-features"] = incumbent_curve(order, case.raw, case.value).tolist()
                facts = judgements | forecasts(belief, features, world, case, train, table)
                outcomes.append(
                    Outcome(name, str(meta.groups[name]), world.task, sources.get(name, ""), case.flat, curves, facts)
                )
            trusting = full_trust(model, world.metric)
            for outcome in [o for o in outcomes[start_of_fold:] if o.task == world.task]:
                case = world.case(outcome.dataset)
                start = trusting.belief(meta.meta_features.loc[outcome.dataset], case.candidates, metric=world.metric)
                order, _ = believed(same_machine(start), case.raw, case.error, n_splits=case.n_splits, limit=limit)
                outcome.curves["belief, full trust"] = incumbent_curve(order, case.raw, case.value).tolist()
    return outcomes


def run_half(folder: Path, half: int, sources: dict[str, str], **options: Any) -> list[Outcome]:
    """All folds, with this half of the splits to choose by; in a process of its own."""
    torch.set_num_threads(1)
    return run(*load_worlds(folder, half), sources, **options)


def blind(meta: MetaDataset) -> MetaDataset:
    """The same evaluations with the task as the only meta-feature."""
    return MetaDataset(meta.evaluations, meta.meta_features[["task"]], meta.groups)


def blind_features(features: pd.Series) -> pd.Series:
    return features[["task"]]


def interval(values: np.ndarray, groups: np.ndarray, weights: np.ndarray | None = None) -> list[float]:
    """Weighted mean and its 95 % bootstrap interval, whole groups drawn with replacement."""
    weights = np.where(np.isfinite(values), 1.0 if weights is None else weights, 0.0)
    values = np.where(np.isfinite(values), values, 0.0)
    rng, names = np.random.default_rng(0), np.unique(groups)
    rows = [np.flatnonzero(groups == g) for g in names]
    draws = []
    for _ in range(2000):
        pick = np.concatenate([rows[i] for i in rng.integers(len(rows), size=len(rows))])
        draws.append(np.average(values[pick], weights=weights[pick]) if weights[pick].any() else np.nan)
    middle = np.average(values, weights=weights) if weights.any() else np.nan
    return [float(middle), *map(float, np.nanquantile(draws, [0.025, 0.975]))]


def source_weights(outcomes: list[Outcome]) -> np.ndarray:
    """Weights under which every source counts the same."""
    names, number, count = np.unique([o.source for o in outcomes], return_inverse=True, return_counts=True)
    return 1.0 / count[number] / len(names)


def summarise(outcomes: list[Outcome]) -> dict[str, Any]:
    report: dict[str, Any] = {}
    for task in ("pooled", *dict.fromkeys(o.task for o in outcomes)):
        part = [o for o in outcomes if task in ("pooled", o.task)]
        lively = [o for o in part if not o.flat]
        groups = np.array([o.group for o in lively])
        n_datasets, n_flat = len({o.dataset for o in part}), len({o.dataset for o in part if o.flat})
        block: dict[str, Any] = {"n_datasets": n_datasets, "n_flat": n_flat, "score": {}, "gain": {}}
        curves = {m: np.array([o.curves[m] for o in lively]) for m in lively[0].curves}
        for method, values in curves.items():
            block["score"][method] = {f"@{k}": interval(values[:, k - 1], groups) for k in KS}
            block["score"][method]["mean"] = interval(values.mean(axis=1), groups)
            if method not in {"portfolio", "oracle"}:
                gain = values - curves["portfolio"]
                block["gain"][method] = {f"@{k}": interval(gain[:, k - 1], groups) for k in KS}
                block["gain"][method]["mean"] = interval(gain.mean(axis=1), groups)
                block["gain"][method]["mean, by source"] = interval(gain.mean(axis=1), groups, source_weights(lively))
        first, single, oracle = (curves[m][:, 0].mean() for m in ("belief", "single", "oracle"))
        block["gap_closed_before_any_trial"] = float((first - single) / max(1e-9, oracle - single))
        everyone = np.array([o.group for o in part])
        for fact in [f for f in part[0].facts if f != "n_rows"]:
            block[fact] = interval(np.array([o.facts[fact] for o in part]), everyone)
        block["coverage@0, by source"] = interval(
            np.array([o.facts["coverage@0"] for o in part]), everyone, source_weights(part)
        )
        coverage, n_rows = (np.array([o.facts[f] for o in part]) for f in ("coverage@0", "n_rows"))
        for name, (low, high) in SIZES.items():
            inside = (n_rows >= low) & (n_rows < high)
            if inside.any():
                block[f"coverage@0, {name}"] = interval(coverage[inside], everyone[inside])
        top3 = np.array([o.facts["family_top3"] - o.facts["family_top3_fixed"] for o in part])
        block["family_top3_gain"] = interval(top3, everyone)
        report[task] = block
    return report


def rows(outcomes: list[Outcome]) -> pd.DataFrame:
    """One row per dataset, half and seed: the mean score of each method over the first ten trials, and the facts."""
    return pd.DataFrame(
        {"dataset": o.dataset, "group": o.group, "source": o.source, "task": o.task, "flat": o.flat}
        | {f"{method} @1": values[0] for method, values in o.curves.items()}
        | {f"{method} mean": float(np.mean(values)) for method, values in o.curves.items()}
        | o.facts
        for o in outcomes
    )


def source_names(folder: Path) -> dict[str, str]:
    """Dataset -> where it comes from: a package, or the owner of a repository."""
    path = folder / "datasets.parquet"
    if not path.is_file():
        return {}
    frame = pd.read_parquet(path)
    return dict(zip(frame["name"], frame["source"].str.extract(r"^([^:]*:[^/=@]*)")[0].fillna(""), strict=True))


def command_line(description: str | None, report: str) -> argparse.ArgumentParser:
    """The options that the studies of a corpus share."""
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--corpus", type=Path, default=CORPUS)
    parser.add_argument("--folds", type=int, default=5)
    parser.add_argument("--halves", type=int, default=2, help="1: only the first half chooses")
    parser.add_argument("--report", type=Path, default=HERE / report)
    return parser


def main() -> None:
    parser = command_line(__doc__, "own_corpus.json")
    parser.add_argument("--seeds", type=int, default=1)
    parser.add_argument("--n-jobs", type=int, default=1, help="halves and seeds at a time")
    parser.add_argument("--ablate", action="store_true", help="also the belief without meta-features")
    arguments = parser.parse_args()
    sources = source_names(arguments.corpus)
    card = json.loads((arguments.corpus / "card.json").read_text("utf-8"))
    options = {
        "n_folds": arguments.folds, "limit": float(card["measure"]["time_limit"] or np.inf), "ablate": arguments.ablate
    }  # fmt: skip
    parts = Parallel(arguments.n_jobs)(
        delayed(run_half)(arguments.corpus, half, sources, seed=seed, **options)
        for half, seed in itertools.product(range(arguments.halves), range(arguments.seeds))
    )
    outcomes = list(itertools.chain.from_iterable(parts))
    report = {"folds": arguments.folds, "seeds": arguments.seeds, "tasks": summarise(outcomes)}
    arguments.report.write_text(json.dumps(report, indent=1) + "\n")
    rows(outcomes).to_csv(arguments.report.with_suffix(".csv"), index=False, float_format="%.4g")
    for task, block in report["tasks"].items():
        print(f"\n{task}: {block['n_datasets']} datasets, {block['n_flat']} of them flat")
        for method, row in block["score"].items():
            print(f"  {method:26s}" + "  ".join(f"{k} {v[0]:.3f}" for k, v in row.items()))
        for method, row in block["gain"].items():
            text = "  ".join(f"{k} {v[0]:+.3f} [{v[1]:+.3f}, {v[2]:+.3f}]" for k, v in row.items())
            print(f"  {method} - portfolio: {text}")
        print(f"  gap single to oracle closed before any trial: {block['gap_closed_before_any_trial']:+.0%}")
        for fact in [f for f in block if isinstance(block[f], list)]:
            print(f"  {fact}: {block[fact][0]:.3f} [{block[fact][1]:.3f}, {block[fact][2]:.3f}]")


if __name__ == "__main__":
    main()
