"""Statistics of score tables with missing cells: normalising, filling, covariance, priors of offset and scale."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import nnls

from autometa.meta_model.heads import shrunk_covariance
from autometa.meta_model.regressors import ridge_coef

Floats = NDArray[np.float64]
Splits = Sequence[tuple[NDArray[np.intp], NDArray[np.intp]]]

LOWEST = -1.0
"""Normalised scores below are clipped: how bad a bad configuration is does not matter."""

_MOST_BELOW = 10.0
_MEAN_WEIGHT = 2.0
_GROWTH_WEIGHT = 5.0
_SHRINKAGES = (0.02, 0.05, 0.1, 0.2, 0.35, 0.5, 0.7)


@dataclass(frozen=True, eq=False)
class Table:
    """A score table in normalised units.

    Parameters
    ----------
    rows, columns : int ndarray of shape (N,), (P,)
        Positions among the training datasets and in the pool.
    portfolio : ndarray of shape (P,)
        Mean over datasets.
    residual : ndarray of shape (N, P)
        Normalised score minus portfolio mean, NaN where not measured.
    offset, scale : ndarray of shape (N,)
        Raw score = offset + scale * normalised score.
    shortfall : ndarray of shape (P,)
        Root mean square of how far scores fell below where they are clipped, in normalised units.
    """

    rows: NDArray[np.intp]
    columns: NDArray[np.intp]
    portfolio: Floats
    residual: Floats
    offset: Floats
    scale: Floats
    shortfall: Floats

    @property
    def known(self) -> NDArray[np.bool_]:
        return np.isfinite(self.residual)

    @property
    def winners(self) -> NDArray[np.intp]:
        """Position in the pool of the best candidate of each row, shape (N,)."""
        best = np.where(self.known, self.residual + self.portfolio, -np.inf).argmax(axis=1)
        return np.asarray(self.columns[best])


def normalise(raw: Floats, family: NDArray[np.int64]) -> Table:
    """Offset (median) and scale (best - median) of each row, with holes filled by what the others say of them.

    The median over the few candidates that were measured would depend on which ones these are; so the holes are
    filled with the average normalised score and offset and scale are computed again.
    """
    rows, columns = np.flatnonzero(np.isfinite(raw).any(axis=1)), np.flatnonzero(np.isfinite(raw).any(axis=0))
    raw = raw[np.ix_(rows, columns)]
    family = family[columns]
    known = np.isfinite(raw)
    filled = raw
    for _ in range(1 if known.all() else 6):
        offset = np.nanmedian(filled, axis=1)
        scale = np.nanmax(filled, axis=1) - offset
        floor = 1e-9 * np.maximum(np.abs(offset), 1.0)
        unclipped = (raw - offset[:, None]) / np.maximum(scale, floor)[:, None]
        normal = np.clip(unclipped, LOWEST, None)
        portfolio = column_means(normal, family)
        filled = np.where(known, raw, offset[:, None] + scale[:, None] * portfolio)
    below = np.square(np.clip(LOWEST - unclipped, 0.0, _MOST_BELOW))
    shortfall = np.sqrt(column_means(below, family))
    return Table(rows, columns, portfolio, normal - portfolio, offset, np.maximum(scale, 0.0), shortfall)


def column_means(values: Floats, family: NDArray[np.int64]) -> Floats:
    """Mean of each column over its known cells, drawn to the family's mean where there are few."""
    known = np.isfinite(values)
    total, count = np.where(known, values, 0.0).sum(axis=0), known.sum(axis=0)
    centre = np.empty(len(total))
    for number in np.unique(family):
        at = family == number
        centre[at] = total[at].sum() / max(count[at].sum(), 1)
    full = count == len(values)
    shrunk = (total + _MEAN_WEIGHT * centre) / (count + _MEAN_WEIGHT)
    return np.asarray(np.where(full, total / np.maximum(count, 1), shrunk))


def log_table(seconds: Floats, family: NDArray[np.int64]) -> Table:
    """Log-seconds as a table whose offset is 0 and scale 1."""
    rows = np.flatnonzero(np.isfinite(seconds).any(axis=1))
    columns = np.flatnonzero(np.isfinite(seconds).any(axis=0))
    values = np.log(np.maximum(seconds[np.ix_(rows, columns)], 1e-4))
    portfolio = column_means(values, family[columns])
    none = np.zeros(len(columns))
    return Table(rows, columns, portfolio, values - portfolio, np.zeros(len(rows)), np.ones(len(rows)), none)


def size_effect(residual: Floats, Z: Floats, family: NDArray[np.int64]) -> Floats:
    """Linear effect (K, P) of centred measures of size (N, K) on each candidate, drawn to its family's.

    Parameters
    ----------
    residual : ndarray of shape (N, P)
        About the mean of each column, NaN where not measured.
    """
    known = np.isfinite(residual)
    coef, ridge = np.zeros((Z.shape[1], residual.shape[1])), 1e-3 * len(Z) * np.eye(Z.shape[1])
    for number in np.unique(family):
        at = np.flatnonzero(family == number)
        rows, columns = np.nonzero(known[:, at])
        A, y = Z[rows], residual[:, at][rows, columns]
        common = np.linalg.solve(A.T @ A + ridge, A.T @ y)
        for j in at:
            A, y = Z[known[:, j]], residual[known[:, j], j]
            gram = A.T @ A
            own = np.linalg.solve(gram + 0.5 * len(A) * np.eye(Z.shape[1]) * Z.var() + ridge, A.T @ (y - A @ common))
            coef[:, j] = common + own
    return coef


def growth_exponents(growth: Floats, family: NDArray[np.int64]) -> Floats:
    """Power (P,) of the rows by which seconds grow: the mean of each candidate's family over datasets, drawn to 1.

    Parameters
    ----------
    growth : ndarray of shape (N, P)
        As measured, NaN where it was not.
    """
    result = np.ones(len(family))
    for number in np.unique(family):
        own = growth[:, family == number]
        own = own[np.isfinite(own).any(axis=1)]
        means = np.nanmean(own, axis=1) if len(own) else np.zeros(0)
        result[family == number] = (means.sum() + _GROWTH_WEIGHT) / (len(means) + _GROWTH_WEIGHT)
    return result


def fill(errors: Floats, n_rounds: int = 3) -> Floats:
    """Expected value of missing cells given the known ones of their row, under one shrunk Gaussian."""
    known = np.isfinite(errors)
    filled = np.where(known, errors, 0.0)
    if known.all():
        return filled
    for _ in range(n_rounds):
        S = shrunk_covariance(filled, np.eye(errors.shape[1]), 0.1)
        for i in np.flatnonzero(~known.all(axis=1)):
            k, m = known[i], ~known[i]
            filled[i, m] = S[np.ix_(m, k)] @ np.linalg.solve(S[np.ix_(k, k)], errors[i, k])
    return filled


def stack_weights(predictions: Sequence[Floats], target: Floats) -> Floats:
    """Non-negative weights of cross-fitted predictions for known target cells; a sum below 1 is shrinkage."""
    known = np.isfinite(target)
    if not predictions:
        return np.zeros(0)
    design = np.column_stack([p[known] for p in predictions])
    gram, moment = design.T @ design, design.T @ target[known]
    root = np.linalg.cholesky(gram + 1e-8 * (np.trace(gram) + 1e-12) * np.eye(len(gram)))
    weights, _ = nnls(root.T, np.linalg.solve(root, moment))
    return np.asarray(weights)


def structure_weights(errors: Floats, same: Floats, near: Floats) -> list[float]:
    """Non-negative weights of (all, same family, near configuration, itself) that explain sample correlations."""
    std = np.sqrt(np.maximum(np.square(errors).mean(axis=0), 1e-12))
    correlation = (errors.T @ errors) / len(errors) / np.outer(std, std)
    off = ~np.eye(len(std), dtype=bool)
    if not off.any():
        return [0.0, 0.0, 0.0, 1.0]
    design = np.column_stack([np.ones(off.sum()), same[off], near[off]])
    weights, _ = nnls(design, correlation[off])
    weights = weights * min(1.0, 0.95 / max(weights.sum(), 1e-12))
    return [*(float(w) for w in weights), float(1.0 - weights.sum())]


def choose_shrinkage(errors: Floats, target: Floats, splits: Splits) -> float:
    """The shrinkage under which the residuals of left-out groups are most likely."""
    losses = np.zeros(len(_SHRINKAGES))
    for train, test in splits:
        if len(train) < 2 or len(test) == 0:
            continue
        for i, shrinkage in enumerate(_SHRINKAGES):
            S = shrunk_covariance(errors[train], target, shrinkage) + 1e-2 * np.eye(errors.shape[1])
            root = np.linalg.cholesky(S)
            white = np.linalg.solve(root, errors[test].T)
            losses[i] += 0.5 * np.square(white).sum() + len(test) * np.log(np.diag(root)).sum()
    return float(_SHRINKAGES[int(losses.argmin())])


def fit_scale(table: Table, X: Floats, splits: Splits, *, conditional: bool) -> tuple[Floats, dict[str, Any]]:
    """Ridge coefficients (D + 1, 2) of offset and log-scale, and the joint prior of what they leave open.

    Scores whose offsets span orders of magnitude (errors in the units of a target) are read relative to the first
    score that is observed.
    """
    size = np.abs(table.offset)
    typical = max(float(np.median(size)), 1e-12)
    relative = bool((np.sign(table.offset) == np.sign(np.median(table.offset))).mean() > 0.9 and
                    np.quantile(size, 0.95) > 20 * typical)  # fmt: skip
    unit = np.maximum(size, 1e-12) if relative else np.ones(len(size))
    positive = table.scale[table.scale > 0]
    floor = 1e-3 * np.median(positive) if len(positive) else 1e-3
    log_scale = np.log(np.maximum(table.scale, floor) / unit)
    target = np.column_stack([np.log(unit) if relative else table.offset, log_scale])
    coef, error = _cross_validated_ridge(X, target, splits if conditional else [])
    spread = np.maximum(error.std(axis=0), 1e-3 * np.abs(target).mean(axis=0) + 1e-9)
    slope = 0.0 if relative else float((error[:, 0] * error[:, 1]).mean() / spread[1] ** 2)
    offset_std = 1.0 if relative else float(np.std(error[:, 0] - slope * error[:, 1])) + 1e-9
    return coef, {
        "relative": relative, "sign": float(np.sign(np.median(table.offset))) or 1.0, "offset_std": offset_std,
        "slope": slope, "log_scale_std": float(spread[1]),
    }  # fmt: skip


def _cross_validated_ridge(X: Floats, target: Floats, splits: Splits) -> tuple[Floats, Floats]:
    """Coefficients with the penalty that predicts left-out groups best, and the errors on those groups."""
    constant = np.vstack([np.zeros((X.shape[1], target.shape[1])), target.mean(axis=0)])
    best, best_error = constant, target - target.mean(axis=0)
    best_loss = np.square(best_error).mean(axis=0)
    best, best_error = best.copy(), best_error.copy()
    for penalty in (0.3, 1.0, 3.0, 10.0) if len(splits) else ():
        error = np.empty_like(target)
        for train, test in splits:
            coef = ridge_coef(X[train], target[train], penalty)
            error[test] = target[test] - X[test] @ coef[:-1] - coef[-1]
        loss = np.square(error).mean(axis=0)
        better = loss < best_loss
        best[:, better] = ridge_coef(X, target, penalty)[:, better]
        best_error[:, better], best_loss = error[:, better], np.minimum(loss, best_loss)
    return best, best_error
