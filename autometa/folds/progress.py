"""How the splits of one candidate go: what they gave so far, whether the others are worth their time, what is cut."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from autometa.families._deadlines import ROUNDS, FitLimit
from autometa.families._staged import ROUNDS_AND_RATE
from autometa.family import Candidate
from autometa.fitting import EncodedData
from autometa.folds.request import Request
from autometa.records import Evaluation, Status
from autometa.splitting import Split

_HASTE = 0.8
_FIT_SHARE = 0.7


@dataclass
class Tally:
    """Results of the splits so far."""

    scores: dict[str, list[float]] = field(default_factory=dict)
    fit_seconds: list[float] = field(default_factory=list)
    predict_seconds: list[float] = field(default_factory=list)

    def add(self, scores: Mapping[str, float], fit_seconds: float, predict_seconds: float) -> None:
        for name, value in scores.items():
            self.scores.setdefault(name, []).append(value)
        self.fit_seconds.append(fit_seconds)
        self.predict_seconds.append(predict_seconds)

    def evaluation(self, request: Request, splits: Sequence[Split], **changes: Any) -> Evaluation:
        return replace(
            request.blank(),
            scores={name: tuple(values) for name, values in self.scores.items()},
            fit_seconds=tuple(self.fit_seconds),
            predict_seconds=tuple(self.predict_seconds),
            n_train_rows=round(float(np.mean([len(train) for train, _ in splits]))),
            **changes,
        )

    def verdict(self, request: Request, n_splits: int, elapsed: float) -> dict[str, Any]:
        """Status and reason where the remaining splits are not worth their time; empty to go on."""
        done = len(self.fit_seconds)
        if done == n_splits:
            return {}
        if request.rival is not None:
            reason = request.rival.verdict(self.scores.get(request.rival.metric, ()))
            if reason:
                return {"status": Status.PRUNED, "reason": reason}
        each = min(f + p for f, p in zip(self.fit_seconds, self.predict_seconds, strict=True))
        needed = elapsed + _HASTE * each * (n_splits - done)  # the first fold may be slow for other reasons
        if request.time_limit is not None and needed > request.time_limit:
            reason = f"It would need about {needed:.2g} s of the {request.time_limit:.2g} s that are left for it."
            return {"status": Status.TIMEOUT, "reason": reason}
        return {}


@dataclass
class Pace:
    """Cuts fits short so that all splits of a candidate end within its time limit.

    Boosting and forests are cut in the first split, and the others do as many rounds or trees: what is measured then is
    a candidate of that many, comparable and repeatable (CatBoost's first split nearly so). Nets are cut in every split.
    """

    request: Request
    n_splits: int
    started: float = field(default_factory=time.perf_counter)
    note: str = ""
    done_share: float = 1.0

    def limit(self, estimator: Any, done: int) -> FitLimit | None:
        """The limit of the next fit, ``None`` where nothing is cut."""
        request = self.request
        if not request.cut_short or request.time_limit is None or (done and request.family.name in ROUNDS):
            return None
        left = request.time_limit - (time.perf_counter() - self.started)
        return FitLimit(estimator, max(_FIT_SHARE * left / (self.n_splits - done), 1e-3))

    def see(self, limit: FitLimit | None) -> None:
        """Learn from a fit whether it was cut short."""
        if limit is None:
            return
        candidate = self.request.candidate
        rounds, epochs = limit.rounds(), limit.epochs()
        if rounds is not None:
            name = ROUNDS[candidate.family]
            self._cut(rounds, candidate.config[name], "rounds" if candidate.family in ROUNDS_AND_RATE else "trees")
            shorter = Candidate(candidate.family, {**candidate.config, name: rounds})
            self.request = replace(self.request, candidate=shorter)
        elif epochs is not None:
            self._cut(epochs, candidate.config.get("n_epochs"), "epochs")

    def _cut(self, done: int, asked: int | None, unit: str) -> None:
        self.note = f"stopped after {done}{f' of {asked}' if asked else ''} {unit}, as time was short"
        if asked:
            self.done_share = min(self.done_share, max(done, 1) / asked)

    def verdict(self, tally: Tally) -> dict[str, Any]:
        """Status and reason where a candidate that was cut short is not even as good as the best on its splits."""
        rival = self.request.rival
        if not self.note or rival is None or len(tally.fit_seconds) == self.n_splits:
            return {}
        found = tally.scores.get(rival.metric, [])
        if np.mean(found) >= np.mean(rival.scores[: len(found)]):
            return {}
        return {"status": Status.TIMEOUT, "reason": f"{self.note}, and behind the best"}


class OutOfFold:
    """Predictions of held-out rows, averaged where a row was held out more than once."""

    def __init__(self, data: EncodedData) -> None:
        n_rows = len(data.y)
        self.total = np.zeros((n_rows, data.n_classes) if data.task.is_classification else n_rows)
        self.count = np.zeros(n_rows)

    def add(self, rows: NDArray[np.intp], prediction: NDArray[np.float64]) -> None:
        self.total[rows] += prediction
        self.count[rows] += 1

    def mean(self) -> NDArray[np.float64]:
        count = np.where(self.count == 0, np.nan, self.count)
        return np.asarray(self.total / (count[:, None] if self.total.ndim == 2 else count), dtype=np.float64)
