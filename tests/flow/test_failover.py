"""How far failover goes, with a plain object for a transport and a clock of the test's own."""

import pytest

from app import metrics
from app.errors import ApiError
from app.routing.failover_limits import Limits, RetryBudget
from app.routing.outcomes import Blame, Failure, UpstreamFailed
from app.upstream.failover import Attempts
from app.upstream.waiting import Waiting
from tests.flow.test_app import OK, Answer, Transport, prepared, watching

UNREACHABLE = UpstreamFailed(Failure.UNREACHABLE, "")
LOST = UpstreamFailed(Failure.CONNECTION_LOST, "")
CAPACITY = b'{"detail":"Infrastructure is at maximum capacity, try again later"}'


class Clock:
    """Says what it is told."""

    def __init__(self):
        self.now = 100.0

    def __call__(self):
        return self.now


def no_more():
    """Return a budget without anything left."""
    budget = RetryBudget(lambda: 0.0)
    while budget.take():
        pass
    return budget


def run(answers, *, limits=Limits(), request=None, observers=(), **how):
    """Try `answers` in order; return what was sent, and the answer."""
    names = [chr(ord("a") + number) for number in range(len(answers))]
    transport = Transport(**dict(zip(names, answers)))
    attempts = Attempts(transport, 1.0, limits, **how)
    try:
        answer = attempts.run(tuple(names), request or prepared(), observers)
    except ApiError as error:
        answer = error
    return [model for model, *_ in transport.sent], answer


def html():
    return Answer(status=503, fields=[("Content-Type", "text/html")])


@pytest.mark.parametrize("answers, tried", [
    ([UNREACHABLE] * 4, 2), ([html(), html(), html()], 2), ([UNREACHABLE, html(), html()], 2),
    ([LOST] * 4, 4), ([UNREACHABLE, Answer(status=503), UNREACHABLE, UNREACHABLE, LOST], 4)])
def test_the_second_edge_failure_in_a_row_ends_the_request_with_its_answer(answers, tried):
    """002-R62"""
    sent, answer = run(answers)
    assert len(sent) == tried
    ending = answers[tried - 1]
    if isinstance(ending, Answer):
        assert answer.response is ending and not ending.closed
        assert answer.failure is Failure.EDGE_503
    else:
        assert (answer.status, answer.code) == (502, "upstream_connect_error")
    for answer in answers[:tried - 1]:
        assert isinstance(answer, UpstreamFailed) or answer.closed


@pytest.mark.parametrize("most, passed, tried", [
    (1, "", "a"), (1, "a", "b"), (2, "a", "bc"), (2, "ab", "cd"), (2, "c", "ab"), (3, "c", "abd"),
    (4, "abc", "d"), (1, "abcd", "d"), (9, "bd", "acd")])
@pytest.mark.parametrize("reason", ["full", "cooling"])
def test_a_candidate_that_is_passed_over_is_no_attempt(reason, most, passed, tried):
    """002-R11, 003-R38, 007-R22"""
    waiting, asked, told = Waiting(1), [], []
    # The last candidate is never passed over; where it is full the answer is another.
    for model in passed.replace("d", "") if reason == "full" else "":
        waiting.enter(model)

    def may_try(model):
        asked.append(model)
        return reason == "full" or model not in passed

    answers = {name: Answer(status=503) for name in "abcd"}
    transport = Transport(**answers)
    committed = Attempts(transport, 1.0, Limits(most), waiting=waiting).run(
        tuple("abcd"), prepared(), (), may_try, (lambda *what: told.append(what),))
    assert "".join(model for model, *_ in transport.sent) == tried
    assert committed.response is answers[tried[-1]] and not committed.response.closed
    behind = "abcd"[:"abcd".index(tried[-1])]
    assert told == [(name, reason) for name in behind if name not in tried]
    # Each that is tried has been asked for, the last one too: it may be a probe.
    assert set(tried) <= set(asked)


def test_no_attempt_begins_after_the_requests_time_and_the_failure_at_hand_is_the_answer():
    """002-R63: the time runs from when the request came, not from its first attempt."""
    clock = Clock()

    class Slow(Answer):
        def peek(self, max_bytes):
            clock.now += 3
            return b""

    answers = [Slow(status=503), Slow(status=503), Answer(**OK)]
    limits = Limits(budget_s=10.0)
    sent, answer = run(answers, limits=limits, request=prepared(came_at=93.0), clock=clock)
    assert (sent, answer.response) == (["a"], answers[0]) and not answers[0].closed
    sent, answer = run(answers, limits=limits, request=prepared(came_at=102.9), clock=clock)
    assert sent == ["a", "b", "c"] and answers[1].closed
    # A body that took its time does not cost the first attempt.
    sent, answer = run([UNREACHABLE, Answer(**OK)], limits=limits,
                       request=prepared(came_at=0.0), clock=clock)
    assert (sent, answer.code) == (["a"], "upstream_connect_error")


@pytest.mark.parametrize("answers, passed_on, closed", [
    ([Answer(status=503), Answer(**OK)], 503, False), ([html(), Answer(**OK)], 503, False),
    ([UNREACHABLE, Answer(**OK)], 502, None),
    ([UpstreamFailed(Failure.HEADER_TIMEOUT, ""), Answer(**OK)], 504, None),
    ([Answer(first_error=UpstreamFailed(Failure.FIRST_BODY_BYTE_ERROR, "")), Answer(**OK)], 502,
     True)])
def test_without_a_budget_the_failure_at_hand_is_the_answer_and_is_counted(
        answers, passed_on, closed):
    """002-R64, 002-R12"""
    metrics.write_counts()
    counted = metrics.failover_budget_exhausted_total._value.get()
    sent, answer = run(answers, retries=no_more())
    metrics.write_counts()
    assert metrics.failover_budget_exhausted_total._value.get() == counted + 1
    assert sent == ["a"]
    status = answer.status if isinstance(answer, ApiError) else answer.response.status
    assert status == passed_on
    assert closed is None or bool(answers[0].closed) is closed


def test_what_ends_a_request_anyhow_takes_nothing_of_the_budget():
    """002-R64"""
    metrics.write_counts()
    counted = metrics.failover_budget_exhausted_total._value.get()
    for answers in ([Answer(status=503)], [UNREACHABLE], [Answer(**OK)], [Answer(status=500)]):
        run(answers, retries=no_more())
    budget = RetryBudget(lambda: 0.0)
    run([Answer(status=503)] * 2 + [UNREACHABLE] * 3, retries=budget)  # a third edge failure: no
    left = 0
    while budget.take():
        left += 1
    metrics.write_counts()
    assert metrics.failover_budget_exhausted_total._value.get() == counted
    assert left == 100 - 3


def test_each_request_adds_to_the_budget():
    """002-R64"""
    budget, left = RetryBudget(lambda: 0.0), 0
    for _ in range(50):
        run([Answer(**OK)], retries=budget)
    while budget.take():
        left += 1
    assert left == 100 + 10


@pytest.mark.parametrize("retried, budget, tried, blame", [
    (False, None, "a", Blame.NOBODY), (True, None, "ab", Blame.SOFTLY),
    (True, no_more, "a", Blame.SOFTLY)])
def test_a_capacity_429_allows_the_next_candidate_where_that_is_wanted(
        retried, budget, tried, blame):
    """002-R65"""
    told, full = [], Answer(status=429, body=CAPACITY)
    sent, answer = run([full, Answer(**OK)], on_capacity_429=retried, observers=[watching(told)],
                       retries=budget() if budget else RetryBudget(lambda: 0.0))
    assert "".join(sent) == tried and told[0].blame is blame
    if tried == "a":
        assert (answer.response, answer.at_capacity, answer.first) == (full, True, CAPACITY)
        assert not full.closed


@pytest.mark.parametrize("name, more", [
    ("coded", {"fields": [("Content-Encoding", "gzip")]}), ("another", {"body": b"slow down"}),
    ("long", {"body": CAPACITY[:-2] + b"x" * 65536 + b'"}'})])
def test_another_429_is_passed_on(name, more):
    """002-R65, 002-R12"""
    sent, answer = run([Answer(status=429, **{"body": CAPACITY, **more}), Answer(**OK)],
                       on_capacity_429=True)
    assert sent == ["a"] and (answer.failure, answer.at_capacity) == (None, False)


@pytest.mark.parametrize("size, blame", [(262_144, Blame.MODEL), (262_145, Blame.NOBODY)])
@pytest.mark.parametrize("failing", [
    UpstreamFailed(Failure.HEADER_TIMEOUT, ""),
    Answer(first_error=UpstreamFailed(Failure.FIRST_BODY_BYTE_TIMEOUT, ""))])
def test_a_timeout_on_a_large_body_blames_nobody(size, blame, failing):
    """002-R60"""
    told = []
    run([failing], request=prepared(body_bytes=size), observers=[watching(told)])
    assert [attempt.blame for attempt in told] == [blame]
