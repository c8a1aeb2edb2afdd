import json

import numpy as np
import pandas as pd
import pytest
from test_sampler import Plan, run

from autometa.data import TaskType
from autometa.exceptions import ArtefactError
from autometa.tuning import MetaSampler
from autometa.tuning.ensemble_gain import SLOPES, EnsembleGain, EnsembleValue, describe, shipped_gain

FAMILIES = ("valley", "kind")
CORRELATION = {("valley", "valley"): 0.95, ("kind", "kind"): 0.95, ("valley", "kind"): 0.5, ("kind", "valley"): 0.5}


def gain_of(intercept=0.0, blur=0.1, **slopes):
    table = tuple(tuple(CORRELATION[a, b] for b in FAMILIES) for a in FAMILIES)
    named = dict.fromkeys(SLOPES, 0.0) | slopes
    return EnsembleGain(FAMILIES, table, named, {"binary": intercept}, {"binary": blur})


def test_what_is_described():
    found = describe(["kind", "valley", "stranger"], ["valley"] * 3, n_rows=10_000, correlation=CORRELATION)
    np.testing.assert_allclose(found[:, 0], [0.5, 0.05, 1 - 0.725])
    np.testing.assert_allclose(found[:, 1], [1.0, 0.25, 1.0])
    np.testing.assert_allclose(found[:, 2:], [[np.log10(3), 1.0]] * 3)


def test_without_bonus_and_blur_the_gain_is_expected_improvement():
    plan = Plan()
    belief = plan.belief.observe(3, 0.5).observe(20, 0.6).observe(7, 0.4)
    families = [candidate.family for candidate in plan.candidates]
    value = EnsembleValue(gain_of(blur=0.0), TaskType.BINARY, 500)
    np.testing.assert_allclose(value(belief, families, ["valley"] * 3), belief.expected_improvement())


def test_a_bonus_raises_the_value_and_few_models_damp_it():
    plan = Plan()
    belief = plan.belief.observe(3, 0.5)
    families = np.array([candidate.family for candidate in plan.candidates])
    value = EnsembleValue(gain_of(decorrelation=1.0), TaskType.BINARY, 500)
    single = belief.expected_improvement()
    one, many = (value(belief, families, ["valley"] * n) for n in (1, 5))
    assert (many > single).all()
    rise = many - single
    assert rise[families == "kind"].mean() > rise[families == "valley"].mean()
    assert (single < one).all()
    assert (one < many).all()


def test_the_sampler_follows_it():
    plan = Plan(mean=np.zeros(32))
    options = {"seed": 0, "per_second": False, "n_defaults": 0}
    found = {}
    for sign in (1.0, -1.0):
        ensemble = EnsembleValue(gain_of(novelty=5.0 * sign), TaskType.BINARY, 500)
        study = run(MetaSampler(plan, ensemble=ensemble, **options), 9)
        found[sign] = pd.Series([t.params["family"] for t in study.trials]).value_counts()
    assert found[1.0].min() >= 3
    assert found[-1.0].max() > found[1.0].max()


def test_it_is_read_back_and_damage_is_named():
    gain = gain_of(novelty=0.2)
    content = json.loads(json.dumps(gain.to_dict()))
    assert EnsembleGain.from_dict(content) == gain
    damaged = ({"slopes": {}}, {"correlation": [[1.0]]}, {"blur": 3}, {"families": None})
    for broken in ({**content, **damage} for damage in damaged):
        with pytest.raises(ArtefactError, match="ensemble gain"):
            EnsembleGain.from_dict(broken)


def test_the_shipped_numbers_are_sane():
    gain = shipped_gain()
    correlation = np.array(gain.correlation)
    np.testing.assert_allclose(correlation, correlation.T)
    assert (correlation > 0).all()
    assert (correlation <= 1).all()
    assert set(gain.intercept) == set(gain.blur) == {str(task) for task in TaskType}


@pytest.fixture(scope="module")
def study(load_experiment):
    return load_experiment("ensemble_gain/fit.py")


def test_the_fit_recovers_numbers_that_made_the_gains(study):
    rng = np.random.default_rng(0)
    rows = pd.DataFrame({name: rng.uniform(0, 1, 3000) for name in SLOPES})
    rows["group"], rows["task"] = rng.integers(60, size=3000).astype(str), "binary"
    rows["margin"] = rng.normal(-0.2, 0.3, 3000)
    bonus = -0.1 + 0.4 * rows["decorrelation"] - 0.2 * rows["log_size"]
    mean = (rows["margin"] + bonus).to_numpy()
    rows["gain"] = study.improvement(mean, np.full(3000, 0.15)) + rng.normal(0, 0.02, 3000)
    gain = study.fit_gain(rows, CORRELATION)
    made = {"decorrelation": 0.4, "novelty": 0.0, "log_size": -0.2, "log_rows": 0.0}
    assert gain.slopes == pytest.approx(made, abs=0.05)
    assert gain.intercept["binary"] == pytest.approx(-0.1, abs=0.05)
    assert gain.blur["binary"] == pytest.approx(0.15, abs=0.05)
