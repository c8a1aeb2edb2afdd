"""The time and the number of trials that a search may spend."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import dataclass, field


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
        Replaced in tests.

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

    @property
    def elapsed(self) -> float:
        """Seconds since birth."""
        return self.clock() - self.started

    @property
    def remaining(self) -> float:
        """Seconds left, never below 0."""
        return max(0.0, self.seconds - self.elapsed)

    @property
    def counts_trials(self) -> bool:
        return self.max_trials is not None

    def allows_trial(self, n_done: int) -> bool:
        """Whether a further trial may start after ``n_done`` trials."""
        return self.remaining > 0 and (self.max_trials is None or n_done < self.max_trials)
