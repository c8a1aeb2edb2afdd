"""What ties an auxiliary output to a target: estimated from the score tables of both on the same datasets."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from autometa.meta_model.estimation import Floats, Table
from autometa.meta_model.outputs import Relation

MIN_DATASETS = 8
"""Datasets measured in both outputs, without which nothing is said of their relation."""

_BORROWED = 10.0
_RIDGE = 0.1


@dataclass(frozen=True, eq=False)
class Related:
    """An auxiliary output of one target.

    Parameters
    ----------
    portfolio : ndarray of shape (P,)
        Expected normalised score of the target's pool members in this output, averaged over datasets.
    relations : mapping of str to Relation
        By task; ``""`` is for all tasks together.
    members : ndarray of shape (M,)
        Positions in the pool of the candidates that were measured in this output.
    """

    portfolio: Floats
    relations: Mapping[str, Relation]
    members: NDArray[np.intp]


def relate(target: Table, other: Table, tasks: NDArray[np.str_]) -> Related | None:
    """How scores of ``other`` follow from those of ``target``; ``None`` where fewer than 8 datasets have both.

    Parameters
    ----------
    target, other : Table
        Rows and columns are positions among the same datasets and in the same pool.
    tasks : ndarray of str, shape (N,)
        Task of each dataset. A task's relation is drawn to that of all tasks.
    """
    rows = np.intersect1d(target.rows, other.rows)
    columns = np.intersect1d(target.columns, other.columns)
    if len(rows) < MIN_DATASETS or not len(columns):
        return None
    mine, theirs = (np.ix_(_at(t.rows, rows), _at(t.columns, columns)) for t in (target, other))
    f, g = target.residual[mine], other.residual[theirs]  # (n, p)
    both = np.isfinite(f) & np.isfinite(g)
    f, g = _centred(f, both), _centred(g, both)
    scale, offset = target.scale[_at(target.rows, rows)], target.offset[_at(target.rows, rows)]
    other_scale, other_offset = other.scale[_at(other.rows, rows)], other.offset[_at(other.rows, rows)]
    logs = _log(scale), _log(other_scale)
    everyone = _relation(f, g, logs=logs, offsets=(offset, other_offset), borrowed=None)
    relations = {"": everyone}
    for task in np.unique(tasks[rows]):
        at = tasks[rows] == task
        if task and MIN_DATASETS <= at.sum() < len(rows):
            relations[str(task)] = _relation(
                f[at], g[at], logs=(logs[0][at], logs[1][at]), offsets=(offset[at], other_offset[at]),
                borrowed=everyone,
            )  # fmt: skip
    # A pool member that the other output has not met is taken to be as good there as in the target.
    portfolio = everyone.loading * target.portfolio
    portfolio = portfolio + other.portfolio.mean() - portfolio[_at(target.columns, columns)].mean()
    portfolio[_at(target.columns, columns)] = other.portfolio[_at(other.columns, columns)]
    return Related(portfolio, relations, columns)


def _at(positions: NDArray[np.intp], wanted: NDArray[np.intp]) -> NDArray[np.intp]:
    return np.asarray(np.searchsorted(positions, wanted), dtype=np.intp)


def _centred(values: Floats, known: NDArray[np.bool_]) -> Floats:
    """Without the mean of each row, which goes into the unknown offset; zeros where not known."""
    count = np.maximum(np.count_nonzero(known, axis=1), 1)
    mean = np.where(known, values, 0.0).sum(axis=1) / count
    return np.asarray(np.where(known, values - mean[:, None], np.nan))


def _log(scale: Floats) -> Floats:
    positive = scale[scale > 0]
    return np.asarray(np.log(np.maximum(scale, 1e-3 * float(np.median(positive)) if len(positive) else 1e-3)))


def _relation(
    f: Floats,
    g: Floats,
    *,
    logs: tuple[Floats, Floats],
    offsets: tuple[Floats, Floats],
    borrowed: Relation | None,
) -> Relation:
    """Relation on some datasets, drawn to one borrowed from all of them."""
    own, n = np.isfinite(f), len(f)
    x, y = f[own], g[own]
    weight = n / (n + _BORROWED) if borrowed is not None else 1.0
    xx, yy = (max(float(np.square(v).sum()), 1e-9) for v in (x, y))
    xy = float((x * y).sum())
    loading, correlation = xy / xx, xy / math.sqrt(xx * yy)
    if borrowed is not None:
        loading = weight * loading + (1 - weight) * borrowed.loading
        correlation = weight * correlation + (1 - weight) * math.sqrt(borrowed.noise_correlation)
    slope, level, spread = _line(*logs)
    offset_slope, offset, offset_std = _line(*offsets)
    residual = float(np.square(y - loading * x).mean())
    alike = _likeness(f, g - loading * f)
    if borrowed is not None:
        alike = weight * alike + (1 - weight) * borrowed.residual_correlation
    return Relation(
        loading, residual, level, slope, spread, offset, offset_slope, offset_std,
        noise_correlation=float(np.clip(correlation, 0.0, 0.99)) ** 2, residual_correlation=alike,
    )  # fmt: skip


def _likeness(f: Floats, residual: Floats) -> float:
    """Correlation of residuals between candidates as a share of that of their scores: a slope through 0, in [0, 1]."""
    known = np.isfinite(f).astype(float)
    one, other = (_correlation(table, known) for table in (f, residual))
    off = ~np.eye(len(one), dtype=bool) & (known.T @ known >= MIN_DATASETS)
    return float(np.clip((one[off] * other[off]).sum() / max(np.square(one[off]).sum(), 1e-9), 0.0, 1.0))


def _correlation(table: Floats, known: Floats) -> Floats:
    """Correlation of columns (p, p) over the rows that both know."""
    filled = np.where(known > 0, table, 0.0)
    filled = np.where(known > 0, filled - filled.sum(axis=0) / np.maximum(known.sum(axis=0), 1), 0.0)
    square = np.square(filled).T @ known  # (p, p): of a column, over the rows that another one knows
    return np.asarray(filled.T @ filled / np.sqrt(np.maximum(square * square.T, 1e-12)))


def _line(x: Floats, y: Floats) -> tuple[float, float, float]:
    """Slope (drawn to 0), level at ``x = 0`` and standard deviation of the error of ``y`` given ``x``."""
    dx, dy = x - x.mean(), y - y.mean()
    slope = float(dx @ dy / (dx @ dx + _RIDGE * len(x) * max(float(np.median(np.abs(dx))) ** 2, 1e-12)))
    error = dy - slope * dx
    spread = float(np.sqrt(np.square(error).sum() / max(len(x) - 2, 1)))
    return slope, float(y.mean() - slope * x.mean()), spread + 1e-6
