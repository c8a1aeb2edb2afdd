"""``fine_tune``: the chosen configuration at full size, and back to the plain fit where that does not help."""

from __future__ import annotations

import contextlib
import copy
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from autometa.families._staged import ROUNDS_AND_RATE, staged_predictions
from autometa.family import Candidate, ModelFamily
from autometa.fitting import EncodedData, FittedModel, fit_model, prepare_fit, run_fit
from autometa.metrics import Metric
from autometa.records import LedgerEntry, Status

_RATE_DIVISOR = 2.5
_ROUNDS_FACTOR = 4.0
_MAX_ROUNDS = 4_000
_N_STAGES = 24
_GPU_MIN_ROWS = 50_000

Split = tuple[NDArray[np.intp], NDArray[np.intp]]


@dataclass(frozen=True, eq=False)
class FineTuning:
    """What came of a fine-tuning.

    Parameters
    ----------
    model : FittedModel
        Fitted on all rows; the plain fit where the fine-tuning was undone.
    kept : bool
        False where the validation got worse, and where there was nothing to tune.
    score_before, score_after : float
        Mean over the validation splits, higher is better; NaN where nothing was tried.
    seconds : float
    reason : str
        One sentence for the ledger.
    config : mapping
        The configuration of the model, with more rounds and a lower rate where these were tuned.
    """

    model: FittedModel
    kept: bool
    score_before: float
    score_after: float
    seconds: float
    reason: str
    config: Mapping[str, Any] = field(default_factory=dict)

    def entry(self, family: str, started: float = float("nan")) -> LedgerEntry:
        """The line for the ledger: OK where it was kept, SKIPPED where it was undone."""
        status = Status.OK if self.kept else Status.SKIPPED
        score = self.score_after if self.kept else self.score_before
        candidate = Candidate(family, dict(self.config))
        return LedgerEntry(candidate, status, "fine_tune", score, self.seconds, started, self.reason)


def fine_tune(
    family: ModelFamily,
    config: Mapping[str, Any],
    *,
    data: EncodedData,
    metric: Metric,
    splits: Sequence[Split],
    model: FittedModel | None = None,
    seed: int = 0,
    n_threads: int = 1,
    device: str = "auto",
    time_limit_seconds: float | None = None,
    score_weight: NDArray[np.float64] | None = None,
) -> FineTuning:
    """Fit a chosen configuration on all rows, and better than the search did where the validation agrees.

    - Neural families: training goes on from the winning weights on all rows, the hold-out of early stopping among
      them, with the configuration's schedule at a third of its peak.
    - Boosted families: a lower learning rate, and as many rounds as early stopping on the splits finds best.
    - All others: a fit on all rows.

    The first two are tried on the splits beforehand, against the plain fit of the same rows; where the mean score is
    not better, the plain fit on all rows is the answer. The number of rounds that a split is judged with comes from
    the other splits, so that the choice does not flatter itself.

    Parameters
    ----------
    family : ModelFamily
    config : mapping
    data : EncodedData
        With the matrix of ``family.matrix``.
    metric : Metric
    splits : sequence of (train, test)
        Positions; two or three are enough, each costs two fits.
    model : FittedModel or None
        The plain fit on all rows, if it is there; it is left as it is.
    seed, n_threads : int
    device : {"auto", "cpu", "cuda", "mps"}, default "auto"
        "auto" takes a GPU that is there and that the library supports, for tables large enough to gain from it.
    time_limit_seconds : float or None
        No further step of the fine-tuning begins after it; a plain fit is always made.
    score_weight : ndarray of shape (n_rows,) or None
        Weights of the rows in the scores; ``None``: those of ``data``.

    Raises
    ------
    ValueError
        There is no split.
    """
    _check_splits(splits)
    job = _Job(family, dict(config), data, metric, list(splits), seed, n_threads, device, model, score_weight)
    deadline = None if time_limit_seconds is None else job.started + time_limit_seconds
    try:
        if family.name in ROUNDS_AND_RATE:
            return _tune_boosting(job, deadline)
        if family.matrix == "net" and hasattr(job.unfitted(), "refine"):
            return _tune_net(job, deadline)
    except _OutOfTime:
        return job.undone("undone: the time ran out before it was tried")
    plain = job.plain()
    return FineTuning(plain, True, np.nan, np.nan, job.seconds, "fitted on all rows", job.config)


@dataclass(frozen=True, eq=False)
class Rounds:
    """How many rounds at which rate a boosted configuration should have, by the validation splits.

    Parameters
    ----------
    config : mapping
        With a lower rate and the best number of rounds.
    score_before, score_after : float
        Mean over the splits, higher is better; each split judges a number of rounds that the others chose.
    reason : str
        One sentence for the ledger.
    """

    config: Mapping[str, Any]
    score_before: float
    score_after: float
    reason: str

    @property
    def better(self) -> bool:
        """Whether the new configuration is better than the old one."""
        return self.score_after > self.score_before


def choose_rounds(
    family: ModelFamily,
    config: Mapping[str, Any],
    *,
    data: EncodedData,
    metric: Metric,
    splits: Sequence[Split],
    seed: int = 0,
    n_threads: int = 1,
    score_weight: NDArray[np.float64] | None = None,
) -> Rounds:
    """A lower learning rate for a boosted configuration, and the rounds that early stopping then finds best.

    Nothing is fitted on all rows: the new configuration can be measured and used like any other. Parameters as in
    :func:`fine_tune`.

    Raises
    ------
    ValueError
        The family is not boosted, or there is no split.
    """
    if family.name not in ROUNDS_AND_RATE:
        raise ValueError(f"The family must be one of {', '.join(ROUNDS_AND_RATE)}. Got {family.name!r} instead.")
    _check_splits(splits)
    job = _Job(family, dict(config), data, metric, list(splits), seed, n_threads, "cpu", None, score_weight)
    return _choose_rounds(job, None)


def _check_splits(splits: Sequence[Split]) -> None:
    if not len(splits):
        raise ValueError("splits must hold at least one (train, test) pair. Got none.")


class _OutOfTime(Exception):
    pass


@dataclass(eq=False)
class _Job:
    """One call of :func:`fine_tune`."""

    family: ModelFamily
    config: dict[str, Any]
    data: EncodedData
    metric: Metric
    splits: list[Split]
    seed: int
    n_threads: int
    device: str
    model: FittedModel | None
    score_weight: NDArray[np.float64] | None = None
    started: float = field(default_factory=time.perf_counter)

    @property
    def seconds(self) -> float:
        return time.perf_counter() - self.started

    def unfitted(self) -> Any:
        return prepare_fit(self.family, self.config, self.data, None, self.seed, self.n_threads)[0].estimator

    def fit(self, config: Mapping[str, Any], rows: NDArray[np.intp] | None) -> FittedModel:
        """A fit on some rows (``None``: all), on a GPU where that is wanted and possible."""
        model, matrix, y, options = prepare_fit(self.family, config, self.data, rows, self.seed, self.n_threads)
        back = _use_device(model.estimator, self.device, len(matrix))
        run_fit(model, matrix, y, options)
        if back:
            model.estimator.set_params(**back)
        return model

    def plain(self) -> FittedModel:
        """The fit on all rows that the search would have ended with."""
        if self.model is None:
            self.model = fit_model(
                self.family, self.config, data=self.data, seed=self.seed, n_threads=self.n_threads
            )  # fmt: skip
        return self.model

    def score(self, rows: NDArray[np.intp], prediction: NDArray[np.float64]) -> float:
        weight = self.data.sample_weight if self.score_weight is None else self.score_weight
        return self.metric.score(self.data.y[rows], prediction, None if weight is None else weight[rows])

    def check_time(self, deadline: float | None) -> None:
        if deadline is not None and time.perf_counter() >= deadline:
            raise _OutOfTime

    def undone(self, reason: str, before: float = np.nan, after: float = np.nan) -> FineTuning:
        return FineTuning(self.plain(), False, before, after, self.seconds, reason, self.config)


def _tune_net(job: _Job, deadline: float | None) -> FineTuning:
    before, after = [], []
    for train, test in job.splits:
        job.check_time(deadline)
        model = job.fit(job.config, train)
        before.append(job.score(test, model.predict(job.data.matrix[test])))
        job.check_time(deadline)
        refined = _refine(model, job, train)
        after.append(job.score(test, refined.predict(job.data.matrix[test])))
    low, high = float(np.nanmean(before)), float(np.nanmean(after))
    if not high > low:
        return job.undone(f"undone: the validation went from {low:.5g} to {high:.5g}", low, high)
    job.check_time(deadline)
    model = _refine(job.plain(), job, None)
    where = getattr(model.estimator, "device_", "")
    reason = f"training went on with all rows: {low:.5g} to {high:.5g} in validation; {where}"
    return FineTuning(model, True, low, high, job.seconds, reason, job.config)


def _refine(model: FittedModel, job: _Job, rows: NDArray[np.intp] | None) -> FittedModel:
    """A copy of a fitted net, trained on with all of these rows."""
    matrix, y = (job.data.matrix, job.data.y) if rows is None else (job.data.matrix[rows], job.data.y[rows])
    if model.classes is not None:
        y = np.searchsorted(model.classes, y)
    weight = job.data.sample_weight
    estimator = copy.deepcopy(model.estimator)
    _use_device(estimator, job.device, len(matrix))
    estimator.refine(matrix, y, weight if weight is None or rows is None else weight[rows])
    return FittedModel(estimator, model.classes, model.n_classes)


def _tune_boosting(job: _Job, deadline: float | None) -> FineTuning:
    rounds = _choose_rounds(job, deadline)
    if not rounds.better:
        return job.undone(rounds.reason, rounds.score_before, rounds.score_after)
    job.check_time(deadline)
    model = job.fit(rounds.config, None)
    return FineTuning(model, True, rounds.score_before, rounds.score_after, job.seconds, rounds.reason, rounds.config)


def _choose_rounds(job: _Job, deadline: float | None) -> Rounds:
    rounds_name, rate_name = ROUNDS_AND_RATE[job.family.name]
    n_rounds = int(job.config[rounds_name])
    most = max(n_rounds, min(_MAX_ROUNDS, round(n_rounds * _ROUNDS_FACTOR)))
    slow = {**job.config, rate_name: job.config[rate_name] / _RATE_DIVISOR, rounds_name: most}
    stages = np.unique(np.geomspace(max(1, n_rounds // 4), most, _N_STAGES).round().astype(int))
    before, curves = [], []
    for train, test in job.splits:
        job.check_time(deadline)
        before.append(job.score(test, job.fit(job.config, train).predict(job.data.matrix[test])))
        job.check_time(deadline)
        curves.append(_curve(job, job.fit(slow, train), test, stages))
    low, high, best = float(np.nanmean(before)), _judged_by_others(np.array(curves)), np.nanmean(curves, axis=0)
    if not high > low:
        return Rounds(job.config, low, high, f"undone: the validation went from {low:.5g} to {high:.5g}")
    chosen = {**slow, rounds_name: int(stages[int(np.nanargmax(best))])}
    reason = (
        f"{chosen[rounds_name]} rounds at rate {chosen[rate_name]:.3g} in place of {n_rounds} at "
        f"{job.config[rate_name]:.3g}: {low:.5g} to {high:.5g} in validation"
    )
    return Rounds(chosen, low, high, reason)


def _curve(job: _Job, model: FittedModel, test: NDArray[np.intp], stages: NDArray[np.intp]) -> list[float]:
    """Score on the test rows after each of the stages."""
    matrix = job.data.matrix[test]
    answers = staged_predictions(job.family.name, model.estimator, matrix, stages.tolist())
    return [job.score(test, model.for_all_classes(answer)) for answer in answers]


def _judged_by_others(curves: NDArray[np.float64]) -> float:
    """Mean score (n_splits, n_stages) of each split at the stage that the other splits find best."""
    if len(curves) == 1:
        return float(np.nanmax(curves))
    total = np.nansum(curves, axis=0)
    return float(np.nanmean([curve[int(np.argmax(total - np.nan_to_num(curve)))] for curve in curves]))


def _use_device(estimator: Any, device: str, n_rows: int) -> dict[str, Any]:
    """Send a fit to the GPU where the estimator can; returns the parameters to set back before it predicts."""
    names = estimator.get_params() if hasattr(estimator, "get_params") else {}
    if hasattr(estimator, "refine"):
        estimator.set_params(device=device)
        return {}
    if device == "cpu" or "tree_method" not in names or (device == "auto" and n_rows < _GPU_MIN_ROWS):
        return {}
    with contextlib.suppress(ImportError):
        import xgboost

        if xgboost.build_info().get("USE_CUDA") and _has_cuda():
            estimator.set_params(device="cuda")
            return {"device": "cpu"}
    return {}


def _has_cuda() -> bool:
    import torch

    return bool(torch.cuda.is_available())
