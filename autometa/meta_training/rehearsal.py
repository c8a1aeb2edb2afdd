"""Rehearsals: what a meta-model says of groups that it has not seen, and what that teaches about trusting it.

The corpus is split by group; for each fold a meta-model is trained on the other folds and asked about this one. From
its answers come the share of the forecast that is kept (where following the meta-features chose worse than following
the portfolio, less or nothing of it), the novelty beyond which the forecast is not trusted, and the quantiles of the
errors, before and after some trials, by which intervals are calibrated.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pandas as pd

from autometa.family import Candidate
from autometa.meta_dataset import MetaDataset, candidate_key
from autometa.meta_model import Belief, MetaModel
from autometa.meta_model.calibration import Calibration, conformal_quantiles
from autometa.meta_model.heads import SIZES, fade
from autometa.meta_model.outputs import TrainRows, output_name
from autometa.meta_model.priors import Floats
from autometa.meta_training.parts import Caution, Parts, TrainingOptions, learn, task_names, with_relations

STAGES = (0, 1, 4)
"""Numbers of trials at which intervals are calibrated."""

SHARES = (0.0, 0.5, 1.0)
NOISE_SHARES = (1.0, 0.4, 0.15, 0.05)
THRESHOLDS = (0.8, 0.9, 0.95, 0.98)
_DEFAULT_THRESHOLD = 0.95
_MIN_GROUPS = 12
_N_SUBSETS = 40
_N_TREES = 60
_N_FOLDS = 3
_N_BOOTSTRAPS = 200
_BORROWED = 10.0
_CAUTION = 0.25
_N_TRIALS = 5


@dataclass(frozen=True, eq=False)
class Case:
    """What following the meta-features was worth on one dataset of a rehearsal.

    Parameters
    ----------
    group, task : str
    novelty : float
    choice, search : ndarray of shape (len(SHARES),)
        What following the forecast at each share gained over following the portfolio, in normalised units: in a single
        choice, and on average over the first five trials of a search.
    """

    group: str
    task: str
    novelty: float
    choice: Floats
    search: Floats


def rehearse(meta_dataset: MetaDataset, seed: int, options: TrainingOptions) -> Caution:
    """What rehearsals on held-out groups teach; nothing where there are fewer than 12 groups.

    Parameters
    ----------
    meta_dataset : MetaDataset
    seed : int
    options : TrainingOptions
    """
    if not options.n_rehearsals or meta_dataset.groups.nunique() < _MIN_GROUPS:
        return Caution()
    # Fewer trees and folds than the model itself has: a rehearsal need not be as good, and there are several.
    options = replace(options, n_trees=min(options.n_trees, _N_TREES), n_folds=min(options.n_folds, _N_FOLDS))
    acts: list[tuple[Parts, MetaDataset, MetaDataset]] = []
    for train, test in meta_dataset.split_by_group(options.n_rehearsals, seed=seed + 1):
        acts.append((learn(train, seed, options), train, test))
    cases = [_case(act) for parts, _, test in acts for act in _acts(parts, test, Caution(), first_only=True)]
    single, lasting = _shrink(cases, "choice"), _shrink(cases, "search")
    threshold = _threshold(cases, single)
    shrink, opening = (dict.fromkeys(meta_dataset.metrics, shares) for shares in (lasting, single))
    caution = Caution(shrink, opening, threshold)
    noise = _noise_shares(pd.concat([_told(parts, test, caution) for parts, _, test in acts], ignore_index=True))
    caution = replace(caution, noise_share=noise)
    errors = pd.concat([_errors(*act, caution) for act in acts], ignore_index=True)
    scores = errors[errors["metric"] != ""]
    calibration = {str(metric): calibrations(part) for metric, part in scores.groupby("metric", sort=False)}
    timed = errors[errors["metric"] == ""]
    seconds = calibrations(timed, by_task=False) if len(timed) else {}
    report = {
        "shrink": lasting, "opening": single, "threshold": threshold, "noise_share": noise,
        "gains": {kind: _gain_report(cases, kind) for kind in ("choice", "search")},
    }  # fmt: skip
    return replace(caution, calibration=calibration, seconds=seconds, report=report)


def _case(act: _Act) -> Case:
    """The gains on one dataset, from a belief that trusts its forecast in full."""
    prior, value = act.belief.prior, _value(act.raw, act.error)
    choice = choice_gains(act.portfolio, prior.mean - act.portfolio, value)
    found = []
    for share in SHARES:
        mean = act.portfolio + share * (prior.mean - act.portfolio)
        belief = replace(act.belief, prior=replace(prior, mean=mean))
        for _ in range(min(_N_TRIALS, len(value))):
            belief = _tried(belief, act)
        found.append(float(np.maximum.accumulate(value[list(belief.tried)]).mean()))
    return Case(act.group, act.task, prior.novelty, choice, np.array(found) - found[0])


def _measured(test: MetaDataset, metric: str, model: MetaModel) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Scores and standard errors of the pool's candidates, (n_datasets, P), NaN where not measured."""
    keys = [candidate_key(family, config) for family, config in model.pool.candidates]
    scores = test.score_table(metric).reindex(columns=keys)
    return scores, test.standard_error_table(metric).reindex(index=scores.index, columns=keys)


def _value(raw: Floats, error: Floats) -> Floats:
    """Normalised scores, damped where they are mostly noise, shape (n,)."""
    middle = np.median(raw)
    spread = max(float(raw.max() - middle), 1e-12)
    noise = float(np.nanmedian(error)) if np.isfinite(error).any() else 0.0
    return np.clip((raw - middle) / spread, -1.0, None) * spread**2 / (spread**2 + (2 * noise) ** 2)


def choice_gains(portfolio: Floats, residual: Floats, value: Floats, seed: int = 0) -> Floats:
    """Mean gain of choosing by ``portfolio + share * residual`` over choosing by the portfolio, for each share.

    Averaged over random halves of the candidates: one choice among all is a coin toss, forty are not.

    Parameters
    ----------
    portfolio, residual, value : ndarray of shape (n_candidates,)

    Returns
    -------
    ndarray of shape (len(SHARES),)
    """
    draws = np.random.default_rng(seed).random((_N_SUBSETS, len(value)))
    inside = draws <= np.median(draws, axis=1, keepdims=True)
    means = portfolio + np.array(SHARES)[:, None] * residual  # (S, n)
    chosen = np.where(inside[:, None, :], means[None], -np.inf).argmax(axis=2)  # (subsets, S)
    found = value[chosen].mean(axis=0)
    return np.asarray(found - found[0])


def _shrink(cases: Sequence[Case], kind: str) -> dict[str, float]:
    """Task -> the share with the best gain less a quarter of its standard error, averaged over bootstraps by group.

    A task's gains are drawn to those of all tasks. The average over bootstraps keeps a choice among nearly equal
    shares from being a toss.
    """
    result: dict[str, float] = {}
    everywhere, rng = _group_gains(cases, kind).mean(axis=0), np.random.default_rng(0)
    for task in sorted({case.task for case in cases}):
        own = _group_gains([c for c in cases if c.task == task], kind)
        n, error = len(own), own.std(axis=0) / np.sqrt(max(len(own) - 1, 1))
        draws = own[rng.integers(n, size=(_N_BOOTSTRAPS, n))].mean(axis=1)  # (bootstraps, S)
        mean = (n * (draws - _CAUTION * error) + _BORROWED * everywhere) / (n + _BORROWED)
        result[task] = round(float(np.array(SHARES)[mean.argmax(axis=1)].mean()), 3)
    return {"": float(np.median(list(result.values())))} | result


def _group_gains(cases: Sequence[Case], kind: str) -> Floats:
    """Mean gain of each group at each share, shape (n_groups, len(SHARES))."""
    by_group: dict[str, list[Floats]] = {}
    for case in cases:
        by_group.setdefault(case.group, []).append(getattr(case, kind))
    return np.array([np.mean(values, axis=0) for values in by_group.values()])


def _threshold(cases: Sequence[Case], shrink: Mapping[str, float]) -> float:
    """The novelty beyond which not to trust: another than the default where it chose better by half an error."""

    def gains(threshold: float) -> dict[str, list[float]]:
        result: dict[str, list[float]] = {}
        for case in cases:
            share = shrink[case.task] * fade(case.novelty, threshold)
            result.setdefault(case.group, []).append(float(np.interp(share, SHARES, case.choice)))
        return result

    usual, best, choice = gains(_DEFAULT_THRESHOLD), 0.0, _DEFAULT_THRESHOLD
    for threshold in THRESHOLDS:
        other = gains(threshold)
        change = np.array([np.mean(other[g]) - np.mean(usual[g]) for g in usual])
        sure = float(change.mean() - _CAUTION * change.std() / np.sqrt(len(change)))
        if sure > best:
            best, choice = sure, threshold
    return choice


@dataclass(frozen=True, eq=False)
class _Act:
    """What one dataset of a rehearsal measured, and what was believed of it before: arrays over its candidates.

    ``few`` (n,) holds scores after training on ``few_rows`` rows, NaN where there are none; ``log_rows`` is the decimal
    logarithm of the rows, NaN where it is not known.
    """

    belief: Belief
    portfolio: Floats
    raw: Floats
    error: Floats
    seconds: Floats
    few: Floats
    few_rows: int
    log_rows: float
    metric: str
    task: str
    group: str


def _acts(
    parts: Parts, test: MetaDataset, caution: Caution, *, first_only: bool = False, with_few: bool = False
) -> Iterator[_Act]:
    """One act for each dataset and metric, or for its first metric only; only the first has seconds.

    ``with_few``: also with the scores on few rows.
    """
    model = parts.assemble(caution, {"trained_on": []})  # its scores are in units already, as those of the tables are
    tasks = dict(zip(test.datasets, map(str, task_names(test.meta_features)), strict=True))
    log_rows = test.meta_features.get(SIZES[0], pd.Series(np.nan, index=test.datasets)).astype(float)
    everyone = [Candidate(family, config) for family, config in model.pool.candidates]
    seconds = test.seconds_table().reindex(columns=[candidate_key(c.family, c.config) for c in everyone])
    timed: set[str] = set()
    for metric in [m for m in test.metrics if m in model.metrics]:
        scores, errors = _measured(test, metric, model)
        few = {n: test.score_table(metric, train_rows=n).reindex(scores.index, columns=scores.columns)
               for n in (test.train_sizes(metric) if with_few else ())}  # fmt: skip
        for name in [n for n in scores.index if not (first_only and n in timed)]:
            raw, features = scores.loc[name].to_numpy(), test.meta_features.loc[name]
            known = np.flatnonzero(np.isfinite(raw))
            candidates = [everyone[i] for i in known]
            times = seconds.loc[name].to_numpy()[known]
            n_rows = max((n for n, table in few.items() if table.loc[name].notna().any()), default=0)
            few_scores = few[n_rows].loc[name].to_numpy()[known] if n_rows else np.full_like(times, np.nan)
            yield _Act(
                model.belief(features, candidates, metric), model.forecast(features, candidates, metric, trust=0.0),
                raw[known], errors.loc[name].to_numpy()[known],
                np.full_like(times, np.nan) if name in timed else times, few_scores, n_rows,
                log_rows[name], metric, tasks[name], str(test.groups[name]),
            )  # fmt: skip
            timed.add(name)


def _told(parts: Parts, test: MetaDataset, caution: Caution) -> pd.DataFrame:
    """Error of the forecasts of untried candidates after some trials, for each share of the noise."""
    rows = []
    for act in _acts(parts, test, caution):
        if len(act.raw) < 2 * STAGES[-1] or not np.isfinite(act.error).any():
            continue
        belief = act.belief
        for _ in range(STAGES[-1]):
            belief = _tried(belief, act)
        rest = np.setdiff1d(np.arange(len(act.raw)), belief.tried)
        unit = max(float(act.raw.max() - np.median(act.raw)), 1e-12)
        for share in NOISE_SHARES:
            later = replace(belief, prior=replace(belief.prior, noise_share=share))
            loss = float(np.minimum(np.abs(act.raw - later.mean)[rest] / unit, 1.0).mean())
            rows.append((act.metric, act.task, act.group, share, loss))
    return pd.DataFrame(rows, columns=["metric", "task", "group", "share", "loss"])


def _noise_shares(told: pd.DataFrame) -> dict[str, dict[str, float]]:
    """Metric -> task -> the share with the least error, as a geometric mean over bootstraps by group."""
    result: dict[str, dict[str, float]] = {}
    rng, logs = np.random.default_rng(0), np.log(np.array(NOISE_SHARES))
    for (metric, task), part in told.groupby(["metric", "task"], sort=False):
        losses = part.pivot_table(index="group", columns="share", values="loss")[list(NOISE_SHARES)].to_numpy()
        draws = losses[rng.integers(len(losses), size=(_N_BOOTSTRAPS, len(losses)))].mean(axis=1)
        best = float(np.exp(logs[draws.argmin(axis=1)].mean()))
        result.setdefault(str(metric), {})[str(task)] = round(best, 4)
    for shares in result.values():
        shares.setdefault("", float(np.median(list(shares.values()))))
    return result


def _errors(parts: Parts, train: MetaDataset, test: MetaDataset, caution: Caution) -> pd.DataFrame:
    """Standardised errors of the candidates not tried yet, after each stage; metric ``""`` is log-seconds.

    Once as they are and, where there are scores after training on few rows, once ``probed`` by them.
    """
    frames = []
    parts = with_relations(parts, train, other_metrics=False)
    for act in _acts(parts, test, caution, with_few=True):
        found = [_stage_errors(act).assign(probed=False)]
        if (probed := _probed(act)) is not None:
            again = _stage_errors(probed).assign(probed=True)
            found.append(again[again["metric"]])
        for part in found:
            names = part["metric"].map({True: act.metric, False: ""})
            frames.append(part.assign(metric=names, task=act.task, group=act.group, log_rows=act.log_rows))
    return pd.concat(frames, ignore_index=True)


def _probed(act: _Act) -> _Act | None:
    """The same after its scores on few rows; ``None`` where there are none that the belief can take."""
    belief = act.belief
    if not act.few_rows or output_name(TrainRows(act.few_rows)) not in belief.outputs:
        return None
    for index in np.flatnonzero(np.isfinite(act.few)):
        belief = belief.observe(int(index), float(act.few[index]), output=TrainRows(act.few_rows))
    return replace(act, belief=belief)


def _stage_errors(act: _Act) -> pd.DataFrame:
    """Standardised errors after each stage: of scores (``metric`` is true) and of log-seconds."""
    belief, raw = act.belief, act.raw
    if belief.seconds_prior is not None:  # the machine of the corpus is known
        belief = replace(belief, seconds_prior=replace(belief.seconds_prior, speed_std=0.0))
    frames = []
    for n_trials in range(STAGES[-1] + 1):
        rest = np.setdiff1d(np.arange(len(raw)), belief.tried)
        if not len(rest):
            break
        if n_trials in STAGES:
            z = (raw - belief.mean) / np.where(raw < belief.mean, belief.downside, belief.std)
            frames.append(pd.DataFrame({"stage": n_trials, "z": z[rest], "metric": True}))
            rest = rest[np.isfinite(act.seconds[rest])]
            z = (np.log(np.maximum(act.seconds, 1e-4)) - np.log(belief.seconds)) / belief.seconds_std
            frames.append(pd.DataFrame({"stage": n_trials, "z": z[rest], "metric": False}))
        belief = _tried(belief, act)
    return pd.concat([f for f in frames if len(f)], ignore_index=True)


def _tried(belief: Belief, act: _Act) -> Belief:
    """The belief after the trial that it asks for."""
    index = belief.next()
    error = float(act.error[index]) if np.isfinite(act.error[index]) and act.error[index] > 0 else None
    return belief.observe(index, float(act.raw[index]), standard_error=error, seconds=float(act.seconds[index]))


def calibrations(errors: pd.DataFrame, *, by_task: bool = True) -> dict[str, Any]:
    """Calibrations of all tasks together (``""``) and of each task with enough groups, as their specs.

    Parameters
    ----------
    errors : DataFrame
        One row per forecast: stage, z (standardised error), probed, task, group, log_rows.
    by_task : bool, default=True
    """
    by_rows = _by_rows(errors[~errors["probed"]])
    if by_rows is not None:
        limit, small, large = by_rows
        errors = errors.assign(z=errors["z"] / np.where(errors["log_rows"] < limit, small, large))
    everyone = replace(_calibration(errors), by_rows=by_rows)
    result = {"": everyone.spec}
    for task, part in errors.groupby("task") if by_task else ():
        if part["group"].nunique() >= _MIN_GROUPS and str(task):
            own = _calibration(part)
            result[str(task)] = replace(own, probed=own.probed or everyone.probed, by_rows=by_rows).spec
    return result


def _by_rows(errors: pd.DataFrame) -> tuple[float, float, float] | None:
    """Where small tables end, and how much farther their errors reach than all, and those of the large ones.

    The reach is what 80 % of the errors keep within, every group weighing the same. ``None`` where the rows are not
    known or either part has too few groups.
    """
    limit = round(float(errors.groupby("group")["log_rows"].median().median()), 3)
    small, reach = errors["log_rows"] < limit, _reach(errors)
    parts = (errors[small], errors[~small])
    known = np.isfinite(errors["log_rows"]).all() and reach > 0
    if not known or min(part["group"].nunique() for part in parts) < _MIN_GROUPS:
        return None
    return limit, round(_reach(parts[0]) / reach, 3), round(_reach(parts[1]) / reach, 3)


def _reach(errors: pd.DataFrame) -> float:
    """What 80 % of the absolute errors keep within, every group weighing the same."""
    weights = 1.0 / errors.groupby("group")["z"].transform("size").to_numpy()
    return float(np.quantile(errors["z"].abs().to_numpy(), 0.8, weights=weights, method="inverted_cdf"))


def _calibration(errors: pd.DataFrame) -> Calibration:
    """Quantiles at each stage; those of probed beliefs where there are enough groups."""
    probed = errors[errors["probed"]]
    known = _quantiles(probed) if probed["group"].nunique() >= _MIN_GROUPS else None
    return replace(_quantiles(errors[~errors["probed"]]), probed=known)


def _quantiles(errors: pd.DataFrame) -> Calibration:
    stages, rows = [], []
    for stage, part in errors.groupby("stage"):
        stages.append(int(str(stage)))
        rows.append(conformal_quantiles(part["z"].to_numpy(), part["group"].to_numpy()))
    return Calibration(tuple(stages), np.array(rows))


def _gain_report(cases: Sequence[Case], kind: str) -> dict[str, Any]:
    """Mean gain and standard error at each share, by task."""
    result = {}
    for task in sorted({case.task for case in cases}):
        gains = _group_gains([c for c in cases if c.task == task], kind)
        mean, error = gains.mean(axis=0), gains.std(axis=0) / np.sqrt(max(len(gains) - 1, 1))
        result[task] = {"shares": list(SHARES), "gain": mean.round(4).tolist(), "error": error.round(4).tolist()}
    return result
