"""Metrics as Prometheus sees them, over several workers and across their ends."""

import contextlib
import json
import os
import pathlib
import signal
import socket
import threading
import time

import pytest

from tests.support.feeds import models_feed, utilization_row
from tests.support.router import Router, read_until, until
from tests.support.upstream import (Upstream, complete, headers_then_end, reset_at_once,
                                    unavailable)

FEED = {"models": models_feed(["a", "b", "c"]), "rows": [
    utilization_row("a", active=9), utilization_row("b", active=5), utilization_row("c", active=0)]}


@pytest.fixture(scope="module")
def metered():
    with Upstream(**FEED) as upstream, Router(
            upstream.url, WEB_CONCURRENCY="3", UPSTREAM_FIRST_BODY_BYTE_TIMEOUT_MS="500") as router:
        router.wait_until_fed()
        yield router, upstream


def test_counts_are_the_sum_over_all_workers_whichever_answers(metered):
    """001-R13"""
    router, upstream = metered
    upstream.on("b:down", reset_at_once)
    upstream.on("b:empty", headers_then_end)
    upstream.on("b:busy", complete(b"slow down", status=429))
    before = router.metrics_at_rest()
    for _ in range(30):
        assert router.chat("a").status == 200
    upstream.drop_idle()
    for model in ("b:down,b:empty,a", "b:down", "b:busy", "unknown"):
        router.chat(model, headers={"Authorization": f"Bearer {model}"})
    for _ in range(6):
        risen = router.counted_since(before)
        risen.pop(("resends_total",), None)
        assert risen == {
            ("requests_total", "200"): 31, ("requests_total", "502"): 1,
            ("requests_total", "429"): 1, ("requests_total", "400"): 1,
            ("selection_total", "a", "200"): 31, ("selection_total", "b", "429"): 1,
            ("failover_reason_total", "upstream_connect_error"): 2,
            ("edge_failures_total", "connection_lost"): 2,
            ("failover_reason_total", "upstream_first_body_byte_error"): 1}


def test_gauges_show_the_worst_worker(metered):
    """001-R13"""
    router, _ = metered
    metrics = router.metrics()
    assert (metrics["ready_candidates",], metrics["ready_allowlist_size",]) == (2, 3)
    assert 0 <= metrics["ready_snapshot_age_ms",] < 60_000
    assert 0 <= metrics["ready_allowlist_age_ms",] < 60_000
    assert metrics["requests_active",] == 0


def test_times_attempts_and_bytes_are_measured(metered):
    """001-R13"""
    router, upstream = metered
    upstream.on("b:broken", reset_at_once)
    upstream.on("b:long", complete(b"x" * 1000))
    before = router.metrics_at_rest()
    router.chat("b:broken,b:long", headers={"Authorization": "Bearer measured"})
    router.chat("unknown")
    after = router.metrics_at_rest()

    def risen(*key):
        return after.get(key, 0) - before.get(key, 0)

    assert risen("response_bytes_total") == 1000
    assert (risen("attempts_count"), risen("attempts_sum")) == (1, 2)
    assert risen("attempts_bucket", "1.0") == 0 and risen("attempts_bucket", "2.0") == 1
    for name in ("first_byte_seconds", "duration_seconds"):
        assert risen(name + "_count") == 1 and 0 < risen(name + "_sum") < 60
        assert risen(name + "_bucket", "+Inf") == 1


def test_answers_under_way_are_shown(metered):
    """001-R13"""
    router, upstream = metered
    go_on = threading.Event()
    upstream.on("b:open", lambda exchange: (
        exchange.head(200, ("Transfer-Encoding", "chunked")), exchange.chunk(b"first"),
        go_on.wait(10), exchange.chunk(b"")))
    before = router.metrics_at_rest()
    connection = router.connect()
    connection.request("POST", "/v1/chat/completions", b'{"model": "b:open"}')
    response = connection.getresponse()
    asked = time.monotonic()
    until(lambda: router.metrics()["streams_open",] == 1)
    open_s = time.monotonic() - asked
    go_on.set()
    assert response.read() == b"first"
    connection.close()
    router.wait_for_lines(lambda line: line.get("bytes") == 5)
    after = router.metrics_at_rest()
    assert after["streams_open",] == 0
    took = [after[name + "_sum",] - before[name + "_sum",]
            for name in ("first_byte_seconds", "duration_seconds")]
    assert took[1] > took[0] + open_s


def test_what_became_of_sticky_choices_is_counted(metered):
    """001-R13, 002-R67, 005-R3, 005-R5"""
    router, upstream = metered
    before = router.metrics_at_rest()
    for number, model in enumerate(("a:1,b:1", "a:1,b:1", "a:2,b:2", "a:2,b:1")):
        if number == 3:
            upstream.on("a:2", unavailable)
        router.chat(model, headers={"Authorization": "Bearer sticky-and-counted",
                                    "X-Request-Id": f"sticky-{number}"})
    after = router.metrics_at_rest()
    assert {key[1]: value - before.get(key, 0) for key, value in after.items()
            if key[0] == "sticky_total"} == {"miss": 1, "hit": 1, "ignored": 1, "moved": 1}
    assert [router.record(f"sticky-{number}")["sticky"] for number in range(4)] == [
        "miss", "hit", "ignored", "moved"]


def test_fetches_are_counted_by_feed_and_result():
    """001-R13, 003-R7, 003-R9"""
    rows = [utilization_row("a"), {"name": 5}, {"name": "x"}]
    with Upstream(models=models_feed(["a"]), rows=rows) as upstream:
        upstream.feed_status = 500
        with Router(upstream.url, WEB_CONCURRENCY="2", UTILIZATION_REFRESH_MS="100",
                    MODELS_REFRESH_MS="3600000") as router:
            router.wait_for_lines(lambda line: line["message"] == "feed refresh fails", 4)
            upstream.feed_status = 200
            [line, *_] = router.wait_for_lines(lambda line: line["message"] == "feed refreshed", 2)
            metrics = router.metrics()
            fetched = [e for e in upstream.feed_requests if "utilization" in e.target]
    assert metrics["refreshes_total", "models", "failed"] == 2
    assert metrics["refreshes_total", "utilization", "failed"] >= 2
    refreshed = metrics["refreshes_total", "utilization", "ok"]
    assert 1 <= refreshed <= len(fetched)
    assert line["dropped"] > 0
    assert metrics["dropped_entries_total", "utilization"] == refreshed * line["dropped"]


def test_a_missing_feed_is_minus_one():
    """001-R13"""
    with Upstream() as upstream:
        upstream.feed_status = 500
        with Router(upstream.url) as router:
            metrics = router.metrics()
    assert metrics["ready_snapshot_age_ms",] == metrics["ready_allowlist_age_ms",] == -1
    assert metrics["ready_candidates",] == metrics["ready_allowlist_size",] == 0


def test_counts_survive_a_killed_worker_and_its_requests_are_no_longer_active():
    """001-R13"""
    with Upstream(**FEED) as upstream, Router(upstream.url) as router:
        router.wait_until_fed()
        assert router.chat("a").status == 200
        upstream.on("b", lambda exchange: (
            exchange.head(200, ("Transfer-Encoding", "chunked")), exchange.chunk(b"first"),
            exchange.until_closed()))
        with socket.create_connection(("127.0.0.1", router.port), 10) as client:
            body = json.dumps({"model": "b"}).encode()
            client.sendall(b"POST /v1/chat/completions HTTP/1.1\r\nHost: x\r\n"
                           b"Content-Length: %d\r\n\r\n%s" % (len(body), body))
            read_until(client, b"first")
            assert router.metrics()["requests_active",] == 1
            [ready] = router.wait_for_lines(lambda line: line["message"] == "worker ready")
            os.kill(ready["pid"], signal.SIGKILL)
            router.wait_for_lines(lambda line: line["message"] == "worker ready", 2)
        metrics = router.metrics()
        assert metrics["requests_active",] == 0
        assert metrics["requests_total", "200"] == 1
        assert router.stop() == 0


def test_a_killed_workers_requests_are_no_longer_active_before_it_is_replaced():
    """001-R13: the master stands still meanwhile, so that no other worker is there in its place."""
    with Upstream(**FEED) as upstream, Router(upstream.url, WEB_CONCURRENCY="2") as router:
        router.wait_until_fed()
        upstream.on("b", lambda exchange: (
            exchange.head(200, ("Transfer-Encoding", "chunked")), exchange.chunk(b"first"),
            exchange.until_closed()))
        client = router.connect()
        client.request("POST", "/v1/chat/completions", b'{"model": "b"}')
        response = client.getresponse()
        assert response.read(5) == b"first"
        assert router.metrics()["requests_active",] == 1
        busy = router.worker_of(client.sock)
        os.kill(router.process.pid, signal.SIGSTOP)
        try:
            os.kill(busy, signal.SIGKILL)
            until(lambda: router.metrics()["requests_active",] == 0)
        finally:
            os.kill(router.process.pid, signal.SIGCONT)
            response.close()
            client.close()
        router.wait_for_lines(lambda line: line["message"] == "worker ready", 3)
        assert router.metrics()["requests_active",] == 0


def slots(router):
    """Return the slots of the workers there are, one for each."""
    children = pathlib.Path(f"/proc/{router.process.pid}/task/{router.process.pid}/children")
    return sorted(os.path.basename(name) for pid in children.read_text().split()
                  for name in map(os.readlink, pathlib.Path(f"/proc/{pid}/fd").iterdir())
                  if "/slot-" in name)


def test_workers_old_and_new_have_slots_of_their_own_and_every_request_counts_once():
    """001-R13: a worker is killed, then a reload leaves an old one with an answer under way."""
    go_on = threading.Event()
    with Upstream(**FEED) as upstream, Router(
            upstream.url, WEB_CONCURRENCY="2", GRACEFUL_TIMEOUT_SECS="60") as router, \
            contextlib.closing(router.connect()) as client:
        ready = router.wait_for_lines(lambda line: line["message"] == "worker ready", 2)
        router.wait_until_fed()
        upstream.on("b", lambda exchange: (
            exchange.head(200, ("Transfer-Encoding", "chunked")), exchange.chunk(b"first"),
            go_on.wait(20), exchange.chunk(b"")))
        client.request("POST", "/v1/chat/completions", b'{"model": "b"}')
        response = client.getresponse()
        assert response.read(5) == b"first"
        for _ in range(10):
            assert router.chat("a").status == 200
        busy = router.worker_of(client.sock)
        [other] = {line["pid"] for line in ready} - {busy}
        until(lambda: router.metrics()["requests_active",] == 1)
        os.kill(other, signal.SIGKILL)
        router.wait_for_lines(lambda line: line["message"] == "worker ready", 3)
        assert slots(router) == ["slot-0", "slot-1"]
        router.process.send_signal(signal.SIGHUP)
        router.wait_for_lines(lambda line: line["message"] == "worker ready", 5)
        until(lambda: len(slots(router)) == 3)
        assert len(set(slots(router))) == 3
        for _ in range(10):
            assert router.chat("a").status == 200
        until(lambda: router.metrics()["requests_active",] == 1)
        go_on.set()
        assert response.read() == b""
        for _ in range(6):
            metrics = router.metrics_at_rest()
            assert metrics["requests_total", "200"] == metrics["attempts_count",] == 21
            assert metrics["attempts_bucket", "1.0"] == metrics["duration_seconds_count",] == 21


def test_a_normal_stop_leaves_no_files_behind():
    """001-R13, 005-R8"""
    with Upstream() as upstream, Router(upstream.url) as router:
        directory = router.runtime_directory()
        assert {"metrics", "choices.sqlite"} <= {path.name for path in directory.iterdir()}
        router.stop()
        assert not directory.exists()


@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGTERM])
def test_what_dead_workers_have_counted_stays_and_their_files_do_not_pile_up(how):
    """001-R13"""
    with Upstream(models=models_feed(["a"]), rows=[utilization_row("a")]) as upstream, Router(
            upstream.url) as router:
        folder, seen = router.runtime_directory() / "metrics", []
        for life in range(1, 6):
            [*_, pid] = [line["pid"] for line in router.wait_for_lines(
                lambda line: line["message"] == "worker ready", life)]
            assert router.chat("a").status == router.chat("a", stream=False).status == 200
            metrics = router.metrics()
            seen.append((metrics["requests_total", "200"], metrics["attempts_count",],
                         metrics["attempts_bucket", "1.0"], metrics["requests_active",],
                         len(list(folder.glob("*.db")))))
            os.kill(pid, how)
    assert [one[:4] for one in seen] == [(2 * n, 2 * n, 2 * n, 0) for n in range(1, 6)]
    assert len({one[4] for one in seen[1:]}) == 1
