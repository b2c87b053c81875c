"""How far failover goes, and what it tells the client then."""

import contextlib
import http.client
import itertools
import json
import socket
import threading
import time

import pytest

from tests.support.feeds import models_feed, utilization_row
from tests.support.router import DEADLINE_S, Router, free_port, read_to_end, read_until
from tests.support.upstream import (Upstream, after_a_second, complete, reset_at_once, stall,
                                    unavailable)
from tests.wire.conftest import LISTED, SHORT

HTML = complete(b"<html>", status=503, fields=[("Content-Type", "text/html")])
FULL = b'{"detail":"Infrastructure is at maximum capacity, try again later"}'
NOT_FOUND = complete(b'{"detail":"model not found: x"}', status=404)


def outcomes(router, request_id):
    return [attempt["outcome"] for attempt in router.record(request_id)["attempts"]]


def test_while_the_upstream_cannot_be_reached_two_candidates_are_tried(upstream, model):
    """002-R62"""
    with Router(upstream.url, BACKEND_BASE_URL=f"http://127.0.0.1:{free_port()}",
                **SHORT) as router:
        router.wait_until_fed()
        answer = router.chat(",".join(model() for _ in range(5)), headers={"X-Request-Id": "door"})
        assert answer.error["code"] == "upstream_connect_error"
        assert outcomes(router, "door") == ["upstream_connect_error"] * 2
        assert router.metrics_at_rest()["edge_failures_total", "unreachable"] == 2


def test_a_proxy_that_says_503_in_html_is_asked_twice(router, upstream, model):
    """002-R61, 002-R62"""
    names = [model() for _ in range(4)]
    for name in names:
        upstream.on(name, HTML)
    answer = router.chat(",".join(names))
    assert (answer.status, answer.body) == (503, b"<html>")
    assert [len(upstream.seen(name)) for name in names] == [1, 1, 0, 0]


def test_lost_connections_are_not_counted_and_a_variable_says_how_many_of_the_others_are(
        upstream, model):
    """002-R62"""
    lost, html = [model() for _ in range(4)], [model() for _ in range(4)]
    with Router(upstream.url, MAX_EDGE_FAILURES="3", **SHORT) as router:
        for name in lost:
            upstream.on(name, reset_at_once)
        router.chat(",".join(lost))
        assert [len(upstream.seen(name)) for name in lost] == [1, 1, 1, 1]
        for name in html:
            upstream.on(name, HTML)
        router.chat(",".join(html))
        assert [len(upstream.seen(name)) for name in html] == [1, 1, 1, 0]


def test_a_503_that_stays_silent_does_not_keep_the_next_candidate_waiting(upstream, model):
    """002-R61"""
    silent, good = model(), model()
    upstream.on(silent, lambda exchange: (exchange.head(503), exchange.until_closed(60)))
    with Router(upstream.url, **SHORT | {"UPSTREAM_IDLE_TIMEOUT_MS": "3600000"}) as router:
        assert router.chat(f"{silent},{good}").value("x-chutes-autopilot-selected") == good


@pytest.mark.parametrize("status, fields, part", [
    (404, [("Content-Type", "application/json")], b'{"detail":"model not'),
    (429, [("Content-Type", "application/json")], b'{"detail":"Infra'),
    (400, [("Content-Type", "application/json")], b'{"detail":'),
    (503, [], b""), (503, [("Content-Type", "application/json")], b""), (418, [], b"")])
def test_an_error_whose_body_stays_away_is_passed_on_as_it_came(
        upstream, model, status, fields, part):
    """002-R61: its head is here long before the limit on silence, and the rest when it comes."""
    name, go_on = model(), threading.Event()

    def script(exchange):
        exchange.head(status, *fields, ("Content-Length", len(part) + 4))
        exchange.send(part)
        go_on.wait(DEADLINE_S)
        # Another candidate may have had its turn.
        with contextlib.suppress(OSError):
            exchange.send(b"rest")

    upstream.on(name, script)
    with Router(upstream.url, **SHORT | {"UPSTREAM_IDLE_TIMEOUT_MS": "3600000"}) as router:
        for named in (name, f"{name},{name}:latency"):
            go_on.clear()
            client = router.connect()
            client.request("POST", "/v1/chat/completions", json.dumps({"model": named}))
            answer = client.getresponse()
            assert answer.status == status
            go_on.set()
            assert answer.read() == part + b"rest"
            client.close()
            upstream.on(f"{name}:latency", script)


def test_no_attempt_begins_when_the_requests_time_is_over(upstream, model):
    """002-R63, 002-R66"""
    first, second = model(), model()
    upstream.on(first, stall)
    with Router(upstream.url, FAILOVER_BUDGET_MS="500", **SHORT) as router:
        answer = router.chat(f"{first},{second}")
        assert answer.error["code"] == "upstream_header_timeout"
        assert not upstream.seen(second)
        # The client would repeat it, and that is what the limit is to prevent.
        assert answer.value("x-should-retry") == "false"


def test_the_requests_time_runs_while_its_body_comes(upstream, model):
    """002-R63"""
    first, second = model(), model()
    upstream.on(first, unavailable)
    body = json.dumps({"model": f"{first},{second}"}).encode()
    with Router(upstream.url, FAILOVER_BUDGET_MS="300", **SHORT) as router:
        with socket.create_connection(("127.0.0.1", router.port), 10) as client:
            client.sendall(b"POST /v1/chat/completions HTTP/1.1\r\nHost: x\r\nConnection: close\r\n"
                           b"Expect: 100-continue\r\nContent-Length: %d\r\n\r\n" % len(body))
            read_until(client, b"100 Continue\r\n\r\n")
            client.settimeout(0.4)
            with pytest.raises(TimeoutError):
                client.recv(1)
            client.settimeout(10)
            client.sendall(body)
            assert read_to_end(client).startswith(b"HTTP/1.1 503 ")
        assert not upstream.seen(second)


def test_a_long_prompt_may_wait_longer_for_its_headers(upstream, model):
    """002-R13"""
    name = model()
    upstream.on(name, after_a_second)
    patient = {"UPSTREAM_HEADER_TIMEOUT_MS_PER_KIB": "1000",
               "UPSTREAM_NONSTREAM_HEADER_TIMEOUT_MS": "60000"}
    with Router(upstream.url, **SHORT | patient) as router:
        assert router.chat(name).error["code"] == "upstream_header_timeout"
        assert router.chat(name, padding="x" * 10_000).status == 200
    with Router(upstream.url, **SHORT | {"UPSTREAM_HEADER_TIMEOUT_MS_PER_KIB": "1000",
                                         "UPSTREAM_NONSTREAM_HEADER_TIMEOUT_MS": "700"}) as router:
        answer = router.chat(name, padding="x" * 10_000)
        assert answer.error["code"] == "upstream_header_timeout"


def test_in_a_brown_out_failover_does_not_become_the_load():
    """002-R64, 002-R66"""
    count, lanes, turns = 600, 6, itertools.count()
    names = [f"m{number}" for number in range(8)]
    with Upstream(models=models_feed(names), rows=[utilization_row(name) for name in names]) as it:
        it.otherwise(lambda exchange: (
            complete(b"{}") if next(turns) % 2 else unavailable)(exchange))
        with Router(it.url, STICKY_TTL_SECS="0") as router:
            router.wait_until_fed()
            statuses, began = [], time.monotonic()

            def ask():
                connection = http.client.HTTPConnection("127.0.0.1", router.port, timeout=20)
                for _ in range(count // lanes):
                    connection.request("POST", "/v1/chat/completions",
                                       b'{"model": "chutesai/AutoPilot"}')
                    response = connection.getresponse()
                    response.read()
                    statuses.append((response.status, response.getheader("x-should-retry")))
                connection.close()

            threads = [threading.Thread(target=ask) for _ in range(lanes)]
            for thread in threads:
                thread.start()
            for thread in threads:
                thread.join()
            # A hundred in any ten seconds are free.
            free = 100 * (1 + (time.monotonic() - began) // 10)
            retries = len(it.exchanges) - count
            assert len(statuses) == count and set(statuses) == {
                (200, None), (503, "false")}
            assert 100 <= retries <= free + 0.25 * count
            lines = router.wait_for_lines(lambda line: line["message"] == "request", count)
            # By bad luck all eight candidates of a request say 503.
            denied = [line for line in lines if line["status"] == 503 and len(line["attempts"]) < 8]
            metrics = router.metrics_at_rest()
            assert metrics["failover_budget_exhausted_total",] == len(denied)


# -- a 429 for want of capacity --------------------------------------------------------------


def test_a_capacity_429_is_passed_on_and_says_when_to_come_back(router, upstream, model):
    """002-R65, 002-R66, 002-R12"""
    first, second = model(), model()
    for fields, seconds in (((), range(1, 16)), ([("Retry-After", "77")], [77])):
        upstream.on(first, complete(FULL, status=429, fields=fields))
        for asked in (f"{first},{second}", first):
            answer = router.chat(asked)
            assert (answer.status, answer.body) == (429, FULL)
            assert int(answer.value("Retry-After")) in seconds
    upstream.on(first, complete(b'{"detail":"Too many requests"}', status=429))
    assert router.chat(f"{first},{second}").value("Retry-After") is None
    assert not upstream.seen(second)


def test_F27_a_capacity_429_is_the_next_candidates_turn_where_that_is_wanted(upstream, model):
    """002-R65, 002-R60, 005-R5, 006-W13"""
    down, first, second, mine = model(), model(), model(), {"Authorization": "Bearer mine"}
    upstream.on(down, unavailable)
    with Router(upstream.url, FAILOVER_ON_CAPACITY_429="true", **SHORT) as router:
        router.wait_until_fed()
        assert router.chat(f"{down},{first},{second}", headers=mine).status == 200
        upstream.on(first, complete(FULL, status=429))
        answer = router.chat(f"{down},{first},{second}", headers={**mine, "X-Request-Id": "full"})
        assert (answer.status, answer.value("x-chutes-autopilot-selected")) == (200, second)
        assert outcomes(router, "full") == ["upstream_429_capacity", "upstream_503", "200"]
        upstream.on(second, complete(FULL, status=429))
        answer = router.chat(f"{first},{second}")
        assert (answer.status, answer.body) == (429, FULL)
        assert int(answer.value("Retry-After")) in range(1, 16)
        upstream.on(second, complete(FULL, status=429, fields=[("Retry-After", "77")]))
        assert router.chat(second).value("Retry-After") == "77"
        upstream.on(first, complete(b'{"detail":"Too many requests"}', status=429))
        assert router.chat(f"{first},{second}").body == b'{"detail":"Too many requests"}'
        # A model that was full has kept its client.
        upstream.on(first, complete(b"{}"))
        answer = router.chat(f"{down},{second},{first}", headers={**mine, "X-Request-Id": "kept"})
        assert answer.value("x-chutes-autopilot-selected") == first
        assert outcomes(router, "kept") == ["200"]
        assert router.metrics_at_rest()["failover_reason_total", "upstream_429_capacity"] == 4


# -- what the client is told -----------------------------------------------------------------


@pytest.mark.parametrize("scripts, status, told", [
    ([unavailable, unavailable], 503, "false"), ([unavailable, HTML], 503, "false"),
    ([unavailable, reset_at_once], 502, "false"), ([unavailable, stall], 504, "false"),
    ([unavailable], 503, None), ([reset_at_once], 502, None),
    ([unavailable, complete(b"{}")], 200, None), ([unavailable, NOT_FOUND], 404, None),
    ([unavailable, complete(FULL, status=429)], 429, None),
    ([unavailable, complete(b"no", status=500)], 500, None),
    ([unavailable, complete(b"no", status=503, fields=[("X-Should-Retry", "true")])], 503, "false"),
    ([complete(b"no", status=503, fields=[("X-Should-Retry", "true")])], 503, "true"),
], ids=["503", "HTML", "no connection", "no headers", "no failover", "no failover, no answer",
        "an answer", "404", "429", "500", "503 of another mind", "its own mind, no failover"])
def test_after_failover_was_tried_a_client_is_told_not_to_repeat_it(
        router, upstream, model, scripts, status, told):
    """002-R66"""
    names = [model() for _ in scripts]
    for name, script in zip(names, scripts):
        upstream.on(name, script)
    for asked in [",".join(names)] + names[:1] * (len(names) == 1):
        answer = router.chat(asked, headers={"Authorization": f"Bearer {names[0]}"})
        assert (answer.status, answer.value("x-should-retry")) == (status, told)


@pytest.mark.parametrize("limit, told", [
    ({"MAX_EDGE_FAILURES": "1"}, "false"), ({"MAX_ATTEMPTS": "1"}, None)])
def test_a_client_is_told_so_where_a_limit_denied_the_second_attempt_but_not_where_failover_is_off(
        upstream, model, limit, told):
    """002-R66"""
    first, second = model(), model()
    upstream.on(first, HTML)
    with Router(upstream.url, **limit, **SHORT) as router:
        router.wait_until_fed()
        for asked, expected in ((f"{first},{second}", told), (first, None)):
            answer = router.chat(asked)
            assert (answer.status, answer.value("x-should-retry")) == (503, expected)
        assert not upstream.seen(second)


def test_a_refusal_for_want_of_a_model_says_when_to_come_back_each_time_another():
    """002-R66"""
    with Upstream(models=models_feed([LISTED])) as empty, Router(empty.url) as router:
        router.wait_for_lines(lambda line: line["message"] == "feed refreshed")
        answers = [router.chat("chutesai/AutoPilot") for _ in range(40)]
    assert {answer.error["code"] for answer in answers} == {"no_candidates"}
    seconds = {int(answer.value("Retry-After")) for answer in answers}
    assert len(seconds) > 1 and seconds <= set(range(1, 16))
