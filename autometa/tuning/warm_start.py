"""What the warm start saved or cost, judged by the belief after the search."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np
from scipy.special import ndtr

from autometa.tuning.history import Outcome
from autometa.tuning.neighbourhood import at_random
from autometa.tuning.spaces import Floats

if TYPE_CHECKING:
    from autometa.tuning.knowledge import Knowledge

HORIZON = 100
"""A cold start that takes longer counts as this many trials."""

_N_RANDOM = 64


@dataclass(frozen=True)
class WarmStartReport:
    """How soon the study reached its best score, and how soon a cold start is expected to.

    The cold start tries the default of each family in their fixed order and then configurations at random. Those
    among them that the study measured count as measured; of the others the belief, after all trials, says how
    likely they reach the score. It is an estimate, not a measurement.

    Parameters
    ----------
    n_trials : int
        Finished trials.
    reached_at : int
        First trial (counted from 1) whose score is within one standard error of the best, where that is known.
    cold_reached_at : float
        Expected trial at which the cold start gets there, at most ``HORIZON``.
    cold_low, cold_high : float
        80 % interval of that trial.
    best_by_source : mapping of str to float
        Best score (higher = better) of the trials of each source.
    """

    n_trials: int = 0
    reached_at: int = 0
    cold_reached_at: float = math.nan
    cold_low: float = math.nan
    cold_high: float = math.nan
    best_by_source: Mapping[str, float] = field(default_factory=dict)

    @property
    def saved(self) -> float:
        """Trials saved; negative where the warm start cost some, NaN where nothing can be said."""
        return self.cold_reached_at - self.reached_at

    def __str__(self) -> str:
        if not math.isfinite(self.saved):
            return "Nothing can be said of the warm start: no scored trial, or no belief."
        verb = f"{'saved' if self.saved > 0 else 'cost'} about {abs(self.saved):.0f} trials"
        if abs(self.saved) < 0.5:
            verb = "neither saved nor cost trials"
        return (
            f"The best score was reached at trial {self.reached_at} of {self.n_trials}; a cold start is expected to "
            f"reach it at trial {self.cold_reached_at:.0f} (80 % interval {self.cold_low:.0f} to "
            f"{self.cold_high:.0f}): the warm start {verb}."
        )


def report(knowledge: Knowledge, history: Sequence[Outcome], *, seed: int = 0) -> WarmStartReport:
    """Compare a study's history with the cold start that it replaced.

    Parameters
    ----------
    knowledge : Knowledge
    history : sequence of Outcome
        In the order in which the trials ended.
    seed : int
        Of the random configurations.
    """
    scored = [o for o in history if o.scored and o.complete]
    best_by_source: dict[str, float] = {}
    for outcome in scored:
        source = outcome.source or "other"
        best_by_source[source] = max(outcome.score, best_by_source.get(source, -math.inf))
    if knowledge.belief is None or not scored:
        return WarmStartReport(len(history), best_by_source=best_by_source)
    best = max(scored, key=lambda o: o.score)
    target = best.score - (best.standard_error if math.isfinite(best.standard_error) else 0.0)
    reached_at = next(i for i, o in enumerate(history, 1) if o.scored and o.complete and o.score >= target)
    unreached = _survival(_cold_chances(knowledge, history, target, seed))
    expected = float(unreached.sum())
    low, high = (float(np.argmax(unreached <= level) if unreached[-1] <= level else HORIZON) for level in (0.9, 0.1))
    return WarmStartReport(len(history), reached_at, expected, low, high, best_by_source)


def _cold_chances(knowledge: Knowledge, history: Sequence[Outcome], target: float, seed: int) -> Floats:
    """Probability that each trial of a cold start reaches the target, given that earlier ones did not, (HORIZON,)."""
    defaults = list(knowledge.spaces.defaults.values())
    drawn = at_random(knowledge.spaces, np.random.default_rng(seed), n=_N_RANDOM)
    belief, position = knowledge.updated(history, more=[*(o.candidate for o in history), *defaults, *drawn])
    chance = ndtr((belief.mean - target) / belief.std)
    for outcome in history:
        chance[position[outcome.candidate]] = float(outcome.scored and outcome.complete and outcome.score >= target)
    first = [chance[position[default]] for default in defaults][:HORIZON]
    rest = float(np.mean([chance[position[candidate]] for candidate in drawn]))
    return np.array([*first, *[rest] * (HORIZON - len(first))])


def _survival(chances: Floats) -> Floats:
    """Probability that the target is not reached after 0, 1, ... trials, shape (len(chances) + 1,)."""
    survival: Floats = np.concatenate([[1.0], np.cumprod(1.0 - chances)])
    return survival
