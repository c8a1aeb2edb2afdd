"""The unit of parallel work of an experiment: one dataset, several candidates, measured in a worker."""

from __future__ import annotations

import json
import os
import platform
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from autometa.collection import CollectionEntry, load_entry
from autometa.data import Dataset, TaskType
from autometa.evaluation import Evaluator
from autometa.experiment.methods import Method, evaluate_method
from autometa.experiment.study import Measure, config_id
from autometa.family import Candidate, ModelFamily
from autometa.meta_features import VERSION as FEATURES_VERSION
from autometa.meta_features import extract
from autometa.metrics import METRICS
from autometa.records import Evaluation
from autometa.splitting import Split, make_splits
from autometa.versions import RESULT_LIBRARIES, installed_versions
from autometa.workers import end_with_parent, shared_workers


@dataclass(frozen=True)
class Chunk:
    """One unit of parallel work: one dataset, one seed, one number of training rows (0: all), several candidates."""

    entry: CollectionEntry
    candidates: tuple[Candidate, ...]
    seed: int
    measure: Measure
    train_rows: int = 0
    meta_features: bool = False
    keep_predictions: bool = False
    expected_seconds: float = 0.0


@dataclass(frozen=True)
class ChunkResult:
    """What a worker sends back: rows, meta-features and predictions, or why the chunk could not be run."""

    chunk: Chunk
    rows: list[dict[str, Any]] = field(default_factory=list)
    features: dict[str, Any] | None = None
    predictions: dict[str, NDArray[Any]] = field(default_factory=dict)
    error: str = ""


def run_chunk(
    chunk: Chunk,
    families: Mapping[str, ModelFamily],
    folder: str | None = None,
    n_threads: int = 1,
    owner: int | None = None,
) -> ChunkResult:
    """Measure the candidates of one chunk; runs in a worker of joblib and never raises.

    Every candidate is fitted in a child process that can be killed. It stays for the next chunk. ``n_threads`` is how
    many chunks run at once in this process, each of which needs a child of its own. A worker whose parent is the
    process ``owner`` ends with it; joblib's would stay for minutes.
    """
    if owner is not None and owner == os.getppid():
        end_with_parent(owner)
    try:
        whole, part = _load(chunk.entry, chunk.measure.max_rows, chunk.measure.subsample_seed, folder)
        features = _feature_row(chunk.entry, whole) if chunk.meta_features else None
        rows, predictions = [], {}
        with Evaluator(
            part,
            families=tuple(families.values()),
            splits=shortened_splits(part, chunk.seed, chunk.train_rows) if chunk.train_rows else None,
            workers=shared_workers(n_threads),
            time_limit=chunk.measure.time_limit,
            memory_limit_mb=chunk.measure.memory_limit_mb,
            seed=chunk.seed,
            predictions=chunk.keep_predictions,
            staged=chunk.measure.staged,
        ) as evaluator:
            for candidate in chunk.candidates:
                started = time.perf_counter()
                family = families[candidate.family]
                if isinstance(family, Method):
                    evaluation = evaluate_method(family, candidate, part, chunk.seed)
                else:
                    evaluation = evaluator.evaluate(candidate)
                wall = time.perf_counter() - started
                rows.append(_row(chunk, family, evaluation, wall))
                if evaluation.predictions is not None:
                    kind = np.float16 if chunk.entry.task.is_classification else np.float32
                    predictions[config_id(candidate)] = evaluation.predictions.astype(kind)
    except Exception as error:
        return ChunkResult(chunk, error=f"{type(error).__name__}: {error}")
    return ChunkResult(chunk, rows, features, predictions)


@lru_cache(maxsize=2)  # chunks of one dataset often follow each other in the same worker
def _load(entry: CollectionEntry, max_rows: int | None, seed: int, folder: str | None) -> tuple[Dataset, Dataset]:
    whole = load_entry(entry, folder=folder)
    return whole, whole if max_rows is None else whole.subsample(max_rows, seed=seed)


def shortened_splits(dataset: Dataset, seed: int, train_rows: int) -> list[Split]:
    """The splits of the dataset, every training part cut to its first rows in a :func:`nested_order`."""
    return [
        (np.sort(train[nested_order(dataset.y[train], dataset.task, seed)[:train_rows]]), test)
        for train, test in make_splits(dataset, seed)
    ]


def nested_order(y: NDArray[Any], task: TaskType, seed: int) -> NDArray[np.intp]:
    """Positions in a random order of which every beginning has about the class shares (or target deciles) of ``y``.

    Rows of a class come at equal distances, each class's first row at the start, so that a short beginning holds
    every class that it has room for.
    """
    rng = np.random.default_rng(seed)
    strata = y if task.is_classification else np.searchsorted(np.quantile(y, np.linspace(0.1, 0.9, 9)), y)
    shuffled = rng.permutation(len(y))
    by_class = pd.Series(strata[shuffled]).groupby(strata[shuffled])
    place = by_class.cumcount() / by_class.transform("size")
    return np.asarray(shuffled[np.argsort(place.to_numpy(), kind="stable")], dtype=np.intp)


def _feature_row(entry: CollectionEntry, dataset: Dataset) -> dict[str, Any]:
    features = extract(dataset)
    return {
        "fingerprint": entry.fingerprint,
        "dataset": entry.name,
        "names": list(features.values),
        "values": [float(value) for value in features.values.values()],
        "version": FEATURES_VERSION,
        "seconds": features.seconds,
        "group_seconds": json.dumps({name: round(seconds, 4) for name, seconds in features.group_seconds.items()}),
        "machine_seconds": features.machine_seconds,
    }


def _row(chunk: Chunk, family: ModelFamily, evaluation: Evaluation, wall: float) -> dict[str, Any]:
    candidate, entry = evaluation.candidate, chunk.entry
    return {
        "fingerprint": entry.fingerprint, "dataset": entry.name, "group": entry.group, "task": str(entry.task),
        "family": candidate.family, "family_version": family.version,
        "config": candidate.key.split(" ", 1)[1], "config_id": config_id(candidate), "seed": chunk.seed,
        "status": str(evaluation.status), "reason": evaluation.reason,
        **{f"score_{name}": evaluation.scores.get(name) for name in METRICS},
        "fit_seconds": evaluation.fit_seconds, "predict_seconds": evaluation.predict_seconds,
        "peak_memory_mb": evaluation.peak_memory_mb, "n_train_rows": evaluation.n_train_rows,
        "train_rows": chunk.train_rows or None,
        "curve": json.dumps({k: [float(f"{v:.5g}") for v in values] for k, values in evaluation.curve.items()})
        if evaluation.curve else None,
        "wall_seconds": wall, "machine_load": _load_per_core(), "finished": time.time(),
        "versions": _versions(), "machine": _machine(),
    }  # fmt: skip


def _load_per_core() -> float:
    """Running processes per core over the last minute; far above 1, seconds say little. NaN where not known."""
    try:
        return os.getloadavg()[0] / (os.cpu_count() or 1)
    except (AttributeError, OSError):
        return float("nan")


@lru_cache(maxsize=1)
def _versions() -> str:
    """JSON of the versions that a result depends on."""
    return json.dumps({"python": platform.python_version(), **installed_versions(RESULT_LIBRARIES)})


@lru_cache(maxsize=1)
def _machine() -> str:
    """System, processor and number of cores; no host name."""
    model = platform.processor() or platform.machine()
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
        model = next(line.split(":", 1)[1].strip() for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):
        pass
    return f"{platform.system()}, {model}, {os.cpu_count()} cores"
