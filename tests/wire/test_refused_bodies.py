"""Clients that go on sending a body that has been refused, and read their answer only then."""

import contextlib
import socket
import threading

import pytest

from tests.support.router import DEADLINE_S, Router, crowd, read_to_end

POST = b"POST /v1/chat/completions HTTP/1.1\r\nHost: x\r\n"
CHUNKED = b"Transfer-Encoding: chunked\r\n\r\n"
MIB = 1024 * 1024


def length(size):
    return b"Content-Length: %d\r\n\r\n" % size


def send_then_read(router, head, piece, count, pause_s=0.0):
    """Send a piece again and again, read nothing meanwhile, and return the answer."""
    with socket.create_connection(("127.0.0.1", router.port), DEADLINE_S) as client:
        client.sendall(POST + head)
        for _ in range(count):
            # Fails once the router has closed: then the answer is lost, or may be.
            client.sendall(piece)
            threading.Event().wait(pause_s)
        return read_to_end(client)


@pytest.mark.parametrize("head, status", [
    (length(4_000_000), 413), (b"Content-Encoding: gzip\r\n" + length(4_000_000), 415),
    (CHUNKED + b"100000\r\n", 413), (CHUNKED + b"zz\r\n", 400), (b"Host: y\r\n" + CHUNKED, 400)])
def test_a_client_that_sends_slowly_for_long_reads_its_refusal(router, head, status):
    """007-R23: for 4 s, never silent for more than 0.1 s."""
    answer = send_then_read(router, head, b"x" * 10_000, 40, pause_s=0.1)
    assert answer.startswith(b"HTTP/1.1 %d " % status)


def test_a_client_that_sends_all_it_has_announced_reads_its_refusal(router):
    """007-R23: 80 MiB."""
    answer = send_then_read(router, length(80 * MIB), b"x" * MIB, 80)
    assert answer.startswith(b"HTTP/1.1 413 ")


def test_a_client_that_has_refused_bytes_left_and_is_silent_is_left(router):
    """007-R23"""
    with socket.create_connection(("127.0.0.1", router.port), DEADLINE_S) as client:
        client.sendall(POST + length(4_000_000) + b"x")
        assert read_to_end(client).startswith(b"HTTP/1.1 413 ")
        router.wait_for_connections(0)


@pytest.mark.parametrize("head", [length(2_000_000), CHUNKED + b"ffffff\r\n"])
def test_more_than_was_announced_is_not_taken(router, head):
    """007-R23: a chunked body announces nothing; 32 MiB are taken."""
    with pytest.raises(OSError):
        send_then_read(router, head, b"x" * MIB, 100)


def test_a_client_that_still_sends_gives_way_when_its_place_is_needed(upstream):
    """007-R23, 007-R1"""
    def lean(over):
        with contextlib.suppress(OSError), socket.create_connection(
                ("127.0.0.1", router.port), DEADLINE_S) as client:
            client.sendall(POST + length(10**12))
            while not over.wait(0.05):
                client.sendall(b"x")

    with Router(upstream.url, WORKER_CONNECTIONS="10") as router, crowd(10, lean):
        for _ in range(5):
            assert router.get("/healthz").status == 200


def test_a_drain_does_not_wait_for_a_client_that_still_sends(upstream):
    """007-R23, 007-R3"""
    with Router(upstream.url, GRACEFUL_TIMEOUT_SECS="60") as router, socket.create_connection(
            ("127.0.0.1", router.port), DEADLINE_S) as client:
        client.sendall(POST + length(10**12) + b"x")
        assert client.recv(100).startswith(b"HTTP/1.1 413 ")
        router.process.terminate()
        with pytest.raises(OSError):
            while True:
                client.sendall(b"x")
                assert not threading.Event().wait(0.2)
        assert router.wait() == 0
