"""The Optuna study of a search: its name, its sampler, a copy of it, and quiet."""

from __future__ import annotations

import contextlib
import hashlib
import warnings
from collections.abc import Iterator

import numpy as np
import optuna
from optuna.storages import BaseStorage

from autometa.evaluation import Evaluator
from autometa.metrics import Metric


def study_name(evaluator: Evaluator, metric: Metric) -> str:
    """The same for the same table, task, metric, families, weights and splits, and for nothing else."""
    dataset = evaluator.dataset
    digest = hashlib.blake2b(digest_size=8)
    families = [f"{family.name}:{family.version}" for family in evaluator.families.values()]
    digest.update(repr([str(dataset.task), metric.name, families, evaluator.seed]).encode())
    for part in (dataset.y, evaluator.fit_weight, dataset.sample_weight, *(p for s in evaluator.splits for p in s)):
        digest.update(b"-" if part is None else np.ascontiguousarray(part).tobytes())
    return f"autometa {metric.name} {dataset.fingerprint[:16]} {digest.hexdigest()}"


def new_study(
    seed: int, n_jobs: int = 1, *, storage: BaseStorage | None = None, name: str | None = None
) -> optuna.Study:
    """The study of one search, with Optuna's TPE; one of this name in the storage is gone on with."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
        sampler = optuna.samplers.TPESampler(
            n_startup_trials=5,
            multivariate=True,
            group=True,
            seed=seed,
            constant_liar=n_jobs > 1 or storage is not None,
        )
    return optuna.create_study(
        direction="maximize", sampler=sampler, storage=storage, study_name=name, load_if_exists=name is not None
    )


def snapshot(study: optuna.Study) -> optuna.Study:
    """A copy in memory: it can be pickled, read where the storage is out of reach, and holds no password."""
    with quiet_optuna():
        copy = optuna.create_study(direction=study.direction, study_name=study.study_name, sampler=study.sampler)
        with contextlib.suppress(optuna.exceptions.OptunaError, OSError):
            copy.add_trials(study.get_trials(deepcopy=False))
    return copy


@contextlib.contextmanager
def quiet_optuna() -> Iterator[None]:
    """Optuna says only what goes wrong."""
    verbosity = optuna.logging.get_verbosity()
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    try:
        yield
    finally:
        optuna.logging.set_verbosity(verbosity)
