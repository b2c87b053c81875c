"""Names that move, addresses that are dead, resolvers that are silent, peers that vanish."""

import concurrent.futures
import contextlib
import json
import os
import socket
import threading
import time

import pytest

from tests.support.feeds import models_feed, public_names, utilization_feed
from tests.support.router import Router, free_port, until
from tests.support.upstream import Upstream, complete, pieces, swallow
from tests.wire.conftest import LISTED, SHORT

NAME = "backend.test"
CALM = {"MODELS_REFRESH_MS": "3600000", "UTILIZATION_REFRESH_MS": "3600000",
        "READYZ_MAX_SNAPSHOT_AGE_MS": "3600000"}


class Names:
    """A resolver's names, as a router under test sees them."""

    def __init__(self, path):
        self.path, self.names = path, {}
        self.set()

    def set(self, **names):
        """Let names have other addresses from now on; none: nobody answers."""
        self.names |= {f"{name}.test": addresses for name, addresses in names.items()}
        # Replaced as a whole: a look-up may be reading it.
        self.path.with_suffix(".new").write_text(json.dumps(self.names))
        os.replace(self.path.with_suffix(".new"), self.path)


@pytest.fixture
def names(tmp_path):
    return Names(tmp_path / "names")


@pytest.fixture
def backend():
    """Return a function that makes a backend at an address, with feeds and without a care."""
    with contextlib.ExitStack() as stack:
        def make(host="127.0.0.1", port=0, **more):
            return stack.enter_context(Upstream(models_feed([LISTED, *public_names()]),
                                                utilization_feed(), host=host, port=port, **more))
        yield make


@contextlib.contextmanager
def black_hole(host, port):
    """Take connections that nobody hears of."""
    with socket.create_server((host, port)) as listener:
        swallow(listener)
        yield


def named(port, names, **more):
    return Router(f"http://{NAME}:{port}", NAMES=str(names.path),
                  **CALM | {"UPSTREAM_CONNECT_TIMEOUT_MS": "8000"} | more)


# -- addresses -------------------------------------------------------------------------------


def test_a_dead_first_address_costs_a_moment_once(names, backend):
    """002-R30"""
    alive = backend("127.0.0.9")
    names.set(backend=["127.0.0.5", "127.0.0.9"])
    with black_hole("127.0.0.5", alive.port), named(alive.port, names) as router:
        router.wait_until_fed()
        assert router.chat(LISTED).status == 200
        for name in "abc":
            # It is remembered: none of these waits for the dead one again.
            alive.drop_idle()
            assert router.chat(LISTED, headers={"X-Request-Id": name}).status == 200
        took = [router.record(name)["duration_ms"] for name in "abc"]
        assert min(took) < 250
        assert not any(count for key, count in router.metrics().items()
                       if key[0] == "failover_reason_total")


def test_a_name_all_of_whose_addresses_refuse_is_refused_at_once(names, backend):
    """002-R30, 002-R12"""
    feeds = backend()
    names.set(backend=["127.0.0.5", "127.0.0.6", "127.0.0.7"])
    with Router(feeds.url, BACKEND_BASE_URL=f"http://{NAME}:{free_port()}",
                NAMES=str(names.path), UPSTREAM_CONNECT_TIMEOUT_MS="60000") as router:
        router.wait_until_fed()
        answer = router.chat(LISTED, headers={"X-Request-Id": "refused"})
        assert answer.error["code"] == "upstream_connect_error"
        [attempt] = router.record("refused")["attempts"]
        assert attempt["detail"] == "ConnectFailed ConnectionRefusedError"


def test_a_connect_that_the_header_deadline_ends_is_a_failure_of_the_edge(backend):
    """002-R12, 002-R13: whichever of the two limits is the shorter one."""
    feeds, port = backend(), free_port()
    with black_hole("127.0.0.5", port), Router(
            feeds.url, BACKEND_BASE_URL=f"http://127.0.0.5:{port}", **CALM, WEB_CONCURRENCY="1",
            UPSTREAM_CONNECT_TIMEOUT_MS="60000", UPSTREAM_HEADER_TIMEOUT_MS="300",
            UPSTREAM_NONSTREAM_HEADER_TIMEOUT_MS="300", COOLDOWN_FAILURES="1") as router:
        router.wait_until_fed()
        for name in "ab":
            answer = router.chat(LISTED, headers={"X-Request-Id": name})
            assert (answer.status, answer.error["code"]) == (502, "upstream_connect_error")
            [attempt] = router.record(name)["attempts"]
            assert (attempt["outcome"], attempt["detail"]) == (
                "upstream_connect_error", "ConnectFailed HeaderDeadline")
        assert not [line for line in router.lines if line["message"] == "model cooling"]


@pytest.mark.parametrize("old", ["serves", "refuses", "swallows"])
def test_a_name_that_moves_is_followed_and_no_request_is_lost(names, backend, old):
    """002-R30, 002-R32"""
    first, second = backend("127.0.0.2"), None
    names.set(backend=["127.0.0.2"])
    with named(first.port, names, UPSTREAM_CONNECTION_MAX_AGE_SECS="1",
               UPSTREAM_HEADER_TIMEOUT_MS="20000") as router, contextlib.ExitStack() as stack:
        router.wait_until_fed()
        assert router.chat(LISTED).status == 200
        second = backend("127.0.0.3", first.port)
        names.set(backend=["127.0.0.3"])
        if old != "serves":
            first.drop_idle()
            first.stop_listening()
        if old == "swallows":
            stack.enter_context(black_hole("127.0.0.2", first.port))

        def moved():
            assert router.chat(LISTED).status == 200
            return second.exchanges
        until(moved)
        assert not any(count for key, count in router.metrics().items()
                       if key[0] == "failover_reason_total")


def test_a_name_that_moves_is_followed_while_its_old_address_serves(names, backend):
    """002-R57"""
    first = backend("127.0.0.2")
    names.set(backend=["127.0.0.2"])
    with named(first.port, names) as router:
        router.wait_until_fed()
        assert router.chat(LISTED).status == 200
        second = backend("127.0.0.3", first.port)
        names.set(backend=["127.0.0.3"])

        def moved():
            assert router.chat(LISTED).status == 200
            return second.exchanges
        # The pool's connection is one second old or so: its age is not what ends it.
        until(moved)


def test_feeds_follow_a_name_that_moves(names, backend):
    """002-R30, 003-R15"""
    first = backend("127.0.0.2")
    names.set(backend=["127.0.0.2"])
    with named(first.port, names, UTILIZATION_REFRESH_MS="100") as router:
        router.wait_until_fed()
        second = backend("127.0.0.3", first.port)
        names.set(backend=["127.0.0.3"])
        until(lambda: second.feed_requests)
        assert not router.metrics().get(("refreshes_total", "utilization", "failed"))


def test_while_the_resolver_is_silent_the_last_good_addresses_are_used(names, backend):
    """002-R31"""
    server = backend("127.0.0.2")
    names.set(backend=["127.0.0.2"])
    with named(server.port, names, UPSTREAM_CONNECTION_MAX_IDLE_SECS="0",
               UTILIZATION_REFRESH_MS="200") as router:
        router.wait_until_fed()
        assert router.chat(LISTED).status == 200
        names.set(backend=[])
        silent_since, fetched = time.monotonic(), len(server.feed_requests)
        # Longer than an answer is believed, and than the resolver's own patience.
        while time.monotonic() < silent_since + 12:
            assert router.chat(LISTED).status == 200
            assert router.get("/healthz").status == 200
        metrics = router.metrics()
        assert not metrics.get(("refreshes_total", "utilization", "failed"))
        assert len(server.feed_requests) > fetched + 5


def test_a_silent_resolver_takes_one_thread_for_each_name(names, backend):
    """002-R31"""
    feeds = backend("127.0.0.2")
    names.set(backend=[], feeds=["127.0.0.2"])
    with Router(f"http://feeds.test:{feeds.port}", BACKEND_BASE_URL=f"http://{NAME}:{feeds.port}",
                NAMES=str(names.path), UPSTREAM_CONNECT_TIMEOUT_MS="500",
                MODELS_REFRESH_MS="100") as router:
        router.wait_until_fed()
        # Thrice as many as gevent has threads.
        with concurrent.futures.ThreadPoolExecutor(30) as clients:
            answers = list(clients.map(lambda _: router.chat(LISTED), range(30)))
        assert {answer.error["code"] for answer in answers} == {"upstream_connect_error"}
        fetched = len(feeds.feed_requests)
        names.set(feeds=["127.0.0.2", "127.0.0.2"])
        until(lambda: len(feeds.feed_requests) > fetched + 3)
        names.set(backend=["127.0.0.2"])
        until(lambda: router.chat(LISTED).status == 200)


# -- peers that vanish -----------------------------------------------------------------------


@pytest.fixture
def patient(backend):
    """A backend, and a router that drops a client whose connection is dead after a second."""
    server = backend()
    with Router(server.url, **SHORT | CALM | {
            "UPSTREAM_NONSTREAM_HEADER_TIMEOUT_MS": "20000"}) as router:
        router.wait_until_fed()
        yield router, server


def test_F33_a_client_that_vanishes_in_a_stream_is_noticed(patient):
    """006-W21, 006-W13"""
    router, server = patient
    pace = threading.Event()
    server.on(LISTED, pieces([b"data: 1\n\n"] * 1000, before_each=lambda _: pace.wait(0.1)))
    with socket.create_connection(("127.0.0.1", router.port), 10) as client:
        body = json.dumps({"model": LISTED, "stream": True}).encode()
        client.sendall(b"POST /v1/chat/completions HTTP/1.1\r\nHost: x\r\nX-Request-Id: gone\r\n"
                       b"Content-Length: %d\r\n\r\n%s" % (len(body), body))
        assert client.recv(65536)
        swallow(client)
        assert router.record("gone")["ended"] == "client_gone"
    assert server.wait_for(LISTED).closed.wait(5)
    assert router.metrics()["client_gone_total",] == 1


def armed(port):
    """Say for each connection of a port whether its keep-alive timer runs: those of either end."""
    with open("/proc/net/tcp") as table:
        rows = [line.split() for line in table][1:]
    return [(int(local.split(":")[1], 16) == port, timer.startswith("02"))
            for _, local, remote, state, _, timer, *_ in rows
            if state == "01" and f":{port:04X}" in (local[8:], remote[8:])]


def test_both_ends_are_probed_while_an_upstream_works(patient):
    """006-W21"""
    router, server = patient
    answer = threading.Event()
    server.on(LISTED, lambda exchange: (answer.wait(10), complete(b"{}")(exchange)))
    with concurrent.futures.ThreadPoolExecutor(1) as client:
        asked = client.submit(router.chat, LISTED, stream=False)
        server.wait_for(LISTED)
        # At either port the router has one end and its peer the other.
        assert (True, True) in armed(router.port) and (False, True) in armed(server.port)
        answer.set()
        assert asked.result().status == 200


def test_an_upstream_that_vanishes_while_an_answer_is_awaited_is_noticed(backend):
    """006-W21: within a minute, which is what this takes; the deadline is ten."""
    server = backend()
    with Router(server.url, **CALM) as router:
        router.wait_until_fed()
        server.on(LISTED, lambda exchange: swallow(exchange.sock) or exchange.until_closed(90))
        connection = router.connect(timeout=70)
        connection.request("POST", "/v1/chat/completions", json.dumps({"model": LISTED}),
                           {"X-Request-Id": "waited"})
        assert connection.getresponse().status == 502
        connection.close()
        [attempt] = router.record("waited")["attempts"]
        assert attempt["detail"] == "ExchangeBroke TimeoutError"
