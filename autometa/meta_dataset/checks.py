"""Tables of evaluations, meta-features and groups as people have them, checked and in canonical form."""

from __future__ import annotations

import json
import math
import warnings
from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np
import pandas as pd

from autometa.meta_dataset.keys import canonical_config

DEFAULT_METRIC = "score"
"""Name of the metric of a table without a ``metric`` column."""

_REQUIRED = ("dataset", "family", "score")
_KEPT = ("dataset", "family", "config", "key", "metric", "score", "seconds", "standard_error")
_ERROR_NAMES = ("standard_error", "score_standard_error", "noise")
_VALUES = ["score", "seconds", "standard_error"]


def check_column(scores: pd.DataFrame, name: str) -> None:
    """Raise ``ValueError`` unless there is a column of this name."""
    if name not in scores.columns:
        raise ValueError(f"The scores must have a column {name!r}. Got {', '.join(map(str, scores.columns))}.")


def checked_evaluations(evaluations: pd.DataFrame) -> pd.DataFrame:
    """One row per dataset, candidate and metric with a finite score, its configuration in canonical form."""
    if not isinstance(evaluations, pd.DataFrame):
        raise ValueError(f"evaluations must be a pandas DataFrame. Got {type(evaluations).__name__} instead.")
    missing = [name for name in _REQUIRED if name not in evaluations.columns]
    if missing:
        raise ValueError(f"evaluations must have the columns {', '.join(_REQUIRED)}. Missing: {', '.join(missing)}.")
    errors = next((name for name in _ERROR_NAMES if name in evaluations.columns), None)
    table = pd.DataFrame(
        {
            "dataset": evaluations["dataset"].astype(str).to_numpy(),
            "family": evaluations["family"].astype(str).to_numpy(),
            "config": _config_texts(evaluations),
            "metric": (
                evaluations["metric"].astype(str).to_numpy() if "metric" in evaluations.columns else DEFAULT_METRIC
            ),
            "score": _numbers(evaluations, "score"),
            "seconds": _numbers(evaluations, "seconds") + np.nan_to_num(_numbers(evaluations, "predict_seconds")),
            "standard_error": _numbers(evaluations, errors),
        }
    )
    table["key"] = table["family"] + " " + table["config"]
    table = table.loc[np.isfinite(table["score"]), list(_KEPT)]
    if table.empty:
        raise ValueError("evaluations must hold at least one finite score. Got none.")
    return _average_repeats(evaluations, table).reset_index(drop=True)


def _average_repeats(evaluations: pd.DataFrame, table: pd.DataFrame) -> pd.DataFrame:
    """One row per dataset, candidate and metric."""
    cell = ["dataset", "key", "metric"]
    if not table.duplicated(cell).any():
        return table
    if "config_id" in evaluations.columns:
        ids = evaluations["config_id"].iloc[table.index].astype(str).groupby(table["key"].to_numpy()).nunique()
        if (ids > 1).any():
            warnings.warn(
                f"{int((ids > 1).sum())} candidates have several values of config_id with equal family and config; "
                "their scores are averaged.", UserWarning, stacklevel=4,
            )  # fmt: skip
    values = table.groupby(cell, sort=False)[_VALUES].mean()
    first = table.drop_duplicates(cell).set_index(cell)
    first[_VALUES] = values
    return first.reset_index()[list(_KEPT)]


def _numbers(frame: pd.DataFrame, name: str | None) -> Any:
    if name is None or name not in frame.columns:
        return np.full(len(frame), np.nan)
    values = pd.to_numeric(frame[name], errors="coerce").to_numpy(dtype=float, na_value=np.nan)
    return np.where(np.isfinite(values), values, np.nan)


def _config_texts(evaluations: pd.DataFrame) -> Any:
    """Canonical JSON of each row's configuration; each distinct text is read once."""
    if "config" not in evaluations.columns:
        return np.full(len(evaluations), "{}", dtype=object)
    seen: dict[str, str] = {}
    texts = []
    for value in evaluations["config"]:
        text = value if isinstance(value, str) else None
        if text is None or text not in seen:
            canonical = json.dumps(canonical_config(_read_config(value)))
            if text is None:
                texts.append(canonical)
                continue
            seen[text] = canonical
        texts.append(seen[text])
    return np.array(texts, dtype=object)


def _read_config(value: Any) -> Mapping[str, Any]:
    if isinstance(value, Mapping):
        return value
    if value is None or (isinstance(value, float) and math.isnan(value)) or value == "":
        return {}
    try:
        config = json.loads(value)
    except (TypeError, ValueError):
        config = value
    if config is None:
        return {}
    if not isinstance(config, dict):
        raise ValueError(f"Each config must be a mapping or the JSON text of one. Got {value!r} instead.")
    return config


def checked_meta_features(meta_features: pd.DataFrame, datasets: Iterable[str]) -> pd.DataFrame:
    """One row per measured dataset, indexed by it."""
    if not isinstance(meta_features, pd.DataFrame):
        raise ValueError(f"meta_features must be a pandas DataFrame. Got {type(meta_features).__name__} instead.")
    if "dataset" not in meta_features.columns:
        if meta_features.index.name != "dataset":
            raise ValueError("meta_features must have a column 'dataset' with one row per dataset.")
        meta_features = meta_features.reset_index()
    features = meta_features.assign(dataset=meta_features["dataset"].astype(str)).set_index("dataset")
    features.columns = features.columns.astype(str)
    if not features.index.is_unique:
        twice = features.index[features.index.duplicated()].unique().tolist()[:5]
        raise ValueError(f"meta_features must have one row per dataset. {twice} occur more than once.")
    without = [d for d in datasets if d not in features.index]
    if without:
        raise ValueError(f"Every dataset of evaluations needs a row in meta_features. {without[:5]} have none.")
    measured = set(datasets)
    return features.loc[[d for d in features.index if d in measured]]


def found_groups(
    groups: Mapping[Any, Any] | pd.Series | None, evaluations: pd.DataFrame, features: pd.DataFrame
) -> pd.Series:
    """Group of each dataset: as given, from a column ``group``, or each dataset its own."""
    if groups is None and "group" in features.columns:
        groups = features["group"]
    if groups is None and "group" in evaluations.columns:
        groups = evaluations.assign(dataset=evaluations["dataset"].astype(str)).groupby("dataset")["group"].first()
    if groups is None:
        return pd.Series(features.index, index=features.index, name="group")
    known = {str(name): str(group) for name, group in dict(groups).items()}
    missing = [d for d in features.index if d not in known]
    if missing:
        raise ValueError(f"groups must name the group of every dataset. {missing[:5]} have none.")
    return pd.Series([known[d] for d in features.index], index=features.index, name="group")
