"""Small HTML fragments for notebooks. Whatever comes from data is escaped here, and nowhere else."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from html import escape
from typing import Any

import numpy as np
import pandas as pd

MAX_ROWS = 40
"""Rows that a fragment shows before it says how many are left out."""
_MAX_CELL = 300


def text_of(value: Any) -> str:
    """One cell as plain text: numbers with four digits, configurations as ``name=value``, nothing for missing.

    Examples
    --------
    >>> text_of(0.123456), text_of(float("nan")), text_of({"C": 1.0, "penalty": "l2"})
    ('0.1235', '', 'C=1, penalty=l2')
    """
    if isinstance(value, Mapping):
        text = ", ".join(f"{name}={text_of(item)}" for name, item in value.items())
    elif isinstance(value, list | tuple):
        text = ", ".join(map(text_of, value))
    elif isinstance(value, float | np.floating):
        text = "" if np.isnan(value) else f"{value:.4g}"
    else:
        text = "" if value is None or value is pd.NA or value is pd.NaT else str(value)
    return text if len(text) <= _MAX_CELL else text[: _MAX_CELL - 1] + "…"


def table(frame: pd.DataFrame, *, caption: str, max_rows: int = MAX_ROWS) -> str:
    """A table with a caption and header cells that screen readers can follow; the index is left out.

    Parameters
    ----------
    frame : DataFrame
    caption : str
    max_rows : int, default=40
        A longer table is cut, and its caption says so.

    Examples
    --------
    >>> print(table(pd.DataFrame({"<b>": [1.5]}), caption="Widths"))
    <table class="dataframe"><caption>Widths</caption>
    <thead><tr><th scope="col">&lt;b&gt;</th></tr></thead>
    <tbody>
    <tr><td>1.5</td></tr>
    </tbody></table>
    """
    if len(frame) > max_rows:
        caption = f"{caption} (the first {max_rows} of {len(frame)})"
    head = "".join(f'<th scope="col">{escape(str(name))}</th>' for name in frame.columns)
    rows = "\n".join(
        "<tr>" + "".join(f"<td>{escape(text_of(value))}</td>" for value in row) + "</tr>"
        for row in frame.head(max_rows).itertuples(index=False, name=None)
    )
    return (
        f'<table class="dataframe"><caption>{escape(caption)}</caption>\n'
        f"<thead><tr>{head}</tr></thead>\n<tbody>\n{rows}\n</tbody></table>"
    )


def paragraphs(texts: Iterable[str]) -> str:
    """One ``<p>`` a text."""
    return "".join(f"<p>{escape(text)}</p>" for text in texts)


def details(summary: str, body: str) -> str:
    """A closed fold-out around ``body``, which must be HTML already."""
    return f"<details><summary>{escape(summary)}</summary>{body}</details>"


def selection_html(frame: pd.DataFrame, *, dataset: str, metric: str, seconds: float, explanation: str) -> str:
    """What a notebook shows of a Selection: the ranking, and a fold-out that explains it.

    Parameters
    ----------
    frame : DataFrame
        ``Selection.to_frame()``: family, metric, its low and high end, fit_seconds, config.
    dataset, metric : str
    seconds : float
        Time that the selection took.
    explanation : str
        ``Selection.explain()``, one sentence a line.
    """
    shown = frame.drop(columns=[f"{metric}_low", f"{metric}_high"])
    ends = zip(frame[f"{metric}_low"], frame[f"{metric}_high"], strict=True)
    shown.insert(2, "80 % interval", [f"{low:.4g} .. {high:.4g}" if low == low else "" for low, high in ends])
    shown.insert(0, "rank", frame.index)
    title = f"Selection for {dataset} by {metric}" + (f", in {seconds:.1f} s" if seconds == seconds else "")
    caption = f"Best configuration of each family, with the {metric} to expect"
    return paragraphs([title]) + table(shown, caption=caption) + details("Why", paragraphs(explanation.splitlines()))


def ledger_html(frame: pd.DataFrame, *, summary: str) -> str:
    """What a notebook shows of a Ledger.

    Parameters
    ----------
    frame : DataFrame
        ``Ledger.to_frame()``.
    summary : str
        Its first line, with the counts.
    """
    order = ["family", "status", "source", "score", "seconds", "started", "reason", "config"]
    shown = frame[[name for name in order if name in frame.columns]]
    return paragraphs([summary]) + table(shown, caption="What was run, in order; higher scores are better")


def fitted_html(
    name: str, *, best_score: float, metric: str, members: Iterable[tuple[str, float]], ledger: str, board: pd.DataFrame
) -> str:
    """What a notebook shows of a fitted estimator, above scikit-learn's own diagram.

    Parameters
    ----------
    name : str
        Class of the estimator.
    best_score : float
        Validation score of the best single candidate in the metric's own sign, NaN where there is none.
    metric : str
    members : iterable of (family, weight)
        Weights of the ensemble; they need not sum to one.
    ledger : str
        The counts of the ledger, in words.
    board : DataFrame
        The leaderboard.
    """
    parts = list(members)
    total = sum(weight for _, weight in parts) or 1.0
    model = ", ".join(f"{family} ({weight / total:.0%})" for family, weight in parts)
    score = f"Best validation {metric}: {best_score:.4g}." if best_score == best_score else "No candidate was measured."
    shown = board.reset_index().head(5)
    return (
        paragraphs([f"{name}, fitted. Model: {model}.", f"{score} {ledger}"])
        + table(shown, caption="The best of the leaderboard")
    )  # fmt: skip
