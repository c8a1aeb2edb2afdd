"""What the trials of a study say: outcomes that a belief or a surrogate can be conditioned on."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import optuna
from optuna.study import StudyDirection
from optuna.trial import FrozenTrial, TrialState

from autometa.family import Candidate
from autometa.tuning.spaces import Floats, Spaces

SOURCE = "autometa:source"
"""System attribute of a trial: who proposed it."""

CANDIDATE = "autometa:candidate"
"""User attribute of a trial: the key of its candidate."""

WORKER = "autometa:worker"
"""User attribute of a trial: the process that runs it."""

FINISHED = (TrialState.COMPLETE, TrialState.PRUNED, TrialState.FAIL)
RETRY_OF = "failed_trial"
"""System attribute by which Optuna says whose retry a trial is."""

_LIMIT = 3.0


@dataclass(frozen=True)
class Outcome:
    """What one finished trial says.

    Parameters
    ----------
    number : int
    candidate : Candidate
    score : float
        Higher = better; NaN where there is none.
    standard_error : float
        Of the score, NaN where unknown.
    seconds : float
        Of one fit, NaN where unknown.
    complete : bool
        Whether the score is that of a complete trial.
    source : str
        Who proposed it; empty where somebody else did.
    failed : bool
        Where there is no score: whether that speaks against the candidate. A trial that was stopped does not.
    """

    number: int
    candidate: Candidate
    score: float
    standard_error: float = math.nan
    seconds: float = math.nan
    complete: bool = True
    source: str = ""
    failed: bool = True

    @property
    def scored(self) -> bool:
        return math.isfinite(self.score)


def sign(study: optuna.Study) -> float:
    """1 where the study maximises, else -1: a value times the sign is a score, higher = better."""
    return 1.0 if study.direction is StudyDirection.MAXIMIZE else -1.0


def read(trial: FrozenTrial, spaces: Spaces, *, direction: float, n_fits: float | None = 1.0) -> Outcome | None:
    """The outcome of a finished trial; ``None`` where it says nothing of a candidate.

    A pruned trial says its last intermediate value; a failed one that had not yet asked for all parameters says
    nothing. User attributes ``standard_error`` and ``fit_seconds`` of the trial are used where they are set;
    otherwise a fit's seconds are the duration of the trial divided by ``n_fits``; with ``n_fits=None`` no times are
    read.
    """
    complete = trial.state is TrialState.COMPLETE
    candidate = spaces.candidate(trial.params, fill=complete)
    if candidate is None:
        return None
    value = math.nan
    if complete and trial.value is not None:
        value = trial.value
    elif trial.state is TrialState.PRUNED and trial.intermediate_values:
        value = trial.intermediate_values[max(trial.intermediate_values)]
    seconds = trial.user_attrs.get("fit_seconds") if n_fits is not None else None
    if seconds is None and n_fits is not None and complete and trial.duration is not None:
        seconds = trial.duration.total_seconds() / n_fits
    error = _positive(trial.user_attrs.get("standard_error"))
    score = direction * value if math.isfinite(value) else math.nan
    source = str(trial.system_attrs.get(SOURCE, ""))
    return Outcome(trial.number, candidate, score, error, _positive(seconds), complete, source)


def outcomes(
    study: optuna.Study, spaces: Spaces, *, n_fits: float | None = 1.0, known: dict[int, Outcome | None]
) -> list[Outcome]:
    """Every finished trial of the study once, in the order in which they ended.

    ``known`` keeps what was read before, by trial number. A trial whose worker died and that was started again under
    another number is left out.
    """
    trials = study.get_trials(deepcopy=False, states=FINISHED)
    retried = {t.system_attrs.get(RETRY_OF) for t in study.get_trials(deepcopy=False)}
    for trial in trials:
        if trial.number not in known:
            known[trial.number] = read(trial, spaces, direction=sign(study), n_fits=n_fits)
    ended = sorted(trials, key=lambda trial: (trial.datetime_complete or trial.datetime_start, trial.number))
    found = [known[trial.number] for trial in ended if trial.number not in retried]
    return [outcome for outcome in found if outcome is not None]


def settled(history: Sequence[Outcome]) -> list[Outcome]:
    """Outcomes without failures of candidates that ended well in another trial."""
    good = {outcome.candidate for outcome in history if outcome.scored}
    return [outcome for outcome in history if outcome.scored or outcome.candidate not in good]


def thinned(history: Sequence[Outcome], limit: int = 64) -> list[Outcome]:
    """At most ``limit`` outcomes, the best half and the latest half: what a long search knows in bounded time."""
    history = list(history)
    if len(history) <= limit:
        return history
    ranked = sorted(range(len(history)), key=lambda i: -history[i].score if history[i].scored else math.inf)
    kept = set(ranked[: limit // 2])
    latest = [i for i in reversed(range(len(history))) if i not in kept][: limit - len(kept)]
    return [history[i] for i in sorted(kept.union(latest))]


def floor(scores: Floats, spread: float = 0.0) -> float:
    """The score below which worse is no longer told apart.

    Three times as far below the median as the best is above it, or three times ``spread``, the standard deviation
    expected among candidates, where a search has gathered near the top.
    """
    middle, best = float(np.median(scores)), float(np.max(scores))
    return middle - _LIMIT * max(best - middle, spread, 1e-12)


def _positive(number: object) -> float:
    try:
        value = float(number)  # type: ignore[arg-type]
    except (TypeError, ValueError):
        return math.nan
    return value if math.isfinite(value) and value > 0 else math.nan
