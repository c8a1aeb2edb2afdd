"""What a model family must pass, shipped for those who write one. Needs pytest.

The idea of a test case that travels with the library is Optuna's (``optuna.testing``). In a test module::

    from autometa.testing import FamilyTestCase

    class TestMyFamily(FamilyTestCase):
        family = MyFamily()
"""

from __future__ import annotations

import copy
import json
from collections.abc import Mapping
from typing import Any, ClassVar, get_args

import cloudpickle
import numpy as np
import pytest
from numpy.typing import NDArray
from sklearn.base import clone
from sklearn.utils.validation import has_fit_parameter

from autometa.data import TaskType
from autometa.exceptions import FamilyUnavailable
from autometa.family import Candidate, MatrixKind, MatrixShape, ModelFamily
from autometa.fitting import EncodedData, FittedModel, fit_model
from autometa.search_space import SearchSpace

_N_CLASSES = {TaskType.BINARY: 2, TaskType.MULTICLASS: 3, TaskType.REGRESSION: 0}
_THREAD_PARAMETERS = ("n_jobs", "n_threads", "thread_count", "nthread", "num_threads")
_ABSENT_MODULE = "a_module_that_nobody_has_installed"

every_task = pytest.mark.parametrize("task", list(TaskType), ids=str)


def make_problem(
    matrix: MatrixKind,
    task: TaskType,
    *,
    n_rows: int = 150,
    n_categorical: int = 0,
    missing: bool = False,
    seed: int = 0,
) -> EncodedData:
    """A small matrix in a family's layout, with a target that depends on its numbers.

    Parameters
    ----------
    matrix : {"tree", "linear", "net"}
        "tree" has numbers on far scales; "linear" and "net" have standardised numbers and a missing indicator.
    task : TaskType
        Classes are equal shares of the rows, cut where a weighted sum of the first two numbers is cut.
    n_rows : int
    n_categorical : int
        Leading columns of category codes; 0 for "linear", which has none.
    missing : bool
        What a layout has for missing and unknown values: NaN and -1 for "tree", 0 for "net", nothing for "linear".
    seed : int
    """
    if matrix == "linear" and n_categorical:
        raise ValueError(
            f"n_categorical must be 0 for a 'linear' matrix, which is one-hot. Got {n_categorical} instead."
        )
    rng = np.random.default_rng(seed)
    numbers = rng.normal(size=(n_rows, 4))
    signal = numbers[:, 0] + 0.5 * numbers[:, 1]
    codes = rng.integers(0, 4, size=(n_rows, n_categorical)).astype(float)
    gone = rng.random(n_rows) < 0.15
    if matrix == "tree":
        numbers = numbers * [1.0, 1000.0, 0.01, 1.0] + [0.0, 5000.0, 0.0, -3.0]
        if missing:
            numbers[gone, 3], codes[gone] = np.nan, np.nan
            codes[rng.random(n_rows) < 0.1] = -1
    else:
        codes += 1
        codes[gone & missing] = 0
        numbers = np.column_stack([numbers, gone])
    columns = np.ascontiguousarray(np.hstack([codes, numbers]), dtype=np.float32)
    n_classes = _N_CLASSES[task]
    y = signal.argsort().argsort() * n_classes // n_rows if n_classes else 10.0 + 3.0 * signal
    return EncodedData(columns, y, task, n_classes, n_categorical)


class FamilyTestCase:
    """The common suite of every model family. Subclass it in a test module under a name that starts with ``Test``.

    Attributes
    ----------
    family : ModelFamily
        The family under test: a class attribute, or set on the instance by an autouse fixture.
    changes : mapping
        Changes to every fitted configuration that make fits quick, ``{"n_estimators": 20}`` say; empty by default.

    Examples
    --------
    >>> from autometa.families.bayes import GaussianNaiveBayes
    >>> class TestNaiveBayes(FamilyTestCase):
    ...     family = GaussianNaiveBayes()
    >>> TestNaiveBayes().test_pool_is_stable()
    """

    family: ModelFamily
    changes: Mapping[str, Any] = {}
    _lacking: ClassVar[str] = "The family {!r} cannot be used here: {} must be importable."

    def test_describes_itself(self) -> None:
        family = self.family
        assert isinstance(family, ModelFamily), f"family must be an instance of ModelFamily, got {family!r}"
        assert family.name == family.name.lower().replace(" ", "_"), f"name must be lower case, got {family.name!r}"
        assert type(family.version) is int, f"version must be an int, got {family.version!r}"
        assert family.version >= 1, f"version must be at least 1, got {family.version}"
        assert family.matrix in get_args(MatrixKind), f"matrix must be one of {get_args(MatrixKind)}"
        assert family.tasks, "tasks must name at least one TaskType"
        assert set(family.tasks) <= set(TaskType), f"tasks must be TaskTypes, got {family.tasks}"
        assert isinstance(family.requires, tuple), f"requires must be a tuple of modules, got {family.requires!r}"

    def test_search_space_is_a_constant(self) -> None:
        space = self.family.search_space
        assert isinstance(space, SearchSpace), f"search_space must be a SearchSpace, got {type(space).__name__}"
        assert type(self.family).search_space is space, "search_space must belong to the class, not to the instance"
        before, config = repr(space), dict(self.family.default_config)
        if self.family.is_available():
            for n_rows in (20, 10_000):
                self.family.build(config, MatrixShape(self._any_task(), n_rows, _N_CLASSES[self._any_task()]))
        assert repr(self.family.search_space) == before, "build must not change search_space"
        assert config == self.family.default_config, "build must not change the configuration it is given"

    def test_default_and_presets_are_valid(self) -> None:
        family = self.family
        family.search_space.validate(family.default_config)
        for preset in family.presets:
            family.search_space.validate({**family.default_config, **preset})
        assert json.loads(json.dumps(dict(family.default_config))) == family.default_config, "must survive JSON"

    def test_encodes_and_decodes(self) -> None:
        space, rng = self.family.search_space, np.random.default_rng(0)
        for config in [dict(self.family.default_config), *(space.sample(rng) for _ in range(30))]:
            space.validate(config)
            unit = space.encode(config)
            assert unit.shape == (space.n_dims,)
            assert ((unit >= 0) & (unit <= 1)).all(), f"the unit vector of {config} must lie in [0, 1], got {unit}"
            again = space.decode(unit)
            for name, value in config.items():
                close = pytest.approx(value, rel=1e-9) if isinstance(value, float) else value
                assert again[name] == close, f"decode(encode(...)) must keep {name}={value!r}, got {again[name]!r}"

    def test_pool_is_stable(self) -> None:
        long, short = self.family.pool(12, seed=1), self.family.pool(5, seed=1)
        assert long[: len(short)] == short, "a longer pool must begin with the shorter one"
        assert long == self.family.pool(12, seed=1), "the same seed must give the same pool"
        assert long[0] == Candidate(self.family.name, dict(self.family.default_config)), "the default must come first"
        assert len(set(long)) == len(long), "a pool must not repeat a candidate"
        assert {candidate.family for candidate in long} == {self.family.name}
        for candidate in long:
            self.family.search_space.validate(candidate.config)

    @every_task
    def test_build_gives_a_clonable_estimator(self, task: TaskType) -> None:
        estimator, other = self._build(task), self._build(task)
        assert repr(clone(estimator)) == repr(estimator), "clone must keep every parameter"
        assert repr(estimator) == repr(other), "the same configuration must build the same estimator"
        assert estimator is not other, "build must make a new estimator each time"
        if task.is_classification:
            assert hasattr(estimator, "predict_proba"), "classifiers must have predict_proba"

    @every_task
    def test_predictions_have_the_right_form(self, task: TaskType) -> None:
        data = self._problem(task)
        before = data.matrix.copy()
        model = self._fit(data)
        estimator, n_classes = model.estimator, data.n_classes
        assert estimator.predict(data.matrix).shape == (len(data.y),), "predict must give one value per row"
        if n_classes:
            p = estimator.predict_proba(data.matrix)
            assert p.shape == (len(data.y), n_classes), f"predict_proba must have a column per class, got {p.shape}"
            assert (p >= 0).all(), "probabilities must not be negative"
            np.testing.assert_allclose(p.sum(axis=1), 1.0, atol=1e-5, err_msg="probabilities must sum to 1")
            assert list(estimator.classes_) == list(range(n_classes)), "classes_ must be the sorted codes"
            assert set(estimator.predict(data.matrix)) <= set(range(n_classes)), "predict must give class codes"
        np.testing.assert_allclose(
            model.predict(data.matrix[:1]), model.predict(data.matrix)[:1], rtol=1e-4, atol=1e-6,
            err_msg="a row must be predicted alike alone and among others",
        )  # fmt: skip
        np.testing.assert_array_equal(data.matrix, before, err_msg="fit and predict must not change the matrix")

    @every_task
    def test_same_seed_same_predictions(self, task: TaskType) -> None:
        data = self._problem(task)
        first, second = self._fit(data, seed=3), self._fit(data, seed=3)
        np.testing.assert_array_equal(first.predict(data.matrix), second.predict(data.matrix))

    @every_task
    def test_learns_a_simple_rule(self, task: TaskType) -> None:
        new = self._problem(task, seed=1)
        gain = _gain(self._fit(self._problem(task)), new.matrix, new.y)
        assert gain > 0.2, f"on new rows the error must be well below a constant's, got a gain of {gain:.2f}"

    @every_task
    def test_works_on_twenty_rows(self, task: TaskType) -> None:
        data = self._problem(task, n_rows=20)
        assert np.isfinite(self._fit(data).predict(data.matrix)).all()

    @every_task
    def test_reads_categories_and_what_is_missing(self, task: TaskType) -> None:
        n_categorical = 0 if self.family.matrix == "linear" else 2
        data = self._problem(task, n_categorical=n_categorical, missing=True)
        new = data.matrix.copy()
        new[::7, :n_categorical] = 6  # a category that no training row of the fold has
        prediction = self._fit(data).predict(new)
        assert np.isfinite(prediction).all(), "categories that are new, unknown or missing must be predicted"

    @every_task
    def test_sample_weights_count(self, task: TaskType) -> None:
        data = self._problem(task)
        if not has_fit_parameter(self._build(task), "sample_weight"):
            pytest.skip("fit has no sample_weight")
        turned = data.n_classes - 1 - data.y if data.n_classes else 20.0 - data.y
        both, y = np.vstack([data.matrix, data.matrix]), np.concatenate([data.y, turned])
        favour = np.repeat([1.0, 0.01], len(data.y))
        gains = []
        for weight in (favour, favour[::-1].copy()):
            weighted = EncodedData(both, y, task, data.n_classes, data.n_categorical, weight)
            gains.append(_gain(self._fit(weighted), data.matrix, data.y))
        assert gains[0] > gains[1], f"rows with more weight must count for more, got gains of {gains}"

    def test_configurations_of_the_pool_fit(self) -> None:
        data = self._problem(self._any_task(), n_rows=60)
        for candidate in self.family.pool(10)[-4:]:
            assert np.isfinite(self._fit(data, config=candidate.config).predict(data.matrix)).all()

    @every_task
    def test_travels_to_another_process(self, task: TaskType) -> None:
        data = self._problem(task, n_rows=60)
        family, model = cloudpickle.loads(cloudpickle.dumps((self.family, self._fit(data))))
        assert family.name == self.family.name
        assert family.search_space.keys() == self.family.search_space.keys()
        np.testing.assert_array_equal(model.predict(data.matrix), self._fit(data).predict(data.matrix))

    @every_task
    def test_uses_no_more_threads_than_asked(self, task: TaskType) -> None:
        for name, value in self._build(task).get_params(deep=True).items():
            if name.rpartition("__")[2] in _THREAD_PARAMETERS:
                assert value in (None, 1), f"{name} must be 1 when one thread is asked for, got {value}"

    def test_says_what_is_not_installed(self) -> None:
        family = copy.copy(self.family)
        family.requires = (_ABSENT_MODULE,)  # type: ignore[misc]
        assert not family.is_available(), "a family whose module is not installed must not be available"
        with pytest.raises(FamilyUnavailable, match=_ABSENT_MODULE):
            family.check_available()

    def _any_task(self) -> TaskType:
        return min(self.family.tasks)

    def _problem(self, task: TaskType, **options: Any) -> EncodedData:
        """Data for one task; the test is skipped where the family cannot take it."""
        self._skip_unless_usable(task)
        return make_problem(self.family.matrix, task, **options)

    def _skip_unless_usable(self, task: TaskType) -> None:
        if task not in self.family.tasks:
            pytest.skip(f"{self.family.name} has no {task} task")
        if not self.family.is_available():
            pytest.skip(self._lacking.format(self.family.name, ", ".join(self.family.requires)))

    def _config(self, config: Mapping[str, Any] | None = None) -> dict[str, Any]:
        return {**(self.family.default_config if config is None else config), **self.changes}

    def _build(self, task: TaskType) -> Any:
        self._skip_unless_usable(task)
        return self.family.build(self._config(), MatrixShape(task, 150, _N_CLASSES[task]), random_state=3, n_threads=1)

    def _fit(self, data: EncodedData, *, config: Mapping[str, Any] | None = None, seed: int = 0) -> FittedModel:
        return fit_model(self.family, self._config(config), data=data, seed=seed)


def _gain(model: FittedModel, matrix: NDArray[np.float32], y: NDArray[Any]) -> float:
    """Share of a constant's error that a model takes away: 1 for a perfect model, 0 for a constant."""
    prediction = model.predict(matrix)
    if model.classes is None:
        return float(1.0 - np.mean((y - prediction) ** 2) / np.var(y))
    return float(1.0 - np.mean(prediction.argmax(axis=1) != y) / (1.0 - np.bincount(y).max() / len(y)))
