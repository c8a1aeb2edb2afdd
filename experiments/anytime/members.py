"""What an ensemble is chosen from, and what a model on all rows adds to those of three folds.

    AUTOMETA_DATA=... OMP_NUM_THREADS=1 python experiments/anytime/members.py run FOLDER [--budget 60] [--tables 16]
    python experiments/anytime/members.py report FOLDER

``run`` fits tables of ``dev`` with 500 rows or more, in the seeded order of the collection, from a meta-model that has
not seen ``dev``; three quarters of the rows to fit on. The models of all finished trials are kept, and their
predictions of the other rows; with three folds the two best of each family are fitted again on all rows. One file for
each table; what is there is skipped. ``report`` chooses ensembles from different libraries of the same trials, and
compares each member as the mean of its fold models, as one model on all rows, and as both. Errors: 1 - AUC, log loss,
RMSE.
"""

from __future__ import annotations

import argparse
import os
import sys
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple
from unittest import mock

os.environ.setdefault("OMP_NUM_THREADS", "1")

import joblib
import numpy as np
import pandas as pd
from numpy.typing import NDArray

from autometa import AutoMetaClassifier, AutoMetaRegressor
from autometa.collection import load_collection, load_entry
from autometa.data import Dataset
from autometa.ensembling import choose_weights
from autometa.fitting import fit_model
from autometa.metrics import Metric, resolve_metric
from autometa.predictor import Member
from autometa.records import Evaluation
from autometa.tuning import library

sys.path.insert(0, str(Path(__file__).parent))

from small_tables import split, unseen_model

MIN_ROWS, N_AGAIN = 500, 2
LIBRARIES = {
    "12 best": (12, 0),
    "24 best": (24, 0),
    "3 of each family": (0, 3),
    "12 best, 3 of each": (12, 3),
    "all": (9999, 0),
}


class Trial(NamedTuple):
    """A finished trial and what its models predict."""

    evaluation: Evaluation
    n_folds: int
    bag: NDArray[np.float64]
    """Mean of the fold models on the test rows."""
    again: NDArray[np.float64] | None
    """A model on all training rows on the test rows."""


class Study(NamedTuple):
    """All finished trials of one fit, best first."""

    metric: Metric
    y: NDArray[Any]
    y_test: NDArray[Any]
    trials: list[Trial]

    def error(self, prediction: NDArray[np.float64]) -> float:
        value = self.metric.from_score(self.metric.score(self.y_test, prediction, None))
        return 1.0 - value if self.metric.name == "roc_auc" else value


def measure(dataset: Dataset, model: Any, *, budget: float, seed: int = 0) -> Study:
    """One fit that keeps all models."""
    train, test = split(dataset, seed)
    kind = AutoMetaClassifier if dataset.task.is_classification else AutoMetaRegressor
    with mock.patch.object(library, "N_BEST", 10**6):
        fitted = kind(budget, meta_model=model, random_state=seed).fit(dataset.X.iloc[train], dataset.labels[train])
    evaluator, metric = fitted._state.evaluator, resolve_metric(None, dataset.task)
    trials, seen = [], Counter[str]()
    for evaluation in fitted._state.result.usable(metric.name):
        candidate, models = evaluation.candidate, evaluator.fold_models(evaluation.candidate)
        if not models:
            continue
        family = evaluator.families[candidate.family]
        matrix = evaluator.encoder(family.matrix).transform(dataset.X.iloc[test])

        def predicted(models: Sequence[Any], family: Any = family, matrix: Any = matrix) -> NDArray[np.float64]:
            return Member(family.name, {}, family.matrix, tuple(models)).predict_raw(matrix, dataset.n_classes)

        again = None
        seen[family.name] += 1
        if len(evaluator.splits) == 3 and seen[family.name] <= N_AGAIN:
            data = evaluator.data(family.matrix)
            again = predicted([fit_model(family, candidate.config, data=data, seed=evaluator.seed)])
        trials.append(Trial(evaluation, len(evaluator.splits), predicted(models), again))
    return Study(metric, evaluator.dataset.y, dataset.y[test], trials)


def chosen_from(study: Study, n_best: int, n_of_family: int) -> list[Trial]:
    """The trials that would be in a library of other sizes, best first."""
    trials = {trial.evaluation.candidate: trial for trial in study.trials}
    with mock.patch.multiple(library, N_BEST=n_best, N_OF_FAMILY=n_of_family):
        chosen = library.library((trial.evaluation for trial in study.trials), study.metric.name)
    return [trials[evaluation.candidate] for evaluation in chosen]


def by_library(study: Study) -> dict[str, float]:
    """Test error of the ensemble that is chosen from each library."""
    errors = {}
    for name, (n_best, n_of_family) in LIBRARIES.items():
        pool = chosen_from(study, n_best, n_of_family)
        weights = choose_weights([t.evaluation.predictions for t in pool], study.y, metric=study.metric)
        errors[name] = study.error(np.tensordot(weights, np.stack([trial.bag for trial in pool]), axes=1))
    return errors


def by_member(study: Study) -> list[dict[str, Any]]:
    """Test error of the members that were fitted again, in per cent of that of their bag, less 100."""
    rows = []
    for trial in study.trials:
        if trial.again is not None:
            bag, k = study.error(trial.bag), trial.n_folds
            mixtures = {
                "alone": trial.again,
                "joins": (k * trial.bag + trial.again) / (k + 1),
                "half": (trial.bag + trial.again) / 2,
            }
            errors = {name: 100 * (study.error(mixture) / bag - 1) for name, mixture in mixtures.items() if bag}
            rows.append({"family": trial.evaluation.candidate.family} | errors)
    return rows


def report(studies: dict[str, Study]) -> str:
    """Both comparisons as tables."""
    first = next(iter(LIBRARIES))
    errors = pd.DataFrame({name: by_library(study) for name, study in studies.items()}).T
    relative = 100 * (errors.div(errors[first], axis=0) - 1)
    summary = pd.DataFrame(
        {
            "error, %": relative.mean(),
            "better on": (relative < -1e-7).sum(),
            "worse on": (relative > 1e-7).sum(),
        }
    )
    members = {name: pd.DataFrame(by_member(study)) for name, study in studies.items()}
    members = {name: rows for name, rows in members.items() if len(rows)}
    parts = [f"Ensembles chosen from, less those from the {first}:", summary.round(2).to_string()]
    if members:
        everyone = pd.concat(members.values())
        tables = pd.DataFrame({name: rows.drop(columns="family").mean() for name, rows in members.items()}).T
        parts += ["Members less the mean of their fold models, error in %, by table:", tables.round(2).to_string()]
        parts += ["The same, mean over tables:", tables.mean().round(2).to_string()]
        parts += ["The same, by family:", everyone.groupby("family").mean().round(2).to_string()]
    return "\n\n".join(parts)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=["run", "report"])
    parser.add_argument("folder", type=Path)
    parser.add_argument("--budget", type=float, default=60.0)
    parser.add_argument("--tables", type=int, default=16)
    arguments = parser.parse_args()
    files = {file.stem: file for file in sorted(arguments.folder.glob("*.joblib"))}
    if arguments.what == "run":
        arguments.folder.mkdir(parents=True, exist_ok=True)
        entries = [entry for entry in load_collection("dev") if entry.n_rows >= MIN_ROWS][: arguments.tables]
        for entry in entries:
            if entry.name not in files:
                study = measure(load_entry(entry), unseen_model("belief"), budget=arguments.budget)
                joblib.dump(tuple(study), arguments.folder / f"{entry.name}.joblib", compress=3)
                print(entry.name, len(study.trials), flush=True)
    else:
        print(report({name: Study(*joblib.load(file)) for name, file in files.items()}))


if __name__ == "__main__":
    main()
