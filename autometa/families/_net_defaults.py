"""The default configurations of the nets. Needs neither torch nor Optuna."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

MLP_DEFAULTS: Mapping[str, Any] = {
    "n_layers": 2, "width": 128, "dropout": 0.1, "activation": "silu", "numerical_embedding": "piecewise_linear",
    "optimizer": "adamw", "learning_rate": 0.002, "schedule": "coslog4", "warmup_fraction": 0.0,
    "floor_fraction": 0.0, "weight_decay": 0.01, "momentum": 0.9, "batch_size": 64, "n_epochs": 64,
    "label_smoothing": 0.0, "init": "random",
}  # fmt: skip
"""Default configuration of the net "mlp"."""

TABM_DEFAULTS: Mapping[str, Any] = {
    "n_layers": 2, "width": 64, "n_members": 8, "dropout": 0.1, "numerical_embedding": "piecewise_linear",
    "optimizer": "adamw", "learning_rate": 0.002, "schedule": "cosine", "warmup_fraction": 0.0,
    "weight_decay": 0.01, "batch_size": 128, "n_epochs": 64, "label_smoothing": 0.0, "init": "random",
}  # fmt: skip
"""Default configuration of the net "tabm"."""

DEFAULTS = {"mlp": MLP_DEFAULTS, "tabm": TABM_DEFAULTS}


def full_config(net: str, changes: Mapping[str, Any] | None) -> dict[str, Any]:
    """The default configuration of a net with some changes.

    Raises
    ------
    ValueError
        The net or the name of a hyperparameter is unknown.
    """
    if net not in DEFAULTS:
        raise ValueError(f"The net must be one of {', '.join(DEFAULTS)}. Got {net!r} instead.")
    unknown = sorted(set(changes or {}) - set(DEFAULTS[net]))
    if unknown:
        raise ValueError(f"The configuration of {net!r} must name some of {sorted(DEFAULTS[net])}. Got {unknown}.")
    return {**DEFAULTS[net], **(changes or {})}
