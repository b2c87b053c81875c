"""ALIAS_CHOICE=balanced: clients are shared out among models near the best one."""

import contextlib
import datetime
import json
import socket
import threading

import pytest

from tests.support.feeds import models_feed, utilization_row
from tests.support.router import DEADLINE_S, Router, read_until, until
from tests.support.upstream import Upstream

ALIAS, NAMES = "chutesai/AutoPilot", ["a", "b", "c"]
SETTINGS = {"ALIAS_CHOICE": "balanced", "STICKY_TTL_SECS": "0", "WEB_CONCURRENCY": "3"}


def ago(seconds):
    """Return a feed's timestamp of so long ago."""
    moment = datetime.datetime.now(datetime.UTC) - datetime.timedelta(seconds=seconds)
    return moment.replace(tzinfo=None).isoformat()


def upstream_of(*rows, old_s=0):
    """Return an upstream with these chutes: name, instances, utilization."""
    timestamp = ago(old_s)
    return Upstream(models=models_feed(NAMES), rows=[
        utilization_row(name, active=active, u5=busy, u15=busy, u1h=busy, timestamp=timestamp)
        for name, active, busy in rows])


def first_of(router, client):
    answer = router.chat(ALIAS, headers={"Authorization": f"Bearer {client}"})
    assert answer.status == 200
    return answer.value("x-chutes-autopilot-selected")


def firsts_on(connection):
    """Return which models 24 clients get who come by this connection."""
    firsts = set()
    for client in range(24):
        connection.request("POST", "/v1/chat/completions", json.dumps({"model": ALIAS}).encode(),
                           {"Authorization": f"Bearer {client}"})
        response = connection.getresponse()
        assert response.status == 200 and response.read()
        firsts.add(response.getheader("x-chutes-autopilot-selected"))
    return firsts


def test_three_workers_give_a_client_the_same_model_without_a_store():
    """003-R45, 003-R47"""
    with upstream_of(("a", 4, 0.5), ("b", 4, 0.5), ("c", 4, 0.5)) as upstream:
        with Router(upstream.url, **SETTINGS) as router:
            router.wait_until_fed()
            firsts = {client: {first_of(router, client) for _ in range(8)} for client in range(24)}
    assert all(len(models) == 1 for models in firsts.values())
    assert set().union(*firsts.values()) == set(NAMES)


@pytest.mark.parametrize("old_s, first", [(0, "a"), (600, "b")])
def test_an_old_feed_says_nothing_but_the_size_of_a_chute(old_s, first):
    """003-R46, 003-R61"""
    with upstream_of(("a", 2, 0.0), ("b", 20, 1.0), old_s=old_s) as upstream:
        with Router(upstream.url, **SETTINGS) as router:
            router.wait_until_fed()
            assert {first_of(router, client) for client in range(12)} == {first}


@contextlib.contextmanager
def streams(router, model, count):
    """Hold so many streams of a model open, each with its first event read."""
    body = json.dumps({"model": model, "stream": True}).encode()
    with contextlib.ExitStack() as stack:
        for _ in range(count):
            sock = stack.enter_context(
                socket.create_connection(("127.0.0.1", router.port), DEADLINE_S))
            sock.sendall(b"POST /v1/chat/completions HTTP/1.1\r\nHost: x\r\n"
                         b"Content-Length: %d\r\n\r\n%s" % (len(body), body))
            read_until(sock, b"first")
        yield


def test_what_all_workers_have_open_on_a_model_keeps_new_clients_off_it():
    """003-R48, 003-R62: in direct mode too."""
    go_on = threading.Event()

    def held(exchange):
        exchange.head(200, ("Transfer-Encoding", "chunked"))
        exchange.chunk(b"first")
        go_on.wait(DEADLINE_S)
        exchange.chunk(b"")

    with upstream_of(("a", 4, 0.5), ("b", 4, 0.5)) as upstream:
        upstream.on("a:held", held)
        with Router(upstream.url, **SETTINGS) as router:
            router.wait_until_fed()
            assert {first_of(router, client) for client in range(24)} == {"a", "b"}
            # 2 - 45/32 is less than half of 2; each worker has a third of them.
            with (streams(router, "a:held", 45),
                  router.one_client_of_each_worker() as connections):
                # A worker that has just begun may not know of the others' counts for a second.
                for connection in connections.values():
                    until(lambda: firsts_on(connection) == {"b"})
                # Whoever knows goes on to know.
                assert {first_of(router, client) for client in range(24)} == {"b"}
                go_on.set()
            until(lambda: {first_of(router, client) for client in range(24)} == {"a", "b"})
