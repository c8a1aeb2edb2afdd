"""autometa: AutoML that starts where earlier datasets ended.

Names are imported when they are first used, so ``import autometa`` is cheap.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from autometa.adaptation import adapt as adapt
    from autometa.data import Dataset as Dataset
    from autometa.data import TaskType as TaskType
    from autometa.estimator import AutoMetaClassifier as AutoMetaClassifier
    from autometa.estimator import AutoMetaRegressor as AutoMetaRegressor
    from autometa.evaluation import evaluate as evaluate
    from autometa.family import Candidate as Candidate
    from autometa.family import ModelFamily as ModelFamily
    from autometa.meta_dataset import MetaDataset as MetaDataset
    from autometa.meta_features import extract as extract
    from autometa.meta_initializer import MetaInitializer as MetaInitializer
    from autometa.meta_model import MetaModel as MetaModel
    from autometa.meta_training import train_meta_model as train_meta_model
    from autometa.persistence import load as load
    from autometa.persistence import save as save
    from autometa.selection import Selection as Selection
    from autometa.selection import select as select
    from autometa.tuning import MetaSampler as MetaSampler

__version__ = "0.1.0"

_HOMES = {
    "AutoMetaClassifier": "estimator",
    "AutoMetaRegressor": "estimator",
    "Candidate": "family",
    "Dataset": "data",
    "MetaDataset": "meta_dataset",
    "MetaInitializer": "meta_initializer",
    "MetaModel": "meta_model",
    "MetaSampler": "tuning",
    "ModelFamily": "family",
    "Selection": "selection",
    "TaskType": "data",
    "adapt": "adaptation",
    "evaluate": "evaluation",
    "extract": "meta_features",
    "load": "persistence",
    "save": "persistence",
    "select": "selection",
    "train_meta_model": "meta_training",
}
__all__ = sorted(_HOMES)


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'autometa' has no attribute {name!r}")
    value = getattr(import_module(f"autometa.{_HOMES[name]}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__])
