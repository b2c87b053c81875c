"""A token, a prompt and an address, planted wherever they could leak from, and looked for."""

import itertools
import json
import socket
import sqlite3

import pytest

from tests.support.feeds import models_feed, utilization_row
from tests.support.router import Answer, Router, read_to_end, until
from tests.support.upstream import DEADLINE_S, Upstream, complete, raw, reset_at_once

TOKEN, PROMPT, CREDENTIAL = "sk-planted-0a1b2c", "my-secret-prompt", "hunter2-planted"
PEER, FORWARDED = "127.0.0.77", "203.0.113.77"
PLANTED = (TOKEN, PROMPT, CREDENTIAL, PEER, FORWARDED)
BODY = json.dumps({"model": "a", "messages": [{"role": "user", "content": PROMPT}]}).encode()

# What goes over the wire as it is.
REQUESTS = {
    "a header without its colon":
        b"GET /healthz HTTP/1.1\r\nHost: x\r\nAuthorization Bearer %s\r\n\r\n",
    "a duplicate header":
        b"POST /v1/chat/completions HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer %s\r\n"
        b"Authorization: Bearer %s\r\nContent-Length: 2\r\n\r\n{}",
    "a duplicate length":
        b"POST / HTTP/1.1\r\nHost: x\r\nX: %s\r\nContent-Length: 1\r\nContent-Length: 2\r\n\r\n",
    "the query string":
        b"GET /v1/models?key=%s HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n",
    "the path": b"GET /%s HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n",
    "the method": b"%s / HTTP/1.1\r\nHost: x\r\n\r\n",
    "the version": b"GET / HTTP/%s\r\nHost: x\r\n\r\n",
    "the host": b"GET / HTTP/1.1\r\nHost: %s:%s\r\nConnection: close\r\n\r\n",
    "no request at all": b"%s\r\n\r\n",
    "a header too large": b"GET / HTTP/1.1\r\nHost: x\r\nX: %s" + b"x" * 70_000 + b"\r\n\r\n",
    "a bad chunk": b"POST /v1/chat/completions HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked"
                   b"\r\n\r\n%s\r\n",
    "an expectation": b"POST / HTTP/1.1\r\nHost: x\r\nExpect: %s\r\nContent-Length: 1\r\n\r\n",
    "a body cut off": b"POST /v1/chat/completions HTTP/1.1\r\nHost: x\r\nContent-Length: 100"
                      b"\r\n\r\n{\"model\": \"%s",
}
UPSTREAM = {
    "an error's body": complete(b'{"error": "%s"}' % TOKEN.encode(), status=500),
    "the reason phrase": raw(b"HTTP/1.1 500 %s\r\nContent-Length: 0\r\n\r\n" % TOKEN.encode()),
    "no valid answer": raw(b"%s\r\n\r\n" % TOKEN.encode(), then="close"),
    "a broken field": raw(b"HTTP/1.1 200 OK\r\nX %s\r\n\r\n" % TOKEN.encode(), then="close"),
    "a field with a control character": raw(
        b"HTTP/1.1 200 OK\r\nX: %s\x01\r\nContent-Length: 1\r\n\r\nx" % TOKEN.encode()),
    "a bad chunk": raw(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n1\r\nx\r\n%s\r\n"
                       % TOKEN.encode(), then="close"),
    "a redirect": complete(b"", status=302, fields=[("Location", f"http://{TOKEN}.invalid/")]),
}


class Everywhere:
    """Clients from an address to be found nowhere, and all that the router said to them."""

    def __init__(self, router, upstream):
        self.router, self.upstream, self.said = router, upstream, b""

    def send(self, data):
        """Send bytes, end the sending side, keep what comes."""
        with socket.create_connection(("127.0.0.1", self.router.port), DEADLINE_S, (PEER, 0)) as c:
            c.sendall(data)
            c.shutdown(socket.SHUT_WR)
            self.said += read_to_end(c)

    def ask(self, body, own=True, path="/v1/chat/completions", **headers):
        """Send a request; what comes is kept if it is the router's own."""
        connection = self.router.connect()
        connection.source_address = (PEER, 0)
        connection.request("POST", path, body, {
            "Authorization": f"Bearer {TOKEN}", "X-Forwarded-For": FORWARDED, **headers})
        answer = Answer(connection.getresponse())
        connection.close()
        if own:
            self.said += answer.body + str(answer.fields).encode()
        return answer


@pytest.fixture(scope="module")
def everywhere(tmp_path_factory):
    home = tmp_path_factory.mktemp("home")
    (home / ".netrc").write_text(f"machine 127.0.0.1 login x password {CREDENTIAL}\n")
    (home / ".netrc").chmod(0o600)
    rows = [utilization_row("a"), utilization_row(TOKEN), {"name": PROMPT, "bad": CREDENTIAL}]
    with Upstream(models=models_feed(["a", "b"]), rows=rows) as upstream, Router(
            upstream.url, HOME=str(home), NETRC=str(home / ".netrc"), MAX_REQUEST_BYTES="5000",
            HTTPS_PROXY=f"http://user:{CREDENTIAL}@127.0.0.1:1", UTILIZATION_REFRESH_MS="50",
            STICKY_URL=f"redis://:{CREDENTIAL}@127.0.0.1:1/0", STICKY_HASH_SECRET=CREDENTIAL,
            TRUST_PROXY_HEADERS="yes", TRUSTED_PROXY_CIDRS="127.0.0.0/8",
            UPSTREAM_CONNECT_TIMEOUT_MS="500", CLIENT_BODY_TIMEOUT_MS="500") as router:
        router.wait_until_fed()
        yield Everywhere(router, upstream)


@pytest.fixture(scope="module")
def planted(everywhere):
    """Plant in every place; return the whole of what could be found in the end."""
    it = everywhere
    for request in REQUESTS.values():
        it.send(request.replace(b"%s", TOKEN.encode()))
    for body in (BODY[:-1], b"[" + BODY, BODY.replace(b'"a"', b'"a", "model": "b"'),
                 BODY.replace(b'"a"', b"5"), BODY + b"x" * 6000, b"\xff" + BODY):
        assert it.ask(body).status in (400, 413)
    for number, script in enumerate(UPSTREAM.values()):
        it.upstream.on(f"a:{number}", script)
        it.ask(BODY.replace(b'"a"', b'"a:%d"' % number), own=False)
    it.upstream.on("b", reset_at_once)
    it.ask(BODY.replace(b'"a"', b'"b,a"'), own=False)
    it.ask(BODY.replace(b'"a"', b'"%s"' % TOKEN.encode()), own=False)
    del_authorization = {"Authorization": ""}
    it.ask(BODY.replace(b'"a"', b'"a,b"'), own=False, **del_authorization)
    it.upstream.feed_status = 500
    it.router.wait_for_lines(lambda line: line["message"] == "feed refresh fails")
    it.upstream.feed_status = 200
    it.router.wait_for_lines(lambda line: line["message"] == "feed refresh works again")
    return it


def test_no_log_line_at_any_level_has_any_of_it(planted):
    """007-R11, 001-R7"""
    count = len(UPSTREAM)
    planted.router.wait_for_lines(lambda line: line["message"] == "request", count + 8)
    written = json.dumps(planted.router.lines)
    assert any(line["level"] == "DEBUG" for line in planted.router.lines if "level" in line)
    assert [secret for secret in PLANTED if secret in written] == []


def test_no_metric_has_any_of_it(planted):
    """007-R11, 001-R7"""
    shown = planted.router.get("/metrics").body.decode()
    assert [secret for secret in PLANTED if secret in shown] == []


def test_neither_the_status_page_nor_its_json_has_any_of_it(planted):
    """007-R11, 008-R4"""
    for accept in ("text/html", "application/json"):
        shown = planted.router.get("/status", {"Accept": accept}).body.decode()
        assert "upstream_connect_error" in shown or "no connection" in shown
        assert [secret for secret in PLANTED if secret in shown] == []


def test_no_error_made_here_has_any_of_it(planted):
    """007-R11, 002-R21"""
    assert planted.said.count(b'"error"') >= 15
    assert [secret for secret in PLANTED if secret.encode() in planted.said] == []


def test_no_explanation_has_any_of_it(planted):
    """008-R22, 007-R11: but for the name of a chute, as the feed has it."""
    shown = b""
    # The second client is known by its address, and has a sticky choice.
    for model, token in itertools.product(
            ("a", "b,a", "x,a", "chutesai/AutoPilot"), (f"Bearer {CREDENTIAL}", "")):
        answer = planted.ask(BODY.replace(b'"a"', b'"%s"' % model.encode()), own=False,
                             path="/explain", Authorization=token)
        assert answer.status == 200
        shown += answer.body.replace(b'{"model": "%s"' % TOKEN.encode(), b"")
        shown += str(answer.fields).encode()
    with sqlite3.connect(planted.router.runtime_directory() / "choices.sqlite") as database:
        keys = [key for key, in database.execute("SELECT client FROM sticky")]
    database.close()
    assert keys and [each for each in (*PLANTED, *keys) if each.encode() in shown] == []


def test_no_digest_that_stands_for_a_client_is_written(planted):
    """007-R11, 001-R7"""
    with sqlite3.connect(planted.router.runtime_directory() / "choices.sqlite") as database:
        keys = [key for key, in database.execute("SELECT client FROM sticky")]
    database.close()
    assert len(keys) == 2
    written = json.dumps(planted.router.lines) + planted.router.get("/metrics").body.decode()
    assert [key for key in keys if key in written] == []


def test_no_shared_file_has_a_client_in_it(planted):
    """007-R11, 005-R2"""
    until(lambda: planted.router.metrics()["requests_active",] == 0)
    for path in planted.router.runtime_directory().rglob("*"):
        if path.is_file() and path.suffix != ".feed":
            data = path.read_bytes()
            assert [secret for secret in PLANTED if secret.encode() in data] == [], path


def test_the_netrc_goes_nowhere(planted):
    """007-R11, 002-R10"""
    sent = [exchange.fields for exchange in (
        *planted.upstream.exchanges, *planted.upstream.feed_requests)]
    assert sent and CREDENTIAL not in json.dumps(sent, default=str)
