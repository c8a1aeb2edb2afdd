"""Versions of the installed libraries, for the records of results, models and reports."""

from __future__ import annotations

from collections.abc import Iterable
from importlib import metadata

RESULT_LIBRARIES = (
    "autometa-ml",
    "numpy",
    "pandas",
    "scikit-learn",
    "lightgbm",
    "xgboost-cpu",
    "xgboost",
    "catboost",
    "torch",
)
"""What a measured score may depend on."""


def installed_versions(names: Iterable[str]) -> dict[str, str]:
    """Version by distribution name; those that are not installed are left out.

    Examples
    --------
    >>> list(installed_versions(["numpy", "no-such-library"]))
    ['numpy']
    """
    found = {}
    for name in names:
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return found
