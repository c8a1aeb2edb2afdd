import math
import threading
from concurrent.futures import Future
from dataclasses import replace

import numpy as np
import optuna
import pytest
from optuna.distributions import CategoricalDistribution, FloatDistribution
from sklearn.base import BaseEstimator, RegressorMixin

from autometa.data import Dataset
from autometa.evaluation import Evaluator
from autometa.family import Candidate, ModelFamily
from autometa.metrics import METRICS
from autometa.records import Evaluation, Status
from autometa.search_space import SearchSpace
from autometa.tuning import Budget, WarmStart, tune
from autometa.tuning.proposals import FIXED_SECONDS, Proposer, estimated_score, suggest, trial_params
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
    budget = Budget(3.0)
    result = search(dataset, [Keeper()], budget)
    assert 2.0 < budget.elapsed < 10.0  # seconds more for a busy machine
    assert len(result.evaluations) > 1


def test_clearly_worse_candidates_are_pruned_and_the_study_knows(dataset):
    pool = [Candidate("keeper", {"keep": k}) for k in (1.1, 0.95, 0.0, -1.0)]
    result = search(dataset, [Keeper()], Budget(max_trials=4), pool, FixedBelief([4.0, 3.0, 2.0, 1.0]))
    pruned = [entry for entry in result.ledger if entry.status is Status.PRUNED]
    assert {entry.candidate.config["keep"] for entry in pruned} == {0.0, -1.0}
    assert all("far behind the best" in entry.reason for entry in pruned)
    assert all(1 <= len(e.fit_seconds) < 10 for e in result.evaluations if e.status is Status.PRUNED)
    states = [trial.state for trial in result.study.trials]
    assert states.count(optuna.trial.TrialState.PRUNED) == 2
    assert [e.candidate.config["keep"] for e in result.ranked("rmse")] == [0.95, 1.1]


def test_a_part_of_the_folds_is_judged_by_the_same_folds_of_the_best():
    def measured(status, scores):
        return Evaluation("x", Candidate("keeper"), status, {"rmse": scores})

    whole = measured(Status.OK, (-1.0, -2.0, -3.0))
    part = measured(Status.TIMEOUT, (-1.5, -2.5))
    score, error = estimated_score(part, [whole], "rmse")
    assert score == pytest.approx(-2.5)  # half a point behind, not half a point ahead
    assert error > 0
    assert math.isnan(estimated_score(part, [], "rmse")[0])
    assert math.isnan(estimated_score(measured(Status.FAILED, (-1.5,)), [whole], "rmse")[0])
    assert estimated_score(whole, [], "rmse")[0] == pytest.approx(-2.0)


def test_what_would_not_end_in_time_is_left_out(dataset):
    pool = [Candidate("keeper", {"keep": k}) for k in (0.9, 0.5, 0.4)]
    start = WarmStart(pool, FixedBelief([3.0, 2.0, 1.0], seconds=[5.0, 0.2, 0.1]))
    proposer = Proposer(start, [Keeper()], optuna.create_study(), 5, Budget(10.0), "rmse")
    assert proposer.next(3.0).candidate == pool[2]  # the first is cheap
    proposer.n_proposed = 2
    assert proposer.next(3.0).candidate == pool[1]
    assert proposer.next(0.5) is None or proposer.next(0.5).source == "search"
    assert proposer.trial_seconds(pool[0]) == pytest.approx(25.0)


def test_units_of_work_do_not_depend_on_time(dataset):
    pool = [Candidate("keeper", {"keep": k}) for k in (0.9, 0.5, 0.4, 0.3)]
    belief = FixedBelief([4.0, 3.0, 2.0, 1.0], seconds=[0.1] * 4)
    budget = Budget.of(2.1, unit="work")
    result = search(dataset, [Keeper()], budget, pool, belief)
    assert budget.counts_work
    assert not budget.counts_time
    assert budget.elapsed == pytest.approx(len(result.ledger) * (10 * 0.1 + FIXED_SECONDS))
    assert len(result.ledger) == 2
    with pytest.raises(ValueError, match="must be 'seconds' or 'work'"):
        Budget.of(1.0, unit="minutes")


def test_a_better_warm_start_is_taken_over_with_all_that_is_known(dataset):
    pool = [Candidate("keeper", {"keep": k}) for k in (0.9, 0.5)]
    later = Future()
    told = []

    class Listening(FixedBelief):
        def observe(self, index, raw_score, standard_error=None, seconds=None):
            told.append(index)
            return self

    def arrive(ledger):
        if len(ledger) == 1:
            later.set_result(WarmStart(pool, Listening([2.0, 1.0])))
        if len(ledger) == 3:
            raise KeyboardInterrupt

    with Evaluator(dataset, families=[Keeper()]) as evaluator:
        result = tune(
            evaluator, WarmStart([pool[1]]), families=[Keeper()], metric=METRICS["rmse"], budget=Budget(600.0),
            on_trial=arrive, later=later,
        )  # fmt: skip
    assert result.evaluations[0].candidate == pool[1]
    assert told[0] == 1
    assert pool[0] in {e.candidate for e in result.evaluations}


def test_where_times_must_not_matter_the_warm_start_is_waited_for(dataset):
    later = Future()
    threading.Timer(0.3, later.set_result, [WarmStart([Candidate("keeper", {"keep": 0.9})])]).start()
    with Evaluator(dataset, families=[Keeper()]) as evaluator:
        result = tune(
            evaluator, WarmStart([Candidate("keeper", {"keep": 0.1})]), families=[Keeper()], metric=METRICS["rmse"],
            budget=Budget(max_trials=1), later=later,
        )  # fmt: skip
    assert result.evaluations[0].candidate.config["keep"] == 0.9


def test_where_nothing_is_left_the_better_warm_start_is_waited_for(dataset):
    class Only(Keeper):
        search_space = SearchSpace({"keep": CategoricalDistribution((0.0,))})

    later = Future()
    shared_workers(1).submit(pow, 2, 2).result(120)
    pool = [Candidate("keeper", {"keep": 0.0})]
    threading.Timer(1.0, later.set_result, [WarmStart(pool, FixedBelief([1.0]))]).start()
    budget = Budget(600.0)
    with Evaluator(dataset, families=[Only()]) as evaluator:
        result = tune(evaluator, WarmStart(pool), families=[Only()], metric=METRICS["rmse"], budget=budget, later=later)
    assert result.start.belief is not None
    assert budget.elapsed < 300.0
    assert "no untried candidate" in result.ledger.entries[-1].reason


def test_a_search_goes_on_where_an_earlier_one_ended(dataset):
    with Evaluator(dataset, families=[Keeper()]) as evaluator:
        options = {"families": [Keeper()], "metric": METRICS["rmse"]}
        first = tune(evaluator, WarmStart([Keeper().default_candidate()]), budget=Budget(max_trials=3), **options)
        both = tune(evaluator, first.start, budget=Budget(max_trials=8), earlier=first, **options)
    assert both.evaluations[:3] == first.evaluations
    assert len(both.study.trials) == 8
    assert len({e.candidate for e in both.evaluations}) == 8


def test_what_does_not_fit_into_memory_is_skipped_with_a_reason(dataset):
    with Evaluator(dataset, families=[Keeper()], memory_limit_mb=1e-6) as evaluator:
        result = tune(
            evaluator, WarmStart([Keeper().default_candidate()]), families=[Keeper()], metric=METRICS["rmse"],
            budget=Budget(max_trials=2),
        )  # fmt: skip
    assert result.ledger.count(Status.SKIPPED) == 2
    assert all("MB that are free" in entry.reason for entry in result.ledger)


def test_a_perfect_score_ends_the_search(dataset):
    pool = [Candidate("keeper", {"keep": k}) for k in (1.0, *np.linspace(0.99, 1.01, 60))]
    start = WarmStart(pool, FixedBelief(np.arange(61.0)[::-1], np.full(61, 1e-4)))
    with Evaluator(dataset, families=[Keeper()]) as evaluator:
        budget = Budget.of(10.0, unit="work")
        result = tune(evaluator, start, families=[Keeper()], metric=METRICS["r2"], budget=budget)
    assert "cannot be better" in result.ledger.entries[-1].reason


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
