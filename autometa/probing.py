"""Probes: a few cheap candidates fitted on few rows, whose scores inform the belief in all others at full size."""

from __future__ import annotations

import math
import warnings
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from sklearn.model_selection import KFold, StratifiedKFold

from autometa.data import Dataset
from autometa.family import Candidate, ModelFamily
from autometa.meta_dataset import candidate_key

if TYPE_CHECKING:
    from autometa.meta_model import Belief

BUDGET_SECONDS = 30.0
"""The estimators probe where they have at least so long."""

MAX_COLUMNS = 60
MAX_CLASSES = 10
"""Tables with more columns or classes are not probed: it should take about half a second."""

_N_PARTS = 3


@dataclass(frozen=True)
class Probe:
    """What a candidate scored after training on few rows.

    Parameters
    ----------
    candidate : Candidate
    train_rows : int
    score, standard_error : float
        Higher = better.
    """

    candidate: Candidate
    train_rows: int
    score: float
    standard_error: float


def informed(belief: Belief, candidates: Sequence[Candidate], probes: Iterable[Probe]) -> Belief:
    """The belief over these candidates after the scores of the probes."""
    from autometa.meta_model.outputs import TrainRows

    position = {candidate: index for index, candidate in enumerate(candidates)}
    for p in probes:
        error = p.standard_error if math.isfinite(p.standard_error) and p.standard_error > 0 else None
        belief = belief.observe(position[p.candidate], p.score, error, output=TrainRows(p.train_rows))
    return belief


def run_probes(
    dataset: Dataset,
    wanted: Mapping[int, Sequence[Candidate]],
    candidates: Sequence[Candidate],
    *,
    metric: str,
    families: Iterable[ModelFamily],
    seed: int = 0,
) -> tuple[Probe, ...]:
    """Fit candidates on few rows, in this process; none where rows are related or the table is wide or small.

    A sample of three times as many rows is cut into three parts: each is trained on once and judged on the two others.

    Parameters
    ----------
    dataset : Dataset
    wanted : mapping of int to sequence of Candidate
        Number of training rows -> what to fit; the largest number is taken that the table has rows for.
    candidates : sequence of Candidate
        What may be fitted.
    metric : str
    families : iterable of ModelFamily
    seed : int

    Returns
    -------
    tuple of Probe
        Without those that failed.
    """
    known = {candidate_key(c.family, c.config): c for c in candidates}
    sizes = [n for n in wanted if _N_PARTS * n <= dataset.n_rows]
    related = dataset.groups is not None or dataset.time is not None
    if not sizes or related or dataset.X.shape[1] > MAX_COLUMNS or dataset.n_classes > MAX_CLASSES:
        return ()
    n_rows = max(sizes)
    chosen = [known[key] for c in wanted[n_rows] if (key := candidate_key(c.family, c.config)) in known]
    part = dataset.subsample(_N_PARTS * n_rows, seed=seed)
    from autometa.evaluation import Evaluator  # its workers are not needed where nothing is probed

    folds = (StratifiedKFold if dataset.task.is_classification else KFold)(_N_PARTS, shuffle=True, random_state=seed)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        splits = [(few, rest) for rest, few in folds.split(np.zeros((part.n_rows, 1)), part.y)]
        with Evaluator(part, families=families, splits=splits, metrics=[metric], seed=seed) as evaluator:
            done = [evaluator.evaluate(candidate) for candidate in chosen]
    return tuple(
        Probe(e.candidate, n_rows, e.score(metric), e.standard_error(metric))
        for e in done
        if e.ok and math.isfinite(e.score(metric))
    )
