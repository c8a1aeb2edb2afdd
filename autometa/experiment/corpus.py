"""From the raw rows of a study to the compact corpus that ships: four small files and their card."""

from __future__ import annotations

import datetime
import json
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq

from autometa.collection import load_collection
from autometa.data import TaskType
from autometa.exceptions import LeakageError
from autometa.experiment.methods import METHODS
from autometa.experiment.shards import last_rows, read_shards, write_atomically
from autometa.experiment.study import FEATURE_SCHEMA, Plan, Study, config_id, make_plan, read_rows
from autometa.meta_dataset import row_features
from autometa.meta_features import VERSION as FEATURES_VERSION
from autometa.metrics import METRICS, task_metrics
from autometa.records import Status

_DIGITS = 5
"""Significant digits of a stored score; its noise is a hundred times larger."""


def collect(study: Study, target: str | Path, *, min_coverage: float = 0.0) -> dict[str, Any]:
    """Write the rows of a study to ``target`` as a corpus and answer its card.

    - ``evaluations.parquet``: one row per dataset, candidate, seed and metric: dataset, group, task, family, config
      (JSON), config_id, metric, score (mean), standard_error, scores (one per split), seconds (of one fit),
      predict_seconds, peak_memory_mb, n_train_rows, status. A cell that did not end well is one row without a score;
      its seconds are those of the whole cell, a lower bound.
    - ``meta_features.parquet``: dataset and one column per meta-feature.
    - ``groups.parquet``, ``datasets.parquet``: dataset and group; everything the collection says of a dataset.
    - ``card.json``: what, how, when, versions, gaps, and the ``fingerprints`` and ``groups`` not to test on.

    A study with a ``fidelity`` holds no full measurements: its rows become one file beside the corpus, see
    :func:`collect_fidelity`.

    Parameters
    ----------
    study : Study
    target : path
        Folder; files of an earlier collection are replaced.
    min_coverage : float, default=0.0
        Leave out datasets with a smaller share of the cells of the best covered dataset of their task: 0.95 keeps a
        wave that is still running out of the corpus.

    Raises
    ------
    LeakageError
        The study holds a dataset of ``open_test``.
    ValueError
        Nothing was measured yet.
    """
    if study.fidelity:
        return collect_fidelity(study, target)
    target, cells = Path(target), _finished_cells(study)
    cells = cells[cells["train_rows"].isna()]
    features = _meta_features(study)
    if len(features):  # a dataset whose first chunk is still running has none yet
        cells = cells[cells["dataset"].isin(features["dataset"])]
    cells = cells[_coverage(study, cells) >= min_coverage]
    evaluations = _long(cells, study.measure.time_limit)
    measured = set(cells["dataset"])
    datasets = pd.DataFrame([asdict(entry) for entry in study.collection if entry.name in measured])
    datasets["task"] = datasets["task"].astype(str)
    card = _card(study, cells, features) | {"fidelities": _read_card(target).get("fidelities", {})}
    write_table(target / "evaluations.parquet", evaluations)
    write_table(target / "meta_features.parquet", pa.Table.from_pandas(features, preserve_index=False))
    write_table(target / "datasets.parquet", pa.Table.from_pandas(datasets, preserve_index=False))
    groups = datasets.rename(columns={"name": "dataset"})[["dataset", "group"]]
    write_table(target / "groups.parquet", pa.Table.from_pandas(groups, preserve_index=False))
    write_atomically(target / "card.json", text_writer(json.dumps(card, indent=1)))
    return {key: value for key, value in card.items() if key not in {"fingerprints", "groups"}}


def collect_fidelity(study: Study, target: str | Path) -> dict[str, Any]:
    """Write the rows of a study with a ``fidelity`` to ``<fidelity>.parquet`` in the folder of a corpus.

    The columns are those of ``evaluations.parquet`` and ``train_rows`` (the training rows that were asked for, null
    for all), ``table`` (its name in the corpus) and ``n_rows`` (the rows that it was cut to). A table measured at
    another cap than the corpus gets a name of its own, ``name@max_rows``, so that its scores are never averaged with
    those of the corpus; its group stays the same.
    The card of the corpus gets a summary under ``fidelities``.

    Parameters
    ----------
    study : Study
    target : path

    Raises
    ------
    LeakageError
        The study holds a dataset of ``open_test``.
    ValueError
        Nothing was measured yet, or the study has no ``fidelity``.
    """
    if not study.fidelity:
        raise ValueError(f"The study {study.name!r} must say fidelity = <name of the file>. Got none.")
    target, cells = Path(target), _finished_cells(study)
    card = _read_card(target)
    cap = study.measure.max_rows
    cells["table"], cells["n_rows"] = cells["dataset"], cells["dataset"].map(_measured_rows(study))
    if cap != card.get("measure", {}).get("max_rows", cap):
        cells["dataset"] = cells["dataset"] + f"@{cap}"
    evaluations = _long(cells, study.measure.time_limit, more=("train_rows", "table", "n_rows"))
    write_table(target / f"{study.fidelity}.parquet", evaluations)
    summary = _summary(study, cells) | {"missing_by_design": _too_small(study)}
    card["fidelities"] = {**card.get("fidelities", {}), study.fidelity: summary}
    write_atomically(target / "card.json", text_writer(json.dumps(card, indent=1)))
    return {key: value for key, value in summary.items() if key not in {"fingerprints", "groups"}}


def _read_card(folder: Path) -> dict[str, Any]:
    path = folder / "card.json"
    return dict(json.loads(path.read_text(encoding="utf-8"))) if path.is_file() else {}


def _too_small(study: Study) -> dict[str, int]:
    """Number of datasets without so many training rows in a fold, by number of training rows."""
    measure = study.measure
    return {
        str(n): sum(not measure.has_rows(entry.n_rows, n) for entry in study.collection)
        for n in measure.train_rows if n
    }  # fmt: skip


def _finished_cells(study: Study) -> pd.DataFrame:
    check_no_open_test(study)
    cells = _cells(study)
    if cells.empty:
        raise ValueError(f"The study {study.name!r} has no finished cell yet. Run it first.")
    return cells


def check_no_open_test(study: Study) -> None:
    """Raise ``LeakageError`` where the study holds a dataset of ``open_test`` or a relative of one."""
    if study.purpose == "test":
        raise LeakageError(f"The study {study.name!r} is a test study: nothing may be learned from its rows.")
    test = load_collection("open_test")
    leaks = [e.name for e in study.collection if e.fingerprint in test.fingerprints or e.group in test.groups]
    if leaks:
        raise LeakageError(f"The study {study.name!r} holds datasets of open_test: {', '.join(leaks[:8])}.")


def _cells(study: Study) -> pd.DataFrame:
    """One row per finished cell of the study's datasets, in their order; of each family only its newest version."""
    frame: pd.DataFrame = read_rows(study).to_pandas()
    order = {entry.fingerprint: i for i, entry in enumerate(study.collection)}
    frame = frame.loc[frame["fingerprint"].isin(list(order))]
    frame = frame.loc[~frame["family"].isin([method.name for method in METHODS.values()])]
    frame = frame.loc[frame["config_id"].isin(_valid(study, frame))]
    newest = frame.groupby("family")["family_version"].transform("max")
    frame = frame.loc[frame["family_version"] == newest]
    position = frame["fingerprint"].map(order)
    order_by = ["position", "family", "config_id", "seed", "train_rows"]
    return frame.assign(position=position).sort_values(order_by, kind="stable")


def _coverage(study: Study, cells: pd.DataFrame) -> pd.Series:
    """Per cell: the share of cells that its dataset has of the best covered dataset of its task.

    Extra candidates do not count: they are missing by design on most datasets.
    """
    core = ~cells["config_id"].isin([config_id(candidate) for candidate in study.extra])
    n_cells = core.groupby(cells["dataset"]).transform("sum")
    return n_cells / n_cells.groupby(cells["task"]).transform("max")


def _valid(study: Study, frame: pd.DataFrame) -> list[str]:
    """Ids of the configurations that lie in the present search space of their family; spaces change over releases."""
    spaces = {family.name: family.search_space for family in study.families}
    found = []
    for one in frame.drop_duplicates("config_id").itertuples():
        try:
            spaces[str(one.family)].validate(json.loads(str(one.config)))
        except (KeyError, ValueError):
            continue
        found.append(str(one.config_id))
    return found


def _long(cells: pd.DataFrame, time_limit: float | None, *, more: Sequence[str] = ()) -> pa.Table:
    """One row per cell and metric, with these columns as well."""
    stopped = cells["status"] == Status.TIMEOUT
    cells["wall_seconds"] = cells["wall_seconds"].mask(stopped, time_limit)  # without the wait for a new worker
    parts = []
    for task in TaskType:
        ok = cells[(cells["task"] == str(task)) & (cells["status"] == Status.OK)]
        for metric in task_metrics(task):
            scores = ok[f"score_{metric.name}"]
            known = scores.map(lambda values: values is not None and len(values) > 0).astype(bool)
            parts.append(_metric_rows(ok[known], metric.name, scores[known]))
    bad = cells[cells["status"] != Status.OK]
    default = {str(task): task_metrics(task)[0].name for task in TaskType}
    parts.append(_metric_rows(bad, bad["task"].map(default), pd.Series([[] for _ in range(len(bad))], dtype=object)))
    frame = pd.concat([part for part in parts if len(part)])
    order = {name: i for i, name in enumerate(METRICS)}
    frame["rank"] = frame["metric"].map(order)
    frame = frame.join(cells[list(more)])  # by cell
    frame = frame.sort_values(["rank", "position", "family", "config_id", "seed"], kind="stable")
    return _as_table(frame.drop(columns=["rank", "position"]))


def _metric_rows(cells: pd.DataFrame, metric: Any, scores: pd.Series) -> pd.DataFrame:
    values = [_round(np.asarray(one, dtype=float)) for one in scores]
    fit, predict = (cells[name].map(_mean) for name in ("fit_seconds", "predict_seconds"))
    return pd.DataFrame(
        {
            **{k: cells[k] for k in ("position", "dataset", "group", "task", "family", "config", "config_id", "seed")},
            "metric": metric,
            "score": [_mean(one) for one in values],
            "standard_error": [_standard_error(one) for one in values],
            "scores": values,
            "seconds": fit.where(cells["status"] == Status.OK, cells["wall_seconds"]),
            "predict_seconds": predict,
            "peak_memory_mb": cells["peak_memory_mb"],
            "n_train_rows": cells["n_train_rows"],
            "status": cells["status"],
        }
    )


def _mean(values: Any) -> float:
    known = [v for v in (values if values is not None else ()) if np.isfinite(v)]
    return float(np.mean(known)) if known else float("nan")


def _standard_error(values: Any) -> float:
    known = values[np.isfinite(values)]
    return float(known.std(ddof=1) / np.sqrt(len(known))) if len(known) > 1 else float("nan")


def _round(values: Any) -> Any:
    """``_DIGITS`` significant digits; fewer distinct values compress better."""
    with np.errstate(divide="ignore", invalid="ignore"):
        scale = 10.0 ** (_DIGITS - 1 - np.floor(np.log10(np.abs(values))))
        rounded = np.round(values * scale) / scale
    return np.where(np.isfinite(rounded), rounded, values)


def _as_table(frame: pd.DataFrame) -> pa.Table:
    texts = ("dataset", "table", "group", "task", "family", "config", "config_id", "metric", "status")
    fields = [pa.field(name, pa.dictionary(pa.int32(), pa.string())) for name in texts]
    fields += [pa.field("seed", pa.int16()), pa.field("scores", pa.list_(pa.float32()))]
    fields += [pa.field(name, pa.int32()) for name in ("n_train_rows", "train_rows", "n_rows")]
    numbers = ("score", "standard_error", "seconds", "predict_seconds", "peak_memory_mb")
    fields += [pa.field(name, pa.float32()) for name in numbers]
    by_name = {one.name: one for one in fields}
    for name in ("seconds", "predict_seconds", "peak_memory_mb"):
        frame[name] = _round(frame[name].to_numpy(dtype=float)).round(4)
    return pa.Table.from_pandas(
        frame, schema=pa.schema([by_name[name] for name in frame.columns]), preserve_index=False
    )


def _measured_rows(study: Study) -> dict[str, int]:
    """Rows of each dataset that the study measures."""
    return {entry.name: study.measure.rows_of(entry.n_rows) for entry in study.collection}


def _meta_features(study: Study) -> pd.DataFrame:
    """One row per dataset, one column per meta-feature of the present version.

    They are those of the whole table, but for the number of rows and what follows from it: a corpus says what to expect
    with as many rows as it has measured.
    """
    table = read_shards(study.shards, "features", FEATURE_SCHEMA)
    rows = last_rows(table, ["fingerprint", "version"]).to_pylist()
    wanted = study.collection.fingerprints
    records = [
        {"dataset": row["dataset"], **dict(zip(row["names"], row["values"], strict=True))}
        | {"machine_seconds": row["machine_seconds"]}  # no feature: the speed that seconds were measured at
        for row in rows
        if row["fingerprint"] in wanted and row["version"] == FEATURES_VERSION
    ]
    features = pd.DataFrame(records)
    if "log_rows" in features:
        powers = np.minimum(0.0, np.log10(features["dataset"].map(_measured_rows(study))) - features["log_rows"])
        features = features.assign(**row_features(features, powers))
    return features


def _card(study: Study, cells: pd.DataFrame, features: pd.DataFrame) -> dict[str, Any]:
    return {
        "format": 1,
        **_summary(study, cells),
        "meta_features_version": FEATURES_VERSION,
        "n_meta_features": max(0, features.shape[1] - 2),
        "licence": "CC0-1.0 for the numbers; the tables themselves are not part of this and keep their licences",
        "gaps": _gaps(study, make_plan(study)),
    }


def _summary(study: Study, cells: pd.DataFrame) -> dict[str, Any]:
    """What was measured, how, when and with what."""
    measured = [entry for entry in study.collection if entry.fingerprint in set(cells["fingerprint"])]
    dates = [datetime.datetime.fromtimestamp(t, datetime.UTC).date().isoformat() for t in cells["finished"]]
    return {
        "name": study.name,
        "collection": study.collection.name,
        "measure": asdict(study.measure),
        "n_datasets": len(measured),
        "n_groups": len({entry.group for entry in measured}),
        "n_candidates": int(cells["config_id"].nunique()),
        "candidates_by_family": {k: int(v) for k, v in cells.groupby("family")["config_id"].nunique().items()},
        "family_versions": {k: int(v) for k, v in cells.groupby("family")["family_version"].max().items()},
        "status": dict(Counter(cells["status"])),
        "core_hours": round(float(cells["wall_seconds"].sum()) / 3600, 3),
        "from": min(dates),
        "to": max(dates),
        "versions": [json.loads(text) for text in sorted(cells["versions"].dropna().unique())],
        "machines": sorted(cells["machine"].dropna().unique()),
        "fingerprints": sorted(entry.fingerprint for entry in measured),
        "groups": sorted({entry.group for entry in measured}),
    }


def _gaps(study: Study, plan: Plan) -> dict[str, Any]:
    """What is missing by design and what is not measured yet."""
    names = [entry.name for entry in study.collection]
    n_extra_datasets = round(study.extra_share * len(study.collection))
    return {
        "open_cells": int(plan.open.sum()),
        "datasets_without_a_row": [names[i] for i in np.flatnonzero(~plan.done.any(axis=(1, 2, 3)))],
        "missing_by_design": f"{len(study.extra)} extra candidates are run on the first {n_extra_datasets} of "
        f"{len(study.collection)} datasets, a seeded draw stratified by task and source"
        if study.extra and study.extra_share < 1
        else "nothing",
    }


def write_table(path: Path, table: pa.Table) -> None:
    """One Parquet file, there as a whole or not at all."""
    write_atomically(path, lambda temporary: pq.write_table(table, temporary, compression="zstd", compression_level=12))


def text_writer(text: str) -> Callable[[Path], None]:
    """What :func:`write_atomically` calls for a text."""

    def write(path: Path) -> None:
        path.write_text(text, encoding="utf-8")

    return write
