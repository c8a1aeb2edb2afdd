"""What is believed of candidates before any trial of a study, and how trials bring it up to date."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from autometa.family import Candidate
from autometa.tuning.extension import extend
from autometa.tuning.history import Outcome, settled, thinned
from autometa.tuning.neighbourhood import at_random
from autometa.tuning.spaces import Spaces

if TYPE_CHECKING:
    from autometa.meta_model.belief import Belief

N_SCATTERED = 256
"""Configurations at random that the surrogate of a search may choose among, the same in every trial."""

_N_REMEMBERED = 4


class _Memory(NamedTuple):
    """A belief that was brought up to date, to go on from."""

    history: tuple[Outcome, ...]
    belief: Belief
    prior: Belief
    """Over the same candidates, before the history."""
    position: dict[Candidate, int]


@dataclass(frozen=True)
class Knowledge:
    """A belief before any trial, over a list of candidates, and how it is brought up to date.

    Parameters
    ----------
    spaces : Spaces
    candidates : tuple of Candidate
        In the order of the belief, then those that it does not know.
    belief : Belief or None
    """

    spaces: Spaces
    candidates: tuple[Candidate, ...]
    belief: Belief | None = None
    _remembered: list[_Memory] = field(default_factory=list, repr=False, compare=False)

    @property
    def pool(self) -> tuple[Candidate, ...]:
        """The candidates that the belief speaks of."""
        return self.candidates[: len(self.belief)] if self.belief is not None else ()

    @property
    def listed(self) -> tuple[Candidate, ...]:
        """The candidates that it does not."""
        return self.candidates[len(self.pool) :]

    def updated(
        self, history: Sequence[Outcome], pending: Sequence[Candidate] = (), more: Sequence[Candidate] = ()
    ) -> tuple[Belief, dict[Candidate, int]]:
        """The belief after ``history``, and the position of every candidate in it.

        Parameters
        ----------
        history : sequence of Outcome
        pending : sequence of Candidate
            Trials still running; each is taken to end at its expected score, or at the best one found if that is less.
        more : sequence of Candidate
            Further candidates to speak of.
        """
        known, history = dict.fromkeys(self.pool), thinned(settled(history))
        new = [c for c in dict.fromkeys([*(o.candidate for o in history), *pending, *more]) if c not in known]
        belief, position = self._after(tuple(history), new)
        for candidate in pending:
            lie = float(belief.mean[position[candidate]])
            belief = belief.observe(position[candidate], min(lie, belief.incumbent) if belief.tried else lie)
        return belief, {candidate: position[candidate] for candidate in dict.fromkeys([*known, *new])}

    def spread(self, history: Sequence[Outcome]) -> float:
        """Standard deviation of the expected scores among candidates after ``history``; 0 without a belief."""
        if self.belief is None:
            return 0.0
        belief, position = self.updated(history)
        return float(belief.mean[list(position.values())].std())

    def _after(self, history: tuple[Outcome, ...], new: Sequence[Candidate]) -> tuple[Belief, dict[Candidate, int]]:
        """A belief that speaks at least of the pool and ``new``, from the one in memory that is nearest to it."""
        assert self.belief is not None
        able = [memory for memory in self._remembered if all(candidate in memory.position for candidate in new)]
        before = [memory for memory in able if memory.history == history[: len(memory.history)]]
        nearest = max(before, key=lambda memory: len(memory.history), default=None)
        if nearest is not None and (len(nearest.history) == len(history) or all(map(_says_its_error, history))):
            prior, position, belief, seen = nearest.prior, nearest.position, nearest.belief, len(nearest.history)
        elif able:
            prior, position, belief, seen = able[-1].prior, able[-1].position, able[-1].prior, 0
        else:
            prior, seen = extend(self.belief, self.pool, new, self.spaces), 0
            # Read from the end, so that of equal candidates the first has the say.
            position, belief = {c: i for i, c in reversed(list(enumerate([*self.pool, *new])))}, prior
        for outcome in history[seen:]:
            belief = _observed(belief, position[outcome.candidate], outcome, history)
        if nearest is None or belief is not nearest.belief:
            self._remembered.append(_Memory(history, belief, prior, position))
            del self._remembered[:-_N_REMEMBERED]
        return belief, position

    @cached_property
    def scattered(self) -> list[Candidate]:
        """Configurations at random, the same whenever they are asked for."""
        return at_random(self.spaces, np.random.default_rng(0), n=N_SCATTERED)


def _says_its_error(outcome: Outcome) -> bool:
    """Whether what a belief hears of an outcome does not depend on other outcomes."""
    return outcome.complete or not outcome.scored or math.isfinite(outcome.standard_error)


def _observed(belief: Belief, index: int, outcome: Outcome, history: Sequence[Outcome]) -> Belief:
    error: float | None = outcome.standard_error if math.isfinite(outcome.standard_error) else None
    if outcome.scored and not outcome.complete and error is None:
        # A pruned trial's last value is a rough word about its final score: as rough as trials differ.
        scores = [o.score for o in history if o.scored and o.complete]
        error = float(np.std(scores)) if len(scores) > 1 else 0.0
    seconds = outcome.seconds if math.isfinite(outcome.seconds) else None
    if outcome.scored and error != 0.0:
        return belief.observe(index, outcome.score, error, seconds=seconds)
    if outcome.failed:
        return belief.observe_failure(index)
    return belief if seconds is None else belief.observe_seconds(index, seconds)
