"""Which candidates keep their models."""

from __future__ import annotations

import math

import pytest

from autometa.family import Candidate
from autometa.records import Evaluation, Status
from autometa.tuning.library import N_BEST, N_OF_FAMILY, entry_score, library


def evaluations(family, scores, *, status=Status.OK):
    return [
        Evaluation("f", Candidate(family, {"n": i}), status, scores={"r2": (score,)}) for i, score in enumerate(scores)
    ]


@pytest.fixture
def found():
    boosted = evaluations("lightgbm", [0.9 - 0.001 * i for i in range(20)])
    return [*evaluations("linear", [0.1, 0.2, 0.3, 0.4]), *boosted, *evaluations("knn", [0.5])]


def test_the_best_of_all_and_of_each_family_are_kept(found):
    kept = library(found, "r2")
    scores = [e.score("r2") for e in kept]
    assert scores == sorted(scores, reverse=True)
    families = [e.candidate.family for e in kept]
    assert {name: families.count(name) for name in set(families)} == {
        "lightgbm": N_BEST,
        "linear": N_OF_FAMILY,
        "knn": 1,
    }
    assert 0.1 not in scores


def test_what_did_not_end_well_is_not(found):
    assert library(evaluations("svm", [1.0], status=Status.TIMEOUT), "r2") == []


@pytest.mark.parametrize("family", ["lightgbm", "linear", "knn", "svm"])
@pytest.mark.parametrize("score", [0.05, 0.25, 0.6, 0.895, 0.95])
def test_the_entry_score_is_where_the_library_begins(found, family, score):
    newcomer = Evaluation("f", Candidate(family, {"n": 99}), Status.OK, scores={"r2": (score,)})
    enters = newcomer in library([*found, newcomer], "r2")
    assert enters == (score >= entry_score(found, "r2", family))


def test_there_is_room_at_first():
    assert entry_score(evaluations("linear", [0.1] * 5), "r2", "linear") == -math.inf


def test_whoever_left_never_comes_back(found):
    gone = set()
    for n in range(1, len(found) + 1):
        kept = set(map(id, library(found[:n], "r2")))
        assert not kept & gone
        gone |= set(map(id, found[:n])) - kept
