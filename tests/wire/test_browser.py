"""What a page of another origin may do, in a real browser and by hand."""

import json

import pytest

from tests.support.browser import Page
from tests.support.router import Router
from tests.support.upstream import pieces, sse

CHAT = "/v1/chat/completions"
ASK = """
(async () => {
  try {
    const answer = await fetch("%s/v1/chat/completions", {
      method: "POST",
      headers: {"Authorization": "Bearer sk-page", "Content-Type": "application/json",
                "X-Request-Id": "from-a-page"},
      body: JSON.stringify({model: "%s,", stream: true, messages: []})});
    let pieces = 0, text = "";
    const reader = answer.body.getReader(), decoder = new TextDecoder();
    for (;;) {
      const {done, value} = await reader.read();
      if (done) break;
      pieces += 1;
      text += decoder.decode(value);
      if (pieces === 1) await fetch("/reached");
    }
    await report(JSON.stringify({status: answer.status, text, pieces,
      selected: answer.headers.get("x-chutes-autopilot-selected"),
      id: answer.headers.get("x-request-id"), quota: answer.headers.get("x-chutes-quota-used")}));
  } catch (error) {
    await report(JSON.stringify({error: error.name}));
  }
})();
"""


@pytest.mark.parametrize("allowed", ["its own", "*", "another"])
def test_a_page_of_another_origin_streams_an_answer_where_it_is_allowed(upstream, model, allowed):
    """002-R24"""
    name, parts = model(), sse([{"n": 1}, {"n": 2}])
    router = Router(upstream.url)
    with Page(ASK % (f"http://127.0.0.1:{router.port}", name)) as page:
        upstream.on(name, pieces(
            parts, fields=[("Content-Type", "text/event-stream"), ("X-Chutes-Quota-Used", "7"),
                           ("Access-Control-Allow-Origin", "https://of-the-upstream.example")],
            before_each=lambda number: number != 1 or page.reached.wait(30)))
        origin = {"its own": page.origin, "*": "*", "another": "https://chat.example"}[allowed]
        router.environment["CORS_ALLOW_ORIGINS"] = origin
        with router:
            seen = json.loads(page.result())
    if allowed == "another":
        assert seen == {"error": "TypeError"}
        assert not upstream.seen(name)
        return
    assert seen == {"status": 200, "text": b"".join(parts).decode(), "pieces": seen["pieces"],
                    "selected": name, "id": "from-a-page", "quota": "7"}
    assert seen["pieces"] >= 2


FIELDS = ("Access-Control-Allow-Origin", "Access-Control-Expose-Headers",
          "Access-Control-Allow-Methods", "Access-Control-Allow-Headers")


def told(answer):
    """Return what an answer says of origins."""
    return [answer.value(name) for name in FIELDS]


@pytest.fixture(scope="module")
def open_router(upstream):
    with Router(upstream.url, CORS_ALLOW_ORIGINS="https://a.example, http://b.example:8000") as it:
        yield it


@pytest.mark.parametrize("path", [CHAT, "/healthz", "/no/such/route"])
@pytest.mark.parametrize("origin, allowed", [
    ("https://a.example", True), ("http://b.example:8000", True), ("https://b.example:8000", False),
    ("null", False), ("https://a.example.evil.example", False), ("", False)])
def test_a_preflight_is_answered_and_names_an_allowed_origin_only(
        open_router, path, origin, allowed):
    """002-R24"""
    headers = {"Access-Control-Request-Headers": "authorization,x-stainless-lang"}
    answer = open_router.get(path, {**headers, "Origin": origin} if origin else headers, "OPTIONS")
    assert (answer.status, answer.body, answer.value("Vary")) == (204, b"", "Origin")
    assert answer.value("Content-Type") is None
    assert told(answer) == ([origin, "*", "GET, HEAD, POST", headers[
        "Access-Control-Request-Headers"]] if allowed else [None] * 4)


def test_errors_and_answers_name_an_allowed_origin_once_in_place_of_the_upstreams_word(
        open_router, upstream, model):
    """002-R24"""
    name = model()
    upstream.on(name, pieces([b"x"], fields=[
        ("Access-Control-Allow-Origin", "*"), ("Access-Control-Allow-Credentials", "true"),
        ("Vary", "Accept")]))
    for origin, allowed in (("https://a.example", "https://a.example"), ("https://c.test", None)):
        for answer in (open_router.chat(name, headers={"Origin": origin}),
                       open_router.post(b"no json", {"Origin": origin}),
                       open_router.get("/readyz", {"Origin": origin}),
                       open_router.get("/no/such/route", {"Origin": origin})):
            assert answer.value("Access-Control-Allow-Origin") == allowed
            assert answer.value("Access-Control-Allow-Credentials") is None
            assert "Origin" in answer.values("Vary")


@pytest.mark.parametrize("wrong", [b"Authorization: x\r\nAuthorization: y",
                                   b"Transfer-Encoding: gzip, chunked"])
@pytest.mark.parametrize("origin, told_so", [
    (b"https://a.example", b"Access-Control-Allow-Origin: https://a.example\r\n"
     b"Access-Control-Expose-Headers: *\r\n"), (b"https://c.test", b"")])
def test_a_refusal_by_the_server_names_an_allowed_origin(open_router, wrong, origin, told_so):
    """002-R24"""
    head, _, body = open_router.exchange(
        b"POST %s HTTP/1.1\r\nHost: x\r\nOrigin: %s\r\n%s\r\n\r\n" % (
            CHAT.encode(), origin, wrong)).partition(b"\r\n\r\n")
    assert head.startswith(b"HTTP/1.1 400 ") and json.loads(body)["error"]["code"] == "bad_request"
    assert (head + b"\r\n").endswith(b"\r\nVary: Origin\r\n" + told_so)


def test_without_allowed_origins_the_upstreams_word_passes(router, upstream, model):
    """002-R24"""
    name = model()
    upstream.on(name, pieces([b"x"], fields=[("Access-Control-Allow-Origin", "*")]))
    answer = router.chat(name, headers={"Origin": "https://a.example"})
    assert answer.value("Access-Control-Allow-Origin") == "*" and answer.value("Vary") is None
    assert router.get(CHAT, {"Origin": "https://a.example"}, "OPTIONS").status == 405
    refused = router.exchange(
        b"GET / HTTP/1.1\r\nHost: x/y\r\nOrigin: https://a.example\r\n\r\n")
    assert refused.startswith(b"HTTP/1.1 400 ") and b"Access-Control" not in refused
    assert b"Vary" not in refused
