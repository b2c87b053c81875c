"""The upstream's errors, in the shape that OpenAI's SDKs show."""

import json
import socket
import threading

import pytest

from tests.support.router import Router, read_to_end
from tests.support.upstream import complete, pieces, raw

JSON = ("Content-Type", "application/json; charset=utf-8")
DETAIL = b' {"detail": "Invalid token.", "n": 1.10}\n'


def error(message, kind="authentication_error"):
    return {"message": message, "type": kind, "param": None, "code": None}


@pytest.mark.parametrize("framing", ["length", "chunked", "close"])
@pytest.mark.parametrize("mode", ["direct", "list"])
def test_an_error_gets_its_member_before_its_own_in_every_framing(
        router, upstream, model, framing, mode):
    """002-R25, 002-R56"""
    name = model()
    upstream.on(name, complete(DETAIL, framing, status=401, fields=[
        JSON, ("X-Own", "kept"), ("ETag", '"of other bytes"'), ("Content-Digest", "sha-256=:x:")]))
    answer = router.chat(name if mode == "direct" else f"{name},")
    assert (answer.status, answer.ended, answer.value("X-Own")) == (401, "complete", "kept")
    assert json.loads(answer.body)["error"] == error("Invalid token.")
    assert answer.body.endswith(b'"detail": "Invalid token.", "n": 1.10}\n')
    assert answer.value("ETag") is answer.value("Content-Digest") is None
    length = answer.value("Content-Length")
    assert length == (str(len(answer.body)) if framing == "length" else None)
    assert router.chat(name).status == 401


@pytest.mark.parametrize("body, status, fields", [
    (DETAIL, 401, [("Content-Type", "text/plain")]), (DETAIL, 401, []),
    (DETAIL, 401, [JSON, ("Content-Encoding", "gzip")]), (DETAIL, 200, [JSON]),
    (b'{"detail": "x", "error": {"message": "own"}}', 400, [JSON]), (b"[1]", 500, [JSON]),
    (b"", 429, [JSON]), (b"<html>", 429, [("Content-Type", "text/html")]),
    (b'{"detail": "%s"}' % (b"x" * 65536), 500, [JSON])])
@pytest.mark.parametrize("framing", ["length", "chunked"])
def test_any_other_answer_passes_as_it_came(router, upstream, model, body, status, fields, framing):
    """002-R25, 002-R56"""
    name = model()
    upstream.on(name, complete(body, framing, status=status, fields=[*fields, ("ETag", '"own"')]))
    answer = router.chat(name)
    assert (answer.status, answer.body, answer.ended) == (status, body, "complete")
    assert answer.value("ETag") == '"own"'


def test_errors_pass_as_they_came_where_that_is_wanted(upstream, model):
    """002-R25"""
    name = model()
    upstream.on(name, complete(DETAIL, status=401, fields=[JSON]))
    with Router(upstream.url, UPSTREAM_ERRORS="as_is") as router:
        assert router.chat(name).body == DETAIL


def test_a_503_gets_its_member_once_failover_has_been_decided(router, upstream, model):
    """002-R25, 002-R12"""
    first, second = model(), model()
    for name in (first, second):
        upstream.on(name, complete(b'{"detail": "no instance of %s"}' % name.encode(), status=503,
                                   fields=[JSON]))
    answer = router.chat(f"{first},{second}")
    assert json.loads(answer.body)["error"] == error(f"no instance of {second}", "server_error")
    assert len(upstream.seen(first)) == len(upstream.seen(second)) == 1


def test_a_404_that_names_the_model_gets_its_member_as_the_last_candidates_answer(
        router, upstream, model):
    """002-R25, 002-R12"""
    first, second = model(), model()
    for name in (first, second):
        upstream.on(name, complete(b'{"detail": "model not found: %s"}' % name.encode(),
                                   status=404, fields=[JSON]))
    answer = router.chat(f"{first},{second}")
    assert json.loads(answer.body)["error"] == error(
        f"model not found: {second}", "invalid_request_error")


@pytest.mark.parametrize("sent, then", [
    (b"HTTP/1.1 400 x\r\nContent-Type: application/json\r\nContent-Length: 99\r\n\r\n{", "close"),
    (b"HTTP/1.1 400 x\r\nContent-Type: application/json\r\nContent-Length: 99\r\n\r\n{", "reset"),
    (b"HTTP/1.1 400 x\r\nContent-Type: application/json\r\nTransfer-Encoding: chunked\r\n\r\n"
     b"1\r\n{\r\nzz\r\n", "keep")])
def test_an_error_whose_body_breaks_off_is_passed_on_and_cut(router, upstream, model, sent, then):
    """002-R25, 006-W4"""
    name = model()
    upstream.on(name, raw(sent, then))
    answer = router.chat(name, headers={"X-Request-Id": name})
    assert (answer.status, answer.ended) == (400, "cut") and answer.body in (b"", b"{")
    assert router.record(name)["ended"] == "cut_by_upstream"


def test_an_error_that_never_ends_is_passed_on_and_cut_when_the_idle_timeout_is_over(
        router, upstream, model):
    """002-R25, 006-W2"""
    name = model()
    upstream.on(name, lambda exchange: (
        exchange.head(400, JSON, ("Content-Length", 99)), exchange.send(b"{"),
        exchange.until_closed()))
    answer = router.chat(name, headers={"X-Request-Id": name})
    assert (answer.status, answer.body, answer.ended) == (400, b"{", "cut")
    assert router.record(name)["cut_cause"] == "silence"


def test_a_client_that_leaves_while_an_error_comes_ends_it(router, upstream, model):
    """002-R25, 006-W1"""
    name, left = model(), threading.Event()
    upstream.on(name, pieces([b"{", b"}"], "length", 400, [JSON],
                             before_each=lambda number: number == 0 or left.wait(20)))
    body = json.dumps({"model": name}).encode()
    with socket.create_connection(("127.0.0.1", router.port), 10) as client:
        client.sendall(b"POST /v1/chat/completions HTTP/1.1\r\nHost: a\r\nX-Request-Id: %s\r\n"
                       b"Content-Length: %d\r\n\r\n%s" % (name.encode(), len(body), body))
        upstream.wait_for(name)
        client.shutdown(socket.SHUT_WR)
        assert read_to_end(client) == b""
    left.set()
    assert router.record(name)["ended"] == "client_gone"
