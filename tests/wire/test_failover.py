"""Before the first byte: what each failure leads to, with and without another candidate."""

import pytest

from tests.support.router import Router, free_port
from tests.support.upstream import (Upstream, close_at_once, complete, drip, headers_then_end,
                                    headers_then_stall, pieces, raw, reset_at_once, stall)
from tests.wire.conftest import SHORT

OK = b"HTTP/1.1 200 OK\r\n"
CONNECT = ("upstream_connect_error", 502)
HEADER_TIMEOUT = ("upstream_header_timeout", 504)
FIRST_TIMEOUT = ("upstream_first_body_byte_timeout", 504)
FIRST_ERROR = ("upstream_first_body_byte_error", 502)


def headers_then(ending, *fields):
    """Send the headers of a success and then end the connection."""
    def script(exchange):
        exchange.head(200, *fields)
        getattr(exchange, ending)()
    return script


FAILURES = {
    "reset before headers": (reset_at_once, CONNECT),
    "close before headers": (close_at_once, CONNECT),
    "close within headers": (raw(OK + b"Content-Le", "close"), CONNECT),
    "reset within headers": (raw(OK + b"Content-Le", "reset"), CONNECT),
    "no HTTP": (raw(b"SSH-2.0-OpenSSH_9.2\r\n\r\n", "close"), CONNECT),
    "HTTP/2 preface": (raw(b"HTTP/2 200\r\n\r\n", "close"), CONNECT),
    "endless head": (raw(OK + b"X: " + b"y" * 70000, "until_closed"), CONNECT),
    "field without colon": (raw(OK + b"what\r\nContent-Length: 2\r\n\r\nok"), CONNECT),
    "folded field": (raw(OK + b"A: b\r\n c\r\nContent-Length: 2\r\n\r\nok"), CONNECT),
    "control in field": (raw(OK + b"A: \x00\r\nContent-Length: 2\r\n\r\nok"), CONNECT),
    "bare CR in field": (raw(OK + b"A: b\rX: c\r\nContent-Length: 2\r\n\r\nok"), CONNECT),
    "length not a number": (raw(OK + b"Content-Length: 2x\r\n\r\nok"), CONNECT),
    "negative length": (raw(OK + b"Content-Length: -2\r\n\r\nok"), CONNECT),
    "two lengths": (raw(OK + b"Content-Length: 2\r\nContent-Length: 3\r\n\r\nok"), CONNECT),
    "length list": (raw(OK + b"Content-Length: 2, 2\r\n\r\nok"), CONNECT),
    "length and chunked": (raw(
        OK + b"Content-Length: 2\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nok\r\n0\r\n\r\n"),
        CONNECT),
    "unknown coding": (raw(OK + b"Transfer-Encoding: gzip, chunked\r\n\r\n0\r\n\r\n"), CONNECT),
    "repeated coding": (raw(OK + b"Transfer-Encoding: chunked\r\nTransfer-Encoding: chunked\r\n"
                            b"\r\n2\r\nok\r\n0\r\n\r\n"), CONNECT),
    "chunked in HTTP/1.0": (raw(b"HTTP/1.0 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n"
                                b"2\r\nok\r\n0\r\n\r\n"), CONNECT),
    "protocol switch": (raw(b"HTTP/1.1 101 Go\r\nUpgrade: x\r\n\r\n", "until_closed"), CONNECT),
    "no headers in time": (stall, HEADER_TIMEOUT),
    "dripped headers": (drip(OK + b"X-Slow: " + b"y" * 500, 0.05), HEADER_TIMEOUT),
    "only interim": (raw(b"HTTP/1.1 103 Early Hints\r\nLink: </a>\r\n\r\n", "until_closed"),
                     HEADER_TIMEOUT),
    "no body byte in time": (headers_then_stall, FIRST_TIMEOUT),
    "dripped chunk size": (drip(OK + b"Transfer-Encoding: chunked\r\n\r\n" + b"0" * 12, 0.1),
                           HEADER_TIMEOUT),
    "chunked, no chunk": (headers_then_end, FIRST_ERROR),
    "length 0": (complete(b""), FIRST_ERROR),
    "204": (raw(b"HTTP/1.1 204 No Content\r\n\r\n"), FIRST_ERROR),
    "until close, no byte": (complete(b"", "close"), FIRST_ERROR),
    "length, reset before the body": (headers_then("reset", ("Content-Length", 5)), FIRST_ERROR),
    "length, closed before the body": (headers_then("close", ("Content-Length", 5)), FIRST_ERROR),
    "chunked, closed before a chunk": (
        headers_then("close", ("Transfer-Encoding", "chunked")), FIRST_ERROR),
    "bad first chunk": (raw(OK + b"Transfer-Encoding: chunked\r\n\r\nxyz\r\n"), FIRST_ERROR),
}
# A head that drips slower than it ends: the deadline that counts is the header deadline.
FAILURES["dripped chunk size"] = (
    lambda exchange: (exchange.head(200, ("Transfer-Encoding", "chunked")),
                      drip(b"0" * 16 + b";" + b"x" * 500, 0.05)(exchange)), FIRST_TIMEOUT)


@pytest.mark.parametrize("failure", FAILURES)
def test_a_failure_before_the_first_byte_leads_to_the_next_candidate(
        router, upstream, model, fresh_connections, failure):
    """002-R11, 002-R12, 006-W2, 006-W5, 006-W8"""
    script, (outcome, _) = FAILURES[failure]
    bad, good, spare = model(), model(), model()
    upstream.on(bad, script)
    upstream.on(good, pieces([b"data: good\n\n"]))
    answer = router.chat(f"{bad},{good},{spare}", headers={"X-Request-Id": bad})
    assert (answer.status, answer.body, answer.ended) == (200, b"data: good\n\n", "complete")
    assert answer.value("x-chutes-autopilot-selected") == good
    assert upstream.seen(bad)[0].closed.wait(5)
    assert len(upstream.seen(bad)) == 1 and not upstream.seen(spare)
    attempts = router.record(bad)["attempts"]
    assert [attempt["outcome"] for attempt in attempts] == [outcome, "200"]


@pytest.mark.parametrize("failure", FAILURES)
def test_a_failure_of_the_last_candidate_is_the_answer(
        router, upstream, model, fresh_connections, failure):
    """002-R12, 002-R21"""
    script, (code, status) = FAILURES[failure]
    name = model()
    upstream.on(name, script)
    answer = router.chat(name)
    assert answer.status == status
    assert answer.error == {"message": answer.error["message"], "type": "server_error",
                            "param": None, "code": code}
    assert len(upstream.seen(name)) == 1


def test_a_503_leads_to_the_next_candidate_and_the_last_ones_is_passed_through(
        router, upstream, model):
    """002-R12"""
    first, second = model(), model()
    upstream.on(first, complete(b'{"detail":"no instance"}', status=503))
    assert router.chat(f"{first},{second}").value("x-chutes-autopilot-selected") == second
    upstream.on(second, complete(b'{"detail":"none here either"}', status=503))
    answer = router.chat(f"{first},{second}", headers={"Authorization": f"Bearer {first}"})
    assert (answer.status, answer.body) == (503, b'{"detail":"none here either"}')
    assert answer.value("x-chutes-autopilot-selected") == second


def test_429_is_never_retried(router, upstream, model):
    """002-R12"""
    first, second = model(), model()
    upstream.on(first, complete(b"slow down", status=429))
    assert router.chat(f"{first},{second}").status == 429
    assert not upstream.seen(second)


def test_an_upstream_that_refuses_connections_is_a_connect_error(upstream):
    """002-R12"""
    with Router(upstream.url, BACKEND_BASE_URL=f"http://127.0.0.1:{free_port()}") as router:
        answer = router.chat("northwind/Cedar-1B", headers={"X-Request-Id": "refused"})
        assert (answer.status, answer.error["code"]) == (502, "upstream_connect_error")
        attempts = router.record("refused")["attempts"]
        assert [a["detail"] for a in attempts] == ["NewConnectionError ConnectionRefusedError"]


def test_a_name_that_does_not_resolve_is_a_connect_error(upstream):
    """002-R12"""
    with Router(upstream.url, BACKEND_BASE_URL="http://backend.invalid") as router:
        assert router.chat("northwind/Cedar-1B").error["code"] == "upstream_connect_error"


def test_a_tls_failure_is_a_connect_error(upstream):
    """002-R12"""
    backend = upstream.url.replace("http:", "https:")
    with Router(upstream.url, BACKEND_BASE_URL=backend, **SHORT) as router:
        assert router.chat("northwind/Cedar-1B").error["code"] == "upstream_connect_error"


def test_no_more_than_max_attempts_candidates_are_tried(upstream, model):
    """002-R11"""
    names = [model() for _ in range(4)]
    for name in names:
        upstream.on(name, reset_at_once)
    with Router(upstream.url, MAX_ATTEMPTS="2", **SHORT) as router:
        answer = router.chat(",".join(names))
    assert answer.error["code"] == "upstream_connect_error"
    assert [len(upstream.seen(name)) for name in names] == [1, 1, 0, 0]


def test_a_non_streaming_request_may_wait_longer_for_its_headers(router, upstream, model):
    """002-R13"""
    def slow(exchange):
        exchange.sock.settimeout(1.0)
        try:
            exchange.sock.recv(1)
        except TimeoutError:
            exchange.sock.settimeout(None)
            complete(b"{}")(exchange)

    name = model()
    upstream.on(name, slow)
    assert router.chat(name, stream=False).status == 200
    assert router.chat(name, stream=True).error["code"] == "upstream_header_timeout"


@pytest.mark.parametrize("ending", ["close", "reset"])
def test_a_connection_gone_stale_in_the_pool_is_no_failed_candidate(
        router, upstream, model, ending):
    """002-R14, 006-W6"""
    def answer_then_end_on_the_next_request(exchange):
        if exchange.turn == 1:
            complete(b"{}")(exchange)
        else:
            getattr(exchange, ending)()

    name = model()
    upstream.on(name, answer_then_end_on_the_next_request)
    upstream.drop_idle()
    assert router.chat(name).status == 200
    answer = router.chat(name, headers={"X-Request-Id": name})
    assert answer.status == 200
    assert [exchange.turn for exchange in upstream.seen(name)] == [1, 2, 1]
    record = router.record(name)
    assert [attempt["outcome"] for attempt in record["attempts"]] == ["200"]
    assert record["resent"] is True


def test_garbage_on_a_reused_connection_is_not_sent_again(router, upstream, model):
    """002-R14"""
    def good_then_garbage(exchange):
        complete(b"{}")(exchange) if exchange.turn == 1 else raw(b"?\r\n\r\n", "close")(exchange)

    name = model()
    upstream.on(name, good_then_garbage)
    with Router(upstream.url, **SHORT) as alone:
        assert alone.chat(name).status == 200
        assert alone.chat(name).error["code"] == "upstream_connect_error"
    assert len(upstream.seen(name)) == 2


def test_the_status_line_is_not_sent_before_the_first_body_byte_is_here(router, upstream, model):
    """002-R15"""
    name, spare = model(), model()

    def headers_then_reset_after_a_while(exchange):
        exchange.head(200, ("Transfer-Encoding", "chunked"), ("X-Of", "the failed one"))
        exchange.reset()

    upstream.on(name, headers_then_reset_after_a_while)
    answer = router.chat(f"{name},{spare}")
    assert answer.value("X-Of") is None
    assert answer.value("x-chutes-autopilot-selected") == spare


def test_interim_responses_are_skipped_and_given_to_nobody(router, upstream, model):
    """006-W7"""
    name = model()
    upstream.on(name, raw(
        b"HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 102 Processing\r\n\r\n"
        b"HTTP/1.1 103 Early Hints\r\nLink: </of-another>\r\nContent-Length: 4\r\n\r\n"
        + OK + b"Content-Length: 5\r\nX-Nonce: mine\r\n\r\nfinal"))
    for _ in range(3):
        answer = router.chat(name)
        assert (answer.status, answer.body, answer.value("X-Nonce")) == (200, b"final", "mine")
        assert answer.value("Link") is None


def test_upstreams_are_told_apart_by_outcome_even_when_all_fail(router, upstream, model):
    """002-R12"""
    names = [model() for _ in range(3)]
    for name, script in zip(names, (reset_at_once, headers_then_stall, close_at_once)):
        upstream.on(name, script)
    answer = router.chat(",".join(names), headers={"X-Request-Id": names[0]})
    assert answer.error["code"] == "upstream_connect_error"
    record = router.record(names[0])
    assert [a["outcome"] for a in record["attempts"]] == [
        "upstream_connect_error", "upstream_first_body_byte_timeout", "upstream_connect_error"]
    assert (record["ended"], record["status"], record["code"]) == (
        "refused", 502, "upstream_connect_error")


def test_an_upstream_of_its_own_can_be_scripted_beside():
    """002-R4"""
    with Upstream() as upstream, Router(upstream.url) as router:
        assert router.chat("m").status == 200
