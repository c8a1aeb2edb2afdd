"""Does a task memory pay? On external meta-benchmarks and on the shipped corpus, whole groups or folds left out.

    python experiments/memory/run.py external FOLDER... [--seeds 1]
    python experiments/memory/run.py stream FOLDER...
    python experiments/memory/run.py corpus
    python experiments/memory/run.py corpus-stream [--corpus FOLDER]

``external`` and ``corpus`` compare four ways to believe, for a parametric meta-model (ridge alone) and for the shipped
one (ridge and forest): without memory, with it, with an untrained one, and with the values shuffled among its keys.
``stream`` trains on three of ten folds, writes the tasks of six more to the memory, one after the other and without a
gradient step, and tests on the tenth. ``corpus-stream`` does so on a corpus: of the groups that are not tested 100
datasets are the stream, the few others train the meta-model and the attention; "the stream alone" is what
``experience=`` of ``select`` reads, an untrained attention over the stream. Figures go to ``report.json`` beside
this file, rows of each part replaced.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")

import numpy as np
import pandas as pd
import torch

from autometa.experiment.simulation import bootstrap_interval, incumbent_curve
from autometa.meta_dataset import MetaDataset
from autometa.meta_model import Belief, MetaModel
from autometa.meta_model.memory import TaskMemory
from autometa.meta_model.own_runs import empty_memory, write_tasks
from autometa.meta_training import TrainingOptions, train_meta_model
from autometa.meta_training.memory import MemoryOptions, train_memory

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE.parent / "meta_model"))
from external import load, normalise  # noqa: E402
from own_corpus import CORPUS, World, load_worlds  # noqa: E402

LEARNERS = {"ridge": ("ridge",), "ridge+forest": ("ridge", "forest")}
KS = (1, 3, 5, 10)
N_STREAM = 100
UNTRAINED = MemoryOptions(n_episodes=0)
FORGETFUL = TrainingOptions(memory=None)

Row = dict[str, Any]


def normalised_error(belief: Belief, truth: np.ndarray) -> float:
    """Mean squared error of the forecast in normalised units, on what is known."""
    return float(np.nanmean((belief.normalised_mean - truth) ** 2))


def try_candidates(belief: Belief, raw: np.ndarray, error: np.ndarray | None = None) -> list[int]:
    """The order in which a belief tries candidates whose raw scores it sees one by one."""
    order: list[int] = []
    for _ in range(min(max(KS), len(raw))):
        index = belief.next()
        order.append(index)
        if np.isfinite(raw[index]):
            noise = None if error is None else float(error[index]) or None
            belief = belief.observe(index, float(raw[index]), standard_error=noise)
        else:
            belief = belief.observe_failure(index)
    return order


def memories(train: MetaDataset, model: MetaModel, seed: int) -> dict[str, TaskMemory | None]:
    trained = train_memory(train, model, seed=seed)
    return {
        "no memory": None, "memory": trained, "untrained memory": train_memory(train, model, options=UNTRAINED),
        "shuffled memory": trained.shuffled(seed),
    }  # fmt: skip


def bench_rows(
    data: MetaDataset, model: MetaModel, test: list[str], *, ways: dict[str, TaskMemory | None], tags: Row
) -> Iterator[Row]:
    """One row per test dataset and way to believe, on a complete external bench."""
    raw = data.score_table()
    scores = normalise(raw)
    candidates = [data.candidates[key] for key in raw.columns]
    for name in test:
        for way, memory in ways.items():
            belief = model.with_memory(memory).belief(data.meta_features.loc[name], candidates)
            truth = scores.loc[name].to_numpy()
            path = np.maximum.accumulate(truth[try_candidates(belief, raw.loc[name].to_numpy())])
            yield {**tags, "dataset": name, "way": way, "error": normalised_error(belief, truth), "path": path}


def external(folder: Path, seeds: int) -> Iterator[Row]:
    data, folds = load(folder)
    for fold in sorted(folds.unique()):
        train = data.subset([d for d in data.datasets if folds[d] != fold])
        test = [d for d in data.datasets if folds[d] == fold]
        for base, learners in LEARNERS.items():
            for seed in range(seeds):
                model = train_meta_model(train, seed=seed, options=TrainingOptions(learners=learners, memory=None))
                tags = {"base": base, "group": str(fold), "seed": seed}
                yield from bench_rows(data, model, test, ways=memories(train, model, seed), tags=tags)
        print(f"{folder.name}: fold {fold} done", flush=True)


def stream(folder: Path, seeds: int) -> Iterator[Row]:
    data, folds = load(folder)
    names = sorted(folds.unique())
    for f, fold in enumerate(names):
        known = {names[(f + i) % len(names)] for i in (1, 2, 3)}
        start = data.subset([d for d in data.datasets if folds[d] in known])
        new = [d for d in data.datasets if folds[d] not in known and folds[d] != fold][:100]
        test = [d for d in data.datasets if folds[d] == fold]
        model = train_meta_model(start, options=FORGETFUL)
        memory = train_memory(start, model)
        later = write_tasks(memory, model, data.subset(new))
        ways = {"no memory": None, "memory": memory, "memory after the stream": later}
        tags = {"base": "ridge+forest", "group": str(fold), "seed": 0}
        yield from bench_rows(data, model, test, ways=ways, tags=tags)
        both = data.subset([*start.datasets, *new])
        model = train_meta_model(both, options=FORGETFUL)
        for row in bench_rows(data, model, test, ways={"no memory": None}, tags=tags):
            yield {**row, "way": "retrained on everything"}
        print(f"{folder.name}: stream of {len(new)} into {len(start.datasets)}, fold {fold} done", flush=True)


def corpus(seeds: int) -> Iterator[Row]:
    """Chosen on one half of the validation splits, scored on the other; flat datasets left out."""
    for half in (0, 1):
        meta, worlds = load_worlds(CORPUS, half)
        for seed in range(seeds):
            for train, test in meta.split_by_group(5, seed=seed):
                for base, learners in LEARNERS.items():
                    model = train_meta_model(train, seed=seed, options=TrainingOptions(learners=learners, memory=None))
                    ways = memories(train, model, seed)
                    for world in worlds:
                        for row in world_rows(meta, model, test, world=world, ways=ways):
                            yield row | {"base": base, "seed": seed}
        print(f"corpus: half {half} done", flush=True)


def corpus_stream(folder: Path) -> Iterator[Row]:
    """100 tasks written without a gradient step, full trust; six folds of groups, each half of the splits chooses."""
    for half in (0, 1):
        meta, worlds = load_worlds(folder, half)
        rows = meta.evaluations[meta.evaluations["metric"].isin([world.metric for world in worlds])]
        meta = MetaDataset(rows, meta.meta_features, meta.groups)
        for fold, (rest, test) in enumerate(meta.split_by_group(6, seed=half)):
            start, new = two_parts(rest, seed=10 * half + fold)
            model = train_meta_model(start, options=TrainingOptions(n_rehearsals=0, memory=None))
            memory = train_memory(start, model)
            later = write_tasks(memory, model, new)
            ways = {
                "no memory": None, "memory": memory, "after the stream": later, "stream shuffled": later.shuffled(0),
                "the stream alone": write_tasks(empty_memory(model), model, new),
            }  # fmt: skip
            for world in worlds:
                for row in world_rows(meta, model, test, world=world, ways=ways):
                    yield row | {"base": "ridge+forest", "seed": half}
            sizes = f"{len(start.datasets)} + {len(new.datasets)} datasets"
            print(f"half {half}, fold {fold}: {sizes}, {time.process_time():.0f} CPU s", flush=True)


def world_rows(
    meta: MetaDataset, model: MetaModel, test: MetaDataset, *, world: World, ways: dict[str, TaskMemory | None]
) -> Iterator[Row]:
    """One row per test dataset of a task that is not flat, and way to believe."""
    for name in (d for d in test.datasets if d in world.choose.index):
        case = world.case(name)
        if case.flat:
            continue
        features = meta.meta_features.loc[name]
        for way, memory in ways.items():
            belief = model.with_memory(memory).belief(features, case.candidates, metric=world.metric)
            path = incumbent_curve(try_candidates(belief, case.raw, case.error), case.raw, case.value)
            yield {
                "group": str(meta.groups[name]), "dataset": name, "way": way,
                "error": normalised_error(belief, case.value),
                "path": path,
            }  # fmt: skip


def two_parts(data: MetaDataset, seed: int) -> tuple[MetaDataset, MetaDataset]:
    """Whole groups for the start, and about 100 datasets of other groups for the stream."""
    groups = np.random.default_rng(seed).permutation(data.groups.unique())
    counts = data.groups.value_counts().reindex(groups).cumsum()
    late = set(counts.index[counts <= N_STREAM])
    new = [d for d in data.datasets if data.groups[d] in late]
    return data.subset([d for d in data.datasets if data.groups[d] not in late]), data.subset(new)


def summarise(rows: list[Row], reference: str) -> dict[str, Any]:
    """Means over datasets, and differences to a reference way with 95 % bootstrap intervals over groups."""
    frame = pd.DataFrame(rows)
    for k in KS:
        frame[f"@{k}"] = [path[k - 1] for path in frame["path"]]
    frame[f"mean of 1..{max(KS)}"] = [path.mean() for path in frame["path"]]
    columns = ["error", *(c for c in frame.columns if c.startswith(("@", "mean of")))]
    cells = frame.groupby(["base", "way", "dataset", "group"])[columns].mean().reset_index()
    report: dict[str, Any] = {"datasets": int(cells["dataset"].nunique())}
    for (base, way), part in cells.groupby(["base", "way"], sort=False):
        part = part.set_index("dataset")
        block = {c: {"value": round(float(part[c].mean()), 4)} for c in columns}
        other = cells[(cells["base"] == base) & (cells["way"] == reference)].set_index("dataset")
        if way != reference and len(other):
            for c in columns:
                difference = part[c] - other[c].reindex(part.index)
                block[c] |= {
                    "difference": round(float(difference.mean()), 4),
                    "interval": bootstrap(difference.to_numpy(), part.index.to_numpy()),
                    "interval_by_group": bootstrap(difference.to_numpy(), part["group"].to_numpy()),
                }
        report[f"{base}: {way}"] = block
    return report


def bootstrap(values: np.ndarray, cluster: np.ndarray) -> list[float]:
    """95 % interval of the mean when whole clusters are drawn again."""
    return [round(v, 4) for v in bootstrap_interval(values, cluster, n_samples=4_000)[1:]]


def show(name: str, report: dict[str, Any]) -> None:
    print(f"\n{name}: {report['datasets']} datasets")
    for way, block in report.items():
        if isinstance(block, dict):
            text = [
                f"{c} {v['value']:.3f}" + (f" ({v['difference']:+.3f} {v['interval']})" if "difference" in v else "")
                for c, v in block.items()
            ]
            print(f"  {way:34s}" + "  ".join(text), flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("part", choices=["external", "stream", "corpus", "corpus-stream"])
    parser.add_argument("folders", nargs="*", type=Path)
    parser.add_argument("--corpus", type=Path, default=CORPUS)
    parser.add_argument("--seeds", type=int, default=1)
    parser.add_argument("--report", type=Path, default=HERE / "report.json")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    runs: dict[str, Callable[[], Iterator[Row]]] = {}
    if arguments.part == "corpus":
        runs["corpus"] = lambda: corpus(arguments.seeds)
    if arguments.part == "corpus-stream":
        runs["corpus-stream"] = lambda: corpus_stream(arguments.corpus)
    for folder in arguments.folders:
        part = external if arguments.part == "external" else stream
        runs[f"{arguments.part} {folder.resolve().name}"] = lambda part=part, folder=folder: part(
            folder, arguments.seeds
        )
    for name, rows in runs.items():
        started = time.process_time()
        found = list(rows())
        result = summarise(found, "memory" if arguments.part == "stream" else "no memory")
        if arguments.part == "corpus-stream":
            against = summarise(found, "memory")
            result["against the memory before the stream"] = against["ridge+forest: after the stream"]
        result["cpu_seconds"] = round(time.process_time() - started)
        report = json.loads(arguments.report.read_text()) if arguments.report.exists() else {}
        report[name] = result
        arguments.report.write_text(json.dumps(report, indent=1) + "\n", "utf-8")
        show(name, result)


if __name__ == "__main__":
    main()
