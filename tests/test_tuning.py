import math
from dataclasses import replace

import numpy as np
import optuna
import pytest
from optuna.distributions import FloatDistribution
from sklearn.base import BaseEstimator, RegressorMixin

from autometa.data import Dataset
from autometa.evaluation import Evaluator
from autometa.family import Candidate, ModelFamily
from autometa.metrics import METRICS
from autometa.records import Status
from autometa.search_space import SearchSpace
from autometa.tuning import Budget, WarmStart, tune
from autometa.tuning.proposals import suggest, trial_params
from autometa.workers import shared_workers


class Shrunk(RegressorMixin, BaseEstimator):
    """Predicts ``keep`` times the first column; ``keep`` = 1 is perfect."""

    def __init__(self, keep=1.0, fail=False):
        self.keep = keep
        self.fail = fail

    def fit(self, X, y):
        if self.fail:
            raise RuntimeError("no luck")
        self.n_features_in_ = X.shape[1]
        return self

    def predict(self, X):
        return self.keep * X[:, 0]


class Keeper(ModelFamily):
    name = "keeper"
    matrix = "tree"
    search_space = SearchSpace({"keep": FloatDistribution(-1.0, 2.0)})
    default_config = {"keep": 0.0}  # noqa: RUF012

    def build(self, config, shape, *, random_state=0, n_threads=1):
        return Shrunk(config["keep"])


class Failing(Keeper):
    name = "failing"

    def build(self, config, shape, *, random_state=0, n_threads=1):
        return Shrunk(config["keep"], fail=True)


class FixedBelief:
    """A belief over a known order, with the interface that the tuner uses."""

    def __init__(self, mean, seconds=None, told=()):
        self.mean = np.asarray(mean, dtype=float)
        self.seconds = np.full(len(self.mean), 0.01) if seconds is None else np.asarray(seconds, dtype=float)
        self.seconds_std = np.full(len(self.mean), 0.1)
        self.told = told

    def __len__(self):
        return len(self.mean)

    def expected_improvement(self):
        return self.mean - self.mean.min() + 1e-3

    def observe(self, index, raw_score, standard_error=None, seconds=None):
        return FixedBelief(self.mean, self.seconds, (*self.told, (index, raw_score)))

    def observe_failure(self, index):
        return FixedBelief(self.mean, self.seconds, (*self.told, (index, None)))


@pytest.fixture
def dataset():
    x = np.random.default_rng(0).normal(size=(120, 2))
    return Dataset.from_arrays(x, x[:, 0])


def search(dataset, families, budget, candidates=None, belief=None, **options):
    start = WarmStart(candidates or [f.default_candidate() for f in families], belief)
    with Evaluator(dataset, families=families) as evaluator:
        return tune(evaluator, start, families=families, metric=METRICS["rmse"], budget=budget, **options)


@pytest.mark.parametrize("seconds", [0, -1, math.nan])
def test_budget_must_be_positive(seconds):
    with pytest.raises(ValueError, match="must be > 0 seconds"):
        Budget(seconds)


def test_number_of_trials_must_be_positive():
    with pytest.raises(ValueError, match="must be >= 1"):
        Budget(max_trials=0)


def test_budget_counts_down():
    now = [10.0]
    budget = Budget(5.0, clock=lambda: now[0])
    assert budget.remaining == 5.0
    now[0] = 13.0
    assert budget.elapsed == 3.0
    assert budget.allows_trial(1000)
    now[0] = 99.0
    assert budget.remaining == 0.0
    assert not budget.allows_trial(0)


def test_budget_in_trials():
    budget = Budget(max_trials=2)
    assert budget.counts_trials
    assert [budget.allows_trial(n) for n in range(3)] == [True, True, False]


def test_trial_names_a_candidate_and_back():
    family = Keeper()
    candidate = Candidate("keeper", {"keep": 0.25})
    study = optuna.create_study()
    study.enqueue_trial(trial_params(candidate))
    assert suggest(study.ask(), [family]) == candidate


def test_search_finds_the_optimum(dataset):
    result = search(dataset, [Keeper()], Budget(max_trials=40), random_state=0)
    best = result.ranked("rmse")[0]
    assert abs(best.candidate.config["keep"] - 1.0) < 0.15
    assert len(result.ledger) == len(result.study.trials) == 40
    assert result.study.best_value == pytest.approx(best.score("rmse"))


def test_same_seed_same_trials(dataset):
    runs = [search(dataset, [Keeper()], Budget(max_trials=15), random_state=3) for _ in range(2)]
    assert [e.candidate for e in runs[0].evaluations] == [e.candidate for e in runs[1].evaluations]


def test_failures_are_lines_of_the_ledger_and_never_the_end(dataset):
    result = search(dataset, [Failing(), Keeper()], Budget(max_trials=12))
    assert result.ledger.count(Status.FAILED) >= 1
    assert result.ledger.count(Status.OK) >= 1
    assert any("no luck" in entry.reason for entry in result.ledger)
    states = {t.state for t in result.study.trials}
    assert optuna.trial.TrialState.FAIL in states


def test_belief_is_followed_and_told(dataset):
    pool = [Candidate("keeper", {"keep": k}) for k in (0.9, 0.5, 0.0, -0.5)]
    told = []

    class Listening(FixedBelief):
        def observe(self, index, raw_score, standard_error=None, seconds=None):
            told.append(index)
            return self

    result = search(dataset, [Keeper()], Budget(max_trials=4), pool, Listening([4.0, 3.0, 2.0, 1.0]))
    tried = [e.candidate.config["keep"] for e in result.evaluations]
    assert tried[0] == 0.9
    assert tried[1] == 0.0  # the default races the belief from the second trial on
    assert set(tried) == {0.9, 0.5, 0.0, -0.5}
    assert sorted(told) == [0, 1, 2, 3]


def test_first_trial_is_cheap_when_time_is_the_limit(dataset):
    pool = [Candidate("keeper", {"keep": k}) for k in (0.9, 0.5)]
    belief = FixedBelief([2.0, 1.0], seconds=[50.0, 0.001])
    result = search(dataset, [Keeper()], Budget(3.0), pool, belief)
    assert result.evaluations[0].candidate == pool[1]
    assert pool[0] not in {e.candidate for e in result.evaluations}  # it would never fit into the budget


def test_time_budget_is_kept_and_used(dataset):
    shared_workers(1).submit(pow, 2, 2).result(120)  # warm from here on
    budget = Budget(2.0)
    result = search(dataset, [Keeper()], budget)
    assert budget.elapsed < 3.0
    assert len(result.evaluations) > 5


def test_interrupt_keeps_what_was_found(dataset):
    def interrupt(ledger):
        if len(ledger) == 3:
            raise KeyboardInterrupt

    result = search(dataset, [Keeper()], Budget(max_trials=50), on_trial=interrupt)
    assert len(result.ranked("rmse")) == 3
    assert "Interrupted" in result.ledger.entries[-1].reason


def test_a_score_that_is_not_defined_is_a_failure(dataset):
    with Evaluator(dataset, families=[Keeper()]) as evaluator:
        nan = replace(METRICS["rmse"], name="not_measured")
        result = tune(
            evaluator, WarmStart([Keeper().default_candidate()]), families=[Keeper()], metric=nan,
            budget=Budget(max_trials=2),
        )  # fmt: skip
    assert result.ranked("not_measured") == []
    assert all("not defined" in entry.reason for entry in result.ledger)
