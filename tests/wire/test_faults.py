"""Every fault of the table in specs/006, on real sockets, and the same oracle after each.

A case belongs to a row of the table (its name begins with the row's id); `tests/test_docs.py`
holds the two together.
"""

import contextlib
import dataclasses
import json
import shutil
import socket
import ssl
import threading
from collections.abc import Callable

import pytest
import trustme

from tests.support.feeds import models_feed, public_names, utilization_feed
from tests.support.router import DEADLINE_S, Router, free_port, read_to_end, read_until
from tests.support.upstream import (Upstream, close_at_once, complete, drip, headers_then_end,
                                    headers_then_stall, pieces, raw, reset_at_once, sse, stall)
from tests.wire.conftest import LISTED, SHORT

OK = b"HTTP/1.1 200 OK\r\n"
CHUNKED = ("Transfer-Encoding", "chunked")
EVENTS = ("Content-Type", "text/event-stream")
CONNECT = ("upstream_connect_error", 502)
HEADER_TIMEOUT = ("upstream_header_timeout", 504)
FIRST_TIMEOUT = ("upstream_first_body_byte_timeout", 504)
FIRST_ERROR = ("upstream_first_body_byte_error", 502)
PATIENT = {"UPSTREAM_HEADER_TIMEOUT_MS": "60000", "UPSTREAM_NONSTREAM_HEADER_TIMEOUT_MS": "60000"}
LOST = {("failover_reason_total", CONNECT[0]): 1, ("edge_failures_total", "connection_lost"): 1}


@pytest.fixture(scope="module")
def upstream():
    with Upstream(models=models_feed([LISTED, *public_names()]),
                  rows=utilization_feed()) as server:
        server.otherwise(echo_nonce)
        yield server


@pytest.fixture(scope="module")
def router(upstream):
    # The feeds are fetched once: their connections must not come and go while others are counted.
    calm = {"MODELS_REFRESH_MS": "3600000", "UTILIZATION_REFRESH_MS": "3600000",
            "READYZ_MAX_SNAPSHOT_AGE_MS": "3600000", "MAX_REQUEST_BYTES": "20000000",
            "MAX_BODY_BYTES_IN_FLIGHT": "20000000"}
    with Router(upstream.url, **SHORT | calm) as process:
        process.wait_until_fed()
        yield process


def echo_nonce(exchange):
    """Answer with what only this request can know."""
    complete(json.loads(exchange.body)["nonce"].encode())(exchange)


class Oracle:
    """What must hold after any fault."""

    def __init__(self, router, upstream, model):
        self._router, self._upstream, self._model = router, upstream, model
        upstream.drop_idle()
        self._own_answer(router.connect())
        self._before = self._settled()
        self.counted = router.metrics()

    def _own_answer(self, connection):
        nonce = self._model()
        body = json.dumps({"model": nonce, "nonce": nonce}).encode()
        connection.request("POST", "/v1/chat/completions", body)
        assert connection.getresponse().read() == nonce.encode()
        connection.close()

    def _settled(self):
        [report] = self._router.probe()
        return report["descriptors"], report["greenlets"]

    def holds(self, counted):
        """Check that the counters rose by `counted`, that every next request gets its own
        answer on whichever connection, and that nothing is left behind."""
        risen = {key: rise for key, rise in self._router.counted_since(self.counted).items()
                 if key[0] not in ("requests_total", "selection_total")}
        assert risen == counted
        for _ in range(3):
            self._own_answer(self._router.connect())
        for _ in range(200):
            settled = self._settled()
            if settled <= self._before:
                return
        assert settled <= self._before, f"{self._before} before, {settled} after"


@pytest.fixture
def oracle(router, upstream, model):
    return Oracle(router, upstream, model)


def ask(router, models, headers=None, **body):
    return router.chat(models, headers=headers, **body)


# -- before commit ---------------------------------------------------------------------------


def then(first, second):
    """Do one thing after the other."""
    def script(exchange):
        first(exchange)
        second(exchange)
    return script


def head(*fields, status=200):
    return lambda exchange: exchange.head(status, *fields)


def end(how):
    return lambda exchange: getattr(exchange, how)()


def framed(framing, body=b"ok"):
    return raw(OK + framing + b"\r\n" + body)


BEFORE_COMMIT = {
    "F4 reset before headers": (reset_at_once, CONNECT),
    "F4 close before headers": (close_at_once, CONNECT),
    "F4 close within headers": (raw(OK + b"Content-Le", "close"), CONNECT),
    "F4 reset within headers": (raw(OK + b"Content-Le", "reset"), CONNECT),
    "F5 no HTTP": (raw(b"SSH-2.0-OpenSSH_9.2\r\n\r\n", "close"), CONNECT),
    "F5 another HTTP": (raw(b"HTTP/2 200\r\n\r\n", "close"), CONNECT),
    # These send nothing more: waiting for the rest would be another fault, F6.
    "F5 a greeting": (raw(b"SSH-2.0-OpenSSH_9.2\r\n", "until_closed"), CONNECT),
    "F5 a TLS alert": (raw(b"\x15\x03\x01\x00\x02\x02\x46", "until_closed"), CONNECT),
    "F5 an HTTP/2 frame": (raw(b"\x00\x00\x12\x04" + b"\x00" * 23, "until_closed"), CONNECT),
    "F5 a body without a head": (raw(b'{"error": "no"}', "until_closed"), CONNECT),
    "F5 bare LF": (raw(b"HTTP/1.1 200 OK\nContent-Length: 2\n\nok", "until_closed"), CONNECT),
    "F5 bare LF after a good line": (
        raw(OK + b"Content-Length: 2\n\nok", "until_closed"), CONNECT),
    "F5 no HTTP after an interim response": (
        raw(b"HTTP/1.1 102 Processing\r\n\r\n{}", "until_closed"), CONNECT),
    "F5 endless head": (raw(OK + b"X: " + b"y" * 70000, "until_closed"), CONNECT),
    "F5 field without colon": (framed(b"what\r\nContent-Length: 2\r\n"), CONNECT),
    "F5 folded field": (framed(b"A: b\r\n c\r\nContent-Length: 2\r\n"), CONNECT),
    "F5 control in field": (framed(b"A: \x00\r\nContent-Length: 2\r\n"), CONNECT),
    "F5 bare CR in field": (framed(b"A: b\rX: c\r\nContent-Length: 2\r\n"), CONNECT),
    "F5 length not a number": (framed(b"Content-Length: 2x\r\n"), CONNECT),
    "F5 negative length": (framed(b"Content-Length: -2\r\n"), CONNECT),
    "F5 two lengths": (framed(b"Content-Length: 2\r\nContent-Length: 3\r\n"), CONNECT),
    "F5 length list": (framed(b"Content-Length: 2, 2\r\n"), CONNECT),
    "F5 length and chunked": (framed(
        b"Content-Length: 2\r\nTransfer-Encoding: chunked\r\n", b"2\r\nok\r\n0\r\n\r\n"), CONNECT),
    "F5 unknown coding": (framed(b"Transfer-Encoding: gzip, chunked\r\n", b"0\r\n\r\n"), CONNECT),
    "F5 repeated coding": (framed(b"Transfer-Encoding: chunked\r\n" * 2, b"0\r\n\r\n"), CONNECT),
    "F5 chunked in HTTP/1.0": (raw(
        b"HTTP/1.0 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n"), CONNECT),
    "F5 protocol switch": (raw(b"HTTP/1.1 101 Go\r\nUpgrade: x\r\n\r\n", "until_closed"), CONNECT),
    "F5 too many interim": (
        raw(b"HTTP/1.1 102 Processing\r\n\r\n" * 17 + OK + b"Content-Length: 2\r\n\r\nok"),
        CONNECT),
    "F6 no headers in time": (stall, HEADER_TIMEOUT),
    "F6 dripped headers": (drip(OK + b"X-Slow: " + b"y" * 500, 0.05), HEADER_TIMEOUT),
    "F6 only interim": (raw(b"HTTP/1.1 103 Early Hints\r\nLink: </a>\r\n\r\n", "until_closed"),
                        HEADER_TIMEOUT),
    "F9 no body byte in time": (headers_then_stall, FIRST_TIMEOUT),
    "F9 dripped chunk size": (
        then(head(CHUNKED), drip(b"0" * 16 + b";" + b"x" * 500, 0.05)), FIRST_TIMEOUT),
    "F10 chunked, no chunk": (headers_then_end, FIRST_ERROR),
    "F10 length 0": (complete(b""), FIRST_ERROR),
    "F10 204": (raw(b"HTTP/1.1 204 No Content\r\n\r\n"), FIRST_ERROR),
    "F10 until close, no byte": (complete(b"", "close"), FIRST_ERROR),
    "F10 length, reset": (then(head(("Content-Length", 5)), end("reset")), FIRST_ERROR),
    "F10 length, closed": (then(head(("Content-Length", 5)), end("close")), FIRST_ERROR),
    "F10 chunked, closed": (then(head(CHUNKED), end("close")), FIRST_ERROR),
    "F10 bad first chunk": (
        raw(OK + b"Transfer-Encoding: chunked\r\n\r\nxyz\r\n"), FIRST_ERROR),
}


@pytest.mark.parametrize("case", BEFORE_COMMIT)
def test_a_fault_before_the_first_byte_leads_to_the_next_candidate(
        router, upstream, model, oracle, case):
    """002-R11, 002-R12, 006-W2, 006-W5, 006-W8, 006-W13"""
    script, (reason, _) = BEFORE_COMMIT[case]
    bad, good, spare = model(), model(), model()
    upstream.drop_idle()  # on a stale connection it would be another fault
    upstream.on(bad, script)
    upstream.on(good, pieces([b"data: good\n\n"]))
    answer = ask(router, f"{bad},{good},{spare}", {"X-Request-Id": bad})
    assert (answer.status, answer.body, answer.ended) == (200, b"data: good\n\n", "complete")
    assert answer.value("x-chutes-autopilot-selected") == good
    assert upstream.seen(bad)[0].closed.wait(5)
    assert len(upstream.seen(bad)) == 1 and not upstream.seen(spare)
    outcomes = [attempt["outcome"] for attempt in router.record(bad)["attempts"]]
    assert outcomes == [reason, "200"]
    oracle.holds(LOST if reason == CONNECT[0] else {("failover_reason_total", reason): 1})


@pytest.mark.parametrize("case", BEFORE_COMMIT)
def test_a_fault_of_the_last_candidate_before_the_first_byte_is_the_answer(
        router, upstream, model, oracle, case):
    """002-R12, 002-R21, 006-W13"""
    script, (code, status) = BEFORE_COMMIT[case]
    name = model()
    upstream.drop_idle()
    upstream.on(name, script)
    answer = ask(router, name)
    assert (answer.status, answer.ended) == (status, "complete")
    assert answer.error == {"message": answer.error["message"], "type": "server_error",
                            "param": None, "code": code}
    assert len(upstream.seen(name)) == 1
    assert upstream.seen(name)[0].closed.wait(5)
    oracle.holds(LOST if code == CONNECT[0] else {("failover_reason_total", code): 1})


def test_F8_a_503_is_a_fault_and_the_last_one_is_passed_on(router, upstream, model, oracle):
    """002-R12, 006-W13"""
    first, second = model(), model()
    for name in (first, second):
        upstream.on(name, complete(name.encode(), status=503))
    answer = ask(router, f"{first},{second}")
    assert (answer.status, answer.body) == (503, second.encode())
    assert upstream.seen(first)[0].closed.wait(5)
    oracle.holds({("failover_reason_total", "upstream_503"): 2})


HTML = b"<html><h1>503 Service Unavailable</h1></html>"
TYPED = ("Content-Type", "text/html; charset=utf-8")


@pytest.mark.parametrize("case, script", [
    ("F26 typed", complete(HTML, status=503, fields=[TYPED])),
    ("F26 typed, and no body", complete(b"", status=503, fields=[TYPED])),
    ("F26 untyped", complete(HTML, status=503)),
    ("F26 untyped, chunked", complete(HTML, "chunked", status=503)),
    ("F26 untyped, until close", complete(HTML, "close", status=503))])
def test_a_503_in_html_is_the_edges_and_the_last_one_is_passed_on(
        router, upstream, model, oracle, case, script):
    """002-R12, 002-R61, 006-W13"""
    first, second = model(), model()
    upstream.on(first, script)
    upstream.on(second, complete(b"{}"))
    answer = ask(router, f"{first},{second}", {"X-Request-Id": first})
    assert (answer.status, answer.value("x-chutes-autopilot-selected")) == (200, second)
    outcomes = [attempt["outcome"] for attempt in router.record(first)["attempts"]]
    assert outcomes == ["edge_503", "200"]
    upstream.on(second, script)
    answer = ask(router, f"{second}")
    assert (answer.status, answer.ended) == (503, "complete")
    assert answer.body == (b"" if "no body" in case else HTML)
    oracle.holds({("failover_reason_total", "edge_503"): 2, ("edge_failures_total", "edge_503"): 2})


@pytest.mark.parametrize("case, script", [
    ("F8 silent", then(head(CHUNKED, status=503), stall)),
    ("F8 silent with JSON", then(head(CHUNKED, ("Content-Type", "application/json"), status=503),
                                 stall)),
    ("F8 empty", complete(b"", status=503)),
    ("F8 breaks", then(head(("Content-Length", 9), status=503), end("reset")))])
def test_a_503_that_says_nothing_is_the_models(router, upstream, model, oracle, case, script):
    """002-R61, 006-W13"""
    first, second = model(), model()
    upstream.on(first, script)
    upstream.on(second, complete(b"{}"))
    answer = ask(router, f"{first},{second}", {"X-Request-Id": first})
    assert (answer.status, answer.value("x-chutes-autopilot-selected")) == (200, second)
    outcomes = [attempt["outcome"] for attempt in router.record(first)["attempts"]]
    assert outcomes == ["upstream_503", "200"]
    assert upstream.seen(first)[0].closed.wait(5)
    oracle.holds({("failover_reason_total", "upstream_503"): 1})


def refused(detail, framing="length", **more):
    return complete(json.dumps({"detail": detail, **more}).encode(), framing, status=404)


@pytest.mark.parametrize("framing", ["length", "chunked", "close"])
def test_F25_a_404_of_the_models_name_is_a_fault_and_the_last_one_is_passed_on(
        router, upstream, model, oracle, framing):
    """002-R12, 006-W13"""
    first, second, third = model(), model(), model()
    for name in (first, second):
        upstream.on(name, refused(f"model not found: {name}", framing, more="\ud800"))
    answer = ask(router, f"{first},{second}")
    assert (answer.status, answer.ended) == (404, "complete")
    assert json.loads(answer.body) == {"detail": f"model not found: {second}", "more": "\ud800"}
    assert answer.value("x-chutes-autopilot-selected") == second
    upstream.on(third, pieces([b"data: good\n\n"]))
    answer = ask(router, f"{first},{third}", {"X-Request-Id": third})
    assert (answer.status, answer.body) == (200, b"data: good\n\n")
    outcomes = [attempt["outcome"] for attempt in router.record(third)["attempts"]]
    assert outcomes == ["upstream_404", "200"]
    oracle.holds({("failover_reason_total", "upstream_404"): 3})


NOT_FOUND = b'{"detail":"model not found: x"}'
OTHER_404 = {
    "F25 no such route": refused("No matching cord found!"),
    "F25 an object": refused({"model not found": 1}),
    "F25 no JSON": complete(b"model not found", status=404),
    "F25 HTML": complete(b"<html>404", status=404, fields=[("Content-Type", "text/html")]),
    "F25 no body": complete(b"", status=404),
    "F25 coded": complete(NOT_FOUND, status=404, fields=[("Content-Encoding", "gzip")]),
    "F25 too long": refused("model not found", padding="x" * 65536),
    "F25 much too long": refused("model not found", "chunked", padding="x" * 1_000_000),
}


@pytest.mark.parametrize("case", OTHER_404)
def test_another_404_is_passed_on_as_it_came(router, upstream, model, oracle, case):
    """002-R12, 006-W13"""
    first, second = model(), model()
    upstream.on(first, OTHER_404[case])
    answer = ask(router, f"{first},{second}")
    assert (answer.status, answer.ended) == (404, "complete")
    assert answer.value("x-chutes-autopilot-selected") == first
    assert not upstream.seen(second)
    alone = ask(router, first)
    assert (alone.status, alone.body) == (404, answer.body)
    oracle.holds({})


@pytest.mark.parametrize("case, script, cause", [
    ("F25 short",
     then(then(head(("Content-Length", 99), status=404), raw(NOT_FOUND[:-1])), end("close")),
     "short"),
    ("F25 reset",
     then(then(head(CHUNKED, status=404), raw(b"1\r\n{\r\n")), end("reset")), "reset"),
    ("F25 silent", then(head(CHUNKED, status=404), then(raw(b"1\r\n{\r\n"), stall)), "silence"),
    ("F25 dripped", then(head(("Content-Length", 999), status=404), drip(b"x" * 500, 0.05)),
     "silence")])
def test_a_404_that_breaks_off_is_cut(router, upstream, model, oracle, case, script, cause):
    """002-R12, 006-W4, 006-W13"""
    first, second = model(), model()
    upstream.on(first, script)
    answer = ask(router, f"{first},{second}")
    assert (answer.status, answer.ended) == (404, "cut")
    assert not upstream.seen(second)
    assert upstream.seen(first)[0].closed.wait(5)
    oracle.holds({("cuts_total", cause): 1})


def test_F7_a_request_the_upstream_does_not_take_is_bounded_by_the_header_deadline(
        router, upstream, model, oracle):
    """002-R13, 006-W2, 006-W13"""
    # Whoever reads no further than the head: the rest of the body fills the socket buffers.
    with Upstream() as deaf:
        deaf.refuse_bodies = True
        with Router(upstream.url, BACKEND_BASE_URL=deaf.url,
                    **SHORT | {"MAX_REQUEST_BYTES": "20000000"}) as alone:
            alone.wait_until_fed()
            answer = ask(alone, LISTED, padding="x" * 15_000_000)
            assert answer.error["code"] == "upstream_header_timeout"
            assert deaf.bodies_refused[0].wait(5)


# -- connecting ------------------------------------------------------------------------------


@dataclasses.dataclass
class Unreachable:
    """A place that takes no connections, in one way or another.

    reached, left  set when a peer was accepted, and when it is gone again
    """

    url: str
    close: Callable[[], None] = lambda: None
    reached: threading.Event | None = None
    left: threading.Event | None = None


def full_listener():
    """Listen with a queue that is full: the kernel answers no further connect."""
    listener = socket.create_server(("127.0.0.1", 0), backlog=0)
    waiting = [socket.socket() for _ in range(4)]
    for sock in waiting:
        sock.setblocking(False)
        sock.connect_ex(listener.getsockname())

    def close():
        for sock in (*waiting, listener):
            sock.close()
    return Unreachable(f"http://127.0.0.1:{listener.getsockname()[1]}", close)


def not_tls():
    """Answer a TLS handshake with something else."""
    server = Upstream()
    server.__enter__()
    return Unreachable(server.url.replace("http:", "https:"), lambda: server.__exit__())


def silent_tls():
    """Accept and never shake hands."""
    listener = socket.create_server(("127.0.0.1", 0), backlog=16)
    reached, left = threading.Event(), threading.Event()

    def accept():
        try:
            while True:
                sock, _ = listener.accept()
                reached.set()
                with sock:
                    sock.settimeout(10)
                    read_to_end(sock)
                left.set()
        except OSError:
            return

    def close():
        listener.shutdown(socket.SHUT_RDWR)
        listener.close()
    threading.Thread(target=accept, daemon=True).start()
    return Unreachable(f"https://127.0.0.1:{listener.getsockname()[1]}", close,
                       reached, left)


CONNECTING = {
    "F1 refused": lambda: Unreachable(f"http://127.0.0.1:{free_port()}"),
    "F1 no such name": lambda: Unreachable("http://backend.invalid"),
    "F2 connect hangs": full_listener,
    "F2 slow name": lambda: Unreachable("http://slow.invalid"),
    "F2 handshake hangs": silent_tls,
    "F3 no TLS there": not_tls,
}


@pytest.mark.parametrize("case", CONNECTING)
def test_an_upstream_that_cannot_be_reached_is_a_connect_error(upstream, case):
    """002-R12, 006-W2, 006-W13"""
    place = CONNECTING[case]()
    try:
        with Router(upstream.url, BACKEND_BASE_URL=place.url,
                    **SHORT | PATIENT) as alone:
            alone.wait_until_fed()
            answer = ask(alone, f"{LISTED},{public_names()[0]}")
            assert (answer.status, answer.error["code"]) == (502, "upstream_connect_error")
            metrics = alone.metrics()
            assert metrics["failover_reason_total", "upstream_connect_error"] == 2
            assert metrics["edge_failures_total", "unreachable"] == 2
            assert place.left is None or place.left.wait(1)
    finally:
        place.close()


def test_a_certificate_nobody_vouches_for_is_a_connect_error_and_a_known_one_is_not(
        upstream, tmp_path, certificate):
    """002-R10, 002-R12"""
    with Upstream(models=upstream.models, rows=upstream.rows, tls=certificate) as secure:
        url = secure.url.replace("127.0.0.1", "localhost")
        settings = {"BACKEND_BASE_URL": url, "MODELS_URL": f"{url}/v1/models",
                    "UTILIZATION_URL": f"{url}/chutes/utilization", "MODELS_REFRESH_MS": "50"}
        with Router(upstream.url, **settings) as wary:
            assert ask(wary, LISTED).error["code"] == "upstream_connect_error"
            assert wary.get("/readyz").error["code"] == "missing_allowlist"
        bundle = tmp_path / "bundle.pem"
        shutil.copy(certificate, bundle)
        with Router(upstream.url, **settings, REQUESTS_CA_BUNDLE=str(bundle)) as trusting:
            # Read once, at start: loading it for each connection would hold the event loop.
            bundle.unlink()
            trusting.wait_until_fed()
            for _ in range(3):
                assert ask(trusting, LISTED).status == 200
                secure.drop_idle()
            fetched = len(trusting.lines)
            trusting.wait_for_lines(lambda line: line["message"] == "feed refreshed", 3,
                                    since=fetched)
        assert len({exchange.number for exchange in secure.exchanges}) == 3
        assert len(secure.seen(LISTED)) == 3


def tunnel_proxy(tls=None):
    """Answer CONNECT by passing bytes both ways; return the listener and the targets asked for.

    tls  path of a certificate with its key: speak TLS to clients
    """
    listener, targets = socket.create_server(("127.0.0.1", 0), backlog=16), []

    def passing(source, sink):
        try:
            while data := source.recv(65536):
                sink.sendall(data)
            sink.shutdown(socket.SHUT_WR)
        except OSError:
            pass

    def serve(client):
        if tls is not None:
            context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
            context.load_cert_chain(tls)
            client = context.wrap_socket(client, server_side=True)
        request = read_until(client, b"\r\n\r\n")
        targets.append(request.split()[1].decode())
        server = socket.create_connection(("127.0.0.1", int(targets[-1].rpartition(":")[2])))
        client.sendall(b"HTTP/1.1 200 Connected\r\n\r\n")
        threading.Thread(target=passing, args=(server, client), daemon=True).start()
        with client, server:
            passing(client, server)

    def accept():
        try:
            while True:
                threading.Thread(target=serve, args=(listener.accept()[0],), daemon=True).start()
        except OSError:
            return
    threading.Thread(target=accept, daemon=True).start()
    return listener, targets


def test_a_proxys_tunnel_is_made_again_when_a_pooled_connection_was_stale(upstream, certificate):
    """002-R10, 002-R14"""
    def end_the_second(exchange):
        complete(b"{}")(exchange) if exchange.turn == 1 else exchange.close()

    listener, targets = tunnel_proxy()
    with listener, Upstream(tls=certificate) as secure:
        secure.otherwise(end_the_second)
        url = secure.url.replace("127.0.0.1", "localhost")
        with Router(upstream.url, BACKEND_BASE_URL=url, REQUESTS_CA_BUNDLE=certificate,
                    HTTPS_PROXY=f"http://127.0.0.1:{listener.getsockname()[1]}") as router:
            for _ in range(3):
                assert ask(router, LISTED).status == 200
            assert router.metrics()["resends_total",] == 2
        assert set(targets) == {f"localhost:{secure.port}"}
        assert all(dict(e.fields)["host"] == f"localhost:{secure.port}" for e in secure.exchanges)
        listener.shutdown(socket.SHUT_RDWR)


@pytest.mark.parametrize("kind", ["http", "https"])
def test_through_either_kind_of_proxy_requests_and_feeds_go_as_they_do_without(
        certificate, kind):
    """002-R10, 002-R30, 002-R33, 003-R15"""
    listener, targets = tunnel_proxy(certificate if kind == "https" else None)
    with listener, Upstream(models_feed([LISTED, *public_names()]), utilization_feed(),
                            tls=certificate) as secure:
        secure.on(LISTED, complete(b"{}"))
        with Router(secure.url.replace("127.0.0.1", "localhost"), REQUESTS_CA_BUNDLE=certificate,
                    UPSTREAM_CONNECT_TIMEOUT_MS="10000", MAX_REQUEST_BYTES="20000000",
                    UPSTREAM_CONNECTION_MAX_IDLE_SECS="0",
                    HTTPS_PROXY=f"{kind}://localhost:{listener.getsockname()[1]}") as router:
            router.wait_until_fed()
            assert ask(router, LISTED).status == 200
            assert ask(router, LISTED, padding="x" * 15_000_000).status == 200
            secure.refuse_bodies = True
            with socket.create_connection(("127.0.0.1", router.port), 10) as client:
                client.sendall(request_bytes("leaving", LISTED, padding="x" * 15_000_000))
                while not secure.bodies_refused:
                    pass
            assert router.record("leaving")["ended"] == "client_gone"
            assert not any(line["message"] == "internal error" for line in router.lines)
        assert targets == [f"localhost:{secure.port}"] * 5
        listener.shutdown(socket.SHUT_RDWR)


# -- the pool --------------------------------------------------------------------------------


def test_F11_a_stale_connection_is_no_resend_where_no_fresh_one_can_be_had():
    """006-W6, 002-R14"""
    with Upstream() as leaving, Router(leaving.url, UNKNOWN_MODELS="pass") as router:
        leaving.otherwise(lambda exchange: (
            complete(b"{}")(exchange) if exchange.turn == 1 else exchange.close()))
        assert ask(router, "m").status == 200
        leaving.stop_listening()
        answer = ask(router, "m", {"X-Request-Id": "refused"})
        assert answer.error["code"] == "upstream_connect_error"
        record = router.record("refused")
        assert record["resent"] is False
        assert record["attempts"][0]["detail"].startswith("ConnectFailed ")
        assert router.metrics_at_rest()["resends_total",] == 0


@pytest.mark.parametrize("ending", ["close", "reset"])
def test_F11_a_connection_gone_stale_in_the_pool_is_no_failed_candidate(
        router, upstream, model, oracle, ending):
    """002-R14, 006-W6, 006-W13"""
    def answer_then_end_on_the_next_request(exchange):
        complete(b"{}")(exchange) if exchange.turn == 1 else getattr(exchange, ending)()

    name = model()
    upstream.on(name, answer_then_end_on_the_next_request)
    upstream.drop_idle()
    assert ask(router, name).status == 200
    answer = ask(router, name, {"X-Request-Id": name})
    assert answer.status == 200
    assert [exchange.turn for exchange in upstream.seen(name)] == [1, 2, 1]
    record = router.record(name)
    assert [attempt["outcome"] for attempt in record["attempts"]] == ["200"]
    assert record["resent"] is True
    oracle.holds({("resends_total",): 1})


def test_F11_a_connection_that_breaks_after_a_byte_of_the_response_is_no_stale_one(
        router, upstream, model, oracle):
    """002-R14, 006-W6, 006-W13"""
    name, spare = model(), model()
    upstream.on(name, lambda exchange: complete(b"{}")(exchange) if exchange.turn == 1
                else raw(b"HTTP/1.1 2", "reset")(exchange))
    upstream.on(spare, complete(b"{}"))
    upstream.drop_idle()
    assert ask(router, name).status == 200
    answer = ask(router, f"{name},{spare}")
    assert answer.value("x-chutes-autopilot-selected") == spare
    assert [exchange.turn for exchange in upstream.seen(name)] == [1, 2]
    oracle.holds(LOST)


def test_F11_a_resend_that_breaks_too_is_a_failed_candidate_and_named_in_the_line(
        router, upstream, model, oracle):
    """002-R14, 006-W6, 006-W13"""
    name = model()
    upstream.on(name, lambda exchange: (
        complete(b"{}") if len(upstream.seen(name)) == 1 else reset_at_once)(exchange))
    upstream.drop_idle()
    assert ask(router, name).status == 200
    assert ask(router, name, {"X-Request-Id": name}).error["code"] == "upstream_connect_error"
    [attempt] = router.record(name)["attempts"]
    assert attempt["detail"].startswith("ResendBroke ")
    oracle.holds({("resends_total",): 1, **LOST})


def test_F11_a_resend_that_finds_nobody_is_a_failed_candidate(upstream, model):
    """002-R14, 006-W6, 006-W13"""
    with Upstream() as short_lived, Router(
            upstream.url, BACKEND_BASE_URL=short_lived.url,
            **SHORT | {"MAX_REQUEST_BYTES": "20000000"}) as alone:
        alone.wait_until_fed()

        def end_and_be_gone(exchange):
            complete(b"{}")(exchange)
            exchange.sock.recv(65536)  # the next request has begun to come
            short_lived.stop_listening()
            exchange.reset()

        short_lived.otherwise(end_and_be_gone)
        assert ask(alone, LISTED).status == 200
        answer = ask(alone, f"{LISTED},{public_names()[0]}", padding="x" * 15_000_000)
        assert (answer.status, answer.error["code"]) == (502, "upstream_connect_error")
        metrics = alone.metrics()
        assert metrics["failover_reason_total", "upstream_connect_error"] == 2
        assert metrics["requests_active",] == 0


def test_F21_interim_responses_are_skipped_and_given_to_nobody(router, upstream, model, oracle):
    """006-W7, 006-W13"""
    name = model()
    upstream.on(name, raw(
        b"HTTP/1.1 100 Continue\r\n\r\n" + b"HTTP/1.1 102 Processing\r\n\r\n" * 14 +
        b"HTTP/1.1 103 Early Hints\r\nLink: </of-another>\r\nContent-Length: 4\r\n\r\n"
        + OK + b"Content-Length: 5\r\nX-Nonce: mine\r\n\r\nfinal"))
    for _ in range(3):
        answer = ask(router, name)
        assert (answer.status, answer.body, answer.value("X-Nonce")) == (200, b"final", "mine")
        assert answer.value("Link") is None
    oracle.holds({})


@pytest.mark.parametrize("surplus", [
    b"HTTP/1.1 200 OK\r\nContent-Length: 6\r\n\r\nothers", b"x", b"\r\n"])
@pytest.mark.parametrize("framing, body", [
    (b"Content-Length: 4\r\n", b"mine"), (b"Transfer-Encoding: chunked\r\n",
                                          b"4\r\nmine\r\n0\r\n\r\n")])
def test_F22_bytes_behind_a_response_are_nobodys(
        router, upstream, model, oracle, framing, body, surplus):
    """006-W9, 006-W13"""
    name = model()
    upstream.on(name, framed(framing, body + surplus))
    for _ in range(4):
        answer = ask(router, name)
        assert (answer.body, answer.ended) == (b"mine", "complete")
    assert len({exchange.number for exchange in upstream.seen(name)}) == 4
    oracle.holds({})


def test_F22_a_connection_its_upstream_means_to_close_is_not_used_again(
        router, upstream, model, oracle):
    """006-W9, 006-W13"""
    name = model()
    upstream.on(name, complete(b"{}", fields=[("Connection", "close")]))
    for _ in range(3):
        assert ask(router, name).status == 200
    assert len({exchange.number for exchange in upstream.seen(name)}) == 3
    oracle.holds({})


def test_F22_bytes_that_come_late_make_the_idle_connection_useless(
        router, upstream, model, oracle):
    """006-W9, 006-W13"""
    name, sent = model(), threading.Event()

    def answer_and_then_some(exchange):
        complete(b"mine")(exchange)
        if exchange.turn == 1 and not sent.is_set():
            exchange.send(OK + b"Content-Length: 6\r\n\r\nothers")
            sent.set()

    upstream.on(name, answer_and_then_some)
    upstream.drop_idle()
    assert ask(router, name).body == b"mine"
    assert sent.wait(5)
    assert ask(router, name).body == b"mine"
    oracle.holds({})


# -- after commit ----------------------------------------------------------------------------

AFTER_COMMIT = {
    "F12 chunked, reset": ([CHUNKED], b"5\r\nfirst\r\n", "reset", "reset"),
    "F12 length, reset": ([("Content-Length", "10")], b"first", "reset", "reset"),
    "F12 until close, reset": ([], b"first", "reset", "reset"),
    "F13 chunked, closed between chunks": ([CHUNKED], b"5\r\nfirst\r\n", "close", "short"),
    "F13 chunked, closed within a chunk": ([CHUNKED], b"a\r\nfirst", "close", "short"),
    "F13 chunked, closed before the last CRLF": (
        [CHUNKED], b"5\r\nfirst\r\n0\r\n", "close", "short"),
    "F13 length, closed": ([("Content-Length", "10")], b"first", "close", "short"),
    "F14 bad size": ([CHUNKED], b"5\r\nfirst\r\n-1\r\n", "until_closed", "bad_framing"),
    "F14 chunk too long": ([CHUNKED], b"5\r\nfirstX\r\n", "until_closed", "bad_framing"),
    "F14 endless size": (
        [CHUNKED], b"5\r\nfirst\r\n1;" + b"x" * 5000, "until_closed", "bad_framing"),
    "F15 chunked, silence": ([CHUNKED], b"5\r\nfirst\r\n", "until_closed", "silence"),
    "F15 length, silence": ([("Content-Length", "10")], b"first", "until_closed", "silence"),
    "F15 until close, silence": ([], b"first", "until_closed", "silence"),
    "F15 dripped chunk size": ([CHUNKED], b"5\r\nfirst\r\n", "drip_size", "silence"),
    "F15 dripped trailers": ([CHUNKED], b"5\r\nfirst\r\n0\r\nX: ", "drip_size", "silence"),
}


def request_bytes(name, model, version=b"1.1", **body):
    data = json.dumps({"model": model, "stream": True, **body}).encode()
    return (b"POST /v1/chat/completions HTTP/%s\r\nHost: x\r\nX-Request-Id: %s\r\n"
            b"Content-Length: %d\r\n\r\n%s" % (version, name.encode(), len(data), data))


@pytest.mark.parametrize("case", AFTER_COMMIT)
@pytest.mark.parametrize("version", [b"1.1", b"1.0"])
def test_an_answer_that_breaks_off_never_looks_complete(
        router, upstream, model, oracle, case, version):
    """006-W4, 006-W10, 006-W13, 002-R16, 002-R20"""
    fields, data, ending, cause = AFTER_COMMIT[case]
    name, spare, first_here = model(), model(), threading.Event()

    def break_off(exchange):
        exchange.head(200, *fields)
        exchange.send(data)
        # Not before: a reset would take bytes in flight with it.
        assert ending not in ("reset", "close") or first_here.wait(5)
        if ending == "drip_size":
            drip(b"0" * 12 + b";" + b"x" * 200, 0.1)(exchange)
        else:
            getattr(exchange, ending)()

    upstream.on(name, break_off)
    with socket.create_connection(("127.0.0.1", router.port), 10) as client:
        client.sendall(request_bytes(name, f"{name},{spare}", version))
        received, reset = read_until(client, b"first"), False
        first_here.set()
        try:
            while more := client.recv(65536):
                received += more
        except ConnectionResetError:
            reset = True
    answer_head, _, body = received.partition(b"\r\n\r\n")
    assert answer_head.startswith(b"HTTP/%s 200 " % version)
    if b"Content-Length: 10" in answer_head:
        assert body == b"first"
    elif version == b"1.1":
        assert body == b"5\r\nfirst\r\n"
    else:
        assert body == b"first" and reset
    assert not upstream.seen(spare)
    record = router.record(name)
    assert (record["ended"], record["cut_cause"]) == ("cut_by_upstream", cause)
    assert upstream.seen(name)[0].closed.wait(5)
    oracle.holds({("cuts_total", cause): 1})


@pytest.fixture(scope="module")
def secure(upstream, certificate):
    """A backend that speaks TLS, and a router that trusts it."""
    with Upstream(tls=certificate) as backend, Router(
            upstream.url, BACKEND_BASE_URL=backend.url.replace("127.0.0.1", "localhost"),
            REQUESTS_CA_BUNDLE=certificate,
            **SHORT | {"UPSTREAM_CONNECT_TIMEOUT_MS": "5000"}) as router:
        router.wait_until_fed()
        yield router, backend


OVER_TLS = AFTER_COMMIT | {
    "F13 until close, closed without TLS's word for it": ([], b"first", "close", "reset")}


@pytest.mark.parametrize("case", OVER_TLS)
def test_over_tls_an_answer_that_breaks_off_never_looks_complete_either(secure, model, case):
    """006-W4, 006-W13"""
    router, backend = secure
    fields, data, ending, _ = OVER_TLS[case]
    name, first_here = model(), threading.Event()

    def break_off(exchange):
        exchange.head(200, *fields)
        exchange.send(data)
        assert ending not in ("reset", "close") or first_here.wait(5)
        if ending == "drip_size":
            drip(b"0" * 12 + b";" + b"x" * 200, 0.1)(exchange)
        else:
            getattr(exchange, ending)()

    backend.on(name, break_off)
    with socket.create_connection(("127.0.0.1", router.port), 10) as client:
        client.sendall(request_bytes(name, name))
        received = read_until(client, b"first")
        first_here.set()
        received += read_to_end(client)
    assert not received.endswith(b"0\r\n\r\n")
    assert router.record(name)["ended"] == "cut_by_upstream"
    assert backend.seen(name)[0].closed.wait(5)


@pytest.mark.parametrize("ending", ["close", "reset", "close_by_the_book"])
def test_F11_over_tls_a_connection_gone_stale_in_the_pool_is_no_failed_candidate_either(
        secure, model, ending):
    """002-R14, 006-W6, 006-W13"""
    router, backend = secure
    name = model()
    backend.on(name, lambda exchange: complete(b"{}")(exchange) if exchange.turn % 2
               else getattr(exchange, ending)())
    backend.drop_idle()
    for _ in range(5):
        assert ask(router, name, {"X-Request-Id": name}).status == 200
    assert router.record(name)["resent"] is False
    assert [exchange.turn for exchange in backend.seen(name)] == [1, *[2, 1] * 4]


def test_over_tls_a_body_that_lasts_until_the_end_is_complete_when_tls_says_so(secure, model):
    """006-W4, 002-R15"""
    router, backend = secure
    name = model()

    def end_by_the_book(exchange):
        exchange.head(200)
        exchange.send(b"whole")
        exchange.close_by_the_book()

    backend.on(name, end_by_the_book)
    answer = ask(router, name)
    assert (answer.body, answer.ended) == (b"whole", "complete")


def test_a_good_stream_outlives_the_idle_limit_however_its_framing_is_split(
        router, upstream, model, oracle):
    """006-W2, 006-W13"""
    pace = threading.Event()

    def size_then_data(exchange):
        exchange.head(200, CHUNKED)
        for _ in range(8):
            exchange.send(b"5\r\n")
            pace.wait(0.1)
            exchange.send(b"piece\r\n")
            pace.wait(0.1)
        exchange.chunk(b"")

    name = model()
    upstream.on(name, size_then_data)
    answer = ask(router, name)
    assert (answer.body, answer.ended) == (b"piece" * 8, "complete")
    oracle.holds({})


ERROR = b'{"detail":"exhausted"}'
FAR = b"data: " + b"x" * 5000 + b"\n\n"


@pytest.mark.parametrize("framing", ["chunked", "close", "length"])
@pytest.mark.parametrize("parts", [
    sse([{"n": 1}], done=False), [*sse([{"n": 1}], done=False), ERROR], [ERROR],
    [b"data: [DONE]\n\n", FAR], [b'data: {"content": "data: [DONE]"}\n\n'],
    [b"data: [DONE]x\n\n"], [b": data: [DONE]\n\n"], [FAR[:-10] + b"data: [DONE]"]])
def test_F16_an_event_stream_without_its_done_is_passed_on_and_then_cut(
        router, upstream, model, oracle, framing, parts):
    """006-W14, 006-W13"""
    name = model()
    upstream.on(name, pieces(parts, framing, fields=[EVENTS]))
    answer = ask(router, name, {"X-Request-Id": name})
    assert (answer.body, answer.ended) == (b"".join(parts), "cut")
    record = router.record(name)
    assert (record["ended"], record["cut_cause"], record["unfinished"]) == (
        "cut_by_upstream", "unfinished", True)
    oracle.holds({("unfinished_streams_total",): 1, ("cuts_total", "unfinished"): 1})


@pytest.mark.parametrize("framing", ["chunked", "close", "length"])
@pytest.mark.parametrize("parts", [
    sse([{"n": 1}]), [b"data: [DO", b"NE]\n\n"], [FAR, b"data: [DONE]"], [b"data:[DONE]\r\n\r\n"],
    [bytes([byte]) for byte in b"data: [DONE]\n\n"],
    [b"data: [DONE]\n\n", b"event: usage\ndata: {}\n\n", ERROR]])
def test_F16_an_event_stream_with_its_done_near_its_end_is_complete(
        router, upstream, model, oracle, framing, parts):
    """006-W14, 006-W13"""
    name = model()
    upstream.on(name, pieces(parts, framing, fields=[EVENTS]))
    answer = ask(router, name, {"X-Request-Id": name})
    assert (answer.body, answer.ended) == (b"".join(parts), "complete")
    record = router.record(name)
    assert (record["ended"], record["unfinished"]) == ("complete", False)
    oracle.holds({})


@pytest.mark.parametrize("status, fields", [
    (200, [EVENTS, ("Content-Encoding", "gzip")]), (400, [EVENTS]),
    (200, [("Content-Type", "application/json")])])
def test_F16_what_is_no_plain_event_stream_ends_as_it_came(
        router, upstream, model, oracle, status, fields):
    """006-W14, 006-W13"""
    name = model()
    upstream.on(name, complete(b"\x1f\x8bpacked", status=status, fields=fields))
    answer = ask(router, name, {"X-Request-Id": name})
    assert (answer.status, answer.body, answer.ended) == (status, b"\x1f\x8bpacked", "complete")
    assert answer.value("Content-Length") == "8" and not router.record(name)["unfinished"]
    oracle.holds({})


def test_F16_an_event_stream_without_its_done_ends_as_it_came_where_that_is_wanted(upstream, model):
    """006-W14"""
    name, parts = model(), [*sse([{"n": 1}], done=False), ERROR]
    upstream.on(name, pieces(parts, fields=[EVENTS]))
    with Router(upstream.url, CUT_UNFINISHED_STREAMS="false") as as_it_came:
        answer = ask(as_it_came, name, {"X-Request-Id": name})
        assert (answer.body, answer.ended) == (b"".join(parts), "complete")
        record = as_it_came.record(name)
        assert (record["ended"], record["unfinished"]) == ("complete", True)
        assert as_it_came.metrics_at_rest()["unfinished_streams_total",] == 1


def test_F16_a_client_that_reads_until_close_sees_the_cut_as_a_reset(router, upstream, model):
    """006-W14, 006-W4"""
    name = model()
    upstream.on(name, pieces([ERROR], fields=[EVENTS]))
    body = json.dumps({"model": name, "stream": True}).encode()
    with socket.create_connection(("127.0.0.1", router.port), 10) as client:
        client.sendall(b"POST /v1/chat/completions HTTP/1.0\r\nContent-Length: %d\r\n\r\n%s"
                       % (len(body), body))
        with pytest.raises(ConnectionResetError):
            while client.recv(65536):
                pass


# -- the client ------------------------------------------------------------------------------


def forever(exchange):
    """Stream until the router goes away."""
    exchange.head(200, CHUNKED)
    exchange.keep_open = False
    pace = threading.Event()
    try:
        exchange.chunk(b"first")
        while not pace.wait(0.005):
            exchange.chunk(b"x" * 100)
    except OSError:
        exchange.mark_closed()


LEAVING = {
    "F17 waiting for headers": (stall, False),
    "F17 waiting for the first byte": (headers_then_stall, False),
    "F18 streaming": (forever, True),
    "F18 streaming, the upstream silent": (
        then(head(CHUNKED), then(lambda exchange: exchange.chunk(b"first"), end("until_closed"))),
        True),
    "F18 another status, the upstream silent": (
        then(head(("Content-Length", 10), status=500),
             then(lambda exchange: exchange.send(b"first"), end("until_closed"))), True),
}


@pytest.mark.parametrize("case", LEAVING)
@pytest.mark.parametrize("how", ["close", "reset", "with a request ahead", "half-close"])
def test_a_client_that_leaves_takes_the_upstream_connection_with_it(
        router, upstream, model, oracle, case, how):
    """006-W1, 006-W13, 002-R19"""
    script, committed = LEAVING[case]
    name, spare = model(), model()
    upstream.on(name, script)
    request = request_bytes(name, f"{name},{spare}", stream=False)
    client = socket.create_connection(("127.0.0.1", router.port), 10)
    client.sendall(request * (1 + (how == "with a request ahead")))
    exchange = upstream.wait_for(name)
    if committed:
        read_until(client, b"first")
    if how == "reset":
        client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
    client.shutdown(socket.SHUT_WR) if how == "half-close" else client.close()
    # Well before any deadline of the router's own, the shortest being 0.6 s.
    assert exchange.closed.wait(0.5)
    record = router.record(name)
    assert record["ended"] == "client_gone"
    assert record["status"] == (499 if not committed else 500 if "another" in case else 200)
    assert [attempt["outcome"] for attempt in record["attempts"]] == [
        str(record["status"]) if committed else "abandoned"]
    assert not upstream.seen(spare) and len(upstream.seen(name)) == 1
    client.close()
    oracle.holds({("client_gone_total",): 1})


@pytest.mark.parametrize("case", ["F17 connecting", "F17 shaking hands"])
def test_a_client_that_leaves_while_the_upstream_is_being_connected(upstream, case):
    """006-W1, 006-W13"""
    place = full_listener() if case == "F17 connecting" else silent_tls()
    patient = {"UPSTREAM_CONNECT_TIMEOUT_MS": "60000", **PATIENT}
    try:
        with Router(upstream.url, BACKEND_BASE_URL=place.url, **SHORT | patient) as alone:
            alone.wait_until_fed()
            with socket.create_connection(("127.0.0.1", alone.port), 10) as client:
                client.sendall(request_bytes("leaving", f"{LISTED},{public_names()[0]}"))
                while not alone.metrics()["requests_active",]:
                    pass
                assert place.reached is None or place.reached.wait(5)
            # Not when the garbage collector comes by: at once.
            assert place.left is None or place.left.wait(1)
            record = alone.record("leaving")
            assert (record["ended"], record["status"]) == ("client_gone", 499)
            assert [(attempt["model"], attempt["outcome"]) for attempt in record["attempts"]] == [
                (LISTED, "abandoned")]
            assert not any(count for key, count in alone.metrics().items()
                           if key[0] == "failover_reason_total")
    finally:
        place.close()


def test_F17_a_client_that_leaves_while_its_request_is_being_sent(upstream):
    """006-W1, 006-W13"""
    with Upstream() as deaf:
        deaf.refuse_bodies = True
        with Router(upstream.url, BACKEND_BASE_URL=deaf.url, **SHORT | PATIENT | {
                "MAX_REQUEST_BYTES": "20000000"}) as alone:
            alone.wait_until_fed()
            with socket.create_connection(("127.0.0.1", alone.port), 10) as client:
                client.sendall(request_bytes("leaving", LISTED, padding="x" * 15_000_000))
                while not deaf.bodies_refused:
                    pass
            assert alone.record("leaving")["ended"] == "client_gone"
            assert deaf.bodies_refused[0].wait(5)


def test_F19_a_client_that_stops_reading_is_dropped_and_the_upstream_with_it(
        router, upstream, model, oracle):
    """006-W3, 006-W13"""
    name, sent = model(), []

    def endless(exchange):
        exchange.head(200, CHUNKED)
        exchange.keep_open = False
        try:
            for _ in range(10_000):
                exchange.chunk(b"x" * 10_000)
                sent.append(10_000)
        except OSError:
            exchange.mark_closed()

    upstream.on(name, endless)
    [before] = router.probe()
    with socket.create_connection(("127.0.0.1", router.port), 10) as client:
        client.sendall(request_bytes(name, name))
        exchange = upstream.wait_for(name)
        assert not exchange.closed.wait(0.5)
        [during] = router.probe()
        assert exchange.closed.wait(8)
        record = router.record(name)
    assert record["ended"] == "client_gone" and record["bytes"] <= sum(sent)
    # The upstream was held back: what it sent beyond the relayed is in kernel buffers.
    assert sum(sent) < 30_000_000
    assert during["resident"] - before["resident"] < 4_000_000
    oracle.holds({("client_gone_total",): 1})
    assert "Traceback" not in json.dumps(router.lines)


def test_F19_a_client_of_http_1_0_that_stalled_is_reset_and_not_ended(router, upstream, model):
    """006-W3, 006-W4, 006-W13"""
    name = model()
    upstream.on(name, complete(b"x" * 8_000_000, "chunked"))
    with socket.create_connection(("127.0.0.1", router.port), 10) as client:
        client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        client.sendall(request_bytes(name, name, b"1.0"))
        assert router.record(name)["ended"] == "client_gone"
        with pytest.raises(ConnectionResetError):
            while client.recv(65536):
                pass


def test_F18_an_upstreams_answer_without_a_body_is_no_client_that_left(
        router, upstream, model, oracle):
    """006-W13, 002-R12"""
    name = model()
    upstream.on(name, raw(b"HTTP/1.1 304 Not Modified\r\nETag: x\r\n\r\n"))
    answer = ask(router, name)
    assert (answer.status, answer.body, answer.value("ETag")) == (304, b"", "x")
    oracle.holds({})


def test_F20_a_slow_reader_gets_everything(router, upstream, model, oracle):
    """006-W3, 006-W13"""
    name, body = model(), bytes(range(250)) * 16_000
    upstream.on(name, complete(body))
    with socket.create_connection(("127.0.0.1", router.port), 10) as client:
        client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 65536)
        client.sendall(request_bytes(name, name))
        pace, received = threading.Event(), read_until(client, b"\r\n\r\n")
        while len(received.partition(b"\r\n\r\n")[2]) < len(body):
            received += client.recv(16384)
            # Longer in all than the write timeout, which bounds each wait and not their sum.
            pace.wait(0.008)
    assert received.partition(b"\r\n\r\n")[2] == body
    assert router.record(name)["ended"] == "complete"
    oracle.holds({})


HALF_A_BODY = (b"POST /v1/chat/completions HTTP/1.1\r\nHost: x\r\nX-Request-Id: %s\r\n"
               b"Content-Length: 100\r\n\r\n{\"model\":")


@pytest.mark.parametrize("case", ["F23 late", "F23 too large", "F23 broken", "F23 packed",
                                  "F23 died"])
def test_a_body_that_does_not_arrive_whole_reaches_nobody(router, upstream, model, oracle, case):
    """006-W12, 006-W13, 002-R1"""
    name, before = model(), len(upstream.exchanges)
    half = HALF_A_BODY % name.encode()
    data, code, status = {
        "F23 late": (half, "request_timeout", 408),
        "F23 too large": (half.replace(b"100", b"99999999"), "request_too_large", 413),
        "F23 broken": (half.replace(b"Content-Length: 100", CHUNKED_FIELD) + b"\r\n",
                       "invalid_body", 400),
        "F23 packed": (half.replace(b"\r\n\r\n", b"\r\nContent-Encoding: br\r\n\r\n"),
                       "unsupported_encoding", 415),
        "F23 died": (half, "invalid_body", 400)}[case]
    with socket.create_connection(("127.0.0.1", router.port), 10) as client:
        client.sendall(data)
        if case == "F23 died":
            client.shutdown(socket.SHUT_WR)
        answer = read_until(client, b"}}")
    assert answer.startswith(b"HTTP/1.1 %d " % status) and code.encode() in answer
    record = router.record(name)
    assert (record["ended"], record["code"], record["attempts"]) == ("refused", code, [])
    assert len(upstream.exchanges) == before
    oracle.holds({})


CHUNKED_FIELD = b"Transfer-Encoding: chunked"
ATTACKS = {
    "F24 length and chunked": b"Content-Length: 4\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
    "F24 chunked and length": b"Transfer-Encoding: chunked\r\nContent-Length: 4\r\n\r\n0\r\n\r\n",
    "F24 two lengths": b"Content-Length: 0\r\nContent-Length: 44\r\n\r\n",
    "F24 signed length": b"Content-Length: +0\r\n\r\n",
    "F24 length in letters": b"Content-Length: 0x0\r\n\r\n",
    "F24 length list": b"Content-Length: 0, 0\r\n\r\n",
    "F24 hidden coding": b"Transfer-Encoding: xchunked\r\n\r\n",
    "F24 coding with a vertical tab": b"Transfer-Encoding:\x0bchunked\r\n\r\n0\r\n\r\n",
    "F24 two codings": b"Transfer-Encoding: chunked\r\nTransfer-Encoding: chunked\r\n\r\n",
    "F24 identity": b"Transfer-Encoding: identity\r\n\r\n",
    "F24 space before colon": b"Transfer-Encoding : chunked\r\n\r\n0\r\n\r\n",
    "F24 folded coding": b"Transfer-Encoding:\r\n chunked\r\n\r\n0\r\n\r\n",
    "F24 bare LF": b"A: b\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
    "F24 bare CR": b"A: b\rTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
    "F24 NUL": b"A: b\x00\r\n\r\n",
    "F24 two hosts": b"Host: y\r\n\r\n",
}


@pytest.mark.parametrize("case", ATTACKS)
def test_a_request_that_can_be_read_two_ways_is_refused_with_all_that_follows(
        router, upstream, oracle, case):
    """006-W11, 006-W13, 002-R21"""
    before = len(upstream.exchanges)
    smuggled = request_bytes("smuggled", LISTED, nonce="smuggled")
    answer = router.exchange(
        b"POST /v1/chat/completions HTTP/1.1\r\nHost: x\r\n" + ATTACKS[case] + smuggled)
    assert answer.count(b"HTTP/1.1 ") == 1 and answer.startswith(b"HTTP/1.1 4")
    assert b'"code": "bad_request"' in answer and b"Connection: close" in answer
    assert len(upstream.exchanges) == before
    oracle.holds({})


def test_F24_a_head_that_does_not_come_whole_is_refused_in_time(router, upstream, oracle):
    """002-R40, 006-W13"""
    answer = router.exchange(request_bytes("late", LISTED, nonce="late").partition(b"Length")[0])
    assert answer.startswith(b"HTTP/1.1 408 ") and b'"code": "request_timeout"' in answer
    oracle.holds({})


def test_F40_what_a_worker_has_no_memory_for_is_refused(router, upstream, model, oracle):
    """007-R20, 006-W13"""
    name, waiting = model(), threading.Event()

    def wait(exchange):
        assert waiting.wait(DEADLINE_S)
        complete(b"ok")(exchange)

    upstream.on(name, wait)
    body = json.dumps({"model": name}).encode()
    answers = []
    asker = threading.Thread(target=lambda: answers.append(router.post(body.ljust(15_000_000))))
    asker.start()
    upstream.wait_for(name)
    refused = router.post(body.ljust(6_000_000), {"X-Request-Id": name})
    waiting.set()
    asker.join(DEADLINE_S)
    assert (refused.status, refused.error["code"]) == (503, "overloaded")
    assert refused.value("Retry-After") and answers[0].status == 200
    record = router.record(name)
    assert (record["ended"], record["attempts"]) == ("refused", [])
    oracle.holds({("overloaded_total",): 1})


@pytest.fixture(scope="module")
def certificate(tmp_path_factory):
    """Return the path of a self-signed certificate for localhost, with its key."""
    path = tmp_path_factory.mktemp("tls") / "localhost.pem"
    authority = trustme.CA()
    issued = authority.issue_cert("localhost")
    path.write_bytes(issued.private_key_pem.bytes() + b"".join(
        blob.bytes() for blob in issued.cert_chain_pems) + authority.cert_pem.bytes())
    return str(path)


@pytest.mark.parametrize("answer", [b"garbage\r\n\r\n", b"HTTP/1.1 " + b"x" * 70_000,
                                    b"HTTP/1.1 403 No\r\n\r\n", b""])
def test_F5_a_proxy_that_answers_its_tunnel_with_anything_else_is_a_failed_connection(
        upstream, answer):
    """006-W13, 002-R12"""
    listener = socket.create_server(("127.0.0.1", 0))

    def answer_all():
        with contextlib.suppress(OSError):
            while True:
                client, _ = listener.accept()
                with client:
                    client.recv(65536)
                    client.sendall(answer)

    thread = threading.Thread(target=answer_all)
    thread.start()
    feeds = {"MODELS_URL": f"{upstream.url}/v1/models",
             "UTILIZATION_URL": f"{upstream.url}/chutes/utilization"}
    try:
        with Router("https://backend.test", **feeds,
                    HTTPS_PROXY=f"http://127.0.0.1:{listener.getsockname()[1]}") as router:
            refused = router.chat(f"{LISTED}:one,{LISTED}:two", headers={"X-Request-Id": "proxied"})
            assert (refused.status, refused.error["code"]) == (502, "upstream_connect_error")
            assert len(router.record("proxied")["attempts"]) == 2
    finally:
        listener.shutdown(socket.SHUT_RDWR)
        listener.close()
        thread.join(10)
