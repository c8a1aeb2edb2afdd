"""From meta-features and configurations of any kind to vectors."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd
import torch
from numpy.typing import NDArray
from scipy.special import ndtri
from torch import Tensor, nn

Floats = NDArray[np.float64]

_N_QUANTILES = 64
_MAX_CATEGORIES = 12
_LOG_RATIO = 20.0
NOT_FEATURES = frozenset({"machine_seconds"})
"""Columns of a table of meta-features that describe the machine and not the dataset."""


class FeatureEncoder(nn.Module):
    """Meta-features -> standard normal scores by quantiles, with indicators of what is missing.

    Ranks rather than values: meta-features span many orders of magnitude and have heavy tails.

    Parameters
    ----------
    numeric : sequence of str
        Columns read as numbers.
    categories : mapping of str to sequence of str
        Columns read as text, with the values that get a column of their own.
    indicators : sequence of str
        Expanded columns that also get a missing indicator.
    n_rows : int
        Datasets that the quantiles were taken of; it bounds the normal scores.

    Shape
    -----
    (N datasets) -> (N, D), with D = expanded columns + indicators.
    """

    quantiles: Tensor

    def __init__(
        self,
        numeric: Sequence[str],
        categories: Mapping[str, Sequence[str]],
        *,
        indicators: Sequence[str] = (),
        n_rows: int = 1,
    ) -> None:
        super().__init__()
        self.numeric = list(numeric)
        self.categories = {name: list(values) for name, values in categories.items()}
        self.indicators = list(indicators)
        self.n_rows = n_rows
        self.register_buffer("quantiles", torch.zeros(len(self.names), _N_QUANTILES, dtype=torch.float64))

    @property
    def names(self) -> list[str]:
        """Names of the expanded columns: numbers, then one column per category."""
        return self.numeric + [f"{name}={value}" for name, values in self.categories.items() for value in values]

    @property
    def medians(self) -> dict[str, float]:
        """Median of each column that is read as numbers."""
        middle = self.quantiles[:, _N_QUANTILES // 2].tolist()
        return dict(zip(self.numeric, middle, strict=False))

    @property
    def n_outputs(self) -> int:
        return len(self.names) + len(self.indicators)

    @property
    def spec(self) -> dict[str, Any]:
        """Arguments of the constructor, as JSON."""
        return {
            "numeric": self.numeric, "categories": self.categories, "indicators": self.indicators,
            "n_rows": self.n_rows,
        }  # fmt: skip

    @classmethod
    def fit(cls, frame: pd.DataFrame) -> FeatureEncoder:
        """An encoder of the columns that vary in ``frame``, one row per training dataset."""
        numeric, categories = [], {}
        for name in frame.columns.difference(list(NOT_FEATURES), sort=False):
            column = frame[name]
            numbers = pd.to_numeric(column, errors="coerce").notna().sum()
            if pd.api.types.is_numeric_dtype(column) or numbers == column.notna().sum() > 0:
                numeric.append(str(name))
            else:
                common = column.dropna().astype(str).value_counts().index[:_MAX_CATEGORIES]
                categories[str(name)] = sorted(common)
        table = cls(numeric, categories).expand(frame)
        known = np.isfinite(table)
        varies = [len(np.unique(column[k])) > 1 for column, k in zip(table.T, known.T, strict=True)]
        numeric = [name for name, v in zip(numeric, varies, strict=False) if v]
        encoder = cls(numeric, categories, n_rows=len(frame))
        table = encoder.expand(frame)
        known = np.isfinite(table)
        shares = known.mean(axis=0)
        encoder.indicators = [n for n, s in zip(encoder.names, shares, strict=True) if 0.02 < s < 0.98]
        grid = np.linspace(0, 1, _N_QUANTILES)
        for i, (column, k) in enumerate(zip(table.T, known.T, strict=True)):
            if k.any():
                encoder.quantiles[i] = torch.from_numpy(np.quantile(column[k], grid))
        return encoder

    def expand(self, frame: pd.DataFrame) -> Floats:
        """Numbers and one-hot categories, shape (N, len(names)), NaN where missing or absent."""
        n = len(frame)
        columns: list[Any] = []
        for name in self.numeric:
            values = pd.to_numeric(frame[name], errors="coerce") if name in frame.columns else np.full(n, np.nan)
            columns.append(np.asarray(values, dtype=float))
        for name, choices in self.categories.items():
            text = frame[name].astype(str).to_numpy() if name in frame.columns else np.full(n, "")
            columns += [(text == choice).astype(float) for choice in choices]
        table = np.column_stack(columns) if columns else np.zeros((n, 0))
        return np.where(np.isfinite(table), table, np.nan)

    def expand_one(self, meta_features: pd.Series | Mapping[str, Any]) -> Floats:
        """:meth:`expand` for one dataset, without a DataFrame, shape (1, len(names))."""
        known = meta_features.to_dict() if isinstance(meta_features, pd.Series) else dict(meta_features)
        row = [_number(known.get(name)) for name in self.numeric]
        for name, choices in self.categories.items():
            row += [float(str(known.get(name)) == choice) for choice in choices]
        return np.array([row])

    def encode(self, table: Floats) -> Floats:
        """Normal scores and indicators of an expanded table, shape (N, n_outputs)."""
        grid = np.linspace(0, 1, _N_QUANTILES)
        quantiles = self.quantiles.cpu().numpy()
        scores = np.zeros_like(table)
        edge = 0.5 / max(self.n_rows, 2)
        for i, (column, q) in enumerate(zip(table.T, quantiles, strict=True)):
            # The mean of the left and right limits puts a tied value in the middle of its ties.
            rank = 0.5 * (np.interp(column, q, grid) + 1 - np.interp(-column, -q[::-1], grid))
            scores[:, i] = ndtri(np.clip(rank, edge, 1 - edge))
        missing = ~np.isfinite(table)
        scores[missing] = 0.0
        position = {name: i for i, name in enumerate(self.names)}
        flags = missing[:, [position[name] for name in self.indicators]].astype(float)
        return np.hstack([scores, flags])

    def forward(self, meta_features: pd.DataFrame | pd.Series | Mapping[str, Any]) -> Tensor:
        """Encoded meta-features, shape (N, D), or (1, D) for one dataset."""
        if isinstance(meta_features, pd.DataFrame):
            table = self.expand(meta_features)
        else:
            table = self.expand_one(meta_features)
        return torch.from_numpy(self.encode(table)).to(torch.float32)  # (N, D)


def _number(value: Any) -> float:
    if value is None:
        return math.nan
    try:
        number = float(value)
    except (TypeError, ValueError):
        return math.nan
    return number if math.isfinite(number) else math.nan


class ConfigEncoder:
    """Configurations -> vectors in which a squared distance of 1 is one hyperparameter changed altogether.

    Numbers are scaled to [0, 1] over the values seen (logarithms where these span a factor of 20); text, booleans
    and null take one coordinate each. Families are encoded side by side; vectors of different families are not
    comparable.

    Parameters
    ----------
    families : mapping of str to mapping
        Family -> hyperparameter -> ``{"low", "high", "log", "choices"}``.
    """

    def __init__(self, families: Mapping[str, Mapping[str, Mapping[str, Any]]]) -> None:
        self.families = {family: dict(keys) for family, keys in families.items()}

    @classmethod
    def fit(cls, configs: Sequence[tuple[str, Mapping[str, Any]]]) -> ConfigEncoder:
        """From (family, config) pairs."""
        values: dict[str, dict[str, list[Any]]] = {}
        for family, config in configs:
            keys = values.setdefault(family, {})
            for name, value in config.items():
                keys.setdefault(name, []).append(value)
        counts: dict[str, int] = {}
        for family, _ in configs:
            counts[family] = counts.get(family, 0) + 1
        return cls(
            {
                family: {
                    name: _describe([*seen, *[None] * (counts[family] - len(seen))])
                    for name, seen in sorted(keys.items())
                }
                for family, keys in values.items()
            }
        )

    @property
    def n_outputs(self) -> int:
        """Width of the widest family."""
        return max((sum(1 + len(d["choices"]) for d in keys.values()) for keys in self.families.values()), default=0)

    def encode(self, family: str, configs: Sequence[Mapping[str, Any]]) -> Floats:
        """Vectors of configurations of one family, shape (n, n_outputs); zeros for an unknown family."""
        vectors = np.zeros((len(configs), self.n_outputs))
        start = 0
        for name, d in self.families.get(family, {}).items():
            values = [config.get(name) for config in configs]
            if all(type(v) is float or type(v) is int for v in values):
                numbers = np.array(values, dtype=float)
            else:
                numbers = np.array([_number(v) if _is_number(v) else math.nan for v in values])
            vectors[:, start] = _scale(numbers, d)
            for i, choice in enumerate(d["choices"]):
                # Two different choices are at squared distance 1/2 + 1/2.
                vectors[:, start + 1 + i] = [math.sqrt(0.5) if _choice(v) == choice else 0.0 for v in values]
            start += 1 + len(d["choices"])
        return vectors


def _is_number(value: Any) -> bool:
    if isinstance(value, bool | np.bool_):
        return False
    return isinstance(value, int | float | np.integer | np.floating) and math.isfinite(value)


def _choice(value: Any) -> str | None:
    """Name of the choice that a value is, ``None`` for a number."""
    return None if _is_number(value) else repr(value) if not isinstance(value, float) else "None"


def _describe(values: Sequence[Any]) -> dict[str, Any]:
    numbers = [float(v) for v in values if _is_number(v)]
    choices = sorted({c for v in values if (c := _choice(v)) is not None})
    low, high = (min(numbers), max(numbers)) if numbers else (0.0, 1.0)
    use_log = low > 0 and high / low >= _LOG_RATIO
    return {"low": low, "high": high, "log": use_log, "choices": choices}


def _scale(numbers: Floats, d: Mapping[str, Any]) -> Floats:
    low, high = float(d["low"]), float(d["high"])
    if d["log"]:
        numbers = np.log(np.maximum(numbers, 1e-300))
        low, high = math.log(low), math.log(high)
    unit = (numbers - low) / (high - low) if high > low else numbers - low
    return np.where(np.isfinite(unit), np.clip(unit, -0.5, 1.5), 0.5)
