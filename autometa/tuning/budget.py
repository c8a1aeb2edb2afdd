"""The time, the work or the number of trials that a search may spend."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Self


@dataclass
class WorkClock:
    """Counts work instead of time: seconds as forecast before the search, the same in every run.

    Examples
    --------
    >>> clock = WorkClock()
    >>> clock.add(2.5)
    >>> clock()
    2.5
    """

    done: float = 0.0

    def __call__(self) -> float:
        return self.done

    def add(self, seconds: float) -> None:
        """Book the forecast seconds of a trial."""
        self.done += seconds


@dataclass(frozen=True)
class Budget:
    """A limit in wall-clock seconds, in trials, or both; the clock starts on birth.

    Parameters
    ----------
    seconds : float, default=inf
        Must be > 0.
    max_trials : int or None, default=None
        Must be >= 1. With a limit in trials, decisions do not depend on measured times.
    clock : callable, default=time.perf_counter
        A :class:`WorkClock` makes the seconds units of work; replaced in tests.

    Raises
    ------
    ValueError
        A limit is not positive.
    """

    seconds: float = math.inf
    max_trials: int | None = None
    clock: Callable[[], float] = field(default=time.perf_counter, repr=False, compare=False)
    started: float = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        if not self.seconds > 0:
            raise ValueError(f"The time budget must be > 0 seconds. Got {self.seconds} instead.")
        if self.max_trials is not None and self.max_trials < 1:
            raise ValueError(f"The number of trials must be >= 1. Got {self.max_trials} instead.")
        object.__setattr__(self, "started", self.clock())

    @classmethod
    def of(cls, seconds: float, max_trials: int | None = None, unit: str = "seconds") -> Self:
        """A budget in ``"seconds"`` or in ``"work"``."""
        if unit not in {"seconds", "work"}:
            raise ValueError(f"budget_unit must be 'seconds' or 'work'. Got {unit!r} instead.")
        return cls(seconds, max_trials, clock=time.perf_counter if unit == "seconds" else WorkClock())

    def after(self, n_trials: int) -> Self:
        """The same budget, with its limit on trials counted after so many earlier ones."""
        if self.max_trials is None:
            return self
        later = replace(self, max_trials=self.max_trials + n_trials)
        object.__setattr__(later, "started", self.started)
        return later

    @property
    def elapsed(self) -> float:
        """Seconds since birth."""
        return self.clock() - self.started

    @property
    def remaining(self) -> float:
        """Seconds left, never below 0."""
        return max(0.0, self.seconds - self.elapsed)

    @property
    def seconds_left(self) -> float | None:
        """Seconds of the clock on the wall that are left; ``None`` where it sets no limit."""
        return None if self.counts_work or math.isinf(self.seconds) else self.remaining

    @property
    def counts_trials(self) -> bool:
        return self.max_trials is not None

    @property
    def counts_work(self) -> bool:
        return isinstance(self.clock, WorkClock)

    @property
    def counts_time(self) -> bool:
        """Whether measured times may enter decisions."""
        return not (self.counts_trials or self.counts_work)

    def book(self, seconds: float) -> None:
        """Count the work of a trial; without effect where time is measured."""
        if isinstance(self.clock, WorkClock):
            self.clock.add(seconds)

    def allows_trial(self, n_done: int) -> bool:
        """Whether a further trial may start after ``n_done`` trials."""
        return self.remaining > 0 and (self.max_trials is None or n_done < self.max_trials)
