"""Where a study stands: cells by family and status, reasons, core-hours."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from rich.console import Console
from rich.table import Table

from autometa.experiment.shards import compact_shards
from autometa.experiment.study import FEATURE_SCHEMA, KEYS, ROW_SCHEMA, Plan, Study, load_study, make_plan, read_rows
from autometa.family import ModelFamily
from autometa.records import Status


@dataclass(frozen=True)
class StudyStatus:
    """Where a study stands.

    Parameters
    ----------
    n_cells, n_done : int
    by_status : mapping of status to number of cells
    by_family : DataFrame
        Rows: families; columns: cells, done, one per status, seconds (sum) and median_seconds per cell.
    reasons : mapping of reason to number of cells
        Why cells did not end well.
    core_hours : float
        Sum of the wall seconds of all cells.
    problems : tuple of str
        Chunks that could not be run at all (table not found, say); their cells stay open.
    """

    n_cells: int
    n_done: int
    by_status: Mapping[str, int]
    by_family: pd.DataFrame
    reasons: Mapping[str, int]
    core_hours: float
    problems: tuple[str, ...] = ()


def status(config: str | Path | Study, *, families: Sequence[ModelFamily] | None = None) -> StudyStatus:
    """Where a study stands; runs nothing."""
    study = config if isinstance(config, Study) else load_study(config, families=families)
    plan, rows = make_plan(study), _planned_rows(study)
    bad = rows[rows["status"] != Status.OK]
    by_family = rows.groupby("family")["wall_seconds"].agg(seconds="sum", median_seconds="median")
    counts = pd.crosstab(rows["family"], rows["status"]) if len(rows) else pd.DataFrame()
    cells, done = (_per_family(plan, mask) for mask in (plan.wanted, plan.done & plan.wanted))
    table = pd.DataFrame({"cells": cells, "done": done}).join(counts).join(by_family).fillna(0)
    return StudyStatus(
        n_cells=int(plan.wanted.sum()), n_done=int((plan.done & plan.wanted).sum()),
        by_status=dict(Counter(rows["status"])), by_family=table,
        reasons=dict(Counter(f"{f}: {_short(r)}" for f, r in zip(bad["family"], bad["reason"], strict=True))
                     .most_common(20)),
        core_hours=float(rows["wall_seconds"].sum()) / 3600,
    )  # fmt: skip


def _planned_rows(study: Study) -> pd.DataFrame:
    rows: pd.DataFrame = read_rows(study, [*KEYS, "family", "status", "reason", "wall_seconds"]).to_pandas()
    return rows.loc[rows["fingerprint"].isin(list(study.collection.fingerprints))]


def _per_family(plan: Plan, mask: NDArray[np.bool_]) -> dict[str, int]:
    counts: Counter[str] = Counter()
    for candidate, n in zip(plan.candidates, mask.sum(axis=(0, 2, 3)), strict=True):
        counts[candidate.family] += int(n)
    return dict(counts)


def _short(reason: str | None, most: int = 100) -> str:
    first = (reason or "").strip().splitlines()[:1]
    return first[0][:most] if first else ""


def print_status(state: StudyStatus, console: Console) -> None:
    """The summary table that ends a run."""
    table = Table(title=f"{state.n_done} of {state.n_cells} cells, {state.core_hours:.2f} core-hours")
    for name in ("family", *state.by_family.columns):
        table.add_column(str(name), justify="left" if name == "family" else "right")
    for family, row in state.by_family.iterrows():
        table.add_row(
            str(family), *(f"{value:.2f}" if "seconds" in str(k) else f"{value:.0f}" for k, value in row.items())
        )
    console.print(table)
    for reason, count in state.reasons.items():
        console.print(f"{count:6d}  {reason}", highlight=False, markup=False)
    for problem in state.problems:
        console.print(f"not run: {problem}", highlight=False, markup=False)


def compact(config: str | Path | Study, *, families: Sequence[ModelFamily] | None = None) -> int:
    """Merge the shards of a study into one of rows and one of meta-features; answers the number of rows."""
    study = config if isinstance(config, Study) else load_study(config, families=families)
    compact_shards(study.shards, "features", FEATURE_SCHEMA, keys=("fingerprint",))
    return compact_shards(study.shards, "rows", ROW_SCHEMA, keys=KEYS)
