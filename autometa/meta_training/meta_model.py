"""Meta-training: from a meta-dataset to a meta-model.

Nothing here looks at the datasets that the meta-model will be tested on.
"""

from __future__ import annotations

from dataclasses import asdict
from importlib.metadata import version
from typing import Any

import numpy as np

from autometa.meta_dataset import MetaDataset
from autometa.meta_model import MetaModel
from autometa.meta_training.parts import TrainingOptions as TrainingOptions
from autometa.meta_training.parts import learn, with_relations
from autometa.meta_training.rehearsal import rehearse


def train_meta_model(meta_dataset: MetaDataset, seed: int = 0, *, options: TrainingOptions | None = None) -> MetaModel:
    """Learn from earlier datasets what to expect on a new one.

    All metrics and tasks are learned together: one set of learners, one head per metric. Rehearsals on groups that
    were held out then set how far forecasts are trusted and calibrate the intervals.

    Parameters
    ----------
    meta_dataset : MetaDataset
        At least 4 datasets.
    seed : int
        The same seed gives the same model.
    options : TrainingOptions, optional

    Raises
    ------
    ValueError
        Too few datasets.
    """
    if len(meta_dataset.datasets) < 4:
        raise ValueError(f"Meta-training needs at least 4 datasets. Got {len(meta_dataset.datasets)}.")
    options = options or TrainingOptions()
    parts = with_relations(learn(meta_dataset, seed, options), meta_dataset)
    caution = rehearse(meta_dataset, seed, options)
    return parts.assemble(caution, _card(meta_dataset, options, seed) | {"rehearsal": dict(caution.report)})


def _card(meta_dataset: MetaDataset, options: TrainingOptions, seed: int) -> dict[str, Any]:
    packages = ("autometa-ml", "numpy", "scikit-learn", "torch")
    return {
        "trained_on": list(meta_dataset.datasets),
        "groups": {str(d): str(g) for d, g in meta_dataset.groups.items()},
        "units": meta_dataset.units,
        "machine": _machine(meta_dataset),
        "n_evaluations": len(meta_dataset.evaluations),
        "seed": seed,
        "options": asdict(options),
        "versions": {name: version(name) for name in packages},
    }


def _machine(meta_dataset: MetaDataset) -> dict[str, float] | None:
    """Mean and variance of the logarithm of the machine's seconds for a fixed piece of work, where it was measured."""
    if "machine_seconds" not in meta_dataset.meta_features.columns:
        return None
    seconds = meta_dataset.meta_features["machine_seconds"].to_numpy(dtype=float)
    logs = np.log(seconds[np.isfinite(seconds) & (seconds > 0)])
    if not len(logs):
        return None
    # The scatter on one machine is what other processes did to it.
    return {"log_seconds": float(np.median(logs)), "variance": float(max(logs.var(), 0.04))}
