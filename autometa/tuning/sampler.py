"""``MetaSampler``: what earlier datasets taught, as a sampler for anyone's own Optuna study."""

from __future__ import annotations

import threading
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal, Protocol

import numpy as np
from optuna.distributions import BaseDistribution
from optuna.samplers import BaseSampler, TPESampler
from optuna.study import Study
from optuna.trial import FrozenTrial, TrialState

from autometa.family import Candidate, ModelFamily
from autometa.tuning.budget import Budget
from autometa.tuning.costs import Costs, within
from autometa.tuning.ensemble_gain import EnsembleValue
from autometa.tuning.handover import Handover
from autometa.tuning.history import SOURCE, Outcome, outcomes
from autometa.tuning.knowledge import Knowledge
from autometa.tuning.neighbourhood import SupportsSample
from autometa.tuning.ranking import Choice, Ranker
from autometa.tuning.sources import knowledge_from_studies
from autometa.tuning.spaces import FAMILY, MISSING, Spaces
from autometa.tuning.warm_start import WarmStartReport, report

if TYPE_CHECKING:
    from autometa.meta_model.belief import Belief


class SelectionLike(Protocol):
    """What is needed of a :class:`autometa.Selection`."""

    @property
    def candidates(self) -> tuple[Candidate, ...]: ...
    @property
    def families(self) -> tuple[ModelFamily, ...]: ...
    @property
    def belief(self) -> Belief | None: ...


@dataclass
class _Memory:
    """What a sampler remembers of one study; all of it can be read again from the study."""

    study: tuple[int, str]
    known: dict[int, Outcome | None] = field(default_factory=dict)
    rankings: dict[int, list[Choice]] = field(default_factory=dict)
    plans: dict[int, Choice] = field(default_factory=dict)


class MetaSampler(BaseSampler):
    """Proposes configurations by what is believed of this dataset; every trial updates the belief.

    The objective asks for ``family`` and then for ``<family>.<name>``, or, where the selection holds one family,
    plainly for ``<name>``: ``family.search_space.suggest(trial)``. Parameters that the belief knows nothing of, and
    values that it never proposes, come from the independent sampler.

    How candidates are ranked says :class:`autometa.tuning.ranking.Ranker`: expected improvement per second of a trial,
    until a surrogate fitted to the study's own trials foretells them better than the belief does.

    The state is the study: the same seed and the same finished trials give the same proposal, also after the study
    was loaded from its storage, and trials of other processes count like own ones.

    Parameters
    ----------
    selection : Selection, optional
        Of the study's dataset, made with the study's metric. The study's values are the metric in its own sign:
        minimise log loss, maximise ROC AUC.
    families : iterable of ModelFamily, optional
        Default: those of the selection.
    source_studies : sequence of optuna.Study, default=()
        Earlier studies of a similar kind, whose search spaces may differ. Each is one hypothesis beside what the
        meta-model believes, and "none of them" is another; trials decide between them. Without selection and
        families the search space is that of the source studies.
    policy : object with ``sample(rng, n)``, optional
        Proposes further configurations for this dataset: a :class:`autometa.tuning.DatasetPolicy`, say.
    budget : Budget or float, optional
        Seconds for the whole study, from now. With a budget in trials, or ``per_second=False``, costs do not count;
        with one in units of work forecast costs count, measured ones do not.
    per_second : bool, default=True
    n_fits : int, default=1
        Model fits in one trial (the folds), by which forecast seconds are multiplied.
    n_defaults : int, default=2
        Defaults that race the warm start within the first trials.
    surrogate : "gp" or BaseSampler, default="gp"
        Who proposes after the hand-over: a Gaussian process by expected improvement over the same kinds of
        candidates, or any Optuna sampler.
    handover : Handover, optional
        Prior weight of the belief, and from which trial on it may lose the lead.
    ensemble : EnsembleValue, optional
        Propose by the expected gain to an ensemble of the study's models rather than to the best of them.
    independent_sampler : BaseSampler, optional
        Default: Optuna's TPE.
    seed : int, optional

    Raises
    ------
    ValueError
        Neither selection, families nor source studies were given.

    Examples
    --------
    >>> import optuna
    >>> from sklearn.datasets import load_wine
    >>> from sklearn.model_selection import cross_val_score
    >>> from autometa import Candidate, MetaSampler, select
    >>> X, y = load_wine(return_X_y=True)
    >>> selection = select(X, y, families=["knn"], metric="accuracy")
    >>> space = selection.families[0].search_space
    >>> def objective(trial):
    ...     candidate = Candidate("knn", space.suggest(trial), builder=selection.best.builder)
    ...     return cross_val_score(candidate.build(), X, y, cv=3).mean()
    >>> optuna.logging.set_verbosity(optuna.logging.WARNING)
    >>> study = optuna.create_study(direction="maximize", sampler=MetaSampler(selection, seed=0, n_fits=3))
    >>> study.optimize(objective, n_trials=3)
    >>> study.best_value > 0.9
    True
    """

    def __init__(
        self,
        selection: SelectionLike | None = None,
        *,
        families: Iterable[ModelFamily] | None = None,
        source_studies: Sequence[Study] = (),
        policy: SupportsSample | None = None,
        budget: Budget | float | None = None,
        per_second: bool = True,
        n_fits: int = 1,
        n_defaults: int = 2,
        surrogate: Literal["gp"] | BaseSampler = "gp",
        handover: Handover | None = None,
        ensemble: EnsembleValue | None = None,
        independent_sampler: BaseSampler | None = None,
        seed: int | None = None,
    ) -> None:
        knowledge = _knowledge(selection, families)
        if source_studies:
            knowledge = knowledge_from_studies(source_studies, knowledge, seed=seed or 0)
        if knowledge is None:
            raise ValueError("MetaSampler must be given a selection, families or source_studies. Got none of them.")
        if surrogate != "gp" and not isinstance(surrogate, BaseSampler):
            raise ValueError(f'surrogate must be "gp" or an Optuna sampler. Got {surrogate!r} instead.')
        self._knowledge = knowledge
        self._ranker = Ranker(
            knowledge, policy, n_defaults, handover or Handover(), has_surrogate=surrogate == "gp", ensemble=ensemble
        )
        self._budget = Budget(seconds=float(budget)) if isinstance(budget, int | float) else budget
        per_second = per_second and not (self._budget is not None and self._budget.counts_trials)
        self._costs = Costs(per_second, n_fits)
        self._timed = per_second and (self._budget is None or self._budget.counts_time)
        self._surrogate = surrogate
        self._seed = int(np.random.default_rng(seed).integers(2**31))
        self._fallback = independent_sampler or TPESampler(seed=seed)
        self._memory: _Memory | None = None
        self._lock = threading.RLock()

    @property
    def spaces(self) -> Mapping[str, Any]:
        """Search space of each family."""
        return self._knowledge.spaces

    def belief(self, study: Study) -> Belief | None:
        """The belief after all finished trials of the study, over its pool first and then the other trials."""
        if self._knowledge.belief is None:
            return None
        with self._lock:
            return self._knowledge.updated(self._history(study))[0]

    def leader(self, study: Study) -> Literal["belief", "surrogate"]:
        """Who proposes the next trial."""
        with self._lock:
            return "surrogate" if self._ranker.surrogate_leads(self._history(study)) else "belief"

    def belief_weight(self, study: Study) -> float:
        """Posterior probability that the belief is a better guide to this study than a surrogate of its own trials."""
        if self._knowledge.belief is None:
            return 0.0
        with self._lock:
            history, handover = self._history(study), self._ranker.handover
            handover.compare(history, self._knowledge)
            return handover.weight(history)

    def warm_start_report(self, study: Study) -> WarmStartReport:
        """How many trials the warm start saved or cost against a cold start, as far as the belief can tell."""
        with self._lock:
            return report(self._knowledge, self._history(study), seed=self._seed)

    def infer_relative_search_space(self, study: Study, trial: FrozenTrial) -> dict[str, BaseDistribution]:
        """Parameters that the belief knows nothing of; all of them once an Optuna sampler leads."""
        self._raise_error_if_multi_objective(study)
        with self._lock:
            sampler = self._leading_sampler(study)
            space = sampler.infer_relative_search_space(study, trial)
            if sampler is not self._fallback:
                self._note(study, trial, "search")
                return space
            return {name: d for name, d in space.items() if not self._knowledge.spaces.knows(name)}

    def sample_relative(
        self, study: Study, trial: FrozenTrial, search_space: dict[str, BaseDistribution]
    ) -> dict[str, Any]:
        """Values for the relative search space, from the independent or the leading Optuna sampler."""
        self._raise_error_if_multi_objective(study)
        if not search_space:
            return {}
        with self._lock:
            sampler = self._leading_sampler(study)
            params = sampler.sample_relative(study, trial, search_space)
            left = {name: d for name, d in search_space.items() if name not in params}
            return params | {name: sampler.sample_independent(study, trial, name, d) for name, d in left.items()}

    def sample_independent(
        self, study: Study, trial: FrozenTrial, param_name: str, param_distribution: BaseDistribution
    ) -> Any:
        """The value of the candidate planned for this trial, where it has one that the distribution allows."""
        self._raise_error_if_multi_objective(study)
        with self._lock:
            sampler = self._leading_sampler(study)
            if sampler is self._fallback and self._knowledge.spaces.knows(param_name):
                value = self._planned(study, trial, param_name, param_distribution)
                if value is not MISSING:
                    return value
            return sampler.sample_independent(study, trial, param_name, param_distribution)

    def before_trial(self, study: Study, trial: FrozenTrial) -> None:
        """Hand on to the Optuna samplers."""
        for sampler in self._samplers():
            sampler.before_trial(study, trial)

    def after_trial(self, study: Study, trial: FrozenTrial, state: TrialState, values: Sequence[float] | None) -> None:
        """Hand on to the Optuna samplers; the belief reads the trial from the study when it is next asked."""
        for sampler in self._samplers():
            sampler.after_trial(study, trial, state, values)

    def reseed_rng(self) -> None:
        """Reseed the Optuna samplers; own proposals draw on the seed and the trial's number only."""
        for sampler in self._samplers():
            sampler.reseed_rng()

    def _samplers(self) -> list[BaseSampler]:
        return [self._fallback, *([self._surrogate] if isinstance(self._surrogate, BaseSampler) else [])]

    def _leading_sampler(self, study: Study) -> BaseSampler:
        """The Optuna sampler that leads after the hand-over, else the independent one."""
        if not isinstance(self._surrogate, BaseSampler):
            return self._fallback
        return self._surrogate if self._ranker.surrogate_leads(self._history(study)) else self._fallback

    def _planned(self, study: Study, trial: FrozenTrial, name: str, distribution: BaseDistribution) -> Any:
        """The planned candidate's value; a plan that does not fit makes room for the best one that does."""
        memory = self._remember(study)
        plan = memory.plans.get(trial.number)
        family = trial.params.get(FAMILY, MISSING)
        if plan is None or not _fits(self._knowledge.spaces, plan, family, {name: distribution}):
            plan = self._choose(study, trial, family, {name: distribution})
            if plan is None:
                return MISSING
            memory.plans[trial.number] = plan
            self._note(study, trial, plan.source)
        return self._knowledge.spaces.value(plan.candidate, name)

    def _choose(
        self, study: Study, trial: FrozenTrial, family: Any, asked: Mapping[str, BaseDistribution]
    ) -> Choice | None:
        memory = self._remember(study)
        if trial.number not in memory.rankings:
            memory.rankings[trial.number] = self._rank(study, trial)
        seen = _last_distributions(study)
        spaces, ranking = self._knowledge.spaces, memory.rankings[trial.number]
        fitting = [choice for choice in ranking if _fits(spaces, choice, family, asked)]
        return next((c for c in fitting if _allowed(spaces, c.candidate, seen)), fitting[0] if fitting else None)

    def _rank(self, study: Study, trial: FrozenTrial) -> list[Choice]:
        costs = self._costs
        if self._budget is not None:
            costs = within(costs, self._budget.seconds, self._budget.remaining)
        rng = np.random.default_rng([self._seed, trial.number])
        return self._ranker.rank(self._history(study), self._pending(study, trial), costs=costs, rng=rng)

    def _pending(self, study: Study, trial: FrozenTrial) -> list[Candidate]:
        """Candidates of the other running trials: as planned here, or as far as the storage tells."""
        memory, found = self._remember(study), []
        for other in study.get_trials(deepcopy=False, states=(TrialState.RUNNING,)):
            if other.number == trial.number:
                continue
            plan = memory.plans.get(other.number)
            candidate = plan.candidate if plan is not None else self._knowledge.spaces.candidate(other.params)
            if candidate is not None:
                found.append(candidate)
        return list(dict.fromkeys(found))

    def _history(self, study: Study) -> list[Outcome]:
        memory = self._remember(study)
        n_fits = self._costs.n_fits if self._timed else None
        history = outcomes(study, self._knowledge.spaces, n_fits=n_fits, known=memory.known)
        for number in memory.known.keys() & memory.rankings.keys():
            del memory.rankings[number]
            memory.plans.pop(number, None)
        return history

    def _remember(self, study: Study) -> _Memory:
        key = (study._study_id, study.study_name)
        if self._memory is None or self._memory.study != key:
            self._memory = _Memory(key)
            self._ranker.handover.reset()
        return self._memory

    @staticmethod
    def _note(study: Study, trial: FrozenTrial, source: str) -> None:
        study._storage.set_trial_system_attr(trial._trial_id, SOURCE, source)

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_lock": None, "_memory": None}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self._lock = threading.RLock()


def _knowledge(selection: SelectionLike | None, families: Iterable[ModelFamily] | None) -> Knowledge | None:
    """What a selection, or the defaults of families, tell before the first trial."""
    if selection is None and families is None:
        return None
    used = tuple(families) if families is not None else selection.families  # type: ignore[union-attr]
    spaces = Spaces.of_families(used)
    if selection is None:
        return Knowledge(spaces, tuple(spaces.defaults.values()))
    unknown = {candidate.family for candidate in selection.candidates} - set(spaces)
    if unknown:
        raise ValueError(f"families must hold every family of the selection. Missing: {sorted(unknown)}.")
    candidates = tuple(spaces.canonical(candidate) for candidate in selection.candidates)
    return Knowledge(spaces, candidates, selection.belief)


def _fits(spaces: Spaces, choice: Choice, family: Any, asked: Mapping[str, BaseDistribution]) -> bool:
    """Whether a choice is of the trial's family, if that is settled, and answers what is asked."""
    if family is not MISSING and choice.candidate.family != family:
        return False
    return all(_contains(d, spaces.value(choice.candidate, name)) for name, d in asked.items())


def _allowed(spaces: Spaces, candidate: Candidate, distributions: Mapping[str, BaseDistribution]) -> bool:
    """Whether all that a candidate says lies within the distributions that the study last asked for."""
    said = {name: spaces.value(candidate, name) for name in distributions}
    return all(value is MISSING or _contains(distributions[name], value) for name, value in said.items())


def _contains(distribution: BaseDistribution, value: Any) -> bool:
    if value is MISSING:
        return False
    try:
        return bool(distribution._contains(distribution.to_internal_repr(value)))
    except (TypeError, ValueError):
        return False


def _last_distributions(study: Study) -> dict[str, BaseDistribution]:
    """The latest distribution of each parameter of the study."""
    found: dict[str, BaseDistribution] = {}
    for trial in study.get_trials(deepcopy=False):
        found.update(trial.distributions)
    return found
