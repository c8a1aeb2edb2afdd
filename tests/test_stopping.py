"""When a trial or a whole search is given up: against the noise between candidates, not that of a score."""

import math

import numpy as np
import pytest

from autometa.family import Candidate
from autometa.metrics import METRICS
from autometa.records import Evaluation, Status
from autometa.tuning.stopping import noise, reason_to_end, rival

HARD_AND_EASY = np.array([-9.0, -1.0, -5.0, -3.0])
WIGGLE = np.array([0.1, -0.1, 0.1, -0.1])


def measured(number: int, scores, family: str = "linear") -> Evaluation:
    return Evaluation("x", Candidate(family, {"number": number}), Status.OK, {"rmse": tuple(scores)}, (0.1,) * 4)


def search_of(n: int, gain: float) -> list[Evaluation]:
    """Candidates of which each later one is better by ``gain``, on folds that differ much."""
    return [measured(i, HARD_AND_EASY + i * gain + (WIGGLE if i % 2 else -WIGGLE)) for i in range(n)]


def test_noise_is_that_of_differences():
    good = [measured(0, HARD_AND_EASY), *(measured(i, HARD_AND_EASY - 0.5) for i in range(1, 4))]
    assert noise(good, "rmse") == pytest.approx(0.0)
    assert noise(good[:2], "rmse") == pytest.approx(np.std(HARD_AND_EASY))  # nothing to compare with
    other = [measured(0, HARD_AND_EASY), measured(1, HARD_AND_EASY + WIGGLE), measured(2, HARD_AND_EASY - WIGGLE)]
    assert noise(other, "rmse") == pytest.approx(np.std(WIGGLE, ddof=1))


def test_a_rival_is_the_best_and_wants_the_models_of_good_candidates():
    assert rival([], "rmse", "linear") is None
    assert rival([measured(0, [math.nan] * 4)], "rmse", "linear") is None
    assert rival([measured(i, HARD_AND_EASY) for i in range(3)], "rmse", "linear") is None  # no noise, no verdict
    evaluations = search_of(20, 0.1)
    best = rival(evaluations, "rmse", "linear")
    assert best is not None
    assert best.scores == evaluations[-1].scores["rmse"]
    assert best.keep_from == pytest.approx(evaluations[8].score("rmse"))
    assert rival(evaluations, "rmse", "knn").keep_from == -math.inf
    assert rival(evaluations, "rmse", "linear", keeps_all=True).keep_from == -math.inf


@pytest.mark.parametrize(
    ("n_trials", "gain", "nearby", "anywhere", "ends"),
    [
        (10, 0.0, 0.0, 0.0, False),  # too few to know
        (40, 0.0, 0.0, 0.0, True),
        (40, 0.1, 0.0, 0.0, False),  # still getting better
        (40, 0.0, 1.0, 0.0, False),
        (40, 0.0, 0.0, 1.0, False),  # little from one more trial, but not from all that could be tried
    ],
)
def test_a_search_ends_where_nothing_promises_more_than_the_noise(n_trials, gain, nearby, anywhere, ends):
    reason = reason_to_end(
        search_of(n_trials, gain), METRICS["rmse"], lambda *, wide=False: anywhere if wide else nearby
    )
    assert reason.startswith("Stopped early: the expected gain" if ends else "")
    assert bool(reason) == ends


def test_a_search_ends_where_nothing_can_be_better():
    evaluations = [measured(i, [0.0] * 4) for i in range(20)]
    assert "rmse cannot be better than 0" in reason_to_end(evaluations, METRICS["rmse"], lambda **_: 1.0)
