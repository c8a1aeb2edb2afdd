import dataclasses
import pickle

import numpy as np
import optuna
import pandas as pd
import pytest
from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution
from optuna.testing import pytest_samplers as published

from autometa.collection import load_collection
from autometa.exceptions import LeakageError
from autometa.family import Candidate, ModelFamily
from autometa.meta_model.belief import Belief, Covariance, Prior, ScalePrior, SecondsPrior
from autometa.search_space import SearchSpace
from autometa.tuning import Budget, DatasetPolicy, MetaSampler
from autometa.tuning.costs import Costs
from autometa.tuning.extension import extend
from autometa.tuning.handover import Handover, Surrogate
from autometa.tuning.history import Outcome, thinned
from autometa.tuning.knowledge import Knowledge
from autometa.tuning.neighbourhood import at_random
from autometa.tuning.proposals import suggest, trial_params
from autometa.tuning.ranking import Ranker, _others_first
from autometa.tuning.spaces import Spaces

optuna.logging.set_verbosity(optuna.logging.WARNING)


class Valley(ModelFamily):
    name = "valley"
    search_space = SearchSpace({"a": FloatDistribution(0.0, 1.0), "depth": IntDistribution(1, 9)})
    default_config = {"a": 0.5, "depth": 5}  # noqa: RUF012

    def build(self, config, shape, *, random_state=0, n_threads=1):
        raise NotImplementedError


class Kind(Valley):
    name = "kind"
    search_space = SearchSpace(
        {"kernel": CategoricalDistribution(["x", "y"]), "c": FloatDistribution(0.1, 10, log=True)}
    )
    default_config = {"kernel": "x", "c": 1.0}  # noqa: RUF012


FAMILIES = (Valley(), Kind())


class Plan:
    """What the sampler needs of a Selection: 32 candidates with a belief of a given mean."""

    def __init__(self, mean=None, seconds=None, families=FAMILIES, n=16, variance=0.1):
        self.families = families
        self.candidates = tuple(c for family in families for c in family.pool(n))
        C = len(self.candidates)
        value = np.array([true_score(c) for c in self.candidates]) if mean is None else np.asarray(mean)
        value = (value - np.median(value)) / max(np.ptp(value), 1e-9) * 2
        covariance = Covariance.from_matrix(variance * (np.eye(C) + 1.0))
        scale = ScalePrior(offset=0.5, offset_std=0.5, slope=0.0, log_scale=-1.0, log_scale_std=0.5)
        times = None
        if seconds is not None:
            times = SecondsPrior(np.log(seconds), Covariance.from_matrix(0.01 * np.eye(C)), speed_std=0.1)
        self.belief = Belief(Prior(value, covariance, scale), times)


def true_score(candidate):
    """Best at valley(a=0.8, depth=7): 1; kind is 0.3 worse."""
    c = candidate.config
    if candidate.family == "wide":
        return 0.0
    if candidate.family == "valley":
        return 1.0 - (c["a"] - 0.8) ** 2 - 0.01 * (c["depth"] - 7) ** 2
    return 0.7 - 0.05 * abs(np.log10(c["c"])) - (0.1 if c["kernel"] == "y" else 0.0)


def run(sampler, n, *, sign=1.0, families=FAMILIES, study=None):
    study = study or optuna.create_study(direction="maximize" if sign > 0 else "minimize", sampler=sampler)
    study.sampler = sampler
    study.optimize(lambda trial: sign * true_score(suggest(trial, families)), n_trials=n)
    return study


class TestPublishedSuite(
    published.BasicSamplerTestCase, published.RelativeSamplerTestCase, published.SingleOnlySamplerTestCase
):
    """The tests that Optuna publishes for every sampler; the parameters are none of the belief's."""

    @pytest.fixture
    def sampler(self):
        return lambda: MetaSampler(Plan(), seed=0)


class TestPublishedSuiteOnSources(published.BasicSamplerTestCase):
    """The same for a sampler whose space is that of an earlier study and holds the tests' own names."""

    @pytest.fixture
    def sampler(self):
        source = optuna.create_study(sampler=optuna.samplers.RandomSampler(seed=0))
        source.optimize(lambda t: t.suggest_float("x", 0, 10) + t.suggest_float("y", 0, 10), n_trials=5)
        return lambda: MetaSampler(source_studies=[source], seed=0)


def test_the_first_trials_are_the_best_forecast_and_the_defaults():
    plan = Plan()
    study = run(MetaSampler(plan, seed=0, per_second=False), 4)
    best = plan.candidates[int(np.argmax(plan.belief.mean))]
    assert study.trials[0].params == trial_params(best)
    defaults = [trial_params(family.default_candidate()) for family in plan.families]
    assert [study.trials[i].params in defaults for i in range(4)] == [False, True, False, True]


def test_it_is_cheap_only_until_one_model_exists():
    seconds = np.where(np.arange(32) % 2, 0.01, 60.0)
    plan = Plan(mean=-np.arange(32.0), seconds=seconds)
    sampler = MetaSampler(plan, seed=0, n_defaults=0)
    study = optuna.create_study(direction="maximize", sampler=sampler)
    asked = []
    for _ in range(2):
        trial = study.ask()
        asked.append(plan.candidates.index(suggest(trial, plan.families)))
        trial.set_user_attr("fit_seconds", float(seconds[asked[-1]]))
        study.tell(trial, 0.5)
    assert asked[0] == 1  # the best of the cheap ones
    assert seconds[asked[1]] < 1  # one dear fit costs as much as thousands of cheap ones


def test_dear_candidates_wait_outside_a_small_budget_and_costs_do_not_count_with_trials():
    seconds = np.where(np.arange(32) % 2, 1.0, 60.0)
    mean = np.where(np.arange(32) % 2, -np.arange(32.0), 200.0)
    for options, dear in ({"budget": 30.0}, False), ({"per_second": False}, True):
        plan = Plan(mean=mean, seconds=seconds)
        sampler = MetaSampler(plan, seed=0, n_defaults=0, **options)
        study = optuna.create_study(direction="maximize", sampler=sampler)
        for _ in range(2):
            trial = study.ask()
            candidate = suggest(trial, plan.families)
            assert not (candidate in plan.candidates and seconds[plan.candidates.index(candidate)] > 30) or dear
            study.tell(trial, true_score(candidate))
        first = sampler._knowledge.spaces.candidate(study.trials[0].params)
        assert (seconds[plan.candidates.index(first)] > 30) == dear


def test_every_trial_updates_the_belief_once():
    plan = Plan()
    sampler = MetaSampler(plan, seed=0)
    study = optuna.create_study(direction="maximize", sampler=sampler)

    def objective(trial):
        value = true_score(suggest(trial, plan.families))
        if trial.number == 2:
            raise RuntimeError("no luck")
        if trial.number == 4:
            trial.report(value, 0)
            raise optuna.TrialPruned
        return float("nan") if trial.number == 5 else value

    study.optimize(objective, n_trials=8, catch=(RuntimeError,))
    belief = sampler.belief(study)
    assert len(belief.tried) == 6
    assert len(belief.failed) == 2
    assert sorted(belief.raw_scores) == pytest.approx(
        sorted(
            t.value if t.value is not None else t.intermediate_values[0]
            for t in study.trials
            if t.value or t.number == 4
        )
    )
    assert sampler.belief(study).raw_scores == belief.raw_scores


def test_a_resumed_study_goes_on_as_if_it_had_never_stopped(tmp_path):
    storage = optuna.storages.JournalStorage(optuna.storages.journal.JournalFileBackend(str(tmp_path / "j.log")))
    whole = run(MetaSampler(Plan(), seed=3, per_second=False), 9)
    study = optuna.create_study(
        direction="maximize", storage=storage, study_name="s", sampler=MetaSampler(Plan(), seed=3, per_second=False)
    )
    run(study.sampler, 5, study=study)
    later = optuna.load_study(study_name="s", storage=storage)
    run(MetaSampler(Plan(), seed=3, per_second=False), 4, study=later)
    assert [t.params for t in later.trials] == [t.params for t in whole.trials]


def test_trials_of_others_count_and_only_equal_configurations_are_those_of_the_pool():
    plan = Plan()
    sampler = MetaSampler(plan, seed=0)
    study = optuna.create_study(direction="maximize", sampler=sampler)
    near = {"family": "valley", "valley.a": plan.candidates[3].config["a"] + 1e-9, "valley.depth": 5}
    for params in trial_params(plan.candidates[3]), near:
        study.enqueue_trial(params)
    run(sampler, 2, study=study)
    assert sampler.belief(study).tried == (3, len(plan.candidates))
    run(sampler, 1, study=study)
    assert study.trials[2].params not in [t.params for t in study.trials[:2]]


def test_a_dead_worker_is_no_evidence_once_its_trial_was_started_again():
    plan = Plan()
    sampler = MetaSampler(plan, seed=0)
    study = optuna.create_study(direction="maximize", sampler=sampler)
    family = CategoricalDistribution([f.name for f in plan.families])
    params = trial_params(plan.candidates[3])
    names = {"family": family, **{f"valley.{k}": d for k, d in Valley.search_space.items()}}
    failed = optuna.trial.TrialState.FAIL
    study.add_trial(optuna.create_trial(params=params, distributions=names, state=failed))
    assert sampler.belief(study).failed == (3,)
    retry = {"failed_trial": 0}
    study.add_trial(optuna.create_trial(params=params, distributions=names, value=0.5, system_attrs=retry))
    assert sampler.belief(study).failed == ()
    assert sampler.belief(study).tried == (3,)


def test_with_a_budget_of_work_measured_times_do_not_count():
    plan = Plan(seconds=np.full(32, 0.1))
    for unit, timed in ("seconds", 6), ("work", 0):
        sampler = MetaSampler(plan, seed=0, budget=Budget.of(100.0, unit=unit))
        assert len(sampler.belief(run(sampler, 6)).timed) == timed


def test_minimising_mirrors_maximising():
    # A minimised value is the negative score, so the same scores come out of both studies.
    up, down = (run(MetaSampler(Plan(), seed=1, per_second=False), 14, sign=sign) for sign in (1.0, -1.0))
    assert [t.params for t in down.trials] == [t.params for t in up.trials]
    assert down.best_value == -up.best_value


def test_one_family_needs_no_prefix_and_unknown_parameters_are_sampled_independently():
    plan = Plan(families=(Valley(),))

    def objective(trial):
        extra = trial.suggest_float("extra", -1, 1)
        return true_score(Candidate("valley", Valley.search_space.suggest(trial))) - extra**2

    sampler = MetaSampler(plan, seed=0, per_second=False)
    study = optuna.create_study(direction="maximize", sampler=sampler)
    study.optimize(objective, n_trials=25)
    best = plan.candidates[int(np.argmax(plan.belief.mean))].config
    assert {k: study.trials[0].params[k] for k in best} == dict(best)
    assert len({t.params["extra"] for t in study.trials}) == 25
    assert len(sampler.belief(study).tried) == 25


def test_fixed_families_and_narrower_ranges_are_respected():
    plan = Plan()
    sampler = MetaSampler(plan, seed=0)
    study = optuna.create_study(direction="maximize", sampler=sampler)
    for _ in range(3):
        study.enqueue_trial({"family": "kind"})
    run(sampler, 3, study=study)
    assert {t.params["family"] for t in study.trials} == {"kind"}
    assert {str(t.params) for t in study.trials} <= {str(trial_params(c)) for c in plan.candidates}

    def narrow(trial):
        trial.suggest_categorical("family", ["valley"])
        return trial.suggest_float("valley.a", 0.0, 0.3) + trial.suggest_int("valley.depth", 1, 3)

    other = optuna.create_study(direction="maximize", sampler=MetaSampler(plan, seed=0))
    other.optimize(narrow, n_trials=6)
    assert all(t.params["valley.a"] <= 0.3 and t.params["valley.depth"] <= 3 for t in other.trials)


def test_parallel_trials_differ():
    sampler = MetaSampler(Plan(), seed=0)
    study = optuna.create_study(direction="maximize", sampler=sampler)
    trials = [study.ask() for _ in range(8)]
    asked = [suggest(trial, Plan().families) for trial in trials]
    assert len(set(asked)) == 8
    study.optimize(lambda t: true_score(suggest(t, Plan().families)), n_trials=12, n_jobs=3)
    assert len({str(t.params) for t in study.trials}) == 20


def test_a_right_belief_keeps_the_lead_and_a_wrong_one_loses_it_after_ten_trials():
    right = Plan(variance=1e-3)
    wrong = Plan(variance=1e-3, mean=[-true_score(c) for c in right.candidates])
    leaders, weights, best = {}, {}, {}
    for name, plan in ("right", right), ("wrong", wrong):
        sampler = MetaSampler(plan, seed=0, per_second=False, n_defaults=0)
        study = run(sampler, 10)
        assert "search" not in {t.system_attrs.get("autometa:source") for t in study.trials}
        run(sampler, 6, study=study)
        leaders[name], weights[name] = sampler.leader(study), sampler.belief_weight(study)
        best[name] = run(sampler, 10, study=study).best_value
    assert leaders == {"right": "belief", "wrong": "surrogate"}
    assert weights["right"] > 0.5 > 0.1 > weights["wrong"]
    assert best["right"] > 0.98
    assert best["wrong"] > 0.95


def test_an_optuna_sampler_can_take_over():
    wrong = Plan(mean=[-true_score(c) for c in Plan().candidates])
    other = optuna.samplers.TPESampler(seed=0, n_startup_trials=5)
    sampler = MetaSampler(wrong, seed=0, per_second=False, surrogate=other)
    study = run(sampler, 30)
    assert "search" in {t.system_attrs.get("autometa:source") for t in study.trials}
    assert all(len(t.params) == 3 for t in study.trials)


def test_a_policy_and_neighbours_of_the_best_go_beyond_the_pool():
    class Policy:
        def sample(self, meta_features, n, *, rng, families=None):
            where = meta_features["where"]
            return [Candidate("valley", {"a": where + 0.001 * rng.random(), "depth": 7}) for _ in range(n)]

    policy = DatasetPolicy(Policy(), {"where": 0.8})
    study = run(MetaSampler(Plan(), seed=0, per_second=False, policy=policy), 12)
    sources = {t.system_attrs["autometa:source"] for t in study.trials}
    assert {"selection", "default", "policy"} <= sources
    assert study.best_value > 0.9999


def test_studies_with_another_space_are_a_prior():
    source = optuna.create_study(sampler=optuna.samplers.RandomSampler(seed=0))
    source.optimize(
        lambda t: (t.suggest_float("a", -1, 2) - 0.8) ** 2 + t.suggest_float("gone", 0, 1) / 1e3, n_trials=40
    )

    def objective(trial):
        return (trial.suggest_float("a", 0, 1) - 0.8) ** 2 + 0.05 * (trial.suggest_float("new", 0, 1) - 0.5) ** 2

    def best(sampler, n):
        study = optuna.create_study(sampler=sampler)
        study.optimize(objective, n_trials=n)
        return study.trials[0].params["a"], study.best_value

    warm = [best(MetaSampler(source_studies=[source], seed=s), 5) for s in range(5)]
    cold = [best(optuna.samplers.TPESampler(seed=s), 5) for s in range(5)]
    assert all(abs(first - 0.8) < 0.15 for first, _ in warm)
    assert np.median([b for _, b in warm]) < np.median([b for _, b in cold])


def test_studies_join_the_belief_and_bad_ones_are_found_out():
    plan = Plan(mean=np.zeros(32) + 1e-3 * np.arange(32))
    good = run(optuna.samplers.RandomSampler(seed=0), 30)
    sampler = MetaSampler(plan, source_studies=[good], seed=0, per_second=False)
    study = run(sampler, 3)
    assert study.trials[0].params["family"] == "valley"
    assert study.trials[0].value > 0.9
    bad = run(optuna.samplers.RandomSampler(seed=0), 30, sign=-1.0)
    bad_as_good = optuna.create_study(direction="maximize")
    bad_as_good.add_trials(bad.trials)
    study = run(MetaSampler(plan, source_studies=[bad_as_good], seed=0, per_second=False), 25)
    assert study.best_value > 0.95


def test_the_report_tells_saved_from_lost_trials():
    plan = Plan()
    sampler = MetaSampler(plan, seed=0, per_second=False)
    warm = sampler.warm_start_report(run(sampler, 6))
    assert warm.n_trials == 6
    assert warm.saved > 2
    assert warm.cold_low <= warm.cold_reached_at <= 100
    assert "saved" in str(warm)

    class Best(Valley):
        default_config = {"a": 0.8, "depth": 7}  # noqa: RUF012

    families = (Best(), Kind())
    wrong = Plan(families=families, mean=[-true_score(c) for c in Plan(families=families).candidates])
    sampler = MetaSampler(wrong, seed=0, per_second=False)
    cost = sampler.warm_start_report(run(sampler, 6, families=families))
    assert cost.saved < 0  # a cold start begins with the best configuration there is
    assert "cost" in str(cost)
    empty = sampler.warm_start_report(optuna.create_study())
    assert "Nothing" in str(empty)


def test_a_sampler_travels_by_pickle():
    sampler = MetaSampler(Plan(), seed=0, per_second=False)
    run(sampler, 3)
    again = pickle.loads(pickle.dumps(sampler))
    assert [t.params for t in run(again, 5).trials] == [t.params for t in run(sampler, 5).trials]


def test_without_a_belief_defaults_come_first_then_a_surrogate():
    sampler = MetaSampler(families=FAMILIES, seed=0)
    study = run(sampler, 25)
    assert [t.params for t in study.trials[:2]] == [trial_params(f.default_candidate()) for f in FAMILIES]
    assert sampler.leader(study) == "surrogate"
    assert sampler.belief(study) is None
    assert study.best_value > 0.97


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: MetaSampler(), "selection, families or source_studies"),
        (lambda: MetaSampler(Plan(), surrogate="forest"), "Optuna sampler"),
        (lambda: MetaSampler(Plan(), families=(Kind(),)), "every family"),
        (lambda: MetaSampler(source_studies=[optuna.create_study()]), "at least 2 scored trials"),
        (lambda: Handover(prior_weight=1.0), "between 0 and 1"),
        (lambda: Surrogate(Spaces.of_families([Valley()]), []), "at least 2 scored trials"),
    ],
)
def test_bad_arguments_get_one_sentence(call, message):
    with pytest.raises(ValueError, match=message):
        call()


class Wide(Valley):
    name = "wide"
    search_space = SearchSpace({f"x{i}": FloatDistribution(0.0, 1.0) for i in range(16)})
    default_config = {f"x{i}": 0.5 for i in range(16)}  # noqa: RUF012


def test_what_was_seen_of_a_family_with_many_hyperparameters_holds_for_the_others_of_it():
    families = (Valley(), Wide())
    spaces = Spaces.of_families(families)
    narrow, wide = Valley().pool(9)[1:], Wide().pool(9)[1:]
    outcomes = [Outcome(i, candidate, true_score(candidate)) for i, candidate in enumerate(narrow)]
    outcomes += [Outcome(len(outcomes) + i, candidate, 0.0) for i, candidate in enumerate(wide[:4])]
    forecast = Surrogate(spaces, outcomes).forecast(wide[4:])
    assert (forecast.mean < 0.3).all()
    scaled = spaces.vectors([*narrow, *wide]) * spaces.even_scale
    width = [np.linalg.norm(part[:, None] - part, axis=2).max() for part in (scaled[:8], scaled[8:])]
    assert 0.5 < width[0] / width[1] < 2.0


def test_a_surrogate_that_leads_offers_what_can_still_be_afforded():
    plan = Plan(families=(Valley(), Wide()), mean=np.zeros(32), seconds=np.repeat([0.01, 60.0], 16))
    knowledge = Knowledge(Spaces.of_families(plan.families), plan.candidates, plan.belief)
    ranker = Ranker(knowledge, n_defaults=0)
    history = [Outcome(i, c, true_score(c)) for i, c in enumerate(plan.candidates[:12])]
    for remaining, families in ((5.0, {"valley"}), (1000.0, {"valley", "wide"})):
        choices = ranker._by_surrogate(history, [], Costs(remaining=remaining), rng=np.random.default_rng(0))
        assert {choice.candidate.family for choice in choices} == families
        assert all(choice.seconds <= remaining for choice in choices)


def test_neighbours_of_the_best_take_every_second_trial_unless_the_others_promise_nothing():
    value = np.array([0.1, 1.0, 0.2, 0.9])
    local = np.array([False, True, False, True])
    assert list(np.argsort(-_others_first(value, local, ~local))[:2]) == [2, 0]
    hopeless = np.where(local, value, 1e-9)
    assert int(np.argmax(_others_first(hopeless, local, ~local))) == 1
    assert list(_others_first(value, local, np.zeros(4, dtype=bool))) == list(value)


def test_an_extended_belief_leaves_the_pool_alone_and_is_unsure_far_away():
    plan = Plan()
    spaces = Spaces.of_families(plan.families)
    known = plan.candidates[5]
    near = Candidate("valley", {**known.config, "a": min(known.config["a"] + 0.01, 1.0)})
    stranger = Candidate("valley", {"a": 0.0, "depth": 1})
    belief = extend(plan.belief, plan.candidates, [near, stranger], spaces)
    np.testing.assert_allclose(belief.mean[:32], plan.belief.mean)
    np.testing.assert_allclose(belief.std[:32], plan.belief.std)
    after = belief.observe(5, float(belief.mean[5]) + 1.0)
    moved = after.mean - belief.mean
    assert moved[32] > moved[33]
    covariance = np.column_stack([belief.prior.covariance.column(i) for i in range(34)])
    np.testing.assert_allclose(covariance, covariance.T, atol=1e-9)
    np.testing.assert_allclose(np.diag(covariance), belief.prior.covariance.diagonal)
    assert np.linalg.eigvalsh(covariance).min() > -1e-8


def test_a_belief_that_grows_by_one_outcome_equals_one_made_at_once():
    plan = Plan()
    spaces = Spaces.of_families(plan.families)
    rng = np.random.default_rng(0)
    tried = [*plan.candidates[:4], *at_random(spaces, rng, n=3)]
    history = [Outcome(i, c, true_score(c), 0.01 + 0.001 * i) for i, c in enumerate(tried)]
    grown, fresh = (Knowledge(spaces, plan.candidates, plan.belief) for _ in range(2))
    for n in range(len(history)):
        grown.updated(history[:n], more=[tried[n]])
        step, _ = grown.updated(history[: n + 1])
    whole, position = fresh.updated(history)
    np.testing.assert_allclose(step.mean, whole.mean)
    np.testing.assert_allclose(step.std, whole.std)
    assert [position[c] for c in tried[:4]] == [0, 1, 2, 3]


def test_a_belief_in_memory_serves_whoever_asks_for_less_and_says_the_same():
    plan = Plan(seconds=np.full(32, 0.1))
    spaces = Spaces.of_families(plan.families)
    drawn = at_random(spaces, np.random.default_rng(0), n=6)
    history = [Outcome(i, c, true_score(c), seconds=0.2) for i, c in enumerate([*plan.candidates[:3], *drawn[:2]])]
    shared = Knowledge(spaces, plan.candidates, plan.belief)
    wide, _ = shared.updated(history[:3], more=drawn)
    for n, pending in ((3, []), (4, drawn[3:4]), (5, drawn[2:4])):
        belief, position = shared.updated(history[:n], pending)
        alone, where = Knowledge(spaces, plan.candidates, plan.belief).updated(history[:n], pending)
        assert set(position) == set(where)
        assert len(belief) == len(wide)
        for candidate, index in position.items():
            assert belief.mean[index] == pytest.approx(alone.mean[where[candidate]])
            assert belief.seconds[index] == pytest.approx(alone.seconds[where[candidate]])
        assert shared.spread(history[:n]) == pytest.approx(
            Knowledge(spaces, plan.candidates, plan.belief).spread(history[:n])
        )
    assert Knowledge(spaces, plan.candidates).spread(history) == 0.0


def test_candidates_are_drawn_anew_after_a_few_trials_and_when_the_best_change():
    plan = Plan()
    knowledge = Knowledge(Spaces.of_families(plan.families), plan.candidates, plan.belief)
    ranker, rng = Ranker(knowledge), np.random.default_rng(0)
    history = [Outcome(i, c, -float(i)) for i, c in enumerate(plan.candidates[:6])]
    first = ranker._fresh(history, 8, rng, near=True)
    assert ranker._fresh([*history, Outcome(6, plan.candidates[6], -9.0)], 9, rng, near=True) == first
    better = ranker._fresh([*history, Outcome(6, plan.candidates[6], 9.0)], 9, rng, near=True)
    assert better != first
    assert ranker._fresh([*history, Outcome(6, plan.candidates[6], 9.0)], 12, rng, near=True) != better
    assert ranker._fresh(history, 12, rng, near=False) == {}


def test_what_earlier_fits_took_holds_for_an_extended_belief():
    plan = Plan(seconds=np.full(32, 0.1))
    spaces = Spaces.of_families(plan.families)
    belief = plan.belief.observe_seconds(0, 10.0)
    extended = extend(belief, plan.candidates, at_random(spaces, np.random.default_rng(0), n=2), spaces)
    np.testing.assert_allclose(extended.seconds[:32], belief.seconds)
    assert extended.seconds[0] > 1.0


def test_of_a_long_history_the_best_and_the_latest_are_kept():
    candidate = Candidate("valley", {"a": 0.5, "depth": 5})
    history = [Outcome(i, candidate, float(-i) if i % 7 else np.nan) for i in range(200)]
    kept = [outcome.number for outcome in thinned(history, 20)]
    assert kept == sorted(kept)
    assert len(kept) == 20
    assert set(range(190, 200)) <= set(kept)
    assert {1, 2, 3, 4, 5, 6, 8, 9, 10, 11} <= set(kept)
    assert thinned(history[:20], 20) == history[:20]


def test_spaces_read_trials_back():
    spaces = Spaces.of_families(FAMILIES)
    candidate = Candidate("kind", {"kernel": "y", "c": 3.0})
    assert spaces.candidate(trial_params(candidate)) == candidate
    assert spaces.candidate({"family": "other"}) is None
    assert spaces.candidate({"a": 0.1}) is None
    assert spaces.candidate({"family": "kind", "kind.c": 1e6}).config == {"kernel": "x", "c": 10.0}
    assert spaces.candidate({"family": "kind", "kind.kernel": "z"}) is None
    assert spaces.candidate({"family": "kind", "kind.c": 1.0}, fill=False) is None
    assert spaces.vectors([candidate]).shape == (1, spaces.n_dims)


@pytest.fixture(scope="module")
def anytime(load_experiment):
    return load_experiment("anytime/trials.py")


def test_a_hit_is_the_first_incumbent_within_one_paired_standard_error(anytime):
    rng = np.random.default_rng(0)
    truth = pd.DataFrame({"y": rng.standard_normal(200)})
    truth.attrs = {"metric": "rmse", "task": "regression", "n_classes": 0}
    judge = anytime.Judge(truth)
    noise = rng.standard_normal(200)
    target, near, far = (truth["y"].to_numpy() + scale * noise for scale in (0.5, 0.49, 0.9))
    search = pd.DataFrame({"trial": [1, 2, 3], "prediction": [far, None, near]})
    assert anytime.hit(judge, search, target, 50) == 3
    assert anytime.hit(judge, search[:2], target, 50) == 50
    assert judge.gap(target, target) == (0.0, 0.0)
    assert judge.gap(far, target)[0] < 0


def test_the_study_runs_resumes_and_guards_what_is_not_to_be_seen(anytime, tmp_path, capsys, monkeypatch):
    iris = next(entry.fingerprint for entry in load_collection("smoke") if entry.name == "iris")
    monkeypatch.setattr(type(anytime.shipped_meta_model()), "trained_on", frozenset([iris]))
    config = anytime.Config("smoke", ("wine",), 120, ("knn", "naive_bayes"), 4, (0, 1), (2,), (0,), 30.0, tmp_path)
    anytime.run(config)
    shards = {path: path.stat().st_mtime_ns for path in tmp_path.glob("*.parquet")}
    assert len(shards) == len(list(config.runs())) + 1
    anytime.run(config)
    assert {path: path.stat().st_mtime_ns for path in tmp_path.glob("*.parquet")} == shards
    frame = anytime.summarise(config)
    assert set(frame["method"]) == {"second cold seed", "portfolio", *anytime.META}
    assert frame["hit"].between(1, 4).all()
    anytime.report(config)
    assert "1 datasets, 4 trials" in capsys.readouterr().out
    with pytest.raises(LeakageError, match="trained on 'iris'"):
        anytime.run(dataclasses.replace(config, datasets=("iris",)))
    with pytest.raises(SystemExit, match="release candidates"):
        anytime.run(dataclasses.replace(config, collection="open_test"))
