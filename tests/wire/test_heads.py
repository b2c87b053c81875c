"""The head of a request, and what may stand before it."""

import contextlib
import socket

import pytest

from tests.support.router import DEADLINE_S, Router, crowd, read_to_end, read_until

GET = b"GET /healthz HTTP/1.1\r\nHost: x\r\n\r\n"
POST = b"POST /v1/chat/completions HTTP/1.1\r\nHost: x\r\n"


@pytest.fixture
def client(router):
    with socket.create_connection(("127.0.0.1", router.port), DEADLINE_S) as sock:
        yield sock


@pytest.fixture(scope="module")
def narrow(upstream):
    """A router that takes the smallest of header fields."""
    with Router(upstream.url, MAX_HEADER_FIELD_BYTES="256", CLIENT_HEADER_TIMEOUT_MS="600000",
                CLIENT_KEEPALIVE_SECS="600") as process:
        process.wait_until_fed()
        yield process


@pytest.mark.parametrize("size", [3_000, 9_000, 40_000])
def test_a_body_that_comes_with_its_head_is_no_part_of_it(narrow, model, size):
    """002-R40: in one packet, or in as many as it takes."""
    body = b'{"model": "%s"}' % model().encode()
    sent = POST + b"Connection: close\r\nContent-Length: %d\r\n\r\n%s" % (size, body.ljust(size))
    assert narrow.exchange(sent).startswith(b"HTTP/1.1 200 ")


def test_many_small_fields_are_taken(narrow):
    """002-R40"""
    fields = b"".join(b"X-%d: %s\r\n" % (number, b"x" * 150) for number in range(50))
    assert narrow.exchange(GET[:-2] + fields + b"Connection: close\r\n\r\n").endswith(b"ok")


def test_a_head_that_does_not_end_is_refused_by_its_size(narrow):
    """002-R40"""
    fields = b"".join(b"X-%d: %s\r\n" % (number, b"x" * 200) for number in range(80))
    assert narrow.exchange(GET[:-2] + fields).startswith(b"HTTP/1.1 431 ")


# -- empty lines -----------------------------------------------------------------------------


@pytest.mark.parametrize("lines", [[b"\r\n"], [b"\r\n\r\n"], [b"\r", b"\n"]])
def test_an_empty_line_behind_a_request_begins_no_head(router, client, model, lines):
    """002-R40, RFC 9112 section 2.2: the connection stays idle, and nobody is told of a timeout."""
    body = b'{"model": "%s"}' % model().encode()
    request = POST + b"Content-Length: %d\r\n\r\n%s" % (len(body), body)
    client.sendall(request + lines[0])
    read_until(client, b"chat.completion")
    for line in lines[1:]:
        client.sendall(line)
    # Another head is late meanwhile: those of this router have 0.7 s.
    assert router.exchange(GET[:10]).startswith(b"HTTP/1.1 408 ")
    client.sendall(GET + b"".join(lines) + GET[:-2] + b"Connection: close\r\n\r\n")
    assert read_to_end(client).count(b"HTTP/1.1 200 OK") == 2


@pytest.mark.parametrize("before", [b"\r\n", b"\r\n\r\n", b"\r\n" * 500])
def test_empty_lines_before_a_request_are_ignored(router, client, before):
    """002-R40, RFC 9112 section 2.2"""
    client.sendall(before + GET)
    assert read_until(client, b"ok").startswith(b"HTTP/1.1 200 ")


def test_empty_lines_do_not_keep_a_connection(upstream):
    """002-R40"""
    with Router(upstream.url, CLIENT_KEEPALIVE_SECS="1") as router, socket.create_connection(
            ("127.0.0.1", router.port), 0.05) as client:
        for _ in range(400):
            try:
                client.sendall(b"\r\n")
                data = client.recv(100)
                break
            except TimeoutError:
                continue
            except (ConnectionResetError, BrokenPipeError):
                data = b""
                break
        assert data == b""


@pytest.mark.parametrize("lines", [1, 50, 5000])
def test_empty_lines_without_a_pause_end_their_connection(router, client, lines):
    """002-R40: more than 1 KiB of them."""
    client.sendall(GET)
    read_until(client, b"ok")
    with pytest.raises(OSError):
        for _ in range(10_000_000 // lines):
            client.sendall(b"\r\n" * lines)


def test_clients_that_send_empty_lines_keep_no_probe_out(upstream):
    """002-R40, 007-R1: more of them than there are connections, and each comes again."""
    def lean(over):
        while not over.is_set():
            with contextlib.suppress(OSError), socket.create_connection(
                    ("127.0.0.1", router.port), DEADLINE_S) as sock:
                while not over.is_set():
                    sock.sendall(b"\r\n" * 4000)

    with Router(upstream.url, WORKER_CONNECTIONS="10", CLIENT_KEEPALIVE_SECS="600") as router:
        with crowd(15, lean):
            for _ in range(5):
                assert router.get("/healthz").status == 200


def test_bytes_behind_the_last_request_do_not_destroy_its_answer(router, model):
    """002-R1: some clients send an empty line behind a body, of which nobody reads."""
    body = b'{"model": "%s"}' % model().encode()
    with socket.create_connection(("127.0.0.1", router.port), DEADLINE_S) as client:
        client.sendall(POST + b"Connection: close\r\nContent-Length: %d\r\n\r\n%s\r\n" % (
            len(body), body))
        # A reset would be raised here.
        answer = b""
        while data := client.recv(100):
            answer += data
    assert answer.startswith(b"HTTP/1.1 200 ") and answer.endswith(b"}")


# -- Host, Expect ----------------------------------------------------------------------------


@pytest.mark.parametrize("host, status", [
    (b"a%zz", 400), (b"a%", 400), (b"a%4", 400), (b"a%41b", 200), (b"%e4", 200),
    (b"[v1.fe80::a+en1]", 200), (b"[vF.x]:80", 200), (b"[v.x]", 400), (b"[v1.]", 400),
    (b"[v1.x/y]", 400), (b"[vg.x]", 400), (b"[v1.x]y", 400)])
def test_a_host_is_what_the_grammar_says(router, host, status):
    """006-W24, RFC 3986 section 3.2.2"""
    answer = router.exchange(GET.replace(b": x", b": %s\r\nConnection: close" % host))
    assert answer.startswith(b"HTTP/1.1 %d " % status)


def test_a_request_without_a_body_is_not_asked_for_one(router):
    """006-W25"""
    for field in (b"Content-Length: 0", b"X: y"):
        answer = router.exchange(POST + b"Connection: close\r\nExpect: 100-continue\r\n"
                                 + field + b"\r\n\r\n")
        assert answer.startswith(b"HTTP/1.1 400 ")


def test_an_expectation_that_is_none_is_refused(router):
    """006-W25"""
    for value in (b"", b" ", b"x", b"100-continue, x"):
        with socket.create_connection(("127.0.0.1", router.port), DEADLINE_S) as client:
            client.sendall(POST + b"Expect: %s\r\nContent-Length: 2\r\n\r\n{}" % value)
            assert read_to_end(client).startswith(b"HTTP/1.1 417 ")
