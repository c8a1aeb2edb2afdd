"""The belief against closed forms and known worlds."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from autometa.family import Candidate
from autometa.meta_model.belief import Belief, Covariance, Prior, ScalePrior, SecondsPrior
from autometa.meta_model.encoders import ConfigEncoder
from autometa.meta_model.pool import CandidatePool

KNOWN = ScalePrior(offset=0.7, offset_std=1e-9, slope=0.0, log_scale=np.log(0.1), log_scale_std=0.0)
VAGUE = ScalePrior(offset=0.7, offset_std=0.2, slope=0.0, log_scale=np.log(0.1), log_scale_std=0.8)


def covariance(n: int = 6, seed: int = 0) -> np.ndarray:
    root = np.random.default_rng(seed).normal(size=(n, 3))
    return root @ root.T / 3 + 0.1 * np.eye(n)


def make(scale: ScalePrior, n: int = 6, noise: float = 1e-2, shifts: np.ndarray | None = None) -> Belief:
    mean = np.linspace(-0.5, 0.8, n)
    prior = Prior(mean, Covariance.from_matrix(covariance(n)), scale, noise=noise)
    if shifts is not None:
        prior = Prior(mean, prior.covariance, scale, noise=noise, shifts=shifts)
    return Belief(prior)


def test_posterior_equals_the_closed_form_when_offset_and_scale_are_known() -> None:
    belief, S = make(KNOWN), covariance()
    seen, raw = [4, 1], np.array([0.81, 0.66])
    for i, y in zip(seen, raw, strict=True):
        belief = belief.observe(i, y)
    gain = S[:, seen] @ np.linalg.inv(S[np.ix_(seen, seen)] + 1e-2 * np.eye(2))
    m = np.linspace(-0.5, 0.8, 6)
    expected = 0.7 + 0.1 * (m + gain @ ((raw - 0.7) / 0.1 - m[seen]))
    variance = np.diag(S - gain @ S[seen])
    np.testing.assert_allclose(belief.mean, expected, rtol=1e-5)
    np.testing.assert_allclose(belief.std, 0.1 * np.sqrt(variance), rtol=1e-4)


def test_the_standard_error_of_a_score_is_its_noise() -> None:
    S, m = covariance(), np.linspace(-0.5, 0.8, 6)
    belief = make(KNOWN).observe(2, 0.9, standard_error=0.05)
    gain = S[:, 2] / (S[2, 2] + 0.05**2 / 0.1**2)
    np.testing.assert_allclose(belief.mean, 0.7 + 0.1 * (m + gain * (2.0 - m[2])), rtol=1e-4)
    exact = make(KNOWN).observe(2, 0.9, standard_error=0.0)
    assert exact.mean[2] == pytest.approx(0.9, abs=1e-4)
    assert belief.std[2] > exact.std[2]


@pytest.mark.parametrize("scale", [KNOWN, VAGUE])
def test_observing_shrinks_the_uncertainty_of_what_was_observed(scale: ScalePrior) -> None:
    belief = make(scale)
    later = belief.observe(3, 0.72)
    assert later.std[3] < belief.std[3]
    assert later.std.mean() < belief.std.mean()
    assert belief.tried == ()


def test_a_high_score_raises_correlated_candidates_and_a_low_one_lowers_them() -> None:
    S = np.array([[1.0, 0.9, 0.0], [0.9, 1.0, 0.0], [0.0, 0.0, 1.0]])
    belief = Belief(Prior(np.zeros(3), Covariance.from_matrix(S), KNOWN))
    assert belief.observe(0, 0.85).mean[1] > belief.mean[1] + 0.1
    assert belief.observe(0, 0.55).mean[1] < belief.mean[1] - 0.1
    assert belief.observe(0, 0.85).mean[2] == pytest.approx(belief.mean[2])


@settings(max_examples=25, deadline=None)
@given(st.floats(0.5, 2.0), st.floats(-3, 3), st.integers(0, 1000))
def test_choices_do_not_depend_on_the_unit_of_the_scores(factor: float, shift: float, seed: int) -> None:
    raw = 0.7 + 0.1 * np.random.default_rng(seed).normal(size=6)
    moved = ScalePrior(0.7 * factor + shift, 0.2 * factor, 0.0, np.log(0.1 * factor), 0.8)
    one, other = make(VAGUE), make(moved)
    for _ in range(4):
        i = one.next()
        assert other.next() == i
        one, other = one.observe(i, raw[i]), other.observe(i, factor * raw[i] + shift)
    np.testing.assert_allclose(other.mean, factor * one.mean + shift, rtol=1e-6)


def test_relative_scores_may_have_any_size() -> None:
    relative = ScalePrior(-1.0, 1.0, 0.0, np.log(0.1), 0.5, relative=True, log_size=0.0)
    raw, orders = np.array([-1.0, -1.1, -0.8, -0.9, -1.2, -0.85]), []
    for factor in (1e-4, 1.0, 1e6):
        belief, order = make(relative), []
        for _ in range(5):
            order.append(belief.next())
            belief = belief.observe(order[-1], factor * raw[order[-1]])
        orders.append(order)
        assert np.abs(belief.mean / factor - raw).max() < 0.3
    assert orders[0] == orders[1] == orders[2]


def test_with_one_displacement_of_zero_nothing_changes() -> None:
    plain, shifted = make(VAGUE), make(VAGUE, shifts=np.zeros((3, 6)))
    for i, y in [(5, 0.7), (2, 0.8)]:
        plain, shifted = plain.observe(i, y), shifted.observe(i, y)
    np.testing.assert_allclose(plain.mean, shifted.mean, rtol=1e-6)
    np.testing.assert_allclose(plain.std, shifted.std, rtol=1e-4)


def test_displacements_that_explain_the_scores_gain_weight() -> None:
    shifts = np.zeros((2, 6))
    shifts[0, 0], shifts[1, 1] = 2.0, 2.0
    belief = make(KNOWN, shifts=shifts).observe(0, 0.7 + 0.1 * 1.5)
    assert belief.normalised_mean[1] < make(KNOWN, shifts=shifts).normalised_mean[1]


def test_every_candidate_is_proposed_once_and_then_there_is_none() -> None:
    belief, order = make(VAGUE), []
    for k in range(6):
        order.append(belief.next())
        belief = belief.observe_failure(order[-1]) if k == 2 else belief.observe(order[-1], 0.7 + 0.01 * k)
    assert sorted(order) == list(range(6))
    with pytest.raises(ValueError, match="Every candidate was tried"):
        belief.next()


def test_a_failure_lowers_its_like_and_is_not_proposed_again() -> None:
    S = np.array([[1.0, 0.9, 0.0], [0.9, 1.0, 0.0], [0.0, 0.0, 1.0]])
    belief = Belief(Prior(np.array([0.3, 0.2, 0.1]), Covariance.from_matrix(S), VAGUE))
    failed = belief.observe_failure(0)
    assert failed.normalised_mean[1] < belief.normalised_mean[1]
    assert failed.observe(2, 0.7).observe_failure(1).failed == (0, 1)
    assert failed.next() == 2


def test_order_of_failures_and_scores_does_not_matter() -> None:
    one = make(VAGUE).observe_failure(0).observe(3, 0.7).observe(4, 0.8)
    other = make(VAGUE).observe(3, 0.7).observe(4, 0.8).observe_failure(0)
    np.testing.assert_allclose(one.mean, other.mean)


def test_seconds_are_learned_with_the_speed_of_the_machine() -> None:
    prior = make(VAGUE).prior
    speed = SecondsPrior(np.log(np.full(6, 2.0)), Covariance.from_matrix(0.1 * np.eye(6)), speed_std=1.0)
    belief = Belief(prior, speed)
    np.testing.assert_allclose(belief.seconds, 2.0)
    slow = belief.observe(0, 0.7, seconds=20.0)
    assert (slow.seconds > 6).all()
    assert (slow.seconds_std < belief.seconds_std).all()
    assert np.isnan(make(VAGUE).seconds).all()
    assert belief.observe_seconds(0, float("nan")) is belief


def test_bad_arguments_are_explained() -> None:
    belief = make(VAGUE)
    with pytest.raises(ValueError, match="index must be the position of one of 6"):
        belief.observe(6, 0.5)
    with pytest.raises(ValueError, match="raw_score must be finite"):
        belief.observe(0, float("nan"))
    with pytest.raises(ValueError, match="level must lie between 0 and 1"):
        belief.interval(1.0)


def test_intervals_are_nested_and_hold_the_mean() -> None:
    belief = make(VAGUE).observe(1, 0.7)
    (low, high), (wide_low, wide_high) = belief.interval(0.5), belief.interval(0.9)
    assert (wide_low < low).all()
    assert (low < belief.mean).all()
    assert (belief.mean < high).all()
    assert (high < wide_high).all()


def test_encoded_configs_are_near_when_alike() -> None:
    configs = [
        {"C": 10.0**i, "kernel": k, "depth": d} for i in range(-3, 4) for k in ("rbf", "poly") for d in (None, 3)
    ]
    encoder = ConfigEncoder.fit([("svm", c) for c in configs])
    a, b, c, other = encoder.encode(
        "svm", [configs[0], {**configs[0], "C": 0.002}, {**configs[0], "kernel": "poly"}, {"C": "text", "new": [1]}]
    )
    assert np.square(a - b).sum() < 0.05 < np.square(a - c).sum() == pytest.approx(1.0)
    assert np.isfinite(other).all()
    assert not encoder.encode("unknown", [{"x": 1}]).any()


def test_candidates_outside_the_pool_are_read_through_their_neighbours() -> None:
    pool = CandidatePool([("knn", {"k": k}) for k in (1, 3, 10, 30)] + [("tree", {})])
    new = [Candidate("knn", {"k": 3.0}), Candidate("knn", {"k": 4}), Candidate("other", {"z": 1}), Candidate("tree")]
    view = pool.view(new, np.ones(5, dtype=bool))
    assert view.member.tolist() == [1, -1, -1, 4]
    ((at, known, weights),) = view.blocks
    assert at.tolist() == [1]
    assert known.tolist() == [0, 1, 2, 3]
    assert weights.argmax() == 1
    assert view.family[2] == 2
