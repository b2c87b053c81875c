"""Modes, candidates, and what goes upstream, over real sockets."""

import gzip
import json
import socket

import pytest

from tests.support.feeds import models_feed, public_names, utilization_row
from tests.support.router import Router, read_until
from tests.support.upstream import Upstream, complete
from tests.wire.conftest import SHORT

BODIES = [
    b'{"model": MODEL, "messages": [], "temperature": 1.10, "seed": 12345678901234567890123456789}',
    b'\n {"messages":[{"content":"h\\u00e9 \\ud83d\\ude00 \\/"}],\t"x":1e400,"model" : MODEL }\n',
    b'{"messages":[{"content":"\xc3\xa9 \xf0\x9f\x98\x80"}],"model":MODEL,"b":{"model":"inner"}}',
]


@pytest.fixture(scope="module")
def ranked():
    """A router over three ranked chutes, of which the second is not listed."""
    rows = [utilization_row("good-TEE", active=10, u5=0.1, u15=0.1, u1h=0.1),
            utilization_row("unlisted-TEE", active=20, u5=0.0),
            utilization_row("fair", active=10, u5=0.5), utilization_row("[private chute]")]
    with Upstream(models=models_feed(["good-TEE", "fair", "idle"]), rows=rows) as upstream:
        with Router(upstream.url, **SHORT) as router:
            router.wait_until_fed()
            yield router, upstream


@pytest.mark.parametrize("alias", ["chutesai/AutoPilot", "chutesai-routing/AutoPilot"])
def test_an_alias_takes_the_best_ranked_model_and_says_which(ranked, alias):
    """002-R4, 002-R17, 003-R4"""
    router, upstream = ranked
    answer = router.chat(alias)
    assert answer.status == 200
    assert answer.value("x-chutes-autopilot-selected") == "good-TEE"
    assert upstream.seen("good-TEE")


def test_an_alias_must_be_spelled_exactly(ranked):
    """002-R4"""
    router, _ = ranked
    assert router.chat("chutesai/autopilot").error["code"] == "unknown_model"


def test_a_list_takes_its_first_item_and_a_direct_id_goes_straight_through(router, upstream, model):
    """002-R4, 002-R17, 004-R1"""
    first, second = model(), model()
    answer = router.chat(f" {first} , {second},, ")
    assert (answer.status, answer.value("x-chutes-autopilot-selected")) == (200, first)
    assert not upstream.seen(second)

    answer = router.chat(second)
    assert (answer.status, answer.value("x-chutes-autopilot-selected")) == (200, None)
    assert upstream.seen(second)


@pytest.mark.parametrize("asked, code, named", [
    ("nobody/knows-this", "unknown_model", ["'nobody/knows-this'"]),
    ("bad-one,bad-two", "unknown_model", ["'bad-one'", "'bad-two'"]),
    ("unlisted-TEE", "unknown_model", ["'unlisted-TEE'"]),
    ("bad:latency", "unknown_model", ["'bad:latency'"]),
    (",", "invalid_model_list", []),
    (" , ,\t,", "invalid_model_list", []),
    ("a,b,c,d,e,f,g,h,i", "invalid_model_list", ["9", "8"]),
    ("café\r\nX-Evil: 1,bad-two", "unknown_model", ["'café\r\nX-Evil: 1'", "'bad-two'"]),
])
def test_a_model_that_cannot_be_routed_is_refused_by_name(ranked, asked, code, named):
    """002-R6, 004-R2, 004-R3"""
    router, upstream = ranked
    before = len(upstream.exchanges)
    answer = router.chat(asked)
    assert answer.status == 400
    assert (answer.error["code"], answer.error["param"]) == (code, "model")
    assert answer.error["type"] == "invalid_request_error"
    assert all(name in answer.error["message"] for name in named)
    assert len(upstream.exchanges) == before


def test_a_suffix_is_judged_by_the_name_before_it_and_goes_up_as_written(ranked):
    """002-R7"""
    router, upstream = ranked
    assert router.chat("fair:THINKING").status == 200
    assert upstream.seen("fair:THINKING")


@pytest.mark.parametrize("odd", ["good-TEE:\r\nX-Evil", "good-TEE:é"])
def test_an_odd_suffix_goes_up_as_written_and_gets_into_no_header(ranked, odd):
    """002-R7, 002-R55"""
    router, upstream = ranked
    answer = router.chat(f"{odd},fair", headers={"Authorization": f"Bearer odd-{len(odd)}"})
    assert answer.status == 200 and upstream.exchanges[-1].model == odd
    assert answer.value("x-chutes-autopilot-selected") is answer.value("X-Evil") is None


def test_while_nothing_was_fetched_direct_and_list_go_unchecked_and_an_alias_has_no_candidate():
    """002-R6, 002-R5"""
    with Upstream() as upstream:
        upstream.feed_status = 500
        with Router(upstream.url) as router:
            assert router.chat("any/thing").status == 200
            assert router.chat("any/thing,other").status == 200
            answer = router.chat("chutesai/AutoPilot")
            assert answer.status == 503
            assert answer.error == {"message": answer.error["message"], "type": "server_error",
                                    "param": "model", "code": "no_candidates"}


@pytest.mark.parametrize("body", BODIES)
def test_only_the_value_of_model_changes_on_the_way_up(router, upstream, model, body):
    """002-R8"""
    name = model()
    sent = body.replace(b"MODEL", b'"%s,nobody:x"' % name.encode().replace(b"/", b"\\/"))
    sent = sent.replace(b",nobody:x", b",")
    answer = router.post(sent)
    assert answer.status == 200
    expected = body.replace(b"MODEL", b'"%s"' % name.encode())
    assert upstream.seen(name)[0].body == expected


@pytest.mark.parametrize("body", BODIES)
def test_a_direct_body_goes_up_untouched(router, upstream, model, body):
    """002-R8"""
    name = model()
    sent = body.replace(b"MODEL", b'"%s"' % name.encode().replace(b"/", b"\\/"))
    assert router.post(sent).status == 200
    assert upstream.seen(name)[0].body == sent


def test_the_clients_headers_cross_but_for_those_of_the_hop(router, upstream, model):
    """002-R10, 002-R18"""
    name = model()
    router.chat(name, headers={
        "Authorization": "Bearer of-the-client", "X-Custom": "kept", "Cookie": "a=b",
        "Accept-Encoding": "gzip, br", "Connection": "close, X-Hop", "X-Hop": "dropped",
        "Keep-Alive": "timeout=5", "TE": "trailers", "Proxy-Authorization": "secret",
        "Upgrade": "h2c", "Trailer": "X", "X-Request-Id": "id-of-the-client"})
    fields = upstream.seen(name)[0].fields
    got = dict(fields)
    assert len(got) == len(fields)
    assert got["authorization"] == "Bearer of-the-client"
    assert (got["x-custom"], got["cookie"]) == ("kept", "a=b")
    assert (got["accept-encoding"], got["x-request-id"]) == ("identity", "id-of-the-client")
    assert got["host"] == f"127.0.0.1:{upstream.port}"
    assert not got.keys() & {"x-hop", "keep-alive", "te", "proxy-authorization", "upgrade",
                             "trailer", "connection", "transfer-encoding", "expect"}


def test_a_chunked_request_goes_up_with_its_length(router, upstream, model):
    """002-R10"""
    name = model()
    body = b'{"model":"%s"}' % name.encode()
    answer = router.exchange(
        b"POST /v1/chat/completions HTTP/1.1\r\nHost: x\r\nConnection: close\r\n"
        b"Transfer-Encoding: chunked\r\n\r\n3\r\n%s\r\n%x\r\n%s\r\n0\r\n\r\n"
        % (body[:3], len(body) - 3, body[3:]))
    assert answer.startswith(b"HTTP/1.1 200 ")
    assert upstream.seen(name)[0].body == body
    assert dict(upstream.seen(name)[0].fields)["content-length"] == str(len(body))


def test_nothing_of_the_environment_replaces_the_clients_authorization(tmp_path):
    """002-R10"""
    (tmp_path / ".netrc").write_text("machine 127.0.0.1 login other password secret\n")
    with Upstream() as upstream:
        upstream.on("m", complete(b"{}", fields=[("Set-Cookie", "session=of-another; Path=/")]))
        with Router(upstream.url, HOME=str(tmp_path),
                    NETRC=str(tmp_path / ".netrc")) as router:
            router.chat("m", headers={"Authorization": "Bearer mine"})
            router.chat("m")
            with_token, without = (dict(e.fields) for e in upstream.seen("m"))
    assert with_token["authorization"] == "Bearer mine"
    assert "authorization" not in without and "cookie" not in without
    assert not any("authorization" in dict(e.fields) for e in upstream.feed_requests)


def test_a_proxy_of_the_environment_is_used_and_no_proxy_is_heeded(model):
    """002-R10"""
    with Upstream() as proxy, Upstream() as upstream:
        settings = {"BACKEND_BASE_URL": "http://backend.invalid:81/base/"}
        with Router(upstream.url, **settings, http_proxy=proxy.url,
                    NO_PROXY="127.0.0.1") as router:
            assert router.chat("m").status == 200
        exchange = proxy.seen("m")[0]
        assert exchange.target == "http://backend.invalid:81/base/v1/chat/completions"
        assert dict(exchange.fields)["host"] == "backend.invalid:81"
        assert upstream.feed_requests and not proxy.feed_requests


def test_redirects_are_passed_on_and_never_followed(router, upstream, model):
    """002-R13"""
    name = model()
    upstream.on(name, complete(b"moved", status=307, fields=[("Location", f"{upstream.url}/x")]))
    answer = router.chat(name)
    assert (answer.status, answer.body) == (307, b"moved")
    assert answer.value("Location") == f"{upstream.url}/x"
    assert len(upstream.seen(name)) == 1


def test_an_answer_compressed_unasked_passes_as_it_is(router, upstream, model):
    """002-R15"""
    name = model()
    packed = gzip.compress(b'{"a": 1}' * 50)
    upstream.on(name, complete(packed, fields=[("Content-Encoding", "gzip")]))
    answer = router.chat(name)
    assert answer.body == packed
    assert answer.value("Content-Encoding") == "gzip"


def test_a_new_allowlist_filters_the_ranking_at_once():
    """003-R8"""
    rows = [utilization_row("first", active=9), utilization_row("second", active=3)]
    with Upstream(models=models_feed(["first", "second"]), rows=rows) as upstream:
        with Router(upstream.url, MODELS_REFRESH_MS="50",
                    UTILIZATION_REFRESH_MS="3600000") as router:
            router.wait_until_fed()
            assert router.chat("chutesai/AutoPilot").value(
                "x-chutes-autopilot-selected") == "first"
            upstream.models = models_feed(["second"])
            router.wait_for_lines(
                lambda line: line.get("feed") == "models" and line["entries"] == 1)
            assert router.chat("chutesai/AutoPilot").value(
                "x-chutes-autopilot-selected") == "second"
            assert len([e for e in upstream.feed_requests if "utilization" in e.target]) == 1


def test_the_whole_feed_is_ranked_and_every_listed_name_is_admitted(router):
    """003-R1, 002-R6"""
    names = public_names()
    assert router.chat(names[0]).status == router.chat(names[-1]).status == 200
    assert router.chat("chutesai/AutoPilot").value("x-chutes-autopilot-selected") in names


def test_the_answer_body_is_the_upstreams_for_every_status_passed_on(router, upstream, model):
    """002-R12"""
    for status, kind, body in [
            (429, "text/html", b"<html>429 Too Many Requests</html>"),
            (429, "application/json", b'{"detail":"Infrastructure is at maximum capacity"}'),
            (401, "application/json", b'{"detail":"Invalid token."}'),
            (500, "application/json", b'{"detail":"exhausted all available targets"}'),
            (404, "text/plain", b""), (418, "text/plain", b"short")]:
        first, second = model(), model()
        upstream.on(first, complete(body, status=status, fields=[("Content-Type", kind)]))
        answer = router.chat(f"{first},{second}")
        assert (answer.status, answer.value("Content-Type")) == (status, kind)
        # Errors of JSON get a member before their own (002-R25).
        assert answer.body.endswith(body[1:]) if kind == "application/json" else answer.body == body
        assert answer.value("x-chutes-autopilot-selected") == first
        assert not upstream.seen(second)


def test_a_model_given_twice_reaches_nobody(router, upstream, model):
    """002-R9"""
    name = model()
    answer = router.post(b'{"model":"%s","model":"%s"}' % (name.encode(), name.encode()))
    assert (answer.status, answer.error["code"]) == (400, "invalid_body")
    assert not upstream.seen(name)
    assert json.loads(answer.body)


def test_a_plain_proxy_gets_its_own_credentials_and_not_the_clients(ranked):
    """002-R10"""
    _, feeds = ranked
    with Upstream() as proxy, Router(
            "http://backend.test", MODELS_URL=f"{feeds.url}/v1/models", NO_PROXY="127.0.0.1",
            UTILIZATION_URL=f"{feeds.url}/chutes/utilization",
            HTTP_PROXY=proxy.url.replace("//", "//user:secret@"), **SHORT) as router:
        router.wait_until_fed()
        answer = router.chat("fair", headers={"Proxy-Authorization": "Basic mine"})
        assert answer.status == 200
        [exchange] = proxy.exchanges
    assert exchange.target == "http://backend.test/v1/chat/completions"
    assert [value for name, value in exchange.fields if name.lower() == "proxy-authorization"] == [
        "Basic dXNlcjpzZWNyZXQ="]


def test_a_request_is_routed_by_what_is_known_when_its_body_is_here():
    """002-R1, 003-R1"""
    with Upstream(models=models_feed(["a-TEE"]), rows=[utilization_row("a-TEE")]) as upstream:
        upstream.feed_status = 503
        body = b'{"model": "chutesai/AutoPilot"}'
        with Router(upstream.url, MODELS_REFRESH_MS="200", UTILIZATION_REFRESH_MS="200") as router:
            with socket.create_connection(("127.0.0.1", router.port), 10) as client:
                client.sendall(b"POST /v1/chat/completions HTTP/1.1\r\nHost: a\r\n"
                               b"Content-Length: %d\r\n\r\n" % len(body))
                router.wait_for_connections(1)
                upstream.feed_status = 200
                router.wait_until_fed()
                client.sendall(body)
                assert read_until(client, b"\r\n").startswith(b"HTTP/1.1 200 ")


def test_a_model_whose_id_is_the_label_of_unknown_ones_is_a_model():
    """002-R6, 002-R7"""
    feeds = {"models": models_feed(["other"]), "rows": [utilization_row("other")]}
    with Upstream(**feeds) as upstream, Router(upstream.url) as router:
        router.wait_until_fed()
        assert router.chat("other").status == router.chat("other:x").status == 200
        assert router.chat("another").status == 400
