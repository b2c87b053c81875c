"""Eligibility, score and order."""

import math
import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from app.routing.ranking import Rejection, ScoreParts, UtilizationRow, rank

RATIO = st.none() | st.floats(0, 2)
ROWS = st.lists(st.builds(
    UtilizationRow, name=st.sampled_from(["a", "b-TEE", "c", "d-TEE", "[private chute]"]),
    active_instance_count=st.integers(0, 50), utilization_current=RATIO, utilization_5m=RATIO,
    utilization_15m=RATIO, utilization_1h=RATIO, rate_limit_ratio_5m=RATIO,
    rate_limit_ratio_15m=RATIO, rate_limit_ratio_1h=RATIO, scalable=st.booleans(),
    scale_allowance=st.none() | st.integers(0, 20)), max_size=12)


def score(**row):
    row = UtilizationRow("m", **{"active_instance_count": 10, **row})
    [candidate] = rank([row], frozenset(["m"])).candidates
    return candidate.parts.score


@pytest.mark.parametrize("row, expected", [
    # util = 0.6*0.2 + 0.3*0.4 + 0.1*0.6 = 0.3
    ({"utilization_5m": 0.2, "utilization_15m": 0.4, "utilization_1h": 0.6}, 7.0),
    ({}, 0.0),                                              # nothing known: taken for full
    ({"utilization_current": 0.5}, 5.0),                    # 5m falls back on current
    ({"utilization_5m": 0.2, "utilization_current": 0.9}, 8.0),
    ({"utilization_5m": 0.0, "utilization_15m": 1.0}, 6.0),  # 1h falls back on 15m
    ({"utilization_5m": 0.0, "utilization_1h": 1.0}, 9.0),   # 15m falls back on 5m
    ({"utilization_5m": 1.5}, -5.0),                        # nothing is clamped
    ({"utilization_5m": 0.0, "rate_limit_ratio_5m": 0.1}, 8.0),
    ({"utilization_5m": 0.0, "rate_limit_ratio_15m": 0.4}, 6.0),
    ({"utilization_5m": 0.0, "rate_limit_ratio_5m": 0.0, "rate_limit_ratio_1h": 0.4}, 8.0),
    ({"utilization_5m": 1.0, "scalable": True, "scale_allowance": 4}, 0.2),
    ({"utilization_5m": 1.0, "scalable": True, "scale_allowance": 100}, 0.4),
    ({"utilization_5m": 1.0, "scalable": True}, 0.0),
    ({"utilization_5m": 1.0, "scalable": False, "scale_allowance": 4}, 0.0),
])
def test_the_score_is_the_formula(row, expected):
    """003-R5"""
    assert math.isclose(score(**row), expected, abs_tol=1e-12)


def names(rows, allowlist=("a", "b", "c", "d")):
    return [candidate.name for candidate in rank(rows, frozenset(allowlist)).candidates]


def test_ties_are_broken_by_instances_then_current_then_rate_limits_then_name():
    """003-R6"""
    full = {"utilization_5m": 1.0}
    assert names([UtilizationRow("a", 1, **full), UtilizationRow("b", 2, **full)]) == ["b", "a"]
    assert names([UtilizationRow("a", 1, utilization_current=0.9, **full),
                  UtilizationRow("b", 1, utilization_current=0.2, **full),
                  UtilizationRow("c", 1, **full)]) == ["b", "a", "c"]
    # Equal scores: 15m alone decides rl here, 5m only the tie.
    limited = {"utilization_5m": 0.5, "rate_limit_ratio_15m": 1.0, "rate_limit_ratio_1h": 0.0}
    assert names([UtilizationRow("a", 1, rate_limit_ratio_5m=0.3, **limited),
                  UtilizationRow("b", 1, rate_limit_ratio_5m=0.1, **limited)]) == ["b", "a"]
    assert names([UtilizationRow(n, 1, **full) for n in "dbca"]) == ["a", "b", "c", "d"]


def test_only_running_public_allowed_chutes_are_eligible():
    """003-R4"""
    rows = [UtilizationRow("a", 1), UtilizationRow("b", 0), UtilizationRow("x", 1),
            UtilizationRow("[private chute]", 1), UtilizationRow("t-TEE", 1)]
    assert names(rows, ["a", "b", "[private chute]"]) == ["a"]
    assert names(rows, []) == ["t-TEE"]


@given(ROWS, st.sampled_from([(), ("a", "b-TEE"), ("a", "b-TEE", "c", "d-TEE")]), st.randoms())
def test_the_same_rows_give_the_same_order_however_they_come(rows, allowlist, shuffler):
    """003-R6"""
    expected = rank(rows, frozenset(allowlist))
    shuffled = list(rows)
    shuffler.shuffle(shuffled)
    assert rank(shuffled, frozenset(allowlist)) == expected
    ranked = [candidate.name for candidate in expected.candidates]
    assert len(set(ranked)) == len(ranked)
    scores = [candidate.parts.score for candidate in expected.candidates]
    assert scores == sorted(scores, reverse=True)
    assert {row.name for row in rows} == {*ranked, *expected.rejected}
    assert not set(ranked) & set(expected.rejected)


def test_a_name_given_twice_counts_once_by_its_better_row():
    """003-R6"""
    rows = [UtilizationRow("a", 1, utilization_5m=0.9), UtilizationRow("a", 9, utilization_5m=0.1)]
    random.Random(1).shuffle(rows)
    [candidate] = rank(rows, frozenset("a")).candidates
    assert math.isclose(candidate.parts.score, 8.1)


def test_a_candidate_says_what_its_score_is_made_of():
    """003-R5"""
    row = UtilizationRow("a", 10, utilization_5m=0.5, scalable=True, scale_allowance=2,
                         rate_limit_ratio_5m=0.1)
    [candidate] = rank([row], frozenset("a")).candidates
    assert candidate.parts == ScoreParts(free=5.0, scalable=0.1, rate_limited=2.0)


def test_a_chute_that_no_alias_may_choose_is_named_with_the_reason():
    """003-R4"""
    rows = [UtilizationRow("a", 0), UtilizationRow("b", 1), UtilizationRow("[private chute]", 1),
            UtilizationRow("c", 0), UtilizationRow("c", 1)]
    assert rank(rows, frozenset("ac")).rejected == {
        "a": Rejection.NO_INSTANCE, "b": Rejection.NOT_ALLOWLISTED,
        "[private chute]": Rejection.PRIVATE}


@pytest.mark.parametrize("u5, r5, full", [
    (0.951, 0.051, True), (0.95, 0.9, False), (1.2, 0.05, False), (None, 0.9, False),
    (1.0, None, False)])
def test_a_chute_is_full_that_is_busy_and_refuses_requests(u5, r5, full):
    """005-R15: by the values of five minutes themselves, and nothing that stands in for them."""
    row = UtilizationRow("a", 7, utilization_current=1.0, utilization_5m=u5,
                         rate_limit_ratio_5m=r5, rate_limit_ratio_15m=0.9)
    [candidate] = rank([row], frozenset("a")).candidates
    assert (candidate.full, candidate.instances) == (full, 7)
