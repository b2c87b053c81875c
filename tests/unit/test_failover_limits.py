"""How far failover goes: edge failures in a row, a request's time, a worker's budget."""

import pytest
from hypothesis import given, strategies

from app.routing.failover_limits import Course, Limits, RetryBudget
from app.routing.outcomes import Failure

DOOR, HTML = Failure.UNREACHABLE, Failure.EDGE_503
LOST, FULL, HANGS = Failure.CONNECTION_LOST, Failure.UNAVAILABLE, Failure.HEADER_TIMEOUT


@pytest.mark.parametrize("most, failures, goes_on", [
    (2, [DOOR, DOOR], [True, False]), (2, [DOOR, HTML], [True, False]),
    (2, [HTML, HTML], [True, False]), (2, [DOOR, FULL, DOOR, HTML], [True, True, True, False]),
    (2, [LOST, LOST, LOST], [True, True, True]), (2, [DOOR, LOST, DOOR], [True, True, True]),
    (2, [FULL, HANGS, FULL], [True, True, True]), (1, [DOOR], [False]), (1, [LOST], [True]),
    (3, [DOOR, DOOR, DOOR], [True, True, False]),
])
def test_so_many_edge_failures_in_a_row_end_a_request(most, failures, goes_on):
    """002-R62"""
    course = Course(Limits(edge_failures=most), 0.0, lambda: 0.0)
    assert [course.goes_on_after(failure) for failure in failures] == goes_on


@pytest.mark.parametrize("now, goes_on", [(100.0, True), (159.9, True), (160.0, False)])
def test_no_attempt_begins_so_long_after_the_request_came(now, goes_on):
    """002-R63"""
    course = Course(Limits(budget_s=60.0), 100.0, lambda: now)
    assert course.goes_on_after(FULL) is goes_on


def brown_out(a_second, seconds, failing):
    """Return how many attempts a worker makes for each request where every `failing` one fails."""
    now, attempts, number = [1000.0], 0, 0
    budget = RetryBudget(lambda: now[0])
    for _ in range(a_second * seconds):
        now[0] += 1 / a_second
        budget.count_request()
        for _ in range(8):
            attempts, number = attempts + 1, number + 1
            if number % failing or not budget.take():
                break
    return attempts / (a_second * seconds)


def test_a_hundred_attempts_in_ten_seconds_are_always_free():
    """002-R64"""
    now = [5.0]
    budget = RetryBudget(lambda: now[0])
    assert [budget.take() for _ in range(101)] == [True] * 100 + [False]
    now[0] = 14.8
    assert not budget.take()
    now[0] = 15.1
    assert [budget.take() for _ in range(101)] == [True] * 100 + [False]


def test_a_fifth_of_the_requests_of_the_last_ten_seconds_comes_on_top():
    """002-R64"""
    now = [0.0]
    budget = RetryBudget(lambda: now[0])
    for _ in range(1000):
        budget.count_request()
    assert [budget.take() for _ in range(301)] == [True] * 300 + [False]
    now[0] = 10.1  # what was asked and tried before counts no more
    assert [budget.take() for _ in range(101)] == [True] * 100 + [False]


def test_in_a_brown_out_failover_does_not_become_the_load():
    """002-R64"""
    assert brown_out(400, 60, failing=2) <= 1.25
    assert brown_out(400, 60, failing=1) <= 1.25
    assert brown_out(400, 60, failing=10) == pytest.approx(10 / 9, abs=0.01)  # nothing is denied
    assert brown_out(5, 60, failing=2) == pytest.approx(2, abs=0.01)  # nor where there is room


def test_the_budget_takes_the_same_room_however_long_a_worker_serves():
    """002-R64"""
    now = [0.0]
    budget = RetryBudget(lambda: now[0])
    for _ in range(1000):
        now[0] += 0.5
        budget.count_request()
    assert len(budget._requests._counts) <= 100


@given(strategies.lists(strategies.tuples(
    strategies.floats(0, 3), strategies.integers(0, 40), strategies.integers(0, 60)), max_size=40))
def test_no_ten_seconds_have_more_attempts_beyond_the_first_than_that(steps):
    """002-R64: to a tenth of a second."""
    now, requests, retries = [0.0], [], []
    budget = RetryBudget(lambda: now[0])
    for wait, asked, failed in steps:
        now[0] += wait
        for _ in range(asked):
            budget.count_request()
            requests.append(now[0])
        for _ in range(failed):
            if budget.take():
                retries.append(now[0])
                mine = sum(now[0] - 9.9 <= at for at in retries)
                assert mine <= 0.2 * sum(now[0] - 10 <= at for at in requests) + 100
