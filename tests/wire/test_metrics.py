"""Metrics as Prometheus sees them, over several workers and across their ends."""

import json
import os
import signal
import socket

import pytest

from tests.support.feeds import models_feed, utilization_row
from tests.support.router import Router, read_until
from tests.support.upstream import Upstream, complete, headers_then_end, reset_at_once

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
    before = router.metrics()
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
            ("failover_reason_total", "upstream_first_body_byte_error"): 1}


def test_gauges_show_the_worst_worker(metered):
    """001-R13"""
    router, _ = metered
    metrics = router.metrics()
    assert (metrics["ready_candidates",], metrics["ready_allowlist_size",]) == (2, 3)
    assert 0 <= metrics["ready_snapshot_age_ms",] < 60_000
    assert 0 <= metrics["ready_allowlist_age_ms",] < 60_000
    assert metrics["requests_active",] == 0


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


def test_a_normal_stop_leaves_no_files_behind():
    """001-R13, 005-R8"""
    with Upstream() as upstream, Router(upstream.url) as router:
        directory = router.runtime_directory()
        assert {"metrics", "sticky.sqlite"} <= {path.name for path in directory.iterdir()}
        router.stop()
        assert not directory.exists()
