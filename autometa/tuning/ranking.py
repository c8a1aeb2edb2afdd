"""What the next trial could be, best first: from the belief while it leads, then from a surrogate of the study.

The one acquisition of the library: the estimator's search (`proposals.py`) and `MetaSampler` (`sampler.py`) both rank
with it and differ only in where trials are kept.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from scipy.spatial.distance import cdist

from autometa.family import Candidate
from autometa.tuning.ensemble_gain import EnsembleValue
from autometa.tuning.extension import extend
from autometa.tuning.handover import Handover, Surrogate
from autometa.tuning.history import Outcome, settled, thinned
from autometa.tuning.neighbourhood import SupportsSample, at_random, perturbed
from autometa.tuning.spaces import Floats, Spaces

if TYPE_CHECKING:
    from autometa.meta_model.belief import Belief

N_PROPOSED = 32
"""Fresh configurations from each generator that one trial may choose among."""
N_SCATTERED = 256
"""Configurations at random that the surrogate of a search may choose among, the same in every trial."""

FIXED_SECONDS = 0.05
"""What a trial costs beside fitting: sending it to a worker, updating the belief."""

_FIRST_SECONDS = 2.0
_N_RANKED = 400
_NEAR_FROM = 5
_LONG_TAIL = 0.8
_N_REMEMBERED = 4
_DRAWN_FOR = 4
_N_SHORTLIST = 64
_LEAST_SHARE = 0.1


class Choice(NamedTuple):
    """A candidate, who proposes it, and what it promises.

    Parameters
    ----------
    candidate : Candidate
    source : str
    seconds : float
        Of its trial, hardly to be exceeded; NaN where nothing is known.
    gain : float
        Expected improvement, raw units; NaN where nothing is known.
    """

    candidate: Candidate
    source: str
    seconds: float = math.nan
    gain: float = math.nan


class Costs(NamedTuple):
    """How expected improvement is weighed.

    Parameters
    ----------
    per_second : bool
    n_fits : int
        Fits of a trial.
    overhead : float
        Seconds of a trial beside fitting.
    remaining : float
        Seconds left; dearer candidates are not proposed while there is an affordable one.
    first : float
        Limit in seconds on the very first trial, where there is a candidate that keeps it.
    extra : mapping of str to float
        Seconds that a trial of a family takes on top, such as the first import of a library.
    caution : float
        Standard deviations of the logarithm between the expected seconds and what will hardly be exceeded.
    """

    per_second: bool = True
    n_fits: int = 1
    overhead: float = FIXED_SECONDS
    remaining: float = math.inf
    first: float = _FIRST_SECONDS
    extra: Mapping[str, float] = {}
    caution: float = _LONG_TAIL


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


@dataclass(frozen=True)
class Ranker:
    """Ranks what the next trial could be.

    The value of a candidate is its expected improvement, per expected second of its trial where costs count. The first
    trial is the best forecast among the cheap ones. Then the defaults of the best families race the candidates of the
    largest value: the pool, what a policy proposes, neighbours of the best trials, and candidates without a forecast,
    which are held for average and uncertain. Once the study's own trials foretell each other better than the belief
    does, a surrogate fitted to them takes the lead.

    Parameters
    ----------
    knowledge : Knowledge
    policy : object with ``sample(rng, n)`` or None
        Proposes configurations for this dataset.
    n_defaults : int
        Defaults that race the warm start: they take the second, fourth, ... place until so many were tried.
    handover : Handover
        Who leads; keeps its comparisons.
    has_surrogate : bool
        Whether the surrogate ranks here once it leads; otherwise somebody else proposes then.
    ensemble : EnsembleValue or None
        Given: the expected gain to an ensemble counts, mixed with single improvement while there are few models.
    """

    knowledge: Knowledge
    policy: SupportsSample | None = None
    n_defaults: int = 2
    handover: Handover = field(default_factory=Handover)
    has_surrogate: bool = True
    ensemble: EnsembleValue | None = None
    _drawn: dict[Any, dict[Candidate, str]] = field(default_factory=dict, repr=False, compare=False)

    def surrogate_leads(self, history: Sequence[Outcome]) -> bool:
        """Whether the study's own trials are the better guide; without a belief once there are enough of them."""
        if self.knowledge.belief is None:
            return sum(outcome.scored for outcome in history) >= self.handover.min_trials
        self.handover.compare(history, self.knowledge)
        return self.handover.surrogate_leads(history)

    def rank(
        self,
        history: Sequence[Outcome],
        pending: Sequence[Candidate],
        *,
        costs: Costs,
        rng: np.random.Generator,
        wide: bool = False,
    ) -> list[Choice]:
        """Untried candidates, best first.

        Parameters
        ----------
        history : sequence of Outcome
        pending : sequence of Candidate
            Of running trials.
        costs : Costs
        rng : Generator
        wide : bool
            With neighbours of the best and configurations at random, for when nothing else is affordable.
        """
        taken = {*(outcome.candidate for outcome in history), *pending}
        leads = self.surrogate_leads(history)
        if leads and self.has_surrogate:
            ranked = self._by_surrogate(history, pending, costs, rng=rng)
        elif self.knowledge.belief is not None:
            ranked = self._by_belief(history, pending, costs, rng=rng, wide=wide)
        else:
            ranked = [Choice(candidate, "listed") for candidate in self.knowledge.listed]
        ranked = [choice for choice in ranked if choice.candidate not in taken][:_N_RANKED]
        if not ranked or (wide and self.knowledge.belief is None):
            ranked += [Choice(c, "random") for c in at_random(self.knowledge.spaces, rng, n=16) if c not in taken]
        return [*self._defaults(taken, costs), *ranked]

    def _defaults(self, taken: set[Candidate], costs: Costs) -> list[Choice]:
        """The next defaults to race where it is a default's turn, of the families in the order of the belief."""
        belief, pool = self.knowledge.belief, self.knowledge.pool
        if belief is None or len(taken) % 2 == 0 or len(taken) >= 2 * self.n_defaults:
            return []
        families = dict.fromkeys(candidate.family for candidate in self.knowledge.candidates)
        waiting = [self.knowledge.spaces.defaults[name] for name in families]
        _, most = trial_seconds(belief, pool, costs)
        found = []
        for default in waiting:
            alike = [s for c, s in zip(pool, most, strict=True) if c == default]
            alike = alike or [s for c, s in zip(pool, most, strict=True) if c.family == default.family]
            seconds = float(np.median(alike)) if alike else math.nan
            if default not in taken and not (costs.per_second and seconds > costs.remaining):
                found.append(Choice(default, "default", seconds))
        return found

    def _fresh(
        self, history: Sequence[Outcome], n_taken: int, rng: np.random.Generator, *, near: bool
    ) -> dict[Candidate, str]:
        """Candidates outside the pool, by who proposes them; ``near``: with neighbours of the best trials.

        They are drawn anew for every few trials and whenever the best change, so that a belief over them can be brought
        up to date trial by trial.
        """
        good = sorted((o for o in history if o.scored and o.complete), key=lambda o: -o.score)[:3] if near else []
        key = (tuple(outcome.candidate for outcome in good), n_taken // _DRAWN_FOR)
        if key not in self._drawn:
            self._drawn.clear()
            self._drawn[key] = self._draw(key[0], rng)
        return self._drawn[key]

    def _draw(self, good: Sequence[Candidate], rng: np.random.Generator) -> dict[Candidate, str]:
        spaces = self.knowledge.spaces
        found: dict[Candidate, str] = {}
        if self.policy is not None:
            proposed = [c for c in self.policy.sample(rng, N_PROPOSED) if spaces.is_valid(c)]
            found |= {spaces.canonical(candidate): "policy" for candidate in proposed}
        for candidate, share in zip(good, (2, 4, 4), strict=False):
            found |= dict.fromkeys(perturbed(candidate, spaces, rng, n=N_PROPOSED // share), "local")
        return found

    def _by_belief(
        self,
        history: Sequence[Outcome],
        pending: Sequence[Candidate],
        costs: Costs,
        *,
        rng: np.random.Generator,
        wide: bool,
    ) -> list[Choice]:
        pool, tried = self.knowledge.pool, {*(outcome.candidate for outcome in history), *pending}
        wide = wide or tried.issuperset(pool)
        near = wide or len(history) >= _NEAR_FROM
        fresh = dict.fromkeys(self.knowledge.listed, "listed") | self._fresh(history, len(tried), rng, near=near)
        if wide:
            fresh |= dict.fromkeys(at_random(self.knowledge.spaces, rng, n=N_PROPOSED), "random")
        belief, position = self.knowledge.updated(history, pending, list(fresh))
        seconds, most = trial_seconds(belief, list(position), costs, at=list(position.values()))
        gain = self._gain(belief, position, history)[list(position.values())]
        if not belief.tried:
            cheap = (
                seconds <= max(costs.first, float(seconds.min())) if costs.per_second else np.full(len(seconds), True)
            )
            value = np.where(cheap, gain, gain - np.ptp(gain) - 1.0)
        else:
            value = _per_second(gain, seconds, most, costs)
        sources = {**fresh, **dict.fromkeys(pool, "selection")}
        if not wide and len(history) % 2 == 0:
            local = np.array([sources.get(candidate) == "local" for candidate in position])
            untried = np.array([candidate not in tried for candidate in position])
            value = _others_first(value, local, untried & ~local)
        choices = [
            Choice(c, sources.get(c, "selection"), float(most[i]), float(gain[i])) for i, c in enumerate(position)
        ]
        ranks = np.lexsort((np.array(list(position.values())), -value))
        return [choices[i] for i in ranks]

    def _gain(self, belief: Belief, position: Mapping[Candidate, int], history: Sequence[Outcome]) -> Floats:
        """Expected improvement of the best model or of the ensemble, in the order of the belief."""
        members = sorted((o for o in history if o.scored and o.complete), key=lambda o: -o.score)
        if self.ensemble is None or not members:
            return belief.expected_improvement()
        families = [""] * len(belief)
        for candidate, index in position.items():
            families[index] = candidate.family
        return self.ensemble(belief, families, [o.candidate.family for o in members])

    def _by_surrogate(
        self, history: Sequence[Outcome], pending: Sequence[Candidate], costs: Costs, *, rng: np.random.Generator
    ) -> list[Choice]:
        spaces, spread = self.knowledge.spaces, self.knowledge.spread(history)
        taken = {*(outcome.candidate for outcome in history), *pending}
        fresh = [*self._fresh(history, len(taken), rng, near=True), *self.knowledge.scattered]
        candidates = [c for c in dict.fromkeys([*self.knowledge.candidates, *fresh]) if c not in taken]
        if not candidates:
            return []
        seen = thinned(history)
        surrogate = self.handover.surrogate(spaces, seen, spread)
        if pending:
            lies = np.minimum(surrogate.forecast(pending).mean, surrogate.incumbent)
            running = [Outcome(-1, c, float(lie)) for c, lie in zip(pending, lies, strict=True)]
            surrogate = Surrogate(spaces, [*seen, *running], spread=spread)
        if self.knowledge.belief is None:
            candidates = [candidates[i] for i in surrogate.shortlist(candidates, _N_SHORTLIST)]
            gain = surrogate.expected_improvement(candidates)
            ranks = np.argsort(-gain, kind="stable")
            return [Choice(candidates[i], "search", gain=float(gain[i])) for i in ranks]
        belief, position = self.knowledge.updated(history)
        seconds, most = trial_seconds(belief, candidates, costs, at=self._nearest(candidates, position))
        open_ = np.flatnonzero(most <= costs.remaining) if costs.per_second else np.arange(len(candidates))
        open_ = open_ if len(open_) else np.arange(len(candidates))
        per = seconds[open_] + costs.overhead if costs.per_second else None
        best = open_[surrogate.shortlist([candidates[i] for i in open_], _N_SHORTLIST, seconds=per)]
        gain = surrogate.expected_improvement([candidates[i] for i in best])
        ranks = np.argsort(-_per_second(gain, seconds[best], most[best], costs), kind="stable")
        return [Choice(candidates[best[r]], "search", float(most[best[r]]), float(gain[r])) for r in ranks]

    def _nearest(self, candidates: Sequence[Candidate], position: Mapping[Candidate, int]) -> list[int]:
        """Positions of the most similar candidates that a belief speaks of: of the same family where it has one."""
        spaces, known = self.knowledge.spaces, list(position)
        nearest = cdist(spaces.vectors(candidates), spaces.vectors(known)).argmin(axis=1)
        return [position[known[i]] for i in nearest]


def trial_seconds(
    belief: Belief, candidates: Sequence[Candidate], costs: Costs, *, at: Sequence[int] | None = None
) -> tuple[Floats, Floats]:
    """Expected seconds of whole trials, and what they will hardly exceed, each of shape (len(candidates),).

    An average stands where nothing is known. ``at``: positions in the belief; by default the first ones.
    """
    index = np.arange(len(candidates)) if at is None else np.asarray(at, dtype=np.intp)
    everyone = np.asarray(belief.seconds, dtype=float)
    known = np.isfinite(everyone)
    seconds = np.where(known, everyone, np.median(everyone[known]) if known.any() else 1.0)[index] * costs.n_fits
    seconds = seconds + np.array([costs.extra.get(c.family, 0.0) for c in candidates])
    tail = np.clip(np.nan_to_num(np.asarray(belief.seconds_std, dtype=float)[index], nan=0.5), 0.1, 1.2)
    return seconds, seconds * np.exp(costs.caution * tail)


def _per_second(gain: Floats, seconds: Floats, most: Floats, costs: Costs) -> Floats:
    if not costs.per_second:
        return gain
    value = gain / (seconds + costs.overhead)
    affordable = most <= costs.remaining
    return np.where(affordable | ~affordable.any(), value, -1.0 / (1.0 + np.maximum(value, 0.0)))


def _others_first(value: Floats, local: NDArray[np.bool_], others: NDArray[np.bool_]) -> Floats:
    """The values with those of neighbours of the best last, as long as the others promise something.

    What a belief says between the members of its pool is less certain than what it says of them: so neighbours get
    every second trial only. Where all others promise less than a tenth, their trial would be wasted.
    """
    if not (local.any() and others.any()) or value[others].max() < _LEAST_SHARE * value[local].max():
        return value
    return np.where(local, -math.inf, value)


def within(costs: Costs, seconds: float, remaining: float) -> Costs:
    """The same costs within a budget of ``seconds``, of which some remain; the first trial gets a twentieth of it."""
    first = min(_FIRST_SECONDS, 0.05 * seconds) if math.isfinite(seconds) else _FIRST_SECONDS
    return costs._replace(remaining=remaining, first=first)
