"""A person's own runs, kept as meta-features and scores: never a table's content, and only where it is asked for.

SQLite in one file by default, PostgreSQL by URL for a team. What is stored goes back into a :class:`MetaDataset`, which
trains a meta-model or is written to its memory.
"""

from __future__ import annotations

import json
import math
import os
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pandas as pd
import sqlalchemy as sql
from sqlalchemy.dialects import postgresql, sqlite
from sqlalchemy.exc import ArgumentError, SQLAlchemyError
from sqlalchemy.pool import NullPool
from sqlalchemy.schema import CreateTable

from autometa.exceptions import ExperienceError
from autometa.meta_dataset import MetaDataset, candidate_key, canonical_config
from autometa.records import Evaluation

SCHEMA_VERSION = 1
LOCK_SECONDS = 30.0
"""How long a writer waits for another one."""

_METADATA = sql.MetaData()
_SCHEMA = sql.Table("autometa_schema", _METADATA, sql.Column("version", sql.Integer, primary_key=True))
_DATASETS = sql.Table(
    "autometa_datasets", _METADATA,
    sql.Column("fingerprint", sql.String(64), primary_key=True),
    sql.Column("task", sql.String(32), nullable=False),
    sql.Column("meta_features", sql.Text, nullable=False),
    sql.Column("added", sql.String(32), nullable=False),
)  # fmt: skip
_EVALUATIONS = sql.Table(
    "autometa_evaluations", _METADATA,
    sql.Column("fingerprint", sql.String(64), sql.ForeignKey(_DATASETS.c.fingerprint), primary_key=True),
    sql.Column("key", sql.Text, primary_key=True),
    sql.Column("metric", sql.String(64), primary_key=True),
    sql.Column("family", sql.String(64), nullable=False),
    sql.Column("config", sql.Text, nullable=False),
    sql.Column("score", sql.Float(53), nullable=False),
    sql.Column("standard_error", sql.Float(53)),
    sql.Column("seconds", sql.Float(53)),
)  # fmt: skip


class Experience:
    """A store of finished runs.

    Parameters
    ----------
    url : str, Path or None
        A file for SQLite, or a database URL such as ``"postgresql+psycopg://user@host/name"``. ``None``: the file named
        by the environment variable ``AUTOMETA_EXPERIENCE``, otherwise ``~/.autometa/experience.sqlite``.
    lock_seconds : float
        How long to wait for another writer.

    Raises
    ------
    ExperienceError
        From every method, where the database is damaged, locked for too long, out of reach or of another format.

    Notes
    -----
    Several processes may write at once. A dataset is recognised by its content fingerprint; measuring a candidate again
    replaces its scores. An instance holds no connection and may be sent to another process.
    """

    def __init__(self, url: str | Path | None = None, *, lock_seconds: float = LOCK_SECONDS) -> None:
        self.url = url
        self.lock_seconds = lock_seconds

    def __repr__(self) -> str:
        return f"Experience({self._shown!r})"

    def add(
        self, dataset_features: Mapping[str, Any] | pd.Series, evaluations: Iterable[Evaluation], *, task: str
    ) -> int:
        """Keep the finished evaluations of one dataset; failed ones have no score and are left out.

        Parameters
        ----------
        dataset_features : mapping or Series
            Meta-features by name (``MetaFeatures.to_series()``).
        evaluations : iterable of Evaluation
            Of one dataset, whose fingerprint they carry.
        task : str
            Binary, multiclass or regression.

        Returns
        -------
        int
            How many rows (one for each candidate and metric) were written.

        Raises
        ------
        ValueError
            The evaluations are of several datasets.
        """
        finished = [e for e in evaluations if e.ok]
        names = sorted({e.dataset for e in finished})
        if len(names) > 1:
            raise ValueError(f"evaluations must be of one dataset. Got those of {len(names)}; add them one by one.")
        rows = {(r["key"], r["metric"]): r for e in finished for r in _rows(e)}
        if not rows:
            return 0
        known = {str(name): _plain(value) for name, value in dict(dataset_features).items() if name != "task"}
        dataset = {
            "fingerprint": names[0], "task": str(task), "meta_features": json.dumps(known, sort_keys=True),
            "added": datetime.now(UTC).isoformat(timespec="seconds"),
        }  # fmt: skip
        # Sorted, so that two writers lock rows in the same order.
        ordered = [rows[key] for key in sorted(rows)]
        with self._connected() as connection:
            connection.execute(_upsert(connection, _DATASETS, ["task", "meta_features"]), [dataset])
            replaced = ["score", "standard_error", "seconds"]
            connection.execute(_upsert(connection, _EVALUATIONS, replaced), ordered)
        return len(ordered)

    def __len__(self) -> int:
        """Number of datasets."""
        with self._connected() as connection:
            return int(connection.execute(sql.select(sql.func.count()).select_from(_DATASETS)).scalar_one())

    def to_meta_dataset(self) -> MetaDataset:
        """Everything that is stored; datasets are named by their fingerprints.

        Raises
        ------
        ExperienceError
            Nothing is stored yet.
        """
        with self._connected() as connection:
            datasets = connection.execute(sql.select(_DATASETS).order_by(_DATASETS.c.added)).mappings().all()
            evaluations = connection.execute(sql.select(_EVALUATIONS)).mappings().all()
        if not evaluations:
            raise ExperienceError(
                f"The experience store must hold at least one run. {self._shown!r} is empty; add some."
            )
        try:
            features = [
                {**json.loads(d["meta_features"]), "task": d["task"], "dataset": d["fingerprint"]} for d in datasets
            ]
        except ValueError as error:
            raise ExperienceError(f"The experience store {self._shown!r} cannot be read: {error}") from error
        frame = pd.DataFrame([dict(row) for row in evaluations]).rename(columns={"fingerprint": "dataset"})
        frame = frame.sort_values(["dataset", "key", "metric"], ignore_index=True)
        return MetaDataset.from_frames(frame.drop(columns="key"), pd.DataFrame(features))

    def merged_with(self, corpus: MetaDataset, *, fingerprints: Mapping[str, str] | None = None) -> MetaDataset:
        """A meta-dataset of a corpus and one's own runs.

        Parameters
        ----------
        corpus : MetaDataset
        fingerprints : mapping of fingerprint to name, optional
            Of the corpus datasets: own runs on one of these count as runs on it, not as another dataset. A cell that
            both measured keeps the score of the corpus, whose splits are the same for all candidates.
        """
        own = self.to_meta_dataset()
        known = dict(fingerprints or {})
        rows = own.evaluations.assign(dataset=own.evaluations["dataset"].map(lambda name: known.get(name, name)))
        rows = pd.concat([corpus.evaluations, rows]).drop_duplicates(["dataset", "key", "metric"])
        features = own.meta_features.rename(index=known)
        new = features[~features.index.isin(corpus.meta_features.index)]
        features = pd.concat([corpus.meta_features, new]).rename_axis("dataset").reset_index()
        groups = pd.concat([corpus.groups, pd.Series(new.index, index=new.index, dtype=object)])
        return MetaDataset.from_frames(rows.drop(columns="key"), features, groups)

    @property
    def _location(self) -> sql.URL:
        given = self.url if self.url is not None else os.environ.get("AUTOMETA_EXPERIENCE")
        if given is None:
            given = Path.home() / ".autometa" / "experience.sqlite"
        try:
            if isinstance(given, str) and "://" in given:
                return sql.make_url(given)
        except ArgumentError as error:
            raise ExperienceError("url must be a file or a database URL such as 'sqlite:///runs.sqlite'.") from error
        return sql.URL.create("sqlite", database=str(Path(given).expanduser()))

    @property
    def _shown(self) -> str:
        return self._location.render_as_string(hide_password=True)

    @contextmanager
    def _connected(self) -> Iterator[sql.Connection]:
        """A transaction on a database that has the tables."""
        url = self._location
        backend = url.get_backend_name()
        if backend not in _INSERTS:
            raise ExperienceError(
                f"The experience store must be SQLite or PostgreSQL. Got {backend!r} in {self._shown!r}."
            )
        if backend == "sqlite" and url.database in (None, "", ":memory:"):
            raise ExperienceError(
                f"The experience store must be a file. Got {self._shown!r}, which forgets everything."
            )
        try:
            if backend == "sqlite":
                _create_private(Path(str(url.database)))
            waits = {"timeout": self.lock_seconds} if backend == "sqlite" else {}
            engine = sql.create_engine(url, poolclass=NullPool, connect_args=waits)
            _make_tables(engine)
            with engine.begin() as connection:
                yield connection
        except (SQLAlchemyError, OSError, ImportError) as error:
            reason = str(getattr(error, "orig", None) or error).splitlines()[0]
            raise ExperienceError(
                f"The experience store {self._shown!r} cannot be used: {reason}. Free it, repair it or name another."
            ) from error


def as_experience(given: Experience | str | Path) -> Experience:
    """A store, given itself or where it is."""
    return given if isinstance(given, Experience) else Experience(given)


_INSERTS: dict[str, Any] = {"sqlite": sqlite.insert, "postgresql": postgresql.insert}


def _create_private(path: Path) -> None:
    """An empty file that only its owner can read: meta-features say something about the data."""
    path.parent.mkdir(parents=True, exist_ok=True)
    if not path.exists():
        os.close(os.open(path, os.O_CREAT | os.O_RDWR, 0o600))


def _make_tables(engine: sql.Engine) -> None:
    with engine.begin() as connection:
        for table in _METADATA.sorted_tables:
            connection.execute(CreateTable(table, if_not_exists=True))
        insert = _INSERTS[engine.dialect.name](_SCHEMA).values(version=SCHEMA_VERSION).on_conflict_do_nothing()
        if not (found := connection.execute(sql.select(_SCHEMA.c.version)).scalars().all()):
            connection.execute(insert)
    if found and set(found) != {SCHEMA_VERSION}:
        raise ExperienceError(f"The experience store must have schema version {SCHEMA_VERSION}. Got {found}.")


def _upsert(connection: sql.Connection, table: sql.Table, replaced: list[str]) -> Any:
    insert = _INSERTS[connection.dialect.name](table)
    return insert.on_conflict_do_update(
        index_elements=list(table.primary_key.columns), set_={name: insert.excluded[name] for name in replaced}
    )


def _rows(evaluation: Evaluation) -> Iterator[dict[str, Any]]:
    candidate = evaluation.candidate
    for metric in evaluation.scores:
        score, error = evaluation.score(metric), evaluation.standard_error(metric)
        if math.isfinite(score):
            yield {
                "fingerprint": evaluation.dataset, "key": candidate_key(candidate.family, candidate.config),
                "metric": metric, "family": candidate.family, "config": json.dumps(canonical_config(candidate.config)),
                "score": score, "standard_error": error if math.isfinite(error) else None,
                "seconds": evaluation.split_seconds if evaluation.fit_seconds else None,
            }  # fmt: skip


def _plain(value: Any) -> Any:
    """A meta-feature as JSON: numbers, text, and null for what is missing or infinite."""
    if isinstance(value, str | bool | int):
        return value
    number = math.nan if value is None else float(value)
    return number if math.isfinite(number) else None
