"""A study: one TOML file that says collection x candidates x seeds, and the plan of its cells."""

from __future__ import annotations

import hashlib
import tomllib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow as pa
from numpy.typing import NDArray

from autometa.collection import Collection, load_collection
from autometa.experiment.methods import METHODS, method_candidate
from autometa.experiment.shards import last_rows, read_shards
from autometa.families import default_families
from autometa.family import Candidate, ModelFamily
from autometa.metrics import METRICS

KEYS = ("fingerprint", "config_id", "family_version", "seed")
"""What makes a cell."""

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
    """How a cell is measured. A folder of shards holds rows of one ``Measure`` only.

    Parameters
    ----------
    max_rows : int or None
        Larger tables are subsampled (stratified) to so many rows.
    subsample_seed : int
    time_limit : float or None
        Seconds a cell may take; longer ones are stopped and stored as time-outs.
    memory_limit_mb : float or None
    """

    max_rows: int | None = 2_000
    subsample_seed: int = 0
    time_limit: float | None = 10.0
    memory_limit_mb: float | None = None


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
    meta_features : bool
        Also compute the meta-features of each dataset, once, on all its rows.
    """

    chunk_size: int = 16
    wave_size: int = 60
    keep_predictions: bool = False
    cache: Path | None = None
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

    @property
    def shards(self) -> Path:
        """Folder of the raw rows."""
        return self.folder / "shards"


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
    known = {"name", "purpose", "collection", "n_datasets", "seeds", "pool_seed", "pool", "extra", "candidate",
             "method", "measure", "run", "trained_on"}  # fmt: skip
    if unknown := sorted(set(content) - known):
        raise ValueError(f"A study may hold the keys {', '.join(sorted(known))}. Got {', '.join(unknown)} in {path}.")
    if (purpose := content.get("purpose", "train")) not in {"train", "dev", "test"}:
        raise ValueError(f"The purpose of a study must be train, dev or test. Got {purpose!r} instead.")
    by_name = {family.name: family for family in (default_families() if families is None else families)}
    extra = dict(content.get("extra", {}))
    share, seed = float(extra.pop("share", 1.0)), int(content.get("pool_seed", 0))
    candidates = dict.fromkeys(_pool(content.get("pool", {}), by_name, seed))
    candidates |= dict.fromkeys(Candidate(row["family"], row["config"]) for row in content.get("candidate", ()))
    candidates |= dict.fromkeys(method_candidate(row) for row in content.get("method", ()))
    by_name |= {method.name: method for method in METHODS.values()}
    more = [candidate for candidate in _pool(extra, by_name, seed) if candidate not in candidates]
    used = {candidate.family for candidate in (*candidates, *more)}
    for name in used:
        _family(by_name, name).check_available()
    options = dict(content.get("run", {}))
    if "cache" in options:
        options["cache"] = path.parent / options["cache"]
    return Study(
        name=content.get("name", path.parent.name), folder=path.parent,
        collection=_first(_collection(content["collection"], path.parent), content.get("n_datasets")),
        families=tuple(by_name[name] for name in by_name if name in used),
        candidates=tuple(candidates), extra=tuple(more), extra_share=share,
        seeds=tuple(content.get("seeds", (0,))), measure=Measure(**content.get("measure", {})),
        run=RunOptions(**options), purpose=purpose,
        trained_on=path.parent / content["trained_on"] if "trained_on" in content else None,
    )  # fmt: skip


def _pool(sizes: Mapping[str, int], families: Mapping[str, ModelFamily], seed: int) -> list[Candidate]:
    return [candidate for name, size in sizes.items() for candidate in _family(families, name).pool(size, seed)]


def _family(families: Mapping[str, ModelFamily], name: str) -> ModelFamily:
    if name not in families:
        raise ValueError(f"The family must be one of {', '.join(families)}. Got {name!r} instead.")
    return families[name]


def _collection(name: str, folder: Path) -> Collection:
    return load_collection(folder / name if name.endswith(".toml") else name)


def _first(collection: Collection, n_datasets: int | None) -> Collection:
    entries = collection.entries if n_datasets is None else collection.entries[:n_datasets]
    return Collection(collection.name, entries, collection.description)


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
    wanted, done : ndarray of bool, shape (n_datasets, n_candidates, n_seeds)
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
        """One row per wanted cell: dataset, family, config_id, seed, done."""
        entries, seeds = self.study.collection.entries, self.study.seeds
        d, c, s = np.nonzero(self.wanted)
        return pd.DataFrame(
            {
                "dataset": pd.Categorical.from_codes(d, pd.Index([entry.name for entry in entries])),
                "family": pd.Categorical([candidate.family for candidate in self.candidates])[c],
                "config_id": pd.Categorical.from_codes(
                    c, pd.Index([config_id(candidate) for candidate in self.candidates])
                ),
                "seed": np.asarray(seeds)[s],
                "done": self.done[d, c, s],
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
    wanted = np.repeat(fits[:, :, None], len(study.seeds), axis=2)
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
    version = np.array([*(versions[candidate.family] for candidate in candidates), -1])[c]  # c == -1: no candidate
    known = (d >= 0) & (c >= 0) & (s >= 0) & (version == rows["family_version"].to_numpy())
    known &= ~rows["status"].isin(list(retry)).to_numpy()
    done[d[known], c[known], s[known]] = True
    return done


def read_rows(study: Study, columns: Sequence[str] | None = None) -> pa.Table:
    """Rows measured so far, each cell once (the last row of a cell that was run again)."""
    wanted = list(dict.fromkeys([*KEYS, *(columns or ROW_SCHEMA.names)]))
    table = last_rows(read_shards(study.shards, "rows", ROW_SCHEMA, wanted), KEYS)
    return table if columns is None else table.select(list(columns))
