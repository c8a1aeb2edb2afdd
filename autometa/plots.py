"""Plots with one call each; they need matplotlib (``pip install 'autometa-ml[plots]'``).

Every function takes ``ax`` (default: a new figure of a sensible size), returns the axes, and shows nothing by itself.
"""

from __future__ import annotations

from collections.abc import Mapping
from importlib.resources import files
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
import pandas as pd

from autometa.family import Candidate
from autometa.gradient.schedules import Schedule
from autometa.metrics import Metric
from autometa.records import Ledger

if TYPE_CHECKING:
    from matplotlib.axes import Axes

TRIAL_SOURCES = frozenset({"default", "selection", "listed", "policy", "local", "random", "search"})
"""Sources of ledger lines that are trials; the others are refits and notes."""
_N_POINTS = 400
_MAX_LABEL = 44


class RankedCandidates(Protocol):
    """What a plot reads of a :class:`autometa.Selection`."""

    @property
    def candidates(self) -> tuple[Candidate, ...]: ...
    @property
    def dataset(self) -> str: ...
    @property
    def metric(self) -> Metric: ...
    @property
    def meta_features(self) -> Any: ...
    @property
    def neighbours(self) -> tuple[tuple[str, float], ...]: ...
    def to_frame(self, *, every: bool = False) -> pd.DataFrame: ...


class FittedSearch(Protocol):
    """What a plot reads of a fitted :class:`autometa.AutoMetaClassifier` or :class:`autometa.AutoMetaRegressor`."""

    selection_: Any
    ledger_: Ledger
    metric_: Metric
    predictor_: Any


def family_ranking(selection: RankedCandidates, *, ax: Axes | None = None) -> Axes:
    """Forecast score of each family's best configuration with its 80 % interval, best on top.

    Raises
    ------
    ValueError
        The selection has no forecast.
    """
    name = selection.metric.name
    frame = selection.to_frame().dropna(subset=[name]).iloc[::-1]
    if frame.empty:
        raise ValueError("The selection must hold forecasts to be plotted. Got none: it was made without a meta-model.")
    ax = ax or _axes(6.0, 0.35 * len(frame) + 1.2)
    middle, low, high = (frame[column].to_numpy() for column in (name, f"{name}_low", f"{name}_high"))
    ax.errorbar(middle, _labels(frame["family"]), xerr=np.abs([middle - low, high - middle]), fmt="o", capsize=3)
    ax.set_xlabel(f"forecast {_text(name)}, 80 % interval ({_direction(selection.metric)})")
    ax.set_title(_text(selection.dataset))
    return ax


def forecast_against_reality(model: FittedSearch, *, ax: Axes | None = None) -> Axes:
    """What was forecast of each tried configuration before the search, against what validation then measured.

    Points on the diagonal came out as forecast. The bars are the 80 % intervals of the forecasts.

    Raises
    ------
    ValueError
        No configuration was both forecast and measured.
    """
    pairs = forecast_pairs(model.selection_, model.ledger_)
    if pairs.empty:
        raise ValueError("No configuration was both forecast and measured, so there is nothing to compare.")
    ax = ax or _axes(5.5, 5.0)
    spread = np.abs([pairs["forecast"] - pairs["low"], pairs["high"] - pairs["forecast"]])
    for family in dict.fromkeys(pairs["family"]):
        rows = (pairs["family"] == family).to_numpy()
        part = pairs[rows]
        ax.errorbar(
            part["forecast"], part["measured"], xerr=spread[:, rows], fmt="o", alpha=0.8, elinewidth=0.8,
            label=_text(family),
        )  # fmt: skip
    ends = [float(pairs[["low", "measured"]].min().min()), float(pairs[["high", "measured"]].max().max())]
    ax.plot(ends, ends, color="grey", linewidth=1, linestyle="--", zorder=0)
    name = _text(model.metric_.name)
    ax.set_xlabel(f"forecast {name}, 80 % interval")
    ax.set_ylabel(f"measured {name}")
    ax.legend(fontsize="small")
    return ax


def anytime_curve(ledger: Ledger, metric: Metric | None = None, *, ax: Axes | None = None) -> Axes:
    """Score of each finished trial over time, and the best so far.

    Parameters
    ----------
    ledger : Ledger
    metric : Metric, optional
        Turns scores into the metric's own sign; without it scores are shown as they are, higher = better.
    ax : matplotlib axes, optional

    Raises
    ------
    ValueError
        No trial ended well.
    """
    frame = best_so_far(ledger, metric)
    if frame.empty:
        raise ValueError("The ledger must hold at least one finished trial to be plotted. Got none.")
    ax = ax or _axes(6.5, 3.8)
    ax.step(frame["seconds"], frame["best"], where="post", label="best so far")
    ax.plot(frame["seconds"], frame["score"], "o", markersize=4, alpha=0.6, label="trials")
    ax.set_xlabel("seconds since the start of fit")
    ax.set_ylabel("validation score" if metric is None else f"{_text(metric.name)} ({_direction(metric)})")
    ax.legend(fontsize="small")
    return ax


def ensemble_weights(model: Any, *, ax: Axes | None = None) -> Axes:
    """Share of each member in the final model; takes a fitted estimator or a loaded ``Predictor``."""
    predictor = getattr(model, "predictor_", model)
    weights = np.array([member.weight for member in predictor.members])
    labels = [f"{i}. {_text(member.family)}" for i, member in enumerate(predictor.members, 1)]
    ax = ax or _axes(6.0, 0.35 * len(labels) + 1.2)
    bars = ax.barh(labels[::-1], (weights / weights.sum())[::-1])
    ax.bar_label(bars, fmt="{:.0%}", padding=3)
    ax.set_xlim(0, 1.12)
    ax.set_xlabel("share in the model")
    return ax


def learning_rate_schedule(*choices: Schedule | Candidate | Mapping[str, Any], ax: Axes | None = None) -> Axes:
    """Learning rate over the training, for one or several schedules.

    Parameters
    ----------
    *choices : Schedule, Candidate or configuration
        Candidates and configurations must be of a neural family (they have a ``schedule``).
    ax : matplotlib axes, optional

    Raises
    ------
    ValueError
        No choice was given, or one has no schedule.
    """
    if not choices:
        raise ValueError("learning_rate_schedule must be given at least one schedule or candidate. Got none.")
    ax = ax or _axes(6.0, 3.5)
    t = np.linspace(0.0, 1.0, _N_POINTS)
    for choice in choices:
        schedule, label = _schedule_of(choice)
        ax.plot(t, [schedule.rate(at) for at in t], label=_text(label))
    ax.set_ylim(bottom=0)
    ax.set_xlabel("share of the training")
    ax.set_ylabel("learning rate")
    ax.legend(fontsize="small")
    return ax


def nearest_datasets(
    selection: RankedCandidates, *, meta_features: pd.DataFrame | None = None, ax: Axes | None = None
) -> Axes:
    """The dataset among the known ones, in the plane of the first two principal components of their meta-features.

    The named points are the datasets that the meta-model itself finds most alike; it looks at all meta-features, so
    they need not be the nearest in this plane.

    Parameters
    ----------
    selection : Selection
    meta_features : DataFrame of shape (n_datasets, n_features), optional
        Indexed by dataset, such as ``MetaDataset.meta_features``; default: those of the shipped corpus.
    ax : matplotlib axes, optional
    """
    known = shipped_meta_features() if meta_features is None else meta_features
    plane = meta_feature_plane(known, selection.meta_features.to_series())
    ax = ax or _axes(6.5, 5.0)
    ax.scatter(plane["x"].iloc[:-1], plane["y"].iloc[:-1], s=12, alpha=0.45, label="known datasets")
    near = [str(name) for name, _ in selection.neighbours if str(name) in plane.index[:-1]]
    if near:
        ax.scatter(plane.loc[near, "x"], plane.loc[near, "y"], s=28, label="most alike")
        for name in near:
            ax.annotate(_text(name), (plane.at[name, "x"], plane.at[name, "y"]), fontsize="x-small",
                        xytext=(4, 3), textcoords="offset points")  # fmt: skip
    ax.scatter(plane["x"].iloc[-1], plane["y"].iloc[-1], s=110, marker="*", label=_text(selection.dataset))
    ax.set_xlabel("first component of the meta-features")
    ax.set_ylabel("second component")
    ax.legend(fontsize="small")
    return ax


def forecast_pairs(selection: RankedCandidates, ledger: Ledger) -> pd.DataFrame:
    """One row per candidate that was forecast and measured: family, forecast, low, high, measured, config.

    All in the metric's own sign. A candidate that was measured twice keeps its first score.
    """
    measured: dict[Candidate, float] = {}
    for entry in ledger:
        if entry.candidate is not None and entry.source in TRIAL_SOURCES and np.isfinite(entry.score):
            measured.setdefault(entry.candidate, entry.score)
    sign = selection.metric.from_score
    rows = []
    for candidate in selection.candidates:
        forecast = candidate.forecast
        if forecast is not None and candidate in measured:
            low, high = sorted((sign(forecast.score_low), sign(forecast.score_high)))
            score = sign(measured[candidate])
            rows.append((candidate.family, sign(forecast.score), low, high, score, dict(candidate.config)))
    return pd.DataFrame(rows, columns=["family", "forecast", "low", "high", "measured", "config"])


def best_so_far(ledger: Ledger, metric: Metric | None = None) -> pd.DataFrame:
    """Finished trials by the time at which they ended: seconds, score and best, in the metric's own sign."""
    rows = [
        (entry.started + entry.seconds, entry.score)
        for entry in ledger
        if entry.source in TRIAL_SOURCES and np.isfinite([entry.score, entry.started, entry.seconds]).all()
    ]
    frame = pd.DataFrame(rows, columns=["seconds", "score"]).sort_values("seconds", ignore_index=True)
    frame["best"] = frame["score"].cummax()
    if metric is not None:
        frame[["score", "best"]] = frame[["score", "best"]].map(metric.from_score)
    return frame


def meta_feature_plane(known: pd.DataFrame, new: pd.Series) -> pd.DataFrame:
    """Coordinates x, y of the known datasets and, in the last row, of the new one.

    Meta-features have heavy tails, so each is replaced by its rank (missing: the middle one); then come the first two
    principal components of the known datasets.

    Parameters
    ----------
    known : DataFrame of shape (n_datasets, n_features)
    new : Series
        By name; features that only one side has are left out.
    """
    names = [name for name in known.columns if name in new.index and pd.api.types.is_numeric_dtype(known[name])]
    both = pd.concat([known[names].astype(float), new[names].astype(float).to_frame().T])
    ranks = (both.rank(pct=True) - 0.5).fillna(0.0).to_numpy()
    centre = ranks[:-1].mean(axis=0)
    axes = np.linalg.svd(ranks[:-1] - centre, full_matrices=False)[2][:2]
    axes = axes * np.sign(axes.sum(axis=1, keepdims=True) + 1e-12)  # the same picture on every machine
    x, y = ((ranks - centre) @ axes.T).T
    index = [*map(str, known.index), "this dataset"]
    return pd.DataFrame({"x": x, "y": y}, index=index)


def shipped_meta_features() -> pd.DataFrame:
    """Meta-features of the shipped corpus, indexed by dataset."""
    with (files("autometa") / "pretrained" / "corpus" / "meta_features.parquet").open("rb") as file:
        return pd.read_parquet(file).set_index("dataset")


def _schedule_of(choice: Schedule | Candidate | Mapping[str, Any]) -> tuple[Schedule, str]:
    if isinstance(choice, Schedule):
        return choice, f"{choice.name}, peak {choice.peak:.2g}"
    family, config = (choice.family, choice.config) if isinstance(choice, Candidate) else ("", choice)
    if "schedule" not in config:
        raise ValueError(f"A configuration must have a schedule to be plotted. Got {family or dict(config)!r} without.")
    schedule = Schedule(
        config["schedule"], config["learning_rate"], config.get("warmup_fraction", 0.0),
        config.get("floor_fraction", 0.0),
    )  # fmt: skip
    parts = (family, config.get("optimizer"), config.get("init"), f"{schedule.name}, peak {schedule.peak:.2g}")
    return schedule, ", ".join(str(part) for part in parts if part)


def _axes(width: float, height: float) -> Axes:
    try:
        import matplotlib.pyplot as plt
    except ImportError as error:
        raise ImportError("Plots need matplotlib. Install it with: pip install 'autometa-ml[plots]'.") from error
    axes: Axes = plt.subplots(figsize=(width, height), layout="constrained")[1]
    return axes


def _direction(metric: Metric) -> str:
    return "higher is better" if metric.greater_is_better else "lower is better"


def _labels(names: pd.Series) -> list[str]:
    return [_text(name) for name in names]


def _text(value: Any) -> str:
    """Short text that matplotlib takes literally: ``$`` would start a formula, a leading ``_`` hide it in legends."""
    text = " ".join(str(value).split())
    text = text if len(text) <= _MAX_LABEL else text[: _MAX_LABEL - 1] + "…"
    return text.replace("$", r"\$") if not text.startswith("_") else "\u200b" + text.replace("$", r"\$")
