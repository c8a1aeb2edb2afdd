"""The canonical form of a configuration, by which evaluations on different datasets are matched."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from typing import Any

import numpy as np


def canonical_config(config: Mapping[str, Any]) -> dict[str, Any]:
    """A configuration with sorted keys, plain numbers and no nulls; two that mean the same become equal.

    ``None`` and NaN say the same as an absent key, and 5.0 says the same as 5.
    """
    plain = {str(name): _plain(value) for name, value in config.items()}
    return {name: plain[name] for name in sorted(plain) if plain[name] is not None}


def candidate_key(family: str, config: Mapping[str, Any]) -> str:
    """Canonical text of a candidate, by which evaluations on different datasets are matched."""
    return f"{family} {json.dumps(canonical_config(config))}"


def _plain(value: Any) -> Any:
    if isinstance(value, np.generic):
        value = value.item()
    if isinstance(value, float):
        if math.isnan(value):
            return None
        return int(value) if value.is_integer() and abs(value) < 1e15 else value
    if value is None or isinstance(value, bool | int | str):
        return value
    if isinstance(value, Mapping):
        return json.dumps(canonical_config(value))
    return json.dumps([_plain(v) for v in value]) if isinstance(value, list | tuple) else str(value)
