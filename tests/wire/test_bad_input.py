"""What is not a request gets a clear error, and none of it reaches the upstream."""

import json
import socket

import pytest

from tests.support.router import read_to_end, read_until

LIMIT = 20000  # MAX_REQUEST_BYTES of the shared router
JSON_CORPUS = {
    "empty": b"", "blank": b"   ", "no JSON": b"model=x", "cut off": b'{"model":"m"',
    "two documents": b'{"model":"m"}{"model":"m"}', "trailing comma": b'{"model":"m",}',
    "single quotes": b"{'model':'m'}", "comment": b'{"model":"m"/*x*/}',
    "NaN": b'{"model":"m","x":NaN}', "Infinity": b'{"model":"m","x":-Infinity}',
    "leading zero": b'{"model":"m","x":01}', "raw newline": b'{"model":"m\n"}',
    "not UTF-8 in a value": b'{"model":"m","x":"\xff"}',
    "latin-1 in a key": b'{"model":"m","\xe9":1}',
    "raw surrogate": b'{"model":"m","x":"\xed\xa0\x80"}',
    "overlong": b'{"model":"m","x":"\xc0\xaf"}',
    "BOM": b'\xef\xbb\xbf{"model":"m"}', "UTF-16": '{"model":"m"}'.encode("utf-16"),
    "UTF-32": '{"model":"m"}'.encode("utf-32-le"), "NUL after": b'{"model":"m"}\x00',
    "bad escape": b'{"model":"m","x":"\\x"}', "half an escape": b'{"model":"m","x":"\\u12"}',
    "deep arrays": b'{"model":"m","x":' + b"[" * 5000 + b"]" * 5000 + b"}",
    "deep objects": b'{"model":"m","x":' + b'{"a":' * 3000 + b"1" + b"}" * 3000 + b"}",
    "never closed": b'{"model":"m","x":' + b"[" * 19000,
}


def refused(router, upstream, body, code, status=400, param=None):
    before = len(upstream.exchanges)
    answer = router.post(body)
    assert (answer.status, answer.error["code"], answer.error["param"]) == (status, code, param)
    assert answer.error["type"] == "invalid_request_error"
    assert len(upstream.exchanges) == before
    return answer


@pytest.mark.parametrize("case", JSON_CORPUS)
def test_what_is_not_json_is_refused(router, upstream, case):
    """002-R2, 002-R21"""
    refused(router, upstream, JSON_CORPUS[case], "invalid_json")


@pytest.mark.parametrize("body", [b"[]", b'"text"', b"1", b"null", b"true", b'[{"model":"m"}]'])
def test_what_is_not_an_object_is_refused(router, upstream, body):
    """002-R2, 002-R21"""
    refused(router, upstream, body, "invalid_body")


@pytest.mark.parametrize("body", [
    b'{"model":"a","model":"b"}', b'{"model":"a","mod\\u0065l":"b"}',
    b'{"model":"a","x":{"model":1},"model":"a"}', b'{"model":"a","model":1}'])
def test_a_model_named_twice_is_ambiguous(router, upstream, body):
    """002-R9"""
    refused(router, upstream, body, "invalid_body")


@pytest.mark.parametrize("body", [
    b"{}", b'{"model":null}', b'{"model":1}', b'{"model":["m"]}', b'{"model":{"model":"m"}}',
    b'{"model":""}', b'{"model":" \\t\\n"}', b'{"Model":"m"}', b'{"x":{"model":"m"}}',
    b'{"model":"\\ud800"}', b'{"model":"a\\udfffb"}', b'{"model":"a,\\ud800"}'])
def test_a_model_that_is_no_name_is_missing(router, upstream, body):
    """002-R3, 002-R21"""
    assert refused(router, upstream, body, "missing_model", param="model").body.isascii()


@pytest.mark.parametrize("body", [
    b'{"x":"\\ud800","model":"%s"}', b'{"x":1e400,"model":"%s","y":' + b"9" * 5000 + b"}",
    b'\r\n\t {"model" \n:\t"%s"} ', b'{"":"","model":"%s","x":"\\u0000\\"model\\":1"}',
    b'{"mode\\u006C":"%s"}', b'{"tools":[{"model":"a"},{"model":"b"}],"model":"%s"}'])
def test_odd_but_valid_json_passes(router, upstream, model, body):
    """002-R2, 002-R8"""
    name = model()
    sent = body.replace(b"%s", name.encode())
    assert router.post(sent).status == 200
    assert upstream.seen(name)[0].body == sent


def padded(name, size):
    body = b'{"model":"%s","x":""}' % name.encode()
    return body[:-2] + b"x" * (size - len(body)) + body[-2:]


def chunked(body, size=4096):
    pieces = [body[at:at + size] for at in range(0, len(body), size)]
    return b"".join(b"%x\r\n%s\r\n" % (len(p), p) for p in pieces) + b"0\r\n\r\n"


CHUNKED_HEAD = (b"POST /v1/chat/completions HTTP/1.1\r\nHost: x\r\nConnection: close\r\n"
                b"Transfer-Encoding: chunked\r\n\r\n")


@pytest.mark.parametrize("size, status", [(LIMIT - 1, 200), (LIMIT, 200), (LIMIT + 1, 413)])
def test_the_size_limit_holds_to_the_byte_in_both_framings(router, upstream, model, size, status):
    """002-R1"""
    name = model()
    body = padded(name, size)
    assert len(body) == size
    assert router.post(body).status == status
    answer = router.exchange(CHUNKED_HEAD + chunked(body))
    assert answer.startswith(b"HTTP/1.1 %d " % status)
    assert [exchange.body for exchange in upstream.seen(name)] == [body] * 2 * (status == 200)


@pytest.mark.parametrize("framing", ["length", "chunked"])
def test_a_client_that_sends_far_too_much_can_read_the_refusal(router, upstream, framing):
    """002-R1"""
    body = b"x" * 3_000_000
    head = CHUNKED_HEAD if framing == "chunked" else (
        b"POST /v1/chat/completions HTTP/1.1\r\nHost: x\r\nContent-Length: 3000000\r\n\r\n")
    with socket.create_connection(("127.0.0.1", router.port), 10) as client:
        client.sendall(head)
        try:
            client.sendall(chunked(body) if framing == "chunked" else body)
        except OSError:
            pass  # the rest is not read to the end; the answer is there all the same
        answer = read_to_end(client)
    assert answer.startswith(b"HTTP/1.1 413 ") and b"request_too_large" in answer
    assert b"Connection: close" in answer


def test_an_announced_body_that_is_too_large_is_refused_before_it_comes(router):
    """002-R1"""
    with socket.create_connection(("127.0.0.1", router.port), 10) as client:
        client.sendall(b"POST /v1/chat/completions HTTP/1.1\r\nHost: x\r\n"
                       b"Content-Length: 99999999999999999999\r\n\r\n")
        assert b"request_too_large" in read_until(client, b"}}")


@pytest.mark.parametrize("head, part", [
    (b"Content-Length: 100\r\n", b'{"model":'), (b"Content-Length: 100\r\n", b""),
    (b"Transfer-Encoding: chunked\r\n", b"5\r\n{\"mod"),
    (b"Transfer-Encoding: chunked\r\n", b"ffffffffffffffff\r\nxx"),
    (b"Transfer-Encoding: chunked\r\n", b"")])
def test_a_body_that_does_not_come_times_out(router, upstream, head, part):
    """002-R1, 002-R21"""
    before = len(upstream.exchanges)
    answer = router.exchange(
        b"POST /v1/chat/completions HTTP/1.1\r\nHost: x\r\n" + head + b"\r\n" + part)
    assert answer.startswith(b"HTTP/1.1 408 ") and b'"request_timeout"' in answer
    assert len(upstream.exchanges) == before


def test_a_dripped_body_does_not_extend_its_deadline(router):
    """002-R1, 006-W2"""
    with socket.create_connection(("127.0.0.1", router.port), 10) as client:
        client.sendall(b"POST /v1/chat/completions HTTP/1.1\r\nHost: x\r\n"
                       b"Content-Length: 1000\r\n\r\n")
        client.settimeout(0.05)
        for _ in range(200):
            try:
                client.sendall(b" ")
                answer = client.recv(4096)
                break
            except TimeoutError:
                continue
        assert answer.startswith(b"HTTP/1.1 408 ")


@pytest.mark.parametrize("chunks", [
    b"zz\r\n", b"5\r\nhelloX0\r\n\r\n", b"-1\r\n", b"0x5\r\nhello\r\n", b"5;\x00\r\nhello\r\n",
    b"\r\n", b"5 5\r\nhello\r\n"])
def test_broken_chunks_are_an_unreadable_body(router, upstream, chunks):
    """002-R1, 002-R21"""
    before = len(upstream.exchanges)
    answer = router.exchange(CHUNKED_HEAD + chunks)
    assert answer.startswith(b"HTTP/1.1 400 ") and b'"invalid_body"' in answer
    assert len(upstream.exchanges) == before


@pytest.mark.parametrize("head", [b"Content-Length: 100\r\n", b"Transfer-Encoding: chunked\r\n"])
def test_a_client_that_dies_within_its_body_reaches_nobody(router, upstream, head):
    """002-R1, 006-W12"""
    before = len(upstream.exchanges)
    with socket.create_connection(("127.0.0.1", router.port), 10) as client:
        client.sendall(b"POST /v1/chat/completions HTTP/1.1\r\nHost: x\r\n" + head
                       + b'\r\n10\r\n{"model": "x"}  \r\n')
        client.shutdown(socket.SHUT_WR)
        assert b'"invalid_body"' in read_to_end(client)
    assert len(upstream.exchanges) == before


SECRET = b"sk-planted-token"
REFUSED_BY_THE_PARSER = {
    "header without colon": b"GET /healthz HTTP/1.1\r\nHost: x\r\nAuthorization %s\r\n\r\n",
    "space before colon": b"GET /healthz HTTP/1.1\r\nHost : x%s\r\n\r\n",
    "folded header": b"GET /healthz HTTP/1.1\r\nHost: x\r\nA: b\r\n %s\r\n\r\n",
    "no host": b"GET /healthz HTTP/1.1\r\nA: %s\r\n\r\n",
    "two hosts": b"GET /healthz HTTP/1.1\r\nHost: a\r\nHost: %s\r\n\r\n",
    "control character": b"GET /healthz HTTP/1.1\r\nHost: x\r\nA: \x01%s\r\n\r\n",
    "bad version": b"GET /%s HTTP/3.7\r\nHost: x\r\n\r\n",
    "version with a minor number from nowhere": b"GET /%s HTTP/1.9\r\nHost: x\r\n\r\n",
    "empty host": b"GET /%s HTTP/1.1\r\nHost:\r\n\r\n",
    "host with a user": b"GET / HTTP/1.1\r\nHost: %s@x\r\n\r\n",
    "host with a path": b"GET / HTTP/1.1\r\nHost: x/%s\r\n\r\n",
    "host with a space": b"GET / HTTP/1.1\r\nHost: x %s\r\n\r\n",
    "host with letters for a port": b"GET / HTTP/1.1\r\nHost: x:%s\r\n\r\n",
    "host with a port too high": b"GET /%s HTTP/1.1\r\nHost: x:65536\r\n\r\n",
    "host with half an address": b"GET /%s HTTP/1.1\r\nHost: [::1\r\n\r\n",
    "host with no address": b"GET /%s HTTP/1.1\r\nHost: [::x]\r\n\r\n",
    "host in brackets": b"GET /%s HTTP/1.1\r\nHost: [127.0.0.1]\r\n\r\n",
    "host list": b"GET /%s HTTP/1.1\r\nHost: a,b\r\n\r\n",
    "host of HTTP/1.0": b"GET / HTTP/1.0\r\nHost: %s@x\r\n\r\n",
    "two authorizations": b"GET / HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer %s\r\n"
                          b"authorization: Bearer x\r\n\r\n",
    "bad method": b"get /%s HTTP/1.1\r\nHost: x\r\n\r\n",
    "bad request line": b"GET %s\r\nHost: x\r\n\r\n",
    "bare LF": b"GET /%s HTTP/1.1\nHost: x\n\n",
    "long line": b"GET /%s" + b"x" * 9000 + b" HTTP/1.1\r\nHost: x\r\n\r\n",
    "large header": b"GET / HTTP/1.1\r\nHost: x\r\nA: %s" + b"x" * 17000 + b"\r\n\r\n",
    "many headers": b"GET / HTTP/1.1\r\nHost: x\r\n" + b"A: %s\r\n" * 150 + b"\r\n",
    "unknown expectation": b"POST / HTTP/1.1\r\nHost: x\r\nExpect: %s\r\n\r\n",
    "length and chunked": b"POST /v1/chat/completions HTTP/1.1\r\nHost: %s\r\nContent-Length: 4\r\n"
                          b"Transfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
    "two lengths": b"POST /v1/chat/completions HTTP/1.1\r\nHost: %s\r\nContent-Length: 4\r\n"
                   b"Content-Length: 5\r\n\r\nxxxxx",
    "bad length": b"POST /v1/chat/completions HTTP/1.1\r\nHost: %s\r\nContent-Length: +4\r\n\r\n",
    "chunked twice": b"POST /v1/chat/completions HTTP/1.1\r\nHost: %s\r\n"
                     b"Transfer-Encoding: chunked, chunked\r\n\r\n0\r\n\r\n",
    "unknown coding": b"POST /v1/chat/completions HTTP/1.1\r\nHost: %s\r\n"
                      b"Transfer-Encoding: xchunked\r\n\r\n0\r\n\r\n",
    "chunked not last": b"POST /v1/chat/completions HTTP/1.1\r\nHost: %s\r\n"
                        b"Transfer-Encoding: chunked, gzip\r\n\r\n0\r\n\r\n",
    "packed and chunked": b"POST /v1/chat/completions HTTP/1.1\r\nHost: %s\r\n"
                          b"Transfer-Encoding: gzip, chunked\r\n\r\n0\r\n\r\n",
    "chunked in HTTP/1.0": b"POST /v1/chat/completions HTTP/1.0\r\nHost: %s\r\n"
                           b"Transfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
}


@pytest.mark.parametrize("case", REFUSED_BY_THE_PARSER)
def test_what_the_parser_refuses_gets_our_error_and_is_neither_quoted_nor_logged(
        router, upstream, case):
    """002-R21, 001-R7, 006-W11"""
    request = REFUSED_BY_THE_PARSER[case].replace(b"%s", SECRET)
    before = len(upstream.exchanges)
    smuggled = b"POST /v1/chat/completions HTTP/1.1\r\nHost: x\r\n\r\n"
    answer = router.exchange(request + smuggled)
    head, _, body = answer.partition(b"\r\n\r\n")
    assert 400 <= int(head.split()[1]) < 500
    assert b"Connection: close" in head and b"X-Request-Id: " in head
    assert head.count(b"\r\nDate: ") == head.count(b"\r\nServer: ") == 1
    error = json.loads(body)["error"]
    assert (error["type"], error["code"], error["param"]) == (
        "invalid_request_error", "bad_request", None)
    assert SECRET not in answer
    assert len(upstream.exchanges) == before
    router.get("/healthz")
    logged = json.dumps(router.lines)
    assert SECRET.decode() not in logged and "127.0.0.1:" + str(router.port) in logged
    assert "Traceback" not in logged


@pytest.mark.parametrize("path", ["/", "/v1", "/v1/models/", "/v1/chat/completions/", "/healthz/",
                                  "//v1/chat/completions", "/v1//chat/completions",
                                  "/v1/chat/completions%00", "/V1/chat/completions", "/static/x"])
def test_a_route_that_is_not_there_is_not_found(router, upstream, path):
    """002-R21"""
    answer = router.post(b'{"model":"northwind/Cedar-1B"}', path=path)
    assert (answer.status, answer.error["code"], answer.error["type"]) == (
        404, "not_found", "invalid_request_error")


@pytest.mark.parametrize("method, path, allowed", [
    ("GET", "/v1/chat/completions", {"POST"}), ("PUT", "/v1/chat/completions", {"POST"}),
    ("OPTIONS", "/v1/chat/completions", {"POST"}), ("DELETE", "/healthz", {"GET", "HEAD"}),
    ("OPTIONS", "/readyz", {"GET", "HEAD"}), ("TRACE", "/healthz", {"GET", "HEAD"})])
def test_a_method_a_route_does_not_take_is_told_which_it_does(router, method, path, allowed):
    """002-R21"""
    answer = router.get(path, method=method)
    assert (answer.status, answer.error["code"]) == (405, "method_not_allowed")
    assert set(answer.value("Allow").split(", ")) == allowed


@pytest.mark.parametrize("path", [b"/nowhere", b"//v1/chat/completions", b"/healthz"])
def test_an_unread_body_on_another_route_does_not_hold_the_connection(router, path):
    """002-R21"""
    answer = router.exchange(
        b"POST %s HTTP/1.1\r\nHost: x\r\nContent-Length: 100000000000\r\n\r\nx" % path)
    assert answer.startswith(b"HTTP/1.1 40") and b"Connection: close" in answer


def test_a_client_that_asks_and_never_reads_is_dropped_on_every_route(router):
    """006-W3"""
    with socket.create_connection(("127.0.0.1", router.port), 10) as client:
        client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        asked = b"GET /healthz HTTP/1.1\r\nHost: x\r\n\r\n" * 1000
        with pytest.raises((ConnectionResetError, BrokenPipeError)):
            for _ in range(10_000):
                client.sendall(asked)
