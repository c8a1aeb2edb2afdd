"""What a neural configuration means for a table of a given size: hold-out and training plan."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from autometa.gradient.fit import TrainingPlan
from autometa.gradient.optimizers import OptimizerConfig
from autometa.gradient.schedules import Schedule

_MIN_HOLD_OUT_ROWS = 60
_MAX_HOLD_OUT_ROWS = 10_000
_MIN_STEPS_AN_EPOCH = 8
_MIN_BATCH = 16
_MAX_STEPS = 30_000
_MIN_EPOCHS = 4
_MIN_PATIENCE = 12


def hold_out(y: NDArray[Any], *, stratify: bool, seed: int) -> tuple[NDArray[np.intp], NDArray[np.intp]]:
    """Positions to train on and positions to stop early by, both sorted.

    Below 60 rows nothing is held out; up to 2,000 rows 20 %, above that 15 %, at most 10,000 rows. With ``stratify``
    each class gives its share and keeps at least one row for training.
    """
    n = len(y)
    if n < _MIN_HOLD_OUT_ROWS:
        return np.arange(n), np.arange(0)
    fraction = min(0.20 if n <= 2_000 else 0.15, _MAX_HOLD_OUT_ROWS / n)
    rng = np.random.default_rng(seed)
    order = rng.permutation(n)
    if not stratify:
        held = order[: round(fraction * n)]
    else:
        # Sorted by class, every (1 / fraction)-th row is held out: the classes share the rounding.
        by_class = order[np.argsort(y[order], kind="stable")]
        picks = np.floor(np.arange(n) * fraction + rng.random()).astype(int)
        held = by_class[np.flatnonzero(np.diff(picks, prepend=picks[0]))]
        _, first = np.unique(y[by_class], return_index=True)
        held = np.setdiff1d(held, by_class[first])
    return np.setdiff1d(np.arange(n), held), np.sort(held)


def make_plan(config: Mapping[str, Any], n_rows: int, *, early_stopping: bool) -> TrainingPlan:
    """The training plan of a configuration for ``n_rows`` training rows.

    Three caps depend on the rows: a batch holds at most an eighth of them (but 16), so that an epoch has about 8 steps
    or more; all epochs together have at most 30,000 steps; patience is a third of the epochs, at least 12.
    Hyperparameters that a net does not have take neutral values.
    """
    batch_size = min(int(config["batch_size"]), max(_MIN_BATCH, n_rows // _MIN_STEPS_AN_EPOCH))
    n_steps = max(1, round(n_rows / batch_size))
    n_epochs = min(int(config["n_epochs"]), max(_MIN_EPOCHS, _MAX_STEPS // n_steps))
    schedule = Schedule(
        config["schedule"], config["learning_rate"], config["warmup_fraction"], config.get("floor_fraction", 0.0)
    )
    optimizer = OptimizerConfig(config["optimizer"], config["weight_decay"], config.get("momentum", 0.9))
    patience = max(_MIN_PATIENCE, n_epochs // 3) if early_stopping else None
    return TrainingPlan(schedule, optimizer, n_epochs, batch_size, patience)
