"""Pooled connections: how long they are believed good, and what the failure of one says of all."""

import concurrent.futures
import threading
import time

import pytest

from tests.support.feeds import models_feed, public_names, utilization_feed
from tests.support.router import Router
from tests.support.upstream import Upstream, complete
from tests.wire.conftest import LISTED, SHORT

CALM = {"MODELS_REFRESH_MS": "3600000", "UTILIZATION_REFRESH_MS": "3600000",
        "READYZ_MAX_SNAPSHOT_AGE_MS": "3600000"}


@pytest.fixture
def backend():
    with Upstream(models_feed([LISTED, *public_names()]), utilization_feed()) as server:
        yield server


@pytest.fixture
def forgetful(backend):
    """A backend and a router whose pool can be made to die."""
    with Router(backend.url, **SHORT | CALM) as router:
        router.wait_until_fed()
        yield router, backend


def fill_pool(router, upstream, count):
    """Have the router keep so many idle connections."""
    together = threading.Barrier(count)

    def answer(exchange):
        together.wait(10)
        complete(b"{}")(exchange)
    upstream.otherwise(answer)
    with concurrent.futures.ThreadPoolExecutor(count) as clients:
        answers = list(clients.map(lambda _: router.chat(LISTED), range(count)))
    assert all(answer.status == 200 for answer in answers)
    upstream.otherwise(complete(b"{}"))


def test_F31_when_pooled_connections_have_died_unseen_one_request_finds_out_for_all(forgetful):
    """002-R32, 006-W13"""
    router, server = forgetful
    fill_pool(router, server, 6)
    server.swallow()
    assert router.chat(LISTED).error["code"] == "upstream_header_timeout"
    for _ in range(8):
        assert router.chat(LISTED).status == 200


def test_F31_a_list_loses_one_candidate_to_connections_that_have_died(forgetful):
    """002-R32, 006-W13"""
    router, server = forgetful
    fill_pool(router, server, 6)
    server.swallow()
    first, second, third = public_names()[:3]
    answer = router.chat(f"{first},{second},{third}")
    assert (answer.status, answer.value("x-chutes-autopilot-selected")) == (200, second)


def test_F11_an_end_on_a_pooled_connection_closes_the_others_opened_before(forgetful):
    """002-R14, 002-R32"""
    router, server = forgetful
    fill_pool(router, server, 4)
    first = {exchange.number for exchange in server.exchanges}
    server.otherwise(lambda exchange: exchange.close() if exchange.number in first
                     else complete(b"{}")(exchange))
    for _ in range(4):
        assert router.chat(LISTED).status == 200
    assert router.metrics()["resends_total",] == 1
    assert sum(exchange.turn == 2 for exchange in server.exchanges
               if exchange.number in first) == 1


@pytest.mark.parametrize("limit", ["IDLE", "AGE"])
def test_a_pooled_connection_is_not_used_beyond_its_limits(backend, limit):
    """002-R32"""
    server = backend
    with Router(server.url, **CALM, **{f"UPSTREAM_CONNECTION_MAX_{limit}_SECS": "1"}) as router:
        router.wait_until_fed()
        began = time.monotonic()
        while len({exchange.number for exchange in server.exchanges}) < 2:
            assert router.chat(LISTED).status == 200
            if limit == "IDLE":
                # It is closed at the latest when the pool is looked through, every 5 s.
                assert server.exchanges[-1].closed.wait(10)
        assert time.monotonic() - began >= 1
        if limit == "AGE":
            assert len(server.exchanges) > 2


def test_F32_an_end_that_comes_late_on_a_pooled_connection_is_a_failed_attempt(forgetful):
    """002-R14, 006-W13"""
    router, server = forgetful
    first, second = public_names()[:2]
    late = threading.Event()

    def end_late(exchange):
        if exchange.turn > 1:
            late.wait(1.3)
            exchange.close()
        else:
            complete(b"{}")(exchange)
    server.on(first, end_late)
    assert router.chat(first).status == 200
    answer = router.chat(f"{first},{second}", stream=False)
    assert answer.value("x-chutes-autopilot-selected") == second
    assert [exchange.turn for exchange in server.seen(first)] == [1, 2]
    metrics = router.metrics()
    assert not metrics.get(("resends_total",))
    assert metrics["failover_reason_total", "upstream_connect_error"] == 1
