"""What the next trial could be, best first: from the belief while it leads, then from a surrogate of the study.

The one acquisition of the library: the estimator's search (`proposals.py`) and `MetaSampler` (`sampler.py`) both rank
with it and differ only in where trials are kept.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from scipy.spatial.distance import cdist

from autometa.family import Candidate
from autometa.tuning.costs import Costs, trial_seconds, value_per_second
from autometa.tuning.ensemble_gain import EnsembleValue
from autometa.tuning.handover import Handover, Surrogate
from autometa.tuning.history import Outcome, thinned
from autometa.tuning.knowledge import Knowledge
from autometa.tuning.neighbourhood import SupportsSample, at_random, perturbed
from autometa.tuning.spaces import Floats

if TYPE_CHECKING:
    from autometa.meta_model.belief import Belief

N_PROPOSED = 32
"""Fresh configurations from each generator that one trial may choose among."""

_N_RANKED = 400
_NEAR_FROM = 5
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
            value = value_per_second(gain, seconds, most, costs)
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
        ranks = np.argsort(-value_per_second(gain, seconds[best], most[best], costs), kind="stable")
        return [Choice(candidates[best[r]], "search", float(most[best[r]]), float(gain[r])) for r in ranks]

    def _nearest(self, candidates: Sequence[Candidate], position: Mapping[Candidate, int]) -> list[int]:
        """Positions of the most similar candidates that a belief speaks of: of the same family where it has one."""
        spaces, known = self.knowledge.spaces, list(position)
        nearest = cdist(spaces.vectors(candidates), spaces.vectors(known)).argmin(axis=1)
        return [position[known[i]] for i in nearest]


def _others_first(value: Floats, local: NDArray[np.bool_], others: NDArray[np.bool_]) -> Floats:
    """The values with those of neighbours of the best last, as long as the others promise something.

    What a belief says between the members of its pool is less certain than what it says of them: so neighbours get
    every second trial only. Where all others promise less than a tenth, their trial would be wasted.
    """
    if not (local.any() and others.any()) or value[others].max() < _LEAST_SHARE * value[local].max():
        return value
    return np.where(local, -math.inf, value)
