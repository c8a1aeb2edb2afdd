"""The learned birth that comes with the library: meta-training over tables of any columns, cross-fitted by group.

    python -m autometa.meta_training.learned_birth -o autometa/pretrained/learned_birth

reads the tables of the collection ``meta_train`` from AUTOMETA_DATA, those of ``dev`` left out, and takes about five
minutes on one core.
"""

from __future__ import annotations

import argparse
import json
import warnings
from collections.abc import Sequence
from dataclasses import asdict, replace
from importlib.metadata import version
from pathlib import Path

import pandas as pd
import torch
from joblib import Parallel, delayed

from autometa.collection import load_collection, load_entry
from autometa.gradient.devices import torch_threads
from autometa.gradient.initialization import initialize
from autometa.gradient.learned import Initialisation
from autometa.gradient.losses import classification_loss, regression_loss
from autometa.meta_dataset import group_folds
from autometa.meta_training.initialisation import MetaTrainingPlan, meta_train_initialisation
from autometa.meta_training.projected_tasks import EncodedTable, TableTasks, encode_table
from autometa.nets.mlp import MLP, TableInput
from autometa.nets.projection import HIDDEN_SIZES, N_COMPONENTS

KINDS = ("classification", "regression")
PLAN = MetaTrainingPlan(
    n_meta_steps=300, n_inner_steps=5, inner_rate=0.1, meta_rate=3e-3, tasks_per_step=12, n_support=(16, 160),
    n_query=64,
)  # fmt: skip

_MIN_ROWS = 60
_MAX_FEATURES = 100
_N_FOLDS = 3


def train_learned_births(
    tables: Sequence[EncodedTable],
    output: str | Path,
    *,
    plan: MetaTrainingPlan = PLAN,
    method: str = "meta_sgd",
    n_folds: int = _N_FOLDS,
    seed: int = 0,
    n_jobs: int = 1,
) -> None:
    """Train on all tables, and once for each fold on the tables of the other folds; write the weights and a card.

    Parameters
    ----------
    tables : sequence of EncodedTable
        For classification and regression; those below 60 rows are left out.
    output : path
        Folder; gets ``<kind>.safetensors``, ``<kind>_fold<k>.safetensors`` and ``card.json``, which says which fold
        each group of related datasets was held out of.
    plan : MetaTrainingPlan
    method : str
    n_folds : int
        0: none.
    seed : int
    n_jobs : int
        Trainings at a time.
    """
    output = Path(output)
    output.mkdir(parents=True, exist_ok=True)
    usable = [table for table in tables if len(table) >= _MIN_ROWS]
    groups = sorted({table.group for table in usable})
    folds = dict.fromkeys(groups, 0)
    if n_folds:
        folds = dict(zip(groups, group_folds(pd.Series(groups), n_folds, seed=seed), strict=True))
    jobs = []
    for kind in KINDS:
        some = [table for table in usable if (table.n_classes > 0) == (kind == "classification")]
        for fold in [None, *range(n_folds)]:
            seen = tuple(table for table in some if fold is None or folds[table.group] != fold)
            jobs.append(delayed(_train_one)(output / birth_file(kind, fold), seen, plan, method, seed))
    losses = dict(Parallel(n_jobs=n_jobs)(jobs))
    card = {
        "format": "autometa-learned-birth", "method": method, "plan": asdict(plan), "seed": seed,
        "n_folds": n_folds, "held_out_of_fold": folds if n_folds else {},
        "trained_on": sorted(table.name for table in usable), "losses": losses,
        "versions": {name: version(name) for name in ("autometa-ml", "torch")},
    }  # fmt: skip
    (output / "card.json").write_text(json.dumps(card, indent=1) + "\n", encoding="utf-8")


def birth_file(kind: str, fold: int | None = None) -> str:
    """Name of the file of one training."""
    return f"{kind}.safetensors" if fold is None else f"{kind}_fold{fold}.safetensors"


def _train_one(
    file: Path, tables: tuple[EncodedTable, ...], plan: MetaTrainingPlan, method: str, seed: int
) -> tuple[str, list[float]]:
    """One training, written to its file; name of the file and the losses on the way."""
    with torch_threads(1):
        birth = _train(tables, plan, method, seed)
    birth.save(file)
    return file.name, [round(value, 4) for value in birth.records["losses"]]


def _train(tables: tuple[EncodedTable, ...], plan: MetaTrainingPlan, method: str, seed: int) -> Initialisation:
    draw = TableTasks(
        tables, n_hidden=HIDDEN_SIZES[-1], n_tasks=plan.tasks_per_step, n_support=plan.n_support, n_query=plan.n_query
    )  # fmt: skip
    net = initialize(lambda: MLP(TableInput(N_COMPONENTS), draw.n_outputs, hidden_sizes=HIDDEN_SIZES), seed=seed)
    loss = classification_loss() if tables[0].n_classes else regression_loss()
    birth = meta_train_initialisation(draw, method, net=net, loss=loss, plan=plan, seed=seed)
    # The output layer begins at zero for every task; its classes share their rates, for their numbers mean nothing.
    weights = {name: value for name, value in birth.weights.items() if not name.startswith("output.")}
    rates = {name: _shared(name, rate) for name, rate in birth.rates.items()}
    return replace(birth, weights=weights, rates=rates)


def _shared(name: str, rate: torch.Tensor) -> torch.Tensor:
    return rate.mean(0, keepdim=True) if name.startswith("output.") and rate.ndim else rate


def read_tables(collection: str, *, without: str | None = None) -> list[EncodedTable]:
    """Encoded tables of a collection from AUTOMETA_DATA, at most 1,000 rows each.

    Left out: tables without signal, those of more than 100 features, and all groups of the collection ``without``.
    """
    held = load_collection(without).groups if without else frozenset()
    entries = [
        entry
        for entry in load_collection(collection)
        if not entry.flag and entry.n_features <= _MAX_FEATURES and entry.group not in held
    ]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return [encode_table(load_entry(entry), group=entry.group) for entry in entries]


def main(arguments: Sequence[str] | None = None) -> None:
    """Command line; see the module."""
    parser = argparse.ArgumentParser(description="Train the learned birth of the nets.")
    parser.add_argument("-o", "--output", required=True, help="folder to write to")
    parser.add_argument("--folds", type=int, default=_N_FOLDS)
    parser.add_argument("--steps", type=int, default=PLAN.n_meta_steps)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--jobs", type=int, default=1)
    chosen = parser.parse_args(arguments)
    tables = read_tables("meta_train", without="dev")
    plan = replace(PLAN, n_meta_steps=chosen.steps)
    train_learned_births(tables, chosen.output, plan=plan, n_folds=chosen.folds, seed=chosen.seed, n_jobs=chosen.jobs)


if __name__ == "__main__":
    main()
