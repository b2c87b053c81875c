"""Before the first byte: what each failure leads to, with and without another candidate."""

from tests.support.router import Router
from tests.support.upstream import (Upstream, after_a_second, close_at_once, complete,
                                    headers_then_stall, raw, reset_at_once)
from tests.wire.conftest import SHORT

OK = b"HTTP/1.1 200 OK\r\n"


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
    name = model()
    upstream.on(name, after_a_second)
    assert router.chat(name, stream=False).status == 200
    assert router.chat(name, stream=True).error["code"] == "upstream_header_timeout"


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
