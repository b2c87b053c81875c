"""The scripted upstream, asked with plain sockets: every wire test trusts what it promises."""

import contextlib
import json
import os
import queue
import socket
import ssl
import sys
import threading
import time

import pytest
import trustme

from tests.support.router import read_to_end, read_until, until
from tests.support.upstream import (DEADLINE_S, Upstream, chat_chunks, chat_completion,
                                    close_at_once, complete, drip, headers_then_end,
                                    headers_then_stall, pieces, raw, reset_at_once, sse, stall)

HEAD = b"HTTP/1.1 200 Scripted\r\n"
EMPTY = HEAD + b"Content-Length: 0\r\n\r\n"
FOR_EVER_S = 600


@pytest.fixture
def upstream():
    with Upstream() as server:
        yield server


@pytest.fixture
def connect(upstream):
    """Return a function that opens a connection; all are closed at the end."""
    with contextlib.ExitStack() as stack:
        yield lambda: stack.enter_context(
            socket.create_connection(("127.0.0.1", upstream.port), DEADLINE_S))


@pytest.fixture
def client(connect):
    return connect()


def request_bytes(model="m", target="/v1/chat/completions", body='{"model": "%s"}'):
    text = body % model
    return (f"POST {target} HTTP/1.1\r\nHost: x\r\nX-Case: Kept\r\n"
            f"Content-Length: {len(text)}\r\n\r\n{text}").encode()


def ask(client, **request):
    client.sendall(request_bytes(**request))


def take(client, count):
    """Return the next `count` bytes; fewer only where the connection ends before."""
    received = b""
    while len(received) < count and (data := client.recv(count - len(received))):
        received += data
    return received


def nothing_yet(client):
    """Say whether nothing has arrived that was not taken, the connection's end included."""
    client.setblocking(False)
    try:
        client.recv(1, socket.MSG_PEEK)
        return False
    except BlockingIOError:
        return True
    finally:
        client.settimeout(DEADLINE_S)


LENGTH = HEAD + b"Content-Length: 5\r\n\r\nabcde"
CHUNKED = HEAD + b"Transfer-Encoding: chunked\r\n\r\n"
KEEPS = {
    "complete, length": (complete(b"abcde"), LENGTH),
    "complete, chunked": (complete(b"abcde", "chunked"), CHUNKED + b"5\r\nabcde\r\n0\r\n\r\n"),
    "complete, nothing": (complete(b""), EMPTY),
    "complete, no chunk": (complete(b"", "chunked"), CHUNKED + b"0\r\n\r\n"),
    "pieces, length": (pieces([b"ab", b"cde"], "length"), LENGTH),
    "pieces, chunked": (pieces([b"ab", b"c" * 16]),
                        CHUNKED + b"2\r\nab\r\n10\r\n" + b"c" * 16 + b"\r\n0\r\n\r\n"),
    "status and fields": (complete(b"", status=503, fields=[("A", "b"), ("a", "c")]),
                          b"HTTP/1.1 503 Scripted\r\nContent-Length: 0\r\nA: b\r\na: c\r\n\r\n"),
    "head": (lambda exchange: exchange.head(404, ("X", "\xe9"), version="1.0", reason="No"),
             b"HTTP/1.0 404 No\r\nX: \xe9\r\n\r\n"),
    "raw": (raw(b"\x00anything"), b"\x00anything"),
    "headers_then_end": (headers_then_end, CHUNKED + b"0\r\n\r\n"),
}


@pytest.mark.parametrize("case", KEEPS)
def test_an_answer_is_these_bytes_and_the_connection_takes_another_request(
        upstream, client, case):
    script, expected = KEEPS[case]
    upstream.otherwise(script)
    for turn in (1, 2):
        ask(client)
        assert take(client, len(expected)) == expected
        assert upstream.wait_for("m", turn).turn == turn
    assert nothing_yet(client)


ENDS = {
    "complete, close": (complete(b"abcde", "close"), HEAD + b"\r\nabcde"),
    "pieces, close": (pieces([b"ab", b"cde"], "close"), HEAD + b"\r\nabcde"),
    "close": (raw(b"half", "close"), b"half"),
    "close_at_once": (close_at_once, b""),
}


@pytest.mark.parametrize("case", ENDS)
def test_a_proper_end_is_an_end_of_stream(upstream, client, case):
    script, expected = ENDS[case]
    upstream.otherwise(script)
    ask(client)
    assert take(client, 1000) == expected
    assert upstream.wait_for("m").closed.wait(DEADLINE_S)


@pytest.mark.parametrize("script, before", [
    (reset_at_once, b""), (raw(b"half", "reset"), b"half")])
def test_a_reset_is_an_error_to_the_peer(upstream, client, script, before):
    upstream.otherwise(script)
    ask(client)
    assert take(client, len(before)) == before
    with pytest.raises(ConnectionResetError):
        client.recv(1)


@pytest.mark.parametrize("script, before", [
    (stall, b""), (headers_then_stall, b"\r\n\r\n"), (raw(b"half", "until_closed"), b"half"),
    (drip(b"ab", FOR_EVER_S), b"a")])
def test_a_stalled_answer_lasts_until_the_peer_closes(upstream, client, script, before):
    upstream.otherwise(script)
    ask(client)
    exchange = upstream.wait_for("m")
    read_until(client, before)
    assert nothing_yet(client) and not exchange.closed.is_set()
    earliest = time.monotonic()
    client.close()
    assert exchange.closed.wait(DEADLINE_S)
    assert earliest <= exchange.closed_at <= time.monotonic()


def test_until_closed_says_whether_the_peer_closed_in_time(upstream, connect):
    said = queue.SimpleQueue()
    upstream.on("late", lambda exchange: said.put(exchange.until_closed(timeout=0.01)))
    upstream.on("in time", lambda exchange: said.put(exchange.until_closed()))
    late, in_time = connect(), connect()
    ask(late, model="late")
    assert said.get(timeout=DEADLINE_S) is False
    assert take(late, 1) == b"", "this side closes then"
    ask(in_time, model="in time")
    in_time.close()
    assert said.get(timeout=DEADLINE_S) is True


def test_dripped_bytes_come_in_order_to_the_last(upstream, client):
    upstream.otherwise(drip(b"abc", 0.001))
    ask(client)
    assert take(client, 1000) == b"abc"


def test_each_piece_waits_for_what_comes_before_it(upstream, client):
    gates = [threading.Event(), threading.Event()]
    upstream.otherwise(pieces(
        [b"a", b"b"], before_each=lambda number: gates[number].wait(DEADLINE_S)))
    ask(client)
    assert take(client, len(CHUNKED)) == CHUNKED and nothing_yet(client)
    gates[0].set()
    assert take(client, 6) == b"1\r\na\r\n" and nothing_yet(client)
    gates[1].set()
    assert take(client, 11) == b"1\r\nb\r\n0\r\n\r\n"


def test_an_exchange_tells_the_request_and_the_number_of_its_connection(upstream, connect):
    body = '{"model": "%s", "seed": ' + "9" * 5000 + "}"  # more digits than int() takes
    for number in (1, 2):
        ask(connect(), body=body)
        exchange = upstream.wait_for("m", number)
        assert (exchange.number, exchange.turn) == (number, 1)
        assert exchange.target == "/v1/chat/completions"
        assert ("x-case", "Kept") in exchange.fields and ("host", "x") in exchange.fields
        assert exchange.body.decode() == body % "m"
    assert upstream.connections == 2


def test_every_exchange_of_a_connection_learns_of_its_end(upstream, client):
    upstream.otherwise(complete(b""))
    for _ in range(2):
        ask(client)
        assert take(client, len(EMPTY)) == EMPTY
    first, second = upstream.wait_for("m", 1), upstream.wait_for("m", 2)
    assert not first.closed.is_set() and not second.closed.is_set()
    client.close()
    assert first.closed.wait(DEADLINE_S) and second.closed.wait(DEADLINE_S)
    assert first.closed_at is not None and second.closed_at is not None


# Without the end of its body, its body, the empty line, the length, the end of a field.
@pytest.mark.parametrize("missing", [1, 14, 16, 36, 40])
def test_half_a_request_is_none(upstream, client, missing):
    client.sendall(request_bytes()[:-missing])
    client.shutdown(socket.SHUT_WR)
    assert read_to_end(client) == b""
    assert upstream.exchanges == []


def test_a_model_does_what_its_latest_script_says_and_the_others_the_same(upstream, client):
    upstream.on("one", raw(b"1"))
    upstream.otherwise(raw(b"?"))
    ask(client, model="one")
    ask(client, model="two")
    assert take(client, 2) == b"1?"
    upstream.on("one", raw(b"2"))
    ask(client, model="one")
    assert take(client, 1) == b"2"
    assert [exchange.turn for exchange in upstream.seen("one")] == [1, 3]


def test_waiting_for_a_request_ends_with_it_or_with_a_sentence_at_the_deadline(upstream, client):
    thread = threading.Thread(target=lambda: upstream.seen("m") or ask(client))
    thread.start()
    assert upstream.wait_for("m") is upstream.exchanges[0]
    thread.join(DEADLINE_S)
    with pytest.raises(AssertionError, match="no request number 2 for m"):
        upstream.wait_for("m", 2, timeout=0.01)


@pytest.mark.parametrize("attribute, target", [
    ("models", "/v1/models"), ("rows", "/chutes/utilization")])
def test_a_feed_is_what_its_attribute_says_at_the_time(upstream, client, attribute, target):
    def feed(status=200):
        body = json.dumps(getattr(upstream, attribute)).encode()
        ask(client, target=target)
        expected = b"HTTP/1.1 %d Scripted\r\nContent-Length: %d\r\n\r\n" % (status, len(body))
        assert take(client, len(expected + body)) == expected + body
    feed()
    setattr(upstream, attribute, [{"any": "thing"}])
    feed()
    upstream.feed_status = 500
    feed(500)
    setattr(upstream, attribute, b"no JSON")
    ask(client, target=target)
    assert read_until(client, b"no JSON").endswith(b"Content-Length: 7\r\n\r\nno JSON")
    assert [exchange.target for exchange in upstream.feed_requests] == [target] * 4
    assert upstream.exchanges == []


def test_where_bodies_are_refused_nothing_is_read_and_the_peers_end_is_noticed(upstream, connect):
    upstream.refuse_bodies = True
    client = connect()
    ask(client)
    until(lambda: upstream.bodies_refused)
    [closed] = upstream.bodies_refused
    assert nothing_yet(client) and not closed.is_set() and upstream.exchanges == []
    client.close()
    assert closed.wait(DEADLINE_S)


def test_idle_connections_are_dropped_and_the_busy_one_goes_on(upstream, connect):
    go_on = threading.Event()
    upstream.on("busy", lambda exchange: (go_on.wait(DEADLINE_S), complete(b"")(exchange)))
    upstream.on("done", complete(b""))
    busy, done, mute = connect(), connect(), connect()
    ask(done, model="done")
    assert take(done, len(EMPTY)) == EMPTY
    ask(busy, model="busy")
    upstream.wait_for("busy")
    until(lambda: upstream.connections == 3)

    def ended(client):
        upstream.drop_idle()
        return not nothing_yet(client)
    # A connection is idle a moment after the last byte of its answer, or after its opening.
    until(lambda: ended(done))
    until(lambda: ended(mute))
    assert take(done, 1) == take(mute, 1) == b"" and nothing_yet(busy)
    go_on.set()
    assert take(busy, len(EMPTY)) == EMPTY


def test_after_stop_listening_new_connections_are_refused_and_old_ones_served(
        upstream, client, connect):
    ask(client, model="first")
    upstream.wait_for("first")
    upstream.stop_listening()
    with pytest.raises(ConnectionRefusedError):
        connect()
    ask(client, model="second")
    assert upstream.wait_for("second").turn == 2


def test_leaving_ends_every_connection(connect):
    with Upstream() as server:
        server.otherwise(stall)
        with socket.create_connection(("127.0.0.1", server.port), DEADLINE_S) as client:
            ask(client)
            server.wait_for("m")
            server.__exit__()
            assert take(client, 1) == b""
        with pytest.raises(ConnectionRefusedError):
            socket.create_connection(("127.0.0.1", server.port))


@pytest.fixture(scope="module")
def authority():
    return trustme.CA()


@pytest.fixture
def tls_client(authority, tmp_path):
    """Return a backend that speaks TLS and a connection to it that insists on close_notify."""
    path = tmp_path / "certificate.pem"
    path.write_bytes(authority.issue_cert("localhost").private_key_and_cert_chain_pem.bytes())
    context = ssl.create_default_context()
    authority.configure_trust(context)
    with (Upstream(tls=path) as server,
          socket.create_connection(("127.0.0.1", server.port), DEADLINE_S) as plain,
          context.wrap_socket(plain, server_hostname="localhost",
                              suppress_ragged_eofs=False) as client):
        assert server.url == f"https://127.0.0.1:{server.port}"
        yield server, client


def end_by(how):
    return lambda exchange: (exchange.send(b"half"), getattr(exchange, how)())


def test_over_tls_an_end_by_the_book_is_an_end_of_stream(tls_client):
    server, client = tls_client
    server.otherwise(complete(b"abcde"))
    ask(client)
    assert take(client, len(LENGTH)) == LENGTH
    server.otherwise(end_by("close_by_the_book"))
    ask(client)
    assert take(client, 1000) == b"half"


@pytest.mark.parametrize("how", ["close", "reset"])
def test_over_tls_any_other_end_is_an_error(tls_client, how):
    server, client = tls_client
    server.otherwise(end_by(how))
    # TLS says the same of both; the socket below does not.
    with socket.socket(fileno=os.dup(client.fileno())) as below:
        ask(client)
        assert take(client, 4) == b"half"
        if how == "reset":
            below.settimeout(DEADLINE_S)
            with pytest.raises(ConnectionResetError):
                below.recv(1)
    # The first releases of Python 3.11 report such an end as an end.
    try:
        assert client.recv(1) == b"" and sys.version_info < (3, 11, 4)
    except ssl.SSLEOFError:
        pass


def test_over_tls_a_stall_lasts_until_the_peer_closes(tls_client):
    server, client = tls_client
    server.otherwise(stall)
    ask(client)
    exchange = server.wait_for("m")
    client.close()
    assert exchange.closed.wait(DEADLINE_S)


def test_a_peer_that_speaks_no_tls_is_let_go(tls_client):
    server, client = tls_client
    with socket.create_connection(("127.0.0.1", server.port), DEADLINE_S) as plain:
        ask(plain)
        read_to_end(plain)
    server.otherwise(complete(b""))
    ask(client)
    assert take(client, len(EMPTY)) == EMPTY


def test_events_are_data_lines_and_end_with_done():
    assert sse([{"a": 1}, {}]) == [b'data: {"a": 1}\n\n', b"data: {}\n\n", b"data: [DONE]\n\n"]
    assert sse([{}], done=False) == [b"data: {}\n\n"]


def test_a_chat_completion_says_its_text_whole_or_word_by_word():
    whole = json.loads(chat_completion("m", "one two"))
    assert (whole["object"], whole["model"]) == ("chat.completion", "m")
    [choice] = whole["choices"]
    assert choice["message"] == {"role": "assistant", "content": "one two"}
    assert choice["finish_reason"] == "stop"
    events = chat_chunks("m", "one two")
    assert {(event["object"], event["model"]) for event in events} == {
        ("chat.completion.chunk", "m")}
    assert [event["choices"][0]["delta"] for event in events] == [
        {"role": "assistant", "content": ""}, {"content": "one "}, {"content": "two "}, {}]
    assert [event["choices"][0]["finish_reason"] for event in events] == [
        None, None, None, "stop"]
