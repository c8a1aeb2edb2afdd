"""Which candidate to try next: a schedule of warm start, belief and Optuna's own sampler."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

import numpy as np
import optuna
from numpy.typing import NDArray

from autometa.family import Candidate, ModelFamily
from autometa.records import Evaluation, Status
from autometa.tuning.budget import Budget

if TYPE_CHECKING:
    from autometa.meta_model import Belief

FIXED_SECONDS = 0.05
"""What a trial costs beside fitting: sending it to a worker, updating the belief."""
_BOOT_SECONDS = 3.0
_FIRST_SHARE = 0.05
_WARM_TRIALS = 12
_LONG_TAIL = 0.8
_ATTEMPTS = 5


@dataclass(frozen=True, eq=False)
class WarmStart:
    """What a search starts from.

    Parameters
    ----------
    candidates : sequence of Candidate
        Best first, the first ``len(belief)`` of them in the order of the belief.
    belief : Belief or None
    seconds_factor : float, default=1.0
        Ratio of rows beyond the corpus, by which forecast seconds grow.
    """

    candidates: Sequence[Candidate]
    belief: Belief | None = None
    seconds_factor: float = 1.0


@dataclass(frozen=True)
class Proposal:
    """A candidate to try, who asked for it and its trial."""

    candidate: Candidate
    source: str
    trial: optuna.Trial | None = field(default=None, repr=False, compare=False)


@dataclass
class Proposer:
    """Chooses trials; told of every outcome.

    The first trial is the best candidate among the cheap ones. Then the defaults of the two best families race the
    picks of the belief (expected improvement, per second where time is the limit). After 12 trials every second one
    comes from Optuna's TPE, which has then seen all of them. What would most likely not end in time is left out.

    Parameters
    ----------
    start : WarmStart
    families : sequence of ModelFamily
    study : optuna.Study
    n_fits : int
        Fits per trial, to turn forecast seconds into the cost of a trial.
    budget : Budget
    metric : str
    """

    start: WarmStart
    families: Sequence[ModelFamily]
    study: optuna.Study
    n_fits: int
    budget: Budget
    metric: str
    taken: set[Candidate] = field(default_factory=set)
    n_proposed: int = 0
    outcomes: list[Evaluation] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.adopt(self.start)

    def adopt(self, start: WarmStart) -> None:
        """Go on from another warm start; it is told of all outcomes so far."""
        self.start, self.belief = start, start.belief
        n_believed = 0 if start.belief is None else len(start.belief)
        self.pool = list(start.candidates[:n_believed])
        self.positions = {candidate: i for i, candidate in enumerate(self.pool)}
        heavy = {family.name for family in self.families if "torch" in family.requires}
        self._heavy = np.array([candidate.family in heavy for candidate in self.pool], dtype=bool)
        for number, outcome in enumerate(self.outcomes):
            self._learn(outcome, self.outcomes[:number])

    def resume(self, outcomes: Sequence[Evaluation]) -> None:
        """Go on after these outcomes of an earlier search."""
        self.outcomes = list(outcomes)
        self.taken.update(outcome.candidate for outcome in outcomes)
        self.n_proposed += len(outcomes)
        self.adopt(self.start)

    def next(self, spendable: float = math.inf) -> Proposal | None:
        """The next proposal; ``None`` when nothing that fits into so many seconds is left."""
        proposal = self._choose(spendable)
        if proposal is None:
            return None
        self.taken.add(proposal.candidate)
        self.n_proposed += 1
        if proposal.trial is None:
            self.study.enqueue_trial(trial_params(proposal.candidate))
            trial = self.study.ask()
            suggest(trial, self.families)
            proposal = replace(proposal, trial=trial)
        proposal.trial.set_user_attr("source", proposal.source)  # type: ignore[union-attr]
        return proposal

    def tell(self, evaluation: Evaluation) -> None:
        """Update the belief with one outcome."""
        self._learn(evaluation, self.outcomes)
        self.outcomes.append(evaluation)

    def trial_seconds(self, candidate: Candidate) -> float:
        """Forecast cost of a trial in seconds, for candidates outside the pool that of their family; NaN if unknown."""
        if self.belief is not None:
            seconds = self._pool_seconds()
            if candidate in self.positions:
                return float(seconds[self.positions[candidate]])
            alike = seconds[[c.family == candidate.family for c in self.pool]]
            if len(alike):
                return float(np.median(alike))
        seen = [e.seconds for e in self.outcomes if e.candidate.family == candidate.family and e.ok]
        return max(seen) if seen and self.budget.counts_time else math.nan

    def expected_gain(self) -> float:
        """Largest expected improvement among the untried candidates of the pool; NaN without a belief."""
        open_ = self._open()
        if self.belief is None or not open_.any():
            return math.nan
        return float(np.max(self.belief.expected_improvement()[open_]))

    def _learn(self, evaluation: Evaluation, earlier: Sequence[Evaluation]) -> None:
        index = self.positions.get(evaluation.candidate)
        if self.belief is None or index is None:
            return
        seconds = None
        if self.budget.counts_time and evaluation.fit_seconds:
            seconds = float(np.mean(evaluation.fit_seconds)) / self.start.seconds_factor
        score, error = estimated_score(evaluation, earlier, self.metric)
        if math.isfinite(score):
            known = error if math.isfinite(error) and error > 0 else None
            self.belief = self.belief.observe(index, score, standard_error=known, seconds=seconds)
        elif evaluation.status in {Status.FAILED, Status.MEMORY, Status.OK}:
            self.belief = self.belief.observe_failure(index)
        elif seconds is not None:
            self.belief = self.belief.observe_seconds(index, seconds)

    def _choose(self, spendable: float) -> Proposal | None:
        if self.n_proposed >= _WARM_TRIALS and self.n_proposed % 2:
            return self._searched(spendable) or self._believed(spendable)
        warm = self._default(spendable) if self.n_proposed in (1, 3) else None
        return warm or self._believed(spendable) or self._listed(spendable) or self._searched(spendable)

    def _open(self) -> NDArray[np.bool_]:
        return np.array([candidate not in self.taken for candidate in self.pool], dtype=bool)

    def _believed(self, spendable: float) -> Proposal | None:
        if self.belief is None:
            return None
        open_ = self._open()
        value = self.belief.mean.copy() if self.n_proposed == 0 else self.belief.expected_improvement()
        if not self.budget.counts_trials:
            seconds = self._pool_seconds()
            open_ &= seconds * self._safety() <= spendable
            if self.n_proposed == 0:
                open_ &= seconds <= max(_FIRST_SHARE * self.budget.seconds, float(np.nanmin(seconds)))
            else:
                value = value / (seconds + FIXED_SECONDS)
        if not open_.any():
            return None
        index = int(np.argmax(np.where(open_, value, -np.inf)))
        return Proposal(self.pool[index], "selection")

    def _default(self, spendable: float) -> Proposal | None:
        """The default configuration of the best family whose default was not tried."""
        defaults = {f.name: f.default_candidate() for f in self.families}
        for candidate in self.start.candidates:
            default = defaults[candidate.family]
            if default not in self.taken and self._affordable(default, spendable):
                return Proposal(default, "default")
        return None

    def _listed(self, spendable: float) -> Proposal | None:
        """Candidates without a forecast, in their order."""
        for candidate in self.start.candidates[len(self.pool) :]:
            if candidate not in self.taken and self._affordable(candidate, spendable):
                return Proposal(candidate, "listed")
        return None

    def _searched(self, spendable: float) -> Proposal | None:
        """A configuration from Optuna's sampler; a few attempts to leave those tried and those too slow."""
        for _ in range(_ATTEMPTS):
            trial = self.study.ask()
            candidate = suggest(trial, self.families)
            if candidate not in self.taken and self._affordable(candidate, spendable):
                return Proposal(candidate, "search", trial)
            self.study.tell(trial, state=optuna.trial.TrialState.FAIL)
        return None

    def _affordable(self, candidate: Candidate, spendable: float) -> bool:
        if self.budget.counts_trials:
            return True
        seconds = self.trial_seconds(candidate)
        return not seconds > spendable

    def _pool_seconds(self) -> Any:
        assert self.belief is not None
        seconds = np.nan_to_num(self.belief.seconds, nan=1.0) * self.start.seconds_factor * self.n_fits
        imported = any(c.family in self._heavy_names for c in self.taken)
        return seconds if imported else seconds + _BOOT_SECONDS * self._heavy

    @property
    def _heavy_names(self) -> set[str]:
        return {candidate.family for candidate, heavy in zip(self.pool, self._heavy, strict=True) if heavy}

    def _safety(self) -> Any:
        """Factor between the median of a forecast time and what it will hardly exceed."""
        assert self.belief is not None
        if not self.budget.counts_time:
            return 1.0
        return np.exp(_LONG_TAIL * np.clip(np.nan_to_num(self.belief.seconds_std, nan=0.5), 0.1, 1.2))


def estimated_score(evaluation: Evaluation, earlier: Sequence[Evaluation], metric: str) -> tuple[float, float]:
    """Score over all folds and its standard error, also where only the first folds were finished.

    Some folds are easier than others: the first folds are compared with the same folds of the best earlier candidate.
    NaN where there is nothing to go by.
    """
    if evaluation.ok:
        return evaluation.score(metric), evaluation.standard_error(metric)
    found = np.asarray(evaluation.scores.get(metric, ()), dtype=float)
    whole = [e for e in earlier if e.ok and math.isfinite(e.score(metric))]
    if evaluation.status not in {Status.PRUNED, Status.TIMEOUT} or not len(found) or not whole:
        return math.nan, math.nan
    best = max(whole, key=lambda e: e.score(metric))
    folds = np.asarray(best.scores[metric], dtype=float)
    difference = found - folds[: len(found)]
    noise = max(float(np.std(difference)), 0.5 * float(np.std(folds)))
    error = math.hypot(np.nan_to_num(best.standard_error(metric)), noise / math.sqrt(len(found)))
    return best.score(metric) + float(difference.mean()), error


def suggest(trial: optuna.Trial, families: Sequence[ModelFamily]) -> Candidate:
    """The candidate of an Optuna trial: a family, then its hyperparameters as ``family.name``."""
    by_name = {family.name: family for family in families}
    name = trial.suggest_categorical("family", list(by_name))
    return Candidate(name, by_name[name].search_space.suggest(trial, prefix=f"{name}."))


def trial_params(candidate: Candidate) -> dict[str, Any]:
    """Parameters under which Optuna knows a candidate."""
    return {"family": candidate.family, **{f"{candidate.family}.{k}": v for k, v in candidate.config.items()}}


OUTCOMES = {
    Status.OK: optuna.trial.TrialState.COMPLETE,
    Status.PRUNED: optuna.trial.TrialState.PRUNED,
}
"""How a status is told to Optuna; everything else is a failure."""
