"""One live line while a search runs."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

from rich.console import Console
from rich.live import Live
from rich.text import Text

from autometa.metrics import Metric
from autometa.records import Ledger, Status

if TYPE_CHECKING:
    from autometa.tuning import Budget

Report = Callable[[Ledger], None]


@contextmanager
def progress_line(budget: Budget, metric: Metric, *, enabled: bool) -> Iterator[Report | None]:
    """A callback that keeps one line up to date on standard error; ``None`` when not enabled."""
    if not enabled:
        yield None
        return
    with Live(Text("selecting ..."), console=Console(stderr=True), refresh_per_second=4, transient=False) as live:
        yield lambda ledger: live.update(Text(describe(ledger, budget, metric)))


def describe(ledger: Ledger, budget: Budget, metric: Metric) -> str:
    """Trials, best score, last candidate and the time left, in one line."""
    good = [entry for entry in ledger if entry.status is Status.OK]
    last = next((entry for entry in reversed(ledger.entries) if entry.candidate is not None), None)
    parts = [f"{len(ledger)} trials"]
    if good:
        best = max(good, key=lambda entry: entry.score)
        family = best.candidate.family if best.candidate else ""
        parts.append(f"best {metric.name} {metric.from_score(best.score):.4g} ({family})")
    if last is not None and last.candidate is not None:
        parts.append(f"last {last.candidate.family} {last.status}")
    left = "no time limit" if math.isinf(budget.seconds) else f"{budget.remaining:.0f} s left"
    return ", ".join([*parts, left])
