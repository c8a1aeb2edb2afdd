"""What a selection is: candidates for one dataset, best first, with forecasts and reasons."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from autometa.family import Candidate, ModelFamily
from autometa.gradient.schedules import Schedule
from autometa.html import selection_html
from autometa.meta_features import MetaFeatures
from autometa.metrics import Metric
from autometa.plots import family_ranking

if TYPE_CHECKING:
    from autometa.meta_model import Belief

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


def _learning_rates(candidate: Candidate, n_rows: float) -> LearningRates:
    # Its plan is a net's own business; the import costs PyTorch, which a meta-model has loaded already.
    from autometa.families._net_config import make_plan

    plan = make_plan(candidate.config, int(n_rows) if np.isfinite(n_rows) else 1000, early_stopping=True)
    epochs = np.arange(plan.n_epochs + 1, dtype=float)
    rates = np.array([plan.schedule.rate(e / plan.n_epochs) for e in epochs])
    birth = str(candidate.config.get("init", "random"))
    return LearningRates(candidate, plan.optimizer.name, birth, plan.schedule, epochs, rates)


def _short(config: Mapping[str, Any], most: int = 72) -> str:
    text = ", ".join(f"{k}={v:.3g}" if isinstance(v, float) else f"{k}={v}" for k, v in config.items())
    return text if len(text) <= most else text[: most - 1] + "…"
