"""The outcome table, row by row."""

import pytest

from app.errors import API_ERRORS
from app.routing.outcomes import (LARGE_BODY, Attempt, Blame, Failure, UpstreamFailed, blame_for,
                                  refusal, unavailable)

PASSED_ON = None
ROWS = [
    # failure, reason, blame, counted with edge failures in a row, status of the last one's answer
    (Failure.UNREACHABLE, "upstream_connect_error", Blame.EDGE, True, 502),
    (Failure.CONNECTION_LOST, "upstream_connect_error", Blame.EDGE, False, 502),
    (Failure.HEADER_TIMEOUT, "upstream_header_timeout", Blame.MODEL, False, 504),
    (Failure.UNAVAILABLE, "upstream_503", Blame.MODEL, False, PASSED_ON),
    (Failure.EDGE_503, "edge_503", Blame.EDGE, True, PASSED_ON),
    (Failure.MODEL_NOT_FOUND, "upstream_404", Blame.MODEL, False, PASSED_ON),
    (Failure.FIRST_BODY_BYTE_TIMEOUT, "upstream_first_body_byte_timeout", Blame.MODEL, False, 504),
    (Failure.FIRST_BODY_BYTE_ERROR, "upstream_first_body_byte_error", Blame.MODEL, False, 502),
    (Failure.AT_CAPACITY, "upstream_429_capacity", Blame.SOFTLY, False, PASSED_ON),
]


@pytest.mark.parametrize("failure, reason, blame, counted, status", ROWS)
def test_each_failure_has_its_blame_and_its_answer(failure, reason, blame, counted, status):
    """002-R12, 002-R60"""
    assert (failure.reason, failure.blame, failure.counted) == (reason, blame, counted)
    if status is PASSED_ON:
        assert failure.message is None
    else:
        assert API_ERRORS[failure.reason][0] == status and failure.message
    assert blame_for(failure, LARGE_BODY) is blame


def test_the_table_has_every_failure():
    """002-R12"""
    assert {row[0] for row in ROWS} == set(Failure)


@pytest.mark.parametrize("failure", Failure)
def test_a_timeout_on_a_large_body_blames_nobody(failure):
    """002-R60"""
    is_timeout = failure.reason.endswith("_timeout")
    assert blame_for(failure, LARGE_BODY + 1) is (Blame.NOBODY if is_timeout else failure.blame)


@pytest.mark.parametrize("status", [200, 429, 404, 500, None])
def test_what_is_no_failure_blames_nobody(status):
    """002-R60"""
    assert blame_for(None, 1) is Blame.NOBODY
    attempt = Attempt("a", None, Blame.NOBODY, status, "", 1.0)
    assert attempt.is_success is (status == 200)
    assert attempt.outcome == ("abandoned" if status is None else str(status))


@pytest.mark.parametrize("failure", Failure)
def test_a_failed_attempt_is_no_success_and_is_named_by_its_reason(failure):
    """001-R8"""
    attempt = Attempt("a", failure, failure.blame, 200, "", 1.0)
    assert (attempt.is_success, attempt.outcome) == (False, failure.reason)
    assert str(UpstreamFailed(failure, "few words")) == f"{failure.reason} (few words)"


@pytest.mark.parametrize("content_type, body, is_html", [
    ("text/html", b"", True), ("Text/HTML; charset=utf-8", b"{}", True), ("", b"<html>", True),
    ("", b"<", True), ("", b"", False), ("", b'{"detail":"<"}', False), ("", b" <html>", False),
    ("text/htmlx", b"<", False), ("application/json", b"<html>", False),
    ("text/plain", b"<html>", False)])
def test_a_503_in_html_is_the_edges(content_type, body, is_html):
    """002-R61"""
    assert unavailable(content_type, body) is (
        Failure.EDGE_503 if is_html else Failure.UNAVAILABLE)


@pytest.mark.parametrize("status, body, failure", [
    (404, b'{"detail":"model not found: x"}', Failure.MODEL_NOT_FOUND),
    (404, b'{"detail":"Infrastructure is at maximum capacity"}', None),
    (429, b'{"detail":"Infrastructure is at maximum capacity, try again later"}',
     Failure.AT_CAPACITY),
    (429, b'{"detail":"model not found"}', None),
    (429, b'{"detail":"Too many requests. Infrastructure is at maximum capacity"}', None),
    (429, b'{"detail":{"message":"Infrastructure is at maximum capacity"}}', None),
    (429, b'["Infrastructure is at maximum capacity"]', None),
    (429, b"Infrastructure is at maximum capacity", None), (429, b"", None),
    (404, b"[" * 100_000, None),
    (404, b'{"detail":"model not found \xff"}', None), (404, b'{"\xff":1}', None),
    (404, b"\xff", None), (404, b'{"detail":1}', None), (404, b"[", None), (404, b"", None),
])
def test_a_refusal_is_told_by_how_its_detail_begins(status, body, failure):
    """002-R12"""
    assert refusal(status, body) is failure
