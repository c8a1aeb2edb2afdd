"""Which candidate to try next: a schedule of warm start, belief and Optuna's own sampler."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

import numpy as np
import optuna

from autometa.family import Candidate, ModelFamily
from autometa.records import Evaluation, Status
from autometa.tuning.budget import Budget

if TYPE_CHECKING:
    from autometa.meta_model import Belief

FIXED_SECONDS = 0.05
"""What a trial costs beside fitting: sending it to a worker, updating the belief."""
_FIRST_SHARE = 0.05
_WARM_TRIALS = 12


@dataclass(frozen=True)
class Proposal:
    """A candidate to try, who asked for it, its index in the belief (``None`` outside the pool) and its trial."""

    candidate: Candidate
    source: str
    index: int | None = None
    trial: optuna.Trial | None = field(default=None, repr=False, compare=False)


@dataclass
class Proposer:
    """Chooses trials; told of every outcome.

    The first trial is the best candidate among the cheap ones. Then the defaults of the two best families race the
    picks of the belief (expected improvement, per second where time is the limit). After 12 trials every second one
    comes from Optuna's TPE, which has then seen all of them.

    Parameters
    ----------
    candidates : sequence of Candidate
        Best first, the first ``len(belief)`` of them in the order of the belief.
    families : sequence of ModelFamily
    study : optuna.Study
    belief : Belief or None
    n_fits : int
        Fits per trial, to turn forecast seconds into the cost of a trial.
    budget : Budget
    seconds_factor : float
        Ratio of rows beyond the corpus, by which forecast seconds grow.
    """

    candidates: Sequence[Candidate]
    families: Sequence[ModelFamily]
    study: optuna.Study
    belief: Belief | None
    n_fits: int
    budget: Budget
    seconds_factor: float = 1.0
    taken: set[Candidate] = field(default_factory=set)
    n_proposed: int = 0

    def next(self) -> Proposal | None:
        """The next proposal; ``None`` when nothing that fits into the budget is left."""
        proposal = self._choose()
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

    def tell(self, proposal: Proposal, evaluation: Evaluation, metric: str) -> None:
        """Update the belief with one outcome."""
        if self.belief is None or proposal.index is None:
            return
        if not (evaluation.ok and np.isfinite(evaluation.score(metric))):
            self.belief = self.belief.observe_failure(proposal.index)
            return
        error = evaluation.standard_error(metric)
        self.belief = self.belief.observe(
            proposal.index,
            evaluation.score(metric),
            standard_error=error if np.isfinite(error) and error > 0 else None,
            seconds=None if self.budget.counts_trials else float(np.mean(evaluation.fit_seconds)) / self.seconds_factor,
        )

    def trial_seconds(self, proposal: Proposal) -> float:
        """Forecast cost of a trial in seconds, NaN where unknown."""
        if self.belief is None or proposal.index is None:
            return float("nan")
        return float(self._pool_seconds()[proposal.index])

    def _choose(self) -> Proposal | None:
        if self.n_proposed >= _WARM_TRIALS and self.n_proposed % 2:
            return self._searched()
        warm = self._default() if self.n_proposed in (1, 3) else None
        return warm or self._believed() or self._listed() or self._searched()

    def _believed(self) -> Proposal | None:
        if self.belief is None:
            return None
        open_ = np.array([c not in self.taken for c in self.candidates[: len(self.belief)]])
        value = self.belief.mean.copy() if self.n_proposed == 0 else self.belief.expected_improvement()
        if not self.budget.counts_trials:
            seconds = self._pool_seconds()
            affordable = seconds <= self.budget.remaining
            if self.n_proposed == 0:
                cheap = affordable & (seconds <= max(_FIRST_SHARE * self.budget.seconds, float(np.nanmin(seconds))))
                open_ &= cheap
            else:
                open_ &= affordable
                value = value / (seconds + FIXED_SECONDS)
        if not open_.any():
            return None
        index = int(np.argmax(np.where(open_, value, -np.inf)))
        return Proposal(self.candidates[index], "selection", index)

    def _default(self) -> Proposal | None:
        """The default configuration of the best family whose default was not tried."""
        defaults = {f.name: f.default_candidate() for f in self.families}
        for candidate in self.candidates:
            default = defaults[candidate.family]
            if default not in self.taken:
                return Proposal(default, "default", self._index(default))
        return None

    def _listed(self) -> Proposal | None:
        """Candidates without a forecast, in their order."""
        start = 0 if self.belief is None else len(self.belief)
        for candidate in self.candidates[start:]:
            if candidate not in self.taken:
                return Proposal(candidate, "listed")
        return None

    def _searched(self) -> Proposal | None:
        """A configuration from Optuna's sampler; a few attempts to leave the ones already tried."""
        for _ in range(5):
            trial = self.study.ask()
            candidate = suggest(trial, self.families)
            if candidate not in self.taken:
                return Proposal(candidate, "search", self._index(candidate), trial)
            self.study.tell(trial, state=optuna.trial.TrialState.FAIL)
        return None

    def _index(self, candidate: Candidate) -> int | None:
        if self.belief is None:
            return None
        pool = list(self.candidates[: len(self.belief)])
        return pool.index(candidate) if candidate in pool else None

    def _pool_seconds(self) -> Any:
        assert self.belief is not None
        return np.nan_to_num(self.belief.seconds, nan=1.0) * self.seconds_factor * self.n_fits


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
