"""Charts of the report as plain geometry; ``page.html`` draws them, so that all text passes its escaping."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from autometa.report.facts import Facts

WIDTH = 410.0
"""Width of every chart in its own units; small enough that text stays readable on a phone."""
_ROW = 22.0
_LABELS = 156.0
_EDGE = 14.0
_FOOT = 40.0
_MAX_ROWS = 16


@dataclass(frozen=True)
class Mark:
    """One thing to draw.

    Parameters
    ----------
    kind : {"line", "dot", "bar", "text"}
    style : str
        CSS class.
    points : sequence of (x, y)
        A dot and a text have one, a bar two opposite corners, a line two or more.
    tip : str
        Shown on hover; for "text" the text itself.
    """

    kind: str
    style: str
    points: Sequence[tuple[float, float]]
    tip: str = ""


@dataclass(frozen=True)
class Chart:
    """A drawing with its words.

    Parameters
    ----------
    key : str
        Identifier inside the page.
    title, description : str
        The description says in one sentence what there is to see.
    height : float
    marks : sequence of Mark
    x_ticks, y_ticks : sequence of (position, text)
    x_label : str
    left : float
        Where the drawing area begins.
    legend : sequence of (style, text)
    """

    key: str
    title: str
    description: str
    height: float
    marks: Sequence[Mark]
    x_ticks: Sequence[tuple[float, str]]
    y_ticks: Sequence[tuple[float, str]]
    x_label: str
    left: float
    legend: Sequence[tuple[str, str]] = field(default=())

    @property
    def right(self) -> float:
        return WIDTH - _EDGE

    @property
    def bottom(self) -> float:
        return self.height - _FOOT


class Scale:
    """Values to positions on a line, with round numbers to label it."""

    def __init__(self, values: Sequence[float], start: float, end: float, *, zero: bool = False) -> None:
        low, high = min(values), max(values)
        low = min(low, 0.0) if zero else low
        pad = 0.04 * (high - low) or max(abs(high), 1.0) * 0.05
        self.low, self.high = (low if zero else low - pad), high + pad
        self.start, self.end = start, end

    def __call__(self, value: float) -> float:
        share = (value - self.low) / (self.high - self.low)
        return round(self.start + share * (self.end - self.start), 2)

    def ticks(self, most: int = 5) -> list[tuple[float, str]]:
        """Position and text of round numbers inside the scale."""
        step = nice_step(self.high - self.low, most)
        first, last = math.ceil(self.low / step), math.floor(self.high / step)
        digits = max(0, -math.floor(math.log10(step)))
        return [(self(i * step), f"{i * step:,.{digits}f}") for i in range(first, last + 1)]


def nice_step(span: float, most: int) -> float:
    """The smallest of 1, 2, 5 times a power of ten that divides ``span`` into at most ``most`` parts.

    Examples
    --------
    >>> nice_step(1.0, 5), nice_step(0.034, 5), nice_step(700, 4)
    (0.2, 0.01, 200.0)
    """
    power = 10.0 ** math.floor(math.log10(span / most))
    return next(float(f"{m * power:.12g}") for m in (1, 2, 5, 10, 20) if m * power * most >= span * (1 - 1e-9))


def ranking_chart(facts: Facts) -> Chart | None:
    """Forecast and interval of each family's best configuration."""
    rows = [row for row in facts.families if row.get("forecast") is not None][:_MAX_ROWS]
    if not rows:
        return None
    x = _across([row[name] for row in rows for name in ("low", "high")])
    marks: list[Mark] = []
    for i, row in enumerate(rows):
        y = _row(i)
        tip = f"{row['family']}: {row['forecast']:.4g} ({row['low']:.4g} to {row['high']:.4g})"
        marks.append(Mark("line", "interval", [(x(row["low"]), y), (x(row["high"]), y)], tip))
        marks.append(Mark("dot", "forecast", [(x(row["forecast"]), y)], tip))
    return _rows_chart(
        "ranking", f"Forecast {facts.metric} by family", f"{rows[0]['family']} leads the forecast.", rows, marks, x,
        facts, [("forecast", "forecast"), ("interval", "80 % interval")],
    )  # fmt: skip


def forecast_chart(facts: Facts) -> Chart | None:
    """Forecast, interval and outcome of each measured configuration, best outcome first."""
    pairs = sorted(facts.pairs, key=lambda p: -p["score"] if facts.greater_is_better else p["score"])[:_MAX_ROWS]
    if not pairs:
        return None
    x = _across([p[name] for p in pairs for name in ("low", "high", "score")])
    marks: list[Mark] = []
    for i, p in enumerate(pairs):
        y, tip = _row(i), f"{p['family']}: forecast {p['forecast']:.4g}, measured {p['score']:.4g}"
        marks.append(Mark("line", "interval", [(x(p["low"]), y), (x(p["high"]), y)], tip))
        marks.append(Mark("dot", "forecast", [(x(p["forecast"]), y)], tip))
        marks.append(Mark("dot", "measured", [(x(p["score"]), y)], tip))
    inside = sum(p["inside"] for p in facts.pairs)
    return _rows_chart(
        "outcome", f"Forecast and measured {facts.metric}",
        f"{inside} of {len(facts.pairs)} outcomes lie inside their 80 % interval.", pairs, marks, x, facts,
        [("measured", "measured"), ("forecast", "forecast"), ("interval", "80 % interval")],
    )  # fmt: skip


def shares_chart(facts: Facts) -> Chart | None:
    """Share of each member in the final model."""
    rows = facts.members[:_MAX_ROWS]
    if len(rows) < 2:
        return None
    x = Scale([0.0, 1.0], _LABELS, WIDTH - _EDGE - 24, zero=True)
    marks = [
        mark
        for i, row in enumerate(rows)
        for mark in (
            Mark("bar", "share", [(x(0.0), _row(i) - 7), (x(row["share"]), _row(i) + 7)], row["family"]),
            Mark("text", "value", [(x(row["share"]) + 5, _row(i) + 4)], f"{row['share']:.0%}"),
        )
    ]
    height = _row(len(rows)) + _FOOT - 8
    ticks = [(x(t), f"{t:.0%}") for t in (0.0, 0.25, 0.5, 0.75, 1.0)]
    words = f"{rows[0]['family']} has the largest share, {rows[0]['share']:.0%}."
    return Chart("shares", "Share in the model", words, height, marks, ticks, _row_labels(rows), "share", _LABELS)


def anytime_chart(facts: Facts) -> Chart | None:
    """Score of each trial over time, and the best so far."""
    trials = [t for t in facts.trials if t["started"] is not None and t["seconds"] is not None]
    if len(trials) < 2:
        return None
    points = sorted((t["started"] + t["seconds"], t["score"], t["family"]) for t in trials)
    height, left = 250.0, 62.0
    x = Scale([p[0] for p in points], left, WIDTH - _EDGE, zero=True)
    y = Scale(_without_outliers([p[1] for p in points], facts), height - _FOOT, 12.0)
    best, path = points[0][1], []
    for seconds, score, _ in points:
        improved = score > best if facts.greater_is_better else score < best
        path.append((x(seconds), y(best)))
        best = score if improved else best
        path.append((x(seconds), y(best)))
    path.append((WIDTH - _EDGE, y(best)))
    dots = [Mark("dot", "trial", [(x(s), y(v))], f"{family}: {v:.4g} after {s:.3g} s") for s, v, family in points]
    shown = [d for d in dots if 0 <= d.points[0][1] <= height - _FOOT]
    hidden = len(dots) - len(shown)
    first = points[0][1]
    words = f"The best {facts.metric} went from {first:.4g} to {best:.4g}."
    words = f"The first trial stayed the best, {best:.4g}." if best == first else words
    words += f" {hidden} far worse trials lie outside the drawing." if hidden else ""
    return Chart(
        "anytime", f"{facts.metric} over time", words, height, [Mark("line", "best", _inside(path, height)), *shown],
        x.ticks(), y.ticks(), "seconds since the start of fit", left, [("best", "best so far"), ("trial", "trial")],
    )  # fmt: skip


def all_charts(facts: Facts) -> dict[str, Chart]:
    """Every chart that there is something to draw for, by key."""
    charts = (ranking_chart(facts), forecast_chart(facts), shares_chart(facts), anytime_chart(facts))
    return {chart.key: chart for chart in charts if chart is not None}


def _across(values: Sequence[float]) -> Scale:
    return Scale(values, _LABELS, WIDTH - _EDGE)


def _row(i: int) -> float:
    return 14.0 + _ROW * i


def _row_labels(rows: Sequence[dict[str, Any]]) -> list[tuple[float, str]]:
    return [(_row(i), _short(row["family"])) for i, row in enumerate(rows)]


def _rows_chart(
    key: str,
    title: str,
    words: str,
    rows: Sequence[dict[str, Any]],
    marks: list[Mark],
    x: Scale,
    facts: Facts,
    legend: Sequence[tuple[str, str]],
) -> Chart:
    direction = "higher is better" if facts.greater_is_better else "lower is better"
    return Chart(
        key, title, words, _row(len(rows)) + _FOOT - 8, marks, x.ticks(), _row_labels(rows),
        f"{facts.metric} ({direction})", _LABELS, legend,
    )  # fmt: skip


def _without_outliers(scores: list[float], facts: Facts) -> list[float]:
    """The scores that the drawing should span: a failed model must not flatten all others."""
    ranked = sorted(scores, reverse=facts.greater_is_better)
    good = ranked[: max(2, math.ceil(0.8 * len(ranked)))]
    reach = 2.0 * abs(good[-1] - good[0]) or math.inf
    return [score for score in scores if abs(score - good[0]) <= reach]


def _inside(path: list[tuple[float, float]], height: float) -> list[tuple[float, float]]:
    return [(px, min(max(py, 4.0), height - _FOOT)) for px, py in path]


def _short(text: str, most: int = 22) -> str:
    return text if len(text) <= most else text[: most - 1] + "…"
