"""The model families that come with the library."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from autometa.family import ModelFamily


def default_families() -> tuple[ModelFamily, ...]:
    """One instance of each shipped family, available or not, in a fixed order."""
    from autometa.families.bayes import GaussianNaiveBayes
    from autometa.families.boosting import CatBoost, HistGradientBoosting, LightGBM, XGBoost
    from autometa.families.forests import ExtraTrees, RandomForest
    from autometa.families.linear import Linear
    from autometa.families.neighbors import NearestNeighbors
    from autometa.families.neural import MLP, TabM
    from autometa.families.svm import SupportVectorMachine

    return (
        Linear(), NearestNeighbors(), GaussianNaiveBayes(), SupportVectorMachine(), RandomForest(), ExtraTrees(),
        HistGradientBoosting(), LightGBM(), XGBoost(), CatBoost(), MLP(), TabM(),
    )  # fmt: skip


def resolve_families(families: Iterable[str | ModelFamily] | None) -> tuple[ModelFamily, ...]:
    """Family instances from names and instances; ``None`` means all shipped ones that are available.

    Raises
    ------
    ValueError
        An unknown or doubled name, or an empty list.
    FamilyUnavailable
        A family that was asked for by name cannot be used here.
    """
    shipped = {family.name: family for family in default_families()}
    if families is None:
        return tuple(family for family in shipped.values() if family.is_available())
    chosen: dict[str, ModelFamily] = {}
    for item in families:
        if isinstance(item, str) and item not in shipped:
            raise ValueError(f"The family must be one of {', '.join(shipped)}, or a ModelFamily. Got {item!r} instead.")
        family = shipped[item] if isinstance(item, str) else item
        if family.name in chosen:
            raise ValueError(f"Each family may be given once. Got {family.name!r} twice.")
        family.check_available()
        chosen[family.name] = family
    if not chosen:
        raise ValueError("The list of families is empty. Pass at least one, or None for all.")
    return tuple(chosen.values())
