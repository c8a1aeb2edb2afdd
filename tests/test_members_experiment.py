"""What ensembles are chosen from: the study's fit, its libraries and its report."""

import pytest
from sklearn.datasets import load_diabetes

from autometa.data import Dataset
from autometa.tuning import library


@pytest.fixture(scope="module")
def members(load_experiment):
    return load_experiment("anytime/members.py")


@pytest.fixture(scope="module")
def study(members):
    X, y = load_diabetes(return_X_y=True, as_frame=True)
    frame, target = X.loc[X.index.repeat(5)].reset_index(drop=True), y.repeat(5).to_numpy()
    return members.measure(Dataset.from_arrays(frame, target), "none", budget=4.0)


def test_all_models_are_kept_and_good_ones_fitted_again(study):
    assert library.N_BEST == 12
    scores = [trial.evaluation.score("rmse") for trial in study.trials]
    assert scores == sorted(scores, reverse=True)
    for trial in study.trials:
        assert trial.n_folds == 3
        assert trial.bag.shape == study.y_test.shape
        assert trial.evaluation.predictions.shape == study.y.shape
    assert study.trials[0].again is not None


def test_libraries_are_the_best_and_some_of_each_family(members, study):
    candidates = [trial.evaluation.candidate for trial in study.trials]

    def chosen(*sizes):
        return [trial.evaluation.candidate for trial in members.chosen_from(study, *sizes)]

    assert chosen(2, 0) == candidates[:2]
    assert len(chosen(0, 1)) == len({candidate.family for candidate in candidates})
    assert chosen(9999, 0) == candidates


def test_the_report_compares_both(members, study):
    errors = members.by_library(study)
    assert set(errors) == set(members.LIBRARIES)
    assert all(error > 0 for error in errors.values())
    text = members.report({"diabetes": study})
    assert "3 of each family" in text
    assert "by family" in text
