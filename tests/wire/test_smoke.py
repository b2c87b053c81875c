"""`make smoke` against an upstream that is as the real one was seen to be, and one that drifts."""

import json
import os
import re
import subprocess
import sys

import pytest

from tests.support import smoke
from tests.support.feeds import bare_entry, models_feed, public_names, utilization_feed
from tests.support.router import ROOT, Router
from tests.support.upstream import Upstream, chat_chunks, chat_completion, complete, pieces, sse

KEY = "cpk_planted-key"
JSON, EVENTS = ("Content-Type", "application/json"), ("Content-Type", "text/event-stream")
HTML_429 = b"<html>\r\n<head><title>429 Too Many Requests</title></head>\r\n</html>\r\n"
USAGE = {"prompt_tokens": 11, "completion_tokens": 4, "total_tokens": 15}
HEADERS = [("X-Chutes-InvocationID", "of-the-work"), ("X-Chutes-Quota-Total", "300"),
           ("X-Chutes-Quota-Used", "12"), ("X-Chutes-Quota-Remaining", "288"),
           ("X-Chutes-RL-User", "0/60")]
NAMES = public_names(12)


def stream():
    last = {"id": "chatcmpl-scripted", "object": "chat.completion.chunk", "created": 1,
            "model": "m", "choices": [], "usage": USAGE}
    return pieces(sse([*chat_chunks("m", "Hello."), last]), fields=[EVENTS, *HEADERS])


def right():
    """Return what the upstream answers, by what is asked."""
    return {
        "answer": complete(chat_completion("m", "Hello."), fields=[JSON, *HEADERS]),
        "stream": stream(),
        "prompt": complete(json.dumps({"object": "text_completion", "choices": [
            {"index": 0, "text": " there", "finish_reason": "stop"}], "usage": USAGE}).encode(),
            fields=[JSON, *HEADERS]),
        "unknown": complete(b'{"detail":"model not found: nobody/Knows-This-1B"}', status=404,
                            fields=[JSON]),
        "wrong": complete(b'{"detail":"Invalid token."}', status=401, fields=[JSON]),
        "none": complete(HTML_429, status=429, fields=[("Content-Type", "text/html")])}


def asked(exchange):
    """Return what a request asks for."""
    token, body = dict(exchange.fields).get("authorization"), json.loads(exchange.body)
    if token != f"Bearer {KEY}":
        return "wrong" if token else "none"
    if exchange.target == "/v1/completions":
        return "prompt"
    if body["model"] not in NAMES:
        return "unknown"
    return "stream" if body.get("stream") else "answer"


@pytest.fixture(scope="module")
def site():
    with Upstream(models=models_feed([bare_entry(NAMES[0]), *NAMES[1:]]),
                  rows=utilization_feed(rows=60, public=12)) as upstream, Router(
            upstream.url, UNKNOWN_MODELS="pass", UPSTREAM_ERRORS="as_is") as router:
        router.wait_until_fed()
        yield upstream, router


@pytest.fixture
def found(site):
    """Return a function that looks at the upstream as it is, but for its answers to `drifted`."""
    upstream, router = site
    models, rows = upstream.models, upstream.rows

    def look(key=KEY, **drifted):
        answers = right() | drifted
        upstream.otherwise(lambda exchange: answers[asked(exchange)](exchange))
        return smoke.lines_of(router, key, dict.fromkeys(("BACKEND_BASE_URL",), upstream.url) | {
            "MODELS_URL": f"{upstream.url}/v1/models",
            "UTILIZATION_URL": f"{upstream.url}/chutes/utilization"})
    yield look
    upstream.models, upstream.rows = models, rows


def broken(lines):
    return [line.what for line in lines if not line.holds]


def test_all_holds_of_an_upstream_as_it_was_seen(found):
    """008-R28"""
    lines = found()
    assert broken(lines) == [] and len(lines) == 33
    shown = {line.what: line.found for line in lines}
    assert shown["models: context_length"] == "in 11 of 12"
    assert shown["utilization feed"] == "200, 60 rows"
    assert shown["no token"] == "429 text/html"
    assert shown["a wrong token"] == "401 application/json 'Invalid token.'"
    assert shown["quota and rate limit"].startswith("quota-total: 300, quota-used: 12, ")


def test_without_a_key_nothing_is_asked_that_needs_one(found, site):
    """008-R29"""
    sent = len(site[0].exchanges)
    lines = found(key="")
    assert broken(lines) == [] and "an answer" not in [line.what for line in lines]
    assert {asked(exchange) for exchange in site[0].exchanges[sent:]} == {"none", "wrong"}


def without(name):
    return complete(chat_completion("m", "Hello."), fields=[
        JSON, *(field for field in HEADERS if field[0] != name)])


NO_USAGE = pieces(sse(chat_chunks("m", "Hello.")), fields=[EVENTS])
NOT_DONE = pieces(sse([*chat_chunks("m", "x"), {"usage": USAGE}], done=False), fields=[EVENTS])
OPENAI_ERROR = b'{"error": {"message": "Incorrect API key."}}'


@pytest.mark.parametrize("asked_for, answer, line", [
    ("answer", complete(b'{"choices": [{"message": {}}]}', fields=[JSON, *HEADERS]),
     "an answer"),
    ("answer", complete(json.dumps({"usage": USAGE}).encode(), fields=[JSON, *HEADERS]),
     "an answer"),
    ("answer", without("X-Chutes-InvocationID"), "id of the work"),
    ("answer", without("X-Chutes-RL-User"), "quota and rate limit"),
    ("answer", without("X-Chutes-Quota-Used"), "quota and rate limit"),
    ("stream", NO_USAGE, "its usage"), ("stream", NOT_DONE, "its end"),
    ("stream", pieces(sse([{"usage": USAGE}]), fields=[EVENTS]), "a stream"),
    ("unknown", complete(b'{"detail":"No matching cord found!"}', status=404, fields=[JSON]),
     "an unknown model"),
    ("unknown", complete(b'{"detail":"model not found: x"}', status=400, fields=[JSON]),
     "an unknown model"),
    ("wrong", complete(OPENAI_ERROR, status=401, fields=[JSON]), "a wrong token"),
    ("wrong", complete(b'{"detail":"Forbidden"}', status=403, fields=[JSON]), "a wrong token"),
    ("none", complete(b"{}", status=200, fields=[JSON]), "no token"),
    ("none", complete(b'{"detail":"slow down"}', status=429, fields=[JSON]), "no token"),
    *(("prompt", complete(body, fields=[JSON]), "/v1/completions") for body in (
        b'{"choices": [{"message": {}}]}', b'{"choices": ["text"]}', b"[]", b"hello")),
    ("prompt", complete(b'{"detail":"No matching cord found!"}', status=404, fields=[JSON]),
     "/v1/completions")])
def test_an_answer_that_drifts_makes_its_line_fail_and_no_other(found, asked_for, answer, line):
    """008-R30"""
    assert broken(found(**{asked_for: answer})) == [line]


@pytest.mark.parametrize("feed, key", [
    *(("models", key) for key in smoke.MODEL_KEYS),
    *(("utilization", key) for key in smoke.UTILIZATION_KEYS)])
def test_a_key_of_another_kind_makes_its_line_fail_and_no_other(found, site, feed, key):
    """008-R30"""
    upstream = site[0]
    rows = upstream.models["data"] if feed == "models" else upstream.rows
    changed = [*rows[:-1], {**rows[-1], key: {}}]
    if feed == "models":
        upstream.models = {"data": changed}
    else:
        upstream.rows = changed
    assert broken(found(key="")) == [f"{feed}: {key}"]


@pytest.mark.parametrize("key", ["utilization_1h", "name"])
def test_a_key_that_is_gone_makes_its_line_fail_and_no_other(found, site, key):
    """008-R30"""
    gone = [{name: value for name, value in row.items() if name != key} for row in site[0].rows]
    site[0].rows = gone
    assert broken(found(key="")) == [f"utilization: {key}"]


@pytest.mark.parametrize("models", [[], {"data": []}, {"data": [1]}, b"<html>", {"models": [{}]}])
def test_a_feed_of_another_shape_makes_its_line_fail_and_no_other(found, site, models):
    """008-R30"""
    site[0].models = models
    assert broken(found(key="")) == ["models feed"]


def run(**environment):
    return subprocess.run([sys.executable, "-m", "tests.support.smoke"], cwd=ROOT, text=True,
                          env={"PATH": os.environ["PATH"], **environment}, capture_output=True)


@pytest.mark.parametrize("key, drifts, status", [(KEY, False, 0), (KEY, True, 1), ("", False, 0)])
def test_the_command_says_first_what_it_costs_and_ends_with_0_only_if_all_holds(
        site, found, key, drifts, status):
    """008-R28, 008-R29, 008-R30"""
    found(key="", **({"prompt": complete(b"{}")} if drifts else {}))
    url = site[0].url
    ended = run(CHUTES_API_KEY=key, BACKEND_BASE_URL=url, MODELS_URL=f"{url}/v1/models",
                UTILIZATION_URL=f"{url}/chutes/utilization")
    lines = ended.stdout.splitlines()
    assert (ended.returncode, ended.stderr) == (status, "")
    first = f"Four short requests go to {url}: " if key else "CHUTES_API_KEY is not set."
    assert lines[0].startswith(first)
    assert ("a few hundred tokens" in ended.stdout) == bool(key) and KEY not in ended.stdout
    assert re.fullmatch(r"\d+ of \d+ assumptions hold\.", lines[-1])
    failed = [line for line in lines if line.startswith("NOT")]
    assert [line.split()[1] for line in failed] == ["/v1/completions"] * drifts


def test_an_upstream_that_cannot_be_reached_is_said_and_nothing_else_happens():
    """008-R30"""
    ended = run(**dict.fromkeys(smoke.URLS, "http://127.0.0.1:1"))
    assert (ended.returncode, ended.stderr) == (1, "")
    assert ended.stdout.count("\nNOT") == 5 and "no_candidates of the router" in ended.stdout
