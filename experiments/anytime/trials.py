"""Trials until a search is as good on unseen rows as cold TPE after all of its trials.

    python experiments/anytime/trials.py run experiments/anytime/trials_small.toml
    python experiments/anytime/trials.py report experiments/anytime/trials_small.toml

Each dataset is split once into training and test rows. All methods search the same families and spaces on the same
inner folds of the training rows; the test rows say how good their incumbents are. A hit is the first trial whose
incumbent, chosen on the inner folds, comes on the test rows within one paired standard error (bootstrap over test
rows) of what a cold TPE run had at its last trial. One parquet shard per dataset, method and seed; what is there is
not run again. ``open_test`` needs ``--open-test`` and leaves a line in ``open_test.log``.

Methods: "cold" is Optuna's TPE with its defaults; "portfolio" the greedy portfolio of the shipped corpus;
"meta" the MetaSampler; "meta, no defaults" the same without the race of the defaults. The last table of the report says
how good the incumbents are on the inner folds, where a hit is not clouded by few test rows.
"""

from __future__ import annotations

import argparse
import json
import platform
import time
import tomllib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import optuna
import pandas as pd

from autometa import Candidate, Dataset, MetaSampler, Selection, __version__, select
from autometa.collection import CollectionEntry, load_collection
from autometa.evaluation import Evaluator
from autometa.exceptions import LeakageError
from autometa.experiment.simulation import bootstrap_interval, greedy_portfolio, normalise
from autometa.metrics import Metric, resolve_metric
from autometa.records import Evaluation
from autometa.selection import shipped_meta_model
from autometa.splitting import make_splits
from autometa.tuning.proposals import suggest, trial_params
from autometa.workers import shared_workers

HERE = Path(__file__).parent
CORPUS = HERE.parent.parent / "autometa" / "pretrained" / "corpus"
N_BOOTSTRAP = 200
INNER_KS = (1, 3, 5, 10, 25)
META = ("meta", "meta, no defaults")


@dataclass(frozen=True)
class Config:
    """What a study file says."""

    collection: str
    datasets: tuple[str, ...]
    max_rows: int
    families: tuple[str, ...]
    n_trials: int
    cold_seeds: tuple[int, ...]
    other_cold_seeds: tuple[int, ...]
    meta_seeds: tuple[int, ...]
    time_limit: float
    shards: Path

    @classmethod
    def read(cls, path: Path) -> Config:
        content = tomllib.loads(path.read_text(encoding="utf-8"))
        content["shards"] = path.parent / content["shards"]
        return cls(**{k: tuple(v) if isinstance(v, list) else v for k, v in content.items()})

    def runs(self) -> Iterator[tuple[str, int]]:
        """Methods with their seeds."""
        yield from (("cold", seed) for seed in (*self.cold_seeds, *self.other_cold_seeds))
        yield ("portfolio", 0)
        yield from ((method, seed) for method in META for seed in self.meta_seeds)

    def shard(self, dataset: str, method: str, seed: int) -> Path:
        return self.shards / f"{dataset}--{method.replace(', ', '-').replace(' ', '-')}--{seed}.parquet"


class Arena:
    """One dataset, split once; measures candidates on the inner folds and on the test rows, each only once."""

    def __init__(self, dataset: Dataset, config: Config) -> None:
        self.config = config
        self.dataset = dataset.subsample(config.max_rows) if dataset.n_rows > config.max_rows else dataset
        self.metric: Metric = resolve_metric(None, dataset.task)
        train, self.test = make_splits(self.dataset, seed=1)[0]
        self.train = self.dataset.take(train)
        self.selection: Selection = select(self.train, families=config.families or None)
        names = {"families": self.selection.families, "metrics": [self.metric], "workers": shared_workers(1)}
        self._inner = Evaluator(self.train, time_limit=config.time_limit, **names)
        self._outer = Evaluator(
            self.dataset, splits=[(train, self.test)], predictions=True, time_limit=2 * config.time_limit, **names
        )
        self._scores: dict[Candidate, Evaluation] = {}
        self._tests: dict[Candidate, Any] = {}

    def score(self, candidate: Candidate) -> Evaluation:
        if candidate not in self._scores:
            self._scores[candidate] = self._inner.evaluate(candidate)
        return self._scores[candidate]

    def test_prediction(self, candidate: Candidate) -> Any:
        """Predictions for the test rows of a model fitted on all training rows; ``None`` where that failed."""
        if candidate not in self._tests:
            found = self._outer.evaluate(candidate).predictions
            self._tests[candidate] = None if found is None else np.asarray(found)[self.test]
        return self._tests[candidate]

    @cached_property
    def portfolio(self) -> list[Candidate]:
        """The greedy portfolio of the shipped corpus for this task, among the families of the study."""
        cells = pd.read_parquet(CORPUS / "evaluations.parquet")
        cells = cells[(cells["task"] == str(self.dataset.task)) & (cells["metric"] == self.metric.name)]
        cells = cells[cells["family"].isin([family.name for family in self.selection.families])]
        first = cells.drop_duplicates("config_id").set_index("config_id")
        table = cells.pivot_table(index="dataset", columns="config_id", values="score", observed=True)
        order = greedy_portfolio(normalise(table.to_numpy(dtype=float)))
        found = [first.loc[table.columns[i]] for i in order]
        return [Candidate(str(row["family"]), json.loads(row["config"])) for row in found]


def run_method(arena: Arena, method: str, seed: int) -> pd.DataFrame:
    """One search: a row per trial, with predictions for the test rows where the incumbent changed."""
    n = arena.config.n_trials
    families = arena.selection.families
    if method in META:
        n_defaults = 2 if method == "meta" else 0
        sampler: Any = MetaSampler(arena.selection, seed=seed, per_second=False, n_defaults=n_defaults)
    else:
        sampler = optuna.samplers.TPESampler(seed=seed)
    study = optuna.create_study(direction="maximize", sampler=sampler)
    if method == "portfolio":
        n = min(n, len(arena.portfolio))
        for candidate in arena.portfolio[:n]:
            study.enqueue_trial(trial_params(candidate))
    rows: list[dict[str, Any]] = []
    best = -np.inf
    for number in range(1, n + 1):
        started = time.process_time()
        trial = study.ask()
        candidate = suggest(trial, families)
        asking = time.process_time() - started
        evaluation = arena.score(candidate)
        score = evaluation.score(arena.metric.name)
        row = {"trial": number, "family": candidate.family, "config": json.dumps(candidate.config), "score": score,
               "status": str(evaluation.status), "seconds": evaluation.seconds, "ask_seconds": asking,
               "source": trial.storage.get_trial(trial._trial_id).system_attrs.get("autometa:source", method),
               "prediction": None}  # fmt: skip
        if evaluation.ok and np.isfinite(score):
            error = evaluation.standard_error(arena.metric.name)
            if np.isfinite(error) and error > 0:
                trial.set_user_attr("standard_error", error)
            study.tell(trial, score)
            prediction = arena.test_prediction(candidate) if score > best else None
            if prediction is not None:
                best, row["prediction"] = score, np.asarray(prediction, dtype=np.float32).ravel()
        else:
            study.tell(trial, state=optuna.trial.TrialState.FAIL)
        rows.append(row)
    return pd.DataFrame(rows)


def run(config: Config, *, open_test: bool = False, load: Callable[[CollectionEntry], Dataset] | None = None) -> None:
    """Run what has no shard yet."""
    collection = load_collection(config.collection)
    check_open_test(config, open_test)
    config.shards.mkdir(parents=True, exist_ok=True)
    entries = [e for e in sorted(collection, key=lambda e: e.wave) if not config.datasets or e.name in config.datasets]
    for entry in entries:
        todo = [(m, s) for m, s in config.runs() if not config.shard(entry.name, m, s).is_file()]
        if not todo:
            continue
        if {entry.name, entry.fingerprint} & shipped_meta_model().trained_on:
            raise LeakageError(f"The meta-model was trained on {entry.name!r}: it must not be tested on it.")
        arena = Arena((load or collection.load)(entry), config)
        started = time.process_time()
        for method, seed in todo:
            frame = run_method(arena, method, seed)
            path = config.shard(entry.name, method, seed)
            frame.to_parquet(path.with_suffix(".part"))
            path.with_suffix(".part").rename(path)
        truth = pd.DataFrame({"y": np.asarray(arena.dataset.y)[arena.test]})
        truth.attrs = {"metric": arena.metric.name, "n_classes": arena.dataset.n_classes, "task": str(entry.task)}
        truth.to_parquet(config.shards / f"{entry.name}--truth.parquet")
        print(f"{entry.name}: {len(todo)} searches, {time.process_time() - started:.0f} s in this process", flush=True)


def check_open_test(config: Config, allowed: bool) -> None:
    """The collection for release candidates is used on purpose only, and each use is on record."""
    if config.collection != "open_test":
        return
    if not allowed:
        raise SystemExit("open_test is for release candidates: pass --open-test to use it. Nothing was run.")
    line = {"when": datetime.now(UTC).isoformat(timespec="seconds"), "version": __version__,
            "python": platform.python_version(), "shards": config.shards.name}  # fmt: skip
    with (HERE / "open_test.log").open("a", encoding="utf-8") as log:
        log.write(json.dumps(line) + "\n")


class Judge:
    """Scores incumbents of one dataset on its test rows, in pairs."""

    def __init__(self, truth: pd.DataFrame) -> None:
        self.y = truth["y"].to_numpy()
        self.metric = resolve_metric(truth.attrs["metric"], truth.attrs["task"])
        self.n_classes = truth.attrs["n_classes"]
        rng = np.random.default_rng(0)
        self.draws = [rng.integers(len(self.y), size=len(self.y)) for _ in range(N_BOOTSTRAP)]
        self._scores: dict[bytes, tuple[float, np.ndarray]] = {}

    def scores(self, prediction: np.ndarray) -> tuple[float, np.ndarray]:
        """The score on the test rows and on each bootstrap draw of them."""
        key = np.asarray(prediction, dtype=np.float32).tobytes()
        if key not in self._scores:
            p = np.asarray(prediction, dtype=float)
            p = p.reshape(len(self.y), self.n_classes) if self.n_classes else p
            drawn = np.array([self.metric.score(self.y[d], p[d]) for d in self.draws])
            self._scores[key] = self.metric.score(self.y, p), drawn
        return self._scores[key]

    def gap(self, prediction: np.ndarray, target: np.ndarray) -> tuple[float, float]:
        """Score less that of the target, and the paired standard error of that."""
        (own, own_drawn), (other, other_drawn) = self.scores(prediction), self.scores(target)
        return own - other, float(np.nanstd(own_drawn - other_drawn))


def hit(judge: Judge, search: pd.DataFrame, target: np.ndarray, censored: int) -> int:
    """First trial whose incumbent comes within one paired standard error of the target; ``censored`` without one."""
    for _, row in search[search["prediction"].notna()].iterrows():
        gap, error = judge.gap(row["prediction"], target)
        if gap >= -error:
            return int(row["trial"])
    return censored


def summarise(config: Config) -> pd.DataFrame:
    """One row per dataset and method: median hit, whether the last incumbent is worse than cold's, machinery."""
    rows = []
    for path in sorted(config.shards.glob("*--truth.parquet")):
        name = path.name.removesuffix("--truth.parquet")
        found = {run: config.shard(name, *run) for run in config.runs()}
        if not all(shard.is_file() for shard in found.values()):
            continue
        searches = {run: pd.read_parquet(shard) for run, shard in found.items()}
        judge = Judge(pd.read_parquet(path))
        final = {run: frame["prediction"].dropna().iloc[-1] for run, frame in searches.items()}
        targets = [final["cold", seed] for seed in config.cold_seeds]
        for method in dict.fromkeys(m for m, _ in searches):
            seeds = config.other_cold_seeds if method == "cold" else [s for m, s in searches if m == method]
            own = [(searches[method, s], final[method, s]) for s in seeds]
            hits = [hit(judge, frame, target, config.n_trials) for frame, _ in own for target in targets]
            gaps = [judge.gap(last, target) for _, last in own for target in targets]
            rows.append({
                "dataset": name, "method": "second cold seed" if method == "cold" else method,
                "hit": float(np.median(hits)), "worse": float(np.mean([g < -e for g, e in gaps])) > 0.5,
                "better": float(np.mean([g > e for g, e in gaps])) > 0.5,
                "ask_ms": 1e3 * float(np.mean([frame["ask_seconds"].mean() for frame, _ in own])),
            })  # fmt: skip
    return pd.DataFrame(rows)


def interval(values: np.ndarray, statistic: Callable[[np.ndarray], float]) -> str:
    """A statistic with its 95 % bootstrap interval over datasets."""
    return "{:.3g} [{:.3g}, {:.3g}]".format(*bootstrap_interval(values, statistic=statistic))


def inner_scores(config: Config) -> pd.DataFrame:
    """Incumbent on the inner folds after k trials, 0 = the median and 1 = the best of all that was measured there."""
    rows = []
    for path in sorted(config.shards.glob("*--truth.parquet")):
        name = path.name.removesuffix("--truth.parquet")
        if not all(config.shard(name, *run).is_file() for run in config.runs()):
            continue
        searches = {run: pd.read_parquet(config.shard(name, *run)) for run in config.runs()}
        scores = pd.concat([frame["score"] for frame in searches.values()]).dropna()
        middle, best = float(scores.median()), float(scores.max())
        for (method, _), frame in searches.items():
            scale = max(best - middle, 1e-12)
            reached = ((frame["score"].cummax().ffill() - middle) / scale).clip(lower=-1.0)
            rows.append({"dataset": name, "method": method, **{k: reached[min(k, len(reached)) - 1] for k in INNER_KS}})
    return pd.DataFrame(rows).groupby(["dataset", "method"], sort=False).mean().reset_index()


def print_inner(frame: pd.DataFrame) -> None:
    """Means over datasets; in brackets the difference to cold with its interval."""
    print("\n| inner folds | " + " | ".join(f"@{k}" for k in INNER_KS) + " |")
    print("|---" * (len(INNER_KS) + 1) + "|")
    tables = {m: part.set_index("dataset")[list(INNER_KS)] for m, part in frame.groupby("method", sort=False)}
    for method, table in tables.items():
        cells = []
        for k in INNER_KS:
            _, low, high = bootstrap_interval((table[k] - tables["cold"][k]).to_numpy(), list(table.index))
            shown = "" if method == "cold" else f" [{low:+.2f}, {high:+.2f}]"
            cells.append(f"{table[k].mean():.2f}{shown}")
        print(f"| {method} | " + " | ".join(cells) + " |")


def report(config: Config) -> None:
    """Print the table."""
    frame = summarise(config)
    if not len(frame):
        raise SystemExit(f"No dataset in {config.shards} is complete yet.")
    print(f"{frame['dataset'].nunique()} datasets, {config.n_trials} trials, {len(config.cold_seeds)} cold seeds\n")
    print("| method | median trials to hit | missed | worse than cold at the end | better | ms to ask |")
    print("|---|---|---|---|---|---|")
    for method, part in frame.groupby("method", sort=False):
        hits = part["hit"].to_numpy()
        missed = f"{np.mean(hits >= config.n_trials):.2f}"
        worse = interval(part["worse"].to_numpy(dtype=float), np.mean)
        print(f"| {method} | {interval(hits, np.median)} | {missed} | {worse} | {part['better'].mean():.2f} "
              f"| {part['ask_ms'].mean():.0f} |")  # fmt: skip
    print()
    print(frame.pivot(index="dataset", columns="method", values="hit").to_string())
    print_inner(inner_scores(config))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])  # type: ignore[union-attr]
    parser.add_argument("action", choices=["run", "report"])
    parser.add_argument("config", type=Path)
    parser.add_argument("--open-test", action="store_true", help="use the collection for release candidates")
    arguments = parser.parse_args()
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    config = Config.read(arguments.config)
    if arguments.action == "run":
        run(config, open_test=arguments.open_test)
    else:
        report(config)


if __name__ == "__main__":
    main()
