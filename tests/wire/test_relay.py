"""After the first byte: every byte as it came, and no end that is not one."""

import contextlib
import functools
import http.client
import json
import socket
import threading
import time

import pytest

from tests.support.feeds import models_feed
from tests.support.router import Router, read_until, until
from tests.support.upstream import Upstream, complete, pieces, raw, reset_at_once, sse

PARTS = [b"data: %d\n\n" % number for number in range(6)]


@pytest.mark.parametrize("framing", ["chunked", "length", "close"])
def test_every_piece_reaches_the_client_before_the_next_is_sent(router, upstream, model, framing):
    """002-R15"""
    name, here = model(), [threading.Event() for _ in PARTS]

    def wait_for_the_one_before(number):
        assert number == 0 or here[number - 1].wait(5)

    upstream.on(name, pieces(PARTS, framing, before_each=wait_for_the_one_before))
    connection = router.connect()
    connection.request("POST", "/v1/chat/completions", json.dumps({"model": name}))
    response = connection.getresponse()
    received = b""
    for event, part in zip(here, PARTS):
        while not received.endswith(part):
            piece = response.read1(65536)
            assert piece, f"ended after {received!r}"
            received += piece
        event.set()
    assert response.read() == b""
    assert received == b"".join(PARTS)
    connection.close()


@pytest.mark.parametrize("framing", ["chunked", "length", "close"])
@pytest.mark.parametrize("size", [1, 65535, 65536, 300_000])
def test_bodies_of_every_size_pass_byte_for_byte(router, upstream, model, framing, size):
    """002-R15"""
    name, body = model(), bytes(range(256)) * (size // 256) + b"x" * (size % 256)
    upstream.on(name, pieces([body[:size // 2], body[size // 2:]] if size > 1 else [body],
                             framing))
    answer = router.chat(name)
    assert answer.body == body and answer.ended == "complete"
    assert answer.value("Content-Length") == (str(size) if framing == "length" else None)


def test_response_fields_cross_repeated_ones_included_but_for_those_of_the_hop(
        router, upstream, model):
    """002-R16, 002-R17"""
    name = model()
    upstream.on(name, complete(b"{}", fields=[
        ("Set-Cookie", "a=1"), ("set-cookie", "b=2"), ("X-Chutes-InvocationID", "17"),
        ("Date", "Thu, 01 Jan 1970 00:00:00 GMT"), ("Server", "uvicorn"),
        ("Connection", "keep-alive, X-Hop"), ("X-Hop", "1"), ("Keep-Alive", "timeout=5"),
        ("Proxy-Connection", "keep-alive"), ("Trailer", "X-T"), ("Upgrade", "h2c"),
        ("X-Accel-Buffering", "no")]))
    answer = router.chat(f"{name},")
    assert answer.values("Set-Cookie") == ["a=1", "b=2"]
    assert answer.value("X-Chutes-InvocationID") == "17"
    assert answer.value("X-Accel-Buffering") == "no"
    assert len(answer.values("Date")) == len(answer.values("Server")) == 1
    assert answer.value("Date") != "Thu, 01 Jan 1970 00:00:00 GMT"
    for hop in ("X-Hop", "Keep-Alive", "Proxy-Connection", "Trailer", "Upgrade", "Content-Type"):
        assert answer.values(hop) == []


@pytest.mark.parametrize("sent, back", [
    ("abc-123", True), ("x" * 128, True), ("x" * 129, False), ("with space", False), ("", False),
])
def test_a_sane_request_id_is_kept_and_another_replaced(router, upstream, model, sent, back):
    """002-R18"""
    name = model()
    answer = router.chat(name, headers={"X-Request-Id": sent})
    got = answer.value("X-Request-Id")
    assert (got == sent) is back and got
    assert dict(upstream.seen(name)[0].fields)["x-request-id"] == got


def test_the_upstreams_own_request_id_wins_on_the_way_back(router, upstream, model):
    """002-R18"""
    name = model()
    upstream.on(name, complete(b"{}", fields=[("X-Request-ID", "of-the-upstream")]))
    assert router.chat(name, headers={"X-Request-Id": "mine"}).value(
        "X-Request-Id") == "of-the-upstream"


def test_errors_made_here_carry_the_request_id_too(router):
    """002-R18"""
    assert router.post(b"{", {"X-Request-Id": "mine"}).value("X-Request-Id") == "mine"
    assert router.get("/nowhere", {"X-Request-Id": "mine"}).value("X-Request-Id") == "mine"


def test_a_slow_reader_gets_everything(router, upstream, model):
    """006-W3"""
    name, body = model(), b"x" * 4_000_000
    upstream.on(name, complete(body))
    with socket.create_connection(("127.0.0.1", router.port), 10) as client:
        request = json.dumps({"model": name}).encode()
        client.sendall(b"POST /v1/chat/completions HTTP/1.1\r\nHost: x\r\nConnection: close\r\n"
                       b"Content-Length: %d\r\n\r\n%s" % (len(request), request))
        pace, received = threading.Event(), b""
        while data := client.recv(65536):
            received += data
            pace.wait(0.01)
    assert received.endswith(b"x" * 1000)
    assert len(received.partition(b"\r\n\r\n")[2]) == len(body)


def test_connections_are_reused_after_complete_answers(router, upstream, model):
    """006-W9"""
    name = model()
    upstream.on(name, pieces(sse([{"n": 1}])))
    for _ in range(5):
        assert router.chat(name).ended == "complete"
    assert len({exchange.number for exchange in upstream.seen(name)}) <= 2


def test_a_clients_connection_serves_many_requests(router, upstream, model):
    """002-R16"""
    connection = router.connect()
    for number in range(5):
        name = model()
        upstream.on(name, pieces([b"%d" % number], ["chunked", "length"][number % 2]))
        connection.request("POST", "/v1/chat/completions", json.dumps({"model": name}))
        assert connection.getresponse().read() == b"%d" % number
    connection.close()


def test_fields_pass_as_they_are_spelled(router, upstream, model):
    """002-R16, 002-R17"""
    name = model()
    upstream.on(name, complete(b"{}", status=201, fields=[
        ("Location", "http://x/a b?q=%zz"), ("x-chutes-autopilot-selected", "of the upstream")]))
    answer = router.chat(name)
    assert answer.value("Location") == "http://x/a b?q=%zz"
    assert answer.value("x-chutes-autopilot-selected") is None
    assert router.chat(f"{name},").values("x-chutes-autopilot-selected") == [name]


@pytest.mark.parametrize("data", [b"1\r\nx\r\n" * 5000, b"55\r\n" + b"x" * 85 + b"\r\n"])
def test_one_fast_stream_does_not_keep_the_worker_from_others(router, upstream, model, data):
    """006-W15"""
    name, enough = model(), threading.Event()

    def blast(exchange):
        exchange.head(200, ("Transfer-Encoding", "chunked"))
        exchange.keep_open = False
        block = data * (60_000 // len(data) + 1)
        try:
            while not enough.is_set():
                exchange.send(block)
        except OSError:
            pass

    def read_on(sock):
        while not enough.is_set() and sock.recv(1 << 20):
            pass

    upstream.on(name, blast)
    body = json.dumps({"model": name}).encode()
    with socket.create_connection(("127.0.0.1", router.port), 10) as client:
        client.sendall(b"POST /v1/chat/completions HTTP/1.1\r\nHost: x\r\n"
                       b"Content-Length: %d\r\n\r\n%s" % (len(body), body))
        read_until(client, b"\r\n\r\n")
        reader = threading.Thread(target=read_on, args=(client,))
        reader.start()
        # Without a fair share these wait for the end of the stream, which is after them.
        assert [router.get("/healthz").status for _ in range(20)] == [200] * 20
        enough.set()
        reader.join(10)


FLOODS = {
    "requests sent ahead": b"GET /healthz HTTP/1.1\r\nHost: x\r\n\r\n" * 500,
    "an extension a chunk": (b"1;" + b"x" * 8000 + b"\r\nx\r\n") * 10,
}


@pytest.mark.parametrize("flood", FLOODS)
def test_one_client_does_not_keep_the_worker_from_others(router, flood):
    """006-W15"""
    enough, answered, ended = threading.Event(), [], []

    def count_answers(sock):
        with contextlib.suppress(OSError):
            while data := sock.recv(65536):
                answered.append(data.count(b"HTTP/1.1 200 OK"))

    def keep_sending():
        while not enough.is_set():
            try:
                with socket.create_connection(("127.0.0.1", router.port), 10) as client:
                    if flood != "requests sent ahead":
                        client.sendall(b"POST /v1/chat/completions HTTP/1.1\r\nHost: x\r\n"
                                       b"Transfer-Encoding: chunked\r\n\r\n")
                    reader = threading.Thread(target=count_answers, args=(client,))
                    reader.start()
                    while not enough.is_set():
                        client.sendall(FLOODS[flood])
                    client.shutdown(socket.SHUT_RDWR)
                    reader.join(10)
            except OSError:
                ended.append(1)

    threads = [threading.Thread(target=keep_sending) for _ in range(2)]
    for thread in threads:
        thread.start()
    try:
        # Without a fair share these wait for the end of the flood, or as good as that.
        assert [router.get("/healthz").status for _ in range(20)] == [200] * 20
        assert sum(answered) < 20 * 300 and len(ended) < 10
    finally:
        enough.set()
        for thread in threads:
            thread.join(20)


def test_connections_the_upstream_has_closed_do_not_pile_up(router, upstream, model):
    """006-W9"""
    name, everyone = model(), threading.Barrier(20)
    upstream.on(name, lambda exchange: (everyone.wait(10), complete(b"{}")(exchange)))
    threads = [threading.Thread(target=router.chat, args=(name,)) for _ in range(20)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(10)
    [busy] = router.probe()
    upstream.drop_idle()
    until(lambda: router.probe()[0]["descriptors"] <= busy["descriptors"] - 15)


def test_an_error_within_the_stream_passes_as_it_is(router, upstream, model):
    """002-R15"""
    name = model()
    parts = [*sse([{"n": 1}], done=False), b'{"detail":"exhausted"}']
    upstream.on(name, pieces(parts))
    answer = router.chat(name)
    assert (answer.body, answer.ended) == (b"".join(parts), "complete")


def test_until_close_answers_end_where_the_upstream_ends_them(router, upstream, model):
    """002-R15"""
    name = model()
    upstream.on(name, raw(b"HTTP/1.0 200 OK\r\nContent-Type: a/b\r\n\r\nwhole", "close"))
    connection = http.client.HTTPConnection("127.0.0.1", router.port, timeout=10)
    connection.request("POST", "/v1/chat/completions", json.dumps({"model": name}))
    response = connection.getresponse()
    assert (response.read(), response.getheader("Transfer-Encoding")) == (b"whole", "chunked")
    connection.close()


HEAD = b"POST /v1/chat/completions HTTP/1.1\r\nHost: x\r\nContent-Length: %d\r\n\r\n"


def ask(model, router, _):
    """Ask and take the answer."""
    router.chat(model)


def leave(model, router, upstream):
    """Send a request and leave once the upstream has it."""
    with socket.create_connection(("127.0.0.1", router.port), 10) as client:
        seen = len(upstream.exchanges)
        body = json.dumps({"model": model, "stream": True}).encode()
        client.sendall(HEAD % len(body) + body)
        until(lambda: len(upstream.exchanges) > seen)


def send_slowly(router, _):
    """Send a part of a body and wait."""
    router.exchange(HEAD % 9 + b"{")


def lose_the_way(router, _):
    """Ask for a route that is not there."""
    router.get("/v1/other")


ENDINGS = {
    **{model: functools.partial(ask, model) for model in (
        "ok", "failing,ok", "failing", "unknown", "cut", "no head", "no body")},
    "left without a head": functools.partial(leave, "no head"),
    "left without a body": functools.partial(leave, "no body"),
    "a body too slow": send_slowly, "no such route": lose_the_way}


@pytest.mark.parametrize("ending", ENDINGS)
def test_a_request_leaves_nothing_that_only_the_garbage_collector_frees(ending):
    """006-W15: a full collection among thousands of streams holds the event loop."""
    listed = models_feed(["ok", "failing", "cut", "no head", "no body"])
    with Upstream(models=listed) as upstream, Router(
            upstream.url, UPSTREAM_HEADER_TIMEOUT_MS="100", CLIENT_BODY_TIMEOUT_MS="100",
            UPSTREAM_FIRST_BODY_BYTE_TIMEOUT_MS="100") as router:
        upstream.on("failing", reset_at_once)
        upstream.on("cut", raw(b"HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\nfirst", "reset"))
        upstream.on("no head", lambda exchange: exchange.until_closed())
        upstream.on("no body", lambda exchange: (
            exchange.head(200, ("Content-Length", "9")), exchange.until_closed()))

        def end(count):
            for _ in range(count):
                ENDINGS[ending](router, upstream)
            router.wait_for_lines(lambda line: line["message"].startswith("request"), count,
                                  since=since)

        since = 0
        end(1)
        router.probe()
        since = len(router.lines)
        end(20)
        [report] = router.probe()
        # The URL matching leaves eight small ones a request; with a frame it would be dozens.
        assert report["garbage"] <= 20 * 10


def test_a_connection_may_idle_longer_than_a_write_may_take(upstream, model):
    """006-W3"""
    name = model()
    with Router(upstream.url, CLIENT_WRITE_TIMEOUT_MS="200") as router:
        connection = router.connect()
        connection.connect()
        kept = connection.sock
        for _ in range(2):
            connection.request("POST", "/v1/chat/completions", json.dumps({"model": name}))
            assert connection.getresponse().read()
            answered_at = time.monotonic()
            until(lambda: time.monotonic() - answered_at > 0.5)
        assert connection.sock is kept
        connection.close()
        assert not [line for line in router.lines if line["level"] == "ERROR"]
