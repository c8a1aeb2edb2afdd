"""Every shipped family passes the common suite; lists of families are resolved; the contributors' example works."""

import re
import types
from pathlib import Path

import pytest

from autometa.data import TaskType
from autometa.exceptions import FamilyUnavailable
from autometa.families import default_families, resolve_families
from autometa.families.bayes import GaussianNaiveBayes
from autometa.families.linear import Linear
from autometa.families.svm import SupportVectorMachine
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
