"""Does a learned proposal distribution find better configurations? Measured on configurations that are really fitted.

    AUTOMETA_DATA=<folder of tables> python experiments/proposal/run.py fits [--datasets 24]
    AUTOMETA_DATA=<folder of tables> python experiments/proposal/run.py own [--datasets 24] [--seeds 2]
    python experiments/proposal/run.py corpus

``fits``: policy and meta-model learn from the shipped corpus without any group of the collection `dev`; then, on small
tables of `dev` and cheap families, each way to propose draws 100 configurations, the same belief picks six of them one
after the other, and each is fitted on four splits: chosen on two, scored on the other two. Also 20 runs drawn from the
policy itself, an update by them, and ten runs of the updated policy beside ten of the policy as shipped. ``own`` is
that loop alone, with more seeds. Every fit is kept in ``fits.jsonl`` (not in the repository), so a run that was stopped
goes on. ``corpus``: the expected score of the policy over the measured candidates of left-out groups. A dataset is flat
where the spread from the median to the best measured candidate is below two standard errors. Figures go to
``report.json``.
"""

from __future__ import annotations

import argparse
import json
import os
import time
import tomllib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")

import numpy as np
import pandas as pd
import torch
from sklearn.model_selection import KFold, StratifiedKFold

from autometa import extract, train_meta_model
from autometa.collection import load_collection
from autometa.data import Dataset
from autometa.evaluation import Evaluator
from autometa.experiment.simulation import bootstrap_interval
from autometa.families import resolve_families
from autometa.family import Candidate
from autometa.meta_dataset import MetaDataset
from autometa.meta_model import Belief, MetaModel
from autometa.meta_model.proposal import ProposalPolicy, Runs
from autometa.meta_training.proposal import ProposalOptions, corpus_runs, train_proposal_policy
from autometa.metrics import task_metrics
from autometa.search_space import SearchSpace

HERE = Path(__file__).parent
ROOT = HERE.parent.parent
CORPUS = ROOT / "autometa" / "pretrained" / "corpus"
CHEAP = ("linear", "knn", "svm", "extra_trees", "lightgbm")
N_DRAWN, N_TRIALS, N_OWN, N_FRESH = 100, 6, 20, 10
MAX_ROWS = 400


@dataclass
class Bench:
    """One dataset with a cache of measured candidates: (score on the choosing half, on the scoring half)."""

    dataset: Dataset
    metric: str
    cache: dict[str, tuple[float, float]]
    file: Path
    features: dict[str, Any]
    measured: dict[str, tuple[float, float]] = field(default_factory=dict)

    def measure(self, candidates: list[Candidate], families: list[str]) -> None:
        todo = [c for c in dict.fromkeys(candidates) if f"{self.dataset.name} {c.key}" not in self.cache]
        kind = StratifiedKFold if self.dataset.task.is_classification else KFold
        splits = kind(4, shuffle=True, random_state=0)
        if todo:
            with Evaluator(self.dataset, families=families, splits=splits, metrics=[self.metric]) as evaluator:
                for candidate in todo:
                    scores = np.array(evaluator.evaluate(candidate).scores.get(self.metric, [np.nan] * 4), dtype=float)
                    pair = (
                        (float(scores[::2].mean()), float(scores[1::2].mean())) if len(scores) == 4 else (np.nan,) * 2
                    )
                    key = f"{self.dataset.name} {candidate.key}"
                    self.cache[key] = pair
                    with self.file.open("a") as lines:
                        lines.write(json.dumps([key, *pair]) + "\n")
        for c in candidates:
            self.measured[c.key] = self.cache[f"{self.dataset.name} {c.key}"]

    def chosen_on(self, candidate: Candidate) -> float:
        return self.measured[candidate.key][0]

    def scored_on(self, candidate: Candidate) -> float:
        return self.measured[candidate.key][1]


def without_dev() -> MetaDataset:
    """The shipped corpus without any group of `dev`."""
    groups = {d["group"] for d in tomllib.loads((ROOT / "datasets/collections/dev.toml").read_text())["datasets"]}
    data = MetaDataset.from_parquet(CORPUS)
    return data.subset([d for d in data.datasets if data.groups[d] not in groups])


def spaces(names: tuple[str, ...] = CHEAP) -> dict[str, SearchSpace]:
    return {family.name: family.search_space for family in resolve_families(names)}


def ways(
    bench: Bench, data: MetaDataset, policies: dict[str, ProposalPolicy], rng: np.random.Generator
) -> dict[str, list[Candidate]]:
    """What each way proposes to the belief."""
    known = spaces()
    names = list(known)
    uniform = [Candidate(n, known[n].sample(rng)) for n in (names[i] for i in rng.integers(len(names), size=N_DRAWN))]
    base = portfolio(data, bench.metric, known)
    near = [perturbed(base[i % len(base)], known, rng) for i in range(N_DRAWN)]
    drawn = {way: policy.sample(bench.features, N_DRAWN, rng=rng) for way, policy in policies.items()}
    return {"uniform": uniform, "perturbed portfolio": near, **drawn}


def portfolio(data: MetaDataset, metric: str, known: dict[str, SearchSpace], n: int = 10) -> list[Candidate]:
    """Greedy portfolio of the corpus among the cheap families."""
    table = data.score_table(metric)
    keys = [k for k in table.columns if data.candidates[k].family in known]
    raw = table[keys].to_numpy(dtype=float)
    middle = np.nanmedian(raw, axis=1, keepdims=True)
    scores = np.nan_to_num(np.clip((raw - middle) / np.maximum(np.nanmax(raw, axis=1, keepdims=True) - middle, 1e-9),
                                   -1, None), nan=-1.0)  # fmt: skip
    best, order = np.full(len(scores), -9.0), []
    for _ in range(min(n, len(keys))):
        gain = np.maximum(best[:, None], scores).mean(axis=0)
        gain[order] = -np.inf
        order.append(int(gain.argmax()))
        best = np.maximum(best, scores[:, order[-1]])
    full = [data.candidates[keys[i]] for i in order]
    return [Candidate(c.family, {k: c.config[k] for k in known[c.family]}) for c in full]


def perturbed(candidate: Candidate, known: dict[str, SearchSpace], rng: np.random.Generator) -> Candidate:
    space = known[candidate.family]
    unit = space.encode(candidate.config) + rng.normal(0, 0.1, space.n_dims)
    return Candidate(candidate.family, space.decode(np.clip(unit, 0, 1.2)))


def picked(bench: Bench, belief: Belief, proposals: list[Candidate]) -> list[Candidate]:
    """Candidates that the belief tries, seeing the choosing half of each; fits them on the way."""
    order: list[Candidate] = []
    for _ in range(N_TRIALS):
        index = belief.next()
        order.append(proposals[index])
        bench.measure([proposals[index]], list(CHEAP))
        score = bench.chosen_on(proposals[index])
        belief = belief.observe(index, score) if np.isfinite(score) else belief.observe_failure(index)
    return order


def one_dataset(
    bench: Bench, model: MetaModel, policy: ProposalPolicy, plain: ProposalPolicy, data: MetaDataset, seed: int
) -> dict[str, list[Candidate]]:
    """Every way's candidates in the order of their trials."""
    rng = np.random.default_rng(seed)
    trials = {}
    for way, proposals in ways(bench, data, {"policy": policy, "likelihood only": plain}, rng).items():
        proposals = list(dict.fromkeys(proposals))
        trials[way] = picked(bench, model.belief(bench.features, proposals, metric=bench.metric), proposals)
    own = policy.sample(bench.features, N_OWN, rng=rng)
    bench.measure(own, list(CHEAP))
    later = policy.update([Runs(bench.features, own, [bench.chosen_on(c) for c in own])])
    trials["own runs"] = own
    known = list(spaces().items())
    trials["uniform, no belief"] = [
        Candidate(name, space.sample(rng)) for name, space in (known[i] for i in rng.integers(len(known), size=N_FRESH))
    ]
    trials["policy, no belief"] = policy.sample(bench.features, N_FRESH, rng=rng)
    trials["after 20 own runs, no belief"] = later.sample(bench.features, N_FRESH, rng=rng)
    bench.measure([c for cs in trials.values() for c in cs], list(CHEAP))
    return trials


def fits(n_datasets: int, seed: int) -> dict[str, Any]:
    started = time.process_time()
    data = without_dev()
    kept = data.subset(data.datasets)
    model = train_meta_model(kept)
    policy = train_proposal_policy(kept, spaces())
    plain = train_proposal_policy(kept, spaces(), options=ProposalOptions(n_gradient_steps=0))
    file = HERE / "fits.jsonl"
    lines = [json.loads(line) for line in file.read_text().splitlines()] if file.exists() else []
    cache = {key: (a, b) for key, a, b in lines}
    rows = []
    for bench, group in benches(n_datasets, cache, file):
        trials = one_dataset(bench, model, policy, plain, data, seed)
        rows += dataset_rows(bench, trials, group)
        print(f"{bench.dataset.name}: {len(bench.measured)} candidates, {time.process_time() - started:.0f} CPU s")
    return summarise(pd.DataFrame(rows), PAIRS) | {
        "corpus_datasets": len(data.datasets), "seed": seed, "cpu_seconds": round(time.process_time() - started),
    }  # fmt: skip


def benches(n_datasets: int, cache: dict[str, tuple[float, float]], file: Path) -> Iterator[tuple[Bench, str]]:
    """Small tables of `dev` and their groups."""
    collection = load_collection("dev")
    entries = [e for e in collection.entries if e.n_rows <= 1500 and e.n_features <= 40 and not e.flag][:n_datasets]
    for entry in entries:
        full = collection.load(entry.name)
        dataset = full if full.n_rows <= MAX_ROWS else full.subsample(MAX_ROWS, seed=0)
        features = {**extract(dataset).to_series().to_dict(), "task": str(dataset.task)}
        yield Bench(dataset, task_metrics(dataset.task)[0].name, cache, file, features), str(entry.group)


def own(n_datasets: int, seeds: int) -> dict[str, Any]:
    """The loop of one's own runs alone, no belief: uniform, the policy as shipped, and after 20 own runs."""
    started = time.process_time()
    data = without_dev()
    policy, known = train_proposal_policy(data, spaces()), list(spaces().items())
    file = HERE / "fits.jsonl"
    lines = [json.loads(line) for line in file.read_text().splitlines()] if file.exists() else []
    rows = []
    for bench, group in benches(n_datasets, {key: (a, b) for key, a, b in lines}, file):
        by_seed = []
        for seed in range(1, seeds + 1):
            rng = np.random.default_rng([seed, 1])
            first = policy.sample(bench.features, N_OWN, rng=rng)
            bench.measure(first, list(CHEAP))
            later = policy.update([Runs(bench.features, first, [bench.chosen_on(c) for c in first])])
            numbers = rng.integers(len(known), size=N_FRESH)
            by_seed.append({
                "uniform": [Candidate(known[i][0], known[i][1].sample(rng)) for i in numbers],
                "policy": policy.sample(bench.features, N_FRESH, rng=rng),
                "after 20 own runs": later.sample(bench.features, N_FRESH, rng=rng),
            })  # fmt: skip
            bench.measure([c for cs in by_seed[-1].values() for c in cs], list(CHEAP))
        for trials in by_seed:
            rows += dataset_rows(bench, trials, group)
        print(f"{bench.dataset.name}: {len(bench.measured)} candidates, {time.process_time() - started:.0f} CPU s")
    pairs = (("policy", "uniform"), ("after 20 own runs", "policy"), ("after 20 own runs", "uniform"))
    return summarise(pd.DataFrame(rows), pairs) | {
        "corpus_datasets": len(data.datasets), "seeds": seeds, "cpu_seconds": round(time.process_time() - started),
    }  # fmt: skip


def dataset_rows(bench: Bench, trials: dict[str, list[Candidate]], group: str) -> list[dict[str, Any]]:
    """Scoring-half score, 0 = median and 1 = best of everything fitted on this dataset, at least -1."""
    scores = np.array([b for _, b in bench.measured.values()])
    middle, best = np.nanmedian(scores), np.nanmax(scores)
    halves = np.array([pair for pair in bench.measured.values() if np.isfinite(pair).all()])
    whole, noise = halves.mean(axis=1), float(np.std(halves[:, 0] - halves[:, 1])) / 2
    flat = bool(whole.max() - np.median(whole) < 2 * noise)
    rows = []
    for way, candidates in trials.items():
        chosen = np.nan_to_num([bench.chosen_on(c) for c in candidates], nan=-np.inf)
        value = np.array([bench.scored_on(c) for c in candidates])
        value = np.nan_to_num(np.clip((value - middle) / max(best - middle, 1e-12), -1, None), nan=-1.0)
        path = [float(value[int(np.argmax(chosen[: k + 1]))]) for k in range(len(value))]
        rows.append({
            "dataset": bench.dataset.name, "group": group, "flat": flat, "way": way, "mean": float(value.mean()),
            "first": path[0], "best of 3": path[2], "best of all": path[-1],
        })  # fmt: skip
    return rows


PAIRS = (
    ("policy", "uniform"), ("policy", "perturbed portfolio"), ("policy", "likelihood only"),
    ("policy, no belief", "uniform, no belief"), ("after 20 own runs, no belief", "policy, no belief"),
)  # fmt: skip


def summarise(frame: pd.DataFrame, pairs: Sequence[tuple[str, str]]) -> dict[str, Any]:
    """Means and differences over datasets, seeds averaged within a dataset; without the flat ones, and over all."""
    lively = frame[~frame["flat"]]
    n_all, n_lively = frame["dataset"].nunique(), lively["dataset"].nunique()
    report = {"datasets": n_all, "flat": n_all - n_lively} | differences(lively, pairs)
    return report | {"with flat datasets": differences(frame, pairs)}


def differences(frame: pd.DataFrame, pairs: Sequence[tuple[str, str]]) -> dict[str, Any]:
    columns = ["first", "best of 3", "best of all", "mean"]
    table = frame.pivot_table(index="dataset", columns="way", values=columns)
    return {
        "score": {w: {c: round(float(table[c][w].mean()), 3) for c in columns} for w in table["mean"].columns},
        "difference": {
            f"{a} - {b}": {c: interval((table[c][a] - table[c][b]).to_numpy()) for c in columns} for a, b in pairs
        },
    }


def interval(values: np.ndarray) -> list[float]:
    """Mean and its 95 % bootstrap interval over datasets."""
    return [round(v, 3) for v in bootstrap_interval(values, n_samples=4_000)]


def corpus(seed: int) -> dict[str, Any]:
    """Expected normalised score of self-normalised policies over the measured candidates of left-out groups."""
    data = MetaDataset.from_parquet(CORPUS)
    known = {f.name: f.search_space for f in resolve_families(None)}
    options = {
        "likelihood": ProposalOptions(n_gradient_steps=0), "likelihood and policy gradient": ProposalOptions(),
        "policy gradient alone": ProposalOptions(n_steps=1, learning_rate=0.02, n_gradient_steps=80),
    }  # fmt: skip
    values: dict[str, list[float]] = {"uniform over families": [], **{name: [] for name in options}}
    groups = []
    for train, test in data.split_by_group(5, seed=seed):
        runs = corpus_runs(test, known)
        groups += [str(data.groups[name]) for name in test.datasets]
        for run in runs:
            families = pd.Series([c.family for c in run.candidates])
            rewards = np.array(run.rewards)
            values["uniform over families"].append(float(pd.Series(rewards).groupby(families).mean().mean()))
        for name, option in options.items():
            policy = train_proposal_policy(train, known, seed=seed, options=option)
            for run in runs:
                families = pd.Series([c.family for c in run.candidates])
                log_weight = policy.log_prob(run.meta_features, run.candidates) - np.log(
                    families.map(families.value_counts())
                )
                # Densities of different families live in cubes of different volume: uniform is 1 in each.
                weight = np.exp(log_weight - policy_floor(policy, run))
                values[name].append(float(np.average(run.rewards, weights=weight)))
    base = np.array(values["uniform over families"])
    report = {name: {"score": round(float(np.mean(v)), 3), "less uniform": interval(np.array(v) - base)}
              for name, v in values.items()}  # fmt: skip
    first = np.array(values["likelihood"])
    report["likelihood and policy gradient"]["less likelihood"] = interval(
        np.array(values["likelihood and policy gradient"]) - first
    )
    return report | {"datasets": len(base), "seed": seed}


def policy_floor(policy: ProposalPolicy, run: Runs) -> np.ndarray:
    """Log-density of a uniform candidate in the space of each candidate's family."""
    names = list(policy.spaces)
    floor = policy.layout.log_uniform.numpy()
    return np.array([floor[names.index(c.family)] for c in run.candidates])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("part", choices=["fits", "own", "corpus"])
    parser.add_argument("--datasets", type=int, default=24)
    parser.add_argument("--seeds", type=int, default=2, help="of the loop of own runs")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--report", type=Path, default=HERE / "report.json")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    parts = {
        "fits": lambda: fits(arguments.datasets, arguments.seed),
        "own": lambda: own(arguments.datasets, arguments.seeds),
        "corpus": lambda: corpus(arguments.seed),
    }
    result = parts[arguments.part]()
    report = json.loads(arguments.report.read_text()) if arguments.report.exists() else {}
    report[arguments.part] = result
    arguments.report.write_text(json.dumps(report, indent=1) + "\n", "utf-8")
    print(json.dumps(result, indent=1))


if __name__ == "__main__":
    main()
