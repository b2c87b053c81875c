"""The site file of deploy/nginx, in a real nginx, in front of a real router."""

import contextlib
import http.client
import json
import signal
import socket
import threading

import pytest

from tests.support.feeds import models_feed, utilization_row
from tests.support.nginx import SITE, Nginx
from tests.support.router import Answer, Router, free_port, read_to_end, read_until, until
from tests.support.upstream import (DEADLINE_S, Upstream, complete, pieces, reset_at_once,
                                    unavailable)

FEED = {"models": models_feed(["a", "b"]), "rows": [utilization_row("a"), utilization_row("b")]}

BODY_LIMIT = 32 * 2**20


class Site:
    """A backend, a router and an nginx in front of it, and clients of the latter."""

    def __init__(self, upstream, router, nginx):
        self.upstream, self.router, self.nginx = upstream, router, nginx

    def ask(self, body, source="127.0.0.1", method="POST", path="/v1/chat/completions", **headers):
        """Send a request from one of the loopback addresses and return the Answer."""
        connection = http.client.HTTPConnection(
            "127.0.0.1", self.nginx.port, timeout=DEADLINE_S, source_address=(source, 0))
        try:
            data = body if isinstance(body, bytes) else json.dumps(body).encode()
            connection.request(method, path, data or None,
                               {k.replace("_", "-"): v for k, v in headers.items()})
            return Answer(connection.getresponse())
        finally:
            connection.close()

    def opened(self, model):
        """Send a request and return its socket."""
        client = socket.create_connection(("127.0.0.1", self.nginx.port), DEADLINE_S)
        body = json.dumps({"model": model, "stream": True}).encode()
        client.sendall(b"POST /v1/chat/completions HTTP/1.1\r\nHost: x\r\n"
                       b"Content-Length: %d\r\n\r\n%s" % (len(body), body))
        return client


@pytest.fixture(scope="module", params=["tcp", "unix"])
def site(request, tmp_path_factory):
    """The site over either kind of upstream; the router's probes are on its port."""
    port = free_port()
    path = tmp_path_factory.mktemp("site") / "router.sock"
    address = f"127.0.0.1:{port}" if request.param == "tcp" else f"unix:{path}"
    trusted = "127.0.0.1/32" if request.param == "tcp" else "unix"
    with Upstream(**FEED) as upstream, Router(
            upstream.url, LISTEN_ADDR=address, HEALTH_LISTEN_ADDR=f"127.0.0.1:{free_port()}",
            TRUST_PROXY_HEADERS="true", TRUSTED_PROXY_CIDRS=trusted,
            MAX_INFLIGHT_REQUESTS="3", MAX_REQUEST_BYTES=str(BODY_LIMIT),
            CLIENT_BODY_TIMEOUT_MS="2000", GRACEFUL_TIMEOUT_SECS="30") as router:
        router.port = int(router.environment["HEALTH_LISTEN_ADDR"].rpartition(":")[2])
        router.wait_until_fed()
        with Nginx(address) as nginx:
            yield Site(upstream, router, nginx)


def test_a_stream_comes_through_event_by_event(site):
    """007-R6"""
    taken = threading.Semaphore(0)
    events = [b"data: %d\n\n" % number for number in range(5)]
    # Each event is sent only when the client has the one before.
    site.upstream.on("a:stream", pieces(
        events, before_each=lambda _: taken.acquire(timeout=DEADLINE_S)))
    taken.release()
    with site.opened("a:stream") as client:
        for event in events:
            read_until(client, event)
            taken.release()


def test_a_client_that_leaves_is_seen_to_leave_by_the_upstream(site):
    """007-R6, 006-W1"""
    def forever(exchange):
        exchange.head(200, ("Transfer-Encoding", "chunked"))
        exchange.chunk(b"first")
        exchange.until_closed()

    site.upstream.on("a:forever", forever)
    client = site.opened("a:forever")
    read_until(client, b"first")
    client.close()
    assert site.upstream.wait_for("a:forever").closed.wait(DEADLINE_S)


def test_a_cut_is_a_cut_through_nginx_too(site):
    """007-R6, 006-W4"""
    def broken(exchange):
        exchange.head(200, ("Transfer-Encoding", "chunked"))
        exchange.chunk(b"first")
        exchange.reset()

    site.upstream.on("a:cut", broken)
    with site.opened("a:cut") as client:
        received = read_to_end(client)
    assert received.startswith(b"HTTP/1.1 200") and not received.endswith(b"0\r\n\r\n")


def test_stickiness_goes_by_the_forwarded_address_and_not_by_what_a_client_claims(site):
    """007-R6, 005-R1"""
    def first_tried(source, **headers):
        seen = len(site.upstream.exchanges)
        assert site.ask({"model": "a:sticky,b:sticky"}, source, **headers).status == 200
        return site.upstream.exchanges[seen].model

    site.upstream.on("a:sticky", unavailable)
    assert first_tried("127.0.0.2") == "a:sticky"
    site.upstream.on("a:sticky", complete(b"{}"))
    assert first_tried("127.0.0.2") == "b:sticky"
    assert first_tried("127.0.0.3") == "a:sticky"
    assert first_tried("127.0.0.3", X_Forwarded_For="127.0.0.2") == "a:sticky"


def test_the_routers_own_refusals_come_through_whole(site):
    """007-R6, 007-R1"""
    go_on = threading.Event()

    def held(exchange):
        exchange.head(200, ("Transfer-Encoding", "chunked"))
        exchange.chunk(b"first")
        assert go_on.wait(DEADLINE_S)
        exchange.chunk(b"")

    site.upstream.on("a:held", held)
    streams = [site.opened("a:held") for _ in range(3)]
    for stream in streams:
        read_until(stream, b"first")
    for size in (10, 100_000, 300_000):
        overloaded = site.ask({"model": "b", "padding": "x" * size})
        assert (overloaded.status, overloaded.error["code"]) == (503, "overloaded")
        assert overloaded.value("Retry-After")
    go_on.set()
    for stream in streams:
        read_until(stream, b"0\r\n\r\n")
        stream.close()


def test_nginxs_own_refusals_have_the_same_shape(site):
    """007-R6"""
    with Nginx(f"127.0.0.1:{free_port()}") as nginx:
        answer = Site(None, None, nginx).ask({"model": "a"})
    assert (answer.status, answer.error["code"]) == (502, "router_unreachable")


@pytest.mark.parametrize("request_, status", [
    (b"GARBAGE\r\n\r\n", 400), (b"GET / HTTP/1.1\r\n\r\n", 400),
    (b"TRACE / HTTP/1.1\r\nHost: x\r\n\r\n", 405),
    (b"GET /" + b"x" * 40_000 + b" HTTP/1.1\r\nHost: x\r\n\r\n", 414),
    (b"GET / HTTP/1.1\r\nHost: x\r\nX: " + b"x" * 40_000 + b"\r\n\r\n", 431),
    (b"POST / HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\nContent-Length: 5\r\n\r\n", 400),
    (b"GET / HTTP/2.0\r\nHost: x\r\n\r\n", 400),
    *((b"POST / HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: %s\r\n\r\n" % coding, 400) for coding in (
        b"gzip", b"gzip, chunked", b"chunked, gzip", b"xchunked", b"identity",
        b"chunked\r\nTransfer-Encoding: chunked"))])
def test_what_nginx_cannot_parse_is_refused_in_that_shape_too(site, request_, status):
    """007-R6"""
    with socket.create_connection(("127.0.0.1", site.nginx.port), DEADLINE_S) as client:
        client.sendall(request_)
        answer = read_to_end(client)
    assert answer.startswith(b"HTTP/1.1 %d " % status), answer
    assert b'{"error": {"message": ' in answer and b"X-Request-Id: " in answer


def test_connections_to_the_router_are_kept_and_given_up_by_nginx(site):
    """007-R6, 007-R4"""
    until(lambda: not site.nginx.connections())
    for _ in range(5):
        assert site.ask({"model": "a"}).status == 200
    assert len(site.nginx.connections()) == 1
    until(lambda: not site.nginx.connections())


def test_metrics_and_readiness_are_closed_to_outsiders_and_liveness_is_not(site):
    """007-R6"""
    for path in ("/metrics", "/readyz", "//metrics", "/%6detrics"):
        answer = site.ask(b"", "127.0.0.2", "GET", path)
        assert answer.status in (403, 404) and answer.error["param"] is None, path
    assert site.ask(b"", "127.0.0.2", "GET", "/healthz").body == b"ok"
    assert site.ask(b"", "127.0.0.1", "GET", "/readyz").body == b"ready"
    assert b"chutes_autopilot_" in site.ask(b"", "127.0.0.1", "GET", "/metrics").body


def test_the_status_page_is_closed_to_outsiders_until_a_line_opens_it(site):
    """008-R16"""
    for path in ("/status", "//status", "/%73tatus", "/status?x=1"):
        answer = site.ask(b"", "127.0.0.2", "GET", path)
        assert answer.status in (403, 404) and answer.error["param"] is None, path
    answer = site.ask(b"", "127.0.0.1", "GET", "/status")
    assert answer.status == 200 and b'"configuration"' in answer.body
    assert SITE.read_text().count("        # allow 192.0.2.0/24;\n        deny all;") == 2


def test_explain_is_closed_to_outsiders_until_a_line_opens_it(site):
    """008-R27"""
    for path in ("/explain", "//explain", "/%65xplain", "/explain?x=1"):
        answer = site.ask({"model": "a"}, "127.0.0.2", path=path)
        assert answer.status in (403, 404) and answer.error["param"] is None, path


def test_the_answer_of_explain_comes_through_nginx(tmp_path):
    """008-R27: the router's main address is behind it, not that of its probes."""
    with Upstream(**FEED) as upstream, Router(upstream.url) as router:
        router.wait_until_fed()
        with Nginx(f"127.0.0.1:{router.port}") as nginx:
            site = Site(upstream, router, nginx)
            assert b'"candidates"' in site.ask({"model": "a"}, path="/explain").body
            assert site.ask({"model": "a"}, "127.0.0.2", path="/explain").status == 403


def test_what_the_backend_tells_a_proxy_to_do_is_not_done_and_passes(site):
    """007-R6, 002-R16"""
    told = [("X-Accel-Redirect", "/metrics"), ("X-Accel-Limit-Rate", "1"),
            ("X-Accel-Buffering", "yes"), ("X-Accel-Charset", "koi8-r"),
            ("X-Accel-Expires", "60"), ("X-Accel-Something", "else"),
            ("Location", "http://chutes_router/x"), ("Refresh", "5; url=http://chutes_router/x")]
    body = b"x" * 100_000
    site.upstream.on("a:accel", complete(body, fields=(("Content-Type", "text/plain"), *told)))
    answer = site.ask({"model": "a:accel"})
    assert (answer.status, answer.body) == (200, body)
    assert answer.value("Content-Type") == "text/plain"
    assert {name: answer.value(name) for name, _ in told} == dict(told)


def test_a_large_request_goes_through_and_touches_neither_disk_nor_memory(site):
    """007-R6, 001-R7"""
    seen = []
    site.upstream.on("a:large", lambda exchange: (
        seen.extend(site.nginx.files_written()), complete(b"{}")(exchange)))
    site.ask({"model": "a"})
    before = site.nginx.memory_bytes()
    frame = len(json.dumps({"model": "a:large", "padding": ""}))
    body = {"model": "a:large", "padding": "x" * (BODY_LIMIT - frame)}
    assert site.ask(body).status == 200
    assert json.loads(site.upstream.wait_for("a:large").body) == body
    assert not seen
    assert site.nginx.memory_bytes() - before < BODY_LIMIT / 8


def chunked(size):
    """Yield a chunked body of so many bytes."""
    for start in range(0, size, 2**20):
        data = b"x" * min(2**20, size - start)
        yield b"%x\r\n%s\r\n" % (len(data), data)
    yield b"0\r\n\r\n"


@pytest.mark.parametrize("framing", [b"Content-Length: %d" % (BODY_LIMIT + 1),
                                     b"Transfer-Encoding: chunked"])
def test_a_body_over_the_limit_is_refused_while_it_is_being_sent(site, framing):
    """007-R6, 002-R21"""
    with socket.create_connection(("127.0.0.1", site.nginx.port), DEADLINE_S) as client:
        def send():
            with contextlib.suppress(OSError):
                client.sendall(b"POST /v1/chat/completions HTTP/1.1\r\nHost: x\r\n"
                               b"%s\r\n\r\n" % framing)
                for piece in chunked(BODY_LIMIT + 2**20):
                    client.sendall(piece)

        sender = threading.Thread(target=send)
        sender.start()
        answer = read_to_end(client)
        sender.join(DEADLINE_S)
    assert answer.startswith(b"HTTP/1.1 413 ") and b'"code": "request_too_large"' in answer


def test_the_router_gives_up_on_a_body_that_stops_and_its_answer_comes_through(site):
    """007-R6, 002-R3"""
    with socket.create_connection(("127.0.0.1", site.nginx.port), DEADLINE_S) as client:
        client.sendall(b"POST /v1/chat/completions HTTP/1.1\r\nHost: x\r\n"
                       b"Content-Length: 100000\r\n\r\n" + b"x" * 1000)
        answer = read_to_end(client)
    assert answer.startswith(b"HTTP/1.1 408 ") and b'"code": "request_timeout"' in answer


def test_a_router_that_is_not_there_is_passed_over_and_no_post_is_sent_twice():
    """007-R6"""
    body = {"model": "a:once", "padding": "x" * 1_000_000}
    with Upstream() as first, Upstream() as second:
        gone = f"127.0.0.1:{free_port()}"
        with Nginx(f"{gone}; server 127.0.0.1:{second.port}") as nginx:
            site = Site(None, None, nginx)
            assert [site.ask(body).status for _ in range(3)] == [200] * 3
        assert len(second.exchanges) == 3
        first.otherwise(reset_at_once)
        with Nginx(f"127.0.0.1:{first.port}; server 127.0.0.1:{second.port} backup") as nginx:
            answer = Site(None, None, nginx).ask(body)
        assert (answer.status, answer.error["code"]) == (502, "router_unreachable")
        assert (len(first.exchanges), len(second.exchanges)) == (1, 3)


def test_a_header_field_as_long_as_the_router_takes_comes_through():
    """007-R6"""
    fields = {f"X-Long-{number}": "x" * 16_000 for number in range(4)}
    with Upstream() as upstream, Nginx(f"127.0.0.1:{upstream.port}") as nginx:
        assert Site(None, None, nginx).ask({"model": "a"}, **fields).status == 200
        [seen] = upstream.exchanges
    taken = dict(seen.fields)
    assert all(taken[name.lower()] == value for name, value in fields.items())


def test_one_request_has_one_id_in_both_logs(site):
    """007-R6, 002-R18"""
    given = site.ask({"model": "a"}, X_Request_Id="from-the-client").value("X-Request-Id")
    made = site.ask({"model": "a"}).value("X-Request-Id")
    insane = site.ask({"model": "a"}, X_Request_Id="has space").value("X-Request-Id")
    too_long = site.ask({"model": "a"}, X_Request_Id="q" * 129).value("X-Request-Id")
    assert given == "from-the-client" and len(made) == len(insane) == len(too_long) == 32
    for request_id in (given, made, insane, too_long):
        assert site.router.record(request_id)["status"] == 200
        until(lambda: any(line["request_id"] == request_id for line in site.nginx.logged()))


def test_a_slow_reader_holds_the_upstream_back_and_fills_no_disk(site):
    """007-R6, 006-W3"""
    sent, files = threading.Event(), []

    def flood(exchange):
        exchange.head(200, ("Transfer-Encoding", "chunked"))
        for _ in range(400):
            exchange.chunk(b"x" * 65536)
        sent.set()
        exchange.chunk(b"")

    site.upstream.on("a:flood", flood)
    with site.opened("a:flood") as client:
        read_until(client, b"xxx")
        assert not sent.wait(1.0)
        files += site.nginx.files_written()
        read_until(client, b"\r\n0\r\n\r\n")
    assert sent.is_set() and not files


def test_a_reload_between_requests_loses_none(site):
    """007-R4, 007-R6: kept connections are idle then, and each may be about to be used."""
    statuses, over = [], threading.Event()

    def ask_now_and_then(pause_s):
        while not over.wait(pause_s):
            statuses.append(site.ask({"model": "b"}).status)

    askers = [threading.Thread(target=ask_now_and_then, args=(0.9 + number / 100,))
              for number in range(40)]
    for asker in askers:
        asker.start()
    for reload in (1, 2):
        until(lambda: len(statuses) >= 60 * reload)
        site.router.process.send_signal(signal.SIGHUP)
        site.router.wait_for_lines(
            lambda line: line["message"].startswith("Worker exiting"), reload)
    over.set()
    for asker in askers:
        asker.join(DEADLINE_S)
    # Three at a time are served here.
    assert set(statuses) == {200, 503} or set(statuses) == {200}
    assert not [line for line in site.router.lines if "exc_info" in line]
