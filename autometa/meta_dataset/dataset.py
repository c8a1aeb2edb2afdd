"""Evaluations of candidates on many datasets, with meta-features and groups."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from autometa.exceptions import ArtefactError
from autometa.family import Candidate
from autometa.meta_dataset.checks import (
    check_column,
    checked_evaluations,
    checked_meta_features,
    found_groups,
)

SMALL_ROWS = "small_rows.parquet"
"""File beside a corpus with scores after training on few rows; it may be missing."""

LARGE_ROWS = "large_rows.parquet"
"""File beside a corpus with measurements of its larger tables at more rows; it may be missing."""

ROW_FEATURES = {"log_rows": 1.0, "log_smallest_class_rows": 1.0, "log_columns_per_row": -1.0}
"""Meta-features that change with the rows of a table, and by how much for each power of ten."""

UNIT_FEATURES = {"rmse": "constant_log_rmse", "mae": "constant_log_rmse"}
"""Metrics in the units of the target -> meta-feature with the decimal logarithm of the best constant's RMSE."""

_LEAST_POWERS = 0.15


@dataclass(frozen=True, eq=False)
class MetaDataset:
    """Evaluations of candidates on many datasets, with the meta-features of each dataset.

    Build one with :meth:`from_frames` or :meth:`from_parquet`.

    Parameters
    ----------
    evaluations : DataFrame
        One row per dataset, candidate and metric: dataset, family, config (canonical JSON), key, metric, score
        (higher is better), seconds (of a fit and the prediction of the rows held out), standard_error.
    meta_features : DataFrame of shape (n_datasets, n_features)
        Indexed by dataset.
    groups : Series
        Group of related datasets of each dataset, indexed like ``meta_features``.
    small_rows : DataFrame or None
        Scores after training on few rows: like ``evaluations``, with ``train_rows``.
    large_rows : DataFrame or None
        Measurements of larger tables at more rows: like ``evaluations``, with ``n_rows``.
    """

    evaluations: pd.DataFrame
    meta_features: pd.DataFrame
    groups: pd.Series
    small_rows: pd.DataFrame | None = None
    large_rows: pd.DataFrame | None = None

    @classmethod
    def from_frames(
        cls, evaluations: pd.DataFrame, meta_features: pd.DataFrame, groups: Mapping[Any, Any] | pd.Series | None = None
    ) -> MetaDataset:
        """From any table of evaluations and any table of meta-features.

        Parameters
        ----------
        evaluations : DataFrame
            Columns ``dataset``, ``family``, ``score`` (higher is better), and where they exist ``config`` (mapping or
            JSON text), ``config_id``, ``seconds`` (of a fit), ``predict_seconds`` (added to them: what a trial costs),
            ``metric``, ``task``, ``standard_error`` and ``group``. Not every candidate must have been run on every
            dataset; rows without a finite score count as not run. Repeated measurements of the same cell are averaged.
        meta_features : DataFrame
            A ``dataset`` column and one row per dataset; numbers, text and NaN.
        groups : mapping or Series, optional
            Dataset -> group of related datasets. Default: the ``group`` column of either table, otherwise each
            dataset is a group of its own.

        Raises
        ------
        ValueError
            One sentence on what is wrong with the tables.

        Examples
        --------
        >>> runs = pd.DataFrame({"dataset": ["a", "b"], "family": "knn", "config": '{"k": 5}', "score": [0.8, 0.9]})
        >>> MetaDataset.from_frames(runs, pd.DataFrame({"dataset": ["a", "b"], "rows": [100, 200]}))
        MetaDataset(2 datasets in 2 groups, 1 candidates, metrics: score)
        """
        table = checked_evaluations(evaluations)
        if "train_rows" in evaluations.columns and evaluations["train_rows"].notna().any():
            raise ValueError(
                "evaluations must be of all training rows. Got rows with train_rows: pass those to with_small_rows()."
            )
        features = checked_meta_features(meta_features, table["dataset"].unique())
        series = found_groups(groups, evaluations, features)
        features = features.drop(columns="group", errors="ignore")
        if "task" in evaluations.columns and "task" not in features.columns:
            tasks = evaluations.assign(dataset=evaluations["dataset"].astype(str)).groupby("dataset")["task"].first()
            features = features.assign(task=tasks.reindex(features.index).astype(str))
        return cls(table, features, series)

    @property
    def datasets(self) -> tuple[str, ...]:
        """Names of the datasets, in the order of ``meta_features``."""
        return tuple(self.meta_features.index)

    @cached_property
    def metrics(self) -> tuple[str, ...]:
        """Names of the metrics, the default (the first of the table) first."""
        return tuple(self.evaluations["metric"].drop_duplicates())

    @cached_property
    def candidates(self) -> dict[str, Candidate]:
        """Canonical key -> candidate, in order of appearance."""
        rows = self.evaluations[["key", "family", "config"]].drop_duplicates("key")
        return {key: Candidate(family, json.loads(config)) for key, family, config in rows.itertuples(index=False)}

    @cached_property
    def units(self) -> dict[str, str]:
        """Metrics in the units of the target, and the meta-feature that holds the decimal logarithm of that unit."""
        known = {m: f for m, f in UNIT_FEATURES.items() if m in self.metrics and f in self.meta_features.columns}
        return {m: f for m, f in known.items() if self.meta_features.loc[self._rows(m), f].notna().all()}

    def _rows(self, metric: str) -> list[str]:
        return list(self.evaluations.loc[self.evaluations["metric"] == metric, "dataset"].unique())

    def train_sizes(self, metric: str) -> tuple[int, ...]:
        """Numbers of training rows, fewer than all, after which candidates were scored by a metric as well."""
        if self.small_rows is None:
            return ()
        return tuple(sorted(self.small_rows.loc[self.small_rows["metric"] == metric, "train_rows"].unique().tolist()))

    def score_table(self, metric: str | None = None, *, train_rows: int | None = None) -> pd.DataFrame:
        """Scores of one metric, shape (n_datasets, n_candidates), NaN where nothing was measured.

        Rows are the datasets that have this metric; columns are canonical keys. Scores are raw, except that metrics of
        :attr:`units` are divided by the unit of their dataset. ``train_rows``: after training on so many rows only.
        """
        metric = metric or self.metrics[0]
        if metric not in self.metrics:
            raise ValueError(f"The metric must be one of {', '.join(self.metrics)}. Got {metric!r} instead.")
        rows = self.evaluations
        if train_rows is not None:
            if train_rows not in self.train_sizes(metric):
                raise ValueError(f"train_rows must be one of {self.train_sizes(metric)}. Got {train_rows} instead.")
            assert self.small_rows is not None
            rows = self.small_rows[self.small_rows["train_rows"] == train_rows]
        return self._in_units(self._pivot(rows[rows["metric"] == metric], "score"), metric)

    def standard_error_table(self, metric: str | None = None) -> pd.DataFrame:
        """Standard errors of :meth:`score_table`, NaN where unknown."""
        metric = metric or self.metrics[0]
        part = self.evaluations[self.evaluations["metric"] == metric]
        return self._in_units(self._pivot(part, "standard_error"), metric)

    def _in_units(self, table: pd.DataFrame, metric: str) -> pd.DataFrame:
        if metric not in self.units:
            return table
        unit = 10.0 ** self.meta_features.loc[table.index, self.units[metric]].astype(float)
        return table.div(unit, axis=0)

    def seconds_table(self) -> pd.DataFrame:
        """Seconds of each candidate on each dataset, shape (n_datasets, n_candidates), NaN where unknown."""
        return self._pivot(self.evaluations, "seconds")

    def _pivot(self, rows: pd.DataFrame, value: str) -> pd.DataFrame:
        table = rows.pivot_table(index="dataset", columns="key", values=value, aggfunc="mean", dropna=False, sort=False)
        order = [d for d in self.datasets if d in table.index]
        columns = [key for key in self.candidates if key in table.columns]
        return table.reindex(index=order, columns=columns)

    def subset(self, datasets: Iterable[Any]) -> MetaDataset:
        """Only these datasets, in the order of this table."""
        wanted = {str(d) for d in datasets}
        unknown = sorted(wanted - set(self.datasets))
        if unknown:
            raise ValueError(f"The datasets must be among those of the meta-dataset. Got {unknown[:5]} as well.")
        keep = [d for d in self.datasets if d in wanted]
        if not keep:
            raise ValueError("A subset must keep at least one dataset. Got an empty list.")
        rows = self.evaluations[self.evaluations["dataset"].isin(wanted)].reset_index(drop=True)
        small, large = (
            None if part is None else part[part["dataset"].isin(wanted)].reset_index(drop=True)
            for part in (self.small_rows, self.large_rows)
        )
        return MetaDataset(rows, self.meta_features.loc[keep], self.groups.loc[keep], small, large)

    def split_by_group(self, n_folds: int = 5, seed: int = 0) -> Iterator[tuple[MetaDataset, MetaDataset]]:
        """Pairs of (training, test) parts; no group is in both, and every dataset is tested once."""
        groups = self.groups.drop_duplicates().to_numpy()
        if not 2 <= n_folds <= len(groups):
            raise ValueError(f"n_folds must be between 2 and the number of groups, {len(groups)}. Got {n_folds}.")
        fold_of = dict(zip(groups, group_folds(self.groups, n_folds, seed=seed), strict=True))
        folds = self.groups.map(fold_of)
        for fold in range(n_folds):
            yield self.subset(folds.index[folds != fold]), self.subset(folds.index[folds == fold])

    def to_parquet(self, folder: str | Path) -> Path:
        """Write ``evaluations.parquet``, ``meta_features.parquet`` and ``groups.parquet`` into a folder."""
        folder = Path(folder)
        folder.mkdir(parents=True, exist_ok=True)
        self.evaluations.drop(columns="key").to_parquet(folder / "evaluations.parquet", index=False)
        self.meta_features.rename_axis("dataset").reset_index().to_parquet(
            folder / "meta_features.parquet", index=False
        )
        frame = pd.DataFrame({"dataset": self.groups.index, "group": self.groups.to_numpy()})
        frame.to_parquet(folder / "groups.parquet", index=False)
        if self.small_rows is not None:
            self.small_rows.drop(columns="key").to_parquet(folder / SMALL_ROWS, index=False)
        if self.large_rows is not None:
            large = self.large_rows.drop(columns="key").assign(table=self.large_rows["dataset"])
            large.to_parquet(folder / LARGE_ROWS, index=False)
        return folder

    @classmethod
    def from_parquet(cls, folder: str | Path) -> MetaDataset:
        """What :meth:`to_parquet` or ``collect`` wrote; groups, small rows and large rows may be missing."""
        folder = Path(folder)
        for name in ("evaluations.parquet", "meta_features.parquet"):
            if not (folder / name).is_file():
                raise ArtefactError(f"A meta-dataset folder must hold {name}. There is none in {str(folder)!r}.")
        groups = None
        if (folder / "groups.parquet").is_file():
            groups = pd.read_parquet(folder / "groups.parquet").set_index("dataset")["group"]
        evaluations = pd.read_parquet(folder / "evaluations.parquet")
        found = cls.from_frames(evaluations, pd.read_parquet(folder / "meta_features.parquet"), groups)
        if (folder / SMALL_ROWS).is_file():
            found = found.with_small_rows(pd.read_parquet(folder / SMALL_ROWS))
        if (folder / LARGE_ROWS).is_file():
            found = found.with_large_rows(pd.read_parquet(folder / LARGE_ROWS))
        return found

    def with_small_rows(self, scores: pd.DataFrame) -> MetaDataset:
        """The same, with scores after training on few rows.

        Parameters
        ----------
        scores : DataFrame
            Columns as of ``evaluations``, and ``train_rows``. Rows of other datasets, and those without a finite score,
            are left out.

        Raises
        ------
        ValueError
            One sentence on what is wrong with the table.
        """
        found = self._measured_at(scores, "train_rows")
        return self if found is None else replace(self, small_rows=found)

    def with_large_rows(self, scores: pd.DataFrame) -> MetaDataset:
        """The same, with measurements of its larger tables at more rows.

        Parameters
        ----------
        scores : DataFrame
            Columns as of ``evaluations``, and ``table`` (the dataset that it is of) and ``n_rows`` (how many rows were
            measured). Rows of other tables, and those without a finite score, are left out.

        Raises
        ------
        ValueError
            One sentence on what is wrong with the table.
        """
        check_column(scores, "table")
        found = self._measured_at(scores.assign(dataset=scores["table"]), "n_rows")
        return self if found is None else replace(self, large_rows=found)

    def _measured_at(self, scores: pd.DataFrame, size: str) -> pd.DataFrame | None:
        """Scores of these datasets in canonical form, with their size in a column; ``None``: there are none."""
        check_column(scores, size)
        known = scores["dataset"].astype(str).isin(self.datasets)
        known &= np.isfinite(pd.to_numeric(scores["score"], errors="coerce").to_numpy(dtype=float))
        parts = [
            checked_evaluations(part).assign(**{size: int(float(str(value)))})
            for value, part in scores[known].groupby(size)
        ]
        return pd.concat(parts, ignore_index=True) if parts else None

    def growth_table(self) -> pd.DataFrame:
        """How seconds grew with the rows of larger tables, shape (n_datasets, n_candidates), NaN where unknown.

        1 means in proportion to the rows, 2 to their square.
        """
        if self.large_rows is None or "log_rows" not in self.meta_features.columns:
            return pd.DataFrame(index=pd.Index([], name="dataset"))
        few = self.seconds_table()
        more = self.large_rows.assign(log_rows=np.log10(self.large_rows["n_rows"].astype(float)))
        log_rows = self._pivot(more, "log_rows")
        powers = log_rows.sub(self.meta_features.loc[log_rows.index, "log_rows"].astype(float), axis=0)
        seconds = self._pivot(self.large_rows, "seconds")
        ratio = seconds / few.reindex(index=seconds.index, columns=seconds.columns)
        growth: pd.DataFrame = ratio.map(np.log10)
        return (growth / powers.where(powers > _LEAST_POWERS)).replace([np.inf, -np.inf], np.nan)

    def __repr__(self) -> str:
        return (
            f"MetaDataset({len(self.datasets)} datasets in {self.groups.nunique()} groups, "
            f"{len(self.candidates)} candidates, metrics: {', '.join(self.metrics)})"
        )


def row_features(meta_features: Any, powers: Any) -> dict[str, Any]:
    """What :data:`ROW_FEATURES` would be, for the same table with ``10 ** powers`` times the rows.

    Parameters
    ----------
    meta_features : mapping or DataFrame
        Of one dataset, or of one per row.
    powers : float or Series

    Examples
    --------
    >>> row_features({"log_rows": 3.0, "log_columns": 1.0}, 0.5)
    {'log_rows': 3.5}
    """
    return {name: meta_features[name] + sign * powers for name, sign in ROW_FEATURES.items() if name in meta_features}


def group_folds(groups: pd.Series, n_folds: int, *, seed: int = 0) -> list[int]:
    """Fold of each distinct group (in order of appearance): large groups first, each to the smallest fold."""
    sizes = groups.value_counts(sort=False).reindex(groups.drop_duplicates())
    tie_break = np.random.default_rng(seed).random(len(sizes))
    load, folds = np.zeros(n_folds), np.zeros(len(sizes), dtype=int)
    for i in np.lexsort((tie_break, -sizes.to_numpy())):
        folds[i] = int(load.argmin())
        load[folds[i]] += sizes.iloc[i]
    return [int(f) for f in folds]
