"""What a person sees while a search runs: one live line, and scikit-learn's callbacks."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, TypeVar, cast

from rich.console import Console
from rich.live import Live
from rich.text import Text

from autometa.family import Candidate
from autometa.metrics import Metric
from autometa.records import Ledger, Status

if TYPE_CHECKING:
    from autometa.tuning import Budget

try:
    from sklearn.callback import CallbackSupportMixin as CallbackSupportMixin
    from sklearn.callback import with_callbacks as _torn_down
except ImportError:  # scikit-learn before 1.9 has no callbacks
    _torn_down = None

    class CallbackSupportMixin:  # type: ignore[no-redef]
        """Nothing is added."""


Method = TypeVar("Method", bound=Callable[..., Any])


def with_callbacks(method: Method) -> Method:
    """A method after which scikit-learn's callbacks are torn down, where there are any."""
    return method if _torn_down is None else cast(Method, _torn_down(method))


@dataclass
class Watch:
    """Told of every trial: keeps a line up to date and hands on to callbacks.

    Parameters
    ----------
    budget : Budget
    metric : Metric
    show : callable or None
        Shows a line of text whenever there is news; a terminal asks for the line itself.
    callbacks : callable or None
        Called after each trial; ``True`` ends the search.
    """

    budget: Budget
    metric: Metric
    show: Callable[[str], Any] | None = None
    callbacks: Callable[[], bool] | None = None
    ledger: Ledger = field(default_factory=Ledger)
    current: Candidate | None = None
    final: float = math.nan

    def begin(self, candidate: Candidate, final: float) -> None:
        """A trial begins; ``final`` is the score that the best candidate is expected to have in the end, or NaN."""
        self.current, self.final = candidate, final
        self._refresh()

    def __call__(self, ledger: Ledger) -> bool:
        """A trial has ended; whether the search should."""
        self.ledger = ledger
        self._refresh()
        return self.callbacks is not None and self.callbacks()

    def _refresh(self) -> None:
        if self.show is not None:
            self.show(self.line())

    def line(self) -> str:
        """Time left, trials, best score, forecast of the final score and the candidate that runs."""
        if self.current is None and not len(self.ledger):
            return "selecting ..."
        left = f"{self.budget.remaining:.0f} s left"
        if math.isinf(self.budget.seconds):
            left = "no time limit"
        trials = [entry for entry in self.ledger if entry.candidate is not None]
        limit = "" if self.budget.max_trials is None else f"/{self.budget.max_trials}"
        parts = [left, f"{len(trials)}{limit} trials"]
        good = [entry for entry in trials if entry.status is Status.OK and math.isfinite(entry.score)]
        if good:
            best = max(good, key=lambda entry: entry.score)
            family = best.candidate.family if best.candidate else ""
            shown = f"best {self.metric.name} {self.metric.from_score(best.score):.4g} ({family})"
            final = max(self.final, best.score) if math.isfinite(self.final) else math.nan
            parts.append(shown + (f", {self.metric.from_score(final):.4g} expected" if math.isfinite(final) else ""))
        if self.current is not None:
            parts.append(f"now {self.current.family}")
        return ", ".join(parts)


@contextmanager
def progress_line(budget: Budget, metric: Metric, *, enabled: bool, estimator: Any = None) -> Iterator[Watch | None]:
    """What a search tells of its trials; ``None`` where nobody wants to know.

    Parameters
    ----------
    budget : Budget
    metric : Metric
    enabled : bool
        Keep one line up to date on standard error, in a notebook below the cell.
    estimator : scikit-learn estimator or None
        Whose callbacks are told.
    """
    with _trial_callbacks(estimator, budget.max_trials) as callbacks:
        watch = Watch(budget, metric, callbacks=callbacks)
        console = Console(stderr=True)
        if not enabled:
            yield None if callbacks is None else watch
        elif console.is_jupyter:
            watch.show = _notebook_line()
            yield watch
        else:
            try:
                with Live(get_renderable=lambda: Text(watch.line()), console=console, refresh_per_second=4):
                    yield watch
            finally:
                if not console.is_terminal:
                    console.line()  # rich leaves the last line open where output is not a terminal


def _notebook_line() -> Callable[[str], Any]:
    """One output of the running cell whose text is replaced; rich itself would need ipywidgets."""
    from IPython.display import display

    handle = display({"text/plain": "selecting ..."}, raw=True, display_id=True)  # type: ignore[no-untyped-call]
    return lambda line: handle.update({"text/plain": line}, raw=True)


@contextmanager
def _trial_callbacks(estimator: Any, max_trials: int | None) -> Iterator[Callable[[], bool] | None]:
    """Tells the callbacks that were set on a scikit-learn estimator (1.9 or later) of each trial; ``None`` without any.

    A trial is a task below the fit; a callback that answers ``True`` at its end stops the search.
    """
    if not getattr(estimator, "_skl_callbacks", None) and not hasattr(estimator, "_parent_callback_ctx"):
        yield None
        return
    root = estimator._init_callback_context(max_subtasks=max_trials)
    root.call_on_fit_task_begin(estimator=estimator)

    def trial_ended() -> bool:
        context = root.subcontext(task_name="trial")
        context.call_on_fit_task_begin(estimator=estimator)
        return bool(context.call_on_fit_task_end(estimator=estimator))

    yield trial_ended
    root.call_on_fit_task_end(estimator=estimator)
