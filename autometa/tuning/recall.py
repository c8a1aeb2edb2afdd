"""Candidates of other processes whose models are wanted here: they are measured again."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future

from autometa.evaluation import Evaluator
from autometa.interrupts import wait_for_first
from autometa.records import Evaluation
from autometa.tuning.library import best_first

N_RECALLED = 8
"""Candidates that a process wants to have models of."""
_MARGIN = 1.2
_MOST_OF_BUDGET = 0.3


def absent(evaluations: Sequence[Evaluation], metric: str, most: int = N_RECALLED) -> list[Evaluation]:
    """The best of the best evaluations whose out-of-fold predictions are not here."""
    return [e for e in best_first(evaluations, metric)[:most] if e.predictions is None]


def recall_seconds(wanted: Sequence[Evaluation], *, n_jobs: int, budget_seconds: float) -> float:
    """Time to keep for :func:`recall`, at most three tenths of the budget."""
    return min(_MARGIN * sum(e.seconds for e in wanted) / n_jobs, _MOST_OF_BUDGET * budget_seconds)


def recall(
    evaluator: Evaluator, wanted: Sequence[Evaluation], *, n_jobs: int, seconds_left: Callable[[], float | None]
) -> Iterator[tuple[Evaluation, Evaluation]]:
    """Measure candidates again, in order, those that fit into the time left.

    The same splits and the same seed give the same models, so nothing but time is lost by not storing them.

    Parameters
    ----------
    evaluator : Evaluator
    wanted : sequence of Evaluation
    n_jobs : int
        Candidates at a time.
    seconds_left : callable
        Seconds until all must have ended, ``None`` for no limit.

    Yields
    ------
    tuple of Evaluation
        What was known and what was found.
    """
    queue, running = list(wanted), dict[Future[Evaluation], Evaluation]()
    try:
        while queue or running:
            left = seconds_left()
            while queue and len(running) < n_jobs:
                known = queue.pop(0)
                if left is None or known.seconds < left:
                    future = evaluator.submit(known.candidate, time_limit=left, predictions=True, keep_models=True)
                    running[future] = known
            done, late = wait_for_first(running, left)
            for future in done:
                yield running.pop(future), future.result()
            if late and not done:
                return
    finally:
        for future in running:
            future.cancel()
