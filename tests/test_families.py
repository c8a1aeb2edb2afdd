"""Every shipped family passes the common suite; lists of families are resolved; the contributors' example works."""

import re
from pathlib import Path

import numpy as np
import pytest
from sklearn.dummy import DummyClassifier
from sklearn.linear_model import Perceptron
from sklearn.naive_bayes import GaussianNB

from autometa.data import TaskType
from autometa.exceptions import FamilyUnavailable
from autometa.families import default_families, resolve_families
from autometa.families.bayes import GaussianNaiveBayes
from autometa.families.linear import Linear
from autometa.families.svm import SupportVectorMachine
from autometa.fitting import EncodedData, fit_model
from autometa.search_space import SearchSpace
from autometa.testing import FamilyTestCase, make_problem

FAMILIES = default_families()
QUICK = {
    "random_forest": {"n_estimators": 50},
    "extra_trees": {"n_estimators": 50},
    "hist_gradient_boosting": {"max_iter": 40},
    "lightgbm": {"n_estimators": 40, "learning_rate": 0.2},
    "xgboost": {"n_estimators": 40, "learning_rate": 0.2},
    "catboost": {"iterations": 40, "learning_rate": 0.2, "depth": 4},
    "mlp": {"n_epochs": 16, "width": 32, "numerical_embedding": "none"},
    "tabm": {"n_epochs": 16, "width": 32, "n_members": 4, "numerical_embedding": "none"},
}


class TestShippedFamilies(FamilyTestCase):
    @pytest.fixture(autouse=True, params=FAMILIES, ids=lambda family: family.name)
    def use_family(self, request):
        self.family = request.param
        self.changes = QUICK.get(self.family.name, {})


GUIDE = Path(__file__).parents[1] / "CONTRIBUTING.md"
EXAMPLE = {"__name__": "contributing_example"}  # the Python of the guide: family, use, test
BLOCKS = re.findall(r"```python\n(.*?)```", GUIDE.read_text("utf-8"), re.DOTALL) if GUIDE.is_file() else []
for block in BLOCKS[::2]:
    exec(block, EXAMPLE)
TestContributing = EXAMPLE.get("TestDiscriminant")


@pytest.mark.skipif(not BLOCKS, reason="CONTRIBUTING.md is not here")
def test_the_contributors_example_runs():
    assert len(BLOCKS) == 3
    exec(BLOCKS[1], EXAMPLE)
    assert EXAMPLE["evaluation"].candidate.family == "discriminant"


def test_names_are_unique_and_in_order():
    names = [family.name for family in FAMILIES]
    assert len(set(names)) == len(names)
    assert names == [family.name for family in default_families()]
    assert set(QUICK) <= set(names)


@pytest.mark.parametrize("family", FAMILIES, ids=lambda family: family.name)
def test_search_spaces_are_constants_of_the_class(family):
    assert isinstance(vars(type(family))["search_space"], SearchSpace)
    assert type(family)().search_space is family.search_space
    assert type(family.version) is int


def test_none_means_all_that_are_available():
    assert [f.name for f in resolve_families(None)] == [f.name for f in FAMILIES if f.is_available()]


def test_names_and_instances_keep_their_order():
    own = SupportVectorMachine()
    assert [f.name for f in resolve_families(["naive_bayes", own, "linear"])] == ["naive_bayes", "svm", "linear"]
    assert resolve_families([own]) == (own,)


class Absent(Linear):
    name = "absent"
    requires = ("no_such_module_anywhere",)
    install_hint = "Install it with: pip install it"


@pytest.mark.parametrize(
    ("families", "error", "match"),
    [
        (["forest"], ValueError, "must be one of linear, knn, .*, or a ModelFamily. Got 'forest' instead"),
        (["linear", Linear()], ValueError, "may be given once. Got 'linear' twice"),
        ([], ValueError, "list of families is empty"),
        ([Absent()], FamilyUnavailable, "'absent' needs no_such_module_anywhere. Install it with: pip install it"),
    ],
)
def test_what_cannot_be_resolved(families, error, match):
    with pytest.raises(error, match=match):
        resolve_families(families)


@pytest.mark.parametrize("name", ["random_forest", "extra_trees", "lightgbm", "hist_gradient_boosting", "knn"])
def test_caps_let_large_leaves_and_neighbourhoods_learn_from_few_rows(name):
    (family,) = resolve_families([name])
    large = {"min_samples_leaf": 64, "min_child_samples": 100, "n_neighbors": 100}
    config = {**family.default_config, **{k: v for k, v in large.items() if k in family.search_space}}
    data = make_problem(family.matrix, TaskType.REGRESSION, n_rows=40)
    assert fit_model(family, config, data=data).predict(data.matrix).std() > 0.1


@pytest.mark.parametrize("kernel", ["rbf", "poly", "sigmoid"])
@pytest.mark.parametrize("task", [TaskType.BINARY, TaskType.REGRESSION])
def test_support_vector_machines_on_many_rows(kernel, task):
    data = make_problem("linear", task, n_rows=5_200)
    model = fit_model(SupportVectorMachine(), {"C": 1.0, "gamma_factor": 0.3, "kernel": kernel}, data=data)
    prediction = model.predict(data.matrix)
    if task is TaskType.BINARY:
        assert (prediction.argmax(axis=1) == data.y).mean() > 0.9
    else:
        assert np.corrcoef(prediction, data.y)[0, 1] > 0.9


def test_support_vector_machines_with_single_rows_of_a_class():
    data = make_problem("linear", TaskType.BINARY, n_rows=30)
    for y in (np.where(np.arange(30) == 3, 1, 0), np.where(np.arange(30) < 28, data.y, 2)):
        alone = EncodedData(data.matrix, y, data.task, int(y.max()) + 1)
        prediction = fit_model(SupportVectorMachine(), SupportVectorMachine.default_config, data=alone)
        np.testing.assert_allclose(prediction.predict(data.matrix).sum(axis=1), 1.0, atol=1e-6)


def broken_family(**changes):
    return type("Broken", (GaussianNaiveBayes,), changes)()


@pytest.mark.parametrize(
    ("family", "check", "match"),
    [
        (broken_family(default_config={"var_smoothing": 5.0}), "test_default_and_presets_are_valid", "must lie in"),
        (broken_family(presets=({"depth": 3},)), "test_default_and_presets_are_valid", r"unknown: \['depth'\]"),
        (broken_family(version="1"), "test_describes_itself", "version must be an int, got '1'"),
        (broken_family(name="My Family"), "test_describes_itself", "name must be lower case"),
        (
            broken_family(pool=lambda self, n, seed=0: Linear().pool(n, seed)),
            "test_pool_is_stable",
            "default must come",
        ),
        (broken_family(is_available=lambda self: True), "test_says_what_is_not_installed", "must not be available"),
    ],
)
def test_the_suite_finds_what_is_wrong(family, check, match):
    case = FamilyTestCase()
    case.family = family
    with pytest.raises((AssertionError, ValueError), match=match):
        getattr(case, check)()


class Constant(DummyClassifier):
    """What a careless family might build."""


class Noisy(GaussianNB):
    def predict_proba(self, X):
        p = np.random.default_rng().random((len(X), len(self.classes_)))
        return p / p.sum(axis=1, keepdims=True)


class Unnormalised(GaussianNB):
    def predict_proba(self, X):
        return 2 * super().predict_proba(X)


@pytest.mark.parametrize(
    ("model", "check", "match"),
    [
        (Constant, "test_learns_a_simple_rule", "well below a constant's"),
        (Noisy, "test_same_seed_same_predictions", "not equal"),
        (Unnormalised, "test_predictions_have_the_right_form", "must sum to 1"),
        (Perceptron, "test_build_gives_a_clonable_estimator", "must have predict_proba"),
    ],
)
def test_the_suite_finds_models_that_do_not_work(model, check, match):
    case = FamilyTestCase()
    case.family = broken_family(build=lambda self, config, shape, **options: model())
    with pytest.raises(AssertionError, match=match):
        getattr(case, check)(TaskType.BINARY)


def test_linear_matrices_have_no_codes():
    with pytest.raises(ValueError, match="n_categorical must be 0 for a 'linear' matrix"):
        make_problem("linear", TaskType.BINARY, n_categorical=1)
