import itertools
import math
import threading
import time
from concurrent.futures import Future
from dataclasses import replace

import numpy as np
import optuna
import pytest
from optuna.distributions import CategoricalDistribution, FloatDistribution
from sklearn.base import BaseEstimator, RegressorMixin

from autometa.data import Dataset
from autometa.evaluation import Evaluator
from autometa.families import default_families
from autometa.family import Candidate, ModelFamily
from autometa.meta_model.belief import Belief, Covariance, Prior, ScalePrior, SecondsPrior
from autometa.metrics import METRICS
from autometa.records import Evaluation, Status
from autometa.search_space import SearchSpace
from autometa.tuning import Budget, WarmStart, tune
from autometa.tuning.allowance import Allowance
from autometa.tuning.costs import FIXED_SECONDS
from autometa.tuning.proposals import Proposer, estimated_score, suggest, trial_params
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


class Sleepy(Shrunk):
    def fit(self, X, y):
        time.sleep(0.03)
        return super().fit(X, y)


class Slow(Keeper):
    """So slow that a search cannot have seen enough to end early."""

    name = "slow"

    def build(self, config, shape, *, random_state=0, n_threads=1):
        return Sleepy(config["keep"])


class Failing(Keeper):
    name = "failing"

    def build(self, config, shape, *, random_state=0, n_threads=1):
        return Shrunk(config["keep"], fail=True)


def belief_of(mean, seconds=None, kind=Belief):
    """A belief that is sure of an order, and of seconds."""
    mean = np.asarray(mean, dtype=float)
    times = np.full(len(mean), 0.01) if seconds is None else np.asarray(seconds, dtype=float)
    small = Covariance.from_matrix(1e-3 * np.eye(len(mean)))
    scale = ScalePrior(offset=-1.0, offset_std=1.0, slope=0.0, log_scale=-1.0, log_scale_std=0.1)
    return kind(Prior(mean, small, scale), SecondsPrior(np.log(times), small, speed_std=0.05))


def listener(told):
    """A kind of belief that notes the positions of all that it is told."""

    class Listening(Belief):
        def observe(self, index, *args, **options):
            told.append(index)
            return super().observe(index, *args, **options)

    return Listening


@pytest.fixture
def dataset():
    x = np.random.default_rng(0).normal(size=(120, 2))
    return Dataset.from_arrays(x, x[:, 0])


def search(dataset, families, budget, candidates=None, belief=None, **options):
    start = WarmStart(candidates or [f.default_candidate() for f in families], belief)
    with Evaluator(dataset, families=families) as evaluator:
        return tune(evaluator, start, families=families, metric=METRICS["rmse"], budget=budget, **options)


def warm_up(dataset):
    """Afterwards a worker has imported all that these trials need."""
    search(dataset, [Keeper()], Budget(120.0, max_trials=1))


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
    belief = belief_of([4.0, 3.0, 2.0, 1.0], kind=listener(told))
    result = search(dataset, [Keeper()], Budget(max_trials=4), pool, belief)
    tried = [e.candidate.config["keep"] for e in result.evaluations]
    assert tried[0] == 0.9
    assert tried[1] == 0.0  # the default races the belief from the second trial on
    assert set(tried) == {0.9, 0.5, 0.0, -0.5}
    assert told[0] == 0
    assert {0, 1, 2} <= set(told)


def test_first_trial_is_cheap_when_time_is_the_limit(dataset):
    pool = [Candidate("keeper", {"keep": k}) for k in (0.9, 0.5)]
    belief = belief_of([2.0, 1.0], seconds=[50.0, 0.001])
    result = search(dataset, [Keeper()], Budget(3.0), pool, belief)
    assert result.evaluations[0].candidate == pool[1]
    assert pool[0] not in {e.candidate for e in result.evaluations}  # it would never fit into the budget


def test_time_budget_is_kept_and_used(dataset):
    warm_up(dataset)
    budget = Budget(3.0)
    result = search(dataset, [Slow()], budget)
    assert 2.0 < budget.elapsed < 10.0  # seconds more for a busy machine
    assert len(result.evaluations) > 1


def test_the_next_trial_waits_for_a_worker_and_its_time_counts_from_when_it_begins(dataset):
    warm_up(dataset)
    result = search(dataset, [Keeper()], Budget(2.5))
    trials = [entry for entry in result.ledger if entry.candidate is not None]
    assert len(trials) > 3
    assert len({entry.candidate for entry in trials}) == len(trials)
    for one, following in itertools.pairwise(trials[:-1]):  # the last may be stopped together with the one before
        assert following.started >= one.started + one.seconds - 0.01


def test_a_table_that_takes_too_long_to_encode_is_not_encoded_at_the_last_moment(dataset):
    class Linear(Keeper):
        name = "other"
        matrix = "linear"

    warm_up(dataset)
    families = [Keeper(), Linear()]
    with Evaluator(dataset, families=families) as evaluator:
        evaluator.data("tree")
        evaluator._encoding_seconds[:] = [60.0]
        start = WarmStart([f.default_candidate() for f in families])
        result = tune(evaluator, start, families=families, metric=METRICS["rmse"], budget=Budget(2.0))
    skipped = [entry for entry in result.ledger if entry.status is Status.SKIPPED and entry.candidate is not None]
    assert {entry.candidate.family for entry in skipped} == {"other"}
    assert "need about 90.0 s to be encoded" in skipped[0].reason
    assert {e.candidate.family for e in result.evaluations} == {"keeper"}


def test_clearly_worse_candidates_are_pruned_and_the_study_knows(dataset):
    pool = [Candidate("keeper", {"keep": k}) for k in (1.1, 0.95, 0.0, -1.0)]
    result = search(dataset, [Keeper()], Budget(max_trials=4), pool, belief_of([4.0, 3.0, 2.0, 1.0]))
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


def test_what_would_not_end_in_time_is_left_out():
    pool = [Candidate("keeper", {"keep": k}) for k in (0.9, 0.5, 0.4)]
    start = WarmStart(pool, belief_of([3.0, 2.0, 1.0], seconds=[5.0, 0.2, 0.1]))
    proposer = Proposer(start, [Keeper()], optuna.create_study(), 5, Budget(10.0), "rmse")
    asked = []
    for _ in range(3):
        asked.append(proposer.next(3.0))
        proposer.tell(Evaluation("x", asked[-1].candidate, Status.OK, {"rmse": (-1.0, -1.1)}))
    default = Keeper().default_candidate()
    assert [proposal.candidate for proposal in asked] == [pool[2], default, pool[1]]  # the first is cheap
    assert [proposal.source for proposal in asked] == ["selection", "default", "selection"]
    assert proposer.trial_seconds(pool[0]) == pytest.approx(25.0, rel=0.01)
    assert proposer.next(0.01) is None
    further = proposer.next(3.0)
    assert further.source in {"local", "random"}
    assert proposer.trial_seconds(further.candidate) < 3.0


def test_fits_that_were_cut_short_count_as_long_as_they_would_have_taken():
    pool = [Candidate("keeper", {"keep": k}) for k in (0.9, 0.5)]
    start = WarmStart(pool, belief_of([2.0, 1.0], seconds=[1.0, 1.0]))
    seconds = {}
    for share in (1.0, 0.1):
        proposer = Proposer(start, [Keeper()], optuna.create_study(), 5, Budget(10.0), "rmse")
        cut = Evaluation("x", pool[0], Status.OK, {"rmse": (-1.0, -1.1)}, (1.0, 1.0), done_share=share)
        proposer.tell(cut)
        seconds[share] = proposer.trial_seconds(pool[0])
    assert seconds[1.0] == pytest.approx(5.0, rel=0.1)
    assert seconds[0.1] > 1.2 * seconds[1.0]  # the belief is sure of its own


def test_the_prediction_of_held_out_rows_counts_as_time_of_a_fit():
    pool = [Candidate("keeper", {"keep": k}) for k in (0.9, 0.5)]
    start = WarmStart(pool, belief_of([2.0, 1.0], seconds=[0.1, 0.1]))
    seconds = []
    for predict_seconds in ((0.0, 0.0), (0.9, 0.9)):
        proposer = Proposer(start, [Keeper()], optuna.create_study(), 5, Budget(10.0), "rmse")
        proposer.tell(Evaluation("x", pool[0], Status.OK, {"rmse": (-1.0, -1.1)}, (0.1, 0.1), predict_seconds))
        seconds.append(proposer.trial_seconds(pool[0]))
    assert seconds[1] > 1.2 * seconds[0]  # the belief is sure of its own


def test_a_trial_that_was_stopped_before_a_fit_was_finished_says_how_long_one_takes_at_least():
    pool = [Candidate("keeper", {"keep": k}) for k in (0.9, 0.5)]
    start = WarmStart(pool, belief_of([2.0, 1.0], seconds=[0.1, 0.1]))
    seconds = {}
    for took in (0.05, 30.0):
        proposer = Proposer(start, [Keeper()], optuna.create_study(), 5, Budget(60.0), "rmse")
        before = proposer.trial_seconds(pool[0])
        proposer.tell(Evaluation("x", pool[0], Status.TIMEOUT), took)
        seconds[took] = proposer.trial_seconds(pool[0])
        proposer.adopt(start)
        assert proposer.trial_seconds(pool[0]) == pytest.approx(seconds[took])
    assert seconds[0.05] == before
    assert seconds[30.0] > 1.2 * before  # the belief is sure of its own


def test_what_cannot_be_cut_short_is_stopped_when_it_takes_much_longer_than_expected(dataset):
    lightgbm = next(family for family in default_families() if family.name == "lightgbm")
    keeper = Candidate("keeper", {"keep": 0.5})
    known = Evaluation("x", keeper, Status.OK, {"rmse": (-1.0,)}, (0.1,))
    with Evaluator(dataset, families=[Keeper(), lightgbm], metrics=["rmse"]) as evaluator:
        allowance = Allowance(evaluator, METRICS["rmse"], Budget(10.0), 1, 0, [])
        assert allowance.patience(keeper, 0.5, 8.0) == 8.0  # there is no model yet
        allowance.evaluations.append(known)
        assert allowance.patience(keeper, 0.5, 8.0) == 1.5
        assert allowance.patience(keeper, 0.01, 8.0) == 1.0
        assert allowance.patience(keeper, 5.0, 8.0) == 8.0
        assert allowance.patience(keeper, math.nan, 8.0) == 8.0
        assert allowance.patience(keeper, 0.5, None) is None
        assert allowance.patience(lightgbm.default_candidate(), 0.5, 8.0) == 8.0
        allowance.budget = Budget(10.0, max_trials=3)
        assert allowance.patience(keeper, 0.5, 8.0) == 8.0


@pytest.mark.parametrize(("fit_seconds", "reserved"), [(2.0, 1.5 * 2.0 * 1.25), (6.0, 0.0)])
def test_time_for_a_new_fit_is_kept_unless_it_would_take_most_of_the_budget(dataset, fit_seconds, reserved):
    with Evaluator(dataset, families=[Keeper()], metrics=["rmse"]) as evaluator:
        rows = round(0.8 * dataset.n_rows)
        known = Evaluation(
            "x", Candidate("keeper", {"keep": 0.5}), Status.OK, {"rmse": (-1.0,)}, (fit_seconds,), n_train_rows=rows
        )
        allowance = Allowance(evaluator, METRICS["rmse"], Budget(10.0), 1, 1, [known])
        assert allowance.reserve() == pytest.approx(0.45 + reserved, rel=0.02)


def test_units_of_work_do_not_depend_on_time(dataset):
    pool = [Candidate("keeper", {"keep": k}) for k in (0.9, 0.5, 0.4, 0.3)]
    belief = belief_of([4.0, 3.0, 2.0, 1.0], seconds=[0.1] * 4)
    budget = Budget.of(2.1, unit="work")
    result = search(dataset, [Keeper()], budget, pool, belief)
    assert budget.counts_work
    assert not budget.counts_time
    assert budget.elapsed == pytest.approx(len(result.ledger) * (10 * 0.1 + FIXED_SECONDS))
    assert len(result.ledger) == 2
    with pytest.raises(ValueError, match="must be 'seconds' or 'work'"):
        Budget.of(1.0, unit="minutes")


def test_a_family_without_a_forecast_gets_its_turn(dataset):
    class Stranger(Keeper):
        name = "stranger"
        default_config = {"keep": 1.0}  # noqa: RUF012

    pool = [Candidate("keeper", {"keep": k}) for k in np.linspace(0.0, 0.6, 12)]
    start = [*pool, Stranger().default_candidate()]
    belief = belief_of(np.linspace(-1.0, 1.0, 12))
    result = search(dataset, [Keeper(), Stranger()], Budget(max_trials=8), start, belief)
    assert result.ranked("rmse")[0].candidate.family == "stranger"


def test_a_better_warm_start_is_taken_over_with_all_that_is_known(dataset):
    pool = [Candidate("keeper", {"keep": k}) for k in (0.9, 0.5)]
    later = Future()
    told = []

    def arrive(ledger):
        if len(ledger) == 1:
            later.set_result(WarmStart(pool, belief_of([2.0, 1.0], kind=listener(told))))
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
    threading.Timer(1.0, later.set_result, [WarmStart(pool, belief_of([1.0]))]).start()
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
    start = WarmStart(pool, belief_of(np.arange(61.0)[::-1], np.full(61, 1e-4)))
    with Evaluator(dataset, families=[Keeper()]) as evaluator:
        budget = Budget.of(10.0, unit="work")
        result = tune(evaluator, start, families=[Keeper()], metric=METRICS["r2"], budget=budget)
    assert "cannot be better" in result.ledger.entries[-1].reason


def test_the_search_ends_early_when_nothing_more_is_expected_and_says_so(dataset):
    # Shallower than the noise of the folds: every candidate is as good as the next, and the belief is sure of it.
    pool = [Candidate("keeper", {"keep": float(k)}) for k in np.linspace(0.9, 0.9001, 40)]
    flat = belief_of(np.zeros(40), np.full(40, 1e-4))
    still = replace(flat, prior=replace(flat.prior, covariance=Covariance.from_matrix(1e-8 * np.eye(40))))
    with Evaluator(dataset, families=[Keeper()]) as evaluator:
        result = tune(
            evaluator, WarmStart(pool, still), families=[Keeper()], metric=METRICS["rmse"],
            budget=Budget.of(60.0, unit="work"),
        )  # fmt: skip
    assert "Stopped early: the expected gain of a further trial" in result.ledger.entries[-1].reason
    assert sum("Stopped early" in entry.reason for entry in result.ledger) == 1
    assert 20 <= len(result.evaluations) < 200


def test_a_watcher_hears_of_beginnings_with_a_forecast_and_may_end_the_search(dataset):
    class Watcher:
        begun, ended = [], 0

        def begin(self, candidate, final):
            self.begun.append((candidate, final))

        def __call__(self, ledger):
            self.ended = len(ledger)
            return self.ended == 3

    watcher = Watcher()
    pool = [Candidate("keeper", {"keep": k}) for k in (1.3, 0.9, 0.5, 0.0)]
    result = search(dataset, [Keeper()], Budget(max_trials=9), pool, belief_of([3.0, 2.9, 2.0, 1.0]), on_trial=watcher)
    assert [candidate for candidate, _ in watcher.begun] == [e.candidate for e in result.evaluations]
    assert math.isnan(watcher.begun[0][1])
    best = max(e.score("rmse") for e in result.evaluations[:2] if e.ok)
    assert watcher.begun[2][1] >= best - 0.05
    assert watcher.ended == 3
    assert "Stopped by a callback" in result.ledger.entries[-1].reason
    assert result.warm_start.n_trials == 3


def test_no_score_is_expected_that_a_metric_cannot_have(dataset):
    finals = []

    class Watcher:
        def begin(self, candidate, final):
            finals.append(final)

        def __call__(self, ledger):
            return len(ledger) == 3

    pool = [Candidate("keeper", {"keep": k}) for k in (1.0, 0.9, 0.5, 0.0)]
    search(dataset, [Keeper()], Budget(max_trials=9), pool, belief_of([3.0, 2.9, 2.0, 1.0]), on_trial=Watcher())
    assert np.isfinite(finals[-1])
    assert max(finals[1:]) <= METRICS["rmse"].best


def test_interrupt_keeps_what_was_found(dataset):
    def interrupt(ledger):
        if len(ledger) == 3:
            raise KeyboardInterrupt

    result = search(dataset, [Keeper()], Budget(max_trials=50), on_trial=interrupt)
    assert len(result.evaluations) == 3
    assert result.ranked("rmse")
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
