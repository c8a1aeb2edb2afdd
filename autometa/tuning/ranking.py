"""What the next trial could be, best first: from the belief while it leads, then from a surrogate of the study."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from autometa.family import Candidate
from autometa.tuning.extension import extend
from autometa.tuning.handover import Surrogate
from autometa.tuning.history import Outcome, settled
from autometa.tuning.neighbourhood import SupportsSample, at_random, perturbed
from autometa.tuning.spaces import Floats, Spaces

if TYPE_CHECKING:
    from autometa.meta_model.belief import Belief

N_PROPOSED = 64
"""Fresh configurations from each generator that one trial may choose among."""

_FIRST_SECONDS = 2.0
_N_RANKED = 400
_NEAR_FROM = 5


class Choice(NamedTuple):
    """A candidate and who proposes it."""

    candidate: Candidate
    source: str


class Costs(NamedTuple):
    """How expected improvement is weighed.

    Parameters
    ----------
    per_second : bool
    n_fits : float
        Seconds of a trial in units of the forecast for one fit: the number of fits, times the growth with the rows.
    overhead : float
        Seconds of a trial beside fitting.
    remaining : float
        Seconds left; dearer candidates are not proposed while there is an affordable one.
    first : float
        Limit in seconds on the very first trial, where there is a candidate that keeps it.
    """

    per_second: bool = True
    n_fits: float = 1.0
    overhead: float = 0.05
    remaining: float = math.inf
    first: float = _FIRST_SECONDS


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

    @property
    def pool(self) -> tuple[Candidate, ...]:
        """The candidates that the belief speaks of."""
        return self.candidates[: len(self.belief)] if self.belief is not None else ()

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
        assert self.belief is not None
        known = dict.fromkeys(self.pool)
        new = [c for c in dict.fromkeys([*(o.candidate for o in history), *pending, *more]) if c not in known]
        belief = extend(self.belief, self.pool, new, self.spaces)
        # Read from the end, so that of equal candidates the first has the say.
        position = {c: i for i, c in reversed(list(enumerate([*self.pool, *new])))}
        for outcome in settled(history):
            belief = _observed(belief, position[outcome.candidate], outcome, history)
        for candidate in pending:
            lie = float(belief.mean[position[candidate]])
            belief = belief.observe(position[candidate], min(lie, belief.incumbent) if belief.tried else lie)
        return belief, position


def _observed(belief: Belief, index: int, outcome: Outcome, history: Sequence[Outcome]) -> Belief:
    error: float | None = outcome.standard_error if math.isfinite(outcome.standard_error) else None
    if outcome.scored and not outcome.complete:
        # A pruned trial's last value is a rough word about its final score: as rough as trials differ.
        scores = [o.score for o in history if o.scored and o.complete]
        error = float(np.std(scores)) if len(scores) > 1 else 0.0
    if not outcome.scored or error == 0.0:
        return belief.observe_failure(index)
    seconds = outcome.seconds if math.isfinite(outcome.seconds) else None
    return belief.observe(index, outcome.score, error, seconds=seconds)


@dataclass(frozen=True)
class Ranker:
    """Ranks what the next trial could be.

    Parameters
    ----------
    knowledge : Knowledge
    policy : object with ``sample(rng, n)`` or None
        Proposes configurations for this dataset.
    n_defaults : int
        Defaults that race the warm start: they take the second, fourth, ... place until so many were tried.
    """

    knowledge: Knowledge
    policy: SupportsSample | None = None
    n_defaults: int = 2

    def rank(
        self,
        history: Sequence[Outcome],
        pending: Sequence[Candidate],
        *,
        costs: Costs,
        rng: np.random.Generator,
        surrogate: Surrogate | None = None,
    ) -> list[Choice]:
        """Untried candidates, best first.

        Parameters
        ----------
        history : sequence of Outcome
        pending : sequence of Candidate
            Of running trials.
        costs : Costs
        rng : Generator
        surrogate : Surrogate or None
            Given: it leads.
        """
        taken = {*(outcome.candidate for outcome in history), *pending}
        if surrogate is not None:
            ranked = self._by_surrogate(history, pending, costs, rng=rng, surrogate=surrogate)
        elif self.knowledge.belief is not None:
            ranked = self._by_belief(history, pending, costs, rng=rng)
        else:
            ranked = []
        listed = self.knowledge.candidates[len(self.knowledge.pool) :]
        ranked += [Choice(candidate, "listed") for candidate in listed]
        ranked = [choice for choice in ranked if choice.candidate not in taken][:_N_RANKED]
        if not ranked:
            ranked = [Choice(c, "random") for c in at_random(self.knowledge.spaces, rng, n=16) if c not in taken]
        return [*self._defaults(taken, costs), *ranked]

    def _defaults(self, taken: set[Candidate], costs: Costs) -> list[Choice]:
        """The next defaults to race where it is a default's turn, of the families in the order of the belief."""
        belief, pool = self.knowledge.belief, list(self.knowledge.pool)
        if belief is None or len(taken) % 2 == 0 or len(taken) >= 2 * self.n_defaults:
            return []
        seconds = _trial_seconds(belief, costs)
        families = dict.fromkeys(candidate.family for candidate in self.knowledge.candidates)
        waiting = [self.knowledge.spaces.defaults[name] for name in families]
        dear = {pool[i] for i in np.flatnonzero(seconds > costs.remaining)} if costs.per_second else set()
        return [Choice(default, "default") for default in waiting if default not in taken | dear]

    def _fresh(self, history: Sequence[Outcome], rng: np.random.Generator, *, near: bool) -> dict[Candidate, str]:
        """Candidates outside the pool, by who proposes them; ``near``: with neighbours of the best trials."""
        spaces = self.knowledge.spaces
        found: dict[Candidate, str] = {}
        if self.policy is not None:
            proposed = [c for c in self.policy.sample(rng, N_PROPOSED) if spaces.is_valid(c)]
            found |= {spaces.canonical(candidate): "policy" for candidate in proposed}
        good = sorted((o for o in history if o.scored and o.complete), key=lambda o: -o.score) if near else []
        for outcome, share in zip(good, (2, 4, 4), strict=False):
            found |= dict.fromkeys(perturbed(outcome.candidate, spaces, rng, n=N_PROPOSED // share), "local")
        return found

    def _by_belief(
        self, history: Sequence[Outcome], pending: Sequence[Candidate], costs: Costs, *, rng: np.random.Generator
    ) -> list[Choice]:
        # What a belief says between the members of its pool is less certain than what it says of them: neighbours of
        # the best get every second trial, after the race of the first ones.
        near = len(history) >= _NEAR_FROM and len(history) % 2 == 1
        fresh = self._fresh(history, rng, near=near)
        belief, position = self.knowledge.updated(history, pending, list(fresh))
        seconds = _trial_seconds(belief, costs)
        if not belief.tried:
            cheap = (
                seconds <= max(costs.first, float(seconds.min())) if costs.per_second else np.ones(len(seconds), bool)
            )
            value = np.where(cheap, belief.mean, belief.mean - np.ptp(belief.mean) - 1.0)
        else:
            value = _per_second(belief.expected_improvement(), seconds, costs)
        sources = {**fresh, **dict.fromkeys(self.knowledge.pool, "belief")}
        ranked = sorted(position.items(), key=lambda item: (-value[item[1]], item[1]))
        return [Choice(candidate, sources.get(candidate, "belief")) for candidate, _ in ranked]

    def _by_surrogate(
        self,
        history: Sequence[Outcome],
        pending: Sequence[Candidate],
        costs: Costs,
        *,
        rng: np.random.Generator,
        surrogate: Surrogate,
    ) -> list[Choice]:
        spaces = self.knowledge.spaces
        fresh = [*self._fresh(history, rng, near=True), *at_random(spaces, rng, n=4 * N_PROPOSED)]
        candidates = list(dict.fromkeys([*self.knowledge.candidates, *fresh]))
        if pending:
            lies = np.minimum(surrogate.forecast(pending).mean, surrogate.incumbent)
            running = [Outcome(-1, c, float(lie)) for c, lie in zip(pending, lies, strict=True)]
            surrogate = Surrogate(spaces, [*history, *running], spread=surrogate.spread)
        seconds = np.ones(len(candidates))
        if self.knowledge.belief is not None and costs.per_second:
            belief, position = self.knowledge.updated(history, (), candidates)
            seconds = _trial_seconds(belief, costs)[[position[candidate] for candidate in candidates]]
        value = _per_second(surrogate.expected_improvement(candidates), seconds, costs)
        return [Choice(candidates[i], "search") for i in np.argsort(-value, kind="stable")]


def _trial_seconds(belief: Belief, costs: Costs) -> Floats:
    """Forecast seconds of a whole trial, shape (C,); an average where nothing is known."""
    seconds = np.asarray(belief.seconds, dtype=float)
    known = np.isfinite(seconds)
    return np.where(known, seconds, np.median(seconds[known]) if known.any() else 1.0) * costs.n_fits


def _per_second(value: Floats, seconds: Floats, costs: Costs) -> Floats:
    if not costs.per_second:
        return value
    value = value / (seconds + costs.overhead)
    affordable = seconds <= costs.remaining
    return np.where(affordable | ~affordable.any(), value, -1.0 / (1.0 + value))


def within(costs: Costs, seconds: float, remaining: float) -> Costs:
    """The same costs within a budget of ``seconds``, of which some remain; the first trial gets a twentieth of it."""
    first = min(_FIRST_SECONDS, 0.05 * seconds) if math.isfinite(seconds) else _FIRST_SECONDS
    return costs._replace(remaining=remaining, first=first)
