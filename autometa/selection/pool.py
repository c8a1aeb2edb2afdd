"""The candidates that a selection ranks, and how each is built for a table."""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING, Any

from sklearn.base import BaseEstimator
from sklearn.pipeline import Pipeline

from autometa.data import ColumnKind, Dataset
from autometa.families._estimators import LabelCodes
from autometa.family import Candidate, MatrixShape, ModelFamily
from autometa.preprocessing import TableEncoder, n_leading_categories

if TYPE_CHECKING:
    from autometa.meta_model import MetaModel


def candidate_pool(dataset: Dataset, families: Sequence[ModelFamily], model: MetaModel | None) -> list[Candidate]:
    """All candidates of these families that can be ranked, each with a builder for the raw table."""
    builder = _builder(dataset, families)
    return [replace(c, builder=builder) for family in families for c in _family_pool(family, model)]


def _family_pool(family: ModelFamily, model: MetaModel | None) -> list[Candidate]:
    """The configurations that the meta-model has seen of a family, or its default."""
    space = family.search_space
    default = Candidate(family.name, space.canonical(family.default_config))
    if model is None:
        return [default]
    configs = [config for name, config in model.pool.candidates if name == family.name]
    valid = [config for config in configs if _is_valid(family, config)]
    seen = [Candidate(family.name, space.canonical(config)) for config in valid]
    return list(dict.fromkeys([default, *seen])) if seen else [default]


def _is_valid(family: ModelFamily, config: Mapping[str, Any]) -> bool:
    try:
        family.search_space.validate(config)
    except ValueError:
        return False
    return True


def _builder(dataset: Dataset, families: Sequence[ModelFamily]) -> Any:
    by_name = {family.name: family for family in families}
    return partial(_build, by_name, dict(dataset.kinds), dataset.task, dataset.n_rows, dataset.n_classes)


def _build(
    families: Mapping[str, ModelFamily],
    kinds: Mapping[Hashable, ColumnKind],
    task: Any,
    n_rows: int,
    n_classes: int,
    candidate: Candidate,
) -> BaseEstimator:
    """Unfitted Pipeline of encoder and model for one candidate."""
    family = families[candidate.family]
    n_categorical = n_leading_categories(kinds, family.matrix)
    model = family.build(candidate.config, MatrixShape(task, n_rows, n_classes, n_categorical))
    model = LabelCodes(model) if task.is_classification else model
    return Pipeline([("encoder", TableEncoder(family.matrix, kinds=kinds)), ("model", model)])
