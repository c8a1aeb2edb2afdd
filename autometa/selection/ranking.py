"""Rank every candidate for a dataset without fitting one."""

from __future__ import annotations

import time
from collections.abc import Hashable, Iterable, Sequence
from dataclasses import replace
from functools import cache
from importlib.resources import files
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from autometa.data import Dataset, as_dataset
from autometa.families import resolve_families
from autometa.family import Candidate, Forecast, ModelFamily
from autometa.meta_features import FEATURE_GROUPS, extract
from autometa.metrics import Metric, resolve_metric
from autometa.probing import Probe, informed, run_probes
from autometa.selection.pool import candidate_pool
from autometa.selection.result import Selection

if TYPE_CHECKING:
    from autometa.experience import Experience
    from autometa.meta_model import Belief, MetaModel
    from autometa.meta_model.own_runs import OwnRuns

Floats = NDArray[np.float64]


def select(
    data: Any,
    y: Any = None,
    *,
    target: Hashable | None = None,
    metric: str | Metric | None = None,
    families: Iterable[str | ModelFamily] | None = None,
    meta_model: MetaModel | str | Path | None = None,
    experience: Experience | str | Path | None = None,
    random_state: int = 0,
    this_machine: bool = True,
    probe: bool = False,
    **options: Any,
) -> Selection:
    """Rank model families and configurations for a dataset; nothing is fitted but landmarkers.

    Parameters
    ----------
    data : Dataset, DataFrame, array or path
        A table (pandas, polars, NumPy, or a CSV or Parquet file) with ``target`` or ``y``.
    y : array-like of shape (n_rows,), optional
    target : column name, optional
    metric : str, Metric or scorer, default=None
        ``None``: ROC AUC for two classes, log loss for more, RMSE for numbers.
    families : iterable of str or ModelFamily, default=None
        ``None``: all that are installed. One that the meta-model never met enters with its default configuration.
    meta_model : MetaModel, path or "none", default=None
        ``None``: the one that comes with the library; ``"none"``: no meta-knowledge, defaults in a fixed order.
    experience : Experience, path or database URL, default=None
        A store of own runs (:class:`autometa.experience.Experience`) that is read as memory: what was better or worse
        than forecast there is expected again on similar tables. ``None``: nothing is read.
    random_state : int, default=0
        Seed of the subsampling inside the meta-features.
    this_machine : bool, default=True
        Forecast seconds for this machine, whose speed the landmarkers have measured; ``False``: for the machine of the
        corpus, the same in every run.
    probe : bool, default=False
        Also fit a few cheap candidates on 512 or 128 rows, about half a second, where the meta-model has learned what
        their scores say about all others.
    **options
        ``task``, ``groups``, ``time``, ``sample_weight``, ``name``: see :meth:`Dataset.from_arrays`.

    Returns
    -------
    Selection

    Raises
    ------
    DataError
        The table cannot be used; one sentence says why.
    ExperienceError
        The store of own runs cannot be read.
    ValueError
        An unknown family or a metric that does not fit the task.

    Examples
    --------
    >>> from sklearn.datasets import load_wine
    >>> selection = select(*load_wine(return_X_y=True), families=["linear", "random_forest"])
    >>> sorted(c.family for c in selection.ranking)
    ['linear', 'random_forest']
    """
    started = time.perf_counter()
    dataset = as_dataset(data, y, target=target, **options)
    resolved = resolve_metric(metric, dataset.task)
    usable = tuple(f for f in resolve_families(families) if dataset.task in f.tasks)
    if not usable:
        raise ValueError(f"None of the chosen families can do a {dataset.task} task.")
    features = extract(dataset, seed=random_state)
    model = _resolve_meta_model(meta_model)
    pool = candidate_pool(dataset, usable, model)
    selection = Selection(tuple(pool), dataset.name, resolved, usable, features)
    if model is not None:
        selection = _ranked(selection, model, dataset, this_machine=this_machine, experience=experience, probe=probe)
    return replace(selection, seconds=time.perf_counter() - started)


@cache
def shipped_meta_model() -> MetaModel:
    """The meta-model that comes with the library (read once a process)."""
    from autometa.meta_model import MetaModel

    return MetaModel.load(Path(str(files("autometa") / "pretrained" / "meta_model")))


def _resolve_meta_model(meta_model: MetaModel | str | Path | None) -> MetaModel | None:
    if meta_model == "none":
        return None
    if meta_model is None:
        return shipped_meta_model()
    if isinstance(meta_model, str | Path):
        from autometa.meta_model import MetaModel

        return MetaModel.load(meta_model)
    return meta_model


def _ranked(
    selection: Selection,
    model: MetaModel,
    dataset: Dataset,
    *,
    this_machine: bool,
    experience: Experience | str | Path | None,
    probe: bool,
) -> Selection:
    """Candidates sorted by the belief of the meta-model, with forecasts."""
    known = set(model.pool.families)
    metric = selection.metric.name if selection.metric.name in model.metrics else _stand_in(dataset, model)
    candidates = list(selection.candidates)
    met = [c for c in candidates if c.family in known]
    unmet = [c for c in candidates if c.family not in known]
    if not met:
        return replace(selection, notes=("None of these families is known to the meta-model.",))
    series = selection.meta_features.to_series()
    series["task"] = str(dataset.task)
    speed = selection.meta_features.machine_seconds if this_machine else None
    own = None if experience is None else _own_runs(experience, model, metric)
    wanted = model.probes(metric) if probe else {}
    probes = run_probes(dataset, wanted, met, metric=metric, families=selection.families)
    belief = _believed(model, series, met, metric=metric, speed=speed, own=own, probes=probes)
    same_scale = metric == selection.metric.name
    shown = _within_range(belief, selection.metric)[0] if same_scale else belief.mean
    met = [met[i] for i in np.argsort(-shown, kind="stable")]
    belief = _believed(model, series, met, metric=metric, speed=speed, own=own, probes=probes)
    forecasts = [
        Forecast(float(m), float(a), float(b), float(s), "belief")
        for m, a, b, s in zip(*_within_range(belief, selection.metric), belief.seconds, strict=True)
    ]
    ranked = [c.with_forecast(f if same_scale else None) for c, f in zip(met, forecasts, strict=True)]
    notes = [] if same_scale else [f"Ranked by {metric}: the meta-model does not know {selection.metric.name}."]
    if unmet:
        names = ", ".join(dict.fromkeys(c.family for c in unmet))
        notes.append(f"No forecast for {names}: the meta-model has not met them.")
    notes += _doubts(belief, model.head(metric).trust(str(dataset.task), 0.0))
    notes += [] if own is None else [own.note(dataset.fingerprint)]
    if probes:
        notes.append(f"{len(probes)} cheap candidates were fitted on {probes[0].train_rows} rows, which informed this.")
    return replace(
        selection, candidates=(*ranked, *unmet), belief=belief, neighbours=tuple(model.neighbours(series)),
        notes=tuple(notes), reasons=tuple(_reasons(model, series, met, metric)),
    )  # fmt: skip


def _believed(
    model: MetaModel,
    features: pd.Series,
    candidates: Sequence[Candidate],
    *,
    metric: str,
    speed: float | None,
    own: OwnRuns | None,
    probes: Sequence[Probe],
) -> Belief:
    """The belief of the meta-model, its mean shifted by what own runs recall, after what probes scored."""
    belief = model.belief(features, candidates, metric=metric, machine_seconds=speed)
    if own is not None and len(own.memory):
        moved = own.shift(model, features, candidates)
        belief = replace(belief, prior=replace(belief.prior, mean=belief.prior.mean + moved))
    return informed(belief, candidates, probes)


def _own_runs(experience: Experience | str | Path, model: MetaModel, metric: str) -> OwnRuns:
    from autometa.experience import as_experience
    from autometa.meta_model.own_runs import OwnRuns

    store = as_experience(experience)
    return OwnRuns.read(store.to_meta_dataset() if len(store) else None, model, metric)


def _doubts(belief: Belief, usual: float) -> list[str]:
    """What to say where the dataset is unlike the known ones, or the forecast is not trusted at all."""
    trust, novelty = belief.prior.trust, belief.prior.novelty
    if trust < usual:
        rank = "more unlike the known datasets than any of these" if novelty >= 1 else f"of novelty {novelty:.0%}"
        return [
            f"This table is {rank}: the ranking is drawn to what is best on average "
            f"({trust / usual:.0%} of the usual weight on its meta-features)."
        ]
    return [] if trust > 0 else ["The ranking is the portfolio's: meta-features did not choose better in rehearsals."]


def _reasons(model: MetaModel, features: pd.Series, candidates: Sequence[Candidate], metric: str) -> list[str]:
    """Similar datasets and their winners, what moved the forecast of the leader, and one counterfactual."""
    from autometa.meta_model.explanation import counterfactual, moved_by, nearest_winners

    lines = []
    near = nearest_winners(model, features, metric)
    if near:
        won = ", ".join(f"{name} ({winner.family} won)" for name, _, winner in near)
        lines.append(f"The most similar known datasets are {won}.")
    best = candidates[0]
    moves = moved_by(model, features, best, metric=metric, groups=FEATURE_GROUPS)
    strong = [f"{name} ({move:+.2f})" for name, move in moves[:3] if abs(move) >= 0.01]
    if strong:
        lines.append(
            f"What moved the forecast of {best.family} against the portfolio's: {', '.join(strong)}; "
            "1 is the distance from the median candidate to the best."
        )
    change = counterfactual(model, dict(features.items()), candidates, metric=metric)
    if change is not None and change[1] != best.family:  # the ranking also knows what the forecast alone does not
        lines.append(f"With {change[0]:.0f} times the rows {change[1]} would lead.")
    return lines


def _within_range(belief: Belief, metric: Metric) -> tuple[Floats, Floats, Floats]:
    """Mean and calibrated 80 % interval of each forecast, given that a score lies in the range of its metric.

    An interval that leaves the range is read as that of a Gaussian, of which the part inside the range remains.
    """
    from scipy.stats import norm, truncnorm

    low, high = belief.interval(0.8)
    centre, std = (low + high) / 2, np.maximum(high - low, 1e-12) / (2 * norm.ppf(0.9))
    inside = truncnorm((metric.worst - centre) / std, (metric.best - centre) / std, loc=centre, scale=std)
    cut = (low < metric.worst) | (high > metric.best)
    mean = np.where(cut, inside.mean(), belief.mean) if cut.any() else belief.mean
    low, high = np.where(cut, inside.ppf(0.1), low), np.where(cut, inside.ppf(0.9), high)
    return mean, np.minimum(low, mean), np.maximum(high, mean)


def _stand_in(dataset: Dataset, model: MetaModel) -> str:
    """The known metric to rank by when the asked one was never measured."""
    default = resolve_metric(None, dataset.task).name
    return default if default in model.metrics else next(iter(model.metrics))
