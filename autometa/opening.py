"""What ``fit`` does before its workers have started: a first model at once, the selection in the background."""

from __future__ import annotations

import math
import time
import warnings
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from joblib import cpu_count
from joblib.parallel import get_active_backend
from numpy.typing import NDArray
from sklearn.utils.multiclass import check_classification_targets
from sklearn.utils.validation import column_or_1d

from autometa.data import Dataset, TaskType, as_series, stratified_sample
from autometa.evaluation import Evaluator
from autometa.exceptions import ExperienceError
from autometa.families import resolve_families
from autometa.families._staged import ROUNDS_AND_RATE
from autometa.family import Candidate, ModelFamily
from autometa.fitting import fit_model
from autometa.interrupts import interrupts_deferred
from autometa.meta_features import MetaFeatures
from autometa.metrics import Metric, resolve_metric
from autometa.predictor import Member
from autometa.records import Evaluation
from autometa.selection import Selection
from autometa.tuning import Budget, WarmStart

if TYPE_CHECKING:
    from autometa.experience import Experience

MAX_WORKERS = 8
"""Trials at a time where nobody says how many: each has its own process, and all wait for the same proposals."""

_QUICK = ("linear", "knn", "naive_bayes", "lightgbm", "xgboost", "hist_gradient_boosting")
_FEW_ROUNDS = 30
_QUICK_CELLS = 300_000
_MIN_ROWS = 200
_ORDER = (
    "linear", "lightgbm", "random_forest", "hist_gradient_boosting", "extra_trees", "knn", "xgboost", "catboost",
)  # fmt: skip
_IN_HASTE = ("lightgbm", "xgboost", "catboost", "random_forest", "extra_trees")
_QUICK_ROWS_PER_SECOND = 2_000


@dataclass(frozen=True, eq=False)
class FirstModel:
    """A model that is there while the workers still start.

    Parameters
    ----------
    candidate : Candidate
    member : Member
    score : float
        On the rows that it was not fitted on; higher is better.
    started, seconds : float
        When its fit began, counted from the start of the budget, and how long it took.
    split_seconds : float
        The same in proportion to the training rows of a split.
    """

    candidate: Candidate
    member: Member
    score: float
    started: float
    seconds: float
    split_seconds: float


def first_model(evaluator: Evaluator, metric: Metric, budget: Budget) -> FirstModel | None:
    """The default of the first quick family on a part of one split, in this process: a fraction of a second.

    Nobody can stop a fit in this process, so the number of cells is bounded, and that of boosting's rounds. ``None``
    where no quick family takes part or the fit fails.
    """
    family = next((evaluator.families[name] for name in _QUICK if name in evaluator.families), None)
    if family is None:
        return None
    elapsed, started = budget.elapsed, time.perf_counter()
    data = evaluator.data(family.matrix)
    candidate = _quick_candidate(family)
    train, test = evaluator.splits[-1]
    n_train = len(train)
    width = max(1, data.matrix.shape[1]) * max(1, data.n_classes // 3)
    n_rows = max(_MIN_ROWS, _QUICK_CELLS // width)
    train, test = (_part(evaluator.dataset, rows, n_rows, evaluator.seed) for rows in (train, test))
    weight = evaluator.dataset.sample_weight
    try:
        with warnings.catch_warnings(), np.errstate(all="ignore"):
            warnings.simplefilter("ignore")
            begun = time.perf_counter()
            model = fit_model(family, candidate.config, data=data, rows=train, seed=evaluator.seed)
            fitted = time.perf_counter() - begun
            prediction = model.predict(data.matrix[test])
            score = metric.score(data.y[test], prediction, None if weight is None else weight[test])
    except Exception:
        return None
    member = Member(family.name, dict(candidate.config), family.matrix, (model,))
    seconds = time.perf_counter() - started
    return FirstModel(candidate, member, score, elapsed, seconds, fitted * n_train / len(train))


def _quick_candidate(family: ModelFamily) -> Candidate:
    config = dict(family.default_config)
    if family.name in ROUNDS_AND_RATE:
        config[ROUNDS_AND_RATE[family.name][0]] = _FEW_ROUNDS
    return Candidate(family.name, config)


def _part(dataset: Dataset, rows: NDArray[np.intp], n_rows: int, seed: int) -> NDArray[np.intp]:
    """At most ``n_rows`` of the rows, every class as often as before."""
    if len(rows) <= n_rows:
        return rows
    return np.asarray(rows[stratified_sample(dataset.y[rows], dataset.task, n_rows, seed)])


def provisional_selection(
    dataset: Dataset, metric: Metric, families: Sequence[ModelFamily], *, haste: bool = False
) -> Selection:
    """Defaults, quick families first: what there is until the ranking has been made.

    With ``haste`` what can be cut short comes first: others end with a model or with nothing.
    """
    order = [*_IN_HASTE, *_ORDER] if haste else _ORDER
    ranks = {name: rank for rank, name in reversed(list(enumerate(order)))}
    note = "There was no time to rank the candidates: these are defaults in a fixed order."
    ordered = sorted(families, key=lambda f: (ranks.get(f.name, len(order)), "torch" in f.requires))
    defaults = tuple(family.default_candidate() for family in ordered)
    return Selection(defaults, dataset.name, metric, tuple(families), MetaFeatures({}), notes=(note,))


def must_haste(evaluator: Evaluator, budget: Budget) -> bool:
    """Whether a single trial could take much of the budget, so that one that cannot be cut short is a risk."""
    if not budget.counts_time or math.isinf(budget.seconds):
        return False
    dataset = evaluator.dataset
    n_outputs = dataset.n_classes if dataset.task is TaskType.MULTICLASS else 1
    n_rows = n_outputs * sum(len(train) for train, _ in evaluator.splits)
    return n_rows > _QUICK_ROWS_PER_SECOND * budget.seconds


def warm_start(selection: Selection, first: FirstModel | None = None) -> WarmStart:
    """What the search takes from a selection, and from how long the first model took where that tells something."""
    belief = selection.belief
    if belief is not None and first is not None:
        at = [i for i, candidate in enumerate(selection.candidates[: len(belief)]) if candidate == first.candidate]
        for index in at:
            belief = belief.observe_seconds(index, first.split_seconds)
    return WarmStart(selection.candidates, belief)


def in_background(
    make: Callable[[], Selection], first: FirstModel | None = None
) -> tuple[Future[Selection], Future[WarmStart]]:
    """A selection that is made in a thread while the workers start, and what the search takes from it.

    A thread, not a process: the search needs the selection where PyTorch's import, most of its time, cannot be spared
    anyway. It cannot be stopped; who does not want to wait goes on without it.
    """
    warm: Future[WarmStart] = Future()

    def hand_on(done: Future[Selection]) -> None:
        error = done.exception()
        if error is None:
            warm.set_result(warm_start(done.result(), first))
        else:
            warm.set_exception(error)

    with interrupts_deferred():
        thread = ThreadPoolExecutor(1, thread_name_prefix="autometa-select")
        selection = thread.submit(make)
        selection.add_done_callback(hand_on)
        thread.shutdown(wait=False)
    return selection, warm


class _Predicted:
    """Stands for a fitted model where a scorer wants to predict what was predicted already."""

    def __init__(self, prediction: NDArray[Any]) -> None:
        self.prediction = prediction
        self._estimator_type = "regressor" if prediction.ndim == 1 else "classifier"

    def predict(self, X: Any) -> NDArray[Any]:
        return self.prediction if self.prediction.ndim == 1 else self.prediction.argmax(axis=1)

    def predict_proba(self, X: Any) -> NDArray[Any]:
        return self.prediction


def as_metric(metric: Any) -> Any:
    """A callable ``scorer(estimator, X, y)`` as a Metric; everything else as it is. ``X`` has one empty column."""
    if metric is None or isinstance(metric, str | Metric) or hasattr(metric, "_score_func") or not callable(metric):
        return metric

    def score(y: NDArray[Any], prediction: NDArray[Any], weight: NDArray[Any] | None) -> float:
        return float(metric(_Predicted(prediction), np.zeros((len(y), 1)), y))

    return Metric(getattr(metric, "__name__", "scorer"), frozenset(TaskType), score)


def measured_metrics(metric: Metric, task: TaskType) -> list[Metric]:
    """The metric that decides and, for the record, the default one."""
    default = resolve_metric(None, task)
    return [metric] if metric.name == default.name else [metric, default]


def usable_families(families: Iterable[str | ModelFamily] | None, task: TaskType) -> tuple[ModelFamily, ...]:
    """The chosen families that can do the task, at least one."""
    usable = tuple(family for family in resolve_families(families) if task in family.tasks)
    if not usable:
        raise ValueError(f"None of the chosen families can do a {task} task.")
    return usable


def as_column(y: Any) -> Any:
    """scikit-learn warns where y is a table of one column; so does this."""
    return column_or_1d(y, warn=True) if getattr(y, "ndim", 1) == 2 and y.shape[1] == 1 else y


def refuse_continuous(y: Any) -> None:
    """scikit-learn's own check that y holds labels, blind to missing ones (they are dropped later)."""
    known = as_series(y).dropna()
    if len(known):
        check_classification_targets(known.to_numpy())


def worker_count(n_jobs: int | None, budget: Budget) -> int:
    """Trials at a time; -1 all cores, -2 all but one.

    ``None``: the cores, at most ``MAX_WORKERS``; one where the order in which trials end would enter the result though
    times must not, and inside of somebody else's parallel loop.
    """
    if n_jobs is None:
        is_alone = not get_active_backend()[0].nesting_level
        return min(cpu_count(), MAX_WORKERS) if is_alone and budget.counts_time else 1
    if n_jobs == 0:
        raise ValueError("n_jobs must not be 0. Use 1 for one worker, -1 for all cores.")
    return int(n_jobs) if n_jobs > 0 else max(1, int(cpu_count()) + 1 + n_jobs)


def keep_runs(
    experience: Experience | str | Path, dataset: Dataset, selection: Selection, evaluations: Iterable[Evaluation]
) -> None:
    """Add the scores of a fit to a store of own runs; where that fails the model is kept, and a warning says why."""
    from autometa.experience import as_experience

    try:
        as_experience(experience).add(selection.meta_features.to_series(), evaluations, task=str(dataset.task))
    except ExperienceError as error:
        warnings.warn(f"The runs of this fit were not kept: {error}", UserWarning, stacklevel=4)
