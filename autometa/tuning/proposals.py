"""The proposals of the estimator's search: the common ranking over what its own evaluations say, within its budget."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
import optuna
from optuna.distributions import BaseDistribution, CategoricalDistribution
from scipy.special import ndtr

from autometa.family import Candidate, ModelFamily
from autometa.records import Evaluation, Status
from autometa.tuning.budget import Budget
from autometa.tuning.costs import Costs, trial_seconds, within
from autometa.tuning.ensemble_gain import EnsembleValue
from autometa.tuning.handover import Handover
from autometa.tuning.history import CANDIDATE, WORKER, Outcome
from autometa.tuning.knowledge import Knowledge
from autometa.tuning.neighbourhood import SupportsSample
from autometa.tuning.ranking import Choice, Ranker
from autometa.tuning.spaces import Floats, Spaces
from autometa.tuning.warm_start import WarmStartReport, report

if TYPE_CHECKING:
    from autometa.meta_model import Belief

_BOOT_SECONDS = 3.0


@dataclass(frozen=True, eq=False)
class WarmStart:
    """What a search starts from.

    Parameters
    ----------
    candidates : sequence of Candidate
        Best first, the first ``len(belief)`` of them in the order of the belief.
    belief : Belief or None
    ensemble : EnsembleValue or None
        Given: candidates are valued by what they add to an ensemble.
    policy : object with ``sample(rng, n)`` or None
        Proposes further configurations for this dataset.
    """

    candidates: Sequence[Candidate]
    belief: Belief | None = None
    ensemble: EnsembleValue | None = None
    policy: SupportsSample | None = None


@dataclass(frozen=True)
class Proposal:
    """A candidate to try, who asked for it and its trial."""

    candidate: Candidate
    source: str
    trial: optuna.Trial | None = field(default=None, repr=False, compare=False)


@dataclass
class Proposer:
    """Chooses trials; told of every outcome.

    What comes next is ranked by :class:`autometa.tuning.ranking.Ranker`; what would most likely not end in time is left
    out. The study keeps the record.

    Parameters
    ----------
    start : WarmStart
    families : sequence of ModelFamily
    study : optuna.Study
    n_fits : int
        Fits per trial, to turn forecast seconds into the cost of a trial.
    budget : Budget
    metric : str
    seed : int, default=0
        Of fresh configurations.
    worker : str, default=""
        Name of this process, where several share the study.
    """

    start: WarmStart
    families: Sequence[ModelFamily]
    study: optuna.Study
    n_fits: int
    budget: Budget
    metric: str
    seed: int = 0
    taken: set[Candidate] = field(default_factory=set)
    n_proposed: int = 0
    outcomes: list[Evaluation] = field(default_factory=list)
    worker: str = ""

    def __post_init__(self) -> None:
        self._spaces = Spaces.of_families(self.families)
        self._heavy = {family.name for family in self.families if "torch" in family.requires}
        self._history: list[Outcome] = []
        self._sources: dict[Candidate, str] = {}
        self._overdue: dict[int, float] = {}
        self.adopt(self.start)

    def adopt(self, start: WarmStart) -> None:
        """Go on from another warm start; it knows of all outcomes so far."""
        self.start = start
        candidates = tuple(map(self._spaces.canonical, start.candidates))
        self.knowledge = Knowledge(self._spaces, candidates, start.belief)
        self._ranker = Ranker(self.knowledge, start.policy, handover=Handover(), ensemble=start.ensemble)
        self._current: tuple[int, Belief | None, dict[Candidate, int]] = (-1, None, {})
        self._ranking: dict[bool, tuple[tuple[int, int], list[Choice]]] = {}
        self._history = [self._outcome(i) for i in range(len(self.outcomes))]

    def resume(self, outcomes: Sequence[Evaluation]) -> None:
        """Go on after these outcomes of an earlier search."""
        self.outcomes = list(outcomes)
        self.taken.update(outcome.candidate for outcome in outcomes)
        self.n_proposed += len(outcomes)
        self.adopt(self.start)

    def next(self, spendable: float = math.inf) -> Proposal | None:
        """The next proposal; ``None`` when nothing that fits into so many seconds is left."""
        choice = self._affordable(self._choices(spendable), spendable)
        choice = choice or self._affordable(self._choices(spendable, wide=True), spendable)
        if choice is None:
            return None
        candidate = choice.candidate
        self.taken.add(candidate)
        self.n_proposed += 1
        self._sources[candidate] = choice.source
        trial = start_trial(self.study, candidate, self.families, self.worker)
        trial.set_user_attr("source", choice.source)
        return Proposal(candidate, choice.source, trial)

    def tell(self, evaluation: Evaluation, took: float = math.nan) -> None:
        """Take one outcome into account.

        Parameters
        ----------
        evaluation : Evaluation
        took : float, optional
            Seconds after which it was stopped. Where no fit was finished then, one takes at least as long: the belief
            hears of it if it had expected less.
        """
        if not evaluation.fit_seconds and took > self.trial_seconds(evaluation.candidate) / self.n_fits:
            self._overdue[len(self.outcomes)] = took
        self.outcomes.append(evaluation)
        self._history.append(self._outcome(len(self.outcomes) - 1))

    def trial_seconds(self, candidate: Candidate) -> float:
        """Forecast cost of a trial in seconds, for candidates outside the pool that of their family; NaN if unknown."""
        belief, position = self._belief()
        if belief is not None:
            alike = [c for c in position if c == candidate] or [c for c in position if c.family == candidate.family]
            if alike:
                seconds, _ = trial_seconds(belief, alike, self._costs(), at=[position[c] for c in alike])
                return float(np.median(seconds))
        seen = [e.seconds for e in self.outcomes if e.candidate.family == candidate.family and e.ok]
        return max(seen) if seen and self.budget.counts_time else math.nan

    def expected_gain(self, *, wide: bool = False) -> float:
        """Largest expected gain among what could be tried next; NaN where nothing is known.

        ``wide``: with neighbours of the best and configurations at random.
        """
        known = [choice.gain for choice in self._choices(wide=wide) if math.isfinite(choice.gain)]
        return max(known, default=math.nan)

    def expected_best(self, n_trials: float) -> float:
        """Score that the best candidate is expected to have after so many further trials, NaN without a belief.

        The trials are taken to be those of the largest expected improvement, and independent, so that it is a little
        too high where candidates are alike.
        """
        belief, position = self._belief()
        open_ = np.array([i for c, i in position.items() if c not in self.taken], dtype=np.intp)
        if belief is None or not belief.tried:
            return math.nan
        if not len(open_) or n_trials < 1:
            return belief.incumbent
        best = open_[np.argsort(-belief.expected_improvement()[open_])][: int(min(n_trials, len(open_)))]
        return expected_maximum(belief.incumbent, belief.mean[best], belief.std[best])

    def warm_start_report(self) -> WarmStartReport:
        """How many trials the warm start saved or cost against a cold start, as far as the belief can tell."""
        return report(self.knowledge, self._history, seed=self.seed)

    def _belief(self) -> tuple[Belief | None, dict[Candidate, int]]:
        """The belief after all that was told, and the positions in it."""
        if self.knowledge.belief is not None and self._current[0] != len(self._history):
            self._current = (len(self._history), *self.knowledge.updated(self._history))
        return self._current[1], self._current[2]

    def _choices(self, spendable: float = math.inf, *, wide: bool = False) -> list[Choice]:
        """What could be tried next, best first, whatever it costs."""
        key = (len(self._history), len(self.taken))
        if wide not in self._ranking or self._ranking[wide][0] != key:
            told = {outcome.candidate for outcome in self._history}
            pending = sorted(self.taken - told, key=lambda candidate: candidate.key)
            rng = np.random.default_rng([self.seed, self.n_proposed])
            ranked = self._ranker.rank(self._history, pending, costs=self._costs(spendable), rng=rng, wide=wide)
            self._ranking[wide] = key, [choice for choice in ranked if choice.candidate not in self.taken]
        return self._ranking[wide][1]

    def _affordable(self, choices: Sequence[Choice], spendable: float) -> Choice | None:
        """The first choice that should end in so many seconds."""
        if self.budget.counts_trials or not math.isfinite(spendable):
            return choices[0] if choices else None
        for choice in choices:
            seconds = choice.seconds if math.isfinite(choice.seconds) else self.trial_seconds(choice.candidate)
            if not seconds > spendable:
                return choice
        return None

    def _costs(self, spendable: float = math.inf) -> Costs:
        booted = any(candidate.family in self._heavy for candidate in self.taken)
        extra = {} if booted else dict.fromkeys(self._heavy, _BOOT_SECONDS)
        costs = Costs(not self.budget.counts_trials, self.n_fits, extra=extra)
        costs = within(costs, self.budget.seconds, spendable)
        return costs if self.budget.counts_time else costs._replace(caution=0.0)

    def _outcome(self, number: int) -> Outcome:
        """What an evaluation says to the belief."""
        evaluation = self.outcomes[number]
        score, error = estimated_score(evaluation, self.outcomes[:number], self.metric)
        seconds = self._overdue.get(number, math.nan) if self.budget.counts_time else math.nan
        if self.budget.counts_time and evaluation.fit_seconds:
            seconds = evaluation.split_seconds / evaluation.done_share
        return Outcome(
            number, self._spaces.canonical(evaluation.candidate), score, error if error > 0 else math.nan, seconds,
            complete=evaluation.ok, source=self._sources.get(evaluation.candidate, ""),
            failed=evaluation.status in {Status.FAILED, Status.MEMORY, Status.OK},
        )  # fmt: skip


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


def expected_maximum(floor: float, mean: Floats, std: Floats) -> float:
    """Expected maximum of a number and independent Gaussians.

    Examples
    --------
    >>> round(expected_maximum(0.0, np.zeros(1), np.ones(1)), 3)
    0.399
    """
    top = max(floor, float((mean + 6.0 * std).max()))
    grid = floor + (top - floor) * (np.arange(400) + 0.5) / 400
    below = np.prod(ndtr((grid[:, None] - mean) / std), axis=1)
    return floor + (top - floor) * float(np.mean(1.0 - below))


def suggest(trial: optuna.Trial, families: Sequence[ModelFamily]) -> Candidate:
    """The candidate of an Optuna trial: a family, then its hyperparameters as ``family.name``."""
    by_name = {family.name: family for family in families}
    name = trial.suggest_categorical("family", list(by_name))
    return Candidate(name, by_name[name].search_space.suggest(trial, prefix=f"{name}."))


def start_trial(
    study: optuna.Study, candidate: Candidate, families: Sequence[ModelFamily], worker: str = ""
) -> optuna.Trial:
    """A running trial of this candidate, created with all its parameters in one step, which others cannot cut up."""
    search_space = next(family.search_space for family in families if family.name == candidate.family)
    names = [family.name for family in families]
    distributions: dict[str, BaseDistribution] = {"family": CategoricalDistribution(names)}
    distributions |= {f"{candidate.family}.{name}": search_space[name] for name in candidate.config}
    template = optuna.trial.create_trial(
        state=optuna.trial.TrialState.RUNNING, params=trial_params(candidate), distributions=distributions,
        user_attrs={CANDIDATE: candidate.key, **({WORKER: worker} if worker else {})},
    )  # fmt: skip
    return optuna.Trial(study, study._storage.create_new_trial(study._study_id, template_trial=template))


def trial_params(candidate: Candidate) -> dict[str, Any]:
    """Parameters under which Optuna knows a candidate."""
    return {"family": candidate.family, **{f"{candidate.family}.{k}": v for k, v in candidate.config.items()}}


OUTCOMES = {
    Status.OK: optuna.trial.TrialState.COMPLETE,
    Status.PRUNED: optuna.trial.TrialState.PRUNED,
}
"""How a status is told to Optuna; everything else is a failure."""
