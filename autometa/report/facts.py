"""From a fitted estimator to plain data that is kept beside a saved model, and from there to what a page shows."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pandas as pd

from autometa.family import Candidate
from autometa.metrics import Metric
from autometa.plots import TRIAL_SOURCES
from autometa.predictor import Predictor
from autometa.records import Ledger, LedgerEntry
from autometa.report.data_summary import DataSummary
from autometa.selection import Selection

Row = dict[str, Any]


def run_record(
    selection: Selection, ledger: Ledger, *, metric: Metric, data: DataSummary, best_score: float, parameters: Row
) -> Row:
    """What a report needs of a fit beside the model itself, as JSON: no row of the table, no path.

    Parameters
    ----------
    selection : Selection
    ledger : Ledger
    metric : Metric
        The one that decided.
    data : DataSummary
    best_score : float
        Validation score of the best single candidate in the metric's own sign.
    parameters : mapping
        Arguments of the estimator; what is not JSON is kept as text.
    """
    forecasts = {c: c for c in selection.candidates if c.forecast is not None}
    return {
        "metric": {"name": metric.name, "greater_is_better": metric.greater_is_better},
        "best_score": _number(best_score),
        "parameters": {name: _plain(value) for name, value in parameters.items()},
        "data": data.to_json(),
        "explanation": selection.explain().splitlines(),
        "neighbours": [[str(name), float(weight)] for name, weight in selection.neighbours],
        "select_seconds": _number(selection.seconds),
        "families": [_forecast_row(c, metric) for c in selection.ranking],
        "lines": [_ledger_row(entry, metric, forecasts) for entry in ledger],
    }


def _forecast_row(candidate: Candidate, metric: Metric) -> Row:
    row: Row = {"family": candidate.family, "config": _plain(dict(candidate.config))}
    f = candidate.forecast
    if f is not None:
        low, high = sorted(metric.from_score(s) for s in (f.score_low, f.score_high))
        row |= {"forecast": _number(metric.from_score(f.score)), "low": _number(low), "high": _number(high)}
        row |= {"forecast_seconds": _number(f.fit_seconds)}
    return row


def _ledger_row(entry: LedgerEntry, metric: Metric, forecasts: Mapping[Candidate, Candidate]) -> Row:
    """One line of the ledger; the score of a trial in the metric's own sign, that of a refit is a weight."""
    trial = entry.source in TRIAL_SOURCES
    row: Row = {"family": "", "config": {}}
    if entry.candidate is not None:
        row = _forecast_row(forecasts.get(entry.candidate, entry.candidate) if trial else entry.candidate, metric)
    return row | {
        "status": str(entry.status), "source": entry.source, "trial": trial,
        "score": _number(metric.from_score(entry.score) if trial else entry.score),
        "seconds": _number(entry.seconds), "started": _number(entry.started), "reason": entry.reason,
    }  # fmt: skip


@dataclass(frozen=True)
class Facts:
    """What the page shows; every list may be empty, and the page then says so.

    Parameters
    ----------
    name, task, metric : str
    greater_is_better : bool
    best_score : float or None
    members : sequence of {family, share, n_models, config}
        Heaviest first.
    families : sequence of {family, config, forecast, low, high, forecast_seconds}
    lines : sequence of ledger lines
    explanation : sequence of str
    neighbours : sequence of (name, weight)
    data : mapping
        See :class:`autometa.report.data_summary.DataSummary`; empty for a model that was saved without it.
    columns : sequence of {name, kind, dtype}
    parameters : mapping
    libraries : mapping
    adapted : bool
        Whether the model was corrected for later rows.
    """

    name: str
    task: str
    metric: str
    greater_is_better: bool
    best_score: float | None
    members: Sequence[Row]
    families: Sequence[Row]
    lines: Sequence[Row]
    explanation: Sequence[str]
    neighbours: Sequence[tuple[str, float]]
    data: Row
    columns: Sequence[Row]
    parameters: Row
    libraries: Row = field(default_factory=dict)
    adapted: bool = False

    @property
    def trials(self) -> list[Row]:
        """Lines of trials that were measured, in order."""
        return [line for line in self.lines if line["trial"] and line["status"] == "ok" and line["score"] is not None]

    @property
    def troubles(self) -> list[Row]:
        """Lines that did not end well, notes about the run included."""
        return [line for line in self.lines if line["status"] != "ok"]

    @property
    def pairs(self) -> list[Row]:
        """Trials with a forecast, whether each lay ``inside`` its interval, and by how much it missed."""
        known = [t for t in self.trials if t.get("forecast") is not None]
        return [t | {"inside": t["low"] <= t["score"] <= t["high"], "miss": t["score"] - t["forecast"]} for t in known]

    @property
    def seconds(self) -> float | None:
        """When the last line of the ledger ended, seconds since the start of fit."""
        ends = [line["started"] + (line["seconds"] or 0.0) for line in self.lines if line["started"] is not None]
        return max(ends) if ends else None

    @property
    def best_trial(self) -> Row | None:
        """The trial with the best score."""
        sign = 1 if self.greater_is_better else -1
        return max(self.trials, key=lambda trial: sign * trial["score"], default=None)


def facts_of(predictor: Predictor, records: Mapping[str, Any]) -> Facts:
    """What can be told of a model from itself and from the records that are kept beside it.

    Parameters
    ----------
    predictor : Predictor
    records : mapping
        ``predictor.records`` of a loaded model; its entry ``"run"`` comes from :func:`run_record`.
    """
    run = records.get("run") or {}
    metric = run.get("metric") or {"name": str(records.get("metric", "score")), "greater_is_better": True}
    total = sum(member.weight for member in predictor.members)
    members = [
        {"family": m.family, "share": m.weight / total, "n_models": len(m.models), "config": _plain(dict(m.config))}
        for m in sorted(predictor.members, key=lambda m: -m.weight)
        if m.weight > 0
    ]
    data = run.get("data") or {}
    return Facts(
        str(data.get("name", "table")), str(predictor.task), str(metric["name"]), bool(metric["greater_is_better"]),
        run.get("best_score"), members, run.get("families") or [], run.get("lines") or [],
        run.get("explanation") or [], [(str(name), float(weight)) for name, weight in run.get("neighbours") or []],
        data, [{"name": str(c.name), "kind": str(c.kind), "dtype": c.dtype} for c in predictor.columns],
        run.get("parameters") or {}, dict(predictor.libraries), predictor.correction is not None,
    )  # fmt: skip


def _number(value: Any) -> float | None:
    return float(value) if value is not None and math.isfinite(value) else None


def _plain(value: Any) -> Any:
    """JSON as far as it goes, short text beyond."""
    if isinstance(value, np.generic):
        value = value.item()
    if isinstance(value, Mapping):
        return {str(name): _plain(item) for name, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    if isinstance(value, float) and not math.isfinite(value):
        return str(value)
    if isinstance(value, str | int | float | bool) or value is None:
        return value
    named = getattr(value, "name", None)
    return named if isinstance(named, str) else type(value).__name__


def json_rows(frame: pd.DataFrame) -> list[Row]:
    """Rows with plain values, NaN as ``None``."""
    rows = frame.astype(object).where(frame.notna(), None).to_dict(orient="records")
    return [{str(k): v.item() if isinstance(v, np.generic) else v for k, v in row.items()} for row in rows]
