"""Answers that come while the request is still being sent, in the clear and over TLS."""

import concurrent.futures
import contextlib
import ssl
import socket
import threading

import pytest
import trustme

from tests.support.feeds import models_feed, public_names, utilization_feed
from tests.support.router import Router
from tests.support.upstream import Upstream
from tests.wire.conftest import LISTED

PADDING = "x" * 15_000_000
REFUSED = b"HTTP/1.1 413 Too Large\r\nContent-Length: 7\r\n\r\nrefused"
DEADLINE_S = 20


class Hasty:
    """A server that reads the beginning of a request and then does what it is told.

    url    to be a router's BACKEND_BASE_URL
    ended  set once the router has ended a connection
    """

    def __init__(self, act, tls=None):
        self._act, self._tls = act, tls
        self._listener = socket.create_server(("127.0.0.1", 0), backlog=16)
        port = self._listener.getsockname()[1]
        self.url = f"https://localhost:{port}" if tls else f"http://127.0.0.1:{port}"
        self.ended = threading.Event()

    def __enter__(self):
        threading.Thread(target=self._accept, daemon=True).start()
        return self

    def __exit__(self, *_):
        self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()

    def _accept(self):
        with contextlib.suppress(OSError):
            while True:
                threading.Thread(target=self._serve, args=(self._listener.accept()[0],),
                                 daemon=True).start()

    def _serve(self, sock):
        sock.settimeout(DEADLINE_S)
        with contextlib.suppress(OSError), sock:
            if self._tls:
                sock = self._tls.wrap_socket(sock, server_side=True)
            assert sock.recv(1000)
            self._act(sock)
            self._wait_for_the_end(sock)
        sock.close()

    def _wait_for_the_end(self, sock):
        """Read on only now, and see how it ends."""
        with contextlib.suppress(OSError):
            while sock.recv(65536):
                pass
        self.ended.set()


@pytest.fixture(scope="module")
def upstream():
    with Upstream(models_feed([LISTED, *public_names()]), utilization_feed()) as feeds:
        yield feeds


@pytest.fixture(scope="module")
def authority(tmp_path_factory):
    """Return the path of a CA's certificate and a server's TLS context."""
    ca, path = trustme.CA(), tmp_path_factory.mktemp("tls") / "ca.pem"
    ca.cert_pem.write_to_path(str(path))
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    ca.issue_cert("localhost").configure_cert(context)
    return str(path), context


def router_for(upstream, hasty, authority, **more):
    return Router(upstream.url, BACKEND_BASE_URL=hasty.url, REQUESTS_CA_BUNDLE=authority[0],
                  **{"MAX_REQUEST_BYTES": "20000000", "UPSTREAM_HEADER_TIMEOUT_MS": "30000",
                     "UPSTREAM_CONNECT_TIMEOUT_MS": "10000"} | more)


def say(*parts):
    """Send parts, each a moment after the other, and read nothing."""
    def act(sock):
        for part in parts:
            sock.sendall(part)
            threading.Event().wait(0.1)
    return act


ANSWERS = {
    "whole": [REFUSED],
    "in parts": [REFUSED[:4], REFUSED[4:30], REFUSED[30:]],
    "after an interim one": [b"HTTP/1.1 103 Early Hints\r\n\r\n", REFUSED],
}


@pytest.mark.parametrize("tls", [False, True])
@pytest.mark.parametrize("case", ANSWERS)
def test_F34_an_answer_that_comes_while_the_body_is_being_sent_is_taken(
        upstream, authority, case, tls):
    """002-R33, 006-W13"""
    with Hasty(say(*ANSWERS[case]), authority[1] if tls else None) as hasty, router_for(
            upstream, hasty, authority) as router:
        router.wait_until_fed()
        for _ in range(2):
            # Nobody gets the rest of this connection.
            answer = router.chat(LISTED, padding=PADDING)
            assert (answer.status, answer.body) == (413, b"refused")
        assert hasty.ended.wait(DEADLINE_S)
        assert not any(count for key, count in router.metrics_at_rest().items()
                       if key[0] in ("failover_reason_total", "resends_total"))


@pytest.mark.parametrize("tls", [False, True])
def test_F5_what_is_no_answer_ends_the_sending_too(upstream, authority, tls):
    """002-R33, 006-W22, 006-W13"""
    with Hasty(say(b"220 mail.test ESMTP\r\n"), authority[1] if tls else None) as hasty, router_for(
            upstream, hasty, authority) as router:
        router.wait_until_fed()
        answer = router.chat(LISTED, padding=PADDING)
        assert answer.error["code"] == "upstream_connect_error"
        assert hasty.ended.wait(DEADLINE_S)


@pytest.mark.parametrize("tls", [False, True])
def test_an_interim_answer_does_not_stop_the_sending(upstream, authority, tls):
    """002-R33, 006-W7"""
    def read_all(sock):
        sock.sendall(b"HTTP/1.1 100 Continue\r\n\r\n")
        left = len(PADDING) - 1000
        while left > 0:
            left -= len(sock.recv(1 << 20))
        sock.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 3\r\n\r\nall")

    with Hasty(read_all, authority[1] if tls else None) as hasty, router_for(
            upstream, hasty, authority) as router:
        router.wait_until_fed()
        answer = router.chat(LISTED, padding=PADDING)
        assert (answer.status, answer.body) == (200, b"all")


@pytest.mark.parametrize("tls", [False, True])
def test_F7_an_upstream_that_never_reads_the_body_is_left_at_the_deadline(
        upstream, authority, tls):
    """006-W13, 002-R13: meanwhile others are served."""
    reads = threading.Event()
    with Hasty(lambda sock: reads.wait(DEADLINE_S), authority[1] if tls else None) as hasty:
        with router_for(upstream, hasty, authority, UPSTREAM_HEADER_TIMEOUT_MS="2000",
                        UPSTREAM_HEADER_TIMEOUT_MS_PER_KIB="0") as router:
            router.wait_until_fed()
            with concurrent.futures.ThreadPoolExecutor(1) as client:
                asked = client.submit(router.chat, LISTED, padding=PADDING)
                while not asked.done():
                    assert router.get("/healthz").status == 200
            assert asked.result().error["code"] == "upstream_header_timeout"
            reads.set()
            assert hasty.ended.wait(DEADLINE_S)
            assert router.metrics_at_rest()["failover_reason_total", "upstream_header_timeout"] == 1
