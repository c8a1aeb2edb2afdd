"""Conformal quantiles and distances on data with known truth."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
from scipy.special import ndtri

from autometa.meta_model.belief import Belief, Covariance, Prior, ScalePrior
from autometa.meta_model.calibration import PROBABILITIES, Calibration, conformal_quantiles
from autometa.meta_model.heads import SizeScale, fade
from autometa.meta_model.novelty import Novelty
from autometa.meta_training.rehearsal import SHARES, calibrations, choice_gains


def test_every_group_weighs_the_same() -> None:
    rng = np.random.default_rng(0)
    many = rng.normal(100.0, 1.0, 5000)
    errors = np.concatenate([many, rng.normal(0.0, 1.0, 400)])
    groups = np.concatenate([np.zeros(5000), 1 + np.repeat(np.arange(100), 4)])
    upper = conformal_quantiles(errors, groups)[PROBABILITIES == 0.9]
    assert upper[0] == pytest.approx(ndtri(0.9), abs=0.3)


def test_new_groups_are_covered() -> None:
    """Errors share a group effect: coverage holds on average over corpora of few groups, with a Gaussian's it fails."""
    rng, covered = np.random.default_rng(1), []
    for _ in range(200):
        spread = np.exp(rng.normal(0.5, 0.7, 26))[:, None]
        errors = spread * rng.normal(size=(26, 10))
        quantiles = conformal_quantiles(errors[:25].ravel(), np.repeat(np.arange(25), 10))
        low, high = Calibration((0,), quantiles[None]).ends(0.8, 0)
        covered.append(np.mean((errors[25] > low) & (errors[25] < high)))
    assert 0.77 < np.mean(covered) < 0.88


def test_tails_beyond_the_groups_are_continued_and_quantiles_ascend() -> None:
    quantiles = conformal_quantiles(np.array([-1.0, 0.5, 2.0]), np.arange(3))
    assert np.isfinite(quantiles).all()
    assert (np.diff(quantiles) >= 0).all()
    assert quantiles[-1] > 2.0
    again = Calibration.from_spec(Calibration((0, 3), np.stack([quantiles, 2 * quantiles])).spec)
    assert again.quantile(0.9, 3) == pytest.approx(2 * again.quantile(0.9, 0), abs=0.01)
    assert again.quantile(0.9, 0) < again.quantile(0.9, 1) < again.quantile(0.9, 99)
    assert again.quantile(0.999, 0) > again.quantile(0.98, 0)


def test_a_belief_uses_its_calibration_and_reaches_further_down_where_candidates_can_fail() -> None:
    scale = ScalePrior(offset=0.7, offset_std=1e-9, slope=0.0, log_scale=np.log(0.1), log_scale_std=0.0)
    prior = Prior(np.zeros(2), Covariance.from_matrix(np.eye(2)), scale)
    plain = Belief(prior)
    calibration = Calibration((0,), 2 * ndtri(PROBABILITIES)[None])
    twice = Belief(replace(prior, calibration=calibration, tail=np.array([0.0, 3.0])))
    (low, high), (wide_low, wide_high) = plain.interval(0.8), twice.interval(0.8)
    np.testing.assert_allclose(wide_high - 0.7, 2 * (high - 0.7), rtol=0.02)
    assert wide_low[0] - 0.7 == pytest.approx(2 * (low[0] - 0.7), rel=0.02)
    assert wide_low[1] - 0.7 == pytest.approx(2 * np.sqrt(10) * (low[1] - 0.7), rel=0.02)


def test_a_probed_belief_has_quantiles_of_its_own_and_else_those_of_one_trial() -> None:
    z = ndtri(PROBABILITIES)
    plain = Calibration((0, 1), np.stack([z, 3 * z]))
    probed = replace(plain, probed=Calibration((0,), 5 * z[None]))
    width = plain.ends(0.8, 0)[1]
    assert plain.ends(0.8, 0, probed=True)[1] == pytest.approx(3 * width)
    assert probed.ends(0.8, 0, probed=True)[1] == pytest.approx(5 * width)
    assert probed.ends(0.8, 0)[1] == pytest.approx(width)
    assert Calibration.from_spec(probed.spec).ends(0.8, 0, probed=True)[1] == pytest.approx(5 * width, rel=1e-3)


def test_small_and_large_tables_have_intervals_of_their_own() -> None:
    """Errors of small tables reach twice as far: one calibration for all would cover them too rarely."""
    rng, n_groups = np.random.default_rng(2), 200
    group = np.repeat(np.arange(n_groups), 10)
    log_rows = np.where(group % 2 == 0, 2.0, 3.5)
    z = rng.normal(size=len(group)) * np.where(log_rows < 3, 2.0, 1.0)
    errors = pd.DataFrame({"stage": 0, "z": z, "probed": False, "task": "binary", "group": group, "log_rows": log_rows})
    for task in ("", "binary"):
        spec = calibrations(errors)[task]
        for rows, width in ((2.0, 2.0), (3.5, 1.0)):
            low, high = Calibration.from_spec(spec).for_rows(rows).ends(0.8, 0)
            here = z[log_rows == rows]
            assert np.mean((here > low) & (here < high)) == pytest.approx(0.8, abs=0.03)
            assert high == pytest.approx(width * ndtri(0.9), rel=0.12)
        unknown = Calibration.from_spec(spec).for_rows(float("nan"))
        assert unknown.by_rows is not None
    for less in (errors.assign(log_rows=np.nan), errors[errors["group"] < 12]):  # sizes not known, too few groups
        assert Calibration.from_spec(calibrations(less)[""]).by_rows is None


def test_novelty_is_a_percentile() -> None:
    rng = np.random.default_rng(0)
    X = rng.normal(size=(200, 6))
    novelty = Novelty.fit(X, X, np.arange(200))
    fresh = rng.normal(size=(500, 6))
    percentiles = novelty.percentile(fresh, fresh)
    assert np.mean(percentiles < 0.5) == pytest.approx(0.5, abs=0.1)
    assert np.mean(percentiles > 0.9) == pytest.approx(0.1, abs=0.06)
    far = np.full((1, 6), 30.0)
    assert novelty.percentile(np.clip(far, -2, 2), far)[0] == 1.0  # ranks cannot tell, the known range can
    assert novelty.percentile(np.zeros((1, 6)), np.full((1, 6), np.nan))[0] > novelty.percentile(
        np.zeros((1, 6)), np.zeros((1, 6))
    )[0]  # fmt: skip


def test_trust_fades_beyond_the_threshold() -> None:
    assert fade(0.5, 0.9) == fade(float("nan"), 0.9) == 1.0
    assert fade(0.95, 0.9) == pytest.approx(0.5)
    assert fade(1.0, 0.9) == 0.0


def test_choice_gains_tell_a_good_forecast_from_noise() -> None:
    rng = np.random.default_rng(0)
    value = rng.normal(size=60)
    good = choice_gains(np.zeros(60), value + 0.3 * rng.normal(size=60), value)
    portfolio = value + 0.3 * rng.normal(size=60)
    bad = choice_gains(portfolio, 3 * rng.normal(size=60), value)
    assert good[0] == bad[0] == 0.0
    assert good[SHARES.index(1.0)] > 1.0
    assert bad[SHARES.index(1.0)] < -0.5


def test_sizes_are_centred_capped_and_may_be_missing() -> None:
    scale = SizeScale(("log_rows", "log_columns"), (3.0, 1.0), cap=3.3)
    np.testing.assert_allclose(scale.values({"log_rows": 6.0, "log_columns": 2.0}), [0.3, 1.0])
    np.testing.assert_allclose(scale.values({"log_rows": 2.0}), [-1.0, 0.0])


def test_beyond_the_largest_table_known_seconds_grow_with_the_rows() -> None:
    scale = SizeScale(("log_rows", "log_columns"), (3.0, 1.0), largest=4.0)
    uneven = replace(scale, growth=(1.0, 2.0, 0.5))
    for rows, value, factor in ((1e3, 0.0, 1.0), (1e4, 1.0, 1.0), (9e4, 1.0, 9.0)):
        known = {"log_rows": np.log10(rows), "log_columns": 1.0}
        assert scale.values(known) == pytest.approx([value, 0.0])
        assert np.exp(scale.beyond(known)) == pytest.approx([factor])
        assert np.exp(uneven.beyond(known)) == pytest.approx([factor, factor**2, factor**0.5])
    assert scale.beyond({}).tolist() == [0.0]
    assert SizeScale((), (), largest=4.0).beyond({"log_rows": 9.0}).tolist() == [0.0]
