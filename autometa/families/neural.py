"""The neural families: one MLP, and a parameter-efficient ensemble of MLPs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, ClassVar

from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution

from autometa.exceptions import FamilyUnavailable
from autometa.families._net_defaults import MLP_DEFAULTS, TABM_DEFAULTS
from autometa.family import Candidate, MatrixKind, MatrixShape, ModelFamily
from autometa.search_space import SearchSpace

if TYPE_CHECKING:
    from sklearn.base import BaseEstimator

_TRAINING = {
    "learning_rate": FloatDistribution(3e-4, 1e-1, log=True),
    "warmup_fraction": FloatDistribution(0.0, 0.3),
    "weight_decay": FloatDistribution(1e-5, 1e-1, log=True),
    "batch_size": CategoricalDistribution([32, 64, 128, 256]),
    "n_epochs": IntDistribution(16, 128, log=True),
    "label_smoothing": CategoricalDistribution([0.0, 0.1]),
    "init": CategoricalDistribution(["random"]),
}


class _Neural(ModelFamily):
    """What both families share.

    Parameters
    ----------
    birth_fold : int or None, default None
        For measurements on tables that the learned birth was trained on: take the one trained without the tables of
        this fold (see the card in ``pretrained/learned_birth``).
    """

    matrix: ClassVar[MatrixKind] = "net"

    def __init__(self, birth_fold: int | None = None) -> None:
        self.birth_fold = birth_fold

    def pool(self, n_candidates: int, seed: int = 0) -> list[Candidate]:
        """As in every family, but configurations of the Sobol sequence are born at random, whatever births there are:
        so the pool stays the one that the corpus measured."""
        n_named = 1 + len(self.presets)
        found = super().pool(n_candidates, seed)
        rest = [Candidate(self.name, {**candidate.config, "init": "random"}) for candidate in found[n_named:]]
        return list(dict.fromkeys([*found[:n_named], *rest]))

    def build(
        self, config: Mapping[str, Any], shape: MatrixShape, *, random_state: int = 0, n_threads: int = 1
    ) -> BaseEstimator:
        # PyTorch takes about two seconds to import: only those who build a net pay for it.
        from autometa.families._net_estimators import NetClassifier, NetRegressor
        from autometa.nets.weight_generator import MAX_CLASSES

        self.search_space.validate(config)
        if config["init"] == "generated" and shape.n_classes > MAX_CLASSES:
            # Elsewhere the race would end with another birth, and a corpus would hold its score under this name.
            message = f"Weights can be generated for at most {MAX_CLASSES} classes. Got {shape.n_classes}."
            raise FamilyUnavailable(message)
        estimator = NetClassifier if shape.task.is_classification else NetRegressor
        return estimator(
            net=self.name, config=dict(config), n_categorical=shape.n_categorical, random_state=random_state,
            n_threads=n_threads, birth_fold=self.birth_fold,
        )  # fmt: skip


class MLP(_Neural):
    """A multilayer perceptron with learned embeddings of categories and, by choice, of numbers.

    What the hyperparameters mean:

    - ``learning_rate``: the peak of the schedule, the same number for every optimiser. Good values lie around 0.003
      for "adam", "adamw" and "rmsprop" and around 0.05 for "sgd"; the gradient's norm is clipped at 1.
    - ``schedule``, ``warmup_fraction``, ``floor_fraction``: see :class:`autometa.gradient.schedules.Schedule`.
    - ``optimizer``, ``momentum``, ``weight_decay``: see :class:`autometa.gradient.optimizers.OptimizerConfig`.
    - ``batch_size``: at most an eighth of the training rows (but 16), whatever is asked.
    - ``n_epochs``: the length of the schedule; early stopping may end it before, and keeps the best weights.
    - ``label_smoothing``: no effect on regression.
    - ``init``: where the weights come from. "random": drawn. "learned": meta-trained over many tables for one net
      (64-64, silu, on 20 principal components of the standardised columns) and moved by 5 full-batch steps at its own
      rates, which below 60 rows are all; ``n_layers``, ``width``, ``activation`` and ``numerical_embedding`` have no
      effect then. "generated": a hypernetwork reads the training rows and writes the weights of a 64-64 net with a
      linear skip; it is raced against the other births on the hold-out, and the winner goes on
      (:func:`autometa.families._net_births.fit_births`); for more than 32 classes there is none. Rows measured before
      these were there are all "random" and mean what they meant.
    """

    name = "mlp"
    requires = ("torch", "rtdl_num_embeddings", "tabm")
    install_hint = "Install them with: pip install torch rtdl_num_embeddings tabm"
    search_space = SearchSpace(
        {
            "n_layers": IntDistribution(1, 4),
            "width": IntDistribution(32, 256, log=True),
            "dropout": FloatDistribution(0.0, 0.5),
            "activation": CategoricalDistribution(["relu", "silu", "selu"]),
            "numerical_embedding": CategoricalDistribution(["none", "piecewise_linear", "periodic"]),
            "optimizer": CategoricalDistribution(["sgd", "adam", "adamw", "rmsprop"]),
            "schedule": CategoricalDistribution(["constant", "cosine", "one_cycle", "coslog4"]),
            "floor_fraction": FloatDistribution(0.0, 0.2),
            "momentum": FloatDistribution(0.8, 0.98),
            **_TRAINING,
            "init": CategoricalDistribution(["random", "learned", "generated"]),
        }
    )
    default_config: ClassVar[Mapping[str, Any]] = MLP_DEFAULTS
    presets: ClassVar[Sequence[Mapping[str, Any]]] = (
        {"optimizer": "sgd", "learning_rate": 0.05, "schedule": "cosine"},
        {"optimizer": "adam", "learning_rate": 0.001, "schedule": "constant", "weight_decay": 1e-4},
        {"learning_rate": 0.005, "schedule": "one_cycle", "numerical_embedding": "none", "activation": "relu"},
        {"optimizer": "rmsprop", "learning_rate": 0.001, "schedule": "cosine", "weight_decay": 1e-4},
        {"learning_rate": 0.001, "schedule": "cosine", "dropout": 0.4, "weight_decay": 0.1, "width": 64},
        {"optimizer": "sgd", "learning_rate": 0.1, "schedule": "one_cycle", "numerical_embedding": "none"},
        {"optimizer": "adam", "learning_rate": 0.01, "batch_size": 256, "weight_decay": 1e-4, "n_epochs": 32},
        {"learning_rate": 0.001, "schedule": "constant", "n_layers": 1, "width": 256, "numerical_embedding": "none"},
        {"schedule": "cosine", "numerical_embedding": "periodic", "warmup_fraction": 0.1},
        {"learning_rate": 0.005, "activation": "selu", "n_layers": 3, "width": 256, "batch_size": 256,
         "label_smoothing": 0.1, "n_epochs": 128},
        {"optimizer": "rmsprop", "learning_rate": 0.003, "schedule": "one_cycle", "numerical_embedding": "none",
         "dropout": 0.25, "weight_decay": 1e-3},
    )  # fmt: skip


class TabM(_Neural):
    """Several MLPs that share most of their weights, averaged (Gorishniy et al., TabM, 2025).

    ``n_members`` nets are trained side by side by AdamW; the other hyperparameters mean what they mean for
    :class:`MLP`.
    """

    name = "tabm"
    requires = ("torch", "rtdl_num_embeddings", "tabm")
    install_hint = "Install them with: pip install torch rtdl_num_embeddings tabm"
    search_space = SearchSpace(
        {
            "n_layers": IntDistribution(1, 3),
            "width": IntDistribution(32, 128, log=True),
            "n_members": CategoricalDistribution([4, 8, 16]),
            "dropout": FloatDistribution(0.0, 0.5),
            "numerical_embedding": CategoricalDistribution(["none", "piecewise_linear", "periodic"]),
            "optimizer": CategoricalDistribution(["adam", "adamw", "rmsprop"]),
            "schedule": CategoricalDistribution(["constant", "cosine", "one_cycle", "coslog4"]),
            **_TRAINING,
        }
    )
    default_config: ClassVar[Mapping[str, Any]] = TABM_DEFAULTS
    presets: ClassVar[Sequence[Mapping[str, Any]]] = (
        {"numerical_embedding": "none", "n_members": 16},
        {"numerical_embedding": "periodic", "learning_rate": 0.005, "schedule": "one_cycle"},
        {"n_layers": 1, "dropout": 0.3, "weight_decay": 0.1, "schedule": "coslog4"},
    )
