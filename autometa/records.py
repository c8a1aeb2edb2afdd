"""What was measured (``Evaluation``) and what was done (``Ledger``)."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from autometa.family import Candidate
from autometa.html import ledger_html


class Status(StrEnum):
    """How a trial ended."""

    OK = "ok"
    TIMEOUT = "timeout"
    MEMORY = "memory"
    FAILED = "failed"
    PRUNED = "pruned"
    SKIPPED = "skipped"


@dataclass(frozen=True)
class Evaluation:
    """One candidate measured on one dataset.

    Parameters
    ----------
    dataset : str
        Fingerprint of the dataset.
    candidate : Candidate
    status : Status
    scores : mapping of metric name to tuple of float
        One score per split, higher is better.
    fit_seconds, predict_seconds : tuple of float
        One value per finished split.
    peak_memory_mb : float
        Highest resident memory of the worker above its idle level, NaN when unknown.
    n_train_rows : int
        Mean number of training rows of a split.
    done_share : float, default=1.0
        Share of the rounds or epochs asked for that were done, the least of the splits; below 1 where fits were cut
        short.
    seed : int
    reason : str
        Why it did not end well, or where its fits were cut short; empty otherwise.
    predictions : ndarray or None
        Out-of-fold predictions averaged over repeats, shape (n_rows, n_classes) or (n_rows,), NaN where a row was
        never held out; only on request.
    curve : mapping of str to sequence of float
        Only on request, mean over splits, at a few stages of the fits: ``rounds`` and the first metric of boosting,
        ``epochs`` and ``negative_validation_loss`` (the best so far, on their own hold-out) of nets.
    """

    dataset: str
    candidate: Candidate
    status: Status
    scores: Mapping[str, tuple[float, ...]] = field(default_factory=dict)
    fit_seconds: tuple[float, ...] = ()
    predict_seconds: tuple[float, ...] = ()
    peak_memory_mb: float = float("nan")
    n_train_rows: int = 0
    done_share: float = 1.0
    seed: int = 0
    reason: str = ""
    predictions: NDArray[Any] | None = field(default=None, repr=False, compare=False)
    curve: Mapping[str, Sequence[float]] = field(default_factory=dict, repr=False, compare=False)

    @property
    def ok(self) -> bool:
        return self.status is Status.OK

    @property
    def seconds(self) -> float:
        """Seconds spent in fits and predictions."""
        return float(sum(self.fit_seconds) + sum(self.predict_seconds))

    @property
    def split_seconds(self) -> float:
        """Mean seconds of a fit and the prediction of the rows held out, NaN before the first."""
        return self.seconds / len(self.fit_seconds) if self.fit_seconds else float("nan")

    def seconds_on(self, n_rows: int) -> float:
        """Expected seconds of one fit on so many rows, in proportion to those of a split."""
        return float(np.mean(self.fit_seconds)) * n_rows / max(1, self.n_train_rows)

    def score(self, metric: str) -> float:
        """Mean over splits, NaN where nothing was measured."""
        values = [value for value in self.scores.get(metric, ()) if math.isfinite(value)]
        return math.fsum(values) / len(values) if values else math.nan

    def standard_error(self, metric: str) -> float:
        """Standard error of :meth:`score` over splits, NaN with fewer than two."""
        values = np.asarray(self.scores.get(metric, ()), dtype=float)
        values = values[np.isfinite(values)]
        return float(values.std(ddof=1) / np.sqrt(len(values))) if len(values) > 1 else float("nan")


@dataclass(frozen=True)
class LedgerEntry:
    """One line of the ledger.

    Parameters
    ----------
    candidate : Candidate or None
        ``None`` for a note about the run as a whole.
    status : Status
    source : str
        Who asked for it: "default", "selection", "search", "ensemble", ...
    score, seconds : float
        NaN where there is none; score higher = better.
    started : float
        Seconds since the run began.
    reason : str
    """

    candidate: Candidate | None
    status: Status
    source: str
    score: float = float("nan")
    seconds: float = float("nan")
    started: float = float("nan")
    reason: str = ""


@dataclass(frozen=True)
class Ledger:
    """What was planned, run, pruned, failed and skipped, and why. A fitted estimator always has one."""

    entries: tuple[LedgerEntry, ...] = ()

    def __len__(self) -> int:
        return len(self.entries)

    def __iter__(self) -> Iterator[LedgerEntry]:
        return iter(self.entries)

    def add(self, entry: LedgerEntry) -> Ledger:
        """A ledger with one more line."""
        return Ledger((*self.entries, entry))

    def count(self, status: Status) -> int:
        """Number of lines with this status."""
        return sum(entry.status is status for entry in self.entries)

    def summary(self) -> str:
        """How many lines there are of each status, in words; notes about the run as a whole apart."""
        counts = Counter(entry.status for entry in self.entries if entry.candidate is not None)
        return ", ".join(f"{counts[status]} {status}" for status in Status if counts[status]) or "empty"

    def to_frame(self) -> pd.DataFrame:
        """One row per line, in order."""
        columns = ["family", "config", "status", "source", "score", "seconds", "started", "reason"]
        rows = [
            (
                entry.candidate.family if entry.candidate else "",
                dict(entry.candidate.config) if entry.candidate else {},
                str(entry.status), entry.source, entry.score, entry.seconds, entry.started, entry.reason,
            )
            for entry in self.entries
        ]  # fmt: skip
        return pd.DataFrame(rows, columns=columns)

    def __str__(self) -> str:
        shown = self.to_frame().drop(columns="config")
        return f"Ledger: {self.summary()}\n{shown.to_string(max_rows=20, float_format=lambda v: f'{v:.4g}')}"

    def _repr_html_(self) -> str:
        return ledger_html(self.to_frame(), summary=f"Ledger: {self.summary()}")
