"""Rank every candidate for a dataset without fitting one."""

from __future__ import annotations

import time
from collections.abc import Hashable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cache, partial
from importlib.resources import files
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from sklearn.base import BaseEstimator
from sklearn.pipeline import Pipeline

from autometa.data import ColumnKind, Dataset, as_dataset
from autometa.families import resolve_families
from autometa.families._estimators import LabelCodes
from autometa.family import Candidate, Forecast, MatrixShape, ModelFamily
from autometa.gradient.schedules import Schedule
from autometa.html import selection_html
from autometa.meta_features import FEATURE_GROUPS, MetaFeatures, extract
from autometa.metrics import Metric, resolve_metric
from autometa.plots import family_ranking
from autometa.preprocessing import TableEncoder, n_leading_categories
from autometa.probing import Probe, informed, run_probes

if TYPE_CHECKING:
    from autometa.experience import Experience
    from autometa.meta_model import Belief, MetaModel
    from autometa.meta_model.own_runs import OwnRuns

Floats = NDArray[np.float64]


@dataclass(frozen=True, eq=False)
class LearningRates:
    """The learning rate that is forecast to suit a neural candidate on this table, over its training.

    Parameters
    ----------
    candidate : Candidate
    optimizer, birth : str
        What moves the weights, and where they come from.
    schedule : Schedule
        alpha(t) over the share of the training.
    epochs, rates : ndarray of shape (n_epochs + 1,)
        Epoch and learning rate at its start; the last is the end of the training.
    """

    candidate: Candidate
    optimizer: str
    birth: str
    schedule: Schedule
    epochs: Floats
    rates: Floats

    def __str__(self) -> str:
        s, marks = self.schedule, np.linspace(0, len(self.rates) - 1, 5).round().astype(int)
        course = ", ".join(f"{self.epochs[i]:.0f}: {self.rates[i]:.2g}" for i in marks)
        return (
            f"{self.candidate.family} is moved by {self.optimizer} from a {self.birth} birth, its learning rate "
            f"{s.name} with peak {s.peak:.2g} (epoch: rate {course})."
        )


@dataclass(frozen=True)
class Selection:
    """Candidates for one dataset, best first, with forecast and reasons.

    Parameters
    ----------
    candidates : tuple of Candidate
        All candidates, best predicted score first; those without a forecast come last.
    dataset : str
        Name of the dataset.
    metric : Metric
    families : tuple of ModelFamily
        What the names of the candidates mean.
    meta_features : MetaFeatures
    belief : Belief or None
        The joint belief over ``candidates`` (same order) that the tuner goes on with; ``None`` without meta-model.
    neighbours : tuple of (str, float)
        Nearest known datasets with their distance.
    notes : tuple of str
        What a reader should know about this ranking.
    reasons : tuple of str
        What moved the ranking, in sentences.
    seconds : float
        Time that the selection took.
    """

    candidates: tuple[Candidate, ...]
    dataset: str
    metric: Metric
    families: tuple[ModelFamily, ...]
    meta_features: MetaFeatures = field(repr=False)
    belief: Belief | None = field(default=None, repr=False)
    neighbours: tuple[tuple[str, float], ...] = ()
    notes: tuple[str, ...] = ()
    reasons: tuple[str, ...] = ()
    seconds: float = float("nan")

    @property
    def best(self) -> Candidate:
        """The candidate with the best predicted score."""
        return self.candidates[0]

    @property
    def novelty(self) -> float:
        """Share of the known datasets that lie nearer to the others than this one, NaN without meta-model."""
        return float("nan") if self.belief is None else self.belief.prior.novelty

    @property
    def trust(self) -> float:
        """Share of the forecast from meta-features that entered the ranking; 0 is the portfolio's order alone."""
        return 0.0 if self.belief is None else self.belief.prior.trust

    @property
    def memory_bound_mb(self) -> float:
        """Upper bound of the memory that one fit needs beside the table, in MB; NaN if the size is not known.

        64 MB, eight copies of the encoded matrix in double precision, and 20 kB a row for the deepest forests. In the
        corpus (tables of up to 2,000 rows) 99.9 % of the fits took less; it was not measured on larger ones.
        """
        values = self.meta_features.values
        n_rows, n_columns = (10.0 ** values.get(name, float("nan")) for name in ("log_rows", "log_columns"))
        return float(64 + n_rows * (64 * n_columns + 20_000) / 2**20)

    @property
    def ranking(self) -> tuple[Candidate, ...]:
        """The best candidate of each family, best family first."""
        first: dict[str, Candidate] = {}
        for candidate in self.candidates:
            first.setdefault(candidate.family, candidate)
        return tuple(first.values())

    def to_frame(self, *, every: bool = False) -> pd.DataFrame:
        """One row per family (``every=True``: per candidate); scores in the metric's own sign, seconds of one fit."""
        rows = []
        for candidate in self.candidates if every else self.ranking:
            f = candidate.forecast
            numbers = [np.nan] * 4
            if f is not None:
                ends = sorted(self.metric.from_score(s) + 0.0 for s in (f.score_low, f.score_high))
                numbers = [self.metric.from_score(f.score), *ends, f.fit_seconds]
            rows.append((candidate.family, *numbers, dict(candidate.config)))
        name = self.metric.name
        columns = ["family", name, f"{name}_low", f"{name}_high", "fit_seconds", "config"]
        return pd.DataFrame(rows, columns=columns, index=pd.RangeIndex(1, len(rows) + 1, name="rank"))

    def schedules(self, *, every: bool = False) -> list[LearningRates]:
        """Predicted learning rates alpha(t) of the best candidate of each neural family, best first.

        Parameters
        ----------
        every : bool, default=False
            Of all neural candidates.
        """
        chosen = self.candidates if every else self.ranking
        n_rows = 10.0 ** self.meta_features.values.get("log_rows", float("nan"))
        return [_learning_rates(c, n_rows) for c in chosen if {"learning_rate", "schedule"} <= set(c.config)]

    def explain(self) -> str:
        """Why the first candidate leads: forecast, runner-up, similar datasets and what won there, what moved the
        forecast, and how the best neural candidates would be trained. Plain text."""
        best, lines = self.best, []
        if best.forecast is None:
            lines.append(f"{best.family} comes first by default: no meta-model was used.")
        else:
            f = best.forecast
            low, high = sorted(self.metric.from_score(s) + 0.0 for s in (f.score_low, f.score_high))
            lines.append(
                f"{best.family} leads with an expected {self.metric.name} of {self.metric.from_score(f.score):.4g} "
                f"(80 % interval {low:.4g} to {high:.4g}), about {f.fit_seconds:.2g} s a fit."
            )
        if len(self.ranking) > 1 and self.ranking[1].forecast is not None and best.forecast is not None:
            second = self.ranking[1]
            gap = best.forecast.score - second.forecast.score  # type: ignore[union-attr]
            lines.append(f"The next family is {second.family}, {gap:.2g} {self.metric.name} behind.")
        lines += self.reasons
        lines += [str(rates) for rates in self.schedules()[:2]] if self.belief is not None else []
        return "\n".join([*lines, *self.notes])

    def plot(self, ax: Any = None) -> Any:
        """Forecast score of each family with its 80 % interval (needs matplotlib); returns the axes."""
        return family_ranking(self, ax=ax)

    def __str__(self) -> str:
        frame = self.to_frame()
        name = self.metric.name
        frame["80 % interval"] = [
            "" if np.isnan(low) else f"{low:.4g} .. {high:.4g}"
            for low, high in zip(frame.pop(f"{name}_low"), frame.pop(f"{name}_high"), strict=True)
        ]
        frame["config"] = [_short(config) for config in frame["config"]]
        columns = ["family", name, "80 % interval", "fit_seconds", "config"]
        text = frame[columns].to_string(float_format=lambda v: f"{v:.4g}", na_rep="-", justify="left")
        notes = "".join(f"\n{note}" for note in self.notes)
        return f"Selection for {self.dataset} by {name}, in {self.seconds:.1f} s\n{text}{notes}"

    def _repr_html_(self) -> str:
        return selection_html(
            self.to_frame(), dataset=self.dataset, metric=self.metric.name, seconds=self.seconds,
            explanation=self.explain(),
        )  # fmt: skip


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
    pool = [c for family in usable for c in _family_pool(family, model)]
    pool = [replace(c, builder=_builder(dataset, usable)) for c in pool]
    selection = Selection(tuple(pool), dataset.name, resolved, usable, features)
    if model is not None:
        selection = _ranked(selection, model, dataset, this_machine=this_machine, experience=experience, probe=probe)
    return replace(selection, seconds=time.perf_counter() - started)


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


def _learning_rates(candidate: Candidate, n_rows: float) -> LearningRates:
    # Its plan is a net's own business; the import costs PyTorch, which a meta-model has loaded already.
    from autometa.families._net_config import make_plan

    plan = make_plan(candidate.config, int(n_rows) if np.isfinite(n_rows) else 1000, early_stopping=True)
    epochs = np.arange(plan.n_epochs + 1, dtype=float)
    rates = np.array([plan.schedule.rate(e / plan.n_epochs) for e in epochs])
    birth = str(candidate.config.get("init", "random"))
    return LearningRates(candidate, plan.optimizer.name, birth, plan.schedule, epochs, rates)


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


def _family_pool(family: ModelFamily, model: MetaModel | None) -> list[Candidate]:
    """The configurations that the meta-model has seen of a family, or its default."""
    space = family.search_space
    default = Candidate(family.name, space.canonical(family.default_config))
    if model is None:
        return [default]
    configs = [config for name, config in model.pool.candidates if name == family.name]
    valid = [config for config in configs if _is_valid(family, config)]
    seen = [Candidate(family.name, space.canonical(config)) for config in valid]
    return list(dict.fromkeys([default, *seen])) if seen else [default]


def _is_valid(family: ModelFamily, config: Mapping[str, Any]) -> bool:
    try:
        family.search_space.validate(config)
    except ValueError:
        return False
    return True


def _builder(dataset: Dataset, families: Sequence[ModelFamily]) -> Any:
    by_name = {family.name: family for family in families}
    return partial(_build, by_name, dict(dataset.kinds), dataset.task, dataset.n_rows, dataset.n_classes)


def _build(
    families: Mapping[str, ModelFamily],
    kinds: Mapping[Hashable, ColumnKind],
    task: Any,
    n_rows: int,
    n_classes: int,
    candidate: Candidate,
) -> BaseEstimator:
    """Unfitted Pipeline of encoder and model for one candidate."""
    family = families[candidate.family]
    n_categorical = n_leading_categories(kinds, family.matrix)
    model = family.build(candidate.config, MatrixShape(task, n_rows, n_classes, n_categorical))
    model = LabelCodes(model) if task.is_classification else model
    return Pipeline([("encoder", TableEncoder(family.matrix, kinds=kinds)), ("model", model)])


def _resolve_meta_model(meta_model: MetaModel | str | Path | None) -> MetaModel | None:
    if meta_model == "none":
        return None
    if meta_model is None:
        return shipped_meta_model()
    if isinstance(meta_model, str | Path):
        from autometa.meta_model import MetaModel

        return MetaModel.load(meta_model)
    return meta_model


@cache
def shipped_meta_model() -> MetaModel:
    """The meta-model that comes with the library (read once a process)."""
    from autometa.meta_model import MetaModel

    return MetaModel.load(Path(str(files("autometa") / "pretrained" / "meta_model")))


def _short(config: Mapping[str, Any], most: int = 72) -> str:
    text = ", ".join(f"{k}={v:.3g}" if isinstance(v, float) else f"{k}={v}" for k, v in config.items())
    return text if len(text) <= most else text[: most - 1] + "…"
