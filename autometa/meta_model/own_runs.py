"""A person's own runs as a memory: what surprised there is expected again on similar tables, without retraining."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
import torch
from numpy.typing import NDArray

from autometa.family import Candidate
from autometa.meta_dataset import MetaDataset
from autometa.meta_model.memory import TaskMemory
from autometa.meta_model.model import MetaModel
from autometa.meta_model.priors import Floats

MOST_TASKS = 200
"""Own datasets that a selection reads, the latest ones."""


@dataclass(frozen=True, eq=False)
class OwnRuns:
    """What a store of own runs says to a meta-model about one metric.

    Parameters
    ----------
    memory : TaskMemory
        One task for each dataset that was read.
    metric : str
    n_known : int
        Datasets that the meta-model was trained on: they are in its forecast, and not counted again.
    """

    memory: TaskMemory
    metric: str
    n_known: int = 0

    @classmethod
    def read(cls, runs: MetaDataset | None, model: MetaModel, metric: str) -> OwnRuns:
        """Runs by one metric, read with the meta-model that forecasts it.

        Parameters
        ----------
        runs : MetaDataset or None
            Datasets named by their fingerprints; any families and configurations.
        model : MetaModel
        metric : str
            One that the meta-model knows.
        """
        if runs is None:
            return cls(empty_memory(model), metric)
        rows = runs.evaluations[runs.evaluations["metric"] == metric]
        measured = set(rows["dataset"])
        known = measured & model.trained_on
        memory = empty_memory(model)
        kept = [name for name in runs.datasets if name in measured - known][-MOST_TASKS:]
        if kept:
            chosen = rows["dataset"].isin(kept)
            part = MetaDataset(rows[chosen], runs.meta_features.loc[kept], runs.groups.loc[kept])
            memory = write_tasks(memory, model, part)
        return cls(memory, metric, len(known))

    def shift(
        self, model: MetaModel, meta_features: pd.Series | Mapping[str, Any], candidates: Sequence[Candidate]
    ) -> Floats:
        """What they add to the forecast of each candidate, normalised units, shape (C,)."""
        return shift(self.memory, model, meta_features=meta_features, candidates=candidates, metric=self.metric)

    def note(self, fingerprint: str) -> str:
        """A sentence on what was read, for a dataset of this fingerprint."""
        names = self.memory.names
        if not names and not self.n_known:
            return f"The store of own runs holds none by {self.metric} yet."
        if not names:
            return f"Own runs by {self.metric} are all on datasets that the meta-model knows; none counts again."
        text = f"Own runs on {len(names)} dataset{'s' * (len(names) != 1)} were read as memory"
        text += ", this table among them." if fingerprint in names else "."
        known = f" {self.n_known} more are known to the meta-model and were not counted again."
        return text + known * (self.n_known > 0)


def empty_memory(model: MetaModel, seed: int = 0) -> TaskMemory:
    """A memory of no task, its attention as it is before any training: by likeness of all meta-features."""
    memory = TaskMemory(model.encoder.n_outputs, len(model.pool), metrics=model.metrics)
    memory.initialise(torch.Generator().manual_seed(seed))
    return memory.eval()


def write_tasks(memory: TaskMemory, model: MetaModel, meta_dataset: MetaDataset) -> TaskMemory:
    """A memory with all tasks of a meta-dataset written to it, a person's own runs say; nothing is trained.

    Parameters
    ----------
    memory : TaskMemory
    model : MetaModel
    meta_dataset : MetaDataset
        Any candidates, in the pool of the meta-model or not; metrics that the meta-model does not know are ignored.
    """
    candidates, evaluations = meta_dataset.candidates, meta_dataset.evaluations
    evaluations = evaluations[evaluations["metric"].isin(model.metrics)]
    records = dict(zip(meta_dataset.datasets, meta_dataset.meta_features.to_dict("records"), strict=True))
    by_dataset = dict(iter(evaluations.groupby("dataset", sort=False)))
    for name in [n for n in meta_dataset.datasets if n in by_dataset]:
        features = {str(key): value for key, value in records[name].items()}
        values = {
            str(metric): surprise(
                model, features, candidates=[candidates[key] for key in part["key"]], metric=str(metric),
                raw_scores=part["score"].to_numpy(dtype=float),
                standard_errors=part["standard_error"].to_numpy(dtype=float),
            )
            for metric, part in by_dataset[name].groupby("metric", sort=False)
        }  # fmt: skip
        memory = memory.write(name, model.encoder(features), values)
    return memory


@torch.no_grad()
def shift(
    memory: TaskMemory,
    model: MetaModel,
    *,
    meta_features: pd.Series | Mapping[str, Any],
    candidates: Sequence[Candidate],
    metric: str | None = None,
) -> Floats:
    """What the memory adds to the forecast of each candidate, normalised units, shape (C,).

    Candidates outside the pool are read through their neighbours of the same family, those of an unknown family get 0.
    """
    if len(memory) == 0:
        return np.zeros(len(candidates))
    x = model.encoder(meta_features)  # (1, D)
    pool = memory(x, metric or model.metrics[0])[0].numpy().astype(float)  # (P,)
    return _carried(pool, model, candidates)


def _carried(pool: Floats, model: MetaModel, candidates: Sequence[Candidate]) -> Floats:
    """Numbers of the pool (P,) carried to candidates (C,)."""
    view = model.pool.view(candidates, np.ones(len(pool), dtype=bool))
    inside: NDArray[np.bool_] = view.member >= 0
    result = np.zeros(len(candidates))
    result[inside] = pool[view.member[inside]]
    for at, known, weights in view.blocks:
        centre = pool[known].mean()
        result[at] = centre + weights @ (pool[known] - centre)
    return result


def surprise(
    model: MetaModel,
    meta_features: pd.Series | Mapping[str, Any],
    *,
    candidates: Sequence[Candidate],
    raw_scores: Floats,
    metric: str | None = None,
    standard_errors: Floats | None = None,
) -> Floats:
    """What measured scores of a dataset say about the whole pool beyond its forecast, normalised units, shape (P,).

    The belief that has seen the scores fills the rest of the pool in raw units; then the row is normalised like those
    of the training (0 = its median, 1 = its best, at least -1), and the forecast is taken off.

    Parameters
    ----------
    candidates : sequence of Candidate
        The ones that were run, in the pool or not.
    raw_scores, standard_errors : ndarray of shape (C,)
        Higher = better; a NaN score is a failure, a NaN error is unknown.
    """
    pool = [Candidate(family, config) for family, config in model.pool.candidates]
    before = model.belief(meta_features, [*pool, *candidates], metric=metric)
    after = before
    errors = np.full(len(raw_scores), np.nan) if standard_errors is None else np.asarray(standard_errors, dtype=float)
    for i, (score, error) in enumerate(zip(raw_scores, errors, strict=True)):
        at = len(pool) + i
        usable = bool(np.isfinite(error) and error > 0)
        after = (
            after.observe(at, float(score), standard_error=float(error) if usable else None)
            if np.isfinite(score)
            else after.observe_failure(at)
        )
    filled = after.mean[: len(pool)]
    middle = np.median(filled)
    scores = np.maximum((filled - middle) / max(filled.max() - middle, 1e-9 * max(abs(middle), 1.0)), -1.0)
    return np.asarray(scores - before.normalised_mean[: len(pool)])
