"""A study: one TOML file that says collection x candidates x seeds, and the plan of its cells."""

from __future__ import annotations

import hashlib
import itertools
import math
import tomllib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
from numpy.typing import NDArray

from autometa.collection import Collection, load_collection
from autometa.experiment.methods import METHODS, Method, method_candidate
from autometa.experiment.shards import last_rows, read_shards
from autometa.families import default_families
from autometa.family import Candidate, ModelFamily
from autometa.metrics import METRICS
from autometa.splitting import folds_for

KEYS = ("fingerprint", "config_id", "family_version", "seed", "train_rows")
"""What makes a cell; ``train_rows`` is null where models were fitted on all training rows."""

_LIST = pa.list_(pa.float32())
ROW_SCHEMA = pa.schema(
    [
        *((name, pa.string()) for name in ("fingerprint", "dataset", "group", "task", "family")),
        ("family_version", pa.int16()),
        ("config", pa.string()),
        ("config_id", pa.string()),
        ("seed", pa.int32()),
        ("status", pa.string()),
        ("reason", pa.string()),
        *((f"score_{name}", _LIST) for name in METRICS),
        ("fit_seconds", _LIST),
        ("predict_seconds", _LIST),
        ("peak_memory_mb", pa.float32()),
        ("n_train_rows", pa.int32()),
        ("train_rows", pa.int32()),
        ("curve", pa.string()),
        ("wall_seconds", pa.float32()),
        ("machine_load", pa.float32()),
        ("finished", pa.float64()),
        ("versions", pa.string()),
        ("machine", pa.string()),
    ]
)
"""One row per cell; scores have one value per split, higher = better."""

FEATURE_SCHEMA = pa.schema(
    [
        ("fingerprint", pa.string()),
        ("dataset", pa.string()),
        ("names", pa.list_(pa.string())),
        ("values", pa.list_(pa.float64())),
        ("version", pa.int16()),
        ("seconds", pa.float32()),
        ("group_seconds", pa.string()),
        ("machine_seconds", pa.float32()),
    ]
)


@dataclass(frozen=True)
class Measure:
    """How a cell is measured. A folder of shards holds rows of one :attr:`conditions` only.

    Parameters
    ----------
    max_rows : int or None
        Larger tables are subsampled (stratified) to so many rows.
    subsample_seed : int
    time_limit : float or None
        Seconds a cell may take; longer ones are stopped and stored as time-outs.
    memory_limit_mb : float or None
    train_rows : tuple of int
        Every cell is measured once per size: 0 trains on all training rows of a fold, n on the first n of a seeded,
        stratified order of them. Test rows are the same for all sizes. Where a fold has fewer than n training rows
        the cell is not planned: missing by design.
    staged : bool
        Also keep the scores of boosting and nets at a few earlier stages of each fit, in the column ``curve``.
    """

    max_rows: int | None = 2_000
    subsample_seed: int = 0
    time_limit: float | None = 10.0
    memory_limit_mb: float | None = None
    train_rows: tuple[int, ...] = (0,)
    staged: bool = False

    def __post_init__(self) -> None:
        object.__setattr__(self, "train_rows", tuple(self.train_rows))
        if not self.train_rows or any(not isinstance(n, int) or 0 < n < 2 or n < 0 for n in self.train_rows):
            raise ValueError(f"train_rows must be a list of 0 (all rows) or at least 2. Got {list(self.train_rows)}.")

    @property
    def conditions(self) -> dict[str, Any]:
        """What decides about a score and is not part of a cell's key."""
        names = ("max_rows", "subsample_seed", "time_limit", "memory_limit_mb")
        return {name: getattr(self, name) for name in names}

    def rows_of(self, n_rows: int) -> int:
        """Rows that are measured of a table of so many."""
        return n_rows if self.max_rows is None else min(n_rows, self.max_rows)

    def has_rows(self, n_rows: int, train_rows: int) -> bool:
        """Whether every fold of a table of so many rows has ``train_rows`` training rows."""
        n_rows = self.rows_of(n_rows)
        return train_rows <= n_rows - math.ceil(n_rows / folds_for(n_rows)[0])


@dataclass(frozen=True)
class RunOptions:
    """How the work is cut; none of it changes a result.

    Parameters
    ----------
    chunk_size : int
        Candidates per unit of parallel work.
    wave_size : int
        Datasets per wave; the waves run one after the other in the order of the collection.
    keep_predictions : bool
        Keep out-of-fold predictions, one file per chunk, in ``cache``.
    cache : Path or None
        ``None``: ``predictions`` in the folder of the study.
    shards : Path or None
        Where the rows go; ``None``: ``shards`` in the folder of the study.
    meta_features : bool
        Also compute the meta-features of each dataset, once, on all its rows.
    """

    chunk_size: int = 16
    wave_size: int = 60
    keep_predictions: bool = False
    cache: Path | None = None
    shards: Path | None = None
    meta_features: bool = True


@dataclass(frozen=True)
class Study:
    """What one TOML file asks for.

    Parameters
    ----------
    name : str
    folder : Path
        Where the file lies; rows go to ``shards`` in it.
    collection : Collection
    families : tuple of ModelFamily
    candidates : tuple of Candidate
        Run on every dataset whose task their family can do; methods among them.
    extra : tuple of Candidate
        Run on the first ``extra_share`` of the collection only, after all others: missing by design.
    extra_share : float
    seeds : tuple of int
    measure : Measure
    run : RunOptions
    purpose : {"train", "dev", "test"}
        A "test" study refuses datasets that the meta-model was trained on.
    trained_on : Path or None
        JSON file with the ``fingerprints`` and ``groups`` a meta-model was trained on.
    fidelity : str
        Name of the file that ``collect`` writes the rows to where they are no full measurements: ``"small_rows"`` for
        ``small_rows.parquet``. Empty: the evaluations of the corpus.
    """

    name: str
    folder: Path
    collection: Collection
    families: tuple[ModelFamily, ...]
    candidates: tuple[Candidate, ...]
    extra: tuple[Candidate, ...] = ()
    extra_share: float = 1.0
    seeds: tuple[int, ...] = (0,)
    measure: Measure = field(default_factory=Measure)
    run: RunOptions = field(default_factory=RunOptions)
    purpose: str = "train"
    trained_on: Path | None = None
    fidelity: str = ""

    @property
    def shards(self) -> Path:
        """Folder of the raw rows."""
        return self.run.shards or self.folder / "shards"


def load_study(config: str | Path, *, families: Sequence[ModelFamily] | None = None) -> Study:
    """Read a study from its TOML file.

    Parameters
    ----------
    config : path
    families : sequence of ModelFamily or None
        Families that the pools may name; ``None``: the shipped ones.

    Raises
    ------
    ValueError
        An unknown key, family or purpose.
    FamilyUnavailable
        A family's package is not installed.
    """
    path = Path(config).resolve()
    content = tomllib.loads(path.read_text(encoding="utf-8"))
    known = {"name", "purpose", "collection", "n_datasets", "min_rows", "smallest_first", "seeds", "pool_seed", "pool",
             "extra", "candidate", "method", "measure", "run", "trained_on", "fidelity"}  # fmt: skip
    if unknown := sorted(set(content) - known):
        raise ValueError(f"A study may hold the keys {', '.join(sorted(known))}. Got {', '.join(unknown)} in {path}.")
    if (purpose := content.get("purpose", "train")) not in {"train", "dev", "test"}:
        raise ValueError(f"The purpose of a study must be train, dev or test. Got {purpose!r} instead.")
    by_name = {family.name: family for family in (default_families() if families is None else families)}
    extra = dict(content.get("extra", {}))
    share, seed = float(extra.pop("share", 1.0)), int(content.get("pool_seed", 0))
    grids = extra.pop("grid", ())
    candidates = dict.fromkeys(_pool(content.get("pool", {}), by_name, seed))
    candidates |= dict.fromkeys(Candidate(row["family"], row["config"]) for row in content.get("candidate", ()))
    candidates |= dict.fromkeys(method_candidate(row) for row in content.get("method", ()))
    by_name |= {method.name: method for method in METHODS.values()}
    more = dict.fromkeys([*_pool(extra, by_name, seed), *(c for grid in grids for c in _grid(grid, by_name, seed))])
    more = {candidate: None for candidate in more if candidate not in candidates}
    used = {candidate.family for candidate in (*candidates, *more)}
    for name in used:
        _family(by_name, name).check_available()
    measure = Measure(**content.get("measure", {}))
    if measure.train_rows != (0,) and any(isinstance(_family(by_name, name), Method) for name in used):
        raise ValueError("A study with a [[method]] must measure on all training rows. Leave out train_rows.")
    options = dict(content.get("run", {}))
    for name in {"cache", "shards"} & set(options):
        options[name] = path.parent / options[name]
    return Study(
        name=content.get("name", path.parent.name), folder=path.parent,
        collection=_part(_collection(content["collection"], path.parent), content),
        families=tuple(by_name[name] for name in by_name if name in used),
        candidates=tuple(candidates), extra=tuple(more), extra_share=share,
        seeds=tuple(content.get("seeds", (0,))), measure=measure,
        run=RunOptions(**options), purpose=purpose, fidelity=content.get("fidelity", ""),
        trained_on=path.parent / content["trained_on"] if "trained_on" in content else None,
    )  # fmt: skip


def _pool(sizes: Mapping[str, int], families: Mapping[str, ModelFamily], seed: int) -> list[Candidate]:
    return [candidate for name, size in sizes.items() for candidate in _family(families, name).pool(size, seed)]


def _grid(grid: Mapping[str, Any], families: Mapping[str, ModelFamily], seed: int) -> list[Candidate]:
    """All combinations of the listed values; the other hyperparameters come from the family's pool, one point each."""
    family = _family(families, grid["family"])
    axes = {name: values for name, values in grid.items() if name != "family"}
    if unknown := sorted(set(axes) - set(family.search_space)):
        raise ValueError(f"A grid of {family.name!r} must name its hyperparameters. Got {', '.join(unknown)} instead.")
    combinations = [dict(zip(axes, values, strict=True)) for values in itertools.product(*axes.values())]
    n_fixed = 1 + len(family.presets)
    points = family.pool(n_fixed + len(combinations), seed)[n_fixed:]
    candidates = [
        Candidate(family.name, {**point.config, **chosen}) for point, chosen in zip(points, combinations, strict=True)
    ]
    for candidate in candidates:
        family.search_space.validate(candidate.config)
    return candidates


def _family(families: Mapping[str, ModelFamily], name: str) -> ModelFamily:
    if name not in families:
        raise ValueError(f"The family must be one of {', '.join(families)}. Got {name!r} instead.")
    return families[name]


def _collection(name: str, folder: Path) -> Collection:
    return load_collection(folder / name if name.endswith(".toml") else name)


def _part(collection: Collection, content: Mapping[str, Any]) -> Collection:
    """The datasets with ``min_rows``, in their order or smallest first, the first ``n_datasets`` of them."""
    entries = [entry for entry in collection if entry.n_rows >= content.get("min_rows", 0)]
    if content.get("smallest_first", False):
        entries.sort(key=lambda entry: entry.n_rows * entry.n_features)
    return Collection(collection.name, tuple(entries[: content.get("n_datasets")]), collection.description)


def config_id(candidate: Candidate) -> str:
    """Short hash of family and configuration (16 hex digits)."""
    return hashlib.blake2b(candidate.key.encode(), digest_size=8).hexdigest()


@dataclass(frozen=True, eq=False)
class Plan:
    """All cells of a study, as two boolean arrays: a million cells take two megabytes.

    Parameters
    ----------
    study : Study
    candidates : tuple of Candidate
    wanted, done : ndarray of bool, shape (n_datasets, n_candidates, n_seeds, n_train_rows)
    """

    study: Study
    candidates: tuple[Candidate, ...]
    wanted: NDArray[np.bool_]
    done: NDArray[np.bool_]

    @cached_property
    def open(self) -> NDArray[np.bool_]:
        """Cells still to run."""
        return self.wanted & ~self.done

    def to_frame(self) -> pd.DataFrame:
        """One row per wanted cell: dataset, family, config_id, seed, train_rows (0 for all), done."""
        entries, seeds = self.study.collection.entries, self.study.seeds
        d, c, s, t = np.nonzero(self.wanted)
        return pd.DataFrame(
            {
                "dataset": pd.Categorical.from_codes(d, pd.Index([entry.name for entry in entries])),
                "family": pd.Categorical([candidate.family for candidate in self.candidates])[c],
                "config_id": pd.Categorical.from_codes(
                    c, pd.Index([config_id(candidate) for candidate in self.candidates])
                ),
                "seed": np.asarray(seeds, dtype=np.int32)[s],
                "train_rows": np.asarray(self.study.measure.train_rows, dtype=np.int32)[t],
                "done": self.done[d, c, s, t],
            }
        )


def make_plan(study: Study, *, retry: Sequence[str] = ()) -> Plan:
    """List the cells of a study and mark those that are done.

    Parameters
    ----------
    study : Study
    retry : sequence of str
        Statuses (``"failed"``, ``"timeout"``, ...) whose cells are run again.
    """
    entries, candidates = study.collection.entries, (*study.candidates, *study.extra)
    tasks = {family.name: family.tasks for family in study.families}
    fits = np.array([[entry.task in tasks[c.family] for c in candidates] for entry in entries], dtype=bool)
    fits = fits.reshape(len(entries), len(candidates))
    fits[round(study.extra_share * len(entries)) :, len(study.candidates) :] = False
    sizes = [[study.measure.has_rows(entry.n_rows, n) for n in study.measure.train_rows] for entry in entries]
    enough = np.array(sizes, dtype=bool).reshape(len(entries), len(study.measure.train_rows))
    wanted = np.repeat((fits[:, :, None] & enough[:, None, :])[:, :, None, :], len(study.seeds), axis=2)
    return Plan(study, candidates, wanted, _done(study, candidates, wanted.shape, retry))


def _done(
    study: Study, candidates: Sequence[Candidate], shape: tuple[int, ...], retry: Sequence[str]
) -> NDArray[np.bool_]:
    done = np.zeros(shape, dtype=bool)
    rows = read_rows(study, [*KEYS, "status"]).to_pandas(strings_to_categorical=True)
    versions = {family.name: family.version for family in study.families}
    d = pd.Index([entry.fingerprint for entry in study.collection]).get_indexer_for(rows["fingerprint"])
    c = pd.Index([config_id(candidate) for candidate in candidates]).get_indexer_for(rows["config_id"])
    s = pd.Index(study.seeds).get_indexer_for(rows["seed"])
    t = pd.Index(study.measure.train_rows).get_indexer_for(rows["train_rows"].fillna(0).astype(np.int64))
    version = np.array([*(versions[candidate.family] for candidate in candidates), -1])[c]  # c == -1: no candidate
    known = (d >= 0) & (c >= 0) & (s >= 0) & (t >= 0) & (version == rows["family_version"].to_numpy())
    known &= ~rows["status"].isin(list(retry)).to_numpy()
    done[d[known], c[known], s[known], t[known]] = True
    return done


def read_rows(study: Study, columns: Sequence[str] | None = None) -> pa.Table:
    """Rows measured so far, each cell once (the last row of a cell that was run again)."""
    wanted = list(dict.fromkeys([*KEYS, *(columns or ROW_SCHEMA.names)]))
    table = last_rows(read_shards(study.shards, "rows", ROW_SCHEMA, wanted), KEYS)
    return table if columns is None else table.select(list(columns))
