"""Probes: cheap candidates on few rows, and what they tell a selection."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
from sklearn.datasets import make_classification

from autometa.data import Dataset
from autometa.families import resolve_families
from autometa.family import Candidate
from autometa.meta_dataset import MetaDataset
from autometa.meta_model import MetaModel
from autometa.meta_training import TrainingOptions, train_meta_model
from autometa.probing import Probe, informed, run_probes
from autometa.selection import select

BAYES = [Candidate("naive_bayes", {"var_smoothing": v}) for v in (1e-9, 1e-3)]
KNN = [Candidate("knn", {"n_neighbors": k, "p": 2, "weights": "uniform"}) for k in (1, 5, 15, 40)]
CHEAP = [BAYES[0], KNN[0]]
FAMILIES = resolve_families(["naive_bayes", "knn"])


@pytest.fixture(scope="module")
def model() -> MetaModel:
    """A world in which one family is ahead of the other by as much on 128 rows as at full size."""
    rng = np.random.default_rng(0)
    rows = []
    for i, (level, lead) in enumerate(zip(rng.uniform(0.6, 0.9, 40), rng.normal(0, 0.05, 40), strict=True)):
        for c, score in [*((c, level + lead) for c in BAYES), *((c, level - lead) for c in KNN)]:
            rows.append((f"d{i}", c.family, dict(c.config), score + 0.01 * rng.normal(), "roc_auc"))
    runs = pd.DataFrame(rows, columns=["dataset", "family", "config", "score", "metric"])
    cheap = [Candidate(family, config) in CHEAP for family, config in zip(runs["family"], runs["config"], strict=True)]
    few = runs[cheap].assign(train_rows=128, score=runs["score"] - 0.03)
    features = pd.DataFrame({"dataset": [f"d{i}" for i in range(40)], "task": "binary", "log_rows": 3.0})
    corpus = MetaDataset.from_frames(runs, features).with_small_rows(few)
    return train_meta_model(corpus, options=TrainingOptions(learners=(), n_rehearsals=0))


def table(n_rows: int = 500, **options: object) -> Dataset:
    X, y = make_classification(n_rows, 5, n_informative=3, random_state=0, class_sep=1.5)
    return Dataset.from_arrays(X, y, **options)


def test_what_was_measured_on_few_rows_is_what_a_model_asks_for(model: MetaModel) -> None:
    assert list(model.probes()) == [128]
    assert {c.family for c in model.probes()[128]} == {"naive_bayes", "knn"}
    assert len(model.probes()[128]) == 2


@pytest.mark.parametrize(("bayes", "knn"), [(0.8, 0.7), (0.7, 0.8)])
def test_who_leads_on_few_rows_is_expected_to_lead_with_all_its_like(
    model: MetaModel, bayes: float, knn: float
) -> None:
    candidates = [*BAYES, *KNN]
    belief = model.belief({"task": "binary", "log_rows": 3.0}, candidates)
    probes = [Probe(c, 128, score, 0.01) for c, score in zip(CHEAP, (bayes, knn), strict=True)]
    later = informed(belief, candidates, probes)
    assert (later.mean[1] > later.mean[5]) == (bayes > knn)  # neither was probed
    assert later.std[1] < belief.std[1]
    assert informed(belief, candidates, ()) is belief


def test_probes_are_scores_on_rows_that_were_not_trained_on(model: MetaModel) -> None:
    found = run_probes(table(), model.probes(), [*BAYES, *KNN], metric="roc_auc", families=FAMILIES)
    assert {p.candidate for p in found} == set(CHEAP)
    assert all(p.train_rows == 128 and 0.7 < p.score < 1 and 0 < p.standard_error < 0.2 for p in found)
    again = run_probes(table(), model.probes(), [*BAYES, *KNN], metric="roc_auc", families=FAMILIES)
    assert again == found


@pytest.mark.parametrize("dataset", [table(300), table(groups=np.arange(500) % 20), table(time=np.arange(500))])
def test_small_tables_and_related_rows_are_not_probed(model: MetaModel, dataset: Dataset) -> None:
    assert run_probes(dataset, model.probes(), CHEAP, metric="roc_auc", families=FAMILIES) == ()


def test_a_selection_is_informed_by_its_probes(model: MetaModel) -> None:
    dataset = table()
    cold = select(dataset, families=FAMILIES, meta_model=model)
    warm = select(dataset, families=FAMILIES, meta_model=model, probe=True)
    assert "2 cheap candidates were fitted on 128 rows" in str(warm)
    assert "were fitted" not in str(cold)
    probes = run_probes(dataset, model.probes(), warm.candidates, metric="roc_auc", families=FAMILIES)
    scores = {p.candidate.family: p.score for p in probes}
    means = dict(zip(warm.candidates, warm.belief.mean, strict=True))
    assert (means[BAYES[1]] > means[KNN[3]]) == (scores["naive_bayes"] > scores["knn"])
    assert warm.belief.tried == ()
    assert len(warm.belief.hints) == 2
